#!/usr/bin/env bash
# The comparison of attentions by one command: runs a grid of configs/compare/ and writes its report.
#   bash scripts/compare.sh tiny OUT [options of compare.py run]              a minute on a CPU, on the C++ headers of this machine: what the tests run
#   bash scripts/compare.sh novels OUT --path data=DATA [options]             the study; DATA is a folder of scripts/prepare_novels.sh; --gpus 4: four runs at once
#   bash scripts/compare.sh MY/GRID.yaml OUT [options]                        a grid of one's own, by its path
# Safe to call again after any interruption: what is finished is kept. OUT/report.html and OUT/tables.md are written in any case.
set -uo pipefail
case ${1:-} in -h | --help) sed -n '2,6p' "$0"; exit 0 ;; esac
[ $# -ge 2 ] || { sed -n '2,6p' "$0" >&2; exit 2; }
grid=$1 out=$2
shift 2
root=$(cd "$(dirname "$0")/.." && pwd)
case $grid in
  */* | *.yaml | *.yml | *.json) file=$grid ;;
  *) file=$root/configs/compare/$grid.yaml ;;
esac
[ -r "$file" ] || { echo "compare: no grid $file; give a path to a YAML file or one of these names: $(cd "$root/configs/compare" && ls ./*.yaml | sed 's/\.yaml//; s/^\.\///' | tr '\n' ' ')" >&2; exit 2; }
export SIEVE=${SIEVE:-$root/build/cpu/src/cli/sieve}
[ "$grid" != tiny ] || [ -x "$SIEVE" ] || { echo "compare: no program $SIEVE: build it (bash scripts/build.sh cpu sieve) or name one with SIEVE=PATH" >&2; exit 2; }
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}  # idle threads sleep: the machine may be shared

prepare_tiny() {  # folder: 36 headers as 36 documents; every sixth is val, every sixth test
  local data=$1 number=0 split text
  [ ! -e "$data/test" ] || return 0
  text=/usr/include/c++/$(g++ -dumpversion)/bits
  rm -rf "$data" "$data.tmp"
  mkdir -p "$data.tmp/text/train" "$data.tmp/text/val" "$data.tmp/text/test"
  while IFS= read -r header; do
    number=$((number + 1))
    split=train
    [ $((number % 6)) -ne 3 ] || split=val
    [ $((number % 6)) -ne 5 ] || split=test
    head -c 6000 "$header" >"$data.tmp/text/$split/$(basename "$header")"
  done < <(find "$text" -maxdepth 1 -name '*.h' -size +6k | LC_ALL=C sort | head -n 36)
  [ $number -ge 12 ] || { echo "compare: $text holds too few headers: install g++" >&2; return 3; }
  for split in train val test; do
    "$SIEVE" data prepare "$data.tmp/text/$split" -o "$data.tmp" --split $split --allow-invalid-utf8 >&2 || return 3
  done
  mv "$data.tmp" "$data"
}

mkdir -p "$out" || exit 2
if [ "$grid" = tiny ]; then
  prepare_tiny "$out/data" 2>"$out/prepare.log" || { cat "$out/prepare.log" >&2; exit 3; }
  set -- --path data="$out/data" --allow-dirty "$@"  # nobody quotes its numbers
fi
python3 "$root/scripts/compare.py" run "$file" "$out" "$@"
code=$?
[ $code -ne 2 ] || exit 2
case " $* " in *" --list "*) exit $code ;; esac
python3 "$root/scripts/compare_report.py" "$out" -o "$out/report.html" --markdown "$out/tables.md" || code=1
exit $code
