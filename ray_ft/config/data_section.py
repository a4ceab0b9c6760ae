"""The section that says where the samples are."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator
from pydantic_core import PydanticCustomError

from ray_ft.config.base import CodeName, Section
from ray_ft.config.hyperparameters import Positive
from ray_ft.domains import DomainName, find_domain
from ray_ft.errors import show_value, suggest
from ray_ft.files.column_names import join_names

DEFAULT_LAYOUT: DomainName = "diffraction"  # of the network that needs no factory


def join_columns(names: object, info: Any) -> object:
    """Write a list of columns as the text that names them in their table; other values are left as they are."""
    if not isinstance(names, list | tuple):
        return names
    if not info.data.get("table"):
        raise ValueError("a list names columns of data.table, got no table; or write file::column,column")
    if not names or not all(isinstance(name, str | int | float) for name in names):
        raise ValueError(f"it should be a list of names of columns, got {show_value(names)}")
    return f"{info.data['table']}::{join_names(list(map(str, names)))}"


DataSource = Annotated[str, BeforeValidator(join_columns, json_schema_input_type=str | list[str])]


class ReplaySection(Section):
    """Samples of the kind that the network was pretrained on, which training sees again and nothing is scored on."""

    inputs: str = Field(min_length=1)
    """File of their inputs, such as old.npz::structure, in the form of data.inputs."""
    targets: str | None = None
    """File of their targets. Without it, what the pretrained network says of them."""


class DataSection(Section):
    """Where the samples are; docs/data.md has the kinds of files."""

    table: str | None = None
    """Table (.csv, .tsv, .parquet) whose columns the other keys may list by name: `targets: [n_eff, loss]`."""
    factory: CodeName | None = None
    """What makes the samples in place of files, as `package.module:callable`. Its code is run."""
    params: dict[str, Any] | None = Field(default=None, description="Keyword arguments of the factory, by name.")
    collate: CodeName | None = None
    """What makes a batch of samples of unequal shapes, as `package.module:function`. Its code is run."""
    inputs: DataSource = Field(default="", validate_default=True)
    """File of the inputs, a sample a row, such as x.npy, file.h5::path or table.csv::a,b; or columns of the table."""
    targets: DataSource = Field(default="", validate_default=True)
    """File of the targets, in the order of the inputs, or columns of the table."""
    layout: DomainName | None = None
    """Structures and spectra, or arrays as they are (raw). Without it, raw where a factory is named."""
    symmetry: tuple[str, ...] | None = None
    """Operations that generate the views. Without it, those of a periodic cell (32 views) in the diffraction layout."""
    classes: tuple[str, ...] | None = None
    """Names of the classes in the order of the network's outputs. Without it, the labels that there are, sorted."""
    wavelengths_nm: tuple[Positive, Positive] = (400.0, 700.0)
    """First and last wavelength in the diffraction layout, in nm. Only figures use them."""
    groups: DataSource | None = None
    """File or column with a group for each sample; groups stay in one fold. Without it, images of a sample do."""
    stratify: DataSource | None = None
    """File or column with a class or number for each sample, which folds share evenly. Without it, chance deals."""
    replay: ReplaySection | None = None
    """Samples of the pretraining, a share of which is in each step, so that what was learned of them is kept."""

    @field_validator("inputs", "targets")
    @classmethod
    def check_source(cls, source: str, info: Any) -> str:
        if not source and not info.data.get("factory"):
            raise PydanticCustomError("missing", "Field required")
        return source

    @field_validator("symmetry")
    @classmethod
    def check_operations(cls, names: tuple[str, ...] | None, info: Any) -> tuple[str, ...] | None:
        known = find_domain(info.data.get("layout") or DEFAULT_LAYOUT).operations
        for name in names or ():
            if known and name not in known:  # where there are none at all, the rules of two sections say so
                raise ValueError(f"an operation is one of {', '.join(known)}, got {name}{suggest(name, known)}")
        return names
