"""What a network costs, layer by layer: the cells of its table, for the terminal and for the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..cost import CostReport, LayerReport
from ..cost.measure import PJ_PER_AC, PJ_PER_MAC
from ..units import count, energy

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["caption", "cells", "table"]


def caption(report: CostReport) -> str:
    """What was counted, on what, and against what."""
    once = [layer.label for layer in report.layers if layer.presentations == 1 < report.time_steps]
    averages = [layer.label for layer in report.layers if layer.window > 1]
    first = report.layers[0]
    told = f" Computed once, not T times: {', '.join(once)}." if once else ""
    if not once and report.time_steps > 1:
        kind = "spikes: ACs" if first.spiking else "values: MACs"
        told = f" Frames go into {first.label} at every time step, as {kind}."
    if averages:
        told += f" Behind an average pool ({', '.join(averages)}) each spike of a window counts by itself."
    return (
        f"SynOps: {count(report.synops)} = ACs (spiking input: rate x T x connections) + MACs (analog input), per "
        f"sample, over {report.samples:,} samples. That is {report.synops_share:.1%} of the "
        f"{count(report.dense_macs)} MACs of the unpruned layers x T = {report.time_steps}."
        f"{told} Energy: {PJ_PER_MAC} pJ per MAC, {PJ_PER_AC} pJ per AC."
    )


def cells(report: CostReport) -> list[list[str]]:
    """The table as text: headers, a row for each layer, totals."""
    head = ["Layer", "Parameters", "Connectivity", "Rate x T", "MACs", "ACs", "Energy"]
    rates = [f"{layer.input_rate:.3f}" if layer.spiking else "analog" for layer in report.layers]
    layers = [
        _cells(layer.label, f"{rate} x {layer.presentations:g}", layer)
        for layer, rate in zip(report.layers, rates, strict=True)
    ]
    return [head, *layers, _cells("total", "", report)]


def table(report: CostReport, title: str = "Cost per sample") -> Table:
    """A table for the terminal."""
    from rich import box
    from rich.table import Table

    shown = Table(title=title, caption=caption(report), caption_justify="left", show_footer=True, box=box.SIMPLE_HEAD)
    head, *rows, total = cells(report)
    for column, footer in zip(head, total, strict=True):
        first = column == head[0]
        shown.add_column(
            column,
            footer,
            justify="left" if first else "right",
            no_wrap=not first,
            overflow="fold" if first else "ellipsis",
        )
    for row in rows:
        shown.add_row(*row)
    return shown


def _cells(label: str, rate: str, cost: LayerReport | CostReport) -> list[str]:
    return [
        label,
        f"{count(cost.active_parameters)} / {count(cost.parameters)}",
        f"{cost.connectivity:.1%}",
        rate,
        count(cost.macs),
        count(cost.acs),
        energy(cost.energy_pj),
    ]
