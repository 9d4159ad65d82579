"""`python -m benchmarks.plot [out.png]`: every stored ratio as a share of its bar, device by device.

Beyond 1 the bar is reached. Of a case with many figures, the lowest and the highest are shown.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from sca.pictures import LIGHT, drawing, png

from . import results

MANY = 20  # figures of a case

Row = tuple[str, float, float, float]


def shares() -> dict[str, list[Row]]:
    """By device, for every figure with a bar: label; median, p20, p80 of ratio / bar (an upper bound: bar / ratio)."""
    found: dict[str, list[Row]] = {}
    for result in results.stored():
        rows = [
            _row(result["case"], figure, peer)
            for figure in result["figures"]
            for peer in figure["bars"]
            if peer in figure["ratios"]
        ]
        if len(rows) > MANY:
            ends = {"lowest": min(rows, key=lambda row: row[1]), "highest": max(rows, key=lambda row: row[1])}
            rows = [(f"{row[0]}, {which} of {len(rows)}", *row[1:]) for which, row in ends.items()]
        if rows:
            found.setdefault(result["conditions"]["device"], []).extend(rows)
    return found


def _row(case: str, figure: dict[str, Any], peer: str) -> Row:
    bar, ratio = figure["bars"][peer]["text"], figure["ratios"][peer]
    limit = float(re.search(r"[\d.]+", bar)[0])
    share = [ratio[key] / limit for key in ("median", "p20", "p80")]
    if bar.startswith("<="):
        share = [1 / value for value in share]
    variant = ", ".join(str(value) for value in figure["variant"].values())
    return (f"{case} {variant} / {peer}".replace("  ", " "), share[0], *sorted(share[1:]))


def plot(path: Path) -> None:
    """Write the picture."""
    devices = shares()
    heights = [len(rows) for rows in devices.values()]
    with drawing() as figure_of:
        figure = figure_of(figsize=(9, len(devices) + 0.24 * sum(heights)), layout="constrained")
        panels = figure.subplots(len(devices), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (device, rows) in zip(panels, devices.items(), strict=True):
            for at, (_, median, low, high) in enumerate(rows):
                axes.barh(at, median - 1, left=1, color=LIGHT["kept" if median >= 1 else "cut"], alpha=0.8)
                axes.plot([low, high], [at, at], color=LIGHT["ink"], linewidth=1)
            axes.axvline(1, color=LIGHT["ink"], linewidth=0.8)
            axes.set_yticks(range(len(rows)), [label for label, *_ in rows])
            axes.tick_params("y", length=0)
            axes.tick_params("x", labelbottom=True)
            axes.grid(axis="x")
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.set_xticks([0.25, 0.5, 1, 2, 4], ["1/4", "1/2", "1", "2", "4"])
            axes.minorticks_off()
            axes.set_title(device)
            axes.spines["left"].set_visible(False)
            axes.margins(y=0.01)
        figure.suptitle("speed-up / bar: median, line from p20 to p80; blue where the bar is reached, orange elsewhere")
        path.write_bytes(png(figure))


if __name__ == "__main__":
    plot(Path(sys.argv[1] if len(sys.argv) > 1 else results.FOLDER / "bars.png"))
