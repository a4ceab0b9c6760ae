"""Fail unless runs have the scores of the first one: `python compare_runs.py INLINE RUN [RUN ...]`."""

import sys

import numpy as np

from ray_ft.results.summary import Summary

TOLERANCE = 1e-6  # of a score; sums may be taken in another order on another machine


def main(reference: str, *runs: str) -> None:
    expected = Summary.load(reference)
    for path in runs:
        got = Summary.load(path)
        assert got.winner == expected.winner, f"{path}: {got.winner} won, not {expected.winner}"
        assert got.strategies.keys() == expected.strategies.keys(), path
        for name, row in expected.strategies.items():
            other = got.strategies[name]
            assert other.n_members == row.n_members, f"{path}: {name} has {other.n_members} members"
            assert other.candidates == row.candidates, f"{path}: {name}: {other.candidates}, not {row.candidates}"
            assert other.stop_epochs == row.stop_epochs, f"{path}: {name} stops at {other.stop_epochs}"
            np.testing.assert_allclose(other.scores, row.scores, rtol=TOLERANCE, err_msg=f"{path}: {name}")
            worst = np.abs(np.array(other.scores) / np.array(row.scores) - 1).max()
            print(f"{path}: {name}: {row.n_members} members, scores equal to {worst:.0e}")


if __name__ == "__main__":
    main(*sys.argv[1:])
