#!/usr/bin/env python3
"""Tables of a hand-written page from raw results, in place, so that none is copied by hand:
  python3 scripts/compare_page.py docs/comparison.md bench/results/comparison [--check]
A line <!-- table: KIND of=GROUP key=a,b "name=..." --> stands above a table, whose lines are made anew. KIND: losses, pairs, ...; comparison/page_tables.py has those of
losses, comparison/page_parts.py the rest, and each function says what it takes. GROUP: SIZE/CONTEXT, as XS/4k, or the stage of a conversion. --check: changes nothing,
ends with 1 and the differences where a table is not what the results say."""
import argparse
import difflib
import pathlib
import re
import shlex
import sys

from comparison import page_parts as parts, page_tables as losses
from comparison.grid import GridError
from comparison.page_study import Study, Words
from comparison.program import write_whole

KINDS = {"losses": losses.losses, "pairs": losses.pairs, "trainings": losses.trainings, "several": losses.several, "peer": losses.peer, "converted": losses.converted,
         "parts": parts.parts, "positions": parts.positions, "recall": parts.recall, "gain": parts.gain, "beyond": parts.beyond, "wall_clock": parts.wall_clock,
         "probes": parts.probes}
MARK = re.compile(r"^<!-- table: (.+) -->\n(\n?)((?:\|.*(?:\n|\Z))+|)", re.M)
ALMOST = re.compile(r"^[ \t]*<!--\s*table\b.*", re.M)


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
    """The page with its tables made anew. An empty line between a mark and its table stays."""
    found, begun = MARK.findall(text), ALMOST.findall(text)
    if not found or len(found) != len(begun):
        raise GridError(f"{len(found)} of {len(begun)} marks can be read: each is a line of its own, <!-- table: KIND ... -->, and nothing before it")
    made = lambda match: f"<!-- table: {match[1]} -->\n{match[2] if match[3] else ''}{lines_of(study, match[1])}{'' if match[3] else match[2]}"
    return MARK.sub(made, text)


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
        changed = [line for line in difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0) if line[0] in "+-" and line[:3] not in ("+++", "---")]
        if a.check:
            print("\n".join(changed) or f"{a.page}: every table is what {a.out} says")
            return 1 if changed else 0
        write_whole(a.page, after)
    except (GridError, OSError, UnicodeDecodeError) as error:
        print(f"compare_page: {a.page}: {error}", file=sys.stderr)
        return 2
    print(f"{a.page}: {sum(line[0] == '+' for line in changed)} lines of tables are new", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
