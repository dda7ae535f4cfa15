"""`examples/go/paliad.go` on a real PostgreSQL, and that docs/paliad.md says what it does."""

from __future__ import annotations

import http.client
import os
import re
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from support.callbacks import MARKER, SECRET, callback, sign
from support.example_receivers import GO, ROUTE
from support.paliad import GO_ENVIRON, TABLE, Paliad, opened, running
from support.ranks import RANKS, RankCase
from support.sidecar import TRAILER, Sidecar, new_secret
from support.tokens import unsigned_token
from support.waiting import PATIENCE_S, until

from paliadin_contract.signature import Keys
from paliadin_contract.trailer import split

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.postgresql import PostgreSQL

PAGE = (Path(__file__).parents[2] / "docs" / "paliad.md").read_text(encoding="utf-8")
#: How long the sender waits for the head of an answer.
SENDER_S = 10.0


@pytest.fixture(scope="module")
def as_today(
    binary: str, database: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Paliad]:
    """The app whose table has no column for revisions."""
    with running(database, [binary], tmp_path_factory.mktemp("paliad") / "log") as paliad:
        yield paliad


@pytest.fixture(scope="module")
def paliad(
    binary: str, database: PostgreSQL, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Paliad]:
    (columns,) = re.findall("```sql\n(ALTER TABLE .*?;)\n```", PAGE, re.DOTALL)
    database.sql(columns.replace("ADD COLUMN", "ADD COLUMN IF NOT EXISTS"))
    output = tmp_path_factory.mktemp("paliad") / "log"
    with running(database, [binary, "-revisions"], output) as paliad:
        yield paliad


def test_the_page_has_the_statements() -> None:
    """The statements of docs/paliad.md are those of the program."""
    statements = re.findall("```sql\n(.*?);\n```", PAGE, re.DOTALL)
    program = (GO / "paliad.go").read_text(encoding="utf-8")
    assert len(statements) == 7
    assert [s for s in statements if f"`{s}`" not in program] == [
        s for s in statements if s.startswith("ALTER")
    ]


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
    assert [paliad.answer(turn), paliad.answer(other)] == ["eins", None]


@pytest.mark.slow
@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
def test_ranks(paliad: Paliad, case: RankCase) -> None:
    """With revisions, what is stored in the end is what the table says."""
    assert _pushed(paliad, case) == case.end


@pytest.mark.slow
@pytest.mark.parametrize("case", RANKS, ids=lambda case: case.name)
def test_ranks_without_revisions(as_today: Paliad, case: RankCase) -> None:
    """With paliad's guard alone the first answer stays, whatever comes."""
    answers = (push.response for push in case.pushes if push.response is not None)
    assert _pushed(as_today, case) == next(answers, None)


def _pushed(paliad: Paliad, case: RankCase) -> str | None:
    turn = paliad.ask()
    files = {name: str(uuid4()) for name in "AB"}
    for push in case.pushes:
        sent = (files[push.file], push.revision, push.response)
        assert paliad.push(*sent, submitted=turn) == 204
    return paliad.answer(turn)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "end"), [("", "die Antwort"), ("aichat_paliadin_{}", "zwei")])
def test_the_backend_answered_first(paliad: Paliad, file: str, end: str) -> None:
    """A correction replaces the backend's own response only where its file is noted."""
    turn = paliad.ask("die Antwort", file=file)
    for revision, response in ((1, None), (2, "zwei")):
        assert paliad.push(turn, revision, response) == 204
    assert (paliad.answer(turn), paliad.error_code(turn)) == (end, None)


@pytest.mark.slow
def test_late(paliad: Paliad) -> None:
    """An answer that comes after paliad gave up is shown, and marked as late; so is a good file."""
    given_up, failed, in_time = paliad.ask(), paliad.ask(), paliad.ask()
    paliad.gave_up(given_up)
    assert paliad.push(failed, response=None) == 204
    assert paliad.error_code(failed) == "empty"
    for turn in (given_up, failed, in_time):
        assert paliad.push(turn, 2, "spät") == 204
        assert paliad.page(turn) == (200, "spät")
    codes = [paliad.error_code(turn) for turn in (given_up, failed, in_time)]
    assert codes == ["late", "late", None]


@pytest.mark.slow
def test_unknown(paliad: Paliad) -> None:
    """A turn that is not paliad's is answered 204 and stored nowhere."""
    turn = paliad.ask()
    rows = paliad.database.sql(f"SELECT * FROM {TABLE} ORDER BY id")
    for id_ in (str(uuid4()), "t1", turn.replace("-", ""), "x" * 64):
        for response in (MARKER, None):
            assert paliad.push(id_, 2, response, submitted=str(uuid4())) == 204
    assert paliad.database.sql(f"SELECT * FROM {TABLE} ORDER BY id") == rows


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
        f"```\n{TRAILER.lstrip()}```\n",
        f"So:\n```python\nprint()\n```{TRAILER}",
        f"So:\n```python\nprint()\n```\n~~~ text\n{TRAILER.lstrip()}~~~\n",
        f"```markdown\nAlles darin.\n{TRAILER}```\n",
        f"Ja:\n```x = 1``` ist Code\n{TRAILER}",
        f"So:\n```\n{TRAILER.lstrip()}```\nUnd weiter.\n",
        f"So:\n{TRAILER}\nUnd weiter im Text.\n",
        f"So:\n{TRAILER}\nFazit: es geht weiter.\n",
        f"So:\n{TRAILER}\nmodel: x\n\nOther_Name: y z\n",
        "So:\n[paliadin-meta]\nund dann die Namen.\n",
        "'; DROP TABLE turns; --\\ %s $1",
    ],
)
def test_trailer(paliad: Paliad, response: str) -> None:
    """What is stored is the text without its trailer, as the contract separates them."""
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
    """A standby answers questions and stores nothing: a ping gets the same answer."""
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
    lock = f"SELECT FROM {TABLE} WHERE id = :'turn' FOR UPDATE"
    lock = f"BEGIN; {lock}; PREPARE TRANSACTION 'lock'"
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
    before = len(printed(paliad, 0))
    for revision, response in [(1, MARKER), (1, MARKER), (2, None)]:
        paliad.push(turn, revision, response)
    paliad.push(str(uuid4()))
    paliad.push(paliad.ask(), 1, None)
    assert [line.split()[-1] for line in printed(paliad, before + 5)[before:]] == [
        *("stored", "stored", "outranked", "unknown", "stored")
    ]
    assert "MARKER" not in paliad.receiver.output.read_text()


def printed(paliad: Paliad, count: int) -> list[str]:
    """What it says of callbacks, once there are `count` lines; it also says how it is connected."""

    def lines() -> list[str] | None:
        said = [each for each in paliad.receiver.lines(0) if not each.startswith("notifications: ")]
        return said if len(said) >= count else None

    return until(f"{count} callbacks", lines) or []
