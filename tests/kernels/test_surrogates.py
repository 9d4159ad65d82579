"""Surrogates: formulas, limits, errors."""

import pytest
import torch

from sca_kernels import Surrogate
from sca_kernels.surrogates import TABLE, resolve

names = pytest.mark.parametrize("name", TABLE)


@names
def test_derivative_is_the_finite_difference_of_the_primitive(name):
    row = TABLE[name]
    u = torch.linspace(-2.0, 2.0, 401, dtype=torch.float64) + 0.00123  # off the kinks and the jump
    step = 1e-6
    primitive = [row.primitive(u + d, row.alpha, row.beta) for d in (step, -step)]
    difference = (primitive[0] - primitive[1]) / (2 * step)
    torch.testing.assert_close(row.derivative(u, row.alpha, row.beta), difference, atol=1e-7, rtol=1e-6)


@names
@pytest.mark.parametrize("alpha", [1.001, 4.0, 1e3, 1e6])
def test_derivative_is_finite_far_from_the_threshold(name, alpha):
    u = torch.tensor([-1e4, -100.0, -1.0, -1e-8, 0.0, 1e-8, 1.0, 100.0, 1e4])
    derivative = resolve(name, alpha).derivative(u)
    assert torch.isfinite(derivative).all()
    assert (derivative >= 0).all()


@names
def test_derivative_keeps_the_dtype(name):
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        assert resolve(name).derivative(torch.zeros(3, dtype=dtype)).dtype == dtype


@names
def test_derivative_in_float64_is_computed_there(name):
    alpha = 1 / 3 + (name == "q_pseudo_spike")
    u = torch.tensor([-2.0, -0.1, 0.1, 2.0], dtype=torch.float64)
    row, step = TABLE[name], 1e-4
    taken = Surrogate(name, alpha, 1 / 7).derivative(u)
    # Richardson's extrapolation: exact to 1e-12, where float32 would be off by 1e-8
    coarse, fine = (
        (row.primitive(u + d, alpha, 1 / 7) - row.primitive(u - d, alpha, 1 / 7)) / (2 * d) for d in (2 * step, step)
    )
    torch.testing.assert_close(taken, (4 * fine - coarse) / 3, atol=1e-11, rtol=1e-11)


def test_a_scale_makes_one_surrogate_of_another():
    u, slope = torch.linspace(-2, 2, 9), 25.0
    snntorchs = Surrogate("fast_sigmoid", slope).derivative(u)
    torch.testing.assert_close(snntorchs, 1 / (1 + slope * u.abs()).square())
    torch.testing.assert_close(Surrogate("soft_sign", slope, scale=2 / slope).derivative(u), snntorchs)


def test_triangle_says_that_it_was_another_function_where_it_is():
    u = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(resolve("triangle").derivative(u), resolve("piecewise_quadratic").derivative(u))
    with pytest.warns(UserWarning, match="it was another name of 'piecewise_quadratic'"):
        high = resolve("triangle", 0.3)
    torch.testing.assert_close(high.derivative(u), 0.3 * (1 - u.abs()).clamp(min=0))


def test_a_surrogate_object_carries_both_parameters():
    assert resolve(Surrogate("leaky_k_relu", 2.0, 0.1)).derivative(torch.tensor([-1.0, 1.0])).tolist() == pytest.approx(
        [0.1, 2.0]
    )


@pytest.mark.parametrize(
    ("surrogate", "alpha", "error", "says"),
    [
        ("atanh", None, ValueError, "surrogate: expected one of sigmoid"),
        (3, None, TypeError, "surrogate: expected a name"),
        ("atan", 0.0, ValueError, "alpha: atan expects"),
        ("atan", float("nan"), ValueError, "alpha: expected a finite number"),
        ("q_pseudo_spike", 1.0, ValueError, "number > 1"),
        ("atan", "2", TypeError, "alpha: expected a number"),
        (Surrogate("atan", 2.0), 3.0, ValueError, "alpha: expected None"),
    ],
)
def test_bad_surrogate_is_named(surrogate, alpha, error, says):
    with pytest.raises(error, match=says):
        resolve(surrogate, alpha)
