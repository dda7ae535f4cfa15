"""The writers' accounts against the receiver's: what was written, what came, what is wrong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from paliadin_contract.callback import Answer, Ping, TurnCompleted, decode
from paliadin_contract.errors import MalformedCallback

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Arrivals", "Came", "Row", "Tail", "Turn", "Version", "judge"]

T = TypeVar("T")


class Version(Struct, frozen=True):
    """What a writer completed: one line of its log."""

    at: float
    """Epoch seconds."""
    sha256: str
    submitted_turn_id: str | None = None
    user_id: str | None = None


class _Line(Struct, frozen=True):
    # One line of the receiver's log.
    at: float
    webhook_id: str
    refused: str
    body: str


@dataclass(frozen=True)
class Turn:
    """One turn file, and the log of whoever writes it."""

    id: str
    row: str
    """The line of the result that it counts for."""
    backend: str
    manner: str
    file: Path
    log: Path

    def versions(self) -> list[Version]:
        """What its writer has completed so far, the last one last."""
        return Tail(self.log, Version).new()


class Came(NamedTuple):
    """One arrival, at so many epoch seconds."""

    at: float
    webhook_id: str
    answer: Answer


@dataclass
class Row:
    """One line of the result; latencies are seconds from file complete to callback received."""

    written: int = 0
    delivered: int = 0
    duplicates: int = 0
    latencies: list[float] = field(default_factory=list)


class Tail(Generic[T]):
    """Reads a file of JSON lines as it grows; a line that is not whole is left for later."""

    def __init__(self, path: Path, kind: type[T]) -> None:
        self._path = path
        self._decoder = msgspec.json.Decoder(kind)
        self._offset = 0

    def new(self) -> list[T]:
        """The lines since the last call."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        return [self._decoder.decode(line) for line in whole.splitlines()]


class Arrivals:
    """What the receiver wrote down.

    Attributes:
        of: by turn, the duplicates included.
        wrong: what should never come.
    """

    def __init__(self, log: Path) -> None:
        self.of: dict[str, list[Came]] = {}
        self.wrong: list[str] = []
        self._tail = Tail(log, _Line)

    def read(self) -> None:
        """Take in what is new."""
        for line in self._tail.new():
            if line.refused:
                self.wrong.append(f"a callback was not proven: {line.refused}")
                continue
            try:
                callback = decode(line.body.encode())
            except MalformedCallback as exc:
                self.wrong.append(f"{line.webhook_id} is malformed: {exc}")
                continue
            if isinstance(callback, TurnCompleted):
                came = Came(line.at, line.webhook_id, callback.data)
                self.of.setdefault(came.answer.turn_id, []).append(came)
            elif not isinstance(callback, Ping):
                self.wrong.append(f"{line.webhook_id} came, and no answer was in it")

    def latency(self, turn: Turn, version: Version) -> float | None:
        """Seconds until this version first came, None if it has not."""
        came = (c.at for c in self.of.get(turn.id, ()) if c.answer.sha256 == version.sha256)
        return min((at - version.at for at in came), default=None)


def judge(turns: list[Turn], receiver_log: Path) -> tuple[dict[str, Row], list[str]]:
    """Compare the logs, and the files with what came.

    Returns:
        The rows by name, and what is wrong: nothing, if the sidecar keeps its word.
    """
    arrivals = Arrivals(receiver_log)
    arrivals.read()
    unknown = arrivals.of.keys() - {turn.id for turn in turns}
    wrong = arrivals.wrong + [f"{turn_id} came and was not written" for turn_id in unknown]
    rows: dict[str, Row] = {}
    for turn in turns:
        row = rows.setdefault(turn.row, Row())
        row.written += 1
        versions, came = turn.versions(), arrivals.of.get(turn.id, [])
        row.duplicates += len(came) - len({c.webhook_id for c in came})
        latency = arrivals.latency(turn, versions[-1]) if versions else None
        if latency is None:
            wrong.append(f"{turn.id[:8]} ({turn.manner}) is lost")
        else:
            row.delivered += 1
            row.latencies.append(latency)
        wrong += [f"{turn.id[:8]} ({turn.manner}): {what}" for what in _amiss(turn, versions, came)]
    return rows, wrong


def _amiss(turn: Turn, versions: list[Version], came: list[Came]) -> list[str]:
    # What is wrong with what came of this turn.
    if not came:
        return []
    found = []
    answers = [c.answer for c in came]
    newest = max(answers, key=lambda answer: answer.revision)
    data = turn.file.read_bytes()
    text = data.decode(errors="replace")
    if (newest.response, newest.lossy) != (text, text.encode() != data):
        found.append("its answer is not its file")
    if newest.sha256 != hashlib.sha256(data).hexdigest():
        found.append("its hash is not its file's")
    if not {a.sha256 for a in answers} <= {v.sha256 for v in versions}:
        found.append("something came that its writer never completed")
    ids = {c.webhook_id for c in came}
    if not len(ids) == len({a.sha256 for a in answers}) == len(set(answers)):
        found.append("an id came with two contents, or a content with two ids")
    hints = {(v.submitted_turn_id, v.user_id) for v in versions}
    if {(a.submitted_turn_id, a.user_id) for a in answers} != hints:
        found.append("its hints are not its token's")
    return found
