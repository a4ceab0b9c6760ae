"""One point by XFoil, as a batch: an airfoil's coordinates and its flow in, lift, drag and moment out."""

import os
import re
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

N_ITERATIONS, CONVERGED, LIMIT_S = 100, 1e-4, 20  # XFoil's own tolerance of the Newton iteration
Coordinates = NDArray[np.float64]
NUMBER = r"=\s*(-?\d*\.\d+)"
STEP = re.compile(rf"\s*(\d*\.\d+E[+-]\d+)[^=]*=\s*\S+\s+CL {NUMBER}\s+Cm {NUMBER}\s+CD {NUMBER}")


def run_xfoil(
    coordinates: Coordinates, mach: float, alpha: float, reynolds: float, n_crit: float, xtr: tuple[float, float]
) -> tuple[float, float, float] | None:
    """Solve one point from scratch; return CL, CD and CM about the quarter chord, or None where XFoil has no answer.

    Args:
        coordinates: Of the airfoil, shape (n, 2), from the trailing edge over the upper side; XFoil puts 160 panels.
        mach: Mach number, by the correction of Karman and Tsien.
        alpha: Angle of attack in degrees.
        reynolds: Reynolds number of the chord.
        n_crit: Amplification at transition, of the e^n method.
        xtr: Where transition is forced on the upper and lower side, in chords; 1 leaves it free.
    """
    commands = f"""LOAD airfoil.dat
    PANE
    OPER
    VISC {reynolds:.8g}
    MACH {mach:.8g}
    VPAR
    N {n_crit:.8g}
    XTR {xtr[0]:.8g} {xtr[1]:.8g}

    ITER {N_ITERATIONS}
    ALFA {alpha:.8g}

    QUIT
    """
    lines = [line.strip() for line in commands.splitlines()]
    # After the answer is printed XFoil would draw it. Without a display it ends there; with its graphics turned off,
    # Debian's build divides by zero. So the answer is read from what was printed, and the exit status says nothing.
    environment = {key: value for key, value in os.environ.items() if key != "DISPLAY"}
    with tempfile.TemporaryDirectory() as folder:
        rows = "\n".join(f"{x:.8f} {y:.8f}" for x, y in coordinates)
        Path(folder, "airfoil.dat").write_text(f"airfoil\n{rows}\n")
        try:
            ended = subprocess.run(
                ["xfoil"], input="\n".join(lines), capture_output=True, text=True, errors="replace", cwd=folder,
                env=environment, timeout=LIMIT_S, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    return read_answer(ended.stdout)


def read_answer(printed: str) -> tuple[float, float, float] | None:
    """Read the last iteration; None where it is none that has converged, or what it says is impossible."""
    step = STEP.match(printed.rpartition("rms:")[2])
    if not step:
        return None
    rms, cl, cm, cd = map(float, step.groups())
    return (cl, cd, cm) if rms < CONVERGED and cd > 0 else None
