"""`examples/go/paliad.go` on a real PostgreSQL, and that docs/paliad.md says what it does."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from support.callbacks import MARKER, SECRET, callback, sign
from support.example_receivers import GO, ROUTE, ExampleReceiver, build_go, listening
from support.postgresql import PostgreSQL, postgresql
from support.sidecar import TRAILER, Sidecar, new_secret
from support.tokens import unsigned_token
from support.waiting import PATIENCE_S, until

from paliadin_contract.signature import Keys
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

#: As Debian installs libraries, and no module is downloaded.
GO_ENVIRON = {"GO111MODULE": "off", "GOPATH": "/usr/share/gocode"}
DOCUMENT = Path(__file__).parents[2] / "docs" / "paliad.md"
#: How long the sender waits for the head of an answer.
SENDER_S = 10.0


@dataclass(frozen=True)
class Paliad:
    """The app, its database, and a person who is logged in."""

    database: PostgreSQL
    receiver: ExampleReceiver
    user: str = field(default_factory=lambda: str(uuid4()))
    session: str = field(default_factory=new_secret)

    def ask(self, answer: str | None = None, user: str | None = None) -> str:
        """A turn of paliad's, which may have its answer from the backend already; its id."""
        turn = str(uuid4())
        values = ":'turn', :'user', " + ("NULL" if answer is None else ":'answer'")
        user = user or self.user
        insert = f"INSERT INTO turns (id, user_id, answer) VALUES ({values})"
        self.database.sql(insert, turn=turn, user=user, answer=answer or "")
        return turn

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
        select = "SELECT coalesce('=' || answer, '') FROM turns WHERE id = :'turn'"
        found = self.database.sql(select, turn=turn).removesuffix("\n")
        return found[1:] if found else None

    def page(self, turn: str, method: str = "GET", **headers: str) -> tuple[int, str]:
        """What the person's browser gets for a turn: it waits for the answer."""
        path = f"/turns/{turn}"
        with closing(self.receiver.connect()) as connection:
            connection.request(
                method, path, headers={"Cookie": f'session="{self.session}"'} | headers
            )
            with connection.getresponse() as response:
                return response.status, response.read().decode()


@pytest.fixture(scope="module")
def binary(tmp_path_factory: pytest.TempPathFactory) -> str:
    if not Path(GO_ENVIRON["GOPATH"], "src/github.com/lib/pq").exists():
        what = "lib/pq is not installed: apt-get install golang-github-lib-pq-dev"
        (pytest.fail if "CI" in os.environ else pytest.skip)(what)
    return build_go("paliad", tmp_path_factory.mktemp("paliad"), **GO_ENVIRON)


@pytest.fixture(scope="module")
def paliad(binary: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Paliad]:
    output = tmp_path_factory.mktemp("paliad") / "log"
    with postgresql() as database:
        database.sql("""
            CREATE TABLE turns (id uuid PRIMARY KEY, user_id uuid NOT NULL, answer text);
            CREATE TABLE sessions (token text PRIMARY KEY, user_id uuid NOT NULL);
        """)
        environ = database.environ | {"PALIADIN_CALLBACK_SECRET": SECRET}
        with listening([binary, "127.0.0.1:0"], environ, output) as receiver:
            paliad = Paliad(database, receiver)
            insert = "INSERT INTO sessions VALUES (:'token', :'user')"
            database.sql(insert, token=paliad.session, user=paliad.user)
            yield paliad


def test_the_page_has_the_statements() -> None:
    """The statements of docs/paliad.md are those of the program."""
    statements = re.findall("```sql\n(.*?);\n```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    program = (GO / "paliad.go").read_text(encoding="utf-8")
    assert len(statements) == 2
    assert all(f"`{statement}`" in program for statement in statements)


@pytest.mark.slow
def test_vet(binary: str) -> None:
    """The program is as go vet wants it."""
    environ = os.environ | GO_ENVIRON
    subprocess.run(["go", "vet", "callback.go", "paliad.go"], cwd=GO, env=environ, check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hint", [None, str(UUID(int=7)), "no-UUID"], ids=["none", "unknown", "odd"]
)
def test_found_by_turn_id(paliad: Paliad, hint: str | None) -> None:
    """Without a hint that says more, the turn is found by its own id."""
    turn = paliad.ask()
    assert paliad.push(turn, response="Grüße, 你好 👋" + TRAILER, submitted=hint) == 204
    assert paliad.answer(turn) == "Grüße, 你好 👋"


@pytest.mark.slow
@pytest.mark.parametrize("named", ["by the backend", "as another turn"])
def test_found_by_submitted_turn_id(paliad: Paliad, named: str) -> None:
    """The submitted id decides, and what it names is never mixed up with the turn of the file."""
    turn, other = paliad.ask(), paliad.ask()
    file = other if named == "as another turn" else str(uuid4())
    assert paliad.push(file, response="eins", submitted=turn) == 204
    assert paliad.push(file, response="noch einmal", submitted=turn) == 204
    assert [paliad.answer(turn), paliad.answer(other)] == ["eins", None]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("before", "history", "end"),
    [
        (None, [(1, "eins"), (1, "eins")], "eins"),
        ("die Antwort", [(1, "eins")], "die Antwort"),
        ("die Antwort", [(1, None)], "die Antwort"),
        ("die Antwort", [(1, "eins"), (2, "zwei")], "zwei"),
        (None, [(1, "eins"), (2, "zwei"), (12, "zwölf"), (1, "eins")], "zwölf"),
        (None, [(2, "zwei")], "zwei"),
        (None, [(1, None)], None),
        (None, [(1, None), (2, "zwei")], "zwei"),
        (None, [(1, "eins"), (2, None)], "eins"),
        (None, [(2**63 - 1, "die letzte")], "die letzte"),
    ],
)
def test_history(
    paliad: Paliad, before: str | None, history: list[tuple[int, str | None]], end: str | None
) -> None:
    """A first revision fills an empty answer, a higher one replaces, a failure stores nothing."""
    turn = paliad.ask(before)
    for revision, response in history:
        assert paliad.push(turn, revision, response) == 204
    assert paliad.answer(turn) == end


@pytest.mark.slow
def test_unknown(paliad: Paliad) -> None:
    """A turn that is not paliad's is answered 204 and stored nowhere."""
    turn = paliad.ask()
    rows = paliad.database.sql("SELECT * FROM turns ORDER BY id")
    for id_ in (str(uuid4()), "t1", turn.replace("-", ""), "x" * 64):
        for response in (MARKER, None):
            assert paliad.push(id_, 2, response, submitted=str(uuid4())) == 204
    assert paliad.database.sql("SELECT * FROM turns ORDER BY id") == rows


@pytest.mark.slow
@pytest.mark.parametrize(
    "response",
    [
        "ohne",
        "",
        "Ja.\n" + TRAILER,
        "Ja. \r\n\r\n[paliadin-meta] \r\nused_tools: x\r\n[/paliadin-meta]\t\r\n \n",
        f"Das Ende sieht so aus:\n{TRAILER}\nund so weiter{TRAILER}",
        f"Das Ende sieht so aus:\n{TRAILER}[/paliadin-meta]\nund so weiter",
        "mitten [paliadin-meta] im Text",
        TRAILER.lstrip(),
        "'; DROP TABLE turns; --\\ %s $1",
    ],
)
def test_trailer(paliad: Paliad, response: str) -> None:
    """What is stored is the text without its trailer, as the contract tells them apart."""
    turn = paliad.ask()
    assert paliad.push(turn, response=response) == 204
    assert paliad.answer(turn) == split(response)[0]


@pytest.mark.slow
def test_zero(paliad: Paliad) -> None:
    """A character that PostgreSQL cannot store does not cost the answer."""
    turn = paliad.ask()
    assert paliad.push(turn, response="a\0b") == 204
    assert paliad.answer(turn) == "a\ufffdb"


@pytest.mark.slow
def test_bad_signature(paliad: Paliad) -> None:
    """What is not proven, or stale, is answered 401 and stored nowhere."""
    turn = paliad.ask()
    body, headers = callback(turn)
    for forged in ({}, headers | sign(body, keys=Keys([new_secret()])), sign(body, age=400)):
        assert paliad.receiver.post(body, forged) == 401
    assert paliad.answer(turn) is None
    assert paliad.receiver.post(body, headers) == 204
    assert paliad.answer(turn) == MARKER


@pytest.mark.slow
def test_session(paliad: Paliad) -> None:
    """The pages refuse who is not logged in or sends no CSRF token; the callback needs neither."""
    turn = paliad.ask()
    assert paliad.push(turn) == 204
    assert paliad.page(turn) == (200, MARKER)
    assert paliad.page(turn, Cookie="")[0] == 401
    assert paliad.page(turn, Cookie="session=x")[0] == 401
    assert paliad.page(paliad.ask(user=str(uuid4())))[0] == 404
    assert paliad.page("t1")[0] == 404
    assert paliad.page(turn, "POST")[0] == 403
    both = f'session="{paliad.session}"; csrf=y'
    assert paliad.page(turn, "POST", Cookie=both)[0] == 403
    assert paliad.page(turn, "POST", **{"Cookie": both, "X-CSRF-Token": "x"})[0] == 403
    assert paliad.page(turn, "POST", **{"Cookie": both, "X-CSRF-Token": "y"})[0] == 405


@pytest.mark.slow
def test_who_waits_is_told(paliad: Paliad) -> None:
    """A page that is open gets the answer when it comes, and a failure ends the wait."""
    answered, failed = paliad.ask(), paliad.ask()
    with ThreadPoolExecutor(2) as pool:
        pages = [opened(paliad, pool, turn) for turn in (answered, failed)]
        assert paliad.push(answered, response="eins" + TRAILER) == 204
        assert paliad.push(failed, response=None) == 204
        results = [page.result(PATIENCE_S) for page in pages]
    assert results == [(200, "eins"), (502, "failed: empty\n")]
    assert paliad.answer(failed) is None


def opened(paliad: Paliad, pool: ThreadPoolExecutor, turn: str) -> Future[tuple[int, str]]:
    """A page that has looked for its answer in vain, and waits."""
    since = paliad.database.sql("SELECT clock_timestamp()").strip()
    page = pool.submit(paliad.page, turn)
    looked = """
        SELECT 1 FROM pg_stat_activity
        WHERE query LIKE 'SELECT answer FROM %' AND state = 'idle' AND query_start > :'since'
    """
    until("the page to wait", lambda: paliad.database.sql(looked, since=since))
    return page


@pytest.mark.slow
def test_database_down(paliad: Paliad) -> None:
    """Without its database it answers 503, and what is sent again then is stored."""
    turn = paliad.ask()
    ping = b'{"type":"ping","timestamp":"2026-11-22T08:00:00Z","data":{"host":"mriver"}}'
    assert paliad.receiver.post(ping, sign(ping)) == 204
    with paliad.database.down():
        assert paliad.receiver.post(ping, sign(ping)) == 503
        assert paliad.push(turn) == 503
        assert paliad.page(turn)[0] == 503
        assert paliad.push(turn, response=None) == 503
    assert paliad.push(turn) == 204
    assert paliad.answer(turn) == MARKER


@pytest.mark.slow
def test_database_that_takes_nothing(paliad: Paliad) -> None:
    """A standby answers questions and stores nothing: a ping is told so too."""
    ping = b'{"type":"ping","timestamp":"2026-11-22T08:00:00Z","data":{"host":"mriver"}}'
    paliad.database.sql("ALTER SYSTEM SET default_transaction_read_only = on")
    paliad.database.sql("SELECT pg_reload_conf()")
    try:
        until("503", lambda: paliad.receiver.post(ping, sign(ping)) == 503)
    finally:
        paliad.database.sql("ALTER SYSTEM RESET default_transaction_read_only")
        paliad.database.sql("SELECT pg_reload_conf()")
    until("204", lambda: paliad.receiver.post(ping, sign(ping)) == 204)


@pytest.mark.slow
def test_database_blocked(paliad: Paliad) -> None:
    """A row that is locked leads to 503 while the sender still listens, and to no late write."""
    turn = paliad.ask()
    lock = "BEGIN; SELECT FROM turns WHERE id = :'turn' FOR UPDATE; PREPARE TRANSACTION 'lock'"
    paliad.database.sql(lock, turn=turn)
    body, headers = callback(turn, response="zu spät")
    try:
        with closing(
            http.client.HTTPConnection("127.0.0.1", paliad.receiver.port, timeout=SENDER_S)
        ) as connection:
            connection.request("POST", ROUTE, body, headers)
            assert connection.getresponse().status == 503
    finally:
        paliad.database.sql("ROLLBACK PREPARED 'lock'")
    assert paliad.answer(turn) is None
    assert paliad.push(turn) == 204
    assert paliad.answer(turn) == MARKER


@pytest.mark.slow
def test_with_the_sidecar(paliad: Paliad, tmp_path: Path) -> None:
    """What the sidecar pushes ends in paliad's turns, also after an outage of the database."""
    aichat, legacy, failed, late = (paliad.ask() for _ in range(4))
    named = str(uuid4())
    host = Sidecar(tmp_path, paliad.receiver.url, PALIADIN_CALLBACK_SECRET=SECRET)
    with closing(host):
        host.make_roots()
        host.start()
        assert host.command("check", "--ping").returncode == 0
        (host.aichat / f"{named}.jwt").write_text(unsigned_token(jti=aichat, sub=paliad.user))
        host.answer(named, "Grüße, 你好 👋")
        host.answer(legacy, "eins", host.legacy)
        (host.legacy / f"{failed}.txt").symlink_to("/nowhere")
        host.answer("of-another-app")
        for turn in (named, legacy, failed, "of-another-app"):
            host.wait_event("delivery.delivered", turn_id=turn)
        with paliad.database.down():
            host.answer(legacy, "zwei", host.legacy)
            host.answer(late, "spät")
            for turn in (legacy, late):
                host.wait_event("delivery.attempted", turn_id=turn, status=503)
        host.wait_event("delivery.delivered", turn_id=legacy, revision=2)
        host.wait_event("delivery.delivered", turn_id=late)
    found = [paliad.answer(turn) for turn in (aichat, legacy, failed, late)]
    assert found == ["Grüße, 你好 👋", "zwei", None, "spät"]


@pytest.mark.slow
def test_prints(paliad: Paliad) -> None:
    """It prints what became of each callback, and never a word of an answer."""
    turn = paliad.ask()
    before = len(paliad.receiver.lines(0))
    for revision, response in [(1, MARKER), (1, MARKER), (2, None)]:
        paliad.push(turn, revision, response)
    paliad.push(str(uuid4()))
    paliad.push(paliad.ask(), 1, None)
    printed = paliad.receiver.lines(before + 5)[before:]
    assert [line.split()[-1] for line in printed] == [
        *("stored", "duplicate", "outranked", "unknown", "told")
    ]
    assert "MARKER" not in paliad.receiver.output.read_text()
