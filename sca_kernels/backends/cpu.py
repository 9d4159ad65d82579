"""The compiled CPU backend: vectorised for several instruction sets, parallel over channels, float32 and bfloat16.

It hands addresses, sizes and strides to ``sca_kernels._cpu`` (``csrc/bindings/cpu.cpp``), which is loaded at first use.
"""

from __future__ import annotations

import functools
import importlib
import math
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from .. import twins
from ..channels import (
    Bits,
    Channels,
    Geometry,
    at_length,
    at_width,
    empty_block,
    empty_weight,
    gather_bias,
    memory_format,
    output_size,
    scatter_bias,
)
from ..layout import collapse, empty_activation, empty_state, in_layout_of, spatial_size
from ..neurons import NeuronConfig, fires_at
from ..reference import channel_conv
from .base import Backend, BatchNormGradients, Forward, NeuronGradients

ABI_VERSION = 9
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16"}
_CPU = torch.device("cpu")  # named, since another one may be the default
_REINSTALL = "install a C++17 compiler with Python's headers and run pip install again"


@functools.cache
def _load() -> ModuleType | str:
    """The compiled module, or why there is none; asked once per process."""
    try:
        module = importlib.import_module("sca_kernels._cpu")
    except ImportError as error:
        return f"the compiled module can't be loaded ({error})"
    if module.abi_version != ABI_VERSION:
        return f"the compiled module is out of date (version {module.abi_version}, expected {ABI_VERSION})"
    try:
        module.isa()
    except ValueError as error:
        return str(error)
    return module


@functools.lru_cache(maxsize=256)
def _neuron(config: NeuronConfig) -> Any:
    return _load().NeuronConfig(
        twins.charge(config),
        twins.reset(config),
        twins.surrogate(config),
        config.detach_reset,
        config.subtracts_threshold,
        config.leak,
        config.threshold,
        config.fires_at,
        config.by,
        config.rest,
        config.alpha,
        config.beta,
        config.gain,
    )


class CpuBackend(Backend):
    """The compiled kernels. Per-channel vectors arrive contiguous; activations and states with any strides."""

    name = "cpu"
    priority = 10
    fix = _REINSTALL

    def supports(self, device: torch.device, dtype: torch.dtype) -> tuple[bool, str]:
        if device.type != "cpu":
            return False, f"device {device.type} is not the CPU"
        if dtype not in _DTYPES:
            return False, f"dtype {dtype} is neither float32 nor bfloat16"
        module = _load()
        if isinstance(module, str):
            return False, module
        return True, f"{module.isa()} kernels; this processor can run {', '.join(module.available_isas())}"

    @property
    def paths(self) -> frozenset[str]:
        # The products of winograd's are worth it with wide registers and fused multiply-adds.
        module = _load()
        return frozenset() if isinstance(module, str) or module.isa() == "baseline" else frozenset({"winograd"})

    def neuron_forward(
        self,
        x,
        time_steps,
        config,
        scale,
        shift,
        rate,
        v_init,
        mask,
        return_v,
        tracking=None,
        threshold=None,
        return_h=False,
    ) -> Forward:
        x, v_init = _strided(x, _one_step(v_init))
        (*tensors, h), outputs = _forward(x, time_steps, mask, return_v, return_h)
        thresholds = _thresholds(config, threshold)
        prelude = _address(scale), _address(shift), _address(rate), _addresses(thresholds)
        is_nan = _load().neuron_forward(*_problem(x, time_steps, config, v_init), *prelude, *outputs)
        return Forward(*tensors, is_nan, h=h)

    def neuron_backward(
        self, grad_spikes, grad_v, x, time_steps, config, scale, shift, rate, v_init, threshold=None, grad_h=None
    ) -> NeuronGradients:
        x, v_init, *grads = _strided(x, _one_step(v_init), grad_spikes, _one_step(grad_v), grad_h)
        g, gradients = _backward(NeuronGradients, x, time_steps, scale, shift, rate, v_init, threshold)
        thresholds = _thresholds(config, threshold)
        prelude = _address(scale), _address(shift), _address(rate), _addresses(thresholds)
        incoming = _incoming(time_steps, *grads)
        _load().neuron_backward(*_problem(x, time_steps, config, v_init), *prelude, *incoming, *gradients)
        return g

    def batch_norm_forward(
        self,
        x,
        time_steps,
        config,
        weight,
        bias,
        eps,
        rate,
        v_init,
        mask,
        return_v,
        channels=None,
        tracking=None,
        threshold=None,
        return_h=False,
    ) -> tuple[Forward, Tensor]:
        weight, bias = at_width(weight, channels, x), at_width(bias, channels, x)
        x, v_init = _strided(x, _one_step(v_init))
        (*tensors, h), outputs = _forward(x, time_steps, mask, return_v, return_h)
        norm = torch.empty((4, x.shape[2]), dtype=torch.float32, device=_CPU)
        thresholds = _thresholds(config, threshold)
        affine = _address(weight), _address(bias), eps, _address(norm), _address(rate), _addresses(thresholds)
        is_nan = _load().batch_norm_forward(*_problem(x, time_steps, config, v_init), *affine, *outputs)
        return Forward(*tensors, is_nan, h=h), norm

    def batch_norm_backward(
        self,
        grad_spikes,
        grad_v,
        x,
        time_steps,
        config,
        weight,
        bias,
        norm,
        eps,
        rate,
        v_init,
        channels=None,
        threshold=None,
        grad_h=None,
    ) -> BatchNormGradients:
        gamma, beta = at_width(weight, channels, x), at_width(bias, channels, x)
        x, v_init, *grads = _strided(x, _one_step(v_init), grad_spikes, _one_step(grad_v), grad_h)
        g, gradients = _backward(BatchNormGradients, x, time_steps, gamma, beta, rate, v_init, threshold)
        thresholds = _thresholds(config, threshold)
        affine = _address(gamma), eps, _address(norm), _address(rate), _addresses(thresholds)
        incoming = _incoming(time_steps, *grads)
        _load().batch_norm_backward(*_problem(x, time_steps, config, v_init), *affine, *incoming, *gradients)
        if gamma is weight and beta is bias:
            return g
        return g._replace(weight=at_length(g.weight, weight, channels), bias=at_length(g.bias, bias, channels))

    def moments(self, x: Tensor, time_steps: int) -> Tensor:
        (x,) = _strided(x)
        sums = torch.empty((2, x.shape[2]), dtype=torch.float64, device=_CPU)
        _load().batch_norm_moments(*_activation(x, time_steps), _address(sums))
        return sums

    def batch_norm_sums(
        self,
        grad_spikes,
        grad_v,
        x,
        time_steps,
        config,
        scale,
        shift,
        center,
        rate,
        v_init,
        threshold=None,
        grad_h=None,
    ) -> Tensor:
        x, v_init, *grads = _strided(x, _one_step(v_init), grad_spikes, _one_step(grad_v), grad_h)
        own = (rate is not None) + (threshold is not None)
        sums = torch.empty((2 + own, x.shape[2]), dtype=torch.float64, device=_CPU)
        thresholds = _thresholds(config, threshold)
        vectors = *map(_address, (scale, shift, center, rate)), _addresses(thresholds)
        behind = *_incoming(time_steps, *grads), _address(sums)
        _load().batch_norm_sums(*_problem(x, time_steps, config, v_init), *vectors, *behind)
        return sums

    def batch_norm_gradient(
        self,
        grad_spikes,
        grad_v,
        x,
        time_steps,
        config,
        scale,
        shift,
        center,
        slope,
        offset,
        rate,
        v_init,
        threshold=None,
        grad_h=None,
    ) -> tuple[Tensor, Tensor | None]:
        x, v_init, *grads = _strided(x, _one_step(v_init), grad_spikes, _one_step(grad_v), grad_h)
        g_x, g_v = empty_activation(x, x.shape[0]), None if v_init is None else empty_state(x, torch.float32)
        thresholds = _thresholds(config, threshold)
        vectors = *map(_address, (scale, shift, center, slope, offset, rate)), _addresses(thresholds)
        views = *_incoming(time_steps, *grads), _view(g_x, time_steps), _view(_one_step(g_v))
        _load().batch_norm_gradient(*_problem(x, time_steps, config, v_init), *vectors, *views)
        return g_x, g_v

    def pack_spikes(self, spikes: Tensor) -> Tensor:
        spikes = spikes.contiguous()
        packed = torch.empty((spikes.numel() + 7) // 8, dtype=torch.uint8, device=_CPU)
        kind = _DTYPES[spikes.dtype], spikes.numel()
        if not _load().pack_bits(_address(spikes), *kind, _address(packed), torch.get_num_threads()):
            raise ValueError("spikes: expected zeros and ones only, got another value")
        return packed

    def unpack_spikes(self, packed: Tensor, numel: int, dtype: torch.dtype) -> Tensor:
        packed, spikes = packed.contiguous(), torch.empty(numel, dtype=dtype, device=_CPU)
        _load().unpack_bits(_address(packed), _DTYPES[dtype], numel, _address(spikes), torch.get_num_threads())
        return spikes

    def gather_weight(
        self, weight: Tensor, bias: Tensor | None, channels: Channels, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor | None]:
        bias = None if bias is None else gather_bias(bias, channels, dtype)
        if channels.input is None and channels.output is None:
            return weight if weight.dtype is dtype else weight.to(dtype), bias
        weight = weight.contiguous(memory_format=memory_format(weight))
        block = empty_block(weight, channels, weight.dtype)
        _load().gather_block(_address(weight), *_block(weight, channels), _address(block), torch.get_num_threads())
        return block.to(dtype), bias

    def scatter_weight(
        self, block: Tensor | None, bias: Tensor | None, like: Tensor, channels: Channels
    ) -> tuple[Tensor | None, Tensor | None]:
        bias = None if bias is None else scatter_bias(bias, like, channels)
        if block is None or (channels.input is None and channels.output is None):
            return block if block is None or block.dtype is like.dtype else block.to(like.dtype), bias
        block = block.to(like.dtype).contiguous(memory_format=memory_format(like))
        full = empty_weight(like)
        _load().scatter_block(_address(block), *_block(like, channels), _address(full), torch.get_num_threads())
        return full, bias

    def put_weight(self, block: Tensor, full: Tensor, channels: Channels) -> None:
        block = block.contiguous(memory_format=memory_format(full))
        _load().put_block(_address(block), *_block(full, channels), _address(full), torch.get_num_threads())

    def channel_conv2d(self, x, weight, bias, geometry, channels, full_output, path) -> tuple[Tensor, Tensor | None]:
        convolve = _convolve if path in self.paths else torch.conv2d
        return channel_conv.forward(x, weight, bias, geometry, channels, full_output, self.gather_weight, convolve)

    def channel_conv2d_backward(
        self, grad, x, weight, block, geometry, channels, needed, path
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if path not in self.paths:
            return super().channel_conv2d_backward(grad, x, weight, block, geometry, channels, needed, path)
        own = self.scatter_weight, _convolve_backward
        return channel_conv.backward(grad, x, weight, block, geometry, channels, needed, *own)


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride, padding, dilation, groups) -> Tensor:
    """torch.conv2d by Winograd's algorithm."""
    x, weight = _last(x), weight.contiguous(memory_format=memory_format(weight))
    size = output_size(x.shape, weight.shape, Geometry(stride, padding, dilation, groups))
    y = torch.empty((x.shape[0], weight.shape[0], *size), dtype=x.dtype, device=_CPU, memory_format=torch.channels_last)
    bias = None if bias is None else bias.contiguous()
    problem = _convolution(x, weight, padding)
    _load().winograd_forward(problem, *map(_address, (x, weight, bias, y)), torch.get_num_threads())
    return y


def _convolve_backward(
    grad: Tensor,
    x: Tensor | Bits,
    weight: Tensor,
    bias_sizes,
    stride,
    padding,
    dilation,
    transposed,
    out_padding,
    groups,
    needed,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """aten.convolution_backward by Winograd's algorithm; the input may be bits."""
    grad, weight = _last(grad), weight.contiguous(memory_format=memory_format(weight))
    problem, threads = _convolution(x, weight, padding), torch.get_num_threads()
    g_x = g_weight = None
    if needed[0]:
        g_x = torch.empty(tuple(x.shape), dtype=grad.dtype, device=_CPU, memory_format=torch.channels_last)
        _load().winograd_backward_input(problem, *map(_address, (grad, weight, g_x)), threads)
    if needed[1]:
        g_weight = empty_weight(weight)
        floats, bits = (_last(x), None) if isinstance(x, Tensor) else (None, x.packed.contiguous())
        _load().winograd_backward_filters(problem, *map(_address, (grad, floats, bits, g_weight)), threads)
    return g_x, g_weight, grad.sum((0, 2, 3)) if needed[2] else None


def _last(z: Tensor) -> Tensor:
    return z.contiguous(memory_format=torch.channels_last)


def _convolution(x: Tensor | Bits, weight: Tensor, padding) -> tuple[Any, ...]:
    """A convolution's sizes, and the layout of its weight."""
    images, _, height, width = x.shape
    out, into = weight.shape[:2]
    return (images, height, width, *padding, into, out), memory_format(weight) == torch.channels_last


_View = tuple[int, tuple[int, int, int, int]]


def _block(weight: Tensor, channels: Channels) -> tuple[Any, ...]:
    """A dense weight's sizes and layout, and the indices of its active output and input channels."""
    out, into, *kernel = weight.shape
    in_innermost = memory_format(weight) == torch.channels_last
    indices = [
        (_address(index), size if index is None else index.numel())
        for index, size in zip(channels[::-1], (out, into), strict=True)
    ]
    return (out, into, math.prod(kernel)), in_innermost, weight.element_size(), *indices


def _address(z: Tensor | None) -> int:
    """Where a tensor's data begins; 0 for none."""
    if z is None:
        return 0
    address = z.data_ptr()
    if not address and z.numel():  # kernels take 0 for none
        raise ValueError(f"expected tensors with memory, got one {tuple(z.shape)} whose storage was freed")
    return address


def _one_step(v: Tensor | None) -> Tensor | None:
    """A state [N, C, *S] as an activation of one time step."""
    return None if v is None else v[None]


def _strided(x: Tensor, *others: Tensor | None) -> list[Tensor | None]:
    """Activations as they are; those whose spatial dimensions have no common stride are copied in the layout of x."""
    return [z if z is None or collapse(z) is not None else in_layout_of(z, x) for z in (x, *others)]


def _view(z: Tensor | None, time_steps: int = 1) -> _View | None:
    """Address and strides; a single step that stands for many has time stride 0."""
    if z is None:
        return None
    strides = collapse(z)
    return _address(z), (strides if z.shape[0] == time_steps else strides._replace(t=0))


def _problem(x: Tensor, time_steps: int, config: NeuronConfig, v_init: Tensor | None) -> tuple[Any, ...]:
    """The arguments that every kernel of a neuron starts with."""
    return _neuron(config), *_activation(x, time_steps), _view(v_init)


def _activation(x: Tensor, time_steps: int) -> tuple[Any, ...]:
    shape = (time_steps, x.shape[1], x.shape[2], spatial_size(x))
    return shape, _DTYPES[x.dtype], torch.get_num_threads(), _view(x, time_steps)


def _incoming(
    time_steps: int, grad_spikes: Tensor | None, grad_v: Tensor | None, grad_h: Tensor | None
) -> tuple[_View | None, ...]:
    """The gradients that come in."""
    return _view(grad_spikes, time_steps), _view(grad_v), _view(grad_h, time_steps)


def _thresholds(config: NeuronConfig, threshold: Tensor | None) -> tuple[Tensor, ...]:
    """Those per channel, and the least numbers that fire; none where they are the configuration's."""
    return () if threshold is None else (threshold, fires_at(threshold, config))


def _addresses(thresholds: tuple[Tensor, ...]) -> tuple[int, int]:
    """Of tensors that the caller keeps until the kernel has run."""
    return tuple(map(_address, thresholds)) if thresholds else (0, 0)


def _forward(
    x: Tensor, time_steps: int, mask: Tensor | None, return_v: bool, return_h: bool
) -> tuple[tuple[Tensor | None, ...], tuple[Any, ...]]:
    """The tensors of a :class:`Forward`, potentials before resets the last, and the arguments that stand for them."""
    channels = x.shape[2]
    spikes, v = empty_activation(x, time_steps), empty_state(x, torch.float32) if return_v else None
    h = empty_activation(x, time_steps, torch.float32) if return_h else None
    count = torch.empty(channels, dtype=torch.int64, device=_CPU)
    l1 = torch.empty(channels, dtype=torch.float32, device=_CPU)
    views = _view(spikes, time_steps), _view(_one_step(v)), _view(h, time_steps), _address(mask)
    return (spikes, v, count, l1, h), (*views, _address(count), _address(l1))


def _backward(
    kind,
    x: Tensor,
    time_steps: int,
    p: Tensor | None,
    q: Tensor | None,
    rate: Tensor | None,
    v_init: Tensor | None,
    threshold: Tensor | None,
):
    """Outputs of a backward kernel, a ``kind`` of gradients (for x, p, q, rate, v_init and threshold), and its
    arguments."""
    *vectors, of_threshold = (None if z is None else torch.empty_like(z) for z in (p, q, rate, threshold))
    v = None if v_init is None else empty_state(x, torch.float32)
    g = kind(empty_activation(x, x.shape[0]), *vectors, v, of_threshold)
    addresses = map(_address, (*vectors, of_threshold))
    return g, (_view(g.x, time_steps), _view(_one_step(v)), *addresses)


BACKEND = CpuBackend
