#!/usr/bin/env bash
# Configures and builds one preset, quietly: bash scripts/build.sh PRESET [TARGET ...]. Output goes to build/PRESET/build.log and is shown
# when the build fails.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
log=build/$preset/build.log
mkdir -p "build/$preset"
echo "build: preset $preset on $(nproc) cores (log: $log)" >&2
start=$SECONDS
if ! { cmake --preset "$preset" && cmake --build --preset "$preset" ${1:+--target "$@"}; } >"$log" 2>&1; then
  tail -n 60 "$log" >&2
  echo "build: failed; the whole log is in $log" >&2
  exit 1
fi
echo "build: done in $((SECONDS - start)) s" >&2
