"""Run by a copy of the unit: tries what it must not be able to do, and what it must."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from paliadin_sidecar.outbox.database import Outbox

if TYPE_CHECKING:
    from collections.abc import Callable

CLONE_NEWUSER = 0x10000000


def write(path: str) -> None:
    Path(path).write_text("written", encoding="utf-8")


def lease(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)


def new_user_namespace() -> None:
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER):
        raise OSError(ctypes.get_errno(), "unshare")


def sort_much(path: str) -> None:
    with Outbox(Path(path), create=True) as outbox:
        outbox.connection.execute(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 50000) "
            "SELECT i, randomblob(200) AS r FROM n ORDER BY r"
        ).fetchone()


def attempt(what: Callable[[], object]) -> str:
    """`done`, or the name of the error."""
    try:
        what()
    except OSError as exc:
        return errno.errorcode[exc.errno or 0]
    return "done"


def main(answer: str) -> None:
    """Try everything and print it as one object.

    Args:
        answer: the agent's 0600 file in its 0700 directory.
    """
    found = {
        "read the answer": attempt(lambda: Path(answer).read_bytes()),
        "lease the answer": attempt(lambda: lease(answer)),
        "write the state": attempt(lambda: write(f"{os.environ['STATE_DIRECTORY']}/probe")),
        "read the credential": attempt(
            lambda: Path(os.environ["CREDENTIALS_DIRECTORY"], "callback-secret").read_bytes()
        ),
        "sort much": attempt(lambda: sort_much(f"{os.environ['STATE_DIRECTORY']}/sorted.db")),
        "make an internet socket": attempt(lambda: socket.socket().close()),
        "write the answer": attempt(lambda: write(answer)),
        "remove the answer": attempt(lambda: Path(answer).unlink()),
        "write /tmp": attempt(lambda: write("/tmp/probe")),
        "write /var/tmp": attempt(lambda: write("/var/tmp/probe")),
        "write /etc": attempt(lambda: write("/etc/probe")),
        "write another's state": attempt(lambda: write("/var/lib/probe")),
        "become root": attempt(lambda: os.setuid(0)),
        "make a user namespace": attempt(new_user_namespace),
        "write and execute memory": attempt(
            lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        ),
        "make a packet socket": attempt(lambda: socket.socket(socket.AF_PACKET).close()),
        "signal another": attempt(lambda: os.kill(1, 0)),
        "see homes": sorted(os.listdir("/home")),  # noqa: PTH208 - names
        "see process 1": Path("/proc/1").exists(),
        "see passwords": Path("/etc/shadow").read_bytes() != b"",
        "see devices": Path("/dev/kmsg").exists(),
        "trust authorities": ssl.create_default_context().cert_store_stats()["x509_ca"],
        "core size": resource.getrlimit(resource.RLIMIT_CORE),
        "umask": os.umask(0),
    }
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
