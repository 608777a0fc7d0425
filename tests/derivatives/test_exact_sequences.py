"""``exact`` on sequences and runs of rows: all options, refusals, lanes, traces."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from torch.func import grad, jacfwd, jvp, vmap
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pureopt._errors import DerivativeError
from pureopt.derivatives import exact
from tests.derivatives.exact_case import words
from tests.derivatives.row import randn

LABELS = torch.tensor([[1, 2, 2], [2, 2, 1], [3, 1, 2], [1, 1, 1]])
COUNTS = (3, 2, 1, 0)
LOGITS = randn(6, 4, 4)
INDICES = torch.tensor([0, 2, 2, 4, 1, 3])
OFFSETS = torch.tensor([0, 2, 2, 5])
TABLE = randn(5, 3)
# With elements that are equal, zeros and a whole row of ties.
DATA = randn(6, 2, 3).round()
DATA[2] = DATA[1]
RUNS = torch.tensor([2, 0, 4])


def lengths(values, kind):
    return torch.tensor(values) if kind == "tensors" else tuple(values)


def labels(shape, counts=COUNTS):
    if shape == "padded":
        return LABELS
    return torch.cat([row[:n] for row, n in zip(LABELS, counts, strict=True)])


@pytest.mark.parametrize("shape", ["padded", "in a row"])
@pytest.mark.parametrize("kind", ["tensors", "tuples"])
@pytest.mark.parametrize("frames", [(6, 5, 3, 4), (6, 3, 1, 1), (2, 1, 0, 0)], ids=str)
def test_a_ctc_loss_and_its_gradient_through_a_softmax_are_those_of_torch(
    frames, kind, shape
):
    x = LOGITS
    rest = (labels(shape), lengths(frames, kind), lengths(COUNTS, kind))
    for reduction, zeroed in itertools.product(("none", "mean", "sum"), (False, True)):

        def f(x, reduction=reduction, zeroed=zeroed):
            options = {"reduction": reduction, "zero_infinity": zeroed}
            return F.ctc_loss(x.log_softmax(-1), *rest, **options)

        # Sums of some ten terms; where there is no path, infinite and NaN alike.
        same = {"rtol": 1e-13, "atol": 1e-13, "equal_nan": True}
        torch.testing.assert_close(exact(f)(x), f(x), **same)
        ours = grad(lambda x, f=f: exact(f)(x).sum())(x)
        # Under `torch.func.grad` torch takes no mean with lengths that are numbers.
        leaf = x.clone().requires_grad_()
        theirs = torch.autograd.grad(f(leaf).sum(), leaf)[0]
        torch.testing.assert_close(ours, theirs, **same)


@pytest.mark.parametrize("blank", [0, 3])
def test_the_gradient_of_a_ctc_loss_is_that_of_its_value(blank):
    # Neither a softmax nor labels without the blank: torch's gradient is another one.
    def f(x):
        return F.ctc_loss(x, LABELS, (6, 5, 3, 4), COUNTS, blank, "sum")

    v = randn(6, 4, 4, seed=1)
    h = 1e-5
    difference = (f(LOGITS + h * v) - f(LOGITS - h * v)) / (2 * h)
    slope = jvp(exact(f), (LOGITS,), (v,))[1]
    # The error is h^2 times a third derivative, of some hundred in sums over the frames.
    torch.testing.assert_close(slope, difference, rtol=0, atol=1e-8)
    both = (grad(exact(f))(LOGITS) * v).sum()
    torch.testing.assert_close(both, slope, rtol=1e-12, atol=1e-12)
    torch_slope = (grad(f)(LOGITS) * v).sum()
    assert (torch_slope - difference).abs() > 0.1


class Written(TorchDispatchMode):
    """How many numbers the operations return."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.numbers += sum(x.numel() for x in tree_leaves(out) if hasattr(x, "numel"))
        return out


def test_the_cost_of_a_ctc_gradient_grows_with_the_frames_and_not_their_square():
    def numbers(frames):
        x = randn(frames, 1, 4).requires_grad_()
        with Written() as written:
            loss = exact(F.ctc_loss)(x, LABELS[:1], (frames,), (3,))
            torch.autograd.grad(loss, x)
        return written.numbers

    # Twice as many for twice the frames; four times if each frame writes them all.
    assert numbers(256) / numbers(128) < 2.5


def _forward(f, v):
    return lambda x: jvp(f, (x,), (v,))[1]


def test_impossible_labels_beside_frames_of_nan_spoil_no_other_sample():
    x = LOGITS.log_softmax(-1)
    x[2, 0, 1] = -torch.inf
    x[5, 1:] = torch.nan
    frames = (6, 1, 5, 5)

    def f(x, zeroed=False):
        rest = (LABELS, frames, (3, 2, 1, 0))
        return F.ctc_loss(x, *rest, reduction="none", zero_infinity=zeroed)

    assert exact(f)(x).isinf().tolist() == [False, True, False, False]
    assert not exact(f)(x, zeroed=True)[1]
    v = randn(6, 4, 4, seed=1)
    for word in [w for k in (1, 2, 3) for w in words(k)]:
        found = jvps(exact(f), word, x, v)
        assert found.isnan().tolist() == [False, True, False, False], word
        kept = jvps(lambda x: exact(f)(x, zeroed=True), word, x, v)
        assert kept.isfinite().all(), word
        assert kept[1] == 0, word


def jvps(f, word, x, v):
    """The derivatives of each sample along ``v``."""
    for mode in word:
        f = _forward(f, v) if mode == "F" else _by_rows(f, v)
    return f(x)


def _by_rows(f, v):
    """In reverse mode: the gradient of each sample, times its part of ``v``."""

    def g(x):
        slopes = grad(lambda x: f(x).sum())(x) * v
        # Frames of NaN have the gradient zero.
        return slopes.sum((0, 2))

    return g


@pytest.mark.parametrize("number", [np.int64, torch.tensor])
def test_lengths_are_any_numbers_that_torch_takes(number):
    frames, counts = ([number(n) for n in m] for m in ((6, 5, 3, 4), COUNTS))
    for reduction in ("none", "mean", "sum"):
        named = {"reduction": reduction, "zero_infinity": True}
        ours = exact(F.ctc_loss)(LOGITS, LABELS, frames, counts, **named)
        theirs = F.ctc_loss(LOGITS, LABELS, frames, counts, **named)
        # Sums of some ten terms.
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def test_lengths_in_a_tensor_that_torch_would_refuse_give_nan():
    frames, counts = torch.tensor([6, 7, 6, -1]), torch.tensor([3, 2, 4, 0])
    loss = exact(F.ctc_loss)(LOGITS, LABELS, frames, counts, reduction="none")
    assert loss.isnan().tolist() == [False, True, True, True]
    row = LABELS.flatten()[:5]
    loss = exact(F.ctc_loss)(LOGITS, row, frames.clamp(0, 6), counts, reduction="none")
    assert loss.isnan().all()


BAG_OPTIONS = [
    {"mode": mode, "padding_idx": padding, "include_last_offset": last}
    for mode in ("sum", "mean", "max")
    for padding in (None, 2, -2)
    for last in (False, True)
]


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16], ids=str
)
@pytest.mark.parametrize(
    "options", BAG_OPTIONS, ids=lambda o: "-".join(map(str, o.values()))
)
def test_a_bag_and_its_gradient_are_those_of_torch(options, dtype):
    last = options["include_last_offset"]
    offsets = torch.tensor([0, 2, 2, 6]) if last else OFFSETS
    weights = randn(6, seed=2).to(dtype) if options["mode"] == "sum" else None

    def f(table):
        return F.embedding_bag(
            INDICES, table, offsets, per_sample_weights=weights, **options
        )

    x = TABLE.to(dtype)
    # Sums of three numbers near one; half precision is rounded once, or after each sum.
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(exact(f)(x), f(x), rtol=tolerance, atol=tolerance)
    ours, theirs = (grad(lambda x, g=g: g(x).sum())(x) for g in (exact(f), f))
    torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)


def test_what_a_bag_returns_beside_its_values_is_that_of_torch():
    for mode, dtype in itertools.product((1, 2), (torch.int32, torch.int64)):
        call = (TABLE, INDICES.to(dtype), OFFSETS.to(dtype), False, mode)
        kinds = exact(torch.embedding_bag), torch.embedding_bag
        for ours, theirs in zip(*(f(*call) for f in kinds), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-15, atol=1e-15)


def test_a_bag_of_rows_that_are_equal_has_the_gradient_of_the_first():
    table = torch.tensor([[1.0, 1.0], [1.0, 2.0], [0.0, 2.0]])

    def f(table):
        return F.embedding_bag(torch.tensor([[0, 1, 2]]), table, mode="max").sum()

    assert grad(exact(f))(table).tolist() == [[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]


def test_what_is_padding_or_nan_spoils_no_other_bag():
    table, weights = TABLE.clone(), randn(6)
    table[2], weights[1] = torch.nan, torch.inf

    def f(table, weights):
        return F.embedding_bag(
            INDICES,
            table,
            OFFSETS,
            mode="sum",
            per_sample_weights=weights,
            padding_idx=2,
        ).sum()

    for g in jacfwd(exact(f), (0, 1))(table, weights):
        assert g.isfinite().all()
    for g in grad(exact(f), (0, 1))(table, weights):
        assert g.isfinite().all()
    top = exact(F.embedding_bag)(INDICES, table, OFFSETS, mode="max")
    assert top.isnan().any(-1).tolist() == [True, False, True, False]


def test_a_gradient_scaled_by_frequencies_stays_that_of_torch():
    def f(table):
        return F.embedding_bag(
            INDICES, table, OFFSETS, mode="sum", scale_grad_by_freq=True
        ).sum()

    assert torch.equal(grad(exact(f))(TABLE), grad(f)(TABLE))
    assert grad(f)(TABLE)[2, 0] == 1  # of a row that is taken twice
    with pytest.raises(DerivativeError, match="_embedding_bag`, which has no forward"):
        jvp(exact(f), (TABLE,), (TABLE,))


def test_a_bag_with_a_sparse_gradient_has_the_same_one_dense():
    def f(table):
        return F.embedding_bag(INDICES, table, OFFSETS, mode="sum", sparse=True)

    ours, theirs = (grad(lambda x, g=g: g(x).sin().sum())(TABLE) for g in (exact(f), f))
    # One sum of two products.
    torch.testing.assert_close(ours, theirs.to_dense(), rtol=1e-15, atol=1e-15)


SEGMENTS = {
    "lengths": {"lengths": RUNS},
    "short": {"lengths": RUNS.int()[:2], "unsafe": True},
    "offsets": {"offsets": torch.tensor([1, 3, 3, 5])},
    "axis": {"lengths": torch.tensor([[2, 0], [1, 1]] * 3), "axis": 1},
    "last": {"offsets": torch.tensor([0, 1, 3]).expand(6, 2, 3), "axis": -1},
    "last but one": {"lengths": torch.tensor([[2, 0], [1, 1]] * 3), "axis": -2},
}


@pytest.mark.parametrize("initial", [None, 1.0, 0.0])
@pytest.mark.parametrize("name", SEGMENTS)
@pytest.mark.parametrize("reduce", ["sum", "mean", "max", "min", "prod", "amax"])
def test_segments_and_their_gradients_are_those_of_torch(reduce, name, initial):
    def f(x):
        return torch.segment_reduce(x, reduce, initial=initial, **SEGMENTS[name])

    # At most four numbers near one.
    same = {"rtol": 1e-14, "atol": 1e-14, "equal_nan": True}
    torch.testing.assert_close(exact(f)(DATA), f(DATA), **same)
    ours, theirs = (
        # Positive weights: torch shares a negative gradient not between equals.
        grad(lambda x, g=g: g(x).nan_to_num(0, 0, 0).exp().sum())(DATA)
        for g in (exact(f), f)
    )
    torch.testing.assert_close(ours, theirs, **same)


def test_an_infinity_and_a_nan_stay_in_their_segments():
    x = DATA.clone()
    x[0, 0, 0], x[3, 1] = torch.nan, torch.inf
    for reduce in ("sum", "mean", "max", "min", "prod"):
        ours, theirs = (
            f(x, reduce, lengths=RUNS)
            for f in (exact(torch.segment_reduce), torch.segment_reduce)
        )
        torch.testing.assert_close(ours, theirs, equal_nan=True)
    assert exact(torch.segment_reduce)(x[:0], "max", lengths=RUNS * 0).isneginf().all()


def test_elements_that_are_equal_share_a_negative_gradient_too():
    x = torch.tensor([1.0, 1.0, 0.0])

    def f(x):
        return -torch.segment_reduce(x, "max", lengths=torch.tensor([3])).sum()

    assert grad(exact(f))(x).tolist() == [-0.5, -0.5, 0.0]


def lanes(*tensors):
    """Two of each: as it is, and turned around."""
    return tuple(torch.stack([x, x.flip(0)]) for x in tensors)


LANES = {
    "ctc": (
        F.ctc_loss,
        lanes(LOGITS, LABELS, torch.tensor([6, 6, 5, 5]), torch.tensor(COUNTS)),
    ),
    "bag": (
        lambda table, weights, indices: F.embedding_bag(
            indices, table, OFFSETS, mode="sum", per_sample_weights=weights
        ),
        lanes(TABLE, randn(6), INDICES),
    ),
    "bag, max": (
        lambda table: F.embedding_bag(INDICES, table, OFFSETS, mode="max"),
        lanes(TABLE),
    ),
    "segments": (
        lambda x, n: torch.segment_reduce(x, "prod", lengths=n),
        lanes(DATA, RUNS),
    ),
    "segments, max": (
        lambda x, n: torch.segment_reduce(x, "max", lengths=n, initial=0.5),
        lanes(DATA, RUNS),
    ),
    "cholesky": (
        lambda x: torch.cholesky(x @ x.mT + torch.eye(3).to(x)),
        lanes(TABLE[:3]),
    ),
}


@pytest.mark.parametrize("name", LANES)
# That torch has no rule to batch its check of integers which differ from lane to lane.
@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
def test_a_lane_is_the_call_on_its_arguments(name):
    f, arguments = LANES[name]

    def hvp(x, *rest):
        g = grad(lambda x: exact(f)(x, *rest).sin().sum())
        return jvp(g, (x,), (x.cos(),))[1]

    single = torch.stack([hvp(*lane) for lane in zip(*arguments, strict=True)])
    # The same operations, batched.
    torch.testing.assert_close(vmap(hvp)(*arguments), single, rtol=1e-12, atol=1e-12)


REFUSED = {
    "frames": lambda: F.ctc_loss(LOGITS, LABELS, (7, 6, 6, 6), COUNTS),
    "samples": lambda: F.ctc_loss(LOGITS, LABELS, (6, 6), COUNTS),
    "labels": lambda: F.ctc_loss(LOGITS, LABELS, (6,) * 4, (4, 2, 2, 2)),
    "labels in a row": lambda: F.ctc_loss(LOGITS, LABELS[0], (6,) * 4, COUNTS),
    "negative": lambda: F.ctc_loss(LOGITS, LABELS, (6, 6, 6, -1), COUNTS),
    "blank": lambda: F.ctc_loss(LOGITS, LABELS, (6,) * 4, COUNTS, 4),
    "half": lambda: F.ctc_loss(LOGITS.half(), LABELS, (6,) * 4, COUNTS),
    "no frames": lambda: F.ctc_loss(LOGITS[:0], LABELS, (0,) * 4, (0,) * 4),
    "numbers for lengths": lambda: F.ctc_loss(
        LOGITS, LABELS, torch.ones(4), torch.ones(4)
    ),
    "two kinds": lambda: F.ctc_loss(LOGITS, LABELS, torch.ones(4).long(), COUNTS),
    "no bag at zero": lambda: F.embedding_bag(INDICES, TABLE, OFFSETS + 1),
    "beyond the bags": lambda: F.embedding_bag(INDICES, TABLE, 3 * OFFSETS),
    "weights of a mean": lambda: torch.embedding_bag(
        TABLE, INDICES, OFFSETS, False, 1, False, randn(6)
    ),
    "no matrix": lambda: torch.embedding_bag(TABLE[0], INDICES, OFFSETS),
    "sum of lengths": lambda: torch.segment_reduce(DATA, "sum", lengths=RUNS[:2]),
    "negative length": lambda: torch.segment_reduce(DATA, "sum", lengths=4 - 2 * RUNS),
    "no lengths": lambda: torch.segment_reduce(DATA, "sum"),
    "reduction": lambda: torch.segment_reduce(DATA, "median", lengths=RUNS),
    "axis": lambda: torch.segment_reduce(DATA, "sum", lengths=RUNS, axis=3),
    "integers": lambda: torch.segment_reduce(DATA.long(), "sum", lengths=RUNS),
    "indefinite": lambda: torch.cholesky(-torch.eye(2)),
    "lengths of too many dimensions": lambda: torch.segment_reduce(
        DATA, "sum", lengths=RUNS.reshape(1, 3)
    ),
    "places": lambda: torch.tensor_split(DATA, RUNS.double()),
    "rows of places": lambda: torch.tensor_split(DATA, RUNS.reshape(1, 3)),
    "nowhere": lambda: torch.tensor_split(DATA),
    "weight": lambda: F.linear_cross_entropy(TABLE, TABLE[:, :2], LABELS[:, 0]),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.filterwarnings("ignore:torch.cholesky is deprecated")
def test_what_torch_refuses_is_refused_in_its_words(name):
    with pytest.raises((RuntimeError, IndexError, TypeError)) as theirs:
        REFUSED[name]()
    with pytest.raises(type(theirs.value)) as ours:
        exact(REFUSED[name])()
    assert str(ours.value) == str(theirs.value)


OPTIONS = torch.nn.LinearCrossEntropyOptions()
MODULES = {
    "CTCLoss": (
        torch.nn.CTCLoss(blank=3, reduction="sum"),
        (LOGITS.log_softmax(-1), LABELS % 3, (6,) * 4, COUNTS),
    ),
    "CTCLoss, one sample": (
        torch.nn.CTCLoss(),
        (LOGITS[:, 0], LABELS[0], torch.tensor(6), torch.tensor(3)),
    ),
    "EmbeddingBag": (
        torch.nn.EmbeddingBag.from_pretrained(TABLE, mode="max"),
        (INDICES.reshape(2, 3),),
    ),
    "LinearCrossEntropyLoss": (
        torch.nn.LinearCrossEntropyLoss(3, 4, options=OPTIONS, dtype=torch.float64),
        (TABLE, LABELS.flatten()[:5]),
    ),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_have_the_values_of_torch(name):
    module, call = MODULES[name]
    # Other orders of the same sums.
    torch.testing.assert_close(exact(module)(*call), module(*call))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_cross_entropy_in_chunks_is_that_in_one_piece(reduction):
    x, table, classes = randn(4, 3), TABLE, LABELS[:, 0]
    named = {
        "linear_bias": randn(5),
        "weight": randn(5).abs(),
        "ignore_index": 3,
        "reduction": reduction,
    }

    def f(x, **more):
        return F.linear_cross_entropy(x, table, classes, **named, **more)

    # Other orders of the same sums.
    torch.testing.assert_close(exact(f)(x, options=OPTIONS), f(x, options=OPTIONS))
    hessians = (
        jacfwd(grad(lambda x, m=m: exact(f)(x, **m).sum()))(x)
        for m in ({}, {"options": OPTIONS})
    )
    assert torch.equal(*hessians)
    with pytest.warns(UserWarning, match="options.. ignored"):
        exact(f)(x, options=OPTIONS, label_smoothing=0.5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_the_backward_of_dropout_rounds_as_torch(dtype):
    call = LOGITS.to(dtype), LOGITS > 0, 1.1
    f = torch.ops.aten.native_dropout_backward
    assert torch.equal(exact(f)(*call), f(*call))


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_a_complex_sign_knows_no_size(dtype):
    large = torch.finfo(dtype).max ** 0.75  # its square is infinite
    z = torch.complex(randn(3), randn(3, seed=1)).to(dtype)
    v = torch.complex(randn(3, seed=2), randn(3, seed=3)).to(dtype)

    def slope(size):
        f = lambda t: torch.view_as_real(exact(torch.sgn)(size * (z + t * v)))  # noqa: E731
        return jvp(f, (torch.zeros_like(z.real),), (torch.ones_like(z.real),))

    for size in (large, 1 / large):
        for got, expected in zip(slope(size), slope(1.0), strict=True):
            # A few roundings of numbers below ten.
            same = {"rtol": 0, "atol": 100 * torch.finfo(dtype).eps}
            torch.testing.assert_close(got, expected, **same)
    assert torch.equal(exact(torch.sgn)(0 * z), 0 * z)


def private_norms(x, mean, variance):
    """Each with its own copies of the statistics, which it may move."""
    state = [(mean.clone(), variance.clone()) for _ in range(3)]
    weight, bias = mean + 1, variance
    legit = torch._native_batch_norm_legit
    return [
        *legit(x, weight, bias, *state[0], True, 0.1, 1e-5),
        *legit(x, weight, bias, *state[1], False, 0.1, 1e-5)[:1],
        *legit(x, weight, bias, True, 0.1, 1e-5),
        *legit(x, weight, bias, training=True, momentum=0.1, eps=1e-5),
        *torch._native_batch_norm_legit_no_training(
            x, weight, bias, *state[1], 0.1, 1e-5
        )[:1],
        *torch.ops.aten._batch_norm_with_update(x, weight, bias, *state[2], 0.1, 1e-5),
        *itertools.chain(*state),
    ]


def test_the_private_batch_norms_return_and_move_what_they_do_in_torch():
    call = (DATA, randn(2), randn(2, seed=1).abs())
    pairs = zip(exact(private_norms)(*call), private_norms(*call), strict=True)
    for ours, theirs in pairs:
        # Means of some ten numbers near one.
        torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("upper", [False, True])
def test_a_cholesky_factor_reads_one_triangle_and_warns_as_in_torch(upper):
    A = torch.tensor([[4.0, 1.5], [1.0, 3.0]], dtype=torch.float64)
    always = torch.is_warn_always_enabled()
    torch.set_warn_always(True)
    try:
        with pytest.warns(UserWarning, match="torch.cholesky is deprecated"):
            ours = exact(torch.cholesky)(A, upper)
    finally:
        torch.set_warn_always(always)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # One factorization by the same routine.
        torch.testing.assert_close(ours, A.cholesky(upper), rtol=0, atol=1e-15)


def test_a_tensor_is_split_at_places_made_inside_a_transform():
    def f(x):
        parts = (
            *x.tensor_split(torch.tensor([1, 4])),
            *torch.tensor_split(x, torch.tensor(2), 1),
            *torch.tensor_split(x, indices=(1, 2), dim=2),
            *torch.tensor_split(x, tensor_indices_or_sections=torch.tensor([3])),
        )
        return torch.stack([part.sin().sum() for part in parts]) ** 2

    J = jacfwd(exact(f))(DATA)
    assert J.shape == (10, *DATA.shape)
    expected = grad(lambda x: exact(f)(x).sum())(DATA)
    # Four parts of one number each.
    torch.testing.assert_close(J.sum(0), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("name", ["ctc", "bag", "bag, max", "segments"])
def test_on_the_meta_device_there_are_shapes(name):
    f, arguments = LANES[name]
    lane = [x[0] for x in arguments]
    if name.startswith("bag"):
        y = exact(
            lambda table, i, offsets: torch.embedding_bag(
                table, i, offsets, mode=2 if "max" in name else 0
            )[0]
        )(*(x.to("meta") for x in (TABLE, INDICES, OFFSETS)))
        assert y.shape == f(*lane).shape
        return
    y = exact(f)(*(x.to("meta") for x in lane))
    assert y.is_meta
    assert y.shape == f(*lane).shape


TRACED = {
    "ctc": lambda x: F.ctc_loss(x, LABELS, (6, 5, 3, 4), COUNTS),
    "bag": lambda x: F.embedding_bag(INDICES, x[:, :, 0], OFFSETS).sin(),
    "split": lambda x: torch.tensor_split(x, 3)[1].sin(),
}


@pytest.mark.compile
@pytest.mark.parametrize("name", TRACED)
def test_a_nesting_traces(name):
    def h(x):
        g = grad(lambda x: exact(TRACED[name])(x).sum())
        return jvp(g, (x,), (x.cos(),))[1]

    compiled = torch.compile(h, fullgraph=True, backend="aot_eager")
    # The same operations.
    torch.testing.assert_close(compiled(LOGITS), h(LOGITS), rtol=1e-12, atol=1e-12)


def test_traced_the_reduction_of_segments_is_not_shown_to_a_mode():
    # Documented: torch does not list it among the functions that can be overridden.
    assert (
        torch.segment_reduce not in torch.overrides.get_overridable_functions()[torch]
    )
