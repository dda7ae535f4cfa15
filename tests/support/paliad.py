"""`examples/go/paliad.go` as a process, or as several, on a real PostgreSQL."""

from __future__ import annotations

import re
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from support.callbacks import MARKER, SECRET, callback
from support.example_receivers import ExampleReceiver, build_go, listening
from support.needs import lacks
from support.sidecar import new_secret
from support.waiting import until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future, ThreadPoolExecutor

    from support.postgresql import PostgreSQL


#: As Debian installs libraries, and no module is downloaded.
GO_ENVIRON = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
TABLE = "paliad.paliadin_turns"


@dataclass(frozen=True)
class Paliad:
    """The app, its database, and a person who is logged in."""

    database: PostgreSQL
    receiver: ExampleReceiver
    user: str = field(default_factory=lambda: str(uuid4()))
    session: str = field(default_factory=new_secret)

    @property
    def cookie(self) -> dict[str, str]:
        """The header by which the person is logged in."""
        return {"Cookie": f'session="{self.session}"'}

    def ask(self, answer: str | None = None, user: str | None = None, file: str = "") -> str:
        """A turn of paliad's, which may have its answer from the backend already; its id."""
        turn = str(uuid4())
        values = ":'turn', :'user', " + ("NULL" if answer is None else ":'answer'")
        insert = f"INSERT INTO paliad.paliadin_turns (id, user_id, response) VALUES ({values})"
        self.database.sql(insert, turn=turn, user=user or self.user, answer=answer or "")
        if file:
            note = (
                f"UPDATE {TABLE} SET answer_file = :'file', answer_revision = 1 WHERE id = :'turn'"
            )
            self.database.sql(note, turn=turn, file=file.format(turn))
        return turn

    def gave_up(self, turn: str) -> None:
        """Its deadline passed, and paliad shows that."""
        update = f"UPDATE {TABLE} SET error_code = 'timeout' WHERE id = :'turn'"
        self.database.sql(update, turn=turn)

    def push(
        self,
        turn: str,
        revision: int = 1,
        response: str | None = MARKER,
        submitted: str | None = None,
    ) -> int:
        """Send a callback that is as the sender's, and return the status."""
        sent = callback(turn, revision, response, submitted_turn_id=submitted)
        return self.receiver.post(*sent)

    def answer(self, turn: str) -> str | None:
        """What is stored for a turn, with `None` where that is nothing."""
        return self._value(turn, "response")

    def error_code(self, turn: str) -> str | None:
        """What the row says of a failure, or of a late answer."""
        return self._value(turn, "error_code")

    def _value(self, turn: str, column: str) -> str | None:
        select = f"SELECT coalesce('=' || {column}, '') FROM {TABLE} WHERE id = :'turn'"
        found = self.database.sql(select, turn=turn).removesuffix("\n")
        return found[1:] if found else None

    def page(self, turn: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """What the person's browser gets for a turn: it waits for the answer."""
        path = f"/turns/{turn}"
        with closing(self.receiver.connect()) as connection:
            connection.request(method, path, headers=self.cookie | headers)
            with connection.getresponse() as response:
                return response.status, response.read().decode()


def build(directory: Path) -> str:
    """Build the program in an empty directory; return where it is."""
    if not Path(GO_ENVIRON["GOPATH"], "src/github.com/lib/pq").exists():
        lacks("lib/pq not installed", "apt install golang-go golang-github-lib-pq-dev")
    return build_go("paliad", directory, **GO_ENVIRON)


@contextmanager
def running(
    database: PostgreSQL, command: list[str], output: Path, **environ: str
) -> Iterator[Paliad]:
    """A process that is listening, until the block ends.

    Args:
        database: its database, which has the tables.
        command: what starts it.
        output: the file for what it prints.
        environ: variables beside those that name the database and the secret, or in their place.
    """
    environ = database.environ | {"PALIADIN_CALLBACK_SECRET": SECRET} | environ
    with listening([*command, "127.0.0.1:0"], environ, output) as receiver:
        paliad = Paliad(database, receiver)
        insert = "INSERT INTO sessions VALUES (:'token', :'user')"
        database.sql(insert, token=paliad.session, user=paliad.user)
        yield paliad


def opened(paliad: Paliad, pool: ThreadPoolExecutor, turn: str) -> Future[tuple[int, str]]:
    """A page that has looked for its answer in vain, and waits."""
    before = looks(paliad.database, turn)
    page = pool.submit(paliad.page, turn)
    until("the page to wait", lambda: looks(paliad.database, turn) > before)
    return page


def looks(database: PostgreSQL, turn: str) -> int:
    """How often pages have looked for this turn, by the server's log of what it was asked."""
    asked = rf"execute <unnamed>: SELECT response, .*\n.* parameters: \$1 = '{turn}'"
    return len(re.findall(asked, (database.home / "log").read_text()))
