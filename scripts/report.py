#!/usr/bin/env python3
"""A run folder as one Markdown page: loss curve, the selection of every layer, evaluations and samples.
  python3 scripts/report.py RUN -o report.md [--rows 16] [--evaluation val.json ...] [--plot curve.png]
--evaluation: what `sieve eval --json` printed. --plot wants matplotlib."""
import argparse
import json
import pathlib
import sys

STATISTICS = ["band_over_k", "saturated_over_k", "ever_selected", "mean_lifetime", "score_std"]


def read_rows(run):
    try:
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    except (OSError, ValueError) as error:
        sys.exit(f"{run}: no metrics of a run ({error})")
    if not rows:
        sys.exit(f"{run}/metrics.jsonl is empty: the run has not logged a step")
    return rows


def number(value, digits=3):
    return "" if value is None else f"{value:.{digits}f}"


def some(rows, count):
    """At most `count` rows, evenly spread, the first and the last among them."""
    if len(rows) <= count:
        return rows
    return [rows[round(i * (len(rows) - 1) / (count - 1))] for i in range(count)]


def layers_of(row):
    return sorted({int(key.split("/")[1]) for key in row if key.startswith("attn/")})


def statistics_mean(row, name):
    values = [row[f"attn/{layer}/{name}"] for layer in layers_of(row) if row.get(f"attn/{layer}/{name}") is not None]
    return sum(values) / len(values) if values else None


def curve(rows, count):
    logged = [row for row in rows if "loss/train" in row]
    validated = [row for row in rows if "loss/val" in row]
    text = ["| step | tokens | s | loss | tokens/s | F/k | saturated/k | ever selected | lifetime | score deviation |", "|---|---|---|---|---|---|---|---|---|---|"]
    for row in some(logged, count):
        cells = [number(statistics_mean(row, name), 0 if name == "mean_lifetime" else 3) for name in STATISTICS]
        text.append(f"| {row['step']} | {row['tokens']:,.0f} | {row['time']:.1f} | {number(row['loss/train'], 4)} | {row['tok_s']:,.0f} | " + " | ".join(cells) + " |")
    if validated:
        text += ["", "| step | validation loss | bits/byte |", "|---|---|---|"]
        text += [f"| {row['step']} | {number(row['loss/val'], 4)} | {number(row.get('bpb/val'), 4)} |" for row in some(validated, count)]
    return text


def layers_table(rows):
    last = next((row for row in reversed(rows) if layers_of(row)), None)
    if last is None:
        return []
    text = ["", f"Selection by layer at step {last['step']}:", "", "| layer | " + " | ".join(STATISTICS) + " |", "|---" * (len(STATISTICS) + 1) + "|"]
    for layer in layers_of(last):
        text.append(f"| {layer} | " + " | ".join(number(last.get(f"attn/{layer}/{name}"), 1 if name == "mean_lifetime" else 3) for name in STATISTICS) + " |")
    return text


def evaluations(paths):
    text = []
    for path in paths:
        try:
            results = json.loads(path.read_text())["results"]
        except (OSError, ValueError, KeyError) as error:
            sys.exit(f"{path}: not what sieve eval --json prints ({error})")
        for r in results:
            scalars = [f"{key} {r[key]:.4f}" for key in ("loss", "token_ppl", "word_ppl", "byte_ppl", "bits_per_byte") if r.get(key) is not None]
            text += ["", f"Evaluation on {r.get('data', path.stem)} ({r.get('targets', r.get('tokens', '?'))} tokens): " + ", ".join(scalars)]
            positions = some([p for p in r.get("positions", []) if p["loss"] is not None], 9)
            if positions:
                text.append("Loss by position in the row: " + ", ".join(f"{p['from']}-{p['to'] - 1}: {p['loss']:.3f}" for p in positions))
    return text


def samples(run):
    files = sorted((run / "samples").glob("*.txt"))
    return [] if not files else ["", f"Samples, {files[-1].stem}:", "", "```", files[-1].read_text(errors="replace").rstrip(), "```"]


def draw(rows, path):
    try:
        import matplotlib
    except ImportError:
        print("matplotlib is missing: no plot (Debian: python3-matplotlib, else pip install matplotlib)", file=sys.stderr)
        return
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for key, label in (("loss/train", "training"), ("loss/val", "validation")):
        points = [(row["tokens"] / 1e6, row[key]) for row in rows if row.get(key) is not None]
        if points:
            left.plot(*zip(*points), label=label)
    left.set_xlabel("million tokens")
    left.set_ylabel("loss (nats per token)")
    left.legend()
    for name in ("band_over_k", "saturated_over_k", "ever_selected", "score_std"):
        points = [(row["tokens"] / 1e6, statistics_mean(row, name)) for row in rows if layers_of(row)]
        if points:
            right.plot(*zip(*points), label=name)
    right.set_xlabel("million tokens")
    right.set_ylabel("mean over the layers")
    right.legend()
    figure.savefig(path, dpi=130)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--evaluation", nargs="*", default=[], type=pathlib.Path)
    parser.add_argument("--plot", type=pathlib.Path)
    a = parser.parse_args()
    rows = read_rows(a.run)
    text = curve(rows, max(2, a.rows)) + layers_table(rows) + evaluations(a.evaluation) + samples(a.run)
    a.output.write_text("\n".join(text) + "\n")
    if a.plot:
        draw(rows, a.plot)


main()
