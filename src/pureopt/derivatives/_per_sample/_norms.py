"""The norms of the gradients per sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._per_sample._batch import like_leaves, see


def per_sample_grad_norms(
    loss: Callable[..., Tensor],
) -> Callable[..., Float[Tensor, "samples"]]:
    r"""The function ``(params, *batch) -> norms``: the length of every sample's gradient.

    .. math::
        |g_i| = \Bigl( \sum_{ts} (\delta_{it} \cdot \delta_{is}) (a_{it} \cdot a_{is})
        + \dots \Bigr)^{1/2}

    No gradient per sample is formed. For a linear map the gradient is the sum over the
    positions ``t`` of the outer products of the gradient :math:`\delta` at its output
    and its input :math:`a`, and both come from one pass over the batch: about the cost
    and the memory of one gradient of the batch. Exact too where a parameter is shared by
    positions, or used several times.

    Linear and transposed linear maps, products with matrices, convolutions (transposed,
    grouped), embeddings and their bags of one size, layer, group, RMS and (in eval mode)
    batch norm, multi-head attention, recurrent layers, and biases and scales of what
    depends on the sample have rules. A leaf of ``params`` with another use, such as a penalty or a
    reparametrization, is differentiated sample by sample, some samples at a time; all
    leaves are, if ``loss`` itself applies transforms of ``torch.func`` or Taylor mode. A
    use that cannot be seen, by a function that hides its tensors from torch's dispatch,
    gives NaN. In a compiled function ``w.t()`` and ``w.unbind()`` have rules, while
    ``w.T`` and ``for row in w``, which compilers do not show, have none.

    The norm of a zero gradient has the derivative 0. Where the terms of positions cancel,
    the rounding error of the squared norm is relative to those of the terms.

    Args:
        loss: ``loss(params, *sample)``, a 0-d tensor: the loss of one sample. What all
            samples share is closed over.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0.

    Raises:
        TreeError: At the call, if ``params`` holds what is not a floating tensor.
        DerivativeError: At the call, if the parts of the batch have different numbers of
            samples, or the loss is not a differentiable scalar: batch norm in train mode
            is not, since it mixes samples.

    References:
        Goodfellow (2015), for linear layers; Rochette, Manoel and Tramel (2019), for
        convolutions; Li, Tramèr, Liang and Hashimoto (2022), section 4, for positions.

    Example:
        The gradient of :math:`w \cdot x` is ``x``:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return x @ w
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> po.derivatives.per_sample_grad_norms(loss)(torch.zeros(2), x)
        tensor([5., 2.])
    """
    _checks.function("per_sample_grad_norms(loss=...)", loss)

    def norms_of_loss(params: Any, *batch: Any) -> Float[Tensor, "samples"]:
        seen = see("per_sample_grad_norms", loss, params, batch)
        squares = seen.squared_norm()
        positive = squares > 0
        root = torch.where(positive, squares, 1.0).sqrt()
        # Not zero where it is NaN.
        return torch.where(positive, root, squares).to(seen.dtype)

    return norms_of_loss


def per_sample_squared_norms(loss: Callable[..., Tensor]) -> Callable[..., Any]:
    r"""The function ``(params, *batch) -> squares``: squared lengths, leaf by leaf.

    .. math:: |g_i^{(l)}|^2

    As :func:`per_sample_grad_norms`, with each leaf of ``params`` on its own; their sum
    over the leaves is the squared norm. Smooth also where a gradient is zero.

    Args:
        loss: As for :func:`per_sample_grad_norms`.

    Returns:
        A function of ``params`` and of trees of tensors with the samples in dimension 0.
        It returns a tree like ``params`` of tensors of shape ``(samples,)``.

    Raises:
        TreeError: As for :func:`per_sample_grad_norms`.
        DerivativeError: As for :func:`per_sample_grad_norms`.

    References:
        Goodfellow (2015).

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> def loss(params, x):
        ...     return x @ params["w"] + 3 * x[0] * params["b"]
        >>> params = {"w": torch.zeros(2), "b": torch.zeros(())}
        >>> x = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
        >>> po.derivatives.per_sample_squared_norms(loss)(params, x)
        {'w': tensor([25.,  4.]), 'b': tensor([81.,  0.])}
    """
    _checks.function("per_sample_squared_norms(loss=...)", loss)

    def squares_of_loss(params: P, *batch: Any) -> P:
        seen = see("per_sample_squared_norms", loss, params, batch)
        return like_leaves(params, seen.squared_norms())

    return squares_of_loss
