"""``audit`` against functions that are known to be right, wrong, or neither."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import pureopt as po
from pureopt._errors import DerivativeError, HyperparameterError, TreeError
from pureopt.derivatives import audit
from tests.derivatives.row import randn


def verdicts(report):
    return {word.word: word.verdict for word in report.words}


def not_right(report):
    return {word: v for word, v in verdicts(report).items() if v != "right"}


class SquareTwice(torch.autograd.Function):
    """The cube, with the derivative ``2 x^2`` in place of ``3 x^2``."""

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return 2 * g * x * x


class Norm(torch.autograd.Function):
    """The Euclidean norm, with both formulas right as they stand."""

    @staticmethod
    def forward(x):
        return x.square().sum().sqrt()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x / x.square().sum().sqrt()

    @staticmethod
    def jvp(ctx, v):
        (x,) = ctx.saved_tensors
        return (x * v).sum() / x.square().sum().sqrt()


RIGHT = {
    "mlp": (
        lambda p: torch.tanh(torch.tanh(p["x"] @ p["v"]) @ p["w"]),
        ({"x": randn(2, 3), "v": randn(3, 4, seed=1), "w": randn(4, 2, seed=2)},),
    ),
    "group_norm": (lambda x: F.group_norm(x, 2), (randn(2, 4, 3),)),
    "polynomial": (lambda x, y: x * x * y + y, (randn(3), randn(3, seed=1))),
    "square": (lambda x: x * x, (randn(3),)),
    "linear": (lambda x: 2 * x, (randn(3),)),
    "constant": (torch.zeros_like, (randn(3),)),
    "relu": (F.relu, (torch.tensor([-0.5, 0.3, 1.0], dtype=torch.float64),)),
    "complex": (lambda x: torch.fft.fft(x.exp()), (randn(4),)),
    "integers beside": (lambda x: torch.topk(x, 2), (randn(5),)),
    "symmetrized": (
        lambda a: torch.linalg.cholesky((a + a.mT) / 2),
        (torch.eye(3, dtype=torch.float64) + 0.2,),
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right_is_found_right(name):
    f, inputs = RIGHT[name]
    report = audit(f, *inputs)
    assert [word.word for word in report.words[:6]] == [
        "R",
        "F",
        "RR",
        "RF",
        "FR",
        "FF",
    ]
    assert len(report.words) == 14
    assert not_right(report) == {}
    assert report.ok
    assert report.mended
    assert report.culprits == ()


WRONG = {
    # What torch gets wrong at second order, and at third in reverse alone.
    "layer_norm": (
        lambda x: F.layer_norm(x, (3,)).sin(),
        randn(2, 3),
        {"FR", "FF", "RRR"},
        "torch.nn.functional.layer_norm",
    ),
    "solve": (
        lambda x: torch.linalg.solve(x, x[0]),
        randn(3, 3),
        {"FR", "FF"},
        "torch.linalg.solve",
    ),
    "det": (
        lambda x: torch.linalg.det(x).exp(),
        randn(3, 3),
        {"FR", "FF", "RRR"},
        "torch.linalg.det",
    ),
    "cumprod at a zero": (
        lambda x: torch.cumprod(2 * x, 0),
        torch.tensor([1.0, 0.0, 2.0, 0.0, 3.0], dtype=torch.float64),
        {"FR", "FF"},
        "torch.cumprod",
    ),
    "wrong backward": (
        lambda x: SquareTwice.apply(x.sin()).exp(),
        randn(3),
        {"R", "RR", "RRR"},
        "SquareTwice.apply",
    ),
    "custom function with a jvp": (
        lambda x: Norm.apply(x.exp()),
        randn(3),
        {"FF"},
        "Norm.apply",
    ),
    "detached": (
        lambda x: x * torch.exp(x).detach(),
        randn(3),
        {"R", "F", "RR", "FF"},
        "torch.Tensor.detach",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_found_wrong_and_the_culprit_named(name):
    f, x, words, culprit = WRONG[name]
    report = audit(f, x)
    bad = not_right(report)
    assert words <= {w for w, v in bad.items() if v in {"wrong", "not finite"}}
    assert not report.ok
    (found,) = report.culprits
    assert found.name == culprit
    file, line = found.where.rsplit(":", 1)
    assert file == __file__
    assert (
        Path(file).read_text().splitlines()[int(line) - 1].strip().startswith("lambda")
    )
    assert words <= {word.word for word in found.words}


def test_the_value_and_the_reference_of_a_wrong_word_are_reported():
    # Backward says 2 x^2 where the derivative is 3 x^2.
    report = audit(SquareTwice.apply, randn(3), order=1)
    word = report.words[0]
    assert word.verdict == "wrong"
    # The reference is good to its tolerance, and both are linear in the same direction.
    assert math.isclose(word.value / word.reference, 2 / 3, rel_tol=1e-8)


def test_exact_mends_layer_norm_and_not_a_wrong_backward():
    report = audit(lambda x: F.layer_norm(x, (4,)), randn(2, 4))
    assert not report.ok
    assert report.mended
    assert all(culprit.mended for culprit in report.culprits)
    report = audit(lambda x: SquareTwice.apply(x), randn(3), order=1)  # noqa: PLW0108
    assert not report.mended
    assert not report.culprits[0].mended


@pytest.mark.parametrize(
    ("read", "name"),
    [
        (lambda x: x.sum().item(), "torch.Tensor.item"),
        (lambda x: float(x[0]), "torch.Tensor.__float__"),
        (lambda x: math.sin(x[0]), "torch.Tensor.__float__"),
        (lambda x: sum(x.tolist()), "torch.Tensor.tolist"),
        (lambda x: complex(x.sum()).real, "torch.Tensor.__complex__"),
        (lambda x: float(f"{x[0]:.12f}"), "torch.Tensor.__format__"),
    ],
    ids=["item", "float", "math", "tolist", "complex", "format"],
)
def test_what_reads_a_tensor_into_a_number_is_a_culprit(read, name):
    report = audit(lambda x: x.sin().sum() * read(x), randn(3), order=2)
    assert not_right(report).keys() == {"R", "F", "RR", "RF", "FR", "FF"}
    assert [(c.name, c.mended) for c in report.culprits] == [(name, False)]
    # Also inside of `exact`, by the line that reads.
    inside = audit(
        po.derivatives.exact(lambda x: x.sin().sum() * read(x)), randn(3), order=1
    )
    assert [c.name for c in inside.culprits] == [name]
    assert "test_audit.py" in inside.culprits[0].where
    # What is only asked is none.
    right = audit(lambda x: x.sum() * (2 if read(x) > -1e9 else 3), randn(3), order=2)
    assert right.ok
    assert right.culprits == ()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
def test_what_reads_a_number_of_single_precision_is_a_culprit(dtype):
    def f(x):
        return x.sum() * complex(x.to(dtype).sum().item()).real

    (culprit,) = audit(f, randn(3), order=1).culprits
    assert culprit.name == "torch.Tensor.item"


def test_a_number_that_is_printed_is_not_at_fault_for_others():
    def f(x, shown):
        y = F.layer_norm(x, (3,)).exp() * x.sum().detach()
        shown.append(f"{y[0, 0]:.3f}, {y.sum():.1e}")
        return y

    names = [c.name for c in audit(lambda x: f(x, []), randn(2, 3), order=2).culprits]
    assert sorted(names) == ["torch.Tensor.detach", "torch.nn.functional.layer_norm"]


def test_several_culprits_are_told_apart_by_their_lines():
    def f(x):
        y = F.layer_norm(x, (3,))
        z = x.tanh()
        return F.layer_norm(y * z, (3,))

    places = [culprit.where for culprit in audit(f, randn(2, 3), order=2).culprits]
    lines = sorted(int(place.rsplit(":", 1)[1]) for place in places)
    assert len(lines) == 2
    assert lines[1] - lines[0] == 2


def test_a_module_is_blamed_at_the_line_that_calls_it():
    norm = torch.nn.LayerNorm(3).double()

    def f(x):
        return norm(x)

    (culprit,) = audit(f, randn(2, 3), order=2).culprits
    assert culprit.where.startswith(f"{__file__}:")


def test_a_function_that_differentiates_inside_is_audited_too():
    def energy(x):
        return F.layer_norm(x, (3,)).pow(3).sum()

    def force(x):
        return torch.func.grad(energy)(x.sin())

    report = audit(force, randn(3), order=2)
    # F of the gradient is right; the second R is the third in all, which is wrong.
    assert verdicts(report)["F"] == "right"
    assert verdicts(report)["RR"] == "wrong"
    assert [c.name for c in report.culprits] == ["torch.nn.functional.layer_norm"]


def test_at_a_kink_nothing_is_decided():
    x = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert set(verdicts(audit(F.relu, x)).values()) == {"undecided"}
    # The first derivative of x |x| exists at 0, the second does not.
    found = verdicts(audit(lambda x: x * x.abs(), x, order=2))
    assert {found["R"], found["F"]} == {"right"}
    assert {found["RR"], found["FF"]} == {"undecided"}


def test_where_a_function_is_not_finite_nothing_is_decided():
    x = torch.tensor([-1.0, 2.0], dtype=torch.float64)
    report = audit(torch.log, x)
    assert set(verdicts(report).values()) == {"undecided"}
    assert str(report).splitlines()[-1].startswith("Nothing can be told: it is not f")


def test_a_derivative_that_is_not_finite_where_there_is_one_is_told():
    # Smooth around -0.5 and 0.7, but reverse mode multiplies the NaN of the branch that
    # is not taken by 0; forward mode selects.
    def f(x):
        return torch.where(x > 0, x.sqrt(), x.square()).sum()

    x = torch.tensor([-0.5, 0.7], dtype=torch.float64)
    report = audit(f, x, order=1)
    assert verdicts(report) == {"R": "not finite", "F": "right"}
    assert not report.ok


def test_what_torch_refuses_is_unsupported_and_its_words_are_kept():
    report = audit(lambda x: torch.cdist(x, x.sin()), randn(3, 2), order=1)
    assert verdicts(report) == {"R": "right", "F": "unsupported"}
    assert report.ok  # an error is no wrong answer
    assert "forward AD" in report.words[1].message
    assert [culprit.name for culprit in report.culprits] == ["torch.functional.cdist"]


def test_single_precision_inside_widens_the_tolerance_and_is_not_called_wrong():
    report = audit(lambda x: x.float().sin().double(), randn(3))
    assert "wrong" not in verdicts(report).values()
    assert "undecided" in verdicts(report).values()


def test_a_result_in_half_precision_is_a_staircase_of_which_nothing_is_known():
    found = verdicts(audit(lambda x: x.sin().bfloat16(), randn(3)))
    assert set(found.values()) == {"undecided"}


def test_the_scale_of_the_input_does_not_matter():
    for scale in (1e-6, 1e6):
        x = scale * randn(4).abs()
        assert not_right(audit(lambda x: torch.log(x), x)) == {}  # noqa: PLW0108


def test_another_key_is_another_path():
    values = {
        audit(torch.exp, randn(3), order=1, key=po.random.key(k)).words[0].value
        for k in (0, 0, 1)
    }
    assert len(values) == 2


def test_the_report_prints_what_it_found():
    text = str(audit(lambda x: F.layer_norm(x, (3,)), randn(2, 3), order=2))
    first, *rest = text.splitlines()
    assert first == "2 of 6 nestings are wrong, 0 under exact"
    assert any(line.startswith("FR    wrong") for line in rest)
    assert "torch.nn.functional.layer_norm at " in rest[-1]
    assert rest[-1].endswith("FR, FF wrong; exact mends it")
    text = str(audit(lambda x: torch.cdist(x, x), randn(3, 2), order=2))
    assert "F, RF, FR, FF: NotImplementedError: " in text


def test_the_inputs_are_left_alone():
    x = randn(3)
    before, version = x.clone(), x._version
    audit(torch.exp, x, order=1)
    assert torch.equal(x, before)
    assert x._version == version


@pytest.mark.parametrize(
    ("f", "inputs", "message"),
    [
        (torch.exp, (torch.arange(3),), "int64 at '0'.* `.float"),
        (torch.exp, (), "empty tree"),
        (torch.exp, (1.0,), "`float` at '0'"),
    ],
)
def test_inputs_that_are_no_floats_are_refused(f, inputs, message):
    with pytest.raises(TreeError, match=message):
        audit(f, *inputs)


def test_single_precision_is_refused_with_the_way_out():
    with pytest.raises(DerivativeError, match=r"float32 at '0\.w'.*module\.double"):
        audit(lambda p: p["w"].exp(), {"w": randn(3, dtype=torch.float32)})


@pytest.mark.parametrize("order", [0, -1, 1.5, "2"])
def test_an_order_that_is_no_positive_integer_is_refused(order):
    with pytest.raises(HyperparameterError, match=r"order=.*positive integer"):
        audit(torch.exp, randn(3), order=order)


def test_a_result_without_derivatives_is_refused():
    with pytest.raises(DerivativeError, match=r"floating-point tensor, got .*int64"):
        audit(lambda x: x.argsort(), randn(3))


def test_a_function_that_writes_to_its_input_is_refused():
    def f(x):
        x += 1
        return x.exp()

    with pytest.raises(DerivativeError, match="in place"):
        audit(f, randn(3))


def test_a_function_that_is_not_the_same_each_time_is_refused():
    calls = []

    def f(x):
        calls.append(1)
        return x * len(calls)

    with pytest.raises(DerivativeError, match="return the same"):
        audit(f, randn(3))


def test_the_profiler_of_the_program_is_put_back():
    import sys

    seen = []

    def profile(frame, event, arg):
        seen.append(event)

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        audit(lambda x: F.layer_norm(x, (3,)), randn(3), order=2)
        assert sys.getprofile() is profile
    finally:
        sys.setprofile(previous)
    assert seen
