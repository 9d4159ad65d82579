"""Generated calls of everything public in sca_kernels, with up to three hostile arguments each: a right result, or a
TypeError or ValueError that names an argument and has changed nothing."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn, surrogates
from sca_kernels.layout import state_dtype
from tests.calls import Stage, run_calls

NEURONS = ("if", "lif", "plif")
NORMS = {"if": "nn.BatchNormIF", "lif": "nn.BatchNormLIF", "plif": "nn.BatchNormPLIF"}
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def current(rng: random.Random, channels: int, dims: tuple[int, ...] = (0, 1, 2), steps: int | None = None) -> str:
    """An activation [T, N, C, *S] in some layout."""
    t, n = steps or rng.randint(1, 4), rng.randint(0, 3) if rng.random() < 0.3 else rng.randint(1, 3)
    sizes = [t, n, channels, *(rng.randint(1, 5) for _ in range(rng.choice(dims)))]
    text = f"(torch.randn({', '.join(map(str, sizes))}) * 1.5 + 0.3)"
    layout = rng.random()
    if layout < 0.2 and len(sizes) > 3:
        text += ".movedim(2, -1).contiguous().movedim(-1, 2)"
    elif layout < 0.3:
        text += ".transpose(0, 1).contiguous().transpose(0, 1)"
    elif layout < 0.4:
        text += ".expand(" + ", ".join(map(str, sizes)) + ")"
    return text + rng.choice(("", "", "", ".requires_grad_()", ".bfloat16()"))


def some(rng: random.Random, **choices: Any) -> dict[str, str]:
    """About half of these arguments; a choice is a text, or several."""
    picked = {name: texts if isinstance(texts, str) else rng.choice(texts) for name, texts in choices.items()}
    return {name: text for name, text in picked.items() if rng.random() < 0.5}


def vector(channels: int, shift: float = 0.5) -> str:
    return f"torch.rand({channels}) + {shift}"


def shape_of(x: str) -> torch.Size:
    state = torch.get_rng_state()
    shape = eval(x, {"torch": torch}).shape
    torch.set_rng_state(state)
    return shape


def neuron_arguments(rng: random.Random, kind: str, channels: int) -> dict[str, str]:
    named = some(
        rng,
        v_threshold=("1.0", "0.5", "1", "float('inf')", "torch.tensor(0.5)", vector(channels)),
        v_reset=("0.0", "None", "-0.2"),
        v_rest=("0.0", "None", "-0.1"),
        fire=("'>='", "'>'"),
        detach_reset=("True", "False"),
        surrogate=tuple(repr(name) for name in surrogates.TABLE),
        alpha=("2.0", "3", "None"),
        backend=("None", "'reference'"),
    )
    if named.get("surrogate") == "'triangle'":  # whose alpha is warned of, if it is any but 1
        named["alpha"] = "1"
    named |= some(rng, v_subtract=("0.5", "None")) if named.get("v_reset") == "None" else {}
    named |= rng.choice((some(rng, tau=("2.0", "3", "1.5")), {"rate": "0.3"})) if kind == "lif" else {}
    if kind == "lif" and rng.random() < 0.2:
        return named | {"rate": "None", "decay": "0.9", "decay_input": "False"}
    return named | (some(rng, decay_input=("True", "False")) if kind != "if" else {})


def check_spikes(x: torch.Tensor, steps: int, spikes: torch.Tensor) -> None:
    assert spikes.shape == (steps, *x.shape[1:]), f"shape {tuple(spikes.shape)}"
    assert spikes.dtype == x.dtype, f"dtype {spikes.dtype}"
    if not x.is_meta:
        assert bool(((spikes == 0) | (spikes == 1)).all()), "not spikes"


def check_output(values: dict[str, Any], out: F.NeuronOutput, repeat) -> None:
    """Bit for bit what the reference backend gives, and its gradient."""
    x = values["x"]
    steps = x.shape[0] if values.get("time_steps") is None else values["time_steps"]
    check_spikes(x, steps, out.spikes)
    assert (out.v is None) == (values.get("return_v") is False), "v"
    assert out.v is None or (out.v.shape == x.shape[1:] and out.v.dtype == state_dtype(x)), "v"
    if x.is_meta:
        return
    expected = repeat(values | {"backend": "reference"})
    assert isinstance(out, F.NeuronSequences) == (bool(values.get("return_v_seq")) or bool(values.get("return_h_seq")))
    for name in ("spikes", "v", "spike_count", "v_seq", "h_seq"):
        ours, theirs = getattr(out, name, None), getattr(expected, name, None)
        assert theirs is None or torch.equal(ours, theirs), f"{name} differ from the reference's"
    assert out.membrane_l1.isinf().any() or torch.allclose(out.membrane_l1, expected.membrane_l1, 1e-4), "membrane_l1"
    if x.requires_grad and x.is_leaf and out.spikes.numel():
        (grad,) = torch.autograd.grad(out.spikes.sum(), x)
        (wanted,) = torch.autograd.grad(expected.spikes.sum(), x)
        assert torch.allclose(grad, wanted, 1e-3, 1e-4, equal_nan=True), "gradient differs from the reference's"


def neuron(rng: random.Random):
    kind, channels = rng.choice(NEURONS), rng.randint(1, 4)
    x = current(rng, channels)
    shape = shape_of(x)
    function = {"if": F.if_neuron, "lif": F.lif, "plif": F.plif}[kind] if rng.random() < 0.5 else F.neuron
    named = neuron_arguments(rng, kind, channels) | some(
        rng,
        scale=vector(channels),
        shift=f"torch.randn({channels})",
        v_init=f"torch.randn({', '.join(map(str, shape[1:]))})",
        channel_mask=f"torch.arange({channels}) % 2 == 0",
        time_steps=(str(shape[0]), "None") if shape[0] > 1 else ("1", "3"),
        return_v=("True", "False"),
        return_v_seq=("True", "False"),
        return_h_seq=("True", "False"),
    )
    named |= {"w": rng.choice((f"torch.randn({channels})", "torch.zeros(1)"))} if kind == "plif" else {}
    named |= {"neuron": repr(kind)} if function is F.neuron else {}
    check = lambda values, out, before: check_output(values, out, lambda again: function(**again))  # noqa: E731
    return (Stage(f"F.{function.__name__}", {"x": x, **named}),), check


def statistics(rng: random.Random, channels: int) -> dict[str, str]:
    named = {
        "weight": rng.choice(("None", vector(channels))),
        "bias": rng.choice(("None", f"torch.randn({channels})")),
        "running_mean": "None",
        "running_var": "None",
        "training": rng.choice(("True", "False")),
    }
    if rng.random() < 0.7:
        dtype = rng.choice(("", "", ".bfloat16()", ".double()"))
        named |= {
            "running_mean": f"torch.randn({channels}){dtype}",
            "running_var": f"(torch.rand({channels}) + 0.5){dtype}",
        }
    return named | some(rng, momentum=("0.1", "1", "torch.tensor(0.3)"), eps=("1e-5", "1e-3"), process_group="None")


def check_moved(values: dict[str, Any], before: dict[str, Any]) -> None:
    """Running statistics as torch moves them."""
    x, mean = values["x"], values["running_mean"]
    if mean is None or x.is_meta or not {"running_mean", "running_var"} <= before.keys():
        return
    given = (before["running_mean"], before["running_var"], x)
    if not all(z.isfinite().all() and z.abs().amax() < 1e9 for z in given if z.numel()):
        return
    if not values["training"] or x.numel() == 0:
        moved = [name for name in ("running_mean", "running_var") if not torch.equal(values[name], before[name])]
        assert not moved, f"moved {moved}"
        return
    expected, var = before["running_mean"].double(), before["running_var"].double()
    expected, var = (z.clone() for z in (expected, var))
    momentum = float(values.get("momentum", 0.1))
    if not abs(momentum) < 1e9:  # a tensor, whose value is not read
        return
    frames = x.detach().double().expand(values.get("time_steps") or x.shape[0], *x.shape[1:]).flatten(0, 1)
    torch.nn.functional.batch_norm(frames, expected, var, training=True, momentum=momentum)
    for name, wanted in (("running_mean", expected), ("running_var", var)):
        assert torch.allclose(values[name].double(), wanted, 2e-2, 2e-2, equal_nan=True), f"{name} moved elsewhere"


def fresh(values: dict[str, Any]) -> dict[str, Any]:
    return {k: z.clone() if k.startswith("running") and isinstance(z, torch.Tensor) else z for k, z in values.items()}


def batch_norm_neuron(rng: random.Random):
    kind, channels = rng.choice(NEURONS), rng.randint(1, 4)
    x = current(rng, channels)
    shape = shape_of(x)
    function = F.batch_norm_lif if kind == "lif" and rng.random() < 0.5 else F.batch_norm_neuron
    named = (
        statistics(rng, channels)
        | neuron_arguments(rng, kind, channels)
        | some(
            rng,
            v_init=f"torch.randn({', '.join(map(str, shape[1:]))})",
            channel_mask=f"torch.arange({channels}) % 2 == 0",
            time_steps=(str(shape[0]), "None") if shape[0] > 1 else ("1", "3"),
            return_v=("True", "False"),
        )
    )
    named |= {"w": rng.choice((f"torch.randn({channels})", "torch.zeros(1)"))} if kind == "plif" else {}
    named |= {"neuron": repr(kind)} if function is F.batch_norm_neuron else {}

    def check(values, out, before):
        check_moved(values, before)
        if not values["training"] or values["running_mean"] is None:  # else the first call has moved what it reads
            check_output(values, out, lambda again: function(**fresh(again)))
        else:
            steps = values["x"].shape[0] if values.get("time_steps") is None else values["time_steps"]
            check_spikes(values["x"], steps, out.spikes)

    return (Stage(f"F.{function.__name__}", {"x": x, **named}),), check


def batch_norm(rng: random.Random):
    channels = rng.randint(1, 4)
    named = {"x": current(rng, channels), **statistics(rng, channels)}

    def check(values, y, before):
        x = values["x"]
        assert (y.shape, y.dtype) == (x.shape, x.dtype), "shape, dtype"
        check_moved(values, before)
        if x.is_meta or (values["training"] and values["running_mean"] is not None):
            return
        if x.numel() and not x.abs().amax() < 1e9:  # its square is no float32
            return
        vectors = (values[name] for name in ("running_mean", "running_var", "weight", "bias"))
        vectors = [None if z is None else z.double() for z in vectors]
        uses_batch = values["training"] or values["running_mean"] is None
        expected = torch.nn.functional.batch_norm(
            x.double().flatten(0, 1), *vectors, uses_batch, eps=float(values.get("eps", 1e-5))
        )
        bound = 1e-3 if x.dtype in FLOATS[:2] else 5e-2
        assert torch.allclose(y.double().flatten(0, 1), expected, bound, bound, equal_nan=True), "differs from torch's"

    return (Stage("F.batch_norm", named),), check


def index(rng: random.Random, size: int) -> tuple[str, int]:
    """A list of active channels, and how many there are."""
    if rng.random() < 0.4:
        return "None", size
    kept = sorted(rng.sample(range(size), rng.randint(1, size)))
    return f"torch.tensor({kept})", len(kept)


def convolution(rng: random.Random, groups: int, into: int, out: int) -> dict[str, str]:
    two = lambda *sizes: rng.choice([*map(str, sizes), f"({sizes[0]}, {sizes[-1]})", f"[{sizes[-1]}, {sizes[0]}]"])  # noqa: E731
    named = some(rng, stride=two(1, 2), padding=two(0, 1), dilation=two(1, 2))
    return named | ({"groups": str(groups)} if groups > 1 else {})


def channel_conv2d(rng: random.Random):
    groups = rng.choice((1, 1, 1, 2, 4))
    into, out = (4, 4) if groups > 1 else (rng.randint(1, 4), rng.randint(1, 4))
    (inputs, active), (outputs, _) = index(rng, into), index(rng, out)
    if groups == 4:
        outputs = inputs
    elif groups == 2:
        (inputs, active), outputs = ("None", into), "None"
    kernel, full_input = rng.choice(("1, 1", "3, 3", "2, 3")), rng.random() < 0.3
    last = rng.choice(("", ".contiguous(memory_format=torch.channels_last)"))
    sizes = f"{rng.randint(0, 3)}, {into if full_input else active}, {rng.randint(5, 7)}, {rng.randint(5, 7)}"
    x = rng.choice((f"torch.randn({sizes}){last}", f"(torch.rand({sizes}){last} < 0.3).float()"))
    x = f"torch.stack([{x}])" if rng.random() < 0.3 else x
    named = {
        "x": x,
        "weight": f"torch.randn({out}, {into // groups}, {kernel})" + rng.choice(("", ".requires_grad_()")),
    }
    named |= some(rng, bias=("None", f"torch.randn({out})")) | convolution(rng, groups, into, out)
    named |= {"in_channels": inputs, "out_channels": outputs, "full_input": str(full_input)}
    named |= some(rng, full_output=("True", "False"), spike_input=("None", "False"), path=("None", "'gathered'"))

    def check(values, y, before):
        x, weight, bias = values["x"], values["weight"], values.get("bias")
        rows, columns = values.get("out_channels"), values.get("in_channels")
        frames = x.flatten(0, 1) if x.dim() == 5 else x
        if x.is_meta:
            return
        if values.get("full_input") and columns is not None:
            frames = frames[:, columns]
        count = values.get("groups", 1)
        if count == weight.shape[0] and count > 1 and rows is not None:
            weight, count = weight[rows], len(rows)
        else:
            weight = weight if columns is None else weight[:, columns]
            weight = weight if rows is None else weight[rows]
        bias = bias if bias is None or rows is None else bias[rows]
        geometry = [values.get(name, default) for name, default in (("stride", 1), ("padding", 0), ("dilation", 1))]
        double = (z if z is None else z.detach().double() for z in (frames, weight, bias))
        expected = torch.nn.functional.conv2d(*double, *geometry, count)
        got = y.detach().flatten(0, 1) if x.dim() == 5 else y.detach()
        if values.get("full_output") and rows is not None:
            got = got[:, rows]
        assert (got.shape, y.dtype) == (expected.shape, x.dtype), f"shape {tuple(got.shape)}, dtype {y.dtype}"
        bound = 1e-3 if x.dtype in FLOATS[:2] else 5e-2
        scale = expected.abs().amax() if expected.numel() else 1.0
        assert torch.allclose(got.double() / scale, expected / scale, bound, bound, equal_nan=True), (
            "differs from torch's"
        )

    return (Stage("F.channel_conv2d", named),), check


def block_of(weight, rows, columns):
    block = weight if rows is None else weight[rows]
    return block if columns is None else block[:, columns]


def moves(rng: random.Random):
    into, out = rng.randint(1, 5), rng.randint(1, 5)
    (inputs, a), (outputs, b) = index(rng, into), index(rng, out)
    kernel = rng.choice(("", ", 3, 3", ", 1, 1"))
    last = ".contiguous(memory_format=torch.channels_last)" if kernel and rng.random() < 0.4 else ""
    named = {"weight": f"torch.randn({out}, {into}{kernel}){last}" + rng.choice(("", ".bfloat16()", ".double()"))}
    named |= {"in_channels": inputs, "out_channels": outputs} | some(rng, backend=("None", "'reference'"))
    lists = lambda values: (values.get("out_channels"), values.get("in_channels"))  # noqa: E731
    if rng.random() < 0.5:

        def check(values, block, before):
            expected = block_of(values["weight"].detach(), *lists(values))
            assert (block.shape, block.dtype) == (expected.shape, expected.dtype), "shape, dtype"
            assert block.is_meta or torch.equal(block.nan_to_num(), expected.nan_to_num()), "another block"

        return (Stage("F.gather_weight", named),), check
    dtype = next((d for d in (".bfloat16()", ".double()") if d in named["weight"]), "")

    def written(values, nothing, before):
        assert nothing is None, "a result"
        written = block_of(values["weight"].detach(), *lists(values))
        assert written.is_meta or torch.equal(written.nan_to_num(), values["block"].detach().nan_to_num()), (
            "not written"
        )

    return (Stage("F.put_weight", {"block": f"torch.randn({b}, {a}{kernel}){dtype}", **named}),), written


def bits(rng: random.Random):
    shape = [rng.randint(0, 5) for _ in range(rng.randint(0, 3))]
    spikes = f"(torch.rand({shape}) < 0.5).float()" + rng.choice(("", ".bfloat16()", ".double()"))
    if rng.random() < 0.5:

        def check(values, packed, before):
            s = values["s"]
            assert torch.equal(F.unpack_spikes(packed, s.shape, s.dtype), s.detach()), "do not come back"

        return (Stage("F.pack_spikes", {"s": spikes} | some(rng, backend=("None", "'reference'"))),), check
    named = {"packed": f"F.pack_spikes({spikes})", "shape": repr(tuple(shape)), "dtype": str(rng.choice(FLOATS))}

    def unpacked(values, s, before):
        assert (list(s.shape), s.dtype) == (list(values["shape"]), values["dtype"]), "shape, dtype"

    return (Stage("F.unpack_spikes", named),), unpacked


def surrogate(rng: random.Random):
    name = rng.choice([*surrogates.TABLE])
    alpha = rng.choice(("2.0", "3", "1.5"))
    if rng.random() < 0.5:

        def check(values, row, before):
            assert row.name in surrogates.TABLE, row.name

        return (Stage("surrogates.resolve", {"surrogate": repr(name), **some(rng, alpha=alpha)}),), check

    def finite(values, slope, before):
        u = values["u"]
        assert (slope.shape, slope.dtype) == (u.shape, u.dtype), "shape, dtype"
        ordinary = slope.isfinite() | ~(u.abs() < 1e4)
        assert slope.is_meta or u.dtype == torch.float16 or bool(ordinary.all()), f"{slope}"

    stages = Stage("Surrogate", {"name": repr(name), "alpha": alpha, **some(rng, beta=("0.0", "1"))})
    return (stages, Stage("{}.derivative", {"u": "torch.randn(3, 4)"})), finite


def group_of(rng: random.Random, channels: int) -> tuple[str, int]:
    if rng.random() < 0.5:
        return "None", channels
    return f"nn.ChannelGroup({channels})", channels


def check_currents(values, y, before) -> None:
    assert (y.shape, y.dtype) == (values["x"].shape, values["x"].dtype), "shape, dtype"


def neuron_module(rng: random.Random):
    kind, channels = rng.choice(NEURONS), rng.randint(1, 4)
    if rng.random() < 0.1:
        named = rng.choice(({"decay": "0.8"}, {"rate": "0.2"})) | some(rng, backend=("None", "'reference'"))
        return (Stage("nn.Synapse", named), Stage("{}", {"x": current(rng, channels)})), check_currents
    named = neuron_arguments(rng, kind, channels) | some(rng, stateful=("True", "False"), store_v_seq=("True", "False"))
    named |= some(rng, group=f"nn.ChannelGroup({channels})")
    named |= some(rng, tau="2.5", channels=("None", str(channels))) if kind == "plif" else {}
    return module(rng, f"nn.{kind.upper()}", named, current(rng, channels))


def module(rng: random.Random, name: str, named: dict[str, str], x: str):
    """A neuron, with or without batch norm, and its call."""
    steps = shape_of(x)[0]
    call = {"x": x, **some(rng, time_steps=(str(steps), "None") if steps > 1 else ("2", "None"))}

    def check(values, spikes, before):
        x = values["x"]
        check_spikes(x, x.shape[0] if values.get("time_steps") is None else values["time_steps"], spikes)

    return (Stage(name, named), Stage("{}", call)), check


def norm_module(rng: random.Random):
    kind, channels = rng.choice((*NEURONS, "alone")), rng.randint(1, 4)
    named = {"num_features": str(channels), **some(rng, eps=("1e-5", "0.1"), momentum=("0.1", "None", "1"))}
    named |= some(rng, affine=("True", "False"), track_running_stats=("True", "False"), process_group="None")
    named |= some(rng, group=f"nn.ChannelGroup({channels})")
    if kind != "alone":
        named |= neuron_arguments(rng, kind, channels) | some(rng, stateful=("True", "False"))
        named |= some(rng, tau="2.5", per_channel=("True", "False")) if kind == "plif" else {}
        return module(rng, NORMS[kind], named, current(rng, channels))

    def check(values, y, before):
        assert (y.shape, y.dtype) == (values["x"].shape, values["x"].dtype), "shape, dtype"

    name, spaces = rng.choice((("nn.ChannelBatchNorm2d", (2,)), ("nn.ChannelBatchNorm1d", (0, 1))))
    return (Stage(name, named), Stage("{}", {"x": current(rng, channels, spaces)})), check


def conv_module(rng: random.Random):
    transposed = rng.random() < 0.4
    forward, backward = (
        ("nn.ChannelConv1d", "nn.ChannelConv2d"),
        ("nn.ChannelConvTranspose1d", "nn.ChannelConvTranspose2d"),
    )
    name = rng.choice(backward if transposed else forward)
    space = int(name[-2])
    groups = rng.choice((1, 1, 2))
    into, out = (4, 4) if groups > 1 else (rng.randint(1, 4), rng.randint(1, 4))
    named = {"in_channels": str(into), "out_channels": str(out), "kernel_size": rng.choice(("1", "3", "(3, 2)"))}
    named |= convolution(rng, groups, into, out)
    named |= some(rng, padding=("1", "0", "(2, 1)") if transposed else ("'same'", "'valid'", "1", "0", "(2, 1)"))
    if named.get("padding") == "'same'":
        named.pop("stride", None)
    named |= some(rng, bias=("True", "False"), dtype=("None", "torch.float32"))
    if transposed:
        named |= some(rng, output_padding="0", padding_mode="'zeros'")
    else:
        named |= some(rng, padding_mode=("'zeros'", "'reflect'", "'replicate'", "'circular'"))
        named |= some(rng, spike_input=("None", "False"), path=("None", "'gathered'"))
    if space == 1:
        named = {argument: "2" if text[0] in "([" else text for argument, text in named.items()}
    named |= some(rng, in_group=f"nn.ChannelGroup({into})", out_group=f"nn.ChannelGroup({out})") if groups == 1 else {}
    x = f"torch.randn({rng.choice(('', '2, '))}{rng.randint(0, 3)}, {into}, {'7, 6' if space == 2 else '7'})"

    def check(values, y, before):
        x = values["x"]
        assert y.shape[:-space] == (*x.shape[: -1 - space], values["out_channels"]), f"shape {tuple(y.shape)}"
        assert y.dtype == x.dtype, f"dtype {y.dtype}"

    call = {"x": x} | (some(rng, output_size="None") if transposed else {})
    return (Stage(name, named), Stage("{}", call)), check


def linear_module(rng: random.Random):
    channels, each, out = rng.randint(1, 4), rng.randint(1, 3), rng.randint(1, 4)
    named = {"in_features": str(channels * each), "out_features": str(out), "features_per_channel": str(each)}
    named |= some(
        rng, bias=("True", "False"), in_group=f"nn.ChannelGroup({channels})", out_group=f"nn.ChannelGroup({out})"
    )
    x = f"torch.randn({rng.choice(('', '2, ', '2, 0, '))}{channels * each})"

    def check(values, y, before):
        assert y.shape == (*values["x"].shape[:-1], int(values["out_features"])), f"shape {tuple(y.shape)}"

    return (Stage("nn.ChannelLinear", named), Stage("{}", {"x": x})), check


def select_module(rng: random.Random):
    channels = rng.randint(1, 4)
    fewer = rng.randint(1, channels)
    named = {"in_channels": str(channels), "group": f"nn.ChannelGroup({fewer})"}

    def check(values, y, before):
        expected = values["x"][:, :, : values["group"].num_channels]
        assert y.is_meta or y.dtype not in FLOATS or torch.equal(y.nan_to_num(), expected.nan_to_num()), (
            "other channels"
        )

    return (Stage("nn.ChannelSelect", named), Stage("{}", {"x": current(rng, channels)})), check


def pool_module(rng: random.Random):
    name = rng.choice(("MaxPool2d", "AvgPool2d"))
    named = {"kernel_size": rng.choice(("2", "(2, 3)", "3"))}
    named |= some(rng, stride=("None", "1", "2", "(1, 2)"), padding=("0", "1"), ceil_mode=("True", "False"))
    if name == "MaxPool2d":
        named |= some(rng, dilation=("1", "2"))
    else:
        named |= some(rng, count_include_pad=("True", "False"), divisor_override=("None", "1", "5"))
    grad = rng.choice(("", ".requires_grad_()"))

    def check(values, y, before):
        pool = getattr(torch.nn, name)(**{argument: values[argument] for argument in named if argument in values})
        expected = pool(values["x"])
        assert y.shape == expected.shape, f"shape {tuple(y.shape)}"
        assert y.is_meta or torch.equal(y.nan_to_num(), expected.nan_to_num()), "differs from torch's"

    return (Stage(f"nn.{name}", named), Stage("{}", {"x": f"torch.randn(2, 3, {rng.randint(4, 7)}, 7){grad}"})), check


def group(rng: random.Random):
    channels = rng.randint(1, 5)
    kept = sorted(rng.sample(range(channels), rng.randint(1, channels)))
    named = {"num_channels": str(channels), **some(rng, name="'conv1'", prunable=("True", "False"))}
    what = rng.choice(("set_active", "mask", "index", "concat"))
    if what == "concat":
        return (
            Stage("nn.ChannelGroup", named),
            Stage("nn.probing", {"groups": f"[nn.ChannelGroup({channels})]"}),
        ), _any
    arguments = {
        "set_active": {"indices": rng.choice((f"torch.tensor({kept})", repr(kept), f"set({kept})"))},
        "mask": {"device": "'cpu'"},
        "index": {"device": "torch.device('cpu')"},
    }[what]
    return (Stage("nn.ChannelGroup", named), Stage(f"{{}}.{what}", arguments)), _any


def _any(values, result, before) -> None:
    """Whatever comes is right."""


def whole_models(rng: random.Random):
    name = rng.choice(("nn.explain", "nn.reset", "nn.detach", "nn.set_analog"))
    model = rng.choice(
        ("nn.LIF()", "torch.nn.Sequential(nn.ChannelConv2d(2, 3, 1), nn.BatchNormLIF(3))", "torch.nn.Linear(2, 2)")
    )
    named = {"module": model}
    if name == "nn.set_analog":
        named["share"] = rng.choice(("None", "0.5"))
    return (Stage(name, named),), _any


def activity(rng: random.Random):
    return (Stage("nn.Activity", some(rng, training_only=("True", "False"))), Stage("{}.reset", {})), _any


TARGETS = (
    *(neuron, batch_norm_neuron, batch_norm, channel_conv2d) * 3,
    *(
        moves,
        bits,
        surrogate,
        neuron_module,
        norm_module,
        conv_module,
        linear_module,
        select_module,
        pool_module,
        group,
    ),
    *(whole_models, activity),
)


def test_everything_public_has_a_target():
    text = Path(__file__).read_text().lower()
    assert [name for name in (*F.__all__, *nn.__all__) if name.lower() not in text and name != "NotANumber"] == []


def test_calls_end_well(api_calls, record_property):
    record_property("generated", run_calls(TARGETS, api_calls))


X, W = torch.rand(2, 4, 5, 5), torch.rand(4, 4, 3, 3)
CURRENT = torch.rand(4, 2, 3, 5, 5)
NAMED = {
    "stride 0": (lambda: F.channel_conv2d(X, W, stride=0), "stride: expected at least 1"),
    "negative padding": (lambda: F.channel_conv2d(X, W, padding=-1), "padding: expected at least 0"),
    "dilation 0": (lambda: F.channel_conv2d(X, W, dilation=(1, 0)), "dilation: expected at least 1"),
    "kernel larger than the map": (lambda: F.channel_conv2d(X, W, dilation=3), "x: expected room for a kernel"),
    "groups that do not divide": (lambda: F.channel_conv2d(X, W, groups=3), "groups: expected a divisor of the 4"),
    "module, groups that do not divide": (lambda: nn.ChannelConv2d(4, 4, 3, groups=3), "groups: expected a divisor"),
    "module, stride 0": (lambda: nn.ChannelConv2d(4, 4, 3, stride=0), "stride: expected at least 1"),
    "border wider than the map": (
        lambda: nn.ChannelConv2d(4, 4, 3, padding=9, padding_mode="reflect")(X),
        "x: expected a map with room for the reflect border",
    ),
    "weight on another device": (lambda: F.channel_conv2d(X, W.to("meta")), "weight: expected a tensor on cpu"),
    "index list on another device": (
        lambda: F.channel_conv2d(X, W, in_channels=torch.arange(4, device="meta")),
        "in_channels: expected a tensor on cpu",
    ),
    "sparse": (lambda: F.lif(CURRENT.to_sparse()), "x: expected a tensor"),
    "array": (lambda: F.lif(CURRENT.numpy()), "x: expected a tensor"),
    "float8": (lambda: F.lif(CURRENT.to(torch.float8_e4m3fn)), "x: expected a floating-point dtype"),
    "no dtype": (lambda: F.unpack_spikes(torch.zeros(1, dtype=torch.uint8), (3,), None), "dtype: expected"),
    "list as a surrogate": (lambda: F.lif(CURRENT, surrogate=["atan"]), "surrogate: expected a name"),
    "list as a neuron": (lambda: F.neuron(CURRENT, ["lif"]), "neuron: expected one of"),
    "list as a backend": (lambda: F.lif(CURRENT, backend=["cpu"]), "backend: expected a name"),
    "list as a path": (lambda: F.channel_conv2d(X, W, path=["gathered"]), "path: expected one of"),
    "threshold as text": (lambda: nn.LIF(v_threshold="1"), "v_threshold: expected a number"),
    "threshold of 400 digits": (lambda: nn.LIF(v_threshold=10**400), "v_threshold: expected a finite number"),
    "threshold of 5,000 digits": (lambda: nn.LIF(v_threshold=10**5000), "v_threshold: expected a finite number"),
    "eps below 0": (lambda: nn.BatchNormLIF(3, eps=-1), "eps: expected a number >= 0"),
    "half channels": (lambda: nn.ChannelGroup(3).set_active([0.5]), "indices: expected an int"),
    "mask for indices": (
        lambda: nn.ChannelGroup(3).set_active(torch.tensor([True, False])),
        "indices: expected a tensor",
    ),
    "check_nan of a number": (lambda: F.check_nan(1), "checked: expected a bool"),
    "pool without stride": (lambda: nn.MaxPool2d(2, stride=0), "stride: expected at least 1"),
    "pool of a sequence": (lambda: nn.MaxPool2d(2)(CURRENT), "x: expected .* needs flatten"),
    "pool larger than the map": (lambda: nn.AvgPool2d(6)(X), "x: expected a map with room for the window of AvgPool2d"),
    "average over nothing": (lambda: nn.AvgPool2d(2, divisor_override=0), "divisor_override: expected at least 1"),
}


@pytest.mark.parametrize(("call", "says"), NAMED.values(), ids=NAMED)
def test_what_is_off_is_named(call, says):
    with pytest.raises((TypeError, ValueError), match=f"^{says}"):
        call()


@pytest.mark.parametrize("function", [F.lif, lambda x: F.batch_norm_lif(x, None, None, None, None, True)])
def test_empty_batches_may_be_sliced_and_permuted(function):
    empty = torch.rand(4, 0, 5, 3, 6)
    for x in (empty.transpose(2, 3), empty.movedim(2, -1)[..., ::2].movedim(-1, 2), empty[..., ::2, ::2]):
        assert function(x).spikes.shape == x.shape
