#!/usr/bin/env bash
# Everything that only a GPU can tell, in one go, for a machine with one card or more:
#
#     benchmarks/gpu.sh [FOLDER]          about half an hour on one H100, if the aims hold
#     benchmarks/gpu.sh --dry [FOLDER]    the same at toy size on any machine, to see that it runs
#
# It goes on where a part fails, says which did, and leaves a log of each part in FOLDER (gpu-figures).
# PYTHON names the interpreter; ray-ft must be installed for it with the extra [test].
set -uo pipefail
cd "$(dirname "$0")/.." || exit 1

dry=()
if [ "${1:-}" = "--dry" ]; then
    dry=(--dry)
    shift
fi
out=${1:-gpu-figures}
python=${PYTHON:-python}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
mkdir -p "$out"
failed=()

# Run one part, and keep what it says.
measure() {
    local name=$1
    shift
    echo "== $name: $*"
    if ! "$@" 2>&1 | tee "$out/$name.log"; then
        failed+=("$name")
    fi
}

describe() {
    if command -v nvidia-smi; then
        nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv
        nvidia-smi topo -m
    fi
    "$python" -c "import torch; print('torch', torch.__version__, 'cards', torch.cuda.device_count())"
    git rev-parse HEAD
}

measure machine describe
if [ ${#dry[@]} -gt 0 ]; then
    measure tests "$python" -m pytest -n 0 -q -m gpu --collect-only tests/test_gpu.py
    measure packing "$python" -m benchmarks.packing --demo spec_bias --rounds 1
else
    if ! "$python" -c "import torch; raise SystemExit(not torch.cuda.is_available())"; then
        echo "error: torch must see a GPU, and sees none; --dry tries the script without one" >&2
        exit 2
    fi
    measure tests "$python" -m pytest -n 0 -q -m gpu tests/test_gpu.py
    measure packing "$python" -m benchmarks.packing
    measure packing-demo "$python" -m benchmarks.packing --demo spec_bias
fi
measure peak "$python" -m benchmarks.gpu peak "${dry[@]}"
measure full "$python" -m benchmarks.gpu full "${dry[@]}"
measure scaling "$python" -m benchmarks.gpu scaling "${dry[@]}"

echo "== figures"
grep -h '^{' "$out"/*.log
if [ ${#failed[@]} -gt 0 ]; then
    echo "error: these parts failed: ${failed[*]}; their logs are in $out" >&2
    exit 1
fi
echo "all parts ran; their logs are in $out"
