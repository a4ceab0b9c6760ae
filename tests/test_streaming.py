"""Predictions in chunks are those of the whole, whatever interrupts them; what cannot go on is refused."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ray_ft.config import ComputeSection
from ray_ft.ensemble import Ensemble, Prediction
from ray_ft.errors import ConfigError, DataError
from ray_ft.prediction import folder
from ray_ft.prediction.on_ray import PartPredictor, predict_on_ray
from ray_ft.prediction.pace import show_pace
from ray_ft.prediction.quantities import arrange, find_bad
from ray_ft.prediction.sources import Block, Source, open_source, read_chunks
from ray_ft.prediction.streams import Streamed, predict_to_archive, predict_to_folder

QUANTITIES = tuple(field.name for field in fields(Prediction))
CODE = """
import sys
from pathlib import Path
from ray_ft.ensemble import Ensemble
from ray_ft.prediction.sources import open_source
from ray_ft.prediction.streams import predict_to_folder
predict_to_folder(Ensemble.load("run"), open_source("many.npy"), Path("out"), n_threads=1, chunk_size=32)
"""


def write_many(n_samples: int = 150) -> np.ndarray:
    many = np.random.default_rng(5).normal(size=(n_samples, 6)).astype(np.float32) * 2
    np.save("many.npy", many)
    return many


def check_folder(output: Path, expected: Prediction, names: tuple[str, ...] = QUANTITIES) -> None:
    assert {path.name for path in output.glob("*.npy")} == {f"{name}.npy" for name in names}
    for name in names:
        np.testing.assert_allclose(np.load(output / f"{name}.npy"), getattr(expected, name), rtol=1e-5, atol=1e-6)
    assert (output / "done.json").exists()
    assert not (output / "progress.json").exists()


def test_a_file_streams_to_what_the_ensemble_says(run: Path) -> None:
    ensemble, many = Ensemble.load(run), write_many()
    expected = ensemble.predict(many)
    found = predict_to_folder(ensemble, open_source("many.npy"), Path("out"), n_threads=2, chunk_size=37)
    check_folder(Path("out"), expected)
    assert (found.n_samples, found.n_before, found.n_flagged) == (150, 0, int(expected.flag.sum()))
    for name in ("mean", "novelty", "flag"):
        assert np.load(f"out/{name}.npy").dtype == getattr(expected, name).dtype
    again = predict_to_folder(ensemble, open_source("many.npy"), Path("out"))
    assert (again.n_before, again.n_flagged) == (150, found.n_flagged)
    archived = predict_to_archive(ensemble, open_source("many.npy"), Path("y.npz"))
    assert archived.n_flagged == found.n_flagged
    with np.load("y.npz") as archive:
        assert list(archive) == [field.name for field in fields(Prediction)]
        np.testing.assert_allclose(archive["band_upper"], expected.band_upper, rtol=1e-5)


def test_inputs_are_not_written_over(run: Path) -> None:
    write_many()
    before = Path("many.npy").read_bytes()
    with pytest.raises(DataError, match=r"another file than the inputs, got many\.npy"):
        predict_to_archive(Ensemble.load(run), open_source("many.npy"), Path("many.npy"))
    assert Path("many.npy").read_bytes() == before


def test_a_folder_is_read_by_name_and_only_what_is_asked_for_is_written(run: Path) -> None:
    ensemble, many = Ensemble.load(run), write_many()
    Path("in").mkdir()
    for name, part in (("b", many[40:41]), ("a", many[:40]), ("c", many[41:])):
        np.save(f"in/{name}.npy", part)
    source = open_source("in")
    predict_to_folder(ensemble, source, Path("out"), quantities=["flag", "mean", "upper"], level=0.8, chunk_size=32)
    check_folder(Path("out"), ensemble.predict(many, 0.8), ("mean", "upper", "flag"))
    plan = json.loads(Path("out/plan.json").read_text())
    assert plan["blocks"] == [["a.npy", 40], ["b.npy", 1], ["c.npy", 109]]
    assert source.locate(41) == "sample 0 of in/c.npy, which is number 41 of all"


def test_killed_and_gone_on_it_writes_the_same_files(run: Path) -> None:
    """The process is killed while it works; half a chunk, of which nobody was told, is written over."""
    write_many(4_000)
    ensemble, source = Ensemble.load(run), open_source("many.npy")
    predict_to_folder(ensemble, source, Path("whole"))
    process = subprocess.Popen([sys.executable, "-c", CODE], env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not Path("out/progress.json").exists() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    n_done = json.loads(Path("out/progress.json").read_text())["n_done"]
    assert 0 < n_done < 4_000
    assert n_done % 32 == 0
    assert not Path("out/done.json").exists()
    folder.write_rows(Path("out/mean.npy"), n_done, np.full((5, 3), np.nan, np.float32))
    found = predict_to_folder(ensemble, source, Path("out"))
    assert found.n_before == n_done
    for name in QUANTITIES:
        np.testing.assert_array_equal(np.load(f"out/{name}.npy"), np.load(f"whole/{name}.npy"))
    assert json.loads(Path("out/done.json").read_text()) == json.loads(Path("whole/done.json").read_text())


@pytest.mark.parametrize("where", ["many.npy", "in"])
def test_a_bad_sample_is_named_and_what_came_before_is_kept(run: Path, where: str) -> None:
    ensemble, many = Ensemble.load(run), write_many()
    expected = ensemble.predict(many[:96])
    many[99, 2] = np.inf
    Path("in").mkdir()
    np.save("many.npy", many)
    np.save("in/0.npy", many[:90])
    np.save("in/1.npy", many[90:])
    sample = "sample 99 of many.npy" if where == "many.npy" else "sample 9 of in/1.npy, which is number 99 of all"
    text = f"got NaN or infinity in {sample}; 96 samples are done; corrected inputs need another --out"
    for _ in range(2):  # the same command comes to the same sample
        with pytest.raises(DataError, match=text):
            predict_to_folder(ensemble, open_source(where), Path("out"), chunk_size=32)
        np.testing.assert_allclose(np.load("out/mean.npy")[:96], expected.mean, rtol=1e-5, atol=1e-6)


def test_a_folder_of_other_predictions_is_refused(run: Path) -> None:
    ensemble, many = Ensemble.load(run), write_many()
    predict_to_folder(ensemble, open_source("many.npy"), Path("out"), quantities=["mean"])
    before = Path("out/mean.npy").read_bytes()
    np.save("short.npy", many[:5])
    np.save("other.npy", many + 1)

    def predict(source: str = "many.npy", own: Ensemble = ensemble, quantities: tuple = ("mean",), level=None) -> None:
        predict_to_folder(own, open_source(source), Path("out"), quantities, level)

    with pytest.raises(DataError, match=r"inputs: 150 x \(6,\) float32 there, 5 x \(6,\) float32 now"):
        predict("short.npy")
    with pytest.raises(DataError, match=r"inputs: other files, or changed since, in .*other\.npy"):
        predict("other.npy")
    with pytest.raises(DataError, match=r"level: 0\.9 there, 0\.8 now"):
        predict(level=0.8)
    with pytest.raises(DataError, match=r"quantities: mean \(3,\) <f4 there, mean \(3,\) <f4, flag \(\) \|b1 now"):
        predict(quantities=("flag", "mean"))
    with pytest.raises(DataError, match=r"ensemble: [0-9a-f]{12} there, [0-9a-f]{12} now\ngive the same again"):
        predict(own=ensemble.use_method("single"))
    predict()
    os.utime("many.npy", (1, 1))
    with pytest.raises(DataError, match=r"inputs: other files, or changed since, in .*many\.npy"):
        predict()
    assert Path("out/mean.npy").read_bytes() == before
    Path("mine").mkdir()
    Path("mine/thesis.tex").touch()
    with pytest.raises(DataError, match=r"needs a new folder, got mine with thesis\.tex"):
        predict_to_folder(ensemble, open_source("many.npy"), Path("mine"))


def test_a_damaged_or_busy_folder_is_refused(run: Path) -> None:
    ensemble, many = Ensemble.load(run), write_many()
    broken = many.copy()
    broken[99] = np.nan
    np.save("many.npy", broken)
    with pytest.raises(DataError, match="96 samples are done"):
        predict_to_folder(ensemble, open_source("many.npy"), Path("out"), chunk_size=32)
    source = open_source("many.npy")
    Path("out/std.npy").unlink()
    with pytest.raises(DataError, match=r"must be whole to go on, got out/std\.npy"):
        predict_to_folder(ensemble, source, Path("out"))
    plan = json.loads(Path("out/plan.json").read_text())
    with (
        folder.open_folder(Path("out"), plan, 150),
        pytest.raises(DataError, match="one command at a time"),
        folder.open_folder(Path("out"), plan, 150),
    ):
        pass
    Path("out/progress.json").write_text("{")
    with pytest.raises(DataError, match=r"must be its own, and readable, got out/progress\.json"):
        predict_to_folder(ensemble, source, Path("out"))


def test_what_cannot_be_is_refused_before_anything_is_written(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ensemble = Ensemble.load(run)
    write_many()
    np.save("wide.npy", np.ones((9, 7), np.float32))
    with pytest.raises(DataError, match=r"must have the shape \(6,\) that the ensemble was trained on, got \(7,\)"):
        predict_to_folder(ensemble, open_source("wide.npy"), Path("out"))
    with pytest.raises(ConfigError, match=r"got 'meen'; did you mean mean\?"):
        predict_to_folder(ensemble, open_source("many.npy"), Path("out"), quantities=["meen"])
    with pytest.raises(ConfigError, match="some quantity must be asked for"):
        predict_to_folder(ensemble, open_source("many.npy"), Path("out"), quantities=[])
    with pytest.raises(ConfigError, match=r"at least 99 samples"):
        predict_to_folder(ensemble, open_source("many.npy"), Path("out"), level=0.99)
    assert not Path("out").exists()
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 1000))
    with pytest.raises(DataError, match=r"150 samples need 0\.01 MB for mean, std, .*, got 0\.00 MB free"):
        predict_to_folder(ensemble, open_source("many.npy"), Path("out"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("absent.npy", "inputs must exist, got absent.npy"),
        ("cut.npy", "inputs must be whole files of numbers, got cut.npy: mmap length is greater"),
        ("object.npy", "got object.npy"),
        ("text.npy", "data must be real numbers, got <U3 in text.npy"),
        ("flat.npy", r"at least one more, got shape \(4,\)"),
        ("none.npy", "got none in none.npy|got none.npy"),
        ("notes.txt", "inputs must be .npy, .npz, .*, got notes.txt"),
        ("mixed", "got mixed with .npy and .parquet"),
        ("empty", "got empty with neither"),
        ("unlike", r"must agree in shape and type, got \(3,\) float32 in unlike/b.npy and \(2,\) float32"),
    ],
)
def test_files_that_are_no_inputs_are_refused(name: str, text: str, toy_folder: Path) -> None:
    np.save("cut.npy", np.ones((9, 7), np.float32))
    Path("cut.npy").write_bytes(Path("cut.npy").read_bytes()[:-1])
    np.save("object.npy", np.array([[print]], dtype=object), allow_pickle=True)
    np.save("text.npy", np.array([["abc"]]))
    np.save("flat.npy", np.ones(4))
    np.save("none.npy", np.ones((0, 4)))
    Path("notes.txt").touch()
    for folder_name in ("mixed", "empty", "unlike"):
        Path(folder_name).mkdir()
    Path("mixed/a.npy").touch()
    Path("mixed/a.parquet").touch()
    for own, width in (("a", 2), ("b", 3)):
        np.save(f"unlike/{own}.npy", np.ones((2, width), np.float32))
    with pytest.raises(DataError, match=text):
        open_source(name)


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=6), size=st.integers(1, 12), data=st.data())
@settings(max_examples=40)
def test_chunks_are_whole_and_in_order(sizes: list[int], size: int, data: st.DataObject) -> None:
    """However files are cut: all samples once, in order, and all chunks but the last full."""
    root = Path("/dev/shm" if Path("/dev/shm").is_dir() else ".") / f"ray_ft_chunks_{os.getpid()}"
    root.mkdir(exist_ok=True)
    n_samples, blocks = sum(sizes), []
    values = np.arange(2 * n_samples).reshape(n_samples, 2)
    for i, part in enumerate(np.split(values, np.cumsum(sizes)[:-1])):
        np.savez(root / f"{i}.npz", part)  # of no samples, too
        blocks.append(Block(str(root / f"{i}.npz"), len(part), (2,), "int64"))
    start = data.draw(st.integers(0, n_samples))
    stop = data.draw(st.integers(start, n_samples))
    chunks = list(read_chunks(Source("some", tuple(blocks), ()), start, stop, size))
    shutil.rmtree(root)
    assert [len(chunk) for chunk in chunks[:-1]] == [size] * (len(chunks) - 1)
    joined = np.concatenate([values[:0], *chunks])
    np.testing.assert_array_equal(joined, values[start:stop])


def test_lines_tell_the_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, text = iter([0.0, 4.0, 11.0]), io.StringIO()
    monkeypatch.setattr("ray_ft.prediction.pace.time.monotonic", lambda: next(clock))
    with show_pace(Console(file=text), 1000, done=400) as advance:
        advance(80)
        advance(140)
    assert text.getvalue() == "[620/1,000 samples, 20 a second, about 19 s left]\n"


def write_parquet(path: str, column: list, group_size: int = 30) -> None:
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pa.table({"x": column, "id": range(len(column))}), path, row_group_size=group_size)


def test_columns_of_parquet_are_read_in_order(run: Path) -> None:
    ensemble, many = Ensemble.load(run), write_many()
    Path("in").mkdir()
    write_parquet("in/0.parquet", many[:100].astype(float).tolist())
    write_parquet("in/1.parquet", many[100:].astype(float).tolist())
    source = open_source("in", "x")
    assert [block.n_samples for block in source.blocks] == [30, 30, 30, 10, 30, 20]
    predict_to_folder(ensemble, source, Path("out"), chunk_size=32)
    check_folder(Path("out"), ensemble.predict(many))
    with pytest.raises(DataError, match=r"a table needs ::columns out of x, id, got 'y' for in/0\.parquet"):
        open_source("in", "y")
    assert open_source("in", "id").shape == (1,)
    for bad in (None, [1.0]):
        write_parquet("bad.parquet", [*many[:40].tolist(), bad, *many[:9].tolist()])
        with pytest.raises(DataError, match=r"inputs must be whole, of one shape, .*, got bad\.parquet"):
            list(read_chunks(open_source("bad.parquet", "x"), 0, 50, 16))
    write_parquet("bad.parquet", [*many[:40].tolist(), None])
    with pytest.raises(DataError, match=r"got bad\.parquet: a sample, or a list in it, is missing"):
        list(read_chunks(open_source("bad.parquet", "x"), 0, 41, 16))
    for bad in (None, []):
        write_parquet("bad.parquet", [bad, *many[:40].tolist()])
        with pytest.raises(
            DataError, match=r"samples must be lists .* without nulls, got another in row 0 of bad\.parqu"
        ):
            open_source("bad.parquet", "x")
    write_parquet("bad.parquet", [*many[:40].tolist(), [None] * 6])
    with pytest.raises(DataError, match=r"got NaN or infinity in sample 40 of bad\.parquet"):
        predict_to_folder(ensemble, open_source("bad.parquet", "x"), Path("other"))


def load_diffraction(run: Path) -> Ensemble:
    """The toy's ensemble, with a card that says structures; it can check them, not predict."""
    ensemble = Ensemble.load(run)
    return replace(
        ensemble, card=ensemble.card.model_copy(update={"layout": "diffraction", "input_shape": (1, 128, 128)})
    )


def test_a_value_that_is_no_pixel_is_named(run: Path) -> None:
    structures = np.zeros((6, 128, 128), np.int8)
    structures[3, 5, 5] = 2
    np.save("structures.npy", structures)
    error = find_bad(load_diffraction(run), structures, open_source("structures.npy"), 0)
    assert str(error) == "structures must be 0 and 1, got values from 0 to 2 in sample 3 of structures.npy"


def test_nested_and_flattened_structures_of_parquet(run: Path) -> None:
    write_parquet("nested.parquet", np.arange(24).reshape(4, 3, 2).tolist())
    (chunk,) = read_chunks(open_source("nested.parquet", "x"), 1, 4, 9)
    np.testing.assert_array_equal(chunk, np.arange(24).reshape(4, 3, 2)[1:])
    ensemble = load_diffraction(run)
    for n_values, dtype, shape in ((2048, "uint8", (128, 16)), (16384, "int64", (1, 128, 128)), (7, "int64", (7,))):
        flat = Source("f", (Block("f.parquet", 1, (n_values,), dtype),), ())
        assert arrange(flat, ensemble) == shape


def test_zarr_arrays_are_read(run: Path) -> None:
    zarr = pytest.importorskip("zarr")
    ensemble, many = Ensemble.load(run), write_many()
    store = zarr.open_group("store.zarr", mode="w")
    for key in ("x", "w"):
        store.create_array(key, data=many, chunks=(20, 6))
    with pytest.raises(DataError, match=r"needs ::key out of w, x, got none"):
        open_source("store.zarr")
    predict_to_folder(ensemble, open_source("store.zarr::x"), Path("out"), chunk_size=32)
    check_folder(Path("out"), ensemble.predict(many))


def read_parts(output: Path) -> dict[str, np.ndarray]:
    from pyarrow import parquet

    tables = [parquet.read_table(path) for path in sorted(output.glob("part-*.parquet"))]
    return {
        name: np.concatenate([np.array(table[name].to_pylist()) for table in tables]) for name in tables[0].column_names
    }


def run_here(worker: dict, parts: list[tuple[int, int]], compute: ComputeSection) -> Iterator[dict]:
    """The parts in this process, one after the other, as Ray Data hands them to an actor."""
    predictor = PartPredictor(**worker, device="cpu")
    for start, stop in parts:
        said = predictor({"start": np.array([start]), "stop": np.array([stop])})
        yield {key: column[0].item() for key, column in said.items()}


def list_times(output: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in output.glob("part-*")}


def test_parts_are_kept_and_made_anew_where_they_are_damaged(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_ft.prediction.on_ray.run_parts", run_here)
    ensemble, many, output = Ensemble.load(run), write_many(), Path("out")

    def predict() -> Streamed:
        return predict_on_ray(ensemble, run, open_source("many.npy"), output, ["mean", "flag"], part_size=40)

    broken = many.copy()
    broken[130, 0] = np.inf
    np.save("many.npy", broken)
    with pytest.raises(DataError, match=r"NaN or infinity in sample 130 of many\.npy; other parts are kept"):
        predict()
    times = list_times(output)
    with pytest.raises(DataError, match="sample 130"):
        predict()
    assert list_times(output) == times
    assert sorted(times) == [f"part-{i:012d}.parquet" for i in (0, 40, 80)]
    assert not (output / "done.json").exists()
    (output / ".part-cut-off.parquet").touch()
    np.save("many.npy", many)
    with pytest.raises(DataError, match=r"inputs: other files, or changed since, in .*many\.npy"):
        predict()
    output = Path("again")
    assert predict().n_samples == 150
    times = list_times(output)
    lost = output / "part-000000000040.parquet"
    lost.write_bytes(lost.read_bytes()[:-20])
    (output / ".part-cut-off.parquet").touch()
    assert predict().n_before == 110
    assert [name for name, at in list_times(output).items() if times[name] != at] == [lost.name]
    assert not list(output.glob(".part*"))
    expected = ensemble.predict(many)
    assert json.loads((output / "done.json").read_text())["n_flagged"] == expected.flag.sum()
    np.testing.assert_allclose(read_parts(output)["mean"], expected.mean, rtol=1e-5, atol=1e-6)
    with pytest.raises(DataError, match="form: parquet there, npy now"):
        predict_to_folder(ensemble, open_source("many.npy"), output, ["mean", "flag"])


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
def test_ray_data_writes_parts_in_order(run: Path) -> None:
    """A part that is lost is done again, and no other."""
    ensemble, many = Ensemble.load(run), write_many()
    write_parquet("many.parquet", many.astype(float).tolist())
    source, output = open_source("many.parquet", "x"), Path("out")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray_ft.prediction.on_ray.run_parts", run_here)
        predict_on_ray(ensemble, run, source, output, part_size=40)
    lost, kept = output / "part-000000000060.parquet", output / "part-000000000000.parquet"
    lost.unlink()
    time_of_kept = kept.stat().st_mtime_ns
    found = predict_on_ray(ensemble, run, source, output, part_size=40)
    assert (found.n_samples, found.n_before) == (150, 90)
    assert kept.stat().st_mtime_ns == time_of_kept
    assert [path.name for path in sorted(output.glob("part*"))] == [f"part-{i:012d}.parquet" for i in (0, 60, 120)]
    parts, expected = read_parts(output), ensemble.predict(many)
    np.testing.assert_array_equal(parts.pop("sample"), np.arange(150))
    assert list(parts) == list(QUANTITIES)
    for name, values in parts.items():
        np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-5, atol=1e-6)
