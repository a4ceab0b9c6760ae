"""Images that a column of a table names, read by Pillow."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.errors import DataError, first_line, show_value
from ray_ft.files.arrays import check_fits

FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP")  # others, of which some call programs, are not tried
FULL_SCALE = {"uint8": 255, "uint16": 65535}


def read_images(names: Shaped[np.ndarray, " sample"], table: Path) -> Float[np.ndarray, "sample channel height width"]:
    """Read images of one size and kind, as numbers from 0 to 1.

    Args:
        names: Of the files, relative to the folder of the table.
        table: The table that names them.

    Raises:
        DataError: A file is missing, is no whole image, or differs from the first in its shape.
    """
    images = np.empty(0, np.float32)
    for i, name in enumerate(names.tolist()):
        image = read_image(table, name, len(names) if i == 0 else 1)
        if i == 0:
            images = np.empty((len(names), *image.shape), np.float32)
        elif image.shape != images.shape[1:]:
            raise DataError(
                f"images must have one size and kind, got {image.shape} (channels, height, width) in {name} and "
                f"{images.shape[1:]} in {names[0]}, which {table} names; resize or convert them"
            )
        images[i] = image
    return images


def read_image(table: Path, name: str, n_images: int) -> Float[np.ndarray, "channel height width"]:
    """Read one of `n_images` that are alike and have to fit into memory."""
    from PIL import Image

    path, own = table.parent / name, Path(name)
    if own.is_absolute() or ".." in own.parts:
        raise DataError(
            f"images must lie in the folder of the table, or below it, got {show_value(name)} in {table}; put a link "
            "to their folder there"
        )
    try:
        if not path.is_file():
            raise DataError(f"a column of text must name images by their files, got {show_value(name)} in {table}")
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            warnings.simplefilter("ignore", UserWarning)  # on metadata that is damaged
            with Image.open(path, formats=FORMATS) as image:
                check_fits((n_images, 4, *image.size), np.dtype(np.float32))
                return convert_image(image)
    except DataError:
        raise
    except Exception as error:  # of any class: its parsers trust what they read
        raise DataError(f"an image must be a whole {', '.join(FORMATS)}, got {path}: {first_line(error)}") from error


def convert_image(image: Any) -> Float[np.ndarray, "channel height width"]:
    """Bring grey levels, colours and palettes into channels from 0 to 1."""
    if getattr(image, "n_frames", 1) > 1:
        raise ValueError(f"it has {image.n_frames} frames, of which one is taken; write them to files of their own")
    if image.mode == "1":
        image = image.convert("L")
    elif image.mode == "P":
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    values = np.asarray(image)
    if image.mode not in ("L", "RGB", "RGBA", "I;16", "I;16L", "I;16B") or values.dtype.name not in FULL_SCALE:
        raise ValueError(f"its mode is {image.mode}; convert it to grey (L, I;16), RGB or RGBA")
    scaled = values.astype(np.float32) / FULL_SCALE[values.dtype.name]
    return scaled[None] if scaled.ndim == 2 else scaled.transpose(2, 0, 1)
