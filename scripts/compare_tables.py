"""From result.json files to tables: what scripts/compare_report.py prints. A table is a heading, a note, column names and rows of text."""
import dataclasses
import math

import compare_stats as stats
from compare_grid import GridError


@dataclasses.dataclass
class Table:
    title: str
    note: str
    columns: list
    rows: list


def number(value, digits=3):
    return "" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def signed(value, digits=4):
    return "" if value is None else f"{value:+.{digits}f}"


def bracket(low, high, digits=3, sign=False):
    return "" if low is None else f"[{low:{'+' if sign else ''}.{digits}f}, {high:{'+' if sign else ''}.{digits}f}]"


# -- what a type keeps and visits, as sieve plan counts it -------------------------------------------------------------------------------------------
def mean_over_layers(result, key):
    """Of the plan's attention kinds, weighed by their layers; None where the plan is older than the key."""
    kinds = result["plan"].get("attention") or []
    layers = sum(len(kind["layers"]) for kind in kinds)
    return sum(kind[key] * len(kind["layers"]) for kind in kinds) / layers if layers else None


# -- groups -------------------------------------------------------------------------------------------------------------------------------------------
@dataclasses.dataclass
class Group:
    """Finished runs that may be compared: same size, context and tokens, all from scratch or all from a checkpoint. types: name -> seed -> result."""
    size: str
    context: str
    tokens: int
    converted: bool
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

    def label(self, kind):
        return self.results(kind)[0]["label"]

    def family(self, kind):
        return self.results(kind)[0].get("family", "rival")


def groups_of(results, order):
    """In the order of the stages, whose names are `order`. Where two stages have the same run, the earlier stage's counts: nothing is counted twice."""
    groups = {}
    for result in sorted((r for r in results if r["status"] == "finished" and not r["searched_lr"] and "probe" not in r), key=lambda r: (order.index(r["stage"]) if r["stage"] in order else 99, r["name"])):
        key = (result["source"] is not None, result["size"], result["context"], result["plan"]["tokens"])
        group = groups.setdefault(key, Group(result["size"], result["context"], result["plan"]["tokens"], key[0], {}))
        group.types.setdefault(result["resolved_type"], {}).setdefault(result["seed"], result)
    return list(groups.values())


def evaluation_of(result, split, name):
    return result["evaluations"].get(split, {}).get(name) or []


def books_of(group, split, name):
    """(documents as (index, tokens, bytes), {type: {seed: [nll a document]}}) of the first result of an evaluation; an error where runs saw different text."""
    shape, losses = None, {}
    for kind in group.types:
        for result in group.results(kind):
            found = evaluation_of(result, split, name)
            documents = found[0].get("documents") if found else None
            if not documents:
                continue
            here = [(d["index"], d["tokens"], d["bytes"]) for d in documents]
            if shape is not None and here != shape:
                raise GridError(f"{result['name']}: evaluation {name} on {split} saw other documents than the other runs of {group.title}; were they evaluated "
                                "on the same data? Run it anew: --redo")
            if any(d["nll"] is None for d in documents):
                continue  # a loss that is not finite has no mean; the run is named among the diverged
            shape = here
            losses.setdefault(kind, {})[result["seed"]] = [d["nll"] for d in documents]
    return shape, losses


def pooled(losses, seeds):
    """Mean over seeds, book by book."""
    return [stats.mean(values) for values in zip(*(losses[seed] for seed in seeds))]


# -- tables -------------------------------------------------------------------------------------------------------------------------------------------
def loss_table(group, split, name, reference, resamples):
    shape, losses = books_of(group, split, name)
    if not losses:
        return None
    counts = stats.draws(len(shape), resamples)
    tokens, size = [d[1] for d in shape], [d[2] for d in shape]
    compared = [kind for kind in losses if kind != reference and set(losses[kind]) & set(losses.get(reference, {}))]
    differences = {}
    for kind in compared:
        common = sorted(set(losses[kind]) & set(losses[reference]))
        differences[kind] = (*stats.paired_difference(counts, pooled(losses[kind], common), pooled(losses[reference], common), tokens), len(common))
    holm = {}
    for family in {group.family(kind) for kind in compared}:
        members = [kind for kind in compared if group.family(kind) == family]
        holm.update(zip(members, stats.holm([differences[kind][3] for kind in members])))
    families = ", ".join(f"{family}: {sum(group.family(kind) == family for kind in compared)}" for family in sorted({group.family(kind) for kind in compared}))
    rows = []
    for kind in sorted(losses, key=lambda k: sum(pooled(losses[k], sorted(losses[k])))):
        seeds = sorted(losses[kind])
        nll = pooled(losses[kind], seeds)
        low, high = stats.interval(stats.resampled_ratios(counts, nll, tokens))
        low_bits, high_bits = stats.interval(stats.resampled_ratios(counts, nll, size))
        spread = stats.deviation([sum(losses[kind][seed]) / sum(tokens) for seed in seeds])
        row = [group.label(kind), str(len(seeds)), number(sum(nll) / sum(tokens), 4), number(spread, 4),
               f"{math.exp(sum(nll) / sum(tokens)):.3f} {bracket(math.exp(low), math.exp(high))}",
               f"{sum(nll) / sum(size) / math.log(2):.4f} {bracket(low_bits / math.log(2), high_bits / math.log(2), 4)}"]
        if kind in differences:
            gap, below, above, p, common = differences[kind]
            verdict = "not decided"
            if holm[kind] < 1 - stats.LEVEL and (below > 0 or above < 0):
                verdict = "worse" if gap > 0 else "better"
            row += [f"{gap:+.4f} {bracket(below, above, 4, True)}", f"{100 * math.expm1(gap):+.2f} %", str(common), f"{p:.4f}", f"{holm[kind]:.4f}", verdict]
        else:
            row += ["reference" if kind == reference else "", "", "", "", "", ""]
        rows.append(row)
    against = group.label(reference) if reference in losses else "none, the reference has not run"
    return Table(f"Loss on {split} ({len(shape)} books), matched tokens", f"Intervals: 95 %, percentiles of {resamples:,} resamples of the books, seeds pooled by "
                 f"their mean. Difference: type minus reference ({against}) in nats a token, paired over books and over the seeds that both have; positive is worse than "
                 f"the reference. Holm: corrected over the types of a family ({families or 'none'}).",
                 ["type", "seeds", "loss", "sd over seeds", "perplexity", "bits/byte", "difference", "in perplexity", "paired seeds", "p", "Holm p", "against the reference"], rows)


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


def bucket_table(group, split, name, key, title, note):
    columns = {kind: found for kind in group.types if (found := pooled_buckets(group, kind, split, name, key))}
    if not columns:
        return None
    first = next(iter(columns.values()))
    same = {kind: column for kind, column in columns.items() if [c[:2] for c in column] == [c[:2] for c in first]}
    rows = [[label, f"{tokens:,}", *(number(column[at][2], 4) for column in same.values())] for at, (label, tokens, _) in enumerate(first) if tokens]
    return Table(f"{title} ({split})", note, ["", "targets a run", *(group.label(kind) for kind in same)], rows)


def recall_difference_table(group, split, name, reference, resamples):
    """Paired differences against the reference by distance of the last occurrence, over books."""
    if reference not in group.types or not books_of(group, split, name)[0]:
        return None
    first = evaluation_of(group.results(reference)[0], split, name)
    if not first or "recall" not in first[0]:
        return None
    buckets, rows = first[0]["recall"], []
    counts = stats.draws(len(first[0]["documents"]), resamples)

    def matrix(kind, seeds, at, field):
        lists = [[d["recall"][at][field] for d in evaluation_of(group.types[kind][seed], split, name)[0]["documents"]] for seed in seeds]
        return [None if None in values else stats.mean(values) for values in zip(*lists)]

    for kind in group.types:
        common = sorted(seed for seed in set(group.types[kind]) & set(group.types[reference])
                        if all(evaluation_of(group.types[k][seed], split, name) for k in (kind, reference)))
        if kind == reference or not common:
            continue
        row = [group.label(kind)]
        for at in range(len(buckets)):
            tokens = matrix(reference, common, at, "tokens")
            mine, other = matrix(kind, common, at, "nll"), matrix(reference, common, at, "nll")
            if not sum(tokens) or None in mine or None in other or matrix(kind, common, at, "tokens") != tokens:
                row.append("")
                continue
            gap, low, high, _ = stats.paired_difference(counts, mine, other, tokens)
            row.append(f"{gap:+.4f} {bracket(low, high, 4, True)}")
        rows.append(row)
    return Table(f"Loss of repeated bigrams against {group.label(reference)} ({split})", "Nats a token, type minus reference, 95 % intervals paired over books, not corrected "
                 "for the number of cells. Columns: distance to the last occurrence of the target's bigram in the visible text.",
                 ["type", *(bucket_text(bucket, True) for bucket in buckets)], rows) if rows else None


def context_table(group, split, name):
    """Loss on identical targets by visible context: an evaluation with several results."""
    columns = {}
    for kind in group.types:
        runs = [found for result in group.results(kind) if len(found := evaluation_of(result, split, name)) > 1]
        if runs:
            columns[kind] = {found["protocol"]["context"]: stats.mean([run[at]["loss"] for run in runs]) for at, found in enumerate(runs[0])
                             if all(run[at]["loss"] is not None for run in runs)}
    if not columns:
        return None, {}
    contexts = sorted(set().union(*columns.values()))
    rows = []
    for kind, losses in columns.items():
        gain = losses[contexts[0]] - losses[contexts[-1]] if contexts[0] in losses and contexts[-1] in losses else None
        rows.append([group.label(kind), *(number(losses.get(c), 4) for c in contexts), number(gain, 4)])
    text = next(found[0]["protocol"]["text"] for kind in columns for result in group.results(kind) if (found := evaluation_of(result, split, name)))
    return Table(f"Loss by visible context: {name} ({split})", f"Same targets in every column ({text.split(', ctx')[0]}). Gain: first column minus last. Contexts beyond the "
                 f"training's {group.context} are extrapolation.", ["type", *(f"{c:,}" for c in contexts), "gain"], rows), columns


def kib(count):
    return None if count is None else count / 1024


def cost_table(group):
    rows = []
    for kind in group.types:
        runs = group.results(kind)
        first = runs[0]
        T = first["config"]["data"]["seq_len"]
        rates = [r["tok_s"] for r in runs if r["tok_s"]]
        peaks = [r["peak_gib"] for r in runs if r["peak_gib"]]
        rows.append([group.label(kind), f"{first['plan']['parameters']:,}", f"{first['plan']['flops_per_token'] / 1e6:,.1f}",
                     number(stats.mean(rates), 0), number(stats.mean([r["seconds"]["train"] for r in runs]), 1), number(max(peaks) if peaks else None, 2),
                     number(mean_over_layers(first, "cached_rows"), 0), number(mean_over_layers(first, "visited_rows"), 0),
                     number(mean_over_layers(first, "scored_pairs"), 0), number(kib(mean_over_layers(first, "cache_bytes")), 1),
                     {"all": "all keys", "grows": "grows", "bounded": "constant", "state": "a state"}[first["cache"]], f"{T:,}", f"{first['lr']:g}" if first["lr"] else ""])
    return Table("Parameters, compute, speed, memory, cached rows", "MFLOP a token: forward and backward, as sieve plan counts them. Rows cached of a key-value head at the end of "
                 "the context; rows that a query reads, and pairs that are scored beside to choose them, means over the positions of a document; all means over layers. A linear "
                 "state has no rows, but bytes: those of a layer's cache for one sequence of T tokens (with the scalars of SparseK's selection where the plan is of a build that counts them). Speed and memory: measured while training, means (peak: maximum) over seeds; they depend on the machine named below.",
                 ["type", "parameters", "MFLOP/token", "training tokens/s", "training s", "peak GiB", "cached rows", "visited rows", "scored pairs", "cache KiB", "cache", "T", "learning rate"], rows)


def speed_table(groups):
    """Training tokens/s of every type over sizes and contexts; of several groups of one size and context that which has most types."""
    columns = {}
    for group in groups:
        if not group.converted:
            key = (group.size, group.context)
            columns[key] = max(columns.get(key, group), group, key=lambda g: len(g.types))
    kinds = list(dict.fromkeys(kind for group in columns.values() for kind in group.types if group.family(kind) == "rival"))
    rows = []
    for kind in kinds:
        label = next(group.label(kind) for group in columns.values() if kind in group.types)
        rates = [stats.mean([r["tok_s"] for r in group.results(kind) if r["tok_s"]]) if kind in group.types else None for group in columns.values()]
        rows.append([label, *(number(rate, 0) for rate in rates)])
    names = [f"{group.size} at {group.context} (stage {', '.join(group.stages())})" for group in columns.values()]
    return Table("Training speed", "Tokens/s, median of a run's rows but the first quarter, mean over seeds; each column from the section that has most types.",
                 ["type", *names], rows) if rows else None


def validated(result, key):
    return [(row[key], row["loss/val"]) for row in result["curve"] if row.get("loss/val") is not None]


def at_point(points, x):
    """Value at x between two neighbours, None outside."""
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return None


def wall_clock_table(group):
    ends = [points[-1][0] for kind in group.types for result in group.results(kind) if (points := validated(result, "time"))]
    devices = {result["provenance"].get("gpu") or result["provenance"].get("device") for kind in group.types for result in group.results(kind)}
    if not ends or len(group.types) < 2:
        return None
    moment, rows = min(ends), []
    for kind in group.types:
        values = [at_point(validated(result, "time"), moment) for result in group.results(kind)]
        tokens = [at_point([(row["time"], row["tokens"]) for row in result["curve"]], moment) for result in group.results(kind)]
        if all(value is not None for value in values):
            rows.append([group.label(kind), number(stats.mean(values), 4), number(stats.mean([t for t in tokens if t is not None]) / 1e6, 3) if any(t is not None for t in tokens) else ""])
    warning = "" if len(devices) == 1 else f" The runs were made on different machines ({', '.join(sorted(map(str, devices)))}): their times do not compare."
    return Table(f"Matched wall-clock: validation loss after {moment:,.1f} s of training", "From the curves, between the two nearest validations. Every run's learning rate "
                 f"falls over its own length, so that a slower type is met before its rate has fallen: a bound in its disfavour, not a run tuned for that time.{warning}",
                 ["type", "validation loss", "M tokens by then"], rows) if len(rows) > 1 else None


def probe_tables(results):
    """One table a probe: a row a type, a column a setting (length, items, depth), the accuracy of asked tokens, mean over seeds."""
    probes, tables = {}, []
    for result in results:
        if result["status"] == "finished" and "probe" in result:
            probes.setdefault((result["stage"], result["size"], result["context"]), {}).setdefault(result["label"], []).append(result["probe"])
    for (_, size, name), types in probes.items():
        first = next(iter(types.values()))[0]
        trained = first["config"]["probe"]
        settings = [(r["length"], r["items"], r["depth"]) for r in first["results"]]
        title = lambda length, items, depth: f"{length:,} tokens, {items} items" + ("" if depth is None else f", depth {100 * depth:.0f} %")
        rows = []
        for label, runs in types.items():
            cells = [stats.mean([run["results"][at]["accuracy"] for run in runs]) for at in range(len(settings))]
            rows.append([label, str(len(runs)), *(f"{100 * cell:.1f} %" for cell in cells), number(stats.mean([run["seconds"]["train"] for run in runs]), 1)])
        tables.append(Table(f"Probe {name}, {size}: {first['task']}", f"Right answers to fresh rows; trained on {trained['steps']:,} x {trained['batch']} rows of "
                            f"{trained['length']:,} tokens with {trained['items']} items; chance {100 * first['chance']:.1f} %. docs/probes.md describes the tasks.",
                            ["type", "seeds", *(title(*setting) for setting in settings), "training s"], rows))
    return tables


def search_table(results):
    rows, seen = [], set()
    for result in results:
        key = (result["resolved_type"], tuple(result["search"].items()))
        if result["status"] == "finished" and result["search"] and key not in seen:
            seen.add(key)
            rates = sorted(result["search"], key=float)
            edge = len(rates) > 1 and f"{result['lr']:g}" in (rates[0], rates[-1])
            rows.append([result["label"], *[", ".join(f"{rate}: {number(result['search'][rate], 4)}" for rate in rates)], f"{result['lr']:g}", "yes" if edge else "no"])
    return Table("Learning rates", "Loss on val of each value searched; the lowest was taken. At the edge: a value beyond those tried might be better still.",
                 ["type", "searched", "taken", "at the edge"], rows) if rows else None


def provenance_table(results):
    rows = []
    for result in results:
        p = result.get("provenance", {})
        rows.append([result["name"], p.get("sieve", ""), str(p.get("commit") or ""), p.get("gpu") or str(p.get("device") or ""), p.get("date", result.get("date", "")),
                     result["hash"], str((p.get("data") or {}).get("train_hash", ""))])
    return Table("Provenance", "One row a run; configurations, raw losses of every book and curves are in its result.json.",
                 ["run", "program", "commit", "device", "date (UTC)", "configuration", "training data"], rows)


def missing_table(cells, results):
    failed = {r["name"]: r for r in results if r["status"] == "failed"}
    rows = []
    for cell in cells:
        if cell["state"] != "finished" or cell["name"] in failed:
            reason = failed.get(cell["name"], {}).get("message") or cell["remark"]
            rows.append([cell["name"], cell["state"], " ".join(reason.split())[:300]])
    return Table("Not run", "Runs of the grid without a result, each with its reason.", ["run", "state", "reason"], rows) if rows else None
