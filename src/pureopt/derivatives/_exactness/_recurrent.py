"""Recurrent layers and cells as compositions: loops over time.

Torch's kernels write in place, which ``vmap`` refuses, and that of an LSTM in float32 has
no forward mode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import Table
from pureopt.derivatives._exactness._packing import PACKING, Packing, packing
from pureopt.derivatives._exactness._recurrent_calls import (
    Layers,
    State,
    Weights,
    agree,
    layers,
    shapes,
    states,
)

# From what the input and what the hidden state give to the gates, and the state.
Step = Callable[[Tensor, Tensor, State], State]


def _lstm(x: Tensor, h: Tensor, state: State) -> State:
    r"""Input, forget, cell and output gates: :math:`c' = fc + ig, h' = o \tanh c'`."""
    i, f, g, o = (x + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return o.sigmoid() * c.tanh(), c


def _gru(x: Tensor, h: Tensor, state: State) -> State:
    r"""Reset, update, new: :math:`n = \tanh(x_n + r h_n), h' = n + z (h - n)`."""
    xr, xz, xn = x.chunk(3, -1)
    hr, hz, hn = h.chunk(3, -1)
    n = (xn + (xr + hr).sigmoid() * hn).tanh()
    return (n + (xz + hz).sigmoid() * (state[0] - n),)


def _tanh(x: Tensor, h: Tensor, state: State) -> State:
    del state
    return ((x + h).tanh(),)


def _relu(x: Tensor, h: Tensor, state: State) -> State:
    del state
    return ((x + h).relu(),)


def _next(step: Step, x: Tensor, state: State, w: Weights) -> State:
    """The state after a step."""
    h, *c = step(x, F.linear(state[0], w.hidden, w.hidden_bias), state)
    return (h if w.projection is None else F.linear(h, w.projection), *c)


def _through(
    step: Step,
    x: Tensor,
    state: State,
    w: Weights,
    backward: bool,
    pack: Packing | None,
) -> tuple[Tensor, State]:
    """A layer in one direction: its outputs, and its last state."""
    gates = F.linear(x, w.input, w.input_bias)
    if pack is not None:
        # Past its end a sample must not meet numbers of another, which may be infinite.
        gates = pack.padded(gates)
    outputs: list[Tensor] = []
    times = list(enumerate(gates.unbind(0)))
    for t, gate in times[::-1] if backward else times:
        new = _next(step, gate, state, w)
        if pack is not None:
            runs = pack.runs[t].unsqueeze(-1)
            pairs = zip(new, state, strict=True)
            new = tuple(torch.where(runs, a, b) for a, b in pairs)
        state = new
        outputs.append(state[0])
    y = torch.stack(outputs[::-1] if backward else outputs)
    return y if pack is None else pack.packed(y), state


def _run(step: Step, call: Layers, weights: list[Weights]) -> tuple[Tensor, State]:
    """All layers: the outputs of the last, and the last states of each."""
    x, pack = call.x, None
    if call.sizes is not None:
        pack = packing(call.sizes, x, call.hx[0].shape[1])
    ends: list[State] = []
    for layer in range(call.depth):
        outputs: list[Tensor] = []
        for direction in range(call.directions):
            i = call.directions * layer + direction
            state = tuple(s[i] for s in call.hx)
            y, end = _through(step, x, state, weights[i], direction > 0, pack)
            outputs.append(y)
            ends.append(end)
        x = torch.cat(outputs, -1)
        if call.dropout and layer + 1 < call.depth:
            x = torch.dropout(x, call.dropout, train=True)
    return x, tuple(torch.stack(list(part)) for part in zip(*ends, strict=True))


def _layers(kernel: Callable[..., Any], step: Step, gates: int) -> Callable[..., Any]:
    """The composition of ``torch.lstm`` and its like.

    Dropout between layers is drawn from torch's generator, as by torch.
    """

    def composition(*args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        call = layers(args, kwargs)
        weights = call.weights() if _is_state_of(step, call.hx) else []
        if not weights or not call.fits(weights, gates):
            # Torch's own, which refuses all but a few broadcasts.
            return kernel(*args, **kwargs)
        y, state = _run(step, call, weights)
        return y.transpose(0, 1) if call.batch_first else y, *state

    return composition


def _cell(kernel: Callable[..., Any], step: Step, gates: int) -> Callable[..., Any]:
    """The composition of ``torch.lstm_cell`` and its like."""

    def composition(
        input: Tensor,  # noqa: A002
        hx: Any,
        w_ih: Tensor,
        w_hh: Tensor,
        b_ih: Tensor | None = None,
        b_hh: Tensor | None = None,
    ) -> Any:
        state, w = states(hx), Weights(w_ih, w_hh, b_ih, b_hh)
        fits = _is_state_of(step, state) and input.dim() == 2  # noqa: PLR2004
        if fits:
            hidden = state[0].shape[-1]
            pairs = [(s, (input.shape[0], hidden)) for s in state]
            pairs += shapes(w, gates * hidden, input.shape[1], hidden)
            fits = agree(input, pairs)
        if not fits:
            return kernel(input, hx, w_ih, w_hh, b_ih, b_hh)  # as above
        new = _next(step, F.linear(input, w_ih, b_ih), state, w)
        return new if isinstance(hx, tuple | list) else new[0]

    return composition


def _is_state_of(step: Step, state: State) -> bool:
    """An LSTM has a state of its cell."""
    size = 2 if step is _lstm else 1
    return len(state) == size and all(s.dim() for s in state)


RECURRENT: Table = {
    **PACKING,
    torch.lstm: _layers(torch.lstm, _lstm, 4),
    torch.gru: _layers(torch.gru, _gru, 3),
    torch.rnn_tanh: _layers(torch.rnn_tanh, _tanh, 1),
    torch.rnn_relu: _layers(torch.rnn_relu, _relu, 1),
    torch.lstm_cell: _cell(torch.lstm_cell, _lstm, 4),
    torch.gru_cell: _cell(torch.gru_cell, _gru, 3),
    torch.rnn_tanh_cell: _cell(torch.rnn_tanh_cell, _tanh, 1),
    torch.rnn_relu_cell: _cell(torch.rnn_relu_cell, _relu, 1),
}
