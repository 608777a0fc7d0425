"""`constrain` and `Space`: trees, globs, ensembles, and what the errors say."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import NamedTuple

import pytest
import torch
from torch.func import grad, vmap

from pureopt import SGD, ConstraintError, Space, TreeError, constrain, make_step
from pureopt._tree import tree_leaves, tree_map
from pureopt.constraints import (
    Box,
    Cayley,
    Constraint,
    LogEuclidean,
    Masked,
    Orthogonal,
    Product,
    SimplexSoftmax,
    Skew,
    Sphere,
    Symmetric,
    WeightNorm,
    WeightNormParts,
)
from tests.constraints.rows_orthogonal import haar


class Layer(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


@dataclass(frozen=True)
class Unprojected(Constraint):
    """Vectors that begin with 1, by a constraint of a user's own."""

    domain = codomain = Sphere().codomain
    rule = "|y_1 - 1|"

    def dim(self, shape):
        return shape[-1] - 1

    def radius(self, n, dtype):
        return 1e30

    def forward(self, x, static=()):
        return torch.cat([torch.ones_like(x[..., :1]), x], -1)

    def right_inverse(self, y, static=()):
        return y[..., 1:].clone()

    def violation(self, y):
        return (y[..., 0] - 1).abs()

    def tolerance(self, y):
        return torch.zeros_like(y[..., 0])


def orthogonal(n, k, seed=0):
    return haar(max(n, k), (), torch.Generator().manual_seed(seed))[:n, :k].float()


def model(seed=0):
    return {
        "layers": [
            Layer(orthogonal(4, 4, seed), torch.zeros(4)),
            Layer(orthogonal(2, 4, seed + 1), torch.ones(2)),
        ],
        "head": OrderedDict(weight=torch.full((3, 2), 0.5)),
    }


def test_a_space_keeps_the_containers_and_gives_the_parameters_back():
    params = model()
    space = constrain(params, {"layers.*.weight": Orthogonal()})
    assert list(space.free) == ["layers", "head"]
    assert isinstance(space.free["layers"][0], Layer)
    assert space.free["layers"][0].weight.shape == (6,)
    assert space.free["layers"][1].weight.shape == (5,)
    assert list(space.static) == ["layers.0.weight", "layers.1.weight"]
    back = space.forward(space.free)
    for a, b in zip(tree_leaves(back), tree_leaves(params), strict=True):
        # 20 eps sqrt(n) times a largest free number of at most ten.
        assert torch.allclose(a, b, rtol=0, atol=1e-5)
    again = space.right_inverse(back)
    for a, b in zip(tree_leaves(again), tree_leaves(space.free), strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)  # the same, times max|A|^2


def test_free_leaves_are_detached_contiguous_copies():
    w = orthogonal(4, 4).requires_grad_()
    b = torch.zeros(5, 4).mT.requires_grad_()
    params = {"w": w, "b": b}
    space = constrain(params, {"w": Orthogonal()})
    for leaf in [*tree_leaves(space.free), *tree_leaves(space.static)]:
        assert not leaf.requires_grad
        assert leaf.is_contiguous()
    assert torch.equal(space.free["b"], b)
    assert space.free["b"].data_ptr() != b.data_ptr()


def test_the_order_of_the_keys_does_not_matter_and_the_spaces_order_rules():
    space = constrain({"w": torch.eye(3), "b": torch.zeros(3)}, {"w": Orthogonal()})
    out = space.forward({"b": torch.ones(3), "w": torch.zeros(3)})
    assert list(out) == ["w", "b"]
    assert torch.equal(out["w"], torch.eye(3))
    assert torch.equal(out["b"], torch.ones(3))


def test_the_first_glob_that_matches_wins_and_stars_cross_dots():
    params = {"a": {"w": torch.eye(2), "v": torch.eye(2)}, "b": {"w": torch.eye(2)}}
    spec = {"a.w": Symmetric(), "*w": Orthogonal()}
    space = constrain(params, spec)
    assert space.constraints == {"a.w": Symmetric(), "b.w": Orthogonal()}
    # A glob whose matches were all taken is not a mistake: it names existing leaves.
    assert constrain(params, {"*": Symmetric(), "b.w": Orthogonal()}).constraints == (
        dict.fromkeys(["a.w", "a.v", "b.w"], Symmetric())
    )


def test_nested_dicts_join_their_keys():
    params = {"a": {"w": torch.eye(2)}, "b": {"w": torch.eye(2)}}
    nested = constrain(params, {"a": {"w": Orthogonal()}, "b": {"*": Symmetric()}})
    flat = constrain(params, {"a.w": Orthogonal(), "b.*": Symmetric()})
    assert nested.constraints == flat.constraints


def test_a_bare_tensor_and_a_bare_constraint():
    w = -torch.eye(3)
    space = constrain(w, Orthogonal())
    assert space.free.shape == (3,)
    assert list(space.static) == [""]
    assert torch.equal(space.forward(space.free), w)
    assert torch.equal(space.right_inverse(w), space.free)
    both = constrain({"a": w, "b": w}, Orthogonal())
    assert list(both.constraints) == ["a", "b"]


def test_chains_and_batches_of_matrices():
    kernels = haar(3, (2, 5), torch.Generator().manual_seed(0))
    for constraint in (Orthogonal(), Skew() >> Cayley()):
        space = constrain({"k": kernels}, {"k": constraint})
        assert space.free["k"].shape == (2, 5, 3)
        back = space.forward(space.free)["k"]
        assert torch.allclose(back, kernels, rtol=0, atol=1e-13)  # some n eps max|A|


def test_the_repr_lists_what_is_constrained():
    space = constrain(model(), {"layers.*.weight": Orthogonal()})
    assert repr(space) == (
        "Space(23 free numbers)\n"
        "path             shape   dim  constraint\n"
        "layers.0.weight  (4, 4)  6    Orthogonal(), static (signs: int8 (4,))\n"
        "layers.0.bias    (4,)    4    free\n"
        "layers.1.weight  (2, 4)  5    Orthogonal(), static (signs: int8 (2,))\n"
        "layers.1.bias    (2,)    2    free\n"
        "head.weight      (3, 2)  6    free"
    )
    assert repr(constrain(torch.eye(2), Orthogonal())) == (
        "Space(1 free numbers)\n"
        "shape   dim  constraint\n"
        "(2, 2)  1    Orthogonal(), static (signs: int8 (2,))"
    )


def test_the_repr_counts_batches_and_redundant_numbers_and_stays_on_its_lines():
    params = {
        "kernels": haar(3, (2, 5), torch.Generator().manual_seed(0)),
        "p": torch.full((4, 3), 1 / 3),
        "w": torch.ones(2, 2),
        "mask": torch.ones(20, 30),
    }
    spec = {
        "kernels": Skew() >> Cayley(),
        "p": SimplexSoftmax(),
        "w": WeightNorm(),
        "mask": Masked(torch.ones(20, 30, dtype=torch.bool)),
    }
    lines = repr(constrain(params, spec)).splitlines()
    assert lines[0] == "Space(648 free numbers)"  # 2 * 5 * 3 + 4 * 3 + 2 + 4 + 600
    assert lines[2].split()[:5] == ["kernels", "(2,", "5,", "3,", "3)"]
    assert "  30       Skew() >> Cayley(), static (1: int8 (2, 5, 3))" in lines[2]
    assert "  8 of 12  SimplexSoftmax()" in lines[3]
    assert "  4 of 6   WeightNorm(axis=-2)" in lines[4]
    # The mask has 600 entries; an error or a log wants one line.
    assert len(lines) == 6
    assert "  600      Masked(" in lines[5]
    assert max(map(len, lines)) <= 120


def test_a_space_is_frozen():
    space = constrain(torch.eye(2), Orthogonal())
    with pytest.raises(AttributeError):
        space.free = torch.zeros(1)


def stacked(members: list[Space]):
    free = tree_map(lambda *t: torch.stack(t), *[m.free for m in members])
    static = tree_map(lambda *t: torch.stack(t), *[m.static for m in members])
    return free, static


def test_an_ensemble_maps_over_its_own_statics():
    spec = {"layers.*.weight": Orthogonal()}
    models = [model(seed) for seed in range(4)]
    members = [constrain(params, spec) for params in models]
    free, static = stacked(members)
    out = vmap(members[0].forward)(free, static)
    for i, params in enumerate(models):
        for a, b in zip(tree_leaves(out), tree_leaves(params), strict=True):
            assert torch.allclose(a[i], b, rtol=0, atol=1e-5)  # as above
    back = vmap(members[0].right_inverse)(out, static)
    assert torch.allclose(back["layers"][0].weight, free["layers"][0].weight, atol=1e-4)
    # The constraints batch over leading dimensions, so a stack is also a plain input.
    plain = members[0].forward(free, static)
    assert torch.allclose(plain["layers"][1].weight, out["layers"][1].weight, atol=1e-6)


def test_a_stacked_side_with_an_unstacked_one_raises():
    members = [constrain(orthogonal(3, 3, seed), Orthogonal()) for seed in range(2)]
    free, static = stacked(members)
    space = members[0]
    for one, other in ((free, None), (free, space.static), (space.free, static)):
        with pytest.raises(ConstraintError, match="be stacked as its static is"):
            space.forward(one, other)
    with pytest.raises(ConstraintError, match="be stacked as its static is"):
        vmap(space.forward, in_dims=(0, None))(free, static)
    with pytest.raises(ConstraintError, match="stacked"):
        space.right_inverse(torch.stack([torch.eye(3)] * 2))


def test_a_space_of_a_stack_inside_vmap_is_told_to_be_of_one_member():
    stack = torch.stack([torch.eye(3)] * 2)
    space = constrain(stack, Orthogonal())
    for method, value in ((space.forward, space.free), (space.right_inverse, stack)):
        with pytest.raises(ConstraintError, match="Inside vmap, use the space of one"):
            vmap(method)(value)


@pytest.mark.compile
def test_a_space_compiles_and_differentiates():
    space = constrain(model(), {"layers.*.weight": Orthogonal()})

    def loss(free, static):
        return sum(
            leaf.exp().sum() for leaf in tree_leaves(space.forward(free, static))
        )

    want = grad(loss)(space.free, space.static)
    compiled = torch.compile(grad(loss), fullgraph=True, backend="aot_eager")
    got = compiled(space.free, space.static)
    for a, b in zip(tree_leaves(got), tree_leaves(want), strict=True):
        # The same kernels in the same order: a few float32 roundings.
        assert bool(a.any())
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def weight_norm_space():
    """A leaf whose free value is itself a tree, before and after other leaves."""
    w = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    params = {"a": torch.zeros(1), "layer": Layer(w, torch.ones(2)), "q": torch.eye(3)}
    return params, constrain(params, {"layer.weight": WeightNorm(), "q": Orthogonal()})


def test_a_free_value_may_be_a_tree():
    params, space = weight_norm_space()
    parts = space.free["layer"].weight
    assert isinstance(parts, WeightNormParts)
    assert torch.equal(parts.magnitude, torch.tensor([5.0, 2.0]))
    assert all(leaf.is_contiguous() for leaf in tree_leaves(space.free))
    back = space.forward(space.free)
    assert isinstance(back["layer"], Layer)
    for a, b in zip(tree_leaves(back), tree_leaves(params), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)  # a few float32 roundings
    again = space.right_inverse(back)
    for a, b in zip(tree_leaves(again), tree_leaves(space.free), strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)  # as above
    assert list(space.static) == ["layer.weight", "q"]


def test_a_tree_of_free_values_trains_under_vmap_and_says_what_does_not_fit():
    params, space = weight_norm_space()
    free, static = stacked([space, space])
    out = vmap(space.forward)(free, static)
    assert out["layer"].weight.shape == (2, 2, 2)
    step = make_step(lambda p: p["layer"].weight.square().sum(), SGD(0.1), space=space)
    carry, _ = step(step.init(params))
    # d |g v/|v||^2 = 2 g dg: only magnitudes have a gradient.
    want = torch.tensor([4.0, 1.6])
    assert torch.allclose(carry.free["layer"].weight.magnitude, want, rtol=1e-6)
    direction = carry.free["layer"].weight.direction
    assert torch.allclose(direction, space.free["layer"].weight.direction, atol=1e-6)

    def swapped(**parts):
        weight = space.free["layer"].weight._replace(**parts)
        return {**space.free, "layer": space.free["layer"]._replace(weight=weight)}

    with pytest.raises(ConstraintError, match=r"free\['layer.weight.magnitude'\]"):
        space.forward(swapped(magnitude=torch.ones(3)))
    with pytest.raises(ConstraintError, match="be stacked as its static is"):
        space.forward(swapped(magnitude=torch.ones(4, 2)))
    with pytest.raises(TreeError, match=r"`NoneType` at 'layer.weight.direction'"):
        space.forward(swapped(direction=None))
    with pytest.raises(TreeError, match=r"a difference at 'layer.weight"):
        space.forward({**space.free, "layer": params["layer"]})
    with pytest.raises(TreeError, match=r"hold only tensors.*'layer.weight'"):
        space.right_inverse(space.free)


def test_a_product_is_a_spec_of_its_leaves():
    params = {"a": {"w": torch.eye(2), "[*]": torch.eye(2)}, "b": torch.eye(2)}
    parts = Product({"w": Orthogonal(), "[*]": Symmetric()})
    assert constrain(params, {"a": parts}).constraints == {
        "a.w": Orthogonal(),
        "a.[*]": Symmetric(),
    }
    whole = constrain(params, Product({"a": parts}))
    assert list(whole.constraints) == ["a.w", "a.[*]"]
    pair = constrain((torch.eye(2), torch.eye(2)), Product((Orthogonal(), Symmetric())))
    assert pair.constraints == {"0": Orthogonal(), "1": Symmetric()}
    with pytest.raises(ConstraintError, match="match the path of a leaf"):
        constrain(params, Product({"c": Orthogonal()}))


def test_training_moves_along_the_set():
    target = orthogonal(5, 3, seed=1)
    space = constrain(orthogonal(5, 3, seed=0), Orthogonal())

    def loss(free):
        return (space.forward(free) - target).square().sum()

    free = space.free
    for _ in range(200):
        free = free * (1 - 1e-3) - 0.1 * grad(loss)(free)  # with weight decay
    assert bool(Orthogonal().check(space.forward(free)))
    # The decay pulls away from the target; without a gradient nothing would fall.
    assert float(loss(free)) < 0.25 * float(loss(space.free))


def test_structure_works_without_data():
    space = constrain({"w": torch.eye(5, 3, device="meta")}, {"w": Orthogonal()})
    assert space.free["w"].shape == (9,)
    assert space.forward(space.free)["w"].is_meta


# --- what the errors say


def message(error, *args) -> str:
    with pytest.raises(error) as info:
        constrain(*args)
    return str(info.value)


def test_a_matrix_off_the_set_is_named_measured_and_shown_the_way_out():
    told = message(
        ConstraintError, {"a": {"w": 2 * torch.eye(3)}}, {"a.w": Orthogonal()}
    )
    assert told == (
        "`constrain(params['a.w'])` must satisfy Orthogonal(): "
        "max|Y^T Y - I| (Y Y^T if wide) <= 3.6e-06, got 3. For the nearest point call "
        "`Orthogonal().project(params['a.w'])`, or choose another constraint."
    )
    told = message(ConstraintError, torch.ones(2, 2), Skew() >> Cayley())
    assert "must satisfy Skew() >> Cayley(): max|Y^T Y - I| <= 2.4e-06, got 2" in told
    assert "`(Skew() >> Cayley()).project(params)`" in told


@pytest.mark.parametrize(
    ("constraint", "chain"),
    [
        (Cayley(), r"`Skew\(\) >> Cayley\(\)`"),
        (LogEuclidean(), r"`Symmetric\(\) >> LogEuclidean\(\)`"),
    ],
    ids=str,
)
def test_a_constraint_that_takes_structured_values_is_refused(constraint, chain):
    # A step of an optimizer would take a skew matrix off the skew ones.
    with pytest.raises(ConstraintError, match=rf"params\['w'\]\).* Write {chain}"):
        constrain({"w": torch.eye(2)}, constraint)


def test_the_worst_matrix_of_a_batch_is_reported():
    batch = torch.stack([torch.eye(2), 2 * torch.eye(2), 3 * torch.eye(2)])
    told = message(ConstraintError, batch, Orthogonal())
    assert "got 8 in the worst of 3 matrices" in told


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_nan_is_called_nan(value):
    w = torch.eye(3)
    w[0, 0] = value
    told = message(ConstraintError, {"w": w}, {"w": Orthogonal()})
    assert "params['w']" in told
    assert "not finite" in told


def test_a_shape_that_does_not_fit_says_which_do():
    told = message(ConstraintError, {"b": torch.ones(3)}, {"b": Orthogonal()})
    assert told == (
        "`constrain(params['b'])` must have a shape (..., n, k) with every size at least "
        "1, as a matrix with orthonormal columns (rows, if it is wide), got (3,)."
    )
    told = message(ConstraintError, torch.ones(2, 3), Symmetric())
    assert "must have a shape (..., n, n)" in told
    assert "got (2, 3)" in told


def test_a_bare_constraint_on_a_tree_says_how_to_leave_leaves_out():
    params = {"w": torch.eye(3), "b": torch.zeros(3)}
    told = message(ConstraintError, params, Orthogonal())
    assert told.startswith("`constrain(params['b'])` must have a shape (..., n, k)")
    assert told.endswith(
        "pass a dict of globs: `{'*weight': constraint}`."  # how to go on
    )
    alone = message(ConstraintError, {"b": torch.zeros(3)}, {"b": Orthogonal()})
    assert "globs" not in alone
    # A shape that only the constraint knows to be wrong is told with its path.
    wrong = message(ConstraintError, {"x": torch.ones(3)}, {"x": masked_pair()})
    assert wrong.startswith("`constrain(params['x'])` must have")


def masked_pair():
    return Masked(torch.tensor([True, False]))


def test_a_projection_is_only_suggested_where_there_is_one():
    params = {"w": torch.full((2, 2), 3.0)}
    reachable = Skew() >> Cayley()
    assert ".project(params['w'])" in message(ConstraintError, params, {"w": reachable})
    for lacking in (Unprojected(), Symmetric() >> Box(-1.0, 1.0)):
        told = message(ConstraintError, params, {"w": lacking})
        assert ".project(" not in told
        assert told.endswith("Begin with a value of the set, or choose another "
                             "constraint.")  # fmt: skip


def test_a_value_outside_the_set_of_an_earlier_link_is_told():
    # In the interval entry by entry, but not the image of a symmetric matrix.
    params = {"w": torch.tensor([[0.5, 0.5], [0.1, 0.5]])}
    told = message(ConstraintError, params, {"w": Symmetric() >> Box(-1.0, 1.0)})
    assert "outside the set of a link before" in told


def test_a_glob_that_matches_nothing_lists_near_names():
    params = {"layers": {"0": {"weight": torch.eye(2)}}, "head": torch.eye(2)}
    told = message(ConstraintError, params, {"layer.0.weight": Orthogonal()})
    assert told.startswith("`constrain(params, spec['layer.0.weight'])` must match")
    assert "Near names: 'layers.0.weight'" in told
    told = message(ConstraintError, params, {"zzz": Orthogonal()})
    assert "Near names: 'layers.0.weight', 'head'" in told
    told = message(ConstraintError, torch.eye(2), {"w": Orthogonal()})
    assert "`params` is one tensor: pass the constraint itself" in told


def test_wrong_leaves_and_specs_raise():
    assert "int64 at 'n'" in message(
        TreeError, {"n": torch.tensor(1)}, {"n": Orthogonal()}
    )
    assert "`NoneType` at 'n'" in message(TreeError, {"n": None}, {"n": Orthogonal()})
    assert "empty tree" in message(TreeError, {}, {})
    told = message(ConstraintError, {"w": torch.eye(2)}, {"w": Orthogonal})
    assert "spec['w'])` must be a constraint" in told
    assert "got `Orthogonal`. Pass an instance: `Orthogonal()`." in told


def test_other_trees_raise_with_the_path():
    space = constrain({"w": torch.eye(3), "b": torch.zeros(3)}, {"w": Orthogonal()})
    wrong = space.static["w"]._replace(signs=torch.ones(2, dtype=torch.int8))
    with pytest.raises(TreeError, match=r"Space.forward.*a difference at 'b'"):
        space.forward({"w": torch.zeros(3)})
    with pytest.raises(TreeError, match=r"hold only tensors.*`NoneType` at 'b'"):
        space.forward({"w": torch.zeros(3), "b": None})
    with pytest.raises(TreeError, match=r"keys of `space.static`.*'w'"):
        space.forward(space.free, {})
    with pytest.raises(ConstraintError, match=r"free\['w'\].*have shape \(3,\)"):
        space.forward({"w": torch.zeros(4), "b": torch.zeros(3)})
    with pytest.raises(ConstraintError, match=r"static\['w'\].*structure"):
        space.forward(space.free, {"w": torch.ones(3)})
    with pytest.raises(ConstraintError, match=r"static\['w'\].*have shape \(3,\)"):
        space.forward(space.free, {"w": wrong})


def test_the_weight_of_a_convolution_is_told_of_matricized():
    weight = torch.ones(4, 3, 2, 2)
    with pytest.raises(ConstraintError, match=r"Matricized\(Orthogonal\(\), rows=-4, "):
        constrain(weight, Orthogonal())
    with pytest.raises(ConstraintError) as info:
        constrain(torch.ones(3, 2, 2), Orthogonal())
    assert "Matricized" not in str(info.value)
