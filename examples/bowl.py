"""
Four optimizers in an elliptic bowl
===================================

Minimize the length of ``B x``. The level sets are ellipses, almost four times as long
as they are wide, so that the negative gradient mostly points across the valley and not along it.
Gradient descent, momentum, Adam and L-BFGS have one signature, so that one loop serves
all four.
"""

# %%
# The objective, and where to start.

from pathlib import Path

import matplotlib.pyplot as plt
import torch
from torch.func import grad_and_value

import pureopt as po

B = torch.tensor([[0.4410, -1.0317], [-0.2844, -0.1035]], dtype=torch.float64)
start = torch.tensor([-1.0, 0.0], dtype=torch.float64)


def length(x):
    """The Euclidean norm of B x, with a finite gradient at 0."""
    square = (B @ x).square().sum()
    return torch.where(square > 0, square, 1.0).sqrt() * (square > 0)


# %%
# One evaluation, one step. ``step`` returns where to evaluate next; the track is where
# the loss was evaluated, line-search trials included.

optimizers = {
    "gradient descent": po.SGD(lr=0.15),
    "momentum": po.SGD(lr=0.05, momentum=0.9),
    "Adam": po.Adam(lr=0.1),
    "L-BFGS": po.LBFGS(),
}


def track(optimizer, evaluations=60):
    """The points where the loss was evaluated, and the losses."""
    x, state = start, optimizer.init(start)
    points, losses = [], []
    for _ in range(evaluations):
        grads, value = grad_and_value(length)(x)
        points.append(x)
        losses.append(value)
        x, state = optimizer.step(x, state, grads, value=value)
    return torch.stack(points), torch.stack(losses)


tracks = {name: track(optimizer) for name, optimizer in optimizers.items()}
for name, (_, losses) in tracks.items():
    print(f"{name:18s} least loss {losses.min():.1e} in {len(losses)} evaluations")

# %%
# The norm has a kink at its minimum. A fixed step jumps over it forever; the line search
# of L-BFGS shortens its step.

COLORS = ("tab:blue", "tab:orange", "tab:green", "tab:red")
x1 = torch.linspace(-1.25, 1.0, 300, dtype=torch.float64)
x2 = torch.linspace(-0.8, 0.8, 300, dtype=torch.float64)
grid = torch.stack(torch.meshgrid(x1, x2, indexing="xy"), dim=-1)
levels = (grid @ B.T).norm(dim=-1)

fig, (left, right) = plt.subplots(1, 2, figsize=(12, 4.8), layout="constrained")
left.contour(x1, x2, levels, levels=14, colors="lightgray", linewidths=0.8)
for color, (name, (points, _)) in zip(COLORS, tracks.items(), strict=True):
    left.plot(*points.T, ".-", color=color, ms=4, lw=1, label=name)
left.plot(*start, "ko", ms=6)
left.annotate("start", start, xytext=(-8, 8), textcoords="offset points", ha="right")
left.plot(0, 0, "k*", ms=10)
left.set(xlabel="$x_1$", ylabel="$x_2$", title=r"Tracks on the level sets of $\|Bx\|$")
left.set_aspect("equal")
left.legend(frameon=False, loc="lower right")

for color, (name, (_, losses)) in zip(COLORS, tracks.items(), strict=True):
    right.semilogy(range(1, len(losses) + 1), losses, color=color, label=name)
right.set(xlabel="evaluation", ylabel=r"$\|Bx\|$", title="Loss of each evaluation")
right.legend(frameon=False)

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "bowl.png", dpi=150)
print("picture            examples/output/bowl.png")
