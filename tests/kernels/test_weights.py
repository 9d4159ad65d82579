"""Active blocks of weights: read, and written back in place."""

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels.backends import registry
from sca_kernels.channels import Channels
from sca_kernels.testing import poisoned_memory

ROWS, COLUMNS = torch.tensor([0, 2, 6]), torch.tensor([1, 4])
SHAPES = [(7, 5), (7, 5, 3, 3), (7, 5, 1, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (ROWS, None), (None, COLUMNS), (None, None)])
def test_a_block_goes_back_to_where_it_was_read_and_nowhere_else(target, dtype, layout, shape, rows, columns):
    name, device = target
    weight = torch.randn(shape, device=device).to(dtype)
    rows, columns = (None if index is None else index.to(device) for index in (rows, columns))
    if len(shape) == 4:
        weight = weight.contiguous(memory_format=layout)
    expected = weight if rows is None else weight[rows]
    expected = expected if columns is None else expected[:, columns]
    block = F.gather_weight(weight, columns, rows, backend=name)
    assert torch.equal(block, expected)
    full, active = torch.full_like(weight, 9), torch.zeros(shape[:2], dtype=torch.bool, device=device)
    every = torch.arange(shape[0], device=device), torch.arange(shape[1], device=device)
    listed = [e if index is None else index for e, index in zip(every, (rows, columns), strict=True)]
    active[listed[0][:, None], listed[1]] = True
    F.put_weight(block, full, columns, rows, backend=name)
    assert torch.equal(full[active], weight[active])
    assert (full[~active] == 9).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"])
@pytest.mark.parametrize(("rows", "columns"), [(ROWS, COLUMNS), (ROWS, None), (None, COLUMNS), (None, None)])
@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (7, 5, 1, 1), (40, 300, 1, 2)], ids=str)
def test_blocks_of_a_weight_and_its_bias_are_cast_and_come_back_full_size(target, dtype, layout, rows, columns, shape):
    """What a convolution does with master weights in float32, whatever the layout in which a gradient comes."""
    name, device = target
    backend = registry()[name]
    weight = torch.randn(shape, device=device).contiguous(memory_format=layout)
    bias = torch.randn(shape[0], device=device)
    rows, columns = (None if index is None else index.to(device) for index in (rows, columns))
    channels = Channels(columns, rows)
    every = [
        torch.arange(n, device=device) if index is None else index
        for n, index in zip(shape[:2], (rows, columns), strict=True)
    ]
    block, bias_block = backend.gather_weight(weight, bias, channels, dtype)
    truth = weight[every[0][:, None], every[1]], bias[every[0]]
    rounding = 0 if dtype == torch.float32 else 2**-7  # Triton's interpreter cuts off
    for z, expected in zip((block, bias_block), truth, strict=True):
        assert z.dtype == dtype
        torch.testing.assert_close(z.float(), expected, rtol=rounding, atol=0)
    for format_ in (torch.contiguous_format, torch.channels_last):
        with poisoned_memory():
            full, full_bias = backend.scatter_weight(
                block.contiguous(memory_format=format_), bias_block, weight, channels
            )
        assert full.dtype == full_bias.dtype == torch.float32
        assert (rows is None and columns is None) or full.stride() == weight.stride()
        expected = torch.zeros_like(weight), torch.zeros_like(bias)
        expected[0][every[0][:, None], every[1]] = block.float()
        expected[1][every[0]] = bias_block.float()
        assert torch.equal(full, expected[0])
        assert torch.equal(full_bias, expected[1])


def test_blocks_lie_beside_their_weight_whatever_the_default_device():
    weight = torch.randn(SHAPES[1])
    with torch.device("meta"):
        block = F.gather_weight(weight, COLUMNS, ROWS)
    assert torch.equal(block, weight[ROWS][:, COLUMNS])


def test_index_lists_may_have_any_stride():
    weight, x = torch.randn(8, 8, 3, 3), torch.randn(2, 4, 5, 5)
    even = torch.arange(8)[::2]
    assert torch.equal(F.gather_weight(weight, even, even), weight[even][:, even])
    y = F.channel_conv2d(x, weight, padding=1, in_channels=even, out_channels=even)
    torch.testing.assert_close(y, torch.conv2d(x, weight[even][:, even], padding=1))


def test_autograd_sees_that_a_weight_was_written():
    weight = torch.randn(SHAPES[0], requires_grad=True)
    loss = weight.square().sum()
    F.put_weight(torch.zeros(3, 2), weight, COLUMNS, ROWS)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_blocks_and_weights_that_do_not_fit_are_refused():
    weight = torch.randn(SHAPES[1])
    with pytest.raises(ValueError, match=r"block: expected torch.float32 \(3, 2, 3, 3\) on cpu, got .*\(3, 1, 3, 3\)"):
        F.put_weight(torch.zeros(3, 1, 3, 3), weight, COLUMNS, ROWS)
    with pytest.raises(TypeError, match=r"in_channels: expected a 1-D int64 tensor or None, got torch.int32"):
        F.gather_weight(weight, COLUMNS.int())
    with pytest.raises(ValueError, match=r"weight: expected .* contiguous or channels_last, got .*with strides"):
        F.gather_weight(weight.transpose(0, 1), COLUMNS, ROWS)


@pytest.mark.parametrize("index", [-1, 5])
def test_an_index_that_is_no_channel_writes_nothing(index):
    weight = torch.zeros(SHAPES[0])
    with pytest.raises(ValueError, match=r"in_channels: expected unique indices in \[0, 5\)"):
        F.put_weight(torch.ones(7, 2), weight, torch.tensor([0, index]))
    assert not weight.any()


@pytest.mark.parametrize("name", ["in_channels", "out_channels"])
def test_an_empty_list_is_refused(target, name):
    """It has no address, which the compiled kernels would take for all channels: they crashed."""
    backend, device = target
    weight = torch.randn(2, 5, 3, 3, device=device)
    nothing = torch.empty(0, dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=f"{name}: expected at least one channel"):
        F.gather_weight(weight, backend=backend, **{name: nothing})
    with pytest.raises(ValueError, match=f"{name}: expected at least one channel"):
        F.put_weight(weight[:0], weight, backend=backend, **{name: nothing})
