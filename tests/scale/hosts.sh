#!/bin/bash
# Training by torchrun on two hosts of this machine: a worker is killed, then a whole host, and the run ends as one that
# nobody disturbs. Two minutes on two free cores, root. BIN: the environment's bin folder (.venv/bin).
set -euo pipefail
HERE=$(dirname "$(realpath "$0")")
. "$HERE/common.sh"
. "$HERE/netns_hosts.sh"

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 # or torch's agents wait for each other when a host is replaced

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

# has_saved RUN STEPS: whether the periodic checkpoint of a step is there; STEPS is a pattern.
has_saved() { compgen -G "$WORK/$1/checkpoints/step=$2.ckpt" > /dev/null; }

kill_worker() { on "$1" pkill -KILL -f "python.* -m lightning_paf fi[t]"; }

went_on() { [ "$(grep -c 'Restored all states' "$WORK/$1-node0.log")" -ge "$2" ]; }

resumptions() { grep -oP 'Resuming from .*/\K.*(?=\.)' "$WORK/$1-node0.log" | paste -sd ';'; }

needs ip nsenter torchrun
show torchrun
hosts_up 2
agent 0 undisturbed
agent 1 undisturbed
wait_until 300 has_finished undisturbed
passed "two hosts trained together over the network between them"

show killed-worker
agent 0 disturbed
agent 1 disturbed
wait_until 300 has_saved disturbed '[123]5'
kill_worker node1
say "killed the worker on node1"
wait_until 300 went_on disturbed 1
passed "kill -9 of the worker on node1: both hosts went on"

show killed-host
wait_until 300 has_saved disturbed '[456]5'
host_kill 1
say "killed node1"
host_boot 1
agent 1 disturbed
wait_until 300 went_on disturbed 2
passed "node1 was killed and booted again: both hosts went on"

show same-weights
wait_until 300 has_finished disturbed
passed "the disturbed training went on from $(resumptions disturbed); $(python "$HERE/same_result.py" "$WORK/disturbed" "$WORK/undisturbed")"
