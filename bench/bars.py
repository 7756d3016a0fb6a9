"""A picture of figures beside each other: horizontal bars, as SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape

COLOURS = ("#3465a4", "#c17d11", "#4e9a06", "#a40000", "#75507b", "#babdb6")
BAR, GAP, TOP, LONGEST, LETTER = 11, 9, 46, 460, 6.6  # pixels; LONGEST: the bar of the largest figure


def bars(
    title: str,
    names: Sequence[str],
    series: Mapping[str, Sequence[float]],
    unit: str = "",
    mark: float | None = None,
) -> str:
    """A group of bars by name, one of each series, and a line at `mark`; what is not a number has no bar."""
    most = max([mark or 0.0, *(value for each in series.values() for value in each if math.isfinite(value))])
    scale = LONGEST / most if most > 0 else 0.0
    left = 16 + LETTER * max((len(name) for name in names), default=0)
    group = BAR * len(series) + GAP
    bottom = TOP + len(names) * group
    legend = len(series) if len(series) > 1 else 0
    width = max(left + LONGEST + 70, LETTER * max(len(each) for each in (title, *series)) + 60)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{bottom + 20 * legend + 12}" '
        'font-family="sans-serif" font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="12" y="20" font-weight="bold">{escape(title)}</text>',
    ]
    if mark is not None:
        x = left + scale * mark
        parts.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom}" stroke="#555"/>')
        parts.append(f'<text x="{x + 2:.1f}" y="{TOP - 8}" fill="#555">{mark:g}{unit}</text>')
    for at, name in enumerate(names):
        y = TOP + at * group
        middle = y + BAR * len(series) / 2 + 4
        parts.append(f'<text x="{left - 8:.1f}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for index, values in enumerate(series.values()):
            if not math.isfinite(values[at]):
                continue
            long, top = scale * values[at], y + index * BAR
            colour = COLOURS[index % len(COLOURS)]
            parts.append(
                f'<rect x="{left:.1f}" y="{top}" width="{long:.1f}" height="{BAR - 1}" fill="{colour}"/>'
            )
            parts.append(
                f'<text x="{left + long + 5:.1f}" y="{top + BAR - 2}" font-size="10">'
                f"{values[at]:.3g}{unit}</text>"
            )
    for index, name in enumerate(list(series)[:legend]):
        y, colour = bottom + 20 * (index + 1), COLOURS[index % len(COLOURS)]
        parts.append(f'<rect x="12" y="{y - 10}" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="30" y="{y}">{escape(name)}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
