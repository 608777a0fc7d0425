"""What the first-order optimizers share: moments and gradients in the working dtype."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pureopt._tree import tree_leaves, tree_map
from pureopt._typing import Hyper, P, Scalar
from pureopt.transforms._base import resolve, working_dtype


def zeros(params: P) -> P:
    """A zero for each leaf, contiguous, in float32 where the leaf has less."""
    # `new_zeros` rather than `zeros_like`: under vmap the lanes then come first in
    # memory wherever the parameters have them.
    return tree_map(lambda p: p.new_zeros(p.shape, dtype=working_dtype(p)), params)


def copy(params: P) -> P:
    """A contiguous copy of each leaf, in float32 where the leaf has less."""
    return tree_map(
        lambda p: p.to(
            working_dtype(p), copy=True, memory_format=torch.contiguous_format
        ),
        params,
    )


def widen(params: P, grads: P) -> P:
    """The gradients in the working dtype of their parameters."""
    return tree_map(lambda p, g: g.to(working_dtype(p)), params, grads)


def decay(params: P, grads: P, weight_decay: Scalar) -> P:
    """The widened gradients of ``loss + weight_decay / 2 * |params|**2``."""
    grads = widen(params, grads)
    if is_zero(weight_decay):
        return grads
    return tree_map(
        lambda p, g: (g + weight_decay * p.to(g.dtype)).to(g.dtype), params, grads
    )


def is_zero(hyper: Hyper) -> bool:
    """Whether a hyper-parameter is the Python number 0: what it scales may be left out."""
    return not isinstance(hyper, Tensor) and hyper == 0


def mean(average: P, new: P, beta: Scalar) -> P:
    """The exponential moving average ``beta * average + (1 - beta) * new``."""
    return tree_map(
        # The cast matters where a 0-d leaf meets a wider tensor for `beta`.
        lambda a, n: (beta * a + (1 - beta) * n).to(a.dtype),
        average,
        new,
    )


def bias_correction(beta: Scalar, step: Tensor) -> Tensor:
    """``1 - beta**step`` to a few ulp in any floating dtype of ``step``.

    Near 1 the difference would cancel: for beta 0.999 and the first step, float32 has
    a relative error of 6e-5. There it is ``-expm1(step * log(beta))``.
    """
    if not isinstance(beta, Tensor):
        if beta == 0:
            return torch.ones_like(step)
        return _one_minus_exp(step * math.log(beta))
    beta = beta.to(torch.promote_types(beta.dtype, step.dtype))
    near = beta > 0.5  # noqa: PLR2004
    # Double where: the logarithm sees 1 in its dead branch; the power is safe at 0.
    by_log = _one_minus_exp(step * torch.log(torch.where(near, beta, 1.0)))
    return torch.where(near, by_log, 1 - beta**step)


def _one_minus_exp(x: Tensor) -> Tensor:
    """``-expm1(x)`` as ``-tanh(x / 2) (exp(x) + 1)``.

    What holds an `exp` and has several uses is computed once by inductor; an `expm1` it
    computes again for every few elements of every leaf, a fifth of an Adam step.
    """
    return -torch.tanh(x / 2) * (torch.exp(x) + 1)


def floating(step: Tensor, like: Any) -> Tensor:
    """The counter in the widest working dtype of the leaves of ``like``."""
    dtype = torch.float32
    for leaf in tree_leaves(like):
        dtype = torch.promote_types(dtype, leaf.dtype)
    return step.to(dtype)


def sqrt(x: Tensor) -> Tensor:
    """The square root of ``x >= 0``, with derivative 0 instead of infinity at 0.

    There it is 1e-19 in float32 and 1e-154 in float64, as of the smallest normal number:
    one operation, where a double ``torch.where`` costs an eighth of an Adam step.
    """
    return x.clamp(min=torch.finfo(x.dtype).tiny).sqrt()


def descend(direction: P, lr: Hyper, step: Tensor) -> P:
    """``-lr * direction``, with the learning rate of this step."""
    eta = resolve(lr, step)
    return tree_map(lambda d: -eta * d, direction)
