"""
Handwritten digits with an orthogonal layer
===========================================

A small network learns scikit-learn's handwritten digits. Its hidden matrix stays
orthogonal at every step, because what is trained are the free numbers of a constraint.
A compiled AdamW step does most of the work; L-BFGS then polishes the same network on all
the training data, through the same ``step(carry, batch)``.
"""

# %%
# The data: 1797 images of 8 by 8 pixels, a quarter of them kept for the test.

from pathlib import Path
from time import perf_counter

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

import pureopt as po

images, labels = load_digits(return_X_y=True)
split = train_test_split(
    images / 16.0, labels, test_size=0.25, stratify=labels, random_state=0
)
x_train, x_test = (torch.tensor(part, dtype=torch.float32) for part in split[:2])
y_train, y_test = (torch.tensor(part) for part in split[2:])

# %%
# The model is a pure function of its parameters, a plain dict of tensors. The hidden
# matrix starts orthogonal; ``constrain`` checks that it is, and keeps it so.

torch.manual_seed(0)
module = nn.Sequential()
module.add_module("embed", nn.Linear(64, 96))
module.add_module("gelu", nn.GELU())
module.add_module("hidden", nn.Linear(96, 96))
module.add_module("tanh", nn.Tanh())
module.add_module("head", nn.Linear(96, 10))
nn.init.orthogonal_(module.hidden.weight)

apply, params, buffers = po.functionalize(module)
space = po.constrain(params, {"hidden.weight": po.constraints.Orthogonal()})
print(space)


def logits(params, x):
    """Unnormalized log-probabilities of the ten digits."""
    return apply(params, buffers, x)[0]


def loss_fn(params, x, y):
    """Cross-entropy with weight decay on the two layers that are not orthogonal."""
    free = params["embed.weight"], params["head.weight"]
    decay = 1e-3 * sum(weight.square().sum() for weight in free)
    return F.cross_entropy(logits(params, x), y) + decay


# %%
# What we watch: the loss of each evaluation, and after each epoch the test accuracy and
# how far W W^T is from the identity.

losses, accuracies, errors = [], [], []
eye = torch.eye(96)


def accuracy(params, x, y):
    """The share of right answers."""
    return float((logits(params, x).argmax(1) == y).float().mean())


def watch(step):
    """A callback for a training step."""

    def log(record):
        losses.append(float(record.metrics["loss"]))
        if record.end_of_epoch:
            now = step.params(record.carry)
            w = now["hidden.weight"]
            accuracies.append((len(losses), accuracy(now, x_test, y_test)))
            errors.append((len(losses), float((w @ w.T - eye).abs().max())))

    return log


# %%
# AdamW with a cosine schedule, one graph: loss, gradient, update and constraint. The
# schedule is a function of the step tensor, so it never recompiles.

batch_size, epochs = 64, 40
per_epoch = len(x_train) // batch_size
total = epochs * per_epoch


def cosine(step):
    """From 3e-3 to 0."""
    return 1.5e-3 * (1 + torch.cos(step * (torch.pi / total)))


step = po.make_step(loss_fn, po.AdamW(lr=cosine, weight_decay=1e-2), space=space)
compiled = torch.compile(step, fullgraph=True)
carry = step.init(params)

generator = torch.Generator().manual_seed(0)


class Batches:
    """The training images in a new order each epoch; every image once."""

    def __len__(self):
        """Batches in an epoch."""
        return per_epoch

    def __iter__(self):
        """Pairs of images and labels."""
        order = torch.randperm(len(x_train), generator=generator)
        for rows in order[: per_epoch * batch_size].split(batch_size):
            yield x_train[rows], y_train[rows]


carry = po.train(
    compiled, carry, Batches(), epochs=epochs, callbacks=[watch(step)], progress=True
)
adam_evaluations = len(losses)

# %%
# The same step, eager and compiled, on the same batch.


def steps_per_second(step, seconds=1.0):
    """Run for about a second."""
    batch, state = (x_train[:batch_size], y_train[:batch_size]), carry
    step(state, *batch)
    begin, count = perf_counter(), 0
    while perf_counter() - begin < seconds:
        state, _ = step(state, *batch)
        count += 1
    return count / (perf_counter() - begin)


eager_rate, compiled_rate = steps_per_second(step), steps_per_second(compiled)

# %%
# Now L-BFGS on the full batch. The step is made in the same way; one call is one
# evaluation, and the line search lives in the carry.

polish = po.make_step(loss_fn, po.LBFGS(), space=space)
trained = step.params(carry)
before = float(loss_fn(trained, x_train, y_train))
carry = po.train(
    torch.compile(polish, fullgraph=True),
    polish.init(trained),
    [(x_train, y_train)],
    epochs=150,
    callbacks=[watch(polish)],
    progress=True,
)
final = polish.params(carry)
after = float(loss_fn(final, x_train, y_train))

# %%
# How sure is the network? The entropy of its predictions, sample by sample, in nats.

scores = logits(final, x_test)
entropy = po.entropy.categorical(scores)
right = scores.argmax(1) == y_test

print(f"train accuracy     {accuracy(final, x_train, y_train):.4f}")
print(f"test accuracy      {accuracy(final, x_test, y_test):.4f}")
print(f"max |W W^T - I|    {max(e for _, e in errors):.1e} over all epochs")
print(f"mean entropy       {entropy[right].mean():.3f} nats where right")
print(f"                   {entropy[~right].mean():.3f} nats where wrong")
print(f"loss, full batch   {before:.4f} after AdamW, {after:.4f} after L-BFGS")
print(f"steps per second   {eager_rate:.0f} eager, {compiled_rate:.0f} compiled")

# %%
# One picture of the run.

fig, axes = plt.subplots(2, 2, figsize=(10, 7), layout="constrained")
ax = axes[0, 0]
ax.semilogy(range(1, adam_evaluations + 1), losses[:adam_evaluations], lw=0.8)
ax.semilogy(range(adam_evaluations + 1, len(losses) + 1), losses[adam_evaluations:])
ax.set(xlabel="evaluation", ylabel="loss", title="Loss of each evaluation")
ax.legend(["AdamW, batches of 64", "L-BFGS, full batch"], frameon=False)


def after_each_epoch(ax, numbers, limit, name):
    """Plot a number that was taken after each epoch, with its limit."""
    ax.plot(*zip(*numbers, strict=True), lw=1.2)
    ax.axhline(limit, color="gray", ls="--", lw=1, label=name)
    ax.axvline(adam_evaluations, color="gray", ls=":", lw=1, label="L-BFGS from here")
    ax.set_xlabel("evaluation")
    ax.legend(frameon=False, loc="lower center")


ax = axes[0, 1]
after_each_epoch(ax, accuracies, 0.97, "0.97")
ax.set(ylabel="test accuracy", ylim=(0.85, 1.0))
ax.set_title(f"Test accuracy, {accuracies[-1][1]:.3f} at the end")

ax = axes[1, 0]
bins = torch.linspace(0, float(entropy.detach().max()), 16)
groups = [entropy[mask] for mask in (right, ~right)]
shares = [torch.full_like(group, 1 / len(group)) for group in groups]
names = [f"{len(groups[0])} right", f"{len(groups[1])} wrong"]
ax.hist(groups, bins=bins, weights=shares, label=names)
ax.set(xlabel="entropy of the prediction (nats)", ylabel="share of the images")
ax.set_title("Wrong predictions are less sure")
ax.legend(frameon=False)

ax = axes[1, 1]
after_each_epoch(ax, errors, 1e-5, "1e-5")
ax.set(ylabel=r"max $|W W^T - I|$", yscale="log", ylim=(1e-8, 1e-4))
ax.set_title("The hidden matrix stays orthogonal (float32)")

# The gallery runs this page from elsewhere, without a `__file__`.
folder = Path(__file__).parent if "__file__" in globals() else Path.cwd()
output = folder / "output"
output.mkdir(exist_ok=True)
fig.savefig(output / "quickstart.png", dpi=150)
print("picture            examples/output/quickstart.png")
