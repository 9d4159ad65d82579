"""What the CUDA backend launches, without a GPU: variants, memory, where each thread stands, and what the sources may
not do."""

from __future__ import annotations

import re
import types
from pathlib import Path

import pytest
import torch

from sca_kernels.cuda_kernels import launcher, parameters
from sca_kernels.cuda_kernels.launcher import CudaLauncher
from sca_kernels.gpu import batch_norm as gpu_batch_norm
from sca_kernels.gpu import neuron as gpu_neuron
from sca_kernels.gpu.neuron import Current
from sca_kernels.gpu.plan import Plan
from sca_kernels.layout import dense_strides, is_channels_last
from sca_kernels.testing import activation
from sca_kernels.tracking import Tracking
from tests.kernels.cuts import CUTS, EMULATED, GROUPS, KINDS, MANY_TILES, SIZES, STEPS, emulated
from tests.kernels.problems import OPTIONS, config_of, views

CSRC = Path(__file__).parents[2] / "csrc"


PLAIN = [(name, True) for name in ("rests apart, soft", "decay", "rate", "rate, input in full")]
PLAIN += [(name, True) for name in ("piecewise_exp", "triangle", "fast_sigmoid")]


class Launches(list):
    """Stands for what starts kernels, and keeps what it was asked for."""

    def __call__(self, kernel, grid, threads, shared, parameters, on):
        self.append(types.SimpleNamespace(kernel=kernel, grid=grid, shared=shared, parameters=parameters))

    def names(self):
        return [launch.kernel.partition("<")[0].removeprefix("sca::") for launch in self]


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
    launches = Launches()
    x = activation(shape, dtype, channels_last=channels_last)
    gpu_batch_norm.moments(CudaLauncher(launches), x)
    assert [launch.kernel for launch in launches] == [f"sca::moments<{variant}>"]


def test_how_many_launches_a_pass_takes():
    x, c = activation((4, 2, 8, 6, 6)), torch.ones(8)
    current = Current(c, c, None, None)
    launches = Launches()
    launcher = CudaLauncher(launches)
    gpu_neuron.forward(launcher, x, 4, config_of(), current, None, True)
    gpu_neuron.backward(launcher, x, None, x, 4, config_of(), current)
    assert launches.names() == ["neuron_forward", "neuron_backward"]
    launches.clear()
    problem = (launcher, x, 4, config_of(), c, c)
    gpu_batch_norm.forward(*problem, 1e-5, None, None, None, False, None, Tracking(288, running=(c, c)))
    assert launches.names() == ["moments", "neuron_forward"]
    launches.clear()
    norm = torch.ones(4, 8)
    gpu_batch_norm.backward(launcher, x, None, x, 4, config_of(), c, c, norm, 1e-5, None, None)
    assert launches.names() == ["neuron_backward"] * 2
    launches.clear()
    gpu_batch_norm.inference(*problem, c, c, 1e-5, None, None, None, False)
    assert launches.names() == ["neuron_forward"]


@pytest.mark.parametrize(("option", "plain"), [*PLAIN, *((name, False) for name in OPTIONS if name not in dict(PLAIN))])
def test_what_a_neuron_has_beyond_the_defaults_takes_variants_of_its_own(option, plain):
    """But for what is another number, or another charge, alone; potentials leave and enter none but those."""
    config, given = OPTIONS[option]
    launches, x = Launches(), activation((4, 2, 8, 6, 6))
    launcher, vector = CudaLauncher(launches), torch.ones(8)
    current = Current(threshold=vector if "threshold" in given else None)
    gpu_neuron.forward(launcher, x, 4, config, current, None, True)
    gpu_neuron.backward(launcher, x, None, x, 4, config, current)
    gpu_neuron.forward(launcher, x, 4, config, current, None, True, return_h=True)
    gpu_neuron.backward(launcher, x, None, x, 4, config, current, x)
    assert [launch.kernel.endswith(", false>") for launch in launches] == [not plain, not plain, True, True]


def test_shared_memory_stays_within_what_every_device_gives():
    launches = Launches()
    launcher = CudaLauncher(launches)
    for shape in STEPS + SIZES:
        for last in (False, True):
            for dtype in parameters.NAMES:
                x = activation(shape, dtype, channels_last=last)
                v, c = torch.zeros(shape[1:]), torch.ones(shape[2])
                current = Current(c, c, c, v, c)
                gpu_neuron.forward(launcher, x, shape[0], config_of(), current, None, True, return_h=True)
                gpu_neuron.backward(launcher, x, v, x, shape[0], config_of(), current, torch.zeros(shape))
                current = Current(c, c, c, v)
                gpu_neuron.forward(launcher, x, shape[0], config_of(), current, None, True)
                gpu_neuron.backward(launcher, x, v, x, shape[0], config_of(), current)
                gpu_neuron.backward(launcher, x, v, x[:1], shape[0], config_of(), Current(v_init=v))
                gpu_batch_norm.moments(launcher, x)
    assert max(launch.shared for launch in launches) <= 48 * 1024
    backward = [z.parameters for z in launches if isinstance(z.parameters, parameters.BackwardParameters)]
    assert min(p.resident for p in backward) >= 1


def test_no_launch_reads_more_than_x_and_the_upstream_gradient_twice():
    """Up to four steps nothing is kept but in registers and shared memory: no checkpoints, one launch."""
    launches = Launches()
    x = activation((4, 2, 64, 16, 16), channels_last=True)
    gpu_neuron.backward(CudaLauncher(launches), x, None, x, 4, config_of(), Current())
    (only,) = launches
    assert only.parameters.resident == only.parameters.steps == 4
    assert only.parameters.checkpoints is None


def test_offsets_beyond_32_bits_are_handed_over_whole():
    x = torch.empty_strided((2, 2, 1, 4), (2**33, 2**32, 4, 1), device="meta")
    strided = launcher._strided(Plan(CudaLauncher.tile_size, x, 2), "x")
    assert (strided.t, strided.outer) == (2**33, 2**32)


def places_by_definition(tiles, z, planes, block, tile):
    """As the plan describes them, what ``emulated.places`` tells of the kernels, by thread."""
    split, stripe = divmod(block, tiles.stripes)
    number = split * tiles.tiles + tile
    row_tile, column_tile = divmod(number, tiles.column_tiles) if planes else (number, stripe)
    found = {}
    for thread in range(parameters.THREADS):
        row_in_tile, lane = divmod(thread, 1 << tiles.lane_bits)
        row, column = row_tile * tiles.tile_rows + row_in_tile, column_tile * tiles.tile_columns + 4 * lane
        outer, inner = divmod(row, tiles.inner)
        offset = outer * z.outer + inner * z.inner + stripe * z.stripe + column
        dense = (row * tiles.stripes + stripe if planes else row) * tiles.columns + column
        if row < tiles.rows and column < tiles.columns:
            found[thread] = offset, dense
    return found


LARGE = {
    "planes": {"columns": 2**33, "stripes": 3, "splits": 2**29, "column_tiles": 2**26, "tile_columns": 128},
    "planes of many samples": {"columns": 192, "stripes": 200, "splits": 2**23, "column_tiles": 2, "tile_columns": 128},
    "interleaved": {"columns": 4096, "stripes": 32, "splits": 2**25, "tile_columns": 128},
    "uneven": {"columns": 64, "stripes": 1, "splits": 2**30, "tile_columns": 64, "inner": 7},
    "uneven, samples shorter than a tile": {
        "columns": 16,
        "stripes": 1,
        "splits": 2**30,
        "tile_columns": 16,
        "inner": 3,
    },
}


@EMULATED
@pytest.mark.parametrize("sizes", LARGE.values(), ids=LARGE)
def test_places_of_tensors_of_more_than_2_to_the_31_elements(sizes):
    planes, inner, lanes = "column_tiles" in sizes, sizes.get("inner", 1), sizes["tile_columns"] // 4
    rows = parameters.THREADS // lanes
    steps = {"tile_rows": rows, "inner": inner, "outer_step": rows // inner, "inner_step": rows % inner}
    tiles = parameters.TileParameters(rows=2**40, tiles=3, lane_bits=lanes.bit_length() - 1, **{**sizes, **steps})
    z = parameters.Strided(None, 0, 2**21, 2**20, 2**37)
    last = tiles.stripes * tiles.splits - 1
    assert last < 2**31
    for block in (0, 1, last // 2, last - 1, last):
        for tile in range(3):
            found = emulated.module().places(planes, 4, bytes(tiles), bytes(z), block, tile)
            assert found == places_by_definition(tiles, z, planes, block, tile)
            assert found


@EMULATED
@CUTS
@pytest.mark.parametrize("view", list(views(torch.zeros(1, 1, 1, 1, 1))))
@pytest.mark.parametrize("shape", [(2, 5, 12, 4, 4), (1, 3, 4, 20, 24), (1, 40, 8, 2, 2), (1, 5, 3, 7, 7)], ids=str)
def test_every_element_has_one_thread(planned, shape, view, cut):
    planned(**cut)
    x = views(torch.arange(float(torch.Size(shape).numel())).view(shape))[view]
    plan, width = Plan(CudaLauncher.tile_size, x, shape[0]), 4
    if plan.tiles.align != width:
        width = 1
    packed = bytes(launcher._tiles(plan.tiles, shape[2], width)), bytes(launcher._strided(plan, "x"))
    met = [
        place
        for block in range(plan.tiles.programs)
        for tile in range(plan.tiles.tiles)
        for place in emulated.module().places(not plan.tiles.interleaved, width, *packed, block, tile).values()
    ]
    offsets, dense = torch.tensor(met).T
    assert sorted(dense.tolist()) == list(range(0, x[0].numel(), width))
    like = torch.empty_strided(x.shape, dense_strides(x.shape, is_channels_last(x))).copy_(x)
    flat = torch.as_strided(like, (x[0].numel(),), (1,))
    source = torch.as_strided(x, (int(offsets.max()) + 1,), (1,))
    assert torch.equal(source[offsets], flat[dense])


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_and_cuts_are_what_their_tests_need(planned, kind):
    shape, last = KINDS[kind]
    found = []
    for cut in (MANY_TILES, GROUPS):
        planned(**cut)
        found.append(Plan(CudaLauncher.tile_size, activation(shape, channels_last=last), shape[0]).tiles)
    many, grouped = found
    assert many.tiles > 1
    assert grouped.groups > 1
    folded = many.fold > 1
    assert (folded, many.interleaved) == (kind.startswith("folded"), kind != "planes")
    if folded:
        starts = range(0, shape[2] * many.fold, many.fold)
        crossed = any(start // many.tile_columns != (start + many.fold - 1) // many.tile_columns for start in starts)
        assert crossed == (kind != "folded")
        assert (many.fold > many.tile_columns) == ("more columns" in kind)


def test_no_offset_is_taken_in_32_bits():
    """Block indices are widened where they are read, but for the number of a tile (of which the tests above prove that
    it is enough); thread indices, where they enter an offset."""
    read = {"walk.h": ["unsigned"], "bitpack.h": ["int64"] * 2, "neuron_backward.h": ["int64"]}
    for path in (CSRC / "cuda").glob("*.h"):
        text = path.read_text()
        assert re.findall(r"static_cast<(\w+)>\(blockIdx\.x\)", text) == read.get(path.name, []), path
        assert len(re.findall(r"blockIdx", text)) == len(read.get(path.name, [])), path
        assert len(re.findall(r"threadIdx", text)) == len(
            re.findall(r"static_cast<int(?:64)?>\(threadIdx\.x\)", text)
        ), path
        assert not re.search(r"\b(blockDim|gridDim|unsigned int|size_t)", text), path
        # Sums have a fixed order; blocks only count who has arrived.
        atomics = re.findall(r"\batomic\w*\([^)]*\)", text)
        assert atomics == (["atomicAdd(counter, 1)"] if path.name == "sums.h" else []), path


@EMULATED
def test_structures_have_the_size_that_they_are_packed_in():
    assert emulated.module().sizes == parameters.SIZES
