#!/usr/bin/env bash
# What only a machine with a GPU can show, from programs packed by scripts/pack.sh:  bash scripts/gpu_suite.sh sieve/bin OUT [part ...]
#   tests      every [gpu] case of every test program found
#   sanitize   compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over the cases tagged [small]
#   kernels    achieved bandwidth of the memory-bound kernels beside a copy
#   attention  full and window attention
#   curves     scripts/gpu_curves.py: losses on GPU and CPU, killed and resumed runs, checkpoints moved between devices
#   step       the training step of GPT-2 124M at T = 1k, 4k, 16k, 64k and of 355M
#   sparsek    full, window and SparseK attention from 1k to 128k, head size 64 and 128, independent scores and scores of deviation 4, the deterministic
#              backward; PEERS=attention.py names a benchmark of PyTorch's attention to run beside it, with the interpreter PEER_PYTHON
#   scaling    the training step of GPT-2 124M by SparseK from 1k to 128k, and how it grows
#   novels=DATA  the run of configs/novels.yaml on DATA, a folder of scripts/prepare_novels.sh or its .tar.xz (NOVELS_SETTINGS: further key=value; NOVELS_VERIFY=8192: that many greedy tokens against one full forward), and
#              SparseK attention on the scores that it has learned
# All but the last are run where no part is named. Prints short results; whole logs go to OUT. The exit code counts the parts that failed.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,13p' "$0" >&2; exit 2; }
bin=$(realpath -e "$1") || exit 2
out=$2
shift 2
[ $# -gt 0 ] || set -- tests sanitize kernels attention curves step sparsek scaling
mkdir -p "$out"
root=$(cd "$(dirname "$0")/.." && pwd)
failed=0
device=${SUITE_DEVICE:-cuda}  # cpu: the parts sparsek, scaling and novels can be tried where there is no GPU
head_line() {
  echo "$(date -u +%F), $(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader | sort -u | tr '\n' ' ')commit ${SIEVE_COMMIT:-$(git -C "$root" rev-parse --short HEAD 2>/dev/null)}"
}
step() { "$bin/sieve" bench step "$@" || return 1; }

run_tests() {
  local bad=0
  for program in "$bin"/test_*; do
    # Catch2 answers "no tests" for programs without GPU cases; that is no failure here.
    "$program" "[gpu]" >"$out/$(basename "$program").txt" 2>&1
    local code=$?
    ! grep -q 'GPU cases skipped' "$out/$(basename "$program").txt" || bad=1  # no device: nothing was tested
    printf '%-18s %s\n' "$(basename "$program")" "$(tail -n 3 "$out/$(basename "$program").txt" | tr '\n' ' ')"
    grep -q 'No test' "$out/$(basename "$program").txt" || [ $code -eq 0 ] || bad=1
  done
  return $bad
}
run_sanitize() {
  local bad=0
  for program in "$bin"/test_*; do
    "$program" --list-tests "[gpu][small]" 2>/dev/null | grep -q '\[small\]' || continue
    for tool in memcheck racecheck initcheck synccheck; do
      compute-sanitizer --tool "$tool" --error-exitcode 9 "$program" "[gpu][small]" >"$out/$tool-$(basename "$program").txt" 2>&1 || bad=1
      printf '%-10s %-18s %s\n' "$tool" "$(basename "$program")" "$(grep -E 'ERROR SUMMARY|RACECHECK SUMMARY' "$out/$tool-$(basename "$program").txt" | tail -n 1)"
    done
  done
  return $bad
}
run_kernels() { "$bin/bench_gpu_kernels" >"$out/gpu_kernels.md" && cat "$out/gpu_kernels.md"; }
run_attention() { "$bin/sieve" bench attention --device cuda --patterns full,sliding_window --lengths 1k,4k,16k,64k | tee "$out/gpu_attention.md"; }
run_curves() { python3 "$root/scripts/gpu_curves.py" "$bin" "$out" | tee "$out/curves.txt"; }
run_step() {
  local bad=0 config=$root/configs/gpt2-124m.yaml
  local medium=(model.n_layers=24 model.d_model=1024 model.n_heads=16 train.recompute.activations=24)
  : >"$out/step.txt"
  for shape in "1024 64" "4096 16" "16384 4" "65536 1" "1024 64 ${medium[*]}"; do
    set -- $shape
    step "$config" model.vocab_size=50304 data.seq_len="$1" model.max_seq="$1" train.micro_batch="$2" "${@:3}" --steps 10 --warmup 3 \
      >"$out/one.txt" 2>&1 || bad=1
    tee -a "$out/step.txt" <"$out/one.txt"
  done
  rm -f "$out/one.txt"
  return $bad
}

bench_attention() {  # name, then options
  "$bin/sieve" bench attention --device "$device" --csv "$out/attention_$1.csv" --json "$out/attention_$1.json" "${@:2}" >"$out/attention_$1.md" 2>"$out/attention_$1.log"
  local code=$?
  cat "$out/attention_$1.md"
  [ $code -eq 0 ] || tail -n 3 "$out/attention_$1.log"
  return $code
}
run_sparsek() {
  local bad=0 lengths=${SPARSEK_LENGTHS:-1k,2k,4k,8k,16k,32k,64k,128k}
  for dim in 64 128; do
    bench_attention "D${dim}_iid" --head-dim $dim --lengths "$lengths" || bad=1
    # Full attention to 64k again, for the crossover: it does not look at scores.
    bench_attention "D${dim}_sigma4" --head-dim $dim --lengths "$lengths" --scores sigma4 --patterns full,sparsek --pass-seconds 0.3 || bad=1
    bench_attention "D${dim}_deterministic" --head-dim $dim --lengths "$lengths" --patterns sparsek --deterministic --pass-seconds 0.3 || bad=1
    [ -z "${PEERS:-}" ] || OUT=$out "${PEER_PYTHON:-python3}" "$PEERS" --D $dim --T "${PEER_LENGTHS:-1024,4096,16384,65536}" \
      --backends cudnn,sparsek_torch --budget_s "${PEER_SECONDS:-40}" 2>&1 | tee "$out/peers_D$dim.txt"
    local plot=("$out/attention_D${dim}_iid.csv" -o "$out/attention_D$dim.png")
    [ ! -e "$out/attn_D$dim.json" ] || plot+=(--peers "$out/attn_D$dim.json")
    python3 "$root/scripts/plot_attention.py" "${plot[@]}" || true  # a picture more or less
  done
  return $bad
}
run_scaling() { python3 "$root/scripts/scaling.py" "$bin" "$out" device.type="$device" ${SCALING_ARGUMENTS:-} | tee "$out/scaling.md"; }
run_novels() {
  local data=$1 work code bad=0
  [ -e "$data" ] || { echo "novels: no such data: \"$data\" (novels=FOLDER or novels=FILE.tar.xz)"; return 1; }
  data=$(realpath "$data")
  work=$(mktemp -d) || return 1
  if [ -f "$data" ]; then
    mkdir "$work/data" && tar -xf "$data" -C "$work/data" || return 1
    data=$(echo "$work"/data/*)
  fi
  [ -r "$data/tokenizer.json" ] || { echo "novels: $1 holds no tokenizer.json: make it by scripts/prepare_novels.sh"; return 1; }
  local settings=(tokenizer.path="$data/tokenizer.json" "data.train=[$data/train]" "data.val=[$data/val]" run.dir="$work/run" device.type="$device" run.max_time="${NOVELS_TIME:-200s}")
  "$bin/sieve" pretrain "$root/configs/novels.yaml" "${settings[@]}" ${NOVELS_SETTINGS:-} >"$out/novels.txt" 2>&1
  code=$?
  tail -n 4 "$out/novels.txt"
  [ $code -eq 0 ] || echo "novels: exit code $code (75: ended by its time limit, before the learning rate had fallen)"
  [ $code -eq 0 ] || [ $code -eq 75 ] || bad=1
  rm -rf "$out/novels"  # of an earlier call
  mkdir -p "$out/novels"
  cp -r "$work/run/metrics.jsonl" "$work/run/config.yaml" "$work/run/manifest.json" "$work/run/samples" "$out/novels/" || bad=1
  local evaluations=()
  for split in val test; do
    [ -d "$data/$split" ] || continue
    "$bin/sieve" eval "$work/run" eval.data="$data/$split" --device "$device" --json >"$out/novels/$split.json" 2>>"$out/novels.txt" || bad=1
    evaluations+=("$out/novels/$split.json")
  done
  "$bin/sieve" generate "$work/run" --device "$device" --prompt "It was " --max-new-tokens 400 --temperature 0.8 --top-p 0.95 >"$out/novels/generated.txt" 2>>"$out/novels.txt" || bad=1
  # Every token of a greedy text against the largest logit of one full forward over it.
  [ -z "${NOVELS_VERIFY:-}" ] || "$bin/sieve" generate "$work/run" --device "$device" --prompt "It was " --max-new-tokens "$NOVELS_VERIFY" --temperature 0 \
    --precision fp32 --verify 2>&1 >/dev/null | tail -n 3 | tee "$out/novels/verify.txt"
  # Trained scores need another amount of work than random ones.
  local lengths=${NOVELS_LENGTHS:-4k,16k,64k}
  "$bin/sieve" bench scores "$work/run" --data "$data/val" --rows 2 --length "${lengths##*,}" --device "$device" -o "$work/scores.safetensors" >>"$out/novels.txt" 2>&1 &&
    bench_attention novels_scores --patterns sparsek --k 64 --window 64 --lengths "$lengths" --slope 6.1e-5 --scores "$work/scores.safetensors" || bad=1
  python3 "$root/scripts/report.py" "$out/novels" -o "$out/novels.md" --evaluation "${evaluations[@]}" --plot "$out/novels.png" || bad=1
  cat "$out/novels.md"
  rm -rf "$work"
  return $bad
}

head_line | tee "$out/machine.txt"
for part in "$@"; do
  echo "== $part"
  start=$SECONDS
  name=${part%%=*} argument=${part#"${part%%=*}"}
  "run_$name" "${argument#=}" || { echo "== $part FAILED"; failed=$((failed + 1)); }
  echo "== $part: $((SECONDS - start)) s"
done
exit $failed
