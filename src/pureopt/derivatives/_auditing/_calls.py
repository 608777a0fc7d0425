"""The calls that a function makes, each as a function on its own."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path as FilePath
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode, resolve_name

from pureopt._tree import tree_flatten, tree_unflatten
from pureopt.derivatives._auditing._words import Path, outputs

# How far along the path the arguments of a call are compared with those at its start.
_STEP = 2.0**-10
# Where the lines are that no one wants to hear of.
_HERE = FilePath(__file__).parent
_INSIDE = tuple(
    map(str, (FilePath(torch.__file__).parent, _HERE, _HERE.parent / "_exactness"))
)
# What torch.func does to the argument of a function that it differentiates.
_MARK = Tensor.requires_grad_
# What reads a tensor into numbers, which have no derivative, and into a text of them: with
# what gives these numbers.
_READS: dict[Callable[..., Any], Callable[[Tensor], Any]] = {
    **{
        f: f for f in (Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.__complex__)
    },
    Tensor.__format__: Tensor.tolist,
}
# Calls of custom functions pass by the modes that see all other calls.
_APPLY: CodeType = getattr(torch.autograd.Function.apply, "__code__")  # noqa: B009 (a method, to the stubs, has none)


class Call(NamedTuple):
    """One call, with copies of its arguments.

    Attributes:
        function: What was called.
        leaves: The leaves of its arguments and keyword arguments.
        structure: Their structure.
        where: The line of code outside of torch that called it.
    """

    function: Callable[..., Any]
    leaves: list[Any]
    structure: Any
    where: str

    @property
    def name(self) -> str:
        """The function, as one would write it."""
        owner = getattr(self.function, "__self__", None)
        if isinstance(owner, type) and issubclass(owner, torch.autograd.Function):
            return f"{owner.__qualname__}.apply"
        name: str | None = resolve_name(self.function)
        return name or getattr(self.function, "__qualname__", repr(self.function))

    def run(self, leaves: list[Any]) -> Any:
        """The call with other leaves."""
        args, kwargs = tree_unflatten(self.structure, leaves)
        if read := _READS.get(self.function):
            return _as_tensor(read(args[0]), args)
        return self.function(*args, **kwargs)


def _as_tensor(numbers: Any, args: Any) -> Tensor:
    """What was read, as the tensor that it was: its derivatives are zero."""
    dtype = args[0].dtype
    if isinstance(numbers, complex):
        dtype = torch.promote_types(dtype, torch.complex64)
    return torch.tensor(numbers, dtype=dtype, device=args[0].device)


def calls(path: Path) -> list[tuple[Call, Path]]:
    """The calls at the start of a path, with the paths their arguments take from there.

    The arguments move as they do inside the function: what is symmetric there stays so,
    and what does not depend on the path stands still. Empty if the function makes other
    calls nearby, because then it has no derivative.
    """
    before, here, after = (
        _record(path.f, path.at(path.start[0].new_full((), t)))
        for t in (-_STEP, 0.0, _STEP)
    )
    if not _names(before) == _names(here) == _names(after):
        return []
    paths = [
        _path(call, b.leaves, a.leaves)
        for b, call, a in zip(before, here, after, strict=True)
    ]
    return [
        (call, p) for call, p in zip(here, paths, strict=True) if p.start and _runs(p)
    ]


def _names(recorded: list[Call]) -> list[tuple[str, Any]]:
    return [(call.name, call.structure) for call in recorded]


def _path(call: Call, before: list[Any], after: list[Any]) -> Path:
    """The parabola through the arguments at three points."""
    moving = [i for i, a in enumerate(after) if _moves(before[i], call.leaves[i], a)]

    def f(*values: Tensor) -> Any:
        leaves = [_copied(leaf) for leaf in call.leaves]
        for i, value in zip(moving, values, strict=True):
            leaves[i] = value
        return call.run(leaves)

    start = tuple(call.leaves[i] for i in moving)
    slope = tuple((after[i] - before[i]) / (2 * _STEP) for i in moving)
    bend = tuple(
        (after[i] + before[i] - 2 * call.leaves[i]) / (2 * _STEP**2) for i in moving
    )
    return Path(f, start, slope, bend)


def _moves(before: Any, here: Any, after: Any) -> bool:
    return (
        isinstance(here, Tensor)
        and here.dtype in {torch.float64, torch.complex128}
        and here.shape == before.shape == after.shape
        and not (torch.equal(before, here) and torch.equal(here, after))
    )


def _runs(path: Path) -> bool:
    """Whether the call can be made again, and has a derivative to speak of."""
    try:
        return bool(outputs(path.f(*path.at(path.start[0].real.new_zeros(())))))
    except Exception:  # noqa: BLE001 (such as a call on a batch of a vmap inside)
        return False


def _record(f: Callable[..., Any], args: tuple[Tensor, ...]) -> list[Call]:
    """The calls that ``f`` makes."""
    found: list[Call] = []
    with _watched(found), _Recorder(found):
        f(*args)
    return found


class _Recorder(TorchFunctionMode):
    """Writes down every call of torch."""

    def __init__(self, found: list[Call]) -> None:
        super().__init__()
        self.found = found

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # Before the call, which may write to its arguments.
        call = _call(func, args, kwargs or {}, inspect.currentframe())
        if outputs(call.leaves) and func is not _MARK:
            self.found.append(call)
        return func(*args, **(kwargs or {}))


@contextmanager
def _watched(found: list[Call]) -> Generator[None]:
    """Writes down every call of a custom function."""

    def profile(frame: FrameType, event: str, arg: Any) -> None:
        del arg
        if event == "call" and frame.f_code is _APPLY:
            local = frame.f_locals
            calls_so_far = len(found)
            function = local["cls"].apply
            call = _call(function, local["args"], local["kwargs"], frame)
            # Instead of the copies that were just made, which were seen as calls too.
            found[calls_so_far:] = [call]

    previous = sys.getprofile()
    sys.setprofile(profile)
    try:
        yield
    finally:
        sys.setprofile(previous)


def _call(
    function: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    frame: FrameType | None,
) -> Call:
    leaves, structure = tree_flatten((args, kwargs))
    leaves = [_copied(leaf) for leaf in leaves]
    if function in _READS:
        leaves = [_widened(leaf) for leaf in leaves]
    return Call(function, leaves, structure, _line(frame))


def _copied(leaf: Any) -> Any:
    if not isinstance(leaf, Tensor):
        return leaf
    # A function that differentiates inside calls torch with wrapped tensors.
    return torch.func.debug_unwrap(leaf).detach().clone()


def _widened(leaf: Any) -> Any:
    """A number that is read has no derivative in any precision: in one that tells."""
    if not outputs(leaf):
        return leaf
    return leaf.to(torch.promote_types(leaf.dtype, torch.float64))


def _line(frame: FrameType | None) -> str:
    """The innermost line outside of torch and of the audit."""
    while frame and frame.f_code.co_filename.startswith(_INSIDE):
        frame = frame.f_back
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else ""
