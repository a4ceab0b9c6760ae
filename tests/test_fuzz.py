"""Whatever stands in a file, a reader gives what is right or says in one text what is wrong: it does not raise anything
else, hang, run code, or reach past its folder.

`RAY_FT_FUZZ=20 pytest tests/test_fuzz.py` tries twenty times as many inputs, and others than the day before;
`pytest -m slow tests/test_fuzz.py` gives 1,000 to the commands, by seeds that are kept.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from data_files import WRITERS, make_frame, write_images
from hostile import JUNK, mutate, mutate_tree, refusing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save as save_tensors

from ray_ft import Summary
from ray_ft.config import load_config, parse_yaml, read_yaml
from ray_ft.data.samples import load_samples, read_array
from ray_ft.data.sources import read_inputs as read_inputs_of
from ray_ft.domains.raw import DOMAIN as RAW
from ray_ft.ensemble import Ensemble
from ray_ft.errors import ConfigError, DataError, EnsembleError, RunFolderError, WeightsError
from ray_ft.files import memory
from ray_ft.files.writing import write_json, write_record
from ray_ft.fitting.checkpoint import load_checkpoint
from ray_ft.models import read_weights
from ray_ft.objectives import find_objective
from ray_ft.prediction.sources import open_source, read_chunks
from ray_ft.prediction.streams import predict_to_archive, predict_to_folder
from ray_ft.report.terminal import render_summary
from ray_ft.results.records import (
    load_blind,
    load_history,
    load_judged,
    load_members,
    load_plan,
    load_predictions,
    load_provenance,
    load_result,
    load_splits,
)
from ray_ft.runs.folder import RunFolder
from ray_ft.split.sharing import read_splits

DEPTH = int(os.environ.get("RAY_FT_FUZZ", "1"))
CONFIGS = (
    *(Path(__file__).parents[1] / "configs").glob("*.yaml"),
    Path(__file__).parents[1] / "ray_ft/domains/diffraction/strategies.yaml",
)
KEYS = (
    *("name", "model.params", "model.factory", "model.checkpoint", "data.inputs", "data.symmetry"),
    *("cv.folds", "cv.seed", "cv.strategies", "training.lr", "training.epochs", "search.reduction_factor"),
    *("compute.device", "ensemble.level", "strategies.top", "strategies.top.lr", "strategies.top.stages"),
)


def tries(n: int) -> Any:
    health = (HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large)
    return settings(max_examples=n * DEPTH, suppress_health_check=health, derandomize=DEPTH == 1)


@pytest.fixture(autouse=True)
def closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A working folder of the test's own, two levels down; nothing may appear above it."""
    inner = tmp_path / "deep" / "inner"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    yield
    assert {path.name for path in (tmp_path, tmp_path / "deep")} | {"inner"} >= {
        path.name for folder in (tmp_path, tmp_path / "deep") for path in folder.iterdir()
    }


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, (str(Path("exploded").absolute()), "w")


# ---- configs

leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.sampled_from(JUNK[:9])
)
nested = st.recursive(leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner))


def read_config(content: bytes) -> None:
    Path("c.yaml").write_bytes(content)
    with refusing():
        config = load_config("c.yaml")
        assert config.selected
        json.dumps(config.identity(), allow_nan=False)


@tries(40)
@given(st.data())
def test_mutated_configs(data: st.DataObject) -> None:
    read_config(data.draw(mutate(data.draw(st.sampled_from(CONFIGS)).read_bytes())))


@tries(30)
@given(st.one_of(st.binary(), st.text().map(str.encode), nested.map(lambda tree: yaml.safe_dump(tree).encode())))
def test_arbitrary_configs(content: bytes) -> None:
    read_config(content)


@tries(60)
@given(st.one_of(st.sampled_from(KEYS), st.text(max_size=12)), st.one_of(st.sampled_from(JUNK), nested))
def test_arbitrary_overrides(key: str, value: Any) -> None:
    with refusing():
        assert load_config(None, {key: value}).selected


@tries(40)
@given(st.data())
def test_trees_of_values_in_a_config(data: st.DataObject) -> None:
    tree = yaml.safe_load(data.draw(st.sampled_from(CONFIGS)).read_text(encoding="utf-8"))
    with contextlib.suppress(yaml.YAMLError):
        read_config(yaml.safe_dump(data.draw(mutate_tree(tree))).encode("utf-8", "replace"))


def laugh(first: str, line: str) -> str:
    """Write ten lines of which each has nine times the one before."""
    return first + "".join(line.format(new=chr(98 + i), old=",".join(["*" + chr(97 + i)] * 9)) for i in range(10))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (laugh("a: &a [x]\n", "{new}: &{new} [{old}]\n"), "10,000 values"),
        (laugh("a: &a {q: 1}\n", "{new}: &{new} {{<<: [{old}]}}\n"), "10,000 values"),
        ("a: &a [*a]", "30 levels"),
        ("[" * 100_000, "nested too deeply"),
        ("{a: " * 3000, "nested too deeply"),
        ("a: " + "9" * 5000, "40 digits"),
        ("a: 0x" + "f" * 5000, "40 digits"),
        ("a: 2024-99-99", "quote a text"),
        ("a: !!bool maybe", "maybe"),
        ("a: !!python/object/apply:os.system [exit]", "python/object"),
        ("a: !!binary aGk=", "binary"),
        ("data: 1\ndata: 2", "'data' twice in line 1"),
        ("1: 2", "a key must be a text"),
        ("a\0b", "special characters"),
        ("# " + "x" * 200_000, "131,072 characters"),
        ("a: *nowhere", "undefined alias"),
    ],
)  # fmt: skip
def test_yaml_bombs_are_refused(text: str, reason: str) -> None:
    Path("c.yaml").write_text(text)
    with pytest.raises(ConfigError, match=reason):
        read_yaml(Path("c.yaml"))
    with pytest.raises(ConfigError, match="value of --set"):
        parse_yaml(text, "the value of --set must be YAML")


@pytest.mark.parametrize("path", ["a\0b", "a" * 3000, "/dev/zero", ".", "missing"])
def test_paths_that_are_no_files(path: str) -> None:
    for read in (
        load_config,
        read_array,
        open_source,
        lambda path: read_weights(Path(path)),
        Summary.load,
        Ensemble.load,
    ):
        with refusing():
            read(path)
        with refusing():
            read(f"{path}.npy")


# ---- arrays


def write_npy(descr: object, shape: str, data: bytes = b"", version: int = 1, order: bool = False) -> bytes:
    text = f"{{'descr': {descr!r}, 'fortran_order': {order}, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY" + bytes((version, 0)) + len(text).to_bytes(2 if version == 1 else 4, "little") + text + data


def zip_up(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return stream.getvalue()


PLAIN_TYPES = ("<f4", "<U0", "<M8[ns]", ">c16", "|b1", "<f2", "<f16")
PLAIN = write_npy("<f4", "(4, 3)", np.arange(12, dtype="<f4").tobytes())
ARRAYS = (
    PLAIN,
    write_npy("<f8", "(4, 3)", bytes(96), 2, order=True),
    write_npy("<U3", "(4,)", bytes(48)),
    zip_up({"x.npy": PLAIN, "y.npy": PLAIN}),
    zip_up({"x.npy": PLAIN}, zipfile.ZIP_STORED),
    zip_up({"x.npy": PLAIN}, zipfile.ZIP_LZMA),
    zip_up({"x.npy": PLAIN}, zipfile.ZIP_BZIP2),
)


def read_inputs(content: bytes) -> None:
    for name in ("a.npy", "a.npz"):
        Path(name).write_bytes(content)
        for source in (name, f"{name}::x"):
            with refusing():
                assert isinstance(read_array(source), np.ndarray)
            with refusing():
                load_samples(source, source, RAW, source)
            with refusing():
                opened = open_source(source)
                for chunk in read_chunks(opened, 0, min(len(opened), 8), 3):
                    assert chunk.shape[1:] == opened.shape


@tries(60)
@given(st.sampled_from(ARRAYS).flatmap(mutate))
def test_mutated_arrays(content: bytes) -> None:
    read_inputs(content)


@tries(40)
@given(
    st.sampled_from((*PLAIN_TYPES, "|O", "|V0", "V9999999999", [("a", "<f4")], "x", 3)),
    st.lists(st.one_of(st.integers(-2, 5), st.sampled_from((2**31, 2**62, 10**30, "True", "1.5", "'a'"))), max_size=34),
    st.binary(max_size=60),
    st.sampled_from((1, 2, 3, 7)),
    st.booleans(),
)  # fmt: skip
def test_headers_that_lie(descr: Any, shape: list[Any], data: bytes, version: int, order: bool) -> None:
    content = write_npy(descr, f"({', '.join(map(str, shape))}{',' * bool(shape)})", data, version, order)
    read_inputs(content)
    read_inputs(zip_up({"x.npy": content}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (zip_up({"x.npy": write_npy("<f8", "(10000000000000,)")}), "needs 80,000.0 GB of memory, of which"),
        (write_npy("<f8", "(10000000000000,)"), "80000000000000 bytes, and 0 follow"),
        (write_npy("|O", "(1,)", pickle.dumps(Bomb())), "Python objects"),
        (zip_up({"x.npy": write_npy("|O", "(1,)", pickle.dumps(Bomb()))}), "Python objects"),
        (write_npy("<f8", "(-1,)", bytes(80)), "shape"),
        (pickle.dumps(Bomb()), "magic string"),
        (zip_up({"x.npz": zip_up({"x.npy": PLAIN})}), "got none"),
        (zip_up({}), "got none"),
        (zip_up({"../../x.npy": PLAIN, "/etc/passwd.npy": PLAIN}), "out of ../../x, /etc/passwd"),
        (b"\x93NUMPY\x01\x00\xff\x00" + b"(" * 300, "EOF"),
    ],
)
def test_array_bombs_are_refused(content: bytes, reason: str) -> None:
    Path("bomb.npz").write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_array("bomb.npz")
    assert not Path("exploded").exists()


def test_an_array_larger_than_memory_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    zeros = write_npy("<f4", "(1000, 2500)", bytes(10**7))
    Path("small.npz").write_bytes(zip_up({"x.npy": zeros}))
    Path("plain.npy").write_bytes(zeros)
    assert Path("small.npz").stat().st_size < 20_000
    monkeypatch.setattr(memory, "find_available", lambda: 10**6)
    for name in ("small.npz", "plain.npy"):
        with pytest.raises(DataError, match=r"needs 10\.0 MB of memory, of which 1\.0 MB are available"):
            read_array(name)
    with pytest.raises(DataError, match=r"needs 10\.0 MB"):
        open_source("small.npz")
    assert len(open_source("plain.npy")) == 1000, "which is read a part at a time"


def test_predictions_larger_than_memory_go_into_a_folder(
    ensemble_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.save("x.npy", np.zeros((1000, 6), np.float32))
    ensemble = Ensemble.load(ensemble_folder)
    monkeypatch.setattr(memory, "find_available", lambda: 10**4)
    with pytest.raises(DataError, match=r"got 1,000 samples: it needs 0\.0 MB of memory.*give --out as a folder"):
        predict_to_archive(ensemble, open_source("x.npy"), Path("y.npz"), ["mean"])
    assert predict_to_folder(ensemble, open_source("x.npy"), Path("y"), ["mean"]).n_samples == 1000


# ---- weights

STATE = {"a.weight": torch.arange(12.0).reshape(4, 3), "b": torch.arange(5), "c": torch.ones(2, dtype=torch.bfloat16)}


def pack(content: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream, **options)
    return stream.getvalue()


def repack(content: bytes, pickled: bytes) -> bytes:
    """Put another pickle into a checkpoint."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    return zip_up(
        {name: pickled if name.endswith("data.pkl") else own for name, own in members.items()}, zipfile.ZIP_STORED
    )


PICKLED = zipfile.ZipFile(io.BytesIO(pack(STATE))).read("archive/data.pkl")
WEIGHTS = (
    mutate(save_tensors(STATE)).map(lambda content: (".safetensors", content)),
    mutate(pack({"model": STATE})).map(lambda content: (".pt", content)),
    mutate(pack(STATE, _use_new_zipfile_serialization=False)).map(lambda content: (".pt", content)),
    mutate(PICKLED).map(lambda pickled: (".pth", repack(pack(STATE), pickled))),
)


@tries(100)
@given(st.one_of(*WEIGHTS))
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_mutated_weights(file: tuple[str, bytes]) -> None:
    path = Path(f"w{file[0]}")
    path.write_bytes(file[1])
    with refusing():
        assert all(tensor.isfinite() is not None for tensor in read_weights(path).tensors.values())
    assert load_checkpoint(path) is None or isinstance(load_checkpoint(path), dict)


def write_safetensors(header: Any, data: bytes = bytes(64), length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor_at(start: int, stop: int, shape: list[int]) -> dict[str, Any]:
    return {"dtype": "F32", "shape": shape, "data_offsets": [start, stop]}


@pytest.mark.parametrize(
    "content",
    [
        write_safetensors({}, length=2**63),
        write_safetensors({"a": tensor_at(0, 64, [16]), "b": tensor_at(0, 64, [16])}),
        write_safetensors({"a": tensor_at(0, 2**62, [2**60])}),
        write_safetensors({"a": tensor_at(0, 64, [2**32, 2**32])}),
        write_safetensors({"a": tensor_at(64, 0, [16])}),
        write_safetensors(b"[" * 10_000),
        write_safetensors({"a": {"dtype": "F8_E8M0", "shape": [64], "data_offsets": [0, 64]}, "__metadata__": 3}),
    ],
)
def test_safetensors_that_lie_are_refused(content: bytes) -> None:
    Path("w.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="must be weights alone"):
        read_weights(Path("w.safetensors"))


def test_weight_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for number, content in enumerate(
        (pickle.dumps(Bomb()), pack({"model": Bomb()}), repack(pack(STATE), pickle.dumps(Bomb())))
    ):
        path = Path(f"bomb{number}.pt")
        path.write_bytes(content)
        with pytest.raises(WeightsError, match="must be weights alone"):
            read_weights(path)
        assert load_checkpoint(path) is None
    assert not Path("exploded").exists()
    for content in ({"a": torch.ones(1).expand(10**9, 10**6)}, {"a": torch.ones(3, device="meta")}, {1: torch.ones(2)}):
        Path("odd.pt").write_bytes(pack(content))
        with pytest.raises(WeightsError):
            read_weights(Path("odd.pt"))
    monkeypatch.setattr(memory, "find_available", lambda: 10**6)
    Path("large.pt").write_bytes(zip_up({"archive/data/0": bytes(10**7)}))
    with pytest.raises(WeightsError, match=r"needs 10\.0 MB of memory, of which 1\.0 MB are available"):
        read_weights(Path("large.pt"))


# ---- run folders


@pytest.fixture
def copied(toy_run: Path) -> Path:
    return Path(shutil.copytree(toy_run, "run"))


def read_run(root: Path) -> None:
    run = RunFolder(root)
    with refusing():
        load_provenance(run)
    with refusing():
        render_summary(Summary.load(root), run)
    with refusing():
        load_blind(run, find_objective("mse"))
    with refusing():
        splits, (plan, _) = load_splits(run), load_judged(run)
        for spec in plan:
            assert run.candidate(spec.name).root.parent == run.candidates
            load_result(run, spec.name)
            load_history(run, spec.name, splits)
        for spec in plan:
            load_members(run, spec.name)
            load_predictions(run, spec.name)


FILES = (
    *("summary.json", "verdicts.json", "plan.json", "splits.json", "provenance.json", "blind.npz"),
    *(f"candidates/top-000/{name}" for name in ("result.json", "history.npz", "oof.npz", "members.safetensors")),
)
RECORDS = tuple(name for name in FILES if name.endswith(".json"))


@tries(60)
@given(data=st.data())
def test_mutated_run_folders(data: st.DataObject, copied: Path) -> None:
    path = copied / data.draw(st.sampled_from(FILES))
    before = path.read_bytes()
    path.write_bytes(data.draw(mutate(before) | st.binary(max_size=20)))
    try:
        read_run(copied)
    finally:
        path.write_bytes(before)


@tries(60)
@given(data=st.data())
def test_tampered_records(data: st.DataObject, copied: Path) -> None:
    """With digests that are right again."""
    path = copied / data.draw(st.sampled_from(RECORDS))
    before = path.read_text()
    content = json.loads(before)
    del content["sha256"]
    changed = data.draw(mutate_tree(content))
    write_record(path, changed) if isinstance(changed, dict) else write_json(path, changed)
    try:
        read_run(copied)
    finally:
        path.write_text(before)


@tries(40)
@given(
    name=st.sampled_from(("losses", "inner", "predictions")),
    shape=st.lists(st.integers(0, 4), max_size=6),
    dtype=st.sampled_from(("f4", "f8", "i8", "c16", "U3", "M8[s]")),
)
def test_tampered_arrays_of_a_run(name: str, shape: list[int], dtype: str, copied: Path) -> None:
    for file in ("history.npz", "oof.npz"):
        np.savez(copied / "candidates/top-000" / file, **{name: np.zeros(shape, dtype)})
    read_run(copied)


@pytest.mark.parametrize("strategy", ["../../../x", "/etc", "a/b", "..", "", "a\0", "a" * 300, "~", "top\n"])
def test_names_out_of_files_stay_in_their_folder(strategy: str, copied: Path) -> None:
    content = json.loads((copied / "plan.json").read_text())
    del content["sha256"]
    content["candidates"][0]["strategy"] = strategy
    write_record(copied / "plan.json", content)
    with pytest.raises(RunFolderError, match="a candidate's name is its strategy's and a number"):
        load_plan(RunFolder(copied))
    with pytest.raises(RunFolderError, match="a candidate's name"):
        load_members(RunFolder(copied), f"{strategy}-000")
    read_run(copied)


# ---- ensembles


def rehash(folder: Path) -> None:
    """Let the card name the files as they are."""
    card = json.loads((folder / "card.json").read_text())
    card["files"] = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in card["files"]}
    (folder / "card.json").write_text(json.dumps(card))


def use_ensemble(folder: Path) -> None:
    with refusing(), np.errstate(all="ignore"):
        ensemble = Ensemble.load(folder)
        ensemble.predict(np.zeros((2, *ensemble.card.input_shape)))


TENSORS = ("backbone.safetensors", "members.safetensors", "calibration.safetensors")


@pytest.fixture
def ensemble_folder(toy_run: Path) -> Path:
    return Path(shutil.copytree(toy_run / "ensemble", "ensemble"))


@contextlib.contextmanager
def restored(folder: Path) -> Iterator[None]:
    """Put the files of a folder back as they were."""
    before = {path: path.read_bytes() for path in folder.iterdir()}
    try:
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)


@tries(40)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_mutated_ensembles(data: st.DataObject, ensemble_folder: Path) -> None:
    path = ensemble_folder / data.draw(st.sampled_from((*TENSORS, "network.json", "card.json")))
    with restored(ensemble_folder):
        path.write_bytes(data.draw(mutate(path.read_bytes())))
        if path.name != "card.json":
            rehash(ensemble_folder)
        use_ensemble(ensemble_folder)


@tries(100)
@given(data=st.data())
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_tampered_ensembles(data: st.DataObject, ensemble_folder: Path) -> None:
    path = ensemble_folder / data.draw(st.sampled_from(("network.json", "card.json")))
    with restored(ensemble_folder):
        path.write_text(json.dumps(data.draw(mutate_tree(json.loads(path.read_text())))))
        if path.name == "network.json":
            rehash(ensemble_folder)
        use_ensemble(ensemble_folder)


def step(name: str, *args: Any) -> list[Any]:
    return [name, list(args), {}]


GROW = [step("mul", {"value": i}, {"value": i}) for i in range(1, 80)]


@pytest.mark.parametrize(
    "steps",
    [
        [step("aten.full.default", [10**6, 10**7], 1.0)],
        [step("aten.repeat.default", {"value": 0}, [10**6, 10**6])],
        [step("aten.randn.default", [10**5, 10**6])],
        [step("mul", "a", 10**9)],
        [step("size_of", {"value": 0}, 1), *GROW],
        [step("mul", [1, 2], 10**9)],
        [step("floordiv", 1, 0)],
        [step("aten.__init__.default"), step("aten.name.upper"), step("aten.default.default")],
    ],
)  # fmt: skip
def test_programs_that_grow_without_end_are_refused(steps: list[Any], ensemble_folder: Path) -> None:
    network = json.loads((ensemble_folder / "network.json").read_text())
    steps = [*steps, *network["backbone"]["steps"]][:90]
    network["backbone"] = {"n_inputs": 1, "steps": steps, "output": [{"value": len(steps)}]}
    (ensemble_folder / "network.json").write_text(json.dumps(network))
    rehash(ensemble_folder)
    with pytest.raises(EnsembleError, match="must belong together"):
        Ensemble.load(ensemble_folder)


@pytest.mark.parametrize("changes", [{"input_shape": [10**6, 10**6]}, {"n_repeats": 10**18}, {"symmetry": ["spin"]}])
def test_cards_that_ask_for_too_much_are_refused(changes: dict[str, Any], ensemble_folder: Path) -> None:
    card = json.loads((ensemble_folder / "card.json").read_text())
    (ensemble_folder / "card.json").write_text(json.dumps(card | changes))
    with pytest.raises(EnsembleError, match="must belong together"):
        Ensemble.load(ensemble_folder)


def test_programs_nested_without_end_are_refused() -> None:
    deep: Any = []
    for _ in range(5000):
        deep = [deep]
    content = {"n_inputs": 1, "steps": [["aten.tanh.default", deep, {}]], "output": []}
    with pytest.raises(ValueError, match="a program has n_inputs, steps and output"):
        read_splits({"backbone": content, "batch_axes": [], "tails": {}}, {}, {})


# ---- requests and folders of predictions


@pytest.fixture(scope="module")
def toy_ensemble(toy_run: Path) -> Ensemble:
    return Ensemble.load(toy_run)


@tries(150)
@given(
    body=st.one_of(
        mutate(json.dumps({"inputs": [[1, 2.5], [3, 4]], "level": 0.9, "quantities": ["mean"]}).encode()),
        nested.map(lambda tree: json.dumps({"inputs": tree}).encode()),
        st.sampled_from(ARRAYS[:3]).flatmap(mutate),
        st.binary(),
    ),
    kind=st.sampled_from(("application/json", "application/x-npy", "text/plain", "")),
    parameters=st.dictionaries(st.sampled_from(("level", "quantities", "x")), st.text(max_size=5)),
)
def test_bodies_of_requests(body: bytes, kind: str, parameters: dict[str, str], toy_ensemble: Ensemble) -> None:
    pytest.importorskip("fastapi")
    from fastapi import HTTPException

    from ray_ft.serving.app import parse_request, read_content_type

    with refusing(), contextlib.suppress(HTTPException):
        parse_request(body, read_content_type({"content-type": kind}), parameters, toy_ensemble, 8)


@tries(40)
@given(data=st.data())
def test_folders_of_predictions(data: st.DataObject, ensemble_folder: Path) -> None:
    ensemble = Ensemble.load(ensemble_folder)
    np.save("x.npy", np.zeros((5, 6), np.float32))
    shutil.rmtree("out", ignore_errors=True)
    predict_to_folder(ensemble, open_source("x.npy"), Path("out"), ["mean"])
    path = Path("out") / data.draw(st.sampled_from(("plan.json", "done.json", "mean.npy")))
    if path.suffix == ".json" and data.draw(st.booleans()):
        content = json.dumps(data.draw(mutate_tree(json.loads(path.read_text())))).encode()
    else:
        content = data.draw(mutate(path.read_bytes()))
    path.write_bytes(content)
    with refusing():
        predict_to_folder(ensemble, open_source("x.npy"), Path("out"), ["mean"])


@pytest.mark.parametrize("filters", [[{"id": "pickle"}], [{"id": "delta", "dtype": "<f4"}, {"id": "pickle"}], "x", [3]])
def test_zarr_does_not_unpickle(filters: Any) -> None:
    Path("z.zarr").mkdir()
    sizes = {"shape": [4, 3], "chunks": [4, 3], "dtype": "<f4", "fill_value": 0, "order": "C"}
    metadata = {"zarr_format": 2, "compressor": None, "filters": filters, **sizes}
    Path("z.zarr/.zarray").write_text(json.dumps(metadata))
    Path("z.zarr/0.0").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError):
        list(read_chunks(open_source("z.zarr"), 0, 4, 4))
    assert not Path("exploded").exists()


@pytest.mark.parametrize("text", ["{", "[]", '{"zarr_format": 3}', "[" * 100_000, '{"zarr_format": 3, "node_type": 4}'])
def test_stores_that_are_none(text: str) -> None:
    Path("z.zarr").mkdir()
    Path("z.zarr/zarr.json").write_text(text)
    with pytest.raises(DataError):
        open_source("z.zarr")


@tries(30)
@given(data=st.data())
def test_mutated_parquet(data: st.DataObject) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.table({"x": pa.array([[1.0, 2.0]] * 20), "y": pa.array([1] * 20)}), "x.parquet")
    Path("x.parquet").write_bytes(data.draw(mutate(Path("x.parquet").read_bytes())))
    with refusing():
        opened = open_source("x.parquet", "x")
        list(read_chunks(opened, 0, min(len(opened), 100), 7))


@tries(25)
@pytest.mark.parametrize("write", WRITERS)
@given(data=st.data())
def test_mutated_files_of_data(write: Any, data: st.DataObject) -> None:
    shutil.rmtree("t.zarr", ignore_errors=True)
    inputs, targets, groups = write(make_frame())
    path = Path(inputs.partition("::")[0])
    if path.is_dir():
        path = data.draw(st.sampled_from(sorted(own for own in path.rglob("*") if own.is_file())))
    path.write_bytes(data.draw(mutate(path.read_bytes())))
    with refusing():
        load_samples(inputs, targets, RAW, groups, groups)
    with refusing():
        opened = open_source(inputs)
        list(read_chunks(opened, 0, min(len(opened), 100), 7))


@tries(40)
@given(data=st.data())
def test_mutated_images(data: st.DataObject) -> None:
    write_images()
    suffix = data.draw(st.sampled_from(("png", "jpeg", "tiff", "bmp", "webp")))
    Image.open("pictures/1.png").save("1.any", format=suffix)
    Path("pictures/1.png").write_bytes(data.draw(mutate(Path("1.any").read_bytes())))
    with refusing():
        read_inputs_of("images.csv::file")


# ---- whole commands


@pytest.mark.parametrize("n", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_hostile_inputs_of_commands(n: int, toy_run: Path, tmp_path: Path) -> None:
    """No traceback, no code, no process, no connection, and nothing written outside of the folder."""
    script = Path(__file__).with_name("hostile_commands.py")
    work = tmp_path.with_name(f"{tmp_path.name}-commands")
    work.mkdir()
    first = 0 if DEPTH == 1 else int.from_bytes(os.urandom(4))
    with (work / "log").open("w") as log:
        command = [sys.executable, str(script), str(toy_run), str(first), str(n)]
        ended = subprocess.run(command, cwd=work, stdout=log, stderr=subprocess.PIPE, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]
    said = (work / "log").read_text().splitlines()
    assert len(said) == n
    assert sum(" -> 2 error: " in line for line in said) > n / 2
