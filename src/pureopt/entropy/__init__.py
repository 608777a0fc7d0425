"""Entropies, in nats."""

from __future__ import annotations

from pureopt.entropy._categorical import categorical as categorical

__all__ = ["categorical"]
