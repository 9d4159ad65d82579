"""A measurement as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.table import Table

from .measure import OURS

Figure = dict[str, Any]

_COLOURS = ("#1b6ca8", "#e08a1e", "#2f9e60", "#8e5ba6", "#b23a48", "#7a7a7a")
_AXES = {"densities": "active channels (share)", "time_steps": "time steps T", "batch_size": "batch size"}


def table(result: dict[str, Any]) -> Table:
    """One line for each mode, setting and party; ``x dense`` is against our dense network in the same round."""
    device = result["config"]["device"]
    source = "CUDA allocator" if device.startswith("cuda") else "torch's allocations"
    # What is the same in all lines stands above them, so that a terminal of 80 columns holds the rest.
    headers = {"time_steps": "T", "batch_size": "batch"}
    swept = [name for name in headers if len(result["config"][name]) > 1]
    fixed = ", ".join(f"{headers[name]} {result['config'][name][0]}" for name in headers if name not in swept)
    columns = ("network", "active", "samples/s", "p20 to p80", "x dense", "1/d²", "saved", "peak", "firing")
    shown = Table("mode", *(headers[name] for name in swept), *columns, title=f"{result['config']['model']}, {fixed}")
    shown.caption = f"saved for backward, and peak of a step ({source}), in MiB"
    last = None
    for figure in result["figures"]:
        setting = (figure["mode"], figure["time_steps"], figure["batch_size"])
        if last not in (None, setting):
            shown.add_section()
        last = setting
        keys = figure["mode"], *(str(figure[name]) for name in swept)
        speed = figure["samples_per_second"]
        if speed is None:
            shown.add_row(*keys, figure["party"], "", figure["note"])
            continue
        shown.add_row(
            *keys,
            figure["party"],
            f"{figure['active']:.0%}",
            f"{speed['median']:,.0f}",
            f"{speed['p20']:,.0f} to {speed['p80']:,.0f}",
            f"{speed['median'] / _dense(result, figure)['samples_per_second']['median']:.2f}",
            f"{figure['active'] ** -2:.1f}" if figure["party"] == OURS else "",
            *(_mebibytes(figure[key]) for key in ("saved_bytes", "peak_bytes")),
            "" if figure["firing_rate"] is None else f"{figure['firing_rate']:.0%}",
        )
    return shown


def plot(path: Path, result: dict[str, Any]) -> None:
    """Write the PNG: milliseconds per batch and peak memory, a row for each mode, over density (with the ideal d²), T
    or batch size."""
    from matplotlib.figure import Figure as Picture  # half a second that only the end of a benchmark needs

    config = result["config"]
    axis = next((name for name in ("time_steps", "batch_size") if len(config[name]) > 1), "densities")
    by_density = axis == "densities"
    picture = Picture(figsize=(10, 0.8 + 3.6 * len(config["modes"])), layout="constrained", dpi=120)
    rows = picture.subplots(len(config["modes"]), 2, squeeze=False)
    for mode, (time, memory) in zip(config["modes"], rows, strict=True):
        figures = [f for f in result["figures"] if f["mode"] == mode and f["samples_per_second"]]
        for axes, value, label in (
            (time, _milliseconds, "ms per batch"),
            (memory, _peak, "peak memory of a step (MiB)"),
        ):
            if by_density:
                _over_density(axes, figures, value)
            else:
                _over_setting(axes, figures, value, axis)
            axes.set_title(mode)
            axes.set_xlabel(_AXES[axis])
            axes.set_ylabel(label)
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
        if by_density:
            _ideal(time, figures)
    picture.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    told = result["conditions"]
    fixed = {"time_steps": "T = ", "batch_size": "batch "}
    settings = ", ".join(text + str(config[name][0]) for name, text in fixed.items() if name != axis)
    picture.suptitle(
        f"{config['model']}, {config['size']}x{config['size']}, {settings}, {config['precision']}\n{told['device']}, "
        f"threads: {told['threads']}",
        fontsize=10,
    )
    picture.savefig(path)


def _dense(result: dict[str, Any], of: Figure) -> Figure:
    """Ours at density 1, in the same mode and setting."""
    same = ("mode", "time_steps", "batch_size")
    return next(
        f
        for f in result["figures"]
        if f["party"] == OURS and f["density"] == 1 and all(f[key] == of[key] for key in same)
    )


def _mebibytes(count: int | None) -> str:
    return "" if count is None else f"{count / 2**20:,.0f}"


def _milliseconds(figure: Figure) -> tuple[float, float, float]:
    speed = figure["samples_per_second"]
    low, middle, high = sorted(figure["batch_size"] * 1e3 / speed[key] for key in ("p80", "median", "p20"))
    return middle, middle - low, high - middle


def _peak(figure: Figure) -> tuple[float, float, float]:
    return figure["peak_bytes"] / 2**20, 0.0, 0.0


def _curve(axes: Any, x: list[float], figures: list[Figure], value: Any, label: str, colour: str) -> None:
    middle, below, above = zip(*map(value, figures), strict=True)
    axes.errorbar(x, middle, (below, above), marker="o", markersize=4, capsize=3, color=colour, label=label)


def _over_density(axes: Any, figures: list[Figure], value: Any) -> None:
    ours = [f for f in figures if f["party"] == OURS]
    _curve(axes, [f["active"] for f in ours], ours, value, OURS, _COLOURS[0])
    peers = [f for f in figures if f["party"] != OURS]
    for peer, colour in zip(peers, _COLOURS[1:], strict=False):
        axes.axhline(value(peer)[0], linestyle="-.", color=colour, label=f"{peer['party']}, dense")
    axes.set_xlim(0, 1.03)
    axes.set_ylim(bottom=0)


def _ideal(axes: Any, figures: list[Figure]) -> None:
    """Our dense time, times d²."""
    dense = next(_milliseconds(f)[0] for f in figures if f["party"] == OURS and f["density"] == 1)
    shares = [step / 50 for step in range(51)]
    axes.plot(shares, [dense * d**2 for d in shares], "--", color="#444444", linewidth=1, label="ideal: dense x d²")


def _over_setting(axes: Any, figures: list[Figure], value: Any, axis: str) -> None:
    parties = dict.fromkeys((f["party"], f["density"]) for f in figures)
    for (party, density), colour in zip(parties, _COLOURS * len(parties), strict=False):
        own = [f for f in figures if (f["party"], f["density"]) == (party, density)]
        label = f"{party}, density {density:g}" if party == OURS else f"{party}, dense"
        _curve(axes, [f[axis] for f in own], own, value, label, colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
