"""The command line; each command imports what it runs inside its function, so help is instant."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_ft.cli.ensembles import AddressOption, ensembles
from ray_ft.cli.show import resumable, show
from ray_ft.errors import ConfigError, RayFTError, shorten

if TYPE_CHECKING:
    from ray_ft.config import Config

app = typer.Typer(
    name="ray-ft",
    help="Which parts of a pretrained network should learn from about 100 samples? `ray-ft cv` compares them.",
    context_settings={"max_content_width": 100},
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option(
        "--config", "-c", help="YAML file of what to run. Without it, the embedded demo is run.", show_default=False
    ),
]
OutOption = Annotated[
    str | None,
    typer.Option(
        "--out",
        "-o",
        help="Folder that keeps the run, or a URI (s3://bucket/run). Without it, the run is kept in runs/NAME.",
        show_default=False,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Value in place of one in the config, such as training.lr=3e-4. The option may be repeated.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
FoldsOption = Annotated[int | None, typer.Option(help="Number of folds (cv.folds, 5 by default).", show_default=False)]
SeedsOption = Annotated[
    int | None,
    typer.Option(
        help="Number of trainings of each fold, by different seeds (cv.seeds, 3 by default).", show_default=False
    ),
]
RepeatsOption = Annotated[
    int | None,
    typer.Option(help="Number of times that the folds are dealt (cv.repeats, 1 by default).", show_default=False),
]
StrategiesOption = Annotated[
    str | None,
    typer.Option(help="Strategies to compare, comma-separated (cv.strategies, all by default).", show_default=False),
]
CandidatesOption = Annotated[
    int | None,
    typer.Option(
        help="Number of draws of the hyperparameters for each strategy (cv.candidates, 2 by default).",
        show_default=False,
    ),
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(
        help="Where the epoch and the candidate of a fold are chosen: crossfit, on the other folds, or nested, on an "
        "inner part of its training part (cv.protocol, crossfit by default).",
        show_default=False,
    ),
]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        help="File (.npy or .npz::key) with the group of each sample; a group stays in one fold (data.groups).",
        show_default=False,
    ),
]
StratifyOption = Annotated[
    str | None,
    typer.Option(
        help="File (.npy or .npz::key) with a class or number of each sample, which folds share evenly "
        "(data.stratify).",
        show_default=False,
    ),
]
InlineOption = Annotated[
    bool, typer.Option("--inline", help="Train in this process and not by Ray, so that a debugger can follow.")
]


@app.command()
def cv(
    config: ConfigOption = None,
    folds: FoldsOption = None,
    seeds: SeedsOption = None,
    repeats: RepeatsOption = None,
    protocol: ProtocolOption = None,
    strategies: StrategiesOption = None,
    candidates: CandidatesOption = None,
    groups: GroupsOption = None,
    stratify: StratifyOption = None,
    out: OutOption = None,
    address: AddressOption = None,
    inline: InlineOption = False,
    overrides: SetOption = None,
) -> None:
    """Cross-validate the strategies, and build an ensemble of the best one.

    The same command goes on with a run that was stopped, and shows the table of a finished one again.
    """
    options = collect(folds, seeds, repeats, protocol, strategies, candidates, groups, stratify, address)
    loaded = load(config, options, overrides)
    with starting():
        from rich.console import Console

        from ray_ft.cross_validation import cross_validate
        from ray_ft.report.terminal import render_summary
        from ray_ft.runs.folder import open_folder
    with resumable(), open_folder(out or Path("runs") / loaded.name) as run:
        summary = cross_validate(loaded, run, inline, Console(highlight=False), report=True)
        show(render_summary(summary, run))


@app.command()
def fetch(
    uri: Annotated[str, typer.Argument(help="URI of the run, as it was given to cv --out.")],
    folder: Annotated[Path, typer.Argument(help="New folder for the copy.")],
) -> None:
    """Copy a run from a URI into a folder, from which the other commands read."""
    from ray_ft.runs.folder import fetch_run

    fetch_run(uri, folder)
    typer.echo(f"run     {folder}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write the report of a finished run: one HTML file, and figures as PNG and SVG."""
    from ray_ft.report.page import write_report

    typer.echo(f"report  {write_report(run)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs on the same data and splits.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of the table.")] = False,
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
def learning_curve(
    config: ConfigOption = None,
    sizes: Annotated[
        str, typer.Option(help="Sizes of the training parts in samples, three or more, comma-separated.")
    ] = "20,40,60,80",
    more: Annotated[
        str, typer.Option(help="Numbers of further samples to forecast for, comma-separated.")
    ] = "25,50,100",
    folds: FoldsOption = None,
    seeds: SeedsOption = None,
    repeats: RepeatsOption = None,
    protocol: ProtocolOption = None,
    strategies: StrategiesOption = None,
    candidates: CandidatesOption = None,
    groups: GroupsOption = None,
    stratify: StratifyOption = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out", "-o", help="Folder that keeps the curve. Without it, runs/NAME-curve does.", show_default=False
        ),
    ] = None,
    address: AddressOption = None,
    inline: InlineOption = False,
    overrides: SetOption = None,
) -> None:
    """Forecast what more samples would buy.

    The strategies are cross-validated on training parts of several sizes, and a power law is fitted to their scores.
    The same command goes on with a curve that was stopped.
    """
    options = collect(folds, seeds, repeats, protocol, strategies, candidates, groups, stratify, address)
    loaded = load(config, options, overrides)
    counts = read_counts("--sizes", sizes), read_counts("--more", more)
    with starting():
        from rich.console import Console

        from ray_ft.learning_curves import learning_curve as draw_curve
        from ray_ft.report.page import write_curve_figure
        from ray_ft.report.terminal import render_curve
    folder = out or f"runs/{loaded.name}-curve"
    with resumable():
        found = draw_curve(loaded, folder, *counts, inline, Console(highlight=False))
    show(render_curve(found))
    typer.echo(f"figure    {write_curve_figure(found, folder)[0]}")


def read_counts(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"{option} takes whole numbers, comma-separated, got {text}") from error


@app.command()
def plan(
    config: ConfigOption = None,
    folds: FoldsOption = None,
    seeds: SeedsOption = None,
    repeats: RepeatsOption = None,
    protocol: ProtocolOption = None,
    strategies: StrategiesOption = None,
    candidates: CandidatesOption = None,
    groups: GroupsOption = None,
    stratify: StratifyOption = None,
    overrides: SetOption = None,
) -> None:
    """Print what a config would train, and train nothing.

    It prints folds, candidates, members, the parameters that each strategy trains, and the memory that it takes.
    """
    loaded = load(config, collect(folds, seeds, repeats, protocol, strategies, candidates, groups, stratify), overrides)
    from ray_ft.cross_validation import prepare
    from ray_ft.files.memory import find_available, write_bytes
    from ray_ft.fitting.memory_need import estimate_bytes
    from ray_ft.report.terminal import render_plan

    prepared = prepare(loaded)
    problem, splits = prepared.problem, prepared.problem.splits
    sizes = sorted({len(splits.held_out(r, k)) for r in range(splits.n_repeats) for k in range(splits.n_folds)})
    shape = (
        f"{loaded.name}: {splits.n_samples} samples in {splits.n_folds} folds of {'/'.join(map(str, sizes))} held out, "
        f"{splits.n_repeats} repeats, {problem.n_seeds} seeds; splits {splits.hash}"
    )
    parts = {name: strategy.parts for name, strategy in prepared.strategies.items()}
    show(render_plan(prepared.proposer.ask(), parts, len(problem.keys), shape))
    n_noisy = loaded.training.n_noisy_views
    needed = max(estimate_bytes(problem, strategy, n_noisy) for strategy in prepared.strategies.values())
    typer.echo(
        f"{write_bytes(needed)} of memory for a candidate at least; {write_bytes(find_available())} are available"
    )


@app.command()
def check(config: ConfigOption = None, overrides: SetOption = None) -> None:
    """Check a config against its data, its checkpoint and its network."""
    loaded = load(config, {}, overrides)
    from ray_ft.cross_validation import prepare

    prepared = prepare(loaded)
    dataset = prepared.problem.samples
    typer.echo(f"config      {config or 'embedded demo'}: valid")
    typer.echo(
        f"data        {len(dataset)} samples, inputs {dataset.inputs.shape[1:]}, targets {dataset.targets.shape[1:]}"
    )
    for note in dataset.notes:
        typer.echo(f"note        {note}")
    typer.echo(f"checkpoint  {loaded.checkpoint or 'none: the weights of the factory'}: fits the network")
    for name, strategy in prepared.strategies.items():
        typer.echo(f"strategy    {name}: {strategy.n_trained:,} trained parameters")


def collect(
    folds: int | None, seeds: int | None, repeats: int | None, protocol: str | None, strategies: str | None,
    candidates: int | None, groups: str | None, stratify: str | None, address: str | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write options as overrides of config keys."""
    given = {
        "cv.folds": folds,
        "cv.seeds": seeds,
        "cv.repeats": repeats,
        "cv.protocol": protocol,
        "cv.strategies": None if strategies is None else read_names("--strategies", strategies),
        "cv.candidates": candidates,
        "data.groups": groups,
        "data.stratify": stratify,
        "compute.address": address,
    }
    return {key: value for key, value in given.items() if value is not None}


def read_names(option: str, text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{option} takes names, comma-separated, got {text!r}; leave it out for all")
    return names


def load(path: Path | None, options: dict[str, Any], overrides: Sequence[str] | None) -> "Config":
    from ray_ft.config import load_config, parse_yaml

    for override in overrides or ():
        key, equals, value = override.partition("=")
        if not (key and equals):
            raise ConfigError(f"--set takes KEY=VALUE, got {override}")
        options[key] = parse_yaml(value, f"the value of --set must be YAML, got {shorten(override)}")
    return load_config(path, options)


@contextmanager
def starting() -> Iterator[None]:
    """Say that something happens while the heavy packages load."""
    if sys.stderr.isatty():
        typer.echo("starting …\r", nl=False, err=True)
    yield


app.add_typer(ensembles)


def main() -> None:
    """Run the command; a user's error shows its text alone."""
    try:
        app()
    except RayFTError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
