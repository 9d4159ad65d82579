"""Follows channels through a network as it runs: torch.fx, with layers and neurons as leaves.

The tracer's proxies know their tensors, so that shapes are numbers and control flow that depends on them just runs.
Control flow that depends on a tensor's values stops the trace.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import operator
import sys
import traceback
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType, FunctionType
from typing import Any

import torch
from torch import Tensor, fx, nn

import sca_kernels
from sca_kernels import functional

from .applies import Applies
from .rules import Call, follow
from .streams import Label, Streams, Unlisted, can_carry

__all__ = ["OUTPUT", "leaves", "require_none_left", "trace", "user_line"]

_LIBRARIES = (*(str(Path(package.__file__).parent) for package in (torch, sca_kernels)), __file__)
#: where the classes are that say what a leaf's forward does
_LEAVES = ("torch.nn.", "sca_kernels.", "sca.convert.layers", "sca.convert.neurons")
#: why a network's last layer is not pruned
OUTPUT = "it is the network's output"
# What calls functions with a gradient of their own.
_NATIVE = {str(Path(torch.__file__).parent / file) for file in ("autograd/function.py", "_functorch/utils.py")}
# These turn a tensor's values into Python's.
_VALUES = ("item", "tolist", "numpy", "equal", "allclose")


def trace(model: nn.Module, inputs: Sequence[Any], streams: Streams) -> list[weakref.ref]:
    """Run a network once, in the mode it is in, and follow its channels.

    Args:
        model: unwrapped.
        inputs: positional arguments of its forward.
        streams: where to note what is found.

    Returns:
        The tensors that were traced, for :func:`require_none_left`.

    Raises:
        ValueError: the pass failed, with the line where; or it returns no tensor in a tuple, list or dict.
    """
    try:
        tracer = _Tracer(inputs, streams)
        with torch.no_grad(), tracer.functions():
            tracer.trace(model)
    except Exception as error:  # whatever the user's code raises
        raise ValueError(f"model: tracing stopped{user_line(error)}: {error}") from error
    return tracer.traced


def require_none_left(traced: Iterable[weakref.ref]) -> None:
    """See to it that what a pass put into modules, and :func:`sca.structure.attach._unchanged` took out again, is
    nowhere else.

    Args:
        traced: what :func:`trace` returned.

    Raises:
        ValueError: a traced tensor is still held; by what.
    """
    if any(x() is not None for x in traced):
        gc.collect()
    left = next((x() for x in traced if x() is not None), None)
    if left is not None:
        raise ValueError(
            f"model: expected code that keeps what it computes in its modules alone, but {_holder(left)} keeps a "
            "tensor of the traced pass, which holds no values; empty that, and keep nothing there while groups are "
            "attached"
        )


def _holder(held: object) -> str:
    """In words, what keeps an object alive: the nearest global, class or function that does."""
    front, known = [held], {id(held)}
    for _ in range(8):
        ours = {id(front), id(locals())}
        referrers = [x for x in gc.get_referrers(*front) if id(x) not in known | ours and not isinstance(x, FrameType)]
        for x in referrers:
            if isinstance(x, dict) and "__spec__" in x:
                name = next((key for key, value in x.items() if any(value is one for one in front)), "a global")
                return f"{name} of {x['__name__']}"
            if isinstance(x, type | FunctionType):
                return f"{x.__module__}.{x.__qualname__}"
        known |= set(map(id, referrers))
        front = referrers
    return "something"


def _provider(module: nn.Module) -> type:
    """The class that defines a module's forward."""
    return next(kind for kind in type(module).__mro__ if "forward" in vars(kind))


class _Traced(fx.Proxy):
    """A tensor of the traced pass, and what it lists."""

    @property
    def __class__(self) -> type:
        """What isinstance() asks: a network that checks its argument gets a tensor. Its type tells it from one.

        torch's native code asks as well, and reads the memory of what says that it is one. Where no protocol comes
        first, as in what calls an autograd.Function, this is none, and the function's forward is traced."""
        frame = sys._getframe(1)
        is_function = frame.f_code.co_filename in _NATIVE or self.tracer.applies.may_ask(frame)
        return type(self) if is_function else Tensor

    def __init__(self, value: Tensor, label: Label, tracer: _Tracer, parameter: str = "") -> None:
        fx.Proxy.__init__(self, None, tracer)
        self.value, self.label, self.parameter = value, label, parameter
        tracer.traced.append(weakref.ref(self))

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.value, name)
        if isinstance(found, Tensor):
            return self.tracer.create_proxy("call_function", getattr, (self, name), {})
        return fx.proxy.Attribute(self, name) if callable(found) else found

    def __setitem__(self, index: Any, value: Any) -> None:
        self.tracer.create_proxy("call_function", operator.setitem, (self, index, value), {})

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator[_Traced]:
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        raise ValueError("control flow depends on the values of a tensor, so that another batch may take another way")

    def __repr__(self) -> str:
        return f"traced {list(self.value.shape)}"


class _Tracer(fx.Tracer):
    """Runs each operation as it comes, on real tensors, and asks the rules what becomes of the channels."""

    def __init__(self, inputs: Sequence[Any], streams: Streams) -> None:
        super().__init__(autowrap_modules=())
        self.applies = Applies()
        self.inputs, self.streams = inputs, streams
        self.traced: list[weakref.ref] = []
        self._running = False
        self._calls: list[nn.Module] = []  # those whose forward is being traced, but for the root

    @contextlib.contextmanager
    def functions(self) -> Iterator[None]:
        """Within, the functions of sca_kernels.functional are leaves, and those with a gradient of their own known."""
        originals = {name: getattr(functional, name) for name in functional.__all__}
        originals = {name: function for name, function in originals.items() if inspect.isfunction(function)}

        def leaf(function: Callable) -> Callable:
            @functools.wraps(function)
            def called(*args: Any, **kwargs: Any) -> Any:
                if self._running or not _tensors((args, kwargs)):
                    return function(*args, **kwargs)
                return self.create_proxy("call_function", function, args, kwargs)

            return called

        for name, function in originals.items():
            setattr(functional, name, leaf(function))
        try:
            with self.applies:
                yield
        finally:
            for name, function in originals.items():
                setattr(functional, name, function)

    def create_args_for_root(self, root_fn: Callable, is_module: bool, concrete_args: Any = None) -> tuple:
        label = Unlisted("the network's input")
        return root_fn, [self.root, *(_Traced(x, label, self) if isinstance(x, Tensor) else x for x in self.inputs)]

    def create_arg(self, a: Any) -> Any:
        return a

    def create_node(self, kind: str, target: Any, args: tuple, kwargs: dict, *others: Any, **named: Any) -> None:
        """Called for the output alone."""
        returned = _tensors(args)
        if not returned:
            raise ValueError("expected forward to return a tensor, or tensors in a tuple, list or dict")
        self.streams.block((x.label for x in returned), OUTPUT)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _provider(m).__module__.startswith(_LEAVES) and not isinstance(m, nn.Sequential)

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict) -> Any:
        return attr_val if self._running else super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Callable, args: tuple, kwargs: dict) -> Any:
        if self._running:
            return forward(*args, **kwargs)
        self.streams.called.add(m)
        kind = _provider(m)
        foreign = "torch.nn." if kind.__module__.startswith("torch.nn.") else ""
        what = f"{self.streams.names.get(m, 'a module')} ({foreign}{type(m).__name__})"
        if not self.is_leaf_module(m, ""):
            if can_carry(m):
                self.streams.unknown[what] = "its class has a forward of its own; have it hold the layer instead"
            self._calls.append(m)
            try:
                return forward(*args, **kwargs)
            finally:
                self._calls.pop()
        constants = [x for x in leaves((args, kwargs)) if isinstance(x, Tensor) and type(x) is not _Traced]
        traced = {id(x): _Traced(x, Unlisted("a tensor that was made in the network"), self) for x in constants}
        return self._call(kind.__name__, what, forward, _mapped(args, traced.get), _mapped(kwargs, traced.get), m)

    def create_proxy(self, kind: str, target: Any, args: tuple, kwargs: dict, *others: Any, **named: Any) -> Any:
        if kind == "get_attr":
            with self._apart():
                return _Traced(self.root.get_parameter(target), Unlisted(f"parameter {target!r}"), self, target)
        if kind == "call_method":

            def function(x: Any, *arguments: Any, **keywords: Any) -> Any:
                return getattr(x, target)(*arguments, **keywords)

            name = target
        else:
            function, name = target, getattr(target, "__name__", str(target)).removesuffix(".default")
        place = _place(sys._getframe())
        if self._calls and self._calls[-1] in self.streams.names:
            place = f"{place}, in {self.streams.names[self._calls[-1]]}"
        if name in _VALUES:
            raise ValueError(f"{name}() reads the values of a tensor, so that another batch may take another way")
        plain = name.strip("_")
        return self._call(plain, f"{plain} at {place}", function, args, kwargs, in_place=_is_in_place(name))

    def _call(
        self,
        name: str,
        what: str,
        function: Callable,
        args: tuple,
        kwargs: dict,
        module: nn.Module | None = None,
        in_place: bool = False,
    ) -> Any:
        operands = tuple(_tensors((args, kwargs)))
        for x in operands:
            if x.parameter:
                self.streams.touched.setdefault(x.parameter, what)

        def run(tensors: list[Tensor]) -> Any:
            values = {id(x): value for x, value in zip(operands, tensors, strict=True)}
            return function(*_mapped(args, values.get), **_mapped(kwargs, values.get))

        with self._apart():
            result = run([x.value for x in operands])
            found = [x for x in leaves(result) if isinstance(x, Tensor)]
            if not operands or not (found or in_place):
                return result
            target = args[0] if in_place and type(args[0]) is _Traced else None
            writes = name == "setitem" or (in_place and target is None)
            label = follow(Call(name, what, module, operands, args, kwargs, result, run, writes, self.streams))
            if target is not None:
                target.label = label
        wrapped = {id(x): _Traced(x, label, self) for x in found}
        return _mapped(result, wrapped.get)

    @contextlib.contextmanager
    def _apart(self) -> Iterator[None]:
        """Within, modules and parameters are themselves, not what is traced."""
        before, self._running = self._running, True
        try:
            yield
        finally:
            self._running = before


def leaves(value: Any) -> Iterator[Any]:
    """What nested tuples, lists, dicts and slices hold."""
    if isinstance(value, tuple | list):
        for item in value:
            yield from leaves(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from leaves(item)
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value


def _tensors(value: Any) -> list[_Traced]:
    """The traced tensors in it, each once."""
    return list({id(x): x for x in leaves(value) if type(x) is _Traced}.values())


def _mapped(value: Any, of: Callable[[int], Any]) -> Any:
    """The same nest, with ``of(id(leaf))`` in place of each leaf for which that is something."""
    if isinstance(value, tuple | list):
        items = [_mapped(item, of) for item in value]
        if hasattr(value, "_fields"):
            return type(value)(*items)
        return type(value)(items)
    if isinstance(value, dict):
        return {key: _mapped(item, of) for key, item in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(item, of) for item in (value.start, value.stop, value.step)))
    found = of(id(value))
    return value if found is None else found


def _is_in_place(name: str) -> bool:
    """Whether a function or method changes its first argument: ``add_``, ``__iadd__``, ``iadd``, ``setitem``."""
    plain = name.strip("_")
    return plain in ("setitem", "iadd", "isub", "imul", "itruediv") or (name.endswith("_") and name[0] != "_")


def _place(frame: FrameType | None) -> str:
    """File and line of the innermost code that is no library's."""
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return "an unknown line" if frame is None else f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"


def user_line(error: Exception) -> str:
    """Where in the user's code an exception came from, with the line itself."""
    ours = (*_LIBRARIES, str(Path(__file__).parent))
    lines = [line for line in traceback.extract_tb(error.__traceback__) if not line.filename.startswith(ours)]
    return f" at {lines[-1].filename}:{lines[-1].lineno} ({lines[-1].line})" if lines else ""
