"""What several tests use: real processes and real servers, and the waiting for them."""
