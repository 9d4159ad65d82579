"""Batch norm + neuron: parity with torch.nn.BatchNorm2d in front of the neuron, in every mode."""

import copy

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.neurons import NeuronConfig
from sca_kernels.testing import activation, eager_neuron, poisoned_memory, relative_l2

SHAPE = (4, 3, 13, 5, 7)
LIF = NeuronConfig("lif", 2.0, 1.0, 0.0, True, False, "atan", 2.0, 0.0)


def twin(**options):
    """torch.nn.BatchNorm2d and nn.BatchNormLIF with the same, uneven, parameters."""
    norm = torch.nn.BatchNorm2d(13, **options)
    if norm.affine:
        torch.nn.init.uniform_(norm.weight, 0.5, 2.0)
        torch.nn.init.uniform_(norm.bias, -0.5, 1.0)
    if norm.track_running_stats:
        torch.nn.init.uniform_(norm.running_mean, -0.3, 0.3)
        torch.nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norm


def fused_from(norm, backend, **options):
    fused = nn.BatchNormLIF(
        13, norm.eps, norm.momentum, norm.affine, norm.track_running_stats, backend=backend, **options
    )
    fused.load_state_dict(norm.state_dict())
    return fused.to(next(iter([*norm.parameters(), *norm.buffers()]), torch.empty(0)).device)


def two_step(norm, x):
    """float64 truth: torch's batch norm, then the eager neuron."""
    return eager_neuron(norm(x.flatten(0, 1)).view_as(x), LIF)[0]


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}, {"eps": 1e-2, "momentum": 0.7}],
    ids=["default", "cumulative", "no-affine", "no-stats", "eps-momentum"],
)
@pytest.mark.parametrize("mode", ["train", "eval", "bn.eval() inside train"])
def test_parity_with_batch_norm_2d(target, mode, options, channels_last):
    backend, device = target
    norm = twin(**options)
    fused = fused_from(norm, backend).to(device)
    norm.double()
    norm.train(mode == "train")
    fused.train(mode == "train")
    for step in range(3):
        x = activation(SHAPE, channels_last=channels_last) + step
        ours, truth = x.clone().to(device).requires_grad_(), x.double().requires_grad_()
        weights = torch.randn(SHAPE)
        spikes, expected = fused(ours), two_step(norm, truth)
        assert torch.equal(spikes.detach().cpu().double(), expected.detach())
        (spikes * weights.to(device)).sum().backward()
        (expected * weights).sum().backward()
        assert relative_l2(ours.grad, truth.grad) <= 2e-6
    for (name, p), q in zip(fused.named_parameters(), norm.parameters(), strict=True):
        assert relative_l2(p.grad, q.grad) <= 2e-6, name
    for (name, p), q in zip(fused.named_buffers(), norm.buffers(), strict=True):
        assert relative_l2(p, q) <= 1e-6, name


def test_state_dict_carries_over_both_ways():
    norm = twin()
    assert list(nn.BatchNormLIF(13).state_dict()) == list(norm.state_dict())
    norm.load_state_dict(nn.BatchNormLIF(13).state_dict())


def test_one_running_statistics_update_per_call(target):
    backend, device = target
    fused = nn.BatchNormLIF(3, momentum=0.5, backend=backend).to(device)
    fused(activation((4, 2, 3, 5), device=device) * 0 + 2.0)
    assert fused.num_batches_tracked.item() == 1
    torch.testing.assert_close(fused.running_mean.cpu(), torch.full((3,), 1.0))


@pytest.mark.parametrize("shape", [(1, 2, 3), (2, 1, 3), (1, 1, 3, 2), (3, 1, 3, 1, 1)], ids=str)
def test_running_variance_is_unbiased_down_to_two_values(target, shape):
    backend, device = target
    norm = torch.nn.BatchNorm1d(3, momentum=1.0)
    fused = nn.BatchNormLIF(3, momentum=1.0, backend=backend).to(device)
    x = activation(shape)
    norm(x.transpose(0, 2).reshape(3, -1).T)
    fused(x.to(device))
    torch.testing.assert_close(fused.running_var.cpu(), norm.running_var)


def test_zero_variance_is_finite_and_silent_about_it(target):
    backend, device = target
    fused = nn.BatchNormLIF(3, backend=backend).to(device)
    x = torch.full((4, 2, 3, 5), 7.0, device=device).requires_grad_()
    spikes = fused(x)
    spikes.sum().backward()
    assert spikes.sum() == 0
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(fused.weight.grad).all()


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 1, 3, 1, 1)], ids=str)
def test_one_value_per_channel_raises_as_torch_does(target, shape):
    backend, device = target
    fused = nn.BatchNormLIF(3, backend=backend).to(device)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        fused(torch.zeros(shape, device=device))
    assert fused.num_batches_tracked.item() == 0
    fused.eval()(torch.zeros(shape, device=device))


def test_a_step_presented_many_times_counts_many_times(target):
    """Direct encoding: statistics, gradients and the unbiased variance are those of the T copies."""
    backend, device = target
    x = activation((1, 3, 13, 5, 7)).to(device).requires_grad_()
    copies = x.detach().expand(4, -1, -1, -1, -1).clone().requires_grad_()
    once, often = (fused_from(twin(), backend).to(device) for _ in range(2))
    often.load_state_dict(once.state_dict())
    weights = torch.randn(4, 3, 13, 5, 7, device=device)
    for module, z, steps in ((once, x, 4), (often, copies, None)):
        (module(z, steps) * weights).sum().backward()
    assert relative_l2(x.grad, copies.grad.sum(0, keepdim=True)) <= 1e-5
    assert relative_l2(once.weight.grad, often.weight.grad) <= 1e-5
    assert relative_l2(once.running_var, often.running_var) <= 1e-6


def test_large_mean_does_not_cancel(target):
    backend, device = target
    x = activation((4, 3, 13, 9)) + 1000.0
    truth_norm = torch.nn.BatchNorm1d(13).double()
    ours, truth = x.clone().to(device).requires_grad_(), x.double().requires_grad_()
    fused = nn.BatchNormLIF(13, backend=backend).to(device)
    weights = torch.randn(x.shape)
    (fused(ours) * weights.to(device)).sum().backward()
    (eager_neuron(truth_norm(truth.flatten(0, 1)).view_as(truth), LIF)[0] * weights).sum().backward()
    # x itself is rounded to 2^-14 here; its gradient keeps that many digits, and no fewer.
    assert relative_l2(ours.grad, truth.grad) <= 1e-3
    assert relative_l2(fused.weight.grad, truth_norm.weight.grad) <= 1e-3


@pytest.mark.parametrize("neuron", ["BatchNormIF", "BatchNormLIF", "BatchNormPLIF"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_neuron_behind_batch_norm_agrees_with_the_reference(target, neuron, per_channel):
    backend, device = target
    options = {"per_channel": per_channel} if neuron == "BatchNormPLIF" else {}
    module = getattr(nn, neuron)(13, v_reset=None, decay_input=False, detach_reset=True, surrogate="sigmoid", **options)
    x = activation(SHAPE)
    weights = torch.randn(SHAPE)
    results = []
    for name, where in ((backend, device), ("reference", "cpu")):
        m = copy.deepcopy(module).to(where)
        m.arguments["backend"] = name
        leaf = x.to(where).requires_grad_()
        with poisoned_memory():
            out = m(leaf)
            (out * weights.to(where)).sum().backward()
        results.append((out, leaf.grad, *(p.grad for p in m.parameters())))
    for ours, expected in zip(*results, strict=True):
        assert relative_l2(ours, expected) <= 2e-6


def test_channel_mask_is_straight_through_for_gamma_too(target):
    backend, device = target
    x = activation(SHAPE, device=device)
    mask = torch.arange(13, device=device) % 2 == 0
    grads = []
    for m in (mask, None):
        weight, bias = (torch.full((13,), v, device=device, requires_grad=True) for v in (1.0, 0.3))
        out = F.batch_norm_lif(x, weight, bias, None, None, True, channel_mask=m, backend=backend)
        out.spikes.sum().backward()
        grads.append((weight.grad, bias.grad))
        if m is not None:
            assert out.spikes[:, :, 1::2].abs().sum() == 0
    assert torch.equal(grads[0][0], grads[1][0])
    assert torch.equal(grads[0][1], grads[1][1])


def test_bfloat16_keeps_statistics_in_float32(target):
    backend, device = target
    x = activation(SHAPE, torch.bfloat16, device=device).requires_grad_()
    wide = x.detach().float().requires_grad_()
    narrow_module, wide_module = (nn.BatchNormLIF(13, backend=backend).to(device) for _ in range(2))
    out, expected = narrow_module(x), wide_module(wide)
    assert torch.equal(out.float(), expected)
    out.float().square().sum().backward()
    expected.square().sum().backward()
    assert relative_l2(x.grad, wide.grad) <= 2e-2
    assert torch.equal(narrow_module.running_mean, wide_module.running_mean)


def test_empty_batch_in_eval(target):
    backend, device = target
    fused = nn.BatchNormLIF(3, backend=backend).to(device).eval()
    assert fused(torch.empty(4, 0, 3, 5, 5, device=device)).shape == (4, 0, 3, 5, 5)


def test_empty_batch_in_training_follows_torch(target):
    backend, device = target
    norm, fused = torch.nn.BatchNorm2d(3).to(device), nn.BatchNormLIF(3, backend=backend).to(device)
    x = torch.empty(4, 0, 3, 5, 5, device=device, requires_grad=True)
    norm(x.flatten(0, 1))
    fused(x).sum().backward()
    assert x.grad.shape == x.shape
    torch.testing.assert_close(fused.running_mean, norm.running_mean, equal_nan=True)
    torch.testing.assert_close(fused.running_var, norm.running_var, equal_nan=True)


def test_convolution_with_folded_batch_norm_flips_few_spikes(target):
    """conv-BN folding rounds differently: the spikes of conv(x; folded) and BN(conv(x)) differ rarely."""
    backend, device = target
    conv, norm = torch.nn.Conv2d(8, 13, 3, padding=1, bias=False), twin()
    fused = fused_from(norm, backend).to(device).eval()
    folded = torch.nn.utils.fusion.fuse_conv_bn_eval(conv.eval(), norm.eval()).to(device)
    n = 4 if (backend, device) == ("triton", "cpu") else 16  # interpreted
    frames = (torch.rand(4 * n, 8, 16, 16) < 0.3).float().to(device)
    spikes = fused(conv.to(device)(frames).unflatten(0, (4, n)))
    other = F.lif(folded(frames).unflatten(0, (4, n)), backend=backend).spikes
    assert (spikes != other).float().mean() < 1e-4


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weight": torch.ones(4)}, "weight: expected"),
        ({"running_var": None}, "running_mean, running_var: expected both"),
        ({"eps": 1e-5, "neuron": "gru"}, "neuron: expected one of"),
    ],
)
def test_bad_arguments_are_named(change, says):
    arguments = {"weight": None, "bias": None, "running_mean": torch.zeros(3), "running_var": torch.ones(3)}
    with pytest.raises(ValueError, match=says):
        F.batch_norm_neuron(torch.zeros(2, 2, 3), **{**arguments, "training": True, **change})


def test_module_rejects_a_group_of_another_size():
    with pytest.raises(ValueError, match="num_features: expected the 4 channels"):
        nn.BatchNormLIF(3, group=nn.ChannelGroup(4))


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(
    "options",
    [{}, {"momentum": None}, {"affine": False}, {"track_running_stats": False}],
    ids=["default", "cumulative", "no-affine", "no-stats"],
)
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_batch_norm_alone_is_that_of_torch_over_time_and_samples(training, options, channels_last):
    norm = twin(**options).train(training)
    ours = nn.ChannelBatchNorm2d(13, **options).train(training)
    ours.load_state_dict(norm.state_dict())
    for step in range(3):
        x = activation(SHAPE, channels_last=channels_last) + step
        y = ours(x)
        assert y.stride() == x.stride()
        torch.testing.assert_close(y, norm(x.flatten(0, 1)).view_as(x))
    for p, q in zip(ours.buffers(), norm.buffers(), strict=True):
        torch.testing.assert_close(p, q)


def test_batch_norm_alone_normalises_tracks_and_trains_active_channels_only():
    group = nn.ChannelGroup(13)
    ours = nn.ChannelBatchNorm2d(13, group=group)
    before = copy.deepcopy(ours.state_dict())
    group.set_active([0, 4, 12])
    dense, x = torch.nn.BatchNorm2d(3), activation((4, 3, 3, 5, 7))
    torch.testing.assert_close(ours(x), dense(x.flatten(0, 1)).view_as(x))
    torch.testing.assert_close(ours.running_var[group.active], dense.running_var)
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(ours, name)[group.dormant], before[name][group.dormant])
    ours(x).square().sum().backward()
    assert ours.weight.grad[group.active].all()
    assert not ours.weight.grad[group.dormant].any()


def test_batch_norm_alone_runs_at_full_width_while_probing_and_tracks_nothing():
    group = nn.ChannelGroup(13)
    group.set_active([0, 4])
    ours = nn.ChannelBatchNorm2d(13, group=group)
    before = copy.deepcopy(ours.state_dict())
    x = activation(SHAPE)
    with nn.probing([group]):
        y = ours(x)
    torch.testing.assert_close(y, torch.nn.BatchNorm2d(13)(x.flatten(0, 1)).view_as(x))
    assert all(torch.equal(value, before[name]) for name, value in ours.state_dict().items())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"x": torch.zeros(2, 3)}, "x: expected at least three dimensions"),
        ({"weight": torch.ones(4)}, "weight: expected"),
        ({"running_var": None}, "running_mean, running_var: expected both"),
        ({"running_mean": torch.zeros(2)}, "running_mean: expected"),
    ],
)
def test_batch_norm_alone_names_bad_arguments(change, says):
    arguments = {"x": torch.zeros(2, 2, 3), "weight": None, "bias": None, "training": True}
    with pytest.raises(ValueError, match=says):
        F.batch_norm(**{**arguments, "running_mean": torch.zeros(3), "running_var": torch.ones(3), **change})


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("shape", [(4, 3, 13), (4, 3, 13, 7)], ids=str)
def test_batch_norm_alone_of_vectors_and_signals_is_torchs_of_active_channels(shape, training):
    group = nn.ChannelGroup(13)
    ours = nn.ChannelBatchNorm1d(13, group=group).train(training)
    torchs = torch.nn.BatchNorm1d(13).train(training)
    assert torchs.load_state_dict(ours.state_dict())
    for active in (range(13), [0, 4, 12]):
        group.set_active(active)
        x = activation(shape)
        y = ours(x.index_select(2, group.active))
        torch.testing.assert_close(y, torchs(x.flatten(0, 1)).view_as(x).index_select(2, group.active))
        torch.testing.assert_close(ours.running_var[group.active], torchs.running_var[group.active])
    y.square().sum().backward()
    assert not ours.weight.grad[group.dormant].any()


@pytest.mark.parametrize("shape", [(8, 32, 9), (8, 32, 32, 32, 32), (8, 32)], ids=str)
def test_batch_norm_alone_of_vectors_and_signals_wants_three_or_four_dimensions(shape):
    with pytest.raises(ValueError, match=rf"x: expected .*\[M, C, L\].*{FRAMES}"):
        nn.ChannelBatchNorm1d(32)(torch.randn(shape))
    with pytest.raises(ValueError, match="x: expected 32 channels in dimension 2"):
        nn.ChannelBatchNorm1d(32)(torch.randn(4, 2, 31))


def norms() -> list[torch.nn.Module]:
    return [nn.ChannelBatchNorm2d(4), nn.BatchNormIF(4), nn.BatchNormLIF(4), nn.BatchNormPLIF(4, per_channel=True)]


@pytest.mark.parametrize("norm", norms(), ids=lambda norm: type(norm).__name__)
def test_update_bn_averages_the_statistics_of_batches(norm):
    x = torch.randn(3, 2, 5, 4, 6, 6) * 2 + 1  # three batches
    torch.nn.init.constant_(norm.running_mean, 7.0)
    momentum, state = norm.momentum, set(norm.state_dict())
    torch.optim.swa_utils.update_bn(x, torch.nn.Sequential(norm).eval())
    twin = torch.nn.Sequential(torch.nn.BatchNorm2d(4)).eval()
    torch.optim.swa_utils.update_bn(x.flatten(1, 2), twin)
    torch.testing.assert_close(norm.running_mean, twin[0].running_mean)
    torch.testing.assert_close(norm.running_var, twin[0].running_var)
    assert norm.num_batches_tracked == 3
    assert norm.momentum == momentum
    assert not norm.training
    assert set(norm.state_dict()) == state


def test_update_bn_leaves_the_statistics_of_dormant_channels():
    group = nn.ChannelGroup(4)
    group.set_active([0, 2])
    norm = nn.BatchNormLIF(4, group=group)
    before = torch.nn.init.constant_(norm.running_mean, 7.0).clone()
    torch.optim.swa_utils.update_bn(torch.randn(3, 2, 5, 2, 6, 6), torch.nn.Sequential(norm))
    assert torch.equal(norm.running_mean[[1, 3]], before[[1, 3]])
    assert (norm.running_mean[[0, 2]] != before[[0, 2]]).all()


@pytest.mark.parametrize("norm", norms(), ids=lambda norm: type(norm).__name__)
def test_conversion_to_sync_batch_norm_is_refused_with_what_to_do(norm):
    assert list(norm.named_children()) == []
    model = torch.nn.Sequential(nn.ChannelConv2d(2, 4, 1), norm)
    with pytest.raises(ValueError, match=rf"got {type(norm).__name__}, .* set its process_group instead"):
        torch.nn.SyncBatchNorm.convert_sync_batchnorm(model)
    assert model[1] is norm


def test_state_of_an_old_batch_norm_without_a_batch_count_is_loaded():
    norm = nn.BatchNormLIF(4)
    state = {name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    assert norm.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", [nn.ChannelBatchNorm2d, nn.BatchNormLIF])
def test_cumulative_average_follows_torch(kind, dtype):
    group = nn.ChannelGroup(5)
    group.set_active([0, 2, 3])
    ours, torchs = kind(5, momentum=None, group=group).to(dtype), torch.nn.BatchNorm2d(3, momentum=None).to(dtype)
    for _ in range(3):
        x = torch.randn(4, 2, 3, 5, 6, dtype=dtype)
        ours(x)
        torchs(x.flatten(0, 1))
    for name in ("running_mean", "running_var"):
        tolerance = 1e-6 if dtype == torch.float32 or kind is nn.BatchNormLIF else 1e-14
        torch.testing.assert_close(
            getattr(ours, name)[group.active], getattr(torchs, name), rtol=tolerance, atol=tolerance
        )
    assert ours.num_batches_tracked == 3


@pytest.mark.parametrize("kind", [nn.ChannelBatchNorm2d, nn.BatchNormLIF])
def test_cumulative_average_reads_no_count_on_a_device(kind):
    """On meta tensors, whose values nobody can read, as reading those of a GPU would mean to wait for it."""
    group = nn.ChannelGroup(5)
    group.set_active([0, 2, 3])
    norm = kind(5, momentum=None, group=group).to("meta")
    assert norm(torch.empty(4, 2, 3, 5, 6, device="meta")).shape == (4, 2, 3, 5, 6)


NORMS = [F.batch_norm, F.batch_norm_lif]


def statistics(**changes):
    return {"running_mean": torch.zeros(3), "running_var": torch.ones(3), "training": True} | changes


HOSTILE = {
    "momentum is NaN": {"momentum": float("nan")},
    "momentum is infinite": {"momentum": float("inf")},
    "momentum is a string": {"momentum": "0.1"},
    "momentum is a bool": {"momentum": True},
    "momentum is a vector": {"momentum": torch.ones(3)},
    "eps is negative": {"eps": -1},
    "eps is 0": {"eps": 0.0},
    "eps is NaN": {"eps": float("nan")},
    "training is an int": {"training": 1},
    "running_mean has two rows": {"running_mean": torch.zeros(2, 3)},
    "running_var has two rows": {"running_var": torch.ones(2, 3)},
    "running_var has another length": {"running_var": torch.ones(4)},
    "running_var is of integers": {"running_var": torch.ones(3, dtype=torch.int64)},
    "running_var is sparse": {"running_var": torch.ones(3).to_sparse()},
    "running_var is on another device": {"running_var": torch.ones(3, device="meta")},
    "running_var is one number three times": {"running_var": torch.ones(1).expand(3)},
    "running_var wants a gradient": {"running_var": torch.ones(3, requires_grad=True)},
    "running_var is an array": {"running_var": torch.ones(3).numpy()},
    "process_group is a string": {"process_group": "world"},
    "process_group is not initialised": {"process_group": True},
    "weight has another length": {"weight": torch.ones(4)},
}


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_what_is_off_is_named_before_a_statistic_moves(norm, change):
    arguments = {"weight": None, "bias": None} | statistics() | change
    kept = {k: z.clone() for k, z in arguments.items() if isinstance(z, torch.Tensor) and not z.is_sparse}
    with pytest.raises((TypeError, ValueError), match=rf"^{next(iter(change))}\b"):
        norm(activation((4, 2, 3, 5)), **arguments)
    assert all(arguments[k].is_meta or torch.equal(arguments[k], z) for k, z in kept.items())


@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("shape", [(4, 2, 3), (4, 0, 3, 5)], ids=["full", "empty"])
def test_evaluation_and_empty_batches_move_nothing(norm, shape):
    x = activation(shape)
    given = statistics(training=shape[1] == 0)
    norm(x, None, None, **given)
    assert torch.equal(given["running_mean"], torch.zeros(3))
    assert torch.equal(given["running_var"], torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize("norm", NORMS, ids=lambda f: f.__name__)
def test_statistics_of_any_dtype_move_as_in_float64(norm, own, dtype):
    """Those of ``model.half()`` too; the step is taken in float32 and rounded once."""
    x = activation((4, 2, 3, 5)).to(dtype)
    given = {k: z if isinstance(z, bool) else z.to(own) for k, z in statistics().items()}
    truth = {k: z if isinstance(z, bool) else z.double() for k, z in statistics().items()}
    norm(x, None, None, **given, momentum=torch.tensor(0.3))
    F.batch_norm(x.double(), None, None, **truth, momentum=0.3)
    for name in ("running_mean", "running_var"):
        assert given[name].dtype == own
        assert relative_l2(given[name], truth[name]) <= (5e-3 if own == torch.bfloat16 else 1e-6)


def test_an_error_leaves_a_module_as_it_was():
    module = nn.BatchNormLIF(3, stateful=True)
    module.activity = nn.Activity()
    module(activation((4, 2, 3, 5)))
    before = copy.deepcopy({**module.state_dict(), "v": module.v.detach(), "count": module.activity.spike_count})
    for x in (activation((4, 2, 3, 5)) * float("nan"), activation((4, 2, 4, 5)), activation((4, 3, 3, 5)), None):
        with pytest.raises((TypeError, ValueError), match=r"^x: expected"):
            module(x)
    after = {**module.state_dict(), "v": module.v.detach(), "count": module.activity.spike_count}
    assert all(torch.equal(after[name], z) for name, z in before.items())


FRAMES = "unflatten\\(0, \\(T, N\\)\\)"


@pytest.mark.parametrize("shape", [(8, 32, 32, 32), (8, 32, 16, 16), (4, 2, 32, 9), (4, 2, 32)], ids=str)
def test_batch_norm_alone_wants_five_dimensions(shape):
    """Frames [M, C, H, W] of as many rows as channels were normalised along the wrong dimension, in silence."""
    with pytest.raises(ValueError, match=FRAMES if shape[0] == 8 else "x: expected"):
        nn.ChannelBatchNorm2d(32)(torch.randn(shape))


@pytest.mark.parametrize(
    "module",
    [
        nn.BatchNormLIF(32),
        nn.LIF(group=nn.ChannelGroup(32)),
        nn.PLIF(channels=32),
        nn.BatchNormPLIF(32, per_channel=True),
        nn.ChannelSelect(32, nn.ChannelGroup(8)),
    ],
    ids=lambda m: type(m).__name__,
)
def test_what_knows_its_channels_guesses_that_frames_came(module):
    with pytest.raises(ValueError, match=f"x: expected 32 channels in dimension 2 .*{FRAMES}"):
        module(torch.randn(8, 32, 16, 16))
    for shape in ((4, 2, 32), (4, 2, 32, 5), (4, 2, 32, 5, 6)):
        module(torch.randn(shape))
