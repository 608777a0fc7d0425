"""What the functions of torch do with what stands in for a sparse tensor.

Each is made of what is stored and, where torch hands derivatives on to all elements, of the
rest, which is zero: hence a linear function of it is all there is to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import is_of_lanes
from pureopt.derivatives._exactness._sparse import (
    LAYOUTS,
    RULES,
    Rule,
    SparseStandIn,
    as_stand_in,
    by_torch,
    flat_places,
    from_dense,
    gathered,
    mask_of,
    refused,
)

Number = int | float | complex

# What torch applies to the numbers that are stored, as it maps zero to zero.
ELEMENTWISE = (
    "abs", "absolute", "neg", "negative", "sgn", "sign", "square", "sqrt",
    "floor", "ceil", "trunc", "round", "frac", "relu", "sin", "arcsin", "asin", "sinh",
    "asinh", "arcsinh", "tan", "arctan", "atan", "tanh", "atanh", "arctanh", "expm1",
    "log1p", "erf", "erfinv", "deg2rad", "rad2deg", "conj_physical", "nan_to_num",
)  # fmt: skip


def _stays(x: SparseStandIn) -> SparseStandIn:
    return x


def _elementwise(f: Callable[..., Tensor]) -> Rule:
    def rule(x: SparseStandIn, *args: Any, **kwargs: Any) -> SparseStandIn:
        return x.like(f(x.stored, *args, **kwargs), f(x.rest, *args, **kwargs))

    return rule


def _root(x: SparseStandIn, exponent: float = 0.5) -> SparseStandIn:
    """At zero it has not all derivatives: what is not stored stays zero."""
    kept = gathered(x.kept, x.places)
    kept = kept.reshape((*kept.shape, *(1,) * (x.ndim - x.kept.ndim)))
    stored = torch.where(kept, x.stored, 1.0).pow(exponent)
    return x.like(torch.where(kept, stored, 0.0), torch.zeros_like(x.rest))


def _power(x: SparseStandIn, exponent: Any) -> SparseStandIn:
    if not isinstance(exponent, int | float) or exponent <= 0:
        raise refused("raise sparse tensors to a positive number", f"{exponent!r}")
    if exponent != int(exponent):
        return _root(x, exponent)
    return x.like(x.stored.pow(exponent), x.rest.pow(exponent))


def _cast(name: str) -> Rule:
    """A change of dtype or device, which is linear."""
    method = getattr(torch.Tensor, name)

    def rule(x: SparseStandIn, *args: Any, **kwargs: Any) -> SparseStandIn:
        stored = method(x.stored, *args, **kwargs)
        if stored is x.stored:
            return x
        rest = method(x.rest, *args, **kwargs)
        kept, places = (v.to(stored.device) for v in (x.kept, x.places))
        return SparseStandIn(kept, places, stored, rest, x.layout)

    return rule


def _type(x: SparseStandIn, dtype: Any = None, non_blocking: bool = False) -> Any:
    """With a dtype a cast; without, or with a name of torch's, a question for torch."""
    if dtype is None:
        size = (0,) * x.ndim
        with torch._C._DisableFuncTorch():  # noqa: SLF001 (not to make lanes of it)
            empty = torch.empty(size, dtype=x.dtype, device=x.device, layout=x.layout)
            return empty.type()
    if not isinstance(dtype, torch.dtype):
        return by_torch(torch.Tensor.type, (x, dtype), {}, writes=False)
    return _cast("to")(x, dtype, non_blocking)


def _to_dense(
    x: SparseStandIn,
    dtype: torch.dtype | None = None,
    *,
    masked_grad: bool | None = None,
) -> Tensor:
    if dtype is not None:
        raise refused("keep the dtype of sparse tensors", f"{dtype}")
    return x.whole() if masked_grad is False else x.masked()


def _order(x: SparseStandIn) -> Tensor:
    """In which order the numbers are stored: by columns in CSC."""
    rows = x.places.flip(0) if x.layout == torch.sparse_csc else x.places
    shape = x.shape[::-1] if x.layout == torch.sparse_csc else x.shape
    return flat_places(rows, torch.Size(shape)).argsort()


def _values(x: SparseStandIn) -> Tensor:
    x.same_in_all_lanes("`values`")
    return x.stored.index_select(0, _order(x))


def _indices(x: SparseStandIn) -> Tensor:
    x.same_in_all_lanes("`indices`")
    return x.places


def _nnz(x: SparseStandIn) -> int:
    x.same_in_all_lanes("the number of stored elements")
    return x.places.shape[1]


def _compressed(layout: torch.layout, side: int, ends: bool) -> Rule:
    """The indices along one side of a CSR or CSC matrix, or where its rows end."""

    def rule(x: SparseStandIn) -> Tensor:
        if x.layout != layout:
            raise refused(f"ask for such indices of {layout} alone", str(x.layout))
        index = _indices(x)[side].index_select(0, _order(x))
        if not ends:
            return index
        all_ = torch.arange(x.shape[side] + 1, device=index.device)
        return torch.searchsorted(index, all_)

    return rule


def _to_layout(x: SparseStandIn, *args: Any, **kwargs: Any) -> SparseStandIn:
    """``to_sparse`` of what is sparse."""
    layout = kwargs.pop("layout", None) or torch.sparse_coo
    if args not in {(), (x.places.shape[0],)} or any(kwargs.values()):
        raise refused("make one sparse tensor of another as it is", f"{args} {kwargs}")
    if layout not in LAYOUTS or (layout != torch.sparse_coo and x.places.shape[0] != 2):  # noqa: PLR2004
        raise refused("use coordinates, CSR or CSC", str(layout))
    if layout == x.layout:
        return x
    return SparseStandIn(x.kept, x.places, x.stored, x.rest, layout)


def dimension(x: SparseStandIn, dim: int) -> int:
    """A dimension, counted from the first."""
    if not -x.ndim <= dim < x.ndim:
        rule = f"name one of {x.ndim} dimensions of a sparse tensor"
        raise refused(rule, f"{dim}", "Count from 0, or back from -1.")
    return dim % x.ndim


def _permute(x: SparseStandIn, *given: Any, dims: Any = None) -> SparseStandIn:
    """The sparse dimensions in another order."""
    given = given if dims is None else (dims,)
    if given and not isinstance(given[0], int):
        given = given[0]
    order = [dimension(x, d) for d in given]
    d = x.places.shape[0]
    if sorted(order) != [*range(x.ndim)] or order[d:] != [*range(d, x.ndim)]:
        raise refused("permute the sparse dimensions alone", f"{tuple(given)}")
    rest, kept = x.rest.permute(order), x.kept.permute(order[:d])
    places = x.places[order[:d]]
    sort = flat_places(places, rest.shape).argsort()
    turned = {torch.sparse_csr: torch.sparse_csc, torch.sparse_csc: torch.sparse_csr}
    layout = x.layout if order == [*range(x.ndim)] else turned.get(x.layout, x.layout)
    stored = x.stored.index_select(0, sort)
    return SparseStandIn(kept, places[:, sort], stored, rest, layout)


def _transpose(x: SparseStandIn, dim0: int, dim1: int) -> SparseStandIn:
    order = [*range(x.ndim)]
    i, j = dimension(x, dim0), dimension(x, dim1)
    order[i], order[j] = j, i
    return _permute(x, *order)


def _reversed(x: SparseStandIn) -> SparseStandIn:
    return _permute(x, *reversed(range(x.ndim)))


def _turned(x: SparseStandIn) -> SparseStandIn:
    return _transpose(x, -2, -1)


def _t(x: SparseStandIn) -> SparseStandIn:
    if x.ndim > 2:  # noqa: PLR2004
        raise refused("call `t` of a matrix", f"one of {x.ndim} dimensions")
    return _reversed(x)


def finite(factor: Number | Tensor) -> Number | Tensor:
    """What is not stored is zero, whatever it is multiplied with."""
    if isinstance(factor, Tensor):
        return torch.where(factor.isfinite(), factor, torch.zeros_like(factor))
    return factor if math.isfinite(abs(factor)) else 0.0


def beside_stored(x: SparseStandIn, factors: Any, other: Any = None) -> Any:
    """The factors of what is stored, and others where only another lane stores something.

    Those are finite: what is not stored is zero, whatever it is multiplied with.
    """
    if not is_of_lanes(x.kept):
        return factors
    if not isinstance(factors, Tensor):
        dtype = torch.result_type(x.stored, factors)
        factors = torch.full_like(x.stored, factors, dtype=dtype)
    kept = gathered(x.kept, x.places)
    kept = kept.reshape((*kept.shape, *(1,) * (max(factors.ndim, x.stored.ndim) - 1)))
    return torch.where(kept, factors, finite(factors) if other is None else other)


def _multiply(input: Any, other: Any) -> SparseStandIn:  # noqa: A002
    if not is_sparse(input):
        input, other = other, input  # noqa: A001
    x = as_stand_in(input)
    if is_sparse(other):
        return _both(x, as_stand_in(other))
    if not isinstance(other, Tensor) or not other.ndim:
        return x.like(x.stored * beside_stored(x, other), x.rest * finite(other))
    if torch.broadcast_shapes(x.shape, other.shape) != x.shape:
        shapes = f"{tuple(x.shape)} and {tuple(other.shape)}"
        raise refused("multiply sparse tensors by what has no more elements", shapes)
    factors = gathered(other.expand(x.shape), x.places)
    return x.like(x.stored * beside_stored(x, factors), x.rest * finite(other))


def is_sparse(x: Any) -> bool:
    return isinstance(x, SparseStandIn) or (
        isinstance(x, Tensor) and x.layout != torch.strided
    )


def _like_shaped(x: SparseStandIn, y: SparseStandIn) -> None:
    if (x.shape, x.kept.ndim) != (y.shape, y.kept.ndim):
        shapes = f"{tuple(x.shape)} and {tuple(y.shape)}"
        raise refused("join sparse tensors of one shape and as many dimensions", shapes)


def _both(x: SparseStandIn, y: SparseStandIn) -> SparseStandIn:
    """The product: stored where both are."""
    _like_shaped(x, y)
    return from_dense(x.whole() * y.whole(), x.kept & y.kept, x.layout)


def _divide(input: Any, other: Any, *, rounding_mode: str | None = None) -> Any:  # noqa: A002
    number = isinstance(other, int | float)
    if not isinstance(input, SparseStandIn) or not (
        number or (isinstance(other, Tensor) and not other.ndim)
    ):
        got = tuple(type(x).__name__ for x in (input, other))
        raise refused("divide sparse tensors, by numbers alone", f"{got}")
    if rounding_mode is not None:
        stored = torch.div(input.stored, other, rounding_mode=rounding_mode)
        return input.like(stored, torch.zeros_like(input.rest))
    if number:
        rest = input.rest * finite(1 / (other or math.inf))
    else:
        bad = (other == 0) | other.isnan()
        rest = input.rest / torch.where(bad, torch.inf, other)
    return input.like(input.stored / beside_stored(input, other, 1.0), rest)


def _add(input: Any, other: Any, *, alpha: Number = 1) -> SparseStandIn | Tensor:  # noqa: A002
    if not is_sparse(other):
        raise refused("add sparse tensors to dense ones", "the dense one as the second")
    y = as_stand_in(other)
    if not is_sparse(input):
        if not isinstance(input, Tensor) or input.shape != y.shape:
            raise refused("add sparse tensors to those of their shape", f"{input!r}")
        return input + alpha * y.whole()
    x = as_stand_in(input)
    _like_shaped(x, y)
    return from_dense(x.whole() + alpha * y.whole(), x.kept | y.kept, x.layout)


def _subtract(input: Any, other: Any, *, alpha: Number = 1) -> SparseStandIn | Tensor:  # noqa: A002
    return _add(input, other, alpha=-alpha)


def _sparse_mask(input: Any, mask: Any) -> SparseStandIn:  # noqa: A002
    dense = input.whole() if isinstance(input, SparseStandIn) else input
    return mask_of(dense, as_stand_in(mask).kept)


def _detach(x: SparseStandIn) -> SparseStandIn:
    return x.like(x.stored.detach(), x.rest.detach())


def _size(x: SparseStandIn, dim: int | None = None) -> Any:
    return x.shape if dim is None else x.shape[dim]


def register(rule: Rule, *names: str) -> None:
    """A rule for all spellings of some functions."""
    owners = (torch, torch.Tensor, torch.special, F)
    for name in names:
        spelled = (getattr(owner, name) for owner in owners if hasattr(owner, name))
        RULES.update(dict.fromkeys(spelled, rule))


def _register_all() -> None:
    for name in ELEMENTWISE:
        register(_elementwise(getattr(torch, name)), name)
    for name in ("clone", "to", "float", "double", "half", "bfloat16", "cpu", "cuda"):
        register(_cast(name), name)
    register(_elementwise(torch.abs), "__abs__")
    register(_elementwise(torch.neg), "__neg__")
    register(_root, "sqrt")
    register(_power, "pow", "__pow__")
    register(_detach, "detach")
    register(_stays, "coalesce", "contiguous", "positive", "__pos__")
    register(_type, "type")
    register(_to_dense, "to_dense")
    register(_values, "values", "_values")
    register(_indices, "indices", "_indices")
    for i, (layout, ends, rows) in enumerate(
        (
            (torch.sparse_csr, "crow_indices", "col_indices"),
            (torch.sparse_csc, "ccol_indices", "row_indices"),
        )
    ):
        register(_compressed(layout, i, True), ends)
        register(_compressed(layout, 1 - i, False), rows)
    register(_to_layout, "to_sparse", "to_sparse_coo")
    register(partial(_to_layout, layout=torch.sparse_csr), "to_sparse_csr")
    register(partial(_to_layout, layout=torch.sparse_csc), "to_sparse_csc")
    register(_permute, "permute")
    register(_transpose, "transpose", "swapaxes", "swapdims")
    register(_t, "t")
    tensors: Any = torch.Tensor
    RULES.update({tensors.T.__get__: _reversed, tensors.mT.__get__: _turned})
    register(_multiply, "mul", "multiply", "__mul__", "__rmul__")
    register(_divide, "div", "divide", "true_divide", "__truediv__")
    register(_add, "add", "__add__", "__radd__")
    register(_subtract, "sub", "subtract", "__sub__")
    register(lambda x, y: _subtract(y, x), "__rsub__")
    register(_sparse_mask, "sparse_mask")
    register(_size, "size")
    register(lambda x: x.ndim, "dim", "ndimension")
    register(lambda x: x.rest.numel(), "numel", "nelement")
    register(_nnz, "_nnz")
    register(lambda x: x.places.shape[0], "sparse_dim", "_dimI")
    register(lambda x: x.ndim - x.places.shape[0], "dense_dim", "_dimV")
    register(lambda _: True, "is_coalesced")
    register(lambda x: x.stored.is_floating_point(), "is_floating_point")
    register(lambda x: x.stored.is_complex(), "is_complex")


_register_all()
