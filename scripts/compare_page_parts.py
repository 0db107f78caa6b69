"""Tables of where a difference lies, for scripts/compare_page.py: by tokens seen, by distance, by context, by time; and the probes. Each function takes the study
and the words of a mark, and yields (column names, rows of cells)."""
import compare_costs as costs
import compare_pairs as memory
import compare_stats as stats
import compare_tables as tables
from compare_grid import GridError
from compare_page_tables import p_text, part_cell, present
from compare_tables import bracket, bucket_text, evaluation_of, number, pooled_buckets, with_seeds


def pairs_asked(group, words, default):
    """[(one, other, what stands behind @)] of pairs=a:b@x,...; types=a,b minus=c is short for pairs=a:c,b:c. Pairs of which one has not run are left out."""
    against = words.one("minus", "-")
    asked = [f"{kind}:{against}" for kind in words.many("types")] if against != "-" else words.many("pairs")
    found = []
    for text in asked:
        pair, _, note = text.partition("@")
        one, _, other = pair.partition(":")
        if one in group.types and other in group.types:
            found.append((one, other, note or default))
    return found


def names(group, one, other, words):
    return with_seeds(group, one) if words.one("minus", "-") != "-" else f"{group.label(one)} minus {group.label(other)}"


# -- by tokens seen -----------------------------------------------------------------------------------------------------------------------------------
def parts(study, words):
    """of=GROUP pairs=a:b@NEAR | types=a,b minus=c [far=1024]: loss of targets that saw fewer than NEAR tokens (default: the reference's window), and what comes with
    `far` and more."""
    group = study.group(words.one("of"))
    far, rows = int(words.one("far", "1024")), []
    for one, other, near in pairs_asked(group, words, str(memory.reach_of(group)[0])):
        cells = []
        for split, which in (("test", 0), ("test", 1), ("val", 1)):
            found = memory.parts_by_type(group, split, "books", (int(near), far))
            cells.append(part_cell(group, found, one, other, which) if one in found and other in found else "")
        rows.append([names(group, one, other, words), f"{int(near) - 1:,}", *cells])
    return ["type" if words.one("minus", "-") != "-" else "difference", "tokens seen at most", "loss there", f"what comes with {far:,} and more", "the same on val"], rows


def between(group, kind, split, low, high):
    """{seed: loss of targets that saw at least low and fewer than high tokens}"""
    found = {}
    for seed, result in group.types[kind].items():
        buckets = [b for b in evaluation_of(result, split, "books")[0]["positions"] if b["from"] >= low and (high is None or b["to"] <= high)]
        found[seed] = sum(b["nll"] for b in buckets) / sum(b["tokens"] for b in buckets)
    return found


def positions(study, words):
    """of=GROUP pairs=a:b@SPLIT edges=1,64,...: differences by the number of tokens that a target saw."""
    group, edges = study.group(words.one("of")), [int(edge) for edge in words.many("edges")]
    spans, rows = list(zip(edges, [*edges[1:], None])), []
    for one, other, split in pairs_asked(group, words, "test"):
        cells = [" ".join(memory.over_seeds(group, between(group, one, split, *span), between(group, other, split, *span), 3)) for span in spans]
        rows.append([names(group, one, other, words), split, *cells])
    return ["difference", "split", *(f"{low:,}-{high - 1:,}" if high else f"{low:,} and more" for low, high in spans)], rows


# -- by distance, by context --------------------------------------------------------------------------------------------------------------------------
def recall(study, words):
    """of=GROUP types=a,b beyond=1025 [split=test]: repeated bigrams by the distance to their last occurrence, and beyond a distance minus the reference's."""
    group, split, beyond = study.group(words.one("of")), words.one("split", "test"), int(words.one("beyond"))
    rows, heads = [], []
    for kind in present(group, words.many("types")):
        column = pooled_buckets(group, kind, split, "books", "recall")
        heads = [bucket for bucket, _, _ in column]
        cells = [far_cell(group, kind, one, beyond) for one in ("test", "val")]
        rows.append([with_seeds(group, kind), *(number(loss, 4) for _, _, loss in column), *cells])
    return ["type", *heads, f"from {beyond:,} on, minus {group.label(group.reference)}", "the same on val"], rows


def far_cell(group, kind, split, beyond):
    if kind == group.reference or group.reference not in group.types:
        return ""
    found = [{seed: loss_beyond(result, split, beyond) for seed, result in group.types[one].items()} for one in (kind, group.reference)]
    value, reach = memory.over_seeds(group, *found)
    return f"{value} {reach}" if reach != "too few seeds" else value


def loss_beyond(result, split, beyond):
    buckets = [bucket for bucket in evaluation_of(result, split, "books")[0]["recall"] if bucket["from"] is not None and bucket["from"] >= beyond]
    return sum(bucket["nll"] for bucket in buckets) / sum(bucket["tokens"] for bucket in buckets)


def by_context(group, kind, split, name):
    """[{context: result}] a training."""
    return [{one["protocol"]["context"]: one for one in evaluation_of(result, split, name)} for result in group.results(kind) if evaluation_of(result, split, name)]


def gain(study, words):
    """of=GROUP evaluation=NAME from=CONTEXT types=a,b: the same targets with more text; how much is won from a context to the longest, and p against the reference."""
    group, name, low = study.group(words.one("of")), words.one("evaluation"), int(words.one("from"))

    def won(found):
        contexts = {one["protocol"]["context"]: one for one in found}
        if low not in contexts:
            raise GridError(f"from={low}: {name} has {', '.join(map(str, contexts))}")
        return [(a["nll"] - b["nll"], a["tokens"]) for a, b in zip(contexts[low]["documents"], contexts[max(contexts)]["documents"])]
    shape, gains = tables.books_of(group, "test", name, won)
    weights = [weight for _, weight, _ in shape]
    counts, rows, contexts = stats.draws(len(shape), study.resamples), [], []
    mean_gain = lambda kind: stats.mean([sum(one) / sum(weights) for one in gains[kind].values()])
    for kind in sorted((kind for kind in present(group, words.many("types")) if kind in gains), key=lambda kind: -mean_gain(kind)):
        runs = by_context(group, kind, "test", name)
        contexts = sorted(runs[0])
        p = stats.compare(counts, gains[kind], gains[group.reference], weights).p if kind != group.reference else None
        rows.append([with_seeds(group, kind), *(number(stats.mean([run[at]["loss"] for run in runs]), 4) for at in contexts), number(mean_gain(kind), 4),
                     "" if p is None else p_text(p)])
    return ["type", *(f"{at:,}" for at in contexts), f"gain from {low:,}", "p against the reference's"], rows


def beyond(study, words):
    """of=GROUP evaluation=NAME types=a,b: contexts from the trained one on, and what each training loses from the first to the last."""
    group, name, rows, contexts = study.group(words.one("of")), words.one("evaluation"), [], []
    for kind in present(group, words.many("types")):
        runs = by_context(group, kind, "test", name)
        if runs:
            contexts = sorted(runs[0])
            lost = sorted(run[contexts[-1]]["loss"] - run[contexts[0]]["loss"] for run in runs)
            rows.append([with_seeds(group, kind), *(number(stats.mean([run[at]["loss"] for run in runs]), 4) for at in contexts), ", ".join(f"{one:.3f}" for one in lost)])
    return ["type", *(f"{at:,}" for at in contexts), "lost, each training"], sorted(rows, key=lambda row: float(row[-2]))


# -- by time ------------------------------------------------------------------------------------------------------------------------------------------
def wall_clock(study, words):
    """of=GROUP,GROUP types=a,b: validation loss of the curve where the fastest type of each group ends, a pair of columns a group."""
    found = {name: (study.group(name), *costs.wall_clock(study.group(name), study.speeds)[:2]) for name in words.many("of")}
    rows, heads = {}, ["type"]
    for at, (group, moment, types) in enumerate(found.values()):
        heads += [f"{group.context}, after {moment:.1f} s: M tokens", "loss", "minus the reference's [95 % over seeds]"]
        for kind in present(group, words.many("types")):
            if kind not in types:
                continue
            values, tokens = types[kind]
            mean, base = stats.mean(list(values.values())), types[group.reference][0]
            low, high, _ = stats.welch(list(values.values()), list(base.values()))
            gap = "reference" if kind == group.reference else f"{mean - stats.mean(list(base.values())):+.3f} {bracket(low, high, 3, True) or '(one seed)'}"
            rows.setdefault(group.label(kind), [""] * 3 * len(found))[3 * at : 3 * at + 3] = [number(tokens / 1e6, 1), number(mean, 4), gap]
    return heads, sorted(([label, *cells] for label, cells in rows.items()), key=lambda row: row[2] or "9")


# -- probes -------------------------------------------------------------------------------------------------------------------------------------------
def probes(study, words):
    """"row=PROBE/LENGTH/ITEMS[@DEPTH+DEPTH]" ... types=full,probe_window+probe_wide_window: right answers in %, a column an attention (the first type that has run)."""
    runs = {name: types for (_, _, name), types in costs.probes_of(study.results).items()}
    columns, rows, heads = [column.split("+") for column in words.many("types")], [], []
    for name, wanted in words.rows():
        setting, _, depths = wanted.partition("@")
        probe, length, items = setting.split("/")
        if probe not in runs:
            raise GridError(f"{name}: no probe {probe}; there are {', '.join(runs)}")
        found = [next((runs[probe][kind] for kind in column if kind in runs[probe]), None) for column in columns]
        heads = heads or [one[0]["label"] if one else column[0] for one, column in zip(found, columns)]
        chance = next(one for one in found if one)[0]["probe"]["chance"]
        rows.append([name, whole(100 * chance), *(" / ".join(right(one, int(length), int(items), depth) for depth in depths.split("+")) if one else "" for one in found)])
    return ["right answers, %", "chance", *heads], rows


def right(runs, length, items, depth):
    found = [one["accuracy"] for run in runs for one in run["probe"]["results"] if (one["length"], one["items"]) == (length, items) and (not depth or one["depth"] == float(depth))]
    if not found:
        raise GridError(f"no answer at {length} tokens, {items} items{f', depth {depth}' if depth else ''}")
    return whole(100 * stats.mean(found))


def whole(value):
    """12.5 becomes 13, as readers round."""
    return str(int(value + 0.5))
