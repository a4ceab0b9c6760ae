"""What is known of a finished run put together: its strategies, its baselines, how they compare, and what is odd."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from ray_ft.data.folds import Deals, Splits
from ray_ft.errors import first_few, write_share
from ray_ft.files.writing import write_record, write_text
from ray_ft.objectives import Objective
from ray_ft.results.records import Plan, Verdicts, load_attempts, load_curves, load_result
from ray_ft.results.summary import BaselineSummary, StrategySummary, Summary
from ray_ft.runs.folder import RunFolder
from ray_ft.runs.journal import read_log
from ray_ft.search.plan import RECIPE, name_candidate
from ray_ft.search.settling import Attempt, assess
from ray_ft.search.strategies import Strategy
from ray_ft.statistics.comparison import Comparisons, Means, compare_all
from ray_ft.statistics.scores import Choice, Scores, StrategyScore, average_samples, choose, score_choice
from ray_ft.statistics.selection import Losses

SAME = 1e-4  # relative differences below this are rounding
LITTLE = 0.01  # of the score, or of the spread of folds: a spread of seeds below it is not worth their time
CHANNEL_SHARE, SAMPLE_SHARE = 0.9, 1 / 3  # of the loss: one channel, or sample, then decides the metric


def summarize_strategies(
    run: RunFolder,
    plan: Plan,
    verdicts: Verdicts,
    scores: Scores,
    strategies: Mapping[str, Strategy],
    splits: Splits,
    rope: float,
    beside: Mapping[str, dict[str, float]],
) -> dict[str, StrategySummary]:
    """Put together what is known of the strategies; `rope` is the relative difference that is none."""
    return {
        name: summarize_strategy(run, plan, verdicts, score, strategies[name], splits, rope, beside[name])
        for name, score in scores.items()
    }


def summarize_strategy(
    run: RunFolder,
    plan: Plan,
    verdicts: Verdicts,
    score: StrategyScore | None,
    strategy: Strategy,
    splits: Splits,
    rope: float,
    beside: dict[str, float],
) -> StrategySummary:
    """Put together what is known of one."""
    specs = [spec for spec in plan if spec.strategy == strategy.name]
    own = {spec.name: verdicts[spec.name] for spec in specs}
    states = Counter(verdict.state for verdict in own.values())
    n_trained, n_params = (sum(counts) for counts in zip(*strategy.parts.values(), strict=True))
    return StrategySummary(
        score_mean=score.mean if score else None,
        score_std=score.std if score else None,
        fold_std=score.spread.folds if score else None,
        seed_std=score.spread.seeds if score else None,
        best_epoch_mean=score.best_epoch_mean if score else None,
        scores=score.values.tolist() if score else [],
        stop_epochs=score.epoch.tolist() if score else [],
        chosen_candidates=score.candidate.tolist() if score else [],
        n_trained_params=n_trained,
        trained_share=n_trained / n_params,
        parts=dict(strategy.parts),
        layers=strategy.layers,
        candidates={state: states[state] for state in ("completed", "stopped", "failed")},
        verdicts=own,
        seconds=sum(verdict.seconds for verdict in own.values()),
        training=collect(run, specs, "training"),
        optimism=score.optimism if score else None,
        stops_early=score is not None and stops_early(score, strategy.name, own),
        n_candidates=len(specs),
        guide_score=score_recipe(run, specs, verdicts, strategy.name, splits),
        beside=beside,
        **describe_search(load_attempts(run, plan, verdicts, strategy.name, splits), rope, strategy.searched_before),
    )


def stops_early(score: Choice, strategy: str, verdicts: Verdicts) -> bool:
    """Whether some fold has chosen an epoch before the last of its candidate."""
    last = [verdicts[name_candidate(strategy, int(index))].epoch for index in score.candidate.ravel()]
    return bool((score.epoch.ravel() < last).any())


def describe_search(attempts: Sequence[Attempt], rope: float, searched: Sequence[int]) -> dict[str, Any]:
    """Say what was tried of a strategy, and whether that was its best chance."""
    standing, rates = assess(attempts, rope, searched), [own.spec.lr for own in attempts if own.spec.lr is not None]
    return {
        "settled": standing.settled,
        "unsettled_because": list(standing.because),
        "lr_tried": (min(rates), max(rates)) if rates else None,
        "best": asdict(standing.best.last) if standing.best else {},
        "second_half_share": standing.second_half_share,
    }


def score_recipe(run: RunFolder, specs: Plan, verdicts: Verdicts, strategy: str, splits: Splits) -> float | None:
    """Score the recipe of a strategy by itself, at epochs that the other folds choose, by the seeds of its search."""
    recipe = [spec for spec in specs if spec.index == 0 and spec.origin == RECIPE]
    curves = load_curves(run, recipe, verdicts, strategy, splits)
    return score_choice(choose(curves), curves).mean if curves else None


def summarize_baseline(values: Means, splits: Splits, beside: dict[str, float]) -> BaselineSummary:
    mean, std = float(average_samples(values, splits.sizes)), float(values.std(ddof=1))
    return BaselineSummary(score_mean=mean, score_std=std, scores=values.tolist(), beside=beside)


def compare_with_baseline(
    scores: Scores, baselines: Mapping[str, Means], rope: float, splits: Splits, deals: Deals
) -> Comparisons:
    """Compare each pair of the strategies that have a score, and each with the best baseline."""
    by_fold = {name: score.values.mean(-1) for name, score in scores.items() if score is not None}
    best = min(baselines, key=lambda name: average_samples(baselines[name], splits.sizes))
    return compare_all(by_fold | {best: baselines[best]}, rope, splits.test_share, deals=deals)


def warn_of_baseline(score: StrategyScore, baselines: Mapping[str, BaselineSummary]) -> str:
    """Say that even the strategy of the lowest mean does not beat the best baseline; nothing where it does."""
    name, best = min(baselines.items(), key=lambda item: item[1].score_mean)
    if score.mean < best.score_mean:
        return ""
    named = name.replace("_", "-")  # as tables write it
    return f"no strategy beats the best baseline ({named}, {best.score_mean:.4g}): do not use this model"


def note_deals(deals: Deals) -> list[str]:
    """Say that repeats which deal the same folds are no further evidence."""
    n_repeats, n_deals = len(deals.sizes), len(deals.copies)
    if n_deals == n_repeats:
        return []
    reason = ", as there is but one way to deal as many groups as folds" if deals.only_one else ""
    return [
        f"the {n_repeats} repeats make {n_deals} different deal{'s' * (n_deals > 1)} of the folds{reason}: those that "
        "are the same count as one, like further seeds"
    ]


def note_dominance(
    objective: Objective, blind: Mapping[str, Float[np.ndarray, "sample *values"]], losses: Losses
) -> Iterator[str]:
    """Say where one output channel, or one sample, decides the metric of the strategy of the lowest mean."""
    errors = objective.measure_errors(blind["mean"], blind["targets"])
    axes = () if errors is None else range(1, errors.ndim)
    for axis in axes:
        assert errors is not None
        own = np.nansum(np.moveaxis(errors, axis, 0).reshape(errors.shape[axis], -1), 1)
        if len(own) > 1 and own.max() > CHANNEL_SHARE * own.sum():
            yield (
                f"output {own.argmax()} of {len(own)} along axis {axis} of the targets makes up "
                f"{write_share(own.max() / own.sum(), 1)} of the loss, so the metric is next to only its own: "
                f"give all of them one scale{'' if objective.scales else ', or score by standardised_mse'}"
            )
    if losses.max() >= SAMPLE_SHARE * losses.sum() > 0:
        yield (
            f"sample {losses.argmax()} makes up {write_share(losses.max() / losses.sum())} of the loss, so the scores "
            "are mostly its own: is it right?"
        )


def find_notes(run: RunFolder, plan: Plan, scores: Scores, strategies: Mapping[str, Strategy]) -> list[str]:
    """Collect what is odd about the training of each strategy."""
    notes = []
    for name, score in scores.items():
        notes += [f"{name}: {note}" for note in collect(run, [s for s in plan if s.strategy == name], "note")]
        stages = strategies[name].stages
        if len(stages) > 1:
            notes.append(f"{name}: lr and epochs as tried and best are those of the last of its {len(stages)} stages")
        closed_form = score is not None and stages[0].closed and score.epoch.max() <= 1
        random = strategies[name].n_trained > 0 and not closed_form  # which gives each seed the same
        if score is not None and not score.epoch.any():
            notes.append(f"{name}: every fold chose the pretrained network, epoch 0: training did it no good")
            continue
        if random and score is not None and score.values.shape[-1] > 1 and differ_by(score.values) < SAME:
            notes.append(f"{name}: all seeds gave the same results, so they count as one; what in training is random?")
        elif random and score is not None and score.spread.seeds is not None:
            notes += note_seeds(name, score)
    return notes


def note_shortages(log: Path) -> list[str]:
    """Say for what memory did not suffice at first."""
    events = (event for event in read_log(log) if event["event"] == "retry" and event.get("memory"))
    short = list(dict.fromkeys(str(event.get("candidate")) for event in events))
    if not short:
        return []
    return [
        f"memory did not suffice for {first_few(short)} at first: tried again from the last checkpoint, one member and "
        "fewer candidates at a time"
    ]


def note_seeds(name: str, score: StrategyScore) -> list[str]:
    """Say that seeds changed next to nothing, so that their members are hardly worth more than one a fold."""
    folds, seeds = score.spread.folds or 0.0, score.spread.seeds or 0.0
    if seeds >= LITTLE * max(folds, score.mean):
        return []
    n_members, n_worth = score.values.size, score.epoch.size
    return [
        f"{name}: seeds changed next to nothing (a spread of {write_share(seeds / score.mean, 1)} of the score): "
        f"{n_members} members are worth {n_worth}, and --seeds 1 is enough"
    ]


def differ_by(values: Float[np.ndarray, "repeat fold seed"]) -> float:
    """The largest difference between seeds, as a share of the mean; none where all scores are 0."""
    return float(np.ptp(values, axis=-1).max() / values.mean()) if values.any() else 0.0


def collect(run: RunFolder, specs: Plan, key: str) -> list[str]:
    """Find the different values that candidates recorded under a key."""
    return sorted({result[key] for spec in specs if (result := load_result(run, spec.name) or {}).get(key)})


def write_summary(run: RunFolder, summary: Summary) -> None:
    """Write the leaderboard, then the summary: where it stands, the run is finished."""
    write_text(run.leaderboard, summary.leaderboard().to_csv(index=False, lineterminator="\n"))
    write_record(run.summary, summary.model_dump(mode="json"))
