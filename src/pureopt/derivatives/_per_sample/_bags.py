"""Bags of embeddings: the embeddings, and their sums, which ``vmap`` knows."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

_MATRIX = 2  # dimensions


def embedding_bag(
    input: Tensor,  # noqa: A002
    weight: Tensor,
    offsets: Tensor | None = None,
    max_norm: float | None = None,
    norm_type: float = 2,
    scale_grad_by_freq: bool = False,
    mode: str = "mean",
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> Tensor:
    """Sums and means of bags of one size, with dense gradients; the rest is torch's."""
    factors, padding, rows = per_sample_weights, padding_idx, weight.shape[0]
    known = (
        input.dim() == weight.dim() == _MATRIX
        and not (input.is_nested or input.is_floating_point())
        and (offsets is None and max_norm is None and not scale_grad_by_freq)
        and (factors is None or (mode == "sum" and factors.shape == input.shape))
        and (padding is None or -rows <= padding < rows)
        and mode in {"sum", "mean"}
    )
    if not known:
        return F.embedding_bag(
            input,
            weight,
            offsets,
            max_norm,
            norm_type,
            scale_grad_by_freq,
            mode,
            sparse,
            factors,
            include_last_offset,
            padding,
        )
    x = F.embedding(input, weight)
    if factors is not None:
        x = x * factors.unsqueeze(-1)
    if padding is not None:
        kept = (input != padding % rows).unsqueeze(-1)
        x = torch.where(kept, x, 0.0)
        sizes = kept.sum(-2).clamp(min=1)
        return x.sum(-2) / sizes if mode == "mean" else x.sum(-2)
    return x.sum(-2) / max(input.shape[1], 1) if mode == "mean" else x.sum(-2)
