"""Take the weights out of the installed package `neuralfoil`: `python -m examples.airfoil.convert [SIZE ...]`.

It needs NumPy and safetensors alone beside `pip install neuralfoil`. The rows of the last layer that say CL, CD and CM
are kept; those that say the confidence, the transition and the boundary layer are not.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

WEIGHTS = Path(__file__).parent / "weights"
KEPT = slice(1, 4)  # CL, CD, CM
SIZES = ("small", "xlarge", "xxxlarge")


def main() -> None:
    """Read the command line and write a file for each size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sizes", nargs="*", default=SIZES, help=", ".join(SIZES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="the folder to write into")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for size in args.sizes:
        save_file(read_weights(size), args.out / f"{size}.safetensors")


def read_weights(size: str) -> dict[str, NDArray[np.float32]]:
    """Read the weights of a size as `NeuralFoil` names them."""
    package = find_spec("neuralfoil")
    if package is None or package.origin is None:
        raise SystemExit("error: the package neuralfoil must be installed: pip install neuralfoil")
    with np.load(Path(package.origin).parent / "nn_weights_and_biases" / f"nn-{size}.npz") as stored:
        weights = dict(stored)
    last = max(int(name.split(".")[1]) for name in weights)
    for name in (f"net.{last}.weight", f"net.{last}.bias"):
        weights[name] = weights[name][KEPT].copy()
    return weights


if __name__ == "__main__":
    main()
