"""
A network that solves Poisson's equation
========================================

A physics-informed network: its Laplacian, not its value, is fitted. The Laplacian comes
from one forward pass, and L-BFGS minimizes what is left of the equation. The solution is
known here, so that the error can be shown.
"""

# %%
# The problem: :math:`-\Delta u = f` on the unit square, :math:`u = 0` on its boundary.
# Two modes of the Laplacian make the solution, so that ``f`` has a closed form.

from functools import partial
from math import pi
from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.func import vmap

import pureopt as po

torch.set_num_threads(1)
torch.set_default_dtype(torch.float64)


def mode(x, m, n):
    """An eigenfunction of the Laplacian with value 0 on the boundary."""
    return torch.sin(m * pi * x[..., 0]) * torch.sin(n * pi * x[..., 1])


def solution(x):
    """The function to be found."""
    return mode(x, 1, 1) + 0.5 * mode(x, 3, 2)


def source(x):
    """The right-hand side, minus its Laplacian."""
    return pi**2 * (2 * mode(x, 1, 1) + 0.5 * 13 * mode(x, 3, 2))


# %%
# The network. A factor that is zero on the boundary makes the boundary condition hold
# exactly, and leaves one loss in place of two.

width = 32
normal = partial(po.random.normal, dtype=torch.float64)
keys = po.random.split(po.random.key(0), 4)
params = {
    "weight0": 2 * normal(keys[0], (width, 2)),
    "bias0": normal(keys[1], (width,)),
    "weight1": normal(keys[2], (width, width)) / width**0.5,
    "bias1": torch.zeros(width),
    "head": normal(keys[3], (width,)) / width**0.5,
}


def u(params, x):
    """The value of the network at one point."""
    h = torch.tanh(params["weight0"] @ x + params["bias0"])
    h = torch.tanh(params["weight1"] @ h + params["bias1"])
    return 16 * (x * (1 - x)).prod() * (params["head"] @ h)


# %%
# The loss: the mean square of the residual at points inside the square. The residual is
# written for one point; ``vmap`` makes it one for all.

inside = (torch.arange(24) + 0.5) / 24
points = torch.cartesian_prod(inside, inside)
right_hand_side = source(points)


def loss_fn(params):
    """The mean squared residual."""
    laplacian = po.derivatives.laplacian(lambda x: u(params, x))
    return (vmap(laplacian)(points) + right_hand_side).square().mean()


grid = torch.linspace(0, 1, 101)
plane = torch.stack(torch.meshgrid(grid, grid, indexing="ij"), dim=-1)
truth = solution(plane)


def relative_error(params):
    """The distance to the solution in L2 over the solution's norm."""
    found = vmap(vmap(lambda x: u(params, x)))(plane)
    return float((found - truth).norm() / truth.norm())


steps, losses, errors = [], [], []


def watch(so_far):
    """Called at every tenth evaluation."""
    steps.append(int(so_far.steps))
    losses.append(float(so_far.value))
    errors.append(relative_error(so_far.params))


# %%
# L-BFGS on the whole loss, in float64: the residual falls by orders of magnitude.

answer = po.minimize(loss_fn, params, po.LBFGS(), max_steps=900, callback=watch)
print(
    f"mean squared residual  {answer.value:.1e} after {answer.evaluations} evaluations"
)
print(f"relative L2 error      {relative_error(answer.params):.1e}")

# %%
# One picture of the solution and of what is missing.

with torch.no_grad():
    found = vmap(vmap(lambda x: u(answer.params, x)))(plane)
fig, axes = plt.subplots(2, 2, figsize=(10, 7.6), layout="constrained")


def show(ax, values, title, unit, cmap):
    """A map of the unit square, white at zero."""
    limit = float(values.abs().max())
    shown = ax.imshow(
        values.T.numpy(),
        origin="lower",
        extent=(0, 1, 0, 1),
        cmap=cmap,
        vmin=-limit,
        vmax=limit,
    )
    ax.set(xlabel="$x$", ylabel="$y$", title=title)
    fig.colorbar(shown, ax=ax, label=unit)


show(axes[0, 0], truth, "Solution", "$u$", "RdBu_r")
show(axes[0, 1], found, "Network", "$u$", "RdBu_r")
gap = 1e4 * (found - truth)
show(axes[1, 0], gap, "Network minus solution", "error of $u$ / $10^{-4}$", "PuOr_r")

ax = axes[1, 1]
ax.semilogy(steps, losses, label="loss: mean squared residual")
ax.semilogy(steps, errors, label="relative $L_2$ error of $u$")
ax.set(xlabel="evaluation", title="Progress of L-BFGS")
ax.legend(frameon=False)

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "pinn.png", dpi=150)
print("picture                examples/output/pinn.png")
