from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from paliadin_sidecar import operator
from paliadin_sidecar.operator.diagnosis import likely_cause
from paliadin_sidecar.operator.language import Code, Language, utc, zone_name

#: 2026-11-22, 08:00 UTC.
NOW = 1_795_334_400_000
FOLDER = Path(operator.__file__).parent
TEXTS = tomllib.loads((FOLDER / "texts.toml").read_text())
EN, DE = Language("en"), Language("de")


def test_each_text_is_in_both_languages() -> None:
    """With the same places for values; causes are in English already."""
    for name, text in TEXTS.items():
        if name.startswith("cause_"):
            assert set(text) == {"de"}
            continue
        assert set(text) == {"en", "de"}, name
        places = [re.findall(r"\{(\w+)\}", text[code]) for code in ("en", "de")]
        assert sorted(places[0]) == sorted(places[1]), name


def test_each_text_is_used() -> None:
    """By its name, or by a name that is put together."""
    others = (FOLDER / name for name in ("report/page.html.jinja", "language.py", "top_view.py"))
    code = "".join(path.read_text() for path in [*FOLDER.glob("report/*.py"), *others])
    made = ("unit_", "verdict_", "by_outcome_", "by_root_", "reason_", "cause_", "step_", "short_")
    for name in TEXTS:
        known = name in {"top_armed", "delivered", "pending", "dead", "failed", "vanished"}
        part = name.removesuffix("_means").removesuffix("_note")
        said = re.search(rf"""["'](?:{part}|{re.sub("^(top|section)_", "", part)})["']""", code)
        assert known or said or name.startswith(made) or name.endswith("_means"), name


def test_numbers() -> None:
    """With what parts thousands, and the point, of the language."""
    assert (EN.number(1234567), DE.number(1234567)) == ("1,234,567", "1.234.567")
    assert (EN.decimal(1.25), DE.decimal(0.5)) == ("1.2", "0,5")


@pytest.mark.parametrize(
    ("part", "whole", "said"),
    [(1, 1, "100.0"), (99_999, 100_000, "99.9"), (0, 5, "0.0"), (1, 3, "33.3"), (2, 3, "66.6")],
)
def test_a_share_is_never_rounded_up(part: int, whole: int, said: str) -> None:
    """What is not all is not 100 %."""
    assert EN.percent(part, whole) == f"{said}\N{NO-BREAK SPACE}%"


@pytest.mark.parametrize(
    ("ms", "said"),
    [
        (0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (1999, "1.9 s"), (59_999, "59.9 s"),
        (60_000, "1 min"), (61_500, "1 min 1 s"), (3_599_999, "59 min 59 s"), (3_600_000, "1 h"),
        (7_500_000, "2 h 5 min"), (86_400_000, "1 d"), (90_000_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations(ms: int, said: str) -> None:
    """By the two largest units, rounded down."""
    assert EN.duration(ms).replace("\N{NO-BREAK SPACE}", " ") == said
    assert DE.duration(ms).replace("\N{NO-BREAK SPACE}", " ") == said.replace(".", ",")


def test_bounds_are_short() -> None:
    """Round seconds have no decimal."""
    assert EN.bound(2500).replace("\N{NO-BREAK SPACE}", " ") == "2.5 s"
    assert DE.bound(5000).replace("\N{NO-BREAK SPACE}", " ") == "5 s"
    assert EN.bound(120_000).replace("\N{NO-BREAK SPACE}", " ") == "2 min"


def test_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's own, as the language writes them; for a program in UTC."""
    assert re.fullmatch(r"2026-11-2\d \d\d:\d\d:00", EN.time(NOW))
    assert re.fullmatch(r"2\d\.11\.2026 \d\d:\d\d", DE.minute(NOW))
    assert re.fullmatch(r"2026-11", EN.step("month", NOW))
    assert re.fullmatch(r"2\d\.11\.", DE.short_step("day", NOW))
    assert utc(NOW) == "2026-11-22T08:00:00Z"
    assert re.fullmatch(r".+ \(UTC[+-]\d\d:\d\d\)", zone_name(NOW))


@pytest.mark.parametrize("code", ["en", "de"])
@pytest.mark.parametrize(
    "answer",
    [(413, None), (418, None), (301, None), (599, None), (None, "dns"), (None, "odd"), (101, None)],
)
def test_a_cause_for_each_answer(code: Code, answer: tuple[int | None, str | None]) -> None:
    """In English that of the other commands."""
    said = Language(code).cause(*answer, None)
    assert len(said) > 10
    assert code == "de" or said == likely_cause(*answer)
    assert Language(code).cause(None, None, None) == ""


def test_reasons() -> None:
    """One of a later version is shown as it is."""
    assert DE.reason("empty") == "die Datei blieb leer"
    assert EN.reason("odd_one") == "odd_one"
