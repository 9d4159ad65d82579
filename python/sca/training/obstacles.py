"""Why a training step can't be captured, in words, and what a captured one depends on."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from operator import is_
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sca_kernels.nn.group import ROLES
from sca_kernels.torch_private import compiled_call

from ..pruning.fresh_state import within
from ..structure.hooks import hooks_of, is_capturable, is_own
from ..structure.wrappers import is_compiled

__all__ = ["Places", "Surroundings", "kept_between_steps", "name_once", "of_model", "of_optimizer", "of_state", "same"]

logger = logging.getLogger(__name__)

_named: set[str] = set()
"""What this process has been told, see :func:`name_once`."""

_WRAPPERS = ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel")


def name_once(reason: str) -> None:
    """Say, once per process, why steps run as they stand."""
    if reason not in _named:
        _named.add(reason)
        logger.warning("training steps run without a CUDA graph: %s", reason)


def of_model(model: nn.Module, device: torch.device) -> str | None:
    """What in a model stands against capturing its steps; None where nothing does.

    Args:
        device: of its inputs.
    """
    for name, module in model.named_modules():
        called = f"{name or 'the model'} ({type(module).__name__})"
        if type(module).__name__ in _WRAPPERS:
            return f"{called} is spread over several devices or processes"
        if getattr(module, "process_group", None) is not None or isinstance(module, nn.SyncBatchNorm):
            return f"{called} waits for other processes"
        if is_compiled(module) or compiled_call(module) is not None:
            return f"{called} was compiled by torch.compile, which has graphs of its own (mode='reduce-overhead')"
        for hook in hooks_of(module):
            if not is_own(hook) and not is_capturable(hook):
                return (
                    f"{called} has the hook {hook!r:.80}, which may read values or count; one that only launches the "
                    "same work each time may say so: hook.capturable = True"
                )
    for name, p in model.named_parameters():
        if p.device != device:
            return f"{name} is on {p.device}, the batch on {device}"
        if _has_hook(p):
            return f"{name} has a hook on its gradient"
    return None


def _has_hook(p: Tensor) -> bool:
    """Whether somebody is called with its gradient."""
    return bool(getattr(p, "_backward_hooks", None) or getattr(p, "_post_accumulate_grad_hooks", None))


def of_optimizer(optimizer: Any) -> str | None:
    """What in an optimizer stands against capturing its steps; None where nothing does."""
    called = f"the optimizer {type(optimizer).__name__}"
    if within(optimizer):
        return f"{called} steps another one inside"
    for name in ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks"):
        for hook in getattr(optimizer, name, {}).values():
            if not is_own(hook) and not is_capturable(hook):
                return f"{called} has the hook {hook!r:.80}"
    if not all("capturable" in group for group in optimizer.param_groups) and type(optimizer) is not torch.optim.SGD:
        return f"{called} has no option 'capturable', so it may read values or count on the host"
    if any(group.get("differentiable") for group in optimizer.param_groups):
        return f"{called} is differentiable"
    held = [p for group in optimizer.param_groups for p in group["params"]]
    if any(not p.is_floating_point() or type(p.data) is not Tensor for p in held):
        return f"{called} has parameters that are no ordinary floating point tensors"
    return None


def of_state(optimizers: Iterable[Any], device: torch.device) -> str | None:
    """What of the optimizers' state, as their steps have made it, a captured step would not carry on."""
    for optimizer in optimizers:
        for state in optimizer.state.values():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.device.type != device.type:
                    return f"the optimizer {type(optimizer).__name__} keeps {name} on {value.device}"
                if isinstance(value, int | float) and not isinstance(value, bool):
                    return f"the optimizer {type(optimizer).__name__} keeps {name} on the host"
    return None


def kept_between_steps(model: nn.Module) -> dict[str, Any]:
    """What modules hold in attributes of their own, numbers and tensors, by name: where steps replace them, each goes
    on from the last, which the repetition of one does not."""
    kept: dict[str, Any] = {}
    for name, module in model.named_modules():
        for attribute, value in vars(module).items():
            if attribute in ("training", "_parameters", "_modules"):
                continue
            where = f"{name or 'the model'} ({type(module).__name__}) keeps {attribute}"
            if isinstance(value, Tensor) or (isinstance(value, int | float) and not isinstance(value, bool)):
                kept[where] = value
            elif isinstance(value, dict | list | tuple):
                inner = value.values() if isinstance(value, dict) else value
                tensors = [each for each in inner if isinstance(each, Tensor)]
                kept |= {where: tensors} if tensors else {}
    return kept


def same(a: Any, b: Any) -> bool:
    """Whether what was kept is the same tensors, or equal numbers."""
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(is_, a, b))
    return a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)


class Surroundings(NamedTuple):
    """What decides which work a step is: where two are equal, so are the steps' launches.

    Attributes:
        inputs: shape, strides, dtype and device of images and labels.
        numerics: precision, autocast and whether algorithms are deterministic.
        structure: versions of the channel groups, and whether they are being probed.
        modes: training or eval, of each module; which parameters have a gradient, and a hook on it; modules' hooks.
        options: those of the optimizers' groups but learning rates, which are on the device.
    """

    inputs: tuple[Any, ...]
    numerics: tuple[Any, ...]
    structure: tuple[Any, ...]
    modes: tuple[Any, ...]
    options: tuple[Any, ...]

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, precision: str, modules: Sequence[nn.Module], optimizers: Sequence[Any]
    ) -> Surroundings:
        """Those of now. It is asked for before each step: nothing here reads a device, or takes long."""
        kind = images.device.type
        groups = [vars(m)[role] for m in modules for role in ROLES if vars(m).get(role) is not None]
        return cls(
            tuple((z.shape, z.stride(), z.dtype, z.device, z.requires_grad) for z in (images, labels)),
            (
                precision,
                torch.is_autocast_enabled(kind),
                torch.get_autocast_dtype(kind),
                torch.are_deterministic_algorithms_enabled(),
                torch.is_grad_enabled(),
            ),
            tuple((g.version, g.probing) for g in groups if hasattr(g, "probing")),
            (
                tuple(m.training for m in modules),
                tuple(
                    (p.requires_grad, _has_hook(p)) for m in modules for p in m._parameters.values() if p is not None
                ),
                tuple(hook for m in modules for hook in hooks_of(m)),
            ),
            tuple(_options(group) for optimizer in optimizers for group in optimizer.param_groups),
        )

    @property
    def hooks(self) -> tuple[Any, ...]:
        """Those on modules."""
        return self.modes[2]


def _options(group: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(
        (name, id(value) if isinstance(value, Tensor) else value)
        for name, value in group.items()
        if name not in ("params", "lr", "initial_lr")
    )


class Places:
    """The tensors that a step reads and writes beside its batch, and where they lie: parameters, buffers, activity
    sums, optimizer state. A captured step has those that were there when it was captured, whatever stands in their
    place."""

    def __init__(self, modules: Sequence[nn.Module], optimizers: Sequence[Any]) -> None:
        weights = [z for m in modules for held in (m._parameters, m._buffers) for z in held.values() if z is not None]
        weights += [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        sums = [z for m in modules for z in _activity(m)]
        state = [z for optimizer in optimizers for of_one in optimizer.state.values() for z in of_one.values()]
        self._held = [*modules, *weights, *sums, *(z for z in state if isinstance(z, Tensor))]
        self._addresses = [z.data_ptr() for z in weights]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Places)
            and len(self._held) == len(other._held)
            and all(map(is_, self._held, other._held))
            and self._addresses == other._addresses
        )

    __hash__ = None


def _activity(module: nn.Module) -> Iterator[Any]:
    activity = vars(module).get("activity")
    if activity is not None:
        yield from (activity.spike_count, activity.membrane_l1, activity.positions)
