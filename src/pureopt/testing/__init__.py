"""Tools to test constraints of your own."""

from pureopt.testing._cases import Case as Case
from pureopt.testing._cases import Measured as Measured
from pureopt.testing._cases import Probe as Probe
from pureopt.testing._check import ConstraintReport as ConstraintReport
from pureopt.testing._check import Finding as Finding
from pureopt.testing._check import Invariant as Invariant
from pureopt.testing._check import check_constraint as check_constraint

__all__ = [
    "Case",
    "ConstraintReport",
    "Finding",
    "Invariant",
    "Measured",
    "Probe",
    "check_constraint",
]
