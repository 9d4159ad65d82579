"""SpikingJelly 0.0.0.0.x: a stand-in for the classes that networks of that era are written with, and such networks.

The classes have the names, the attributes and the arithmetic of ``spikingjelly.clock_driven`` 0.0.0.0.12, on the
backend "torch", and say so in their ``__module__``; nothing of that package is needed. ``installed()`` puts them where
an import finds them.
"""

from __future__ import annotations

import contextlib
import copy
import math
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec
from typing import Any

import torch
from torch import Tensor, nn

from .net import ForeignNet, events, liven, normal, seeded, settle

_CLOCK_DRIVEN = "spikingjelly.clock_driven"


class _Arctangent(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.alpha = alpha
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return ctx.alpha / 2 / (1 + (math.pi / 2 * ctx.alpha * x).pow_(2)) * grad, None


class _Logistic(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: float) -> Tensor:
        if x.requires_grad:
            ctx.save_for_backward(x)
            ctx.alpha = alpha
        return (x >= 0).to(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        s = (ctx.saved_tensors[0] * ctx.alpha).sigmoid_()
        return grad * (1.0 - s) * s * ctx.alpha, None


class SurrogateFunctionBase(nn.Module):
    """A module without parameters; its slope is ``alpha``. Subclasses override the two static methods."""

    def __init__(self, alpha: float, spiking: bool = True) -> None:
        super().__init__()
        self.spiking = spiking
        self.alpha = alpha

    def forward(self, x: Tensor) -> Tensor:
        return self.spiking_function(x, self.alpha) if self.spiking else self.primitive_function(x, self.alpha)


class Sigmoid(SurrogateFunctionBase):
    def __init__(self, alpha: float = 4.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def spiking_function(x: Tensor, alpha: float) -> Tensor:
        return _Logistic.apply(x, alpha)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        return (x * alpha).sigmoid()


class ATan(SurrogateFunctionBase):
    def __init__(self, alpha: float = 2.0, spiking: bool = True) -> None:
        super().__init__(alpha, spiking)

    @staticmethod
    def spiking_function(x: Tensor, alpha: float) -> Tensor:
        return _Arctangent.apply(x, alpha)

    @staticmethod
    def primitive_function(x: Tensor, alpha: float) -> Tensor:
        return (math.pi / 2 * alpha * x).atan_() / math.pi + 0.5


class MemoryModule(nn.Module):
    """Keeps its state in a dict, from which attributes are read and to which they are written."""

    def __init__(self) -> None:
        super().__init__()
        self._memories: dict[str, Any] = {}
        self._memories_rv: dict[str, Any] = {}

    def register_memory(self, name: str, value: Any) -> None:
        assert not hasattr(self, name), f"{name} is taken"
        self._memories[name] = value
        self._memories_rv[name] = copy.deepcopy(value)

    def reset(self) -> None:
        for name in self._memories:
            self._memories[name] = copy.deepcopy(self._memories_rv[name])

    def detach(self) -> None:
        for value in self._memories.values():
            if isinstance(value, Tensor):
                value.detach_()

    def __getattr__(self, name: str) -> Any:
        memories = self.__dict__.get("_memories", {})
        return memories[name] if name in memories else super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.__dict__.get("_memories", {}):
            self._memories[name] = value
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        for memories in (self._memories, self._memories_rv):
            memories.update({name: fn(value) for name, value in memories.items() if isinstance(value, Tensor)})
        return super()._apply(fn, recurse)


class BaseNode(MemoryModule):
    """Charge, fire, reset; threshold and reset potential are memories too, and the default surrogate is one object that
    all neurons share."""

    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008  as there
        detach_reset: bool = False,
    ) -> None:
        assert isinstance(v_reset, float) or v_reset is None
        assert isinstance(v_threshold, float)
        super().__init__()
        self.register_memory("v", 0.0 if v_reset is None else v_reset)
        self.register_memory("v_threshold", v_threshold)
        self.register_memory("v_reset", v_reset)
        self.detach_reset = detach_reset
        self.surrogate_function = surrogate_function

    def neuronal_charge(self, x: Tensor) -> None:
        raise NotImplementedError

    def neuronal_fire(self) -> Tensor:
        return self.surrogate_function(self.v - self.v_threshold)

    def neuronal_reset(self, spike: Tensor) -> None:
        fired = spike.detach() if self.detach_reset else spike
        if self.v_reset is None:
            self.v = self.v - fired * self.v_threshold
        else:
            self.v = (1.0 - fired) * self.v + fired * self.v_reset

    def forward(self, x: Tensor) -> Tensor:
        self.neuronal_charge(x)
        spike = self.neuronal_fire()
        self.neuronal_reset(spike)
        return spike

    def extra_repr(self) -> str:
        return f"v_threshold={self.v_threshold}, v_reset={self.v_reset}, detach_reset={self.detach_reset}"


class IFNode(BaseNode):
    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self.cupy_fp32_inference = cupy_fp32_inference

    def neuronal_charge(self, x: Tensor) -> None:
        self.v = self.v + x


class LIFNode(BaseNode):
    """Without the decay of the input, and reset to zero, the potential is multiplied by 1 - 1 / tau, not divided."""

    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        cupy_fp32_inference: bool = False,
    ) -> None:
        assert isinstance(tau, float)
        assert tau > 1.0
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self.tau = tau
        self.decay_input = decay_input
        self.cupy_fp32_inference = cupy_fp32_inference

    def neuronal_charge(self, x: Tensor) -> None:
        to_zero = self.v_reset is None or self.v_reset == 0.0
        if self.decay_input and to_zero:
            self.v = self.v + (x - self.v) / self.tau
        elif self.decay_input:
            self.v = self.v + (x - (self.v - self.v_reset)) / self.tau
        elif to_zero:
            self.v = self.v * (1.0 - 1.0 / self.tau) + x
        else:
            self.v = self.v - (self.v - self.v_reset) / self.tau + x


class ParametricLIFNode(BaseNode):
    """Its rate is the sigmoid of ``w``, a parameter without dimensions."""

    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
    ) -> None:
        assert isinstance(init_tau, float)
        assert init_tau > 1.0
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self.decay_input = decay_input
        self.w = nn.Parameter(torch.as_tensor(-math.log(init_tau - 1.0)))

    def neuronal_charge(self, x: Tensor) -> None:
        rate = self.w.sigmoid()
        to_zero = self.v_reset is None or self.v_reset == 0.0
        if self.decay_input and to_zero:
            self.v = self.v + (x - self.v) * rate
        elif self.decay_input:
            self.v = self.v + (x - (self.v - self.v_reset)) * rate
        elif to_zero:
            self.v = self.v * (1.0 - rate) + x
        else:
            self.v = self.v - (self.v - self.v_reset) * rate + x


class _MultiStep:
    """[T, ...] -> [T, ...]; keeps every step's potential in ``v_seq``."""

    def forward(self, x_seq: Tensor) -> Tensor:
        assert x_seq.dim() > 1
        spikes, potentials = [], []
        for x in x_seq:
            spikes.append(super().forward(x).unsqueeze(0))
            potentials.append(self.v.unsqueeze(0))
        self.v_seq = torch.cat(potentials, 0)
        return torch.cat(spikes, 0)


class MultiStepIFNode(_MultiStep, IFNode):
    def __init__(
        self,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 1 << 6,
    ) -> None:
        super().__init__(v_threshold, v_reset, surrogate_function, detach_reset)
        self.register_memory("v_seq", None)
        self.backend = backend
        self.lava_s_cale = lava_s_cale
        self.lava_neuron = None


class MultiStepLIFNode(_MultiStep, LIFNode):
    def __init__(
        self,
        tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
        lava_s_cale: int = 1 << 6,
    ) -> None:
        super().__init__(tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        self.register_memory("v_seq", None)
        self.backend = backend
        self.lava_s_cale = lava_s_cale
        self.lava_neuron = None


class MultiStepParametricLIFNode(_MultiStep, ParametricLIFNode):
    def __init__(
        self,
        init_tau: float = 2.0,
        decay_input: bool = True,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: nn.Module = Sigmoid(),  # noqa: B008
        detach_reset: bool = False,
        backend: str = "torch",
    ) -> None:
        super().__init__(init_tau, decay_input, v_threshold, v_reset, surrogate_function, detach_reset)
        self.register_memory("v_seq", None)
        self.backend = backend


class SeqToANNContainer(nn.Sequential):
    """Runs its layers on frames [T * N, ...]."""

    def forward(self, x_seq: Tensor) -> Tensor:
        y = super().forward(x_seq.flatten(0, 1))
        return y.view([*x_seq.shape[:2], *y.shape[1:]])


class Dropout(MemoryModule):
    """One mask for all steps, drawn in the first, dropped by the reset."""

    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        assert 0 <= p < 1
        self.register_memory("mask", None)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        if self.mask is None:
            self.mask = nn.functional.dropout(torch.ones_like(x.data), self.p, training=True)
        return x * self.mask


def reset_net(net: nn.Module) -> None:
    for module in net.modules():
        if hasattr(module, "reset"):
            module.reset()


class CextMultiStepParametricLIFNode(nn.Module):
    """spikingjelly.cext.neuron.MultiStepParametricLIFNode as it was in development versions: another class.
    No MemoryModule: ``v`` is a plain attribute. The surrogate is a string beside its slope, ``w`` has one dimension,
    and there is no soft reset. Here computed by torch, there by a CUDA extension."""

    def __init__(
        self,
        init_tau: float = 2.0,
        v_threshold: float = 1.0,
        v_reset: float | None = 0.0,
        surrogate_function: str = "ATan",
        alpha: float = 2.0,
        detach_reset: bool = False,
    ) -> None:
        super().__init__()
        self.v_threshold = v_threshold
        self.v_reset = v_reset
        self.surrogate_function = surrogate_function
        self.grad_surrogate_function_index = {"ATan": 0, "Sigmoid": 1}[surrogate_function]
        self.alpha = alpha
        self.detach_reset = detach_reset
        self.reset()
        self.w = nn.Parameter(torch.Tensor([-math.log(init_tau - 1)]))

    def reset(self) -> None:
        self.v = self.v_reset

    def forward(self, dv_seq: Tensor) -> Tensor:
        if self.v_reset is None:
            raise NotImplementedError
        if not isinstance(self.v, Tensor):
            self.v = torch.full_like(dv_seq[0].data, self.v_reset)
        fire = (_Arctangent, _Logistic)[self.grad_surrogate_function_index]
        rate, spikes = self.w.sigmoid(), []
        for dv in dv_seq:
            h = self.v + rate * (dv - self.v + self.v_reset)
            spike = fire.apply(h - self.v_threshold, self.alpha)
            fired = spike.detach() if self.detach_reset else spike
            self.v = (1.0 - fired) * h + fired * self.v_reset
            spikes.append(spike)
        return torch.stack(spikes)


CextMultiStepParametricLIFNode.__name__ = CextMultiStepParametricLIFNode.__qualname__ = "MultiStepParametricLIFNode"
CextMultiStepParametricLIFNode.__module__ = "spikingjelly.cext.neuron"

_MODULES: dict[str, tuple[Any, ...]] = {
    f"{_CLOCK_DRIVEN}.base": (MemoryModule,),
    f"{_CLOCK_DRIVEN}.surrogate": (SurrogateFunctionBase, Sigmoid, ATan),
    f"{_CLOCK_DRIVEN}.neuron": (
        BaseNode,
        IFNode,
        LIFNode,
        ParametricLIFNode,
        MultiStepIFNode,
        MultiStepLIFNode,
        MultiStepParametricLIFNode,
    ),
    f"{_CLOCK_DRIVEN}.layer": (SeqToANNContainer, Dropout),
    f"{_CLOCK_DRIVEN}.functional": (reset_net,),
    "spikingjelly.cext.neuron": (CextMultiStepParametricLIFNode,),
}
for _place, _members in _MODULES.items():
    for _member in _members:
        _member.__module__ = _place


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Have imports find the classes of this file where 0.0.0.0.12 has them, instead of any SpikingJelly there is."""
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "spikingjelly"}
    made = {
        name: module_from_spec(ModuleSpec(name, None))
        for name in ("spikingjelly", _CLOCK_DRIVEN, "spikingjelly.cext", *_MODULES)
    }
    for name, module in made.items():
        module.__path__ = []
        for member in _MODULES.get(name, ()):
            setattr(module, member.__name__, member)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, module)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            sys.modules.pop(name, None)
        sys.modules.update(hidden)


def _block(source: int, sink: int, kernel_size: int) -> nn.Sequential:
    convolution = nn.Conv2d(source, sink, kernel_size, padding=kernel_size // 2, bias=False)
    return nn.Sequential(
        SeqToANNContainer(convolution, nn.BatchNorm2d(sink)),
        CextMultiStepParametricLIFNode(init_tau=2.0, detach_reset=True),
    )


class _Added(nn.Module):
    """A residual block that adds its input to its spikes, in their own memory."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_block(channels, channels, 3), _block(channels, channels, 3))

    def forward(self, x: Tensor) -> Tensor:
        spikes = self.body(x)
        spikes += x
        return spikes


class SewEvents(nn.Module):
    """[N, T, 2, 32, 32] -> [N, 10]: time is turned to the front, stages end in a maximum, the mean of T is read."""

    def __init__(self, widths: tuple[int, ...] = (8, 8, 12)) -> None:
        super().__init__()
        stages: list[nn.Module] = []
        channels = 2
        for width in widths:
            if width != channels:
                stages.append(_block(channels, width, 1))
            stages += [_Added(width), SeqToANNContainer(nn.MaxPool2d(2, 2))]
            channels = width
        self.stages = nn.Sequential(*stages, nn.Flatten(2))
        self.out = nn.Linear(channels * (32 >> len(widths)) ** 2, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.stages(x.permute(1, 0, 2, 3, 4)).mean(0))


def _recording() -> Tensor:
    return events(3, 5, 2, 32, 32, seed=11)


def _sew_events() -> nn.Module:
    with seeded(12):
        model = SewEvents()
    liven(model, 1.5, 0.4)
    settle(model.train(), lambda: model(_recording()), reset_net)
    return model


class _Charges(nn.Module):
    """[T, N, 2, 12, 10] -> [T, N, 10]: each way to charge once, and both resets."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = SeqToANNContainer(nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6))
        self.integrate = MultiStepIFNode(v_reset=None, surrogate_function=ATan(), backend="torch")
        self.fc1 = SeqToANNContainer(nn.Flatten(), nn.Linear(6 * 120, 40), nn.BatchNorm1d(40))
        self.divided = MultiStepLIFNode(tau=1.7, v_threshold=0.8, v_reset=-0.1)
        self.fc2 = SeqToANNContainer(nn.Linear(40, 40), nn.BatchNorm1d(40))
        self.multiplied = MultiStepLIFNode(tau=3.0, decay_input=False, detach_reset=True)
        self.fc3 = SeqToANNContainer(nn.Linear(40, 40), nn.BatchNorm1d(40))
        self.shifted = MultiStepLIFNode(tau=3.0, decay_input=False, v_reset=-0.2)
        self.fc4 = SeqToANNContainer(nn.Linear(40, 40), nn.BatchNorm1d(40))
        self.halved = MultiStepLIFNode(decay_input=False, v_reset=None)
        self.fc5 = SeqToANNContainer(nn.Linear(40, 40), nn.BatchNorm1d(40))
        self.learned = MultiStepParametricLIFNode(init_tau=3.0, decay_input=False, detach_reset=True)
        self.head = nn.Linear(40, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.divided(self.fc1(self.integrate(self.conv(x))))
        x = self.shifted(self.fc3(self.multiplied(self.fc2(x))))
        return self.head(self.learned(self.fc5(self.halved(self.fc4(x)))))


def _charged() -> Tensor:
    return normal(6, 5, 2, 12, 10, seed=13)


def _charges() -> nn.Module:
    with seeded(14):
        model = _Charges()
    liven(model, 1.0, 0.1)
    for name, (gain, shift) in {"conv": (0.7, 0.1), "fc1": (1.5, 0.5)}.items():
        liven(getattr(model, name), gain, shift)
    settle(model.train(), lambda: model(_charged()), reset_net)
    return model


NETS = (
    ForeignNet(
        name="old_sew_cifar10dvs",
        origin="spikingjelly 0.0.0.0.x, Spike-Element-Wise ResNet",
        build=_sew_events,
        example=_recording,
        call=lambda model, x: model(x),
        reset=reset_net,
        trap="spikes += x writes into the neuron's output; the neuron is that of a compiled extension, whose surrogate "
        "is a string and whose w has one dimension; [N, T] is turned inside",
        convertible=("stages.[05].1", "stages.?.body.?.1"),
        layers=("stages.[05].0.?", "stages.?.body.?.0.?", "out"),
        time="NT>TN",
    ),
    ForeignNet(
        name="old_charges",
        origin="spikingjelly 0.0.0.0.x",
        build=_charges,
        example=_charged,
        call=lambda model, x: model(x),
        reset=reset_net,
        trap="without decay of the input, v is multiplied by 1 - 1 / tau where it is reset to zero, but divided where "
        "it is not: with tau = 3 these differ in the last bit; v_threshold and v_reset are memories",
        convertible=("integrate", "divided", "multiplied", "shifted", "halved", "learned"),
        layers=("conv.?", "fc1.[12]", "fc[2-5].?", "head"),
        time="TN",
    ),
)
