"""Coverage of the intervals on samples that had no part in a run: `python -m benchmarks.coverage` (about 5 minutes).

The demo's 100 measured samples are dealt into five parts; each is predicted by the ensemble of a whole cross-validation
of the other 80. So every sample is fresh once.
"""

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
from sklearn.model_selection import KFold

import ray_ft
from ray_ft.ensemble.evaluation import evaluate_ensemble, read_labelled

N_PARTS = 5
NOVEL = Path(__file__).parents[1] / "examples" / "color_router" / "novel.npz"  # structures of other kinds
DEMO = Path(ray_ft.__file__).parent / "demo" / "measured.npz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--strategies", default="head")
    options = parser.parse_args()
    with np.load(DEMO) as archive:
        data = {name: archive[name] for name in ("structure", "spectra")}
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for part, (rest, fresh) in enumerate(KFold(N_PARTS, shuffle=True, random_state=0).split(data["spectra"])):
            files = {name: f"{folder}/{name}{part}.npz" for name in ("rest", "fresh")}
            for name, index in (("rest", rest), ("fresh", fresh)):
                np.savez(files[name], **{key: array[index] for key, array in data.items()})
            values = {
                "data.inputs": f"{files['rest']}::structure",
                "data.targets": f"{files['rest']}::spectra",
                "cv.strategies": options.strategies.split(","),
                "cv.candidates": 1,
            }
            ray_ft.cross_validate(ray_ft.load_config(None, values), f"{folder}/run{part}")
            ensemble = ray_ft.Ensemble.load(f"{folder}/run{part}")
            own = evaluate_ensemble(ensemble, read_labelled(ensemble, files["fresh"], None, None))
            print(
                f"part {part}: blind score {ensemble.card.score:.3e}, fresh mse {own.mse:.3e}, "
                f"coverage {own.coverage:.1%}, bands {own.band_coverage:.0%}, flagged {own.flagged:.0%}",
                flush=True,
            )
            found.append(own)
            novel = evaluate_ensemble(ensemble, read_labelled(ensemble, str(NOVEL), None, None))
            print(f"        {NOVEL.name}: coverage {novel.coverage:.1%}, flagged {novel.flagged:.0%}", flush=True)
    keys = ("mse", "coverage", "width", "band_coverage", "band_width", "spread_coverage", "flagged")
    print(json.dumps({"nominal": found[0].nominal, **{key: np.mean([getattr(f, key) for f in found]) for key in keys}}))


if __name__ == "__main__":
    main()
