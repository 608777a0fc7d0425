"""``register`` and ``remove``: a constraint as a parametrization of a module."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, TypeVar, final

from torch import Tensor, nn
from torch.nn.utils import parametrize

from pureopt._errors import ConstraintError, told
from pureopt._tree import (
    tree_flatten,
    tree_items,
    tree_leaves,
    tree_map,
    tree_unflatten,
)
from pureopt.constraints import Constraint
from pureopt.constraints._door import enter, require_start

M = TypeVar("M", bound=nn.Module)


def register(module: M, name: str, constraint: Constraint) -> M:
    """Constrain a parameter of a module in place, on top of ``nn.utils.parametrize``.

    ``module.name`` reads ``constraint.forward(original)``, and assigning to it sets the
    original through the right inverse. What is trained is
    ``module.parametrizations.name.original``, the free value, which keeps the identity
    of the parameter (a map from several tensors has ``original0``, ``original1``, ...,
    as torch does it; give those to the optimizer). Static data is in buffers, so it is
    saved, moved and copied with the module and never trained. Another module that shares
    the parameter would read the free value: constrain tied weights with
    :func:`pureopt.constrain`.

    Registered a second time, constraints compose: the present value is the input of the
    new one, and ``old >> new`` must fit.

    Each read computes the map anew; within ``torch.nn.utils.parametrize.cached()`` once.
    (With :func:`pureopt.constrain` and :func:`pureopt.functionalize` it is computed once
    per step, and ensembles, ``vmap`` and derivatives of any order are at hand.)

    Args:
        module: For example ``nn.Linear``.
        name: The parameter, for example ``"weight"``.
        constraint: It must hold for the present value: nothing is projected.

    Returns:
        The module.

    Raises:
        ConstraintError: If there is no such parameter, or its value is outside the set,
            with the rule, the measured violation and the way out. So does an assignment,
            also of another shape, dtype or device; it then changes nothing. If the first
            takes structured values (`Cayley()`), with the chain to write.
        CompositionError: If it does not fit to what is registered already.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Orthogonal
        >>> from pureopt.interop.torch import register
        >>> layer = torch.nn.Linear(3, 3)
        >>> _ = torch.nn.init.eye_(layer.weight)
        >>> layer = register(layer, "weight", Orthogonal())
        >>> layer.weight = -torch.eye(3)
        >>> torch.equal(layer.weight, -torch.eye(3))
        True
        >>> layer.weight = torch.ones(3, 3)
        Traceback (most recent call last):
        pureopt.ConstraintError: `Linear.weight = value` must satisfy Orthogonal():
        max|Y^T Y - I| (Y Y^T if wide) <= 3.6e-06, got 3. For the nearest point call
        `Orthogonal().project(value)`, or choose another constraint.
    """
    where = f"register(module, {name!r}, constraint)"
    if not isinstance(constraint, Constraint):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConstraintError(
            where,
            "be given an instance of a constraint",
            told(constraint),
            "For example `Orthogonal()`.",
        )
    _require_parameter(where, module, name)
    if parametrize.is_parametrized(module, name):
        return _append(module, name, constraint)
    require_start(f"register({type(module).__name__}.{name})", constraint)
    # The value of the module, before anything is touched: a bad one changes nothing.
    link = _linked(module, name, constraint, getattr(module, name).detach())
    _own_class(module)
    parametrize.register_parametrization(module, name, link, unsafe=True)
    return module


def remove(module: M, name: str, *, leave_parametrized: bool = True) -> M:
    """Undo :func:`register`: the parameter is a plain one again.

    Args:
        module: The module.
        name: The parameter.
        leave_parametrized: Keep the constrained value; if False, the free value takes
            the place of the parameter, with its own shape.

    Returns:
        The module.

    Raises:
        ConstraintError: If the parameter is not parametrized, or if the free value is to
            be left but consists of several tensors.

    Example:
        >>> import torch
        >>> from pureopt.constraints import Skew
        >>> from pureopt.interop.torch import register, remove
        >>> layer = torch.nn.Linear(2, 2, bias=False)
        >>> _ = torch.nn.init.zeros_(layer.weight)
        >>> layer = remove(register(layer, "weight", Skew()), "weight")
        >>> layer.weight
        Parameter containing:
        tensor([[0., 0.],
                [0., 0.]], requires_grad=True)
    """
    where = f"remove(module, {name!r})"
    if not parametrize.is_parametrized(module, name):
        _require_parameter(where, module, name)
        raise ConstraintError(
            where,
            "name a parameter that is constrained",
            "one that is not",
            f"`register(module, {name!r}, constraint)` does it.",
        )
    several = not _parametrizations(module)[name].is_tensor
    if several and not leave_parametrized:
        raise ConstraintError(
            f"remove(module, {name!r}, leave_parametrized=False)",
            "have one free tensor to leave",
            "several",
            "Leave the constrained value: `leave_parametrized=True`.",
        )
    _own_class(module)
    parametrize.remove_parametrizations(
        module, name, leave_parametrized=leave_parametrized
    )
    return module


@final
class _Link(nn.Module):
    """A constraint as torch's parametrizations are: modules with a right inverse."""

    like: Tensor

    def __init__(self, constraint: Constraint, where: str, y: Tensor) -> None:
        super().__init__()
        self.constraint = constraint
        self.where = where
        # What knows the shape of the value, and its dtype and device after conversions.
        self.register_buffer("like", y.new_empty((*y.shape, 0)), persistent=False)
        # The tree of static, and that of the free value, with names for the leaves.
        self.static_names: Any = ()
        self.free_names: Any = ""

    def bind(self, where: str, name: str, y: Tensor) -> Any:
        """The free value of ``y``; the static data goes into buffers."""
        x, static = enter(where, name, y, self.constraint)
        paths = [path.replace(".", "_") for path, _ in tree_items(static)]
        names = ["static" + (f"_{path}" if path else "") for path in paths]
        leaves, structure = tree_flatten(static)
        for buffer, leaf in zip(names, leaves, strict=True):
            self.register_buffer(buffer, leaf)
        self.static_names = tree_unflatten(structure, names)
        self.free_names = tree_map(lambda _: "", x)
        return x

    def forward(self, *originals: Tensor) -> Tensor:
        static = tree_map(lambda name: getattr(self, name), self.static_names)
        x = tree_unflatten(tree_flatten(self.free_names)[1], originals)
        return self.constraint.forward(x, static)

    def right_inverse(self, value: Tensor) -> Tensor | tuple[Tensor, ...]:
        _require_like(f"{self.where} = value", value, self.like)
        x = self.bind(f"{self.where} = value", "value", value.detach())
        return x if isinstance(x, Tensor) else tuple(tree_leaves(x))

    def extra_repr(self) -> str:
        return repr(self.constraint)


def _linked(module: nn.Module, name: str, constraint: Constraint, y: Tensor) -> _Link:
    """A link that is bound to a value of the module."""
    where = f"{parametrize.type_before_parametrizations(module).__name__}.{name}"
    link = _Link(constraint, where, y)
    link.bind(f"register({where})", f"module.{name}", y)
    return link


def _append(module: M, name: str, constraint: Constraint) -> M:
    """The new constraint after those that are there."""
    links = _parametrizations(module)[name]
    last = links[-1]
    if isinstance(last, _Link):
        # One link for the chain: what the first constraint refuses must not have
        # changed the static data of the second.
        chain = last.constraint >> constraint
        y = constraint.forward(getattr(module, name).detach())
        links[-1] = _linked(module, name, chain, y)
    else:
        y = constraint.forward(getattr(module, name).detach())
        link = _linked(module, name, constraint, y)
        parametrize.register_parametrization(module, name, link, unsafe=True)
    setattr(module, name, y)
    return module


def _own_class(module: nn.Module) -> None:
    """Give a module that is parametrized already a class of its own.

    Torch keeps the properties in a class that deep copies share: what is registered on
    one of them, or removed, would reach the others.
    """
    if parametrize.is_parametrized(module):
        cls = type(module)
        own: Any = type(cls.__name__, cls.__bases__, dict(cls.__dict__))
        module.__class__ = own


def _require_like(where: str, value: Tensor, like: Tensor) -> None:
    """Raise unless a value has the shape, the dtype and the device of the present one.

    Torch would take any shape, and tell a dtype only after the static data has changed.
    """
    if not isinstance(value, Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConstraintError(where, "be a tensor", f"`{type(value).__name__}`")
    have, want = (
        f"shape {tuple(shape)}, {t.dtype} on {t.device}"
        for t, shape in ((value, value.shape), (like, like.shape[:-1]))
    )
    if have != want:
        raise ConstraintError(
            where, f"have {want}, as the present value", have, "Convert it first."
        )


def _parametrizations(module: nn.Module) -> Any:
    """Torch's dict of the parametrized names, empty without."""
    return getattr(module, "parametrizations", {})


def _require_parameter(where: str, module: nn.Module, name: str) -> None:
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ConstraintError(where, "be given a module", told(module))
    names = [*dict(module.named_parameters(recurse=False)), *_parametrizations(module)]
    if name in names or name in dict(module.named_buffers(recurse=False)):
        return
    near = get_close_matches(name, names, n=3, cutoff=0.3) or names[:3]
    raise ConstraintError(
        where,
        f"name a parameter of the {type(module).__name__}",
        "no such name",
        f"Near names: {', '.join(map(repr, near))}." if near else "It has none.",
    )
