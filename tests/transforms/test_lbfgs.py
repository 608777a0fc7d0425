"""L-BFGS: its memory, its search, its statuses, and what it may be used in."""

from __future__ import annotations

import math

import pytest
import torch
from torch.func import grad_and_value, jacfwd, jacrev, vmap

import pureopt as po
from benchmarks.mgh import PROBLEMS
from benchmarks.syncs import SyncCounter
from pureopt.transforms._lbfgs import NOISE
from pureopt.transforms._quasi_newton import (
    compact,
    empty_memory,
    forget,
    norm,
    products,
    remember,
    two_loop,
)

F64 = torch.float64


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def run(fn, x, solver=None, steps=1000, gtol=1e-8):
    """Iterate by hand: evaluations, the final state, and the trial point."""
    solver = solver or po.LBFGS()
    state = solver.init(x)
    for k in range(1, steps + 1):
        grads, value = grad_and_value(fn)(x)
        x, state = solver.step(x, state, grads, value=value)
        if state.accepted and state.grads.abs().amax() <= gtol:
            return k, state, x
        if state.status != po.Status.RUNNING:
            return k, state, x
    return steps, state, x


# The memory


def random_pairs(n, k, seed, dtype=F64):
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(n, n, generator=generator, dtype=F64)
    hessian = root @ root.T + torch.eye(n, dtype=F64)
    s = torch.randn(k, n, generator=generator, dtype=F64)
    g = torch.randn(n, generator=generator, dtype=F64)
    return s.to(dtype), (s @ hessian).to(dtype), g.to(dtype)


def dense_bfgs(s, y, m):
    """The inverse Hessian by the textbook update, started from gamma I."""
    s, y = s[-m:].double(), y[-m:].double()
    eye = torch.eye(s.shape[1], dtype=F64)
    h = (s[-1] @ y[-1]) / (y[-1] @ y[-1]) * eye if len(s) else eye
    for si, yi in zip(s, y, strict=True):
        rho = 1 / (si @ yi)
        v = eye - rho * torch.outer(yi, si)
        h = v.T @ h @ v + rho * torch.outer(si, si)
    return h


@pytest.mark.parametrize("form", [compact, two_loop], ids=["compact", "two_loop"])
@pytest.mark.parametrize("pairs", [0, 1, 3, 4, 7])
def test_directions_equal_the_dense_update(form, pairs):
    s, y, g = random_pairs(6, pairs, seed=pairs)
    memory = empty_memory(g, 4, form)
    yes = torch.ones((), dtype=torch.bool)
    for si, yi in zip(s, y, strict=True):
        memory = remember(memory, si, yi, yes)
        memory = remember(memory, si + 1, yi - 1, ~yes)
    expected = dense_bfgs(s, y, 4) @ g
    # Rounding grows with the condition number of the small triangular systems.
    torch.testing.assert_close(form(memory, g), expected, rtol=1e-9, atol=1e-12)
    assert int(memory.pairs) == min(pairs, 4)


@pytest.mark.parametrize("form", [compact, two_loop], ids=["compact", "two_loop"])
def test_forgotten_rows_do_not_count(form):
    s, y, g = random_pairs(5, 4, seed=1)
    yes = torch.ones((), dtype=torch.bool)
    memory = empty_memory(g, 4, form)
    for si, yi in zip(s, y, strict=True):
        memory = remember(memory, si, yi, yes)
    memory = forget(memory, yes)
    assert torch.equal(form(memory, g), g)
    memory = remember(memory, s[0], y[0], yes)
    expected = dense_bfgs(s[:1], y[:1], 4) @ g
    torch.testing.assert_close(form(memory, g), expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("form", [compact, two_loop], ids=["compact", "two_loop"])
def test_float32_directions_keep_float32_accuracy(form):
    s, y, g = random_pairs(30, 8, seed=2, dtype=torch.float32)
    memory = empty_memory(g, 8, form)
    for si, yi in zip(s, y, strict=True):
        memory = remember(memory, si, yi, torch.ones((), dtype=torch.bool))
    expected = dense_bfgs(s, y, 8) @ g.double()
    # Each of the 2m updates of the recursion rounds once, and the condition number of
    # the pairs (about 100 here) magnifies it.
    error = (form(memory, g).double() - expected).norm()
    eps = torch.finfo(torch.float32).eps
    assert error <= 2 * 8 * 100 * eps * expected.norm()


# Problems


def test_common_problems_within_the_evaluations_of_the_best():
    """scipy's L-BFGS-B needs 1134 evaluations on these 28 (`make bench` runs both)."""
    total = 0
    for problem in PROBLEMS:
        if not problem.common28:
            continue
        x0 = torch.tensor(problem.x0, dtype=F64)
        evaluations, state, _ = run(problem.fn, x0)
        assert state.grads.abs().amax() <= 1e-8, problem.name
        total += evaluations
    assert total <= 1.15 * 1134


@pytest.mark.parametrize("scale", [1e2, 1e4])
def test_far_starts(scale):
    """torch.optim.LBFGS diverges from such starts (pytorch#49993)."""
    x0 = torch.tensor([76.0, 97.0, 20.0, 120.0, 0.01, scale], dtype=F64)
    evaluations, state, _ = run(rosenbrock, x0, steps=2000)
    assert state.grads.abs().amax() <= 1e-8
    assert evaluations < 1000


def test_barrier():
    """torch.optim.LBFGS ends at -2.4e147 after 201 evaluations (pytorch#5953)."""
    x0 = torch.tensor([0.02], dtype=F64)
    evaluations, state, _ = run(lambda x: (x - 1e-3 * torch.log(x)).sum(), x0)
    assert float(state.x) == pytest.approx(1e-3, rel=1e-6)
    assert evaluations <= 30


def test_the_pair_test_is_relative():
    """Powell's singular function: torch's absolute 1e-10 gives up after 9975 evaluations."""
    problem = next(p for p in PROBLEMS if p.name == "Powell singular")
    for power in (-8, 0, 8):
        scale = 10.0**power
        evaluations, state, _ = run(
            lambda x, c=scale: c * problem.fn(x),
            torch.tensor(problem.x0, dtype=F64),
            gtol=1e-8 * scale,
        )
        assert state.grads.abs().amax() <= 1e-8 * scale
        assert evaluations <= 80


@pytest.mark.parametrize("direction", ["compact", "two_loop"])
@pytest.mark.parametrize("power", [-36, -20, 20, 33])
def test_squares_of_gradients_need_not_be_floats(power, direction):
    """The squares of these gradients overflow or underflow in float32."""
    scale = 10.0**power
    evaluations, state, _ = run(
        lambda x: scale * rosenbrock(x),
        torch.tensor([-1.2, 1.0]),
        po.LBFGS(direction=direction),
        gtol=1e-3 * scale,
    )
    assert state.grads.abs().amax() <= 1e-3 * scale
    # 45 with scale 1.
    assert evaluations <= 75


@pytest.mark.parametrize("power", [-36, 36])
def test_norms_and_products_at_the_ends_of_float32(power):
    x = torch.tensor([3.0, -4.0]) * 10.0**power
    # Both sides round the entries of x once, and the norm a few times.
    assert float(norm(x)) == pytest.approx(5 * 10.0**power, rel=1e-6)
    assert products(x[None], x).tolist() == pytest.approx(
        [25 * 10.0 ** (2 * power)], rel=1e-6
    )


def test_a_first_step_moves_the_start():
    """Unknowns of 1e15 and gradients of 1e-15: a step of one gradient is none."""
    evaluations, state, _ = run(
        lambda x: rosenbrock(x / 1e15), torch.tensor([-1.2e15, 1e15]), gtol=1e-18
    )
    assert state.grads.abs().amax() <= 1e-18
    assert evaluations <= 75


def test_gradients_of_another_dtype_are_cast():
    solver, x = po.LBFGS(), torch.tensor([-1.2, 1.0])
    state = solver.init(x)
    want = {k: v.dtype for k, v in po.to_state_dict(state).items()}
    x, state = solver.step(x, state, x.double(), value=torch.ones(()))
    assert x.dtype == torch.float32
    assert {k: v.dtype for k, v in po.to_state_dict(state).items()} == want


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_leaves(dtype):
    x0 = {"w": torch.full((3,), 2.0, dtype=dtype)}
    solution = po.minimize(
        lambda p: (p["w"].float() - 1).square().sum(), x0, max_steps=60
    )
    assert solution.params["w"].dtype == dtype
    # The minimum, 1, is a number of either dtype: it is hit to the last place.
    assert torch.equal(solution.params["w"], torch.ones(3, dtype=dtype))


def test_mixed_dtypes_and_nested_trees():
    x0 = {"a": [torch.zeros(2, dtype=F64)], "b": (torch.zeros(()), torch.zeros(0))}

    def fn(p):
        return (p["a"][0] - 3).square().sum() + (p["b"][0] + 2).square().double()

    solution = po.minimize(fn, x0, gtol=1e-6)
    assert solution.status == po.Status.CONVERGED
    assert solution.params["b"][0].dtype == torch.float32
    torch.testing.assert_close(solution.params["a"][0], torch.full((2,), 3.0).double())
    torch.testing.assert_close(solution.params["b"][0], torch.tensor(-2.0))


# Statuses


def test_a_stationary_start_is_converged():
    x = torch.zeros(3)
    evaluations, state, trial = run(lambda x: x.square().sum(), x, gtol=-1.0)
    assert (evaluations, int(state.status)) == (1, po.Status.CONVERGED)
    assert torch.equal(trial, x)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_start_says_so(bad):
    evaluations, state, trial = run(lambda x: x.sum() + bad, torch.ones(2))
    assert (evaluations, int(state.status)) == (1, po.Status.NON_FINITE)
    assert torch.equal(trial, torch.ones(2))


def test_a_wrong_gradient_is_no_descent():
    x = torch.tensor([1.0, 2.0], dtype=F64)
    solver = po.LBFGS()
    state = solver.init(x)
    for _ in range(100):
        grads, value = grad_and_value(lambda x: x.square().sum())(x)
        x, state = solver.step(x, state, -grads, value=value)
    assert int(state.status) == po.Status.NO_DESCENT
    # Not one uphill step was accepted.
    assert torch.equal(solver.eval_params(x, state), torch.tensor([1.0, 2.0]).double())


def test_below_rounding_is_precision_limited():
    """Weights of three decades: no point of float32 has a gradient of exactly zero."""
    weights = torch.logspace(-1, 2, 5)
    evaluations, state, _ = run(
        lambda x: 1e4 + (weights * (torch.exp(x) - math.pi * x)).sum(),
        torch.ones(5),
        gtol=0.0,
    )
    assert int(state.status) == po.Status.PRECISION_LIMITED
    assert evaluations < 200
    # A change of x by d changes the value by w pi d^2 / 2, which counts as rounding
    # below NOISE eps 1e4.
    error = (state.x - math.log(math.pi)).abs()
    allowed = torch.sqrt(2 * NOISE * 1.2e-7 * 1e4 / (math.pi * weights))
    assert (error <= allowed).all()


def test_finished_lanes_stand_still():
    solver, x = po.LBFGS(), torch.zeros(2)
    state = solver.init(x)
    grads, value = grad_and_value(lambda x: x.square().sum())(x)
    x, state = solver.step(x, state, grads, value=value)
    again, after = solver.step(x + 1, state, grads + 1, value=value - 5)
    assert torch.equal(again, torch.zeros(2))
    for a, b in zip(
        po.to_state_dict(state).items(), po.to_state_dict(after).items(), strict=True
    ):
        if a[0] != "accepted":
            assert torch.equal(a[1], b[1]), a[0]
    assert not after.accepted


def test_the_answer_is_no_view_of_the_state():
    solver, x = po.LBFGS(), torch.ones(2)
    state = solver.init(x)
    solver.eval_params(x, state).zero_()
    assert torch.equal(state.x, torch.ones(2))


def test_values_never_rise_beyond_rounding():
    solver, x = po.LBFGS(), torch.tensor([-1.2, 1.0, 0.5, -0.3], dtype=F64)
    state, last = solver.init(x), math.inf
    for _ in range(120):
        grads, value = grad_and_value(rosenbrock)(x)
        x, state = solver.step(x, state, grads, value=value)
        if state.accepted:
            slack = NOISE * torch.finfo(F64).eps * abs(last) if last < math.inf else 0
            assert float(state.value) <= last + slack
            last = float(state.value)


# New data


def test_restart_keeps_the_pairs():
    solver = po.LBFGS()
    x = torch.tensor([-1.2, 1.0], dtype=F64)
    _, state, _ = run(rosenbrock, x, solver)
    pairs = int(state.memory.pairs)
    state = solver.restart(state)
    x = solver.eval_params(x, state)

    def shifted(x):
        return rosenbrock(x - 0.01) + 7

    for k in range(40):
        grads, value = grad_and_value(shifted)(x)
        x, state = solver.step(x, state, grads, value=value)
        if k == 0:
            # The first evaluation is the base, though its value is far higher.
            assert state.accepted
            assert int(state.memory.pairs) == pairs
            assert float(state.search.t) == 1.0
    torch.testing.assert_close(state.x, torch.full((2,), 1.01, dtype=F64))


# Inside transforms


def solve_lanes(step, solver, starts, steps):
    states = vmap(solver.init)(starts)
    points = starts
    for _ in range(steps):
        grads, values = vmap(grad_and_value(rosenbrock))(points)
        points, states = step(points, states, grads, values)
    return states


def test_lanes_take_the_steps_of_single_solves():
    generator = torch.Generator().manual_seed(0)
    starts = 4 * torch.rand(12, 3, generator=generator, dtype=F64) - 2
    solver = po.LBFGS()

    def step(x, s, g, v):
        return solver.step(x, s, g, value=v)

    lanes = solve_lanes(vmap(step), solver, starts, 40)
    for i, start in enumerate(starts):
        x, state = start, solver.init(start)
        for _ in range(40):
            grads, value = grad_and_value(rosenbrock)(x)
            x, state = solver.step(x, state, grads, value=value)
        assert int(lanes.iterations[i]) == int(state.iterations)
        torch.testing.assert_close(lanes.x[i], state.x, rtol=1e-9, atol=1e-12)


def test_hyper_parameters_sweep_by_vmap():
    c2 = torch.tensor([0.1, 0.5, 0.9])

    def step(c2, x, s, g, v):
        return po.LBFGS(c2=c2).step(x, s, g, value=v)

    x = torch.tensor([-1.2, 1.0], dtype=F64).expand(3, 2).contiguous()
    state = vmap(po.LBFGS().init)(x)
    for _ in range(30):
        grads, values = vmap(grad_and_value(rosenbrock))(x)
        x, state = vmap(step)(c2, x, state, grads, values)
    # An exact search accepts fewer points for the same number of evaluations.
    tight, _, loose = state.iterations.tolist()
    assert tight < loose


@pytest.mark.compile
@pytest.mark.parametrize("direction", ["compact", "two_loop"])
def test_compiles_to_one_graph(direction):
    solver = po.LBFGS(memory=3, direction=direction)

    def step(x, s, g, v):
        return solver.step(x, s, g, value=v)

    compiled = torch.compile(vmap(step), fullgraph=True, backend="aot_eager")
    starts = torch.tensor([[-1.2, 1.0], [0.3, 0.4]], dtype=F64)
    eager = solve_lanes(vmap(step), solver, starts, 12)
    with torch._dynamo.config.patch(error_on_recompile=True):
        lanes = solve_lanes(compiled, solver, starts, 12)
    for a, b in zip(
        po.to_state_dict(eager).values(), po.to_state_dict(lanes).values(), strict=True
    ):
        # The same operations in the same order; a fused multiply-add may round less.
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_derivatives_through_steps():
    """Reverse and forward mode through six steps agree with differences in the start."""
    solver = po.LBFGS(memory=3)

    def after(start):
        x, state = start, solver.init(start)
        for _ in range(6):
            grads, value = grad_and_value(rosenbrock)(x)
            x, state = solver.step(x, state, grads, value=value)
        return solver.eval_params(x, state)

    start, h = torch.tensor([-0.7, 0.9], dtype=F64), 1e-6
    forward, reverse = jacfwd(after)(start), jacrev(after)(start)
    columns = [
        (after(start + h * e) - after(start - h * e)) / (2 * h)
        for e in torch.eye(2, dtype=F64)
    ]
    torch.testing.assert_close(forward, reverse, rtol=1e-10, atol=1e-10)
    # Central differences: h^2 times third derivatives of order 1e4, and eps / h.
    torch.testing.assert_close(
        forward, torch.stack(columns, dim=1), rtol=1e-5, atol=1e-5
    )


def test_second_derivatives_agree_in_all_nestings():
    solver = po.LBFGS(memory=2)

    def after(start):
        x, state = start, solver.init(start)
        for _ in range(3):
            grads, value = grad_and_value(rosenbrock)(x)
            x, state = solver.step(x, state, grads, value=value)
        return solver.eval_params(x, state).sum()

    start = torch.tensor([-0.7, 0.9], dtype=F64)
    reference = jacrev(jacrev(after))(start)
    assert torch.isfinite(reference).all()
    for outer, inner in ((jacfwd, jacrev), (jacrev, jacfwd), (jacfwd, jacfwd)):
        torch.testing.assert_close(
            outer(inner(after))(start), reference, rtol=1e-8, atol=1e-8
        )


def test_an_evaluation_never_waits_for_the_device():
    solver, x = po.LBFGS(), torch.tensor([-1.2, 1.0])
    state = solver.init(x)
    with SyncCounter() as syncs:
        for _ in range(20):
            grads, value = grad_and_value(rosenbrock)(x)
            x, state = solver.step(x, state, grads, value=value)
    assert syncs.total == 0


def test_runs_on_the_meta_device():
    solver, x = po.LBFGS(), {"w": torch.zeros(3, 2, device="meta")}
    state = solver.init(x)
    value = torch.zeros((), device="meta")
    for _ in range(3):
        x, state = solver.step(x, state, x, value=value)
    assert {leaf.device.type for leaf in po.to_state_dict(state).values()} == {"meta"}


def test_resumes_in_the_middle_of_a_search():
    solver, x = po.LBFGS(), torch.tensor([-1.2, 1.0], dtype=F64)
    state = solver.init(x)
    for k in range(30):
        grads, value = grad_and_value(rosenbrock)(x)
        x, state = solver.step(x, state, grads, value=value)
        if k == 11:
            saved = {k: v.clone() for k, v in po.to_state_dict(state).items()}
            x_saved = x.clone()
    resumed = po.from_state_dict(saved, solver.init(x_saved))
    for _ in range(18):
        grads, value = grad_and_value(rosenbrock)(x_saved)
        x_saved, resumed = solver.step(x_saved, resumed, grads, value=value)
    assert torch.equal(x, x_saved)


# Wrong input


def test_missing_value_is_an_error():
    solver, x = po.LBFGS(), torch.ones(2)
    with pytest.raises(
        po.TreeError, match=r"value=.*0-d floating tensor, got None.*grad_and_v"
    ):
        solver.step(x, solver.init(x), x)
    with pytest.raises(po.TreeError, match=r"0-d floating tensor, got shape \(2,\)"):
        solver.step(x, solver.init(x), x, value=x)
    with pytest.raises(po.TreeError, match="got `float`"):
        solver.step(x, solver.init(x), x, value=1.0)


def test_nothing_may_stand_left():
    with pytest.raises(po.CompositionError, match="leave nothing left of LBFGS"):
        po.ClipByGlobalNorm(1.0) >> po.LBFGS()
    with pytest.raises(po.CompositionError, match="left of"):
        po.LBFGS() >> po.SGD(0.1)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"memory": 0}, r"LBFGS\(memory=...\)` must be an integer >= 1, got 0"),
        ({"memory": 2.5}, "integer"),
        ({"max_trials": True}, "integer"),
        ({"c1": 0.7}, r"in \[0, 0.5\)"),
        ({"c1": math.nan}, "c1"),
        ({"c2": 1.5}, "c2"),
        ({"c1": 0.4, "c2": 0.3}, "0 < c1 < c2"),
        ({"noise": -1.0}, "finite and >= 0"),
        ({"first_step": math.inf}, "finite"),
        ({"first_step": 0.0}, r"first_step=...\)` must be > 0"),
        ({"first_step": lambda step: step}, "a number or a 0-d tensor, got `function`"),
        ({"noise": lambda step: step}, "a number or a 0-d tensor, got `function`"),
        ({"c1": lambda step: step}, "a number or a 0-d tensor, got `function`"),
        ({"c2": lambda step: step}, "a number or a 0-d tensor, got `function`"),
        ({"direction": "newton"}, "compact"),
    ],
)
def test_wrong_hyper_parameters(kwargs, message):
    with pytest.raises(po.HyperparameterError, match=message):
        po.LBFGS(**kwargs)


def test_mismatched_grads_name_the_leaf():
    solver, params = po.LBFGS(), {"w": torch.ones(2), "b": torch.ones(1)}
    with pytest.raises(po.TreeError, match="no 'b'"):
        solver.step(
            params, solver.init(params), {"w": torch.ones(2)}, value=torch.ones(())
        )
