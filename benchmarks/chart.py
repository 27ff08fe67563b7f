"""Draw the cost of a token, or of an answer, by side: bars as an SVG (W3C, Scalable Vector Graphics 1.1)."""

from __future__ import annotations

from typing import TYPE_CHECKING
from xml.sax.saxutils import escape

if TYPE_CHECKING:
    from collections.abc import Mapping

LABELS, BARS, ROW, HEAD = 130, 430, 18, 34


def chart(costs: Mapping[str, Mapping[str, float]]) -> str:
    """Return the chart of `costs`: microseconds of CPU by scenario and side. Each scenario has a scale of its own."""
    parts: list[str] = []
    y = 8
    for scenario, sides in costs.items():
        if not sides:
            continue
        y += HEAD
        most = max(sides.values())
        parts.append(f'<text x="0" y="{y - 12}" font-weight="bold">{escape(scenario)}, µs of CPU</text>')
        for side, cost in sorted(sides.items(), key=lambda item: item[1]):
            width = max(1.0, BARS * cost / most)
            color = "#d9480f" if side.startswith("ours") else "#868e96"
            parts += [
                f'<text x="{LABELS - 6}" y="{y + 11}" text-anchor="end">{escape(side)}</text>',
                f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{ROW - 4}" fill="{color}"/>',
                f'<text x="{LABELS + width + 5:.1f}" y="{y + 11}">{cost:,.1f}</text>',
            ]
            y += ROW
    width = LABELS + BARS + 70
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 8}" width="{width}"',
            ' font-family="sans-serif" font-size="12" fill="#212529">',
            f'<rect width="{width}" height="{y + 8}" fill="#fff"/>',
            *parts,
            "</svg>",
            "",
        ]
    )
