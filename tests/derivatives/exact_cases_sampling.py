"""Values between and at the places of a grid, mended by `exact`, by definition."""

from __future__ import annotations

import itertools
from functools import partial

import mpmath as mp
import torch
from torch.nn import functional as F

from tests.derivatives.exact_case import Case
from tests.derivatives.row import randn

NN = vars(torch._C)["_nn"]

# Of an image of 2 x 3 values, and of two points (x, y): one beyond each edge.
POINTS = (0.3, -0.7, 1.2, 0.5, -1.1, 0.8, 1.45, -0.35, -0.1, 1.4)
# Of 2 x 2 x 2 values, and of one point that is off the grid by less than a step.
VOLUME = (0.3, -0.7, 1.2, 0.5, -1.1, 0.8, 0.9, -0.4, 0.2, -0.3, 0.7)


def image(x: torch.Tensor) -> torch.Tensor:
    return x[:6].reshape(1, 1, 2, 3)


def points(x: torch.Tensor) -> torch.Tensor:
    return x[6:].reshape(1, 1, 2, 2)


def grid_sample(x: torch.Tensor, **options) -> torch.Tensor:
    return F.grid_sample(image(x), points(x), **options)


def hat(d):
    return max(0, 1 - d)


def keys(d):
    a = mp.mpf(-3) / 4
    if d <= 1:
        return (a + 2) * d**3 - (a + 3) * d**2 + 1
    return a * (d**3 - 5 * d**2 + 8 * d - 4) if d < 2 else 0


def border(u, n):
    return min(max(u, 0), n - 1)


def reflected(u, n):
    """A triangle wave around the outer edges of the first and the last value."""
    v = (u + mp.mpf(1) / 2) % (2 * n)
    return border(min(v, 2 * n - v) - mp.mpf(1) / 2, n)


def nothing(u, n):
    del n
    return u


def sampled(values, sizes, point, kernel, pad=nothing):
    """The sum over all places of their values times a kernel of their distance."""
    us = [((g + 1) * n - 1) / 2 for g, n in zip(reversed(point), sizes, strict=True)]
    if kernel is hat:
        us = [pad(u, n) for u, n in zip(us, sizes, strict=True)]
    first = [int(mp.floor(u)) - 1 for u in us]
    total = mp.mpf(0)
    for places in itertools.product(*(range(f, f + 4) for f in first)):
        weight = mp.fprod(kernel(abs(u - p)) for u, p in zip(us, places, strict=True))
        k = 0
        for p, n in zip(places, sizes, strict=True):
            q = pad(p, n)
            k = k * n + int(mp.nint(q)) if 0 <= q < n and k is not None else None
        total += 0 if k is None else weight * values[k]
    return total


def two_points(x, **options):
    return [sampled(x[:6], (2, 3), x[k : k + 2], **options) for k in (6, 8)]


def last_with(indices, x, n):
    """At each place the last value that has its index."""
    out = [mp.mpf(0)] * n
    for i, v in zip(indices, x, strict=True):
        out[i] = v
    return out


def transposed_convolution(x):
    """Of four values with a kernel of three: stride 2, padding 1, output padding 1."""
    out = [mp.mpf(0)] * 9
    for i, k in itertools.product(range(4), range(3)):
        out[2 * i + k] += x[i] * x[4 + k]
    return out[1:]


REPEATED = (3, 0, 3, 5, 0, 1)

SAMPLING = [
    Case(
        "grid_sample",
        (10,),
        partial(grid_sample, align_corners=False),
        partial(two_points, kernel=hat),
        POINTS,
    ),
    Case(
        "grid_sample, border",
        (10,),
        partial(grid_sample, padding_mode="border", align_corners=False),
        partial(two_points, kernel=hat, pad=border),
        POINTS,
    ),
    Case(
        "grid_sample, reflection",
        (10,),
        partial(grid_sample, padding_mode="reflection", align_corners=False),
        partial(two_points, kernel=hat, pad=reflected),
        POINTS,
    ),
    Case(
        "grid_sample, bicubic",
        (10,),
        partial(grid_sample, mode="bicubic", align_corners=False),
        partial(two_points, kernel=keys),
        POINTS,
    ),
    Case(
        "grid_sample, bicubic, reflection",
        (10,),
        partial(
            grid_sample,
            mode="bicubic",
            padding_mode="reflection",
            align_corners=False,
        ),
        partial(two_points, kernel=keys, pad=reflected),
        POINTS,
    ),
    Case(
        "grid_sample, 3d",
        (11,),
        lambda x: F.grid_sample(
            x[:8].reshape(1, 1, 2, 2, 2),
            x[8:].reshape(1, 1, 1, 1, 3),
            align_corners=False,
        ),
        lambda x: [sampled(x[:8], (2, 2, 2), x[8:], hat)],
        VOLUME,
    ),
    Case(
        "max_unpool1d, repeated indices",
        (6,),
        lambda x: F.max_unpool1d(x.reshape(1, 6), torch.tensor([REPEATED]), 1),
        lambda x: last_with(REPEATED, x, 6),
    ),
    Case(
        "max_unpool3d, repeated indices",
        (6,),
        lambda x: F.max_unpool3d(
            x.reshape(1, 1, 2, 3), torch.tensor(REPEATED).reshape(1, 1, 2, 3), 1
        ),
        lambda x: last_with(REPEATED, x, 6),
    ),
    Case(
        "as_strided_scatter, overlapping strides",
        (7,),
        lambda x: torch.as_strided_scatter(
            x, x[1:].reshape(2, 3).sin(), (2, 3), (2, 1)
        ),
        lambda x: [*map(mp.sin, x[1:3]), *map(mp.sin, x[4:7]), *x[5:]],
    ),
    Case(
        "conv_transpose1d, output padding",
        (7,),
        lambda x: F.conv_transpose1d(
            x[:4].reshape(1, 1, 4),
            x[4:].reshape(1, 1, 3),
            stride=2,
            padding=1,
            output_padding=1,
        ),
        transposed_convolution,
    ),
]

INDEX = torch.tensor([[3, 0, 3, 5, 0, 1], [0, 0, 0, 2, 2, 7]])
# Of which each of the calls takes some.
X = randn(60, seed=3)


def part(x, start, *shape):
    return x[start : start + torch.Size(shape).numel()].reshape(shape)


def indices(x, *shape):
    return INDEX.reshape(shape).to(x.device)


def planes(x):
    return part(x, 0, 1, 2, 3, 4), part(x, 24, 1, 3, 2, 2)


def solids(x):
    return part(x, 0, 1, 2, 2, 3, 4), part(x, 48, 1, 2, 2, 1, 3)


# Each of a vector of 60 numbers, with other arguments than those of the cases.
CALLS = {
    "grid_sampler": lambda x: torch.grid_sampler(*planes(x), 2, 1, True),
    "grid_sampler_2d": lambda x: torch.grid_sampler_2d(*planes(x), 0, 2, True),
    "grid_sampler_2d, named": lambda x: torch.grid_sampler_2d(
        input=planes(x)[0],
        grid=planes(x)[1],
        interpolation_mode=0,
        padding_mode=1,
        align_corners=False,
    ),
    "grid_sampler_3d": lambda x: torch.grid_sampler_3d(*solids(x), 0, 2, False),
    "grid_sampler, nearest": lambda x: torch.grid_sampler(*solids(x), 1, 0, False),
    "max_unpool1d": lambda x: F.max_unpool1d(part(x, 0, 2, 6), indices(x, 2, 6), 3),
    "max_unpool2d": lambda x: F.max_unpool2d(
        part(x, 0, 2, 1, 2, 3), indices(x, 2, 1, 2, 3), 2, output_size=(5, 5)
    ),
    "MaxUnpool2d": lambda x: torch.nn.MaxUnpool2d((2, 3))(
        part(x, 0, 2, 2, 3), indices(x, 2, 2, 3)
    ),
    "MaxUnpool3d": lambda x: torch.nn.MaxUnpool3d(2)(
        part(x, 0, 2, 1, 2, 3, 1), indices(x, 2, 1, 2, 3, 1)
    ),
    "max_unpool3d": lambda x: NN.max_unpool3d(
        part(x, 0, 2, 3, 2, 1),
        indices(x, 2, 3, 2, 1),
        (1, 2, 4),
        stride=(1, 1, 1),
        padding=(0, 0, 0),
    ),
    "as_strided_scatter": lambda x: x.as_strided_scatter(
        src=part(x, 0, 2, 2).exp(), size=(2, 2), stride=(1, 1)
    ),
    "strided, of a transposed": lambda x: torch.as_strided_scatter(
        part(x, 0, 5, 12).mT, part(x, 0, 3, 4).exp(), (3, 4), (12, 6), 7
    ),
    "strided, of a later part": lambda x: torch.as_strided_scatter(
        (2 * x)[20:40], part(x, 0, 2, 3), (2, 3), (2, 1)
    ),
    "strided, nothing": lambda x: torch.as_strided_scatter(x, x[:0], (0,), (1,)),
    "conv_transpose1d": lambda x: F.conv_transpose1d(
        part(x, 0, 4, 5), part(x, 20, 4, 2, 3), x[44:48], 3, 1, 2, 2
    ),
    "conv_transpose2d": lambda x: F.conv_transpose2d(
        part(x, 0, 2, 2, 2, 3),
        part(x, 24, 2, 2, 2, 3),
        stride=(2, 1),
        output_padding=(1, 2),
        dilation=(1, 3),
    ),
    "conv_transpose3d": lambda x: F.conv_transpose3d(
        part(x, 0, 1, 2, 2, 2, 3),
        part(x, 24, 2, 1, 2, 1, 3),
        bias=x[36:37],
        stride=2,
        output_padding=(1, 0, 1),
    ),
    "convolution": lambda x: torch.convolution(
        part(x, 0, 1, 2, 3, 3),
        part(x, 18, 2, 2, 2, 2),
        x[34:36],
        (3,),
        (1,),
        (1,),
        True,
        (2, 1),
        1,
    ),
}
