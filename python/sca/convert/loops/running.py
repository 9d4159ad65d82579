"""A plan made into what runs in place of a forward."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...structure.tracing import leaves
from .calls import Constant, Held, Input, Node, Ref, Slot, Source, filled, leaves_and_slots
from .families import JOINS, SAME, STEPS, Family, whole_numbers
from .planning import Planner, Vertex
from .recording import Effect

__all__ = ["Compiler", "Plan"]


class _Values:
    """What has been computed so far in a pass.

    Args:
        inputs: the tensors among the arguments.
        single: outputs of families of which one step alone is read.
    """

    def __init__(self, inputs: list[Tensor], single: set[tuple[Family, int]]) -> None:
        self.inputs = inputs
        self.given: dict[Vertex, list[Any]] = {}
        self._single = single
        self._parts: dict[tuple[Family, int], tuple[Tensor, ...]] = {}

    def step(self, family: Family, output: int, step: int) -> Tensor:
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


class Compiler:
    """Turns an order into what runs."""

    def __init__(self, planner: Planner, order: list[Vertex]) -> None:
        self.planner, self.order = planner, order
        self.steps_of = {node.index: step for f in set(planner.of.values()) for step, node in enumerate(f.members)}
        self.reads: dict[tuple[Family, int], set[int]] = defaultdict(set)
        self.whole: set[tuple[Family, int]] = set()
        self.last: dict[Vertex, int] = {}  # where it is read last
        self.position = 0

    def compile(self) -> Plan:
        recorder = self.planner.recorder
        needed: dict[Family, list[str]] = {}
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
        return Plan(
            max(family.steps for family in needed),
            self._stepwise(),
            list(zip(actions, dead, strict=False)),
            single,
            recorder.output,
            results,
        )

    def _use(self, family: Family, output: int) -> str:
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
        if isinstance(source, Input):
            return lambda values: values.inputs[source.index]
        if isinstance(source, Held):
            return lambda values: source.look_up()
        if isinstance(source, Constant):
            return lambda values: source.tensor
        vertex, output = self.planner.vertex(source.node), source.output
        self.last[vertex] = self.position
        if not isinstance(vertex, Family) or vertex.once:
            return lambda values: values.given[vertex][output]
        step = self.steps_of[source.node]
        self.reads[vertex, output].add(step)
        return lambda values: values.step(vertex, output, step)

    def _read_whole(self, source: Ref) -> Read:
        family, output = self.planner.of[source.node], source.output
        self.last[family] = self.position
        self.whole.add((family, output))
        return lambda values: values.given[family][output]

    def _argument(self, family: Family, index: int) -> Read:
        kind, source = self.planner.argument(family, index)
        if kind == SAME:
            return self._read(source)
        if kind == STEPS:
            return self._read_whole(source)
        reads = [self._read(one) for one in source]
        return lambda values: torch.stack([read(values) for read in reads])

    # Calls

    def _action(self, vertex: Vertex, needed: dict[Family, list[str]]) -> Callable[[_Values], None]:
        if isinstance(vertex, Effect):
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

    def _alone(self, node: Node) -> Callable[[_Values], None]:
        joined = self._joined(node)
        if joined is not None:
            return joined
        reads = [self._read(source) for source in node.sources]
        # What is a view of one step's tensor may not be one of all steps'.
        reshapes = node.name == "view" and whole_numbers(node) is not None

        def act(values: _Values) -> None:
            given = [read(values) for read in reads]
            values.given[node.index] = [given[0].reshape(whole_numbers(node))] if reshapes else node.run(given)

        return act

    def _joined(self, node: Node) -> Callable[[_Values], None] | None:
        """A list of all steps' tensors, stacked or joined: what is there already."""
        if node.name not in JOINS or not self.planner.is_whole(node.sources) or self.planner.is_written(node):
            return None
        rank, steps = len(node.shapes[0]), len(node.sources)
        if not node.args or node.args[0] not in ([*map(Slot, range(steps))], (*map(Slot, range(steps)),)):
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

    def _all_steps(self, family: Family, needed: list[str]) -> Callable[[_Values], None]:
        node, neuron = family.first, family.neuron
        is_same = self.planner.argument(family, 0)[0] == SAME
        reads = [self._argument(family, 0), *(self._read(source) for source in node.sources[1:])]
        places = [i for i, leaf in enumerate(leaves_and_slots(node.result)) if type(leaf) is Slot]
        tells = "needed" in inspect.signature(neuron.all_steps).parameters

        def act(values: _Values) -> None:
            given = [read(values) for read in reads]
            currents = given[0].expand(family.steps, *given[0].shape) if is_same else given[0]
            states, named = filled((node.args[1:], node.kwargs), given)
            if tells:
                named = {**named, "needed": tuple(needed)}
            with node.gradients():
                found = leaves_and_slots(neuron.all_steps(node.module, currents, *states, **named))
            values.given[family] = [found[place] for place in places]

        return act

    def _effect(self, effect: Effect) -> Callable[[_Values], None]:
        reads = [self._read(source) for source in effect.sources]

        def act(values: _Values) -> None:
            for path, value in filled(effect.entries, [read(values) for read in reads]):
                holder: Any = vars(path[0])
                for key in path[1:-1]:
                    holder = holder[key]
                holder[path[-1]] = value

        return act


class Plan(NamedTuple):
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
    single: set[tuple[Family, int]]
    output: Any
    results: list[Read]

    def __call__(self, args: tuple, kwargs: dict) -> Any:
        values = _Values([x for x in leaves((args, kwargs)) if isinstance(x, Tensor)], self.single)
        for action, dead in self.actions:
            action(values)
            for vertex in dead:
                values.forget(vertex)
        return filled(self.output, [read(values) for read in self.results])
