"""Per-sample quantities against ``vmap(grad)``, architecture by architecture."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.func import grad, hessian, jvp, vmap
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils._python_dispatch import TorchDispatchMode

import pureopt as po
from pureopt._tree import tree_leaves, tree_map, tree_paths
from pureopt.derivatives._per_sample import _sums
from pureopt.derivatives._per_sample._record import discover
from tests.derivatives.row import randn

D = po.derivatives
# Sums of a few thousand products of numbers of order one, in two orders: 1e4 roundings
# of float64 at the very worst.
RTOL = 1e-10
B = 5


class Case:
    """A loss of one sample, parameters, a batch, and the leaves without a rule."""

    def __init__(self, loss, params, *batch, opaque=()):
        self.loss, self.params, self.batch = loss, params, batch
        self.opaque = set(opaque)


def ints(high, *shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(high, shape, generator=generator)


def of_module(module, x, target, *, opaque=(), inside=False):
    """The squared error of a module; ``inside`` gives it samples as batches of one."""
    torch.nn.Module.double(module)
    for i, p in enumerate(module.parameters()):
        p.data = 0.5 * randn(*p.shape, seed=100 + i)
    apply, params, buffers = po.functionalize(module)

    def loss(params, x, target):
        y = apply(params, buffers, x[None] if inside else x)[0]
        y = y[0] if inside else y
        if target.is_floating_point():
            return (y - target).square().sum()
        return F.cross_entropy(y, target)

    return Case(loss, params, x, target, opaque=opaque)


def mlp():
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False))
    return of_module(net, randn(B, 4), randn(B, 3))


def cnn():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.GroupNorm(3, 6),
        nn.SiLU(),
        nn.Conv2d(6, 6, (3, 2), padding="same", dilation=2),
        nn.BatchNorm2d(6),
        nn.Flatten(),
        nn.Linear(96, 2),
    )
    return of_module(net.eval(), randn(B, 4, 8, 8), randn(B, 2), inside=True)


def unbatched_convolutions():
    net = nn.Sequential(
        nn.Conv1d(3, 4, 3, padding="valid"),
        nn.LayerNorm([4, 6]),
        nn.Tanh(),
        nn.RMSNorm(6),
        nn.Conv1d(4, 2, 2, padding=1, stride=2),
    )
    return of_module(net, randn(B, 3, 8), randn(B, 2, 4))


def volumes():
    net = nn.Sequential(nn.Conv3d(2, 3, 2), nn.Tanh(), nn.ConvTranspose3d(3, 1, 2))
    return of_module(net, randn(B, 2, 3, 4, 3), randn(B, 1, 3, 4, 3))


def transposed_convolutions():
    net = nn.Sequential(
        nn.ConvTranspose2d(
            4, 6, 3, stride=2, padding=1, output_padding=1, groups=2, dilation=2
        ),
        nn.Tanh(),
        nn.ConvTranspose2d(6, 2, 2, stride=3, output_padding=2),
    )
    return of_module(net, randn(B, 4, 5, 4), randn(B, 2, 37, 31))


def grouped_convolutions():
    net = nn.Sequential(
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Tanh(),
        nn.Conv2d(6, 4, (3, 2), padding="same", dilation=2),
    )
    x, y = randn(B, 3, 4, 8, 9), randn(B, 3, 4, 4, 5, seed=1)
    return of_module(net, x, y)


def encoder(*, train):
    net = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
    return of_module(
        net.train(train), randn(B, 3, 8), randn(B, 3, 8, seed=1), inside=True
    )


class Attention(nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True, **kwargs)

    def forward(self, x):
        key = x.flip(-2)[..., : self.attention.kdim] * 2
        mask = torch.ones(3, 3, dtype=torch.bool).triu(1)
        out, weights = self.attention(x, key, x + 1, attn_mask=mask)
        return out + weights.std()


def attention(**kwargs):
    return of_module(
        Attention(**kwargs), randn(B, 3, 8), randn(B, 3, 8, seed=1), inside=True
    )


class AttentionWithBiasKV(nn.MultiheadAttention):
    def __init__(self):
        super().__init__(8, 2, batch_first=True, add_bias_kv=True)

    def forward(self, x):
        return super().forward(x, x, x, need_weights=False)[0]


def attention_with_bias_kv():
    x, y = randn(B, 3, 8), randn(B, 3, 8, seed=1)
    return of_module(AttentionWithBiasKV(), x, y, opaque=["bias_k", "bias_v"])


def attention_with_padding():
    """A mask of its own for each sample."""
    module = nn.MultiheadAttention(8, 2, batch_first=True).double()
    apply, params, buffers = po.functionalize(module)

    def loss(params, x, padding):
        x = x[None]
        y = apply(params, buffers, x, x, x, key_padding_mask=padding[None])[0][0]
        return y.sin().sum()

    padding = torch.arange(4) > torch.arange(B)[:, None]
    return Case(loss, params, randn(B, 4, 8), padding)


class Language(nn.Module):
    """A table that is the output map too, and a padding word."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6, padding_idx=2)
        self.middle = nn.Linear(6, 6)
        self.out = nn.Linear(6, 11, bias=False)
        self.out.weight = self.table.weight

    def forward(self, x):
        return self.out(self.middle(self.table(x)).tanh())


def tied_embedding():
    return of_module(Language(), ints(11, B, 7), ints(11, B, 7, seed=1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(5, 3)
        self.position = nn.Parameter(torch.zeros(7, 3))

    def forward(self, x):
        return (self.table(x) + self.position).sin().sum(-2)


def words():
    # Five words in seven places: some come twice.
    return of_module(Words(), ints(5, B, 7), randn(B, 3))


def tied_autoencoder(*positions):
    params = {
        "w": randn(4, 6),
        "b": randn(4, seed=1),
        "c": randn(6, seed=2),
        "s": randn(seed=3),
        "unused": randn(2, 2),
    }

    def loss(p, x):
        h = torch.tanh(x @ p["w"].T + p["b"])
        y = F.linear(h, p["w"].t(), p["c"])
        return (y * p["s"] - x - p["s"]).square().sum()

    return Case(loss, params, randn(B, *positions, 6, seed=4))


def products():
    params = {
        "w": randn(7, 5),
        "v": randn(7, seed=1),
        "u": randn(3, 5, seed=2),
        "q": randn(2, 5, seed=3),
        "d": randn(5, seed=4),
    }

    def loss(p, x):
        hidden = p["w"] @ x[0] - x.sum()
        both = (p["q"] @ x.mT).sin().sum() + torch.mm(x, p["u"].mT).cos().sum()
        return p["v"] @ hidden.tanh() + both + torch.mv(x, p["d"]).tanh().sum()

    return Case(loss, params, randn(B, 4, 5, seed=5))


def unrolled(cell):
    module = cell(3, 4).double()

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.cell = module

        def forward(self, x):
            h = x.new_zeros(4)
            pair = cell is nn.LSTMCell
            state = (h, h) if pair else h
            for step in x:
                state = self.cell(step, state)
            return state[0] if pair else state

    return of_module(Net(), randn(B, 5, 3), randn(B, 4))


def rows_of_one_weight():
    params = {"w": randn(6, 3), "b": randn(6, seed=1), "v": randn(4, seed=2)}

    def loss(p, x):
        first, second = p["w"].chunk(2)
        bias = p["b"].split([2, 4])
        left, right = p["v"].chunk(2)
        y = F.linear(x, first).tanh() + x @ second.t()
        return (y[:2] + bias[0]).sin() @ left + y[:2] @ right + (y[:1] * bias[1]).sum()

    return Case(loss, params, randn(B, 3, seed=3))


def shared_bias():
    def loss(p, x):
        y = F.linear(x, p["w"], p["b"])
        return ((y * p["b"]).tanh() - p["b"]).square().sum()

    return Case(loss, {"w": randn(3, 4), "b": randn(3, seed=1)}, randn(B, 2, 4))


def bias_of_one():
    """One number for all outputs."""

    def loss(p, x):
        return F.linear(x, p["w"], p["b"]).tanh().sum()

    return Case(loss, {"w": randn(3, 4), "b": randn(1, seed=1)}, randn(B, 2, 4))


def transposed_bias():
    """The positions have biases of their own, in another order than in memory."""

    def loss(p, x):
        return F.linear(x, p["w"], p["c"].T).sin().sum()

    params = {"w": randn(4, 3), "c": randn(4, 2, seed=1)}
    return Case(loss, params, randn(B, 2, 3), opaque=["c", "w"])


def weight_norm():
    net = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 3)), nn.Linear(3, 2))
    names = [f"0.parametrizations.weight.original{i}" for i in range(2)]
    return of_module(net, randn(B, 4), randn(B, 2), opaque=names)


def constrained():
    start = {"w": torch.linalg.qr(randn(5, 3)).Q, "b": randn(3)}
    space = po.constrain(start, {"w": po.constraints.Orthogonal()})

    def loss(free, x):
        p = space.forward(free)
        return (x @ p["w"] + p["b"]).tanh().sum()

    return Case(loss, space.free, randn(B, 5), opaque=["w"])


def weight_decay():
    def loss(p, x):
        return F.linear(x, p["w"], p["b"]).sin().sum() + 0.1 * p["w"].pow(2).sum()

    params = {"w": randn(3, 4), "b": randn(3, seed=1)}
    return Case(loss, params, randn(B, 4), opaque=["w"])


def physics():
    """A Laplacian inside: the parameters enter the inner derivative too."""

    def loss(p, x):
        def u(x):
            return (F.linear(x, p["w"]).tanh() @ p["v"]).sum()

        return hessian(u)(x).diagonal().sum() ** 2 + (u(x) - p["offset"]).square()

    params = {"w": randn(4, 2), "v": randn(4, seed=1), "offset": randn()}
    return Case(loss, params, randn(B, 2), opaque=params)


def inner_argument():
    """The parameter is the argument of an inner transform."""

    def loss(p, x):
        return grad(lambda w: (x @ w).square())(p["w"]).sin().sum() + x @ p["v"]

    params = {"w": randn(3), "v": randn(3, seed=1)}
    return Case(loss, params, randn(B, 3), opaque=params)


def norms_inside():
    """A recording inside of a recording."""

    def inner(p, x):
        return F.linear(x, p["w"]).tanh().sum()

    def loss(p, x):
        return D.per_sample_grad_norms(inner)(p, x).sum() + F.linear(x, p["w"]).sum()

    return Case(loss, {"w": randn(2, 3)}, randn(B, 4, 3, seed=1), opaque=["w"])


class Scale(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x, w):
        return x * w

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx, g):
        x, w = ctx.saved_tensors
        return g * w, g * x


def own_function():
    def loss(p, x):
        return Scale.apply(x, p["w"]).sin().sum() + x @ p["w"]

    return Case(loss, {"w": randn(3)}, randn(B, 3), opaque=["w"])


def other_uses():
    def loss(p, x):
        sliced = (p["slice"][:2] @ x).tanh().sum()
        summed = torch.einsum("ij,j->i", p["einsum"], x).tanh().sum()
        written = x.clone()
        written += p["written"]
        rows = x.new_zeros(2, 4)
        rows[1] = p["row"]
        named = torch.mv(p["named"], vec=x).sin().sum()
        return sliced + summed + named + written.sin().sum() + (rows * x).sin().sum()

    params = {
        "slice": randn(3, 4),
        "einsum": randn(3, 4, seed=1),
        "written": randn(4, seed=2),
        "row": randn(4, seed=3),
        "named": randn(3, 4, seed=4),
    }
    return Case(loss, params, randn(B, 4), opaque=params)


def nothing_inside():
    """Samples without positions."""

    def loss(p, one, x, ids, image):
        y = F.linear(x, p["w"]).sum() + F.linear(one, p["w"]).sin().sum()
        z = F.embedding(ids, p["w"]).sum() + F.conv1d(image, p["k"], p["b"]).sum()
        return y + z

    params = {"w": randn(2, 3), "b": randn(2, seed=1), "k": randn(2, 1, 2, seed=2)}
    batch = randn(B, 3), randn(B, 0, 3), ints(2, B, 0), randn(B, 0, 1, 4)
    return Case(loss, params, *batch)


def scalars_and_one_tensor():
    return Case(lambda w, x: (w * x).exp(), randn(), randn(B))


def one_object_twice():
    w = randn(3)
    return Case(
        lambda p, x: x @ p["a"] + (x * p["b"]).sin().sum() + x @ w,
        {"a": w, "b": w},
        randn(B, 3, seed=1),
    )


CASES = {
    "mlp": mlp,
    "cnn": cnn,
    "unbatched-convolutions": unbatched_convolutions,
    "volumes": volumes,
    "transposed-convolutions": transposed_convolutions,
    "grouped-convolutions": grouped_convolutions,
    "encoder-train": lambda: encoder(train=True),
    "encoder-eval": lambda: encoder(train=False),
    "attention": attention,
    "attention-without-bias": lambda: attention(bias=False),
    "attention-other-keys": lambda: attention(kdim=4),
    "attention-bias-kv": attention_with_bias_kv,
    "attention-padding": attention_with_padding,
    "tied-embedding": tied_embedding,
    "words": words,
    "tied-autoencoder": tied_autoencoder,
    "tied-autoencoder-positions": lambda: tied_autoencoder(3),
    "products": products,
    "rnn-cell": lambda: unrolled(nn.RNNCell),
    "gru-cell": lambda: unrolled(nn.GRUCell),
    "lstm-cell": lambda: unrolled(nn.LSTMCell),
    "rows-of-one-weight": rows_of_one_weight,
    "shared-bias": shared_bias,
    "bias-of-one": bias_of_one,
    "transposed-bias": transposed_bias,
    "weight-norm": weight_norm,
    "constrained": constrained,
    "weight-decay": weight_decay,
    "physics": physics,
    "inner-argument": inner_argument,
    "norms-inside": norms_inside,
    "own-function": own_function,
    "other-uses": other_uses,
    "nothing-inside": nothing_inside,
    "scalars": scalars_and_one_tensor,
    "one-object-twice": one_object_twice,
}
cases = pytest.mark.parametrize("make", CASES.values(), ids=CASES)


@pytest.fixture(autouse=True)
def attention_that_vmap_knows():
    # torch's fused attention on the CPU warns that it is slow under vmap.
    with sdpa_kernel(SDPBackend.MATH):
        yield


def reference(case):
    """The gradients per sample, leaf by leaf, as rows."""
    in_dims = (None, *[0] * len(case.batch))
    grads = vmap(grad(case.loss), in_dims)(case.params, *case.batch)
    return [g.reshape(g.shape[0], -1) for g in tree_leaves(grads)]


def close(got, want, scale=None):
    """Relative to the largest entry: sums may cancel in an entry."""
    scale = want.abs().max() if scale is None else scale
    torch.testing.assert_close(got, want, rtol=0, atol=float(RTOL * scale) + 1e-300)


def noise(g):
    """The closed forms: trace of the covariance and squared norm of the mean."""
    trace = g.var(0).sum()
    return trace, g.mean(0).square().sum() - trace / len(g)


def check(case):
    leaves = reference(case)
    g = torch.cat(leaves, 1)
    args = case.params, *case.batch
    close(D.per_sample_grad_norms(case.loss)(*args), g.norm(dim=1))
    squares = tree_leaves(D.per_sample_squared_norms(case.loss)(*args))
    for got, leaf in zip(squares, leaves, strict=True):
        close(got, leaf.square().sum(1))
    close(D.grad_gram(case.loss)(*args), g @ g.mT)
    variances = tree_leaves(D.grad_variance(case.loss)(*args))
    for got, leaf in zip(variances, leaves, strict=True):
        # Its rounding error is relative to the mean square.
        close(got.reshape(-1), leaf.var(0), leaf.square().mean(0).max())
    ratio, trace, signal = D.noise_scale(case.loss)(*args)
    close(trace, noise(g)[0])
    close(signal, noise(g)[1], g.square().sum())
    assert ratio == trace / signal
    diversity = D.gradient_diversity(case.loss)(*args)
    close(diversity, g.square().sum() / g.sum(0).square().sum())


@cases
def test_every_quantity_is_that_of_vmap_of_grad(make):
    check(make())


@cases
def test_only_the_leaves_with_other_uses_have_no_rule(make):
    case = make()
    plan = discover("test", case.loss, case.params, case.batch)
    paths = tree_paths(case.params)
    got = {path for path, hidden in zip(paths, plan.opaque, strict=True) if hidden}
    assert got == case.opaque


@pytest.mark.parametrize("name", ["cnn", "tied-embedding", "words", "rnn-cell",
                                  "weight-decay", "shared-bias"])  # fmt: skip
def test_portions_that_hold_little_change_nothing(name, monkeypatch):
    # One sample and one row at a time.
    monkeypatch.setattr(_sums, "BUDGET", 1)
    check(CASES[name]())


@pytest.mark.parametrize("name", ["cnn", "tied-embedding", "lstm-cell", "weight-decay"])
def test_the_signal_to_noise_ratio_is_that_of_vmap_of_grad(name):
    case = CASES[name]()
    ratios = tree_leaves(D.gsnr(case.loss)(case.params, *case.batch))
    for got, leaf in zip(ratios, reference(case), strict=True):
        signal, variance = leaf.mean(0).square(), leaf.var(0)
        zero = (signal == 0) & (variance == 0)
        assert (got.reshape(-1)[zero] == 0).all()
        # The variance's error is relative to the mean square: compare what is divided.
        close(
            got.reshape(-1)[~zero] * variance[~zero],
            signal[~zero],
            leaf.square().mean(0).max() * (1 + got.max()),
        )


@pytest.mark.parametrize("chunk_size", [1, 2, 7, None])
def test_the_gradients_do_not_depend_on_the_chunk(chunk_size):
    case = mlp()
    grads = D.per_sample_grads(case.loss, chunk_size=chunk_size)
    for got, want in zip(
        tree_leaves(grads(case.params, *case.batch)), reference(case), strict=True
    ):
        close(got.reshape(B, -1), want)


@pytest.mark.parametrize("name", ["mlp", "tied-embedding", "weight-decay", "physics"])
def test_one_sample_has_a_norm_and_a_gram_matrix(name):
    case = CASES[name]()
    case.batch = tree_map(lambda leaf: leaf[:1], case.batch)
    g = torch.cat(reference(case), 1)
    args = case.params, *case.batch
    close(D.per_sample_grad_norms(case.loss)(*args), g.norm(dim=1))
    close(D.grad_gram(case.loss)(*args), g @ g.mT)
    close(D.gradient_diversity(case.loss)(*args), torch.tensor(1.0).double())


@pytest.mark.parametrize("name", ["mlp", "cnn", "tied-embedding", "weight-decay"])
def test_a_penalty_on_the_norms_has_the_gradient_that_vmap_of_grad_gives(name):
    case = CASES[name]()

    def penalty(p):
        return D.per_sample_grad_norms(case.loss)(p, *case.batch).sum()

    def want(p):
        rows = reference(Case(case.loss, p, *case.batch))
        return torch.cat(rows, 1).square().sum(1).sqrt().sum()

    direction = tree_map(torch.cos, case.params)
    leaves = zip(
        tree_leaves(grad(penalty)(case.params)),
        tree_leaves(grad(want)(case.params)),
        strict=True,
    )
    for got, expected in leaves:
        close(got, expected, max(expected.abs().max(), torch.tensor(1.0)))
    forward = jvp(penalty, (case.params,), (direction,))[1]
    close(forward, jvp(want, (case.params,), (direction,))[1])


def test_a_gradient_that_is_zero_has_norm_zero_with_derivative_zero():
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    norms = D.per_sample_grad_norms(lambda w, x: (x @ w).square())
    w = torch.ones(2)
    assert norms(w, x)[0] == 0
    # |g| = 2 (x.w) |x|, whose gradient is 2 |x| x.
    torch.testing.assert_close(grad(lambda w: norms(w, x).sum())(w), 2 * 5**0.5 * x[1])


def test_half_precision_is_summed_in_single():
    # 300 squared does not fit into half precision, the norm does.
    w = {"w": torch.zeros(2, dtype=torch.half), "b": torch.zeros((), dtype=torch.half)}
    x = torch.tensor([[300.0, 400.0]] * 2, dtype=torch.half)
    norms = D.per_sample_grad_norms(lambda p, x: x @ p["w"] + 0.0 * x[0] * p["b"])
    got = norms(w, x)
    assert got.dtype == torch.half
    assert torch.equal(got, torch.full_like(got, 500.0))


def test_a_bias_in_half_precision_is_that_of_vmap_of_grad():
    module = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 2))
    case = of_module(module, randn(B, 4), randn(B, 2))
    args = tree_map(lambda t: t.bfloat16(), (case.params, *case.batch))
    got = D.per_sample_grad_norms(case.loss)(*args)
    want = torch.cat(reference(Case(case.loss, *args)), 1).float().norm(dim=1)
    # A dozen roundings to 8 bits on the way, some of them of what is normalized: 0.05.
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0)


def test_sums_over_a_batch_in_half_precision_do_not_overflow():
    half = torch.half
    params = {"w": torch.zeros(1, 1), "b": torch.zeros(1), "e": torch.zeros(1, 1)}
    params = tree_map(lambda p: p.to(half), params)
    x, ids = torch.ones(2000, 1, dtype=half), torch.zeros(2000, dtype=torch.long)

    def loss(p, x, i):
        return 64 * (F.linear(x, p["w"], p["b"]) + F.embedding(i, p["e"])).sum()

    # Each gradient is (64, 64, 64), and 2000 * 64 is larger than any half.
    _, trace, signal = D.noise_scale(loss)(params, x, ids)
    assert (trace, signal) == (0, 3 * 64**2)


def cast_inside():
    """What is saved and its delta have two dtypes."""

    def loss(p, x):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            h = F.linear(x, p["w"], p["b"]).tanh()
            return F.linear(h, p["v"]).float().sin().sum()

    params = {"w": randn(6, 3), "b": randn(6, seed=1), "v": randn(2, 6, seed=2)}
    args = tree_map(lambda t: t.float(), (params, randn(B, 20, 3, seed=3)))
    return Case(loss, *args)


def norm_in_single():
    """Its output is in the dtype of its input."""

    def loss(p, x):
        return F.linear(F.layer_norm(x, (4,), p["s"], p["b"]), p["w"]).sin().sum()

    params = {"s": randn(4).float(), "b": randn(4).float(), "w": randn(2, 4).bfloat16()}
    return Case(loss, params, randn(B, 4, 4).bfloat16())


@pytest.mark.parametrize("make", [cast_inside, norm_in_single])
def test_mixed_precision_has_the_norms_of_vmap_of_grad(make):
    case = make()
    want = torch.cat([leaf.float() for leaf in reference(case)], 1).norm(dim=1)
    got = D.per_sample_grad_norms(case.loss)(case.params, *case.batch)
    # A dozen roundings to 8 bits on the way, as above.
    torch.testing.assert_close(got.float(), want, rtol=0.05, atol=0)


def test_dimensions_that_a_weight_has_not_are_refused_by_torch():
    norms = D.per_sample_grad_norms(lambda w, x: (x @ w.transpose(2, 1)).sum())
    with pytest.raises(IndexError):
        norms(randn(2, 3), randn(B, 3))


BAGS = {
    "mean": {},
    "sum": {"mode": "sum"},
    "sparse": {"sparse": True},
    "padded": {"padding_idx": 2},
    "padded-sum": {"mode": "sum", "padding_idx": -4},
    "weighted": {"mode": "sum", "per_sample_weights": randn(3, 4), "padding_idx": 0},
}


@pytest.mark.parametrize("options", BAGS.values(), ids=BAGS)
def test_bags_of_embeddings_have_a_rule(options):
    table, ids = randn(6, 3), ints(6, B, 3, 4)

    def loss(w, i, sparse):
        named = options | {"sparse": sparse}
        return F.embedding_bag(i, w, **named).sin().sum()

    def ours(w, i):
        return loss(w, i, options.get("sparse", False))

    # Torch's own kernel, one by one: under `vmap` it warns that it is slow.
    want = torch.stack([grad(loss)(table, i, False) for i in ids])
    assert discover("test", ours, table, (ids,)).opaque == [False]
    close(D.per_sample_grads(ours)(table, ids), want)
    close(D.per_sample_grad_norms(ours)(table, ids), want.flatten(1).norm(dim=1))
    close(D.grad_variance(ours)(table, ids), want.var(0))


def test_an_empty_bag_has_the_gradient_zero():
    def loss(w, i):
        return F.embedding_bag(i, w).cos().sum() + w[0].sum()

    grads = D.per_sample_grads(loss)(randn(6, 3), ints(6, B, 2, 0))
    assert torch.equal(grads.sum(1), torch.ones(B, 3).double())


@pytest.mark.parametrize(
    ("options", "words"),
    [({"padding_idx": 6}, "padding_idx"), ({"mode": "least"}, "mode has to be")],
)
def test_bags_that_torch_refuses_are_refused(options, words):
    def loss(w, i):
        return F.embedding_bag(i, w, **options).sum()

    with pytest.raises((RuntimeError, ValueError), match=words):
        D.per_sample_grads(loss)(randn(6, 3), ints(6, B, 2, 4))


def test_a_table_that_is_renormed_in_place_is_refused_in_words():
    def loss(w, i):
        return F.embedding(i, w, max_norm=1.0).sum()

    for quantity in (D.per_sample_grads, D.per_sample_grad_norms):
        with pytest.raises(po.DerivativeError, match="writes in place a batched value"):
            quantity(loss)(randn(6, 3), ints(6, B, 4))


@pytest.mark.compile
def test_compiled_bags_of_embeddings_have_their_norms():
    def loss(w, i):
        return F.embedding_bag(i, w, padding_idx=2).sin().sum()

    args = randn(6, 3), ints(6, B, 3, 4)
    norms = D.per_sample_grad_norms(loss)
    close(
        torch.compile(norms, fullgraph=True, backend="aot_eager")(*args), norms(*args)
    )


def convolved(case):
    """In single precision, where the gradients are formed by torch's convolutions."""
    args = tree_map(lambda t: t.float(), (case.params, *case.batch))
    leaves = reference(case)
    g = torch.cat(leaves, 1)
    # Sums of a few hundred products of order one: 1e3 roundings.
    close = {"rtol": 0, "atol": 1e-4 * float(g.square().sum(1).max())}
    gram = D.grad_gram(case.loss)(*args)
    torch.testing.assert_close(gram.double(), g @ g.mT, **close)
    squares = tree_leaves(D.per_sample_squared_norms(case.loss)(*args))
    variances = tree_leaves(D.grad_variance(case.loss)(*args))
    for square, variance, leaf in zip(squares, variances, leaves, strict=True):
        torch.testing.assert_close(square.double(), leaf.square().sum(1), **close)
        torch.testing.assert_close(variance.double().reshape(-1), leaf.var(0), **close)
    return args


@pytest.mark.parametrize(
    "make",
    [unbatched_convolutions, volumes, transposed_convolutions, grouped_convolutions],
)
@pytest.mark.parametrize("budget", [1, _sums.BUDGET])
def test_convolutions_in_single_precision_are_those_in_double(
    make, budget, monkeypatch
):
    monkeypatch.setattr(_sums, "BUDGET", budget)
    convolved(make())


def test_a_penalty_on_norms_of_convolutions_in_single_precision_has_its_gradient():
    case = grouped_convolutions()

    def both(params, batch):
        def penalty(p):
            return D.per_sample_squared_norms(case.loss)(p, *batch)["0.weight"].sum()

        direction = tree_map(torch.cos, params)
        slope = jvp(penalty, (params,), (direction,))[1]
        return [slope, *tree_leaves(grad(penalty)(params))]

    params, *batch = convolved(case)
    want = both(case.params, case.batch)
    # As for the norms; the second derivative sums as many products again.
    atol = 1e-4 * float(max(w.abs().max() for w in want))
    for got, expected in zip(both(params, batch), want, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=0, atol=atol)


@pytest.mark.compile
def test_compiled_convolutions_in_single_precision_are_those_in_double():
    case = grouped_convolutions()
    args = convolved(case)
    norms = D.per_sample_grad_norms(case.loss)
    got = torch.compile(norms, fullgraph=True, backend="aot_eager")(*args)
    want = torch.cat(reference(case), 1).norm(dim=1)
    # As above: sums of a few hundred products.
    torch.testing.assert_close(got.double(), want, rtol=1e-4, atol=0)


def counted(loss):
    """The loss, and a list that grows by one with each of its calls."""
    calls = []

    def counting(*args):
        calls.append(0)
        return loss(*args)

    return counting, calls


def test_a_second_call_with_tensors_alike_runs_the_loss_once():
    case = mlp()
    loss, calls = counted(case.loss)
    norms = D.per_sample_grad_norms(loss)
    norms(case.params, *case.batch)
    first = len(calls)
    params = tree_map(torch.sin, case.params)
    batch = tree_map(lambda leaf: leaf[:3].cos(), case.batch)
    got = norms(params, *batch)
    assert (first, len(calls)) == (2, 3)
    want = torch.cat(reference(Case(case.loss, params, *batch)), 1)
    close(got, want.norm(dim=1))


@pytest.mark.parametrize(
    "other",
    [
        lambda p, x: F.linear(x, p["w"]).tanh().sum(),
        lambda p, x: F.linear(x[:1], p["w"], p["b"]).tanh().sum(),
        lambda p, x: F.linear(x, p["w"], p["b"]).tanh().sum() + p["w"].sum(),
        lambda p, x: F.linear(F.linear(x, p["w"], p["b"]), p["w"][:, :3]).sum(),
    ],
    ids=["fewer-uses", "other-shapes", "a-use-without-a-rule", "more-uses"],
)
def test_a_loss_that_has_become_another_one_is_looked_at_anew(other):
    losses = [lambda p, x: F.linear(x, p["w"], p["b"]).tanh().sum()]
    params, x = {"w": randn(3, 4), "b": randn(3, seed=1)}, randn(B, 2, 4)

    def loss(p, x):
        return losses[-1](p, x)

    norms = D.per_sample_grad_norms(loss)
    norms(params, x)
    losses.append(other)
    want = torch.cat(reference(Case(other, params, x)), 1)
    close(norms(params, x), want.norm(dim=1))


def test_a_loss_that_begins_to_write_to_its_sample_is_refused():
    calls = []

    def loss(w, x, y):
        calls.append(0)
        if len(calls) > 2:
            y.add_(1)
        return (x @ w).tanh()

    norms = D.per_sample_grad_norms(loss)
    norms(randn(3), randn(B, 3), randn(B))
    with pytest.raises(po.DerivativeError, match="writes in place"):
        norms(randn(3), randn(B, 3), randn(B))


def product_of_leaves():
    def loss(p, x):
        return F.linear(x, p["w"] * p["s"]).sin().sum() + (x @ p["w"].T).cos().sum()

    params = {"w": randn(4, 3), "s": randn(3, seed=1)}
    return Case(loss, params, randn(B, 3), opaque=params)


@pytest.mark.parametrize("make", [mlp, product_of_leaves])
def test_an_ensemble_has_the_norms_of_its_members(make):
    case = make()
    members = tree_map(lambda p: torch.stack([p, p.cos(), 2 * p]), case.params)
    norms = D.per_sample_grad_norms(case.loss)
    got = vmap(norms, (0, *[None] * len(case.batch)))(members, *case.batch)
    for i in range(3):
        member = tree_map(lambda p, i=i: p[i], members)
        close(got[i], norms(member, *case.batch))


def test_a_map_of_no_features_has_the_norm_of_its_bias():
    params = {"w": randn(3, 0), "b": randn(3)}
    norms = D.per_sample_grad_norms(lambda p, x: F.linear(x, p["w"], p["b"]).sum())
    close(norms(params, randn(B, 0)), torch.full((B,), 3**0.5, dtype=torch.float64))


def test_positions_that_cancel_have_no_norm_below_zero():
    # 0.1 + 0.2 - 0.3, but for a rounding, of vectors whose products are rounded.
    x = randn(64, 1, 4) * torch.tensor([0.1, 0.2, 0.3]).double()[:, None]
    signs = torch.tensor([[1.0], [1.0], [-1.0]]).double()

    def loss(w, x):
        return (F.linear(x, w) * signs * torch.arange(39).sin()).sum()

    w = randn(39, 4)
    # The squares are wrong by some roundings of squares of order ten.
    assert D.per_sample_squared_norms(loss)(w, x).min() >= 0
    assert 0 <= D.per_sample_grad_norms(loss)(w, x).min() < 1e-6


def test_a_gradient_that_is_nan_has_a_variance_that_is_nan():
    x = torch.tensor([[1.0, 2.0], [torch.nan, 3.0]])
    variance = D.grad_variance(lambda w, x: F.linear(x, w).sum())(torch.ones(1, 2), x)
    assert variance[0, 0].isnan()
    assert variance[0, 1] == 0.5


@pytest.mark.parametrize(
    "write",
    [
        lambda h, y: h.add_(y),
        lambda h, y: h[:1].mul_(2),
        lambda h, y: F.relu(h, inplace=True),
    ],
    ids=["add", "view", "inplace"],
)
def test_writing_to_the_input_of_a_layer_is_refused_as_by_torch(write):
    def loss(w, x):
        h = x.clone()
        y = F.linear(h, w)
        write(h, y)
        return (h * y).sum()

    for quantity in (D.per_sample_grad_norms, D.per_sample_grads):
        with pytest.raises(po.DerivativeError, match="writes in place to a value"):
            quantity(loss)(randn(3, 3), randn(B, 3))


def test_no_tensor_is_as_large_as_the_gradients_per_sample():
    largest = 0

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor):
                largest = max(largest, out.numel())
            return out

    net = nn.Sequential(nn.Linear(40, 60), nn.Tanh(), nn.Linear(60, 50))
    case = of_module(net, randn(30, 40), randn(30, 50))
    for quantity in (D.per_sample_grad_norms, D.grad_gram, D.noise_scale):
        with Sizes():
            quantity(case.loss)(case.params, *case.batch)
    # The largest activation is 30 x 60, the largest leaf 60 x 50.
    assert largest == 3000


def test_a_use_that_cannot_be_seen_gives_nan_and_no_wrong_number():
    def loss(p, x):
        with torch._C.DisableTorchFunction():
            hidden = x @ p["w"]
        return hidden + x @ p["w"] + x @ p["v"]

    params = {"w": randn(3), "v": randn(3, seed=1)}
    squares = D.per_sample_squared_norms(loss)(params, randn(B, 3))
    assert squares["w"].isnan().all()
    assert squares["v"].isfinite().all()
    assert D.noise_scale(loss)(params, randn(B, 3)).ratio.isnan()


@pytest.mark.compile
def test_compiled_the_attribute_t_of_a_weight_is_right():
    # Compilers do not show `.T` to modes; in eager code it has a rule.
    def loss(w, x):
        return (x @ w.T).tanh().sum()

    w, x = randn(2, 3), randn(4, 3)
    norms = D.per_sample_grad_norms(loss)

    def both(w, x):
        return norms(w, x), vmap(norms, (0, None))(torch.stack([w, w.cos()]), x)

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(w, x), both(w, x), strict=True):
        close(got, want)


@pytest.mark.compile
def test_compiled_unflatten_and_rows_that_are_written_are_traced():
    def loss(w, x):
        rows = x.new_zeros(2, 4)
        rows[1] = w
        return (rows * x.unflatten(0, (2, 4))).sin().sum()

    w, x = randn(4), randn(B, 8)
    norms = D.per_sample_grad_norms(loss)
    compiled = torch.compile(norms, fullgraph=True, backend="aot_eager")
    close(compiled(w, x), norms(w, x))


def loss_of(w, x):
    return (w * x).sum()


MISTAKES = {
    "other-sizes": (
        lambda p, x, y: (p * x).sum() + y,
        (randn(2), randn(3, 2), randn(4)),
        "first dimension is the sample, got 3 and 4 samples. Close over",
    ),
    "no-tensor": (loss_of, (randn(2), 3.0), "is the sample, got `float`"),
    "nothing": (loss_of, (randn(2),), "first dimension is the sample, got nothing"),
    "no-sample": (loss_of, (randn(2), randn(0, 2)), "or more, got 0."),
    "no-scalar": (
        lambda w, x: w * x,
        (randn(2), randn(3, 2)),
        "must return a 0-d floating tensor, got a tensor of shape (2,)",
    ),
    "integers": (
        loss_of,
        (torch.arange(2), randn(3, 2)),
        "must hold only floating-point tensors, got a tensor of dtype torch.int64",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("quantity", ["grad_gram", "per_sample_grads"])
def test_what_is_wrong_with_a_batch_is_said(name, quantity):
    loss, args, words = MISTAKES[name]
    with pytest.raises(po.PureoptError) as raised:
        getattr(D, quantity)(loss)(*args)
    assert str(raised.value).startswith(f"`{quantity}(")
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["grad_variance", "gsnr", "noise_scale"])
def test_a_variance_needs_two_samples(name):
    with pytest.raises(po.DerivativeError, match="hold 2 samples or more, got 1"):
        getattr(D, name)(loss_of)(randn(2), randn(1, 2))


@pytest.mark.parametrize("quantity", ["per_sample_grad_norms", "per_sample_grads"])
def test_batch_norm_in_train_mode_is_refused_and_told_why(quantity):
    net = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2)).double()
    apply, params, buffers = po.functionalize(net)

    def loss(params, x):
        return apply(params, buffers, x[None])[0].square().sum()

    with pytest.raises(po.DerivativeError) as raised:
        getattr(D, quantity)(loss)(params, randn(B, 2, 4))
    assert "batch norm" in str(raised.value)
    assert "eval mode" in str(raised.value)


def test_random_numbers_are_refused_and_told_why():
    def loss(w, x):
        return (w * F.dropout(x)).sum()

    with pytest.raises(po.DerivativeError) as raised:
        D.per_sample_grad_norms(loss)(randn(2), randn(3, 2))
    assert "random numbers under vmap" in str(raised.value)
    assert "pureopt.random" in str(raised.value)


def test_a_loss_that_does_something_else_each_time_is_refused():
    calls = []

    def loss(p, x):
        calls.append(0)
        return x @ p["w"] if len(calls) % 2 else x @ p["w"] + x @ p["v"]

    with pytest.raises(po.DerivativeError, match="same operations each time"):
        D.per_sample_grad_norms(loss)({"w": randn(3), "v": randn(3)}, randn(B, 3))


def test_a_loss_may_store_in_its_tree():
    def loss(p, x):
        p["w"] = 2 * p["w"]
        return (p["w"] * x).sum() ** 3

    params, x = {"w": torch.ones(2)}, torch.ones(3, 2)
    grads = po.derivatives.per_sample_grads(loss)(params, x)["w"]
    assert grads.tolist() == [[96, 96]] * 3  # 3 * 4 ** 2 * 2
    assert params["w"].tolist() == [1, 1]
    norms = po.derivatives.per_sample_grad_norms(loss)(params, x)
    torch.testing.assert_close(norms, grads.norm(dim=1))
