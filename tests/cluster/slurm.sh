#!/usr/bin/env bash
# The script of configs/cluster/slurm.sbatch on two hosts made of namespaces, with stand-ins for SLURM's srun and
# scontrol: the job runs, its time is up, it is queued again and goes on, beside another job on the same nodes. SLURM
# itself is not there: options of sbatch, and how its srun shares out CPUs and GPUs, stay untried. Not one of pytest's; as root, with the environment of ray-ft
# active:
#
#     tests/cluster/slurm.sh
#
# It takes about a minute, needs no network (but Debian's archive where sshd is missing), and leaves nothing behind. It
# ends with 0 if all was as it should be.
set -euo pipefail
# shellcheck disable=SC2034  # hosts.sh reads it
NEEDS_SSHD=1
# shellcheck source=tests/cluster/hosts.sh
. "$(dirname "$0")/hosts.sh"
enter_private_world "$@"

export OMP_NUM_THREADS=1
export RAY_memory_monitor_refresh_ms=0 # other programs share the memory of these hosts
train_without_ray

mkdir /tmp/bin
cat >/tmp/bin/srun <<'STUB'
#!/usr/bin/env bash
# A step on the node that is asked for: here, or by ssh, with the environment of the job.
for word; do
    case $word in
        --nodelist=*) node=${word#*=} ;;
        --*) ;;
        *) break ;;
    esac
    shift
done
echo "step on $node: ray start ${*: -2}" >>/tmp/shared/steps
[ "$node" = head ] && exec "$@"
mapfile -t variables < <(env | grep -E '^(RAY_|SLURM_|PATH=|PYTHONPATH=|LD_LIBRARY_PATH=|OMP_|TOY_)')
exec ssh -tt -i ~/.ssh/id -o StrictHostKeyChecking=no -o LogLevel=ERROR "$node" \
    "$(printf '%q ' env --chdir="$PWD" "${variables[@]}" "$@")" </dev/null
STUB
cat >/tmp/bin/scontrol <<'STUB'
#!/usr/bin/env bash
case "$*" in
    "show hostnames head,worker") printf 'head\nworker\n' ;;
    *) echo "$*" >>/tmp/shared/scontrol ;;
esac
STUB
chmod +x /tmp/bin/*
start_sshd worker
cp ~/.ssh/id /tmp/home/head/.ssh/id

submit() { # LOG [ID [OUT]]: as SLURM would start it, on the first node; its process is $job
    on head env PATH="/tmp/bin:$PATH" SLURM_JOB_ID="${2:-4711}" SLURMD_NODENAME=head SLURM_JOB_NODELIST=head,worker \
        SLURM_JOB_NUM_NODES=2 SLURM_CPUS_PER_TASK=1 TOY_SLEEP_S=0.1 \
        bash "$REPO/configs/cluster/slurm.sbatch" --config slow.yaml --out "${3:-job}" >"$1.log" 2>&1 &
    job=$!
}
show_on_failure() { tail -n 30 "$1.log" >&2 && fail "$2"; }

for name in head worker; do # each host has Ray's folders to itself
    for id in 4711 9711; do on "$name" bash -c "mkdir -p /tmp/ray-ft-$id && mount -t tmpfs tmpfs /tmp/ray-ft-$id"; done
done
say "the job starts"
submit first
for _ in $(seq 1800); do
    compgen -G 'job/candidates/*/checkpoint.pt' >/dev/null && break
    sleep 0.1
done
compgen -G 'job/candidates/*/checkpoint.pt' >/dev/null || show_on_failure first "no checkpoint"
on head ss -ltnH
[ "$(on head stat -c %a /tmp/ray-ft-4711)" = 700 ] || fail "others can look into Ray's folder"

say "its time is up"
on head pkill -USR1 -f slurm.sbatch
wait "$job" || show_on_failure first "the job failed at its end"
[ "$(cat scontrol)" = "requeue 4711" ] || show_on_failure first "it was not queued again"
[ ! -e job/summary.json ] || fail "the run was done before"
for name in head worker; do
    for _ in $(seq 20); do on "$name" pgrep -x raylet >/dev/null || break; sleep 1; done
    if on "$name" pgrep -l raylet; then fail "Ray goes on on $name"; fi
done

say "it starts again, beside another job"
submit second
again=$job
submit other 9711 other
wait "$again" || show_on_failure second "the job failed"
wait "$job" || show_on_failure other "the other job failed"
if grep -i "already in use" second.log other.log; then fail "two jobs want one port"; fi
grep 'candidates,' second.log
cat steps
"$PYTHON" "$REPO/tests/cluster/compare_runs.py" inline job other
say "passed"
