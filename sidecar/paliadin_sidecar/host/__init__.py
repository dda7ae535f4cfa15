"""What the daemon needs from its host: systemd, its state directory, threads, users."""
