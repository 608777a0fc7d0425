"""What a function under Taylor mode may call, and what it is told of what it may not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, hessian
from torch.nn import functional as F

import pureopt as po
from pureopt.derivatives import exact, jet, laplacian, nth_derivative
from tests.derivatives.jet_multivariate import MULTIVARIATE, Attention
from tests.derivatives.row import randn


def point(*shape, seed=0):
    x = randn(*shape, seed=seed)
    return x, (randn(*shape, seed=seed + 1), randn(*shape, seed=seed + 2))


def refused(f, x=None):
    x = randn(2, 3) if x is None else x
    with pytest.raises(po.DerivativeError) as error:
        jet(f, x, (x,))
    return str(error.value)


FORBIDDEN = {
    "add_": lambda x: x.add_(1.0),
    "`relu_`": F.relu_,
    "`torch.sin` with `out=`": lambda x: torch.sin(x, out=torch.empty(2, 3)),
    "`dropout` in train mode": nn.Dropout(0.3),
    "rrelu(training=True)": lambda x: F.rrelu(x, training=True),
    "`bernoulli`": lambda x: torch.bernoulli(x.sigmoid()),
    "a call of `torch.autograd`": lambda x: torch.autograd.grad(x.sum(), x)[0],
    "transform of `torch.func`": grad(torch.sum),
    "got an assignment": lambda x: torch.zeros(2, 3).__setitem__(0, x[0]),
    "got `x.item()`": lambda x: x * x.sum().item(),
    "got `x.tolist()`": lambda x: x * x.tolist()[0][0],
    "got `x.numpy()`": lambda x: x.numpy(),
    "got `float(x)`": lambda x: math.sin(x[0, 0]),
    "got `int(x)`": lambda x: x * int(x[0, 0]),
    "got an array of `x`": np.sin,
    "Join tensors with `torch.stack": lambda x: torch.tensor([x[0, 0], x[0, 1]]),
    "got `torch.linalg.svd`": lambda x: torch.linalg.svd(x)[1],
    "got `torch.Tensor.histc`": lambda x: x.histc(),
    "`size_average` or `reduce`": lambda x: F.mse_loss(x, x, size_average=True),
    "`torch.linalg.matrix_norm` with `ord=nuc`": lambda x: torch.linalg.norm(x, "nuc"),
    "factor square matrices": torch.linalg.lu_factor,
    "assignment to `x[...]`": lambda x: x.__setitem__(0, 1.0),
    "in place, got an assignment": lambda x: torch.ones(3).__setitem__(0, x[0, 0]),
    "got a call of `torch.autograd`": lambda x: x.requires_grad_().sum(),
}


@pytest.mark.parametrize("words", FORBIDDEN)
def test_what_has_no_rule_is_named_with_a_way_out(words):
    message = refused(FORBIDDEN[words])
    assert words in message
    # The fourth part: what to do.
    assert len(message.split(". ")) > 1 or "square" in words
    assert "functorch" not in message


REFUSED = {
    "huber": lambda x: F.huber_loss(x, x.mT, delta=0.0),
    "cdist": lambda x: torch.cdist(x, x[:, :1]),
    "grid": lambda x: F.grid_sample(x[None, None], x[None], align_corners=False),
    "attention": lambda x: F.scaled_dot_product_attention(
        x, x, x, torch.ones(3, 3).long()
    ),
    "labels": lambda x: F.multi_margin_loss(x, x),
    "glu": F.glu,
    "det": lambda x: torch.det(x[:2]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_in_its_words(name):
    x = randn(3, 3)
    with pytest.raises(RuntimeError) as theirs:
        REFUSED[name](x)
    with pytest.raises(RuntimeError) as ours:
        jet(REFUSED[name], x, (x,))
    assert str(theirs.value) in str(ours.value)


@torch.library.custom_op("pureopt_tests::softcube", mutates_args=())
def softcube(x: torch.Tensor) -> torch.Tensor:
    return x**3 + x


def test_an_operator_of_a_library_is_named_and_can_be_taught():
    assert "`torch.ops.pureopt_tests.softcube.default`" in refused(softcube)
    po.derivatives.register_jet(softcube, lambda x: x**3 + x)
    x, (v, _) = point(3)
    spelled = (
        softcube,
        torch.ops.pureopt_tests.softcube,
        torch.ops.pureopt_tests.softcube.default,
    )
    for op in spelled:
        _, series = jet(op, x, (v, torch.zeros_like(v), torch.zeros_like(v)))
        # By hand: the cube of x + t v. Three products each.
        truth = ((3 * x**2 + 1) * v, 3 * x * v**2, v**3)
        for got, want in zip(series, truth, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-15)


@torch.library.custom_op("pureopt_tests::wave", mutates_args=())
def wave(x: torch.Tensor, speed: float = 1.0) -> torch.Tensor:
    return torch.sin(speed * x)


def test_a_taught_derivative_is_given_the_constants_and_serves_many_directions():
    po.derivatives.register_jet_derivative(
        wave, lambda x, _, speed=1.0: speed * torch.cos(speed * x)
    )
    x = randn(3)
    # Two roundings for each of three terms.
    torch.testing.assert_close(
        laplacian(lambda x: wave(x, speed=2.0).sum())(x),
        -4 * torch.sin(2 * x).sum(),
        rtol=1e-14,
        atol=1e-14,
    )


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
def test_a_product_that_the_compiler_would_turn_around_is_refused():
    # `x @ w` arrives as `w @ x`; square, nothing tells them apart.
    x, w = randn(2, 2), randn(2, 2, seed=1)

    def f(x, w):
        return jet(lambda x: x @ w, x, (x,))

    eager = f(x, w)
    torch.testing.assert_close(eager[0], x @ w)
    with pytest.raises(Exception, match=r"torch\.matmul\(a, b\)"):
        torch.compile(f, fullgraph=True, backend="aot_eager")(x, w)


@pytest.mark.compile
def test_rules_of_each_family_compile_without_a_break():
    rows = [row for row in MULTIVARIATE if row.compiled]
    points = [randn(*row.shape, seed=3) for row in rows]

    def f(points):
        pairs = zip(rows, points, strict=True)
        return [jet(row.f, x, (x,)) for row, x in pairs]

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
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


def in_place_on_an_alias(x):
    h = x * 1
    y = h
    y += 1
    y *= x
    return (h**2).sum()


def in_place_methods(x):
    h = torch.sin(x)
    h += x
    h.mul_(2).exp_()
    return h.sum()


def in_place_activation(x):
    h = x * 2
    kept = h
    nn.functional.relu(h, inplace=True)
    return (kept**3).sum()


def in_place_on_a_norm(x):
    n = torch.linalg.vector_norm(x)
    n += 1
    return n**2


def in_place_after_a_linear_map(x):
    # The derivatives of `y` are put off until after the write to what they are made of.
    h = 3 * x
    y = torch.cat([h, h])
    h += x.sin()
    return (y.exp()).sum() + (h**2).sum()


def in_place_on_a_first_power(x):
    h = x.sin()
    y = h**1
    y += 1
    return (h * y).sum()


@pytest.mark.parametrize(
    "f",
    [
        in_place_on_an_alias,
        in_place_methods,
        in_place_activation,
        in_place_on_a_norm,
        in_place_after_a_linear_map,
        in_place_on_a_first_power,
    ],
    ids=lambda f: f.__name__,
)
def test_what_is_written_to_is_seen_under_each_of_its_names(f):
    x = randn(3)
    # Third powers and exponentials of numbers below 10.
    torch.testing.assert_close(
        laplacian(f)(x), hessian(exact(f))(x).trace(), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize(
    ("f", "got"),
    [
        (lambda x: (x.mul(2)[:2].add_(1)).sum(), "`add_`"),
        (lambda x: (x.sin().view(3).__iadd__(1)).sum(), r"`\+=`"),
        (lambda x: nn.functional.relu(x, inplace=True).sum(), r"relu\(inplace\)`"),
        (lambda x: x.sin().sum().__imul__(x).sum(), r"`\*=` of \(3,\)"),
    ],
    ids=["view", "operator", "argument", "shape"],
)
def test_writing_to_what_others_share_is_refused(f, got):
    with pytest.raises(po.DerivativeError, match=got):
        laplacian(f)(randn(3))


@pytest.mark.parametrize("inner", ["laplacian", "nth_derivative", "hvp"])
def test_an_operator_called_on_a_series_says_where_it_must_stand(inner):
    def cube(x):
        return x**3

    calls = {
        "laplacian": laplacian(cube),
        "nth_derivative": nth_derivative(cube, 2),
        "hvp": lambda x: po.derivatives.hvp(cube, x, x),
    }
    with pytest.raises(po.DerivativeError, match="outside of Taylor mode, got a `Jet`"):
        laplacian(calls[inner])(torch.tensor(1.0))
