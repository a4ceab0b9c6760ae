"""The embedded demo, the whole command, against an earlier revision: `python -m benchmarks.demo --before REVISION`."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.timing import Timing, alternate, compare, time_command

ROOT = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", required=True, help="the revision to compare with")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--options", default="", help='of the command in this tree, such as "--search guide"')
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder) / "before"
        run_git("worktree", "add", "--detach", str(before), options.before)
        try:
            rounds = alternate(
                lambda: run_demo(ROOT, *options.options.split()), lambda: run_demo(before), options.rounds
            )
        finally:
            run_git("worktree", "remove", "--force", str(before))
    result = compare("demo", rounds)
    print(json.dumps({"ratio": result["ratio"], "before_s": result["theirs_s"], "after_s": result["ours_s"]}))


def run_git(*words: str) -> str:
    return subprocess.run(["git", *words], cwd=ROOT, check=True, capture_output=True, text=True).stdout


def run_demo(tree: Path, *options: str) -> Timing:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "ray_ft", "cv", "--folds", "5", "--out", f"{folder}/run", *options]
        return time_command(command, {"PYTHONPATH": str(tree)}, cwd=tree)


if __name__ == "__main__":
    main()
