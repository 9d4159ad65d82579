"""What the modules of a model will run, and why."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import nn as tnn

from .. import backends, checks, paths
from .conv import ChannelConv, ConvolutionLayer
from .conv_transpose import ChannelConvTranspose
from .linear import ChannelLinear
from .neuron import NeuronModule


class LayerRow(NamedTuple):
    """One module: its name in the model, its class, the backend and the path of its forward and backward pass, active /
    all channels of its input and output, and the reasons."""

    name: str
    kind: str
    backend: str
    path: str
    inputs: str
    outputs: str
    why: str


class Explanation(tuple[LayerRow, ...]):
    """Rows in the order of the model's modules; as a string, a table."""

    __slots__ = ()

    def __str__(self) -> str:
        lines = [LayerRow._fields, *self]
        widths = [max(len(line[i]) for line in lines) for i in range(len(LayerRow._fields))]
        padded = (zip(line, widths, strict=True) for line in lines)
        return "\n".join("  ".join(text.ljust(width) for text, width in line).rstrip() for line in padded)


def explain(module: tnn.Module) -> Explanation:
    """What every channel-sparse convolution and linear layer and every neuron of a model will run, and why: on the
    device of its parameters, for their dtype (that of autocast where it is on), and for the channels that are active
    now. Nothing runs.

    Args:
        module: a model, or one of its modules.

    Returns:
        One :class:`LayerRow` per such module; ``str()`` of the whole is a table. A backend that can't run is ``none``,
        and the reason says why.
    """
    checks.instance("module", module, tnn.Module, "a torch.nn.Module")
    like = next(module.parameters(), torch.empty(0))
    rows = []
    for name, child in module.named_modules():
        if isinstance(child, (ConvolutionLayer, ChannelLinear, NeuronModule)):
            p = next(child.parameters(), like)
            autocast = not p.is_meta and torch.is_autocast_enabled(p.device.type)
            dtype = torch.get_autocast_dtype(p.device.type) if autocast else p.dtype
            rows.append(_row(name, child, p.device, dtype))
    return Explanation(rows)


def _conditions(path: str) -> str:
    """What else must hold for the path to be worth it, which the model alone does not tell."""
    rules = [rule for rules in paths.RULES.values() for rule in rules if rule.path == path]
    layouts = {True: "in channels_last", False: "contiguous", None: "in any layout"}
    return ", or ".join(
        f"x {layouts[rule.channels_last]}, {rule.narrowest} channels and {rule.positions} positions or more"
        for rule in rules
    )


def _row(name: str, module: tnn.Module, device: torch.device, dtype: torch.dtype) -> LayerRow:
    backend, reason, own = "torch", "torch.nn.functional.linear", frozenset()
    if isinstance(module, ChannelConvTranspose):
        reason = f"torch.{module.convolve.__name__}"
    elif not isinstance(module, ChannelLinear):
        named = module.arguments["backend"] if isinstance(module, NeuronModule) else module.backend
        try:
            found = backends.find(named or "", device, dtype)
            backend, reason, own = found.name, found.supports(device, dtype)[1], found.paths
        except (TypeError, ValueError) as error:
            backend, reason = "none", str(error)
    if isinstance(module, NeuronModule):
        group = module.group
        width = "as its input" if group is None else f"{group.width}/{group.num_channels}"
        return LayerRow(name, type(module).__name__, backend, "fused", width, width, reason)
    if isinstance(module, ConvolutionLayer):
        sizes = module.in_channels, module.out_channels
    else:
        sizes = module.in_features // module.features_per_channel, module.out_features
    groups = module.in_group, module.out_group
    active = [size if group is None else group.width for group, size in zip(groups, sizes, strict=True)]
    if not isinstance(module, ChannelConv):
        path, why = paths.measured(device, dtype, sizes, active, ())
        why = "the weight's active block" if path != "dense" else why
    elif module.path is not None:
        kernel = module.as_maps(module.weight).shape
        path, why, problem = module.path, "named", (kernel, module.geometry, dtype, True, active)
        if path not in paths.possible(*problem):
            backend, why = "none", f"named, but {paths.refusal(path, *problem)}"
        elif path not in {"gathered", *own}:
            backend, why = "none", f"named, but backend {backend} has no kernels for it"
    else:
        possible = paths.possible(module.as_maps(module.weight).shape, module.geometry, dtype, True, active)
        path, why = paths.measured(device, dtype, sizes, active, possible)
        if path in paths.NEEDS and path not in {"gathered", *own}:
            path, why = "gathered", f"{why}, but backend {backend} has no kernels for the path {path}"
        elif path in own:
            why += f"; where {_conditions(path)}"
    widths = [f"{now}/{size}" for now, size in zip(active, sizes, strict=True)]
    return LayerRow(name, type(module).__name__, backend, path, *widths, f"{why}; {reason}")
