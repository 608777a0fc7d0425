"""Distances and similarities as compositions of vector norms."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt.derivatives._exactness._numeric import Table, reduced, squares, widened
from pureopt.derivatives._exactness._vector_norms import vector_norm


def dist(input: Tensor, other: Tensor, p: float = 2) -> Tensor:  # noqa: A002
    """``torch.dist``."""
    return vector_norm(input - other, p)


def pairwise_distance(
    x1: Tensor, x2: Tensor, p: float = 2.0, eps: float = 1e-6, keepdim: bool = False
) -> Tensor:
    """``F.pairwise_distance``."""
    return vector_norm(x1 - x2 + eps, p, -1, keepdim)


def cdist(
    x1: Float[Tensor, "*batch p d"],
    x2: Float[Tensor, "*batch r d"],
    p: float = 2.0,
    compute_mode: str | int | None = None,
) -> Float[Tensor, "*batch p r"]:
    """``torch.cdist`` from the differences: ``p r d`` numbers, and no cancellation."""
    if x1.shape[-1] != x2.shape[-1]:
        return torch.cdist(x1, x2, p)  # which says so
    del compute_mode
    return vector_norm(x1.unsqueeze(-2) - x2.unsqueeze(-3), p, -1)


def pdist(input: Float[Tensor, "n d"], p: float = 2.0) -> Float[Tensor, " pairs"]:  # noqa: A002
    """``F.pdist``."""
    n = input.shape[0]
    first, second = torch.triu_indices(n, n, 1, device=input.device)
    return vector_norm(input[first] - input[second], p, -1)


def cosine_similarity(
    x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8
) -> Tensor:
    """``F.cosine_similarity``: lengths below ``eps`` count as ``eps``."""
    a, b = torch.broadcast_tensors(x1, x2)
    dtype = torch.promote_types(a.dtype, b.dtype)
    a, b = widened(a.to(dtype)), widened(b.to(dtype))
    a, b = (v / vector_norm(v, 2, dim, keepdim=True).clamp_min(eps) for v in (a, b))
    return (a * b).sum(dim).to(dtype)


def triplet_margin_loss(
    anchor: Tensor,
    positive: Tensor,
    negative: Tensor,
    margin: float = 1.0,
    p: float = 2.0,
    eps: float = 1e-6,
    swap: bool = False,
    reduction: int = 0,
) -> Tensor:
    """``torch.triplet_margin_loss``."""
    near = pairwise_distance(anchor, positive, p, eps)
    far = pairwise_distance(anchor, negative, p, eps)
    if swap:
        far = torch.minimum(far, pairwise_distance(positive, negative, p, eps))
    return reduced((margin + near - far).clamp_min(0), reduction)


def cosine_embedding_loss(
    input1: Tensor,
    input2: Tensor,
    target: Tensor,
    margin: float = 0.0,
    reduction: int = 0,
) -> Tensor:
    """``torch.cosine_embedding_loss``: pairs of target 1 to 1, those of -1 below a margin."""
    dim = target.dim()
    square1, square2 = (squares(x).sum(dim) + 1e-12 for x in (input1, input2))
    cosine = (input1 * input2).sum(dim) * torch.rsqrt(square1 * square2)
    near = torch.where(target == 1, 1 - cosine, 0.0)
    far = torch.where(target == -1, (cosine - margin).clamp_min(0), 0.0)
    return reduced(near + far, reduction)


def renorm(input: Tensor, p: float, dim: int, maxnorm: float) -> Tensor:  # noqa: A002
    """``torch.renorm``: slices along ``dim`` that are too long are scaled to ``maxnorm``."""
    others = [d for d in range(input.dim()) if d != dim % input.dim()]
    size = vector_norm(widened(input), p, others, keepdim=True)
    long = size > maxnorm
    scale = torch.where(long, maxnorm / (torch.where(long, size, 1.0) + 1e-7), 1.0)
    return (input * scale).to(input.dtype)


DISTANCES: Table = {
    **dict.fromkeys((torch.dist, torch.Tensor.dist), dist),
    torch.pairwise_distance: pairwise_distance,
    torch.cdist: cdist,
    torch.pdist: pdist,
    torch.cosine_similarity: cosine_similarity,
    torch.triplet_margin_loss: triplet_margin_loss,
    torch.cosine_embedding_loss: cosine_embedding_loss,
    **dict.fromkeys((torch.renorm, torch.Tensor.renorm), renorm),
}
