#!/bin/bash
# The files of docker/slurm/ on a SLURM cluster of two nodes, on this machine: a training that is preempted in three
# ways ends as one that is not, and workers of which one is killed come to the verdict of one alone. Three minutes on
# two free cores, root. BIN: the environment's bin folder (.venv/bin).
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

# train NAME: submits the training of a run, and prints its job's number.
train() {
    RUN=$WORK/$1 CONFIG=tests/scale/digits.yaml on node0 sbatch --parsable --partition patient --nodes 2 \
        --ntasks-per-node 1 --gpus-per-node 0 --cpus-per-task 1 --output "$WORK/$1.log" \
        docker/slurm/train.sbatch --trainer.accelerator cpu --trainer.precision 32-true
}

# At its end a job says so; a requeued one begins again after two minutes unless told to.
ends_well() {
    wait_until 300 job_is_over "$1"
    job_is "$1" COMPLETED
}

job_is_over() { [[ $(job_field "$1" JobState) =~ COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL|PREEMPTED ]]; }

# begins_again JOB N: lets a job that was requeued for the Nth time start. Earlier than the last word of its old
# processes, SLURM would take that for one of the new ones.
begins_again() {
    wait_until 240 was_requeued "$1" "$2"
    wait_until 60 has_left node0
    wait_until 60 has_left node1
    on node0 scontrol update JobId="$1" StartTime=now+3 # the nodes count in seconds
    wait_until 60 job_is "$1" RUNNING
}

was_requeued() { [ "$(job_field "$1" Restarts)" = "$2" ] && job_is "$1" PENDING; }

has_left() { ! on "$1" pgrep slurmstepd > /dev/null; }

# has_saved RUN STEPS: whether the periodic checkpoint of a step is there; STEPS is a pattern.
has_saved() { compgen -G "$WORK/$1/checkpoints/step=$2.ckpt" > /dev/null; }

# is_starting HOST: whether the program runs there and keeps SIGUSR1 (bit 9) waiting.
is_starting() {
    local mask
    mask=$(on "$1" bash -c 'cat /proc/$(pgrep -f "python.* fi[t]" | tail -n 1)/status' 2> /dev/null | sed -n 's/SigBlk:\s*//p')
    ((0x${mask:-0} & 0x200))
}

# has_records N: whether the workers have written so many.
has_records() { [ "$(find "$WORK/undisturbed/test/state" -name '*.record' 2> /dev/null | wc -l)" -ge "$1" ]; }

# kill_holder HOST: kills a worker there that holds a block, if there is one.
kill_holder() {
    local claim pid
    claim=$(grep -l "\"$1\"" "$WORK"/undisturbed/test/state/*/*.claim 2> /dev/null | head -n 1) \
        && pid=$(grep -oP '"pid": *\K[0-9]+' "$claim") \
        && on "$1" kill -9 "$pid" \
        && say "killed process $pid on $1, which held $(basename "$claim")"
}

# resumptions RUN: what it went on from.
resumptions() { grep -oP 'Resuming from .*/\K.*(?=\.)' "$WORK/$1.log" | paste -sd ';'; }

needs ip nsenter munged slurmctld slurmd srun
show cluster
hosts_up 2
slurm_up
passed "$(on node0 sinfo --version): $(on node0 srun --nodes 2 hostname | sort | paste -sd ' ')"

show training
job=$(train undisturbed)
ends_well "$job"
passed "docker/slurm/train.sbatch: job $job completed on $(job_field "$job" NodeList)"

show signal
job=$(train disturbed)
wait_until 240 has_saved disturbed '[34]0'
on node0 scancel --signal=USR1 "$job"
begins_again "$job" 1
passed "SIGUSR1 in the middle of an epoch: $(grep -oP 'Stopped by a signal: .*/\K.* holds step [0-9]+' "$WORK/disturbed.log"), job $job was requeued"

show early-signal
wait_until 60 is_starting node0
wait_until 60 is_starting node1
on node0 scancel --signal=USR1 "$job"
begins_again "$job" 2
passed "SIGUSR1 while the program started: stopped after one step, requeued again"

show preemption
wait_until 240 has_saved disturbed '[56][05]'
urgent=$(on node0 sbatch --parsable --partition urgent --nodes 2 --exclusive --output "$WORK/urgent.log" --wrap 'srun hostname')
wait_until 240 job_is "$urgent" COMPLETED
begins_again "$job" 3
passed "job $urgent of a higher priority ran on both nodes, job $job was requeued"

show same-weights
ends_well "$job"
passed "the disturbed training went on from $(resumptions disturbed); $(python "$HERE/same_result.py" "$WORK/disturbed" "$WORK/undisturbed")"

show evaluation
checkpoint=$WORK/undisturbed/checkpoints/last.ckpt
cp -r "$WORK/undisturbed" "$WORK/alone"
on node0 lightning-paf test --ckpt_path "$WORK/alone/checkpoints/last.ckpt" --trainer.num_nodes 1 --trainer.strategy auto \
    &> "$WORK/alone.log"
job=$(CKPT=$checkpoint on node0 sbatch --parsable --array 0-2 --gpus-per-node 0 --cpus-per-task 1 \
    --output "$WORK/evaluate-%a.log" docker/slurm/evaluate.sbatch)
wait_until 240 has_records 3
wait_until 60 kill_holder node0 # where another one sees at once that it is dead
for i in 0 1 2; do wait_until 300 job_is_over "${job}_$i"; done
states=$(for i in 0 1 2; do job_field "${job}_$i" JobState; done | sort | paste -sd ' ')
[ "$states" = "COMPLETED COMPLETED FAILED" ]
verdict=$(python "$HERE/same_verdict.py" "$WORK/undisturbed/test/$ATTACK.json" "$WORK/alone/test/$ATTACK.json")
passed "docker/slurm/evaluate.sbatch, one worker killed by kill -9: $states; as one process: $verdict"
