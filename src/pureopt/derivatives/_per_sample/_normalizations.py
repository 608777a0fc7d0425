"""The rules of normalizations, of which only the scale and the shift have parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import functional as F

from pureopt.derivatives._per_sample._uses import Elementwise

if TYPE_CHECKING:
    from pureopt.derivatives._per_sample._scope import Scope


def layer_norm(
    scope: Scope,
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """The scale and the shift; the normalization has no parameter."""
    if scope.find(input):
        return NotImplemented
    normal = F.layer_norm(input, normalized_shape, None, None, eps)
    return _affine(scope, normal, (weight, bias), tuple(normalized_shape))


def rms_norm(
    scope: Scope,
    input: Tensor,  # noqa: A002
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Any:
    """The scale."""
    if scope.find(input):
        return NotImplemented
    normal = F.rms_norm(input, normalized_shape, None, eps)
    return _affine(scope, normal, (weight, None), tuple(normalized_shape))


def group_norm(
    scope: Scope,
    input: Tensor,  # noqa: A002
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Any:
    """The scale and the shift of each channel."""
    if scope.find(input):
        return NotImplemented
    normal = F.group_norm(input, num_groups, None, None, eps)
    return _affine(scope, normal, (weight, bias), *_channels(input))


def batch_norm(
    scope: Scope,
    input: Tensor,  # noqa: A002
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Any:
    """The scale and the shift of each channel, with running statistics."""
    if training or scope.find(input):
        return NotImplemented
    if scope.find(running_mean) or scope.find(running_var):
        return NotImplemented
    normal = F.batch_norm(
        input, running_mean, running_var, None, None, training, momentum, eps
    )
    return _affine(scope, normal, (weight, bias), *_channels(input))


def _channels(x: Tensor) -> tuple[tuple[int, ...], int]:
    return (x.shape[1],), x.dim() - 2


def _affine(
    scope: Scope,
    normal: Tensor,
    affine: tuple[Tensor | None, Tensor | None],
    shape: tuple[int, ...],
    space: int = 0,
) -> Any:
    """The scale and the shift, both of this shape, before so many dimensions of space."""
    weight, bias = affine
    if any(given is not None and given.shape != shape for given in affine):
        return NotImplemented  # torch says what is wrong
    w, b = scope.find(weight), scope.find(bias)
    if (w and w.part.flipped) or (b and b.part.flipped):
        return NotImplemented
    out, view = normal, (*shape, *[1] * space)
    if weight is not None:
        out = out * scope.value(weight).reshape(view)
    if bias is not None and not b:
        out = out + bias.reshape(view)
    if w:
        scope.add(Elementwise(w.part, scope.save(normal), scope.tap, view))
    if b:
        scope.add(Elementwise(b.part, -1, scope.tap, view))
    # In the dtype of the input, as torch's, whatever that of the parameters is.
    return scope.tapped(out.to(normal.dtype), b, view)


NORMALIZATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    F.layer_norm: layer_norm,
    F.rms_norm: rms_norm,
    F.group_norm: group_norm,
    F.batch_norm: batch_norm,
}
