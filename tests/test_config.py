"""The config: what it means, and every problem at once."""

import re
from pathlib import Path

import pytest

from ray_ft.config import AS_WRITTEN, Config, Range, load_config
from ray_ft.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    (folder / "c.yaml").write_text("model: {checkpoint: w.pt}\ndata: {inputs: x.npy, targets: y.npy}\n" + text)
    return folder / "c.yaml"


@pytest.mark.parametrize("section", ["model", "data", "cv", "search", "compute", "ensemble", "loggers"])
def test_every_key_says_what_it_is(section: str) -> None:
    kind = Config.model_fields[section].annotation
    texts = {name: field.description or "" for name, field in kind.model_fields.items()}
    assert texts
    assert not {name: text for name, text in texts.items() if not text.endswith(".") or len(text.split()) < 4}


def test_all_problems_are_listed_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "cv: {folds: 1, sedes: 3}\ncompute: {packing: both}\nsearch:\n")
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    text = str(caught.value)
    assert "cv.folds: it should be greater than or equal to 2, got 1" in text
    assert "cv.sedes: unknown key; did you mean seeds?" in text
    assert "compute.packing: it should be 'auto', 'packed' or 'looped', got 'both'" in text
    assert "search: it should be a section of keys, got null" in text


def test_a_value_under_training_holds_for_every_strategy(tmp_path: Path) -> None:
    config = load_config(str(write(tmp_path, "training: {lr: 0.001, epochs: 7}\n")))
    gradient = [strategy for strategy in config.selected.values() if strategy.stages[0].fit == "gradient"]
    assert len(gradient) == 4
    for strategy in gradient:
        assert (strategy.stages[0].lr, strategy.stages[0].epochs) == (Range(0.001, 0.001, True), Range(7, 7, True))


@pytest.mark.parametrize(("decoder", "frozen"), [(True, True), (False, False)])
def test_freeze_flags_describe_a_strategy(tmp_path: Path, decoder: bool, frozen: bool) -> None:
    text = f"training: {{freeze_encoder: true, freeze_decoder: {str(decoder).lower()}}}\n"
    (stage,) = load_config(write(tmp_path, text)).selected[AS_WRITTEN].stages
    assert ("dec.*" in stage.freeze) == frozen
    assert "*stage1*" in stage.freeze


def test_overrides_replace_and_one_value_is_a_range(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, ""), {"strategies.head.lr": 0.01, "cv.strategies": ["head"]})
    assert config.selected["head"].stages[0].lr == Range(0.01, 0.01, True)


def test_a_range_runs_upwards(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finite low <= high must hold, got \[0.1, 0.01\]"):
        load_config(write(tmp_path, "strategies: {head: {lr: [0.1, 0.01]}}\n"))


@pytest.mark.parametrize("value", ["true", "[0, true]", "{low: 0.1, high: true}"])
def test_a_range_has_numbers(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it should be a number, got true or false"):
        load_config(write(tmp_path, f"strategies: {{head: {{lr: {value}}}}}\n"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cv.folds", True, "cv.folds: it should be a number, got true"),
        ("training.grad_clip", False, "training.grad_clip: it should be a number, got false"),
        ("data.wavelengths_nm", [True, 700], "data.wavelengths_nm: it should be a number, got true"),
        ("strategies.full.adapter", {"kind": "lora", "rank": True}, "adapter.rank: it should be a number, got true"),
        ("strategies.full.adapter", True, "adapter: it should be lora, scale, or a section with a kind, got True"),
        ("strategies.full.lr_scale", True, "lr_scale: it should be a section of keys, got True"),
        ("strategies.full.lr_scale", {"*": True}, "it should be a number, got true or false"),
        ("strategies.full.lr_scale", {"*": 1e40}, "it should be less than or equal to 1000000"),
        ("strategies.full.views", 33, "views: it should be at most the views that data.symmetry gives, 32, got 33"),
        ("training.views", 1000, "training.views: it should be at most the views that data.symmetry gives, 32"),
        ("strategies", "atuo", "strategies: it should be a section of strategies by name, or auto, got 'atuo'"),
    ],
)
def test_what_is_no_such_value_is_refused(key: str, value: object, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load_config(write(tmp_path, ""), {key: value})


@pytest.mark.parametrize(
    ("path", "remedy"),
    [
        ("a/b.py:f", "; write a.b:f, and start in the folder that holds a"),
        ("net.py:build", "; write net:build, and start in the folder that holds net.py"),
        ("/a/b.py:f", ""),
        ("a.b", ""),
        ("", ""),
    ],
)
@pytest.mark.parametrize("key", ["model.factory", "data.factory", "data.collate"])
def test_what_names_no_code_is_told_how_a_module_is_named(tmp_path: Path, key: str, path: str, remedy: str) -> None:
    message = f"{key}: it should be package.module:callable, got {path!r}{remedy}"
    with pytest.raises(ConfigError, match=re.escape(message) + "$"):
        load_config(write(tmp_path, ""), {key: path})


def test_a_loss_in_a_file_is_told_how_a_module_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.loss: .*got 'own/losses\.py:f'; write own\.losses:f, and start"):
        load_config(write(tmp_path, ""), {"training.loss": "own/losses.py:f"})


def test_where_it_is_computed_is_not_what_it_is(tmp_path: Path) -> None:
    path = write(tmp_path, "")
    assert load_config(path).identity() == load_config(path, {"compute.cpus_per_candidate": 7}).identity()
    assert load_config(path).identity() != load_config(path, {"training.precision": "bf16"}).identity()


def test_strategies_of_ones_own_network_are_all_that_there_are(tmp_path: Path) -> None:
    sections = ("model: {factory: nets:build}", "data: {inputs: x.npy, targets: y.npy}")
    own = "strategies: {full: {train: fc.*}, b: {train: [b.*]}}"
    (tmp_path / "c.yaml").write_text("\n".join((*sections, own)))
    found = load_config(tmp_path / "c.yaml").selected
    assert list(found) == ["full", "b"]
    stage = found["full"].stages[0]
    assert (stage.train, stage.lr, stage.epochs) == (("fc.*",), None, None), (
        "nothing of the shipped strategy of that name"
    )


def test_shipped_strategies_that_are_named_or_changed_stay_for_ones_own_network(tmp_path: Path) -> None:
    named = "cv: {strategies: [full, head]}"
    sections = ("model: {factory: nets:build}", "data: {inputs: x.npy, targets: y.npy}", named)
    (tmp_path / "c.yaml").write_text("\n".join((*sections, "strategies: {full: {lr: 0.5}}")))
    found = load_config(tmp_path / "c.yaml").selected
    assert found["full"].stages[0].train == ("*",)
    assert found["head"].stages[0].head_dropout == Range(0.1, 0.2)


def test_a_shipped_strategy_is_changed_unless_it_says_what_it_trains(tmp_path: Path) -> None:
    shipped = load_config(write(tmp_path, "")).selected["head"].stages[0]
    changed = load_config(write(tmp_path, "strategies: {head: {lr: 0.5}}")).selected["head"].stages[0]
    assert changed == shipped.model_copy(update={"lr": Range(0.5, 0.5, True)})
    own = load_config(write(tmp_path, "strategies: {head: {train: [head.*]}}")).selected
    assert own["head"].stages[0].head_dropout is None
    assert {"full", "ridge"} < own.keys()


def test_names_of_strategies_are_a_list_also_for_ones_own_network(toy_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"cv\.strategies: it should be a list, got 5"):
        load_config("toy.yaml", {"cv.strategies": 5})
