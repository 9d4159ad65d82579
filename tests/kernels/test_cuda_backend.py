"""The CUDA backend without a GPU: its kernels and host side run by an emulation on CPU tensors, its machine code read,
its two ways to compile and start kernels checked as far as they go.

On a machine with a GPU the shared tests of this folder run on the device as well.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import io
import os
import re
import runpy
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels.backends import cuda, registry
from sca_kernels.cuda_kernels import multistep, parameters, tiling
from sca_kernels.cuda_kernels.multistep import Current
from sca_kernels.cuda_kernels.tiling import Tiling
from sca_kernels.layout import dense_strides
from sca_kernels.surrogates import TABLE
from sca_kernels.testing import activation, poisoned_memory, relative_l2
from tests.kernels.problems import config_of, run

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
CUDA = torch.device("cuda")


@pytest.fixture
def emulation(monkeypatch):
    """Backend "cuda" on CPU tensors, every uninitialised tensor poisoned."""
    emulated.install(monkeypatch.setattr)
    with poisoned_memory():
        yield


def assert_agrees(ours, truth, bound=2e-6):
    """Spikes and counts equal, everything else within a relative bound; mean and variance within their last bit."""
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].stride() == expected.stride(), name
        if name.endswith(("spikes", "spike_count")):
            assert torch.equal(ours[name], expected), name
        elif name in ("norm.mean", "norm.var"):
            torch.testing.assert_close(ours[name], expected, rtol=1.2e-7, atol=0)
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


def views(x):
    """x [T, N, C, H, W] as other strides present the same values."""
    t, n, c, h, w = x.shape
    wide = torch.randn(t, n + 1, c + 3, h, w)
    wide[:, 1:, 2:-1] = x
    last = torch.empty_strided(wide.shape, dense_strides(wide.shape, True)).copy_(wide)
    return {
        "contiguous": x.contiguous(),
        "channels_last": activation(x.shape, channels_last=True).copy_(x),
        "sliced": wide[:, 1:, 2:-1],
        "sliced channels_last": last[:, 1:, 2:-1],
        "batch first": x.transpose(0, 1).contiguous().transpose(0, 1),
        "transposed": x.mT.contiguous().mT,
        "every other": x.repeat_interleave(2, 4)[..., ::2],
        "unaligned": torch.cat([torch.zeros(1), x.flatten()])[1:].view(x.shape),
    }


VIEWS = list(views(torch.zeros(1, 1, 1, 1, 1)))


@EMULATED
@pytest.mark.parametrize("upstream", [*VIEWS, "expanded", "none"])
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_of_x_and_of_the_upstream_gradient(emulation, view, upstream):
    shape = (3, 4, 8, 6, 4)
    x, grad = activation(shape), torch.randn(shape)
    if upstream == "expanded":
        grad = torch.tensor(0.5).expand(shape)
    elif upstream != "none":
        grad = views(grad)[upstream]
    given = None if upstream == "none" else grad
    grad_v = torch.randn(shape[1:]).transpose(2, 3).contiguous().transpose(2, 3)
    ours = run(BACKEND, views(x)[view], config_of(), given, grad_v=grad_v, v_init=grad_v)
    truth = run(REFERENCE, views(x)[view], config_of(), given, grad_v=grad_v, v_init=grad_v)
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
    with pytest.raises(RuntimeError, match="zeros and ones"):  # torch's assertion; on a device it comes later
        BACKEND.pack_spikes(spikes)


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
    assert walk.chunks * walk.items * walk.rows >= walk.places > (walk.chunks - 1) * walk.items * walk.rows
    assert walk.groups * walk.chunks == plan.blocks <= 8192
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
    resident = [p.resident for _, p in asked if isinstance(p, parameters.Backward)]
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


def test_rows_of_the_headers_are_those_that_the_host_side_names():
    neurons = (CSRC / "include/sca/neurons.h").read_text()
    surrogates = (CSRC / "include/sca/surrogates.h").read_text()
    assert re.findall(r'row\(\d+, \w+, "(\w+)"\)', surrogates) == list(TABLE)
    rows = dict(re.findall(r"row\((\d), ([\w<>]+)\)", neurons[neurons.index("#define SCA_CHARGES") :]))
    charges = {
        "IntegrateAndFire": config_of("if"),
        "Leaky<DivideByTau>": config_of(tau=3.0),
        "Leaky<MultiplyByRate>": config_of(tau=4.0),
        "LeakyFullInput<DivideByTau>": config_of(tau=3.0, decay_input=False),
        "LeakyFullInput<MultiplyByRate>": config_of("plif", decay_input=False),
    }
    listed = re.findall(r"row\((\d), ([\w<>]+)\)", neurons[neurons.index("#define SCA_CHARGES") :])
    found = {name: int(row) for row, name in listed}
    assert {name: parameters.Neuron.of(config).charge for name, config in charges.items()} == {
        name: found[name] for name in charges
    }
    resets = {"HardReset": 0.5, "HardResetToZero": 0.0, "SoftReset": None}
    assert {name: parameters.Neuron.of(config_of(v_reset=value)).reset for name, value in resets.items()} == {
        name: found[name] for name in resets
    }
    assert rows


@EMULATED
def test_structures_have_the_size_that_they_are_packed_in():
    assert emulated.module().sizes == parameters.SIZES


# ---- on or off, and why ----------------------------------------------------------------------------------------------


class Module(types.SimpleNamespace):
    """A stand-in for sca_kernels._cuda."""

    def __init__(self, driver=13000, runtime=13000, architectures="8.0;9.0+PTX", sizes=parameters.SIZES):
        super().__init__(
            driver_version=lambda: driver,
            runtime_version=runtime,
            architectures=architectures,
            sizes=sizes,
            launched=[],
        )

    def launch(self, *arguments):
        self.launched.append(arguments)


@pytest.fixture
def device(monkeypatch):
    """A machine that has modules as given and a device of a capability; returns what sets it up."""
    cuda._kernels.cache_clear()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)

    def set_up(capability=(9, 0), **modules):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)

        def import_module(name):
            if name in modules:
                return modules[name]
            raise ImportError(f"No module named {name!r}")

        monkeypatch.setattr(cuda.importlib, "import_module", import_module)
        return BACKEND.supports(CUDA, torch.float32)

    yield set_up
    cuda._kernels.cache_clear()


def test_a_cpu_tensor_is_refused_by_name():
    with pytest.raises(ValueError, match=r"'cuda' can't run .*device type cpu is not cuda\. Others that can: "):
        F.lif(torch.zeros(2, 1, 3), backend="cuda")


def test_an_unsupported_dtype_is_a_reason():
    assert BACKEND.supports(CUDA, torch.float64) == (
        False,
        "dtype torch.float64 is not float32, bfloat16 or float16",
    )


def test_no_driver_is_a_reason(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ok, reason = BACKEND.supports(CUDA, torch.float32)
    assert not ok
    assert "no driver" in reason


def test_neither_compiled_nor_cupy_is_a_reason_with_both_fixes(device):
    ok, reason = device()
    assert not ok
    assert "neither the compiled module nor CuPy" in reason
    assert "TORCH_CUDA_ARCH_LIST" in reason
    assert "sca_kernels[cupy]" in reason


@pytest.mark.parametrize(
    ("capability", "on"), [((8, 0), True), ((8, 9), True), ((9, 0), True), ((12, 0), True), ((7, 5), False)]
)
def test_compiled_kernels_run_on_their_generation_and_by_ptx_on_later_ones(device, capability, on):
    ok, reason = device(capability, **{"sca_kernels._cuda": Module()})
    assert ok is on
    assert on or "TORCH_CUDA_ARCH_LIST=7.5" in reason


def test_without_ptx_later_devices_are_off(device):
    assert device((10, 0), **{"sca_kernels._cuda": Module(architectures="8.0;9.0")})[0] is False


def test_a_low_capability_is_a_reason(device):
    ok, reason = device((6, 1), **{"sca_kernels._cuda": Module()})
    assert not ok
    assert "6.1" in reason
    assert "7.5" in reason


def test_an_old_driver_is_a_reason(device):
    ok, reason = device(**{"sca_kernels._cuda": Module(driver=12040)})
    assert not ok
    assert "the driver supports CUDA 12.4, the kernels need 13.0" in reason


def test_another_layout_of_the_structures_is_a_reason(device):
    ok, reason = device(**{"sca_kernels._cuda": Module(sizes={"Forward": 1})})
    assert not ok
    assert "out of date" in reason


def test_a_launch_goes_to_the_device_and_current_stream_of_its_tensor(device, monkeypatch):
    module = Module()
    device(**{"sca_kernels._cuda": module})
    entered = []

    class Guard:
        def __init__(self, index):
            entered.append(index)

        def __enter__(self):
            pass

        def __exit__(self, *_):
            entered.append("left")

    monkeypatch.setattr(torch.cuda, "device", Guard)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda d: types.SimpleNamespace(cuda_stream=1000 + d.index))
    bits = parameters.Bits(numel=8)
    BACKEND.launch("k", 3, 128, 64, bits, types.SimpleNamespace(device=torch.device("cuda", 1)))
    assert module.launched == [("k", 3, 128, 64, bytes(bits), 1, 1001)]
    assert entered == [torch.device("cuda", 1), "left"]


# ---- compiled at run time --------------------------------------------------------------------------------------------


class CompileException(Exception):
    pass


class Cupy:
    """As much of CuPy as the backend asks for."""

    __version__ = "14"

    def __init__(self, fails=False):
        self.modules, self.launched, self.device = [], [], None
        owner = self

        class RawModule:
            def __init__(self, **arguments):
                owner.modules.append(arguments)

            def get_function(self, name):
                if fails:
                    raise CompileException("a.cu(1): error: no such thing\nmore")
                return types.SimpleNamespace(kernel=types.SimpleNamespace(ptr=4711))

        class Device:
            def __init__(self, index):
                self.index = index

            def __enter__(self):
                owner.device = self.index

            def __exit__(self, *_):
                owner.device = None

        def launch_kernel(function, *rest):
            *numbers, stream, arguments, extra = rest
            address = ctypes.cast(arguments, ctypes.POINTER(ctypes.c_void_p))[0]
            bits = parameters.Bits.from_address(address)
            owner.launched.append((owner.device, function, numbers, stream, bits.numel, extra))

        self.RawModule = RawModule
        self.cuda = types.SimpleNamespace(
            Device=Device,
            compiler=types.SimpleNamespace(CompileException=CompileException),
            driver=types.SimpleNamespace(launchKernel=launch_kernel),
            runtime=types.SimpleNamespace(driverGetVersion=lambda: 13000, runtimeGetVersion=lambda: 13020),
        )


def test_cupy_serves_where_there_is_no_compiled_module(device):
    ok, reason = device(cupy=Cupy())
    assert ok
    assert "compiled at run time by CuPy 14" in reason


def test_cupy_launches_with_the_structure_by_value_and_compiles_a_kernel_once():
    cupy = Cupy()
    kernels = cuda.RunTime(cupy)
    for _ in range(2):
        kernels.start("sca::pack_bits<float, 4>", 5, 128, 64, bytes(parameters.Bits(numel=77)), 1, 99)
    assert cupy.launched == [(1, 4711, [5, 1, 1, 128, 1, 1, 64], 99, 77, 0)] * 2
    (module,) = cupy.modules
    assert module["name_expressions"] == ("sca::pack_bits<float, 4>",)
    assert "--fmad=false" in module["options"]


def test_a_failed_compile_is_one_sentence_that_names_the_kernel():
    kernels = cuda.RunTime(Cupy(fails=True))
    with pytest.raises(RuntimeError, match=r"^backend cuda: NVRTC can't compile sca::prelude: a.cu\(1\): .*thing$"):
        kernels.start("sca::prelude", 1, 1, 0, b"", 0, 0)


@pytest.mark.parametrize(
    "kernel", ["sca::neuron_backward<float, true, 4>", "sca::moments<sca::float16, false, 1>", "sca::coefficients"]
)
def test_nvrtc_compiles_the_shipped_sources(kernel):
    nvrtc = pytest.importorskip("cupy_backends.cuda.libs.nvrtc", reason="CuPy is not installed")
    try:
        nvrtc.getVersion()
    except Exception as error:
        pytest.skip(f"NVRTC can't be loaded ({type(error).__name__})")
    code, options = cuda.program()
    program = nvrtc.createProgram(code, "kernels.cu", (), ())
    nvrtc.addNameExpression(program, kernel)
    try:
        nvrtc.compileProgram(program, [*options, "-arch=sm_90"])
    except Exception:
        pytest.fail(nvrtc.getProgramLog(program))
    assert nvrtc.getCUBIN(program)


# ---- compiled ahead --------------------------------------------------------------------------------------------------

NVCC = shutil.which("nvcc")
# Registers per thread on sm_80, sm_90 and sm_100 that a kernel may take; all without a spill.
REGISTERS = {
    "neuron_forward<float, true, 4>": 80,
    "neuron_forward<float, false, 4>": 96,
    "neuron_forward<sca::bfloat16, true, 8>": 100,
    "neuron_backward<float, true, 4>": 144,
    "neuron_backward<float, false, 4>": 200,
    "neuron_backward<sca::bfloat16, true, 8>": 192,
    "moments<sca::bfloat16, false, 8>": 80,
}
# 16-byte loads and stores of global memory that must be there: steps in flight, and what is written per step.
WIDE = {"neuron_forward": (4, 4), "neuron_backward": (8, 1), "moments": (4, 0)}


def disassembler() -> str | None:
    """cuobjdump: the toolkit's, or the one that Triton brings."""
    beside = [Path(NVCC).resolve().parent] if NVCC else []
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin:
        beside.append(Path(triton.origin).parent / "backends/nvidia/bin")
    return shutil.which("cuobjdump") or next(
        (found for p in beside if (found := shutil.which("cuobjdump", path=p))), None
    )


@pytest.fixture(scope="module", params=[80, 90, 100], ids=lambda number: f"sm_{number}")
def machine_code(request, tmp_path_factory):
    """A cubin with the kernels of REGISTERS, and what ptxas said."""
    if NVCC is None:
        pytest.skip("nvcc is not installed")
    folder = tmp_path_factory.mktemp("cubin")
    names = {"neuron_forward": "Forward", "neuron_backward": "Backward", "moments": "Moments"}
    lines = [f"template __global__ void sca::{k}(const sca::{names[k.split('<')[0]]});" for k in REGISTERS]
    (folder / "k.cu").write_text("\n".join(['#include "cuda/kernels.h"', *lines]))
    flags = [
        "-std=c++17",
        "-O3",
        "--fmad=false",
        "-prec-div=true",
        f"-arch=sm_{request.param}",
        "-Xptxas=-v",
        f"-I{CSRC}",
    ]
    command = [NVCC, *flags, "-cubin", "-o", str(folder / "k.cubin"), str(folder / "k.cu")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder / "k.cubin", done.stderr


def mangled(kernel: str) -> str:
    """How a kernel's name begins in machine code."""
    name, arguments = kernel.rstrip(">").split("<")
    kind, planes, width = arguments.split(", ")
    kind = {"float": "f", "sca::bfloat16": "NS_8bfloat16E"}[kind]
    return f"_ZN3sca{len(name)}{name}I{kind}Lb{int(planes == 'true')}ELi{width}EEE"


@pytest.mark.parametrize("kernel", REGISTERS)
def test_machine_code_spills_nothing_and_stays_within_its_registers(machine_code, kernel):
    said = machine_code[1]
    report = said[said.index(f"Compiling entry function '{mangled(kernel)}") :]
    stack, stores, loads = map(
        int, re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report).groups()
    )
    registers = int(re.search(r"Used (\d+) registers", report)[1])
    assert (stack, stores, loads) == (0, 0, 0)
    assert registers <= REGISTERS[kernel]
    assert not re.search(r"bytes smem", report.splitlines()[2])  # all of it is dynamic


@pytest.mark.parametrize("kernel", REGISTERS)
def test_machine_code_moves_16_bytes_per_access_and_fuses_no_multiply_add_into_the_neuron(machine_code, kernel):
    if disassembler() is None:
        pytest.skip("cuobjdump is not installed")
    command = [disassembler(), "-sass", str(machine_code[0])]
    sass = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    own = next(part for part in sass.split("Function : ")[1:] if part.startswith(mangled(kernel)))
    loads, stores = WIDE[kernel.split("<")[0]]
    assert len(re.findall(r"\bLDG\.E\.128", own)) >= loads
    assert len(re.findall(r"\bSTG\.E\.128", own)) >= stores
    assert not re.search(r"\b(LDL|STL|ATOM|RED)\b", own)
    # Narrower stores of global memory are none but partial sums in double.
    assert set(re.findall(r"\bSTG\.E[\w.]*", own)) <= {"STG.E.128", "STG.E.64"}


@pytest.fixture(scope="module")
def build():
    """The functions of setup.py."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("setuptools.setup", lambda **_: None)
        patch.chdir(CSRC.parent)
        return types.SimpleNamespace(**runpy.run_path("setup.py"))


def no_gpu(monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("8.0;9.0", ["8.0", "9.0+PTX"]),
        ("10.0 8.0+PTX", ["8.0+PTX", "10.0"]),
        ("9.0", ["9.0+PTX"]),
    ],
)
def test_arch_list_is_honoured_and_ptx_of_the_newest_included(build, monkeypatch, listed, found):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", listed)
    assert build.architectures() == found


def test_without_a_gpu_and_a_list_nothing_is_compiled_ahead(build, monkeypatch):
    no_gpu(monkeypatch)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    with pytest.raises(build.NoCuda, match="no GPU here, and TORCH_CUDA_ARCH_LIST names none"):
        build.architectures()


def test_a_list_that_names_no_number_is_refused(build, monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "Hopper")
    with pytest.raises(build.NoCuda, match=r"expected numbers like '8\.0 9\.0\+PTX', got 'Hopper'"):
        build.architectures()


def test_one_architecture_becomes_machine_code_and_ptx(build):
    assert build.code_for("8.0") == "-gencode=arch=compute_80,code=[sm_80]"
    assert build.code_for("12.0+PTX") == "-gencode=arch=compute_120,code=[sm_120,compute_120]"


@pytest.fixture
def fake_nvcc(tmp_path, monkeypatch):
    """An nvcc that notes how it was called, makes empty files, and fails where it is told to."""

    def make(fails: bool):
        script = tmp_path / "bin" / "nvcc"
        script.parent.mkdir()
        body = f"import os, sys\nopen({str(tmp_path / 'log')!r}, 'a').write(repr(sys.argv[1:]) + chr(10))\n"
        if fails:
            body += "sys.exit('kernels.h(3): error: no such luck')\n"
        body += "open(sys.argv[sys.argv.index('-o') + 1], 'w').close()\n"
        script.write_text(f"#!{sys.executable}\n{body}")
        script.chmod(0o755)
        monkeypatch.setenv("PATH", f"{script.parent}:/usr/bin:/bin")
        monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;9.0")
        monkeypatch.chdir(CSRC.parent)
        return tmp_path

    return make


def compile_ahead(build, folder):
    with contextlib.redirect_stderr(io.StringIO()) as said:
        build.build_cuda(folder / "_cuda.so", folder / "build", ["/include"])
    return said.getvalue()


@pytest.mark.parametrize("ninja", [False, True], ids=["alone", "ninja"])
def test_every_source_is_compiled_without_fused_multiply_add_and_linked_to_a_static_runtime(
    build, fake_nvcc, monkeypatch, ninja
):
    tool = shutil.which("ninja")
    folder = fake_nvcc(fails=False)
    if ninja:
        if tool is None:
            pytest.skip("ninja is not installed")
        (folder / "bin" / "ninja").symlink_to(tool)
    monkeypatch.setattr(build.shutil, "which", shutil.which)
    assert "8.0 9.0+PTX" in compile_ahead(build, folder)
    calls = [eval(line) for line in (folder / "log").read_text().splitlines()]
    sources = {Path(call[call.index("-c") + 1]).name for call in calls if "-c" in call}
    assert sources == {"float32.cu", "bfloat16.cu", "float16.cu", "channels.cu", "cuda.cpp"}
    for call in calls[:-1]:
        assert {"--fmad=false", "-prec-div=true", "-gencode=arch=compute_80,code=[sm_80]"} <= set(call)
        assert '-DSCA_CUDA_ARCHITECTURES="8.0;9.0+PTX"' in call
        assert not [flag for flag in call if "torch" in flag]
    assert {"-shared", "-cudart=static"} <= set(calls[-1])


def test_an_nvcc_that_fails_is_one_sentence_with_its_first_error(build, fake_nvcc):
    folder = fake_nvcc(fails=True)
    with pytest.raises(build.NoCuda, match=r"failed: .*error: no such luck"):
        compile_ahead(build, folder)
    assert not (folder / "_cuda.so").exists()


def test_the_package_finds_its_sources():
    assert (cuda.sources() / "cuda" / "kernels.h").is_file()
    assert (cuda.sources() / "include" / "sca" / "neurons.h").is_file()
