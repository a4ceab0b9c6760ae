"""What rules that pick a strategy cost, judged by the fresh samples of `benchmarks.fresh`, whose `--list` prints this.

A rule sees what a run says, and picks. Its cost is by how much the error of its pick on the fresh samples is above the
lowest there. One split picks by chance, as it depends on which samples it holds out, so its cost has a distribution.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from ray_ft.errors import write_share

Row = dict[str, str]
Found = dict[str, Row]  # rows of a problem, by strategy
Chances = dict[str, float]  # with which a rule picks each strategy
SPLIT, WHOLE = "one split", "everything"
COSTLY = (0.2, 0.5, 1.0)  # above the lowest error
N_SE = 2  # standard errors from which on fresh samples tell two strategies apart


def pick(found: Found) -> dict[str, Chances]:
    """With which chance each rule picks which strategy of a problem."""
    ours = next(name for name, row in found.items() if row["picked"] == "True")
    careful = ours if found[WHOLE]["verdict"] == "worse" else WHOLE
    picks: dict[str, Chances] = {
        "ours": {ours: 1.0},
        SPLIT: {name: float(row["split_chance"]) for name, row in found.items()},
        "everything, unless shown to be worse": {careful: 1.0},
    }
    return picks | {f"always {name}": {name: 1.0} for name in (WHOLE, "last_layer", "ridge")}


def list_problems(rows: Sequence[Row]) -> dict[str, Found]:
    problems: dict[str, Found] = defaultdict(dict)
    for row in rows:
        if row["picked"]:  # others are no strategies
            problems[row["problem"]][row["strategy"]] = row
    return problems


def measure_costs(found: Found) -> dict[str, float]:
    """By how much the fresh error of each strategy is above the lowest, as a share of that."""
    errors = {name: float(row["fresh"]) for name, row in found.items()}
    return {name: error / min(errors.values()) - 1 for name, error in errors.items()}


def print_costs(rows: Sequence[Row]) -> None:
    """Print, as Markdown, what each rule costs, and how often it names the best."""
    means, hits = defaultdict(list), defaultdict(float)
    problems = list_problems(rows)
    for found in problems.values():
        costs = measure_costs(found)
        for rule, chances in pick(found).items():
            means[rule].append(sum(chance * costs[name] for name, chance in chances.items()))
            hits[rule] += sum(chance for name, chance in chances.items() if costs[name] == 0)
    print(f"\n| problem | {' | '.join(means)} |\n|---|{'---|' * len(means)}")
    for place, problem in enumerate(problems):
        print(f"| {problem} | {' | '.join(write_share(own[place]) for own in means.values())} |")
    print(f"| **mean** | {' | '.join(write_share(np.mean(own)) for own in means.values())} |")
    print(f"| **largest** | {' | '.join(write_share(max(own)) for own in means.values())} |")
    print(f"| **names the best** | {' | '.join(f'{n:.2g} of {len(problems)}' for n in hits.values())} |")
    more = np.subtract(means[SPLIT], means["ours"])
    mean, error = (write_share(value, 1) for value in (more.mean(), more.std(ddof=1) / len(more) ** 0.5))
    print(f"\none split costs {mean} ± {error} more than ours, were the problems independent")


def print_draws(rows: Sequence[Row]) -> None:
    """Print how often a pick of the run, and one draw of a split, is costly; all problems weigh the same."""
    problems = list_problems(rows)
    for rule in ("ours", SPLIT):
        drawn = [(measure_costs(found)[name], chance / len(problems)) for found in problems.values()
                 for name, chance in pick(found)[rule].items() if chance]  # fmt: skip
        shares = {limit: sum((chance for cost, chance in drawn if cost > limit), 0.0) for limit in COSTLY}
        told = [f"{write_share(share, 1)} above {write_share(limit)}" for limit, share in shares.items()]
        print(f"picks of {rule}, by their cost: {', '.join(told)}, {write_share(max(drawn)[0])} at most")


def print_verdicts(rows: Sequence[Row]) -> None:
    """Print what the runs' verdicts on their picks were worth, and their scores."""
    pairs = defaultdict(list)  # by verdict: the error as a multiple of the pick's, and whether they are apart
    scores = []
    for found in list_problems(rows).values():
        picked = next(row for row in found.values() if row["picked"] == "True")
        scores.append(float(picked["score"]) / float(picked["fresh"]))
        for row in found.values():
            if row is not picked:
                apart = abs(float(row["behind"])) > N_SE * float(row["behind_se"])
                pairs[row["verdict"]].append((float(row["fresh"]) / float(picked["fresh"]), apart))
    for verdict, own in pairs.items():
        ratios = [ratio for ratio, _ in own]
        print(
            f"{len(own)} pairs, {verdict}: {min(ratios):.2f} to {max(ratios):.2f} times the error of the pick, "
            f"{sum(ratio > 2 for ratio in ratios)} above twice; "
            f"{sum(apart for _, apart in own)} apart by more than {N_SE} standard errors on fresh samples"
        )
    print(f"score of the pick over its fresh error: {', '.join(f'{score:.2f}' for score in sorted(scores))}")
