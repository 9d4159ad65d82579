"""One run by many processes: those that torchrun started step, prune, save and stop as one."""

from __future__ import annotations

import gc
import inspect
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from .. import checkpoint
from ..pruning.ranks import sum_over_ranks

Result = TypeVar("Result")

# Ranks wait for each other's downloads and checkpoints, no longer; one that has died is noticed at once.
TIMEOUT = timedelta(minutes=10)


class RankLost(Exception):
    """Another process of this run has ended, or does not answer."""


@dataclass(frozen=True)
class Ranks:
    """The processes of a run, seen from one of them; by default it is alone.

    Attributes:
        rank, size: number of this process, and of all.
        local_rank: its number on this machine.
        device: kind of device that they exchange tensors on.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    device: str = "cpu"

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes and shows."""
        return self.rank == 0

    def check_batches(self, batch_size: int, samples: int) -> None:
        """ValueError unless every batch of an epoch has a part for each process, and all but the last equal parts."""
        if batch_size % self.size:
            raise ValueError(f"batch_size: expected a multiple of the {self.size} processes, got {batch_size}")
        last = samples % batch_size
        if 0 < last < self.size:
            raise ValueError(
                f"batch_size: expected an image for each of the {self.size} processes in an epoch's last batch, got"
                f" {last} ({samples} images in batches of {batch_size})"
            )

    def share(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, float]:
        """This process's consecutive part of a batch that all processes hold, and the weight with which the mean over
        it goes into a mean over the processes: 1, if parts are of equal size.

        Args:
            images: ``[N, ...]``, or sequences ``[T, N, C, H, W]``.
            labels: ``[N]``.
        """
        samples = 1 if images.dim() == 5 else 0
        own_images = images.tensor_split(self.size, samples)[self.rank]
        own_labels = labels.tensor_split(self.size)[self.rank]
        return own_images, own_labels, len(own_labels) * self.size / len(labels)

    def wrap(self, model: nn.Module) -> nn.Module:
        """The module to call for a training step: it averages gradients over the processes, and batch norms see all
        their samples. Parameters stay as they are, so dormant channels do: their gradients are zero, not missing."""
        if self.size == 1:
            return model
        set_norm_group(model, True)
        # The batch norms' statistics are the same everywhere: no buffer has to be sent. Torch 2.13 renamed the switch.
        # Gradients are views of the wrapper's buckets: else there are two copies of each.
        wrapper = nn.parallel.DistributedDataParallel
        known = inspect.signature(wrapper).parameters
        name = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
        return wrapper(model, gradient_as_bucket_view=True, **{name: False})

    def sum(self, *values: float) -> tuple[float, ...]:
        """Sums over the processes, in float64."""
        if self.size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return tuple(total.tolist())

    def from_first(self, call: Callable[[], Any]) -> Any:
        """The tree (:mod:`sca.checkpoint`) that ``call()`` gives on the first process, which alone calls."""
        if self.size == 1:
            return call()
        data = bytearray(checkpoint.to_bytes(call()) if self.is_first else b"")
        length = torch.tensor([len(data)], device=self.device)
        dist.broadcast(length, 0)
        buffer = torch.frombuffer(data, dtype=torch.uint8) if data else torch.empty(int(length), dtype=torch.uint8)
        buffer = buffer.to(self.device)
        dist.broadcast(buffer, 0)
        return checkpoint.from_bytes(buffer.cpu().numpy().tobytes(), "what the first process sent")

    def one_before_others(self, call: Callable[[], Result]) -> Result:
        """``call()``, by one process of each machine before the others: it may leave a download for them."""
        if self.local_rank == 0:
            result = call()
            self.sum(0.0)  # a barrier
            return result
        self.sum(0.0)
        return call()

    def joint_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """A scheduler's state with the activity of all processes, which any number of processes can go on from."""
        if self.size == 1:
            return state
        activity = state["activity"]
        summed = sum_over_ranks({f"{n}/{kind}": value for n, sums in activity.items() for kind, value in sums.items()})
        return {
            **state,
            "activity": {n: {kind: summed[f"{n}/{kind}"] for kind in sums} for n, sums in activity.items()},
        }

    def own_state(self, state: dict[str, Any]) -> dict[str, Any]:
        """What this process goes on from: the first with all the activity, the others with none."""
        return state if self.is_first else {**state, "activity": {}}

    def leave(self) -> None:
        """End the exchange; each process is alone from here on. What :meth:`wrap` gave must have been let go."""
        if self.size > 1:
            # Wrappers are in cycles of references. Were one the last to hold the process group, it would end the
            # group's threads with Python's lock in hand, for which a thread that still lets go of a tensor waits.
            gc.collect()
            dist.destroy_process_group()


def set_norm_group(model: nn.Module, group: bool | None) -> None:
    """Have batch norms take their statistics over all processes (True), or over their own samples (None)."""
    for module in model.modules():
        if hasattr(module, "process_group") and not isinstance(module, nn.SyncBatchNorm):  # torch's has all anyway
            module.process_group = group


def _told(name: str, default: int | None, low: int = 0, high: int = 2**31 - 1) -> int:
    """What the environment variable ``name`` says; ValueError where that is no number in [low, high], or nothing and
    there is no default."""
    text = os.environ.get(name)
    if text is None and default is not None:
        return default
    # digits alone: int() would take "1_0" and " 1 " too
    if text is None or not (text.isascii() and text.isdigit() and len(text) < 12 and low <= int(text) <= high):
        got = "nothing" if text is None else repr(text)
        raise ValueError(
            f"{name}: expected a number from {low} to {high} in the environment, as torchrun sets it, got {got}"
        )
    return int(text)


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes that torchrun started; without it, one alone.

    Args:
        device: what the run computes on. With ``cuda`` each process takes the GPU of its local number, and NCCL
            carries the exchange; otherwise Gloo does.

    Raises:
        ValueError: the device is one particular GPU, there are fewer GPUs than processes, or an environment variable
            is not what torchrun sets.
        RankLost: another process ended in the middle.
    """
    size = _told("WORLD_SIZE", 1, low=1)
    if size == 1:
        yield Ranks()
        return
    _told("RANK", None, high=size - 1)
    _told("MASTER_PORT", None, low=1, high=65535)
    kind, local_rank = torch.device(device), _told("LOCAL_RANK", 0, high=size - 1)
    if kind.index is not None:
        raise ValueError(f"device: expected {kind.type}, of which each process takes its own, got {device!r}")
    if kind.type == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise ValueError(f"device: expected a GPU for each process, got {torch.cuda.device_count()}")
        torch.cuda.set_device(local_rank)
    try:
        dist.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=TIMEOUT)
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, kind.type)
    except RuntimeError as error:
        # Gloo raises plain RuntimeErrors that name its source files.
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            reason = str(error).split(". ")[0]
            raise RankLost(f"another process of this run has ended, or does not answer ({reason})") from error
        raise
    if dist.is_initialized():
        dist.destroy_process_group()
