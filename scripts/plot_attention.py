#!/usr/bin/env python3
"""Draws what `sieve bench attention --csv` (or --json) wrote: milliseconds over T, both axes logarithmic, one line a pattern.
  python3 scripts/plot_attention.py attention.csv [more.csv|more.json ...] -o attention.png [--column total_ms] [--peers attn_D64.json]
Several files are told apart by their names. The ending of -o chooses the format (png, svg, pdf). --peers: a JSON list of objects with backend, T, fwd_ms
and bwd_ms, drawn dashed. Wants matplotlib."""
import argparse
import csv
import json
import pathlib
import sys

COLUMNS = {"forward_ms": ("fwd_ms",), "backward_ms": ("bwd_ms",), "total_ms": ("fwd_ms", "bwd_ms"), "selection_ms": None, "selection_backward_ms": None}


def rows_of(path):
    """The rows of one file as dicts; exits with a sentence where it is not a table of the benchmark."""
    try:
        if path.suffix == ".json":
            rows = json.loads(path.read_text())["results"]
        else:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        return [row for row in rows if not row.get("missing") and {"pattern", "T"} <= row.keys()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path}: not a table of sieve bench attention ({error})")


def lines_of(paths, column):
    """label -> sorted points (T, ms)."""
    lines = {}
    for path in paths:
        for row in rows_of(path):
            value = float(row.get(column) or 0)
            if value > 0:
                label = row["pattern"] if len(paths) == 1 else f"{path.stem}: {row['pattern']}"
                lines.setdefault(label, []).append((int(row["T"]), value))
    return {label: sorted(points) for label, points in lines.items()}


def peers_of(path, column):
    fields = COLUMNS[column]
    lines = {}
    if path is None or fields is None:
        return lines
    try:
        for row in json.loads(path.read_text()):
            lines.setdefault(f"{row['backend']} (PyTorch)", []).append((int(row["T"]), sum(float(row[field]) for field in fields)))
    except (OSError, ValueError, KeyError, TypeError) as error:
        sys.exit(f"{path}: not a list of peers' timings ({error})")
    return {label: sorted(points) for label, points in lines.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", type=pathlib.Path)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--column", default="total_ms", choices=list(COLUMNS))
    parser.add_argument("--peers", type=pathlib.Path)
    parser.add_argument("--title", default="")
    arguments = parser.parse_args()
    ours = lines_of(arguments.tables, arguments.column)
    if not ours:
        sys.exit(f"no row has a {arguments.column} above 0")
    try:
        import matplotlib
    except ImportError:
        sys.exit("matplotlib is missing: install it (Debian: python3-matplotlib, else pip install matplotlib); the CSV opens in any spreadsheet")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 5), layout="constrained")
    for label, points in ours.items():
        axes.plot(*zip(*points), marker="o", label=label)
    for label, points in peers_of(arguments.peers, arguments.column).items():
        axes.plot(*zip(*points), marker=".", linestyle="--", linewidth=1, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    lengths = sorted({T for points in ours.values() for T, _ in points})
    axes.set_xticks(lengths, [f"{T // 1024}k" if T % 1024 == 0 else str(T) for T in lengths])
    axes.minorticks_off()
    axes.set_xlabel("T (tokens)")
    axes.set_ylabel(arguments.column.removesuffix("_ms").replace("_", " ") + " (ms)")
    axes.set_title(arguments.title)
    axes.grid(True, which="major", alpha=0.3)
    axes.legend()
    try:
        figure.savefig(arguments.output, dpi=150)
    except (OSError, ValueError) as error:
        sys.exit(f"{arguments.output}: {error}")
    print(f"{arguments.output}: {len(ours)} lines")


main()
