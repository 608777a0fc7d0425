"""What vectors in order share: the gaps between neighbors, and the nearest order."""

from __future__ import annotations

from operator import index

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.constraints._bounds import smallest
from pureopt.constraints._numeric import (
    all_finite,
    max_abs,
    or_nan,
    scaled,
    working,
    working_eps,
)
from pureopt.constraints._positive import softplus, softplus_inverse


def gaps_inverse(
    lower: Tensor, upper: Tensor, min_gap: float, dtype: torch.dtype
) -> Tensor:
    """The free numbers of the gaps between neighbors.

    What exceeds the smallest gap counts as at least the part of a rounding of the two
    neighbors that vanishes again in a sum of all gaps, also where rounding has made it
    negative.
    """
    size = torch.maximum(lower.abs(), upper.abs())
    count = max(upper.shape[-1], 1)
    floor = scaled(size, torch.finfo(dtype).eps / (8 * count)) + smallest(upper.dtype)
    excess = upper - lower - min_gap
    return softplus_inverse(torch.maximum(excess, floor))


def missing_gap(gaps: Tensor, min_gap: float, y: Tensor) -> Float[Tensor, "*batch"]:
    """The largest gap that is missing, at least zero; NaN where ``y`` is not finite."""
    missing = F.pad(min_gap - gaps, (1, 0)).amax(-1)
    return or_nan(all_finite(y, 1), missing, 0)


def gap_tolerance(y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch"]:
    """``10 eps`` times the largest entry: the roundings of two entries, and of two sums.

    The sums are in at least float32: ``2 eps`` for narrower numbers.
    """
    eps = 2 * torch.finfo(y.dtype).eps + 8 * working_eps(y.dtype)
    return scaled(working(max_abs(y, 1)), eps)


def gap_rounding(free: Tensor, missing: Tensor, y: Tensor) -> Float[Tensor, "*batch"]:
    """What rounding does to a sum of the gaps of some free numbers.

    Each is off by its slope times the roundings of the free number and of softplus; the
    sum rounds ``k`` times; what is missing of a gap in ``y`` is not missing afterwards.
    """
    eps = torch.finfo(y.dtype).eps
    gaps = (scaled(free.abs() + 8, eps) * (-softplus(-free)).exp()).sum(-1)
    sums = scaled(working(max_abs(y, 1)), (y.shape[-1] + 8) * eps)
    mended = missing.clamp(min=0).sum(-1)
    return (gaps + sums + mended + 2 * smallest(y.dtype)).to(y.dtype)


def isotonic(y: Float[Tensor, "*batch k"]) -> Float[Tensor, "*batch k"]:
    r"""The nearest vector that does not decrease, in ``k^2`` numbers.

    .. math:: \hat y_k = \max_{i \le k} \min_{j \ge k} \operatorname{mean}(y_i, ..., y_j)

    It does not decrease in any rounding. (Pooling adjacent violators is linear in time
    but decides by values, one vector at a time.)
    """
    k = index(y.shape[-1])  # a number, also where the compiler has a symbol
    if k == 0:
        return y.clone()
    # A power of two that keeps the sums of the largest numbers from overflow.
    unit = 2.0 ** -(4 * k).bit_length()
    small = scaled(y, unit)
    center = small.mean(-1, keepdim=True)
    sums = F.pad((small - center).cumsum(-1), (1, 0))
    i = torch.arange(k, device=y.device)
    count = (i - i[:, None] + 1).clamp(min=1).to(y.dtype)
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / count + center[..., None]
    means = scaled(means, 1 / unit)
    # A mean of one is exact, so that what is in order stays as it is.
    means = torch.where(i == i[:, None], y[..., None], means)
    means = torch.where(i < i[:, None], torch.full_like(means, torch.inf), means)
    # For each start i, the smallest mean that ends at k or later: a minimum from the
    # right; then the largest over all starts up to k.
    least = means.flip(-1).cummin(-1).values.flip(-1)
    started = torch.where(i < i[:, None], torch.full_like(least, -torch.inf), least)
    return started.amax(-2)


def ramp(y: Tensor, min_gap: float) -> Tensor:
    """Numbers ``min_gap`` apart, around zero."""
    k = y.shape[-1]
    i = torch.arange(k, dtype=y.dtype, device=y.device)
    return (i - (k - 1) / 2) * min_gap
