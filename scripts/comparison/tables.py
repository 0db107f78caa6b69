"""From result.json files to tables: what scripts/compare_report.py prints. A table is a heading, a note, column names and rows of text. This file: the losses;
costs.py: what the types cost, and the runs; goals.py: what was to be shown."""
import dataclasses
import json
import math

from comparison import stats
from comparison.grid import GridError

# Holm's correction and the tables go by section: rivals by what they keep, every other family of the grid by its name.
SECTIONS = {"constant": "types of constant cache or state", "growing": "types whose cache grows with the text (visited rows about equal, no goal of winning)",
            "variant": "variants of the reference", "control": "controls", "ablation": "ablations", "converted": "from a dense checkpoint"}
CACHES = {"all": "all keys", "grows": "grows", "bounded": "constant", "state": "a state"}


@dataclasses.dataclass
class Table:
    title: str
    note: str
    columns: list
    rows: list


def number(value, digits=3):
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def bracket(low, high, digits=3, sign=False):
    return "" if low is None else f"[{low:{'+' if sign else ''}.{digits}f}, {high:{'+' if sign else ''}.{digits}f}]"


def kib(count):
    return None if count is None else count / 1024


def mean_over_layers(result, key):
    """Of the plan's attention kinds, weighed by their layers; None where the plan is older than the key."""
    kinds = result["plan"].get("attention") or []
    layers = sum(len(kind["layers"]) for kind in kinds)
    return sum(kind[key] * len(kind["layers"]) for kind in kinds) / layers if layers else None


def kinds_of(result):
    """The attention types of a run's layers, as sieve names them."""
    return {kind["type"] for kind in result["config"]["model"]["attention"]["kinds"].values()}


# -- results ------------------------------------------------------------------------------------------------------------------------------------------
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


# -- groups -------------------------------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Group:
    """Finished runs that may be compared: same size, context and tokens, all from scratch or all from the checkpoint of one stage.
    types: name -> seed -> result; reference: the type that the others are compared with."""
    size: str
    context: str
    tokens: int
    converted: bool
    reference: str
    types: dict

    @property
    def title(self):
        stages = self.stages()
        return (f"{self.size} at {self.context}, {self.tokens / 1e6:,.4g}M tokens a run{', from a dense checkpoint' if self.converted else ''} "
                f"(stage{'s' if len(stages) > 1 else ''} {', '.join(stages)})")

    def stages(self):
        return sorted({result["stage"] for kind in self.types for result in self.results(kind)})

    def results(self, kind):
        return [self.types[kind][seed] for seed in sorted(self.types[kind])]

    def every(self):
        return [result for kind in self.types for result in self.results(kind)]

    def label(self, kind):
        return self.results(kind)[0]["label"]

    def section(self, kind):
        first = self.results(kind)[0]
        if self.converted:
            return "converted"
        if first.get("family", "rival") != "rival":
            return first["family"]
        if self.reference in self.types and kinds_of(first) == kinds_of(self.results(self.reference)[0]):
            return "variant"
        return "constant" if first["cache"] in ("bounded", "state") else "growing"

    def sections(self):
        """{section: its types without the reference}, in the order of SECTIONS, then by name."""
        found = {}
        for kind in self.types:
            if kind != self.reference:
                found.setdefault(self.section(kind), []).append(kind)
        order = list(SECTIONS)
        return {name: found[name] for name in sorted(found, key=lambda name: (order.index(name) if name in order else 99, name))}

    def final_split(self):
        """test where it was evaluated, else whatever was."""
        found = [split for result in self.every() for split in result["evaluations"]]
        return "test" if "test" in found else found[0] if found else None


def is_speed(result):
    """A run that only shows how fast a type trains: it evaluated nothing."""
    return result["status"] == "finished" and "probe" not in result and not result["searched_lr"] and not result["evaluations"]


def groups_of(results, order, reference, sources):
    """In the order of the stages, whose names are `order`. Where two stages have the same run, the earlier stage's counts: nothing is counted twice.
    sources: {stage: type whose checkpoint it starts from}; that type is the reference there."""
    groups = {}
    kept = [r for r in results if r["status"] == "finished" and not r["searched_lr"] and "probe" not in r and not is_speed(r)]
    for result in sorted(kept, key=lambda r: (order.index(r["stage"]) if r["stage"] in order else 99, r["name"])):
        source = result["source"] is not None
        key = (source and result["stage"], result["size"], result["context"], result["plan"]["tokens"])
        against = sources.get(result["stage"], reference) if source else reference
        group = groups.setdefault(key, Group(result["size"], result["context"], result["plan"]["tokens"], source, against, {}))
        group.types.setdefault(result["resolved_type"], {}).setdefault(result["seed"], result)
    return list(groups.values())


def not_run(group, cells, grid):
    """Types that stages of this size and context ask for and that have no finished run in the group: one line of text."""
    if group.converted:
        stages = set(group.stages())
    else:
        stages = {name for name, s in grid["stages"].items() if s.get("evaluations") and "lrs" not in s and "from" not in s}
    absent = {}
    for cell in cells:
        if cell["stage"] in stages and (cell["size"], cell["context"]) == (group.size, group.context) and cell["type"] not in group.types and cell["state"] != "finished":
            absent.setdefault(grid["types"][cell["type"]].get("label", cell["type"]), set()).add(cell["state"])
    return ", ".join(f"{label} ({'/'.join(sorted(states))})" for label, states in absent.items())


# -- losses of books ----------------------------------------------------------------------------------------------------------------------------------
def evaluation_of(result, split, name):
    return result["evaluations"].get(split, {}).get(name) or []


def plain_books(found):
    """(sum of nll, tokens) of every document of an evaluation's first result."""
    return [(d["nll"], d["tokens"]) for d in found[0]["documents"]]


def books_of(group, split, name, pick=plain_books):
    """(shape, {type: {seed: [sum a book]}}) of an evaluation: pick makes (sum, weight) a book of its results; shape: (index, weight, bytes) a book. An error
    where runs saw different text; what is not finite (None) is left out: the list of what has not run names it."""
    shape, losses = None, {}
    for kind in group.types:
        for result in group.results(kind):
            found = evaluation_of(result, split, name)
            documents = found[0].get("documents") if found else None
            picked = pick(found) if documents else None
            if not picked:
                continue
            here = [(d["index"], weight, d["bytes"]) for d, (_, weight) in zip(documents, picked)]
            if shape is not None and here != shape:
                raise GridError(f"{result['name']}: evaluation {name} on {split} saw other documents than the other runs of {group.title}; were they evaluated "
                                "on the same data? Run it anew: --redo")
            if any(value is None for value, _ in picked):
                continue
            shape = here
            losses.setdefault(kind, {})[result["seed"]] = [value for value, _ in picked]
    return shape, losses


def losses_by_seed(group, split, name):
    """{type: {seed: loss a token}} of a single evaluation."""
    shape, found = books_of(group, split, name)
    tokens = sum(weight for _, weight, _ in shape or [])
    return {kind: {seed: sum(books) / tokens for seed, books in sorted(seeds.items())} for kind, seeds in found.items()}


def differences(group, losses, counts, weights, kinds=None):
    """{type: Difference to the group's reference}."""
    if group.reference not in losses:
        return {}
    others = [kind for kind in (losses if kinds is None else kinds) if kind != group.reference and kind in losses]
    return {kind: stats.compare(counts, losses[kind], losses[group.reference], weights, paired=group.converted) for kind in others}


def corrected(found):
    """{type: Holm's p} of those differences that have one."""
    tested = [kind for kind in found if found[kind].p is not None]
    return dict(zip(tested, stats.holm([found[kind].p for kind in tested])))


def difference_cells(difference, digits=4):
    """value, interval over books, interval over seeds, in three cells."""
    return [f"{difference.value:+.{digits}f}", bracket(*difference.books, digits, True), bracket(*difference.seeds, digits, True) or "one seed"]


def difference_text(difference):
    """The same in one cell."""
    value, books, seeds = difference_cells(difference)
    return f"{value}, books {books}, {'one seed' if difference.seeds[0] is None else 'seeds ' + seeds}"


def judged(group, split, name, resamples):
    """{section: {type: (Difference, Holm's p or None, verdict)}} of a single evaluation."""
    shape, losses = books_of(group, split, name)
    if not losses or group.reference not in losses:
        return {}
    counts, weights = stats.draws(len(shape), resamples), [weight for _, weight, _ in shape]
    sections = {}
    for section, kinds in group.sections().items():
        found = differences(group, losses, counts, weights, kinds)
        holm = corrected(found)
        sections[section] = {kind: (d, holm.get(kind), d.verdict(holm.get(kind))) for kind, d in found.items()}
    return sections


# -- tables -------------------------------------------------------------------------------------------------------------------------------------------
LOSS_COLUMNS = ["type", "seeds", "loss", "sd over seeds", "perplexity", "bits/byte", "cached rows", "visited rows", "cache KiB", "difference", "95 % over books",
                "95 % over seeds (t)", "in perplexity", "p", "Holm p", "against the reference"]


def loss_row(group, kind, seeds, shape, counts):
    """Columns of a loss table that need no reference. seeds: {seed: [nll a book]}."""
    tokens, size, first = [d[1] for d in shape], [d[2] for d in shape], group.results(kind)[0]
    nll = stats.pooled(seeds)
    low, high = stats.interval(stats.resampled_ratios(counts, nll, tokens))
    low_bits, high_bits = stats.interval(stats.resampled_ratios(counts, nll, size))
    spread = stats.deviation([sum(one) / sum(tokens) for one in seeds.values()])
    return [group.label(kind), str(len(seeds)), number(sum(nll) / sum(tokens), 4), number(spread, 4),
            f"{math.exp(sum(nll) / sum(tokens)):.3f} {bracket(math.exp(low), math.exp(high))}",
            f"{sum(nll) / sum(size) / math.log(2):.4f} {bracket(low_bits / math.log(2), high_bits / math.log(2), 4)}",
            number(mean_over_layers(first, "cached_rows"), 0), number(mean_over_layers(first, "visited_rows"), 0), number(kib(mean_over_layers(first, "cache_bytes")), 1)]


def loss_tables(group, split, name, resamples):
    """One table a section, the reference in each; verdicts corrected within it."""
    shape, losses = books_of(group, split, name)
    if not losses:
        return []
    counts = stats.draws(len(shape), resamples)
    decided = judged(group, split, name, resamples)
    made = []
    for section, kinds in (group.sections() or {"alone": []}).items():
        shown = [kind for kind in [group.reference, *kinds] if kind in losses]
        if not shown or (shown == [group.reference] and len(losses) > 1):
            continue
        rows = []
        for kind in sorted(shown, key=lambda k: sum(stats.pooled(losses[k]))):
            row = loss_row(group, kind, losses[kind], shape, counts)
            if kind in decided.get(section, {}):
                difference, holm, verdict = decided[section][kind]
                row += [*difference_cells(difference), f"{100 * math.expm1(difference.value):+.2f} %", number(difference.p, 4), number(holm, 4), verdict]
            else:
                row += ["reference" if kind == group.reference else "", *[""] * 6]
            rows.append(row)
        tested = sum(holm is not None for _, holm, _ in decided.get(section, {}).values())
        against = group.label(group.reference) if group.reference in losses else "none, the reference has not run"
        over_seeds = "t over seeds, paired, since each pair began at one checkpoint" if group.converted else "Welch's t over seeds"
        made.append(Table(f"Loss on {split} ({len(shape)} books), {SECTIONS.get(section, section)}",
                          f"Matched tokens. Difference: type minus reference ({against}), nats a token, all seeds of each; positive is worse than the reference. "
                          f"Intervals: 95 %, percentiles of {resamples:,} resamples of the books with seeds averaged; {over_seeds}. p: the larger of "
                          "both tests, "
                          f"from {stats.LEAST_SEEDS} seeds on; Holm: corrected over the types tested in this table ({tested}). Rows and bytes a layer, as "
                          "sieve plan counts them.",
                          LOSS_COLUMNS, rows))
    return made


def bucket_text(bucket, recall):
    if recall and bucket["from"] is None:
        return "no earlier one"
    low = bucket["from"] or 0
    if bucket["to"] is None:
        return f"{low:,} and more"
    return f"{low:,}" if bucket["to"] == low + 1 else f"{low:,}-{bucket['to'] - 1:,}"


def pooled_buckets(group, kind, split, name, key):
    """[(label, tokens, loss)] of one type: seeds pooled, first result of the evaluation."""
    lists = [found[0].get(key) for result in group.results(kind) if (found := evaluation_of(result, split, name)) and found[0].get(key)]
    table = []
    for at in range(len(lists[0]) if lists else 0):
        one = [buckets[at] for buckets in lists]
        tokens = one[0]["tokens"]
        known = tokens > 0 and all(bucket["loss"] is not None for bucket in one)
        table.append((bucket_text(one[0], key == "recall"), tokens, stats.mean([bucket["loss"] for bucket in one]) if known else None))
    return table


def with_seeds(group, kind):
    count = len(group.types[kind])
    return f"{group.label(kind)} ({count} seed{'s' if count > 1 else ''})"


def bucket_table(group, split, name, key, title, note):
    """A row a type, a column a bucket."""
    found = {kind: column for kind in group.types if (column := pooled_buckets(group, kind, split, name, key))}
    if not found:
        return None
    first = next(iter(found.values()))
    same = {kind: column for kind, column in found.items() if [c[:2] for c in column] == [c[:2] for c in first]}
    kept = [at for at, (_, tokens, _) in enumerate(first) if tokens]
    rows = [["targets a run", *(f"{first[at][1]:,}" for at in kept)]] + [[with_seeds(group, kind), *(number(column[at][2], 4) for at in kept)] for kind, column in same.items()]
    return Table(f"{title} ({split})", note, ["type", *(first[at][0] for at in kept)], rows)


def recall_difference_table(group, split, name, resamples):
    """Differences to the reference by distance of the last occurrence, over books and over seeds."""
    first = next((found[0] for kind in (group.reference,) if kind in group.types for result in group.results(kind) if (found := evaluation_of(result, split, name))), {})
    if not first.get("recall") or not first.get("documents"):
        return None
    counts, columns = stats.draws(len(first["documents"]), resamples), []
    for at in range(len(first["recall"])):
        def pick(found):
            return [(d["recall"][at]["nll"], d["recall"][at]["tokens"]) for d in found[0]["documents"]] if found[0].get("recall") else None
        shape, losses = books_of(group, split, name, pick)
        weights = [weight for _, weight, _ in shape or []]
        columns.append(differences(group, losses, counts, weights) if sum(weights) else {})
    rows = [[with_seeds(group, kind), *(difference_text(column[kind]) if kind in column else "" for column in columns)]
            for kind in group.types if any(kind in column for column in columns)]
    return Table(f"Loss of repeated bigrams against {group.label(group.reference)} ({split})", "Nats a token, type minus reference; 95 % intervals over "
                 "books and over seeds (t), not corrected for the number of cells. Columns: distance to the last occurrence of the target's bigram in the "
                 "visible text.",
                 ["type", *(bucket_text(bucket, True) for bucket in first["recall"])], rows) if rows else None


def gain_of(found):
    """Of the first context to the last, a book: nats won, and targets."""
    if len(found) < 2 or any("documents" not in one for one in found):
        return None
    return [(None if a["nll"] is None or b["nll"] is None else a["nll"] - b["nll"], a["tokens"]) for a, b in zip(found[0]["documents"], found[-1]["documents"])]


def context_table(group, split, name, resamples):
    """(table, {type: {context: loss}}): loss on identical targets by visible context, an evaluation with several results; (None, {}) for others."""
    columns = {}
    for kind in group.types:
        runs = [found for result in group.results(kind) if len(found := evaluation_of(result, split, name)) > 1]
        if runs:
            columns[kind] = {found["protocol"]["context"]: stats.mean([run[at]["loss"] for run in runs]) for at, found in enumerate(runs[0])
                             if all(run[at]["loss"] is not None for run in runs)}
    if not columns:
        return None, {}
    shape, gains = books_of(group, split, name, gain_of)
    counts, weights = stats.draws(len(shape), resamples) if shape else None, [weight for _, weight, _ in shape or []]
    found = differences(group, gains, counts, weights) if shape else {}
    contexts = sorted(set().union(*columns.values()))
    rows = []
    for kind, losses in columns.items():
        gain = losses[contexts[0]] - losses[contexts[-1]] if contexts[0] in losses and contexts[-1] in losses else None
        more = [*difference_cells(found[kind]), number(found[kind].p, 4)] if kind in found else ["reference" if kind == group.reference else "", "", "", ""]
        rows.append([with_seeds(group, kind), *(number(losses.get(c), 4) for c in contexts), number(gain, 4), *more])
    first = next(found for kind in columns for result in group.results(kind) if (found := evaluation_of(result, split, name)))
    trained = group.every()[0]["config"]["data"]["seq_len"]
    beyond, protocol = contexts[0] >= trained, first[0]["protocol"]
    where = protocol["text"].replace(f", ctx {protocol['context']}", "")
    return Table(f"{'Extrapolation' if beyond else 'Context gain'}: {name} ({split})",
                 f"Same targets in every column ({where}), after so many tokens of context; trained at {trained:,}. Gain: first column minus last"
                 f"{', negative where the model breaks beyond its training' if beyond else ''}. More gain: the type's gain minus the reference's, free of "
                 "how well each "
                 "training came out; 95 % intervals over books and seeds (t), p the larger of both, not corrected.",
                 ["type", *(f"{c:,}" for c in contexts), "gain", "more gain than the reference", "95 % over books", "95 % over seeds (t)", "p"], rows), columns
