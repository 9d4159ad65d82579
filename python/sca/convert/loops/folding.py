"""A network whose forward is folded, and the plans that it remembers."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable, Mapping, Sequence
from types import FunctionType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from ...structure.tracing import leaves
from ...structure.untouched import untouched
from ..swaps import Swap
from .calls import LoopError, StepNeuron
from .planning import Planner
from .recording import OpaqueModule, Recorder, UnknownTensor, is_machinery
from .running import Compiler, Plan

__all__ = ["Folded", "OverTime", "fold", "over_time", "returns_state"]

logger = logging.getLogger(__name__)

MAX_PLANS = 32  # input shapes and modes that a folded network remembers


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

    def without_state(self, output: Any) -> Any:
        """Of what forward returns, the outputs."""
        return output[0] if self.states else output


def over_time(model: nn.Module, states: bool = False) -> OverTime:
    """A module whose forward is a training script's loop over time, for :func:`fold`."""
    return OverTime(model, states)


def returns_state(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether a network of one step returns its state behind its output, as norse's do; of inputs [T, N, ...]."""
    with torch.no_grad():
        output = copy.deepcopy(model)(*(x[0].clone() if isinstance(x, Tensor) else x for x in inputs[:1]))
    return isinstance(output, tuple) and len(output) == 2 and not isinstance(output[1], Tensor)


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
        self.plans: OrderedDict[Hashable, Plan | None] = OrderedDict()
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

    def learn(self, model: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Plan:
        """The plan for passes like this one, which is kept."""
        self.modules = list(model.modules())
        grad = torch.set_grad_enabled(torch.is_grad_enabled())
        with untouched(model), torch.inference_mode(False), grad:
            finds_constants = False
            while True:
                recorder = Recorder(model, self.neurons, self.opaque, finds_constants)
                try:
                    recorder.record(forward, args, kwargs)
                    break
                except OpaqueModule as found:  # each time another
                    self.opaque.add(found.module)
                except UnknownTensor:
                    finds_constants = True
        self.settings.watch(recorder)
        planner = Planner(recorder, self.neurons, self.merge_statistics)
        plan = Compiler(planner, planner.plan()).compile()
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

    def watch(self, recorder: Recorder) -> None:
        for module in recorder.inside():
            for name in vars(module):
                if not is_machinery(name):
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
