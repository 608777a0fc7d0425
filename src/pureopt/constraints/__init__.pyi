# The public names and where they are: for type checkers, and read at run time.
from ._almost_orthogonal import AlmostOrthogonal as AlmostOrthogonal
from ._ball import Ball as Ball
from ._banded import Banded as Banded
from ._base import Constraint as Constraint
from ._block_diagonal import BlockDiagonal as BlockDiagonal
from ._bounded_condition import BoundedCondition as BoundedCondition
from ._bounded_singular_values import (
    BoundedSingularValues as BoundedSingularValues,
)
from ._bounded_spectrum import BoundedSpectrum as BoundedSpectrum
from ._box import Box as Box
from ._cayley import Cayley as Cayley
from ._cayley import SignedCayley as SignedCayley
from ._chain import Chain as Chain
from ._cholesky_factor import CholeskyFactor as CholeskyFactor
from ._circulant import Circulant as Circulant
from ._constrain import constrain as constrain
from ._correlation import Correlation as Correlation
from ._correlation_cholesky import (
    CorrelationCholesky as CorrelationCholesky,
)
from ._domains import Domain as Domain
from ._doubly_stochastic import DoublyStochastic as DoublyStochastic
from ._exponential import Exponential as Exponential
from ._fixed_rank import FixedRank as FixedRank
from ._fixed_rank import FixedRankStatic as FixedRankStatic
from ._grassmann import Grassmann as Grassmann
from ._grassmann import GrassmannStatic as GrassmannStatic
from ._half_line import GreaterThan as GreaterThan
from ._half_line import LessThan as LessThan
from ._householder import Householder as Householder
from ._hurwitz import Hurwitz as Hurwitz
from ._interval import Interval as Interval
from ._invertible import Invertible as Invertible
from ._linear import LinearSubspace as LinearSubspace
from ._lipschitz import Lipschitz as Lipschitz
from ._log_euclidean import LogEuclidean as LogEuclidean
from ._low_rank import LowRank as LowRank
from ._lu_chart import LUStatic as LUStatic
from ._masked import Masked as Masked
from ._matricized import Matricized as Matricized
from ._matricized import MatricizedStatic as MatricizedStatic
from ._matrix_exponential import (
    ExponentialStatic as ExponentialStatic,
)
from ._matrix_exponential import (
    MatrixExponential as MatrixExponential,
)
from ._ordered import Ordered as Ordered
from ._orthogonal import Orthogonal as Orthogonal
from ._orthogonal import OrthogonalStatic as OrthogonalStatic
from ._orthogonal_map import OrthogonalMap as OrthogonalMap
from ._permutation import Permutation as Permutation
from ._positive import Positive as Positive
from ._positive import PositiveExp as PositiveExp
from ._positive_definite import PositiveDefinite as PositiveDefinite
from ._positive_determinant import (
    PositiveDeterminant as PositiveDeterminant,
)
from ._positive_ordered import PositiveOrdered as PositiveOrdered
from ._positive_semidefinite import (
    PositiveSemidefinite as PositiveSemidefinite,
)
from ._power_spectral_norm import (
    PowerSpectralNorm as PowerSpectralNorm,
)
from ._product import Product as Product
from ._row_stochastic import RowStochastic as RowStochastic
from ._separated import Separated as Separated
from ._simplex import Simplex as Simplex
from ._skew import Skew as Skew
from ._softmax import SimplexSoftmax as SimplexSoftmax
from ._space import Space as Space
from ._special_orthogonal import (
    SpecialOrthogonal as SpecialOrthogonal,
)
from ._spectral_norm import SpectralNorm as SpectralNorm
from ._sphere import Sphere as Sphere
from ._stick_breaking import (
    SimplexStickBreaking as SimplexStickBreaking,
)
from ._sum_to_zero import SumToZero as SumToZero
from ._sum_to_zero import SumToZeroMatrix as SumToZeroMatrix
from ._symmetric import Symmetric as Symmetric
from ._symplectic import Symplectic as Symplectic
from ._tied import Tied as Tied
from ._toeplitz import Toeplitz as Toeplitz
from ._transport import Transport as Transport
from ._triangular import LowerTriangular as LowerTriangular
from ._triangular import UpperTriangular as UpperTriangular
from ._unit_columns import UnitColumns as UnitColumns
from ._unit_determinant import UnitDeterminant as UnitDeterminant
from ._unitary import Unitary as Unitary
from ._unitary import UnitaryStatic as UnitaryStatic
from ._weight_norm import WeightNorm as WeightNorm
from ._weight_norm import WeightNormParts as WeightNormParts

__all__ = [
    "AlmostOrthogonal",
    "Ball",
    "Banded",
    "BlockDiagonal",
    "BoundedCondition",
    "BoundedSingularValues",
    "BoundedSpectrum",
    "Box",
    "Cayley",
    "Chain",
    "CholeskyFactor",
    "Circulant",
    "Constraint",
    "Correlation",
    "CorrelationCholesky",
    "Domain",
    "DoublyStochastic",
    "Exponential",
    "ExponentialStatic",
    "FixedRank",
    "FixedRankStatic",
    "Grassmann",
    "GrassmannStatic",
    "GreaterThan",
    "Householder",
    "Hurwitz",
    "Interval",
    "Invertible",
    "LUStatic",
    "LessThan",
    "LinearSubspace",
    "Lipschitz",
    "LogEuclidean",
    "LowRank",
    "LowerTriangular",
    "Masked",
    "Matricized",
    "MatricizedStatic",
    "MatrixExponential",
    "Ordered",
    "Orthogonal",
    "OrthogonalMap",
    "OrthogonalStatic",
    "Permutation",
    "Positive",
    "PositiveDefinite",
    "PositiveDeterminant",
    "PositiveExp",
    "PositiveOrdered",
    "PositiveSemidefinite",
    "PowerSpectralNorm",
    "Product",
    "RowStochastic",
    "Separated",
    "SignedCayley",
    "Simplex",
    "SimplexSoftmax",
    "SimplexStickBreaking",
    "Skew",
    "Space",
    "SpecialOrthogonal",
    "SpectralNorm",
    "Sphere",
    "SumToZero",
    "SumToZeroMatrix",
    "Symmetric",
    "Symplectic",
    "Tied",
    "Toeplitz",
    "Transport",
    "UnitColumns",
    "UnitDeterminant",
    "Unitary",
    "UnitaryStatic",
    "UpperTriangular",
    "WeightNorm",
    "WeightNormParts",
    "constrain",
]
