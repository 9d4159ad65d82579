"""Neurons on every backend: forward against the eager equations bit for bit, gradients against float64 autograd."""

import itertools
from functools import partial

import pytest
import torch

from sca_kernels import Surrogate
from sca_kernels import functional as F
from sca_kernels.backends import registry
from sca_kernels.neurons import NEURONS, NeuronConfig
from sca_kernels.surrogates import TABLE, resolve
from sca_kernels.testing import activation, eager_neuron, poisoned_memory, relative_l2

RESETS = {"hard": 0.0, "hard-0.25": 0.25, "soft": None}
SHAPE = (5, 3, 13, 4, 3)


def config_of(
    neuron="lif", tau=2.0, v_threshold=1.0, v_reset=0.0, decay_input=True, detach_reset=False, surrogate="atan"
):
    s = resolve(surrogate)
    return NeuronConfig(neuron, tau, v_threshold, v_reset, decay_input, detach_reset, *s)


def call(config, x, backend, **more):
    """F.neuron with a config's arguments."""
    arguments = {k: getattr(config, k) for k in ("v_threshold", "v_reset", "decay_input", "detach_reset")}
    surrogate = Surrogate(config.surrogate, config.alpha, config.beta)
    rate = {"w": more.pop("w")} if NEURONS[config.neuron].learnable_leak else {"tau": config.tau}
    return F.neuron(x, config.neuron, surrogate=surrogate, backend=backend, **rate, **arguments, **more)


def compare_with_autograd(config, target, x, *, bound=1e-6, **inputs):
    """Spikes and v as the eager float32 equations give them; gradients of all inputs against float64 autograd.

    float64 sees the same spikes: inputs are spread so that no potential is within rounding of the threshold (asserted).
    """
    backend, device = target
    truth_inputs = {k: v.double().requires_grad_() for k, v in {"x": x, **inputs}.items()}
    names = [k for k in truth_inputs if k != "x"]
    ours_inputs = {k: v.clone().to(device).requires_grad_() for k, v in {"x": x, **inputs}.items()}
    weights = torch.randn(x.shape), torch.randn(x.shape[1:])

    spikes, v, _ = eager_neuron(
        truth_inputs["x"], config, **{k if k != "w" else "rate": _rate(k, truth_inputs[k], x) for k in names}
    )
    ((spikes * weights[0]).sum() + (v * weights[1]).sum()).backward()

    out = call(config, ours_inputs["x"], backend, **{k: ours_inputs[k] for k in names})
    assert torch.equal(out.spikes.detach().cpu().double(), spikes.detach())
    ((out.spikes * weights[0].to(device)).sum() + (out.v * weights[1].to(device)).sum()).backward()
    for name, given in ours_inputs.items():
        assert relative_l2(given.grad, truth_inputs[name].grad) <= bound, name


def _rate(name, value, x):
    return value.sigmoid().expand(x.shape[2]) if name == "w" else value


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
@pytest.mark.parametrize("decay", [False, True], ids=["no-decay", "decay"])
@pytest.mark.parametrize("surrogate", TABLE)
def test_gradient_of_every_surrogate_reset_detach_decay_equals_float64_autograd(
    target, surrogate, decay, detach, reset
):
    config = config_of("lif", 2.0, 1.0, RESETS[reset], decay, detach, surrogate)
    compare_with_autograd(config, target, activation(SHAPE), bound=2e-6)


@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("decay", [False, True], ids=["no-decay", "decay"])
def test_gradient_through_prelude_leak_and_initial_state(target, neuron, reset, decay):
    inputs = {
        "scale": torch.rand(13) + 0.5,
        "shift": torch.randn(13) * 0.2,
        "v_init": torch.randn(SHAPE[1:]) * 0.5,
    }
    if NEURONS[neuron].learnable_leak:
        inputs["w"] = torch.randn(13)
    config = config_of(neuron, 4 / 3, 0.9, RESETS[reset], decay)
    compare_with_autograd(config, target, activation(SHAPE), bound=2e-6, **inputs)


def test_learnable_tau_of_a_layer_gets_the_sum_of_its_channels(target):
    compare_with_autograd(config_of("plif"), target, activation(SHAPE), w=torch.tensor(0.3))


TAUS = [
    (name, tau) for name, neuron in NEURONS.items() for tau in (2.0, 3.0, 1.1, 4 / 3)[: 4 if neuron.takes_tau else 1]
]


@pytest.mark.parametrize(("neuron", "tau"), TAUS)
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_float32_spikes_counts_and_potential_are_bit_identical_to_the_eager_equations(
    target, neuron, tau, channels_last
):
    backend, device = target
    x = activation((6, 4, 13, 9, 7), channels_last=channels_last)
    scale, shift = torch.rand(13) + 0.5, torch.randn(13)
    config = config_of(neuron, tau)
    w = torch.randn(13) if NEURONS[neuron].learnable_leak else None
    spikes, v, _ = eager_neuron(x, config, scale=scale, shift=shift, rate=None if w is None else w.sigmoid())
    leak = {} if w is None else {"w": w.to(device)}
    out = call(config, x.to(device), backend, scale=scale.to(device), shift=shift.to(device), **leak)
    assert torch.equal(out.spikes.cpu(), spikes)
    assert torch.equal(out.v.cpu(), v)
    assert torch.equal(out.spike_count.cpu(), spikes.sum((0, 1, 3, 4)).long())
    assert out.spikes.stride() == x.stride()


def test_membrane_l1_is_the_sum_after_reset_and_two_runs_agree_bit_for_bit(target):
    backend, device = target
    x = activation((7, 3, 5, 31)).to(device)
    runs = [F.lif(x, v_reset=0.1, backend=backend).membrane_l1 for _ in range(2)]
    assert torch.equal(*runs)
    v, total = None, torch.zeros(5, dtype=torch.float64)
    for x_t in x:
        out = F.lif(x_t[None], v_reset=0.1, v_init=v, backend=backend)
        v = out.v
        total += (v.double() - 0.1).abs().sum((0, 2)).cpu()
    assert relative_l2(runs[0], total) < 1e-6


@pytest.mark.parametrize("name", TABLE)
@pytest.mark.parametrize("alpha", [1.5, 100.0, 1e6])
def test_gradient_stays_finite_far_from_the_threshold_for_any_slope(target, name, alpha):
    backend, device = target
    x = torch.tensor([-1e4, -30.0, -1.0, 0.999, 1.0, 1.001, 2.0, 30.0, 1e4]).expand(3, 2, 9).clone()
    x = x.to(device).requires_grad_()
    F.if_neuron(x, surrogate=name, alpha=alpha, backend=backend).spikes.sum().backward()
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("name", TABLE)
def test_surrogates_agree_with_their_formula_over_their_whole_range(target, name):
    """One IF step from zero: dL/dx is the surrogate's derivative itself."""
    backend, device = target
    x = torch.linspace(-6, 8, 4001).view(1, 1, 1, -1).to(device).requires_grad_()
    F.if_neuron(x, surrogate=name, backend=backend).spikes.sum().backward()
    u = (x.detach() - 1).double().cpu()
    assert relative_l2(x.grad, resolve(name).derivative(u)) <= 1e-6


def test_h_exactly_at_the_threshold_fires(target):
    backend, device = target
    x = torch.tensor([1.0, 1.0 - 2**-24, 1.0 + 2**-23]).view(1, 1, 3).to(device)
    assert F.if_neuron(x, backend=backend).spikes.flatten().tolist() == [1, 0, 1]


@pytest.mark.parametrize("used", ["spikes", "v", "both", "none"])
def test_gradient_when_only_some_outputs_are_used(target, used):
    backend, device = target
    x = activation((4, 2, 3, 5)).to(device).requires_grad_()
    truth = x.detach().double().cpu().requires_grad_()
    out = F.lif(x, backend=backend)
    spikes, v, _ = eager_neuron(truth, config_of())
    losses = {"spikes": (out.spikes.sum(), spikes.sum()), "v": (out.v.sum(), v.sum())}
    losses["both"] = tuple(a + b for a, b in zip(losses["spikes"], losses["v"], strict=True))
    losses["none"] = (x.sum() * 0 + out.spikes.detach().sum(), truth.sum() * 0)
    ours, expected = losses[used]
    ours.backward()
    expected.backward()
    assert relative_l2(x.grad, truth.grad) <= 1e-6


@pytest.mark.parametrize("detached", [False, True])
def test_two_chained_calls_equal_one_long_call_also_through_the_gradient(target, detached):
    backend, device = target
    x = activation((8, 2, 3, 5)).to(device)
    whole, first, second = (z.clone().requires_grad_() for z in (x, x[:3], x[3:]))
    out = F.lif(whole, backend=backend)
    a = F.lif(first, backend=backend)
    b = F.lif(second, v_init=a.v.detach() if detached else a.v, backend=backend)
    assert torch.equal(torch.cat([a.spikes, b.spikes]), out.spikes)
    assert torch.equal(b.v, out.v)
    weights = torch.randn_like(x)
    (out.spikes * weights).sum().backward()
    ((a.spikes * weights[:3]).sum() + (b.spikes * weights[3:]).sum()).backward()
    same = relative_l2(torch.cat([first.grad, second.grad]), whole.grad) <= 1e-6
    assert same != detached


def strided_gradients(shape, device):
    yield "expanded", torch.randn((), device=device).expand(shape)
    yield "expanded over time", torch.randn(shape[1:], device=device).expand(shape)
    yield "expanded over space", torch.randn(*shape[:3], 1, 1, device=device).expand(shape)
    yield "channels_last", activation(shape, channels_last=True, device=device)
    yield "sliced", torch.randn(*shape[:4], 2 * shape[4], device=device)[..., ::2]
    yield "permuted", torch.randn(shape[::-1], device=device).permute(4, 3, 2, 1, 0)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_upstream_gradients_of_any_strides(target, channels_last):
    backend, device = target
    x = activation((4, 2, 6, 5, 7), channels_last=channels_last, device=device).requires_grad_()
    for name, grad in strided_gradients(x.shape, device):
        out = F.lif(x, backend=backend)
        (strided,) = torch.autograd.grad(out.spikes, x, grad, retain_graph=True)
        (dense,) = torch.autograd.grad(out.spikes, x, grad.contiguous())
        assert torch.equal(strided, dense), name


def layouts(device):
    base = activation((6, 4, 8, 6, 10), device=device)
    yield "channels_last", activation(base.shape, channels_last=True, device=device)
    yield "sliced T", base[1::2]
    yield "sliced N", base[:, 1:3]
    yield "sliced C", base[:, :, 2:7]
    yield "sliced C, channels_last", activation(base.shape, channels_last=True, device=device)[:, :, 1:6]
    yield "sliced W", base[..., 1:9]
    yield "permuted", base.permute(1, 0, 2, 4, 3)
    yield "batch-first", base.transpose(0, 1)
    yield "expanded T", base[:1].expand(5, *base.shape[1:])
    yield "expanded N", base[:, :1].expand(6, 3, 8, 6, 10)
    yield "expanded space", base[..., :1].expand(base.shape)


def test_inputs_of_any_layout(target):
    backend, device = target
    for name, x in layouts(device):
        dense = x.contiguous()
        out, expected = F.lif(x, backend=backend), F.lif(dense, backend="reference")
        assert torch.equal(out.spikes, expected.spikes), name
        assert torch.equal(out.spike_count, expected.spike_count), name
        grads = []
        for z in (x, dense):
            leaf = z.detach().requires_grad_()
            F.lif(leaf, backend=backend).spikes.square().sum().backward()
            grads.append(leaf.grad)
        assert relative_l2(*grads) <= 1e-6, name


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 1), (1, 1, 1, 1, 1), (3, 1, 13), (2, 3, 1, 7), (63, 2, 3, 5), (64, 1, 2, 3), (65, 2, 3), (129, 1, 13, 3)]
    + [(4, 2, 3, s) for s in (15, 16, 17, 63, 64, 65, 255, 257)]
    + [(4, 3, c, 2, 2) for c in (1, 7, 13, 64, 130)],
    ids=str,
)
def test_odd_sizes_fully_written_and_right(target, shape, channels_last):
    backend, device = target
    x = activation(shape, channels_last=channels_last).to(device)
    weights = torch.randn_like(x)
    results = []
    for name in (backend, "reference"):
        leaf = x.clone().requires_grad_()
        with poisoned_memory():
            out = F.lif(leaf, tau=3.0, v_reset=None, backend=name)
            (out.spikes * weights).sum().backward()
        results.append((out, leaf.grad))
    (out, grad), (expected, expected_grad) = results
    assert torch.equal(out.spikes, expected.spikes)
    assert torch.equal(out.v, expected.v)
    assert torch.equal(out.spike_count, expected.spike_count)
    assert relative_l2(out.membrane_l1, expected.membrane_l1) <= 1e-6
    assert relative_l2(grad, expected_grad) <= 1e-6


def test_empty_batch(target):
    backend, device = target
    x = torch.empty(4, 0, 3, 5, 5, device=device, requires_grad=True)
    out = F.lif(x, backend=backend)
    out.spikes.sum().backward()
    assert out.spikes.shape == x.shape
    assert x.grad.shape == x.shape
    assert out.spike_count.tolist() == [0, 0, 0]
    assert out.membrane_l1.tolist() == [0, 0, 0]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_one_step_presented_many_times_equals_its_copies(target, channels_last):
    backend, device = target
    x = activation((1, 2, 6, 5, 7), channels_last=channels_last, device=device).requires_grad_()
    copies = x.detach().expand(4, -1, -1, -1, -1).clone().requires_grad_()
    out, expected = F.lif(x, time_steps=4, backend=backend), F.lif(copies, backend=backend)
    assert torch.equal(out.spikes, expected.spikes)
    assert torch.equal(out.spike_count, expected.spike_count)
    weights = torch.randn_like(expected.spikes)
    (out.spikes * weights).sum().backward()
    (expected.spikes * weights).sum().backward()
    assert x.grad.shape == x.shape
    assert relative_l2(x.grad, copies.grad.sum(0, keepdim=True)) <= 1e-6


def test_channel_mask_silences_the_output_and_passes_the_gradient_straight_through(target):
    backend, device = target
    x = activation((4, 2, 3, 5), device=device)
    mask = torch.tensor([True, False, True], device=device)
    results = []
    for m in (mask, None):
        leaf = x.clone().requires_grad_()
        out = F.lif(leaf, channel_mask=m, backend=backend)
        out.spikes.sum().backward()
        results.append((out, leaf.grad))
    (masked, g_masked), (plain, g_plain) = results
    assert masked.spikes[:, :, 1].abs().sum() == 0
    assert torch.equal(masked.spikes[:, :, ::2], plain.spikes[:, :, ::2])
    assert torch.equal(g_masked, g_plain)
    assert torch.equal(masked.spike_count, plain.spike_count)


def test_second_order_gradient_is_a_clear_error(target):
    backend, device = target
    x = activation((2, 1, 3), device=device).requires_grad_()
    (grad,) = torch.autograd.grad(F.lif(x, backend=backend).spikes.sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients"):
        grad.sum().backward()


def test_no_grad_runs_with_every_surrogate_and_gives_the_same_spikes(target):
    backend, device = target
    x = activation((4, 2, 3, 5), device=device)
    for name in TABLE:
        trained = F.lif(x.clone().requires_grad_(), surrogate=name, backend=backend).spikes
        with torch.no_grad():
            assert torch.equal(F.lif(x, surrogate=name, backend=backend).spikes, trained)


@pytest.mark.parametrize("name", ["spikes", "v"])
def test_what_comes_back_may_be_changed_in_place(target, name):
    backend, device = target
    x = activation((3, 2, 3, 5), device=device)
    gradients = []
    for in_place in (False, True):
        z = x.clone().requires_grad_()
        output = getattr(F.lif(z, backend=backend), name)
        (output.mul_(3.0) if in_place else output * 3.0).square().sum().backward()
        gradients.append(z.grad)
    assert torch.equal(*gradients)


def test_nothing_but_x_is_saved_for_the_backward(target):
    backend, device = target
    saved = []
    x = activation((8, 2, 3, 5), device=device).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(lambda z: saved.append(z) or z, lambda z: z):
        F.lif(x, backend=backend)
    assert {z.data_ptr() for z in saved} == {x.data_ptr()}


# --- dtypes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_half_precision_in_float32_state(target, dtype, channels_last):
    """Spikes are those of the float32 equations on the rounded input: the state loses nothing."""
    backend, device = target
    ok, reason = registry()[backend].supports(torch.device(device), dtype)
    if not ok:
        pytest.skip(f"backend {backend}: {reason}")
    x = activation((6, 2, 13, 5, 3), dtype, channels_last, device).requires_grad_()
    wide = x.detach().float().requires_grad_()
    out, expected = F.lif(x, tau=3.0, backend=backend), F.lif(wide, tau=3.0, backend="reference")
    assert out.spikes.dtype == dtype
    assert out.v.dtype == torch.float32
    assert torch.equal(out.spikes.float(), expected.spikes)
    assert torch.equal(out.v, expected.v)
    weights = torch.randn_like(out.spikes)
    (out.spikes * weights).sum().backward()
    (expected.spikes * weights.float()).sum().backward()
    assert x.grad.dtype == dtype
    assert relative_l2(x.grad, wide.grad) <= 2e-2


def test_bfloat16_flip_rate_against_float32_up_to_512_steps(target, capsys):
    """The input's rounding alone flips spikes: a bounded share, which does not grow with T."""
    backend, device = target
    x = activation((512, 2, 4, 16), device=device)
    exact = F.lif(x, backend=backend).spikes
    rounded = F.lif(x.bfloat16(), backend=backend).spikes.float()
    rates = [(exact[t] != rounded[t]).float().mean().item() for t in (slice(0, 64), slice(448, 512))]
    with capsys.disabled():
        print(f" [{backend}: bf16 flip rate {rates[0]:.2%} in steps 1-64, {rates[1]:.2%} in steps 449-512]", end="")  # noqa: T201
    assert max(rates) < 0.01


def test_float64_runs_on_the_reference_and_says_so(caplog):
    x = activation((4, 2, 3, 5), torch.float64).requires_grad_()
    out = F.lif(x)
    out.spikes.sum().backward()
    assert out.v.dtype == torch.float64
    assert x.grad.dtype == torch.float64


def test_initial_state_of_another_dtype(target):
    backend, device = target
    x = activation((4, 2, 3, 5), device=device)
    v = torch.rand(2, 3, 5, device=device).bfloat16().requires_grad_()
    out = F.lif(x, v_init=v, backend=backend)
    assert torch.equal(out.spikes, F.lif(x, v_init=v.float(), backend=backend).spikes)
    out.spikes.sum().backward()
    assert v.grad.dtype == torch.bfloat16


def test_autocast_keeps_the_fused_path_and_the_learnable_tau_complete(target):
    backend, device = target
    counter = registry()[backend].calls
    w = torch.tensor(0.2, device=device, requires_grad=True)
    conv = torch.nn.Conv2d(3, 4, 3).to(device)
    x = torch.rand(6, 3, 8, 8, device=device)
    before = counter["neuron_forward"], counter["neuron_backward"]
    with torch.autocast(device, dtype=torch.bfloat16):
        current = conv(x).unflatten(0, (3, 2))
        out = F.plif(current * 3, w, backend=backend)
    assert current.dtype == out.spikes.dtype == torch.bfloat16
    out.spikes.float().mean().backward()
    assert (counter["neuron_forward"], counter["neuron_backward"]) == (before[0] + 1, before[1] + 1)
    assert w.grad.abs() > 0
    assert conv.weight.grad.abs().sum() > 0


def test_grad_scaler_with_an_injected_inf_skips_that_step(target):
    backend, device = target
    weight = torch.nn.Parameter(torch.ones(3, device=device))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    scaler = torch.amp.GradScaler(device, init_scale=4.0)
    for poison, moves in ((float("inf"), False), (1.0, True)):
        before = weight.detach().clone()
        optimizer.zero_grad()
        x = torch.full((2, 1, 3), 0.8, device=device)
        loss = (F.lif(x, scale=weight, backend=backend).spikes * poison).sum()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (not torch.equal(weight, before)) == moves


# --- errors ----------------------------------------------------------------------------------------------------------

X = torch.zeros(2, 3, 4, 5)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: F.lif([1.0]), TypeError, "x: expected a tensor"),
        (lambda: F.lif(X[0, 0, 0]), ValueError, "x: expected at least three dimensions"),
        (lambda: F.lif(X.long()), TypeError, "x: expected a floating-point"),
        (lambda: F.lif(X[:0]), ValueError, "x: expected at least one time step"),
        (lambda: F.lif(X, tau=1.0), ValueError, "tau: expected a time constant > 1"),
        (lambda: F.lif(X, tau="2"), TypeError, "tau: expected a number"),
        (lambda: F.lif(X, v_threshold=float("nan")), ValueError, "v_threshold: expected a finite"),
        (lambda: F.lif(X, detach_reset=1), TypeError, "detach_reset: expected a bool"),
        (lambda: F.neuron(X, "izhikevich"), ValueError, "neuron: expected one of"),
        (lambda: F.lif(X, v_init=torch.zeros(4)), ValueError, "v_init: expected"),
        (lambda: F.lif(X, scale=torch.zeros(5)), ValueError, r"scale: expected a floating-point tensor \[4\]"),
        (lambda: F.lif(X, channel_mask=torch.ones(4)), ValueError, "channel_mask: expected a bool"),
        (lambda: F.lif(X, time_steps=3), ValueError, "time_steps: expected 2"),
        (lambda: F.plif(X, torch.zeros(3)), ValueError, "w: expected a floating-point tensor with 1 or 4"),
        (lambda: F.lif(X, w=torch.zeros(4)), ValueError, "w: expected None"),
        (lambda: F.lif(X, backend="tpu"), ValueError, "backend: expected one of"),
        (lambda: F.lif(X.double(), backend="cpu"), ValueError, "Others that can: .*reference"),
        (lambda: F.lif(X, scale=torch.zeros(4, device="meta")), ValueError, "scale: expected a tensor on cpu"),
    ],
)
def test_bad_arguments_are_named(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_counts_above_float32_precision_are_exact(target):
    """2^24 + 1 is where a float32 counter stops."""
    backend, device = target
    if (backend, device) == ("triton", "cpu"):
        pytest.skip("so many elements take an interpreter minutes: test_triton_interpreted.py counts further")
    x = torch.full((1, 1, 1, 1), 2.0, device=device).expand(1, 1, 1, 2**24 + 3).contiguous()
    assert F.if_neuron(x, backend=backend).spike_count.item() == 2**24 + 3


@pytest.mark.parametrize(
    "combination",
    list(itertools.product(NEURONS, RESETS, [False, True])),
    ids=lambda c: "-".join(map(str, c)),
)
def test_eval_of_the_same_input_gives_the_same_spikes(target, combination):
    """The path without autograd and the path with it are one."""
    backend, device = target
    neuron, reset, decay = combination
    more = {"w": torch.tensor(0.4, device=device)} if NEURONS[neuron].learnable_leak else {}
    config = config_of(neuron, 2.0, 1.0, RESETS[reset], decay)
    x = activation((4, 2, 5, 9), device=device)
    with torch.no_grad():
        evaluated = call(config, x, backend, **more)
    trained = call(config, x.requires_grad_(), backend, **more)
    assert torch.equal(evaluated.spikes, trained.spikes)
    assert torch.equal(evaluated.membrane_l1, trained.membrane_l1)


@pytest.mark.parametrize("fused", [False, True], ids=["neuron", "batch_norm"])
def test_nan_in_the_input_is_an_error_that_names_its_channels(target, fused):
    backend, device = target
    if device == "cuda":
        pytest.skip("a CUDA device is not waited for")
    x = activation((3, 2, 5, 2, 2))
    x[1, 1, 3] = x[2, 0, 1, 0, 0] = float("nan")
    call = partial(F.batch_norm_lif, x, None, None, None, None, True) if fused else partial(F.lif, x)
    with pytest.raises(ValueError, match=r"x: expected numbers, got NaN .* in channels 1, 3;"):
        call(backend=backend)
