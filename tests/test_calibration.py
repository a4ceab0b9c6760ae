"""Whether the statistics mean what they say, by simulation: `pytest -m slow -s tests/test_calibration.py`.

Real learners on data sets drawn anew, dealt, scored and compared by the package's own functions.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.linear_model import Ridge
from torch import nn

from ray_ft.config import StrategyConfig, scale_lr
from ray_ft.data.folds import Splits, deal_folds, deal_inner
from ray_ft.search.best import BestProposer
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.settling import Attempt
from ray_ft.statistics.comparison import compare_all, compare_pair
from ray_ft.statistics.scores import Curves, StrategyScore, build_curves, choose, score_choice
from ray_ft.statistics.selection import correct_selection

pytestmark = pytest.mark.slow
N_SAMPLES, N_FOLDS = 100, 5
STEPS = 5  # of an epoch of the networks that are searched


@dataclass(frozen=True)
class Scored:
    """Ridges that see different features of the same worth, so that none is better in truth.

    Attributes:
        means: Fold means.
        losses: Held out.
        truths: Mean error of the fold models of each on fresh samples.
    """

    means: np.ndarray  # (learner, repeat, fold)
    losses: np.ndarray  # (learner, sample)
    truths: np.ndarray  # (learner)


def score_ridges(
    rng: np.random.Generator, n_learners: int, n_features: int, n_folds: int, n_repeats: int, n_fresh: int
) -> Scored:
    """Cross-validate ridges on a data set drawn anew."""

    def draw(n: int) -> tuple[np.ndarray, np.ndarray]:
        x = rng.normal(size=(n, n_learners * n_features))
        return x, x.sum(1) / np.sqrt(n_features) + rng.normal(size=n)

    (x, y), (fresh_x, fresh_y) = draw(N_SAMPLES), draw(n_fresh)
    splits = deal_folds(np.arange(N_SAMPLES), n_folds, n_repeats, int(rng.integers(2**31)))
    means, losses = np.empty((n_learners, n_repeats, n_folds)), np.zeros((n_learners, N_SAMPLES))
    errors = np.empty_like(means)
    for i, r, k in np.ndindex(means.shape):
        own = slice(i * n_features, (i + 1) * n_features)
        train, held_out = splits.training(r, k), splits.held_out(r, k)
        ridge = Ridge(alpha=1.0).fit(x[train, own], y[train])
        loss = (ridge.predict(x[held_out, own]) - y[held_out]) ** 2
        means[i, r, k] = loss.mean()
        losses[i, held_out] += loss / n_repeats
        errors[i, r, k] = ((ridge.predict(fresh_x[:, own]) - fresh_y) ** 2).mean() if n_fresh else np.nan
    return Scored(means, losses, errors.mean((1, 2)))


def find_rejections(n_features: int, n_folds: int, n_repeats: int, n_times: int) -> tuple[float, float]:
    """Say how often the corrected and the uncorrected test reject at 5 % where there is no true difference."""
    rng = np.random.default_rng(0)
    corrected, uncorrected = [], []
    for _ in range(n_times):
        a, b = score_ridges(rng, 2, n_features, n_folds, n_repeats, 0).means
        corrected.append(compare_pair("a", "b", a, b, 0.01, 1 / (n_folds - 1)).p_value)
        uncorrected.append(stats.ttest_rel(a.ravel(), b.ravel()).pvalue)
    rates = tuple(float((np.array(p_values) < 0.05).mean()) for p_values in (corrected, uncorrected))
    print(
        f"\n{n_features} features, {n_folds} folds x {n_repeats}: corrected {rates[0]:.1%}, uncorrected {rates[1]:.1%}"
    )
    return rates


@pytest.mark.parametrize(
    ("n_features", "n_repeats", "lowest", "highest"),
    [(40, 1, 0.03, 0.08), (40, 2, 0.03, 0.08), (10, 4, 0.03, 0.08), (10, 1, 0.0, 0.05), (40, 4, 0.03, 0.1)],
)
def test_the_corrected_test_rejects_as_rarely_as_it_says(
    n_features: int, n_repeats: int, lowest: float, highest: float
) -> None:
    """Of 10 features a ridge learns steadily from 80 samples, of 40 it does not."""
    corrected, uncorrected = find_rejections(n_features, N_FOLDS, n_repeats, 1000)
    assert lowest <= corrected <= highest
    assert uncorrected > corrected


def test_many_folds_and_repeats_of_an_unsteady_learner_are_more_than_the_correction_covers() -> None:
    corrected, uncorrected = find_rejections(70, 10, 10, 300)
    assert 0.1 < corrected < uncorrected / 2, "docs/statistics.md warns of it"


def test_the_corrected_score_of_a_winner_is_near_its_truth() -> None:
    rng = np.random.default_rng(1)
    lowest, corrected = [], []
    for seed in range(300):
        scored = score_ridges(rng, 6, 10, N_FOLDS, 1, 10_000)
        winner = scored.means.mean((1, 2)).argmin()
        lowest.append(scored.means[winner].mean() - scored.truths[winner])
        found = correct_selection({str(i): own for i, own in enumerate(scored.losses)}, np.arange(N_SAMPLES), seed)
        corrected.append(found.score - scored.truths[winner])
    print(f"\nwinner of six: bias {describe(lowest)} as it stands, {describe(corrected)} corrected")
    assert np.mean(lowest) < 0
    assert abs(np.mean(corrected)) < abs(np.mean(lowest)) / 4


class Learners(nn.Module):
    """Small networks side by side, one a member."""

    def __init__(self, n: int, generator: torch.Generator) -> None:
        super().__init__()
        self.inner = nn.Parameter(torch.randn(n, 6, 16, generator=generator) / 6**0.5)
        self.outer = nn.Parameter(torch.randn(n, 16, 1, generator=generator) / 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (torch.tanh(x @ self.inner) @ self.outer)[..., 0]


def learn(seed: int, nested: bool) -> tuple[float, float, float, float]:
    """Train members over folds x seeds x candidates on a data set drawn anew.

    Returns:
        Score and best-epoch value, each less the error of the same members on 10,000 fresh samples; then these errors.
    """
    n_seeds, n_epochs, lrs = 2, 60, (0.01, 0.03, 0.1)
    generator = torch.Generator().manual_seed(seed)

    def draw(n: int) -> tuple[torch.Tensor, torch.Tensor]:
        x = torch.randn(n, 6, generator=generator)
        return x, torch.sin(2 * x[:, 0]) + x[:, 1] * x[:, 2] + torch.randn(n, generator=generator)

    (x, y), (fresh_x, fresh_y) = draw(N_SAMPLES), draw(10_000)
    splits = deal_folds(np.arange(N_SAMPLES), N_FOLDS, 1, seed)
    if nested:
        splits = deal_inner(splits, np.arange(N_SAMPLES))
    trained = torch.zeros(N_FOLDS, 1, N_SAMPLES)
    for k in range(N_FOLDS):
        trained[k, 0, splits.training(0, k)] = 1
    weights = trained.repeat_interleave(n_seeds, 0)[:, 0]  # members are folds x seeds
    curves, truths = {}, {}
    for index, lr in enumerate(lrs):
        learners = Learners(len(weights), generator)
        optimizer = torch.optim.Adam(learners.parameters(), lr=lr)
        losses, truth = [], []
        for _ in range(n_epochs):
            optimizer.zero_grad()
            ((learners(x) - y) ** 2 * weights / weights.sum(1, keepdim=True)).sum().backward()
            optimizer.step()
            with torch.no_grad():
                losses.append(((learners(x) - y) ** 2).view(N_FOLDS, n_seeds, N_SAMPLES).numpy())
                truth.append(((learners(fresh_x) - fresh_y) ** 2).mean(1).view(1, N_FOLDS, n_seeds).numpy())
        curves[index] = to_curves(np.stack(losses).astype(np.float64), splits, nested)
        truths[index] = np.stack(truth)
    score = score_choice(choose(curves), curves)
    own = [truths[score.candidate[0, k]][score.epoch[0, k], 0, k].mean() for k in range(N_FOLDS)]
    best = min(curves, key=lambda index: curves[index].held_out.min(0).mean())
    epochs = curves[best].held_out.argmin(0)[None]
    at_best = float(np.take_along_axis(truths[best], epochs, 0).mean())
    return score.mean - float(np.mean(own)), score.best_epoch_mean - at_best, float(np.mean(own)), at_best


def to_curves(by_fold: np.ndarray, splits: Splits, nested: bool) -> Curves:
    """From losses of every member on every sample (epoch, fold, seed, sample)."""
    held_out = np.empty((len(by_fold), 1, by_fold.shape[2], N_SAMPLES))
    for k in range(N_FOLDS):
        samples = splits.held_out(0, k)
        held_out[:, 0, :, samples] = np.moveaxis(by_fold[:, k][..., samples], -1, 0)
    inner = [by_fold[:, k][..., splits.inner(0, k)].mean(-1) for k in range(N_FOLDS)] if nested else None
    return build_curves(held_out, None if inner is None else np.stack(inner, 1)[:, None], splits)


@pytest.mark.parametrize("protocol", ["crossfit", "nested"])
def test_scores_are_not_optimistic_as_best_epochs_are(protocol: str) -> None:
    torch.set_num_threads(2)
    score, best, truth, _ = zip(*(learn(seed, protocol == "nested") for seed in range(300)), strict=True)
    biases = f"bias of the score {describe(score)}, of best epochs {describe(best)}"
    print(f"\n{protocol}: true error {np.mean(truth):.4f}, {biases}")
    assert np.mean(best) < 0, "best epochs are optimistic"
    assert abs(np.mean(score)) <= abs(np.mean(best)) / 4


def describe(biases: Sequence[float]) -> str:
    return f"{np.mean(biases):+.4f} ± {np.std(biases) / np.sqrt(len(biases)):.4f}"


@dataclass(frozen=True)
class Searched:
    """A strategy that was searched on a data set, its score, and the error of the same members on fresh samples."""

    score: StrategyScore
    truth: float
    best_epoch_bias: float


class Trainer:
    """Trains small networks on half of the inputs; both halves are worth the same."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor, fresh: tuple[torch.Tensor, torch.Tensor], seed: int) -> None:
        self.x, self.y, self.fresh, self.seed = x, y, fresh, seed
        self.splits = deal_folds(np.arange(len(x)), N_FOLDS, 1, seed)
        trained = [torch.from_numpy(np.isin(np.arange(len(x)), self.splits.training(0, k))) for k in range(N_FOLDS)]
        self.weights = torch.stack(trained).float()

    def train(self, spec: CandidateSpec, seed: int) -> tuple[Curves, np.ndarray]:
        """Return the curves of one seed's members, and their errors on fresh samples (epoch, fold)."""
        hyper = spec.stages[-1]
        learners = Learners(N_FOLDS, torch.Generator().manual_seed(1000 * self.seed + seed))
        optimizer = torch.optim.Adam(learners.parameters(), lr=hyper.lr, weight_decay=hyper.weight_decay)
        losses, truths = [self.measure(learners, self.x, self.y)], [self.measure(learners, *self.fresh)]
        for epoch in range(hyper.epochs):
            for step in range(STEPS):
                optimizer.param_groups[0]["lr"] = hyper.lr * scale_lr(epoch * STEPS + step, hyper.epochs * STEPS, 0)
                optimizer.zero_grad()
                errors = (learners(self.x) - self.y) ** 2
                (errors * self.weights / self.weights.sum(1, keepdim=True)).sum().backward()
                optimizer.step()
            losses.append(self.measure(learners, self.x, self.y))
            truths.append(self.measure(learners, *self.fresh))
        by_fold = np.stack(losses)[:, :, None].astype(np.float64)
        return to_curves(by_fold, self.splits, False), np.stack(truths).mean(-1)

    def measure(self, learners: Learners, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        with torch.no_grad():
            return ((learners(x) - y) ** 2).numpy()


def search_and_score(trainer: Trainer) -> Searched:
    """As a run does: candidates by one seed, then the other seed where each fold has chosen."""
    proposer = BestProposer("s", StrategyConfig.model_validate({"train": ["*"]}), 6, trainer.seed, 0.01)
    proposer.tell_range(0.1, 0.25)
    curves, truths, specs = {}, {}, {}
    while asked := proposer.ask():
        for spec in asked:
            curves[spec.index], truths[spec.index] = trainer.train(spec, 0)
            specs[spec.index] = spec
            proposer.tell(Attempt(spec, "completed", curves[spec.index].guide))
    choice = choose(curves)
    later = {index: trainer.train(specs[index], 1) for index in np.unique(choice.candidate)}
    values, own = np.empty((1, N_FOLDS, 1)), []
    for k in range(N_FOLDS):
        index, epoch = int(choice.candidate[0, k]), choice.epoch[0, k]
        values[0, k] = later[index][0].held_out[epoch, 0, k]
        own += [truths[index][epoch, k], later[index][1][epoch, k]]
    best = min(curves, key=lambda index: curves[index].held_out.min(0).mean())
    at_best = np.take_along_axis(truths[best], curves[best].held_out[:, 0, :, 0].argmin(0)[None], 0).mean()
    score = score_choice(choice, curves, values)
    return Searched(score, float(np.mean(own)), score.best_epoch_mean - float(at_best))


def test_with_the_search_inside_equal_strategies_are_rarely_told_apart_and_scores_are_honest() -> None:
    torch.set_num_threads(1)
    p_values, biases, best_epochs = [], [], []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)

        def draw(n: int, generator: torch.Generator = generator) -> tuple[torch.Tensor, torch.Tensor]:
            x = torch.randn(n, 12, generator=generator)
            parts = [torch.sin(2 * x[:, i]) + x[:, i + 1] * x[:, i + 2] for i in (0, 6)]
            return x, sum(parts) + torch.randn(n, generator=generator)

        (x, y), (fresh_x, fresh_y) = draw(N_SAMPLES), draw(2000)
        halves = slice(0, 6), slice(6, 12)
        a, b = (search_and_score(Trainer(x[:, own], y, (fresh_x[:, own], fresh_y), seed)) for own in halves)
        (pair,) = compare_all({"a": a.score.values.mean(-1), "b": b.score.values.mean(-1)}, 0.01, 1 / (N_FOLDS - 1))
        p_values.append(pair.p_adjusted)
        biases += [own.score.mean - own.truth for own in (a, b)]
        best_epochs += [own.best_epoch_bias for own in (a, b)]
    rate = float(np.mean(np.array(p_values) < 0.05))
    print(f"\nrejects {rate:.1%}; bias of the score {describe(biases)}, of best epochs {describe(best_epochs)}")
    assert rate <= 0.08
    assert abs(np.mean(biases)) <= abs(np.mean(best_epochs)) / 4
