"""Functions with several parameters, as compositions of operations that have rules.

They run under the mode, so that their parts are seen one by one; ``NotImplemented`` is the
answer to arguments that they are not for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


def multi_head_attention_forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    **rest: Any,
) -> Any:
    """The projections as linear maps; the attention between them by torch.

    Torch's function projects too: with identities.
    """
    if bias_k is not None or bias_v is not None:
        return NotImplemented
    separate = [rest.get(f"{name}_proj_weight") for name in "qkv"]
    if rest.get("use_separate_proj_weight"):
        biases = in_proj_bias.chunk(3) if in_proj_bias is not None else [None] * 3
        inputs = zip((query, key, value), separate, biases, strict=True)
        projected = [F.linear(x, w, b) for x, w, b in inputs]  # pyright: ignore[reportArgumentType]
    else:
        projected = _packed(query, key, value, in_proj_weight, in_proj_bias)
    eye = torch.eye(embed_dim_to_check, dtype=query.dtype, device=query.device)
    rest |= {f"{name}_proj_weight": eye for name in "qkv"}
    rest["use_separate_proj_weight"] = True
    sizes, none = (embed_dim_to_check, num_heads), (None, None)
    others = (*none, *none, add_zero_attn, dropout_p, eye, None)
    attend: Callable[..., Any] = F.multi_head_attention_forward
    out, weights = attend(*projected, *sizes, *others, **rest)
    return F.linear(out, out_proj_weight, out_proj_bias), weights


def _packed(
    query: Tensor, key: Tensor, value: Tensor, weight: Any, bias: Tensor | None
) -> list[Tensor]:
    if query is key and key is value:
        return list(F.linear(query, weight, bias).chunk(3, -1))
    biases = bias.chunk(3) if bias is not None else [None] * 3
    inputs = zip((query, key, value), weight.chunk(3), biases, strict=True)
    return [F.linear(x, w, b) for x, w, b in inputs]


def _gates(
    x: Tensor, h: Tensor, weights: tuple[Tensor, Tensor], biases: tuple[Any, Any]
) -> tuple[Tensor, Tensor]:
    return F.linear(x, weights[0], biases[0]), F.linear(h, weights[1], biases[1])


def _rnn_cell(activation: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    def cell(
        input: Tensor,  # noqa: A002
        hx: Tensor,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Tensor:
        x, h = _gates(input, hx, (w_ih, w_hh), (b_ih, b_hh))
        return activation(x + h)

    return cell


def lstm_cell(
    input: Tensor,  # noqa: A002
    hx: tuple[Tensor, Tensor],
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Input, forget, cell and output gates, in this order."""
    x, h = _gates(input, hx[0], (w_ih, w_hh), (b_ih, b_hh))
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * hx[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def gru_cell(
    input: Tensor,  # noqa: A002
    hx: Tensor,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Tensor:
    """Reset, update and new gates, in this order."""
    x, h = _gates(input, hx, (w_ih, w_hh), (b_ih, b_hh))
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = h.chunk(3, -1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return n + (xz + hz).sigmoid() * (hx - n)


COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: multi_head_attention_forward,
    torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
    torch.rnn_relu_cell: _rnn_cell(torch.relu),
    torch.lstm_cell: lstm_cell,
    torch.gru_cell: gru_cell,
}
