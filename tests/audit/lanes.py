"""Whether ``vmap`` of an operation and of its derivatives is what a loop computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from pureopt.derivatives._auditing._words import Verdict, outputs
from pureopt.derivatives._exactness import exact
from tests.audit import result

# As many directions as lanes: what takes one axis for the other is wrong, and does not
# fail because of its sizes.
NUMBER = DIRECTIONS = 2
# How far the second lane is from the first, which is the sample: near enough for both to
# be in the domain of an operation, and far beyond rounding.
APART = 0.01

Tensors = tuple[Tensor, ...]
Function = Callable[..., Tensors]
Each = Callable[[Function], Function]
# Of a function, its arguments, tangents, cotangents, and how to map over directions.
Form = Callable[[Function, Tensors, Tensors, Tensors, Each], Tensors]


class Lanes(NamedTuple):
    """What to map over.

    Attributes:
        values: The arguments of the operation.
        tangents: For each argument, one in each direction.
        cotangents: For each output, one in each direction.
        dims: Which of them have lanes, as ``vmap`` takes it.
    """

    values: Tensors
    tangents: Tensors
    cotangents: Tensors
    dims: tuple[tuple[int | None, ...], ...]

    def lane(self, k: int) -> tuple[Tensors, Tensors, Tensors]:
        """One of them, each with a storage of its own: strided views look beyond."""
        values, tangents, cotangents = (
            tuple(
                x if dim is None else x[k].clone()
                for x, dim in zip(group, dims, strict=True)
            )
            for group, dims in zip(self[:3], self.dims, strict=True)
        )
        return values, tangents, cotangents


def _value(f: Function, x: Tensors, v: Tensors, w: Tensors, each: Each) -> Tensors:
    return f(*x)


def _jacfwd(f: Function, x: Tensors, v: Tensors, w: Tensors, each: Each) -> Tensors:
    return each(lambda *v: jvp(f, x, v)[1])(*v)


def _jacrev(f: Function, x: Tensors, v: Tensors, w: Tensors, each: Each) -> Tensors:
    pull = vjp(f, *x)[1]
    return each(lambda *w: pull(w))(*w)


def _hessian(f: Function, x: Tensors, v: Tensors, w: Tensors, each: Each) -> Tensors:
    def phi(*x: Tensor) -> Tensor:
        """Not linear in the outputs, or a linear operation would have no Hessian."""
        pairs = zip(f(*x), w, strict=True)
        return torch.stack([(u[0] * y * (1 + y)).sum() for y, u in pairs]).sum()

    slope = grad(phi, argnums=tuple(range(len(x))))
    return each(lambda *v: jvp(slope, x, v)[1])(*v)


FORMS: dict[str, Form] = dict(
    zip(result.LANES, (_value, _jacfwd, _jacrev, _hessian), strict=True)
)


def judge(
    f: Callable[..., Any], start: Tensors
) -> tuple[list[list[Verdict]], list[list[Verdict]]]:
    """The verdicts on all forms, without and with ``exact``, for each of the choices."""
    plain, mended = (_floats(g) for g in (f, exact(f)))
    choices = list(_choices(plain, start))
    return _judged(plain, choices), _judged(mended, choices)


def _floats(f: Callable[..., Any]) -> Function:
    # `vmap` has no imaginary part of what is conjugate.
    return lambda *x: tuple(outputs([y.resolve_conj() for y in f(*x)]))


def _choices(f: Function, start: Tensors) -> Iterator[Lanes]:
    """Lanes in everything; in one argument alone, with directions that lanes share."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: Tensor, *lead: int) -> Tensor:
        return torch.randn((*lead, *x.shape), dtype=x.dtype, generator=generator)

    def beside(x: Tensor) -> Tensor:
        return x + APART * (x + drawn(x) / 3)

    more = range(NUMBER - 1)
    values = tuple(torch.stack([x, *(beside(x) for _ in more)]) for x in start)
    tangents = tuple(drawn(x, NUMBER, DIRECTIONS) for x in start)
    cotangents = tuple(drawn(y, NUMBER, DIRECTIONS) for y in f(*start))
    groups = values, tangents, cotangents
    yield Lanes(*groups, tuple((0,) * len(group) for group in groups))
    for i in range(len(start)):
        yield Lanes(
            tuple(x if k == i else x[0].clone() for k, x in enumerate(values)),
            tuple(v[0] for v in tangents),
            tuple(w[0] for w in cotangents),
            (
                tuple(0 if k == i else None for k in range(len(start))),
                (None,) * len(tangents),
                (None,) * len(cotangents),
            ),
        )


def _judged(f: Function, choices: list[Lanes]) -> list[list[Verdict]]:
    columns = [_verdicts(form, f, choices) for form in FORMS.values()]
    return [list(row) for row in zip(*columns, strict=True)]


def _verdicts(form: Form, f: Function, choices: list[Lanes]) -> list[Verdict]:
    try:
        # All choices have the same first lane.
        first = form(f, *choices[0].lane(0), _looped)
        loops = [
            [first, *(form(f, *lanes.lane(k), _looped) for k in range(1, NUMBER))]
            for lanes in choices
        ]
    except Exception:  # noqa: BLE001 (no matter of lanes: the words above have it)
        return ["undecided"] * len(choices)
    pairs = zip(choices, loops, strict=True)
    return [_verdict(form, f, lanes, loop) for lanes, loop in pairs]


def _verdict(form: Form, f: Function, lanes: Lanes, loop: list[Tensors]) -> Verdict:
    mapped = _mapped(lambda x, v, w: form(f, x, v, w, _mapped), lanes.dims)
    try:
        seen = mapped(*lanes[:3])
    except Exception:  # noqa: BLE001 (what is raised is what is asked for)
        return "unsupported"
    wanted = [torch.stack(ys) for ys in zip(*loop, strict=True)]
    agree = (_close(a, b) for a, b in zip(seen, wanted, strict=True))
    return "right" if all(agree) else "wrong"


def _mapped(f: Callable[..., Tensors], dims: Any = 0) -> Callable[..., Tensors]:
    # The operations that draw are seeded in each lane.
    return vmap(f, dims, randomness="same")


def _looped(f: Function) -> Function:
    """What ``vmap`` should compute."""

    def loop(*x: Tensor) -> Tensors:
        found = [f(*one) for one in zip(*x, strict=True)]
        return tuple(torch.stack(ys) for ys in zip(*found, strict=True))

    return loop


def _close(seen: Tensor, wanted: Tensor) -> bool:
    """Equal up to half the digits: rounding costs less, and lanes differ by more."""
    if seen.shape != wanted.shape:
        return False
    finite = wanted[wanted.isfinite()].abs()
    scale = 1 + (finite.max().item() if finite.numel() else 0)
    tolerance = scale * torch.finfo(wanted.dtype).eps ** 0.5
    return torch.allclose(
        seen.to(wanted.dtype), wanted, rtol=0, atol=tolerance, equal_nan=True
    )
