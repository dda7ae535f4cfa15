"""The commands that an operator types, and what they say."""
