"""Parameters, connectivity, operations and energy of a network on given data."""

from __future__ import annotations

import functools
import importlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels.nn import reset

from ..structure.groups import Axis, carried, channel_axes, channel_dim, is_depthwise, parameter_axes
from ..structure.untouched import untouched
from .layers import inputs_of, weight_layers, weight_uses, weights_per_pair
from .shares import weights_and_masks

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["CostReport", "LayerReport", "report_cost"]

#: Energy of one 32-bit operation in a 45 nm process, in pJ (Horowitz, "Computing's energy problem", ISSCC 2014).
PJ_PER_MAC = 4.6
PJ_PER_AC = 0.9


@dataclass(frozen=True)
class LayerReport:
    """One convolution or linear layer; operations are means per sample.

    Attributes:
        name: of the module.
        label: short name for tables: that of the group it alone produces, else ``name``.
        parameters, active_parameters: weight and bias; an entry is active when all channels that it connects are.
        weights, active_weights: the same for the weight alone.
        presentations: how often the layer runs for one sample: the number of time steps, or 1 where it is computed
            once.
        spiking: whether its input was 0 or 1 throughout, or averages of such.
        input_rate: share of the values of its input that were not 0 (behind the pools, where there are any).
        dense_macs: multiply-accumulates of the unpruned layer on all time steps.
        macs: multiply-accumulates that the layer needs: all of its active connections, if its input is not spiking.
        acs: accumulates that it needs, if its input is spiking: one for each connection of each spike. Behind an
            average pool each spike of a window counts by itself, as it adds its part of the weight.
        window: spikes that an input of 1 stands for: 1, or those that an average pool in front takes the mean of.
    """

    name: str
    label: str
    parameters: int
    active_parameters: int
    weights: int
    active_weights: int
    presentations: float
    spiking: bool
    input_rate: float
    dense_macs: float
    macs: float
    acs: float
    window: int = 1

    @property
    def connectivity(self) -> float:
        """Active / all weights."""
        return self.active_weights / self.weights

    @property
    def energy_pj(self) -> float:
        """Energy estimate per sample in pJ: 4.6 per MAC, 0.9 per AC."""
        return PJ_PER_MAC * self.macs + PJ_PER_AC * self.acs


@dataclass(frozen=True)
class CostReport:
    """A network's cost: what its channel groups leave active, and what that does on the data that was measured.

    Attributes:
        layers: its convolutions and linear layers.
        samples: number of samples measured.
        time_steps: T, which the dense operations are counted for.
        parameters, active_parameters: of the whole model, batch norms and neurons included.
    """

    layers: tuple[LayerReport, ...]
    samples: int
    time_steps: int
    parameters: int
    active_parameters: int

    @property
    def connectivity(self) -> float:
        """Active / all weights of the layers: SCA's "Conn."."""
        return sum(layer.active_weights for layer in self.layers) / sum(layer.weights for layer in self.layers)

    @property
    def macs(self) -> float:
        """Multiply-accumulates per sample: the layers with an analog input, each as often as it is computed."""
        return sum(layer.macs for layer in self.layers)

    @property
    def acs(self) -> float:
        """Accumulates per sample: the layers with a spiking input."""
        return sum(layer.acs for layer in self.layers)

    @property
    def synops(self) -> float:
        """Synaptic operations per sample: ``acs + macs``."""
        return self.acs + self.macs

    @property
    def dense_macs(self) -> float:
        """Multiply-accumulates per sample of the unpruned layers on T time steps: what SynOps are a share of."""
        return sum(layer.dense_macs for layer in self.layers)

    @property
    def synops_share(self) -> float:
        """``synops / dense_macs``."""
        return self.synops / self.dense_macs

    @property
    def energy_pj(self) -> float:
        """Energy estimate per sample in pJ: 4.6 per MAC, 0.9 per AC."""
        return sum(layer.energy_pj for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers: the fields, the totals, and the layers as a list of dicts."""
        totals = ("connectivity", "macs", "acs", "synops", "dense_macs", "synops_share", "energy_pj")
        layers = [{**asdict(layer), "connectivity": layer.connectivity} for layer in self.layers]
        return {**asdict(self), **{name: getattr(self, name) for name in totals}, "layers": layers}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CostReport:
        """The report that :meth:`to_dict` was made of.

        Raises:
            KeyError, TypeError: the values are something else.
        """
        layers = tuple(
            LayerReport(
                **{f.name: layer[f.name] for f in fields(LayerReport) if f.default is MISSING or f.name in layer}
            )
            for layer in values["layers"]
        )
        return cls(**{f.name: values[f.name] for f in fields(cls)} | {"layers": layers})

    # How a report looks is for sca.report to say, which this package must not import: it is looked up when asked for.

    def table(self, title: str = "Cost per sample") -> Table:
        """A table for the terminal, see :func:`sca.report.cost.table`."""
        return importlib.import_module("sca.report.cost").table(self, title)

    @property
    def caption(self) -> str:
        """What was counted, and against what, see :func:`sca.report.cost.caption`."""
        return importlib.import_module("sca.report.cost").caption(self)

    def cells(self) -> list[list[str]]:
        """The table as text, see :func:`sca.report.cost.cells`."""
        return importlib.import_module("sca.report.cost").cells(self)


def report_cost(
    model: nn.Module, loader: Iterable[Any], time_steps: int | None = None, max_batches: int | None = None
) -> CostReport:
    """Measure a network in eval mode; its modes, buffers, activity and neuron states are put back afterwards.

    Firing rates are those of each layer's own input, from exact counts of its nonzero values. Every layer counts, the
    classifier included; the first one counts as often as it is computed, and the report says how often.

    Args:
        model: with channel groups or without.
        loader: yields inputs [N, ...] (or time-major [T, N, C, H, W]), or tuples that begin with inputs and labels [N].
        time_steps: T of the dense operations; None: the most often that a layer runs for one sample.
        max_batches: stop after so many; None: all.

    Raises:
        ValueError: the loader yields nothing, or a number is below 1.
        TypeError: a batch does not begin with a tensor.
    """
    checks.instance("model", model, nn.Module, "a torch.nn.Module")
    if not isinstance(loader, Iterable) or (isinstance(loader, Tensor) and loader.dim() == 0):
        raise TypeError(f"loader: expected an iterable of batches, got {checks.describe(loader)}")
    for name, value in ("time_steps", time_steps), ("max_batches", max_batches):
        if value is not None:
            checks.integer(name, value)
    layers = weight_layers(model)
    counts = {name: _Counts() for name in layers}
    hooks = [
        layer.register_forward_hook(functools.partial(_count_pass, counts[name])) for name, layer in layers.items()
    ]
    modes = [(module, module.training) for module in model.modules()]
    device = next(model.parameters()).device
    samples = 0
    try:
        with untouched(model), torch.no_grad():
            model.eval()
            for batch in islice(loader, max_batches):
                inputs, n = _inputs(batch)
                reset(model)
                model(inputs.to(device))
                samples += n
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
    if not samples:
        raise ValueError("loader: expected at least one sample, got none")

    if time_steps is None:
        time_steps = math.ceil(max(c.passes for c in counts.values()) / samples)
    axes = parameter_axes(model)
    weights, masks = weights_and_masks(model)
    sinks = [carried(layer, "out_group") for layer in layers.values()]
    labels = {
        name: sink.name if sink is not None and sink.name and sinks.count(sink) == 1 else name
        for name, sink in zip(layers, sinks, strict=True)
    }
    return CostReport(
        tuple(
            _report(name, labels[name], layer, int(weights[name].total(masks)), counts[name], samples, time_steps)
            for name, layer in layers.items()
        ),
        samples,
        time_steps,
        sum(p.numel() for p in model.parameters()),
        sum(_active(p, axes.get(p, ())) for p in model.parameters()),
    )


@dataclass
class _Counts:
    """Exact sums over the passes of one layer."""

    passes: int = 0
    nonzero: int = 0
    inputs: int = 0
    spiking: bool = True
    window: int = 1
    values: float = 0.0
    connections: int = 0
    dense_connections: int = 0


def _count_pass(counts: _Counts, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    nonzero, spikes, positions, window = inputs_of(layer, inputs[0])
    counts.nonzero += int(nonzero.sum())
    counts.inputs += positions * nonzero.numel()
    if not window:  # no augmented assignment, which the compiler of torch 2.9 can't follow
        counts.spiking = False
    counts.values += int(spikes.sum()) / max(window, 1)
    counts.window = max(counts.window, window)  # a pass may have no average between 0 and 1
    uses, dim = weight_uses(layer, inputs[0], output), channel_dim(layer)
    counts.passes += output.numel() // math.prod(output.shape[dim:])
    readers = 1 if is_depthwise(layer) else output.shape[dim] // getattr(layer, "groups", 1)
    counts.connections += uses * weights_per_pair(layer) * nonzero.numel() * readers
    counts.dense_connections += uses * layer.weight.numel()


def _report(
    name: str, label: str, layer: nn.Module, active_weights: int, counts: _Counts, samples: int, time_steps: int
) -> LayerReport:
    axes = channel_axes(layer)
    own = dict(layer.named_parameters(recurse=False))
    rate = counts.nonzero / max(counts.inputs, 1)
    return LayerReport(
        name=name,
        label=label,
        parameters=sum(p.numel() for p in own.values()),
        active_parameters=sum(_active(p, axes.get(key, ())) for key, p in own.items()),
        weights=layer.weight.numel(),
        active_weights=active_weights,
        presentations=counts.passes / samples,
        spiking=counts.spiking,
        input_rate=rate,
        dense_macs=counts.dense_connections / samples * (time_steps if counts.passes == samples else 1),
        macs=0.0 if counts.spiking else counts.connections / samples,
        acs=counts.values * counts.window / max(counts.inputs, 1) * counts.connections / samples
        if counts.spiking
        else 0.0,
        window=counts.window if counts.spiking else 1,
    )


def _active(p: Tensor, axes: tuple[Axis, ...]) -> int:
    """Number of active entries."""
    entries = p.numel()
    for axis in axes:
        entries = entries // axis.group.num_channels * axis.group.num_active
    return entries


def _inputs(batch: Any) -> tuple[Tensor, int]:
    """A batch's inputs and its number of samples."""
    inputs, *others = batch if isinstance(batch, tuple | list) else (batch,)
    if not isinstance(inputs, Tensor):
        raise TypeError(f"loader: expected batches that begin with a tensor, got {type(inputs).__name__}")
    if others and isinstance(others[0], Tensor) and others[0].dim():
        return inputs, len(others[0])
    return inputs, inputs.shape[1 if inputs.dim() == 5 else 0]
