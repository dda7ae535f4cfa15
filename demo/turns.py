"""Compares what was written and asked with what arrived, and says what is wrong."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from msgspec import Struct

from paliadin_client import PaliadinError, TurnRequest
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from pathlib import Path
    from subprocess import Popen

    from demo.receiver import Arrival, Receiver
    from paliadin_client import Paliadin, User


class Version(Struct, frozen=True):
    """What a turn's file has held; a writer's log has such lines."""

    at: float
    """When it was complete, in epoch seconds."""
    sha256: str
    submitted_turn_id: str | None = None
    user_id: str | None = None


@dataclass(kw_only=True)
class Turn:
    """One turn.

    Attributes:
        id: under which it was asked, or its file's name.
        row: the line of the result that it counts for.
        title: what is said of it.
        root: where its file is; named as its backend.
        via: what answered who asked.
    """

    id: str
    row: str
    title: str
    root: Path
    receiver: Receiver = field(repr=False)
    via: str = ""

    def has_ended(self) -> bool:
        """Whether it is written or answered, or cannot be."""
        raise NotImplementedError

    def versions(self) -> list[Version]:
        """What its file has held, the last one last."""
        raise NotImplementedError

    def arrivals(self) -> list[Arrival]:
        """Everything that came of it."""
        return self.receiver.arrivals_of(self.id)

    def latency(self) -> float | None:
        """Seconds until its last version first came, None if it has not."""
        last = self.versions()[-1:]
        arrived = (
            arrival.at - v.at
            for v in last
            for arrival in self.arrivals()
            if arrival.answer.sha256 == v.sha256
        )
        return min(arrived, default=None)

    def wrong(self) -> list[str]:
        """What is wrong: nothing, if everybody keeps their word."""
        if self.latency() is None:
            return ["lost"]
        arrivals, versions = self.arrivals(), self.versions()
        answers = [arrival.answer for arrival in arrivals]
        newest = max(answers, key=lambda answer: answer.revision)
        data = (self.root / f"{newest.turn_id}.txt").read_bytes()
        text = data.decode(errors="replace")
        hashes = {a.sha256 for a in answers}
        ids = {arrival.webhook_id for arrival in arrivals}
        hints = {(v.submitted_turn_id, v.user_id) for v in versions}
        return _untrue(
            {
                "its answer is its file": (newest.response, newest.lossy)
                == (text, text.encode() != data),
                "its hash is its file's": newest.sha256 == hashlib.sha256(data).hexdigest(),
                "only what was completed came": hashes <= {v.sha256 for v in versions},
                "each id came with one content": len(ids) == len(hashes) == len(set(answers)),
                "its hints are its token's": hints
                == {(a.submitted_turn_id, a.user_id) for a in answers},
            }
        )


@dataclass(kw_only=True)
class Written(Turn):
    """A turn file by a process of the demo's, which keeps account in `log`."""

    log: Path
    writer: Popen[bytes]

    def has_ended(self) -> bool:
        """Whether the writer has."""
        return self.writer.poll() is not None

    def versions(self) -> list[Version]:
        """As the writer says."""
        lines = self.log.read_bytes() if self.log.exists() else b""
        return msgspec.json.Decoder(Version).decode_lines(lines)


@dataclass(kw_only=True)
class Asked(Turn):
    """A turn that a user asks, and the demo's agent answers with what it was asked.

    Attributes:
        user: who asks.
        question: unlike any other.
        late: whether the submit ends before the answer, so that only the push can bring it.
        text: the answer, or why there is none.
    """

    user: User
    question: str
    late: bool = False
    text: str = ""

    async def ask(self, paliadin: Paliadin) -> None:
        """Ask, and keep the answer or the error."""
        request = TurnRequest(user=self.user, message=self.question, turn_id=self.id)
        try:
            result = await paliadin.run_turn(request)
        except PaliadinError as exc:
            self.text = f"{exc} {exc.detail}"
        else:
            self.text, self.via = result.text, result.via

    def has_ended(self) -> bool:
        """Whether there is an answer, or an error."""
        return bool(self.text)

    def versions(self) -> list[Version]:
        """As the file is, under the id that the backend gave it."""
        # Over legacy no token says who asks.
        hints = (self.id, self.user.user_id) if self.root.name == "aichat" else (None, None)
        files = {self.root / f"{arrival.answer.turn_id}.txt" for arrival in self.arrivals()}
        return [
            Version(file.stat().st_mtime, hashlib.sha256(file.read_bytes()).hexdigest(), *hints)
            for file in files
        ]

    def wrong(self) -> list[str]:
        """Also whether it is this user's own answer, and came as it should."""
        if self.latency() is None:
            return [f"lost: {self.text}"]
        over_aichat = self.root.name == "aichat"
        whose = self.user.user_id if over_aichat else "Somebody"
        answers = [arrival.answer for arrival in self.arrivals()]
        return super().wrong() + _untrue(
            {
                f"it is the user's own answer: {self.text}": self.text
                == f"{whose} asked:\n\n> {self.question}",
                "what was answered was pushed": {split(a.response)[0] for a in answers}
                == {self.text},
                "its submit ended before the answer came": self.via == "push" or not self.late,
                "the backend chose an id of its own": not over_aichat
                or self.id not in {a.turn_id for a in answers},
            }
        )


def _untrue(claims: dict[str, bool]) -> list[str]:
    return [f"not true: {claim}" for claim, holds in claims.items() if not holds]
