"""NaN: an error by default, and let through where a gradient scaler is to see it."""

import pytest
import torch

from sca_kernels import functional as F
from sca_kernels import nn
from sca_kernels.surrogates import TABLE

NAN = float("nan")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(
        nn.ChannelConv2d(2, 4, 3),
        nn.BatchNormLIF(4),
        nn.ChannelConv2d(4, 4, 3),
        nn.LIF(),
        torch.nn.Flatten(2),
        torch.nn.Linear(4 * 16, 3),
    )


@pytest.mark.parametrize("name", TABLE)
def test_the_slope_of_a_surrogate_at_nan_is_nan(target, name):
    backend, device = target
    x = torch.tensor([0.3, NAN, 0.7, -NAN] * 5, device=device).view(1, 4, 5).requires_grad_()
    with F.check_nan(False):
        out = F.if_neuron(x, surrogate=name, backend=backend)
    assert not out.spikes.isnan().any()
    out.spikes.sum().backward()
    assert torch.equal(x.grad.isnan(), x.isnan())


def test_nan_is_an_error_that_can_be_switched_off():
    x = torch.tensor([[[0.0, NAN]]])
    with pytest.raises(F.NotANumber, match=r"channels 1; sca_kernels.functional.check_nan\(False\)"):
        F.lif(x)
    with F.check_nan(False):
        assert F.lif(x).v.isnan().tolist() == [[False, True]]
        with F.check_nan(True), pytest.raises(F.NotANumber):
            F.lif(x)
        F.lif(x)
    with pytest.raises(F.NotANumber):
        F.lif(x)
    with pytest.raises(TypeError, match="checked: expected a bool"):
        F.check_nan("raise")


def test_switched_off_running_statistics_stay_without_nan():
    module = nn.BatchNormLIF(2)
    x = torch.randn(4, 2, 2, 3)
    x[0, 0, 1, 0] = NAN
    with F.check_nan(False):
        module(x)
    assert module.running_mean[0] != 0
    assert module.running_mean[1] == 0
    assert module.running_var[1] == 1


@pytest.mark.parametrize("switch", ["autocast", "check_nan"])
def test_a_gradient_scaler_skips_the_step_of_an_overflow(network, switch):
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0, growth_interval=1)

    def step(x):
        before = [p.detach().clone() for p in network.parameters()]
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.float16, enabled=switch == "autocast"):
            loss = network(x).float().square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        return any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))

    x = torch.randn(4, 2, 2, 8, 8)
    overflowed = x.clone()
    overflowed[1, 0, 1, 2, 2] = float("inf")
    if switch == "check_nan":
        with pytest.raises(F.NotANumber):
            step(overflowed)
    with F.check_nan(switch == "autocast"):
        assert step(x)
        assert scaler.get_scale() == 32
        assert not step(overflowed)
        assert scaler.get_scale() == 16
        assert step(x)
    assert all(z.isfinite().all() for z in network.state_dict().values())


def test_autocast_in_bfloat16_which_overflows_no_sooner_than_float32_keeps_the_error(network):
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(F.NotANumber):
        network(torch.full((4, 2, 2, 8, 8), NAN))
