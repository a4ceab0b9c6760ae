"""The command line; each command imports what it runs inside its function, so help is instant."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ray_ft.cli.ensembles import ensembles
from ray_ft.cli.show import resumable, show
from ray_ft.errors import ConfigError, RayFTError, shorten

if TYPE_CHECKING:
    from ray_ft.config import Config

app = typer.Typer(
    name="ray-ft",
    help="Which parts of a pretrained network should learn from about 100 samples? Cross-validate and see.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="YAML file; the embedded demo where it is left out.", show_default=False),
]
OutOption = Annotated[
    str | None,
    typer.Option(
        "--out", "-o", help="Run folder, or a URI (s3://bucket/run); runs/NAME where left out.", show_default=False
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override of a config value, such as training.lr=3e-4; may be repeated.",
        metavar="KEY=VALUE",
        show_default=False,
    ),
]
FoldsOption = Annotated[int | None, typer.Option(help="Folds of the cross-validation (cv.folds).", show_default="5")]
SeedsOption = Annotated[int | None, typer.Option(help="Seeds of each fold (cv.seeds).", show_default="3")]
RepeatsOption = Annotated[int | None, typer.Option(help="Re-deals of the folds (cv.repeats).", show_default="1")]
StrategiesOption = Annotated[
    str | None, typer.Option(help="Names, comma-separated (cv.strategies).", show_default="all")
]
CandidatesOption = Annotated[
    int | None, typer.Option(help="Draws of the hyperparameters by strategy (cv.candidates).", show_default="2")
]
ProtocolOption = Annotated[
    str | None,
    typer.Option(help="What stops and selects: crossfit or nested (cv.protocol).", show_default="crossfit"),
]
GroupsOption = Annotated[
    str | None,
    typer.Option(
        help="Column file (.npy, .npz::key): samples of a group stay together (data.groups).", show_default=False
    ),
]
StratifyOption = Annotated[
    str | None, typer.Option(help="Column file to spread evenly over the folds (data.stratify).", show_default=False)
]
AddressOption = Annotated[
    str | None,
    typer.Option(help="Ray cluster to join: auto, or host:port; a local Ray where left out.", show_default=False),
]
InlineOption = Annotated[bool, typer.Option("--inline", help="Train in this process, without Ray: for a debugger.")]


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
    """Cross-validate the strategies, compare them, and build the winner's ensemble.

    On the folder of an unfinished run the same command goes on; on that of a finished one it shows the table again.
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
    uri: Annotated[str, typer.Argument(help="Of a run, as given to cv --out.")],
    folder: Annotated[Path, typer.Argument(help="New folder for it.")],
) -> None:
    """Copy a run that is kept behind a URI into a folder, where the other commands take it."""
    from ray_ft.runs.folder import fetch_run

    fetch_run(uri, folder)
    typer.echo(f"run     {folder}")


@app.command()
def report(run: Annotated[Path, typer.Argument(help="Folder of a finished run.")]) -> None:
    """Write a finished run's report: one HTML file, and its figures as PNG and SVG."""
    from ray_ft.report.page import write_report

    typer.echo(f"report  {write_report(run)}")


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs on the same data and splits.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Compare strategies across runs: other checkpoints, other augmentations, other code."""
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
    sizes: Annotated[str, typer.Option(help="Samples of the training parts, comma-separated.")] = "20,40,60,80",
    more: Annotated[str, typer.Option(help="Further samples to forecast for, comma-separated.")] = "25,50,100",
    folds: FoldsOption = None,
    seeds: SeedsOption = None,
    repeats: RepeatsOption = None,
    protocol: ProtocolOption = None,
    strategies: StrategiesOption = None,
    candidates: CandidatesOption = None,
    groups: GroupsOption = None,
    stratify: StratifyOption = None,
    out: Annotated[
        str | None, typer.Option("--out", "-o", help="Folder; runs/NAME-curve where left out.", show_default=False)
    ] = None,
    address: AddressOption = None,
    inline: InlineOption = False,
    overrides: SetOption = None,
) -> None:
    """What would more samples buy? The cross-validation on smaller training parts, and a power law.

    The same command goes on where it was stopped.
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
    """Print what a config would train, without training: folds, candidates, members, parameters by part."""
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
    """Validate a config against its data and checkpoint."""
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
