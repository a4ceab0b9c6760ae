"""Candidates as rows of a table: a column for each hyperparameter that one of them has."""

from collections.abc import Sequence

from ray_ft.config import Declaration, list_declared
from ray_ft.search.plan import CandidateSpec
from ray_ft.search.strategies import name_stages


def list_columns(plan: Sequence[CandidateSpec]) -> dict[str, Declaration]:
    """List the hyperparameters of all candidates by name, each once."""
    kinds = dict.fromkeys(type(stage) for spec in plan for stage in spec.stages)
    return {name: declared for kind in kinds for name, declared in list_declared(kind)}


def describe_candidate(spec: CandidateSpec, columns: dict[str, Declaration]) -> list[list[str]]:
    """Write the values of a candidate behind its name, a row a stage; nothing where a stage has no such one."""
    return [
        [name, *(declared.show(getattr(stage, key, None)) for key, declared in columns.items())]
        for name, stage in zip(name_stages(spec.name, len(spec.stages)), spec.stages, strict=True)
    ]
