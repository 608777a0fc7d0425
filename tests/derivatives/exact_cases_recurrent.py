"""Recurrent layers, each with what it is by definition.

All weights and states are parts of the argument. In ``vmap`` those of a layer differ from
lane to lane.
"""

from __future__ import annotations

import mpmath as mp
import torch
from torch.func import vmap
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tests.derivatives.exact_case import Case
from tests.derivatives.exact_oracles import flat, sigmoid

H = 2  # the hidden size; the input is one number
LENGTHS = (3, 1)
SIZES = torch.tensor([2, 1, 1])  # at each time, of samples of these lengths
OPTIONS = (True, 1, 0.0, False, False, False)


def parts(x: torch.Tensor, gates: int, samples: int = 1):
    """Weights, a state, and the rest."""
    rows = gates * H
    sizes = [rows, rows * H, rows, rows, samples * H]
    w, u, b, c, h, rest = x.split([*sizes, x.shape[0] - sum(sizes)])
    weights = [w.reshape(rows, 1), u.reshape(rows, H), b, c]
    return weights, h.reshape(1, samples, H), rest


def lane(kernel, gates: int):
    """A layer with one sample."""

    def op(x):
        weights, h, rest = parts(x, gates)
        if kernel is not torch.lstm:
            return kernel(rest.reshape(-1, 1, 1), h, weights, *OPTIONS)[0]
        c, data = rest[:H].reshape(1, 1, H), rest[H:].reshape(-1, 1, 1)
        return torch.cat(kernel(data, (h, c), weights, *OPTIONS))

    return vmap(op)


def cell(x):
    """A step with each of two inputs, from a state that serves twice."""
    weights, h, data = parts(x, 4)

    def lane(number):
        return torch.cat(torch.lstm_cell(number.reshape(1, 1), (h[0], h[0]), *weights))

    return vmap(lane)(data)


def packed(x):
    """An LSTM of two samples; the first states of the cell are the hidden ones."""
    weights, h, data = parts(x, 4, samples=2)
    state = (h, h)
    y, *last = torch.lstm(data.reshape(-1, 1), SIZES, state, weights, *OPTIONS[:-1])
    return torch.cat([y, *(s[0] for s in last)])


def lists(x, gates: int, samples: int = 1):
    """As :func:`parts`, of numbers in a list."""
    rows, x = gates * H, list(x)
    take = lambda n: [x.pop(0) for _ in range(n)]  # noqa: E731
    w, u = take(rows), [take(H) for _ in range(rows)]
    return (w, u, take(rows), take(rows)), [take(H) for _ in range(samples)], x


def step(name: str, weights, x, h, c):
    """The states after a step, from the equations."""
    w, u, b, d = weights
    new = [w[k] * x + b[k] for k in range(len(w))]
    old = [mp.fdot(row, h) + bias for row, bias in zip(u, d, strict=True)]
    gate = lambda k, j: sigmoid(new[k * H + j] + old[k * H + j])  # noqa: E731
    if name == "tanh":
        return [mp.tanh(new[j] + old[j]) for j in range(H)], c
    if name == "relu":
        return [max(new[j] + old[j], 0) for j in range(H)], c
    if name == "gru":
        r, z = ([gate(k, j) for j in range(H)] for k in (0, 1))
        n = [mp.tanh(new[2 * H + j] + r[j] * old[2 * H + j]) for j in range(H)]
        return [(1 - z[j]) * n[j] + z[j] * h[j] for j in range(H)], c
    g = [mp.tanh(new[2 * H + j] + old[2 * H + j]) for j in range(H)]
    c = [gate(1, j) * c[j] + gate(0, j) * g[j] for j in range(H)]
    return [gate(3, j) * mp.tanh(c[j]) for j in range(H)], c


def layer_oracle(name: str, gates: int):
    def oracle(x):
        values = []
        for row in x:
            weights, (h,), data = lists(row, gates)
            c = None
            if name == "lstm":
                c, data = data[:H], data[H:]
            for number in data:
                h, c = step(name, weights, number, h, c)
                values += h
            values += h + c if name == "lstm" else []
        return values

    return oracle


def cell_oracle(x):
    weights, (h,), data = lists(x, 4)
    return flat([list(step("lstm", weights, number, h, h)) for number in data])


def packed_oracle(x):
    weights, start, data = lists(x, 4, samples=2)
    h, c = [list(s) for s in start], [list(s) for s in start]
    outputs = []
    for t in range(max(LENGTHS)):
        for sample, length in enumerate(LENGTHS):
            if t < length:
                number = data.pop(0)
                h[sample], c[sample] = step(
                    "lstm", weights, number, h[sample], c[sample]
                )
                outputs += h[sample]
    return outputs + flat(h) + flat(c)


def size(gates: int, states: int, numbers: int) -> int:
    return gates * H * (3 + H) + states * H + numbers


RECURRENT = [
    *(
        Case(
            f"{name} in vmap",
            (2, size(gates, states, 2)),
            lane(kernel, gates),
            layer_oracle(oracle, gates),
        )
        for name, kernel, gates, states, oracle in (
            ("lstm", torch.lstm, 4, 2, "lstm"),
            ("gru", torch.gru, 3, 1, "gru"),
            ("rnn_tanh", torch.rnn_tanh, 1, 1, "tanh"),
            ("rnn_relu", torch.rnn_relu, 1, 1, "relu"),
        )
    ),
    Case("lstm_cell in vmap", (size(4, 1, 2),), cell, cell_oracle),
    Case("lstm, packed", (size(4, 2, 4),), packed, packed_oracle),
    Case(
        "pack_padded_sequence",
        (3, 2),
        lambda x: pack_padded_sequence(x, [3, 1]).data.sin(),
        lambda x: [mp.sin(v) for v in (*x[0], x[1][0], x[2][0])],
    ),
    Case(
        "pad_packed_sequence",
        (4,),
        lambda x: pad_packed_sequence(PackedSequence(x.sin(), SIZES))[0],
        lambda x: [mp.sin(x[0]), mp.sin(x[1]), mp.sin(x[2]), 0, mp.sin(x[3]), 0],
    ),
]
