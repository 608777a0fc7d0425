"""The row of an embedding's padding is a constant: to gradients, and to all the rest."""

from __future__ import annotations

import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F

import pureopt.derivatives as D
from tests.derivatives.row import randn

TABLE, V = randn(5, 3), randn(5, 3, seed=1)
INDICES = torch.tensor([[0, 2], [4, 0]])


def padded(table, padding=0):
    return F.embedding(INDICES, table, padding_idx=padding).exp().sum(0)


def by_hand(table, padding=0):
    constant = torch.arange(5)[:, None] == padding
    return F.embedding(INDICES, torch.where(constant, TABLE, table)).exp().sum(0)


def loss(f):
    return lambda table: f(table).sin().sum()


def close(got, want):
    # Sums of a few products of numbers of order one to ten.
    torch.testing.assert_close(got, want, rtol=1e-13, atol=1e-13)


WORDS = {
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "jacrev of grad": lambda f: jacrev(grad(lambda t: f(t).sum())),
    "jacfwd of grad": lambda f: jacfwd(grad(lambda t: f(t).sum())),
    "jacrev of jacfwd": lambda f: jacrev(jacfwd(f)),
    "jacfwd of jacfwd": lambda f: jacfwd(jacfwd(f)),
}


@pytest.mark.parametrize("padding", [0, -1])
@pytest.mark.parametrize("name", WORDS)
def test_exact_every_nesting_holds_it(name, padding):
    word = WORDS[name]
    ours = word(D.exact(lambda table: padded(table, padding)))(TABLE)
    close(ours, word(lambda table: by_hand(table, padding % 5))(TABLE))
    assert not ours[..., padding % 5, :].any()


def test_exact_by_the_kernel_and_in_lanes():
    kernel = D.exact(lambda t: torch.embedding(t, INDICES, 2).exp())
    many = torch.stack([TABLE, V])
    slopes = vmap(jacfwd(kernel))(many)
    assert not slopes[..., 2, :].any()
    for one, table in zip(slopes, many, strict=True):
        close(one, jacrev(lambda t: torch.embedding(t, INDICES, 2).exp())(table))
    # Without padding nothing is held.
    assert jacfwd(D.exact(lambda t: torch.embedding(t, INDICES)))(TABLE)[
        ..., 0, :
    ].any()


@pytest.mark.parametrize("padding", [0, -1, -5])
def test_taylor_mode_counts_from_the_end_too(padding):
    f = loss(lambda table: padded(table, padding))
    held = loss(lambda table: by_hand(table, padding % 5))
    want = torch.func.hessian(held)(TABLE).reshape(15, 15).trace()
    close(D.laplacian(f)(TABLE), want)


def test_the_operators_agree():
    f, held = loss(padded), loss(by_hand)
    want = torch.func.hessian(held)(TABLE)
    product = torch.einsum("ijkl,kl->ij", want, V)
    for got in (D.hvp(f, TABLE, V), D.vhp(f, TABLE, V)):
        close(got, product)
    close(D.hessian(f)(TABLE), want)
    trace = want.reshape(15, 15).trace()
    close(D.laplacian(f)(TABLE), trace)
    close(D.hessian_diag(f)(TABLE).sum(), trace)
    along = D.directional_derivatives(f, TABLE, V, 2)
    close(along[0], held(TABLE))
    close(along[1], jvp(held, (TABLE,), (V,))[1])
    close(along[2], (V * product).sum())
    close(D.jacobian(padded)(TABLE), jacrev(by_hand)(TABLE))
    compiled = torch.compile(
        lambda t: (D.hvp(f, t, V), D.laplacian(f)(t)),
        fullgraph=True,
        backend="aot_eager",
    )
    close(compiled(TABLE), (product, trace))


def test_matrices_of_curvature_are_symmetric():
    eye = torch.eye(15, dtype=TABLE.dtype).reshape(15, 5, 3)
    energy = lambda z: z.square().sum() / 2  # noqa: E731
    jacobian = jacrev(by_hand)(TABLE).reshape(-1, 15)
    ggn = vmap(lambda v: D.ggnvp(padded, energy, TABLE, v))(eye)
    close(ggn.reshape(15, 15), jacobian.mT @ jacobian)

    def one(f):
        return lambda table, i: f(table)[i].sum()

    rows = torch.arange(2)
    fisher = vmap(lambda v: D.empirical_fisher_vp(one(padded), TABLE, (rows,), v))(eye)
    slopes = torch.stack([grad(one(by_hand))(TABLE, i).flatten() for i in rows])
    close(fisher.reshape(15, 15), slopes.mT @ slopes / 2)


def test_a_padding_that_is_no_row_is_refused_in_torchs_words():
    outside = lambda t: F.embedding(INDICES, t, padding_idx=5)  # noqa: E731
    for call in (
        outside,
        D.exact(outside),
        lambda t: D.jet(outside, t, (V,)),
    ):
        with pytest.raises(AssertionError, match="within num_embeddings"):
            call(TABLE)
