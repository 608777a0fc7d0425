r"""How a parameter enters an operation, and what its gradient per sample is made of.

A *use* is what is known before any number: the leaf, the part of it that is used, the
kind of operation. With the input of the operation (``saved``) and the gradient at its
output (``delta``), both with the samples in dimension 0, it gives the leaf's gradient
per sample as a sum of outer products over positions ``t``,

.. math:: g_i = \sum_t L_{it} \otimes R_{it},

or, for biases and scales, as it is. The leaf is seen as ``(groups, m, n)``: blocks of
``m`` rows and ``n`` columns, in the order of its memory.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias, final

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import widened

Blocks: TypeAlias = tuple[int, int, int]


class Part(NamedTuple):
    """Which leaf, and which of its rows; ``flipped`` if what is used is the transpose."""

    leaf: int
    shape: tuple[int, ...]
    start: int
    stop: int
    flipped: bool = False

    def whole(self) -> bool:
        """All rows, as they are."""
        return not self.flipped and self.stop - self.start == (*self.shape, 1)[0]


@dataclass(frozen=True)
class Use(ABC):
    """One operation that a leaf enters.

    Attributes:
        part: The leaf, or the rows of it.
        slot: Where the operation's input is among what is saved; -1 if it is not needed.
        tap: Where the gradient at its output is.
    """

    part: Part
    slot: int
    tap: int

    @abstractmethod
    def blocks(self) -> Blocks | None:
        """``(groups, m, n)`` of the leaf; ``None`` if any will do."""

    @abstractmethod
    def dense(
        self, saved: Tensor, delta: Tensor, blocks: Blocks, rows: slice
    ) -> Tensor:
        """The gradients themselves, rows of each group: ``(samples, groups, rows, n)``."""

    @abstractmethod
    def total(self, saved: Tensor, delta: Tensor) -> Tensor:
        """Their sum over the samples, ``(numel,)``."""


@dataclass(frozen=True)
class Factored(Use):
    """Outer products over positions."""

    @abstractmethod
    def blocks(self) -> Blocks:
        """``(groups, m, n)`` of the leaf."""

    def dense(
        self, saved: Tensor, delta: Tensor, blocks: Blocks, rows: slice
    ) -> Tensor:
        del blocks
        left, right = map(widened, self.factors(saved, delta))
        return left[..., rows].mT @ right

    def total(self, saved: Tensor, delta: Tensor) -> Tensor:
        left, right = (
            widened(x).movedim(1, 0).flatten(1, 2) for x in self.factors(saved, delta)
        )
        return (left.mT @ right).reshape(-1)

    @abstractmethod
    def upright(self) -> bool:
        """``delta`` is ``L`` and the input ``R``, not the other way round."""

    @abstractmethod
    def positions(self, saved: Tensor, delta: Tensor) -> int:
        """How many outer products there are in a sample."""

    def direct(self, saved: Tensor, delta: Tensor) -> bool:
        """The gradients are formed without their factors, about twice as fast."""
        del saved, delta
        return False

    @abstractmethod
    def factors(self, saved: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """``L`` of shape ``(samples, groups, t, m)`` and ``R``, ``(samples, groups, t, n)``."""


@final
@dataclass(frozen=True)
class Product(Factored):
    """A product with a matrix or vector.

    Attributes:
        left: The leaf stands on the right, as in ``x @ w``: rows belong to the input.
        columns: Positions are in the last dimension, as in ``w @ x``.
    """

    left: bool = False
    columns: bool = False

    def blocks(self) -> Blocks:
        *rows, n = self.part.shape
        return 1, math.prod(rows), n

    def upright(self) -> bool:
        return self.left == self.part.flipped

    def positions(self, saved: Tensor, delta: Tensor) -> int:
        del delta
        rest = (
            (*saved.shape[:-2], saved.shape[-1]) if self.columns else saved.shape[:-1]
        )
        return math.prod(rest[1:])

    def factors(self, saved: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        t = self.positions(saved, delta)
        if self.columns:
            saved, delta = saved.mT, delta.mT
        width = 1 if len(self.part.shape) == 1 else delta.shape[-1]
        left = delta.reshape(delta.shape[0], 1, t, width)
        right = saved.reshape(saved.shape[0], 1, t, saved.shape[-1])
        if not self.upright():
            left, right = right, left
        beside = (self.part.start, self.part.shape[0] - self.part.stop)
        if beside == (0, 0):
            return left, right
        if len(self.part.shape) == 1:
            return left, F.pad(right, beside)
        return F.pad(left, beside), right


@final
@dataclass(frozen=True)
class Convolution(Factored):
    """A convolution; a sample may be a batch of its own.

    Attributes:
        stride: Per dimension of space, as the next two.
        padding: Before and after.
        dilation: Between the elements of the kernel.
        groups: Of channels.
        transposed: A transposed convolution, where input and output change places.
    """

    stride: tuple[int, ...] = ()
    padding: tuple[tuple[int, int], ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    transposed: bool = False

    def blocks(self) -> Blocks:
        rows, *rest = self.part.shape
        return self.groups, rows // self.groups, math.prod(rest)

    def upright(self) -> bool:
        return not self.transposed

    def positions(self, saved: Tensor, delta: Tensor) -> int:
        small = saved if self.transposed else delta
        space = len(self.stride)
        return math.prod(small.shape[1 : -space - 1]) * math.prod(small.shape[-space:])

    def direct(self, saved: Tensor, delta: Tensor) -> bool:
        plain = delta.dtype == saved.dtype == torch.float32
        return plain and delta.device.type == "cpu" and delta.numel() > 0

    def dense(
        self, saved: Tensor, delta: Tensor, blocks: Blocks, rows: slice
    ) -> Tensor:
        if not self.direct(saved, delta):
            return super().dense(saved, delta, blocks, rows)
        left, image = self._sides(saved, delta)
        left, space = left[:, :, :, rows], len(self.stride)
        b, within, g, m = left.shape[:4]
        # A group of channels for each sample, and the batch is that within a sample.
        left = left.transpose(0, 1).reshape(within, b * g * m, *left.shape[-space:])
        image = image.transpose(0, 1).flatten(1, 3)
        # As `torch.nn.grad` has it, whose weight, of which only the shape counts, is
        # copied to as much memory as the gradients take.
        grads = torch.ops.aten.convolution_backward(
            *(left, image, image.new_empty(b * g * m, *self.part.shape[1:]), None),
            *(self.stride, [0] * space, self.dilation, False, [0] * space, b * g),
            (False, True, False),
        )[1]
        return grads.reshape(b, g, m, blocks[2])

    def factors(self, saved: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        left, image = self._sides(saved, delta)
        space, t = len(self.stride), self.positions(saved, delta)
        for i, (s, d) in enumerate(zip(self.stride, self.dilation, strict=True)):
            span = (self.part.shape[2 + i] - 1) * d + 1
            image = image.unfold(4 + i, span, s)[..., ::d]
        # Channel and kernel, as in the memory of the weight, and positions last: copied
        # in this order there are runs of neighbors to copy.
        places, kernel = range(4, 4 + space), range(-space, 0)
        image = image.movedim(tuple(kernel), tuple(places)).movedim(1, 3 + space)
        b, (g, m, n) = left.shape[0], self.blocks()
        left = left.movedim(1, 3).reshape(b, g, m, t)
        return left.mT, image.reshape(b, g, n, t).mT

    def _sides(self, saved: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and image: ``(samples, batch within, groups, channels, space)``.

        The image has its padding, and no room for another position.
        """
        rows, image = (saved, delta) if self.transposed else (delta, saved)
        space = len(self.stride)
        size, kernel = rows.shape[-space:], self.part.shape[2:]
        edges = [p for pair in reversed(self.padding) for p in pair]
        image = F.pad(image, edges) if any(edges) else image
        for i, (s, d) in enumerate(zip(self.stride, self.dilation, strict=True)):
            length = (size[i] - 1) * s + (kernel[i] - 1) * d + 1
            # Less than a step too much is not read: no need to copy the rest.
            if image.shape[i - space] >= length + s:
                image = image.narrow(i - space, 0, max(0, length))
        return self._grouped(rows), self._grouped(image)

    def _grouped(self, x: Tensor) -> Tensor:
        space = len(self.stride)
        within = math.prod(x.shape[1 : -space - 1])
        channels = x.shape[-space - 1] // self.groups
        return x.reshape(x.shape[0], within, self.groups, channels, *x.shape[-space:])


@final
@dataclass(frozen=True)
class Lookup(Factored):
    """Rows of a table.

    Attributes:
        padding: The row that takes no gradient; -1 if there is none.
    """

    padding: int = -1

    def blocks(self) -> Blocks:
        m, n = self.part.shape
        return 1, m, n

    def upright(self) -> bool:
        return False

    def positions(self, saved: Tensor, delta: Tensor) -> int:
        del delta
        return math.prod(saved.shape[1:])

    def factors(self, saved: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        ids, right = self.rows(saved, delta)
        rows = torch.arange(self.part.shape[0], device=saved.device)
        return (ids[..., None] == rows).to(delta.dtype), right

    def total(self, saved: Tensor, delta: Tensor) -> Tensor:
        ids, right = self.rows(saved, delta)
        right = widened(right.flatten(0, -2))
        table = right.new_zeros(self.part.shape)
        return table.index_add(0, ids.reshape(-1), right).reshape(-1)

    def rows(self, saved: Tensor, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The rows that are read, ``(samples, 1, t)``, and the gradients there."""
        ids = saved.reshape(saved.shape[0], 1, self.positions(saved, delta))
        right = delta.reshape(*ids.shape, delta.shape[-1])
        if self.padding < 0:
            return ids, right
        return ids, torch.where((ids == self.padding)[..., None], 0.0, right)


@final
@dataclass(frozen=True)
class Elementwise(Use):
    """A sum or a product, element by element: the gradient is summed over the rest.

    Attributes:
        view: The shape of the leaf, or of its rows, that is broadcast to the output.
        sign: -1 if it is subtracted.
    """

    view: tuple[int, ...] = ()
    sign: int = 1

    def blocks(self) -> Blocks | None:
        return None

    def dense(
        self, saved: Tensor, delta: Tensor, blocks: Blocks, rows: slice
    ) -> Tensor:
        return self.value(saved, delta).reshape(delta.shape[0], *blocks)[:, :, rows]

    def total(self, saved: Tensor, delta: Tensor) -> Tensor:
        return self.value(saved, delta).sum(0)

    def value(self, saved: Tensor, delta: Tensor) -> Tensor:
        """The gradient per sample, ``(samples, numel)``."""
        g = _aligned(saved, delta) * delta if self.slot >= 0 else delta
        g = g if self.sign == 1 else -g
        offset = g.dim() - len(self.view)
        wide = [offset + d for d, n in enumerate(self.view) if n != g.shape[offset + d]]
        over = [*range(1, offset), *wide]
        g = widened(g.sum(over) if over else g).reshape(g.shape[0], -1)
        if self.part.whole():
            return g
        row = math.prod(self.part.shape[1:])
        rest = self.part.shape[0] - self.part.stop
        return F.pad(g, (row * self.part.start, row * rest))


def _aligned(saved: Tensor, delta: Tensor) -> Tensor:
    """Broadcast within a sample, not over the samples."""
    missing = delta.dim() - saved.dim()
    return saved.reshape(saved.shape[0], *[1] * missing, *saved.shape[1:])


def common_blocks(uses: Sequence[Use]) -> set[Blocks | None]:
    """The views as blocks that the uses of a leaf ask for."""
    return {use.blocks() for use in uses} - {None}
