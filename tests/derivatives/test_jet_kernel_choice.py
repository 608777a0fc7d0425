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

pytestmark = pytest.mark.skipif(
    not _rows._has_kernel(), reason="this build of torch has no oneDNN"
)


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


@pytest.mark.usefixtures("anywhere")
class TestWhereItIsTaken:
    """At one thread from 2^25 multiplications on, in what the kernel knows."""

    @pytest.fixture(autouse=True)
    def one_thread(self):
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        yield
        torch.set_num_threads(before)

    def test_by_size(self):
        x, w = large()
        assert _rows._gains(x, w)
        assert not _rows._gains(x[: LARGE // 4], w)
        assert _rows._gains(x[: LARGE // 2], nn.Parameter(w))
        torch.set_num_threads(2)
        assert _rows._gains(x, w)
        assert not _rows._gains(x[: LARGE // 2], w)

    def test_not_by_few_rows_or_columns(self):
        x, w = large()
        assert _rows._gains(w[:8], x.expand(8, *x.shape).flatten(0, 1))
        assert not _rows._gains(w[:7], x.expand(8, *x.shape).flatten(0, 1))
        assert _rows._gains(x.expand(8, *x.shape), w[:8])
        assert not _rows._gains(x.expand(16, *x.shape), w[:7])

    def test_by_all_lanes_together(self):
        x, w = large()
        seen = []

        def ask(x):
            seen.append(_rows._gains(x, w))
            return x

        vmap(ask)(x.unflatten(0, (-1, 8)))
        vmap(ask)(x)
        vmap(ask)(x[: LARGE // 4])
        assert seen == [True, True, False]

    def test_by_dtype_device_and_layout(self):
        assert not _rows._gains(*large(torch.float64))
        assert not _rows._gains(*large(torch.bfloat16))
        assert not _rows._gains(*large(device="meta"))
        x, w = large()
        assert not _rows._gains(x, w.to_sparse())
        assert not _rows._gains(x, w.double())
        assert not _rows._gains(x.double(), w)

    def test_errors_are_torch_s(self):
        x, w = large()
        for wrong in (w[:, :-1], w[0], w[None], w.new_ones(())):
            assert not _rows._gains(x, wrong)
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            laplacian(lambda x: F.linear(x.sin(), w[:, :-1]).sum())(x[0])

    def test_not_where_others_watch_or_convert(self):
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
                assert not _rows._gains(x, w)
        special = x.as_subclass(Special)
        assert not _rows._gains(x, w.as_subclass(Special))
        assert not _rows._gains(special, w)
        seen = []
        grad(lambda x: seen.append(_rows._gains(x, w)) or x.sum())(special)
        assert seen == [False]
        assert _rows._gains(x, w)

    def test_not_where_it_is_switched_off(self, monkeypatch):
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
        assert not _rows._gains(*large())

    def test_what_records_a_graph_records_torch_s(self):
        x, w = large()
        seen = []

        def ask(x):
            seen.append(_rows._gains(x, w))
            return F.linear(x, w)

        torch.func.functionalize(ask)(x)
        torch.jit.trace(ask, (x,), check_trace=False)
        make_fx(ask)(x)
        assert seen
        assert not any(seen)

    def test_a_network_of_that_size(self, monkeypatch):
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
        assert_close(got, want, 256)
        taken.clear()
        compiled = torch.compile(lap, fullgraph=True, backend="aot_eager")
        assert_close(compiled(x), want, 256)
        assert not taken


@pytest.mark.parametrize(
    ("capability", "maker", "unused"),
    [
        ("AVX512", "AuthenticAMD", True),
        ("AVX512", "GenuineIntel", False),
        ("AVX2", "AuthenticAMD", False),
    ],
)
def test_the_processor_decides(monkeypatch, capability, maker, unused):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(_rows, "_processor", lambda: f"vendor_id : {maker}")
    assert _rows._leaves_instructions_unused.__wrapped__() == unused
    monkeypatch.setattr(_rows, "_leaves_instructions_unused", lambda: unused)
    assert (
        _rows._gains(*(t.expand(16, *t.shape).flatten(0, 1) for t in large())) == unused
    )


def test_a_processor_that_tells_nothing_is_unknown(monkeypatch):
    def missing(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr(_rows.Path, "read_text", missing)
    assert _rows._processor() == ""
