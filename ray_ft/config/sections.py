"""The sections of a config: frozen, and refusing unknown keys."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from ray_ft.config.base import CodeName, Section
from ray_ft.config.data_section import DEFAULT_LAYOUT, DataSection
from ray_ft.config.hyperparameters import (
    DRAWN_VIEWS,
    Count,
    NonNegative,
    Positive,
    Range,
    Share,
    Whole,
)
from ray_ft.config.strategies import StrategyConfig
from ray_ft.config.training import TrainingSection
from ray_ft.domains import DomainName, find_domain
from ray_ft.errors import first_few, show_value, suggest
from ray_ft.objectives import METRICS, list_baselines

AUTO = "auto"  # in place of strategies: those that the network itself says
AS_WRITTEN = "as_written"  # the strategy that `training.freeze_encoder` and `freeze_decoder` describe
REPLAYED = Range(0.25, 0.25, fixed=True)  # share of replayed samples where there are some, unless a strategy says so
N_CANDIDATES = {"best": 6, "guide": 2}  # of a strategy, unless the config says so
SMALLEST_SHARE = 0.0001  # of a GPU, that Ray gives out
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,39}$"  # a strategy's name is part of the names of folders


class ModelSection(Section):
    factory: CodeName | None = None
    """What builds the network, as `package.module:callable`. Without it, DiffractionNet does."""
    params: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments of the factory, by name.")
    checkpoint: str | None = None
    """File of the pretrained weights (.safetensors, .pt, .pth, .bin, .ckpt), or a folder with one; of several sets in a
    file, `file::key` names one. A factory may do without."""
    skip: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Name patterns of tensors that are not taken from the checkpoint; they start as the factory draws them."""
    output: str | Whole | None = None
    """Which of several outputs of the network is its answer, by key (logits) or place (0). Without it, the one."""
    new_head: bool | None = None
    """Whether the linear layer that answers is replaced by one of the targets' size, which starts at zero. Without it,
    where the network knows another number of classes."""


class CVSection(Section):
    folds: int = Field(default=5, ge=2, description="Number of parts that are held out in turn.")
    seeds: int = Field(default=3, ge=1, le=999, description="Number of trainings of each fold, by different seeds.")
    protocol: Literal["crossfit", "nested"] = "crossfit"
    """Where a fold's epoch and candidate are chosen: on the other folds, or inside its training part."""
    train_size: Count | None = None
    """Number of samples of each training part that are used. Without it, all are."""
    repeats: int = Field(default=1, ge=1, le=999, description="Number of times that the folds are dealt.")
    candidates: int | None = Field(default=None, ge=1, le=999, description="The same as search.candidates.")
    strategies: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Strategies to compare. Without it, all, or the one that freeze flags describe."""
    metric: str = "mse"
    """Score: mse, mae or huber of numbers, or standardised_mse (_mae, _huber) in units of each output's own spread;
    log_loss or error_rate of classes; multilabel_log_loss of several labels."""
    rope: Share = 0.01
    """Difference that is none in practice, as a share of the better mean: 0.01 is 1 %."""
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of the folds, the draws and the members.")

    @field_validator("metric", mode="before")
    @classmethod
    def check_metric(cls, name: object) -> object:
        if not isinstance(name, str) or name not in METRICS:
            raise ValueError(f"a metric is one of {', '.join(METRICS)}, got {name!r}{suggest(str(name), METRICS)}")
        return name


class SearchSection(Section):
    """How the hyperparameters of each strategy are searched; ASHA stops candidates of one strategy and length."""

    method: Literal["best", "guide"] = "best"
    """best: look for the best of each strategy, also beyond its ranges. guide: draw from the ranges as written."""
    candidates: int | None = Field(default=None, ge=1, le=999)
    """Number of candidates of each strategy. Without it, as many as `minutes` allow, else 6, or 2 by the guide."""
    minutes: Positive | None = None
    """Minutes of the search, an equal share for each strategy; no round begins after them. Without it, none counts."""
    seeds: Literal["one", "all"] = "one"
    """Seeds of a candidate while it is searched. With one, the others follow where it is chosen."""
    grace_epochs: Count | None = None
    """Epochs before a candidate may be stopped. Without it, 1; a quarter of the longest where the method is guide."""
    reduction_factor: float = Field(default=2.0, ge=1.1)
    """One of so many candidates goes on at each rung; rungs lie as far apart."""


class ComputeSection(Section):
    """Where it runs; changes no result's meaning, so a run may go on under another."""

    address: str | None = None
    """Ray cluster to join: auto, or host:port. Without it, Ray is started on this machine."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where networks run. `auto` is `cuda` where Ray has a GPU, else `cpu`."""
    cpus_per_candidate: Count | None = None
    """CPU cores of a candidate. Without it, the cluster's are shared among the candidates that wait."""
    gpus_per_candidate: NonNegative | None = None
    """GPUs of a candidate: a share of one, or several. Without it, as for CPU cores."""
    workers_per_candidate: Count | None = None
    """Processes that share a candidate's members. Without it, one for each GPU, or as few as fit."""
    packing: Literal["auto", "packed", "looped"] = "auto"
    """Whether members train in one step or one after the other. `auto` tries both and takes the faster."""
    deterministic: bool = False
    """Whether the same run gives the same bits again on the same kind of GPU. It is slower, and no TF32 is used."""
    max_failures: Whole = 2
    """Number of times that a candidate is tried again after its process died or ran out of memory."""
    max_silence_s: Positive = 3600.0
    """Seconds that a process may train without ending an epoch; then it is tried again."""

    @field_validator("gpus_per_candidate")
    @classmethod
    def check_gpus(cls, gpus: float | None) -> float | None:
        """Refuse what Ray does not give: more than one GPU, but no whole number of them."""
        if gpus and (gpus < SMALLEST_SHARE or (gpus > 1 and not gpus.is_integer())):
            law = f"it should be a share of one GPU, from {SMALLEST_SHARE} to 1, or a whole number of GPUs"
            raise ValueError(f"{law}, got {gpus:g}")
        return gpus

    @model_validator(mode="after")
    def check_together(self) -> "ComputeSection":
        gpus, n_workers = self.gpus_per_candidate, self.workers_per_candidate
        if gpus == 0 and self.device == "cuda":
            raise ValueError("gpus_per_candidate should be more than 0 where device is cuda, got 0; leave it out")
        if gpus and n_workers and gpus > max(1, n_workers):
            law = f"workers_per_candidate should be {gpus:g} or more where gpus_per_candidate is {gpus:g}"
            raise ValueError(f"{law}, as a process trains on one GPU, got {n_workers}; leave it out")
        return self


class EnsembleSection(Section):
    """What is built of the members; changes none of them, so a run may be reduced again under another."""

    strategies: tuple[str, ...] | None = Field(default=None, min_length=1)
    """Strategies whose members are taken. Without it, the winner's, or a mix of all that is better beyond noise."""
    method: Literal["auto", "uniform", "greedy", "stacked"] = "auto"
    """How the members are weighed. `auto` is `uniform` unless another is better beyond noise."""
    symmetric: bool | None = None
    """Whether predictions are averaged over the operations of data.symmetry. Without it, if that is likely to be
    better."""
    pull_back: bool | None = None
    """Whether weights go part of the way back to the pretrained ones. Without it, if that is better beyond noise."""
    level: float = Field(default=0.9, gt=0.5, lt=1, description="Confidence level of the intervals, between 0.5 and 1.")
    units: str = Field(default="", description="Units of the predictions, which the card states.")
    license: str = Field(default="", description="License of the weights, which the card states.")


class LoggersSection(Section):
    """Where each candidate's loss by epoch is logged besides; changes nothing else. None is on but by these keys."""

    tensorboard: bool = False
    """Whether event files go into the run folder. It needs the extra [tensorboard]."""
    mlflow: str | None = Field(default=None, min_length=1)
    """Tracking URI of MLflow. It needs the extra [mlflow]."""
    wandb: str | None = Field(default=None, min_length=1)
    """Project of Weights & Biases. It needs the extra [wandb]."""


class Config(Section):
    """One run."""

    name: str = Field(
        default="run",
        pattern=NAME_PATTERN,
        description="Name of the run, and of its folder in runs. Without it, that of the file.",
    )
    model: ModelSection = ModelSection()
    data: DataSection
    cv: CVSection = CVSection()
    training: TrainingSection = TrainingSection()
    search: SearchSection = SearchSection()
    compute: ComputeSection = ComputeSection()
    ensemble: EnsembleSection = EnsembleSection()
    loggers: LoggersSection = LoggersSection()
    strategies: dict[Annotated[str, Field(pattern=NAME_PATTERN)], StrategyConfig] = Field(default_factory=dict)

    @field_validator("strategies", mode="before")
    @classmethod
    def refuse_words(cls, value: Any) -> Any:
        if isinstance(value, str):
            raise ValueError(f"it should be a section of strategies by name, or {AUTO}, got {show_value(value)}")
        return value

    @model_validator(mode="after")
    def check_together(self) -> "Config":
        """State the rules that need two sections; each message opens with the key that breaks it."""
        if problems := list(self.find_conflicts()):
            raise ValueError("\n".join(problems))
        return self

    def find_conflicts(self) -> Iterator[str]:
        given, resumed = self.model.checkpoint, self.training.resume
        if given and resumed and given != resumed:
            yield f"training.resume: it is another name of model.checkpoint, got {resumed} and {given}; keep one"
        if not (given or resumed or self.model.factory):
            yield "model.checkpoint: missing; name the file of the pretrained weights"
        if self.model.new_head and not self.model.factory:
            yield "model.new_head: it needs model.factory, got none; leave it out"
        if self.data.symmetry and not find_domain(self.layout).operations:
            yield f"data.symmetry: it needs layout: {DEFAULT_LAYOUT}, got layout: {self.layout}; leave it out"
        yield from self.find_data_conflicts()
        for name in list_baselines():
            if name in self.strategies:
                yield f"strategies.{name}: it is the name of a baseline; choose another"
        for name in (self.cv.strategies or ()) if self.strategies else ():  # none is known before the network is
            if name not in self.strategies:
                near = suggest(name, self.strategies) or f"; there are {first_few(list(self.strategies), 8)}"
                yield f"cv.strategies: unknown strategy {name}{near}"
        if self.cv.strategies and len(set(self.cv.strategies)) < len(self.cv.strategies):
            yield f"cv.strategies: each may be named once, got {', '.join(self.cv.strategies)}"
        yield from self.find_view_conflicts()
        yield from self.find_search_conflicts()
        yield from self.find_ensemble_conflicts()

    def find_data_conflicts(self) -> Iterator[str]:
        data = self.data
        if data.params and not data.factory:
            yield "data.params: they are arguments of data.factory, got none; name one, or leave them out"
        for key in ("table", "inputs", "targets", "groups", "stratify"):
            if data.factory and (given := getattr(data, key)):
                yield f"data.{key}: data.factory takes its place, got {given} and {data.factory}; keep one"
        if data.replay and data.collate:
            yield f"data.replay: samples of unequal shapes are not replayed, got data.collate: {data.collate}; keep one"
        shares = {f"strategies.{name}.replay": own.most("replay") for name, own in self.strategies.items()}
        for key, share in {**shares, "training.replay": dict(self.training)["replay"]}.items():
            if share and not data.replay:
                yield f"{key}: it needs data.replay, got none; name samples there, or leave it out"

    def find_view_conflicts(self) -> Iterator[str]:
        domain = find_domain(self.layout)
        if not set(self.symmetry) <= set(domain.operations):
            return  # which is said of data.symmetry
        most = len(domain.list_views(self.symmetry))
        asked = {f"strategies.{name}.views": own.most("views") for name, own in self.strategies.items()}
        for key, n in {**asked, "training.views": dict(self.training)["views"] or 0}.items():
            if n > max(most, DRAWN_VIEWS):  # the default goes with any symmetry
                yield f"{key}: it should be at most the views that data.symmetry gives, {most}, got {n:g}; lower it"

    def find_search_conflicts(self) -> Iterator[str]:
        given, same = self.cv.candidates, self.search.candidates
        if given and same and given != same:
            yield f"cv.candidates: it is another name of search.candidates, got {given} and {same}; keep one"
        if self.search.method == "guide":
            for name in self.cv.strategies or self.strategies:
                stages = self.strategies[name].stages if name in self.strategies else ()
                for i, stage in enumerate(stages, start=1):
                    place = f"{name}.stage {i}" if len(stages) > 1 else name
                    for key in ("lr", "epochs"):
                        if hasattr(stage, key) and stage.range_of(key) is None:
                            rule = "search.method: guide draws from it, best looks for it"
                            yield f"strategies.{place}.{key}: missing; {rule}"

    def find_ensemble_conflicts(self) -> Iterator[str]:
        known = self.cv.strategies or tuple(self.strategies)
        for name in self.ensemble.strategies or ():
            if known and name not in known:
                near = suggest(name, known) or f"; it has {first_few(list(known), 8)}"
                yield f"ensemble.strategies: the run has no strategy {name}{near}"
        if self.ensemble.symmetric and not self.symmetry:
            yield "ensemble.symmetric: it needs data.symmetry, got none; name operations, or leave it out"

    @property
    def checkpoint(self) -> str | None:
        return self.model.checkpoint or self.training.resume

    @property
    def code(self) -> dict[str, str]:
        """What a run of it imports and calls, as `package.module:name`, by the key that names it."""
        named = {
            "model.factory": self.model.factory,
            "data.factory": self.data.factory,
            "data.collate": self.data.collate,
            "training.loss": self.training.loss,
        }
        return {key: path for key, path in named.items() if path and ":" in path}

    @property
    def layout(self) -> DomainName:
        return self.data.layout or ("raw" if self.model.factory else DEFAULT_LAYOUT)

    @property
    def symmetry(self) -> tuple[str, ...]:
        return find_domain(self.layout).symmetry if self.data.symmetry is None else self.data.symmetry

    @property
    def n_candidates(self) -> int:
        """Candidates that each strategy gets."""
        default = 999 if self.search.minutes else N_CANDIDATES[self.search.method]  # then time alone ends the search
        return self.cv.candidates or self.search.candidates or default

    @property
    def selected(self) -> dict[str, StrategyConfig]:
        """The strategies of this run in order, with the values that `training` fixes for all of them."""
        names = self.cv.strategies or ((AS_WRITTEN,) if AS_WRITTEN in self.strategies else tuple(self.strategies))
        default = {"replay": REPLAYED} if self.data.replay else {}
        return {name: fix_values(self.strategies[name], self.training, default) for name in names}

    def identity(self) -> dict[str, Any]:
        """What decides the members: all but where they are computed and logged, how many, and what is built of them."""
        budget: Any = {"cv": {"candidates"}, "search": {"candidates", "minutes"}}
        return self.model_dump(mode="json", exclude=budget | dict.fromkeys(("compute", "ensemble", "loggers"), True))


def fix_values(strategy: StrategyConfig, training: TrainingSection, default: Mapping[str, Range]) -> StrategyConfig:
    """Fill in the values that hold for all strategies, and by default what a stage leaves open."""
    fixed = {key: value for key, value in training if value is not None}
    dumped = [stage.model_dump() for stage in strategy.stages]
    dumped = [{key: default.get(key) if own is None else own for key, own in stage.items()} for stage in dumped]
    stages = [stage | {key: fixed[key] for key in stage.keys() & fixed.keys()} for stage in dumped]
    return StrategyConfig.model_validate({"description": strategy.description, "stages": stages})
