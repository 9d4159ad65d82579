"""What records a training step and repeats it: CUDA's graphs, and what an optimizer needs in one."""

from __future__ import annotations

import contextlib
import warnings
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

    def aside(self, work: Callable[[], Result]) -> tuple[Result, str | None]:
        """Do work as it stands, where it would be recorded: behind what the current stream has been given, and in
        front of what it is given next. What it returns, and where it waited for the device; None where it did not, as
        far as that is known."""

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

    def aside(self, work: Callable[[], Result]) -> tuple[Result, str | None]:
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        try:
            with torch.cuda.stream(self._stream), _noting_waits() as waits:
                result = work()
        finally:
            current.wait_stream(self._stream)
        return result, next(iter(waits), None)

    def record(self, work: Callable[[], Result]) -> tuple[Recording, Result]:
        graph = torch.cuda.CUDAGraph()
        with (
            torch.cuda.device(self._device),
            # which is the current one again at the end, also where a capture that failed can't be ended
            torch.cuda.stream(torch.cuda.current_stream(self._device)),
            # Threads that load data may go on: what they ask of CUDA is none of the capture's business.
            torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"),
        ):
            result = work()
        return graph, result


@contextlib.contextmanager
def _noting_waits() -> Iterator[list[str]]:
    """Where the host waits for a CUDA device, by torch's own account, filled in at the end. To learn that from a
    capture that fails would be late: torch's random numbers do not recover from every one."""
    places: list[str] = []
    mode = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if mode == 0:
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield places
        finally:
            torch.cuda.set_sync_debug_mode(mode)
    for each in caught:
        is_wait = "synchronizing CUDA operation" in str(each.message)
        if is_wait:
            places.append(f"{each.filename}:{each.lineno}")
        if mode or not is_wait:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)


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
