"""The commands on what a run leaves: its ensemble."""

import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Argument, Option

from ray_ft.cli.options import (
    AddressOption,
    ForceOption,
    JsonOption,
    LevelOption,
    QuietOption,
    RunArgument,
    Source,
    TrustOption,
    read_names,
)
from ray_ft.cli.outputs import check_output
from ray_ft.cli.show import open_console, resumable, show, show_json
from ray_ft.errors import ConfigError, DataError, RunFolderError, count

if TYPE_CHECKING:
    from ray_ft.ensemble import Ensemble
    from ray_ft.ensemble.artefact import Card
    from ray_ft.prediction.streams import Streamed
    from ray_ft.results.summary import EnsembleSummary

TAKEN = "Strategies whose members are taken, comma-separated. Without it, those of the run's config, or the winner's."
METHOD = "How members are weighed: uniform, greedy, stacked, or auto: uniform unless another is better beyond noise."
INPUTS = (
    "File of the inputs, such as x.npy, x.npz::key, x.csv, x.parquet::a,b, x.h5::path; or a folder of .npy or "
    ".parquet. Of a table, the columns of the training are taken unless others are named."
)
OUTPUT = (
    "File (.npz) or folder to write. A folder is written bit by bit, for inputs larger than memory, and the same "
    "command goes on with it."
)
WHERE_BETTER = "where it is better beyond noise, or as the run's config says"
WHERE_LIKELY = "where it is likely to be better, or as the run's config says"
PULL_BACK = "Take the weights part of the way back to the pretrained ones, by a share that the other folds choose."
SYMMETRIC = "Average predictions over the operations of data.symmetry."
LEVEL = "Confidence level of the intervals, between 0.5 and 1."
UNITS = "Units of the predictions, which the card states."
LICENSE = "License of the weights, which the card states."
PLOT = "File for a plot of the calibration: .png, .svg or .pdf. Without it, none is drawn."
QUANTITIES = "What to write, comma-separated, such as mean,flag. Without it, everything is written."
COLUMN = "Columns of the inputs in tables, comma-separated, in place of ::columns."
ON_RAY = "Predict by Ray Data, with all of a cluster, into a folder of Parquet files."
SOUP = "Average the weights of all members to one network, which has no intervals."
ALLOW_WORSE = "Write the --soup also if it scores worse than the ensemble, or has no score."
HOST = "Address to listen on. 0.0.0.0 opens it to every network of the machine."
THREADS = "Number of batches that are predicted at a time."
DEVICE = "Device that computes: cpu, cuda, or auto, which takes a GPU if there is one."
DATA = "File of labelled samples: .npz, table or other, with the keys or columns of the run's data."
LABELLED = "File of the {}, in place of --data, such as x.npy, x.npz::key or x.csv::a,b."
POOL = "File of inputs without labels, such as x.npy, x.npz::key or x.csv, of which the training's columns are taken."
EXPORT = (
    "What to write, by its end: .pt2 (for torch.export.load), .onnx, a folder .mlflow (for mlflow.pyfunc.load_model), "
    "or .db (the search of the run, for optuna.load_study)."
)
FORMER = "The former name of {}."
NEWEST = "Run or ensemble whose members are asked. Without it, the newest finished run in runs/ is."
OF_RUN = "the run's"

ensembles = typer.Typer()


@ensembles.command()
def ensemble(
    run: RunArgument,
    strategies: Annotated[str | None, Option(help=TAKEN)] = None,
    method: Annotated[str | None, Option(help=METHOD, show_default=OF_RUN)] = None,
    symmetric: Annotated[
        bool | None, Option("--symmetric/--no-symmetric", help=SYMMETRIC, show_default=WHERE_LIKELY)
    ] = None,
    pull_back: Annotated[
        bool | None, Option("--pull-back/--no-pull-back", help=PULL_BACK, show_default=WHERE_BETTER)
    ] = None,
    level: Annotated[float | None, Option(help=LEVEL, show_default=OF_RUN)] = None,
    units: Annotated[str | None, Option(help=UNITS, show_default=OF_RUN)] = None,
    license: Annotated[str | None, Option(help=LICENSE, show_default=OF_RUN)] = None,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Build the ensemble of a run from its members, again or in another way."""
    from ray_ft.cross_validation import rebuild_ensemble
    from ray_ft.report.ensembles import render_ensemble
    from ray_ft.report.page import write_report

    names = None if strategies is None else read_names("--strategies", strategies)
    choice = {"strategies": names, "method": method, "symmetric": symmetric, "level": level, "units": units}
    choice |= {"license": license, "pull_back": pull_back}
    before = find_ensemble(run)
    summary = rebuild_ensemble(run, trust, **{key: value for key, value in choice.items() if value is not None})
    write_report(run)  # which shows the ensemble
    if as_json:
        typer.echo(summary.model_dump_json(indent=2))
        return
    show(render_ensemble(summary, before))


def choose_new(name: str, new: Path | None, former: str, old: Path | None) -> Path:
    """Take what is given in a way that has another name than before, or in that way.

    Raises:
        ConfigError: It is given in neither way, or in both.
    """
    if new is not None and old is not None:
        raise ConfigError(f"{name} must be given once, got {new}, and {old} by {former}; leave out the latter")
    if old is not None:
        note_former(former, name)
    if (found := new or old) is None:
        raise ConfigError(f"{name} must be given, got nothing; say where to write")
    return found


def note_former(former: str, name: str) -> None:
    typer.echo(f"note: {former} still works, and is {name} now", err=True)


def find_ensemble(run: Path) -> "EnsembleSummary | None":
    """The ensemble that a run has."""
    from ray_ft.results.summary import Summary

    try:
        return Summary.load(run).ensemble
    except RunFolderError:  # building it says what is wrong
        return None


@ensembles.command()
def evaluate(
    source: Source,
    data: Annotated[str | None, Option(help=DATA)] = None,
    inputs: Annotated[str | None, Option(help=LABELLED.format("inputs"))] = None,
    targets: Annotated[str | None, Option(help=LABELLED.format("targets"))] = None,
    level: LevelOption = None,
    plot: Annotated[Path | None, Option(help=PLOT)] = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Measure the error and the intervals of an ensemble on fresh labelled samples."""
    from ray_ft.ensemble import Ensemble
    from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
    from ray_ft.report.ensembles import render_evaluation, write_calibration

    if plot is not None:
        check_output("--plot", plot, force, source, data, inputs, targets)
    loaded = Ensemble.load(source, trust=trust)
    warn_of(loaded.card)
    found = evaluate_ensemble(loaded, read_labelled(loaded, data, inputs, targets), level)
    if plot is not None:
        write_calibration(found, plot)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
    else:
        show(render_evaluation(found))


@ensembles.command()
def predict(
    source: Source,
    inputs: Annotated[str, Option(help=INPUTS)],
    out: Annotated[Path | None, Option("--out", "-o", help=OUTPUT)] = None,
    output: Annotated[Path | None, Option(help=FORMER.format("--out"), hidden=True)] = None,
    level: LevelOption = None,
    quantities: Annotated[str | None, Option(help=QUANTITIES)] = None,
    column: Annotated[str | None, Option(help=COLUMN)] = None,
    device: Annotated[str, Option(help=DEVICE)] = "auto",
    threads: Annotated[
        int | None, Option(min=1, help=THREADS, show_default="one a CPU of the process; 1 on a GPU")
    ] = None,
    on_ray: Annotated[bool, Option("--ray", help=ON_RAY)] = False,
    address: AddressOption = None,
    force: ForceOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    trust: TrustOption = False,
) -> None:
    """Predict with an ensemble.

    It writes the mean and the spread of the members, intervals, and whether an input is unlike the training samples.
    """
    from ray_ft.config import ComputeSection
    from ray_ft.ensemble import Ensemble
    from ray_ft.ensemble.artefact import check_files, find_folder, read_card
    from ray_ft.files.cpus import count_cpus
    from ray_ft.prediction.sources import open_source
    from ray_ft.prediction.streams import predict_to_archive, predict_to_folder

    output = choose_new("--out", out, "--output", output)
    check_device(device)
    check_kinds(output, on_ray)
    if output.suffix:  # a folder is gone on with, or refused
        check_output("--out", output, force, source, inputs)
    card = read_card(find_folder(source))
    check_files(card)
    opened = open_source(inputs, column, card.data_keys[0])
    names, console = quantities.split(",") if quantities else None, open_console(quiet, aside=True)
    asked: dict[str, Any] = {"quantities": names, "level": level, "console": console}
    started = time.monotonic()
    with nullcontext() if output.suffix else resumable():  # what goes into one file waits in memory
        if on_ray:
            from ray_ft.prediction.on_ray import predict_on_ray

            loaded = Ensemble.load(source, trust=trust)
            compute = ComputeSection.model_validate({"address": address, "device": device})
            found = predict_on_ray(loaded, source, opened, output, compute=compute, **asked)
        else:
            from ray_ft.ensemble.device import pick_device

            loaded = Ensemble.load(source, pick_device(device), trust)
            n_threads = threads or (count_cpus() if loaded.device.type == "cpu" else 1)
            write = predict_to_archive if output.suffix else predict_to_folder
            found = write(loaded, opened, output, n_threads=n_threads, **asked)
    warn_of(loaded.card)
    note_lack(loaded)
    tell_stream(found, len(loaded.card.members), output, time.monotonic() - started, as_json)


def warn_of(card: "Card") -> None:
    """Repeat what an ensemble says against its use, beside what others may read from the standard output."""
    if card.warning:
        typer.echo(f"note: {card.warning}", err=True)


def note_lack(loaded: "Ensemble") -> None:
    """Say that there are no intervals at the ensemble's own level, if so."""
    from ray_ft.statistics.intervals import WITHOUT_INTERVALS

    if lack := loaded.describe_lack(loaded.card.level):
        typer.echo(f"note: {lack}; {WITHOUT_INTERVALS}", err=True)


def check_device(device: str) -> None:
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"--device must be auto, cpu or cuda, got {device}")


def check_kinds(output: Path, on_ray: bool) -> None:
    if output.suffix not in ("", ".npz") or (on_ray and output.suffix):
        raise DataError(f"--out must end in .npz, or be a folder; with --ray a folder; got {output}")


def tell_stream(found: "Streamed", n_members: int, output: Path, seconds: float, as_json: bool) -> None:
    if as_json:
        show_json(out=output, n_members=n_members, **asdict(found), seconds=seconds)
        return
    new = found.n_samples - found.n_before
    rest = f" for {new:,} of them, the others before" if found.n_before else ""
    took = f"{seconds:.0f} s{rest}" if new else "finished before"
    flagged = "" if found.n_flagged is None else f"; {found.n_flagged:,} unlike the training samples"
    typer.echo(f"{found.n_samples:,} samples by {n_members} members in {output}, {took}{flagged}")


@ensembles.command()
def export(
    source: Source,
    output: Annotated[Path | None, Argument(help=FORMER.format("--out"), hidden=True)] = None,
    out: Annotated[Path | None, Option("--out", "-o", help=EXPORT)] = None,
    soup: Annotated[bool, Option("--soup", help=SOUP)] = False,
    allow_worse: Annotated[bool, Option("--allow-worse", help=ALLOW_WORSE)] = False,
    force: ForceOption = False,
    trust: TrustOption = False,
) -> None:
    """Write an ensemble, or the search of a run, for another program.

    A file .pt2 or .onnx runs without this package.
    """
    from ray_ft.ensemble import Ensemble
    from ray_ft.ensemble.export import check_soup, export_ensemble

    output = choose_new("--out", out, "a second argument", output)
    if output.suffix in OTHER_EXPORTS:
        if soup or allow_worse:
            raise ConfigError(f"--soup and --allow-worse are for .pt2 and .onnx, got {output}; leave them out")
        typer.echo(f"export  {output}: {OTHER_EXPORTS[output.suffix](source, output, force)}")
        return
    check_output("--out", output, force, source)
    loaded = Ensemble.load(source, trust=trust)
    if soup and not allow_worse:
        check_soup(loaded)
    path = export_ensemble(loaded, output, soup)
    names = ", ".join(loaded.exported)
    note_lack(loaded)
    what = "one network, the mean" if soup else f"{len(loaded.card.members)} members; {names}"
    typer.echo(f"export  {path}: {what} of inputs (n, {', '.join(map(str, loaded.card.input_shape))}) in float32")


def export_to_mlflow(source: Path, output: Path, force: bool) -> str:
    from ray_ft.ensemble.mlflow_model import write_mlflow

    write_mlflow(source, output)
    return "mlflow.pyfunc.load_model(path).predict(inputs) gives a dict of arrays"


def export_to_optuna(source: Path, output: Path, force: bool) -> str:
    from ray_ft.results.study import write_study

    check_output("--out", output, force, source)
    trials = write_study(source, output)
    listed = ", ".join(f"{name} with {count(n, 'trial')}" for name, n in trials.items())
    return f"studies {listed}; see them with: optuna-dashboard sqlite:///{output}"


OTHER_EXPORTS = {".mlflow": export_to_mlflow, ".db": export_to_optuna}  # by their suffix


@ensembles.command()
def suggest(
    source: Annotated[Path | None, Argument(metavar="[RUN_OR_ENSEMBLE]", help=NEWEST)] = None,
    inputs: Annotated[str | None, Option(help=POOL)] = None,
    n: Annotated[int, Option("--n", help="Number of samples to choose.")] = 20,
    run: Annotated[Path | None, Option(help=FORMER.format("a first argument"), hidden=True)] = None,
    out: Annotated[Path, Option("--out", "-o", help="Name of the table (NAME.csv) and the picture (NAME.png).")] = Path(
        "suggestion"
    ),
    force: ForceOption = False,
    as_json: JsonOption = False,
    trust: TrustOption = False,
) -> None:
    """Choose which samples of a pool to measure next.

    They are samples on which the members of an ensemble disagree, and which are unlike one another.
    """
    from ray_ft.data.sources import read_inputs
    from ray_ft.ensemble import Ensemble
    from ray_ft.ensemble.artefact import check_files
    from ray_ft.ensemble.suggestion import suggest_samples
    from ray_ft.report.ensembles import name_suggestion, write_suggestion
    from ray_ft.runs.folder import find_newest_run

    if inputs is None and source is not None and not source.is_dir():  # as it was once
        source, inputs = run, str(source)
        note_former("the pool as an argument", "--inputs")
    elif run is not None:
        source = choose_new("a first argument", source, "--run", run)
    if inputs is None:
        raise ConfigError("suggest needs the pool of inputs to choose from; name its file by --inputs")
    source, pool = source or find_newest_run(Path("runs")), inputs
    for path in name_suggestion(out):
        check_output("--out", path, force, source, pool)
    loaded = Ensemble.load(source, trust=trust)
    check_files(loaded.card)
    found = suggest_samples(loaded, read_inputs(pool, loaded.card.data_keys[0]).array, n, pool)
    files = write_suggestion(found, out)
    if found.known is None:
        note = f"note: {source} is of an earlier release and does not know its training samples; some may be chosen"
        typer.echo(note, err=as_json)
    elif n_known := int(found.known.sum()):
        typer.echo(f"note: {n_known} of {pool} are training samples, or images of some, and are skipped", err=as_json)
    if as_json:
        show_json(run=source, pool=pool, indices=[int(index) for index in found.indices], files=files)
        return
    typer.echo(f"measure next, in this order, of {len(found.disagreement)} in {pool}, counted from 0, by {source}:")
    typer.echo("  " + " ".join(map(str, found.indices)))
    typer.echo(f"written  {files[0]}, {files[1]}")


@ensembles.command()
def serve(
    source: Source,
    host: Annotated[str, Option(help=HOST)] = "127.0.0.1",
    port: Annotated[int, Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    max_samples: Annotated[int, Option(help="Most samples that a request may have.", min=1)] = 1024,
    max_body_mb: Annotated[float, Option(help="Largest body that a request may have, in MB.", min=0.001)] = 64,
    replicas: Annotated[int, Option(help="Number of processes that predict.", min=1)] = 1,
    address: AddressOption = None,
    device: Annotated[str, Option(help=DEVICE)] = "auto",
    trust: TrustOption = False,
) -> None:
    """Serve an ensemble over HTTP until Ctrl-C: POST /predict, GET /health.

    There is no authentication.
    """
    check_device(device)
    from ray_ft.serving.server import serve as serve_ensemble

    serve_ensemble(source, host, port, max_samples, max_body_mb, replicas, address, trust, device)
