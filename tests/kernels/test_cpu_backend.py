"""The compiled CPU backend: every instruction set, any number of threads, odd sizes, any strides, large counts."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sca_kernels.backends import cpu, registry
from sca_kernels.surrogates import TABLE
from sca_kernels.testing import activation, poisoned_memory, relative_l2
from tests.kernels.problems import config_of, run, views

BACKEND, REFERENCE = registry()["cpu"], registry()["reference"]
ON, WHY_NOT = BACKEND.supports(torch.device("cpu"), torch.float32)
pytestmark = [pytest.mark.native, pytest.mark.skipif(not ON, reason=f"backend cpu: {WHY_NOT}")]

LAYOUTS = pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])


def assert_agrees(ours, truth, bound=1e-6):
    """Spikes and counts equal, everything else within a relative bound."""
    assert ours.keys() == truth.keys()
    for name, expected in truth.items():
        assert ours[name].dtype == expected.dtype, name
        assert ours[name].shape == expected.shape, name
        if name.endswith(("spikes", "spike_count")):
            assert torch.equal(ours[name], expected), name
        else:
            # Batch norm of a value or two has no gradient but rounding's: there nothing relative can be asked.
            vanishes = name == "norm_backward.x" and expected.abs().max() < 1e-5
            assert vanishes or relative_l2(ours[name], expected) <= bound, name
            assert not vanishes or ours[name].abs().max() < 1e-5, name


def assert_identical(one, other):
    assert one.keys() == other.keys()
    for name, expected in one.items():
        assert torch.equal(other[name], expected), name


# ---- instruction sets ------------------------------------------------------------------------------------------------

BATTERY = {
    "if-soft": config_of("if", v_reset=None),
    "lif-divides": config_of(tau=3.0, surrogate="sigmoid"),
    "lif-multiplies": config_of(tau=4.0, v_reset=-0.5, decay_input=False, detach_reset=True, surrogate="erf"),
    "plif": config_of("plif", surrogate="q_pseudo_spike"),
    **{f"surrogate-{name}": config_of(surrogate=name) for name in TABLE},
}


def battery():
    """Results of a set of problems that meets every kernel, both layouts and dtypes, whole lines and remainders."""
    torch.manual_seed(0)
    results = {}
    for number, (name, config) in enumerate(BATTERY.items()):
        shape = (9, 3, 13, 5, 7) if number % 2 else (4, 2, 32, 8, 8)
        dtype = torch.bfloat16 if number % 3 == 2 else torch.float32
        x = activation(shape, dtype, channels_last=bool(number // 2 % 2))
        grad = torch.randn(shape).to(dtype)
        for key, value in run(BACKEND, x, config, grad, affine=bool(number % 2)).items():
            results[f"{name}.{key}"] = value
    return results


@pytest.fixture(scope="module")
def results_by_isa(tmp_path_factory):
    folder = tmp_path_factory.mktemp("isa")
    found = {}
    for isa in cpu._load().available_isas():
        code = f"import sys; sys.path[:0] = {[str(Path(__file__).parent), *sys.path]!r}\n"
        code += "import test_cpu_backend as t, torch\n"
        code += f"assert t.cpu._load().isa() == {isa!r}\ntorch.save(t.battery(), {str(folder / isa)!r})"
        environment = {**os.environ, "SCA_KERNELS_CPU_ISA": isa}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        found[isa] = torch.load(folder / isa, weights_only=True)
    return found


def test_every_instruction_set_gives_the_same_bits_sums_and_gradients_included(results_by_isa):
    assert "baseline" in results_by_isa
    for results in results_by_isa.values():
        assert_identical(results_by_isa["baseline"], results)


@pytest.mark.parametrize("name", BATTERY)
def test_baseline_kernels_agree_with_the_reference(results_by_isa, name, monkeypatch):
    """Together with the test above: every instruction set does."""
    monkeypatch.setattr(sys.modules[__name__], "BACKEND", REFERENCE)
    torch.manual_seed(0)
    truth = battery()
    own = [key for key in truth if key.startswith(f"{name}.")]
    half = truth[f"{name}.forward.spikes"].dtype == torch.bfloat16
    ours = results_by_isa["baseline"]
    assert_agrees({k: ours[k] for k in own}, {k: truth[k] for k in own}, bound=4e-3 if half else 2e-6)


@pytest.mark.parametrize("named", ["sse9", "AVX512"])
def test_an_unknown_instruction_set_is_an_error_that_lists_the_known_ones(named):
    code = "import torch\nfrom sca_kernels.backends import registry\n"
    code += "print(registry()['cpu'].supports(torch.device('cpu'), torch.float32))"
    environment = {**os.environ, "SCA_KERNELS_CPU_ISA": named}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(False")
    assert named in done.stdout
    assert "baseline" in done.stdout


# ---- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@LAYOUTS
@pytest.mark.parametrize("shape", [(4, 8, 24, 16, 16), (2, 3, 1, 300, 70), (5, 64, 10)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(threads, shape, channels_last):
    x = activation(shape, channels_last=channels_last)
    grad, config = torch.randn(shape), config_of("plif")
    threads(1)
    alone = run(BACKEND, x, config, grad, affine=True)
    for count in (2, 3):
        threads(count)
        assert_identical(alone, run(BACKEND, x, config, grad, affine=True))


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_torch_and_the_kernels_share_one_openmp_runtime():
    """In a process of their own: other libraries (scikit-learn's wheel) bring another."""
    code = """
import torch
from sca_kernels import functional as F
F.lif(torch.randn(4, 8, 64, 16, 16), backend="cpu")
print(len({line.split()[-1] for line in open("/proc/self/maps") if "libgomp" in line}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


# ---- sizes -----------------------------------------------------------------------------------------------------------

ODD = [(t, 2, 3, 5) for t in (1, 7, 8, 9, 63, 64, 65, 129)]
ODD += [(3, 2, c, s) for c in (1, 13) for s in (1, 3, 17, 63, 64, 65, 1000)]
ODD += [(5, 1, 1, 1), (2, 3, 1030, 2), (3, 2, 2, 2500), (2, 2, 600, 3), (2000, 1, 2, 3)]


@LAYOUTS
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("shape", ODD, ids=lambda s: "x".join(map(str, s)))
def test_odd_sizes_are_fully_written_and_agree_with_the_reference(shape, affine, channels_last):
    x, v = activation(shape, channels_last=channels_last), torch.randn(shape[1:])
    problem = {"grad": torch.randn(shape), "grad_v": torch.randn(shape[1:]), "affine": affine, "v_init": v}
    config = config_of("plif" if affine else "lif")
    with poisoned_memory():
        ours = run(BACKEND, x, config, **problem)
    # In float64, since sums over many steps may cancel: there float32 says little about either side.
    double = {k: z.double() if isinstance(z, torch.Tensor) else z for k, z in problem.items()}
    exact = run(REFERENCE, x.double(), config, **double)
    assert_agrees(ours, {k: z.to(ours[k].dtype) for k, z in exact.items()}, bound=5e-6)


@LAYOUTS
def test_empty_tensors_do_nothing_and_zero_the_sums(channels_last):
    x = activation((3, 0, 4, 2, 2), channels_last=channels_last)
    with poisoned_memory():
        out = BACKEND.neuron_forward(x, 3, config_of(), None, None, None, None, None, True)
        g = BACKEND.neuron_backward(x, None, x, 3, config_of(), torch.ones(4), torch.ones(4), None, None)
    assert out.spikes.shape == x.shape
    assert out.spike_count.tolist() == out.membrane_l1.tolist() == g.scale.tolist() == g.shift.tolist() == [0] * 4


@pytest.mark.parametrize("positions", [2**24 + 7, 2**31 + 5], ids=["2^24", "2^31"])
def test_counts_above_the_precision_of_float32_and_int32_are_exact(positions):
    """A logical size of gigabytes in kilobytes: samples have stride 0, in x and in the spikes."""
    width = 2**14 + 1
    samples = positions // width + 1
    x, spikes = torch.full((width,), 3.0), torch.empty(width)
    count, l1 = torch.zeros(1, dtype=torch.int64), torch.zeros(1)
    x[::2] = 0.0
    view = ((x.data_ptr(), (0, 0, 0, 1)), (spikes.data_ptr(), (0, 0, 0, 1)))
    neuron, shape = cpu._neuron(config_of("if")), (1, samples, 1, width)
    sums = count.data_ptr(), l1.data_ptr()
    behind = 1, view[0], None, 0, 0, 0, (0, 0), view[1], None, None, 0, *sums
    cpu._load().neuron_forward(neuron, shape, "float32", *behind)
    assert samples * width > positions
    assert count.item() == samples * (width // 2)
    assert l1.item() == 0.0


# ---- memory ----------------------------------------------------------------------------------------------------------


VIEWS = list(views(torch.zeros(1, 1, 1, 1, 1)))


@pytest.mark.parametrize("upstream", VIEWS)
@pytest.mark.parametrize("view", VIEWS)
def test_any_strides_of_x_and_of_the_upstream_gradient_without_a_copy(view, upstream, monkeypatch):
    x, grad = activation((3, 4, 6, 5, 7)), torch.randn(3, 4, 6, 5, 7)
    truth = run(REFERENCE, x, config_of(), grad, affine=True)
    monkeypatch.setattr(cpu, "in_layout_of", None)  # what would copy
    assert_agrees(run(BACKEND, views(x)[view], config_of(), views(grad)[upstream], affine=True), truth)


@LAYOUTS
def test_expanded_and_transposed_inputs(channels_last):
    x = activation((3, 2, 4, 5, 6), channels_last=channels_last)
    for grad in (torch.tensor(0.5).expand(x.shape), torch.randn(3, 1, 1, 1, 1).expand(x.shape), x.transpose(3, 4).mT):
        assert_agrees(run(BACKEND, x, config_of(), grad), run(REFERENCE, x, config_of(), grad))
    swapped = torch.randn(3, 2, 4, 6, 5).transpose(3, 4)
    assert_agrees(run(BACKEND, swapped, config_of(), x), run(REFERENCE, swapped, config_of(), x))
    one = x[:, :1].expand(3, 5, 4, 5, 6)
    assert_agrees(run(BACKEND, one, config_of()), run(REFERENCE, one, config_of()))


@LAYOUTS
@pytest.mark.parametrize("affine", [False, True], ids=["plain", "affine"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def test_one_step_presented_many_times_sums_its_gradient_over_time(dtype, affine, channels_last):
    x = activation((1, 3, 5, 6, 7), dtype, channels_last=channels_last)
    problem = {"grad": torch.randn(11, 3, 5, 6, 7).to(dtype), "time_steps": 11, "affine": affine}
    ours, truth = run(BACKEND, x, config_of(), **problem), run(REFERENCE, x, config_of(), **problem)
    assert_agrees(ours, truth, bound=2e-6 if dtype == torch.float32 else 4e-3)


@LAYOUTS
@pytest.mark.parametrize("size", [180, 190], ids=["parked", "computed twice"])
def test_batch_norm_backward_agrees_on_both_sides_of_what_it_parks(size, channels_last):
    """Up to 2^18 elements of a stripe (a channel; in channels_last, all) dL/dy is kept between the two passes."""
    x = activation((4, 1 if channels_last else 2, 2, size, size), channels_last=channels_last)
    problem = {"grad": torch.randn_like(x), "affine": True}
    exact = run(REFERENCE, x.double(), config_of(), problem["grad"].double(), affine=True)
    ours = run(BACKEND, x, config_of(), **problem)
    assert_agrees(ours, {k: z.to(ours[k].dtype) for k, z in exact.items()}, bound=5e-6)


@LAYOUTS
@pytest.mark.parametrize("size", [(64, 64), (54, 76)], ids=["whole lines", "with remainders"])
def test_outputs_past_the_caches_are_the_same_as_small_ones(size, channels_last):
    """Above 8 MiB kernels store past the caches; sample by sample they don't."""
    x = activation((2, 20, 16, *size), channels_last=channels_last)
    grad, config = torch.randn_like(x), config_of()
    out = BACKEND.neuron_forward(x, 2, config, None, None, None, None, None, False)
    g = BACKEND.neuron_backward(grad, None, x, 2, config, None, None, None, None)
    for n in range(20):
        one, g_one = x[:, n : n + 1], grad[:, n : n + 1]
        alone = BACKEND.neuron_forward(one, 2, config, None, None, None, None, None, False)
        assert torch.equal(alone.spikes, out.spikes[:, n : n + 1])
        alone = BACKEND.neuron_backward(g_one, None, one, 2, config, None, None, None, None)
        assert torch.equal(alone.x, g.x[:, n : n + 1])


def test_bfloat16_gradients_round_to_nearest_even_and_keep_nan():
    x = torch.zeros(1, 1, 1, 4096)
    grad = torch.randn(1, 1, 1, 4096).to(torch.bfloat16)
    scale = torch.rand(1) + 0.5
    grad[..., 5] = float("nan")
    arguments = (1, config_of("if", surrogate="leaky_k_relu")._replace(v_threshold=-1.0), scale, None, None, None)
    ours = BACKEND.neuron_backward(grad, None, x.bfloat16(), *arguments).x
    assert torch.equal(ours.isnan(), grad.isnan())
    assert torch.equal(ours.nan_to_num(), (grad.float() * scale).bfloat16().nan_to_num())


def test_nan_in_the_input_stays_in_its_element():
    x = activation((3, 2, 4, 5, 6))
    x[0, 1, 2, 3, 4] = float("nan")
    out = BACKEND.neuron_forward(x, 3, config_of(), None, None, None, None, None, True)
    assert out.v.isnan().nonzero().tolist() == [[1, 2, 3, 4]]
    assert out.membrane_l1.isnan().tolist() == [False, False, True, False]
    assert not out.spikes.isnan().any()


# ---- bits ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("numel", [0, 1, 7, 8, 9, 511, 512, 513, 40_001])
def test_pack_and_unpack_round_trip_and_equal_the_reference(numel, dtype):
    spikes = (torch.rand(numel) < 0.3).to(dtype)
    packed = BACKEND.pack_spikes(spikes)
    assert torch.equal(packed, REFERENCE.pack_spikes(spikes))
    assert torch.equal(BACKEND.unpack_spikes(packed, numel, dtype), spikes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("position", [0, 100, 5000, 70_000])
@pytest.mark.parametrize("value", [0.5, 2.0, -1.0, float("nan"), float("inf")])
def test_pack_refuses_other_values_wherever_they_are(value, position, dtype):
    spikes = torch.ones(70_001, dtype=dtype)
    spikes[position] = value
    with pytest.raises(ValueError, match="zeros and ones"):
        BACKEND.pack_spikes(spikes)


def test_pack_takes_negative_zero_for_zero():
    assert BACKEND.pack_spikes(torch.tensor([-0.0, 1.0])).tolist() == [2]


# ---- the module ------------------------------------------------------------------------------------------------------


def test_supports_says_what_it_is_not_for():
    assert BACKEND.supports(torch.device("cpu"), torch.float64) == (
        False,
        "dtype torch.float64 is neither float32 nor bfloat16",
    )
    assert BACKEND.supports(torch.device("cuda"), torch.float32)[0] is False


def test_the_binding_names_a_bad_argument():
    module = cpu._load()
    view = (0, (0, 0, 0, 0))
    structs = {"SCA_CHARGES": "IntegrateAndFire", "SCA_RESETS": "SoftReset", "SCA_SURROGATES": "Atan"}
    for listed in structs:
        with pytest.raises(ValueError, match=f"Nowhere: expected a row of {listed} in csrc/include/sca"):
            module.NeuronConfig(*(structs | {listed: "Nowhere"}).values(), False, False, *[0.5] * 8)
    for shape, dtype, says in (((1, 1, 1, 1), "float64", "dtype"), ((0, 1, 1, 1), "float32", "shape")):
        behind = 1, view, None, 0, 0, 0, (0, 0), view, None, None, 0, 0, 0
        with pytest.raises(ValueError, match=says):
            module.neuron_forward(cpu._neuron(config_of()), shape, dtype, *behind)


def test_every_surrogate_of_the_table_is_compiled_in():
    for name in TABLE:
        cpu._neuron(config_of(surrogate=name))


def test_configurations_of_neurons_are_not_kept_for_ever():
    kept = cpu._neuron.cache_info().maxsize
    for tau in range(2, kept + 10):
        cpu._neuron(config_of(tau=float(tau)))
    assert cpu._neuron.cache_info().currsize <= kept
