"""The main path: prepare, search, reduce, report, each a file in the run folder; a run that was cut off goes on.

A config and what it names become a problem (samples, folds, objective), a pretrained network and strategies. A proposer
asks for candidates, a backend trains them. What they leave is reduced to scores, comparisons and an ensemble.
"""

import contextlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jaxtyping import Float
from rich.console import Console

from ray_ft.backends.progress import Display
from ray_ft.backends.rounds import Rounds, Shared
from ray_ft.backends.running import check_loggers, run_near_storage, start_halving, train_all
from ray_ft.config import Config, reload_config
from ray_ft.data.folds import describe_deals
from ray_ft.data.samples import Arrays
from ray_ft.ensemble.artefact import Origin
from ray_ft.ensemble.reduction import Reduction, reduce_members
from ray_ft.errors import RunFolderError
from ray_ft.files.cpus import count_cpus
from ray_ft.files.hashes import hash_arrays
from ray_ft.files.writing import write_text
from ray_ft.fitting.fitter import FitSettings
from ray_ft.fitting.preparation import check_stages
from ray_ft.fitting.rehearsal import rehearse
from ray_ft.models import (
    Collate,
    Factory,
    Pretrained,
    answer_in_shape,
    call_as_one,
    copy_state,
    find_answer_shape,
    finish_lazy,
    load_pretrained,
    predict_all,
    renew_head,
)
from ray_ft.models.own_loss import find_first_losses, settle_objective
from ray_ft.objectives import OwnLoss, find_objective
from ray_ft.report.page import write_report
from ray_ft.results.baselines import measure_baselines, score_baselines
from ray_ft.results.opening import Identity, check_config, open_run, was_chosen
from ray_ft.results.records import (
    Verdict,
    describe_defeat,
    gather_losses,
    load_blind,
    load_judged,
    measure_strategies,
    score_strategies,
)
from ray_ft.results.summarizing import (
    compare_with_baseline,
    find_notes,
    note_deals,
    note_dominance,
    note_shortages,
    summarize_baseline,
    summarize_strategies,
    warn_of_baseline,
    write_summary,
)
from ray_ft.results.summary import EnsembleSummary, SearchSummary, Summary
from ray_ft.runs.folder import RunFolder, keep_files, open_folder
from ray_ft.runs.journal import Journal, count_lost
from ray_ft.runs.provenance import describe_environment
from ray_ft.search.best import BestProposer
from ray_ft.search.plan import RECIPE, CandidateSpec
from ray_ft.search.problem import (
    Problem,
    check_outputs,
    check_strategies,
    deal_splits,
    know_classes,
    read_samples,
)
from ray_ft.search.proposer import Proposer, RandomProposer, is_random
from ray_ft.search.replay import ReplayArrays, read_replayed
from ray_ft.search.strategies import Strategy, match_strategies, propose
from ray_ft.statistics.comparison import mark_unsettled
from ray_ft.statistics.intervals import check_level, count_most, note_lacks
from ray_ft.statistics.scores import pick_lowest
from ray_ft.statistics.selection import correct_selection


@dataclass(frozen=True)
class Given:
    """A network and samples that are objects of this process, in place of what a config names."""

    factory: Factory
    arrays: Arrays | None = None
    loss: OwnLoss | None = None
    collate: Collate = None
    replayed: ReplayArrays | None = None


@dataclass(frozen=True)
class Prepared:
    """A checked config with all that it names, ready to train."""

    config: Config
    problem: Problem
    pretrained: Pretrained
    strategies: Mapping[str, Strategy]
    zero_shot: Float[np.ndarray, "sample *target"]
    first_losses: tuple[float, ...]  # of a few samples before training, by which other code shows
    notes: tuple[str, ...]  # on what was done to data and checkpoint, and what they do not suffice for

    @property
    def config_text(self) -> str:
        return yaml.safe_dump(self.config.model_dump(mode="json"), sort_keys=False)

    @property
    def identity(self) -> Identity:
        """What the run's folder must hold."""
        problem, text = self.problem, self.config_text
        hashes, classes = (problem.data_hash, self.pretrained.hash), problem.samples.classes
        return Identity(self.config.identity(), text, problem.splits, *hashes, self.first_losses, classes)

    @property
    def origin(self) -> Origin:
        """What goes with the ensemble."""
        config, data = self.config, self.config.data
        keys = self.problem.samples.keys
        where = keys, data.wavelengths_nm, config.model, self.config_text, data.collate
        return Origin(config.name, config.layout, *where)

    @property
    def budget(self) -> SearchSummary:
        search = self.config.search
        return SearchSummary(method=search.method, candidates=self.config.n_candidates, minutes=search.minutes)

    def describe_budget(self) -> str:
        """Say how many candidates and members there will be."""
        n, n_members = len(self.first_round), len(self.problem.keys)
        if self.config.search.method == "guide":
            return f"{n} candidates × {n_members} members = {n * n_members} members in all"
        known = "these are known before anything is trained; others" if n else "the candidates"
        return (
            f"{known} follow a range test. In all, {self.describe_effort()} of each strategy, or one in closed form, "
            f"are searched by one seed (search.seeds), and {n_members} members trained where the folds have chosen"
        )

    def describe_effort(self) -> str:
        if minutes := self.config.search.minutes:
            share = minutes / len(self.strategies)
            return f"as many candidates as fit into {share:.2g} minutes, {self.config.n_candidates} at most,"
        return f"{self.config.n_candidates} candidates"

    @property
    def proposers(self) -> dict[str, Proposer]:
        """What searches each strategy."""
        n, cv, selected = self.config.n_candidates, self.config.cv, self.config.selected
        if self.config.search.method == "guide":
            return {name: RandomProposer(name, strategy, n, cv.seed) for name, strategy in selected.items()}
        return {name: BestProposer(name, strategy, n, cv.seed, cv.rope) for name, strategy in selected.items()}

    @property
    def first_round(self) -> tuple[CandidateSpec, ...]:
        """The candidates that are known before anything is trained: recipes, and others where no range test is made."""
        return tuple(
            spec
            for proposer in self.proposers.values()
            for spec in proposer.ask()
            if not proposer.range_tests or spec.origin == RECIPE
        )

    @property
    def n_searched(self) -> dict[str, int]:
        """Seeds of a candidate while it is searched: all of those that differ in nothing cost no more than one."""
        search, selected = self.config.search, self.config.selected
        every = search.seeds == "all" or search.method == "guide"
        n_seeds = self.problem.n_seeds
        return {name: n_seeds if every or not is_random(own) else 1 for name, own in selected.items()}


def cross_validate(
    config: Config,
    out: str | Path | RunFolder,
    inline: bool = False,
    console: Console | None = None,
    report: bool = False,
    given: Given | None = None,
) -> Summary:
    """Cross-validate every strategy and build the ensemble of the lowest; on a run folder in progress, go on.

    Args:
        config: What to run.
        out: The run folder, or the URI of one (`s3://bucket/run`).
        inline: Train in this process, without Ray.
        console: Where to show progress.
        report: Whether to write the report too.
        given: What takes the place of the network and the data that the config names.

    Returns:
        What the run found, as `summary.json` has it.

    Raises:
        UserError: Something in the config, its data or its checkpoint breaks a rule, or the folder holds another run.
        RunError: No strategy has a completed candidate, a candidate's process kept dying, or a file could not be
            written.
    """
    say = partial((console := console or Console(quiet=True)).print, highlight=False)
    with open_folder(out, shared=config.compute.address is not None) as run:
        say("reading the data and trying the network …")
        started, prepared = time.monotonic(), prepare(config, given)
        with open_run(run, prepared.identity), keep_files(run.place):
            summary = load_finished(prepared, run)
            if summary is None:
                check_loggers(config.loggers, inline)
                journal = Journal(run.log)
                journal.write("start", **describe_environment())
                write_text(run.config, prepared.config_text)  # its budget may have grown
                run.report.unlink(missing_ok=True)
                run.push()
                if was_chosen(run, config):
                    said = "the ensemble was built by other settings (ray-ft ensemble), and is built by the config's"
                    say(f"note: {said} when the search ends")
                plan, verdicts = search(prepared, run, inline, journal, console)
                say("building the ensemble …")
                summary = reduce(prepared, run, plan, verdicts, started, inline)
                journal.write("end", winner=summary.winner)
        if report and not run.report.exists():
            say("writing the report …")
            write_report(run.root)
        return summary


def load_finished(prepared: Prepared, run: RunFolder) -> Summary | None:
    """Read the summary of a run that has spent the budget that is asked for; None where it goes on."""
    try:
        summary = Summary.load(run.root)
    except RunFolderError:  # there is none, or it is damaged and made again
        return None
    return summary if summary.search.covers(prepared.budget) else None


def prepare(config: Config, given: Given | None = None) -> Prepared:
    """Check a config against its data, checkpoint and network, or against what is given; write nothing.

    Raises:
        UserError: It breaks a rule.
    """
    cv, model = config.cv, config.model
    torch.set_num_threads(min(torch.get_num_threads(), count_cpus()))  # which knows of no quota
    objective = find_objective(cv.metric)
    given = given or Given(model.factory, collate=config.data.collate)
    samples = read_samples(config, objective, given.arrays)
    splits = deal_splits(config, samples)
    torch.manual_seed(cv.seed)  # for a factory that draws its weights itself
    factory = given.factory
    network, notes = load_pretrained(factory, model.params, config.checkpoint, model.skip or ())
    call_as_one(network, samples.layout, model.output, given.collate)
    finish_lazy(network, samples.inputs)
    head = renew_head(model.new_head, network, samples, objective) if factory else None
    weights = copy_state(network)
    config = propose(config, network, samples.inputs, splits=given.collate is None)
    strategies = match_strategies(config.selected, network, samples.inputs)
    outputs = predict_all(network, samples.inputs)
    samples = know_classes(samples, objective, outputs)
    found, wanted = tuple(outputs.shape[1:]), samples.targets.shape[1:]
    shape = find_answer_shape(network, samples.inputs, found, objective.find_output_shape(found, wanted))
    outputs = outputs if shape is None else outputs.reshape(-1, *shape)
    zero_shot = objective.respond(outputs).numpy()
    check_outputs(zero_shot, samples, objective)
    objective = settle_objective(objective, samples.targets, outputs, given.loss, **config.training.objective)
    check_strategies(samples, objective, strategies, dict(config.training)["label_smoothing"])
    network = answer_in_shape(network, shape)
    more = given.replayed, head is not None
    replayed = read_replayed(config, samples, objective, network, strategies, *more)
    how = head, samples.layout, model.output, given.collate
    pretrained = Pretrained(factory, model.params, weights, shape, *how)
    if factory:
        pretrained = rehearse(network, pretrained, strategies.values(), samples.inputs)
    check_stages(pretrained, strategies.values(), samples.inputs)
    problem = Problem(samples, splits, objective, zero_shot.shape[1:], config.symmetry, cv.seeds, cv.seed, replayed)
    notes += pretrained.describe_answers(found, samples.targets.shape)
    if objective.answers.leveled:
        notes += note_lacks(1 - config.ensemble.level, samples.targets)
    first = find_first_losses(objective, outputs, samples.targets)
    return Prepared(config, problem, pretrained, strategies, zero_shot, first, (*problem.notes, *notes))


def search(
    prepared: Prepared, run: RunFolder, inline: bool, journal: Journal, console: Console
) -> tuple[tuple[CandidateSpec, ...], dict[str, Verdict]]:
    """Train the candidates that the proposer asks for; return all of them and how each ended."""
    config, problem, strategies = prepared.config, prepared.problem, prepared.strategies
    training, compute, minutes = config.training, config.compute, config.search.minutes
    settings = FitSettings(
        training.grad_clip, training.n_noisy_views, training.precision,
        compute.packing, training.checkpoint_every, compute.deterministic,
    )  # fmt: skip
    cost = {name: strategy.n_trained for name, strategy in strategies.items()}  # of an epoch, roughly
    with Display(console, problem.objective.metric, cost) as display:
        halving = start_halving(strategies, config.search, compute.address)
        shared = Shared(problem, prepared.pretrained, run, strategies, settings, compute, halving, display, journal)
        limit_s = minutes and 60 * minutes / len(strategies)
        rounds = Rounds(shared, prepared.proposers, prepared.n_searched, limit_s)
        train_all(rounds, config.loggers, config.name, inline)
        return rounds.conclude()


def reduce(
    prepared: Prepared,
    run: RunFolder,
    plan: tuple[CandidateSpec, ...],
    verdicts: Mapping[str, Verdict],
    started: float,
    inline: bool = True,
    before: Summary | None = None,
) -> Summary:
    """Score the strategies, build the ensemble of the lowest, and write the summary; what it took is that of before."""
    config, problem, strategies = prepared.config, prepared.problem, prepared.strategies
    cv, samples, splits, objective = config.cv, problem.samples, problem.splits, problem.objective
    scores = score_strategies(run, plan, verdicts, splits, problem.n_seeds)
    lowest = pick_lowest(scores)
    if lowest is None:
        raise describe_defeat(run, verdicts)
    complete = {name: score for name, score in scores.items() if score is not None}
    by_fold = score_baselines(objective, prepared.zero_shot, samples.targets, splits)
    besides = measure_baselines(objective, prepared.zero_shot, samples.targets, splits)
    baselines = {name: summarize_baseline(values, splits, besides[name]) for name, values in by_fold.items()}
    warning, deals = warn_of_baseline(complete[lowest], baselines), describe_deals(splits, samples.groups)
    losses = {name: gather_losses(run, name, score, splits) for name, score in complete.items()}
    _, n_again, n_interruptions = count_lost(run.log)
    here = inline or run.mirror is not None  # no other node has what was brought here from behind a URI
    members = Reduction(
        problem, prepared.pretrained, run, strategies, plan, config.ensemble, prepared.origin, cv.rope, scores, lowest,
        prepared.zero_shot, warning,
    )  # fmt: skip
    besides = measure_strategies(run, scores, splits, objective, samples.targets)
    summaries = summarize_strategies(run, plan, verdicts, scores, strategies, splits, cv.rope, besides)
    unsettled = [name for name, own in summaries.items() if not own.settled]
    comparisons = mark_unsettled(compare_with_baseline(scores, by_fold, cv.rope, splits, deals), unsettled)
    ensemble = run_near_storage(config.compute, here, reduce_members, members)
    blind = load_blind(run, objective)
    summary = Summary(
        name=config.name, metric=cv.metric, classes=samples.classes, protocol=cv.protocol,
        n_samples=len(samples), n_folds=cv.folds, n_seeds=cv.seeds, n_repeats=cv.repeats,
        n_params=strategies[lowest].n_params, test_share=splits.test_share, rope=cv.rope, splits_hash=splits.hash,
        data_hash=hash_arrays(samples.inputs, samples.targets), search=before.search if before else prepared.budget,
        strategies=summaries, baselines=baselines, winner=None if warning else lowest, lowest=lowest, deals=deals,
        comparisons=comparisons,
        selection=correct_selection(losses, samples.groups, cv.seed), ensemble=ensemble,
        notes=[
            *([warning] if warning else []), *prepared.notes, *note_deals(deals),
            *note_dominance(objective, blind, losses[lowest]), *find_notes(run, plan, scores, strategies),
            *note_shortages(run.log),
        ],
        wall_s=before.wall_s if before else time.monotonic() - started, n_epochs_again=n_again,
        n_interruptions=n_interruptions,
    )  # fmt: skip
    write_summary(run, summary)
    return summary


def rebuild_ensemble(root: Path, trust: bool = False, **choice: Any) -> EnsembleSummary:
    """Build the ensemble of a finished run again, from its members and the data and weights that it names.

    Args:
        root: The run folder.
        trust: Whether to import and call the factory that the run's config names. That is code: allow it for runs of
            your own.
        choice: Values of the config's section `ensemble` that replace the run's.

    Raises:
        ConfigError: A value is not valid.
        RunFolderError: The folder is no finished run, needs code that is not trusted, or its data or weights have
            changed.
    """
    run = RunFolder(root)
    plan, verdicts = load_judged(run)
    config = reload_config(run.config, {f"ensemble.{key}": value for key, value in choice.items()})
    check_config(run, config.identity())  # before any code that it names is run
    if config.code and not trust:
        raise RunFolderError(
            "the ensemble of a run whose network or data come from a factory, or its loss from a function, is built by "
            f"that code, which would run with your rights, got {' and '.join(config.code.values())} in {run.config}; "
            "if it is yours, say so by trust=True, or --trust"
        )
    prepared = prepare(config)
    if "level" in choice:
        check_level(1 - choice["level"], count_most(prepared.problem.samples.targets))
    before = None
    with contextlib.suppress(RunFolderError):  # it has none yet, or that of another release
        before = Summary.load(root)
    with open_run(run, prepared.identity), keep_files(run.place):
        return reduce(prepared, run, plan, verdicts, time.monotonic(), before=before).ensemble
