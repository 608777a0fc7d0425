"""The scope that puts compositions in the place of torch's functions."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import torch
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from pureopt._errors import DerivativeError, told
from pureopt.derivatives._complaints import explain
from pureopt.derivatives._exactness._attention import ATTENTION
from pureopt.derivatives._exactness._bags import BAGS
from pureopt.derivatives._exactness._bodies import BODIES, WHOLE
from pureopt.derivatives._exactness._ctc import CTC
from pureopt.derivatives._exactness._determinants import DETERMINANTS
from pureopt.derivatives._exactness._distances import DISTANCES
from pureopt.derivatives._exactness._elementwise import ELEMENTWISE
from pureopt.derivatives._exactness._linalg import LINALG
from pureopt.derivatives._exactness._losses import LOSSES
from pureopt.derivatives._exactness._norms import NORMS
from pureopt.derivatives._exactness._numbers import NUMBERS
from pureopt.derivatives._exactness._numeric import KERNELS, Table, transforms
from pureopt.derivatives._exactness._placing import PLACING
from pureopt.derivatives._exactness._products import PRODUCTS
from pureopt.derivatives._exactness._recurrent import RECURRENT
from pureopt.derivatives._exactness._sampling import SAMPLING
from pureopt.derivatives._exactness._shown import SHOWN, show
from pureopt.derivatives._exactness._sparse import WHERE, SparseStandIn, leaving
from pureopt.derivatives._exactness._sparse_makers import SPARSE
from pureopt.derivatives._exactness._sparse_products import SPARSE_PRODUCTS
from pureopt.derivatives._exactness._special import SPECIAL
from pureopt.derivatives._exactness._spectra import SPECTRA
from pureopt.derivatives._exactness._transposed import TRANSPOSED
from pureopt.derivatives._exactness._vector_norms import (
    REMEMBERED,
    VECTOR_NORMS,
    p_norm,
    power,
)

Args = ParamSpec("Args")
R = TypeVar("R")

# Every spelling of a function that a program may call, with its composition.
REPLACEMENTS: Table = {
    **ATTENTION,
    **BAGS,
    **CTC,
    **DETERMINANTS,
    **DISTANCES,
    **ELEMENTWISE,
    **LINALG,
    **LOSSES,
    **NORMS,
    **NUMBERS,
    **PLACING,
    **PRODUCTS,
    **RECURRENT,
    **SAMPLING,
    **SPARSE,
    **SPARSE_PRODUCTS,
    **SPECIAL,
    **SPECTRA,
    **TRANSPOSED,
    **VECTOR_NORMS,
    **WHOLE,
}

# What torch also calls some arguments.
_NUMPY = {"axis": "dim", "keepdims": "keepdim"}

# The functions that write to their first argument: `__setitem__`, `__ipow__`, `add_`,
# `_foreach_add_`. A dict, because the compiler cannot look for them in a set.
WRITES = dict.fromkeys(
    getattr(owner, name)
    for owner in (torch.Tensor, torch, F, KERNELS)
    for name in dir(owner)
    if name == "__setitem__"
    or (name.startswith("__i") and hasattr(torch.Tensor, "__" + name[3:]))
    or (name.endswith("_") and not name.endswith("__"))
)

# Methods of tensors that are written in Python: the compiler finds them by identity, not
# in a dict. `Tensor.unflatten` calls `super`, which a mode that is traced cannot.
_NORM = torch.Tensor.norm
_POW = torch.Tensor.__pow__
_UNFLATTEN = torch.Tensor.unflatten

SHOWN.update(REPLACEMENTS, BODIES, WRITES)


class _Exact(TorchFunctionMode):
    """Stateless, so that it can be traced."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if SparseStandIn in types:  # it has rules of its own, of what is here
            with _Exact():
                return SparseStandIn.__torch_function__(func, types, args, named)
        if named.get("out") is not None:  # torch's own, which refuses to differentiate
            REMEMBERED.forget(named["out"])
            return func(*args, **named)
        if named.get("inplace") or func in WRITES:
            REMEMBERED.forget(args[0] if args else None)
        body = BODIES.get(func)
        if body is not None:
            with _Exact():
                return body(*args, **named)
        if func is _NORM:
            return p_norm(*args, **named)
        if func is _POW:
            return power(*args, **named)
        if func is _UNFLATTEN:
            return torch.unflatten(*args, **named)
        composition = REPLACEMENTS.get(func)
        if composition is None:
            return func(*args, **named)
        return composition(*args, **{_NUMPY.get(k, k): v for k, v in named.items()})


@contextmanager
def exact_ops() -> Generator[None, None, None]:
    r"""Inside this scope every nesting of derivatives is right.

    What :func:`exact` is around a function, this is around some lines of it. It must be
    open while the function is evaluated, hence stand inside the function that is
    differentiated, and not around the transform: ``torch.compile`` traces only the former.

    Yields:
        Nothing.

    Example:
        The Hessian of a determinant, forward over forward, with and without:

        >>> import torch
        >>> import pureopt as po
        >>> from torch.func import jacfwd
        >>> def f(x):
        ...     with po.derivatives.exact_ops():
        ...         return torch.linalg.det(x)
        >>> A = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
        >>> jacfwd(jacfwd(f))(A)[0, 0]
        tensor([[0., 0.],
                [0., 1.]])
        >>> bool((jacfwd(jacfwd(torch.linalg.det))(A)[0, 0, 1, 1] - 1).abs() < 0.1)
        False
    """
    show()
    REMEMBERED.scopes.append([])
    try:
        with _Exact():
            yield
    finally:
        REMEMBERED.scopes.pop()


def exact(f: Callable[Args, R]) -> Callable[Args, R]:
    r"""``f`` with compositions in place of the kernels that are wrong above first order.

    Torch has formulas of its own for the derivatives of normalizations, determinants,
    linear systems, eigenvalues, norms, cumulative products, losses, attention, samplers,
    recurrent layers and some special functions, and above first order, or in the lanes of
    ``vmap``, some drop terms, divide zero by zero, or are missing. Under ``exact`` these
    functions, in each of their spellings, are made of operations whose formulas are right:
    every nesting of ``grad``, ``jvp``, ``jacfwd``, ``jacrev`` and ``vmap`` is. Values are equal
    to torch's up to rounding, arguments are the same, running statistics move as they do.
    The table in the guide :doc:`/guide/exact-derivatives` lists them.

    Conventions, where a derivative does not exist: those of a norm, a distance or a
    standard deviation are zero at zero, but its square, written as an even power, is
    smooth, and its Hessian at zero is ``2 I``. A kink takes the derivative of one side.

    A first derivative costs as much as torch's or a few times as much, of eigenvalues,
    ``max_unpool``, ``ctc_loss``, ``log_ndtr`` and ``erfcx`` about ten times, of products by
    ``segment_reduce`` more: train without. pureopt's own operators of order two and above apply it.

    Args:
        f: Any function. Apply ``exact`` first and transforms to its result, as in
            ``jacfwd(grad(exact(f)))``: so ``torch.compile(fullgraph=True)`` traces it
            wherever it traces the nesting.

    Returns:
        A function of the same arguments. Calls with ``out=`` and those in place
        (``x.cumprod_(0)``) are torch's own.

    Raises:
        DerivativeError: If ``f`` is no function; at the call, if it does what transforms
            cannot follow, such as a branch on the values of a tensor under ``vmap``.

    Example:
        A third derivative that plain nested ``grad`` gets wrong (66.6):

        >>> import torch
        >>> import pureopt as po
        >>> from torch.func import grad
        >>> def f(t):
        ...     x = torch.stack([t, 2 * t, t**2])
        ...     return torch.nn.functional.layer_norm(x, (3,))[1]
        >>> t = torch.tensor(0.7, dtype=torch.float64)
        >>> third = grad(grad(grad(po.derivatives.exact(f))))(t)
        >>> print(f"{third:.5f}")
        -1.68768
    """
    if not callable(f):
        hint = "Apply it before the transforms: `grad(exact(f))(x)`."
        raise DerivativeError(WHERE, "be a function", told(f), hint)
    composed = composed_of_exact(f)

    @functools.wraps(f)
    def exactly(*args: Args.args, **kwargs: Args.kwargs) -> R:
        if torch.compiler.is_compiling():
            return composed(*args, **kwargs)
        try:
            return composed(*args, **kwargs)
        except (RuntimeError, TypeError, ValueError) as error:
            # Without a transform there is none to blame.
            if transforms():
                explain(WHERE, error)
            raise

    return exactly


def composed_of_exact(f: Callable[Args, R]) -> Callable[Args, R]:
    """As :func:`exact`, for operators that explain torch's complaints themselves."""

    @functools.wraps(f)
    def exactly(*args: Args.args, **kwargs: Args.kwargs) -> R:
        with exact_ops():
            value = f(*args, **kwargs)
        return value if REMEMBERED.scopes else leaving(value)

    return exactly
