"""What a solver returns, and how it ended."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, Generic, NamedTuple

from torch import Tensor

from pureopt._typing import P


class Status(IntEnum):
    """How a run ended; the integer that ``status`` tensors hold, one per lane.

    Example:
        >>> Status(1).name, int(Status.RUNNING)
        ('CONVERGED', 0)
        >>> print(Status.PRECISION_LIMITED.reason)
        the value no longer changes beyond its rounding error
    """

    RUNNING = 0
    CONVERGED = 1
    PRECISION_LIMITED = 2
    MAX_STEPS = 3
    NON_FINITE = 4
    NO_DESCENT = 5

    @property
    def reason(self) -> str:
        """The status in a sentence."""
        return _REASONS[self]


_REASONS = {
    Status.RUNNING: "not finished",
    Status.CONVERGED: "a tolerance was reached",
    Status.PRECISION_LIMITED: "the value no longer changes beyond its rounding error",
    Status.MAX_STEPS: "the budget of steps was spent",
    Status.NON_FINITE: "the value or its gradient is NaN or infinite",
    Status.NO_DESCENT: "no smaller value was found along the negative gradient",
}


class Solution(NamedTuple, Generic[P]):
    """The answer of a solver; with ``batched=True`` each field has the lane dimension.

    ``params``, ``value``, ``grads`` and ``aux`` belong to one and the same evaluation.

    Attributes:
        params: The best point found.
        value: The objective there.
        grads: Its gradient there.
        status: A :class:`Status` as an int64 tensor.
        steps: How many steps the lane took before it ended.
        evaluations: How many times the objective and its gradient were evaluated.
        state: The final state of the transform.
        aux: What the objective returned beside the value; ``()`` without ``has_aux``.

    Example:
        >>> Solution._fields[:4]
        ('params', 'value', 'grads', 'status')
    """

    params: P
    value: Tensor
    grads: P
    status: Tensor
    steps: Tensor
    evaluations: Tensor
    state: Any
    aux: Any

    def __repr__(self) -> str:
        """Field by field, without the numbers of the state, which are many."""
        told = {name: repr(value) for name, value in self._asdict().items()}
        told["state"] = f"{type(self.state).__name__}(...)"
        return f"Solution({', '.join(f'{k}={v}' for k, v in told.items())})"
