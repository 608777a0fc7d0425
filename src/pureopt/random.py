"""Random numbers as pure functions of a key.

Example:
    >>> import torch
    >>> import pureopt as po
    >>> key = po.random.key(0)
    >>> lanes = torch.func.vmap(lambda k: po.random.normal(k, (3,)))
    >>> noise = lanes(po.random.split(key, 2))
    >>> bool((noise[1] == po.random.normal(po.random.split(key, 2)[1], (3,))).all())
    True
"""

from pureopt._random import bernoulli as bernoulli
from pureopt._random import bits as bits
from pureopt._random import fold_in as fold_in
from pureopt._random import key as key
from pureopt._random import normal as normal
from pureopt._random import split as split
from pureopt._random import uniform as uniform

__all__ = ["bernoulli", "bits", "fold_in", "key", "normal", "split", "uniform"]
