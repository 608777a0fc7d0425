"""A function of one tensor that has a rule of Taylor mode, and points for it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from tests.derivatives.row import randn


@dataclass(frozen=True)
class Multivariate:
    """A function of one tensor of random numbers to a tensor.

    Attributes:
        name: The id.
        f: The function; what it takes from outside has the dtype of its argument.
        shape: The shape of the argument.
        compiled: It is among those that are compiled.
        twin: What is differentiated by torch, where torch cannot differentiate ``f``.
    """

    name: str
    f: Callable[..., Any]
    shape: tuple[int, ...] = (2, 3)
    compiled: bool = False
    twin: Callable[..., Any] | None = None


NUMBERS = randn(64, seed=5)
LABELS = torch.tensor([1, 0])


def given(*shape, like):
    """A constant of the dtype of ``like``; no transform is asked to draw it."""
    return NUMBERS[: math.prod(shape)].reshape(shape).to(like.dtype)


def positive(x):
    return x.exp() + 0.1


def row(name, f, shape=(2, 3), **flags):
    return Multivariate(name, f, shape, **flags)


def point(*shape, seed=0):
    """A point, and a series of two terms."""
    x = randn(*shape, seed=seed)
    return x, (randn(*shape, seed=seed + 1), randn(*shape, seed=seed + 2))
