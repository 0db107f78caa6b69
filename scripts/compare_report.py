#!/usr/bin/env python3
"""The results of scripts/compare.py as one self-contained HTML page, and its tables as Markdown:
  python3 scripts/compare_report.py OUT -o report.html [--markdown tables.md] [--figures DIR] [--reference TYPE] [--resamples 10000]
OUT: folder of compare.py. --reference: the type that the others are compared with (default: the grid's). --figures: the figures of the largest group of runs
also as DIR/*.png, which the Markdown then shows, with DIR/captions.md. Figures want matplotlib; without it the page has tables only and says so, and --figures
ends with 1. numpy, where it is there, makes the resamples faster and changes no number."""
import argparse
import base64
import html
import os
import pathlib
import re
import sys

from comparison import costs, figures, pairs, plot, tables
from comparison.figures import is_single
from comparison.goals import goals_table
from comparison.grid import GridError
from comparison.program import write_whole
from comparison.tables import read_all

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
.scroll{overflow-x:auto}.note{color:#555;max-width:60em}img{max-width:100%;background:#fff}figure{margin:1em 0}figcaption{color:#555;max-width:60em}"""


# -- figures ------------------------------------------------------------------------------------------------------------------------------------------
class Drawn:
    """Figures as PNG, in the page and, those of the main group, as files of `folder`, which Markdown at `markdown` refers to."""

    def __init__(self, folder=None, markdown=None):
        self.folder, self.written, self.missing, self.pyplot = folder, {}, None, None
        self.link = folder and markdown and os.path.relpath(folder, markdown.parent)
        try:
            self.pyplot = plot.load()
        except plot.Missing as missing:
            self.missing = str(missing)

    def add(self, page, group, names, speeds, main):
        for figure in figures.figures_of(group, speeds, names, with_speeds=main) if self.pyplot else []:
            png = plot.draw(self.pyplot, figure)
            file = f"{figure.name}.png"
            if main and self.folder:
                self.folder.mkdir(parents=True, exist_ok=True)
                (self.folder / file).write_bytes(png)
                self.written[file] = figure
            page.figure(figure, png, f"{self.link}/{file}" if main and self.link else None)

    def finish(self):
        """Captions beside the files; figures of an earlier report that had more to show must not stay there."""
        if not self.written:
            return
        for file in {f"{name}.png" for name in figures.NAMES} - set(self.written):
            (self.folder / file).unlink(missing_ok=True)
        captions = [f"![{figure.title}]({file})\n\n**{figure.title}.** {figure.caption}\n" for file, figure in self.written.items()]
        write_whole(self.folder / "captions.md", "\n".join(["# Figures of the comparison\n", *captions]))


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

    def figure(self, figure, png, link):
        """link: of its file as the Markdown sees it; None: not there."""
        title, caption = html.escape(figure.title), html.escape(figure.caption)
        self.html.append(f"<figure><img alt=\"{title}\" src=\"data:image/png;base64,{base64.b64encode(png).decode()}\"><figcaption><b>{title}.</b> {caption}</figcaption></figure>")
        if link:
            self.markdown += [f"![{figure.title}]({link})", "", f"**{figure.title}** (`{link}`). {figure.caption}", ""]


def splits_of(group):
    found = {split for kind in group.types for result in group.results(kind) for split in result["evaluations"]}
    return [split for split in ("test", "val", *sorted(found - {"test", "val"})) if split in found]


def evaluations_in(group):
    names = [name for kind in group.types for result in group.results(kind) for split in result["evaluations"].values() for name in split]
    return list(dict.fromkeys(names))


def add_group(page, drawn, group, absent, speeds, named_pairs, resamples):
    page.heading(group.title)
    page.text(f"Not run here, or not to their end: {absent}." if absent else "Every type that the grid wants here has run.")
    if drawn is not None:
        drawn.add(page, group, evaluations_in(group), speeds, False)
    for split in splits_of(group):
        for name in evaluations_in(group):
            for table in tables.loss_tables(group, split, name, resamples) if is_single(group, split, name) else []:
                page.table(table)
            if is_single(group, split, name):
                page.table(pairs.pairs_table(group, split, name, named_pairs, resamples))
                page.table(pairs.memory_table(group, split, name))
    page.table(costs.cost_table(group, speeds))
    page.table(costs.wall_clock_table(group, speeds))
    page.table(costs.selection_table(group))
    for name in evaluations_in(group):
        add_evaluation(page, group, splits_of(group)[0], name, resamples)


def add_evaluation(page, group, split, name, resamples):
    table, _ = tables.context_table(group, split, name, resamples)
    page.table(table)
    if table:
        return
    for key, (title, note) in TITLES.items():
        page.table(tables.bucket_table(group, split, name, key, title, note))
    page.table(tables.recall_difference_table(group, split, name, resamples))


def build(index, results, drawn, reference, resamples):
    grid, stages = index["grid"], list(dict.fromkeys(cell["stage"] for cell in index["cells"]))
    page = Page(grid.get("title") or f"Comparison {grid['name']}")
    page.text(NOT_THE_PAPERS)
    finished = sum(result["status"] == "finished" for result in results)
    page.text(f"{finished} of the grid's {len(index['cells'])} runs have finished. Text evaluated as final is the split test, used for no choice; every choice (learning rates, "
              "which types go on) was made on val.")
    page.text(COMPARED)
    if drawn.missing:
        page.text(f"This page has no figures: {drawn.missing}.")
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
    main = figures.main_group(groups)
    if main is not None and drawn.pyplot:
        page.heading("Figures")
        if not drawn.link:
            page.markdown += ["In the HTML page; as files, which this page then shows, with --figures.", ""]
        drawn.add(page, main, evaluations_in(main), speeds, True)
        drawn.finish()
    for group in groups:
        add_group(page, drawn if group is not main else None, group, tables.not_run(group, index["cells"], grid), speeds, grid.get("pairs", []), resamples)
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
    parser.add_argument("--figures", type=pathlib.Path)
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
        drawn = Drawn(a.figures, a.markdown)
        page = build(index, results, drawn, reference, a.resamples)
        write_whole(a.output, "\n".join(page.html) + "\n")
        if a.markdown:
            write_whole(a.markdown, re.sub(r"\n{3,}", "\n\n", "\n".join(page.markdown)).rstrip() + "\n")
    except GridError as error:
        print(f"compare_report: {error}", file=sys.stderr)
        return 2
    print(f"{a.output}{f' and {a.markdown}' if a.markdown else ''}: {len(results)} results{f', no figures: {drawn.missing}' if drawn.missing else ''}", file=sys.stderr)
    if a.figures and drawn.missing:
        print(f"compare_report: --figures {a.figures}: no figure was written: {drawn.missing}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
