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
from sca_kernels.cuda_kernels import launcher, parameters
from sca_kernels.cuda_kernels.launcher import CudaLauncher
from sca_kernels.gpu import batch_norm as gpu_batch_norm
from sca_kernels.gpu import neuron as gpu_neuron
from sca_kernels.gpu import plan as gpu_plan
from sca_kernels.gpu.neuron import Current
from sca_kernels.gpu.plan import Plan
from sca_kernels.testing import activation, poisoned_memory, relative_l2
from tests.kernels.problems import config_of, run, views

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
sys.path.insert(0, str(HERE / "cuda_emulation"))
import emulated  # noqa: E402

sys.path.pop(0)

BACKEND, REFERENCE = registry()["cuda"], registry()["reference"]
EMULATED = pytest.mark.skipif(emulated.compiler() is None, reason="the emulation needs g++")
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


# Taken in float32: a mean, and the shift that is made of it, is as good as the deviation, here about one, allows.
ABSOLUTE, RELATIVE = {"rtol": 3e-7, "atol": 5e-7}, {"rtol": 6e-7, "atol": 0}
STATISTICS = {"norm.mean": ABSOLUTE, "norm.var": RELATIVE, "norm.scale": RELATIVE, "norm.shift": ABSOLUTE}


def assert_agrees(ours, truth, bound=2e-6):
    """Spikes and counts equal, everything else within a relative bound. (Spikes behind batch norm are compared behind
    the same statistics, by ``run``.)"""
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].stride() == expected.stride(), name
        if name.endswith(("spikes", "spike_count")):
            assert torch.equal(ours[name], expected), name
        elif name in STATISTICS:
            torch.testing.assert_close(ours[name], expected, **STATISTICS[name])
        else:
            # Batch norm of a value or two has no gradient but rounding's: there nothing relative can be asked.
            vanishes = name == "norm_backward.x" and expected.abs().max() < 1e-5
            assert vanishes or relative_l2(ours[name], expected) <= bound, name
            assert not vanishes or ours[name].abs().max() < 1e-5, name


def bound_of(dtype):
    return {torch.float32: 2e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}[dtype]


# ---- the kernels and their host side, emulated -----------------------------------------------------------------------


@EMULATED
@pytest.mark.slow
def test_the_shared_kernel_tests_pass_on_the_emulation():
    """Everything that any backend must pass: spikes bit for bit, gradients against float64 autograd, every flag."""
    tests = [str(HERE / f"test_{name}.py") for name in ("neuron", "batch_norm", "operators", "state")]
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


STEPS = [(t, 2, 3, 5) for t in (1, 2, 3, 4, 5, 7, 8, 9, 16, 31, 32, 33, 63, 64, 65, 129)]
SIZES = [(3, 2, c, s) for c in (1, 13, 16) for s in (1, 3, 16, 49, 64, 1000)]
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
@pytest.mark.parametrize("items", [1, 5], ids=["one place per thread", "many"])
@pytest.mark.parametrize("shape", [(4, 6, 16, 8, 8), (6, 40, 24, 2, 2), (3, 30, 5, 3, 3)], ids=str)
def test_dtypes_masks_and_walks_agree_with_the_reference(emulation, monkeypatch, shape, items, dtype, channels_last):
    if items > 1:
        monkeypatch.setattr(tiling, "_BLOCKS", (1, 2))
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
@pytest.mark.parametrize("shape", [(3, 0, 4, 2, 2), (3, 2, 0, 2, 2), (3, 2, 4, 0, 2)], ids=str)
def test_empty_tensors_do_nothing_and_zero_the_sums(emulation, shape, channels_last):
    x, c = activation(shape, channels_last=channels_last), shape[2]
    out = BACKEND.neuron_forward(x, 3, config_of(), None, None, None, None, None, True)
    g = BACKEND.neuron_backward(x, None, x, 3, config_of(), torch.ones(c), torch.ones(c), None, None)
    assert out.spikes.shape == x.shape
    assert out.spike_count.tolist() == out.membrane_l1.tolist() == g.scale.tolist() == g.shift.tolist() == [0] * c


@EMULATED
def test_two_runs_agree_bit_for_bit(emulation):
    x, grad = activation((4, 5, 13, 6, 6)), torch.randn(4, 5, 13, 6, 6)
    one, other = (run(BACKEND, x, config_of("plif"), grad) for _ in range(2))
    assert all(torch.equal(one[k], other[k]) for k in one)


@EMULATED
def test_a_large_mean_leaves_the_variance_exact(emulation):
    x = activation((4, 5, 8, 6, 6)) + 1000.0
    ours, truth = (
        b.batch_norm_forward(x, 4, config_of(), None, None, 1e-5, None, None, None, False) for b in (BACKEND, REFERENCE)
    )
    torch.testing.assert_close(ours[1], truth[1], rtol=1.2e-7, atol=0)
    torch.testing.assert_close(ours[2], truth[2], rtol=1.2e-7, atol=0)
    assert torch.equal(ours[0].spikes, truth[0].spikes)


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


# ---- what is launched ------------------------------------------------------------------------------------------------


def tiling_of(shape, dtype=torch.float32, channels_last=False, **beside):
    return Tiling(activation(shape, dtype, channels_last=channels_last), shape[0], **beside)


@pytest.mark.parametrize(
    ("shape", "dtype", "channels_last", "variant"),
    [
        ((4, 8, 64, 32, 32), torch.float32, False, "float, true, 4"),
        ((4, 8, 64, 32, 32), torch.bfloat16, False, "sca::bfloat16, true, 8"),
        ((4, 8, 64, 32, 32), torch.float16, True, "sca::float16, false, 8"),
        ((4, 8, 64), torch.float32, False, "float, false, 4"),
        ((4, 8, 64, 7, 7), torch.float32, False, "float, false, 4"),  # folded: rows of C * S
        ((4, 8, 64, 2, 2), torch.bfloat16, False, "sca::bfloat16, false, 8"),
        ((4, 8, 13, 7, 7), torch.float32, False, "float, true, 1"),
        ((4, 8, 13, 8, 8), torch.float32, True, "float, false, 1"),
    ],
)
def test_layout_and_width_of_accesses_follow_from_shape_and_strides(shape, dtype, channels_last, variant):
    assert tiling_of(shape, dtype, channels_last).kernel("k") == f"sca::k<{variant}>"


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("batch", [1, 8, 4096])
def test_blocks_cover_every_place_and_stay_few(batch, channels_last):
    """Sizes are looked at, no memory: samples have stride 0."""
    x = activation((1, 1, 64, 32, 32), channels_last=channels_last).expand(4, batch, 64, 32, 32)
    walk, plan = Tiling(x, 4).walk, Tiling(x, 4)
    assert walk.splits * walk.items * walk.rows >= walk.places > (walk.splits - 1) * walk.items * walk.rows
    assert walk.stripes * walk.splits == plan.blocks <= 8192
    assert walk.items * 4 <= 256
    assert walk.rows * walk.lanes == tiling.THREADS
    assert (walk.outer_step * walk.inner + walk.inner_step) == walk.rows


def test_shared_memory_stays_within_what_every_device_gives():
    asked = []

    def launch(kernel, grid, threads, shared, parameters, on):
        asked.append((shared, parameters))

    for shape in STEPS + SIZES:
        for last in (False, True):
            for dtype in tiling.NAMES:
                x = activation(shape, dtype, channels_last=last)
                v, c = torch.zeros(shape[1:]), torch.ones(shape[2])
                multistep.backward(launch, x, v, x, shape[0], config_of(), Current(c, c, c, v))
                one = multistep.Adjoint(x, v, x[:1], shape[0], config_of(), Current(None, None, None, v))
                one.run(launch, "grad_x")
    assert max(shared for shared, _ in asked) <= 48 * 1024
    resident = [p.resident for _, p in asked if isinstance(p, parameters.BackwardParameters)]
    assert min(resident) >= 1


def test_no_launch_reads_more_than_x_and_the_upstream_gradient_twice():
    """Up to four steps nothing is kept but in registers and shared memory: no checkpoints, one launch."""
    launched = []
    x = activation((4, 2, 64, 16, 16), channels_last=True)
    adjoint = multistep.Adjoint(x, None, x, 4, config_of(), Current(None, None, None, None))
    adjoint.run(lambda *arguments: launched.append(arguments), "grad_x")
    (only,) = launched
    assert only[4].resident == only[4].steps == 4


def test_offsets_beyond_32_bits_are_handed_over_whole():
    x = torch.empty_strided((2, 2, 1, 4), (2**33, 2**32, 4, 1), device="meta")
    strided = Tiling(x, 2).strided("x")["x"]
    assert (strided.t, strided.outer) == (2**33, 2**32)


# ---- the sources -----------------------------------------------------------------------------------------------------


def test_no_kernel_indexes_in_32_bits():
    """Every block index is widened where it is read; thread indices, where they enter an offset."""
    for path in (CSRC / "cuda").glob("*.h"):
        text = path.read_text()
        assert len(re.findall(r"blockIdx", text)) == len(re.findall(r"static_cast<int64>\(blockIdx\.x\)", text)), path
        assert len(re.findall(r"threadIdx", text)) == len(
            re.findall(r"static_cast<int(?:64)?>\(threadIdx\.x\)", text)
        ), path
        assert not re.search(r"\b(blockDim|gridDim|unsigned int|size_t|atomic)", text), path


@EMULATED
def test_structures_have_the_size_that_they_are_packed_in():
    assert emulated.module().sizes == parameters.SIZES
