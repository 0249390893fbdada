#!/usr/bin/env bash
# A job that gets SLURM's signal before its time is up, is put back into the queue by itself, and goes on where it was.
#
#     tests/robustness/slurm/one_machine.sh bash tests/robustness/slurm/requeue.sh      # no cluster at hand: one of this machine, as root
#     bash tests/robustness/slurm/requeue.sh                                   # on a cluster
#
# Trains a tiny teacher for 60 steps; PYTHON names the interpreter (default: .venv/bin/python). SLURM holds a requeued
# job back for up to two minutes.
set -euo pipefail
cd "$(dirname "$0")/../../.."
python=${PYTHON:-.venv/bin/python}
folder=$(mktemp -d "$PWD/requeue.XXXXXX") # in a folder that the nodes share
trap 'rm -rf "$folder"' EXIT
{
    echo "#!/bin/bash"
    echo "cd '$PWD'; export OMP_NUM_THREADS=1"
    printf '%s ' srun "$python" -m aeic_lightning fit --config experiments/tiny/teacher_stage1.yaml --ckpt_path auto \
        "--vars.root=$folder" --vars.name=run --vars.steps=60 --vars.val_every=60 --data.init_args.batch_size=1 \
        '--data.init_args.val_max_size=[64,64]' --model.init_args.objective.lpips=0 --model.init_args.objective.semantic=0 \
        "'--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoint},
          {class_path: callbacks.progress.PlainProgress, init_args: {every_n_steps: 1}}]'"
} >"$folder/job.sh"
job=$(sbatch --parsable --job-name=study --ntasks=1 --requeue --open-mode=append -o "$folder/log.txt" "$folder/job.sh")
wait_for() {
    for _ in $(seq 600); do ! grep -q "$1" "$folder/log.txt" 2>/dev/null || return 0; sleep 0.5; done
    echo "requeue: no '$1' after five minutes" >&2
    tail -n 20 "$folder/log.txt" >&2
    exit 1
}
wait_for "step 5/60"
scancel --signal=USR1 "$job"
wait_for "back in the queue"
wait_for "max_steps=60"
grep -E "saved|back in the queue|Restored|max_steps" "$folder/log.txt"
[ "$(grep -c "^step 60/60" "$folder/log.txt")" = 1 ]
[ "$(grep "^step" "$folder/log.txt" | awk '{print $2}' | sort | uniq -d | wc -l)" = 0 ] # no step was done twice
echo "requeue: the job stopped, was requeued and ended, each step done once"
