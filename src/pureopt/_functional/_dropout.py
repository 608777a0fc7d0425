"""Dropout whose masks are a function of a key, which stands in a buffer."""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor, nn

from pureopt import _random
from pureopt._errors import PureoptError

RNG = "rng"

# The value far left of zero to which SELU saturates: -lambda alpha.
_SATURATED = -1.7580993408473766


class _Keyed(nn.Module):
    """The forward pass of all six; the flags say what is dropped, and what for."""

    p: float
    rng: Tensor
    channels: ClassVar[bool] = False
    # Inputs of this dimension have channels but no batch.
    unbatched: ClassVar[int] = 0
    alpha: ClassVar[bool] = False

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        key = self.rng
        # A shared module draws again: the stream of a key and its children differ.
        self.rng = _random.fold_in(key, 0)
        keep = _random.bernoulli(key, 1 - self.p, self._shape(input))
        return _alpha(input, keep, self.p) if self.alpha else _zero(input, keep, self.p)

    def _shape(self, x: Tensor) -> tuple[int, ...]:
        if not self.channels:
            return tuple(x.shape)
        if x.dim() < 2:  # noqa: PLR2004
            raise PureoptError(
                f"{type(self).__bases__[1].__name__}(input)",
                "have a dimension for batch and one for channels",
                f"shape {tuple(x.shape)}",
            )
        lead = 1 if x.dim() == self.unbatched else 2
        return (*x.shape[:lead], *(1,) * (x.dim() - lead))


def _zero(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """Srivastava et al. (2014), section 10, scaled by 1 / (1 - p) in training."""
    scale = 1 / (1 - p) if p < 1 else 0.0
    return torch.where(keep, x * scale, 0)


def _alpha(x: Tensor, keep: Tensor, p: float) -> Tensor:
    """Klambauer et al. (2017), section 2 "New dropout": a (x d + a' (1 - d)) + b."""
    if p == 1:
        return torch.where(keep, x, 0)
    a = 1 / math.sqrt((1 - p) * (1 + p * _SATURATED**2))
    return torch.where(keep, a * x, a * _SATURATED) - a * p * _SATURATED


class _Dropout(_Keyed, nn.Dropout):
    pass


class _Dropout1d(_Keyed, nn.Dropout1d):
    channels = True
    unbatched = 2


class _Dropout2d(_Keyed, nn.Dropout2d):
    # Three dimensions are (batch, channel, length) here, as torch documents.
    channels = True


class _Dropout3d(_Keyed, nn.Dropout3d):
    channels = True
    unbatched = 4


class _AlphaDropout(_Keyed, nn.AlphaDropout):
    alpha = True


class _FeatureAlphaDropout(_Keyed, nn.FeatureAlphaDropout):
    alpha = True
    channels = True


# A subclass may do anything in `forward`: only torch's own classes have a twin.
_TWINS: dict[type[nn.Module], type[nn.Module]] = {
    twin.__bases__[1]: twin
    for twin in (
        _Dropout,
        _Dropout1d,
        _Dropout2d,
        _Dropout3d,
        _AlphaDropout,
        _FeatureAlphaDropout,
    )
}


def has_dropout(module: nn.Module) -> bool:
    """Whether the module needs a key, in train mode at least."""
    return any(type(sub) in _TWINS and _rate(sub) > 0 for sub in module.modules())


def key_dropouts(skeleton: nn.Module) -> list[str]:
    """Give each active dropout its twin's class and a buffer; return their names.

    Changing the class in place keeps hooks, sharing and every reference to the module.
    """
    slots: list[str] = []
    for name, sub in skeleton.named_modules():
        twin = _TWINS.get(type(sub))
        if twin is not None and sub.training and _rate(sub) > 0:
            sub.__class__ = twin
            # Never read: `apply` puts a key there for the time of a call.
            sub.register_buffer(
                RNG, torch.zeros((), dtype=torch.int64, device="meta"), persistent=False
            )
            slots.append(f"{name}.{RNG}" if name else RNG)
    return slots


def _rate(sub: nn.Module) -> float:
    return float(vars(sub)["p"])
