"""Products and arrays: closed forms, mpmath, compositions of torch.func, identities."""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import mpmath
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pureopt as po
from pureopt._errors import HyperparameterError
from pureopt._tree import ravel, tree_leaves, tree_map, unravel
from tests.derivatives.row import randn

D = po.derivatives

# Two routes to one number in float64, each with a few hundred roundings of terms of
# size one to a hundred: 1e-10 is what the package promises, 1e-12 what is seen.
SAME = {"rtol": 1e-10, "atol": 1e-11}


def net(p, x):
    """A smooth net without the kernels that torch differentiates wrongly."""
    h = torch.tanh(F.linear(x, p["w1"], p["b1"]))
    return F.softplus(F.linear(h, p["w2"]))


def params(seed=0):
    return OrderedDict(
        w1=randn(4, 3, seed=seed),
        b1=randn(4, seed=seed + 1),
        w2=randn(5, 4, seed=seed + 2),
    )


X = randn(6, 3, seed=10)
MORE = randn(10, 3, seed=4)
LABELS = torch.tensor([0, 3, 1, 4, 2, 2])


def value(p):
    return F.cross_entropy(net(p, X), LABELS)


def dense(f, p):
    """The matrix of a map between trees, column by column."""
    n = ravel(p).numel()
    columns = [ravel(f(unravel(e, p))) for e in torch.eye(n, dtype=torch.float64)]
    return torch.stack(columns, 1)


def flat_hessian(f, p):
    """By torch.func over a vector: no tree takes part."""
    return torch.func.hessian(lambda x: f(unravel(x, p)))(ravel(p))


@pytest.mark.parametrize("product", [D.hvp, D.vhp])
def test_hessian_vector_products_are_columns_of_the_hessian(product):
    p = params()
    matrix = dense(lambda v: product(value, p, v), p)
    torch.testing.assert_close(matrix, flat_hessian(value, p), **SAME)


def test_the_third_order_product_of_a_sum_of_exponentials():
    # f = sum_r exp(a_r . x): T[u, v, .] = sum_r exp(a_r . x) (a_r . u) (a_r . v) a_r.
    a, x, u, v = randn(7, 4, seed=1), *randn(3, 4, seed=2)
    got = D.third_order_product(lambda x: (a @ x).exp().sum(), x, u, v)
    expected = ((a @ x).exp() * (a @ u) * (a @ v)) @ a
    torch.testing.assert_close(got, expected, **SAME)


def test_the_third_order_product_is_the_slope_of_the_hessian_along_trees():
    p, u, v = params(), params(20), params(30)
    got = ravel(D.third_order_product(value, p, u, v))
    slope = jvp(lambda x: flat_hessian(value, unravel(x, p)), (ravel(p),), (ravel(u),))[
        1
    ]
    torch.testing.assert_close(got, slope @ ravel(v), **SAME)


def test_the_third_order_product_is_symmetric_in_its_three_directions():
    p, *w = params(), params(20), params(30), params(40)
    numbers = torch.stack(
        [
            ravel(D.third_order_product(value, p, w[i], w[j])) @ ravel(w[k])
            for i, j, k in [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1, 2, 0)]
        ]
    )
    torch.testing.assert_close(numbers, numbers[:1].expand(4), **SAME)


def normalized(x):
    return F.layer_norm(torch.stack([x, 2 * x, x**2]), (3,))[1]


def test_products_through_layer_norm_are_those_of_mpmath():
    def reference(x):
        h = [x, 2 * x, x * x]
        mean = sum(h) / 3
        variance = sum((a - mean) ** 2 for a in h) / 3
        return (h[1] - mean) / mpmath.sqrt(variance + mpmath.mpf("1e-5"))

    with mpmath.workdps(40):
        x = mpmath.mpf(0.7)
        second, third = (float(mpmath.diff(reference, x, n)) for n in (2, 3))
    x, one = torch.tensor([0.7, 1.0], dtype=torch.float64)
    # torch's own third derivative is 66.6, and `jacrev(jacfwd)` wrong at second order.
    # The sums cancel to the variance, 0.1, whose inverse powers multiply the rounding.
    near = {"rtol": 1e-11, "atol": 1e-11}
    for got, expected in [
        (D.hvp(normalized, x, one), second),
        (D.vhp(normalized, x, one), second),
        (D.hessian(normalized)(x), second),
        (D.hessian_diag(normalized)(x), second),
        (D.third_order_product(normalized, x, one, one), third),
    ]:
        torch.testing.assert_close(got, torch.full_like(got, expected), **near)
    assert abs(third + 1.68768) < 1e-5


def test_a_product_through_attention_is_the_product_of_its_formula():
    x, v = randn(1, 2, 5, 3, seed=1), randn(1, 2, 5, 3, seed=2)

    def kernel(x):
        return F.scaled_dot_product_attention(x, x.sin(), x.cos()).pow(2).sum()

    def formula(x):
        weights = (x @ x.sin().mT / 3**0.5).softmax(-1)
        return (weights @ x.cos()).pow(2).sum()

    expected = D.hvp(formula, x, v)
    torch.testing.assert_close(D.hvp(kernel, x, v), expected, **SAME)
    torch.testing.assert_close(D.vhp(kernel, x, v), expected, **SAME)


def test_vhp_goes_through_the_kernel_of_an_lstm():
    lstm = torch.nn.LSTM(3, 2)
    weights = {k: w.detach() for k, w in lstm.named_parameters()}
    x, v = randn(4, 3, dtype=torch.float32), randn(4, 3, seed=1, dtype=torch.float32)

    def kernel(x):
        return lstm(x)[0].pow(2).sum()

    def unrolled(x):
        w_in, w_state, b_in, b_state = weights.values()
        h = c = x.new_zeros(2)
        total = x.new_zeros(())
        for row in x:
            gates = F.linear(row, w_in, b_in) + F.linear(h, w_state, b_state)
            i, f, g, o = gates.chunk(4)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = o.sigmoid() * c.tanh()
            total = total + h.pow(2).sum()
        return total

    got = D.vhp(kernel, x, v)
    # Float32: a hundred roundings of numbers below one.
    torch.testing.assert_close(got, D.hvp(unrolled, x, v), rtol=1e-4, atol=1e-6)


def test_the_hessian_of_one_number_needs_no_forward_mode_in_any_shape():
    lstm, x = torch.nn.LSTM(3, 2), randn(2, 3, dtype=torch.float32)
    loss = lambda x: lstm(x)[0].pow(2).sum()  # noqa: E731
    expected = D.hessian(loss)(x)
    got = D.hessian(lambda x: {"loss": loss(x).expand(1, 1)})(x)["loss"]
    # Float32: the same formulas, one of them under one more vmap.
    torch.testing.assert_close(got[0, 0], expected, rtol=1e-5, atol=1e-6)


class Pair(NamedTuple):
    first: torch.Tensor
    second: torch.Tensor


@pytest.mark.parametrize(
    "tree",
    [
        randn(3),
        randn(1)[0],
        (randn(2), [randn(1, seed=1)]),
        {"z": randn(2), "a": {"b": randn(1, 2, seed=1)}},
        Pair(randn(2), randn(1, seed=1)[0]),
        OrderedDict(b=randn(2), a=randn(0)),
    ],
    ids=["vector", "number", "tuple", "dict", "namedtuple", "ordered"],
)
def test_results_have_the_structure_of_the_point(tree):
    def f(x):
        return sum((leaf**3).sum() for leaf in tree_leaves(x))

    six = tree_map(lambda leaf: 6 * leaf, tree)
    twos = tree_map(torch.ones_like, tree)
    # One multiplication more or less than the closed form: a few roundings.
    near = {"rtol": 1e-14, "atol": 0}
    for got in (
        D.hvp(f, tree, twos),
        D.vhp(f, tree, twos),
        D.hessian_diag(f)(tree),
        D.hessian_diag_estimate(f, tree, key=po.random.key(0), samples=1).value,
    ):
        assert type(got) is type(tree)
        torch.testing.assert_close(got, six, **near)
    third = D.third_order_product(f, tree, twos, twos)
    torch.testing.assert_close(third, tree_map(lambda leaf: 6 + 0 * leaf, tree), **near)


def test_a_direction_may_have_its_keys_in_another_order():
    x = {"a": randn(2), "b": randn(2, seed=1)}
    v = {"b": randn(2, seed=2), "a": randn(2, seed=3)}
    got = D.hvp(lambda x: (x["a"] ** 2 * x["b"]).sum(), x, v)
    expected = {
        "a": 2 * x["b"] * v["a"] + 2 * x["a"] * v["b"],
        "b": 2 * x["a"] * v["a"],
    }
    assert list(got) == ["a", "b"]
    torch.testing.assert_close(got, expected, **SAME)


POINTWISE = {
    "hvp": lambda f, x, v: D.hvp(lambda x: f(x).sum(), x, v),
    "vhp": lambda f, x, v: D.vhp(lambda x: f(x).sum(), x, v),
    "third": lambda f, x, v: D.third_order_product(lambda x: f(x).sum(), x, v, v),
    "jacobian-rows": lambda f, x, _: D.jacobian(lambda x: f(x)[:2])(x),
    "jacobian-columns": lambda f, x, _: D.jacobian(lambda x: f(x).repeat(2))(x),
    "hessian": lambda f, x, _: D.hessian(lambda x: f(x).sum())(x),
    "hessians": lambda f, x, _: D.hessian(f)(x),
    "diagonal": lambda f, x, _: D.hessian_diag(lambda x: f(x).sum())(x),
    "ggnvp": lambda f, x, v: D.ggnvp(f, lambda z: z.exp().sum(), x, v),
    "fisher": lambda f, x, v: D.fisher_vp(f, x, v, likelihood=D.Poisson()),
    "empirical-fisher": lambda f, x, v: D.empirical_fisher_vp(
        lambda x, s: (s * f(x)).sum(), x, (randn(4, 3, seed=3),), v
    ),
}
pointwise = pytest.mark.parametrize("operator", POINTWISE.values(), ids=POINTWISE)


@pointwise
def test_entries_of_the_point_may_share_memory(operator):
    x, v = randn(1).expand(3), randn(3, seed=1)
    got, expected = (operator(torch.sin, a, v) for a in (x, x.clone()))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pointwise
def test_what_is_detached_is_a_constant(operator):
    x, v = randn(3), randn(3, seed=1)
    constant = x.exp()
    got = operator(lambda y: y.exp().detach() * y.sin(), x, v)
    expected = operator(lambda y: constant * y.sin(), x, v)
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


def outputs(p):
    z = net(p, X[:2])
    return {"last": z[:, -1], "all": (z, z.square().mean())}


# 36 parameters: 13 outputs are fewer, by rows; 50 are more, by columns.
@pytest.mark.parametrize(
    "f",
    [outputs, lambda p: net(p, MORE).reshape(5, 10)],
    ids=["rows", "columns"],
)
@pytest.mark.parametrize("chunk_size", [None, 1, 7, 36, 1000])
def test_the_jacobian_is_that_of_torch_for_every_chunk_size(f, chunk_size):
    p = params()
    got = D.jacobian(f, chunk_size=chunk_size)(p)
    torch.testing.assert_close(got, jacrev(f)(p), **SAME)
    torch.testing.assert_close(got, jacfwd(f)(p), **SAME)


def test_the_jacobian_of_an_empty_output_is_empty():
    assert D.jacobian(lambda x: x[:0])(randn(3)).shape == (0, 3)


@pytest.mark.parametrize("m", [2, 5])
def test_the_derivatives_of_a_constant_are_zero(m):
    x, constant = randn(3), randn(m, seed=1)
    assert torch.equal(D.jacobian(lambda x: constant)(x), constant.new_zeros(m, 3))
    assert torch.equal(D.hessian(lambda x: constant)(x), constant.new_zeros(m, 3, 3))
    assert torch.equal(D.hessian_diag(lambda x: constant.sum())(x), 0 * x)
    assert torch.equal(D.hvp(lambda x: constant.sum(), x, x), 0 * x)
    assert torch.equal(D.vhp(lambda x: constant.sum(), x, x), 0 * x)


def counted(f):
    calls = []

    def counting(x):
        calls.append(x)
        return f(x)

    return counting, calls


@pytest.mark.parametrize(
    ("shape", "f", "evaluations"),
    [
        # By rows the evaluation that gives the size is the one that is differentiated.
        ((5,), lambda x: x[:3].exp(), 1),
        # One column: the size of the output does not matter.
        ((1,), lambda x: x.expand(4).exp(), 1),
        # By columns: one to find the size, one for all columns.
        ((2,), lambda x: x.repeat(3).exp(), 2),
    ],
    ids=["rows", "one-column", "columns"],
)
def test_the_jacobian_evaluates_no_more_often_than_it_must(shape, f, evaluations):
    counting, calls = counted(f)
    D.jacobian(counting)(randn(*shape))
    assert len(calls) == evaluations


def test_arrays_of_leaves_of_several_dtypes_have_the_wider_one():
    x = {"a": randn(2, dtype=torch.float32), "b": randn(1)}

    def f(x):
        return x["a"].sin(), (x["b"] * x["a"]).exp(), x["b"].expand(3).cos()

    for g in (f, lambda x: f(x)[0][:1]):
        got = D.jacobian(g)(x)
        for out, y in zip(
            got if isinstance(got, tuple) else (got,), _tuple(g(x)), strict=True
        ):
            for name, leaf in x.items():
                assert out[name].dtype == torch.promote_types(y.dtype, leaf.dtype)
                assert out[name].shape == y.shape + leaf.shape
    hessian = D.hessian(lambda x: f(x)[1].sum())(x)
    for a, first in x.items():
        for b, second in x.items():
            wider = torch.promote_types(first.dtype, second.dtype)
            assert hessian[a][b].dtype == wider


def _tuple(y):
    return y if isinstance(y, tuple) else (y,)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 36, 1000])
def test_the_hessian_is_that_of_torch_for_every_chunk_size(chunk_size):
    p = params()
    got = D.hessian(value, chunk_size=chunk_size)(p)
    torch.testing.assert_close(got, torch.func.hessian(value)(p), **SAME)


@pytest.mark.parametrize("chunk_size", [None, 7])
def test_the_hessian_of_many_outputs_is_that_of_torch(chunk_size):
    p = params()
    got = D.hessian(outputs, chunk_size=chunk_size)(p)
    torch.testing.assert_close(got, torch.func.hessian(outputs)(p), **SAME)


def test_a_hessian_of_a_hessian_is_the_fourth_derivative():
    x, a = randn(2), randn(3, 2, seed=1)
    got = D.hessian(D.hessian(lambda x: (a @ x).exp().sum()))(x)
    expected = torch.einsum("r,ri,rj,rk,rl->ijkl", (a @ x).exp(), a, a, a, a)
    torch.testing.assert_close(got, expected, **SAME)


def test_per_sample_hessians_are_a_vmap():
    points = randn(5, 3)
    a = randn(4, 3, seed=1)
    got = vmap(D.hessian(lambda x: (a @ x).cos().sum()))(points)
    expected = torch.einsum("br,ri,rj->bij", -(points @ a.mT).cos(), a, a)
    torch.testing.assert_close(got, expected, **SAME)


@pytest.mark.parametrize("chunk_size", [None, 1, 7, 36, 1000])
def test_the_exact_diagonal_is_that_of_the_hessian_for_every_chunk_size(chunk_size):
    p = params()
    got = ravel(D.hessian_diag(value, chunk_size=chunk_size)(p))
    torch.testing.assert_close(got, flat_hessian(value, p).diagonal(), **SAME)


def test_a_nan_in_the_diagonal_stays_in_its_entry():
    x = torch.tensor([0.0, 3.0, -1.0], dtype=torch.float64)
    got = D.hessian_diag(lambda x: x[0].sqrt() + x[1] ** 3 + x[2] ** 2)(x)
    assert not got[0].isfinite()
    torch.testing.assert_close(got[1:], got.new_tensor([18.0, 2.0]), **SAME)


class Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that is made."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return out


def test_the_diagonal_needs_memory_for_a_chunk_of_columns():
    p, chunk_size = 120, 5
    with Largest() as largest:
        D.hessian_diag(lambda x: (x.sin() * x.roll(1)).sum(), chunk_size=chunk_size)(
            randn(p)
        )
    # The comparison that makes unit vectors, the rows, and nothing larger.
    assert largest.numel == chunk_size * p


def quadratic(seed=5, n=6):
    a = randn(n, n, seed=seed)
    return a + a.mT


def test_the_estimated_diagonal_is_unbiased_with_the_error_it_tells():
    h = quadratic()
    samples, lanes = 8, 4000
    keys = po.random.split(po.random.key(3), lanes)

    def estimate(key):
        return D.hessian_diag_estimate(
            lambda x: x @ h @ x / 2, h.new_zeros(6), key=key, samples=samples
        )

    value, stderr = vmap(estimate)(keys)
    variance = (h.square().sum(1) - h.diagonal().square()) / samples
    # The mean over lanes is normal with this deviation: 5 of them, 6 entries.
    off = (value.mean(0) - h.diagonal()).abs() / (variance / lanes).sqrt()
    assert off.max() < 5
    # The squared errors that are told are unbiased too; their own deviation is about
    # variance * sqrt(2 / (samples - 1) / lanes) = 1.2 % or less: signs have light tails.
    torch.testing.assert_close(stderr.square().mean(0), variance, rtol=0.06, atol=0)


def test_the_estimate_is_exact_where_the_hessian_is_diagonal():
    x = randn(4)
    estimate = D.hessian_diag_estimate(
        lambda x: (x**4).sum(), x, key=po.random.key(0), samples=3
    )
    torch.testing.assert_close(estimate.value, 12 * x**2, **SAME)
    # Rounding of three equal numbers.
    assert estimate.stderr.abs().max() < 1e-14


@pytest.mark.parametrize("chunk_size", [1, 2, 5, 100])
def test_the_estimate_does_not_depend_on_the_chunk_size(chunk_size):
    p, key = params(), po.random.key(1)
    expected = D.hessian_diag_estimate(value, p, key=key, samples=5)
    got = D.hessian_diag_estimate(value, p, key=key, samples=5, chunk_size=chunk_size)
    torch.testing.assert_close(got, expected, **SAME)


def test_the_error_of_a_single_sample_is_unknown():
    estimate = D.hessian_diag_estimate(value, params(), key=po.random.key(1), samples=1)
    assert all(leaf.isnan().all() for leaf in tree_leaves(estimate.stderr))
    assert all(leaf.isfinite().all() for leaf in tree_leaves(estimate.value))


# --- Gauss-Newton and Fisher


def jacobian_matrix(p):
    """Outputs by parameters, by torch.func over a vector."""
    return jacrev(lambda x: net(unravel(x, p), X).reshape(-1))(ravel(p))


def test_the_gauss_newton_product_is_the_sandwich_of_dense_matrices():
    p = params()
    loss = lambda z: F.cross_entropy(z, LABELS)  # noqa: E731
    j, z = jacobian_matrix(p), net(p, X)
    h = torch.func.hessian(lambda y: loss(y.reshape(6, 5)))(z.reshape(-1))
    got = dense(lambda v: D.ggnvp(lambda p: net(p, X), loss, p, v), p)
    torch.testing.assert_close(got, j.mT @ h @ j, **SAME)
    torch.testing.assert_close(got, got.mT, **SAME)
    # Cross entropy is convex: semidefinite, up to rounding of the largest eigenvalue.
    spectrum = torch.linalg.eigvalsh(got)
    assert spectrum[0] > -1e-13 * spectrum[-1]
    # Not so the Hessian, which the matrix is not.
    assert torch.linalg.eigvalsh(flat_hessian(value, p))[0] < -1e-3


def test_for_a_linear_model_the_gauss_newton_matrix_is_the_hessian():
    w, v = randn(5, 3), randn(5, 3, seed=1)
    model = lambda w: {"logits": X @ w.mT, "sum": w.sum()}  # noqa: E731
    loss = lambda z: F.cross_entropy(z["logits"], LABELS) + z["sum"].cos()  # noqa: E731
    got = D.ggnvp(model, loss, w, v)
    torch.testing.assert_close(got, D.hvp(lambda w: loss(model(w)), w, v), **SAME)


def test_a_model_that_draws_random_numbers_has_one_jacobian():
    x, v = randn(50), randn(50, seed=1)
    product = {
        "ggnvp": lambda: D.ggnvp(F.dropout, lambda z: z.square().sum() / 2, x, v),
        "fisher": lambda: 50 * D.fisher_vp(F.dropout, x, v, likelihood=D.Gaussian()),
    }
    for each in product.values():
        # Half of the entries twice, in both of the Jacobian and its transpose. Of two
        # draws only a quarter of the entries would be left, of 50 hardly a half.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            got = each()
            torch.manual_seed(0)
            kept = F.dropout(torch.ones_like(x))
        torch.testing.assert_close(got, kept.square() * v, **SAME)


@pytest.mark.parametrize("name", ["ggnvp", "fisher"])
def test_the_model_of_a_sandwich_is_evaluated_once(name):
    counting, calls = counted(torch.sin)
    POINTWISE[name](counting, randn(3), randn(3, seed=1))
    assert len(calls) == 1


COUNTS = torch.tensor([0.0, 1.0, 4.0, 2.0, 0.0, 7.0], dtype=torch.float64)[:, None]
SCALE = randn(5, seed=8).exp()


@pytest.mark.parametrize(
    ("likelihood", "nll"),
    [
        (D.Categorical(), lambda z: F.cross_entropy(z, LABELS, reduction="sum")),
        (
            D.Bernoulli(),
            lambda z: F.binary_cross_entropy_with_logits(
                z, (COUNTS.expand(6, 5) > 1).double(), reduction="sum"
            ),
        ),
        (D.Poisson(), lambda z: (z.exp() - COUNTS * z).sum()),
        (D.Gaussian(), lambda z: (z - COUNTS).square().sum() / 2),
        (D.Gaussian(SCALE), lambda z: ((z - COUNTS) / SCALE).square().sum() / 2),
    ],
    ids=["categorical", "bernoulli", "poisson", "gaussian", "scaled-gaussian"],
)
def test_fisher_is_gauss_newton_of_the_mean_negative_log_likelihood(likelihood, nll):
    p, v = params(), params(20)
    model = lambda p: net(p, X)  # noqa: E731
    got = D.fisher_vp(model, p, v, likelihood=likelihood)
    expected = D.ggnvp(model, lambda z: nll(z) / 6, p, v)
    torch.testing.assert_close(got, expected, **SAME)


def scores(model, log_prob, p, v, labels, weights):
    """The expectation of the empirical Fisher product over labels, sample by sample.

    ``weights(z)``: the probabilities of ``labels``, along the first dimension.
    """

    def loss(p, x, y):
        return -log_prob(model(p, x), y).sum()

    total = tree_map(torch.zeros_like, p)
    for x in X:
        each = vmap(
            lambda y, x=x: D.empirical_fisher_vp(loss, p, (x[None], y[None]), v)
        )
        w = weights(model(p, x))
        total = tree_map(
            lambda t, e, w=w: t + torch.tensordot(w, e, 1) / len(X), total, each(labels)
        )
    return total


def one_output(p, x):
    return net(p, x)[:1]


def nodes(n):
    return torch.arange(n, dtype=torch.float64)[:, None]


def test_fisher_of_classes_is_the_expected_empirical_fisher_over_all_labels():
    p, v = params(), params(20)
    expected = scores(
        net,
        lambda z, y: z.log_softmax(-1).gather(-1, y),
        p, v, torch.arange(5)[:, None], lambda z: z.softmax(-1),
    )  # fmt: skip
    got = D.fisher_vp(lambda p: net(p, X), p, v, likelihood=D.Categorical())
    torch.testing.assert_close(got, expected, **SAME)


@pytest.mark.parametrize(
    ("likelihood", "log_prob", "labels", "weights"),
    [
        (
            D.Bernoulli(),
            lambda z, y: y * F.logsigmoid(z) + (1 - y) * F.logsigmoid(-z),
            nodes(2),
            lambda z: torch.cat([(-z).sigmoid(), z.sigmoid()]),
        ),
        # Rates are below e^3: what lies beyond 80 counts is below 1e-20.
        (
            D.Poisson(),
            lambda z, y: y * z - z.exp(),
            nodes(80),
            lambda z: (nodes(80)[:, 0] * z - z.exp() - nodes(81)[1:, 0].lgamma()).exp(),
        ),
    ],
    ids=["bernoulli", "poisson"],
)
def test_fisher_is_the_expected_empirical_fisher_over_labels(
    likelihood, log_prob, labels, weights
):
    p, v = params(), params(20)
    expected = scores(one_output, log_prob, p, v, labels, weights)
    got = D.fisher_vp(lambda p: net(p, X)[:, :1], p, v, likelihood=likelihood)
    torch.testing.assert_close(got, expected, **SAME)


def test_fisher_of_normal_numbers_is_the_expected_empirical_fisher():
    # The square of the score is quadratic in the label: two nodes, one deviation to
    # either side of the mean, integrate it exactly.
    p, v, scale = params(), params(20), 0.3
    model = lambda p: net(p, X)[:, :1]  # noqa: E731
    means = model(p)

    def loss(p, x, y):
        return ((one_output(p, x) - y) / scale).square().sum() / 2

    low, high = (
        D.empirical_fisher_vp(loss, p, (X, means + sign * scale), v) for sign in (-1, 1)
    )
    expected = tree_map(lambda a, b: (a + b) / 2, low, high)
    got = D.fisher_vp(model, p, v, likelihood=D.Gaussian(scale))
    torch.testing.assert_close(got, expected, **SAME)


def test_fisher_takes_any_likelihood_over_a_tree_of_outputs():
    p, v = params(), params(20)

    def model(p):
        z = net(p, X)
        return {"class": z[:, :3], "count": z[:, 3]}

    def likelihood(z, u):
        return {
            "count": D.Poisson()(z["count"], u["count"]),
            "class": D.Categorical()(z["class"], u["class"]),
        }

    parts = [
        D.fisher_vp(lambda p: model(p)["class"], p, v, likelihood=D.Categorical()),
        D.fisher_vp(lambda p: model(p)["count"], p, v, likelihood=D.Poisson()),
    ]
    got = D.fisher_vp(model, p, v, likelihood=likelihood)
    torch.testing.assert_close(got, tree_map(torch.add, *parts), **SAME)


def test_fisher_sums_over_positions_and_averages_over_the_batch():
    w, v = randn(4, 3), randn(4, 3, seed=1)
    x = randn(2, 7, 3, seed=2)
    per_sample = D.fisher_vp(lambda w: x @ w.mT, w, v, likelihood=D.Categorical())
    flat = x.reshape(14, 3)
    per_position = D.fisher_vp(lambda w: flat @ w.mT, w, v, likelihood=D.Categorical())
    torch.testing.assert_close(per_sample, 7 * per_position, **SAME)


def test_an_excluded_class_and_a_certain_event_keep_the_products_accurate():
    z = torch.tensor([0.0, 0.0, -torch.inf])
    u = torch.tensor([1.0, 0.0, 5.0])
    torch.testing.assert_close(D.Categorical()(z, u), torch.tensor([0.25, -0.25, 0.0]))
    # p (1 - p) = e^-40 / (1 + e^-40)^2, which `p * (1 - p)` rounds to zero.
    far = D.Bernoulli()(torch.tensor([40.0, -40.0]), torch.ones(2))
    expected = float(mpmath.exp(-40))
    torch.testing.assert_close(far, torch.full_like(far, expected), rtol=1e-5, atol=0)


def sample_loss(p, x, y):
    return F.cross_entropy(net(p, x), y)


def test_the_empirical_fisher_product_is_that_of_stacked_gradients():
    p, v = params(), params(20)
    gradients = vmap(grad(sample_loss), (None, 0, 0))(p, X, LABELS)
    g = vmap(ravel)(gradients)
    got = D.empirical_fisher_vp(sample_loss, p, (X, LABELS), v)
    torch.testing.assert_close(ravel(got), g.mT @ (g @ ravel(v)) / 6, **SAME)


def test_the_empirical_fisher_product_holds_no_gradient_of_each_sample():
    w, v, x = randn(30, 40), randn(30, 40, seed=1), randn(50, 40, seed=2)
    with Largest() as largest:
        D.empirical_fisher_vp(lambda w, x: (w @ x).tanh().sum(), w, (x,), v)
    # Outputs are 50 x 30, inputs 50 x 40, the weight 30 x 40; gradients 50 x 1200.
    assert largest.numel == 50 * 40


def test_a_batch_of_trees_is_mapped_leaf_by_leaf():
    p, v = params(), params(20)
    expected = D.empirical_fisher_vp(sample_loss, p, (X, LABELS), v)
    got = D.empirical_fisher_vp(
        lambda p, s: sample_loss(p, s["x"], s["y"]), p, ({"x": X, "y": LABELS},), v
    )
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@pytest.mark.parametrize("operator", [D.jacobian, D.hessian, D.hessian_diag])
@pytest.mark.parametrize("chunk_size", [0, -1, 2.0, True, torch.tensor(3)])
def test_a_chunk_size_is_a_positive_integer(operator, chunk_size):
    with pytest.raises(HyperparameterError, match=r"chunk_size=.*positive integer"):
        operator(value, chunk_size=chunk_size)


@pytest.mark.parametrize("samples", [0, 1.5, None])
def test_samples_are_a_positive_integer(samples):
    with pytest.raises(HyperparameterError, match=r"samples=.*positive integer"):
        D.hessian_diag_estimate(value, params(), key=po.random.key(0), samples=samples)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_is_positive(scale):
    with pytest.raises(
        HyperparameterError, match=r"Gaussian\(scale=...\)` must be > 0"
    ):
        D.Gaussian(scale)
