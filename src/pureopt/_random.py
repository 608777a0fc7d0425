r"""Random numbers as pure functions of a key.

A key is a 0-d int64 tensor. Number :math:`i` of the stream of a key is a hash of the
two, so there is no state to carry: the numbers vmap, compile, resume and are the same
on every device. The hash is the finalizer of SplitMix64,

.. math::
    x_i = h(\text{key} + (i + 1) \, \gamma(\text{key})), \qquad
    h = s_{31} \circ M_2 \circ s_{27} \circ M_1 \circ s_{30},

where :math:`s_k(z) = z \oplus (z \gg k)` and :math:`M_j` is a multiplication modulo
:math:`2^{64}`. Each key has its own odd :math:`\gamma`, so that two streams cannot be
shifts of one another. Threefry-2x32, the common alternative, costs 120 small kernels
instead of 15 where nothing is compiled: 0.25 ms instead of 0.03 ms for few numbers.
It is a generator for simulation, not for secrets.

References:
    Steele, Lea, Flood (2014), Fast splittable pseudorandom number generators,
    figure 16 (``nextSeed``, ``mix64variant13``) and section 2.4 (a gamma per stream).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pureopt._errors import HyperparameterError, PureoptError
from pureopt._typing import Scalar

# Unsigned constants, written as the int64 with the same bits.
_GOLDEN = 0x9E3779B97F4A7C15 - 2**64  # 2^64 over the golden ratio
_M1 = 0xBF58476D1CE4E5B9 - 2**64  # mix64variant13
_M2 = 0x94D049BB133111EB - 2**64
# Digits of pi: they keep child keys and gammas away from the numbers of the stream.
_FOLD = 0x243F6A8885A308D3
_GAMMA = 0x13198A2E03707344


def key(seed: int, *, device: torch.device | str | None = None) -> Int[Tensor, ""]:
    """A key from a seed; different seeds give different keys.

    Args:
        seed: Any integer that fits into 64 bits with sign.
        device: Where the key, and the numbers drawn from it, live.

    Raises:
        HyperparameterError: If ``seed`` is no such integer.

    Example:
        >>> import pureopt as po
        >>> po.random.key(0)
        tensor(-2152535657050944081)
    """
    if isinstance(seed, Tensor) or not hasattr(seed, "__index__"):
        raise HyperparameterError(
            "key(seed=...)",
            "be an integer",
            f"`{type(seed).__name__}`",
            "A tensor can be hashed into a key with `fold_in(key, data)`.",
        )
    if not -(2**63) <= seed < 2**63:
        raise HyperparameterError("key(seed=...)", "be in [-2^63, 2^63)", str(seed))
    return _mix(torch.full((), int(seed), dtype=torch.int64, device=device) + _GOLDEN)


def split(key: Int[Tensor, "..."], n: int = 2) -> Int[Tensor, "... n"]:
    """``n`` keys with independent streams: entry ``i`` is ``fold_in(key, i)``.

    Use a key once: draw from it, or split it.

    Args:
        key: A key, or a tensor of keys.
        n: How many.

    Raises:
        PureoptError: If ``key`` is not an int64 tensor.

    Example:
        >>> import pureopt as po
        >>> a, b = po.random.split(po.random.key(0))
        >>> bool(a == po.random.fold_in(po.random.key(0), 0)), bool(a == b)
        (True, False)
    """
    _check_key("split", key)
    return fold_in(key[..., None], torch.arange(n, device=key.device))


def fold_in(
    key: Int[Tensor, "..."], data: int | Int[Tensor, "..."]
) -> Int[Tensor, "..."]:
    r"""The child key for ``data``, such as a step: :math:`h(h(k + c) + (d + 1) \gamma)`.

    One to one in ``data`` for a given key, because :math:`h` is invertible.

    Args:
        key: A key, or a tensor of keys.
        data: An integer, or an integer tensor that broadcasts against ``key``.

    Raises:
        PureoptError: If ``key`` is not an int64 tensor, or ``data`` not integer.

    Example:
        >>> import torch
        >>> import pureopt as po
        >>> key = po.random.key(0)
        >>> steps = po.random.fold_in(key, torch.arange(1000))
        >>> steps.unique().numel()
        1000
    """
    _check_key("fold_in", key)
    floating = isinstance(data, Tensor) and (
        data.is_floating_point() or data.is_complex()
    )
    if isinstance(data, float) or floating:
        raise PureoptError(
            "fold_in(data=...)", "be an integer or an integer tensor", _told(data)
        )
    if not isinstance(data, Tensor):
        data = torch.full((), data, dtype=torch.int64, device=key.device)
    return _mix(_mix(key + _FOLD) + (data.long() + 1) * _GOLDEN)


def bits(key: Int[Tensor, "..."], shape: Sequence[int] = ()) -> Int[Tensor, "..."]:
    """Int64 numbers whose 64 bits are all random.

    Args:
        key: A key. A tensor of keys puts its dimensions in front, as vmap does.
        shape: Shape of the result for one key.

    Raises:
        PureoptError: If ``key`` is not an int64 tensor.

    Example:
        >>> import pureopt as po
        >>> key = po.random.key(0)
        >>> short, long = po.random.bits(key, (2,)), po.random.bits(key, (5,))
        >>> bool((short == long[:2]).all())
        True
    """
    _check_key("bits", key)
    gamma = _mix(key ^ _GAMMA) | 1
    counter = torch.arange(1, math.prod(shape) + 1, device=key.device)
    stream = _mix((counter * gamma[..., None]).add_(key[..., None]))
    return stream.reshape(key.shape + tuple(shape))


def uniform(
    key: Int[Tensor, "..."],
    shape: Sequence[int] = (),
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    r"""Uniform numbers in :math:`[0, 1)`: multiples of :math:`2^{-m}`, each as likely.

    :math:`m` is the precision of ``dtype``: 53 bits in float64, 24 in float32, 11 in
    float16, 8 in bfloat16. One is never reached.

    Args:
        key: A key. A tensor of keys puts its dimensions in front, as vmap does.
        shape: Shape of the result for one key.
        dtype: A real floating dtype.

    Raises:
        PureoptError: If ``key`` is not an int64 tensor, or ``dtype`` not floating.

    Example:
        >>> import pureopt as po
        >>> po.random.uniform(po.random.key(0), (3,))
        tensor([0.2545, 0.6004, 0.8594])
    """
    m = _precision(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    # The top m bits with sign, in [-2^(m-1), 2^(m-1)): both operations are exact.
    k = (bits(key, shape) >> (64 - m)).to(wide)
    return (k * 2.0**-m + 0.5).to(dtype)


def normal(
    key: Int[Tensor, "..."],
    shape: Sequence[int] = (),
    *,
    dtype: torch.dtype = torch.float32,
) -> Float[Tensor, "..."]:
    r"""Standard normal numbers by the Box-Muller formula, one hash for each.

    .. math::
        z = \sqrt{-2 \log u} \, \sin(\pi v)

    with :math:`u` in :math:`(0, 1]` from the upper 32 bits of the hash and :math:`v`,
    an odd multiple of :math:`2^{-32}` in :math:`(-1, 1)`, from the lower. The
    distribution is exactly symmetric and ends at 6.66, beyond which lie 3 numbers in
    :math:`10^{11}`. (The inverse error function is 20 times slower once compiled for a
    CPU, and devices agree on it no better: up to the rounding of ``log`` and ``sin``.)

    Args:
        key: A key. A tensor of keys puts its dimensions in front, as vmap does.
        shape: Shape of the result for one key.
        dtype: A real floating dtype.

    Raises:
        PureoptError: If ``key`` is not an int64 tensor, or ``dtype`` not floating.

    References:
        Box, Muller (1958), A note on the generation of random normal deviates, eq. 1.

    Example:
        >>> import pureopt as po
        >>> draws = po.random.normal(po.random.key(0), (10_000,))
        >>> bool(draws.mean().abs() < 0.03), bool((draws.var() - 1).abs() < 0.05)
        (True, True)
    """
    _precision(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    x = bits(key, shape)
    u = (_shifted(x, 32) + 1).to(wide) * 2.0**-32
    v = (2 * (x & 0xFFFFFFFF) + (1 - 2**32)).to(wide) * 2.0**-32
    return (torch.sqrt(-2 * torch.log(u)) * torch.sin(math.pi * v)).to(dtype)


def bernoulli(
    key: Int[Tensor, "..."],
    p: Scalar,
    shape: Sequence[int] = (),
) -> Bool[Tensor, "..."]:
    """Booleans that are true with probability ``p``: ``uniform < p``.

    Args:
        key: A key. A tensor of keys puts its dimensions in front, as vmap does.
        p: Probability in [0, 1], a number or a tensor that broadcasts against the
            result; it counts to 24 bits, as a float64 tensor to 53.
        shape: Shape of the result for one key.

    Raises:
        HyperparameterError: If a number ``p`` is outside [0, 1].
        PureoptError: If ``key`` is not an int64 tensor.

    Example:
        >>> import pureopt as po
        >>> po.random.bernoulli(po.random.key(0), 0.5, (4,))
        tensor([ True, False, False,  True])
    """
    if isinstance(p, Tensor):
        dtype = torch.promote_types(p.dtype, torch.float32)
        return uniform(key, shape, dtype=dtype) < p
    if not 0 <= p <= 1:
        raise HyperparameterError("bernoulli(p=...)", "be in [0, 1]", repr(p))
    return uniform(key, shape) < p


def _mix(z: Tensor) -> Tensor:
    """The finalizer ``mix64variant13`` of a temporary, which it overwrites.

    Without a compiler the passes over memory are the cost, and fresh results would take
    2.5 times as long. The shifts are logical, so they are masked.
    """
    z = z.bitwise_xor_(_shifted(z, 30)).mul_(_M1)
    z = z.bitwise_xor_(_shifted(z, 27)).mul_(_M2)
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(z: Tensor, k: int) -> Tensor:
    return (z >> k).bitwise_and_((1 << (64 - k)) - 1)


def _precision(dtype: torch.dtype) -> int:
    """Bits of the significand, the implicit one included."""
    if not dtype.is_floating_point:
        raise PureoptError("dtype", "be a real floating dtype", str(dtype))
    return 1 - round(math.log2(torch.finfo(dtype).eps))


def _check_key(name: str, key: Tensor) -> None:
    if isinstance(key, Tensor) and key.dtype == torch.int64:  # pyright: ignore[reportUnnecessaryIsInstance]
        return
    raise PureoptError(
        f"{name}(key=...)",
        "be an int64 tensor",
        _told(key),
        "Make one with `pureopt.random.key(seed)`.",
    )


def _told(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of dtype {value.dtype}"
    return f"`{type(value).__name__}`"
