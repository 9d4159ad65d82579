"""Recording a pass: calls of layers, neurons and functions of torch, and what code around them does to modules."""

from __future__ import annotations

import contextlib
import gc
import inspect
import itertools
import random
import sys
import weakref
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from ...structure.applies import Applies
from ...structure.hooks import hooks_of
from ...structure.tracing import leaves
from .calls import (
    Constant,
    Held,
    Input,
    LoopError,
    Node,
    Ref,
    Slot,
    Source,
    TensorObject,
    leaves_and_slots,
    mapped,
    slots_of,
    words,
)
from .families import ELEMENTWISE, FACTORIES, INDEXING

__all__ = ["Effect", "OpaqueModule", "Recorder", "UnknownTensor", "is_machinery"]

# Recording.

_LIBRARIES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))


# These tell what a tensor is, not which values it has.
_METADATA = words(
    "shape size dim ndim ndimension numel nelement device dtype layout itemsize nbytes element_size stride "
    "storage_offset is_cuda is_cpu is_mps is_meta is_xpu is_sparse is_quantized is_nested is_floating_point is_complex "
    "is_signed is_contiguous is_leaf is_inference is_tensor requires_grad grad_fn grad names name len hash get_device "
    "data_ptr untyped_storage version output_nr is_pinned is_shared result_type promote_types has_names is_same_size "
    "is_storage is_conj is_neg"
)
# The shape of what these return depends on values.
_SHAPED_BY_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histogram"}


_SEED = 0x5CA


class OpaqueModule(Exception):
    """A module without converted neurons that can't be looked into: it is to be called as a whole."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class UnknownTensor(Exception):
    """A tensor that no recorded call made and that the model does not hold."""


@dataclass(eq=False)
class Effect:
    """What the code did to what a module keeps, other than by calling it: places there and their new values."""

    module: nn.Module
    entries: list[tuple[tuple[Any, ...], Any]]
    sources: list[Source]
    index: int  # of the next node
    before: bool  # the first call, or behind the last


class Recorder(TorchFunctionMode):
    """Runs a pass and notes its calls.

    Args:
        model: whose forward is recorded.
        neurons: their calls are single nodes.
        opaque: the calls of these modules, too.
        finds_constants: look for all tensors that there are before the pass, which takes a while.
    """

    def __init__(
        self, model: nn.Module, neurons: Mapping[nn.Module, Any], opaque: set[nn.Module], finds_constants: bool
    ) -> None:
        super().__init__()
        self.finds_constants = finds_constants
        self.model, self.neurons, self.opaque = model, neurons, set(opaque)
        self.nodes: list[Node] = []
        self.effects: list[Effect] = []
        self.output: Any = None
        self.output_sources: list[Source] = []
        self.output_read: list[TensorObject] = []
        self.codes: dict[CodeType, dict] = {}
        self.names = {module: name or "the model" for name, module in model.named_modules()}
        self.with_neurons = {m for m in self.names if any(inner in neurons for inner in m.modules())}
        self.hooked = {module for module in self.names if module is not model and hooks_of(module)}
        self._applies = Applies()
        self._ours = False  # whether the code that runs is a leaf's
        self._stack: list[nn.Module] = []
        self._entered: tuple | None = None
        self._known: dict[int, tuple[Callable[[], Any], Source, TensorObject]] = {}
        self._old: dict[int, Tensor] = {}
        self._made = 0
        self._storages: dict[int, StorageWeakRef] = {}
        self._contents: dict[nn.Module, dict[tuple, Any]] = {}
        self._versions: dict[nn.Module, list[int]] = {}
        self._called: set[nn.Module] = set()

    def record(self, forward: Callable, args: tuple, kwargs: dict) -> None:
        """Note all calls of a pass.

        Raises:
            LoopError: the pass can't be recorded.
            OpaqueModule: it can, if this module is called as a whole.
        """
        for module in self.hooked - self.with_neurons:
            if not self._is_layer(module):
                self.opaque.add(module)
        for module in self.hooked & self.with_neurons - set(self.neurons):
            raise LoopError(
                f"{self.names[module]} ({type(module).__name__}) has hooks, which a folded pass would not call"
            )

        def owned(x: Any) -> Any:
            return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x

        # A pass before: a reset in forward shows only where there is a state to forget, and what a module makes in its
        # first pass only there.
        called = [module for module in self.names if module is not self.model and self._is_leaf(module)]
        self._called = {inner for module in called for inner in module.modules()}
        for module in self.names.keys() - self._called:
            self._contents[module] = _contents(module)
        with torch.no_grad():
            self._guarded(forward, *mapped((args, kwargs), owned))
        for module in self.names:
            if module not in self._called:
                self._require_unchanged(module)
        args, kwargs = mapped((args, kwargs), owned)
        if self.finds_constants:
            self._old = {id(x): x for x in gc.get_objects() if issubclass(type(x), Tensor)}
        for module in self.names:
            self._contents[module] = self._kept(module)
            for (holder, *path), value in self._contents[module].items():
                if isinstance(value, Tensor):
                    self._know(value, Held(holder, tuple(path)))
        for index, x in enumerate(x for x in leaves((args, kwargs)) if isinstance(x, Tensor)):
            self._know(x, Input(index))
        self._ambient = torch.is_grad_enabled()
        self._autocast = self._autocasting()
        drawn = self._drawn()
        torch.default_generator.manual_seed(_SEED)
        handles = [handle for module in self.names if module is not self.model for handle in self._hooked(module)]
        try:
            with self._applies, self:
                output = self._guarded(forward, args, kwargs)
        finally:
            for handle in handles:
                handle.remove()
            self._old.clear()
        if torch.initial_seed() != _SEED:
            raise LoopError("the pass seeds torch's random numbers, which a folded pass would not")
        if self._drawn() != drawn:
            raise LoopError("the pass draws from the random numbers of Python or NumPy, which differ from pass to pass")
        self._look_for_effects()
        self.output, self.output_sources, self.output_read = self._nested(output)
        for leaf in leaves_and_slots(self.output):
            if not isinstance(leaf, int | float | str | bool | Slot | torch.Size | None):
                raise LoopError(f"forward returns a {type(leaf).__name__}: expected tensors in tuples, lists and dicts")

    def inside(self) -> list[nn.Module]:
        """The modules whose code was recorded, not their calls."""
        return [module for module in self.names if module is self.model or not self._is_leaf(module)]

    def _guarded(self, forward: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return forward(*args, **kwargs)
        except (LoopError, OpaqueModule, UnknownTensor):
            raise
        except Exception as error:  # whatever the user's code raises
            raise LoopError(f"the pass failed: {type(error).__name__}: {error}") from error

    @staticmethod
    def _drawn() -> tuple:
        state = np.random.get_state(legacy=False)["state"]  # noqa: NPY002  the state that code may draw from
        return random.getstate(), repr(state)

    @staticmethod
    def _autocasting() -> tuple:
        return tuple((kind, torch.is_autocast_enabled(kind)) for kind in ("cpu", "cuda"))

    # Modules

    def _is_layer(self, module: nn.Module) -> bool:
        return type(module).__module__.startswith(
            ("torch.nn.modules.", "sca_kernels.nn", "sca.convert")
        ) and not isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)

    def _is_leaf(self, module: nn.Module) -> bool:
        if module in self.neurons or module in self.opaque:
            return True
        return module not in self.with_neurons and self._is_layer(module)

    def _hooked(self, module: nn.Module) -> Iterator[Any]:
        yield module.register_forward_pre_hook(self._enter, prepend=True, with_kwargs=True)
        yield module.register_forward_hook(self._leave, with_kwargs=True)

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if self._ours:
            if module in self.neurons:
                raise LoopError(f"{self.word(module)} is called by code that can't be recorded")
            return
        self._stack.append(module)
        if not self._is_leaf(module):
            return
        if module not in self._versions:
            self._note_effect(module, before=True)
        elif _differ(self._contents[module], now := self._kept(module)) or self._versions[module] != _versions(now):
            raise LoopError(f"what {self.word(module)} keeps is changed between two of its calls")
        if module in self.neurons:
            with contextlib.suppress(TypeError, ValueError):
                bound = inspect.signature(module.forward).bind(*args, **kwargs)
                args, kwargs = bound.args, bound.kwargs
        nest, sources, read = self._nested((args, kwargs))
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        self._entered = (module, nest, sources, read, tensors, list(map(_version, tensors)), self._site())
        self._ours = True

    def _leave(self, module: nn.Module, args: tuple, kwargs: dict, output: Any) -> None:
        if self._ours and (self._entered is None or self._entered[0] is not module or self._stack[-1] is not module):
            return
        self._stack.pop()
        if not self._is_leaf(module):
            return
        _, nest, sources, read, tensors, versions, (site, _) = self._entered
        self._ours, self._entered = False, None
        name = _layer_name(module) if self._is_layer(module) and module not in self.opaque else ""
        self._note(name, self.word(module), module, module, site, nest, sources, read, tensors, versions, output)
        self._contents[module] = self._kept(module)
        self._versions[module] = _versions(self._contents[module])

    def word(self, module: nn.Module) -> str:
        return f"{self.names[module]} ({type(module).__name__})"

    # Functions

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if self._ours:
            return function(*args, **kwargs)
        name = _function_name(function)
        tensors = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor)]
        if name == "unbind" and tensors:
            return self._unbound(*args, **kwargs)
        if name in _METADATA:
            return function(*args, **kwargs)
        site, place = self._site()
        what = f"{name} at {place}"
        nest, sources, read = self._nested((args, kwargs))
        versions = list(map(_version, tensors))
        self._ours = True
        try:
            result = function(*args, **kwargs)
        finally:
            self._ours = False
        found = [x for x in leaves(result) if isinstance(x, Tensor)]
        if not found and not any(_version(x) != version for x, version in zip(tensors, versions, strict=True)):
            if not tensors or result is NotImplemented or isinstance(result, str | torch.Size | torch.dtype):
                return result
            if result is not None and all(self._is_constant(source) for source in sources):
                return result
            if result is None or isinstance(result, torch.utils.hooks.RemovableHandle):
                self._fail(f"{what} changes a tensor in a way that a folded pass would not repeat")
            self._fail(f"{what} reads the values of a tensor, so that another input may take another way")
        by_values = name in _SHAPED_BY_VALUES or (name == "where" and len(nest[0]) == 1)
        if by_values or (name == "getitem" and _is_masked(nest[0], tensors)):
            self._fail(f"the shape of what {what} returns depends on values")
        if self._autocasting() != self._autocast:
            self._fail(f"{what} runs under another autocast than the pass around it")
        self._note(name, what, function, None, site, nest, sources, read, tensors, versions, result)
        return result

    def _unbound(self, x: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
        """Iteration over a tensor, as one call per step."""
        return tuple(self.__torch_function__(torch.select, (), (x, dim, i)) for i in range(x.size(dim)))

    def _apart(self, function: Callable, *args: Any) -> Any:
        before, self._ours = self._ours, True
        try:
            return function(*args)
        finally:
            self._ours = before

    def _site(self) -> tuple[Hashable, str]:
        """Where in the user's code a call comes from: for comparison, and in words."""
        frame: FrameType | None = sys._getframe(1)
        site, place = [], ""
        while frame is not None and frame.f_code is not Recorder._guarded.__code__:
            code = frame.f_code
            function = self._applies.by(frame)
            if function is not None:
                self._refuse_gradient(function.__name__)
            if not code.co_filename.startswith(_LIBRARIES):
                site.append((code, frame.f_lasti))
                self.codes[code] = frame.f_globals
                place = place or f"{Path(code.co_filename).name}:{frame.f_lineno}"
            frame = frame.f_back
        inside = f", in {self.names[self._stack[-1]]}" if self._stack else ""
        return (tuple(site), tuple(map(id, self._stack))), f"{place or 'a library line'}{inside}"

    def _refuse_gradient(self, function: str) -> None:
        self._fail(f"{function}.apply has a gradient of its own")

    def _fail(self, why: str) -> None:
        self._look_into_no_further()
        raise LoopError(why)

    def _look_into_no_further(self) -> None:
        """Have the innermost module that holds no neuron called as a whole, if there is one."""
        for module in reversed(self._stack):
            if module not in self.with_neurons and not self._is_leaf(module):
                raise OpaqueModule(module)

    # Tensors

    def _know(self, x: Tensor, source: Source) -> TensorObject:
        known = self._known.get(id(x))
        is_same = known is not None and known[0]() is x
        if is_same and not isinstance(source, Ref):
            return known[2]  # the first name counts
        thing = known[2] if is_same else TensorObject(self._made, self._storage(x), isinstance(source, Ref))
        self._made += not is_same
        self._known[id(x)] = (weakref.ref(x), source, thing)
        return thing

    def _storage(self, x: Tensor) -> int:
        if x.layout is not torch.strided:
            return id(x)
        reference = StorageWeakRef(x.untyped_storage())
        return self._storages.setdefault(reference.cdata, reference).cdata

    def _of(self, x: Tensor) -> tuple[Source, TensorObject]:
        known = self._known.get(id(x))
        if known is not None and known[0]() is x:
            source = known[1]
            if isinstance(source, Held) and source.path[0] not in ("_parameters", "_buffers"):
                self._look_into_no_further()  # it may be a state that comes and goes
            # What other native code applies, as map(), is seen by what comes of it alone.
            unrecorded = isinstance(source, Ref) and self.nodes[source.node].grad is False
            if unrecorded and isinstance(x.grad_fn, BackwardCFunction):
                self._refuse_gradient(type(x.grad_fn).__name__.removesuffix("Backward"))
            return source, known[2]
        if not self.finds_constants:
            raise UnknownTensor
        if self._old.get(id(x)) is x:
            source = Constant(id(x), x)
            return source, self._know(x, source)
        for module in self.neurons:
            path = next((path for path, value in self._kept(module).items() if value is x), None)
            if path is not None and module in self.names:
                self._fail(f"{path[-1]} of {self.word(module)} is read from outside, step by step")
        place = self._apart(self._site)[1]
        self._fail(f"the call at {place} is given a tensor that no function of torch made")
        raise AssertionError

    def _nested(self, nest: Any) -> tuple[Any, list[Source], list[TensorObject]]:
        """A nest with slots for its tensors, and what these are."""
        sources: list[Source] = []
        read: list[TensorObject] = []

        def slot(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            source, thing = self._apart(self._of, x)
            sources.append(source)
            read.append(thing)
            return Slot(len(sources) - 1)

        return mapped(nest, slot), sources, read

    def _is_constant(self, source: Source) -> bool:
        return isinstance(source, Ref) and self.nodes[source.node].is_constant

    def _note(
        self,
        name: str,
        what: str,
        target: Callable,
        module: nn.Module | None,
        site: Hashable,
        nest: tuple[tuple, dict],
        sources: list[Source],
        read: list[TensorObject],
        tensors: list[Tensor],
        versions: list[int],
        output: Any,
    ) -> None:
        self._ours = True
        index, made = len(self.nodes), self._made
        found = [x for x in leaves(output) if isinstance(x, Tensor)]
        changed = [i for i, (x, version) in enumerate(zip(tensors, versions, strict=True)) if _version(x) != version]
        unreturned = [i for i in changed if read[i].is_new and not any(tensors[i] is x for x in found)]
        given = found + [tensors[i] for i in unreturned]
        slots = itertools.count()
        result = mapped(output, lambda x: Slot(next(slots)) if isinstance(x, Tensor) else x)
        grad = torch.is_grad_enabled()
        self.nodes.append(
            Node(
                index,
                name,
                what,
                target,
                module,
                (site, name if module is None else id(module)),
                *nest,
                sources,
                read,
                [x.shape for x in tensors],
                result,
                [self._know(x, Ref(index, k)) for k, x in enumerate(given)],
                [(x.shape, x.dtype) for x in given],
                changed,
                unreturned,
                None if grad == self._ambient else grad,
                module is None and name in ELEMENTWISE | FACTORIES | INDEXING and all(map(self._is_constant, sources)),
                made,
            )
        )
        self._ours = False

    # What the code does to modules

    def _note_effect(self, module: nn.Module, before: bool) -> None:
        now = self._kept(module)
        differ = _differ(self._contents[module], now)
        if not differ and (before or _versions(now) == self._versions[module]):
            return
        if not differ or any(path not in now for path in differ) or not all(map(_is_settable, differ)):
            raise LoopError(f"what {self.word(module)} keeps is written to, around its calls")
        entries, sources, _ = self._nested([(path, now[path]) for path in differ])
        self.effects.append(Effect(module, entries, sources, len(self.nodes), before))

    def _look_for_effects(self) -> None:
        """What a pass leaves in the modules whose calls are not recorded as such."""
        for module in self.names:
            if module in self._versions:
                self._note_effect(module, before=False)
            elif module not in self._called:
                self._require_unchanged(module)
            elif self._is_leaf(module) and _differ(self._contents[module], self._kept(module)):
                raise LoopError(f"{self.word(module)} is used otherwise than by calling it")

    def _require_unchanged(self, module: nn.Module) -> None:
        """What code computes and keeps in a module, a plan would not."""
        differ = _differ(self._contents[module], _contents(module))
        if differ and module not in self.with_neurons:
            raise OpaqueModule(module)
        if differ:
            raise LoopError(f"{self.word(module)} keeps what it computes, in {differ[0][1]!r}: a folded pass would not")

    def _kept(self, module: nn.Module) -> dict[tuple, Any]:
        """What a module holds, by itself and the keys that lead there; one that is called as a whole, with all that is
        in it."""
        if module is self.model or not self._is_leaf(module):
            return _contents(module)
        return {path: value for inner in module.modules() for path, value in _contents(inner).items()}


def _contents(module: nn.Module) -> dict[tuple, Any]:
    """What a module holds, beside its children, by itself and the keys that lead there."""
    found: dict[tuple, Any] = {}
    stack: list[tuple[tuple, Any]] = [((module, key), x) for key, x in vars(module).items() if not is_machinery(key)]
    while stack:
        path, value = stack.pop()
        if isinstance(value, dict) and len(path) < 8:
            stack += [((*path, key), x) for key, x in value.items()]
        elif isinstance(value, list | tuple | deque) and len(path) < 8:
            found[(*path, "len")] = len(value)
            stack += [((*path, key), x) for key, x in enumerate(value)]
        else:
            found[path] = value
    return found


def _versions(contents: dict[tuple, Any]) -> list[int]:
    return [_version(x) for x in contents.values() if isinstance(x, Tensor)]


def _version(x: Tensor) -> int:
    """How often a tensor was written to; those of inference mode don't count it."""
    return 0 if x.is_inference() else x._version


def is_machinery(key: str) -> bool:
    return key in ("_modules", "folding") or key.startswith(("_forward_", "_backward_", "_state_dict_", "_load_state_"))


def _differ(before: dict[tuple, Any], after: dict[tuple, Any]) -> list[tuple]:
    def same(a: Any, b: Any) -> bool:
        return a is b or (type(a) is type(b) and isinstance(a, int | float | str) and a == b)

    return [path for path in {**before, **after} if path not in before or not same(before[path], after.get(path, same))]


def _is_settable(path: tuple) -> bool:
    value: Any = vars(path[0])
    for key in path[1:-1]:
        value = value[key]
        if not isinstance(value, dict):
            return False
    return True


def _function_name(function: Callable) -> str:
    """``add`` of torch.add, Tensor.add_, __iadd__; of a property, its own name."""
    name = getattr(function, "__name__", str(function))
    if name in ("__get__", "__set__", "__delete__"):
        inner = getattr(getattr(function, "__self__", None), "__name__", "")
        return inner.strip("_") if name == "__get__" else f"set_{inner}"
    return name.strip("_")


def _layer_name(module: nn.Module) -> str:
    """The name of torch's layer that a module is, or that ours stands for."""
    for kind in type(module).__mro__:
        if kind.__module__.startswith("torch.nn.modules.") and kind is not nn.Module:
            return kind.__name__
    return type(module).__name__.removeprefix("Channel")


def _is_masked(args: tuple, tensors: list[Tensor]) -> bool:
    return any(tensors[i].dtype in (torch.bool, torch.uint8) for i in slots_of(args[1:]))
