"""SCA in a training loop: measured, decided, applied (Li et al., ICML 2024)."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sca_kernels import checks

from ..cost import density
from ..cost.layers import connections
from ..registry import name_of
from ..structure.attach import attach_groups, has_groups, require_prunable
from ..structure.groups import Members, find_groups, require_parameters
from ..structure.modes import plain_mode
from ..structure.wrappers import plain_name, unwrapped
from .apply import Surgery
from .criteria import GroupContext, as_criterion
from .decide import Budget, decide, least_share
from .growth import needs_probe
from .history import GroupChange, PruneEvent
from .measure import Measured, Meter, NotFinite
from .ranks import require_member, require_same_masks
from .schedule import Plan
from .settings import multiple

__all__ = ["GroupChange", "NotFinite", "PruneEvent", "SCAScheduler"]

logger = logging.getLogger(__name__)

#: So many calls of step() in a row without an optimizer step are no gradient accumulation any more.
_SUSPICIOUS = 1000


class SCAScheduler:
    """Prunes and regrows the channels of a network while it trains.

    ::

        scheduler = SCAScheduler(model, optimizer, start=100, stop=2000, interval=100, density=0.3)
        for images, labels in batches:
            optimizer.zero_grad()
            loss(model(images), labels).backward()
            optimizer.step()
            if scheduler.wants_probe:
                scheduler.probe(lambda: loss(model(images), labels))
            event = scheduler.step()

    Parameters keep their identity and their full size. From now on the optimizer steps on active entries alone, see
    :class:`sca.pruning.optimizer.ActiveOptimizer`; the neurons of every group get an ``activity``, whose sums start
    anew at each update. When torch.distributed is initialised, activity and probe gradients are summed over the
    ranks, so that all of them decide alike, and their decisions are compared.

    Steps are the optimizers': a call of :meth:`step` that none of them has stepped before counts nothing, as while
    gradients are added up over several batches, or after a step that a ``torch.amp.GradScaler`` skipped. Closures and
    parameter groups that are added later work as ever. A model that torch.compile has compiled runs as it stands in
    the steps in which an update's criterion or budget looks at single layers (see
    :class:`sca.pruning.criteria.Criterion`), since compiled code passes by hooks.

    Frozen layers (``requires_grad_(False)``, or in eval mode while the model is in training mode) are pruned and
    regrown like all others, and the log says which: their activity is recorded whenever the model trains, and a probe
    takes the gradients of their batch-norm weights. ``group.prunable = False`` leaves their channels as they are.

    Args:
        model: as it is, or in a wrapper of torch.compile, DistributedDataParallel or DataParallel. If it carries
            channel groups, the prunable ones need neurons and layers that read them, and it is tried out with half of
            their channels; if it carries none, :func:`sca.attach_groups` finds them, and logs what cannot be pruned.
        optimizer: one or several, which hold every trainable parameter of the layers with channel groups. Where one
            steps another one inside (SAM, Lookahead), the outer one.
        example_input: for :func:`sca.attach_groups`, and for trying the model out.
        process_group: of torch.distributed, over whose ranks activity and gradients are summed; None: the default one.
        settings: see :class:`sca.pruning.Plan`; ``start``, ``stop`` and ``interval``, in optimizer steps, are required.

    Attributes:
        plan: the settings.
        groups: all channel groups of the model by name.
        attached: what :func:`sca.attach_groups` reported; None for a model that carried groups.
        steps: optimizer steps so far.
        history: :meth:`PruneEvent.record` of every update.

    Raises:
        TypeError, ValueError: a setting is out of range or unknown; the model has nothing to prune, a group lacks
            what a setting needs, a layer computes its weight in each pass (weight norm), or the network fails without
            some channels; parameters are sharded (FSDP) or quantised; the optimizer has a scheduler already, is LBFGS,
            or lacks a trainable parameter of a layer with a group; this process is not in ``process_group``.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        example_input: Any = None,
        process_group: Any = None,
        **settings: Any,
    ) -> None:
        self.plan = plan = Plan(**settings)
        checks.instance("model", model, nn.Module, "a torch.nn.Module")
        require_member(process_group)
        self._process_group = process_group
        self.model = inner = unwrapped(model)
        self.attached = None if has_groups(inner) else attach_groups(inner, example_input)
        self.groups = find_groups(inner)
        require_parameters(inner)
        self._prunable = {name: members for name, members in self.groups.items() if members.group.prunable}
        if not self._prunable:
            raise ValueError(f"model: expected a prunable channel group, got only {', '.join(self.groups)}")
        self._criterion = as_criterion(plan.strategy("criterion"), name_of(plan.criterion))
        self._growth = plan.strategy("regrow")
        for name, members in self._prunable.items():
            if not members.neurons:
                raise ValueError(f"model: no neuron carries group {name!r}, so its activity is unknown")
            if needs_probe(self._growth) and plan.regrow_fraction and not members.norms:
                raise ValueError(
                    f"regrow: group {name!r} has no batch norm with a weight, which {name_of(plan.regrow)!r} needs; "
                    "use 'random', or regrow_fraction=0"
                )
            is_trained = [norm.weight.requires_grad for norm in members.norms.values()]
            if self._criterion.observes == "norms" and not (is_trained and all(is_trained)):
                raise ValueError(
                    f"criterion: {self._criterion.name!r} observes batch norms, expected ones whose weights are "
                    f"trained in group {name!r}, got {'frozen ones' if is_trained else 'none'}"
                )
        if self.attached is None:
            require_prunable(inner, example_input, self._prunable)
        frozen = [name for name, members in self._prunable.items() if _is_frozen(members)]
        if frozen:
            logger.warning(
                "frozen, but pruned and regrown like all others: %s; prunable=False of a group leaves it as it is",
                ", ".join(frozen),
            )
        with plain_mode():
            self._connections = connections(inner, self.groups)
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._warned = False
        self._idle = 0
        self.steps = 0
        self.history: list[dict[str, Any]] = []
        self._surgery = Surgery(inner, optimizer, self._prunable, plan.strategy("regrow_init"), self._generator)
        self._meter = Meter(
            inner, model, self.groups, self._prunable, self._criterion, plan.counts_synops, process_group
        )
        self._prepare()

    @property
    def density(self) -> float:
        """Active / all channels of the prunable groups."""
        return density(members.group for members in self._prunable.values())

    @property
    def least_share(self) -> float | None:
        """Smallest share of the plan's target that ``min_channels`` and ``round_to`` leave; None of SynOps, which
        depend on what fires."""
        sizes = {name: members.group.num_channels for name, members in self.groups.items()}
        with plain_mode():
            return least_share(self._plan_here, sizes, self._budget())

    @property
    def _plan_here(self) -> Plan:
        """The plan on the device where the parameters are now."""
        return self.plan.on(self._device_type)

    @property
    def _device_type(self) -> str:
        return next(self.model.parameters()).device.type

    @property
    def wants_probe(self) -> bool:
        """Whether the coming :meth:`step` is an update that regrows by gradient and no probe was taken for it yet."""
        return self._lacks_probe(self.steps + 1)

    @property
    def update_is_next(self) -> bool:
        """Whether the coming :meth:`step` is an update, where an optimizer step precedes it."""
        return self.plan.is_update(self.steps + 1)

    def probe(self, loss_fn: Callable[[], Tensor]) -> None:
        """Collect the gradients of dormant channels' batch-norm weights. Several probes add up, as parts of a batch do.

        The loss is that of the pruned network: dormant spikes reach the next layer as zeros, and only the gradient
        passes that gate. Leaves no trace: the parameters' ``grad``, buffers, activity, neuron states and the random
        states of torch, NumPy and Python stay as they were.

        Args:
            loss_fn: runs the model on a batch, in the mode it is in, and returns the scalar loss.

        Raises:
            ValueError: the loss is no scalar that has a gradient.
        """
        try:
            self._meter.probe(loss_fn)
        finally:
            self._prepare()

    def step(self) -> PruneEvent | None:
        """Count one optimizer step; at an update, cut and regrow. Call it after every ``optimizer.step()``: a call
        without one before it, or after one that a GradScaler skipped, counts nothing.

        Without a probe, an update that should regrow by gradient only cuts, to the same number of channels.

        Returns:
            What changed at an update, None otherwise.

        Raises:
            RuntimeError: no activity was recorded since the last update, or nothing that the criterion looks at.
            ValueError: a parameter is another one than when the scheduler was made.
            NotFinite: scores or gradients are NaN or infinite.
            RanksDiffer: another rank came to another structure.
        """
        self._surgery.require_same_parameters()
        if not self._surgery.optimizer.took_step():
            self._note_idle()
            return None
        self._idle = 0
        self.steps += 1
        event = None
        if self.plan.is_update(self.steps):
            with plain_mode():
                event = self._update()
        self._prepare()
        if event is not None:
            self._tell(event)
        return event

    def follow(self, model: nn.Module) -> None:
        """Have another model of the same architecture keep this one's structure: now, and after every update.

        For averages of the weights, ``torch.optim.swa_utils.AveragedModel(model)``, made before or after this
        scheduler: without it they keep the channels that were active when they were made. What an update regrows begins
        its average anew, with the model's own values.

        Args:
            model: a copy, or what holds one: AveragedModel, or a wrapper of torch.compile or DistributedDataParallel.

        Raises:
            ValueError: it is this scheduler's model, or of another architecture; nothing was changed.
        """
        self._surgery.follow(checks.instance("model", model, nn.Module, "a torch.nn.Module"))

    def detach(self) -> None:
        """Let go of model and optimizer: no activity is recorded, and steps change dormant entries like all others."""
        self._surgery.optimizer.detach()
        self._meter.detach()

    def state_dict(self) -> dict[str, Any]:
        """What a bit-exact continuation needs beside the states of model and optimizer: tensors and plain data."""
        return {
            "plan": self.plan.record(),
            "steps": self.steps,
            "channels": {name: members.group.num_channels for name, members in self.groups.items()},
            "active": {name: members.group.active.clone() for name, members in self.groups.items()},
            **self._meter.state_dict(),
            "generator": self._generator.get_state(),
            "history": copy.deepcopy(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any], strict: bool = True) -> None:
        """Continue from a :meth:`state_dict`: the model's structure becomes what it was.

        Args:
            strict: whether the state must be that of the same plan. Otherwise this scheduler's own plan goes on from
                the state's step, and the log says what differs.

        Raises:
            ValueError: it is the state of a model with other groups, or of another plan; the message names one, and
                nothing was changed.
        """
        known = {**self._meter.known, "channels": self.groups, "active": self.groups}
        state = {**state, **{part: _renamed(state[part], names) for part, names in known.items()}}
        for name in {**state["channels"], **self.groups}:
            ours = self.groups[name].group.num_channels if name in self.groups else "no such group"
            theirs = state["channels"].get(name, "no such group")
            if ours != theirs:
                raise ValueError(f"state: group {name!r}: expected {ours} channels, as in the model, got {theirs}")
        for part in "activity", "gradients":
            strange = [name for name in state[part] if name not in known[part]]
            if strange:
                raise ValueError(f"state: {part}: expected modules of the model, got {', '.join(strange)}")
        own, held = self._plan_here.record(), dict(state.get("plan", {}))  # states of earlier versions have none
        if "round_to" in held:
            held["round_to"] = multiple(held["round_to"], self._device_type)
        differing = [
            f"{name} {held[name]!r}, not {own[name]!r}" for name in own if held.get(name, own[name]) != own[name]
        ]
        if differing and strict:
            raise ValueError(
                f"state: plan: it is of one with {', '.join(differing)}; strict=False goes on with this scheduler's own"
            )
        if differing:
            logger.info("going on with another plan: the state is of one with %s", ", ".join(differing))
        with plain_mode():
            self.steps = state["steps"]
            for name, active in state["active"].items():
                self.groups[name].group.set_active(active)
            self._meter.load_state_dict(state)
            self._generator.set_state(state["generator"].cpu())
            self.history = copy.deepcopy(state["history"])
            self._surgery.settle()
        self._prepare()

    def _prepare(self) -> None:
        """Have the passes of the coming step looked at, or not."""
        self._meter.prepare(self.plan.steps_to_update(self.steps + 1))

    def _lacks_probe(self, step: int) -> bool:
        growing = needs_probe(self._growth) and self.plan.regrows_at(step)
        return growing and not self._meter.probed and (self.density < 1 or self.plan.regrow_pruned)

    def _note_idle(self) -> None:
        """A call of step() that no optimizer step came before."""
        self._idle += 1
        if self._idle == _SUSPICIOUS:
            logger.warning(
                "SCAScheduler.step() was called %d times without a step of its optimizers in between, and prunes"
                " nothing; does another optimizer step?",
                self._idle,
            )

    def _tell(self, event: PruneEvent) -> None:
        """Put an update into history and log."""
        record = event.record()
        self.history.append(record)
        logger.info("step %(step)d: density %(density).3f, %(pruned)d pruned, %(regrown)d regrown", record)
        if self.steps == self.plan.last and event.share > event.wanted + 0.01:
            logger.warning(
                "the last update leaves %.4g of %s where %.4g was wanted: min_channels and round_to keep it",
                *(event.share, self.plan.target, event.wanted),
            )
        if event.dead:
            logger.warning("step %d: nothing fired since the last update in %s", event.step, ", ".join(event.dead))

    def _update(self) -> PruneEvent:
        self._surgery.watch(self.steps)
        if self._lacks_probe(self.steps) and not self._warned:
            self._warned = True
            logger.warning(
                "step %d: no probe was taken, so this update only prunes (see SCAScheduler.wants_probe)", self.steps
            )
        measured = self._meter.measure()
        masks = {name: members.group.mask() for name, members in self.groups.items()}
        scores, growth = self._judged(measured, masks)
        decision = decide(self._plan_here, self.steps, masks, scores, growth, self._budget(measured))
        device = next(self.model.parameters()).device
        require_same_masks(decision.masks, device, self._process_group)
        self._surgery.apply(decision.masks)
        changes = {
            name: GroupChange.between(masks[name], mask, decision.ranked[name]) for name, mask in decision.masks.items()
        }
        probed = self._meter.probed
        self._meter.reset()
        return PruneEvent(self.steps, self.density, decision.share, decision.wanted, changes, measured.dead, probed)

    def _judged(
        self, measured: Measured, masks: Mapping[str, Tensor]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor | None]]:
        """Score and promise of each channel of the prunable groups, float64 [C]; no promise where none is asked for."""
        grows = bool(self.plan.regrow_fraction) and (self._meter.probed or not needs_probe(self._growth))
        scores: dict[str, Tensor] = {}
        growth: dict[str, Tensor | None] = {}
        for name, members in self._prunable.items():
            context = GroupContext(
                group=members.group,
                name=name,
                active=members.group.active,
                producers=tuple(members.producers.values()),
                consumers=tuple(members.consumers.values()),
                norms=tuple(members.norms.values()),
                generator=self._generator,
                gradient=measured.gradients[name],
                observed=measured.observed[name],
                **measured.activity[name],
            )
            scores[name] = _require_vector(self._criterion(context), members, f"criterion {self._criterion.name!r}")
            growth[name] = None
            if grows:
                growth[name] = _require_vector(self._growth(context), members, f"regrow {name_of(self.plan.regrow)!r}")
            for what, values in ("scores", scores[name][masks[name]]), ("gradients", growth[name]):
                if values is not None and not values.isfinite().all():
                    raise NotFinite(f"group {name!r}: {what} are not finite")
        return scores, growth

    def _budget(self, measured: Measured | None = None) -> Budget:
        """What the plan's density is a share of."""
        synops = [] if measured is None else measured.synops
        dense = self._meter.recorder.dense(synops) if synops else 0.0
        return Budget(self.plan.target, tuple(self._prunable), self._connections, synops, dense)


def _require_vector(values: Any, members: Members, what: str) -> Tensor:
    """What a strategy returned, as float64 [C] on the CPU.

    Raises:
        ValueError: it is something else.
    """
    channels = members.group.num_channels
    if not isinstance(values, Tensor) or values.shape != (channels,):
        raise ValueError(
            f"{what}: expected a tensor [{channels}] for group {members.name!r}, got {checks.describe(values)}"
        )
    return values.detach().to("cpu", torch.float64)


def _is_frozen(members: Members) -> bool:
    """Whether nothing that makes a group's channels is trained."""
    layers = (*members.producers.values(), *members.norms.values())
    return bool(layers) and not any(p.requires_grad for layer in layers for p in layer.parameters())


def _renamed(entries: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a state by the names that they have here, where the model may be in other wrappers than it was."""
    found = {}
    for name, value in entries.items():
        plain = plain_name(name)
        short = plain.removeprefix("module.")
        found[short if plain not in known and short in known else plain] = value
    return found
