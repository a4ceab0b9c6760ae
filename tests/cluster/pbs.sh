#!/usr/bin/env bash
# The script of configs/cluster/job.pbs on two hosts made of namespaces, with a stand-in for PBS's pbsdsh: the job runs, is
# told that its time is up, and goes on when it is submitted again. PBS itself is not there: options of qsub stay untried.
# Not one of pytest's; as root, with the environment of ray-ft active:
#
#     tests/cluster/pbs.sh
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
cat >/tmp/bin/pbsdsh <<'STUB'
#!/usr/bin/env bash
# A task on the second node, by ssh, without the environment of the job.
[ "$1 $2 $3" = "-n 1 --" ] || exit 2
exec ssh -tt -i ~/.ssh/id -o StrictHostKeyChecking=no -o LogLevel=ERROR worker "$(printf '%q ' "${@:4}")" </dev/null
STUB
chmod +x /tmp/bin/pbsdsh
start_sshd worker
cp ~/.ssh/id /tmp/home/head/.ssh/id
printf 'head\nworker\n' >nodes
sed -e "s|^PATH=.*|PATH=/tmp/bin:$PATH|" -e 's|^command=.*|command=(ray-ft cv --config slow.yaml --out job)|' \
    "$REPO/configs/cluster/job.pbs" >job.pbs

submit() { # LOG: as PBS would start it, on the first node; its process is $job
    on head env -C / PBS_JOBID=4711.server PBS_O_WORKDIR="$SHARED" PBS_NODEFILE="$SHARED/nodes" NCPUS=1 TOY_SLEEP_S=0.1 \
        bash "$SHARED/job.pbs" >"$1.log" 2>&1 &
    job=$!
}
show_on_failure() { tail -n 30 "$1.log" >&2 && fail "$2"; }

for name in head worker; do on "$name" bash -c 'mkdir -p /tmp/ray-ft-4711 && mount -t tmpfs tmpfs /tmp/ray-ft-4711'; done
say "the job starts"
submit first
for _ in $(seq 1800); do
    compgen -G 'job/candidates/*/checkpoint.pt' >/dev/null && break
    sleep 0.1
done
compgen -G 'job/candidates/*/checkpoint.pt' >/dev/null || show_on_failure first "no checkpoint"
on head ss -ltnH
[ "$(stat -c %a .ray-ft-4711.server)" = 700 ] || fail "others can read the token"

say "its time is up"
on head pkill -TERM -f -o job.pbs
if wait "$job"; then show_on_failure first "the job should have failed"; fi
[ ! -e job/summary.json ] || fail "the run was done before"
[ ! -e .ray-ft-4711.server ] || fail "the token is left behind"
for name in head worker; do
    for _ in $(seq 60); do on "$name" pgrep -x raylet >/dev/null || break; sleep 1; done
    if on "$name" pgrep -l raylet; then fail "Ray goes on on $name"; fi
done

say "it is submitted again"
submit second
wait "$job" || show_on_failure second "the job failed"
grep 'candidates,' second.log
"$PYTHON" "$REPO/tests/cluster/compare_runs.py" inline job
say "passed"
