"""Where Taylor mode takes oneDNN's kernel, and where it leaves a product to torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from pureopt.derivatives import laplacian
from pureopt.derivatives._jets import _rows
from tests.derivatives.kernel_case import assert_close, drawn, net

pytestmark = [
    pytest.mark.skipif(
        not _rows._has_kernel(), reason="this build of torch has no oneDNN"
    ),
    pytest.mark.usefixtures("anywhere", "one_thread"),
]


UNUSED = _rows._leaves_instructions_unused.__wrapped__


@pytest.fixture
def anywhere(monkeypatch):
    """The kernel is taken for any processor, where the product is worth it."""
    monkeypatch.setattr(_rows, "_leaves_instructions_unused", lambda: True)


LARGE = 1 << 12


def large(dtype=torch.float32, device="cpu"):
    return (
        torch.ones(LARGE, 256, dtype=dtype, device=device),
        torch.ones(64, 256, dtype=dtype, device=device),
    )


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_by_size():
    x, w = large()
    assert _rows._takes_onednn(x, w)
    assert not _rows._takes_onednn(x[: LARGE // 4], w)
    assert _rows._takes_onednn(x[: LARGE // 2], nn.Parameter(w))
    torch.set_num_threads(2)
    assert _rows._takes_onednn(x, w)
    assert not _rows._takes_onednn(x[: LARGE // 2], w)


def test_not_by_few_rows_or_columns():
    x, w = large()
    assert _rows._takes_onednn(w[:8], x.expand(8, *x.shape).flatten(0, 1))
    assert not _rows._takes_onednn(w[:7], x.expand(8, *x.shape).flatten(0, 1))
    assert _rows._takes_onednn(x.expand(8, *x.shape), w[:8])
    assert not _rows._takes_onednn(x.expand(16, *x.shape), w[:7])


def test_by_all_lanes_together():
    x, w = large()
    seen = []

    def ask(x):
        seen.append(_rows._takes_onednn(x, w))
        return x

    vmap(ask)(x.unflatten(0, (-1, 8)))
    vmap(ask)(x)
    vmap(ask)(x[: LARGE // 4])
    assert seen == [True, True, False]


def test_not_where_each_lane_has_its_matrix():
    x, w = large()
    seen = []

    def ask(w):
        seen.append(_rows._takes_onednn(x, w))
        return grad(lambda w: seen.append(_rows._takes_onednn(x, w)) or w.sum())(w)

    vmap(ask)(w.expand(2, 64, 256))
    assert seen == [False, False]


def test_by_dtype_device_and_layout():
    assert not _rows._takes_onednn(*large(torch.float64))
    assert not _rows._takes_onednn(*large(torch.bfloat16))
    assert not _rows._takes_onednn(*large(device="meta"))
    x, w = large()
    assert not _rows._takes_onednn(x, w.to_sparse())
    assert not _rows._takes_onednn(x, w.double())
    assert not _rows._takes_onednn(x.double(), w)


def test_errors_are_torch_s():
    x, w = large()
    for wrong in (w[:, :-1], w[0], w[None], w.new_ones(())):
        assert not _rows._takes_onednn(x, wrong)
    assert not _rows._takes_onednn(x[0, 0], w[0])
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        laplacian(lambda x: F.linear(x.sin(), w[:, :-1]).sum())(x[0])


def test_not_where_others_watch_or_convert():
    class Watches(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Records(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    class Special(Tensor):
        pass

    x, w = large()
    for mode in (Watches(), Records(), torch.autocast("cpu")):
        with mode:
            assert not _rows._takes_onednn(x, w)
    special = x.as_subclass(Special)
    assert not _rows._takes_onednn(x, w.as_subclass(Special))
    assert not _rows._takes_onednn(special, w)
    seen = []
    vmap(lambda x: seen.append(_rows._takes_onednn(x, w)) or x)(special)
    grad(lambda x: seen.append(_rows._takes_onednn(x, w)) or x.sum())(special)
    assert seen == [False, False]
    assert _rows._takes_onednn(x, w)


def test_not_where_it_is_switched_off(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert not _rows._takes_onednn(*large())


def test_what_records_a_graph_records_torch_s():
    x, w = large()
    seen = []

    def ask(x):
        seen.append(_rows._takes_onednn(x, w))
        return F.linear(x, w)

    torch.func.functionalize(ask)(x)
    torch.jit.trace(ask, (x,), check_trace=False)
    make_fx(ask)(x)
    assert seen
    assert not any(seen)


def test_a_network_of_that_size(monkeypatch):
    """Unforced: all lanes of all directions; compiled, the compiler chooses."""
    taken = []
    kernel = _rows._multiplied
    monkeypatch.setattr(
        _rows, "_multiplied", lambda *args: taken.append(1) or kernel(*args)
    )
    x = drawn(64, 16) / 4
    weights = [drawn(256, 16) / 4, drawn(256, 256, seed=1) / 16, drawn(256, seed=2)]
    lap = vmap(laplacian(net(weights)))
    got = lap(x)
    assert taken
    want = vmap(laplacian(net([w.double() for w in weights])))(x.double())
    # As many products in each number; the layers are scaled by their widths.
    assert_close(got, want, 256)
    taken.clear()
    compiled = torch.compile(lap, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), want, 256)
    assert not taken


@pytest.mark.parametrize(
    ("capability", "maker", "has_mkl", "has_kernel", "unused"),
    [
        ("AVX512", "AuthenticAMD", True, True, True),
        ("AVX512", "GenuineIntel", True, True, False),
        ("AVX2", "AuthenticAMD", True, True, False),
        ("DEFAULT", "AuthenticAMD", True, True, False),
        ("AVX512", "AuthenticAMD", False, True, False),
        ("AVX512", "AuthenticAMD", True, False, False),
    ],
)
def test_the_processor_decides(
    monkeypatch, capability, maker, has_mkl, has_kernel, unused
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: has_mkl)
    monkeypatch.setattr(_rows, "_has_kernel", lambda: has_kernel)
    monkeypatch.setattr(_rows, "_processor", lambda: f"vendor_id : {maker}")
    assert UNUSED() == unused
    monkeypatch.setattr(_rows, "_leaves_instructions_unused", lambda: unused)
    assert (
        _rows._takes_onednn(*(t.expand(16, *t.shape).flatten(0, 1) for t in large()))
        == unused
    )


def test_a_processor_that_tells_nothing_is_unknown(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(_rows.Path, "read_text", missing)
    assert _rows._processor() == ""


def test_a_gradient_of_a_laplacian_is_recorded_with_symbols_for_shapes():
    slope = grad(laplacian(lambda x: torch.cat([x, x]).pow(4).sum()))
    x = torch.tensor([0.1, 0.5, 0.9])
    recorded = make_fx(slope, tracing_mode="symbolic")(x)
    torch.testing.assert_close(recorded(x), 48 * x, rtol=1e-6, atol=0)
