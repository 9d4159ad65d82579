"""What pruning looks at: activity, probe gradients, layer inputs, and what a criterion asks of single passes; summed
over the passes since the last update and over all ranks."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sca_kernels.nn import Activity, probing
from sca_kernels.nn.activity import SUMS
from sca_kernels.nn.neuron import is_recomputing

from ..cost.layers import LayerCost
from ..cost.rates import RateRecorder
from ..structure.eager import run_eagerly
from ..structure.groups import Members, places_of
from ..structure.hooks import own
from ..structure.untouched import untouched
from .criteria import Criterion, NormObservation, Observation
from .ranks import sum_over_ranks
from .recording import record_in_training

__all__ = ["Measured", "Meter", "NotFinite"]


class NotFinite(RuntimeError):
    """Scores or gradients are NaN or infinite: the training has diverged."""


@dataclass(frozen=True)
class Measured:
    """What was measured since the last update, over all ranks; CPU tensors.

    Attributes:
        activity: for each prunable group ``spike_count``, ``membrane_l1`` and ``positions``, each [C].
        gradients: for each prunable group the sum over its batch norms of the probes' ``|dL/dgamma|``, float64 [C];
            None where no probe was taken.
        observed: for each prunable group what the criterion's ``observe`` returned, summed.
        synops: what the passes of the last step cost, layer by layer; empty where no setting asks for it.
        dead: names of the neuron layers in which no channel spiked.
    """

    activity: dict[str, dict[str, Tensor]]
    gradients: dict[str, Tensor | None]
    observed: dict[str, dict[str, Tensor]]
    synops: list[LayerCost]
    dead: tuple[str, ...]


class Meter:
    """Measures a model while it trains. Its neurons are given an ``activity``, and hooks while passes are observed.

    Args:
        model: unwrapped.
        wrapper: the model as the user calls it.
        groups: all of its groups by name; ``prunable`` those that pruning decides on.
        criterion: may ask to observe passes, see :class:`sca.pruning.criteria.Criterion`.
        counts_synops: whether layer inputs are counted in the passes of the step that an update follows.
        process_group: of torch.distributed, over whose ranks sums are taken.
    """

    def __init__(
        self,
        model: nn.Module,
        wrapper: nn.Module,
        groups: Mapping[str, Members],
        prunable: Mapping[str, Members],
        criterion: Criterion,
        counts_synops: bool,
        process_group: Any = None,
    ) -> None:
        self.model, self.wrapper, self.groups, self.prunable = model, wrapper, groups, prunable
        self.criterion, self.process_group = criterion, process_group
        self.recorder = RateRecorder(model, groups) if counts_synops else None
        self.neurons = {name: m for members in groups.values() for name, m in members.neurons.items()}
        self._gradients: dict[str, Tensor] = {}
        self._observed: dict[str, Tensor] = {}
        self._observing: list[torch.utils.hooks.RemovableHandle] = []
        self._awaited: dict[tuple[str, str], torch.utils.hooks.RemovableHandle] = {}
        self._eager: list[Callable[[], None]] = []
        for neuron in self.neurons.values():
            neuron.activity = neuron.activity or Activity(training_only=True)
        # torch.compile runs the hooks of the module that it returned, whenever they came; those inside, not always
        activities = [neuron.activity for neuron in self.neurons.values()]
        self._handles = [h for m in {model: 0, wrapper: 0} for h in record_in_training(m, activities)]

    @property
    def probed(self) -> bool:
        """Whether a probe was taken since the last update."""
        return bool(self._gradients)

    def prepare(self, steps_to_update: int | None) -> None:
        """Observe the passes of the coming step, or not.

        Args:
            steps_to_update: 1 where an update follows the coming step; None where none comes.
        """
        is_near = steps_to_update is not None
        counts = self.recorder is not None and is_near and steps_to_update <= 1
        observes = is_near and self.criterion.observes is not None and steps_to_update <= self.criterion.observed_steps
        if self.recorder is not None:
            (self.recorder.start if counts else self.recorder.stop)()
        if observes and not self._observing:
            self._observing = [handle for name in self.prunable for handle in self._observe(name)]
        elif not observes:
            self._stop_observing()
        self._run_eagerly(counts or observes)

    def pause(self) -> None:
        """Observe nothing until the next :meth:`prepare`."""
        if self.recorder is not None:
            self.recorder.stop()
        self._stop_observing()
        self._run_eagerly(False)

    def detach(self) -> None:
        """Leave nothing on the model."""
        self.pause()
        for handle in self._handles:
            handle.remove()
        for neuron in self.neurons.values():
            neuron.activity = None

    def probe(self, loss_fn: Callable[[], Tensor]) -> None:
        """See :meth:`sca.SCAScheduler.probe`; leaves hooks to the next :meth:`prepare`."""
        norms = {name: norm for members in self.prunable.values() for name, norm in members.norms.items()}
        weights = [norm.weight for norm in norms.values()]
        frozen = [weight.requires_grad_(True) for weight in weights if not weight.requires_grad]
        self.pause()
        # DistributedDataParallel would wait for a backward pass that never comes.
        no_sync = getattr(self.wrapper, "no_sync", contextlib.nullcontext)
        try:
            with (
                untouched(self.model),
                probing(m.group for m in self.groups.values()),
                no_sync(),
                torch.inference_mode(False),
                torch.enable_grad(),
            ):
                loss = loss_fn()
                if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
                    raise ValueError(f"loss_fn: expected a scalar tensor with a gradient, got {loss!r}")
                gradients = torch.autograd.grad(loss.reshape(()), weights, allow_unused=True)
        finally:
            for weight in frozen:
                weight.requires_grad_(False)
        for name, weight, gradient in zip(norms, weights, gradients, strict=True):
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            self._gradients[name] = self._gradients.get(name, 0) + gradient.double()

    def measure(self) -> Measured:
        """What was measured since the last update, over all ranks.

        Raises:
            RuntimeError: layer inputs or passes were to be looked at, and there were none.
        """
        sums = sum_over_ranks(self._sums(), self.process_group)
        synops: list[LayerCost] = []
        if self.recorder is not None:
            synops = self.recorder.take({name: sums[f"{name}.inputs"] for name in self.recorder.counts})
        return Measured(
            activity={
                name: {kind: _shares(members, members.neurons, sums, kind).sum(0) for kind in SUMS}
                for name, members in self.prunable.items()
            },
            gradients={
                name: _shares(members, members.norms, sums, "gradient").abs().sum(0) if self.probed else None
                for name, members in self.prunable.items()
            },
            observed={name: self._of_group(name, sums) for name in self.prunable},
            synops=synops,
            dead=tuple(name for name in self.neurons if not sums[f"{name}.spike_count"].any()),
        )

    def reset(self) -> None:
        """Forget what was measured: an update has used it."""
        for neuron in self.neurons.values():
            neuron.activity.reset()
        self._gradients, self._observed = {}, {}

    def state_dict(self) -> dict[str, Any]:
        """What was measured on this rank, and the rates that layers had."""
        recorder = self.recorder
        return {
            "activity": {
                name: {kind: getattr(neuron.activity, kind).clone() for kind in SUMS}
                for name, neuron in self.neurons.items()
                if neuron.activity.positions is not None
            },
            "gradients": {name: gradient.clone() for name, gradient in self._gradients.items()},
            "observed": {name: value.clone() for name, value in self._observed.items()},
            "rates": {} if recorder is None else dict(recorder.rates),
            "dense_rates": {} if recorder is None else dict(recorder.dense_rates),
        }

    @property
    def known(self) -> dict[str, Mapping[str, Any]]:
        """By part of a state, the names that entries may have."""
        layers = {} if self.recorder is None else self.recorder.layers
        norms = {name: norm for members in self.prunable.values() for name, norm in members.norms.items()}
        return {"activity": self.neurons, "gradients": norms, "rates": layers, "dense_rates": layers}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a :meth:`state_dict`, whose entries have names of :attr:`known`."""
        device = next(self.model.parameters()).device
        for name, neuron in self.neurons.items():
            neuron.activity.reset()
            for kind, value in state["activity"].get(name, {}).items():
                setattr(neuron.activity, kind, value.to(device, copy=True))
        self._gradients = {name: gradient.to(device, copy=True) for name, gradient in state["gradients"].items()}
        self._observed = {name: value.to(device, copy=True) for name, value in state.get("observed", {}).items()}
        if self.recorder is not None:
            self.recorder.rates, self.recorder.dense_rates = dict(state["rates"]), dict(state["dense_rates"])

    def _sums(self) -> dict[str, Tensor]:
        """What this rank has measured, as "<module>.<kind>", and "<kind>@<group>" for what was observed."""
        device = next(self.model.parameters()).device
        sums = dict(self._observed)
        for name, neuron in self.neurons.items():
            for kind, dtype in SUMS.items():
                value = getattr(neuron.activity, kind)
                if value is None:  # never ran
                    value = torch.zeros(neuron.group.num_channels, dtype=dtype, device=device)
                sums[f"{name}.{kind}"] = value
        sums.update({f"{name}.gradient": gradient for name, gradient in self._gradients.items()})
        if self.recorder is not None:
            sums.update({f"{name}.inputs": counts for name, counts in self.recorder.counts.items()})
        return sums

    def _of_group(self, name: str, sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = {kind: sums[key] for key in self._observed for kind, _, group in [key.partition("@")] if group == name}
        if self.criterion.observes is not None and not found:
            raise RuntimeError(
                f"group {name!r}: no pass was observed, which criterion {self.criterion.name!r} asks for; run the model"
                " in training mode (and its backward pass) before scheduler.step() (by itself, where it is compiled: a"
                " compiled function that calls it passes by hooks)"
            )
        return found

    def _observe(self, name: str) -> Iterator[torch.utils.hooks.RemovableHandle]:
        """Have the criterion see the passes of a group's neurons, or of its batch norms."""
        for neuron in self.prunable[name].neurons.values():
            # a partial of a method, unlike a closure, is copied with what it belongs to
            yield neuron.register_forward_hook(functools.partial(self._see, name), with_kwargs=True)

    @own
    def _see(
        self, name: str, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], spikes: Tensor
    ) -> None:
        """A hook on the neurons of a group."""
        if not (module.training or self.model.training) or is_recomputing():
            return
        if self.criterion.observes == "norms":
            self._await_norms(name, spikes)
            return
        # detached: a hook that held its own tensor would keep the graph of the pass for ever
        shown = (name, module, tuple(x.detach() for x in inputs), named, spikes.detach())
        if self.criterion.observes != "gradients":
            self._add(*shown, None)
        elif spikes.requires_grad:
            spikes.register_hook(functools.partial(self._add, *shown))

    @torch.no_grad()
    def _add(
        self,
        name: str,
        module: nn.Module,
        inputs: tuple[Any, ...],
        named: dict[str, Any],
        spikes: Tensor,
        gradient: Tensor | None,
    ) -> None:
        place = _places_in(module, self.prunable[name], spikes)
        seen = Observation(
            spikes.index_select(2, place),
            None if gradient is None else gradient.index_select(2, place),
            lambda: module.potentials(*inputs, **named).index_select(2, place),
        )
        self._accumulate(name, seen)

    def _accumulate(self, name: str, seen: Observation | NormObservation) -> None:
        for kind, value in self.criterion.observe(seen).items():
            key, value = f"{kind}@{name}", value if value.dtype == torch.int64 else value.double()
            self._observed[key] = self._observed[key] + value if key in self._observed else value

    def _await_norms(self, name: str, spikes: Tensor) -> None:
        """Have the criterion see, in the backward pass of these spikes, the gradients of the group's batch norms: of
        the parameters, since a batch norm may be run by the neuron behind it."""
        if not spikes.requires_grad:
            return
        for label, norm in self.prunable[name].norms.items():
            parameters = [p for p in (norm.weight, norm.bias) if p is not None and p.requires_grad]
            key = name, label  # a concatenation's batch norm is one of several groups
            if parameters and key not in self._awaited:
                see = functools.partial(self._add_norm, key, norm)
                self._awaited[key] = torch.autograd.graph.register_multi_grad_hook(parameters, see)

    @torch.no_grad()
    def _add_norm(self, key: tuple[str, str], norm: nn.Module, gradients: Sequence[Tensor | None]) -> None:
        """The gradients of a batch norm's trained parameters are there."""
        self._awaited.pop(key).remove()
        name, _ = key
        group, values = self.prunable[name].group, []
        found = iter(gradients)
        for parameter in (norm.weight, norm.bias):
            is_trained = parameter is not None and parameter.requires_grad
            values += [parameter, next(found) if is_trained else None]
        active = group.active.to(norm.weight.device)
        weight, weight_gradient, bias, bias_gradient = (
            places_of(group, norm.group, torch.zeros_like(norm.weight) if z is None else z.detach())[active]
            for z in values
        )
        self._accumulate(name, NormObservation(weight, bias, weight_gradient, bias_gradient))

    def _stop_observing(self) -> None:
        for handle in self._awaited.values():
            handle.remove()
        self._awaited = {}
        for handle in self._observing:
            handle.remove()
        self._observing = []

    def _run_eagerly(self, eagerly: bool) -> None:
        """Have the compiled parts of the model run as they stand, or compiled again: a compiler's code passes by hooks
        that came after it."""
        if eagerly and not self._eager:
            self._eager = run_eagerly(self.wrapper)
        elif not eagerly:
            for undo in self._eager:
                undo()
            self._eager = []


def _places_in(module: nn.Module, members: Members, spikes: Tensor) -> Tensor:
    """Where the active channels of a group lie among those of a neuron that carries it, alone or in a concatenation
    (there, the first time)."""
    before = itertools.takewhile(lambda part: part is not members.group, module.group.parts)
    start = sum(part.num_active for part in before)
    return torch.arange(start, start + members.group.num_active, device=spikes.device)


def _shares(members: Members, carriers: Mapping[str, nn.Module], sums: Mapping[str, Tensor], kind: str) -> Tensor:
    """What was measured on each of these carriers, for the group's channels alone: [carriers, C]."""
    shares = [places_of(members.group, m.group, sums[f"{name}.{kind}"]) for name, m in carriers.items()]
    return torch.stack(shares)
