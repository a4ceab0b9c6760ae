"""A run's folder, opened for one call: made, or found to hold this very run, and closed to others meanwhile."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ray_ft.config import Config, reload_config
from ray_ft.data.folds import Splits
from ray_ft.errors import ConfigError, RayFTError, RunFolderError, UserError, first_few
from ray_ft.files.writing import is_partial_of, write_record, write_text
from ray_ft.results.records import load_provenance, load_splits
from ray_ft.runs.folder import RunFolder, hold
from ray_ft.runs.provenance import describe_environment

ROUNDING = 1e-3  # of losses, as machines differ by
FORMAT = 4  # of a run folder; one of an older format is read, and not gone on with


@dataclass(frozen=True)
class Identity:
    """What a run is made of, so what its folder must hold to go on."""

    config: dict[str, Any]  # all that decides its members
    config_text: str  # the whole of it as YAML
    splits: Splits
    data_hash: str
    weights_hash: str
    first_losses: tuple[float, ...] = ()  # by which it shows where code computes something else, or another loss
    classes: tuple[str, ...] = ()  # names of the columns of targets, which are the same numbers under other names

    def as_dict(self) -> dict[str, Any]:
        """Return what is compared."""
        hashes = {"splits_hash": self.splits.hash, "data_hash": self.data_hash, "weights_hash": self.weights_hash}
        return {
            "config": self.config, **hashes, "first_losses": list(self.first_losses), "classes": list(self.classes)
        }  # fmt: skip


@contextmanager
def open_run(run: RunFolder, identity: Identity) -> Iterator[None]:
    """Make the run folder, or make sure that it holds this very run; keep others out while it is open.

    What this call wrote goes again when it turns out that the run cannot start.

    Raises:
        RunFolderError: It cannot be written, is in use, or holds another run or other files.
    """
    made = not os.path.exists(run.root)  # it takes a name that is too long, which Path does not
    with ExitStack() as stack:
        try:
            check_identity(run, identity)
            run.root.mkdir(parents=True, exist_ok=True)
            stack.enter_context(hold(run.lock, run.place))
            known = run.provenance.exists()
            write_identity(run, identity, known)
            run.push()
        except OSError as error:
            reason = error.strerror or error
            raise RunFolderError(f"the run folder must be writable, got {run.place}: {reason}; set --out") from error
        try:
            yield
        except UserError:
            if not known and not run.candidates.exists():
                forget(run, made)
            raise


def check_identity(run: RunFolder, identity: Identity) -> None:
    """Make sure that a folder holds nothing but this run, whose records are whole."""
    if not run.provenance.exists():
        if strangers := list_strangers(run):
            raise RunFolderError(
                f"a new run needs an empty folder, got {run.place} with {first_few(strangers)}; choose another --out"
            )
        return
    old, new = check_config(run, identity.config), identity.as_dict()
    hashed = {"data_hash": "the data", "weights_hash": "the pretrained weights", "splits_hash": "the splits"}
    refuse(run, [f"{what} have changed since" for key, what in hashed.items() if old[key] != new[key]][:1])
    if old["classes"] is not None and old["classes"] != new["classes"]:
        there, here = (first_few(each["classes"]) or "none" for each in (old, new))
        refuse(run, [f"the names of the classes have changed since: {there} there, {here} here"])
    first = old["first_losses"]
    if first and not np.allclose(first, new["first_losses"], rtol=ROUNDING, atol=ROUNDING * max(map(abs, first))):
        refuse(run, ["what the network computes with these weights, or its loss, has changed since"])


def check_config(run: RunFolder, config: dict[str, Any]) -> dict[str, Any]:
    """Make sure that a run was made with this config, and by this release; return its provenance."""
    old = load_provenance(run)
    if old["format"] != FORMAT:
        release = old["environment"]["versions"].get("ray-ft")
        raise RunFolderError(
            f"a run goes on with the release that began it, got {run.place} by ray-ft {release}; choose another --out "
            "(report, predict and evaluate read it as it is)"
        )
    refuse(run, list(compare(keep_compared(old["config"]), keep_compared(config), "")))
    return old


def keep_compared(config: dict[str, Any]) -> dict[str, Any]:
    """Leave out the strategies that a config has beside those that it compares."""
    named, known = config["cv"]["strategies"], config["strategies"]
    return {**config, "strategies": {name: known[name] for name in known if not named or name in named}}


def refuse(run: RunFolder, changes: list[str]) -> None:
    if changes:
        listed = "\n".join(f"  {change}" for change in changes)
        raise RunFolderError(
            f"a run folder goes on with the config that it was made with, but {run.place} differs\n{listed}\n"
            "choose another --out, or remove the folder"
        )


def was_chosen(run: RunFolder, config: Config) -> bool:
    """Whether the ensemble there was built by settings that are not those of the config."""
    with suppress(RayFTError):  # there is none, or it is damaged and made again
        return reload_config(run.ensemble.config).ensemble != config.ensemble
    return False


def compare(old: Any, new: Any, key: str) -> Iterator[str]:
    """List the keys whose values differ."""
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys([*old, *new]):
            if key == "strategies" and (name not in old or name not in new):  # whose settings say no more
                yield f"strategy {name}: {'there' if name in old else 'here'} alone"
                continue
            yield from compare(old.get(name), new.get(name), f"{key}.{name}" if key else name)
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for i, pair in enumerate(zip(old, new, strict=True)):
            yield from compare(*pair, f"{key}.{i}")
    elif old != new:
        yield f"{key}: {json.dumps(old)} there, {json.dumps(new)} here"


def list_strangers(run: RunFolder) -> list[str]:
    """Name the files of a folder that are not what a run cut off at its start leaves; that always has a lock."""
    names = sorted(path.name for path in run.root.iterdir()) if run.root.is_dir() else []
    if not run.lock.exists():
        return names
    written = run.config, run.splits, run.plan, run.provenance
    own = {path.name for path in (run.lock, run.config, run.splits, run.plan)}
    return [name for name in names if name not in own and not any(is_partial_of(path, name) for path in written)]


def write_identity(run: RunFolder, identity: Identity, known: bool) -> None:
    """Write what a run is made of; of one that is known, only what is damaged, as all of it follows from its config."""
    if not known or is_damaged(lambda: reload_config(run.config)):
        write_text(run.config, identity.config_text)
    if not known or is_damaged(lambda: load_splits(run)):
        write_record(run.splits, {"hash": identity.splits.hash, **asdict(identity.splits)})
    if not known:
        write_record(run.provenance, identity.as_dict() | {"format": FORMAT, "environment": describe_environment()})


def is_damaged(load: Callable[[], object]) -> bool:
    try:
        load()
    except (RunFolderError, ConfigError):
        return True
    return False


def forget(run: RunFolder, made: bool) -> None:
    """Remove the files of a run in which nothing was trained, and its folder if it was made for it."""
    for path in (run.provenance, run.plan, run.splits, run.config, run.log, run.lock):
        path.unlink(missing_ok=True)
    run.push()
    if made and not any(run.root.iterdir()):
        run.root.rmdir()
