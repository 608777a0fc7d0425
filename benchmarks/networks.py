"""Small networks with their data and their losses, for the benchmark of curvature."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import pureopt as po

Tree = dict[str, Tensor]


class Network(NamedTuple):
    """A network, its data and its loss, as pureopt and as curvlinops want them."""

    model: nn.Module
    params: Tree
    outputs: Callable[[Tree], Tensor]
    of_outputs: Callable[[Tensor], Tensor]
    data: list[tuple[Tensor, Tensor]]

    def loss(self, params: Tree) -> Tensor:
        return self.of_outputs(self.outputs(params))

    def curvlinops(self, kind: str) -> Any:
        import curvlinops

        operator = getattr(curvlinops, f"{kind}LinearOperator")
        params = list(self.model.parameters())
        return operator(
            *(self.model, nn.CrossEntropyLoss(), params, self.data),
            check_deterministic=False,
        )


def network(widths: tuple[int, ...], x: Tensor, y: Tensor) -> Network:
    """Linear layers and tanh, with the mean cross-entropy."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for m, n in itertools.pairwise(widths):
        layers += [nn.Linear(m, n, dtype=x.dtype), nn.Tanh()]
    model = nn.Sequential(*layers[:-1])
    apply, params, buffers = po.functionalize(model)
    return Network(
        *(model, params, lambda p: apply(p, buffers, x)[0]),
        *(lambda z: F.cross_entropy(z, y), [(x, y)]),
    )


def noise(widths: tuple[int, ...], batch: int) -> Network:
    """On random inputs, in single precision."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(batch, widths[0], generator=draw)
    return network(widths, x, torch.randint(widths[-1], (batch,), generator=draw))


def digits(hidden: int, batch: int) -> Network:
    """On handwritten digits, in double precision."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x[:batch]) / 16, torch.from_numpy(y[:batch])
    return network((64, hidden, 10), x, y)


def flat(tree: Any) -> Tensor:
    """All numbers of a tree or a list, in order."""
    leaves = tree.values() if isinstance(tree, dict) else tree
    return torch.cat([leaf.flatten() for leaf in leaves])


def like(params: Tree, v: Tensor) -> Tree:
    """The tree of these numbers."""
    parts = v.split([leaf.numel() for leaf in params.values()])
    return {
        name: part.reshape(leaf.shape)
        for (name, leaf), part in zip(params.items(), parts, strict=True)
    }
