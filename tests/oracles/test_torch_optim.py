"""Step by step against torch.optim, torch.nn.utils and torch.optim.swa_utils."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import pureopt as po

SHAPES = {"weight": (4, 3), "bias": (4,), "scale": ()}
KINDS = {
    "sgd": (po.SGD, torch.optim.SGD, {}),
    "momentum": (po.SGD, torch.optim.SGD, {"momentum": 0.9}),
    "dampening": (po.SGD, torch.optim.SGD, {"momentum": 0.9, "dampening": 0.3}),
    "nesterov": (po.SGD, torch.optim.SGD, {"momentum": 0.8, "nesterov": True}),
    "sgd-decay": (po.SGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.05}),
    "adam": (po.Adam, torch.optim.Adam, {}),
    "adam-betas": (po.Adam, torch.optim.Adam, {"betas": (0.0, 0.5), "eps": 1e-3}),
    "adam-decay": (po.Adam, torch.optim.Adam, {"weight_decay": 0.05}),
    "adamw": (po.AdamW, torch.optim.AdamW, {}),
    "adamw-decay": (po.AdamW, torch.optim.AdamW, {"weight_decay": 0.3}),
}
each_kind = pytest.mark.parametrize("kind", KINDS)
LR = 0.01


def draw(seed, dtype, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (scale * torch.randn(shape, generator=generator)).to(dtype)
        for name, shape in SHAPES.items()
    }


def theirs(cls, options, gradients, params, lr=LR):
    leaves = {name: nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = cls(leaves.values(), lr=lr, **options)
    for grads in gradients:
        for name, leaf in leaves.items():
            leaf.grad = grads[name].clone()
        optimizer.step()
    return {name: leaf.detach() for name, leaf in leaves.items()}, optimizer


def ours(transform, gradients, params):
    state = transform.init(params)
    for grads in gradients:
        params, state = transform.step(params, state, grads)
    return params, state


@each_kind
@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("seed", range(3))
def test_one_step_is_theirs_within_four_ulp(kind, scale, seed):
    mine, cls, options = KINDS[kind]
    params = draw(seed, torch.float32)
    gradients = [draw(seed + 100, torch.float32, scale)]
    got, _ = ours(mine(lr=LR, **options), gradients, params)
    want, _ = theirs(cls, options, gradients, params)
    for name, start in params.items():
        # An ulp of the larger of the two numbers that are added: the parameter and its
        # update.
        size = torch.maximum(start.abs(), (want[name] - start).abs())
        ulp = torch.finfo(torch.float32).eps * size
        assert ((got[name] - want[name]).abs() <= 4 * ulp).all()


@each_kind
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str
)
def test_fifty_steps_are_theirs(kind, dtype, bound):
    # Rounding errors of 50 steps add up to at most 50 * 4 ulp of numbers of size 4:
    # 1e-4 at worst in float32, and a tenth of that when they are of random sign. In
    # float64 the same is 2e-13.
    mine, cls, options = KINDS[kind]
    params = draw(0, dtype)
    gradients = [draw(seed, dtype) for seed in range(1, 51)]
    got, _ = ours(mine(lr=LR, **options), gradients, params)
    want, _ = theirs(cls, options, gradients, params)
    torch.testing.assert_close(got, want, rtol=0, atol=bound)


@each_kind
def test_a_schedule_is_their_lambda_scheduler(kind):
    mine, cls, options = KINDS[kind]
    params = draw(0, torch.float64)
    gradients = [draw(seed, torch.float64) for seed in range(1, 11)]
    rates = [LR * 0.9**t for t in range(len(gradients))]
    table = torch.tensor(rates, dtype=torch.float64)
    got, _ = ours(
        mine(lr=lambda step: table.gather(0, step.view(1))[0], **options),
        gradients,
        params,
    )
    leaves = {name: nn.Parameter(p.clone()) for name, p in params.items()}
    optimizer = cls(leaves.values(), lr=LR, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.9)
    for grads in gradients:
        for name, leaf in leaves.items():
            leaf.grad = grads[name].clone()
        optimizer.step()
        scheduler.step()
    want = {name: leaf.detach() for name, leaf in leaves.items()}
    # As the 50 steps in float64; the rates differ by their own rounding.
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_the_moments_are_theirs():
    params = draw(0, torch.float64)
    gradients = [draw(seed, torch.float64) for seed in range(1, 6)]
    _, state = ours(po.Adam(), gradients, params)
    _, optimizer = theirs(torch.optim.Adam, {}, gradients, params)
    for name, saved in zip(SHAPES, optimizer.state.values(), strict=True):
        assert int(saved["step"]) == int(state.step)
        # Three operations a step on numbers of order 1.
        close = {"rtol": 1e-14, "atol": 1e-15}
        torch.testing.assert_close(state.mu[name], saved["exp_avg"], **close)
        torch.testing.assert_close(state.nu[name], saved["exp_avg_sq"], **close)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_clipping_is_theirs_without_their_constant(scale):
    grads = draw(3, torch.float64, scale)
    clip = po.ClipByGlobalNorm(0.5)
    got, _ = clip.update(grads, clip.init(grads), grads)
    leaves = [nn.Parameter(g.clone()) for g in grads.values()]
    for leaf in leaves:
        leaf.grad = leaf.detach().clone()
    norm = float(nn.utils.clip_grad_norm_(leaves, 0.5))
    # torch divides by norm + 1e-6, and leaves alone what is inside.
    undo = (norm + 1e-6) / norm if norm + 1e-6 > 0.5 else 1.0
    for mine, leaf in zip(got.values(), leaves, strict=True):
        # The two sums of 17 squares differ by rounding only.
        torch.testing.assert_close(mine, leaf.grad * undo, rtol=1e-14, atol=0)


def test_the_average_is_that_of_an_averaged_model():
    module = nn.Linear(3, 2).double()
    averaged = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    averaged.update_parameters(module)  # the start counts, as it does in EMA
    params = {name: p.detach().clone() for name, p in module.named_parameters()}
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    ema = po.EMA(po.SGD(lr=0.1), decay=0.9)
    state = ema.init(params)
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        for p in module.parameters():
            p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
        grads = {name: p.grad.clone() for name, p in module.named_parameters()}
        optimizer.step()
        averaged.update_parameters(module)
        params, state = ema.step(params, state, grads)
    got = ema.eval_params(params, state)
    for name, want in averaged.module.named_parameters():
        # Three operations a step on numbers of order 1.
        torch.testing.assert_close(got[name], want.detach(), rtol=1e-13, atol=1e-14)
