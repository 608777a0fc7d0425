"""Gauss-Newton and Fisher products: dense matrices, expectations over labels."""

from __future__ import annotations

import mpmath
import pytest
import torch
from torch.func import grad, jacrev, vmap
from torch.nn import functional as F

import pureopt as po
from pureopt._errors import HyperparameterError
from pureopt._tree import ravel, tree_map, unravel
from tests.derivatives.observers import Largest
from tests.derivatives.products_net import (
    LABELS,
    SAME,
    X,
    dense,
    flat_hessian,
    net,
    params,
    value,
)
from tests.derivatives.row import randn

D = po.derivatives


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
    expected = torch.tensor([0.25, -0.25, 0.0])
    # Two halves: a few roundings, of float32.
    torch.testing.assert_close(D.Categorical()(z, u), expected, rtol=1e-6, atol=0)
    # p (1 - p) = e^-40 / (1 + e^-40)^2, which `p * (1 - p)` rounds to zero.
    far = D.Bernoulli()(torch.tensor([40.0, -40.0]), torch.ones(2))
    expected = torch.full_like(far, float(mpmath.exp(-40)))
    # A few roundings, too.
    torch.testing.assert_close(far, expected, rtol=1e-6, atol=0)


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


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan")])
def test_a_scale_is_positive(scale):
    with pytest.raises(
        HyperparameterError, match=r"Gaussian\(scale=...\)` must be > 0"
    ):
        D.Gaussian(scale)
