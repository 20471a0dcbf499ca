# shellcheck shell=bash
# Sourced after common.sh: hosts node0 (10.99.0.1), node1 (10.99.0.2), ... on this machine, and a network among
# them that reaches nothing else.
#
# A host has a separate network, host name, mounts and PIDs, and shares the files of this machine. All its
# processes end with its first one, so that hosts_down leaves nothing behind. Needs root and `ip`. WORK is an empty folder.

STARTERS=()

# hosts_up N: boots N hosts and the switch between them.
hosts_up() {
    local i
    echo '127.0.0.1 localhost' > "$WORK/hosts"
    for ((i = 0; i < $1; i++)); do echo "10.99.0.$((i + 1)) node$i" >> "$WORK/hosts"; done
    host_start switch
    on switch ip link add bridge type bridge
    on switch ip link set bridge up
    for ((i = 0; i < $1; i++)); do host_boot "$i"; done
}

# host_boot I: boots node I, for the first time or after host_kill.
host_boot() {
    host_start "node$1"
    on "node$1" mount --bind "$WORK/hosts" /etc/hosts
    ip link add eth0 netns "$(< "$WORK/node$1.pid")" type veth peer name "port$1" netns "$(< "$WORK/switch.pid")"
    on "node$1" ip addr add "10.99.0.$(($1 + 1))/24" dev eth0
    on "node$1" ip link set lo up
    on "node$1" ip link set eth0 up
    on switch ip link set "port$1" master bridge up
}

# host_kill I: kills node I, like a power failure.
host_kill() {
    kill -9 "$(< "$WORK/node$1.pid")"
    wait_until 20 has_no_cable "$1"
}

hosts_down() {
    kill -9 "${STARTERS[@]}" 2> /dev/null || true # ending one ends its host
}

# on NAME COMMAND...: runs a command on a host, in this folder.
on() {
    local host=$1
    shift
    nsenter --target "$(< "$WORK/$host.pid")" --net --uts --mount --pid -- \
        bash -c 'cd "$0" && exec "$@"' "$PWD" "$@"
}

host_start() {
    # The first process must collect the status of orphans, as a shell does.
    unshare --net --uts --mount --pid --fork --kill-child --mount-proc \
        bash -c 'hostname "$0"; while sleep 1; do :; done' "$1" < /dev/null &> /dev/null &
    STARTERS+=($!)
    disown
    wait_until 20 find_first_process "$1" $!
    wait_until 20 is_up "$1"
}

# Finds the PID of a host on this machine: that of the only child of `unshare`.
find_first_process() {
    local child
    child=$(< "/proc/$2/task/$2/children")
    [ -n "$child" ] && echo $child > "$WORK/$1.pid"
}

has_no_cable() { ! on switch ip link show "port$1" &> /dev/null; }

is_up() { [ "$(on "$1" hostname)" = "$1" ]; }
