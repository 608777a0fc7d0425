"""Quantities of the gradients per sample, without those gradients in memory.

``_record`` runs a batch once and keeps activations and deltas; ``_rules`` and ``_uses``
know what they mean for the parameters, ``_sums`` adds up, ``_opaque`` takes the leaves
for which there is no rule, and ``_batch`` is the door. The public functions are one
quantity per file.
"""

from pureopt.derivatives._per_sample._diversity import (
    gradient_diversity as gradient_diversity,
)
from pureopt.derivatives._per_sample._grads import per_sample_grads as per_sample_grads
from pureopt.derivatives._per_sample._gram import grad_gram as grad_gram
from pureopt.derivatives._per_sample._gsnr import gsnr as gsnr
from pureopt.derivatives._per_sample._noise_scale import NoiseScale as NoiseScale
from pureopt.derivatives._per_sample._noise_scale import noise_scale as noise_scale
from pureopt.derivatives._per_sample._norms import (
    per_sample_grad_norms as per_sample_grad_norms,
)
from pureopt.derivatives._per_sample._norms import (
    per_sample_squared_norms as per_sample_squared_norms,
)
from pureopt.derivatives._per_sample._variance import grad_variance as grad_variance

__all__ = [
    "NoiseScale",
    "grad_gram",
    "grad_variance",
    "gradient_diversity",
    "gsnr",
    "noise_scale",
    "per_sample_grad_norms",
    "per_sample_grads",
    "per_sample_squared_norms",
]
