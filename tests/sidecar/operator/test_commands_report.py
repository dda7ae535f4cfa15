"""`report`, as the real command, on outboxes whose past is known."""

from __future__ import annotations

import json
import re
import stat
import subprocess
import sys
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from support.outbox_box import USER, Box, answer, failure
from support.pages import Node, parsed
from support.sidecar import COMMAND, Sidecar

from paliadin_sidecar.outbox import acceptance, transitions
from paliadin_sidecar.outbox.database import FILENAME
from paliadin_sidecar.outbox.records import Delivery, TurnKey

if TYPE_CHECKING:
    from collections.abc import Iterator

MARKUP = "<script>alert(1)</script>&\"'\u202e"
ANSWER = "Wer hat die Frist versäumt? Geheim-4711."


@pytest.fixture
def box(host: Sidecar) -> Iterator[Box]:
    """The host's outbox, an hour ago."""
    host.state.mkdir(mode=0o700)
    box = Box(host.state / FILENAME, create=True)
    box.now = time.time() - 3600
    yield box
    box.outbox.close()


def accept(box: Box, name: str, content: str = "Yes.", backend: str = "aichat") -> Delivery:
    """A turn's answer, complete a second ago."""
    key = TurnKey(backend, "paliadin", name)
    found = box(acceptance.accept, answer(content, key, at=box.now - 1))
    assert found is not None
    return found


def written(host: Sidecar, *args: str) -> str:
    """The report that the command writes."""
    path = host.base / "report.html"
    done = host.typed("report", "--out", str(path), *args)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{path}\n", "")
    return path.read_text()


def cards(page: Node) -> dict[str, str]:
    """The first figures."""
    (found,) = (one for one in page.all("dl") if one.attributes["class"] == "cards")
    return {
        card.all("dt")[0].text: card.all("span")[0].text.replace("\N{NO-BREAK SPACE}", " ")
        for card in found.all("div")
    }


def tables(page: Node) -> dict[str, list[list[str]]]:
    """Each table's rows, by its caption."""
    return {
        table.all("caption")[0].text: [
            [cell.replace("\N{NO-BREAK SPACE}", " ") for cell in row] for row in table.rows()
        ]
        for table in page.all("table")
    }


@pytest.mark.parametrize("language", ["en", "de"])
@pytest.mark.parametrize("turns", [0, 1])
def test_few_turns_are_a_page_too(host: Sidecar, box: Box, language: str, turns: int) -> None:
    """With none, and with one, of all that is kept or of some days."""
    if turns:
        accept(box, "t1")
    for since in ("0", "7d"):
        page = parsed(written(host, "--language", language, "--since", since))
        assert page.all("html")[0].attributes["lang"] == language
        assert next(iter(cards(page).values())) == str(turns)
        assert len(page.all("section")) == 10


def test_each_figure(host: Sidecar, box: Box) -> None:
    """Of a past in which each of them is another one."""
    box(acceptance.record_hint, TurnKey("aichat", "paliadin", "t1"), "s1", USER)
    box.now += 131
    box.retry(accept(box, "t1"), status=None, error="timeout")
    box.now += 10
    box.deliver()
    box.now += 1
    accept(box, "t2", backend="legacy")
    box.deliver()
    box(transitions.pause, "status_503")
    box.now += 90
    box(transitions.resume, 90.0)
    box.give_up(accept(box, "t3"), "refused")
    box(acceptance.accept, failure("too_large", TurnKey("aichat", "paliadin", "t4")))
    box.deliver()
    box(acceptance.mark_vanished, TurnKey("legacy", "paliadin", "t5"))
    accept(box, "t6")
    page = parsed(written(host))
    assert cards(page) == {
        "Turns": "6",
        "Answered": "33.3 %",
        "Delivered within": "1.0 s",
        "The agent took": "2 min 10 s",
        "Late, and delivered": "1",
        "Given up or no answer": "2",
        "Receiver not well": "1 min 30 s",
        "Sent more than once": "1",
    }
    found = tables(page)
    assert found["Turns by backend and outcome"] == [
        ["aichat/paliadin", "1", "1", "1", "1", "0", "4"],
        ["legacy/paliadin", "1", "0", "0", "0", "1", "2"],
    ]
    assert found["From complete file to acknowledged, by backend"] == [
        ["aichat/paliadin", "1", "11.0 s", "11.0 s", "11.0 s", "11.0 s"],
        ["legacy/paliadin", "1", "1.0 s", "1.0 s", "1.0 s", "1.0 s"],
        ["All", "2", "1.0 s", "11.0 s", "11.0 s", "11.0 s"],
    ]
    assert [row[:3] + row[4:] for row in found["The latest answers"]] == [
        ["t1", "aichat/paliadin", "5f3c0000", "2 min 10 s", "answered"]
    ]
    assert [row[4:] for row in found["The slowest answers"]] == [["11.0 s", "2"], ["1.0 s", "1"]]
    ((*_, length, why),) = found[
        "Outages of the receiver that touch this period, with their whole length"
    ]
    assert (length, why[:3]) == ("1 min 30 s", "503")
    given_up, no_answer = found["Turns that were given up, or whose file was no answer"]
    assert given_up[4].startswith("given up: the receiver refused it")
    assert given_up[-1] == "paliadin-sidecar replay t3"
    assert (no_answer[0], no_answer[4]) == ("t4", "no answer: the file is too large")
    summary = dict(found["Deliveries with more than one attempt, by what went before"])
    assert [*summary.values()] == ["1", "1", "0", "0"]
    twice = found["Deliveries that the receiver may have, or has, more than once"]
    assert [row[:3] + row[4:] for row in twice] == [
        ["t1", "aichat/paliadin", "5f3c0000", "1", "2", "1", "0", "1"]
    ]
    by_hour = found["Turns by hour and outcome"]
    assert sum(int(row[-1]) for row in by_hour) == 6
    verdict = next(
        one.text for one in page.all("p") if "verdict" in one.attributes.get("class", "")
    )
    assert verdict == "Given up, for somebody to look at: 1. Waiting to be delivered: 1."


def test_whether_somebody_is_needed(host: Sidecar, box: Box) -> None:
    """Not for nothing, not where all is well, and not for what came just now."""

    def verdict() -> tuple[str, str]:
        page = parsed(written(host))
        (found,) = (
            one for one in page.all("p") if "verdict" in one.attributes.get("class", "").split()
        )
        return found.attributes["class"].split()[1], found.text

    assert verdict() == ("quiet", "No turn came in this period.")
    accept(box, "t1")
    assert verdict() == ("attention", "Waiting to be delivered: 1.")
    box.deliver()
    assert verdict()[0] == "well"
    box.now = time.time() - 2
    accept(box, "t2")
    assert verdict() == ("quiet", "Waiting to be delivered: 1.")
    box(transitions.pause, "connect")
    assert verdict()[0] == "attention"
    box(transitions.resume, 1.0)
    box.give_up(box.due()[0], "refused")
    assert verdict() == ("attention", "Given up, for somebody to look at: 1.")


def test_one_that_is_given_up_and_of_another_time_is_named(host: Sidecar, box: Box) -> None:
    """It is no turn of the period, and somebody must look at it all the same."""
    box.give_up(accept(box, "t1"), "refused")
    text = parsed(written(host, "--since", "30m")).text
    assert "Given up and not of this period: 1. They are listed by paliadin-sidecar turns" in text


def test_nobody_is_named_where_that_is_asked(host: Sidecar, box: Box) -> None:
    """Else a person is the beginning of an id."""
    box(acceptance.record_hint, TurnKey("aichat", "paliadin", "t1"), "s1", USER)
    accept(box, "t1")
    box.deliver()
    named, unnamed = written(host), written(host, "--anonymous")
    assert USER[:8] in named
    assert USER[:8] not in unnamed
    assert "Persons are left out." in unnamed
    for text in (named, unnamed):
        assert USER not in text


def test_what_was_given_up_has_what_the_receiver_said(host: Sidecar, box: Box) -> None:
    """As text, and without who asked where nobody is to be named."""
    box(acceptance.record_hint, TurnKey("aichat", "paliadin", "t1"), "s1", USER)
    given_up = accept(box, "t1")
    box.give_up(given_up, "refused")
    box(transitions.record_said, given_up.id, f"no window for {USER[:8]}… {{x}} {MARKUP}")
    page = written(host)
    assert f"The receiver said: no window for {USER[:8]}… {{x}} &lt;script&gt;" in page
    page = written(host, "--anonymous", "--language", "de")
    assert "Der Empfänger sagte: no window for …… {x} &lt;script&gt;" in page
    assert USER[:8] not in page


def test_no_answer_and_no_secret_is_in_it(host: Sidecar, box: Box) -> None:
    """Nor its digest, by which a guess could be confirmed."""
    due = accept(box, "t1", ANSWER)
    box.give_up(due, "refused")
    text = written(host)
    for hidden in (ANSWER, "4711", host.secret, due.subject["sha256"][:16]):
        assert hidden not in text


def test_hostile_values_are_text(host: Sidecar, box: Box) -> None:
    """In each field of each event, also in those that are names of the sidecar's own."""
    host.environ["PALIADIN_HOST_LABEL"] = MARKUP
    box(acceptance.record_hint, TurnKey("aichat", "paliadin", "t1"), "s1", USER)
    box.now += 200
    box.retry(accept(box, "t1"), status=None, error="timeout")
    box.give_up(box.due()[0], "refused")
    why = replace(failure("too_large", TurnKey("aichat", "paliadin", "t2")), why="x")
    box(acceptance.accept, why)
    box.deliver()
    box(transitions.pause, "timeout")
    for name in ("backend", "persona", "user", "turn_id", "reason", "why", "error", "cause"):
        box.outbox.execute(
            "UPDATE event SET fields = json_replace(fields, :path, :value)",
            {"path": f"$.{name}", "value": f"{name}{MARKUP}"},
        )
    text = written(host)
    page = parsed(text)
    assert len(page.all("script")) == 1
    assert "\u202e" not in text
    for name in ("", "backend", "persona", "user", "turn_id", "why", "cause"):
        assert f"{name}<script>alert(1)</script>&\"'\\u202e" in page.text


def test_the_command_is_that_of_this_host(host: Sidecar, box: Box) -> None:
    """With the file of variables that was named."""
    box.give_up(accept(box, "t1"), "refused")
    path = host.base / "own.env"
    path.write_text("PALIADIN_HOST_LABEL=hugo\n")
    del host.environ["PALIADIN_HOST_LABEL"]
    text = parsed(written(host, "--env-file", str(path))).text
    assert f"paliadin-sidecar replay --env-file {path} t1" in text
    assert "Host hugo." in text


def test_only_its_owner_may_read_the_file(host: Sidecar, box: Box) -> None:
    """Also where another one lay there; and nothing else is left."""
    path = host.base / "report.html"
    path.write_text("old")
    path.chmod(0o644)
    written(host)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in host.base.iterdir() if "report" in one.name] == ["report.html"]


def test_a_file_that_cannot_be_written(host: Sidecar, box: Box) -> None:
    """One sentence, exit 1, and what lay there is as it was."""
    for path in (host.base / "none" / "report.html", host.base):
        done = host.typed("report", "--out", str(path))
        assert done.returncode == 1
        assert done.stderr.startswith(f"{path} cannot be written: ")
        assert done.stderr.count("\n") == 1


def test_what_is_no_regular_file_is_not_replaced(host: Sidecar, box: Box) -> None:
    """A link, or a device of root's, stays."""
    target = host.base / "target"
    target.write_text("kept")
    link = host.base / "link.html"
    link.symlink_to(target)
    done = host.typed("report", "--out", str(link))
    assert done.returncode == 1
    assert "it is no regular file" in done.stderr
    assert link.is_symlink()
    assert target.read_text() == "kept"


def test_standard_output(host: Sidecar, box: Box) -> None:
    """For a user who may read the outbox and not write here; UTF-8 whatever the locale is."""
    accept(box, "t1")
    done = subprocess.run(
        [COMMAND, "report", "--out", "-", "--language", "de"],
        env=host.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        check=True,
        cwd=host.base,
    )
    assert "Wie der Assistent gearbeitet hat" in done.stdout.decode()
    assert "Empfänger" in done.stdout.decode()
    assert done.stderr == b""
    assert not (host.base / "report.html").exists()


@pytest.mark.parametrize(
    "args", [["--since", "1h", "--until", "2h"], ["--since", "2100-01-01"], ["--until", "x"]]
)
def test_a_period_that_is_none(host: Sidecar, box: Box, args: list[str]) -> None:
    """Wrong usage."""
    done = host.typed("report", *args)
    assert done.returncode == 2


def test_until(host: Sidecar, box: Box) -> None:
    """What came later is not counted."""
    accept(box, "t1")
    box.now += 1800
    accept(box, "t2")
    page = parsed(written(host, "--until", "45m"))
    assert cards(page)["Turns"] == "1"
    assert "Asked for was the time since" in page.text


def test_without_its_packages_it_says_how_they_are_installed(host: Sidecar, box: Box) -> None:
    """In one sentence, and every other command does without."""
    hide = "import sys; sys.modules['svg'] = None; sys.modules['jinja2'] = None\n"
    run = "from paliadin_sidecar.operator.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", hide + run, "report"],
        env=host.environ, capture_output=True, text=True, check=False, cwd=host.base,
    )  # fmt: skip
    assert done.returncode == 1
    assert re.fullmatch(
        r"The report needs the package \w+, which is not installed\..*\n", done.stderr
    )
    assert "requirements/report.txt" in done.stderr
    assert "Traceback" not in done.stderr
    status = subprocess.run(
        [sys.executable, "-c", hide + run, "turns"],
        env=host.environ, capture_output=True, check=False,
    )  # fmt: skip
    assert status.returncode == 0


def fill(box: Box, days: int, turns: int) -> None:
    """Put so many turns of so many days into the outbox, each row as the daemon would leave it.

    Of each thing that has a row in the page there is more than that has room for.
    """
    now = round(time.time() * 1000)
    start = now - days * 86_400_000
    outbox = box.outbox
    add_turn = "INSERT INTO turn (id, backend, persona, turn_id, seen_at) VALUES (?, ?, ?, ?, ?)"
    add_event = "INSERT INTO event (at, name, turn, fields) VALUES (?, ?, ?, ?)"
    outbox.execute("BEGIN")
    for number in range(1, turns + 1):
        at = start + 1000 + number * (days * 86_400_000 - 2000) // (turns + 1)
        root = (f"backend-{number % 300:03}", "p" * 32)
        turn_id = f"{number:064}"
        common_fields = {
            "turn_id": turn_id, "backend": root[0], "persona": root[1], "user": f"{number:08}",
            "revision": 1, "webhook_id": f"w{number}", "bytes": 9, "sha256": "0" * 64,
        }  # fmt: skip
        taken = {"pushed": True, "settle_ms": 3, "agent_ms": 1000 + number % 200_000}
        tried = {"attempt": 1, "error": "timeout", "duration_ms": 10_000.0}
        ended = {"attempts": 2, "since_accepted_ms": 20 + number % 1000}
        given_up = {"attempts": 2, "cause": "refused"}
        end = ("delivery.dead", given_up) if number % 100 == 0 else ("delivery.delivered", ended)
        events = [("turn.accepted", taken), end]
        if number % 50 == 0:
            events.insert(1, ("delivery.attempted", tried))
        outbox.connection.execute(add_turn, (number, *root, turn_id, at))
        outbox.connection.executemany(
            add_event,
            [(at, name, number, json.dumps(common_fields | more)) for name, more in events],
        )
        if number % 100 == 0:
            outbox.connection.executemany(
                add_event,
                [
                    (at, "receiver.paused", None, '{"why":"status_503"}'),
                    (at + 1000, "receiver.resumed", None, '{"paused_ms":1000}'),
                ],
            )
    outbox.execute("COMMIT")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("days", "unit", "turns"), [(2, "hour", 20_000), (399, "day", 100_000), (1200, "month", 20_000)]
)
def test_very_many_turns(host: Sidecar, box: Box, days: int, unit: str, turns: int) -> None:
    """Each is counted, and the file is small whatever happened to them."""
    fill(box, days, turns)
    text = written(host, "--since", "0")
    assert len(text.encode()) <= 2_000_000
    page = parsed(text)
    assert cards(page)["Turns"] == f"{turns:,}"
    assert cards(page)["Answered"] == "99.0 %"
    assert cards(page)["Given up or no answer"] == f"{turns // 100:,}"
    found = tables(page)
    rows = found[f"Turns by {unit} and outcome"]
    assert sum(int(row[-1].replace(",", "")) for row in rows) == turns
    assert page.text.count("are shown; paliadin-sidecar export has all of them") >= 2


def test_many_outages_are_few_bands(host: Sidecar, box: Box) -> None:
    """Where nobody would see a gap between them; the table has each."""
    for _ in range(300):
        box(transitions.pause, "connect")
        box.now += 1
        box(transitions.resume, 1.0)
        box.now += 1
    page = parsed(written(host))
    assert (
        len(tables(page)["Outages of the receiver that touch this period, with their whole length"])
        == 200
    )
    bands = [one for one in page.all("rect") if one.attributes.get("class") == "band"]
    assert 2 <= len(bands) <= 4  # in the legend, and in each of the two pictures
