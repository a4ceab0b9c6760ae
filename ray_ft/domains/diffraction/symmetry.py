"""Operations of the periodic square cell that move input and target together.

A structure on a periodic cell under straight, unpolarised light: a rotation, a flip, the transpose or a roll by half
a period of the structure permutes the detector's quadrants in the same way and changes nothing else. Because a flip,
transpose or half-period roll means the same on a 128x128 grid and on the 2x2 grid of quadrants, one function moves
both.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Shaped

from ray_ft.domains import Tensor


@dataclass(frozen=True, order=True)
class Operation:
    """Transpose first, then flip, then roll by half a period; each along the grid's (x, y) axes."""

    transpose: bool = False
    flip: tuple[bool, bool] = (False, False)
    roll: tuple[bool, bool] = (False, False)

    def __matmul__(self, first: "Operation") -> "Operation":
        """Compose: `(a @ b)` applies `b`, then `a`. Rolls commute with flips; the transpose swaps their axes."""
        flip, roll = (first.flip[::-1], first.roll[::-1]) if self.transpose else (first.flip, first.roll)
        return Operation(
            self.transpose != first.transpose,
            (self.flip[0] != flip[0], self.flip[1] != flip[1]),
            (self.roll[0] != roll[0], self.roll[1] != roll[1]),
        )

    def inverse(self) -> "Operation":
        """The operation that undoes it: all parts undo themselves, but come in the other order."""
        flip, roll = (self.flip[::-1], self.roll[::-1]) if self.transpose else (self.flip, self.roll)
        return Operation(self.transpose, flip, roll)


IDENTITY = Operation()
OPERATIONS = {
    "rot90": Operation(transpose=True, flip=(True, False)),
    "rot180": Operation(flip=(True, True)),
    "rot270": Operation(transpose=True, flip=(False, True)),
    "flip_x": Operation(flip=(True, False)),
    "flip_y": Operation(flip=(False, True)),
    "transpose": Operation(transpose=True),
    "antitranspose": Operation(transpose=True, flip=(True, True)),
    "roll_x": Operation(roll=(True, False)),
    "roll_y": Operation(roll=(False, True)),
    "roll_xy": Operation(roll=(True, True)),
}


def generate_group(names: Sequence[str]) -> tuple[Operation, ...]:
    """List the group that named operations generate, the identity first; all of them give 32 operations."""
    generators = [OPERATIONS[name] for name in names]
    group, frontier = {IDENTITY}, {IDENTITY}
    while frontier:
        frontier = {generator @ member for generator in generators for member in frontier} - group
        group |= frontier
    return tuple(sorted(group))


def move(operation: Operation, tensor: Shaped[Tensor, "*axes"], axes: tuple[int, int]) -> Shaped[Tensor, "*moved"]:
    """Move a tensor along its (x, y) axes, which are of equal, even length, with operations that can be exported.

    The axes are counted from the end: (-2, -1) for structures, (-3, -2) for quadrant spectra.
    """
    if operation.transpose:
        tensor = tensor.transpose(*axes)
    flipped = [axis for axis, flip in zip(axes, operation.flip, strict=True) if flip]
    tensor = tensor.flip(flipped) if flipped else tensor
    for axis, rolled in zip(axes, operation.roll, strict=True):
        if rolled:
            tensor = tensor.roll(tensor.shape[axis] // 2, axis)
    return tensor
