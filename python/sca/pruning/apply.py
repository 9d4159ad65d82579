"""What an update applies: active channels, the start of those that return, optimizer state, models that follow."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from ..structure.groups import Members, channel_axes, find_groups, named_axes
from ..structure.record import restore_structure, structure_of
from ..structure.wrappers import named_modules, unwrapped
from .optimizer import ActiveOptimizer

__all__ = ["Surgery"]

logger = logging.getLogger(__name__)


class Surgery:
    """The one place that changes which channels are active while a network trains.

    Args:
        model: unwrapped.
        optimizers: of its parameters, see :class:`sca.pruning.optimizer.ActiveOptimizer`.
        groups: the prunable ones by name.
        regrow_init: what a regrown channel starts with, see :mod:`sca.pruning.regrow`.
        generator: of what is drawn afresh.

    Raises:
        TypeError, ValueError: an optimizer is none, LBFGS, or wrapped already; a trainable parameter of a layer with a
            group is in none of them. Nothing was changed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Optimizer | Sequence[Optimizer],
        groups: Mapping[str, Members],
        regrow_init: Callable[[Members, Tensor, torch.Generator], None],
        generator: torch.Generator,
    ) -> None:
        self.model, self.groups = model, groups
        self._regrow_init, self._generator = regrow_init, generator
        self._parameters = named_axes(model)
        self._followers: list[nn.Module] = []
        self.optimizer = ActiveOptimizer(optimizers, {p: axes for _, p, axes in self._parameters.values()})
        try:
            self._require_held()
        except ValueError:
            self.optimizer.detach()
            raise
        self._dormant = self.optimizer.dormant_sums()

    def apply(self, masks: Mapping[str, Tensor]) -> None:
        """Make these channels (bool [C] for each prunable group) active. Those that were not get the start that the
        settings say, and the optimizer state of a new parameter."""
        regrown = {}
        for name, mask in masks.items():
            group = self.groups[name].group
            came = (mask & ~group.mask()).nonzero().flatten()
            if not torch.equal(mask, group.mask()):
                group.set_active(mask.nonzero().flatten())
            if came.numel():
                regrown[name] = came
        for name, channels in regrown.items():
            self._regrow_init(self.groups[name], channels, self._generator)
        self.optimizer.clear({self.groups[name].group: channels for name, channels in regrown.items()})
        for follower in self._followers:
            self._take_along(follower, regrown)
        self._dormant = self.optimizer.dormant_sums()

    def follow(self, model: nn.Module) -> None:
        """See :meth:`sca.SCAScheduler.follow`."""
        follower = unwrapped(model)
        while isinstance(follower, AveragedModel):  # in a wrapper, or of one
            follower = unwrapped(follower.module)
        if follower is self.model:
            raise ValueError("model: expected another one than that of the scheduler, as an average of its weights")
        restore_structure(follower, structure_of(self.model))
        if not any(follower is known for known in self._followers):
            self._followers.append(follower)

    def settle(self) -> None:
        """Take note of a structure that came from elsewhere, as from a state."""
        structure = structure_of(self.model) if self._followers else None
        for follower in self._followers:
            restore_structure(follower, structure)
        self._dormant = self.optimizer.dormant_sums()

    def watch(self, step: int) -> None:
        """Notice dormant entries that changed between two updates, and say so."""
        now = self.optimizer.dormant_sums()
        names = {p: ".".join(names) for names, (_, p, _) in self._parameters.items()}
        moved = []
        for p, (versions, checksum) in self._dormant.items():
            if p in now and now[p][0] == versions and not torch.equal(now[p][1], checksum):
                moved.append(names[p])
        if moved:
            logger.warning(
                "step %d: dormant channels changed since the last update, in %s; something beside the optimizer that"
                " the scheduler was given writes to them (one around it, another one, a copy)",
                step,
                _listed(moved),
            )

    def require_same_parameters(self) -> None:
        """ValueError where a module has another parameter than when this was made."""
        for (module_name, name), (module, p, _) in self._parameters.items():
            if module._parameters.get(name) is not p:
                raise ValueError(
                    f"model: {module_name}.{name} is another parameter than when this scheduler was made, and the"
                    " optimizer may not know it; make optimizer and scheduler after whatever replaces parameters"
                    " (load_state_dict(assign=True), a parametrization, a conversion that overwrites, FSDP)"
                )

    def _require_held(self) -> None:
        """ValueError where an optimizer lacks a trainable parameter: another one would move its dormant channels, or
        none would train it."""
        held = set(self.optimizer.parameters)
        ours = [(".".join(names), p) for names, (_, p, _) in self._parameters.items()]
        if not any(p in held for _, p in ours):
            raise ValueError(
                f"optimizer: expected parameters of the model ({_listed([name for name, _ in ours])}), got none of"
                " them; of copies, as some mixed-precision wrappers keep, it would move dormant channels"
            )
        loose = [name for name, p in ours if p not in held and p.requires_grad]
        if loose:
            raise ValueError(
                f"optimizer: expected every trainable parameter of the layers with channel groups, got none that holds"
                f" {_listed(loose)}: give SCAScheduler all optimizers, as a list, or freeze what is not to be trained"
                " (requires_grad_(False))"
            )

    @torch.no_grad()
    def _take_along(self, follower: nn.Module, regrown: Mapping[str, Tensor]) -> None:
        """Give a follower the active channels, and to those that returned what they have in the model: what it averaged
        was another life of theirs."""
        own = {name: members.group for name, members in find_groups(follower).items()}
        for name, members in self.groups.items():
            if not torch.equal(own[name].active, members.group.active):
                own[name].set_active(members.group.active)
        theirs = dict(named_modules(follower))
        for name, module in named_modules(self.model) if regrown else ():
            for key, axes in channel_axes(module).items():
                source, target = getattr(module, key), getattr(theirs[name], key)
                for axis in axes:
                    for group, channels in regrown.items():
                        entries = axis.of(self.groups[group].group, channels.to(source.device))
                        fresh = source.index_select(axis.dim, entries).to(target)
                        target.index_copy_(axis.dim, entries.to(target.device), fresh)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
