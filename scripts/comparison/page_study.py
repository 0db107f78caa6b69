"""What the tables of scripts/compare_page.py are made of: the results of a folder of compare.py, and what the marks of a page ask of them. What a mark names and the
grid does not know is refused; what the grid knows and has not run yet is left out of a table."""
import dataclasses

from comparison import costs, pairs as memory, tables
from comparison.grid import GridError


class Words:
    """What a mark says: options, of=GROUP, and for some tables named rows, "name=what it shows"."""

    OPTIONS = {"before", "beyond", "columns", "edges", "evaluation", "far", "file", "from", "minus", "of", "pairs", "split", "than", "types"}

    def __init__(self, words):
        self.options, self.named, self.used = {}, [], set()
        for word in words:
            key, equals, value = word.partition("=")
            if not equals:
                raise GridError(f'"{word}": want key=value, or "a row\'s name=what it shows"')
            if key not in self.OPTIONS:
                self.named.append(tuple(word.rsplit("=", 1)))
            elif key in self.options:
                raise GridError(f"{key}= is given twice")
            else:
                self.options[key] = value

    def has(self, key):
        return key in self.options

    def one(self, key, default=None):
        self.used.add(key)
        if default is None and key not in self.options:
            raise GridError(f"{key}= is missing")
        return self.options.get(key, default)

    def many(self, key, default=None):
        return self.one(key, default).split(",")

    def count(self, key, default=None):
        text = self.one(key, default)
        if not text.isdigit():
            raise GridError(f"{key}={text}: want a number of tokens")
        return int(text)

    def rows(self):
        """[(name, what it shows)]"""
        if not self.named:
            raise GridError('no rows: want "a row\'s name=what it shows"')
        named, self.named = self.named, []
        return named

    def refuse_unused(self):
        if unknown := [*sorted(set(self.options) - self.used), *(name for name, _ in self.named)]:
            raise GridError(f"not asked for by this table: {', '.join(unknown)}")


class Study:
    def __init__(self, folder, resamples):
        self.folder, self.resamples = folder, resamples
        index, self.results = tables.read_all(folder)
        self.grid = index["grid"]
        sources = {name: stage["from"]["type"] for name, stage in self.grid["stages"].items() if "from" in stage}
        self.groups = tables.groups_of(self.results, list(self.grid["stages"]), self.grid["reference"], sources)
        self.speeds = costs.speeds_of(self.results)
        self._known = {}

    # -- what a mark names ----------------------------------------------------------------------------------------------------------------------------
    @staticmethod
    def names_of(group):
        """A conversion's stage; of what was trained from scratch the size and context, or these and the millions of tokens."""
        name = f"{group.size}/{group.context}"
        return group.stages() if group.converted else [name, f"{name}/{group.tokens / 1e6:.3g}M"]

    def group(self, name):
        found = [group for group in self.groups if name in self.names_of(group)]
        if len(found) != 1:
            names = sorted(name for group in found or self.groups for name in self.names_of(group)[-1:])
            raise GridError(f"of={name}: {'which' if found else 'no finished runs'}; there are {', '.join(names)}")
        return found[0]

    def seen(self, group, split, name="books"):
        """The group's runs that have an evaluation. An error where none has, or where a loss is not finite, which no table shows."""
        kept = {}
        for kind, runs in group.types.items():
            having = {seed: result for seed, result in runs.items() if tables.evaluation_of(result, split, name)}
            for result in having.values():
                if any(one["loss"] is None for one in tables.evaluation_of(result, split, name)):
                    raise GridError(f"{result['name']}: {name} on {split} is not finite; the report names such runs (compare_report.py), a page cannot show them")
            if having:
                kept[kind] = having
        if not kept:
            raise GridError(f"no run of {group.title} has {name} on {split}")
        return dataclasses.replace(group, types=kept)

    def known(self, kind):
        if kind not in self.grid["types"]:
            raise GridError(f"the grid has no type {kind or 'without a name'}; it has {', '.join(self.grid['types'])}")
        return kind

    def kinds(self, group, words):
        """types=a,b or all: those that have run, in the order of the mark."""
        asked = words.many("types")
        return list(group.types) if asked == ["all"] else [kind for kind in map(self.known, asked) if kind in group.types]

    def pairs(self, group, words):
        """[(one, other, what stands behind @)] of pairs=a:b@x,..., or of types=a,b minus=c for a:c, b:c; those of which both have run."""
        asked = [f"{kind}:{words.one('minus')}" for kind in words.many("types")] if words.has("minus") else words.many("pairs")
        found = []
        for text in asked:
            pair, _, note = text.partition("@")
            kinds = pair.split(":")
            if len(kinds) != 2:
                raise GridError(f"{text}: want two types, one:other")
            if all(self.known(kind) in group.types for kind in kinds):
                found.append((*kinds, note))
        return found

    def split(self, words, default):
        """A split that the grid knows."""
        split = words.one("split", default)
        if split not in self.grid["splits"]:
            raise GridError(f"split={split}: the grid has {', '.join(self.grid['splits'])}")
        return split

    # -- losses of whole books ------------------------------------------------------------------------------------------------------------------------
    def _once(self, made, group, split, *more):
        """What a function of tables.py or pairs.py says of whole books: many columns of a table ask it the same."""
        key = (made, group.title, split, str(more))
        if key not in self._known:
            self._known[key] = made(group, split, "books", *more)
        return self._known[key]

    def trainings(self, group, kind, split):
        """{seed: loss}"""
        return self._once(tables.losses_by_seed, group, split).get(kind, {})

    def judged(self, group, split):
        """{type: (Difference to the group's reference, Holm's p within its family, verdict)}"""
        sections = self._once(tables.judged, group, split, self.resamples)
        return {kind: found for section in sections.values() for kind, found in section.items()}

    def pairs_of_grid(self, group, split):
        """{(one, other): (Difference, Holm's p)}: a family of their own."""
        return self._once(memory.compared_pairs, group, split, self.grid.get("pairs", []), self.resamples)

    def compared(self, group, pair, split):
        """A pair's Difference, not corrected; None where either has not been evaluated there."""
        return self._once(memory.compared_pairs, group, split, [pair], self.resamples).get(pair, (None, None))[0]

    def reach(self, group):
        """(window, window and selected rows) of the group's reference."""
        found = memory.reach_of(group)
        if found is None:
            raise GridError(f"the reference of {group.title} is not SparseK with a window: name the limits, pairs=a:b@NEAR and far=")
        return found
