"""Clipping of gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from torch import Tensor

from pureopt._tree import check_params, tree_map, tree_match
from pureopt._typing import P, Scalar
from pureopt.transforms._base import Additive, check_hyper, working_dtype
from pureopt.transforms._leaves import sqrt


@final
@dataclass(frozen=True, eq=False)
class ClipByGlobalNorm(Additive):
    r"""Scale the gradients so that their joint Euclidean norm is at most ``max_norm``.

    .. math:: g \mapsto g \cdot c / \max(\lVert g \rVert_2, c)

    over all leaves together: no constant is added to the norm, so gradients inside the
    ball pass bit by bit and others end on its surface. Sums are taken in float32 where a
    leaf has less. If any element is NaN, all become NaN.

    Args:
        max_norm: :math:`c \ge 0`; a number or a 0-d tensor.

    Raises:
        HyperparameterError: If the number is outside its range, or the tensor not 0-d.

    References:
        Pascanu, Mikolov, Bengio (2013), "On the difficulty of training recurrent neural
        networks", Algorithm 1.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> clipped = po.ClipByGlobalNorm(1.0) >> po.SGD(lr=1.0)
        >>> params = {"w": torch.zeros(2), "b": torch.zeros(2)}
        >>> grads = {"w": torch.tensor([4.0, 4.0]), "b": torch.tensor([4.0, -4.0])}
        >>> clipped.step(params, clipped.init(params), grads)[0]  # the norm was 8
        {'w': tensor([-0.5000, -0.5000]), 'b': tensor([-0.5000,  0.5000])}
    """

    max_norm: Scalar

    def __post_init__(self) -> None:
        check_hyper("ClipByGlobalNorm(max_norm=...)", self.max_norm, schedule=False)

    @property
    def emits(self) -> Literal["gradients", "deltas"]:
        return "gradients"

    def init(self, params: Any) -> tuple[()]:
        check_params("init(params=...)", params)
        return ()

    def update(
        self,
        params: P,
        state: tuple[()],
        grads: P,
        *,
        value: Tensor | None = None,  # noqa: ARG002
    ) -> tuple[P, tuple[()]]:
        # In the order of the parameters, so that the order of the keys of the gradients
        # does not change a bit of the sum.
        norm = _global_norm(tree_match(grads, params))
        inside = norm <= self.max_norm  # False for NaN, which then spreads
        scale = torch.where(inside, 1.0, self.max_norm / torch.where(inside, 1.0, norm))
        return tree_map(
            lambda _, g: (scale * g.to(working_dtype(g))).to(g.dtype), params, grads
        ), state


def _global_norm(leaves: list[Tensor]) -> Tensor:
    first, *rest = (g.to(working_dtype(g)).square().sum() for g in leaves)
    return sqrt(sum(rest, start=first))
