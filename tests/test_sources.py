"""Data as people have it: tables, HDF5, NetCDF, zarr, images, and a function that makes them."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from data_files import INPUTS, TARGETS, WRITERS, make_frame, write_csv, write_hdf5, write_images, write_parquet
from PIL import Image

from ray_ft.config import load_config
from ray_ft.cross_validation import cross_validate, prepare, rebuild_ensemble
from ray_ft.data.samples import load_samples, read_array
from ray_ft.data.sources import read_inputs
from ray_ft.domains.raw import DOMAIN as RAW
from ray_ft.ensemble import Ensemble
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled
from ray_ft.errors import ConfigError, DataError, RunFolderError
from ray_ft.files import memory
from ray_ft.prediction.sources import open_source, read_chunks


def write_npy(frame: pd.DataFrame) -> tuple[str, str, str]:
    for name, columns in (("x.npy", INPUTS), ("y.npy", TARGETS), ("plate.npy", "plate")):
        np.save(name, frame[columns])
    return "x.npy", "y.npy", "plate.npy"


@pytest.fixture(autouse=True)
def folder(toy_folder: Path) -> Path:
    return toy_folder


@pytest.mark.parametrize("write", WRITERS)
def test_the_same_data_in_any_file_gives_the_same_samples(write: Callable[..., tuple[str, str, str]]) -> None:
    frame = make_frame()
    np.savez("t.npz", x=frame[INPUTS], y=frame[TARGETS], plate=frame["plate"])
    plain = load_samples("t.npz::x", "t.npz::y", RAW, "t.npz::plate", "t.npz::plate")
    inputs, targets, plate = write(frame)
    found = load_samples(inputs, targets, RAW, plate, plate)
    assert found.inputs.dtype == found.targets.dtype == np.float32
    for name in ("inputs", "targets", "groups", "strata"):
        assert getattr(found, name).tobytes() == getattr(plain, name).tobytes(), name
    opened = open_source(inputs)
    chunks = list(read_chunks(opened, 3, 20, 8))
    np.testing.assert_array_equal(np.concatenate(chunks), frame[INPUTS].to_numpy()[3:20])
    assert opened.shape == (4,)


@pytest.mark.parametrize("write", [*WRITERS, write_npy])
def test_suffixes_are_read_in_either_case(write: Callable[..., tuple[str, str, str]]) -> None:
    frame = make_frame()
    sources = write(frame)
    plain = [read_array(source) for source in sources]
    for name in {source.partition("::")[0] for source in sources}:
        Path(name).rename(name.upper())
    capital = [name.upper() + sign + key for name, sign, key in (source.partition("::") for source in sources)]
    for array, source in zip(plain, capital, strict=True):
        np.testing.assert_array_equal(read_array(source), array)
    np.testing.assert_array_equal(np.concatenate(list(read_chunks(open_source(capital[0]), 0, 24, 8))), plain[0])


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_a_folder_has_files_in_either_case(suffix: str) -> None:
    Path("many").mkdir()
    for name in (f"a.{suffix}", f"b.{suffix.upper()}"):
        with Path("many", name).open("wb") as file:
            frame = make_frame()[INPUTS]
            np.save(file, frame.to_numpy()) if suffix == "npy" else frame.to_parquet(file)
    source = open_source("many" if suffix == "npy" else f"many::{','.join(INPUTS)}")
    assert len(source) == 48
    assert all(block.group == 0 for block in source.blocks) or suffix == "npy"


@pytest.mark.parametrize("suffix", ["csv", "parquet", "h5", "zarr", "nc"])
@pytest.mark.filterwarnings("ignore:The data type")  # that zarr's strings are of no standard yet
def test_text_is_labels(suffix: str) -> None:
    labels = make_frame()["kind"].to_numpy().astype(str)
    match suffix:
        case "csv":
            pd.DataFrame({"kind": labels, "n": 1}).to_csv("k.csv", index=False)
        case "parquet":
            pd.DataFrame({"kind": pd.Categorical(labels), "n": 1}).to_parquet("k.parquet")
        case "h5":
            with pytest.importorskip("h5py").File("k.h5", "w") as file:
                file["kind"] = labels.astype(object)
        case "zarr":
            pytest.importorskip("zarr").save("k.zarr", kind=labels)
        case "nc":
            pytest.importorskip("h5netcdf")
            pytest.importorskip("xarray").Dataset({"kind": ("n", labels)}).to_netcdf("k.nc", engine="h5netcdf")
    found = read_array(f"k.{suffix}::kind")
    assert found.dtype.kind == "U"
    assert found.tolist() == labels.tolist()


def test_one_column_of_a_table_is_flat_but_as_inputs() -> None:
    write_csv(make_frame())
    assert read_array("t.csv::n_eff").shape == (24,)
    assert read_inputs("t.csv::n_eff").array.shape == (24, 1)
    assert open_source("t.csv::n_eff").shape == (1,)
    write_parquet(make_frame())
    assert open_source("t.parquet::n_eff").shape == (1,)
    assert read_array("t.csv::n_eff, loss,n_*").shape == (24, 2)


def test_cells_become_numbers_only_where_all_do() -> None:
    Path("c.csv").write_text(
        'id,"a, b", ok ,x,y,n\n1_2,1, true,1e-3,,0x\n3_4, 2,FALSE,NA,-4.5,7\n1_2,,true,nan,1E5,"8\n9"\n\n',
        encoding="utf-8",
    )
    assert read_array("c.csv::id").tolist() == ["1_2", "3_4", "1_2"]
    assert read_array("c.csv::ok").tolist() == [True, False, True]
    assert read_array('c.csv::"a, b"')[:2].tolist() == [1, 2]
    assert read_array("c.csv::n").tolist() == ["0x", "7", "8\n9"]
    both = read_array("c.csv::x,y")
    np.testing.assert_array_equal(both, [[1e-3, np.nan], [np.nan, -4.5], [np.nan, 1e5]])


def test_an_empty_line_of_a_table_of_one_column_is_a_missing_value() -> None:
    Path("y.csv").write_text("y\n1\n\n3\n")
    np.testing.assert_array_equal(read_array("y.csv"), [1, np.nan, 3])


def test_a_group_that_is_missing_is_named() -> None:
    frame = make_frame().astype({"plate": float})
    frame.loc[5, "plate"] = np.nan
    frame.to_csv("t.csv", index=False)
    with pytest.raises(
        DataError, match=r"data\.groups must have a value .* in t\.csv::plate \(samples 5\); fill them in"
    ):
        load_samples("t.csv::spec_*", "t.csv::loss", RAW, "t.csv::plate")


def test_lists_of_parquet_are_samples() -> None:
    pd.DataFrame({"x": np.arange(12.0).reshape(4, 3).tolist(), "y": range(4)}).to_parquet("x.parquet")
    np.testing.assert_array_equal(read_inputs("x.parquet::x").array, np.arange(12.0).reshape(4, 3))


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("t.csv::n_ef", r"needs ::columns out of spec_0, .* and 1 more, got 'n_ef'; did you mean n_eff\? for t\.csv"),
        ("t.csv::spec-*", r"got 'spec-\*'.* for t\.csv"),
        ("t.csv", r"a table needs ::columns out of .*, got none for t\.csv; ::\* takes all"),
        ("t.csv::n_eff,kind", r"several columns must be of numbers, got text such as 'good' in column kind of t\.csv"),
        ("hole.csv::a,b", r"got NaN, infinity or an empty cell in column b of sample 1 of hole\.csv; fill it in"),
        ("hole.csv::k", r"text must be given for each sample, got none in column k of sample 1 of hole\.csv"),
        ("hole.csv::twice", r"columns must have different names, got twice more than once in hole\.csv"),
        ("ragged.csv::a,b", r"must hold plain arrays, be whole .* got ragged\.csv: CSV parse error: .*Expected 2 col"),
        ("latin.csv::a", r"got latin\.csv: 'utf-8' codec"),
        ("empty.csv", r"out of , got none|got none for empty\.csv"),
        ("dates.parquet::when", r"a column must be of numbers or text, got timestamp.* in column when of dates\.par"),
        ("hole.parquet::a,b", r"got NaN, infinity or an empty cell in column b of sample 1 of hole\.parquet"),
        ("hole.parquet::k", r"none in column k of sample 1 of hole\.parquet"),
        ("x.xlsx", r"a data file must be \.npy, .*\.csv.*, got x\.xlsx"),
    ],
)  # fmt: skip
def test_tables_that_do_not_suit_are_refused(source: str, text: str) -> None:
    write_csv(make_frame())
    Path("hole.csv").write_text("a,b,k,twice,twice\n1,2,x,1,1\n3,,,1,1\n5,6,y,1,1\n")
    Path("ragged.csv").write_text("a,b\n1,2\n3\n")
    Path("latin.csv").write_bytes("a\nß\n".encode("latin-1"))
    Path("empty.csv").touch()
    pd.DataFrame({"when": pd.to_datetime(["2020-01-01"])}).to_parquet("dates.parquet")
    frame = pd.DataFrame({"a": pd.array([1, 2], "Int64"), "b": pd.array([1, None], "Int64"), "k": ["x", None]})
    frame.to_parquet("hole.parquet")
    with pytest.raises(DataError, match=text):
        read_inputs(source)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.h5", r"a file with several arrays needs ::key out of deep/x, plate, y, got none for t\.h5"),
        ("t.h5::deep/z", r"got 'deep/z'; did you mean deep/x\? for t\.h5"),
        ("t.h5::away", r"got 'away'"),
        ("t.h5::raw", r"raw stands in other files; copy it into this one"),
        ("t.h5::both", r"both stands in other files"),
        ("t.h5::none", r"none has no shape"),
        ("t.h5::refs", r"it holds Python objects, got one of"),
        ("t.h5::huge", r"it needs .* of memory, of which"),
    ],
)
def test_hdf5_holds_its_values_itself(name: str, text: str) -> None:
    h5py = pytest.importorskip("h5py")
    write_hdf5(make_frame())
    Path("secret").write_bytes(bytes(16))
    if "::" in name:
        with h5py.File("t.h5", "a") as file:
            file["away"], file["none"] = h5py.ExternalLink("t.h5", "y"), h5py.Empty("f4")
            file.create_dataset("raw", (2,), "f8", external=[("secret", 0, 16)])
            layout = h5py.VirtualLayout((24, 2), "f8")
            layout[:] = h5py.VirtualSource("t.h5", "y", (24, 2))
            file.create_virtual_dataset("both", layout)
            file.create_dataset("refs", data=[file["y"].ref], dtype=h5py.ref_dtype)
            file.create_dataset("huge", (10**13,), "f8", chunks=(10,))
    with pytest.raises(DataError, match=text):
        read_array(name)


def test_small_files_that_grow_beyond_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    zarr = pytest.importorskip("zarr")
    labels = pd.Categorical.from_codes(np.zeros(10**5, int), ["k" * 10**4])
    pd.DataFrame({"k": labels}).to_parquet("b.parquet")
    pd.DataFrame({"x": np.zeros(10**6)}).to_parquet("c.parquet")
    zarr.create_array("b.zarr", shape=(10**9,), chunks=(10**3,), dtype="f4")
    zarr.create_array("c.zarr", shape=(10**3,), chunks=(10**9,), dtype="f4")
    Image.new("L", (1000, 1000)).save("b.png")
    pd.DataFrame({"file": ["b.png"] * 9}).to_csv("b.csv", index=False)
    Path("c.csv").write_text("a\n" * 10**6)
    monkeypatch.setattr(memory, "find_available", lambda: 6 * 10**6)
    for source in ("b.parquet", "c.parquet", "b.zarr", "c.zarr", "b.csv", "c.csv"):
        with pytest.raises(DataError, match=r"it needs .* of memory, of which 6\.0 MB are available"):
            read_inputs(source)


def test_missing_values_of_netcdf_are_nan_and_packed_ones_unpacked() -> None:
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("h5netcdf")
    values = xarray.Dataset({"y": ("n", [0.5, np.nan, 1.5])})
    values.to_netcdf(
        "p.nc", engine="h5netcdf", encoding={"y": {"dtype": "i2", "scale_factor": 0.5, "_FillValue": -9}}, group="a/b"
    )
    np.testing.assert_array_equal(read_array("p.nc::a/b/y"), [0.5, np.nan, 1.5])


@pytest.mark.parametrize(("module", "extra", "name"), [
    ("h5py", "hdf5", "t.h5"), ("xarray", "netcdf", "t.nc"), ("zarr", "zarr", "t.zarr")
])  # fmt: skip
def test_a_package_that_is_missing_is_named_with_its_extra(
    module: str, extra: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(name).mkdir() if extra == "zarr" else Path(name).touch()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"{module} must be installed to read {name}; pip install 'ray-ft\[{extra}\]'"):
        read_array(name)


# ---- images


@pytest.mark.parametrize(("mode", "scale"), [("RGB", 255), ("L", 255), ("I;16", 65535)])
def test_images_are_channels_first_from_0_to_1(mode: str, scale: int) -> None:
    values = write_images(mode)
    found = read_inputs("images.csv::file").array
    wanted = (values if values.ndim == 4 else values[..., None]).transpose(0, 3, 1, 2) / np.float32(scale)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, wanted)
    assert read_array("images.csv::kind").tolist() == ["a", "b", "a", "b"]
    pd.read_csv("images.csv").to_parquet("images.parquet")
    for name in ("images.csv::file", "images.parquet::file"):
        np.testing.assert_array_equal(next(read_chunks(open_source(name), 0, 4, 9)), wanted)


def test_images_that_do_not_suit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(text: str) -> None:
        with pytest.raises(DataError, match=text):
            read_inputs("images.csv::file")
        write_images()

    write_images()
    Image.new("RGB", (7, 5)).save("pictures/2.png")
    refuse(
        r"images must have one size and kind, got \(3, 5, 7\) .* in pictures/2\.png and \(3, 5, 6\) in pictures/0\.png"
    )
    content = Path("pictures/1.png").read_bytes()
    Path("pictures/1.png").write_bytes(content[: len(content) // 2])
    refuse(r"an image must be a whole PNG, .*, got pictures/1\.png: ")
    Image.new("CMYK", (6, 5)).save("pictures/1.png", format="TIFF")
    refuse(r"got pictures/1\.png: its mode is CMYK; convert it")
    Image.new("L", (6, 5)).save("pictures/1.png", "TIFF", save_all=True, append_images=[Image.new("L", (6, 5))])
    refuse(r"got pictures/1\.png: it has 2 frames")
    Path("pictures/3.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 6 5\n")
    refuse(r"got pictures/3\.png: cannot identify image file")
    Path("images.csv").write_text("file,n\n../x.png,1\n")
    refuse(r"images must lie in the folder of the table, or below it, got '\.\./x\.png' in images\.csv")
    Path("images.csv").write_text("file,n\nred,1\n")
    refuse(r"a column of text must name images by their files, got 'red' in images\.csv")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 29)
    refuse(r"got pictures/0\.png: Image size \(30 pixels\) exceeds limit")


# ---- runs


def write_table_run(folder: Path, **data: Any) -> pd.DataFrame:
    """The toy as classes of a table: named columns, text for classes and groups."""
    x, y = np.load("x.npy"), np.load("y.npy")
    frame = pd.DataFrame(x, columns=[f"spec_{i}" for i in range(6)])
    frame["kind"] = np.array(["blue", "green", "red"])[y.argmax(1)]
    frame["wafer"] = [f"W{i // 2}" for i in range(len(x))]
    frame.to_csv("table.csv", index=False)
    config = yaml.safe_load((folder / "toy.yaml").read_text())
    columns = {"inputs": ["spec_*"], "targets": ["kind"], "groups": ["wafer"], "stratify": ["kind"]}
    config["data"] = {"table": "table.csv", **columns} | data
    config["cv"] |= {"metric": "log_loss", "strategies": ["last"], "candidates": 1, "seeds": 1}
    (folder / "table.yaml").write_text(yaml.safe_dump(config))
    return frame


def test_a_table_from_cv_to_evaluate(
    folder: Path, ray_ft_here: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    frame = write_table_run(folder)
    done = ray_ft_here("cv", "-c", "table.yaml", "--inline", "--out", "run")
    assert done.returncode == 0, done.stderr
    ensemble = Ensemble.load("run")
    assert ensemble.card.classes == ("blue", "green", "red")
    assert ensemble.card.data_keys == (",".join(f"spec_{i}" for i in range(6)), "kind")
    new = frame.iloc[:5].copy()
    new.insert(0, "note", "new")
    new["spec_9"] = -1.0  # which the pattern would match, and the training did not have
    new[new.columns[::-1]].to_csv("new.csv", index=False)
    new[new.columns[::-1]].to_parquet("new.parquet")
    wanted = ensemble.predict(np.load("x.npy")[:5])
    for i, name in enumerate(("new.csv", "new.parquet", "new.csv::spec_[0-5]", "new.parquet::spec_[0-5]")):
        done = ray_ft_here("predict", "run", "--inputs", name, "--out", f"{i}.npz", "--device", "cpu")
        assert done.returncode == 0, done.stderr
        with np.load(f"{i}.npz") as found:
            np.testing.assert_allclose(found["mean"], wanted.mean, atol=1e-6)
    done = ray_ft_here("evaluate", "run", "--data", "new.csv", "--json")
    assert done.returncode == 0, done.stderr
    by_file = evaluate_ensemble(ensemble, read_labelled(ensemble, None, "new.csv", "new.parquet"))
    assert by_file.model_dump_json(indent=2) == done.stdout.strip()
    assert by_file.n_samples == 5
    done = ray_ft_here("suggest", "run", "--inputs", "new.csv", "--n", "1", "--out", "s")
    assert "a batch must be of samples that are not measured yet, 0 of new.csv's 5" in done.stderr
    new.drop(columns="spec_3").rename(columns={"spec_4": "spec4"}).to_csv("other.csv", index=False)
    done = ray_ft_here("predict", "run", "--inputs", "other.csv", "--out", "o.npz")
    assert done.returncode == 2
    assert "got 'spec_3'; did you mean spec_" in done.stderr


def test_lists_are_columns_of_the_table(folder: Path) -> None:
    write_table_run(folder)
    data = load_config("table.yaml", {"data.inputs": ["a, b", 400, "spec_*"]}).data
    assert data.inputs == 'table.csv::"a, b",400,spec_*'
    assert (data.targets, data.groups) == ("table.csv::kind", "table.csv::wafer")
    again = load_config("table.yaml", {"data.inputs": data.inputs}).data
    assert again == data
    with pytest.raises(ConfigError, match=r"data\.targets: a list names columns of data\.table, got no table"):
        load_config("table.yaml", {"data.table": None})
    with pytest.raises(ConfigError, match=r"data\.inputs: it should be a list of names of columns, got \[\]"):
        load_config("table.yaml", {"data.inputs": []})
    with pytest.raises(ConfigError, match=r"data\.targets: missing"):
        load_config("table.yaml", {"data.targets": ""})


MAKER = """
import numpy as np

def make(n=30, extra=False, wrong=False):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    y = np.tanh(x @ rng.normal(size=(6, 3))).astype(np.float32)
    if wrong:
        return {"input": x, "inputs": x, "targets": y}
    return {"inputs": x, "targets": y, "groups": [f"W{i // 2}" for i in range(n)]} if extra else (x, y)
"""


def write_maker_run(folder: Path, **params: Any) -> None:
    Path("maker.py").write_text(MAKER)
    config = yaml.safe_load((folder / "toy.yaml").read_text())
    config["data"] = {"factory": "maker:make", "params": params}
    config["cv"] |= {"strategies": ["last"], "candidates": 1, "seeds": 1}
    (folder / "made.yaml").write_text(yaml.safe_dump(config))


def test_a_function_makes_the_samples(
    folder: Path, ray_ft_here: Callable[..., subprocess.CompletedProcess[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "maker", raising=False)
    write_maker_run(folder)
    made, plain = (prepare(load_config(name, {"cv.strategies": ["last"]})) for name in ("made.yaml", "toy.yaml"))
    assert made.problem.samples.inputs.tobytes() == plain.problem.samples.inputs.tobytes()
    grouped = prepare(load_config("made.yaml", {"data.params": {"extra": True}})).problem.samples
    assert len(set(grouped.groups)) == 15
    said = ray_ft_here("check", "-c", "made.yaml")
    assert said.returncode == 0, said.stderr
    assert f"runs        maker:make, code that begins with {folder}/maker.py" in said.stdout
    for values, text in (
        ({"data.params": {"m": 3}}, r"data\.params must be keyword arguments of maker:make, got {'m': 3}"),
        ({"data.params": {"wrong": True}}, r"must return inputs, targets, groups, stratify, got input from maker:make"),
        ({"data.factory": "os:system"}, r"data\.factory must be a function of your own code.* was not imported"),
        ({"data.factory": "numpy:load"}, r"data\.factory must be a function of your own code.* was not called"),
        ({"data.factory": "nowhere:x"}, r"data\.factory must be importable, got nowhere:x: there is no module nowhere"),
        ({"data.inputs": "x.npy"}, r"data\.inputs: data\.factory takes its place, got x\.npy and maker:make"),
        ({"data": {"inputs": "x.npy", "targets": "y.npy", "params": {"n": 3}}}, r"data\.params: they are arguments of"),
    ):
        with pytest.raises((ConfigError, DataError), match=text):
            prepare(load_config("made.yaml", {"data.params": {}} | values if "data" not in values else values))


def test_a_run_folder_does_not_call_what_made_its_samples_untrusted(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, "maker", raising=False)
    write_maker_run(folder)
    cross_validate(load_config("made.yaml"), "run", inline=True)
    with pytest.raises(RunFolderError, match=r"got toy_network:Toy and maker:make in run/config\.yaml; if it is yours"):
        rebuild_ensemble(Path("run"))
    assert rebuild_ensemble(Path("run"), trust=True).n_members == 3
