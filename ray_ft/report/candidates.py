"""Candidates as rows of a table: a column for each hyperparameter that one of them has."""

from collections.abc import Sequence

from ray_ft.config import Declaration, Hyperparameters, list_declared
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.strategies import name_stages


def list_columns(plan: Sequence[CandidateSpec]) -> dict[str, Declaration]:
    """List the hyperparameters of all candidates by name, each once, but those that all leave at their default."""
    kinds = dict.fromkeys(type(stage) for spec in plan for stage in spec.stages)
    declared = {name: own for kind in kinds for name, own in list_declared(kind)}
    stages = [stage for spec in plan for stage in spec.stages]
    return {name: own for name, own in declared.items() if not all(is_default(stage, name, own) for stage in stages)}


def is_default(stage: Hyperparameters, name: str, declared: Declaration) -> bool:
    """Whether a stage has no such hyperparameter, or its value is what the config's default fixes."""
    default = declared.default
    value = getattr(stage, name, None)
    return value is None or value == default or (isinstance(default, tuple) and set(default) == {value})


def describe_candidate(spec: CandidateSpec, columns: dict[str, Declaration]) -> list[list[str]]:
    """Write the values of a candidate behind its name, a row a stage; nothing where a stage has no such one."""
    return [
        [name, *(declared.show(getattr(stage, key, None)) for key, declared in columns.items())]
        for name, stage in zip(name_stages(spec.name, len(spec.stages)), spec.stages, strict=True)
    ]
