"""What an estimator returns."""

from __future__ import annotations

from typing import Any, NamedTuple


class Estimate(NamedTuple):
    """A Monte Carlo estimate and how far off it may be.

    Attributes:
        value: The mean of the samples: a tensor, or a tree of tensors.
        stderr: The standard error of ``value``, entry by entry, in its units: the sample
            standard deviation (with ``samples - 1``) over ``sqrt(samples)``.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> value, stderr = po.derivatives.Estimate(torch.ones(2), torch.zeros(2))
        >>> value
        tensor([1., 1.])
    """

    value: Any
    stderr: Any
