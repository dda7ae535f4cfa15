"""What was written and asked against what came and was answered: what is wrong."""

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

    from demo.receiver import Came, Receiver
    from paliadin_client import Paliadin, TurnResult, User

__all__ = ["Asked", "Row", "Turn", "Version", "Written", "judge", "latency"]


class Version(Struct, frozen=True):
    """What was completed in a turn's file; a writer's log has such lines."""

    at: float
    """Epoch seconds."""
    sha256: str
    submitted_turn_id: str | None = None
    user_id: str | None = None


@dataclass(kw_only=True)
class Turn:
    """One turn.

    Attributes:
        id: under which it was asked, or its file's name.
        row: the line of the result that it counts for.
        backend: whose directory its file is in.
        title: what is said of it.
        root: that directory.
    """

    id: str
    row: str
    backend: str
    title: str
    root: Path
    via: str = ""

    def versions(self, came: list[Came]) -> list[Version]:
        """What its file has held, the last one last."""
        raise NotImplementedError

    def wrong(self, came: list[Came]) -> list[str]:
        """What else is wrong with it."""
        raise NotImplementedError


@dataclass(kw_only=True)
class Written(Turn):
    """A turn file by a writer of the demo's, who keeps account in `log`."""

    log: Path

    def versions(self, came: list[Came]) -> list[Version]:  # noqa: ARG002 - others' way to know
        """As the writer says."""
        return msgspec.json.Decoder(Version).decode_lines(self.log.read_bytes())

    def wrong(self, came: list[Came]) -> list[str]:  # noqa: ARG002 - nothing is
        """Nothing else."""
        return []


@dataclass(kw_only=True)
class Asked(Turn):
    """A turn that a user asks, and the demo's agent answers with what it was asked.

    Attributes:
        user: who asks.
        question: unlike any other.
        late: whether the submit ends before the answer, so that only the push can bring it.
        error: why there is no answer.
    """

    user: User
    question: str
    late: bool = False
    error: str = ""
    result: TurnResult | None = None

    async def ask(self, paliadin: Paliadin) -> None:
        """Ask, and keep the answer or the error."""
        request = TurnRequest(user=self.user, message=self.question, turn_id=self.id)
        try:
            self.result = await paliadin.run_turn(request)
            self.via = self.result.via
        except PaliadinError as exc:
            self.error = f"{exc} {exc.detail}"

    def versions(self, came: list[Came]) -> list[Version]:
        """As the file is, under the id that the backend gave it."""
        if not came:
            return []
        path = self.root / f"{came[0].answer.turn_id}.txt"
        # Over legacy no token travels: nobody says there who asks.
        hints = (self.id, self.user.user_id) if self.backend == "aichat" else (None, None)
        sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        return [Version(path.stat().st_mtime, sha256, *hints)]

    def wrong(self, came: list[Came]) -> list[str]:
        """Whether it is this user's own answer, came as it should, and is what was pushed."""
        if self.result is None:
            return [f"not answered: {self.error}"]
        found = []
        whose = self.user.user_id if self.backend == "aichat" else "Somebody"
        if self.result.text != f"{whose} asked:\n\n> {self.question}":
            found.append("the answer is not this user's own")
        if self.late and self.via != "push":
            found.append("its submit was to end before the answer came")
        if {split(c.answer.response)[0] for c in came} - {self.result.text}:
            found.append("response and push differ")
        if self.backend == "aichat" and self.id in {c.answer.turn_id for c in came}:
            found.append("the backend was to choose an id of its own")
        return found


@dataclass
class Row:
    """One line of the result; latencies are seconds from file complete to callback received."""

    turns: int = 0
    response: int = 0
    push: int = 0
    delivered: int = 0
    duplicates: int = 0
    latencies: list[float] = field(default_factory=list)


def latency(turn: Turn, came: list[Came]) -> float | None:
    """Seconds until a turn's last version first came, None if it has not."""
    versions = turn.versions(came)
    if not versions:
        return None
    arrived = (c.at - versions[-1].at for c in came if c.answer.sha256 == versions[-1].sha256)
    return min(arrived, default=None)


def judge(turns: list[Turn], receiver: Receiver) -> tuple[dict[str, Row], list[str]]:
    """Compare.

    Returns:
        The rows by name, and what is wrong: nothing, if everybody keeps their word.
    """
    rows: dict[str, Row] = {}
    wrong = list(receiver.wrong)
    known = set()
    for turn in turns:
        came = receiver.of(turn.id)
        known.update(c.webhook_id for c in came)
        row = rows.setdefault(turn.row, Row())
        row.turns += 1
        row.response += turn.via == "response"
        row.push += turn.via == "push"
        row.duplicates += len(came) - len({c.webhook_id for c in came})
        seconds = latency(turn, came)
        if seconds is None:
            wrong.append(f"{turn.id[:8]} ({turn.title}) is lost")
        else:
            row.delivered += 1
            row.latencies.append(seconds)
        amiss = turn.wrong(came) + (_amiss(turn, came) if came else [])
        wrong += [f"{turn.id[:8]} ({turn.title}): {what}" for what in amiss]
    unknown = {c.webhook_id for c in receiver.came} - known
    return rows, wrong + [f"{webhook_id} came of no turn" for webhook_id in unknown]


def _amiss(turn: Turn, came: list[Came]) -> list[str]:
    # What is wrong with what came of this turn.
    found = []
    versions, answers = turn.versions(came), [c.answer for c in came]
    newest = max(answers, key=lambda answer: answer.revision)
    data = (turn.root / f"{newest.turn_id}.txt").read_bytes()
    text = data.decode(errors="replace")
    if (newest.response, newest.lossy) != (text, text.encode() != data):
        found.append("its answer is not its file")
    if newest.sha256 != hashlib.sha256(data).hexdigest():
        found.append("its hash is not its file's")
    if not {a.sha256 for a in answers} <= {v.sha256 for v in versions}:
        found.append("something came that was never completed")
    ids = {c.webhook_id for c in came}
    if not len(ids) == len({a.sha256 for a in answers}) == len(set(answers)):
        found.append("an id came with two contents, or a content with two ids")
    hints = {(v.submitted_turn_id, v.user_id) for v in versions}
    if {(a.submitted_turn_id, a.user_id) for a in answers} != hints:
        found.append("its hints are not its token's")
    return found
