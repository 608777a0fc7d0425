"""``exact``: the derivatives, against mpmath in every nesting."""

from __future__ import annotations

import math
import operator
import warnings
from functools import partial

import mpmath as mp
import pytest
import torch
from torch.func import grad, jacfwd, jacrev, jvp, vmap
from torch.nn import functional as F

from pureopt.derivatives import exact, exact_ops
from pureopt.derivatives._exactness._bodies import BODIES
from pureopt.derivatives._exactness._scope import REPLACEMENTS
from pureopt.derivatives._exactness._vector_norms import REMEMBERED
from tests.derivatives.exact_calls import CALLS, SDPA, V, X
from tests.derivatives.exact_case import differentiated, words
from tests.derivatives.exact_cases import CASES
from tests.derivatives.exact_oracles import walk
from tests.derivatives.row import randn

ZERO = torch.zeros((), dtype=torch.float64)
cases = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")


@cases
def test_every_nesting_up_to_order_four_is_right(case):
    truth = case.truth()
    f = case.torch(exact)
    assert float(f(ZERO)) == pytest.approx(truth[0], rel=1e-12)
    for prefix in [*words(1), *words(3)]:
        # Forward mode gives the value of what it differentiates as well.
        g = differentiated(f, prefix)
        here, forward = jvp(g, (ZERO,), (torch.ones_like(ZERO),))
        order = len(prefix)
        for word, got, expected in (
            (prefix, here, truth[order]),
            (prefix + "F", forward, truth[order + 1]),
            (prefix + "R", grad(g)(ZERO), truth[order + 1]),
        ):
            # A few hundred terms of a fourth derivative, each some hundred times the sum
            # where they cancel: 1e4 roundings of 1e-16. Measured: 3e-14.
            assert got.item() == pytest.approx(expected, rel=1e-11, abs=1e-11), word


@pytest.mark.parametrize("word", ["RRR", "FFF", "RFR", "FRF"])
def test_the_third_derivative_of_the_documented_layer_norm(word):
    f = exact(lambda t: F.layer_norm(torch.stack([t, 2 * t, t * t]), (3,))[1])
    t = torch.tensor(0.7, dtype=torch.float64)
    # The digits that are printed in the documentation, from mpmath.
    assert differentiated(f, word)(t).item() == pytest.approx(-1.68768, abs=5e-6)
    assert differentiated(f, word + "R")(t).item() == pytest.approx(-5.20, abs=5e-3)


# Spellings of one function, each of a 3 x 3 matrix.
SPELLINGS = {
    "det": (torch.det, torch.linalg.det, torch.Tensor.det, lambda x: x.det()),
    "slogdet": (
        lambda x: torch.slogdet(x)[1],
        lambda x: torch.linalg.slogdet(x).logabsdet,
        lambda x: x.slogdet()[1],
    ),
    "layer norm": (
        lambda x: F.layer_norm(x, (3,)),
        lambda x: torch.layer_norm(x, (3,)),
        lambda x: torch.native_layer_norm(x, (3,), None, None, 1e-5)[0],
        torch.nn.LayerNorm(3, dtype=torch.float64),
    ),
    "batch norm": (
        lambda x: F.batch_norm(x, None, None, training=True),
        lambda x: torch.batch_norm(x, None, None, None, None, True, 0.1, 1e-5, True),
        lambda x: torch.native_batch_norm(x, None, None, None, None, True, 0.1, 1e-5)[
            0
        ],
        torch.nn.BatchNorm1d(3, dtype=torch.float64, track_running_stats=False),
    ),
    "solve": (
        lambda x: torch.linalg.solve(x, V),
        lambda x: torch.linalg.solve_ex(x, V).result,
        lambda x: torch.linalg.tensorsolve(x, V),
        lambda x: torch.linalg.solve(x.mT, V.unsqueeze(0), left=False).squeeze(0),
    ),
    "reflections": (
        lambda x: torch.linalg.householder_product(x, V),
        lambda x: torch.orgqr(x, V),
        lambda x: x.orgqr(V),
        lambda x: torch.ormqr(x, V, torch.eye(3, dtype=x.dtype)),
        lambda x: x.ormqr(V, torch.eye(3, dtype=x.dtype), left=False),
    ),
    "norm": (
        torch.norm,
        torch.linalg.norm,
        torch.linalg.vector_norm,
        torch.linalg.matrix_norm,
        lambda x: torch.frobenius_norm(x, (0, 1)),
        lambda x: x.norm(),
        lambda x: torch.dist(x, torch.zeros_like(x)),
    ),
    "cumprod": (lambda x: torch.cumprod(x, 0), lambda x: x.cumprod(0)),
    "std": (torch.std, lambda x: x.std(), lambda x: torch.std_mean(x)[0]),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_each_spelling_of_a_function_is_caught(name):
    first, *others = SPELLINGS[name]

    def third(f):
        # Forward over reverse over forward: torch gets it wrong, or raises.
        return differentiated(lambda t: (exact(f)(X + t * X.mT).sin()).sum(), "FRF")(
            ZERO
        )

    expected = third(first)
    for other in others:
        # The same sums in another order.
        torch.testing.assert_close(third(other), expected, rtol=1e-10, atol=1e-10)


def test_each_function_of_python_that_calls_one_of_them_is_entered():
    # Arithmetic is everywhere, and mended only beside a norm that is squared, or for
    # complex numbers.
    arithmetic = {"abs", "mul", "multiply", "pow", "sgn", "square"}
    names = {f.__name__ for f in REPLACEMENTS} - arithmetic
    for f in vars(F).values():
        code = getattr(f, "__code__", None)
        if code is None or f in BODIES or f in REPLACEMENTS:
            continue
        assert not names.intersection(code.co_names), f.__name__


# Systems of three lanes, the first with more right-hand sides than matrices.
A, B = randn(3, 3, 3, seed=1) + 3 * torch.eye(3), randn(3, 3, 2, seed=2)
SYSTEMS = {
    "solve": torch.linalg.solve,
    "solve_ex": lambda a, b: torch.linalg.solve_ex(a, b).result,
    "from the right": lambda a, b: torch.linalg.solve(a, b.mT, left=False),
    "lu_solve": lambda a, b: torch.linalg.lu_solve(*torch.linalg.lu_factor(a), b),
    "adjoint": lambda a, b: torch.linalg.lu_solve(
        *torch.linalg.lu_factor(a), b.mT, left=False, adjoint=True
    ),
    "tensorsolve": lambda a, b: torch.linalg.tensorsolve(a, b[:, 0]),
    "vector": lambda a, b: torch.linalg.solve(a, b[:, 0]),
    "more sides": lambda a, b: torch.linalg.solve(a, torch.stack([b, 2 * b])),
    "cdist": torch.cdist,
}


def four_hessians(f, x):
    f = exact(f)
    return [a(b(f))(x) for a in (jacfwd, jacrev) for b in (jacfwd, grad)]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("need_weights", [False, True])
def test_the_hessian_of_multi_head_attention_is_one(train, need_weights):
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(4, 2, dtype=torch.float64).train(train)
    x = randn(3, 2, 4)
    mask = torch.ones(3, 3).triu(1).bool()

    def f(x):
        return module(x, x, x, attn_mask=mask, need_weights=need_weights)[0].sin().sum()

    torch.testing.assert_close(exact(f)(x), f(x))
    first, *others = four_hessians(f, x)
    for other in others:
        # Sums of some hundred products of numbers near one.
        torch.testing.assert_close(other, first, rtol=1e-11, atol=1e-12)
    # Against a difference of torch's gradients, which are right: error h^2.
    h = 1e-5 * randn(*x.shape, seed=1)
    difference = (grad(f)(x + h) - grad(f)(x - h)) / 2
    slope = torch.tensordot(first, h, dims=3)
    torch.testing.assert_close(slope, difference, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_the_hessian_of_an_encoder_layer_is_one(train):
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(
        4, 2, 8, dropout=0.0, batch_first=True, dtype=torch.float64
    ).train(train)
    x = randn(2, 3, 4)

    def f(x):
        return layer(x).pow(3).sum()

    torch.testing.assert_close(exact(f)(x), f(x))
    first, *others = four_hessians(f, x)
    for other in others:
        # Layer norm divides by deviations near 0.1: 1e3 roundings.
        torch.testing.assert_close(other, first, rtol=1e-10, atol=1e-11)


def test_running_statistics_move_inside_a_transform():
    mean, variance = V.clone(), V.exp()
    x = randn(4, 3)
    f = exact(lambda x: F.batch_norm(x, mean, variance, training=True).pow(3).sum())
    H = jacfwd(grad(f))(x)
    assert torch.isfinite(H).all()
    expected = 0.9 * V + 0.1 * x.mean(0)
    # One product and one sum.
    torch.testing.assert_close(mean, expected, rtol=1e-14, atol=1e-14)


def test_dropout_in_attention_is_drawn_once_per_evaluation():
    q = randn(1, 1, 3, 4)

    def f(t):
        torch.manual_seed(3)
        return SDPA(q + t, q * t, q.sin(), dropout_p=0.5).sum()

    t = torch.tensor(0.3, dtype=torch.float64)
    values = [differentiated(exact(f), word)(t).item() for word in words(3)]
    # The same draw in each nesting, hence the same number up to rounding.
    assert values == pytest.approx([values[0]] * 8, rel=1e-10)


@pytest.mark.parametrize("n", [2, 5])
@pytest.mark.parametrize("corank", [0, 1, 2, 3])
def test_a_determinant_has_all_derivatives_up_to_a_corank_of_three(n, corank):
    # Not diagonal: the factorization has to exchange rows.
    turn = torch.linalg.qr(randn(n, n, seed=5))[0]
    kept = torch.arange(1, n + 1) * (torch.arange(n) < n - corank)
    A = turn @ torch.diag(kept.double()) @ turn.mT.flip(0)
    B = randn(n, n, seed=6)
    with mp.workdps(50):
        a, b = (walk(mp.mpf, m.tolist()) for m in (A, B))
        points = [mp.mpf(k) for k in range(n + 1)]
        values = [mp.det(mp.matrix(a) + t * mp.matrix(b)) for t in points]
        powers = mp.matrix([[t**k for k in range(n + 1)] for t in points])
        coefficients = mp.lu_solve(powers, mp.matrix(values))
        truth = [float(c * mp.factorial(k)) for k, c in enumerate(coefficients)]
    truth += [0.0] * 4
    f = exact(lambda t: torch.linalg.det(A + t * B))
    for word in ("RRFF", "FRFR"):
        for order in range(5):
            got = differentiated(f, word[:order])(ZERO).item()
            # Terms of size n! times 3^n, which cancel to what is left.
            assert got == pytest.approx(truth[order], rel=1e-10, abs=1e-10), word


# Of a vector that is zero.
DISTANCES = {
    "norm": torch.linalg.vector_norm,
    "3-norm": lambda x: torch.linalg.vector_norm(x, 3),
    "1.5-norm": lambda x: torch.linalg.vector_norm(x, 1.5),
    "std": torch.std,
    "dist": lambda x: torch.dist(x, 2 * x),
    "cdist": lambda x: torch.cdist(x.unsqueeze(0), 2 * x.unsqueeze(0)).sum(),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_the_derivatives_of_a_distance_at_zero_are_zero(name):
    f = exact(lambda t: DISTANCES[name](t * V))
    for word in [w for k in (1, 2, 3) for w in words(k)]:
        assert differentiated(f, word)(ZERO) == 0


def times_itself(x, op=operator.mul):
    return op(x, x)


SQUARES = {
    "vector_norm ** 2": lambda x: torch.linalg.vector_norm(x) ** 2,
    "norm.pow": lambda x: x.norm().pow(2),
    "norm.square": lambda x: torch.norm(x).square(),
    "square": lambda x: torch.square(torch.linalg.norm(x)),
    "n * n": lambda x: times_itself(torch.linalg.vector_norm(x)),
    "mul": lambda x: times_itself(torch.linalg.vector_norm(x), torch.mul),
    "pow of dist": lambda x: torch.pow(torch.dist(x, torch.zeros_like(x)), 2.0),
}


@pytest.mark.parametrize("name", SQUARES)
def test_the_hessian_of_a_squared_norm_at_zero_is_two(name):
    x = torch.zeros(3, dtype=torch.float64)
    for H in four_hessians(SQUARES[name], x):
        assert torch.equal(H, 2 * torch.eye(3, dtype=torch.float64))


def test_a_lane_is_the_call_on_its_input():
    batch = torch.stack([X, X.mT * 2, X - 1])
    for name in ("det of a batch", "even power", "cumprod", "solve from the right"):
        f = grad(lambda x, name=name: exact(CALLS[name])(x).sin().sum())
        lanes = torch.stack([f(x) for x in batch])
        # The same operations, batched.
        torch.testing.assert_close(vmap(f)(batch), lanes, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize(
    "name",
    ["hinge embedding", "gaussian likelihood", "multigammaln", "column_stack"],
)
def test_what_vmap_refuses_is_mended_up_to_products_with_the_hessian(name):
    lanes, v = torch.stack([X.abs() + 1, X.mT**2 + 1]), randn(2, 3, 3)

    def value(f, x):
        return f(x)

    def product(f, x):
        # Of the same directions in each lane.
        slope = grad(lambda x: (f(x) ** 2).sum())
        return vmap(lambda v: jvp(slope, (x,), (v,))[1])(v)

    refused = value if name == "column_stack" else product
    with pytest.raises(RuntimeError, match=r"vmap|[Bb]atching"):
        vmap(lambda x: refused(CALLS[name], x))(lanes)
    for each in (value, product):
        mended = partial(each, exact(CALLS[name]))
        # The same operations, batched.
        torch.testing.assert_close(
            vmap(mended)(lanes), torch.stack([*map(mended, lanes)]), rtol=1e-12, atol=0
        )


def test_a_lane_whose_variance_is_negative_is_nan():
    f = exact(lambda v: F.gaussian_nll_loss(V, V + 1, v))
    losses = vmap(f)(torch.stack([V.abs(), -V.abs()]))
    assert losses.isnan().tolist() == [False, True]
    for bad in (-1.0, V[:2].abs()):
        with pytest.raises(ValueError, match="var"):
            f(bad)
    with pytest.raises(RuntimeError, match="can't be cast"):
        f(torch.ones_like(V, dtype=torch.int64))


def test_a_variance_below_the_least_has_the_derivatives_of_what_it_was():
    # torch 2.13: in forward mode they are zero, in reverse mode they are not.
    v = torch.tensor([0.25, 4.0])
    f = exact(lambda v: F.gaussian_nll_loss(v * 0 + 1, v * 0, v, eps=0.5))
    assert float(f(v)) == pytest.approx((math.log(0.5) + 2 + math.log(4) + 0.25) / 4)
    # Half of that of log(v) + 1 / v, over two numbers: (1/v - 1/v^2) / 4.
    slope = torch.tensor([-0.5, 0.046875])
    for jacobian in (jacfwd, jacrev):
        torch.testing.assert_close(jacobian(f)(v), slope)


def test_one_bad_lane_spoils_no_other():
    batch = torch.stack([X, X * torch.nan, torch.ones_like(X)])
    got = vmap(grad(exact(torch.linalg.det)))(batch)
    torch.testing.assert_close(got[0], X.det() * X.inverse().mT)
    assert got[1].isnan().all()
    # A minor of the matrix of ones: two rows that are equal.
    torch.testing.assert_close(got[2], torch.zeros_like(X), rtol=0, atol=1e-14)


def test_a_scope_is_closed_also_by_an_error():
    def fails(x):
        x.norm()
        raise KeyError

    with pytest.raises(KeyError):
        exact(fails)(V)
    assert REMEMBERED.scopes == []
    with exact_ops(), exact_ops():
        torch.linalg.vector_norm(V)
        assert len(REMEMBERED.scopes) == 2
    assert REMEMBERED.scopes == []


def test_scopes_nest():
    f = exact(exact(lambda x: torch.linalg.det(x) + x.norm() ** 2))
    expected = jacfwd(grad(exact(lambda x: torch.linalg.det(x) + (x * x).sum())))(X)
    torch.testing.assert_close(jacfwd(jacfwd(f))(X), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["even power", "huber", "det of a batch"])
def test_a_nesting_traces(name):
    h = jacfwd(grad(lambda x: exact(CALLS[name])(x).sin().sum()))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), h(X), rtol=1e-12, atol=1e-12)


@pytest.mark.compile
@pytest.mark.parametrize("argnum", [0, 1])
@pytest.mark.parametrize("name", ["solve", "adjoint"])
def test_the_lanes_of_systems_trace(name, argnum):
    h = vmap(jacfwd(exact(SYSTEMS[name]), argnums=argnum))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(A, B), h(A, B), rtol=1e-12, atol=1e-12)


@pytest.mark.compile
@pytest.mark.parametrize(
    "f", [torch.linalg.det, torch.linalg.eigvalsh, torch.linalg.eigvals]
)
def test_the_lanes_of_what_has_constants_trace(f):
    h = vmap(jacfwd(exact(lambda a: f(a).real)))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(A), h(A), rtol=1e-12, atol=1e-12)


# The compiler of torch 2.13 shows a mode none of these.
UNSHOWN = {
    "weight_norm": lambda x: torch._weight_norm(x, x[:, :1].sin()),
    "batch norm": lambda x: torch._native_batch_norm_legit(
        x, None, None, True, 0.1, 1e-5
    )[0],
    "hardsigmoid": lambda x: F.hardsigmoid(3 * x.sin()) ** 2,
    "segment_reduce": lambda x: torch.segment_reduce(
        x, "prod", lengths=torch.tensor([1, 2])
    ),
}


@pytest.mark.compile
# Forward over forward torch does not compile `x / 6`.
@pytest.mark.parametrize(
    ("outer", "inner"), [(jacrev, grad), (jacfwd, grad), (jacrev, jacfwd)]
)
@pytest.mark.parametrize("name", UNSHOWN)
def test_what_the_compiler_does_not_show_a_mode_is_mended_too(name, outer, inner):
    h = outer(inner(lambda x: exact(UNSHOWN[name])(x).sin().sum()))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), h(X), rtol=1e-12, atol=1e-12)


@pytest.mark.compile
def test_the_hessian_of_the_parametrization_weight_norm_traces():
    module = torch.nn.utils.parametrizations.weight_norm(
        torch.nn.Linear(3, 3, dtype=torch.float64)
    )
    at = "parametrizations.weight.original1"

    def f(v):
        return torch.func.functional_call(module, {at: v}, (X,)).sin().sum()

    h = jacrev(grad(exact(f)))
    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(X), h(X), rtol=1e-12, atol=1e-12)


def shortened(x):
    n = x.norm(dim=0)
    torch.clamp_(n, max=2.0)
    return n**2


def first_shortened(x):
    n = x.norm(dim=0)
    torch.clamp_(n[:1], max=2.0)
    return n**2


@pytest.mark.compile
@pytest.mark.parametrize("f", [shortened, first_shortened])
def test_a_norm_that_a_function_writes_to_is_squared_as_it_is_then(f):
    x = torch.tensor([[3.0, 0.0], [4.0, 1.0]])
    written = torch.tensor([4.0, 1.0])
    slope = torch.tensor([[0.0, 0.0], [0.0, 2.0]])
    for g, expected in (
        (exact(f), written),
        (grad(lambda x: exact(f)(x).sum()), slope),
    ):
        compiled = torch.compile(g, fullgraph=True, backend="aot_eager")
        assert torch.equal(g(x), expected)
        assert torch.equal(compiled(x), expected)


@pytest.mark.compile
def test_a_compiled_function_in_a_scope_writes_to_a_norm_as_an_eager_one():
    compiled = torch.compile(shortened, fullgraph=True, backend="aot_eager")
    x = torch.tensor([[3.0], [4.0]])
    with exact_ops():
        assert torch.equal(compiled(x), torch.tensor([4.0]))


@pytest.mark.compile
def test_attention_traces():
    module = torch.nn.MultiheadAttention(4, 2, dtype=torch.float64)
    h = jacfwd(grad(exact(lambda x: module(x, x, x)[0].sin().sum())))
    x = randn(3, 2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(h, fullgraph=True, backend="aot_eager")(x)
    torch.testing.assert_close(compiled, h(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("argnum", [0, 1])
def test_each_lane_has_its_own_slopes(argnum):
    # torch 2.13: in `vmap` of `jacrev` it is wrong, or raises.
    x, w = randn(3, 3), randn(3, 1, seed=1)
    slopes = jacrev(exact(F.prelu), argnums=argnum)
    loop = [jacrev(F.prelu, argnums=argnum)(*lane) for lane in zip(x, w, strict=True)]
    assert torch.equal(vmap(slopes)(x, w), torch.stack(loop))


def test_a_number_that_is_selected_more_than_once_has_all_its_derivatives():
    # torch 2.13: reverse mode of one that is broadcast has zeros but for the first.
    f = exact(lambda x: x.masked_select(torch.tensor([True, False, True])))
    x = torch.arange(2.0)
    for jacobian in (jacfwd, jacrev):
        assert torch.equal(jacobian(f)(x[0]), torch.ones(2))
        assert torch.equal(vmap(jacobian(f))(x), torch.ones(2, 2))


@pytest.mark.parametrize("jacobian", [jacfwd, jacrev])
@pytest.mark.parametrize("argnum", [0, 1])
@pytest.mark.parametrize("name", SYSTEMS)
def test_a_lane_solves_its_own_system(name, argnum, jacobian):
    # torch 2.13: in `vmap` of a Jacobian they are off by powers of ten.
    f = SYSTEMS[name]
    b = B.mT if name == "cdist" else B
    slopes = jacobian(exact(f), argnums=argnum)
    lanes = vmap(slopes)(A, b)
    loop = torch.stack([slopes(*lane) for lane in zip(A, b, strict=True)])
    # Condition numbers below 1e2.
    torch.testing.assert_close(lanes, loop, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_lane_of_a_lane_solves_its_own_system(name):
    f = exact(SYSTEMS[name])
    b = B.mT if name == "cdist" else B
    loop = torch.stack([f(*lane) for lane in zip(A, b, strict=True)])
    lanes = vmap(vmap(f))(A[None], b[None])[0]
    # Condition numbers below 1e2.
    torch.testing.assert_close(lanes, loop, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("jacobian", [jacfwd, jacrev])
@pytest.mark.parametrize(
    "case",
    # It writes statistics, which all lanes share.
    [case for case in CASES if case.name != "_batch_norm_with_update"],
    ids=lambda case: case.name,
)
def test_the_jacobian_of_a_lane_is_that_of_its_call(case, jacobian):
    a, b, _ = case.path()
    lanes = torch.stack([a, a + 0.01 * b])
    slopes = jacobian(exact(case.op))
    loop = torch.stack([slopes(lane) for lane in lanes])
    # The same operations in batches.
    torch.testing.assert_close(vmap(slopes)(lanes), loop, rtol=1e-11, atol=1e-11)


@pytest.mark.compile
def test_compiled_attention_with_a_padding_mask_is_eager():
    torch.manual_seed(0)
    module = torch.nn.MultiheadAttention(4, 2, dtype=torch.float64)
    x, padding = randn(3, 2, 4), torch.tensor([[False, False, True]] * 2)
    f = exact(lambda x: module(x, x, x, key_padding_mask=padding)[0])
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), f(x), rtol=1e-12, atol=1e-12)
    with pytest.raises(AssertionError, match="key_padding_mask has the shape"):
        exact(module)(x, x, x, key_padding_mask=padding.T)
