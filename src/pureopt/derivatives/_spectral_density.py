"""The eigenvalue density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import DerivativeError, HyperparameterError, told
from pureopt._typing import P, Scalar
from pureopt.derivatives import _checks
from pureopt.derivatives._estimate import Estimate
from pureopt.derivatives._lanczos import gauss_quadrature, tridiagonalize
from pureopt.derivatives._operator import (
    at_least,
    flat,
    rademacher,
    sample_mean,
    size,
    working_dtype,
)


class SpectralDensity(NamedTuple):
    r"""Where the eigenvalues of an operator lie: a quadrature rule for each probe.

    Attributes:
        nodes: Eigenvalues of the Lanczos matrices, ascending, in the units of the
            operator.
        weights: The share of the spectrum near each node; those of a probe sum to one.

    All methods return an ``Estimate`` over the probes; the standard error says nothing
    about too few steps. Dimensions in front, those of a ``vmap``, stay in front.
    """

    nodes: Float[Tensor, "*batch probes steps"]
    weights: Float[Tensor, "*batch probes steps"]

    def integrate(self, g: Callable[[Tensor], Tensor]) -> Estimate:
        r"""The mean of a function over the eigenvalues, :math:`\frac1n \sum_i g(\lambda_i)`.

        With ``steps`` steps the quadrature is exact for polynomials up to the degree
        ``2 steps - 1``: what is left is the error of the probes. ``n`` times the result
        is the trace of :math:`g(A)`.

        Args:
            g: An elementwise function, finite at the nodes.

        Returns:
            The mean and its standard error, in the units of ``g``.
        """
        return _over_probes(self.weights * g(self.nodes))

    def density(self, grid: Float[Tensor, "points"], *, width: Scalar) -> Estimate:
        r"""The density of the eigenvalues, smoothed by a normal kernel.

        .. math:: \frac{1}{n} \sum_i N(t; \lambda_i, \sigma^2)

        Args:
            grid: Where to evaluate it.
            width: :math:`\sigma > 0`, in the units of the eigenvalues. The nodes resolve
                about the range of the spectrum over the number of steps in its interior;
                a smaller width shows single nodes there.

        Returns:
            The density, of integral one, and its standard error, per unit of eigenvalue.

        Raises:
            HyperparameterError: If a number ``width`` is not positive and finite.
            DerivativeError: If ``grid`` is no vector.
        """
        _check_grid("SpectralDensity.density(grid=...)", grid)
        if not isinstance(width, Tensor) and not 0 < width < math.inf:
            where = "SpectralDensity.density(width=...)"
            raise HyperparameterError(where, "be positive and finite", str(width))
        z = (grid[:, None, None] - self.nodes[..., None, :, :]) / width
        kernel = (-z.square() / 2).exp() / (math.sqrt(2 * math.pi) * width)
        return _over_probes(self.weights[..., None, :, :] * kernel)

    def cumulative(self, grid: Float[Tensor, "points"]) -> Estimate:
        """The share of eigenvalues that are at most ``t``, for each ``t`` of a grid.

        Args:
            grid: Where to evaluate it.

        Returns:
            Numbers from 0 to 1, and their standard errors.

        Raises:
            DerivativeError: If ``grid`` is no vector.
        """
        _check_grid("SpectralDensity.cumulative(grid=...)", grid)
        # Not `where`: where the nodes are NaN the weights are, and so is the sum.
        below = self.nodes[..., None, :, :] <= grid[:, None, None]
        return _over_probes(self.weights[..., None, :, :] * below)


def _check_grid(where: str, grid: Any) -> None:
    if not isinstance(grid, Tensor) or grid.dim() != 1:
        hint = "Put the places into a vector, as `torch.linspace` does."
        raise DerivativeError(where, "be a tensor of one dimension", told(grid), hint)


def _over_probes(terms: Float[Tensor, "*batch probes steps"]) -> Estimate:
    return sample_mean(terms.sum(-1).movedim(-1, 0))


def spectral_density(
    matvec: Callable[[P], P],
    like: P,
    *,
    key: Int[Tensor, ""],
    probes: int,
    steps: int,
    chunk_size: int | None = None,
) -> SpectralDensity:
    r"""The distribution of the eigenvalues, from products with random vectors.

    .. math::
        \frac{1}{n} \operatorname{tr} g(A)
        = \frac{1}{n} \operatorname{E}\, v^\top g(A) v
        \approx \frac{1}{m} \sum_{i=1}^m \sum_k \tau_{ik}^2 \, g(\theta_{ik})

    where :math:`\theta_{ik}` are the eigenvalues of the Lanczos matrix that starts at
    the probe :math:`v_i`, and :math:`\tau_{ik}` the first entries of its eigenvectors.
    The probes are random signs: among vectors of independent entries they have the
    smallest variance, and their length is :math:`\sqrt n` exactly.

    The outermost eigenvalues, which a few steps find to many digits, are those of
    outliers; one of ``n`` eigenvalues has a weight of about ``1 / n``. The nodes come
    from an eigendecomposition and are not to be differentiated: their derivatives are not
    finite where the Krylov space is exhausted.

    Costs ``probes * steps`` products, and the memory of ``steps`` vectors for each probe
    of a chunk.

    Args:
        matvec: A symmetric linear function of trees like ``like``, for example
            ``lambda v: po.derivatives.hvp(loss, params, v)``.
        like: A tree that shows structure, shapes and dtypes; its values do not matter.
        key: A key of ``pureopt.random``, on the device of the tree.
        probes: How many random vectors, at least two: the error falls with
            ``probes^(-1/2)``.
        steps: Lanczos steps per probe, so nodes per probe; no more than ``n`` are taken.
        chunk_size: How many probes at a time; all by default.

    Raises:
        HyperparameterError: If a number is out of its range, or ``key`` is not one key.
        TreeError: If ``like`` is no tree of real floating tensors, or ``matvec`` returns
            another tree.

    References:
        Golub and Meurant (2010), chapter 6. Lin, Saad and Yang (2016). Ghorbani, Krishnan
        and Xiao (2019), section 2 (Hessians of networks).

    Example:
        A third of the eigenvalues are 1, the others 4:

        >>> import torch
        >>> import pureopt as po
        >>> d = torch.tensor([1.0, 4.0, 4.0])
        >>> spectrum = po.derivatives.spectral_density(
        ...     lambda v: d * v, d, key=po.random.key(0), probes=2, steps=2
        ... )
        >>> spectrum.nodes[0]
        tensor([1.0000, 4.0000])
        >>> spectrum.cumulative(torch.tensor([0.0, 2.0, 5.0])).value
        tensor([0.0000, 0.3333, 1.0000])
        >>> spectrum.integrate(torch.sqrt).value
        tensor(1.6667)
    """
    where = "spectral_density"
    return density(where, matvec, like, key, probes, steps, chunk_size)


def density(
    where: str,
    matvec: Callable[[P], P],
    like: P,
    key: Int[Tensor, ""],
    probes: int,
    steps: int,
    chunk_size: int | None,
) -> SpectralDensity:
    """As :func:`spectral_density`, for the public call ``where``."""
    n = size(f"{where}(like=...)", like)
    _checks.key(f"{where}(key=...)", key, like)
    at_least(f"{where}(probes=...)", probes, 2)
    _checks.positive(f"{where}(steps=...)", steps)
    _checks.chunk(f"{where}(chunk_size=...)", chunk_size)
    product = flat(where, matvec, like)

    def recurrence(v: Tensor) -> tuple[Tensor, Tensor]:
        return tridiagonalize(product, v, min(steps, n))[:2]

    v = rademacher(key, (probes, n), working_dtype(like))
    every = torch.func.vmap(recurrence, chunk_size=chunk_size)
    return SpectralDensity(*gauss_quadrature(*every(v)))
