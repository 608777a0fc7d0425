"""Every operator on a function at a point, and what its errors must be like."""

from __future__ import annotations

import re

import pytest

import pureopt as po
from tests.derivatives.row import randn

D = po.derivatives
KEY = po.random.key(0)


def said(error):
    """The message, which must have four parts and none of torch's words."""
    text = str(error.value)
    assert len(error.value.args) == 4
    assert not re.search(r"functorch|vmap:|aten::|Tracking|github|at::", text)
    return text


# Every operator on one function, at x, in a direction like x.
SCALAR = {
    "hvp": D.hvp,
    "vhp": D.vhp,
    "third_order_product": lambda f, x, v: D.third_order_product(f, x, v, v),
    "hessian_diag": lambda f, x, _: D.hessian_diag(f)(x),
    "hessian_diag_estimate": lambda f, x, _: D.hessian_diag_estimate(
        f, x, key=KEY, samples=2
    ),
    "empirical_fisher_vp": lambda f, x, v: D.empirical_fisher_vp(
        lambda p, s: f(p), x, (randn(2),), v
    ),
    "ggnvp": lambda f, x, v: D.ggnvp(lambda x: x, f, x, v),
}
ARRAYS = {
    "jacobian": lambda f, x, _: D.jacobian(f)(x),
    "hessian": lambda f, x, _: D.hessian(f)(x),
    "fisher_vp": lambda f, x, v: D.fisher_vp(f, x, v, likelihood=D.Gaussian()),
}
OPERATORS = SCALAR | ARRAYS


def over(operators):
    return pytest.mark.parametrize(
        ("name", "operator"), operators.items(), ids=operators
    )


X = randn(3)
