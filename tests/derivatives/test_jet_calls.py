"""What a function under Taylor mode may call."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian
from torch.nn import functional as F

import pureopt as po
from pureopt.derivatives import exact, jet, laplacian, nth_derivative
from tests.derivatives.jet_case import point
from tests.derivatives.jet_multivariate import MULTIVARIATE
from tests.derivatives.jet_multivariate_layers import Attention
from tests.derivatives.row import randn


def test_the_square_of_a_norm_is_smooth_where_the_norm_is_zero():
    zero = torch.zeros(4, dtype=torch.float64)
    spellings = (
        lambda x: torch.linalg.vector_norm(x) ** 2,
        lambda x: x.norm().square(),
        lambda x: torch.norm(x).pow(4) + x @ x,
    )
    for f in spellings:
        # The Laplacian of |x|^2 is twice the dimension; |x|^4 adds zero there.
        assert laplacian(f)(zero) == 8
    # The norm itself: zero by convention, and finite.
    assert laplacian(torch.linalg.vector_norm)(zero) == 0
    assert laplacian(lambda x: F.normalize(x, dim=0).sum())(zero).isfinite()


@pytest.mark.parametrize("rank", [0, 1, 2])
@pytest.mark.parametrize(
    "op", [torch.add, torch.sub, torch.mul, torch.div, torch.pow, torch.maximum,
           torch.fmod, torch.logaddexp, torch.atan2], ids=lambda op: op.__name__
)  # fmt: skip
def test_constants_and_series_of_other_ranks_stand_in_either_place(op, rank):
    x, (v, _) = point(2, 3)
    c = randn(*(2, 3)[2 - rank :], seed=9).exp()
    x = x.exp()
    for f in (
        lambda x: op(x, c),
        lambda x: op(c, x),
        lambda x: op(x, x[0, 0] * c),
        lambda x: op(x[0, 0] * c, x),
    ):
        _, (_, second) = jet(f, x, (v, torch.zeros_like(v)))
        curvature = hessian(exact(f))(x).reshape(-1, 6, 6)
        truth = (curvature @ v.reshape(6)) @ v.reshape(6) / 2
        # Quotients and powers of numbers between 1/5 and 5: some hundred roundings.
        torch.testing.assert_close(second.reshape(-1), truth, rtol=1e-12, atol=1e-12)


def test_numbers_and_whole_tensors_do_not_widen():
    x = torch.linspace(0.5, 1.0, 3)
    index = torch.arange(3)

    def f(x):
        y = 2 * x + 1.5 - index * x / 3 + x**2 % 0.7 + 2.0**x + (x > 0.6) * x
        return torch.where(x > 0.7, y, 0.0).clamp(max=5) + torch.maximum(x, index)

    value, series = jet(f, x, (x, x))
    assert {c.dtype for c in (value, *series)} == {torch.float32}


def test_every_coefficient_has_the_dtype_of_the_value():
    x = torch.linspace(0.5, 1.0, 3)
    wide = torch.ones(3, dtype=torch.float64)
    for f in (
        lambda x: x + wide,
        lambda x: torch.cat([x, wide]),
        lambda x: torch.float_power(x, 2),
        lambda x: x.half().amax(0, keepdim=True) + x.bfloat16().sum().half(),
    ):
        value, series = jet(f, x, (x, x))
        assert {c.dtype for c in series} == {value.dtype}


def test_a_square_with_a_real_part_that_varies_only_is_complex():
    # (t + t**2 + i)**2 = -1 + 2i t + (1 + 2i) t**2 + O(t**3)
    x = torch.zeros(2)
    one = torch.ones(2)
    for f in (lambda x: torch.square(x + 1j), lambda x: (x + 1j) ** 2):
        value, series = jet(f, x, (one, one))
        expected = (-1 * one + 0j, 2j * one, (1 + 2j) * one)
        for got, c in zip((value, *series), expected, strict=True):
            assert torch.equal(got, c)


def test_prelu_of_a_number_is_a_number():
    x, slope = torch.tensor(-2.0), torch.tensor([0.25])
    value, (first,) = jet(lambda x: torch.prelu(x, slope), x, (torch.ones(()),))
    assert torch.equal(value, torch.tensor(-0.5))
    assert torch.equal(first, torch.tensor(0.25))


def test_an_infinite_slope_on_the_other_side_of_a_maximum_does_not_count():
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    least = torch.tensor(-5.0, dtype=torch.float64)
    _, (slope,) = jet(lambda x: torch.maximum(x.log(), least), x, (torch.ones_like(x),))
    assert slope.tolist() == [0, 1]


class Straight(torch.autograd.Function):
    """Steps, with the slope of a line."""

    @staticmethod
    def forward(ctx, x):
        return x.round() + x.sin()

    @staticmethod
    def backward(ctx, grad):
        return grad


def test_of_a_function_of_autograd_the_forward_is_differentiated():
    x = torch.tensor(0.3, dtype=torch.float64)
    assert nth_derivative(Straight.apply, 1)(x) == torch.cos(x)


class Sine(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.sin().mul(2)


def without_gradients(x):
    with torch.no_grad():
        return x.sin().mul(2)


@pytest.mark.parametrize("sine", [Sine.apply, without_gradients])
def test_gradients_of_series_go_through_what_is_computed_without_gradients(sine):
    x, w = randn(3), randn(3, 3, seed=1)

    def trace(w, sine=sine):
        # What `tanh` asks for inside is used again outside.
        return laplacian(lambda x: (sine((w @ x).tanh()) * (w @ x)).sum())(x)

    plain = grad(lambda w: trace(w, lambda y: 2 * y.sin()))(w)
    # Sums of products of ten numbers of order one.
    close = {"rtol": 1e-13, "atol": 1e-13}
    if sine is without_gradients:  # torch.func takes no such `forward`
        torch.testing.assert_close(grad(trace)(w), plain, **close)
    leaf = w.clone().requires_grad_()
    (taped,) = torch.autograd.grad(trace(leaf), leaf)
    torch.testing.assert_close(taped, plain, **close)


def test_without_gradients_around_the_call_nothing_has_one():
    w, made = randn(3, 3).requires_grad_(), []

    def f(x):
        made.append((w @ x).tanh().value)
        return made[0].sum() + x.sum()

    with torch.no_grad():
        laplacian(f)(randn(3))
    assert not made[0].requires_grad


def test_each_of_several_is_made_one_dimension_at_least():
    def f(x):
        a, b, c = torch.atleast_1d(x * 1, x.prod(), torch.ones(()))
        return (a.exp() * b * c).sum()

    x = randn(3)
    # Sums of products of ten numbers of order one.
    torch.testing.assert_close(
        laplacian(f)(x), hessian(f)(x).trace(), rtol=1e-13, atol=1e-13
    )


@pytest.mark.compile
def test_compiled_taylor_mode_goes_through_what_is_computed_without_gradients():
    x = randn(3)
    f = laplacian(lambda x: without_gradients(x).exp().sum())
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x), rtol=1e-14, atol=1e-14)
    assert f(x).abs() > 1


def test_half_a_softmax_of_minus_infinity_has_finite_derivatives():
    def f(x):
        masked = torch.where(torch.tensor([True, False, True]), x, -torch.inf)
        return torch.softmax(masked, -1) + masked.logsumexp(-1)

    value, series = jet(f, *point(3))
    assert all(c.isfinite().all() for c in (value, *series))


def test_derivatives_of_softplus_go_on_above_its_threshold():
    x = torch.tensor(25.0, dtype=torch.float64)
    p = torch.sigmoid(x)
    # sigma' = p (1 - p), with 1 - p = 1.4e-11 as the sigmoid of -x.
    assert nth_derivative(F.softplus, 2)(x) == pytest.approx(
        float(p * torch.sigmoid(-x)), rel=1e-14
    )


def test_running_statistics_are_moved_as_torch_moves_them():
    x, series = point(4, 3)
    ours, theirs = nn.BatchNorm1d(3).double(), nn.BatchNorm1d(3).double()
    jet(ours, x, series)
    theirs(x)
    # One kernel computes both.
    assert torch.equal(ours.running_mean, theirs.running_mean)
    assert torch.equal(ours.running_var, theirs.running_var)


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 4),
        nn.LayerNorm(4),
        nn.GELU(),
        Attention(4, 2, batch_first=True),
        nn.RMSNorm(4),
        nn.SiLU(inplace=True),
        nn.Dropout(0.0),
        nn.Softmax(-1),
    ).double()


def test_a_coefficient_is_differentiated_with_respect_to_parameters():
    model, (x, series) = net(), point(1, 3, 4)
    params = {k: p.detach() for k, p in model.named_parameters()}

    def ours(p):
        f = lambda x: functional_call(model, p, (x,))  # noqa: E731
        return jet(f, x, series)[1][1].square().sum()

    def theirs(p):
        f = exact(lambda x: functional_call(model, p, (x,)))

        def path(t):
            return f(x + t * series[0] + t * t * series[1])

        t = torch.zeros((), dtype=x.dtype)
        second = torch.func.jacfwd(torch.func.jacfwd(path))(t) / 2
        return second.square().sum()

    mine, truth = grad(ours)(params), grad(theirs)(params)
    for name, leaf in truth.items():
        # Third derivatives through eight layers; the largest are near one.
        torch.testing.assert_close(mine[name], leaf, rtol=1e-10, atol=1e-12)


@pytest.mark.compile
def test_a_whole_net_compiles_without_a_break():
    model, (x, series) = net().requires_grad_(requires_grad=False), point(1, 3, 4)

    def f(x, v, w):
        return jet(model, x, (v, w, torch.zeros_like(x)))

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    value, coefficients = compiled(x, *series)
    truth, others = f(x, *series)
    # The same kernels in the same order, some in another layout.
    torch.testing.assert_close(value, truth, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(coefficients, others, rtol=1e-11, atol=1e-12)


@pytest.mark.compile
def test_rules_of_each_family_compile_without_a_break():
    rows = [row for row in MULTIVARIATE if row.compiled]
    points = [randn(*row.shape, seed=3) for row in rows]

    def f(points):
        pairs = zip(rows, points, strict=True)
        return [jet(row.f, x, (x,)) for row, x in pairs]

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    # The same kernels in the same order, some in another layout.
    torch.testing.assert_close(compiled(points), f(points), rtol=1e-12, atol=1e-13)


@pytest.mark.compile
def test_a_compiler_traces_the_laplacian_of_a_whole_encoder_layer():
    # What is put off in eager mode, traced as one chain of calls, was too deep for Python.
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(4, 2, 6, batch_first=True).double().eval()
    apply, params, buffers = po.functionalize(layer)

    def f(params, x):
        return laplacian(lambda x: apply(params, buffers, x)[0].square().sum())(x)

    x = randn(1, 2, 4)
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")(params, x)
    # The same sums, in another order.
    torch.testing.assert_close(compiled, f(params, x), rtol=1e-12, atol=1e-12)
