"""Foreign neurons are told apart by running them: what they are, or the first thing that does not fit."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sca.convert.probing import in_loop, probe_neuron, probe_surrogate, slope_of
from sca_kernels import functional as F
from sca_kernels.surrogates import TABLE, Surrogate

Run = Callable[[Tensor], Tensor]


class Step(torch.autograd.Function):
    """1 above 0, at 0 unless ``strict``; the derivative is another function."""

    @staticmethod
    def forward(ctx: Any, u: Tensor, slope: Callable[[Tensor], Tensor], strict: bool) -> Tensor:
        ctx.save_for_backward(u)
        ctx.slope = slope
        return (u > 0 if strict else u >= 0).to(u.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * ctx.slope(ctx.saved_tensors[0]), None, None


def arctangent(u: Tensor) -> Tensor:
    return 1 / (1 + (math.pi * u) ** 2)


def published_fast_sigmoid(u: Tensor) -> Tensor:
    return 1 / (25 * u.abs() + 1) ** 2


def tent(width: float) -> Callable[[Tensor], Tensor]:
    """Temporal Efficient Training's."""
    return lambda u: (width - u.abs()).clamp(min=0) / width**2


def box(width: float) -> Callable[[Tensor], Tensor]:
    return lambda u: (u.abs() < width / 2).to(u.dtype) / width


def closed_box(width: float) -> Callable[[Tensor], Tensor]:
    """Complementary-LIF's repository has its edges inside."""
    return lambda u: (u.abs() <= width / 2).to(u.dtype) / width


def neuron(
    charge: Callable[[Tensor, Tensor], Tensor],
    *,
    threshold: float = 1.0,
    reset: float | None = 0.0,
    subtract: float | None = None,
    start: float = 0.0,
    strict: bool = False,
    detach: bool = False,
    slope: Callable[[Tensor], Tensor] = arctangent,
) -> Run:
    """A neuron as people write them."""

    def run(x: Tensor) -> Tensor:
        v, spikes = torch.full_like(x[0], start), []
        for current in x:
            h = charge(v, current)
            s = Step.apply(h - threshold, slope, strict)
            taken = s.detach() if detach else s
            v = h - taken * (subtract or threshold) if reset is None else (1 - taken) * h + taken * reset
            spikes.append(s)
        return torch.stack(spikes)

    return run


def expected(**arguments: Any) -> dict[str, Any]:
    usual = {"neuron": "lif", "v_threshold": 1.0, "v_reset": 0.0, "v_subtract": None, "v_rest": None}
    usual |= {"fire": ">=", "detach_reset": False, "surrogate": Surrogate("atan", 2.0)}
    return usual | arguments


FULL = {"decay_input": False}
DIVIDED = {"decay_input": True}
FOUND = {
    "integrate": (neuron(lambda v, x: v + x), expected(neuron="if")),
    "integrate, soft": (
        neuron(lambda v, x: v + x, reset=None, strict=True, threshold=0.37),
        expected(neuron="if", v_threshold=0.37, v_reset=None, fire=">"),
    ),
    "divided by 2": (neuron(lambda v, x: v + (x - v) / 2), expected(tau=2.0, **DIVIDED)),
    "divided by 3": (neuron(lambda v, x: v + (x - v) / 3), expected(tau=3.0, **DIVIDED)),
    "divided by 4/3, input in full": (
        neuron(lambda v, x: v - v / (4 / 3) + x, detach=True),
        expected(tau=4 / 3, detach_reset=True, **FULL),
    ),
    "multiplied by a rate": (
        neuron(lambda v, x: v + 0.1 * (x - v), strict=True),
        expected(rate=0.1, fire=">", **DIVIDED),
    ),
    "decay": (
        neuron(lambda v, x: v * 0.9 + x, strict=True, detach=True, slope=published_fast_sigmoid),
        expected(decay=0.9, fire=">", detach_reset=True, surrogate=Surrogate("fast_sigmoid", 25.0), **FULL),
    ),
    "decay, soft by another amount": (
        neuron(lambda v, x: v * 0.9 + x, reset=None, subtract=0.6),
        expected(decay=0.9, v_reset=None, v_subtract=0.6, **FULL),
    ),
    "Temporal Efficient Training": (
        neuron(lambda v, x: v * 0.5 + x, strict=True, slope=tent(1.0)),
        expected(tau=2.0, fire=">", surrogate=Surrogate("piecewise_quadratic", 1.0), **FULL),
    ),
    "Neuromorphic Data Augmentation": (
        neuron(lambda v, x: v * 0.25 + x, threshold=0.5, slope=box(0.8)),
        expected(decay=0.25, v_threshold=0.5, surrogate=Surrogate("rectangular", 1.25), **FULL),
    ),
    "reset and rest below 0": (
        neuron(lambda v, x: v + (x - (v + 0.1)) / 3, reset=-0.1, start=-0.1),
        expected(tau=3.0, v_reset=-0.1, **DIVIDED),
    ),
    "reset apart from rest": (
        neuron(lambda v, x: v + (x - v) / 2, reset=0.2),
        expected(tau=2.0, v_reset=0.2, v_rest=0.0, **DIVIDED),
    ),
    "computed in float32": (
        lambda x: neuron(lambda v, x: v + (x - v) / 3.3, threshold=0.8)(x.float()),
        expected(tau=3.3, v_threshold=0.8, **DIVIDED),
    ),
    "memoryless": (neuron(lambda v, x: x), expected(decay=0.0, **FULL)),
}


def without_none(arguments: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in arguments.items() if value is not None}


@pytest.mark.parametrize("name", FOUND)
def test_neuron_is_found(name):
    run, arguments = FOUND[name]
    fit = probe_neuron(run)
    assert fit.arguments is not None, fit.reason
    assert without_none(fit.arguments) == without_none(arguments)
    assert fit.exact
    assert fit.differing == 0


def test_what_is_found_runs():
    run, _ = FOUND["decay"]
    x = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(3))
    assert torch.equal(F.neuron(x, **probe_neuron(run).arguments).spikes, run(x))


def test_leaks_that_no_current_tells_apart_are_listed():
    fit = probe_neuron(neuron(lambda v, x: v * 0.5 + x))
    assert fit.arguments["tau"] == 2
    assert fit.alike == ("decay", "rate")
    assert probe_neuron(neuron(lambda v, x: v * 0.9 + x)).alike == ()


def test_another_order_of_roundings_is_the_nearest_neuron():
    fit = probe_neuron(neuron(lambda v, x: v * 0.7 + (1 - 0.7) * x))
    assert fit.arguments["v_threshold"] == 1
    assert fit.arguments["decay_input"]
    assert fit.arguments.get("rate") == pytest.approx(0.3) or fit.arguments["tau"] == pytest.approx(1 / 0.3)


def test_a_reset_of_the_step_after_is_the_same_spikes():
    def step(x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        reset = (v > 1).to(x.dtype)
        v = 0.8 * v + x - reset
        return Step.apply(v - 1, arctangent, True), v

    found = probe_neuron(in_loop(step, torch.zeros_like)).arguments
    assert found["decay"] == 0.8
    assert found["v_subtract"] == pytest.approx(1.25)
    assert found["detach_reset"]
    assert found["fire"] == ">"


def test_a_soft_reset_with_a_closed_box_is_exact():
    """Complementary-LIF's plain neuron, whose grid currents hit the edges of its surrogate."""
    fit = probe_neuron(neuron(lambda v, x: v * (1 - 1 / 2) + x, reset=None, slope=closed_box(1.0)))
    assert (fit.arguments["tau"], fit.arguments["v_reset"]) == (2, None)
    assert fit.arguments["surrogate"].name == "rectangular"
    assert fit.exact


def test_a_neuron_of_one_shape_is_found():
    def run(x: Tensor) -> Tensor:
        assert x.shape[1:] == (2, 2)
        return FOUND["decay"][0](x)

    assert probe_neuron(run, (2, 2)).arguments["decay"] == 0.9


def test_a_shape_without_elements_is_an_error():
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match="shape"):
            probe_neuron(FOUND["decay"][0], shape)


# ---- refused


def two_states(kind: str) -> Run:
    """h and m: a synapse, an adaptive threshold, Complementary-LIF, a refractory period."""

    def run(x: Tensor) -> Tensor:
        v = m = torch.zeros_like(x[0])
        spikes = []
        for current in x:
            if kind == "synapse":
                m = m * 0.8 + current
            h = v * 0.9 + (m if kind == "synapse" else current)
            s = Step.apply(h - 1 - (m if kind == "adaptive" else 0), arctangent, False)
            if kind == "refractory":
                s = s * (m <= 0)
                m = torch.where(s > 0, 2.0, m - 1)
            elif kind == "adaptive":
                m = m * 0.8 + 0.3 * s
            v = h * (1 - s)
            if kind == "complementary":
                m = m * torch.sigmoid(h / 2) + s
                v = h - s * (1 + torch.sigmoid(m))
            spikes.append(s)
        return torch.stack(spikes)

    return run


LEAKY = neuron(lambda v, x: v * 0.9 + x)


def rising(x: Tensor) -> Tensor:
    return LEAKY(x - 0.1 * torch.arange(len(x)).view(-1, *[1] * (x.dim() - 1)))


def cut(x: Tensor) -> Tensor:
    return neuron(lambda v, x: v.detach() * 0.9 + x)(x)


def per_channel(x: Tensor) -> Tensor:
    return neuron(lambda v, x: v * 0.9 + x, threshold=torch.linspace(1, 1.2, x.shape[-1]))(x)


def failing(x: Tensor) -> Tensor:
    raise KeyError("no such layer")


REFUSED = {
    "what a spike does depends on the spikes before it": two_states("complementary"),
    "after a spike, more changes": two_states("adaptive"),
    "not one exponential: its spikes depend on two states": two_states("synapse"),
    "refractory": two_states("refractory"),
    "noise: two runs differ": lambda x: LEAKY(x + 0.1 * torch.randn_like(x)),
    "noise: the gradients": neuron(lambda v, x: v + x, slope=torch.rand_like),
    "other channels or samples": lambda x: LEAKY(x - 0.1 * x.mean(-1, keepdim=True)),
    "gradient depends on other": lambda x: LEAKY(x + (x.mean(1, keepdim=True) - x.mean(1, keepdim=True).detach())),
    "not all the same neuron": per_channel,
    "changes with time": rising,
    "later steps": lambda x: LEAKY(x.flip(0)).flip(0),
    "not that of back-propagation through time": cut,
    "not binary: one is 2": lambda x: 2 * LEAKY(x),
    "not in proportion": neuron(lambda v, x: (v * 0.9).clamp(min=-1) + x),
    "neither a constant nor": neuron(lambda v, x: torch.where(v >= 1, 0.3 * v, 0.9 * v) + x, subtract=1e-9, reset=None),
    "without a current": lambda x: LEAKY(x + 2),
    "at no current": lambda x: 0 * x,
    "no gradient": lambda x: LEAKY(x.detach()),
    "returns list": lambda x: list(LEAKY(x)),
    "returns .* for currents": lambda x: LEAKY(x)[-1],
    "fails .*KeyError.*no such layer": failing,
    "surrogate is none of ours: .* off by": neuron(lambda v, x: v + x, slope=lambda u: torch.exp(-(u - 1).abs())),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_neuron_is_refused(reason):
    fit = probe_neuron(REFUSED[reason])
    assert fit.arguments is None
    assert re.search(reason, fit.reason), fit.reason


def test_modes_and_random_state_of_the_caller_stay():
    before = torch.get_rng_state()
    with torch.inference_mode():
        fit = probe_neuron(LEAKY)
        noisy = probe_neuron(lambda x: LEAKY(x + torch.randn_like(x)))
        assert torch.is_inference_mode_enabled()
    assert fit.arguments["decay"] == 0.9
    assert "noise" in noisy.reason
    assert torch.equal(torch.get_rng_state(), before)


# ---- surrogates

ROWS = [
    Surrogate(name, alpha, beta, scale)
    for name, row in TABLE.items()
    for alpha, beta, scale in ((row.alpha, row.beta, 1.0), (2.7, 0.3, 1.0), (1.3, 0.2, 0.37))
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_row_is_found(dtype):
    u = torch.linspace(-3, 3, 1000, dtype=torch.float64)
    for row in ROWS:

        def slope(z: Tensor, row=row) -> Tensor:
            return TABLE[row.name].derivative(z.to(dtype), row.alpha, row.beta) * row.scale

        fit = probe_surrogate(slope)
        assert fit.surrogate is not None, (row, fit)
        truth, found = (TABLE[s.name].derivative(u, s.alpha, s.beta) * s.scale for s in (row, fit.surrogate))
        assert (truth - found).abs().max() <= 1e-5 * truth.abs().max(), (row, fit)
        if row.scale == 1:
            assert fit.surrogate.scale == 1, (row, fit)


PUBLISHED = {
    "fast_sigmoid": (published_fast_sigmoid, Surrogate("fast_sigmoid", 25.0)),
    "atan": (arctangent, Surrogate("atan", 2.0)),
    "tent": (tent(0.5), Surrogate("piecewise_quadratic", 2.0)),
    "box": (box(0.7), Surrogate("rectangular", 1 / 0.7)),
    "SuperSpike without its alpha": (lambda u: 1 / (1 + u.abs()) ** 2, Surrogate("super_spike", 1.0)),
    "tanh": (lambda u: 1 - torch.tanh(5 * u) ** 2, Surrogate("sigmoid", 10.0, 0.0, 0.4)),
    "straight through": (torch.ones_like, Surrogate("leaky_k_relu", 1.0, 1.0)),
    "triangle": (lambda u: 0.3 * torch.relu(1 - u.abs()), Surrogate("triangle", 0.3)),
    "minus on the right": (lambda u: torch.where(u >= 0, -1.0, 1.0), Surrogate("leaky_k_relu", 1.0, -1.0, -1.0)),
    "exponentials that overflow": (
        lambda u: 25 * torch.exp(-25 * u) / (torch.exp(-25 * u) + 1) ** 2,
        Surrogate("sigmoid", 25.0),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_surrogate_is_found_in_round_numbers(name):
    slope, surrogate = PUBLISHED[name]
    for strict in (False, True):
        fit = probe_surrogate(slope_of(lambda u, strict=strict: Step.apply(u, slope, strict)))
        assert fit.surrogate == surrogate
        assert fit.fire == (">" if strict else ">=")


def test_a_box_with_its_edges_inside_is_ours_on_numbers_of_float32():
    for width in (1.0, 0.5, 2.0):
        found = probe_surrogate(closed_box(width)).surrogate
        edge = torch.tensor(width / 2)
        u = torch.stack([torch.nextafter(edge, edge - 1), edge, edge * 1.000001, -edge])
        assert torch.allclose(found.derivative(u), closed_box(width)(u), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("slope", "reason"),
    [
        (lambda u: 25 * torch.exp(-(u - 1).abs()), "none of ours"),
        (lambda u: (u > 0).to(u.dtype), "none of ours"),
        (lambda u: published_fast_sigmoid(u) * (u > -0.5), "none of ours"),
        (lambda u: 1 / u, "not finite"),
        (torch.zeros_like, "no gradient"),
        (torch.rand_like, "noise"),
        (lambda u: u.missing, "fails: AttributeError"),
    ],
)
def test_surrogate_is_refused(slope, reason):
    fit = probe_surrogate(slope)
    assert fit.surrogate is None
    assert reason in fit.reason
    assert fit.residual > 1e-3


def test_slope_of_what_is_no_step_has_no_fire():
    assert slope_of(torch.sigmoid).fire == ""
    assert probe_surrogate(slope_of(lambda u: (u > 0).to(u.dtype))).reason == "its spikes have no gradient"


# ---- libraries


def test_spikingjelly():
    rooms = ("functional", "neuron", "surrogate")
    functional, theirs, surrogate = (pytest.importorskip(f"spikingjelly.activation_based.{room}") for room in rooms)

    def run(module: torch.nn.Module) -> Run:
        def multi_step(x: Tensor) -> Tensor:
            functional.reset_net(module)
            return torch.stack([module(step) for step in x])

        return multi_step

    lif = theirs.LIFNode(tau=2.3, v_reset=None, detach_reset=True, surrogate_function=surrogate.Erf())
    assert without_none(probe_neuron(run(lif)).arguments) == without_none(
        expected(tau=2.3, v_reset=None, detach_reset=True, surrogate=Surrogate("erf", 2.0), **DIVIDED)
    )
    traced = theirs.OTTTLIFNode()  # returns spikes and traces
    spikes = in_loop(lambda x, _: (traced(x)[0], None))

    def forgetting(x: Tensor) -> Tensor:
        functional.reset_net(traced)
        return spikes(x)

    assert "back-propagation" in probe_neuron(forgetting).reason


def test_snntorch():
    snntorch = pytest.importorskip("snntorch")
    surrogate = pytest.importorskip("snntorch.surrogate")
    single = torch.tensor(0.9).item()

    def run(**arguments: Any) -> Run:
        return in_loop(snntorch.Leaky(beta=0.9, **arguments), torch.zeros_like)

    zero = probe_neuron(run(reset_mechanism="zero", spike_grad=surrogate.sigmoid(25)))
    assert without_none(zero.arguments) == without_none(
        expected(decay=single, fire=">", detach_reset=True, surrogate=Surrogate("sigmoid", 25.0), **FULL)
    )
    assert zero.exact
    subtract = probe_neuron(run(spike_grad=surrogate.fast_sigmoid(25)))
    assert subtract.arguments["v_subtract"] == pytest.approx(1 / single)
    assert subtract.arguments["surrogate"] == Surrogate("fast_sigmoid", 25.0)
    assert subtract.differing == 0
    assert "neither a constant nor" in probe_neuron(run(reset_delay=False)).reason
    assert "other channels" in probe_neuron(run(inhibition=True)).reason


def test_norse():
    norse = pytest.importorskip("norse.torch")
    parameters = pytest.importorskip("norse.torch.functional.lif_box").LIFBoxParameters
    rate = (torch.tensor(0.002) * torch.tensor(200.0)).item()
    fit = probe_neuron(in_loop(norse.LIFBoxCell(parameters(tau_mem_inv=torch.as_tensor(200.0)), dt=0.002)))
    assert fit.arguments["rate"] == pytest.approx(rate, rel=1e-6)
    assert fit.arguments["surrogate"] == Surrogate("super_spike", 1.0)
    assert fit.arguments["fire"] == ">"
    assert fit.exact
    assert "two states" in probe_neuron(in_loop(norse.LIFCell())).reason
