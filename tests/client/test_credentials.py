"""A key and known hosts that will not do: said by `connect`, with what is wrong."""

from __future__ import annotations

import base64
import subprocess
from typing import TYPE_CHECKING

import anyio
import asyncssh
import pytest

import paliadin_client
from paliadin_client import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.anyio

GOOD = asyncssh.generate_private_key("ssh-ed25519")
KEY = GOOD.export_private_key().decode()
HOST_KEY = asyncssh.generate_private_key("ssh-ed25519").export_public_key().decode().strip()
#: As PuTTY writes it; the numbers are none of anybody's.
PUTTY = """PuTTY-User-Key-File-3: ssh-ed25519
Encryption: none
Comment: eddsa-key
Public-Lines: 2
AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
AAAAAAAA
Private-Lines: 1
AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA
Private-MAC: 00
"""


def environ(
    key: str = KEY, known: str = f"h.example.org {HOST_KEY}", port: str = "22022"
) -> dict[str, str]:
    return {
        "PALIADIN_REMOTE_HOST": "h.example.org",
        "PALIADIN_REMOTE_PORT": port,
        "PALIADIN_SSH_PRIVATE_KEY": key,
        "PALIADIN_KNOWN_HOSTS": known,
    }


async def problems(environ: dict[str, str]) -> list[str]:
    try:
        async with paliadin_client.connect(environ=environ):
            return []
    except ConfigError as exc:
        return list(exc.problems)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key,
        str.strip,
        lambda key: key.replace("\n", "\\n"),
        lambda key: key.replace("\n", "\r\n"),
        lambda key: f"\n  {key}\n\n",
        lambda _: GOOD.export_private_key("openssh").decode(),
        lambda _: (
            asyncssh.generate_private_key("ssh-rsa", key_size=2048)
            .export_private_key("pkcs1-pem")
            .decode()
        ),
    ],
    ids=["itself", "without its last line end", "\\n", "CRLF", "white space", "openssh", "pkcs1"],
)
async def test_keys_that_will_do(change: Callable[[str], str]) -> None:
    """A key that OpenSSH reads passes, however a variable holds its line ends."""
    assert await problems(environ(key=change(KEY))) == []


@pytest.mark.parametrize(
    ("key", "said"),
    [
        (KEY.replace("\n", "\\r\\n"), "holds the characters \\r: write each line's end as \\n"),
        (PUTTY, "is a key of PuTTY's: puttygen FILE.ppk -O private-openssh -o FILE makes it"),
        (PUTTY.replace("\n", "\\n"), "is a key of PuTTY's"),
        (
            asyncssh.generate_private_key("ecdsa-sha2-nistp256")
            .export_private_key("pkcs8-pem", passphrase="word-marker")
            .decode(),
            "is encrypted",
        ),
        (GOOD.export_public_key().decode(), "is a public key"),
        (GOOD.export_public_key("rfc4716").decode(), "is a public key"),
        ("---- BEGIN SSH2 ENCRYPTED PRIVATE KEY ----\nAAAA\n", "is a key of ssh.com's"),
        ("/run/secrets/key", "is the name of a file: it takes the file's contents"),
        ("~/.ssh/id_ed25519", "is the name of a file"),
        (f'"{KEY}"', "begins with a quotation mark"),
        ("'" + KEY.replace("\n", "\\n") + "'", "begins with a quotation mark"),
        (KEY.replace("\n", " "), "is one line: its line ends were lost"),
        (base64.b64encode(KEY.encode()).decode(), "is base64 of a key"),
        ("\n".join(KEY.splitlines()[:3]), "has no last line -----END"),
        (KEY.replace(KEY.splitlines()[2], "AAAA"), "is no private key that OpenSSH can read"),
        ("key-marker", "is no private key that OpenSSH can read"),
    ],
    ids=lambda value: value if value.startswith(("is ", "has ", "holds ", "begins ")) else "",
)
async def test_keys_that_will_not(key: str, said: str) -> None:
    """A key that OpenSSH does not read is reported with what it is instead, and never shown."""
    [problem] = await problems(environ(key=key))
    assert problem.startswith(f"PALIADIN_SSH_PRIVATE_KEY {said}")
    assert "marker" not in problem
    assert not [line for line in key.split() if len(line) > 30 and line in problem]


async def test_encrypted(tmp_path: Path) -> None:
    """OpenSSH's own format shows only to OpenSSH that it is encrypted."""
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "word-marker", "-f", f"{tmp_path}/key"]
    await anyio.run_process(command)
    [problem] = await problems(environ(key=(tmp_path / "key").read_text()))
    assert problem == (
        "PALIADIN_SSH_PRIVATE_KEY is encrypted, and nobody is there to type its passphrase: "
        "ssh-keygen -p -N '' -f FILE takes it off the file"
    )


def hashed(line: str, directory: Path) -> str:
    path = directory / "known_hosts"
    path.write_text(line + "\n")
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", path], check=True, capture_output=True)
    return path.read_text()


@pytest.mark.parametrize("change", [str, str.upper], ids=["as it is", "in capitals"])
@pytest.mark.parametrize(
    ("names", "port"),
    [
        ("[h.example.org]:22022", "22022"),
        ("h.example.org", "22022"),
        ("h.example.org", "22"),
        ("other,h.example.org,127.0.0.1", "22"),
        ("*.example.org", "22022"),
        ("@cert-authority *.example.org", "22022"),
    ],
)
async def test_known_hosts_that_will_do(
    names: str, port: str, change: Callable[[str], str], tmp_path: Path
) -> None:
    """A line that ssh would find for this host and port passes, hashed or with wildcards too."""
    names = names if names.startswith("@") else change(names)
    line = f"{names} {HOST_KEY}"
    assert await problems(environ(known=line, port=port)) == []
    assert await problems(environ(known=f"# the host\\n\\n{line}", port=port)) == []
    if "*" not in names:
        assert await problems(environ(known=hashed(line, tmp_path), port=port)) == []


@pytest.mark.parametrize(
    ("known", "port", "said"),
    [
        ("o.example.org KEY", "22022", "[h.example.org]:22022, only for o.example.org"),
        ("[h.example.org]:2222 KEY", "22022", "only for [h.example.org]:2222"),
        (
            "[h.example.org]:22022 KEY",
            "22",
            "h.example.org, only for [h.example.org]:22022",
        ),
        ("[h.example.org]:22 KEY", "22", "h.example.org, only for [h.example.org]:22"),
        (
            "*.example.org,!h.example.org KEY",
            "22",
            "h.example.org, only for *.example.org,!",
        ),
        ("h.example.org ssh-ed25519 AAAA", "22", "h.example.org, only for h.example.org"),
        ("h.example.org ssh-ed25519", "22", "for h.example.org"),
        ("KEY", "22", "for h.example.org"),
        ("/etc/ssh/known_hosts", "22", "for h.example.org"),
    ],
)
async def test_known_hosts_that_will_not(known: str, port: str, said: str) -> None:
    """A line of another host or port is reported, with the name that ssh looks for."""
    [problem] = await problems(environ(known=known.replace("KEY", HOST_KEY), port=port))
    assert problem.startswith("PALIADIN_KNOWN_HOSTS has no whole line <host> <type> <key> for ")
    assert said in problem


async def test_known_hosts_of_others(tmp_path: Path) -> None:
    """A hashed line of another host, a revoked key and Windows line ends are reported too."""
    hidden = hashed(f"o.example.org {HOST_KEY}", tmp_path)
    assert "for [h.example.org]:22022" in (await problems(environ(known=hidden)))[0]
    revoked = f"@revoked h.example.org {HOST_KEY}"
    assert "as revoked alone" in (await problems(environ(known=revoked)))[0]
    windows = f"h.example.org {HOST_KEY}\\r\\n"
    assert "holds the characters \\r" in (await problems(environ(known=windows)))[0]


async def test_both_at_once() -> None:
    """All that is wrong is said at once."""
    assert len(await problems(environ(key="key-marker", known="known-marker"))) == 2


async def test_without_ssh_keygen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `ssh-keygen` is not installed, what is certain is said, and the rest is ssh's."""
    monkeypatch.setenv("PATH", "/nonexistent")
    assert await problems(environ(key="key-marker", known="known-marker")) == []
    assert len(await problems(environ(key=PUTTY))) == 1
