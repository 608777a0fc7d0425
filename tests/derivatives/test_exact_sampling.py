"""``exact``: sampling, unpooling, strided writes and transposed convolutions."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import grad, jacfwd, vmap
from torch.nn import functional as F

from pureopt.derivatives import exact, hvp, jet, nth_derivative
from tests.derivatives.exact_case import differentiated, words
from tests.derivatives.exact_cases_sampling import CALLS, INDEX, NN, X, part
from tests.derivatives.row import randn

ZERO = torch.zeros((), dtype=torch.float64)
PADDINGS = ("zeros", "border", "reflection")
MODES = [
    (axes, mode)
    for axes, mode in itertools.product((2, 3), ("bilinear", "nearest", "bicubic"))
    if (axes, mode) != (3, "bicubic")
]
modes = pytest.mark.parametrize(("axes", "mode"), MODES)
paddings = pytest.mark.parametrize("padding", PADDINGS)
corners = pytest.mark.parametrize("align_corners", [True, False])


def image(axes: int, dtype=torch.float64) -> torch.Tensor:
    return randn(2, 3, *(5, 4, 3)[:axes]).to(dtype)


def points(axes: int, dtype=torch.float64) -> torch.Tensor:
    """On the grid, off it by several of its sizes, on its corners and between."""
    spread = 2 * randn(2, *(4, 2, 3)[:axes], axes, seed=1)
    spread[0] = (4 * spread[0]).round() / 4
    return spread.to(dtype)


def close(got, expected, eps):
    # Sums of up to 16 products of a value and weights, which sum to at most four; a
    # coordinate is rounded three times and the values rise by at most 10 per step.
    torch.testing.assert_close(got, expected, rtol=64 * eps, atol=64 * eps)


@corners
@paddings
@modes
def test_samples_and_their_gradients_are_those_of_torch(
    axes, mode, padding, align_corners
):
    for dtype in (torch.float64, torch.float32):
        x, at = image(axes, dtype), points(axes, dtype)
        eps = torch.finfo(dtype).eps

        def f(x, at):
            return F.grid_sample(x, at, mode, padding, align_corners)

        close(exact(f)(x, at), f(x, at), eps)
        if mode == "nearest":
            assert torch.equal(exact(f)(x, at), f(x, at))
        for i in (0, 1):
            # The points that are on corners and ends of the grid too: the same side.
            ours, theirs = (
                grad(lambda *a, g=g: g(*a).sin().sum(), i)(x, at) for g in (exact(f), f)
            )
            # Sums over up to 3 channels, or 24 points, times a size of at most 5.
            close(ours / 64, theirs / 64, eps)


@modes
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_samples_in_half_precision_are_computed_in_it(axes, mode, dtype):
    x, at = image(axes, dtype), points(axes, dtype)
    for padding in PADDINGS:
        got, expected = (
            g(x, at, mode, padding, align_corners=False)
            for g in (exact(F.grid_sample), F.grid_sample)
        )
        # The same coordinates, weights and products; what differs is the order of sums.
        close(got, expected, torch.finfo(dtype).eps / 4)


@pytest.mark.parametrize("padding", PADDINGS)
def test_far_away_there_are_zeros_or_the_edge(padding):
    x = image(2)[:1]
    at = x.new_tensor([1e19, -1e19, 1e300, 3.0]).reshape(1, 2, 1, 2)
    for mode in ("bilinear", "nearest", "bicubic"):
        got, expected = (
            g(x, at, mode, padding, align_corners=False)
            for g in (exact(F.grid_sample), F.grid_sample)
        )
        if padding != "reflection":  # where a rounding is more than a size
            # Weights of numbers that are integers, hence zero and one.
            torch.testing.assert_close(got, expected, rtol=1e-14, atol=0.0)
        assert got.isfinite().all()
    # An infinite value counts only where it is a neighbor.
    x[0, 0, 0, 0] = torch.inf
    got = exact(F.grid_sample)(x, 0 * at, align_corners=True)
    assert torch.equal(got, F.grid_sample(x, 0 * at, align_corners=True))


def test_nearest_values_have_a_gradient_of_zero_and_not_none():
    at = points(2).requires_grad_()
    exact(F.grid_sample)(image(2), at, "nearest", align_corners=True).sum().backward()
    assert torch.equal(at.grad, torch.zeros_like(at))


def test_a_grid_of_one_value_has_no_slope():
    x, at = image(2)[..., :1, :1], points(2)
    for padding in ("border", "reflection"):
        f = exact(lambda at, p=padding: F.grid_sample(x, at, "bilinear", p, True).sum())
        assert torch.equal(grad(f)(at), torch.zeros_like(at))


calls = pytest.mark.parametrize("name", CALLS)


def total(f):
    return exact(lambda x: f(x).sin().sum())


@calls
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_the_value_is_that_of_torch(name, dtype):
    x = X.to(dtype)
    got, expected = exact(CALLS[name])(x), CALLS[name](x)
    close(got, expected, torch.finfo(dtype).eps)
    assert got.stride() == expected.stride() or "strided" not in name


@calls
def test_every_word_up_to_order_three_is_the_slope_of_the_order_before(name):
    def f(t):
        return total(CALLS[name])(X + t * X.sin().flip(0) + t * t)

    h = 1e-3
    for n in (1, 2, 3):
        g = differentiated(f, "F" * (n - 1))
        one, two = ((g(ZERO + k * h) - g(ZERO - k * h)) / (k * h) for k in (1, 2))
        # Off by h^4 / 30 times the fifth derivative, and by rounding over h.
        slope = (4 * one - two).item() / 6
        for word in words(n):
            got = differentiated(f, word)(ZERO).item()
            assert got == pytest.approx(slope, rel=1e-6, abs=1e-6), word


@calls
def test_taylor_mode_and_products_go_through(name):
    def f(t):
        return CALLS[name](X * (1 + t)).sin().sum()

    expected = [differentiated(exact(f), "RFR"[:n])(ZERO).item() for n in range(4)]
    # A few hundred terms that cancel by a factor of up to a hundred.
    one = torch.ones_like(ZERO)
    assert nth_derivative(f, 3)(ZERO).item() == pytest.approx(expected[3], rel=1e-11)
    assert jet(f, ZERO, [one])[0].item() == pytest.approx(expected[0], rel=1e-11)
    assert hvp(f, ZERO, one).item() == pytest.approx(expected[2], rel=1e-11)


@calls
def test_a_lane_is_the_call_on_its_input(name):
    batch = torch.stack([X, X.flip(0), X - 0.3])
    f = total(CALLS[name])
    lanes = torch.stack([f(x.clone()) for x in batch])
    torch.testing.assert_close(vmap(f)(batch), lanes, rtol=1e-13, atol=1e-13)
    slopes = torch.stack([grad(f)(x.clone()) for x in batch])
    torch.testing.assert_close(vmap(grad(f))(batch), slopes, rtol=1e-12, atol=1e-12)


FILLED = {
    "rows": lambda x, v: x.index_fill(0, torch.tensor([1, -1, 1]), v),
    "columns": lambda x, v: torch.index_fill(x, -1, torch.tensor([2]), v),
    "nothing": lambda x, v: torch.index_fill(x, 1, torch.tensor([]).long(), v),
    "number": lambda x, v: torch.index_fill(x * v, 1, torch.tensor([0]), 3.0),
    "wider": lambda x, v: x.index_fill(dim=0, index=torch.tensor(1), value=v.double()),
    "no rows": lambda x, v: (x[0, 0] * v).index_fill(0, torch.tensor([0]), v),
}


@pytest.mark.parametrize("name", FILLED)
def test_each_lane_is_filled_with_its_own_number(name):
    # torch 2.13: all lanes are filled with the number of the last.
    f = exact(FILLED[name])
    x, numbers = randn(3, 3, dtype=torch.float32), torch.tensor([1.0, 2.0, 3.0])
    for v in numbers:
        got, expected = f(x, v), FILLED[name](x, v)
        assert got.dtype == expected.dtype
        assert torch.equal(got, expected)
    loop = torch.stack([FILLED[name](x, v) for v in numbers])
    assert torch.equal(vmap(lambda v: f(x, v))(numbers), loop)
    slopes = torch.stack([grad(lambda v: f(x, v).sum())(v) for v in numbers])
    assert torch.equal(vmap(grad(lambda v: f(x, v).sum()))(numbers), slopes)


def test_each_lane_has_its_own_indices():
    index = torch.stack([INDEX, INDEX.flip(1), 7 - INDEX]).reshape(3, 2, 1, 6)
    f = exact(lambda x, i: NN.max_unpool2d(x, i, (2, 4)))
    one = part(X, 0, 2, 1, 6)
    lanes = torch.stack([f(one, i) for i in index])
    assert torch.equal(vmap(f, (None, 0))(one, index), lanes)
    every = part(X, 0, 3, 2, 1, 6)
    lanes = torch.stack([f(x, i) for x, i in zip(every, index, strict=True)])
    assert torch.equal(vmap(f)(every, index), lanes)


@calls
def test_shapes_are_those_of_torch_on_the_meta_device(name):
    x = X.to("meta")
    got = exact(CALLS[name])(x)
    assert got.device == x.device
    assert got.shape == CALLS[name](X).shape


def test_of_the_values_with_one_index_the_last_has_the_gradient():
    x = part(X, 0, 1, 6)
    f = exact(lambda x: F.max_unpool1d(x, INDEX[:1], 1).sum())
    # The indices are 3, 0, 3, 5, 0, 1.
    assert grad(f)(x).tolist() == [[0, 0, 1, 1, 1, 1]]


@pytest.mark.parametrize("size", [1, 7])
def test_a_strided_write_has_the_gradient_of_what_it_left(size):
    src, x = randn(size, 3, seed=4), randn(40)
    options = {"size": (size, 3), "stride": (2, 1), "storage_offset": 5}
    value = torch.as_strided_scatter(x, src, **options)
    f = exact(lambda *a: torch.as_strided_scatter(*a, **options).sum())
    stays, left = grad(f, (0, 1))(x, src)
    # Of numbers that are all different.
    assert torch.equal(stays, torch.isin(x, value).to(x))
    assert torch.equal(left, torch.isin(src, value).to(x))


def test_a_part_of_a_tensor_is_written_to_as_a_part_of_its_storage():
    def f(x):
        # Of its 18 values, ten lie behind the part.
        src = part(x, 0, 2, 9).exp()
        return torch.as_strided_scatter((2 * x)[20:40], src, (2, 9), (8, 3), 18)

    assert torch.equal(exact(f)(X), f(X))
    d = randn(60, seed=5)
    for word in words(2):
        got = differentiated(lambda t: total(f)(X + t * d), word)(ZERO).item()
        h = 1e-4
        slopes = (grad(total(f))(X + k * h * d) @ d / (2 * h) for k in (1, -1))
        # Off by h^2 / 6 times the fourth derivative.
        up, down = slopes
        assert got == pytest.approx((up - down).item(), rel=1e-4)


def test_a_module_is_its_function():
    module = torch.nn.ConvTranspose2d(2, 1, 3, 2, 3, 1, dtype=torch.float64)
    x = part(X, 0, 1, 2, 4, 3)

    def f(x):
        return F.conv_transpose2d(x, module.weight, module.bias, 2, 3, 1)

    close(exact(module)(x), module(x), torch.finfo(x.dtype).eps)
    for word in ("RRR", "FRF"):
        third, same = (
            differentiated(lambda t, g=g: exact(g)(x + t * x.sin()).exp().sum(), word)
            for g in (module, f)
        )
        assert third(ZERO) == same(ZERO)


EMPTY = {
    "no images": lambda x: F.grid_sample(
        x.reshape(1, 3, 4, 5)[:0], x.new_zeros(0, 2, 2, 2), align_corners=False
    ),
    "no channels": lambda x: F.grid_sample(
        x.reshape(1, 3, 4, 5)[:, :0], x.new_zeros(1, 2, 2, 2), align_corners=False
    ),
    "no points": lambda x: F.grid_sample(
        x.reshape(1, 3, 4, 5), x.new_zeros(1, 0, 2, 2), align_corners=False
    ),
    "no planes": lambda x: F.max_unpool2d(
        x.reshape(1, 3, 4, 5)[:0], INDEX.new_zeros(0, 3, 4, 5), 2
    ),
    "no samples": lambda x: F.conv_transpose1d(
        x.reshape(1, 3, 20)[:0], x.new_ones(3, 1, 2), stride=2, output_padding=1
    ),
}


@pytest.mark.parametrize("name", EMPTY)
def test_what_is_empty_stays_so(name):
    assert exact(EMPTY[name])(X).shape == EMPTY[name](X).shape
    assert not EMPTY[name](X).numel()


def sampler(image, grid, *modes):
    return lambda: torch.grid_sampler(torch.ones(image), torch.zeros(grid), *modes)


def unpool(shape, index, size, dtype=torch.int64):
    return lambda: NN.max_unpool2d(torch.ones(shape), index.to(dtype), size)


def strided(src, size, stride, offset=0):
    return lambda: torch.as_strided_scatter(
        torch.ones(6), torch.ones(src), size, stride, offset
    )


def convolved(shape, **options):
    options = {"stride": 2, "output_padding": 1} | options
    weight = torch.ones(2, 3, 3)
    return lambda: F.conv_transpose1d(torch.ones(shape), weight, **options)


REFUSED = {
    "sampler, batch": sampler((1, 2, 3, 4), (2, 1, 1, 2), 0, 0, True),
    "sampler, axes": sampler((1, 2, 3, 4), (1, 1, 1, 3), 0, 0, True),
    "sampler, dims": sampler((1, 3, 4), (1, 1, 1), 0, 0, True),
    "sampler, empty": sampler((1, 2, 0, 4), (1, 1, 1, 2), 0, 0, True),
    "sampler, bicubic 3d": sampler((1, 1, 2, 2, 2), (1, 1, 1, 1, 3), 2, 0, True),
    "sampler, dtypes": lambda: torch.grid_sampler(
        torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 1, 2).double(), 0, 0, True
    ),
    "sampler, 2d of 3d": lambda: torch.grid_sampler_2d(
        torch.ones(1, 1, 2, 2, 2), torch.zeros(1, 1, 1, 1, 3), 0, 0, True
    ),
    "unpool, dtype": unpool((2, 6), INDEX, (2, 4), torch.int32),
    "unpool, shape": unpool((1, 2, 5), INDEX.unsqueeze(0), (2, 4)),
    "unpool, dims": unpool((2, 6), INDEX, (2, 4)),
    "unpool, size": unpool((1, 2, 6), INDEX.unsqueeze(0), (8,)),
    "unpool, stride": lambda: NN.max_unpool3d(
        torch.ones(1, 1, 2, 6),
        INDEX.reshape(1, 1, 2, 6),
        (2, 2, 2),
        (0, 1, 1),
        (0,) * 3,
    ),
    "strided, src": strided((3,), (2,), (1,)),
    "strided, storage": strided((3,), (3,), (3,)),
    "strided, sizes": strided((2, 2), (2, 2), (1,)),
    "strided, backward": strided((2,), (2,), (-1,), 3),
    "strided, overlap": strided((2,), (2,), (0,)),
    "filling, complex": lambda: torch.ones(2).index_fill(0, INDEX[0], torch.tensor(1j)),
    "filling, dims": lambda: torch.ones(2).index_fill(1, INDEX[0], torch.tensor(1.0)),
    "convolution, channels": convolved((1, 1, 4)),
    "convolution, padding of the output": convolved((1, 2, 4), output_padding=2),
    "convolution, negative": convolved((1, 2, 4), padding=-1),
    "convolution, small": convolved((1, 2, 2), padding=4),
    "convolution, stride": convolved((1, 2, 4), stride=0),
    "convolution, sizes": convolved((1, 2, 4), output_padding=(1, 1)),
    "convolution, nothing": convolved((1, 2, 0)),
    "convolution, one sample": lambda: torch.convolution(
        torch.ones(2, 4), torch.ones(2, 3, 3), None, (2,), (0,), (1,), True, (1,), 1
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_in_its_words(name):
    with pytest.raises((RuntimeError, IndexError)) as theirs:
        REFUSED[name]()
    with pytest.raises(theirs.type) as ours:
        exact(REFUSED[name])()
    assert str(ours.value) == str(theirs.value)


def test_an_index_off_the_grid_is_refused():
    with pytest.raises(RuntimeError, match="index 7 is out of bounds"):
        exact(F.max_unpool1d)(part(X, 0, 2, 6), INDEX, 1)


def test_a_jet_meets_each_convolution():
    def f(t, transposed=False, extra=0):
        x, weight = part(X, 0, 1, 2, 5) * t.exp(), part(X, 10, 2, 2, 3)
        return (
            torch.convolution(
                x, weight, None, (2,), (1,), (1,), transposed, (extra,), 1
            )
            .sin()
            .sum()
        )

    for options in ((False, 0), (True, 0), (True, 1)):
        third = nth_derivative(lambda t, o=options: f(t, *o), 3)(ZERO)
        expected = differentiated(lambda t, o=options: f(t, *o), "FFF")(ZERO)
        torch.testing.assert_close(third, expected, rtol=1e-11, atol=1e-12)


def test_without_an_output_padding_a_convolution_is_that_of_torch():
    x, weight = part(X, 0, 1, 2, 5), part(X, 10, 2, 3, 4)
    for f in (
        lambda x: F.conv_transpose1d(x, weight, stride=2, padding=1),
        lambda x: torch.convolution(
            x, weight[:, :2], None, (1,), (0,), (1,), False, (0,), 1
        ),
    ):
        assert torch.equal(exact(f)(x), f(x))


@pytest.mark.compile
@pytest.mark.parametrize(
    ("name", "dynamic"),
    [
        ("grid_sampler_2d", None),
        ("max_unpool1d", True),
        ("as_strided_scatter", None),
        ("conv_transpose1d", True),
    ],
)
def test_a_nesting_traces(name, dynamic):
    h = jacfwd(grad(total(CALLS[name])))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    torch.testing.assert_close(compiled(X), h(X), rtol=1e-12, atol=1e-12)
