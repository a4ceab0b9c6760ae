"""The commands on what a run leaves: its ensemble."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_ft.cli.show import show

__all__ = ["ensembles"]

ensembles = typer.Typer()

Source = Annotated[Path, typer.Argument(metavar="RUN_OR_ENSEMBLE", help="Folder of a run or of an ensemble.")]
LevelOption = Annotated[
    float | None, typer.Option(help="Of the intervals, 0.5 to 1; the ensemble's where left out.", show_default=False)
]


@ensembles.command()
def ensemble(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    strategies: Annotated[
        str | None,
        typer.Option(help="Whose members, comma-separated; the winner's where left out.", show_default=False),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="Weights of the members: uniform, greedy, stacked; auto decides.", show_default="auto"),
    ] = None,
    symmetric: Annotated[
        bool | None, typer.Option("--symmetric", help="Average predictions over data.symmetry.", show_default=False)
    ] = None,
    level: LevelOption = None,
    units: Annotated[str | None, typer.Option(help="Of the predictions, for the card.", show_default=False)] = None,
    license: Annotated[str | None, typer.Option(help="Of the weights, for the card.", show_default=False)] = None,
) -> None:
    """Build the ensemble of a run from its members, again or in another way."""
    from ray_ft.cross_validation import rebuild_ensemble
    from ray_ft.report.ensembles import render_ensemble

    choice: dict[str, Any] = {
        "strategies": strategies.split(",") if strategies else None,
        "method": method,
        "symmetric": symmetric,
        "level": level,
        "units": units,
        "license": license,
    }
    summary = rebuild_ensemble(run, **{key: value for key, value in choice.items() if value is not None})
    show(render_ensemble(summary))


@ensembles.command()
def evaluate(
    source: Source,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled samples: .npz with the keys of the run's data.", show_default=False),
    ] = None,
    inputs: Annotated[
        str | None, typer.Option(help="Inputs, instead: .npy, .npz or .npz::key.", show_default=False)
    ] = None,
    targets: Annotated[str | None, typer.Option(help="Targets, the same.", show_default=False)] = None,
    level: LevelOption = None,
    plot: Annotated[
        Path | None, typer.Option(help="Where to draw the calibration: .png, .svg or .pdf.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Measure an ensemble on fresh labelled samples: error, coverage and width of its intervals, flags."""
    from ray_ft.ensemble import Ensemble
    from ray_ft.evaluation import evaluate_ensemble, read_labelled
    from ray_ft.report.ensembles import render_evaluation, write_calibration

    loaded = Ensemble.load(source)
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
    inputs: Annotated[str, typer.Option(help="Inputs: .npy, .npz or .npz::key.")],
    output: Annotated[Path, typer.Option(help="Where to write mean, std, intervals and flags: .npz.")],
    level: LevelOption = None,
) -> None:
    """Predict with an ensemble: mean, intervals, and whether an input is unlike the training samples."""
    from dataclasses import fields

    from ray_ft.data import read_array
    from ray_ft.ensemble import Ensemble
    from ray_ft.errors import DataError
    from ray_ft.paths import write_arrays

    if output.suffix != ".npz":
        raise DataError(f"--output must end in .npz, got {output}")
    loaded = Ensemble.load(source)
    prediction = loaded.predict(read_array(inputs), level, source=inputs)
    try:
        write_arrays(output, **{f.name: getattr(prediction, f.name) for f in fields(prediction)})
    except OSError as error:
        raise DataError(f"--output must be writable, got {output}: {error.strerror}") from error
    typer.echo(
        f"{len(prediction.mean)} samples by {len(loaded.card.members)} members: {prediction.mean.shape} in {output}; "
        f"{int(prediction.flag.sum())} unlike the training samples"
    )


@ensembles.command()
def export(
    source: Source,
    output: Annotated[Path, typer.Argument(help="File to write: .pt2 (torch.export) or .onnx.")],
    soup: Annotated[
        bool, typer.Option("--soup", help="Average all members to one network, without intervals.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="A soup also where its score is worse.")] = False,
) -> None:
    """Write an ensemble to one file that runs without this package."""
    from ray_ft.ensemble import Ensemble
    from ray_ft.export import OUTPUTS, check_soup, export_ensemble

    loaded = Ensemble.load(source)
    if soup and not force:
        check_soup(loaded)
    path = export_ensemble(loaded, output, soup)
    what = "one network, the mean" if soup else f"{len(loaded.card.members)} members; {', '.join(OUTPUTS)}"
    typer.echo(f"export  {path}: {what} of inputs (n, {', '.join(map(str, loaded.card.input_shape))}) in float32")


@ensembles.command()
def suggest(
    pool: Annotated[str, typer.Argument(help="Structures without labels: .npy, .npz or .npz::key.")],
    n: Annotated[int, typer.Option("--n", help="How many to choose.")] = 20,
    run: Annotated[
        Path | None,
        typer.Option(
            metavar="RUN_OR_ENSEMBLE",
            help="Whose members disagree; the newest run in runs/ where left out.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, typer.Option(help="Where to write: NAME.csv and NAME.png.")] = Path("suggestion"),
) -> None:
    """Choose which samples of a pool to measure next: where the members disagree, and far from one another."""
    from ray_ft.data import read_array
    from ray_ft.ensemble import Ensemble
    from ray_ft.paths import find_newest_run
    from ray_ft.report.ensembles import write_suggestion
    from ray_ft.suggestion import suggest_samples

    source = run or find_newest_run(Path("runs"))
    found = suggest_samples(Ensemble.load(source), read_array(pool), n, pool)
    files = write_suggestion(found, out)
    typer.echo(f"measure next, in this order, of {len(found.disagreement)} in {pool}, by {source}:")
    typer.echo("  " + " ".join(map(str, found.indices)))
    typer.echo(f"written  {files[0]}, {files[1]}")
