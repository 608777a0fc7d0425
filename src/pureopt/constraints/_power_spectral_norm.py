"""Matrices of a given spectral norm, by power iteration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float, Int
from torch import Tensor

from pureopt._errors import ConstraintError, HyperparameterError, told
from pureopt._typing import Scalar
from pureopt.constraints._base import Constraint
from pureopt.constraints._domains import MATRIX, Domain
from pureopt.constraints._numeric import or_nan, scaled, working
from pureopt.constraints._spectral_norm import (
    SPECTRAL_SPHERE,
    SpectralNorm,
    check_positive,
    constant,
    singular_value_tolerance,
    singular_vectors,
    unit_entries,
    with_norm,
)
from pureopt.constraints._weight_norm import unit


@final
@dataclass(frozen=True, eq=False)
class PowerSpectralNorm(Constraint):
    r"""Matrices whose largest singular value is about ``norm``, by power iteration.

    .. math::
        Y = c \, \frac{X}{\|X v_m\|}, \qquad
        v_{i+1} = \frac{X^T X v_i}{\|X^T X v_i\|}, \quad i = 0 \ldots m - 1

    For matrices whose singular value decomposition is too expensive: a step costs
    ``2 n k``. The start :math:`v_0` is the static data, a float vector of shape
    ``(*batch, k)``: :meth:`bind` takes the exact singular vector, by a decomposition,
    and :meth:`rebind` moves it on by :math:`m` steps, a small price after each step of
    an optimizer. Without ``static`` it is a fixed vector. Derivatives go through the
    iteration: they are those of the function that is computed, and with it they
    converge to those of :class:`SpectralNorm`. ``x`` is a matrix; the map is redundant
    by its scale, not defined where ``X v`` is zero (NaN), and at ``x = 0`` it is that of
    :class:`SpectralNorm`.

    The estimate :math:`\|X v_m\|` is at most :math:`\sigma_1(X)`, so that the largest
    singular value of ``Y`` is at least ``norm``, and above it by the error of the
    estimate: from a start with a component :math:`\cos\theta` along the right vector,
    at most a factor :math:`(1 + \tan^2\theta \, (\sigma_2/\sigma_1)^{4m})^{1/2}`.
    :meth:`check` tolerates ``rtol`` of that; :meth:`forward` does not measure it.

    Nothing renews the vector but :meth:`rebind`, which ``step.rebase`` calls, and
    :meth:`bind`; under :func:`pureopt.interop.torch.register` it is that of the last
    assignment. A loss that gains from larger matrices finds the gap: in a critic of
    three layers the largest singular value reached 1.4 in 300 steps of Adam without
    rebase and 1.2 with one after each step; with ``steps=1`` it reached 4.9 and 2.4,
    with ``steps=10`` 1.2 and 1.05.

    Args:
        norm: The spectral norm :math:`c`, a positive number or a 0-d tensor.
        steps: Power iterations :math:`m` in each call, at least 1.
        rtol: The relative error of the largest singular value that :meth:`check`
            tolerates, in [0, 1).

    References:
        Miyato, Kataoka, Koyama and Yoshida (2018), algorithm 1.

    Raises:
        HyperparameterError: If a field is out of its range.

    Example:
        >>> import torch
        >>> c, w = PowerSpectralNorm(), torch.diag(torch.tensor([3.0, 2.0, 1.0]))
        >>> static = c.bind(w / 3)
        >>> turned = torch.linalg.matrix_exp(torch.tensor([[0, 0.1], [-0.1, 0]]))
        >>> w = torch.block_diag(turned, torch.eye(1)) @ w
        >>> before = torch.linalg.svdvals(c.forward(w, static))[0]
        >>> w, static = c.rebind(w, static)
        >>> after = torch.linalg.svdvals(c.forward(w, static))[0]
        >>> bool(before >= after), bool((after - 1).abs() < 1e-6)
        (True, True)
    """

    norm: Scalar = 1.0
    steps: int = 5
    rtol: float = 0.01

    def __post_init__(self) -> None:
        check_positive("PowerSpectralNorm(norm=...)", self.norm)
        if isinstance(self.steps, bool) or not isinstance(self.steps, int):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise HyperparameterError(
                "PowerSpectralNorm(steps=...)", "be an integer", told(self.steps)
            )
        if self.steps < 1:
            raise HyperparameterError(
                "PowerSpectralNorm(steps=...)", "be at least 1", repr(self.steps)
            )
        if not 0 <= self.rtol < 1:
            raise HyperparameterError(
                "PowerSpectralNorm(rtol=...)", "be in [0, 1)", repr(self.rtol)
            )

    @property
    def domain(self) -> Domain:
        """Matrices."""
        return MATRIX

    @property
    def codomain(self) -> Domain:
        """Matrices of a given spectral norm."""
        return SPECTRAL_SPHERE

    @property
    def bijective(self) -> bool:
        """False: the scale of ``x`` does not matter."""
        return False

    @property
    def rule(self) -> str:
        """The deviation of the largest singular value."""
        return "|sigma_1(Y) - norm|"

    def dim(self, shape: Sequence[int]) -> int:
        """``n k - 1``."""
        self._require_shape("dim", shape)
        return shape[-2] * shape[-1] - 1

    def radius(self, n: int, dtype: torch.dtype) -> float:
        """All but overflow, as far as the iteration has converged."""
        del n
        return torch.finfo(dtype).max

    def bind(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch k"]:
        """The right singular vector of the largest singular value."""
        SPECTRAL_SPHERE.require("PowerSpectralNorm.bind(y)", y)
        return singular_vectors(working(y))[2][..., 0, :].clone()

    def forward(
        self, x: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """The rescaled matrix; see the class."""
        w, v = self._iterated("PowerSpectralNorm.forward", x, static)
        sigma = unit(w @ v, -2)[1][..., 0, 0]
        return with_norm(w, sigma, self.norm).to(x.dtype)

    def right_inverse(
        self, y: Float[Tensor, "*batch n k"], static: Any = ()
    ) -> Float[Tensor, "*batch n k"]:
        """``y`` itself; NaN where its spectral norm is another."""
        keep = self.check(y)
        _start("PowerSpectralNorm.right_inverse", y, static)
        return or_nan(keep, y, 2)

    def violation(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """The deviation of the largest singular value, which is computed exactly."""
        return SpectralNorm(self.norm).violation(y)

    def tolerance(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch"]:
        """``rtol`` times the norm, and that of :class:`SpectralNorm`."""
        rounding = singular_value_tolerance(y, self.norm)
        return rounding + scaled(
            torch.zeros_like(rounding) + constant(self.norm, rounding), self.rtol
        )

    def rounding(
        self, x: Any, y: Float[Tensor, "*batch n k"]
    ) -> Float[Tensor, "*batch"]:
        """That of any constraint, and what :meth:`check` tolerates and forward mends."""
        return super().rounding(x, y) + self.violation(y).to(y.dtype)

    def project(self, y: Float[Tensor, "*batch n k"]) -> Float[Tensor, "*batch n k"]:
        """As :meth:`SpectralNorm.project`, by a singular value decomposition."""
        return SpectralNorm(self.norm).project(y)

    def sample(
        self,
        key: Int[Tensor, ""],
        shape: Sequence[int],
        *,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "*batch n k"]:
        """As :meth:`SpectralNorm.sample`."""
        self._require_shape("sample", shape, dtype)
        return SpectralNorm(self.norm).sample(key, shape, dtype=dtype)

    def rebind(self, x: Any, static: Any = ()) -> tuple[Any, Any]:
        """The same ``x``, and the vector after the steps that :meth:`forward` takes.

        Without a decomposition. The value keeps its direction and loses the part of
        the error that the steps remove.
        """
        _, v = self._iterated("PowerSpectralNorm.rebind", x, static)
        return x.clone(), v[..., 0]

    def _iterated(self, where: str, x: Tensor, static: Any) -> tuple[Tensor, Tensor]:
        """``x`` up to its scale, and the vector after all steps, as a column."""
        MATRIX.require(f"{where}(x)", x)
        w = unit_entries(working(x))
        v = _start(where, w, static).unsqueeze(-1)
        for _ in range(self.steps):
            v = unit(w.mT @ (w @ v), -2)[0]
        return w, v


def _start(where: str, w: Float[Tensor, "*batch n k"], static: Any) -> Tensor:
    """The static vector, checked; a fixed one, without pattern, if it is absent."""
    k = w.shape[-1]
    if isinstance(static, tuple) and not static:
        return torch.arange(1, k + 1, dtype=w.dtype, device=w.device).sin()
    want = (*w.shape[:-2], k)
    if not isinstance(static, Tensor) or static.shape != want:
        got = isinstance(static, Tensor) and f"shape {tuple(static.shape)}"
        raise ConstraintError(
            f"{where}(static=...)",
            f"be a vector of shape {want}",
            got or told(static),
            "Take it from `bind`; under vmap, map over the free value and the static alike.",
        )
    # The buffers of a module that was converted are as narrow as its weights.
    return static.to(w.dtype)
