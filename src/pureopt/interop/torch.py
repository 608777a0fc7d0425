"""Constraints on the parameters of a module, by ``torch.nn.utils.parametrize``."""

from pureopt.interop._parametrize import register as register
from pureopt.interop._parametrize import remove as remove

__all__ = ["register", "remove"]
