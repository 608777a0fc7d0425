"""Solvers: loops over a transform that know when to stop."""

from __future__ import annotations

from pureopt.solvers._minimize import minimize as minimize

__all__ = ["minimize"]
