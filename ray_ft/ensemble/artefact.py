"""An ensemble on disk: a card that says what it is, and the files that the card names by their hashes."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ray_ft.config import ModelSection
from ray_ft.domains import DomainName
from ray_ft.errors import EnsembleError, first_line, show_value
from ray_ft.files.json_text import parse_json, read_json
from ray_ft.files.memory import describe_excess
from ray_ft.files.writing import replace_file, write_text
from ray_ft.runs.folder import EnsembleFolder, RunFolder

FORMAT: Literal["ray-ft ensemble"] = "ray-ft ensemble"
VERSION = 2


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class MemberCard(Frozen):
    """A member: what it trained on, and until when."""

    strategy: str
    candidate: str
    repeat: int
    fold: int
    seed: int
    epoch: int


class Card(Frozen):
    """What an ensemble is and came from.

    Attributes:
        run: Name of its run.
        license: Of the weights, as its owner wrote it.
        units: Of the predictions.
        method: How members are weighed.
        weights: By method, of the members in their order; those of a fold and repeat sum to 1.
        score: Of the blind members, with the run's metric.
        scores: The same by method.
        soup_score: Of the blind members of a fold, their weights averaged over seeds; None where there is one seed.
        n_blind: Members that never saw a sample.
        level: Of the intervals, unless another is asked for.
        data_keys: Under which the inputs and targets stood in the run's `.npz`; empty for a file of one array.
        symmetric: Whether predictions are averaged over the symmetry, as their intervals then are.
        symmetry: Operations that generate it.
        split: Why the network runs whole; empty where it does not.
        versions: Of the packages that made it.
        files: SHA-256 of each file beside the card.
    """

    format: Literal["ray-ft ensemble"]
    version: int
    run: str
    license: str
    units: str
    strategies: tuple[str, ...]
    method: str
    weights: dict[str, tuple[float, ...]]
    metric: str
    score: float
    scores: dict[str, float]
    soup_score: float | None
    n_blind: int
    level: float
    symmetric: bool
    symmetry: tuple[str, ...]
    layout: DomainName
    data_keys: tuple[str, str]
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    wavelengths_nm: tuple[float, float]
    model: ModelSection
    split: str
    n_repeats: int
    n_folds: int
    n_seeds: int
    members: tuple[MemberCard, ...]
    splits_hash: str
    data_hash: str
    weights_hash: str
    versions: dict[str, str | None]
    files: dict[str, str]


@dataclass(frozen=True)
class Origin:
    """What of a run's config goes with its ensemble.

    Attributes:
        name: Of the run.
        layout: Form of its data.
        data_keys: Under which inputs and targets stand in its `.npz`; empty for a file of one array.
        wavelengths_nm: First and last.
        model: What builds the network.
        config_text: The whole config as YAML.
    """

    name: str
    layout: DomainName
    data_keys: tuple[str, str]
    wavelengths_nm: tuple[float, float]
    model: ModelSection
    config_text: str


def find_folder(path: Path) -> EnsembleFolder:
    """Find an ensemble in its folder or in that of its run.

    Raises:
        EnsembleError: There is none.
    """
    for folder in (EnsembleFolder(path), RunFolder(path).ensemble):
        with suppress(OSError):  # of a path that is too long, or may not be looked at
            if folder.card.is_file():
                return folder
    raise EnsembleError(
        f"an ensemble is a folder with card.json, or a finished run, got {path} without one; "
        "give the run's folder, or rebuild it with: ray-ft ensemble RUN"
    )


def read_card(folder: EnsembleFolder) -> Card:
    """Read a card.

    Raises:
        EnsembleError: It is damaged, foreign or of another version.
    """
    try:
        content = read_json(folder.card)
    except (OSError, ValueError) as error:
        raise EnsembleError(f"an ensemble's card must be JSON, got {folder.card}: {first_line(error)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EnsembleError(f'an ensemble\'s card says "format": "{FORMAT}", got {folder.card} without it')
    if content.get("version") != VERSION:
        raise EnsembleError(
            f"this release reads ensembles of version {VERSION}, got version {show_value(content.get('version'))} in "
            f"{folder.card}; load it with the release that wrote it, or rebuild it with: ray-ft ensemble RUN"
        )
    try:
        return Card.model_validate(content)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise EnsembleError(
            f"an ensemble's card must have all of its entries, got {folder.card}: {place}: {problem['msg']}"
        ) from error


def read_bytes(path: Path, card: Card) -> bytes:
    """Read a file that the card names.

    Raises:
        EnsembleError: It is missing, or not the one of which the card has the hash.
    """
    try:
        if excess := describe_excess(2 * path.stat().st_size):  # the bytes and the tensors
            raise EnsembleError(f"an ensemble's files must fit into memory, got {path}: {excess}")
        content = path.read_bytes()
    except OSError as error:
        raise EnsembleError(f"an ensemble's files must be readable, got {path}: {error.strerror}") from error
    if hashlib.sha256(content).hexdigest() != card.files.get(path.name):
        raise EnsembleError(
            f"{path} must be the file that card.json names by its hash, but it was changed; rebuild it with: "
            "ray-ft ensemble RUN"
        )
    return content


def read_tensors(path: Path, card: Card) -> dict[str, Tensor]:
    try:
        return load(read_bytes(path, card))
    except (SafetensorError, ValueError, KeyError) as error:
        raise EnsembleError(f"an ensemble's tensors must be readable, got {path}: {first_line(error)}") from error


def read_network(path: Path, card: Card) -> Any:
    try:
        return parse_json(read_bytes(path, card))
    except ValueError as error:
        raise EnsembleError(f"an ensemble's network must be JSON, got {path}: {first_line(error)}") from error


def write_files(
    folder: EnsembleFolder, tensors: Mapping[Path, Mapping[str, Tensor]], texts: Mapping[Path, str]
) -> dict[str, str]:
    """Write the files of an ensemble but its card; return their hashes by name."""
    contents = {path: text.encode() for path, text in texts.items()}
    for path, own in tensors.items():
        # Copies, as tensors that share memory are refused.
        copies = {
            name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in own.items()
        }
        contents[path] = save(copies)
    try:
        folder.card.unlink(missing_ok=True)  # what it names is about to change
        for path, content in contents.items():
            with replace_file(path) as partial:
                partial.write_bytes(content)
    except OSError as error:
        raise EnsembleError(f"an ensemble's folder must be writable, got {folder.root}: {error.strerror}") from error
    return {path.name: hashlib.sha256(content).hexdigest() for path, content in contents.items()}


def write_card(folder: EnsembleFolder, card: Card) -> None:
    """Write the card, last of all files."""
    write_text(folder.card, card.model_dump_json(indent=2) + "\n")
