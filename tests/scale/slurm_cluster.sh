# shellcheck shell=bash
# Sourced after netns_hosts.sh: a SLURM cluster of node0 and node1, with its controller on node0. Without
# accounting and cgroups; other munge and SLURM services of this machine are not touched.

# slurm_up: starts the cluster, with a partition and one that preempts it.
slurm_up() {
    chmod 755 "$WORK"
    mkdir -m 755 "$WORK/slurm" "$WORK/slurm/state" "$WORK/munge"
    head -c 1024 /dev/urandom > "$WORK/munge/key"
    chmod 400 "$WORK/munge/key"
    slurm_configuration > "$WORK/slurm/slurm.conf"
    export SLURM_CONF=$WORK/slurm/slurm.conf
    on node0 munged --force --socket "$WORK/munge/socket" --key-file "$WORK/munge/key" --seed-file "$WORK/munge/seed" \
        --pid-file "$WORK/munge/pid" --log-file "$WORK/munge/log"
    on node0 slurmctld
    on node0 slurmd
    on node1 slurmd
    wait_until 30 nodes_are_idle
}

slurm_configuration() {
    cat << END
ClusterName=test
SlurmctldHost=node0(10.99.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$WORK/munge/socket
StateSaveLocation=$WORK/slurm/state
SlurmdSpoolDir=$WORK/slurm/spool-%n
SlurmctldPidFile=$WORK/slurm/controller.pid
SlurmdPidFile=$WORK/slurm/%n.pid
SlurmctldLogFile=$WORK/slurm/controller.log
SlurmdLogFile=$WORK/slurm/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
PropagateResourceLimits=NONE
SlurmdTimeout=30
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=node0 NodeAddr=10.99.0.1 CPUs=2 CoresPerSocket=2 RealMemory=2000 State=UNKNOWN
NodeName=node1 NodeAddr=10.99.0.2 CPUs=2 CoresPerSocket=2 RealMemory=2000 State=UNKNOWN
PartitionName=normal Nodes=node0,node1 Default=YES PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=node0,node1 PriorityTier=9 PreemptMode=OFF
END
}

nodes_are_idle() { [ "$(on node0 timeout 10 sinfo --noheader --partition normal --format '%T %D')" = "idle 2" ]; }

# job_is JOB STATE: whether it is in a state, such as RUNNING.
job_is() { [ "$(job_field "$1" JobState)" = "$2" ]; }

# job_field JOB FIELD: a field of `scontrol show job`.
job_field() { on node0 scontrol --oneliner show job "$1" | head -1 | tr ' ' '\n' | sed -n "s/^$2=//p"; }
