"""Errors that say where, what must be, what was, and what to do."""

from __future__ import annotations


class PureoptError(ValueError):
    """Base of the errors that pureopt raises for wrong input.

    Every message has the same four parts: where the value was passed, what it
    must be, what it was, and what to do.

    Example:
        >>> issubclass(TreeError, PureoptError) and issubclass(PureoptError, ValueError)
        True
    """

    def __init__(self, where: str, rule: str, got: str, hint: str = "") -> None:
        text = f"`{where}` must {rule}, got {got}."
        super().__init__(f"{text} {hint}" if hint else text)


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
