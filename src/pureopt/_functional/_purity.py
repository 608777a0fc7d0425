"""What cannot be pure: refused when a module is split, or when its forward runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from pureopt._errors import PureoptError, TreeError, told
from pureopt._functional._dropout import RNG, has_dropout
from pureopt._tree import tree_leaves

_WHERE = "functionalize(module=...)"
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_POOLS = (nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)


def check_module(module: nn.Module) -> None:
    """Raise if the module cannot be a pure function, naming the submodule."""
    if not isinstance(module, nn.Module):  # pyright: ignore[reportUnnecessaryIsInstance]
        hint = "Pass an instance." if isinstance(module, type) else ""
        raise PureoptError(_WHERE, "be an `nn.Module`", told(module), hint)
    for name, sub in module.named_modules():
        _check_wrapper(name, sub)
        _check_fused(name, sub)
    _check_tensors(module)
    if has_dropout(module) and RNG in dict(module.named_buffers()):
        raise PureoptError(
            _WHERE,
            f"have no buffer of its own called '{RNG}' beside its dropout",
            "one",
            f"The key of the masks stands in `buffers['{RNG}']`: rename yours.",
        )


def _check_wrapper(name: str, sub: nn.Module) -> None:
    if isinstance(sub, torch.jit.ScriptModule) or hasattr(sub, "_orig_mod"):
        rule, hint = "not be compiled", "Compile `apply` instead."
    elif isinstance(sub, _WRAPPERS):
        rule, hint = "not be wrapped", "Pass the wrapped module, `.module`."
    else:
        return
    raise PureoptError(_WHERE, rule, _told(name, sub), hint)


def _check_fused(name: str, sub: nn.Module) -> None:
    """The modules of torch that draw inside a kernel."""
    way_out = "Set its `dropout` to 0.0, or call `.eval()` first."
    if isinstance(sub, _POOLS):
        random = True
        way_out = "Use `nn.MaxPool2d`, `nn.AvgPool2d` or their like."
    elif not sub.training:
        return
    elif isinstance(sub, nn.RNNBase):
        random = sub.dropout > 0 and sub.num_layers > 1
    elif isinstance(sub, nn.MultiheadAttention):
        random = sub.dropout > 0
    elif isinstance(sub, nn.RReLU):
        random = True
        way_out = "Use `nn.LeakyReLU`, or call `.eval()` first."
    else:
        return
    if random:
        raise PureoptError(
            _WHERE, "draw no random numbers inside a kernel", _told(name, sub), way_out
        )


def _check_tensors(module: nn.Module) -> None:
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if is_lazy(tensor):
            raise PureoptError(
                _WHERE,
                "have initialized parameters",
                f"a lazy one at '{name}'",
                "Call the module once on an input of the right shape.",
            )
    for name, param in module.named_parameters():
        if not (param.is_floating_point() or param.is_complex()):
            raise TreeError(
                _WHERE,
                "have only floating-point or complex parameters",
                f"a parameter of dtype {param.dtype} at '{name}'",
                "Register it with `register_buffer`.",
            )


def _told(name: str, sub: nn.Module) -> str:
    what = f"`{type(sub).__name__}`"
    return f"{what} at '{name}'" if name else what


class NoRandom(TorchFunctionMode):
    """Raise at torch's random functions; without state, so that it traces."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        if name in _RANDOM or (name in _GATED and _GATED[name](args, kwargs)):
            raise PureoptError(
                "forward",
                "draw no random numbers, which change torch's generator",
                f"a call of `{name}`",
                "Use `nn.Dropout` modules for dropout; pass other noise in as an "
                "argument, drawn with `pureopt.random`.",
            )
        return func(*args, **kwargs)


# By name, since a function of `F`, its kernel in `torch` and the method share it.
_RANDOM = {
    "bernoulli", "bernoulli_", "binomial", "cauchy_", "exponential_", "geometric_",
    "gumbel_softmax", "lobpcg", "log_normal_", "multinomial", "normal", "normal_",
    "pca_lowrank", "poisson", "rand", "rand_like", "randint", "randint_like", "randn",
    "randn_like", "random_", "randperm", "svd_lowrank", "uniform_",
    "fractional_max_pool2d", "fractional_max_pool2d_with_indices",
    "fractional_max_pool3d", "fractional_max_pool3d_with_indices",
    "_sample_dirichlet", "_standard_gamma",
}  # fmt: skip


# The defaults are needed where the mode is traced: run, it is handed all arguments.
def _get(
    args: Sequence[Any], kwargs: Mapping[str, Any], i: int, name: str, default: Any
) -> Any:
    return args[i] if len(args) > i else kwargs.get(name, default)


def _drops(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    train = kwargs.get("train", _get(args, kwargs, 2, "training", True))
    return bool(train) and _get(args, kwargs, 1, "p", 0.5) != 0


def _drops_alpha(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    train = kwargs.get("train", _get(args, kwargs, 2, "training", False))
    return bool(train) and _get(args, kwargs, 1, "p", 0.5) != 0


def _attends(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return _get(args, kwargs, 4, "dropout_p", 0.0) != 0


def _attends_multi(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    train = _get(args, kwargs, 13, "training", True)
    return bool(train) and _get(args, kwargs, 10, "dropout_p", 0.0) != 0


def _leaks(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    return bool(_get(args, kwargs, 3, "training", False))


_GATED: dict[str, Callable[[Sequence[Any], Mapping[str, Any]], bool]] = {
    "dropout": _drops,
    "dropout_": _drops,
    "dropout1d": _drops,
    "dropout2d": _drops,
    "dropout3d": _drops,
    "feature_dropout": _drops,
    "feature_dropout_": _drops,
    "native_dropout": _drops,
    "alpha_dropout": _drops_alpha,
    "alpha_dropout_": _drops_alpha,
    "feature_alpha_dropout": _drops_alpha,
    "feature_alpha_dropout_": _drops_alpha,
    "rrelu": _leaks,
    "rrelu_": _leaks,
    "scaled_dot_product_attention": _attends,
    "multi_head_attention_forward": _attends_multi,
}


def versions(params: dict[str, Tensor], inputs: Any) -> list[tuple[str, Tensor, int]]:
    """Name, tensor and version of each tensor, to see later what was written to."""
    named = [(f"'{name}'", param) for name, param in params.items()]
    named += [("its input", x) for x in tree_leaves(inputs)]
    tensors = [(name, x) for name, x in named if isinstance(x, Tensor)]  # pyright: ignore[reportUnnecessaryIsInstance]
    # Tensors made in inference mode have no version.
    return [(name, t, t._version) for name, t in tensors if not t.is_inference()]  # noqa: SLF001


def check_unwritten(before: list[tuple[str, Tensor, int]]) -> None:
    """Raise if a tensor has been written to in place since :func:`versions`."""
    for name, tensor, version in before:
        if tensor._version != version:  # noqa: SLF001
            raise PureoptError(
                "forward",
                "not write in place to its parameters and its input",
                f"a write to {name}",
                "Set `inplace=False` where that is, or work on a copy.",
            )
