"""Columns of tables, CSV and Parquet, read by Arrow.

Columns are named, comma-separated as in a row of CSV; `*`, `?` and `[...]` stand for letters where no column has that
very name. Numbers may be missing, as an empty cell, NA, N/A, NaN or null, and are NaN then. A column with anything else
is text, of which no cell may be empty.
"""

import csv
import fnmatch
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Shaped

from ray_ft.errors import DataError, first_few, show_value, suggest
from ray_ft.files.arrays import check_fits
from ray_ft.files.column_names import split_names
from ray_ft.files.memory import describe_excess
from ray_ft.files.suffixes import read_suffix

Column: TypeAlias = Any  # of pyarrow, which takes a while to load
DELIMITERS = {".csv": ",", ".tsv": "\t"}
TABLES = (*DELIMITERS, ".parquet")
MISSING = ("", "NA", "N/A", "NaN", "nan", "null")
CSV_FACTOR = 8  # bytes that reading takes for one of the file, at most: two are a cell of a digit
VALUE_BYTES = 8
LARGEST_BLOCK = 2**31 - 2  # bytes, as Arrow counts them


def read_table(path: Path, asked: str) -> tuple[Shaped[np.ndarray, "..."], tuple[str, ...]]:
    """Read columns of a table, and write out their names.

    A single column gives `(sample,)`, or what its lists have besides; several give `(sample, column)`.

    Raises:
        DataError: A column is missing, of another kind than numbers and text, or lacks a label.
    """
    columns, names = (read_parquet if read_suffix(path) == ".parquet" else read_csv)(path, asked)
    return join_columns(columns, names, path), tuple(names)


def list_columns(path: Path) -> list[str]:
    """Read the names of a table's columns."""
    from pyarrow import parquet

    if read_suffix(path) != ".parquet":
        return read_header(path)
    with parquet.ParquetFile(path) as file:
        return list(file.schema_arrow.names)


def choose_columns(path: Path, asked: str, trained: str) -> str:
    """Name the columns that are asked for, else those of the training, or the only one that a table has.

    Those of the training come in its order, however they are asked for: a pattern gives that of the file.
    """
    names, known = list_columns(path), split_names(trained)
    if asked:
        return trained if known and sorted(pick_columns(asked, names, path)) == sorted(known) else asked
    return "" if len(names) == 1 and names[0] not in known else trained


def pick_columns(asked: str, names: Sequence[str], path: Path) -> list[str]:
    """Find the columns that are asked for, by name or pattern; the only one of a table needs no name."""
    if not asked and len(names) == 1:
        return list(names)
    counts, picked = Counter(names), dict[str, None]()
    for own in split_names(asked):
        found = [own] if own in counts else fnmatch.filter(counts, own)
        if not found:
            near = suggest(own, counts)
            raise DataError(
                f"a table needs ::columns out of {first_few(list(names), 8)}, got {show_value(own)}{near} for {path}"
            )
        picked |= dict.fromkeys(found)
    if not picked:
        raise DataError(
            f"a table needs ::columns out of {first_few(list(names), 8)}, got none for {path}; ::* takes all"
        )
    if twice := [name for name in picked if counts[name] > 1]:
        raise DataError(f"columns must have different names, got {first_few(twice)} more than once in {path}")
    return list(picked)


def read_csv(path: Path, asked: str) -> tuple[list[Column], list[str]]:
    """Read columns of CSV, whose first row names them."""
    import pyarrow as pa
    from pyarrow import csv as arrow_csv

    n_bytes = path.stat().st_size
    if excess := describe_excess(CSV_FACTOR * n_bytes):
        raise ValueError(excess)
    header = read_header(path)
    names = pick_columns(asked, header, path)
    places = [f"f{header.index(name)}" for name in names]
    table = arrow_csv.read_csv(
        path,
        read_options=arrow_csv.ReadOptions(
            use_threads=False,
            block_size=min(n_bytes + 1, LARGEST_BLOCK),  # of which a row may not be longer
            autogenerate_column_names=True,
            skip_rows_after_names=1,
        ),
        parse_options=arrow_csv.ParseOptions(
            delimiter=DELIMITERS[read_suffix(path)],
            newlines_in_values=True,
            ignore_empty_lines=len(header) > 1,  # else they are missing values
        ),
        convert_options=arrow_csv.ConvertOptions(
            include_columns=places, column_types=dict.fromkeys(places, pa.string()), strings_can_be_null=False
        ),
    )
    return [convert_cells(table[place]) for place in places], names


def read_header(path: Path) -> list[str]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(file, delimiter=DELIMITERS[read_suffix(path)], strict=True)
        return [name.strip() for name in next(rows, [])]


def convert_cells(cells: Column) -> Column:
    """Convert the cells of a column to the first of whole numbers, numbers, and true and false that suits all."""
    import pyarrow as pa
    import pyarrow.compute as pc

    trimmed = pc.utf8_trim_whitespace(cells)
    given = pc.if_else(pc.is_in(trimmed, value_set=pa.array(MISSING)), None, trimmed)
    for kind in (pa.int64(), pa.float64(), pa.bool_()):
        try:
            return given.cast(kind)
        except pa.ArrowInvalid:
            continue
    return trimmed


def read_parquet(path: Path, asked: str) -> tuple[list[Column], list[str]]:
    """Read columns of Parquet."""
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        names = pick_columns(asked, file.schema_arrow.names, path)
        texts = [name for name in names if is_text(file.schema_arrow.field(name).type)]
    with parquet.ParquetFile(path, read_dictionary=texts) as file:  # a text that stands often is kept once
        groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
        if excess := describe_excess(sum(count_values(group, names) for group in groups) * VALUE_BYTES):
            raise ValueError(excess)
        table = file.read(columns=names, use_threads=False)
    return [table[name] for name in names], names


def count_values(group: Any, names: Sequence[str]) -> int:
    """Count the values of columns in a group of rows; few bytes may hold many that are alike."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(chunk.num_values for chunk in chunks if chunk.path_in_schema in names or is_within(chunk, names))


def is_within(chunk: Any, names: Sequence[str]) -> bool:
    """Whether a column's values are lists of one that is named."""
    return any(chunk.path_in_schema.startswith(f"{name}.") for name in names)


def is_text(kind: Any) -> bool:
    import pyarrow as pa

    inner = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(check(inner) for check in (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view))


def join_columns(columns: Sequence[Column], names: Sequence[str], path: Path) -> Shaped[np.ndarray, "..."]:
    """Lay columns out as an array; where there are several, of numbers."""
    arrays = [lay_out_column(column, name, path) for column, name in zip(columns, names, strict=True)]
    if len(arrays) == 1:
        return arrays[0]
    for array, name in zip(arrays, names, strict=True):
        if array.dtype.kind not in "biuf" or array.ndim > 1:
            what = f"text such as {show_value(str(array[0]))}" if array.ndim == 1 else "lists"
            raise DataError(f"several columns must be of numbers, got {what} in column {name} of {path}")
    check_fits((len(arrays[0]), len(arrays)), np.result_type(*arrays))
    return np.column_stack(arrays)


def lay_out_column(column: Column, name: str, path: Path) -> Shaped[np.ndarray, "sample ..."]:
    """Turn a column of numbers, text, or lists of numbers into an array."""
    import pyarrow as pa

    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if is_text(whole.type):
        return lay_out_labels(whole, name, path)
    if is_nested(whole):
        if not len(whole):
            return np.empty((0, 0))
        return lay_out_lists(whole, describe_sample(whole[:1], path)[0])
    return lay_out_numbers(whole, name, path)


def lay_out_labels(column: Column, name: str, path: Path) -> Shaped[np.ndarray, " sample"]:
    encoded = column if hasattr(column, "indices") else column.dictionary_encode()
    labels = encoded.dictionary.to_pylist() or [""]
    if None in labels:
        raise ValueError(f"column {name} has labels that are missing")
    numbers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
    missing = np.flatnonzero(np.array([label == "" for label in (*labels, "")])[numbers])
    if len(missing):
        raise DataError(
            f"text must be given for each sample, got none in column {name} of sample {missing[0]} of {path}; fill it "
            "in, or leave the sample out"
        )
    kind = np.dtype(f"U{max(map(len, labels))}")
    check_fits((len(numbers),), kind)
    array: np.ndarray = np.array(labels, kind)[numbers]
    return array


def lay_out_numbers(column: Column, name: str, path: Path) -> Shaped[np.ndarray, " sample"]:
    """Turn numbers, or true and false, into an array, with NaN for those that are missing."""
    import pyarrow as pa

    if not is_number(column.type):
        raise DataError(f"a column must be of numbers or text, got {column.type} in column {name} of {path}")
    if column.null_count or pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    array: np.ndarray = column.to_numpy(zero_copy_only=False)
    return array


def is_number(kind: Any) -> bool:
    import pyarrow as pa

    checks = (pa.types.is_boolean, pa.types.is_integer, pa.types.is_floating, pa.types.is_decimal)
    return any(check(kind) for check in checks)


def is_nested(column: Column) -> bool:
    import pyarrow as pa

    return isinstance(getattr(column, "storage", column), pa.ListArray | pa.LargeListArray | pa.FixedSizeListArray)


def list_levels(column: Column) -> Iterator[Column]:
    """List a column, what its lists hold, what these hold, and so on."""
    level: Any = getattr(column, "storage", column)  # of a tensor, whose own conversions could run code
    yield level
    while is_nested(level):
        level = level.flatten()
        yield level


def describe_sample(column: Column, path: Path) -> tuple[tuple[int, ...], str]:
    """Read shape and type of the one sample of a column of lists."""
    *_, values = levels = list(list_levels(column))
    sizes = [len(level) for level in levels]
    if 0 in sizes:
        raise DataError(f"samples must be lists of equal lengths and without nulls, got another in row 0 of {path}")
    dtype = np.dtype(values.type.to_pandas_dtype())
    if len(sizes) == 1 or dtype.kind not in "biuf":
        raise DataError(f"a column of inputs must be of numbers, or lists of numbers, got {column.type} in {path}")
    return tuple(inner // max(outer, 1) for outer, inner in pairwise(sizes)), str(dtype)


def lay_out_lists(column: Column, shape: tuple[int, ...]) -> Shaped[np.ndarray, "sample ..."]:
    """Turn nested lists of one shape into an array, with NaN for missing numbers; others raise a `ValueError`."""
    import pyarrow as pa

    level: Any = getattr(column, "storage", column)
    check_fits((len(column), math.prod(shape)), np.dtype(float))
    for n in shape:
        if level.null_count:
            raise ValueError("a sample, or a list in it, is missing (null)")
        level = level.cast(pa.list_(level.type.value_type, n)).flatten()
    array: np.ndarray = level.to_numpy(zero_copy_only=False).reshape(len(column), *shape)
    return array
