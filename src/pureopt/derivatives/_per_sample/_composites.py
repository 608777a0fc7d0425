"""Functions with several parameters, as compositions of operations that have rules.

They run under the mode, so that their parts are seen one by one. Recurrent layers and
cells are such compositions already: the loss runs unrolled.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.nn import functional as F

from pureopt.derivatives._exactness._bodies import BODIES

COMPOSITES: dict[Callable[..., Any], Callable[..., Any]] = {
    F.multi_head_attention_forward: BODIES[F.multi_head_attention_forward],
}
