"""Dormant weights under optimizers that do more than one element-wise step: those that step another inside, call a
closure, keep weights of their own, mix entries; and under copies, replaced parameters, and what torch.optim offers.
"""

from __future__ import annotations

import copy
import io
import logging
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sca
from sca.pruning.optimizer import ActiveOptimizer
from tests.framework.optimizer_kinds import (
    KINDS,
    SETTINGS,
    Lookahead,
    ScheduleFree,
    adamw,
    assert_same,
    closure_of,
    dormant_weights,
    pruned,
    sgd,
    step,
)
from tests.framework.pruning_nets import ConvNet, loss_of, train_step
from tests.framework.test_pruning_optimizer import MuonLike, layer, prune, set_gradients


@pytest.mark.parametrize("kind", KINDS)
def test_dormant_weights_stay_bit_identical_under_any_optimizer(kind: str, caplog) -> None:
    model, optimizer, scheduler = pruned(KINDS[kind], start=2, stop=2)
    before, weights = dormant_weights(model), copy.deepcopy(model.state_dict())
    for _ in range(12):
        step(model, optimizer)
        scheduler.step()
    assert_same(dormant_weights(model), before)
    assert not torch.equal(model.conv2.weight, weights["conv2.weight"])
    assert all(p.isfinite().all() for p in model.parameters())
    assert "dormant channels changed" not in caplog.text


@pytest.mark.parametrize("kind", ["sam", "lookahead", "listed_lookahead"])
def test_dormant_weights_stay_when_the_scheduler_is_given_the_inner_optimizer_or_it_is_told(kind: str, caplog) -> None:
    torch.manual_seed(0)
    model = ConvNet()
    outer = KINDS[kind](list(model.parameters()))
    inner = outer.base_optimizer if kind == "sam" else outer.optimizer
    scheduler = sca.SCAScheduler(model, inner, **{**SETTINGS, "regrow_fraction": 0.0})
    for _ in range(2):
        step(model, outer)
        scheduler.step()
    before = dormant_weights(model)
    for _ in range(2):
        step(model, outer)
        scheduler.step()
    same = all(torch.equal(value, before[name]) for name, value in dormant_weights(model).items())
    assert same or "dormant channels changed since the last update" in caplog.text
    assert same or kind != "sam"


@pytest.mark.parametrize("kind", ["torch_sgd", "torch_adam", "torch_adam_fused", "torch_rprop", "leaf_sam"])
def test_step_with_a_closure_equals_that_of_a_compact_network(kind: str) -> None:
    model, optimizer, _ = pruned(KINDS[kind], start=2, stop=2)
    optimizer.state.clear()
    small = sca.compact(model)
    reference = KINDS[kind](list(small.parameters()))
    for _ in range(3):
        expected = reference.step(closure_of(small, reference))
        torch.testing.assert_close(optimizer.step(closure_of(model, optimizer)), expected)
    again = sca.compact(model)
    for (name, ours), theirs in zip(again.named_parameters(), small.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-4, msg=name)


def test_gradients_that_a_closure_makes_are_there_after_the_step() -> None:
    model, optimizer, _ = pruned(KINDS["torch_sgd"])
    optimizer.zero_grad()
    optimizer.step(closure_of(model, optimizer))
    assert model.conv2.weight.grad.shape == model.conv2.weight.shape
    assert model.conv2.weight.grad.any()


def test_gradients_that_a_step_clears_or_drops_are_gone_after_it() -> None:
    class Clearing(torch.optim.SGD):
        drop = False

        def step(self, closure=None):
            super().step(closure)
            self.zero_grad(set_to_none=self.drop)

    model, optimizer, _ = pruned(lambda p: Clearing(p, lr=0.1), start=2, stop=2)
    train_step(model, optimizer)
    assert model.conv2.weight.grad.shape == model.conv2.weight.shape
    assert not any(p.grad.any() for p in model.parameters())
    optimizer.drop = True
    train_step(model, optimizer)
    assert all(p.grad is None for p in model.parameters())


def test_a_failing_closure_leaves_full_tensors() -> None:
    model, optimizer, _ = pruned(KINDS["leaf_sam"])
    shapes = [p.shape for p in model.parameters()]

    def closure() -> Tensor:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(closure)
    assert [p.shape for p in model.parameters()] == shapes
    step(model, optimizer)


def test_schedule_free_keeps_dormant_weights_through_train_and_eval() -> None:
    model, optimizer, _ = pruned(ScheduleFree)
    before = dormant_weights(model)
    weight = model.conv2.weight.detach().clone()
    optimizer.eval()
    assert not torch.equal(model.conv2.weight, weight)
    optimizer.train()
    assert_same(dormant_weights(model), before)


# --- what a regrown channel's state starts with


def regrow(kind: str) -> tuple[nn.Module, Optimizer, dict[str, Tensor]]:
    """A network that was cut, trained on, and takes everything back."""
    model, optimizer, scheduler = pruned(KINDS[kind], start=2, stop=2)
    for _ in range(6):
        step(model, optimizer)
    channels = {members.group: members.group.dormant for members in scheduler.groups.values()}
    for group in channels:
        group.set_active(range(group.num_channels))
    scheduler._surgery.optimizer.clear(channels)
    return model, optimizer, {group.name: dormant for group, dormant in channels.items()}


START = {
    "torch_rprop": ("step_size", lambda p: torch.full_like(p, 0.01)),
    "torch_asgd": ("ax", lambda p: p.detach()),
    "torch_sgd": ("momentum_buffer", torch.zeros_like),
    "torch_adam": ("exp_avg", torch.zeros_like),
    "torch_adagrad": ("sum", torch.zeros_like),
    "lookahead": ("slow_param", lambda p: p.detach()),
    "made_lookahead": ("slow_param", lambda p: p.detach()),
    "loose_lookahead": ("slow_param", lambda p: p.detach()),
    "schedule_free": ("z", lambda p: p.detach()),
    "sam": ("old_p", lambda p: p.detach()),
    "muon_like": ("momentum", torch.zeros_like),
}


@pytest.mark.parametrize("kind", START)
def test_regrown_channels_start_with_the_state_of_a_new_parameter(kind: str) -> None:
    model, optimizer, regrown = regrow(kind)
    key, start = START[kind]
    value, expected = optimizer.state[model.conv2.weight][key], start(model.conv2.weight)
    first, second = regrown["first"], regrown["second"]
    tolerance = {"atol": 1e-6, "rtol": 1e-4}
    torch.testing.assert_close(value[second], expected[second], **tolerance)
    torch.testing.assert_close(value[:, first], expected[:, first], **tolerance)
    kept = [c for c in range(8) if c not in second.tolist()]
    others = [c for c in range(6) if c not in first.tolist()]
    if kind not in ("sam", "torch_asgd"):  # whose state is the weights of this step
        assert (value[kept][:, others] != expected[kept][:, others]).any()


@pytest.mark.parametrize("kind", ["lookahead_adagrad", "lookahead_of_lookahead", "listed_lookahead", "shampoo_like"])
def test_regrown_channels_start_quietly_under_optimizers_in_optimizers(kind: str, caplog) -> None:
    before = []
    with caplog.at_level(logging.WARNING, "sca"):
        model, optimizer, _ = regrow(kind)
        before = copy.deepcopy(model.state_dict())
        for _ in range(4):
            step(model, optimizer)
    assert not caplog.text
    assert not torch.equal(before["conv2.weight"], model.conv2.weight)


def test_regrown_channels_start_with_zeros_where_the_optimizer_cannot_be_asked_and_it_says_so(caplog) -> None:
    class Asks(torch.optim.SGD):
        """Counts on a file, a process group, or the like."""

        def __init__(self, params, resource: object, **options) -> None:
            super().__init__(params, **options)
            self.resource = resource

        def step(self, closure=None):
            if self.resource.closed:
                raise OSError("closed")
            return super().step(closure)

    class Resource:
        closed = False

        def __deepcopy__(self, memo):
            raise TypeError("cannot copy a resource")

    KINDS["asks"] = lambda p: Asks(p, Resource(), lr=0.1, momentum=0.9)
    try:
        model, optimizer, regrown = regrow("asks")
    finally:
        del KINDS["asks"]
    assert not optimizer.state[model.conv2.weight]["momentum_buffer"][regrown["second"]].any()
    assert "start with zeros as their momentum_buffer" in caplog.text
    assert "cannot copy a resource" in caplog.text


def test_asking_for_a_start_changes_nothing_else() -> None:
    model, optimizer, scheduler = pruned(KINDS["lookahead"], start=2, stop=2)
    before = copy.deepcopy((optimizer.state, optimizer.fast_state, [dict(g, params=0) for g in optimizer.param_groups]))
    calls = []
    optimizer.optimizer.register_step_pre_hook(lambda *_: calls.append(1))
    scheduler._surgery.optimizer.clear({model.norm1.group: model.norm1.group.dormant[:0]})
    after = (optimizer.state, optimizer.fast_state, [dict(g, params=0) for g in optimizer.param_groups])
    for old, new in zip(before[:2], after[:2], strict=True):
        for a, b in zip(old.values(), new.values(), strict=True):
            assert all(torch.equal(a[k], b[k]) for k in a)
    assert before[2] == after[2]
    assert not calls


# --- copies


def by_pickle(whole: Any) -> Any:
    return pickle.loads(pickle.dumps(whole))


def by_file(whole: Any) -> Any:
    file = io.BytesIO()
    torch.save(whole, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copier", [copy.deepcopy, by_pickle, by_file], ids=["deepcopy", "pickle", "torch_save"])
@pytest.mark.parametrize("kind", ["torch_sgd", "torch_adam", "lookahead"])  # torch's copies of a SAM lack its base
@pytest.mark.parametrize("target", ["channels", "synops"])
def test_copies_of_model_optimizer_and_scheduler_go_on_alike_and_apart(copier, kind: str, target: str) -> None:
    originals = pruned(KINDS[kind] if kind != "lookahead" else CopiedLookahead, target=target, start=2, stop=6)
    copied = copier(originals)
    frozen = copy.deepcopy(originals[0].state_dict())
    before = dormant_weights(copied[0])
    model, optimizer, scheduler = copied
    assert scheduler.model is model
    step(model, optimizer)
    assert_same(dormant_weights(model), before)
    scheduler.step()
    assert_same(dict(originals[0].state_dict()), dict(frozen))
    for _ in range(4):
        step(model, optimizer)
        scheduler.step()
    model, optimizer, scheduler = originals
    for _ in range(5):
        step(model, optimizer)
        scheduler.step()
    assert_same(dict(copied[0].state_dict()), dict(model.state_dict()))
    assert copied[2].history == scheduler.history


class CopiedLookahead(Lookahead):
    """One that copies and pickles whole, by all of its attributes."""

    def __init__(self, params) -> None:
        super().__init__(sgd(params))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def test_a_copy_that_took_the_wrapper_along_says_that_it_needs_a_scheduler() -> None:
    class Whole(torch.optim.SGD):
        def __getstate__(self) -> dict[str, Any]:
            return dict(vars(self))

    model, optimizer, scheduler = pruned(lambda p: Whole(p, lr=0.1), start=2, stop=2)
    other_model, other = copy.deepcopy((model, optimizer))
    loss_of(other_model).backward()
    with pytest.raises(ValueError, match="copy of one that a scheduler is attached to"):
        other.step()
    third_model, third, _ = copy.deepcopy((model, optimizer, scheduler))
    before = dormant_weights(third_model)
    train_step(third_model, third)
    assert_same(dormant_weights(third_model), before)


# --- what the scheduler is given


def test_scheduler_refuses_an_optimizer_of_other_weights_by_name_and_leaves_it_alone() -> None:
    model, other = ConvNet(), ConvNet()
    optimizer = sgd(other.parameters())
    with pytest.raises(ValueError, match=r"optimizer: expected parameters of the model \(conv1.weight, .* got none"):
        sca.SCAScheduler(model, optimizer, **SETTINGS)
    assert model.norm1.activity is None
    sca.SCAScheduler(other, optimizer, **SETTINGS)


@pytest.mark.parametrize("wrong", [None, [], [None], "sgd", nn.Linear(1, 1)])
def test_scheduler_refuses_what_is_no_optimizer(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"expected a torch\.optim\.Optimizer, or a list"):
        sca.SCAScheduler(ConvNet(), wrong, **SETTINGS)


def test_scheduler_refuses_lbfgs() -> None:
    model = ConvNet()
    with pytest.raises(ValueError, match="LBFGS keeps its history as vectors over all parameters"):
        sca.SCAScheduler(model, torch.optim.LBFGS(model.parameters()), **SETTINGS)


def test_scheduler_takes_several_optimizers_and_refuses_trainable_weights_in_none(caplog) -> None:
    torch.manual_seed(0)
    model = ConvNet()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    both = [MuonLike(matrices, weight_decay=0.1), adamw(vectors)]
    with pytest.raises(ValueError, match=r"optimizer: expected every trainable .* got none that holds norm1\.weight"):
        sca.SCAScheduler(model, both[0], **SETTINGS)
    for p in vectors:
        p.requires_grad_(False)
    sca.SCAScheduler(model, both[0], **SETTINGS).detach()  # what nobody trains needs no optimizer
    for p in vectors:
        p.requires_grad_(True)
    caplog.clear()
    scheduler = sca.SCAScheduler(model, both, **SETTINGS)
    assert not caplog.text
    for _ in range(3):
        loss_of(model).backward()
        for optimizer in both:
            optimizer.step()
        model.zero_grad()
        scheduler.step()
    assert scheduler.steps == 3
    before = dormant_weights(model)
    assert any(value.numel() for value in before.values())
    loss_of(model).backward()
    for optimizer in both:
        optimizer.step()
    assert_same(dormant_weights(model), before)


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_round_in_which_one_of_several_optimizers_is_skipped_is_one_step(skipped: int) -> None:
    """As by a scaler, which has a fused optimizer whose gradients overflow do nothing."""
    torch.manual_seed(0)
    model = ConvNet()
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    both = [sgd(matrices, fused=True), sgd(vectors, fused=True)]
    scheduler = sca.SCAScheduler(model, both, **SETTINGS)
    for found, steps in (([0.0, 0.0], 1), ([0.0, 1.0], 2), ([1.0, 1.0], 2)):
        before = copy.deepcopy(model.state_dict())
        loss_of(model).backward()
        for optimizer, overflow in zip(both, found if skipped else reversed(found), strict=True):
            optimizer.found_inf = torch.tensor(overflow)
            optimizer.step()
        model.zero_grad()
        scheduler.step()
        assert scheduler.steps == steps
        moved = [not torch.equal(getattr(model, name).weight, before[f"{name}.weight"]) for name in ("conv2", "norm2")]
        assert sum(moved) == found.count(0.0)


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch.optim.Muon came with torch 2.9")
def test_muon_of_torch_leaves_dormant_columns() -> None:
    torch.manual_seed(0)
    model = ConvNet()
    muon = torch.optim.Muon([model.linear.weight], lr=0.02, weight_decay=0.1)
    rest = adamw([p for p in model.parameters() if p is not model.linear.weight])
    scheduler = sca.SCAScheduler(model, [muon, rest], **SETTINGS)
    for _ in range(6):
        loss_of(model).backward()
        before = dormant_weights(model)
        for optimizer in (muon, rest):
            optimizer.step()
        assert_same(dormant_weights(model), before)
        model.zero_grad()
        scheduler.step()


def test_sparse_gradients_are_refused_and_nothing_changes() -> None:
    parameters, axes = layer()
    optimizer = sgd(parameters.values())
    ActiveOptimizer(optimizer, axes)
    prune(axes)
    set_gradients(parameters, axes)
    linear = parameters["linear"]
    linear.grad = linear.grad.to_sparse()
    before = {k: p.detach().clone() for k, p in parameters.items()}
    with pytest.raises(ValueError, match="dense gradients"):
        optimizer.step()
    for k, p in parameters.items():
        assert torch.equal(p, before[k])
    assert linear.grad.is_sparse


# --- parameters that others replace, tools that torch offers


def replaced_by_assignment(model: nn.Module) -> None:
    model.load_state_dict({k: v.clone() for k, v in model.state_dict().items()}, assign=True)


def replaced_by_parametrization(model: nn.Module) -> None:
    nn.utils.parametrizations.weight_norm(model.conv2)


def replaced_by_conversion(model: nn.Module) -> None:
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        model.double().float()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


@pytest.mark.parametrize("replace", [replaced_by_assignment, replaced_by_parametrization, replaced_by_conversion])
def test_scheduler_notices_replaced_parameters_by_name(replace: Callable) -> None:
    model, _, scheduler = pruned(KINDS["torch_sgd"])
    replace(model)
    with pytest.raises(ValueError, match=r"model: conv\d\.weight is another parameter than when"):
        scheduler.step()
    assert scheduler.steps == 2


def swapped_in_place(model: nn.Module, optimizer: Optimizer) -> None:
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        model.double().float()
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)


def reset_through_data(model: nn.Module, optimizer: Optimizer) -> None:
    for p in model.parameters():
        p.data = p.data.clone()


def vectors(model: nn.Module, optimizer: Optimizer) -> None:
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(model.parameters()), model.parameters())


def functional(model: nn.Module, optimizer: Optimizer) -> None:
    x = torch.randn(2, 2, 6, 6)
    torch.func.functional_call(model, {k: p * 1 for k, p in model.named_parameters()}, (x,))


def clipped(model: nn.Module, optimizer: Optimizer) -> None:
    loss_of(model).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 0.1)
    optimizer.step()
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()


def restored(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))


def more_groups(model: nn.Module, optimizer: Optimizer) -> None:
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": 0.5})


def scaled(model: nn.Module, optimizer: Optimizer) -> None:
    scaler = torch.amp.GradScaler("cpu")
    for overflows in False, True:
        optimizer.zero_grad()
        scaler.scale(loss_of(model)).backward()
        if overflows:
            model.conv1.weight.grad[0, 0] = torch.inf
        scaler.step(optimizer)
        scaler.update()
    assert scaler.get_scale() == 2.0**15


def compiled(model: nn.Module, optimizer: Optimizer) -> None:
    step = torch.compile(lambda: optimizer.step(), backend="eager")
    loss_of(model).backward()
    step()


def averaged(model: nn.Module, optimizer: Optimizer) -> None:
    mean = torch.optim.swa_utils.AveragedModel(model)
    mean.update_parameters(model)
    before = dormant_weights(model)
    train_step(model, optimizer)
    mean.update_parameters(model)
    assert_same(dormant_weights(mean.module), before)


@pytest.mark.parametrize("kind", ["torch_sgd", "torch_adam", "torch_adam_fused"])
@pytest.mark.parametrize(
    "do",
    [
        swapped_in_place,
        reset_through_data,
        vectors,
        functional,
        clipped,
        restored,
        more_groups,
        averaged,
        scaled,
        compiled,
    ],
)
def test_dormant_weights_stay_bit_identical_beside_what_torch_offers(do: Callable, kind: str, caplog) -> None:
    model, optimizer, scheduler = pruned(KINDS[kind])
    before = dormant_weights(model)
    do(model, optimizer)
    assert_same(dormant_weights(model), before)
    for _ in range(2):
        train_step(model, optimizer)
    assert_same(dormant_weights(model), before)
    scheduler.step()
    assert "dormant channels changed" not in caplog.text


def test_scheduler_tells_when_something_else_moves_dormant_weights(caplog) -> None:
    model, optimizer, scheduler = pruned(KINDS["torch_sgd"])
    other = sgd([model.conv2.weight])
    for _ in range(2):
        train_step(model, optimizer)
        other.step()
        scheduler.step()
    assert "dormant channels changed since the last update, in conv2.weight" in caplog.text


@pytest.mark.parametrize("taken", [lambda o: o.step, lambda o: torch.compile(o.step, backend="eager")])
def test_steps_by_a_reference_from_before_the_scheduler_are_refused_while_channels_are_dormant(taken) -> None:
    model = ConvNet()
    optimizer = KINDS["torch_adam"](list(model.parameters()))
    old_step = taken(optimizer)
    scheduler = sca.SCAScheduler(model, optimizer, **SETTINGS)
    closure_of(model, optimizer)()
    old_step()  # all channels are active
    cut = model.norm1.group
    cut.set_active([0, 3])
    before = dormant_weights(model)
    with pytest.raises(ValueError, match="this step goes past the scheduler"):
        old_step()
    assert_same(dormant_weights(model), before)
    optimizer.step()
    assert_same(dormant_weights(model), before)
    scheduler.detach()
    old_step()


def test_optimizers_that_step_in_the_backward_pass_leave_dormant_weights() -> None:
    model = ConvNet()
    optimizers = {p: sgd([p]) for p in model.parameters()}
    sca.SCAScheduler(model, list(optimizers.values()), **SETTINGS)

    def step_on(p: nn.Parameter) -> None:
        optimizers[p].step()
        optimizers[p].zero_grad()

    for p in optimizers:
        p.register_post_accumulate_grad_hook(step_on)
    model.norm1.group.set_active([0, 3])
    before, weight = dormant_weights(model), model.conv2.weight.detach().clone()
    for _ in range(3):
        loss_of(model).backward()
    assert_same(dormant_weights(model), before)
    assert not torch.equal(model.conv2.weight, weight)
