"""
Eight derivatives in one pass
=============================

Taylor mode carries a power series in the place of a number: one evaluation gives the
value and all derivatives along a direction. Nesting ``grad`` or ``jvp`` gives the same
numbers, but each order multiplies the work of the one before.
"""

# %%
# A wave packet. Its derivatives have a closed form: it is the real part of a Gaussian
# of a complex argument, whose derivatives are Hermite polynomials.

from pathlib import Path
from statistics import median
from time import perf_counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from numpy.polynomial.hermite_e import hermeval
from torch.func import grad, jvp
from torch.nn.functional import layer_norm

import pureopt as po

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)
highest = 8


def packet(x):
    """A wave under a Gaussian."""
    return torch.exp(-x.square() / 2) * torch.cos(4 * x)


def closed_form(x, n):
    """Its n-th derivative."""
    z = x.numpy() - 4j
    gaussian = (-1) ** n * hermeval(z, [0] * n + [1]) * np.exp(-8 - z**2 / 2)
    return torch.from_numpy(gaussian.real)


# %%
# ``packet`` acts on each number alone, so that one call serves all points.

x = torch.linspace(-4, 4, 801)
found = po.derivatives.directional_derivatives(packet, x, torch.ones_like(x), highest)
sizes, errors = [], []
for n, derivative in enumerate(found):
    truth = closed_form(x, n)
    sizes.append(float(truth.abs().max()))
    errors.append(float((derivative - truth).abs().max()) / sizes[-1])
print(f"largest relative error, orders 0 to {highest}  {max(errors):.1e}")

# %%
# The coefficients of ``jet`` are those of Taylor's polynomial.

center = torch.tensor(0.2)
constant, terms = po.derivatives.jet(
    packet, center, (torch.tensor(1.0), *[torch.tensor(0.0)] * (highest - 1))
)


def polynomial(degree):
    """Taylor's polynomial about the center."""
    powers = (x[:, None] - center) ** torch.arange(degree + 1)
    return powers @ torch.stack([constant, *terms])[: degree + 1]


# %%
# Three routes to the derivative of a network along a direction. Each is measured until
# one evaluation takes more than a second.

keys = po.random.split(po.random.key(0), 6)
shapes = (16, 64, 64, 64, 1)
layers = [
    po.random.normal(key, (m, n), dtype=x.dtype) / n**0.5
    for key, n, m in zip(keys, shapes, shapes[1:], strict=False)
]
point, direction = (po.random.normal(k, (16,), dtype=x.dtype) for k in keys[4:])


def network(x):
    """Three hidden layers of 64 and one output."""
    for layer in layers[:-1]:
        x = torch.tanh(layer @ x)
    return (layers[-1] @ x)[0]


def taylor_mode(n):
    """The n-th derivative from one pass."""
    return po.derivatives.directional_derivatives(network, point, direction, n)[n]


def nested(derivative):
    """The n-th derivative as n derivatives of first order."""

    def route(n):
        def along(t):
            return network(point + t * direction)

        for _ in range(n):
            along = derivative(along)
        return along(torch.tensor(0.0))

    return route


def forward(f):
    """One derivative by forward mode."""
    return lambda t: jvp(f, (t,), (torch.ones_like(t),))[1]


def seconds(route, n):
    """The median over about a third of a second."""
    times, value = [], None
    while sum(times) < 0.3:
        begin = perf_counter()
        value = route(n)
        times.append(perf_counter() - begin)
    return median(times), value


routes = {
    "Taylor mode": taylor_mode,
    "nested grad": nested(grad),
    "nested jvp": nested(forward),
}
costs, values = {}, {}
for name, route in routes.items():
    route(1)
    costs[name], values[name] = [], []
    for n in range(1, highest + 1):
        cost, value = seconds(route, n)
        costs[name].append(cost)
        values[name].append(value)
        if cost > 1:
            break
    print(f"{name:12s} order {n}  {1e3 * cost:7.1f} ms")
for name in ("nested grad", "nested jvp"):
    n = len(costs[name])
    ratio = costs[name][-1] / costs["Taylor mode"][n - 1]
    gap = abs(values[name][-1] / values["Taylor mode"][n - 1] - 1)
    print(f"{name} over Taylor mode  {ratio:5.0f} times at order {n}, gap {gap:.0e}")

# %%
# Speed is not all. The kernel of layer norm has a backward formula that is not meant to
# be differentiated twice; Taylor mode has a rule for layer norm itself, and ``exact``
# mends the nesting. The true third derivative is -1.68768.


def normalized(x):
    """The second entry of a layer norm."""
    return layer_norm(torch.stack([x, 2 * x, x**2]), (3,))[1]


at = torch.tensor(0.7)
exactly = po.derivatives.exact(normalized)
taylor = po.derivatives.nth_derivative(normalized, 3)
print(f"layer norm by nested grad   {grad(grad(grad(normalized)))(at):9.5f}")
print(f"the same with exact         {grad(grad(grad(exactly)))(at):9.5f}")
print(f"and by Taylor mode          {taylor(at):9.5f}")

# %%
# One picture: the polynomials, the derivatives, the cost.

fig, (left, middle, right) = plt.subplots(
    1, 3, figsize=(13, 4.6), width_ratios=[1, 0.9, 1], layout="constrained"
)
shades = plt.colormaps["viridis"](np.linspace(0, 0.9, highest + 1))
for degree in (2, 4, 6, 8):
    left.plot(x, polynomial(degree), color=shades[degree], label=f"degree {degree}")
left.plot(x, found[0], "k", lw=2, label="wave packet")
left.plot(center, constant, "ko", ms=7)
left.set(xlim=(-1.2, 3), ylim=(-1.7, 1.3), xlabel="$x$", ylabel="$f(x)$")
left.set_title(f"Taylor polynomials about {float(center)}")
left.legend(frameon=False, loc="lower right")

for n, (derivative, size) in enumerate(zip(found, sizes, strict=True)):
    middle.plot(x, 0.55 * derivative / size - n, color=shades[n])
middle.set(xlim=(-4, 4), xlabel="$x$", ylabel="order of the derivative")
middle.set_yticks(range(0, -highest - 1, -1), range(highest + 1))
middle.set_title("Derivatives, scaled to one height")

for (name, times), mark in zip(costs.items(), "osD", strict=True):
    milliseconds = [1e3 * t for t in times]
    right.semilogy(range(1, len(times) + 1), milliseconds, f"{mark}-", label=name)
right.set(xlabel="order of the derivative", ylabel="time (ms, one thread)")
right.set_xticks(range(1, highest + 1))
right.set_title("Cost for a network of three hidden layers")
right.legend(frameon=False, loc="upper left")

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "taylor.png", dpi=150)
print("picture                     examples/output/taylor.png")
