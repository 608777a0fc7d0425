"""What a type checker tells a user whose parameters are a NamedTuple or one tensor."""

from typing import NamedTuple, assert_type

import torch
from torch import Tensor

import pureopt as po


class Line(NamedTuple):
    slope: Tensor
    intercept: Tensor


line = Line(torch.ones(()), torch.zeros(()))
sgd = po.SGD(lr=0.1, momentum=0.9)
line, state = sgd.step(line, sgd.init(line), line)
assert_type(line, Line)
assert_type(line.slope, Tensor)

matrix = torch.eye(3)
ema = po.EMA(po.Adam(lr=torch.tensor(0.1)))
matrix, ema_state = ema.step(matrix, ema.init(matrix), matrix)
assert_type(matrix, Tensor)
assert_type(ema.eval_params(matrix, ema_state), Tensor)

solution = po.minimize(lambda x: x.square().sum(), matrix)
assert_type(solution.params, Tensor)


def halving(step: Tensor) -> Tensor:
    return torch.pow(0.5, step)


scheduled = po.SGD(lr=halving)
assert_type(scheduled, po.SGD)
