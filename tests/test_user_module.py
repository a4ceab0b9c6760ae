"""How a user's module reaches the nodes: `ray job submit --working-dir`, or py_modules; on a head and a worker."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
needs_namespaces = pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare")
# The command runs on the head and all training on the worker, so both import the module. Everything that starts in
# namespaces of its own ends with them.
IN_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "bash", "-euc"]
START = """
    ip link set lo up
    start() {
        python -m ray.scripts.scripts start --object-store-memory=100000000 \
            --dashboard-agent-listen-port=0 "$@" >said 2>&1 || { cat said; exit 1; }
    }
    cd elsewhere
    start --head --num-cpus=0 --port=6379 --node-ip-address=127.0.0.1 --dashboard-host=127.0.0.1 --dashboard-port=8265
    export -f start  # the worker has Ray's folder to itself, as another machine has
    unshare --mount bash -euc 'mount -t tmpfs tmpfs "$RAY_TMPDIR" && start --num-cpus=1 \
        --address=127.0.0.1:6379 --node-ip-address=127.0.0.2'
    cd ../own
    python -m ray.scripts.scripts job submit --address http://127.0.0.1:8265 OPTIONS -- \
        python -m ray_ft cv --config CONFIG --address auto --out OUT --strategies top --seeds 1 --candidates 1
"""


@pytest.mark.ray
@pytest.mark.slow
@needs_namespaces
@pytest.mark.parametrize("way", ["working-dir", "py_modules"])
def test_the_module_reaches_both_nodes(way: str, toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither node has it, as its Ray was started in another folder and without a path to it."""
    folder = tmp_path_factory.mktemp("cluster")
    shutil.copytree(toy_folder, folder / "own")
    (folder / "elsewhere").mkdir()
    options, config = "--working-dir .", "toy.yaml"
    if way == "py_modules":  # config and data lie on the head alone
        package = folder / "own" / "my_package"
        package.mkdir()
        (package / "__init__.py").touch()
        (folder / "own" / "toy_network.py").rename(package / "networks.py")
        text = (folder / "own" / "toy.yaml").read_text().replace("toy_network:", "my_package.networks:")
        text = text.replace("x.npy", f"{folder}/own/x.npy").replace("y.npy", f"{folder}/own/y.npy")
        (folder / "own" / "toy.yaml").write_text(text)
        options = f"--runtime-env-json '{json.dumps({'py_modules': ['my_package']})}'"
        config = str(folder / "own" / "toy.yaml")
    script = START.replace("OPTIONS", options).replace("CONFIG", config).replace("OUT", str(folder / "run"))
    env = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "RAY_AUTH_MODE": "disabled",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "1",  # as everywhere but in these tests
        "PYTHONWARNINGS": "ignore",
    }
    with tempfile.TemporaryDirectory() as short:  # the paths of sockets may have 107 bytes
        done = subprocess.run(
            [*IN_NAMESPACES, script],
            cwd=folder,
            env=env | {"RAY_TMPDIR": short},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert (folder / "run" / "summary.json").exists()
