#!/usr/bin/env bash
# What only a machine with a GPU can show, from programs packed by scripts/pack.sh:  bash scripts/gpu_suite.sh sieve/bin OUT [part ...]
#   tests      every [gpu] case of every test program found
#   sanitize   compute-sanitizer (memcheck, racecheck, initcheck, synccheck) over the cases tagged [small]
#   kernels    achieved bandwidth of the memory-bound kernels beside a copy
#   attention  full and window attention
#   curves     scripts/gpu_curves.py: losses on GPU and CPU, killed and resumed runs, checkpoints moved between devices
#   step       the training step of GPT-2 124M at T = 1k, 4k, 16k, 64k and of 355M
# Prints short results; whole logs go to OUT. The exit code counts the parts that failed.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,10p' "$0" >&2; exit 2; }
bin=$(realpath -e "$1") || exit 2
out=$2
shift 2
[ $# -gt 0 ] || set -- tests sanitize kernels attention curves step
mkdir -p "$out"
root=$(cd "$(dirname "$0")/.." && pwd)
failed=0
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

head_line | tee "$out/machine.txt"
for part in "$@"; do
  echo "== $part"
  start=$SECONDS
  "run_$part" || { echo "== $part FAILED"; failed=$((failed + 1)); }
  echo "== $part: $((SECONDS - start)) s"
done
exit $failed
