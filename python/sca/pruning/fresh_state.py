"""What an optimizer would start a parameter's state with, asked of the optimizer itself."""

from __future__ import annotations

import copy
import inspect
import logging
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

__all__ = ["fresh_states", "is_optimizer", "within"]

logger = logging.getLogger(__name__)

#: an optimizer of one of :func:`fresh_states`'s, by its id, and one of its parameters
Place = tuple[int, nn.Parameter]

#: steps after which state that has not appeared never will: Lookahead takes up its slow weights every 5 to 20
_STEPS = 32


def is_optimizer(value: object) -> bool:
    """Whether it steps on parameters: one of torch's optimizers, or something of the same kind that is none."""
    return isinstance(value, Optimizer) or (callable(getattr(value, "step", None)) and hasattr(value, "param_groups"))


def within(optimizer: Optimizer) -> list[Optimizer]:
    """The optimizers among an optimizer's attributes, and in their lists and dicts: those that it steps inside."""
    found: list[Optimizer] = []
    for value in vars(optimizer).values():
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else [value]
        found += [each for each in inner if is_optimizer(each) and each is not optimizer]
    return found


def fresh_states(optimizers: Iterable[Optimizer], needed: Mapping[Place, set[str]]) -> dict[Place, dict[str, Any]]:
    """The state of full-size parameters of today's values after the first steps with zero gradients, no weight decay.

    It is that of a twin of the optimizer: made by its constructor, or, where that wants to know more than the
    optimizer's attributes and defaults tell, of copies of its attributes, without state or hooks. The optimizers and
    their parameters stay as they are.

    Args:
        optimizers: those that hold others in front of those.
        needed: the names of the state that is asked for.

    Returns:
        State by place, which lacks what no twin has made; a warning says so.
    """
    missing = {place: set(names) for place, names in needed.items() if names}
    found: dict[Place, dict[str, Any]] = {place: {} for place in missing}
    failures: list[str] = []
    # Wrappers first: some keep their state in that of the optimizer that they step.
    for optimizer in optimizers:
        if not any(missing.values()):
            break
        try:
            _run(optimizer, missing, found)
        except Exception as error:  # of foreign code, run out of its way
            failures.append(f"{type(optimizer).__name__}: {type(error).__name__}: {error}")
    left = sorted({name for names in missing.values() for name in names})
    if left:
        logger.warning(
            "optimizer: regrown channels start with zeros as their %s, for steps on a copy of it did not make any (%s)",
            *(", ".join(left), "; ".join(failures) or "no error"),
        )
    return found


def _run(optimizer: Optimizer, missing: dict[Place, set[str]], found: dict[Place, dict[str, Any]]) -> None:
    """Step a twin until nothing is missing that it can give."""
    copies: dict[nn.Parameter, nn.Parameter] = {}
    twins: dict[int, Optimizer] = {}
    twin = _twin(optimizer, copies, twins)
    own = [place for place in missing if place[0] in twins]

    @torch.enable_grad()
    def closure() -> Tensor:
        for scratch in copies.values():
            scratch.grad = torch.zeros_like(scratch)
        return torch.zeros(())

    if callable(getattr(twin, "train", None)):
        twin.train()
    for _ in range(_STEPS):
        closure()
        _step(twin, closure)
        for place in own:
            state = twins[place[0]].state.get(copies[place[1]], {})
            for name in missing[place] & state.keys():
                found[place][name] = state[name]
                missing[place].discard(name)
        if not any(missing[place] for place in own):
            break


def _step(twin: Optimizer, closure: Callable[[], Tensor]) -> None:
    """SAM wants a closure; others may not know it."""
    if inspect.signature(type(twin).step).parameters.keys() & {"closure"}:
        twin.step(closure)
    else:
        twin.step()


def _twin(optimizer: Optimizer, copies: dict[nn.Parameter, nn.Parameter], twins: dict[int, Optimizer]) -> Optimizer:
    """An optimizer of the same kind and options that holds copies of the parameters, and so do those within it."""
    if id(optimizer) in twins:
        return twins[id(optimizer)]
    memo: dict[int, Any] = {}
    for each in within(optimizer):
        made = _twin(each, copies, twins)
        memo |= {id(each): made, id(each.state): made.state, id(each.param_groups): made.param_groups}
    groups = memo.get(id(optimizer.param_groups)) or list(_groups(optimizer, copies))
    try:
        twin = _constructed(optimizer, groups, memo)
    except Exception:  # it wants to know what its attributes don't tell
        memo = {id(optimizer.state): defaultdict(dict), id(optimizer.param_groups): groups} | memo
        twin = _mirrored(optimizer, memo | {id(p): scratch for p, scratch in copies.items()})
    twins[id(optimizer)] = twin
    return twin


def _constructed(optimizer: Optimizer, groups: list[dict[str, Any]], memo: dict[int, Any]) -> Optimizer:
    """By the constructor: the parameters, or what it stepped inside; options by their names."""
    known = {**vars(optimizer), **getattr(optimizer, "defaults", {})}
    arguments: dict[str, Any] = {}
    for name, parameter in inspect.signature(type(optimizer)).parameters.items():
        if not arguments and name not in known:
            arguments[name] = groups
        elif name in known:
            arguments[name] = copy.deepcopy(known[name], memo)
        elif parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD:
            raise TypeError(f"{name} is not known")
    return type(optimizer)(**arguments)


def _mirrored(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """By copies of its attributes, but for hooks and methods that were replaced on the instance."""
    twin = object.__new__(type(optimizer))
    attributes = {name: value for name, value in vars(optimizer).items() if not _is_hook(name, value)}
    vars(twin).update(copy.deepcopy(attributes, memo))
    vars(twin).setdefault("defaults", {})
    for name, value in vars(optimizer).items():
        if _is_hook(name, value) and isinstance(value, dict):
            vars(twin)[name] = OrderedDict()
    return twin


def _is_hook(name: str, value: Any) -> bool:
    """Whether an attribute is a dict of hooks, or a method that was replaced on the instance."""
    return name.endswith("_hooks") or (callable(value) and inspect.ismethod(value))


def _groups(optimizer: Optimizer, copies: dict[nn.Parameter, nn.Parameter]) -> Iterator[dict[str, Any]]:
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p not in copies:
                copies[p] = nn.Parameter(p.detach().clone(), p.is_floating_point())
        options = {name: copy.deepcopy(value) for name, value in group.items() if name != "params"}
        yield {**options, "params": [copies[p] for p in group["params"]], **_no_decay(group)}


def _no_decay(group: Mapping[str, Any]) -> dict[str, float]:
    return {"weight_decay": 0.0} if "weight_decay" in group else {}
