"""Write the tests' toy into a folder, with a network that takes its time: `python slow_toy.py FOLDER`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from toy import write_toy

SLOW = """
        if self.training and x.sum() < 1e30:  # the sum keeps the network whole, so that this is run at each step
            import os
            import time

            time.sleep(float(os.environ.get("TOY_SLEEP_S", "0")))
"""
CONFIG = """
name: slow
model: {factory: "toy_network:Toy"}
data: {inputs: x.npy, targets: y.npy}
cv: {folds: 3, seeds: 1, candidates: 2, strategies: [top]}
training: {checkpoint_every: 4}
search: {grace_epochs: 16}  # all candidates train to the end
compute: {packing: looped}
strategies:
  top: {train: ["head.*"], lr: [1.0e-3, 1.0e-1], epochs: 16, batch_size: 10, patience: 20}
"""


def main(folder: Path) -> None:
    write_toy(folder)
    module, anchor = folder / "toy_network.py", "    def forward(self, x):\n"
    module.write_text(module.read_text().replace(anchor, anchor + SLOW.lstrip("\n")))
    (folder / "slow.yaml").write_text(CONFIG)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
