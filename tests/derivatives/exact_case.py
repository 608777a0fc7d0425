"""A function of one number through an operation, in torch and in mpmath.

The argument of an operation moves along ``a + b t + c t^2``; what is differentiated is a
weighted sum of its elements.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mpmath as mp
import torch
from torch.func import grad, jvp

from tests.derivatives.exact_oracles import walk

DIGITS = 40
WELL = (3.0, 0.4, -0.6, 0.2, 2.5, 0.7, -0.3, 0.9, 4.0)  # a well-conditioned matrix


@dataclass(frozen=True)
class Case:
    """One operation.

    Attributes:
        name: As in the support matrix.
        shape: Of the argument.
        op: From the argument to a tensor.
        oracle: From nested lists of mpmath's numbers to a flat list of them.
        start: The argument at ``t = 0``, flat; drawn where it is ``None``.
    """

    name: str
    shape: tuple[int, ...]
    op: Callable[[torch.Tensor], torch.Tensor]
    oracle: Callable[[Any], list[Any]]
    start: tuple[float, ...] | None = None

    def path(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``a, b, c``: decimal fractions from a fixed seed."""
        draw = random.Random(7)  # noqa: S311 - test data
        n = torch.Size(self.shape).numel()
        a, b, c = ([draw.randint(-150, 150) / 100 for _ in range(n)] for _ in range(3))
        if self.start is not None:
            a = list(self.start)
        return tuple(
            torch.tensor(v, dtype=torch.float64).reshape(self.shape) for v in (a, b, c)
        )

    def torch(self, transform=lambda f: f):
        """The function of ``t`` in torch, its operation under ``transform``."""
        a, b, c = self.path()
        op = transform(self.op)

        def f(t):
            y = op(a + b * t + c * (t * t)).reshape(-1)
            return (y * weights(y.shape[0])).sum()

        return f

    def truth(self, order: int = 4) -> list[float]:
        """The derivatives of orders 0 to ``order`` at 0."""
        a, b, c = (v.tolist() for v in self.path())
        with mp.workdps(DIGITS):

            def f(t):
                y = self.oracle(
                    walk(lambda p, q, r: mp.mpf(p) + q * t + r * t * t, a, b, c)
                )
                return mp.fsum(
                    w * v for w, v in zip(weights(len(y)).tolist(), y, strict=True)
                )

            return [
                float(v * mp.factorial(k)) for k, v in enumerate(mp.taylor(f, 0, order))
            ]


def weights(n: int) -> torch.Tensor:
    return torch.arange(1, n + 1, dtype=torch.float64).cos() + 2


def words(order: int) -> list[str]:
    """The nestings, innermost first: R for ``grad``, F for ``jvp``."""
    return ["".join(word) for word in itertools.product("RF", repeat=order)]


def differentiated(f, word: str):
    for mode in word:
        f = grad(f) if mode == "R" else tangent(f)
    return f


def tangent(f):
    return lambda t: jvp(f, (t,), (torch.ones_like(t),))[1]
