"""What Hypothesis draws: the structure. A seeded generator then fills the tensors."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from hypothesis import strategies as st

from pureopt._tree import tree_map

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


class Pair(NamedTuple):
    """A NamedTuple node."""

    first: Any
    second: Any


@dataclass(frozen=True)
class Leaf:
    """A tensor to be filled."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def shapes(max_dims: int = 2, max_side: int = 3) -> st.SearchStrategy:
    return st.lists(st.integers(1, max_side), max_size=max_dims).map(tuple)


def leaves(dtypes: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy:
    return st.builds(Leaf, shapes(), st.sampled_from(dtypes))


def trees(
    dtypes: tuple[torch.dtype, ...] = DTYPES, max_leaves: int = 4
) -> st.SearchStrategy:
    """Nested dict, OrderedDict, list, tuple, NamedTuple of :class:`Leaf`; also a bare one.

    Keys are drawn in any order.
    """

    def nodes(children: st.SearchStrategy) -> st.SearchStrategy:
        keys = st.sampled_from(["w", "b", "a", "layer", "0"])
        some = st.lists(children, min_size=1, max_size=3)
        dicts = st.dictionaries(keys, children, min_size=1, max_size=3)
        return st.one_of(
            dicts,
            dicts.map(OrderedDict),
            some,
            some.map(tuple),
            st.builds(Pair, children, children),
        )

    return st.recursive(leaves(dtypes), nodes, max_leaves=max_leaves)


@dataclass(frozen=True)
class Case:
    """A tree of leaves, and how to fill it."""

    tree: Any
    seed: int
    scale: float

    def fill(self, *, salt: int = 0, device: str = "cpu") -> Any:
        """Numbers of magnitude ``scale * [0.5, 1.5]`` and either sign: never near zero."""
        generator = torch.Generator().manual_seed(self.seed * 1009 + salt)

        def tensor(leaf: Leaf) -> torch.Tensor:
            size = 0.5 + torch.rand(leaf.shape, generator=generator, dtype=torch.double)
            sign = torch.rand(leaf.shape, generator=generator).sub(0.5).sign()
            return (self.scale * size * sign).to(leaf.dtype).to(device)

        return tree_map(tensor, self.tree)


def cases(dtypes: tuple[torch.dtype, ...] = DTYPES) -> st.SearchStrategy:
    """Trees with seeds and scales; the scales leave room for squares in half precision."""
    return st.builds(
        Case,
        trees(dtypes),
        st.integers(0, 2**20),
        st.sampled_from([1e-2, 1.0, 10.0]),
    )
