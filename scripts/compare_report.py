#!/usr/bin/env python3
"""The results of scripts/compare.py as one self-contained HTML page, and its tables as Markdown:
  python3 scripts/compare_report.py OUT -o report.html [--markdown tables.md] [--reference TYPE] [--resamples 10000]
OUT: folder of compare.py. --reference: the type that the others are compared with (default: the grid's). Figures want matplotlib; without it the page has
tables only and says so. numpy, where it is there, makes the resamples faster and changes no number."""
import argparse
import base64
import html
import io
import json
import pathlib
import re
import sys

import compare_costs as costs
import compare_tables as tables
from compare_goals import goals_table
from compare_grid import GridError
from compare_program import write_whole

NOT_THE_PAPERS = ("Every number on this page was measured by the runs named under Provenance. None is the SparseK paper's (arXiv 2406.16747), whose tables and "
                  "hyper-parameters were not at hand; models, data and tokens are far smaller than what such papers train.")
COMPARED = ("What is held equal, and what is not: runs of one section have the same data order, batch, length in tokens and schedule (matched tokens). Types of constant cache "
            "and types whose cache grows have tables apart, their cached rows, visited rows and bytes beside (matched cached rows, or about equal visited "
            "ones); parameters are listed, "
            "since some types add some; matched wall-clock has a table of its own. Better and worse: clear of the books and of the seeds, after Holm's correction.")
TITLES = {"positions": ("Loss by position", "Targets by the number of tokens of the window that they saw; mean over seeds."),
          "recall": ("Loss of repeated bigrams by distance", "Targets whose bigram the visible text holds already, by the distance to its last occurrence; mean over seeds.")}
STYLE = """body{font:15px/1.45 sans-serif;max-width:1250px;margin:2em auto;padding:0 1em;color:#222}table{border-collapse:collapse;font-size:13px;margin:.6em 0}
td,th{border:1px solid #ccc;padding:3px 7px;text-align:right}td:first-child,th:first-child{text-align:left}th{background:#f2f2f2}
.scroll{overflow-x:auto}.note{color:#555;max-width:60em}img{max-width:100%}"""


def read_result(path):
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        if result.get("schema") != 1 or result.get("status") not in ("finished", "failed"):
            raise ValueError("not a result of compare.py")
        return result
    except (OSError, ValueError) as error:
        raise GridError(f"{path}: {error}; move it away and let scripts/compare.py run it again") from None


def read_all(out):
    """(grid.json, results in the grid's order)."""
    try:
        index = json.loads((out / "grid.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise GridError(f"{out}/grid.json: {error}; OUT is a folder in which scripts/compare.py has run") from None
    order = {cell["name"]: at for at, cell in enumerate(index["cells"])}
    results = [read_result(path) for path in (out / "runs").glob("*/result.json")]
    results = [result for result in results if result["name"] in order]
    return index, sorted(results, key=lambda result: order[result["name"]])


# -- figures ------------------------------------------------------------------------------------------------------------------------------------------
def load_pyplot():
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    from matplotlib import pyplot
    return pyplot


class Figures:
    def __init__(self):
        self.pyplot = load_pyplot()

    def lines(self, panels, logarithmic=False):
        """PNG of panels (x label, y label, {label: [lines of points]}) side by side, one colour a label, one legend beside them; None without matplotlib or
        points."""
        if self.pyplot is None or not any(lines for _, _, lines in panels):
            return None
        figure, axes = self.pyplot.subplots(1, len(panels), figsize=(5.4 * len(panels) + 2.6, 4.6), layout="constrained", squeeze=False)
        labels = list(dict.fromkeys(label for _, _, lines in panels for label in lines))
        colours, styles, handles = self.pyplot.get_cmap("tab10"), ("-", "--", ":", "-."), {}
        for axis, (x_label, y_label, lines) in zip(axes[0], panels):
            for label, several in lines.items():
                at = labels.index(label)
                for points in several:
                    handles[label], = axis.plot(*zip(*points), color=colours(at % 10), linestyle=styles[at // 10 % 4], marker="." if len(points) < 15 else None, linewidth=1.1)
            axis.set_xlabel(x_label)
            axis.set_ylabel(y_label)
            if logarithmic:
                axis.set_xscale("log", base=2)
            axis.grid(alpha=0.3)
        figure.legend([handles[label] for label in labels], labels, loc="outside right upper", fontsize=7)
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=110)
        self.pyplot.close(figure)
        return file.getvalue()

    def curves(self, group, kinds, speeds):
        """Validation loss over tokens, and over seconds at the type's training speed, from a fifth of the run on, where it tells types apart; training loss
        where nothing was validated."""
        by_tokens, by_seconds = {}, {}
        for kind in kinds:
            rate, _ = costs.rate_of(group, kind, speeds)
            for result in group.results(kind):
                points = costs.validated(result, "tokens")
                if len(points) < 2:
                    points = [(row["tokens"], row["loss/train"]) for row in result["curve"] if row.get("loss/train") is not None]
                points = [(x, y) for x, y in points if x >= 0.2 * points[-1][0]]
                for lines, scale in ((by_tokens, 1e6), (by_seconds, rate)):
                    if points and scale:
                        lines.setdefault(group.label(kind), []).append([(x / scale, y) for x, y in points])
        return self.lines([("million tokens", "loss, nats a token", by_tokens), ("seconds at the type's training speed", "loss, nats a token", by_seconds)])

    def against(self, x_label, values, reference):
        """Two panels of values, label -> {x: loss}: as they are, and minus the reference's, where small differences show."""
        panels = [(x_label, "loss, nats a token", {label: [sorted(points.items())] for label, points in values.items() if points})]
        if reference in values:
            other = values[reference]
            lines = {label: [sorted((x, y - other[x]) for x, y in points.items() if x in other)] for label, points in values.items() if set(points) & set(other)}
            panels.append((x_label, f"minus that of {reference}", lines))
        return self.lines(panels, logarithmic=True)

    def buckets(self, group, kinds, split, name, key, reference):
        values = {}
        for kind in kinds:
            for label, _, loss in tables.pooled_buckets(group, kind, split, name, key):
                if loss is not None and label[0].isdigit():  # not the bucket of those without a distance
                    start = float(label.replace(",", "").split("-")[0].split(" ")[0])
                    values.setdefault(group.label(kind), {})[start] = loss
        return self.against("tokens seen" if key == "positions" else "distance of the last occurrence", values, reference)


# -- the page -----------------------------------------------------------------------------------------------------------------------------------------
class Page:
    """Blocks in order, written twice: as HTML with figures, as Markdown without."""

    def __init__(self, title):
        self.html = [f"<!DOCTYPE html><html lang=\"en\"><head><meta charset=\"utf-8\"><title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
                     f"<h1>{html.escape(title)}</h1>"]
        self.markdown = [f"# {title}", ""]

    def heading(self, text, level=2):
        self.html.append(f"<h{level}>{html.escape(text)}</h{level}>")
        self.markdown += ["#" * level + " " + text, ""]

    def text(self, text):
        self.html.append(f"<p class=\"note\">{html.escape(text)}</p>")
        self.markdown += [text, ""]

    def table(self, table):
        if table is None:
            return
        self.heading(table.title, 3)
        if table.note:
            self.text(table.note)
        cells = lambda row, tag: "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row) + "</tr>"
        self.html.append("<div class=\"scroll\"><table>" + cells(table.columns, "th") + "".join(cells(row, "td") for row in table.rows) + "</table></div>")
        line = lambda row: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |"
        self.markdown += [line(table.columns), "|" + "---|" * len(table.columns), *map(line, table.rows), ""]

    def figure(self, png, description):
        if png is not None:
            self.html.append(f"<p><img alt=\"{html.escape(description)}\" src=\"data:image/png;base64,{base64.b64encode(png).decode()}\"></p>")


def splits_of(group):
    found = {split for kind in group.types for result in group.results(kind) for split in result["evaluations"]}
    return [split for split in ("test", "val", *sorted(found - {"test", "val"})) if split in found]


def evaluations_in(group):
    names = [name for kind in group.types for result in group.results(kind) for split in result["evaluations"].values() for name in split]
    return list(dict.fromkeys(names))


def families(group):
    """Types that share a figure: each section with the reference."""
    yield from ([kind for kind in group.types if kind == group.reference or kind in kinds] for kinds in group.sections().values() or [list(group.types)])


def add_group(page, figures, group, absent, speeds, resamples):
    page.heading(group.title)
    page.text(f"Not run here, or not to their end: {absent}." if absent else "Every type that the grid wants here has run.")
    for kinds in families(group):
        page.figure(figures.curves(group, kinds, speeds), f"loss curves of {group.title}")
    for split in splits_of(group):
        for name in evaluations_in(group):
            for table in tables.loss_tables(group, split, name, resamples) if is_single(group, split, name) else []:
                page.table(table)
            page.table(tables.choice_table(group, split, name, resamples) if is_single(group, split, name) else None)
    page.table(costs.cost_table(group, speeds))
    page.table(costs.wall_clock_table(group, speeds))
    page.table(costs.selection_table(group))
    for name in evaluations_in(group):
        add_evaluation(page, figures, group, splits_of(group)[0], name, resamples)


def add_evaluation(page, figures, group, split, name, resamples):
    against = group.label(group.reference) if group.reference in group.types else None
    table, losses = tables.context_table(group, split, name, resamples)
    page.table(table)
    if table:
        for kinds in families(group):
            shown = {group.label(kind): losses[kind] for kind in kinds if kind in losses}
            page.figure(figures.against("tokens of visible context", shown, against), "loss by visible context")
        return
    for key, (title, note) in TITLES.items():
        table = tables.bucket_table(group, split, name, key, title, note)
        page.table(table)
        for kinds in families(group) if table else []:
            page.figure(figures.buckets(group, kinds, split, name, key, against), title)
    page.table(tables.recall_difference_table(group, split, name, resamples))


def is_single(group, split, name):
    return all(len(tables.evaluation_of(result, split, name)) <= 1 for kind in group.types for result in group.results(kind))


def build(index, results, figures, reference, resamples):
    grid, stages = index["grid"], list(dict.fromkeys(cell["stage"] for cell in index["cells"]))
    page = Page(grid.get("title") or f"Comparison {grid['name']}")
    page.text(NOT_THE_PAPERS)
    finished = sum(result["status"] == "finished" for result in results)
    page.text(f"{finished} of the grid's {len(index['cells'])} runs have finished. Text evaluated as final is the split test, used for no choice; every choice (learning rates, "
              "which types go on) was made on val.")
    page.text(COMPARED)
    if figures.pyplot is None:
        page.text("This page has no figures: matplotlib was not there when it was made.")
    for name in stages:
        title = grid["stages"][name].get("title")
        cells = [cell for cell in index["cells"] if cell["stage"] == name]
        page.text(f"Stage {name}{f' ({title})' if title else ''}: {sum(cell['state'] == 'finished' for cell in cells)} of {len(cells)} runs finished.")
    sources = {name: stage["from"]["type"] for name, stage in grid["stages"].items() if "from" in stage}
    groups = tables.groups_of(results, stages, reference, sources)
    single = next((name for group in groups for split in splits_of(group) for name in evaluations_in(group) if is_single(group, split, name)), None)
    page.heading("What was to be shown")
    page.table(goals_table(groups, results, index["cells"], grid, reference, single, resamples))
    speeds = costs.speeds_of(results)
    for group in groups:
        add_group(page, figures, group, tables.not_run(group, index["cells"], grid), speeds, resamples)
    probes = costs.probe_tables(results, index["cells"])
    if probes:
        page.heading("Probes")
    for table in probes:
        page.table(table)
    page.heading("The runs")
    dense = next((name for name, kind in grid["types"].items() if {one["type"] for one in kind.get("kinds", {}).values()} == {"full"}), reference)
    for table in (costs.speed_table(results, groups, index["cells"], dense), costs.search_table(results)):
        page.table(table)
    page.table(costs.missing_table(index["cells"], results))
    page.table(costs.provenance_table(results))
    page.html.append("</body></html>")
    return page


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("-o", "--output", required=True, type=pathlib.Path)
    parser.add_argument("--markdown", type=pathlib.Path)
    parser.add_argument("--reference")
    parser.add_argument("--resamples", type=int, default=10000)
    a = parser.parse_args()
    try:
        if a.resamples < 2000:
            raise GridError(f"--resamples {a.resamples}: want at least 2000; with fewer no p-value could stay below 0.05 after correction over twenty types")
        index, results = read_all(a.out)
        reference = a.reference or index["grid"].get("reference")
        if reference not in index["grid"]["types"]:
            raise GridError(f"--reference {reference}: is not one of the grid's types: {', '.join(index['grid']['types'])}")
        figures = Figures()
        page = build(index, results, figures, reference, a.resamples)
        write_whole(a.output, "\n".join(page.html) + "\n")
        if a.markdown:
            write_whole(a.markdown, re.sub(r"\n{3,}", "\n\n", "\n".join(page.markdown)).rstrip() + "\n")
    except GridError as error:
        print(f"compare_report: {error}", file=sys.stderr)
        return 2
    print(f"{a.output}: {len(results)} results{'' if figures.pyplot else ', no figures: matplotlib is missing (Debian: python3-matplotlib, else pip install matplotlib)'}",
          file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
