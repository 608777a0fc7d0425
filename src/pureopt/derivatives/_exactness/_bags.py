"""Rows and runs of rows: embeddings, their bags and segments as compositions.

Torch's kernels are called with a column of zeros in the place of the data, for what they
refuse about the runs and for the integers that they return.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import Table, widened

_SUM, _MEAN, _MAX = range(3)
_ROWS: Any = torch.embedding
_BAGS: Any = torch.embedding_bag
_SEGMENTS: Any = torch.segment_reduce
_SPLITS: Any = torch.tensor_split


def embedding(
    weight: Tensor, indices: Tensor, padding_idx: int = -1, *args: Any, **kwargs: Any
) -> Tensor:
    """``torch.embedding``: the row of the padding is a constant, forward as in reverse."""
    y = _ROWS(weight, indices, padding_idx, *args, **kwargs)
    if padding_idx < 0:
        return y
    return torch.where((indices == padding_idx).unsqueeze(-1), y.detach(), y)


def embedding_bag(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = _SUM,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``torch.embedding_bag``, with dense gradients also where it makes sparse ones.

    Scaled by the frequencies, the gradient is no derivative: that is left to torch. A
    maximum has the derivatives of the first row that attains it; a NaN is one, which to
    torch depends on the order.
    """
    options = (mode, sparse, per_sample_weights, include_last_offset, padding_idx)
    if scale_grad_by_freq or weight.dim() != 2:  # noqa: PLR2004
        return _BAGS(weight, indices, offsets, scale_grad_by_freq, *options)
    factors = None if per_sample_weights is None else _zeros(per_sample_weights)
    constants = _BAGS(
        _zeros(weight, weight.shape[0], 1),
        indices,
        offsets,
        False,
        mode,
        sparse,
        factors,
        include_last_offset,
        padding_idx,
    )[1:]
    rows = widened(weight.index_select(0, indices.reshape(-1)))
    kept = torch.ones_like(indices, dtype=torch.bool)
    if padding_idx is not None:
        kept = indices != padding_idx % weight.shape[0]
    kept = kept.reshape(-1, 1)
    starts = offsets[:-1] if include_last_offset else offsets
    bags = _run_of(starts.long(), rows.shape[0]) - 1
    if mode == _MAX:
        y, index = _largest(rows, kept, bags, starts.shape[0])
        chosen = indices.reshape(-1, 1).expand(rows.shape).to(constants[2].dtype)
        more = torch.constant_pad_nd(chosen, (0, 0, 0, 1)).gather(0, index)
        return y.to(weight.dtype), *constants[:2], more
    rows = torch.where(kept, rows, 0.0)
    if per_sample_weights is not None:
        factors = widened(per_sample_weights).reshape(-1, 1)
        rows = rows * torch.where(kept, factors, 0.0)
    y = _summed(rows, bags, starts.shape[0])
    if mode == _MEAN:
        y = y / _summed(kept.to(y.dtype), bags, starts.shape[0]).clamp_min(1)
    return y.to(weight.dtype), *constants


def _zeros(like: Tensor, *shape: int) -> Tensor:
    """Zeros that are no lanes of a batch, whatever ``like`` is."""
    return torch.zeros(shape or like.shape, dtype=like.dtype, device=like.device)


def _run_of(ends: Tensor, length: int) -> Tensor:
    """How many of the ``ends``, along the last dimension, each place has passed."""
    none = ends.new_zeros(*ends.shape[:-1], length + 1)
    met = none.scatter_add(-1, ends.clamp(0, length), torch.ones_like(ends))
    return met.cumsum(-1)[..., :length]


def _summed(rows: Tensor, runs: Tensor, n: int) -> Tensor:
    return rows.new_zeros(n, rows.shape[1]).index_add(0, runs, rows)


def _largest(rows: Tensor, kept: Tensor, bags: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """The maxima of the bags, and where each stands first; beyond the rows if nowhere."""
    values = torch.where(kept, rows.detach(), -torch.inf)
    to = bags.unsqueeze(-1).expand(rows.shape)
    top = values.new_full((n, rows.shape[1]), -torch.inf)
    top = top.scatter_reduce(0, to, values, "amax")
    places = torch.arange(rows.shape[0], device=rows.device).unsqueeze(-1)
    attains = kept & ((values == top.gather(0, to)) | values.isnan())
    places = torch.where(attains, places, rows.shape[0])
    first = places.new_full((n, rows.shape[1]), rows.shape[0])
    first = first.scatter_reduce(0, to, places, "amin")
    return torch.constant_pad_nd(rows, (0, 0, 0, 1)).gather(0, first), first


def segment_reduce(
    data: Tensor,
    reduce: str,
    *,
    lengths: Tensor | None = None,
    indices: Tensor | None = None,
    offsets: Tensor | None = None,
    dim: int = 0,
    unsafe: bool = False,
    initial: float | None = None,
) -> Tensor:
    """``torch.segment_reduce``: an extremum that several attain is shared by them.

    The ``axis`` comes as ``dim``, as those of all functions do.
    """
    named: dict[str, Any] = {
        "lengths": lengths,
        "indices": indices,
        "offsets": offsets,
        "axis": dim,
        "unsafe": unsafe,
    }
    inside = -data.dim() <= dim < data.dim()
    if not inside or (lengths is None and offsets is None):
        return _SEGMENTS(data, reduce, **named)  # which refuses it
    dim = named["axis"] = dim % data.dim()
    column = *data.shape[: dim + 1], *(1,) * (data.dim() - dim - 1)
    _SEGMENTS(_zeros(data, *column), reduce, **named)
    if offsets is not None:
        bounds = offsets.long()
    else:
        bounds = torch.constant_pad_nd(
            cast("Tensor", lengths).long().cumsum(-1), (1, 0)
        )
    segments = _Segments(widened(data), bounds, dim)
    match reduce:
        case "sum":
            y = segments.sum() + (initial or 0)
        case "mean":
            y = segments.mean(initial)
        case "prod":
            y = segments.prod() * (1 if initial is None else initial)
        case "max" | "amax":
            y = _at_least(segments.max(), initial)
        case _:
            opposite = _Segments(-widened(data), bounds, dim).max()
            y = -_at_least(opposite, None if initial is None else -initial)
    return y.to(data.dtype)


def _at_least(y: Tensor, initial: float | None) -> Tensor:
    """The larger one; the derivatives are those of ``y`` where both are equal."""
    if initial is None:
        return y
    return torch.where((y >= initial) | y.isnan(), y, initial)


def tensor_split(input: Tensor, *where: Any, **named: Any) -> tuple[Tensor, ...]:  # noqa: A002
    """``torch.tensor_split``: the shapes need the numbers in a tensor of places.

    Torch reads it where it finds no numbers in a tensor made inside a transform.
    """
    at, *dim = where or (named.pop("tensor_indices_or_sections", None),)
    if isinstance(at, Tensor) and at.dim() <= 1:
        whole = at.dtype == torch.int64 and at.device.type == "cpu"
        at = at.tolist() if whole else at
    if at is None:
        return _SPLITS(input, **named)
    return _SPLITS(input, at, *dim, **named)


class _Segments:
    """Runs of ``x`` along a dimension, each from one bound up to the next."""

    def __init__(self, x: Tensor, bounds: Tensor, axis: int) -> None:
        self.x, self.bounds, self.axis = x, bounds, axis
        self.number = bounds.shape[-1] - 1
        passed = _run_of(bounds, x.shape[axis])
        # What is in no segment counts as one more, behind them.
        self.runs = torch.where(passed == 0, self.number, passed - 1)
        self.index = self._like_x(self.runs).expand(x.shape)

    def _like_x(self, of_places: Tensor) -> Tensor:
        return of_places.reshape(
            *of_places.shape, *(1,) * (self.x.dim() - self.axis - 1)
        )

    def _sizes(self) -> Tensor:
        return self._like_x(self.bounds.diff(dim=-1))

    def _summed(self, x: Tensor) -> Tensor:
        """With the sum over what is in no segment as the last one."""
        shape = list(x.shape)
        shape[self.axis] = self.number + 1
        return x.new_zeros(shape).scatter_add(self.axis, self.index, x)

    def _segments_of(self, y: Tensor) -> Tensor:
        return y.narrow(self.axis, 0, self.number)

    def sum(self) -> Tensor:
        return self._segments_of(self._summed(self.x))

    def mean(self, initial: float | None) -> Tensor:
        """With the initial value in the sum, and not in the number of elements."""
        sizes = self._sizes()
        nothing = torch.nan if initial is None else initial
        mean = (self.sum() + (initial or 0)) / sizes.clamp_min(1)
        return torch.where(sizes == 0, nothing, mean)

    def max(self) -> Tensor:
        """The mean of the elements that are the largest."""
        x = self.x.detach()
        shape = list(x.shape)
        shape[self.axis] = self.number + 1
        top = x.new_full(shape, -torch.inf)
        top = top.scatter_reduce(self.axis, self.index, x, "amax")
        attains = x == top.gather(self.axis, self.index)
        count = self._summed(attains.to(x.dtype))
        mean = self._summed(torch.where(attains, self.x, 0.0)) / count.clamp_min(1)
        return self._segments_of(torch.where(count > 0, mean, top))

    def prod(self) -> Tensor:
        """The last of the products of the first elements, which never leave a segment.

        References:
            Hillis and Steele (1986), "Data parallel algorithms".
        """
        y, runs, shift = self.x.movedim(self.axis, -1), self.index, 1
        runs = runs.movedim(self.axis, -1)
        while shift < y.shape[-1]:
            same = runs[..., shift:] == runs[..., :-shift]
            before = torch.where(same, y[..., :-shift], 1.0)
            y = torch.cat([y[..., :shift], before * y[..., shift:]], -1)
            shift *= 2
        last = self._like_x(self.bounds[..., 1:] - 1).clamp_min(0)
        shape = list(self.x.shape)
        shape[self.axis] = self.number
        # One more element, for segments of nothing where there is nothing.
        y = torch.constant_pad_nd(y, (0, 1)).movedim(-1, self.axis)
        y = y.gather(self.axis, last.expand(shape))
        return torch.where(self._sizes() == 0, 1.0, y)


BAGS: Table = {
    torch.embedding: embedding,
    torch.embedding_bag: embedding_bag,
    torch.segment_reduce: segment_reduce,
    **dict.fromkeys((torch.tensor_split, torch.Tensor.tensor_split), tensor_split),
}
