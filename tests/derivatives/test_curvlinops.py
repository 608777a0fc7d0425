"""Curvature against curvlinops, an independent implementation, where it is installed.

It comes with the peers of the benchmark: ``make peers`` installs them and runs this. Its
operators are of a module, the mean over a batch, and flat vectors; the definitions that
differ from pureopt's stand at the tests.
"""

from __future__ import annotations

import pytest
import torch
from torch import nn

import pureopt as po
from pureopt._tree import ravel, tree_map, unravel
from tests.derivatives.row import randn

curvlinops = pytest.importorskip("curvlinops")

D = po.derivatives
B, CLASSES = 6, 3
# What the project asks for; both round sums of some hundred products, 1e3 eps.
RTOL = 1e-10


def mlp():
    net = nn.Sequential(nn.Linear(4, 12), nn.Tanh(), nn.Linear(12, CLASSES))
    return net, randn(B, 4)


def cnn():
    convolution = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    net = nn.Sequential(convolution, nn.Tanh(), nn.Flatten(), nn.Linear(27, CLASSES))
    return net, randn(B, 2, 5, 5)


class Problem:
    """A network with a loss, as pureopt and as curvlinops want it."""

    def __init__(self, make, loss):
        torch.manual_seed(0)
        net, self.x = make()
        self.net, self.loss = net.double(), loss
        labels = torch.arange(B) % CLASSES
        squares = isinstance(loss, nn.MSELoss)
        self.y = randn(B, CLASSES, seed=1) if squares else labels
        self.apply, self.params, self.buffers = po.functionalize(self.net)
        self.v = tree_map(lambda p: torch.cos(7 * p), self.params)

    def outputs(self, params):
        return self.apply(params, self.buffers, self.x)[0]

    def of_outputs(self, z):
        return self.loss(z, self.y)

    def output(self, params, x):
        return self.apply(params, self.buffers, x[None])[0][0]

    def one(self, params, x, y):
        """The loss of a sample, the sum over its outputs."""
        return self.loss_sum(self.output(params, x)[None], y[None])

    @property
    def loss_sum(self):
        return type(self.loss)(reduction="sum")

    @property
    def outputs_in_mean(self):
        """Torch's mean of squared errors is over the outputs of a sample, too."""
        return CLASSES if isinstance(self.loss, nn.MSELoss) else 1

    @property
    def likelihood(self):
        """That of which the loss is the negative logarithm, but for a constant."""
        if isinstance(self.loss, nn.MSELoss):
            return D.Gaussian(scale=(self.outputs_in_mean / 2) ** 0.5)
        return D.Categorical()

    def theirs(self, kind, **kwargs):
        operator = getattr(curvlinops, f"{kind}LinearOperator")
        params = list(self.net.parameters())
        data = [(self.x, self.y)]
        return operator(
            *(self.net, self.loss, params, data), check_deterministic=False, **kwargs
        )

    def product(self, kind, **kwargs):
        """Theirs with :attr:`v`, as a tree."""
        return unravel(self.theirs(kind, **kwargs) @ ravel(self.v), self.params)


@pytest.fixture(params=[nn.CrossEntropyLoss(), nn.MSELoss()], ids=["labels", "squares"])
def loss(request):
    return request.param


@pytest.fixture(params=[mlp, cnn], ids=["mlp", "cnn"])
def problem(request, loss):
    return Problem(request.param, loss)


def close(got, want):
    """Relative to the largest entry."""
    for name, leaf in want.items():
        atol = float(RTOL * leaf.abs().max())
        torch.testing.assert_close(got[name], leaf, rtol=0, atol=atol)


def test_the_product_with_the_hessian_is_theirs(problem):
    got = D.hvp(lambda p: problem.of_outputs(problem.outputs(p)), *at(problem))
    close(got, problem.product("Hessian"))


def test_the_product_with_the_gauss_newton_matrix_is_theirs(problem):
    got = D.ggnvp(problem.outputs, problem.of_outputs, *at(problem))
    close(got, problem.product("GGN"))


def test_the_product_with_the_fisher_matrix_is_their_gauss_newton_product(problem):
    """Theirs of the Fisher matrix itself draws labels."""
    got = D.fisher_vp(problem.outputs, *at(problem), likelihood=problem.likelihood)
    close(got, problem.product("GGN"))


def test_the_product_with_the_empirical_fisher_matrix_is_theirs(problem):
    """Theirs has the gradients of sums over outputs, and one factor of the mean."""
    batch = problem.x, problem.y
    params, v = at(problem)
    got = D.empirical_fisher_vp(problem.one, params, batch, v)
    got = tree_map(lambda leaf: leaf / problem.outputs_in_mean, got)
    close(got, problem.product("EF"))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_the_blocks_of_kfac_are_theirs(problem, sharing):
    got = D.kfac(
        problem.output,
        problem.params,
        (problem.x,),
        likelihood=problem.likelihood,
        sharing=sharing,
    )
    want = problem.product("KFAC", fisher_type="type-2", kfac_approx=sharing)
    close(got.matvec(problem.v), alike(want, sharing))


@pytest.mark.parametrize("sharing", ["expand", "reduce"])
def test_the_blocks_of_empirical_kfac_are_theirs(problem, sharing):
    """With the factors of the empirical Fisher matrix."""
    batch = problem.x, problem.y
    got = D.kfac_empirical(problem.one, problem.params, batch, sharing=sharing)
    got = tree_map(lambda leaf: leaf / problem.outputs_in_mean, got.matvec(problem.v))
    want = problem.product("KFAC", fisher_type="empirical", kfac_approx=sharing)
    close(got, alike(want, sharing))


def alike(product, sharing):
    """Without the bias of the convolution where positions are samples of their own.

    Its block is whole in pureopt, and the gradients of positions do not add up in theirs.
    """
    image = product["0.weight"].dim() == 4
    left_out = "0.bias" if image and sharing == "expand" else None
    return {name: leaf for name, leaf in product.items() if name != left_out}


@pytest.mark.parametrize("method", ["hutchpp", "xtrace"])
def test_traces_that_are_exact_are_equal(problem, method):
    """A sketch of more columns than the rank, here 20 for 18, takes in all of a matrix."""
    params, v = at(problem)
    matvecs = 3 * (B * CLASSES + 2)

    def product(v):
        return D.ggnvp(problem.outputs, problem.of_outputs, params, v)

    trace = getattr(D, f"trace_{method}")
    got = trace(product, v, key=po.random.key(0), matvecs=matvecs).value
    names = {"hutchpp": "hutchpp_trace", "xtrace": "xtrace"}
    want = getattr(curvlinops, names[method])(problem.theirs("GGN"), matvecs)
    torch.testing.assert_close(got, want, rtol=RTOL, atol=0)


def at(problem):
    return problem.params, problem.v
