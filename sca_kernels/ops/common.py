"""What the operators share."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from ..backends.base import Forward
from ..layout import empty_activation, empty_state, spatial_size, state_dtype
from ..neurons import NeuronConfig
from ..torch_private import (
    applied_in_transform,
    below_autograd,
    disable_dynamo,
    has_tangent,
    in_transform,
    is_unwatched,
)
from .guards import guard_tensors


class NotANumber(ValueError):
    """A neuron's potential became NaN."""


class check_nan:
    """Whether a potential that becomes NaN is an error, :class:`NotANumber`, in the whole process; a statement, or a
    context as in ``with check_nan(False):``.

    Where it is not, NaN goes on: such an element doesn't fire, every gradient that it has a part in is NaN, and the
    running statistics of a fused batch norm stay as they are in channels without a number. A ``torch.amp.GradScaler``
    then finds the gradients and skips the step. It is on by default, but under autocast in float16, whose range
    overflows in the course of things. The potentials are looked at on CPUs alone: looking at those of a CUDA device
    would mean to wait for it.
    """

    checked = True

    def __init__(self, checked: bool) -> None:
        if not isinstance(checked, bool):
            raise TypeError(f"checked: expected a bool, got {type(checked).__name__}")
        self.before, check_nan.checked = check_nan.checked, checked

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_) -> None:
        check_nan.checked = self.before


def passes_nan(device_type: str) -> bool:
    """Whether NaN is no error now, see :class:`check_nan`."""
    if not check_nan.checked:
        return True
    if device_type == "meta":  # of which torch knows no autocast
        return False
    return torch.is_autocast_enabled(device_type) and torch.get_autocast_dtype(device_type) == torch.float16


def transformed(*tensors: Tensor | None) -> bool:
    """Whether a transform of torch.func (grad, vmap, jvp, ...) is at work, or one of the tensors carries a derivative
    of forward mode."""
    return not torch.compiler.is_compiling() and (in_transform() or _any_tangent(tensors))


def can_change_in_place(*tensors: Tensor | None) -> bool:
    """Whether an operator can change these in place while autograd records it: not within a transform of torch.func,
    which would have to know what it changes; nor where torch.library alone differentiates; nor lazily negated tensors,
    which the dispatcher resolves for operators of its own only."""
    if below_autograd is None:
        return False
    if torch.compiler.is_compiling():
        return True
    if in_transform():
        return False
    for z in tensors:  # noqa: SIM110  every training pass comes by here
        if z is not None and z.is_neg():
            return False
    return True


def _any_tangent(arguments: tuple[Any, ...]) -> bool:
    return any(isinstance(z, Tensor) and has_tangent(z) for z in arguments)


def _picker(implementation: Callable[..., Any], plain: Sequence[str]) -> Callable[[tuple], tuple]:
    """Of a call's arguments, the tensors (or None) but for the plain ones: there are three times as many others."""
    kinds = [(name, p.annotation) for name, p in inspect.signature(implementation).parameters.items()]
    at = [i for i, (name, kind) in enumerate(kinds) if kind.startswith("Tensor") and name not in plain]
    return itemgetter(*at) if len(at) > 1 else itemgetter(slice(at[0], at[0] + 1))


CONFIG = 1 + len(NeuronConfig._fields)
"""How many arguments at the end of a neuron's operators say which neuron it is, and on which backend."""


def _spelled_out(implementation: Callable[..., Any]) -> inspect.Signature:
    """Its signature, with the fields of a :class:`NeuronConfig` in place of ``*config``: a schema has no such thing."""
    signature = inspect.signature(implementation)
    parameters = list(signature.parameters.values())
    if parameters[-1].kind is inspect.Parameter.VAR_POSITIONAL:
        kind, fields = inspect.Parameter.POSITIONAL_OR_KEYWORD, NeuronConfig.__annotations__
        named = [(name, getattr(hint, "__forward_arg__", hint)) for name, hint in fields.items()]
        parameters[-1:] = (inspect.Parameter(name, kind, annotation=hint) for name, hint in named)
    return signature.replace(parameters=parameters)


class Operator:
    """``sca_kernels::<name>``, from its implementation; calls like it, at less cost.

    Two things cost more than a small layer's kernels, in Python and at every call: what ``torch.library.custom_op``
    does beyond a definition (it looks up defaults that no operator here has, and compares storages that none shares),
    and the ways through the dispatcher, with as many arguments as there are here. The operator is defined without the
    one, and a call that nobody watches goes straight to the implementation.

    A process has one dispatcher: where the package is imported once more (reloaded, or from a second copy), what its
    first import defined stays.
    """

    def __init__(
        self, implementation: Callable[..., Any], changed: Sequence[str] = (), plain: Sequence[str] = ()
    ) -> None:
        """The schema is what the annotations say, and that the arguments ``changed`` are changed in place. An output
        that was not asked for may be None nevertheless: the operator, which can't return that, returns a tensor without
        elements.

        Args:
            plain: arguments that are ordinary tensors in every call: nobody watches a call because of them.
        """

        implementation.__signature__ = _spelled_out(implementation)
        names = tuple(implementation.__signature__.parameters)

        def filled(*arguments):
            guard_tensors(names, arguments)
            if self.guard is not None:
                self.guard(*arguments)
            out = implementation(*arguments)
            if not isinstance(out, tuple):
                return out
            x = next(z for z in arguments if isinstance(z, Tensor) and z.is_floating_point())
            return tuple(or_empty(z, x) for z in out)

        name = f"sca_kernels::{implementation.__name__}"
        schema = torch.library.infer_schema(implementation, mutates_args=changed)
        self.is_first = not hasattr(torch.ops.sca_kernels, implementation.__name__)
        if self.is_first:
            torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
            torch.library.impl(name, "CompositeExplicitAutograd", disable_dynamo(filled))
        self.overload = getattr(torch.ops.sca_kernels, implementation.__name__).default
        # On torch's own object, since whoever defined the operators may be another copy of this package.
        schemas = vars(torch.ops.sca_kernels).setdefault("schemas", {})
        if schemas.setdefault(name, schema) != schema:
            raise ImportError(
                f"{name}: another version of sca_kernels is loaded in this process; restart Python to use this one"
            )
        self.name, self.implementation, self.filled = implementation.__name__, implementation, filled
        self.changed = [names.index(name) for name in changed]
        self.tensors = _picker(implementation, plain)
        self.recorded: Callable[..., Any] | None = None
        """Calls like the implementation, and has autograd record it."""
        self.guard: Callable[..., None] | None = None

    def __call__(self, *arguments):
        if torch.compiler.is_compiling():
            return self.overload(*arguments)
        tensors = self.tensors(arguments)
        if not is_unwatched(tensors):
            return self.overload(*arguments)
        if self.recorded is not None and torch.is_grad_enabled():
            for z in tensors:
                if z is not None and z.requires_grad:
                    return self.recorded(*arguments)
        return self.implementation(*arguments)

    def guarded(self, guard: Callable[..., None]) -> Callable[..., None]:
        """Check the arguments of calls that come through the dispatcher, which anybody can make, with this function
        first: it raises TypeError or ValueError where kernels would read what is not there."""
        self.guard = guard
        return guard

    def fake(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Tell shapes and dtypes, as a decorator of what ``torch.library.register_fake`` takes."""
        if self.is_first:
            torch.library.register_fake(self.overload, function)
        return function

    def differentiable(
        self,
        backward: Callable[..., Any] | None = None,
        setup_context: Callable[[Any, tuple, Any], None] | None = None,
        by_torch: Callable[..., Any] | None = None,
    ) -> None:
        """Give it its gradient, by functions as ``torch.library.register_autograd`` takes them.

        Args:
            by_torch: the same operator, made of torch's own: what is called where derivatives in forward mode or
                transforms of torch.func are wanted, and, without ``backward``, where any derivative is. Without it
                derivatives in forward mode are an error.
        """
        if self.is_first:
            if below_autograd is not None:
                self._differentiate_in_dispatcher(backward, setup_context, by_torch)
            elif not self.changed:
                self._differentiate_publicly(backward, setup_context)
        self.recorded = by_torch if backward is None else self._recorded(backward, setup_context)

    def _recorded(self, backward, setup_context) -> Callable[..., Any]:
        """A call that nobody watches: there is no transform, and no derivative of forward mode."""

        def forward(ctx, *arguments):
            output = self.implementation(*arguments)
            if setup_context is not None:
                setup_context(ctx, arguments, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        return type(self.name, (torch.autograd.Function,), members).apply

    def _differentiate_in_dispatcher(self, backward, setup_context, by_torch) -> None:
        """A call that comes through the dispatcher."""

        def below(*arguments):
            with below_autograd():
                output = self.overload(*arguments)
            for at in self.changed:  # below, nobody counts what is written
                if arguments[at] is not None and not arguments[at].is_inference():
                    torch.autograd.graph.increment_version(arguments[at])
            return output

        def forward(ctx, *arguments):
            # Within a transform it is recorded here; an outer one, whose turn is next, records for itself.
            with torch.enable_grad() if in_transform() else contextlib.nullcontext():
                output = below(*arguments)
            if setup_context is not None:
                setup_context(ctx, arguments, output)
            return output

        members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
        function = type(self.name, (torch.autograd.Function,), members)

        def run(*arguments):
            if _any_tangent(arguments):
                if by_torch is None:
                    raise RuntimeError(_undefined(self, "derivatives in forward mode (jvp)"))
                return by_torch(*arguments)
            if not (torch.is_grad_enabled() and any(isinstance(z, Tensor) and z.requires_grad for z in arguments)):
                return below(*arguments)
            if by_torch is not None and (backward is None or in_transform()):
                return by_torch(*arguments)
            return applied_in_transform(function, arguments) if in_transform() else function.apply(*arguments)

        torch.library.impl(f"sca_kernels::{self.name}", "Autograd", run)

    def _differentiate_publicly(self, backward, setup_context) -> None:
        """The same where torch has no way to go on below autograd: what torch.library can do."""

        def refuse(ctx, *grads):
            raise RuntimeError(f"{self.overload}: this release of torch has no second derivative of it")

        backward = refuse if backward is None else backward
        torch.library.register_autograd(self.overload, backward, setup_context=setup_context)

    def no_second_order(self) -> None:
        """Make differentiating it, a backward operator, a clear error."""

        def refuse(ctx, *grads):
            message = _undefined(self, "second-order gradients")
            raise RuntimeError(f"{message} Call backward() without create_graph=True.")

        self.differentiable(refuse)


def _undefined(operator: Operator, what: str) -> str:
    return (
        f"{operator.overload}: {what} through spiking neurons are not defined; a surrogate replaces the first "
        "derivative, of reverse mode, only."
    )


def or_empty(z: Tensor | None, x: Tensor) -> Tensor:
    """z, or what stands for an output that was not asked for."""
    return x.new_empty(0, dtype=state_dtype(x)) if z is None else z


def forward_outputs(out: Forward, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor, Tensor, Tensor | None]:
    """NotANumber where a potential has become NaN and that is an error: the membrane sums tell without another pass
    over x. Asking a CUDA device would mean to wait for it."""
    if out.is_nan is not False and not passes_nan(x.device.type) and _became_nan(out, x):
        channels = out.membrane_l1.isnan().nonzero().flatten().tolist()
        listed = ", ".join(map(str, channels[:8])) + (", ..." if len(channels) > 8 else "")
        raise NotANumber(
            f"x: expected numbers, got NaN (there, or in what scales it) in channels {listed}; "
            "sca_kernels.functional.check_nan(False) lets it pass"
        )
    return out.spikes, out.v, out.spike_count, out.membrane_l1, out.h


def _became_nan(out: Forward, x: Tensor) -> bool:
    if out.is_nan is not None or x.device.type != "cpu":
        return bool(out.is_nan)
    return math.isnan(out.membrane_l1.sum())


def seen(x: Tensor, time_steps: int) -> int:
    """Values per channel that a neuron sees."""
    return time_steps * x.shape[1] * spatial_size(x)


def not_differentiable(output: tuple[Tensor | None, ...], return_v: bool, return_h: bool) -> list[Tensor]:
    """Of a forward operator's outputs, those without a gradient: all but the spikes and, if wanted, v and h."""
    differentiable = {0, 1 if return_v else 0, 4 if return_h else 0}
    return [z for i, z in enumerate(output) if i not in differentiable and z is not None]


def fake_forward(x: Tensor, time_steps: int, return_v: bool, return_h: bool) -> tuple[Tensor, ...]:
    channels = x.shape[2]
    return (
        empty_activation(x, time_steps),
        empty_state(x, state_dtype(x)) if return_v else or_empty(None, x),
        x.new_empty(channels, dtype=torch.int64),
        x.new_empty(channels, dtype=torch.float32),
        empty_activation(x, time_steps, state_dtype(x)) if return_h else or_empty(None, x),
    )


def fake_gradient(z: Tensor | None, x: Tensor) -> Tensor:
    """Gradient of a [C] vector or None."""
    return or_empty(None, x) if z is None else torch.empty_like(z)
