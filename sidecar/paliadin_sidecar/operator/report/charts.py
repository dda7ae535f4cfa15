"""Pictures as SVG: bars that are stacked, and a line over bands.

Each is drawn twice, for a wide page and for a narrow one, so that its letters have the same size
on both; the style sheet shows one of them. Colours are classes of the style sheet too. svg.py
escapes nothing, so whatever is text goes through `_safe`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import svg
from markupsafe import Markup, escape

from paliadin_sidecar.operator.report.view import visible

#: Beyond so many bars none says its own number, which the table has.
_MAX_HINTS = 400
#: What is not nothing is at least so high, in pixels: one among thousands is to be seen.
_MIN_HEIGHT = 1.5
#: A letter's width, in pixels, of the size that the style sheet gives.
_LETTER = 6.2


@dataclass(frozen=True)
class _Frame:
    # Where the drawing is, in pixels of the picture.
    kind: str
    width: float
    height: float
    left: float
    ticks: Sequence[int]
    has_hints: bool  # a finger does not hover

    top = 8.0
    below = 24.0

    @property
    def bottom(self) -> float:
        return self.height - self.below

    @property
    def across(self) -> float:
        return self.width - self.left - 4

    def x(self, share: float) -> float:
        return round(self.left + share * self.across, 1)

    def y(self, value: float) -> float:
        return round(self.bottom - value / self.ticks[-1] * (self.bottom - self.top), 1)


@dataclass(frozen=True)
class Words:
    """What a picture is called.

    Attributes:
        name: its own in the page.
        title: what it shows.
        description: the same as sentences, with its main numbers.
    """

    name: str
    title: str
    description: str


def bars(
    words: Words,
    labels: Sequence[str],
    parts: Sequence[tuple[str, Sequence[int]]],
    hints: Sequence[str],
) -> tuple[Markup, Markup]:
    """Bars, each of which is stacked from parts; for a wide page and for a narrow one.

    Args:
        words: what it is called.
        labels: a word for each bar.
        parts: the class and the values of each part, from the bottom.
        hints: what each bar says under a mouse, on the wide page.
    """
    totals = [sum(values) for values in zip(*(values for _, values in parts), strict=True)]

    def draw(frame: _Frame) -> list[svg.Element]:
        step = frame.across / len(labels)
        width = round(max(step * 0.8, step - 6, 0.5), 1)
        tops = [frame.bottom] * len(labels)
        drawn: list[svg.Element] = []
        for mark, values in parts:
            path: list[svg.PathData] = []
            for place, value in enumerate(values):
                if not value:
                    continue
                height = max(_MIN_HEIGHT, frame.bottom - frame.y(value))
                tops[place] -= height
                path += [
                    svg.MoveTo(
                        round(frame.left + place * step + (step - width) / 2, 1),
                        round(tops[place], 1),
                    ),
                    svg.HorizontalLineToRel(width),
                    svg.VerticalLineToRel(round(max(height - 0.75, _MIN_HEIGHT / 2), 1)),
                    svg.HorizontalLineToRel(-width),
                    svg.ClosePath(),
                ]
            if path:
                drawn.append(svg.Path(d=path, class_=[mark]))
        middles = [(place + 0.5) / len(labels) for place in range(len(labels))]
        drawn += _below(frame, list(zip(middles, labels, strict=True)))
        if frame.has_hints and len(hints) <= _MAX_HINTS:
            drawn += [
                svg.Rect(
                    x=round(frame.left + place * step, 1),
                    y=frame.top,
                    width=round(step, 1),
                    height=frame.bottom - frame.top,
                    class_=["hover"],
                    elements=[svg.Title(text=_safe(hint))],
                )
                for place, hint in enumerate(hints)
            ]
        return drawn

    return _both(words, max(totals), draw)


def line(
    words: Words,
    values: Sequence[int],
    labels: Sequence[tuple[float, str]],
    bands: Sequence[tuple[float, float]],
) -> tuple[Markup, Markup]:
    """A line of steps, filled below, over bands; for a wide page and for a narrow one.

    Args:
        words: what it is called.
        values: of parts that are equally wide.
        labels: words and where they stand, from 0 to 1.
        bands: where each begins and ends, from 0 to 1.
    """

    def draw(frame: _Frame) -> list[svg.Element]:
        drawn: list[svg.Element] = [
            svg.Rect(
                x=frame.x(start),
                y=frame.top,
                width=round(max(2, (end - start) * frame.across), 1),
                height=height,
                class_=[mark],
            )
            for start, end in bands
            for mark, height in (("band", frame.bottom - frame.top), ("bandmark", 5))
        ]
        path: list[svg.PathData] = [svg.MoveTo(frame.left, frame.bottom)]
        for place, value in enumerate(values):
            height = max(_MIN_HEIGHT, frame.bottom - frame.y(value)) if value else 0
            path += [
                svg.VerticalLineTo(round(frame.bottom - height, 1)),
                svg.HorizontalLineTo(frame.x((place + 1) / len(values))),
            ]
        path += [svg.VerticalLineTo(frame.bottom), svg.ClosePath()]
        drawn.append(svg.Path(d=path, class_=["backlog"]))
        return drawn + _below(frame, labels)

    return _both(words, max(values), draw)


def _both(
    words: Words, highest: int, draw: Callable[[_Frame], list[svg.Element]]
) -> tuple[Markup, Markup]:
    ticks = _ticks(highest)
    left = len(_number(ticks[-1])) * _LETTER + 8
    large = _Frame("large", 760, 230, left, ticks, has_hints=True)
    small = _Frame("small", 340, 210, left, ticks, has_hints=False)
    return _described(words, large, draw(large)), _described(words, small, draw(small))


def _ticks(highest: int) -> list[int]:
    """Round numbers from 0 to at least the highest, at most six of them."""
    rough = max(1, highest) / 4
    power = 10 ** math.floor(math.log10(rough))
    step = max(1, round(next(n for n in (1, 2, 5, 10) if n * power >= rough) * power))
    return [*range(0, max(1, highest) + step, step)]


def _below(frame: _Frame, labels: Sequence[tuple[float, str]]) -> list[svg.Element]:
    # Only so many words as have room beside each other.
    longest = max((len(label) for _, label in labels), default=1) * _LETTER + 14
    every = max(1, math.ceil(len(labels) * longest / frame.across))
    drawn: list[svg.Element] = []
    for share, label in labels[::every]:
        half = len(label) * _LETTER / 2
        x = min(max(frame.x(share), frame.left + half - 8), frame.width - half)
        drawn.append(_text(round(x, 1), frame.height - 6, label, "middle"))
    return drawn


def _number(number: int) -> str:
    # A blank between thousands is read the same in each language.
    return f"{number:,}".replace(",", "\N{NO-BREAK SPACE}")


def _safe(text: str) -> str:
    return escape(visible(text))


def _text(x: float, y: float, text: str, anchor: str) -> svg.Text:
    return svg.Text(x=x, y=y, text=_safe(text), text_anchor=anchor)  # type: ignore[arg-type]


def _described(words: Words, frame: _Frame, drawn: list[svg.Element]) -> Markup:
    own = f"{words.name}-{frame.kind}"
    lines: list[svg.Element] = []
    for tick in frame.ticks:
        y = frame.y(tick)
        ruled = [svg.MoveTo(frame.left, y), svg.HorizontalLineTo(frame.width - 4)]
        lines.append(svg.Path(d=ruled, class_=["axis" if tick == 0 else "grid"]))
        lines.append(_text(frame.left - 6, y + 4, _number(tick), "end"))
    picture = svg.SVG(
        viewBox=svg.ViewBoxSpec(0, 0, frame.width, frame.height),
        class_=["chart", frame.kind],
        extra={"role": "img", "aria-labelledby": f"{own}-title {own}-desc"},
        elements=[
            svg.Title(id=f"{own}-title", text=_safe(words.title)),
            svg.Desc(id=f"{own}-desc", text=_safe(words.description)),
            *lines,
            *drawn,
        ],
    )
    return Markup(picture.as_str())  # noqa: S704 - each text in it was escaped
