"""torch.library contracts: opcheck, torch.compile without graph breaks, fake tensors that match real ones."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from sca_kernels import functional as F
from sca_kernels import nn, ops
from sca_kernels.backends import registry
from sca_kernels.neurons import NeuronConfig
from sca_kernels.testing import activation, relative_l2
from sca_kernels.torch_private import is_unwatched

CONFIG = tuple(NeuronConfig("lif", 2.0, 1.0, 0.0, True, False, "atan", 2.0, 0.0))
PLIF = tuple(NeuronConfig("plif", 2.0, 1.0, None, False, True, "sigmoid", 4.0, 0.0, 0.7, ">", None, 0.1))


def vector(c=3):
    return torch.rand(c) + 0.5


def sums(c):
    return torch.ones(c, dtype=torch.int64), torch.rand(c, dtype=torch.float64), torch.ones(c, dtype=torch.int64)


def samples(backend):
    """One call of every operator, with and without its optional arguments."""
    x, last = activation((4, 2, 3, 5, 6)), activation((4, 2, 3, 5, 6), channels_last=True)
    v, mask = torch.rand(2, 3, 5, 6), torch.tensor([True, False, True])
    rate, listed = vector().sigmoid(), torch.tensor([0, 2, 5])
    bare, own = (None, None, None, None, False, False), (rate, vector(), v, mask, True, True)
    some = (None, vector(), v, mask, True, False)
    yield "neuron_forward", (x, 4, None, None, *bare, backend, *CONFIG)
    yield "neuron_forward", (last, 4, vector(), vector(), *own, backend, *PLIF)
    yield "neuron_forward", (last[:1], 4, vector(), None, None, None, None, None, True, False, backend, *CONFIG)
    yield "neuron_backward", (x, None, None, x, 4, None, None, None, None, None, backend, *CONFIG)
    yield "neuron_backward", (None, v, x, last, 4, vector(), vector(), rate, vector(), v, backend, *PLIF)
    yield "batch_norm_forward", (x, 4, None, None, 1e-5, *bare, None, backend, *CONFIG)
    yield "batch_norm_forward", (last, 4, vector(), vector(), 1e-5, *own, None, backend, *PLIF)
    yield "batch_norm_forward", (last, 4, vector(7), vector(7), 1e-5, *some, listed, backend, *CONFIG)
    statistics = vector(7), None, vector(7), vector(7), 1e-5
    yield "batch_norm_inference", (x, 4, *statistics, *some, listed, backend, *CONFIG)
    yield "batch_norm_inference", (last, 4, None, None, vector(), vector(), 1e-5, *own, None, backend, *PLIF)
    norm, behind = (torch.rand(4, 3), 1e-5), (None, None, v)
    yield "batch_norm_backward", (last, v, None, x, 4, vector(), vector(), *norm, *behind, None, backend, *CONFIG)
    yield "batch_norm_backward", (last, v, x, x, 4, vector(7), None, *norm, *behind, listed, backend, *CONFIG)
    yield "batch_norm_moments", (last[:1], 4, backend)
    alone = (x, None, None, last, 4, *(vector() for _ in range(3)), None, None, None, backend, *CONFIG)
    yield "batch_norm_sums", alone
    yield "batch_norm_gradient", (*alone[:8], vector(), vector(), *alone[8:])
    full = (last, v, x, x[:1], 4, *(vector() for _ in range(3)), rate, vector(), v, backend, *PLIF)
    yield "batch_norm_sums", full
    yield "batch_norm_gradient", (*full[:8], vector(), vector(), *full[8:])
    yield "recorded_neuron_forward", (x, 4, None, None, *bare, *sums(3), None, backend, *CONFIG)
    yield "recorded_neuron_forward", (last, 4, vector(), vector(), *own, *sums(7), listed, backend, *PLIF)
    norm, batches, of = (x, 4, vector(), vector(), 1e-5, *bare), torch.tensor(3), (backend, *CONFIG)
    by_tensor = 0.0, torch.tensor(0.25, dtype=torch.float64)
    yield (
        "recorded_batch_norm_forward",
        (*norm, None, vector(), vector(), batches, 0.1, None, None, None, None, *of),
    )
    yield "recorded_batch_norm_forward", (*norm, listed, None, None, None, 0.0, None, *sums(7), *of)
    yield (
        "recorded_batch_norm_forward",
        (*norm, listed, vector(7), vector(7), batches, *by_tensor, *sums(7), *of),
    )
    spikes = (x > 0).float()
    yield "pack_spikes", (spikes, backend)
    yield "unpack_spikes", (ops.pack_spikes(spikes, backend), x.numel(), torch.float32, backend)
    frames, weight, index = spikes.flatten(0, 1), torch.randn(4, 3, 3, 3), torch.tensor([0, 2])
    geometry = ([1, 1], [1, 1], [1, 1], 1)

    def packed(z):
        return ops.pack_spikes(z.flatten(), backend)

    yield (
        "channel_conv2d",
        (frames, weight, vector(4), *geometry, None, None, False, "gathered", packed(frames), backend),
    )
    yield "channel_conv2d", (frames[:, :2], weight, None, *geometry, index, index, False, "gathered", None, backend)
    half = frames[:, :2].bfloat16().contiguous()
    yield "channel_conv2d", (half, weight, vector(4), *geometry, index, None, False, "gathered", None, backend)
    grad, block = torch.randn(8, 2, 5, 6), weight[index][:, index]
    narrow = frames[:, :2].contiguous()
    chosen = [*geometry, index, index]
    yield (
        "channel_conv2d_backward",
        (grad, narrow, narrow.shape, False, weight, block, *chosen, [True, True, False], "gathered", backend),
    )
    mixed = (grad.bfloat16(), half, half.shape, False, weight, block.bfloat16(), *chosen)
    yield "channel_conv2d_backward", (*mixed, [True, True, True], "gathered", backend)
    # Of eight channels four, the least that every path takes.
    path = next(iter(registry()[backend].paths), "gathered")
    last, weight = torch.ones(8, 4, 5, 6).contiguous(memory_format=torch.channels_last), torch.randn(8, 8, 3, 3)
    index = torch.tensor([0, 2, 3, 7])
    bits, chosen = packed(last.permute(0, 2, 3, 1)), [*geometry, index, index]
    yield "channel_conv2d", (last, weight, vector(8), *chosen, True, path, bits, backend)
    block = None if path == "implicit" else weight[index][:, index]
    yield (
        "channel_conv2d_backward",
        (torch.randn(8, 8, 5, 6), last, last.shape, True, weight, block, *chosen, [True, True, True], path, backend),
    )
    weight, block, index = torch.randn(4, 3, 3, 3), torch.randn(2, 2, 3, 3), torch.tensor([0, 2])
    yield (
        "channel_conv2d_backward",
        (
            grad,
            ops.pack_spikes(narrow, backend),
            narrow.shape,
            True,
            weight,
            block,
            *geometry,
            index,
            index,
            [True, True, True],
            "gathered",
            backend,
        ),
    )


def differentiable(name, arguments):
    """The same, floating-point tensors with a gradient; but for those that are changed in place."""
    changed = [a.is_write for a in getattr(torch.ops.sca_kernels, name).default._schema.arguments]
    return tuple(
        z.clone().requires_grad_() if isinstance(z, torch.Tensor) and z.is_floating_point() and not written else z
        for z, written in zip(arguments, changed, strict=True)
    )


SAMPLES = len(list(samples("reference")))


@pytest.mark.parametrize("number", range(SAMPLES))
def test_opcheck_on_every_operator(target, number):
    backend, device = target
    if device != "cpu":
        pytest.skip("opcheck runs on CPU tensors")
    name, arguments = list(samples(backend))[number]
    if not name.endswith(("backward", "spikes", "sums", "gradient")):
        arguments = differentiable(name, arguments)
    torch.library.opcheck(getattr(torch.ops.sca_kernels, name).default, arguments)


def test_samples_cover_every_operator():
    assert {name for name, _ in samples("reference")} == set(ops.__all__)


def lif_gradient(x):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(F.lif(x).spikes.sum(), x)


class Names(TorchDispatchMode):
    def __init__(self):
        self.seen = []
        super().__init__()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func.name())
        return func(*args, **(kwargs or {}))


class Plain(torch.Tensor):
    """A subclass that watches functions, not operators."""

    seen = ()

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.seen = (*cls.seen, str(func))
        return super().__torch_function__(func, types, args, kwargs or {})


def test_whoever_watches_operators_sees_ours():
    x = activation((4, 2, 3, 5, 6))
    with Names() as mode:
        lif_gradient(x)
    assert {"sca_kernels::neuron_forward", "sca_kernels::neuron_backward"} <= set(mode.seen)
    with torch.profiler.profile() as profile:
        lif_gradient(x)
    assert {"sca_kernels::neuron_forward", "sca_kernels::neuron_backward"} <= {e.name for e in profile.events()}
    F.lif(x.as_subclass(Plain))
    assert "sca_kernels.neuron_forward.default" in Plain.seen
    graph = make_fx(lambda z: F.lif(z).spikes, tracing_mode="real")(x).graph
    assert torch.ops.sca_kernels.neuron_forward.default in [node.target for node in graph.nodes]


def test_calls_that_nobody_watches_are_told_from_others():
    x = torch.randn(4, 2, 3, 5)
    with torch.inference_mode():
        inferred = torch.randn(3)
        assert is_unwatched((x, None, 1, inferred))
    assert is_unwatched((x, torch.nn.Parameter(x), torch.ones(3, dtype=torch.bool), torch.arange(3)))
    assert not is_unwatched((x, torch._neg_view(x)))
    assert not is_unwatched((x.to("meta"),))
    assert not torch.func.vmap(lambda z: z * is_unwatched((z,)))(torch.ones(2)).any()


def test_a_negated_view_is_read_negated():
    x = activation((4, 2, 3, 5, 6))
    assert torch.equal(F.lif(torch._neg_view(x)).spikes, F.lif(-x).spikes)


def test_nothing_is_recorded_below_autograd():
    x = activation((4, 2, 3, 5, 6)).requires_grad_()
    with torch._C._AutoDispatchBelowAutograd():
        assert not F.lif(x).spikes.requires_grad
    assert F.lif(x).spikes.requires_grad


@pytest.mark.parametrize("number", range(SAMPLES))
def test_fake_outputs_have_the_real_shapes_strides_and_dtypes(target, number):
    backend, device = target
    name, arguments = list(samples(backend))[number]
    on_device = [z.to(device) if isinstance(z, torch.Tensor) else z for z in arguments]
    op = getattr(torch.ops.sca_kernels, name)
    real = op(*on_device)
    with FakeTensorMode() as mode:
        fake = op(*(mode.from_tensor(z) if isinstance(z, torch.Tensor) else z for z in on_device))
    for r, f in zip(*((z if isinstance(z, tuple | list) else [z]) for z in (real, fake)), strict=True):
        assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)


def modules():
    group = nn.ChannelGroup(5, "g")
    group.set_active([0, 2, 3])
    yield "IF", nn.IF(), (4, 2, 3, 5)
    yield "LIF", nn.LIF(tau=4 / 3), (4, 2, 3, 5, 6)
    yield "LIF-stateful", nn.LIF(stateful=True), (4, 2, 3)
    yield "PLIF", nn.PLIF(channels=3), (4, 2, 3, 5)
    learned = torch.nn.Parameter(torch.linspace(0.5, 1.5, 3))
    yield "LIF-threshold", nn.LIF(v_threshold=learned, fire=">", v_reset=None), (4, 2, 3, 5)
    yield "LIF-one-channel", nn.LIF(rate=0.3), (4, 2)
    yield "Synapse", nn.Synapse(0.8), (4, 2, 3, 5)
    yield "BatchNormIF", nn.BatchNormIF(3), (4, 2, 3, 5)
    yield "BatchNormLIF", nn.BatchNormLIF(3, momentum=None), (4, 2, 3, 5)
    yield "BatchNormLIF-group", nn.BatchNormLIF(5, group=group), (4, 2, 3, 5)
    yield "BatchNormPLIF", nn.BatchNormPLIF(5, group=group, per_channel=True), (4, 2, 3, 5)
    yield "ChannelBatchNorm2d", nn.ChannelBatchNorm2d(5, group=group), (4, 2, 3, 5, 6)
    yield "ChannelBatchNorm1d", nn.ChannelBatchNorm1d(5, group=group), (4, 2, 3)
    yield "ChannelSelect", nn.ChannelSelect(6, group), (4, 2, 6, 5)
    yield "ChannelConv2d", nn.ChannelConv2d(3, 5, 3, out_group=group), (4, 2, 3, 5, 6)
    yield "ChannelConv2d-input", nn.ChannelConv2d(5, 2, 3, in_group=group), (8, 3, 5, 6)
    yield "ChannelConv1d", nn.ChannelConv1d(5, 2, 3, in_group=group), (4, 2, 3, 5)
    yield "ChannelConv1d-dense", nn.ChannelConv1d(3, 5, 3, padding=1, padding_mode="reflect"), (8, 3, 5)
    yield "ChannelConvTranspose1d", nn.ChannelConvTranspose1d(3, 5, 3, out_group=group), (8, 3, 5)
    yield "ChannelConvTranspose2d", nn.ChannelConvTranspose2d(5, 2, 3, in_group=group), (4, 2, 3, 5, 6)
    yield "ChannelConvTranspose2d-dense", nn.ChannelConvTranspose2d(3, 5, 3, stride=2), (8, 3, 5, 6)
    yield "ChannelLinear", nn.ChannelLinear(10, 2, in_group=group, features_per_channel=2), (4, 2, 6)
    yield "MaxPool2d", nn.MaxPool2d(2), (4, 2, 3, 5)
    yield "AvgPool2d", nn.AvgPool2d(2), (4, 2, 3, 5)
    recording = nn.BatchNormLIF(5, group=group)
    recording.activity = nn.Activity()
    yield "recording", recording, (4, 2, 3, 5)


MODULES = {name: (module, shape) for name, module, shape in modules()}


@pytest.mark.parametrize("name", MODULES)
def test_compile_fullgraph_gives_the_same_spikes_and_gradients(name):
    module, shape = MODULES[name]
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    results = []
    for run in (module, compiled):
        nn.reset(module)
        if module.__dict__.get("activity") is not None:
            module.activity.reset()
        torch.manual_seed(0)
        x = activation(shape).requires_grad_()
        y = run(x)
        module.zero_grad()
        y.square().sum().backward()
        results.append([y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())])
    for a, b in zip(*results, strict=True):
        assert relative_l2(a, b) <= 1e-6


def test_compiled_network_with_inductor_follows_pruning():
    """One default-backend compilation, then another set of active channels in the same compiled module."""
    group = nn.ChannelGroup(6, "g")
    model = torch.nn.Sequential(
        nn.ChannelConv2d(2, 6, 3, out_group=group),
        nn.BatchNormLIF(6, group=group),
        nn.ChannelConv2d(6, 3, 3, in_group=group),
    )
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True)
    x = torch.rand(4, 2, 2, 8, 8)
    for active in (range(6), [0, 3, 4], [1, 2, 3, 5]):
        group.set_active(active)
        expected = model(x)
        y = compiled(x)
        assert relative_l2(y, expected) <= 1e-5
        y.sum().backward()


def test_new_sizes_need_few_graphs():
    """Twenty batch sizes and five spatial sizes: dynamic shapes, not a graph each."""
    torch._dynamo.reset()
    graphs = []

    def counting(graph, inputs):
        graphs.append(graph)
        return graph

    compiled = torch.compile(nn.LIF(), fullgraph=True, backend=counting)
    for n in range(2, 22):
        for s in (3, 5, 8, 13, 21):
            compiled(torch.randn(4, n, 3, s))
    assert len(graphs) <= 3


def test_environment_names_the_backend_where_no_argument_does(monkeypatch):
    monkeypatch.setenv("SCA_KERNELS_BACKEND", "reference")
    before = registry()["reference"].calls["neuron_forward"]
    F.lif(torch.randn(2, 2, 3))
    assert registry()["reference"].calls["neuron_forward"] == before + 1
    monkeypatch.setenv("SCA_KERNELS_BACKEND", "tpu")
    with pytest.raises(ValueError, match="SCA_KERNELS_BACKEND: expected one of"):
        F.lif(torch.randn(2, 2, 3))
