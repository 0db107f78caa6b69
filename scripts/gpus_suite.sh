#!/usr/bin/env bash
# What only a machine with several GPUs can show, from programs packed by scripts/pack.sh:  bash scripts/gpus_suite.sh sieve/bin OUT [part ...]
#   collectives  tests/mpi/nccl.sh: exact collectives, one gradient on any number of GPUs
#   faults       a rank killed, stopped, stuck in a kernel: all end in time
#   bits         one model file: 1 and 2 GPUs, overlap on and off, ZeRO-1, resumed 2 -> 1 -> 2
#   scaling      GPT-2 124M on one and on all GPUs
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,7p' "$0" >&2; exit 2; }
bin=$(realpath -e "$1") || exit 2
out=$(realpath -m "$2")
shift 2
[ $# -gt 0 ] || set -- collectives faults bits scaling
mkdir -p "$out"
cd "$(dirname "$0")/.."
export SIEVE_MPIRUN=${SIEVE_MPIRUN:-$(command -v mpirun || echo none)} OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
gpus=$(nvidia-smi -L | wc -l)
[ "$gpus" -ge 2 ] || { echo "gpus_suite: $gpus GPU here; several are wanted" >&2; exit 2; }
failed=0
on() {  # on N arguments of sieve...
  local n=$1
  shift
  if [ "$n" = 1 ]; then "$bin/sieve" "$@"; else "$SIEVE_MPIRUN" -n "$n" --bind-to none "$bin/sieve" "$@"; fi
}

run_collectives() { bash tests/mpi/nccl.sh "$bin/mpi_worker"; }
run_faults() {
  local bad=0
  for fault in kill stop hang; do bash tests/mpi/nccl_faults.sh "$bin/mpi_worker" $fault || bad=1; done
  return $bad
}

text() {
  [ -d data/demo/text ] && return
  local headers
  headers=$(ls -d /usr/include/c++/* | sort -V | tail -n 1)
  "$bin/sieve" tokenizer train "$headers" -o data/demo/tokenizer.json --vocab-size 2048 --allow-invalid-utf8 >/dev/null &&
    "$bin/sieve" data prepare "$headers" -o data/demo/text --tokenizer data/demo/tokenizer.json --overwrite --allow-invalid-utf8 >/dev/null
}
# train NAME N overrides...: a short run, then the hash of its model
train() {
  local name=$1 n=$2
  shift 2
  on "$n" pretrain configs/demo.yaml -o "runs/$name" data.val=[] sample.every=0 train.steps=24 train.schedule.warmup=4 train.global_batch=16Ki \
    checkpoint.every=8 device.type=cuda run.deterministic=true log.sinks=[jsonl] "$@" >"$out/train-$name.txt" 2>&1 || { echo "train $name: exit code $?"; tail -n 3 "$out/train-$name.txt"; }
  sha256sum <"runs/$name/checkpoints/latest/model.safetensors" | cut -c1-16
}
run_bits() {
  text || return 1
  rm -rf runs/bits-*
  local bad=0 precision first got
  for precision in fp32 bf16; do
    first=$(train bits-one-$precision 1 device.precision=$precision)
    echo "$precision 1 GPU: $first"
    check() {
      got=$(train "$@" device.precision=$precision)
      echo "$precision $1, $2 GPUs, ${*:3}: $got"
      [ "$got" = "$first" ] || { echo "  differs"; bad=1; }
    }
    check bits-all-$precision "$gpus"
    check bits-late-$precision "$gpus" parallel.overlap=false
    check bits-zero-$precision "$gpus" parallel.zero=1
  done
  # Stops after 8 and 16 steps, each time on another number of GPUs; the schedule is that of the whole run.
  first=$(sha256sum <runs/bits-one-fp32/checkpoints/latest/model.safetensors | cut -c1-16)
  for stop in "$gpus step_00000008" "1 step_00000016" "$gpus step_00000024"; do
    set -- $stop
    train bits-moved "$1" device.precision=fp32 --resume auto >/dev/null
    rm -rf runs/bits-moved/checkpoints/latest
    for step in runs/bits-moved/checkpoints/step_*; do [[ $(basename "$step") > $2 ]] && rm -rf "$step"; done
    ln -sfn "$2" runs/bits-moved/checkpoints/latest
  done
  got=$(sha256sum <runs/bits-moved/checkpoints/latest/model.safetensors | cut -c1-16)
  echo "resumed $gpus -> 1 -> $gpus: $got"
  [ "$got" = "$first" ] || bad=1
  return $bad
}

run_scaling() {
  local bad=0 shape=(configs/gpt2-124m.yaml model.vocab_size=50304 data.seq_len=1024 model.max_seq=1024 train.micro_batch=64 --steps 12 --warmup 4)
  measure() {
    local n=$1
    shift
    printf '%s GPUs %s: ' "$n" "$*"
    on "$n" bench step "${shape[@]}" "$@" 2>>"$out/scaling.err" | grep 'tokens/s' || bad=1
  }
  measure 1
  measure "$gpus"
  measure "$gpus" parallel.overlap=false
  measure "$gpus" parallel.zero=1
  measure "$gpus" run.deterministic=true
  measure 1
  return $bad
}

echo "$(date -u +%F), $gpus x $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sort -u) commit ${SIEVE_COMMIT:-$(git rev-parse --short HEAD 2>/dev/null)}, mpirun $SIEVE_MPIRUN"
for part in "$@"; do
  echo "== $part"
  start=$SECONDS
  "run_$part" || { echo "== $part FAILED"; failed=$((failed + 1)); }
  echo "== $part: $((SECONDS - start)) s"
done
exit $failed
