#!/usr/bin/env bash
# From nothing to a trained model: installs what is missing, builds, prepares real text, trains a small SparseK + window model, evaluates it,
# samples from it. Safe to run twice.
#   bash scripts/demo.sh             trains on the C++ standard library's headers of this machine's compiler
#   bash scripts/demo.sh my_books/   trains on a folder or a file of yours
set -euo pipefail
given=${1:-}
[ -z "$given" ] || given=$(realpath -e "$given" 2>/dev/null) || { echo "demo: $1 is not there: name a folder or a file of text" >&2; exit 2; }
cd "$(dirname "$0")/.."

bash scripts/setup.sh
bash scripts/build.sh cpu sieve
sieve=build/cpu/src/cli/sieve
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}  # idle threads sleep: the machine may be shared
text=${given:-/usr/include/c++/$(g++ -dumpversion)}
work=build/demo
say() { printf '\n== %s\n' "$*" >&2; }

say "text: $text"
rm -rf "$work"
mkdir -p "$work/val" "$work/train"
# Every twelfth file is held out, so that gzip can be asked about exactly the text that the model is evaluated on. A single file gives its
# last tenth.
if [ -f "$text" ]; then
  lines=$(wc -l <"$text")
  head -n $((lines - lines / 10)) "$text" >"$work/train/text.txt"
  tail -n $((lines / 10)) "$text" >"$work/val/text.txt"
else
  find -L "$text" -type f -not -path '*/.*' | LC_ALL=C sort >"$work/files"
  number=0
  while IFS= read -r file; do
    number=$((number + 1))
    split=train
    [ $((number % 12)) -ne 6 ] || split=val
    cp "$file" "$work/$split/$(printf %06d $number)-$(basename "$file")"
  done <"$work/files"
fi
if [ -z "$(ls "$work/val")" ] || [ ! -s "$work/val/$(ls "$work/val" | head -n 1)" ]; then
  echo "demo: $text holds too little text: give a folder with at least 12 files, or a longer file" >&2
  exit 3
fi

say "tokenizer and token shards"
"$sieve" tokenizer train "$work/train" -o data/demo/tokenizer.json --vocab-size 2048 --allow-invalid-utf8
"$sieve" data prepare "$work/train" -o data/demo/text --tokenizer data/demo/tokenizer.json --overwrite --allow-invalid-utf8
"$sieve" data prepare "$work/val" -o data/demo/text --split val --tokenizer data/demo/tokenizer.json --overwrite --allow-invalid-utf8

say "training (about two minutes on two cores)"
rm -rf runs/demo
"$sieve" pretrain configs/demo.yaml

say "evaluation on held-out text by sliding windows (sieve eval runs/demo alone takes disjoint ones: a higher figure), beside gzip -9"
"$sieve" eval runs/demo eval.data=data/demo/text/val eval.method=sliding eval.stride=0.5
bytes=$(find "$work/val" -type f -exec cat {} + | wc -c)
packed=$(find "$work/val" -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat | gzip -9 | wc -c)
awk -v b="$bytes" -v p="$packed" 'BEGIN { printf "gzip -9 · bits/byte %.4f   (all held-out files in one stream)\n", 8 * p / b }'

say "a sample"
"$sieve" generate runs/demo --prompt "namespace std" --max-new-tokens 200 --temperature 0.7 --top-k 50 --seed 1
echo
say "done: runs/demo holds the checkpoints, metrics and samples; $sieve help start says what to do next"
