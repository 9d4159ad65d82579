"""Where the channels of a group occur in a model: in which layers, parameters and buffers, along which dimension.

Modules say what they carry: ``in_group`` and ``out_group`` on convolutions and linear layers, ``group`` on neurons,
batch norms and selections (see :mod:`sca_kernels.nn`), by hand or by :func:`sca.attach_groups`. Nothing is traced here
and nothing is paired by order.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from sca_kernels.nn import ChannelGroup
from sca_kernels.nn.group import ROLES

from .wrappers import named_modules

__all__ = [
    "CONVOLUTIONS",
    "Axis",
    "Members",
    "carried",
    "channel_axes",
    "channel_dim",
    "computed_parameters",
    "find_groups",
    "is_depthwise",
    "named_axes",
    "parameter_axes",
    "places_of",
    "require_parameters",
    "starts_of",
    "weight_dims",
]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Axis:
    """Dimension ``dim`` of a tensor lists the channels of ``group``, ``block`` consecutive entries for each."""

    group: ChannelGroup
    dim: int
    block: int = 1

    def of(self, group: ChannelGroup, channels: Tensor) -> Tensor:
        """Positions along ``dim`` of channels (int64 [n]) of one group: those of every place that it has among the
        parts of a concatenation, none where it is no part.
        """
        starts = [start for part, start in starts_of(self.group) if part is group]
        if not starts:
            return channels[:0]
        return self.entries(torch.cat([channels + start for start in starts]))

    def entries(self, channels: Tensor) -> Tensor:
        """Positions along ``dim`` of these channels (int64 [n]): int64 [n * block], on the same device."""
        if self.block == 1:
            return channels
        return (channels[:, None] * self.block + torch.arange(self.block, device=channels.device)).flatten()


@dataclass(frozen=True)
class Members:
    """The modules that carry one group, by their names in the model.

    Attributes:
        name: the group's, or that of the first module that carries it where it has none.
        producers: layers whose output channels it is (``out_group``).
        consumers: layers that read it (``in_group``).
        carriers: what works channel by channel (``group``): neurons, batch norms, both fused, selections.
    """

    name: str
    group: ChannelGroup
    producers: dict[str, nn.Module] = field(default_factory=dict)
    consumers: dict[str, nn.Module] = field(default_factory=dict)
    carriers: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def neurons(self) -> dict[str, nn.Module]:
        """Those of the carriers that can record activity."""
        return {name: m for name, m in self.carriers.items() if hasattr(m, "activity")}

    @property
    def norms(self) -> dict[str, nn.Module]:
        """Those of the carriers that have a batch-norm weight."""
        return {name: m for name, m in self.carriers.items() if getattr(m, "weight", None) is not None}


def find_groups(model: nn.Module) -> dict[str, Members]:
    """All channel groups of a model by name, in the order of its modules.

    Raises:
        ValueError: the model has no group, or two groups share a name.
    """
    found: dict[int, Members] = {}
    for name, module in named_modules(model):
        for attribute, role in zip(ROLES, ("producers", "carriers", "consumers"), strict=True):
            group = carried(module, attribute)
            for part in () if group is None else group.parts:
                members = found.setdefault(id(part), Members(part.name or name, part))
                getattr(members, role)[name] = module
    by_name = {members.name: members for members in found.values()}
    if not found:
        raise ValueError(
            "model: no module carries a ChannelGroup (in_group, out_group or group), so there is nothing to prune; "
            "sca.attach_groups(model) finds its groups"
        )
    if len(by_name) < len(found):
        names = [members.name for members in found.values()]
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ValueError(f"model: expected groups of different names, got more than one named {', '.join(twice)}")
    return by_name


def channel_axes(module: nn.Module) -> dict[str, tuple[Axis, ...]]:
    """Which dimensions of a module's own parameters and buffers list the channels of a group; others are left out.

    A convolution's weight [C_out, C_in, *k] has an axis for each of its groups, in the order of dimensions (a depthwise
    one [C, 1, *k] only the first), a transposed one's [C_in, C_out, *k] and a linear layer's [C_out, C_in * block]
    likewise; everything of size [C, ...] in a module with a ``group`` has one.
    """
    axes: dict[str, tuple[Axis, ...]] = {}
    group, in_group, out_group = (carried(module, attribute) for attribute in ("group", "in_group", "out_group"))
    if group is not None:
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.dim() and tensor.shape[0] == group.num_channels:
                axes[name] = (Axis(group, 0),)
    outputs, inputs = weight_dims(module)
    weight = () if out_group is None else (Axis(out_group, outputs),)
    if in_group is not None and not is_depthwise(module):
        weight += (Axis(in_group, inputs, module.weight.shape[inputs] // in_group.num_channels),)
    bias = () if out_group is None else (Axis(out_group, 0),)
    found = {"weight": tuple(sorted(weight, key=lambda axis: axis.dim)), "bias": bias}
    return axes | {name: dims for name, dims in found.items() if dims and getattr(module, name) is not None}


def named_axes(model: nn.Module) -> dict[tuple[str, str], tuple[nn.Module, nn.Parameter, tuple[Axis, ...]]]:
    """Every parameter that lists channels of a group, with the module that has it and its axes, by the names of both.

    Raises:
        TypeError: a parameter is not one ordinary tensor (FSDP shards it, a library quantised it).
        ValueError: two modules share a parameter but not the groups along its dimensions.
    """
    found: dict[tuple[str, str], tuple[nn.Module, nn.Parameter, tuple[Axis, ...]]] = {}
    known: dict[nn.Parameter, tuple[Axis, ...]] = {}
    for module_name, module in named_modules(model):
        axes = channel_axes(module)
        for name, p in module.named_parameters(recurse=False):
            if known.setdefault(p, axes.get(name, ())) != axes.get(name, ()):
                raise ValueError(
                    f"model: {module_name}.{name} is shared with a module of other channel groups; "
                    "give both the same groups, or none"
                )
            if name in axes:
                if type(p).__torch_dispatch__ is not Tensor.__torch_dispatch__:
                    raise TypeError(_not_ordinary(f"{module_name}.{name}, a {type(p).__name__}"))
                found[module_name, name] = module, p, axes[name]
        if type(module).__name__ == "FullyShardedDataParallel":  # whose import takes a second
            first = next((name for name, _ in module.named_parameters()), "none")
            raise TypeError(_not_ordinary(f"{first} in a FullyShardedDataParallel"))
    return found


def _not_ordinary(what: str) -> str:
    return (
        f"model: expected ordinary parameters, got {what}; channels of sharded (FSDP) or quantised parameters can't be"
        " pruned"
    )


def parameter_axes(model: nn.Module) -> dict[nn.Parameter, tuple[Axis, ...]]:
    """Axes of every parameter that lists channels of a group; raises as :func:`named_axes` does."""
    return {p: axes for _, p, axes in named_axes(model).values()}


def computed_parameters(module: nn.Module) -> str:
    """Which of a module's weight, bias and leak are no parameters but computed from others in each pass, and by what,
    in words; nothing where none is. Weight norm, spectral norm, ``torch.nn.utils.prune`` and parametrizations do that.
    """
    kinds = [type(hook) for hook in module._forward_pre_hooks.values()]
    kinds = [kind for kind in kinds if kind.__module__.startswith("torch.nn.utils.")]
    names = [name for name in ("weight", "bias", "w") if kinds and isinstance(vars(module).get(name), Tensor)]
    if is_parametrized(module):
        names += module.parametrizations.keys()
        kinds += [type(kind) for kinds in module.parametrizations.values() for kind in kinds]
    by = ", ".join(kind.__name__ for kind in kinds)
    return f"{' and '.join(names)}, computed in each pass by {by}" if names else ""


def require_parameters(model: nn.Module) -> None:
    """See to it that what channels are cut from, and kept in while dormant, are parameters.

    Raises:
        ValueError: a module with a channel group computes its weight from other parameters.
    """
    for name, module in model.named_modules():
        if any(carried(module, role) is not None for role in ROLES):
            computed = computed_parameters(module)
            if computed:
                raise ValueError(
                    f"model: {name} ({type(module).__name__}) carries a channel group, but its parameters are not its "
                    f"own ({computed}): dormant channels would change, and none could be cut. Make them parameters "
                    "again (remove_parametrizations, remove_weight_norm, remove_spectral_norm, prune.remove of "
                    "torch.nn.utils), or take its groups away"
                )


def starts_of(group: ChannelGroup) -> list[tuple[ChannelGroup, int]]:
    """The parts of a concatenation, or the group itself, and where the channels of each begin."""
    return list(zip(group.parts, accumulate((part.num_channels for part in group.parts), initial=0), strict=False))


def places_of(group: ChannelGroup, carried: ChannelGroup, values: Tensor) -> Tensor:
    """A group's share [C] of one value for each channel of what carries it, itself or a concatenation; the sum over
    its places, where it has several there.
    """
    places = [values[start : start + part.num_channels] for part, start in starts_of(carried) if part is group]
    return torch.stack(places).sum(0)


def carried(module: nn.Module, attribute: str) -> ChannelGroup | None:
    """The channel group in ``module.in_group``, ``.out_group`` or ``.group``; None where there is none."""
    group = getattr(module, attribute, None)
    return group if isinstance(group, ChannelGroup) or hasattr(group, "set_active") else None


def weight_dims(layer: nn.Module) -> tuple[int, int]:
    """Dimensions of a layer's weight that list its output and its input channels (the second one of a depthwise
    convolution lists none)."""
    return (1, 0) if getattr(layer, "transposed", None) is True and not is_depthwise(layer) else (0, 1)


def channel_dim(layer: nn.Module) -> int:
    """Dimension of a layer's input and output that lists channels or features, counted from the end."""
    return -1 if isinstance(layer, nn.Linear) else -1 - len(layer.kernel_size)


def is_depthwise(module: nn.Module) -> bool:
    """Whether each output channel reads the one input channel of the same index."""
    groups, weight = getattr(module, "groups", 1), getattr(module, "weight", None)
    if not isinstance(groups, int) or groups == 1 or not isinstance(weight, Tensor) or weight.dim() < 2:
        return False  # a shuffle, or whatever else calls something groups
    return weight.shape[:2] == (groups, 1)
