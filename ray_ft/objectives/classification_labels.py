"""Labels as people write them, brought into columns: whole numbers, true and false, text, or shares a class."""

import numpy as np
from jaxtyping import Float, Shaped

from ray_ft.errors import DataError, first_few, show_value

MOST_CLASSES = 1000
Encoded = tuple[Float[np.ndarray, "sample class"], tuple[str, ...]]


def encode_classes(array: Shaped[np.ndarray, "..."], source: str, classes: tuple[str, ...] = ()) -> Encoded:
    """Bring one class a sample into columns of 0 and 1, and name the columns.

    Args:
        array: Whole numbers, booleans or text, `(sample,)` or `(sample, 1)`; or shares that sum to 1, a column a class.
        source: Of the array, for messages.
        classes: Names of the columns, in the order of the network's outputs; where left out, the labels that there are,
            sorted.

    A sample whose class is NaN has none; neither have its columns.

    Raises:
        DataError: They are no classes, or are not among those that are named.
    """
    if array.ndim == 2 and array.shape[1] > 1 and array.dtype.kind in "biuf":
        return check_shares(array, source, classes)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or not len(array):
        raise DataError(
            f"classes must be one label a sample, or a share for each class, got shape {array.shape} in {source}"
        )
    there = ~np.isnan(array) if array.dtype.kind == "f" else np.ones(len(array), bool)
    if not there.any():
        raise DataError(f"some sample must have a class, got NaN alone in {source}")
    labels = name_labels(array[there], source)
    known = classes or tuple(sort_labels(np.unique(labels)))
    if unknown := sorted(set(labels) - set(known)):
        raise DataError(f"labels must be among {first_few(known)}, got {first_few(unknown)} in {source}")
    if not 2 <= len(known) <= MOST_CLASSES:
        raise DataError(
            f"there must be 2 to {MOST_CLASSES:,} classes, got {len(known)} in {source}; for numbers that are no "
            "classes set cv.metric to mse"
        )
    columns = {name: i for i, name in enumerate(known)}
    encoded = np.full((len(array), len(known)), np.nan, np.float32)
    encoded[there] = np.eye(len(known), dtype=np.float32)[[columns[label] for label in labels]]
    return encoded, known


def name_labels(array: Shaped[np.ndarray, " sample"], source: str) -> list[str]:
    """Write labels as text; numbers must be whole."""
    if array.dtype.kind == "f":
        if not np.isfinite(array).all() or (array != np.round(array)).any():
            odd = next(value for value in array if not np.isfinite(value) or value != round(value))
            raise DataError(
                f"classes must be whole numbers, true and false, or text, got {show_value(float(odd))} in {source}; "
                "for numbers that are no classes set cv.metric to mse"
            )
        array = array.astype(np.int64)
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "replace")
    if array.dtype.kind not in "biuU":
        raise DataError(f"classes must be whole numbers, true and false, or text, got {array.dtype} in {source}")
    return [str(label) for label in array.tolist()]


def sort_labels(labels: Shaped[np.ndarray, " class"]) -> list[str]:
    """Sort text by its letters, and whole numbers by their size."""
    names = [str(label) for label in labels]
    return sorted(names, key=int) if all(map(is_whole, names)) else sorted(names)


def is_whole(name: str) -> bool:
    return name.removeprefix("-").isdecimal()


def check_shares(array: Shaped[np.ndarray, "sample class"], source: str, classes: tuple[str, ...]) -> Encoded:
    """Take shares of the classes, one-hot or not."""
    shares = array.astype(np.float32)
    given = shares[~np.isnan(shares).all(1)]
    if not ((given >= 0).all() and np.allclose(given.sum(1), 1, atol=1e-3)):
        raise DataError(
            f"shares of classes must be between 0 and 1 and sum to 1 for each sample, got others in {source}; for "
            "several labels a sample set cv.metric to multilabel_log_loss"
        )
    return shares, name_columns(shares.shape[1], source, classes)


def encode_labels(array: Shaped[np.ndarray, "..."], source: str, classes: tuple[str, ...] = ()) -> Encoded:
    """Take several labels a sample, 0 or 1 in each column, or NaN where it is not known.

    Raises:
        DataError: They are something else.
    """
    if array.ndim != 2 or array.dtype.kind not in "biuf" or not (np.isin(array, (0, 1)) | np.isnan(array)).all():
        raise DataError(
            f"several labels a sample must be 0 or 1, a column a label, got shape {array.shape} of {array.dtype} with "
            f"others in {source}"
        )
    return array.astype(np.float32), name_columns(array.shape[1], source, classes)


def name_columns(n_columns: int, source: str, classes: tuple[str, ...]) -> tuple[str, ...]:
    if classes and len(classes) != n_columns:
        raise DataError(f"data.classes must name every column, got {len(classes)} names for {n_columns} in {source}")
    return classes or tuple(map(str, range(n_columns)))


def widen_classes(
    targets: Float[np.ndarray, "sample class"], classes: tuple[str, ...], n_outputs: int
) -> tuple[Float[np.ndarray, "sample output"], tuple[str, ...]]:
    """Give whole-numbered labels the columns of a network that knows more of them: label i is its output i."""
    if not all(map(is_whole, classes)) or len(classes) >= n_outputs:
        return targets, classes
    places = [int(name) for name in classes]
    if min(places) < 0 or max(places) >= n_outputs:
        return targets, classes
    wide = np.zeros((len(targets), n_outputs), np.float32)
    wide[:, places] = targets
    return wide, tuple(map(str, range(n_outputs)))
