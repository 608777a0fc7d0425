"""Minimize a function with any transform."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from itertools import count
from types import FunctionType
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.func import grad_and_value, vmap

from pureopt._errors import HyperparameterError, PureoptError, TreeError, told
from pureopt._progress import progress_bar
from pureopt._solution import Solution, Status
from pureopt._tree import check_params, tree_items, tree_leaves, tree_map
from pureopt._typing import P, Scalar
from pureopt.solvers._monitor import (
    Evaluation,
    Run,
    Tolerances,
    begin,
    finite_or,
    observe,
    reports,
)
from pureopt.transforms import LBFGS, Transform, check_hyper

_COMPILED = 32
"""So many compiled steps are kept for later calls, and so many shapes of each."""

_STEPS: dict[Any, Callable[..., Run]] = {}
_NUMBERS = count()


def minimize(
    fn: Callable[..., Any],
    params: P,
    solver: Transform | None = None,
    *,
    args: tuple[Any, ...] = (),
    has_aux: bool = False,
    batched: bool = False,
    max_steps: int = 1000,
    rtol: Scalar = 0.0,
    atol: Scalar = 0.0,
    gtol: Scalar | None = None,
    check_every: int = 10,
    compile: bool = False,  # noqa: A002
    progress: bool = False,
    callback: Callable[[Solution[P]], object] | None = None,
) -> Solution[P]:
    r"""Minimize ``fn(params, *args)`` from ``params``.

    .. math:: \min_\theta f(\theta; \text{args})

    One step is one evaluation of the value and gradient. A run converges when
    ``|gradient|_inf <= gtol``, or when the step and the change of the value are both
    small: ``|step|_inf <= atol + rtol * |params|_inf`` and
    ``|change| <= atol + rtol * |value|``. Numbers never raise: how a run ended is in
    ``solution.status``, see :class:`~pureopt.Status`.

    With ``batched=True`` every leaf of ``params`` and ``args`` has a leading dimension,
    one independent problem per lane, and so has every field of the solution. A lane
    that ended stands still at its best point. Data that all lanes share is closed over.

    The loop runs without recording derivatives and waits for the device at most once in
    ``check_every`` steps. Before it, ``fn`` is called once without its gradient, to see
    what it returns.

    Args:
        fn: The objective: a 0-d floating tensor, or ``(value, aux)`` with ``has_aux``.
        params: Where to start: a tree of floating tensors; not modified.
        solver: Any transform; by default ``LBFGS()``.
        args: Further arguments of ``fn``, trees of tensors; not optimized.
        has_aux: Whether ``fn`` returns other results beside the value.
        batched: Whether ``params`` and ``args`` hold one problem per lane.
        max_steps: Most steps a lane may take, at least 1.
        rtol: Relative tolerance of step and change; 0 with ``atol=0``: not tested.
        atol: Absolute tolerance of step and change.
        gtol: Tolerance of the largest gradient entry; by default the square root of eps
            of the parameters' coarsest dtype (1.5e-8 in float64, 3.5e-4 in float32 and
            below).
        check_every: Steps between two looks at the status, at least 1.
        compile: Whether to compile the step with ``torch.compile(fullgraph=True)``. The
            first call takes seconds; later ones with the same ``fn`` and a solver of
            the same configuration reuse it. ``fn``, and what it closes over, is kept
            alive for that until 32 other programs were compiled.
        progress: Whether to draw a progress bar (needs the extra ``progress``).
        callback: Called at each look at the status with the solution so far. If it
            returns ``True``, the run ends there; lanes keep the status ``RUNNING``.

    Raises:
        TreeError: If ``params`` holds anything but floating tensors, ``fn`` does not
            return a 0-d floating tensor, or lanes do not match.
        HyperparameterError: If a count or a tolerance is out of its range.

    References:
        The default solver is described in :class:`~pureopt.LBFGS`.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> def rosenbrock(x):
        ...     return 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> solution = po.minimize(rosenbrock, torch.tensor([-1.2, 1.0]).double())
        >>> solution.params.round(decimals=6), po.Status(int(solution.status)).name
        (tensor([1., 1.], dtype=torch.float64), 'CONVERGED')
    """
    solver = LBFGS() if solver is None else solver
    _check_arguments(fn, params, solver, args)
    _check_counts(max_steps=max_steps, check_every=check_every)
    if batched:
        _check_lanes(params, args)
    programs = _programs(fn, solver, has_aux=has_aux, batched=batched)
    step = _compiled(fn, solver, has_aux, batched) if compile else programs.step
    tolerances = _tolerances(params, rtol, atol, gtol)
    show = progress_bar(max_steps, enabled=progress, every=check_every)
    with torch.no_grad(), show as bar:
        run = tree_map(_own, programs.blank(params, args))
        for taken in range(max_steps):
            if taken and taken % check_every == 0:
                if callback and callback(_solution(run, run.best, 0)) is True:
                    return _solution(run, *programs.answer(run, args))
                if not bool((run.status == Status.RUNNING).any()):
                    break
            run = step(run, args, tolerances)
            bar({"value": run.best.value})
        return _finish(run, *programs.answer(run, args))


class _Programs(NamedTuple):
    """The three pure programs of a minimization, over lanes if there are any."""

    blank: Callable[..., Run]
    step: Callable[..., Run]
    answer: Callable[..., tuple[Evaluation, int]]


def _programs(
    fn: Callable[..., Any], solver: Transform, *, has_aux: bool, batched: bool
) -> _Programs:
    objective = _objective(fn, has_aux=has_aux)

    def evaluate(params: Any, args: tuple[Any, ...]) -> Evaluation:
        grads, (value, aux) = grad_and_value(objective, has_aux=True)(params, *args)
        return Evaluation(params, value, grads, aux)

    def step(run: Run, args: tuple[Any, ...], tolerances: Tensor) -> Run:
        new = evaluate(run.params, args)
        params, state = solver.step(run.params, run.state, new.grads, value=new.value)
        return observe(run, new, params, state, Tolerances(*tolerances.unbind()))

    def blank(params: Any, args: tuple[Any, ...]) -> Run:
        # Without its gradient: only to see what `fn` returns. All steps then have the
        # same structure, and a compiled run is compiled from its first step on.
        value, aux = objective(params, *args)
        return begin(params, solver.init(params), value, aux)

    lanes = _over_lanes if batched else _as_is

    def answer(run: Run, args: tuple[Any, ...]) -> tuple[Evaluation, int]:
        # Only an averaging transform answers with another point than it evaluated.
        if (
            reports(run.state)
            or solver.eval_params(run.params, run.state) is run.params
        ):
            return run.best, 0
        point = lanes(solver.eval_params, 2)(run.params, run.state)
        average = lanes(evaluate, 2)(point, args)
        # After a bad step, or outside the domain, it is none: then the best point.
        return lanes(finite_or, 2)(average, run.best), 1

    return _Programs(lanes(blank, 2), lanes(step, 2), answer)


def _over_lanes(program: Callable[..., Any], mapped: int) -> Callable[..., Any]:
    """The program for every lane of its first ``mapped`` arguments."""

    def over_lanes(*arguments: Any) -> Any:
        dims = tuple(0 if i < mapped else None for i in range(len(arguments)))
        return vmap(program, in_dims=dims)(*arguments)

    return over_lanes


def _as_is(program: Callable[..., Any], mapped: int) -> Callable[..., Any]:
    del mapped
    return program


def _compiled(
    fn: Callable[..., Any], solver: Transform, has_aux: bool, batched: bool
) -> Callable[..., Run]:
    key = (fn, _configuration(solver), has_aux, batched)
    try:
        step = _STEPS.pop(key, None)
    except TypeError:  # `fn` is not hashable: nothing to find it again by
        return _compile(fn, solver, has_aux, batched)
    # The newest last, so that the one unused for longest goes first.
    step = _STEPS[key] = step or _compile(fn, solver, has_aux, batched)
    if len(_STEPS) > _COMPILED:
        _STEPS.pop(next(iter(_STEPS)))
    return step


def _configuration(part: Any) -> Any:
    """What two transforms have in common that make the same program."""
    if isinstance(part, tuple | list):
        return tuple(map(_configuration, cast("tuple[Any, ...]", part)))
    if isinstance(part, Transform) and is_dataclass(part):
        values = (getattr(part, field.name) for field in fields(part))
        return type(part), *map(_configuration, values)
    return part


def _compile(
    fn: Callable[..., Any], solver: Transform, has_aux: bool, batched: bool
) -> Callable[..., Run]:
    step = cast(
        "FunctionType", _programs(fn, solver, has_aux=has_aux, batched=batched).step
    )
    # A code object of its own: the programs of all objectives would share one, whose
    # number of compilations is limited, and the sizes that were seen to change.
    step.__code__ = step.__code__.replace(co_name=f"step_{next(_NUMBERS)}")
    return torch.compile(step, fullgraph=True, recompile_limit=_COMPILED)  # pyright: ignore[reportCallIssue]


def _objective(
    fn: Callable[..., Any], *, has_aux: bool
) -> Callable[..., tuple[Tensor, Any]]:
    def objective(*inputs: Any) -> tuple[Tensor, Any]:
        out = fn(*inputs)
        if not has_aux:
            return _scalar(out), ()
        if not isinstance(out, tuple) or len(out) != 2:  # noqa: PLR2004
            raise TreeError(
                "minimize(fn=..., has_aux=True)",
                "return a pair `(value, aux)`",
                f"`{type(out).__name__}`",
            )
        value, aux = out
        for path, leaf in tree_items(aux):
            if not isinstance(leaf, Tensor):
                raise TreeError(
                    "minimize(fn=..., has_aux=True)",
                    "return an `aux` that holds only tensors",
                    f"`{type(leaf).__name__}` at '{path}'",
                )
        return _scalar(value), aux

    return objective


def _scalar(value: Any) -> Tensor:
    if isinstance(value, Tensor) and not value.dim() and value.is_floating_point():
        return value
    hint = "Reduce the loss, for example with `.mean()` or `.sum()`."
    got = f"`{type(value).__name__}`"
    if isinstance(value, Tensor):
        got = f"shape {tuple(value.shape)}, dtype {value.dtype}"
    elif isinstance(value, tuple):
        hint = "Pass `has_aux=True` if it returns `(value, aux)`."
    raise TreeError("minimize(fn=...)", "return a 0-d floating tensor", got, hint)


def _check_arguments(fn: object, params: object, solver: object, args: object) -> None:
    if not callable(fn):
        hint = "The function comes first: `minimize(fn, params)`."
        raise PureoptError(
            "minimize(fn=...)", "be a function of `params`", told(fn), hint
        )
    check_params("minimize(params=...)", params)
    if not any(leaf.numel() for leaf in tree_leaves(params)):
        raise TreeError(
            "minimize(params=...)", "hold at least one number", "only empty tensors"
        )
    if not isinstance(args, tuple | list):
        hint = "Write `args=(data,)` for one argument."
        raise TreeError(
            "minimize(args=...)", "be a tuple of further arguments", told(args), hint
        )
    if not isinstance(solver, Transform):
        ours = isinstance(solver, type) and issubclass(solver, Transform)
        raise PureoptError(
            "minimize(solver=...)",
            "be a transform such as `LBFGS()` or `Adam(lr=0.1)`",
            told(solver),
            "Pass an instance, not the class." if ours else "",
        )


def _check_counts(**counts: int) -> None:
    for name, number in counts.items():
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                f"minimize({name}=...)", "be an integer >= 1", repr(number)
            )


def _check_lanes(params: object, args: tuple[Any, ...]) -> None:
    lanes: int | None = None
    for name, tree in (("params", params), ("args", args)):
        for path, leaf in tree_items(tree):
            here = f"`{name}`" + (f" at '{path}'" if path else "")
            rule = (
                "have one leading lane dimension in every leaf of `params` and `args`"
            )
            if not isinstance(leaf, Tensor) or not leaf.dim():
                what = "a 0-d tensor" if isinstance(leaf, Tensor) else "no tensor"
                raise TreeError(
                    "minimize(batched=True)",
                    rule,
                    f"{what} in {here}",
                    "Close over data that all lanes share.",
                )
            lanes = leaf.shape[0] if lanes is None else lanes
            if leaf.shape[0] != lanes:
                raise TreeError(
                    "minimize(batched=True)",
                    rule,
                    f"{leaf.shape[0]} lanes in {here}, {lanes} before",
                    "Close over data that all lanes share.",
                )


def _tolerances(
    params: object, rtol: Scalar, atol: Scalar, gtol: Scalar | None
) -> Tensor:
    """The three numbers as an input of the compiled step, not constants in it.

    In one vector: `torch.compile` traces twice what has a 0-d float64 input.
    """
    leaves = cast("list[Tensor]", tree_leaves(params))
    if gtol is None:
        dtypes = (torch.promote_types(p.dtype, torch.float32) for p in leaves)
        gtol = math.sqrt(max(torch.finfo(dtype).eps for dtype in dtypes))
    numbers: list[Tensor] = []
    for name, number in (("rtol", rtol), ("atol", atol), ("gtol", gtol)):
        check_hyper(f"minimize({name}=...)", number, schedule=False)
        numbers.append(
            torch.as_tensor(number, dtype=torch.float64, device=leaves[0].device)
        )
    return torch.stack(numbers)


def _own(leaf: Tensor) -> Tensor:
    """A copy with memory of its own: lanes of a constant are views of one number."""
    return leaf.clone(memory_format=torch.contiguous_format)


def _solution(run: Run, best: Evaluation, extra: int) -> Solution[Any]:
    return Solution(
        params=best.params,
        value=best.value,
        grads=best.grads,
        status=run.status,
        steps=run.steps,
        evaluations=run.steps + extra,
        state=run.state,
        aux=best.aux,
    )


def _finish(run: Run, best: Evaluation, extra: int) -> Solution[Any]:
    still = run.status == Status.RUNNING
    status = torch.where(still, int(Status.MAX_STEPS), run.status)
    return _solution(run._replace(status=status), best, extra)
