"""Names of columns in one text: comma-separated, and quoted where a name has a comma, as in a row of CSV."""

import csv
import io
from collections.abc import Sequence


def split_names(text: str) -> list[str]:
    return next(csv.reader([text], skipinitialspace=True), [])


def join_names(names: Sequence[str]) -> str:
    row = io.StringIO()
    csv.writer(row, lineterminator="").writerow(names)
    return row.getvalue()
