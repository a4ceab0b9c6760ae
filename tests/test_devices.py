"""Nothing that a command computes on a device is left on the CPU."""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "device_paths.py"


@pytest.mark.long
def test_what_is_computed_on_a_device_stays_there(run: Path) -> None:
    """Training, predictions and exports, in a process of its own, as a fake device takes torch's only place."""
    done = subprocess.run([sys.executable, str(SCRIPT)], cwd=run.parent, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
