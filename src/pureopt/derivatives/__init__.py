"""Derivatives: Taylor mode, exact nestings, products, per-sample quantities, curvature.

The names and where they are stand in ``__init__.pyi``.
"""

from pureopt._lazy import lazy_names as _lazy_names

__getattr__, __dir__, __all__ = _lazy_names(__name__, __file__)
