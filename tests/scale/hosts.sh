#!/bin/bash
# Training with torchrun on two hosts of this machine: a worker is killed, then a host, and the run ends like an
# uninterrupted one. Two minutes on two free cores, root. BIN: the environment's bin folder (.venv/bin).
set -euo pipefail
HERE=$(dirname "$(realpath "$0")")
. "$HERE/common.sh"
. "$HERE/netns_hosts.sh"

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # otherwise the agents of torch wait for each other when a host is replaced

clean_up() { hosts_down; }

evidence() { tail -n 40 "$WORK"/*.log || true; }

# agent I RUN: starts torchrun on node I, in the background.
agent() {
    on "node$1" torchrun --nnodes 2 --nproc-per-node 1 --max-restarts 3 --monitor-interval 0.5 \
        --rdzv-backend c10d --rdzv-endpoint node0:29400 --rdzv-id "$2" \
        --rdzv-conf join_timeout=300,last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=5 \
        -m -- lightning_paf fit -c tests/scale/digits.yaml --trainer configs/trainer/ddp_multinode.yaml \
        --trainer.accelerator cpu --trainer.precision 32-true --run "$WORK/$2" --ckpt_path auto \
        < /dev/null &>> "$WORK/$2-node$1.log" &
    STARTERS+=($!)
    disown
}

has_finished() { grep -q '"state": "finished"' "$WORK/$1/progress.json" 2> /dev/null && has_no_workers node0 && has_no_workers node1; }

has_no_workers() { ! on "$1" pgrep -f "lightning_paf fi[t]" > /dev/null; }

# has_saved RUN STEPS: whether there is a periodic checkpoint of a step; STEPS is a pattern.
has_saved() { compgen -G "$WORK/$1/checkpoints/step=$2.ckpt" > /dev/null; }

kill_worker() { on "$1" pkill -KILL -f "python.* -m lightning_paf fi[t]"; }

has_resumed() { [ "$(grep -c 'Restored all states' "$WORK/$1-node0.log")" -ge "$2" ]; }

checkpoints_of() { grep -oP 'Resuming from .*/\K.*(?=\.)' "$WORK/$1-node0.log" | paste -sd ';'; }

needs ip nsenter torchrun
check torchrun
hosts_up 2
agent 0 uninterrupted
agent 1 uninterrupted
wait_until 300 has_finished uninterrupted
passed "two hosts trained together over the network between them"

check killed-worker
agent 0 interrupted
agent 1 interrupted
wait_until 300 has_saved interrupted '[123]5'
kill_worker node1
log "killed the worker on node1"
wait_until 300 has_resumed interrupted 1
passed "kill -9 of the worker on node1: both hosts resumed"

check killed-host
wait_until 300 has_saved interrupted '[456]5'
host_kill 1
log "killed node1"
host_boot 1
agent 1 interrupted
wait_until 300 has_resumed interrupted 2
passed "node1 was killed and booted again: both hosts resumed"

check same-weights
wait_until 300 has_finished interrupted
passed "the interrupted training resumed from $(checkpoints_of interrupted); $(python "$HERE/same_result.py" "$WORK/interrupted" "$WORK/uninterrupted")"
