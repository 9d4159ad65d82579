"""Time loops turned inside out: the layers of a network one after the other, each over all time steps.

A pass is recorded once, as the calls of T steps one after the other. The calls from one line of the loop, one per step,
become one call: of a stateless layer or function on [T * N], of a neuron on [T, N]. What a step takes from the step
before, accumulators and neurons written out in the loop, goes on to run step by step, between those. So a folded
network computes what the loop does, in another order; only a neuron whose input depends on its own earlier spikes can't
be run over all steps at once.

Random numbers are drawn in another order: a dropout on [T * N] draws one mask per step as the loop does, but others.
"""

from __future__ import annotations

import contextlib
import gc
import graphlib
import heapq
import inspect
import itertools
import logging
import random
import sys
import weakref
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType, FunctionType, ModuleType
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from ..structure.hooks import hooks_of
from ..structure.tracing import leaves
from ..structure.untouched import untouched
from .swaps import Swap

__all__ = ["Folded", "LoopError", "OverTime", "StepNeuron", "fold", "over_time"]

logger = logging.getLogger(__name__)

MAX_PLANS = 32  # input shapes and modes that a folded network remembers


class LoopError(ValueError):
    """A loop that can't be turned inside out; says what stands in the way, and where."""


class StepNeuron(Protocol):
    """Runs one neuron module, which takes one step per call, over all steps."""

    def all_steps(self, module: nn.Module, currents: Tensor, *states: Any) -> Any:
        """What T calls of the module return, in the structure of one, each tensor with a leading T.

        A module that keeps its state inside is left with that of the last step.

        A parameter ``needed``, if there is one, gets for each tensor of the result "all", "last" or "none": of one of
        which the last step alone is read, that one, [1, ...], will do; None in place of one that nobody reads.

        Args:
            module: the neuron.
            currents: its inputs [T, N, ...]; the same for all steps where their first stride is 0.
            states: the further arguments of its first call.
        """
        ...


class Folded:
    """A network whose loop has been turned inside out.

    Attributes:
        module: the network itself: the same object, modules, parameters and state_dict.
        steps: how many time steps the example had.
        stepwise: calls in the loop that go on to run step by step.
    """

    def __init__(self, module: nn.Module, swap: Swap, steps: int, stepwise: tuple[str, ...]) -> None:
        self.module, self.steps, self.stepwise = module, steps, stepwise
        self._swap = swap

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)

    def revert(self) -> None:
        """Give the network its own forward back."""
        self._swap.revert()


def fold(
    model: nn.Module,
    example_inputs: tuple[Any, ...],
    neurons: Mapping[nn.Module, StepNeuron],
    *,
    merge_statistics: bool = False,
) -> Folded:
    """Turn the time loop of a network's forward inside out, in place.

    Inputs of other shapes, other modes and settings (numbers and names in modules, configurations, globals and
    closures) are recorded as they come, by two passes of the original forward; where such a loop can't be folded, the
    original runs, and the log says so. Hooks of neurons are not called. What forward does to objects other than tensors
    and modules, as counting in a global, is not repeated.

    Args:
        model: its forward, or functions and modules that it calls, loop over time; see :func:`over_time` for loops in
            the training script.
        example_inputs: positional arguments of its forward, of at least two time steps.
        neurons: what runs a neuron module over all steps; modules that are not in it run step by step.
        merge_statistics: have a batch norm in training take its statistics over all steps at once, which is another
            training. Otherwise it runs step by step, as in the loop.

    Raises:
        LoopError: see there. The model is as it was.
    """
    if "forward" in vars(model):
        raise LoopError("model: expected its forward to be its class's, but it was set on the object")
    folding = _Folding(dict(neurons), merge_statistics)
    plan = folding.learn(model, model.forward, example_inputs, {})
    if plan.steps < 2:
        raise LoopError("model: expected a loop over at least two time steps, but each neuron is called once in a pass")
    swap = Swap(model, (_FoldedForward,), {"folding": folding})
    return Folded(model, swap, plan.steps, plan.stepwise)


class OverTime(nn.Module):
    """A single-step network as one of all steps: [T, N, ...] -> its outputs, each with a leading T.

    Args:
        model: takes one step.
        states: it takes and returns its state, as norse's do: ``output, state = model(x, state)``. So does this module.
    """

    def __init__(self, model: nn.Module, states: bool = False) -> None:
        super().__init__()
        self.model, self.states = model, states

    def forward(self, x: Tensor, state: Any = None, *, time_steps: int | None = None) -> Any:
        """With ``time_steps``, x is one step, presented so many times."""
        steps = [x] * time_steps if time_steps is not None else x
        outputs = []
        for step in steps:
            if self.states:
                output, state = self.model(step, state)
            else:
                output = self.model(step)
            outputs.append(output)
        if not outputs:
            raise ValueError("x: expected at least one time step")
        stacked = _stacked(outputs)
        # Whoever follows channels would take those of all states for the network's output.
        return (stacked, state) if self.states and not _stands_for_a_tensor(x) else stacked


def over_time(model: nn.Module, states: bool = False) -> OverTime:
    """A module whose forward is a training script's loop over time, for :func:`fold`."""
    return OverTime(model, states)


def _stacked(outputs: Sequence[Any]) -> Any:
    first = outputs[0]
    if isinstance(first, Tensor):
        return torch.stack(list(outputs))
    if isinstance(first, dict):
        return {key: _stacked([output[key] for output in outputs]) for key in first}
    if isinstance(first, tuple | list):
        items = [_stacked(group) for group in zip(*outputs, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else type(first)(items)
    return first


def _stands_for_a_tensor(x: Any) -> bool:
    return isinstance(x, Tensor) and not issubclass(type(x), Tensor)


class _FoldedForward:
    """In front of a network's own class: its forward, folded."""

    folding: _Folding

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.folding.call(self, super().forward, args, kwargs)


class _Folding:
    """The plans of one network, by what they depend on."""

    def __init__(self, neurons: dict[nn.Module, StepNeuron], merge_statistics: bool) -> None:
        self.neurons, self.merge_statistics = neurons, merge_statistics
        self.plans: OrderedDict[Hashable, _Plan | None] = OrderedDict()
        self.settings = _Settings()
        self.modules: list[nn.Module] = []
        self.opaque: set[nn.Module] = set()

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles plan anew."""
        return {"neurons": list(self.neurons.items()), "merge_statistics": self.merge_statistics}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(dict(state["neurons"]), state["merge_statistics"])

    def call(self, model: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if any(_stands_for_a_tensor(x) for x in (*args, *kwargs.values())):  # while channels are followed
            return forward(*args, **kwargs)
        if not self.modules:
            self.modules = list(model.modules())
        key = self.key(args, kwargs)
        if key in self.plans:
            plan = self.plans[key]
        else:
            try:
                plan = self.learn(model, forward, args, kwargs)
            except LoopError as error:
                logger.warning("the original loop of %s runs: %s", type(model).__name__, error)
                plan = self.plans[self.key(args, kwargs)] = None
        return forward(*args, **kwargs) if plan is None else plan(args, kwargs)

    def learn(self, model: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> _Plan:
        """The plan for passes like this one, which is kept."""
        self.modules = list(model.modules())
        grad = torch.set_grad_enabled(torch.is_grad_enabled())
        with untouched(model), torch.inference_mode(False), grad:
            finds_constants = False
            while True:
                recorder = _Recorder(model, self.neurons, self.opaque, finds_constants)
                try:
                    recorder.record(forward, args, kwargs)
                    break
                except _Opaque as found:  # each time another
                    self.opaque.add(found.module)
                except _Unknown:
                    finds_constants = True
        self.settings.watch(recorder)
        plan = _Planner(recorder, self.neurons, self.merge_statistics).plan()
        self.plans[self.key(args, kwargs)] = plan
        if len(self.plans) > MAX_PLANS:
            self.plans.popitem(last=False)
        return plan

    def key(self, args: tuple, kwargs: dict) -> Hashable:
        """What the calls of a pass may depend on, other than the values of tensors."""
        found = list(leaves((args, kwargs)))
        tensors = [x for x in found if isinstance(x, Tensor)]
        devices = {x.device.type for x in tensors}
        return (
            tuple((x.shape, x.dtype, x.device) if isinstance(x, Tensor) else _plain(x) for x in found),
            tuple(kwargs),
            torch.is_grad_enabled(),
            tuple((kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in sorted(devices)),
            tuple(module.training for module in self.modules),
            self.settings.values(),
        )


class _Settings:
    """Numbers and names that the recorded code may have read, from modules, from their configurations, and from the
    globals and closures of the code: a pass with others is recorded anew."""

    def __init__(self) -> None:
        self.names: dict[tuple[int, Any], tuple[dict, Any]] = {}
        self.cells: dict[int, Any] = {}

    def watch(self, recorder: _Recorder) -> None:
        for module in recorder.inside():
            for name in vars(module):
                if not _is_machinery(name):
                    self._watch(vars(module), name)
            for function in (type(module).forward, *vars(module).values()):
                for cell in getattr(function, "__closure__", None) or ():
                    self.cells[id(cell)] = cell
        for code, names in recorder.codes.items():
            for name in code.co_names:
                if name in names:
                    self._watch(names, name)

    def _watch(self, namespace: dict, name: Any, depth: int = 2) -> None:
        value = namespace[name]
        if isinstance(value, int | float | str | bool | tuple | list | None):
            self.names[id(namespace), name] = (namespace, name)
        elif depth and not isinstance(value, nn.Module | Tensor | type | ModuleType | FunctionType):
            inner = value if isinstance(value, dict) else getattr(value, "__dict__", {})
            for key in inner if len(inner) <= 256 else ():
                self._watch(inner, key, depth - 1)

    def values(self) -> Hashable:
        found = [_plain(namespace.get(name)) for namespace, name in self.names.values()]
        for cell in self.cells.values():
            with contextlib.suppress(ValueError):  # empty
                found.append((id(cell), _plain(cell.cell_contents)))
        return tuple(found)


def _plain(value: Any) -> Hashable:
    """The value of numbers and strings, with its type; the identity of anything else."""
    if value is None or isinstance(value, int | float | str | bool):
        return type(value), value
    if isinstance(value, tuple | list) and len(value) <= 64:
        return type(value), tuple(map(_plain, value))
    return id(value)


# What a recorded call is given.


class _Ref(NamedTuple):
    """A tensor that a recorded call gave."""

    node: int
    output: int


class _Input(NamedTuple):
    """A tensor among the arguments of forward."""

    index: int


@dataclass(frozen=True)
class _Held:
    """A tensor that a module holds: it is looked up at each pass."""

    module: nn.Module
    path: tuple[Any, ...]

    def look_up(self) -> Tensor:
        value: Any = vars(self.module)
        for key in self.path:
            value = value[key]
        return value


@dataclass(frozen=True)
class _Constant:
    """A tensor that lived before the pass, in a global, say."""

    identity: int
    tensor: Tensor = field(compare=False)


class _Slot(NamedTuple):
    """The place of a tensor in a nest."""

    index: int


Source = _Ref | _Input | _Held | _Constant


class _Object(NamedTuple):
    """One tensor object of the recorded pass, and the memory it shows."""

    number: int
    storage: int
    is_new: bool  # made by a recorded call


@dataclass(eq=False)
class _Node:
    """One recorded call: of a layer, a neuron, or a function of torch."""

    index: int
    name: str
    what: str
    target: Callable
    module: nn.Module | None
    site: Hashable
    args: tuple
    kwargs: dict
    sources: list[Source]
    read: list[_Object]
    shapes: list[torch.Size]
    result: Any
    given: list[_Object]
    specs: list[tuple[torch.Size, torch.dtype]]
    changed: list[int]  # which of the tensors that it was given it wrote to
    unreturned: list[int]  # which of these are not in its result
    grad: bool | None  # other than around the pass
    is_constant: bool
    made: int  # how many tensor objects there were before
    clone: bool = False  # instead of writing to its first argument, write to a copy of it

    def run(self, values: Sequence[Any], arguments: tuple[tuple, dict] | None = None) -> list[Any]:
        """The tensors of the result, and then those that it wrote to and did not return."""
        if self.clone:
            values = [values[0].clone(), *values[1:]]
        args, kwargs = _filled((self.args, self.kwargs) if arguments is None else arguments, values)
        with self.gradients():
            result = self.target(*args, **kwargs)
        return [x for x in leaves(result) if isinstance(x, Tensor)] + [values[i] for i in self.unreturned]

    def gradients(self) -> contextlib.AbstractContextManager:
        return contextlib.nullcontext() if self.grad is None else torch.set_grad_enabled(self.grad)


def _filled(nest: Any, values: Sequence[Any]) -> Any:
    return _mapped(nest, lambda leaf: values[leaf.index] if type(leaf) is _Slot else leaf)


def _mapped(nest: Any, function: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists, dicts and slices, with the function of each leaf."""
    if type(nest) is _Slot:
        return function(nest)
    if isinstance(nest, tuple | list):
        items = [_mapped(item, function) for item in nest]
        return type(nest)(*items) if hasattr(nest, "_fields") else type(nest)(items)
    if isinstance(nest, dict):
        return type(nest)((key, _mapped(item, function)) for key, item in nest.items())
    if isinstance(nest, slice):
        return slice(*(_mapped(item, function) for item in (nest.start, nest.stop, nest.step)))
    return function(nest)


def _slots(nest: Any) -> list[int]:
    return [leaf.index for leaf in _leaves(nest) if type(leaf) is _Slot]


def _leaves(nest: Any) -> list[Any]:
    """As :func:`leaves`, of which a slot is one."""
    found: list[Any] = []
    _mapped(nest, found.append)
    return found


def _alike(a: Any, b: Any) -> bool:
    """Whether two nests have the same structure and, beside tensors, the same leaves."""
    if type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, dict):
        return list(a) == list(b) and all(_alike(a[key], b[key]) for key in a)
    if isinstance(a, slice):
        return all(map(_alike, (a.start, a.stop, a.step), (b.start, b.stop, b.step)))
    return a is b or (isinstance(a, (int, float, complex, str, torch.dtype, torch.device)) and a == b)


# Recording.

_LIBRARIES = (str(Path(torch.__file__).parent), __file__)
_APPLY = torch.autograd.Function.apply.__func__.__code__


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# These tell what a tensor is, not which values it has.
_METADATA = _words(
    "shape size dim ndim ndimension numel nelement device dtype layout itemsize nbytes element_size stride "
    "storage_offset is_cuda is_cpu is_mps is_meta is_xpu is_sparse is_quantized is_nested is_floating_point is_complex "
    "is_signed is_contiguous is_leaf is_inference is_tensor requires_grad grad_fn grad names name len hash get_device "
    "data_ptr untyped_storage version output_nr is_pinned is_shared result_type promote_types has_names is_same_size "
    "is_storage is_conj is_neg"
)
# The shape of what these return depends on values.
_SHAPED_BY_VALUES = {"nonzero", "argwhere", "masked_select", "unique", "unique_consecutive", "bincount", "histogram"}


_SEED = 0x5CA


class _Opaque(Exception):
    """A module without converted neurons that can't be looked into: it is to be called as a whole."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class _Unknown(Exception):
    """A tensor that no recorded call made and that the model does not hold."""


@dataclass(eq=False)
class _Effect:
    """What the code did to what a module keeps, other than by calling it: places there and their new values."""

    module: nn.Module
    entries: list[tuple[tuple[Any, ...], Any]]
    sources: list[Source]
    index: int  # of the next node
    before: bool  # the first call, or behind the last


class _Recorder(TorchFunctionMode):
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
        self.nodes: list[_Node] = []
        self.effects: list[_Effect] = []
        self.output: Any = None
        self.output_sources: list[Source] = []
        self.output_read: list[_Object] = []
        self.codes: dict[CodeType, dict] = {}
        self.names = {module: name or "the model" for name, module in model.named_modules()}
        self.with_neurons = {m for m in self.names if any(inner in neurons for inner in m.modules())}
        self.hooked = {module for module in self.names if module is not model and hooks_of(module)}
        self._ours = False  # whether the code that runs is a leaf's
        self._stack: list[nn.Module] = []
        self._entered: tuple | None = None
        self._known: dict[int, tuple[Callable[[], Any], Source, _Object]] = {}
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
            _Opaque: it can, if this module is called as a whole.
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
            self._guarded(forward, *_mapped((args, kwargs), owned))
        for module in self.names:
            if module not in self._called:
                self._require_unchanged(module)
        args, kwargs = _mapped((args, kwargs), owned)
        if self.finds_constants:
            self._old = {id(x): x for x in gc.get_objects() if issubclass(type(x), Tensor)}
        for module in self.names:
            self._contents[module] = self._kept(module)
            for (holder, *path), value in self._contents[module].items():
                if isinstance(value, Tensor):
                    self._know(value, _Held(holder, tuple(path)))
        for index, x in enumerate(x for x in leaves((args, kwargs)) if isinstance(x, Tensor)):
            self._know(x, _Input(index))
        self._ambient = torch.is_grad_enabled()
        self._autocast = self._autocasting()
        drawn = self._drawn()
        torch.default_generator.manual_seed(_SEED)
        handles = [handle for module in self.names if module is not self.model for handle in self._hooked(module)]
        try:
            with self:
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
        for leaf in _leaves(self.output):
            if not isinstance(leaf, int | float | str | bool | _Slot | torch.Size | None):
                raise LoopError(f"forward returns a {type(leaf).__name__}: expected tensors in tuples, lists and dicts")

    def inside(self) -> list[nn.Module]:
        """The modules whose code was recorded, not their calls."""
        return [module for module in self.names if module is self.model or not self._is_leaf(module)]

    def _guarded(self, forward: Callable, args: tuple, kwargs: dict) -> Any:
        try:
            return forward(*args, **kwargs)
        except (LoopError, _Opaque, _Unknown):
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
                raise LoopError(f"{self._word(module)} is called by code that can't be recorded")
            return
        self._stack.append(module)
        if not self._is_leaf(module):
            return
        if module not in self._versions:
            self._note_effect(module, before=True)
        elif _differ(self._contents[module], now := self._kept(module)) or self._versions[module] != _versions(now):
            raise LoopError(f"what {self._word(module)} keeps is changed between two of its calls")
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
        self._note(name, self._word(module), module, module, site, nest, sources, read, tensors, versions, output)
        self._contents[module] = self._kept(module)
        self._versions[module] = _versions(self._contents[module])

    def _word(self, module: nn.Module) -> str:
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
        while frame is not None and frame.f_code is not _Recorder._guarded.__code__:
            code = frame.f_code
            if code is _APPLY:
                kind = frame.f_locals.get("cls")
                self._fail(f"{getattr(kind, '__name__', 'an autograd.Function')}.apply has a gradient of its own")
            if not code.co_filename.startswith(_LIBRARIES):
                site.append((code, frame.f_lasti))
                self.codes[code] = frame.f_globals
                place = place or f"{Path(code.co_filename).name}:{frame.f_lineno}"
            frame = frame.f_back
        inside = f", in {self.names[self._stack[-1]]}" if self._stack else ""
        return (tuple(site), tuple(map(id, self._stack))), f"{place or 'a library line'}{inside}"

    def _fail(self, why: str) -> None:
        self._look_into_no_further()
        raise LoopError(why)

    def _look_into_no_further(self) -> None:
        """Have the innermost module that holds no neuron called as a whole, if there is one."""
        for module in reversed(self._stack):
            if module not in self.with_neurons and not self._is_leaf(module):
                raise _Opaque(module)

    # Tensors

    def _know(self, x: Tensor, source: Source) -> _Object:
        known = self._known.get(id(x))
        is_same = known is not None and known[0]() is x
        if is_same and not isinstance(source, _Ref):
            return known[2]  # the first name counts
        thing = known[2] if is_same else _Object(self._made, self._storage(x), isinstance(source, _Ref))
        self._made += not is_same
        self._known[id(x)] = (weakref.ref(x), source, thing)
        return thing

    def _storage(self, x: Tensor) -> int:
        if x.layout is not torch.strided:
            return id(x)
        reference = StorageWeakRef(x.untyped_storage())
        return self._storages.setdefault(reference.cdata, reference).cdata

    def _of(self, x: Tensor) -> tuple[Source, _Object]:
        known = self._known.get(id(x))
        if known is not None and known[0]() is x:
            source = known[1]
            if isinstance(source, _Held) and source.path[0] not in ("_parameters", "_buffers"):
                self._look_into_no_further()  # it may be a state that comes and goes
            return source, known[2]
        if not self.finds_constants:
            raise _Unknown
        if self._old.get(id(x)) is x:
            source = _Constant(id(x), x)
            return source, self._know(x, source)
        for module in self.neurons:
            path = next((path for path, value in self._kept(module).items() if value is x), None)
            if path is not None and module in self.names:
                self._fail(f"{path[-1]} of {self._word(module)} is read from outside, step by step")
        place = self._apart(self._site)[1]
        self._fail(f"the call at {place} is given a tensor that no function of torch made")
        raise AssertionError

    def _nested(self, nest: Any) -> tuple[Any, list[Source], list[_Object]]:
        """A nest with slots for its tensors, and what these are."""
        sources: list[Source] = []
        read: list[_Object] = []

        def slot(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            source, thing = self._apart(self._of, x)
            sources.append(source)
            read.append(thing)
            return _Slot(len(sources) - 1)

        return _mapped(nest, slot), sources, read

    def _is_constant(self, source: Source) -> bool:
        return isinstance(source, _Ref) and self.nodes[source.node].is_constant

    def _note(
        self,
        name: str,
        what: str,
        target: Callable,
        module: nn.Module | None,
        site: Hashable,
        nest: tuple[tuple, dict],
        sources: list[Source],
        read: list[_Object],
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
        result = _mapped(output, lambda x: _Slot(next(slots)) if isinstance(x, Tensor) else x)
        grad = torch.is_grad_enabled()
        self.nodes.append(
            _Node(
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
                [self._know(x, _Ref(index, k)) for k, x in enumerate(given)],
                [(x.shape, x.dtype) for x in given],
                changed,
                unreturned,
                None if grad == self._ambient else grad,
                module is None
                and name in _ELEMENTWISE | _FACTORIES | _INDEXING
                and all(map(self._is_constant, sources)),
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
            raise LoopError(f"what {self._word(module)} keeps is written to, around its calls")
        entries, sources, _ = self._nested([(path, now[path]) for path in differ])
        self.effects.append(_Effect(module, entries, sources, len(self.nodes), before))

    def _look_for_effects(self) -> None:
        """What a pass leaves in the modules whose calls are not recorded as such."""
        for module in self.names:
            if module in self._versions:
                self._note_effect(module, before=False)
            elif module not in self._called:
                self._require_unchanged(module)
            elif self._is_leaf(module) and _differ(self._contents[module], self._kept(module)):
                raise LoopError(f"{self._word(module)} is used otherwise than by calling it")

    def _require_unchanged(self, module: nn.Module) -> None:
        """What code computes and keeps in a module, a plan would not."""
        differ = _differ(self._contents[module], _contents(module))
        if differ and module not in self.with_neurons:
            raise _Opaque(module)
        if differ:
            raise LoopError(
                f"{self._word(module)} keeps what it computes, in {differ[0][1]!r}: a folded pass would not"
            )

    def _kept(self, module: nn.Module) -> dict[tuple, Any]:
        """What a module holds, by itself and the keys that lead there; one that is called as a whole, with all that is
        in it."""
        if module is self.model or not self._is_leaf(module):
            return _contents(module)
        return {path: value for inner in module.modules() for path, value in _contents(inner).items()}


def _contents(module: nn.Module) -> dict[tuple, Any]:
    """What a module holds, beside its children, by itself and the keys that lead there."""
    found: dict[tuple, Any] = {}
    stack: list[tuple[tuple, Any]] = [((module, key), x) for key, x in vars(module).items() if not _is_machinery(key)]
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


def _is_machinery(key: str) -> bool:
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
    return any(tensors[i].dtype in (torch.bool, torch.uint8) for i in _slots(args[1:]))


# What can be done for all steps at once.

_ELEMENTWISE = _words(
    "add radd iadd sub rsub isub subtract mul rmul imul multiply div rdiv truediv rtruediv itruediv divide true_divide "
    "floor_divide floordiv mod remainder fmod pow rpow neg negative pos abs exp exp2 expm1 log log1p log2 log10 sqrt "
    "rsqrt square reciprocal sign sin cos tan atan erf sigmoid tanh relu relu6 leaky_relu elu selu celu gelu silu mish "
    "softplus softsign hardtanh hardsigmoid hardswish logsigmoid threshold clamp clamp_min clamp_max clip minimum "
    "maximum where lt le gt ge eq ne less less_equal greater greater_equal logical_and logical_or logical_not "
    "logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not and or xor invert heaviside floor ceil round "
    "trunc lerp addcmul addcdiv masked_fill nan_to_num zeros_like ones_like full_like clone detach data float double "
    "half bfloat16 int long bool to type_as contiguous"
)
_FACTORIES = _words("zeros ones full eye arange linspace tensor as_tensor new_zeros new_ones new_full new_tensor")
# The first dimension of the first argument is that of the samples, which don't know of each other. By the number of
# dimensions that it has then.
_SAMPLEWISE = {
    **dict.fromkeys(("conv1d", "conv_transpose1d", "max_pool1d", "avg_pool1d", "adaptive_avg_pool1d"), 3),
    **dict.fromkeys(("adaptive_max_pool1d", "lp_pool1d"), 3),
    **dict.fromkeys(("conv2d", "conv_transpose2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d"), 4),
    **dict.fromkeys(("adaptive_max_pool2d", "lp_pool2d", "dropout2d", "pixel_shuffle", "channel_shuffle"), 4),
    **dict.fromkeys(("conv3d", "conv_transpose3d", "max_pool3d", "avg_pool3d", "adaptive_avg_pool3d"), 5),
    **dict.fromkeys(("linear", "dropout", "alpha_dropout", "group_norm", "batch_norm", "interpolate", "prelu"), 0),
}
_RANDOM = {
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "alpha_dropout",
    "feature_dropout",
    "feature_alpha_dropout",
}
# Where dimensions stand among the arguments, each with its name and default; ... where there is none.
_DIMENSIONS: dict[str, tuple[tuple[int, str, Any], ...]] = {
    **dict.fromkeys(_words("sum mean prod amax amin max min argmax argmin any all std var"), ((1, "dim", ...),)),
    **dict.fromkeys(_words("softmax log_softmax logsumexp cumsum unsqueeze squeeze"), ((1, "dim", ...),)),
    **dict.fromkeys(("cat", "concat", "concatenate", "stack"), ((1, "dim", 0),)),
    **dict.fromkeys(("chunk", "split", "narrow_copy"), ((2, "dim", 0),)),
    **dict.fromkeys(("narrow", "select", "index_select"), ((1, "dim", ...),)),
    **dict.fromkeys(("transpose", "swapaxes", "swapdims"), ((1, "dim0", ...), (2, "dim1", ...))),
    "flatten": ((1, "start_dim", 0), (2, "end_dim", -1)),
    "unflatten": ((1, "dim", ...),),
}
_JOINS = {"cat", "concat", "concatenate", "stack"}
_ELEMENTWISE_LAYERS = _words(
    "Identity ReLU ReLU6 LeakyReLU ELU SELU CELU GELU SiLU Mish Sigmoid Tanh Hardtanh Hardsigmoid Hardswish Softplus "
    "Softsign LogSigmoid Threshold Tanhshrink Hardshrink Softshrink Dropout AlphaDropout Embedding"
)
_SAMPLEWISE_LAYERS = {
    **{
        f"{kind}{d}d": (d + 2,)
        for d in (1, 2, 3)
        for kind in _words(
            "Conv ConvTranspose MaxPool AvgPool AdaptiveAvgPool AdaptiveMaxPool LPPool Dropout BatchNorm "
            "ZeroPad ConstantPad ReflectionPad ReplicationPad"
        )
    },
    **dict.fromkeys(_words("Upsample PixelShuffle PixelUnshuffle ChannelShuffle UpsamplingNearest2d"), (4,)),
    "BatchNorm1d": (2, 3),
    **dict.fromkeys(_words("Linear PReLU GroupNorm LayerNorm Flatten Unflatten Softmax LogSoftmax"), (2, 3, 4, 5, 6)),
}

Run = Callable[[list[Any]], list[Any]]
SAME, STEPS = "same", "steps"


@dataclass(eq=False)
class _Family:
    """The calls from one place in the loop, one per step, to be made as one.

    Attributes:
        parts: how many calls of this place there are in each step; one of them is here.
        once: all get the same and give the same: made once, and its result has no time dimension.
    """

    members: list[_Node]
    parts: int
    neuron: StepNeuron | None = None
    once: bool = False
    run: Run | None = None

    @property
    def steps(self) -> int:
        return len(self.members)

    @property
    def first(self) -> _Node:
        return self.members[0]


def _can_be_one(members: Sequence[_Node]) -> bool:
    """Whether calls differ in nothing but the values of tensors."""
    first = members[0]
    return all(
        _alike((first.args, first.kwargs), (node.args, node.kwargs))
        and first.shapes == node.shapes
        and first.specs == node.specs
        and _alike(first.result, node.result)
        and (first.grad, first.clone, first.changed) == (node.grad, node.clone, node.changed)
        for node in members[1:]
    )


def _is_listed(node: _Node, merge_statistics: bool) -> bool:
    """Whether there may be a way to make such calls as one."""
    if node.name == "batch_norm" and node.target is not nn.functional.batch_norm:
        return False
    if node.module is None:
        return node.name in _LISTED and (merge_statistics or not _takes_batch_statistics(node))
    if node.name.startswith("BatchNorm") and (node.module.training or node.module.running_mean is None):
        return merge_statistics and node.name in _SAMPLEWISE_LAYERS
    return node.name in _ELEMENTWISE_LAYERS or node.name in _SAMPLEWISE_LAYERS


def _at_once(family: _Family, kinds: Sequence[str]) -> Run | None:
    """How to make the calls of a family as one. Its arguments are the same for all steps, or have a leading T, as has
    what it returns."""
    node, steps = family.first, family.steps
    rank = len(node.shapes[0]) if node.shapes else 0

    def with_steps(values: list[Any], which: Iterable[int] = (0,)) -> list[Any]:
        for i in which:
            if kinds[i] == SAME:
                values[i] = values[i].expand(steps, *values[i].shape)
        return values

    def elementwise(values: list[Any]) -> list[Any]:
        if node.clone and kinds[0] == SAME:
            return node.run([with_steps(values)[0], *_aligned(node, kinds, values)[1:]])
        return node.run(_aligned(node, kinds, values))

    def samplewise(values: list[Any]) -> list[Any]:
        x = with_steps(values)[0]
        return [y.unflatten(0, x.shape[:2]) for y in node.run([x.flatten(0, 1), *values[1:]])]

    def shifted(values: list[Any]) -> list[Any]:
        return node.run(with_steps(values, range(len(values))), arguments)

    if node.module is not None:
        if node.name in _ELEMENTWISE_LAYERS:
            return lambda values: node.run(with_steps(values))
        if rank not in _SAMPLEWISE_LAYERS[node.name] or not _keeps_samples(node) or len(kinds) > 1:
            return None
        module = node.module
        dim = {"Flatten": "start_dim", "Unflatten": "dim", "Softmax": "dim", "LogSoftmax": "dim"}.get(node.name)
        if dim is not None and (not isinstance(getattr(module, dim), int) or getattr(module, dim) % rank == 0):
            return None
        if node.name == "LayerNorm" and len(module.normalized_shape) >= rank:
            return None
        return samplewise
    if node.name in _RULES:
        return _RULES[node.name](family, kinds)
    if node.name in _SAMPLEWISE:
        needed = _SAMPLEWISE[node.name] or max(rank, 2)
        is_first = bool(node.args) and node.args[0] == _Slot(0) and not any(kind == STEPS for kind in kinds[1:])
        if rank != needed or not is_first or not _keeps_samples(node):
            return None
        return samplewise
    if node.name in _DIMENSIONS:
        arguments = _shifted_dimensions(node)
        if arguments is None or node.changed or (len(kinds) > 1 and node.name not in _JOINS):
            return None
        return shifted
    if node.name in _ELEMENTWISE and not any(isinstance(leaf, torch.memory_format) for leaf in leaves(node.args)):
        return elementwise if not any(isinstance(x, torch.memory_format) for x in node.kwargs.values()) else None
    return None


def _keeps_samples(node: _Node) -> bool:
    return all(shape[:1] == node.shapes[0][:1] for shape, _ in node.specs)


def _is_random(node: _Node) -> bool:
    if node.module is not None:
        return node.name.lower() in _RANDOM and node.module.training
    return node.name in _RANDOM and node.kwargs.get("training", node.args[2] if len(node.args) > 2 else True)


def _takes_batch_statistics(node: _Node) -> bool:
    if node.target is not nn.functional.batch_norm:
        return False
    bound = inspect.signature(nn.functional.batch_norm).bind(*node.args, **node.kwargs)
    bound.apply_defaults()
    return bool(bound.arguments["training"])


def _shifted_dimensions(node: _Node) -> tuple[tuple, dict] | None:
    """The arguments, with dimensions counted behind that of time."""
    args, kwargs = list(node.args), dict(node.kwargs)
    for position, name, default in _DIMENSIONS[node.name]:
        if position > len(args):
            return None
        dim = kwargs.pop(name, args[position] if position < len(args) else default)
        dims = dim if isinstance(dim, tuple | list) else (dim,)
        if not dims or not all(type(d) is int for d in dims):
            return None
        moved = [d + 1 if d >= 0 else d for d in dims]
        args[position : position + 1] = [moved if isinstance(dim, tuple | list) else moved[0]]
    return tuple(args), kwargs


def _permuted(family: _Family, kinds: Sequence[str]) -> Run | None:
    dims, rank = _numbers(family.first), len(family.first.shapes[0])
    if dims is None:
        return None
    return lambda values: [values[0].permute(0, *(d % rank + 1 for d in dims))]


def _reshaped(family: _Family, kinds: Sequence[str]) -> Run | None:
    sizes, steps = _numbers(family.first), family.steps
    return None if sizes is None else lambda values: [values[0].reshape(steps, *sizes)]


def _multiplied(family: _Family, kinds: Sequence[str]) -> Run | None:
    node = family.first
    ranks = [len(shape) for shape in node.shapes]
    if len(ranks) != 2 or min(ranks) < 2 or node.kwargs or node.args != (_Slot(0), _Slot(1)):
        return None
    return lambda values: node.run(_aligned(node, kinds, values))


def _aligned(node: _Node, kinds: Sequence[str], values: Sequence[Tensor]) -> list[Tensor]:
    """Values of all steps, with as many dimensions behind that of time as the one that has most: for broadcasting."""
    most = max(len(shape) for shape in node.shapes)
    return [
        x if kind == SAME else x[(slice(None), *(None,) * (most + 1 - x.dim()))]
        for x, kind in zip(values, kinds, strict=True)
    ]


def _numbers(node: _Node) -> tuple[int, ...] | None:
    """The whole numbers behind the one tensor."""
    if len(node.sources) != 1:
        return None
    rest = node.args[1:]
    rest = tuple(rest[0]) if len(rest) == 1 and isinstance(rest[0], tuple | list) else rest
    return rest if rest and not node.kwargs and all(type(number) is int for number in rest) else None


def _picked(family: _Family, kinds: Sequence[str]) -> Run | None:
    """The same part of each step's tensor."""
    index = _index(family.first)
    if index is None or len(kinds) != 1:
        return None
    return lambda values: [values[0][(slice(None), *index)]]


_RULES: dict[str, Callable[[_Family, Sequence[str]], Run | None]] = {
    "permute": _permuted,
    "view": _reshaped,
    "reshape": _reshaped,
    "matmul": _multiplied,
    "getitem": _picked,
}
_INDEXING = {"getitem", "select"}
_LISTED = {*_ELEMENTWISE, *_FACTORIES, *_INDEXING, *_SAMPLEWISE, *_DIMENSIONS, *_RULES}


def _index(node: _Node) -> tuple | None:
    """What a tensor is indexed by, without an ellipsis; None where that is more than numbers, slices and None."""
    if len(node.sources) != 1:
        return None
    rank = len(node.shapes[0])
    if node.name == "select":
        if node.kwargs or len(node.args) != 3 or not all(type(number) is int for number in node.args[1:]):
            return None
        return (*(slice(None),) * (node.args[1] % rank), node.args[2])
    index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
    for part in index:
        if not (part is None or part is ... or type(part) is int or isinstance(part, slice)):
            return None
    if ... in index:
        at = index.index(...)
        missing = rank - sum(part is not None and part is not ... for part in index)
        index = (*index[:at], *(slice(None),) * missing, *index[at + 1 :])
    return index


def _over_steps(members: Sequence[_Node]) -> Run | None:
    """x[0], x[1], ... of one tensor, x[:, t] and the like: that tensor itself, time first."""
    first = members[0]
    if any(node.sources != first.sources or node.grad != first.grad or len(node.sources) != 1 for node in members):
        return None
    indices = [_index(node) for node in members]
    if any(index is None or len(index) != len(indices[0]) for index in indices):
        return None
    moving = [i for i, parts in enumerate(zip(*indices, strict=True)) if not all(_alike(parts[0], x) for x in parts)]
    if len(moving) != 1 or not all(type(index[moving[0]]) is int for index in indices):
        return None
    at = moving[0]
    size = first.shapes[0][sum(part is not None for part in indices[0][:at])]
    numbers = [index[at] % size for index in indices]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        return None
    index = (*indices[0][:at], slice(numbers[0], numbers[0] + len(numbers)), *indices[0][at + 1 :])
    dim = sum(type(part) is not int for part in index[:at])
    return lambda values: [values[0][index].movedim(dim, 0)]


# Planning.

Vertex = Any  # a _Family, an _Effect, or the index of a node that runs alone


class _Planner:
    """Finds what to run in which order, from a recorded pass."""

    def __init__(self, recorder: _Recorder, neurons: Mapping[nn.Module, StepNeuron], merge_statistics: bool) -> None:
        self.recorder, self.neurons, self.merge_statistics = recorder, neurons, merge_statistics
        self.nodes = recorder.nodes
        self.of: dict[int, _Family] = {}  # by node
        self.indexing: dict[_Family, Run] = {}

    def plan(self) -> _Plan:
        self._settle_writes()
        self._group()
        return _Compiler(self, self._order()).compile()

    # Writes

    def _settle_writes(self) -> None:
        """Have in-place functions write to a copy where nobody would see that; note what else is written to."""
        readers: dict[int, list[tuple[int, _Object]]] = defaultdict(list)
        for node in self.nodes:
            for thing in node.read:
                readers[thing.storage].append((node.index, thing))
        for thing in self.recorder.output_read:
            readers[thing.storage].append((len(self.nodes), thing))
        self.written: set[int] = set()
        for node in self.nodes:
            if not node.changed:
                continue
            target = node.read[0]
            is_own = node.changed == [0] and target.is_new and target == node.given[0] and not node.unreturned
            # Through another object, made before: one that was made of what was written may well be a copy's.
            is_seen = any(
                index > node.index and thing.number != target.number and (thing.number < node.made or not thing.is_new)
                for index, thing in readers[target.storage]
            )
            if is_own and node.args[:1] == (_Slot(0),) and not is_seen:
                node.clone = True
            else:
                self.written |= {node.read[i].storage for i in node.changed}

    def _is_written(self, node: _Node) -> bool:
        things = [*node.given, *(node.read[i] for i in node.changed if not node.clone)]
        return any(thing.storage in self.written for thing in things)

    # Families

    def _group(self) -> None:
        calls: dict[nn.Module, list[_Node]] = defaultdict(list)
        groups: dict[Hashable, list[_Node]] = defaultdict(list)
        for node in self.nodes:
            if node.module in self.neurons:
                calls[node.module].append(node)
            else:
                groups[node.site].append(node)
        for module, members in calls.items():
            self._add_neuron(module, members)
        counts = sorted({len(members) for members in calls.values() if len(members) > 1}, reverse=True)
        if not calls:
            raise LoopError("model: expected a loop over neurons, but none of those that can be converted is called")
        for members in groups.values():
            steps = next((count for count in counts if len(members) % count == 0), None)
            if steps is not None:
                parts = len(members) // steps
                for part in range(parts):
                    self._add(members[part::parts], parts)

    def _add(self, members: list[_Node], parts: int) -> None:
        first = members[0]
        writes = any(map(self._is_written, members)) and not _takes_batch_statistics(first)
        if first.module in self.recorder.hooked or writes:
            return
        family = _Family(members, parts)
        if first.module is None and first.name in _INDEXING:
            run = _over_steps(members)
            if run is not None:
                self.indexing[family] = run
            elif not _can_be_one(members):
                return
        elif not _can_be_one(members) or not _is_listed(first, self.merge_statistics):
            return
        self.of.update((node.index, family) for node in members)

    def _add_neuron(self, module: nn.Module, members: list[_Node]) -> None:
        """States must come from the call before, as they were returned."""
        first, word = members[0], self.recorder._word(module)
        if not first.args or type(first.args[0]) is not _Slot:
            raise LoopError(f"{word} is called without an input")
        if any(map(self._is_written, members)):
            raise LoopError(f"what {word} gives is written to")
        own = len(_slots(first.result[0] if isinstance(first.result, tuple | list) else first.result))
        for step, (before, node) in enumerate(itertools.pairwise(members), 1):
            states = [node.sources[i] for i in _slots((node.args, node.kwargs))[1:]]
            expected = [_Ref(before.index, own + i) for i in range(len(before.given) - own)]
            if len(node.args) + len(node.kwargs) > 1 and (not states or states != expected[: len(states)]):
                raise LoopError(
                    f"{word} is not given, at step {step}, the state that it returned at step {step - 1} as it was"
                )
            same = node.specs == first.specs and _alike(node.result, first.result) and node.grad == first.grad
            if not same or node.shapes[0] != first.shapes[0]:
                raise LoopError(f"{word} gives or is given tensors of other shapes at step {step} than at the first")
        family = _Family(members, 1, self.neurons[module])
        self.of.update((node.index, family) for node in members)

    def _break(self, family: _Family) -> None:
        for node in family.members:
            del self.of[node.index]

    # Order

    def _order(self) -> list[Vertex]:
        """What to run, in order, families that can't be one broken up.

        Raises:
            LoopError: a neuron's input depends on its own earlier output.
        """
        while True:
            graph = self._graph()
            try:
                order = _sorted(graph, self._start)
            except graphlib.CycleError as error:
                self._break_cycle(error.args[1])
                continue
            family = next((v for v in order if isinstance(v, _Family) and not self._settle(v)), None)
            if family is None:
                return order
            self._break(family)

    def vertex(self, node: int) -> Vertex:
        return self.of.get(node, node)

    def _start(self, vertex: Vertex) -> int:
        if isinstance(vertex, _Family):
            return vertex.first.index
        return vertex.index if isinstance(vertex, _Effect) else vertex

    def needs(self, node: _Node) -> list[Source]:
        """What a call must wait for: a neuron's states, but for the first, are its own business."""
        if node.module in self.neurons and node is not self.of[node.index].first:
            return node.sources[:1]
        return node.sources

    def _graph(self) -> dict[Vertex, set[Vertex]]:
        graph: dict[Vertex, set[Vertex]] = {self.vertex(node.index): set() for node in self.nodes}

        def wait(later: Vertex, earlier: Vertex, is_data: bool = False) -> None:
            if later is not earlier or is_data:
                graph[later].add(earlier)

        for node in self.nodes:
            for source in self.needs(node):
                if isinstance(source, _Ref):
                    wait(self.vertex(node.index), self.vertex(source.node), is_data=True)
        for storage in self.written:
            writer, readers = None, []
            for node in self.nodes:
                if not any(thing.storage == storage for thing in (*node.read, *node.given)):
                    continue
                if writer is not None:
                    wait(self.vertex(node.index), self.vertex(writer))
                if not node.clone and any(node.read[i].storage == storage for i in node.changed):
                    for reader in readers:
                        wait(self.vertex(node.index), self.vertex(reader))
                    writer, readers = node.index, []
                else:
                    readers.append(node.index)
        # Calls of a module that may keep something stay in order.
        last: dict[nn.Module, int] = {}
        for node in self.nodes:
            if node.module is not None and node.module not in self.neurons:
                if node.module in last and not _is_listed(node, False):
                    wait(self.vertex(node.index), self.vertex(last[node.module]))
                last[node.module] = node.index
        for effect in self.recorder.effects:
            graph[effect] = {self.vertex(source.node) for source in effect.sources if isinstance(source, _Ref)}
            for node in self.nodes:
                if node.module is effect.module:
                    call = self.vertex(node.index)
                    wait(*((call, effect) if effect.before else (effect, call)))
        # What is read of a module's state is that of before its first call: later, it holds another tensor.
        first = {node.module: node.index for node in reversed(self.nodes) if node.module is not None}
        for node in self.nodes:
            for source in node.sources:
                if isinstance(source, _Held) and source.path[0] != "_parameters":
                    call = first.get(source.module, -1)
                    if node.index < call:
                        wait(self.vertex(call), self.vertex(node.index))
        return graph

    def _break_cycle(self, cycle: list[Vertex]) -> None:
        families = [v for v in dict.fromkeys(cycle) if isinstance(v, _Family) and v.neuron is None]
        if families:
            # Of several calls per step, it is but a guess which belong together.
            most = max(family.parts for family in families)
            for family in families:
                if family.parts == most:
                    self._break(family)
            return
        neurons = [v.first.module for v in dict.fromkeys(cycle) if isinstance(v, _Family)]
        words = list(dict.fromkeys(self.recorder._word(module) for module in neurons))
        through = [self.nodes[v].what for v in dict.fromkeys(cycle) if isinstance(v, int)]
        via = f", through {through[0]}" if through else ""
        raise LoopError(
            f"what {' and '.join(words)} give{'s' if len(words) == 1 else ''} at one step comes back to {words[0]} at "
            f"a later one{via}: such a loop can only run step by step"
        )

    def _settle(self, family: _Family) -> bool:
        """Decide how a family runs, its sources being settled; whether it can."""
        node = family.first
        if family in self.indexing:
            family.run = self.indexing[family]
            return True
        if family.neuron is not None:
            return True
        kinds = [self.argument(family, i)[0] for i in range(len(node.sources))]
        is_same = all(kind == SAME for kind in kinds) and not _is_random(node)
        if is_same and (node.clone or not node.changed):
            family.once, family.run = True, node.run
            return True
        family.once = False
        family.run = _at_once(family, [SAME if kind == SAME else STEPS for kind in kinds]) if kinds else None
        return family.run is not None

    def argument(self, family: _Family, index: int) -> tuple[str, Any]:
        """One argument of a family: the same source for all steps; a tensor of another family, all steps of it; or a
        source for each step."""
        sources = [self.source(node.sources[index]) for node in family.members]
        if all(source == sources[0] for source in sources):
            return SAME, sources[0]
        if self.is_whole(sources):
            return STEPS, sources[0]
        return "each", sources

    def source(self, source: Source) -> Source:
        """The same for all members of a family that runs once."""
        if isinstance(source, _Ref):
            family = self.of.get(source.node)
            if family is not None and family.once:
                return _Ref(family.first.index, source.output)
        return source

    def is_whole(self, sources: Sequence[Source]) -> bool:
        """Whether these are what a family gives, at all steps in order."""
        first = sources[0]
        family = self.of.get(first.node) if isinstance(first, _Ref) else None
        return (
            family is not None
            and not family.once
            and list(sources) == [_Ref(node.index, first.output) for node in family.members]
        )


def _sorted(graph: dict[Vertex, set[Vertex]], start: Callable[[Vertex], int]) -> list[Vertex]:
    """Everything behind what it waits for, and otherwise as the pass went."""
    for vertex, earlier in graph.items():
        if vertex in earlier:
            raise graphlib.CycleError("", [vertex, vertex])
    sorter = graphlib.TopologicalSorter(graph)
    sorter.prepare()
    ready: list[tuple[int, int, Vertex]] = []
    order = []
    count = itertools.count()
    while sorter.is_active():
        for vertex in sorter.get_ready():
            heapq.heappush(ready, (start(vertex), next(count), vertex))
        vertex = heapq.heappop(ready)[2]
        order.append(vertex)
        sorter.done(vertex)
    return order


class _Values:
    """What has been computed so far in a pass.

    Args:
        inputs: the tensors among the arguments.
        single: outputs of families of which one step alone is read.
    """

    def __init__(self, inputs: list[Tensor], single: set[tuple[_Family, int]]) -> None:
        self.inputs = inputs
        self.given: dict[Vertex, list[Any]] = {}
        self._single = single
        self._parts: dict[tuple[_Family, int], tuple[Tensor, ...]] = {}

    def step(self, family: _Family, output: int, step: int) -> Tensor:
        """What a family gives at one step; of the last one, its tensor may have no more than that."""
        x = self.given[family][output]
        if (family, output) in self._single:
            return x[-1 if step == family.steps - 1 else step]
        # Apart all at once: the gradient of each part alone would be a tensor of all steps.
        if (family, output) not in self._parts:
            self._parts[family, output] = x.unbind(0)
        return self._parts[family, output][step]

    def forget(self, vertex: Vertex) -> None:
        given = self.given.pop(vertex, ())
        for output in range(len(given)):
            self._parts.pop((vertex, output), None)


Read = Callable[[_Values], Any]


class _Compiler:
    """Turns an order into what runs."""

    def __init__(self, planner: _Planner, order: list[Vertex]) -> None:
        self.planner, self.order = planner, order
        self.steps_of = {node.index: step for f in set(planner.of.values()) for step, node in enumerate(f.members)}
        self.reads: dict[tuple[_Family, int], set[int]] = defaultdict(set)
        self.whole: set[tuple[_Family, int]] = set()
        self.last: dict[Vertex, int] = {}  # where it is read last
        self.position = 0

    def compile(self) -> _Plan:
        recorder = self.planner.recorder
        needed: dict[_Family, list[str]] = {}
        actions = []
        for position, vertex in enumerate(self.order):
            self.position = self.last[vertex] = position
            actions.append(self._action(vertex, needed))
        self.position = len(self.order)
        results = [self._read(source) for source in recorder.output_sources]
        for family, uses in needed.items():
            uses += [self._use(family, output) for output in range(len(family.first.specs))]
        dead: list[list[Vertex]] = [[] for _ in range(len(self.order) + 1)]
        for vertex, position in self.last.items():
            dead[position].append(vertex)
        single = {key for key, steps in self.reads.items() if len(steps) == 1}
        return _Plan(
            max(family.steps for family in needed),
            self._stepwise(),
            list(zip(actions, dead, strict=False)),
            single,
            recorder.output,
            results,
        )

    def _use(self, family: _Family, output: int) -> str:
        if (family, output) in self.whole or self.reads.get((family, output), set()) - {family.steps - 1}:
            return "all"
        return "last" if (family, output) in self.reads else "none"

    def _stepwise(self) -> tuple[str, ...]:
        steps = {family.steps for family in self.planner.of.values() if family.neuron is not None} - {1}
        calls: dict[str, int] = defaultdict(int)
        for vertex in self.order:
            if isinstance(vertex, int):
                calls[self.planner.nodes[vertex].what] += 1
        return tuple(what for what, count in calls.items() if any(count % number == 0 for number in steps))

    # Arguments

    def _read(self, source: Source) -> Read:
        if isinstance(source, _Input):
            return lambda values: values.inputs[source.index]
        if isinstance(source, _Held):
            return lambda values: source.look_up()
        if isinstance(source, _Constant):
            return lambda values: source.tensor
        vertex, output = self.planner.vertex(source.node), source.output
        self.last[vertex] = self.position
        if not isinstance(vertex, _Family) or vertex.once:
            return lambda values: values.given[vertex][output]
        step = self.steps_of[source.node]
        self.reads[vertex, output].add(step)
        return lambda values: values.step(vertex, output, step)

    def _read_whole(self, source: _Ref) -> Read:
        family, output = self.planner.of[source.node], source.output
        self.last[family] = self.position
        self.whole.add((family, output))
        return lambda values: values.given[family][output]

    def _argument(self, family: _Family, index: int) -> Read:
        kind, source = self.planner.argument(family, index)
        if kind == SAME:
            return self._read(source)
        if kind == STEPS:
            return self._read_whole(source)
        reads = [self._read(one) for one in source]
        return lambda values: torch.stack([read(values) for read in reads])

    # Calls

    def _action(self, vertex: Vertex, needed: dict[_Family, list[str]]) -> Callable[[_Values], None]:
        if isinstance(vertex, _Effect):
            return self._effect(vertex)
        if isinstance(vertex, int):
            return self._alone(self.planner.nodes[vertex])
        if vertex.neuron is not None:
            needed[vertex] = []
            return self._all_steps(vertex, needed[vertex])
        indexing = vertex in self.planner.indexing or vertex.once
        indices = range(len(vertex.first.sources))
        reads = [self._read(vertex.first.sources[i]) if indexing else self._argument(vertex, i) for i in indices]

        def act(values: _Values) -> None:
            with vertex.first.gradients():
                values.given[vertex] = vertex.run([read(values) for read in reads])

        return act

    def _alone(self, node: _Node) -> Callable[[_Values], None]:
        joined = self._joined(node)
        if joined is not None:
            return joined
        reads = [self._read(source) for source in node.sources]
        # What is a view of one step's tensor may not be one of all steps'.
        reshapes = node.name == "view" and _numbers(node) is not None

        def act(values: _Values) -> None:
            given = [read(values) for read in reads]
            values.given[node.index] = [given[0].reshape(_numbers(node))] if reshapes else node.run(given)

        return act

    def _joined(self, node: _Node) -> Callable[[_Values], None] | None:
        """A list of all steps' tensors, stacked or joined: what is there already."""
        if node.name not in _JOINS or not self.planner.is_whole(node.sources) or self.planner._is_written(node):
            return None
        rank, steps = len(node.shapes[0]), len(node.sources)
        if not node.args or node.args[0] not in ([*map(_Slot, range(steps))], (*map(_Slot, range(steps)),)):
            return None
        dim = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)
        if {*node.kwargs} - {"dim"} or type(dim) is not int:
            return None
        read = self._read_whole(node.sources[0])
        stacks = node.name == "stack"
        dim %= rank + 1 if stacks else rank

        def act(values: _Values) -> None:
            with node.gradients():
                x = read(values).movedim(0, dim)
                x = x if stacks else x.flatten(dim, dim + 1)
                values.given[node.index] = [x.contiguous()]

        return act

    def _all_steps(self, family: _Family, needed: list[str]) -> Callable[[_Values], None]:
        node, neuron = family.first, family.neuron
        is_same = self.planner.argument(family, 0)[0] == SAME
        reads = [self._argument(family, 0), *(self._read(source) for source in node.sources[1:])]
        places = [i for i, leaf in enumerate(_leaves(node.result)) if type(leaf) is _Slot]
        tells = "needed" in inspect.signature(neuron.all_steps).parameters

        def act(values: _Values) -> None:
            given = [read(values) for read in reads]
            currents = given[0].expand(family.steps, *given[0].shape) if is_same else given[0]
            states, named = _filled((node.args[1:], node.kwargs), given)
            if tells:
                named = {**named, "needed": tuple(needed)}
            with node.gradients():
                found = _leaves(neuron.all_steps(node.module, currents, *states, **named))
            values.given[family] = [found[place] for place in places]

        return act

    def _effect(self, effect: _Effect) -> Callable[[_Values], None]:
        reads = [self._read(source) for source in effect.sources]

        def act(values: _Values) -> None:
            for path, value in _filled(effect.entries, [read(values) for read in reads]):
                holder: Any = vars(path[0])
                for key in path[1:-1]:
                    holder = holder[key]
                holder[path[-1]] = value

        return act


class _Plan(NamedTuple):
    """What runs in place of a forward.

    Attributes:
        steps: of the loop.
        stepwise: layers and functions of it that run step by step, in words.
        actions: each with what is not read any more behind it.
        single: see :class:`_Values`.
        output: forward's result, with slots for its tensors.
        results: what these are.
    """

    steps: int
    stepwise: tuple[str, ...]
    actions: list[tuple[Callable[[_Values], None], list[Vertex]]]
    single: set[tuple[_Family, int]]
    output: Any
    results: list[Read]

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        values = _Values([x for x in leaves((args, kwargs)) if isinstance(x, Tensor)], self.single)
        for action, dead in self.actions:
            action(values)
            for vertex in dead:
                values.forget(vertex)
        return _filled(self.output, [read(values) for read in self.results])
