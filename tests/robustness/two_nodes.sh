#!/usr/bin/env bash
# Two nodes on one machine: two network namespaces with an address each, joined by a cable, and torchrun in both.
#
#     tests/robustness/two_nodes.sh                        # the check: a tiny teacher, stopped in the middle, then resumed
#     tests/robustness/two_nodes.sh COMMAND [WORD...]      # the same words for `torchrun ... -m aeic_lightning` on both
#
# As root on Linux with iproute2. The namespaces share the file system, as nodes of a cluster do, and reach only each
# other. PYTHON names the interpreter (default: .venv/bin/python).
set -euo pipefail
cd "$(dirname "$0")/../.."
say() { echo "two_nodes: $*" >&2; }
command -v ip >/dev/null || { say "no ip here; as root: apt-get install iproute2"; exit 2; }
[ "$(id -u)" = 0 ] || { say "network namespaces are root's; run this as root"; exit 2; }
python=${PYTHON:-.venv/bin/python}
nodes=("aeic$$a" "aeic$$b")
folder=$(mktemp -d "$PWD/two_nodes.XXXXXX") # in a folder that the nodes share
finish() {
    for node in "${nodes[@]}"; do
        ip netns pids "$node" 2>/dev/null | xargs -r kill 2>/dev/null || true
        ip netns del "$node" 2>/dev/null || true
    done
    rm -rf "$folder"
}
trap finish EXIT

for node in "${nodes[@]}"; do ip netns add "$node"; done
ip link add cable netns "${nodes[0]}" type veth peer name cable netns "${nodes[1]}"
for i in 0 1; do
    ip -n "${nodes[i]}" addr add "10.77.0.$((i + 1))/24" dev cable
    ip -n "${nodes[i]}" link set cable up
    ip -n "${nodes[i]}" link set lo up
done

# On both nodes the same command, as `srun` or two terminals would start it; each node's words are in its log.
both() {
    local pids=() code=0
    for i in 0 1; do
        GLOO_SOCKET_IFNAME=cable OMP_NUM_THREADS=1 ip netns exec "${nodes[i]}" "$python" -m torch.distributed.run \
            --nnodes=2 --nproc-per-node=1 --rdzv-backend=c10d --rdzv-endpoint=10.77.0.1:29500 \
            --rdzv-conf="is_host=$((1 - i))" --local-addr="10.77.0.$((i + 1))" -m aeic_lightning "$@" >>"$folder/node$i.log" 2>&1 &
        pids+=($!)
    done
    for pid in "${pids[@]}"; do wait "$pid" || code=$?; done
    return "$code"
}
if [ $# -gt 0 ]; then
    both "$@" || { code=$?; tail -n 20 "$folder"/node?.log; exit "$code"; }
    cat "$folder"/node?.log
    exit
fi

words=(fit --config experiments/tiny/teacher_stage1.yaml --ckpt_path auto "--vars.root=$folder" --vars.name=run
    --vars.steps=12 --vars.val_every=12 --data.init_args.batch_size=1 '--data.init_args.val_max_size=[64,64]'
    --model.init_args.objective.lpips=0 --model.init_args.objective.semantic=0 --trainer.num_nodes=2
    '--trainer.callbacks=[{class_path: callbacks.checkpoint.LastCheckpoint},
      {class_path: callbacks.progress.PlainProgress, init_args: {every_n_steps: 1}},
      {class_path: callbacks.quality.QualityMetrics, init_args: {backbone: lite0}}]')
both "${words[@]}" &
first=$!
for _ in $(seq 600); do ! grep -q "^step 4/12" "$folder/node0.log" 2>/dev/null || break; sleep 0.2; done
grep -q "^step 4/12" "$folder/node0.log" || { tail -n 20 "$folder"/node?.log; exit 1; }
# The second node is asked to stop, as a scheduler does; the first one notices.
ip netns pids "${nodes[1]}" | xargs -I{} sh -c 'grep -q torch.distributed.run /proc/{}/cmdline || kill -TERM {}' || true
wait "$first" && { say "the stopped run ended well"; exit 1; }
both "${words[@]}" || { tail -n 20 "$folder"/node?.log; exit 1; }
grep -hE "saved|Restored|step (4|12)/12" "$folder"/node0.log
[ "$(grep -c "^step 12/12" "$folder/node0.log")" -ge 1 ]
[ "$(grep -cE "^step [0-9]+/12  loss" "$folder/node0.log")" = 12 ] # each step once, by rank 0 alone
! grep -qE "^step" "$folder/node1.log"
say "two nodes trained 12 steps, stopped in between and resumed"
