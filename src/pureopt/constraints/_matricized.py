"""Constraints of matrices on tensors with more dimensions, such as convolutions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError, told
from pureopt._tree import tree_leaves, tree_map
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import Domain
from pureopt.constraints._numeric import or_nan, shape_of

_MATRIX_DIMS = 2


class MatricizedStatic(NamedTuple):
    """What :meth:`Matricized.bind` returns.

    Attributes:
        inner: The static data of the inner constraint, for all matrices.
        shape: An empty tensor that carries the shape of the value through vmap.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Orthogonal
        >>> c = Matricized(Orthogonal(), rows=-4, cols=-3)
        >>> static = c.bind(torch.zeros(8, 4, 3, 3))
        >>> static.inner.shape.shape, static.shape.shape
        (torch.Size([3, 3, 8, 4, 0]), torch.Size([8, 4, 3, 3, 0]))
    """

    inner: Any
    shape: Int8[Tensor, "..."]


@final
@dataclass(frozen=True)
class Matricized(Constraint):
    r"""A constraint of matrices on the matrices inside a tensor.

    .. math:: Y \in \mathbb R^{\cdots} \mapsto (\text{other dims}, g) \times
        (\text{rows} / g) \times \text{cols}

    The dimensions ``rows`` and ``cols`` are flattened, each in the order given, to the
    rows and columns of a matrix; there is one such matrix for each index of the event
    dimensions named in neither, and for each of the groups. One element has as many
    dimensions as the most negative number says. For the weight of a convolution,
    ``(out, in / groups, height, width)``:

    - flattened, one matrix ``out`` by ``in * height * width``: ``rows=-4,
      cols=(-3, -2, -1)``;
    - per kernel position, ``height * width`` matrices ``out`` by ``in``: ``rows=-4,
      cols=-3``;
    - flattened, one matrix per group: ``rows=-4, cols=(-3, -2, -1), groups=groups``.

    The free value is that of the inner constraint, whose leading dimensions are the
    batch, the other event dimensions in order, and the groups if there is more than
    one. The map is undefined where the inner one is. Without ``static`` the shape of
    the tensor is unknown: take it from :meth:`bind`.

    Args:
        inner: A constraint of matrices.
        rows: The dimension of the rows, negative, or several.
        cols: The dimension of the columns, negative, or several.
        groups: Into how many equal consecutive blocks the rows are cut.

    Raises:
        HyperparameterError: If ``inner`` does not act on matrices, or a dimension is
            not a negative integer or appears twice, or ``groups`` is below one.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> from pureopt.constraints import Matricized, Orthogonal
        >>> flat = Matricized(Orthogonal(), rows=-4, cols=(-3, -2, -1))
        >>> apply, params, buffers = po.functionalize(torch.nn.Conv2d(4, 8, 3))
        >>> params["weight"] = flat.project(params["weight"])
        >>> space = po.constrain(params, {"weight": flat})
        >>> {path: tuple(leaf.shape) for path, leaf in space.free.items()}
        {'weight': (252,), 'bias': (8,)}
        >>> def loss(params, images):
        ...     return apply(params, buffers, images)[0].square().mean()
        >>> step = po.make_step(loss, po.AdamW(0.1), space=space)
        >>> carry, metrics = step(step.init(params), torch.ones(1, 4, 5, 5))
        >>> w = step.params(carry)["weight"].flatten(1)
        >>> torch.allclose(w @ w.T, torch.eye(8), atol=1e-6)
        True
        >>> kernels = Matricized(Orthogonal(), rows=-4, cols=-3)
        >>> y = kernels.project(params["weight"])
        >>> kernels.right_inverse(y, kernels.bind(y)).shape
        torch.Size([3, 3, 22])
    """

    inner: Constraint
    rows: int | Sequence[int]
    cols: int | Sequence[int]
    groups: int = 1

    def __post_init__(self) -> None:
        if not isinstance(self.inner, Constraint):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "Matricized(inner=...)",
                "be a constraint",
                told(self.inner),
                "Pass an instance: `Orthogonal()`.",
            )
        if self.inner.codomain.event_dims != _MATRIX_DIMS:
            raise HyperparameterError(
                "Matricized(inner=...)",
                "be a constraint of matrices",
                f"{self.inner!r}, of {self.inner.codomain.words}",
            )
        named = [*_dims(self.rows), *_dims(self.cols)]
        for name, given in (("rows", self.rows), ("cols", self.cols)):
            dims = _dims(given)
            whole = all(isinstance(d, int) and d < 0 for d in dims)  # pyright: ignore[reportUnnecessaryIsInstance]
            once = all(named.count(d) == 1 for d in dims)
            if not (dims and whole and once):
                raise HyperparameterError(
                    f"Matricized({name}=...)",
                    "be a negative dimension or a tuple of them, each named once in "
                    "`rows` and `cols`",
                    repr(dims),
                    "The dimensions of a convolution are -4, -3, -2, -1.",
                )
            if not isinstance(given, int):
                object.__setattr__(self, name, dims)  # hashable
        if not isinstance(self.groups, int) or self.groups < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "Matricized(groups=...)", "be an integer >= 1", repr(self.groups)
            )

    @property
    def domain(self) -> Domain:
        """The inner domain, with the other dimensions and the groups in front."""
        extra = len(self._others) + (self.groups > 1)
        inner = self.inner.domain
        if not extra:
            return inner
        return replace(
            inner,
            words=f"a tensor of elements that are each {inner.words}",
            shape=inner.shape.replace("(...", f"(...{', m' * extra}"),
            event_dims=inner.event_dims + extra,
            square=False,
            made_by="",
            inside=(),
        )

    @property
    def codomain(self) -> Domain:
        """Tensors whose matrices are in the inner codomain."""
        sizes = ", ".join(f"d{i}" for i in range(self._event_dims, 0, -1))
        return Domain(
            f"a tensor of matrices (rows={self.rows}, cols={self.cols}, "
            f"groups={self.groups}) that are each {self.inner.codomain.words}",
            f"(..., {sizes})",
            self._event_dims,
            whole=self.inner.codomain.whole,
        )

    @property
    def bijective(self) -> bool:
        """Whether the inner constraint is."""
        return self.inner.bijective

    @property
    def rule(self) -> str:
        """The rule of the inner constraint, for the worst matrix."""
        return f"{self.inner.rule}, Y the worst matrix of the tensor,"

    def dim(self, shape: Sequence[int]) -> int:
        """The dimension of the inner set, times the number of matrices."""
        leading, matrix = self._sizes("Matricized.dim(shape)", shape)
        return math.prod(leading) * self.inner.dim(matrix)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """The inner radius for the largest matrix with no dimension above ``n``."""
        most = max(len(_dims(self.rows)), len(_dims(self.cols)))
        return self.inner.radius(n**most, dtype)

    def bind(self, y: Float[Tensor, "..."]) -> MatricizedStatic:
        """The inner static data of all matrices, and the shape of ``y``."""
        inner = self.inner.bind(self._matrices("Matricized.bind(y)", y))
        return MatricizedStatic(inner, shape_of(y))

    def forward(self, x: Any, static: Any = ()) -> Tensor:
        """The tensor; see the class."""
        if isinstance(x, Tensor) or not isinstance(static, MatricizedStatic):
            self.domain.require("Matricized.forward(x)", x)
        static = _static("Matricized.forward", static)
        matrices = self.inner.forward(x, static.inner)
        shape = static.shape.shape[:-1]
        want = self._matrix_shape("Matricized.forward(static=...)", shape)
        if matrices.shape != want:
            raise ConstraintError(
                "Matricized.forward(x)",
                f"lead to matrices of shape {tuple(want)} for the static of a tensor of "
                f"shape {tuple(shape)}",
                str(tuple(matrices.shape)),
                "Under vmap, map over the free value and the static alike.",
            )
        return self._tensor(matrices, shape)

    def right_inverse(self, y: Float[Tensor, "..."], static: Any = ()) -> Any:
        """The free value; NaN if one of the matrices is off the inner set or chart."""
        matrices = self._matrices("Matricized.right_inverse(y)", y)
        static = _static("Matricized.right_inverse", static)
        if static.shape.shape[:-1] != y.shape:
            raise ConstraintError(
                "Matricized.right_inverse(static=...)",
                f"come from a tensor of shape {tuple(y.shape)}",
                f"one of shape {tuple(static.shape.shape[:-1])}",
                "Take it from `bind`; under vmap, map over the value and it alike.",
            )
        x = self.inner.right_inverse(matrices, static.inner)
        batch = y.dim() - self._event_dims
        bad = [
            leaf.isnan().unsqueeze(-1).flatten(batch).any(-1) for leaf in tree_leaves(x)
        ]
        whole = ~torch.stack(bad).any(0)
        return tree_map(lambda leaf: or_nan(whole, leaf, leaf.dim() - batch), x)

    def rebind(self, x: Any, static: Any = ()) -> tuple[Any, MatricizedStatic]:
        """What the inner constraint does to move its charts."""
        static = _static("Matricized.rebind", static)
        x, inner = self.inner.rebind(x, static.inner)
        return x, MatricizedStatic(inner, static.shape)

    def check(self, y: Float[Tensor, "..."]) -> Bool[Tensor, "*batch"]:
        """Whether all matrices are in the inner set."""
        inside = self.inner.check(self._matrices("Matricized.check(y)", y))
        return self._per_element(inside, y.shape).all(-1)

    def violation(self, y: Float[Tensor, "..."]) -> Float[Tensor, "*batch"]:
        """The violation of the matrix that exceeds its tolerance the most."""
        return self._worst(y)[0]

    def tolerance(self, y: Float[Tensor, "..."]) -> Float[Tensor, "*batch"]:
        """The tolerance of that same matrix."""
        return self._worst(y)[1]

    def rounding(self, x: Any, y: Float[Tensor, "..."]) -> Float[Tensor, "*batch"]:
        """The largest one of the inner constraint."""
        matrices = self._matrices("Matricized.rounding(y)", y)
        return self._per_element(self.inner.rounding(x, matrices), y.shape).amax(-1)

    def offers(self, method: str) -> bool:
        """Whether the inner constraint has the optional method of that name."""
        return self.inner.offers(method)

    def project(self, y: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
        """Each matrix projected by the inner constraint.

        Raises:
            ConstraintError: If the inner constraint has no projection.
        """
        matrices = self._matrices("Matricized.project(y)", y)
        return self._tensor(self.inner.project(matrices), y.shape)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """Independent matrices, drawn by the inner constraint.

        Raises:
            ConstraintError: If the inner constraint has no uniform distribution.
        """
        self._require_shape("sample", shape, dtype)
        matrices = self._matrix_shape("Matricized.sample(shape)", shape)
        return self._tensor(self.inner.sample(key, matrices, dtype=dtype), shape)

    def log_abs_det(self, x: Any, static: Any = ()) -> Float[Tensor, "*batch"]:
        """The sum over the matrices.

        Raises:
            ConstraintError: If the inner constraint has no closed form.
        """
        static = _static("Matricized.log_abs_det", static)
        terms = self.inner.log_abs_det(x, static.inner)
        return self._per_element(terms, static.shape.shape[:-1]).sum(-1)

    @property
    def _event_dims(self) -> int:
        return -min(*_dims(self.rows), *_dims(self.cols))

    @property
    def _others(self) -> list[int]:
        """The event dimensions in neither rows nor columns."""
        named = {*_dims(self.rows), *_dims(self.cols)}
        return [d for d in range(-self._event_dims, 0) if d not in named]

    def _sizes(
        self, where: str, shape: Sequence[int]
    ) -> tuple[list[int], tuple[int, int]]:
        """How many matrices along each extra dimension, and the shape of each."""
        if len(shape) < self._event_dims:
            raise ConstraintError(
                where, f"have a shape {self.codomain.shape}", str(tuple(shape))
            )
        rows = math.prod([shape[d] for d in _dims(self.rows)])
        cols = math.prod([shape[d] for d in _dims(self.cols)])
        if rows % self.groups:
            raise ConstraintError(
                where,
                f"have a number of rows that {self.groups} groups divide",
                f"{rows} rows in shape {tuple(shape)}",
            )
        leading = [shape[d] for d in self._others]
        if self.groups > 1:
            leading.append(self.groups)
        return leading, (rows // self.groups, cols)

    def _matrix_shape(self, where: str, shape: Sequence[int]) -> tuple[int, ...]:
        leading, matrix = self._sizes(where, shape)
        return (*shape[: len(shape) - self._event_dims], *leading, *matrix)

    def _order(self, dims: int) -> list[int]:
        """The dimensions of a tensor, with those of the matrices last."""
        event = [*self._others, *_dims(self.rows), *_dims(self.cols)]
        return [*range(dims - self._event_dims), *(dims + d for d in event)]

    def _matrices(self, where: str, y: Tensor) -> Tensor:
        """The matrices in ``y``, with what counts them in front."""
        self.codomain.require(where, y)
        shape = self._matrix_shape(where, y.shape)
        return y.permute(self._order(y.dim())).reshape(shape)

    def _tensor(self, matrices: Tensor, shape: Sequence[int]) -> Tensor:
        """The inverse of :meth:`_matrices`."""
        order = self._order(len(shape))
        back = sorted(range(len(shape)), key=order.__getitem__)
        return matrices.reshape([shape[d] for d in order]).permute(back).contiguous()

    def _per_element(self, t: Tensor, shape: Sequence[int]) -> Tensor:
        """A number per matrix as one more dimension after the batch."""
        leading, _ = self._sizes("Matricized(y)", shape)
        batch = shape[: len(shape) - self._event_dims]
        return t.reshape(*batch, math.prod(leading))

    def _worst(self, y: Tensor) -> tuple[Tensor, Tensor]:
        matrices = self._matrices("Matricized(y)", y)
        violation = self._per_element(self.inner.violation(matrices), y.shape)
        tolerance = self._per_element(self.inner.tolerance(matrices), y.shape)
        # NaN counts as the largest.
        at = (violation - tolerance).argmax(-1, keepdim=True)
        return violation.gather(-1, at)[..., 0], tolerance.gather(-1, at)[..., 0]


def _dims(dims: int | Sequence[int]) -> tuple[int, ...]:
    return tuple(dims) if isinstance(dims, Sequence) else (dims,)


def _static(where: str, static: Any) -> MatricizedStatic:
    if isinstance(static, MatricizedStatic):
        return static
    raise ConstraintError(
        f"{where}(static=...)",
        "be a `MatricizedStatic`, which knows the shape of the tensor",
        f"`{type(static).__name__}`",
        "Take it from `bind` of a tensor of that shape.",
    )
