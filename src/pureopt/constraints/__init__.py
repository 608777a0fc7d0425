"""Constraints: maps from free numbers onto sets, each with a tested right inverse."""

from pureopt.constraints._almost_orthogonal import AlmostOrthogonal as AlmostOrthogonal
from pureopt.constraints._ball import Ball as Ball
from pureopt.constraints._banded import Banded as Banded
from pureopt.constraints._base import Constraint as Constraint
from pureopt.constraints._block_diagonal import BlockDiagonal as BlockDiagonal
from pureopt.constraints._bounded_condition import BoundedCondition as BoundedCondition
from pureopt.constraints._bounded_singular_values import (
    BoundedSingularValues as BoundedSingularValues,
)
from pureopt.constraints._bounded_spectrum import BoundedSpectrum as BoundedSpectrum
from pureopt.constraints._box import Box as Box
from pureopt.constraints._cayley import Cayley as Cayley
from pureopt.constraints._cayley import SignedCayley as SignedCayley
from pureopt.constraints._chain import Chain as Chain
from pureopt.constraints._cholesky_factor import CholeskyFactor as CholeskyFactor
from pureopt.constraints._circulant import Circulant as Circulant
from pureopt.constraints._constrain import constrain as constrain
from pureopt.constraints._correlation import Correlation as Correlation
from pureopt.constraints._correlation_cholesky import (
    CorrelationCholesky as CorrelationCholesky,
)
from pureopt.constraints._domains import Domain as Domain
from pureopt.constraints._doubly_stochastic import DoublyStochastic as DoublyStochastic
from pureopt.constraints._exponential import Exponential as Exponential
from pureopt.constraints._fixed_rank import FixedRank as FixedRank
from pureopt.constraints._fixed_rank import FixedRankStatic as FixedRankStatic
from pureopt.constraints._grassmann import Grassmann as Grassmann
from pureopt.constraints._grassmann import GrassmannStatic as GrassmannStatic
from pureopt.constraints._half_line import GreaterThan as GreaterThan
from pureopt.constraints._half_line import LessThan as LessThan
from pureopt.constraints._householder import Householder as Householder
from pureopt.constraints._hurwitz import Hurwitz as Hurwitz
from pureopt.constraints._interval import Interval as Interval
from pureopt.constraints._invertible import Invertible as Invertible
from pureopt.constraints._linear import LinearSubspace as LinearSubspace
from pureopt.constraints._lipschitz import Lipschitz as Lipschitz
from pureopt.constraints._log_euclidean import LogEuclidean as LogEuclidean
from pureopt.constraints._low_rank import LowRank as LowRank
from pureopt.constraints._lu_chart import LUStatic as LUStatic
from pureopt.constraints._masked import Masked as Masked
from pureopt.constraints._matricized import Matricized as Matricized
from pureopt.constraints._matricized import MatricizedStatic as MatricizedStatic
from pureopt.constraints._matrix_exponential import (
    ExponentialStatic as ExponentialStatic,
)
from pureopt.constraints._matrix_exponential import (
    MatrixExponential as MatrixExponential,
)
from pureopt.constraints._ordered import Ordered as Ordered
from pureopt.constraints._orthogonal import Orthogonal as Orthogonal
from pureopt.constraints._orthogonal import OrthogonalStatic as OrthogonalStatic
from pureopt.constraints._orthogonal_map import OrthogonalMap as OrthogonalMap
from pureopt.constraints._permutation import Permutation as Permutation
from pureopt.constraints._positive import Positive as Positive
from pureopt.constraints._positive import PositiveExp as PositiveExp
from pureopt.constraints._positive_definite import PositiveDefinite as PositiveDefinite
from pureopt.constraints._positive_determinant import (
    PositiveDeterminant as PositiveDeterminant,
)
from pureopt.constraints._positive_ordered import PositiveOrdered as PositiveOrdered
from pureopt.constraints._positive_semidefinite import (
    PositiveSemidefinite as PositiveSemidefinite,
)
from pureopt.constraints._power_spectral_norm import (
    PowerSpectralNorm as PowerSpectralNorm,
)
from pureopt.constraints._product import Product as Product
from pureopt.constraints._row_stochastic import RowStochastic as RowStochastic
from pureopt.constraints._separated import Separated as Separated
from pureopt.constraints._simplex import Simplex as Simplex
from pureopt.constraints._skew import Skew as Skew
from pureopt.constraints._softmax import SimplexSoftmax as SimplexSoftmax
from pureopt.constraints._space import Space as Space
from pureopt.constraints._special_orthogonal import (
    SpecialOrthogonal as SpecialOrthogonal,
)
from pureopt.constraints._spectral_norm import SpectralNorm as SpectralNorm
from pureopt.constraints._sphere import Sphere as Sphere
from pureopt.constraints._stick_breaking import (
    SimplexStickBreaking as SimplexStickBreaking,
)
from pureopt.constraints._sum_to_zero import SumToZero as SumToZero
from pureopt.constraints._sum_to_zero import SumToZeroMatrix as SumToZeroMatrix
from pureopt.constraints._symmetric import Symmetric as Symmetric
from pureopt.constraints._symplectic import Symplectic as Symplectic
from pureopt.constraints._tied import Tied as Tied
from pureopt.constraints._toeplitz import Toeplitz as Toeplitz
from pureopt.constraints._transport import Transport as Transport
from pureopt.constraints._triangular import LowerTriangular as LowerTriangular
from pureopt.constraints._triangular import UpperTriangular as UpperTriangular
from pureopt.constraints._unit_columns import UnitColumns as UnitColumns
from pureopt.constraints._unit_determinant import UnitDeterminant as UnitDeterminant
from pureopt.constraints._unitary import Unitary as Unitary
from pureopt.constraints._unitary import UnitaryStatic as UnitaryStatic
from pureopt.constraints._weight_norm import WeightNorm as WeightNorm
from pureopt.constraints._weight_norm import WeightNormParts as WeightNormParts

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
