#!/usr/bin/env python3
"""Time of a training step over the context length at a fixed number of tokens:  python3 scripts/scaling.py BIN OUT [options] [key=value ...]
Runs `sieve bench step` once a length, prints a Markdown table and the slope of log(time per token) over log(T), and writes OUT/scaling.json.
A slope of 0 says that a token costs the same in any context. Lengths above --tokens take one row of that length; times are then scaled to --tokens."""
import argparse
import json
import math
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bin", type=pathlib.Path, help="folder of the program sieve")
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--config", default=str(ROOT / "configs" / "gpt2-124m-sparsek.yaml"))
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768,65536,131072")
    parser.add_argument("--tokens", type=int, default=65536, help="of a step")
    parser.add_argument("--from-length", type=int, default=8192, help="the slope is taken from here on")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--warmup", type=int, default=3)
    parser.add_argument("settings", nargs="*", help="key=value")
    return parser.parse_intermixed_args()  # settings may stand between options


def measure(a, length):
    """The JSON of one `sieve bench step`, or None with the reason on stderr."""
    rows = max(1, a.tokens // length)
    command = [str(a.bin / "sieve"), "bench", "step", a.config, *a.settings, f"data.seq_len={length}", f"train.micro_batch={rows}",
               f"train.global_batch={rows * length}", "--steps", str(a.steps), "--warmup", str(a.warmup), "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode == 0:
        return json.loads(done.stdout)
    print(f"T = {length}: exit code {done.returncode}: {done.stderr.strip()[-400:]}", file=sys.stderr, flush=True)
    return None


def slope_of(points):
    """Least squares through (log x, log y)."""
    xs, ys = [math.log(x) for x, _ in points], [math.log(y) for _, y in points]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)


def main():
    a = arguments()
    a.out.mkdir(parents=True, exist_ok=True)
    lengths = sorted(int(text) for text in a.lengths.split(","))
    results, failed = [], 0
    print("| T | rows | tokens/s | step ms | ms per %d tokens | attention and selection ms | first step s | peak GiB |\n|---|---|---|---|---|---|---|---|" % a.tokens, flush=True)
    for length in lengths:
        r = measure(a, length)
        if r is None:
            failed += 1
            continue
        tokens = r["batch"] * r["seq_len"]
        fixed = r["step_seconds"] * a.tokens / tokens
        attention = sum(k["seconds"] for name, k in r["kernels"].items() if name.startswith(("Softmax", "DenseAttention", "Select", "RowList")))
        results.append({"T": length, "milliseconds_at_fixed_tokens": 1e3 * fixed, "attention_milliseconds": 1e3 * attention, **r})
        print(f"| {length} | {r['batch']} | {r['tokens_per_second']:,.0f} | {1e3 * r['step_seconds']:.1f} | {1e3 * fixed:.1f} | {1e3 * attention:.1f} "
              f"| {r['first_step_seconds']:.2f} | {r['peak_bytes'] / 2**30:.1f} |", flush=True)
    points = [(r["T"], r["milliseconds_at_fixed_tokens"]) for r in results if r["T"] >= a.from_length]
    slope = slope_of(points) if len(points) >= 2 else None
    if slope is not None:
        print(f"\nslope of log(time) over log(T) from T = {points[0][0]} to {points[-1][0]}: {slope:+.4f}")
    (a.out / "scaling.json").write_text(json.dumps({"slope": slope, "from": a.from_length, "tokens": a.tokens, "results": results}, indent=2) + "\n")
    sys.exit(1 if failed else 0)


main()
