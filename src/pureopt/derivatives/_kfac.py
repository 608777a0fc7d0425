"""Kronecker-factored approximations of Fisher matrices."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import DerivativeError, HyperparameterError, TreeError, told
from pureopt._random import normal
from pureopt._tree import (
    ravel,
    tree_flatten,
    tree_map,
    tree_paths,
    tree_unflatten,
    unravel,
)
from pureopt.derivatives import _checks
from pureopt.derivatives._kronecker import Kronecker, KroneckerBlock
from pureopt.derivatives._likelihoods import check_classes
from pureopt.derivatives._operator import eigh
from pureopt.derivatives._per_sample._batch import count, see
from pureopt.derivatives._per_sample._sums import Leaf

Sharing = Literal["expand", "reduce"]


def kfac(
    model: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    *,
    likelihood: Callable[[Any, Any], Any],
    sharing: Sharing = "expand",
    chunk_size: int | None = None,
) -> Kronecker:
    r"""KFAC: a Kronecker product for the Fisher block of each parameter.

    .. math::
        F_\ell \approx L \otimes R
        = \Big( \frac1B \sum_{i,c} \delta_{ic} \delta_{ic}^\top \Big) \otimes
          \Big( \frac1B \sum_i a_i a_i^\top \Big)

    where :math:`a_i` enters the layer of a weight and :math:`\delta_{ic}` is the gradient
    at its output if column ``c`` of a root of the likelihood's Fisher matrix is the
    gradient at the model's output: the expectation over labels without drawing any.
    Exact for one sample in which each weight is used once, for a linear model whose
    output Fisher matrix does not depend on the sample, and for every bias and scale,
    whose block is kept whole. Blocks of different leaves are uncoupled, also those of a
    weight and its bias.

    Where a weight is used at many positions ``t`` of a sample, ``"expand"`` takes them
    as samples of their own, exact if the loss is a sum over positions of a linear model;
    ``"reduce"`` takes the mean of :math:`a` and the sum of :math:`\delta` over them,
    exact if the output is the mean over positions of a linear model. The positions of a
    transposed convolution are those of its input. Several uses of one weight are
    positions, too, but not of an embedding that is also the last layer, nor of a weight
    and its transpose: what enters one use would share a factor with the gradients of the
    other.

    Costs a forward pass and a backward pass for each output of the model, and the
    eigendecomposition of a matrix as large as the output for each sample. It is not to be
    differentiated, because of the latter. An embedding has a factor as large as its
    vocabulary squared.

    Args:
        model: ``model(params, *sample)``, the outputs of one sample, a tree of tensors.
        params: The parameters. Each must be used in operations with a rule: linear maps,
            convolutions, embeddings, normalizations, sums and products.
        batch: The arguments of ``model`` after ``params``: trees of tensors, stacked along
            the leading dimension.
        likelihood: What the outputs mean: :class:`Categorical`, :class:`Bernoulli`,
            :class:`Gaussian`, :class:`Poisson`, or any function ``(outputs, u) -> F_y u``
            of the stacked outputs. A Hessian of a loss in place of ``F_y`` gives the
            factors of the Gauss-Newton matrix.
        sharing: What to do with a weight that is used at many positions.
        chunk_size: How many outputs are propagated backward at a time; all by default.

    Returns:
        The blocks, of the mean over the batch, as :func:`fisher_vp`.

    Raises:
        TreeError: If ``params`` holds what is not a floating tensor, or ``batch`` is no
            tuple.
        DerivativeError: If a parameter is used otherwise, or the model cannot be
            differentiated sample by sample.
        HyperparameterError: If ``sharing`` or ``chunk_size`` is out of its range.

    References:
        Martens and Grosse (2015), section 3. Grosse and Martens (2016), section 3
        (convolutions). Eschenhagen, Immer, Turner, Schneider and Hennig (2023), section 3
        (expand and reduce).

    Example:
        For a linear model with normal noise the block is the Fisher matrix:

        >>> import torch
        >>> import pureopt as po
        >>> w, x = torch.zeros(1, 2), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> curvature = po.derivatives.kfac(
        ...     lambda w, x: torch.nn.functional.linear(x, w),
        ...     w,
        ...     (x,),
        ...     likelihood=po.derivatives.Gaussian(),
        ... )
        >>> curvature.matvec(torch.tensor([[1.0, 0.0]])), x.mT @ x / 2
        (tensor([[5., 1.]]), tensor([[5., 1.],
                [1., 2.]]))
    """
    _check("kfac", batch, sharing)
    chunk_size = _checks.chunk("kfac(chunk_size=...)", chunk_size)
    columns = _root("kfac", model, params, batch, likelihood)
    factors = _pulled_back("kfac", model, params, batch, sharing)
    stacked = torch.func.vmap(factors, in_dims=-1, chunk_size=chunk_size)(columns)
    # One of the two depends on the column, or neither: the other is its mean.
    return _tree(params, [(left.sum(0), right.mean(0)) for left, right in stacked])


def kfac_sampled(
    model: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    *,
    likelihood: Callable[[Any, Any], Any],
    key: Int[Tensor, ""],
    samples: int = 1,
    sharing: Sharing = "expand",
    chunk_size: int | None = None,
) -> Kronecker:
    r"""KFAC with random gradients at the outputs, for models with many outputs.

    As :func:`kfac`, with :math:`\frac1s \sum_{k=1}^s` of ``samples`` in place of the sum
    over columns: the gradient at the output of each sample is a normal vector with the
    likelihood's Fisher matrix as its covariance. That of a label drawn from the model has
    the same covariance; the blocks are unbiased estimates of those of :func:`kfac`
    either way.

    Args:
        model: ``model(params, *sample)``, the outputs of one sample, a tree of tensors.
        params: The parameters.
        batch: The arguments of ``model`` after ``params``, stacked.
        likelihood: What the outputs mean, as in :func:`kfac`.
        key: A key of ``pureopt.random``, on the device of the parameters.
        samples: How many vectors per sample of the batch, each a backward pass.
        sharing: What to do with a weight that is used at many positions.
        chunk_size: How many vectors are propagated at a time; all by default.

    Returns:
        The blocks, of the mean over the batch.

    Raises:
        TreeError: If ``params`` holds what is not a floating tensor, or ``batch`` is no
            tuple.
        DerivativeError: If a parameter has a use without a rule, or the model cannot be
            differentiated sample by sample.
        HyperparameterError: If a number or ``sharing`` is out of its range.

    References:
        Martens and Grosse (2015), section 5 (sampled targets).

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> w, x = torch.zeros(3, 2), torch.tensor([[1.0, 2.0], [3.0, 0.0]])
        >>> curvature = po.derivatives.kfac_sampled(
        ...     lambda w, x: torch.nn.functional.linear(x, w),
        ...     w,
        ...     (x,),
        ...     likelihood=po.derivatives.Categorical(),
        ...     key=po.random.key(0),
        ... )
        >>> curvature.blocks.left.shape, curvature.blocks.right
        (torch.Size([1, 3, 3]), tensor([[[5., 1.],
                 [1., 2.]]]))
    """
    _check("kfac_sampled", batch, sharing)
    samples = _checks.positive("kfac_sampled(samples=...)", samples)
    chunk_size = _checks.chunk("kfac_sampled(chunk_size=...)", chunk_size)
    root = _root("kfac_sampled", model, params, batch, likelihood)
    noise = normal(key, (*root.shape[:2], samples), dtype=root.dtype)
    factors = _pulled_back("kfac_sampled", model, params, batch, sharing)
    stacked = torch.func.vmap(factors, in_dims=-1, chunk_size=chunk_size)(root @ noise)
    return _tree(params, [(left.mean(0), right.mean(0)) for left, right in stacked])


def kfac_empirical(
    loss: Callable[..., Tensor],
    params: Any,
    batch: tuple[Any, ...],
    *,
    sharing: Sharing = "expand",
) -> Kronecker:
    r"""KFAC of the empirical Fisher matrix: with the gradients of a loss at its labels.

    .. math::
        \frac1B \sum_i g_i g_i^\top \approx
        \Big( \frac1B \sum_i \delta_i \delta_i^\top \Big) \otimes
        \Big( \frac1B \sum_i a_i a_i^\top \Big)

    Exact for one sample without positions, and for every bias and scale. It is not an
    approximation of the Fisher matrix, which takes the labels that the model expects:
    :func:`kfac`. One forward and one backward pass; differentiable.

    Args:
        loss: ``loss(params, *sample)``, the 0-d loss of one sample.
        params: The parameters. Each must be used in operations with a rule, as in
            :func:`kfac`.
        batch: The arguments of ``loss`` after ``params``, stacked.
        sharing: What to do with a weight that is used at many positions, as in
            :func:`kfac`.

    Returns:
        The blocks, of the mean over the batch, as :func:`empirical_fisher_vp`.

    Raises:
        TreeError: If ``params`` holds what is not a floating tensor, or ``batch`` is no
            tuple.
        DerivativeError: If a parameter is used otherwise, or the loss is no scalar that
            can be differentiated sample by sample.
        HyperparameterError: If ``sharing`` is no such word.

    References:
        Martens and Grosse (2015), section 3. Kunstner, Balles and Hennig (2019), on the
        difference of the two matrices.

    Example:
        With one sample the block is the outer product of the gradient:

        >>> import torch
        >>> import pureopt as po
        >>> def loss(w, x):
        ...     return torch.nn.functional.linear(x, w).square().sum()
        >>> w, x = torch.tensor([[1.0, -1.0]]), torch.tensor([2.0, 1.0])
        >>> g = torch.func.grad(loss)(w, x)
        >>> curvature = po.derivatives.kfac_empirical(loss, w, (x[None],))
        >>> curvature.matvec(g) == g * (g * g).sum()
        tensor([[True, True]])
    """
    _check("kfac_empirical", batch, sharing)
    _checks.function("kfac_empirical(loss=...)", loss)
    return _tree(params, _factors("kfac_empirical", loss, params, batch, sharing))


def _root(
    where: str,
    model: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    likelihood: Callable[[Any, Any], Any],
) -> Float[Tensor, "B C C"]:
    """Of each sample a root of the likelihood's Fisher matrix; its columns count."""
    _checks.function(f"{where}(model=...)", model)
    count(where, batch)
    lanes = (None, *[0] * len(batch))
    outputs = _checks.call(
        f"{where}(model=...)", torch.func.vmap(model, lanes), params, *batch
    )
    _checks.tensors(f"{where}(model=...)", outputs)
    check_classes(f"{where}(model=...)", likelihood, outputs)
    z = torch.func.vmap(ravel)(outputs)

    def column(e: Tensor) -> Tensor:
        one = tree_map(lambda leaf: leaf[0], outputs)
        u = tree_map(lambda a, b: a.expand_as(b), unravel(e, one), outputs)
        product = _checks.call(f"{where}(likelihood=...)", likelihood, outputs, u)
        product = _checks.direction(
            f"{where}(likelihood=...)", product, outputs, "outputs"
        )
        return torch.func.vmap(ravel)(product)

    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    fisher = torch.func.vmap(column, out_dims=-1)(eye)
    values, vectors = eigh(fisher.to(torch.promote_types(z.dtype, torch.float32)))
    return vectors * torch.where(values < 0, 0.0, values).sqrt()[..., None, :]


def _pulled_back(
    where: str,
    model: Callable[..., Any],
    params: Any,
    batch: tuple[Any, ...],
    sharing: Sharing,
) -> Callable[[Float[Tensor, "B C"]], list[tuple[Tensor, Tensor]]]:
    """From gradients at the outputs to the factors of each leaf."""

    def loss(params: Any, sample: tuple[Any, ...], gradient: Tensor) -> Tensor:
        z = ravel(model(params, *sample))
        return (z * gradient.to(z.dtype)).sum()

    return lambda gradient: _factors(where, loss, params, (batch, gradient), sharing)


def _factors(
    where: str,
    loss: Callable[..., Tensor],
    params: Any,
    batch: tuple[Any, ...],
    sharing: Sharing,
) -> list[tuple[Tensor, Tensor]]:
    """The left and the right factor of each leaf."""
    seen = see(where, loss, params, batch)
    if seen.opaque.chosen:
        path = tree_paths(params)[seen.opaque.chosen[0]]
        raise DerivativeError(
            f"{where}(params=...)",
            "hold parameters all of whose uses have a rule",
            f"one with another use{f', {path!r}' if path else ''}",
            "Rules are for linear maps, convolutions, embeddings, normalizations, sums "
            "and products. Close over the parameters that are to have no block.",
        )
    paths = tree_paths(params)
    return [
        _zero(leaf)
        if uses is None
        else _guarded(_leaf_factors(where, path, uses, sharing), guard)
        for path, leaf, uses, guard in zip(
            paths, seen.leaves, seen.uses, seen.guards, strict=True
        )
    ]


def _guarded(factors: tuple[Tensor, Tensor], guard: Tensor) -> tuple[Tensor, Tensor]:
    left, right = factors
    return left + guard.to(left.dtype), right


def _zero(leaf: Tensor) -> tuple[Tensor, Tensor]:
    """Of a leaf that is not used."""
    m = leaf.shape[0] if leaf.dim() else 1
    n = math.prod(leaf.shape[1:])
    dtype = torch.promote_types(leaf.dtype, torch.float32)
    zeros = leaf.new_zeros
    return zeros(1, m, m, dtype=dtype), zeros(1, n, n, dtype=dtype)


def _leaf_factors(
    where: str, path: str, uses: Leaf, sharing: Sharing
) -> tuple[Tensor, Tensor]:
    wide = torch.promote_types(uses.like.dtype, torch.float32)
    if not uses.factored:
        g = uses.dense().to(wide).reshape(uses.samples, -1)
        return (g.mT @ g / uses.samples)[None], g.new_ones(1, 1, 1)
    if not uses.pairs:
        raise DerivativeError(
            f"{where}(params=...)",
            "hold parameters that are used as a matrix or entry by entry",
            f"one that is used as both{f', {path!r}' if path else ''}",
        )
    if len({use.upright() for use, _, _ in uses.factored}) > 1:
        raise DerivativeError(
            f"{where}(params=...)",
            "hold parameters whose rows belong to the input in all uses, or in none",
            f"one that is used both ways{f', {path!r}' if path else ''}",
            "One Kronecker product cannot stand for an embedding that is also the last "
            "layer, or for a weight and its transpose. Give the uses parameters of their "
            "own, or close over it.",
        )
    groups, m, n = uses.blocks
    left, right = (uses.like.new_zeros(groups, k, k, dtype=wide) for k in (m, n))
    positions = uses.positions
    for part in uses.portions(groups * positions * (m + n)):
        rows, columns = (x.to(wide).movedim(1, 0) for x in part.factors())
        if sharing == "reduce":
            rows, columns = rows.sum(2, keepdim=True), columns.mean(2, keepdim=True)
        rows, columns = rows.flatten(1, 2), columns.flatten(1, 2)
        left, right = left + rows.mT @ rows, right + columns.mT @ columns
    terms = uses.samples * (positions if sharing == "expand" else 1)
    return left / uses.samples, right / terms


def _tree(params: Any, factors: list[tuple[Tensor, Tensor]]) -> Kronecker:
    blocks = [KroneckerBlock(*pair) for pair in factors]
    return Kronecker(tree_unflatten(tree_flatten(params)[1], blocks))


def _check(where: str, batch: Any, sharing: Any) -> None:
    if sharing not in {"expand", "reduce"}:
        rule = "be 'expand' or 'reduce'"
        raise HyperparameterError(f"{where}(sharing=...)", rule, repr(sharing))
    if not isinstance(batch, tuple):
        rule = "be a tuple of trees of tensors with one leading dimension"
        hint = "A single argument is a tuple of one: `(x,)`."
        raise TreeError(f"{where}(batch=...)", rule, told(batch), hint)
