"""What a run found, in words: which strategy, how sure, and what would change the answer."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from ray_ft.errors import count, write_share
from ray_ft.objectives import find_objective, list_baselines
from ray_ft.results.learning_curve import LearningCurve
from ray_ft.results.summary import EnsembleSummary, StrategySummary, Summary
from ray_ft.statistics.comparison import Comparison

ANOTHER_RUN = "it is another run (--out)"
EQUAL = "practically equal"
FEW_FOLDS = 5  # of one deal, below which next to nothing is told from chance
NOTHING = 1e-3  # of a score, below which an optimism is none


@dataclass(frozen=True)
class Unit:
    """A power of a thousand in which scores are easy to read."""

    exponent: int

    @property
    def suffix(self) -> str:
        return f" in 1e{self.exponent}" if self.exponent else ""

    @property
    def factor(self) -> float:
        return 10.0**-self.exponent

    def scale(self, value: float) -> float:
        return value * self.factor

    def write(self, value: float | None, sign: str = "") -> str:
        return "?" if value is None else f"{self.scale(value):{sign}.3f}"

    def spread(self, mean: float | None, std: float | None) -> str:
        return f"{self.write(mean)} ± {self.write(std)}"

    def interval(self, bounds: tuple[float, float], sign: str = "") -> str:
        return f"[{self.write(bounds[0], sign)}, {self.write(bounds[1], sign)}]"


def choose_unit(scores: Iterable[float]) -> Unit:
    """Choose the unit in which the lowest score above 0 is 0.1 or more, so that three decimals are three digits."""
    lowest = min((score for score in scores if score > 0), default=1.0)
    return Unit(3 * math.floor((math.log10(lowest) + 1) / 3))


def unit_of(summary: Summary) -> Unit:
    """The unit of the strategies; a baseline may be next to 0, or very bad."""
    own = [strategy.score_mean for strategy in summary.strategies.values() if strategy.score_mean]
    return choose_unit(own or [baseline.score_mean for baseline in summary.baselines.values()])


def unit_of_curve(curve: LearningCurve) -> Unit:
    scores = {name: each.score_mean for name, each in curve.curves.items()}
    own = [score for name, each in scores.items() if name not in list_baselines() for score in each]
    return choose_unit(own or [score for each in scores.values() for score in each])


def write_chance(chance: float) -> str:
    """Write a probability that was estimated, so that it is never nothing, nor all."""
    return write_share(min(max(chance, 1e-9), 1 - 1e-9))


def label(name: str) -> str:
    """Baselines are written with hyphens, so that none is taken for a strategy."""
    return name.replace("_", "-") if name in list_baselines() else name


def describe_shape(summary: Summary) -> str:
    shape = f"{summary.n_samples} samples, {summary.n_folds} folds × {summary.n_seeds} seeds"
    if summary.n_repeats > 1:
        shape += f" × {summary.n_repeats} repeats"
    if summary.n_train < 0.999 * summary.n_samples * (1 - 1 / summary.n_folds):
        shape += f", training parts of {summary.n_train:.4g}"
    return shape + (", nested" if summary.protocol == "nested" else "")


def describe_trained(row: StrategySummary) -> str:
    """How much of the network learns; nothing does where a closed form answers beside it."""
    share = write_share(row.trained_share, 1)
    return f"{row.n_trained_params:,} ({share})" if row.n_trained_params else "closed form"


def say_pair(pair: Comparison, unit: Unit) -> str:
    """One sentence on a comparison, seen from its first."""
    chances = ", ".join(map(write_chance, pair.probabilities))
    numbers = f"{unit.write(pair.difference, '+')} {unit.interval(pair.interval, '+')}{say_ratio(pair)}"
    said = f"{say_verdict(pair)}: {numbers}, p {pair.p_adjusted:.2g}; better, equal, worse with {chances}"
    return said + (f"; {say_remedy(pair)}" if pair.verdict == "no evidence of a difference" else "")


def say_verdict(pair: Comparison) -> str:
    first, second = label(pair.first), label(pair.second)
    return {
        "better": f"{first} is better than {second}",
        "worse": f"{first} is worse than {second}",
        "practically equal": f"{first} and {second} are practically equal",
        "no evidence of a difference": f"no evidence of a difference between {first} and {second}",
        "not settled": f"no verdict between {first} and {second}, as {say_which(pair)} not settled",
    }[pair.verdict]


def say_which(pair: Comparison) -> str:
    """Name those of the two that have not had their best chance."""
    better, equal, worse = pair.probabilities
    if equal < max(better, worse):  # the one that loses is to blame
        return f"{label(pair.second if better > worse else pair.first)} is"
    names = [label(name) for name in pair.unsettled]
    return " and ".join(names) + (" is" if len(names) == 1 else " are")


def say_unsettled(summary: Summary) -> Iterator[str]:
    """Why strategies have not had their best chance, a line each."""
    for name, row in summary.strategies.items():
        if not row.settled:
            yield f"{name} is not settled: {'; '.join(row.unsettled_because)}"


def say_way_on(summary: Summary) -> Iterator[str]:
    """How what is not settled may be."""
    if summary.search.method != "guide" and not all(row.settled for row in summary.strategies.values()):
        minutes, n = summary.search.minutes, max(row.n_candidates for row in summary.strategies.values())
        more = f"--candidates {2 * n}" if minutes is None else f"--minutes {2 * minutes:g}"
        yield (
            f"the same command with a larger budget, such as {more}, goes on from here; where the config fixes lr or "
            "epochs, that holds it back, so widen it there (in a folder of its own, --out)"
        )


def say_method(summary: Summary) -> Iterator[str]:
    if summary.search.method == "guide":
        yield "the ranges were drawn from as written, so this ranks recipes; --search best ranks strategies"


def say_ratio(pair: Comparison) -> str:
    return "" if pair.ratio is None else f", ratio {describe_ratio(pair)}"


def describe_ratio(pair: Comparison) -> str:
    if pair.ratio is None or pair.ratio_interval is None:
        return ""
    return f"{pair.ratio:.3g} [{pair.ratio_interval[0]:.3g}, {pair.ratio_interval[1]:.3g}]"


def say_remedy(pair: Comparison) -> str:
    """What might settle a pair of which nothing is known: first of all, the search of those that are not settled."""
    return f"{' and '.join(map(label, pair.unsettled))} not settled" if pair.unsettled else say_repeats(pair)


def say_repeats(pair: Comparison) -> str:
    """What more repeats might do: a range, as the difference itself is known as a range."""
    fewest, most = pair.n_repeats_range
    if fewest is None:
        return "repeats alone are unlikely to settle it, as they deal the same samples again; more samples might"
    small = "" if most is None else f", {most} if as small"
    return (
        f"--repeats {fewest} may settle it if the difference is as large as it may be{small}; {ANOTHER_RUN}; where it "
        "stays open, take the lower score, or add samples"
    )


def say_crown(summary: Summary) -> str:
    """Who wins, if anyone, behind the word for it."""
    if summary.winner is None:
        return f"none: {say_headline(summary)}"
    return f"{summary.winner} ({describe_win(summary)})"


def say_headline(summary: Summary) -> str:
    """Who wins, if anyone, as a sentence."""
    if summary.winner is None:
        far = ", as far as they were searched," if any(say_way_on(summary)) else ""
        beaten = f"no strategy{far} beats {label(summary.best_baseline)}, so do not use this model"
        return f"{beaten}; {summary.lowest} is the lowest of them"
    return f"{summary.winner} has the {describe_win(summary)}"


def describe_win(summary: Summary) -> str:
    """What the winner has, and whether it is known to be better than what costs no training."""
    surely = summary.against_baseline.verdict == "better"
    beside = "" if surely else f", but not known to be better than {label(summary.best_baseline)}"
    unsettled = [name for name, row in summary.strategies.items() if not row.settled]
    so_far = f"; not settled: {', '.join(unsettled)}" if any(say_way_on(summary)) else ""
    return f"lowest mean score, below the best baseline{beside}{so_far}"


def say_lowest(summary: Summary, unit: Unit) -> str:
    """The score of the strategy that has the lowest, and what it is worth after the choice."""
    lowest = summary.strategies[summary.lowest]
    score = f"{summary.metric} {unit.spread(lowest.score_mean, lowest.score_std)}{unit.suffix}"
    said = f"{summary.lowest}: {score} over {describe_shape(summary)}"
    return ". Corrected for having been picked as the lowest: ".join([said, *say_corrected(summary, unit)])


def say_corrected(summary: Summary, unit: Unit) -> Iterator[str]:
    """What the score is worth after the choice; nothing where there was none."""
    if sum(row.score_mean is not None for row in summary.strategies.values()) > 1:
        yield f"{unit.write(summary.selection.score)} {unit.interval(summary.selection.interval)}"


def say_ensemble(ensemble: EnsembleSummary, unit: Unit) -> Iterator[str]:
    """What the ensemble is and what its score is; then what averaging and mixing buy, and what a prediction costs."""
    shares = " to ".join(
        dict.fromkeys(f"{end(ensemble.pulled_shares):.2g}" for end in (min, max) if ensemble.pulled_shares)
    )
    pulled = f", weights {shares} of the way from the pretrained ones" if shares not in ("", "1") else ""
    averaged = f", averaged over {ensemble.n_views} views" if ensemble.symmetric else ""
    members = f"{ensemble.n_members} members of {', '.join(ensemble.strategies)}, {ensemble.method}{pulled}{averaged}"
    yield (
        f"{members}: score {unit.write(ensemble.score)}{unit.suffix}, {say_blind(ensemble.n_blind)}, in {ensemble.path}"
    )
    if (pair := ensemble.pulled_pair) and not pair.difference:
        yield "no fold gains by weights pulled back to the pretrained ones"
    tried = (pair for pair in (ensemble.pulled_pair, ensemble.symmetric_pair) if pair and pair.difference)
    yield from (say_pair(pair, unit) for pair in tried)
    if ensemble.mixes:
        mixes = ", ".join(f"{name} {unit.write(score)}" for name, score in ensemble.mixes.items())
        own = unit.write(ensemble.options["uniform"])
        before = ", before any averaging over views" if ensemble.symmetric_pair else ""
        yield f"mixes{before}: {mixes}; the winner's members alone {own}"
    if ensemble.cost is not None:
        yield f"a prediction costs {ensemble.cost:.3g} times that of the pretrained network"


def say_blind(n_blind: int) -> str:
    return f"each sample by the {count(n_blind, 'member')} that never saw it"


def say_depth(summary: Summary, unit: Unit) -> Iterator[str]:
    """Whether early layers pay or late ones suffice, where strategies differ in that and are told apart.

    The layers that suffice are the fewest that are practically as good as those of the lowest score.
    """
    chain = summary.by_depth
    if len(chain) < 2:
        return
    first, last = chain[0], chain[-1]
    best = min(chain, key=lambda name: summary.strategies[name].score_mean or 0.0)
    enough = next(name for name in chain if name == best or compare(summary, name, best).verdict == EQUAL)
    gains = [compare(summary, enough, other) for other in chain[: chain.index(enough)]]
    rest = [compare(summary, enough, last)] if enough != last else []
    fall = f"the {summary.metric} falls from {first} to {enough} by {say_fall(gains[0], unit)}" if gains else ""
    unknown = [pair for pair in (*gains, *rest) if pair.verdict not in ("better", EQUAL)]
    if unknown:
        known = gains and gains[0].verdict == "better"
        opening = f"{fall}, but how early the layers are that pay is open" if known else "no verdict on early layers"
        yield f"{opening}: {say_verdict(unknown[0])}"
    elif enough == first:
        yield f"late layers pay: {first} is {'as good as' if rest[0].verdict == EQUAL else 'better than'} {last}"
    elif enough == last:
        yield f"{'early' if len(chain) > 2 else 'more than the last'} layers pay: {fall}"
    else:
        yield f"later layers pay: {fall}, and {last} is {'no better' if rest[0].verdict == EQUAL else 'worse'}"


def compare(summary: Summary, first: str, second: str) -> Comparison:
    """The comparison of two strategies, seen from the first."""
    (found,) = (pair for pair in summary.of(first) if pair.second == second)
    return found


def say_fall(pair: Comparison, unit: Unit) -> str:
    """By how much the first is below the second."""
    if pair.ratio is None or pair.ratio_interval is None:
        return f"{unit.write(-pair.difference)} {unit.interval((-pair.interval[1], -pair.interval[0]))}"
    fall, low, high = (f"{100 * (1 - ratio):.0f} %" for ratio in (pair.ratio, *pair.ratio_interval[::-1]))
    return f"{fall} [{low}, {high}]"


def say_changes(summary: Summary, unit: Unit) -> list[str]:
    """What could change the answer, as far as the run itself shows."""
    unsettled = *say_unsettled(summary), *say_way_on(summary)
    training = *say_spread(summary, unit), *say_failures(summary)
    return [*say_method(summary), *unsettled, *say_undecided(summary), *training]


def say_undecided(summary: Summary) -> Iterator[str]:
    for pair in summary.of(summary.lowest):
        if pair.verdict == "no evidence of a difference":
            yield f"{label(pair.second)} may be as good as {pair.first}, or better: {say_remedy(pair)}"
    yield from say_few_folds(summary)


def say_few_folds(summary: Summary) -> Iterator[str]:
    """That folds are few, where some pair is not told apart."""
    unknown = any(pair.verdict == "no evidence of a difference" for pair in summary.of(summary.lowest))
    if unknown and summary.n_folds < FEW_FOLDS <= summary.n_samples and summary.n_repeats == 1:
        yield (
            f"{count(summary.n_folds, 'fold')} tell only a large difference from chance, so that p may be high where "
            f"one is lower in all of them; --folds {FEW_FOLDS} tells more, and {ANOTHER_RUN}"
        )


def describe_spread(row: StrategySummary, unit: Unit) -> str:
    if row.fold_std is None or row.seed_std is None:
        return "one seed: the parts of folds and seeds are unknown"
    return f"{unit.write(row.fold_std)} by folds, {unit.write(row.seed_std)} by seeds"


def say_spread(summary: Summary, unit: Unit) -> Iterator[str]:
    name, winner = summary.lowest, summary.strategies[summary.lowest]
    repeats = "" if summary.deals.only_one else " or repeats"
    mostly = f"{name}'s spread is mostly"
    if winner.fold_std is None or winner.seed_std is None:
        yield "one seed: what of the spread is due to the randomness of training is unknown; --seeds 2 shows it"
    elif winner.fold_std > winner.seed_std:
        parts = describe_spread(winner, unit)
        yield f"{mostly} which samples are held out ({parts}): more samples{repeats}, not more seeds"
    else:
        yield f"{mostly} the randomness of training ({describe_spread(winner, unit)}): more seeds narrow it"


def say_failures(summary: Summary) -> Iterator[str]:
    for name, row in summary.strategies.items():
        if n := row.candidates["failed"]:
            yield f"{n} of {row.n_candidates} candidates of {name} failed: it may be better than it looks"


def list_beside(summary: Summary) -> tuple[list[str], dict[str, list[str]]]:
    """What is measured beside the score: headers, and the cells of each row by its name, strategies first."""
    columns = find_objective(summary.metric).presentation.beside
    rows = sorted(summary.strategies.items(), key=lambda item: (item[1].score_mean is None, item[1].score_mean))
    every = dict(rows) | dict(sorted(summary.baselines.items(), key=lambda item: item[1].score_mean))
    known = {name: row.beside for name, row in every.items() if row.beside}
    cells = {
        label(name): [write_measure(own[c.measure], c.form) if c.measure in own else "" for c in columns]
        for name, own in known.items()
    }
    return drop_empty([column.header for column in columns], cells)


def list_search(summary: Summary, unit: Unit) -> tuple[list[str], dict[str, list[str]]]:
    """What was tried of each strategy, and what was best: headers, and the cells of each row by its name."""
    headers = ["tried", "lr tried", "best lr", "epochs", "recipe's score", "late progress", "settled", "time"]
    cells = {}
    for name, row in summary.strategies.items():
        lr, late = row.best.get("lr"), row.second_half_share
        cells[name] = [
            str(row.n_candidates), describe_rates(row), "" if lr is None else f"{lr:.1e}",
            str(row.best.get("epochs", "")), "" if row.guide_score is None else unit.write(row.guide_score),
            "" if late is None else f"{late:.0%}", "yes" if row.settled else "no !", f"{row.seconds:.0f} s",
        ]  # fmt: skip
    return drop_empty(headers, cells)


def drop_empty(headers: list[str], cells: dict[str, list[str]]) -> tuple[list[str], dict[str, list[str]]]:
    """Leave out the columns in which no row has anything."""
    kept = [i for i in range(len(headers)) if any(row[i] for row in cells.values())]
    return [headers[i] for i in kept], {name: [row[i] for i in kept] for name, row in cells.items()}


def write_measure(value: float, form: str) -> str:
    """Write a measure as its column says; a share is never nothing, nor all, but where it is."""
    return write_share(value, int(form.strip(".%"))) if form.endswith("%") else format(value, form)


def describe_rates(row: StrategySummary) -> str:
    """The learning rates that were tried."""
    if row.lr_tried is None:
        return ""
    low, high = (f"{rate:.1e}" for rate in row.lr_tried)
    return low if low == high else f"{low} – {high}"


def describe_stops(row: StrategySummary) -> str:
    """The epochs at which folds stopped, marked where the strategy is not settled."""
    stops = [epoch for repeat in row.stop_epochs for epoch in repeat]
    if not stops:
        return ""
    shown = f"{min(stops)}–{max(stops)}" if min(stops) < max(stops) else str(stops[0])
    return shown + ("" if row.settled else " !")


def describe_optimism(row: StrategySummary, unit: Unit) -> str:
    """What the best-epoch value leaves out; nothing where no fold stopped early, nor chose another candidate."""
    acted = row.stops_early or abs(row.optimism or 0.0) > NOTHING * (row.score_mean or 0.0)
    return unit.write(row.optimism) if acted else "none"
