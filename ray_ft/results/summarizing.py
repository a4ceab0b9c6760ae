"""What is known of a finished run put together: its strategies, its baselines, how they compare, and what is odd."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from jaxtyping import Float

from ray_ft.data.folds import Splits
from ray_ft.files.writing import write_record, write_text
from ray_ft.results.records import Plan, Verdicts, load_attempts, load_curves, load_result
from ray_ft.results.summary import BaselineSummary, StrategySummary, Summary
from ray_ft.runs.folder import RunFolder
from ray_ft.search.plan import RECIPE, name_candidate
from ray_ft.search.settling import Attempt, assess
from ray_ft.search.strategies import Strategy
from ray_ft.statistics.comparison import Comparisons, Means, compare_all
from ray_ft.statistics.scores import Choice, Scores, StrategyScore, choose, score_choice

SAME = 1e-4  # relative differences below this are rounding


def summarize_strategy(
    run: RunFolder,
    plan: Plan,
    verdicts: Verdicts,
    score: StrategyScore | None,
    strategy: Strategy,
    splits: Splits,
    rope: float,
) -> StrategySummary:
    """Put together what is known of a strategy; `rope` is the relative difference that is none."""
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
        candidates={state: states[state] for state in ("completed", "stopped", "failed")},
        verdicts=own,
        seconds=sum(verdict.seconds for verdict in own.values()),
        training=collect(run, specs, "training"),
        optimism=score.optimism if score else None,
        stops_early=score is not None and stops_early(score, strategy.name, own),
        n_candidates=len(specs),
        guide_score=score_recipe(run, specs, verdicts, strategy.name, splits),
        **describe_search(load_attempts(run, plan, verdicts, strategy.name, splits), rope),
    )


def stops_early(score: Choice, strategy: str, verdicts: Verdicts) -> bool:
    """Whether some fold has chosen an epoch before the last of its candidate."""
    last = [verdicts[name_candidate(strategy, int(index))].epoch for index in score.candidate.ravel()]
    return bool((score.epoch.ravel() < last).any())


def describe_search(attempts: Sequence[Attempt], rope: float) -> dict[str, Any]:
    """Say what was tried of a strategy, and whether that was its best chance."""
    standing, rates = assess(attempts, rope), [own.spec.lr for own in attempts if own.spec.lr is not None]
    return {
        "settled": standing.settled,
        "unsettled_because": list(standing.because),
        "lr_tried": (min(rates), max(rates)) if rates else None,
        "best": asdict(standing.best.spec.stages[-1]) if standing.best else {},
        "second_half_share": standing.second_half_share,
    }


def score_recipe(run: RunFolder, specs: Plan, verdicts: Verdicts, strategy: str, splits: Splits) -> float | None:
    """Score the recipe of a strategy by itself, at epochs that the other folds choose, by the seeds of its search."""
    recipe = [spec for spec in specs if spec.index == 0 and spec.origin == RECIPE]
    curves = load_curves(run, recipe, verdicts, strategy, splits)
    return score_choice(choose(curves), curves).mean if curves else None


def summarize_baseline(values: Means) -> BaselineSummary:
    mean, std = float(values.mean()), float(values.std(ddof=1))
    return BaselineSummary(score_mean=mean, score_std=std, scores=values.tolist())


def compare_with_baseline(
    scores: Scores, baselines: Mapping[str, Means], rope: float, test_share: float
) -> Comparisons:
    """Compare each pair of the strategies that have a score, and each with the best baseline."""
    by_fold = {name: score.values.mean(-1) for name, score in scores.items() if score is not None}
    best = min(baselines, key=lambda name: baselines[name].mean())
    return compare_all(by_fold | {best: baselines[best]}, rope, test_share)


def find_notes(run: RunFolder, plan: Plan, scores: Scores, strategies: Mapping[str, Strategy]) -> list[str]:
    """Collect what is odd about the training of each strategy."""
    notes = []
    for name, score in scores.items():
        notes += [f"{name}: {note}" for note in collect(run, [s for s in plan if s.strategy == name], "note")]
        random = strategies[name].n_trained > 0  # a closed form gives each seed the same
        if random and score is not None and score.values.shape[-1] > 1 and differ_by(score.values) < SAME:
            notes.append(f"{name}: all seeds gave the same results, so they count as one; what in training is random?")
    return notes


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
