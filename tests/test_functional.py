"""Modules as pure functions: the same numbers, and nothing else happens."""

from __future__ import annotations

import copy
import math
import threading

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import grad, hessian, jacfwd, jacrev, vmap
from torch.nn.utils import parametrize, prune
from torch.utils.checkpoint import checkpoint

import pureopt as po


class Tied(nn.Module):
    """An embedding whose matrix is the output layer too."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens).tanh())


class Shared(nn.Module):
    """One submodule under two names, with a buffer that moves."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.second = self.first
        self.last = nn.Linear(3, 2)

    def forward(self, x):
        return self.last(self.second(self.first(x).relu()))


class Counting(nn.Module):
    """Buffers assigned anew, written in place, shared, and absent."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3))
        self.register_buffer("mean", torch.zeros(3))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("again", self.calls)
        self.register_buffer("absent", None)
        self.register_buffer(
            "mask", torch.tensor([True, False, True]), persistent=False
        )

    def forward(self, x):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        return (x - self.mean) * self.weight * self.mask + self.again


class Answers(nn.Module):
    """Keyword arguments in, a dict out."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, x, *, scale, shift=0.0):
        y = self.linear(x)
        return {"y": y * scale + shift, "both": (y, x)}


class Symmetric(nn.Module):
    def forward(self, x):
        return x + x.mT


class Lists(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)])
        self.scales = nn.ParameterList([torch.ones(3), torch.zeros(3)])
        self.named = nn.ParameterDict({"shift": torch.ones(3)})

    def forward(self, x):
        for layer, scale in zip(self.layers, self.scales, strict=True):
            x = layer(x) * scale + self.named["shift"]
        return x


def parametrized():
    return parametrize.register_parametrization(nn.Linear(3, 3), "weight", Symmetric())


def hooked():
    module = nn.Linear(3, 3)
    module.register_forward_pre_hook(lambda module, args: (args[0] * 2,))
    module.register_forward_hook(lambda module, args, output: output + module.bias)
    return module


def x3():
    return torch.randn(6, 3)


def tokens():
    return torch.tensor([[0, 4], [2, 2]])


def image():
    return torch.randn(2, 3, 6, 6)


ZOO = {
    "linear": (lambda: nn.Linear(3, 2), x3),
    "mlp": (lambda: nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2)), x3),
    "nested": (
        lambda: nn.Sequential(nn.Sequential(nn.Linear(3, 4), nn.Sequential(nn.GELU()))),
        x3,
    ),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(True)),
        image,
    ),
    "layer norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4)), x3),
    "no bias": (lambda: nn.Linear(3, 2, bias=False), x3),
    "no parameters": (lambda: nn.Sequential(nn.ReLU(), nn.Flatten()), x3),
    "tied": (Tied, tokens),
    "shared": (Shared, x3),
    "buffers": (Counting, x3),
    "parametrized": (parametrized, x3),
    "hooked": (hooked, x3),
    "weight norm": (
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 2)),
        x3,
    ),
    "lstm": (lambda: nn.LSTM(3, 2, num_layers=2), x3),
    "lists": (Lists, x3),
    "attention": (
        lambda: nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0, batch_first=True),
        x3,
    ),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(params=ZOO)
def case(request):
    make, data = ZOO[request.param]
    return make(), data()


def tensors(module):
    return [*module.parameters(), *module.buffers()]


def leaves(tree):
    return torch.utils._pytree.tree_leaves(tree)


def assert_equal(got, want):
    for a, b in zip(leaves(got), leaves(want), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("training", [True, False])
def test_three_calls_are_the_module_bit_for_bit(case, training):
    module, x = case
    module.train(training)
    apply, params, buffers = po.functionalize(module)
    for _ in range(3):
        output, buffers = apply(params, buffers, x)
        assert_equal(output, module(x))
        assert list(buffers) == [name for name, _ in module.named_buffers()]
        assert_equal(list(buffers.values()), list(module.buffers()))


def test_nothing_is_touched(case):
    module, x = case
    before = [t.detach().clone() for t in tensors(module)]
    identities = [id(t) for t in tensors(module)]
    generator = torch.get_rng_state()
    apply, params, buffers = po.functionalize(module)
    kept = {**params, **buffers, "the input": x}
    copies = {k: t.clone() for k, t in kept.items()}
    versions = {k: t._version for k, t in kept.items()}
    _, new = apply(params, buffers, x)
    apply(params, new, x)
    assert [id(t) for t in tensors(module)] == identities
    assert_equal(tensors(module), before)
    for name, tensor in kept.items():
        assert torch.equal(tensor, copies[name])
        assert tensor._version == versions[name]
        assert name == "the input" or new.get(name) is not tensor
    assert torch.equal(torch.get_rng_state(), generator)


def test_leaves_are_detached_copies_in_the_order_of_the_parameters(case):
    module, _ = case
    _, params, buffers = po.functionalize(module)
    assert list(params) == [name for name, _ in module.named_parameters()]
    for leaf, tensor in zip([*params.values(), *buffers.values()], tensors(module),
                            strict=True):  # fmt: skip
        assert type(leaf) is torch.Tensor
        assert not leaf.requires_grad
        assert torch.equal(leaf, tensor)
        assert not leaf.numel() or leaf.data_ptr() != tensor.data_ptr()


def test_apply_reads_only_what_it_is_given(case):
    module, x = case
    other = copy.deepcopy(module)
    with torch.no_grad():
        for p in other.parameters():
            p.mul_(1.5).add_(0.25)
    apply = po.functionalize(module).apply
    _, params, buffers = po.functionalize(other)
    # Nor does it hear what becomes of the module.
    with torch.no_grad():
        for p in module.parameters():
            p.zero_()
    module.eval()
    assert_equal(apply(params, buffers, x)[0], other(x))


def loss_of(output):
    return sum(t.square().sum() for t in leaves(output) if t.is_floating_point())


def test_gradients_are_those_of_autograd(case):
    module, x = case
    apply, params, buffers = po.functionalize(module)
    if not params:
        pytest.skip("has no parameters")
    value = loss_of(apply(params, buffers, x)[0])
    grads = grad(lambda p: loss_of(apply(p, buffers, x)[0]))(params)
    want = loss_of(module(x))
    want.backward()
    assert torch.equal(value, want)
    for name, p in module.named_parameters():
        # The same kernels in the same order, but sums over the uses of a tied leaf may
        # be taken in another: a few ulps of the largest entry.
        scale = p.grad.abs().max().item()
        torch.testing.assert_close(
            grads[name], p.grad, rtol=0, atol=8 * 2.0**-23 * max(scale, 1e-30)
        )


def test_keyword_arguments_and_structured_outputs():
    module = Answers()
    apply, params, buffers = po.functionalize(module)
    x = x3()
    output, new = apply(params, buffers, x, scale=2.0, shift=torch.ones(3))
    assert_equal(output, module(x, scale=2.0, shift=torch.ones(3)))
    assert output.keys() == {"y", "both"}
    assert new == {}


def test_a_tied_gradient_is_the_sum_over_the_uses():
    module = Tied()
    apply, params, buffers = po.functionalize(module)
    assert list(params) == ["embed.weight", "head.bias"]

    def untied(embed, head):
        hidden = F.embedding(tokens(), embed).tanh()
        return F.linear(hidden, head, params["head.bias"]).square().sum()

    w = params["embed.weight"]
    want = sum(grad(untied, argnums=(0, 1))(w, w))
    got = grad(lambda p: apply(p, buffers, tokens())[0].square().sum())(params)
    # Two float32 sums in another order.
    torch.testing.assert_close(got["embed.weight"], want, rtol=1e-6, atol=1e-6)


def test_leaves_trained_in_one_mode_are_evaluated_in_the_other():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    train, params, buffers = po.functionalize(module)
    evaluate, same_params, same_buffers = po.functionalize(copy.deepcopy(module).eval())
    assert list(params) == list(same_params)
    assert list(buffers) == list(same_buffers)
    _, buffers = train(params, buffers, x3())
    output, new = evaluate(params, buffers, x3())
    assert_equal(new, buffers)
    assert (output != 0).all()


# Transforms


def mlp(width=4):
    return nn.Sequential(nn.Linear(3, width), nn.Tanh(), nn.Linear(width, 1)).double()


def test_nested_transforms_agree():
    apply, params, buffers = po.functionalize(mlp())
    x = x3().double()

    def value(w):
        return apply({**params, "2.weight": w}, buffers, x)[0].square().sum()

    w = params["2.weight"]
    for nested in (jacrev(jacfwd(value)), jacfwd(jacfwd(value)), jacrev(jacrev(value))):
        # The function is a quadratic of w: float64, a few ulps.
        torch.testing.assert_close(nested(w), hessian(value)(w), rtol=1e-13, atol=1e-13)
    hidden = torch.tanh(F.linear(x, params["0.weight"], params["0.bias"]))
    exact = (2 * hidden.mT @ hidden).reshape(1, 4, 1, 4)
    torch.testing.assert_close(hessian(value)(w), exact, rtol=1e-13, atol=1e-13)


def test_per_sample_gradients():
    apply, params, buffers = po.functionalize(mlp())
    x = x3().double()

    def loss(p, sample):
        return apply(p, buffers, sample)[0].square().sum()

    per_sample = vmap(grad(loss), (None, 0))(params, x)
    for i, sample in enumerate(x):
        for name, row in grad(loss)(params, sample).items():
            # Another kernel (batched) in float64.
            torch.testing.assert_close(per_sample[name][i], row, rtol=1e-12, atol=1e-14)


@pytest.mark.compile
@pytest.mark.parametrize("name", ["mlp", "conv", "tied", "shared", "buffers"])
def test_compiled_is_eager(name):
    make, data = ZOO[name]
    apply, params, buffers = po.functionalize(make())
    x = data()
    compiled = torch.compile(apply, fullgraph=True, backend="aot_eager")
    got, want = buffers, buffers
    for _ in range(2):
        output, got = compiled(params, got, x)
        expected, want = apply(params, want, x)
        # aot_eager runs torch's kernels, but decomposes batch norm: float32, a few ulps
        # of numbers of order one.
        torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)
        assert list(got) == list(want)
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.compile
def test_a_compiled_ensemble_gradient_with_dropout_is_eager():
    make = lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))  # noqa: E731
    apply, params, buffers = po.stack([make() for _ in range(3)])
    x = x3()

    def loss(p, b):
        output, b = apply(p, b, x)
        return output.square().sum(), b

    fn = vmap(grad(loss, has_aux=True))
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    # The masks are the same bits; the rest is float32 of order one, batch norm included.
    torch.testing.assert_close(
        compiled(params, buffers), fn(params, buffers), rtol=1e-4, atol=1e-5
    )


# Ensembles


@pytest.mark.parametrize(
    "name", ["mlp", "conv", "shared", "tied", "buffers", "layer norm"]
)
def test_a_stack_is_the_loop(name):
    make, data = ZOO[name]
    members = [make() for _ in range(3)]
    x = data()
    apply, params, buffers = po.stack(members)
    assert list(params) == [name for name, _ in members[0].named_parameters()]
    run = vmap(apply, in_dims=(0, 0, None))
    for _ in range(2):
        output, buffers = run(params, buffers, x)
        for i, member in enumerate(members):
            # Batched kernels sum in another order: float32 numbers of order one.
            torch.testing.assert_close(output[i], member(x), rtol=1e-5, atol=1e-5)
            mine = {k: b[i] for k, b in buffers.items()}
            torch.testing.assert_close(mine, dict(member.named_buffers()),
                                       rtol=1e-5, atol=1e-5)  # fmt: skip


def test_members_draw_their_own_masks():
    members = [nn.Sequential(nn.Linear(3, 50), nn.Dropout(0.5)) for _ in range(4)]
    apply, params, buffers = po.stack(members, key=po.random.key(3))
    assert torch.equal(buffers["rng"], po.random.split(po.random.key(3), 4))
    output, new = vmap(apply, in_dims=(0, 0, None))(params, buffers, x3())
    masks = output == 0
    assert all((masks[i] != masks[j]).any() for i in range(4) for j in range(i))
    for i in range(4):
        one = {k: p[i] for k, p in params.items()}
        alone, later = apply(one, {"rng": buffers["rng"][i]}, x3() * 0 + 1)
        assert torch.equal(later["rng"], new["rng"][i])
        assert torch.equal(alone == 0, masks[i])


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (
            lambda: nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(4, 1)),
            "Linear(in",
        ),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)), "at '1'"),
        (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh()), "nothing at '2'"),
        (lambda: nn.Sequential(*mlp().float(), nn.Tanh()), "at '3'"),
        (lambda: mlp().float().eval(), "in eval mode"),
        (mlp, "float64 on cpu at '0.weight'"),
    ],
    ids=["shape", "type", "missing", "unknown", "mode", "dtype"],
)
def test_members_must_be_alike(other, words):
    with pytest.raises(po.TreeError) as caught:
        po.stack([mlp().float(), mlp().float(), other()])
    assert "stack(modules[2])" in str(caught.value)
    assert words in str(caught.value)


def test_a_stack_tells_tied_members_from_untied():
    untied = Tied()
    untied.head.weight = nn.Parameter(untied.head.weight.detach().clone())
    with pytest.raises(po.TreeError, match=r"head\.weight.*tied to 'embed.weight'"):
        po.stack([Tied(), untied])
    with pytest.raises(po.PureoptError, match="at least one"):
        po.stack([])


# Dropout

DROPOUTS = {
    "Dropout": (nn.Dropout, (40, 50, 4)),
    "Dropout1d": (nn.Dropout1d, (40, 50, 4)),
    "Dropout2d": (nn.Dropout2d, (40, 50, 2, 2)),
    "Dropout3d": (nn.Dropout3d, (40, 50, 1, 2, 2)),
    "AlphaDropout": (nn.AlphaDropout, (40, 50, 4)),
    "FeatureAlphaDropout": (nn.FeatureAlphaDropout, (40, 50, 4)),
}


def dropped(output, x, p, kind):
    """Which entries of torch's own formula were dropped; checks that the rest is it."""
    if "Alpha" in kind:
        alpha = 1.6732632423543772 * 1.0507009873554805
        a = ((1 - p) * (1 + p * alpha**2)) ** -0.5
        low, kept = -a * alpha * (1 - p), a * x + a * p * alpha
    else:
        low, kept = 0.0, x / (1 - p)
    mask = (output - low).abs() < 1e-6
    # Float32 numbers of order one, a few operations.
    torch.testing.assert_close(output[~mask], kept[~mask], rtol=1e-5, atol=1e-5)
    return mask


@pytest.mark.parametrize("p", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_drops_what_torch_drops(kind, p):
    cls, shape = DROPOUTS[kind]
    x = torch.randn(shape)
    apply, params, buffers = po.functionalize(cls(p), key=po.random.key(1))
    mask = dropped(apply(params, buffers, x)[0], x, p, kind)
    # torch's own output passes the same reading, so that it is torch's distribution.
    dropped(cls(p)(x), x, p, kind)
    if kind not in {"Dropout", "AlphaDropout"}:
        flat = mask.flatten(2)
        assert torch.equal(flat, flat[..., :1].expand_as(flat))
        mask = flat[..., 0]
    n = mask.numel()
    # 4.5 standard deviations of the mean of n draws.
    assert abs(mask.double().mean() - p) < 4.5 * math.sqrt(p * (1 - p) / n)
    # Rows and columns are drawn on their own: the same bound for each, with Bonferroni's
    # 90 rows and columns at 5.5 standard deviations.
    for means, m in (
        (mask.double().mean(0), shape[0]),
        (mask.double().mean(1), shape[1]),
    ):
        assert (means - p).abs().max() < 5.5 * math.sqrt(p * (1 - p) / m)


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropout_keeps_the_mean_and_alpha_dropout_the_variance(kind):
    cls, _ = DROPOUTS[kind]
    p, n = 0.3, 200_000
    x = torch.randn(n, 1, *(1,) * (2 if "2d" in kind else 3 if "3d" in kind else 1))
    apply, params, buffers = po.functionalize(cls(p))
    y = apply(params, buffers, x)[0].double()
    variance = 1.0 if "Alpha" in kind else 1 / (1 - p)
    # 4.5 standard errors: sqrt(variance / n) for the mean, and for the variance
    # sqrt((kurtosis - 1) / n) variance, where the kurtosis is 3 / (1 - p) at most.
    assert abs(y.mean()) < 4.5 * math.sqrt(variance / n)
    spread = variance * math.sqrt((3 / (1 - p) - 1) / n)
    assert abs(y.var() - variance) < 4.5 * spread


@pytest.mark.parametrize(
    ("cls", "shape"),
    [(nn.Dropout1d, (300, 4)), (nn.Dropout3d, (300, 2, 1, 2))],
    ids=["1d", "3d"],
)
def test_channels_of_unbatched_inputs(cls, shape):
    apply, params, buffers = po.functionalize(cls(0.5))
    mask = (apply(params, buffers, torch.ones(shape))[0] == 0).flatten(1)
    assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert 0 < mask[:, 0].sum() < 300


def test_feature_dropout_needs_channels():
    apply, params, buffers = po.functionalize(nn.Dropout2d(0.5))
    with pytest.raises(po.PureoptError, match=r"one for channels.*shape \(3,\)"):
        apply(params, buffers, torch.ones(3))


@pytest.mark.parametrize("kind", DROPOUTS)
def test_dropping_everything_gives_zeros_and_nothing_needs_no_key(kind):
    cls, shape = DROPOUTS[kind]
    apply, params, buffers = po.functionalize(cls(1.0))
    x = torch.randn(shape)
    assert torch.equal(apply(params, buffers, x)[0], torch.zeros(shape))
    apply, params, buffers = po.functionalize(cls(0.0))
    assert buffers == {}
    assert torch.equal(apply(params, buffers, x)[0], x)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)
        self.other = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(x), self.drop(x), self.other(x)


def test_each_call_of_each_dropout_has_its_own_mask():
    module = Twice()
    apply, params, buffers = po.functionalize(module)
    assert list(buffers) == ["rng"]
    x = torch.ones(64)
    now, later = apply(params, buffers, x)
    masks = [*now, *apply(params, later, x)[0]]
    assert all(not torch.equal(a, b) for i, a in enumerate(masks) for b in masks[:i])
    again, same = apply(params, buffers, x)
    assert_equal(again, now)
    assert_equal(same, later)
    assert type(module.drop) is nn.Dropout
    assert not dict(module.named_buffers())


def test_a_sequence_of_calls_follows_the_key_and_leaves_the_generator():
    module = nn.Sequential(nn.Linear(3, 8), nn.Dropout(0.5, inplace=True))
    state = torch.get_rng_state()
    runs = []
    for _ in range(2):
        apply, params, buffers = po.functionalize(module, key=po.random.key(5))
        rows = []
        for _ in range(3):
            output, buffers = apply(params, buffers, torch.ones(2, 3))
            rows.append(output)
        runs.append(torch.stack(rows))
    assert torch.equal(*runs)
    assert not torch.equal(runs[0][0], runs[0][1])
    assert torch.equal(torch.get_rng_state(), state)


def test_lanes_of_keys_draw_lanes_of_masks():
    apply, params, buffers = po.functionalize(nn.Dropout(0.5))
    keys = po.random.split(buffers["rng"], 8)
    x = torch.ones(32)
    lanes, new = vmap(lambda k: apply(params, {"rng": k}, x))(keys)
    for i, key in enumerate(keys):
        row, later = apply(params, {"rng": key}, x)
        assert torch.equal(lanes[i], row)
        assert torch.equal(new["rng"][i], later["rng"])
    assert len({tuple(row.tolist()) for row in lanes}) == 8


def test_dropout_gradients_pass_where_it_kept():
    apply, params, buffers = po.functionalize(nn.Dropout(0.25))
    x = torch.full((50,), math.inf)
    x[::2] = 1.0
    output, _ = apply(params, buffers, x)
    slope = grad(lambda x: apply(params, buffers, x)[0].sum())(x)
    assert torch.equal(slope, torch.where(output == 0, 0.0, 1 / 0.75))


# What is refused


class Draws(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.draw = draw

    def forward(self, x):
        return self.draw(x * self.weight)


RANDOM_CALLS = {
    "rand": lambda x: x + torch.rand(4),
    "randn_like": lambda x: x + torch.randn_like(x),
    "randint": lambda x: x + torch.randint(3, (4,)),
    "randperm": lambda x: x[torch.randperm(4)],
    "normal": lambda x: torch.normal(x, 1.0),
    "normal_": lambda x: x + torch.empty_like(x).normal_(),
    "uniform_": lambda x: x + nn.init.uniform_(torch.empty(4)),
    "bernoulli": lambda x: torch.bernoulli(x.sigmoid()),
    "multinomial": lambda x: torch.multinomial(x.exp(), 1),
    "exponential_": lambda x: torch.distributions.Exponential(x.exp()).sample(),
    "dropout": F.dropout,
    "dropout of torch": lambda x: torch.dropout(x, 0.5, True),
    "alpha_dropout": lambda x: F.alpha_dropout(x, training=True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x[None], training=True),
    "dropout1d": lambda x: F.dropout1d(x[None]),
    "rrelu": lambda x: F.rrelu(-x, training=True),
    "gumbel_softmax": F.gumbel_softmax,
    "scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(
        *[x.reshape(1, 1, 4)] * 3, dropout_p=0.5
    ),
    "fractional_max_pool2d": lambda x: F.fractional_max_pool2d(
        x.reshape(1, 2, 2), 1, output_size=1
    ),
    "multi_head_attention_forward": lambda x: F.multi_head_attention_forward(
        *[x.reshape(1, 4)] * 3, 4, 1, torch.ones(12, 4), None, None, None, False, 0.5,
        torch.ones(4, 4), None
    ),
    "randn in svd_lowrank": lambda x: torch.svd_lowrank(x.reshape(2, 2), 1),
}  # fmt: skip


@pytest.mark.parametrize("name", RANDOM_CALLS)
def test_random_calls_in_a_forward_are_refused(name):
    module = Draws(RANDOM_CALLS[name])
    apply, params, buffers = po.functionalize(module)
    state = torch.get_rng_state()
    call = rf"a call of `{name.split()[0]}`.*pureopt.random"
    with pytest.raises(po.PureoptError, match=call):
        apply(params, buffers, torch.ones(4))
    with pytest.raises(po.PureoptError, match=call):
        grad(lambda p: apply(p, buffers, torch.ones(4))[0].sum())(params)
    assert torch.equal(torch.get_rng_state(), state)
    module(torch.ones(4))
    assert not torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    "draw",
    [
        lambda x: F.dropout(x, 0.0),
        lambda x: F.dropout(x, training=False),
        lambda x: torch.dropout(x, 0.5, train=False),
        F.alpha_dropout,
        F.rrelu,
        lambda x: F.scaled_dot_product_attention(*[x.reshape(1, 1, 4)] * 3),
    ],
    ids=["p", "training", "train", "alpha", "rrelu", "attention"],
)
def test_calls_that_draw_nothing_are_allowed(draw):
    module = Draws(draw)
    apply, params, buffers = po.functionalize(module)
    assert torch.equal(apply(params, buffers, torch.ones(4))[0], module(torch.ones(4)))


@pytest.mark.compile
@pytest.mark.parametrize("name", ["rand", "dropout"])
def test_random_calls_do_not_compile_either(name):
    apply, params, buffers = po.functionalize(Draws(RANDOM_CALLS[name]))
    compiled = torch.compile(apply, fullgraph=True, backend="eager")
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r"PureoptError|super"):
        compiled(params, buffers, torch.ones(4))


def locked():
    module = nn.Linear(2, 2)
    module.lock = threading.Lock()
    return module


def hoarding():
    module = nn.Linear(2, 2)
    module.mine = [module.weight]
    return module


def integer():
    module = nn.Linear(2, 2)
    module.codes = nn.Parameter(torch.zeros(2, dtype=torch.int8), requires_grad=False)
    return nn.Sequential(module)


def with_rng():
    module = nn.Sequential(nn.Dropout(0.5))
    module.register_buffer("rng", torch.zeros(2))
    return module


REFUSED = {
    "attention": (
        lambda: nn.TransformerEncoderLayer(4, 1),
        "at 'self_attn'. Set its `dr",
    ),
    "mha": (lambda: nn.MultiheadAttention(4, 1, 0.1), "got `MultiheadAttention`"),
    "lstm": (lambda: nn.Sequential(nn.LSTM(2, 2, 2, dropout=0.1)), "`LSTM` at '0'"),
    "rrelu": (lambda: nn.Sequential(nn.RReLU()), "LeakyReLU"),
    "pool": (lambda: nn.FractionalMaxPool2d(2, 2).eval(), "FractionalMaxPool2d"),
    "lazy": (lambda: nn.Sequential(nn.LazyLinear(2)), "a lazy one at '0.weight'"),
    "lazy buffer": (nn.LazyBatchNorm1d, "lazy"),
    "integer": (integer, "torch.int8 at '0.codes'"),
    "compiled": (lambda: torch.compile(nn.Linear(2, 2)), "Compile `apply` instead"),
    "parallel": (lambda: nn.DataParallel(nn.Linear(2, 2)), "`.module`"),
    "lock": (locked, "copyable"),
    "hoard": (hoarding, "plain attribute 'mine'"),
    "rng": (with_rng, "called 'rng'"),
    "no module": (lambda: torch.relu, "be an `nn.Module`"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pure_is_refused(name):
    make, words = REFUSED[name]
    with pytest.raises(po.PureoptError) as caught:
        po.functionalize(make())
    assert str(caught.value).startswith("`functionalize(module=...)` must ")
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["attention", "lstm", "rrelu"])
def test_fused_dropout_is_fine_in_eval_mode(name):
    module = REFUSED[name][0]().eval()
    x = torch.randn(3, 2, 4 if name == "attention" else 2)
    apply, params, buffers = po.functionalize(module)
    assert_equal(apply(params, buffers, x)[0], module(x))


def test_a_wrong_key_is_refused():
    for key in (torch.tensor(0.0), torch.zeros(2, dtype=torch.int64), 3):
        with pytest.raises(po.PureoptError, match="0-d int64"):
            po.functionalize(nn.Dropout(0.5), key=key)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda p, b: (dict(list(p.items())[1:]), b),
            "apply(params=...).*no '0.weight'",
        ),
        (lambda p, b: ({**p, "x": p["0.bias"]}, b), "an unknown 'x'"),
        (lambda p, b: (list(p.values()), b), "apply(params=...)"),
        (lambda p, b: ({**p, "0.bias": None}, b), "'0.bias'"),
        (lambda p, b: ({**p, "0.bias": torch.zeros(1)}, b), "(1,) at '0.bias'"),
        (lambda p, b: (p, {}), "apply(buffers=...).*no '1.running_mean' and 2 more"),
        (lambda p, b: (p, {**b, "rng": b["1.running_var"]}), "an unknown 'rng'"),
        (lambda p, b: (p, {**b, "1.running_var": None}), "'1.running_var'"),
    ],
    ids=["missing", "unknown", "list", "none", "shape", "empty", "rng", "no buffer"],
)
def test_wrong_trees_are_told(change, words):
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    apply, params, buffers = po.functionalize(module)
    with pytest.raises(po.TreeError) as caught:
        apply(*change(params, buffers), x3())
    for part in words.split(".*"):
        assert part in str(caught.value)


def test_a_class_is_told():
    with pytest.raises(po.PureoptError, match=r"got the class `Linear`. Pass an inst"):
        po.functionalize(nn.Linear)  # pyright: ignore[reportArgumentType]


def test_the_members_of_a_stack_may_come_from_a_generator():
    params = po.stack(nn.Linear(3, 2) for _ in range(4)).params
    assert params["weight"].shape == (4, 2, 3)


def test_a_stack_of_one_module_that_is_no_sequence_is_told():
    with pytest.raises(po.PureoptError, match=r"got `Linear`. Write `stack\(\[one"):
        po.stack(nn.Linear(3, 2))  # pyright: ignore[reportArgumentType]


def test_lanes_of_learning_rates_train_batch_norm_with_their_own_buffers():
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1)).double()
    apply, params, buffers = po.functionalize(module)
    x = x3().double()

    def loss(p, b):
        output, b = apply(p, b, x)
        return output.square().mean(), b

    def trained(lr, buffers):
        p = params
        for _ in range(3):
            slopes, buffers = grad(loss, has_aux=True)(p, buffers)
            p = {k: p[k] - lr * slopes[k] for k in p}
        return p, buffers

    lr = torch.tensor([0.01, 0.1], dtype=torch.float64)
    lanes = {k: b.expand(2, *b.shape) for k, b in buffers.items()}
    got = vmap(trained)(lr, lanes)
    for i in range(2):
        want = trained(lr[i], buffers)
        # Batched kernels in float64, numbers of order one.
        mine = tuple({k: t[i] for k, t in tree.items()} for tree in got)
        torch.testing.assert_close(mine, want, rtol=1e-10, atol=1e-12)


def test_a_stacked_tree_without_vmap_is_told():
    apply, params, buffers = po.stack([nn.Linear(3, 2), nn.Linear(3, 2)])
    with pytest.raises(po.TreeError, match=r"\(2, 2, 3\) at 'weight'"):
        apply(params, buffers, x3())


class Writes(nn.Module):
    def __init__(self, write):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("one", torch.zeros(3))
        self.register_buffer("two", self.one)
        self.register_buffer("none", None)
        self.write = write

    def forward(self, x):
        self.write(self, x)
        return x * self.weight


def grow(module, x):
    with torch.no_grad():
        module.weight.mul_(2.0)


def assign(module, x):
    module.weight = nn.Parameter(module.weight * 2)


def scale(module, x):
    x.mul_(2.0)


def fill(module, x):
    module.none = x


def untie(module, x):
    module.one = module.one + 1


def forget(module, x):
    module.two = None


@pytest.mark.parametrize(
    ("write", "words"),
    [
        (grow, "a write to 'weight'"),
        (assign, "an assignment to 'weight'"),
        (scale, "a write to its input"),
        (fill, "'none', which was `None`"),
        (untie, "'one', which is also a buffer under another name"),
        (forget, "`NoneType` in 'two'"),
    ],
)
def test_writes_that_cannot_be_returned_are_told(write, words):
    apply, params, buffers = po.functionalize(Writes(write))
    for _ in range(2):
        with pytest.raises(po.PureoptError) as caught:
            apply(params, buffers, torch.ones(3))
        assert words in str(caught.value)


# What the copy keeps, and what it does not


def test_hooks_of_others_go_on_recording():
    class Recorder:
        def __init__(self):
            self.seen = []

        def __call__(self, module, args, output):
            self.seen.append(output.detach())

        def method(self, module, args):
            self.seen.append(args[0])

    recorder = Recorder()
    module = nn.Sequential(nn.Linear(3, 2))
    module[0].register_forward_hook(recorder)
    module[0].register_forward_pre_hook(recorder.method)
    apply, params, buffers = po.functionalize(module)
    x = x3()
    output, _ = apply(params, buffers, x)
    assert_equal(recorder.seen, [x, output])


def test_hooks_that_compute_a_weight():
    module = nn.Linear(3, 2)
    prune.l1_unstructured(module, "weight", amount=2)
    apply, params, buffers = po.functionalize(module)
    assert list(params) == ["bias", "weight_orig"]
    x = x3()
    assert torch.equal(apply(params, buffers, x)[0], module(x))
    slope = grad(lambda p: apply(p, buffers, x)[0].sum())(params)["weight_orig"]
    assert int((slope == 0).sum()) == 2


def test_a_read_past_the_call_is_nan_not_stale():
    class Rerun(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(3, 1)

        def forward(self, x):
            return checkpoint(self.linear, x, use_reentrant=False)

    apply, params, buffers = po.functionalize(Rerun())
    x = x3().requires_grad_()
    for p in params.values():
        p.requires_grad_()
    apply(params, buffers, x)[0].sum().backward()
    # The checkpoint runs the layer again when the tensors of the call have gone.
    assert x.grad.isnan().all()


def test_complex_parameters():
    module = nn.Linear(3, 2, dtype=torch.complex64)
    apply, params, buffers = po.functionalize(module)
    x = x3().to(torch.complex64)
    assert torch.equal(apply(params, buffers, x)[0], module(x))


def test_devices(device):
    module = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5)).to(device)
    apply, params, buffers = po.functionalize(module, key=po.random.key(0))
    assert all(
        t.device.type == device.type for t in [*params.values(), *buffers.values()]
    )
    assert apply(params, buffers, x3().to(device))[0].device.type == device.type
    apply, params, buffers = po.functionalize(module.to("meta"))
    output, new = apply(params, buffers, x3().to("meta"))
    assert output.shape == (6, 3)
    assert new["rng"].device.type == "meta"
