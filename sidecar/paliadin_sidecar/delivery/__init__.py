"""From the outbox to the receiver: which delivery goes when, and what its outcome means."""
