"""Functions with several parameters, as compositions of operations that have rules.

They run under the mode, so that their parts are seen one by one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._bodies import BODIES


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
    F.multi_head_attention_forward: BODIES[F.multi_head_attention_forward],
    torch.rnn_tanh_cell: _rnn_cell(torch.tanh),
    torch.rnn_relu_cell: _rnn_cell(torch.relu),
    torch.lstm_cell: lstm_cell,
    torch.gru_cell: gru_cell,
}
