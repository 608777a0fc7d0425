"""Recurrent modules, always with the same weights."""

from __future__ import annotations

import torch
from torch import nn

KINDS = ["LSTM", "GRU", "RNN", "relu", "projected"]


def layer(kind: str, dtype=torch.float64, **options):
    """From 3 numbers to states of 4."""
    torch.manual_seed(0)
    if kind == "projected":
        return nn.LSTM(3, 4, proj_size=2, dtype=dtype, **options)
    if kind == "relu":
        return nn.RNN(3, 4, nonlinearity="relu", dtype=dtype, **options)
    return getattr(nn, kind)(3, 4, dtype=dtype, **options)


def weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: w.detach() for name, w in module.named_parameters()}


CELLS = {"LSTMCell": {}, "GRUCell": {}, "RNNCell": {}, "relu": {"nonlinearity": "relu"}}


def cell(name: str, **options):
    torch.manual_seed(0)
    kind = getattr(nn, name, nn.RNNCell)
    return kind(3, 4, dtype=torch.float64, **CELLS[name], **options)


def value(result):
    return result[0] if isinstance(result, tuple) else result


LANES = {
    **{kind: lambda kind=kind: layer(kind, bidirectional=True) for kind in KINDS},
    **{name: lambda name=name: cell(name) for name in CELLS if name != "relu"},
}
