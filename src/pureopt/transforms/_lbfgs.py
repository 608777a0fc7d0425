"""L-BFGS with a line search, as a step that takes one evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple, final

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt._solution import Status
from pureopt._tree import (
    check_like,
    check_params,
    ravel,
    tree_map,
    tree_select,
    unravel,
)
from pureopt._typing import P, Scalar
from pureopt.transforms._base import (
    Transform,
    check_hyper,
    check_state,
    check_value,
)
from pureopt.transforms._quasi_newton import (
    Memory,
    accumulator,
    compact,
    dot,
    empty_memory,
    flat,
    forget,
    inverse_product,
    norm,
    remember,
    steepest,
    two_loop,
)
from pureopt.transforms._wolfe import Point, Search, advance, start

NOISE = 1000.0
"""Rounding error of a value, in units of eps * |value|, that a search allows for."""
STALL = 3.0
"""Change of the value, in the same units, that is no progress."""
STALLS = 5
"""So many searches in a row without progress end the run."""
PROGRESS = 0.9
"""A gradient norm below this fraction of the best one so far is progress."""

SMALL = 1000
"""Up to so many unknowns the two-loop recursion is the default: about as fast eagerly,
and for small compiled batches several times as fast (`make bench`)."""

_DIRECTIONS: dict[str, Callable[[Memory, Tensor], Tensor]] = {
    "compact": compact,
    "two_loop": two_loop,
}


# Plain integers: under `torch.compile` a tensor never equals an `IntEnum` member.
_RUNNING = int(Status.RUNNING)
# What the next evaluation is for: where the search starts, a trial of the search, or
# the best trial of a search that failed, once more.
_BASE, _SEARCH, _CONFIRM = range(3)


class LBFGSState(NamedTuple):
    """The accepted iterate, the memory, and the line search between two evaluations.

    Attributes:
        step: Evaluations so far.
        iterations: Accepted points so far.
        status: A :class:`~pureopt.Status`; anything but ``RUNNING`` stands still.
        accepted: Whether the last evaluation was accepted as an iterate.
        phase: What the next evaluation is for.
        x: The accepted iterate, raveled.
        value: The objective there.
        grads: The gradient there, raveled.
        direction: The search direction from there.
        slope: The slope along it.
        search: The line search.
        memory: The pairs.
        least: Least gradient norm so far.
        stalls: Searches in a row without progress.
    """

    step: Int[Tensor, ""]
    iterations: Int[Tensor, ""]
    status: Int[Tensor, ""]
    accepted: Bool[Tensor, ""]
    phase: Int[Tensor, ""]
    x: Float[Tensor, " n"]
    value: Float[Tensor, ""]
    grads: Float[Tensor, " n"]
    direction: Float[Tensor, " n"]
    slope: Float[Tensor, ""]
    search: Search
    memory: Memory
    least: Float[Tensor, ""]
    stalls: Int[Tensor, ""]


@final
@dataclass(frozen=True, eq=False)
class LBFGS(Transform):
    r"""Limited-memory BFGS with a Wolfe line search; one evaluation a step.

    .. math:: x_{k+1} = x_k - t_k H_k g_k

    where :math:`H_k` is built from the last ``memory`` pairs and :math:`t_k` satisfies
    the strong Wolfe conditions, or the approximate ones where values differ by no more
    than their rounding error. :meth:`step` takes the value and gradient at a trial point
    and returns the next trial point; the whole line search lives in the state.
    :meth:`eval_params` is the last accepted iterate. ``state.status`` says how it stands.

    Args:
        memory: How many pairs to keep, at least 1.
        c1: Sufficient decrease, in (0, 1/2).
        c2: Curvature, in (c1, 1): smaller means more exact searches.
        max_trials: Evaluations that one line search may take, at least 1.
        first_step: Length of the first trial along the negative gradient; by default
            ``min(1, 1 / |g|_1)``, or more where that would not move ``x``. Also after
            the memory was dropped.
        noise: Relative rounding error of the value. By default 1000 eps of its dtype;
            raise it for objectives that are themselves computed with errors.
        direction: ``"compact"`` (few large operations), ``"two_loop"`` (many small
            ones, which a compiler fuses), or by default the latter for up to 1000
            unknowns; the same numbers up to rounding.

    Raises:
        HyperparameterError: If a number is out of its range.

    References:
        D. C. Liu and J. Nocedal, On the limited memory BFGS method for large scale
        optimization, Math. Program. 45 (1989). The line search is that of J. J. Moré
        and D. J. Thuente (1994).

    Example:
        >>> import torch
        >>> from pureopt import LBFGS, Status
        >>> def rosenbrock(x):
        ...     return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> x = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> lbfgs = LBFGS()
        >>> state = lbfgs.init(x)
        >>> for _ in range(60):
        ...     grads, value = torch.func.grad_and_value(rosenbrock)(x)
        ...     x, state = lbfgs.step(x, state, grads, value=value)
        >>> lbfgs.eval_params(x, state)
        tensor([1., 1.], dtype=torch.float64)
    """

    memory: int = 10
    c1: Scalar = 1e-4
    c2: Scalar = 0.9
    max_trials: int = 20
    first_step: Scalar | None = None
    noise: Scalar | None = None
    direction: Literal["compact", "two_loop"] | None = None

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        for name in ("memory", "max_trials"):
            number = getattr(self, name)
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise HyperparameterError(
                    f"LBFGS({name}=...)", "be an integer >= 1", repr(number)
                )
        check_hyper("LBFGS(c1=...)", self.c1, high=0.5, schedule=False)
        check_hyper("LBFGS(c2=...)", self.c2, high=1.0, schedule=False)
        if (
            not isinstance(self.c1, Tensor)
            and not isinstance(self.c2, Tensor)
            and not 0 < self.c1 < self.c2
        ):
            raise HyperparameterError(
                "LBFGS(c1=..., c2=...)", "satisfy 0 < c1 < c2", f"{self.c1}, {self.c2}"
            )
        for name in ("first_step", "noise"):
            if getattr(self, name) is not None:
                check_hyper(f"LBFGS({name}=...)", getattr(self, name), schedule=False)
        if not isinstance(self.first_step, Tensor) and self.first_step == 0:
            raise HyperparameterError("LBFGS(first_step=...)", "be > 0", "0")
        if self.direction is not None and self.direction not in _DIRECTIONS:
            raise HyperparameterError(
                "LBFGS(direction=...)",
                f"be one of {sorted(_DIRECTIONS)}",
                repr(self.direction),
            )

    @property
    def searches(self) -> bool:
        """A rescaled gradient would not belong to the value."""
        return True

    def init(self, params: object) -> LBFGSState:
        """The state before the first evaluation."""
        check_params("LBFGS.init(params=...)", params)
        x = flat(params)
        form = self.direction or ("two_loop" if x.numel() <= SMALL else "compact")
        # `new_zeros`, not `zeros`: under vmap every state leaf has its own lanes.
        zero = x.new_zeros((), dtype=torch.int64)
        real = x.new_zeros((), dtype=accumulator(x))
        return LBFGSState(
            step=zero,
            iterations=zero.clone(),
            status=zero.clone(),
            accepted=torch.zeros_like(zero, dtype=torch.bool),
            phase=zero.clone(),
            x=x,
            value=real,
            grads=torch.zeros_like(x),
            direction=torch.zeros_like(x),
            slope=real.clone(),
            search=start(real, real, real),
            memory=empty_memory(x, self.memory, _DIRECTIONS[form]),
            least=torch.full_like(real, torch.finfo(real.dtype).max),
            stalls=zero.clone(),
        )

    def step(
        self,
        params: P,
        state: LBFGSState,
        grads: P,
        *,
        value: Tensor | None = None,
    ) -> tuple[P, LBFGSState]:
        """Take the value and gradient at the trial point; return the next trial point.

        Raises:
            TreeError: If ``grads`` does not match ``params``, or ``value`` is missing or
                not a 0-d tensor.
        """
        check_like("LBFGS.step(grads=...)", grads, params)
        value = check_value("LBFGS.step(value=...)", value)
        # Raveled in the order of the parameters, whatever that of the gradients.
        check_state("LBFGS.step(state=...)", state, LBFGSState, params)
        x = flat(params)
        check_like("LBFGS.step(state=...).x", state.x, x, "the raveled `params`")
        g = ravel(tree_map(lambda _, g: g, params, grads), x.dtype)
        noise = self._noise(value, x) * state.value.abs()
        step = state.step + _running(state)
        state, accepted, failed, finite = self._judge(state, value, g, noise)
        state = self._accept(state, x, value, g, accepted, noise)
        state, dropped = self._recover(state, failed, noise)
        state = self._aim(state, accepted | dropped)
        unusable = (state.phase == _BASE) & _running(state) & ~finite
        state = state._replace(
            status=_set(state.status, unusable, Status.NON_FINITE), step=step
        )
        trial = state.x + state.search.t.to(x.dtype) * state.direction
        return unravel(torch.where(_running(state), trial, state.x), params), state

    def eval_params(self, params: P, state: LBFGSState) -> P:
        """The last accepted iterate."""
        # A copy: who writes to the answer must not write to the state.
        return unravel(state.x.clone(), params)

    def restart(self, state: LBFGSState) -> LBFGSState:
        """Keep the pairs and take the next evaluation as the new base."""
        zero = torch.zeros_like(state.phase)
        return state._replace(
            phase=zero,
            status=zero.clone(),
            stalls=zero.clone(),
            least=torch.full_like(state.least, torch.finfo(state.least.dtype).max),
        )

    def _noise(self, value: Tensor, x: Tensor) -> Scalar:
        if self.noise is not None:
            return self.noise
        return NOISE * max(torch.finfo(value.dtype).eps, torch.finfo(x.dtype).eps)

    def _judge(
        self, state: LBFGSState, value: Tensor, g: Tensor, noise: Scalar
    ) -> tuple[LBFGSState, Tensor, Tensor, Tensor]:
        """Whether this evaluation is an iterate, or the search at its end."""
        f = value.to(state.value.dtype)
        finite = torch.isfinite(f) & torch.isfinite(g).all()
        g = torch.where(finite, g, torch.zeros_like(g))
        nan = torch.full_like(f, torch.nan)
        zero = torch.zeros_like(f)
        search, wolfe, stuck = advance(
            state.search,
            Point(zero, state.value, state.slope),
            Point(state.search.t, torch.where(finite, f, nan), dot(g, state.direction)),
            c1=self.c1,
            c2=self.c2,
            noise=noise,
            resolution=4 * torch.finfo(g.dtype).eps,
            max_trials=self.max_trials,
        )
        running = _running(state)
        base, searching, confirm = (
            running & (state.phase == p) for p in (_BASE, _SEARCH, _CONFIRM)
        )
        confirmed = confirm & finite & (f <= state.value + noise)
        accepted = (base & finite) | (searching & wolfe) | confirmed
        failed = (searching & stuck) | (confirm & ~confirmed)
        going_on = searching & ~accepted & ~failed
        search = tree_select(going_on | failed, search, state.search)
        return state._replace(search=search), accepted, failed, finite

    def _accept(
        self,
        state: LBFGSState,
        x: Tensor,
        value: Tensor,
        g: Tensor,
        accepted: Tensor,
        noise: Tensor,
    ) -> LBFGSState:
        """Where accepted: the pair, the new base, its direction and a fresh search."""
        f = value.to(state.value.dtype)
        pair = accepted & (state.phase != _BASE)
        # Zero operands where nothing is accepted: what is not finite stays outside.
        s = torch.where(pair, x - state.x, torch.zeros_like(x))
        y = torch.where(pair, g - state.grads, torch.zeros_like(g))
        eps = torch.finfo(x.dtype).eps
        curved = dot(s, y) > eps * norm(s) * norm(y)
        memory = remember(state.memory, s, y, pair & curved)
        new = tree_select(accepted, (x, f, g), (state.x, state.value, state.grads))
        size = new[2].abs().amax().to(f.dtype)
        still = (state.value - f).abs() <= STALL / NOISE * noise
        still = pair & still & ~(size < PROGRESS * state.least)
        stalls = torch.where(still, state.stalls + 1, torch.zeros_like(state.stalls))
        stalls = torch.where(accepted, stalls, state.stalls)
        status = _set(state.status, stalls >= STALLS, Status.PRECISION_LIMITED)
        status = _set(status, accepted & (size == 0), Status.CONVERGED)
        return state._replace(
            x=new[0],
            value=new[1],
            grads=new[2],
            memory=memory,
            accepted=accepted,
            iterations=state.iterations + accepted,
            least=torch.where(accepted, torch.minimum(size, state.least), state.least),
            stalls=stalls,
            status=torch.where(_running(state), status, state.status),
        )

    def _aim(self, state: LBFGSState, where: Tensor) -> LBFGSState:
        """Where asked: a descent direction from the iterate, and a search along it."""
        g = state.grads
        newton = -inverse_product(state.memory, g)
        slope = dot(g, newton)
        descent = slope < -torch.finfo(g.dtype).eps * norm(g) * norm(newton)
        memory = forget(state.memory, where & ~descent)
        some = descent & (memory.pairs > 0)
        down, first = steepest(state.x, g, self.first_step)
        direction = torch.where(some, newton, down)
        slope = torch.where(some, slope, dot(g, down))
        t = torch.where(some, torch.ones_like(first), first)
        return state._replace(
            direction=torch.where(where, direction, state.direction),
            slope=torch.where(where, slope, state.slope),
            search=tree_select(where, start(state.value, slope, t), state.search),
            memory=memory,
            phase=_set(state.phase, where, _SEARCH),
        )

    def _recover(
        self, state: LBFGSState, failed: Tensor, noise: Tensor
    ) -> tuple[LBFGSState, Tensor]:
        """Where the search failed: keep its best decrease, else drop the memory, else stop."""
        lower = (state.search.lo.t > 0) & (state.search.lo.f < state.value)
        confirm = failed & (state.phase == _SEARCH) & lower
        drop = failed & ~confirm & (state.memory.pairs > 0)
        stop = failed & ~confirm & ~drop
        # At the last far end the value rose. By about what the slope says it should
        # have fallen: then the gradient is wrong. By far more: then that is rounding.
        hi = state.search.hi
        rise, promised = hi.f - state.value, (hi.t * state.slope).abs()
        risen = state.search.hi_finite & (rise > noise) & (rise <= 10 * promised)
        status = _set(state.status, stop, Status.PRECISION_LIMITED)
        status = _set(status, stop & risen, Status.NO_DESCENT)
        kept = state._replace(
            status=status,
            phase=_set(state.phase, confirm, _CONFIRM),
            search=state.search._replace(
                t=torch.where(confirm, state.search.lo.t, state.search.t)
            ),
            memory=forget(state.memory, drop),
        )
        return kept, drop


def _running(state: LBFGSState) -> Tensor:
    return state.status == _RUNNING


def _set(status: Tensor, where: Tensor, to: int) -> Tensor:
    return torch.where(where, torch.full_like(status, int(to)), status)
