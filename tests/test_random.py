"""Keys and the numbers drawn from them."""

from __future__ import annotations

import math

import mpmath
import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.func import vmap

import pureopt as po
from pureopt import _random

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16]
SEEDS = st.integers(-(2**63), 2**63 - 1)
# Every test of a distribution has a fixed seed and asks for p > 1e-4: of the 40 or so
# here, a sound generator would fail one in 250 choices of the seeds.
P_MIN = 1e-4


def unsigned(x):
    return [int(v) % 2**64 for v in x.reshape(-1)]


def mix(z):
    """The finalizer in integers of any size, masked: an independent reading of it."""
    mask = 2**64 - 1
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_hash_is_splitmix64():
    # The first outputs of java.util.SplittableRandom's generator for seed 1234567.
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    states = torch.tensor(1234567) + torch.arange(1, 6) * _random._GOLDEN
    assert unsigned(_random._mix(states)) == known


@given(SEEDS, st.integers(-(2**62), 2**62))
def test_every_word_agrees_with_integers_of_any_size(seed, data):
    golden = 0x9E3779B97F4A7C15
    key = mix((seed + golden) % 2**64)
    assert unsigned(po.random.key(seed)) == [key]
    child = mix((mix((key + _random._FOLD) % 2**64) + (data + 1) * golden) % 2**64)
    assert unsigned(po.random.fold_in(po.random.key(seed), data)) == [child]
    gamma = mix(key ^ _random._GAMMA) | 1
    stream = [mix((key + i * gamma) % 2**64) for i in range(1, 8)]
    assert unsigned(po.random.bits(po.random.key(seed), (7,))) == stream


@given(SEEDS)
def test_numbers_are_the_stated_functions_of_the_bits(seed):
    key = po.random.key(seed)
    words = unsigned(po.random.bits(key, (5,)))
    # The sign bit is flipped: uniform numbers rise with the signed word.
    want = [((w ^ 2**63) >> 11) * 2.0**-53 for w in words]
    assert po.random.uniform(key, (5,), dtype=torch.float64).tolist() == want
    normal = po.random.normal(key, (5,), dtype=torch.float64)
    for z, w in zip(normal.tolist(), words, strict=True):
        u = mpmath.mpf((w >> 32) + 1) / 2**32
        v = mpmath.mpf(2 * (w & 0xFFFFFFFF) + 1 - 2**32) / 2**32
        exact = mpmath.sqrt(-2 * mpmath.log(u)) * mpmath.sin(mpmath.pi * v)
        # Some ulps from log, sqrt, sin and products; near v = +-1 the rounding of pi v,
        # 2^-52 absolute, is multiplied by at most 6.66.
        assert abs(z - exact) < 16 * 2.0**-52


@given(SEEDS, st.integers(0, 5), st.integers(0, 5))
def test_streams_and_splits_have_stable_prefixes(seed, short, more):
    key = po.random.key(seed)
    assert torch.equal(
        po.random.bits(key, (short,)), po.random.bits(key, (short + more,))[:short]
    )
    assert torch.equal(
        po.random.split(key, short), po.random.split(key, short + more)[:short]
    )


def draws(key):
    first, second = po.random.split(key)
    return (
        po.random.uniform(first, (3, 2)),
        po.random.normal(second, (5,), dtype=torch.float64),
        po.random.bernoulli(second, 0.3, (7,)),
        po.random.fold_in(first, 5),
        po.random.bits(first),
    )


def test_lanes_are_the_loop_under_vmap_and_by_shape():
    keys = po.random.split(po.random.key(3), 4)
    loop = [torch.stack(rows) for rows in zip(*map(draws, keys), strict=True)]
    for lanes, rows in zip(vmap(draws)(keys), loop, strict=True):
        assert torch.equal(lanes, rows)
    grid = keys.reshape(2, 2)
    assert torch.equal(
        po.random.normal(grid, (6,)),
        vmap(vmap(lambda k: po.random.normal(k, (6,))))(grid),
    )
    assert torch.equal(
        po.random.split(grid, 3), vmap(vmap(lambda k: po.random.split(k, 3)))(grid)
    )


@pytest.mark.compile
@pytest.mark.parametrize("lanes", [False, True])
def test_compiled_numbers_are_the_eager_ones(lanes):
    fn = vmap(draws) if lanes else draws
    key = po.random.key(7)
    key = po.random.split(key, 3) if lanes else key
    compiled = torch.compile(fn, fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(key), fn(key), strict=True):
        assert torch.equal(got, want)


@pytest.mark.compile
@pytest.mark.slow
def test_inductor_wraps_integers_as_eager_does():
    def fn(key):
        numbers = po.random.bits(key, (37,)), po.random.uniform(key, (37,))
        return *numbers, po.random.normal(key, (37,), dtype=torch.float64)

    key = po.random.key(11)
    got, want = torch.compile(fn, fullgraph=True)(key), fn(key)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])
    # log and sin of another library, each within a few ulps, times at most 6.66.
    torch.testing.assert_close(got[2], want[2], rtol=0, atol=16 * 2.0**-52)


def test_numbers_follow_the_key_to_its_device(device):
    here = draws(po.random.key(5))
    there = draws(po.random.key(5, device=device))
    for a, b in zip(here, there, strict=True):
        assert b.device.type == device.type
        if a.is_floating_point():
            # As between compilers: log and sin differ in the last places.
            torch.testing.assert_close(b.cpu(), a, rtol=0, atol=1e-6)
        else:
            assert torch.equal(b.cpu(), a)
    for meta, a in zip(draws(po.random.key(5, device="meta")), here, strict=True):
        assert (meta.shape, meta.dtype, meta.device.type) == (a.shape, a.dtype, "meta")


def test_no_draw_touches_the_global_generator_or_its_key():
    state, key = torch.get_rng_state(), po.random.key(0)
    before, version = key.clone(), key._version
    draws(key)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(key, before)
    assert key._version == version


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_numbers_lie_on_the_lattice_below_one(dtype):
    m = {torch.float64: 53, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}
    x = po.random.uniform(po.random.key(1), (200_000,), dtype=dtype)
    assert x.dtype == dtype
    assert x.min() >= 0
    assert x.max() <= 1 - 2.0 ** -m[dtype]
    lattice = x.double() * 2.0 ** m[dtype]
    assert torch.equal(lattice, lattice.round())
    if m[dtype] <= 11:
        cells = x.double().mul(2 ** m[dtype]).long().bincount(minlength=2 ** m[dtype])
        assert scipy.stats.chisquare(cells.numpy()).pvalue > P_MIN


@pytest.mark.parametrize("seed", [0, 1, -1, 2**62])
def test_uniform_and_normal_pass_kolmogorov_smirnov(seed):
    first, second = po.random.split(po.random.key(seed))
    uniform = po.random.uniform(first, (50_000,), dtype=torch.float64)
    assert scipy.stats.kstest(uniform.numpy(), "uniform").pvalue > P_MIN
    normal = po.random.normal(second, (50_000,), dtype=torch.float64)
    assert scipy.stats.kstest(normal.numpy(), "norm").pvalue > P_MIN


@pytest.mark.parametrize("dtype", FLOATS)
def test_normal_moments(dtype):
    n = 200_000
    x = po.random.normal(po.random.key(2), (n,), dtype=dtype).double()
    assert x.isfinite().all()
    # Standard errors of the first four moments of n normal numbers: 1, sqrt 2, sqrt 15,
    # sqrt 96 over sqrt n. 4.5 of them; rounding to bfloat16 adds 2^-9 x to each number.
    for power, (moment, spread) in enumerate(
        [(0, 1), (1, 2), (0, 15), (3, 96)], start=1
    ):
        error = abs(x.pow(power).mean().item() - moment)
        assert error < 4.5 * math.sqrt(spread / n) + 2.0**-16 * power


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_normal_distribution_is_symmetric_and_finite(monkeypatch, dtype):
    high = torch.tensor([0, 1, 2**20, 2**31, 2**32 - 1])[:, None]
    low = torch.tensor([0, 1, 12345, 2**31 - 1])
    # A word whose lower half is reflected gives the opposite number.
    words = [(high << 32) | low, (high << 32) | (2**32 - 1 - low)]
    pair = []
    for word in words:
        monkeypatch.setattr(_random, "bits", lambda key, shape, word=word: word)
        pair.append(po.random.normal(po.random.key(0), (5, 4), dtype=dtype))
    assert torch.equal(pair[0], -pair[1])
    assert pair[0].isfinite().all()
    # sqrt(64 log 2) = 6.66, and no draw passes it but by rounding.
    assert pair[0].abs().max() <= math.sqrt(64 * math.log(2)) * 1.01


def test_bytes_are_equally_frequent():
    words = po.random.bits(po.random.key(4), (50_000,)).numpy()
    for place, column in enumerate(words.view(np.uint8).reshape(-1, 8).T):
        counts = np.bincount(column, minlength=256)
        assert scipy.stats.chisquare(counts).pvalue > P_MIN, f"byte {place}"


def test_one_bit_of_the_key_or_the_counter_flips_half_of_the_number():
    keys = po.random.split(po.random.key(6), 256)
    flips = torch.tensor([1 << b if b < 63 else -(2**63) for b in range(64)])
    base = po.random.bits(keys)
    flipped = po.random.bits(keys[:, None] ^ flips)
    children = po.random.fold_in(keys[:, None], flips)
    for change in (
        flipped ^ base[:, None],
        children ^ po.random.fold_in(keys, 0)[:, None],
    ):
        ones = torch.stack([(change >> b) & 1 for b in range(64)], -1).double().mean(0)
        # 4096 means of 256 fair bits each: 5 standard deviations of 1 / (2 * 16).
        assert (ones - 0.5).abs().max() < 5 / 32


def correlation(a, b):
    return (a * b).mean().item() * math.sqrt(a.numel())


def test_neighbors_in_and_between_streams_are_uncorrelated():
    n = 100_000
    key = po.random.key(8)
    x = po.random.normal(key, (n,))
    # Products of two independent normals have mean 0 and variance 1, so a mean of n has
    # the standard error 1 / sqrt n: 4.5 of them.
    for lag in (1, 2, 3, 7, 64, 1024):
        assert abs(correlation(x[lag:], x[:-lag])) < 4.5
    others = [*po.random.split(key, 3), po.random.key(9), po.random.fold_in(key, 10**9)]
    for other in others:
        assert abs(correlation(x, po.random.normal(other, (n,)))) < 4.5
    across = vmap(po.random.normal)(po.random.split(key, n))
    assert abs(correlation(across[1:], across[:-1])) < 4.5
    assert scipy.stats.kstest(across.double().numpy(), "norm").pvalue > P_MIN


def test_children_are_distinct_from_one_another_and_from_the_stream():
    key = po.random.key(12)
    n = 100_000
    children, stream = po.random.split(key, n), po.random.bits(key, (n,))
    grandchildren = po.random.fold_in(children, 0)
    everything = torch.cat([children, stream, grandchildren, key[None]])
    # 3 * 10^5 words of 64 bits: two agree by chance with probability 2.4e-9.
    assert everything.unique().numel() == 3 * n + 1


@pytest.mark.parametrize("p", [0.0, 1e-3, 0.25, 0.5, 0.9, 1.0])
def test_bernoulli_has_its_mean(p):
    n = 100_000
    key = po.random.key(13)
    draw = po.random.bernoulli(key, p, (n,))
    assert draw.dtype == torch.bool
    # 4.5 standard deviations; none for 0 and 1, which are exact.
    assert abs(draw.double().mean() - p) <= 4.5 * math.sqrt(p * (1 - p) / n)
    assert torch.equal(po.random.bernoulli(key, torch.tensor(p), (n,)), draw)


def test_bernoulli_takes_a_tensor_of_probabilities():
    p = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    draw = po.random.bernoulli(po.random.key(14), p, (1000, 3))
    assert not draw[:, 0].any()
    assert draw[:, 2].all()
    # 4.5 standard deviations of sqrt(1000) / 2.
    assert abs(int(draw[:, 1].sum()) - 500) < 72


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: po.random.key(2**63), "must be in [-2^63, 2^63), got 9223372036854775808"),
        (lambda: po.random.key(1.5), "must be an integer, got `float`"),
        (lambda: po.random.key(torch.tensor(1)), "fold_in"),
        (lambda: po.random.uniform(3), "`bits(key=...)` must be an int64 tensor, got `int`"),
        (lambda: po.random.normal(torch.tensor(1.0)), "a tensor of dtype torch.float32"),
        (lambda: po.random.split(0), "pureopt.random.key(seed)"),
        (lambda: po.random.fold_in(po.random.key(0), 0.5), "`fold_in(data=...)`"),
        (lambda: po.random.fold_in(po.random.key(0), torch.tensor(0.5)), "float32"),
        (
            lambda: po.random.uniform(po.random.key(0), dtype=torch.int64),
            "`dtype` must be a real floating dtype, got torch.int64",
        ),
        (
            lambda: po.random.normal(po.random.key(0), dtype=torch.complex64),
            "real floating",
        ),
        (lambda: po.random.bernoulli(po.random.key(0), 1.5), "be in [0, 1], got 1.5"),
        (lambda: po.random.bernoulli(po.random.key(0), math.nan), "got nan"),
    ],
)  # fmt: skip
def test_wrong_input_is_told(call, words):
    with pytest.raises(po.PureoptError) as caught:
        call()
    assert words in str(caught.value)
