"""Samples of the pretraining, which training sees again beside its own so that what was learned of them is kept.

References:
    Robins, "Catastrophic forgetting, rehearsal and pseudorehearsal", Connection Science 7 (1995). Samples of before
    have their targets (rehearsal), or what the network said before it learned on (pseudorehearsal, there of random
    inputs).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from jaxtyping import Float, Shaped
from torch import nn

from ray_ft.config import Config
from ray_ft.data.packing import Layout
from ray_ft.data.samples import Samples, have_same_values, label_orbits, prepare_inputs, prepare_targets
from ray_ft.data.sources import read_inputs, read_source
from ray_ft.errors import DataError, shorten
from ray_ft.models import predict_all
from ray_ft.objectives import Objective
from ray_ft.search.strategies import Strategy


@dataclass(frozen=True)
class ReplayArrays:
    """Samples that are replayed, as their user has them; targets are None where the network is to say them."""

    inputs: Shaped[np.ndarray, "..."]
    targets: Shaped[np.ndarray, "..."] | None = None
    layout: Layout = ()  # of the inputs, where several are packed


def read_replayed(
    config: Config,
    samples: Samples,
    objective: Objective,
    network: nn.Module,
    strategies: Mapping[str, Strategy],
    given: ReplayArrays | None = None,
    new_head: bool = False,
) -> Samples | None:
    """Take the samples that are replayed; None where there are none.

    Args:
        config: It names them.
        samples: Those that are learned, in whose form they are to be.
        objective: It brings targets into numbers.
        network: The pretrained network, which says targets where none are given.
        strategies: What is trained, for the notes.
        given: What takes the place of the files.
        new_head: Whether what the network says is of a layer that knows nothing yet.

    Raises:
        DataError: They are not in the form of the samples, or not complete.
    """
    named = config.data.replay
    if named is None:
        return None
    arrays, source = given or read_files(named.inputs, named.targets, samples.keys), shorten(named.inputs)
    x = prepare_inputs(arrays.inputs, samples.domain, source)
    check_alike("inputs", x.shape[1:], samples.inputs.shape[1:], source)
    check_alike("inputs", arrays.layout, samples.layout, source)
    if arrays.targets is not None:
        refuse_own(x, samples, source)
        x, y = take_labelled(x, arrays.targets, samples, objective, source, targets := shorten(named.targets or ""))
        said = f"the targets of {targets}"
    elif new_head:
        raise DataError(
            "what is replayed with a new head needs targets, got none, and the pretrained network's own answers went "
            "with its head; name data.replay.targets, or leave data.replay out"
        )
    else:
        y = objective.respond(predict_all(network, x)).numpy().astype(np.float32)
        said = "what the pretrained network says of them"
    notes = [f"{len(x):,} samples of {source} are replayed with {said}; nothing is scored on them"]
    if closed := [name for name, own in strategies.items() if any(stage.closed for stage in own.stages)]:
        notes.append(f"{', '.join(closed)}: fitted in closed form to the samples alone, so nothing is replayed there")
    return replace(
        samples, inputs=x, targets=y, groups=np.arange(len(x)), strata=None, notes=tuple(notes),
        answered=arrays.targets is None,
    )  # fmt: skip


def refuse_own(inputs: Float[np.ndarray, "replayed *input"], samples: Samples, source: str) -> None:
    """Refuse labelled samples that are the run's own, or images of them: training would learn what is held out."""
    views = samples.domain.list_views(samples.domain.operations)
    orbits = label_orbits(np.concatenate([samples.inputs, inputs]), views)
    own, replayed = np.split(orbits, [len(samples)])
    if n_known := int(np.isin(replayed, own).sum()):
        raise DataError(
            f"replayed samples with targets must be none of the run's own, nor images of them, got {n_known} of "
            f"{len(inputs)} in {source} that are; leave them out, or data.replay.targets"
        )


def take_labelled(
    inputs: Float[np.ndarray, "replayed *input"],
    targets: Shaped[np.ndarray, "..."],
    samples: Samples,
    objective: Objective,
    source: str,
    targets_source: str,
) -> tuple[Float[np.ndarray, "kept *input"], Float[np.ndarray, "kept *target"]]:
    """Take the replayed samples that have targets, in the form of the samples' own."""
    encode = partial(objective.encode_targets, classes=samples.classes)
    y, kept, _, _ = prepare_targets(targets, samples.domain, targets_source, encode)
    if len(targets) != len(inputs):
        told = f"got {len(inputs)} in {source} and {len(targets)} in {targets_source}"
        raise DataError(f"replayed inputs and targets must have equally many samples, {told}")
    wanted = samples.targets.shape[1:]
    y = y.reshape(-1, *wanted) if have_same_values(y.shape[1:], wanted) else y
    check_alike("targets", y.shape[1:], wanted, targets_source)
    if n_gaps := int(np.isnan(y).reshape(len(y), -1).any(1).sum()):
        raise DataError(
            f"replayed targets must be complete, got NaN in {n_gaps} of {len(y)} samples of {targets_source}; leave "
            "these out, or data.replay.targets"
        )
    return inputs[kept], y


def read_files(inputs: str, targets: str | None, keys: tuple[str, str]) -> ReplayArrays:
    read = read_inputs(inputs, keys[0])
    return ReplayArrays(read.array, read_source(targets, keys[1]).array if targets else None, read.layout)


def check_alike(what: str, found: object, wanted: object, source: str) -> None:
    if found != wanted:
        raise DataError(
            f"replayed {what} must have the form of data.{what}, {wanted} for a sample, got {found} in {source}; name "
            "samples of the kind that the network takes, or leave data.replay out"
        )
