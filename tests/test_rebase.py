"""Moving charts: `Space.rebind`, what `Transport` carries over, and `Step.rebase`."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import torch
from torch.func import grad, jacrev, jvp, vmap

import pureopt as po
from pureopt import PureoptError, TreeError
from pureopt._tree import ravel, tree_leaves, tree_map
from pureopt.constraints import (
    Cayley,
    Constraint,
    Exponential,
    Grassmann,
    Householder,
    Orthogonal,
    SimplexSoftmax,
    Skew,
    SpecialOrthogonal,
    Sphere,
    Symmetric,
    Symplectic,
    Unitary,
    UnitColumns,
    WeightNorm,
)
from tests.constraints.rows_orthogonal import haar


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(n, angle, seed=0):
    """A rotation of a random plane."""
    turn = torch.eye(n, dtype=torch.float64)
    c, s = math.cos(angle), math.sin(angle)
    turn[:2, :2] = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
    q = haar(n, (), gen(seed))
    return q @ turn @ q.mT


def drifted(y: torch.Tensor, constraint: Constraint, scale=1.7, seed=1):
    """A space, and free values away from where its charts were bound."""
    params = {"w": y, "b": torch.ones(2, dtype=y.dtype)}
    space = po.constrain(params, {"w": constraint})
    noise = gen(seed)
    free = tree_map(
        lambda t: (
            scale * t
            + 0.3
            * torch.randn(t.shape, generator=noise, dtype=torch.float64).to(t.dtype)
        ),
        space.free,
    )
    return space, free


def loss_of(space, seed=2):
    """A function of the parameters without symmetries."""
    weights = torch.randn(
        space.shapes["w"], generator=gen(seed), dtype=torch.float64
    ).to(tree_leaves(space.free)[0].dtype)

    def loss(free, static):
        params = space.forward(free, static)
        w = params["w"]
        return (weights * (w + w * w)).sum() + params["b"].square().sum()

    return loss


POINTS = {
    "orthogonal": (haar(4, (), gen()), Orthogonal()),
    "tall": (haar(6, (), gen())[:, :3], Orthogonal()),
    "wide": (haar(6, (), gen())[:3], Orthogonal()),
    "stack": (haar(3, (4,), gen()), Orthogonal()),
    "chain": (haar(4, (), gen()), Skew() >> Cayley()),
    "householder": (haar(6, (), gen())[:, :3], Orthogonal(Householder())),
    "exponential": (haar(4, (), gen()), Orthogonal(Exponential())),
    "rotation": (rotation(4, 1.0), SpecialOrthogonal()),
    "unitary": (
        torch.view_as_real(torch.diag(torch.tensor([1, 1j, -1], dtype=torch.cdouble))),
        Unitary(),
    ),
    "sphere": (haar(5, (), gen())[0], Sphere()),
    "columns": (haar(4, (), gen()), UnitColumns()),
}


@pytest.mark.parametrize("name", POINTS)
def test_a_transported_gradient_is_the_gradient_in_the_new_chart(name):
    space, old = drifted(*POINTS[name])
    loss = loss_of(space)
    new, static, transport = space.rebind(old)
    assert bool(transport.moved["w"])
    before, after = grad(loss)(old, space.static), grad(loss)(new, static)
    # The chain rule is exact; rounding is eps times the conditioning of the charts.
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(transport(before), after, **close)
    params, moved = space.forward(old), space.forward(new, static)
    torch.testing.assert_close(moved, params, rtol=0, atol=1e-13)
    torch.testing.assert_close(transport.points(old), new, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", POINTS)
def test_a_transported_tangent_moves_the_parameters_alike(name):
    space, old = drifted(*POINTS[name])
    new, static, transport = space.rebind(old)
    tangent = tree_map(
        lambda t: torch.randn(t.shape, generator=gen(5), dtype=torch.float64), old
    )

    def velocity(free, static, tangent):
        return jvp(lambda free: space.forward(free, static), (free,), (tangent,))[1]

    before = velocity(old, space.static, tangent)
    after = velocity(new, static, transport.tangents(tangent))
    # As above.
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


def test_pairings_of_gradients_and_tangents_do_not_change():
    space, old = drifted(*POINTS["tall"])
    _, _, transport = space.rebind(old)
    g = tree_map(torch.ones_like, old)
    v = tree_map(lambda t: torch.linspace(-1, 1, t.numel()).to(t), old)
    before = ravel(g) @ ravel(v)
    after = ravel(transport(g)) @ ravel(transport.tangents(v))
    # An identity of adjoints: eps times sums of order ten.
    torch.testing.assert_close(after, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_where_the_right_inverse_has_no_slope_tangents_are_forgotten(k):
    # Of a tall exponential at its base: equal singular values, but for k = 1.
    space, old = drifted(haar(6, (), gen())[:, :k], Orthogonal(Exponential()))
    new, static, transport = space.rebind(old)
    before, after = (
        grad(loss_of(space))(*chart) for chart in ((old, space.static), (new, static))
    )
    # As above, for gradients: their slope is that at the old free value.
    torch.testing.assert_close(transport(before), after, rtol=1e-12, atol=1e-12)
    tangents = tree_map(torch.ones_like, old)
    moved = transport.tangents(tangents)["w"]
    assert (k == 1) == bool(moved.abs().max() > 0)


def test_a_chart_of_subspaces_transports_gradients_of_subspaces():
    space, old = drifted(haar(6, (), gen())[:, :3], Grassmann())
    weights = torch.randn(6, 6, generator=gen(3), dtype=torch.float64)

    def loss(free, static):
        w = space.forward(free, static)["w"]
        return (weights * (w @ w.mT)).sum()

    new, static, transport = space.rebind(old)
    before, after = grad(loss)(old, space.static), grad(loss)(new, static)
    # The polar factor of the gauge is accurate to some eps times its condition.
    torch.testing.assert_close(transport(before), after, rtol=1e-10, atol=1e-10)


@dataclass(frozen=True)
class SignedDirection(Constraint):
    """``D x / |x|`` with static signs: redundant by the length of ``x``, with data."""

    domain = codomain = Sphere().codomain
    bijective = False
    rule = Sphere().rule

    def dim(self, shape):
        return shape[-1] - 1

    def radius(self, n, dtype):
        return 1e6

    def bind(self, y):
        return torch.where(y < 0, -1, 1).to(torch.int8)

    def forward(self, x, static=()):
        y = x / x.square().sum(-1, keepdim=True).sqrt()
        return y if isinstance(static, tuple) else torch.where(static > 0, y, -y)

    def right_inverse(self, y, static=()):
        y = y / y.square().sum(-1, keepdim=True).sqrt()
        return y if isinstance(static, tuple) else torch.where(static > 0, y, -y)

    def violation(self, y):
        return Sphere().violation(y)

    def tolerance(self, y):
        return Sphere().tolerance(y)


def test_redundant_maps_transport_gradients_whatever_the_null_directions_did():
    y = haar(5, (3,), gen())[:, 0]
    space = po.constrain({"w": y, "b": torch.ones(2)}, {"w": SignedDirection()})
    # Each vector drifts by a factor of its own, along the null direction of the map.
    factors = torch.tensor([[0.1], [3.0], [40.0]], dtype=torch.float64)
    turned = space.free["w"] + 0.5 * torch.randn(3, 5, generator=gen(2)).double()
    old = {**space.free, "w": factors * turned}
    loss = loss_of(space)
    new, static, transport = space.rebind(old)
    before, after = grad(loss)(old, space.static), grad(loss)(new, static)
    # The naive vjp misses by the factors; three factors take three steps of the four.
    torch.testing.assert_close(transport(before), after, rtol=1e-9, atol=1e-9)
    naive = transport.new[0]["w"].norm(dim=-1) / old["w"].norm(dim=-1)
    assert float((naive - 1).abs().max()) > 0.9


def test_a_gradient_that_cannot_be_moved_is_forgotten_not_wrong():
    # Eight factors, where four steps are taken.
    y = haar(5, (8,), gen())[:, 0]
    space = po.constrain({"w": y, "b": torch.ones(2)}, {"w": SignedDirection()})
    factors = torch.logspace(-2, 2, 8, dtype=torch.float64)[:, None]
    turned = space.free["w"] + 0.5 * torch.randn(8, 5, generator=gen(2)).double()
    many = space, {**space.free, "w": factors * turned}
    # Beyond the radius, where the old chart has no right inverse but the new one has.
    beyond = drifted(torch.eye(3), Orthogonal(), 1.0)
    beyond[1]["w"] = torch.tensor([80.0, -60.0, 70.0])
    for space, old in (many, beyond):
        loss = loss_of(space)
        _, _, transport = space.rebind(old)
        assert bool(transport.moved["w"])
        before = grad(loss)(old, space.static)
        assert float(before["w"].abs().max()) > 0
        after = transport(before)
        assert float(after["w"].abs().max()) == 0
        assert torch.equal(after["b"], before["b"])


def test_one_chart_only_stays_as_it_is_to_the_bit():
    params = {
        "s": torch.eye(3),
        "p": torch.full((3,), 1 / 3),
        "v": torch.ones(2, 2),
        "b": torch.ones(2),
    }
    spec = {"s": Symmetric(), "p": SimplexSoftmax(), "v": WeightNorm()}
    space = po.constrain(params, spec)
    free = tree_map(lambda t: 3 * t + 1, space.free)
    new, static, transport = space.rebind(free)
    assert transport.moved == {}
    for tree in (
        new,
        transport(free),
        transport.points(free),
        transport.tangents(free),
    ):
        assert all(map(torch.equal, tree_leaves(tree), tree_leaves(free)))
    assert list(static) == list(space.static)


def test_a_leaf_that_no_chart_holds_stays_and_the_others_move():
    params = {"a": haar(3, (), gen()), "c": haar(3, (), gen(1))}
    space = po.constrain(params, Orthogonal())
    free = {"a": space.free["a"] * torch.nan, "c": 3 * space.free["c"]}
    new, static, transport = space.rebind(free)
    assert bool(new["a"].isnan().all())
    assert torch.equal(static["a"].signs, space.static["a"].signs)
    assert (bool(transport.moved["a"]), bool(transport.moved["c"])) == (False, True)
    ones = tree_map(torch.ones_like, free)
    assert torch.equal(transport(ones)["a"], ones["a"])
    assert not torch.equal(transport(ones)["c"], ones["c"])


def test_rebinding_again_changes_nothing():
    space, old = drifted(*POINTS["orthogonal"], scale=20.0)
    new, static, _ = space.rebind(old)
    assert float(new["w"].abs().max()) < 4 < float(old["w"].abs().max())
    again, same, _ = space.rebind(new, static)
    torch.testing.assert_close(again, new, rtol=0, atol=1e-13)  # some n eps max|A|
    assert torch.equal(same["w"].signs, static["w"].signs)


def test_another_tree_raises():
    space, old = drifted(*POINTS["orthogonal"])
    _, _, transport = space.rebind(old)
    with pytest.raises(TreeError, match=r"transport\(gradients\).*no 'b'"):
        transport({"w": old["w"]})
    with pytest.raises(TreeError, match=r"transport\(points\).*shapes"):
        transport.points({**old, "w": old["b"]})
    with pytest.raises(TreeError, match=r"rebind\(free=...\).*'b'"):
        space.rebind({"w": old["w"]})


def test_an_ensemble_rebinds_each_member_in_its_chart():
    ys = haar(3, (4,), gen())
    space = po.constrain(ys[0], Orthogonal())
    static = po.constrain(ys, Orthogonal()).static
    free = 5 * torch.randn(4, 3, generator=gen(1), dtype=torch.float64)
    g = torch.randn(4, 3, generator=gen(2), dtype=torch.float64)

    def move(free, static, g):
        new, chart, transport = space.rebind(free, static)
        return new, chart, transport(g)

    got = vmap(move)(free, static, g)
    for i in range(4):
        one = tree_map(lambda t, i=i: t[i], (free, static, g))
        pairs = zip(tree_leaves(got), tree_leaves(move(*one)), strict=True)
        for mapped, alone in pairs:
            # Batched kernels may add in another order.
            torch.testing.assert_close(mapped[i], alone, rtol=1e-12, atol=1e-12)


def test_low_precision_leaves_keep_the_dtypes_of_moments():
    space = po.constrain(torch.eye(3).bfloat16(), Orthogonal())
    free = torch.tensor([4.0, -3.0, 2.0]).bfloat16()
    new, _, transport = space.rebind(free)
    assert new.dtype == torch.bfloat16
    moved = transport(torch.ones(3))
    assert moved.dtype == torch.float32
    assert bool(moved.isfinite().all())


# --- the states of transforms


def rotating_step(transform, target=None, n=3):
    target = rotation(n, 2.0) if target is None else target
    space = po.constrain(torch.eye(n, dtype=target.dtype), Orthogonal())
    return po.make_step(
        lambda w: (w - target).square().sum(), transform, space=space
    ), torch.eye(n, dtype=target.dtype)


TRANSFORMS = {
    "sgd": po.SGD(0.05, momentum=0.9, nesterov=True),
    "plain": po.SGD(0.05),
    "adam": po.Adam(0.1),
    "adamw": po.AdamW(0.1),
    "scheduled": po.Adam(lambda step: 0.1 / (1 + step.float() / 50)),
    "clipped": po.ClipByGlobalNorm(0.5) >> po.AdamW(0.1),
    "ema": po.EMA(po.Adam(0.1), decay=0.9),
    "clipped-ema": po.ClipByGlobalNorm(0.5) >> po.EMA(po.SGD(0.05, 0.9), decay=0.5),
    "lbfgs": po.LBFGS(memory=3),
    "ema-lbfgs": po.EMA(po.LBFGS(memory=3), decay=0.5),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_rebasing_keeps_the_answer_and_the_structure_of_the_carry(name):
    step, start = rotating_step(TRANSFORMS[name])
    carry = step.init(start)
    for _ in range(7):
        carry, _ = step(carry)
    before = [(t, t.clone()) for t in tree_leaves(carry)]
    rebased = step.rebase(carry)
    assert all(torch.equal(t, copy) for t, copy in before)
    # A round trip of order-one free numbers: some n eps.
    torch.testing.assert_close(
        step.params(rebased), step.params(carry), rtol=0, atol=1e-13
    )
    assert type(rebased.state) is type(carry.state)
    for a, b in zip(tree_leaves(rebased), tree_leaves(carry), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    first = float(step(carry)[1]["loss"])
    for _ in range(150):
        rebased, metrics = step(rebased)
    assert float(metrics["loss"]) < first / 4


@pytest.mark.parametrize(
    "constraint", [Orthogonal(), Orthogonal(Exponential()), Symplectic()], ids=str
)
def test_a_rebased_carry_looks_to_a_compiled_step_like_the_first(constraint):
    eye = torch.eye(4, dtype=torch.float64)
    space = po.constrain({"w": eye}, {"w": constraint})
    step = po.make_step(lambda p: p["w"].square().sum(), po.Adam(0.1), space=space)
    carry = step.init({"w": eye})
    # A compiled step guards what is the same object, and strides: none may be lost.
    pairs = zip(tree_leaves(carry.static), tree_leaves(space.static), strict=True)
    assert carry.static is not space.static
    assert not any(a is b for a, b in pairs)
    carry, _ = step(carry._replace(free={"w": carry.free["w"] + 0.3}))
    rebased = step.rebase(carry)
    assert not torch.equal(rebased.free["w"], carry.free["w"])
    for a, b in zip(tree_leaves(rebased), tree_leaves(carry), strict=True):
        assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride())


def test_momentum_is_transported_and_the_step_count_goes_on():
    step, start = rotating_step(po.SGD(0.05, momentum=0.9))
    carry = step.init(start)
    for _ in range(5):
        carry, _ = step(carry)
    # From another chart than that of the answer.
    carry = carry._replace(free=carry.free + 3)
    _, _, transport = step.space.rebind(carry.free, carry.static)
    rebased = step.rebase(carry)
    assert torch.equal(rebased.state.mu, transport(carry.state.mu))
    assert not torch.allclose(rebased.state.mu, carry.state.mu)
    assert int(rebased.state.step) == 5


@pytest.mark.parametrize("make", [po.Adam, po.AdamW])
def test_adam_goes_on_like_a_fresh_optimizer_that_has_seen_the_mean_gradient(make):
    space, old = drifted(*POINTS["orthogonal"])
    adam = make(0.1, betas=(0.8, 0.99), weight_decay=0.0)
    g = grad(loss_of(space))
    state = adam.init(old)
    params = old
    for _ in range(6):
        params, state = adam.step(params, state, g(params, space.static))
    new, _, transport = space.rebind(params)
    rebased = adam.rebase(state, new, transport)
    mean = transport(tree_map(lambda m: m / (1 - 0.8**6), state.mu))
    fresh = adam.init(new)
    _, fresh = adam.step(new, fresh, mean)
    torch.testing.assert_close(rebased.mu, fresh.mu, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(rebased.nu["w"], fresh.nu["w"], rtol=1e-12, atol=1e-14)
    assert int(rebased.seen) == int(fresh.seen) == 1
    assert int(rebased.step) == 6
    # The leaf without a constraint keeps its second moment, bias-corrected.
    kept = rebased.nu["b"] / (1 - 0.99)
    torch.testing.assert_close(kept, state.nu["b"] / (1 - 0.99**6), rtol=1e-12, atol=0)
    # No step is longer than the first ones of a fresh Adam: |m + g'| / sqrt(m^2 + g'^2)
    # with weights (0.8, 1) / 1.8 and (0.99, 1) / 1.99, at most 1.42 by Cauchy-Schwarz.
    for scale in (1e-6, 1.0, 1e6):
        gradient = tree_map(lambda t, k=scale: k * (t + 0.1), new)
        after, _ = adam.step(new, rebased, gradient)
        assert float((ravel(after) - ravel(new)).abs().max()) <= 0.1 * 1.5


def test_a_schedule_goes_on_where_it_was():
    seen = []

    def schedule(step):
        seen.append(int(step))
        return 0.1 / (1 + step.double())

    step, start = rotating_step(po.Adam(schedule))
    carry = step.init(start)
    for i in range(6):
        carry, _ = step(carry)
        if i == 3:
            carry = step.rebase(carry)
    assert seen == [0, 1, 2, 3, 4, 5]


def test_rebasing_before_the_first_step_is_a_fresh_state():
    step, start = rotating_step(po.Adam(0.1))
    carry = step.rebase(step.init(start))
    fresh = step.transform.init(carry.free)
    assert all(map(torch.equal, tree_leaves(carry.state), tree_leaves(fresh)))


def test_an_average_without_a_place_in_the_new_chart_begins_anew():
    space, old = drifted(*POINTS["orthogonal"])
    ema = po.EMA(po.SGD(0.1))
    state = ema.init(old)
    new, _, transport = space.rebind(old)
    lost = state._replace(ema={**state.ema, "w": state.ema["w"] * torch.inf})
    rebased = ema.rebase(lost, new, transport)
    assert torch.equal(rebased.ema["w"], new["w"])
    assert torch.equal(rebased.ema["b"], state.ema["b"])


def test_a_search_goes_on_from_its_accepted_iterate():
    step, start = rotating_step(po.LBFGS())
    carry = step.init(start)
    for _ in range(4):
        carry, _ = step(carry)
    # A trial far off: the next evaluation must not be there.
    carry = carry._replace(free=carry.free + 1e3)
    rebased = step.rebase(carry)
    _, metrics = step(rebased)
    accepted = step.params(carry)
    want = step.loss_fn(accepted)
    # The value at the same point up to its rounding.
    torch.testing.assert_close(metrics["loss"], want, rtol=1e-11, atol=1e-13)


def test_without_a_space_there_is_nothing_to_rebase():
    step = po.make_step(lambda w: w.square().sum(), po.SGD(0.1))
    with pytest.raises(PureoptError, match="be called on a step with a space"):
        step.rebase(step.init(torch.ones(2)))


def test_a_transform_of_ones_own_starts_afresh():
    class Counting(po.Transform):
        def init(self, params):
            return torch.zeros((), dtype=torch.int64)

        def step(self, params, state, grads, *, value=None):
            return tree_map(lambda p, g: p - 0.1 * g, params, grads), state + 1

    step, start = rotating_step(Counting())
    carry, _ = step(step.init(start))
    assert int(carry.state) == 1
    assert int(step.rebase(carry).state) == 0


# --- why


def distance(transform, every, steps, n=3):
    """How far training from the identity ends from a rotation by 0.999 pi."""
    target = rotation(n, 0.999 * math.pi)
    step, start = rotating_step(transform, target, n)
    carry = step.init(start)
    for i in range(steps):
        carry, _ = step(carry)
        if every and i % every == every - 1:
            carry = step.rebase(carry)
    return float((step.params(carry) - target).square().sum())


@pytest.mark.slow
def test_rebasing_reaches_a_rotation_that_a_fixed_chart_does_not():
    # The gradient of a Cayley chart falls as 1/s^2 with the scale s: from the identity,
    # 1500 steps of Adam end at a loss of 0.16 without (geotorch, torch: the same map).
    assert distance(po.Adam(0.05), 0, 1500) > 0.1
    # Two charts of 300 steps: the second one is bound near the target.
    assert distance(po.Adam(0.05), 300, 600) < 1e-12


def test_rebasing_often_does_not_disturb_adam():
    # Each rebase begins the second moments anew, so the loss only comes down to steps
    # of lr: a few of them in each of three directions.
    assert distance(po.Adam(0.05), 10, 300) < 0.05
    assert distance(po.SGD(0.1, momentum=0.5), 10, 300) < 1e-6


@pytest.mark.compile
def test_a_compiled_rebase_of_an_ensemble_is_the_eager_one():
    ys = haar(3, (2,), gen())
    space = po.constrain({"w": ys[0]}, {"w": Orthogonal()})
    static = po.constrain({"w": ys}, {"w": Orthogonal()}).static
    target = ys.flip(0)
    chain = po.ClipByGlobalNorm(1.0) >> po.EMA(po.Adam(0.1), decay=0.5)
    step = po.make_step(lambda p, t: (p["w"] - t).square().sum(), chain, space=space)
    init = vmap(lambda y, s: step.init({"w": y}, static=s))
    carry = init(ys, static)
    carry, _ = vmap(step)(carry, target)
    compiled = torch.compile(vmap(step.rebase), fullgraph=True, backend="aot_eager")
    want = vmap(step.rebase)(carry)
    for a, b in zip(tree_leaves(compiled(carry)), tree_leaves(want), strict=True):
        # The same kernels up to decompositions: roundings of order-one numbers.
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    again = step.rebase(tree_map(lambda t: t[0], carry))
    first = tree_map(lambda t: t[0], want)
    for a, b in zip(tree_leaves(again), tree_leaves(first), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.compile
def test_a_compiled_transport_of_a_redundant_map_and_of_tangents_is_the_eager_one():
    space, old = drifted(haar(5, (3,), gen())[:, 0], SignedDirection())

    def carry_over(free, static, g):
        new, chart, transport = space.rebind(free, static)
        return new, chart, transport(g), transport.tangents(g), transport.points(free)

    args = (old, space.static, tree_map(torch.ones_like, old))
    compiled = torch.compile(carry_over, fullgraph=True, backend="aot_eager")
    pairs = zip(
        tree_leaves(compiled(*args)), tree_leaves(carry_over(*args)), strict=True
    )
    for a, b in pairs:
        # As above.
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_a_rebase_can_be_differentiated():
    step, start = rotating_step(po.SGD(0.05, momentum=0.9))
    carry = step(step.init(start))[0]

    def params_after(free):
        moved = step.rebase(carry._replace(free=free))
        return step.params(moved)

    # The parameters do not change, so neither does their derivative.
    want = jacrev(lambda free: step.params(carry._replace(free=free)))(carry.free)
    got = jacrev(params_after)(carry.free)
    # eps times the conditioning of two round trips.
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-11)
