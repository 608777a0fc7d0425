"""Attention as a composition: no fused kernel has a second derivative."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import Table, is_inexact, widened


def scaled_dot_product_attention(
    query: Float[Tensor, "*batch l e"],
    key: Float[Tensor, "*batch s e"],
    value: Float[Tensor, "*batch s v"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*batch l v"]:
    r"""``F.scaled_dot_product_attention``: :math:`\mathrm{softmax}(s Q K^T + M) V`.

    A query that may attend to nothing gets zeros. With ``dropout_p`` the weights are
    drawn anew at each call, from torch's generator as by torch: inside one evaluation of
    derivatives of any order they are drawn once.
    """
    if (
        attn_mask is not None
        and attn_mask.dtype != torch.bool
        and not is_inexact(attn_mask)
    ):
        # Torch's own, which refuses numbers that are neither truth values nor weights.
        return F.scaled_dot_product_attention(query, key, value, attn_mask)
    q, k, v = widened(query), widened(key), widened(value)
    if enable_gqa:
        heads = query.shape[-3] // key.shape[-3], query.shape[-3] // value.shape[-3]
        k = k.repeat_interleave(heads[0], -3)
        v = v.repeat_interleave(heads[1], -3)
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    scores = torch.matmul(q * factor, k.mT)
    if is_causal:
        rows = torch.arange(query.shape[-2], device=query.device)
        columns = torch.arange(key.shape[-2], device=key.device)
        attn_mask = _both(attn_mask, columns <= rows.unsqueeze(-1))
    weights = _softmax(scores, attn_mask)
    if dropout_p > 0:
        weights = torch.dropout(weights, dropout_p, train=True)
    return torch.matmul(weights, v).to(query.dtype)


def _both(mask: Tensor | None, causal: Bool[Tensor, "l s"]) -> Tensor:
    if mask is None:
        return causal
    if mask.dtype == torch.bool:
        return mask & causal
    return torch.where(causal, mask, -torch.inf)


def _softmax(scores: Tensor, mask: Tensor | None) -> Tensor:
    """Over the last dimension; zeros where nothing is left."""
    if mask is None:
        return scores.softmax(-1)
    if mask.dtype != torch.bool:
        bias = widened(mask)
        mask = bias != -torch.inf
        scores = scores + torch.where(mask, bias, 0.0)
    some = mask.any(-1, keepdim=True)
    kept = torch.where(mask | ~some, scores, -torch.inf)
    return torch.where(some, kept.softmax(-1), 0.0)


ATTENTION: Table = {
    F.scaled_dot_product_attention: scaled_dot_product_attention,
}
