"""The noise scale of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxtyping import Float
from torch import Tensor

from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import see


class NoiseScale(NamedTuple):
    """The simple noise scale and the two estimates it is the ratio of.

    Attributes:
        ratio: ``trace / signal``, in samples: the batch size above which larger batches
            pay less than in proportion. Biased, as ratios of estimates are, and negative
            or infinite where ``signal`` is not positive.
        trace: The trace of the covariance of the gradients per sample, unbiased.
        signal: The squared norm of the expected gradient, unbiased, so that noise may
            make it negative.

    Over several batches the mean of ``trace`` over the mean of ``signal`` is to be taken,
    not the mean of ``ratio``.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.derivatives.NoiseScale(*torch.tensor([2.0, 6.0, 3.0])).ratio
        tensor(2.)
    """

    ratio: Float[Tensor, ""]
    trace: Float[Tensor, ""]
    signal: Float[Tensor, ""]


def noise_scale(loss: Callable[..., Tensor]) -> Callable[..., NoiseScale]:
    r"""The function ``(params, *batch) -> NoiseScale``: how noisy the gradient is.

    .. math::
        B_\mathrm{simple} = \frac{\operatorname{tr} \Sigma}{|G|^2}, \qquad
        \operatorname{tr} \Sigma = \frac{\sum_i |g_i|^2 - B |\bar g|^2}{B - 1}, \qquad
        |G|^2 = |\bar g|^2 - \frac{\operatorname{tr} \Sigma}{B}

    From one batch, without the gradients per sample in memory.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0,
        two or more.

    Raises:
        TreeError: As for :func:`per_sample_grad_norms`.
        DerivativeError: As for :func:`per_sample_grad_norms`, or for a single sample.

    References:
        McCandlish, Kaplan, Amodei and the OpenAI Dota Team (2018), equation 2.9 and
        appendix A.1.

    Example:
        The gradients are ``x``, with mean (2, 0) and covariance diag(2, 0):

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return x @ w
        >>> x = torch.tensor([[3.0, 0.0], [1.0, 0.0]])
        >>> po.derivatives.noise_scale(loss)(torch.zeros(2), x)
        NoiseScale(ratio=tensor(0.6667), trace=tensor(2.), signal=tensor(3.))
    """
    _checks.function("noise_scale(loss=...)", loss)

    def noise_of_loss(params: Any, *batch: Any) -> NoiseScale:
        seen = see("noise_scale", loss, params, batch, at_least=2)
        squares, mean = seen.sums()
        b = seen.samples
        trace = (squares - b * mean) / (b - 1)
        signal = mean - trace / b
        return NoiseScale(*(x.to(seen.dtype) for x in (trace / signal, trace, signal)))

    return noise_of_loss
