"""Gradient diversity."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import see


def gradient_diversity(
    loss: Callable[..., Tensor],
) -> Callable[..., Float[Tensor, ""]]:
    r"""The function ``(params, *batch) -> diversity``: how different the gradients are.

    .. math:: \Delta = \frac{\sum_i |g_i|^2}{\bigl| \sum_i g_i \bigr|^2}

    From ``1 / B``, when all gradients are equal, over 1, when they are orthogonal, to
    infinity, when they cancel. ``B`` times it bounds the batch sizes up to which
    mini-batch gradient descent keeps the convergence of single samples.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0.

    Raises:
        TreeError: As for :func:`per_sample_grad_norms`.
        DerivativeError: As for :func:`per_sample_grad_norms`.

    References:
        Yin, Pananjady, Lam, Papailiopoulos, Ramchandran and Bartlett (2018).

    Example:
        Gradients that are orthogonal:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return x @ w
        >>> po.derivatives.gradient_diversity(loss)(torch.zeros(2), torch.eye(2))
        tensor(1.)
    """
    _checks.function("gradient_diversity(loss=...)", loss)

    def diversity_of_loss(params: Any, *batch: Any) -> Float[Tensor, ""]:
        seen = see("gradient_diversity", loss, params, batch)
        squares, mean = seen.sums()
        return (squares / (mean * seen.samples**2)).to(seen.dtype)

    return diversity_of_loss
