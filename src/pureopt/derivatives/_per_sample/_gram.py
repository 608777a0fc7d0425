"""The inner products of the gradients per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import see


def grad_gram(
    loss: Callable[..., Tensor],
) -> Callable[..., Float[Tensor, "samples samples"]]:
    r"""The function ``(params, *batch) -> gram``: inner products of samples' gradients.

    .. math::
        G_{ij} = g_i \cdot g_j
        = \sum_{ts} (\delta_{it} \cdot \delta_{js}) (a_{it} \cdot a_{js}) + \dots

    The empirical neural tangent kernel of the losses. Its eigenvalues over the number of
    samples are those of the uncentered covariance of the gradients. The gradients are
    not formed, or, where that is cheaper, a few rows of a leaf at a time; see
    :func:`per_sample_grad_norms` for what has rules.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0.

    Raises:
        TreeError: As for :func:`per_sample_grad_norms`.
        DerivativeError: As for :func:`per_sample_grad_norms`.

    Example:
        The gradient of :math:`w \cdot x` is ``x``:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return x @ w
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> po.derivatives.grad_gram(loss)(torch.zeros(2), x)
        tensor([[25.,  8.],
                [ 8.,  4.]])
    """
    _checks.function("grad_gram(loss=...)", loss)

    def gram_of_loss(params: Any, *batch: Any) -> Float[Tensor, "samples samples"]:
        seen = see("grad_gram", loss, params, batch)
        return seen.gram().to(seen.dtype)

    return gram_of_loss
