#!/usr/bin/env python3
"""Tables of a hand-written page from raw results, in place, so that none is copied by hand:
  python3 scripts/compare_page.py docs/comparison.md bench/results/comparison [--check]
A line <!-- table: KIND of=SIZE/CONTEXT key=a,b "name=..." --> stands above a table; the lines of a table below it are made anew. KINDS: compare_page_tables.py
has the losses, compare_page_parts.py the rest; each function says what it takes. --check: changes nothing, ends with 1 and the differences where a table is not what
the results say."""
import argparse
import difflib
import json
import pathlib
import re
import shlex
import sys

import compare_costs as costs
import compare_page_parts as parts
import compare_page_tables as losses
import compare_tables as tables
from compare_grid import GridError
from compare_program import write_whole

KINDS = {"losses": losses.losses, "pairs": losses.pairs, "trainings": losses.trainings, "several": losses.several, "peer": losses.peer, "converted": losses.converted,
         "parts": parts.parts, "positions": parts.positions, "recall": parts.recall, "gain": parts.gain, "beyond": parts.beyond, "wall_clock": parts.wall_clock,
         "probes": parts.probes}
MARK = re.compile(r"^<!-- table: (.+) -->\n((?:\|.*\n)*)", re.M)


class Study:
    """The results of a folder of compare.py, as the tables ask for them."""

    def __init__(self, folder, resamples):
        self.folder, self.resamples = folder, resamples
        index, self.results = tables.read_all(folder)
        self.grid = index["grid"]
        sources = {name: stage["from"]["type"] for name, stage in self.grid["stages"].items() if "from" in stage}
        self.groups = tables.groups_of(self.results, list(self.grid["stages"]), self.grid["reference"], sources)
        self.speeds = costs.speeds_of(self.results)
        self._books, self._judged = {}, {}

    def group(self, name):
        """SIZE/CONTEXT, trained from scratch, or the stage of a conversion."""
        for group in self.groups:
            if name in (group.stages() if group.converted else [f"{group.size}/{group.context}"]):
                return group
        raise GridError(f"of={name}: no finished runs; there are {', '.join(sorted({f'{g.size}/{g.context}' for g in self.groups if not g.converted}))}")

    def books(self, group, split):
        """(weights, {type: {seed: nll a book}}) of whole books."""
        key = (id(group), split)
        if key not in self._books:
            shape, found = tables.books_of(group, split, "books")
            self._books[key] = ([weight for _, weight, _ in shape], found) if shape else ([], {})
        return self._books[key]

    def judged(self, group, split):
        """{type: (Difference to the group's reference, Holm's p, verdict)}"""
        key = (id(group), split)
        if key not in self._judged:
            sections = tables.judged(group, split, "books", self.resamples)
            self._judged[key] = {kind: found for section in sections.values() for kind, found in section.items()}
        return self._judged[key]


class Words:
    """What a mark says: options, of=GROUP, and for some tables named rows, "name=what it shows"."""

    OPTIONS = {"before", "beyond", "columns", "edges", "evaluation", "far", "file", "from", "minus", "of", "pairs", "split", "than", "types"}

    def __init__(self, words):
        self.options, self.named, self.used = {}, [], set()
        for word in words:
            if "=" not in word:
                raise GridError(f'"{word}": want key=value, or "a row\'s name=what it shows"')
            key, _, value = word.partition("=")
            if key in self.OPTIONS:
                self.options[key] = value
            else:
                self.named.append(tuple(word.rsplit("=", 1)))

    def rows(self):
        """[(name, what it shows)]"""
        if not self.named:
            raise GridError('no rows: want "a row\'s name=what it shows"')
        named, self.named = self.named, []
        return named

    def one(self, key, default=None):
        self.used.add(key)
        if default is None and key not in self.options:
            raise GridError(f"{key}= is missing")
        return self.options.get(key, default)

    def many(self, key, default=None):
        return self.one(key, default).split(",")

    def refuse_unused(self):
        if unknown := [*sorted(set(self.options) - self.used), *(name for name, _ in self.named)]:
            raise GridError(f"not asked for by this table: {', '.join(unknown)}")


def lines_of(study, mark):
    """The lines of the table that a mark asks for."""
    try:
        kind, *words = shlex.split(mark)
        if kind not in KINDS:
            raise GridError(f"there is no table {kind}; there are {', '.join(KINDS)}")
        asked = Words(words)
        columns, rows = KINDS[kind](study, asked)
        asked.refuse_unused()
    except (GridError, ValueError) as error:
        raise GridError(f"<!-- table: {mark} -->: {error}") from None
    line = lambda cells: "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"
    return "".join(text + "\n" for text in [line(columns), "|" + "---|" * len(columns), *map(line, rows)])


def filled(text, study):
    found, begun = MARK.findall(text), re.findall(r"^<!-- table:.*", text, re.M)
    if not found or len(found) != len(begun):
        raise GridError(f"{len(found)} of {len(begun)} marks can be read: each is a line of its own, <!-- table: KIND ... -->")
    return MARK.sub(lambda match: f"<!-- table: {match[1]} -->\n" + lines_of(study, match[1]), text)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=pathlib.Path)
    parser.add_argument("out", type=pathlib.Path)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--resamples", type=int, default=10000)
    a = parser.parse_args()
    try:
        before = a.page.read_text(encoding="utf-8")
        after = filled(before, Study(a.out, a.resamples))
    except (GridError, OSError, json.JSONDecodeError) as error:
        print(f"compare_page: {a.page}: {error}", file=sys.stderr)
        return 2
    changed = [line for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0) if line[0] in "+-" and line[:3] not in ("+++", "---")]
    if a.check:
        print("\n".join(changed) or f"{a.page}: every table is what {a.out} says")
        return 1 if changed else 0
    write_whole(a.page, after)
    print(f"{a.page}: {len(changed)} lines of tables changed", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
