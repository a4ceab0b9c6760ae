"""An ensemble on disk: a card that says what it is, and the files that the card names by their hashes."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ray_ft.config import ModelSection
from ray_ft.data.packing import Part
from ray_ft.data.ragged import is_ragged
from ray_ft.domains import DomainName, TargetAxes, find_domain
from ray_ft.errors import EnsembleError, RayFTError, count, first_line, show_value
from ray_ft.files.json_text import parse_json, read_json
from ray_ft.files.memory import describe_excess
from ray_ft.files.writing import replace_file, write_text
from ray_ft.runs.folder import EnsembleFolder, RunFolder

FORMAT: Literal["ray-ft ensemble"] = "ray-ft ensemble"
VERSION = 2
State = Mapping[str, Tensor]  # tensors by name


class MemberCard(BaseModel, extra="forbid", frozen=True):
    """A member: what it trained on, and until when."""

    strategy: str
    candidate: str
    repeat: int
    fold: int
    seed: int
    epoch: int


class Card(BaseModel, extra="forbid", frozen=True):
    """What an ensemble is and came from.

    Attributes:
        weights: By method, of the members in order; those of a fold and repeat sum to 1.
        score: Of the blind members, with the run's metric.
        soup_score: Of the blind members of a fold, their weights averaged over seeds; None where there is one seed.
        n_blind: Members that never saw a sample.
        data_keys: Under which the inputs and targets stood in the run's `.npz`; empty for a file of one array.
        answer_shape: In which the network is told to lay out what it says of a sample; None where it does so itself.
        new_head: Which layer of the network that the factory builds was replaced, and its size; None where none was.
        inputs: Which inputs are packed in a sample, where there are several.
        pulled_shares: Of the way from the pretrained weights, where they were pulled back, by repeat and fold.
        symmetric: Whether predictions are averaged over the symmetry, as their intervals then are.
        classes: Names of the targets' columns, where these are classes or labels.
        scales: Of each target value, in whose units errors count for the metric; empty where they count as they are.
        split: Why the network runs whole; empty where it does not.
        warning: Why the ensemble should not be used; empty where nothing is against it.
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
    pulled_shares: tuple[float, ...] = ()
    symmetric: bool
    symmetry: tuple[str, ...]
    layout: DomainName
    data_keys: tuple[str, str]
    input_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    answer_shape: tuple[int, ...] | None = None
    new_head: tuple[str, int, int] | None = None
    inputs: tuple[Part, ...] = ()
    collate: str | None = None
    classes: tuple[str, ...] = ()
    scales: tuple[float, ...] = ()
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
    warning: str = ""
    versions: dict[str, str | None]
    files: dict[str, str]

    @property
    def needs_code(self) -> bool:
        """Whether the network could not be written down, and is built or given its batches by code."""
        return bool(self.split and (self.model.factory or self.collate))

    def describe(self) -> str:
        """What it is, in a line: run, members, how they are weighed and its score."""
        members = f"{count(len(self.members), 'member')} of {' and '.join(self.strategies)}, {self.method}"
        return f"{self.run}: {members}, {self.metric} {self.score:.4g}"

    def name_axes(self) -> TargetAxes:
        """Name the axes of a target, its values by the columns of a table where it was one."""
        axes = find_domain(self.layout).name_axes(self.target_shape, self.wavelengths_nm)
        columns = tuple(self.data_keys[1].split(","))
        return replace(axes, ticks=columns) if self.target_shape == (len(columns),) else axes


@dataclass(frozen=True)
class Origin:
    """What of a run's config goes with its ensemble: what its card says, and the whole as YAML."""

    name: str
    layout: DomainName
    data_keys: tuple[str, str]
    wavelengths_nm: tuple[float, float]
    model: ModelSection
    config_text: str
    collate: str | None = None


@contextmanager
def refuse(*kinds: type[Exception], rule: str, path: Path) -> Iterator[None]:
    """Turn what a file of an ensemble raises, but for this package's own errors, into the rule that it breaks."""
    try:
        yield
    except RayFTError:
        raise
    except kinds as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise EnsembleError(f"an ensemble's {rule}, got {path}: {reason}") from error


def check_files(card: Card) -> None:
    """Refuse an ensemble whose inputs stand in no file.

    Raises:
        EnsembleError: Its samples have shapes of their own.
    """
    if is_ragged(card.inputs):
        raise EnsembleError(
            "files hold samples of one shape, but those of this ensemble have shapes of their own; ask it from Python: "
            "Ensemble.load(folder, trust=True).predict(a list of samples)"
        )


def find_folder(path: Path) -> EnsembleFolder:
    """Find an ensemble in its folder or in that of its run."""
    for folder in (EnsembleFolder(path), RunFolder(path).ensemble):
        with suppress(OSError):  # of a path that is too long, or may not be looked at
            if folder.card.is_file():
                return folder
    raise EnsembleError(
        f"an ensemble is a folder with card.json, or a finished run, got {path} without one; "
        "give the run's folder, or rebuild it with: ray-ft ensemble RUN"
    )


def read_card(folder: EnsembleFolder) -> Card:
    """Read a card, unless it is damaged, foreign or of another version."""
    with refuse(OSError, ValueError, rule="card must be JSON", path=folder.card):
        content = read_json(folder.card)
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
    """Read a file that the card names, if it is the one of which the card has the hash."""
    with refuse(OSError, rule="files must be readable", path=path):
        if excess := describe_excess(2 * path.stat().st_size):  # the bytes and the tensors
            raise EnsembleError(f"an ensemble's files must fit into memory, got {path}: {excess}")
        content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != card.files.get(path.name):
        raise EnsembleError(
            f"{path} must be the file that card.json names by its hash, but it was changed; rebuild it with: "
            "ray-ft ensemble RUN"
        )
    return content


def read_tensors(path: Path, card: Card) -> dict[str, Tensor]:
    with refuse(SafetensorError, ValueError, KeyError, rule="tensors must be readable", path=path):
        tensors = load(read_bytes(path, card))
    return tensors


def read_network(path: Path, card: Card) -> Any:
    with refuse(ValueError, rule="network must be JSON", path=path):
        content = parse_json(read_bytes(path, card))
    return content


def write_files(folder: EnsembleFolder, tensors: Mapping[Path, State], texts: Mapping[Path, str]) -> dict[str, str]:
    """Write the files of an ensemble but its card; return their hashes by name."""
    contents = {path: text.encode() for path, text in texts.items()}
    for path, own in tensors.items():
        # Copies, as tensors that share memory are refused.
        copies = {name: each.detach().cpu().clone(memory_format=torch.contiguous_format) for name, each in own.items()}
        contents[path] = save(copies)
    folder.card.unlink(missing_ok=True)  # what it names is about to change
    for path, content in contents.items():
        with replace_file(path) as partial:
            partial.write_bytes(content)
    return {path.name: hashlib.sha256(content).hexdigest() for path, content in contents.items()}


def write_card(folder: EnsembleFolder, card: Card) -> None:
    """Write the card, last of all files."""
    write_text(folder.card, card.model_dump_json(indent=2) + "\n")
