"""Coefficients of many directions at once, and how these are divided into blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from pureopt.derivatives._exactness._numeric import innermost, is_of_lanes
from pureopt.derivatives._jets._jet import Jet
from pureopt.derivatives._jets._later import Coefficient, Extent, Later, found

# So many numbers, a megabyte, stay in the caches of a processor from one operation to the
# next, and their memory, given back, serves the next ones: larger pieces go back to the
# system. Below twice as many in all, the calls take what that saves.
_NUMBERS = 1 << 17


def has_lanes(x: Jet, k: int) -> bool:
    """Whether the coefficient of order ``k`` has a dimension of directions in front."""
    return x.summed is not None and 0 < k < x.summed


def may_wait(x: Jet, k: int) -> bool:
    """Whether the coefficient of order ``k`` is one that :func:`later` puts off.

    If any is, that of order one is.
    """
    return has_lanes(x, k) and not torch.compiler.is_compiling()


def later(
    value: Tensor,
    jets: Sequence[Jet],
    k: int,
    make: Callable[[slice | None], Coefficient],
    *,
    lanes: bool = True,
    kept: bool = True,
) -> Coefficient | Later:
    """What ``make(None)`` gives, put off where it has many directions.

    The last of these, the gradient of the output, are often not asked for. A compiler
    drops them by itself, and would trace what was put off at the end of a chain of calls
    as long as the function.

    Args:
        value: The coefficient of order zero.
        jets: What it is computed from.
        k: Its order.
        make: Computes it, or the directions in a slice.
        lanes: Whether it has the lanes of the value, whatever it is computed from. A product
            with a matrix has only those of its factor.
        kept: As for :class:`Later`.
    """
    if may_wait(jets[0], k):
        return put_off(value, jets, k, make, lanes=lanes, kept=kept)
    return make(None)


def put_off(
    value: Tensor,
    jets: Sequence[Jet],
    k: int,
    make: Callable[[slice | None], Coefficient],
    *,
    lanes: bool = True,
    kept: bool = True,
) -> Later:
    """As :func:`later`, and with its arguments, once :func:`may_wait` has said yes.

    Blocks of it are of use on the CPU in double precision; in float32 they gained nothing
    and cost up to a sixth where gradients were asked for. Other devices are slowed by
    small kernels.
    """
    in_blocks = value.dtype == torch.float64 and value.is_cpu
    extent = _extent(value, jets, k, lanes) if in_blocks else None
    return Later(make, extent, kept=kept)


def _extent(value: Tensor, jets: Sequence[Jet], k: int, lanes: bool) -> Extent | None:
    """How large the coefficient of order ``k`` is, if one that it is made of is known."""
    for x in jets:
        size = _size(x.terms[k - 1])
        if size is None or not x.value.numel():
            continue
        if lanes:
            return Extent(size.directions, size.directions * innermost(value).numel())
        shared = size.numbers // x.value.numel() * value.numel()
        return Extent(size.directions, shared)
    return None


def _size(c: Coefficient | Later) -> Extent | None:
    """How large it is, if it has blocks: a part of what is whole has gaps between lanes."""
    if isinstance(c, Later):
        if c.is_open():
            return c.extent
        c = c.made
    if c is None:
        return None
    size = Extent(c.shape[0], innermost(c).numel())
    return None if size.numbers > 2 * _NUMBERS and is_of_lanes(c) else size


def sum_of_products(a: Coefficient | Later, b: Coefficient | Later) -> Coefficient:
    """The sum over all directions of ``a * b``.

    Where both are large and one is still to be computed, block after block: what it is
    computed from, each block is then used up while the processor has it at hand.
    """
    for c in (a, b):
        if isinstance(c, Later):  # who sums up asks again, for what is linear in it
            c.kept = True
    total: Coefficient = None
    for part in _parts(a, b):
        left = found(a, part)
        right = left if b is a else found(b, part)
        if left is None or right is None:
            return None
        term = (left * right).sum(0)
        total = term if total is None else total + term
    return total


def _parts(a: Coefficient | Later, b: Coefficient | Later) -> Sequence[slice | None]:
    """How the directions are divided, each half in halves again; ``None`` are all.

    So blocks of layers of different widths are parts of each other.
    """
    directions = numbers = 0
    for c in (a, b):
        size = c.extent if isinstance(c, Later) and c.is_open() else None
        if size is not None and size.numbers > 2 * _NUMBERS:
            directions, numbers = size.directions, max(numbers, size.numbers)
    if not numbers:
        return [None]
    count = 1 << ((numbers - 1) // _NUMBERS).bit_length()
    ends = [i * directions // count for i in range(count + 1)]
    return [slice(i, j) for i, j in pairwise(ends) if i < j]
