"""The invariants of a constraint among others: batches, compilers, trees, optimizers."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.func import grad, jacfwd, vmap

from pureopt import random
from pureopt._errors import CompositionError
from pureopt._tree import (
    from_state_dict,
    ravel,
    to_state_dict,
    tree_flatten,
    tree_leaves,
    tree_map,
    tree_unflatten,
)
from pureopt.constraints import Constraint, Domain, constrain
from pureopt.testing._cases import Measured, Probe, holds, measured, raised
from pureopt.testing._invariants import _distance, _inside

# Kernels of batches and compiled kernels add in another order: roundings of float64
# times a condition number of up to 1e6, relative to the largest number.
_SAME = 1e-9


def purity(probe: Probe) -> Iterator[Measured]:
    """Dtypes and shapes are kept; inputs, memory and the global generator untouched."""
    c, y, static, x = probe.constraint, probe.y, probe.static, probe.x
    inputs = [*tree_leaves(x), *tree_leaves(y), *tree_leaves(static)]
    before = [(t.clone(), t._version) for t in inputs]  # noqa: SLF001
    state = torch.get_rng_state()
    z = c.forward(x, static)
    outputs: list[Any] = [z, c.right_inverse(y, static), c.check(y), c.bind(y)]
    if c.offers("project"):
        outputs.append(c.project(y))
    if c.offers("log_abs_det"):
        outputs.append(c.log_abs_det(x, static))
    yield holds(
        "no global random number is drawn", torch.equal(torch.get_rng_state(), state)
    )
    same = all(
        torch.equal(t, value) and t._version == version  # noqa: SLF001
        for t, (value, version) in zip(inputs, before, strict=True)
    )
    # NaN is not equal to itself: inputs of the laws are finite.
    yield holds("inputs are untouched", same)
    memory = {_address(t) for t in inputs if t.numel()}
    made = {_address(t) for t in tree_leaves(outputs) if t.numel()}
    yield holds("outputs have their own memory", not memory & made)
    kept = all(
        a.dtype == b.dtype and a.shape == b.shape and a.device == b.device
        for a, b in zip(tree_leaves(z), tree_leaves(y), strict=True)
    )
    yield holds("dtype, shape and device are kept", kept)
    batch = c.check(y).shape[: len(probe.case.batch)]
    yield holds("check has the leading dimensions", batch == probe.case.batch)


def batching(probe: Probe) -> Iterator[Measured]:
    """A batch and ``vmap`` are loops."""
    c, y, static, x = probe.constraint, probe.y, probe.static, probe.x
    if not probe.case.batch or 0 in probe.case.batch:
        return
    calls: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "bind": (c.bind, (y,)),
        "forward": (c.forward, (x, static)),
        "right_inverse": (c.right_inverse, (y, static)),
        "check": (c.check, (y,)),
    }
    if c.offers("log_abs_det"):
        calls["log_abs_det"] = (c.log_abs_det, (x, static))
    for name, (fn, args) in calls.items():
        loop = [
            fn(*tree_map(lambda t, i=i: t[i], args)) for i in range(probe.case.batch[0])
        ]
        leaves = zip(*map(tree_leaves, loop), strict=True)
        want = [torch.stack(parts) for parts in leaves]
        yield _same(f"|batched {name} - loop|", fn(*args), want)
        yield _same(f"|vmap({name}) - loop|", vmap(fn)(*args), want)
    for name, fn, value in (
        ("forward", lambda x: c.forward(x, static), x),
        ("right_inverse", lambda y: c.right_inverse(y, static), y),
        ("check", c.check, y),
    ):
        # Element by element nothing is shared; a decomposition may raise for all.
        beside = tree_map(lambda t: t[1:], fn(tree_map(_spoiled, value)))
        alone = tree_leaves(tree_map(lambda t: t[1:], fn(value)))
        yield _same(f"|{name} next to NaN - without|", beside, alone)


def compilation(probe: Probe) -> Iterator[Measured]:
    """``torch.compile(fullgraph=True)`` of the maps and of ``vmap(jacfwd)`` is eager."""
    c, y, static, x = probe.constraint, probe.y, probe.static, probe.x
    # What was compiled before counts against the limit of recompilations, and what
    # failed inside vmap or jacfwd makes the next compilation fail.
    torch.compiler.reset()

    def jacobian(x: Any, static: Any) -> Any:
        return vmap(jacfwd(c.forward))(x, static)

    def gradient(x: Any, static: Any) -> Any:
        return vmap(grad(lambda x, s: _weighted(c.forward(x, s))))(x, static)

    calls: list[tuple[str, Callable[..., Any], tuple[Any, ...]]] = [
        ("bind", c.bind, (y,)),
        ("forward", c.forward, (x, static)),
        ("right_inverse", c.right_inverse, (y, static)),
    ]
    if probe.case.batch:
        calls += [
            ("vmap(jacfwd(forward))", jacobian, (x, static)),
            ("vmap(grad(forward))", gradient, (x, static)),
        ]
    for name, fn, args in calls:
        compiled: Any = torch.compile(fn, fullgraph=True, backend="aot_eager")
        want = tree_leaves(fn(*args))
        got = _of_a_trace(compiled, args)
        if isinstance(got, Measured):
            # What a trace that failed inside jacfwd leaves behind is freed now: freed
            # in the midst of a later trace, it would break that one.
            gc.collect()
            yield got
            return
        yield _same(f"|compiled {name} - eager|", got, want)


def _of_a_trace(compiled: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    """The result, or what was raised; the error, which holds the trace, is let go."""
    # In a thread of its own: a trace that fails inside jacfwd leaves the state of its
    # thread such that later ones fail too.
    try:
        with ThreadPoolExecutor(max_workers=1) as thread:
            return thread.submit(compiled, *args).result()
    except Exception as error:  # noqa: BLE001 (a report tells what was raised)
        return raised(error)


def composition(probe: Probe) -> Iterator[Measured]:
    """``>>`` refuses what does not fit, on either side."""
    c = probe.constraint
    for left, right in ((_Stranger(), c), (c, _Stranger())):
        try:
            _ = left >> right
        except CompositionError:
            refused = True
        else:
            refused = False
        yield holds(f"{left!r} >> {right!r} is refused", refused)


def removal(probe: Probe) -> Iterator[Measured]:
    """On a tree, the value survives, and so does the set of leaves."""
    c, x = probe.constraint, probe.x
    if isinstance(probe.y, Tensor):
        if probe.packed is not None:
            c = probe.packed >> c
            x = c.right_inverse(probe.y, c.bind(probe.y))
        params: Any = {"w": probe.y, "b": probe.y.new_zeros(2)}
        space = constrain(params, {"w": c})
        back = space.forward(space.free)
        yield _distance("|value - assigned|", c, x, back["w"], params["w"])
        yield holds("free leaves are kept", torch.equal(back["b"], params["b"]))
        yield holds("the keys are kept", list(back) == list(params))
        again = space.right_inverse(back)
        shapes = [t.shape for t in tree_leaves(again)]
        yield holds(
            "free values have the shapes of space.free",
            shapes == [t.shape for t in tree_leaves(space.free)],
        )


def serialization(probe: Probe) -> Iterator[Measured]:
    """Pickle, deepcopy, ``torch.save`` and trees go round."""
    c = probe.constraint
    for name, twin in (
        ("pickle", pickle.loads(pickle.dumps(c))),  # noqa: S301
        ("deepcopy", copy.deepcopy(c)),
    ):
        z = twin.forward(probe.x, probe.static)
        yield _same(f"|forward after {name} - before|", z,
                    tree_leaves(c.forward(probe.x, probe.static)))  # fmt: skip
    data = {"free": probe.x, "static": probe.static}
    file = io.BytesIO()
    torch.save(to_state_dict(data), file)
    file.seek(0)
    loaded = from_state_dict(torch.load(file), data)
    pairs = zip(tree_leaves(loaded), tree_leaves(data), strict=True)
    yield holds("torch.save goes round", all(torch.equal(a, b) for a, b in pairs))
    leaves, structure = tree_flatten(data)
    rebuilt = tree_unflatten(structure, leaves)
    z = c.forward(rebuilt["free"], rebuilt["static"])
    same = c.forward(probe.x, probe.static)
    yield _same("|forward after unflatten - before|", z, tree_leaves(same))


def optimization(probe: Probe) -> Iterator[Measured]:
    """Still feasible after weight decay, zero gradients, averages, steps of AdamW."""
    c, static, x = probe.constraint, probe.static, probe.x
    forward: Callable[[Any], Any] = lambda x: c.forward(x, static)  # noqa: E731
    if probe.packed is not None:
        first, packed = probe.packed.bind(x), probe.packed
        x = packed.right_inverse(x, first)
        forward = lambda x: c.forward(packed.forward(x, first), static)  # noqa: E731
    if not ravel(x).numel():
        return
    key = random.key(probe.case.seed)
    noise = tree_map(lambda t: random.normal(key, t.shape).to(t), x)
    for name, moved in (
        ("weight decay", tree_map(lambda t: t - 0.01 * t, x)),
        ("a zero gradient", tree_map(lambda t: t - 0.1 * torch.zeros_like(t), x)),
        ("an average", tree_map(lambda a, b: (a + (a + b)) / 2, x, noise)),
        ("decay to zero", tree_map(torch.zeros_like, x)),
        ("a step of sign and decay", _adamw(forward, x)),
    ):
        yield _inside(f"check after {name}", c, forward(moved))


def rebinding(probe: Probe) -> Iterator[Measured]:
    """``rebind`` keeps the value, and a second time changes nothing."""
    c, static = probe.constraint, probe.static
    x = probe.drawn()
    y = c.forward(x, static)
    moved, chart = c.rebind(x, static)
    z = c.forward(moved, chart)
    yield _distance("|value after rebind - before|", c, moved, z, y)
    again, last = c.rebind(moved, chart)
    yield _distance(
        "|value after a second rebind - before|", c, again, c.forward(again, last), y
    )


def _adamw(forward: Callable[[Any], Any], x: Any) -> Any:
    """The first step of AdamW from fresh moments: the sign of the gradient, and decay."""
    slope = grad(lambda x: _weighted(forward(x)).float())(x)
    return tree_map(lambda t, g: t - 0.1 * g.sign() - 0.001 * t, x, slope)


def _weighted(y: Any) -> Tensor:
    """A sum with a different weight for each entry, not linear in its place.

    Linear weights vanish on matrices with zero row and column sums.
    """
    flat = ravel(y)
    weights = torch.linspace(
        0.5, 1.5, flat.numel(), dtype=flat.dtype, device=flat.device
    )
    return flat @ weights.square()


def _address(t: Tensor) -> int:
    return t.untyped_storage().data_ptr()


def _spoiled(t: Tensor) -> Tensor:
    """NaN in the first element of a batch."""
    return torch.cat([torch.full_like(t[:1], torch.nan), t[1:]])


def _same(what: str, got: Any, want: Sequence[Tensor]) -> Measured:
    worst = torch.zeros((), dtype=torch.float64, device="cpu")
    for a, b in zip(tree_leaves(got), want, strict=True):
        if a.shape != b.shape:
            return holds(f"{what}: shapes {tuple(a.shape)}, {tuple(b.shape)}", False)
        if b.numel():
            same = (a == b) | (a.isnan() & b.isnan())
            gap = (a.double() - b.double()).abs().masked_fill(same, 0)
            size = b.double().abs().masked_fill(~b.isfinite(), 0).max().clamp(min=1)
            # Unlike Python's `max`, this one keeps a NaN.
            worst = torch.maximum(worst, (gap / size).max().to(worst))
    return measured(f"{what} / size", float(worst), _SAME)


_STRANGE = Domain("a tensor of another world", "(..., d)", 1)


@final
@dataclass(frozen=True)
class _Stranger(Constraint):
    """A constraint that fits nowhere."""

    @property
    def domain(self) -> Domain:
        return _STRANGE

    @property
    def codomain(self) -> Domain:
        return _STRANGE

    @property
    def rule(self) -> str:
        return "nothing"

    def dim(self, shape: Sequence[int]) -> int:
        return shape[-1]

    def radius(self, n: int, dtype: torch.dtype) -> float:
        del n, dtype
        return torch.inf

    def forward(self, x: Any, static: Any = ()) -> Tensor:
        del static
        return x.clone()

    def right_inverse(self, y: Tensor, static: Any = ()) -> Any:
        del static
        return y.clone()

    def violation(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y[..., 0])

    def tolerance(self, y: Tensor) -> Tensor:
        return torch.zeros_like(y[..., 0])
