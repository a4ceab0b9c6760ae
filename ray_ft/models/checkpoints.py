"""Weights as trainers write them, out of a file or a folder, read without running code that it brings.

What is read are tensors by dotted names: nested mappings and the names in a state dict become one path, such as
`state_dict.model.head.weight`. Which of them are the network's is found by `ray_ft.models.matching`.
"""

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from safetensors.torch import load_file
from torch import Tensor

from ray_ft.errors import WeightsError, first_few, first_line, shorten
from ray_ft.files.json_text import read_json
from ray_ft.files.memory import describe_excess
from ray_ft.files.suffixes import read_suffix

MAX_DEPTH = 6  # of mappings in mappings
SAFETENSORS, INDEX = ".safetensors", ".index.json"
SUFFIXES = (SAFETENSORS, ".pt", ".pth", ".bin", ".ckpt")
# Of a folder by Hugging Face or timm, the first that is there; shards have an index.
STEMS = ("model.safetensors", "pytorch_model.bin")
# What is built by a call where it is no object, and what a call by these names would build is no weight.
VALUES = {
    *(f"pathlib.{name}" for name in ("Path", "PosixPath", "PurePath", "PurePosixPath", "PureWindowsPath")),
    *("pathlib.WindowsPath", "datetime.date", "datetime.datetime", "datetime.timedelta", "numpy.dtype"),
    *(f"numpy.{core}.multiarray.scalar" for core in ("core", "_core")),
}


@dataclass(frozen=True)
class StoredWeights:
    """What a file or folder holds.

    Attributes:
        place: The file, as messages name it.
        tensors: By dotted name, those under the key that was asked for.
        key: The dotted path that was asked for behind `::`; empty where none was.
        beside: Names at the top of the file.
        notes: What was chosen in a folder, and what was left unread.
    """

    place: str
    tensors: Mapping[str, Tensor] = field(repr=False)
    key: str = ""
    beside: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


class KindOfUnread(type):
    """Refuses calls of a class: what a file would call is never called."""

    def __call__(cls, *args: Any) -> NoReturn:
        raise pickle.UnpicklingError("it holds what only a call would build")


class Unread(metaclass=KindOfUnread):
    """Stands for an object of a class that a file names: that class is not imported, and nothing of it is kept."""

    def __new__(cls, *args: Any) -> "Unread":
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Forget it."""


class UnreadValue:
    """Stands for a value, such as a path, out of the list of those that are built by a call."""

    def __init__(self, *args: Any) -> None:
        """Forget them."""

    __setstate__ = __init__


def read_weights(source: str | Path) -> StoredWeights:
    """Read the tensors of a checkpoint, `path` or `path::key`; no code in a file is run.

    The path is a `.safetensors`, a file by `torch.save`, the index of shards, or a folder with one of these.

    Raises:
        WeightsError: There is no such file or key, it does not fit into memory, or it holds no weights.
    """
    name, _, key = str(source).partition("::")
    path, unread = Path(name), list[str]()
    advice = "torch.save(network.state_dict(), path) writes what can be read"
    rule = f"a checkpoint must be weights alone (safetensors, or tensors by torch.save), got {shorten(name)}"
    try:
        file = find_in_folder(path) if path.is_dir() else path
        if not file.is_file():
            raise WeightsError(f"a checkpoint must be a file or a folder, got {shorten(name)}; check model.checkpoint")
        content = read_shards(file, rule) if file.name.lower().endswith(INDEX) else read_content(file, rule, unread)
    except WeightsError:
        raise
    except pickle.UnpicklingError as error:  # torch's own advice is to trust the file, which is not ours
        held = f"more than tensors ({first_few(unread)})" if unread else "more than tensors, or is damaged"
        raise WeightsError(f"{rule}: it holds {held}; {advice}") from error
    except Exception as error:  # of any class: torch's reader trusts the structure of what it reads
        scripted = "TorchScript archive" in str(error)  # of which torch says how to trust it
        raise WeightsError(f"{rule}: {f'it is TorchScript; {advice}' if scripted else first_line(error)}") from error
    tensors = dict(flatten(content, set())) if isinstance(content, Mapping) else {}
    if not tensors:
        kind = f", but an object ({first_few(unread)})" if isinstance(content, Unread) else ""
        raise WeightsError(f"a checkpoint must hold a state dict, got {shorten(name)} without one{kind}; {advice}")
    check_fits(sum(tensor.nbytes for tensor in tensors.values()), rule)
    notes = [f"the weights in {name} are those of {file.name}"] if file != path else []
    notes += [f"{file.name} holds objects that were not read: {first_few(unread)}"] if unread else []
    beside = tuple(own for own in content if isinstance(own, str))
    return StoredWeights(file.name, pick_key(tensors, key, name), key, beside, tuple(notes))


def find_in_folder(folder: Path) -> Path:
    """Find the weights in a folder: by the names that Hugging Face and timm give them, or the only ones."""
    for name in (stem + suffix for stem in STEMS for suffix in ("", INDEX)):
        if (folder / name).is_file():
            return folder / name
    names = sorted(path.name for path in folder.iterdir() if path.name.lower().endswith((*SUFFIXES, INDEX)))
    found = [name for name in names if name.lower().endswith(INDEX)] or names
    if len(found) == 1:
        return folder / found[0]
    if found:
        raise WeightsError(f"a folder must hold one file of weights, got {folder} with {first_few(found)}; name one")
    sharded = next(folder.glob("*.distcp"), None)
    advice = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} weights.pt makes one of it"
    raise WeightsError(
        f"a folder must hold a file of weights ({', '.join(SUFFIXES)}, or their {INDEX}), got {folder} without one"
        + (f"; {advice}" if sharded else "; check model.checkpoint")
    )


def read_content(path: Path, rule: str, unread: list[str]) -> Any:
    """Read a file; the names of classes whose objects are not read are added to `unread`."""
    check_fits(measure_content(path), rule)
    if read_suffix(path) == SAFETENSORS:
        return load_file(path)
    unread += list_unknown(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickles by another protocol, which are then refused
        with torch.serialization.safe_globals([(UnreadValue if own in VALUES else Unread, own) for own in unread]):
            return torch.load(path, "cpu", weights_only=True)


def list_unknown(path: Path) -> list[str]:
    """List what a file by `torch.save` names beside tensors, none of which is imported."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(str(path)))
    except Exception:  # of any class: it is damaged, or of the form before 2020; reading it says so
        return []


def read_shards(path: Path, rule: str) -> dict[str, Tensor]:
    """Read the shards that an index names, files beside it."""
    index = read_json(path)
    named = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(named, dict) or not named or not all(isinstance(own, str) for own in named.values()):
        raise WeightsError(f"an index of shards must have a weight_map of names and files, got {path} without one")
    files = {name: path.parent / name for name in sorted(set(named.values()))}
    if lacking := [name for name, file in files.items() if Path(name).name != name or not file.is_file()]:
        raise WeightsError(f"the shards must lie beside their index, got {path} without {first_few(lacking)}")
    check_fits(sum(map(measure_content, files.values())), rule)
    shards = {name: read_content(file, rule, []) for name, file in files.items()}
    if lacking := [name for name, own in named.items() if name not in shards[own]]:
        raise WeightsError(f"the shards must hold what their index says, got {path} without {first_few(lacking)}")
    return {name: shards[own][name] for name, own in named.items()}


def flatten(
    content: Mapping[Any, Any], seen: set[int], before: str = "", depth: int = 0
) -> Iterator[tuple[str, Tensor]]:
    """Yield tensors by dotted name out of mappings in mappings, each of which counts once."""
    if id(content) in seen or depth > MAX_DEPTH:
        return
    seen.add(id(content))
    for name, value in content.items():
        if isinstance(name, str):
            if isinstance(value, Mapping):
                yield from flatten(value, seen, f"{before}{name}.", depth + 1)
            elif is_weight(value):
                yield before + name, value


def is_weight(value: object) -> bool:
    """Whether this is a plain tensor on the CPU."""
    plain = isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return plain and not value.is_quantized  # type: ignore[attr-defined]  # a tensor


def pick_key(tensors: Mapping[str, Tensor], key: str, name: str) -> Mapping[str, Tensor]:
    """Take what lies under a dotted path."""
    if not key:
        return tensors
    found = {own: tensor for own, tensor in tensors.items() if own.startswith(f"{key.rstrip('.')}.")}
    if not found:
        known = list(dict.fromkeys(own.split(".")[0] for own in tensors if "." in own))
        raise WeightsError(f"{name} must have weights under {key}, got {first_few(known, 8) or 'names without a dot'}")
    return found


def measure_content(path: Path) -> int:
    """Bytes of a file; where it is a zip archive, unpacked."""
    if not zipfile.is_zipfile(path):
        return path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        return sum(member.file_size for member in archive.infolist())


def check_fits(n_bytes: int, rule: str) -> None:
    if excess := describe_excess(n_bytes):
        raise WeightsError(f"{rule}: {excess}")
