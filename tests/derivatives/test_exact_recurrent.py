"""``exact``: recurrent layers beyond the cases that are held against mpmath."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.func import functional_call, grad, jacfwd, jvp, vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from pureopt import derivatives as D
from pureopt.derivatives import exact
from tests.derivatives.exact_case import differentiated, words
from tests.derivatives.recurrent_modules import (
    CELLS,
    KINDS,
    LANES,
    cell,
    layer,
    value,
    weights,
)
from tests.derivatives.row import randn

ZERO = torch.zeros((), dtype=torch.float64)
LENGTHS = [2, 4, 1]  # not sorted
kinds = pytest.mark.parametrize("kind", KINDS)

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported")


def tensors(result) -> list[torch.Tensor]:
    """The output and the states; of a packed one its data."""
    y, state = result
    y = y.data if isinstance(y, PackedSequence) else y
    return [y, *(state if isinstance(state, tuple) else (state,))]


def same(got, expected, roundings: float = 30):
    """Sums of some ten products, through up to eight steps whose slopes are below one."""
    for a, b in zip(got, expected, strict=True):
        tolerance = roundings * torch.finfo(b.dtype).eps
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


OPTIONS = {
    "plain": {},
    "no biases": {"bias": False},
    "bidirectional": {"bidirectional": True},
    "batch first": {"batch_first": True},
    "layers": {"num_layers": 2, "dropout": 0.5},
    "all": {
        "num_layers": 3,
        "dropout": 0.3,
        "bidirectional": True,
        "batch_first": True,
    },
}


@kinds
@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("train", [True, False], ids=["train", "eval"])
def test_a_layer_is_that_of_torch(kind, name, train):
    dtypes = (torch.float32, torch.float64, torch.bfloat16)
    for dtype, packed in itertools.product(dtypes, (True, False)):
        module = layer(kind, dtype, **OPTIONS[name]).train(train)
        x = (
            randn(3, 4, 3, dtype=dtype)
            if module.batch_first
            else randn(4, 3, 3).to(dtype)
        )
        if packed:
            x = pack_padded_sequence(
                x, LENGTHS, module.batch_first, enforce_sorted=False
            )
        results = []
        for f in (module, exact(module)):
            torch.manual_seed(1)  # dropout draws the same numbers
            first = f(x)
            results.append([*tensors(first), *tensors(f(x, first[1]))])
        # Half precision is rounded after each operation, or by some kernels once.
        same(*results, 30 if dtype != torch.bfloat16 else 4)


@kinds
def test_one_sample_needs_no_dimension_of_samples(kind):
    module, x = layer(kind, bidirectional=True), randn(4, 3)
    same(tensors(exact(module)(x)), tensors(module(x)))


@pytest.mark.parametrize("name", CELLS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_cell_is_that_of_torch(name, bias):
    module = cell(name, bias=bias)
    for x in (randn(2, 3), randn(3)):
        got, expected = exact(module)(x), module(x)
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("name", CELLS)
def test_the_derivatives_of_a_cell_are_those_of_torch_which_are_right(name):
    module, x, v = cell(name), randn(2, 3), randn(2, 3, seed=1)

    def f(transform, t):
        return value(transform(module)(x + t * v)).sin().sum()

    for word in words(3):
        expected = differentiated(lambda t: f(lambda m: m, t), "RRR")(ZERO)
        got = differentiated(lambda t: f(exact, t), word)(ZERO)
        # Some ten thousand roundings of numbers near one.
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["LSTM", "projected", "GRU", "relu"])
def test_the_derivatives_of_a_packed_batch_are_those_of_its_samples(kind):
    module = layer(kind, num_layers=2, bidirectional=True)
    x, v = randn(4, 3, 3), randn(4, 3, 3, seed=1)

    def batch(t):
        packed = pack_padded_sequence(x + t * v, LENGTHS, enforce_sorted=False)
        y, _ = pad_packed_sequence(module(packed)[0], total_length=5)
        return y.sin().sum()

    def alone(t):
        samples = zip(LENGTHS, (x + t * v).unbind(1), strict=True)
        return sum(module(s[:n])[0].sin().sum() for n, s in samples)

    # Torch's kernels in float64 are right, where none is packed and none in `vmap`.
    truth = [differentiated(alone, "R" * order)(ZERO) for order in range(4)]
    for word in ["", *words(1), *words(2), *words(3)]:
        got = differentiated(exact(batch), word)(ZERO)
        # Some ten thousand roundings of numbers near one.
        torch.testing.assert_close(got, truth[len(word)], rtol=1e-12, atol=1e-12)


def test_an_lstm_in_float32_has_forward_mode():
    module, x, v = layer("LSTM", torch.float32), randn(4, 2, 3), randn(4, 2, 3, seed=1)
    f = lambda x: module(x)[0].sin().sum()  # noqa: E731
    got = jvp(grad(exact(f)), (x.float(),), (v.float(),))[1]
    module.double()
    expected = jvp(grad(f), (x,), (v,))[1]
    # Some hundred roundings of numbers below one.
    torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LANES)
def test_a_lane_is_the_call_on_its_input_and_its_weights(name):
    module = LANES[name]()
    f = exact(lambda w, x: value(functional_call(module, w, (x,))).sin().sum())
    w = weights(module)
    ws = {k: torch.stack([v, 2 * v, -v]) for k, v in w.items()}
    xs = randn(3, 2, 3) if name.endswith("Cell") else randn(3, 4, 2, 3)

    def product(w, x):
        return jvp(lambda w: grad(f)(w, x), (w,), (w,))[1]

    for transformed in (f, grad(f), grad(f, argnums=1), product):
        for own in (True, False):
            lanes = vmap(transformed, (0 if own else None, 0))(ws if own else w, xs)
            each = [
                transformed({k: v[i] for k, v in ws.items()} if own else w, xs[i])
                for i in range(3)
            ]
            expected = torch.utils._pytree.tree_map(
                lambda *parts: torch.stack(parts), *each
            )
            # The same operations, batched.
            torch.testing.assert_close(lanes, expected, rtol=1e-12, atol=1e-12)


def test_packed_lanes_share_their_lengths():
    module = layer("GRU", bidirectional=True)

    def f(x):
        packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0])[0].sin().sum()

    xs = randn(2, 4, 3, 3)
    for g in (exact(f), grad(exact(f)), jacfwd(grad(exact(f)))):
        # The same operations, batched.
        expected = torch.stack([g(x) for x in xs])
        torch.testing.assert_close(vmap(g)(xs), expected, rtol=1e-12, atol=1e-12)


def test_a_sample_that_is_infinite_spoils_no_other_in_its_pack():
    module = layer("LSTM", bidirectional=True)
    bad = randn(4, 3, 3)
    bad[3, 1] = torch.inf  # beyond the ends of the others

    def f(x):
        packed = pack_padded_sequence(x, LENGTHS, enforce_sorted=False)
        return pad_packed_sequence(module(packed)[0])[0][:, [0, 2]].sum()

    good = bad.clone()
    good[3, 1] = 0
    for word in (grad, lambda f: lambda x: jvp(grad(f), (x,), (x.sign(),))[1]):
        got, expected = word(exact(f))(bad), word(exact(f))(good)
        assert torch.equal(got[:, [0, 2]], expected[:, [0, 2]])


def test_a_packed_sequence_is_packed_and_padded_as_by_torch():
    x = randn(4, 3, 2, 5)
    for first_is_batch, length in itertools.product((False, True), (None, 4, 6)):

        def f(x, batch_first=first_is_batch, total_length=length):
            x = x.transpose(0, 1) if batch_first else x
            packed = pack_padded_sequence(x, LENGTHS, batch_first, enforce_sorted=False)
            y = pad_packed_sequence(packed, batch_first, -7.0, total_length)
            return (*packed, *y)

        # Numbers of a vocabulary too.
        for y in (x, (100 * x).long(), x > 0):
            for got, expected in zip(exact(f)(y), f(y), strict=True):
                assert torch.equal(got, expected)
                assert got.dtype == expected.dtype


def test_arguments_have_the_names_of_torch():
    module, x, h = layer("LSTM"), randn(2, 2, 3), randn(1, 2, 4)
    sizes, packed = torch.tensor([2, 1]), x.flatten(0, 1)[:3]
    named = {
        "hx": (h, h),
        "params": list(module.parameters()),
        "has_biases": True,
        "num_layers": 1,
        "dropout": 0.0,
        "train": False,
        "bidirectional": False,
    }
    for f in (
        lambda: torch.lstm(input=x, **named, batch_first=False),
        lambda: torch.lstm(x, **named, batch_first=True),
        lambda: torch.lstm(x, *named.values(), True),
        lambda: torch.lstm(data=packed, batch_sizes=sizes, **named),
        lambda: torch.lstm(packed, sizes, **named),
        lambda: torch.lstm(packed, sizes, *named.values()),
    ):
        same(exact(f)(), f())


def gru(x, h, *params, sizes=None, layers=1, biases=True, dropout=0.0):
    options = biases, layers, dropout, True, False
    if sizes is not None:
        return torch.gru(x, torch.tensor(sizes), h, params, *options)
    return torch.gru(x, h, params, *options, False)


X, STATE = randn(4, 2, 3), randn(1, 2, 4)
W = [randn(12, 3), randn(12, 4), randn(12), randn(12)]
CELL = randn(2, 3), randn(2, 4)
REFUSED = {
    "no time": lambda: gru(X[:0], STATE, *W),
    "too few weights": lambda: gru(X, STATE, *W[:3]),
    "too many weights": lambda: gru(X, STATE, *W, biases=False),
    "too few layers": lambda: gru(X, STATE, *W, *W, layers=2),
    "state": lambda: gru(X, STATE[:, :1], *W),
    "width": lambda: gru(X[..., :2], STATE, *W),
    "dtype": lambda: gru(X.float(), STATE, *W),
    "dimensions": lambda: gru(X[0], STATE[0], *W),
    "dropout": lambda: gru(
        X, STATE.repeat(2, 1, 1), *W, W[1], *W[1:], layers=2, dropout=2.0
    ),
    "integers": lambda: gru(
        X.long(), STATE.long(), *(w.long() for w in W), biases=True
    ),
    "sizes of floats": lambda: gru(X[0], STATE, *W, sizes=[2.0]),
    "one state": lambda: torch.lstm(X, (STATE,), W, True, 1, 0.0, True, False, False),
    "cell, batch": lambda: torch.gru_cell(CELL[0], CELL[1][:1], *W),
    "cell, width": lambda: torch.gru_cell(CELL[0][:, :2], CELL[1], *W),
    "cell, state": lambda: torch.gru_cell(CELL[0], CELL[1][:, :2], *W),
    "cell, one state": lambda: torch.lstm_cell(CELL[0], (CELL[1],), *W),
    "lengths": lambda: pack_padded_sequence(X, [1, 2]),
    "lengths that are zero": lambda: pack_padded_sequence(X, [1, 0]),
    "number of lengths": lambda: pack_padded_sequence(X, [2, 1, 1]),
    "packed numbers": lambda: pack_padded_sequence(X[0, 0], [1]),
    "no sizes": lambda: pad_packed_sequence(
        PackedSequence(X[0, :0], torch.tensor([], dtype=torch.int64))
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_torch_refuses_is_refused_in_its_words(name):
    with pytest.raises((RuntimeError, IndexError)) as theirs:
        REFUSED[name]()
    with pytest.raises(type(theirs.value)) as ours:
        exact(REFUSED[name])()
    assert str(ours.value) == str(theirs.value)


def test_what_torch_broadcasts_is_broadcast():
    expected = gru(X[:, :1], STATE, *W)
    same(exact(gru)(X[:, :1], STATE, *W), expected)


def test_an_empty_batch_has_empty_outputs():
    module = layer("LSTM", num_layers=2)
    shapes = [y.shape for y in tensors(exact(module)(X[:, :0]))]
    assert shapes == [(4, 0, 4), (2, 0, 4), (2, 0, 4)]


@kinds
def test_shapes_come_without_numbers(kind):
    module = layer(kind, bidirectional=True)
    expected = [y.shape for y in tensors(module(X))]
    module.to("meta")
    sizes = torch.tensor([2, 1])
    assert [y.shape for y in tensors(exact(module)(X.to("meta")))] == expected
    data = PackedSequence(X[:3, 0].to("meta"), sizes)
    y, *state = tensors(exact(module)(data))
    assert (y.shape, *(s.shape for s in state)) == (
        (3, expected[0][-1]),
        *expected[1:],
    )


def test_a_product_through_dropout_is_that_of_the_draw():
    module = layer("GRU", num_layers=2, dropout=0.5)

    def f(t):
        torch.manual_seed(3)
        return exact(module)(X * (1 + t))[0].sin().sum()

    values = [differentiated(f, word)(ZERO).item() for word in words(3)]
    # The same draw in each nesting, hence the same number up to rounding.
    assert values == pytest.approx([values[0]] * 8, rel=1e-11)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", ["projected", "GRU"])
def test_a_power_series_passes_through(kind, packed):
    module, v = layer(kind, bidirectional=True), randn(4, 2, 3, seed=1)

    def f(t):
        x = X + t * v
        if packed:
            x = PackedSequence(x[:3, 0], torch.tensor([2, 1]))
        return tensors(module(x))[0].sin().sum()

    truth = [differentiated(exact(f), "R" * order)(ZERO) for order in range(4)]
    for order in (1, 2, 3):
        # Some ten thousand roundings of numbers near one.
        got = D.nth_derivative(f, order)(ZERO)
        torch.testing.assert_close(got, truth[order], rtol=1e-12, atol=1e-12)


@pytest.mark.compile
@pytest.mark.parametrize("sizes", [None, [2, 1, 1]], ids=["padded", "packed"])
def test_a_product_with_the_hessian_of_the_kernel_traces(sizes):
    x = X if sizes is None else X[:, 0]

    def product(params):
        f = exact(lambda params: gru(x, STATE, *params, sizes=sizes)[0].sin().sum())
        return jvp(grad(f), (params,), (params,))[1]

    compiled = torch.compile(product, fullgraph=True, backend="aot_eager")
    # The same operations.
    torch.testing.assert_close(compiled(W), product(W), rtol=1e-12, atol=1e-12)
