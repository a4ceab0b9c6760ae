"""Which inputs are training samples, or images of them: a few random projections of each, kept with the ensemble.

They tell samples apart and are equal up to rounding where the inputs are, but the inputs cannot be had back from them.
"""

from collections.abc import Iterable

import numpy as np
import torch
from jaxtyping import Bool, Float

from ray_ft.domains import View

N_PRINTS = 16
ROUNDING, SAME = 1e-6, 1e-4  # of an input's own length, and of the spread of the training samples
CHUNK = 256  # samples at a time

Inputs = Float[np.ndarray, "sample *input"]
Prints = Float[np.ndarray, "training print"]


def project(inputs: Inputs) -> Float[np.ndarray, "sample print"]:
    """Project each input at random."""
    size = int(np.prod(inputs.shape[1:]))
    directions = np.random.RandomState(0).standard_normal((size, N_PRINTS))  # whose stream no release of numpy changes
    return np.asarray(inputs.reshape(len(inputs), size).astype(np.float64) @ directions)


def find_known(inputs: Inputs, prints: Prints, views: Iterable[View]) -> Bool[np.ndarray, " sample"]:
    """Find the inputs that are, within rounding, images under one of the views of what these are the prints of."""
    views = tuple(views)
    spread = float(np.sqrt(((prints - prints.mean(0)) ** 2).sum(1).mean()))
    reach = np.maximum(ROUNDING * np.sqrt((prints**2).sum(1)), SAME * spread)
    known = np.zeros(len(inputs), bool)
    for start in range(0, len(inputs), CHUNK):
        part = torch.from_numpy(inputs[start : start + CHUNK])
        for view in views:
            own = project(view.move_inputs(part).numpy())
            gaps = np.sqrt(((own[:, None] - prints) ** 2).sum(-1))
            known[start : start + CHUNK] |= (gaps <= reach).any(1)
    return known
