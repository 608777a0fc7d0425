"""The test kit: every invariant of a constraint, with its tolerance and worst case."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from torch import Tensor

from pureopt._errors import ConstraintError, told
from pureopt._tree import tree_map
from pureopt.constraints import Constraint
from pureopt.testing import _conduct, _invariants
from pureopt.testing._cases import (
    Case,
    Measured,
    Probe,
    feasible,
    prepare,
    raised,
    tree_map_shapes,
)


@final
@dataclass(frozen=True)
class Invariant:
    """One thing that every constraint promises.

    Attributes:
        number: From 1 to 14.
        name: A word for it.
        measure: What measures it.
        exact: Whether it is a statement about float64 at one small value: derivatives,
            dimensions, compiled programs.
        batched: Whether it needs leading dimensions.

    Example:
        >>> from pureopt.constraints import Skew
        >>> from pureopt.testing import check_constraint
        >>> [finding.invariant.name for finding in check_constraint(Skew()).findings][
        ...     :3
        ... ]
        ['feasibility', 'round trip', 'inverse']
    """

    number: int
    name: str
    measure: Callable[[Probe], Iterator[Measured]]
    exact: bool = False
    batched: bool = False

    def __str__(self) -> str:
        """Number and name."""
        return f"{self.number:2d} {self.name}"


INVARIANTS = (
    Invariant(1, "feasibility", _invariants.feasibility),
    Invariant(2, "round trip", _invariants.round_trip),
    Invariant(3, "inverse", _invariants.inverse),
    Invariant(4, "dimension", _invariants.dimension, exact=True),
    Invariant(5, "purity", _conduct.purity),
    Invariant(6, "derivatives", _invariants.derivatives, exact=True),
    Invariant(7, "batching", _conduct.batching, batched=True),
    Invariant(7, "compilation", _conduct.compilation, exact=True, batched=True),
    Invariant(8, "volume", _invariants.volume, exact=True),
    Invariant(9, "composition", _conduct.composition, exact=True),
    Invariant(10, "orientation", _invariants.orientation),
    Invariant(11, "removal", _conduct.removal),
    Invariant(12, "serialization", _conduct.serialization),
    Invariant(13, "optimization", _conduct.optimization),
    Invariant(14, "rebinding", _conduct.rebinding),
)


class Finding(NamedTuple):
    """What one invariant came to over all cases: its worst number.

    Attributes:
        invariant: The invariant.
        what: What was measured there.
        worst: The number, NaN if something raised.
        tolerance: The largest one that rounding explains.
        case: Where, in words.
        ok: Whether no case failed.

    Example:
        >>> Finding._fields
        ('invariant', 'what', 'worst', 'tolerance', 'case', 'ok')
    """

    invariant: Invariant
    what: str
    worst: float
    tolerance: float
    case: str
    ok: bool


@final
@dataclass(frozen=True)
class ConstraintReport:
    """What :func:`check_constraint` found: true if every invariant holds.

    Attributes:
        constraint: The constraint.
        findings: One for each invariant that applies.

    Example:
        >>> from pureopt.constraints import Skew
        >>> from pureopt.testing import check_constraint
        >>> report = check_constraint(Skew(), (3, 3))
        >>> bool(report), report.findings[1].what
        (True, '|forward(right_inverse(y)) - y|')
    """

    constraint: Constraint
    findings: tuple[Finding, ...]

    @property
    def failures(self) -> tuple[Finding, ...]:
        """The findings that do not hold."""
        return tuple(finding for finding in self.findings if not finding.ok)

    def __bool__(self) -> bool:
        """Whether every invariant holds."""
        return not self.failures

    def __repr__(self) -> str:
        """A table."""
        lines = [f"{self.constraint!r}: {len(self.failures)} of its invariants fail"]
        lines += [
            f"{'ok  ' if f.ok else 'FAIL'} {f.invariant!s:17} {f.worst:9.2g} <= "
            f"{f.tolerance:<9.2g} {f.what}; {f.case}"
            for f in self.findings
        ]
        return "\n".join(lines)


def check_constraint(
    constraint: Constraint,
    shape: Any = None,
    *,
    values: Sequence[Any] = (),
    outside: Sequence[Any] = (),
    packed: Constraint | None = None,
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.float64),
    seeds: Sequence[int] = (0, 1),
) -> ConstraintReport:
    """Try the invariants of a constraint, your own included, and report each.

    They are: what is mapped is in the set; the right inverse is one; as many dimensions
    as are said; nothing is touched; derivatives in all modes; batches, ``vmap`` and
    compiled programs are loops; the log-determinant; composition refuses strangers;
    the sign of a determinant stays; values survive on a tree, in pickles and files,
    in an optimizer, and when the chart moves. Values come from ``sample``, else from
    ``project``, else from ``forward`` of drawn free numbers.

    Args:
        constraint: What to try.
        shape: The event shape to try; by default 3 by 3, 4 by 3, or 5, as it takes.
        values: More elements of the set, of the event shape, such as extreme ones; for
            all but the invariants about derivatives.
        outside: Values that are not in the set: ``check`` must say so.
        packed: A constraint from vectors onto the domain, where that is a set of
            structured matrices: ``Skew()`` for ``Cayley()``.
        dtypes: What to try the numerical invariants in; half precision is allowed.
        seeds: What to draw from.

    Returns:
        A report that is true if all hold, and prints as a table. In a test, with the
        report as the message: ``assert report, report``.

    Raises:
        ConstraintError: If no shape can be guessed, ``packed`` is needed, or a value
            has another shape.

    Example:
        >>> from pureopt.constraints import Cayley, Skew
        >>> report = check_constraint(Cayley(), (3, 3), packed=Skew())
        >>> bool(report), len(report.findings)
        (True, 15)
    """
    _require_whole(constraint, packed)
    shape = _guess(constraint) if shape is None else shape
    _require_shape("values", values, shape)
    _require_shape("outside", outside, shape)
    findings: list[Finding] = []
    for invariant in INVARIANTS:
        tries = [
            (case, probe)
            for case in _cases(constraint, invariant, shape, dtypes, seeds)
            # Derivatives and ranks of extreme values may be what makes them extreme.
            for probe in _probes(
                constraint, case, () if invariant.exact else values, outside, packed
            )
        ]
        found = [m for case, probe in tries for m in _measure(invariant, case, probe)]
        if found:
            findings.append(_worst(invariant, found))
    return ConstraintReport(constraint, tuple(findings))


def _require_whole(constraint: Constraint, packed: Constraint | None) -> None:
    """Raise unless it is a constraint, with a way to draw free values."""
    if not isinstance(constraint, Constraint):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConstraintError(
            "check_constraint(constraint)",
            "be given an instance of a constraint",
            told(constraint),
            "For example `Skew()`.",
        )
    domain = constraint.domain
    if packed is None and domain.made_by:
        raise ConstraintError(
            "check_constraint(packed=...)",
            f"be given for a constraint that takes {domain.words}",
            "nothing",
            f"Pass `packed={domain.made_by}`.",
        )


def _require_shape(name: str, values: Sequence[Any], shape: Any) -> None:
    """Raise unless all values have the event shape."""

    def of(value: Any) -> Any:
        return tuple(value.shape) if isinstance(value, Tensor) else told(value)

    want = tree_map_shapes(tuple, shape)
    for value in values:
        got = of(value) if isinstance(want, tuple) else tree_map(of, value)
        if got != want:
            raise ConstraintError(
                f"check_constraint({name}=...)",
                f"be tensors of the event shape, {want}",
                str(got),
            )


def _guess(constraint: Constraint) -> tuple[int, ...]:
    domain = constraint.codomain
    guesses = {0: (5,), 1: (5,), 2: (3, 3) if domain.square else (4, 3)}
    if domain.event_dims not in guesses:
        raise ConstraintError(
            "check_constraint(shape=...)",
            f"be given for values of {domain.event_dims} dimensions",
            "nothing",
        )
    return guesses[domain.event_dims]


def _cases(
    constraint: Constraint,
    invariant: Invariant,
    shape: Any,
    dtypes: Sequence[torch.dtype],
    seeds: Sequence[int],
) -> Iterator[Case]:
    if invariant.exact:
        yield Case(shape, (2,) if invariant.batched else (), seed=seeds[0])
        return
    # In loops over single elements float64 tells mistakes from roundings.
    dtypes = (torch.float64,) if invariant.batched else dtypes
    batches = ((2, 3),) if invariant.batched else ((), (1,), (0,), (2, 3))
    for dtype, batch, seed in itertools.product(dtypes, batches, seeds):
        size = max(shape, default=1) if isinstance(shape, tuple) else 1
        radius = constraint.radius(size, dtype)
        for scale in (1e-8, min(1.0, radius), min(radius, 1e30)):
            yield Case(shape, batch, dtype, seed, scale, contiguous=seed == seeds[0])


def _probes(
    constraint: Constraint,
    case: Case,
    values: Sequence[Any],
    outside: Sequence[Any],
    packed: Constraint | None,
) -> Iterator[Probe]:
    yield Probe(constraint, case, feasible(constraint, case), packed, outside)
    if not case.batch:
        for value in values:
            y = prepare(constraint, case, tree_map(lambda t: t.double(), value))
            yield Probe(constraint, case, y, packed, outside)


def _measure(
    invariant: Invariant, case: Case, probe: Probe
) -> Iterator[tuple[Case, Measured]]:
    try:
        for found in invariant.measure(probe):
            yield case, found
    except Exception as error:  # noqa: BLE001 (a report tells what was raised, and where)
        yield case, raised(error)


def _worst(invariant: Invariant, found: list[tuple[Case, Measured]]) -> Finding:
    def badness(pair: tuple[Case, Measured]) -> tuple[bool, float]:
        m = pair[1]
        return not m.ok, m.worst / m.tolerance if m.tolerance else m.worst

    case, m = max(found, key=badness)
    return Finding(invariant, m.what, m.worst, m.tolerance, str(case), m.ok)
