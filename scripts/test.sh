#!/usr/bin/env bash
# Installs what is missing, builds, runs every test through ctest. Extra arguments go to ctest (bash scripts/test.sh -L attention).
#   PRESET=cpu-debug bash scripts/test.sh    the same under AddressSanitizer and UBSan (tsan: ThreadSanitizer)
set -euo pipefail
cd "$(dirname "$0")/.."
preset=${PRESET:-cpu}
bash scripts/setup.sh
bash scripts/build.sh "$preset"
# Idle threads sleep instead of spinning: tests share the cores with each other and with whatever else runs here.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
log=$(mktemp)
trap 'rm -f "$log"' EXIT
# One line a test that ran, not another when it starts. Those that were skipped, and ctest's list of them, look like trouble: their number says it.
status=0
ctest --preset "$preset" --no-tests=error "$@" 2>&1 | tee "$log" | sed -u -E '/^ *Start +[0-9]+: /d; /\*\*\*Skipped/d; /\(Skipped\)$/d; /^The following tests did not run:$/d' || status=$?
skipped=$(grep -c '(Skipped)$' "$log" || true)
[ "$skipped" -eq 0 ] || echo "$skipped tests were skipped: they want a GPU (bash scripts/build.sh cuda, docs/gpu.md), matplotlib or another build; which ones: ctest --preset $preset"
if grep -q '^No tests were found' "$log"; then
  echo "test.sh: no test matches: $*"
elif [ $status -ne 0 ]; then
  echo "test.sh: failed; what the tests said stands above. Only those again: cd $PWD && ctest --preset $preset --rerun-failed --output-on-failure"
fi
grep -E '^[0-9]+% tests passed' "$log" || true
exit $status
