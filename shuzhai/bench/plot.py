"""A plot of a sweep as SVG, without a plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDTH, _HEIGHT, _MARGIN = 460, 300, 56
# On the right, for the names of the lines; and between two of them.
_NAMES, _APART = 64, 12
_COLOURS = ("#1f6feb", "#7a8594")

Points = Sequence[tuple[float, float]]


def sweep_svg(title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Tokens a second against the batch and against the context, both axes logarithmic."""
    panels = []
    for place, axis in enumerate(("batch", "context")):
        found = [result for result in results if result["axis"] == axis]
        lines = {
            "measured": [(r[axis], r["tokens_per_s"]) for r in found],
            "limit": [(r[axis], r["limit_tokens_per_s"]) for r in found],
        }
        if found:
            panels.append(_panel(f"tokens/s against {axis}", lines, place * _WIDTH))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{2 * _WIDTH}" height="{_HEIGHT + 30}" '
        'font-family="sans-serif" font-size="11">'
        '<rect width="100%" height="100%" fill="white"/>'
        f'<text x="{_WIDTH}" y="18" text-anchor="middle" font-size="13">{escape(title)}</text>'
        f"{''.join(panels)}</svg>\n"
    )


def _panel(name: str, lines: Mapping[str, Points], left: float) -> str:
    xs = [x for points in lines.values() for x, _ in points]
    ys = [y for points in lines.values() for _, y in points]
    x_low, x_high = min(xs), max(max(xs), 2 * min(xs))
    ticks = _ticks(ys)
    y_low, y_high = ticks[0], ticks[-1]

    def place(x: float, y: float) -> tuple[float, float]:
        across = math.log(x / x_low) / math.log(x_high / x_low)
        up = math.log(y / y_low) / math.log(y_high / y_low)
        wide, high = _WIDTH - _MARGIN - _NAMES, _HEIGHT - 1.5 * _MARGIN
        return left + _MARGIN + across * wide, 30 + _MARGIN / 2 + (1 - up) * high

    parts = [_grid(place, sorted(set(xs)), ticks, (x_low, x_high))]
    last = math.inf
    for (label, points), colour in zip(lines.items(), _COLOURS, strict=True):
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        end_x, end_y = place(*points[-1])
        last = min(end_y + 4, last - _APART)  # the limit is above what was measured
        parts.append(f'<text x="{end_x + 8:.1f}" y="{last:.1f}" fill="{colour}">{label}</text>')
    for x, y in lines["measured"]:
        across, down = place(x, y)
        parts.append(
            f'<circle cx="{across:.1f}" cy="{down:.1f}" r="2.5" fill="{_COLOURS[0]}"/>'
            f'<text x="{across + 3:.1f}" y="{down + 14:.1f}" font-size="9">{_rounded(y)}</text>'
        )
    middle = left + _WIDTH / 2
    parts.append(f'<text x="{middle}" y="{30 + _MARGIN / 4}" text-anchor="middle">{name}</text>')
    return "".join(parts)


def _grid(
    place: Any, xs: Sequence[float], ticks: Sequence[float], x_bounds: tuple[float, float]
) -> str:
    parts = []
    for x in xs:
        at, bottom = place(x, ticks[0])
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 16:.1f}" text-anchor="middle">{_short(x)}</text>'
        )
    for y in ticks:
        (start, at), (end, _) = place(x_bounds[0], y), place(x_bounds[1], y)
        parts.append(
            f'<line x1="{start:.1f}" y1="{at:.1f}" x2="{end:.1f}" y2="{at:.1f}" stroke="#ddd"/>'
            f'<text x="{start - 6:.1f}" y="{at + 4:.1f}" text-anchor="end">{_rounded(y)}</text>'
        )
    return "".join(parts)


def _ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten around the values; 1, 2 and 5 times these where they are within two of them."""
    lowest, highest = math.log10(min(values)), math.log10(max(values))
    factors = (1, 2, 5) if highest - lowest < 1 else (1,)
    powers = range(math.floor(lowest), math.ceil(highest) + 2)
    ticks = [factor * 10.0**power for power in powers for factor in factors]
    first = max(i for i, tick in enumerate(ticks) if tick <= min(values) or i == 0)
    last = min(i for i, tick in enumerate(ticks) if tick >= max(values) and i > first)
    return ticks[first : last + 1]


def _short(number: float) -> str:
    """Of tokens, which come in powers of two."""
    if number >= 1024 and number % 1024 == 0:
        return f"{number / 1024:.0f}k"
    return f"{number:g}"


def _rounded(number: float) -> str:
    """To three digits at most: 757, 58.3k, 1M."""
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * size:
            return f"{number / size:.3g}{letter}"
    return f"{number:.3g}"
