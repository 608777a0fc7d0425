r"""
The spectrum of a network's Hessian through training
====================================================

Gradient descent with step size :math:`\eta` can only settle where no eigenvalue of the
Hessian exceeds :math:`2 / \eta`. Three copies of a digits network are trained with three
step sizes. The largest eigenvalue of each grows until it arrives there, and then stays
(Cohen et al., 2021). Lanczos methods see this, and the whole density of the eigenvalues,
through Hessian-vector products alone.
"""

# %%
# The data: 500 of scikit-learn's digits, to be fitted by least squares.

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch.func import grad_and_value, vmap

import pureopt as po

torch.set_num_threads(1)
images, labels = load_digits(return_X_y=True)
x = torch.tensor(images[:500] / 16.0, dtype=torch.float32)
x = x - x.mean(0)
y = F.one_hot(torch.tensor(labels[:500]), 10).float()

width = 32
keys = po.random.split(po.random.key(0), 6)
params = {
    "weight0": po.random.normal(keys[0], (width, 64)) / 8,
    "bias0": torch.zeros(width),
    "weight1": po.random.normal(keys[1], (width, width)) / width**0.5,
    "bias1": torch.zeros(width),
    "weight2": po.random.normal(keys[2], (10, width)) / width**0.5,
    "bias2": torch.zeros(10),
}
size = sum(leaf.numel() for leaf in params.values())


def loss_fn(params):
    """Half the mean squared distance of the ten outputs from the labels."""
    h = torch.tanh(F.linear(x, params["weight0"], params["bias0"]))
    h = torch.tanh(F.linear(h, params["weight1"], params["bias1"]))
    outputs = F.linear(h, params["weight2"], params["bias2"])
    return (outputs - y).square().sum(1).mean() / 2


# %%
# Two looks at the Hessian, from its products with vectors.


def sharpness(params):
    """The largest eigenvalue."""

    def product(v):
        return po.derivatives.hvp(loss_fn, params, v)

    pairs = po.derivatives.top_eigenpairs(product, params, 1, key=keys[3], steps=20)
    return pairs.values[0]


def spectrum(params):
    """The distribution of all eigenvalues, seen by ten random vectors."""

    def product(v):
        return po.derivatives.hvp(loss_fn, params, v)

    return po.derivatives.spectral_density(
        product, params, key=keys[4], probes=10, steps=60
    )


# %%
# Three step sizes at once: everything is a pure function, so ``vmap`` trains three
# networks, and looks at three Hessians.

rates = torch.tensor([0.5, 0.4, 0.3])
limits = 2 / rates


def step(rate, params, state):
    """One step of gradient descent."""
    grads, value = grad_and_value(loss_fn)(params)
    return *po.SGD(lr=rate).step(params, state, grads), value


lanes = {name: leaf.expand(3, *leaf.shape).clone() for name, leaf in params.items()}
state = vmap(po.SGD(lr=0.1).init)(lanes)
last, every = 1500, 50
moments = (0, 100, 500, last)
losses, tops, spectra = [], [], {}
for t in range(last + 1):
    if t % every == 0:
        tops.append(vmap(sharpness)(lanes))
    if t in moments:
        seen = {name: leaf[2] for name, leaf in lanes.items()}
        spectra[t] = spectrum(seen)
    lanes, state, values = vmap(step)(rates, lanes, state)
    losses.append(values)
tops, losses = torch.stack(tops), torch.stack(losses)

at_the_end = tops[-10:].mean(0) / limits
for rate, ratio in zip(rates, at_the_end, strict=True):
    print(f"step size {rate:.1f}: largest eigenvalue / (2 / step size)  {ratio:.3f}")

# %%
# Is it true? This Hessian is small enough to be written out and diagonalized.

hessian = po.derivatives.hessian(loss_fn, chunk_size=256)(seen)
rows = [
    torch.cat([hessian[a][b].reshape(params[a].numel(), -1) for b in params], dim=1)
    for a in params
]
exact = torch.linalg.eigvalsh(torch.cat(rows))
threshold = torch.tensor([0.5])
below, stderr = spectra[last].cumulative(threshold)
print(f"parameters                   {size}")
print(f"eigenvalues above 0.5, true  {int((exact > threshold).sum())}")
print(f"estimated                    {size * float(1 - below):.1f}")
print(f"standard error               {size * float(stderr):.1f}")
print(f"largest eigenvalue, true     {exact[-1]:.4f}")
print(f"by Lanczos                   {sharpness(seen):.4f}")

# %%
# One picture: densities on the left, the largest eigenvalues and the losses on the right.

fig = plt.figure(figsize=(11, 7), layout="constrained")
left, right = fig.subfigures(1, 2)
grid, smoothing = torch.linspace(-1.5, 7.5, 600), 0.1
for ax, (t, found) in zip(
    left.subplots(4, 1, sharex=True, sharey=True), spectra.items(), strict=True
):
    density, stderr = (size * part for part in found.density(grid, width=smoothing))
    ax.semilogy(grid, density)
    ax.fill_between(
        grid.numpy(),
        (density - 2 * stderr).clamp(min=1e-9).numpy(),
        (density + 2 * stderr).numpy(),
        alpha=0.3,
        lw=0,
    )
    ax.axvline(limits[2], color="tab:green", ls="--", lw=1)
    ax.set(xlim=(-1.5, 7.5), ylim=(0.3, 3e4))
    ax.text(0.4, 0.85, f"step {t}", transform=ax.transAxes, ha="center", va="top")
ax.plot(exact, torch.full_like(exact, 0.5), "k|", ms=7, label="true eigenvalues")
ax.legend(frameon=False, loc="upper right", bbox_to_anchor=(0.9, 1))
ax.set(xlabel="eigenvalue of the Hessian")
left.suptitle("Density of the eigenvalues, step size 0.3")
left.supylabel("eigenvalues per unit, with two standard errors")

upper, lower = right.subplots(2, 1, sharex=True)
steps = torch.arange(0, last + 1, every)
for lane, (rate, limit) in enumerate(zip(rates, limits, strict=True)):
    color = f"C{lane}"
    upper.plot(steps, tops[:, lane], color=color, label=f"step size {rate:.1f}")
    upper.axhline(limit, color=color, ls="--", lw=1)
    lower.semilogy(losses[:, lane], color=color, lw=0.8, label=f"step size {rate:.1f}")
upper.set(ylabel="largest eigenvalue", ylim=(2.2, 7.6))
upper.set_title("Largest eigenvalue; dashed: 2 / step size")
upper.legend(frameon=False, loc="lower right", ncols=3)
lower.set(xlabel="step", ylabel="loss", ylim=(0.01, 1), title="Training loss")

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "curvature.png", dpi=150)
print("picture                      examples/output/curvature.png")
