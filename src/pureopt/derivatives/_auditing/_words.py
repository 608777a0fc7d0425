"""The nestings of derivatives along a path, and what differences say about them."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp

from pureopt._random import fold_in, normal
from pureopt._tree import tree_leaves
from pureopt.derivatives._auditing._differences import Difference, differences
from pureopt.derivatives._exactness import composed_of_exact

Verdict = Literal["right", "wrong", "not finite", "unsupported", "undecided"]

_Scalar = Callable[[Tensor], Tensor]

# An estimate that is less certain than this, relative to the derivatives up to its
# order, tells nothing.
_SHARP = 1e-4
# What rounding may do to a derivative by formula beyond what it does to values: relative
# to the derivative, and, where its terms cancel, to those of lower order.
_ROUNDING = 1e-9
_CANCELLATION = 1e-12


class Word(NamedTuple):
    """One nesting of derivatives: a word of ``R`` (``grad``) and ``F`` (``jvp``).

    It reads from the inside out: ``"RF"`` is ``jvp(grad(f))``.

    Attributes:
        word: The letters.
        verdict: ``"right"``, ``"wrong"``, ``"not finite"`` (where the derivative is),
            ``"unsupported"`` (torch raises) or ``"undecided"`` (at a kink, or where
            values are too noisy to know).
        value: What torch computes; NaN if it raises.
        reference: The derivative from differences of values.
        tolerance: How far they may be apart.
        exact: The verdict on the same nesting under :func:`exact`.
        message: What torch says where it raises.
    """

    word: str
    verdict: Verdict
    value: float
    reference: float
    tolerance: float
    exact: Verdict
    message: str


class Path(NamedTuple):
    r"""A curve through the arguments of a function: :math:`x + t v + t^2 u`.

    Attributes:
        f: A function of tensors, to a tree.
        start: The point :math:`x`.
        velocity: The direction :math:`v`.
        acceleration: The direction :math:`u`.
    """

    f: Callable[..., Any]
    start: tuple[Tensor, ...]
    velocity: tuple[Tensor, ...]
    acceleration: tuple[Tensor, ...]

    def at(self, t: Tensor) -> tuple[Tensor, ...]:
        """The arguments at ``t``."""
        # One product: in forward mode each operation with a constant is slow.
        powers = torch.stack([torch.ones_like(t), t, t * t])
        return tuple(
            (powers.to(x.dtype) @ torch.stack([x, v, u]).reshape(3, -1)).reshape(
                x.shape
            )
            for x, v, u in zip(
                self.start, self.velocity, self.acceleration, strict=True
            )
        )


def outputs(tree: Any) -> list[Tensor]:
    """The floating tensors of what a function returns; complex ones are two."""
    found: list[Tensor] = []
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor) and leaf.is_complex():
            found += [leaf.real, leaf.imag]
        elif isinstance(leaf, Tensor) and leaf.is_floating_point():
            found.append(leaf)
    return found


def judge(path: Path, key: Tensor, order: int) -> tuple[Word, ...]:
    """Every word up to ``order``, shortest first; the key is for the weights."""
    found = outputs(path.f(*path.at(_time(path))))
    eps = max(torch.finfo(y.dtype).eps for y in found)
    weights = [
        normal(fold_in(key, i), y.shape, dtype=torch.float64).to(y.device)
        for i, y in enumerate(found)
    ]
    phi = _weighted(path, path.f, weights)
    mended = _weighted(path, composed_of_exact(path.f), weights)
    t = _time(path)
    with warnings.catch_warnings():
        # That torch falls back to something slow is no news here.
        warnings.simplefilter("ignore")
        references = differences(lambda s: _value(phi, "", t + s)[0], order, eps)
        return tuple(
            _word("".join(letters), phi, mended, references, t)
            for n in range(1, order + 1)
            for letters in itertools.product("RF", repeat=n)
        )


def _time(path: Path) -> Tensor:
    return path.start[0].new_zeros((), dtype=torch.float64)


def _weighted(path: Path, f: Callable[..., Any], weights: list[Tensor]) -> _Scalar:
    """The sum of the weighted outputs along the path."""

    def phi(t: Tensor) -> Tensor:
        pairs = zip(weights, outputs(f(*path.at(t))), strict=True)
        return torch.stack([(w * y.to(torch.float64)).sum() for w, y in pairs]).sum()

    return phi


def _word(
    word: str, phi: _Scalar, mended: _Scalar, references: list[Difference], t: Tensor
) -> Word:
    known = references[: len(word) + 1]
    value, message = _value(phi, word, t)
    verdict = _verdict(value, message, known)
    reference, tolerance = known[-1].value, _tolerance(known)
    kept = _verdict(*_value(mended, word, t), known)
    return Word(word, verdict, value, reference, tolerance, kept, message)


def _value(phi: _Scalar, word: str, t: Tensor) -> tuple[float, str]:
    """The value of a nesting, or what torch says against it."""
    for letter in word:
        phi = grad(phi) if letter == "R" else _along(phi)
    try:
        return float(phi(t)), ""
    except Exception as error:  # noqa: BLE001 (what is raised is what is asked for)
        told = f"{type(error).__name__}: {error}".strip()
        return math.nan, told.split("\n", 1)[0]


def _along(phi: _Scalar) -> _Scalar:
    return lambda t: jvp(phi, (t,), (torch.ones_like(t),))[1]


def _verdict(value: float, message: str, known: list[Difference]) -> Verdict:
    if message:
        return "unsupported"
    reference, tolerance, scale = known[-1], _tolerance(known), _scale(known)
    # Written so that a NaN is undecided.
    sharp = tolerance <= _SHARP * scale or tolerance == scale == 0
    if not sharp or any(difference.kink for difference in known):
        return "undecided"
    if not math.isfinite(value):
        return "not finite"
    error = abs(value - reference.value)
    if error <= tolerance:
        return "right"
    return "wrong" if error > reference.doubt else "undecided"


def _tolerance(known: list[Difference]) -> float:
    last = known[-1]
    return last.tolerance + _ROUNDING * abs(last.value) + _CANCELLATION * _scale(known)


def _scale(known: list[Difference]) -> float:
    return max(abs(difference.value) for difference in known)
