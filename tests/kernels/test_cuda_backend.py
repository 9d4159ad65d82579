"""The CUDA backend without a GPU: its kernels and host side run by an emulation on CPU tensors.

On a machine with a GPU the shared tests of this folder run on the device as well.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import spikes
from sca_kernels.backends import registry
from sca_kernels.gpu import plan as gpu_plan
from sca_kernels.testing import activation, poisoned_memory, relative_l2
from sca_kernels.tracking import Tracking, change
from tests.kernels.cuts import CUTS, EACH_KIND, EMULATED, GROUPS, MANY_TILES, SIZES, STEPS, emulated
from tests.kernels.problems import OPTIONS, assert_agrees, bound_of, config_of, problem_of, run, views

HERE = Path(__file__).parent
BACKEND, REFERENCE = registry()["cuda"], registry()["reference"]
LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
DTYPES = pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16], ids=["float32", "bfloat16", "float16"]
)


@pytest.fixture
def emulation(monkeypatch):
    """Backend "cuda" on CPU tensors, every uninitialised tensor poisoned."""
    emulated.install(monkeypatch.setattr)
    with poisoned_memory():
        yield


@EMULATED
@pytest.mark.slow
def test_the_shared_kernel_tests_pass_on_the_emulation():
    """Everything that any backend must pass: spikes bit for bit, gradients against float64 autograd, every flag."""
    tests = [str(HERE / f"test_{name}.py") for name in ("neuron", "batch_norm", "operators", "state", "running")]
    options = ["-p", "emulated", "-k", "cuda-cpu", "-q", "--no-header", "-p", "no:cacheprovider"]
    path = {"PYTHONPATH": ":".join([str(HERE / "cuda_emulation"), *filter(None, sys.path)])}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests],
        capture_output=True,
        text=True,
        check=False,
        cwd=HERE.parents[1],
        env={**os.environ, **path},
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    passed = int(re.search(r"(\d+) passed", done.stdout)[1])
    assert passed >= 350
    assert "failed" not in done.stdout


SIZES += [(5, 1, 1, 1), (2, 3, 130, 2), (2, 2, 600, 3), (3, 5, 24, 6, 6), (4, 3, 8, 7, 7), (2, 9, 136), (130, 1, 2, 3)]


@EMULATED
@LAYOUTS
@pytest.mark.parametrize("shape", STEPS + SIZES, ids=lambda s: "x".join(map(str, s)))
def test_steps_and_sizes_are_fully_written_and_agree_with_the_reference(emulation, shape, channels_last):
    x, v = activation(shape, channels_last=channels_last), torch.randn(shape[1:])
    problem = {"grad": torch.randn(shape), "grad_v": torch.randn(shape[1:]), "v_init": v}
    config = config_of("plif", surrogate="sigmoid", v_reset=-0.25)
    assert_agrees(run(BACKEND, x, config, **problem), run(REFERENCE, x, config, **problem), bound=5e-6)


@EMULATED
@LAYOUTS
@DTYPES
@CUTS
@pytest.mark.parametrize("shape", [(4, 6, 16, 8, 8), (6, 40, 24, 2, 2), (3, 30, 5, 3, 3)], ids=str)
def test_dtypes_masks_and_cuts_agree_with_the_reference(emulation, planned, shape, cut, dtype, channels_last):
    planned(**cut)
    x, grad = activation(shape, dtype, channels_last=channels_last), torch.randn(shape).to(dtype)
    mask = torch.arange(shape[2]) % 3 != 0
    ours, truth = (run(b, x, config_of(tau=3.0), grad, mask=mask) for b in (BACKEND, REFERENCE))
    assert_agrees(ours, truth, bound_of(dtype))


@EMULATED
@LAYOUTS
@DTYPES
def test_one_step_presented_many_times_sums_its_gradient_over_time(emulation, dtype, channels_last):
    for steps in (1, 4, 11):
        x = activation((1, 3, 8, 6, 6), dtype, channels_last=channels_last)
        problem = {"grad": torch.randn(steps, 3, 8, 6, 6).to(dtype), "time_steps": steps}
        assert_agrees(*(run(b, x, config_of(), **problem) for b in (BACKEND, REFERENCE)), bound_of(dtype))


def all_views(x):
    """x as kernels can run on it, and as they can't without a copy."""
    return views(x) | {
        "transposed": x.mT.contiguous().mT,
        "every other": x.repeat_interleave(2, 4)[..., ::2],
        "unaligned": torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape),
    }


VIEWS = list(all_views(torch.zeros(1, 1, 1, 1, 1)))


@EMULATED
@pytest.mark.parametrize("upstream", [*VIEWS, "expanded", "none"])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_of_x_and_of_the_upstream_gradient(emulation, view, upstream):
    shape = (3, 4, 8, 6, 4)
    x, grad = activation(shape), torch.randn(shape)
    if upstream == "expanded":
        grad = torch.tensor(0.5).expand(shape)
    elif upstream != "none":
        grad = all_views(grad)[upstream]
    given = None if upstream == "none" else grad
    grad_v = torch.randn(shape[1:]).transpose(2, 3).contiguous().transpose(2, 3)
    ours = run(BACKEND, all_views(x)[view], config_of(), given, grad_v=grad_v, v_init=grad_v)
    truth = run(REFERENCE, all_views(x)[view], config_of(), given, grad_v=grad_v, v_init=grad_v)
    assert_agrees(ours, truth)


@EMULATED
@LAYOUTS
@pytest.mark.parametrize(("turn", "option"), list(enumerate(OPTIONS)), ids=OPTIONS)
def test_options_agree_with_the_reference(emulation, planned, turn, option, channels_last):
    """Over planes, folded maps, and more steps than shared memory holds."""
    planned(**[{}, MANY_TILES, GROUPS][turn % 3])
    for shape in ((3, 3, 4, 8, 8), (4, 5, 8, 3, 3), (37, 2, 5, 2, 2)):
        dtype = torch.bfloat16 if turn % 4 == 2 and shape[0] == 4 else torch.float32
        given = problem_of(option, shape, channels_last, dtype, repeated=turn % 4 == 1, expanded=turn % 2 == 0)
        assert_agrees(*(run(b, **given) for b in (BACKEND, REFERENCE)), bound=max(1e-5, bound_of(dtype)))


@EMULATED
@LAYOUTS
@pytest.mark.parametrize("shape", [(3, 0, 4, 2, 2), (3, 2, 0, 2, 2), (3, 2, 4, 0, 2)], ids=str)
def test_empty_tensors_do_nothing_and_zero_the_sums(emulation, shape, channels_last):
    x, c = activation(shape, channels_last=channels_last), shape[2]
    out = BACKEND.neuron_forward(x, 3, config_of(), None, None, None, None, None, True)
    vectors = torch.ones(c), torch.ones(c), None, None, torch.ones(c)
    g = BACKEND.neuron_backward(x, None, x, 3, config_of(), *vectors, torch.ones(()).expand(x.shape))
    assert out.spikes.shape == x.shape
    sums = out.spike_count, out.membrane_l1, g.scale, g.shift, g.threshold
    assert [z.tolist() for z in sums] == [[0] * c] * 5


@EMULATED
@CUTS
@EACH_KIND
@pytest.mark.parametrize("has_threshold", [False, True], ids=["plain", "thresholds"])
def test_blocks_in_any_order_give_the_same_bits_and_leave_counters_at_zero(
    emulation, planned, monkeypatch, shape, cut, channels_last, has_threshold
):
    """Whoever comes last finishes the sums: they must not show who that was."""
    planned(**cut)
    counters = []
    fresh = gpu_plan._counters
    monkeypatch.setattr(gpu_plan, "_counters", lambda *arguments: counters.append(fresh(*arguments)) or counters[-1])
    x, grad = activation(shape, channels_last=channels_last), torch.randn(shape)
    threshold = torch.linspace(0.5, 1.25, shape[2]) if has_threshold else None
    runs = []
    for order in (0, 0, 1, 2):
        monkeypatch.setattr(emulated, "order", order)
        runs.append(run(BACKEND, x, config_of("plif"), grad, threshold=threshold))
    assert all(torch.equal(other[k], runs[0][k]) for other in runs[1:] for k in runs[0])
    assert len(counters) == 4 * 7  # neuron forward and backward, moments, neuron, its adjoint's sums
    assert not any(z.any() for z in counters)


@EMULATED
@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_statistics_are_as_good_with_a_large_mean_and_an_outlier_in_front(emulation, mean):
    """Sums are float32 about an origin near the mean: squares of x itself, or about a far element, would cancel."""
    x = activation((4, 5, 8, 6, 6)) + mean
    x[0, 0, :, 0, 0] += 50.0
    norm = BACKEND.batch_norm_forward(x, 4, config_of(), None, None, 1e-5, None, None, None, False)[1]
    var, exact = torch.var_mean(x.double(), (0, 1, 3, 4), correction=0)
    torch.testing.assert_close(norm[0].double(), exact, rtol=1e-7, atol=5e-7)
    torch.testing.assert_close(norm[1].double(), var, rtol=2e-6, atol=0)
    torch.testing.assert_close(norm[2].double(), (norm[1].double() + 1e-5).rsqrt(), rtol=1e-7, atol=0)


@EMULATED
@CUTS
@pytest.mark.parametrize("finite_only", [False, True])
@EACH_KIND
def test_one_launch_moves_listed_statistics_and_adds_activity_as_torch_does(
    emulation, planned, shape, finite_only, cut, channels_last
):
    planned(**cut)
    x, width = activation(shape, channels_last=channels_last), shape[2]
    x[1, 1, 2] = float("nan")
    channels = torch.arange(width) * 2 + 1
    seen = x[:, :, 0].numel()
    for weight in (0.25, 0.75, torch.tensor(0.25), torch.tensor(1 / 3, dtype=torch.float64), torch.tensor(0.5).half()):
        tracked = []
        for backend in (BACKEND, None):
            sums = (torch.arange(2 * width), torch.arange(2.0 * width).double(), torch.arange(2 * width))
            running = torch.linspace(-1.0, 1.0, 2 * width), torch.linspace(0.5, 2.0, 2 * width)
            tracking = Tracking(seen, sums, running, weight, torch.tensor(41), channels, finite_only)
            if backend is not None:
                out, norm = backend.batch_norm_forward(
                    x, shape[0], config_of(), None, None, 1e-5, None, None, None, False, None, tracking
                )
                assert out.has_tracked
            else:
                change(out.spike_count, out.membrane_l1, norm, tracking)
            tracked.append((*sums, *running, tracking.batches))
        assert tracked[0][-1] == 42
        for ours, truth in zip(*tracked, strict=True):
            torch.testing.assert_close(ours, truth, rtol=0, atol=0, equal_nan=True)


@EMULATED
def test_statistics_of_another_dtype_are_moved_by_torch_and_the_batch_counted_once(emulation):
    x, running = activation((2, 3, 4, 5)), (torch.zeros(4).double(), torch.ones(4).double())
    tracking = Tracking(30, running=running, weight=0.5, batches=torch.tensor(7))
    norm = BACKEND.batch_norm_forward(x, 2, config_of(), None, None, 1e-5, None, None, None, False, None, tracking)[1]
    assert tracking.batches == 8
    torch.testing.assert_close(running[0], norm[0].double() / 2)


@EMULATED
@LAYOUTS
@pytest.mark.parametrize("listed", [[0, 1, 2, 3], [3, 4, 7, 9], [0, 2, 5, 8], [1, 2, 3, 10]], ids=str)
def test_vectors_are_read_and_all_of_their_gradients_written_through_a_list(emulation, listed, channels_last):
    x, grad, length = activation((3, 4, 4, 6, 6), channels_last=channels_last), torch.randn(3, 4, 4, 6, 6), 11
    channels, weight, bias = torch.tensor(listed), torch.rand(length) + 0.5, torch.randn(length)
    problem = (x, 3, config_of(), weight, bias, 1e-5, None, None, None, False, channels)
    norm = BACKEND.batch_norm_forward(*problem)[1]
    truth = REFERENCE.batch_norm_forward(*problem)[1]
    torch.testing.assert_close(norm, truth, rtol=6e-7, atol=5e-7)
    ours, expected = (
        b.batch_norm_backward(grad, None, x, 3, config_of(), weight, bias, truth, 1e-5, None, None, channels)
        for b in (BACKEND, REFERENCE)
    )
    for name in ("x", "weight", "bias"):
        assert relative_l2(getattr(ours, name), getattr(expected, name)) < 2e-6, name
    dormant = [c for c in range(length) if c not in listed]
    assert not ours.weight[dormant].any()
    assert not ours.bias[dormant].any()


@EMULATED
@pytest.mark.parametrize("listed", [False, True], ids=["all", "listed"])
@EACH_KIND
def test_given_statistics_become_scale_and_shift_in_the_launch_itself(emulation, shape, listed, channels_last):
    x, width = activation(shape, channels_last=channels_last), shape[2]
    length = 2 * width if listed else width
    channels = torch.arange(width) * 2 if listed else None
    vectors = torch.rand(length) + 0.5, torch.randn(length), torch.randn(length), torch.rand(length)
    ours, truth = (
        b.batch_norm_inference(x, shape[0], config_of(), *vectors, 1e-5, None, None, None, True, channels)
        for b in (BACKEND, REFERENCE)
    )
    assert torch.equal(ours.spikes, truth.spikes)
    assert torch.equal(ours.v, truth.v)
    assert torch.equal(ours.spike_count, truth.spike_count)


@EMULATED
@CUTS
@pytest.mark.parametrize("learned", [False, True], ids=["lif", "plif"])
@EACH_KIND
def test_the_parts_of_batch_norm_give_what_its_backward_pass_gives(
    emulation, planned, shape, learned, cut, channels_last
):
    """What ranks need: sums of their own, to be added up, and the gradient behind the sums of all."""
    planned(**cut)
    x, grad, v = activation(shape, channels_last=channels_last), torch.randn(shape), torch.randn(shape[1:])
    config, width, steps = config_of("plif" if learned else "lif"), shape[2], shape[0]
    rate = torch.rand(width) * 0.5 + 0.25 if learned else None
    found, n = BACKEND.moments(x, steps), x.numel() // width
    exact = torch.stack([x.double().sum((0, 1, 3, 4)), x.double().square().sum((0, 1, 3, 4))])
    torch.testing.assert_close(found / n, exact / n, rtol=1e-6, atol=1e-6)

    problem = (x, steps, config, None, None, 1e-5, rate, v, None, False)
    norm = REFERENCE.batch_norm_forward(*problem)[1]
    mean, var, scale, shift = norm
    truth = BACKEND.batch_norm_backward(grad, None, x, steps, config, None, None, norm, 1e-5, rate, v)
    sums = BACKEND.batch_norm_sums(grad, None, x, steps, config, scale, shift, mean, rate, v)
    assert sums.dtype == torch.float64
    rstd = (var.double() + 1e-5).rsqrt()
    slope, offset = -rstd.pow(3) * sums[1] / n, -rstd * sums[0] / n
    g_x, g_v = BACKEND.batch_norm_gradient(
        *(grad, None, x, steps, config, scale, shift, mean, slope.float(), offset.float(), rate, v)
    )
    assert relative_l2(g_x, truth.x) < 1e-6
    assert torch.equal(g_v, truth.v_init)
    if learned:
        torch.testing.assert_close(sums[2].float(), truth.rate)


@EMULATED
def test_more_steps_than_the_bound_are_refused_before_any_launch(emulation):
    x = torch.zeros(1, 1, 1).expand((1 << 20) + 1, 1, 1)
    with pytest.raises(ValueError, match=r"time_steps: .* at most 1048576 .* got 1048577"):
        BACKEND.neuron_forward(x, x.shape[0], config_of(), None, None, None, None, None, False)


@EMULATED
@DTYPES
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 511, 512, 4096, 4097, 40_001])
@pytest.mark.parametrize("offset", [0, 1], ids=["aligned", "unaligned"])
def test_pack_and_unpack_round_trip_and_equal_the_reference(emulation, offset, numel, dtype):
    spikes = (torch.rand(numel + offset) < 0.3).to(dtype)[offset:]
    packed = BACKEND.pack_spikes(spikes)
    assert torch.equal(packed, REFERENCE.pack_spikes(spikes))
    assert torch.equal(BACKEND.unpack_spikes(packed, numel, dtype), spikes)


@EMULATED
@DTYPES
@pytest.mark.parametrize("position", [0, 100, 5000])
@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, float("nan"), float("inf")])
def test_pack_refuses_other_values_wherever_they_are(emulation, value, position, dtype):
    spikes = torch.ones(5001, dtype=dtype)
    spikes[position] = value
    with pytest.raises(ValueError, match="zeros and ones"):  # on a device it comes later
        BACKEND.pack_spikes(spikes)
    assert BACKEND.pack_spikes(torch.ones(9, dtype=dtype)).tolist() == [255, 1]


@EMULATED
@pytest.mark.parametrize("later", ["pack_spikes", "unpack_spikes"])
def test_other_values_that_a_device_finds_are_told_once_by_a_later_call(emulation, monkeypatch, later):
    monkeypatch.setattr(spikes, "_is_waited_for", lambda device: False)
    packed = BACKEND.pack_spikes(torch.tensor([0.0, 1.0, 0.5]))
    calls = {
        "pack_spikes": lambda: BACKEND.pack_spikes(torch.ones(8)),
        "unpack_spikes": lambda: BACKEND.unpack_spikes(packed, 3, torch.float32),
    }
    with pytest.raises(ValueError, match="got another value, in an earlier call on cpu"):
        calls[later]()
    calls[later]()


@EMULATED
def test_convolutions_tell_of_non_spikes_in_their_backward_pass(emulation, monkeypatch):
    monkeypatch.setattr(spikes, "_is_waited_for", lambda device: False)
    x, weight = torch.rand(2, 3, 6, 6), torch.randn(4, 3, 3, 3, requires_grad=True)
    y = F.channel_conv2d(x, weight, spike_input=True, backend="cuda")
    assert torch.allclose(y, torch.conv2d(x, weight), atol=1e-5)
    with pytest.raises(ValueError, match="zeros and ones only, got another value, in an earlier call"):
        y.sum().backward()
    F.channel_conv2d((x > 0.5).float(), weight, spike_input=True, backend="cuda").sum().backward()


@EMULATED
@DTYPES
def test_gradients_are_rounded_to_nearest_even_and_keep_nan(emulation, dtype):
    x, scale = torch.zeros(1, 1, 1, 4096, dtype=dtype), torch.rand(1) + 0.5
    grad = torch.randn(1, 1, 1, 4096).to(dtype)
    grad[..., :2] = torch.tensor([float("nan"), float("inf")])
    grad[..., 2:1026] = torch.arange(1024) * torch.finfo(dtype).smallest_normal / 512
    config = config_of("if", surrogate="leaky_k_relu")._replace(v_threshold=-1.0)
    ours = BACKEND.neuron_backward(grad, None, x, 1, config, scale, None, None, None).x
    assert torch.equal(ours.isnan(), grad.isnan())
    assert torch.equal(ours.nan_to_num(), (grad.float() * scale).to(dtype).nan_to_num())
