"""What was accepted, until it is acknowledged: SQLite, one named method for each transition.

`Outbox` is synchronous and holds one connection; `Committer` runs its methods off the event loop.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import time
from dataclasses import dataclass, field
from functools import partial
from importlib.resources import files
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar, cast

import aiosql
import msgspec

from paliadin_contract.callback import Answer, Failure, TurnCompleted, TurnFailed, encode
from paliadin_contract.ids import webhook_id
from paliadin_sidecar import failpoints as crash
from paliadin_sidecar.host import storage
from paliadin_sidecar.host.users import user_name
from paliadin_sidecar.outbox.bodies import BadBody, Packed, most_beside, pack, take_fitting, unpack
from paliadin_sidecar.outbox.fairness import FairShare, Shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from pathlib import Path

    from paliadin_contract.callback import Reason

__all__ = [
    "FILENAME",
    "Arrival",
    "Blocked",
    "Busy",
    "Damaged",
    "DiskFails",
    "Due",
    "Event",
    "Full",
    "Newer",
    "NotNow",
    "Older",
    "Outbox",
    "OutboxError",
    "OverBudget",
    "TurnKey",
    "Unwritable",
]

FILENAME = "outbox.db"
#: A change of an answer that comes later than this is an edit for the record, not for the
#: person, who has long read the answer.
LATE_S = 600.0
#: An acknowledged body is kept this long for a replay, and a turn this long after its file has
#: gone and nothing touched it any more.
BODY_S, TURN_S = 72 * 3600.0, 90 * 86_400.0
#: One step of upkeep: some 10 ms that a delivery may have to wait, and the disk's time.
_TIDY_ROWS, _TIDY_BYTES, _TIDY_PAGES = 100, 4 * 1024 * 1024, 256
#: Beside a large body, a smaller one is looked for among so many of a root's oldest, and newest.
_LOOK_AHEAD = 100
#: Later than every stored time.
_ANY_TIME = 2**62
#: Free pages are used again; only what a backlog left, beyond this and a quarter, is given back.
_KEPT_PAGES = 4096
#: A log that grew beyond this is cut back.
_MOST_LOG_BYTES = 16 * 1024 * 1024
#: Less is not worth while, and more than a clock that is made to run faster or slower moves.
_STEP_S = 1.0
#: Another process that writes is a command, done in no time.
_BUSY_TIMEOUT_S = 1.0

#: Not the system's refusal but a file that is shorter than it was, or another one.
_PROVES_DAMAGE = {"SQLITE_IOERR_SHORT_READ", "SQLITE_READONLY_DBMOVED"}
_OF_THE_SYSTEM = {
    sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM,
}  # fmt: skip
_OF_RIGHTS = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}
#: What no limit and no lack of room explains.
_OF_THE_DISK = {
    "SQLITE_IOERR_READ", "SQLITE_IOERR_FSYNC", "SQLITE_IOERR_DIR_FSYNC", "SQLITE_IOERR_CORRUPTFS",
    "SQLITE_IOERR_DATA",
}  # fmt: skip

_sql: Any = aiosql.from_str(
    files(__package__).joinpath("outbox.sql").read_text(encoding="utf-8"),
    "sqlite3",
    mandatory_parameters=False,  # the statements name them
)

#: Every change of the schema adds the step that leads to it, one transaction with its number.
_MIGRATIONS: tuple[str, ...] = (_sql.from_1.sql, _sql.from_2.sql)
SCHEMA_VERSION = 1 + len(_MIGRATIONS)

T = TypeVar("T")
_Row = dict[str, Any]


class OutboxError(Exception):
    """The outbox cannot be used. Its text names the file, and never what it holds.

    OutboxError
    ├── Blocked      not now: try again
    │   ├── Full     no room: on the disk, in the quota, or below the limit of a file's size
    │   ├── OverBudget   its own budget is used up by what is undelivered
    │   ├── Busy     another process holds its lock
    │   └── NotNow   the system lacks something else: memory, descriptors, a disk to write on
    ├── Damaged      proven: not a database, cut, replaced or unlinked
    ├── DiskFails    the disk did not read or store what it was asked to
    ├── Newer        written by a later version of this program
    ├── Older        written by an earlier one, and not migrated yet
    └── Unwritable   the directory or the file is not ours to write
    """

    #: What an operator does about it; how that is typed depends on the host, see `advice`.
    mend: ClassVar[str] = "see PALIADIN_STATE_DIR"

    def __init__(self, path: Path, detail: str) -> None:
        super().__init__(path, detail)
        self.path = path
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.detail}"


class Blocked(OutboxError):
    """Nothing is wrong with it, and it cannot be written now."""


class Full(Blocked):
    """There is no room for it: the detail says which limit was met."""

    mend = "make room there"


class OverBudget(Blocked):
    """What is undelivered takes all that the outbox may take: nothing new is accepted."""

    mend = "it goes on as the receiver acknowledges; or raise PALIADIN_MAX_OUTBOX"


class Busy(Blocked):
    """Another process holds its lock."""

    mend = "try again"


class NotNow(Blocked):
    """The system would not let it be used, for a reason that passes; the detail names it."""

    mend = "it goes on when that has passed"


class DiskFails(OutboxError):
    """The disk did not read or store what it was asked to; the outbox may well be whole."""

    mend = (
        "see what the kernel says of that disk: journalctl -k | tail. Nothing shows that the "
        "outbox itself is damaged: start again, and move nothing aside"
    )


class Damaged(OutboxError):
    """It is no database of ours, or no longer."""

    mend = (
        "Move it aside and begin anew (answers that still lie in the roots are then sent again "
        "under the same ids)"
    )


class Newer(OutboxError):
    """A later version of this program wrote it."""

    mend = "install the version that wrote it"


class Older(OutboxError):
    """An earlier version of this program wrote it; the daemon migrates it when it starts."""

    mend = "the daemon was not restarted since the upgrade, and migrates it when it starts"


class Unwritable(OutboxError):
    """It may not be written."""

    mend = "all that lies there must be that user's (chown -R); or see PALIADIN_STATE_DIR"


@dataclass(frozen=True)
class TurnKey:
    """A turn as its file names it."""

    backend: str
    persona: str
    turn_id: str


@dataclass(frozen=True)
class Arrival:
    """A file that settled: an answer, or the reason why it is none."""

    key: TurnKey
    signature: str
    completed_at: datetime
    size: int
    data: bytes | None = field(default=None, repr=False)
    sha256: str | None = None
    has_text: bool = True
    reason: Reason | None = None
    why: str = ""  #: what an operator is told beyond the reason

    @property
    def mark(self) -> str:
        """What tells this content from others of the same name."""
        return self.sha256 or self.reason or ""


@dataclass(frozen=True)
class Due:
    """A delivery whose time has come. Times are epoch seconds."""

    id: int
    turn: int
    webhook_id: str
    body: bytes = field(repr=False)
    accepted_at: float
    attempts: int
    first_attempt_at: float | None
    refusals: int
    refused_at: float | None
    evidence: float = 0.0
    told_at: float | None = None
    told: int = 0
    root: str = ""  #: backend and persona


@dataclass(frozen=True)
class Event:
    """A row of the audit."""

    id: int
    at: float
    name: str
    fields: dict[str, Any]


class Outbox:
    """One connection to the database.

    Args:
        path: the database's file.
        host: this host's name, for the callback's bodies.
        wall: the clock, in epoch seconds.
        steady: a clock that nobody sets, in seconds: where the other one is set, stored times
            follow. None: that is not looked for.
        create: make the database where there is none, and migrate one of an earlier version;
            without it a missing file is `FileNotFoundError`.
        successor: one that is made now follows one that was lost: nothing becomes history.
        max_bytes: what it may take; see `accept`. None: as much as there is.

    Raises:
        OutboxError: it cannot be used.
    """

    def __init__(
        self,
        path: Path,
        *,
        host: str = "",
        wall: Callable[[], float] = time.time,
        steady: Callable[[], float] | None = None,
        create: bool = False,
        successor: bool = False,
        max_bytes: int | None = None,
    ) -> None:
        self.path = path
        self._max_bytes = max_bytes
        self.last_event = 0  #: id of the last event that was written here
        self._host = host
        self._wall = wall
        self._steady = steady
        self._offset_s = self._clock_offset_s()
        self._set_forward_ms = 0
        self._transaction_at: int | None = None  # one reading for all of its times
        self._last_attempt_at = _ANY_TIME  # not earlier than that of any delivery
        if not create and not path.exists():
            raise FileNotFoundError(path)
        mode = "rwc" if create else "rw"
        try:
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                isolation_level=None,
                timeout=_BUSY_TIMEOUT_S,
                check_same_thread=False,
            )
            try:
                self._db.row_factory = _row
                self._set_up(create=create, successor=successor)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as exc:
            raise self.translated(exc) from None
        self._log_path = path.with_name(f"{path.name}-wal")
        self._identity = _identity(path)
        self._log_identity: tuple[int, int] | None = None
        self._log_is_empty = False  #: and rightly so

    def _set_up(self, *, create: bool, successor: bool) -> None:
        version = self._pragma("user_version")
        if version > SCHEMA_VERSION:
            raise Newer(self.path, f"is of version {version}, this program knows {SCHEMA_VERSION}")
        if version == 0 and not create:
            if self._db.execute("SELECT 1 FROM sqlite_schema").fetchone() is None:
                raise FileNotFoundError(self.path)  # its making was cut short: it holds nothing
            raise Damaged(self.path, "is no outbox")
        if version < SCHEMA_VERSION and not create:
            raise Older(self.path, f"is of version {version}, this program's is {SCHEMA_VERSION}")
        if version == 0:
            # Before the first page is written: later only a VACUUM could change it.
            self._db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        # WAL with FULL survives the loss of power, not just of the process.
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = FULL")
        self._db.execute("PRAGMA foreign_keys = ON")
        # A hardened service can write no directory for temporary files.
        self._db.execute("PRAGMA temp_store = MEMORY")
        self._db.execute(f"PRAGMA journal_size_limit = {_MOST_LOG_BYTES}")
        if version == 0:
            # The schema, its number and the one row of the service go together.
            self._begin_with(_sql.schema.sql, SCHEMA_VERSION)
            _sql.create_service(self._db, successor=int(successor))
            self._db.execute("COMMIT")
            return
        for number in range(version, SCHEMA_VERSION):
            self._begin_with(_MIGRATIONS[number - 1], number + 1)
            self._db.execute("COMMIT")

    def _begin_with(self, script: str, version: int) -> None:
        self._db.executescript(f"BEGIN IMMEDIATE;{script}PRAGMA user_version = {version};")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the database."""
        self._db.close()

    # --- transactions ---------------------------------------------------------------------

    def transaction(self, steps: Iterable[Callable[[], T]]) -> list[T]:
        """Run these in one transaction and return what they returned, once it is durable.

        Raises:
            OutboxError: none of them took effect.
        """
        last_event = self.last_event
        self.check_identity()  # before a commit makes an emptied log look like a whole one
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                offset_s = self._follow_clock()
                self._transaction_at = self._now()
                results = [step() for step in steps]
                crash.point("before a commit")
                self._db.execute("COMMIT")
                crash.point("after a commit")
            except BaseException:
                self.last_event = last_event  # the next one will get the number again
                self._last_attempt_at = _ANY_TIME  # a clamp is undone as well
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
            finally:
                self._transaction_at = None
        except sqlite3.Error as exc:
            raise self.translated(exc) from None
        if offset_s != self._offset_s:
            self._set_forward_ms += max(0, _ms(offset_s - self._offset_s))
            self._offset_s = offset_s
            self._last_attempt_at = _ANY_TIME
        self.check_identity()
        return results

    def _follow_clock(self) -> float:
        # Dates stay dates of the clock, and what is measured from them stays as long as it is.
        # Returns the offset that is heeded once this is committed.
        offset_s = self._clock_offset_s()
        step_s = offset_s - self._offset_s
        if abs(step_s) < _STEP_S:
            return self._offset_s
        step = _ms(step_s)
        _sql.shift_deliveries(self._db, step=step)
        # Older ones are late, whatever the new date is.
        since = self._now() - step - abs(step) - _ms(LATE_S)
        _sql.shift_turns(self._db, step=step, since=since)
        return offset_s

    def _clock_offset_s(self) -> float:
        while self._steady is not None:
            before_s = self._steady()
            wall_s = self._wall()
            if self._steady() - before_s < _STEP_S / 10:  # else we were held between the two
                return wall_s - before_s
        return 0.0

    def check_identity(self) -> None:
        """See that the files are still those that were opened. Not within a transaction.

        Raises:
            Damaged: one was unlinked, replaced or truncated: commits would go to an unlinked file.
        """
        log = _identity(self._log_path)
        self._log_identity = self._log_identity or log  # it is made by the first commit
        same = (_identity(self.path), log) == (self._identity, self._log_identity)
        if not same or _size(self.path) == 0 or not self._log_is_whole():
            raise Damaged(self.path, "was removed, replaced or truncated while it was in use")

    def _log_is_whole(self) -> bool:
        # A checkpoint of another process may have emptied it, and then all of it is in the
        # database. Checkpointing again proves that: it fails where something is missing.
        if self._log_identity is None or _size(self._log_path) > 0:
            self._log_is_empty = False
        elif not self._log_is_empty:  # once: each checkpoint touches the file
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            except sqlite3.Error as exc:
                return getattr(exc, "sqlite_errorname", "") != "SQLITE_IOERR_SHORT_READ"
            self._log_is_empty = True
        return True

    def changed_elsewhere(self) -> int:
        """A number that moves when another process writes."""
        return self._pragma("data_version")

    def check_pages(self, within_s: float) -> bool:
        """Read every page; False where that took longer than so many seconds.

        Raises:
            OutboxError: one is damaged, or cannot be read.
        """
        end = time.monotonic() + within_s
        try:
            self._db.set_progress_handler(lambda: time.monotonic() > end, 10_000)
            row = self._db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as exc:
            if exc.sqlite_errorcode == sqlite3.SQLITE_INTERRUPT:
                return False
            raise self.translated(exc) from None
        finally:
            self._db.set_progress_handler(None, 0)
        if row["quick_check"] != "ok":
            raise Damaged(self.path, "is damaged (found by quick_check)")
        return True

    def _pragma(self, name: str) -> int:
        row: dict[str, int] = self._db.execute(f"PRAGMA {name}").fetchone()
        return row[name]

    def translated(self, exc: sqlite3.Error) -> OutboxError:
        """The same error in this module's words; reads outside `transaction` need it."""
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        name = getattr(exc, "sqlite_errorname", type(exc).__name__)
        if code == sqlite3.SQLITE_FULL:
            return Full(self.path, "there is no room on its disk")
        if code in {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}:
            return Busy(self.path, f"another process holds its lock ({name})")
        if code in {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT} or name in _PROVES_DAMAGE:
            return Damaged(self.path, f"is damaged, or its disk is ({name})")
        if code in _OF_THE_SYSTEM:
            return self._of_the_system(code, name)
        return OutboxError(self.path, f"cannot be used ({name})")

    def _of_the_system(self, code: int, name: str) -> OutboxError:
        # SQLite says that the system refused something, and not why: the system is asked.
        folder = self.path.parent
        refused = storage.write_error(folder, max(map(_size, self._files())))
        number = None if refused is None else refused.errno
        if refused is not None and number in storage.NO_ROOM:
            return Full(self.path, storage.explain(refused, folder))
        if refused is not None and number in storage.PASSES - {errno.EIO}:
            return NotNow(self.path, storage.explain(refused, folder))
        if name == "SQLITE_IOERR_SHMSIZE":
            return Full(self.path, "there is no room on its disk")
        if number == errno.EIO or (number is None and name in _OF_THE_DISK):
            return DiskFails(self.path, f"its disk fails ({name})")
        file = next(filter(_is_refused, self._files()), None)
        if number is None and file is None and code not in _OF_RIGHTS:
            return NotNow(self.path, f"the system refused it, and says not why ({name})")
        user = user_name(os.geteuid())
        return Unwritable(file or self.path, f"cannot be written by user {user} ({name})")

    def _files(self) -> list[Path]:
        return [self.path.with_name(f"{self.path.name}{part}") for part in ("", "-wal", "-shm")]

    def _now(self) -> int:
        # A clock that is set within a transaction must not part an attempt from its delay.
        return _ms(self._wall()) if self._transaction_at is None else self._transaction_at

    # --- intake ---------------------------------------------------------------------------

    def hint(self, key: TurnKey, submitted_turn_id: str, user_id: str) -> None:
        """Keep what a turn's token said; the first one counts."""
        turn = self._turn(key)
        _sql.hint(self._db, turn=turn["id"], submitted_turn_id=submitted_turn_id, user_id=user_id)

    def accept(self, arrival: Arrival) -> bool:
        """Take a settled file: freeze its body and id, or only its event. True if it is sent.

        The same content as before is nothing new. A later revision supersedes what is still
        undelivered of the turn. Only audited are: a change that has no text, one that comes
        late, and a failure after an answer.

        Where the outbox takes more than it may, some of what the receiver has goes before its
        time; what is undelivered never goes.

        Raises:
            OverBudget: nothing is left that may go.
        """
        turn = self._turn(arrival.key)
        looked = {"turn": turn["id"], "signature": arrival.signature, "mark": arrival.mark}
        # Nothing new, or it came back to what the receiver has.
        if arrival.mark in (turn["seen_mark"], turn["sent_mark"]):
            _sql.look(self._db, **looked)
            return False
        why_not = self._why_not(arrival, turn)
        about: dict[str, Any] = {"bytes": arrival.size, "sha256": arrival.sha256}
        if why_not is not None:
            _sql.look(self._db, **looked)
            name = "turn.revised" if turn["answered_at"] is not None else "turn.vanished"
            self._event(name, turn, **about, pushed=False, why=why_not)
            return False
        self._make_room()
        revision = turn["revision"] + 1
        id_ = webhook_id(
            arrival.key.backend, arrival.key.persona, arrival.key.turn_id, revision, arrival.mark
        )
        superseded = []
        if revision > 1:
            found = _sql.supersede(self._db, turn=turn["id"], now=self._now())
            superseded = [row["webhook_id"] for row in found]
        delivery = self._add_delivery(turn["id"], arrival, revision, id_, "pending")
        packed = pack(self._body(arrival, turn, revision))
        _sql.add_body(
            self._db,
            delivery=delivery,
            bytes=packed.data,
            size=packed.size,
            deflated=packed.deflated,
        )
        answered_at = turn["answered_at"]
        if answered_at is None and arrival.reason is None:
            answered_at = self._now()
        _sql.revise(self._db, **looked, revision=revision, answered_at=answered_at)
        if arrival.reason:
            name, about["reason"] = "turn.failed", arrival.reason
            if arrival.why:
                about["why"] = arrival.why
        else:
            name, about["pushed"] = "turn.accepted" if revision == 1 else "turn.revised", True
        if superseded:
            about["superseded"] = superseded
        self._event(
            name,
            turn,
            revision=revision,
            webhook_id=id_,
            **about,
            settle_ms=max(0, self._now() - _ms(arrival.completed_at.timestamp())),
        )
        return True

    def _make_room(self) -> None:
        most = self._max_bytes
        if most is None or self.used_bytes() <= most or self._let_go(_ANY_TIME):
            return
        raise OverBudget(
            self.path,
            f"what is undelivered takes all of PALIADIN_MAX_OUTBOX={most}, so new answers wait",
        )

    def used_bytes(self) -> int:
        """What it takes, without pages that are free to be used again."""
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def gone(self, key: TurnKey) -> None:
        """Note that a turn's file is no longer there."""
        _sql.gone(
            self._db,
            backend=key.backend,
            persona=key.persona,
            turn_id=key.turn_id,
            now=self._now(),
        )

    def vanished(self, key: TurnKey) -> None:
        """Note that a file went before it could be opened; no event if the turn was taken."""
        turn = self._turn(key)
        if turn["seen_mark"] is None:
            self._event("turn.vanished", turn)
        _sql.gone(
            self._db,
            backend=key.backend,
            persona=key.persona,
            turn_id=key.turn_id,
            now=self._now(),
        )

    def note(self, name: str, key: TurnKey, **fields: Any) -> None:  # noqa: ANN401 - JSON values
        """Record an event of a turn that changes no state."""
        self._event(name, self._turn(key), **fields)

    def is_met(self, backend: str, persona: str, path: str) -> bool:
        """Whether this root was ever watched by this outbox, or one that it follows."""
        if _sql.service(self._db)["successor"]:
            return True
        found = _sql.root(self._db, backend=backend, persona=persona, path=path)
        return found is not None

    def meet(self, backend: str, persona: str, path: str, history: Sequence[Arrival]) -> None:
        """Record a root that was never watched, and its old files as history."""
        now = self._now()
        if _sql.root(self._db, backend=backend, persona=persona, path=path) is not None:
            return
        _sql.add_root(self._db, backend=backend, persona=persona, path=path, now=now)
        for arrival in history:
            turn = self._turn(arrival.key)
            _sql.look(self._db, turn=turn["id"], signature=arrival.signature, mark=arrival.mark)
            self._add_delivery(turn["id"], arrival, 0, None, "history")
            self._event("turn.history", turn, bytes=arrival.size, sha256=arrival.sha256)

    def lying(self, backend: str, persona: str) -> dict[str, str]:
        """Signatures by turn id of the files that were there when last looked at."""
        rows = _sql.lying(self._db, backend=backend, persona=persona)
        return {row["turn_id"]: row["signature"] for row in rows}

    def _turn(self, key: TurnKey) -> _Row:
        named = {"backend": key.backend, "persona": key.persona, "turn_id": key.turn_id}
        turn = _sql.turn(self._db, **named)
        if turn is None:
            turn = _sql.add_turn(self._db, **named, now=self._now())
        return cast("_Row", turn)

    def _why_not(self, arrival: Arrival, turn: _Row) -> str | None:
        answered_at = turn["answered_at"]
        if arrival.reason is None and not arrival.has_text:
            return "no_text"
        if answered_at is None:
            return None
        if arrival.reason is not None:
            return arrival.reason
        return "late" if self._now() - answered_at > LATE_S * 1000 else None

    def _add_delivery(
        self, turn: int, arrival: Arrival, revision: int, id_: str | None, state: str
    ) -> int:
        return cast(
            "int",
            _sql.add_delivery(
                self._db,
                turn=turn,
                revision=revision,
                webhook_id=id_,
                state=state,
                reason=arrival.reason,
                bytes=arrival.size,
                sha256=arrival.sha256,
                now=self._now(),
            ),
        )

    def _body(self, arrival: Arrival, turn: _Row, revision: int) -> bytes:
        common = {
            "turn_id": arrival.key.turn_id,
            "submitted_turn_id": turn["submitted_turn_id"],
            "revision": revision,
            "backend": arrival.key.backend,
            "persona": arrival.key.persona,
            "host": self._host,
            "user_id": turn["user_id"],
            "bytes": arrival.size,
            "completed_at": arrival.completed_at,
        }
        if arrival.reason is not None:
            failure = Failure(**common, reason=arrival.reason)
            return encode(TurnFailed(arrival.completed_at, failure))
        data = arrival.data or b""
        text = data.decode(errors="replace")
        answer = Answer(
            **common,
            response=text,
            sha256=arrival.sha256 or "",
            lossy=text.encode() != data,
        )
        return encode(TurnCompleted(arrival.completed_at, answer))

    # --- delivery -------------------------------------------------------------------------

    def due(
        self,
        busy: Iterable[int],
        *,
        places: int,
        again: int,
        held: Iterable[int] = (),
        shares: Shares | None = None,
    ) -> tuple[list[Due], float | None]:
        """Deliveries whose time has come, and the seconds until the next one's will.

        Args:
            busy: turns that are under way: none of theirs.
            places: at most so many.
            again: at most so many of them that were tried before; they come first.
            held: sizes of the bodies under way, in bytes: no more than may be in memory beside.
            shares: which root's turn it is, among both kinds.
        """
        now = self._now()
        if now < self._last_attempt_at:
            _sql.clamp(self._db, now=now)
            self._last_attempt_at = now
        busy, held = list(busy), list(held)
        shares = Shares() if shares is None else shares.copy()
        retries = partial(_sql.again, now=now)
        rows = self._fitting(retries, shares.retries, busy, held, again)
        rows += self._fitting(_sql.fresh, shares.first_attempts, busy, held, places - len(rows))
        found = [
            Due(
                id=row["id"],
                turn=row["turn"],
                webhook_id=row["webhook_id"],
                body=self._unpacked(row["id"]),
                accepted_at=row["accepted_at"] / 1000,
                attempts=row["attempts"],
                first_attempt_at=_seconds(row["first_attempt_at"]),
                refusals=row["refusals"],
                refused_at=_seconds(row["refused_at"]),
                evidence=row["evidence"],
                told_at=_seconds(row["told_at"]),
                told=row["told"],
                root=row["root"],
            )
            for row in rows
        ]
        # By the same clock reading: what is not due by it is what is waited for.
        next_at = _sql.next_attempt_at(self._db, now=now)
        return found, None if next_at is None else (next_at - now) / 1000

    def _fitting(
        self,
        query: Callable[..., Iterable[_Row]],
        share: FairShare,
        busy: list[int],
        held: list[int],
        limit: int,
    ) -> list[_Row]:
        # Adds to `share`, `busy` and `held` what it finds.
        found: list[_Row] = []
        while (room := limit - len(found)) > 0:
            most = most_beside(held)
            queues: dict[str, list[_Row]] = {}
            for row in query(
                self._db,
                busy=msgspec.json.encode(busy).decode(),
                most=most,
                within=room if most is None else max(room, _LOOK_AHEAD),
            ):
                queues.setdefault(row["root"], []).append(row)
            rows = share.order(queues, room)
            fit = [rows[place] for place in take_fitting([row["size"] for row in rows], held)]
            for row in fit:
                share.started(row["root"])
                busy.append(row["turn"])
                held.append(row["size"])
            found += fit
            if len(fit) == len(rows):
                break
        return found

    def _unpacked(self, delivery: int) -> bytes:
        row = _sql.body(self._db, delivery=delivery)
        try:
            return unpack(Packed(row["bytes"], row["size"], row["deflated"]))
        except BadBody:
            raise Damaged(self.path, f"is damaged (the body of delivery {delivery})") from None

    def asked_to_rest_s(self, ours_s: float) -> float:
        """For how many seconds the receiver still wants nothing.

        Args:
            ours_s: the longest pause between two attempts that it did not ask for.
        """
        until = _sql.asked_to_rest_until(self._db, ours=_ms(ours_s))
        return 0.0 if until is None else max(0.0, (until - self._now()) / 1000)

    def attempted(
        self,
        due: Due,
        *,
        status: int | None,
        error: str | None,
        ms: float,
        detail: str | None = None,
        told: bool = True,
        keep: int | None = None,
    ) -> None:
        """Record an attempt; what it led to follows in the same transaction.

        Args:
            due: the delivery, this attempt counted.
            status: what was answered.
            error: why nothing was.
            detail: more about that.
            ms: how long it took.
            told: False for one that is counted and gets no event. The next event says how many
                were not told.
            keep: the events of earlier attempts go, but for those of the first so many.
        """
        now = self._now()
        self._last_attempt_at = max(self._last_attempt_at, now)
        _sql.attempted(
            self._db,
            delivery=due.id,
            now=now,
            attempts=due.attempts,
            first_attempt_at=_ms_or_none(due.first_attempt_at),
            refusals=due.refusals,
            refused_at=_ms_or_none(due.refused_at),
            evidence=due.evidence,
        )
        if not told:
            return
        fields: dict[str, Any] = {"status": status} if error is None else {"error": error}
        if (untold := due.attempts - 1 - due.told) > 0:
            fields["untold"] = untold
        if detail is not None:
            fields["detail"] = detail
        self._tell(
            "delivery.attempted", due.id, attempt=due.attempts, **fields, duration_ms=_rounded(ms)
        )
        _sql.told(self._db, delivery=due.id, now=self._now())
        if keep is not None:
            _sql.forget_attempts(
                self._db, turn=due.turn, webhook_id=due.webhook_id, kept=keep, now=self._now()
            )

    def delivered(self, due: Due) -> None:
        """The receiver has it."""
        _sql.deliver(self._db, delivery=due.id, now=self._now())
        since_accepted_ms = max(0, self._now() - _ms(due.accepted_at))
        self._tell(
            "delivery.delivered", due.id, attempts=due.attempts, since_accepted_ms=since_accepted_ms
        )

    def retry(
        self, due: Due, seconds: float, *, refused_with: int | None = None, told: bool = True
    ) -> None:
        """Again after so many seconds; it was refused, or it just failed."""
        if not _sql.retry(self._db, delivery=due.id, next_attempt_at=self._now() + _ms(seconds)):
            return  # superseded while it was under way
        if not told:
            return
        if refused_with is not None:
            self._tell("delivery.refused", due.id, status=refused_with, refusals=due.refusals)
        self._tell(
            "delivery.retry_scheduled",
            due.id,
            attempt=due.attempts,
            delay_ms=_rounded(seconds * 1000),
        )

    def bury(self, due: Due, cause: str) -> None:
        """Give it up, for an operator to see."""
        if not _sql.bury(self._db, delivery=due.id, reason=cause, now=self._now()):
            return  # superseded while it was under way
        self._tell("delivery.dead", due.id, cause=cause, attempts=due.attempts)

    def pause(self, why: str) -> None:
        """The receiver is not well."""
        _sql.set_paused(self._db, at=self._now(), why=why)
        self._event("receiver.paused", None, why=why)

    def resume(self, paused_s: float) -> None:
        """The receiver is well again."""
        _sql.set_paused(self._db, at=None, why=None)
        self._event("receiver.resumed", None, paused_ms=max(0.0, _rounded(paused_s * 1000)))

    def _tell(self, name: str, delivery: int, **fields: Any) -> None:  # noqa: ANN401 - JSON values
        subject = _sql.subject(self._db, delivery=delivery)
        self._event(
            name,
            subject,
            turn=subject["turn"],
            revision=subject["revision"],
            webhook_id=subject["webhook_id"],
            bytes=subject["bytes"],
            sha256=subject["sha256"],
            **fields,
        )

    # --- audit and state ------------------------------------------------------------------

    def happened(self, name: str, fields: dict[str, Any]) -> None:
        """Record an event of the service itself."""
        self._event(name, None, **fields)

    def events(self, after: int, limit: int = 500) -> list[Event]:
        """The events that came after one, in order."""
        return [_event(row) for row in _sql.events(self._db, after=after, limit=limit)]

    def newest_event(self) -> int:
        """The id of the newest event, 0 where there is none."""
        return cast("int", _sql.last_event(self._db) or 0)

    def end_to_end_s(self, event: int) -> float | None:
        """From a file's completion to its acknowledgement, which this event tells of.

        None where that was a replay: it says when an operator came, not how fast we are.
        """
        return _seconds(_sql.end_to_end_ms(self._db, event=event))

    def printed(self) -> int:
        """The last event whose line is known to have been printed."""
        return cast("int", _sql.service(self._db)["printed"])

    def set_printed(self, event: int) -> None:
        """Remember that the lines up to this event are out."""
        _sql.set_printed(self._db, printed=event)

    def set_roots(self, roots: list[dict[str, Any]]) -> None:
        """Keep what a scan found, for who asks; no write where nothing changed."""
        _sql.set_roots(self._db, roots=msgspec.json.encode(roots).decode())

    def service(self) -> dict[str, Any]:
        """The daemon's own row: `paused_at`, `paused_for`, `roots`."""
        row: _Row = _sql.service(self._db)
        row["roots"] = msgspec.json.decode(row["roots"])
        row["paused_at"] = _seconds(row["paused_at"])
        return row

    def counts(self) -> dict[str, int]:
        """Deliveries by state."""
        return {row["state"]: row["n"] for row in _sql.counts(self._db)}

    def oldest_pending_s(self) -> float | None:
        """How long the oldest undelivered has waited, in seconds; None where none is."""
        oldest_at = _seconds(_sql.oldest_pending(self._db))
        return None if oldest_at is None else max(0.0, self._wall() - oldest_at)

    def dead_since(self, since: float) -> int:
        """How many were given up since then, in epoch seconds."""
        return cast("int", _sql.dead_since(self._db, since=_ms(since)))

    def failing(self, *, attempts: int, dead_since: float) -> list[dict[str, Any]]:
        """What the receiver last said to those that do not get through, the most frequent first.

        Each row has `state`, `status`, `error`, `detail` and the number `n` of deliveries. At most
        1,000 of each state are looked at, the newest of them.

        Args:
            attempts: a pending one counts from so many attempts on.
            dead_since: one that was given up counts since then, in epoch seconds.
        """
        since = _ms(dead_since)
        return list(_sql.failing(self._db, attempts=attempts, since=since, limit=1000))

    def deliveries(self, state: str | None, since: float, limit: int) -> list[dict[str, Any]]:
        """Deliveries accepted since then, the newest first."""
        rows = _sql.deliveries(self._db, state=state, since=_ms(since), limit=limit)
        return [_delivery(row) for row in rows]

    def count_deliveries(self, state: str | None, since: float) -> int:
        """How many `deliveries` would list without a limit."""
        return cast("int", _sql.count_deliveries(self._db, state=state, since=_ms(since)))

    def find_ids(self, beginning: str, limit: int) -> list[str]:
        """The ids of turns that begin so, one for each turn; one that is all of an id is that."""
        if list(_sql.turns_named(self._db, id=beginning)):
            return [beginning]
        span = {"first": beginning, "end": f"{beginning}\x7f"}  # ids are ASCII
        rows = _sql.ids_beginning(self._db, **span, limit=2 * limit)
        return sorted(set({row["turn"]: row["id"] for row in rows}.values()))[:limit]

    def timelines(self, id_: str) -> list[dict[str, Any]]:
        """Each turn of this id, or submitted under it: its deliveries and events."""
        return [
            {
                "turn_id": turn["turn_id"],
                "backend": turn["backend"],
                "persona": turn["persona"],
                "submitted_turn_id": turn["submitted_turn_id"],
                "user": _user8(turn["user_id"]),
                "deliveries": [
                    _delivery(row) for row in _sql.deliveries_of_turn(self._db, turn=turn["id"])
                ],
                "events": [
                    {"id": e.id, "at": e.at, "event": e.name, **e.fields}
                    for e in map(_event, _sql.events_of_turn(self._db, turn=turn["id"]))
                ],
            }
            for turn in list(_sql.turns_named(self._db, id=id_))
        ]

    def replay(
        self, *, turn_id: str | None = None, dead: bool = False, since: float = 0.0
    ) -> tuple[int, int]:
        """Send again what was settled, the newest revision of each turn.

        Args:
            turn_id: of this turn only; None for all.
            dead: only what was given up.
            since: only what was accepted since then, in epoch seconds.

        Returns:
            How many will be sent, and how many cannot since their bodies were let go.
        """
        turns = [None]
        if turn_id is not None:
            turns = [row["id"] for row in list(_sql.turns_named(self._db, id=turn_id))]
        sent = without_body = 0
        for turn in turns:
            found = list(_sql.replayable(self._db, turn=turn, dead=int(dead), since=_ms(since)))
            for row in found:
                if not _sql.replay(self._db, delivery=row["id"], now=self._now()):
                    without_body += 1
                    continue
                sent += 1
                self._tell("delivery.replayed", row["id"])
        return sent, without_body

    # --- upkeep ---------------------------------------------------------------------------

    def tidy(self) -> bool:
        """One small step of upkeep; True where there may be more to do.

        Bodies go `BODY_S` after their acknowledgement, or as soon as the outbox takes more than it
        may. A turn goes, with its deliveries and
        events, `TURN_S` after its file has gone (or never came) and nothing touched it any
        more; an event of the service as late. What is pending or dead never goes, nor a turn
        whose file still lies: it would be taken for a new one.
        """
        now = self._now() - self._set_forward_ms  # a wrong date is no reason to forget
        over = self._max_bytes is not None and self.used_bytes() > self._max_bytes
        before = _ANY_TIME if over else now - _ms(BODY_S)
        return self._let_go(before) or self._forget(now - _ms(TURN_S)) or self._shrink()

    def _let_go(self, before: int) -> bool:
        over, size = [], 0
        for row in list(_sql.over(self._db, before=before, limit=_TIDY_ROWS)):
            over.append(row["id"])
            size += row["bytes"]
            if size >= _TIDY_BYTES:
                break
        ids = msgspec.json.encode(over).decode()
        _sql.drop_bodies(self._db, deliveries=ids)
        return bool(_sql.let_go(self._db, deliveries=ids, now=self._now()))

    def _forget(self, before: int) -> bool:
        turns = _sql.forget_turns(self._db, before=before, limit=_TIDY_ROWS)
        events = _sql.forget_events(self._db, before=before, limit=_TIDY_ROWS)
        return bool(turns or events)

    def _shrink(self) -> bool:
        free = self._pragma("freelist_count")
        if free <= max(_KEPT_PAGES, self._pragma("page_count") // 4):
            return False
        # A page each time, whatever number stands there: Python's sqlite3 steps a statement
        # without columns once.
        for _ in range(min(_TIDY_PAGES, free)):
            self._db.execute("PRAGMA incremental_vacuum(1)")
        # An outbox that version 1 made has no such mode: its pages are only used again.
        return self._pragma("freelist_count") < free

    def _event(
        self,
        name: str,
        about: _Row | None,
        *,
        turn: int | None = None,
        **fields: Any,  # noqa: ANN401 - JSON values
    ) -> None:
        shown: dict[str, Any] = {}
        if about is not None:
            turn = turn if turn is not None else about["id"]
            shown = {key: about[key] for key in ("turn_id", "backend", "persona")}
            if about["submitted_turn_id"] not in (None, about["turn_id"]):
                shown["submitted_turn_id"] = about["submitted_turn_id"]
            if about["user_id"] is not None:
                shown["user"] = _user8(about["user_id"])
        self.last_event = _sql.add_event(
            self._db,
            now=self._now(),
            name=name,
            turn=turn,
            fields=msgspec.json.encode(shown | fields).decode(),
        )


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return (info.st_dev, info.st_ino)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _is_refused(path: Path) -> bool:
    # It is there, and no file that this process may write.
    return path.exists() and not (path.is_file() and os.access(path, os.R_OK | os.W_OK))


def _row(cursor: sqlite3.Cursor, values: tuple[Any, ...]) -> _Row:
    return {column[0]: value for column, value in zip(cursor.description, values, strict=True)}


def _event(row: _Row) -> Event:
    return Event(row["id"], row["at"] / 1000, row["name"], msgspec.json.decode(row["fields"]))


def _delivery(row: _Row) -> dict[str, Any]:
    found = row.copy()
    for name in ("accepted_at", "next_attempt_at", "settled_at"):
        found[name] = _seconds(found[name])
    if found["state"] != "pending":
        found["next_attempt_at"] = None
    return found


def _user8(user_id: str | None) -> str | None:
    return user_id[:8] if user_id is not None else None


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _ms_or_none(seconds: float | None) -> int | None:
    return None if seconds is None else _ms(seconds)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000


def _rounded(ms: float) -> float:
    return round(ms, 1)
