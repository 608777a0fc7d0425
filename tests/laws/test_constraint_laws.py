"""What every constraint promises, over the table of constraints."""

from __future__ import annotations

import itertools
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.func import grad, grad_and_value, jacfwd, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from pureopt import ConstraintError
from pureopt._tree import tree_leaves, tree_map
from pureopt.constraints import Cayley, Skew, Symmetric
from pureopt.constraints._numeric import scaled
from tests.constraints.rows import CONSTRAINTS, SIZES, ConstraintRow

DTYPES = (torch.float32, torch.float64)
LOW = (torch.bfloat16, torch.float16)
BATCHES = ((), (1,), (0,), (2, 3))

rows = pytest.mark.parametrize("row", CONSTRAINTS, ids=lambda row: row.name)
sizes = st.sampled_from(SIZES)
dtypes = st.sampled_from(DTYPES)
batches = st.sampled_from(BATCHES)
seeds = st.integers(0, 2**32 - 1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def feasible(row, n, batch=(), seed=0, dtype=torch.float64) -> Tensor:
    return row.sample(n, batch, generator(seed)).to(dtype)


def free(row, n, batch=(), seed=0, dtype=torch.float64, scale=1.0):
    """Entries within ``scale`` around a random chart; with its static."""
    c = row.make()
    y = feasible(row, n, batch, seed, dtype)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    uniform = torch.rand(x.shape, generator=generator(seed + 1), dtype=torch.float64)
    x = (scale * (2 * uniform - 1)).to(dtype)
    if c.domain.event_dims == 2:
        x = x.tril(-1) - x.tril(-1).mT
    return x, static


def assert_round_trip(row: ConstraintRow, y: Tensor) -> None:
    c = row.make()
    static = c.bind(y)
    x = c.right_inverse(y, static)
    z = c.forward(x, static)
    assert z.dtype == x.dtype == y.dtype
    assert z.shape == y.shape
    if not y.numel():
        return
    n, eps = max(y.shape[-2:]), torch.finfo(y.dtype).eps
    reach = float(x.abs().max()) if x.numel() else 0.0
    # Backward error of LU with a few roundings per entry, sqrt(n) of them adding up at
    # random, each relative to the largest free number.
    tolerance = 20 * eps * math.sqrt(n) * max(1.0, reach)
    assert float((z - y).abs().max()) <= tolerance
    assert bool(c.check(z).all())


@rows
@given(n=sizes, batch=batches, seed=seeds, dtype=dtypes)
def test_forward_undoes_the_right_inverse_on_independent_samples(
    row, n, batch, seed, dtype
):
    assert_round_trip(row, feasible(row, n, batch, seed, dtype))


@rows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", SIZES)
def test_forward_undoes_the_right_inverse_at_extremes(row, n, dtype):
    for y in row.extremes(n):
        assert_round_trip(row, y.to(dtype))


@rows
@given(n=sizes, seed=seeds, dtype=st.sampled_from(LOW))
def test_low_precision_leaves_are_computed_in_float32(row, n, seed, dtype):
    assert_round_trip(row, feasible(row, n, (2,), seed, dtype))


@rows
@given(n=sizes, batch=batches, seed=seeds, dtype=dtypes, share=st.floats(-12, 0))
def test_forward_is_in_the_set_inside_the_radius(row, n, batch, seed, dtype, share):
    c = row.make()
    radius = min(c.radius(max(row.shape(n)), dtype), 1e30)
    x, static = free(row, n, batch, seed, dtype, radius * 10.0**share)
    y = c.forward(x, static)
    assert y.shape == (*batch, *row.shape(n))
    assert bool(c.check(y).all())


@rows
@given(n=sizes, seed=seeds, dtype=dtypes)
def test_the_right_inverse_undoes_forward_inside_the_chart(row, n, seed, dtype):
    c = row.make()
    x, static = free(row, n, (2,), seed, dtype)
    back = c.right_inverse(c.forward(x, static), static)
    # The worst entry of the inverse Jacobian grows as |A|^2 <= n^2 for entries below 1.
    tolerance = 20 * torch.finfo(dtype).eps * max(row.shape(n)) ** 2
    assert torch.allclose(back, x, rtol=0, atol=tolerance)


@rows
@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_there_are_as_many_free_numbers_as_dimensions(row, n):
    c = row.from_vector()
    static = c.bind(feasible(row, n, seed=n))
    x = c.right_inverse(feasible(row, n, seed=n), static)
    assert x.shape == (row.dim(n),)
    if x.numel():
        jacobian = jacfwd(lambda x: c.forward(x, static))(x).reshape(-1, len(x))
        assert int(torch.linalg.matrix_rank(jacobian)) == row.dim(n)


@rows
@pytest.mark.parametrize("n", [1, 3])
def test_batch_and_vmap_are_loops(row, n):
    c = row.make()
    y = feasible(row, n, (4,), seed=7)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    one = [tree_map(lambda t, i=i: t[i], static) for i in range(4)]
    loops = {
        "forward": torch.stack([c.forward(x[i], one[i]) for i in range(4)]),
        "right_inverse": torch.stack([c.right_inverse(y[i], one[i]) for i in range(4)]),
        "log_abs_det": torch.stack([c.log_abs_det(x[i], one[i]) for i in range(4)]),
        "check": torch.stack([c.check(yi) for yi in y]),
    }
    batched = {
        "forward": c.forward(x, static),
        "right_inverse": c.right_inverse(y, static),
        "log_abs_det": c.log_abs_det(x, static),
        "check": c.check(y),
    }
    mapped = {
        "forward": vmap(c.forward)(x, static),
        "right_inverse": vmap(c.right_inverse)(y, static),
        "log_abs_det": vmap(c.log_abs_det)(x, static),
        "check": vmap(c.check)(y),
    }
    for name, loop in loops.items():
        # Kernels of batches may add in another order: a few roundings of numbers
        # that are of order ten here.
        for other in (batched[name], mapped[name]):
            assert torch.allclose(other.double(), loop.double(), rtol=0, atol=1e-13)
    for bound in (
        vmap(c.bind)(y),
        tree_map(lambda *t: torch.stack(t), *map(c.bind, y)),
    ):
        for a, b in zip(tree_leaves(bound), tree_leaves(static), strict=True):
            assert torch.equal(a, b)


@rows
@pytest.mark.compile
def test_compiled_is_eager(row):
    c = row.make()
    y = feasible(row, 3, (2,), seed=3)
    static = c.bind(y)
    x = c.right_inverse(y, static)

    def jacobian(x, static):
        return vmap(jacfwd(c.forward))(x, static)

    def gradient(x, static):
        return vmap(grad(lambda x, static: weighted(c.forward(x, static))))(x, static)

    for fn, args in (
        (c.bind, (y,)),
        (c.forward, (x, static)),
        (c.right_inverse, (y, static)),
        (jacobian, (x, static)),
        (gradient, (x, static)),
    ):
        compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")(*args)
        pairs = zip(tree_leaves(compiled), tree_leaves(fn(*args)), strict=True)
        for got, want in pairs:
            # The same kernels in the same order, up to decompositions: a few roundings.
            assert torch.allclose(got.double(), want.double(), rtol=1e-14, atol=1e-14)


@rows
@pytest.mark.parametrize("n", [2, 3])
def test_the_four_second_order_nestings_agree_with_finite_differences(row, n):
    c = row.from_vector()
    y = feasible(row, n, seed=11)
    static = c.bind(y)
    x = c.right_inverse(y, static)

    def forward(x):
        return c.forward(x, static)

    h = 1e-5
    first = jacrev(forward)
    want = torch.stack(
        [
            (first(x + h * e) - first(x - h * e)) / (2 * h)
            for e in torch.eye(len(x)).to(x)
        ],
        -1,
    )
    for outer, inner in itertools.product((jacfwd, jacrev), repeat=2):
        got = outer(inner(forward))(x)
        # Central differences: h^2 times a third derivative of order one, and rounding
        # eps |J| / h, about 1e-11 and 1e-10.
        assert torch.allclose(got, want, rtol=0, atol=2e-9)


@rows
@pytest.mark.parametrize("n", [1, 2, 4])
def test_log_abs_det_is_that_of_the_numeric_jacobian(row, n):
    c = row.from_vector()
    y = feasible(row, n, seed=5)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    own = c.log_abs_det(x, static)
    if not x.numel():
        assert float(own) == 0
        return
    h = 1e-4
    basis = torch.eye(len(x), dtype=x.dtype)

    def slope(e):
        """Fourth order: the error is h^4 times a fifth derivative, 1e-14 or so."""
        f = [c.forward(x + k * h * e, static) for k in (-2, -1, 1, 2)]
        return (f[0] - 8 * f[1] + 8 * f[2] - f[3]) / (12 * h)

    jacobian = torch.stack([slope(e).flatten() for e in basis], -1)
    want = torch.linalg.svdvals(jacobian).log().sum()
    # Rounding in the differences, eps / h = 2e-12 per entry, times the condition.
    assert abs(float(own - want)) < 1e-8


@rows
@given(n=sizes, batch=batches, seed=seeds, dtype=st.sampled_from((*DTYPES, *LOW)))
def test_inputs_and_the_global_generator_are_untouched(row, n, batch, seed, dtype):
    c = row.make()
    y = feasible(row, n, batch, seed, dtype)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    tensors = [x, y, *tree_leaves(static)]
    before = [(t.clone(), t._version) for t in tensors]
    state = torch.get_rng_state()
    outputs = [
        c.forward(x, static), c.right_inverse(y, static), c.project(y), c.check(y),
        c.log_abs_det(x, static), *tree_leaves(c.bind(y)),
    ]  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    for t, (value, version) in zip(tensors, before, strict=True):
        assert torch.equal(t, value)
        assert t._version == version
    storages = {t.untyped_storage().data_ptr() for t in tensors if t.numel()}
    assert not storages & {t.untyped_storage().data_ptr() for t in outputs if t.numel()}


@rows
@pytest.mark.parametrize("n", [1, 3])
def test_shapes_are_known_without_data(row, n):
    c = row.make()
    y = feasible(row, n, (2,))
    static = c.bind(y)
    x = c.right_inverse(y, static)
    meta = c.bind(y.to("meta"))
    pairs = zip(tree_leaves(meta), tree_leaves(static), strict=True)
    assert all(
        a.is_meta and a.shape == b.shape and a.dtype == b.dtype for a, b in pairs
    )
    x_meta = c.right_inverse(y.to("meta"), meta)
    assert x_meta.is_meta
    assert x_meta.shape == x.shape
    assert c.forward(x_meta, meta).shape == y.shape
    assert c.check(y.to("meta")).shape == (2,)


def weighted(y: Tensor) -> Tensor:
    """A sum with a different weight for each entry."""
    return (y * torch.arange(1.0, y.numel() + 1).reshape(y.shape)).sum()


@pytest.mark.slow
@pytest.mark.compile
def test_inductor_gets_the_gradients_right():
    """It drops ``alpha`` next to 2-D products, and the batched gradient of a gather."""
    cayley, symmetric = Cayley(), Symmetric()
    a = Skew().forward(torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64))
    x = torch.arange(12.0, dtype=torch.float64).reshape(2, 6)

    def gradients(a, x):
        return (
            scaled(a @ a, 0.25),
            *grad_and_value(lambda a: weighted(cayley.forward(a)))(a),
            vmap(grad(lambda x: weighted(symmetric.forward(x))))(x),
        )

    compiled = torch.compile(gradients, fullgraph=True)(a, x)
    for got, want in zip(compiled, gradients(a, x), strict=True):
        # Sums of some ten products of order ten to a hundred, in another order.
        assert torch.allclose(got, want, rtol=0, atol=1e-12)


@rows
@pytest.mark.compile
def test_a_compiled_map_takes_other_sizes(row):
    """The second size makes the compiler turn sizes into symbols."""
    c = row.make()
    forward = torch.compile(c.forward, fullgraph=True, backend="aot_eager")
    for n in (2, 3, 5):
        y = feasible(row, n, (), seed=n)
        static = c.bind(y)
        z = forward(c.right_inverse(y, static), static)
        # 20 eps sqrt(n) times a largest free number of at most a hundred.
        assert torch.allclose(z, y, rtol=0, atol=1e-12)


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
    with Reads() as reads:
        static = c.bind(y)
        x = c.right_inverse(y, static)
        c.forward(x, static)
        c.log_abs_det(x, static)
        c.project(y)
        c.check(y)
    assert reads.found == []
    with Reads() as reads:
        bool(c.check(y).all())
    assert reads.found == ["_local_scalar_dense"]


@rows
def test_one_bad_lane_is_nan_and_leaves_the_others_alone(row):
    c = row.make()
    y = feasible(row, 3, (4,), seed=2)
    bad = y.clone()
    bad[1] = bad[1] + torch.arange(bad[1].numel()).reshape(bad[1].shape)
    bad[2] = torch.nan
    assert c.check(bad).tolist() == [True, False, False, True]
    static = c.bind(bad)
    x = c.right_inverse(bad, static)
    assert bool(x[1:3].isnan().all())
    good = torch.tensor([0, 3])
    alone = tree_map(lambda t: t[good], static)
    assert torch.equal(x[good], c.right_inverse(y[good], alone))
    z = c.forward(x, static)
    assert bool(z[good].isfinite().all())
    # Skew matrices have a zero diagonal that no free number reaches.
    assert bool(z[1:3].isnan().any(-1).any(-1).all())
    projected = c.project(bad)
    assert c.check(projected).tolist() == [True, True, False, True]


@rows
def test_a_bad_lane_does_not_touch_the_gradient_of_the_others(row):
    c = row.make()
    y = feasible(row, 3, (3,), seed=4)
    static = c.bind(y)
    x = c.right_inverse(y, static)
    slope = grad(lambda x: weighted(c.forward(x, static)[0]))
    clean = slope(x)
    x[1] = torch.nan
    x[2] = torch.inf
    assert bool(clean[0].any())
    assert torch.equal(slope(x)[0], clean[0])


@rows
@given(n=sizes, seed=seeds, dtype=dtypes)
def test_project_is_the_nearest_point(row, n, seed, dtype):
    c = row.make()
    y = feasible(row, n, (), seed, dtype)
    noise = torch.randn(y.shape, generator=generator(seed + 2), dtype=torch.float64)
    off = y + 0.3 * noise.to(dtype)
    nearest = c.project(off)
    assert bool(c.check(nearest))
    for other in (y, feasible(row, n, (), seed + 3, dtype)):
        # The slack is the rounding of the two norms.
        assert (off - nearest).norm() <= (off - other).norm() * (1 + 1e-5)
    again = c.project(nearest)
    # A singular value decomposition moves orthonormal columns by some n eps.
    tolerance = 10 * max(row.shape(n)) * torch.finfo(dtype).eps
    assert torch.allclose(again, nearest, rtol=tolerance, atol=tolerance)


@rows
def test_strides_do_not_matter(row):
    c = row.make()
    y = feasible(row, 5, (2,), seed=6)
    view = y.mT.contiguous().mT
    assert not view.is_contiguous()
    static = c.bind(y)
    x = c.right_inverse(y, static)
    # The kernels may take another path for another layout: a few roundings.
    assert torch.allclose(c.right_inverse(view, static), x, rtol=0, atol=1e-13)
    stretched = torch.stack([x, x], -1)[..., 0]
    assert torch.allclose(c.forward(stretched, static), y, rtol=0, atol=1e-13)


@rows
def test_constraints_are_values(row):
    c = row.make()
    assert c == row.make()
    assert hash(c) == hash(row.make())
    assert pickle.loads(pickle.dumps(c)) == c  # noqa: S301
    with pytest.raises(AttributeError):
        c.anything = 1


@rows
def test_wrong_shapes_and_dtypes_raise(row):
    c = row.make()
    for call in (c.check, c.bind, c.right_inverse, c.project, c.violation):
        with pytest.raises(ConstraintError, match="have a shape"):
            call(torch.ones(3))
        with pytest.raises(ConstraintError, match="floating-point"):
            call(torch.ones(3, 3, dtype=torch.int64))
        with pytest.raises(ConstraintError, match="every size at least 1"):
            call(torch.ones(2, 0, 0))
    with pytest.raises(ConstraintError, match="have a shape"):
        c.forward(torch.tensor(1.0))
    with pytest.raises(ConstraintError, match="be a tensor"):
        c.forward([1.0])


def test_the_names_of_the_rows_are_unique():
    assert len({row.name for row in CONSTRAINTS}) == len(CONSTRAINTS)
