"""What records a training step and repeats it: CUDA's graphs, and what an optimizer needs in one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

__all__ = ["Capture", "DeviceNumbers", "Recording", "capture_of"]

Result = TypeVar("Result")


class Recording(Protocol):
    """Work that a device does again: :class:`torch.cuda.CUDAGraph`."""

    def replay(self) -> None:
        """Do it, on the current stream, with the tensors that it was recorded with; nobody waits for it."""

    def reset(self) -> None:
        """Let go of it, and of its memory."""


class Capture(Protocol):
    """A device that can record work."""

    def aside(self, work: Callable[[], Result]) -> Result:
        """Do work as it stands, where it would be recorded: behind what the current stream has been given, and in
        front of what it is given next."""

    def record(self, work: Callable[[], Result]) -> tuple[Recording, Result]:
        """The work, of which nothing is done yet, and what it returns: tensors whose values come with each replay."""


class CudaCapture:
    """CUDA graphs of a device, recorded on a side stream of their own, whose warm-up work runs there, too: torch asks
    for that, since what autograd and libraries keep per stream must not lead out of a capture.

    Each graph has a memory pool of its own. Recording one first gives back what the caching allocator holds unused,
    that of earlier graphs included, so there never are two pools of activations.
    """

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)

    def aside(self, work: Callable[[], Result]) -> Result:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream):
                return work()
        finally:
            current.wait_stream(self._stream)

    def record(self, work: Callable[[], Result]) -> tuple[Recording, Result]:
        graph = torch.cuda.CUDAGraph()
        # Threads that load data may go on: what they ask of CUDA is none of the capture's business.
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = work()
        return graph, result


def capture_of(device: torch.device) -> Capture | None:
    """What records work on a device; None where nothing does."""
    return CudaCapture(device) if device.type == "cuda" else None


class DeviceNumbers:
    """The learning rates of optimizers as tensors on a device, and the options without which steps can't be captured.

    Both are in the optimizers' groups while a step runs, and not otherwise: everybody else sees the numbers and options
    that the user has set, a schedule of torch sets numbers, and a state_dict holds what it always did (but that the
    step counts of Adam and its like are on the device).

    Args:
        optimizers: such that :func:`sca.training.obstacles.of_optimizer` has nothing to say of.
        device: of their parameters.
    """

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer], device: torch.device) -> None:
        self._optimizers, self._device = optimizers, device
        self._rates: list[tuple[dict[str, Any], float, Tensor]] = []

    def prepare(self) -> None:
        """Have single numbers of the optimizers' state, such as counts of steps, on the device: where nothing was to be
        captured, they began on the host."""
        for optimizer in self._optimizers:
            for p, state in optimizer.state.items():
                for name, value in state.items():
                    if isinstance(value, Tensor) and value.numel() == 1 and value.device != p.device:
                        state[name] = value.to(p.device)

    def update(self) -> None:
        """Take over the learning rates as they are set now; waits for no device, and writes none that is as it was."""
        groups = [group for optimizer in self._optimizers for group in optimizer.param_groups]
        if list(map(id, groups)) != [id(group) for group, *_ in self._rates]:
            self._rates = [(group, float("nan"), torch.zeros((), device=self._device)) for group in groups]
        for place, (group, last, tensor) in enumerate(self._rates):
            told = group["lr"]
            if isinstance(told, Tensor) and told.device.type == self._device.type:
                tensor.copy_(told.detach().reshape(()))
            elif float(told) != last:
                tensor.fill_(float(told))
                self._rates[place] = group, float(told), tensor

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Have the optimizers' groups hold them."""
        held = []
        for group, _, tensor in self._rates:
            options: dict[str, Any] = {"lr": tensor}
            if "capturable" in group:
                options["capturable"] = True
            else:  # SGD, whose other forms read the learning rate on the host
                options |= {"fused": True, "foreach": False}
            held.append((group, {name: group[name] for name in options}))
            group.update(options)
        try:
            yield
        finally:
            for group, before in held:
                group.update(before)
