"""`python -m benchmarks.plot [out.png]`: every stored ratio as a share of its bar, device by device.

Beyond 1 the bar is reached.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sca.pictures import drawing, png

from . import results


def shares() -> dict[str, list[tuple[str, float, float, float]]]:
    """By device, for every figure with a bar: label; median, p20, p80 of ratio / bar (an upper bound: bar / ratio)."""
    found = {}
    for result in results.stored():
        for figure in result["figures"]:
            for peer, bar in figure["bars"].items():
                if peer not in figure["ratios"]:
                    continue
                limit = float(re.search(r"[\d.]+", bar["text"])[0])
                ratio = figure["ratios"][peer]
                share = [ratio[key] / limit for key in ("median", "p20", "p80")]
                if bar["text"].startswith("<="):
                    share = [1 / value for value in share]
                variant = ", ".join(str(value) for value in figure["variant"].values())
                row = (f"{result['case']} {variant} / {peer}".replace("  ", " "), share[0], *sorted(share[1:]))
                found.setdefault(result["conditions"]["device"], []).append(row)
    return found


def plot(path: Path) -> None:
    """Write the picture."""
    devices = shares()
    heights = [len(rows) for rows in devices.values()]
    with drawing() as figure_of:
        figure = figure_of(figsize=(9, len(devices) + 0.28 * sum(heights)), layout="constrained", dpi=150)
        panels = figure.subplots(len(devices), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (device, rows) in zip(panels, devices.items(), strict=True):
            for at, (_, median, low, high) in enumerate(rows):
                axes.barh(at, median, color="tab:green" if median >= 1 else "tab:red", alpha=0.7)
                axes.plot([low, high], [at, at], color="black", linewidth=1)
            axes.axvline(1, color="black", linestyle="--", linewidth=1)
            axes.set_yticks(range(len(rows)), [label for label, *_ in rows], fontsize=8)
            axes.invert_yaxis()
            axes.set_xscale("log")
            axes.set_title(device, fontsize=9)
            axes.margins(y=0.01)
        panels[-1].set_xlabel("speed-up / bar (median; line: p20 to p80)")
        path.write_bytes(png(figure))


if __name__ == "__main__":
    plot(Path(sys.argv[1] if len(sys.argv) > 1 else results.FOLDER / "bars.png"))
