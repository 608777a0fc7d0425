r"""Special functions as compositions that do not cancel.

Torch differentiates ``erfcx`` by :math:`y' = 2 x y - 2 / \sqrt{\pi}`, and ``log_ndtr`` by
:math:`y' = e^{-x^2 / 2 - y} / \sqrt{2 \pi}`: in the tail both cancel, and each order loses
a factor :math:`x^2`. Here they are written with Mills' ratio

.. math:: R(t) = \int_0^\infty e^{-t s - s^2 / 2} \, ds, \qquad t \ge 0,

(NIST Digital Library of Mathematical Functions, 7.8) as a sum over the nodes of a Gauss
rule. In each derivative all terms have the same sign: nothing cancels at any order.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import (
    KERNELS,
    Table,
    is_inexact,
    softplus,
    widened,
)

# Nodes s of the Gauss rules (ibidem, 3.5(v)) for exp(-2 s - s^2 / 2) and for
# exp(-10 s - s^2 / 2) on s > 0, and their weights over these functions. To double precision
# R is right with the first for t <= 5, to order 16, and with the second, scaled by 10 / t,
# for t >= 5, to order 10; at order 16 that is right to 11 digits.
_NEAR = (
    (0.012688906106865202, 0.03253788405833822),
    (0.06663170523777204, 0.075234265711837),
    (0.16278379646972652, 0.11682941913905463),
    (0.29972640597047445, 0.1567381402016121),
    (0.47557126615109724, 0.1945863338385619),
    (0.6881443084435449, 0.23017582095396227),
    (0.9351577019618885, 0.26347453278886457),
    (1.2143660119936954, 0.2945950844446866),
    (1.5236976791110188, 0.32376814438919577),
    (1.8613603315476739, 0.3513177882214554),
    (2.2259247414554766, 0.3776441584137566),
    (2.616396679710024, 0.40321714157808447),
    (3.03228932263883, 0.4285844149581826),
    (3.473712820476971, 0.4543988250106391),
    (3.9415046640826703, 0.4814749040061867),
    (4.437439185593589, 0.5108956879400771),
    (4.964587245739528, 0.5442181597873312),
    (5.527975284178554, 0.5838972913299966),
    (6.135900826365011, 0.6342668157250303),
    (6.8029123954065565, 0.7042263635317408),
    (7.558079298620619, 0.8168822429314472),
    (8.478693405325249, 1.0680067790420176),
)
_FAR = (
    (0.005491143301585978, 0.014092294094050684),
    (0.028934733767719347, 0.0328093290654959),
    (0.07112139332476737, 0.05156806924005021),
    (0.1320804263129999, 0.07035596434217116),
    (0.2118487019218691, 0.08919033569190885),
    (0.310485817257906, 0.10809927853189252),
    (0.4280854785016044, 0.1271234105146124),
    (0.5647896934846366, 0.1463193919328569),
    (0.7208070349857199, 0.1657645793949848),
    (0.8964362918398635, 0.18556325787643277),
    (1.0920974887156312, 0.205855334564534),
    (1.3083734177234825, 0.22682898786217223),
    (1.5460668046997261, 0.2487398475982091),
    (1.8062817265581281, 0.27194134755507715),
    (2.0905443760655724, 0.2969350791553748),
    (2.4009910435356145, 0.3244590852625799),
    (2.7406783083944695, 0.35565362307316356),
    (3.114133670070825, 0.3924009385501271),
    (3.528431385108679, 0.4381092045452152),
    (3.995597031900177, 0.4998556571778668),
    (4.539223909845347, 0.5960533711263344),
    (5.221267995744625, 0.8027730722746109),
)
_SWITCH = 5.0
_FAR_AT = 10.0

# Frequencies and weights of the Gauss rule on 0 < s < 1 for even functions.
_COSINES = (
    (0.09501250983763744, 0.1894506104550685),
    (0.2816035507792589, 0.18260341504492358),
    (0.45801677765722737, 0.16915651939500254),
    (0.6178762444026438, 0.14959598881657674),
    (0.755404408355003, 0.12462897125553388),
    (0.8656312023878318, 0.09515851168249279),
    (0.9445750230732326, 0.062253523938647894),
    (0.9894009349916499, 0.027152459411754096),
)
_SMALL = 2.0

ROOT_TWO, ROOT_HALF = math.sqrt(2), math.sqrt(0.5)
ERFCX_OVER_RATIO = math.sqrt(2 / math.pi)
# All derivatives of the normal distribution are zero there, in double precision too.
FLAT = 40.0
LOG_ROOT_TAU = 0.5 * math.log(math.tau)
DTYPES = {torch.float32, torch.float64}


def _rule(t: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights for each of these numbers, along a new last dimension.

    For the derivatives they are constants: the sum is that of any rule that resolves the
    integrand. The weights are without the scale.
    """
    fixed = t.detach().unsqueeze(-1)
    near, far = (
        torch.tensor(rule, dtype=t.dtype, device=t.device).unbind(-1)
        for rule in (_NEAR, _FAR)
    )
    beyond = fixed > _SWITCH
    nodes = torch.where(beyond, far[0] * (_FAR_AT / fixed), near[0])
    return nodes, torch.where(beyond, far[1], near[1])


def scale(t: Tensor) -> Tensor:
    """What :func:`moments` are to be multiplied with, a constant for the derivatives."""
    fixed = t.detach()
    return torch.where(fixed > _SWITCH, _FAR_AT / fixed, 1.0)


def moments(t: Tensor, order: int = 0) -> list[Tensor]:
    r""":math:`(-1)^n R^{(n)}(t) / c` for ``n`` up to ``order``, where ``c`` is the scale.

    Without it nothing underflows that is divided by the first of them.
    """
    nodes, weights = _rule(t)
    terms = weights * torch.exp(-nodes * t.unsqueeze(-1) - 0.5 * nodes * nodes)
    found = [terms.sum(-1)]
    for _ in range(order):
        terms = terms * nodes
        found.append(terms.sum(-1))
    return found


def log_ndtr(input: Tensor) -> Tensor:  # noqa: A002
    r"""``torch.special.log_ndtr``, for :math:`x < 0` the logarithm of a product.

    .. math:: \log \Phi(x) = -\tfrac{x^2}{2} - \tfrac12 \log(2 \pi) + \log R(-x)
    """
    if input.dtype not in DTYPES:
        return torch.special.log_ndtr(input)
    return _log_ndtr(input.unsqueeze(-1)).squeeze(-1)


# Of a 0-d tensor of float32 times a number, the tangent is float64 in torch: these two are
# of one dimension or more.
def _log_ndtr(input: Tensor) -> Tensor:  # noqa: A002
    tail = input < 0
    x = input.masked_fill(~tail, 0.0)
    t = -x.masked_fill(input.isneginf(), 0.0)  # where the ratio has no slope
    left = moments(t)[0].log() + scale(t).log() - LOG_ROOT_TAU - 0.5 * x * x
    # From there on it is zero, also where infinity would be multiplied with it.
    past = input > FLAT
    # What the kernel computes there, which has no rule for lanes.
    above = input.masked_fill(tail | past, 0.0)
    right = (-0.5 * torch.erfc(above * ROOT_HALF)).log1p()
    return torch.where(tail, left, right.masked_fill(past, -0.0))


def erfcx(input: Tensor) -> Tensor:  # noqa: A002
    r"""``torch.special.erfcx``, for :math:`x > 0` by Mills' ratio.

    .. math:: \mathrm{erfcx}(x) = \sqrt{2 / \pi} \, R(\sqrt 2 \, x)
    """
    if input.dtype not in DTYPES:
        return torch.special.erfcx(input)
    return _erfcx(input.unsqueeze(-1)).squeeze(-1)


def _erfcx(input: Tensor) -> Tensor:  # noqa: A002
    tail = input > 0
    end = input.isposinf()
    t = input.masked_fill(~tail | end, 0.0) * ROOT_TWO
    right = moments(t)[0] * (scale(t) * ERFCX_OVER_RATIO)
    left = torch.special.erfcx(input.masked_fill(tail, 0.0))
    return torch.where(tail, right.masked_fill(end, 0.0), left)


def sinc(input: Tensor) -> Tensor:  # noqa: A002
    r"""``torch.sinc``, whose derivatives torch divides by zero at zero.

    .. math:: \frac{\sin z}{z} = \int_0^1 \cos(z s) \, ds, \qquad z = \pi x
    """
    if not is_inexact(input):
        return torch.sinc(input)
    x = widened(input)
    small = (x.detach() * math.pi).abs() < _SMALL
    z = torch.where(small, x, 0.0).unsqueeze(-1) * math.pi
    rule = torch.tensor(_COSINES, dtype=x.abs().dtype, device=x.device)
    nodes, weights = rule.unbind(-1)
    near = (weights * (z * nodes).cos()).sum(-1)
    y = torch.where(small, near, torch.sinc(torch.where(small, 1.0, x)))
    return y.to(input.dtype)


def log_sigmoid(input: Tensor) -> Tensor:  # noqa: A002
    """``F.logsigmoid``, of whose slope torch subtracts one where it is near one."""
    if not input.dtype.is_floating_point:
        return KERNELS.log_sigmoid(input)  # which refuses it
    return -softplus(-widened(input)).to(input.dtype)


SPECIAL: Table = {
    torch.special.log_ndtr: log_ndtr,
    torch.special.erfcx: erfcx,
    # `torch.special.sinc` is another function of the same name.
    **dict.fromkeys((torch.sinc, torch.Tensor.sinc, torch.special.sinc), sinc),
    KERNELS.log_sigmoid: log_sigmoid,
}
