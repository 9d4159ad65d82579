"""Optimizer steps that see active channels alone: dormant ones stay bit-identical, state and weight decay included.

Restoring dormant entries after a full step would do for element-wise optimizers, at the price of the full step; an
optimizer that mixes entries (Muon orthogonalises whole matrices) would still see them. So the step runs on compact
copies, wherever an optimizer's state allows it.
"""

from __future__ import annotations

import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sca_kernels import functional
from sca_kernels.nn import ChannelGroup
from sca_kernels.torch_private import disable_dynamo

from ..structure.groups import Axis
from .fresh_state import fresh_states, is_optimizer, within

__all__ = ["ActiveOptimizer", "active_optimizer"]

#: methods that move weights: schedule-free optimizers exchange them in the last two
_MOVING = ("step", "train", "eval")


class ActiveOptimizer:
    """Makes ``optimizer.step`` work on the active entries of each parameter, its gradient and its optimizer state.

    While the step runs, a parameter with dormant entries holds the dense block of its active ones, and so do its
    gradient and all of its optimizer state; afterwards the blocks are written back and everything has its full size
    and identity again, also when the step raises or is interrupted. State that a step creates is zero for dormant
    entries. This needs state tensors of the shape of their parameter, or of 1 in place of some of its sizes
    (Adafactor). Where there are others (Shampoo's matrices, blocks of quantised state), and around an optimizer that
    steps another one (SAM, Lookahead), which may keep weights anywhere, the step sees full tensors, and dormant entries
    are put back after it. A closure runs on full tensors, whenever it is called. Hooks of the optimizer run inside the
    step and see what it sees.

    ``step`` (``train`` and ``eval``, where there are such) is wrapped on the instance, as torch's learning-rate
    schedulers do: step hooks could not restore anything after an exception. A hook refuses steps that go past the
    wrapper, by a reference that is older. Copies and pickles of an optimizer lose both; a copy of this object puts them
    back, on the optimizers that were copied with it.

    Args:
        optimizers: one or several; those that they step inside are found among their attributes.
        axes: the channel axes of the model's parameters, see :func:`sca.structure.groups.parameter_axes`.

    Raises:
        TypeError: there is no optimizer.
        ValueError: one is wrapped already, or is LBFGS.
    """

    def __init__(
        self, optimizers: Optimizer | Iterable[Optimizer], axes: Mapping[nn.Parameter, tuple[Axis, ...]]
    ) -> None:
        given = [optimizers] if is_optimizer(optimizers) else optimizers
        if not isinstance(given, list | tuple) or not given or not all(is_optimizer(o) for o in given):
            raise TypeError(f"optimizer: expected a torch.optim.Optimizer, or a list of them, got {optimizers!r}")
        self.optimizers = _with_inner(given)
        for optimizer in self.optimizers:
            if isinstance(optimizer, torch.optim.LBFGS):
                raise ValueError(
                    "optimizer: LBFGS keeps its history as vectors over all parameters, which no channel can leave;"
                    " every other optimizer of torch.optim will do"
                )
            if active_optimizer(optimizer) is not None:
                raise ValueError("optimizer: a scheduler is attached to it already; call its detach() first")
        self.axes = dict(axes)
        self._wrap_all()

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers, "axes": self.axes}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._wrap_all()

    def detach(self) -> None:
        """Let steps work on full tensors again. The wrapper stays, for others may have wrapped it, and does nothing."""
        self.axes = {}
        self._blocks = {}
        for handle in self._hooks:
            handle.remove()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """All parameters of the optimizers, some more than once."""
        return [p for optimizer in self.optimizers for group in optimizer.param_groups for p in group["params"]]

    @torch.no_grad()
    def clear(self, channels: Mapping[ChannelGroup, Tensor]) -> None:
        """Give these channels (int64, CPU), as outputs of one layer and as inputs of the next, the state that the
        optimizers start a parameter of their weights with: zero momenta, Rprop's first step size, the weights
        themselves where state follows those."""
        cleared = [
            (optimizer, p, axis, axis.of(group, channels[group].to(p.device)))
            for optimizer in self.optimizers
            for p in optimizer.state
            for axis in self.axes.get(p, ())
            for group in channels.keys() & set(axis.group.parts)
        ]
        needed: dict[tuple[int, nn.Parameter], set[str]] = {}
        for optimizer, p, axis, _ in cleared:
            listed = {key for key, value in optimizer.state[p].items() if _spans(value, p.shape, axis)}
            needed.setdefault((id(optimizer), p), set()).update(listed)
        fresh = fresh_states(self.optimizers, needed)
        for optimizer, p, axis, entries in cleared:
            for key, value in optimizer.state[p].items():
                if _spans(value, p.shape, axis):
                    start = fresh.get((id(optimizer), p), {}).get(key)
                    if isinstance(start, Tensor) and start.shape == value.shape:
                        value.index_copy_(axis.dim, entries, start.index_select(axis.dim, entries).to(value))
                    else:
                        value.index_fill_(axis.dim, entries, 0)

    @torch.no_grad()
    def dormant_sums(self) -> dict[nn.Parameter, tuple[tuple[int, ...], Tensor]]:
        """For each parameter with dormant entries, the versions of its groups and a checksum (int64, on its device)."""
        sums = {}
        for p, axes in self.axes.items():
            if not all(axis.group.all_active for axis in axes):
                block = self._block(p)
                sums[p] = block.versions, _sum_of_bits(p) - _sum_of_bits(block.read(p.data))
        return sums

    def took_step(self) -> bool:
        """Whether any optimizer has stepped since the last time that this was asked. One that a
        ``torch.amp.GradScaler`` skipped is none: it calls no step, or tells a fused one to do nothing."""
        taken = list(self._taken)
        self._taken.clear()
        return any(found_inf is None or not found_inf.any() for found_inf in taken)

    def count_step(self) -> None:
        """Count a step that came past the wrapper: one that was captured, and that the device repeats."""
        self._taken.append(None)

    def _wrap_all(self) -> None:
        self._blocks: dict[nn.Parameter, _Block] = {}
        self._taken: deque[Tensor | None] = deque(maxlen=64)  # nobody may ever ask
        self._steps = 0  # that run now, one inside another
        self._hooks = [
            optimizer.register_step_pre_hook(_Guard(self))
            for optimizer in self.optimizers
            if hasattr(optimizer, "_optimizer_step_pre_hooks")
        ]
        for optimizer in self.optimizers:
            stale = getattr(vars(optimizer).get("step"), "_active_optimizer", None)
            if stale is not None and not any(
                optimizer is known for known in stale.optimizers
            ):  # copied, with all attributes, from another
                for name in _MOVING:
                    vars(optimizer).pop(name, None)
            for name in _MOVING:
                if callable(getattr(optimizer, name, None)):
                    setattr(optimizer, name, self._wrapped(optimizer, getattr(optimizer, name), name == "step"))

    def _wrapped(self, optimizer: Optimizer, method: Callable[..., Any], is_step: bool) -> types.MethodType:
        steps_another = bool(within(optimizer))

        @functools.wraps(method)
        def active(own: Optimizer, *arguments: Any, **named: Any) -> Any:
            if own is not optimizer:
                raise ValueError(
                    "optimizer: a copy of one that a scheduler is attached to; copy model, optimizer and scheduler"
                    " together, or give the copy a scheduler of its own"
                )
            with self._active(optimizer, whole=steps_another) as aside:
                closures = [
                    functools.partial(_on_full_tensors, each, aside) if callable(each) else each for each in arguments
                ]
                if callable(named.get("closure")):
                    named["closure"] = functools.partial(_on_full_tensors, named["closure"], aside)
                found_inf = getattr(optimizer, "found_inf", None)
                result = method(*closures, **named)
                if is_step:
                    self._taken.append(found_inf)
                return result

        active = disable_dynamo(active)  # tensors change their sizes here, which a compiled step can't follow
        active._active_optimizer = self
        return types.MethodType(active, optimizer)

    def require_wrapped(self, optimizer: Optimizer) -> None:
        """ValueError where a step goes past the wrapper and would move dormant entries; one that moves none counts."""
        if self._steps:
            return
        if self._sparse(optimizer):
            raise ValueError(
                "optimizer: this step goes past the scheduler, by a reference to optimizer.step from before the"
                " scheduler was made, as torch.compile(optimizer.step) may hold; take it anew"
            )
        self._taken.append(None)

    def _sparse(self, optimizer: Optimizer) -> list[nn.Parameter]:
        """The optimizer's parameters that have dormant entries, but for frozen ones, which no step touches."""
        return [
            p
            for group in optimizer.param_groups
            for p in group["params"]
            if not all(axis.group.all_active for axis in self.axes.get(p, ()))
            and (p.requires_grad or p.grad is not None)
        ]

    @contextmanager
    def _active(self, optimizer: Optimizer, whole: bool) -> Iterator[list[_Aside]]:
        """Keep the dormant entries of its parameters and their state out of what runs within."""
        aside: list[_Aside] = []
        self._steps += 1
        with ExitStack() as after:  # where one parameter can't be put back, the others are all the same
            after.callback(self._end_step)
            for p in self._sparse(optimizer):
                block, state = self._block(p), optimizer.state.get(p, {})
                kind = _Kept if whole or not block.holds(state) else _Swapped
                aside.append(kind(p, state, block))
                after.callback(lambda each=aside[-1]: each.leave(optimizer.state.get(each.p, {})))
                aside[-1].enter()
            yield aside

    def _end_step(self) -> None:
        self._steps -= 1

    def _block(self, p: nn.Parameter) -> _Block:
        """The active block of a parameter, kept until the structure changes."""
        versions = tuple(axis.group.version for axis in self.axes[p])
        known = self._blocks.get(p)
        if known is None or known.versions != versions:
            known = self._blocks[p] = _Block(p, self.axes[p], versions)
        return known


def active_optimizer(optimizer: Any) -> ActiveOptimizer | None:
    """What makes an optimizer's steps work on active entries; None where nothing does."""
    attached = getattr(getattr(optimizer, "step", None), "_active_optimizer", None)
    return attached if attached is not None and attached.axes else None


class _Guard:
    """A step hook that refuses steps past the wrapper; in a copy of an optimizer it lets everything pass."""

    capturable = True

    def __init__(self, active: ActiveOptimizer | None = None) -> None:
        self.active = active

    def __reduce__(self) -> tuple[type[_Guard], tuple[()]]:
        return _Guard, ()

    def __call__(self, optimizer: Optimizer, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if self.active is not None:
            self.active.require_wrapped(optimizer)


class _Block:
    """Reads and writes the active entries of a parameter and of tensors that are laid out like it.

    On a CPU, weights go through kernels. All else has positions in memory order, one int64 for each active entry:
    measured on 2.4 M weights, reading and writing through one flat index takes less than half the time of indexing rows
    and columns.
    """

    def __init__(self, p: nn.Parameter, axes: tuple[Axis, ...], versions: tuple[int, ...]) -> None:
        self.axes, self.versions, self.shape = axes, versions, p.shape
        self.compact = torch.Size(
            next((axis.group.num_active * axis.block for axis in axes if axis.dim == dim), size)
            for dim, size in enumerate(p.shape)
        )
        self._positions: dict[tuple[torch.Size, tuple[int, ...]], Tensor] = {}
        entries = {axis.dim: axis.entries(axis.group.active.to(p.device)) for axis in axes}
        self._entries = entries[0] if p.dim() == 1 else None
        self._channels = (entries.get(1), entries.get(0)) if p.dim() > 1 and entries.keys() <= {0, 1} else None

    def _is_weight(self, full: Tensor) -> bool:
        """Whether kernels read and write the block of such a tensor in one pass."""
        if self._channels is None or full.shape != self.shape:
            return False
        dense = full.is_contiguous() or full.is_contiguous(memory_format=torch.channels_last)
        return dense and full.is_floating_point() and full.device.type == "cpu"

    def lists_channels(self, value: Any, shape: torch.Size) -> bool:
        """Whether ``value`` is laid out like a tensor of ``shape`` (the full or the compact one) along any axis."""
        return any(_spans(value, shape, axis) for axis in self.axes)

    def holds(self, state: Mapping[str, Any]) -> bool:
        """Whether all state of the parameter is plain values, or laid out like it: a block says all about it."""
        return all(
            value.numel() <= 1 or _is_laid_out(value, self.shape)
            if isinstance(value, Tensor)
            else value is None or isinstance(value, bool | int | float | str)
            for value in state.values()
        )

    def zeros(self, block: Tensor, like: Tensor) -> Tensor:
        """Full-size zeros for what an optimizer created as ``block``; laid out as ``like`` where it has its shape."""
        if block.shape == self.compact:
            return torch.zeros_like(like, dtype=block.dtype)
        sizes = zip(self.shape, self.compact, block.shape, strict=True)
        return block.new_zeros([full if size == compact else size for full, compact, size in sizes])

    def read(self, full: Tensor) -> Tensor:
        """A new tensor with the active entries, in the layout of ``full``."""
        if self._entries is not None and full.shape == self.shape:
            return full.index_select(0, self._entries)
        if self._is_weight(full):
            return functional.gather_weight(full, *self._channels)
        order = _memory_order(full)
        entries = full.permute(order).reshape(-1).index_select(0, self._index(full, order))
        sizes = [self.compact[dim] if full.shape[dim] == self.shape[dim] else full.shape[dim] for dim in order]
        return entries.view(sizes).permute([order.index(dim) for dim in range(full.dim())])

    def write(self, full: Tensor, block: Tensor) -> None:
        """Put the active entries back into ``full`` (dense), in place."""
        if self._entries is not None and full.shape == self.shape:
            full.index_copy_(0, self._entries, block)
            return
        if self._is_weight(full):
            functional.put_weight(block, full, *self._channels)
            return
        order = _memory_order(full)
        full.permute(order).view(-1).scatter_(0, self._index(full, order), block.permute(order).reshape(-1))

    def _index(self, full: Tensor, order: tuple[int, ...]) -> Tensor:
        key = (full.shape, order)
        if key not in self._positions:
            positions = torch.zeros(1, dtype=torch.int64, device=full.device)
            for dim in order:
                along = torch.arange(full.shape[dim], device=full.device)
                for axis in self.axes:
                    if axis.dim == dim and _spans(full, self.shape, axis):
                        along = axis.entries(axis.group.active.to(full.device))
                positions = (positions[:, None] * full.shape[dim] + along).flatten()
            self._positions[key] = positions
        return self._positions[key]


class _Aside:
    """One parameter's dormant entries, out of reach while an optimizer steps."""

    def __init__(self, p: nn.Parameter, state: dict[str, Any], block: _Block) -> None:
        self.p, self.block, self.live = p, block, state
        self.state = {key: value for key, value in state.items() if block.lists_channels(value, p.shape)}

    def enter(self) -> None:
        """The step begins."""

    def leave(self, state: dict[str, Any]) -> None:
        """The step is over, or was broken off, and left ``state``."""

    def widen(self) -> None:
        """A closure begins, which is to see the parameter as it is now, at full size."""

    def narrow(self) -> None:
        """The closure is over."""


class _Swapped(_Aside):
    """Full tensors, put aside while the optimizer sees their active blocks."""

    def enter(self) -> None:
        self.data, self.grad = self.p.data, self.p.grad
        if self.grad is not None and self.grad.layout != torch.strided:
            raise ValueError(f"optimizer: expected dense gradients while channels are dormant, got {self.grad.layout}")
        self._show(self.block.read(self.data))
        for key, value in self.state.items():
            self.live[key] = self.block.read(value)

    @torch.no_grad()
    def leave(self, state: dict[str, Any]) -> None:
        self._write_back()
        for key, value in state.items():
            full = self.state.get(key)
            if full is None and self.block.lists_channels(value, self.block.compact):  # created by this step
                full = self.block.zeros(value, self.data)
            if full is not None and value is not full:
                self.block.write(full, value)
                state[key] = full

    @torch.no_grad()
    def widen(self) -> None:
        self._write_back()

    @torch.no_grad()
    def narrow(self) -> None:
        self.data, self.grad = self.p.data, self.p.grad
        self._show(self.compact.copy_(self.block.read(self.data)))

    def _show(self, compact: Tensor) -> None:
        grad = None if self.grad is None else self.block.read(self.grad)
        self._put(compact, grad)
        self.shown = grad, None if grad is None else grad._version

    def _write_back(self) -> None:
        self.compact, grad = self.p.data, self.p.grad
        if self.compact.shape == self.data.shape:  # it was broken off before the block was shown
            self._put(self.data, self.grad)
            return
        if grad is None:  # the step forgot it
            self.grad = None
        self._put(self.data, self.grad)
        self.block.write(self.p, self.compact)  # through p: autograd must see the change
        if self.grad is not None and (
            grad is not self.shown[0] or grad._version != self.shown[1]
        ):  # the step scaled or cleared it
            self.block.write(self.grad, grad)

    def _put(self, data: Tensor, grad: Tensor | None) -> None:
        # A gradient must have its parameter's shape, so the parameter changes between two gradients.
        self.p.grad = None
        self.p.data = data
        self.p.grad = grad


class _Kept(_Aside):
    """Copies, which are put back after a step on full tensors."""

    @torch.no_grad()
    def enter(self) -> None:
        self.before = {None: self.p.detach().clone(), **{key: value.clone() for key, value in self.state.items()}}

    @torch.no_grad()
    def leave(self, state: dict[str, Any]) -> None:
        for key, before in self.before.items():
            after = self.p if key is None else state.get(key)
            if isinstance(after, Tensor) and after.shape == before.shape:
                active = self.block.read(after.detach())
                self.block.write(after.copy_(before), active)


@torch.no_grad()
def _on_full_tensors(closure: Callable[[], Any], aside: list[_Aside]) -> Any:
    for each in aside:
        each.widen()
    try:
        with torch.enable_grad():
            return closure()
    finally:
        for each in aside:
            each.narrow()


def _with_inner(optimizers: Iterable[Optimizer]) -> list[Optimizer]:
    """These optimizers and all that they step inside, each once, inner ones behind those that hold them."""
    found: list[Optimizer] = []
    waiting = list(optimizers)
    while waiting:
        optimizer = waiting.pop(0)
        if not any(optimizer is known for known in found):
            found.append(optimizer)
            waiting += within(optimizer)
    return found


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Sum of the entries' bits as integers; the sign of a zero, which adding a zero may change, does not count."""
    bits = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return (tensor.detach() + 0.0).view(bits).sum(dtype=torch.int64)


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the slowest to the fastest."""
    return tuple(sorted(range(tensor.dim()), key=lambda dim: -tensor.stride(dim)))


def _is_laid_out(value: Tensor, shape: torch.Size) -> bool:
    """Whether ``value`` is of ``shape``, some sizes replaced by 1."""
    return value.dim() == len(shape) and all(size in (1, full) for size, full in zip(value.shape, shape, strict=True))


def _spans(value: Any, shape: torch.Size, axis: Axis) -> bool:
    """Whether ``value`` is a tensor of ``shape``, some sizes replaced by 1, but not that of the axis."""
    return isinstance(value, Tensor) and _is_laid_out(value, shape) and value.shape[axis.dim] == shape[axis.dim]
