"""ActiveOptimizer (checklist: dormant parameters and optimizer state bit-identical after 100 steps; regrown state
cleared).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from sca.pruning.optimizer import ActiveOptimizer
from sca.structure.groups import Axis, parameter_axes
from sca_kernels.nn import ChannelGroup
from tests.framework.pruning_nets import ConvNet, loss_of, train_step


class MuonLike(torch.optim.Optimizer):
    """Momentum whose matrices are orthogonalised (Newton-Schulz): each entry's update depends on all of them."""

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 0.01) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                momentum = state.setdefault("momentum", torch.zeros_like(p))
                momentum.mul_(group["momentum"]).add_(p.grad)
                update = momentum
                if p.dim() > 1:
                    x = momentum.flatten(1)
                    x = x / (x.norm() + 1e-7)
                    for _ in range(3):
                        x = 1.5 * x - 0.5 * x @ x.T @ x
                    update = x.view_as(p)
                p.mul_(1 - group["lr"] * group["weight_decay"]).sub_(update, alpha=group["lr"])


OPTIMIZERS: dict[str, Callable] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "sgd_nesterov": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=False),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.01),
    "adam_amsgrad": lambda p: torch.optim.Adam(p, lr=0.01, amsgrad=True),
    "adam_fused": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.01),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9, centered=True),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "radam": lambda p: torch.optim.RAdam(p, lr=0.01),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.01),
    "adadelta": lambda p: torch.optim.Adadelta(p, lr=0.1),
    "adamax": lambda p: torch.optim.Adamax(p, lr=0.01),
    "asgd": lambda p: torch.optim.ASGD(p, lr=0.01),
    "rprop": lambda p: torch.optim.Rprop(p, lr=0.01),
    "muon_like": MuonLike,
}


def layer() -> tuple[dict[str, nn.Parameter], dict[nn.Parameter, tuple[Axis, ...]]]:
    """Parameters of a 4-to-6 convolution and a linear layer behind it (2 features per channel), with their groups."""
    source, sink = ChannelGroup(4), ChannelGroup(6)
    shapes = {"conv": (6, 4, 3, 3), "bias": (6,), "linear": (5, 12)}
    p = {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}
    p["conv"].data = p["conv"].data.contiguous(memory_format=torch.channels_last)
    axes = {p["conv"]: (Axis(sink, 0), Axis(source, 1)), p["bias"]: (Axis(sink, 0),), p["linear"]: (Axis(sink, 1, 2),)}
    return p, axes


def prune(axes: dict[nn.Parameter, tuple[Axis, ...]], source=(0, 2), sink=(1, 3, 4)) -> None:
    (sink_axis, source_axis), *_ = axes.values()
    sink_axis.group.set_active(sink)
    source_axis.group.set_active(source)


def active_mask(p: nn.Parameter, axes: tuple[Axis, ...]) -> Tensor:
    mask = torch.ones(p.shape, dtype=torch.bool)
    for axis in axes:
        along = torch.zeros(p.shape[axis.dim], dtype=torch.bool)
        along[axis.entries(axis.group.active)] = True
        mask &= along.view([-1 if d == axis.dim else 1 for d in range(p.dim())])
    return mask


def set_gradients(parameters: dict[str, nn.Parameter], axes: dict[nn.Parameter, tuple[Axis, ...]]) -> None:
    """Random gradients, zero for dormant entries, as a backward pass leaves them."""
    for p in parameters.values():
        p.grad = torch.randn_like(p) * active_mask(p, axes[p])


def entries_of_state(optimizer: torch.optim.Optimizer, p: nn.Parameter) -> dict[str, Tensor]:
    return {k: v for k, v in optimizer.state[p].items() if isinstance(v, Tensor) and v.shape == p.shape}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_leaves_dormant_parameters_and_state_bit_identical_for_100_steps(name: str) -> None:
    parameters, axes = layer()
    optimizer = OPTIMIZERS[name](parameters.values())
    ActiveOptimizer(optimizer, axes)
    set_gradients(parameters, axes)
    optimizer.step()  # dense: every entry has moved and has state
    prune(axes)
    before = {k: p.detach().clone() for k, p in parameters.items()}
    state = {k: copy.deepcopy(entries_of_state(optimizer, p)) for k, p in parameters.items()}
    identity = {k: (id(p), p.data_ptr(), p.stride()) for k, p in parameters.items()}
    for _ in range(100):
        set_gradients(parameters, axes)
        optimizer.step()
    for key, p in parameters.items():
        active = active_mask(p, axes[p])
        assert torch.equal(p[~active], before[key][~active])
        assert not bool((p[active] == before[key][active]).all())
        for kind, value in entries_of_state(optimizer, p).items():
            assert torch.equal(value[~active], state[key][kind][~active]), (key, kind)
        assert (id(p), p.data_ptr(), p.stride()) == identity[key]
        assert p.grad.shape == p.shape


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_equals_that_of_a_compact_network(name: str) -> None:
    parameters, axes = layer()
    optimizer = OPTIMIZERS[name](parameters.values())
    ActiveOptimizer(optimizer, axes)
    prune(axes)

    def block(p: nn.Parameter, value: Tensor) -> Tensor:
        for axis in axes[p]:
            value = value.index_select(axis.dim, axis.entries(axis.group.active))
        last = p.dim() == 4  # the layout decides the order of sums, and where a vectorised loop ends
        return value.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)

    small = {k: nn.Parameter(block(p, p.detach())) for k, p in parameters.items()}
    reference = OPTIMIZERS[name](small.values())
    for _ in range(3):  # the first step creates most of the state
        set_gradients(parameters, axes)
        for k, p in parameters.items():
            small[k].grad = block(p, p.grad)
        optimizer.step()
        reference.step()
    for k, p in parameters.items():
        assert torch.equal(block(p, p.detach()), small[k].detach())
        for kind, value in entries_of_state(optimizer, p).items():
            assert torch.equal(block(p, value), reference.state[small[k]][kind])
            assert value.stride() == p.stride()
            if kind in ("momentum_buffer", "exp_avg", "exp_avg_sq"):
                assert not value[~active_mask(p, axes[p])].any()


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "muon_like"])
def test_optimizer_step_through_a_model_leaves_dormant_entries_bit_identical_for_100_steps(name: str) -> None:
    model = ConvNet()
    axes = parameter_axes(model)
    optimizer = OPTIMIZERS[name](model.parameters())
    ActiveOptimizer(optimizer, axes)
    train_step(model, optimizer)
    model.norm1.group.set_active([0, 3, 4])
    model.norm2.group.set_active([1, 2, 5, 7])
    before = copy.deepcopy({k: p.detach() for k, p in model.named_parameters()})
    buffers = copy.deepcopy(dict(model.named_buffers()))
    for _ in range(100):
        train_step(model, optimizer)
    for key, p in model.named_parameters():
        active = active_mask(p, axes.get(p, ()))
        assert torch.equal(p[~active], before[key][~active])
        assert not torch.equal(p[active], before[key][active])
    for norm in ("norm1", "norm2"):
        dormant = getattr(model, norm).group.dormant
        for kind in ("running_mean", "running_var"):
            assert torch.equal(getattr(getattr(model, norm), kind)[dormant], buffers[f"{norm}.{kind}"][dormant])


def test_optimizer_clear_zeroes_the_state_of_regrown_channels_as_outputs_and_as_inputs() -> None:
    parameters, axes = layer()
    optimizer = OPTIMIZERS["adam"](parameters.values())
    active = ActiveOptimizer(optimizer, axes)
    set_gradients(parameters, axes)
    optimizer.step()
    sink, source = (axis.group for axis in axes[parameters["conv"]])
    active.clear({sink: torch.tensor([5]), source: torch.tensor([1, 3])})
    for kind in ("exp_avg", "exp_avg_sq"):
        conv = optimizer.state[parameters["conv"]][kind]
        assert not conv[5].any()
        assert not conv[:, [1, 3]].any()
        assert conv[:5][:, [0, 2]].all()
        assert optimizer.state[parameters["bias"]][kind].nonzero().flatten().tolist() == [0, 1, 2, 3, 4]
        linear = optimizer.state[parameters["linear"]][kind]
        assert not linear[:, [10, 11]].any()
        assert linear[:, :10].all()
    assert optimizer.state[parameters["bias"]]["step"] == 1


def test_optimizer_step_restores_full_tensors_when_it_raises() -> None:
    class Failing(MuonLike):
        fail = False

        def step(self, closure=None) -> None:
            super().step(closure)
            if self.fail:
                raise KeyboardInterrupt

    parameters, axes = layer()
    optimizer = Failing(parameters.values())
    ActiveOptimizer(optimizer, axes)
    prune(axes)
    set_gradients(parameters, axes)
    gradients = {k: p.grad for k, p in parameters.items()}
    shapes = {k: p.shape for k, p in parameters.items()}
    optimizer.fail = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step()
    for k, p in parameters.items():
        assert p.shape == shapes[k]
        assert p.grad is gradients[k]
        assert optimizer.state[p]["momentum"].shape == shapes[k]
    optimizer.fail = False
    optimizer.step()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_step_calls_its_closure_on_full_tensors_with_gradients_on(name: str) -> None:
    parameters, axes = layer()
    optimizer = OPTIMIZERS[name](parameters.values())
    ActiveOptimizer(optimizer, axes)
    prune(axes)
    shapes = [p.shape for p in parameters.values()]
    before = {k: p.detach().clone() for k, p in parameters.items()}
    seen = []

    def closure() -> int:
        seen.append(([p.shape for p in parameters.values()], torch.is_grad_enabled()))
        set_gradients(parameters, axes)
        return 7

    result = optimizer.step(closure)
    assert result == 7 or name == "muon_like"  # which takes none
    if name != "muon_like":
        assert seen == [(shapes, True)]
        for k, p in parameters.items():
            assert torch.equal(p != before[k], active_mask(p, axes[p]))


def test_optimizer_step_skips_parameters_without_gradient_and_ignores_the_order_of_groups() -> None:
    parameters, axes = layer()
    order = [{"params": [parameters["linear"]]}, {"params": [parameters["bias"], parameters["conv"]], "lr": 0.1}]
    optimizer = torch.optim.SGD(order, lr=0.05, momentum=0.9)
    ActiveOptimizer(optimizer, axes)
    prune(axes)
    set_gradients(parameters, axes)
    parameters["bias"].grad = None
    before = {k: p.detach().clone() for k, p in parameters.items()}
    optimizer.step()
    assert torch.equal(parameters["bias"], before["bias"])
    assert optimizer.state[parameters["conv"]]["momentum_buffer"].shape == (6, 4, 3, 3)
    moved = parameters["conv"] != before["conv"]
    assert torch.equal(moved, active_mask(parameters["conv"], axes[parameters["conv"]]))


@pytest.mark.parametrize("first", ["optimizer", "learning_rate"])
def test_optimizer_works_with_learning_rate_schedulers_made_before_or_after(first: str, recwarn) -> None:
    parameters, axes = layer()
    optimizer = OPTIMIZERS["sgd"](parameters.values())
    if first == "optimizer":
        active = ActiveOptimizer(optimizer, axes)
        rate = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    else:
        rate = torch.optim.lr_scheduler.StepLR(optimizer, 1)
        active = ActiveOptimizer(optimizer, axes)
    prune(axes)
    for _ in range(2):
        set_gradients(parameters, axes)
        optimizer.step()
        rate.step()
    active.detach()
    optimizer.step()
    assert rate.get_last_lr() == pytest.approx([5e-4])
    assert not recwarn.list


def test_optimizer_takes_one_scheduler_at_a_time() -> None:
    parameters, axes = layer()
    optimizer = OPTIMIZERS["sgd"](parameters.values())
    active = ActiveOptimizer(optimizer, axes)
    with pytest.raises(ValueError, match="attached to it already"):
        ActiveOptimizer(optimizer, axes)
    active.detach()
    ActiveOptimizer(optimizer, axes)


def test_optimizer_step_is_seen_by_autograd() -> None:
    """A graph that still needs the old weights notices that they changed."""
    model = ConvNet()
    optimizer = OPTIMIZERS["sgd"](model.parameters())
    ActiveOptimizer(optimizer, parameter_axes(model))
    model.norm1.group.set_active([0, 1])
    version = model.conv2.weight._version
    loss_of(model).backward()
    optimizer.step()
    assert model.conv2.weight._version > version
