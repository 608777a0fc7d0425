"""``audit``: which nestings of derivatives of a function are right, and who is to blame."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, final

import torch
from jaxtyping import Int
from torch import Tensor

from pureopt._errors import DerivativeError, told
from pureopt._random import key as make_key
from pureopt._random import normal, split
from pureopt._tree import check_params, tree_flatten, tree_items, tree_unflatten
from pureopt.derivatives import _checks
from pureopt.derivatives._auditing._calls import calls
from pureopt.derivatives._auditing._words import Path, Verdict, Word, judge, outputs

# An answer that is not right, and looks like one.
_SILENT: tuple[Verdict, ...] = ("wrong", "not finite")
_BAD: tuple[Verdict, ...] = (*_SILENT, "unsupported")


class Culprit(NamedTuple):
    """A call that is to blame for words that are not right.

    Attributes:
        name: The function that is called.
        where: The line that calls it, as ``file:line``.
        words: The words that are not right for this call on its own.
    """

    name: str
    where: str
    words: tuple[Word, ...]

    @property
    def mended(self) -> bool:
        """Whether all of these words are right under :func:`exact`."""
        return all(word.exact == "right" for word in self.words)


@final
@dataclass(frozen=True)
class Audit:
    """What :func:`audit` found; it prints as a table.

    Attributes:
        words: One for each nesting of ``grad`` and ``jvp``, shortest first.
        culprits: The calls that are not right on their own.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> x = torch.linspace(0.5, 2, 4, dtype=torch.float64)
        >>> print(po.derivatives.audit(torch.exp, x, order=1))
        0 of 2 nestings are wrong, 0 under exact
        word  verdict            value    reference       +-  under exact
        R     right           -6.09586     -6.09586    6e-09  right
        F     right           -6.09586     -6.09586    6e-09  right
    """

    words: tuple[Word, ...]
    culprits: tuple[Culprit, ...]

    @property
    def ok(self) -> bool:
        """Whether no word is silently wrong: none is wrong, and none is not finite."""
        return not any(word.verdict in _SILENT for word in self.words)

    @property
    def mended(self) -> bool:
        """Whether no word is silently wrong under :func:`exact`."""
        return not any(word.exact in _SILENT for word in self.words)

    def __str__(self) -> str:
        """A table of the words, and one line for each culprit."""
        wrong = sum(word.verdict in _SILENT for word in self.words)
        still = sum(word.exact in _SILENT for word in self.words)
        lines = [
            f"{wrong} of {len(self.words)} nestings are wrong, {still} under exact",
            "word  verdict            value    reference       +-  under exact",
            *(_row(word) for word in self.words),
        ]
        lines += [f"{names}: {told}" for told, names in _grouped(self.words).items()]
        lines += [_accusation(culprit) for culprit in self.culprits]
        if not self.culprits and any(word.verdict in _BAD for word in self.words):
            lines.append("No call is at fault on its own.")
        if all(word.verdict == "undecided" for word in self.words):
            lines.append(
                "Nothing can be told: it is not finite or not smooth here, or too rough."
            )
        return "\n".join(lines)


def _row(word: Word) -> str:
    return (
        f"{word.word:5} {word.verdict:11} {word.value:12.6g} {word.reference:12.6g} "
        f"{word.tolerance:8.1g}  {word.exact}"
    )


def _grouped(words: tuple[Word, ...]) -> dict[str, str]:
    """What torch says, and about which words."""
    told: dict[str, str] = {}
    for word in words:
        if word.message:
            before = told.get(word.message)
            told[word.message] = f"{before}, {word.word}" if before else word.word
    return told


def _accusation(culprit: Culprit) -> str:
    words = "; ".join(
        f"{', '.join(names)} {verdict}"
        for verdict in _BAD
        if (names := [w.word for w in culprit.words if w.verdict == verdict])
    )
    end = "exact mends it" if culprit.mended else "exact does not mend it"
    return f"{culprit.name} at {culprit.where}: {words}; {end}"


def audit(
    f: Callable[..., Any],
    *inputs: Any,
    order: int = 3,
    key: Int[Tensor, ""] | None = None,
) -> Audit:
    r"""Compare every nesting of ``grad`` and ``jvp`` with differences of values.

    Along a random curve through the inputs, with random weights :math:`w`,

    .. math:: \varphi(t) = \langle w, f(x + t v + t^2 u) \rangle

    is a function of one number, whose derivatives see all partial derivatives of ``f``
    up to their order. Each word of ``R`` (``grad``) and ``F`` (``jvp``) up to ``order``
    is compared with the derivative by extrapolated differences of :math:`\varphi`; the
    tolerance comes from the differences alone: what they gain from their outermost
    points, and the measured noise of the values, ten times. Where it is too wide to
    tell, or the derivatives from the two sides differ, the verdict is ``"undecided"``.

    If a word is not right, each call of torch or of a ``torch.autograd.Function`` that
    ``f`` makes is compared in the same way, along the path its arguments take inside
    ``f``: those that are not right on their own are the culprits. Everything is tried
    under :func:`exact` too, to see whether that mends it.

    A derivative is that of the function as it computes: ``cholesky``, which reads only
    one triangle, is right for ``lambda a: cholesky((a + a.mT) / 2)``, and ``detach`` is
    a culprit.

    A tool for the eager mode: it reads values, and can be neither compiled nor vmapped.
    It calls ``f`` about 150 times, and differentiates it in
    ``2 * (2**(order + 1) - 2)`` ways.

    Args:
        f: A pure function of trees of tensors, to a tree with at least one floating or
            complex tensor.
        *inputs: Its arguments: trees of float64 tensors. What is no float64, such as an
            index, is closed over.
        order: The longest word, from 1.
        key: Where the random numbers come from; by default always the same.

    Raises:
        DerivativeError: If an input is not float64, ``f`` returns nothing that has a
            derivative, writes to its arguments, or is not the same function each time.
        TreeError: If an input is not a tree of floating tensors.
        HyperparameterError: If ``order`` is not a positive integer.

    References:
        Richardson and Gaunt (1927) for the reference, Moré and Wild (2011) for the noise.

    Example:
        torch's layer norm is wrong in two of the four nestings of order two:

        >>> import torch
        >>> import pureopt as po
        >>> def f(x):
        ...     return torch.nn.functional.layer_norm(x, x.shape)
        >>> x = torch.tensor([0.7, 1.4, 0.5], dtype=torch.float64)
        >>> report = po.derivatives.audit(f, x, order=2)
        >>> [word.word for word in report.words if word.verdict == "wrong"]
        ['FR', 'FF']
        >>> [(culprit.name, culprit.mended) for culprit in report.culprits]
        [('torch.nn.functional.layer_norm', True)]
        >>> report.ok, report.mended
        (False, True)
    """
    _checks.function("audit(f=...)", f)
    _check(inputs, order)
    along, across, weights = split(make_key(0) if key is None else key, 3)
    path = _path(f, inputs, along, across)
    _check_function(path)
    words = judge(path, weights, order)
    if not any(word.verdict in _BAD for word in words):
        return Audit(words, ())
    return Audit(words, _culprits(path, weights, words))


def _path(
    f: Callable[..., Any], inputs: tuple[Any, ...], along: Tensor, across: Tensor
) -> Path:
    leaves, structure = tree_flatten(inputs)
    start = tuple(leaf.detach().clone() for leaf in leaves)

    def on_leaves(*values: Tensor) -> Any:
        return f(*tree_unflatten(structure, values))

    velocity, acceleration = (_directions(k, start) for k in (along, across))
    return Path(on_leaves, start, velocity, acceleration)


def _directions(key: Tensor, start: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """As large as the leaves, so that a path of length one goes as far as they are."""
    keys = split(key, len(start))
    sizes = [leaf.square().mean().sqrt() for leaf in start]
    return tuple(
        normal(k, x.shape, dtype=x.dtype).to(x.device) * torch.where(s > 0, s, 1.0)
        for k, x, s in zip(keys, start, sizes, strict=True)
    )


def _culprits(path: Path, key: Tensor, words: tuple[Word, ...]) -> tuple[Culprit, ...]:
    """The calls that are bad in a word in which the function is; else in any word."""
    order = len(words[-1].word)
    found: dict[tuple[str, str], tuple[Word, ...]] = {}
    for call, along in calls(path):
        place = call.name, call.where
        if place not in found and (bad := _bad(judge(along, key, order))):
            found[place] = bad
    names = {word.word for word in _bad(words)}
    guilty = {
        place: bad for place, bad in found.items() if names & {w.word for w in bad}
    }
    # What is written as a text is rarely read back: it is named if nothing else is.
    silent = {p: bad for p, bad in guilty.items() if p[0] != "torch.Tensor.__format__"}
    named = silent or guilty or found
    return tuple(Culprit(*place, bad) for place, bad in named.items())


def _bad(words: tuple[Word, ...]) -> tuple[Word, ...]:
    return tuple(word for word in words if word.verdict in _BAD)


def _check(inputs: tuple[Any, ...], order: int) -> None:
    check_params("audit(*inputs)", inputs)
    for name, leaf in tree_items(inputs):
        if leaf.dtype != torch.float64:
            raise DerivativeError(
                "audit(*inputs)",
                "be float64, because differences of less tell too little",
                f"a tensor of dtype {leaf.dtype} at '{name}'",
                "Convert with `.double()`, a module with `module.double()`.",
            )
    _checks.positive("audit(order=...)", order)


def _check_function(path: Path) -> None:
    """Raise unless it is a function, to something that has derivatives."""
    where = "audit(f=...)"
    result = _checks.call(where, path.f, *(leaf.clone() for leaf in path.start))
    if not outputs(result):
        rule = "return at least one floating-point tensor"
        raise DerivativeError(where, rule, told(result))
    again = outputs(path.f(*path.start))
    if not all(map(_same, outputs(result), again)):
        raise DerivativeError(
            where,
            "return the same for the same arguments",
            "two different results",
            "Pass random numbers in, and write to nothing outside of the function.",
        )


def _same(a: Tensor, b: Tensor) -> bool:
    # Sums in another order, on devices that do so, are not another function.
    return a.shape == b.shape and torch.allclose(
        a, b, rtol=1e-10, atol=1e-14, equal_nan=True
    )
