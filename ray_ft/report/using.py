"""How the ensemble of a run is used: by the command, from Python, over HTTP."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ray_ft.data.ragged import is_ragged
from ray_ft.ensemble.artefact import Card, read_card
from ray_ft.errors import EnsembleError
from ray_ft.objectives import find_objective
from ray_ft.report.words import label
from ray_ft.results.summary import Summary
from ray_ft.runs.folder import RunFolder

SERVED = "It needs pip install 'ray-ft[serve]'. The server runs until Ctrl-C, so ask it from another terminal."


@dataclass(frozen=True)
class Way:
    """One way to predict: its name, what to type line by line, and what is needed for it."""

    title: str
    lines: tuple[str, ...]
    note: str = ""


def find_card(run: RunFolder) -> Card | None:
    """The card of a run's ensemble; None where there is none that this release reads."""
    try:
        return read_card(run.ensemble) if run.ensemble.card.is_file() else None
    except EnsembleError:
        return None


def find_place(summary: Summary, run: RunFolder) -> Path:
    """The folder of a run; of one at a URI, that into which it is fetched."""
    return Path("runs") / summary.name if run.mirror else run.root


def name_output(folder: Path, what: str) -> str:
    """Name a file beside the run by the run, so that it takes the place of no other file."""
    named = folder if folder.name.strip(".") else folder.resolve()
    return str(named.with_name(f"{named.name}-{what}.npz"))


def say_obstacle(summary: Summary, card: Card | None, folder: Path) -> str:
    """Why the ensemble is not to be used; nothing where it may be."""
    if summary.winner is None:
        return (
            f"Do not use this ensemble: no strategy beats {label(summary.best_baseline)}, the best baseline, which "
            "costs no training."
        )
    if card is None:
        return f"There is no ensemble in this run that this release reads. This builds it: ray-ft ensemble {folder}"
    return ""


def list_ways(summary: Summary, run: RunFolder, card: Card) -> Iterator[Way]:
    """List the ways that inputs of the ensemble's kind can go; samples of unequal shapes stand in no file."""
    folder = find_place(summary, run)
    trust, trusted = (["--trust"], ", trust=True") if card.needs_code else ([], "")
    fetch = [command("fetch", run.place, str(folder))] if run.mirror else []
    load = f"ray_ft.Ensemble.load({str(folder)!r}{trusted})"
    answers = find_objective(card.metric).answers
    shown = [name for name in (*answers.exported, "flag") if name != "std"]
    show = f"print({', '.join(f'prediction.{name}' for name in shown)})"
    if is_ragged(card.inputs):
        lines = "import ray_ft", f"prediction = {load}.predict(samples)", show
        yield Way("Python", (*fetch, *lines), "samples is a list, each as in the run's data.")
        return
    file, opened = ("new.npz", 'dict(np.load("new.npz"))') if card.inputs else ("new.npy", 'np.load("new.npy")')
    predict = "predict", str(folder), "--inputs", file, "--out", name_output(folder, "predictions"), *trust
    yield Way("Command", (*fetch, command(*predict)), describe_file(card, file))
    code = "import numpy as np", "import ray_ft", f"prediction = {load}.predict({opened})", show
    yield Way("Python", code)
    if not card.inputs:  # a request holds one array
        asked = ["curl", "-H", "Content-Type: application/x-npy", "--data-binary", f"@{file}", "-o"]
        asked += [name_output(folder, "answers"), "http://127.0.0.1:8000/predict"]
        serve = command("serve", str(folder), *trust)
        yield Way("HTTP", (serve, shlex.join(asked)), SERVED)


def command(*words: str) -> str:
    return f"ray-ft {shlex.join(words)}"


def describe_file(card: Card, file: str) -> str:
    if card.inputs:
        return f"{file} holds the arrays {', '.join(part.name for part in card.inputs)}."
    shape = ", ".join(map(str, ("n", *card.input_shape)))
    return f"{file} holds n inputs as in the run's data; in the network's form, their shape is ({shape})."
