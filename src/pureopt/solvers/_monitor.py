"""When to stop: the one place where values, gradients and steps are judged."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._solution import Status
from pureopt._tree import ravel, tree_leaves, tree_map, tree_select
from pureopt._typing import Scalar, State

# Plain integers: under `torch.compile` a tensor never equals an `IntEnum` member.
_RUNNING, _CONVERGED, _NON_FINITE = map(
    int, (Status.RUNNING, Status.CONVERGED, Status.NON_FINITE)
)


class Evaluation(NamedTuple):
    """A point, and the objective, its gradient and its other results there."""

    params: Any
    value: Tensor
    grads: Any
    aux: Any


class Tolerances(NamedTuple):
    """When a point is good enough: gradient norm, or step and change of the value."""

    rtol: Scalar
    atol: Scalar
    gtol: Scalar


class Run(NamedTuple):
    """A minimization between two evaluations."""

    params: Any
    state: State
    best: Evaluation
    last: Tensor
    status: Tensor
    steps: Tensor


def reports(state: State) -> bool:
    """Whether a transform searches, and its state says what it accepted and how it stands."""
    return hasattr(state, "accepted") and hasattr(state, "status")


def begin(params: Any, state: State, like: Tensor, aux: Any) -> Run:
    """The run before the first evaluation, whose value and ``aux`` are like these."""
    zero = like.new_zeros((), dtype=torch.int64)
    infinite = torch.full_like(like, torch.inf)
    nothing = Evaluation(params, infinite, tree_map(torch.zeros_like, params), aux)
    return Run(params, state, nothing, infinite, zero, zero)


def observe(
    run: Run, new: Evaluation, params: Any, state: State, tolerances: Tolerances
) -> Run:
    """The run after one more evaluation."""
    judge = _observe_search if reports(state) else _observe_descent
    return judge(run, new, params, state, tolerances)


def _observe_search(
    run: Run, new: Evaluation, params: Any, state: Any, tolerances: Tolerances
) -> Run:
    """A step of a transform that searches: only accepted points count."""
    running, first = run.status == _RUNNING, run.steps == 0
    moved = _distance(new.params, run.best.params)
    done = _converged(run.best.value, new, moved, tolerances, first)
    status = torch.where(state.accepted & done, _CONVERGED, state.status)
    status = torch.where(running, status, run.status)
    return Run(
        params,
        # Such a transform stands still by itself where it is not running. The clone
        # keeps every leaf of a run a tensor of its own, or it would compile twice.
        state._replace(status=status.clone()),
        tree_select(running & (state.accepted | first), new, run.best),
        run.last,
        status,
        run.steps + running,
    )


def _observe_descent(
    run: Run, new: Evaluation, params: Any, state: State, tolerances: Tolerances
) -> Run:
    """A step of any other transform: the best evaluation counts."""
    finite, first = _finite(new), run.steps == 0
    moved = _distance(params, new.params)
    done = finite & _converged(run.last, new, moved, tolerances, first)
    best = first | done | (finite & (new.value < run.best.value))
    status = torch.where(done, _CONVERGED, run.status)
    status = torch.where(finite, status, _NON_FINITE)
    after = Run(
        params,
        state,
        tree_select(best, new, run.best),
        new.value,
        status,
        run.steps + 1,
    )
    return tree_select(run.status == _RUNNING, after, run)


def finite_or(new: Evaluation, other: Evaluation) -> Evaluation:
    """The new evaluation where it is finite, else the other one."""
    return tree_select(_finite(new), new, other)


def _finite(evaluation: Evaluation) -> Tensor:
    finite = torch.isfinite(evaluation.value)
    for leaf in tree_leaves(evaluation.grads):
        finite = finite & torch.isfinite(leaf).all()
    return finite


def _converged(
    before: Tensor,
    new: Evaluation,
    moved: Tensor,
    tolerances: Tolerances,
    first: Tensor,
) -> Tensor:
    """Small gradient, or small step and small change of the value (Cauchy's test)."""
    rtol, atol, gtol = tolerances
    step_is_small = moved <= atol + rtol * _norm(new.params)
    change_is_small = (new.value - before).abs() <= atol + rtol * new.value.abs()
    # Before the first evaluation there is nothing to have changed from.
    asked = ~first & (atol + rtol > 0)
    return (_norm(new.grads) <= gtol) | (asked & step_is_small & change_is_small)


def _norm(tree: Any) -> Tensor:
    """The largest absolute entry."""
    return ravel(tree).abs().amax()


def _distance(a: Any, b: Any) -> Tensor:
    return (ravel(a) - ravel(b)).abs().amax()
