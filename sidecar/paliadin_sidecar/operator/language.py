"""A language's texts, numbers, durations and times. Times are epoch milliseconds."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Literal

from paliadin_sidecar.operator.diagnosis import answer_name, likely_cause

Code = Literal["de", "en"]

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000
#: Units of a duration, and what is said beside each.
_UNITS = ((_DAY, "d", _HOUR, "h"), (_HOUR, "h", _MINUTE, "min"), (_MINUTE, "min", _SECOND, "s"))


@cache
def _texts() -> dict[str, dict[str, str]]:
    return tomllib.loads(files(__package__).joinpath("texts.toml").read_text(encoding="utf-8"))


@dataclass(frozen=True)
class Language:
    """How one language says it.

    Args:
        code: by ISO 639.
    """

    code: Code

    def text(self, name: str, **values: object) -> str:
        """A text by its name, with values in the places that it has for them."""
        return _texts()[name][self.code].format(**values)

    def number(self, number: int) -> str:
        """A whole number, its thousands apart."""
        return f"{number:,}".replace(",", self.text("thousands"))

    def decimal(self, number: float) -> str:
        """A number with one decimal."""
        return f"{number:.1f}".replace(".", self.text("point"))

    def percent(self, part: int, whole: int) -> str:
        """A share, rounded down, so that nothing but all is 100 %."""
        return f"{self.decimal(part * 1000 // whole / 10)}\N{NO-BREAK SPACE}%"

    def duration(self, ms: int) -> str:
        """A duration as a person says it, by its two largest units."""
        if ms < _SECOND:
            return f"{ms}\N{NO-BREAK SPACE}ms"
        if ms < _MINUTE:
            return f"{self.decimal(ms // 100 / 10)}\N{NO-BREAK SPACE}s"
        unit, name, less, less_name = next(one for one in _UNITS if ms >= one[0])
        rest = ms % unit // less
        more = f" {rest}\N{NO-BREAK SPACE}{less_name}" if rest else ""
        return f"{ms // unit}\N{NO-BREAK SPACE}{name}{more}"

    def bound(self, ms: int) -> str:
        """A round duration, as short as it can be."""
        no_tenths = f"{self.text('point')}0\N{NO-BREAK SPACE}s"
        return self.duration(ms).replace(no_tenths, "\N{NO-BREAK SPACE}s")

    def time(self, at: int) -> str:
        """A time of this host, to the second."""
        return _local(at).strftime(self.text("time"))

    def minute(self, at: int) -> str:
        """The same to the minute."""
        return self.time(at)[:-3]

    def step(self, unit: str, at: int) -> str:
        """An hour, a day or a month."""
        return _local(at).strftime(self.text(f"step_{unit}"))

    def short_step(self, unit: str, at: int) -> str:
        """The same for an axis."""
        return _local(at).strftime(self.text(f"short_step_{unit}"))

    def reason(self, reason: str) -> str:
        """Why a turn was given up, or its file is no answer."""
        name = f"reason_{reason}"
        return self.text(name) if name in _texts() else reason

    def cause(self, status: int | None, error: str | None, detail: str | None) -> str:
        """What the last answer to a turn usually comes from; empty where there was none."""
        if not answer_name(status, error, detail):
            return ""
        if self.code == "en":
            return likely_cause(status, error, detail)
        kind = f"{status // 100}xx" if status else "unanswered"
        names = (f"cause_{status}", f"cause_{error}", f"cause_{kind}")
        return self.text(next(name for name in names if name in _texts()))


def zone_name(at: int) -> str:
    """The host's time zone at a time, and its distance from UTC: `CET (+01:00)`."""
    local = _local(at)
    offset = f"{local:%z}"
    return f"{local:%Z} (UTC{offset[:3]}:{offset[3:5]})"


def utc(at: int) -> str:
    """A time as RFC 3339 in UTC, for a program."""
    return datetime.fromtimestamp(at / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _local(at: int) -> datetime:
    return datetime.fromtimestamp(at / 1000).astimezone()
