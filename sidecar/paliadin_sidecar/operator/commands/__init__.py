"""What an operator types: one module for each theme, loaded when its command is typed."""
