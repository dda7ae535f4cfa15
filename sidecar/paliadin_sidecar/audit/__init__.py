"""What happened, to read: event lines and metrics."""
