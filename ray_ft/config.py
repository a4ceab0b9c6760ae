"""A run's config: frozen sections that refuse unknown keys, from YAML, overrides and the shipped strategies."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ray_ft.errors import ConfigError, suggest
from ray_ft.symmetry import OPERATIONS

__all__ = ["AS_WRITTEN", "BASELINES", "Config", "StageConfig", "StrategyConfig", "load_config"]

DEMO_FOLDER = Path(__file__).parent / "demo"
STRATEGIES_FILE = Path(__file__).parent / "strategies.yaml"
AS_WRITTEN = "as_written"  # the strategy that `training.freeze_encoder` and `freeze_decoder` describe
ENCODER_PARTS = ("stem", "stage1", "stage2", "stage3", "stage4", "fourier_mix", "spatial_pool")
ENCODER_PATTERNS = tuple(f"*{part}*" for part in ENCODER_PARTS)
DECODER_PATTERNS = ("film_*", "dec.*", "wav_embed.*")
BASELINES = ("zero_shot", "training_mean", "gain_offset")
NAME_PATTERN = r"^[A-Za-z][A-Za-z0-9_]{0,39}$"  # a strategy's name is part of the names of folders


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def widen(value: object) -> object:
    """Take a single value for a range that holds it alone."""
    return value if isinstance(value, list | tuple) else (value, value)


def check_order(bounds: tuple[int | float, int | float]) -> tuple[int | float, int | float]:
    low, high = bounds
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"finite low <= high must hold, got [{low}, {high}]")
    return bounds


AS_RANGE = (BeforeValidator(widen), AfterValidator(check_order))
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
PositiveRange = Annotated[tuple[Positive, Positive], *AS_RANGE]
NonNegativeRange = Annotated[tuple[NonNegative, NonNegative], *AS_RANGE]
ShareRange = Annotated[tuple[Share, Share], *AS_RANGE]
CountRange = Annotated[tuple[Count, Count], *AS_RANGE]
WholeRange = Annotated[tuple[Whole, Whole], *AS_RANGE]


class StageConfig(Section):
    """What learns, and the range of each hyperparameter: one value, or [low, high]."""

    train: tuple[str, ...] = Field(min_length=1, description="name patterns of the parameters that learn")
    freeze: tuple[str, ...] = Field(default=(), description="name patterns taken out of `train`")
    lr: PositiveRange = Field(description="peak learning rate, drawn log-uniformly")
    epochs: CountRange = Field(description="epochs of the cosine schedule")
    batch_size: CountRange = (8, 16)
    weight_decay: NonNegativeRange = (0.01, 0.05)
    head_dropout: ShareRange | None = Field(default=None, description="dropout inside the module `head`")
    warmup_epochs: WholeRange = Field(default=(0, 0), description="linear warm-up before the cosine")
    warmup_ratio: Share | None = Field(default=None, description="warm-up as a share of the epochs, instead")
    noise_std: NonNegativeRange = Field(default=(0.0, 0.0), description="Gaussian noise on training inputs")
    patience: CountRange = Field(default=(10, 10), description="epochs without a better mean before the end")


class StrategyConfig(Section):
    """A strategy: a tuple of stages; a mapping without `stages` is the one stage itself."""

    description: str = ""
    stages: tuple[StageConfig, ...] = Field(min_length=1, max_length=1)

    @model_validator(mode="before")
    @classmethod
    def read_flat_form(cls, value: object) -> object:
        if isinstance(value, Mapping) and "stages" not in value:
            stage = {key: part for key, part in value.items() if key != "description"}
            return {"description": value.get("description", ""), "stages": (stage,)}
        return value


class ModelSection(Section):
    factory: str | None = Field(
        default=None,
        pattern=r"^[\w.]+:\w+$",
        description="`package.module:callable` that builds the network; DiffractionNet where it is left out",
    )
    params: dict[str, Any] = Field(default_factory=dict, description="keyword arguments of the factory")
    checkpoint: str | None = Field(default=None, description="pretrained weights: .safetensors, .pt or .pth")


class DataSection(Section):
    inputs: str = Field(description=".npy, .npz or .npz::key")
    targets: str = Field(description=".npy, .npz or .npz::key")
    layout: Literal["diffraction", "raw"] | None = Field(
        default=None, description="raw: arrays as they are; diffraction unless a factory is named"
    )
    symmetry: tuple[str, ...] | None = Field(
        default=None, description="operations that generate the views; [rot180] in the diffraction layout"
    )
    wavelengths_nm: tuple[Positive, Positive] = Field(
        default=(400.0, 700.0), description="first and last of the spectra, in the diffraction layout; for figures"
    )
    groups: str | None = Field(default=None, description="column: samples of a group stay together")
    stratify: str | None = Field(default=None, description="column: folds get equal shares of it")

    @field_validator("symmetry")
    @classmethod
    def check_operations(cls, names: tuple[str, ...] | None) -> tuple[str, ...] | None:
        for name in names or ():
            if name not in OPERATIONS:
                raise ValueError(
                    f"an operation is one of {', '.join(OPERATIONS)}, got {name}{suggest(name, OPERATIONS)}"
                )
        return names


class CVSection(Section):
    folds: int = Field(default=5, ge=2)
    seeds: int = Field(default=3, ge=1, description="seeds of training for each fold")
    protocol: Literal["crossfit", "nested"] = Field(
        default="crossfit", description="what stops and selects: the other folds, or an inner part of the training part"
    )
    train_size: Count | None = Field(default=None, description="use so many samples of each training part")
    repeats: int = Field(default=1, ge=1, description="re-deals of the folds")
    candidates: int = Field(default=2, ge=1, le=999, description="draws of the hyperparameters by strategy")
    strategies: tuple[str, ...] | None = Field(default=None, min_length=1)
    metric: Literal["mse", "mae"] = "mse"
    rope: Share = Field(default=0.01, description="difference that is none in practice, as a share of the better mean")
    seed: int = Field(default=0, ge=0, description="of the folds, the draws and the members")


class TrainingSection(Section):
    """Values that hold for every strategy in place of its ranges, and what has no range."""

    resume: str | None = Field(default=None, description="the same as model.checkpoint")
    freeze_encoder: bool | None = None
    freeze_decoder: bool | None = None
    epochs: Count | None = None
    lr: Positive | None = None
    batch_size: Count | None = None
    weight_decay: NonNegative | None = None
    head_dropout: Share | None = None
    warmup_ratio: Share | None = None
    noise_std: NonNegative | None = None
    patience: Count | None = None
    grad_clip: Positive = 1.0
    n_noisy_views: Count = Field(default=4, description="noisy copies of each view to draw from")
    checkpoint_every: Count = Field(default=5, description="epochs between checkpoints of a candidate")
    precision: Literal["auto", "float32", "bf16"] = Field(
        default="auto", description="of the products; auto: bf16 where the device gains from it"
    )


class SearchSection(Section):
    """Successive halving (ASHA) among the candidates of a strategy."""

    grace_epochs: Count | None = Field(
        default=None, description="first rung; a quarter of the strategy's longest schedule where left out"
    )
    reduction_factor: float = Field(default=2.0, gt=1)


class ComputeSection(Section):
    """Where it runs; changes no result's meaning, so a run may go on under another."""

    address: str | None = Field(default=None, description="Ray cluster to join; a local one where left out")
    device: Literal["auto", "cpu", "cuda"] = "auto"
    cpus_per_candidate: Count | None = Field(
        default=None, description="chosen from what the cluster has and how many candidates wait, where left out"
    )
    gpus_per_candidate: NonNegative | None = Field(default=None, description="the same; a share of one, or several")
    workers_per_candidate: Count | None = Field(
        default=None, description="processes that share a candidate's members; one a GPU where left out"
    )
    packing: Literal["auto", "packed", "looped"] = Field(
        default="auto",
        description="members in one step or one after the other; auto: what a few steps show to be faster",
    )
    max_failures: Whole = Field(default=2, description="retries of a candidate whose process dies")


class Config(Section):
    """One run."""

    name: str = Field(default="run", pattern=NAME_PATTERN)
    model: ModelSection = ModelSection()
    data: DataSection
    cv: CVSection = CVSection()
    training: TrainingSection = TrainingSection()
    search: SearchSection = SearchSection()
    compute: ComputeSection = ComputeSection()
    strategies: dict[Annotated[str, Field(pattern=NAME_PATTERN)], StrategyConfig] = Field(default_factory=dict)

    @model_validator(mode="after")
    def check_together(self) -> "Config":
        """State the rules that need two sections; each message opens with the key that breaks it."""
        problems = list(self.find_conflicts())
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def find_conflicts(self) -> Iterator[str]:
        given, resumed = self.model.checkpoint, self.training.resume
        if given and resumed and given != resumed:
            yield f"training.resume: it is another name of model.checkpoint, got {resumed} and {given}; keep one"
        if not (given or resumed or self.model.factory):
            yield "model.checkpoint: missing; name the file of the pretrained weights"
        if self.layout == "raw" and self.data.symmetry:
            yield "data.symmetry: it needs layout: diffraction, got layout: raw; leave it out"
        for name in BASELINES:
            if name in self.strategies:
                yield f"strategies.{name}: it is the name of a baseline; choose another"
        for name in self.cv.strategies or ():
            if name not in self.strategies:
                yield f"cv.strategies: unknown strategy {name}{suggest(name, self.strategies)}"
        if self.cv.strategies and len(set(self.cv.strategies)) < len(self.cv.strategies):
            yield f"cv.strategies: each may be named once, got {', '.join(self.cv.strategies)}"

    @property
    def checkpoint(self) -> str | None:
        return self.model.checkpoint or self.training.resume

    @property
    def layout(self) -> Literal["diffraction", "raw"]:
        return self.data.layout or ("raw" if self.model.factory else "diffraction")

    @property
    def symmetry(self) -> tuple[str, ...]:
        if self.data.symmetry is None:
            return ("rot180",) if self.layout == "diffraction" else ()
        return self.data.symmetry

    @property
    def selected(self) -> dict[str, StrategyConfig]:
        """The strategies of this run in order, with the values that `training` fixes for all of them."""
        names = self.cv.strategies or ((AS_WRITTEN,) if AS_WRITTEN in self.strategies else tuple(self.strategies))
        return {name: fix_values(self.strategies[name], self.training) for name in names}

    def identity(self) -> dict[str, Any]:
        """What decides the result: everything but where it is computed."""
        return self.model_dump(mode="json", exclude={"compute"})


def fix_values(strategy: StrategyConfig, training: TrainingSection) -> StrategyConfig:
    shared = set(StageConfig.model_fields) & set(TrainingSection.model_fields)
    fixed = {key: value for key in shared if (value := getattr(training, key)) is not None}
    stages = [{**stage.model_dump(), **fixed} for stage in strategy.stages]
    return StrategyConfig.model_validate({"description": strategy.description, "stages": stages})


def load_config(path: str | Path | None = None, overrides: Mapping[str, Any] | None = None) -> Config:
    """Read a config file, or the embedded demo's, under overrides.

    Args:
        path: A YAML file; the embedded demo where it is None. Paths in it are relative to the working folder.
        overrides: Values by dotted key (`cv.folds`), which replace the file's.

    Raises:
        ConfigError: The file is missing or no YAML mapping, or any key or value in it is not valid;
            the message lists all of them.
    """
    path = None if path is None else Path(path)
    raw = read_yaml(path or DEMO_FOLDER / "config.yaml")
    if path is None:
        place_in_demo_folder(raw)
    elif "name" not in raw:
        raw["name"] = "".join(c if c.isalnum() else "_" for c in path.stem).lstrip("_0123456789")[:40] or "run"
    for key, value in (overrides or {}).items():
        set_dotted(raw, key, value)
    add_strategies(raw)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in describe_problems(error))
        raise ConfigError(f"{path or 'the demo with these options'} is not a valid config\n{lines}") from error


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"a config file must be readable, got {path}: {error.strerror}; check the path") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise ConfigError(f"a config file must be YAML, got {path}: {reason}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"a config file must hold sections such as `data:`, got {path} with {type(content).__name__}")
    return content


def place_in_demo_folder(raw: dict[str, Any]) -> None:
    for section, key in (("model", "checkpoint"), ("data", "inputs"), ("data", "targets")):
        raw[section][key] = str(DEMO_FOLDER / raw[section][key])


def set_dotted(raw: dict[str, Any], dotted: str, value: object) -> None:
    *parents, key = dotted.split(".")
    for parent in parents:
        section = raw.get(parent)
        if section is None:
            section = raw[parent] = {}
        if not isinstance(section, dict):
            raise ConfigError(f"an override names a key inside sections, got {dotted}: {parent} is not a section")
        raw = section
    raw[key] = value


def add_strategies(raw: dict[str, Any]) -> None:
    """Put the shipped strategies, and the one that the freeze flags describe, under the user's own."""
    own = raw.get("strategies") or {}
    if not isinstance(own, dict):
        return  # validation says so
    shipped = read_yaml(STRATEGIES_FILE)
    training = raw.get("training")
    if isinstance(training, dict) and {"freeze_encoder", "freeze_decoder"} & training.keys():
        shipped[AS_WRITTEN] = describe_flags(
            shipped, bool(training.get("freeze_encoder")), bool(training.get("freeze_decoder"))
        )
    merged = {name: merge_strategy(shipped.get(name), strategy) for name, strategy in own.items()}
    raw["strategies"] = shipped | merged


def merge_strategy(shipped: dict[str, Any] | None, own: object) -> object:
    if shipped is None or not isinstance(own, dict) or "stages" in own:
        return own
    return shipped | own


def describe_flags(shipped: dict[str, Any], freeze_encoder: bool, freeze_decoder: bool) -> dict[str, Any]:
    """Build the strategy of a file that freezes by flags, with the ranges of the shipped one that is nearest."""
    nearest = "full" if not freeze_encoder else "head" if freeze_decoder else "decoder_head"
    freeze = ENCODER_PATTERNS * freeze_encoder + DECODER_PATTERNS * freeze_decoder
    base: dict[str, Any] = shipped[nearest]
    return base | {"description": "what the freeze flags leave", "train": ("*",), "freeze": freeze}


def describe_problems(error: ValidationError) -> Iterator[str]:
    places = [problem["loc"] for problem in error.errors()]
    for problem in error.errors():
        if problem["type"] == "too_short" and any(is_below(place, problem["loc"]) for place in places):
            continue  # the stage is missing only because of what is said of its keys
        place = [part for part in problem["loc"] if part != "stages" and not isinstance(part, int)]
        key = ".".join(map(str, place))
        if problem["type"] == "extra_forbidden":
            yield f"{key}: unknown key{suggest(str(place[-1]), list_keys(place[:-1]))}"
        elif problem["type"] == "missing":
            yield f"{key}: missing"
        elif problem["type"] == "value_error":
            yield from (f"{key}: {line}" if key else line for line in str(problem["ctx"]["error"]).split("\n"))
        else:
            message = problem["msg"].replace("Input should", "it should")
            yield f"{key}: {message}, got {problem['input']!r}"


def is_below(place: tuple[Any, ...], other: tuple[Any, ...]) -> bool:
    return len(place) > len(other) and place[: len(other)] == other


def list_keys(place: Sequence[Any]) -> list[str]:
    """List the keys that a section knows, by its path."""
    model: type[BaseModel] = Config
    for part in place:
        if part == "strategies":
            return list(StageConfig.model_fields) + list(StrategyConfig.model_fields)
        annotation = model.model_fields[part].annotation
        nested = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
        model = next((kind for kind in nested if issubclass(kind, BaseModel)), model)
    return list(model.model_fields)
