"""What a function under Taylor mode may write to."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import hessian

import pureopt as po
from pureopt.derivatives import exact, laplacian
from tests.derivatives.row import randn


def in_place_on_an_alias(x):
    h = x * 1
    y = h
    y += 1
    y *= x
    return (h**2).sum()


def in_place_methods(x):
    h = torch.sin(x)
    h += x
    h.mul_(2).exp_()
    return h.sum()


def in_place_activation(x):
    h = x * 2
    kept = h
    nn.functional.relu(h, inplace=True)
    return (kept**3).sum()


def in_place_on_a_norm(x):
    n = torch.linalg.vector_norm(x)
    n += 1
    return n**2


def in_place_after_a_linear_map(x):
    # The derivatives of `y` are put off until after the write to what they are made of.
    h = 3 * x
    y = torch.cat([h, h])
    h += x.sin()
    return (y.exp()).sum() + (h**2).sum()


def in_place_on_a_first_power(x):
    h = x.sin()
    y = h**1
    y += 1
    return (h * y).sum()


@pytest.mark.parametrize(
    "f",
    [
        in_place_on_an_alias,
        in_place_methods,
        in_place_activation,
        in_place_on_a_norm,
        in_place_after_a_linear_map,
        in_place_on_a_first_power,
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_written_to_is_seen_under_each_of_its_names(f):
    x = randn(3)
    # Third powers and exponentials of numbers below 10.
    torch.testing.assert_close(
        laplacian(f)(x), hessian(exact(f))(x).trace(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("f", "got"),
    [
        (lambda x: (x.mul(2)[:2].add_(1)).sum(), "`add_`"),
        (lambda x: (x.sin().view(3).__iadd__(1)).sum(), r"`\+=`"),
        (lambda x: nn.functional.relu(x, inplace=True).sum(), r"relu\(inplace\)`"),
        (lambda x: x.sin().sum().__imul__(x).sum(), r"`\*=` of \(3,\)"),
    ],
    ids=["view", "operator", "argument", "shape"],
)
def test_writing_to_what_others_share_is_refused(f, got):
    with pytest.raises(po.DerivativeError, match=got):
        laplacian(f)(randn(3))
