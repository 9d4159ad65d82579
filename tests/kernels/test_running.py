"""Running statistics and sums of activity, which the operators change: bit for bit what separate calls of torch make of
the operators' other outputs, in every mode that a layer runs in, and nothing where a pass does not count."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sca_kernels import functional as F
from sca_kernels import nn, ops
from sca_kernels.backends import choose
from sca_kernels.neurons import NeuronConfig
from sca_kernels.ops.guards import SUMS
from sca_kernels.testing import activation
from sca_kernels.torch_private import below_autograd
from tests.kernels.step_without import Watch

CONFIG = tuple(NeuronConfig("lif", 2.0, 1.0, 0.0, True, False, "atan", 2.0, 0.0))
CHANNELS, ACTIVE = 7, torch.tensor([0, 2, 3, 6])


def moved(running, new, momentum, index):
    """A running statistic behind a pass."""
    old = running if index is None else running[index]
    weight = momentum.to(new.dtype) if isinstance(momentum, torch.Tensor) else momentum
    wide = old.clone().lerp_(new, weight) if old.dtype == new.dtype else torch.lerp(old.to(new.dtype), new, weight)
    wide = wide.to(running.dtype)
    return wide if index is None else running.clone().index_copy_(0, index, wide)


def plus(total, new, index):
    added = torch.zeros_like(total)
    added[... if index is None else index] = new.to(total.dtype)
    return total + added


def expected(x, weight, bias, statistics, momentum, sums, index, backend, eps=1e-5):
    """What a training pass leaves: running statistics and activity, by calls of torch on what the operator gives."""
    given = (z if z is None or index is None else z[index] for z in (weight, bias))
    given = *given, eps, None, None, None, None, False, False, None
    _, _, count, l1, _, norm = ops.batch_norm_forward(x.detach(), x.shape[0], *given, backend, *CONFIG)
    mean, var = norm[:2]
    seen = x[:, :, 0].numel()
    unbiased = var * (seen / max(seen - 1, 1))
    statistics = [moved(z, new, momentum, index) for z, new in zip(statistics, (mean, unbiased), strict=True)]
    return [*statistics, *(plus(z, new, index) for z, new in zip(sums, (count, l1, torch.tensor(seen)), strict=True))]


def zeros(channels, device="cpu"):
    return [torch.zeros(channels, dtype=d, device=device) for d in (torch.int64, torch.float64, torch.int64)]


MOMENTA = {"number": 0.1, "tensor": torch.tensor(0.25), "double": torch.tensor(1 / 3, dtype=torch.float64)}
WATCHED = {"unwatched": contextlib.nullcontext, "watched": Watch}


@pytest.mark.parametrize("watched", WATCHED)
@pytest.mark.parametrize("listed", [False, True], ids=["all", "listed"])
@pytest.mark.parametrize("momentum", MOMENTA)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_training_pass_moves_statistics_and_adds_activity_as_torch_would(target, dtype, momentum, listed, watched):
    backend, device = target
    index = ACTIVE.to(device) if listed else None
    x = activation((4, 3, len(ACTIVE) if listed else CHANNELS, 5, 2), device=device).requires_grad_()
    momentum = MOMENTA[momentum]
    momentum = momentum.to(device) if isinstance(momentum, torch.Tensor) else momentum
    statistics = [torch.randn(CHANNELS, device=device).to(dtype), torch.rand(CHANNELS, device=device).to(dtype)]
    sums = zeros(CHANNELS, device)
    for _ in range(2):
        after = expected(x, None, None, statistics, momentum, sums, index, backend)
        with WATCHED[watched]():
            out = F.batch_norm_lif(
                *(x, None, None, *statistics, True, momentum),
                channels=index,
                activity=F.ActivitySums(*sums, index),
                backend=backend,
            )
        out.spikes.sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(sums, after[2:], strict=True))
        for ours, torchs in zip(statistics, after, strict=False):
            # A GPU kernel has its own word on whether a product and a sum are rounded once or twice.
            bound = 0 if backend in ("cpu", "reference") else 2.4e-7
            torch.testing.assert_close(ours, torchs, rtol=bound, atol=bound / 4)


def with_gaps(z):
    """The same values, every other element of a longer vector."""
    return torch.stack([z, torch.full_like(z, -9)], -1)[..., 0]


def test_vectors_and_lists_with_gaps_are_changed_where_they_lie(target):
    backend, device = target
    x = activation((4, 3, len(ACTIVE), 5), device=device)
    made = []
    for gaps in (False, True):
        vectors = [torch.zeros(CHANNELS, device=device), torch.ones(CHANNELS, device=device), *zeros(CHANNELS, device)]
        index = ACTIVE.to(device)
        if gaps:
            vectors, index = [with_gaps(z) for z in vectors], with_gaps(index)
        mean, var, *sums = vectors
        F.batch_norm_lif(x, None, None, mean, var, True, channels=index, backend=backend)
        recorded = F.ActivitySums(*sums, index)
        F.lif(x, activity=recorded, backend=backend)
        made.append([z.clone() for z in vectors])
        assert not gaps or all((z._base.flatten()[1::2] == -9).all() for z in vectors)
    assert all(map(torch.equal, *made))
    assert made[0][0].any()


@pytest.mark.parametrize("watched", WATCHED)
def test_a_neuron_adds_its_activity(target, watched):
    backend, device = target
    x, sums = activation((4, 3, len(ACTIVE), 5), device=device).requires_grad_(), zeros(CHANNELS, device)
    for _ in range(2):
        with WATCHED[watched]():
            out = F.lif(x, activity=F.ActivitySums(*sums, ACTIVE.to(device)), backend=backend)
        out.spikes.sum().backward()
    assert torch.equal(sums[0][ACTIVE], 2 * out.spike_count)
    assert torch.equal(sums[1][ACTIVE], 2 * out.membrane_l1.double())
    assert sums[2].tolist() == [120 if c in ACTIVE else 0 for c in range(CHANNELS)]


# ---- modules


def layer(listed: bool, **options):
    group = nn.ChannelGroup(CHANNELS, "g") if listed else None
    if listed:
        group.set_active(ACTIVE)
    module = nn.BatchNormLIF(CHANNELS, group=group, **options)
    module.activity = nn.Activity()
    x = activation((4, 3, len(ACTIVE) if listed else CHANNELS, 5, 2)).requires_grad_()
    return module, x, ACTIVE if listed else None


def kept(module):
    activity = module.activity
    sums = [activity.spike_count, activity.membrane_l1, activity.positions]
    sums = zeros(CHANNELS) if activity.positions is None else [z.clone() for z in sums]
    return [module.running_mean.clone(), module.running_var.clone(), *sums]


def compiled(module, x):
    torch._dynamo.reset()
    return torch.compile(module, fullgraph=True, backend="aot_eager")(x)


def within(context):
    def way(module, x):
        with context():
            return module(x)

    return way


WAYS = {
    "plain": lambda module, x: module(x),
    "checkpointed": lambda module, x: checkpoint(module, x, use_reentrant=False),
    "compiled": compiled,
    "in inference mode": within(torch.inference_mode),
    "under autocast": within(lambda: torch.autocast("cpu", torch.bfloat16)),
    "watched": within(Watch),
}


@pytest.mark.parametrize("momentum", [0.1, None])
@pytest.mark.parametrize("listed", [False, True], ids=["all", "listed"])
@pytest.mark.parametrize("way", WAYS)
def test_a_layer_counts_a_pass_once_however_it_is_run(way, listed, momentum):
    module, x, index = layer(listed, momentum=momentum)
    for step in (1, 2):
        weight = momentum if momentum is not None else torch.tensor(1 / step, dtype=torch.float64)
        before = kept(module)
        parameters = module.weight.detach(), module.bias.detach()
        after = expected(x, *parameters, before[:2], weight, before[2:], index, "")
        y = WAYS[way](module, x)
        if y.requires_grad:
            y.sum().backward()
        assert all(torch.equal(a, b) for a, b in zip(kept(module), after, strict=True))
        assert module.num_batches_tracked == step


@pytest.mark.parametrize("listed", [False, True], ids=["all", "listed"])
def test_a_layer_in_eval_mode_records_and_moves_nothing(listed):
    module, x, index = layer(listed)
    module(x)
    module.eval()
    before = kept(module)
    module(x)
    assert all(map(torch.equal, kept(module), before))
    module.activity = nn.Activity(training_only=False)
    module(x)
    index = slice(None) if index is None else index
    mean, var = module.running_mean[index], module.running_var[index]
    out = F.batch_norm_lif(x, module.weight[index], module.bias[index], mean, var, False)
    assert torch.equal(module.activity.spike_count[index], out.spike_count)
    assert torch.equal(module.activity.membrane_l1[index], out.membrane_l1.double())
    assert all(map(torch.equal, kept(module)[:2], before[:2]))


def test_probing_changes_nothing():
    module, x, _ = layer(True)
    module(x)
    before = kept(module)
    with nn.probing([module.group]):
        module(activation((4, 3, CHANNELS, 5, 2)).requires_grad_()).sum().backward()
    assert all(map(torch.equal, kept(module), before))


@pytest.mark.parametrize("listed", [False, True], ids=["all", "listed"])
def test_statistics_of_several_processes_move_as_those_of_one(listed, monkeypatch):
    """A group of one process: the sums are its own."""
    for name, value in (("is_available", True), ("is_initialized", True)):
        monkeypatch.setattr(torch.distributed, name, lambda value=value: value)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda z, group=None: None)
    alone, x, _ = layer(listed)
    together, _, _ = layer(listed, process_group=True)
    for module in (alone, together):
        module(x)
    for a, b in zip(kept(together), kept(alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)
    assert torch.equal(together.activity.spike_count, alone.activity.spike_count)


# ---- passes that fail


@pytest.mark.parametrize("watched", WATCHED)
def test_a_pass_that_fails_leaves_everything_as_it_was(watched):
    module, x, _ = layer(True)
    before = kept(module)
    bad = x.detach().clone()
    bad[1, 1, 2] = float("nan")
    with WATCHED[watched](), pytest.raises(F.NotANumber):
        module(bad)
    assert module.activity.positions is None
    assert module.num_batches_tracked == 0
    assert all(map(torch.equal, kept(module), before))
    module(x)
    assert module.activity.positions.tolist() == [120 if c in ACTIVE else 0 for c in range(CHANNELS)]


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((4,), "x: expected at least three dimensions"),
        ((4, 3), "activity: expected sums of 1 channels"),
        ((4, 3, CHANNELS + 1, 5), f"activity: expected sums of {CHANNELS + 1} channels"),
    ],
)
def test_a_layer_that_records_names_an_input_that_does_not_fit(shape, says):
    module = nn.LIF()
    module.activity = nn.Activity()
    module(activation((4, 3, CHANNELS, 5)))
    before = module.activity.spike_count.clone()
    with pytest.raises(ValueError, match=says):
        module(torch.ones(shape))
    assert torch.equal(module.activity.spike_count, before)


def test_a_pass_that_is_not_recorded_does_not_keep_what_a_failed_one_began():
    module, x, _ = layer(False)
    with pytest.raises(F.NotANumber):
        module(x.detach() * float("nan"))
    module.eval()
    module(x)
    assert module.activity.positions is None


def test_activity_that_does_not_fit_is_refused_before_anything_is_changed():
    x, sums = activation((4, 3, len(ACTIVE), 5)), zeros(CHANNELS)
    with pytest.raises(ValueError, match=r"membrane_l1: expected torch\.float64"):
        F.ActivitySums(sums[0], sums[1].float(), sums[2])
    with pytest.raises(ValueError, match=r"positions: expected torch\.int64"):
        F.ActivitySums(*sums[:2], sums[2][:3])
    with pytest.raises(ValueError, match=r"channels: expected sorted unique indices in \[0, 7\)"):
        F.ActivitySums(*sums, torch.tensor([0, 2, 3, 7]))
    with pytest.raises(ValueError, match="spike_count: expected memory of its own per channel"):
        F.ActivitySums(sums[0][:1].expand(7), *sums[1:])
    with pytest.raises(ValueError, match="activity: expected sums of 4 channels on cpu, got 7"):
        F.lif(x, activity=F.ActivitySums(*sums))
    with pytest.raises(TypeError, match="activity: expected an ActivitySums or None, got tuple"):
        F.lif(x, activity=tuple(sums))
    mean, var = torch.zeros(CHANNELS), torch.ones(CHANNELS)
    for index, says in (
        (torch.tensor([0, 2, 3, 7]), r"channels: expected sorted unique indices in \[0, 7\)"),
        (ACTIVE[:3], r"channels: expected an int64 tensor \[4\]"),
        (ACTIVE.int(), "channels: expected an int64 tensor"),
    ):
        with pytest.raises(ValueError, match=says):
            F.batch_norm_lif(x, None, None, mean, var, True, channels=index)
    with pytest.raises(ValueError, match="activity: expected one with the list of channels"):
        F.batch_norm_lif(
            *(x, None, None, mean, var, True), channels=ACTIVE, activity=F.ActivitySums(*sums, ACTIVE.clone())
        )
    assert not any(map(torch.any, (*sums, mean)))


OF_SUMS = [
    ({"spike_count": torch.zeros(3)}, "spike_count: expected torch.int64"),
    ({"membrane_l1": torch.zeros(3)}, "membrane_l1: expected torch.float64"),
    ({"positions": torch.zeros(4, dtype=torch.int64)}, r"positions: expected torch.int64 \[3\]"),
    ({"channels": torch.tensor([0, 1])}, "channels: expected an index for each of 3 channels"),
    ({"channels": torch.tensor([0, 1, 3])}, r"channels: expected unique indices in \[0, 3\)"),
]
NO_SUMS, NO_STATISTICS = dict.fromkeys(SUMS), dict.fromkeys(("running_mean", "running_var"))
BEYOND = {"channels": torch.tensor([0, 1, 5])}
OF_STATISTICS_AND_SUMS = [
    ({"running_mean": torch.zeros(4)}, r"running_mean: expected floating-point \[3\]"),
    ({"running_var": torch.ones(3, dtype=torch.int64)}, r"running_var: expected floating-point \[3\]"),
    ({"running_var": None}, "running_mean, running_var: expected all or none"),
    ({"membrane_l1": None, "positions": None}, "spike_count, membrane_l1, positions: expected all or none"),
    ({**BEYOND, **NO_SUMS}, r"channels: expected unique indices in \[0, 3\)"),
    ({**BEYOND, **NO_STATISTICS}, r"channels: expected unique indices in \[0, 3\)"),
]


@pytest.mark.parametrize(
    ("name", "wrong", "says"),
    [
        *(("neuron", *case) for case in OF_SUMS),
        *(("batch_norm", *case) for case in OF_SUMS + OF_STATISTICS_AND_SUMS),
    ],
)
def test_guards_of_what_is_changed(name, wrong, says):
    operator = getattr(torch.ops.sca_kernels, f"recorded_{name}_forward").default
    given = {"x": activation((2, 1, 3)), "time_steps": 2, "eps": 1e-5, "backend": ""}
    given |= {"return_v": False, "return_h": False}
    changed = dict(zip((*SUMS, *NO_STATISTICS), (*zeros(3), torch.zeros(3), torch.zeros(3)), strict=True))
    given |= {**NeuronConfig(*CONFIG)._asdict(), "momentum": 0.1, **changed, **wrong}
    with pytest.raises(ValueError, match=says):
        operator(*(given.get(a.name) for a in operator._schema.arguments))
    assert not any(map(torch.any, changed.values()))


# ---- contracts


def test_the_schema_says_what_is_changed():
    changed = {"spike_count", "membrane_l1", "positions"}
    for name, more in (("neuron", set()), ("batch_norm", {"running_mean", "running_var", "batches"})):
        schema = getattr(torch.ops.sca_kernels, f"recorded_{name}_forward").default._schema
        assert {a.name for a in schema.arguments if a.is_write} == changed | more
        assert not any(a.is_write for a in getattr(torch.ops.sca_kernels, f"{name}_forward").default._schema.arguments)


@pytest.mark.parametrize("watched", WATCHED)
def test_autograd_sees_that_statistics_were_written(watched):
    mean, var, w = torch.rand(3), torch.rand(3), torch.rand(3, requires_grad=True)
    loss = (mean * w).sum()
    with WATCHED[watched]():
        F.batch_norm_lif(activation((4, 3, 3, 5)).requires_grad_(), None, None, mean, var, True)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_lazily_negated_statistics_move_as_others():
    x, var = activation((4, 3, 3, 5)), torch.rand(3)
    mean = torch._neg_view(torch.randn(3))
    plain = [mean.clone(), var.clone()]
    F.batch_norm_lif(x, None, None, *plain, True)
    F.batch_norm_lif(x, None, None, mean, var, True)
    assert torch.equal(mean, plain[0])
    assert torch.equal(var, plain[1])


def test_a_backend_may_do_it_all_by_a_kernel_of_its_own(monkeypatch):
    """Its pass is told all that is to be changed, and nobody changes it again."""
    seen = []
    best = choose("", "neuron_forward", torch.zeros(1))
    inner = best.batch_norm_forward

    def forward(*arguments):
        out, norm = inner(*arguments)
        seen.append((out, norm, arguments[-3]))
        return out._replace(has_tracked=True), norm

    monkeypatch.setattr(best, "batch_norm_forward", forward)
    module, x, _ = layer(True)
    module(x).sum().backward()
    ((out, norm, tracking),) = seen
    assert tracking.seen == 120
    assert tracking.sums[0] is module.activity.spike_count
    assert (tracking.running[0] is module.running_mean, tracking.running[1] is module.running_var) == (True, True)
    assert tracking.batches is module.num_batches_tracked
    assert tracking.weight == 0.1
    assert tracking.channels is module.group.index(torch.device("cpu"))
    assert not tracking.finite_only
    assert norm.shape == (4, len(ACTIVE))
    assert torch.equal(out.spikes.sum((0, 1, 3, 4)).long(), out.spike_count)
    assert not module.running_mean.any()


def test_without_a_way_below_autograd_the_functional_operators_do_it(monkeypatch):
    monkeypatch.setattr("sca_kernels.ops.common.below_autograd", None)
    assert below_autograd is not None
    module, x, index = layer(True)
    before = kept(module)
    after = expected(x, module.weight.detach(), module.bias.detach(), before[:2], 0.1, before[2:], index, "")
    module(x).sum().backward()
    assert all(map(torch.equal, kept(module), after))


def test_without_a_way_below_autograd_a_neuron_adds_its_activity(monkeypatch):
    monkeypatch.setattr("sca_kernels.ops.common.below_autograd", None)
    group = nn.ChannelGroup(CHANNELS, "g")
    group.set_active(ACTIVE)
    module = nn.LIF(group=group)
    module.activity = nn.Activity()
    x = activation((4, 3, len(ACTIVE), 5)).requires_grad_()
    for _ in range(2):
        module(x).sum().backward()
    out, sums = F.lif(x), module.activity
    assert torch.equal(sums.spike_count[ACTIVE], 2 * out.spike_count)
    assert torch.equal(sums.membrane_l1[ACTIVE], 2 * out.membrane_l1.double())
    assert sums.positions.tolist() == [120 if c in ACTIVE else 0 for c in range(CHANNELS)]
