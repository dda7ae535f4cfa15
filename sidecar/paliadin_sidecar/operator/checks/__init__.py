"""What `check` examines: one module for each theme, each returning findings."""
