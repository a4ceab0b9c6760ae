"""The command line; each command imports what it runs inside its function, so help is instant."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ray_ft import __version__
from ray_ft.cli.ensembles import ensembles
from ray_ft.cli.options import (
    AddressOption,
    ConfigOption,
    InlineOption,
    JsonOption,
    QuietOption,
    RunArgument,
    SetOption,
    VerboseOption,
    configured,
    load,
)
from ray_ft.cli.show import (
    describe_shortage,
    note_chance,
    open_console,
    resumable,
    say_code,
    show,
    show_json,
)
from ray_ft.cli.starting import starting
from ray_ft.errors import ConfigError, RayFTError, RunError, count

if TYPE_CHECKING:
    from ray_ft.config import Config

OUT = "Folder that keeps the run, or a URI (s3://bucket/run). Without it, the run is kept in runs/NAME."
CURVE_OUT = "Folder that keeps the curve. Without it, runs/NAME-curve does."
SIZES = "Sizes of the training parts in samples, three or more, comma-separated."
app = typer.Typer(
    name="ray-ft",
    context_settings={"max_content_width": 100},
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def show_version(asked: bool) -> bool:
    if asked:
        typer.echo(f"ray-ft {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def begin(
    version: Annotated[
        bool, Option("--version", callback=show_version, is_eager=True, help="Say which release this is, and exit.")
    ] = False,
) -> None:
    """Which parts of a pretrained network should learn from about 100 samples? `ray-ft cv` compares them."""


@app.command()
@configured
def cv(
    config: "Config",
    out: Annotated[str | None, Option("--out", "-o", help=OUT)] = None,
    address: AddressOption = None,
    inline: InlineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Cross-validate the strategies, and build an ensemble of the best one.

    The same command goes on with a run that was stopped, and shows the table of a finished one again.
    """
    with resumable():
        say_starting(quiet)
        from ray_ft.cross_validation import cross_validate
        from ray_ft.report.terminal import render_summary
        from ray_ft.runs.folder import open_folder

        with open_folder(out or Path("runs") / config.name) as run:
            summary = cross_validate(config, run, inline, open_console(quiet, verbose, as_json), report=True)
            if as_json:
                typer.echo(summary.model_dump_json(indent=2))
                return
            show(render_summary(summary, run, own_code=bool(config.code)))
            if config.n_candidates < (done := max(own.n_candidates for own in summary.strategies.values())):
                typer.echo(f"\nnote: {done} candidates of a strategy were searched before, and all of them count")


@app.command()
def fetch(
    uri: Annotated[str, Argument(help="URI of the run, as it was given to cv --out.")],
    folder: Annotated[Path, Argument(help="New folder for the copy.")],
) -> None:
    """Copy a run from a URI into a folder, from which the other commands read."""
    from ray_ft.runs.folder import fetch_run

    fetch_run(uri, folder)
    typer.echo(f"run     {folder}")


@app.command()
def report(run: RunArgument) -> None:
    """Write the report of a finished run: one HTML file, and figures as PNG and SVG."""
    from ray_ft.report.page import write_report

    typer.echo(f"report  {write_report(run)}")


@app.command()
def compare(
    runs: Annotated[list[Path], Argument(help="Folders of finished runs on the same data and splits.")],
    as_json: JsonOption = False,
) -> None:
    """Compare strategies across runs of other checkpoints, views or code."""
    from ray_ft.results.run_comparison import compare as compare_runs

    found = compare_runs(runs)
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    from ray_ft.report.terminal import render_comparison

    show(render_comparison(found))


@app.command()
@configured
def learning_curve(
    config: "Config",
    sizes: Annotated[str | None, Option(help=SIZES, show_default="the quarters of the smallest")] = None,
    more: Annotated[str, Option(help="Numbers of further samples to forecast for, comma-separated.")] = "25,50,100",
    out: Annotated[str | None, Option("--out", "-o", help=CURVE_OUT)] = None,
    address: AddressOption = None,
    inline: InlineOption = False,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Forecast what more samples would buy.

    The strategies are cross-validated on training parts of several sizes, and a power law is fitted to their scores.
    The same command goes on with a curve that was stopped.
    """
    counts = None if sizes is None else read_counts("--sizes", sizes), read_counts("--more", more)
    folder = out or f"runs/{config.name}-curve"
    with resumable():
        say_starting(quiet)
        from ray_ft.python.learning_curves import learning_curve as draw_curve
        from ray_ft.report.page import write_curve_figure
        from ray_ft.report.terminal import render_curve

        found = draw_curve(config, folder, *counts, inline, open_console(quiet, verbose, as_json))
    figure = write_curve_figure(found, folder)[0]
    if as_json:
        typer.echo(found.model_dump_json(indent=2))
        return
    show(render_curve(found))
    typer.echo(f"figure    {figure}")


def read_counts(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers, comma-separated, got {text}") from error


@app.command()
@configured
def plan(config: "Config", as_json: JsonOption = False) -> None:
    """Print what a config would train, and train nothing.

    It prints folds, candidates, members, the parameters that each strategy trains, and the memory that it takes.
    """
    from ray_ft.cross_validation import prepare
    from ray_ft.files.memory import find_available, write_bytes
    from ray_ft.fitting.memory_need import estimate_bytes
    from ray_ft.report.terminal import render_plan

    prepared = prepare(config)
    problem, splits = prepared.problem, prepared.problem.splits
    sizes = sorted({len(splits.held_out(r, k)) for r in range(splits.n_repeats) for k in range(splits.n_folds)})
    shape = (
        f"{config.name}: {splits.n_samples} samples in {splits.n_folds} folds of {'/'.join(map(str, sizes))} held out, "
        f"{count(splits.n_repeats, 'repeat')}, {count(problem.n_seeds, 'seed')}; splits {splits.hash}"
    )
    parts = {name: strategy.parts for name, strategy in prepared.strategies.items()}
    told = {name: own.describe() for name, own in prepared.config.selected.items()}
    n_noisy, n_seeds = config.training.n_noisy_views, prepared.n_searched
    needed = max(estimate_bytes(problem, own, n_noisy, n_seeds[name]) for name, own in prepared.strategies.items())
    if as_json:
        known = [
            {"name": spec.name, "stages": [asdict(stage) for stage in spec.stages]} for spec in prepared.first_round
        ]
        trained = {name: {"does": told[name], "n_trained": own.n_trained} for name, own in prepared.strategies.items()}
        show_json(shape=shape, strategies=trained, candidates=known, budget=prepared.describe_budget(), n_bytes=needed)
        return
    lines = [f"{name}: {does}" for name, does in told.items()]
    show(render_plan(prepared.first_round, parts, lines, shape, prepared.describe_budget()))
    free = write_bytes(find_available())
    typer.echo(f"{write_bytes(needed)} of memory for a candidate at least; {free} are available")


@app.command()
def check(config: ConfigOption = None, overrides: SetOption = None, as_json: JsonOption = False) -> None:
    """Check a config against its data, its checkpoint and its network.

    The code of a model.factory, data.factory or training.loss is run, with your rights, and named before.
    """
    loaded = load(config, {}, overrides)
    from ray_ft.cross_validation import prepare

    say_code(loaded, aside=as_json)
    prepared = prepare(loaded)
    data, told = prepared.problem.samples, prepared.config.selected
    notes = [*prepared.notes, *note_chance(loaded)]
    if as_json:
        shapes = {"inputs": data.inputs.shape, "targets": data.targets.shape}
        learning = {
            name: {"does": told[name].describe(), "n_trained": own.n_trained}
            for name, own in prepared.strategies.items()
        }
        show_json(**shapes, checkpoint=loaded.checkpoint, strategies=learning, notes=notes)
        return
    typer.echo(f"config      {config or 'embedded demo'}: valid")
    typer.echo(f"data        {len(data)} samples, inputs {data.inputs.shape[1:]}, targets {data.targets.shape[1:]}")
    for note in notes:
        typer.echo(f"note        {note}")
    typer.echo(f"checkpoint  {loaded.checkpoint or 'none: the weights of the factory'}: fits the network")
    for name, strategy in prepared.strategies.items():
        trained = f"{strategy.n_trained:,} trained parameters" if strategy.n_trained else "in closed form"
        typer.echo(f"strategy    {name}: {trained}; {told[name].describe()}")


@app.command()
def config(
    key: Annotated[str, Argument(metavar="[KEY]", help="A key, a section, or a word; without it, all.")] = "",
) -> None:
    """Say what a key of a config takes, its default, and what it is for."""
    from ray_ft.config.reference import find_entries

    for entry in find_entries(key):
        typer.echo(entry.text)


def say_starting(quiet: bool) -> None:
    """Say that something happens while the heavy packages load."""
    if quiet:
        return
    typer.echo("starting …", nl=not sys.stderr.isatty(), err=True)
    if sys.stderr.isatty():
        typer.echo("\r", nl=False, err=True)


app.add_typer(starting)
app.add_typer(ensembles)


def main() -> None:
    """Run the command; a user's error, and what the machine lacks, show their text alone."""
    try:
        app()
    except RayFTError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    except Exception as error:  # the border of the command
        if not (shortage := describe_shortage(error)):
            raise
        typer.echo(f"error: {shortage}", err=True)
        sys.exit(RunError.exit_code)
