"""The exponential moving average of the parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._errors import CompositionError, told
from pureopt._tree import tree_map
from pureopt._typing import P, Scalar, State
from pureopt.constraints import Transport
from pureopt.transforms._base import (
    Additive,
    Transform,
    check_hyper,
    check_state,
    zero_step,
)
from pureopt.transforms._leaves import copy


class EMAState(NamedTuple):
    """The state of :class:`EMA`.

    Attributes:
        step: How many steps were taken.
        inner: The state of the inner transform.
        ema: The average, a tree like the parameters; in float32 where one has less.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.EMA(po.SGD(lr=0.1)).init(torch.ones(2)).ema
        tensor([1., 1.])
    """

    step: Int[Tensor, ""]
    inner: State
    ema: Any


@final
@dataclass(frozen=True, eq=False)
class EMA(Transform):
    r"""Average the answers of another transform; its steps stay as they are.

    .. math:: \bar\theta_t = d\, \bar\theta_{t-1} + (1 - d)\, \theta_t,
        \qquad \bar\theta_0 = \theta_0

    :meth:`step` returns the inner transform's point, where to evaluate next;
    :meth:`eval_params` returns the average. The start has the weight :math:`d^t`.

    Args:
        inner: The transform whose answers are averaged.
        decay: :math:`d` in [0, 1); a number or a 0-d tensor.

    Raises:
        CompositionError: If ``inner`` is no transform, or only emits gradients.
        HyperparameterError: If the number is outside its range, or the tensor not 0-d.

    References:
        Polyak, Juditsky (1992), "Acceleration of stochastic approximation by
        averaging", with the exponential weights of Tarvainen, Valpola (2017), "Mean
        teachers are better role models", section 2.

    Example:
        The point moves from 1 to 0; the average goes half of the way:

        >>> import torch
        >>> import pureopt as po
        >>> ema, w = po.EMA(po.SGD(lr=1.0), decay=0.5), torch.tensor(1.0)
        >>> w, state = ema.step(w, ema.init(w), torch.tensor(1.0))
        >>> w, ema.eval_params(w, state)
        (tensor(0.), tensor(0.5000))
    """

    inner: Transform
    decay: Scalar = 0.999

    def __post_init__(self) -> None:
        check_hyper("EMA(decay=...)", self.decay, high=1.0, schedule=False)
        name = type(self.inner).__name__
        if not isinstance(self.inner, Transform):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise CompositionError(
                "EMA(inner=...)",
                "be a transform",
                told(self.inner),
                "Pass for example `EMA(AdamW(lr=1e-3))`.",
            )
        if isinstance(self.inner, Additive) and self.inner.emits == "gradients":
            raise CompositionError(
                "EMA(inner=...)",
                "be an optimizer",
                f"`{name}`, which only emits gradients",
                f"Write `EMA({name}(...) >> SGD(lr))`.",
            )

    @property
    def searches(self) -> bool:
        return self.inner.searches

    def init(self, params: Any) -> EMAState:
        return EMAState(zero_step(params), self.inner.init(params), copy(params))

    def step(
        self, params: P, state: EMAState, grads: P, *, value: Tensor | None = None
    ) -> tuple[P, EMAState]:
        check_state("EMA.step(state=...)", state, EMAState, params, "ema")
        params, inner = self.inner.step(params, state.inner, grads, value=value)
        ema = tree_map(
            # Not `d * e + (1 - d) * a`: where e = a, the average must stay exactly there.
            lambda e, a: (e + (1 - self.decay) * (a - e)).to(e.dtype),
            state.ema,
            self.inner.eval_params(params, inner),
        )
        return params, EMAState(state.step + 1, inner, ema)

    def eval_params(self, params: P, state: EMAState) -> P:
        return tree_map(lambda p, e: e.to(p.dtype), params, state.ema)

    def restart(self, state: EMAState) -> EMAState:
        return state._replace(inner=self.inner.restart(state.inner))

    def rebase(self, state: EMAState, params: Any, transport: Transport) -> EMAState:
        """The inner state rebased, and the average as a point in the new coordinates.

        A leaf of the average that has no place there begins anew at the parameters.
        """
        inner = self.inner.rebase(state.inner, params, transport)
        ema = tree_map(
            lambda e, p: torch.where(e.isfinite().all(), e, p.to(e.dtype)),
            transport.points(state.ema),
            params,
        )
        return EMAState(state.step, inner, ema)
