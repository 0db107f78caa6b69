"""Tables of where a difference lies, for scripts/compare_page.py: by tokens seen, by distance, by context, by time; and the probes. Each function takes the study
and the words of a mark, and yields (column names, rows of cells)."""
from comparison import costs, pairs as memory, stats, tables
from comparison.grid import GridError
from comparison.page_tables import mean_of, p_text, part_cell, with_interval
from comparison.tables import bracket, bucket_text, evaluation_of, number, pooled_buckets, with_seeds


def pair_name(group, one, other, words):
    return with_seeds(group, one) if words.has("minus") else f"{group.label(one)} minus {group.label(other)}"


def check_edges(group, split, name, limits):
    """Limits between the buckets of an evaluation would ask for targets that no bucket tells apart."""
    for result in group.every():
        buckets = evaluation_of(result, split, "books")[0].get(name) or []
        edges = sorted({bucket[end] for bucket in buckets for end in ("from", "to") if bucket[end] is not None})
        if wrong := [limit for limit in limits if limit not in edges]:
            raise GridError(f"{', '.join(map(str, wrong))}: no edge of the buckets of {name}, which are {', '.join(map(str, edges)) or 'not there'}")


# -- by tokens seen -----------------------------------------------------------------------------------------------------------------------------------
def parts(study, words):
    """of=GROUP pairs=a:b@NEAR | types=a,b minus=c [far=FAR]: loss of targets that saw fewer than NEAR tokens (default: the reference's window), and what comes with FAR
    (default: all that its window and selection hold) and more."""
    group = study.group(words.one("of"))
    test = study.seen(group, "test")
    asked = study.pairs(test, words)
    if not words.has("far") or not all(near for _, _, near in asked):
        window, rows_held = study.reach(group)
    far, rows = words.count("far") if words.has("far") else rows_held, []
    for one, other, near in asked:
        reach, cells = (int(near or window), far), []
        for split, which in (("test", 0), ("test", 1), ("val", 1)):
            check_edges(study.seen(group, split), split, "positions", reach)
            found = memory.parts_by_type(group, split, "books", reach)
            cells.append(part_cell(group, found, one, other, which) if {one, other} <= found.keys() else "")
        rows.append([pair_name(test, one, other, words), f"{reach[0] - 1:,}", *cells])
    return ["type" if words.has("minus") else "difference", "tokens seen at most", "loss there", f"what comes with {far:,} and more", "the same on val"], rows


def between(group, kind, split, low, high):
    """{seed: loss of targets that saw at least low and fewer than high tokens}"""
    found = {}
    for seed, result in group.types[kind].items():
        buckets = [b for b in evaluation_of(result, split, "books")[0]["positions"] if b["tokens"] and b["from"] >= low and (high is None or b["to"] <= high)]
        found[seed] = sum(b["nll"] for b in buckets) / sum(b["tokens"] for b in buckets)
    return found


def positions(study, words):
    """of=GROUP pairs=a:b[@SPLIT] edges=1,64,...: differences by the number of tokens that a target saw."""
    group, edges, rows = study.group(words.one("of")), [int(edge) for edge in words.many("edges")], []
    spans = list(zip(edges, [*edges[1:], None]))
    for one, other, split in study.pairs(group, words):
        seen = study.seen(group, split or "test")
        check_edges(seen, split or "test", "positions", edges)
        if {one, other} <= seen.types.keys():
            found = [[between(seen, kind, split or "test", *span) for kind in (one, other)] for span in spans]
            rows.append([pair_name(seen, one, other, words), split or "test", *(with_interval(memory.over_seeds(seen, *pair, 3)) for pair in found)])
    return ["difference", "split", *(f"{low:,}-{high - 1:,}" if high else f"{low:,} and more" for low, high in spans)], rows


# -- by distance, by context --------------------------------------------------------------------------------------------------------------------------
def recall(study, words):
    """of=GROUP types=a,b beyond=1025 [split=test]: repeated bigrams by the distance to their last occurrence, and beyond a distance minus the reference's."""
    split, beyond = study.split(words, "test"), words.count("beyond")
    group, rows = study.group(words.one("of")), []
    seen = study.seen(group, split)
    check_edges(seen, split, "recall", [beyond])
    heads = [bucket_text(bucket, True) for bucket in evaluation_of(seen.every()[0], split, "books")[0]["recall"]]
    for kind in study.kinds(seen, words):
        cells = [far_cell(study.seen(group, one), kind, one, beyond) for one in ("test", "val")]
        rows.append([with_seeds(seen, kind), *(number(loss, 4) for _, _, loss in pooled_buckets(seen, kind, split, "books", "recall")), *cells])
    return ["type", *heads, f"from {beyond:,} on, minus {group.label(group.reference)}", "the same on val"], rows


def far_cell(group, kind, split, beyond):
    if kind == group.reference or not {kind, group.reference} <= group.types.keys():
        return ""
    return with_interval(memory.over_seeds(group, *({seed: loss_beyond(result, split, beyond) for seed, result in group.types[one].items()} for one in (kind, group.reference))))


def loss_beyond(result, split, beyond):
    buckets = [bucket for bucket in evaluation_of(result, split, "books")[0]["recall"] if bucket["from"] is not None and bucket["from"] >= beyond]
    return sum(bucket["nll"] for bucket in buckets) / sum(bucket["tokens"] for bucket in buckets)


def by_context(group, kind, name):
    """[{context: result}] a training, on test."""
    return [{one["protocol"]["context"]: one for one in evaluation_of(result, "test", name)} for result in group.results(kind)]


def contexts_of(group, name):
    return sorted(one["protocol"]["context"] for one in evaluation_of(group.every()[0], "test", name))


def context_cells(group, kind, name):
    runs = by_context(group, kind, name)
    return [number(stats.mean([run[at]["loss"] for run in runs]), 4) for at in contexts_of(group, name)]


def gain(study, words):
    """of=GROUP evaluation=NAME from=CONTEXT types=a,b: the same targets with more text; how much is won from a context to the longest, and p against the reference."""
    name, low = words.one("evaluation"), words.count("from")
    group = study.seen(study.group(words.one("of")), "test", name)
    contexts = contexts_of(group, name)
    if low not in contexts[:-1]:
        raise GridError(f"from={low}: {name} has {', '.join(map(str, contexts))}")

    def won(found):
        at = {one["protocol"]["context"]: one["documents"] for one in found}
        return [(a["nll"] - b["nll"], a["tokens"]) for a, b in zip(at[low], at[contexts[-1]])]
    shape, gains = tables.books_of(group, "test", name, won)
    if shape is None:
        raise GridError(f"{name} has no losses of single documents (per_document: true)")
    weights, rows = [weight for _, weight, _ in shape], []
    counts = stats.draws(len(shape), study.resamples)
    mean_gain = {kind: stats.mean([sum(one) for one in found.values()]) / sum(weights) for kind, found in gains.items()}
    for kind in sorted(study.kinds(group, words), key=lambda kind: -mean_gain[kind]):
        p = None
        if kind != group.reference and group.reference in gains:
            p = stats.compare(counts, gains[kind], gains[group.reference], weights, paired=group.converted).p
        rows.append([with_seeds(group, kind), *context_cells(group, kind, name), number(mean_gain[kind], 4), "" if p is None else p_text(p)])
    return ["type", *(f"{at:,}" for at in contexts), f"gain from {low:,}", "p against the reference's"], rows


def beyond(study, words):
    """of=GROUP evaluation=NAME types=a,b: contexts from the trained one on, and what each training loses from the first to the last."""
    name, rows = words.one("evaluation"), []
    group = study.seen(study.group(words.one("of")), "test", name)
    contexts = contexts_of(group, name)
    last = {kind: stats.mean([run[contexts[-1]]["loss"] for run in by_context(group, kind, name)]) for kind in study.kinds(group, words)}
    for kind in sorted(last, key=last.get):
        lost = sorted(run[contexts[-1]]["loss"] - run[contexts[0]]["loss"] for run in by_context(group, kind, name))
        rows.append([with_seeds(group, kind), *context_cells(group, kind, name), ", ".join(f"{one:.3f}" for one in lost)])
    return ["type", *(f"{at:,}" for at in contexts), "lost, each training"], rows


# -- by time ------------------------------------------------------------------------------------------------------------------------------------------
def wall_clock(study, words):
    """of=GROUP,GROUP types=a,b: validation loss of the curve where the fastest type of each group ends, three columns a group."""
    groups = [study.group(name) for name in words.many("of")]
    heads, rows, first = ["type"], {}, {}
    for at, group in enumerate(groups):
        moment, found, _ = costs.wall_clock(group, study.speeds)
        if moment is None:
            raise GridError(f"{group.title}: fewer than two types have a curve and a speed of their own")
        heads += [f"{group.context}, after {moment:.1f} s: M tokens", "loss", "minus the reference's [95 % over seeds]"]
        for kind in study.kinds(group, words):
            if kind in found:
                values, tokens = found[kind]
                rows.setdefault(kind, [group.label(kind), *[""] * 3 * len(groups)])[3 * at + 1 : 3 * at + 4] = [number(tokens / 1e6, 1), number(mean_of(values), 4),
                                                                                                               clock_cell(group, found, kind)]
                first.setdefault(kind, (at, mean_of(values)))
    return heads, [rows[kind] for kind in sorted(rows, key=first.get)]


def clock_cell(group, found, kind):
    if kind == group.reference or group.reference not in found:
        return "reference" if kind == group.reference else ""
    values, base = (list(found[one][0].values()) for one in (kind, group.reference))
    low, high, _ = stats.welch(values, base)
    return f"{stats.mean(values) - stats.mean(base):+.3f} {bracket(low, high, 3, True) or '(one seed)'}"


# -- probes -------------------------------------------------------------------------------------------------------------------------------------------
def probes(study, words):
    """"row=PROBE/LENGTH/ITEMS[@DEPTH+DEPTH]" ... types=full,probe_window+probe_wide_window: right answers in %, a column an attention, of which the first type that has
    run that probe is shown."""
    columns = [[study.known(kind) for kind in column.split("+")] for column in words.many("types")]
    rows, labels = [], [dict() for _ in columns]
    for name, wanted in words.rows():
        setting, _, depths = wanted.partition("@")
        probe, length, items = (setting.split("/") + ["", ""])[:3]
        runs = [types for (_, _, one), types in costs.probes_of(study.results).items() if one == probe]
        if len(runs) != 1 or not (length.isdigit() and items.isdigit()):
            raise GridError(f"{name}={wanted}: want PROBE/LENGTH/ITEMS of one of {', '.join(key[2] for key in costs.probes_of(study.results))}")
        found = [next((runs[0][kind] for kind in column if kind in runs[0]), None) for column in columns]
        if not any(found):
            raise GridError(f"{name}: none of these types has run {probe}; {', '.join(runs[0])} have")
        for label, one, column in zip(labels, found, columns):
            label[one[0]["label"] if one else study.grid["types"][column[0]].get("label", column[0])] = None
        chance = next(one for one in found if one)[0]["probe"]["chance"]
        rows.append([name, whole(100 * chance), *(" / ".join(right(one, int(length), int(items), depth) for depth in depths.split("+")) if one else "" for one in found)])
    return ["right answers, %", "chance", *(" or ".join(label) for label in labels)], rows


def right(runs, length, items, depth):
    found = [one["accuracy"] for run in runs for one in run["probe"]["results"] if (one["length"], one["items"]) == (length, items) and (not depth or one["depth"] == float(depth))]
    if not found:
        raise GridError(f"no answer at {length} tokens, {items} items{f', depth {depth}' if depth else ''}")
    return whole(100 * stats.mean(found))


def whole(value):
    """12.5 becomes 13, as readers round."""
    return str(int(value + 0.5))
