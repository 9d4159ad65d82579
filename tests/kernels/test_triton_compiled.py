"""What the compiler makes of the Triton kernels: registers, spills, access widths, index widths, how many variants.

Needs Triton, and no GPU.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from sca_kernels.functional import check_neuron
from sca_kernels.testing import activation

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from triton.runtime.jit import JITFunction  # noqa: E402  after importorskip

from sca_kernels import triton_kernels  # noqa: E402
from sca_kernels.triton_kernels import bitpack  # noqa: E402
from tests.kernels.compilation import (  # noqa: E402
    NoDevice,
    account,
    compile_only,
    convolve,
    fire,
    fire_behind_norm,
    made_frames,
    move_weights,
    tile_loop,
    tool,
)

pytestmark = [
    pytest.mark.compile_only,
    pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets here, it does not compile"),
]


@pytest.fixture
def compiling(monkeypatch):
    """``compiling(capability)`` -> a list that launched kernels are appended to, compiled and not run."""
    return functools.partial(compile_only, monkeypatch)


def train(x: torch.Tensor, time_steps: int, neuron: str = "lif", surrogate: str = "atan", tau: float = 2.0) -> None:
    """Forward and backward of a neuron, then of batch norm in front of it."""
    config = check_neuron(neuron, tau, 1.0, 0.0, True, False, surrogate, None)
    fire(x, time_steps, config)
    fire_behind_norm(x, time_steps, config)


# --- registers, spills, access widths --------------------------------------------------------------------------------


def disassembled(kernel, tmp_path: Path) -> tuple[Counter, dict[str, int]]:
    """Instructions, and the compiler's account of registers and memory, of a compiled kernel."""
    instruction = r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)"
    return Counter(re.findall(instruction, tool("nvdisasm", kernel, tmp_path), re.M)), account(kernel, tmp_path)


LAUNCHES = ("forward", "backward", "moments", "forward behind norm", "sums behind norm", "backward behind norm")
"""The kernels over activations that :func:`train` starts, in order."""

RESOURCES = {
    (torch.bfloat16, "contiguous"): ((80, 505), (80, 865), (64, 290), (80, 564), (128, 963), (90, 1057)),
    (torch.bfloat16, "channels_last"): ((80, 479), (84, 823), (72, 262), (96, 573), (142, 944), (142, 1015)),
    (torch.float32, "contiguous"): ((64, 275), (54, 442), (56, 170), (64, 307), (88, 489), (64, 543)),
    (torch.float32, "channels_last"): ((72, 256), (58, 403), (66, 125), (80, 274), (96, 467), (95, 499)),
}
"""Per dtype and layout, for each of these: registers of a thread, which decide how many loads are in flight, and
instructions of its loop over tiles, which must stay below what the memory leaves time for. T = 4, the most that sm_80,
sm_90 or sm_100 takes with Triton 3.7.1. A multiprocessor has 65,536 registers: with 128 of them per thread 16 warps
work. A turn of the loop is 8 elements of bfloat16, or 4 of float32, at 4 steps.
"""
MARGIN = 1.1  # rounding up of registers, and other patch releases
# Of other releases 3.5.1 to 3.9.0 take up to a third more registers in the smaller kernels, and spill what
# tests/kernels/spills.py names, to which test_triton_versions.py holds them.
IS_MEASURED = triton.__version__.startswith("3.7.")

OVER_ACTIVATIONS = ("forward_kernel", "backward_kernel", "moments_kernel")


@pytest.mark.parametrize("capability", [80, 90, 100], ids="sm_{}".format)
@pytest.mark.parametrize(("dtype", "layout"), RESOURCES, ids=lambda value: str(value).removeprefix("torch."))
def test_kernels_move_16_bytes_per_access_spill_nothing_and_stay_within_their_registers(
    compiling, tmp_path, capability, dtype, layout
):
    kernels = compiling(capability)
    train(activation((4, 2, 64, 16, 16), dtype, layout == "channels_last"), 4)
    for name, kernel, (registers, length) in zip(LAUNCHES, kernels, RESOURCES[dtype, layout], strict=True):
        instructions, memory = disassembled(kernel, tmp_path)
        loop = tile_loop(kernel, tmp_path)
        assert memory["STACK"] == memory["LOCAL"] == 0, name
        assert not any(i.startswith(("LDL", "STL")) for i in instructions), name
        assert memory["REG"] <= (MARGIN * registers if IS_MEASURED else max(168, MARGIN * registers)), name
        assert memory["SHARED"] <= 1024, name  # the last reduction
        assert loop.total() <= MARGIN * length, name
        # Four steps of x, in the backward also of the gradient; nothing of an activation in smaller pieces.
        assert loop["LDG.E.128"] == (8 if kernel.name == "backward_kernel" else 4), name
        assert loop["STG.E.128"] == (0 if name in ("moments", "sums behind norm") else 4), name
        assert not [i for i in loop if re.match(r"(LDG|STG)\.E(\.U?(8|16|32|64))?$", i)], name
        # One unit of float64 for 64 of float32, on most devices.
        assert not [i for i in loop if i.startswith(("DADD", "DMUL", "DFMA", "DSETP")) or ".F64" in i], name


@pytest.mark.parametrize(("steps", "neuron"), [(8, "lif"), (64, "plif")])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
def test_no_neuron_spills_at_the_most_steps_of_a_kind(compiling, tmp_path, steps, neuron, dtype):
    """With a tau whose division is IEEE, and the surrogate with the most arithmetic."""
    kernels = compiling(90)
    train(activation((steps, 2, 64, 8, 8), dtype, channels_last=True), steps, neuron, "s2nn", 4 / 3)
    for kernel in kernels:
        memory = account(kernel, tmp_path)
        assert memory["STACK"] == memory["LOCAL"] == 0, kernel.name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=["bf16", "fp16", "fp32"])
def test_bits_are_packed_16_bytes_at_a_time(compiling, tmp_path, dtype):
    kernels = compiling(90)
    bitpack.unpack(torch.zeros(1000, dtype=torch.uint8), 8000, dtype)
    bitpack.pack(torch.zeros(8000, dtype=dtype))
    instructions = [disassembled(kernel, tmp_path)[0] for kernel in kernels]
    assert instructions[0]["STG.E.128"]
    assert instructions[1]["LDG.E.128"]


@pytest.mark.parametrize("of", [None, 520], ids=["all", "some"])
@pytest.mark.parametrize(
    ("capability", "dtype", "channels"),
    [
        *((capability, torch.bfloat16, channels) for capability in (80, 90, 100) for channels in (64, 512)),
        (90, torch.float16, 32),
        (90, torch.float32, 64),
    ],
    ids=lambda value: str(value).removeprefix("torch."),
)
def test_convolutions_multiply_on_tensor_cores_and_spill_nothing(compiling, tmp_path, capability, dtype, channels, of):
    kernels = compiling(capability)
    convolve(made_frames(2, channels, 8, dtype), of)
    assert [kernel.name for kernel in kernels] == [
        *("gather_kernel", "correlate_kernel", "gather_kernel", "correlate_kernel"),
        *("weight_gradient_kernel", "scatter_kernel"),
    ]
    for kernel in kernels:
        instructions, memory = disassembled(kernel, tmp_path)
        assert not IS_MEASURED or memory["STACK"] == memory["LOCAL"] == 0, kernel.name
        if kernel.name in ("gather_kernel", "scatter_kernel"):
            continue
        assert re.search(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", kernel.asm["ptx"]), kernel.name
        # Four-byte operands that a product takes transposed move one by one.
        if dtype.itemsize == 2:
            # Copied to shared memory while the last product runs.
            assert [i for i in instructions if i.startswith("LDGSTS") and i.endswith(".128")], kernel.name
            assert instructions["STG.E.128"], kernel.name
            smaller = [i for i in instructions if re.match(r"(LDG|LDGSTS|STG)\.E(\.BYPASS)?(\.U?(8|16|32|64))?$", i)]
            assert not smaller, kernel.name


@pytest.mark.parametrize("capability", [80, 86, 89, 90, 100, 120], ids="sm_{}".format)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("last", [False, True], ids=["contiguous", "channels_last"])
def test_weights_are_written_16_bytes_at_a_time_and_read_so_where_no_list_breaks_their_rows(
    compiling, tmp_path, capability, dtype, last
):
    """64 of 128 outputs, and of 64 inputs 32 or all."""
    kernels = compiling(capability)
    for inputs in (32, None):
        kernels.clear()
        move_weights(dtype, (128, 64, 3, 3), last, inputs, 64)
        assert [kernel.name for kernel in kernels] == ["gather_kernel", "scatter_kernel"]
        for kernel in kernels:
            instructions, memory = disassembled(kernel, tmp_path)
            assert memory["STACK"] == memory["LOCAL"] == 0, kernel.name
            assert memory["REG"] <= 64, kernel.name
            assert any(i.startswith("STG.E.128") for i in instructions), kernel.name
            if inputs is None:
                assert any(i.startswith("LDG.E.128") for i in instructions), kernel.name


def test_no_multiply_add_is_fused_that_a_kernel_does_not_ask_for(compiling, tmp_path):
    """In front of a threshold none does; behind it, gradients and their sums do."""
    kernels = compiling(90)
    train(activation((4, 2, 64, 16, 16)), 4)
    for name, kernel in zip(LAUNCHES, kernels, strict=True):
        loop = tile_loop(kernel, tmp_path)
        asked = sum(2 if pair else 1 for pair in re.findall(r"\bfma\.rn\.f32(x2)?", kernel.asm["ptx"]))
        assert loop["FFMA"] <= asked, name
        assert (loop["FFMA"] > 0) == (kernel.name != "forward_kernel"), name


# --- index widths ----------------------------------------------------------------------------------------------------


def narrow_indexing(ttir: str) -> list[str]:
    """What of a kernel's code computes an address in 32 bits: offsets that are neither constants nor positions within a
    tile, products, and program ids of which more than a quotient or remainder is taken unwidened."""
    lines = [re.sub(r" loc\(.*", "", line.strip()) for line in ttir.splitlines()]
    ranges = set(re.findall(r"(%\w+) = tt\.make_range", ttir)) | set(
        re.findall(r"(%c\w*_i32\w*) = arith\.constant", ttir)
    )
    wrong = []
    for line in lines:
        if "tt.addptr" in line and not line.endswith(("i64", "i64>")):
            offset = re.search(r"tt\.addptr %[\w#]+, (%\w+)", line)[1]
            wrong += [] if offset in ranges else [line]
    wrong += [line for line in lines if re.search(r"arith\.muli .*\bx?i32>?$", line)]
    for program in re.findall(r"(%\w+) = tt\.get_program_id", ttir):
        uses = [line for line in lines if re.search(rf"{program}\b", line.partition(" = ")[2])]
        wrong += [line for line in uses if not re.search(r"arith\.(extsi|divsi|remsi)", line)]
    return wrong


@pytest.mark.parametrize("steps", [4, 20], ids="T={}".format)
def test_no_kernel_indexes_in_32_bits(compiling, steps):
    """checklist: offsets over 2^31, every program id widened first."""
    kernels = compiling(90)
    for shape, last in (((16, 16), False), ((16, 16), True), ((2, 2), False)):
        train(activation((steps, 2, 64, *shape), torch.bfloat16, last), steps, "plif")
    bitpack.unpack(torch.zeros(1000, dtype=torch.uint8), 7999, torch.float32)
    bitpack.pack(torch.zeros(7999))
    for dtype, of, stride in ((torch.bfloat16, None, 1), (torch.float32, 77, 2)):
        convolve(made_frames(2, 64, 8, dtype), of, stride)
    others = {"correlate_kernel", "weight_gradient_kernel", "gather_kernel", "scatter_kernel", "pack_kernel"}
    assert {kernel.name for kernel in kernels} >= {*OVER_ACTIVATIONS, *others}
    assert [line for kernel in kernels for line in narrow_indexing(kernel.asm["ttir"])] == []


def test_narrow_indexing_finds_planted_ones():
    planted = """
      %p = tt.get_program_id x : i32 loc(#loc1)
      %a = arith.muli %p, %c : i32 loc(#loc2)
      %b = tt.addptr %x, %a : !tt.ptr<f32>, i32 loc(#loc3)
      %d = tt.addptr %x, %e : tensor<4x!tt.ptr<f32>>, tensor<4xi64> loc(#loc4)
      %q = arith.divsi %p, %c : i32 loc(#loc5)
      %r = tt.make_range {end = 4 : i32, start = 0 : i32} : tensor<4xi32> loc(#loc6)
      %s = tt.addptr %x, %r : tensor<4x!tt.ptr<f32>>, tensor<4xi32> loc(#loc7)
      %t = tt.addptr %x, %q : !tt.ptr<f32>, i32 loc(#loc8)
    """
    assert [line.partition(" = ")[0] for line in narrow_indexing(planted)] == ["%b", "%t", "%a", "%a"]


# --- how much is compiled --------------------------------------------------------------------------------------------


@pytest.fixture
def variants(monkeypatch):
    """Counts what would be compiled: kernel name -> distinct specialisations asked for."""
    asked: dict[str, set[str]] = {}

    def record(self, key, *arguments, **named):
        asked.setdefault(self.fn.__name__, set()).add(key)

    monkeypatch.setattr(JITFunction, "_do_compile", record)
    monkeypatch.setattr(triton.runtime.driver, "_active", NoDevice(1))
    return asked


def made(steps, n, channels, size, channels_last):
    """An uninitialised bfloat16 activation."""
    x = activation((steps, n, channels, size, size), channels_last=channels_last, device="meta")
    return torch.empty_strided(x.shape, x.stride(), dtype=torch.bfloat16)


@pytest.mark.parametrize("channels_last", [False, True], ids=["contiguous", "channels_last"])
def test_new_sizes_and_pruned_widths_compile_a_small_constant_of_variants(variants, channels_last):
    """checklist: 20 batch sizes x 5 sizes x pruned widths."""
    for channels in (64, 128, 512):
        for size in (2, 4, 8, 16, 32):
            for n in range(1, 21):
                train(made(4, n, channels, size, channels_last), 4)
    counts = {name: len(keys) for name, keys in variants.items()}
    # One kind of tile for channels_last; for contiguous maps one per range of map sizes.
    tiles = 1 if channels_last else 3
    # Forward and backward run with and without batch norm, the backward with it twice.
    assert counts["forward_kernel"] <= 2 * tiles
    assert counts["backward_kernel"] <= 3 * tiles
    assert counts["moments_kernel"] <= tiles
    before = sum(counts.values())
    for channels in (63, 77, 100, 154, 301):
        for n in (1, 3, 8):
            train(made(4, n, channels, 8, channels_last), 4)
    # A width can only change how many elements an access may take: 8, 4, 2 or 1.
    assert sum(len(keys) for keys in variants.values()) <= 4 * before


def test_new_sizes_and_pruned_widths_of_a_convolution_compile_a_small_constant_of_variants(variants):
    for channels in (64, 128, 512):
        for size in (2, 4, 8, 16):
            for m in (1, 2, 3, 16):
                convolve(made_frames(m, channels, size))
    counts = {name: len(keys) for name, keys in variants.items()}
    assert counts["gather_kernel"] == counts["scatter_kernel"] == 1
    # Two tiles; y and the gradient of x.
    assert counts["correlate_kernel"] <= 4
    assert counts["weight_gradient_kernel"] <= 2
    before = sum(counts.values())
    for channels in (8, 40, 80, 104, 152, 304):
        convolve(made_frames(2, channels, 8))
    convolve(made_frames(2, 40, 8), of=64)
    # A list more or less; a tile for the narrowest.
    assert sum(len(keys) for keys in variants.values()) <= before + 5
    before = sum(len(keys) for keys in variants.values())
    for channels, of in ((8, 64), (16, 77), (40, 64), (304, 512)):
        convolve(made_frames(3, channels, 4), of)
    assert sum(len(keys) for keys in variants.values()) <= before + 3  # rows of 77 inputs are no whole accesses


def test_new_widths_of_weights_compile_a_variant_per_layout_and_width_of_an_access(variants):
    for outputs, inputs, some in ((64, 64, 24), (512, 77, 13), (38, 19, 9), (300, 154, 6)):
        for size in (1, 3):
            for last in (False, True):
                move_weights(torch.bfloat16, (outputs, inputs, size, size), last, some, some)
    assert len(variants["gather_kernel"]) <= 2 * 4
    assert len(variants["scatter_kernel"]) <= 2 * 4


def test_all_lengths_beyond_a_chunk_share_one_variant(variants):
    """checklist: T = 63/64/65/129; the bound of a compile-time T is 8."""
    for steps in (9, 16, 63, 64, 65, 129, 512):
        train(made(steps, 2, 64, 4, True), steps)
    counts = {name: len(keys) for name, keys in variants.items()}
    assert counts["forward_kernel"] == 2
    assert counts["backward_kernel"] == 3
    assert counts["moments_kernel"] == 1


def test_code_does_not_grow_with_the_number_of_steps(compiling):
    """checklist: first call under a stated time at T = 4/16/64/128."""
    kernels = compiling(90)
    size = {}
    for steps in (8, 512):
        kernels.clear()
        train(torch.zeros(steps, 1, 64, 2, 2), steps)
        size[steps] = sum(len(kernel.asm["ptx"]) for kernel in kernels)
    assert size[512] <= 2 * size[8]
