"""`ray-ft init`: a config to begin with, for a network and data that it is pointed at."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from ray_ft.cli.options import ForceOption
from ray_ft.cli.outputs import check_output
from ray_ft.cli.show import note_chance, say_code
from ray_ft.errors import count, first_few

if TYPE_CHECKING:
    from ray_ft.cross_validation import Prepared

MOST_CLASSES = 50  # distinct whole numbers up to which targets are taken for classes
UNEQUAL = 10.0  # factor between the spreads of outputs from which on each counts in units of its own
METRICS = {
    "log_loss": "targets are classes",
    "standardised_mse": "each output in units of its own spread, as these are far apart",
    "mse": "or mae, huber …: docs/losses.md",
}
FACTORY = 'What builds the network, such as "my_package.networks:build". Without it, it is a DiffractionNet.'
CHECKPOINT = "Its weights. Without it, they are those of the factory."
SOURCE = "File, with a key or columns where it has several: x.npy, samples.npz::x, t.csv::a,b"
GROUPS = "File or column with the group of each sample; a group stays in one fold."
starting = typer.Typer()


@starting.command()
def init(
    inputs: Annotated[str, Option(help=f"{SOURCE}: what the network takes, (n, ...).")],
    targets: Annotated[str, Option(help="The same: what it should answer, (n, ...) or (n,).")],
    factory: Annotated[str | None, Option(help=FACTORY)] = None,
    checkpoint: Annotated[str | None, Option(help=CHECKPOINT)] = None,
    groups: Annotated[str | None, Option(help=GROUPS)] = None,
    out: Annotated[Path, Option("--out", "-o", help="The config is written into this file.")] = Path("ray-ft.yaml"),
    force: ForceOption = False,
) -> None:
    """Write a config for a network and data of your own, with what was found in them.

    The code of the factory is run, with your rights. Nothing is trained.
    """
    check_output("--out", out, force, None, inputs, targets, checkpoint, groups)
    asked = {"model.factory": factory, "model.checkpoint": checkpoint}
    asked |= {"data.inputs": inputs, "data.targets": targets, "data.groups": groups}
    given = {key: value for key, value in asked.items() if value is not None}
    metric, prepared = try_out(given)
    from ray_ft.files.writing import write_text

    write_text(out, "\n".join([*list_lines(given, metric, prepared), ""]))
    for note in note_chance(prepared.config):
        typer.echo(f"note        {note}")
    typer.echo(f"config      {out}: {count(len(prepared.problem.samples), 'sample')}, {metric}")
    typer.echo(f"strategies  {', '.join(prepared.strategies)}")
    typer.echo(f"next        ray-ft check --config {out}\n            ray-ft cv --config {out}")


def try_out(given: Mapping[str, str]) -> tuple[str, "Prepared"]:
    """Guess the metric from the targets, and see whether network and data go together by it.

    Raises:
        UserError: They do not.
    """
    from ray_ft.config import build_config
    from ray_ft.cross_validation import prepare
    from ray_ft.data.sources import read_source

    metric = guess_metric(read_source(given["data.targets"], "").array)
    config = build_config({**given, "cv.metric": metric}, shipped=True)
    say_code(config)
    return metric, prepare(config)


def guess_metric(targets: Any) -> str:
    """Take text, flags and few whole numbers for classes, and other targets for numbers."""
    import numpy as np

    kind = targets.dtype.kind
    if kind not in "iufb" or (kind in "iub" and targets.ndim == 1 and len(np.unique(targets)) <= MOST_CLASSES):
        return "log_loss"
    if targets.ndim == 2 and targets.shape[1] > 1:
        spread = np.nanstd(targets.astype(np.float64), 0)
        if spread.min() > 0 and spread.max() >= UNEQUAL * spread.min():
            return "standardised_mse"
    return "mse"


def list_lines(given: Mapping[str, str], metric: str, prepared: "Prepared") -> Iterator[str]:
    """List the lines of the file; what was found stands in comments."""
    samples, splits = prepared.problem.samples, prepared.problem.splits
    shapes: dict[str, object] = {"inputs": samples.inputs.shape, "targets": samples.targets.shape}
    if samples.classes:
        shapes["targets"] = f"{len(samples)} labels of {len(samples.classes)} classes: {first_few(samples.classes, 8)}"
    yield "# Which parts of this network should learn? Paths are relative to the folder where ray-ft is called."
    yield "# Every key: ray-ft config, or docs/config.md. Values that stand here are the defaults, but for paths."
    for section in ("model", "data"):
        yield from ("", f"{section}:")
        for key, value in ((key, value) for key, value in given.items() if key.startswith(f"{section}.")):
            name = key.partition(".")[2]
            found = f" # {shapes[name]}" if name in shapes else ""
            yield f"  {name}: {write(value)}{found}"
        if section == "model" and "model.checkpoint" not in given:
            yield "  # checkpoint: weights.pt # without it, the weights are those of the factory"
    if "data.groups" not in given:
        yield "  # groups: samples.csv::plate # samples of a group stay on one side of a split"
    yield from ("", "cv:", f"  metric: {metric} # {METRICS[metric]}")
    yield f"  folds: {splits.n_folds} # of {count(splits.n_samples, 'sample')}"
    yield f"  seeds: {prepared.config.cv.seeds} # trainings of each fold"
    yield from ("", "search:", f"  candidates: {prepared.config.n_candidates} # of each strategy")
    if "model.factory" not in given:
        yield from ("", f"# strategies: {', '.join(prepared.strategies)} are shipped for this network")
        return
    yield from ("", "# As the network itself says; `strategies: auto` says it anew. What is not given is searched.")
    yield "strategies:"
    for name, strategy in prepared.strategies.items():
        own = prepared.config.strategies[name]
        (stage,) = own.stages
        n_trained = f", {strategy.n_trained:,} of {strategy.n_params:,} parameters" if strategy.n_trained else ""
        yield from (f"  {name}: # {own.description}{n_trained}", f"    train: {write(list(stage.train))}")
        if stage.fit != "gradient":
            yield f"    fit: {stage.fit}"


def write(value: object) -> str:
    """Write a value as YAML in one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, width=10**6, allow_unicode=True)
    return text.removesuffix("...\n").strip()
