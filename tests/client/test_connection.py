"""Which backend the environment selects, what it needs, and what is not even imported."""

from __future__ import annotations

import json
import subprocess
import sys

import asyncssh
import pytest
from support.client_environments import AICHAT, LEGACY

import paliadin_client
from paliadin_client import ConfigError

#: What `connect` looks at as well.
KEYS = {
    "PALIADIN_SSH_PRIVATE_KEY": asyncssh.generate_private_key("ssh-ed25519")
    .export_private_key()
    .decode(),
    "PALIADIN_KNOWN_HOSTS": "mriver.example.org "
    + asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode(),
}


@pytest.mark.anyio
async def test_connect_says_what_is_missing() -> None:
    """Without its variables aichat does not even start."""
    with pytest.raises(ConfigError, match="AICHAT_URL is not set; AICHAT_TOKEN is not set"):
        async with paliadin_client.connect(environ={"PALIADIN_BACKEND": "aichat"}):
            pytest.fail("connected")


@pytest.mark.anyio
@pytest.mark.parametrize("host", ["999.1.1.1", "[::::]"])
async def test_impossible_host(host: str) -> None:
    """A host that cannot be one is reported before anything is asked."""
    environ = {**AICHAT, "AICHAT_URL": f"http://{host}:8"}
    with pytest.raises(ConfigError, match=r"AICHAT_URL=.* has no possible host"):
        async with paliadin_client.connect(environ=environ):
            pytest.fail("connected")


PEM = "-----BEGIN PUBLIC KEY-----\nmarker\n-----END PUBLIC KEY-----"


@pytest.mark.anyio
@pytest.mark.parametrize("secret", [PEM, "ssh-ed25519 marker"])
async def test_key_instead_of_a_secret(secret: str) -> None:
    """A secret that can sign no token is reported before anything is asked."""
    with pytest.raises(ConfigError, match="SUPABASE_JWT_SECRET is a public key") as caught:
        async with paliadin_client.connect(environ={**AICHAT, "SUPABASE_JWT_SECRET": secret}):
            pytest.fail("connected")
    assert "marker" not in str(caught.value)


CONNECTING = """
import json, sys, time
started = time.perf_counter()
import paliadin_client
took = time.perf_counter() - started
at_import = sorted(sys.modules)
import anyio
async def main():
    async with paliadin_client.connect():
        pass
anyio.run(main)
print(json.dumps([took, at_import, sorted(sys.modules)]))
"""


@pytest.mark.parametrize(
    ("environ", "there", "absent"),
    [
        (AICHAT, "paliadin_client.aichat", {"paliadin_client.legacy"}),
        (LEGACY, "paliadin_client.legacy", {"paliadin_client.aichat", "httpx2", "jwt"}),
    ],
    ids=["aichat", "legacy"],
)
def test_imports(environ: dict[str, str], there: str, absent: set[str]) -> None:
    """Importing imports nothing heavy; connecting, only what the selected backend needs."""
    child = subprocess.run(
        [sys.executable, "-c", CONNECTING],
        env={**environ, **KEYS} if "PALIADIN_REMOTE_HOST" in environ else environ,
        stdout=subprocess.PIPE,
        check=True,
    )
    took, at_import, connected = json.loads(child.stdout)
    print(f"import paliadin_client: {took * 1000:.0f} ms")
    heavy = {"httpx2", "jwt", "ssl", "asyncio", "click", "rich", "cryptography", "tempfile"}
    assert not heavy & set(at_import)
    assert not {name for name in at_import if name.startswith("paliadin_sidecar")}
    assert there in connected
    assert not absent & set(connected)


def test_all() -> None:
    """Everything that is public is there, and in order."""
    assert sorted(paliadin_client.__all__) == paliadin_client.__all__
    for name in paliadin_client.__all__:
        assert getattr(paliadin_client, name)
