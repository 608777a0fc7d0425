"""Products: trees of values as one value, and what the errors say."""

from __future__ import annotations

import pickle
from typing import NamedTuple

import pytest
import torch
from torch.func import vmap

import pureopt as po
from pureopt import CompositionError, ConstraintError
from pureopt.constraints import (
    Orthogonal,
    Positive,
    Product,
    Skew,
    Sphere,
    Symmetric,
    WeightNorm,
)
from tests.constraints.rows_orthogonal import haar


class Motion(NamedTuple):
    rotation: object
    shift: object


def value(batch=(), scale=2.0):
    turn = haar(3, batch, torch.Generator().manual_seed(0))
    return {"turn": turn, "scale": torch.full((*batch, 4), scale, dtype=torch.float64)}


PRODUCT = Product({"turn": Orthogonal(), "scale": Positive()})


def test_a_product_is_its_parts_side_by_side():
    y = value()
    static = PRODUCT.bind(y)
    x = PRODUCT.right_inverse(y, static)
    turn = Orthogonal().bind(y["turn"])
    assert torch.equal(x["turn"], Orthogonal().right_inverse(y["turn"], turn))
    assert torch.equal(x["scale"], Positive().right_inverse(y["scale"]))
    back = PRODUCT.forward(x, static)
    assert torch.equal(back["turn"], Orthogonal().forward(x["turn"], turn))
    assert torch.equal(back["scale"], Positive().forward(x["scale"]))
    volume = Orthogonal().log_abs_det(x["turn"], turn)
    volume = volume + Positive().log_abs_det(x["scale"]).sum()
    # The same terms in the same order: equal up to the rounding of one sum.
    assert torch.allclose(PRODUCT.log_abs_det(x, static), volume, rtol=1e-15, atol=0)


def test_tuples_and_named_tuples_keep_their_kind():
    y = Motion(torch.eye(3), torch.ones(3, 3))
    c = Product(Motion(Orthogonal(), Symmetric()))
    x = c.right_inverse(y, c.bind(y))
    assert isinstance(x, Motion)
    assert isinstance(c.forward(x, c.bind(y)), Motion)
    pair = Product((Orthogonal(), Symmetric()))
    assert isinstance(pair.forward((torch.zeros(3), torch.zeros(6))), tuple)


def test_what_all_parts_have_in_front_is_the_batch():
    y = value((2, 5))
    assert PRODUCT.check(y).shape == (2, 5)
    y["scale"][1, 3, 0] = -1
    y["turn"][0, 2] *= 2
    inside = torch.ones(2, 5, dtype=torch.bool)
    inside[1, 3] = inside[0, 2] = False
    assert torch.equal(PRODUCT.check(y), inside)
    # The bad elements are NaN in all their parts, the others in none.
    x = PRODUCT.right_inverse(y, PRODUCT.bind(y))
    assert torch.equal(x["turn"].isfinite().all(-1), inside)
    assert torch.equal(x["scale"].isfinite().all(-1), inside)
    assert PRODUCT.log_abs_det(x, PRODUCT.bind(y)).shape == (2, 5)
    assert PRODUCT.rounding(x, y).shape == (2, 5)
    # Elementwise parts alone share what their shapes begin with.
    numbers = Product((Positive(), Positive()))
    ones = torch.ones
    assert numbers.check((ones(2, 3), ones(2, 4))).shape == (2,)
    assert numbers.check((ones(3), ones(4))).shape == ()


def test_parts_with_other_batches_raise_with_the_path():
    y = value((5,))
    with pytest.raises(ConstraintError, match=r"leading dimensions.*\(5,\) at 'turn'"):
        PRODUCT.bind({**y, "scale": torch.ones(4)})
    with pytest.raises(ConstraintError, match=r"leading dimensions.*at 'turn'"):
        PRODUCT.forward({"turn": torch.zeros(5, 3), "scale": torch.zeros(4)})
    with pytest.raises(ConstraintError, match="have the same leading dimensions"):
        vmap(PRODUCT.check, in_dims=({"turn": None, "scale": 0},))(
            {"turn": y["turn"], "scale": torch.ones(6, 4)}
        )


def test_the_violation_is_in_units_of_the_tolerance_of_the_worst_part():
    y = value()
    off = {**y, "turn": y["turn"] * (1 + 1e-9)}
    part = Orthogonal()
    want = part.violation(off["turn"]) / part.tolerance(off["turn"])
    assert torch.equal(PRODUCT.violation(off), want)
    assert not bool(PRODUCT.check(off))
    nan = {**y, "scale": y["scale"] * torch.nan}
    assert bool(PRODUCT.violation(nan).isnan())
    # Skew parts of zero have the tolerance zero: exactly zero is inside, no more.
    exact = Product((Skew(),))
    zero = torch.zeros(2, 2)
    assert bool(exact.check((zero,)))
    assert float(exact.violation((zero,))) == 0
    assert not bool(PRODUCT.check({**y, "scale": -y["scale"]}))


def test_products_of_products_are_flat_and_values():
    inner = Product({"b": Symmetric()})
    nested = Product({"a": inner, "c": Orthogonal()})
    assert nested == Product({"c": Orthogonal(), "a": {"b": Symmetric()}})
    assert hash(nested) == hash(Product({"c": Orthogonal(), "a": {"b": Symmetric()}}))
    assert nested != Product({"a": {"b": Symmetric()}, "c": Skew()})
    assert pickle.loads(pickle.dumps(nested)) == nested  # noqa: S301
    parts = {"a": Orthogonal()}
    c = Product(parts)
    parts["b"] = Symmetric()
    assert c == Product({"a": Orthogonal()})


def test_samples_are_independent_and_shapes_are_trees():
    c = Product({"turn": Orthogonal(), "axis": Sphere()})
    shape = {"turn": (1000, 3, 3), "axis": (1000, 3)}
    y = c.sample(po.random.key(1), shape, dtype=torch.float64)
    assert c.check(y).shape == (1000,)
    assert bool(c.check(y).all())
    # Uniform and independent: the image of the axis is uniform too; a mean of 1000
    # coordinates of variance 1/3 has the standard deviation 0.018.
    image = (y["turn"] @ y["axis"].unsqueeze(-1)).squeeze(-1)
    assert float(image.mean(0).abs().max()) < 4.5 * 0.018
    assert c.dim({"turn": (3, 3), "axis": (3,)}) == 5
    assert c.free_shape({"turn": (2, 3, 3), "axis": (2, 3)}) == {
        "turn": (2, 3),
        "axis": (2, 2),
    }


def test_a_product_offers_what_all_parts_offer():
    assert PRODUCT.offers("log_abs_det")
    assert not Product((Orthogonal(), WeightNorm())).offers("log_abs_det")
    assert not Product((Orthogonal(), WeightNorm())).bijective
    off = {"turn": 2 * torch.eye(3), "scale": torch.ones(4)}
    assert torch.allclose(PRODUCT.project(off)["turn"], torch.eye(3), atol=1e-6)


def test_the_radius_is_that_of_the_most_sensitive_part():
    assert PRODUCT.radius(3, torch.float32) == Orthogonal().radius(3, torch.float32)


def test_wrong_parts_keys_and_compositions_raise():
    with pytest.raises(CompositionError, match="be a dict or a tuple"):
        Product(Orthogonal())
    with pytest.raises(CompositionError, match="be a dict or a tuple"):
        Product({})
    with pytest.raises(CompositionError, match=r"class `Orthogonal` at 'a.w'"):
        Product({"a": {"w": Orthogonal}})
    with pytest.raises(ConstraintError, match=r"keys of its parts.*'turn'"):
        PRODUCT.bind({"turn": torch.eye(3)})
    with pytest.raises(ConstraintError, match="a tensor of shape"):
        PRODUCT.check(torch.eye(3))
    with pytest.raises(
        ConstraintError, match=r"check\(y\)\['turn'\]` must have a shape"
    ):
        PRODUCT.check({"turn": torch.ones(3), "scale": torch.ones(3)})
    with pytest.raises(ConstraintError, match=r"forward\(static=...\)"):
        PRODUCT.forward({"turn": torch.zeros(3), "scale": torch.zeros(3)}, {"a": ()})
    for chain in (lambda: PRODUCT >> Positive(), lambda: Skew() >> PRODUCT):
        with pytest.raises(CompositionError):
            chain()
    with pytest.raises(CompositionError):
        _ = Product((Skew(),)) >> Product((Skew(),))
