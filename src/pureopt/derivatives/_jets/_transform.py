"""``jet``: a function of tensors becomes one of power series."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from pureopt._errors import DerivativeError, told
from pureopt._tree import tree_flatten, tree_leaves, tree_map, tree_unflatten
from pureopt._typing import P
from pureopt.derivatives._checks import call, direction, function, point
from pureopt.derivatives._exactness._shown import show
from pureopt.derivatives._exactness._vector_norms import REMEMBERED
from pureopt.derivatives._jets._jet import PASSES, Jet


def jet(
    f: Callable[[P], Any], primals: P, series: Sequence[P | None]
) -> tuple[Any, tuple[Any, ...]]:
    r"""Taylor mode: the power series of ``f`` along a curve.

    .. math::
        x(t) = x_0 + x_1 t + \dots + x_K t^K
        \quad\mapsto\quad
        f(x(t)) = y_0 + y_1 t + \dots + y_K t^K + O(t^{K+1})

    The coefficients are normalized: derivatives over factorials,
    :math:`y_k = \tfrac{1}{k!} \tfrac{d^k}{dt^k} f(x(t))\vert_{t=0}`, which neither
    overflow nor cancel as the derivatives themselves do. One pass through ``f`` finds all
    of them, at some :math:`K^2/2` products for each nonlinear operation, where nested
    ``grad`` or ``jvp`` multiply the cost with each order.

    ``f`` is called once, with :class:`Jet` in the place of tensors. It may call modules,
    whose parameters it closes over; to vary these, call the module by
    :func:`pureopt.functionalize`, since ``torch.func.functional_call`` takes no jets. The
    result may be differentiated with ``grad``, mapped with ``vmap`` and compiled.
    Coefficients that are known to be zero cost nothing. Of a ``torch.autograd.Function``
    the ``forward`` is differentiated as any code is; its ``backward`` is not asked. As
    forward mode, Taylor mode does not stop at ``torch.no_grad``: what is meant to be a
    constant is written ``x.detach()``.

    Taylor mode does not nest: a second variable takes ``torch.func.grad`` or
    ``torch.func.jvp`` around it, as in ``grad(lambda t: jet(lambda x: u(t, x), ...))``.

    Args:
        f: A function of one tree of tensors to a tree of tensors, made of functions that
            have rules: most of what models are made of. Others are taught with
            :func:`register_jet` and :func:`register_jet_derivative`.
        primals: The point :math:`x_0`, a tree of floating tensors.
        series: :math:`(x_1, \dots, x_K)`, trees like ``primals``; ``None`` for one that is
            zero.

    Returns:
        The value :math:`y_0` and the tuple :math:`(y_1, \dots, y_K)`, trees like the
        output of ``f``.

    Raises:
        TreeError: If ``primals`` has a leaf that is no floating tensor, or a tree in
            ``series`` is not like it.
        DerivativeError: If ``series`` is empty, ``f`` calls a function without a rule or
            an operator in Taylor mode, or an output is no floating tensor.

    References:
        Griewank and Walther (2008), "Evaluating Derivatives", chapter 13.

    Example:
        The logarithm at 1, :math:`t - t^2/2 + t^3/3 - \dots`:

        >>> import torch
        >>> import pureopt as po
        >>> one, zero = torch.tensor(1.0), torch.tensor(0.0)
        >>> value, series = po.derivatives.jet(torch.log, one, (one, zero, zero, zero))
        >>> torch.stack(series)
        tensor([ 1.0000, -0.5000,  0.3333, -0.2500])
    """
    point("jet(primals=...)", primals)
    series = [
        None
        if tree is None
        else direction(f"jet(series[{k}]=...)", tree, primals, "primals")
        for k, tree in enumerate(_trees("jet(series=...)", series))
    ]
    out = propagate("jet(f=...)", f, primals, series)
    value = tree_map(value_at, out)
    return value, tuple(
        tree_map(lambda y, k=k: coefficient_at(y, k), out)
        for k in range(1, len(series) + 1)
    )


def propagate(
    where: str,
    f: Callable[[P], Any],
    primals: P,
    series: Sequence[P | None],
    *,
    summed: int | None = None,
) -> Any:
    """The output of ``f`` as a tree of jets and constant tensors.

    Args:
        where: What errors of the output name.
        f: A function of one tree.
        primals: The point.
        series: Trees like it; ``None`` is zero.
        summed: As in :class:`Jet`: the coefficients below this order have a dimension of
            directions in front.

    Raises:
        DerivativeError: If ``f`` is no function, a leaf of the output is neither a floating jet
            nor a tensor, or another pass is open: its jets would be taken for those of
            this one.
    """
    if PASSES.open:
        raise DerivativeError(
            where,
            "be the only pass of Taylor mode",
            f"a call inside of `{PASSES.open[-1][0]}`",
            "Take the outer derivative by `torch.func.grad` or `torch.func.jvp`, or both "
            "from one pass: `bilaplacian`, or `jet` of higher order.",
        )
    function(where, f)
    leaves, structure = tree_flatten(primals)
    terms = [
        [None] * len(leaves) if tree is None else structure.flatten_up_to(tree)
        for tree in series
    ]
    jets = [
        Jet(value, coefficients, summed)
        for value, *coefficients in zip(leaves, *terms, strict=True)
    ]
    for x in jets:
        x.locked = True
    show()
    PASSES.open.append((where, torch.is_grad_enabled()))
    REMEMBERED.scopes.append([])
    try:
        out = call(where, f, tree_unflatten(structure, jets))
    finally:
        REMEMBERED.scopes.pop()
        PASSES.open.pop()
    for leaf in tree_leaves(out):
        if not isinstance(leaf, Jet | Tensor):
            raise DerivativeError(where, "return tensors", told(leaf))
        if not (leaf.dtype.is_floating_point or leaf.dtype.is_complex):
            rule, hint = "return floating tensors", "Whole numbers have no derivative."
            value = leaf.value if isinstance(leaf, Jet) else leaf
            raise DerivativeError(where, rule, told(value), hint)
    return out


def _trees(where: str, series: object) -> tuple[Any, ...]:
    if not isinstance(series, tuple | list) or not series:
        got = "an empty one" if isinstance(series, tuple | list) else told(series)
        hint = "Put the first coefficient, the direction, into a tuple: `(direction,)`."
        raise DerivativeError(where, "be a tuple of one tree or more", got, hint)
    return tuple(series)


def value_at(y: Jet | Tensor) -> Tensor:
    """The value of an output."""
    return y.value.clone() if isinstance(y, Jet) else y.clone()


def coefficient_at(y: Jet | Tensor, k: int, factor: float | None = None) -> Tensor:
    """The coefficient of order ``k`` of an output, or that times a factor.

    A tensor of its own, zeros where the output is constant.
    """
    term = y.coefficient(k) if isinstance(y, Jet) else None
    if term is None:
        return torch.zeros_like(y.value if isinstance(y, Jet) else y)
    # A sum with a constant of a wider dtype leaves the coefficients as they are.
    if factor is None:
        return term.to(y.dtype, copy=True)
    return term.to(y.dtype) * factor
