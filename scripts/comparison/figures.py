"""What the figures of the comparison show: numbers and captions, in plain Python. plot.py draws them."""
import dataclasses

from comparison import costs, stats, tables

CLASSES = {"constant": "constant cache", "state": "constant state", "grows": "cache grows with the text", "variant": "variant of the reference", "control": "control"}
FAR = 0.25  # nats above the reference: such a type is named at the edge, since on its scale all others would be one
MOST_LINES = 8
NAMES = ("loss_by_type", "quality_cost", "recall_by_distance", "loss_by_context", "training_curves", "training_speed")


@dataclasses.dataclass
class Figure:
    """name: of its file, one of NAMES, without suffix; drawer: function of plot.py; shown: its argument."""
    name: str
    title: str
    caption: str
    drawer: str
    shown: dict


@dataclasses.dataclass
class Mean:
    """Over seeds, with the least and the most."""
    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values, minus=0.0):
        values = [value - minus for value in values]
        return cls(stats.mean(values), min(values), max(values))


def class_of(result, reference, kind):
    """One of CLASSES. reference: a result of the type that the others are compared with."""
    if result.get("family") == "control":
        return "control"
    same = reference is not None and kind != reference["resolved_type"] and tables.kinds_of(reference) == tables.kinds_of(result)
    if same or result.get("family") == "ablation":
        return "variant"
    return {"bounded": "constant", "state": "state"}.get(result["cache"], "grows")


def reference_of(group):
    return group.results(group.reference)[0] if group.reference in group.types else None


def look(group, kind):
    return class_of(group.results(kind)[0], reference_of(group), kind)


def books_in(group, split, name):
    return len(tables.books_of(group, split, name)[0] or [])


def in_words(count, what):
    return f"{count} {what}{'' if count == 1 else 's'}"


def seeds_text(group, kinds, counts=None):
    """5 seeds: full; window. 1 seed: all others. counts: {type: seeds} where not all of the group's are shown."""
    found = {}
    for kind in kinds:
        found.setdefault(counts[kind] if counts else len(group.types[kind]), []).append(group.label(kind))
    fewest = min(found)
    names = {count: "all others" if count == fewest and len(found) > 1 and len(labels) > 4 else "all" if len(found) == 1 else "; ".join(labels) for count, labels in found.items()}
    return ". ".join(f"{in_words(count, 'seed')}: {names[count]}" for count in sorted(found, reverse=True)) + "."


def main_types(group, losses):
    """At most MOST_LINES types that line figures can tell apart, in the group's order: the reference, the best, the best that is no variant, then those of most seeds; no further variants."""
    means = {kind: stats.mean(list(seeds.values())) for kind, seeds in losses.items()}
    limit = means.get(group.reference, min(means.values(), default=0)) + FAR
    others = sorted((kind for kind in means if kind != group.reference and means[kind] <= limit and look(group, kind) != "control"), key=means.get)
    rivals = [kind for kind in others if look(group, kind) != "variant"]
    first = list(dict.fromkeys([kind for kind in (group.reference,) if kind in means] + others[:1] + rivals[:1]))
    ranked = first + [kind for kind in sorted(rivals, key=lambda kind: -len(losses[kind])) if kind not in first]
    return [kind for kind in group.types if kind in ranked[:MOST_LINES]]


def left_out(kinds, losses):
    return f" Lines for {len(kinds)} of {len(losses)} types, the reference, the best and those of most seeds; the tables have all." if len(kinds) < len(losses) else ""


def main_group(groups):
    """The one whose figures tell the story: of most runs."""
    return max(groups, key=lambda group: len(group.every()), default=None)


# -- dots ---------------------------------------------------------------------------------------------------------------------------------------------
def dots_panel(group, split, losses):
    rows = [{"label": group.label(kind), "class": look(group, kind), "losses": list(seeds.values()), "reference": kind == group.reference} for kind, seeds in losses.items()]
    return {"split": split, "rows": sorted(rows, key=lambda row: stats.mean(row["losses"])), "far": FAR}


def dots(group, name):
    """Loss of every training, sorted; types that the final split did not see have a panel of their own."""
    final = group.final_split()
    losses = tables.losses_by_seed(group, final, name)
    if len(losses) < 2:
        return None
    panels, books = [dots_panel(group, final, losses)], [(final, books_in(group, final, name))]
    other = next((split for split in ("val", "test") if split != final), None)
    more = tables.losses_by_seed(group, other, name)
    ablated = {kind: seeds for kind, seeds in more.items() if kind not in losses}
    if ablated:
        kept = {kind: more[kind] for kind in (group.reference,) if kind in more}
        panels.append(dots_panel(group, other, {**kept, **ablated}))
        books.append((other, books_in(group, other, name)))
    seeds = seeds_text(group, [*losses, *ablated], {kind: len(one) for kind, one in {**ablated, **losses}.items()})
    where = " and ".join(f"{split} ({in_words(count, 'book')})" for split, count in books)
    caption = (f"Loss on {where} of {group.title}: one dot a training, the bar the mean of several, sorted by it. The vertical line is the mean of the reference, "
               f"the grey band the range of its seeds.{f' Types never evaluated on {final} (choices are made on val) have the lower panel.' if ablated else ''} {seeds}")
    return Figure("loss_by_type", "Loss by type", caption, "dots", {"panels": panels})


# -- quality and cost ---------------------------------------------------------------------------------------------------------------------------------
def plane(group, name, speeds):
    losses = tables.losses_by_seed(group, group.final_split(), name)
    points, rated = [], False
    for kind, seeds in losses.items():
        rate, _ = costs.rate_of(group, kind, speeds)
        size = tables.kib(tables.mean_over_layers(group.results(kind)[0], "cache_bytes"))
        rated |= rate is not None
        points.append({"label": group.label(kind), "class": look(group, kind), "loss": Mean.of(list(seeds.values())), "rate": rate, "kib": size, "reference": kind == group.reference})
    if len(points) < 2:
        return None
    slow = [point["label"] for point in points if rated and point["rate"] is None]
    length = group.every()[0]["config"]["data"]["seq_len"]
    caption = (f"Loss on {group.final_split()} against what it costs, {group.title}. Left: training speed, one run alone on a device. Right: bytes cached a layer at the end of "
               f"{length:,} tokens, as sieve plan counts them. Low is better; left panel: right is better; right panel: left is better. Marks are means, thin bars run from the "
               f"least to the most of the seeds. {seeds_text(group, losses, {kind: len(seeds) for kind, seeds in losses.items()})}"
               f"{' Speed not measured alone: ' + ', '.join(slow) + '.' if slow else ''}")
    return Figure("quality_cost", "Loss against training speed and cache", caption, "plane",
                  {"points": points, "split": group.final_split(), "length": length, "rated": rated, "far": FAR / 3})


# -- lines --------------------------------------------------------------------------------------------------------------------------------------------
def line(group, kind, points):
    """points: [(x, Mean)]"""
    return {"kind": kind, "label": group.label(kind), "seeds": len(group.types[kind]), "reference": kind == group.reference, "points": points}


def recall(group, name, kinds, losses):
    """Losses of repeated bigrams minus the reference's mean, by the distance of the last occurrence."""
    split = group.final_split()
    lists = {kind: [found[0]["recall"] for result in group.results(kind) if (found := tables.evaluation_of(result, split, name)) and found[0].get("recall")] for kind in kinds}
    base = lists.get(group.reference)
    if not base or len(kinds) < 2:
        return None
    known = [at for at, bucket in enumerate(base[0]) if bucket["tokens"] and all(one[at]["loss"] is not None for several in lists.values() for one in several)]
    level = {at: stats.mean([one[at]["loss"] for one in base]) for at in known}
    lines = [line(group, kind, [(place, Mean.of([one[at]["loss"] for one in several], level[at])) for place, at in enumerate(known)]) for kind, several in lists.items() if several]
    buckets = [(tables.bucket_text(base[0][at], True), base[0][at]["tokens"]) for at in known]
    caption = (f"Loss on {split} by how far back the target's bigram stood last, {group.title}: minus the mean of {group.label(group.reference)} (0); above the line is worse. Bars: least "
               f"to most of the seeds. {seeds_text(group, kinds)}{left_out(kinds, losses)}")
    return Figure("recall_by_distance", "Loss of repeated bigrams by distance", caption, "recall",
                  {"lines": lines, "buckets": buckets, "reference": group.label(group.reference), "split": split})


def context_panel(group, split, name, kinds):
    lines = []
    for kind in kinds:
        runs = [found for result in group.results(kind) if len(found := tables.evaluation_of(result, split, name)) > 1]
        if runs:
            points = [(found["protocol"]["context"], [run[at]["loss"] for run in runs]) for at, found in enumerate(runs[0])]
            lines.append(line(group, kind, [(x, Mean.of(values)) for x, values in points if None not in values]))
    lines = [one for one in lines if one["points"]]
    if not lines:
        return None
    trained = group.every()[0]["config"]["data"]["seq_len"]
    return {"name": name, "lines": lines, "trained": trained, "beyond": min(x for one in lines for x, _ in one["points"]) >= trained}


def contexts(group, names, losses):
    split = group.final_split()
    seen = lambda name: {kind: of for kind, of in losses.items() if any(len(tables.evaluation_of(result, split, name)) > 1 for result in group.results(kind))}
    panels = [panel for name in names if (panel := context_panel(group, split, name, main_types(group, seen(name))))]
    panels = [next(panel for panel in panels if panel["beyond"] is beyond) for beyond in (False, True) if any(panel["beyond"] is beyond for panel in panels)]
    if not panels:
        return None
    shown = [one["kind"] for one in panels[0]["lines"]]
    some = [one["label"] for one in panels[-1]["lines"]] if len(panels) > 1 else []
    caption = (f"Loss on {split} of the same targets with more and more text before them, {group.title}; nothing was adapted beyond the {panels[0]['trained']:,} tokens of training. "
               f"Bars: least to most of the seeds. {seeds_text(group, shown)}{' Evaluated beyond: ' + ', '.join(some) + '.' if some else ''}{left_out(shown, losses)}")
    return Figure("loss_by_context", "Loss by visible context", caption, "contexts", {"panels": panels, "split": split})


def curves(group, kinds, losses):
    """Validation loss over tokens, at the points that every seed of a type has."""
    lines = []
    for kind in kinds:
        runs = [dict(costs.validated(result, "tokens")) for result in group.results(kind)]
        shared = sorted(set.intersection(*map(set, runs))) if runs else []
        if len(shared) > 2:
            lines.append(line(group, kind, [(x / 1e6, Mean.of([run[x] for run in runs])) for x in shared]))
    if len(lines) < 2:
        return None
    falls = min(one["points"][0][1].value - one["points"][-1][1].value for one in lines)
    caption = (f"Validation loss while training, {group.title}: means over seeds, bands from the least to the most.{' Inset: the last 30 %.' if falls > FAR else ''} "
               f"{seeds_text(group, [one['kind'] for one in lines])}{left_out(kinds, losses)}")
    return Figure("training_curves", "Training curves", caption, "curves", {"lines": lines, "inset": falls > FAR})


# -- speeds -------------------------------------------------------------------------------------------------------------------------------------------
def training_speeds(group, speeds):
    """Of the runs that only measure speed, of the group's size."""
    found, looks, devices = {}, {}, set()
    for (size, context, kind), runs in speeds.items():
        if size == group.size:
            found.setdefault(kind, {})[context] = stats.mean([run["tok_s"] for run in runs])
            looks[kind] = (runs[0]["label"], class_of(runs[0], reference_of(group), kind))
            devices |= {costs.device_of(run) for run in runs}
    lengths = {context: runs[0]["config"]["data"]["seq_len"] for (size, context, _), runs in speeds.items() if size == group.size}
    order = sorted(lengths, key=lengths.get)
    if len(found) < 2:
        return None
    rows = [{"label": looks[kind][0], "class": looks[kind][1], "rates": rates, "reference": kind == group.reference} for kind, rates in found.items()]
    rows.sort(key=lambda row: -row["rates"].get(order[-1], 0))
    runs = [run for (size, _, _), several in speeds.items() if size == group.size for run in several]
    steps = sorted({run["plan"]["steps"] for run in runs if "steps" in run["plan"]})
    length = f" of {' or '.join(map(str, steps))} updates" if steps else ""
    spread = "one a type and context, no spread known" if len(runs) == sum(len(rates) for rates in found.values()) else "means of those of a type and context"
    tokens = " and ".join(f"{lengths[context]:,}" for context in order)
    caption = (f"Training speed of whole steps, {group.size}, at {tokens} tokens of context (equal tokens a step), one run alone on a device "
               f"({', '.join(sorted(devices))}); sorted by the longest context. {in_words(len(runs), 'run')}{length}, {spread}.")
    return Figure("training_speed", "Training speed", caption, "speeds", {"rows": rows, "contexts": order, "lengths": lengths})


def is_single(group, split, name):
    return all(len(tables.evaluation_of(result, split, name)) <= 1 for kind in group.types for result in group.results(kind))


def figures_of(group, speeds, names, with_speeds=True):
    """Figures of a group that have something to show, in their order. names: of its evaluations; speeds: of costs.speeds_of; with_speeds: also that of all types'
    speeds, which is of a size, not of a group."""
    split = group.final_split()
    single = next((name for name in names if is_single(group, split, name) and tables.losses_by_seed(group, split, name)), None)
    if single is None or len(group.types) < 2:
        return []
    losses = tables.losses_by_seed(group, split, single)
    kinds = main_types(group, losses)
    made = [dots(group, single), plane(group, single, speeds), recall(group, single, kinds, losses), contexts(group, [name for name in names if name != single], losses),
            curves(group, kinds, losses), training_speeds(group, speeds) if with_speeds else None]
    return [figure for figure in made if figure is not None]
