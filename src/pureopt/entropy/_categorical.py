"""The entropy of a categorical distribution."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import PureoptError
from pureopt._stand_in import StandIn


def categorical(
    logits: Float[Tensor, "*batch classes"], *, dim: int = -1
) -> Float[Tensor, "*batch"]:
    r"""The predictive entropy of each sample, in nats, from its logits.

    .. math::
        H = -\sum_k p_k \log p_k
          = \log \sum_k e^{z_k} - \sum_k p_k z_k, \quad z_k = x_k - \max_j x_j

    Between 0, when one class is certain, and ``log(classes)``, when all are equal; low
    entropy is confidence, not correctness. Both terms on the right are sums of positive
    numbers (the first as ``log1p`` of all but the largest), so that small entropies keep
    their relative accuracy.

    A logit of ``-inf`` excludes its class. One logit of ``+inf`` makes its class certain,
    and several share the probability equally. Value and derivatives of any order are
    finite there: those with respect to infinite logits, and to all logits beside a
    ``+inf``, are 0. A sample with only ``-inf``, or with a NaN, is NaN.

    Args:
        logits: Unnormalized log-probabilities of any scale. Half precision is computed
            in float32 and rounded once, at the end.
        dim: The dimension of the classes.

    Returns:
        The entropies, without the dimension ``dim``.

    Raises:
        PureoptError: If ``logits`` is not real floating-point, or has no class.

    References:
        Shannon (1948), "A mathematical theory of communication", section 6.

    Example:
        A fair coin, a certain class, and a class that is 1e4 below:

        >>> import torch
        >>> import pureopt as po
        >>> inf = torch.inf
        >>> logits = torch.tensor([[0.0, 0.0], [inf, 0.0], [0.0, -1e4]])
        >>> po.entropy.categorical(logits)
        tensor([0.6931, 0.0000, 0.0000])
        >>> torch.func.grad(lambda x: po.entropy.categorical(x).sum())(logits)
        tensor([[0., 0.], [0., 0.], [0., 0.]])
    """
    _check(logits, dim)
    x = logits.movedim(dim, -1)
    x = _share_infinities(x.to(torch.promote_types(x.dtype, torch.float32)))
    top = x.argmax(-1, keepdim=True)
    largest = x.gather(-1, top)
    z = x - largest
    # Left out: classes that are excluded, or so far below that the difference overflows,
    # and the largest itself, whose exp(0) is the 1 in log1p. A NaN stays in.
    first = torch.arange(x.shape[-1], device=x.device) == top
    out = (z == -math.inf) | (first & (z == 0))
    z = torch.where(out, 0.0, z)  # a safe operand: neither -inf * 0 nor its derivative
    e = torch.where(out, 0.0, z.exp())
    rest = e.sum(-1)
    entropy = rest.log1p() - (e * z).sum(-1) / (1 + rest)
    return entropy.to(logits.dtype)


def _share_infinities(x: Tensor) -> Tensor:
    """Beside a logit of ``+inf`` every finite one is as good as ``-inf``."""
    infinite = x == math.inf
    certain = infinite.any(-1, keepdim=True) & ~x.isnan().any(-1, keepdim=True)
    return torch.where(certain, torch.where(infinite, 0.0, -math.inf), x)


def _check(logits: Tensor, dim: int) -> None:
    where = "categorical(logits=...)"
    known = isinstance(logits, Tensor | StandIn)  # pyright: ignore[reportUnnecessaryIsInstance]
    if not known or not logits.is_floating_point():
        got = getattr(logits, "dtype", f"`{type(logits).__name__}`")
        hint = "Counts become logits with `counts.double().log()`."
        raise PureoptError(where, "be a floating-point tensor", str(got), hint)
    inside = -logits.dim() <= dim < logits.dim()
    if not inside or not logits.shape[dim]:
        shape = tuple(logits.shape)
        raise PureoptError(where, f"have classes along dim {dim}", f"shape {shape}")
