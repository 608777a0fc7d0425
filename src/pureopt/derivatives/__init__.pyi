# The public names and where they are: for type checkers, and read at run time.
from ._exactness import exact as exact
from ._exactness import exact_ops as exact_ops
