"""The Triton backend beyond what every backend is tested for: the shared tests in Triton's interpreter where there is
no CUDA device, what the compiler makes of the kernels, and how often it is asked."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from sca_kernels.backends import choose, registry
from sca_kernels.functional import check_neuron
from sca_kernels.neurons import NEURONS
from sca_kernels.surrogates import TABLE
from sca_kernels.testing import activation

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from triton.backends.compiler import GPUTarget  # noqa: E402  after importorskip
from triton.runtime.jit import JITFunction  # noqa: E402

from sca_kernels import triton_kernels  # noqa: E402
from sca_kernels.triton_kernels import batch_norm, bitpack, multistep  # noqa: E402
from sca_kernels.triton_kernels.neurons import TWINS  # noqa: E402
from sca_kernels.triton_kernels.surrogates import SURROGATES  # noqa: E402

ROOT = Path(__file__).parents[2]
compiled = pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets here, it does not compile")


# --- the shared tests, interpreted -----------------------------------------------------------------------------------

# One test of every kernel and flag at least. All: TRITON_INTERPRET=1 python -m pytest tests/kernels -k triton-cpu
SHARED = {
    "test_neuron.py": "bit_identical and 3.0 or prelude and no-decay or odd_sizes and (13 or 65 or 129)"
    " or half_precision or surrogates_agree or presented or straight_through or empty_batch or exactly_at"
    " or initial_state_of",
    "test_batch_norm.py": "training_follows_torch or large_mean or presented or plif or zero_variance",
    "test_channel_conv.py": "bits_round_trip",
}


@pytest.mark.skipif(triton_kernels.INTERPRETED, reason="the shared tests run in this interpreted process themselves")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the shared tests run on the CUDA device itself")
@pytest.mark.parametrize("file", SHARED)
def test_shared_kernel_tests_in_the_interpreter(file):
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"tests/kernels/{file}"]
    done = subprocess.run(
        [*command, "-k", f"triton-cpu and ({SHARED[file]})"],
        cwd=ROOT,
        env=os.environ | {"TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "skipped" not in done.stdout


# --- the backend -----------------------------------------------------------------------------------------------------


def test_every_neuron_and_surrogate_has_its_twin():
    assert TWINS.keys() == NEURONS.keys()
    assert SURROGATES.keys() == TABLE.keys()


def test_cpu_tensors_never_default_to_the_interpreter(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert choose("", "neuron_forward", torch.zeros(1, 1, 1)).name != "triton"


def test_cpu_tensors_are_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(ValueError, match=r"triton.*TRITON_INTERPRET=1.*Others that can: .*reference"):
        choose("triton", "neuron_forward", torch.zeros(1, 1, 1))


@pytest.mark.parametrize("device", ["cpu", "cuda", "meta"])
def test_float64_is_left_to_the_reference(device, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    ok, reason = registry()["triton"].supports(torch.device(device), torch.float64)
    assert not ok
    assert "float64" in reason or "meta" in reason


def test_every_program_id_is_widened_before_it_is_used():
    """checklist: offsets over 2^31."""
    sources = {path: path.read_text() for path in Path(triton_kernels.__file__).parent.glob("*.py")}
    narrow = [
        f"{path.name}: {line.strip()}"
        for path, source in sources.items()
        for line in source.splitlines()
        if "tl.program_id(" in line and not re.search(r"tl\.program_id\(\d\)\.to\(tl\.int64\)", line)
    ]
    assert narrow == []
    assert sum(source.count("tl.program_id(") for source in sources.values()) >= 4


# --- what is compiled ------------------------------------------------------------------------------------------------


class NoDevice:
    """A Triton driver that compiles for a target and launches nothing. Each target has its own cache of kernels."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return 1000 + self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@pytest.fixture
def compiling(monkeypatch):
    """``compiling(capability)`` -> a list that launched kernels are appended to, compiled and not run."""

    def start(capability: int) -> list:
        kernels = []
        run = JITFunction.run

        def only_compile(self, *args, grid, warmup, **kwargs):
            kernels.append(run(self, *args, grid=grid, warmup=True, **kwargs))

        monkeypatch.setattr(JITFunction, "run", only_compile)
        monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice(capability))
        return kernels

    return start


def disassembled(kernel, tmp_path: Path) -> tuple[Counter, dict[str, int]]:
    """Instructions, and the compiler's account of registers and memory, of a compiled kernel."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])

    def tool(name: str, *arguments: str) -> str:
        path = getattr(triton.knobs.nvidia, name).path
        return subprocess.run([path, *arguments, cubin], capture_output=True, text=True, check=True).stdout

    account = {key: int(value) for key, value in re.findall(r"(\w+):(\d+)", tool("cuobjdump", "-res-usage"))}
    instruction = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)"
    return Counter(re.findall(instruction, tool("nvdisasm"), re.M)), account


def train(x: torch.Tensor, time_steps: int, neuron: str = "lif", surrogate: str = "atan") -> None:
    """Forward and backward of a neuron, then of batch norm in front of it."""
    config = check_neuron(neuron, 2.0, 1.0, 0.0, True, False, surrogate, None)
    c = torch.ones(x.shape[2])
    rate = c if neuron == "plif" else None
    current = multistep.Current(None, None, rate, None)
    spikes, *_ = multistep.forward(x, time_steps, config, current, None, False)
    multistep.backward(spikes, None, x, time_steps, config, current)
    _, mean, var = batch_norm.forward(x, time_steps, config, c, c, 1e-5, rate, None, None, False)
    batch_norm.backward(spikes, None, x, time_steps, config, c, c, mean, var, 1e-5, rate, None)


@compiled
@pytest.mark.parametrize(
    ("capability", "dtype", "channels_last"),
    [(90, dtype, last) for dtype in (torch.bfloat16, torch.float32) for last in (False, True)]
    + [(80, torch.bfloat16, True), (100, torch.bfloat16, True)],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_kernels_move_16_bytes_per_access_and_spill_nothing(compiling, tmp_path, capability, dtype, channels_last):
    kernels = compiling(capability)
    train(activation((4, 2, 64, 16, 16), dtype, channels_last), 4)
    seen = set()
    for kernel in kernels:
        instructions, account = disassembled(kernel, tmp_path)
        assert account["STACK"] == account["LOCAL"] == 0, kernel.name
        assert not any(name.startswith(("LDL", "STL")) for name in instructions), kernel.name
        if kernel.name in ("forward_kernel", "backward_kernel", "deviations_kernel"):
            seen.add(kernel.name)
            # Four steps of x, for the backward also of the gradient; nothing of an activation in smaller pieces.
            assert instructions["LDG.E.128"] == (8 if kernel.name == "backward_kernel" else 4), kernel.name
            assert not [n for n in instructions if re.match(r"STG\.E(\.U?(8|16|32))?$", n)], kernel.name
    assert seen == {"forward_kernel", "backward_kernel", "deviations_kernel"}


@compiled
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_bits_are_packed_16_bytes_at_a_time(compiling, tmp_path, dtype):
    kernels = compiling(90)
    bitpack.unpack(torch.zeros(1000, dtype=torch.uint8), 8000, dtype)
    bitpack.pack(torch.zeros(8000, dtype=dtype))
    instructions = [disassembled(kernel, tmp_path)[0] for kernel in kernels]
    assert instructions[0]["STG.E.128"]
    assert instructions[1]["LDG.E.128"]


@pytest.fixture
def variants(monkeypatch):
    """Counts what would be compiled: kernel name -> distinct specialisations asked for."""
    asked: dict[str, set[str]] = {}

    def record(self, key, *arguments, **named):
        asked.setdefault(self.fn.__name__, set()).add(key)

    monkeypatch.setattr(JITFunction, "_do_compile", record)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice(1))
    return asked


@compiled
@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_new_sizes_and_pruned_widths_compile_a_small_constant_of_variants(variants, channels_last):
    """checklist: 20 batch sizes x 5 sizes x pruned widths."""
    for channels in (64, 128, 512):
        for size in (2, 4, 8, 16, 32):
            for n in range(1, 21):
                train(torch.empty_strided(*strided(n, channels, size, channels_last), dtype=torch.bfloat16), 4)
    counts = {name: len(keys) for name, keys in variants.items()}
    # One kind of tile for channels_last; for contiguous maps one per range of map sizes.
    tiles = 1 if channels_last else 3
    # The backward runs with sums, with batch norm's epilogue, and plain.
    assert counts["forward_kernel"] <= 2 * tiles
    assert counts["backward_kernel"] <= 3 * tiles
    assert counts["deviations_kernel"] <= tiles
    assert counts["statistics_kernel"] == counts["prelude_kernel"] == counts["coefficients_kernel"] == 1
    before = sum(counts.values())
    for channels in (63, 77, 100, 154, 301):
        for n in (1, 3, 8):
            train(torch.empty_strided(*strided(n, channels, 8, channels_last), dtype=torch.bfloat16), 4)
    # A width can only change how many elements an access may take: 8, 4, 2 or 1.
    assert sum(len(keys) for keys in variants.values()) <= 4 * before


def strided(n, channels, size, channels_last):
    x = activation((4, n, channels, size, size), channels_last=channels_last, device="meta")
    return x.shape, x.stride()


@compiled
def test_long_sequences_compile_as_much_code_as_short_ones(compiling):
    """checklist: first call under a stated time at T = 4/16/64/128."""
    kernels = compiling(90)
    config = check_neuron("lif", 2.0, 1.0, 0.0, True, False, "atan", None)
    current = multistep.Current(None, None, None, None)
    size = {}
    for steps in (8, 64, 128):
        kernels.clear()
        x = torch.zeros(steps, 1, 64, 2, 2)
        multistep.forward(x, steps, config, current, None, False)
        multistep.backward(x, None, x, steps, config, current)
        size[steps] = sum(len(kernel.asm["ptx"]) for kernel in kernels)
    assert size[128] == pytest.approx(size[64], rel=0.05)
    assert size[128] <= 2 * size[8]
