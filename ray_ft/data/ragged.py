"""Samples of unequal shapes, such as graphs and sequences, each in a row of numbers that says its own sizes.

A row has the sizes of a sample's axes, then the values of its parts, then zeros up to the longest row. So it reads the
same in a table of any width.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from ray_ft.data.objects import as_array
from ray_ft.data.packing import KINDS, KINDS_IN_ORDER, Layout, Part, find_kind, name_parts, pack
from ray_ft.errors import DataError, first_few

FREE = -1  # size of an axis that is each sample's own
ALONE = ""  # name of the part of samples that are one array each
Sample = dict[str, Shaped[np.ndarray, "..."]]


def is_ragged(layout: Layout) -> bool:
    return any(FREE in part.shape for part in layout)


def take_inputs(inputs: Any, source: str, by_sample: bool = False) -> tuple[Shaped[np.ndarray, "..."], Layout]:
    """Take one array of what `as_array` takes, or pack several of them; say how.

    Args:
        inputs: What a user holds.
        source: For messages.
        by_sample: Whether a list is one of samples that need not be of one shape.
    """
    if by_sample and isinstance(inputs, list):
        return pack_samples(inputs, source)
    if isinstance(inputs, Mapping | tuple):
        return pack(name_parts(inputs), source)
    if isinstance(inputs, list) and any(isinstance(sample, Mapping) for sample in inputs):
        rule = "a list of samples that are mappings needs a function that makes batches of them"
        raise DataError(f"{rule}, got none for {source}; name it by collate")
    if isinstance(inputs, list) and len({np.shape(sample) for sample in inputs[:1000]}) > 1:
        raise DataError(f"samples must have one shape, got others in {source}; or name what makes batches, by collate")
    return as_array(inputs, source), ()


def pack_samples(samples: Any, source: str, layout: Layout = ()) -> tuple[Float[np.ndarray, "sample value"], Layout]:
    """Lay samples out in rows.

    Args:
        samples: A list, each an array, a mapping or tuple of arrays, or an object that has `to_dict`.
        source: For messages.
        layout: That of the run's samples; without it, these say it.

    Returns:
        The rows, and the layout of their parts, each axis `FREE`.

    Raises:
        DataError: They are no such samples, or not alike.
    """
    if not isinstance(samples, list) or not samples:
        told = "an empty one" if isinstance(samples, list) else type(samples).__name__
        raise DataError(f"samples of unequal shapes must be a list that is not empty, got {told} in {source}")
    named = [name_sample(sample, f"sample {i} of {source}") for i, sample in enumerate(samples)]
    axes = {part.name: len(part.shape) for part in layout} or {name: own.ndim for name, own in named[0].items()}
    for i, sample in enumerate(named):
        if not axes or {name: own.ndim for name, own in sample.items()} != axes:
            told = f"got {describe(sample)} in sample {i} of {source}"
            raise DataError(f"each sample must have the same arrays of as many axes, {told}")
    if not any(axes.values()):
        raise DataError(f"samples of numbers alone have one shape, got such in {source}; give an array of each number")
    kinds = {name: find_widest(name, named, source) for name in axes}
    known = layout or tuple(Part(name, (FREE,) * n, kinds[name]) for name, n in axes.items())
    for part in known:
        if KINDS_IN_ORDER.index(kinds[part.name]) > KINDS_IN_ORDER.index(part.kind):
            raise DataError(
                f"{part.name or 'samples'} must be {part.kind}, as in the run, got {kinds[part.name]} in {source}"
            )
    rows = [write_row(sample, known) for sample in named]
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row))) for row in rows]), known


def name_sample(sample: Any, source: str) -> Sample:
    """Name the arrays of a sample."""
    if hasattr(sample, "to_dict") and not hasattr(sample, "to_numpy"):  # but for pandas' objects
        sample = sample.to_dict()
    if isinstance(sample, Mapping):
        return name_parts({name: value for name, value in sample.items() if value is not None})
    return name_parts(sample) if isinstance(sample, tuple) else {ALONE: as_array(sample, source)}


def find_widest(name: str, samples: Sequence[Sample], source: str) -> Any:
    """Find the kind that holds the values of all samples."""
    kinds = {find_kind(name, sample[name], f"sample {i} of {source}") for i, sample in enumerate(samples)}
    return max(kinds, key=KINDS_IN_ORDER.index)


def write_row(sample: Sample, layout: Layout) -> Float[np.ndarray, " value"]:
    sizes = [size for part in layout for size in sample[part.name].shape]
    with np.errstate(over="ignore"):  # what is too large is refused, as infinity
        values = [sample[part.name].ravel().astype(np.float32) for part in layout]
    return np.concatenate([np.array(sizes, np.float32), *values])


def read_rows(rows: Float[Tensor, "sample value"], layout: Layout) -> list[Any]:
    """Read samples back, on the device of the rows.

    Returns:
        Of each sample a dict of tensors, or a tuple where they have places, or the one tensor that it is.
    """
    n_sizes = sum(part.shape.count(FREE) for part in layout)
    samples = []
    for sizes, values in zip(rows[:, :n_sizes].long().tolist(), rows[:, n_sizes:], strict=True):
        left, start, parts = iter(sizes), 0, dict[str, Tensor]()
        for part in layout:
            shape = tuple(next(left) if size == FREE else size for size in part.shape)
            stop = start + math.prod(shape)
            parts[part.name] = values[start:stop].reshape(shape).to(KINDS[part.kind])
            start = stop
        placed = all(name.isdecimal() for name in parts)
        samples.append(parts.get(ALONE, tuple(parts.values()) if placed else parts) if layout else values)
    return samples


def summarize_rows(rows: Float[Tensor, "sample value"], layout: Layout) -> Float[Tensor, "sample statistic"]:
    """Describe each sample by as many numbers: of each part its sizes, and mean, deviation and limits of its values."""
    return torch.tensor([summarize(sample) for sample in read_rows(rows, layout)], device=rows.device)


def summarize(sample: Any) -> list[float]:
    parts = sample.values() if isinstance(sample, dict) else sample if isinstance(sample, tuple) else (sample,)
    found: list[float] = []
    for part in parts:
        values = part.flatten().float() if part.numel() else torch.zeros(1)
        limits = values.mean(), values.std(correction=0), values.min(), values.max()
        found += [float(number) for number in (*part.shape, *limits)]
    return found


def describe(sample: Sample) -> str:
    return first_few([f"{name or 'an array'} of {own.ndim} axes" for name, own in sample.items()]) or "none"
