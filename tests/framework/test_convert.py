"""sca.convert on other people's networks: the same network, by our kernels, and prunable."""

import contextlib
import copy
import fnmatch
import importlib
import io

import pytest
import torch

import sca
from sca.convert import ConversionError
from sca.structure.attach import attach_groups
from sca_kernels import nn as snn
from tests.framework.foreign import NETS

SPIKINGJELLY = {name: net for name, net in NETS.items() if name.startswith("sj_") and not net.refused}


def built(name):
    net = NETS[name]
    net.skip_unless_installed()
    return net, net.build()


def names_of(model, patterns):
    return {name for name, _ in model.named_modules() if any(fnmatch.fnmatchcase(name, p) for p in patterns)}


@pytest.mark.parametrize("name", SPIKINGJELLY)
def test_a_network_of_spikingjelly_is_converted_whole(name):
    net, model = built(name)
    before = {key: z.clone() for key, z in model.state_dict().items()}
    converted, report = sca.convert(model, net.example())
    assert {row.name for row in report.converted} >= names_of(model, net.convertible + net.layers)
    assert report.refused == {}
    assert report.parity.differ == 0
    assert report.parity.exact < 1e-12
    assert report.state_dict_equal
    assert report.prunable[0] > 0
    assert report.memory[1] < 0.8 * report.memory[0]
    assert all(torch.equal(z, before[key]) for key, z in model.state_dict().items()), "the original has changed"
    original = net.build()
    outputs, spikes = net.run(original, net.example())
    ours, our_spikes = net.run(converted, net.example())
    assert all(torch.equal(our_spikes[key].reshape(z.shape), z) for key, z in spikes.items())
    for a, b in zip(ours, outputs, strict=True):
        torch.testing.assert_close(a, b)


def small(step_mode="m"):
    layer, neuron, surrogate, functional = (
        pytest.importorskip(f"spikingjelly.activation_based.{part}", reason="spikingjelly is not installed")
        for part in ("layer", "neuron", "surrogate", "functional")
    )
    torch.manual_seed(0)
    model = torch.nn.Sequential(
        layer.Conv2d(2, 16, 3, padding=1, bias=False),
        layer.BatchNorm2d(16),
        neuron.LIFNode(surrogate_function=surrogate.ATan()),
        layer.MaxPool2d(2),
        layer.Conv2d(16, 32, 3, padding=1),
        layer.BatchNorm2d(32),
        neuron.ParametricLIFNode(surrogate_function=surrogate.Sigmoid(), detach_reset=True, v_reset=None),
        layer.Flatten(),
        layer.Linear(32 * 16, 10),
    )
    for norm in (model[1], model[5]):
        torch.nn.init.constant_(norm.weight, 1.5)
        torch.nn.init.constant_(norm.bias, 0.4)
    functional.set_step_mode(model, step_mode)
    return model, torch.rand(4, 3, 2, 8, 8) * 2


def test_the_library_goes_on_to_work_on_what_was_converted():
    model, x = small()
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    functional.reset_net(model)  # has its cache filled
    converted, _ = sca.convert(model, x)
    first, second = converted(x), converted(x)
    expected = model(x), model(x)
    for ours, theirs in zip((first, second), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not torch.equal(first, second), "no state was kept"
    functional.reset_net(converted)
    assert torch.equal(converted(x), first)
    functional.detach_net(converted)
    assert not converted[2].v.requires_grad
    functional.reset_net(converted)
    functional.set_step_mode(converted, "s")
    functional.set_step_mode(model, "s")
    functional.reset_net(model)
    with torch.no_grad():  # running statistics have another history
        converted.eval().load_state_dict(model.eval().state_dict())
        for step in x:
            torch.testing.assert_close(converted(step), model(step))
    assert isinstance(converted[2], type(model[2]))


def test_another_batch_size_starts_anew():
    model, x = small()
    converted, _ = sca.convert(model, x)
    converted(x)
    assert torch.equal(converted.eval()(x[:, :2]), converted(x[:, :2])) is False
    assert converted[2].v.shape[0] == 2


def test_state_dicts_load_both_ways_and_an_optimizer_goes_on():
    model, x = small()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    pytest.importorskip("spikingjelly.activation_based.functional").reset_net(model)
    model(x).sum().backward()
    optimizer.step()
    for module in model.modules():
        if hasattr(module, "reset"):
            module.reset()
    other = copy.deepcopy(model)
    parameters = list(model.parameters())
    converted, report = sca.convert(model, x, inplace=True)
    assert converted is model
    assert all(a is b for a, b in zip(model.parameters(), parameters, strict=True))
    other.load_state_dict(converted.state_dict())
    converted.load_state_dict(other.state_dict())
    before = parameters[0].detach().clone()
    converted(x).square().sum().backward()
    optimizer.step()
    assert not torch.equal(before, parameters[0])
    with torch.no_grad():
        for p in parameters:
            p.grad = None
    assert report.revert() is model


def test_revert_gives_back_the_very_objects():
    model, x = small()
    pristine = copy.deepcopy(model)
    kinds = [type(module) for module in model.modules()]
    held = [set(vars(module)) for module in model.modules()]
    modules = list(model.modules())
    _, report = sca.convert(model, x, inplace=True)
    assert [type(module) for module in model.modules()] != kinds
    report.revert()
    assert list(model.modules()) == modules
    assert [type(module) for module in model.modules()] == kinds
    assert [set(vars(module)) for module in model.modules()] == held
    torch.testing.assert_close(model(x), pristine(x), rtol=0, atol=0)
    with pytest.raises(ValueError, match="revert: expected a report of a conversion that can be undone"):
        report.revert()


def test_what_was_converted_is_pruned_compacted_and_saved_without_an_edit(tmp_path):
    model, x = small()
    functional = pytest.importorskip("spikingjelly.activation_based.functional")
    converted, _ = sca.convert(model, x)
    attach_groups(converted, x)
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.05, momentum=0.9)
    scheduler = sca.SCAScheduler(converted, optimizer, density=0.4, start=1, stop=4, interval=1, min_channels=2)

    def loss():
        functional.reset_net(converted)
        return converted(x).square().mean()

    for _ in range(6):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        functional.reset_net(converted)
        if scheduler.wants_probe:
            scheduler.probe(loss)
        scheduler.step()
    compact = sca.compact(converted)
    assert compact[0].weight.shape[0] < 16
    functional.reset_net(converted)
    with torch.no_grad():
        assert torch.equal(compact.eval()(x), converted.eval()(x))
    cost = sca.report_cost(converted, [(x, None)])
    assert cost is not None
    sca.save(converted, tmp_path / "model.safetensors")
    again, _ = sca.convert(small()[0], x)
    again = sca.load(tmp_path / "model.safetensors", again)
    functional.reset_net(converted)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), converted(x))


def test_copies_and_pickles():
    model, x = small()
    converted, _ = sca.convert(model, x)
    converted(x)
    copied = copy.deepcopy(converted)
    assert torch.equal(copied.eval()(x), copy.deepcopy(converted).eval()(x))
    stream = io.BytesIO()
    torch.save(converted, stream)
    stream.seek(0)
    loaded = torch.load(stream, weights_only=False)
    assert torch.equal(loaded.eval()(x), copy.deepcopy(converted).eval()(x))
    assert type(loaded[2]).__name__ == "LIFNode"


def test_depth_neurons_leaves_the_layers():
    model, x = small()
    converted, report = sca.convert(model, x, depth="neurons")
    assert {row.name for row in report.converted} == {"2", "6"}
    assert type(converted[0]) is type(model[0])
    assert report.parity.differ == 0


def test_what_can_not_be_expressed_is_named_and_stays():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="spikingjelly is not installed")
    surrogate = pytest.importorskip("spikingjelly.activation_based.surrogate")
    model, x = small()

    class Own(neuron.LIFNode):
        def forward(self, x):
            return super().forward(x + x.mean())

    model[2] = Own(step_mode="m")
    model[6] = neuron.LIFNode(surrogate_function=surrogate.PiecewiseLeakyReLU(), step_mode="m")
    converted, report = sca.convert(model, x)
    assert set(report.refused) == {"2", "6"}
    assert report.refused["2"].kind == "class"
    assert "run alone" in report.refused["2"].text
    assert report.refused["6"].kind == "surrogate"
    assert "PiecewiseLeakyReLU" in str(report.refused["6"])
    assert type(converted[2]) is Own
    with pytest.raises(ConversionError, match="refused: 2: Own, run alone"):
        sca.convert(model, x, strict=True)


def test_a_subclass_that_computes_the_same_is_converted():
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron", reason="spikingjelly is not installed")
    model, x = small()
    model[2] = type("Renamed", (neuron.LIFNode,), {})(step_mode="m")
    _, report = sca.convert(model, x)
    assert report.refused == {}


def test_a_second_conversion_finds_nothing_to_do():
    model, x = small()
    converted, _ = sca.convert(model, x)
    with pytest.raises(ConversionError, match="expected something to convert"):
        sca.convert(converted, x)


def with_another_leak(monkeypatch):
    from sca.convert import spikingjelly

    found = spikingjelly.neuron_of

    def other(module):
        arguments = found(module)
        if isinstance(arguments, dict) and arguments["neuron"] == "lif":
            arguments["tau"] = 2.5
        return arguments

    monkeypatch.setattr(spikingjelly, "neuron_of", other)


@pytest.mark.parametrize("is_silent", [False, True])
def test_what_is_not_the_same_alone_stays_even_where_it_never_fires(monkeypatch, is_silent):
    model, x = small()
    if is_silent:
        model[2].v_threshold = 1e4
    with_another_leak(monkeypatch)
    converted, report = sca.convert(model, x)
    assert report.refused["2"].kind == "parity"
    assert "alone, on random currents" in report.refused["2"].text
    assert "spikes differ" in report.refused["2"].text
    assert "first at step" in report.refused["2"].text
    assert type(converted[2]) is type(model[2])
    assert {row.name for row in report.converted} == {"0", "1", "4", "5", "6", "8"}


def test_a_silent_neuron_is_converted_and_named():
    model, x = small()
    model[2].v_threshold = 1e4
    _, report = sca.convert(model, x)
    assert "2" in report.parity.untested
    assert "compared alone, not by this example: 2" in str(report)
    assert {row.name for row in report.converted} >= {"2", "6"}


def test_what_is_not_the_same_in_the_network_is_put_back_and_named(monkeypatch):
    model, x = small()
    with_another_leak(monkeypatch)
    monkeypatch.setattr(importlib.import_module("sca.convert.conversion"), "difference_alone", lambda *_: "")
    converted, report = sca.convert(model, x)
    assert report.refused["2"].kind == "parity"
    assert "spikes differ" in report.refused["2"].text
    assert "first at step" in report.refused["2"].text
    assert type(converted[2]) is type(model[2])
    assert {row.name for row in report.converted} == {"0", "1", "4", "5", "6", "8"}


def test_where_nothing_more_can_be_put_back_all_is_as_it_was(monkeypatch):
    from sca.convert import check

    model, x = small()
    kinds = [type(module) for module in model.modules()]
    told = check.Difference("4", "outputs differ by 0.5 of the largest value (at most 1e-05)")
    compare = check.compare
    conversion = importlib.import_module("sca.convert.conversion")
    monkeypatch.setattr(conversion, "compare", lambda *arguments: (compare(*arguments)[0], told))
    with pytest.raises(ConversionError, match=r"4: outputs differ by 0\.5"):
        sca.convert(model, x, inplace=True)
    assert [type(module) for module in model.modules()] == kinds
    model(x)


def test_half_of_a_network_may_be_ours_already():
    model, x = small()
    model[2] = snn.LIF(stateful=False)
    model[0] = snn.ChannelConv2d(2, 16, 3, padding=1, bias=False)
    theirs = torch.nn.Sequential(OverFrames(model[0]), *model[1:])
    converted, report = sca.convert(theirs, x)
    assert {row.name for row in report.converted} == {"1", "4", "5", "6", "8"}
    torch.testing.assert_close(converted(x), theirs(x))


class OverFrames(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def test_hooks_go_on_to_be_called():
    model, x = small()
    seen = []
    for name, module in model.named_modules():
        module.register_forward_hook(lambda module, inputs, output, name=name: seen.append(name))
    model(x)
    before, seen[:] = list(seen), []
    converted, _ = sca.convert(model, x, inplace=True)
    seen.clear()
    converted(x)
    assert seen == before


def test_a_converted_network_trains_under_distributed_data_parallel(tmp_path):
    model, x = small()
    converted, _ = sca.convert(model, x)
    alone = copy.deepcopy(converted)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(converted)
        for network in (wrapped, alone):
            network(x).square().sum().backward()
    finally:
        torch.distributed.destroy_process_group()
    for (name, p), q in zip(converted.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)


def test_a_network_in_bfloat16_is_converted():
    model, x = small()
    converted, _ = sca.convert(model, x)
    y = converted.bfloat16()(x.bfloat16())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())


@contextlib.contextmanager
def inside(mode):
    kinds = {"inference": torch.inference_mode, "no_grad": torch.no_grad}
    with kinds[mode]() if mode in kinds else torch.autocast("cpu", torch.bfloat16):
        yield


@pytest.mark.parametrize("mode", ["inference", "no_grad", "autocast"])
def test_a_conversion_compares_gradients_in_any_mode(mode):
    model, x = small()
    with inside(mode):
        _, report = sca.convert(model, x)
    assert report.parity.gradients > 0
    assert report.parity.exact > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_network_of_any_dtype_is_converted(dtype):
    model, x = small()
    converted, report = sca.convert(model.to(dtype), x.to(dtype))
    assert len(report.converted) == 7
    assert converted(x.to(dtype)).dtype == dtype


def test_a_neuron_follows_what_its_user_sets_later():
    functional, surrogate = (
        pytest.importorskip(f"spikingjelly.activation_based.{part}") for part in ("functional", "surrogate")
    )
    model, x = small()
    converted, _ = sca.convert(model, x)
    for network in (model, converted):
        network[2].tau, network[2].v_reset, network[2].v_threshold = 3.0, None, 0.7
        network[2].surrogate_function = surrogate.Sigmoid(2.0)
        network[6].surrogate_function.alpha = 3.0
        network[6].detach_reset = False
        functional.reset_net(network)
        network(x).sum().backward()
    torch.testing.assert_close(converted[2].v, model[2].v, atol=1e-5, rtol=1e-5)
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for (name, p), q in zip(model.named_parameters(), converted.parameters(), strict=True):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-5 * largest, rtol=1e-5, msg=name)
    converted[2].surrogate_function = torch.nn.ReLU()
    functional.reset_net(converted)
    with pytest.raises(ValueError, match="LIFNode: expected what can be converted still"):
        converted(x)


def test_a_neuron_of_snntorch_follows_what_is_loaded():
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    model = torch.nn.Sequential(torch.nn.Linear(12, 9), snntorch.Leaky(beta=0.9, init_hidden=True))
    other = torch.nn.Sequential(torch.nn.Linear(12, 9), snntorch.Leaky(beta=0.5, threshold=0.6, init_hidden=True))
    x = torch.randn(4, 12) * 2
    converted, _ = sca.convert(model, x)
    converted.load_state_dict(other.state_dict())
    for network in (converted, other):
        network[1].reset_mem()
    for _ in range(5):
        assert torch.equal(converted(x), other(x))


def test_a_neuron_of_snntorch_follows_a_surrogate_that_is_a_module():
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    surrogate = importlib.import_module("snntorch.surrogate")

    class Arctangent(torch.nn.Module):
        alpha = 2.0

        def forward(self, u):
            return surrogate.atan(self.alpha)(u)

    model = torch.nn.Sequential(
        torch.nn.Linear(12, 9), snntorch.Leaky(beta=0.9, spike_grad=Arctangent(), init_hidden=True)
    )
    x = torch.randn(4, 12) * 2
    converted, _ = sca.convert(model, x)
    assert type(converted[1]) is not type(model[1])
    for alpha in (2.0, 5.0):
        gradients = []
        for network in (converted, model):
            network[1].spike_grad.alpha = alpha
            network[1].reset_mem()
            sum(network(x).sum() for _ in range(3)).backward()
            gradients.append(network[0].weight.grad.clone())
        torch.testing.assert_close(*gradients)


def test_a_neuron_of_ones_own_says_when_it_was_changed():
    net, model = built("tet_vggsnn")
    converted, report = sca.convert(model, net.example())
    neuron = converted.get_submodule(next(row.name for row in report.converted if row.arguments))
    neuron.tau = neuron.tau + 0.1
    with pytest.raises(ValueError, match=r"tau: expected .* convert again"):
        converted(net.example())


def test_inference_mode_gives_the_same():
    model, x = small()
    converted, _ = sca.convert(model.eval(), x)
    with torch.inference_mode():
        y = converted(x)
    assert torch.equal(y, sca.convert(model, x)[0](x))


def test_the_report_is_a_table_and_plain_values():
    import json

    model, x = small()
    _, report = sca.convert(model, x, measure=True)
    text = str(report)
    for line in ("LIFNode", "BatchNormLIF", "0 of", "prunable: 2 of", "MiB", "a training step takes"):
        assert line in text
    assert json.loads(json.dumps(report.as_dict()))["parity"]["differ"] == 0


def test_networks_run_in_bfloat16_autocast():
    model, x = small()
    converted, _ = sca.convert(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = converted(x)
    y.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in converted.parameters())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"depth": "deep"}, "depth: expected one of neurons, layers, loop"),
        ({"inplace": 1}, "inplace: expected a bool"),
        ({"example_input": torch.rand(4, 3, 5, 8, 8)}, "example_input: the model fails with it"),
        ({"example_input": torch.rand(4, 0, 2, 8, 8)}, "example_input: expected samples to compare by"),
        ({"model": torch.nn.DataParallel(torch.nn.Linear(1, 1))}, "model: expected a network, got DataParallel"),
        ({"time": "NT"}, r"time: expected NT, but 2 \(LIFNode\) reads TN"),
        ({"time": "single", "depth": "loop"}, "time: 'single', but the model fails with one step"),
    ],
)
def test_bad_arguments_are_named(arguments, says):
    model, x = small()
    with pytest.raises((TypeError, ValueError), match=says):
        sca.convert(**{"model": model, "example_input": x, **arguments})


def test_a_network_of_torchs_own_layers_gets_channel_layers():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8), torch.nn.ReLU(), torch.nn.Flatten())
    model.append(torch.nn.Linear(8 * 36, 10))
    x = torch.randn(4, 3, 8, 8)
    converted, report = sca.convert(model, x)
    assert [row.now for row in report.converted] == ["ChannelConv2d", "ChannelBatchNorm2d", "ChannelLinear"]
    torch.testing.assert_close(converted.eval()(x), model.eval()(x))


RESEARCH = ("old_sew_cifar10dvs", "old_charges", "tet_vggsnn", "nda_vgg11", "norse_multi_step")


@pytest.mark.parametrize("name", RESEARCH)
def test_networks_over_all_steps_of_other_code_are_converted_whole(name):
    net, model = built(name)
    converted, report = sca.convert(model, net.example())
    assert {row.name for row in report.converted} >= names_of(model, net.convertible + net.layers)
    assert report.refused == {}
    assert report.parity.differ == 0
    assert report.prunable[0] > 0
    outputs, spikes = net.run(net.build(), net.example())
    ours, our_spikes = net.run(converted, net.example())
    assert all(torch.equal(our_spikes[key].reshape(z.shape), z) for key, z in spikes.items())
    for a, b in zip(ours, outputs, strict=True):
        torch.testing.assert_close(a, b)


def test_class_names_mislead_and_probing_does_not():
    net, model = built("clif_vgg11_bptt")
    _, report = sca.convert(model, net.example()[0])
    assert {row.name for row in report.converted} >= names_of(model, net.convertible)
    assert report.time == "single"
    assert report.parity.differ == 0


@pytest.mark.parametrize("name", ["clif_vgg11_complementary", "sj_ottt_vgg11"])
def test_neurons_that_are_none_of_ours_stay_and_the_rest_is_converted(name):
    net, model = built(name)
    converted, report = sca.convert(model, net.example()[0])
    assert names_of(model, net.refused) <= set(report.refused)
    assert all(
        type(a) is type(b)
        for (n, a), b in zip(model.named_modules(), converted.modules(), strict=True)
        if n in report.refused
    )
    net.reset(model), net.reset(converted)
    for a, b in zip(net.run(converted, net.example())[0], net.run(model, net.example())[0], strict=True):
        torch.testing.assert_close(a, b)


LOOPS = {name: net for name, net in NETS.items() if net.package in ("snntorch", "norse") and net.time != "TN"}


@pytest.mark.parametrize("name", [*LOOPS, "clif_vgg11_bptt"])
def test_loops_over_time_are_turned_inside_out(name):
    net, model = built(name)
    time = {"time": "single"} if net.time == "single" else {}
    converted, report = sca.convert(model, net.example(), depth="loop", **time)
    found = {row.name.removeprefix("model.") for row in report.converted}
    assert found >= names_of(model, net.convertible + net.layers)
    assert {key.removeprefix("model.") for key in report.refused} <= names_of(model, net.refused + net.either)
    assert report.parity.output < 1e-6
    assert report.parity.gradients < 1e-5
    assert report.state_dict_equal
    original = net.build()
    expected = net.call(original, net.example())
    net.reset(original)
    if net.time == "single":
        for module in converted.modules():
            if hasattr(module, "reset_mem"):
                module.reset_mem()
        ours = converted(net.example())
        ours = ours[0] if name.startswith("norse") else ours
    else:
        ours = converted(net.example())
    pairs = zip(*((z if isinstance(z, tuple) else (z,)) for z in (ours, expected)), strict=True)
    for a, b in pairs:
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


def test_a_step_by_step_network_of_snntorch_keeps_its_calls():
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    from snntorch import utils

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 20), snntorch.Leaky(beta=0.9, init_hidden=True, output=True))
    x = torch.rand(9, 5, 6) * 4
    converted, report = sca.convert(model, x[0])
    assert {row.name for row in report.converted} == {"0", "1"}
    for _ in range(2):
        utils.reset(model)
        utils.reset(converted)  # reaches copies as well
        for step in x:
            for ours, theirs in zip(converted(step), model(step), strict=True):
                torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"learn_beta": True}, "its beta is learned"),
        ({"inhibition": True}, "it has inhibition"),
        ({"reset_delay": False}, "reset_delay=False carries spikes over"),
        ({"graded_spikes_factor": 2.0}, "its spikes are graded"),
    ],
)
def test_what_snntorchs_neurons_can_beside_is_refused(options, says):
    snntorch = pytest.importorskip("snntorch", reason="snntorch is not installed")
    model = torch.nn.Sequential(torch.nn.Linear(6, 20), snntorch.Leaky(beta=0.9, init_hidden=True, **options))
    _, report = sca.convert(model, torch.rand(5, 6) * 4)
    assert says in report.refused["1"].text


def test_a_network_without_a_loop_has_none_to_turn_inside_out():
    model, x = small()
    with pytest.raises(ConversionError, match="depth: 'loop' expected a loop over time"):
        sca.convert(model, x, depth="loop")
    assert type(model[2]).__name__ == "LIFNode"


@pytest.mark.parametrize(
    ("name", "layer", "groups"), [("snntorch_conv_loop", "conv1", 2), ("norse_sequential", "0", 3)]
)
def test_a_folded_network_is_pruned_and_compacted(name, layer, groups):
    net, model = built(name)
    time = {"time": "single"} if net.time == "single" else {}
    converted, report = sca.convert(model, net.example(), depth="loop", **time)
    assert report.prunable[0] == groups

    def run(network):
        output = network(net.example())
        return output[0] if name.startswith("norse") else output

    attach_groups(converted, net.example())
    optimizer = torch.optim.SGD(converted.parameters(), lr=0.01)
    scheduler = sca.SCAScheduler(
        converted, optimizer, density=0.5, start=1, stop=3, interval=1, min_channels=1, regrow_fraction=0
    )
    for _ in range(4):
        optimizer.zero_grad()
        run(converted).sum().backward()
        optimizer.step()
        scheduler.step()
    compact = sca.compact(converted)
    place = f"model.{layer}" if time else layer
    assert compact.get_submodule(place).weight.shape[0] < model.get_submodule(layer).weight.shape[0]
    with torch.no_grad():
        torch.testing.assert_close(run(compact.eval()), run(converted.eval()))
