"""The memory of L-BFGS, and the two ways to apply the inverse Hessian it stands for.

Pairs ``s = x_{k+1} - x_k`` and ``y = g_{k+1} - g_k`` are kept in a ring: a new one takes
the row of the oldest, and the other rows are copied as they are. What is small (the Gram
matrices, the coefficients) is put into the order of time, the newest last. Vectors have
the dtype of the parameters, scalars and Gram matrices float64.

References:
    J. Nocedal and S. J. Wright, Numerical Optimization, 2006, Algorithm 7.4.
    R. H. Byrd, J. Nocedal and R. B. Schnabel, Representations of quasi-Newton matrices
    and their use in limited memory methods, Math. Program. 63 (1994), Theorem 2.2.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._tree import ravel, tree_leaves
from pureopt._typing import Scalar


class Memory(NamedTuple):
    """The last ``m`` pairs of a problem in ``n`` unknowns, and their inner products.

    Attributes:
        s: Steps, one a row of the ring.
        y: Changes of the gradient.
        sy: ``s_i . y_i`` for :func:`two_loop`; for :func:`compact` all ``s_i . y_j``
            where pair i is not newer than pair j, and elsewhere what is not to be read.
        yy: ``y_i . y_i``, or all ``y_i . y_j``.
        pairs: How many rows count.
        newest: The row of the newest pair.
    """

    s: Float[Tensor, "m n"]
    y: Float[Tensor, "m n"]
    sy: Float[Tensor, "m *m"]
    yy: Float[Tensor, "m *m"]
    pairs: Int[Tensor, ""]
    newest: Int[Tensor, ""]


def flat(tree: object) -> Tensor:
    """One vector in the widest dtype of the tree, float32 at least."""
    dtype = torch.float32
    for leaf in tree_leaves(tree):
        dtype = torch.promote_types(dtype, leaf.dtype)
    return ravel(tree, dtype)


def accumulator(x: Tensor) -> torch.dtype:
    """Float64, or float32 on devices that lack it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def dot(a: Float[Tensor, " n"], b: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The inner product in float64, where no product of float32 rounds or overflows."""
    wide = accumulator(a)
    return torch.sum(a.to(wide) * b.to(wide), dim=-1)


def largest(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The largest absolute entry, 1 if all are zero: a scale, constant to derivatives.

    What is divided by it can be squared: from 1e19 on a square overflows in float32.
    """
    size = x.detach().abs().amax(dim=-1)
    return torch.where(size > 0, size, torch.ones_like(size))


def norm(x: Float[Tensor, " n"]) -> Float[Tensor, ""]:
    """The Euclidean norm, with derivative 0 at 0."""
    square = dot(x, x)
    some = square > 0
    root = torch.sqrt(torch.where(some, square, torch.ones_like(square)))
    return torch.where(some, root, torch.zeros_like(square))


def products(rows: Float[Tensor, "m n"], x: Float[Tensor, " n"]) -> Float[Tensor, " m"]:
    """The inner product of each row with ``x``, without a copy of the rows."""
    scale, wide = largest(x), accumulator(x)
    return (rows @ (x / scale)).to(wide) * scale.to(wide)


def empty_memory(x: Float[Tensor, " n"], m: int, form: Callable[..., Tensor]) -> Memory:
    """No pairs yet, of the shape that :func:`two_loop` or :func:`compact` reads."""
    gram = x.new_zeros((m, m) if form is compact else (m,), dtype=accumulator(x))
    zero = x.new_zeros((), dtype=torch.int64)
    return Memory(
        s=x.new_zeros((m, x.numel())),
        y=x.new_zeros((m, x.numel())),
        sy=gram,
        yy=gram.clone(),
        pairs=zero,
        newest=zero.clone(),
    )


def inverse_product(memory: Memory, g: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``H g``, by the form that the memory was made for."""
    return (two_loop if memory.sy.dim() == 1 else compact)(memory, g)


def remember(
    memory: Memory, s: Float[Tensor, " n"], y: Float[Tensor, " n"], keep: Tensor
) -> Memory:
    """Write the pair over the oldest one where ``keep``."""
    m = memory.s.shape[0]
    slot = torch.remainder(memory.newest + 1, m)
    here = torch.arange(m, device=s.device) == slot
    s_rows, y_rows = (
        _write(rows, row, slot, keep) for rows, row in ((memory.s, s), (memory.y, y))
    )
    if memory.sy.dim() == 1:
        sy, yy, place = dot(s, y), dot(y, y), (here, here)
    else:
        sy, yy = products(s_rows, y).unsqueeze(-1), products(y_rows, y)
        yy = torch.where(here, yy.unsqueeze(-1), yy)
        place = here, here | here.unsqueeze(-1)
    return Memory(
        s=s_rows,
        y=y_rows,
        sy=torch.where(place[0] & keep, sy, memory.sy),
        yy=torch.where(place[1] & keep, yy, memory.yy),
        pairs=torch.where(keep, (memory.pairs + 1).clamp(max=m), memory.pairs),
        newest=torch.where(keep, slot, memory.newest),
    )


def forget(memory: Memory, drop: Tensor) -> Memory:
    """No pairs where ``drop``; what the rows hold no longer counts."""
    none = torch.zeros_like(memory.pairs)
    return memory._replace(pairs=torch.where(drop, none, memory.pairs))


def steepest(
    x: Float[Tensor, " n"], g: Float[Tensor, " n"], length: Scalar | None
) -> tuple[Float[Tensor, " n"], Float[Tensor, ""]]:
    """The negative gradient over its largest entry, and the first step along it.

    The step is ``length`` gradients; by default ``min(1, 1 / |g|_1)``, or more where
    that is below one rounding of ``x`` and so would be no step.
    """
    scale, wide = largest(g), accumulator(g)
    if length is not None:
        return -g / scale, scale.to(wide) * length
    step = scale.to(wide) / g.abs().sum(dtype=wide).clamp(min=1)
    least = torch.finfo(x.dtype).eps * largest(x).to(wide)
    return -g / scale, torch.maximum(step, least)


def _write(rows: Tensor, row: Tensor, slot: Tensor, keep: Tensor) -> Tensor:
    """The rows with one of them replaced where ``keep``; one pass over the memory."""
    # Indices of one element: a 0-d one would be read, and the host would wait.
    slot = slot.unsqueeze(0)
    row = torch.where(keep, row, rows[slot].squeeze(0))
    return rows.index_put((slot,), row.unsqueeze(0))


def _in_time(memory: Memory) -> tuple[Tensor, Tensor]:
    """The row of each pair in the order of time, and the place in time of each row."""
    rows = torch.arange(memory.s.shape[0], device=memory.s.device)
    past = memory.newest + 1
    return torch.remainder(rows + past, len(rows)), torch.remainder(
        rows - past, len(rows)
    )


def _diagonal(gram: Float[Tensor, "m m"]) -> Float[Tensor, " m"]:
    # A strided slice: inductor lowers `torch.diagonal` with a deprecation warning.
    return gram.flatten()[:: gram.shape[0] + 1]


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x))


def _filled(memory: Memory) -> Tensor:
    """Which places in time hold a pair that counts."""
    m = memory.s.shape[0]
    return torch.arange(m, device=memory.s.device) >= m - memory.pairs


def _scaling(sy: Tensor, yy: Tensor, memory: Memory) -> Tensor:
    """Gamma = s.y / y.y of the newest pair, the scale of the initial matrix; 1 without."""
    some = memory.pairs > 0
    one = torch.ones_like(sy[-1])
    return torch.where(some, sy[-1], one) / torch.where(some, yy[-1], one)


def two_loop(memory: Memory, g: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``H g`` by the recursion over the pairs (Nocedal and Wright, Algorithm 7.4)."""
    filled, (order, _) = _filled(memory), _in_time(memory)
    sy, yy = memory.sy[order], memory.yy[order]
    one = torch.ones_like(sy)
    rho = _masked(one / torch.where(filled, sy, one), filled)
    s_rows, y_rows = (a[order] for a in (memory.s, memory.y))
    pairs = list(zip(s_rows, y_rows, rho, strict=True))
    q = g
    alphas: list[Tensor] = []
    for s, y, r in reversed(pairs):
        alpha = r * dot(s, q)
        q = q - alpha.to(g.dtype) * y
        alphas.append(alpha)
    z = _scaling(sy, yy, memory).to(g.dtype) * q
    for (s, y, r), alpha in zip(pairs, reversed(alphas), strict=True):
        beta = r * dot(y, z)
        z = z + (alpha - beta).to(g.dtype) * s
    return z


def compact(memory: Memory, g: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""``H g`` from small Gram matrices (Byrd, Nocedal and Schnabel, Theorem 2.2).

    .. math::
        H = \gamma I + \begin{bmatrix} S & \gamma Y \end{bmatrix}
        \begin{bmatrix} R^{-T}(D + \gamma Y^T Y)R^{-1} & -R^{-T} \\ -R^{-1} & 0
        \end{bmatrix} \begin{bmatrix} S^T \\ \gamma Y^T \end{bmatrix}

    with R the upper triangle of ``S^T Y`` in the order of time, and D its diagonal.
    """
    filled, (order, place) = _filled(memory), _in_time(memory)
    both = filled & filled.unsqueeze(-1)
    sy, yy = (_masked(a[order][:, order], both) for a in (memory.sy, memory.yy))
    sg, yg = (
        _masked(products(rows, g)[order], filled).unsqueeze(-1)
        for rows in (memory.s, memory.y)
    )
    # A pair that does not count is a unit row of R, and zero everywhere else.
    unit = torch.eye(len(filled), dtype=sy.dtype, device=g.device)
    r = torch.triu(sy) + _masked(unit, ~filled)
    gamma = _scaling(_diagonal(sy), _diagonal(yy), memory)
    u = torch.linalg.solve_triangular(r, sg, upper=True)
    inner = _diagonal(r).unsqueeze(-1) * u + gamma * (yy @ u - yg)
    v = torch.linalg.solve_triangular(r.mT, inner, upper=False)
    u, v = (a.squeeze(-1)[place].to(g.dtype) for a in (u, v))
    gamma = gamma.to(g.dtype)
    return gamma * g + v @ memory.s - gamma * (u @ memory.y)
