"""The model card of an ensemble: a README that people, and the Hugging Face Hub, read. All of it is of `card.json`."""

from collections.abc import Mapping
from typing import Any

import yaml

from ray_ft.ensemble.model import Ensemble
from ray_ft.errors import count
from ray_ft.statistics.intervals import WITHOUT_INTERVALS

KNOWN = ("apache-2.0", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc0-1.0", "gpl-3.0", "mit")

TEXT = """---
{header}---

# {run}: an ensemble of {n_members} fine-tuned members
{warning}
## What it is

Members trained from one pretrained network by ray-ft, by the strategy {strategies}:
{shape} of the folds.
A prediction is their average. An input has the shape {input_shape}, a target {target_shape}{units}.{symmetric}

## Intended use

It predicts {targets} for inputs like the training samples: {quantities}.
`flag` marks inputs that are unlike them; do not trust those.

## Score

| {metric} of | members that never saw a sample |
|---|---|
{scores}

Each row is a way to weigh the members; `{method}` is in use.
Each sample of the training data is scored by {n_blind} of {n_members} members alone.

## Coverage

{coverage}

## Limits

- Score and intervals hold for inputs like the training samples. They say nothing of others.
- `std` is the members' disagreement alone, and no interval.
- What was picked was picked by the same samples, so the score is slightly optimistic.

## How to load it

It needs ray-ft {release}, installed from a copy of its repository.

```python
import ray_ft

prediction = ray_ft.Ensemble.load("{folder}"{trust}).predict(inputs)
```

The folder holds tensors (safetensors), JSON and the run's config. {code}
ray-ft has written this card, and writes it anew with the ensemble: keep what you add elsewhere.
"""


def render_model_card(ensemble: Ensemble, folder: str) -> str:
    """Write the model card of an ensemble as Markdown, with a header in YAML as the Hugging Face Hub has it.

    Args:
        ensemble: With its scores filled in.
        folder: Name of the folder that it is in.
    """
    card = ensemble.card
    scores = {card.method: card.score} | card.scores
    lack, level = ensemble.describe_lack(card.level), f"{card.level:.6g}"
    leveled, kind = ensemble.objective.answers.leveled, "classes" if card.classes else "numbers"
    coverage = (
        f"Intervals ({', '.join(leveled)}) have the level {level}, by CV+. On fresh samples like those of the training "
        f"about that share lies within; it was not measured on any. Measure it: `ray-ft evaluate {folder} --data FILE`."
    )
    if lack or not leveled:
        coverage = f"{lack}; {WITHOUT_INTERVALS}." if leveled else "There are no intervals of labels."
    parts = {"fold": card.n_folds, "seed": card.n_seeds, "deal": card.n_repeats}
    return TEXT.format(
        header=yaml.safe_dump(describe_header(ensemble), sort_keys=False, allow_unicode=True),
        warning=f"\n**Do not use it**: {card.warning}.\n" if card.warning else "",
        **{name: getattr(card, name) for name in ("run", "method", "metric")},
        shape=" × ".join(count(n, what) for what, n in parts.items()),
        n_members=len(card.members), n_blind=card.n_blind, strategies=" and ".join(card.strategies),
        input_shape=card.input_shape, target_shape=card.target_shape, units=f" in {card.units}" if card.units else "",
        symmetric=f" Each is averaged over {ensemble.n_views} views of the input." if card.symmetric else "",
        targets=kind, quantities=", ".join(f"`{name}`" for name in ensemble.list_available(card.level)),
        scores="\n".join(f"| {name} | {value:.6g} |" for name, value in scores.items()), coverage=coverage,
        release=card.versions["ray-ft"], folder=folder, trust=", trust=True" if card.needs_code else "",
        code=f"It needs the network's code, as {card.split}." if card.needs_code else "Loading it runs no code of it.",
    )  # fmt: skip


def describe_header(ensemble: Ensemble) -> Mapping[str, Any]:
    """What the Hub reads: tags, license, and the score as a result of the model."""
    card = ensemble.card
    task = "classification" if card.classes else "regression"
    known = card.license.lower()
    license = {"license": known} if known in KNOWN else {"license": "other", "license_name": card.license}
    metric = {"type": card.metric, "name": f"{card.metric} of blind members", "value": card.score}
    result = {
        "task": {"type": task, "name": task},
        "dataset": {"type": card.data_hash, "name": f"samples of the run {card.run}"},
        "metrics": [metric],
    }
    return {
        "library_name": "ray-ft",
        **(license if known else {}),
        "tags": ["ray-ft", "ensemble", "fine-tuning", "cross-validation", "conformal-prediction", task],
        "metrics": [card.metric],
        "model-index": [{"name": card.run, "results": [result]}],
    }
