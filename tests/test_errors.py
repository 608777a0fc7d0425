"""Bad input is told where it was passed, what it must be, what it was, what to do."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import pureopt as po

W = {"layer": {"weight": torch.ones(2, 2), "bias": torch.ones(2)}}
LOSS = torch.tensor(1.0)
OPTIMIZERS = {
    "SGD": po.SGD(lr=0.1),
    "Adam": po.Adam(),
    "AdamW": po.AdamW(),
    "EMA": po.EMA(po.SGD(lr=0.1)),
    "LBFGS": po.LBFGS(),
    "AdditiveChain": po.ClipByGlobalNorm(1.0) >> po.Adam(),
    "Chain": po.ClipByGlobalNorm(1.0) >> po.EMA(po.Adam()),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def told(error, call, *args, **kwargs):
    """The message, which must be of the form that all have."""
    with pytest.raises(error) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert isinstance(caught.value, po.PureoptError | ImportError)
    assert message.startswith("`")
    assert "` must " in message
    return message


@each_optimizer
def test_gradients_of_another_tree_name_the_leaf(name):
    optimizer = OPTIMIZERS[name]
    state = optimizer.init(W)
    grads = {"layer": {"weight": torch.ones(2, 2)}}
    message = told(po.TreeError, optimizer.step, W, state, grads, value=LOSS)
    assert "step(grads=...)` must have the structure of `params`" in message
    assert "got no 'layer.bias'" in message


@each_optimizer
def test_gradients_of_another_shape_name_the_leaf(name):
    optimizer = OPTIMIZERS[name]
    grads = {"layer": {"weight": torch.ones(2, 2), "bias": torch.ones(3)}}
    message = told(
        po.TreeError, optimizer.step, W, optimizer.init(W), grads, value=LOSS
    )
    assert "got (3,) at 'layer.bias', where `params` has (2,)" in message


@each_optimizer
def test_a_missing_gradient_says_what_a_frozen_leaf_needs(name):
    optimizer = OPTIMIZERS[name]
    grads = {"layer": {"weight": torch.ones(2, 2), "bias": None}}
    message = told(
        po.TreeError, optimizer.step, W, optimizer.init(W), grads, value=LOSS
    )
    assert "got `NoneType` at 'layer.bias'" in message
    assert "zero gradient" in message


@each_optimizer
@pytest.mark.parametrize(
    ("leaf", "got"),
    [
        (torch.ones(2, dtype=torch.int64), "a tensor of dtype torch.int64 at 'b'"),
        (torch.ones(2, dtype=torch.complex64), "dtype torch.complex64 at 'b'"),
        (None, "`NoneType` at 'b'"),
        (1.0, "`float` at 'b'"),
    ],
    ids=["integer", "complex", "none", "number"],
)
def test_parameters_that_cannot_be_trained_are_refused_by_init(name, leaf, got):
    tree = {"w": torch.ones(2), "b": leaf}
    message = told(po.TreeError, OPTIMIZERS[name].init, tree)
    assert "init(params=...)` must hold only floating-point tensors" in message
    assert got in message


@pytest.mark.parametrize("make", [po.SGD, po.Adam, po.AdamW])
@pytest.mark.parametrize(
    ("lr", "rule"),
    [
        (-0.1, "be finite and >= 0, got -0.1."),
        (math.nan, "be finite and >= 0, got nan."),
        (math.inf, "be finite and >= 0, got inf."),
        ("0.1", "be a number, a 0-d tensor or a schedule, got `str`."),
        (None, "be a number, a 0-d tensor or a schedule, got `NoneType`."),
        (True, "be a number, a 0-d tensor or a schedule, got `bool`."),
        (
            torch.ones(3),
            (
                "be a 0-d floating-point tensor, got shape (3,), dtype torch.float32. "
                "Sweep many values with `torch.func.vmap`."
            ),
        ),
        (
            torch.tensor(1),
            "be a 0-d floating-point tensor, got shape (), dtype torch.int64.",
        ),
    ],
    ids=str,
)
def test_learning_rates_are_checked_at_construction(make, lr, rule):
    message = told(po.HyperparameterError, make, lr=lr)
    assert message == f"`{make.__name__}(lr=...)` must {rule}"


@pytest.mark.parametrize(
    "bad",
    [-1.0, math.nan, "1", pytest.param(lambda step: step, id="schedule")],
)
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (po.SGD, "momentum"),
        (po.SGD, "dampening"),
        (po.SGD, "weight_decay"),
        (po.Adam, "eps"),
        (po.Adam, "weight_decay"),
        (po.AdamW, "eps"),
        (po.AdamW, "weight_decay"),
        (po.ClipByGlobalNorm, "max_norm"),
        (lambda decay: po.EMA(po.Adam(), decay), "decay"),
    ],
)
def test_other_hyper_parameters_are_numbers_or_tensors(make, name, bad):
    message = told(po.HyperparameterError, make, **{name: bad})
    assert f"({name}=...)` must be " in message


@pytest.mark.parametrize("make", [po.Adam, po.AdamW])
@pytest.mark.parametrize(
    ("betas", "rule"),
    [
        ((0.9, 1.0), "(betas=...)[1]` must be in [0, 1), got 1.0."),
        ((-0.1, 0.9), "(betas=...)[0]` must be in [0, 1), got -0.1."),
        ((math.nan, 0.9), "(betas=...)[0]` must be in [0, 1), got nan."),
        (0.9, "(betas=...)` must be a pair, got 0.9."),
        ((0.9,), "(betas=...)` must be a pair, got (0.9,)."),
    ],
    ids=str,
)
def test_betas_are_checked_at_construction(make, betas, rule):
    assert told(po.HyperparameterError, make, betas=betas).endswith(rule)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "dampening": 0.1}], ids=["plain", "dampened"]
)
def test_nesterov_needs_momentum_without_dampening(options):
    message = told(po.HyperparameterError, po.SGD, nesterov=True, **options)
    assert "must have momentum > 0 and dampening 0" in message
    assert message.endswith("Write `SGD(lr, momentum=0.9, nesterov=True)`.")


def test_a_schedule_returns_a_tensor():
    sgd = po.SGD(lr=lambda step: 0.1)
    message = told(po.PureoptError, sgd.step, W, sgd.init(W), W)
    rule = "`schedule(step)` must return a 0-d floating-point tensor, got `float`."
    assert message.startswith(rule)


def test_gradients_alone_are_no_step():
    clip = po.ClipByGlobalNorm(1.0)
    for emitting in (clip, clip >> clip):
        message = told(po.CompositionError, emitting.step, W, emitting.init(W), W)
        assert "step(...)` must end in an optimizer" in message
        assert ">> SGD(lr)`" in message


def test_two_optimizers_do_not_compose():
    message = told(po.CompositionError, lambda: po.SGD(lr=0.1) >> po.Adam())
    assert message.startswith("`SGD(...) >> Adam(...)` must have only transforms that ")
    assert "Keep one optimizer" in message


def test_an_optimizer_left_of_clipping_is_told_to_swap():
    message = told(
        po.CompositionError, lambda: po.SGD(lr=0.1) >> po.ClipByGlobalNorm(1.0)
    )
    assert message.endswith("Write `ClipByGlobalNorm(...) >> SGD(...)`.")


@pytest.mark.parametrize("right", [po.LBFGS(), po.EMA(po.LBFGS())], ids=["it", "ema"])
@pytest.mark.parametrize("left", [po.ClipByGlobalNorm(1.0), po.SGD(lr=0.1)])
def test_nothing_stands_left_of_what_searches(left, right):
    message = told(po.CompositionError, lambda: left >> right)
    assert f"must leave nothing left of {type(right).__name__}" in message


def test_what_is_no_transform_does_not_compose():
    message = told(po.CompositionError, lambda: po.ClipByGlobalNorm(1.0) >> 3)
    assert message == "`a >> b` must compose transforms, got `int`."
    assert "got none" in told(po.CompositionError, po.chain)


def test_an_average_needs_an_optimizer():
    message = told(po.CompositionError, po.EMA, po.ClipByGlobalNorm(1.0))
    assert message.endswith("Write `EMA(ClipByGlobalNorm(...) >> SGD(lr))`.")
    assert "got `int`" in told(po.CompositionError, po.EMA, 3)


def test_a_searching_transform_asks_for_the_value():
    for optimizer in (po.LBFGS(), po.EMA(po.LBFGS())):
        message = told(po.TreeError, optimizer.step, W, optimizer.init(W), W)
        assert "LBFGS.step(value=...)" in message


def batch_loss(w, x):
    return (w * x).square().mean()


@pytest.mark.parametrize(
    ("loss_fn", "got"),
    [
        (lambda w, x: w * x, "a tensor of shape (2,) and dtype torch.float32"),
        (lambda w, x: 1.0, "`float`"),
        (
            lambda w, x: (w * x).sum().long(),
            "a tensor of shape () and dtype torch.int64",
        ),
    ],
    ids=["vector", "number", "integer"],
)
def test_a_loss_is_a_0d_tensor(loss_fn, got):
    step = po.make_step(loss_fn, po.SGD(lr=0.1))
    message = told(po.PureoptError, step, step.init(torch.ones(2)), torch.ones(2))
    assert message == (
        f"`make_step(loss_fn=...)` must return a 0-d floating loss, got {got}. "
        "Reduce it, for example with `.mean()`."
    )


@pytest.mark.parametrize(
    ("loss_fn", "got"),
    [
        (lambda w, b, x: batch_loss(w, x), "got a tensor of shape ()"),
        (lambda w, b, x: (batch_loss(w, x), b), "got (a tensor of shape ()"),
        (
            lambda w, b, x: (batch_loss(w, x), po.Aux()),
            "structure of `buffers`, got no 'n'",
        ),
    ],
    ids=["no aux", "bare buffers", "forgotten buffers"],
)
def test_a_loss_with_buffers_returns_them_in_an_aux(loss_fn, got):
    step = po.make_step(loss_fn, po.SGD(lr=0.1))
    carry = step.init(torch.ones(2), {"n": torch.zeros(2)})
    assert got in told(po.PureoptError, step, carry, torch.ones(2))


@pytest.mark.parametrize(
    ("metrics", "got"),
    [({"n": 3}, "got `int` at 'n'."), ({"loss": LOSS}, "at 'loss'.")],
    ids=["number", "name"],
)
def test_metrics_are_tensors_under_names_of_their_own(metrics, got):
    step = po.make_step(
        lambda w, x: (batch_loss(w, x), po.Aux(metrics=metrics)), po.SGD(lr=0.1)
    )
    message = told(po.TreeError, step, step.init(torch.ones(2)), torch.ones(2))
    assert (
        "Aux(metrics=...)` must hold tensors, under other names than 'loss'" in message
    )
    assert message.endswith(got)


def test_parameters_of_a_module_are_told_to_be_detached():
    step = po.make_step(batch_loss, po.SGD(lr=0.1))
    message = told(po.TreeError, step.init, {"w": nn.Parameter(torch.ones(2))})
    assert "got a `Parameter` at 'w'" in message
    assert "functionalize(module)" in message


def test_static_data_needs_a_space():
    step = po.make_step(batch_loss, po.SGD(lr=0.1))
    message = told(po.PureoptError, step.init, torch.ones(2), static={})
    assert "space=space" in message


def test_make_step_takes_a_transform():
    message = told(po.PureoptError, po.make_step, batch_loss, torch.optim.SGD)
    assert "be an optimizer, got the class `SGD`. Pass for example `AdamW" in message


def test_make_step_takes_a_space():
    spec = {"w": po.constraints.Orthogonal()}
    message = told(po.PureoptError, po.make_step, batch_loss, po.Adam(), space=spec)
    assert "be a `Space`, got `dict`. Make one" in message
    assert "`pureopt.constrain(params, spec)`" in message


@pytest.mark.parametrize(
    "of", [lambda m: m, nn.Module.parameters], ids=["it", "leaves"]
)
def test_a_module_in_place_of_its_parameters_is_shown_the_way(of):
    positive = po.constraints.Positive()
    message = told(po.TreeError, po.constrain, of(nn.Linear(2, 2)), positive)
    assert (
        "Take the params of a module from `pureopt.functionalize(module)`." in message
    )
    assert "functionalize" not in told(po.TreeError, po.constrain, 1.0, positive)


STEP = po.make_step(batch_loss, po.SGD(lr=0.1))
CARRY = STEP.init(torch.ones(2))
BATCH = (torch.ones(2),)


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        (iter([BATCH]), {"epochs": 2}, "be re-iterable when `epochs` > 1"),
        ((b for b in [BATCH]), {"epochs": 2}, "got a one-shot `generator`."),
        ([], {}, "yield at least one batch, got none."),
        ([torch.ones(2)], {}, "got `Tensor`. A single argument is a tuple too"),
        ([{"x": torch.ones(2)}], {}, "got `dict`. A single argument is a tuple too"),
        ([BATCH], {"epochs": -1}, "must be an integer >= 0, got -1."),
        ([BATCH], {"epochs": 1.0}, "must be an integer >= 0, got 1.0."),
    ],
    ids=["iterator", "generator", "empty", "tensor", "dict", "negative", "float"],
)
def test_train_refuses_what_it_cannot_go_through(batches, options, message):
    assert message in told(po.PureoptError, po.train, STEP, CARRY, batches, **options)


@pytest.mark.parametrize(
    "make",
    [
        po.Adam,
        po.AdamW,
        lambda: po.SGD(0.1, momentum=0.9),
        lambda: po.EMA(po.SGD(0.1)),
        po.LBFGS,
    ],
    ids=["adam", "adamw", "sgd", "ema", "lbfgs"],
)
def test_a_state_of_other_parameters_is_refused(make):
    """Moments of another shape would broadcast in silence."""
    optimizer, params = make(), torch.ones(3)
    state = optimizer.init(torch.ones(1))
    with pytest.raises(po.TreeError, match=r"step\(state=...\).*\(1,\).*\(3,\)"):
        optimizer.step(params, state, params, value=torch.ones(()))
    with pytest.raises(po.TreeError, match="that `init` returns, got `list`"):
        optimizer.step(params, [], params, value=torch.ones(()))


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64, torch.bool])
@pytest.mark.parametrize("make", [po.SGD, po.LBFGS], ids=["sgd", "lbfgs"])
def test_gradients_are_floating(make, dtype):
    optimizer, params = make(), {"w": torch.ones(2)}
    grads = {"w": torch.ones(2, dtype=dtype)}
    with pytest.raises(po.TreeError, match=f"got a tensor of dtype {dtype} at 'w'"):
        optimizer.step(params, optimizer.init(params), grads, value=torch.ones(()))


@pytest.mark.parametrize("bad", [torch.ones(3), torch.tensor(1)], ids=["1d", "int"])
def test_a_schedule_returns_a_floating_number(bad):
    sgd, w = po.SGD(lr=lambda _: bad), torch.ones(3)
    with pytest.raises(po.PureoptError, match="0-d floating-point tensor, got shape"):
        sgd.step(w, sgd.init(w), w)


def test_a_class_is_told_from_an_instance():
    with pytest.raises(po.CompositionError, match="got the class `SGD`"):
        po.ClipByGlobalNorm(1.0) >> po.SGD


@pytest.mark.parametrize("bad", [None, 1.0, po.SGD()], ids=["none", "float", "sgd"])
def test_a_state_dict_holds_tensors(bad):
    with pytest.raises(po.TreeError, match=r"only tensors, got .* at 'a'"):
        po.to_state_dict({"a": bad})
