"""Sparse matrices in the transforms: the numbers that are stored, and where.

Torch's transforms cannot hold one in all of their modes: forward mode has no formula for
what makes it, ``vmap`` none for what is made of it, its gradient no second derivatives, and
the compressed layouts no strides. In them ``to_sparse`` gives what stands in for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from pureopt._errors import DerivativeError
from pureopt._stand_in import StandIn
from pureopt._tree import tree_leaves, tree_map
from pureopt.derivatives._exactness._numeric import (
    is_batched,
    is_of_lanes,
    is_wrapped,
    lane_dimension,
    unwrapped,
)

T = TypeVar("T")

WHERE = "exact(f=...)"
DENSE = "Apply it to `.to_dense()`."
LAYOUTS = (torch.sparse_coo, torch.sparse_csr, torch.sparse_csc)

Rule: TypeAlias = Callable[..., Any]

# The operators that write to their first operand.
_WRITTEN = {
    f"__i{name}__": f"__{name}__"
    for name in ("add", "sub", "mul", "truediv", "pow", "mod", "floordiv")
} | {"__idiv__": "__truediv__"}

RULES: dict[Callable[..., Any], Rule] = {}
"""What to do in the place of each torch function when an argument is a stand-in."""


class SparseStandIn(StandIn):
    """What is stored of a dense tensor, in the place of a sparse one; always coalesced.

    Torch hands derivatives on to all elements in some functions, such as ``matmul`` and
    ``sum``, and in others only to those that are stored: ``to_dense``, those of
    ``torch.sparse``. So here the others, which are zero, are kept for their derivatives.

    The lanes of a ``vmap`` have what any of them stores in common, and a constant zero where
    one does not. What would show that, such as ``values``, is refused there.

    Attributes:
        kept: Where something is stored, of the shape of the sparse dimensions.
        places: The indices of it, in order: a row for each sparse dimension.
        stored: The numbers there.
        rest: A dense tensor that is zero, with the derivatives of what is not stored.
        layout: That of the tensor it stands for.
    """

    __slots__ = ("kept", "layout", "places", "rest", "stored")

    def __init__(
        self,
        kept: Tensor,
        places: Tensor,
        stored: Tensor,
        rest: Tensor,
        layout: torch.layout = torch.sparse_coo,
    ) -> None:
        self.kept = kept
        self.places = places
        self.stored = stored
        self.rest = rest
        self.layout = layout

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = dict(kwargs or {})
        written = _written_by(func.__name__)
        plain: Any = func if written is None else getattr(torch.Tensor, written, None)
        in_place = named.pop("inplace", False) or written is not None
        rule = RULES.get(plain)
        if (
            rule is None
            or named.pop("out", None) is not None
            or (in_place and not isinstance(args[0], cls))
        ):
            return by_torch(func, args, kwargs or {}, writes=in_place)
        y = rule(*args, **named)
        return args[0].become(y, func) if in_place else y

    def become(self, new: SparseStandIn, func: Callable[..., Any]) -> SparseStandIn:
        """What ``func`` does, an operation in place: the dtype stays."""
        if (
            not torch.can_cast(new.dtype, self.dtype)
            # Such as of `abs_`, which torch refuses of complex numbers.
            or new.dtype.is_complex != self.dtype.is_complex
        ):
            raise refused(
                "keep the dtype of what it writes to",
                f"`{func.__name__}` of {new.dtype} into {self.dtype}",
                "Compute a new one: `s = s * t` in place of `s *= t`.",
            )
        if new.dtype != self.dtype:
            new = new.like(new.stored.to(self.dtype), new.rest.to(self.dtype))
        for name in self.__slots__:
            setattr(self, name, getattr(new, name))
        return self

    def like(self, stored: Tensor, rest: Tensor) -> SparseStandIn:
        """Other numbers at the same places."""
        return SparseStandIn(self.kept, self.places, stored, rest, self.layout)

    def same_in_all_lanes(self, what: str) -> None:
        """Raise if there are lanes, which store other elements each."""
        if is_of_lanes(self.kept):
            raise refused(
                f"not ask for {what} in the lanes of `vmap`",
                "sparse tensors, each of which has other zeros",
                "Loop over the samples, or take `.to_dense()`.",
            )

    def masked(self) -> Tensor:
        """The dense tensor, with derivatives of what is stored alone."""
        return scattered(self.stored, self.places, self.shape)

    def whole(self) -> Tensor:
        """The dense tensor, with all derivatives."""
        return self.masked() + self.rest

    @property
    def shape(self) -> torch.Size:
        """The shape of the dense tensor."""
        return self.rest.shape

    @property
    def ndim(self) -> int:
        """The number of its dimensions."""
        return self.rest.ndim

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the numbers."""
        return self.stored.dtype

    @property
    def device(self) -> torch.device:
        """The device of the numbers."""
        return self.stored.device

    is_sparse = property(lambda self: self.layout == torch.sparse_coo)
    is_sparse_csr = property(lambda self: self.layout == torch.sparse_csr)
    is_cuda = property(lambda self: self.stored.is_cuda)
    requires_grad = property(lambda self: self.stored.requires_grad)
    is_nested = is_meta = is_quantized = False

    def __len__(self) -> int:
        return len(self.rest)

    def __repr__(self) -> str:
        shape, dtype = tuple(self.shape), self.dtype
        nnz = self.places.shape[1]
        return f"SparseStandIn(shape={shape}, dtype={dtype}, nnz={nnz})"


def _written_by(name: str) -> str | None:
    """Of ``mul_`` and ``__imul__`` the function whose result they write."""
    if name.endswith("_") and not name.endswith("__"):
        return name[:-1]
    return _WRITTEN.get(name)


def by_torch(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    named: dict[str, Any],
    *,
    writes: bool,
) -> Any:
    """A function without a rule, of torch's own sparse tensors where there are some.

    Raises:
        DerivativeError: If it is in forward mode, in lanes, or writes to one of them.
    """
    stand_ins = [x for x in tree_leaves([args, named]) if isinstance(x, SparseStandIn)]
    if (
        named.get("out") is not None
        or (writes and isinstance(args[0], SparseStandIn))
        or any(is_forward(x.stored) or is_of_lanes(x.kept) for x in stand_ins)
    ):
        raise missing(func)
    plain = [as_torchs(arg) for arg in args]
    return func(*plain, **{name: as_torchs(arg) for name, arg in named.items()})


def missing(func: Callable[..., Any]) -> DerivativeError:
    """The error for a function without a rule."""
    name = torch.overrides.resolve_name(func) or getattr(func, "__name__", repr(func))
    return DerivativeError(
        WHERE, "call functions of sparse tensors that have a rule", f"`{name}`", DENSE
    )


def refused(rule: str, got: str, hint: str = DENSE) -> DerivativeError:
    """The error for a call that a rule does not cover."""
    return DerivativeError(WHERE, rule, got, hint)


def is_forward(x: Tensor) -> bool:
    """Whether this number may move in forward mode.

    Not every transform shows what is beneath it: of a number in one, it is assumed.
    """
    if vars(forward_ad)["_current_level"] < 0:
        return False
    return is_wrapped(x) or forward_ad.unpack_dual(x).tangent is not None


def flat_places(places: Tensor, shape: torch.Size) -> Tensor:
    """The place of each stored row among all rows."""
    place = places.new_zeros(places.shape[1])
    for row, n in zip(places, shape, strict=False):
        place = place * n + row
    return place


def gathered(dense: Tensor, places: Tensor) -> Tensor:
    """What a dense tensor has at some places."""
    d = places.shape[0]
    rows = dense.reshape(math.prod(dense.shape[:d]), *dense.shape[d:])
    return rows.index_select(0, flat_places(places, dense.shape))


def scattered(stored: Tensor, places: Tensor, shape: torch.Size) -> Tensor:
    """Zeros but for some places; numbers for the same place are added."""
    rows = stored.new_zeros(math.prod(shape[: places.shape[0]]), *stored.shape[1:])
    return rows.index_add(0, flat_places(places, shape), stored).reshape(shape)


def from_dense(
    dense: Tensor, kept: Tensor, layout: torch.layout = torch.sparse_coo
) -> SparseStandIn:
    """What stands in for a tensor that is zero but at some places."""
    where = kept.reshape((*kept.shape, *(1,) * (dense.ndim - kept.ndim)))
    mine = torch.where(where, dense, 0.0)
    places = _in_any_lane(kept).nonzero().t()
    rest = torch.where(where, 0.0, dense)
    return SparseStandIn(kept, places, gathered(mine, places), rest, layout)


def mask_of(dense: Tensor, kept: Tensor) -> SparseStandIn:
    """What is stored of a dense tensor; the others are not zero, and dropped."""
    s = from_dense(dense, kept)
    return s.like(s.stored, torch.zeros_like(dense))


def _in_any_lane(kept: Tensor) -> Tensor:
    """Of all lanes, whatever is between them and here."""
    while is_wrapped(kept):
        lane = lane_dimension(kept) if is_batched(kept) else None
        kept = unwrapped(kept)
        kept = kept if lane is None else kept.any(lane)
    return kept


def as_stand_in(x: SparseStandIn | Tensor) -> SparseStandIn:
    """That of a sparse tensor of torch's own, which is a constant in forward mode."""
    if isinstance(x, SparseStandIn):
        return x
    s = (x if x.layout == torch.sparse_coo else x.to_sparse_coo()).coalesce()
    places, stored = s.indices(), s.values()
    ones = torch.ones(places.shape[1], dtype=torch.int8, device=x.device)
    kept = scattered(ones, places, s.shape[: places.shape[0]]) > 0
    rest = stored.new_zeros(s.shape)
    return SparseStandIn(kept, places, stored, rest, x.layout)


def as_torchs(x: Any) -> Any:
    """A sparse tensor of torch's own, with the derivatives that torch gives to it."""
    if isinstance(x, list | tuple):
        parts: Any = [as_torchs(part) for part in x]
        return type(x)(parts)
    if not isinstance(x, SparseStandIn):
        return x
    dense = x.whole()
    with torch._C.DisableTorchFunction():  # noqa: SLF001
        if x.layout == torch.sparse_coo:
            s = dense.to_sparse(x.places.shape[0])
            # Zeros may be stored, too.
            zeros = torch.zeros_like(x.stored.detach())
            pattern = torch.sparse_coo_tensor(
                x.places, zeros, x.shape, check_invariants=False, is_coalesced=True
            )
            return (s + pattern).coalesce()
        return dense.to_sparse(layout=x.layout)


def leaving(value: T) -> T:
    """What a function returns, to transforms that know no stand-in.

    Raises:
        DerivativeError: If it is sparse in forward mode or in lanes.
    """
    if isinstance(value, Tensor) or torch.compiler.is_compiling():
        return value
    found = [x for x in tree_leaves(value) if isinstance(x, SparseStandIn)]
    if not found:
        return value
    if any(is_forward(x.stored) or is_of_lanes(x.kept) for x in found):
        raise refused(
            "return dense tensors in forward mode and in the lanes of `vmap`",
            "a sparse one",
            "Return `.to_dense()`.",
        )
    return tree_map(as_torchs, value)
