#!/usr/bin/env bash
# A node of a cluster is lost while it trains: two hosts made of namespaces, a real Ray node on each, `ray-ft cv` on the
# head's side, the run folder shared. Not one of pytest's; as root, with the environment of ray-ft active:
#
#     tests/cluster/two_hosts.sh [cut|flap|kill ...]     # all three without a word; about a minute each
#
#   cut   the worker's link goes down for good: its candidate goes on on the head
#   flap  the link is down for 4 s: nothing is started again
#   kill  the worker's raylet is killed: its candidate goes on on the head
#
# Scores must be those of a run without Ray, each member counted once. It needs no network, leaves nothing behind, and
# ends with 0 if all was as it should be.
set -euo pipefail
[ "$#" -gt 0 ] || set -- cut flap kill
if [ "$#" -gt 1 ]; then # each on hosts of its own
    for event in "$@"; do bash "$0" "$event"; done
    exit
fi
event=$1
# shellcheck source=tests/cluster/hosts.sh
. "$(dirname "$0")/hosts.sh"
enter_private_world "$@"

export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token RAY_AUTH_TOKEN=only-on-this-machine OMP_NUM_THREADS=1
export RAY_memory_monitor_refresh_ms=0 # other programs share the memory of these hosts
# As configs/cluster has them.
export RAY_health_check_period_ms=2000 RAY_health_check_timeout_ms=3000 RAY_health_check_failure_threshold=3
train_without_ray

say "$event"
export TOY_SLEEP_S=0.1 PID_head=${HOSTS[head]} PID_worker=${HOSTS[worker]}
on head ray start --head --node-ip-address="$HEAD" --port=6379 --num-cpus=1 --include-dashboard=false >/dev/null
on worker ray start --address="$HEAD:6379" --node-ip-address="$WORKER" --num-cpus=1 >/dev/null
"$PYTHON" "$REPO/tests/cluster/lose_a_node.py" "$event" "$HEAD:6379"
"$PYTHON" "$REPO/tests/cluster/compare_runs.py" inline "$event"
say "passed: $event"
