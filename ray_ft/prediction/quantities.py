"""The quantities of a prediction that are asked for, chunk by chunk, and no work for the others."""

import math
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Shaped

from ray_ft.ensemble import Ensemble, blame_inputs, limit_blas
from ray_ft.errors import ConfigError, DataError, show_value, suggest
from ray_ft.files.suffixes import read_suffix
from ray_ft.prediction.sources import Source, read_chunks

CHUNK_BYTES = 2**25  # of a chunk's prepared inputs
BATCH_SIZE = 32
Span = tuple[int, int]  # the first sample, and the one after the last
Found = Mapping[str, Shaped[np.ndarray, "sample ..."]]  # by quantity


@dataclass(frozen=True)
class PredictionSpec:
    """What to predict: some of `Ensemble.quantities`, in their order, and the level of the intervals."""

    quantities: tuple[str, ...]
    level: float


def choose_quantities(ensemble: Ensemble, quantities: Collection[str] | None, level: float | None) -> PredictionSpec:
    """Check what is asked for; where it is left out, all quantities that there are, and the card's level.

    Raises:
        ConfigError: A quantity is unknown, or the training samples are too few for it at the level.
    """
    known, level = ensemble.quantities, ensemble.settle_level(level)
    available = ensemble.list_available(level)
    asked = available if quantities is None else quantities
    for name in asked:
        if name not in known:
            raise ConfigError(f"quantities are {', '.join(known)}; got {show_value(name)}{suggest(name, known)}")
    if not asked:
        raise ConfigError(f"some quantity must be asked for: {', '.join(known)}")
    if lacking := [name for name in asked if name not in available]:
        raise ConfigError(f"{', '.join(lacking)}: {ensemble.describe_lack(level)}")
    return PredictionSpec(tuple(name for name in known if name in asked), level)


def predict_chunks(
    ensemble: Ensemble, source: Source, spec: PredictionSpec, span: Span, size: int | None = None, n_threads: int = 1
) -> Iterator[tuple[int, Found]]:
    """Yield the predictions of the samples from one to another, `size` at a time, with how many they are.

    Without a size, chunks are whole batches, of 32 MB at most where a batch is less. Each thread computes a batch by
    itself: the network's layers are too small to be shared. A sample that is not as the run's were is named.
    """
    in_bytes = CHUNK_BYTES // (4 * math.prod(ensemble.card.input_shape))
    size = size or min(max(in_bytes // BATCH_SIZE, 1), 128) * BATCH_SIZE
    shape = arrange(source, ensemble)
    pool = ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,))
    with pool, limit_blas():
        first = span[0]
        for chunk in read_chunks(source, *span, size):
            inputs = chunk.reshape(len(chunk), *shape)

            def compute(i: int, own: np.ndarray = inputs) -> Found:
                prepared = ensemble.prepare(own[i : i + BATCH_SIZE])
                with blame_inputs(f"inputs in {source.name}"):
                    return ensemble.compute(prepared, spec.level, spec.quantities)

            try:
                parts = list(pool.map(compute, range(0, len(chunk), BATCH_SIZE)))
            except DataError as error:
                raise find_bad(ensemble, inputs, source, first) or error from error
            yield len(chunk), {name: np.concatenate([part[name] for part in parts]) for name in spec.quantities}
            first += len(chunk)


def try_first(ensemble: Ensemble, source: Source, spec: PredictionSpec) -> Found:
    """Predict the first sample, for the shapes and types of the quantities."""
    ((_, found),) = predict_chunks(ensemble, source, spec, (0, 1), 1)
    return found


def arrange(source: Source, ensemble: Ensemble) -> tuple[int, ...]:
    """Shape of a sample; where a column of Parquet has flattened ones, that of the layout with as many values."""
    if read_suffix(source.blocks[0].path) != ".parquet" or len(source.shape) > 1:
        return source.shape
    shapes = ensemble.domain.list_shapes(ensemble.card.input_shape, source.dtype)
    return next((shape for shape in shapes if (math.prod(shape),) == source.shape), source.shape)


def find_bad(
    ensemble: Ensemble, inputs: Shaped[np.ndarray, "sample ..."], source: Source, first: int
) -> DataError | None:
    """Find the first sample of a chunk that is refused by itself, and say which it is."""
    for i, sample in enumerate(inputs):
        if not np.isfinite(sample).all():
            return DataError(f"data must be finite, got NaN or infinity in {source.locate(first + i)}")
        try:
            ensemble.prepare(sample[None], "the inputs")
        except DataError as error:
            return DataError(str(error).replace("the inputs", source.locate(first + i)))
    return None
