#!/usr/bin/env bash
# Text to what configs/novels.yaml trains on:  bash scripts/prepare_novels.sh CORPUS OUT [tenths] [path of sieve]
# CORPUS holds train.jsonl.zst, val.jsonl.zst and test.jsonl.zst, one document {"text": ...} a line. OUT becomes a folder with tokenizer.json (byte-level BPE of
# 8,192 tokens, from the whole training text), train/, val/ and test/, and OUT.tar.xz beside it, to be carried to a machine without the corpus.
# tenths (1-10, default 10): the share of the training documents that goes into train/, spread evenly. val/ and test/ are always whole.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
[ -d "$1" ] || { echo "prepare_novels.sh: $1 is no folder" >&2; exit 3; }
corpus=$(realpath -e "$1") out=$(realpath -m "$2") tenths=${3:-10}
sieve=${4:-$(cd "$(dirname "$0")/.." && pwd)/build/cpu/src/cli/sieve}
[[ $tenths =~ ^([1-9]|10)$ ]] || { echo "prepare_novels.sh: tenths is $tenths, not 1 to 10" >&2; exit 2; }
for split in train val test; do
  [ -r "$corpus/$split.jsonl.zst" ] || { echo "prepare_novels.sh: $corpus/$split.jsonl.zst is missing" >&2; exit 3; }
done
[ ! -e "$out" ] || { echo "prepare_novels.sh: $out exists; take another folder" >&2; exit 2; }
work=$out.tmp
rm -rf "$work"
mkdir -p "$work"
trap 'rm -rf "$work"' EXIT
"$sieve" tokenizer train "$corpus/train.jsonl.zst" -o "$work/tokenizer.json" --vocab-size 8192
zstd -qdc --long=27 "$corpus/train.jsonl.zst" | awk -v n="$tenths" '(NR - 1) % 10 < n' >"$work/train.jsonl"
cp "$corpus/val.jsonl.zst" "$corpus/test.jsonl.zst" "$work"
for input in train.jsonl val.jsonl.zst test.jsonl.zst; do
  split=${input%%.*}
  "$sieve" data prepare "$work/$input" -o "$work" --split "$split" --tokenizer "$work/tokenizer.json"
  rm "$work/$input"
done
mv "$work" "$out"
trap - EXIT
# Two-byte tokens: the match finder is told where they begin, which saves a tenth.
tar -C "$(dirname "$out")" -cf - "$(basename "$out")" | xz --lzma2=preset=6e,lc=0,lp=1,pb=1,dict=64MiB -c >"$out.tar.xz"
ls -l "$out.tar.xz" >&2
