"""Constraints: maps from free numbers onto sets, each with a tested right inverse."""

from pureopt.constraints._base import Constraint as Constraint
from pureopt.constraints._cayley import Cayley as Cayley
from pureopt.constraints._chain import Chain as Chain
from pureopt.constraints._domains import Domain as Domain
from pureopt.constraints._orthogonal import Orthogonal as Orthogonal
from pureopt.constraints._orthogonal import OrthogonalStatic as OrthogonalStatic
from pureopt.constraints._skew import Skew as Skew
from pureopt.constraints._space import Space as Space
from pureopt.constraints._space import constrain as constrain
from pureopt.constraints._symmetric import Symmetric as Symmetric

__all__ = [
    "Cayley",
    "Chain",
    "Constraint",
    "Domain",
    "Orthogonal",
    "OrthogonalStatic",
    "Skew",
    "Space",
    "Symmetric",
    "constrain",
]
