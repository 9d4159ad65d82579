"""Optimizers that do more than one element-wise step, as the libraries that users have write them, and a network
that is pruned under one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sca
from sca.structure.groups import parameter_axes
from tests.framework.pruning_nets import ConvNet, loss_of
from tests.framework.test_pruning_optimizer import OPTIMIZERS, MuonLike, active_mask

SETTINGS = {"start": 2, "stop": 12, "interval": 2, "density": 0.5, "min_channels": 2, "schedule": "constant"}


class SAM(Optimizer):
    """Foret et al., ICLR 2021, as github.com/davda54/sam writes it: two passes, and ``base_optimizer.step`` inside."""

    def __init__(self, params, base_optimizer, rho: float = 0.05, **options) -> None:
        super().__init__(params, {"rho": rho, **options})
        self.base_optimizer = base_optimizer(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self) -> None:
        grads = [p.grad.norm() for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack(grads).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    p.add_(p.grad * group["rho"] / (norm + 1e-12))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()

    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        self.first_step()
        loss = torch.enable_grad()(closure)()
        self.second_step()
        return loss


class LeafSAM(Optimizer):
    """SAM with a plain gradient step of its own: the closure runs in the middle, on weights that moved."""

    def __init__(self, params, lr: float = 0.05, rho: float = 0.05, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "rho": rho, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure):
        with torch.enable_grad():
            closure()
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["climb"] = p.grad.sign() * group["rho"]
                p.add_(self.state[p]["climb"])
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(self.state[p]["climb"])
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(p.grad, alpha=-group["lr"])
        return loss


class Lookahead(Optimizer):
    """Zhang et al., NeurIPS 2019, as pytorch-optimizer writes it: slow weights in a state of its own, every k steps."""

    def __init__(self, optimizer: Optimizer, k: int = 3, alpha: float = 0.5) -> None:  # no super().__init__()
        self.optimizer, self.k, self.alpha = optimizer, k, alpha
        self.param_groups = optimizer.param_groups
        self.fast_state = optimizer.state
        self.state = defaultdict(dict)
        for group in self.param_groups:
            group["counter"] = 0

    def step(self, closure=None):
        loss = self.optimizer.step(closure=closure)
        for group in self.param_groups:
            if group["counter"] == 0:
                for fast in group["params"]:
                    slow = self.state[fast].setdefault("slow_param", fast.data.clone())
                    slow += (fast.data - slow) * self.alpha
                    fast.data.copy_(slow)
            group["counter"] = (group["counter"] + 1) % self.k
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class ListedLookahead(Optimizer):
    """The same, with slow weights in lists beside the groups, as lookahead.pytorch has them."""

    def __init__(self, optimizer: Optimizer, alpha: float = 0.5) -> None:
        self.optimizer, self.alpha = optimizer, alpha
        self.param_groups, self.state = optimizer.param_groups, optimizer.state
        self.slow_weights = [[p.detach().clone() for p in group["params"]] for group in self.param_groups]

    def step(self, closure=None):
        loss = self.optimizer.step(closure)
        for group, slow_weights in zip(self.param_groups, self.slow_weights, strict=True):
            for p, q in zip(group["params"], slow_weights, strict=True):
                q.add_(p.data - q, alpha=self.alpha)
                p.data.copy_(q)
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class ScheduleFree(Optimizer):
    """Defazio et al., NeurIPS 2024: gradients at y, steps of z, the average x in evaluation."""

    def __init__(self, params, lr: float = 0.05, momentum: float = 0.9, weight_decay: float = 0.1) -> None:
        super().__init__(
            params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "k": 0, "training": True}
        )

    @torch.no_grad()
    def _exchange(self, training: bool) -> None:
        for group in self.param_groups:
            if group["training"] != training:
                weight = 1 - group["momentum"] if training else 1 - 1 / group["momentum"]
                for p in group["params"]:
                    if "z" in self.state[p]:
                        p.lerp_(self.state[p]["z"], weight)
                group["training"] = training

    def train(self) -> None:
        self._exchange(True)

    def eval(self) -> None:
        self._exchange(False)

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            assert group["training"]
            c = 1 / (group["k"] + 1)
            for p in group["params"]:
                if p.grad is None:
                    continue
                z = self.state[p].setdefault("z", p.clone())
                grad = p.grad.add(p, alpha=group["weight_decay"])
                p.lerp_(z, c)
                p.add_(grad, alpha=group["lr"] * (group["momentum"] * (1 - c) - 1))
                z.sub_(grad, alpha=group["lr"])
            group["k"] += 1


class ShampooLike(Optimizer):
    """State that is not laid out like its parameter: a matrix over the outputs."""

    def __init__(self, params, lr: float = 0.05, weight_decay: float = 0.1) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                rows = p.shape[0]
                state = self.state[p]
                matrix = state.setdefault("preconditioner", torch.eye(rows))
                buffer = state.setdefault("buffer", torch.zeros_like(p))
                grad = p.grad.reshape(rows, -1)
                matrix.add_(grad @ grad.T, alpha=0.01)
                buffer.mul_(0.9).add_(torch.linalg.solve(matrix, grad).view_as(p))
                p.mul_(1 - group["lr"] * group["weight_decay"]).add_(buffer, alpha=-group["lr"])


class MadeLookahead(Lookahead):
    """Slow weights from the constructor on, in the inner optimizer's state."""

    def __init__(self, optimizer: Optimizer, k: int = 3, alpha: float = 0.5) -> None:
        super().__init__(optimizer, k, alpha)
        self.state = optimizer.state
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p]["slow_param"] = p.detach().clone()


class LooseLookahead:
    """One that steps an optimizer and is none, as schedulefree.ScheduleFreeWrapper."""

    def __init__(self, base: Optimizer, alpha: float = 0.5) -> None:
        self.base, self.alpha = base, alpha

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.base.param_groups

    @property
    def state(self) -> dict[nn.Parameter, Any]:
        return self.base.state

    def zero_grad(self) -> None:
        self.base.zero_grad()

    @torch.no_grad()
    def step(self, closure=None):
        loss = self.base.step(closure)
        for p in (p for group in self.param_groups for p in group["params"]):
            p.lerp_(self.state[p].setdefault("slow_param", p.clone()), self.alpha)
        return loss


def sgd(params, **options) -> Optimizer:
    return torch.optim.SGD(params, **{"lr": 0.05, "momentum": 0.9, "weight_decay": 0.1, **options})


def adamw(params, **options) -> Optimizer:
    return torch.optim.AdamW(params, lr=0.01, weight_decay=0.1, **options)


KINDS: dict[str, Callable[[list[nn.Parameter]], Optimizer]] = {
    "sam": lambda p: SAM(p, torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.1),
    "sam_adamw": lambda p: SAM(p, torch.optim.AdamW, lr=0.01, weight_decay=0.1),
    "leaf_sam": LeafSAM,
    "lookahead": lambda p: Lookahead(sgd(p)),
    "lookahead_adagrad": lambda p: Lookahead(torch.optim.Adagrad(p, lr=0.05, weight_decay=0.1)),
    "lookahead_of_lookahead": lambda p: Lookahead(Lookahead(adamw(p)), k=2),
    "listed_lookahead": lambda p: ListedLookahead(sgd(p)),
    "made_lookahead": lambda p: MadeLookahead(sgd(p)),
    "loose_lookahead": lambda p: LooseLookahead(sgd(p)),
    "schedule_free": ScheduleFree,
    "shampoo_like": ShampooLike,
    "muon_like": lambda p: MuonLike(p, weight_decay=0.1),
    **{f"torch_{name}": make for name, make in OPTIMIZERS.items() if name != "muon_like"},
    "torch_sgd_maximize": lambda p: sgd(p, maximize=True),
    "torch_sgd_fused": lambda p: sgd(p, fused=True),
    "torch_adamw_foreach": lambda p: adamw(p, foreach=True),
    "torch_adamw_tensor_lr": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1),
    "torch_rprop_maximize": lambda p: torch.optim.Rprop(p, maximize=True),
}


def closure_of(model: nn.Module, optimizer: Optimizer) -> Callable[[], Tensor]:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model)
        loss.backward()
        return loss

    return closure


def step(model: nn.Module, optimizer: Optimizer) -> None:
    """A training step with a closure, which some need and all may have."""
    closure = closure_of(model, optimizer)
    if isinstance(optimizer, ScheduleFree | MuonLike | ShampooLike):
        closure()
        optimizer.step()
    elif isinstance(optimizer, SAM):
        closure()
        optimizer.step(closure)
    else:
        optimizer.step(closure)


def dormant_weights(model: nn.Module) -> dict[str, Tensor]:
    axes = parameter_axes(model)
    return {name: p.detach()[~active_mask(p, axes.get(p, ()))].clone() for name, p in model.named_parameters()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


def pruned(make: Callable, **settings: Any) -> tuple[nn.Module, Optimizer, sca.SCAScheduler]:
    """A network that was cut at step 2, behind some steps that made optimizer state."""
    torch.manual_seed(0)
    model = ConvNet()
    optimizer = make(list(model.parameters()))
    scheduler = sca.SCAScheduler(model, optimizer, **{**SETTINGS, "regrow_fraction": 0.0, **settings})
    for _ in range(2):
        step(model, optimizer)
        scheduler.step()
    assert scheduler.density < 1
    return model, optimizer, scheduler
