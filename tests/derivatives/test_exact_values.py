"""``exact``: the values, the arguments and the refusals are those of torch."""

from __future__ import annotations

import copy
import inspect
import operator
import types

import pytest
import torch
from torch.func import grad, jacfwd
from torch.nn import functional as F

from pureopt.derivatives import exact
from pureopt.derivatives._exactness._scope import REPLACEMENTS
from tests.derivatives.exact_calls import CALLS, INDEX, LABELS, V, X
from tests.derivatives.row import randn

pytestmark = pytest.mark.filterwarnings("ignore:torch.triangular_solve is deprecated")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.filterwarnings("ignore:index_reduce")
def test_the_value_is_that_of_torch(name, dtype):
    x = X.to(dtype)
    got, expected = exact(CALLS[name])(x), CALLS[name](x)
    # Other orders of the same sums: at most some hundred roundings of a condition near 10.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(
        got, expected, rtol=300 * eps, atol=300 * eps, equal_nan=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "name", ["layer norm, affine", "norm, dims", "norm, p", "attention, masked"]
)
def test_half_precision_is_rounded_once(name, dtype):
    got, expected = exact(CALLS[name])(X.to(dtype)), CALLS[name](X.to(dtype))
    # Both compute in float32, and torch rounds after the affine map once more.
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(got, expected, rtol=3 * eps, atol=3 * eps)


MODULES = {
    "BatchNorm2d": torch.nn.BatchNorm2d(3),
    "BatchNorm1d": torch.nn.BatchNorm1d(3, momentum=None),
    "InstanceNorm2d": torch.nn.InstanceNorm2d(3, affine=True, track_running_stats=True),
}


@pytest.mark.parametrize("name", MODULES)
def test_running_statistics_move_as_they_do_in_torch(name):
    theirs, ours = (copy.deepcopy(MODULES[name]).double() for _ in range(2))
    x = randn(4, 3, 2, 2) if "2d" in name else randn(4, 3)
    for _ in range(2):
        torch.testing.assert_close(exact(ours)(x), theirs(x))
        for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
            assert torch.equal(a, b)
    torch.testing.assert_close(exact(ours.eval())(x), theirs.eval()(x))


def test_a_function_with_out_is_that_of_torch():
    out = torch.empty((), dtype=torch.float64)
    got = exact(lambda x: torch.linalg.vector_norm(x, out=out))(V)
    assert got is out
    assert torch.equal(out, torch.linalg.vector_norm(V))


@pytest.mark.parametrize("batch", [(), (2,)])
def test_a_singular_system_raises_as_in_torch(batch):
    system = torch.zeros(*batch, 2, 2), torch.ones(*batch, 2)
    for f in (
        torch.linalg.solve,
        lambda a, b: torch.linalg.solve_ex(a, b, check_errors=True),
    ):
        with pytest.raises(torch.linalg.LinAlgError) as theirs:
            f(*system)
        with pytest.raises(torch.linalg.LinAlgError) as ours:
            exact(f)(*system)
        assert str(ours.value) == str(theirs.value)
    result, info = exact(torch.linalg.solve_ex)(torch.zeros(2, 2), torch.ones(2))
    assert info == 1
    assert not result.isfinite().all()


NAMED = {
    "det": lambda x: torch.det(input=x) + torch.linalg.det(A=x),
    "slogdet": lambda x: torch.slogdet(input=x)[1] + torch.linalg.slogdet(A=x)[1],
    "logdet": lambda x: torch.logdet(input=x),
    "tensorsolve": lambda x: torch.linalg.tensorsolve(input=x, other=V),
    "householder": lambda x: torch.linalg.householder_product(input=x, tau=V),
    "orgqr": lambda x: torch.orgqr(input=x, input2=V),
    "ormqr": lambda x: x.ormqr(input2=V, input3=x),
    "cholesky_solve": lambda x: x.cholesky_solve(input2=x),
    "cholesky_inverse": lambda x: torch.cholesky_inverse(input=x),
    "triangular_solve": lambda x: torch.triangular_solve(input=x, A=x)[0],
    "prod": lambda x: x.prod(axis=0, keepdims=True),
    "cumprod": lambda x: torch.cumprod(x, axis=0),
    "vector_norm": lambda x: torch.linalg.vector_norm(x, axis=0, keepdims=True),
    "pow": lambda x: torch.pow(input=x.norm(), exponent=2),
    "square": lambda x: torch.square(input=x),
    "mul": lambda x: torch.mul(input=x, other=x) + x.multiply(other=x.mT),
    "triplet": lambda x: torch.triplet_margin_loss(x, x.mT, -x),
    "cosine": lambda x: torch.cosine_embedding_loss(x, x.mT, LABELS[0]),
}


@pytest.mark.parametrize("name", NAMED)
def test_arguments_have_the_names_and_defaults_of_torch(name):
    # Other orders of the same sums.
    torch.testing.assert_close(exact(NAMED[name])(X), NAMED[name](X))


# Of torch's schemas; the second is also numpy's name, and taken for it.
NAMES = {"self": "input", "axis": "dim"}


def parameters(op):
    return inspect.signature(REPLACEMENTS[op]).parameters.values()


@pytest.mark.parametrize(
    "op",
    [
        f
        for f in REPLACEMENTS
        if isinstance(f, types.BuiltinFunctionType)
        and all(p.kind not in {p.VAR_POSITIONAL, p.VAR_KEYWORD} for p in parameters(f))
    ],
    ids=lambda op: op.__name__,
)
def test_arguments_have_the_names_of_a_schema(op):
    schemas = torch._C._jit_get_schemas_for_operator("aten::" + op.__name__)
    names = [{NAMES.get(a.name, a.name) for a in s.arguments} for s in schemas]
    assert {p.name for p in parameters(op)} - {"out"} in names


Z = torch.complex(X, X.mT)
OTHER_NUMBERS = {
    "logaddexp": lambda: torch.logaddexp(Z, Z.mT),
    "logcumsumexp": lambda: torch.logcumsumexp(Z, 0),
    "integers": lambda: (
        torch.ones(3).long().scatter_reduce(0, INDEX[0], LABELS[0], "prod")
    ),
    "flags": lambda: (LABELS > 5).scatter_reduce(0, INDEX, LABELS > 0, "prod"),
    "likelihood of integers": lambda: F.gaussian_nll_loss(LABELS, V, 0.5),
    "hinges of integers": lambda: torch.hinge_embedding_loss(LABELS, LABELS - 2),
}


@pytest.mark.parametrize("name", OTHER_NUMBERS)
def test_complex_numbers_and_integers_are_as_in_torch(name):
    got, expected = exact(OTHER_NUMBERS[name])(), OTHER_NUMBERS[name]()
    torch.testing.assert_close(got, expected)  # and the dtypes are equal


WRITES = {
    "add": lambda n: operator.iadd(n, 1),
    "power": lambda n: operator.ipow(n, 3),
    "item": lambda n: operator.setitem(n, 0, 5.0),
    "mask": lambda n: operator.setitem(n, n > 2, 1.0),
    "method": lambda n: n.clamp_(max=2),
    "function": lambda n: torch.clamp_(n, max=2),
    "view": lambda n: n.unsqueeze(0).mul_(2),
    "relu": lambda n: F.threshold(n, 3.0, 7.0, inplace=True),
    "out": lambda n: torch.add(n, 1, out=n),
    "activation": F.hardtanh_,
    "threshold": lambda n: torch.threshold_(n, 3.0, 7.0),
    "several": lambda n: torch._foreach_mul_([n], 2.0),
    "by name": lambda n: torch.clamp_(input=n, max=2),
    "by name, in place": lambda n: F.relu6(input=n, inplace=True),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_norm_that_was_written_to_is_squared_as_it_is(name):
    def f(x):
        norm = x.norm(dim=0)
        WRITES[name](norm)
        return norm**2

    torch.testing.assert_close(exact(f)(X), f(X))


@pytest.mark.compile
def test_compiled_a_norm_that_was_written_to_is_squared_as_it_is():
    def f(x):
        norm = x.norm(dim=0)
        norm[0] = 5.0
        norm += 1
        return (norm**2).sum()

    compiled = torch.compile(grad(exact(f)), fullgraph=True, backend="aot_eager")
    expected = grad(lambda x: 2 * x.norm(dim=0)[1:].sum() + x[:, 1:].square().sum())(X)
    torch.testing.assert_close(compiled(X), expected)


def test_a_counter_that_is_written_to_is_no_norm():
    def f(x):
        norm, calls = x.norm(), torch.zeros((), dtype=torch.int64)
        calls += 1
        return norm**2

    H = jacfwd(jacfwd(exact(f)))(torch.zeros_like(V))
    assert torch.equal(H, 2 * torch.eye(3, dtype=torch.float64))


REFUSED = {
    "layer norm": lambda: F.layer_norm(X, (5,)),
    "layer norm, weight": lambda: F.layer_norm(X, (3,), X),
    "cdist": lambda: torch.cdist(X, X[:, :1]),
    "glu": lambda: F.glu(X),
    "prelu": lambda: F.prelu(X, V[:2]),
    "prelu of another dtype": lambda: F.prelu(X, V.float()),
    "huber": lambda: F.huber_loss(X, X.mT, delta=0.0),
    "multi margin": lambda: F.multi_margin_loss(X, X),
    "multilabel margin": lambda: F.multilabel_margin_loss(X, LABELS[0]),
    "norm of integers": lambda: torch.linalg.vector_norm(LABELS),
    "det": lambda: torch.linalg.det(X[:2]),
    "det of a vector": lambda: torch.det(V),
    "det of integers": lambda: torch.det(LABELS),
    "slogdet": lambda: torch.slogdet(X[:2]),
    "logdet": lambda: torch.logdet(X[:, :2]),
    "solve": lambda: torch.linalg.solve(X[:2], V),
    "solve, sizes": lambda: torch.linalg.solve(X, V[:2]),
    "solve, a number": lambda: torch.linalg.solve(X, V[0]),
    "solve, dtypes": lambda: torch.linalg.solve(X, V.float()),
    "solve from the right": lambda: torch.linalg.solve(X, X[:, :2], left=False),
    "mask of integers": lambda: F.scaled_dot_product_attention(X, X, X, LABELS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_in_its_words(name):
    with pytest.raises(RuntimeError) as theirs:
        REFUSED[name]()
    with pytest.raises(RuntimeError) as ours:
        exact(REFUSED[name])()
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize("bad", [torch.nan, -0.1, 1.1])
def test_the_cross_entropy_of_what_is_no_probability_is_nan(bad):
    p = torch.tensor([bad, 0.5])
    loss = exact(F.binary_cross_entropy)(p, torch.full((2,), 0.5), reduction="none")
    assert loss.isnan().tolist() == [True, False]
