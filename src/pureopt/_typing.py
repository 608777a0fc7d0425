"""Type variables and aliases shared by every module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

from torch import Tensor

P = TypeVar("P")
"""A parameter tree: any nesting of tuple, list, dict, OrderedDict, NamedTuple."""

Scalar: TypeAlias = float | Tensor
"""A Python number or a 0-d tensor."""

Schedule: TypeAlias = Callable[[Tensor], Tensor]
"""Maps the step, a 0-d integer tensor, to a hyper-parameter."""

Hyper: TypeAlias = float | Tensor | Schedule
"""A hyper-parameter: a Python number, a 0-d tensor, or a schedule of the step."""

State: TypeAlias = Any
"""The state of a transform: a NamedTuple of tensors of its own type."""
