"""Bridges to other libraries' ways of doing the same."""

from pureopt.interop import torch as torch

__all__ = ["torch"]
