"""KFAC's blocks against dense Fisher matrices, where they are equal."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.func import grad, vmap
from torch.nn import functional as F

import pureopt as po
from pureopt import DerivativeError, HyperparameterError, TreeError
from pureopt._tree import ravel, unravel
from tests.derivatives.row import randn

D = po.derivatives
KEY = po.random.key(5)
GAUSSIAN = D.Gaussian(0.5)

# Sums of some hundred products of numbers near one, in float64.
CLOSE = {"rtol": 1e-10, "atol": 1e-11}


def dense(matvec, like):
    """The matrix of an operator on a tree."""
    eye = torch.eye(ravel(like).numel(), dtype=torch.float64)
    return vmap(lambda v: ravel(matvec(unravel(v, like))))(eye)


def fisher(model, params, batch, likelihood):
    """The dense Fisher matrix."""

    def outputs(p):
        return vmap(model, (None, *[0] * len(batch)))(p, *batch)

    return dense(
        lambda v: D.fisher_vp(outputs, params, v, likelihood=likelihood), params
    )


def blocks_of(matrix, params):
    """The diagonal blocks of the leaves."""
    ends = [0, *itertools.accumulate(leaf.numel() for leaf in params.values())]
    return [matrix[i:j, i:j] for i, j in itertools.pairwise(ends)]


def assert_blocks_equal(curvature, matrix, params):
    approximate = dense(curvature.matvec, params)
    mine, true = (blocks_of(m, params) for m in (approximate, matrix))
    for a, b in zip(mine, true, strict=True):
        assert b.abs().max() > 1e-6
        torch.testing.assert_close(a, b, **CLOSE)
    # And nothing else: the leaves are uncoupled.
    rest = approximate - torch.block_diag(*mine)
    assert (rest == 0).all()


def mlp(params, x):
    h = F.linear(x, params["w1"], params["b1"]).tanh()
    return F.layer_norm(h, (5,), params["s"]) @ params["w2"] + params["b2"]


MLP = {
    "w1": randn(5, 3, seed=1),
    "b1": randn(5, seed=2),
    "s": randn(5, seed=3),
    "w2": randn(5, 4, seed=4),
    "b2": randn(4, seed=5),
}
LIKELIHOODS = {
    "categorical": D.Categorical(),
    "bernoulli": D.Bernoulli(),
    "gaussian": GAUSSIAN,
    "poisson": D.Poisson(),
}
all_likelihoods = pytest.mark.parametrize(
    "likelihood", list(LIKELIHOODS.values()), ids=list(LIKELIHOODS)
)


@all_likelihoods
def test_the_blocks_of_one_sample_are_those_of_the_fisher_matrix(likelihood):
    batch = (randn(1, 3),)
    curvature = D.kfac(mlp, MLP, batch, likelihood=likelihood)
    assert_blocks_equal(curvature, fisher(mlp, MLP, batch, likelihood), MLP)


@pytest.mark.parametrize("samples", [1, 9])
def test_a_deep_linear_network_with_normal_noise_is_exact(samples):
    params = {k: randn(4, 4, seed=i) for i, k in enumerate("abc")}
    batch = (randn(samples, 4, seed=7),)

    def model(p, x):
        return F.linear(F.linear(F.linear(x, p["a"]), p["b"]), p["c"])

    curvature = D.kfac(model, params, batch, likelihood=GAUSSIAN)
    assert_blocks_equal(curvature, fisher(model, params, batch, GAUSSIAN), params)


@all_likelihoods
def test_the_blocks_of_biases_and_scales_are_exact_for_any_batch(likelihood):
    batch = (randn(6, 3),)
    curvature = D.kfac(mlp, MLP, batch, likelihood=likelihood)
    true = blocks_of(fisher(mlp, MLP, batch, likelihood), MLP)
    mine = blocks_of(dense(curvature.matvec, MLP), MLP)
    for name, a, b in zip(MLP, mine, true, strict=True):
        # The last layer is linear: exact, too, where its outputs have one Fisher matrix.
        exact = {"b1", "s", "b2"} | ({"w2"} if likelihood is GAUSSIAN else set())
        assert torch.allclose(a, b, **CLOSE) == (name in exact), name


def test_the_traces_of_uncorrelated_factors_agree():
    # For a bias-free linear layer the trace of a product of means is no mean of products:
    # only where all inputs have one length they agree.
    x = F.normalize(randn(6, 3), dim=-1)
    params = {"w": randn(2, 3, seed=1)}

    def model(p, x):
        return F.linear(x, p["w"])

    curvature = D.kfac(model, params, (x,), likelihood=D.Categorical())
    true = fisher(model, params, (x,), D.Categorical())
    torch.testing.assert_close(curvature.trace(), true.trace(), **CLOSE)


@pytest.mark.parametrize("groups", [1, 2])
def test_expand_is_exact_for_a_linear_model_at_every_position(groups):
    params = {"w": randn(4, 6 // groups, 3, seed=1)}
    batch = (randn(5, 6, 9),)

    def model(p, x):
        return F.conv1d(x, p["w"], stride=2, padding=1, groups=groups)

    curvature = D.kfac(model, params, batch, likelihood=GAUSSIAN, sharing="expand")
    assert_blocks_equal(curvature, fisher(model, params, batch, GAUSSIAN), params)


def test_reduce_is_exact_for_the_mean_of_a_linear_model_over_positions():
    params = {"w": randn(4, 6, seed=1)}
    batch = (randn(5, 7, 6),)

    def model(p, x):
        return F.linear(x, p["w"]).mean(0)

    matrix = fisher(model, params, batch, GAUSSIAN)
    curvature = D.kfac(model, params, batch, likelihood=GAUSSIAN, sharing="reduce")
    assert_blocks_equal(curvature, matrix, params)
    other = D.kfac(model, params, batch, likelihood=GAUSSIAN, sharing="expand")
    assert not torch.allclose(dense(other.matvec, params), matrix, rtol=0.1)


def test_expand_is_exact_for_images():
    params = {"w": randn(4, 3, 3, 2, seed=1)}
    batch = (randn(2, 6, 5, 6),)

    def model(p, x):
        layout = {"stride": (2, 1), "padding": 1, "dilation": (1, 2), "groups": 2}
        return F.conv2d(x, p["w"], **layout)

    curvature = D.kfac(model, params, batch, likelihood=GAUSSIAN)
    assert_blocks_equal(curvature, fisher(model, params, batch, GAUSSIAN), params)


def test_an_embedding_has_rows():
    params = {"e": randn(5, 3, seed=1), "w": randn(2, 3, seed=2)}
    batch = (torch.tensor([3]),)

    def model(p, i):
        return F.linear(F.embedding(i, p["e"]), p["w"])

    curvature = D.kfac(model, params, batch, likelihood=GAUSSIAN)
    assert_blocks_equal(curvature, fisher(model, params, batch, GAUSSIAN), params)


def test_a_transposed_use_is_the_same_block():
    batch = (randn(6, 3),)
    a, b = randn(4, 3, seed=1), randn(4, 3, seed=1).mT.contiguous()
    straight, turned = (
        D.kfac(model, w, batch, likelihood=GAUSSIAN).blocks
        for model, w in ((lambda w, x: F.linear(x, w), a), (lambda w, x: x @ w, b))
    )
    scale = straight.left.diagonal(dim1=-2, dim2=-1).sum()
    other = turned.right.diagonal(dim1=-2, dim2=-1).sum()
    torch.testing.assert_close(straight.left / scale, turned.right / other, **CLOSE)
    product = straight.left[0, 0, 0] * straight.right
    torch.testing.assert_close(product, turned.left * turned.right[0, 0, 0], **CLOSE)


def cross_entropy(params, x, y):
    return F.cross_entropy(mlp(params, x), y)


def test_one_sample_is_the_outer_product_of_its_gradient():
    batch = (randn(1, 3), torch.tensor([2]))
    curvature = D.kfac_empirical(cross_entropy, MLP, batch)
    g = ravel(grad(cross_entropy)(MLP, batch[0][0], batch[1][0]))
    assert_blocks_equal(curvature, torch.outer(g, g), MLP)


def test_the_fisher_factor_is_the_expectation_over_labels_of_the_empirical_one():
    x = randn(6, 3)
    curvature = D.kfac(mlp, MLP, (x,), likelihood=D.Categorical())
    p = vmap(mlp, (None, 0))(MLP, x).softmax(-1)
    expected = torch.zeros_like(curvature.blocks["w1"].left)
    for i, y in itertools.product(range(6), range(4)):
        sample = (x[i : i + 1], torch.tensor([y]))
        one = D.kfac_empirical(cross_entropy, MLP, sample).blocks["w1"]
        expected = expected + p[i, y] * one.left / 6
    torch.testing.assert_close(curvature.blocks["w1"].left, expected, **CLOSE)
    torch.testing.assert_close(curvature.blocks["w1"].right[0], x.mT @ x / 6, **CLOSE)


def test_the_loss_of_the_gauss_newton_matrix_may_be_any():
    y = randn(6, 4, seed=9)
    batch = (randn(6, 3),)

    def loss(z):
        return ((z - y).square() + (z - y) ** 4).sum()

    def curvature_of_loss(z, u):
        return D.hvp(loss, z, u)

    one = D.kfac(mlp, MLP, batch, likelihood=curvature_of_loss)

    def outputs(p):
        return vmap(mlp, (None, 0))(p, *batch)

    matrix = dense(lambda v: D.ggnvp(outputs, loss, MLP, v), MLP) / 6
    mine, true = (blocks_of(m, MLP)[-1] for m in (dense(one.matvec, MLP), matrix))
    torch.testing.assert_close(mine, true, **CLOSE)


def test_sampled_blocks_are_unbiased():
    batch = (randn(4, 3),)
    settings = {"likelihood": D.Categorical()}
    exact = dense(D.kfac(mlp, MLP, batch, **settings).matvec, MLP)

    def one(key):
        curvature = D.kfac_sampled(mlp, MLP, batch, key=key, samples=2, **settings)
        return dense(curvature.matvec, MLP)

    many = vmap(one)(po.random.split(KEY, 1000))
    # Five standard errors at a thousand numbers, of which some fifty are independent; the
    # couplings of the leaves are 0 in both.
    slack = 5 * many.std(0) / math.sqrt(1000) + 1e-12
    assert ((many.mean(0) - exact).abs() <= slack).all()
    assert (many.std(0).diagonal() > 0).all()


@pytest.mark.parametrize("chunk_size", [1, 3, 10])
def test_chunks_do_not_change_the_blocks(chunk_size):
    batch = (randn(4, 3),)
    settings = {"likelihood": D.Poisson()}
    for operator, more in ((D.kfac, {}), (D.kfac_sampled, {"key": KEY, "samples": 5})):
        whole = operator(mlp, MLP, batch, **settings, **more)
        parts = operator(mlp, MLP, batch, chunk_size=chunk_size, **settings, **more)
        torch.testing.assert_close(parts.blocks, whole.blocks, **CLOSE)


def test_the_blocks_are_a_matrix():
    batch = (randn(6, 3),)
    curvature = D.kfac(mlp, MLP, batch, likelihood=D.Categorical())
    matrix = dense(curvature.matvec, MLP)
    # Lengths of fifty, as everywhere: products of the numbers above.
    torch.testing.assert_close(matrix, matrix.mT, **CLOSE)
    values = np.linalg.eigvalsh(matrix.numpy())
    assert values.min() > -1e-12
    torch.testing.assert_close(curvature.trace(), matrix.trace(), **CLOSE)
    damped = matrix + 0.1 * torch.eye(len(matrix), dtype=torch.float64)
    log_det = np.linalg.slogdet(damped.numpy())[1]
    assert abs(curvature.log_determinant(damping=0.1) - log_det) < 1e-9
    v = unravel(randn(len(matrix)), MLP)
    solved = np.linalg.solve(damped.numpy(), ravel(v).numpy())
    # The condition number is below 1e3.
    torch.testing.assert_close(
        ravel(curvature.solve(v, damping=torch.tensor(0.1).double())),
        torch.from_numpy(solved),
        rtol=1e-5,  # 0.1 in float32 is no closer to 0.1
        atol=1e-6,
    )
    top = D.top_eigenpairs(curvature.matvec, MLP, 3, key=KEY).values
    torch.testing.assert_close(top, torch.tensor(values[:-4:-1].copy()), **CLOSE)
    singular = D.kfac(mlp, MLP, (randn(1, 3),), likelihood=D.Categorical())
    assert singular.log_determinant(damping=0.0) < -300


def test_a_parameter_without_use_has_a_zero_block():
    params = {
        "w": randn(2, 3),
        "unused": randn(4, 5, 2),
        "b": randn(3),
        "empty": torch.zeros(0, 3, dtype=torch.float64),
    }

    def model(p, x):
        return F.linear(x, p["w"])

    curvature = D.kfac(model, params, (randn(2, 3, seed=1),), likelihood=GAUSSIAN)
    out = curvature.matvec(params)
    assert out["unused"].shape == (4, 5, 2)
    assert out["empty"].shape == (0, 3)
    assert (out["unused"] == 0).all()
    assert (out["b"] == 0).all()
    assert (out["w"] != 0).any()


def test_half_precision_has_factors_in_float32():
    params = {k: v.bfloat16() for k, v in MLP.items()}
    batch = (randn(4, 3).bfloat16(),)
    curvature = D.kfac(mlp, params, batch, likelihood=D.Categorical())
    assert curvature.blocks["w1"].left.dtype == torch.float32
    v = curvature.matvec(params)
    assert v["w1"].dtype == torch.bfloat16
    true = D.kfac(mlp, MLP, (randn(4, 3),), likelihood=D.Categorical()).trace()
    assert abs(curvature.trace() / true - 1) < 0.1  # 8 bits, through five operations


@pytest.mark.parametrize(
    "model",
    [
        lambda p, i: F.linear(F.embedding(i, p["e"]), p["e"]),
        lambda p, i: F.embedding(i, p["e"]) @ p["e"].mT,
        lambda p, i: p["e"] @ (torch.ones(5).double() @ p["e"]) + i,
    ],
    ids=["embedding and linear", "embedding and product", "both sides"],
)
def test_a_leaf_that_is_used_both_ways_has_no_block(model):
    params, batch = {"e": randn(5, 3)}, (torch.tensor([3, 1]),)
    with pytest.raises(DerivativeError, match=r"got one that is used both ways, 'e'"):
        D.kfac(model, params, batch, likelihood=D.Categorical())


def test_what_kfac_cannot_do_is_told():
    w, x = randn(2, 3), randn(4, 3)

    def model(p, x):
        return F.linear(x, p["w"])

    def squared(p, x):
        return F.linear(x, p["w"] * p["w"])

    params, settings = {"w": w}, {"likelihood": GAUSSIAN}
    with pytest.raises(DerivativeError, match=r"kfac\(model=.* got `int`"):
        D.kfac(3, params, (x,), **settings)
    with pytest.raises(DerivativeError, match=r"kfac_empirical\(loss=.* got `int`"):
        D.kfac_empirical(3, params, (x,))
    with pytest.raises(DerivativeError, match=r"kfac\(model=.*use `Bernoulli"):
        D.kfac(lambda w, x: w @ x, w[0], (x,), likelihood=D.Categorical())
    with pytest.raises(
        DerivativeError, match=r"whose uses have a rule.* 'w'.*Rules are"
    ):
        D.kfac(squared, params, (x,), **settings)
    with pytest.raises(
        DerivativeError, match=r"`kfac_empirical\(loss=...\)`.*scalar|0-d"
    ):
        D.kfac_empirical(model, params, (x,))
    with pytest.raises(
        TreeError, match=r"`kfac\(batch=...\)` must be a tuple.*`\(x,\)`"
    ):
        D.kfac(model, params, x, **settings)
    with pytest.raises(
        HyperparameterError, match=r"must be 'expand' or 'reduce', got "
    ):
        D.kfac(model, params, (x,), sharing="sum", **settings)
    with pytest.raises(HyperparameterError, match=r"samples=...\)` must be a positive"):
        D.kfac_sampled(model, params, (x,), key=KEY, samples=0, **settings)
    curvature = D.kfac(model, params, (x,), **settings)
    with pytest.raises(
        TreeError, match=r"`Kronecker.matvec\(v=...\)` must be.* other key"
    ):
        curvature.matvec({"u": w})
    with pytest.raises(TreeError, match=r"of 2 rows by 3 there, got .* at 'w'"):
        curvature.solve({"w": w[:1]}, damping=1.0)
    with pytest.raises(TreeError, match=r"of 2 rows by 3 there, got .* shape \(3, 2\)"):
        curvature.matvec({"w": w.mT})
    with pytest.raises(HyperparameterError, match=r"must be finite and >= 0, got -1.0"):
        curvature.solve(params, damping=-1.0)
    with pytest.raises(HyperparameterError, match=r"must be finite and >= 0, got nan"):
        curvature.log_determinant(damping=math.nan)
