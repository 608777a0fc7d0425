"""Samples of a grid between its points, as sums of weights times values."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from math import prod

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.derivatives._exactness._numeric import Table

# As torch counts the interpolations and the paddings.
_BILINEAR, _NEAREST, _BICUBIC = range(3)
_ZEROS, _BORDER, _REFLECTION = range(3)

# The slope parameter of the cubic kernel.
_A = -0.75


def _sampler(kernel: Callable[..., Tensor], *dims: int) -> Callable[..., Tensor]:
    """The composition for a kernel that samples grids with so many axes."""

    def grid_sampler(
        input: Tensor,  # noqa: A002
        grid: Tensor,
        interpolation_mode: int,
        padding_mode: int,
        align_corners: bool,
    ) -> Tensor:
        axes = input.dim() - 2
        if (
            axes not in dims
            or not _fit(input, grid)
            or interpolation_mode not in range(5 - axes)  # bicubic only in the plane
            or padding_mode not in range(3)
        ):
            return kernel(  # which refuses it
                input, grid, interpolation_mode, padding_mode, align_corners
            )
        along = [
            # The first coordinate runs along the last axis.
            _neighbors(x, size, interpolation_mode, padding_mode, align_corners)
            for x, size in zip(reversed(grid.unbind(-1)), input.shape[2:], strict=True)
        ]
        return _sampled(input, along)

    return grid_sampler


def _fit(input: Tensor, grid: Tensor) -> bool:  # noqa: A002
    """Whether torch samples this input at these points."""
    return (
        grid.shape[:1] == input.shape[:1]
        and grid.dim() == input.dim()
        and grid.shape[-1] == input.dim() - 2
        and prod(input.shape[2:]) > 0
        and grid.dtype == input.dtype
        and grid.device == input.device
        and input.dtype.is_floating_point
    )


# A neighbor along one axis: its place, whether that is on the grid, and its weight.
_Neighbor = tuple[Tensor, Tensor, Tensor]


def _sampled(
    input: Float[Tensor, "n c *size"],  # noqa: A002
    along: list[list[_Neighbor]],
) -> Float[Tensor, "n c *points"]:
    """The sum over the neighbors of the products of their weights times their values."""
    *_, weight = along[0][0]
    values, shape = input.flatten(2), (*input.shape[:2], *weight.shape[1:])
    out = values.new_zeros(*shape[:2], prod(shape[2:]))
    for corner in itertools.product(*along):
        place, inside, weight = corner[0]
        for (p, i, w), size in zip(corner[1:], input.shape[3:], strict=True):
            place, inside, weight = place * size + p, inside & i, weight * w
        place, inside, weight = (
            v.flatten(1).unsqueeze(1) for v in (place, inside, weight)
        )
        value = values.gather(2, place.expand(-1, shape[1], -1))
        # Not a weight of zero: a value may be infinite.
        out = out + torch.where(inside, value, 0.0) * weight
    return out.reshape(shape)


def _neighbors(
    x: Tensor, size: int, interpolation: int, padding: int, align_corners: bool
) -> list[_Neighbor]:
    """The neighbors along an axis of points between -1 and 1."""
    x = (x + 1) / 2 * (size - 1) if align_corners else ((x + 1) * size - 1) / 2
    if interpolation != _BICUBIC:
        x = _padded(x, size, padding, align_corners)
    if interpolation == _NEAREST:
        # A weight of one, whose derivative is zero and not absent.
        return [_neighbor(x.round(), 1 + 0 * x.sign(), size)]
    first = x.detach().floor()
    t = x - first
    if interpolation == _BILINEAR:
        return [_neighbor(first, 1 - t, size), _neighbor(first + 1, t, size)]
    places = (_padded(first + k, size, padding, align_corners) for k in range(-1, 3))
    weights = (_far(t + 1), _near(t), _near(1 - t), _far(2 - t))
    return [_neighbor(p, w, size) for p, w in zip(places, weights, strict=True)]


def _neighbor(place: Tensor, weight: Tensor, size: int) -> _Neighbor:
    """At a place that may be off the grid: there any other one is read."""
    place = place.detach()
    inside = (place >= 0) & (place < size)
    return torch.where(inside, place, 0.0).long(), inside, weight


def _near(t: Tensor) -> Tensor:
    r""":math:`(a + 2) t^3 - (a + 3) t^2 + 1`, for :math:`t \le 1` (Keys 1981)."""
    return ((_A + 2) * t - (_A + 3)) * t * t + 1


def _far(t: Tensor) -> Tensor:
    r""":math:`a t^3 - 5 a t^2 + 8 a t - 4 a`, for :math:`1 < t < 2` (Keys 1981)."""
    return ((_A * t - 5 * _A) * t + 8 * _A) * t - 4 * _A


def _padded(x: Tensor, size: int, padding: int, align_corners: bool) -> Tensor:
    """Where a coordinate off the grid counts to be; constant at and beyond the ends."""
    if padding == _ZEROS:
        return x
    if padding == _REFLECTION:
        x = _reflected(x, size, align_corners)
    last = size - 1.0
    return torch.where(x > 0, torch.where(x < last, x, last), 0.0)


def _reflected(x: Tensor, size: int, align_corners: bool) -> Tensor:
    """Reflected at the ends of the grid until it lies between them."""
    low, span = (0.0, size - 1) if align_corners else (-0.5, size)
    if not span:
        return torch.zeros_like(x)
    gap = x - low
    gap = torch.where(gap < 0, -gap, gap)
    rest = gap.fmod(span)
    even = (gap.detach() / span).floor() % 2 == 0
    return torch.where(even, rest, span - rest) + low


SAMPLING: Table = {
    torch.grid_sampler: _sampler(torch.grid_sampler, 2, 3),
    torch.grid_sampler_2d: _sampler(torch.grid_sampler_2d, 2),
    torch.grid_sampler_3d: _sampler(torch.grid_sampler_3d, 3),
}
