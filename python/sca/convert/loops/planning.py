"""What is to run in which order, found from a recorded pass."""

from __future__ import annotations

import graphlib
import heapq
import itertools
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

from torch import nn

from .calls import Held, LoopError, Node, Ref, Slot, Source, StepNeuron, TensorObject, alike, slots_of
from .families import (
    INDEXING,
    SAME,
    STEPS,
    Family,
    Run,
    at_once,
    can_be_one,
    is_listed,
    is_random,
    over_steps,
    takes_batch_statistics,
)
from .recording import Effect, Recorder

__all__ = ["Planner", "Vertex"]

Vertex = Any  # a Family, an Effect, or the index of a node that runs alone


class Planner:
    """Finds what to run in which order, from a recorded pass."""

    def __init__(self, recorder: Recorder, neurons: Mapping[nn.Module, StepNeuron], merge_statistics: bool) -> None:
        self.recorder, self.neurons, self.merge_statistics = recorder, neurons, merge_statistics
        self.nodes = recorder.nodes
        self.of: dict[int, Family] = {}  # by node
        self.indexing: dict[Family, Run] = {}

    def plan(self) -> list[Vertex]:
        """What runs, in order."""
        self._settle_writes()
        self._group()
        return self._order()

    # Writes

    def _settle_writes(self) -> None:
        """Have in-place functions write to a copy where nobody would see that; note what else is written to."""
        readers: dict[int, list[tuple[int, TensorObject]]] = defaultdict(list)
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
            if is_own and node.args[:1] == (Slot(0),) and not is_seen:
                node.clone = True
            else:
                self.written |= {node.read[i].storage for i in node.changed}

    def is_written(self, node: Node) -> bool:
        things = [*node.given, *(node.read[i] for i in node.changed if not node.clone)]
        return any(thing.storage in self.written for thing in things)

    # Families

    def _group(self) -> None:
        calls: dict[nn.Module, list[Node]] = defaultdict(list)
        groups: dict[Hashable, list[Node]] = defaultdict(list)
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

    def _add(self, members: list[Node], parts: int) -> None:
        first = members[0]
        writes = any(map(self.is_written, members)) and not takes_batch_statistics(first)
        if first.module in self.recorder.hooked or writes:
            return
        family = Family(members, parts)
        if first.module is None and first.name in INDEXING:
            run = over_steps(members)
            if run is not None:
                self.indexing[family] = run
            elif not can_be_one(members):
                return
        elif not can_be_one(members) or not is_listed(first, self.merge_statistics):
            return
        self.of.update((node.index, family) for node in members)

    def _add_neuron(self, module: nn.Module, members: list[Node]) -> None:
        """States must come from the call before, as they were returned."""
        first, word = members[0], self.recorder.word(module)
        if not first.args or type(first.args[0]) is not Slot:
            raise LoopError(f"{word} is called without an input")
        if any(map(self.is_written, members)):
            raise LoopError(f"what {word} gives is written to")
        own = len(slots_of(first.result[0] if isinstance(first.result, tuple | list) else first.result))
        for step, (before, node) in enumerate(itertools.pairwise(members), 1):
            states = [node.sources[i] for i in slots_of((node.args, node.kwargs))[1:]]
            expected = [Ref(before.index, own + i) for i in range(len(before.given) - own)]
            if len(node.args) + len(node.kwargs) > 1 and (not states or states != expected[: len(states)]):
                raise LoopError(
                    f"{word} is not given, at step {step}, the state that it returned at step {step - 1} as it was"
                )
            same = node.specs == first.specs and alike(node.result, first.result) and node.grad == first.grad
            if not same or node.shapes[0] != first.shapes[0]:
                raise LoopError(f"{word} gives or is given tensors of other shapes at step {step} than at the first")
        family = Family(members, 1, self.neurons[module])
        self.of.update((node.index, family) for node in members)

    def _break(self, family: Family) -> None:
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
            family = next((v for v in order if isinstance(v, Family) and not self._settle(v)), None)
            if family is None:
                return order
            self._break(family)

    def vertex(self, node: int) -> Vertex:
        return self.of.get(node, node)

    def _start(self, vertex: Vertex) -> int:
        if isinstance(vertex, Family):
            return vertex.first.index
        return vertex.index if isinstance(vertex, Effect) else vertex

    def needs(self, node: Node) -> list[Source]:
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
                if isinstance(source, Ref):
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
                if node.module in last and not is_listed(node, False):
                    wait(self.vertex(node.index), self.vertex(last[node.module]))
                last[node.module] = node.index
        for effect in self.recorder.effects:
            graph[effect] = {self.vertex(source.node) for source in effect.sources if isinstance(source, Ref)}
            for node in self.nodes:
                if node.module is effect.module:
                    call = self.vertex(node.index)
                    wait(*((call, effect) if effect.before else (effect, call)))
        # What is read of a module's state is that of before its first call: later, it holds another tensor.
        first = {node.module: node.index for node in reversed(self.nodes) if node.module is not None}
        for node in self.nodes:
            for source in node.sources:
                if isinstance(source, Held) and source.path[0] != "_parameters":
                    call = first.get(source.module, -1)
                    if node.index < call:
                        wait(self.vertex(call), self.vertex(node.index))
        return graph

    def _break_cycle(self, cycle: list[Vertex]) -> None:
        families = [v for v in dict.fromkeys(cycle) if isinstance(v, Family) and v.neuron is None]
        if families:
            # Of several calls per step, it is but a guess which belong together.
            most = max(family.parts for family in families)
            for family in families:
                if family.parts == most:
                    self._break(family)
            return
        neurons = [v.first.module for v in dict.fromkeys(cycle) if isinstance(v, Family)]
        words = list(dict.fromkeys(self.recorder.word(module) for module in neurons))
        through = [self.nodes[v].what for v in dict.fromkeys(cycle) if isinstance(v, int)]
        via = f", through {through[0]}" if through else ""
        raise LoopError(
            f"what {' and '.join(words)} give{'s' if len(words) == 1 else ''} at one step comes back to {words[0]} at "
            f"a later one{via}: such a loop can only run step by step"
        )

    def _settle(self, family: Family) -> bool:
        """Decide how a family runs, its sources being settled; whether it can."""
        node = family.first
        if family in self.indexing:
            family.run = self.indexing[family]
            return True
        if family.neuron is not None:
            return True
        kinds = [self.argument(family, i)[0] for i in range(len(node.sources))]
        is_same = all(kind == SAME for kind in kinds) and not is_random(node)
        if is_same and (node.clone or not node.changed):
            family.once, family.run = True, node.run
            return True
        family.once = False
        family.run = at_once(family, [SAME if kind == SAME else STEPS for kind in kinds]) if kinds else None
        return family.run is not None

    def argument(self, family: Family, index: int) -> tuple[str, Any]:
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
        if isinstance(source, Ref):
            family = self.of.get(source.node)
            if family is not None and family.once:
                return Ref(family.first.index, source.output)
        return source

    def is_whole(self, sources: Sequence[Source]) -> bool:
        """Whether these are what a family gives, at all steps in order."""
        first = sources[0]
        family = self.of.get(first.node) if isinstance(first, Ref) else None
        return (
            family is not None
            and not family.once
            and list(sources) == [Ref(node.index, first.output) for node in family.members]
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
