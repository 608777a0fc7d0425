"""The loop: what it returns, when it stops, and that lanes do not disturb each other."""

from __future__ import annotations

import io
import math
from contextlib import redirect_stderr

import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from torch._dynamo.testing import CompileCounterWithBackend

import pureopt as po
from benchmarks.syncs import SyncCounter

F64 = torch.float64
CONVERGED, MAX_STEPS = po.Status.CONVERGED, po.Status.MAX_STEPS


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x, a):
    return (a * (x - 1) ** 2).sum()


def bowl(x):
    return (x - 1).square().sum()


START = torch.tensor([-1.2, 1.0, 0.4], dtype=F64)
SOLVERS = [
    po.LBFGS(direction="compact"),
    po.LBFGS(direction="two_loop"),
    po.SGD(1e-3, momentum=0.9),
    po.ClipByGlobalNorm(10.0) >> po.Adam(0.05),
    po.EMA(po.Adam(0.05), decay=0.9),
]
NAMES = ["compact", "two-loop", "sgd", "clip-adam", "ema"]


def test_finds_what_scipy_finds():
    ours = po.minimize(rosenbrock, START, gtol=1e-8)
    theirs = scipy_minimize(
        lambda x: float(rosenbrock(torch.as_tensor(x))),
        START.numpy(),
        jac=lambda x: torch.func.grad(rosenbrock)(torch.as_tensor(x)).numpy(),
        method="L-BFGS-B",
        options={"ftol": 0, "gtol": 1e-8},
    )
    assert ours.status == CONVERGED
    # |x - x*| <= |H^-1| |g| with |H^-1| about 1e3 at this minimum.
    torch.testing.assert_close(
        ours.params, torch.as_tensor(theirs.x), rtol=0.0, atol=2e-5
    )


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
@pytest.mark.parametrize("max_steps", [1, 2, 17, 200])
def test_everything_belongs_to_one_evaluation(solver, max_steps):
    calls = 0

    def fn(x):
        nonlocal calls
        calls += 1
        return rosenbrock(x), {"twice": 2 * x, "norm": x.norm()}

    solution = po.minimize(
        fn, START, solver, has_aux=True, max_steps=max_steps, check_every=7
    )
    value = rosenbrock(solution.params)
    assert torch.equal(solution.value, value)
    assert torch.equal(solution.grads, torch.func.grad(rosenbrock)(solution.params))
    assert torch.equal(solution.aux["twice"], 2 * solution.params)
    assert torch.equal(solution.aux["norm"], solution.params.norm())
    assert int(solution.steps) <= max_steps
    # Frozen steps until the next look are evaluated too, but they are not the lane's.
    # The first call only looks at what `fn` returns.
    assert int(solution.evaluations) < calls <= int(solution.evaluations) + 7
    assert solution.evaluations - solution.steps == isinstance(solver, po.EMA)


def test_the_best_evaluation_wins_for_transforms_that_do_not_search():
    """Too long a step: the iterates oscillate outward, the start is the best."""
    a = torch.tensor([1.0], dtype=F64)
    solution = po.minimize(
        quadratic, torch.zeros(1).double(), po.SGD(1.1), args=(a,), max_steps=20
    )
    assert solution.status == MAX_STEPS
    assert torch.equal(solution.params, torch.zeros(1).double())


def test_inputs_are_not_written_to_and_not_shared():
    start = {"x": START.clone()}
    version = start["x"]._version
    solution = po.minimize(lambda p: rosenbrock(p["x"]), start, max_steps=1)
    assert start["x"]._version == version
    assert torch.equal(start["x"], START)
    assert solution.params["x"].data_ptr() != start["x"].data_ptr()


# When it stops


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=NAMES[:4])
def test_gradient_tolerance(solver):
    a = torch.tensor([3.0, 1.0], dtype=F64)
    solution = po.minimize(
        quadratic, torch.zeros(2).double(), solver, args=(a,), gtol=1e-3, max_steps=5000
    )
    assert solution.status == CONVERGED
    assert solution.grads.abs().amax() <= 1e-3


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=NAMES[:4])
def test_a_good_start_takes_one_step(solver):
    solution = po.minimize(
        lambda x: x.square().sum(), torch.zeros(2), solver, check_every=1
    )
    assert solution.status == CONVERGED
    assert (int(solution.steps), float(solution.value)) == (1, 0.0)


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=NAMES[:4])
def test_cauchy_tolerance(solver):
    a = torch.tensor([3.0, 1.0], dtype=F64)
    start = torch.zeros(2).double()
    loose = po.minimize(
        quadratic, start, solver, args=(a,), gtol=0.0, rtol=1e-2, max_steps=5000
    )
    tight = po.minimize(
        quadratic, start, solver, args=(a,), gtol=0.0, rtol=1e-6, max_steps=5000
    )
    assert loose.status == tight.status == CONVERGED
    assert int(loose.steps) < int(tight.steps) or loose.value <= 1e-12
    assert (tight.params - 1).abs().amax() < 1e-2


def test_zero_tolerances_never_converge_by_change():
    """SGD with lr=0 does not move: that is not convergence unless it was asked for."""
    solution = po.minimize(rosenbrock, START, po.SGD(0.0), max_steps=12)
    assert solution.status == MAX_STEPS
    assert int(solution.steps) == 12


@pytest.mark.parametrize("solver", SOLVERS[:4], ids=NAMES[:4])
def test_non_finite_start(solver):
    solution = po.minimize(lambda x: torch.log(x).sum(), -torch.ones(2), solver)
    assert solution.status == po.Status.NON_FINITE
    assert torch.equal(solution.params, -torch.ones(2))


def test_a_run_that_leaves_the_domain_keeps_its_best():
    def fn(x):
        return (x - torch.log(x)).sum()

    solution = po.minimize(fn, torch.tensor([3.0]), po.SGD(5.0), max_steps=50)
    assert solution.status == po.Status.NON_FINITE
    assert torch.isfinite(solution.value)
    assert torch.isfinite(solution.grads).all()
    # The searching solver stays inside.
    inside = po.minimize(fn, torch.tensor([3.0]))
    assert inside.status == CONVERGED
    torch.testing.assert_close(inside.params, torch.ones(1), rtol=0.0, atol=1e-3)


def test_budget():
    solution = po.minimize(rosenbrock, START, max_steps=5)
    assert solution.status == MAX_STEPS
    assert int(solution.steps) == int(solution.evaluations) == 5


def test_averaging_solvers_answer_with_the_average():
    """One extra evaluation, at the average; it is not one of the iterates."""
    solver = po.EMA(po.SGD(0.1), decay=0.5)
    start = torch.zeros(1).double()
    a = torch.ones(1).double()
    solution = po.minimize(quadratic, start, solver, args=(a,), gtol=0.0, max_steps=3)
    x, average = 0.0, 0.0
    for _ in range(3):
        x -= 0.1 * 2 * (x - 1)
        average = 0.5 * average + 0.5 * x
    assert float(solution.params) == pytest.approx(average, rel=1e-14)
    assert (int(solution.steps), int(solution.evaluations)) == (3, 4)


@pytest.mark.parametrize("batched", [False, True], ids=["one", "lanes"])
def test_a_bad_step_does_not_spoil_the_average(batched):
    """The average holds a step along a NaN gradient: the answer is the best point."""
    start = torch.tensor([[-1.0, -1.0], [1.0, 2.0]])[0 if not batched else slice(None)]
    solution = po.minimize(
        lambda x: (x - x.log()).sum(),
        start,
        po.EMA(po.SGD(0.1), decay=0.5),
        batched=batched,
    )
    params = solution.params[0] if batched else solution.params
    assert torch.equal(params, -torch.ones(2))
    status = solution.status[0] if batched else solution.status
    assert status == po.Status.NON_FINITE
    if batched:
        assert solution.status[1] == CONVERGED


@pytest.mark.parametrize("flip", [False, True])
def test_the_coarsest_dtype_rules_the_default_tolerance(flip):
    """A float32 gradient cannot be as small as the root of float64's eps."""
    start = [torch.zeros(2), torch.zeros(2, dtype=F64)]

    def fn(p):
        return sum((x.double() - 1).square().sum() for x in p)

    solution = po.minimize(fn, start[::-1] if flip else start, po.SGD(0.1))
    largest = max(float(g.abs().amax()) for g in solution.grads)
    # The gradient shrinks by 0.8 a step.
    limit = math.sqrt(torch.finfo(torch.float32).eps)
    assert 0.8 * limit <= largest <= limit


# Lanes


@pytest.mark.parametrize("solver", SOLVERS, ids=NAMES)
def test_lanes_equal_single_runs(solver):
    generator = torch.Generator().manual_seed(1)
    starts = torch.rand(7, 3, generator=generator, dtype=F64) * 2 - 1
    shifts = torch.rand(7, 3, generator=generator, dtype=F64)

    def fn(x, shift):
        return rosenbrock(x - shift), x.sum()

    options = {"has_aux": True, "max_steps": 60, "gtol": 1e-3}
    lanes = po.minimize(fn, starts, solver, args=(shifts,), batched=True, **options)
    for i in range(7):
        one = po.minimize(fn, starts[i], solver, args=(shifts[i],), **options)
        assert int(lanes.status[i]) == int(one.status)
        assert int(lanes.steps[i]) == int(one.steps)
        for name in ("params", "value", "grads", "aux"):
            # Sums over a lane may be ordered otherwise: some eps, times cond 1e3.
            torch.testing.assert_close(
                getattr(lanes, name)[i], getattr(one, name), rtol=1e-9, atol=1e-9
            )


def test_one_bad_lane_kills_nobody():
    starts = torch.tensor([[2.0], [-1.0], [0.5], [math.nan]], dtype=F64)
    solution = po.minimize(
        lambda x: (x - torch.log(x)).sum(), starts, batched=True, gtol=1e-6
    )
    names = [po.Status(int(s)).name for s in solution.status]
    assert names == ["CONVERGED", "NON_FINITE", "CONVERGED", "NON_FINITE"]
    torch.testing.assert_close(
        solution.params[[0, 2]], torch.ones(2, 1, dtype=F64), rtol=0.0, atol=1e-6
    )


@pytest.mark.parametrize("solver", [po.LBFGS(), po.Adam(0.1)], ids=["lbfgs", "adam"])
def test_finished_lanes_are_frozen_where_they_were_accepted(solver):
    """One lane starts at its minimum and waits while the other one works."""
    starts = torch.tensor([[1.0, 1.0], [-1.2, 1.0]], dtype=F64)
    solution = po.minimize(rosenbrock, starts, solver, batched=True, max_steps=300)
    assert int(solution.steps[0]) == 1
    assert torch.equal(solution.params[0], torch.ones(2).double())
    assert torch.equal(solution.grads[0], torch.zeros(2).double())


def test_trees_of_lanes():
    starts = {"a": torch.zeros(3, 2), "b": [torch.zeros(3)]}
    targets = torch.arange(3.0)

    def fn(p, target):
        return (p["a"] - target).square().sum() + (p["b"][0] + target) ** 2

    solution = po.minimize(fn, starts, args=(targets,), batched=True)
    torch.testing.assert_close(solution.params["b"][0], -targets, rtol=0, atol=1e-3)
    assert solution.status.shape == solution.value.shape == (3,)


# Compiled


@pytest.mark.compile
@pytest.mark.parametrize("direction", ["compact", "two_loop"])
def test_compiled_lanes_equal_eager_ones_and_compile_once(direction):
    """With inductor: its code has been wrong where that of `aot_eager` was right."""
    starts = torch.tensor([[-1.2, 1.0], [0.3, 0.4]], dtype=F64)
    solver = po.LBFGS(memory=3, direction=direction)
    options = {"batched": True, "gtol": 1e-6}
    eager = po.minimize(rosenbrock, starts, solver, **options)
    compiled = po.minimize(rosenbrock, starts, solver, compile=True, **options)
    assert torch.equal(compiled.status, eager.status)
    assert torch.equal(compiled.steps, eager.steps)
    # Fused multiply-adds round otherwise, and a search amplifies it: the minimum is
    # determined to gtol times |H^-1|, about 1e3.
    torch.testing.assert_close(compiled.params, eager.params, rtol=0.0, atol=2e-3)
    # Other tolerances and starts: no new graph.
    with torch._dynamo.config.patch(error_on_recompile=True):
        po.minimize(
            rosenbrock,
            starts + 0.1,
            solver,
            compile=True,
            batched=True,
            gtol=1e-4,
            rtol=1e-3,
        )


@pytest.fixture
def compilations(monkeypatch):
    """Compile with `aot_eager`, and count how often."""
    counter, compile_ = CompileCounterWithBackend("aot_eager"), torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda step, **kw: compile_(step, backend=counter, **kw)
    )
    return counter


@pytest.mark.compile
def test_solvers_of_one_configuration_share_a_program(compilations):
    def solve(solver, start, **options):
        po.minimize(bowl, start, solver, batched=True, compile=True, **options)
        return compilations.frame_count

    def clipped(lr):
        return po.ClipByGlobalNorm(1.0) >> po.Adam(lr, betas=(0.8, 0.9))

    first = solve(clipped(0.1), torch.zeros(2, 3))
    assert first == 1
    assert solve(clipped(0.1), torch.ones(2, 3)) == first
    # Neither the values nor the kinds of the tolerances are part of it.
    assert solve(clipped(0.1), torch.ones(2, 3), gtol=torch.tensor(0.1)) == first
    assert solve(clipped(0.2), torch.ones(2, 3)) == first + 1


@pytest.mark.compile
def test_any_number_of_lanes_compiles_twice_at_most(compilations):
    solver = po.LBFGS(memory=1)
    for lanes in (2, 3, 5, 7):
        starts = torch.arange(2.0 * lanes).reshape(lanes, 2)
        solution = po.minimize(bowl, starts, solver, batched=True, compile=True)
        assert (solution.status == CONVERGED).all()
    assert compilations.frame_count <= 2


@pytest.mark.compile
def test_many_objectives_and_many_shapes_compile(compilations):
    """Torch limits the compilations of one code object, which would be `minimize`'s."""
    limits = {"accumulated_recompile_limit": 3, "recompile_limit": 3}
    with torch._dynamo.config.patch(limits):
        for k in range(5):
            solution = po.minimize(
                lambda x, k=k: (x - k).square().sum(),
                torch.zeros(2),
                po.SGD(0.5),
                compile=True,
            )
            assert torch.equal(solution.params, torch.full((2,), float(k)))
    assert compilations.frame_count == 5
    with torch._dynamo.config.patch(recompile_limit=2):
        for dims in range(4):
            solution = po.minimize(
                bowl,
                torch.zeros((2,) * dims),
                po.SGD(0.5),
                compile=True,
            )
            assert solution.status == CONVERGED


# Progress


def test_callback_sees_the_solution_so_far():
    seen = []
    po.minimize(
        rosenbrock,
        START,
        gtol=1e-8,
        check_every=5,
        callback=lambda s: seen.append((int(s.steps), float(s.value))),
    )
    steps, values = zip(*seen, strict=True)
    assert steps[:3] == (5, 10, 15)
    assert list(values) == sorted(values, reverse=True)


def test_a_callback_ends_the_run_by_true_alone():
    solution = po.minimize(
        rosenbrock, START, check_every=5, callback=lambda s: int(s.steps) >= 10
    )
    assert (int(solution.steps), int(solution.status)) == (10, po.Status.RUNNING)
    on = po.minimize(rosenbrock, START, check_every=5, callback=lambda s: s.steps)
    assert on.status == CONVERGED


def test_progress_draws_a_bar():
    pytest.importorskip("tqdm")
    with redirect_stderr(io.StringIO()) as text:
        po.minimize(rosenbrock, START, max_steps=30, progress=True)
    assert "30" in text.getvalue()
    assert "value=" in text.getvalue()


@pytest.mark.parametrize("check_every", [1, 4, 10, 1000])
@pytest.mark.parametrize("solver", [po.LBFGS(), po.Adam(0.01)], ids=["lbfgs", "adam"])
def test_waits_for_the_device_once_in_check_every_steps(solver, check_every):
    with SyncCounter() as syncs:
        solution = po.minimize(
            rosenbrock, START, solver, check_every=check_every, max_steps=100
        )
    assert syncs.total <= math.ceil(int(solution.steps) / check_every)


# Wrong input


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: po.minimize(START, rosenbrock), "The function comes first"),
        (lambda: po.minimize("f", START), "got `str`. The function comes first"),
        (lambda: po.minimize(rosenbrock, {}), "at least one tensor"),
        (lambda: po.minimize(rosenbrock, {"w": None}), "'w'.*absent"),
        (
            lambda: po.minimize(rosenbrock, {"w": torch.ones(2, dtype=torch.int64)}),
            r"dtype torch.int64 at 'w'.*float\(\)",
        ),
        (lambda: po.minimize(rosenbrock, START, po.LBFGS), "instance, not the class"),
        (lambda: po.minimize(rosenbrock, START, "lbfgs"), "solver"),
        (lambda: po.minimize(rosenbrock, START, max_steps=0), "max_steps.*>= 1"),
        (lambda: po.minimize(rosenbrock, START, check_every=2.5), "check_every"),
        (lambda: po.minimize(rosenbrock, START, gtol=-1.0), "gtol.*>= 0"),
        (lambda: po.minimize(rosenbrock, START, gtol=abs), "gtol.*a number or a 0-d"),
        (
            lambda: po.minimize(quadratic, torch.ones(3), args=torch.ones(1, 3)),
            r"args=...\)` must be a tuple.*got a tensor of.*args=\(data,\)",
        ),
        (lambda: po.minimize(rosenbrock, torch.zeros(0)), "at least one number"),
        (
            lambda: po.minimize(rosenbrock, torch.zeros(0, 3), batched=True),
            "one number, got only empty",
        ),
        (lambda: po.minimize(rosenbrock, START, rtol=math.nan), "rtol"),
        (lambda: po.minimize(lambda x: x, START), r"0-d.*shape \(3,\).*\.mean\(\)"),
        (lambda: po.minimize(lambda x: (x.sum(), x), START), "has_aux=True"),
        (lambda: po.minimize(rosenbrock, START, has_aux=True), r"pair `\(value, aux"),
        (
            lambda: po.minimize(lambda x: (x.sum(), 1.0), START, has_aux=True),
            "only tensors",
        ),
        (
            lambda: po.minimize(rosenbrock, torch.ones(()), batched=True),
            "leading lane dimension",
        ),
        (
            lambda: po.minimize(
                quadratic, torch.ones(3, 2), args=(torch.ones(2, 2),), batched=True
            ),
            "2 lanes in `args`.*3 before.*Close over",
        ),
        (
            lambda: po.minimize(rosenbrock, START, po.ClipByGlobalNorm(1.0)),
            "emits gradients",
        ),
    ],
)
def test_wrong_input(call, message):
    with pytest.raises(po.PureoptError, match="(?s)" + message):
        call()


def test_a_solution_shows_its_numbers_but_not_the_state():
    solution = po.minimize(bowl, torch.zeros(2))
    told = repr(solution)
    assert told.startswith("Solution(params=tensor([1., 1.]), value=tensor(0.)")
    assert told.endswith("state=LBFGSState(...), aux=())")
    assert len(told) < 250
