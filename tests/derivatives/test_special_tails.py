"""Special functions where their derivatives cancel, against mpmath."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from mpmath import mp
from torch.func import grad, jvp, vmap
from torch.nn import functional as F

from pureopt.derivatives import exact, hvp, jet, laplacian, nth_derivative
from pureopt.derivatives._exactness._special import _COSINES, _FAR, _NEAR
from tests.derivatives.exact_case import differentiated, words
from tests.derivatives.row import randn

log_ndtr, erfcx = torch.special.log_ndtr, torch.special.erfcx
TAILS = pytest.mark.parametrize("f", [log_ndtr, erfcx], ids=lambda f: f.__name__)
# Beside the five where the rule changes, in units of log_ndtr and of erfcx, and beside zero.
POINTS = [-1e4, -100.0, -20.0, -9.0, -5 - 1e-15, -5.0, -5 + 1e-15, -3.0, -2.0, -1.0]
POINTS += [-0.1, -1e-15, 0.0, 1e-15, 0.5, 1.0, 2.2, 3.5355339059327373]
POINTS += [3.5355339059327378, 5.0, 13.0, 50.0, 1e4]
# A zero of 1 + erf in the complex plane, where the series of log_ndtr end.
SINGULAR = math.sqrt(2) * complex(1.3548101281, 1.9914668428)


def truth(f, x, order):
    """Derivatives by the differential equations, at digits enough for what cancels."""
    with mp.workdps(60 + 16 * (order + 1) * len(str(int(abs(x))))):
        x = mp.mpf(x)
        if f is erfcx:
            y = [mpmath.exp(x * x) * mpmath.erfc(x)]
            for k in range(order):
                last = 2 * k * y[k - 1] if k else -2 / mpmath.sqrt(mp.pi)
                y.append(2 * x * y[k] + last)
            return y
        below = mpmath.erfc(-x / mpmath.sqrt(2)) / 2
        h = [mpmath.npdf(x) / below]  # the series of the slope: h' = -h (x + h)
        for k in range(order):
            line = [x, mp.mpf(1)]
            rest = [h[j] + (line[j] if j < 2 else 0) for j in range(k + 1)]
            h.append(-mpmath.fsum(h[j] * rest[k - j] for j in range(k + 1)) / (k + 1))
        value = mpmath.log(below) if x < 0 else mpmath.log1p(-mpmath.ncdf(-x))
        return [value] + [h[k] * mpmath.factorial(k) for k in range(order)]


def tolerance(f, x, order, expected):
    """Roundings, and the size of what they are relative to.

    The ratio is a sum of positive terms, of which each order rounds a factor, and so do
    exponents of the size of the order. Torch's own values round the square of ``x`` in an
    exponent for ``x < 0``; from there the recurrence adds positive terms. The logarithm of
    a series adds up to ``2 ** n`` times its n-th coefficient, which is at least
    ``(n - 1)! / d ** n`` before signs, where ``d`` is the distance to its singularity.
    For ``x > 0`` its slope is an exponential whose exponent, half a square, is rounded.
    """
    size = abs(float(expected))
    if f is erfcx:
        return 8 + 2 * order, size
    if x < 2 and order:
        size = max(size, math.factorial(order - 1) / abs(x - SINGULAR) ** order)
    return 8 * 2**order + max(x, 0.0) ** 2, size


def check(f, got, x, order, expected, dtype):
    limits = torch.finfo(dtype)
    if abs(expected) > limits.max:
        assert got == math.copysign(math.inf, expected)
        return
    roundings, size = tolerance(f, x, order, expected)
    # What is smaller than the normal numbers has no more digits than the least of them.
    error = abs(float(mp.mpf(got) - expected))
    assert error <= limits.eps * roundings * size + limits.tiny, (x, order)


@TAILS
@pytest.mark.parametrize("x", POINTS)
@pytest.mark.parametrize(
    ("dtype", "orders"), [(torch.float64, 8), (torch.float32, 4)], ids=str
)
def test_derivatives_in_taylor_mode_are_those_of_mpmath(f, x, dtype, orders):
    t = torch.tensor(x, dtype=dtype)
    expected = truth(f, t.item(), orders)
    if f is erfcx and abs(expected[orders]) > torch.finfo(dtype).max:
        pytest.skip("it overflows")
    for n in range(1, orders + 1):
        got = nth_derivative(f, n)(t)
        assert got.dtype == dtype
        check(f, got.item(), t.item(), n, expected[n], dtype)
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(nth_derivative(f, 0)(t), f(t), rtol=4 * eps, atol=0)
    value = jet(f, t, (torch.ones_like(t),))[0]
    torch.testing.assert_close(value, f(t), rtol=8 * eps, atol=0)


@TAILS
@pytest.mark.parametrize("x", POINTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_nested_gradients_under_exact_are_those_of_mpmath(f, x, dtype):
    t = torch.tensor(x, dtype=dtype)
    expected = truth(f, t.item(), 4)
    g = exact(f)
    for n in range(5):
        if abs(expected[n]) <= torch.finfo(dtype).max and (n or x < 2):
            # The value that is next to zero is torch's, which rounds the exponent.
            check(f, g(t).item(), t.item(), n, expected[n], dtype)
        g = grad(g)


@TAILS
@pytest.mark.parametrize("x", [-100.0, -5.0, -1.0, 0.0, 1.0, 5.0, 50.0])
def test_every_nesting_under_exact_is_that_of_mpmath(f, x):
    t = torch.tensor(x, dtype=torch.float64)
    expected = truth(f, x, 4)
    if abs(expected[4]) > torch.finfo(t.dtype).max:
        return
    for n in (1, 2, 3, 4):
        for word in words(n):
            got = differentiated(exact(f), word)(t)
            check(f, got.item(), x, n, expected[n], t.dtype)


def test_ends_have_the_limits():
    ends = [-math.inf, math.inf, math.nan]
    limits = {
        log_ndtr: [[-math.inf, 0], [math.inf, 0], [-1, 0], [0, 0], [0, 0]],
        erfcx: [[math.inf, 0], [-math.inf, 0], [math.inf, 0], [-math.inf, 0]],
    }
    for dtype in (torch.float32, torch.float64):
        x = torch.tensor(ends, dtype=dtype)
        for f, table in limits.items():
            g = exact(f)
            for n, expected in enumerate(table):
                want = torch.tensor([*expected, math.nan], dtype=dtype)
                # Zeros of either sign are the same.
                nested, taylor = vmap(g)(x), nth_derivative(f, n)(x) if n else f(x)
                torch.testing.assert_close(nested, want, equal_nan=True)
                torch.testing.assert_close(taylor, want, equal_nan=True)
                g = grad(g)


@pytest.mark.parametrize("x", [-1e38, -1e20, -1e12, 1e12, 1e20, 1e38])
def test_large_numbers_of_single_precision_do_not_overflow(x):
    t = torch.tensor(x)
    # Squares overflow, slopes do not: to first order -x, and zero on the other side.
    want = [max(-t.item(), 0.0), -1.0 if x < 0 else 0.0, 0.0]
    g = exact(log_ndtr)
    assert torch.equal(g(t), log_ndtr(t)) or abs(x) < 1e19
    for n, expected in enumerate(want, 1):
        g = grad(g)
        for got in (g(t), nth_derivative(log_ndtr, n)(t)):
            torch.testing.assert_close(
                got, torch.tensor(expected), atol=1e-30, rtol=1e-6
            )
    if x > 0:
        slope = -1 / math.sqrt(math.pi) / t.item() ** 2
        for got in (grad(exact(erfcx))(t), nth_derivative(erfcx, 1)(t)):
            assert abs(got.item() - slope) <= 1e-5 * abs(slope) + 1e-38


@TAILS
def test_the_value_under_exact_is_torchs(f):
    for dtype in (torch.float64, torch.float32):
        x = 4 * randn(400, seed=1, dtype=dtype)
        # Torch rounds an exponent that grows like the square of what is below 13.
        eps = torch.finfo(dtype).eps
        torch.testing.assert_close(exact(f)(x), f(x), rtol=200 * eps, atol=0)
    numbers = torch.tensor([-2, 0, 3])
    assert torch.equal(exact(f)(numbers), f(numbers))
    for dtype in (torch.float16, torch.bfloat16, torch.complex64):
        x = torch.ones(2, dtype=dtype)
        with pytest.raises(NotImplementedError) as theirs:
            f(x)
        with pytest.raises(NotImplementedError) as ours:
            exact(f)(x)
        assert str(ours.value) == str(theirs.value)
        if not dtype.is_complex:
            with pytest.raises(NotImplementedError, match="not implemented for"):
                nth_derivative(f, 2)(x)


@TAILS
def test_lanes_and_directions_are_calls(f):
    x = torch.tensor([[-100.0, -3.0], [0.2, 7.0]], dtype=torch.float64)
    third = grad(grad(grad(exact(f))))
    lanes = vmap(vmap(third))(x)
    torch.testing.assert_close(lanes, nth_derivative(f, 3)(x), rtol=1e-13, atol=0)
    each = vmap(lambda x: jet(f, x, (torch.ones_like(x), None))[1][1])(x)
    torch.testing.assert_close(2 * each, nth_derivative(f, 2)(x), rtol=1e-13, atol=0)
    # The sum over directions shares the derivatives at the point.
    of_sum = laplacian(lambda x: f(x).sum())(x)
    torch.testing.assert_close(of_sum, 2 * each.sum(), rtol=1e-13, atol=0)


@TAILS
def test_a_curve_is_composed_and_its_coefficients_have_gradients(f):
    x = torch.tensor([-9.0, -4.0, -0.5, 0.5, 4.0], dtype=torch.float64)
    v, w = randn(5, seed=2), randn(5, seed=3)
    first, second, third = (nth_derivative(f, n)(x) for n in (1, 2, 3))
    _, series = jet(f, x, (v, w))
    torch.testing.assert_close(series[0], first * v)
    torch.testing.assert_close(series[1], first * w + second * v * v / 2)
    slope = grad(lambda x: jet(f, x, (v, w))[1][1].sum())(x)
    torch.testing.assert_close(slope, second * w + third * v * v / 2)


@TAILS
def test_compiled_it_is_the_same(f):
    x = torch.tensor([-100.0, -4.0, 0.3, 6.0], dtype=torch.float64)

    def both(x):
        nested = vmap(grad(grad(exact(f))))(x)
        return nested, jet(f, x, (torch.ones_like(x), None, None))[1]

    torch._dynamo.reset()
    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), both(x), rtol=1e-14, atol=0)


def moment(n, t):
    """The integral of ``s^n exp(-t s - s^2 / 2)`` over ``s > 0``."""
    t = mp.mpf(t)
    tail = mpmath.pcfu(n + mp.mpf(1) / 2, t)
    return mpmath.factorial(n) * mpmath.exp(t * t / 4) * tail


@pytest.mark.parametrize(("rule", "at"), [(_NEAR, 2), (_FAR, 10)], ids=["near", "far"])
def test_the_rules_of_the_ratio_are_those_of_gauss(rule, at):
    with mp.workdps(40):
        pairs = [(mp.mpf(s), mp.mpf(w)) for s, w in rule]
        full = [(s, w * mpmath.exp(-at * s - s * s / 2)) for s, w in pairs]
        for n in range(2 * len(rule)):
            total = mpmath.fsum(w * s**n for s, w in full)
            # Each node is rounded once, which the power repeats.
            assert abs(total / moment(n, at) - 1) <= 2.0**-53 * (n + 1)


def test_the_rule_of_the_cosines_is_that_of_gauss():
    for n in range(0, 4 * len(_COSINES), 2):
        total = math.fsum(w * s**n for s, w in _COSINES)
        assert abs(total * (n + 1) - 1) <= 2.0**-53 * 2 * (n + 2)


@pytest.mark.parametrize(
    "f", [torch.sinc, torch.special.sinc, lambda x: x.sinc()], ids=["", "special", "of"]
)
@pytest.mark.parametrize("x", [0.0, 1e-4, 0.1, 0.63, 0.64, -0.3, 2.3])
def test_nested_derivatives_of_sinc_divide_nothing_by_zero(f, x):
    t = torch.tensor(x, dtype=torch.float64)
    with mp.workdps(60):
        series = mpmath.taylor(lambda x: mpmath.sinc(mp.pi * x), mp.mpf(x), 4)
    for n in (0, 1, 2, 3, 4):
        expected = math.factorial(n) * float(series[n])
        for word in words(n):
            got = differentiated(exact(f), word)(t).item()
            # They are at most pi^n; each order of the quotient loses a factor of 2.
            assert abs(got - expected) <= 2**-52 * 8 * (2 * math.pi) ** n


def test_sinc_of_other_numbers_is_torchs():
    for dtype in (torch.float16, torch.bfloat16, torch.complex64, torch.int64):
        x = torch.tensor([-2.0, 0.0, 0.3, 3.4]).to(dtype)
        # One rounding of numbers up to one, or two of their parts.
        torch.testing.assert_close(exact(torch.sinc)(x), torch.sinc(x), equal_nan=True)
    x = torch.tensor([0.0, 0.2 + 0.1j], dtype=torch.complex128)

    def second(x):
        return grad(lambda x: grad(lambda x: exact(torch.sinc)(x).real)(x).real)(x)

    z = mpmath.mpc(0.2, 0.1)
    with mp.workdps(40):
        truth = [mpmath.diff(lambda z: mpmath.sinc(mp.pi * z), p, 2) for p in (0, z)]
    # A holomorphic function: the gradient of the real part is the conjugate.
    expected = torch.tensor([complex(p) for p in truth], dtype=x.dtype).conj()
    torch.testing.assert_close(vmap(second)(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("x", [-50.0, -3.0, 0.0, 3.0, 20.0, 50.0])
def test_nested_derivatives_of_logsigmoid_are_right_where_its_slope_vanishes(x):
    t = torch.tensor(x, dtype=torch.float64)
    with mp.workdps(80):
        series = mpmath.taylor(lambda x: -mpmath.log1p(mpmath.exp(-x)), mp.mpf(x), 4)
    for n in (0, 1, 2, 3, 4):
        expected = math.factorial(n) * float(series[n])
        for word in words(n):
            got = differentiated(exact(F.logsigmoid), word)(t).item()
            # Sums of up to n! powers of the sigmoid, all below its least slope.
            size = max(abs(expected), math.exp(-abs(x)) / 8)
            assert abs(got - expected) <= 2**-52 * 4 * math.factorial(n) * size


@pytest.mark.parametrize("f", [log_ndtr, erfcx, torch.sinc, F.logsigmoid])
@pytest.mark.parametrize("x", [-1.5, 0.5])
def test_a_number_of_single_precision_stays_one(f, x):
    x, v = torch.tensor(x), torch.ones(())
    _, slope = jvp(exact(f), (x,), (v,))
    _, (first, second) = jet(f, x, (v, v))
    for y in (slope, grad(exact(f))(x), hvp(f, x, v), first, second):
        assert y.dtype == torch.float32
