"""Modules as pure functions: the split itself, keyed dropout, and what is refused."""

from pureopt._functional._module import Functional as Functional
from pureopt._functional._module import functionalize as functionalize
from pureopt._functional._module import stack as stack

__all__ = ["Functional", "functionalize", "stack"]
