"""What was wrong once, by one small case each."""

from __future__ import annotations

import pytest
import torch
from torch.func import vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

import pureopt.derivatives as D
from pureopt._errors import DerivativeError, HyperparameterError, TreeError
from pureopt.derivatives import (
    Gaussian,
    directional_derivatives,
    exact,
    forward_laplacian,
    ggnvp,
    grad_at,
    hessian,
    hessian_diag_estimate,
    hvp,
    jet,
    lanczos,
    laplacian,
    log_determinant,
    nth_derivative,
    spectral_density,
    tap,
    top_eigenpairs,
    trace_hutchinson,
    trace_hutchpp,
    trace_xtrace,
)
from pureopt.random import key as random_key
from pureopt.random import split
from tests.derivatives.row import randn

A, B = randn(3, seed=1), randn(3, seed=2)
ROWS, INTEGERS = torch.tensor([0, 2]), torch.tensor([3, 4, 5])


def curved(f, x):
    """The second derivatives of ``f`` along 1 by torch, with the first and the value."""
    one = torch.ones_like(x)
    along = lambda t: exact(f)(x + t * one)  # noqa: E731
    slope = torch.func.jacfwd(along)
    zero = torch.zeros((), dtype=x.dtype)
    return along(zero), slope(zero), torch.func.jacfwd(slope)(zero)


# Rounding of a few operations on numbers of order one.
CLOSE = {"rtol": 1e-13, "atol": 1e-13}


WITH_CONSTANTS = {
    "addcmul to": lambda x: torch.addcmul(x, A, B, value=0.5),
    "addcmul of": lambda x: torch.addcmul(A, B, x.exp(), value=0.5),
    "addcdiv to": lambda x: torch.addcdiv(x, A, B, value=0.5),
    "addcdiv of": lambda x: torch.addcdiv(A, B, x.exp(), value=0.5),
    "lerp by": lambda x: torch.lerp(A, B, x.exp()),
    "lerp from": lambda x: torch.lerp(x.exp(), A, 0.25),
    "rsub": lambda x: torch.rsub(x.exp(), A, alpha=3),
    "rsub from": lambda x: torch.rsub(A, x.exp(), alpha=3),
    "rsub of a number": lambda x: torch.rsub(x.exp(), 2, alpha=3),
    "quantile of a number": lambda x: torch.quantile(x.exp()[0], 0.5, 0),
    "quantile": lambda x: torch.quantile(x.exp(), 0.3, 0, keepdim=True),
    "index_fill of integers": lambda x: (
        A * torch.index_fill(INTEGERS, 0, ROWS, x.exp()[0])
    ),
    "rows of a kernel": lambda x: torch.embedding(x.outer(x.exp()), ROWS),
    "rows but one": lambda x: torch.embedding(x.outer(x.exp()), ROWS, 2),
}


@pytest.mark.parametrize("name", WITH_CONSTANTS)
def test_constants_may_stand_in_any_place(name):
    x, f = randn(3, seed=4), WITH_CONSTANTS[name]
    got = directional_derivatives(f, x, torch.ones_like(x), 2)
    for one, other in zip(got, curved(f, x), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_the_factors_of_a_sum_of_products_have_their_names():
    x, batch = randn(3, seed=4), randn(2, 3, 3, seed=5)

    def f(x):
        return torch.addbmm(x.sin(), batch2=x * batch, batch1=batch, beta=2)

    got = directional_derivatives(f, x, torch.ones_like(x), 2)
    for one, other in zip(got, curved(f, x), strict=True):
        torch.testing.assert_close(one, other, **CLOSE)


def test_the_sum_of_products_times_zero_leaves_out_what_is_not_a_number():
    x = torch.ones(3, 3)
    f = lambda x: torch.addbmm(x * torch.nan, x[None], x[None], beta=0)  # noqa: E731
    value, (first,) = jet(f, x, (x,))
    assert torch.equal(value, 3 * x)
    assert torch.equal(first, 6 * x)


@pytest.mark.parametrize("op", [torch.addr, torch.addmv], ids=lambda op: op.__name__)
def test_times_zero_leaves_out_what_is_not_a_number(op):
    nan = torch.full((3,) if op is torch.addmv else (3, 3), torch.nan)
    a = torch.eye(3) if op is torch.addmv else torch.ones(3)
    x = torch.ones(3)
    value, (first,) = jet(lambda x: op(nan, a, x, beta=0), x, (x,))
    assert torch.equal(value, torch.ones_like(nan))
    assert torch.equal(first, torch.ones_like(nan))


# Joined in one column beside another, and filled in where an index says so.
ONES = torch.ones(4, 3, dtype=torch.float64)
OF_MANY_DIRECTIONS = {
    "index_fill": lambda x: torch.index_fill(ONES, 0, ROWS, x.prod()),
    "index_fill of a column": lambda x: torch.index_fill(x * ONES, 1, ROWS, x[1]),
    "index_fill of a number": lambda x: torch.index_fill(x.prod(), 0, ROWS[:1], x[0]),
    "column_stack": lambda x: torch.column_stack([x, torch.outer(x, x), x.exp()]),
    "zeta": lambda x: torch.special.zeta(torch.tensor([[2.0], [3.5]]), x.exp() + 1),
}


@pytest.mark.parametrize("name", OF_MANY_DIRECTIONS)
def test_a_laplacian_is_the_sum_of_second_derivatives(name):
    x = randn(3, seed=6)

    def f(x):
        return OF_MANY_DIRECTIONS[name](x).sin()

    def along(v):
        return directional_derivatives(f, x, v, 2)

    each = [along(v) for v in torch.eye(3, dtype=x.dtype)]
    out = forward_laplacian(f)(x)
    torch.testing.assert_close(out.laplacian, sum(d[2] for d in each), **CLOSE)
    first = torch.stack([d[1] for d in each], -1)
    torch.testing.assert_close(out.jacobian, first, **CLOSE)


def test_a_quantile_that_does_not_exist_is_refused():
    x = randn(3, seed=6)
    with pytest.raises(RuntimeError, match="in the range"):
        jet(lambda x: torch.quantile(x, 1.1, interpolation="nearest"), x, (x.clone(),))


def test_what_is_filled_in_is_one_number():
    x = randn(3, seed=6)
    with pytest.raises(RuntimeError, match="0-dimensional value"):
        jet(lambda x: torch.index_fill(x, 0, ROWS, x[:1]), x, (x.clone(),))


def test_filling_in_a_number_has_the_trace_of_its_hessian():
    x = randn(3, seed=6)

    def f(x):
        return torch.index_fill(x * ONES, 0, ROWS, x.prod()).sin()

    trace = hessian(f)(x).diagonal(dim1=-2, dim2=-1).sum(-1)
    torch.testing.assert_close(laplacian(f)(x), trace, **CLOSE)
    torch.testing.assert_close(vmap(laplacian(f))(x[None])[0], trace, **CLOSE)


@pytest.mark.parametrize(
    ("f", "got", "hint"),
    [
        (
            lambda w: F.embedding(ROWS, w, max_norm=0.1),
            "`embedding` with `max_norm`",
            "torch.renorm",
        ),
        (lambda w: torch.special.zeta(w.exp(), w), "one that varies", "detach"),
        (torch.svd_lowrank, "`svd_lowrank`, which draws", "from a key"),
        (torch.pca_lowrank, "`pca_lowrank`, which draws", "from a key"),
    ],
    ids=["embedding", "zeta", "svd_lowrank", "pca_lowrank"],
)
def test_what_has_no_series_is_refused_and_nothing_is_written(f, got, hint):
    w, v = randn(3, 2, seed=7), randn(3, 2, seed=8)
    before = w.clone(), v.clone()
    with pytest.raises(DerivativeError) as error:
        jet(f, w, (v,))
    assert got in str(error.value)
    assert hint in str(error.value)
    assert torch.equal(w, before[0])
    assert torch.equal(v, before[1])


@pytest.mark.parametrize(
    "f",
    [
        lambda w: w.detach().add_(1).sum() + w.sum(),
        lambda w: F.embedding_bag(ROWS[None], w, max_norm=0.1),
    ],
    ids=["detach", "embedding_bag"],
)
def test_a_write_to_the_value_of_a_series_is_seen(f):
    w = randn(3, 2)
    with pytest.raises(DerivativeError, match="writes in place to its input"):
        jet(f, w, (w.clone(),))


@pytest.mark.parametrize("operator", [laplacian, forward_laplacian])
def test_what_has_no_rule_for_vmap_is_not_taken_for_a_write(operator):
    start = torch.tensor(1)
    with pytest.raises(DerivativeError, match="`narrow`, which has no rule for vmap"):
        operator(lambda x: torch.narrow(x * x, 0, start, 2).sin())(randn(4))


def test_names_are_those_at_the_time():
    names = ["hidden"]
    gradient = grad_at(lambda x: tap(x, "hidden").sum(), names)
    names.append("output")
    assert torch.equal(gradient(A)["hidden"], torch.ones_like(A))


NUMBER = torch.tensor(2.0)
ON_A_NUMBER = {
    "jet(f=...)": lambda f, x: jet(f, x, (x,)),
    "nth_derivative(f=...)": lambda f, x: nth_derivative(f, 2)(x[0]),
    "laplacian(f=...)": lambda f, x: laplacian(f)(x),
    "hvp(f=...)": lambda f, x: hvp(f, x, x),
    "hessian(f=...)": lambda f, x: hessian(f)(x),
    "ggnvp(loss=...)": lambda f, x: ggnvp(torch.sin, f, x, x),
    "ggnvp(model=...)": lambda f, x: ggnvp(f, torch.sum, x, x),
    "grad_at(f=...)": lambda f, x: grad_at(f, "hidden")(x),
    "lanczos(matvec=...)": lambda f, x: lanczos(f, x, 2),
}


@pytest.mark.parametrize("where", ON_A_NUMBER)
def test_a_value_in_the_place_of_a_function_is_named(where):
    with pytest.raises(DerivativeError) as error:
        ON_A_NUMBER[where](NUMBER, randn(3))
    assert str(error.value).startswith(f"`{where}` must be a function, got a tensor")
    assert "not its value" in str(error.value)


@pytest.mark.parametrize("names", [None, 3])
def test_what_is_no_name_is_named(names):
    with pytest.raises(DerivativeError, match="must be a name or a sequence of names"):
        grad_at(lambda x: tap(x, "hidden").sum(), names)


KEYED = {
    "hessian_diag_estimate": lambda x, key: hessian_diag_estimate(
        lambda x: x.sin().sum(), x, key=key, samples=2
    ),
    "trace_hutchinson": lambda x, key: trace_hutchinson(
        torch.sin, x, key=key, matvecs=4
    ),
    "trace_hutchpp": lambda x, key: trace_hutchpp(torch.sin, x, key=key, matvecs=6),
    "trace_xtrace": lambda x, key: trace_xtrace(torch.sin, x, key=key, matvecs=4),
    "spectral_density": lambda x, key: spectral_density(
        torch.sin, x, key=key, probes=2, steps=2
    ),
    "log_determinant": lambda x, key: log_determinant(
        torch.exp, x, key=key, probes=2, steps=2
    ),
    "top_eigenpairs": lambda x, key: top_eigenpairs(torch.sin, x, 2, key=key),
}


@pytest.mark.parametrize("name", KEYED)
@pytest.mark.parametrize("key", [split(random_key(0), 2), torch.tensor(0.5), 3])
def test_what_is_not_one_key_is_named(name, key):
    with pytest.raises(HyperparameterError) as error:
        KEYED[name](randn(5), key)
    assert str(error.value).startswith(f"`{name}(key=...)` must be one key")
    assert "torch.func.vmap" in str(error.value)


@pytest.mark.parametrize("grid", [torch.tensor(0.5), 0.5])
def test_a_number_in_the_place_of_a_grid_is_named(grid):
    key = random_key(0)
    spectrum = spectral_density(torch.sin, randn(5), key=key, probes=2, steps=2)
    for evaluate in (
        spectrum.cumulative,
        lambda grid: spectrum.density(grid, width=0.1),
    ):
        with pytest.raises(DerivativeError, match="must be a tensor of one dimension"):
            evaluate(grid)


def test_a_scale_that_is_no_number_is_named():
    with pytest.raises(HyperparameterError, match="must be > 0, got 'a'"):
        Gaussian("a")


Y = randn(3, seed=3)
SIGNS = torch.tensor([1.0, -1.0, 1.0], dtype=Y.dtype)
LOSSES = {
    "kl_div": lambda x: torch.kl_div(x, Y.exp()),
    "hinge_embedding": lambda x: torch.hinge_embedding_loss(x, SIGNS),
    "margin_ranking": lambda x: torch.margin_ranking_loss(x, Y, SIGNS),
    "cosine_embedding": lambda x: torch.cosine_embedding_loss(
        x[None].expand(2, 3), Y[None].expand(2, 3), SIGNS[:2]
    ),
}


@pytest.mark.parametrize("name", LOSSES)
def test_kernels_of_losses_are_not_reduced_unless_they_are_told_to(name):
    f, x, v = LOSSES[name], randn(3, seed=4), randn(3, seed=5)
    value, (slope,) = jet(f, x, (v,))
    torch.testing.assert_close(value, f(x), **CLOSE)
    torch.testing.assert_close(slope, torch.func.jvp(f, (x,), (v,))[1], **CLOSE)


@pytest.mark.compile
def test_another_order_compiles_after_the_first():
    compiled = torch.compile(
        lambda x, n: nth_derivative(torch.sin, n)(x),
        fullgraph=True,
        backend="aot_eager",
    )
    x = torch.tensor(0.7, dtype=torch.float64)
    for n, right in ((1, x.cos()), (3, -x.cos()), (2, -x.sin())):
        torch.testing.assert_close(compiled(x, n), right, **CLOSE)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["hardsigmoid", "hardswish"])
def test_what_the_compiler_does_not_show_by_itself_has_its_rule(name):
    f = getattr(F, name)
    # As in a new process: they stay in the list once they are there.
    torch._dynamo.variables.torch.get_overridable_functions().discard(f)
    torch._dynamo.reset()

    def second(x):
        return nth_derivative(lambda x: f(x) ** 2, 2)(x)

    x = torch.tensor(0.5, dtype=torch.float64)
    compiled = torch.compile(second, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), second(x), **CLOSE)


class Products(TorchDispatchMode):
    """Counts products of matrices."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "count"),
    [((4,), 2), ((2, 4), 2), ((2, 2, 4), 2), ((4, 4), 2), ((6, 4), 4)],
    ids=["vector", "few rows", "few in a batch", "as many", "many rows"],
)
@pytest.mark.parametrize("name", ["linear", "matmul"])
def test_a_matrix_meets_all_coefficients_of_fewer_rows_at_once(shape, count, name):
    w = randn(4, 4, seed=6)
    f = (lambda x: F.linear(x, w)) if name == "linear" else (lambda x: x @ w.T)
    x, *series = (randn(*shape, seed=seed) for seed in range(4))
    with Products() as seen:
        value, terms = jet(f, x, series)
    assert seen.count == count
    for term, c in zip((value, *terms), (x, *series), strict=True):
        torch.testing.assert_close(term, f(c), **CLOSE)
    _, terms = jet(f, x, (series[0], None, series[2]))
    assert not terms[1].any()
    torch.testing.assert_close(terms[2], f(series[2]), **CLOSE)


OF_NUMBERS = {
    "tensor": lambda x: torch.tensor([x[0] ** 2, x[1]]).sum(),
    "nested": lambda x: torch.as_tensor([[1.0, 2.0], (x[0], x[1])]).sum(),
    "array": lambda x: torch.asarray([x[0] * x[1]]).sum(),
    "new": lambda x: x.new_tensor([x[0] * x[1]]).sum(),
}


@pytest.mark.parametrize("name", OF_NUMBERS)
@pytest.mark.parametrize(
    "call",
    [
        lambda f, x: hvp(f, x, x),
        lambda f, x: hessian(f)(x),
        lambda f, x: D.jacobian(f)(x),
        lambda f, x: D.per_sample_grads(lambda p, y: f(p))(x, x),
        lambda f, x: D.per_sample_grad_norms(lambda p, y: f(p))(x, x),
        lambda f, x: laplacian(f)(x),
    ],
    ids=["hvp", "hessian", "jacobian", "grads", "norms", "laplacian"],
)
def test_a_tensor_of_numbers_that_loses_derivatives_is_refused(name, call):
    with pytest.raises(DerivativeError, match=r"numbers in tensors.*torch\.stack"):
        call(OF_NUMBERS[name], randn(2))


@pytest.mark.compile
@pytest.mark.parametrize("call", [hvp, D.vhp], ids=lambda f: f.__name__)
def test_compiled_a_tensor_of_numbers_that_loses_derivatives_is_refused(call):
    compiled = torch.compile(
        lambda x: call(OF_NUMBERS["tensor"], x, x), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(Exception, match="have derivatives"):
        compiled(randn(2))


def test_a_tensor_of_constants_is_one():
    x = randn(2)

    def f(x):
        two = torch.tensor([2.0, x.detach()[0]])[0] * torch.asarray(obj=[1.0])[0]
        return x.sum() ** 2 * two * x.new_tensor([1.0, x.shape[0]])[0]

    # Two times two, twice over, times the two of the square.
    torch.testing.assert_close(hessian(f)(x), torch.full((2, 2), 4.0).double())


@pytest.mark.parametrize("layout", ["sparse_coo", "sparse_csr"])
@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support:UserWarning")
def test_a_sparse_argument_is_refused(layout):
    s = getattr(torch.eye(3), f"to_{layout}")()
    for call in (
        lambda s: hvp(lambda s: s.to_dense().sum(), s, s),
        laplacian(lambda s: s.to_dense().sum()),
    ):
        with pytest.raises(TreeError, match=f"only dense tensors, got .*{layout}"):
            call(s)


@pytest.mark.parametrize(
    "estimate",
    [
        lambda like, key: trace_hutchinson(torch.clone, like, key=key, matvecs=4),
        lambda like, key: trace_hutchpp(torch.clone, like, key=key, matvecs=4),
        lambda like, key: trace_xtrace(torch.clone, like, key=key, matvecs=4),
        lambda like, key: spectral_density(
            torch.clone, like, key=key, probes=2, steps=2
        ),
        lambda like, key: log_determinant(
            torch.clone, like, key=key, probes=2, steps=2
        ),
        lambda like, key: top_eigenpairs(torch.clone, like, 1, key=key),
        lambda like, key: hessian_diag_estimate(torch.sum, like, key=key, samples=2),
    ],
    ids=["hutchinson", "hutch++", "xtrace", "density", "determinant", "pairs", "diag"],
)
def test_a_key_on_another_device_is_refused(estimate):
    like = torch.empty(6, device="meta")
    with pytest.raises(HyperparameterError, match="device of the tensors, meta, got"):
        estimate(like, random_key(0))
