"""What a function may be given in the place of a tensor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class StandIn:
    """Knows the functions of torch; no transform of ``torch.func`` takes it.

    Methods and operators of tensors are functions of torch as well, which
    ``__torch_function__`` decides. What a class defines itself goes before.
    """

    __slots__ = ()

    # Above that of arrays and scalars of numpy, which leave `numpy.sqrt(2) * x` to it.
    __array_priority__ = 1000

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """What ``func`` is of these arguments; each class says so."""
        raise NotImplementedError

    def __getitem__(self, index: Any) -> Any:
        return self.__torch_function__(torch.Tensor.__getitem__, (), (self, index))

    def __getattr__(self, name: str) -> Any:
        member = getattr(torch.Tensor, name, None)
        if member is None or name.startswith("__"):
            raise AttributeError(f"`{type(self).__name__}` has no attribute `{name}`")
        if not callable(member):
            return self.__torch_function__(member.__get__, (), (self,))

        def method(*args: Any, **kwargs: Any) -> Any:
            return self.__torch_function__(member, (), (self, *args), kwargs)

        return method


def _operator(name: str) -> Callable[..., Any]:
    """Python looks operators up in the class, so that ``__getattr__`` does not see them."""
    member = getattr(torch.Tensor, name)

    def apply(self: StandIn, *others: Any) -> Any:
        return self.__torch_function__(member, (), (self, *others))

    apply.__name__ = name
    return apply


# Also those without a rule: of `x == 0` Python would make a comparison of identities.
for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "pow", "rpow",
    "matmul", "rmatmul", "neg", "pos", "abs", "eq", "ne", "lt", "le", "gt", "ge",
    "mod", "rmod", "floordiv", "rfloordiv", "setitem", "iter", "bool", "float", "int",
    "index", "complex", "array", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow",
    "imod",
):  # fmt: skip
    setattr(StandIn, f"__{_name}__", _operator(f"__{_name}__"))
