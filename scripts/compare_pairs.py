"""Two questions that the tables against one reference leave open: how certain pairs of types differ, and how much of a difference can be memory."""
import compare_stats as stats
from compare_tables import Table, books_of, difference_cells, evaluation_of, number, bracket, with_seeds


def pairs_table(group, split, name, pairs, resamples):
    """The grid's pairs [type, other], type minus other, as far as both have run here; corrected over the pairs that have a p."""
    shape, losses = books_of(group, split, name)
    present = [(one, other) for one, other in pairs if one in losses and other in losses]
    if not present:
        return None
    counts, weights = stats.draws(len(shape), resamples), [weight for _, weight, _ in shape]
    found = {pair: stats.compare(counts, losses[pair[0]], losses[pair[1]], weights, paired=group.converted) for pair in present}
    tested = [pair for pair in present if found[pair].p is not None]
    holm = dict(zip(tested, stats.holm([found[pair].p for pair in tested])))
    rows = [[f"{with_seeds(group, pair[0])} minus {with_seeds(group, pair[1])}", *difference_cells(found[pair]), number(found[pair].p, 4), number(holm.get(pair), 4),
             found[pair].verdict(holm.get(pair))] for pair in present]
    return Table(f"Pairs ({split})",
                 f"Pairs that the grid names: nats a token, negative where the first is better. {'Paired t' if group.converted else 'Welch’s t'} over seeds; p: the larger of "
                 f"both tests; Holm: corrected over the pairs tested here ({len(tested)}).",
                 ["difference", "mean", "95 % over books", "95 % over seeds (t)", "p", "Holm p", "the first"], rows)


def reach_of(group):
    """(window, window and selected rows) of the reference where all its layers agree on them; None for others: all types of as wide a window see the same keys
    while the text is shorter than the first, and some leave keys out from the second on."""
    if group.reference not in group.types:
        return None
    specs = group.results(group.reference)[0]["config"]["model"]["attention"]["kinds"].values()
    reaches = {(spec["window"], spec["window"] + spec["k"]) for spec in specs if spec.get("window") and spec.get("k")}
    return reaches.pop() if len(reaches) == 1 and len(specs) == 1 else None


def parts_of(found, reach):
    """(loss of targets that saw less than reach[0] tokens, of those that saw at least reach[1]); None where an evaluation has none of either."""
    buckets = found[0].get("positions") or []
    parts = []
    for chosen in ([b for b in buckets if b["to"] is not None and b["to"] <= reach[0]], [b for b in buckets if b["from"] >= reach[1]]):
        tokens = sum(bucket["tokens"] for bucket in chosen)
        if tokens == 0 or any(bucket["nll"] is None for bucket in chosen):
            return None
        parts.append(sum(bucket["nll"] for bucket in chosen) / tokens)
    return parts


def parts_by_type(group, split, name, reach):
    """{type: {seed: parts_of()}}, only of types all of whose runs have both parts."""
    parts = {}
    for kind in group.types:
        runs = {seed: evaluation_of(result, split, name) for seed, result in group.types[kind].items()}
        found = {seed: parts_of(run, reach) for seed, run in runs.items() if run}
        if found and None not in found.values():
            parts[kind] = found
    return parts


def over_seeds(group, first, second):
    """Cells (difference, 95 % over seeds, p) of two types' numbers, each {seed: number}."""
    if group.converted:
        common = sorted(first.keys() & second.keys())
        value, found = stats.mean([first[seed] - second[seed] for seed in common]), stats.one_sample([first[seed] - second[seed] for seed in common])
    else:
        value, found = stats.mean(list(first.values())) - stats.mean(list(second.values())), stats.welch(list(first.values()), list(second.values()))
    return ["" if value is None else f"{value:+.4f}", bracket(*found[:2], 4, True) or "one seed", number(found[2], 4)]


def memory_table(group, split, name):
    """What of a difference stands already where types of as wide a window see the same keys, and what comes with the keys that they do not all see."""
    reach = reach_of(group)
    parts = parts_by_type(group, split, name, reach) if reach else {}
    if group.reference not in parts or len(parts) < 2:
        return None
    near, gain = ({kind: {seed: pick(*part) for seed, part in found.items()} for kind, found in parts.items()}
                  for pick in (lambda short, far: short, lambda short, far: far - short))
    rows = [[with_seeds(group, kind), *over_seeds(group, near[kind], near[group.reference])[:2], *over_seeds(group, gain[kind], gain[group.reference])]
            for kind in sorted(parts, key=lambda kind: stats.mean(list(gain[kind].values()))) if kind != group.reference]
    low, high = f"{reach[0] - 1:,}", f"{reach[1]:,}"
    return Table(f"What can be memory ({split})",
                 f"Nats a token, type minus reference ({group.label(group.reference)}), 95 % over seeds, not corrected. With at most {low} tokens seen, the reference, full "
                 f"attention and windows at least as wide compute the same function of the same keys: what they differ by there is how training came out. Loss at {high} "
                 f"and more, less loss at {low} and less, can be memory. For types that see fewer keys the first column mixes both.",
                 ["type", f"saw at most {low}", "95 % over seeds (t)", "what comes with far text", "95 % over seeds (t)", "p"], rows)
