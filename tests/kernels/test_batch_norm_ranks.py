"""Batch norm over the ranks of a process group: two ranks against one process with the whole batch, what they send, and
what memory they take."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn, ops
from sca_kernels.backends import registry
from sca_kernels.testing import activation, poisoned_memory, relative_l2

if not torch.distributed.is_available():
    pytest.skip("torch without distributed", allow_module_level=True)

SAMPLES, WIDTH, ACTIVE = 5, 7, [0, 2, 3, 6]


class Case(NamedTuple):
    """A layer and its batch, of which the first rank has ``first`` samples."""

    kind: type = nn.BatchNormLIF
    first: int = 3
    options: Mapping[str, Any] = MappingProxyType({})
    group: bool = False
    steps: int = 4
    time_steps: int | None = None
    channels_last: bool = False
    dtype: torch.dtype = torch.float32
    offset: float = 0.0


CASES = {
    "odd": Case(),
    "channels_last": Case(channels_last=True),
    "the other rank has nothing": Case(first=SAMPLES),
    "the first rank has nothing": Case(first=0, channels_last=True),
    "bfloat16": Case(dtype=torch.bfloat16),
    "float64": Case(dtype=torch.float64),
    "plif": Case(nn.BatchNormPLIF, options={"per_channel": True, "v_reset": None}),
    "plif of one leak": Case(nn.BatchNormPLIF, first=SAMPLES, channels_last=True),
    "repeated step": Case(steps=1, time_steps=4),
    "repeated step of a plif": Case(nn.BatchNormPLIF, steps=1, time_steps=3, channels_last=True),
    "nine steps": Case(nn.BatchNormPLIF, first=1, steps=9),
    "listed channels": Case(group=True, options={"momentum": None}),
    "no affine": Case(options={"affine": False}),
    "no statistics": Case(options={"track_running_stats": False}),
    "large mean": Case(offset=300.0),
    "stateful": Case(options={"stateful": True}),
    "alone": Case(nn.ChannelBatchNorm2d),
    "alone, channels_last": Case(nn.ChannelBatchNorm2d, first=1, channels_last=True, group=True),
    "alone, bfloat16": Case(nn.ChannelBatchNorm2d, dtype=torch.bfloat16, options={"momentum": None}),
    "alone, no affine": Case(nn.ChannelBatchNorm2d, first=SAMPLES, options={"affine": False}),
}


def layer(case: Case, **options) -> torch.nn.Module:
    torch.manual_seed(0)
    group = None
    if case.group:
        group = nn.ChannelGroup(WIDTH, "g")
        group.set_active(ACTIVE)
    module = case.kind(WIDTH, **case.options, **options, group=group)
    for name, p in module.named_parameters():
        torch.nn.init.uniform_(p, 0.5, 1.5) if name != "w" else torch.nn.init.uniform_(p, -0.5, 0.5)
    if case.kind is not nn.ChannelBatchNorm2d:
        module.activity = nn.Activity()
    return module.double() if case.dtype == torch.float64 else module


def run(case: Case, module: torch.nn.Module, own: slice) -> dict[str, torch.Tensor | None]:
    """Two training steps on a part of the batch, and all that they leave."""
    torch.manual_seed(1)
    shape = (case.steps, SAMPLES, len(ACTIVE) if case.group else WIDTH, 3, 5)
    steps = () if case.time_steps is None else (case.time_steps,)
    for number in range(2):
        x = activation(shape, case.dtype, case.channels_last) + case.offset + number
        weights = torch.randn(case.time_steps or case.steps, *shape[1:])[:, own].to(case.dtype)
        leaf = x[:, own].clone().requires_grad_()
        module.zero_grad()
        nn.detach(module)
        with poisoned_memory():
            y = module(leaf, *steps)
            (y * weights).sum().backward()
    left = {"y": y.detach(), "x": leaf.grad}
    left |= {f"grad of {name}": p.grad for name, p in module.named_parameters()}
    left |= {name: z for name, z in module.named_buffers() if name != "activity"}
    if hasattr(module, "activity"):
        left |= {name: getattr(module.activity, name) for name in ("spike_count", "membrane_l1", "positions")}
    return {name: z.clone() for name, z in left.items() if z is not None}


def by_hand(own: slice, process_group=None) -> dict[str, torch.Tensor]:
    """What modules don't ask for: the last potential and its gradient, that of a first one, a mask."""
    torch.manual_seed(2)
    x, weights = activation((4, SAMPLES, WIDTH, 6)), torch.randn(4, SAMPLES, WIDTH, 6)[:, own]
    v = (torch.rand(SAMPLES, WIDTH, 6) - 0.5)[own].requires_grad_()
    gamma = (torch.rand(WIDTH) + 0.5).requires_grad_()
    leaf, mask = x[:, own].clone().requires_grad_(), torch.arange(WIDTH) % 3 > 0
    statistics = torch.zeros(WIDTH), torch.ones(WIDTH)
    options = {"channel_mask": mask, "v_init": v, "process_group": process_group}
    out = F.batch_norm_lif(leaf, gamma, None, *statistics, True, torch.tensor(0.3), **options)
    ((out.spikes * weights).sum() + (out.v * weights[0]).sum()).backward()
    return {
        "y": out.spikes.detach(),
        "v": out.v.detach()[None],
        "x": leaf.grad,
        "v_init": v.grad[None],
        "grad of gamma": gamma.grad,
        "running_mean": statistics[0],
        "running_var": statistics[1],
        "spike_count": out.spike_count,
        "membrane_l1": out.membrane_l1,
    }


def compiled() -> dict[str, torch.Tensor]:
    """A network whose batch norm leaves the compiled graph and comes back to it."""
    torch.manual_seed(3)
    model = torch.nn.Sequential(nn.BatchNormLIF(4, process_group=True), nn.ChannelConv2d(4, 2, 3))
    x = activation((3, 2, 4, 6, 6))
    results = []
    for call in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = call(leaf)
        y.square().sum().backward()
        results.append([y.detach(), leaf.grad, model[0].weight.grad.clone()])
    return {str(i): torch.stack(pair) for i, pair in enumerate(zip(*results, strict=True))}


def worker(rank: int, file: str, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    sent, all_reduce = [], torch.distributed.all_reduce

    def counted(z, *arguments, **named):
        sent.append((z.numel(), str(z.dtype)))
        return all_reduce(z, *arguments, **named)

    torch.distributed.all_reduce = counted
    results = {}
    for name, case in CASES.items():
        sent.clear()
        own = slice(case.first, None) if rank else slice(case.first)
        results[name] = run(case, layer(case, process_group=True), own) | {"sent": list(sent)}
    results["by hand"] = by_hand(slice(2, None) if rank else slice(2), True)
    results["compiled"] = compiled()
    torch.distributed.all_reduce = all_reduce
    torch.save(results, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def ranks(tmp_path_factory) -> list[dict[str, Any]]:
    """What each of two ranks saw, by case."""
    folder = tmp_path_factory.mktemp("ranks")
    context = torch.multiprocessing.get_context("spawn")
    workers = [context.Process(target=worker, args=(rank, str(folder / "store"), str(folder))) for rank in range(2)]
    for process in workers:
        process.start()
    for process in workers:
        process.join(120)
    codes = [process.exitcode for process in workers]
    for process in workers:
        process.kill()
    assert codes == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


SUMMED = "spike_count", "membrane_l1", "positions"


def compare(parts: list[dict[str, torch.Tensor]], whole: dict[str, torch.Tensor], tolerance: float) -> None:
    """Activations of two ranks side by side, sums of both, and statistics of either, with those of one process."""
    assert set(parts[0]) == set(parts[1]) == set(whole)
    for name, expected in whole.items():
        own = [part[name] for part in parts]
        if name in ("y", "v", "x", "v_init"):
            assert relative_l2(torch.cat(own, 1), expected) <= tolerance, name
        elif name.startswith("grad of") or name in SUMMED:
            size = max(z.double().norm() for z in own)  # the two may cancel
            assert (own[0] + own[1] - expected).double().norm() <= tolerance * size, name
        else:
            assert torch.equal(*own), name
            assert relative_l2(own[0], expected) <= min(tolerance, 1e-6), name


@pytest.mark.parametrize("name", CASES)
def test_two_ranks_compute_what_one_process_does(ranks, name):
    case = CASES[name]
    parts = [{key: z for key, z in rank[name].items() if key != "sent"} for rank in ranks]
    whole = run(case, layer(case), slice(None))
    narrow, alone = case.dtype == torch.bfloat16, case.kind is nn.ChannelBatchNorm2d
    if not alone:  # spikes
        assert torch.equal(torch.cat([part["y"] for part in parts], 1), whole["y"])
        assert torch.equal(parts[0]["spike_count"] + parts[1]["spike_count"], whole["spike_count"])
    # of bfloat16, that one number in 256 is rounded the other way
    compare(parts, whole, 1e-3 if narrow else 1e-6 if case.offset == 0 else 1e-5)


def test_mask_first_and_last_potential_of_two_ranks(ranks):
    compare([rank["by hand"] for rank in ranks], by_hand(slice(None)), 1e-6)


@pytest.mark.parametrize("name", CASES)
def test_each_pass_sends_its_sums_once(ranks, name):
    channels = len(ACTIVE) if CASES[name].group else WIDTH
    both = [(2 * channels + 1, "torch.float64"), (2 * channels, "torch.float64")]
    assert [rank[name]["sent"] for rank in ranks] == [2 * both, 2 * both]


def test_a_compiled_network_runs_over_ranks(ranks):
    for rank in ranks:
        for plain, other in rank["compiled"].values():
            assert relative_l2(other, plain) <= 1e-6


# ---- one rank: a group of one process, whose sums are its own


@pytest.fixture
def group_of_one():
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def alone_and_over_a_group(case: Case, device: str, backend: str | None = None) -> list[list[torch.Tensor]]:
    results = []
    for options in ({}, {"process_group": True}):
        module = layer(case, **options).to(device)
        if backend is not None:
            module.arguments["backend"] = backend
        torch.manual_seed(1)
        x = activation((case.steps, 3, WIDTH, 3, 5), case.dtype, case.channels_last).to(device).requires_grad_()
        y = module(x, *(() if case.time_steps is None else (case.time_steps,)))
        (y * torch.randn(y.shape).to(y)).sum().backward()
        results.append([y, x.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    return results


DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
# Of bfloat16, Triton's interpreter cuts off what it should round; torch's own gradient in channels_last is less exact.
BOUNDS = {torch.float32: 1e-6, torch.bfloat16: 6e-3}
DTYPES = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


@pytest.mark.usefixtures("group_of_one")
@DTYPES
@pytest.mark.parametrize("name", ["channels_last", "plif", "repeated step"])
def test_every_backend_takes_the_statistics_of_a_group_as_its_own(target, name, dtype):
    backend, device = target
    alone, over_group = alone_and_over_a_group(CASES[name]._replace(dtype=dtype), device, backend)
    for ours, expected in zip(over_group, alone, strict=True):
        assert relative_l2(ours, expected) <= BOUNDS[dtype]


@pytest.mark.usefixtures("group_of_one")
@DTYPES
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("device", DEVICES)
def test_batch_norm_alone_takes_the_statistics_of_a_group_as_its_own(device, channels_last, dtype):
    case = Case(nn.ChannelBatchNorm2d, channels_last=channels_last, dtype=dtype)
    alone, over_group = alone_and_over_a_group(case, device)
    for ours, expected in zip(over_group, alone, strict=True):
        assert ours.stride() == expected.stride()
        assert relative_l2(ours, expected) <= BOUNDS[dtype]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("kind", [nn.BatchNormLIF, nn.ChannelBatchNorm2d])
@pytest.mark.parametrize("device", DEVICES)
def test_where_no_rank_has_a_sample_nothing_moves(kind, device):
    module = kind(3, process_group=True).to(device)
    before = copy.deepcopy(module.state_dict())
    x = torch.zeros(4, 0, 3, 5, 5, device=device, requires_grad=True)
    module(x).sum().backward()
    assert x.grad.shape == x.shape
    assert not module.weight.grad.any()
    assert torch.equal(module.running_mean, before["running_mean"])
    assert torch.equal(module.running_var, before["running_var"])


@pytest.mark.usefixtures("group_of_one")
def test_nan_is_an_error_and_moves_nothing():
    module = nn.BatchNormLIF(3, process_group=True)
    x = activation((4, 2, 3, 5))
    x[0, 1, 2] = float("nan")
    with pytest.raises(F.NotANumber):
        module(x)
    assert torch.equal(module.running_mean, torch.zeros(3))
    with F.check_nan(False):
        module(x)
    assert module.running_mean.isfinite().all()
    assert module.running_mean[:2].all()


@pytest.mark.usefixtures("group_of_one")
def test_frozen_inputs_send_no_gradient(monkeypatch):
    sent = []
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda z, group=None: sent.append(z.numel()))
    for module in (nn.BatchNormLIF(3, process_group=True), nn.ChannelBatchNorm2d(3, process_group=True)):
        module(activation((4, 2, 3, 5, 5))).sum().backward()
        assert module.weight.grad.any()
    assert sent == [7, 7]


@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("function", [F.batch_norm_lif, F.batch_norm])
def test_derivatives_that_are_not_defined_over_ranks_say_so(function):
    x = activation((4, 2, 3, 5))

    def loss(z):
        y = function(z, None, None, None, None, True, process_group=True)
        return (y if isinstance(y, torch.Tensor) else y.spikes).square().sum()

    for transform in (torch.func.grad(loss), lambda z: torch.func.jvp(loss, (z,), (z,))):
        with pytest.raises(RuntimeError, match=r"process_group: expected None within transforms of torch\.func"):
            transform(x)
    x.requires_grad_()
    (first,) = torch.autograd.grad(loss(x), x, create_graph=True)
    with pytest.raises(RuntimeError, match="second-order gradients"):
        torch.autograd.grad(first.sum(), x)


@pytest.mark.usefixtures("group_of_one")
def test_an_operator_of_sums_refuses_steps_that_x_does_not_have():
    with pytest.raises(ValueError, match="time_steps: expected 4"):
        torch.ops.sca_kernels.batch_norm_moments(torch.zeros(4, 2, 3), 5, "")


def test_moments_have_all_derivatives():
    x = torch.randn(2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda z: ops.batch_norm_moments(z, 2, ""), x)
    assert torch.autograd.gradgradcheck(lambda z: ops.batch_norm_moments(z, 2, ""), x)


ON, WHY_NOT = registry()["cpu"].supports(torch.device("cpu"), torch.float32)


def peak(function) -> int:
    """Bytes that torch's CPU allocator hands out beyond those before, at most."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    held = most = 0
    events = [event for event in recorded.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most


@pytest.mark.native
@pytest.mark.skipif(not ON, reason=f"backend cpu: {WHY_NOT}")
@pytest.mark.usefixtures("group_of_one")
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
@DTYPES
@pytest.mark.parametrize("kind", [nn.BatchNormLIF, nn.BatchNormPLIF, nn.ChannelBatchNorm2d])
def test_statistics_of_ranks_take_no_copy_of_the_activation(kind, dtype, channels_last):
    x = activation((4, 8, 32, 64, 64), dtype, channels_last).requires_grad_()
    grad = torch.ones_like(x)
    peaks = []
    for process_group in (None, True):
        module = kind(32, process_group=process_group)
        peaks.append(peak(lambda module=module: torch.autograd.grad(module(x), x, grad)))
    one, several = peaks
    assert one >= 2 * x.nbytes  # output and gradient
    assert several <= one + x.nbytes // 8
