"""Taylor mode of factorizations: what defines them holds at every order."""

from __future__ import annotations

import math
import re

import pytest
import torch
from torch.func import grad, jvp

import pureopt
from pureopt.derivatives import jet, laplacian
from tests.derivatives.row import randn

ORDER = 8
EPS = torch.finfo(torch.float64).eps
# Each order adds up products of those below it, and divides by gaps near one.
SLACK = 4.0**ORDER * EPS
SHAPES = [(4, 4), (5, 3), (3, 5), (2, 4, 3)]


def path(*shape, dtype=torch.float64):
    """A curve of matrices whose singular values are apart, and a random bend."""
    parts = [randn(*shape, seed=s) / 4 for s in range(ORDER + 1)]
    if dtype.is_complex:
        parts = [
            torch.complex(p, randn(*shape, seed=9 + s) / 4) for s, p in enumerate(parts)
        ]
    diagonal = torch.arange(1.0, min(shape[-2:]) + 1, dtype=torch.float64)
    parts[0][..., : len(diagonal), : len(diagonal)] += 2 * torch.diag(diagonal)
    return parts


def series(f, parts):
    """All coefficients of each output, from order zero."""
    if isinstance(parts[0], torch.Tensor) and parts[0].is_complex():
        parts, g = [torch.view_as_real(p) for p in parts], f
        f = lambda x: g(torch.view_as_complex(x))  # noqa: E731
    value, terms = jet(f, parts[0], parts[1:])
    return [[v, *(t[i] for t in terms)] for i, v in enumerate(value)]


def product(a, b):
    """The coefficients of the product of two series of matrices."""
    return [sum(a[j] @ b[k - j] for j in range(k + 1)) for k in range(len(a))]


def adjoint(a):
    return [c.mH for c in a]


def holds(a, b):
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        # As precise as the coefficient of this order is large.
        assert float((x - y).abs().max()) <= SLACK * max(1, float(y.abs().max())), k


def identity(like):
    eye = torch.eye(like[0].shape[-1], dtype=like[0].dtype)
    shape = (*like[0].shape[:-2], *eye.shape)
    return [eye.expand(shape), *[torch.zeros(shape, dtype=eye.dtype)] * ORDER]


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_matrix_is_its_orthogonal_times_its_upper_factor(shape, dtype):
    parts = path(*shape, dtype=dtype)
    Q, R = series(lambda A: tuple(torch.linalg.qr(A)), parts)
    holds(product(Q, R), parts)
    inner = product(adjoint(Q), Q)
    holds(inner, identity(inner))
    for r in R:
        assert not r.tril(-1).any()
        if dtype.is_complex:
            assert not r.diagonal(dim1=-2, dim2=-1).imag.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_matrix_is_the_product_of_its_singular_factors(shape, dtype):
    parts = path(*shape, dtype=dtype)
    U, S, Vh = series(lambda A: tuple(torch.linalg.svd(A, full_matrices=False)), parts)
    assert all(s.dtype == torch.float64 for s in S)
    scale = [torch.diag_embed(s).to(dtype) for s in S]
    holds(product(product(U, scale), Vh), parts)
    for inner in (product(adjoint(U), U), product(Vh, adjoint(Vh))):
        holds(inner, identity(inner))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_nuclear_norm_is_the_sum_of_singular_values(shape, dtype):
    parts = path(*shape, dtype=dtype)
    (values,) = series(lambda A: (torch.linalg.svdvals(A),), parts)
    (norm,) = series(lambda A: (torch.linalg.matrix_norm(A, "nuc"),), parts)
    holds(norm, [v.sum(-1) for v in values])


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_a_pseudoinverse_is_inverse_from_both_sides(shape):
    parts = path(*shape)
    (inverse,) = series(lambda A: (torch.linalg.pinv(A),), parts)
    holds(product(product(parts, inverse), parts), parts)
    holds(product(product(inverse, parts), inverse), inverse)
    for projection in (product(parts, inverse), product(inverse, parts)):
        holds(adjoint(projection), projection)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (2, 4, 3)], ids=str)
def test_the_rest_of_least_squares_is_orthogonal_to_the_matrix(shape):
    parts = path(*shape)
    right = [randn(*shape[:-1], 2, seed=40 + k) for k in range(ORDER + 1)]

    def f(tree):
        return tuple(torch.linalg.lstsq(tree["A"], tree["B"]))[:2]

    pairs = [{"A": A, "B": B} for A, B in zip(parts, right, strict=True)]
    x, residuals = series(f, pairs)
    rest = [p - b for p, b in zip(product(parts, x), right, strict=True)]
    normal = product(adjoint(parts), rest)
    holds(normal, [torch.zeros_like(c) for c in normal])
    if shape[-2] < shape[-1]:  # of all solutions the shortest
        (inverse,) = series(lambda A: (torch.linalg.pinv(A),), parts)
        holds(product(product(inverse, parts), x), x)
    # Torch gives the squares of what is left over where it can, from gelsy never.
    assert residuals[0].numel() == 0


def test_one_right_side_may_be_a_vector():
    parts = path(4, 2)
    b = randn(4, seed=3)
    (one,) = series(lambda A: (torch.linalg.lstsq(A, b).solution,), parts)
    (column,) = series(lambda A: (torch.linalg.lstsq(A, b[:, None]).solution,), parts)
    holds(one, [c[:, 0] for c in column])


def test_residuals_are_squares_of_what_is_left_over():
    parts, B = path(4, 2), randn(4, 3, seed=3)

    def f(A):
        found = torch.linalg.lstsq(A, B, driver="gels")
        return found.residuals, (A @ found.solution - B).square().sum(-2)

    residuals, squares = series(f, parts)
    assert residuals[0].shape == (3,)
    holds(residuals, squares)


def test_the_nuclear_norm_is_smooth_where_all_singular_values_meet():
    B = randn(3, 3)
    zero = torch.zeros_like(B)
    _, terms = jet(
        lambda A: torch.linalg.matrix_norm(A, "nuc"),
        torch.eye(3, dtype=B.dtype),
        (B + B.mT, zero, zero),
    )
    # A curve of positive definite matrices, of which it is the trace.
    truth = torch.stack([2 * B.trace(), B.new_zeros(()), B.new_zeros(())])
    assert (torch.stack(terms) - truth).abs().max() < 64 * EPS


def test_of_a_rank_deficient_matrix_first_derivatives_are_torchs_and_others_nan():
    A = randn(4, 3)
    A[:, 2] = A[:, 0] + A[:, 1]
    v = randn(4, 3, seed=1)
    for norm in (
        lambda A: torch.linalg.matrix_norm(A, "nuc"),
        lambda A: torch.linalg.svdvals(A)[-1],
    ):
        _, (first, second) = jet(norm, A, (v, None))
        assert abs(first - jvp(norm, (A,), (v,))[1]) < 64 * EPS
        assert second.isnan()
    # The others are as smooth as ever.
    largest = lambda A: torch.linalg.matrix_norm(A, 2)  # noqa: E731
    by_eigenvalues = lambda A: torch.linalg.eigvalsh(A.mT @ A)[-1].sqrt()  # noqa: E731
    _, ours = jet(largest, A, (v, None, None))
    _, theirs = jet(by_eigenvalues, A, (v, None, None))
    holds(ours, theirs)
    _, (slope,) = jet(torch.linalg.pinv, A, (v,))
    assert slope.isnan().all()


def test_where_singular_values_meet_the_derivatives_of_their_vectors_are_nan():
    A = torch.diag(torch.tensor([3.0, 3.0, 1.0], dtype=torch.float64))
    (_, S, Vh), ((_, shift, turn),) = jet(
        lambda A: tuple(torch.linalg.svd(A)), A, (randn(3, 3),)
    )
    assert shift.isfinite().all()
    assert turn[:2].isnan().any()
    assert turn[2].isfinite().all()
    assert torch.equal(S, A.diagonal())
    assert Vh.shape == (3, 3)


def test_the_laplacian_of_the_largest_singular_value_in_lanes():
    xs = randn(5, 4, 3)
    f = lambda A: torch.linalg.matrix_norm(A, 2)  # noqa: E731
    table = torch.func.vmap(torch.func.hessian(f))(xs).reshape(5, 12, 12)
    ours = torch.func.vmap(laplacian(f))(xs)
    truth = table.diagonal(dim1=-2, dim2=-1).sum(-1)
    # Twelve second derivatives of a few products each, over gaps of a tenth or more.
    assert ((ours - truth).abs() <= 12 * 1e3 * EPS * truth.abs()).all()


@pytest.mark.parametrize(
    ("f", "word"),
    [
        (lambda A: torch.linalg.svd(A)[0], "full_matrices=False"),
        (lambda A: torch.svd(A, some=False)[0], "full_matrices=False"),
        (lambda A: torch.linalg.qr(A, mode="complete")[0], "mode='reduced'"),
    ],
    ids=["svd", "svd-some", "qr"],
)
def test_factors_that_the_matrix_does_not_determine_are_refused(f, word):
    A = randn(4, 2)
    with pytest.raises(pureopt.DerivativeError, match=word):
        jet(f, A, (A,))


def test_a_rank_is_a_number():
    A = randn(3, 2)
    value, (slope,) = jet(lambda A: A.sum() * torch.linalg.matrix_rank(A), A, (A,))
    assert math.isclose(value, 2 * A.sum())
    assert math.isclose(slope, 2 * A.sum())


def test_vectors_of_a_simple_zero_singular_value_are_smooth():
    A = torch.diag(torch.tensor([2.0, 1.0, 0.0], dtype=torch.float64))
    parts = [A, *path(3, 3)[1:]]
    U, S, Vh = series(lambda A: tuple(torch.linalg.svd(A)), parts)
    holds(product(product(U, [torch.diag_embed(s) for s in S]), Vh), parts)
    for inner in (product(adjoint(U), U), product(Vh, adjoint(Vh))):
        holds(inner, identity(inner))
    # The projector on the null space of a symmetric curve: by perturbation theory.
    f = lambda x: torch.linalg.svd(x, full_matrices=False)[2][2, 0] ** 2  # noqa: E731
    g = lambda x: torch.linalg.eigh(x.mT @ x)[1][0, 0] ** 2  # noqa: E731
    torch.testing.assert_close(laplacian(f)(A), laplacian(g)(A))


def test_gradients_past_a_zero_singular_value():
    A = torch.diag(torch.tensor([3.0, 1.0, 0.0], dtype=torch.float64))
    f = lambda x: torch.linalg.svdvals(x)[0]  # noqa: E731
    g = lambda x: torch.linalg.eigvalsh(x.mT @ x)[-1].sqrt()  # noqa: E731
    torch.testing.assert_close(grad(laplacian(f))(A), grad(laplacian(g))(A))


def test_equal_singular_values_share_the_derivative_of_the_largest():
    v = randn(3, 3)
    norm = lambda A: torch.linalg.matrix_norm(A, 2)  # noqa: E731
    eye = torch.eye(3, dtype=v.dtype)
    _, (slope,) = jet(norm, eye, (v,))
    torch.testing.assert_close(slope, jvp(norm, (eye,), (v,))[1])


@pytest.mark.parametrize("shape", [(2, 0, 3), (0, 3), (3, 0), (0, 2, 2)], ids=str)
@pytest.mark.parametrize(
    "f",
    [
        lambda A: torch.linalg.svd(A, full_matrices=False)[0],
        torch.linalg.svdvals,
        lambda A: torch.linalg.matrix_norm(A, 2),
        lambda A: torch.linalg.matrix_norm(A, "nuc"),
        torch.linalg.cond,
        torch.linalg.pinv,
        lambda A: torch.linalg.qr(A)[1],
    ],
    ids=["svd", "svdvals", "norm", "nuclear", "cond", "pinv", "qr"],
)
def test_matrices_without_numbers(f, shape):
    # Beside them what has a derivative, as a point must.
    tree = {"A": randn(*shape), "x": randn(2)}
    value, (slope,) = jet(lambda t: f(t["A"]), tree, (tree,))
    assert value.shape == slope.shape == f(tree["A"]).shape
    assert not slope.any()


def test_a_singular_matrix_among_others_has_the_inverse_of_torch():
    A = torch.stack([torch.zeros(2, 2), torch.eye(2)]).double()
    v = randn(2, 2, 2)

    def inverse(A):
        found = torch.linalg.inv_ex(A)
        return found.inverse, found.info * 1.0

    (value, info), ((slope, _),) = jet(inverse, A, (v,))
    assert info.tolist() == torch.linalg.inv_ex(A).info.tolist() == [1, 0]
    torch.testing.assert_close(value, torch.linalg.inv_ex(A)[0], equal_nan=True)
    torch.testing.assert_close(slope[1], -v[1])
    with pytest.raises(torch.linalg.LinAlgError):
        jet(lambda A: torch.linalg.inv_ex(A, check_errors=True)[0], A, (v,))
    for p in (1, torch.inf, "fro", "nuc"):
        value, (slope,) = jet(lambda A, p=p: torch.linalg.cond(A, p), A, (v,))
        torch.testing.assert_close(value, torch.linalg.cond(A, p), equal_nan=True)
        torch.testing.assert_close(
            slope,
            jvp(lambda A, p=p: torch.linalg.cond(A, p), (A,), (v,))[1],
            equal_nan=True,
        )
        assert slope.isnan().tolist() == [True, False]


def test_least_squares_by_name_and_of_batches():
    A, b = randn(2, 2, 2), randn(2, 2, seed=1)
    for right in (b, randn(2, 3, seed=2)):  # vectors; a matrix for all
        value, (slope,) = jet(
            lambda A, right=right: torch.linalg.lstsq(input=A, b=right).solution,
            A,
            (A,),
        )
        truth = torch.linalg.lstsq(A, right).solution
        torch.testing.assert_close(value, truth)
        torch.testing.assert_close(slope, -truth)
    value, (slope,) = jet(
        lambda A: torch.linalg.lstsq(A, b[:1, :1])[0], A[:, :1, :1], (A[:, :1, :1],)
    )
    assert value.shape == slope.shape == (2, 1, 1)


def test_tolerances_decide_what_has_full_rank():
    A = torch.diag(torch.tensor([1.0, 1e-3], dtype=torch.float64))
    pairs = [
        (torch.linalg.pinv, True),
        (lambda A: torch.linalg.pinv(A, rtol=1e-2), False),
        (lambda A: torch.linalg.pinv(A, 1e-2), False),
        (lambda A: torch.pinverse(A, 1e-2), False),
        (lambda A: torch.linalg.pinv(A, atol=1e-2), False),
        (lambda A: torch.linalg.pinv(A, hermitian=True), True),
        (lambda A: torch.linalg.lstsq(A, A, 1e-2, driver="gelsd")[0], False),
    ]
    for f, full in pairs:
        value, (slope,) = jet(f, A, (A,))
        torch.testing.assert_close(value, f(A))
        assert slope.isfinite().all() == full
    # Of a matrix that is not Hermitian its lower triangle is read, also for the rank.
    skewed = torch.tensor([[1.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    f = lambda A: torch.linalg.pinv(A, hermitian=True)  # noqa: E731
    assert torch.equal(jet(f, skewed, (skewed,))[0], f(skewed))


def test_residuals_of_complex_numbers_are_real():
    A, B = randn(4, 2), randn(4, 1, seed=1)

    def f(x):
        C = torch.complex(x, x.sin())
        found = torch.linalg.lstsq(C, torch.complex(B, B), driver="gels")
        left = C @ found.solution - torch.complex(B, B)
        return found.residuals, left.abs().square().sum(-2)

    residuals, squares = series(f, [A, *path(4, 2)[1:]])
    assert residuals[0].dtype == torch.float64
    holds(residuals, squares)


def test_what_is_left_out_is_left_out_as_in_torch():
    A = randn(3, 2)
    shapes = []

    def f(A):
        shapes.append(torch.linalg.qr(A, mode="r").Q.shape)
        found = torch.svd(A, compute_uv=False)
        shapes.extend((found.U.shape, found.V.shape))
        return found.S

    value, _ = jet(f, A, (A,))
    (empty, left, right), found = shapes, torch.svd(A, compute_uv=False)
    assert empty == (0,)
    assert (left, right) == (found.U.shape, found.V.shape)
    assert torch.equal(value, found.S)


def test_the_right_vectors_of_torch_svd_are_the_adjoints_of_those_of_linalg():
    def f(x):
        A = torch.complex(x, x.cos())
        ours, theirs = torch.svd(A).V, torch.linalg.svd(A, full_matrices=False).Vh
        return torch.view_as_real(ours), torch.view_as_real(theirs.mH.resolve_conj())

    V, W = series(f, path(3, 2))
    holds(V, W)
    value = torch.linalg.svd(torch.complex(path(3, 2)[0], path(3, 2)[0].cos()))[2]
    torch.testing.assert_close(torch.view_as_complex(V[0]), value.mH.resolve_conj())


def test_norms_in_a_wider_dtype():
    A = randn(3, 2).float()
    for order in (2, -2, "nuc", 1):
        f = lambda A, order=order: torch.linalg.matrix_norm(  # noqa: E731
            A, order, dtype=torch.float64
        )
        value, (slope,) = jet(f, A, (A,))
        assert value.dtype == slope.dtype == torch.float64
        torch.testing.assert_close(value, f(A))
        torch.testing.assert_close(slope, f(A))


@pytest.mark.parametrize(
    "f",
    [
        lambda A: torch.linalg.vander(A, N=1),
        torch.vander,
        lambda A: torch.vander(A[0], N=-1),
        lambda A: torch.linalg.matrix_norm(A, 2, dim=(0, 5)),
        lambda A: torch.linalg.matrix_norm(A, "nuc", dim=(0, 0)),
        lambda A: torch.linalg.matrix_norm(A, 2, dtype=torch.float32),
        lambda A: torch.linalg.norm(A[None], 2),
        lambda A: torch.linalg.cond(A, "fro"),
        lambda A: torch.linalg.cond(A, "foo"),
        lambda A: torch.linalg.svdvals(A[0]),
    ],
    ids=[
        "vander",
        "matrix",
        "negative",
        "range",
        "same",
        "dtype",
        "dims",
        "square",
        "order",
        "vector",
    ],
)
def test_what_torch_refuses_is_refused_in_its_words(f):
    A = randn(3, 2)
    with pytest.raises((RuntimeError, IndexError)) as theirs:
        f(A)
    with pytest.raises((RuntimeError, IndexError)) as ours:
        jet(f, A, (A,))
    assert str(ours.value).splitlines()[0] == str(theirs.value).splitlines()[0]


def test_powers_in_either_order():
    x = randn(3)
    for f in (
        torch.vander,
        torch.linalg.vander,
        lambda x: torch.vander(x, 2, True),
        lambda x: torch.vander(x, 0),
    ):
        value, (slope,) = jet(f, x, (torch.ones_like(x),))
        assert torch.equal(value, f(x))
        torch.testing.assert_close(slope, jvp(f, (x,), (torch.ones_like(x),))[1])


@pytest.mark.compile
def test_compiled_factors_of_wide_matrices():
    def f(A):
        return torch.linalg.qr(A)[1].sum() + torch.linalg.svdvals(A)[0]

    A = randn(2, 3)
    compiled = torch.compile(laplacian(f), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(A), laplacian(f)(A))


@pytest.mark.compile
@pytest.mark.parametrize(
    "f",
    [
        lambda A: torch.linalg.matrix_norm(A, 3),
        lambda A: torch.linalg.norm(A, 0.5),
        lambda A: torch.linalg.matrix_norm(A, 2, dtype=torch.float32),
        lambda A: torch.linalg.vander(A, N=1),
        lambda A: torch.linalg.cond(A, 0),
    ],
    ids=["order", "norm", "dtype", "vander", "cond"],
)
def test_compiled_what_torch_refuses_is_refused(f):
    A = randn(3, 3)
    with pytest.raises(RuntimeError) as theirs:
        f(A)
    compiled = torch.compile(
        lambda A: jet(f, A, (A,)), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match=re.escape(str(theirs.value).splitlines()[0])):
        compiled(A)


@pytest.mark.parametrize("order", [2.0, -2.0, 1.0, -math.inf])
@pytest.mark.parametrize("name", ["matrix_norm", "norm", "cond"])
def test_an_order_in_a_tensor_is_that_number(name, order):
    A, v = path(3, 3)[:2]
    f = getattr(torch.linalg, name)
    got = jet(lambda A: f(A, torch.tensor(order)), A, (v,))
    torch.testing.assert_close(got, jet(lambda A: f(A, order), A, (v,)))
    torch.testing.assert_close(got[0], f(A, order))


def test_equal_singular_values_share_the_derivative_of_the_least():
    v = randn(3, 3)
    norm = lambda A: torch.linalg.matrix_norm(A, -2)  # noqa: E731
    eye = torch.eye(3, dtype=v.dtype)
    _, (slope,) = jet(norm, eye, (v,))
    torch.testing.assert_close(slope, jvp(norm, (eye,), (v,))[1])
