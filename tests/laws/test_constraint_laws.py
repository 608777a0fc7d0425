"""What every constraint promises, over the table of constraints."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, jacfwd, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

import pureopt as po
from pureopt import ConstraintError
from pureopt._tree import ravel, tree_leaves, tree_map
from pureopt.testing import Case, Probe
from pureopt.testing._cases import prepare
from pureopt.testing._check import INVARIANTS
from tests.constraints.rows import CONSTRAINTS, SIZES, ConstraintRow

DTYPES = (torch.float32, torch.float64)
LOW = (torch.bfloat16, torch.float16)
BATCHES = ((), (1,), (0,), (2, 3))

rows = pytest.mark.parametrize("row", CONSTRAINTS, ids=lambda row: row.name)
sizes = st.sampled_from(SIZES)
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fit(row: ConstraintRow, n: int) -> int:
    """The largest size of the row that is not above ``n``, else its smallest."""
    return max((size for size in row.sizes if size <= n), default=row.sizes[0])


def feasible(row: ConstraintRow, n, batch=(), seed=0, dtype=torch.float64):
    y = row.sample(fit(row, n), batch, generator(seed))
    return tree_map(lambda t: t.to(dtype), y)


def probe(row: ConstraintRow, case: Case, y) -> Probe:
    c = row.make()
    packed = row.packed() if row.packed else None
    return Probe(c, case, prepare(c, case, y), packed)


def assert_holds(invariant, probe: Probe) -> None:
    for measured in invariant.measure(probe):
        assert measured.ok, f"{probe.case}: {measured}"


drawn = [i for i in INVARIANTS if not i.exact and not i.batched]
exact = [i for i in INVARIANTS if i.exact and not i.batched]
invariant_ids = {"ids": lambda i: i.name.replace(" ", "-")}


def law(invariant):
    """The test of one invariant for drawn values.

    A function for each: Hypothesis nests its settings once per run of a function, and
    a thousand runs, of all rows and invariants, are deeper than the stack.
    """

    @rows
    @given(
        n=sizes,
        batch=st.sampled_from(BATCHES),
        seed=seeds,
        dtype=st.sampled_from((*DTYPES, *DTYPES, *LOW)),
        share=st.floats(-12, 0),
        contiguous=st.booleans(),
    )
    def test(row, n, batch, seed, dtype, share, contiguous):
        n = fit(row, n)
        shape = row.shape(n)
        wide = max(shape, default=1) if isinstance(shape, tuple) else 1
        radius = min(row.make().radius(wide, dtype), 1e30)
        scale = max(1e-8, radius * 10.0**share)
        case = Case(shape, batch, dtype, seed % 2**31, scale, contiguous)
        assert_holds(invariant, probe(row, case, feasible(row, n, batch, seed)))

    return test


laws = {invariant.name: law(invariant) for invariant in drawn}
test_feasibility = laws.pop("feasibility")
test_round_trip = laws.pop("round trip")
test_inverse = laws.pop("inverse")
test_purity = laws.pop("purity")
test_orientation = laws.pop("orientation")
test_removal = laws.pop("removal")
test_serialization = laws.pop("serialization")
test_optimization = laws.pop("optimization")
test_rebinding = laws.pop("rebinding")


def test_no_law_is_left_out():
    assert laws == {}


@rows
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("invariant", exact, **invariant_ids)
def test_invariants_hold_to_the_last_digits(row, invariant, n):
    if n not in row.sizes:
        n = fit(row, n)
    case = Case(row.shape(n), seed=n)
    assert_holds(invariant, probe(row, case, feasible(row, n, seed=n)))


@rows
@pytest.mark.parametrize("n", [1, 3])
def test_batches_and_vmap_are_loops(row, n):
    batching = next(i for i in INVARIANTS if i.name == "batching")
    case = Case(row.shape(fit(row, n)), (4,), seed=n)
    assert_holds(batching, probe(row, case, feasible(row, n, (4,), seed=7)))


@rows
@pytest.mark.parametrize("jacobian", [jacfwd, jacrev])
def test_the_jacobian_of_a_lane_is_that_of_its_call(row, jacobian):
    # torch 2.13: vmap(jacfwd(f)) and vmap(jacrev(f)) of systems whose matrix or whose
    # right-hand side does not depend on the argument are off by powers of ten.
    c = row.make()
    y = feasible(row, 3, (3,), seed=8)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    if not ravel(x).numel():
        return
    for f, points in ((c.forward, x), (c.right_inverse, y)):
        slopes = jacobian(f)
        lanes = vmap(slopes)(points, static)
        for k in range(3):
            lane = tree_map(lambda t, k=k: t[k], (points, static))
            for got, want in zip(
                tree_leaves(lanes), tree_leaves(slopes(*lane)), strict=True
            ):
                # The same operations in batches: roundings times a condition below 1e3.
                # Not finite is what has no derivative, as a rank that is too low.
                size = want.abs().nan_to_num(0).max().item() if want.numel() else 0
                torch.testing.assert_close(
                    got[k], want, rtol=0, atol=1e-11 * max(size, 1), equal_nan=True
                )


@pytest.mark.parametrize(
    "row",
    # Of square, tall and wide ones the last: the code is the same, its branches more.
    {repr(row.make()): row for row in CONSTRAINTS}.values(),
    ids=lambda row: row.name,
)
@pytest.mark.compile
def test_compiled_is_eager(row):
    compilation = next(i for i in INVARIANTS if i.name == "compilation")
    case = Case(row.shape(fit(row, 3)), (2,), seed=3)
    assert_holds(compilation, probe(row, case, feasible(row, 3, (2,), seed=3)))


@rows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_the_round_trip_holds_at_extremes(row, n, dtype):
    """What float32 no longer tells from the outside must be NaN, not wrong."""
    if n not in row.sizes:
        return
    c, round_trip = row.make(), INVARIANTS[1]
    for exact_y in row.extremes(n):
        assert bool(c.check(exact_y).all())
        y = tree_map(lambda t: t.to(dtype), exact_y)
        if bool(c.check(y).all()):
            packed = row.packed() if row.packed else None
            case = Case(row.shape(n), dtype=dtype)
            assert_holds(round_trip, Probe(c, case, y, packed))
        else:
            x = ravel(c.right_inverse(y, c.bind(y)))
            assert not x.numel() or bool(x.isnan().any())


@rows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 3, 8])
def test_what_is_outside_is_told_and_has_no_inverse(row, n, dtype):
    n, c = fit(row, n), row.make()
    for y in (*row.outside(n), tree_map(lambda t: t * torch.nan, feasible(row, n))):
        y = tree_map(lambda t: t.to(dtype), y)  # noqa: PLW2901
        assert not bool(c.check(y).all())
        x = ravel(c.right_inverse(y, c.bind(y)))
        assert not x.numel() or bool(x.isnan().any())


@rows
def test_one_bad_lane_is_nan_and_leaves_the_others_alone(row):
    n, c = fit(row, 3), row.make()
    bad = [*row.outside(n)[:2], tree_map(lambda t: t * torch.nan, feasible(row, n))]
    good = feasible(row, n, (2,), seed=2)
    lanes = [tree_map(lambda t: t[0], good), *bad, tree_map(lambda t: t[1], good)]
    y = tree_map(lambda *parts: torch.stack(parts), *lanes)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    ends = torch.tensor([0, len(lanes) - 1])
    alone = c.right_inverse(good, tree_map(lambda t: t[ends], static))
    inside = c.check(y).reshape(len(lanes), -1).all(-1)
    assert inside.tolist() == [True, *[False] * len(bad), True]
    for part, lonely in zip(tree_leaves(x), tree_leaves(alone), strict=True):
        assert torch.equal(part[ends], lonely)
    if ravel(x).numel():
        flat = torch.cat([t.reshape(len(lanes), -1) for t in tree_leaves(x)], -1)
        assert bool(flat[1:-1].isnan().any(-1).all())
    for z in tree_leaves(c.forward(x, static)):
        assert bool(z[ends].isfinite().all())


@rows
def test_a_bad_lane_does_not_touch_the_gradient_of_the_others(row):
    c = row.make()
    y = feasible(row, 3, (3,), seed=4)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    if not ravel(x).numel():
        return

    def first(x):
        z = c.forward(x, static)
        parts = [weighted(t[0]) for t in tree_leaves(z)]
        return torch.stack(parts).sum()

    spoil = torch.tensor([0.0, torch.nan, torch.inf])
    spoiled = tree_map(lambda t: t + spoil.reshape(3, *(1,) * (t.dim() - 1)).to(t), x)
    clean = tree_leaves(grad(first)(x))
    assert any(bool(t[0].any()) for t in clean)
    for got, want in zip(tree_leaves(grad(first)(spoiled)), clean, strict=True):
        assert torch.equal(got[0], want[0])


@rows
@pytest.mark.parametrize("n", [1, 3])
def test_shapes_are_known_without_data(row, n):
    c = row.make()
    y = feasible(row, n, (2,))
    static = c.bind(y)
    x = c.right_inverse(y, static)
    y_meta = tree_map(lambda t: t.to("meta"), y)
    meta = c.bind(y_meta)
    x_meta = c.right_inverse(y_meta, meta)
    for got, want in ((meta, static), (x_meta, x), (c.forward(x_meta, meta), y)):
        pairs = list(zip(tree_leaves(got), tree_leaves(want), strict=True))
        assert all(a.is_meta for a, _ in pairs)
        assert [(a.shape, a.dtype) for a, _ in pairs] == [
            (b.shape, b.dtype) for _, b in pairs
        ]
    assert c.check(y_meta).shape == c.check(y).shape


def weighted(y: Tensor) -> Tensor:
    """A sum with a different weight for each entry, not linear in its place.

    Linear weights vanish on matrices with zero row and column sums.
    """
    weights = torch.arange(1.0, y.numel() + 1).square()
    return (y * weights.reshape(y.shape)).sum()


# Of each class once: the code that sees the sizes is the same.
@pytest.mark.parametrize(
    "row",
    {row.public: row for row in reversed(CONSTRAINTS)}.values(),
    ids=lambda row: row.name,
)
@pytest.mark.compile
def test_a_compiled_map_takes_other_sizes(row):
    """The second size makes the compiler turn sizes into symbols."""
    c = row.make()
    forward = torch.compile(c.forward, fullgraph=True, backend="aot_eager")
    for n in (2, 3, 5):
        y = feasible(row, n, (), seed=n)
        static = c.bind(y)
        x = c.right_inverse(y, static)
        compiled, eager = forward(x, static), c.forward(x, static)
        for got, want in zip(tree_leaves(compiled), tree_leaves(eager), strict=True):
            # The same kernels, up to decompositions: roundings of float64.
            assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


class Reads(TorchDispatchMode):
    """Counts what waits for the device: values read by Python, copies between devices."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in {"_local_scalar_dense", "equal", "nonzero", "masked_select"}:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@rows
def test_no_number_is_read(row):
    c = row.make()
    y = feasible(row, 3, (2,), seed=1)
    shape = tree_map(lambda t: t, y)
    with Reads() as reads:
        static = c.bind(y)
        x = c.right_inverse(y, static)
        c.forward(x, static)
        c.check(y)
        c.rebind(x, static)
        if c.offers("log_abs_det"):
            c.log_abs_det(x, static)
        if c.offers("project"):
            c.project(y)
        if c.offers("sample") and isinstance(shape, Tensor):
            c.sample(po.random.key(0), y.shape)
    assert reads.found == []
    with Reads() as reads:
        bool(c.check(y).all())
    assert reads.found == ["_local_scalar_dense"]


@rows
@given(n=sizes, seed=seeds, dtype=st.sampled_from(DTYPES))
def test_project_is_the_nearest_point(row, n, seed, dtype):
    c = row.make()
    if not c.offers("project"):
        return
    y = feasible(row, n, (), seed, dtype)
    noise = tree_map(
        lambda t: torch.randn(t.shape, generator=generator(seed + 2)).to(dtype), y
    )
    off = tree_map(lambda a, b: a + 0.3 * b, y, noise)
    nearest = c.project(off)
    assert bool(c.check(nearest).all())
    for other in (y, feasible(row, n, (), seed + 3, dtype)):
        # The slack is the rounding of the two norms.
        assert gap(off, nearest) <= gap(off, other) * (1 + 1e-5) + 1e-6
    again = ravel(c.project(nearest))
    # A singular value decomposition moves what is in the set by some n eps.
    tolerance = 20 * max(n, 4) * torch.finfo(dtype).eps
    assert torch.allclose(again, ravel(nearest), rtol=tolerance, atol=tolerance)


def gap(a, b) -> Tensor:
    return (ravel(a) - ravel(b)).norm()


@rows
@given(n=sizes, seed=st.integers(0, 2**31), dtype=st.sampled_from((*DTYPES, *LOW)))
def test_samples_are_in_the_set_and_belong_to_their_key(row, n, seed, dtype):
    c = row.make()
    shape = row.shape(fit(row, n))
    if not c.offers("sample") or not isinstance(shape, tuple):
        return
    key = po.random.key(seed)
    y = c.sample(key, (2, *shape), dtype=dtype)
    assert y.dtype == dtype
    assert y.shape == (2, *shape)
    assert bool(c.check(y).all())
    assert torch.equal(y, c.sample(key, (2, *shape), dtype=dtype))
    keys = po.random.split(key, 2)
    lanes = vmap(lambda key: c.sample(key, shape, dtype=dtype))(keys)
    # Kernels of batches may take other paths: roundings of the smaller type.
    alone = c.sample(keys[1], shape, dtype=dtype).double()
    tolerance = 1000 * torch.finfo(dtype).eps
    assert torch.allclose(lanes[1].double(), alone, rtol=tolerance, atol=tolerance)


@rows
def test_constraints_are_frozen_and_tell_what_they_are(row):
    c = row.make()
    assert repr(c) == repr(row.make())
    assert type(c).__name__ in repr(c) or " >> " in repr(c)
    with pytest.raises(AttributeError):
        c.anything = 1
    assert c.rule
    assert c.domain.words
    assert c.codomain.words


@rows
def test_wrong_shapes_and_dtypes_raise(row):
    c = row.make()
    if not isinstance(row.shape(fit(row, 3)), tuple):
        return
    y = feasible(row, 3)
    calls = [c.check, c.bind, c.right_inverse, c.violation]
    calls += [c.project] if c.offers("project") else []
    for call in calls:
        with pytest.raises(ConstraintError, match="floating-point"):
            call(y.to(torch.int64))
        with pytest.raises(ConstraintError, match="be a tensor"):
            call([1.0])
        if c.codomain.event_dims:
            with pytest.raises(ConstraintError, match="have a shape"):
                call(torch.tensor(1.0))
    if isinstance(c.right_inverse(y, c.bind(y)), Tensor):
        with pytest.raises(ConstraintError, match="be a tensor"):
            c.forward([1.0])
    if c.codomain.event_dims:
        with pytest.raises(ConstraintError):
            c.dim(())
    if c.codomain.square:
        with pytest.raises(ConstraintError):
            c.dim((2, 3))
    if c.offers("sample"):
        with pytest.raises(ConstraintError, match="floating-point"):
            c.sample(po.random.key(0), y.shape, dtype=torch.int32)
        if c.codomain.event_dims:
            with pytest.raises(ConstraintError):
                c.sample(po.random.key(0), ())


def test_the_names_of_the_rows_are_unique():
    assert len({row.name for row in CONSTRAINTS}) == len(CONSTRAINTS)
