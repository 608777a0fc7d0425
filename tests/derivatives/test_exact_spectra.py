"""``exact``: eigenvalues and eigenvectors beyond the cases that are held against mpmath."""

from __future__ import annotations

import math

import mpmath as mp
import pytest
import torch
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vmap

from pureopt.derivatives import exact, hvp, jet, nth_derivative
from tests.derivatives.exact_case import differentiated, words
from tests.derivatives.row import randn

ZERO = torch.zeros((), dtype=torch.float64)
X, Y = randn(4, 4), randn(4, 4, seed=1)
S, T = X + X.mT, Y + Y.mT
SPECTRA = {
    "eigh": lambda A: torch.linalg.eigh(A)[1],
    "eigvalsh": torch.linalg.eigvalsh,
    "eig": lambda A: torch.linalg.eig(A)[1],
    "eigvals": torch.linalg.eigvals,
}
spectra = pytest.mark.parametrize("name", SPECTRA)


def hermitian(x):
    """A complex one: the antisymmetric part is imaginary."""
    return torch.complex(x + x.mT, x - x.mT)


VALUES = {
    "lower": torch.linalg.eigh,
    "upper": lambda x: torch.linalg.eigh(x, UPLO="U"),
    "values, upper": lambda x: torch.linalg.eigvalsh(x, "U"),
    "complex": lambda x: torch.linalg.eigh(hermitian(x)),
    "batch": lambda x: torch.linalg.eigh(torch.stack([x, x.mT])),
    "general": torch.linalg.eig,
    "general, complex": lambda x: torch.linalg.eig(torch.complex(x, x @ x)),
    "nothing": lambda x: torch.linalg.eigh(x[:0, :0]),
    "nothing, general": lambda x: torch.linalg.eig(x[:0, :0]),
    "no matrices": lambda x: torch.linalg.eig(x.new_zeros(0, 3, 3)),
    "one": lambda x: torch.linalg.eigvals(x[:1, :1]),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", VALUES)
def test_values_are_those_of_torch(name, dtype):
    x = X.to(dtype)
    # Eigenvectors are divided by their norm once more.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        exact(VALUES[name])(x), VALUES[name](x), rtol=8 * eps, atol=8 * eps
    )


@pytest.mark.parametrize("name", ["lower", "complex", "general"])
def test_the_results_have_the_names_of_torch(name):
    result = exact(VALUES[name])(X)
    assert result.eigenvalues is result[0]
    assert result.eigenvectors is result[1]


def taylor_of_the_least_eigenvalue(orders):
    with mp.workdps(60):

        def f(t):
            m = mp.matrix(S.tolist()) + t * mp.matrix(T.tolist())
            return mp.eigsy(m, eigvals_only=True)[0]

        return [float(c) for c in mp.taylor(f, 0, orders)]


@pytest.mark.parametrize("word", ["RFRFRF", "FFFFFR", "RRRRFF"])
def test_nested_transforms_are_right_beyond_order_four(word):
    def f(t):
        return torch.linalg.eigvalsh(S + t * T)[0]

    truth = taylor_of_the_least_eigenvalue(6)[6] * math.factorial(6)
    got = differentiated(exact(f), word)(ZERO).item()
    # A few thousand terms of a sixth derivative, a hundred times their sum.
    assert got == pytest.approx(truth, rel=1e-10)


def test_a_power_series_has_all_orders():
    directions = (T, *[torch.zeros_like(T)] * 11)
    series = jet(lambda A: torch.linalg.eigvalsh(A)[0], S, directions)[1]
    truth = taylor_of_the_least_eigenvalue(12)[1:]
    # As the coefficients of each order grow from those below, so do their roundings.
    assert [c.item() for c in series] == pytest.approx(truth, rel=1e-11)


def test_nested_backward_passes_are_right_to_order_four():
    t = ZERO.clone().requires_grad_()
    y = exact(lambda t: torch.linalg.eigvalsh(S + t * T)[0])(t)
    for k, c in enumerate(taylor_of_the_least_eigenvalue(4)[1:], 1):
        (y,) = torch.autograd.grad(y, t, create_graph=True)
        # Some hundred terms of a fourth derivative.
        assert y.item() == pytest.approx(c * math.factorial(k), rel=1e-11)


@spectra
def test_more_nested_backward_passes_are_not_finite(name):
    t = ZERO.clone().requires_grad_()
    y = exact(lambda t: SPECTRA[name](S + t * T).abs().square().cumsum(0).sin().sum())(
        t
    )
    finite = []
    for _ in range(6):
        (y,) = torch.autograd.grad(y, t, create_graph=True)
        finite.append(y.isfinite().item())
    assert finite == [True] * 4 + [False] * 2


@spectra
def test_a_third_derivative_knows_no_size(name):
    def third(size):
        def f(t):
            y = SPECTRA[name](size * (S + t * T).float()).reshape(-1)[0]
            return (y if name in {"eigh", "eig"} else y / size).abs().square()

        return differentiated(exact(f), "RRR")(ZERO)

    # The product of two directions is infinite. Some hundred terms in single precision.
    torch.testing.assert_close(third(2.0**100), third(1.0), rtol=1e-4, atol=0)


@spectra
def test_all_four_hessians_are_one(name):
    def f(x):
        y = SPECTRA[name](3 * torch.diag(torch.arange(4.0, dtype=x.dtype)) + x + x.mT)
        return (y.abs() ** 2).reshape(-1).cumsum(0).sin().sum()

    first, *others = [a(b(exact(f)))(0.3 * X) for a in (jacfwd, jacrev)
                      for b in (grad, jacfwd)]  # fmt: skip
    for other in others:
        # Gaps near one: some hundred products of numbers near one.
        torch.testing.assert_close(other, first, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(hessian(f)(0.3 * X), first, rtol=1e-9, atol=1e-9)


@spectra
def test_a_lane_is_a_call(name):
    lanes = torch.stack([S, T, S @ T + T @ S])
    g = jacfwd(exact(lambda A: SPECTRA[name](A).abs()))
    torch.testing.assert_close(
        vmap(g)(lanes), torch.stack([g(A) for A in lanes]), rtol=1e-11, atol=1e-12
    )


def test_only_the_triangle_that_is_named_is_read():
    other = S + Y.triu(1)
    f = exact(lambda A: torch.linalg.eigh(A)[1][0].sum())
    torch.testing.assert_close(f(other), f(S), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(hvp(f, other, T), hvp(f, S, T), rtol=1e-11, atol=1e-12)
    upper = exact(lambda A: torch.linalg.eigh(A, "U")[1][0].sum())
    torch.testing.assert_close(
        hvp(upper, other.mT, T), hvp(upper, S, T), rtol=1e-11, atol=1e-12
    )


TIED = torch.diag(torch.tensor([1.0, 1.0, 3.0], dtype=torch.float64))


@pytest.mark.parametrize("values", [torch.linalg.eigvalsh, torch.linalg.eigvals])
def test_between_equal_eigenvalues_what_does_not_exist_is_not_finite(values):
    f = exact(lambda A: values(A).real.sum())
    # The trace: a first derivative that does exist.
    eye = torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(grad(f)(TIED), eye, rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(jacfwd(f)(TIED), eye, rtol=1e-14, atol=1e-14)
    square = exact(lambda A: values(A).real[:2].square().sum())
    assert not jacfwd(grad(square))(TIED).isfinite().any()
    assert not jacfwd(jacfwd(square))(TIED).isfinite().all()


@pytest.mark.parametrize("name", ["eigh", "eig"])
def test_the_eigenvectors_of_equal_eigenvalues_have_no_finite_derivatives(name):
    f = exact(lambda A: SPECTRA[name](A).real)
    for derivative in (jacfwd(f), jacrev(f)):
        assert not derivative(TIED)[:, :2].isfinite().all()


def test_series_at_equal_eigenvalues_are_not_finite_where_they_do_not_exist():
    value, (first, second) = jet(torch.linalg.eigvalsh, TIED, (T[:3, :3],) * 2)
    assert torch.equal(value, TIED.diagonal())
    assert first.isfinite().all()
    assert second.isfinite().tolist() == [False, False, True]


def test_a_matrix_with_too_few_eigenvectors_has_values_and_no_derivatives():
    shift = torch.diag(torch.ones(2, dtype=torch.float64), 1)
    batch = torch.stack([shift, S[:3, :3]])
    f = exact(lambda A: torch.linalg.eigvals(A).real)
    torch.testing.assert_close(f(batch), torch.linalg.eigvals(batch).real)
    for jacobian in (jacfwd, jacrev):
        bad, good = vmap(jacobian(f))(batch)
        assert not bad.isfinite().all(-1).any()
        torch.testing.assert_close(good, jacobian(f)(S[:3, :3]), rtol=1e-12, atol=1e-12)
    value, (first,) = jet(torch.linalg.eigvals, shift, (T[:3, :3],))
    assert torch.equal(value, torch.linalg.eigvals(shift))
    assert not first.isfinite().any()


def test_nearly_equal_eigenvalues_are_differentiated():
    A = torch.diag(torch.tensor([1.0, 1.0 + 1e-6, 3.0], dtype=torch.float64))
    B = torch.ones(3, 3, dtype=torch.float64)
    # Of [[1, t], [t, 1 + h]] the least eigenvalue has the second derivative -2 / h, and
    # the third row adds -2 / (3 - 1).
    second = nth_derivative(lambda t: torch.linalg.eigvalsh(A + t * B)[0], 2)(ZERO)
    # A gap of 1e-6 is known to eps / 1e-6 of itself.
    assert second.item() == pytest.approx(-2e6 - 1, rel=1e-9)


def test_what_torch_refuses_is_refused_in_its_words():
    for f in (torch.linalg.eigh, torch.linalg.eig):
        for bad in (X[:2], X[0], X.half()):
            with pytest.raises(RuntimeError) as theirs:
                f(bad)
            with pytest.raises(RuntimeError) as ours:
                exact(f)(bad)
            assert str(ours.value) == str(theirs.value)


@spectra
def test_shapes_on_no_device_at_all(name):
    g = jacfwd(exact(lambda A: SPECTRA[name](A).abs().sum()))
    assert g(torch.empty(2, 3, 3, device="meta")).shape == (2, 3, 3)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["eigh", "eigvals"])
def test_a_hessian_traces(name):
    h = jacfwd(jacfwd(exact(lambda A: (SPECTRA[name](A).abs() ** 2).cumsum(0).sum())))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(S), h(S), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("word", words(3))
def test_complex_numbers_have_all_third_derivatives(word):
    def f(t):
        z = torch.complex(X[0] + t * Y[0], X[1] - Y[1] * t.sin())
        return (z.abs() ** 3 + (z.sgn() * z).abs()).sum()

    # In real arithmetic; |z / |z| z| = |z|.
    def real(t):
        re, im = X[0] + t * Y[0], X[1] - Y[1] * t.sin()
        size = (re * re + im * im).sqrt()
        return (size**3 + size).sum()

    truth = differentiated(real, "RRR")(ZERO).item()
    # Some hundred terms of size ten.
    assert differentiated(exact(f), word)(ZERO).item() == pytest.approx(truth, 1e-12)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_a_complex_absolute_value_knows_no_size(dtype):
    limits = torch.finfo(dtype)
    z = torch.tensor([3 + 4j, -4 + 3j, 5j, -5], dtype=dtype)

    def slope(size):
        f = lambda t: exact(torch.abs)(size * (z + t * (1 + 2j)))  # noqa: E731
        return jvp(f, (torch.zeros_like(z.real),), (torch.ones_like(z.real),))

    value, tangent = slope(1.0)
    # The squares of the first are infinite, those of the others zero.
    for size in (limits.max**0.75, limits.tiny**0.75, limits.tiny):
        large, steep = slope(size)
        # Some roundings of numbers below ten; the last number is the least normal one.
        same = {"rtol": 0, "atol": 100 * limits.eps}
        torch.testing.assert_close(large / size, value, **same)
        torch.testing.assert_close(steep / size, tangent, **same)
    least = z.new_tensor([0, complex(0, limits.tiny / 8), complex(torch.inf, 1)])
    assert torch.equal(exact(torch.abs)(least), least.abs())


@pytest.mark.parametrize("word", words(3))
@pytest.mark.parametrize("f", [torch.linalg.slogdet, torch.logdet])
def test_the_logarithm_of_a_complex_determinant_has_all_third_derivatives(f, word):
    Z = torch.complex(X, Y)

    def total(t):
        y = f(Z + t * Z.mT)
        parts = map(torch.view_as_real, (y if f is torch.logdet else y[0]).reshape(1))
        return sum(p @ p.new_tensor([1.0, 2.0]) for p in parts)

    def by_definition(t):
        # From the eigenvalues, which are those of another composition.
        roots = torch.linalg.eigvals(Z + t * Z.mT)
        size, angle = roots.abs().log().sum(), roots.angle().sum()
        if f is torch.logdet:
            return size + 2 * torch.atan2(angle.sin(), angle.cos())
        return angle.cos() + 2 * angle.sin()

    truth = nth_derivative(by_definition, 3)(ZERO).item()
    # Some hundred terms of size ten.
    got = differentiated(exact(total), word)(ZERO).item()
    assert got == pytest.approx(truth, rel=1e-11)


def test_the_square_of_an_absolute_value_is_smooth_at_zero():
    z = torch.zeros(2, dtype=torch.float64)

    def f(x):
        return torch.complex(x[0], x[1]).abs() ** 2

    for H in (jacfwd(jacfwd(exact(f)))(z), jacrev(grad(exact(f)))(z)):
        assert torch.equal(H, 2 * torch.eye(2, dtype=torch.float64))
    assert torch.equal(grad(exact(lambda x: torch.complex(x[0], x[1]).abs()))(z), z)
