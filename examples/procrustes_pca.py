r"""
Procrustes and PCA on the Stiefel manifold
==========================================

Two problems over matrices with orthonormal columns whose answers are known in closed
form, so that every curve can be drawn against the best value there is. The images are
scikit-learn's handwritten digits.

*Procrustes*: the pixels of every image were mixed by an unknown orthogonal matrix
:math:`Q_0`, and noise was added; find :math:`\min_Q \|A Q - B\|_F^2`. The optimum is
the polar factor of :math:`A^T B` (Schönemann, 1966).

*PCA*: the :math:`k` directions that keep most of the variance,
:math:`\max_W \operatorname{tr}(W^T C W)`. The optimum is the sum of the :math:`k`
largest eigenvalues of the covariance :math:`C`.
"""

# %%
# The data: the inner 6 by 6 pixels, of which none is always white, centered. The mixing
# matrix is a random orthogonal one.

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch.func import vmap

import pureopt as po
from pureopt.constraints import Orthogonal

digits = torch.tensor(load_digits().images) / 16
pixels = digits[:, 1:7, 1:7].flatten(1)
mean = pixels.mean(0)
A = pixels - mean
n, p = A.shape
keys = po.random.split(po.random.key(0), 4)

Q0 = Orthogonal().sample(keys[0], (p, p), dtype=torch.float64)
B = A @ Q0 + 0.05 * po.random.normal(keys[1], (n, p), dtype=torch.float64)

# %%
# Procrustes. The orthogonal matrices have two components, of determinant 1 and -1, and
# no smooth path leads from one to the other: the signs of a chart fix the determinant.
# So we start once in each, and run both at once: two members of an ensemble, each with
# signs of its own in its static data. The answer is far away, with rotations by nearly
# 180 degrees, where the map is flat: ``rebase`` twice moves the chart to where we are,
# without changing the matrix.


def procrustes(Q):
    """The mean squared error of a pixel."""
    return (A @ Q - B).square().mean()


eye = torch.eye(p, dtype=torch.float64)
mirror = eye.clone()
mirror[0, 0] = -1
starts = torch.stack([eye, mirror])
space = po.constrain(eye, Orthogonal())
static = po.constrain(starts, Orthogonal()).static

step = po.make_step(procrustes, po.LBFGS(memory=30), space=space)
carry = vmap(lambda Q, s: step.init(Q, static=s))(starts, static)
advance = vmap(step)
errors = []
for i in range(300):
    carry, metrics = advance(carry)
    errors.append(metrics["loss"])
    if i in (50, 100):
        carry = vmap(step.rebase)(carry)
errors = torch.stack(errors)
found = vmap(step.params)(carry)
best = int(errors[-1].argmin())

# %%
# The closed form, and how well the found matrix unmixes the images.

U, _, Vh = torch.linalg.svd(A.T @ B)
optimum = procrustes(U @ Vh)
unmixed = B @ found[best].T
print(f"Procrustes optimum   {optimum:.8f}")
print(f"Procrustes found     {errors[-1, best]:.8f}")
print(f"relative gap         {float(errors[-1, best] / optimum - 1):.1e}")
print(f"the other component  {errors[-1, 1 - best]:.8f}")

# %%
# PCA with k = 6 directions: a 36 by 6 matrix, whose 195 free numbers are as many as the
# set has dimensions. The objective only sees the span of the columns.

k = 6
C = A.T @ A / n
values = torch.linalg.eigvalsh(C)
total = values.sum()
most = values[-k:].sum() / total


def missed(W):
    """The share of the variance that the columns of W do not keep."""
    return 1 - (W * (C @ W)).sum() / total


W0 = Orthogonal().sample(keys[2], (p, k), dtype=torch.float64)
space = po.constrain(W0, Orthogonal())
kept = {}
for name, transform in (
    ("gradient descent", po.SGD(lr=8.0)),
    ("Adam", po.Adam(lr=0.03)),
    ("L-BFGS", po.LBFGS()),
):
    step = po.make_step(missed, transform, space=space)
    carry, curve = step.init(W0), []
    for _ in range(150):
        carry, metrics = step(carry)
        curve.append(1 - float(metrics["loss"]))
    kept[name] = curve
    W = step.params(carry)
    off = float((W.T @ W - torch.eye(k)).abs().max())
    gap = float(most) - (1 - float(missed(W)))
    print(f"{name:20s} gap {gap:.1e}, max |W^T W - I| {off:.1e}")

# %%
# The curves against the closed forms, and a few images.

fig = plt.figure(figsize=(10, 7.2), layout="constrained")
top, bottom = fig.subfigures(2, 1, height_ratios=[1.2, 1])
left, right = top.subplots(1, 2)
for member, sign in enumerate(("+1", "-1")):
    left.semilogy(errors[:, member], label=f"start with det {sign}")
left.axhline(optimum, color="gray", ls="--", lw=1, label="closed form")
left.set(xlabel="evaluation", ylabel="mean squared error of a pixel")
left.set_title("Procrustes: only one component holds the answer")
left.legend(frameon=False)

for name, curve in kept.items():
    right.plot(curve, label=name)
right.axhline(most, color="gray", ls="--", lw=1, label="closed form")
right.set(xlabel="evaluation", ylabel="share of the variance kept")
right.set_title(f"PCA with {k} of {p} directions")
right.legend(frameon=False, loc="lower right")

rows = (("mixed", B + mean), ("unmixed", unmixed + mean), ("original", pixels))
axes = bottom.subplots(3, 12)
for (name, images), line in zip(rows, axes, strict=True):
    for ax, image in zip(line, images, strict=False):
        ax.imshow(image.reshape(6, 6).numpy(), cmap="gray_r", vmin=0, vmax=1)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "procrustes_pca.png", dpi=150)
print("picture              examples/output/procrustes_pca.png")
