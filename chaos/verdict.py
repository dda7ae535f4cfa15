"""What was written against what came, offline: what is lost, cut, or there twice."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec
from msgspec import Struct

if TYPE_CHECKING:
    from pathlib import Path


T = TypeVar("T")

#: A failure's content key is its reason, which is shorter.
_SHA256_DIGITS = 64


class Written(Struct, frozen=True):
    """A line of the writers' log: a content that was complete. Times are monotonic seconds."""

    at: float
    turn: str  #: `<backend>/<turn id>`
    content_key: str  #: the content's sha256, or why it cannot be an answer
    owed: bool = True  #: it must arrive, if nothing follows; else it may


class Arrived(Struct, frozen=True):
    """A line of the receiver's log: a request, and whether it kept what came."""

    at: float
    id: str
    turn: str  #: empty for a ping
    revision: int
    content_key: str  #: of what came, not what the request says of itself
    body: str  #: sha256 of the whole body
    stored: bool
    fault: bool  #: it was answered badly on purpose


def arrival(at: float, id_: str, body: bytes, *, stored: bool, fault: bool) -> Arrived:
    """The line of a request."""
    callback = msgspec.json.decode(body)
    data = {} if callback["type"] == "ping" else callback["data"]
    content_key = data.get("reason") or data.get("sha256", "")
    if "response" in data and not data["lossy"]:
        content_key = hashlib.sha256(data["response"].encode()).hexdigest()
    return Arrived(
        at=at,
        id=id_,
        turn=f"{data['backend']}/{data['turn_id']}" if data else "",
        revision=data.get("revision", 0),
        content_key=content_key,
        body=hashlib.sha256(body).hexdigest(),
        stored=stored,
        fault=fault,
    )


class Fault(Struct, frozen=True):
    """A line of the log of what was done to the host."""

    name: str
    began: float
    ended: float
    count: int = 1


@dataclass
class Verdict:
    """How a scenario ended. All but the first two and `duplicates_sent` should be nothing."""

    turns: int = 0
    faults: int = 0
    lost: list[str] = field(default_factory=list)
    cut: list[str] = field(default_factory=list)
    duplicates_sent: int = 0
    duplicates_after_dedupe: list[str] = field(default_factory=list)
    longest_recovery_s: float = 0.0
    """The longest that a turn waited while nothing was wrong any more."""
    wrong: list[str] = field(default_factory=list)
    """What else did not hold."""

    @property
    def holds(self) -> bool:
        """Whether the promise was kept."""
        return not (self.lost or self.cut or self.duplicates_after_dedupe or self.wrong)


def append(log: Path, line: Struct) -> None:
    """Add a line, in one write."""
    with log.open("ab", buffering=0) as file:
        file.write(msgspec.json.encode(line) + b"\n")


def read(log: Path, kind: type[T]) -> list[T]:
    """Every whole line of a log; of a writer that was killed the last may be cut."""
    if not log.exists():
        return []
    whole, _, _ = log.read_bytes().rpartition(b"\n")
    return msgspec.json.Decoder(kind).decode_lines(whole)


def in_effect(arrived: list[Arrived]) -> dict[str, str]:
    """What a receiver has in the end that keeps to `docs/protocol.md`: content keys by turn.

    It knows each id once; an answer outranks a failure, a higher revision a lower one.
    """
    known: set[str] = set()
    found: dict[str, tuple[bool, int, str]] = {}
    for one in arrived:
        if not (one.stored and one.turn) or one.id in known:
            continue
        known.add(one.id)
        is_answer = len(one.content_key) == _SHA256_DIGITS
        if (is_answer, one.revision) >= found.get(one.turn, (False, 0, ""))[:2]:
            found[one.turn] = (is_answer, one.revision, one.content_key)
    return {turn: content_key for turn, (_, _, content_key) in found.items()}


def judge(written: list[Written], arrived: list[Arrived], faults: list[Fault]) -> Verdict:
    """Compare the three logs."""
    versions: dict[str, list[Written]] = defaultdict(list)
    for line in written:
        versions[line.turn].append(line)
    turns = [one for one in arrived if one.turn]
    effect = in_effect(arrived)
    verdict = Verdict(
        turns=len(versions),
        faults=sum(fault.count for fault in faults) + sum(one.fault for one in arrived),
    )
    for turn, lines in versions.items():
        ending = expected(lines)
        if ending and effect.get(turn) not in ending:
            verdict.lost.append(turn)
    for one in turns:
        if one.content_key not in {line.content_key for line in versions[one.turn]}:
            verdict.cut.append(f"{one.turn} ({one.id})")
    _count_duplicates(verdict, versions, [one for one in turns if one.stored])
    verdict.longest_recovery_s = max(_recoveries(versions, arrived, faults), default=0.0)
    return verdict


def _count_duplicates(
    verdict: Verdict, versions: dict[str, list[Written]], stored: list[Arrived]
) -> None:
    bodies: dict[str, str] = {}
    effects: Counter[tuple[str, str]] = Counter()
    for one in stored:
        if one.id not in bodies:
            bodies[one.id] = one.body
            effects[one.turn, one.content_key] += 1
            continue
        verdict.duplicates_sent += 1
        if bodies[one.id] != one.body:
            verdict.duplicates_after_dedupe.append(f"{one.id}: two bodies")
    for (turn, content_key), times in effects.items():
        if times > max(1, sum(line.content_key == content_key for line in versions[turn])):
            verdict.duplicates_after_dedupe.append(f"{turn}: {times} times")


def expected(lines: list[Written]) -> set[str]:
    """What a turn may end with: the last content that is owed, or one that came after it."""
    found: set[str] = set()
    for line in lines:
        found = {line.content_key} if line.owed else found and {*found, line.content_key}
    return found


def _recoveries(
    versions: dict[str, list[Written]], arrived: list[Arrived], faults: list[Fault]
) -> list[float]:
    mended = [fault.ended for fault in faults]
    mended += [one.at for one in arrived if one.fault and not one.turn]
    refused: dict[str, list[float]] = defaultdict(list)
    came: dict[tuple[str, str], float] = {}
    for one in arrived:
        if one.fault:
            refused[one.turn].append(one.at)
        if one.stored:
            came.setdefault((one.turn, one.content_key), one.at)
    found = []
    for turn, lines in versions.items():
        owed = [line for line in lines if line.owed]
        at = came.get((turn, owed[-1].content_key)) if owed else None
        if at is None:
            continue
        troubles = (moment for moment in (*mended, *refused[turn]) if moment < at)
        found.append(max(0.0, at - max(owed[-1].at, *troubles, 0.0)))
    return found
