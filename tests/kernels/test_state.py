"""State of neuron modules and what they record."""

import copy
import pickle
import resource
import subprocess
import sys

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.testing import activation, relative_l2


def test_modules_are_stateless_by_default():
    neuron, x = nn.LIF(), activation((4, 2, 3, 5))
    assert torch.equal(neuron(x), neuron(x))
    assert neuron.v is None


def test_stateful_calls_continue_where_the_last_one_ended():
    x = activation((8, 2, 3, 5))
    neuron = nn.LIF(stateful=True)
    parts = [neuron(x[:3]), neuron(x[3:])]
    assert torch.equal(torch.cat(parts), F.lif(x).spikes)


def test_reset_equals_a_fresh_module_and_touches_only_its_tree():
    x = activation((4, 2, 3, 5))
    inside, outside = (nn.LIF(stateful=True) for _ in range(2))
    tree = torch.nn.Sequential(inside)
    first = tree(x), outside(x)
    nn.reset(tree)
    assert torch.equal(tree(x), first[0])
    assert not torch.equal(outside(x), first[1])


@pytest.mark.parametrize("convert", ["half", "double", "bfloat16"])
def test_state_survives_conversion_in_float32(convert):
    x = activation((4, 2, 3, 5))
    neuron = nn.PLIF(stateful=True)
    neuron(x)
    v = neuron.v
    getattr(neuron, convert)()
    assert torch.equal(neuron.v, v)
    assert neuron.v.dtype == torch.float32
    neuron.to("meta")
    assert neuron.v.device.type == "meta"


def test_state_is_not_in_the_state_dict():
    neuron = nn.PLIF(stateful=True)
    keys = list(neuron.state_dict())
    neuron(activation((4, 2, 3, 5)))
    neuron.activity = nn.Activity()
    neuron(activation((4, 2, 3, 5)))
    assert list(neuron.state_dict()) == keys == ["w"]


def test_batch_size_change_is_an_error_that_says_reset():
    neuron = nn.LIF(stateful=True)
    neuron(activation((4, 2, 3, 5)))
    with pytest.raises(ValueError, match=r"call reset\(\)"):
        neuron(activation((4, 3, 3, 5)))
    neuron.reset()
    neuron(activation((4, 3, 3, 5)))


def test_detach_cuts_the_graph_and_keeps_the_state():
    neuron, x = nn.LIF(stateful=True), activation((4, 2, 3, 5)).requires_grad_()
    neuron(x)
    v = neuron.v
    assert v.requires_grad
    nn.detach(torch.nn.Sequential(neuron))
    assert not neuron.v.requires_grad
    assert torch.equal(neuron.v, v)


def recorded(model, x, **options):
    model[1].activity = nn.Activity(**options)
    model(x)
    return model[1].activity


def network():
    return torch.nn.Sequential(torch.nn.Linear(6, 5), nn.LIF())


def test_activity_sums_counts_membrane_and_positions():
    model, x = network(), activation((4, 2, 6))
    activity = recorded(model, x)
    model(x)
    out = F.lif(model[0](x))
    assert torch.equal(activity.spike_count, 2 * out.spike_count)
    assert relative_l2(activity.membrane_l1, 2 * out.membrane_l1) <= 1e-7
    assert activity.positions.tolist() == [2 * 4 * 2] * 5
    activity.reset()
    assert activity.spike_count is None


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_activity_is_not_doubled_by_activation_checkpointing(use_reentrant):
    model, x = network(), activation((4, 2, 6)).requires_grad_()
    expected = recorded(model, x).spike_count
    model[1].activity.reset()
    checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(model[1].activity.spike_count, expected)


@pytest.mark.parametrize("use_reentrant", [False, True], ids=["non-reentrant", "reentrant"])
def test_running_statistics_are_updated_once_under_activation_checkpointing(use_reentrant):
    x = activation((4, 2, 6)).requires_grad_()
    plain, again = nn.BatchNormLIF(6), nn.BatchNormLIF(6)
    plain(x).sum().backward()
    expected, x.grad = x.grad, None
    checkpoint(again, x, use_reentrant=use_reentrant).sum().backward()
    assert torch.equal(x.grad, expected)
    assert all(torch.equal(a, b) for a, b in zip(plain.buffers(), again.buffers(), strict=True))


def test_activity_is_not_doubled_by_gradient_accumulation():
    """Two micro-batches count as their union."""
    model, x = network(), activation((4, 6, 6))
    whole = recorded(model, x)
    parts = nn.Activity()
    model[1].activity = parts
    for half in x.split(3, dim=1):
        model(half).sum().backward()
    assert torch.equal(parts.spike_count, whole.spike_count)
    assert torch.equal(parts.positions, whole.positions)


def test_activity_is_not_counted_in_an_extra_eval_pass():
    model, x = network(), activation((4, 2, 6))
    model.eval()
    assert recorded(model, x).spike_count is None
    assert recorded(model, x, training_only=False).spike_count is not None


def test_activity_of_a_pruned_group_lands_on_the_active_channels():
    group = nn.ChannelGroup(7)
    group.set_active([1, 4, 5])
    neuron = nn.LIF(group=group)
    neuron.activity = nn.Activity()
    x = activation((4, 2, 3, 5))
    neuron(x)
    assert neuron.activity.spike_count[group.active].tolist() == F.lif(x).spike_count.tolist()
    assert neuron.activity.positions[group.dormant].tolist() == [0] * 4
    by_hand = nn.Activity()  # as a neuron of one's own has it added
    by_hand.record(F.lif(x), group)
    for name in "spike_count", "membrane_l1", "positions":
        assert torch.equal(getattr(by_hand, name), getattr(neuron.activity, name))


def test_memory_is_flat_over_a_thousand_steps():
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), nn.BatchNormLIF(64), nn.LIF(stateful=True))
    model[1].activity = nn.Activity()
    x = activation((2, 16, 64))

    def steps(n):
        for _ in range(n):
            nn.reset(model)
            model(x).sum().backward()
            model.zero_grad()
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    before = steps(200)
    assert steps(800) - before < 4096  # KiB; one leaked activation per step would be 6 MiB


@pytest.mark.parametrize("copier", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))], ids=["deepcopy", "pickle"])
def test_copies_share_groups_among_themselves_alone(copier):
    group = nn.ChannelGroup(4, "g")
    model = torch.nn.Sequential(
        nn.ChannelConv2d(3, 4, 3, out_group=group),
        nn.BatchNormLIF(4, group=group),
        nn.ChannelConv2d(4, 2, 1, in_group=group),
    )
    twin = copier(model)
    twin[0].out_group.set_active([0, 3])
    assert twin[1].group is twin[0].out_group is twin[2].in_group
    assert group.all_active
    x = torch.rand(4, 2, 3, 5, 5)
    assert twin(x).shape == model(x).shape


@pytest.mark.parametrize(
    ("indices", "says"),
    [([], "at least one"), ([0, 0], "unique"), ([4], r"\[0, 4\)"), ([-1], r"\[0, 4\)")],
    ids=["none", "duplicate", "too large", "negative"],
)
def test_group_rejects_bad_indices_and_keeps_what_it_had(indices, says):
    group = nn.ChannelGroup(4, "g")
    with pytest.raises(ValueError, match=says):
        group.set_active(indices)
    assert group.all_active


def test_group_sorts_and_knows_its_dormant_channels():
    group = nn.ChannelGroup(5)
    group.set_active(torch.tensor([3, 0]))
    assert group.active.tolist() == [0, 3]
    assert group.dormant.tolist() == [1, 2, 4]
    assert group.density == 0.4
    assert group.mask().tolist() == [True, False, False, True, False]


def test_wrong_width_is_named():
    group = nn.ChannelGroup(5, "g")
    with pytest.raises(ValueError, match="x: expected 5 channels"):
        nn.LIF(group=group)(activation((4, 2, 3)))


# --- state across copies, modes and updates of a group


COPIERS = [copy.copy, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]


@pytest.mark.parametrize("copier", COPIERS, ids=["copy", "deepcopy", "pickle"])
def test_copies_of_a_stateful_module_have_its_state_without_the_graph(copier):
    neuron, x = nn.BatchNormLIF(3, stateful=True).eval(), activation((4, 2, 3, 5)).requires_grad_()
    neuron(x)
    twin = copier(neuron)
    assert not twin.v.requires_grad
    assert neuron.v.requires_grad
    assert torch.equal(twin(x), neuron(x))


def test_averaged_model_of_a_stateful_one_can_be_made_after_a_pass():
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), nn.PLIF(stateful=True))
    model(activation((4, 2, 6)))
    mean = torch.optim.swa_utils.AveragedModel(model)
    mean.update_parameters(model)
    nn.reset(mean)
    assert mean.module[1].v is None
    assert model[1].v is not None


@pytest.mark.parametrize("v_reset", [0.0, -0.5, None], ids=["zero", "negative", "soft"])
@pytest.mark.parametrize(("before", "now"), [([0, 2, 3], [1, 2, 3, 4]), ([0, 1, 4], [1, 2, 4]), (range(5), [3])])
def test_channels_that_stay_keep_their_state_and_others_start_anew(before, now, v_reset):
    group = nn.ChannelGroup(5)
    group.set_active(before)
    neuron = nn.LIF(group=group, stateful=True, v_reset=v_reset)
    x = activation((4, 2, 5, 3, 3)).requires_grad_()
    neuron(x[:, :, group.active])
    expected = torch.full((2, 5, 3, 3), v_reset or 0.0).index_copy(1, group.active, neuron.v)
    dormant = group.dormant
    group.set_active(now)
    expected = expected.index_fill(1, dormant, v_reset or 0.0)[:, group.active]
    out = F.lif(x[:, :, group.active], v_init=expected, v_reset=v_reset)
    assert torch.equal(neuron(x[:, :, group.active]), out.spikes)
    assert neuron.v.shape[1] == len(now)
    ours, theirs = (torch.autograd.grad(v.sum(), x, retain_graph=True)[0] for v in (neuron.v, out.v))
    assert torch.equal(ours, theirs)


def test_state_follows_a_concatenation_whose_parts_change():
    parts = nn.ChannelGroup(2), nn.ChannelGroup(3)
    both = nn.ChannelGroup.concat(*parts)
    neuron, x = nn.LIF(group=both, stateful=True), activation((4, 2, 5))
    neuron(x)
    v = neuron.v
    parts[1].set_active([0, 2])
    nn.detach(neuron)
    neuron = copy.deepcopy(neuron)
    assert torch.equal(neuron(x[:, :, [0, 1, 2, 4]]), F.lif(x[:, :, [0, 1, 2, 4]], v_init=v[:, [0, 1, 2, 4]]).spikes)


def test_state_from_inference_mode_goes_into_training():
    neuron, x = nn.LIF(stateful=True), activation((4, 2, 3, 5)).requires_grad_()
    with torch.inference_mode():
        neuron(x)
    neuron(x).sum().backward()
    assert x.grad.any()


@pytest.mark.parametrize("concat", [False, True], ids=["group", "concatenation"])
@pytest.mark.parametrize("change", ["set_active", "first use"])
def test_indices_from_inference_mode_go_into_training(concat, change):
    group = nn.ChannelGroup(5)
    carried = nn.ChannelGroup.concat(group, nn.ChannelGroup(1)) if concat else group
    conv = nn.ChannelConv2d(carried.num_channels, 4, 3, in_group=carried)
    neuron = nn.BatchNormLIF(carried.num_channels, group=carried)
    neuron.activity = nn.Activity()
    if change == "first use":
        group.set_active([0, 3])
    with torch.inference_mode():
        if change == "set_active":
            group.set_active(torch.tensor([0, 3]))
        x = activation((2, 2, carried.num_active, 6, 6))
        carried.mask()
        conv(neuron(x))
    conv(neuron(x.clone())).sum().backward()
    assert conv.weight.grad.any()
    assert not carried.active.is_inference()
    assert not carried.mask().is_inference()


def test_activity_of_a_pass_in_inference_mode_is_added_to():
    neuron, x = nn.LIF(), activation((4, 2, 3, 5))
    neuron.activity = nn.Activity()
    with torch.inference_mode():
        neuron(x)
    neuron(x)
    assert neuron.activity.positions.tolist() == [2 * 4 * 2 * 5] * 3


def test_groups_lie_on_the_cpu_whatever_the_default_device():
    with torch.device("meta"):
        group = nn.ChannelGroup(4)
        group.set_active([0, 2])
        both = nn.ChannelGroup.concat(group, nn.ChannelGroup(2))
        found = [group.active, group.dormant, group.mask(), both.active, both.mask()]
    assert {tensor.device.type for tensor in found} == {"cpu"}


def test_modules_made_on_the_meta_device_work_after_to_empty():
    with torch.device("meta"):
        group = nn.ChannelGroup(3, "g")
        model = torch.nn.Sequential(
            nn.ChannelConv2d(2, 3, 3, out_group=group),
            nn.BatchNormPLIF(3, group=group, tau=4.0, per_channel=True),
            nn.ChannelSelect(3, nn.ChannelGroup(2)),
            nn.PLIF(tau=3.0),
        )
    model.to_empty(device="cpu")
    for module in model[1], model[2], model[3]:
        module.reset_parameters()
    assert torch.allclose(model[1].w, torch.full((3,), -1.0986123))
    assert torch.allclose(model[3].w, torch.tensor(-0.6931472))
    assert model[2].index.tolist() == [0, 1]
    for p in (*model[0].parameters(), model[1].weight, model[1].bias):
        torch.nn.init.ones_(p)
    assert model(torch.rand(4, 2, 2, 5, 5)).shape == (4, 2, 2, 3, 3)


def test_groups_are_pickled_without_what_they_keep_on_devices():
    group = nn.ChannelGroup(4)
    group.set_active([1, 2])
    group.index(torch.device("meta"))
    group.mask("meta")
    assert b"meta" not in pickle.dumps(group)
    again = pickle.loads(pickle.dumps(group))
    assert again.active.tolist() == [1, 2]
    assert again.index(torch.device("cpu")) is again.active


@pytest.mark.parametrize("stateful", [False, True], ids=["stateless", "stateful"])
def test_compiled_modules_follow_updates(stateful):
    torch.compiler.reset()  # what other tests compiled counts against the limit of recompilations
    group = nn.ChannelGroup(5)
    other = nn.ChannelGroup(2)
    both = nn.ChannelGroup.concat(group, other)
    neuron = nn.LIF(group=both, stateful=stateful)
    compiled = torch.compile(neuron, backend="eager", fullgraph=True)
    for active in range(5), [1, 2, 4], [0, 1]:
        group.set_active(active)
        x = activation((2, 2, both.num_active, 3))
        twin = copy.deepcopy(neuron)
        assert torch.equal(compiled(x), twin(x))


def test_package_can_be_imported_twice_in_one_process():
    """By a reload, or from another copy: operators are registered once, and modules of both work together."""
    script = """
import sys, torch
import sca_kernels, sca
first = sys.modules["sca_kernels.nn"]
model = torch.nn.Sequential(first.ChannelConv2d(2, 3, 1, out_group=first.ChannelGroup(3)), first.LIF(stateful=True))
for name in [name for name in sys.modules if name.split(".")[0] in ("sca_kernels", "sca")]:
    del sys.modules[name]
import sca_kernels.nn as second
import sca
from sca.structure.groups import find_groups
assert second.LIF is not first.LIF
x = torch.rand(2, 2, 2, 4, 4, requires_grad=True)
model[1].group = model[0].out_group
find_groups(model)
model(x).sum().backward()
torch.compile(second.LIF(), backend="aot_eager", fullgraph=True)(x).sum().backward()
second.reset(model)
assert model[1].v is None
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
