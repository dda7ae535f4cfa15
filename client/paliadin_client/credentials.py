"""Finds what is wrong with ssh's key and known hosts when a client connects, before any turn.

OpenSSH itself says whether it can read them (`ssh-keygen`). What they look like says what to do.
"""

from __future__ import annotations

import re
from subprocess import DEVNULL, CompletedProcess

import anyio

from paliadin_client.settings import LegacySettings
from paliadin_client.text import excerpt

_KEY = "PALIADIN_SSH_PRIVATE_KEY"
_KNOWN_HOSTS = "PALIADIN_KNOWN_HOSTS"
_WINDOWS = "holds the characters \\r: write each line's end as \\n alone"


def unescaped(contents: str) -> str:
    r"""A file's contents, whose line ends a variable may hold as `\n`, and lack the last."""
    return contents.replace("\\n", "\n").replace("\r\n", "\n").strip() + "\n"


async def credential_problems(directory: str, settings: LegacySettings) -> list[str]:
    """A sentence for each of the two variables whose file, in `directory`, will not do.

    Where `ssh-keygen` is not installed, only what is certain from the looks is said.

    Raises:
        OSError: `ssh-keygen` is there and could not be started.
    """
    found = [
        await _key_problem(directory, unescaped(settings.key)),
        await _known_hosts_problem(directory, settings),
    ]
    return [problem for problem in found if problem]


async def _key_problem(directory: str, key: str) -> str | None:
    # With an empty passphrase ssh-keygen asks nobody for one.
    done = await _keygen(directory, "-y", "-P", "", "-f", "key")
    if done and done.returncode == 0:
        return None
    said = done.stderr.decode(errors="replace") if done else ""
    for shape, sentence in _KEY_SHAPES:
        if re.search(shape, key, re.DOTALL) or (sentence is _ENCRYPTED and "passphrase" in said):
            return f"{_KEY} {sentence}"
    if done is None:
        return None
    why = excerpt(said.rpartition(": ")[2])
    return f"{_KEY} is no private key that OpenSSH can read ({why})"


async def _known_hosts_problem(directory: str, settings: LegacySettings) -> str | None:
    lines = unescaped(settings.known_hosts)
    if "\\r" in lines:
        return f"{_KNOWN_HOSTS} {_WINDOWS}"
    assert settings.host is not None
    plain, port = settings.host, settings.port
    # A line without a port is for any port: ssh uses it where it finds none with ours.
    names = [plain] if port == _DEFAULT_PORT else [f"[{plain}]:{port}", plain]
    revoked = False
    for name in names:
        # With -l ssh-keygen reads the key of the line as well.
        done = await _keygen(directory, "-l", "-F", name, "-f", "known_hosts")
        if done is None:
            return None
        for line in done.stdout.decode(errors="replace").splitlines():
            if found := _FOUND.fullmatch(line):
                if found[1] != "REVOKED":
                    return None
                revoked = True
    if revoked:
        return f"{_KNOWN_HOSTS} has the key of {names[0]} as revoked alone"
    others = ", ".join(dict.fromkeys(_NAMES.findall(lines)))
    return (
        f"{_KNOWN_HOSTS} has no whole line <host> <type> <key> for {names[0]}"
        f"{', only for ' + excerpt(others) if others else ''}"
    )


async def _keygen(directory: str, *arguments: str) -> CompletedProcess[bytes] | None:
    try:
        return await anyio.run_process(
            ["ssh-keygen", *arguments], stdin=DEVNULL, cwd=directory, check=False
        )
    except FileNotFoundError:
        return None


_DEFAULT_PORT = 22
_FOUND = re.compile(r"# Host .* found: line \d+ *(\w*) *")
_NAMES = re.compile(r"^(?!#|@|\|)(\S+) +[\w@.-]+ +\S", re.MULTILINE)


_ENCRYPTED = (
    "is encrypted, and nobody is there to type its passphrase: ssh-keygen -p -N '' -f FILE takes "
    "it off the file"
)
#: What a key that OpenSSH does not read looks like, and what to do. The first that fits counts.
_KEY_SHAPES = (
    (r"\\r", _WINDOWS),
    (r"\A[\"']", "begins with a quotation mark: it takes the key without any"),
    (
        r"\APuTTY-User-Key-File",
        "is a key of PuTTY's: puttygen FILE.ppk -O private-openssh -o FILE makes it OpenSSH's",
    ),
    (r"\A---- BEGIN SSH2 ENCRYPTED", "is a key of ssh.com's: ssh-keygen -i makes it OpenSSH's"),
    (r"ENCRYPTED", _ENCRYPTED),
    (
        r"\A(ssh|ecdsa|sk)-\S+ AAAA|\A-----BEGIN [A-Z ]*PUBLIC KEY|\A---- BEGIN",
        "is a public key: the private one is in the file without .pub",
    ),
    # That is `-----BEGIN` in base64.
    (r"\ALS0tLS1CRUdJT", "is base64 of a key: it takes the key itself"),
    (r"\A[~./\w][^\s]*/[^\s]*\n\Z", "is the name of a file: it takes the file's contents"),
    (r"\A-----BEGIN [^\n]*-----END", "is one line: its line ends were lost, write each as \\n"),
    (r"\A-----BEGIN (?!.*\n-----END)", "has no last line -----END …: it is cut off"),
)
