"""`ray-ft cv` against hand-written Ray Tune on the full-size network: `python -m benchmarks.vs_ray_tune`.

Both sides are whole commands: 100 samples in two views, random weights, the same strategy, folds, seeds, epochs and
hyperparameters, without early stopping. The ratio is theirs / ours in wall time. All three rows take most of an hour
on two cores, nearly all of it in the other side's `head`; `--rows`, `--epochs` and `--seeds` shorten it.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file

from benchmarks.timing import Timing, alternate, compare, time_command
from ray_ft import DiffractionNet

ROOT = Path(__file__).parents[1]
ROWS = {
    "head": {"lr": 3e-4, "epochs": 30, "n_seeds": 3, "train": ["head.*", "spec_bias"]},
    "decoder_head": {"lr": 3e-5, "epochs": 3, "n_seeds": 1, "train": ["film_*", "dec.*", "head.*", "spec_bias"]},
    "full": {"lr": 3e-6, "epochs": 2, "n_seeds": 1, "train": ["*"]},
}
COMMON = {"folds": 5, "batch_size": 16, "weight_decay": 0.03, "dropout": 0.15}
N_WAVELENGTHS = 301


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", default=",".join(ROWS), help="comma-separated")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--precision", default="auto", help="of ours; theirs is float32")
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        for row in options.rows.split(","):
            settings = COMMON | ROWS[row]
            settings["epochs"] = options.epochs or settings["epochs"]
            settings["n_seeds"] = options.seeds or settings["n_seeds"]
            results[row] = run_row(Path(folder), row, settings, options.rounds, options.precision)
    print(json.dumps(results))


def write_inputs(folder: Path) -> None:
    """Write the demo's structures, their spectra at 301 wavelengths, and a network of random weights."""
    demo = np.load(ROOT / "ray_ft" / "demo" / "measured.npz")
    spectra, grid = demo["spectra"], np.linspace(0, 1, N_WAVELENGTHS)
    given = np.linspace(0, 1, spectra.shape[-1])
    targets = np.apply_along_axis(lambda values: np.interp(grid, given, values), -1, spectra).astype(np.float32)
    structures = np.unpackbits(demo["structure"], axis=-1)
    np.savez(folder / "data.npz", x=structures.reshape(-1, 1, *structures.shape[-2:]), y=targets)
    torch.manual_seed(0)
    save_file(DiffractionNet().state_dict(), folder / "network.safetensors")


def run_row(folder: Path, row: str, settings: dict, n_rounds: int, precision: str) -> dict:
    losses: dict[str, np.ndarray] = {}  # (fold, seed), of the last round

    def ours() -> Timing:
        config, out = folder / "ours.yaml", Path(tempfile.mkdtemp(dir=folder)) / "run"
        config.write_text(yaml.safe_dump(describe_ours(folder, row, settings, precision)))
        command = [sys.executable, "-m", "ray_ft", "cv", "--config", str(config), "--out", str(out)]
        timing = time_command(command)
        losses["ours"] = read_ours(out, row)
        return timing

    def theirs() -> Timing:
        asked, answer = folder / "theirs.json", folder / "losses.json"
        paths = {"checkpoint": str(folder / "network.safetensors"), "data": str(folder / "data.npz")}
        asked.write_text(json.dumps(settings | paths | {"seeds": list(range(settings["n_seeds"]))}))
        timing = time_command([sys.executable, "-m", "benchmarks.hand_written", row, str(asked), str(answer)])
        losses["theirs"] = np.zeros((settings["folds"], settings["n_seeds"]))
        for fold, seed, loss in json.loads(answer.read_text()):
            losses["theirs"][fold, seed] = loss
        return timing

    result = compare(row, alternate(ours, theirs, n_rounds))
    return result | compare_losses(losses["ours"], losses["theirs"])


def describe_ours(folder: Path, row: str, settings: dict, precision: str) -> dict:
    strategy = {key: settings[key] for key in ("train", "lr", "epochs", "batch_size", "weight_decay")}
    strategy |= {"head_dropout": settings["dropout"], "patience": settings["epochs"]}
    data = str(folder / "data.npz")
    return {
        "model": {"checkpoint": str(folder / "network.safetensors")},
        "data": {"inputs": f"{data}::x", "targets": f"{data}::y", "symmetry": ["rot180"]},
        "cv": {"folds": settings["folds"], "seeds": settings["n_seeds"], "candidates": 1, "strategies": [f"{row}_row"]},
        "search": {"method": "guide"},  # all seeds of the one candidate at once, as the other side trains
        "training": {"precision": precision},
        "strategies": {f"{row}_row": strategy},
    }


def read_ours(out: Path, row: str) -> np.ndarray:
    """Held-out losses after the last epoch, by fold and seed."""
    with np.load(out / "candidates" / f"{row}_row-000" / "history.npz") as archive:
        last = archive["losses"][-1, 0]  # (seed, sample)
    fold_of = np.array(json.loads((out / "splits.json").read_text())["fold_of"][0])
    return np.stack([last[:, fold_of == fold].mean(1) for fold in range(fold_of.max() + 1)])


def compare_losses(ours: np.ndarray, theirs: np.ndarray) -> dict[str, float]:
    """Print both means beside the spread: over seeds, or over folds where there is one seed."""
    spread = theirs.mean(0).std(ddof=1) if theirs.shape[1] > 1 else theirs.mean(1).std(ddof=1)
    over = "seeds" if theirs.shape[1] > 1 else "folds"
    print(
        f"  held-out loss: ours {ours.mean():.7f}, theirs {theirs.mean():.7f}, std over {over} {spread:.1e}", flush=True
    )
    return {"ours_loss": float(ours.mean()), "theirs_loss": float(theirs.mean()), "loss_std": float(spread)}


if __name__ == "__main__":
    main()
