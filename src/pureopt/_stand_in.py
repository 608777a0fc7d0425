"""What a function may be given in the place of a tensor."""

from __future__ import annotations


class StandIn:
    """Knows the functions of torch; no transform of ``torch.func`` takes it."""

    __slots__ = ()
