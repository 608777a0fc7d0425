"""Adam and AdamW: bias correction, scales, precision, and derivatives in the betas."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.func import jacfwd, jacrev

import pureopt as po
from pureopt.transforms._leaves import bias_correction


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("as_tensor", [False, True], ids=["number", "tensor"])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9, 0.999, 0.9999])
@pytest.mark.parametrize("step", [1, 2, 10, 1000, 10**6])
def test_the_bias_correction_is_that_of_arbitrary_precision(
    step, beta, as_tensor, dtype
):
    hyper = torch.tensor(beta, dtype=dtype) if as_tensor else beta
    got = float(bias_correction(hyper, torch.tensor(step, dtype=dtype)))
    with mpmath.workdps(50):
        # The number that the argument holds, which in float32 is not 0.999.
        want = float(1 - mpmath.mpf(float(hyper)) ** step)
    # log and its product with the step are rounded, and expm1 is: 4 ulp, as its
    # derivative never enlarges a relative error.
    assert abs(got - want) <= 4 * torch.finfo(dtype).eps * want


@pytest.mark.parametrize("make", [po.Adam, po.AdamW])
def test_the_first_step_does_not_depend_on_the_scale_of_the_gradient(make):
    w = torch.zeros(3)
    for scale in (1e-6, 1.0, 1e6):
        adam = make(lr=0.1, eps=0.0)
        new, _ = adam.step(w, adam.init(w), scale * torch.tensor([1.0, -2.0, 3.0]))
        # Two corrections, a root and a quotient: a few ulp of 0.1.
        want = torch.tensor([-0.1, 0.1, -0.1])
        torch.testing.assert_close(new, want, rtol=1e-6, atol=0)


def test_constant_gradients_give_the_same_step_for_ever():
    """Without bias correction the first steps would be 3 times as long, then shorter."""
    adam = po.Adam(lr=1.0, eps=0.0)
    w = torch.zeros((), dtype=torch.float64)
    state = adam.init(w)
    for step in range(1, 200):
        w, state = adam.step(w, state, torch.tensor(7.0, dtype=torch.float64))
        # Each step is rounded to some ulp of its number.
        assert abs(float(w) + step) <= 1e-14 * step * 10


def test_weight_decay_is_decoupled_in_adamw_only():
    w, g = torch.tensor([10.0]), torch.tensor([0.0])
    adamw, adam = po.AdamW(lr=0.1, weight_decay=0.5), po.Adam(lr=0.1, weight_decay=0.5)
    assert torch.equal(adamw.step(w, adamw.init(w), g)[0], torch.tensor([9.5]))
    # Adam rescales the decay as a gradient: its first step has length lr.
    torch.testing.assert_close(adam.step(w, adam.init(w), g)[0], torch.tensor([9.9]))


def test_the_moments_of_half_precision_are_those_of_float32():
    generator = torch.Generator().manual_seed(0)
    grads = [torch.randn(5, generator=generator).bfloat16() for _ in range(20)]
    low, high = torch.ones(5, dtype=torch.bfloat16), torch.ones(5)
    adam = po.Adam(lr=0.01)
    low_state, high_state = adam.init(low), adam.init(high)
    for g in grads:
        low, low_state = adam.step(low, low_state, g)
        _, high_state = adam.step(high, high_state, g.float())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low_state.mu, high_state.mu)
    assert torch.equal(low_state.nu, high_state.nu)


@pytest.mark.parametrize("eps", [1e-8, 0.0])
def test_an_element_that_never_had_a_gradient_stays(eps):
    adam = po.Adam(lr=0.1, eps=eps)
    w = torch.tensor([1.0, 1.0])
    state = adam.init(w)
    for _ in range(5):
        w, state = adam.step(w, state, torch.tensor([0.0, 1.0]))
    assert w[0] == 1
    assert w[1] < 1


@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("mode", [jacfwd, jacrev], ids=["forward", "reverse"])
def test_derivatives_in_the_betas_are_those_of_differences(mode, beta):
    w = torch.tensor([1.0, 2.0], dtype=torch.float64)
    gradients = [torch.tensor([1.0, -2.0]).double(), torch.tensor([0.5, 3.0]).double()]

    def after(betas):
        adam = po.Adam(lr=0.1, betas=(betas[0], betas[1]))
        params, state = w, adam.init(w)
        for g in gradients:
            params, state = adam.step(params, state, g)
        return params

    x = torch.full((2,), beta, dtype=torch.float64)
    h = 1e-6
    # One-sided at 0 as betas are not negative; second order in h.
    low, mid, high = (after(x + k * h) for k in (0, 1, 2))
    total = (-3 * low + 4 * mid - high) / (2 * h)
    got = mode(after)(x).sum(-1)
    # Truncation h^2 / 3 times a third derivative, which near 1 grows as
    # 1 / (1 - beta)^3; rounding 4 eps / h = 1e-9.
    bound = 1e-8 + h**2 * (1 / (1 - beta)) ** 3
    torch.testing.assert_close(got, total, rtol=0, atol=bound)


@pytest.mark.parametrize("make", [po.Adam, po.AdamW])
def test_tensor_hyper_parameters_are_their_numbers(make):
    w, g = torch.tensor([1.0, -2.0]), torch.tensor([3.0, 4.0])
    numbers = {"lr": 0.25, "betas": (0.5, 0.75), "eps": 0.125, "weight_decay": 0.25}
    tensors = {
        "lr": torch.tensor(0.25),
        "betas": (torch.tensor(0.5), torch.tensor(0.75)),
        "eps": torch.tensor(0.125),
        "weight_decay": torch.tensor(0.25),
    }
    runs = []
    for options in (numbers, tensors):
        adam = make(**options)
        params, state = w, adam.init(w)
        for _ in range(3):
            params, state = adam.step(params, state, g)
        runs.append(params)
    # The bias corrections of numbers and of tensors take two ways: 4 ulp each.
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-6, atol=0)
