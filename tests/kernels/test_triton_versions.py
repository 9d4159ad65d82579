"""Every Triton kernel, in a representative set of variants, on every Triton that CI has and for every GPU: it compiles,
spills no more than a named table permits, and moves as many bytes per access as its width lets it.

CI runs this once per version in ``.ci/triton_versions``. Needs no GPU.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from sca_kernels.functional import check_neuron
from sca_kernels.testing import activation
from tests.kernels.spills import PERMITTED

triton = pytest.importorskip("triton", reason="needs Triton (pip install triton)")

from sca_kernels import triton_kernels  # noqa: E402  after importorskip
from sca_kernels.triton_kernels import bitpack  # noqa: E402
from tests.kernels.compilation import (  # noqa: E402
    accesses_of,
    account,
    compile_only,
    convolve,
    fire,
    fire_behind_norm,
    made_frames,
    move_weights,
    tile_loop,
)

VERSIONS = (Path(__file__).parents[2] / ".ci" / "triton_versions").read_text().split()
CAPABILITIES = (80, 86, 89, 90, 100, 120)
OVER_ACTIVATIONS = ("forward_kernel", "backward_kernel", "moments_kernel")
KEPT = 128
IN_FULL = {("3.6.0", 90), ("3.7.1", 90)}  # where every case is compiled; elsewhere each on one Triton or the other

pytestmark = [
    pytest.mark.compile_only,
    pytest.mark.skipif(triton_kernels.INTERPRETED, reason="Triton interprets here, it does not compile"),
    pytest.mark.skipif(triton.__version__ not in VERSIONS, reason="the table knows the Tritons of .ci/triton_versions"),
]


class Case(NamedTuple):
    """What starts kernels, and for each kernel over activations the bytes that an access of them moves."""

    start: Callable[[], None]
    access: dict[str, int]


class Modes(NamedTuple):
    """How a neuron is called. ``state``: with v_init, mask and return_v. ``norm``: behind batch norm, else alone."""

    neuron: str = "lif"
    repeat: bool = False
    state: bool = False
    norm: bool = True
    surrogate: str = "atan"
    v_reset: float | None = 0.0


LIF, PLIF, IF = Modes(), Modes("plif", state=True), Modes("if", v_reset=None)
REPEAT, S2NN = Modes(repeat=True), Modes("plif", surrogate="s2nn")


def trained(dtype: torch.dtype, steps: int, shape: tuple[int, int], last: bool, modes: Modes) -> Case:
    """Forward and backward of a neuron over activations [steps, 2, C, S, S], with a tau whose division is IEEE."""
    channels, size = shape

    def start() -> None:
        x = activation((1 if modes.repeat else steps, 2, channels, size, size), dtype, last)
        config = check_neuron(modes.neuron, 4 / 3, 1.0, modes.v_reset, True, False, modes.surrogate, None)
        if modes.norm:
            fire_behind_norm(x, steps, config, modes.state, listed=channels % 2 > 0)
        else:
            fire(x, steps, config, modes.state)

    whole = 16 // dtype.itemsize
    align = next(a for a in (8, 4, 2, 1) if a <= whole and (not last or channels % a == 0))
    # More than four steps whose potentials are kept, of elements that came eight to a thread: half an access.
    crowded = min(align, 4) if steps > 4 else align
    access = {"forward_kernel": align, "moments_kernel": align, "backward_kernel": crowded}
    return Case(start, {name: elements * dtype.itemsize for name, elements in access.items()})


def convolved(dtype: torch.dtype, channels: int, **options: int) -> Case:
    """Forward and backward of a convolution."""
    return Case(lambda: convolve(made_frames(2, channels, 8, dtype), **options), {"correlate_kernel": 16})


def moved(dtype: torch.dtype, last: bool, inputs: int | None) -> Case:
    """A float32 weight's block gathered in a dtype, and scattered to full size, whose rows are whole accesses; where
    the inputs are not listed, so are the block's."""

    def start() -> None:
        move_weights(dtype, (64, 32, 3, 3), last, inputs, 24, has_bias=False)  # which moves one by one

    return Case(start, {"scatter_kernel": 16} if inputs is None else {})


def packed(dtype: torch.dtype, numel: int) -> Case:
    """Bits packed and unpacked; the last byte is not whole where eight do not divide numel."""

    def start() -> None:
        bitpack.unpack(torch.zeros(1000, dtype=torch.uint8), numel, dtype)
        bitpack.pack(torch.zeros(numel, dtype=dtype))

    return Case(start, {})


LAYOUTS = {
    "maps": ((64, 16), False),
    "small maps": ((64, 2), False),
    "64 channels_last": ((64, 8), True),
    "38 channels_last": ((38, 8), True),
    "77 channels_last": ((77, 8), True),
}
WALKS = {
    4: (LIF, REPEAT, REPEAT._replace(state=True), PLIF, LIF),
    8: (LIF, IF, PLIF, LIF, PLIF),
    16: (PLIF, LIF, LIF, REPEAT, LIF),
}
"""Per number of steps, the modes of each layout."""
ALONE = ((4, "maps", PLIF), (8, "64 channels_last", LIF), (16, "38 channels_last", IF), (64, "64 channels_last", S2NN))
"""Neurons without batch norm: steps, layout, modes."""

CASES = {}
for dtype, known in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
    for steps, walk in WALKS.items():
        for (name, layout), modes in zip(LAYOUTS.items(), walk, strict=True):
            CASES[f"{name} {known} T={steps}"] = trained(dtype, steps, *layout, modes)
    for steps, name, modes in ALONE:
        CASES[f"{name} {known} T={steps} alone"] = trained(dtype, steps, *LAYOUTS[name], modes._replace(norm=False))
    for channels in (64, 40, 8):
        CASES[f"convolution {known} {channels}"] = convolved(dtype, channels)
    CASES[f"convolution {known} listed"] = convolved(dtype, 40, of=77)
    CASES[f"convolution {known} depthwise"] = convolved(dtype, 64, depthwise=True)
    CASES[f"convolution {known} 1x1 stride 2"] = convolved(dtype, 64, size=1, stride=2)
    CASES[f"bits {known}"] = packed(dtype, 8000)
    CASES[f"bits {known} ragged"] = packed(dtype, 7999)
for dtype, known in ((torch.bfloat16, "bf16"), (torch.float32, "fp32")):
    for name, last in (("contiguous", False), ("channels_last", True)):
        CASES[f"weights {known} {name}"] = moved(dtype, last, 16)
    CASES[f"weights {known} whole rows"] = moved(dtype, True, None)


def chosen() -> list:
    """(compute capability, case): a share that this Triton's place in the list decides, so that the Tritons together
    compile every case for every architecture; all cases for the architecture and the Tritons in ``IN_FULL``."""
    turn = VERSIONS.index(triton.__version__) if triton.__version__ in VERSIONS else 0
    return [
        pytest.param(capability, case, id=f"sm_{capability}-{case}")
        for column, capability in enumerate(CAPABILITIES)
        for row, case in enumerate(CASES)
        if (triton.__version__, capability) in IN_FULL or (row + column) % len(VERSIONS) == turn
    ]


def accesses(ptx: str) -> tuple[Counter[int], Counter[int]]:
    """Loads from and stores to device memory, each as bytes that an instruction moves -> how many such there are."""
    moved = {"ld": Counter(), "st": Counter()}
    plain = r"\b(ld|st)\.global(?:\.(?!v\d|[bfsu]\d)[\w:]+)*(?:\.v(\d))?\.[bfsu](\d+)"
    for kind, count, bits in re.findall(plain, ptx):
        moved[kind][int(count or 1) * int(bits) // 8] += 1
    to_shared = re.findall(r"cp\.async\.c[ag]\.shared\.global[^,]*,[^,]*, (\w+)", ptx)
    moved["ld"].update(int(size, 0) for size in to_shared)
    return moved["ld"], moved["st"]


def spilled(kernels: list, tmp_path: Path) -> dict[str, int]:
    """Bytes of local memory of the kernels that use it. Those over activations may keep there, once, what they need
    after their loop over tiles (at most ``KEPT`` bytes): of them, how often the loop goes to local memory."""
    seen, found = Counter(), {}
    for kernel in kernels:
        seen[kernel.name] += 1
        memory = account(kernel, tmp_path)
        local = memory["STACK"] + memory["LOCAL"]
        if local and kernel.name in OVER_ACTIVATIONS:
            assert local <= KEPT, kernel.name
            local = sum(n for i, n in tile_loop(kernel, tmp_path).items() if i.startswith(("LDL", "STL")))
        if local:
            found[f"{kernel.name} {seen[kernel.name]}"] = local
    return found


def broken_up(kernels: list, access: dict[str, int], tmp_path: Path) -> list[tuple]:
    """The kernels that load nothing in accesses as wide as expected, or store in narrower ones; of those over
    activations what their loop over tiles does, since sums are narrower."""
    found = []
    for kernel in kernels:
        expected = access.get(kernel.name, 0)
        if not expected:
            continue
        over_tiles = kernel.name in OVER_ACTIVATIONS
        loads, stores = accesses_of(tile_loop(kernel, tmp_path)) if over_tiles else accesses(kernel.asm["ptx"])
        narrower = [size for size in stores if size < expected]
        if not loads[expected] or narrower:
            found.append((kernel.name, expected, loads, stores))
    return found


@pytest.mark.parametrize(("capability", "case"), chosen())
def test_a_kernel_compiles_spills_only_what_is_permitted_and_moves_whole_accesses(
    monkeypatch, tmp_path, capability, case
):
    kernels = compile_only(monkeypatch, capability)
    CASES[case].start()
    assert kernels
    assert broken_up(kernels, CASES[case].access, tmp_path) == []
    assert spilled(kernels, tmp_path) == PERMITTED.get((triton.__version__, capability, case), {})


def test_each_permitted_spill_is_of_a_case_that_is_compiled():
    compiled = {(triton.__version__, *case.values) for case in chosen()}
    assert {case for case in PERMITTED if case[0] == triton.__version__} <= compiled
    assert {version for version, *_ in PERMITTED} <= set(VERSIONS)


def test_accesses_are_counted_in_bytes():
    ptx = """
      @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd1 + 0 ];
      ld.global.L1::evict_last.b16 { %rs1 }, [ %rd1 + 0 ];
      st.global.v2.b64 [ %rd2 + 0 ], { %rd3, %rd4 };
      cp.async.cg.shared.global [ %r5 + 0 ], [ %rd5 + 0 ], 0x10, %r6;
    """
    loads, stores = accesses(ptx)
    assert sorted(loads.elements()) == [2, 16, 16]
    assert sorted(stores.elements()) == [16]


def test_narrower_accesses_are_found(tmp_path):
    class Kernel:
        def __init__(self, load: str, store: str) -> None:
            self.name = "correlate_kernel"
            self.asm = {"ptx": f"ld.global.{load} {{}}, [a];\n st.global.{store} [b], c;"}

    wide, torn, narrow = Kernel("v4.b32", "v4.b32"), Kernel("v4.b32", "b16"), Kernel("v2.b32", "v4.b32")
    access = {"correlate_kernel": 16}
    assert [found[0] for found in broken_up([wide, torn, narrow], access, tmp_path)] == ["correlate_kernel"] * 2
    assert not broken_up([wide], access, tmp_path)
    assert not broken_up([Kernel("b16", "b16")], {"correlate_kernel": 2}, tmp_path)


def test_accesses_in_machine_code_are_counted_in_bytes():
    loads, stores = accesses_of(Counter({"LDG.E.128": 4, "LDG.E.U16.CONSTANT": 1, "STG.E": 2, "STG.E.64": 3, "LDS": 9}))
    assert loads == {16: 4, 2: 1}
    assert stores == {4: 2, 8: 3}
