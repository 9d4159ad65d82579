"""SCA in a training loop: score, cut, regrow (Li et al., ICML 2024)."""

from __future__ import annotations

import contextlib
import copy
import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sca_kernels import checks
from sca_kernels.nn import Activity, probing

from ..cost.layers import LayerCost, channel_costs, connections, total
from ..cost.rates import RateRecorder
from ..structure.attach import attach_groups, has_groups, require_prunable
from ..structure.groups import Members, find_groups, named_axes, places_of, require_parameters
from ..structure.untouched import untouched
from ..structure.wrappers import plain_name, unwrapped
from .criteria import CRITERIA, GroupContext
from .histogram import histogram
from .optimizer import ActiveOptimizer
from .ranks import require_same_masks, sum_over_ranks
from .recording import record_in_training
from .regrow import REGROW_INITS
from .schedule import Plan, nearest
from .select import Candidates, choose, largest_count

__all__ = ["GroupChange", "NotFinite", "PruneEvent", "SCAScheduler"]

logger = logging.getLogger(__name__)

#: the sums of an Activity, and their dtypes
_SUMS = {"spike_count": torch.int64, "membrane_l1": torch.float64, "positions": torch.int64}


class NotFinite(RuntimeError):
    """Scores or gradients are NaN or infinite: the training has diverged."""


@dataclass(frozen=True)
class GroupChange:
    """What an update did to one group.

    Attributes:
        before, after: number of active channels.
        pruned, regrown: the indices that went and came, int64.
        scores: what the active channels were ranked by, as :func:`sca.pruning.histogram.histogram` sums it up.
    """

    before: int
    after: int
    pruned: Tensor
    regrown: Tensor
    scores: dict[str, Any]

    def record(self) -> dict[str, Any]:
        """The change as plain numbers."""
        counts = {"before": self.before, "pruned": self.pruned.numel(), "regrown": self.regrown.numel()}
        return {**counts, "scores": self.scores}


@dataclass(frozen=True)
class PruneEvent:
    """What an update did.

    Attributes:
        step: optimizer steps so far.
        density: active / all channels of the prunable groups, after the update.
        share: active share of the plan's target (channels, parameters or SynOps) after the update.
        wanted: the share that the schedule asked for; ``share`` exceeds it only where the floors do.
        groups: by name, the prunable ones.
        dead: names of the neuron layers in which no channel spiked since the last update.
        probed: whether a probe had been taken.
    """

    step: int
    density: float
    share: float
    wanted: float
    groups: dict[str, GroupChange]
    dead: tuple[str, ...]
    probed: bool

    @property
    def pruned(self) -> int:
        """Channels that went."""
        return sum(change.pruned.numel() for change in self.groups.values())

    @property
    def regrown(self) -> int:
        """Channels that came back."""
        return sum(change.regrown.numel() for change in self.groups.values())

    def record(self) -> dict[str, Any]:
        """The event as plain numbers and strings, for logs and plots."""
        numbers = ("step", "density", "share", "wanted", "pruned", "regrown", "probed")
        active = {name: change.after for name, change in self.groups.items()}
        return {
            **{name: getattr(self, name) for name in numbers},
            "dead": list(self.dead),
            "active": active,
            "groups": {name: change.record() for name, change in self.groups.items()},
        }


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

    Frozen layers (``requires_grad_(False)``, or in eval mode while the model is in training mode) are pruned and
    regrown like all others, and the log says which: their activity is recorded whenever the model trains, and a probe
    takes the gradients of their batch-norm weights. ``group.prunable = False`` leaves their channels as they are.

    Args:
        model: as it is, or in a wrapper of torch.compile, DistributedDataParallel or DataParallel. If it carries
            channel groups, the prunable ones need neurons and layers that read them, and it is tried out with half of
            their channels; if it carries none, :func:`sca.attach_groups` finds them, and logs what cannot be pruned.
        optimizer: of the model's parameters; a list where several share them. Where one steps another one inside (SAM,
            Lookahead), the outer one.
        example_input: for :func:`sca.attach_groups`, and for trying the model out.
        settings: see :class:`sca.pruning.schedule.Plan`; ``start``, ``stop`` and ``interval``, in optimizer steps,
            are required.

    Attributes:
        plan: the settings.
        groups: all channel groups of the model by name.
        attached: what :func:`sca.attach_groups` reported; None for a model that carried groups.
        steps: optimizer steps so far.
        history: :meth:`PruneEvent.record` of every update.

    Raises:
        TypeError, ValueError: a setting is out of range or unknown; the model has nothing to prune, a group lacks
            what a setting needs, a layer computes its weight in each pass (weight norm), or the network fails without
            some channels; parameters are sharded; the optimizer has a scheduler already, is LBFGS, or holds none of the
            model's parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        example_input: Any = None,
        **settings: Any,
    ) -> None:
        self.plan = Plan(**settings)
        checks.instance("model", model, nn.Module, "a torch.nn.Module")
        self._wrapper = model
        self.model = model = unwrapped(model)
        self.attached = None if has_groups(model) else attach_groups(model, example_input)
        self.groups = find_groups(model)
        self._parameters = named_axes(model)
        require_parameters(model)
        self._prunable = {name: members for name, members in self.groups.items() if members.group.prunable}
        if not self._prunable:
            raise ValueError(f"model: expected a prunable channel group, got only {', '.join(self.groups)}")
        for name, members in self._prunable.items():
            if not members.neurons:
                raise ValueError(f"model: no neuron carries group {name!r}, so its activity is unknown")
            if self.plan.regrow == "bn_gamma" and self.plan.regrow_fraction and not members.norms:
                raise ValueError(
                    f"regrow: group {name!r} has no batch norm with a weight, which 'bn_gamma' needs; "
                    "use 'random', or regrow_fraction=0"
                )
        if self.attached is None:
            require_prunable(model, example_input, self._prunable)
        frozen = [name for name, members in self._prunable.items() if _is_frozen(members)]
        if frozen:
            logger.warning(
                "frozen, but pruned and regrown like all others: %s; prunable=False of a group leaves it as it is",
                ", ".join(frozen),
            )
        self._neurons = {name: m for members in self.groups.values() for name, m in members.neurons.items()}
        with _plain_mode():
            self._connections = connections(model, self.groups)
        counts_synops = "synops" in (self.plan.target, self.plan.allocation)
        self._recorder = RateRecorder(model, self.groups) if counts_synops else None
        self._generator = torch.Generator().manual_seed(self.plan.seed)
        self._gradients: dict[str, Tensor] = {}
        self._warned = False
        self.steps = 0
        self.history: list[dict[str, Any]] = []
        self._optimizer = ActiveOptimizer(optimizer, {p: axes for _, p, axes in self._parameters.values()})
        try:
            self._require_held()
        except ValueError:
            self._optimizer.detach()
            raise
        self._dormant = self._optimizer.dormant_sums()
        for neuron in self._neurons.values():
            neuron.activity = neuron.activity or Activity(training_only=True)
        self._handles = record_in_training(model, (neuron.activity for neuron in self._neurons.values()))
        self._prepare()

    @property
    def density(self) -> float:
        """Active / all channels of the prunable groups."""
        groups = [members.group for members in self._prunable.values()]
        return sum(g.num_active for g in groups) / sum(g.num_channels for g in groups)

    @property
    def least_share(self) -> float | None:
        """Smallest share of the plan's target that ``min_channels`` and ``round_to`` leave; None of SynOps, which
        depend on what fires."""
        if self.plan.target == "synops":
            return None
        with _plain_mode():
            masks = {name: torch.ones_like(members.group.mask()) for name, members in self.groups.items()}
            for name in self._prunable:
                masks[name][self.plan.least(masks[name].numel()) :] = False
            return self._share([], masks)

    @property
    def wants_probe(self) -> bool:
        """Whether the coming :meth:`step` is an update that regrows by gradient and no probe was taken for it yet."""
        return self._lacks_probe(self.steps + 1)

    def probe(self, loss_fn: Callable[[], Tensor]) -> None:
        """Collect the gradients of dormant channels' batch-norm weights. Several probes add up, as parts of a batch do.

        The loss is that of the pruned network: dormant spikes reach the next layer as zeros, and only the gradient
        passes that gate. Leaves no trace: the parameters' ``grad``, buffers, activity, neuron
        states and torch's random state stay as they were.

        Args:
            loss_fn: runs the model on a batch, in the mode it is in, and returns the scalar loss.

        Raises:
            ValueError: the loss is no scalar that has a gradient.
        """
        norms = {name: norm for members in self._prunable.values() for name, norm in members.norms.items()}
        weights = [norm.weight for norm in norms.values()]
        frozen = [weight.requires_grad_(True) for weight in weights if not weight.requires_grad]
        if self._recorder is not None:
            self._recorder.stop()
        # DistributedDataParallel would wait for a backward pass that never comes.
        no_sync = getattr(self._wrapper, "no_sync", contextlib.nullcontext)
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
            self._prepare()
        for name, weight, gradient in zip(norms, weights, gradients, strict=True):
            gradient = torch.zeros_like(weight) if gradient is None else gradient
            self._gradients[name] = self._gradients.get(name, 0) + gradient.double()

    def step(self) -> PruneEvent | None:
        """Count one optimizer step; at an update, cut and regrow. Call it after every ``optimizer.step()``.

        Without a probe, an update that should regrow by gradient only cuts, to the same number of channels.

        Returns:
            What changed at an update, None otherwise.

        Raises:
            RuntimeError: no activity was recorded since the last update.
            ValueError: a parameter is another one than when the scheduler was made.
            NotFinite: scores or gradients are NaN or infinite.
            RanksDiffer: another rank came to another structure.
        """
        self._require_same_parameters()
        self.steps += 1
        event = None
        if self.plan.is_update(self.steps):
            with _plain_mode():
                event = self._update()
        self._prepare()
        if event is not None:
            self.history.append(event.record())
            logger.info("step %(step)d: density %(density).3f, %(pruned)d pruned, %(regrown)d regrown", event.record())
            if self.steps == self.plan.last and event.share > event.wanted + 0.01:
                logger.warning(
                    "the last update leaves %.4g of %s where %.4g was wanted: min_channels and round_to keep it",
                    *(event.share, self.plan.target, event.wanted),
                )
            if event.dead:
                logger.warning("step %d: nothing fired since the last update in %s", event.step, ", ".join(event.dead))
        return event

    def detach(self) -> None:
        """Let go of model and optimizer: no activity is recorded, and steps change dormant entries like all others."""
        self._optimizer.detach()
        for handle in self._handles:
            handle.remove()
        for neuron in self._neurons.values():
            neuron.activity = None
        if self._recorder is not None:
            self._recorder.stop()

    def state_dict(self) -> dict[str, Any]:
        """What a bit-exact continuation needs beside the states of model and optimizer: tensors and plain data."""
        recorder = self._recorder
        return {
            "steps": self.steps,
            "channels": {name: members.group.num_channels for name, members in self.groups.items()},
            "active": {name: members.group.active.clone() for name, members in self.groups.items()},
            "activity": {
                name: {kind: getattr(neuron.activity, kind).clone() for kind in _SUMS}
                for name, neuron in self._neurons.items()
                if neuron.activity.positions is not None
            },
            "gradients": {name: gradient.clone() for name, gradient in self._gradients.items()},
            "rates": {} if recorder is None else dict(recorder.rates),
            "dense_rates": {} if recorder is None else dict(recorder.dense_rates),
            "generator": self._generator.get_state(),
            "history": copy.deepcopy(self.history),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a :meth:`state_dict`: the model's structure becomes what it was.

        Raises:
            ValueError: it is the state of a model with other groups; the message names one, and nothing was changed.
        """
        known = {
            "channels": self.groups,
            "active": self.groups,
            "activity": self._neurons,
            "gradients": {name: norm for members in self._prunable.values() for name, norm in members.norms.items()},
            "rates": {} if self._recorder is None else self._recorder.layers,
            "dense_rates": {} if self._recorder is None else self._recorder.layers,
        }
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
        with _plain_mode():
            self._adopt(state)

    def _adopt(self, state: Mapping[str, Any]) -> None:
        device = next(self.model.parameters()).device
        self.steps = state["steps"]
        for name, active in state["active"].items():
            self.groups[name].group.set_active(active)
        for name, neuron in self._neurons.items():
            neuron.activity.reset()
            for kind, value in state["activity"].get(name, {}).items():
                setattr(neuron.activity, kind, value.to(device, copy=True))
        self._gradients = {name: gradient.to(device, copy=True) for name, gradient in state["gradients"].items()}
        if self._recorder is not None:
            self._recorder.rates, self._recorder.dense_rates = dict(state["rates"]), dict(state["dense_rates"])
        self._generator.set_state(state["generator"].cpu())
        self.history = copy.deepcopy(state["history"])
        self._dormant = self._optimizer.dormant_sums()
        self._prepare()

    def _require_held(self) -> None:
        """ValueError if no parameter of the model is in the optimizer; a warning for those that another may step on."""
        held = set(self._optimizer.parameters)
        ours = [(".".join(names), p) for names, (_, p, _) in self._parameters.items()]
        if not any(p in held for _, p in ours):
            raise ValueError(
                f"optimizer: expected parameters of the model ({_listed([name for name, _ in ours])}), got none of"
                " them; of copies, as some mixed-precision wrappers keep, it would move dormant channels"
            )
        loose = [name for name, p in ours if p not in held and p.requires_grad]
        if loose:
            logger.warning(
                "optimizer: does not hold %s; dormant channels there will move if another optimizer steps on them: give"
                " SCAScheduler a list of both",
                _listed(loose),
            )

    def _require_same_parameters(self) -> None:
        for (module_name, name), (module, p, _) in self._parameters.items():
            if module._parameters.get(name) is not p:
                raise ValueError(
                    f"model: {module_name}.{name} is another parameter than when this scheduler was made, and the"
                    " optimizer may not know it; make optimizer and scheduler after whatever replaces parameters"
                    " (load_state_dict(assign=True), a parametrization, a conversion that overwrites, FSDP)"
                )

    def _watch(self) -> None:
        """Notice dormant entries that changed between two updates, and say so."""
        now = self._optimizer.dormant_sums()
        names = {p: ".".join(names) for names, (_, p, _) in self._parameters.items()}
        moved = []
        for p, (versions, checksum) in self._dormant.items():
            if p in now and now[p][0] == versions and not torch.equal(now[p][1], checksum):
                moved.append(names[p])
        if moved:
            logger.warning(
                "step %d: dormant channels changed since the last update, in %s; something beside the optimizer that"
                " the scheduler was given writes to them (one around it, another one, a copy)",
                self.steps,
                _listed(moved),
            )

    def _lacks_probe(self, step: int) -> bool:
        growing = self.plan.regrow == "bn_gamma" and self.plan.regrows_at(step)
        return growing and not self._gradients and (self.density < 1 or self.plan.regrow_pruned)

    def _prepare(self) -> None:
        """Have layer inputs counted in the passes of the step that an update follows, and in no other."""
        if self._recorder is not None:
            (self._recorder.start if self.plan.is_update(self.steps + 1) else self._recorder.stop)()

    def _update(self) -> PruneEvent:
        self._watch()
        measured = self._measure()
        masks = {name: members.group.mask() for name, members in self.groups.items()}
        synops = self._synops(measured)
        candidates = self._candidates(measured, masks, synops)
        wanted = self.plan.density_at(self.steps)
        share = functools.partial(self._share, synops)
        chosen = self._choose(candidates, wanted, lambda chosen: share({**masks, **chosen}))
        require_same_masks(chosen, next(self.model.parameters()).device)

        changes = {
            name: GroupChange(
                int(masks[name].sum()),
                int(mask.sum()),
                pruned=(masks[name] & ~mask).nonzero().flatten(),
                regrown=(mask & ~masks[name]).nonzero().flatten(),
                scores=histogram(candidates[name].score[masks[name]], mask[masks[name]]),
            )
            for name, mask in chosen.items()
        }
        for name, mask in chosen.items():
            self._prunable[name].group.set_active(mask.nonzero().flatten())
        self._revive({name: change.regrown for name, change in changes.items() if change.regrown.numel()})

        dead = tuple(name for name in self._neurons if not measured[f"{name}.spike_count"].any())
        event = PruneEvent(
            self.steps, self.density, share({**masks, **chosen}), wanted, changes, dead, probed=bool(self._gradients)
        )
        for neuron in self._neurons.values():
            neuron.activity.reset()
        self._gradients = {}
        self._dormant = self._optimizer.dormant_sums()
        return event

    def _revive(self, regrown: Mapping[str, Tensor]) -> None:
        """Give channels that became active the start that the plan says, and the optimizer state of a new parameter."""
        for name, channels in regrown.items():
            REGROW_INITS[self.plan.regrow_init](self._prunable[name], channels, self._generator)
        self._optimizer.clear({self._prunable[name].group: channels for name, channels in regrown.items()})

    def _measure(self) -> dict[str, Tensor]:
        """Activity sums, probe gradients and layer counts since the last update, over all ranks; "<module>.<kind>"."""
        device = next(self.model.parameters()).device
        sums = {}
        for name, neuron in self._neurons.items():
            for kind, dtype in _SUMS.items():
                value = getattr(neuron.activity, kind)
                if value is None:  # never ran
                    value = torch.zeros(neuron.group.num_channels, dtype=dtype, device=device)
                sums[f"{name}.{kind}"] = value
        sums.update({f"{name}.gradient": gradient for name, gradient in self._gradients.items()})
        if self._recorder is not None:
            sums.update({f"{name}.inputs": counts for name, counts in self._recorder.counts.items()})
        return sum_over_ranks(sums)

    def _synops(self, measured: Mapping[str, Tensor]) -> list[LayerCost]:
        """What the passes of this step cost; nothing where no setting asks for it."""
        if self._recorder is None:
            return []
        return self._recorder.take({name: measured[f"{name}.inputs"] for name in self._recorder.counts})

    def _candidates(
        self, measured: Mapping[str, Tensor], masks: Mapping[str, Tensor], synops: list[LayerCost]
    ) -> dict[str, Candidates]:
        price = channel_costs(synops, masks) if self.plan.allocation == "synops" else {}
        candidates = {}
        for name, members in self._prunable.items():
            sums = {kind: _shares(members, members.neurons, measured, kind).sum(0) for kind in _SUMS}
            context = GroupContext(
                group=members.group,
                name=name,
                active=members.group.active,
                producers=tuple(members.producers.values()),
                consumers=tuple(members.consumers.values()),
                norms=tuple(members.norms.values()),
                generator=self._generator,
                **sums,
            )
            score, growth = CRITERIA[self.plan.criterion](context), self._growth(members, measured)
            for what, values in ("scores", score[masks[name]]), ("gradients", growth):
                if values is not None and not values.isfinite().all():
                    raise NotFinite(f"group {name!r}: {what} are not finite")
            if name in price:
                score, growth = _per(score, price[name]), None if growth is None else _per(growth, price[name])
            candidates[name] = Candidates(masks[name], score, growth, self.plan.floor(members.group.num_channels))
        return candidates

    def _growth(self, members: Members, measured: Mapping[str, Tensor]) -> Tensor | None:
        """Promise of each channel of a group, float64 [C]; None where nothing is to be regrown."""
        if not self.plan.regrow_fraction:
            return None
        if self.plan.regrow == "random":
            return torch.rand(members.group.num_channels, dtype=torch.float64, generator=self._generator)
        if not self._gradients:
            return None
        return _shares(members, members.norms, measured, "gradient").abs().sum(0)

    def _choose(
        self, candidates: Mapping[str, Candidates], wanted: float, share: Callable[[Mapping[str, Tensor]], float]
    ) -> dict[str, Tensor]:
        """The prunable groups' new masks."""
        plan = self.plan
        channels = sum(c.active.numel() for c in candidates.values())
        growing = all(c.growth is not None for c in candidates.values())
        if self._lacks_probe(self.steps) and not self._warned:
            self._warned = True
            logger.warning(
                "step %d: no probe was taken, so this update only prunes (see SCAScheduler.wants_probe)", self.steps
            )

        def chosen(count: int) -> dict[str, Tensor]:
            masks = choose(
                list(candidates.values()),
                count,
                plan.regrow_count(self.steps, count, channels) if growing else 0,
                by_layer=plan.allocation == "layer",
                regrow_pruned=plan.regrow_pruned,
                round_to=plan.round_to,
            )
            return dict(zip(candidates, masks, strict=True))

        if plan.target == "channels":
            return chosen(max(1, nearest(wanted * channels)))
        rounding = 1e-9  # of shares, which are ratios of float sums
        return chosen(largest_count(1, channels, lambda count: share(chosen(count)), wanted + rounding))

    def _share(self, synops: list[LayerCost], masks: Mapping[str, Tensor]) -> float:
        """Share of the plan's target that these masks (of all groups) leave."""
        if self.plan.target == "synops":
            return total(synops, masks) / self._recorder.dense(synops)
        if self.plan.target == "parameters":
            dense = {name: torch.ones_like(mask) for name, mask in masks.items()}
            return total(self._connections, masks) / total(self._connections, dense)
        prunable = [masks[name] for name in self._prunable]
        return sum(int(mask.sum()) for mask in prunable) / sum(mask.numel() for mask in prunable)


def _is_frozen(members: Members) -> bool:
    """Whether nothing that makes a group's channels is trained."""
    layers = (*members.producers.values(), *members.norms.values())
    return bool(layers) and not any(p.requires_grad for layer in layers for p in layer.parameters())


def _shares(members: Members, carriers: Mapping[str, nn.Module], measured: Mapping[str, Tensor], kind: str) -> Tensor:
    """What was measured on each of these carriers, for the group's channels alone: [carriers, C]."""
    shares = [places_of(members.group, m.group, measured[f"{name}.{kind}"]) for name, m in carriers.items()]
    return torch.stack(shares)


@contextlib.contextmanager
def _plain_mode() -> Iterator[None]:
    """Tensors made within are ordinary ones, on the CPU where nothing else is said, and need no gradient: the caller
    may be in inference mode, or have another default device."""
    with torch.inference_mode(False), torch.no_grad(), torch.device("cpu"):
        yield


def _renamed(entries: Mapping[str, Any], known: Mapping[str, Any]) -> dict[str, Any]:
    """Entries of a state by the names that they have here, where the model may be in other wrappers than it was."""
    found = {}
    for name, value in entries.items():
        plain = plain_name(name)
        short = plain.removeprefix("module.")
        found[short if plain not in known and short in known else plain] = value
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _per(value: Tensor, price: Tensor) -> Tensor:
    """Value per price; what costs nothing is worth infinitely much, or nothing where it has no value."""
    return torch.where(value == 0, 0.0, value / price)
