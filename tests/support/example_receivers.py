"""The example receivers as processes, and what they stored."""

from __future__ import annotations

import http.client
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from support.needs import need
from support.waiting import PATIENCE_S, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence


LANGUAGES = ("python", "go")

GO = Path(__file__).parents[2] / "examples" / "go"
#: Where an app has the route; a receiver that is nothing else takes any.
ROUTE = "/paliadin/callback"


class Stored(msgspec.Struct, frozen=True):
    """One turn, as a receiver keeps it."""

    backend: str
    persona: str
    turn_id: str
    submitted_turn_id: str | None
    revision: int
    response: str | None
    reason: str | None


@dataclass(frozen=True)
class ExampleReceiver:
    """A receiver that listens on loopback."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path
    """What it prints, errors included."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}{ROUTE}"

    def connect(self) -> http.client.HTTPConnection:
        """A connection to close by the caller."""
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE_S)

    def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """Send one callback over a connection of its own, and return the status."""
        with closing(self.connect()) as connection:
            return post(connection, body, headers)

    def lines(self, count: int) -> list[str]:
        """The lines after the first one, once there are `count` of them: they follow answers."""

        def printed() -> list[str]:
            lines = self.output.read_text().splitlines()[1:]
            return lines if len(lines) >= count else []

        return until(f"{count} lines in {self.output}", printed)


def post(connection: http.client.HTTPConnection, body: bytes, headers: Mapping[str, str]) -> int:
    """Send one callback, and return the status."""
    encoded = {name: value.encode() for name, value in headers.items()}
    connection.request("POST", ROUTE, body, encoded)
    with connection.getresponse() as response:
        assert response.read() == b""
        return response.status


def command(language: str, build: Path) -> list[str]:
    """What starts the receiver of this language, built in an empty directory where need be."""
    if language == "python":
        return [sys.executable, "-W", "error", str(GO.parent / "receiver.py")]
    return [build_go("receiver", build)]


def build_go(program: str, build: Path, **environ: str) -> str:
    """Build `program`.go with the callback's file in a directory; return where it is."""
    need("go")
    binary = build / program
    sources = ["callback.go", f"{program}.go"]
    environment = os.environ | environ
    subprocess.run(["go", "build", "-o", binary, *sources], cwd=GO, env=environment, check=True)
    return str(binary)


@contextmanager
def running(
    command: Sequence[str], store: Path, secret: str, port: int = 0
) -> Iterator[ExampleReceiver]:
    """A receiver that is listening, until the block ends.

    Args:
        command: what starts it, see `command`.
        store: its database or directory, which is made where there is none.
        secret: one or several, separated by spaces.
        port: the one to listen on, or 0 for a free one.
    """
    argv = [*command, f"127.0.0.1:{port}", str(store)]
    environ = {"PALIADIN_CALLBACK_SECRET": secret}
    with listening(argv, environ, store.with_suffix(".log")) as receiver:
        yield receiver


@contextmanager
def listening(
    argv: Sequence[str], environ: Mapping[str, str], output: Path
) -> Iterator[ExampleReceiver]:
    """A program that prints where it listens, until the block ends."""
    with output.open("wb") as sink:
        process = subprocess.Popen(
            argv, env={**os.environ, **environ}, stdout=sink, stderr=subprocess.STDOUT
        )
    try:
        yield ExampleReceiver(process, _port(process, output), output)
    finally:
        process.terminate()
        process.wait(PATIENCE_S)


def stored(store: Path) -> dict[str, Stored]:
    """What a receiver has in its store, by turn id."""
    if store.is_dir():
        rows = [json.loads(path.read_bytes()) for path in store.glob("*.json")]
    elif store.exists():
        with closing(sqlite3.connect(store)) as db:
            db.row_factory = sqlite3.Row
            rows = [dict(row) for row in db.execute("SELECT * FROM turns")]
    else:
        rows = []
    return {row["turn_id"]: msgspec.convert(row, Stored) for row in rows}


def _port(process: subprocess.Popen[bytes], output: Path) -> int:
    def first_line() -> str:
        assert process.poll() is None, f"the receiver has ended: {output.read_text()}"
        line, ended, _ = output.read_text().partition("\n")
        return line if ended else ""

    return int(until("the receiver to listen", first_line).rpartition(":")[2])
