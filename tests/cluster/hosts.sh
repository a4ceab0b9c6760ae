# Hosts made of Linux namespaces: own network, processes, home and sshd on one machine, and a file system that they
# share. For the scripts beside this file, which source it; bash, root, Linux.
#
#   laptop 10.77.0.254   the script itself: not a part of the cluster
#   head   10.77.0.1     \ joined to the laptop by a bridge; what runs in one cannot see the other's processes
#   worker 10.77.0.2     /
#
# All of it, processes and files alike, is gone when the script ends: /tmp is a private one.
# shellcheck shell=bash

REPO=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
PYTHON=$(command -v "${PYTHON:-python}") || { echo "no python; activate the environment that has ray-ft" >&2; exit 2; }
ENVIRONMENT=$(dirname "$(dirname "$PYTHON")")
export HEAD=10.77.0.1 WORKER=10.77.0.2 LAPTOP=10.77.0.254
export SHARED=/tmp/shared # the file system that a cluster shares
declare -A HOSTS=()       # name -> process 1 of the host

say() { printf '\n== %s (%s s)\n' "$*" "$SECONDS"; }
fail() {
    printf '\nFAILED: %s\n' "$*" >&2
    exit 1
}

# Run the script again inside namespaces of its own; it goes on behind this call.
enter_private_world() {
    [ "$(id -u)" = 0 ] || fail "namespaces need root"
    if [ -z "${RAY_FT_PRIVATE:-}" ]; then
        prepare_sshd # here, as there is no network inside
        trap 'rm -rf "${SSHD_ROOT:-/nonexistent}"' EXIT
        local status=0
        RAY_FT_PRIVATE=1 SSHD_ROOT="${SSHD_ROOT:-}" \
            unshare --net --pid --mount --uts --fork --mount-proc --kill-child bash "$0" "$@" || status=$?
        exit "$status"
    fi
    trap 'echo "FAILED: line $LINENO of $0: $BASH_COMMAND" >&2' ERR
    hostname laptop
    mount -t tmpfs tmpfs /run
    local path hold
    for path in "$REPO" "$ENVIRONMENT" ${SSHD_ROOT:+"$SSHD_ROOT"}; do # may lie below /tmp
        hold=/run/hold$path
        mkdir -p "$hold"
        mount --bind "$path" "$hold"
    done
    mount -t tmpfs -o mode=1777 tmpfs /tmp
    for path in "$REPO" "$ENVIRONMENT" ${SSHD_ROOT:+"$SSHD_ROOT"}; do
        mkdir -p "$path"
        mount --bind "/run/hold$path" "$path"
    done
    printf '127.0.0.1 localhost\n%s laptop\n%s head\n%s worker\n' "$LAPTOP" "$HEAD" "$WORKER" >/tmp/etc-hosts
    mount --bind /tmp/etc-hosts /etc/hosts # there is no name server, and asking it takes seconds
    mkdir -p "$SHARED"
    make_home laptop
    export HOME=/tmp/home/laptop PATH="$ENVIRONMENT/bin:${SSHD_ROOT:+$SSHD_ROOT/usr/bin:}$PATH"
    cd "$HOME" || exit
    if [ -n "${SSHD_ROOT:-}" ]; then
        LD_LIBRARY_PATH=$(find "$SSHD_ROOT" -name '*.so.*' -printf '%h\n' | sort -u | paste -sd:)
        export LD_LIBRARY_PATH
    fi
    ip link set lo up
    ip link add name br0 type bridge
    ip addr add "$LAPTOP/24" dev br0
    ip link set br0 up
    start_host head "$HEAD"
    start_host worker "$WORKER"
}

# Find sshd and rsync, or unpack Debian's packages of them: nothing is installed and no service starts.
prepare_sshd() {
    [ -n "${NEEDS_SSHD:-}" ] || return 0
    if command -v rsync >/dev/null && [ -x /usr/sbin/sshd ]; then return 0; fi
    SSHD_ROOT=$(mktemp -d)
    (
        cd "$SSHD_ROOT"
        chmod 755 .
        apt-get download -qq openssh-server libwrap0 rsync libpopt0 2>/dev/null
        for package in *.deb; do dpkg -x "$package" .; done
    ) || fail "no sshd and rsync, and Debian's packages cannot be had"
}

make_home() { # NAME: ssh and login shells know a home from the password file only
    mkdir -p "/tmp/home/$1/.ssh" "/tmp/home/$1/.ray"
    printf 'root:x:0:0:root:/tmp/home/%s:/bin/bash\nsshd:x:105:65534::/run/sshd:/usr/sbin/nologin\n' "$1" >"/tmp/passwd-$1"
    mount --bind "/tmp/passwd-$1" /etc/passwd
}

start_host() { # NAME ADDRESS
    local name=$1 address=$2 unshared
    export -f make_home
    # shellcheck disable=SC2016  # expanded inside
    unshare --net --pid --mount --uts --fork --mount-proc --kill-child bash -c '
        hostname "$1"
        make_home "$1"
        mkdir -p /tmp/ray
        mount -t tmpfs tmpfs /tmp/ray   # a host has sessions and locks of Ray of its own
        mount -t tmpfs tmpfs /run
        mkdir /run/sshd
        touch "/tmp/up-$1"
        while true; do sleep 1000 & wait; done   # a shell: process 1 has to reap, else the killed seem to live
    ' host "$name" &
    unshared=$!
    until [ -e "/tmp/up-$name" ]; do sleep 0.05; done
    HOSTS[$name]=$(cat "/proc/$unshared/task/$unshared/children")
    HOSTS[$name]=${HOSTS[$name]// /}
    ip link add name "v-$name" type veth peer name eth0 netns "${HOSTS[$name]}"
    ip link set "v-$name" master br0 up
    on "$name" bash -c "ip link set lo up; ip addr add $address/24 dev eth0; ip link set eth0 up; ip route add default via $LAPTOP"
}

on() { # NAME COMMAND...: run it on a host
    local name=$1
    shift
    nsenter --target "${HOSTS[$name]}" --net --pid --mount --uts -- env --chdir="$PWD" HOME="/tmp/home/$name" "$@"
}

start_sshd() { # NAME: reached by the key /tmp/home/laptop/.ssh/id
    local name=$1 home=/tmp/home/$1 key=/tmp/home/laptop/.ssh/id
    [ -e "$key" ] || ssh-keygen -q -t ed25519 -N '' -f "$key"
    cp "$key.pub" "$home/.ssh/authorized_keys"
    ssh-keygen -q -t ed25519 -N '' -f "$home/host_key"
    cat >"$home/sshd_config" <<CONFIG
ListenAddress 0.0.0.0
HostKey $home/host_key
PasswordAuthentication no
UsePAM no
StrictModes no
PidFile none
CONFIG
    on "$name" "${SSHD_ROOT:-}/usr/sbin/sshd" -f "$home/sshd_config" -E "$home/sshd.log"
}

train_without_ray() { # the slow toy, in the folder that all hosts share, where what follows runs: inline, to compare with
    export PYTHONPATH=$REPO:$SHARED
    cd "$SHARED" || exit
    "$PYTHON" "$REPO/tests/cluster/slow_toy.py" .
    say "without Ray"
    ray-ft cv --config slow.yaml --inline --out inline >/dev/null
}
