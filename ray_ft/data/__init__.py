"""Data: samples, and the folds that hold them out."""

from ray_ft.data.sources import read_array as read_array
