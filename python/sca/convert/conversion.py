"""``sca.convert``: other people's networks on our kernels."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sca_kernels import checks
from sca_kernels.nn.neuron import NeuronModule

from ..structure.attach import attach_groups
from ..structure.wrappers import is_compiled, unwrapped
from . import norse, snntorch, spikingjelly, unknown
from .alone import difference_alone
from .check import Difference, compare, kept_for_backward
from .layers import EXACT, HELD, LAYERS, attributes_of
from .layout import ChannelsLast, has_another
from .loops import Folded, LoopError, fold, over_time, returns_state
from .neurons import (
    ConvertedNeuron,
    FusedNeuron,
    NorseCell,
    NorseSequence,
    SnnTorchNeuron,
    converted_attributes,
    settings_of,
)
from .observe import Observed, observe
from .report import ConversionError, ConversionReport, Converted, Parity, Reason, Speed
from .states import forget_caches, reset_states
from .swaps import Swap
from .timing import compared_speed

__all__ = ["convert"]

DEPTHS = ("neurons", "layers", "loop")
TIMES = ("TN", "NT", "single")
_FUSED_NAMES = {"if": "BatchNormIF", "lif": "BatchNormLIF", "plif": "BatchNormPLIF"}


Change = Swap | Folded | ChannelsLast
"""What was done to a network, each with a ``revert``."""


class _Call(NamedTuple):
    """What stands in front of a neuron's class, and how it is called, see :class:`ConvertedNeuron`; ``exact``: whether
    its equation rounds as ours does."""

    kind: type[ConvertedNeuron]
    time: str | None
    stateful: bool
    known: Callable[[nn.Module], Any] | None
    exact: bool = True

    def lies(self, module: nn.Module) -> str:
        """How the module's input lies now."""
        return self.time or ("TN" if module.step_mode == "m" else "single")


class _Plan(NamedTuple):
    """What is to become of a model's modules, by name.

    Attributes:
        neurons: arguments, with the neuron's name. calls: how each is called, see :class:`ConvertedNeuron`.
        layers: torch's layer that each is. fused: by neuron, the batch norm that it computes. refused: why not.
    """

    neurons: dict[str, dict[str, Any]]
    calls: dict[str, _Call]
    layers: dict[str, type[nn.Module]]
    fused: dict[str, str]
    refused: dict[str, Reason]


def convert(
    model: nn.Module,
    example_input: Any,
    *,
    depth: str = "layers",
    time: str | None = None,
    merge_statistics: bool = False,
    inplace: bool = False,
    strict: bool = False,
    measure: bool = False,
) -> tuple[nn.Module, ConversionReport]:
    """A network of SpikingJelly, snnTorch, norse, of a user's own neurons or of torch's layers alone, on our kernels:
    the same network, faster, whose channels :class:`sca.SCAScheduler` can prune.

    Modules stay what they are, at the places where they are, with their parameters, hooks, names and state_dict; they
    become objects of a class that computes by our kernels as well. The library's functions go on to work on them
    (``functional.reset_net``, ``set_step_mode``, ``detach_net``), and so does an optimizer. Nothing in the library is
    patched. A module that can't be expressed exactly stays as it is, and the report says why.

    Args:
        model: unwrapped (no DistributedDataParallel, not compiled). One in bfloat16 or float16 is compared in float32,
            for in those our neurons keep a state in float32.
        example_input: what its forward takes: a tensor, or a tuple of arguments; at least two samples and four time
            steps tell most.
        depth: "neurons" converts neurons alone; "layers" convolutions, linear layers and batch norms, too, the latter
            together with the neuron behind them, where nothing else reads them; "loop" also turns a loop over time
            inside out: layers run once for all steps, neurons by one call (:mod:`sca.convert.loops`).
        time: how the neurons' inputs lie, "TN", "NT", or "single", one step per call; another than is found is an
            error. With depth "loop", "single" is a network that takes one step per call, in a loop of the training
            script: what comes back takes all steps [T, N, ...], as the example does, and returns those of its outputs,
            and has the network as ``model``. None: it is found out; forward takes what the example is.
        merge_statistics: with depth "loop": have batch norms in training take their statistics over all steps at once,
            which is another training.
        inplace: convert the model itself, not a copy of it.
        strict: make every refusal an error.
        measure: time both networks, and say so in the report.

    Returns:
        The converted network, and what was done; ``report.revert()`` undoes it.

    Raises:
        ConversionError: nothing could be converted; with ``strict``, something could not; or the converted network is
            not the original, and naming the module that differs did not help: all is as it was.
        TypeError, ValueError: an argument is off; the message names it.
    """
    checks.instance("model", model, nn.Module, "a torch.nn.Module")
    checks.one_of("depth", depth, DEPTHS)
    for name, flag in (("inplace", inplace), ("strict", strict), ("measure", measure)):
        checks.boolean(name, flag)
    checks.boolean("merge_statistics", merge_statistics)
    if time is not None:
        checks.one_of("time", time, TIMES, " or None")
    if unwrapped(model) is not model:
        kind = "a compiled network" if is_compiled(model) else type(model).__name__
        raise TypeError(f"model: expected a network, got {kind} around one: convert what is inside, then wrap that")
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    for x in inputs:
        if isinstance(x, Tensor) and not x.numel():
            raise ValueError(f"example_input: expected samples to compare by, got {checks.describe(x)}")
    with _own_modes():
        return _converted(model, inputs, depth, time, merge_statistics, inplace, strict, measure)


@contextlib.contextmanager
def _own_modes() -> Iterator[None]:
    """No inference mode, in which there are no gradients to be compared, and no autocast."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


def _converted(
    model: nn.Module,
    inputs: tuple[Any, ...],
    depth: str,
    time: str | None,
    merge_statistics: bool,
    inplace: bool,
    strict: bool,
    measure: bool,
) -> tuple[nn.Module, ConversionReport]:
    inputs = tuple(x.clone() if isinstance(x, Tensor) and x.is_inference() else x for x in inputs)
    before = copy.deepcopy(_fresh(model))
    ours = model if inplace else copy.deepcopy(before)
    running = ours
    if depth == "loop" and time == "single":
        states = _returns_state(before, inputs)
        before, running = over_time(before, states), over_time(ours, states)
    plan = _plan(running, inputs, depth)
    _check_time(running, plan, time)
    if strict and plan.refused:
        raise ConversionError(_listed("strict: expected modules that can be converted", plan.refused))
    if not plan.neurons and not plan.layers:
        raise ConversionError(_listed("model: expected something to convert, found nothing", plan.refused))
    plan, swaps, parity = _applied(before, running, inputs, plan, depth, merge_statistics)
    model, ours = ours, running
    relaid, speed = _laid_out(before, ours, inputs, plan, swaps, depth, measure)
    if not inplace:
        for module in model.modules():
            snntorch.keep_resettable(module)
    forget_caches(ours)
    names = {module: name for name, module in ours.named_modules()}
    report = ConversionReport(
        converted=tuple(_rows(plan, names)),
        refused=plan.refused,
        time=_time(ours, plan),
        parity=parity,
        channels_last=relaid,
        state_dict_equal=_same_state(before, ours),
        prunable=_prunable(ours, inputs),
        memory=(kept_for_backward(before, inputs, reset_states), kept_for_backward(ours, inputs, reset_states)),
        speed=speed,
    )

    def revert() -> nn.Module:
        _undo(swaps)
        forget_caches(ours)
        report._revert = None
        return ours

    report._revert = revert
    return ours, report


# ---- what is to be done


def _plan(model: nn.Module, inputs: tuple[Any, ...], depth: str) -> _Plan:
    plan = _Plan({}, {}, {}, {}, {})
    names = {module: name for name, module in model.named_modules()}
    seen = _observed(model, inputs, [], [])
    inside: set[nn.Module] = set()  # of neurons, whose surrogates are modules
    for module, name in names.items():
        if isinstance(module, NeuronModule) or module in inside:
            continue
        if not _plan_neuron(plan, name, module, seen) and depth != "neurons":
            _plan_layer(plan, name, module)
        if name in plan.neurons:
            inside.update(module.modules())
    modules = {name: module for module, name in names.items()}
    for name in list(plan.neurons):
        module = modules[name]
        if text := _difference_alone(plan, name, module, seen.ranks.get(module, 2)):
            plan.refused[name] = Reason("parity", text)
            del plan.neurons[name], plan.calls[name]
    norms = [modules[name] for name, kind in plan.layers.items() if kind in HELD]
    seen = _observed(model, inputs, norms, [modules[name] for name in plan.neurons])
    for neuron, norm in seen.behind.items():
        if plan.calls[names[neuron]].kind is ConvertedNeuron and not (norm._forward_hooks or norm._forward_pre_hooks):
            plan.fused[names[neuron]] = names[norm]
    return plan


def _observed(model: nn.Module, inputs: tuple[Any, ...], norms: list[nn.Module], neurons: list[nn.Module]) -> Observed:
    try:
        return observe(model, tuple(map(_copied, inputs)), norms, neurons)
    except Exception as error:  # whatever the user's code raises
        raise ConversionError(f"example_input: the model fails with it: {type(error).__name__}: {error}") from error


def _returns_state(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        return returns_state(model, inputs)
    except Exception as error:  # whatever the user's code raises
        raise ConversionError(f"time: 'single', but the model fails with one step: {error}") from error


def _check_time(model: nn.Module, plan: _Plan, time: str | None) -> None:
    modules = dict(model.named_modules())
    for name, call in plan.calls.items():
        lies = call.lies(modules[name])
        if time not in (None, lies):
            raise ConversionError(f"time: expected {time}, but {name} ({type(modules[name]).__name__}) reads {lies}")


def _copied(x: Any) -> Any:
    """An argument of the model, which may change it."""
    return x.clone() if isinstance(x, Tensor) else copy.copy(x)


def _plan_neuron(plan: _Plan, name: str, module: nn.Module, seen: Observed) -> bool:
    """Whether a module is a neuron, of ours or not."""
    for library in (spikingjelly, snntorch, norse):
        found = library.neuron_of(module)
        if isinstance(found, dict):
            plan.neurons[name], plan.calls[name] = found, _call_of(library, module)
            return True
        if found is not None:
            break
    spikes = name and module in seen.spiking and not type(module).__module__.startswith("torch.nn.")
    probed = unknown.neuron_of(module, seen.spiking[module]) if spikes and _has_no_layers(module) else None
    if isinstance(probed, unknown.Unknown):
        call = _Call(ConvertedNeuron, probed.time, probed.keeps_state, None, probed.exact)
        plan.neurons[name], plan.calls[name] = probed.arguments, call
        return True
    reason = probed if found is None or (probed is not None and found.kind == "class") else found
    if reason is not None:
        plan.refused[name] = reason
    return reason is not None


def _call_of(library: ModuleType, module: nn.Module) -> _Call:
    """How a library's neuron is called."""
    if library is spikingjelly:
        return _Call(ConvertedNeuron, spikingjelly.time_of(module), True, library.neuron_of)
    if library is snntorch:
        return _Call(SnnTorchNeuron, "single", False, library.neuron_of)
    if norse.takes_all_steps(module):
        return _Call(NorseSequence, "TN", False, library.neuron_of)
    return _Call(NorseCell, "single", False, library.neuron_of)


def _difference_alone(plan: _Plan, name: str, module: nn.Module, rank: int) -> str:
    call, arguments = plan.calls[name], plan.neurons[name]
    theirs, ours = copy.deepcopy(module), copy.deepcopy(module)
    _swapped_neuron(ours, arguments, call, None)
    time, threshold = call.lies(module), float(arguments["v_threshold"])
    return difference_alone(theirs, ours, time, rank + (time == "single"), threshold, not call.exact)


def _has_no_layers(module: nn.Module) -> bool:
    return not any(True for _ in module.parameters())


def _plan_layer(plan: _Plan, name: str, module: nn.Module) -> None:
    kind = next((kind for kind in LAYERS if isinstance(module, kind)), None)
    if kind is None or isinstance(module, LAYERS[kind][0]):
        return
    if kind in EXACT and type(module) is not kind:
        return
    theirs = spikingjelly.is_ours(module) and type(module).__name__ == kind.__name__
    if type(module) is not kind and not theirs and not (kind is nn.BatchNorm2d and unknown.is_batch_norm(module)):
        text = f"{type(module).__name__} is a subclass of {kind.__name__} with code of its own"
        plan.refused[name] = Reason("layer", text)
        return
    if nn.utils.parametrize.is_parametrized(module) or _computes_weight(module):
        text = "its weight is computed in each pass"
        plan.refused[name] = Reason("layer", text, "remove the parametrization first, or leave it as it is")
        return
    plan.layers[name] = kind


def _computes_weight(module: nn.Module) -> bool:
    return any(type(hook).__module__.startswith("torch.nn.utils.") for hook in module._forward_pre_hooks.values())


def _without(plan: _Plan, differs: Difference) -> _Plan | None:
    """The plan without what differs; None where nothing more can be left out."""
    name = differs.name
    if name in plan.fused:  # the neuron and its batch norm by themselves
        fused = {neuron: norm for neuron, norm in plan.fused.items() if neuron != name}
        return plan._replace(fused=fused)
    if name in plan.neurons:
        reason = Reason("parity", differs.text)
        neurons = {other: arguments for other, arguments in plan.neurons.items() if other != name}
        return plan._replace(neurons=neurons, refused={**plan.refused, name: reason})
    return plan._replace(fused={}) if plan.fused else None  # it may be a batch norm that something else reads


# ---- doing and undoing it


def _applied(
    before: nn.Module, ours: nn.Module, inputs: tuple[Any, ...], plan: _Plan, depth: str, merge_statistics: bool
) -> tuple[_Plan, list[Change], Parity]:
    """Carry out as much of the plan as gives the original's results: what is left of the plan, and how to undo it."""
    while True:
        swaps = _swapped(ours, plan)
        try:
            if depth == "loop":
                swaps.append(_folded(ours, inputs, plan, merge_statistics))
            exact = depth == "neurons" and all(call.kind is ConvertedNeuron for call in plan.calls.values())
            parity, differs = compare(before, ours, inputs, plan.neurons, reset_states, exact, depth == "loop")
        except BaseException:
            _undo(swaps)
            raise
        if differs is None:
            return plan, swaps, parity
        _undo(swaps)
        rest = _without(plan, differs)
        if rest is None:
            where = f"{differs.name}: " if differs.name else ""
            raise ConversionError(f"model: {where}{differs.text}; everything is as it was")
        plan = rest


def _laid_out(
    before: nn.Module,
    ours: nn.Module,
    inputs: tuple[Any, ...],
    plan: _Plan,
    swaps: list[Change],
    depth: str,
    measure: bool,
) -> tuple[Parity | None, Speed | None]:
    """Make weights channels_last where that pays: on CPUs, where a network has convolutions in two dimensions, and is
    no slower if that is measured; on other devices only if it is. Returns how far the network is from the original
    then, None where it stays as it was; and how long it takes."""
    speed = compared_speed(before, ours, inputs) if measure else None
    modules = dict(ours.named_modules())
    layers = [modules[name] for name in plan.layers] if depth != "neurons" else []
    if not has_another(layers) or not (measure or all(p.device.type == "cpu" for p in ours.parameters())):
        return None, speed
    layout = ChannelsLast(layers)
    try:
        parity, differs = compare(before, ours, inputs, plan.neurons, reset_states, False, depth == "loop")
        faster = compared_speed(before, ours, inputs) if measure and differs is None else None
    except BaseException:
        layout.revert()
        _undo(swaps)
        raise
    if differs is not None or (faster is not None and faster.training > speed.training):
        layout.revert()
        return None, speed
    swaps.append(layout)
    return parity, faster


def _swapped(model: nn.Module, plan: _Plan) -> list[Change]:
    modules = dict(model.named_modules())
    held = set(plan.fused.values())
    swaps = []
    for name, kind in plan.layers.items():
        ours, attributes = LAYERS[kind]
        ours = HELD[kind] if name in held else ours
        swaps.append(Swap(modules[name], (ours,), attributes_of(modules[name], attributes)))
    for name in plan.neurons:
        norm = modules[plan.fused[name]] if name in plan.fused else None
        swaps.append(_swapped_neuron(modules[name], plan.neurons[name], plan.calls[name], norm))
    return swaps


def _swapped_neuron(module: nn.Module, found: dict[str, Any], call: _Call, norm: nn.Module | None) -> Swap:
    kind, attributes = converted_attributes(found, call.stateful, call.time)
    kinds: tuple[type, ...] = (call.kind, kind)
    if norm is not None:
        attributes["norm"] = (norm,)
        kinds = (call.kind, FusedNeuron, kind)
    own = frozenset((*attributes, "own", "known", "settings"))
    attributes |= {"own": own, "known": call.known, "settings": settings_of(module, own)}
    return Swap(module, kinds, attributes, spikingjelly.swapped_state())


def _undo(swaps: list[Change]) -> None:
    for swap in reversed(swaps):
        swap.revert()


class _ByItself:
    """Runs a converted neuron over all steps, for :func:`fold`."""

    @staticmethod
    def all_steps(module: nn.Module, currents: Tensor, *states: Any, needed: tuple[str, ...] = ()) -> Any:
        return module.all_steps(currents, *states, needed=needed)


def _folded(model: nn.Module, inputs: tuple[Any, ...], plan: _Plan, merge_statistics: bool) -> Folded:
    modules = dict(model.named_modules())
    step = {modules[name]: _ByItself() for name, call in plan.calls.items() if call.time in ("single", None)}
    try:
        return fold(model, tuple(map(_copied, inputs)), step, merge_statistics=merge_statistics)
    except LoopError as error:
        raise ConversionError(
            f"depth: 'loop' expected a loop over time that can be turned inside out: {error}"
        ) from error


def _fresh(model: nn.Module) -> nn.Module:
    """The model, its states reset, so that it can be copied."""
    reset_states(model)
    return model


# ---- what to say of it


def _rows(plan: _Plan, names: dict[nn.Module, str]) -> Iterator[Converted]:
    modules = {name: module for module, name in names.items()}
    held = {norm: neuron for neuron, norm in plan.fused.items()}
    for name in names.values():
        module = modules[name]
        if name in plan.layers:
            now = LAYERS[plan.layers[name]][0].__mro__
            ours = next(kind.__name__ for kind in now if kind.__module__.startswith("sca_kernels."))
            yield Converted(name, type(module).__name__, ours, "", held.get(name, ""))
        elif name in plan.neurons:
            arguments = dict(plan.neurons[name])
            kind = arguments.pop("neuron")
            fused = plan.fused.get(name, "")
            now = _FUSED_NAMES[kind] if fused else converted_attributes(plan.neurons[name])[0].__name__
            told = ", ".join(f"{key}={_told(value)}" for key, value in arguments.items() if value is not None)
            told += "" if plan.calls[name].exact else "; it rounds elsewhere"
            yield Converted(name, type(module).__name__, now, told, fused)


def _told(value: Any) -> str:
    return (
        f"{value.name}({value.alpha:g})"
        if hasattr(value, "alpha")
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def _time(model: nn.Module, plan: _Plan) -> str:
    modules, found = dict(model.named_modules()), set()
    for name, call in plan.calls.items():
        found.add(call.lies(modules[name]))
    return ", ".join(sorted(found))


def _same_state(before: nn.Module, after: nn.Module) -> bool:
    ours, theirs = after.state_dict(), before.state_dict()
    return list(ours) == list(theirs) and all(
        torch.equal(ours[k], z) if isinstance(z, Tensor) else True for k, z in theirs.items()
    )


def _prunable(model: nn.Module, inputs: tuple[Any, ...]) -> tuple[int, int, int]:
    """Groups that can be pruned, all groups, and the channels in the former; on a copy."""
    tried = copy.deepcopy(model)
    reset_states(tried)
    told = logging.getLogger(attach_groups.__module__)
    before, told.disabled = told.disabled, True  # what is not pruned says whoever attaches them
    try:
        rows = attach_groups(tried, inputs).groups
    except ValueError:
        return 0, 0, 0
    finally:
        told.disabled = before
    able = [row for row in rows if row.prunable]
    return len(able), len(rows), sum(row.channels for row in able)


def _listed(says: str, refused: dict[str, Reason]) -> str:
    return "\n".join([says, *(f"refused: {name}: {reason}" for name, reason in refused.items())])
