"""What a function under Taylor mode may write to."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, vmap

import pureopt as po
from pureopt._errors import DerivativeError
from pureopt.derivatives import exact, laplacian
from tests.derivatives.row import randn


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


def in_place_on_a_first_matrix_power(x):
    h = x.outer(x.sin())
    y = torch.linalg.matrix_power(h, 1)
    y += 1
    return (h * y).sum()


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
        in_place_on_a_first_matrix_power,
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
        (lambda x: torch.einsum("ii->i", x.outer(x)).add_(1), "`add_`"),
        (lambda x: x.sin().conj_physical().add_(1), "`add_`"),
        (lambda x: x.sin().sum_to_size(3).add_(1), "`add_`"),
        (lambda x: torch.view_as_complex(x.sin()[:2]).add_(1), "`add_`"),
        (lambda x: copy.copy(x.sin()).add_(1), "`add_`"),
    ],
    ids=[
        *("view", "operator", "argument", "shape", "einsum", "conjugate", "size"),
        *("complex", "copy"),
    ],
)
def test_writing_to_what_others_share_is_refused(f, got):
    with pytest.raises(po.DerivativeError, match=got):
        laplacian(f)(randn(3))


def write_to_a_factor(x):
    s = torch.ones(3, dtype=x.dtype)
    y = x * s
    s += 1
    return (y * s).sin().sum()


def write_to_a_mask(x):
    m = torch.tensor([True, False, True])
    y = torch.where(m, x, 2 * x)
    m.logical_not_()
    return y.exp().sum()


def write_to_an_index(x):
    i = torch.tensor([0, 1])
    y = x[None, i]
    i += 1
    return (y**3).sum()


def write_to_a_matrix(x):
    w = torch.eye(3, dtype=x.dtype)
    y = w @ x
    w.mul_(3)
    return (y**3).sum()


def write_to_a_weight(x):
    w = torch.eye(3, dtype=x.dtype)
    y = nn.functional.linear(x, w)
    w.mul_(3)
    return y.tanh().sum()


def write_to_a_list(x):
    w = [torch.eye(3, dtype=x.dtype), torch.ones(3, dtype=x.dtype)]
    y = torch.einsum("ij,j,j->i", w[0], x, w[1])
    w[1].zero_()
    return y.tanh().sum()


def write_to_a_nested_index(x):
    i = torch.tensor([0, 1])
    y = (x[:, None] * torch.ones(3, dtype=x.dtype))[:, [[i[0], 1], [1, i[1]]]]
    i += 1
    return (y**3).sum()


WRITES = [
    write_to_a_nested_index,
    write_to_a_factor,
    write_to_a_mask,
    write_to_an_index,
    write_to_a_matrix,
    write_to_a_weight,
    write_to_a_list,
]


@pytest.mark.parametrize("f", WRITES, ids=lambda f: f.__name__)
def test_a_constant_may_not_change_before_it_is_read(f):
    x = randn(4, 3)
    with pytest.raises(DerivativeError, match="not write in place to what it has used"):
        laplacian(f)(x[0])
    with pytest.raises(DerivativeError, match="not write in place to what it has used"):
        torch.func.vmap(laplacian(f))(x)


def test_a_constant_that_is_not_read_any_more_may_change():
    def f(x):
        s = 2 * torch.ones(3, dtype=x.dtype)
        y = (x * s).sin()  # here all is computed
        s.zero_()
        return y.sum() + (x * s).sum()

    x = randn(3)
    torch.testing.assert_close(laplacian(f)(x), -4 * (2 * x).sin().sum())


def test_a_factor_of_a_sum_is_read_at_once():
    def f(x):
        alpha = torch.tensor(2.0, dtype=x.dtype)
        y = torch.add(x, x.square(), alpha=alpha)
        alpha.zero_()
        return y.exp().sum()

    x = randn(3)
    expected = hessian(lambda x: (x + 2 * x.square()).exp().sum())(x).trace()
    torch.testing.assert_close(laplacian(f)(x), expected, rtol=1e-12, atol=0)


def test_a_value_may_be_written_to_outside_of_the_series():
    def f(x):
        y = x.exp()
        c = y * 2
        y.detach().mul_(3)
        return (c * x).sum()

    x = randn(3)
    expected = (2 * x.exp() * (x + 2)).sum()
    torch.testing.assert_close(laplacian(f)(x), expected, rtol=1e-12, atol=0)


def test_what_gives_its_shape_or_dtype_alone_may_change():
    def f(x):
        other = torch.ones(3, 1, dtype=x.dtype)
        y = x.view_as(other).type_as(other).to(other) + x.reshape_as(other)
        other.zero_()
        return y.exp().sum()

    x = randn(3)
    expected = 4 * (2 * x).exp().sum()
    torch.testing.assert_close(laplacian(f)(x), expected, rtol=1e-12, atol=0)


def test_a_constant_of_the_lanes_may_not_change_before_it_is_read():
    def f(x, c):
        c = c.clone()
        y = x * c
        c.zero_()
        return (y**3).sum()

    x = randn(2, 3)
    with pytest.raises(DerivativeError, match="not write in place to what it has used"):
        torch.func.vmap(lambda x, c: laplacian(lambda x: f(x, c))(x))(x, x)


def change_an_index(x):
    i = [0, 1]
    y = x[i]
    i[0] = 2
    i.append(1)
    return (y**3).sum()


def change_a_nested_index(x):
    i = [[[0, 1], [1, 2]]]
    y = (x[:, None] * x)[:, i]
    i[0][0][0] = 2
    return (y**2).sum()


def change_dims(x):
    dims = [1, 0]
    y = (x[:, None] * torch.arange(2, dtype=x.dtype)).permute(dims)
    dims.reverse()
    return (y**3)[1].sum()


def change_dims_by_name(x):
    dims = [0]
    y = (x[:, None] * x).sum(dim=dims)
    dims.append(1)
    return y.exp().sum()


def change_a_shape(x):
    shape = [3, 1]
    y = x.reshape(shape)
    shape[0] = 1
    return (y * x).sum(0).exp().sum()


@pytest.mark.parametrize(
    "f",
    [
        change_an_index,
        change_a_nested_index,
        change_dims,
        change_dims_by_name,
        change_a_shape,
    ],
    ids=lambda f: f.__name__,
)
def test_a_list_is_read_when_it_is_passed(f):
    x = randn(3)
    truth = hessian(f)(x).trace()
    torch.testing.assert_close(laplacian(f)(x), truth, rtol=1e-12, atol=1e-12)
    lanes = torch.func.vmap(laplacian(f))(torch.stack([x, 2 * x]))
    torch.testing.assert_close(lanes[0], truth, rtol=1e-12, atol=1e-12)


@torch.library.custom_op("pureopt_tests::twice", mutates_args=())
def twice(x: torch.Tensor) -> torch.Tensor:
    return 2 * x


@torch.library.custom_op("pureopt_tests::half_square", mutates_args=())
def half_square(x: torch.Tensor) -> torch.Tensor:
    return x * x / 2


@torch.library.custom_op("pureopt_tests::another_exp", mutates_args=())
def another_exp(x: torch.Tensor) -> torch.Tensor:
    return x.exp()


def test_a_registered_derivative_may_be_a_constant_that_changes():
    slope = torch.full((3,), 2.0, dtype=torch.float64)
    po.derivatives.register_jet_derivative(twice, lambda x, y: slope)

    def f(x):
        y = twice(x)
        slope.fill_(5.0)
        z = (y**3).sum()
        slope.fill_(2.0)
        return z

    x = randn(3)
    torch.testing.assert_close(laplacian(f)(x), (48 * x).sum(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("op", "derivative"),
    [(half_square, lambda x, y: x), (another_exp, lambda x, y: y.view(3))],
    ids=["the argument", "a view of the value"],
)
def test_a_registered_derivative_may_be_what_is_written_to_later(op, derivative):
    po.derivatives.register_jet_derivative(op, derivative)

    def f(x):
        u = x.sin()
        y = op(u)
        (u if op is half_square else y).detach().mul_(3)
        return (y * 1).square().sum()

    def same(x):
        u = x.sin()
        # The value of `y` is three times as large, its derivatives are not.
        if op is half_square:
            return (u * u / 2).square().sum()
        return ((u.exp() + 2 * u.exp().detach()) ** 2).sum()

    x = randn(3)
    truth = hessian(same)(x).trace()
    torch.testing.assert_close(laplacian(f)(x), truth, rtol=1e-12, atol=1e-12)


@torch.inference_mode()
def test_constants_that_torch_does_not_count_the_writes_of_are_read_at_once():
    def f(x):
        c = torch.full((3,), 2.0, dtype=torch.float64)
        y = x * c
        c.zero_()
        return y.sin().sum()

    x = randn(3)
    truth = -4 * (2 * x).sin()
    torch.testing.assert_close(laplacian(f)(x), truth.sum(), rtol=1e-12, atol=0)
    lanes = torch.func.vmap(laplacian(f))(x[:, None].expand(3, 3))
    torch.testing.assert_close(lanes, 3 * truth, rtol=1e-12, atol=1e-12)


def test_they_may_stand_beside_others():
    w = torch.ones(3, dtype=torch.float64)

    def f(x):
        c = torch.full((3,), 2.0, dtype=torch.float64)
        y = torch.einsum("i,i,i->i", w, x, c)
        c.zero_()
        return y.sin().sum()

    x = randn(3)
    with torch.inference_mode():
        got = laplacian(f)(x)
    truth = -4 * (2 * x).sin().sum()
    torch.testing.assert_close(got.clone(), truth, rtol=1e-12, atol=0)


class Listed(list):
    """Another list."""


def test_a_list_of_another_class_is_read_too():
    def f(x):
        dims = Listed([1, 0])
        y = (x[:, None] * torch.arange(2, dtype=x.dtype)).permute(dims)
        dims.reverse()
        return (y**3)[1].sum()

    x = randn(3)
    torch.testing.assert_close(
        laplacian(f)(x), hessian(f)(x).trace(), rtol=1e-12, atol=0
    )


def test_a_value_may_be_written_to_outside_of_the_series_of_a_sum_of_products():
    def f(x):
        y = x.exp()
        z = torch.einsum("i,i->i", y, torch.ones(3, dtype=x.dtype))
        y.detach().mul_(3)
        return (z**2).sum()

    x = randn(3)
    truth = (4 * (2 * x).exp()).sum()
    torch.testing.assert_close(laplacian(f)(x), truth, rtol=1e-12, atol=0)


MASK = torch.tensor([True, False, True])
ASSIGNED = {
    "number": lambda x, y: y.__setitem__(1, 0.5),
    "element": lambda x, y: y.__setitem__((0, 2), x[1, 1].exp()),
    "row": lambda x, y: y.__setitem__(0, x[1] ** 2),
    "rows": lambda x, y: y.__setitem__(slice(1, None), x[0] * x[1:]),
    "column": lambda x, y: y.__setitem__((slice(None), 1), x[:, 0].cos()),
    "last": lambda x, y: y.__setitem__((..., -1), x[0, 0]),
    "constants": lambda x, y: y.__setitem__(2, torch.arange(1.0, 4)),
    "of length one": lambda x, y: y.__setitem__(2, x[None, :1] ** 2),
    "indices": lambda x, y: y.__setitem__(torch.tensor([2, 0]), x[:2].sin()),
    "pairs": lambda x, y: y.__setitem__(([0, 1], [2, 2]), x[0, :2]),
    "masked rows": lambda x, y: y.__setitem__(MASK, x[1] ** 3),
    "masked by a number": lambda x, y: y.__setitem__(MASK, x.prod()),
    "masked elements": lambda x, y: y.__setitem__(x > 0, 2.0),
    "nothing": lambda x, y: y.__setitem__(slice(0, 0), 1.0),
    "all": lambda x, y: y.__setitem__(..., x.exp()),
}


def after_writing(name):
    def f(x):
        y = x.sin()
        same = y
        ASSIGNED[name](x, y)
        return (same * x.exp()).prod(-1).sum()

    return f


@pytest.mark.parametrize("name", ASSIGNED)
def test_parts_of_a_value_are_assigned(name):
    x, f = randn(3, 3), after_writing(name)
    trace = lambda x: hessian(f)(x).reshape(9, 9).trace()  # noqa: E731
    # Products of six sines and exponentials of numbers below three.
    close = {"rtol": 1e-12, "atol": 1e-11}
    torch.testing.assert_close(laplacian(f)(x), trace(x), **close)
    torch.testing.assert_close(grad(laplacian(f))(x), grad(trace)(x), **close)
    torch.testing.assert_close(vmap(laplacian(f))(x[None])[0], trace(x), **close)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["row", "column", "masked elements"])
def test_compiled_parts_of_a_value_are_assigned(name):
    x, f = randn(3, 3), laplacian(after_writing(name))
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize(
    ("write", "error", "words"),
    [
        (lambda x: x.__setitem__(0, 1.0), DerivativeError, "to an argument"),
        (lambda x: x.sin().__setitem__(0, x * 1j), DerivativeError, "complex128 into"),
        (lambda x: x.sin().__setitem__(0, x), RuntimeError, "expanded size"),
        (lambda x: x.sin().__setitem__(3, 1.0), IndexError, "out of bounds"),
        (lambda x: x.sin().__setitem__(MASK[:2], 1.0), IndexError, "mask"),
    ],
    ids=["argument", "complex", "shape", "index", "mask"],
)
def test_what_cannot_be_assigned_is_refused(write, error, words):
    with pytest.raises(error, match=words):
        laplacian(write)(randn(3))


def test_what_is_assigned_takes_the_dtype_of_what_it_is_written_to():
    tree = {"x": torch.ones(3), "wide": torch.tensor(2.0, dtype=torch.float64)}

    def f(t):
        y = t["x"].sin()
        y[MASK] = t["wide"] ** 2
        y[1] = t["wide"] ** 3
        return y

    value, (slope,) = po.derivatives.jet(f, tree, (tree,))
    assert value.dtype == slope.dtype == torch.float32
    assert value.tolist() == [4, 8, 4]
    assert slope.tolist() == [8, 24, 8]
