"""The variance of the gradient over the samples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import like_leaves, see


def grad_variance(loss: Callable[..., Tensor]) -> Callable[..., Any]:
    r"""The function ``(params, *batch) -> variance``, entry by entry, over the samples.

    .. math:: \frac{1}{B - 1} \sum_i (g_i - \bar g)^2

    Unbiased. For a weight with one position its squares are summed as
    :math:`(\delta^2)^T a^2`, in one product of matrices; its rounding error is relative
    to the mean square, not to the variance. Others take a few rows of a leaf, or a few
    samples, at a time.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0,
        two or more. It returns a tree like ``params``.

    Raises:
        TreeError: As for :func:`per_sample_grad_norms`.
        DerivativeError: As for :func:`per_sample_grad_norms`, or for a single sample.

    Example:
        The gradient of :math:`w \cdot x` is ``x``:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return x @ w
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> po.derivatives.grad_variance(loss)(torch.zeros(2), x)
        tensor([4.5000, 2.0000])
    """
    _checks.function("grad_variance(loss=...)", loss)

    def variance_of_loss(params: P, *batch: Any) -> P:
        seen = see("grad_variance", loss, params, batch, at_least=2)
        variances = [variance for _, variance in seen.moments()]
        return like_leaves(params, variances)

    return variance_of_loss
