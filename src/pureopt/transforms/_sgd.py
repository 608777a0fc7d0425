"""Stochastic gradient descent with momentum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt._tree import tree_map
from pureopt._typing import Hyper, P, Scalar
from pureopt.constraints import Transport
from pureopt.transforms._base import Additive, check_hyper, check_state, zero_step
from pureopt.transforms._leaves import decay, descend, is_zero, zeros


class SGDState(NamedTuple):
    """The state of :class:`SGD`.

    Attributes:
        step: How many steps were taken.
        mu: The momentum buffer, a tree like the parameters; ``()`` without momentum.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.SGD(lr=0.1).init(torch.ones(2))
        SGDState(step=tensor(0), mu=())
    """

    step: Int[Tensor, ""]
    mu: Any


@final
@dataclass(frozen=True, eq=False)
class SGD(Additive):
    r"""Gradient descent, with momentum, dampening, weight decay and Nesterov's look ahead.

    .. math::
        g_t &= \nabla f(\theta_t) + \lambda \theta_t \\
        \mu_t &= m \mu_{t-1} + (1 - d) g_t, \quad \mu_0 = g_0 \\
        \theta_{t+1} &= \theta_t - \eta \mu_t
            \quad\text{or, with Nesterov, } \theta_t - \eta (g_t + m \mu_t)

    The same steps as :class:`torch.optim.SGD`: the first momentum buffer is the first
    gradient, without dampening.

    Args:
        lr: :math:`\eta \ge 0`; a number, a 0-d tensor, or a schedule of the step,
            which counts from 0.
        momentum: :math:`m \ge 0`; a number or a 0-d tensor.
        dampening: :math:`d \ge 0`; a number or a 0-d tensor.
        weight_decay: :math:`\lambda \ge 0`, the L2 form; a number or a 0-d tensor.
        nesterov: Needs momentum, and a dampening of 0.

    Raises:
        HyperparameterError: If a number is outside its range, or a tensor is not 0-d.

    References:
        Sutskever, Martens, Dahl, Hinton (2013), "On the importance of initialization
        and momentum in deep learning", equations 1 to 4, in the form where the
        learning rate scales the buffer.

    Example:
        One step from 1 along the gradient 2, and the pull of the weight decay:

        >>> import torch
        >>> import pureopt as po
        >>> sgd, w = po.SGD(lr=0.1, momentum=0.9, weight_decay=0.5), torch.tensor(1.0)
        >>> w, state = sgd.step(w, sgd.init(w), torch.tensor(2.0))
        >>> w, state.mu
        (tensor(0.7500), tensor(2.5000))
    """

    lr: Hyper = 1e-3
    momentum: Scalar = 0.0
    dampening: Scalar = 0.0
    weight_decay: Scalar = 0.0
    nesterov: bool = False

    def __post_init__(self) -> None:
        check_hyper("SGD(lr=...)", self.lr)
        for name in ("momentum", "dampening", "weight_decay"):
            check_hyper(f"SGD({name}=...)", getattr(self, name), schedule=False)
        if self.nesterov and (is_zero(self.momentum) or not is_zero(self.dampening)):
            raise HyperparameterError(
                "SGD(nesterov=True)",
                "have momentum > 0 and dampening 0",
                f"momentum {self.momentum} and dampening {self.dampening}",
                "Write `SGD(lr, momentum=0.9, nesterov=True)`.",
            )

    def init(self, params: Any) -> SGDState:
        mu = () if is_zero(self.momentum) else zeros(params)
        return SGDState(zero_step(params), mu)

    def update(
        self,
        params: P,
        state: SGDState,
        grads: P,
        *,
        value: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[P, SGDState]:
        moments = () if is_zero(self.momentum) else ("mu",)
        check_state("SGD.step(state=...)", state, SGDState, params, *moments)
        grads = decay(params, grads, self.weight_decay)
        if is_zero(self.momentum):
            updates = descend(grads, self.lr, state.step)
            return updates, SGDState(state.step + 1, ())
        mu = tree_map(
            lambda m, g: (self.momentum * m + g).to(m.dtype),
            state.mu,
            self._dampened(grads, state.step),
        )
        direction = mu
        if self.nesterov:
            direction = tree_map(lambda g, m: g + self.momentum * m, grads, mu)
        updates = descend(direction, self.lr, state.step)
        return updates, SGDState(state.step + 1, mu)

    def rebase(
        self,
        state: SGDState,
        params: Any,  # noqa: ARG002
        transport: Transport,
    ) -> SGDState:
        """The same state with the momentum transported as a gradient."""
        if is_zero(self.momentum):
            return state
        return state._replace(mu=transport(state.mu))

    def _dampened(self, grads: P, step: Tensor) -> P:
        if is_zero(self.dampening):
            return grads
        return tree_map(
            lambda g: torch.where(step == 0, g, (1 - self.dampening) * g), grads
        )
