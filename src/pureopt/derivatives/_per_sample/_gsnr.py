"""The signal-to-noise ratio of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import like_leaves, see


def gsnr(loss: Callable[..., Tensor]) -> Callable[..., Any]:
    r"""The function ``(params, *batch) -> ratios``: the GSNR of every parameter.

    .. math:: r_j = \frac{\bar g_j^2}{\mathrm{var}(g_j)}

    with the mean and the unbiased variance over the samples of the batch. Dimensionless
    and not negative; 0 where the gradient of every sample is 0, infinite where it is
    the same for all.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0,
        two or more. It returns a tree like ``params``.

    Raises:
        TreeError: As for :func:`per_sample_grad_norms`.
        DerivativeError: As for :func:`per_sample_grad_norms`, or for a single sample.

    References:
        Liu, Jiang, Bai, Chen and Wang (2020).

    Example:
        The gradient of :math:`w \cdot x` is ``x``:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return x @ w
        >>> x = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
        >>> po.derivatives.gsnr(loss)(torch.zeros(2), x)
        tensor([2.0000, 0.5000])
    """
    _checks.function("gsnr(loss=...)", loss)

    def ratios_of_loss(params: P, *batch: Any) -> P:
        seen = see("gsnr", loss, params, batch, at_least=2)
        ratios = [_ratio(mean.square(), variance) for mean, variance in seen.moments()]
        return like_leaves(params, ratios)

    return ratios_of_loss


def _ratio(signal: Tensor, noise: Tensor) -> Tensor:
    nothing = (signal == 0) & (noise == 0)
    return torch.where(nothing, 0.0, signal / torch.where(nothing, 1.0, noise))
