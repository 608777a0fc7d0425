"""The sets that constraints start from and end in, as values that can be compared."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from pureopt._errors import ConstraintError


@dataclass(frozen=True)
class Domain:
    """A set of tensors: what a constraint takes, or what it returns.

    ``a >> b`` asks whether ``b.domain`` contains ``a.codomain``.

    Args:
        words: The set in plain words, with its article.
        shape: The allowed shapes, for error messages.
        event_dims: How many trailing dimensions one element has.
        square: Whether the two trailing dimensions must be equal.
        made_by: The constraint that reaches this set from a vector; ``""`` for vectors.
        whole: Whether it has all values of its shape, so that it also contains the
            tensors of that shape whose entries are in any set of numbers.
        inside: The next larger sets.

    Example:
        >>> square = Domain("a square matrix", "(..., n, n)", 2, square=True)
        >>> skew = Domain("a skew matrix", "(..., n, n)", 2, inside=(square,))
        >>> square.contains(skew), skew.contains(square)
        (True, False)
    """

    words: str
    shape: str
    event_dims: int
    square: bool = False
    made_by: str = ""
    whole: bool = False
    inside: tuple[Domain, ...] = ()

    def contains(self, other: Domain) -> bool:
        """Whether every element of ``other`` is in this set."""
        return (self.whole and other.event_dims == 0) or self in _larger(other)

    def require(self, where: str, value: Tensor) -> None:
        """Raise unless ``value`` is a floating tensor with a shape of this set.

        Values are not read; sizes of zero are refused only in matrices.

        Raises:
            ConstraintError: Says which shapes are allowed.
        """
        if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ConstraintError(where, "be a tensor", f"`{type(value).__name__}`")
        if not value.is_floating_point():
            raise ConstraintError(
                where,
                "be a real floating-point tensor",
                f"dtype {value.dtype}",
                "`torch.view_as_real` gives its parts."
                if value.is_complex()
                else "Convert it with `.float()`.",
            )
        event = value.shape[max(value.dim() - self.event_dims, 0) :]
        fits = len(event) == self.event_dims
        if self.event_dims > 1:
            fits = fits and 0 not in event
        if self.square:
            fits = fits and event[0] == event[1]
        if not fits:
            raise ConstraintError(
                where,
                f"have a shape {self.shape} with every size at least 1, as {self.words}",
                str(tuple(value.shape)),
            )


def _larger(domain: Domain) -> set[Domain]:
    """The set itself and all that are said to contain it."""
    return {domain}.union(*map(_larger, domain.inside))


REAL = Domain("a real number", "(...)", 0)
VECTOR = Domain("a vector", "(..., d)", 1, whole=True, inside=(REAL,))
MATRIX = Domain("a matrix", "(..., n, k)", 2, whole=True, inside=(REAL,))
SQUARE = Domain(
    "a square matrix", "(..., n, n)", 2, square=True, whole=True, inside=(MATRIX,)
)
INVERTIBLE = Domain(
    "an invertible matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Invertible()",
    inside=(SQUARE,),
)
SYMMETRIC = Domain(
    "a symmetric matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Symmetric()",
    inside=(SQUARE,),
)
SKEW = Domain(
    "a skew-symmetric matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Skew()",
    inside=(SQUARE,),
)
SEMI_ORTHOGONAL = Domain(
    "a matrix with orthonormal columns (rows, if it is wide)",
    "(..., n, k)",
    2,
    made_by="Orthogonal()",
    inside=(MATRIX,),
)
ORTHOGONAL = Domain(
    "an orthogonal matrix",
    "(..., n, n)",
    2,
    square=True,
    made_by="Orthogonal()",
    inside=(SEMI_ORTHOGONAL, INVERTIBLE),
)
