#!/usr/bin/env bash
# A SLURM cluster of this machine alone, for as long as one command runs.
#
#     tests/robustness/slurm/one_machine.sh                       # the check: srun, sbatch, then a sweep of two runs
#     tests/robustness/slurm/one_machine.sh COMMAND [WORD...]     # any command, with sbatch, srun, squeue and sacct at hand
#
# As root on Debian or Ubuntu; needs no systemd, no cgroups and no configuration, so a container will do. Installs
# slurm-wlm and munge where they are missing. Keys, configuration, logs and state lie in one temporary folder, on ports
# and a socket of its own, so that a SLURM that is there already is not touched. The daemons end with the command; what
# is wrong with them is in the folder's logs, which are kept if the command fails.
set -euo pipefail
cd "$(dirname "$0")/../../.."
say() { echo "one_machine: $*" >&2; }

# ---- packages
if ! command -v slurmctld >/dev/null || ! command -v slurmd >/dev/null || ! command -v munged >/dev/null; then
    [ "$(id -u)" = 0 ] || { say "no slurm here; as root: apt-get install slurm-wlm munge"; exit 2; }
    say "installing slurm-wlm and munge"
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi
[ "$(id -u)" = 0 ] || { say "slurmd must be root's to start jobs; run this as root"; exit 2; }

# ---- one folder for everything
work=$(mktemp -d /tmp/slurm-one-machine.XXXXXX)
chmod 755 "$work"
mkdir "$work"/{munge,state,spool,bin}
host=$(hostname -s)
ports=$((20000 + $$ % 20000))
socket=$work/munge/socket
head -c 128 /dev/urandom >"$work/munge/key"
chmod 600 "$work/munge/key"
chown -R munge: "$work/munge"

daemons=()
finish() {
    code=$?
    trap - EXIT INT TERM
    scancel --user=root >/dev/null 2>&1 || true
    for _ in $(seq 100); do [ -n "$(squeue --noheader 2>/dev/null)" ] || break; sleep 0.2; done
    for pid in ${daemons[@]+"${daemons[@]}"}; do kill "$pid" 2>/dev/null || true; done
    wait
    if [ "$code" = 0 ]; then rm -rf "$work"; else say "failed with $code; logs: $work/*.log"; fi
    exit "$code"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# ---- munge: who is who
setpriv --reuid=munge --regid=munge --clear-groups munged --foreground --socket="$socket" --key-file="$work/munge/key" \
    --pid-file="$work/munge/pid" --seed-file="$work/munge/seed" >"$work/munged.log" 2>&1 &
daemons+=($!)

# ---- slurm: one node, one partition
cat >"$work/slurm.conf" <<CONF
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$ports
SlurmdPort=$((ports + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$socket
CredType=cred/munge
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
# Without systemd and cgroups: processes are told by their group, and cores are counted but not fenced.
ProctrackType=proctrack/pgid
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
ReturnToService=2
MinJobAge=86400
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$work/slurm.conf

# SLURM's own sacct wants a database server. submitit asks it one thing, the states of jobs, which the controller knows
# as well; here is an sacct that asks the controller.
cat >"$work/bin/sacct" <<'SACCT'
#!/usr/bin/env bash
echo "JobID|State|NodeList"
while [ $# -gt 0 ]; do
    if [ "$1" = -j ]; then
        scontrol show job --oneliner "$2" 2>/dev/null | sed -nE \
            's/^JobId=([0-9]+).* JobState=([A-Z_]+).* NodeList=([^ ]*).*/\1|\2|\3/p'
        shift
    fi
    shift
done
SACCT
chmod +x "$work/bin/sacct"
export PATH=$work/bin:$PATH

for _ in $(seq 50); do [ -S "$socket" ] && break; sleep 0.1; done
slurmctld -i -D >"$work/slurmctld.out.log" 2>&1 &
daemons+=($!)
slurmd -D >"$work/slurmd.out.log" 2>&1 &
daemons+=($!)
for _ in $(seq 150); do
    [ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] && break
    sleep 0.2
done
[ "$(sinfo --noheader --format=%t 2>/dev/null)" = idle ] || { say "the node did not come up"; exit 1; }
say "$(slurmctld -V) on $host with $(nproc) CPUs is up"

# ---- the command
if [ $# -gt 0 ]; then
    "$@"
    exit
fi
echo "srun says: $(srun hostname)"
sbatch --wait --output="$work/hello" --wrap hostname
echo "sbatch says: $(cat "$work/hello")"
python=.venv/bin/python
[ -x "$python" ] || python=python3
sweep=("$python" -m aeic_lightning sweep --config experiments/sweeps/two_runs.yaml "--vars.root=$work/runs")
"${sweep[@]}"
sacct -o JobID,State,NodeList --parsable2 $(scontrol show job --oneliner | sed -nE 's/^JobId=([0-9]+).*/-j \1/p')
"${sweep[@]}" --dry-run | tail -n 1
