"""Sequences of their own lengths: packed without padding, and padded."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from pureopt._errors import DerivativeError
from pureopt.derivatives._exactness._numeric import Table, is_of_lanes

_PACK: Any = vars(torch)["_pack_padded_sequence"]
_PAD: Any = vars(torch)["_pad_packed_sequence"]
# Lanes have one shape, and that of what is packed is known from the lengths.
_LENGTHS = (
    "pack_padded_sequence(lengths=...)",
    "be the same for all samples, and for all lanes of `vmap`",
    "lengths for each of them",
    (
        "Run the padded sequence and take its output at the end, as in "
        "`y[length[None] - 1]`; or, where a layer runs backward too, close over "
        "one length and take the samples of this length together."
    ),
)


class Packing(NamedTuple):
    """Where the steps of the sequences stand.

    Attributes:
        rows: Of each time and sample, its row in the packed data; past its end, any.
        runs: Whether a sample is not past its end, ``(times, samples)``.
        places: Of each row of the packed data, its place among times and samples.
    """

    rows: Tensor
    runs: Tensor
    places: Tensor

    def padded(self, data: Tensor, value: float = 0.0) -> Tensor:
        """``(times, samples, ...)``."""
        rows = data.index_select(0, self.rows.reshape(-1))
        past = ~self.runs.reshape(*self.runs.shape, *[1] * (data.dim() - 1))
        rows = rows.reshape(*self.rows.shape, *data.shape[1:])
        return rows.masked_fill(past, value)

    def packed(self, x: Tensor) -> Tensor:
        """``(rows, ...)``."""
        return x.flatten(0, 1).index_select(0, self.places)


def packing(sizes: Tensor, data: Tensor, samples: int) -> Packing:
    """From the number of samples at each time, as a ``PackedSequence`` has it.

    Its numbers are not looked at: what does not add up is not refused.
    """
    rows = data.shape[0]
    ends = sizes.cumsum(0)
    starts = ends - sizes
    sample = torch.arange(samples, device=sizes.device)
    row = torch.arange(rows, device=sizes.device)
    time = torch.searchsorted(ends, row, right=True)
    found = (
        (starts.unsqueeze(1) + sample).clamp(max=rows - 1),
        sample < sizes.unsqueeze(1),
        time * samples + row - starts[time],
    )
    return Packing(*(index.to(data.device) for index in found))


def pack_padded_sequence(
    input: Tensor,  # noqa: A002
    lengths: Tensor,
    batch_first: bool,
) -> tuple[Tensor, Tensor]:
    """The kernel of ``nn.utils.rnn.pack_padded_sequence``.

    Raises:
        DerivativeError: If the lengths are lanes of ``vmap``.
    """
    if input.dim() < 2:  # noqa: PLR2004
        return _PACK(input, lengths, batch_first)  # which refuses it
    if is_of_lanes(lengths):
        raise DerivativeError(*_LENGTHS)
    x = input.transpose(0, 1) if batch_first else input
    shape = x.shape[0], x.shape[1]
    places = torch.arange(shape[0] * shape[1], device=x.device).reshape(shape)
    # Torch's own, which reads the lengths and refuses those that do not fit.
    rows, sizes = _PACK(places, lengths, batch_first=False)
    return x.flatten(0, 1).index_select(0, rows), sizes


def pad_packed_sequence(
    data: Tensor,
    batch_sizes: Tensor,
    batch_first: bool,
    padding_value: float,
    total_length: int = -1,
) -> tuple[Tensor, Tensor]:
    """The kernel of ``nn.utils.rnn.pad_packed_sequence``; one size is a shape."""
    times = batch_sizes.shape[0]
    if not times or 0 < total_length < times:
        return _PAD(data, batch_sizes, batch_first, padding_value, total_length)
    samples = int(batch_sizes[0])
    found = packing(batch_sizes, data, samples)
    sample = torch.arange(samples, device=batch_sizes.device)
    lengths = (sample < batch_sizes.unsqueeze(1)).sum(0)
    x = found.padded(data, padding_value)
    if total_length > times:
        end = x.new_full((total_length - times, *x.shape[1:]), padding_value)
        x = torch.cat([x, end])
    return x.transpose(0, 1) if batch_first else x, lengths


PACKING: Table = {_PACK: pack_padded_sequence, _PAD: pad_packed_sequence}
