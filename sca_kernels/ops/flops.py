"""What torch's counter of floating-point operations (``torch.utils.flop_counter``) counts of our operators.

The counter is not loaded for that, since it loads Triton: formulas are registered when somebody else loads it.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from types import ModuleType
from typing import Any

import torch

_COUNTER = "torch.utils.flop_counter"
_Shape = Sequence[int]


def _products(images: int, size: _Shape, weight: _Shape, inputs: _Shape | None, outputs: _Shape | None) -> int:
    """Two per multiplication of a convolution's active channels, as torch counts its own; inputs and outputs are the
    shapes of index lists."""
    out, into, *kernel = weight
    out = out if outputs is None else outputs[0]
    into = into if inputs is None or into == 1 else inputs[0]
    total = 2 * images * out * into
    for n in (*size, *kernel):
        total *= n
    return total


def _channel_conv2d(
    x: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    in_channels: _Shape | None,
    out_channels: _Shape | None,
    *_,
    out_shape: tuple[_Shape, _Shape],
    **__,
) -> int:
    return _products(x[0], out_shape[0][2:], weight, in_channels, out_channels)


def _channel_conv2d_backward(
    grad: _Shape,
    x: _Shape,
    shape: _Shape,
    channels_last: bool,
    weight: _Shape,
    block: _Shape | None,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: int,
    in_channels: _Shape | None,
    out_channels: _Shape | None,
    needed: Sequence[bool],
    *_,
    **__,
) -> int:
    # of x and of the weight; that of the bias is a sum
    return sum(needed[:2]) * _products(grad[0], grad[2:], weight, in_channels, out_channels)


def _register(counter: ModuleType) -> None:
    operators = torch.ops.sca_kernels
    formulas = {
        operators.channel_conv2d: _channel_conv2d,
        operators.channel_conv2d_backward: _channel_conv2d_backward,
    }
    for operator, formula in formulas.items():
        if operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)


class _WhenLoaded(MetaPathFinder):
    """Registers the formulas after the counter's module has run, once."""

    def find_spec(self, name, path=None, target=None):
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module: ModuleType) -> None:
                execute(module)
                _register(module)

            spec.loader.exec_module = execute_and_register
        return spec


def register() -> None:
    """Have our operators counted, whether the counter is loaded already or later."""
    if _COUNTER in sys.modules:
        _register(sys.modules[_COUNTER])
    else:
        sys.meta_path.insert(0, _WhenLoaded())
