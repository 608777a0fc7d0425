"""``audit``: every nesting of derivatives against differences of values.

``_differences`` makes the reference, ``_words`` compares the nestings with it, ``_calls``
takes a function apart into the calls it makes, and ``_audit`` puts them together.
"""

from pureopt.derivatives._auditing._audit import Audit as Audit
from pureopt.derivatives._auditing._audit import Culprit as Culprit
from pureopt.derivatives._auditing._audit import audit as audit
from pureopt.derivatives._auditing._words import Word as Word

__all__ = ["Audit", "Culprit", "Word", "audit"]
