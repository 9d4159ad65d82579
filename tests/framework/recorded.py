"""Stand-ins for a device, on the CPU: what records a step and repeats it as a CUDA graph does, and what refuses all
that would wait for a device."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

#: Operators by which the host learns what a device has computed, a size of an output among that.
READS = {
    "_local_scalar_dense",
    "item",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_numpy",
    "masked_select",
    "unique_dim",
    "unique_consecutive",
    "_unique2",
    "lift_fresh",  # of torch.tensor(...), which on a device is a copy that is waited for
}


class Waits(RuntimeError):
    """The host reads what a device has computed."""


def refuse(func: Any, args: tuple[Any, ...]) -> None:
    """Waits where an operator is such a read."""
    name = func._schema.name.removeprefix("aten::")
    masks = name in ("index", "index_put", "index_put_") and any(
        z is not None and z.dtype in (torch.bool, torch.uint8) for z in args[1]
    )
    if name in READS or masks or (name == "repeat_interleave" and func._overloadname == "Tensor"):
        raise Waits(f"{func} waits for the device")


class _Operators(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        refuse(func, args)
        return func(*args, **(kwargs or {}))


class _Noting(TorchDispatchMode):
    wait: str | None = None

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        try:
            refuse(func, args)
        except Waits:
            self.wait = str(func)
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    """What reads without an operator."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if getattr(func, "__name__", "") in ("tolist", "numpy", "cpu", "__array__"):
            raise Waits(f"{func.__name__} waits for the device")
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def nobody_waits() -> Iterator[None]:
    """Refuse reads of any tensor, as if all were on a device."""
    with _Methods(), _Operators():
        yield


class Recorder:
    """A :class:`sca.training.capture.Capture` of CPU tensors. Operators are recorded with where their tensors lie, as a
    graph of CUDA has it, and nothing has been computed once a step is recorded: what was there is as before, what came
    is NaN.

    Attributes:
        graphs: how many were recorded.
        alive: those that were not let go.
        asides: how many steps ran aside.
        tells_waits: whether these tell that they waited; a capture fails for it in any case.
    """

    def __init__(self) -> None:
        self.graphs = self.asides = 0
        self.alive: list[Replayed] = []
        self.tells_waits = False

    def aside(self, work: Callable[[], Any]) -> tuple[Any, str | None]:
        self.asides += 1
        if not self.tells_waits:
            return work(), None
        with _Noting() as noting:
            result = work()
        return result, noting.wait

    def record(self, work: Callable[[], Any]) -> tuple[Replayed, Any]:
        assert not self.alive, "two graphs would hold memory at once"
        state = torch.get_rng_state()
        recording = _Recording()
        try:
            with recording:
                result = work()
        finally:
            torch.set_rng_state(state)
            recording.undo()
        self.graphs += 1
        graph = Replayed(self, recording.calls)
        self.alive.append(graph)
        return graph, result


class Replayed:
    """Recorded operators."""

    def __init__(self, owner: Recorder, calls: list[tuple[Any, Any, Any, list[Tensor]]]) -> None:
        self._owner, self._calls = owner, calls

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, outputs in self._calls:
            result = [z for z in tree_flatten(func(*args, **kwargs))[0] if isinstance(z, Tensor)]
            for own, new in zip(outputs, result, strict=True) if outputs else ():
                own.copy_(new)

    def reset(self) -> None:
        self._calls = []
        self._owner.alive.remove(self)


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._new: list[Tensor] = []
        self._born: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse(func, args)
        schema = func._schema
        for at, argument in enumerate(schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                given = args[at] if at < len(args) else kwargs.get(argument.name)
                for z in tree_flatten(given)[0]:
                    self._keep(z)
        result = func(*args, **kwargs)
        flat = [z for z in tree_flatten(result)[0] if isinstance(z, Tensor)]
        if any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns):
            return result  # a view stays one
        fresh = [] if any(r.alias_info is not None for r in schema.returns) else [z.detach() for z in flat]
        self._born.update(z.untyped_storage()._cdata for z in fresh)
        self._new += fresh
        self.calls.append((func, *tree_map(_place, (args, kwargs)), fresh))
        return result

    def _keep(self, z: Any) -> None:
        """Remember what a tensor held that was there before."""
        if isinstance(z, Tensor) and z.untyped_storage()._cdata not in self._born | self._before.keys():
            storage = z.untyped_storage()
            self._before[storage._cdata] = storage, storage.clone()

    @torch.no_grad()
    def undo(self) -> None:
        for storage, content in self._before.values():
            storage.copy_(content)
        for z in self._new:
            if z.is_floating_point() and z.untyped_storage()._cdata not in self._before:
                z.fill_(float("nan"))


def _place(z: Any) -> Any:
    """The same memory, whatever the tensor object is given next."""
    return z.detach() if isinstance(z, Tensor) else z
