"""A measurement as tables and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table

from ..files import write_whole
from ..pictures import LIGHT, MARKERS, SERIES, drawing, png
from .measure import OURS

if TYPE_CHECKING:
    from matplotlib.figure import Figure as Picture

Figure = dict[str, Any]

_DASHES = ("-.", "--", ":")
_AXES = {"densities": "density (share of active channels)", "time_steps": "time steps T", "batch_size": "batch size"}


def table(result: dict[str, Any]) -> Group:
    """A table for each mode, a line for each setting and party. ``x dense``: samples per second over those of our dense
    network in the same rounds; ours ``of`` the ideal, 1 / d²."""
    config = result["config"]
    source = "CUDA allocator" if config["device"].startswith("cuda") else "torch's allocations"
    # What all lines have in common stands above them, so that a terminal of 80 columns holds the rest.
    headers = {"time_steps": "T", "batch_size": "batch"}
    swept = [name for name in headers if len(config[name]) > 1]
    common = ["sequences"] if config.get("sequences") else []
    common += [f"{headers[name]} {config[name][0]}" for name in headers if name not in swept]
    tables = []
    for mode in config["modes"]:
        shown = Table(
            *(headers[name] for name in swept),
            *("network", "active", "samples/s", "p20 to p80", "x dense", "saved", "peak"),
            title=", ".join([config["model"], *common, mode]),
            caption=f"saved for the backward pass, and peak of a step ({source}), in MiB",
            box=SIMPLE_HEAD,
            pad_edge=False,
        )
        last = None
        for figure in result["figures"]:
            if figure["mode"] != mode:
                continue
            setting = [str(figure[name]) for name in swept]
            if last not in (None, setting):
                shown.add_section()
            last = setting
            speed = figure["samples_per_second"]
            if speed is None:
                shown.add_row(*setting, figure["party"], "", figure["note"])
                continue
            gain = f"{speed['median'] / _dense(result, figure)['samples_per_second']['median']:.2f}"
            shown.add_row(
                *setting,
                _known(figure),
                f"{figure['active']:.0%}",
                f"{speed['median']:,.1f}",
                f"{speed['p20']:,.1f} to {speed['p80']:,.1f}",
                f"{gain} of {figure['active'] ** -2:.2f}" if figure["party"] == OURS else gain,
                *(_mebibytes(figure[key]) for key in ("saved_bytes", "peak_bytes")),
            )
        tables.append(shown)
    return Group(*tables)


def _known(figure: Figure) -> str:
    """A party and the backend that ran it, where it is ours."""
    backends = figure.get("backends")  # not recorded in files of before
    return f"{figure['party']} ({', '.join(backends)})" if backends else figure["party"]


def plot(path: Path, result: dict[str, Any]) -> None:
    """Write the PNG: milliseconds per batch and peak memory, a row for each mode, over density (with the ideal d²), T
    or batch size."""
    with drawing() as picture:
        write_whole(path, png(_drawn(picture, result)))


def _drawn(new_picture: type[Picture], result: dict[str, Any]) -> Picture:
    config = result["config"]
    axis = next((name for name in ("time_steps", "batch_size") if len(config[name]) > 1), "densities")
    by_density = axis == "densities"
    picture = new_picture(figsize=(8, 0.8 + 3 * len(config["modes"])), layout="constrained")
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
            axes.set_title(f"{mode}: {label}")
            axes.set_xlabel(_AXES[axis])
            axes.grid()
        if by_density:
            _ideal(time, figures)
    picture.legend(*rows[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    told = result["conditions"]
    fixed = {"time_steps": "T = ", "batch_size": "batch "}
    settings = ", ".join(text + str(config[name][0]) for name, text in fixed.items() if name != axis)
    picture.suptitle(
        f"{config['model']}, {config['size']}x{config['size']}, {settings}, {config['precision']}\n{told['device']}, "
        f"threads: {told['threads']}"
    )
    return picture


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


def _curve(axes: Any, x: list[float], figures: list[Figure], value: Any, label: str, **style: Any) -> None:
    middle, below, above = zip(*map(value, figures), strict=True)
    axes.errorbar(x, middle, (below, above), label=label, **style)


def _peer_style(place: int) -> dict[str, Any]:
    """How a peer is drawn in all pictures: those whose figures are alike show through each other's dashes."""
    return {"color": SERIES[1 + place % (len(SERIES) - 1)], "linestyle": _DASHES[place % len(_DASHES)]}


def _over_density(axes: Any, figures: list[Figure], value: Any) -> None:
    ours = [f for f in figures if f["party"] == OURS]
    _curve(axes, [f["active"] for f in ours], ours, value, OURS, color=LIGHT["kept"], marker="o")
    for place, peer in enumerate(f for f in figures if f["party"] != OURS):
        axes.axhline(value(peer)[0], label=f"{peer['party']}, dense", **_peer_style(place))
    axes.set_xlim(0, 1.03)
    axes.set_ylim(bottom=0)


def _ideal(axes: Any, figures: list[Figure]) -> None:
    """Our dense time, times d²."""
    dense = next(_milliseconds(f)[0] for f in figures if f["party"] == OURS and f["density"] == 1)
    shares = [step / 50 for step in range(51)]
    axes.plot(shares, [dense * d**2 for d in shares], ":", color=LIGHT["muted"], label="ideal: dense x d²")


def _over_setting(axes: Any, figures: list[Figure], value: Any, axis: str) -> None:
    parties = list(dict.fromkeys((f["party"], f["density"]) for f in figures))
    densities = [density for party, density in parties if party == OURS]
    peers = [party for party, _ in parties if party != OURS]
    for party, density in parties:
        own = [f for f in figures if (f["party"], f["density"]) == (party, density)]
        if party == OURS:  # the sparser the paler
            place, label = densities.index(density), f"{party}, density {density:g}"
            style = {"color": LIGHT["kept"], "alpha": 1 - 0.6 * place / max(1, len(densities) - 1)}
            style["marker"] = MARKERS[place % len(MARKERS)]
        else:
            label, style = f"{party}, dense", _peer_style(peers.index(party))
        _curve(axes, [f[axis] for f in own], own, value, label, **style)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_major_formatter("{x:g}")
