"""The Fisher information matrix times a vector."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pureopt._errors import DerivativeError, HyperparameterError, told
from pureopt._tree import tree_items, tree_map
from pureopt._typing import P
from pureopt.derivatives import _checks
from pureopt.derivatives._ggnvp import sandwich
from pureopt.derivatives._likelihoods import check_classes


def fisher_vp(
    model: Callable[[P], Any],
    params: P,
    v: P,
    *,
    likelihood: Callable[[Any, Any], Any],
) -> P:
    r"""The Fisher information matrix of a model times ``v``.

    .. math::
        F v = \frac1B \sum_{i=1}^B J_i^T F_y(z_i) J_i v, \qquad
        F_y(z) = \operatorname{E}_{y \sim p(y | z)}
            \big[ \nabla_z \log p(y | z) \, \nabla_z \log p(y | z)^T \big]

    The mean over the leading dimension of the outputs ``z``, the sum over the others.
    The labels ``y`` are those the model expects, so none are needed; the empirical
    Fisher matrix, which takes those of the data, is another matrix:
    :func:`empirical_fisher_vp`. For the likelihoods of this module it equals
    :func:`ggnvp` of the mean negative log-likelihood. Costs about three gradients.

    Args:
        model: From the parameters to the outputs, of which the leading dimension is the
            batch; the data is closed over.
        params: The parameters.
        v: The direction, like ``params``.
        likelihood: What the outputs mean: :class:`Categorical`, :class:`Bernoulli`,
            :class:`Gaussian`, :class:`Poisson`, or any function ``(outputs, u) -> F_y u``
            of trees like the outputs.

    Returns:
        A tree like ``params``.

    Raises:
        TreeError: If ``params`` holds what is not a floating tensor, ``v`` is not like
            it, or what ``likelihood`` returns not like the outputs.
        HyperparameterError: If ``likelihood`` is a class, or no function.
        DerivativeError: If ``model`` does not return floating tensors with the batch in
            front, or no dimension of classes behind it for :class:`Categorical`, or
            cannot be differentiated.

    References:
        Amari (1998). Martens (2020), section 9 (when it equals the Gauss-Newton matrix).

    Example:
        One logit ``w x`` at ``w = 0`` for ``x = 1`` and ``x = 3``:

        >>> import torch
        >>> import pureopt as po
        >>> x = torch.tensor([1.0, 3.0])
        >>> w, v = torch.tensor(0.0), torch.tensor(1.0)
        >>> po.derivatives.fisher_vp(
        ...     lambda w: w * x, w, v, likelihood=po.derivatives.Bernoulli()
        ... )
        tensor(1.2500)
    """
    if isinstance(likelihood, type) or not callable(likelihood):
        raise HyperparameterError(
            "fisher_vp(likelihood=...)",
            "be a function `(outputs, u) -> F_y u`",
            told(likelihood),
            "Those of pureopt are instances: `likelihood=Categorical()`.",
        )

    def curvature(z: Any, u: Any) -> Any:
        batch = _batch_size(z)
        check_classes("fisher_vp(model=...)", likelihood, z)
        product = _checks.call("fisher_vp(likelihood=...)", likelihood, z, u)
        product = _checks.direction("fisher_vp(likelihood=...)", product, z, "outputs")
        return tree_map(lambda leaf: leaf / batch, product)

    return sandwich("fisher_vp", model, curvature, params, v)


def _batch_size(outputs: Any) -> int:
    """The leading dimension that all outputs share."""
    items = tree_items(outputs)
    size = next((leaf.shape[0] for _, leaf in items if leaf.dim()), 0)
    for path, leaf in items:
        if not leaf.dim() or leaf.shape[0] != size or not size:
            raise DerivativeError(
                "fisher_vp(model=...)",
                "return outputs with the batch as leading dimension",
                f"shape {tuple(leaf.shape)}" + (f" at '{path}'" if path else ""),
                "A single sample is a batch of one: `outputs[None]`.",
            )
    return size
