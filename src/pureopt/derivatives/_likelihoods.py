"""The Fisher information of a distribution in the outputs that parametrize it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, final

import torch
from jaxtyping import Float
from torch import Tensor

from pureopt._errors import DerivativeError, HyperparameterError
from pureopt._typing import Scalar


@final
@dataclass(frozen=True)
class Categorical:
    r"""Classes from logits, which are the last dimension of the outputs.

    .. math::
        F u = p \odot (u - \langle p, u \rangle), \qquad p = \operatorname{softmax}(z)

    A logit of ``-inf`` excludes its class.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> z, u = torch.zeros(2), torch.tensor([1.0, 0.0])
        >>> po.derivatives.Categorical()(z, u)
        tensor([ 0.2500, -0.2500])
    """

    def __call__(
        self, outputs: Float[Tensor, "*batch classes"], u: Tensor
    ) -> Float[Tensor, "*batch classes"]:
        """The Fisher information of each distribution times ``u``."""
        p = outputs.softmax(-1)
        return p * (u - (p * u).sum(-1, keepdim=True))


@final
@dataclass(frozen=True)
class Bernoulli:
    r"""Independent events from the logits of their probabilities.

    .. math::
        F u = p (1 - p) \, u, \qquad p = \frac{1}{1 + e^{-z}}

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.derivatives.Bernoulli()(torch.zeros(2), torch.tensor([1.0, 4.0]))
        tensor([0.2500, 1.0000])
    """

    def __call__(
        self, outputs: Float[Tensor, "*batch"], u: Tensor
    ) -> Float[Tensor, "*batch"]:
        """The Fisher information of each event times ``u``."""
        # Not p (1 - p), which is zero from a logit of 17 on in float32.
        return outputs.sigmoid() * (-outputs).sigmoid() * u


@final
@dataclass(frozen=True, eq=False)
class Gaussian:
    r"""Independent normal numbers from their means, with known standard deviations.

    .. math::
        F u = u / \sigma^2

    Attributes:
        scale: The standard deviation: a positive number, or a tensor that broadcasts
            against the outputs. With ``sqrt(1 / 2)`` the negative log-likelihood is
            the squared error, with 1 half of it.

    Raises:
        HyperparameterError: If ``scale`` is neither a tensor nor a positive number.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.derivatives.Gaussian(0.5)(torch.zeros(2), torch.tensor([1.0, 2.0]))
        tensor([4., 8.])
    """

    scale: Scalar = 1.0

    def __post_init__(self) -> None:
        """Check the scale, if it is a number."""
        scale: Any = self.scale
        if isinstance(scale, Tensor) or (isinstance(scale, int | float) and scale > 0):
            return
        raise HyperparameterError("Gaussian(scale=...)", "be > 0", repr(scale))

    def __call__(
        self, outputs: Float[Tensor, "*batch"], u: Tensor
    ) -> Float[Tensor, "*batch"]:
        """The Fisher information of each mean times ``u``."""
        scale = torch.as_tensor(self.scale, dtype=outputs.dtype, device=outputs.device)
        return u / scale.square()


@final
@dataclass(frozen=True)
class Poisson:
    r"""Independent counts from the logarithms of their rates.

    .. math::
        F u = e^z u

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> po.derivatives.Poisson()(torch.zeros(2), torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """

    def __call__(
        self, outputs: Float[Tensor, "*batch"], u: Tensor
    ) -> Float[Tensor, "*batch"]:
        """The Fisher information of each logarithm of a rate times ``u``."""
        return outputs.exp() * u


def check_classes(where: str, likelihood: Any, outputs: Any) -> None:
    """Raise if the outputs of a batch are logits of classes, one for each sample.

    Raises:
        DerivativeError: If so.
    """
    if (
        isinstance(likelihood, Categorical)
        and isinstance(outputs, Tensor)
        and outputs.dim() == 1
    ):
        raise DerivativeError(
            where,
            "return outputs with the classes as last dimension",
            f"shape {tuple(outputs.shape)}, which is the batch",
            "For two classes with one logit use `Bernoulli()`.",
        )
