"""What was accepted, until it is acknowledged."""
