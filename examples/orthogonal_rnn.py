"""
An orthogonal recurrent network
===============================

Handwritten digits, read pixel by pixel: 64 steps, one number each, and one answer at the
end. The gradient of an early pixel passes 64 times through the recurrent matrix, which
an orthogonal matrix neither shrinks nor blows up (Arjovsky, Shah and Bengio, 2016). The
same network with a free recurrent matrix starts from the same orthogonal matrix, is
trained by the same optimizer, and has nothing to keep it there.
"""

# %%
# The data: scikit-learn's digits as sequences, a quarter of them kept for the test.

from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import pureopt as po
from pureopt.constraints import Orthogonal

images, labels = load_digits(return_X_y=True)
split = train_test_split(
    images / 16.0, labels, test_size=0.25, stratify=labels, random_state=0
)
x_train, x_test = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
y_train, y_test = (torch.tensor(part) for part in split[2:])

# %%
# The network is a function of a dict of tensors. Its nonlinearity, modReLU, only moves
# magnitudes: the signs stay.

hidden, steps, classes = 128, 64, 10


def states(params, x, nudge=None):
    """The last hidden state; ``nudge`` is added to the state after each step."""
    h = x.new_zeros(len(x), hidden)
    for t in range(steps):
        z = h @ params["recurrent"].T + x[:, t : t + 1] * params["input"]
        h = z.sign() * F.relu(z.abs() + params["bias"])
        if nudge is not None:
            h = h + nudge[t]
    return h


def logits(params, x, nudge=None):
    """Unnormalized log-probabilities of the ten digits."""
    return states(params, x, nudge) @ params["head"].T + params["offset"]


def loss_fn(params, x, y):
    """Cross-entropy of the answer after the last pixel."""
    return F.cross_entropy(logits(params, x), y)


def accuracy(params):
    """The share of right answers on the test images."""
    return float((logits(params, x_test).argmax(1) == y_test).float().mean())


keys = po.random.split(po.random.key(0), 4)
params = {
    "recurrent": Orthogonal().sample(keys[0], (hidden, hidden)),
    "input": 0.1 * po.random.normal(keys[1], (1, hidden)),
    "bias": torch.zeros(hidden),
    "head": po.random.normal(keys[2], (classes, hidden)) / hidden**0.5,
    "offset": torch.zeros(classes),
}

# %%
# Two networks, one difference: what ``constrain`` is told.

spaces = {
    "orthogonal": po.constrain(params, {"recurrent": Orthogonal()}),
    "free": po.constrain(params, {}),
}
batch_size, epochs = 128, 40
per_epoch = len(x_train) // batch_size
total = epochs * per_epoch
eye = torch.eye(hidden)


def cosine(step):
    """From 2e-3 to 0."""
    return 1e-3 * (1 + torch.cos(step * (torch.pi / total)))


def train(space):
    """The trained parameters; the curves of loss, accuracy and orthogonality."""
    optimizer = po.ClipByGlobalNorm(1.0) >> po.AdamW(lr=cosine, weight_decay=1e-4)
    step = po.make_step(loss_fn, optimizer, space=space)
    generator = torch.Generator().manual_seed(0)
    curves = {"loss": [], "accuracy": [], "error": []}
    carry = step.init(params)
    run = torch.compile(step, fullgraph=True)
    for _ in range(epochs):
        order = torch.randperm(len(x_train), generator=generator)
        losses = []
        for rows in order[: per_epoch * batch_size].split(batch_size):
            carry, metrics = run(carry, x_train[rows], y_train[rows])
            losses.append(metrics["loss"])
        now = step.params(carry)
        w = now["recurrent"]
        curves["loss"].append(float(torch.stack(losses).mean()))
        curves["accuracy"].append(accuracy(now))
        curves["error"].append(float((w @ w.T - eye).abs().max()))
    return now, curves


trained, curves = {}, {}
for name, space in spaces.items():
    trained[name], curves[name] = train(space)
    print(f"{name} test accuracy    {curves[name]['accuracy'][-1]:.4f}")
    print(f"{name} max |W W^T - I|  {max(curves[name]['error']):.1e}")

# %%
# How much does the answer depend on the state after each pixel? The gradient of the loss
# with respect to that state is the gradient with respect to a nudge of it by zero.


def gradient_norms(params):
    """The norm of the gradient of the mean test loss for each of the 64 states."""

    def loss(nudge):
        return F.cross_entropy(logits(params, x_test, nudge), y_test)

    nudge = torch.zeros(steps, len(x_test), hidden)
    return torch.func.grad(loss)(nudge).flatten(1).norm(dim=1)


norms = {name: gradient_norms(p) for name, p in trained.items()}
for name, norm in norms.items():
    print(f"{name} first / last gradient  {float(norm[0] / norm[-1]):.2f}")

# %%
# One picture of both.

fig, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
epoch = range(1, epochs + 1)
ax = axes[0, 0]
for name, curve in curves.items():
    ax.plot(epoch, curve["accuracy"], label=f"{name}, {curve['accuracy'][-1]:.3f}")
ax.set(xlabel="epoch", ylabel="test accuracy", ylim=(0, 1))
ax.set_title("Digits read pixel by pixel")
ax.legend(frameon=False, loc="lower right")

ax = axes[0, 1]
for name, curve in curves.items():
    ax.semilogy(epoch, curve["loss"], label=name)
ax.set(xlabel="epoch", ylabel="training loss (nats)", title="Training loss")
ax.legend(frameon=False)

ax = axes[1, 0]
for name, norm in norms.items():
    ax.semilogy(range(1, steps + 1), norm.detach(), label=name)
ax.set(xlabel="pixel", ylabel="norm of the gradient")
ax.set_title("Gradient of the test loss in the state after each pixel")
ax.legend(frameon=False)

ax = axes[1, 1]
for name, p in trained.items():
    sigma = torch.linalg.svdvals(p["recurrent"].detach())
    ax.plot(range(1, hidden + 1), sigma, label=name)
ax.set(xlabel="rank", ylabel="singular value", ylim=(0, None))
ax.set_title("Singular values of the trained recurrent matrix")
ax.legend(frameon=False, loc="lower left")

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "orthogonal_rnn.png", dpi=150)
print("picture            examples/output/orthogonal_rnn.png")
