"""`>>`: what fits together, and what is refused at construction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import pytest
import torch

from pureopt import CompositionError, ConstraintError
from pureopt.constraints import (
    Cayley,
    Chain,
    Constraint,
    Orthogonal,
    Positive,
    Skew,
    Symmetric,
)
from pureopt.constraints._domains import ORTHOGONAL, SEMI_ORTHOGONAL, SKEW, VECTOR


def test_symmetric_into_cayley_names_skew():
    with pytest.raises(CompositionError) as info:
        Symmetric() >> Cayley()
    assert str(info.value) == (
        "`Symmetric() >> Cayley()` must hand a skew-symmetric matrix to `Cayley()`, "
        "got a symmetric matrix from `Symmetric()`. Write `Skew() >> Cayley()`."
    )


def test_an_elementwise_link_before_a_map_from_vectors_to_matrices():
    """The values in between have fewer dimensions than those of the chain."""
    chain = Positive() >> Skew()
    y = chain.forward(torch.tensor([[0.3, 0.2, 0.5], [1.0, 2.0, 3.0]]))
    assert chain.check(torch.stack([y[0], -y[1]])).tolist() == [True, False]
    assert chain.rounding(chain.right_inverse(y), y).shape == (2,)


def test_a_link_that_takes_vectors_can_only_be_the_first():
    with pytest.raises(CompositionError, match="can only be the first link"):
        Orthogonal() >> Skew()
    with pytest.raises(CompositionError, match="can only be the first link"):
        Skew() >> Cayley() >> Symmetric()


def test_only_constraints_compose():
    with pytest.raises(CompositionError, match=r"got the class .*Make an instance"):
        Skew() >> Cayley
    with pytest.raises(CompositionError, match="compose constraints, got `3`"):
        Skew() >> 3
    with pytest.raises(CompositionError, match="hand a skew-symmetric matrix"):
        Chain((Symmetric(), Cayley()))


def test_a_chain_is_flat_and_knows_its_ends():
    chain = Skew() >> Cayley()
    assert isinstance(chain, Chain)
    assert chain.links == (Skew(), Cayley())
    assert (chain.domain, chain.codomain) == (VECTOR, ORTHOGONAL)
    assert chain.radius(4, torch.float32) == Cayley().radius(4, torch.float32)
    longer = chain >> Transposed() >> Transposed()
    assert longer.links == (Skew(), Cayley(), Transposed(), Transposed())
    assert (Skew() >> (Cayley() >> Transposed())).links == longer.links[:3]


def test_domains_contain_their_subsets():
    assert SEMI_ORTHOGONAL.contains(ORTHOGONAL)
    assert not ORTHOGONAL.contains(SEMI_ORTHOGONAL)
    assert not SKEW.contains(ORTHOGONAL)
    assert SKEW.contains(SKEW)
    # An orthogonal matrix may go where orthonormal columns are taken.
    assert (Cayley() >> Transposed()).codomain == SEMI_ORTHOGONAL


def test_a_chain_binds_from_the_right_and_forwards_from_the_left():
    chain = Skew() >> Cayley() >> Transposed()
    y = torch.eye(3).roll(1, 0)
    statics = chain.bind(y)
    assert statics[0] == statics[2] == ()
    assert torch.equal(statics[1], Cayley().bind(y.mT))
    x = chain.right_inverse(y, statics)
    assert torch.allclose(chain.forward(x, statics), y, atol=1e-6)  # 10 eps, float32


def test_a_chain_checks_what_each_link_was_given():
    chain = Quarter() >> Transposed()
    assert bool(chain.check(torch.eye(2)))
    assert not bool(chain.check(-torch.eye(2)))  # orthogonal, but outside Quarter
    assert not bool(chain.check(torch.ones(2, 2)))


def test_a_chain_projects_only_if_its_first_links_reach_everything():
    assert torch.equal((Skew() >> Cayley()).project(2 * torch.eye(2)), torch.eye(2))
    with pytest.raises(ConstraintError, match=r"implements `project`"):
        (Quarter() >> Transposed()).project(torch.eye(2))


def test_what_a_constraint_lacks_is_said_with_its_name():
    with pytest.raises(
        ConstraintError, match=r"`Transposed\(\).log_abs_det\(...\)`.* lists"
    ):
        Transposed().log_abs_det(torch.eye(2))
    with pytest.raises(ConstraintError, match=r"`Transposed\(\).project\(...\)`"):
        Transposed().project(torch.eye(2))


def test_a_static_of_another_chain_raises():
    with pytest.raises(ConstraintError, match="tuple of 2 statics"):
        (Skew() >> Cayley()).forward(torch.zeros(1), ((),))


@final
@dataclass(frozen=True)
class Transposed(Constraint):
    """The least that a constraint must define."""

    domain = SEMI_ORTHOGONAL
    codomain = SEMI_ORTHOGONAL
    rule = "max|Y^T Y - I|"

    def dim(self, shape: Any) -> int:
        return Orthogonal().dim(shape)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        return torch.inf

    def forward(self, x: torch.Tensor, static: Any = ()) -> torch.Tensor:
        return x.mT

    def right_inverse(self, y: torch.Tensor, static: Any = ()) -> torch.Tensor:
        return y.mT

    def violation(self, y: torch.Tensor) -> torch.Tensor:
        return Orthogonal().violation(y)

    def tolerance(self, y: torch.Tensor) -> torch.Tensor:
        return Orthogonal().tolerance(y)


@final
@dataclass(frozen=True)
class Quarter(Constraint):
    """A part of the orthogonal matrices: those with a positive corner."""

    domain = VECTOR
    codomain = ORTHOGONAL
    rule = "max(0, -Y_11)"

    def dim(self, shape: Any) -> int:
        return Orthogonal().dim(shape)

    def radius(self, n: int, dtype: torch.dtype) -> float:
        return 1.0

    def forward(self, x: torch.Tensor, static: Any = ()) -> torch.Tensor:
        return Orthogonal().forward(x)

    def right_inverse(self, y: torch.Tensor, static: Any = ()) -> torch.Tensor:
        return Orthogonal().right_inverse(y)

    def violation(self, y: torch.Tensor) -> torch.Tensor:
        return (-y[..., 0, 0]).clamp(min=0)

    def tolerance(self, y: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(y[..., 0, 0])
