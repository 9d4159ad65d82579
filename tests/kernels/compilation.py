"""The Triton kernels compiled for a GPU that is not there: what starts them, and what comes of it. Needs Triton."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from sca_kernels.backends import registry
from sca_kernels.channels import Channels, Geometry
from sca_kernels.neurons import NEURONS, NeuronConfig
from sca_kernels.tracking import Tracking
from sca_kernels.triton_kernels import channel_conv, weights


class NoDevice:
    """A Triton driver that compiles for a target and launches nothing. Each target has its own cache of kernels."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


def compile_only(monkeypatch, capability: int) -> list:
    """From here on kernels are compiled for a compute capability and not run; a list that they are appended to."""
    kernels = []
    run = JITFunction.run

    def without_launch(self, *args, grid, warmup, **kwargs):
        kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

    monkeypatch.setattr(JITFunction, "run", without_launch)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice(capability))
    return kernels


def tool(name: str, kernel, tmp_path: Path, *arguments: str) -> str:
    """What a tool of Triton's wheel prints of a compiled kernel's machine code."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    path = getattr(triton.knobs.nvidia, name).path
    return subprocess.run([path, *arguments, cubin], capture_output=True, text=True, check=True).stdout


def account(kernel, tmp_path: Path) -> dict[str, int]:
    """The compiler's account of a kernel's registers (REG) and bytes of memory: a spill is in STACK."""
    return {
        key: int(value) for key, value in re.findall(r"(\w+):(\d+)", tool("cuobjdump", kernel, tmp_path, "-res-usage"))
    }


def tile_loop(kernel, tmp_path: Path) -> Counter[str]:
    """Instructions of the loop over tiles in a kernel's machine code: of the first that loads anything, and of those
    that begin with it the longest; what finishes the sums comes behind it."""
    instructions, labels, loops = [], {}, []
    for line in tool("nvdisasm", kernel, tmp_path).splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)(.*)", line):
            instructions.append(found[1])
            target = re.search(r"\.L_x_\d+", found[2])
            if found[1].startswith("BRA") and target and target[0] in labels:
                loops.append((labels[target[0]], len(instructions)))
    loops = [loop for loop in loops if any(i.startswith("LDG") for i in instructions[slice(*loop)])]
    first, end = min(loops, key=lambda loop: (loop[0], -loop[1]))
    return Counter(instructions[first:end])


def accesses_of(loop: Counter[str]) -> tuple[Counter[int], Counter[int]]:
    """Loads from and stores to device memory in machine code, each as bytes that an instruction moves -> how many."""
    moved = {"LDG": Counter(), "STG": Counter()}
    for instruction, count in loop.items():
        kind, *parts = instruction.split(".")
        if kind in moved:
            bits = next((int(part.lstrip("US")) for part in parts if re.fullmatch(r"[US]?(8|16|64|128)", part)), 32)
            moved[kind][bits // 8] += count
    return moved["LDG"], moved["STG"]


def fire(x: torch.Tensor, time_steps: int, config: NeuronConfig, state: bool = False) -> None:
    """Forward and backward of a neuron as a layer runs it, whose activity is recorded; ``state``: with v_init, mask and
    the last potential."""
    rate, v, mask, sums, _ = _beside(x, config, state)
    triton = registry()["triton"]
    spikes = triton.neuron_forward(x, time_steps, config, None, None, rate, v, mask, state, Tracking(10, sums)).spikes
    triton.neuron_backward(spikes, v, x, time_steps, config, None, None, rate, v)


def fire_behind_norm(
    x: torch.Tensor, time_steps: int, config: NeuronConfig, state: bool = False, listed: bool = False
) -> None:
    """The same behind training batch norm, whose statistics are tracked, at full width or through a list."""
    rate, v, mask, sums, vector = _beside(x, config, state)
    channels = torch.arange(x.shape[2]) if listed else None
    long = torch.ones(x.shape[2] + 1) if listed else vector
    tracking = Tracking(10, sums, (vector.clone(), vector.clone()), 0.1, torch.tensor(0), channels)
    triton = registry()["triton"]
    affine = (long, long.clone())
    out, norm = triton.batch_norm_forward(
        x, time_steps, config, *affine, 1e-5, rate, v, mask, state, channels, tracking
    )
    triton.batch_norm_backward(out.spikes, v, x, time_steps, config, *affine, norm, 1e-5, rate, v, channels)


def _beside(x: torch.Tensor, config: NeuronConfig, state: bool) -> tuple:
    """Rate, potential, mask and sums of activity for x, and a vector of ones."""
    vector = torch.ones(x.shape[2])
    rate = vector if NEURONS[config.neuron].learnable_leak else None
    v = torch.zeros_like(x[0], dtype=torch.float32) if state else None
    return rate, v, vector.bool() if state else None, (vector.long(), vector.double(), vector.long()), vector


def convolve(x: torch.Tensor, of: int | None = None, stride: int = 1, size: int = 3, depthwise: bool = False) -> None:
    """Forward and backward of a convolution of x [M, C, H, W] to as many channels; with ``of``, the active ones among
    so many."""
    channels = x.shape[1]
    width = of or channels
    weight = torch.zeros(width, 1 if depthwise else width, size, size)
    geometry = Geometry((stride, stride), (size // 2, size // 2), (1, 1), channels if depthwise else 1)
    some = torch.arange(channels) if of else None
    active = Channels(some, some)
    y = channel_conv.forward(x, weight, None, geometry, active, False)
    channel_conv.backward(y, x, weight, geometry, active, (True, True, False))


def move_weights(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    last: bool = False,
    inputs: int | None = None,
    outputs: int | None = None,
    has_bias: bool = True,
) -> None:
    """Gather the active block of a float32 weight, and its bias, in a dtype, and scatter both; so many inputs and
    outputs are active, None: all."""
    weight = torch.zeros(shape).contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
    lists = Channels(*(None if n is None else torch.arange(n) for n in (inputs, outputs)))
    block, bias = weights.gather(weight, torch.zeros(shape[0]) if has_bias else None, lists, dtype)
    weights.scatter(block, bias, weight, lists)


def made_frames(m: int, channels: int, size: int, dtype=torch.bfloat16) -> torch.Tensor:
    """Uninitialised frames [m, channels, size, size]."""
    return torch.empty(m, channels, size, size, dtype=dtype).contiguous(memory_format=torch.channels_last)
