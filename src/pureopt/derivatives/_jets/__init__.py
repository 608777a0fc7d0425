"""Taylor mode: the jet, its algebra, and one module of rules for each family."""

from pureopt.derivatives._jets import (
    _arithmetic,
    _exponential,
    _indexing,
    _products,
    _reductions,
    _shapes,
    _trigonometric,
)
from pureopt.derivatives._jets._jet import Jet as Jet
from pureopt.derivatives._jets._register import register_jet as register_jet
from pureopt.derivatives._jets._register import (
    register_jet_derivative as register_jet_derivative,
)
from pureopt.derivatives._jets._transform import jet as jet

__all__ = ["Jet", "jet", "register_jet", "register_jet_derivative"]
