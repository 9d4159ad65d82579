"""torch's own layers in place of this package's, where they compute the same; batch norms inside convolutions."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels import nn as snn
from sca_kernels.nn.batch_norm import BatchNormNeuron, Normalisation

from .attach import example_inputs
from .groups import CONVOLUTIONS, computed_parameters
from .untouched import untouched
from .wrappers import named_modules

__all__ = ["make_plain"]

#: attributes of this package's layers that torch's have not
_OWN = ("in_group", "out_group", "spike_input", "backend", "path", "features_per_channel", "_last_asked")
_CONVOLUTIONS = (snn.ChannelConv1d, snn.ChannelConv2d, snn.ChannelConvTranspose1d, snn.ChannelConvTranspose2d)


def make_plain(model: nn.Module, example_input: Any, plain: bool, fold_batch_norm: bool) -> None:
    """Replace layers of a model without channel groups, in place.

    Args:
        model: a copy, which nobody else holds: it is changed, also where an error is raised.
        example_input: as for :func:`sca.attach_groups`; None: the usual sizes.
        plain: ``ChannelLinear`` becomes ``torch.nn.Linear``, and convolutions become torch's where they read frames
            [M, C, H, W] or [M, C, L]; one that reads sequences [T, N, C, *S], which torch's doesn't take, stays.
        fold_batch_norm: put batch norms in eval mode into the convolution or linear layer in front of them, where
            nothing else reads that layer's output.

    Raises:
        ValueError: no example fits; or a batch norm that could be folded is in training mode, or folding changes
            outputs.
    """
    inputs, seen = _observed(model, example_input)
    if fold_batch_norm:
        _fold(model, inputs, seen)
    for module in model.modules() if plain else ():
        if type(module) is snn.ChannelLinear:
            _become(module, nn.Linear)
        elif type(module) in _CONVOLUTIONS and seen.ranks.get(module) == {2 + module.spatial}:
            _become(module, module.torchs)


@dataclass
class _Seen:
    """What one pass showed.

    Attributes:
        ranks: numbers of dimensions of what each convolution read.
        made: the layers by the memory that their output lies in, with its version.
        behind: for each batch norm, the layers whose output it read, None for anything else.
        calls: how often each module ran.
    """

    ranks: dict[nn.Module, set[int]] = field(default_factory=dict)
    made: dict[int, tuple[nn.Module, int, Tensor]] = field(default_factory=dict)
    behind: dict[nn.Module, list[nn.Module | None]] = field(default_factory=dict)
    calls: dict[nn.Module, int] = field(default_factory=dict)

    def read(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        """A pre-hook."""
        x = inputs[0]
        self.calls[module] = self.calls.get(module, 0) + 1
        if isinstance(module, CONVOLUTIONS):
            self.ranks.setdefault(module, set()).add(x.dim())
        if _is_norm(module):
            layer, version, output = self.made.get(x.data_ptr(), (None, 0, x))
            same = layer is not None and x._version == version and x.numel() == output.numel()
            self.behind.setdefault(module, []).append(layer if same else None)

    def wrote(self, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        """A hook."""
        if _is_layer(module):
            # the output is held, so that no other tensor gets its memory
            self.made[output.data_ptr()] = module, output._version, output


def _observed(model: nn.Module, example_input: Any) -> tuple[tuple[Any, ...], _Seen]:
    """An input that the model runs with, and what its pass showed."""
    problem: Exception | None = None
    for inputs in example_inputs(model, example_input):
        seen = _Seen()
        hooks = [m.register_forward_pre_hook(seen.read) for m in model.modules() if _is_norm(m) or _is_layer(m)]
        hooks += [m.register_forward_hook(seen.wrote) for m in model.modules() if _is_layer(m)]
        try:
            with untouched(model), torch.no_grad():
                model(*inputs)
            return inputs, seen
        except Exception as error:  # whatever the user's code raises
            problem = error
        finally:
            for hook in hooks:
                hook.remove()
    raise ValueError(
        f"example_input: expected a batch that the model runs with ({problem or 'it has no layers to guess one by'})"
    ) from problem


def _fold(model: nn.Module, inputs: tuple[Any, ...], seen: _Seen) -> None:
    names = {module: name for name, module in named_modules(model)}
    pairs = {}
    for norm, layers in seen.behind.items():
        layer = layers[0]
        alone = len(layers) == 1 and layer is not None and seen.calls[layer] == 1
        if alone and norm.track_running_stats and not computed_parameters(layer):
            pairs[norm] = layer
    training = [names[norm] for norm in pairs if norm.training]
    if training:
        raise ValueError(
            f"fold_batch_norm: expected a model in eval mode, got {', '.join(training)} in training mode: their "
            "statistics would be those of each batch"
        )
    parents = {child: (parent, name) for parent in model.modules() for name, child in parent.named_children()}
    before = _in_float64(model, inputs)
    for norm, layer in pairs.items():
        parent, name = parents[norm]
        _fold_into(layer, norm)
        setattr(parent, name, _without_norm(norm))
    after = _in_float64(model, inputs)
    if not all(torch.allclose(a, b, rtol=1e-6, atol=1e-6) for a, b in zip(before, after, strict=True)):
        raise ValueError(
            "fold_batch_norm: the outputs change by it: something beside its batch norm reads the output of one of "
            f"{', '.join(names[layer] for layer in pairs.values())}"
        )


@torch.no_grad()
def _fold_into(layer: nn.Module, norm: nn.Module) -> None:
    """Scale a layer's filters, and shift its outputs, as the batch norm does with running statistics."""
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    scale = scale if norm.weight is None else scale * norm.weight.double()
    shift = -norm.running_mean.double() if layer.bias is None else layer.bias.double() - norm.running_mean.double()
    shift = shift * scale if norm.bias is None else shift * scale + norm.bias.double()
    weight, space = layer.weight.double(), [1] * (layer.weight.dim() - 2)
    if getattr(layer, "transposed", False):  # [C_in, C_out / groups, *k]
        weight = (weight.unflatten(0, (layer.groups, -1)) * scale.view(layer.groups, 1, -1, *space)).flatten(0, 1)
    else:
        weight = weight * scale.view(-1, 1, *space)
    trained = layer.weight.requires_grad
    fresh = torch.empty_like(layer.weight).copy_(weight)  # in the layout that it had
    layer.weight = nn.Parameter(fresh, trained)
    layer.bias = nn.Parameter(shift.to(fresh.dtype), trained)


def _without_norm(norm: nn.Module) -> nn.Module:
    """What stays of a batch norm once its layer does its work: the neuron, or nothing."""
    return norm.without_norm() if isinstance(norm, BatchNormNeuron) else nn.Identity()


def _in_float64(model: nn.Module, inputs: tuple[Any, ...]) -> list[Tensor]:
    """Its outputs, computed so exactly that no spike hangs on the rounding."""
    exact = copy.deepcopy(model).double()
    doubled = [x.double() if isinstance(x, Tensor) and x.is_floating_point() else x for x in inputs]
    with torch.no_grad():
        output = exact(*doubled)
    return [x for x in (output if isinstance(output, tuple | list) else [output]) if isinstance(x, Tensor)]


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Make a layer of this package an object of the torch class that it is a subclass of: parameters, hooks and modes
    stay."""
    for name in _OWN:
        vars(module).pop(name, None)
    module.__class__ = kind


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*CONVOLUTIONS, nn.Linear))


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, Normalisation)
