"""The principal logarithm of a rotation, by products and inverses of matrices only."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.constraints._numeric import (
    all_finite,
    finite_or_zero,
    identity,
    inverse,
    matrix_exp,
    scaled,
)

# Newton steps for the polar factor. An angle pi - d starts at a singular value d / 2,
# and each step doubles it: down to d = 1e-6. From a half turn on five steps are enough.
_NEWTON = (26, 6, 6)
# Terms of the series: tan(pi / 16)^(2 * 11 + 1) / 23 * 16 is below 1e-16.
_TERMS = 11


def rotation_logarithm(
    r: Float[Tensor, "*batch n n"],
) -> Float[Tensor, "*batch n n"]:
    r"""The skew ``S`` with ``exp(S) = R`` and angles below pi.

    Of half turns and reflections, which have none, it is anything, NaN or not.

    .. math::
        \log R = 8 \log R^{1/8} = 16 \operatorname{artanh} C, \qquad
        C = (R^{1/8} - I)(R^{1/8} + I)^{-1}

    The square root of a rotation is the orthogonal polar factor of ``I + R``, here by
    Newton's iteration; no eigenvalues, so that equal angles have derivatives.

    References:
        Higham (2008), sections 8.3 (Newton's iteration) and 11.5 (inverse scaling and
        squaring).
    """
    eye = identity(r)
    root = r
    for steps in _NEWTON:
        root = _polar(root + eye, steps)
    c = (root - eye) @ inverse(root + eye)
    c = _skew(c)
    c2 = c @ c
    series = scaled(eye, 1 / (2 * _TERMS - 1))
    for i in range(_TERMS - 1, 0, -1):
        series = c2 @ series + scaled(eye, 1 / (2 * i - 1))
    s = scaled(c @ series, 16)
    s = s + _missing(s, r)
    return s + _missing(s, r)


def _polar(z: Tensor, steps: int) -> Tensor:
    """Newton's iteration for the orthogonal polar factor."""
    for _ in range(steps):
        z = scaled(z + inverse(z).mT, 0.5)
    return z


def _missing(s: Tensor, r: Tensor) -> Tensor:
    """What is missing in ``exp(S) = R`` to first order: the skew part of exp(-S) R."""
    gap = _skew(matrix_exp(-finite_or_zero(s)) @ r)
    return torch.where(all_finite(s)[..., None, None], gap, s)


def _skew(a: Tensor) -> Tensor:
    """The skew part."""
    return scaled(a - a.mT, 0.5)
