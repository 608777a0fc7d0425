"""The gradients per sample themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import grad, vmap

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import count
from pureopt.derivatives._per_sample._composites import for_vmap


def per_sample_grads(
    loss: Callable[..., Tensor], *, chunk_size: int | None = None
) -> Callable[..., Any]:
    r"""The function ``(params, *batch) -> grads`` with the gradient of every sample.

    .. math:: g_i = \nabla_\theta \ell(\theta, x_i)

    The one function here whose memory is that of so many copies of the parameters as
    there are samples. Norms, inner products and variances need none of them:
    :func:`per_sample_grad_norms`, :func:`grad_gram`, :func:`grad_variance`.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample. What all
            samples share is closed over.
        chunk_size: How many samples at a time; ``None`` for all. It bounds what is needed
            on the way, and the result does not depend on it.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0.
        It returns a tree like ``params``, with the samples in dimension 0.

    Raises:
        HyperparameterError: If ``chunk_size`` is not a positive integer.
        TreeError: At the call, if ``params`` holds what is not a floating tensor.
        DerivativeError: At the call, if the parts of the batch have different numbers of
            samples, or the loss is not a differentiable scalar: batch norm in train mode
            is not, since it mixes samples.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return (w * x).sum()
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> po.derivatives.per_sample_grads(loss)(torch.zeros(2), x)
        tensor([[1., 2.],
                [3., 4.]])
    """
    where = "per_sample_grads"
    chunk_size = _checks.chunk(f"{where}(chunk_size=...)", chunk_size)
    _checks.function(f"{where}(loss=...)", loss)

    def grads_of_loss(params: P, *batch: Any) -> P:
        _checks.point(f"{where}(params=...)", params)
        count(where, batch)

        def one(params: P, *sample: Any) -> Tensor:
            inner, *own = _checks.renewed((params, *sample))
            return _checks.scalar(f"{where}(loss=...)", for_vmap(loss)(inner, *own))

        in_dims = (None, *[0] * len(batch))
        grads = vmap(grad(one), in_dims=in_dims, chunk_size=chunk_size)
        return _checks.call(f"{where}(loss=...)", grads, params, *batch)

    return grads_of_loss
