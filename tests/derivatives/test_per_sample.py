"""Per-sample quantities against ``vmap(grad)``, architecture by architecture."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import pureopt as po
from pureopt._tree import tree_leaves, tree_map, tree_paths
from pureopt.derivatives._per_sample._record import record
from tests.derivatives.per_sample_case import B, Case, check, close, reference
from tests.derivatives.per_sample_cases import CASES
from tests.derivatives.per_sample_cases_modules import mlp
from tests.derivatives.row import randn

D = po.derivatives
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def attention_that_vmap_knows():
    # torch's fused attention on the CPU warns that it is slow under vmap.
    with sdpa_kernel(SDPBackend.MATH):
        yield


@cases
def test_every_quantity_is_that_of_vmap_of_grad(make):
    check(make())


@cases
def test_only_the_leaves_with_other_uses_have_no_rule(make):
    case = make()
    opaque = record("test", case.loss, case.params, case.batch).opaque
    paths = tree_paths(case.params)
    got = {path for path, hidden in zip(paths, opaque, strict=True) if hidden}
    assert got == case.opaque


# Of the autoencoder a leaf is unused: no signal and no noise.
@pytest.mark.parametrize("name", ["cnn", "tied-embedding", "lstm-cell", "weight-decay",
                                  "tied-autoencoder"])  # fmt: skip
def test_the_signal_to_noise_ratio_is_that_of_vmap_of_grad(name):
    case = CASES[name]()
    ratios = tree_leaves(D.gsnr(case.loss)(case.params, *case.batch))
    for got, leaf in zip(ratios, reference(case), strict=True):
        signal, variance = leaf.mean(0).square(), leaf.var(0)
        zero = (signal == 0) & (variance == 0)
        assert (got.reshape(-1)[zero] == 0).all()
        # The variance's error is relative to the mean square: compare what is divided.
        close(
            got.reshape(-1)[~zero] * variance[~zero],
            signal[~zero],
            leaf.square().mean(0).max() * (1 + got.max()),
        )


@pytest.mark.parametrize("chunk_size", [1, 2, 7, None])
def test_the_gradients_do_not_depend_on_the_chunk(chunk_size):
    case = mlp()
    grads = D.per_sample_grads(case.loss, chunk_size=chunk_size)
    for got, want in zip(
        tree_leaves(grads(case.params, *case.batch)), reference(case), strict=True
    ):
        close(got.reshape(B, -1), want)


@pytest.mark.parametrize("name", ["mlp", "tied-embedding", "weight-decay", "physics"])
def test_one_sample_has_a_norm_and_a_gram_matrix(name):
    case = CASES[name]()
    case.batch = tree_map(lambda leaf: leaf[:1], case.batch)
    g = torch.cat(reference(case), 1)
    args = case.params, *case.batch
    close(D.per_sample_grad_norms(case.loss)(*args), g.norm(dim=1))
    close(D.grad_gram(case.loss)(*args), g @ g.mT)
    close(D.gradient_diversity(case.loss)(*args), torch.tensor(1.0).double())


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied-embedding", "weight-decay"])
def test_a_penalty_on_the_norms_has_the_gradient_that_vmap_of_grad_gives(name):
    case = CASES[name]()

    def penalty(p):
        return D.per_sample_grad_norms(case.loss)(p, *case.batch).sum()

    def want(p):
        rows = reference(Case(case.loss, p, *case.batch))
        return torch.cat(rows, 1).square().sum(1).sqrt().sum()

    direction = tree_map(torch.cos, case.params)
    leaves = zip(
        tree_leaves(grad(penalty)(case.params)),
        tree_leaves(grad(want)(case.params)),
        strict=True,
    )
    for got, expected in leaves:
        close(got, expected, max(expected.abs().max(), torch.tensor(1.0)))
    forward = jvp(penalty, (case.params,), (direction,))[1]
    close(forward, jvp(want, (case.params,), (direction,))[1])


def test_a_gradient_that_is_zero_has_norm_zero_with_derivative_zero():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    norms = D.per_sample_grad_norms(lambda w, x: (x @ w).square())
    w = torch.ones(2)
    assert norms(w, x)[0] == 0
    slope = grad(lambda w: norms(w, x).sum())(w)
    # |g| = 2 (x.w) |x|, whose gradient is 2 |x| x; some ten roundings of float32.
    torch.testing.assert_close(slope, 2 * 5**0.5 * x[1], rtol=1e-6, atol=0)


def product_of_leaves():
    def loss(p, x):
        return F.linear(x, p["w"] * p["s"]).sin().sum() + (x @ p["w"].T).cos().sum()

    params = {"w": randn(4, 3), "s": randn(3, seed=1)}
    return Case(loss, params, randn(B, 3), opaque=params)


@pytest.mark.parametrize("make", [mlp, product_of_leaves])
def test_an_ensemble_has_the_norms_of_its_members(make):
    case = make()
    members = tree_map(lambda p: torch.stack([p, p.cos(), 2 * p]), case.params)
    norms = D.per_sample_grad_norms(case.loss)
    got = vmap(norms, (0, *[None] * len(case.batch)))(members, *case.batch)
    for i in range(3):
        member = tree_map(lambda p, i=i: p[i], members)
        close(got[i], norms(member, *case.batch))


def test_positions_that_cancel_have_no_norm_below_zero():
    # 0.1 + 0.2 - 0.3, but for a rounding, of vectors whose products are rounded.
    x = randn(64, 1, 4) * torch.tensor([0.1, 0.2, 0.3]).double()[:, None]
    signs = torch.tensor([[1.0], [1.0], [-1.0]]).double()

    def loss(w, x):
        return (F.linear(x, w) * signs * torch.arange(39).sin()).sum()

    w = randn(39, 4)
    # The squares are wrong by some roundings of squares of order ten.
    assert D.per_sample_squared_norms(loss)(w, x).min() >= 0
    assert 0 <= D.per_sample_grad_norms(loss)(w, x).min() < 1e-6


def test_a_gradient_that_is_nan_has_a_variance_that_is_nan():
    x = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])
    variance = D.grad_variance(lambda w, x: F.linear(x, w).sum())(torch.ones(1, 2), x)
    assert variance[0, 0].isnan()
    assert variance[0, 1] == 0.5
