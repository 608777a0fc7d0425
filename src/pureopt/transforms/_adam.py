"""Adam, and Adam with decoupled weight decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, final

from jaxtyping import Int
from torch import Tensor

from pureopt._errors import HyperparameterError
from pureopt._tree import tree_map
from pureopt._typing import Hyper, P, Scalar
from pureopt.constraints import Transport
from pureopt.transforms._base import Additive, check_hyper, check_state, zero_step
from pureopt.transforms._leaves import (
    bias_correction,
    decay,
    descend,
    floating,
    is_zero,
    mean,
    sqrt,
    widen,
    zeros,
)


class AdamState(NamedTuple):
    """The state of :class:`Adam` and :class:`AdamW`.

    Attributes:
        step: How many steps were taken: what a schedule sees.
        mu: The first moment of the gradients, a tree like the parameters.
        nu: The second moment; both in float32 where a parameter has less.
        seen: How many gradients the moments are of: ``step``, but 1 after a rebase.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.Adam().init(torch.ones(2, dtype=torch.bfloat16)).nu
        tensor([0., 0.])
    """

    step: Int[Tensor, ""]
    mu: Any
    nu: Any
    seen: Int[Tensor, ""]


@final
@dataclass(frozen=True, eq=False)
class Adam(Additive):
    r"""Adaptive moment estimation, with bias correction.

    .. math::
        g_t &= \nabla f(\theta_{t-1}) + \lambda \theta_{t-1} \\
        \mu_t &= \beta_1 \mu_{t-1} + (1 - \beta_1) g_t \\
        \nu_t &= \beta_2 \nu_{t-1} + (1 - \beta_2) g_t^2 \\
        \hat\mu_t &= \mu_t / (1 - \beta_1^t), \quad \hat\nu_t = \nu_t / (1 - \beta_2^t) \\
        \theta_t &= \theta_{t-1} - \eta\, \hat\mu_t / (\sqrt{\hat\nu_t} + \epsilon)

    The same steps as :class:`torch.optim.Adam`. Derivatives through a step are finite
    everywhere, zero gradients included.

    Args:
        lr: :math:`\eta \ge 0`; a number, a 0-d tensor, or a schedule of the step,
            which counts from 0.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1); numbers or 0-d tensors.
        eps: :math:`\epsilon \ge 0`, outside the root; a number or a 0-d tensor. With 0
            an element whose gradients were all zero stays (in torch it becomes NaN).
        weight_decay: :math:`\lambda \ge 0`, the L2 form, which the second moment
            rescales (:class:`AdamW` does not); a number or a 0-d tensor.

    Raises:
        HyperparameterError: If a number is outside its range, or a tensor is not 0-d.

    References:
        Kingma, Ba (2015), "Adam: a method for stochastic optimization", Algorithm 1.

    Example:
        The first step has length ``lr`` whatever the scale of the gradient:

        >>> import torch
        >>> import pureopt as po
        >>> adam, w = po.Adam(lr=0.25), torch.tensor([1.0, 1.0])
        >>> adam.step(w, adam.init(w), torch.tensor([1e-3, -1e3]))[0]
        tensor([0.7500, 1.2500])
    """

    lr: Hyper = 1e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 0.0

    def __post_init__(self) -> None:
        _check("Adam", self)

    def init(self, params: Any) -> AdamState:
        return _start(params)

    def update(
        self,
        params: P,
        state: AdamState,
        grads: P,
        *,
        value: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[P, AdamState]:
        check_state("Adam.step(state=...)", state, AdamState, params, "mu", "nu")
        grads = decay(params, grads, self.weight_decay)
        direction, new_state = _direction(state, grads, self.betas, self.eps)
        return descend(direction, self.lr, state.step), new_state

    def rebase(
        self,
        state: AdamState,
        params: Any,  # noqa: ARG002
        transport: Transport,
    ) -> AdamState:
        """First moments transported, second ones begun anew from them.

        The state is that of a fresh optimizer that has seen one gradient, the mean so
        far, so the next steps are as bounded as its first ones. Leaves whose coordinates
        did not change keep the mean of their squares; a schedule goes on.
        """
        return _rebase(state, transport, self.betas)


@final
@dataclass(frozen=True, eq=False)
class AdamW(Additive):
    r"""Adam with decoupled weight decay.

    .. math::
        \theta_t = \theta_{t-1} - \eta \left(
            \hat\mu_t / (\sqrt{\hat\nu_t} + \epsilon) + \lambda \theta_{t-1} \right)

    with the moments of :class:`Adam`, which do not see the decay. The same steps as
    :class:`torch.optim.AdamW`.

    Args:
        lr: :math:`\eta \ge 0`; a number, a 0-d tensor, or a schedule of the step,
            which counts from 0. It scales the decay too.
        betas: :math:`(\beta_1, \beta_2)`, each in [0, 1); numbers or 0-d tensors.
        eps: :math:`\epsilon \ge 0`, outside the root; a number or a 0-d tensor.
        weight_decay: :math:`\lambda \ge 0`; a number or a 0-d tensor.

    Raises:
        HyperparameterError: If a number is outside its range, or a tensor is not 0-d.

    References:
        Loshchilov, Hutter (2019), "Decoupled weight decay regularization",
        Algorithm 2, with the schedule multiplier taken into the learning rate.

    Example:
        Where the gradient is zero, only the decay acts:

        >>> import torch
        >>> import pureopt as po
        >>> adamw, w = po.AdamW(lr=0.5, weight_decay=0.5), torch.tensor([4.0, 4.0])
        >>> adamw.step(w, adamw.init(w), torch.tensor([0.0, 1.0]))[0]
        tensor([3.0000, 2.5000])
    """

    lr: Hyper = 1e-3
    betas: tuple[Scalar, Scalar] = (0.9, 0.999)
    eps: Scalar = 1e-8
    weight_decay: Scalar = 1e-2

    def __post_init__(self) -> None:
        _check("AdamW", self)

    def init(self, params: Any) -> AdamState:
        return _start(params)

    def update(
        self,
        params: P,
        state: AdamState,
        grads: P,
        *,
        value: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[P, AdamState]:
        check_state("AdamW.step(state=...)", state, AdamState, params, "mu", "nu")
        grads = widen(params, grads)
        direction, new_state = _direction(state, grads, self.betas, self.eps)
        if not is_zero(self.weight_decay):
            direction = tree_map(
                lambda d, p: d + self.weight_decay * p.to(d.dtype), direction, params
            )
        return descend(direction, self.lr, state.step), new_state

    def rebase(
        self,
        state: AdamState,
        params: Any,  # noqa: ARG002
        transport: Transport,
    ) -> AdamState:
        """First moments transported, second ones begun anew, as :meth:`Adam.rebase`."""
        return _rebase(state, transport, self.betas)


def _start(params: Any) -> AdamState:
    return AdamState(zero_step(params), zeros(params), zeros(params), zero_step(params))


def _direction(
    state: AdamState, grads: P, betas: tuple[Scalar, Scalar], eps: Scalar
) -> tuple[P, AdamState]:
    beta1, beta2 = betas
    mu = mean(state.mu, grads, beta1)
    nu = mean(state.nu, tree_map(lambda g: g * g, grads), beta2)
    seen = state.seen + 1
    t = floating(seen, mu)
    c1, c2 = bias_correction(beta1, t), bias_correction(beta2, t)
    direction = tree_map(lambda m, v: (m / c1) / (sqrt(v / c2) + eps), mu, nu)
    return direction, AdamState(state.step + 1, mu, nu, seen)


def _rebase(
    state: AdamState, transport: Transport, betas: tuple[Scalar, Scalar]
) -> AdamState:
    """The state of a fresh optimizer that has seen one gradient: the mean so far.

    Second moments of a moved leaf are those of that gradient, so that the next steps
    are bounded as the first ones are; elsewhere they are kept.
    """
    beta1, beta2 = betas
    # Without a gradient so far the moments are zero, and the divisor must not be.
    t = floating(state.seen.clamp(min=1), state.mu)
    c1, c2 = bias_correction(beta1, t), bias_correction(beta2, t)
    mu = transport(tree_map(lambda m: (m / c1).to(m.dtype), state.mu))
    squares = tree_map(lambda m: m * m, mu)
    nu = transport.select(squares, tree_map(lambda v: (v / c2).to(v.dtype), state.nu))
    return AdamState(
        state.step,
        tree_map(lambda m: ((1 - beta1) * m).to(m.dtype), mu),
        tree_map(lambda v: ((1 - beta2) * v).to(v.dtype), nu),
        state.seen.clamp(max=1),
    )


def _check(name: str, config: Adam | AdamW) -> None:
    check_hyper(f"{name}(lr=...)", config.lr)
    if not isinstance(config.betas, tuple | list) or len(config.betas) != 2:  # noqa: PLR2004  # pyright: ignore[reportUnnecessaryIsInstance]
        raise HyperparameterError(f"{name}(betas=...)", "be a pair", repr(config.betas))
    for i, beta in enumerate(config.betas):
        check_hyper(f"{name}(betas=...)[{i}]", beta, high=1.0, schedule=False)
    check_hyper(f"{name}(eps=...)", config.eps, schedule=False)
    check_hyper(f"{name}(weight_decay=...)", config.weight_decay, schedule=False)
