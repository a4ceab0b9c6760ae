"""Every stream of random numbers of a run, named in one place by what it is for.

A stream is a list of whole numbers, the run's seed first, from which `numpy.random.default_rng` starts; words in a key
count as their CRC-32. No two purposes share a key, so that none repeats another's numbers: a purpose of its own has a
word that no strategy can have as its name, as numpy takes keys that differ in zeros at their end for one.

| stream | key after the seed | draws |
|---|---|---|
| candidate | strategy, index | its hyperparameters, drawn at random |
| proposal | "optuna/", strategy, index | its hyperparameters, by Optuna |
| member | candidate, repeat, fold, seed, epoch | order of the samples, dropout, which noisy copy |
| inner part | repeat, fold | what of a training part stops and selects, under the nested protocol |
| limited part | "train_size/", repeat, fold | which samples a limited training part keeps |

Three draws take whole numbers as seeds, as their libraries want them: the deal of the folds (seed + repeat, by
scikit-learn), the noise of the noisy copies (seed, by torch; it is the same for all candidates), and the weights of a
factory that draws its own (seed, by torch). The bootstrap of the winner's score starts from the seed alone, and
so as the first inner part does: one resamples losses, the other deals samples, and neither reads what the other drew.
"""

import zlib


def name_stream(seed: int, *key: int | str) -> list[int]:
    """Return what the stream of a purpose starts from."""
    return [seed, *(zlib.crc32(part.encode()) if isinstance(part, str) else part for part in key)]
