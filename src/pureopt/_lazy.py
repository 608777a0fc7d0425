"""Names of a package that are imported when they are first asked for.

A catalogue of a hundred classes costs a quarter of a second to import, of which a
program uses two.
"""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def lazy_names(
    package: str, file: str
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` of a package, from the stub beside it.

    The stub, ``__init__.pyi``, is the one list of names: type checkers read the same
    ``from ._module import Name as Name``.

    Args:
        package: ``__name__`` of the package.
        file: ``__file__`` of the package.
    """
    stub = ast.parse(Path(file).with_suffix(".pyi").read_text(encoding="utf-8"))
    modules = {
        alias.name: f"{package}.{node.module}"
        for node in ast.walk(stub)
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }

    def __getattr__(name: str) -> Any:  # noqa: N807
        if name not in modules:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(modules[name]), name)
        # From now on it is an ordinary name, also to the compiler.
        setattr(sys.modules[package], name, value)
        return value

    def __dir__() -> list[str]:  # noqa: N807
        return sorted({*vars(sys.modules[package]), *modules})

    return __getattr__, __dir__, sorted(modules)
