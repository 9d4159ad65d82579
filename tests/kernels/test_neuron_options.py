"""What neurons of other libraries have beside ours, on every backend: how they fire, what their resets and leaks do,
thresholds of their own, potentials of all steps."""

import math

import pytest
import torch

from sca_kernels import Surrogate, nn
from sca_kernels import functional as F
from sca_kernels.testing import activation, eager_neuron, relative_l2

SHAPE = (6, 3, 5, 4, 3)
LEAKS = {
    "if": {"neuron": "if"},
    "tau": {"neuron": "lif", "tau": 3.0},
    "rate": {"neuron": "lif", "rate": 0.3},
    "rate, full input": {"neuron": "lif", "rate": 0.3, "decay_input": False},
    "decay": {"neuron": "lif", "decay": 0.9, "decay_input": False},
    "learned": {"neuron": "plif"},
}
RESETS = {
    "to zero": {"v_reset": 0.0},
    "apart from rest": {"v_reset": -0.3, "v_rest": 0.1},
    "soft": {"v_reset": None},
    "soft by an amount": {"v_reset": None, "v_subtract": 0.7},
    "soft, rest": {"v_reset": None, "v_rest": -0.2},
}
SOFT_SIGN = Surrogate("soft_sign", 2.0, scale=0.7)


def arguments_of(leak, reset, **more):
    return {"surrogate": SOFT_SIGN, **LEAKS[leak], **RESETS[reset], **more}


USUAL = {
    "neuron": "lif",
    "tau": 2.0,
    "v_threshold": 1.0,
    "v_reset": 0.0,
    "decay_input": True,
    "detach_reset": False,
    "surrogate": "atan",
    "alpha": None,
    "fire": ">=",
    "v_subtract": None,
    "v_rest": None,
    "rate": None,
    "decay": None,
}


def config_of(arguments):
    return F.check_neuron(*({**USUAL, **arguments}[name] for name in USUAL))


def eager(x, arguments, w, threshold):
    rate = None if w is None else w.sigmoid()
    return eager_neuron(x, config_of(arguments), rate=rate, threshold=threshold)


def compare(target, arguments, threshold=None, shape=SHAPE, channels_last=False, weights=(1, 1, 1)):
    """Spikes, last potential and those of all steps against the eager float32 equations bit for bit, gradients against
    float64 autograd, which sees the same spikes."""
    backend, device = target
    x = activation(shape, channels_last=channels_last)
    w = torch.randn(shape[2]) if arguments["neuron"] == "plif" else None
    given = [z for z in (x, w, threshold) if z is not None]
    ours = [z.detach().clone().to(device).requires_grad_() for z in given]
    truth = [z.detach().double().requires_grad_() for z in given]

    def unpacked(tensors):
        tensors = iter(tensors)
        return [next(tensors) if z is not None else None for z in (x, w, threshold)]

    x_, w_, threshold_ = unpacked(ours)
    more = {} if threshold is None else {"v_threshold": threshold_}
    out = F.neuron(x_, w=w_, **{**arguments, **more}, return_v_seq=True, return_h_seq=True, backend=backend)
    spikes, v, h = eager(x, arguments, w, threshold)
    for name, z in (("spikes", spikes), ("v", v), ("h_seq", h)):
        assert torch.equal(getattr(out, name).detach().cpu(), z), name
    assert torch.equal(out.v_seq[-1], out.v)
    assert torch.equal(out.spike_count.cpu(), spikes.sum((0, 1, 3, 4)).long())
    x_, w_, threshold_ = unpacked(truth)
    true_spikes, true_v, true_h = eager(x_, arguments, w_, threshold_)
    assert torch.equal(true_spikes.detach().float(), spikes)

    along = [torch.randn(z.shape) * weight for z, weight in zip((spikes, v, h), weights, strict=True)]
    pairs = list(zip((out.spikes, out.v_seq[-1], out.h_seq), (true_spikes, true_v, true_h), along, strict=True))
    gradients = torch.autograd.grad(sum((z * a.to(device)).sum() for z, _, a in pairs), ours)
    expected = torch.autograd.grad(sum((z * a).sum() for _, z, a in pairs), truth)
    for mine, theirs in zip(gradients, expected, strict=True):
        assert relative_l2(mine, theirs) <= 2e-6


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("detach", [False, True], ids=["attached", "detached"])
def test_every_leak_and_reset_with_either_way_to_fire(target, leak, reset, detach):
    for fire in (">=", ">"):
        compare(target, arguments_of(leak, reset, fire=fire, detach_reset=detach, v_threshold=0.9))


@pytest.mark.parametrize("leak", ["if", "decay", "learned"])
@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("fire", [">=", ">"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_thresholds_per_channel_are_learned(target, leak, reset, fire, channels_last):
    threshold = torch.linspace(0.5, 1.5, SHAPE[2])
    compare(target, arguments_of(leak, reset, fire=fire), threshold, channels_last=channels_last)


def test_one_threshold_is_learned_for_a_layer(target):
    backend, device = target
    threshold = torch.tensor(0.8, device=device, requires_grad=True)
    x = activation(SHAPE).to(device)
    F.lif(x, v_threshold=threshold, backend=backend).spikes.sum().backward()
    each = torch.full((SHAPE[2],), 0.8, device=device, requires_grad=True)
    F.lif(x, v_threshold=each, backend=backend).spikes.sum().backward()
    assert threshold.grad.shape == ()
    assert relative_l2(threshold.grad, each.grad.sum()) <= 1e-6


@pytest.mark.parametrize("steps", [1, 4, 9, 33])
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_potentials_of_long_sequences(target, steps, channels_last):
    arguments = arguments_of("tau", "to zero")
    compare(target, arguments, shape=(steps, 2, 5, 3, 3), channels_last=channels_last)
    compare(target, arguments, shape=(steps, 2, 5, 3, 3), channels_last=channels_last, weights=(0, 0, 1))


def test_the_next_number_above_the_threshold_is_the_least_that_fires(target):
    backend, device = target
    x = torch.tensor([1.0, 1.0 - 2**-24, 1.0 + 2**-23]).view(1, 1, 3).to(device)
    assert F.if_neuron(x, fire=">", backend=backend).spikes.flatten().tolist() == [0, 0, 1]
    each = torch.ones(3, device=device)
    assert F.if_neuron(x, fire=">", v_threshold=each, backend=backend).spikes.flatten().tolist() == [0, 0, 1]


@pytest.mark.parametrize("surrogate", ["atan", "leaky_k_relu", "q_pseudo_spike"])
@pytest.mark.parametrize("reset", RESETS)
def test_a_readout_never_fires_and_integrates(target, surrogate, reset):
    backend, device = target
    x = activation(SHAPE).to(device).requires_grad_()
    never = {**RESETS[reset], "decay": 0.9, "decay_input": False, "surrogate": surrogate, "v_threshold": math.inf}
    never.pop("v_subtract", None)
    out = F.lif(x, **never, return_v_seq=True, backend=backend)
    assert not out.spikes.any()
    truth = x.detach().double().requires_grad_()
    rest = RESETS[reset].get("v_rest", RESETS[reset]["v_reset"] or 0.0)
    v, potentials = torch.full_like(truth[0], rest), []
    for x_t in truth:
        v = (v - rest) * 0.9 + rest + x_t
        potentials.append(v)
    torch.testing.assert_close(out.v_seq.double().cpu(), torch.stack(potentials).cpu(), atol=1e-5, rtol=1e-5)
    weights = torch.randn(SHAPE)
    (out.v_seq * weights.to(device)).sum().backward(retain_graph=True)
    (torch.stack(potentials) * weights.to(device)).sum().backward()
    assert relative_l2(x.grad, truth.grad) <= 1e-6
    assert not torch.autograd.grad(out.spikes.sum(), x)[0].any()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("reset", RESETS)
def test_behind_batch_norm_it_is_the_neuron_behind_its_affine_map(target, reset, training):
    backend, device = target
    options = {**RESETS[reset], "fire": ">", "rate": 0.3, "surrogate": SOFT_SIGN, "backend": backend}
    threshold = torch.linspace(0.5, 1.5, SHAPE[2], device=device, requires_grad=True)
    x = activation(SHAPE).to(device).requires_grad_()
    weight, bias = (torch.rand(SHAPE[2], device=device, requires_grad=True) for _ in range(2))
    statistics = torch.zeros(SHAPE[2], device=device), torch.ones(SHAPE[2], device=device)
    norm = x, weight, bias, *statistics, training
    wanted = {"return_v_seq": True, "return_h_seq": True}
    out = F.batch_norm_neuron(*norm, v_threshold=threshold, **options, **wanted)
    truth = [z.detach().double().requires_grad_() for z in (x, weight, bias, threshold)]
    y = torch.nn.functional.batch_norm(
        truth[0].flatten(0, 1), *(z.double() for z in statistics), *truth[1:3], training
    ).view_as(x)
    config = config_of({"neuron": "lif", **{k: v for k, v in options.items() if k != "backend"}})
    spikes, _, h = eager_neuron(y, config, threshold=truth[3])
    assert torch.equal(spikes.float(), out.spikes)
    weights = [torch.randn(SHAPE, device=device) for _ in range(2)]
    ours = (out.spikes * weights[0]).sum() + (out.h_seq * weights[1]).sum()
    expected = (spikes * weights[0]).sum() + (h * weights[1]).sum()
    gradients = torch.autograd.grad(ours, (x, weight, bias, threshold))
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, truth), strict=True):
        assert relative_l2(mine, theirs) <= 5e-6


def test_vectors_of_one_channel_are_taken_as_they_are(target):
    backend, device = target
    x = torch.randn(5, 7, device=device, requires_grad=True)
    out = F.lif(x, v_init=torch.zeros(7, device=device), return_v_seq=True, backend=backend)
    full = F.lif(x[..., None], return_v_seq=True, backend=backend)
    for name in ("spikes", "v", "v_seq"):
        assert torch.equal(getattr(out, name), getattr(full, name)[..., 0])
    assert out.spike_count.shape == (1,)
    out.spikes.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize("options", [{"decay": 0.8}, {"rate": 0.2}], ids=str)
def test_a_synapse_filters_its_input(target, options):
    backend, device = target
    x = activation(SHAPE).to(device).requires_grad_()
    synapse = nn.Synapse(**options, stateful=True, backend=backend)
    halves = torch.cat([synapse(x[:2]), synapse(x[2:])])
    current, filtered = torch.zeros_like(x[0]), []
    for x_t in x:
        current = (0.8 * current if "decay" in options else current - 0.2 * current) + x_t
        filtered.append(current)
    assert torch.equal(halves, torch.stack(filtered))
    mine, theirs = (torch.autograd.grad(z.square().sum(), x)[0] for z in (halves, torch.stack(filtered)))
    assert relative_l2(mine, theirs) <= 1e-6
    assert synapse(x.detach().bfloat16()[:1]).dtype == torch.bfloat16


def test_potentials_of_a_module_equal_those_it_stores(target):
    backend, device = target
    x = activation(SHAPE).to(device)
    lif = nn.LIF(fire=">", v_reset=None, v_subtract=0.5, store_v_seq=True, backend=backend)
    spikes, h = lif(x), lif.potentials(x)
    assert torch.equal(spikes, (h > 1).to(h.dtype))
    assert torch.equal(lif.v_seq, torch.where(h > 1, h - 0.5, h))
    lif.reset()
    assert lif.v_seq is None


def test_a_masked_channel_is_reset_as_if_it_were_not(target):
    backend, device = target
    x = activation(SHAPE).to(device).requires_grad_()
    mask = torch.arange(SHAPE[2], device=device) != 1
    both = [F.lif(x, channel_mask=m, return_v_seq=True, backend=backend) for m in (mask, None)]
    assert torch.equal(both[0].v_seq, both[1].v_seq)
    gradients = [torch.autograd.grad(out.v_seq.square().sum(), x)[0] for out in both]
    assert torch.equal(*gradients)


# ---- modules


def test_thresholds_of_a_module_are_its_parameters_and_follow_its_group():
    group = nn.ChannelGroup(5)
    learned = torch.nn.Parameter(torch.linspace(0.5, 1.5, 5))
    lif = nn.BatchNormLIF(5, v_threshold=learned, group=group)
    assert dict(lif.named_parameters())["v_threshold"] is learned
    assert "v_threshold" in nn.LIF(v_threshold=torch.ones(5)).state_dict()
    assert "v_threshold" not in nn.LIF(v_threshold=0.5).state_dict()
    group.set_active([0, 3])
    lif(activation((2, 3, 2, 4, 4))).sum().backward()
    assert learned.grad[[0, 3]].all()
    assert not learned.grad[[1, 2, 4]].any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"fire": "=>"}, "fire: expected one of >=, >"),
        ({"v_subtract": 0.5}, "v_subtract: expected None with a hard reset"),
        ({"rate": 0.2, "decay": 0.8}, "rate, decay: expected one of them at most"),
        ({"rate": 1.5}, "rate: expected a number from 0 to 1"),
        ({"decay": 0.9}, "decay_input: expected False with a decay"),
        ({"neuron": "if", "rate": 0.2}, "rate: expected None for neuron 'if'"),
        ({"neuron": "plif", "w": torch.zeros(()), "decay": 0.2}, "decay: expected None for neuron 'plif'"),
        ({"v_rest": math.nan}, "v_rest: expected a finite number"),
        ({"v_threshold": -math.inf}, "v_threshold: expected a finite number"),
        ({"v_threshold": torch.ones(4)}, "v_threshold: expected a floating-point tensor with 1 or 3 elements"),
        ({"surrogate": Surrogate("atan", 2.0, scale=math.inf)}, "scale: expected a finite number"),
    ],
)
def test_bad_options_are_named(arguments, says):
    with pytest.raises((TypeError, ValueError), match=says):
        F.neuron(torch.zeros(2, 2, 3), **arguments)


def test_a_synapse_wants_a_decay_or_a_rate():
    with pytest.raises(ValueError, match="decay: expected a number from 0 to 1, or a rate in its place"):
        nn.Synapse()
