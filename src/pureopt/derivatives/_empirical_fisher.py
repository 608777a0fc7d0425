"""The empirical Fisher matrix times a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.func import vmap

from pureopt._errors import TreeError, told
from pureopt._tree import tree_leaves
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._dense import value_slope_and_pullback


def empirical_fisher_vp(
    loss: Callable[..., Tensor], params: P, batch: tuple[Any, ...], v: P
) -> P:
    r"""The second moment of the gradients of a batch times ``v``.

    .. math::
        E v = \frac1B \sum_{i=1}^B g_i \, \langle g_i, v \rangle, \qquad
        g_i = \nabla_\theta \, \ell(\theta; x_i)

    Not centered. The losses of all samples are one function from the parameters to
    :math:`R^B` with the Jacobian :math:`(g_1, \dots, g_B)^T`: one forward and one
    reverse pass through it, and never ``B`` gradients in memory. With labels drawn from
    the model it would be an estimate of the Fisher matrix of :func:`fisher_vp`; with
    the labels of the data it is not.

    Args:
        loss: ``loss(params, *sample)``, the 0-d loss of one sample, without the batch
            dimension.
        params: The parameters.
        batch: The arguments of ``loss`` after ``params``: trees of tensors, stacked
            along the leading dimension.
        v: The direction, like ``params``.

    Returns:
        A tree like ``params``.

    Raises:
        TreeError: If ``params`` holds what is not a floating tensor, ``v`` is not like
            it, or ``batch`` is no tuple of trees with one leading dimension.
        DerivativeError: If ``loss`` does not return a 0-d floating tensor, or cannot be
            differentiated or mapped over samples.

    References:
        Kunstner, Balles and Hennig (2019), on why it is not the Fisher matrix.

    Example:
        The gradients of ``(w x - y)^2 / 2`` at ``w = 0`` are ``-x y``:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x, y):
        ...     return (w * x - y) ** 2 / 2
        >>> x, y = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0])
        >>> w, v = torch.tensor(0.0), torch.tensor(1.0)
        >>> po.derivatives.empirical_fisher_vp(loss, w, (x, y), v)
        tensor(6.5000)
    """
    where = "empirical_fisher_vp(loss=...)"
    _checks.point("empirical_fisher_vp(params=...)", params)
    v = _checks.direction("empirical_fisher_vp(v=...)", v, params, "params")
    size = _batch_size(batch)
    one = _checks.scalar_function(where, loss)

    def product(params: Any, v: Any, batch: Any) -> Any:
        def losses(params: Any) -> Tensor:
            return vmap(one, (None, *(0 for _ in batch)))(params, *batch)

        _, slopes, pullback = value_slope_and_pullback(losses, params, v)
        return pullback(slopes / size)

    return _checks.call(where, product, params, v, batch)


def _batch_size(batch: Any) -> int:
    """The leading dimension that all leaves of a batch share."""
    where = "empirical_fisher_vp(batch=...)"
    rule = "be a tuple of trees of tensors with one leading dimension"
    if not isinstance(batch, tuple):
        hint = "A single argument is a tuple of one: `(x,)`."
        raise TreeError(where, rule, told(batch), hint)
    leaves = tree_leaves(batch)
    fit = all(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves)
    sizes = [leaf.shape[0] for leaf in leaves] if fit else []
    if not sizes or any(n != sizes[0] for n in sizes):
        raise TreeError(where, rule, told(batch))
    if not sizes[0]:
        raise TreeError(where, "hold 1 sample or more", "0")
    return sizes[0]
