"""The arguments of torch's recurrent kernels, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import is_inexact

# The hidden state, and for an LSTM that of the cell.
State = tuple[Tensor, ...]
# Tensors, each with the shape that it must have.
Shapes = list[tuple[Tensor, tuple[int, ...]]]


class Weights(NamedTuple):
    """Of a cell, which is a layer in one direction."""

    input: Tensor
    hidden: Tensor
    input_bias: Tensor | None = None
    hidden_bias: Tensor | None = None
    projection: Tensor | None = None


class Layers(NamedTuple):
    """A call of a kernel.

    Attributes:
        x: The input, times first; packed where there are sizes.
        sizes: How many samples there are at each time, for sequences of their own lengths.
        hx: The first states of all layers and directions.
        params: The weights, in the order of the kernel.
        has_biases: Whether there are biases among them.
        depth: How many layers there are.
        dropout: Its probability between two layers; 0 in eval mode.
        directions: 1 or 2.
        batch_first: Whether the output is transposed.
    """

    x: Tensor
    sizes: Tensor | None
    hx: State
    params: Sequence[Tensor]
    has_biases: bool
    depth: int
    dropout: float
    directions: int
    batch_first: bool

    def weights(self) -> list[Weights]:
        """Of each layer and direction; none if there are too few or too many."""
        projected = self.hx[0].shape[-1] != self.hx[-1].shape[-1]
        each = 2 + 2 * self.has_biases + projected
        if len(self.params) != each * self.depth * self.directions:
            return []
        parts = [self.params[i : i + each] for i in range(0, len(self.params), each)]
        return [
            Weights(*part[: each - projected])._replace(
                projection=part[-1] if projected else None
            )
            for part in parts
        ]

    def fits(self, weights: list[Weights], gates: int) -> bool:
        """Whether dimensions, dtypes and devices are what the kernels are made for."""
        batch = self._batch()
        if batch < 0:
            return False
        out, hidden = self.hx[0].shape[-1], self.hx[-1].shape[-1]
        pairs = [(s, (len(weights), batch, s.shape[-1])) for s in self.hx]
        for i, w in enumerate(weights):
            first = i < self.directions
            width = self.x.shape[-1] if first else out * self.directions
            pairs += shapes(w, gates * hidden, width, out)
            if w.projection is not None:
                pairs.append((w.projection, (out, hidden)))
        return agree(self.x, pairs)

    def _batch(self) -> int:
        """How many samples there are; negative if dimensions or times are missing."""
        dims, sizes = self.x.dim(), self.sizes
        if sizes is None:
            return self.x.shape[1] if dims == 3 and self.x.shape[0] else -1  # noqa: PLR2004
        packed = dims == 2 and sizes.dim() == 1 and sizes.dtype == torch.int64  # noqa: PLR2004
        some = packed and sizes.shape[0] and self.hx[0].dim() > 1
        return self.hx[0].shape[1] if some else -1


def layers(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layers:
    """The call, in either of its signatures: no argument has a default."""
    if kwargs:
        padded = "batch_first" in kwargs
    else:
        padded = not any(isinstance(value, tuple | list) for value in args[3:4])
    return (_padded if padded else _packed)(*args, **kwargs)


def _padded(
    input: Tensor,  # noqa: A002
    hx: Any,
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> Layers:
    turned = batch_first and input.dim() > 1
    return Layers(
        input.transpose(0, 1) if turned else input,
        None,
        states(hx),
        params,
        has_biases,
        num_layers,
        dropout if train else 0.0,
        2 if bidirectional else 1,
        batch_first,
    )


def _packed(data: Tensor, batch_sizes: Tensor, *args: Any, **kwargs: Any) -> Layers:
    """Of the parts of a ``PackedSequence``."""
    call = _padded(data, *args, **kwargs, batch_first=False)
    return call._replace(sizes=batch_sizes)


def states(hx: Any) -> State:
    """The state of a cell, which is a pair for an LSTM."""
    return tuple(hx) if isinstance(hx, tuple | list) else (hx,)


def shapes(w: Weights, rows: int, width: int, out: int) -> Shapes:
    """Of the maps and biases of a cell."""
    pairs = [(w.input, (rows, width)), (w.hidden, (rows, out))]
    biases = [(b, (rows,)) for b in (w.input_bias, w.hidden_bias) if b is not None]
    return [*pairs, *biases]


def agree(x: Tensor, pairs: Shapes) -> bool:
    """Whether all have their shapes, and the dtype and the device of ``x``."""
    return is_inexact(x) and all(
        y.shape == shape and y.dtype == x.dtype and y.device == x.device
        for y, shape in pairs
    )
