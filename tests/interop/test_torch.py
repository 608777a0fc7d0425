"""`register` and `remove`: constraints as torch's parametrizations."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from pureopt import CompositionError, ConstraintError
from pureopt.constraints import (
    Cayley,
    Grassmann,
    Matricized,
    Orthogonal,
    Positive,
    PowerSpectralNorm,
    Separated,
    Skew,
    Symmetric,
    WeightNorm,
)
from pureopt.interop.torch import register, remove


def orthogonal(rows=5, columns=3, seed=0, dtype=torch.float32) -> nn.Linear:
    """A layer with orthonormal columns or rows."""
    generator = torch.Generator().manual_seed(seed)
    layer = nn.Linear(columns, rows, dtype=dtype)
    nn.init.orthogonal_(layer.weight, generator=generator)
    return register(layer, "weight", Orthogonal())


def feasible(weight) -> bool:
    return bool(Orthogonal().check(weight))


def test_registering_keeps_the_value_and_trains_the_free_one():
    layer = nn.Linear(3, 5)
    nn.init.orthogonal_(layer.weight)
    parameter, value = layer.weight, layer.weight.detach().clone()
    register(layer, "weight", Orthogonal())
    # 20 eps sqrt(n) times a largest free number of a few.
    assert torch.allclose(layer.weight, value, atol=1e-5)
    # An optimizer made before still holds the parameter.
    assert layer.parametrizations.weight.original is parameter
    assert parameter.shape == (9,)
    assert parameter.requires_grad
    names = {name for name, _ in layer.named_parameters()}
    assert names == {"bias", "parametrizations.weight.original"}
    buffers = {name for name, _ in layer.named_buffers()}
    assert any("signs" in name for name in buffers)


def test_assignment_goes_through_the_right_inverse():
    layer = orthogonal(3, 3)
    for value in (torch.eye(3), -torch.eye(3), torch.eye(3).flip(0)):
        layer.weight = value
        assert torch.allclose(layer.weight, value, atol=1e-6)  # some eps


def test_a_bad_assignment_raises_and_changes_nothing():
    layer = orthogonal(3, 3)
    before = copy.deepcopy(layer.state_dict())
    # torch's own map takes zeros, and reads back zeros; 2 I reads back I.
    for value in (torch.zeros(3, 3), 2 * torch.eye(3), torch.full((3, 3), torch.nan)):
        with pytest.raises(ConstraintError, match=r"`Linear.weight = value` must"):
            layer.weight = value
    with pytest.raises(ConstraintError, match=r"Orthogonal\(\).project\(value\)"):
        layer.weight = 2 * torch.eye(3)
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_a_value_outside_cannot_be_registered_and_the_module_stays_as_it_was():
    layer = nn.Linear(3, 3)
    parameter = layer.weight
    with pytest.raises(
        ConstraintError, match=r"`register\(Linear.weight\)` must satisfy Orthogonal"
    ):
        register(layer, "weight", Orthogonal())
    assert layer.weight is parameter
    assert not parametrize.is_parametrized(layer)


def test_a_step_of_adamw_with_weight_decay_keeps_it_orthogonal():
    """Torch's default map for wide weights reads zeros everywhere after this step."""
    ours, theirs = orthogonal(4, 8), nn.Linear(8, 4)
    nn.init.orthogonal_(theirs.weight)
    parametrizations.orthogonal(theirs)
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    for layer in (ours, theirs):
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=0.5)
        layer(x).square().sum().backward()
        optimizer.step()
    assert feasible(ours.weight)
    assert not theirs.weight.any()


def test_a_state_dict_goes_round():
    one, two = orthogonal(seed=1), orthogonal(seed=2)
    assert not torch.allclose(one.weight, two.weight)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    two.load_state_dict(torch.load(file))
    assert torch.equal(one.weight, two.weight)
    assert feasible(two.weight)
    again = pickle.loads(pickle.dumps(one.state_dict()))  # noqa: S301
    two.load_state_dict(again)
    assert torch.equal(one.weight, two.weight)


def test_a_deep_copy_is_independent():
    layer = orthogonal(3, 3)
    twin = copy.deepcopy(layer)
    twin.weight = -torch.eye(3)
    assert torch.allclose(twin.weight, -torch.eye(3), atol=1e-6)  # some eps
    assert not torch.allclose(layer.weight, twin.weight)
    assert feasible(layer.weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_conversion_keeps_it_orthogonal_to_the_new_precision(dtype):
    """Torch: bfloat16 has no kernel for its map; in float64 the error stays 2e-7."""
    layer = orthogonal(6, 6).to(dtype)
    assert layer.weight.dtype == dtype
    assert feasible(layer.weight)
    layer(torch.ones(2, 6, dtype=dtype)).sum().backward()
    assert bool(layer.parametrizations.weight.original.grad.isfinite().all())
    layer.weight = -torch.eye(6, dtype=dtype)
    assert feasible(layer.weight)


def test_a_bfloat16_layer_can_be_registered():
    layer = nn.Linear(3, 3, dtype=torch.bfloat16)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(3))
    register(layer, "weight", Orthogonal())
    assert torch.equal(layer.weight, torch.eye(3, dtype=torch.bfloat16))


def test_constraints_registered_one_after_the_other_compose():
    layer = nn.Linear(3, 3, bias=False)
    skew = layer.weight.detach() - layer.weight.detach().mT
    with torch.no_grad():
        layer.weight.copy_(skew)
    register(layer, "weight", Skew())
    register(layer, "weight", Cayley())
    assert torch.allclose(layer.weight, Cayley().forward(skew), atol=1e-6)  # some eps
    layer.weight = -torch.eye(3)
    assert torch.allclose(layer.weight, -torch.eye(3), atol=1e-6)
    assert layer.parametrizations.weight.original.shape == (3,)


def test_something_else_than_a_module_is_refused():
    for other, got in ((nn.Linear, "the class `Linear`"), ("weight", "`str`")):
        with pytest.raises(ConstraintError, match=f"be given a module, got {got}"):
            register(other, "weight", Orthogonal())
        with pytest.raises(ConstraintError, match=f"be given a module, got {got}"):
            remove(other, "weight")


def test_what_does_not_compose_is_refused():
    layer = nn.Linear(3, 3)
    nn.init.eye_(layer.weight)
    # The first takes free numbers; appended to others it need not.
    with pytest.raises(ConstraintError, match=r"Write `Skew\(\) >> Cayley\(\)`"):
        register(layer, "weight", Cayley())
    assert not hasattr(layer, "parametrizations")
    register(layer, "weight", Symmetric())
    # Torch accepts it; the error of orthogonality is two thousand.
    with pytest.raises(CompositionError, match=r"Write `Skew\(\) >> Cayley\(\)`"):
        register(layer, "weight", Cayley())
    assert len(layer.parametrizations.weight) == 1


def test_a_shared_original_is_one_parameter():
    one, two = orthogonal(3, 3, seed=1), orthogonal(3, 3, seed=1)
    two.parametrizations.weight.original = one.parametrizations.weight.original
    both = nn.Sequential(one, two)
    free = [name for name, _ in both.named_parameters() if "original" in name]
    assert free == ["0.parametrizations.weight.original"]
    both(torch.ones(1, 3)).sum().backward()
    with torch.no_grad():
        one.parametrizations.weight.original.add_(0.5)
    assert torch.equal(one.weight, two.weight)


def test_within_cached_the_map_is_computed_once():
    layer = orthogonal(3, 3)
    with parametrize.cached():
        assert layer.weight is layer.weight
    assert layer.weight is not layer.weight


def test_removal_leaves_the_value_or_the_free_value():
    layer = orthogonal()
    value = layer.weight.detach().clone()
    free = layer.parametrizations.weight.original
    remove(layer, "weight")
    assert isinstance(layer.weight, nn.Parameter)
    assert torch.equal(layer.weight, value)
    assert layer.weight is free  # what the optimizer holds
    assert type(layer) is nn.Linear

    layer = orthogonal()
    free = layer.parametrizations.weight.original.detach().clone()
    remove(layer, "weight", leave_parametrized=False)
    assert torch.equal(layer.weight, free)


def test_a_frozen_parameter_stays_frozen():
    layer = nn.Linear(3, 3)
    nn.init.eye_(layer.weight)
    layer.weight.requires_grad_(requires_grad=False)
    register(layer, "weight", Orthogonal())
    assert not layer.parametrizations.weight.original.requires_grad
    assert not layer.weight.requires_grad


def test_two_layers_stack_into_an_ensemble():
    layers = [orthogonal(seed=seed) for seed in (1, 2)]
    params, buffers = torch.func.stack_module_state(
        [copy.deepcopy(layers[0]), _loaded(layers[1], layers[0])]
    )

    def call(params, buffers, x):
        return torch.func.functional_call(layers[0], (params, buffers), (x,))

    x = torch.ones(4, 3)
    out = torch.func.vmap(call, in_dims=(0, 0, None))(params, buffers, x)
    for i, layer in enumerate(layers):
        assert torch.allclose(out[i], layer(x), atol=1e-6)  # another order of sums


def _loaded(source: nn.Module, like: nn.Module) -> nn.Module:
    """A copy of ``like`` (of its class) with the numbers of ``source``."""
    twin = copy.deepcopy(like)
    twin.load_state_dict(source.state_dict())
    return twin


@pytest.mark.compile
def test_a_registered_layer_compiles_in_one_graph():
    layer = orthogonal()
    x = torch.ones(2, 3)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), layer(x), atol=1e-6)  # the same kernels
    compiled(x).sum().backward()
    assert bool(layer.parametrizations.weight.original.grad.any())


def test_wrong_names_and_types_are_told():
    layer = nn.Linear(3, 3)
    with pytest.raises(ConstraintError, match=r"Near names: 'weight'"):
        register(layer, "weights", Orthogonal())
    with pytest.raises(ConstraintError, match="the class `Orthogonal`"):
        register(layer, "weight", Orthogonal)
    with pytest.raises(ConstraintError, match="one that is not"):
        remove(layer, "weight")
    with pytest.raises(ConstraintError, match=r"have a shape \(..., n, k\)"):
        register(layer, "bias", Orthogonal())
    with pytest.raises(ConstraintError, match="Near names: 'weight', 'bias'"):
        remove(layer, "zzz")


def test_an_assignment_of_another_shape_or_dtype_changes_nothing():
    """Torch takes any shape; of a dtype it complained when the signs were replaced."""
    layer = orthogonal(3, 3)
    before = copy.deepcopy(layer.state_dict())
    for value, got in (
        (-torch.eye(3, dtype=torch.float64), "torch.float64"),
        (-torch.eye(4), r"shape \(4, 4\)"),
        (-torch.eye(3).expand(2, 3, 3), r"shape \(2, 3, 3\)"),
        ([[1.0]], "`list`"),
    ):
        with pytest.raises(ConstraintError, match=rf"`Linear.weight = value`.*{got}"):
            layer.weight = value
    after = layer.state_dict()
    assert all(torch.equal(after[name], before[name]) for name in before)
    layer.double().weight = -torch.eye(3, dtype=torch.float64)


def test_what_the_first_of_two_constraints_refuses_changes_nothing():
    """`Separated` takes the value and would reorder; `Positive` refuses its middle."""
    layer = nn.Linear(1, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    register(layer, "bias", Positive())
    register(layer, "bias", Separated())
    before = layer.bias.detach().clone()
    with pytest.raises(ConstraintError, match="outside the set of a link before"):
        layer.bias = torch.tensor([-1.0, -2.0, -3.0])
    assert torch.equal(layer.bias, before)
    layer.bias = torch.tensor([3.0, -2.0, 1.0])
    # Some roundings of numbers of order one.
    assert torch.allclose(layer.bias, torch.tensor([3.0, -2.0, 1.0]), atol=2e-6)


def test_a_composition_that_cannot_hold_the_value_leaves_the_module_as_it_was():
    """In the chart of its value, an orthogonal matrix may need negative numbers."""
    layer = nn.Linear(1, 3)
    with torch.no_grad():
        layer.bias.copy_(torch.tensor([1.0, 2.0, 3.0]))
    register(layer, "bias", Positive())
    with pytest.raises(ConstraintError, match=r"`register\(Linear.bias\)` must"):
        register(layer, "bias", Orthogonal())
    assert len(layer.parametrizations.bias) == 1
    assert torch.allclose(layer.bias, torch.tensor([1.0, 2.0, 3.0]))


def test_copies_do_not_reach_into_one_another():
    """In torch, copies share the class that holds the properties."""
    layer = orthogonal(3, 3)
    value = layer.weight.detach().clone()
    remove(copy.deepcopy(layer), "weight")
    assert torch.equal(layer.weight, value)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        twin.bias.fill_(1.0)
    register(twin, "bias", Positive())
    assert isinstance(layer.bias, nn.Parameter)
    assert type(remove(remove(twin, "weight"), "bias")) is nn.Linear


def test_a_free_value_of_two_tensors():
    layer = register(nn.Linear(4, 3), "weight", WeightNorm())
    names = [name for name, _ in layer.named_parameters()]
    assert names[1:] == [f"parametrizations.weight.original{i}" for i in (0, 1)]
    value = 2 * layer.weight.detach()
    layer.weight = value
    assert torch.allclose(layer.weight, value)
    twin = register(nn.Linear(4, 3), "weight", WeightNorm())
    twin.load_state_dict(layer.state_dict())
    assert torch.equal(twin.weight, layer.weight)
    with pytest.raises(ConstraintError, match="have one free tensor to leave"):
        remove(twin, "weight", leave_parametrized=False)
    remove(twin, "weight")
    assert torch.equal(twin.weight, layer.weight)


def test_the_weight_of_a_convolution():
    constraint = Matricized(Orthogonal(), rows=-4, cols=(-3, -2, -1))
    layer = nn.Conv2d(2, 4, 3)
    value = constraint.project(layer.weight.detach())
    with torch.no_grad():
        layer.weight.copy_(value)
    register(layer, "weight", constraint)
    assert torch.allclose(layer.weight, value, atol=1e-5)  # 20 eps sqrt(n) max|x|
    layer.eval().requires_grad_(requires_grad=False)
    layer.weight = -value
    assert torch.allclose(layer.weight, -value, atol=1e-5)
    assert bool(constraint.check(copy.deepcopy(layer).double().weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_static_data_of_floats_follows_a_conversion(dtype):
    constraint, layer = PowerSpectralNorm(), nn.Linear(5, 4)
    with torch.no_grad():
        layer.weight.copy_(constraint.project(layer.weight))
    register(layer, "weight", constraint).to(dtype)
    assert layer.weight.dtype == dtype
    # The singular vector is rounded by the conversion, and then iterated.
    assert bool(constraint.check(layer.weight))


def test_a_frame_bound_in_float32_is_sharp_enough_for_float64():
    """The base that geotorch and torch keep holds its error of 2e-7 after `.double()`."""
    layer = nn.Linear(3, 6)
    nn.init.orthogonal_(layer.weight, generator=torch.Generator().manual_seed(0))
    register(layer, "weight", Grassmann()).double()
    assert bool(Grassmann().check(layer.weight))
