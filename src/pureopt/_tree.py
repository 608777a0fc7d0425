"""Trees of tensors: the one module that knows how they are walked.

Nodes are tuple, list, dict, OrderedDict and NamedTuple; everything else is a leaf.
Dicts keep insertion order, so that raveling agrees with ``module.parameters()``, and
two trees match when their keys match: the order of the first one rules.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any, TypeVar

import optree
import torch
from torch import Tensor

from pureopt._errors import TreeError

T = TypeVar("T")

_NAMESPACE = "pureopt"
_SPARSE = (
    *(torch.sparse_coo, torch.sparse_csr, torch.sparse_csc),
    *(torch.sparse_bsr, torch.sparse_bsc),
)
# Entered once and left at interpreter exit. A bare `.__enter__()` would be undone as
# soon as the context manager's generator is garbage collected.
_insertion_order = ExitStack()
_insertion_order.enter_context(
    optree.dict_insertion_ordered(True, namespace=_NAMESPACE)
)
atexit.register(_insertion_order.close)


def tree_flatten(tree: Any) -> tuple[list[Any], Any]:
    """The leaves in order, and the structure; ``None`` is a leaf."""
    leaves, structure = optree.tree_flatten(
        tree, none_is_leaf=True, namespace=_NAMESPACE
    )
    return leaves, structure


def tree_leaves(tree: Any) -> list[Any]:
    """The leaves in order."""
    return optree.tree_leaves(tree, none_is_leaf=True, namespace=_NAMESPACE)


def tree_unflatten(structure: Any, leaves: Iterable[Any]) -> Any:
    """The tree of this structure with these leaves."""
    return structure.unflatten(leaves)


def tree_map(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Apply ``fn`` leaf by leaf; ``rest`` may hold subtrees at the leaves of ``tree``."""
    # To a type checker optree's trees are a nominal class: `Any` on the way in and out.
    walk: Any = optree.tree_map
    return walk(fn, tree, *rest, none_is_leaf=True, namespace=_NAMESPACE)


def tree_paths(tree: Any) -> list[str]:
    """The dotted path of each leaf: ``"layers.0.weight"``; a bare leaf has the path ``""``."""
    accessors = optree.tree_accessors(tree, none_is_leaf=True, namespace=_NAMESPACE)
    return [".".join(_word(entry) for entry in accessor) for accessor in accessors]


def _word(entry: Any) -> str:
    return str(entry.field if hasattr(entry, "field") else entry.entry)


def tree_items(tree: Any) -> list[tuple[str, Any]]:
    """Pairs of dotted path and leaf."""
    return list(zip(tree_paths(tree), tree_leaves(tree), strict=True))


def tree_match(tree: Any, reference: Any) -> list[Any]:
    """The subtrees of ``tree`` at the leaves of ``reference``, in its order.

    Raises:
        ValueError: If the keys differ.
    """
    return tree_flatten(reference)[1].flatten_up_to(tree)


def tree_select(mask: Tensor, yes: T, no: T) -> T:
    """Leafwise ``torch.where`` with one 0-d mask."""
    return tree_map(lambda a, b: torch.where(mask, a, b), yes, no)


def check_params(where: str, tree: Any) -> None:
    """Raise unless every leaf is a real floating tensor and there is at least one.

    Raises:
        TreeError: Names the first leaf that is not.
    """
    leaves = tree_leaves(tree)
    if not leaves:
        raise TreeError(where, "hold at least one tensor", "an empty tree")
    for i, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            rule = "hold only floating-point tensors"
            raise TreeError(where, rule, _told(tree, i), _way_out(leaf))
        if leaf.layout in _SPARSE:
            rule, told = "hold only dense tensors", f"one of layout {leaf.layout}"
            hint = "Pass `leaf.to_dense()`, or its values, and build the rest inside."
            raise TreeError(where, rule, told + _at(tree_paths(tree)[i]), hint)


def _told(tree: Any, i: int) -> str:
    path, leaf = tree_items(tree)[i]
    what = (
        f"a tensor of dtype {leaf.dtype}"
        if isinstance(leaf, Tensor)
        else f"`{type(leaf).__name__}`"
    )
    return what + _at(path)


def _at(path: str) -> str:
    """Where a leaf is, in words; a bare tensor is nowhere in particular."""
    return f" at '{path}'" if path else ""


def _way_out(leaf: Any) -> str:
    if leaf is None:
        return "Leave absent parts out, or put `()` there."
    if isinstance(leaf, Tensor):
        if leaf.is_complex():
            return "Store it as `torch.view_as_real(leaf)`."
        return (
            "Keep such tensors outside `params` (in buffers, or closed over), "
            "or convert them with `.float()`."
        )
    if isinstance(leaf, torch.nn.Module | Iterator):
        return "Take the params of a module from `pureopt.functionalize(module)`."
    return (
        "Nodes are tuple, list, dict, OrderedDict and NamedTuple; convert numbers with "
        "`torch.tensor`, other containers to a dict."
    )


def check_like(where: str, tree: Any, reference: Any, name: str = "params") -> None:
    """Raise unless ``tree`` has the keys, shapes and leaf types of ``reference``.

    Raises:
        TreeError: Names the first leaf that differs.
    """
    rule = f"have the structure of `{name}`"
    try:
        leaves = tree_match(tree, reference)
    except (ValueError, TypeError):
        raise TreeError(where, rule, _difference(tree, reference)) from None
    for i, (leaf, ref) in enumerate(zip(leaves, tree_leaves(reference), strict=True)):
        if not isinstance(leaf, Tensor):
            path = tree_paths(reference)[i]
            hint = (
                "A frozen leaf needs a zero gradient (`torch.zeros_like`)."
                if leaf is None
                else "Every leaf must be a tensor."
            )
            raise TreeError(where, rule, f"`{type(leaf).__name__}`{_at(path)}", hint)
        if ref.is_floating_point() and not leaf.is_floating_point():
            got = f"a tensor of dtype {leaf.dtype}{_at(tree_paths(reference)[i])}"
            raise TreeError(where, "hold floating-point tensors", got)
        if leaf.shape != ref.shape:
            path = tree_paths(reference)[i]
            raise TreeError(
                where,
                f"have the shapes of `{name}`",
                f"{tuple(leaf.shape)}{_at(path)}, where `{name}` has {tuple(ref.shape)}",
            )


def _difference(tree: Any, reference: Any) -> str:
    have, want = tree_paths(tree), tree_paths(reference)
    missing = [path for path in want if path not in have]
    extra = [path for path in have if path not in want]
    told = [
        f"{word} '{paths[0]}'" + (f" and {len(paths) - 1} more" if paths[1:] else "")
        for word, paths in (("no", missing), ("an unknown", extra))
        if paths
    ]
    return " and ".join(told) if told else "other containers with the same keys"


def ravel(tree: Any, dtype: torch.dtype | None = None) -> Tensor:
    """All leaves as one vector, in the order of the tree.

    Its memory is its own.

    Args:
        tree: A tree of tensors, with at least one.
        dtype: Of the vector; by default the widest of the leaves'.

    Example:
        >>> ravel({"w": torch.tensor([[1.0, 2.0]]), "b": torch.tensor(3.0)})
        tensor([1., 2., 3.])
    """
    flat = [leaf.reshape(-1).to(dtype or leaf.dtype) for leaf in tree_leaves(tree)]
    # Compiled under vmap, `torch.cat` makes the number of lanes a constant.
    return torch.cat(flat) if len(flat) > 1 else flat[0].clone()


def unravel(vector: Tensor, like: T) -> T:
    """The tree of the shapes and dtypes of ``like`` whose :func:`ravel` is ``vector``.

    Args:
        vector: As many numbers as ``like`` holds, in its last dimension.
        like: A tree of tensors.

    Raises:
        TreeError: If the numbers are more or fewer.

    Example:
        >>> unravel(torch.arange(3.0), {"w": torch.zeros(1, 2), "b": torch.tensor(0.0)})
        {'w': tensor([[0., 1.]]), 'b': tensor(2.)}
    """
    leaves, structure = tree_flatten(like)
    sizes = [leaf.numel() for leaf in leaves]
    if vector.shape[-1] != sum(sizes):
        raise TreeError(
            "unravel(vector=...)",
            f"hold the {sum(sizes)} numbers of `like`",
            f"{vector.shape[-1]}",
        )
    pieces = vector.split(sizes, dim=-1)
    return tree_unflatten(
        structure,
        [
            piece.reshape(leaf.shape).to(leaf.dtype)
            for piece, leaf in zip(pieces, leaves, strict=True)
        ],
    )


def to_state_dict(tree: Any) -> dict[str, Tensor]:
    """A flat ``{path: tensor}`` dict of a state, for ``torch.save`` and friends.

    Raises:
        TreeError: If a leaf is not a tensor, or two leaves have the same path, as in
            ``{"a.b": x, "a": {"b": y}}``.

    Example:
        >>> to_state_dict({"a": (torch.zeros(1), torch.ones(2))})
        {'a.0': tensor([0.]), 'a.1': tensor([1., 1.])}
    """
    flat: dict[str, Tensor] = {}
    for path, leaf in tree_items(tree):
        if not isinstance(leaf, Tensor):
            got = f"`{type(leaf).__name__}`{_at(path)}"
            raise TreeError("to_state_dict(tree=...)", "hold only tensors", got)
        if path in flat:
            raise TreeError(
                "to_state_dict(tree=...)",
                "have one path for each leaf",
                f"two leaves at '{path}'",
                "Rename one of the keys.",
            )
        flat[path] = leaf
    return flat


def from_state_dict(state_dict: dict[str, Tensor], like: T) -> T:
    """The inverse of :func:`to_state_dict`, with the structure and dtypes of ``like``.

    Raises:
        TreeError: If a key is missing or unknown, or a shape differs.

    Example:
        >>> like = {"a": (torch.zeros(1), torch.zeros(2))}
        >>> from_state_dict({"a.1": torch.ones(2), "a.0": torch.ones(1)}, like)
        {'a': (tensor([1.]), tensor([1., 1.]))}
    """
    reference = to_state_dict(like)
    check_like("from_state_dict(state_dict=...)", state_dict, reference, "like")
    leaves = [state_dict[path].to(leaf) for path, leaf in reference.items()]
    return tree_unflatten(tree_flatten(like)[1], leaves)
