"""Errors that say where, what must be, what was, and what to do."""

from __future__ import annotations

from torch import Tensor


class PureoptError(ValueError):
    """Base of the errors that pureopt raises for wrong input.

    Every message has the same four parts: where the value was passed, what it
    must be, what it was, and what to do. They are the ``args`` of the error.

    Example:
        >>> issubclass(TreeError, PureoptError) and issubclass(PureoptError, ValueError)
        True
    """

    # No `__init__`: `torch.compile` can trace raising a class without one, and the
    # parts in `args` are what pickle keeps.
    def __str__(self) -> str:
        """The message."""
        match self.args:
            case (where, rule, got):
                return f"`{where}` must {rule}, got {got}."
            case (where, rule, got, hint):
                return f"`{where}` must {rule}, got {got}. {hint}".rstrip()
            case _:
                return super().__str__()


class TreeError(PureoptError):
    """A tree has the wrong keys, or a leaf the wrong type, dtype or shape.

    Example:
        >>> print(
        ...     TreeError("Adam.step(grads=...)", "have the keys of `params`", "no 'w'")
        ... )
        `Adam.step(grads=...)` must have the keys of `params`, got no 'w'.
    """


class HyperparameterError(PureoptError):
    """A hyper-parameter is outside its range, or a tensor of the wrong dtype or shape.

    Example:
        >>> print(HyperparameterError("Adam(lr=...)", "be finite and >= 0", "-1.0"))
        `Adam(lr=...)` must be finite and >= 0, got -1.0.
    """


class CompositionError(PureoptError):
    """Two objects do not fit together under ``>>``.

    Example:
        >>> issubclass(CompositionError, PureoptError)
        True
    """


class ConstraintError(PureoptError):
    """A value is not in the set that a constraint describes, or a glob names no leaf.

    Example:
        >>> issubclass(ConstraintError, PureoptError)
        True
    """


class DerivativeError(PureoptError):
    """A function cannot be differentiated as asked.

    Example:
        >>> issubclass(DerivativeError, PureoptError)
        True
    """


def told(value: object) -> str:
    """What a value is, in words, for the third part of a message."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {value.dtype}"
    if isinstance(value, type):
        return f"the class `{value.__name__}`"
    if type(value) is tuple:
        return f"({', '.join(map(told, value))})"
    return f"`{type(value).__name__}`"
