"""What a type checker tells a user who trains a constrained module."""

from typing import assert_type

import torch
from torch import Tensor, nn

import pureopt as po
from pureopt.constraints import Orthogonal

model = nn.Linear(4, 4)
nn.init.orthogonal_(model.weight)
apply, params, buffers = po.functionalize(model)
assert_type(params, dict[str, Tensor])
assert_type(buffers, dict[str, Tensor])

space = po.constrain(params, {"weight": Orthogonal()})


def loss(params: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
    out, _ = apply(params, buffers, x)
    return torch.nn.functional.mse_loss(out, y)


step = po.make_step(loss, po.SGD(lr=0.1), space=space)
assert_type(step, po.Step)
carry = step.init(params)
assert_type(carry, po.Carry)
carry, metrics = step(carry, torch.ones(2, 4), torch.ones(2, 4))
