"""What a type checker tells a user whose parameters are a dict of tensors."""

from typing import assert_type

import torch
from torch import Tensor

import pureopt as po


def loss(params: dict[str, Tensor], target: Tensor) -> Tensor:
    return (params["w"] - target).square().sum()


params = {"w": torch.zeros(3)}
adam = po.ClipByGlobalNorm(1.0) >> po.AdamW(lr=1e-3)
assert_type(adam, po.Transform)
state = adam.init(params)
grads = torch.func.grad(loss)(params, torch.ones(3))
params, state = adam.step(params, state, grads)
assert_type(params, dict[str, Tensor])
assert_type(adam.eval_params(params, state), dict[str, Tensor])

solution = po.minimize(loss, params, po.LBFGS(), args=(torch.ones(3),))
assert_type(solution, po.Solution[dict[str, Tensor]])
assert_type(solution.params, dict[str, Tensor])
assert_type(solution.value, Tensor)
