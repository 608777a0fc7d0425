"""What Krylov methods and trace estimators have in common: lanes, scales, chunks, errors."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.func import vmap

import pureopt as po
from pureopt import HyperparameterError, TreeError
from pureopt._tree import ravel, unravel
from tests.derivatives.dense_operators import KEY, TRACES, times
from tests.derivatives.row import randn
from tests.derivatives.rows_curvature import symmetric

D = po.derivatives


def test_a_lane_that_is_not_finite_leaves_the_others_alone():
    a = torch.stack([symmetric(8), torch.full((8, 8), torch.nan), symmetric(8, 1)])
    a[1] = torch.where(torch.eye(8, dtype=bool), 1.0, a[1])

    def estimates(a):
        settings = {"key": KEY, "probes": 2, "steps": 4}
        return (
            D.spectral_density(times(a), a[0], **settings).nodes,
            D.top_eigenpairs(times(a), a[0], 2, key=KEY, steps=3).values,
            D.log_determinant(times(a @ a), a[0], **settings).value[None],
            *(
                trace(times(a), a[0], key=KEY, matvecs=6).value[None]
                for trace in TRACES
            ),
        )

    for lanes in vmap(estimates)(a):
        assert lanes[0].isfinite().all()
        assert lanes[1].isnan().all()
        assert lanes[2].isfinite().all()


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_squares_that_leave_the_range_of_float32_do_no_harm(scale):
    a, start = symmetric(12, dtype=torch.float32), randn(12, dtype=torch.float32)
    small = {"rtol": 1e-4, "atol": 1e-4}  # some hundred roundings of numbers near 5
    plain = D.lanczos(times(a), start, 4)
    other = D.lanczos(times(a), scale * start, 4)
    torch.testing.assert_close(other, plain, **small)
    other = D.lanczos(times(scale * a), start, 4)
    torch.testing.assert_close(other.alphas / scale, plain.alphas, **small)
    torch.testing.assert_close(other.betas / scale, plain.betas, **small)
    settings = {"key": KEY, "steps": 2}
    plain = D.top_eigenpairs(times(a), a[0], 2, **settings).residuals
    other = D.top_eigenpairs(times(scale * a), a[0], 2, **settings).residuals
    assert (plain > 0.1).all()
    torch.testing.assert_close(other / scale, plain, **small)
    plain = D.trace_hutchinson(times(a), a[0], key=KEY, matvecs=4).stderr
    other = D.trace_hutchinson(times(scale * a), a[0], key=KEY, matvecs=4).stderr
    torch.testing.assert_close(other / scale, plain, **small)


def test_the_spectral_tools_know_the_hessian_of_a_network():
    x, y = randn(20, 3), randn(20, 1, seed=1)
    params = {"v": randn(4, 3, seed=2), "w": randn(1, 4, seed=3)}

    def loss(p):
        return ((x @ p["v"].mT).tanh() @ p["w"].mT - y).square().mean()

    hessian = torch.func.hessian(lambda v: loss(unravel(v, params)))(ravel(params))
    matvec = lambda v: D.hvp(loss, params, v)  # noqa: E731
    values, vectors, residuals = D.top_eigenpairs(matvec, params, 3, key=KEY)
    # The whole space: rounding, some hundred times eps times the norm 10.
    true = torch.linalg.eigvalsh(hessian).flip(0)[:3]
    torch.testing.assert_close(values, true, rtol=0, atol=1e-11)
    assert (residuals < 1e-11).all()
    assert vectors["v"].shape == (3, 4, 3)
    trace = D.trace_xtrace(matvec, params, key=KEY, matvecs=32).value
    torch.testing.assert_close(trace, hessian.trace(), rtol=0, atol=1e-11)
    damped = lambda v: {k: a + 9 * v[k] for k, a in matvec(v).items()}  # noqa: E731
    value, stderr = D.log_determinant(damped, params, key=KEY, probes=50, steps=16)
    truth = np.linalg.slogdet(hessian.numpy() + 9 * np.eye(16))[1]
    assert abs(value - truth) < 4 * stderr
    assert stderr < 0.5


@pytest.mark.parametrize("chunk_size", [1, 2, 4, 100])
def test_chunks_do_not_change_the_numbers(chunk_size):
    a = symmetric(8)

    def run(**chunks):
        settings = {"key": KEY, **chunks}
        spectral = {"probes": 5, "steps": 3, **settings}
        return (
            D.spectral_density(times(a), a[0], **spectral),
            D.log_determinant(times(a @ a), a[0], **spectral),
            D.top_eigenpairs(times(a), a[0], 3, steps=2, **settings),
            *(trace(times(a), a[0], matvecs=9, **settings) for trace in TRACES),
        )

    # The same sums, by other kernels.
    torch.testing.assert_close(run(chunk_size=chunk_size), run(), rtol=1e-9, atol=1e-9)


def test_numbers_out_of_range_are_told():
    x = torch.ones(3)
    keyed = {"key": KEY}

    def refused(message, operator, *args, **settings):
        with pytest.raises(HyperparameterError, match=message):
            operator(lambda v: v, x, *args, **settings)

    refused(r"lanczos\(steps=...\)` must be at most .* `start`, 3, got 4", D.lanczos, 4)
    refused(r"lanczos\(steps=...\)` must be a positive integer, got 0", D.lanczos, 0)
    density = D.spectral_density
    rule = r"density\(probes=...\)` must be at least 2, got 1"
    refused(rule, density, probes=1, steps=2, **keyed)
    rule = r"density\(steps=...\)` must be a positive integer, got 2.0"
    refused(rule, density, probes=2, steps=2.0, **keyed)
    rule = r"pairs\(k=...\)` must be at most the dimension, 3, got 4"
    refused(rule, D.top_eigenpairs, 4, **keyed)
    rule = r"hutchinson\(matvecs=...\)` must be at least 2, got 1"
    refused(rule, D.trace_hutchinson, matvecs=1, **keyed)
    rule = r"hutchpp\(matvecs=...\)` must be at least 4, got 3"
    refused(rule, D.trace_hutchpp, matvecs=3, **keyed)
    rule = r"xtrace\(chunk_size=...\)` must be a positive integer, got 0"
    refused(rule, D.trace_xtrace, matvecs=6, chunk_size=0, **keyed)
    spectrum = density(lambda v: v, x, probes=2, steps=2, **keyed)
    rule = r"density\(width=...\)` must be positive and finite, got 0.0"
    with pytest.raises(HyperparameterError, match=rule):
        spectrum.density(x, width=0.0)


@pytest.mark.parametrize(
    "operator",
    [
        lambda m, x: D.lanczos(m, x, 2),
        lambda m, x: D.spectral_density(m, x, key=KEY, probes=2, steps=2),
        lambda m, x: D.top_eigenpairs(m, x, 1, key=KEY),
        lambda m, x: D.trace_hutchinson(m, x, key=KEY, matvecs=4),
        lambda m, x: D.trace_hutchpp(m, x, key=KEY, matvecs=4),
        lambda m, x: D.trace_xtrace(m, x, key=KEY, matvecs=4),
    ],
    ids=["lanczos", "density", "eigenpairs", "hutchinson", "hutchpp", "xtrace"],
)
def test_wrong_trees_are_told(operator):
    like = {"w": torch.ones(3)}
    with pytest.raises(
        TreeError, match=r"\(matvec=...\)` must have the shapes of `like`"
    ):
        operator(lambda v: {"w": v["w"][:2]}, like)
    with pytest.raises(TreeError, match=r"structure of `like`, got no 'w' and an unkn"):
        operator(lambda v: {"u": v["w"]}, like)
    with pytest.raises(TreeError, match=r"must hold only floating-point tensors"):
        operator(lambda v: v, {"w": torch.arange(3)})
    with pytest.raises(TreeError, match=r"must hold at least one number"):
        operator(lambda v: v, {"w": torch.zeros(0)})
