"""SCAScheduler: networks that others trained, with layers frozen, added or exchanged."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import sca
from sca_kernels import nn as snn
from tests.framework.pruning_nets import ConvNet, active, batch, loss_of, stripped, train_step
from tests.framework.scheduled import SETTINGS, advance, cut, make
from tests.framework.watched import assert_equal_state

# --- fine-tuning


def frozen(model: nn.Module, how: str) -> nn.Module:
    """The first block of a ConvNet as people freeze them."""
    if how in ("parameters", "both"):
        model.conv1.requires_grad_(False)
        model.norm1.requires_grad_(False)
    if how in ("mode", "both"):
        model.norm1.eval()
        model.conv1.eval()
    return model


@pytest.mark.parametrize("target", ["channels", "synops"])
@pytest.mark.parametrize("how", ["parameters", "mode", "both"])
def test_scheduler_prunes_and_regrows_frozen_layers_like_others(
    how: str, target: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = frozen(ConvNet(), how)
    before = copy.deepcopy(model.conv1.state_dict())
    with caplog.at_level(logging.WARNING):
        model, optimizer, scheduler = make(model, regrow_fraction=0.9, allocation="layer", target=target)
    assert ("frozen, but pruned and regrown like all others: first;" in caplog.text) == (how != "mode")
    for _ in range(12):
        advance(model, optimizer, scheduler)
        recorded = model.norm1.activity.spike_count
        expected = None if recorded is None else recorded.clone()
        model.eval()
        model(batch()[0])  # a validation pass adds nothing
        frozen(model.train(), how)
        recorded = model.norm1.activity.spike_count
        assert recorded is expected is None or torch.equal(recorded, expected)
    assert scheduler.history[-1]["active"]["first"] < 6
    assert sum(event["groups"]["first"]["regrown"] for event in scheduler.history) > 0
    if how != "mode":
        assert torch.equal(model.conv1.weight, before["weight"])
        assert not model.norm1.weight.requires_grad


def test_probe_gives_frozen_layers_the_gradient_they_would_have() -> None:
    gradients = []
    for how in "none", "parameters":
        torch.manual_seed(0)
        model, _, scheduler = make(frozen(ConvNet(), how))
        cut(model)
        scheduler.probe(lambda model=model: loss_of(model))
        gradients.append(scheduler.state_dict()["gradients"])
        assert model.norm1.weight.requires_grad == (how == "none")
    assert_equal_state(*gradients)
    assert gradients[0]["norm1"].any()


def test_activity_of_a_copy_follows_the_modes_of_the_copy() -> None:
    model, _, scheduler = make(frozen(ConvNet(), "mode"))
    twin = copy.deepcopy(model)
    twin.eval()(batch()[0])
    assert twin.norm1.activity.spike_count is None
    frozen(twin.train(), "mode")(batch()[0])
    assert twin.norm1.activity.spike_count.any()
    assert model.norm1.activity.spike_count is None
    scheduler.detach()
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
    assert not sca.compact(twin)._forward_pre_hooks


def test_compiled_models_record_frozen_layers_and_compile_nothing_when_the_scheduler_is_made() -> None:
    model = frozen(ConvNet(), "both")
    compiled = torch.compile(model, backend="eager")
    compiled(batch()[0])
    torch._dynamo.utils.counters.clear()
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    scheduler = sca.SCAScheduler(model, optimizer, **{**SETTINGS, "start": 1, "regrow_fraction": 0.0})
    assert not torch._dynamo.utils.counters["stats"]
    loss_of(compiled).backward()
    optimizer.step()
    assert model.norm1.activity.spike_count.any()
    assert scheduler.step() is not None
    assert loss_of(compiled).isfinite()


class SidePath(nn.Module):
    """A layer with a low-rank path beside it."""

    def __init__(self, base: nn.Conv2d) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Conv2d(base.in_channels, 2, 3, padding=1, bias=False)
        self.up = nn.Conv2d(2, base.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x.flatten(0, -4))).unflatten(0, x.shape[:-3])


@pytest.mark.parametrize("example", [True, False])
@pytest.mark.parametrize("case", ["head", "side path", "channel layer"])
def test_scheduler_refuses_a_layer_without_the_group_that_it_reads(case: str, example: bool) -> None:
    model = sca.models.build("vgg5", num_classes=4, in_channels=2, time_steps=2, image_size=32, width=0.25)
    if case == "side path":
        convs = [name for name, m in model.named_modules() if isinstance(m, snn.ChannelConv2d)]
        model.set_submodule(convs[1], SidePath(model.get_submodule(convs[1])))
    else:
        name = [name for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]
        kind = nn.Linear if case == "head" else snn.ChannelLinear
        model.set_submodule(name, kind(model.get_submodule(name).in_features, 7))
    before = active(model)
    with pytest.raises(ValueError, match=r"fails without some channels of group '\w+': .* must carry their group"):
        make(model, example_input=torch.zeros(2, 2, 32, 32) if example else None)
    assert active(model) == before
    assert model(torch.zeros(2, 2, 32, 32)).shape[1] == 2


def test_scheduler_takes_a_new_head_that_carries_the_group_of_the_old_one() -> None:
    model = ConvNet()
    old = model.linear
    model.linear = snn.ChannelLinear(
        old.in_features, 7, in_group=old.in_group, features_per_channel=old.features_per_channel
    )
    model, optimizer, scheduler = make(model)
    advance(model, optimizer, scheduler, 4)
    assert scheduler.density < 1


def test_scheduler_tries_the_model_with_the_example_and_leaves_it_as_it_was() -> None:
    model = ConvNet()
    with pytest.raises(ValueError, match=r"example_input: the model fails with it at .*\.py:\d+"):
        make(model, example_input=torch.zeros(2, 2, 7, 9))
    before = copy.deepcopy(model.state_dict())
    cut(model)
    kept = active(model)
    make(model, example_input=(batch()[0],))
    assert active(model) == kept
    assert_equal_state(dict(model.state_dict()), dict(before))


REPARAMETRISED = {
    "weight norm": torch.nn.utils.parametrizations.weight_norm,
    "weight norm by hooks": torch.nn.utils.weight_norm,
    "spectral norm": torch.nn.utils.parametrizations.spectral_norm,
    "spectral norm by hooks": torch.nn.utils.spectral_norm,
    "orthogonal": torch.nn.utils.parametrizations.orthogonal,
    "unstructured pruning": lambda module: prune.l1_unstructured(module, "weight", 0.5),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*")
@pytest.mark.parametrize("how", REPARAMETRISED)
def test_layers_that_compute_their_weight_are_refused_by_name(how: str) -> None:
    model = ConvNet()
    REPARAMETRISED[how](model.conv2)
    message = r"conv2 \(\w*ChannelConv2d\) carries a channel group, but .*weight, computed in each pass by \w+\)"
    with pytest.raises(ValueError, match=message):
        make(model)
    with pytest.raises(ValueError, match=message):
        sca.compact(model)
    model = stripped(ConvNet())
    REPARAMETRISED[how](model.conv2)
    with pytest.raises(ValueError, match=r"the parameters of conv2 are not its own \(weight, computed in each pass by"):
        sca.attach_groups(model, batch()[0])


def test_step_without_training_passes_says_what_is_missing() -> None:
    model, optimizer, scheduler = make(start=1)
    loss_of(model.eval()).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="group 'first': no activity was recorded"):
        scheduler.step()


def test_step_refuses_scores_that_are_not_finite() -> None:
    model, optimizer, scheduler = make(criterion="bn_gamma", start=1)
    train_step(model, optimizer)
    nn.init.constant_(model.norm1.weight, torch.nan)
    with pytest.raises(RuntimeError, match="group 'first': scores are not finite"):
        scheduler.step()


@pytest.mark.parametrize("loss", [lambda: 1.0, lambda: torch.ones(2, requires_grad=True), lambda: torch.ones(())])
def test_probe_refuses_a_loss_without_gradient(loss) -> None:
    _, _, scheduler = make()
    with pytest.raises(ValueError, match="loss_fn: expected a scalar tensor with a gradient"):
        scheduler.probe(loss)
