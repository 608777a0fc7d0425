"""The test kit finds what is wrong: one wrong constraint for each invariant."""

from __future__ import annotations

import gc
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pureopt import ConstraintError
from pureopt.constraints import Cayley, Constraint, Domain, Positive, Skew
from pureopt.constraints._domains import ORTHOGONAL, VECTOR
from pureopt.constraints._numeric import max_abs, or_nan, scaled
from pureopt.testing import Case, Probe, check_constraint
from pureopt.testing._check import INVARIANTS
from pureopt.testing._conduct import _same

HALF = Domain("a vector with entries in (-2, 2)", "(..., d)", 1, inside=(VECTOR,))


@dataclass(frozen=True)
class Bounded(Constraint):
    """A right constraint, ``y = 2 tanh x``, for wrong ones to differ from."""

    domain = VECTOR
    codomain = HALF
    rule = "max|Y| < 2"

    def dim(self, shape):
        return shape[-1]

    def radius(self, n, dtype):
        return 3.0

    def forward(self, x: Tensor, static: Any = ()) -> Tensor:
        VECTOR.require("Bounded(x)", x)
        return scaled(x.tanh(), 2.0)

    def right_inverse(self, y: Tensor, static: Any = ()) -> Any:
        half = scaled(y, 0.5)
        safe = torch.where(half.abs() < 1, half, torch.zeros_like(half))
        return or_nan(self.check(y), safe.atanh(), 1)

    def violation(self, y: Tensor) -> Tensor:
        VECTOR.require("Bounded(y)", y)
        return max_abs(y, 1) - 2

    def tolerance(self, y: Tensor) -> Tensor:
        return torch.full_like(y.sum(-1), -torch.finfo(y.dtype).eps)

    def rounding(self, x: Tensor, y: Tensor) -> Tensor:
        return torch.full_like(y.sum(-1), 40 * torch.finfo(y.dtype).eps)

    def project(self, y: Tensor) -> Tensor:
        return y.clamp(-1.875, 1.875)

    def log_abs_det(self, x: Tensor, static: Any = ()) -> Tensor:
        return (4 * (1 - x.tanh().square()).square()).log().sum(-1).mul(0.5)


class Leaves(Bounded):
    """Leaves its set."""

    def forward(self, x, static=()):
        return scaled(x, 2.0) + 0 * x.tanh()


class Misses(Bounded):
    """Its right inverse is none for a part of the set."""

    def right_inverse(self, y, static=()):
        return super().right_inverse(y.clamp(-1, 1))


class Drifts(Bounded):
    """Goes back to another point."""

    def right_inverse(self, y, static=()):
        return super().right_inverse(y) + 1e-4


class Counts(Bounded):
    """Counts its dimensions wrongly."""

    def dim(self, shape):
        return shape[-1] - 1


class Writes(Bounded):
    """Writes to its input."""

    def forward(self, x, static=()):
        y = super().forward(x)
        return y + x.mul_(1.0) - x


class Aliases(Bounded):
    """Returns memory that it was given."""

    def project(self, y):
        return y


class Seeds(Bounded):
    """Draws from the global generator."""

    def forward(self, x, static=()):
        return super().forward(x) + 0 * torch.rand(())


class Snaps(Bounded):
    """Is right in value, wrong in its second derivatives."""

    def forward(self, x, static=()):
        y = super().forward(x)
        slope = 2 * (1 - x.detach().tanh().square())
        return y.detach() + slope * (x - x.detach())


class Mixes(Bounded):
    """Mixes the elements of a batch."""

    def forward(self, x, static=()):
        y = super().forward(x)
        return y if x.dim() < 2 else (y + y.flip(0)) / 2


class Branches(Bounded):
    """Branches on a number, so that it neither vmaps nor compiles."""

    def forward(self, x, static=()):
        return super().forward(x) if float(x.sum()) > -1e9 else x


class Volumes(Bounded):
    """Has the volume of another map."""

    def log_abs_det(self, x, static=()):
        return super().log_abs_det(x) + 1e-6


class Everything(Domain):
    """A set that is said to contain all others."""

    def contains(self, other: Domain) -> bool:
        return True


class Anywhere(Bounded):
    """Takes what any constraint returns."""

    domain = Everything("anything", "(..., d)", 1)


class Forgets(Bounded):
    """Cannot be copied: it forgets its number."""

    def __init__(self, factor: float = 1.0):
        object.__setattr__(self, "factor", factor)

    def __reduce__(self):
        return Forgets, (0.5,)

    def forward(self, x, static=()):
        return super().forward(scaled(x, self.factor))

    def right_inverse(self, y, static=()):
        return scaled(super().right_inverse(y), 1 / self.factor)


class Diverges(Bounded):
    """Is rebound to somewhere else."""

    def rebind(self, x, static=()):
        return scaled(x, 0.5), static


class Fragile(Bounded):
    """Is in its set only where it was bound."""

    def bind(self, y):
        return y.clone()

    def forward(self, x, static=()):
        y = super().forward(x)
        if isinstance(static, tuple):
            return y
        near = (y - static).abs().amax(-1, keepdim=True) < 1e-3
        return torch.where(near, y, 3 * torch.ones_like(y))


class Labels(Bounded):
    """Has static data that are no tensors, which a tree of leaves cannot hold."""

    def bind(self, y):
        return ("around", 0)


class Believes(Bounded):
    """Takes everything to be in its set."""

    def check(self, y):
        return torch.ones_like(y.sum(-1), dtype=torch.bool)


class Throws(Bounded):
    """Projects out of its set."""

    def sample(self, key, shape, *, dtype=torch.float32):
        return torch.zeros(shape, dtype=dtype)

    def project(self, y):
        return 10 * y


class Centers(Throws):
    """Projects to the same point whatever it is given."""

    def sample(self, key, shape, *, dtype=torch.float32):
        return torch.ones(shape, dtype=dtype)

    def project(self, y):
        return torch.zeros_like(y)


class Divides(Bounded):
    """Has a derivative of 0 / 0 at zero, where the value is right."""

    def forward(self, x, static=()):
        size = x.square().sqrt()
        return super().forward(torch.where(x > 0, size, -size))


class Leaks(Bounded):
    """Spreads a NaN over the whole batch."""

    def right_inverse(self, y, static=()):
        x = super().right_inverse(y)
        return x + 0 * x.mean(0, keepdim=True)


class Mirrors(Bounded):
    """One by one matrices that are said to be orthogonal, of changing sign."""

    codomain = ORTHOGONAL

    def forward(self, x, static=()):
        return torch.where(x > 0, 1.0, -1.0).to(x)[..., None]

    def right_inverse(self, y, static=()):
        return y[..., 0].clone()

    def violation(self, y):
        return max_abs(y) - 2

    def tolerance(self, y):
        return torch.zeros_like(y[..., 0, 0])

    def project(self, y):
        return torch.where(y > 0, 1.0, -1.0).to(y)


NUMBER = {
    "Leaves": 1, "Misses": 2, "Drifts": 3, "Counts": 4, "Writes": 5, "Aliases": 5,
    "Seeds": 5, "Snaps": 6, "Mixes": 7, "Branches": 7, "Volumes": 8, "Anywhere": 9,
    "Mirrors": 10, "Labels": 11, "Forgets": 12, "Fragile": 13, "Diverges": 14,
    "Believes": 1, "Throws": 1, "Centers": 1, "Divides": 6, "Leaks": 7,
}  # fmt: skip


def wrong(name: str) -> Constraint:
    return globals()[name]()


def test_a_right_constraint_passes():
    report = check_constraint(Bounded(), (4,), outside=[2.5 * torch.ones(4)])
    assert report, report
    assert {f.invariant.number for f in report.findings} == set(range(1, 15)) - {10}
    assert report.failures == ()


# After a failed compilation of a Jacobian torch frees memory that is still in use, and
# crashes at some time: these have a process of their own.
UNCOMPILED = ("Leaves", "Writes", "Seeds", "Snaps", "Mixes", "Branches", "Labels")


def examine(name: str) -> None:
    shape = (1, 1) if name == "Mirrors" else (4,)
    report = check_constraint(wrong(name), shape, dtypes=[torch.float64], seeds=[0])
    assert not report
    assert NUMBER[name] in {f.invariant.number for f in report.failures}
    assert "FAIL" in repr(report)


def examine_the_next() -> None:
    assert check_constraint(Skew(), (3, 3), seeds=[0])
    assert not check_constraint(Leaves(), (4,), seeds=[0])
    report = check_constraint(Skew(), (3, 3), seeds=[0])
    assert report, report


def examine_what_is_left() -> None:
    """The lanes and tangents of a failed trace, were they freed in the next one, break it."""
    gc.collect()
    gc.disable()
    compilation = next(i for i in INVARIANTS if i.name == "compilation")
    y = torch.zeros(2, 4, dtype=torch.float64)
    *_, last = compilation.measure(Probe(Leaves(), Case((4,), (2,)), y))
    assert not last.ok
    is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor
    # By the type: some objects are proxies of what is gone.
    tensors = [o for o in gc.get_objects() if issubclass(type(o), Tensor)]
    assert tensors
    assert not any(map(is_wrapped, tensors))


def in_a_process_of_its_own(call: str) -> None:
    lines = (
        "import os",
        "from tests.test_testing import examine, examine_the_next, examine_what_is_left",
        call,
        "print('as expected', flush=True)",
        "os._exit(0)",  # without freeing anything
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "\n".join(lines)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.endswith("as expected\n"), done.stderr[-2000:]


@pytest.mark.parametrize("name", [name for name in NUMBER if name not in UNCOMPILED])
@pytest.mark.compile
def test_a_wrong_constraint_fails_where_it_is_wrong(name):
    examine(name)


@pytest.mark.parametrize("name", UNCOMPILED)
@pytest.mark.compile
def test_a_wrong_constraint_that_does_not_compile_fails_where_it_is_wrong(name):
    in_a_process_of_its_own(f"examine({name!r})")


def test_what_is_outside_must_be_told():
    report = check_constraint(Bounded(), (4,), outside=[torch.ones(4)], seeds=[0])
    assert [f.invariant.number for f in report.failures] == [1]
    assert report.failures[0].what == "check(outside) is False"


def test_a_value_of_the_caller_is_tried():
    """Every drawn value is fine; one given value is outside."""
    report = check_constraint(Bounded(), (4,), values=[3 * torch.ones(4)], seeds=[0])
    assert not report
    assert {1, 2} <= {f.invariant.number for f in report.failures}


def test_the_report_is_a_table_with_the_worst_case():
    report = check_constraint(Cayley(), packed=Skew(), seeds=[0])
    lines = repr(report).splitlines()
    assert lines[0] == "Cayley(): 0 of its invariants fail"
    assert len(lines) == 1 + len(report.findings) == 1 + len(INVARIANTS)
    assert "|forward(right_inverse(y)) - y|; shape (3, 3), batch" in lines[2]


def test_what_raises_is_reported_with_its_words():
    @dataclass(frozen=True)
    class Raises(Bounded):
        def right_inverse(self, y, static=()):
            if y.dim() > 1:
                raise NotImplementedError("no batches")
            return super().right_inverse(y)

    report = check_constraint(Raises(), (4,), seeds=[0])
    assert any(
        f.what.startswith("NotImplementedError: no batches") for f in report.failures
    )


def test_a_shape_that_cannot_be_guessed_is_asked_for():
    @dataclass(frozen=True)
    class Cubes(Bounded):
        codomain = Domain("a cube", "(..., a, b, c)", 3)

    with pytest.raises(ConstraintError, match=r"shape=...\)` must be given"):
        check_constraint(Cubes())


def test_what_cannot_be_tried_is_told_at_once():
    with pytest.raises(ConstraintError, match=r"the class `Skew`. For example"):
        check_constraint(Skew)
    with pytest.raises(ConstraintError, match=r"Pass `packed=Skew\(\)`"):
        check_constraint(Cayley())
    for values in ([torch.ones(3)], [[1.0, 2.0]]):
        with pytest.raises(
            ConstraintError, match=r"values=...\)` .* shape, \(4,\), got"
        ):
            check_constraint(Bounded(), (4,), values=values)
        with pytest.raises(ConstraintError, match=r"outside=...\)` must be tensors"):
            check_constraint(Bounded(), (4,), outside=values)


@pytest.mark.compile
def test_any_number_of_constraints_is_tried_in_one_process():
    """The compiler counts recompilations per function, and stops after eight."""
    compilation = next(i for i in INVARIANTS if i.name == "compilation")
    for i in range(10):
        y = torch.full((2,), 1.0 + i, dtype=torch.float64)
        for found in compilation.measure(Probe(Positive(i / 8), Case((2,)), y)):
            assert found.ok, found


def test_nan_is_not_the_same_as_a_number():
    one, nan = torch.ones(2), torch.tensor([1.0, torch.nan])
    assert _same("", one, [one]).ok
    assert _same("", nan, [nan]).ok
    assert not _same("", nan, [one]).ok
    assert not _same("", one, [nan]).ok


@pytest.mark.compile
def test_a_trace_that_fails_does_not_spoil_the_next_constraint():
    """A failed trace inside jacfwd leaves the state of its thread broken."""
    in_a_process_of_its_own("examine_the_next()")


@pytest.mark.compile
def test_a_trace_that_fails_leaves_nothing_to_free():
    in_a_process_of_its_own("examine_what_is_left()")
