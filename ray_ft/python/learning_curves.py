"""Learning curves: one cross-validation for each of several sizes of the training parts, and a fit through them.

Smaller training parts are subsets of larger ones, and the held-out folds stay the same.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from ray_ft.config import Config
from ray_ft.cross_validation import cross_validate, prepare
from ray_ft.errors import ConfigError, RunFolderError, first_few
from ray_ft.files.writing import write_text
from ray_ft.results.learning_curve import LearningCurve, describe_sizes, fit_curves
from ray_ft.results.opening import check_identity
from ray_ft.runs.folder import CurveFolder, RunFolder
from ray_ft.runs.storage import is_uri

MORE = (25, 50, 100)


def learning_curve(
    config: Config,
    out: str | Path,
    sizes: Sequence[int | float] | None = None,
    more: Sequence[int | float] = MORE,
    inline: bool = False,
    console: Console | None = None,
) -> LearningCurve:
    """Cross-validate on training parts of several sizes, each a run of its own in a folder; go on where there are some.

    Args:
        config: What to run; its `cv.train_size` is set by each size.
        out: The folder.
        sizes: Three or more, at most the smallest training part; the quarters of it where left out.
        more: Forecasts are for the largest size and so many samples more.
        inline: Train in this process, without Ray.
        console: Where to show progress.

    Raises:
        UserError: A size does not fit, something in the config breaks a rule, or a size's folder holds another run;
            nothing was trained.
        RunError: No strategy has a score at some size.
    """
    rule = "different whole numbers from 1 on"
    sizes = divide_training(config) if sizes is None else sizes
    ordered = sort_counts(sizes, 3, f"the sizes of a learning curve (--sizes) must be three or more {rule}")
    ahead = sort_counts(more, 0, f"the further samples to forecast for (--more) must be {rule}")
    if is_uri(out):
        raise ConfigError(f"--out of a learning curve must be a folder, got {out}; name one that all nodes share")
    folder = CurveFolder(Path(out))
    check_runs(config, folder, ordered)
    console = console or Console(quiet=True)
    summaries = []
    for size in ordered:
        console.print(f"training parts of {size} samples", highlight=False)
        summaries.append(cross_validate(limit(config, size), folder.run(size), inline, console))
    found = fit_curves(summaries, ahead, config.cv.seed)
    write_text(folder.table, found.table().to_csv(index=False, lineterminator="\n"))
    write_text(folder.result, found.model_dump_json(indent=2) + "\n")
    return found


def divide_training(config: Config) -> list[int]:
    """A quarter, a half, three quarters and all of the smallest training part."""
    splits = prepare(config).problem.splits
    smallest = min(len(splits.training(*place)) for place in np.ndindex(splits.n_repeats, splits.n_folds))
    return sorted({max(1, smallest * quarters // 4) for quarters in (1, 2, 3, 4)})


def sort_counts(counts: Sequence[int | float], least: int, rule: str) -> list[int]:
    whole = sorted({int(n) for n in counts if float(n).is_integer() and n >= 1})
    if len(whole) < max(least, len(counts)):
        raise ConfigError(f"{rule}, got {', '.join(map(str, counts)) or 'none'}")
    return whole


def check_runs(config: Config, folder: CurveFolder, sizes: Sequence[int]) -> None:
    """Make sure that nothing starts that could not end."""
    check_own(folder)
    actual = []
    for size in sizes:
        prepared = prepare(limit(config, size))
        check_identity(RunFolder(folder.run(size)), prepared.identity)
        actual.append(prepared.problem.splits.n_train)
    if len(set(actual)) < len(actual):
        raise ConfigError(
            "the sizes of a learning curve (--sizes) must differ where groups stay whole, got "
            f"{describe_sizes(sizes)}, which are {describe_sizes(actual)} samples on average; set them further apart"
        )


def check_own(folder: CurveFolder) -> None:
    """Refuse to write over results that no learning curve wrote: one that did left its runs beside them.

    Raises:
        RunFolderError: There are such files.
    """
    files = (folder.result, folder.table, folder.figure("png"), folder.figure("svg"))
    found = [path.name for path in files if path.exists()]
    if found and not any(RunFolder(path).provenance.exists() for path in folder.root.glob("train_*")):
        raise RunFolderError(
            f"a learning curve needs a folder of its own, got {folder.root} with {first_few(found)}; "
            "choose another --out"
        )


def limit(config: Config, size: int) -> Config:
    return config.model_copy(update={"cv": config.cv.model_copy(update={"train_size": size})})
