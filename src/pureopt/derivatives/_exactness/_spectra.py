"""Eigenvalues and eigenvectors: constants, and a perturbation series about them.

The decomposition of a constant has no derivative. How it moves with the matrix is the
fixed point of an iteration, each step of which is right to one order more.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pureopt._lu import lu_solve
from pureopt._tracing import as_traced
from pureopt.derivatives._exactness._numeric import (
    RESULTS,
    Table,
    squares,
    transforms,
)

# Of `loss.backward()` and `torch.autograd.grad`, which may surround all transforms.
_PLAIN_ORDERS = 4


def eigh(
    input: Float[Tensor, "*batch n n"],  # noqa: A002
    UPLO: str = "L",
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    """``torch.linalg.eigh``; its derivatives are those along Hermitian matrices.

    They are right to any order of ``torch.func``, and to order four of
    ``torch.autograd`` around it, whose derivatives cannot be counted beforehand: those
    of a higher order are not finite.
    """
    if not input.numel():
        return torch.linalg.eigh(input, UPLO)
    values, constant = torch.linalg.eigh(input.detach(), UPLO)
    vectors = as_traced(constant, input[..., :1, :1])
    change = moved(input)
    turned = vectors.mH @ torch.lerp(change, change.mH, 0.5) @ vectors
    shift, mixing = perturbed(turned, values)
    length = (1 + squares(mixing).sum(-2, keepdim=True)).sqrt()
    vectors = (vectors + vectors @ mixing) / length
    return RESULTS.linalg_eigh((values + shift.real, vectors))


def eigvalsh(
    input: Float[Tensor, "*batch n n"],  # noqa: A002
    UPLO: str = "L",
) -> Float[Tensor, "*batch n"]:
    """``torch.linalg.eigvalsh``."""
    return eigh(input, UPLO)[0]


def eig(
    input: Float[Tensor, "*batch n n"],  # noqa: A002
) -> tuple[Tensor, Tensor]:
    """``torch.linalg.eig``, with eigenvectors of norm 1.

    A matrix without as many eigenvectors as rows has no derivatives: they are not finite.
    """
    if not input.numel():
        return torch.linalg.eig(input)
    values, constant = torch.linalg.eig(input.detach())
    vectors = as_traced(constant, input[..., :1, :1])
    change = moved(input).to(vectors.dtype)
    lu, pivots, info = torch.linalg.lu_factor_ex(constant)
    turned = lu_solve(lu, pivots, change @ vectors)
    defective = (info != 0)[..., None, None]
    undefined = torch.where(defective, change, 1.0) ** 0.5
    turned = torch.where(defective, undefined, turned)
    shift, mixing = perturbed(turned, values)
    vectors = vectors + vectors @ mixing
    vectors = vectors / squares(vectors).sum(-2, keepdim=True).sqrt()
    return RESULTS.linalg_eig((values + shift, vectors))


def eigvals(
    input: Float[Tensor, "*batch n n"],  # noqa: A002
) -> Tensor:
    """``torch.linalg.eigvals``."""
    return eig(input)[0]


def perturbed(
    D: Float[Tensor, "*batch n n"], values: Float[Tensor, "*batch n"]
) -> tuple[Float[Tensor, "*batch n"], Float[Tensor, "*batch n n"]]:
    r"""How the eigenvalues and eigenvectors of a diagonal matrix move.

    .. math::
        (\Lambda + D)(I + Z) = (I + Z)(\Lambda + M), \qquad
        W = D + D Z, \quad \mu_j = W_{jj}, \quad
        Z_{ij} = \frac{W_{ij} - \mu_j Z_{ij}}{\lambda_j - \lambda_i}, \quad Z_{jj} = 0

    with ``D`` zero but for its derivatives. Between eigenvalues that are equal up to
    rounding, the first derivatives of vectors and the second ones of values do not exist,
    and are not finite. Nor are the derivatives of an order that the series does not reach.

    References:
        Kato (1995), chapter II, section 2.
    """
    gap, tied = gaps(values)
    # As traced as `D` is: a compiled `jacfwd` of a `jacfwd` refuses to mix the two.
    gap = torch.where(D.isnan(), D, gap.to(D.dtype))
    turned, mixing = D, D / gap
    orders = _orders()
    for _ in range(orders - 1):
        turned = D + D @ mixing
        shift = turned.diagonal(dim1=-2, dim2=-1)
        mixing = (turned - mixing * shift.unsqueeze(-2)) / gap
    shift = turned.diagonal(dim1=-2, dim2=-1)
    # Powers of zero, whose values are zero.
    between = torch.where(tied, turned, 1.0)
    shift = shift + torch.where(tied, between**1.5, 0.0).sum(-2)
    mixing = mixing + torch.where(tied, between**0.5, 0.0)
    # The derivative after the last that is right: no graph is asked how deep it is. In
    # units in which the products of directions before it do not overflow.
    first = _real(D[..., :1, :1])
    unit = values.abs().amax(-1).clamp_min(1.0)[..., None, None]
    beyond = (first / as_traced(unit, first)) ** (orders + 0.5)
    return shift + beyond.squeeze(-1), mixing + beyond


def gaps(
    values: Float[Tensor, "*batch n"],
) -> tuple[Float[Tensor, "*batch n n"], Bool[Tensor, "*batch n n"]]:
    r""":math:`\lambda_j - \lambda_i`, infinite where ``i`` and ``j`` are the same or tied."""
    n = values.shape[-1]
    gap = values.unsqueeze(-2) - values.unsqueeze(-1)
    itself = torch.eye(n, dtype=torch.bool, device=values.device)
    largest = values.detach().abs().unsqueeze(-1).expand(gap.shape)
    rounding = n * torch.finfo(values.dtype).eps * largest.amax(-2, keepdim=True)
    tied = (gap.detach().abs() <= rounding) & ~itself
    return torch.where(tied | itself, torch.inf, gap), tied


def moved(x: Tensor) -> Tensor:
    """Zero, with the derivatives of ``x``."""
    return x - x.detach()


def _real(x: Tensor) -> Tensor:
    """The real part."""
    return x.real if x.dtype.is_complex else x


def _orders() -> int:
    """How many derivatives are taken: no transform of torch takes more than one."""
    return transforms() + _PLAIN_ORDERS


SPECTRA: Table = {
    torch.linalg.eigh: eigh,
    torch.linalg.eigvalsh: eigvalsh,
    torch.linalg.eig: eig,
    torch.linalg.eigvals: eigvals,
}
