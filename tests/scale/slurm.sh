#!/bin/bash
# The files of docker/slurm/ on a SLURM cluster of two nodes, on this machine: a training preempted in three ways ends
# like an uninterrupted one, and workers of which one is killed give the result of a single one. Three minutes on two
# free cores, root. BIN: the environment's bin folder (.venv/bin).
set -euo pipefail
HERE=$(dirname "$(realpath "$0")")
. "$HERE/common.sh"
. "$HERE/netns_hosts.sh"
. "$HERE/slurm_cluster.sh"

ATTACK=autoattack_linf_0.1

clean_up() { hosts_down; }

evidence() {
    tail -n 40 "$WORK"/*.log || true
    tail -n 15 "$WORK"/slurm/*.log || true
    on node0 timeout 10 scontrol show job || true
}

# train NAME: submits the training of a run, and prints the number of its job.
train() {
    RUN=$WORK/$1 CONFIG=tests/scale/digits.yaml on node0 sbatch --parsable --partition normal --nodes 2 \
        --ntasks-per-node 1 --gpus-per-node 0 --cpus-per-task 1 --output "$WORK/$1.log" \
        docker/slurm/train.sbatch --trainer.accelerator cpu --trainer.precision 32-true
}

# has_completed JOB: waits until a job ends; fails unless it has completed.
has_completed() {
    wait_until 300 job_is_over "$1"
    job_is "$1" COMPLETED
}

job_is_over() { [[ $(job_field "$1" JobState) =~ COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|PREEMPTED ]]; }

# restarts JOB N: starts a job that was requeued for the Nth time, once its old processes have ended; otherwise SLURM
# would take their status for that of the new ones. Without this, it would start after two minutes.
restarts() {
    wait_until 240 was_requeued "$1" "$2"
    wait_until 60 has_left node0
    wait_until 60 has_left node1
    on node0 scontrol update JobId="$1" StartTime=now+3 # nodes compare times in seconds
    wait_until 60 job_is "$1" RUNNING
}

was_requeued() { [ "$(job_field "$1" Restarts)" = "$2" ] && job_is "$1" PENDING; }

has_left() { ! on "$1" pgrep slurmstepd > /dev/null; }

# has_saved RUN STEPS: whether there is a periodic checkpoint of a step; STEPS is a pattern.
has_saved() { compgen -G "$WORK/$1/checkpoints/step=$2.ckpt" > /dev/null; }

# is_starting HOST: whether the program runs there and keeps SIGUSR1 (bit 9) waiting.
is_starting() {
    local mask
    mask=$(on "$1" bash -c 'cat /proc/$(pgrep -f "python.* fi[t]" | tail -n 1)/status' 2> /dev/null | sed -n 's/SigBlk:\s*//p')
    ((0x${mask:-0} & 0x200))
}

# has_records N: whether the workers have written N records.
has_records() { [ "$(find "$WORK/uninterrupted/test/state" -name '*.record' 2> /dev/null | wc -l)" -ge "$1" ]; }

# kill_owner HOST: kills a worker on a host that has claimed a block.
kill_owner() {
    local claim pid
    claim=$(grep -l "\"$1\"" "$WORK"/uninterrupted/test/state/*/*.claim 2> /dev/null | head -n 1) \
        && pid=$(grep -oP '"pid": *\K[0-9]+' "$claim") \
        && on "$1" kill -9 "$pid" \
        && log "killed process $pid on $1, which had claimed $(basename "$claim")"
}

# checkpoints_of RUN: the checkpoints from which a run resumed.
checkpoints_of() { grep -oP 'Resuming from .*/\K.*(?=\.)' "$WORK/$1.log" | paste -sd ';'; }

needs ip nsenter munged slurmctld slurmd srun
check cluster
hosts_up 2
slurm_up
passed "$(on node0 sinfo --version): $(on node0 srun --nodes 2 hostname | sort | paste -sd ' ')"

check training
job=$(train uninterrupted)
has_completed "$job"
passed "docker/slurm/train.sbatch: job $job completed on $(job_field "$job" NodeList)"

check signal
job=$(train interrupted)
wait_until 240 has_saved interrupted '[34]0'
on node0 scancel --signal=USR1 "$job"
restarts "$job" 1
passed "SIGUSR1 in the middle of an epoch: $(grep -oP 'Stopped by a signal: .*/\K.* holds step [0-9]+' "$WORK/interrupted.log"), job $job was requeued"

check early-signal
wait_until 60 is_starting node0
wait_until 60 is_starting node1
on node0 scancel --signal=USR1 "$job"
restarts "$job" 2
passed "SIGUSR1 while the program started: stopped after one step, requeued again"

check preemption
wait_until 240 has_saved interrupted '[56][05]'
urgent=$(on node0 sbatch --parsable --partition urgent --nodes 2 --exclusive --output "$WORK/urgent.log" --wrap 'srun hostname')
wait_until 240 job_is "$urgent" COMPLETED
restarts "$job" 3
passed "job $urgent of a higher priority ran on both nodes, job $job was requeued"

check same-weights
has_completed "$job"
passed "the interrupted training resumed from $(checkpoints_of interrupted); $(python "$HERE/same_result.py" "$WORK/interrupted" "$WORK/uninterrupted")"

check evaluation
checkpoint=$WORK/uninterrupted/checkpoints/last.ckpt
cp -r "$WORK/uninterrupted" "$WORK/alone"
on node0 lightning-paf test --ckpt_path "$WORK/alone/checkpoints/last.ckpt" --trainer.num_nodes 1 --trainer.strategy auto \
    &> "$WORK/alone.log"
job=$(CKPT=$checkpoint on node0 sbatch --parsable --array 0-2 --gpus-per-node 0 --cpus-per-task 1 \
    --output "$WORK/evaluate-%a.log" docker/slurm/evaluate.sbatch)
wait_until 240 has_records 3
wait_until 60 kill_owner node0 # another worker on node0 detects its death at once
for i in 0 1 2; do wait_until 300 job_is_over "${job}_$i"; done
states=$(for i in 0 1 2; do job_field "${job}_$i" JobState; done | sort | paste -sd ' ')
[ "$states" = "COMPLETED COMPLETED FAILED" ]
outcome=$(python "$HERE/same_outcomes.py" "$WORK/uninterrupted/test/$ATTACK.json" "$WORK/alone/test/$ATTACK.json")
passed "docker/slurm/evaluate.sbatch, one worker killed by kill -9: $states; as one process: $outcome"
