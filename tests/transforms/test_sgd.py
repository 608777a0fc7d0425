"""SGD: closed forms on a quadratic, and what its state holds."""

from __future__ import annotations

import pytest
import torch

import pureopt as po

# Numbers whose products are exact in float32.
W, G = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 8.0])


def test_plain_descent_is_the_formula():
    sgd = po.SGD(lr=0.25, weight_decay=0.5)
    new, state = sgd.step(W, sgd.init(W), G)
    assert torch.equal(new, W - 0.25 * (G + 0.5 * W))
    assert state.mu == ()
    assert int(state.step) == 1


def test_the_first_buffer_is_the_first_gradient_without_dampening():
    sgd = po.SGD(lr=1.0, momentum=0.5, dampening=0.75)
    params, state = sgd.step(W, sgd.init(W), G)
    assert torch.equal(state.mu, G)
    _, state = sgd.step(params, state, G)
    assert torch.equal(state.mu, 0.5 * G + 0.25 * G)


def test_nesterov_looks_ahead():
    sgd = po.SGD(lr=1.0, momentum=0.5, nesterov=True)
    new, _ = sgd.step(W, sgd.init(W), G)
    assert torch.equal(new, W - (G + 0.5 * G))


def test_momentum_on_a_quadratic_follows_its_recurrence():
    """theta'' = (1 + m - lr h) theta' - m theta: the roots give the closed form."""
    lr, m, h = 0.1, 0.5, 1.0
    sgd = po.SGD(lr=lr, momentum=m)
    x = torch.ones((), dtype=torch.float64)
    state, track = sgd.init(x), [1.0]
    for _ in range(30):
        x, state = sgd.step(x, state, h * x)
        track.append(float(x))
    roots = torch.tensor([1.0, -(1 + m - lr * h), m], dtype=torch.float64)
    b = float(-roots[1])
    spread = (b * b - 4 * m) ** 0.5  # complex: the motion is an oscillation
    r1, r2 = (b + spread) / 2, (b - spread) / 2
    c1 = (track[1] - r2) / (r1 - r2)
    exact = (c1 * r1**30 + (1 - c1) * r2**30).real
    # 30 steps of three operations on numbers below 1.
    assert abs(track[-1] - exact) <= 100 * torch.finfo(torch.float64).eps


def test_the_schedule_counts_steps_from_zero():
    seen = []

    def rate(step):
        seen.append(int(step))
        return torch.tensor(0.5) ** step

    sgd = po.SGD(lr=rate)
    params, state = sgd.step(W, sgd.init(W), G)
    assert torch.equal(params, W - G)
    params, _ = sgd.step(params, state, G)
    assert torch.equal(params, W - 1.5 * G)
    assert seen == [0, 1]


@pytest.mark.parametrize("name", ["momentum", "dampening", "weight_decay"])
def test_a_tensor_hyper_parameter_is_its_number(name):
    number = 0.25  # exact in float32
    others = {"momentum": 0.5, "dampening": 0.5, "weight_decay": 0.5}
    results = []
    for hyper in (number, torch.tensor(number), torch.tensor(number).double()):
        sgd = po.SGD(lr=0.25, **{**others, name: hyper})
        params, state = W, sgd.init(W)
        for _ in range(3):
            params, state = sgd.step(params, state, G)
        results.append((params, state.mu))
    for other in results[1:]:
        for a, b in zip(other, results[0], strict=True):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)


def test_low_precision_leaves_step_in_float32():
    """Half of the steps would be lost if bfloat16 gradients were summed in bfloat16."""
    w = torch.ones(4, dtype=torch.bfloat16)
    g = torch.full_like(w, 1e-3)
    sgd = po.SGD(lr=1.0, momentum=1.0)
    state = sgd.init(w)
    for _ in range(100):
        _, state = sgd.step(w, state, g)
    assert state.mu.dtype == torch.float32
    # 100 additions in float32 of the number that bfloat16 holds for 1e-3.
    torch.testing.assert_close(state.mu, 100 * g.float(), rtol=1e-5, atol=0)
