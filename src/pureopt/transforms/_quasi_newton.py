"""The memory of L-BFGS, and the two ways to apply the inverse Hessian it stands for.

Pairs ``s = x_{k+1} - x_k`` and ``y = g_{k+1} - g_k`` are kept in the order of time, the
newest last; only the last ``pairs`` rows count. Vectors have the dtype of the
parameters, inner products are accumulated in float64.

References:
    J. Nocedal and S. J. Wright, Numerical Optimization, 2006, Algorithm 7.4.
    R. H. Byrd, J. Nocedal and R. B. Schnabel, Representations of quasi-Newton matrices
    and their use in limited memory methods, Math. Program. 63 (1994), Theorem 2.2.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor


class Memory(NamedTuple):
    """The last ``m`` pairs of a problem in ``n`` unknowns, and their inner products."""

    s: Float[Tensor, "m n"]
    y: Float[Tensor, "m n"]
    sy: Float[Tensor, "m m"]
    yy: Float[Tensor, "m m"]
    pairs: Int[Tensor, ""]


def accumulator(x: Tensor) -> torch.dtype:
    """Float64, or float32 on devices that lack it."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def dot(a: Float[Tensor, "*m n"], b: Float[Tensor, "*m n"]) -> Float[Tensor, "*m"]:
    """Inner products over the last dimension, accumulated in float64."""
    return torch.sum(a * b, dim=-1, dtype=accumulator(a))


def empty_memory(x: Float[Tensor, " n"], m: int) -> Memory:
    """No pairs yet."""
    gram = x.new_zeros((m, m), dtype=accumulator(x))
    return Memory(
        s=x.new_zeros((m, x.numel())),
        y=x.new_zeros((m, x.numel())),
        sy=gram,
        yy=gram.clone(),
        pairs=x.new_zeros((), dtype=torch.int64),
    )


def remember(
    memory: Memory, s: Float[Tensor, " n"], y: Float[Tensor, " n"], keep: Tensor
) -> Memory:
    """Append the pair where ``keep``; the oldest one makes room."""
    s_rows, y_rows = _shift(memory.s, s, keep), _shift(memory.y, y, keep)
    return Memory(
        s=s_rows,
        y=y_rows,
        # Only s_i . y_j with i <= j is ever read.
        sy=torch.where(keep, _border(memory.sy, dot(s_rows, y)), memory.sy),
        yy=torch.where(keep, _border(memory.yy, dot(y_rows, y)), memory.yy),
        pairs=torch.where(
            keep, (memory.pairs + 1).clamp(max=memory.s.shape[0]), memory.pairs
        ),
    )


def forget(memory: Memory, drop: Tensor) -> Memory:
    """No pairs where ``drop``; what the rows hold no longer counts."""
    none = torch.zeros_like(memory.pairs)
    return memory._replace(pairs=torch.where(drop, none, memory.pairs))


def _shift(rows: Tensor, row: Tensor, keep: Tensor) -> Tensor:
    return torch.where(keep, torch.cat((rows[1:], row.unsqueeze(0))), rows)


def _border(gram: Tensor, last: Float[Tensor, " m"]) -> Tensor:
    """The Gram matrix without its first row and column, bordered by ``last``."""
    left = torch.cat((gram[1:, 1:], last[:-1].unsqueeze(0)))
    return torch.cat((left, last.unsqueeze(1)), dim=1)


def _filled(memory: Memory) -> Tensor:
    """Which rows hold a pair that counts."""
    m = memory.s.shape[0]
    return torch.arange(m, device=memory.s.device) >= m - memory.pairs


def _diagonal(gram: Float[Tensor, "m m"]) -> Float[Tensor, " m"]:
    # A strided slice: inductor lowers `torch.diagonal` with a deprecation warning.
    return gram.flatten()[:: gram.shape[0] + 1]


def _masked(x: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, x, torch.zeros_like(x))


def _scaling(memory: Memory) -> Tensor:
    """Gamma = s.y / y.y of the newest pair, the scale of the initial matrix; 1 without."""
    some = memory.pairs > 0
    sy, yy = memory.sy[-1, -1], memory.yy[-1, -1]
    one = torch.ones_like(sy)
    return torch.where(some, sy, one) / torch.where(some, yy, one)


def two_loop(memory: Memory, g: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """``H g`` by the recursion over the pairs (Nocedal and Wright, Algorithm 7.4)."""
    filled = _filled(memory)
    sy = _diagonal(memory.sy)
    one = torch.ones_like(sy)
    rho = _masked(one / torch.where(filled, sy, one), filled)
    rows = list(zip(memory.s, memory.y, rho, strict=True))
    q = g
    alphas: list[Tensor] = []
    for s, y, r in reversed(rows):
        alpha = r * dot(s, q)
        q = q - alpha.to(g.dtype) * y
        alphas.append(alpha)
    z = _scaling(memory).to(g.dtype) * q
    for (s, y, r), alpha in zip(rows, reversed(alphas), strict=True):
        beta = r * dot(y, z)
        z = z + (alpha - beta).to(g.dtype) * s
    return z


def compact(memory: Memory, g: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    r"""``H g`` from small Gram matrices (Byrd, Nocedal and Schnabel, Theorem 2.2).

    .. math::
        H = \gamma I + \begin{bmatrix} S & \gamma Y \end{bmatrix}
        \begin{bmatrix} R^{-T}(D + \gamma Y^T Y)R^{-1} & -R^{-T} \\ -R^{-1} & 0
        \end{bmatrix} \begin{bmatrix} S^T \\ \gamma Y^T \end{bmatrix}

    with R the upper triangle of ``S^T Y`` and D its diagonal.
    """
    filled = _filled(memory)
    both = filled & filled.unsqueeze(-1)
    # A row that does not count is a unit row of R, and zero everywhere else.
    unit = torch.eye(len(filled), dtype=memory.sy.dtype, device=g.device)
    r = torch.triu(_masked(memory.sy, both)) + _masked(unit, ~filled)
    gamma = _scaling(memory)
    sg = _masked(dot(memory.s, g), filled).unsqueeze(-1)
    yg = _masked(dot(memory.y, g), filled).unsqueeze(-1)
    u = torch.linalg.solve_triangular(r, sg, upper=True)
    d = _diagonal(r).unsqueeze(-1)
    inner = d * u + gamma * (_masked(memory.yy, both) @ u - yg)
    v = torch.linalg.solve_triangular(r.mT, inner, upper=False)
    u, v = u.squeeze(-1).to(g.dtype), v.squeeze(-1).to(g.dtype)
    gamma = gamma.to(g.dtype)
    return gamma * g + v @ memory.s - gamma * (u @ memory.y)
