"""The protocol, played against a receiver with turns that nobody has."""
