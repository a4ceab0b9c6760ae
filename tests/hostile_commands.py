"""Hostile inputs to the commands: `python hostile_commands.py RUN FIRST N` gives N of them, each by the seed FIRST + i.

RUN is a finished run with its data and config beside it. An audit hook of Python's hears of every process, connection
and import, and of every file that is written; the first thing that no command may do ends this with the case.
"""

import contextlib
import hashlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from hostile import JUNK, apply, edit_tree

from ray_ft.cli import main
from ray_ft.files.writing import write_record

PATIENCE_S = 120
FACTORIES = (
    *(
        "subprocess:run",
        "os:system",
        "posix:system",
        "builtins:exec",
        "builtins:eval",
        "pickle:loads",
        "runpy:run_path",
    ),
    *("shutil:rmtree", "webbrowser:open", "antigravity:x", "importlib:import_module", "torch:load", "torch.hub:load"),
    *("torch.utils.cpp_extension:load_inline", "numpy:load", "yaml:load", "net:os.system", "../stranger:build"),
    *("toy_network:torch", "toy_network:nn", "toy_network:__loader__", "", ":", "a" * 5000),
)
STRANGER = "stranger:build"  # would be imported, so no command may on behalf of a folder
PARAMS: tuple[Any, ...] = (
    *({"args": ["touch", "pwned"]}, {"command": "touch pwned"}, {"path": "bomb.pt"}, {"f": "bomb.pt"}),
    *({"width": 10**4}, {"width": -1}, {"x": [[]]}, {}, {}),
)
PATHS = (
    *("/etc/passwd", "../../x.npy", "/dev/zero", "bomb.npy", "bomb.npz", "bomb.pt", "a\0b", "http://127.0.0.1:9/x.npy"),
    *("x.npy::x", "~/x.npy", ".", "", "x" * 5000, "bomb.zarr", "bomb.parquet"),
    *("bomb.csv", "bomb.h5", "bomb.nc", "bomb.parquet::x", "images.csv::file", "x.npy::"),
)
OPERATIONS = (
    *("os:system", "builtins:exec", "subprocess:run", "torch:load", "stranger:build", "__import__"),
    *("aten.__class__.default", "aten.from_file.default", "aten.set_.source_Storage", "aten.add.__globals__"),
    "prim.device.default",
)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PROCESSES = (
    *("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "pty.spawn"),
    *("socket.connect", "socket.bind", "webbrowser.open", "urllib.Request"),
)
CHANGES = ("os.mkdir", "os.remove", "os.rename", "os.link", "os.symlink", "os.rmdir", "os.truncate", "shutil.rmtree")


class Bomb:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return open, ("pwned", "w")


class Hang(BaseException):
    """A command took too long."""


class Guard:
    """Notes what no command may do while it is watching."""

    def __init__(self, home: Path) -> None:
        self.home, self.watching = home, False
        self.seen: list[str] = []
        sys.addaudithook(self.hear)

    def hear(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.watching:
            return
        written = event == "open" and isinstance(args[2], int) and args[2] & WRITES
        if event in PROCESSES or (event == "import" and args[0] == "stranger"):
            self.seen.append(f"{event} {args}")
        elif (written or event in CHANGES) and isinstance(args[0], str | bytes | os.PathLike):
            path = Path(os.path.realpath(os.fsdecode(args[0])))
            if not path.is_relative_to(self.home) and path != Path("/dev/null"):
                self.seen.append(f"{event} {path}")


def plant() -> None:
    """Put into the working folder what must not run."""
    Path("stranger.py").write_text("open('pwned', 'w')\nfrom toy_network import Toy as build\n")
    bomb = pickle.dumps(Bomb())
    for name in ("bomb.pt", "bomb.npy", "bomb.npz", "bomb.parquet", "bomb.csv", "bomb.h5", "bomb.nc"):
        Path(name).write_bytes(bomb)
    Path("images.csv").write_text("file,n\nbomb.npy,1\n../x,2\n")
    np.save("objects.npy", np.array([Bomb()], dtype=object), allow_pickle=True)
    torch.save({"model": Bomb()}, "saved.pt")
    Path("bomb.zarr").mkdir()
    kind = {
        "zarr_format": 2,
        "shape": [2],
        "chunks": [2],
        "dtype": "|O",
        "fill_value": 0,
        "order": "C",
        "compressor": None,
    }
    Path("bomb.zarr/.zarray").write_text(json.dumps(kind | {"filters": [{"id": "pickle"}]}))
    Path("bomb.zarr/0").write_bytes(bomb)


def edit(tree: Any, draw: random.Random) -> Any:
    """Put junk in the place of some values."""
    return edit_tree(
        tree, [(draw.randrange(10_000), draw.choice((*JUNK, "drop", "double"))) for _ in range(draw.randint(1, 3))]
    )


def damage(path: Path, draw: random.Random) -> None:
    content = path.read_bytes()
    kinds = ("change", "insert", "drop", "truncate")
    changes = [(draw.choice(kinds), draw.randrange(len(content) + 1), draw.randbytes(draw.randint(1, 8)))
               for _ in range(draw.randint(1, 4))]  # fmt: skip
    path.write_bytes(apply(content, changes))


def make_config(draw: random.Random) -> list[str]:
    """A config of a stranger's, of whose own code there is none here."""
    tree = yaml.safe_load(Path("toy.yaml").read_text())
    tree["cv"]["strategies"] = ["top"]
    if draw.random() < 0.2:
        tree["data"] = {"factory": draw.choice(FACTORIES), "params": draw.choice(PARAMS)}
    tree["model"] = draw.choice(({"factory": draw.choice(FACTORIES), "params": draw.choice(PARAMS)}, tree["model"]))
    for place in draw.sample(
        ("data.inputs", "data.targets", "data.groups", "model.checkpoint", "name", "compute.address"), 2
    ):
        if draw.random() < 0.3:
            section, _, key = place.rpartition(".")
            (tree.setdefault(section, {}) if section else tree)[key] = draw.choice((*PATHS, "objects.npy", "saved.pt"))
    tree = edit(tree, draw) if draw.random() < 0.2 else tree
    with contextlib.suppress(Exception):  # what YAML cannot hold
        Path("c.yaml").write_text(yaml.safe_dump(tree))
    if draw.random() < 0.1:
        damage(Path("c.yaml"), draw)
    return [draw.choice(("check", "plan", "check")), "-c", "c.yaml"]


def make_run(draw: random.Random) -> list[str]:
    """A run folder whose config or records were changed."""
    factory = draw.choice((*FACTORIES, *[STRANGER] * len(FACTORIES)))
    changed, trust = draw.random() < 0.7, factory != STRANGER and draw.random() < 0.5
    if changed:
        model = {"factory": factory, "params": draw.choice(PARAMS), "checkpoint": None}
        config = yaml.safe_load(Path("run/config.yaml").read_text()) | {"model": model}
        Path("run/config.yaml").write_text(yaml.safe_dump(config))
        record = json.loads(Path("run/provenance.json").read_text())
        del record["sha256"]
        record["config"]["model"] = model
        write_record(Path("run/provenance.json"), record)
    if not changed or draw.random() < 0.3:
        path = draw.choice(sorted(path for path in Path("run").rglob("*") if path.is_file() and path.stat().st_size))
        if path.suffix == ".json" and draw.random() < 0.5:
            content = edit(json.loads(path.read_text()), draw)
            write_record(path, content) if isinstance(content, dict) else path.write_text(json.dumps(content))
        else:
            damage(path, draw)
    words = draw.choice((["ensemble", "run"], ["ensemble", "run"], ["report", "run"], ["compare", "run", "other"]))
    return [*words, *["--trust"] * (trust and words[0] == "ensemble")]


def make_ensemble(draw: random.Random) -> list[str]:
    """An ensemble whose card or program was changed."""
    folder, trust = Path("run/ensemble"), False
    card = json.loads((folder / "card.json").read_text())
    kind = draw.choice(("factory", "factory", "program", "card", "files"))
    if kind == "factory":
        factory = draw.choice((*FACTORIES, *[STRANGER] * len(FACTORIES)))
        trust = factory != STRANGER and draw.random() < 0.5
        card |= {"split": "x", "model": {"factory": factory, "params": draw.choice(PARAMS), "checkpoint": None}}
    elif kind == "program":
        network = json.loads((folder / "network.json").read_text())
        steps = network["backbone"]["steps"]
        steps.insert(
            draw.randint(0, len(steps)),
            [draw.choice(OPERATIONS), draw.choice((["touch pwned"], [], [{"value": 0}])), {}],
        )
        (folder / "network.json").write_text(json.dumps(network))
        card["files"]["network.json"] = hashlib.sha256((folder / "network.json").read_bytes()).hexdigest()
    elif kind == "card":
        card = edit(card, draw)
    else:
        card["files"] = {f"../../{name}": own for name, own in card["files"].items()}
    (folder / "card.json").write_text(json.dumps(card))
    words = draw.choice((
        ["predict", "run", "--inputs", "x.npy", "--out", "out.npz", "--device", "cpu"],
        ["evaluate", "run/ensemble", "--inputs", "x.npy", "--targets", "y.npy"],
        ["suggest", "run", "--inputs", "x.npy", "--n", "2"],
        ["export", "run", "--out", "out.pt2"],
    ))  # fmt: skip
    return [*words, *["--trust"] * trust]


def make_inputs(draw: random.Random) -> list[str]:
    """Data of a stranger's for an ensemble of one's own."""
    path = draw.choice((*PATHS, "objects.npy", "saved.pt", "mine.npy", "mine.npy", "mine.npy"))
    shutil.copy("x.npy", "mine.npy")
    damage(Path("mine.npy"), draw)
    words = draw.choice((
        ["predict", "run", "--inputs", path, "--out", draw.choice(("out.npz", "out"))],
        ["predict", "run", "--inputs", "x.npy", "--out", "out", "--quantities", draw.choice(("__class__", "../x"))],
        ["evaluate", "run", "--inputs", path, "--targets", "y.npy"],
        ["evaluate", "run", "--data", path],
        ["suggest", "run", "--inputs", path],
        ["check", "-c", "toy.yaml", "--set", f"model.checkpoint={path}"],
    ))  # fmt: skip
    return words


def run_command(words: list[str]) -> str:
    """Run a command in this process; it ends with a status and a text, or raises what it should not."""
    said = io.StringIO()
    sys.argv = ["ray-ft", *words]
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            if ended.code not in (0, 1, 2, None) or "Traceback" in said.getvalue():
                raise AssertionError(f"exit {ended.code}: {said.getvalue()}") from ended
            errors = [line for line in said.getvalue().splitlines() if line.startswith("error: ")]
            return f"{ended.code or 0} {errors[0] if errors else ''}"[:200]
    raise AssertionError("the command did not end")


def give_up(*_: Any) -> None:
    raise Hang


def try_one(seed: int, guard: Guard, kept: Path) -> str:
    draw = random.Random(seed)
    for path in Path().iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.copytree(kept, ".", dirs_exist_ok=True)
    words = draw.choice((make_config, make_run, make_ensemble, make_inputs))(draw)
    words = [word.replace("\0", "0") for word in words]  # which no command line can hold
    signal.signal(signal.SIGALRM, give_up)
    signal.alarm(PATIENCE_S)
    guard.watching = True
    try:
        ended = run_command(words)
    finally:
        guard.watching = False
        signal.alarm(0)
    assert not guard.seen, guard.seen
    assert not Path("pwned").exists(), "code ran"
    assert {path.name for path in Path("..").iterdir()} == {"home"}, "written beside the folder"
    return f"{' '.join(words)[:100]} -> {ended}"


def try_all(run: Path, first: int, n: int) -> None:
    home = Path("top/home").absolute()
    home.mkdir(parents=True)
    kept = Path("kept").absolute()
    kept.mkdir()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(home.parents[1] / "torch")
    sys.dont_write_bytecode = True
    for path in run.parent.iterdir():
        if path.name in ("x.npy", "y.npy", "toy.yaml", "toy_network.py"):
            shutil.copy(path, kept)
    shutil.copytree(run, kept / "run")
    shutil.copytree(run, kept / "other", ignore=shutil.ignore_patterns("ensemble", "figures"))
    os.chdir(kept)
    plant()
    os.chdir(home)
    sys.path.insert(0, str(home))
    guard = Guard(home)
    shutil.copytree(kept, home, dirs_exist_ok=True)
    for words in (["report", "run"], ["ensemble", "run", "--trust"], ["export", "run", "--out", "x.pt2"]):
        run_command(words)  # so that packages have written what they keep for themselves
    for seed in range(first, first + n):
        try:
            print(seed, try_one(seed, guard, kept), flush=True)
        except BaseException:
            print(f"seed {seed}: {sys.argv}", file=sys.stderr)
            traceback.print_exc()
            raise SystemExit(1) from None


if __name__ == "__main__":
    try_all(Path(sys.argv[1]).absolute(), int(sys.argv[2]), int(sys.argv[3]))
