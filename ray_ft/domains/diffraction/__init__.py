"""Diffraction: structures of one periodic square cell in, the spectra of four detector quadrants out.

Beside the form of its files and its symmetry it has what a config needs for the network that is pretrained on them:
the shipped strategies, and the parameters that the freeze flags mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, Int, Shaped

from ray_ft.domains import Domain, TargetAxes, Tensor
from ray_ft.domains.diffraction.symmetry import OPERATIONS, Operation, generate_group, move
from ray_ft.errors import DataError

STRATEGIES_FILE = Path(__file__).with_name("strategies.yaml")
ENCODER_PARTS = ("stem", "stage1", "stage2", "stage3", "stage4", "fourier_mix", "spatial_pool")
ENCODER_PATTERNS = tuple(f"*{part}*" for part in ENCODER_PARTS)
DECODER_PATTERNS = ("film_*", "dec.*", "wav_embed.*")

STRUCTURE_AXES, SPECTRA_AXES = (-2, -1), (-3, -2)  # x and y of structures, and of quadrants
SIDE_PX = 128
PACKED = (SIDE_PX, SIDE_PX // 8)
RGB_OF_QUADRANT = [[0, 1], [1, 2]]  # a Bayer cell: [[R, G], [G, B]]


@dataclass(frozen=True)
class CellView:
    """A structure and its spectra under an operation of the cell."""

    operation: Operation

    def move_inputs(self, inputs: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*moved"]:
        return move(self.operation, inputs, STRUCTURE_AXES)

    def move_targets(self, targets: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*moved"]:
        return move(self.operation, targets, SPECTRA_AXES)

    def restore_targets(self, targets: Shaped[Tensor, "*axes"]) -> Shaped[Tensor, "*moved"]:
        return move(self.operation.inverse(), targets, SPECTRA_AXES)


@dataclass(frozen=True)
class Diffraction:
    """Structures of 128 x 128 pixels, 0 or 1, and shares of the incident power by quadrant and wavelength."""

    operations: tuple[str, ...] = tuple(OPERATIONS)
    symmetry: tuple[str, ...] = ("rot90", "flip_x", "roll_x")

    def list_views(self, operations: Sequence[str]) -> tuple[CellView, ...]:
        return tuple(map(CellView, generate_group(operations)))

    def convert_inputs(self, array: Shaped[np.ndarray, "..."], source: str) -> Float[np.ndarray, "sample 1 128 128"]:
        """Bring structures, as they are or packed along the last axis, into -1 and 1 with a channel axis."""
        if array.dtype == np.uint8 and array.shape[-2:] == PACKED:
            array = np.unpackbits(array, axis=-1)
        if array.ndim == 3:
            array = array[:, None]
        if array.shape[1:] != (1, SIDE_PX, SIDE_PX):
            raise DataError(
                f"structures must have shape (n, 1, {SIDE_PX}, {SIDE_PX}), (n, {SIDE_PX}, {SIDE_PX}) or packed "
                f"(n, {SIDE_PX}, {SIDE_PX // 8}) uint8, got {array.shape} in {source}"
            )
        if not np.isin(array, (0, 1)).all():
            raise DataError(f"structures must be 0 and 1, got values from {array.min()} to {array.max()} in {source}")
        return array.astype(np.float32) * 2 - 1

    def encode_inputs(self, inputs: Shaped[Tensor, "sample *input"]) -> Float[Tensor, "sample *input"]:
        return 2 * inputs - 1

    def convert_targets(
        self, targets: Shaped[np.ndarray, "sample *stored"], source: str
    ) -> tuple[Shaped[np.ndarray, "sample 2 2 wavelength"], Int[np.ndarray, " kept"], tuple[str, ...]]:
        """Turn R, G, B of reversed sign into quadrants, and leave out samples that were not simulated.

        A row of zeros is a spectrum that was not simulated, and leaves its whole sample out; NaN is a missing value.
        """
        kept = np.arange(len(targets))
        if targets.ndim == 3 and targets.shape[1] == 3:
            kept = np.flatnonzero((targets != 0).any(-1).all(-1))  # a row of zeros means: not simulated
            targets = -targets[:, RGB_OF_QUADRANT]
        elif targets.ndim != 4 or targets.shape[1:3] != (2, 2):
            raise DataError(
                f"spectra must have shape (n, 2, 2, wavelengths) or (n, 3, wavelengths), got {targets.shape} in "
                f"{source}"
            )
        if len(kept) == 0:
            raise DataError(f"some sample must have all of its spectra, got {source} with an empty row in each")
        low, high = np.fmin.reduce(targets[kept], None), np.fmax.reduce(targets[kept], None)
        if low < -0.05 or high > 1.05:  # an instrument's noise may step over the limits a little
            raise DataError(
                f"spectra are shares of the incident power, 0 to 1, got {low:.3g} to {high:.3g} in {source}"
            )
        n_dropped = len(targets) - len(kept)
        return targets, kept, (f"{n_dropped} samples with an empty row of spectra are left out",) * bool(n_dropped)

    def list_shapes(self, input_shape: tuple[int, ...], dtype: str) -> tuple[tuple[int, ...], ...]:
        return (input_shape, PACKED) if dtype == "uint8" else (input_shape,)

    def name_axes(self, shape: tuple[int, ...], span: tuple[float, float]) -> TargetAxes:
        """Name the quadrants, each over its wavelengths."""
        channels = tuple(f"quadrant x{i} y{j}" for i, j in np.ndindex(shape[:-1]))
        return TargetAxes(channels, np.linspace(*span, shape[-1]), "wavelength (nm)")


DOMAIN: Domain = Diffraction()
