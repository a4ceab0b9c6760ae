#!/usr/bin/env bash
# Ray's cluster launcher for real: `ray up` of configs/cluster/ssh_hosts.yaml over ssh onto two hosts made of namespaces,
# a `ray-ft cv` there, the same as a job, clients without the token, `ray down`. Not one of pytest's; as root, with the
# environment of ray-ft[cluster] active:
#
#     tests/cluster/ray_up.sh
#
# It takes three to four minutes, needs no network (but Debian's archive where sshd or rsync is missing), and leaves
# nothing behind. It ends with 0 if all was as it should be.
set -euo pipefail
# shellcheck disable=SC2034  # hosts.sh reads it
NEEDS_SSHD=1
# shellcheck source=tests/cluster/hosts.sh
. "$(dirname "$0")/hosts.sh"
enter_private_world "$@"

OPTIONS=(--folds 3 --seeds 1 --candidates 2 --strategies "head,spec_bias" --set training.epochs=4
    --set compute.packing=looped) # which way is faster is found out by timing, and differs in the last digits
export RAY_USAGE_STATS_ENABLED=0 RAY_AUTH_MODE=token

say "hosts"
for name in head worker; do
    # What the file's setup_commands do with a network: an environment with ray-ft on the PATH.
    {
        echo "export PATH=$PATH LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-}"
        echo "export RAY_AUTH_MODE=token PYTHONPATH=/tmp/home/$name/ray-ft OMP_NUM_THREADS=1"
        echo "export RAY_memory_monitor_refresh_ms=0" # other programs share the memory of these hosts
    } >"/tmp/home/$name/.bashrc"
    start_sshd "$name"
done
ray get-auth-token --generate >/dev/null
FILE=$PWD/hosts.yaml
"$PYTHON" - "$REPO/configs/cluster/ssh_hosts.yaml" "$FILE" <<'PYTHON'
"""Fill in addresses, user and key; leave out what installs the package."""
import os, sys, yaml
config = yaml.safe_load(open(sys.argv[1]))
config["provider"] |= {"head_ip": os.environ["HEAD"], "worker_ips": [os.environ["WORKER"]]}
config["auth"] = {"ssh_user": "root", "ssh_private_key": "~/.ssh/id"}
config["setup_commands"] = []
yaml.safe_dump(config, open(sys.argv[2], "w"))
PYTHON

say "ray up"
(cd "$REPO" && ray up -y --no-config-cache "$FILE")
for _ in $(seq 60); do
    n=$(ray exec "$FILE" 'python -c "import ray; ray.init(address=\"auto\", log_to_driver=False); print(\"alive\", sum(n[\"Alive\"] for n in ray.nodes()))"' 2>/dev/null | grep -o 'alive [0-9]*' || true)
    [ "$n" = "alive 2" ] && break
    sleep 1
done
[ "$n" = "alive 2" ] || fail "two nodes should be alive, got: $n"
say "two nodes are alive"
on head ss -ltnpH
on worker ss -ltnpH

say "ray-ft cv by ray exec"
ray exec "$FILE" "ray-ft cv --address auto --out $SHARED/exec ${OPTIONS[*]}"

say "ray-ft cv by ray job submit, through a tunnel to the head's loopback"
ssh -i ~/.ssh/id -o StrictHostKeyChecking=no -o LogLevel=ERROR -N -L 8265:127.0.0.1:8265 "root@$HEAD" &
tunnel=$!
sleep 1
JOBS=http://127.0.0.1:8265
ray job submit --address "$JOBS" -- ray-ft cv --address auto --out "$SHARED/job" "${OPTIONS[@]}"
[[ $(ray job list --address "$JOBS") == *SUCCEEDED* ]] || fail "the job should have succeeded"

say "clients without the token"
refused() { # WHAT COMMAND...: it must fail, and say why
    local what=$1 output
    shift
    if output=$(timeout 90 "$@" 2>&1); then fail "$what was let in: $output"; fi
    grep -qiE 'auth|token|401|403' <<<"$output" || fail "$what failed for another reason: $output"
    tail -n 4 <<<"$output"
    echo "refused: $what"
}
export PYTHONPATH=$REPO
refused "a driver without a token" env RAY_AUTH_MODE=disabled ray-ft cv --address "$HEAD:6379" --out "$SHARED/stranger" "${OPTIONS[@]}"
refused "a driver with another token" env RAY_AUTH_TOKEN=0123456789abcdef ray-ft cv --address "$HEAD:6379" --out "$SHARED/stranger" "${OPTIONS[@]}"
refused "a job without a token" env RAY_AUTH_MODE=disabled ray job submit --address "$JOBS" -- true
refused "a job with another token" env RAY_AUTH_TOKEN=0123456789abcdef ray job submit --address "$JOBS" -- true
kill "$tunnel"

say "ray down"
ray down -y "$FILE"
if on head pgrep -l raylet; then fail "Ray goes on on the head"; fi
# The launcher ends Ray on the head alone; a worker's ends when it has missed its head for a minute.
down=$SECONDS
while on worker pgrep raylet >/dev/null; do
    [ $((SECONDS - down)) -lt 120 ] || fail "Ray goes on on the worker"
    sleep 1
done
echo "the worker's Ray has ended after $((SECONDS - down)) s"

say "the same without a cluster"
ray-ft cv --inline --out "$SHARED/inline" "${OPTIONS[@]}" | tail -n 12
"$PYTHON" "$REPO/tests/cluster/compare_runs.py" "$SHARED/inline" "$SHARED/exec" "$SHARED/job"

say "passed"
