"""Dense matrices as linear operators, and estimators over many keys."""

from __future__ import annotations

import numpy as np
import torch
from torch.func import vmap

import pureopt as po
from tests.derivatives.row import randn

D = po.derivatives
KEY = po.random.key(0)
TRACES = [D.trace_hutchinson, D.trace_hutchpp, D.trace_xtrace]


def with_eigenvalues(values, seed=0, dtype=torch.float64):
    """A dense matrix with these eigenvalues and random eigenvectors."""
    values = torch.as_tensor(values, dtype=torch.float64)
    q = torch.linalg.qr(randn(len(values), len(values), seed=seed))[0]
    return ((q * values) @ q.mT).to(dtype)


def times(a):
    return lambda v: a @ v


def dense_function(a, g):
    values, vectors = np.linalg.eigh(a.numpy())
    return torch.from_numpy((vectors * g(values)) @ vectors.T)


def over_keys(estimator, a, keys, **settings):
    """The values for many keys at once."""

    def one(key):
        return estimator(times(a), a[0], key=key, **settings)

    return vmap(one)(po.random.split(po.random.key(11), keys))
