"""The least that each backend of the client needs in its environment."""

from __future__ import annotations

AICHAT = {
    "PALIADIN_BACKEND": "aichat",
    "AICHAT_URL": "http://127.0.0.1:8",
    "AICHAT_TOKEN": "token-marker",
    "SUPABASE_JWT_SECRET": "secret-marker-of-32-bytes-and-more",
}
LEGACY = {
    "PALIADIN_REMOTE_HOST": "mriver.example.org",
    "PALIADIN_SSH_PRIVATE_KEY": "key-marker",
    "PALIADIN_KNOWN_HOSTS": "mriver.example.org ssh-ed25519 AAAA",
}
