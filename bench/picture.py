"""The latencies as a picture: a line for each candidate, so that little changes between runs."""

from __future__ import annotations

import math
import statistics
from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from bench.results import Results


_NAMES, _PLOT, _ROW, _TOP = 270, 560, 20, 40  # in pixels
_TITLE = "From file complete to callback received: the median (dot), and a bar to the p99"
_TICKS_MS = (0.1, 1, 10, 100, 1000)
_COLOURS = {"floor": "#888", "paliadin-sidecar": "#06c", "…": "#06c", "before": "#c60"}


def svg(results: Results) -> str:
    """Each candidate's latencies on a logarithmic scale: the median, and a bar to the p99.

    Figures have one decimal, of pixels, and equal results give equal text.
    """
    found = {name: one for name, one in results.latency.items() if one.all_ms}
    bottom = _TOP + _ROW * len(found)
    width, height = _NAMES + _PLOT + 30, bottom + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">',
        '<g font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
        f'<text x="8" y="20">{_TITLE}</text>',
    ]
    for tick in _TICKS_MS:
        x = _x(tick)
        lines.append(
            f'<path d="M{x:.1f} {_TOP - 6}V{bottom}" stroke="#ddd"/>'
            f'<text x="{x:.1f}" y="{bottom + 18}" text-anchor="middle">{tick:g} ms</text>'
        )
    for number, (name, one) in enumerate(found.items()):
        y = _TOP + _ROW * number + _ROW // 2
        median, p99 = _x(statistics.median(one.all_ms)), _x(one.p99_ms)
        colour = next((c for start, c in _COLOURS.items() if name.startswith(start)), "#444")
        lines.append(
            f'<text x="8" y="{y + 4}">{escape(name)}</text>'
            f'<path d="M{median:.1f} {y}H{p99:.1f}" stroke="{colour}" stroke-width="6"/>'
            f'<circle cx="{median:.1f}" cy="{y}" r="5" fill="{colour}"/>'
        )
    return "\n".join([*lines, "</g></svg>"]) + "\n"


def _x(ms: float) -> float:
    low, high = math.log10(_TICKS_MS[0]), math.log10(_TICKS_MS[-1])
    share = (math.log10(max(ms, _TICKS_MS[0])) - low) / (high - low)
    return _NAMES + min(1.0, share) * _PLOT
