"""How far ssh came, by its own log: what decides, and what the host cannot make it look like."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from paliadin_client.sshlog import SshLog, Stage

TRIED = "debug1: sshconnect.c:ssh_connect_direct():485 (pid=7): Connecting to h [h] port 22.\r\n"
LET_IN = (
    'sshconnect2.c:ssh_userauth2():580 (pid=7): Authenticated to h ([h]:22) using "publickey".\r\n'
)
NEWER = (
    'sshconnect2.c:ssh_userauth2():482 (bin=ssh, pid=7): Authenticated to h using "publickey".\r\n'
)


def read(*lines: str) -> SshLog:
    log = SshLog()
    log.feed("".join(lines).encode())
    return log


@pytest.mark.parametrize(
    ("line", "stage"),
    [
        ("river@h: Permission denied (publickey,password).", Stage.REFUSED),
        ("Host key verification failed.", Stage.REFUSED),
        ("Received disconnect from ::1 port 22:2: Too many authentication failures", Stage.REFUSED),
        ("Received disconnect from ::1 port 22:14: No more authentication methods", Stage.REFUSED),
        ("Received disconnect from ::1 port 22:12: Too many connections", Stage.DROPPED),
        (
            "Received disconnect from ::1 port 22:2: river@h: Permission denied (x).",
            Stage.CONNECTING,
        ),
        ("kex_exchange_identification: Connection closed by remote host", Stage.DROPPED),
        ("kex_exchange_identification: read: Connection reset by peer", Stage.DROPPED),
        ("ssh_exchange_identification: Connection closed by remote host", Stage.DROPPED),
        ("Connection timed out during banner exchange", Stage.DROPPED),
        ("packet.c:sshpkt_vfatal():1902 (pid=7): Connection closed by ::1 port 22", Stage.DROPPED),
        ("packet.c:sshpkt_vfatal():1920 (pid=7): Connection reset by ::1 port 22", Stage.DROPPED),
        ("kex_exchange_identification: banner line contains invalid characters", Stage.CONNECTING),
        ("ssh: connect to host h port 22: Connection refused", Stage.CONNECTING),
        ("ssh: Could not resolve hostname h: Name or service not known", Stage.CONNECTING),
        (
            "Unable to negotiate with ::1 port 22: no matching host key type found.",
            Stage.CONNECTING,
        ),
    ],
)
@pytest.mark.parametrize("end", ["\r\n", "\n"])
def test_before(line: str, stage: Stage, end: str) -> None:
    """A reason that ssh gives before it was let in decides, and is the cause."""
    for before in ("", TRIED):
        log = read(before, "Load key: a warning" + end, line + end)
        assert log.stage is stage
        assert log.cause == f"Load key: a warning\n{line.rpartition('(pid=7): ')[2]}"


@pytest.mark.parametrize("let_in", [LET_IN, NEWER, LET_IN.partition("): ")[2]])
@pytest.mark.parametrize("by", ["Permission denied (publickey).", "Host key verification failed."])
def test_after(let_in: str, by: str) -> None:
    """Nothing that follows undoes that we were let in, on whatever line the host puts it."""
    log = read(
        TRIED, let_in, f"Received disconnect from ::1 port 22:2: x\r\nriver@h: {by}\r\n", by + "\n"
    )
    assert log.stage is Stage.AUTHENTICATED
    assert by in log.cause


def test_forged_before() -> None:
    """A host that says that it let us in, where ssh does not, did not."""
    log = read(TRIED, "Received disconnect from ::1 port 22:11: bye\n" + LET_IN)
    assert log.stage is Stage.CONNECTING


def test_silent() -> None:
    """An ssh that ends without a reason got as far as its progress shows."""
    assert read(TRIED).stage is Stage.CONNECTING
    assert read(TRIED).cause == ""
    assert read("").stage is Stage.UNKNOWN
    assert read("command-line: line 0: Bad configuration option: x\n").stage is Stage.UNKNOWN


@given(st.lists(st.binary(max_size=20)))
def test_any_bytes(pieces: list[bytes]) -> None:
    """Whatever stands there and however it comes, it is read, and little of it is kept."""
    whole, parts = SshLog(), SshLog()
    whole.feed(b"".join(pieces))
    for piece in pieces:
        parts.feed(piece)
    assert (whole.stage, whole.cause) == (parts.stage, parts.cause)


def test_endless_line() -> None:
    """A line without an end is not kept."""
    log = SshLog()
    for _ in range(100):
        log.feed(b"x" * 10_000)
    assert len(log._begun) <= 4096
