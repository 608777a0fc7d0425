"""The operations whose gradients per sample are known from input and delta.

A rule has the signature of its torch function after the scope. It taps the output and
notes the uses, or returns ``NotImplemented``, and has noted nothing then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._exactness._numeric import is_batched
from pureopt.derivatives._per_sample._normalizations import NORMALIZATIONS
from pureopt.derivatives._per_sample._uses import (
    Convolution,
    Elementwise,
    Lookup,
    Product,
)

if TYPE_CHECKING:
    from pureopt.derivatives._per_sample._scope import Known, Scope

_MATRIX = 2  # dimensions


def linear(
    scope: Scope,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    bias: Tensor | None = None,
) -> Any:
    """``x W^T + b``."""
    if scope.find(input):
        return NotImplemented
    w, b = scope.find(weight), scope.find(bias)
    if b and b.part.flipped:
        return NotImplemented
    # The tap adds it: one pass over the output instead of two.
    sizes = weight.shape[:1], (1,)
    by_tap = b if b and weight.dim() == _MATRIX and b.tensor.shape in sizes else None
    rest = None if by_tap else scope.value(bias)
    out = F.linear(input, scope.value(weight), rest)
    if w:
        scope.add(Product(w.part, scope.save(input), scope.tap))
    if b:
        scope.add(_bias(scope, b))
    return scope.tapped(out, by_tap)


def matmul(
    scope: Scope,
    input: Tensor,  # noqa: A002
    other: Tensor | None = None,
    **rest: Any,
) -> Any:
    """``x w`` and ``w x``; as a keyword the second operand has other names."""
    a, b = scope.find(input), scope.find(other)
    known = a or b
    if rest or (a and b) or known is None or known.tensor.dim() > _MATRIX:
        return NotImplemented
    if other is None:
        return NotImplemented
    if a and other.dim() > _MATRIX:  # a batch of products, of which the leaf is a part
        return NotImplemented
    out = torch.matmul(scope.value(input), scope.value(other))
    vector = known.tensor.dim() == 1
    saved = other if a else input
    if a and vector and saved.dim() == _MATRIX:
        saved = saved.mT
    columns = a is not None and not vector and saved.dim() == _MATRIX
    scope.add(
        Product(
            known.part, scope.save(saved), scope.tap, not vector and a is None, columns
        )
    )
    return scope.tapped(out)


def rmatmul(scope: Scope, input: Tensor, other: Tensor) -> Any:  # noqa: A002
    """The product with its operands exchanged."""
    return matmul(scope, other, input)


def embedding(
    scope: Scope,
    input: Tensor,  # noqa: A002
    weight: Tensor,
    padding_idx: int | None = None,
    max_norm: float | None = None,
    norm_type: float = 2.0,
    scale_grad_by_freq: bool = False,
    sparse: bool = False,
) -> Any:
    """Rows of a table."""
    w = scope.find(weight)
    if w is None or not w.part.whole() or max_norm is not None or scale_grad_by_freq:
        return NotImplemented
    rows = weight.shape[0]
    padding = -1 if padding_idx is None else padding_idx % rows
    out = F.embedding(
        input, w.constant, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse
    )
    scope.add(Lookup(w.part, scope.save(input), scope.tap, padding))
    return scope.tapped(out)


def _convolution(func: Callable[..., Tensor], space: int) -> Callable[..., Any]:
    def convolution(
        scope: Scope,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | str | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Any:
        steps, gaps = _each(stride, space), _each(dilation, space)
        edges = _edges(padding, weight.shape[2:], gaps)
        use = partial(
            Convolution, stride=steps, padding=edges, dilation=gaps, groups=groups
        )
        settings = stride, padding, dilation, groups
        return _convolved(scope, (input, weight, bias), func, settings, use)

    return convolution


def _transposed(func: Callable[..., Tensor], space: int) -> Callable[..., Any]:
    def convolution(
        scope: Scope,
        input: Tensor,  # noqa: A002
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        output_padding: int | Sequence[int] = 0,
        groups: int = 1,
        dilation: int | Sequence[int] = 1,
    ) -> Any:
        steps, gaps = _each(stride, space), _each(dilation, space)
        use = partial(
            Convolution,
            stride=steps,
            padding=_edges(padding, weight.shape[2:], gaps),
            dilation=gaps,
            groups=groups,
            transposed=True,
        )
        settings = stride, padding, output_padding, groups, dilation
        return _convolved(scope, (input, weight, bias), func, settings, use)

    return convolution


def _convolved(
    scope: Scope,
    tensors: tuple[Tensor, Tensor, Tensor | None],
    func: Callable[..., Tensor],
    settings: tuple[Any, ...],
    use: Callable[..., Convolution],
) -> Any:
    x, weight, bias = tensors
    w, b = scope.find(weight), scope.find(bias)
    if scope.find(x) or (w and not w.part.whole()):
        return NotImplemented
    out = func(x, scope.value(weight), scope.value(bias), *settings)
    if w:
        scope.add(use(w.part, scope.save(x), scope.tap))
    if b:
        scope.add(_bias(scope, b, weight.dim() - 2))
    return scope.tapped(out)


def _each(value: int | Sequence[int], space: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * space
    return tuple(value) * (space if len(value) == 1 else 1)


def _edges(
    padding: int | str | Sequence[int], kernel: Sequence[int], gaps: Sequence[int]
) -> tuple[tuple[int, int], ...]:
    """What is added before and after; a string is rounded as torch does."""
    if padding == "valid":
        return tuple((0, 0) for _ in kernel)
    if isinstance(padding, str):
        total = [d * (k - 1) for k, d in zip(kernel, gaps, strict=True)]
        return tuple((t // 2, t - t // 2) for t in total)
    return tuple((p, p) for p in _each(padding, len(kernel)))


def _bias(scope: Scope, bias: Known, space: int = 0) -> Elementwise:
    view = (*bias.tensor.shape, *[1] * space)
    return Elementwise(bias.part, -1, scope.tap, view)


def add(scope: Scope, input: Any, other: Any, **rest: Any) -> Any:  # noqa: A002
    """``h + b``."""
    return _elementwise(scope, torch.add, input, other, rest)


def sub(scope: Scope, input: Any, other: Any, **rest: Any) -> Any:  # noqa: A002
    """``h - b``."""
    return _elementwise(scope, torch.sub, input, other, rest)


def mul(scope: Scope, input: Any, other: Any, **rest: Any) -> Any:  # noqa: A002
    """``h * w``."""
    return _elementwise(scope, torch.mul, input, other, rest)


def _elementwise(
    scope: Scope, func: Callable[..., Tensor], left: Any, right: Any, rest: Any
) -> Any:
    a, b = scope.find(left), scope.find(right)
    known, other = (a, right) if a else (b, left)
    if rest or known is None or known.part.flipped or not isinstance(other, Tensor):
        return NotImplemented
    if a and b:
        return NotImplemented
    # What does not depend on the sample would be copied for each of them.
    if not is_batched(other) or other.dtype != known.tensor.dtype:
        return NotImplemented
    out = func(scope.value(left), scope.value(right))
    sign = -1 if b and func is torch.sub else 1
    slot = scope.save(other) if func is torch.mul else -1
    view = tuple(known.tensor.shape)
    scope.add(Elementwise(known.part, slot, scope.tap, view, sign))
    return scope.tapped(out)


def transpose(scope: Scope, input: Tensor, *dims: Any, **rest: Any) -> Any:  # noqa: A002
    """The transpose of a matrix is known too."""
    known = scope.find(input)
    matrix = known is not None and known.tensor.dim() == _MATRIX
    if (
        rest
        or known is None
        or not matrix
        or {d + _MATRIX if d < 0 else d for d in dims} not in ({0, 1}, set())
    ):
        return NotImplemented
    part = known.part._replace(flipped=not known.part.flipped)
    return scope.learn(input.mT, known.constant.mT, part)


def split(scope: Scope, input: Tensor, size: Any, dim: int = 0) -> Any:  # noqa: A002
    """Rows of a leaf are known too."""
    return _rows(scope, input, dim, lambda x: torch.split(x, size))


def chunk(scope: Scope, input: Tensor, chunks: int, dim: int = 0) -> Any:  # noqa: A002
    """Rows of a leaf are known too."""
    return _rows(scope, input, dim, lambda x: torch.chunk(x, chunks))


def _rows(
    scope: Scope, tensor: Tensor, dim: int, cut: Callable[[Tensor], Sequence[Tensor]]
) -> Any:
    known = scope.find(tensor)
    if known is None or dim != 0 or known.part.flipped or not tensor.dim():
        return NotImplemented
    start, pieces = known.part.start, []
    for piece, constant in zip(cut(tensor), cut(known.constant), strict=True):
        stop = start + piece.shape[0]
        part = known.part._replace(start=start, stop=stop)
        pieces.append(scope.learn(piece, constant, part))
        start = stop
    return tuple(pieces)


RULES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.linear: linear,
    torch.matmul: matmul,
    torch.mm: matmul,
    torch.mv: matmul,
    torch.dot: matmul,
    Tensor.matmul: matmul,
    Tensor.mm: matmul,
    Tensor.mv: matmul,
    Tensor.dot: matmul,
    Tensor.__matmul__: matmul,
    Tensor.__rmatmul__: rmatmul,
    F.embedding: embedding,
    F.conv1d: _convolution(F.conv1d, 1),
    F.conv2d: _convolution(F.conv2d, 2),
    F.conv3d: _convolution(F.conv3d, 3),
    F.conv_transpose1d: _transposed(F.conv_transpose1d, 1),
    F.conv_transpose2d: _transposed(F.conv_transpose2d, 2),
    F.conv_transpose3d: _transposed(F.conv_transpose3d, 3),
    **NORMALIZATIONS,
    torch.add: add,
    Tensor.add: add,
    Tensor.__add__: add,
    Tensor.__radd__: add,
    torch.sub: sub,
    Tensor.sub: sub,
    Tensor.__sub__: sub,
    torch.mul: mul,
    Tensor.mul: mul,
    Tensor.__mul__: mul,
    Tensor.__rmul__: mul,
    torch.t: transpose,
    Tensor.t: transpose,
    Tensor.T.__get__: transpose,  # pyright: ignore[reportAttributeAccessIssue]
    Tensor.mT.__get__: transpose,  # pyright: ignore[reportAttributeAccessIssue]
    torch.transpose: transpose,
    Tensor.transpose: transpose,
    torch.split: split,
    Tensor.split: split,
    torch.chunk: chunk,
    Tensor.chunk: chunk,
}
