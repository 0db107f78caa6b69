#!/usr/bin/env bash
# Configures and builds one preset: bash scripts/build.sh PRESET [TARGET ...]. Shows how far it is, on a terminal as one line that changes,
# elsewhere as a line every twenty seconds (BUILD_SAYS_EVERY). All output goes to build/PRESET/build.log and is shown when the build fails.
set -euo pipefail
cd "$(dirname "$0")/.."
preset=$1
shift
log=build/$preset/build.log
mkdir -p "build/$preset"
echo "build: preset $preset on $(nproc) cores (log: $log)" >&2
start=$SECONDS

# Keeps what it reads in the log. A loop of the shell, because line by line is what awk and sed do not read from a pipe.
show_progress() {
  local line step='^\[([0-9]+)/([0-9]+)\] ' said=$SECONDS every=${BUILD_SAYS_EVERY:-20} columns=80
  if [ -t 2 ]; then columns=$(tput cols 2>/dev/null || echo 80); fi
  while IFS= read -r line; do
    printf '%s\n' "$line"
    [[ $line =~ $step ]] || continue
    if [ -t 2 ]; then
      printf '\r\033[K%s' "${line:0:columns-1}" >&2
    elif [ $((SECONDS - said)) -ge "$every" ]; then
      said=$SECONDS
      echo "build: ${BASH_REMATCH[1]} of ${BASH_REMATCH[2]} after $((SECONDS - start)) s" >&2
    fi
  done >"$log"
  [ ! -t 2 ] || printf '\r\033[K' >&2
}

if ! { cmake --preset "$preset" && cmake --build --preset "$preset" ${1:+--target "$@"}; } 2>&1 | show_progress; then
  tail -n 60 "$log" >&2
  echo "build: failed; the whole log is in $log" >&2
  exit 1
fi
echo "build: done in $((SECONDS - start)) s" >&2
