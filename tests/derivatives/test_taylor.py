"""What is made of Taylor mode: derivatives of high order, Laplacians, bilaplacians."""

from __future__ import annotations

import math

import mpmath
import pytest
import torch
from torch.func import functional_call, grad, hessian, jacrev, jvp, vmap
from torch.nn import functional as F

import pureopt as po
from pureopt.derivatives import (
    bilaplacian,
    directional_derivatives,
    forward_laplacian,
    jet,
    laplacian,
    nth_derivative,
)
from tests.derivatives.row import randn
from tests.derivatives.rows_taylor import net, params

EPS = torch.finfo(torch.float64).eps
P = params(torch.float64)


def f(x):
    return net(P, x)


def nested(f, n):
    for _ in range(n):
        f = grad(f)
    return f


@pytest.mark.parametrize("n", range(9))
def test_derivatives_to_order_eight_are_those_of_the_formula(n):
    # exp(sin(x)) at 0.7: no closed form by hand, fifty digits by machine.
    with mpmath.workdps(50):
        true = float(
            mpmath.diff(lambda x: mpmath.exp(mpmath.sin(x)), mpmath.mpf("0.7"), n)
        )
    x = torch.tensor(0.7, dtype=torch.float64)
    value = nth_derivative(lambda x: x.sin().exp(), n)(x)
    # Sums of n products for each coefficient, whose parts may cancel against n!.
    assert abs(float(value) - true) <= 50 * EPS * math.factorial(n)


def test_past_the_degree_of_a_polynomial_the_derivative_is_zero():
    x = torch.tensor(1.5)
    assert nth_derivative(lambda x: x * x, 3)(x) == 0
    assert nth_derivative(lambda x: 3 * x**4 - x, 4)(x) == 72
    assert nth_derivative(lambda x: 3 * x**4 - x, 5)(x) == 0
    assert nth_derivative(lambda x: torch.ones(2), 1)(x).tolist() == [0, 0]


def test_a_tensor_of_points_gives_the_derivative_at_each():
    x = torch.linspace(-1, 1, 5, dtype=torch.float64)
    each = vmap(nested(torch.tanh, 3))(x)
    torch.testing.assert_close(
        nth_derivative(torch.tanh, 3)(x), each, rtol=1e-13, atol=1e-14
    )


def test_directional_derivatives_are_nested_ones():
    x, v = randn(3), randn(3, seed=5)

    def along(t):
        return f(x + t * v)

    t = torch.zeros((), dtype=torch.float64)
    found = directional_derivatives(f, x, v, 5)
    for k, value in enumerate(found):
        # Five nestings accumulate some hundred roundings of numbers near one.
        torch.testing.assert_close(value, nested(along, k)(t), rtol=1e-11, atol=1e-12)


def test_coefficients_of_a_curve_follow_the_chain_rule():
    # Order by order, a curve with curvature: y_2 = J x_2 + H[x_1, x_1] / 2.
    x, first, second = randn(3), randn(3, seed=1), randn(3, seed=2)
    value, (y1, y2) = jet(f, x, (first, second))
    torch.testing.assert_close(value, f(x))
    torch.testing.assert_close(y1, grad(f)(x) @ first)
    torch.testing.assert_close(
        y2, grad(f)(x) @ second + first @ hessian(f)(x) @ first / 2
    )


def test_none_is_a_coefficient_that_is_zero():
    x, v = randn(3), randn(3, seed=1)
    zero = torch.zeros(3, dtype=torch.float64)
    torch.testing.assert_close(jet(f, x, (v, None, v)), jet(f, x, (v, zero, v)))


def test_a_module_and_a_tree_go_through():
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 2)
    ).double()
    apply, weights, buffers = po.functionalize(module)
    x = {"u": randn(2), "v": (randn(1, seed=1),)}
    v = {"u": randn(2, seed=2), "v": (randn(1, seed=3),)}

    def model(x):
        return {"y": apply(weights, buffers, torch.cat([x["u"], x["v"][0]]))[0]}

    def by_torch(x):
        both = torch.cat([x["u"], x["v"][0]])
        return {"y": functional_call(module, weights, (both,))}

    value, (slope,) = jet(model, x, (v,))
    true = jvp(by_torch, (x,), (v,))
    torch.testing.assert_close((value, slope), true)


@pytest.mark.parametrize("chunk_size", [None, 1, 2, 3, 7])
def test_the_laplacian_is_the_trace_of_the_hessian(chunk_size):
    x = randn(3)
    torch.testing.assert_close(
        laplacian(f, chunk_size=chunk_size)(x),
        hessian(f)(x).trace(),
        rtol=1e-13,
        atol=1e-14,
    )


def test_the_laplacian_of_several_outputs_and_inputs_of_any_shape():
    w = randn(4, 6)

    def g(x):
        z = torch.tanh(w @ torch.cat([x["a"].reshape(-1), x["b"].reshape(-1)]))
        return z.reshape(2, 2), {"sum": z.square().sum(), "constant": torch.ones(2)}

    def flat(z):
        out = g({"a": z[:4].reshape(2, 2), "b": z[4:]})
        return torch.cat([out[0].reshape(-1), out[1]["sum"][None]])

    z = randn(6, seed=1)
    x = {"a": z[:4].reshape(2, 2), "b": z[4:]}
    matrix, rest = laplacian(g)(x)
    true = hessian(flat)(z).diagonal(dim1=1, dim2=2).sum(1)
    torch.testing.assert_close(matrix.reshape(-1), true[:4], rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(rest["sum"], true[4], rtol=1e-12, atol=1e-13)
    assert rest["constant"].tolist() == [0, 0]
    value, jacobian, _ = forward_laplacian(g)(x)
    torch.testing.assert_close(value[1]["sum"], flat(z)[4])
    expected = jacrev(lambda x: g(x)[0])(x)
    torch.testing.assert_close(jacobian[0], expected, rtol=1e-13, atol=1e-14)
    assert jacobian[1]["constant"]["a"].shape == (2, 2, 2)


def test_the_laplacian_is_differentiable_in_the_parameters():
    # What a physics-informed network trains on.
    x = randn(5, 3)

    def by_jets(p):
        return vmap(laplacian(lambda x: net(p, x)))(x).square().sum()

    def by_hessians(p):
        return vmap(lambda x: hessian(lambda x: net(p, x))(x).trace())(x).square().sum()

    torch.testing.assert_close(
        grad(by_jets)(P), grad(by_hessians)(P), rtol=1e-11, atol=1e-12
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("chunk_size", [None, 3])
def test_the_bilaplacian_is_the_laplacian_of_the_laplacian(n, chunk_size):
    w = randn(4, n)

    def g(x):
        # Not `prod`: its nested derivatives in torch have errors of 1e-8.
        a, b, c, d = torch.sin(w @ x)
        return a * b * c * d + x.square().sum() ** 2

    def trace(f):
        return lambda x: hessian(f)(x).trace()

    x = randn(n, seed=1)
    found = bilaplacian(g, chunk_size=chunk_size)(x)
    # Fourth derivatives of size 1e2, of which the directions' sums are a multiple of n^2.
    torch.testing.assert_close(found, trace(trace(g))(x), rtol=1e-11, atol=1e-10)


def test_bilaplacian_of_the_biharmonic_function_is_zero():
    # r^2 log r in the plane.
    def g(x):
        r2 = x.square().sum()
        return r2 * r2.log() / 2

    x = torch.tensor([0.6, -0.8], dtype=torch.float64)
    # Terms of size 100 cancel.
    assert abs(bilaplacian(g)(x)) < 100 * 20 * EPS


def test_leaves_of_no_elements_and_points_of_no_dimension():
    x = {"none": torch.ones(2, 0), "some": torch.tensor(2.0)}
    assert laplacian(lambda x: x["some"] ** 3 + x["none"].sum())(x) == 12
    assert bilaplacian(lambda x: x**4)(x["some"]) == 24


def test_order_zero_is_the_value_and_no_alias_of_the_argument():
    x = torch.tensor(2.0)
    value = nth_derivative(lambda x: x, 0)(x)
    assert value == 2
    assert value is not x


@pytest.mark.parametrize("order", [0, -1, 1.5, True, 171])
def test_an_order_that_is_none_is_refused(order):
    x = torch.tensor(1.0)
    with pytest.raises(
        po.HyperparameterError, match=r"order=\.\.\.\)` must be a whole"
    ):
        directional_derivatives(torch.sin, x, x, order)


def test_errors_say_what_to_do():
    x = torch.tensor(1.0)
    with pytest.raises(
        po.DerivativeError, match=r"tuple of one tree or more, got an em"
    ):
        jet(torch.sin, x, ())
    with pytest.raises(po.DerivativeError, match=r"got a tensor of shape \(\).*`\(dir"):
        jet(torch.sin, x, x)
    with pytest.raises(
        po.TreeError, match=r"series\[1\]=.*have the shapes of `primals`"
    ):
        jet(torch.sin, x, (x, torch.ones(2)))
    with pytest.raises(po.TreeError, match="only floating-point tensors"):
        nth_derivative(torch.sin, 2)(torch.tensor(1))
    with pytest.raises(po.DerivativeError, match=r"be a tensor, .*`directional_"):
        nth_derivative(lambda x: x["a"], 2)({"a": x})
    with pytest.raises(po.DerivativeError, match=r"must return tensors, got `float`"):
        jet(lambda x: 1.0, x, (x,))
    with pytest.raises(po.DerivativeError, match=r"got an assignment to `x\[...\]`"):
        laplacian(lambda x: x.__setitem__(0, 1.0))(torch.ones(2))
    with pytest.raises(po.HyperparameterError, match=r"positive integer, got 0"):
        laplacian(torch.sum, chunk_size=0)
    with pytest.raises(po.DerivativeError, match=r"got `torch.igamma`. Register one: "):
        jet(lambda x: torch.igamma(x, x), x, (x,))


def test_taylor_mode_does_not_nest_and_forward_and_reverse_mode_go_around_it():
    t, x = torch.tensor([0.7, 1.3], dtype=torch.float64)

    def inner(t):
        return nth_derivative(lambda x: torch.sin(t * x), 1)(x)

    # The series of `t` would be taken for one of `x`, and the result for a constant.
    refused = r"`nth_derivative\(.*only pass .* inside of `nth_.* `torch.func.grad` or"
    with pytest.raises(po.DerivativeError, match=refused):
        nth_derivative(inner, 1)(t)
    with pytest.raises(
        po.DerivativeError, match=r"`lap.*inside of `lap.*`bilaplacian`"
    ):
        laplacian(lambda y: laplacian(lambda x: torch.sin(y * x))(x))(t)
    # d/dt (t cos(t x)), in some ten roundings; the errors have left nothing behind.
    truth = torch.cos(t * x) - t * x * torch.sin(t * x)
    torch.testing.assert_close(grad(inner)(t), truth, rtol=1e-14, atol=0)
    _, slope = jvp(inner, (t,), (torch.ones_like(t),))
    torch.testing.assert_close(slope, truth, rtol=1e-14, atol=0)


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    """What runs, and with which arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((func, args))
        return func(*args, **(kwargs or {}))


def test_many_directions_cost_one_value():
    # Collapsed mode: 2 + D rows through each linear layer, not 1 + 2 D.
    w = randn(7, 7)
    x = randn(1, 7)
    with Calls() as calls:
        laplacian(lambda x: F.linear(torch.tanh(F.linear(x, w)), w).sum())(x)
    rows = [
        max(args[0].shape[0], args[1].shape[1])
        for func, args in calls.seen
        if func is torch.ops.aten.mm.default
    ]
    # First layer: value and directions; second: those and the sum of second derivatives,
    # but not the directions, whose outputs nobody asked for.
    assert sum(rows) <= (1 + 7) + (1 + 1) + 5 * 7


def test_the_slope_of_the_variable_multiplies_nothing():
    with Calls() as calls:
        laplacian(lambda x: torch.tanh(x).sum())(randn(7))
    names = [func.__name__.split(".")[0] for func, _ in calls.seen]
    # The first derivative of tanh; half the second; the squares of the directions, their
    # sum times that, and the factorial.
    assert names.count("addcmul") == 1
    assert names.count("mul") == 4
    assert "ones_like" not in names


@pytest.mark.slow
@pytest.mark.compile
def test_generated_code_gives_the_numbers_of_eager_code():
    x = randn(6, 3)

    def loss(p):
        u = vmap(laplacian(lambda x: net(p, x)))(x)
        return u.square().mean()

    def step(p, x, v):
        series = vmap(lambda x: directional_derivatives(lambda x: net(p, x), x, v, 3))(
            x
        )
        return torch.func.grad_and_value(loss)(p), series

    compiled = torch.compile(step, fullgraph=True)
    v = randn(3, seed=5)
    torch.testing.assert_close(compiled(P, x, v), step(P, x, v), rtol=1e-11, atol=1e-12)
