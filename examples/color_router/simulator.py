"""A 12-slice beam propagation method (BPM) gives the quadrant spectra of a Si3N4 metasurface.

One periodic cell of 2 um is lit from above, straight and unpolarised. The light crosses 600 nm
of patterned Si3N4 as 12 thin phase screens, then 2.5 um of air, and lands on four detector
quadrants. The model is scalar and one-way: good enough to pretrain on, not a Maxwell solver.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import ArrayLike, NDArray

PIXELS = 128  # of a structure, along each axis
PERIOD_UM = 2.0
THICKNESS_UM = 0.6
DISTANCE_UM = 2.5  # from the pattern to the detector
SLICES = 12
GRID = 32  # of the field inside the pattern
HIGHEST_ORDER = 5  # of the diffraction orders that reach the detector
DETECTOR_GRID = 22  # > 4 * HIGHEST_ORDER, so the flux, a product of two fields, has no aliases
BATCH = 32  # structures at a time: their fields fit into the cache of one core


def simulate(structures: NDArray[Any], wavelengths_nm: ArrayLike) -> NDArray[np.float32]:
    """Computes the share of the incident power that reaches each detector quadrant.

    Args:
        structures: Patterns of shape (n, 128, 128), 1 where there is Si3N4 and 0 where there is
            air; axis 0 of a pattern is x, axis 1 is y.
        wavelengths_nm: Vacuum wavelengths of shape (wavelength,), in nm.

    Returns:
        Shares of shape (n, 2, 2, wavelength): half along x, half along y. They sum to less than 1:
        the rest is reflected or leaves in orders that are not kept.

    Raises:
        ValueError: If the structures do not have 128 x 128 pixels.
    """
    if structures.ndim != 3 or structures.shape[1:] != (PIXELS, PIXELS):
        raise ValueError(f"structures of shape (n, 128, 128) must hold, got {structures.shape}")
    block = PIXELS // GRID
    fill = structures.reshape(-1, GRID, block, GRID, block).mean(axis=(2, 4))
    optics = [_build_optics(float(nm) / 1000) for nm in np.asarray(wavelengths_nm)]
    shares = np.empty((len(fill), 2, 2, len(optics)), dtype=np.float32)
    for start in range(0, len(fill), BATCH):
        batch = slice(start, start + BATCH)
        level = np.rint(fill[batch] * block**2).astype(np.intp)
        for i, one in enumerate(optics):
            shares[batch, ..., i] = _integrate_quadrants(_propagate(level, one), one)
    return shares


def compute_si3n4_index(wavelength_um: float) -> float:
    """Computes the refractive index of Si3N4 at a vacuum wavelength in um.

    References:
        Luke et al., Opt. Lett. 40, 4823 (2015), the Sellmeier equation for LPCVD films.
    """
    squared = wavelength_um**2
    return float(np.sqrt(1 + 3.0249 * squared / (squared - 0.1353406**2) + 40314 * squared / (squared - 1239.842**2)))


@dataclass(frozen=True)
class _Optics:
    """All that depends on the wavelength and not on the structure.

    A field cell's fill takes one of 17 levels (4 x 4 pixels), so what the fill decides is a table.
    """

    incident: NDArray[np.complex64]  # (level,): amplitude that enters a cell
    screen: NDArray[np.complex64]  # (level,): phase of one slice
    half_step: NDArray[np.complex64]  # (GRID, GRID): half a slice's way, by spatial frequency
    full_step: NDArray[np.complex64]  # (GRID, GRID): a slice's way, by spatial frequency
    fly: NDArray[np.complex64]  # (order, order): from the pattern to the detector
    slope: NDArray[np.float32]  # (order, order): k_z / k


def _build_optics(wavelength_um: float) -> _Optics:
    """Builds the tables of one wavelength (in um); lengths are um, wavenumbers 1/um."""
    index = compute_si3n4_index(wavelength_um)
    k = 2 * np.pi / wavelength_um
    levels = np.linspace(0, 1, (PIXELS // GRID) ** 2 + 1)

    reflected = ((index - 1) / (index + 1)) ** 2
    transmitted = (1 - reflected) / (1 + reflected)  # of a slab, all its echoes added as powers
    incident = np.sqrt(1 + (transmitted - 1) * levels)  # powers mix, amplitudes follow

    reference = np.sqrt((1 + index**2) / 2)  # the index about which the screens are expanded
    step = THICKNESS_UM / SLICES
    contrast = 1 + (index**2 - 1) * levels - reference**2
    screen = np.exp(1j * k * step * contrast / (2 * reference))
    inside = np.sqrt((k * reference) ** 2 - _square_frequencies(_list_field_orders()) + 0j)

    orders = np.arange(-HIGHEST_ORDER, HIGHEST_ORDER + 1)
    outside_squared = k**2 - _square_frequencies(orders)
    # An order that grazes the surface (the 5th at 400 nm) carries no power and is left out.
    propagates = outside_squared > 1e-9 * k**2
    outside = np.sqrt(np.where(propagates, outside_squared, 0))
    centre = np.exp(-1j * np.pi * orders / GRID)  # the first cell's centre is half a cell in
    fly = propagates * np.exp(1j * outside * DISTANCE_UM) * np.outer(centre, centre) / GRID**2

    return _Optics(
        incident=incident.astype(np.complex64),
        screen=screen.astype(np.complex64),
        half_step=np.exp(0.5j * step * inside).astype(np.complex64),
        full_step=np.exp(1j * step * inside).astype(np.complex64),
        fly=fly.astype(np.complex64),
        slope=(outside / k).astype(np.float32),
    )


def _list_field_orders() -> NDArray[np.float64]:
    """Lists the orders of the field's grid as the FFT sorts them."""
    return np.fft.fftfreq(GRID, d=1 / GRID).astype(np.float64)


def _square_frequencies(orders: NDArray[Any]) -> NDArray[np.float64]:
    """Computes |G|^2 in 1/um^2 of all pairs of orders, (order, order)."""
    squared = np.square(2 * np.pi / PERIOD_UM * orders.astype(np.float64))
    return np.add.outer(squared, squared)


def _propagate(level: NDArray[np.intp], optics: _Optics) -> NDArray[np.complex64]:
    """Sends light through the pattern, (n, GRID, GRID), to its spectrum of the same shape."""
    screen = optics.screen[level]
    spectrum = scipy.fft.fft2(optics.incident[level], overwrite_x=True)
    spectrum *= optics.half_step
    for i in range(SLICES):
        field = scipy.fft.ifft2(spectrum, overwrite_x=True)
        field *= screen
        spectrum = scipy.fft.fft2(field, overwrite_x=True)
        spectrum *= optics.full_step if i < SLICES - 1 else optics.half_step
    return spectrum


def _integrate_quadrants(spectrum: NDArray[np.complex64], optics: _Optics) -> NDArray[np.float32]:
    """Integrates the flux of a field (n, GRID, GRID) over the detector quadrants, (n, 2, 2)."""
    orders = np.arange(-HIGHEST_ORDER, HIGHEST_ORDER + 1)
    amplitude = spectrum[:, orders[:, None], orders[None, :]] * optics.fly
    positions = np.arange(DETECTOR_GRID) / DETECTOR_GRID
    waves = np.exp(2j * np.pi * np.outer(positions, orders)).astype(np.complex64)
    electric = waves @ amplitude @ waves.T
    magnetic = waves @ (amplitude * optics.slope) @ waves.T
    flux = electric.real * magnetic.real + electric.imag * magnetic.imag
    halves = _weigh_halves()
    shares: NDArray[np.float32] = halves @ flux @ halves.T
    return shares


@functools.cache
def _weigh_halves() -> NDArray[np.float32]:
    """Builds the exact weights (half, DETECTOR_GRID) that integrate a flux over half a period."""
    orders = np.arange(-2 * HIGHEST_ORDER, 2 * HIGHEST_ORDER + 1)
    # The integral of exp(2 pi i m x) over 0 <= x < 1/2; over the other half its sign changes
    # but for m = 0.
    odd = orders % 2 == 1
    integral = np.where(odd, 1j / (np.pi * np.where(odd, orders, 1)), 0)
    positions = np.arange(DETECTOR_GRID) / DETECTOR_GRID
    to_orders = np.exp(-2j * np.pi * np.outer(orders, positions)) / DETECTOR_GRID
    constant = np.full(DETECTOR_GRID, 0.5 / DETECTOR_GRID)
    lean = (integral @ to_orders).real
    return np.stack([constant + lean, constant - lean]).astype(np.float32)
