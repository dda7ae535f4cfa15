"""What `make bench` says: the goals are judged by the figures, and the picture is small."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bench import before, picture
from bench.candidates import (
    CANDIDATES,
    FLOOR,
    INOTIFY,
    INOTIFY_NO_COMMITS,
    NODE,
    SHIPPED,
    WATCHDOG,
    before_of,
)
from bench.goals import goals
from bench.inbox import BARE, BARE_SQLITE, INBOX, INBOX_SQLITE, callbacks_per_s
from bench.report import with_goals
from bench.results import Burst, Grown, Idle, Latency, Results

PAGE = Path(__file__).parents[1] / "docs/performance.md"


def latency(ms: float, cpu_ms: float = 1.0) -> Latency:
    return Latency({"rename": [ms] * 50, "plain": [ms] * 50}, [cpu_ms])


def grown(ms: float, cpu_ms: float = 1.0) -> Grown:
    return Grown([ms] * 10, cpu_ms, Burst(100, 100, 1000.0, cpu_ms, 40.0))


@pytest.fixture
def results() -> Results:
    """Everything is reached, and nearly everything just so."""
    before = {
        before_of(SHIPPED): latency(4.0, 2.0),
        before_of(INOTIFY): latency(2.0, 2.0),
    }
    ours = {
        FLOOR: latency(0.25),
        SHIPPED: latency(3.4, 1.2),
        INOTIFY: latency(1.5, 1.2),
        INOTIFY_NO_COMMITS: latency(1.4),
        WATCHDOG: latency(1.5),
    }
    speeds = {
        SHIPPED: (1000.0, 0.55), INOTIFY: (1000.0, 0.55), NODE: (900.0, 1.0),
        before_of(SHIPPED): (500.0, 1.0), before_of(INOTIFY): (500.0, 1.0),
    }  # fmt: skip
    return Results(
        latency=ours | before,
        burst={
            name: [Burst(10_000, 10_000, per_s, cpu_ms, 50.0)]
            for name, (per_s, cpu_ms) in speeds.items()
        },
        idle={SHIPPED: Idle(0.1, 20.0, 45.0), INOTIFY: Idle(0.05, 2.0, 44.0)},
        growth={"an empty start": [grown(1.0)], "answers in the root": [grown(1.2, 1.2)]},
        inbox={BARE_SQLITE: [1000.0], INBOX_SQLITE: [100.0, 900.0, 2000.0]},
    )


def verdicts(results: Results) -> list[str]:
    return [goal.verdict for goal in goals(results)]


def test_all_that_is_reached_is_said_to_be(results: Results) -> None:
    """A figure that is as large as it may be is reached."""
    assert set(verdicts(results)) == {"yes"}


@pytest.mark.parametrize(
    ("what", "name", "worse", "missed"),
    [
        ("latency", INOTIFY, latency(1.76, 1.2), {"≤ 0.75", "≤ 7 "}),
        ("latency", SHIPPED, latency(3.5, 1.3), {"≤ 0.85", "≤ 0.6 "}),
        ("latency", INOTIFY, Latency({"rename": [1.0] * 90 + [9.0] * 10}, [1.0]), {"p99"}),
        ("latency", INOTIFY_NO_COMMITS, latency(1.5), {"lower than watchdog"}),
        ("burst", SHIPPED, [Burst(9, 9, 900.0, 0.56, 1.0)], {"≥ 2", "Node", "≤ 0.55"}),
        ("idle", INOTIFY, Idle(0.06, 2.1, 45.1), {"wake-ups", "0.05 %", "45 MiB"}),
        ("growth", "answers in the root", [grown(1.21)], {"≤ 1.2"}),
        ("growth", "answers in the root", [grown(1.0, 1.3)], {"≤ 1.2"}),
        ("growth", "answers in the root", [grown(22.0)], {"≤ 1.2", "scans"}),
        ("inbox", INBOX_SQLITE, [899.0], {"≥ 0.9"}),
    ],
)
def test_what_is_missed_is_said_to_be(
    results: Results, what: str, name: str, worse: object, missed: set[str]
) -> None:
    """Nothing else than those goals is missed, and each of those is."""
    getattr(results, what)[name] = worse
    said = [goal.text for goal in goals(results) if goal.verdict == "no"]
    assert len(said) == len(missed)
    for part in missed:
        assert any(part in text for text in said), part


def test_what_was_not_measured_is_not_reached(results: Results) -> None:
    """Where a candidate is missing, its goals say so."""
    del results.latency[WATCHDOG], results.latency[FLOOR]
    del results.idle[SHIPPED]
    results.burst[NODE] = []
    found = {goal.text: goal.verdict for goal in goals(results) if goal.verdict != "yes"}
    assert set(found.values()) == {"not measured"}
    assert len(found) == 5


def test_the_picture_is_small_and_the_same_for_the_same_results(results: Results) -> None:
    """A line for each candidate; whoever measures again changes few of them."""
    text = picture.svg(results)
    assert picture.svg(results) == text
    ET.fromstring(text)
    assert len(text.splitlines()) < 40
    results.latency[INOTIFY] = latency(1.6)
    changed = set(picture.svg(results).splitlines()) ^ set(text.splitlines())
    assert len(changed) == 2


def test_the_picture_takes_any_figure(results: Results) -> None:
    """Beyond either end of the scale it is drawn at the end."""
    results.latency = {FLOOR: latency(0.001), SHIPPED: latency(60_000.0)}
    assert "nan" not in picture.svg(results)


def test_the_docs_say_what_was_measured(results: Results) -> None:
    """The page's table of goals is that of the last run, and a run replaces it alone."""
    page = PAGE.read_text(encoding="utf-8")
    table = page.partition("`make bench` -->\n")[2].partition("\n<!-- end of goals")[0]
    assert table
    assert table in (PAGE.parents[1] / "bench/results.md").read_text(encoding="utf-8")
    changed = with_goals(page, results)
    assert changed != page
    assert with_goals(changed, results) == changed
    before, _, after = page.partition(table)
    assert changed.startswith(before)
    assert changed.endswith(after)


def test_each_app_takes_callbacks(tmp_path: Path) -> None:
    """The bare routes and the inboxes are measured in the same way, each in a process."""
    found = callbacks_per_s(tmp_path, rounds=1, callbacks=20)
    assert list(found) == [BARE, BARE_SQLITE, INBOX, INBOX_SQLITE]
    assert all(per_s > 0 for (per_s,) in found.values())


def test_each_of_ours_has_one_of_before() -> None:
    """Each of ours is compared with the same of before."""
    names = {one.name for one in CANDIDATES}
    ours = [one for one in CANDIDATES if one.kind == "ours"]
    assert len(ours) == 4
    assert {before_of(one.name) for one in ours} <= names


def test_a_clone_without_the_commit_of_before_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is installed for it, and the reason names what mends it."""
    made = tmp_path / "before"
    for name, value in {
        "COMMIT": "0" * 40,
        "_MADE": made,
        "_TREE": made / "tree",
        "PROGRAM": made / "env/bin/paliadin-sidecar",
    }.items():
        monkeypatch.setattr(before, name, value)
    assert "git fetch --unshallow" in before.prepare()
    assert not (made / "env").exists()
