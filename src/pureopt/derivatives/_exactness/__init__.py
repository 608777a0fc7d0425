"""``exact`` and ``exact_ops``: compositions in place of the kernels that are wrong.

Above first order some of torch's kernels have derivative formulas that drop terms. Each
module of this package but one writes such functions as compositions of operations whose
formulas are right, with the signature of the function they stand for; ``_scope`` puts
them in its place.
"""

from pureopt.derivatives._exactness._scope import (
    composed_of_exact as composed_of_exact,
)
from pureopt.derivatives._exactness._scope import exact as exact
from pureopt.derivatives._exactness._scope import exact_ops as exact_ops

__all__ = ["composed_of_exact", "exact", "exact_ops"]
