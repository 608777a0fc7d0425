"""Taylor mode: the jet, its algebra, and one module of rules for each family."""

# The modules of rules are imported for what they register.
# ruff: noqa: F401
# pyright: reportUnusedImport=false

from pureopt.derivatives._jets import (
    _activations,
    _arithmetic,
    _complex,
    _exponential,
    _indexing,
    _linalg,
    _losses,
    _normalizations,
    _norms,
    _piecewise,
    _pooling,
    _products,
    _qr,
    _reductions,
    _shapes,
    _singular,
    _sorting,
    _special,
    _spectra,
    _trigonometric,
)

# After them: they take what is left.
from pureopt.derivatives._jets import _compositions, _refusals  # isort: skip
from pureopt.derivatives._jets._jet import Jet as Jet
from pureopt.derivatives._jets._register import register_jet as register_jet
from pureopt.derivatives._jets._register import (
    register_jet_derivative as register_jet_derivative,
)
from pureopt.derivatives._jets._transform import jet as jet

__all__ = ["Jet", "jet", "register_jet", "register_jet_derivative"]
