"""Rules of the cells of recurrent networks; the layers are unrolled with them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from pureopt.derivatives._jets._register import rule


@rule("lstm_cell")
def lstm_cell(
    input: Any,  # noqa: A002
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
) -> tuple[Any, Any]:
    h, c = hx
    gates = F.linear(input, w_ih, b_ih) + F.linear(h, w_hh, b_hh)
    i, f, g, o = gates.chunk(4, -1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(c), c


@rule("gru_cell")
def gru_cell(
    input: Any,  # noqa: A002
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
) -> Any:
    new_r, new_z, new_n = F.linear(input, w_ih, b_ih).chunk(3, -1)
    old_r, old_z, old_n = F.linear(hx, w_hh, b_hh).chunk(3, -1)
    r, z = torch.sigmoid(new_r + old_r), torch.sigmoid(new_z + old_z)
    n = torch.tanh(new_n + r * old_n)
    return n + z * (hx - n)


def _sum(
    input: Any,  # noqa: A002
    hx: Any,
    w_ih: Any,
    w_hh: Any,
    b_ih: Any = None,
    b_hh: Any = None,
) -> Any:
    return F.linear(input, w_ih, b_ih) + F.linear(hx, w_hh, b_hh)


@rule("rnn_tanh_cell")
def rnn_tanh_cell(*args: Any) -> Any:
    return torch.tanh(_sum(*args))


@rule("rnn_relu_cell")
def rnn_relu_cell(*args: Any) -> Any:
    return torch.relu(_sum(*args))
