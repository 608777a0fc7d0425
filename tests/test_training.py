"""`make_step` and `train`: pure, compiled, vmapped, with buffers, spaces and searches."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
import torch
from torch import nn
from torch.func import grad, vmap
from torch.utils.data import DataLoader, TensorDataset

import pureopt as po
from pureopt._progress import progress_bar
from pureopt._tree import tree_leaves, tree_map

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(20, 3, generator=GENERATOR)
Y = X @ torch.tensor([[1.0], [-2.0], [0.5]]) + 0.25
START = {"w": torch.zeros(3, 1), "b": torch.zeros(1)}


def square_loss(params, x, y):
    return (x @ params["w"] + params["b"] - y).square().mean()


def counting_loss(params, buffers, x, y):
    error = x @ params["w"] + params["b"] - y
    metrics = {"worst": error.abs().max()}
    return error.square().mean(), po.Aux({"n": buffers["n"] + 1}, metrics)


def same(a, b):
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(torch.equal(x, y) for x, y in pairs)


def test_a_step_is_the_gradient_and_then_the_transform():
    adam = po.Adam(lr=0.1)
    step = po.make_step(square_loss, adam)
    carry, metrics = step(step.init(START), X, Y)
    want, state = adam.step(START, adam.init(START), grad(square_loss)(START, X, Y))
    assert same((carry.free, carry.state), (want, state))
    assert set(metrics) == {"loss"}
    assert float(metrics["loss"]) == float(square_loss(START, X, Y))
    assert (carry.static, carry.buffers) == ((), ())


def test_a_step_writes_to_nothing_it_is_given():
    step = po.make_step(counting_loss, po.Adam(lr=0.1))
    carry = step.init(START, {"n": torch.zeros((), dtype=torch.int64)})
    inputs = [*tree_leaves(carry), X, Y]
    before = [(leaf._version, leaf.clone()) for leaf in inputs]
    first, second = step(carry, X, Y), step(carry, X, Y)
    assert same(first, second)
    for leaf, (version, copy) in zip(inputs, before, strict=True):
        assert leaf._version == version
        assert torch.equal(leaf, copy)


def test_the_carry_is_a_copy_of_the_parameters():
    params = {"w": torch.zeros(3, 1), "b": torch.zeros(1).expand(1)}
    carry = po.make_step(square_loss, po.SGD(lr=0.1)).init(params)
    params["w"].fill_(7.0)
    assert float(carry.free["w"].abs().max()) == 0
    assert all(leaf.is_contiguous() for leaf in tree_leaves(carry))


def test_buffers_and_metrics_travel():
    step = po.make_step(counting_loss, po.SGD(lr=0.1))
    carry = step.init(START, {"n": torch.zeros((), dtype=torch.int64)})
    for _ in range(3):
        carry, metrics = step(carry, X, Y)
    assert int(carry.buffers["n"]) == 3
    assert set(metrics) == {"loss", "worst"}
    assert not any(leaf.requires_grad for leaf in tree_leaves(metrics))


def test_empty_buffers_are_buffers_and_metrics_need_none():
    def with_buffers(params, buffers, x, y):
        return square_loss(params, x, y), po.Aux(buffers)

    def without(params, x, y):
        loss = square_loss(params, x, y)
        return loss, po.Aux(metrics={"root": loss.sqrt()})

    step = po.make_step(with_buffers, po.SGD(lr=0.1))
    assert step(step.init(START, {}), X, Y)[0].buffers == {}
    step = po.make_step(without, po.SGD(lr=0.1))
    assert set(step(step.init(START), X, Y)[1]) == {"loss", "root"}


def test_a_module_with_batch_norm_trains():
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    apply, params, buffers = po.functionalize(model)

    def loss_fn(params, buffers, x, y):
        out, buffers = apply(params, buffers, x)
        return (out - y).square().mean(), po.Aux(buffers)

    step = po.make_step(loss_fn, po.Adam(lr=0.02))
    carry = step.init(params, buffers)
    _, metrics = step(carry, X, Y)
    trained = po.train(step, carry, [(X, Y)], epochs=50)
    assert float(step(trained, X, Y)[1]["loss"]) < float(metrics["loss"]) / 4
    assert int(trained.buffers["1.num_batches_tracked"]) == 50
    assert int(model[1].num_batches_tracked) == 0


def test_what_to_save_is_the_answer_of_the_transform():
    ema = po.EMA(po.SGD(lr=0.1), decay=0.5)
    step = po.make_step(square_loss, ema)
    carry, _ = step(step.init(START), X, Y)
    halfway = tree_map(lambda p: p / 2, carry.free)  # the start was zero
    assert same(step.params(carry), halfway)


def rotation_problem():
    generator = torch.Generator().manual_seed(3)
    target = torch.linalg.qr(torch.randn(3, 3, 3, generator=generator))[0]
    # Members on both components of the orthogonal group: their static data differ.
    flips = torch.stack([torch.eye(3), torch.eye(3), -torch.eye(3)])
    return {"w": target @ flips}, {"w": target.roll(1, 0) @ flips}


def fit(params, target):
    return (params["w"] - target).square().sum()


def test_a_space_keeps_the_parameters_on_their_set():
    start, targets = rotation_problem()
    params, target = {"w": start["w"][0]}, targets["w"][0]
    target = target * torch.det(target) * torch.det(params["w"])  # one component
    space = po.constrain(params, {"w": po.constraints.Orthogonal()})
    step = po.make_step(fit, po.Adam(lr=0.05), space=space)
    carry = step.init(params)
    eps = torch.finfo(torch.float32).eps
    # The round trip of one point, whose skew matrix has norms of order 10.
    torch.testing.assert_close(step.params(carry), params, rtol=0, atol=200 * eps)
    first = float(fit(params, target))
    for _ in range(60):
        carry, metrics = step(carry, target)
        w = step.params(carry)["w"]
        # The bound that the constraint states: 10 n eps.
        assert float((w.T @ w - torch.eye(3)).abs().max()) <= 30 * eps
    assert float(metrics["loss"]) < first / 10


@pytest.mark.compile
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_an_ensemble_of_members_with_their_own_static_data(compiled):
    start, targets = rotation_problem()
    spec = {"w": po.constraints.Orthogonal()}
    space = po.constrain(tree_map(lambda p: p[0], start), spec)  # the shape of a member
    member = po.make_step(fit, po.Adam(lr=0.05), space=space)
    static = po.constrain(start, spec).static
    carry = vmap(lambda p, s: member.init(p, static=s))(start, static)
    assert all(leaf.is_contiguous() for leaf in tree_leaves(carry))
    step = vmap(member)
    if compiled:
        step = torch.compile(step, backend="aot_eager", fullgraph=True)
    for _ in range(3):
        carry, metrics = step(carry, targets["w"])
    assert metrics["loss"].shape == (3,)
    answers = vmap(member.params)(carry)
    for i in range(3):
        lone = {"w": start["w"][i]}
        step_i = po.make_step(fit, po.Adam(lr=0.05), space=po.constrain(lone, spec))
        carry_i = step_i.init(lone)
        for _ in range(3):
            carry_i, _ = step_i(carry_i, targets["w"][i])
        want = step_i.params(carry_i)["w"]
        got = answers["w"][i]
        # Batched and single solves round differently; Adam's first steps turn small
        # gradients into whole steps, so leave some 100 ulp.
        torch.testing.assert_close(got, want, rtol=0, atol=2e-5)


@pytest.mark.compile
def test_a_compiled_step_is_the_eager_one_and_trains():
    tx = po.ClipByGlobalNorm(1.0) >> po.EMA(po.AdamW(lr=torch.tensor(0.1)))
    step = po.make_step(counting_loss, tx)
    carry = step.init(START, {"n": torch.zeros((), dtype=torch.int64)})
    compiled = torch.compile(step, backend="aot_eager", fullgraph=True)
    eager = po.train(step, carry, [(X, Y)], epochs=5)
    got = po.train(compiled, carry, [(X, Y)], epochs=5)
    # The same kernels up to a few rewritten quotients, for five steps of 0.1.
    torch.testing.assert_close(got, eager, rtol=1e-5, atol=1e-6)


def test_steps_can_be_differentiated_through():
    def after(lr):
        step = po.make_step(square_loss, po.SGD(lr=lr))
        carry = step.init(START)
        for _ in range(2):
            carry, _ = step(carry, X, Y)
        return square_loss(step.params(carry), X, Y)

    lr, h = torch.tensor(0.05), 1e-2
    slope = (after(lr + h) - after(lr - h)) / (2 * h)
    # Truncation: h^2 / 6 times a third derivative of order 100.
    assert float(grad(after)(lr)) == pytest.approx(float(slope), abs=0.02)
    assert float(slope) < -1


def test_lbfgs_solves_least_squares_and_restarts_only_for_new_data():
    step = po.make_step(square_loss, po.LBFGS())
    carry = po.train(step, step.init(START), [(X, Y)], epochs=25)
    params = step.params(carry)
    assert float(params["b"]) == pytest.approx(0.25, abs=1e-4)
    assert float(square_loss(params, X, Y)) < 1e-8


class Recorder(po.Transform):
    """A searching transform that writes down what happens to it."""

    def __init__(self):
        self.log = []

    @property
    def searches(self):
        return True

    def init(self, params):
        return ()

    def step(self, params, state, grads, *, value=None):
        assert value is not None
        self.log.append("step")
        return params, state

    def restart(self, state):
        self.log.append("restart")
        return state


def test_restarts_happen_before_other_tensors_only():
    a, b = (X, Y), (X.clone(), Y.clone())
    for batches, want in (
        ([a, a, a], "RSSS"),
        ([a, b, b, a], "RSRSSRS"),
        ([a, (X, Y.clone())], "RSRS"),
    ):
        recorder = Recorder()
        step = po.make_step(square_loss, recorder)
        po.train(step, step.init(START), batches)
        assert "".join(word[0].upper() for word in recorder.log) == want


def test_restarts_are_found_below_vmap():
    recorder = Recorder()
    step = po.make_step(square_loss, recorder)
    many = tree_map(lambda p: torch.stack([p, p + 1]), START)
    carry = vmap(step.init)(many)
    po.train(vmap(step, in_dims=(0, None, None)), carry, [(X, Y), (X, Y)])
    assert recorder.log == ["restart", "step", "step"]


def test_callbacks_see_every_step_and_where_epochs_end():
    records = []
    step = po.make_step(square_loss, po.SGD(lr=0.1))
    loader = DataLoader(TensorDataset(X, Y), batch_size=8)  # 3 batches
    carry = po.train(
        step, step.init(START), loader, epochs=2, callbacks=[records.append]
    )
    assert [r.epoch for r in records] == [0, 0, 0, 1, 1, 1]
    assert [r.step for r in records] == [1, 2, 3, 4, 5, 6]
    assert [r.end_of_epoch for r in records] == [False, False, True] * 2
    assert int(records[-1].carry.state.step) == 6
    assert records[-1].carry is carry
    assert float(records[-1].metrics["loss"]) < float(records[0].metrics["loss"])


def test_a_callback_stops_by_true_alone():
    calls = Counter()

    def stop(record):
        calls["stop"] += 1
        return record.step == 2

    def watch(record):
        calls["watch"] += 1
        return record.metrics["loss"]  # truthy, but no request

    step = po.make_step(square_loss, po.SGD(lr=0.1))
    carry = po.train(
        step, step.init(START), [(X, Y)], epochs=9, callbacks=[stop, watch]
    )
    assert int(carry.state.step) == 2
    assert calls == {"stop": 2, "watch": 2}


def test_training_in_two_calls_is_training_in_one():
    step = po.make_step(square_loss, po.Adam(lr=0.1))
    carry = step.init(START)
    once = po.train(step, carry, [(X, Y)], epochs=4)
    twice = po.train(
        step, po.train(step, carry, [(X, Y)], epochs=2), [(X, Y)], epochs=2
    )
    assert same(once, twice)
    assert po.train(step, carry, [(X, Y)], epochs=0) is carry


def test_a_one_shot_iterator_serves_one_epoch():
    step = po.make_step(square_loss, po.SGD(lr=0.1))
    carry = po.train(step, step.init(START), iter([(X, Y), (X, Y)]))
    assert int(carry.state.step) == 2


def test_a_carry_goes_through_a_state_dict():
    step = po.make_step(counting_loss, po.Adam(lr=0.1))
    carry = step.init(START, {"n": torch.zeros((), dtype=torch.int64)})
    half = po.train(step, carry, [(X, Y)], epochs=2)
    loaded = po.from_state_dict(po.to_state_dict(half), carry)
    assert same(step(loaded, X, Y), step(half, X, Y))


def test_the_progress_bar_shows_and_counts_everything(capsys):
    step = po.make_step(square_loss, po.SGD(lr=0.1))
    po.train(step, step.init(START), [(X, Y)], epochs=43, progress=True)
    shown = capsys.readouterr().err
    assert "43/43" in shown
    assert "loss=" in shown


class Reads:
    """A metric that counts how often it is read."""

    def __init__(self):
        self.count = 0

    def double(self):
        self.count += 1
        return torch.ones(2, dtype=torch.float64)


def test_the_progress_bar_reads_metrics_now_and_then(capsys):
    metric = Reads()
    with progress_bar(None, enabled=True, every=10) as advance:
        for _ in range(25):
            advance({"loss": metric})
    assert metric.count == 3  # at 10, 20, and the end
    with progress_bar(None, enabled=False) as advance:
        advance({"loss": metric})
    assert metric.count == 3
    assert "25" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("transform", "words"),
    [(po.SGD, "the class `SGD`"), (po.ClipByGlobalNorm(1.0), "`ClipByGlobalNorm`")],
    ids=["class", "gradients"],
)
def test_what_is_no_optimizer_makes_no_step(transform, words):
    with pytest.raises(po.PureoptError, match=f"must be an optimizer, got {words}"):
        po.make_step(square_loss, transform)


def test_what_is_no_carry_is_told():
    step = po.make_step(square_loss, po.SGD())
    for use in (lambda w: step(w, X, Y), step.params):
        with pytest.raises(po.PureoptError, match=r"be a `Carry`, got `dict`. Begin"):
            use(START)


def test_a_bare_parameter_is_told():
    step = po.make_step(square_loss, po.SGD())
    with pytest.raises(po.TreeError, match=r"got a `Parameter`\. Autograd"):
        step.init(nn.Parameter(torch.ones(2)))


def test_without_tqdm_the_error_says_what_to_install():
    code = """
import sys
sys.modules["tqdm"] = sys.modules["tqdm.auto"] = None
import torch, pureopt as po
step = po.make_step(lambda w, x: w * x, po.SGD(lr=0.1))
carry = step.init(torch.tensor(1.0))
po.train(step, carry, [(torch.tensor(1.0),)])
try:
    po.train(step, carry, [(torch.tensor(1.0),)], progress=True)
except ImportError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert done.stdout.strip() == (
        "`progress=True` needs tqdm: run `pip install 'pureopt[progress]'`."
    ), done.stderr
