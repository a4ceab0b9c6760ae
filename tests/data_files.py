"""The same samples in files of every kind that is read."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

INPUTS, TARGETS = [f"spec_{i}" for i in range(4)], ["n_eff", "loss"]


def make_frame(n: int = 24) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(rng.normal(size=(n, 6)) * 10.0 ** rng.integers(-9, 9, (n, 6)), columns=[*INPUTS, *TARGETS])
    frame["wafer"] = [f"W{i // 2}" for i in range(n)]
    frame["plate"] = np.arange(n) // 2
    frame["kind"] = [("good", "bad", "NA")[i % 3] for i in range(n)]
    return frame


def write_csv(frame: pd.DataFrame) -> tuple[str, str, str]:
    frame.to_csv("t.csv", index=False)
    return "t.csv::spec_*", "t.csv::n_eff,loss", "t.csv::plate"


def write_tsv(frame: pd.DataFrame) -> tuple[str, str, str]:
    frame.to_csv("t.tsv", index=False, sep="\t", encoding="utf-8-sig")
    return "t.tsv::spec_?", "t.tsv::n_eff, loss", "t.tsv::plate"


def write_parquet(frame: pd.DataFrame) -> tuple[str, str, str]:
    frame[frame.columns[::-1]].to_parquet("t.parquet", row_group_size=7)
    return f"t.parquet::{','.join(INPUTS)}", "t.parquet::n_eff,loss", "t.parquet::plate"


def write_hdf5(frame: pd.DataFrame) -> tuple[str, str, str]:
    h5py = pytest.importorskip("h5py")
    with h5py.File("t.h5", "w") as file:
        file.create_dataset("deep/x", data=frame[INPUTS].to_numpy(), chunks=(5, 4), compression="gzip")
        file["y"], file["plate"] = frame[TARGETS].to_numpy().astype(">f8"), frame["plate"].to_numpy()
    return "t.h5::deep/x", "t.h5::/y", "t.h5::plate"


def write_netcdf(frame: pd.DataFrame, **options: Any) -> tuple[str, str, str]:
    xarray = pytest.importorskip("xarray")
    dataset = xarray.Dataset(
        {
            "x": (("sample", "spec"), frame[INPUTS].to_numpy()),
            "y": (("sample", "target"), frame[TARGETS].to_numpy()),
            "plate": ("sample", frame["plate"].to_numpy().astype("int32")),
        },
        coords={"spec": np.arange(4.0)},
    )
    dataset.to_netcdf("t.nc", **options)
    return "t.nc::x", "t.nc::y", "t.nc::plate"


def write_netcdf4(frame: pd.DataFrame) -> tuple[str, str, str]:
    pytest.importorskip("h5netcdf")
    return write_netcdf(frame, engine="h5netcdf")


def write_netcdf3(frame: pd.DataFrame) -> tuple[str, str, str]:
    return write_netcdf(frame, engine="scipy")


def write_zarr(frame: pd.DataFrame) -> tuple[str, str, str]:
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group("t.zarr", mode="w")
    group.create_group("deep").create_array("x", data=frame[INPUTS].to_numpy(), chunks=(5, 4))
    group.create_array("y", data=frame[TARGETS].to_numpy())
    group.create_array("plate", data=frame["plate"].to_numpy())
    return "t.zarr::deep/x", "t.zarr::y", "t.zarr::plate"


WRITERS = (write_csv, write_tsv, write_parquet, write_hdf5, write_netcdf4, write_netcdf3, write_zarr)


def write_images(mode: str = "RGB", n: int = 4) -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 256, (n, 5, 6, 3), dtype=np.uint8)
    if mode == "L":
        values = values[..., 0]
    elif mode == "I;16":
        values = values[..., 0].astype(np.uint16) * 257
    Path("pictures").mkdir(exist_ok=True)
    for i, value in enumerate(values):
        Image.fromarray(value).save(f"pictures/{i}.png")
    pd.DataFrame({"file": [f"pictures/{i}.png" for i in range(n)], "kind": ["a", "b"] * (n // 2)}).to_csv(
        "images.csv", index=False
    )
    return values
