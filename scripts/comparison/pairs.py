"""Two questions that the tables against one reference leave open: how certain pairs of types differ, and how much of a difference can be memory."""
import re

from comparison import stats
from comparison.tables import Table, books_of, bracket, corrected, difference_cells, evaluation_of, number, with_seeds


def compared_pairs(group, split, name, pairs, resamples):
    """{(type, other): (Difference, Holm's p or None)}, type minus other, of the pairs that both have run here; corrected over those that have a p."""
    shape, losses = books_of(group, split, name)
    present = [(one, other) for one, other in pairs if one in losses and other in losses]
    if not present:
        return {}
    counts, weights = stats.draws(len(shape), resamples), [weight for _, weight, _ in shape]
    found = {pair: stats.compare(counts, losses[pair[0]], losses[pair[1]], weights, paired=group.converted) for pair in present}
    holm = corrected(found)
    return {pair: (difference, holm.get(pair)) for pair, difference in found.items()}


def pairs_table(group, split, name, pairs, resamples):
    """The grid's pairs [type, other] as far as they have run here."""
    found = compared_pairs(group, split, name, pairs, resamples)
    if not found:
        return None
    tested = [holm for _, holm in found.values() if holm is not None]
    rows = [[" minus ".join(with_seeds(group, kind) for kind in pair), *difference_cells(difference), number(difference.p, 4), number(holm, 4), difference.verdict(holm)]
            for pair, (difference, holm) in found.items()]
    return Table(f"Pairs ({split})",
                 f"Pairs that the grid names: nats a token, negative where the first is better. {'Paired t' if group.converted else 'Welch’s t'} over seeds; p: the larger of "
                 f"both tests; Holm: corrected over the pairs tested here ({len(tested)}).",
                 ["difference", "mean", "95 % over books", "95 % over seeds (t)", "p", "Holm p", "the first"], rows)


def reach_of(group):
    """(window, window and selected rows) of the reference, whose layers are all alike; None for others. All types of as wide a window see the same keys while the text
    is shorter than the first, and some leave keys out from the second on."""
    if group.reference not in group.types:
        return None
    specs = list(group.results(group.reference)[0]["config"]["model"]["attention"]["kinds"].values())
    window, selected = (as_count(specs[0].get(key)) for key in ("window", "k"))
    return (window, window + selected) if len(specs) == 1 and window and selected else None


def as_count(value):
    """A number of rows of a configuration, also one written as 1Ki; None of anything else."""
    found = re.fullmatch(r"(\d+)(Ki|k|K)?", str(value))
    return int(found[1]) * {None: 1, "Ki": 1024}.get(found[2], 1000) if found else None


def parts_of(found, reach):
    """((tokens seen at most, loss of targets that saw no more), (at least, loss)), by the buckets that lie within reach[0] and beyond reach[1]; None where an
    evaluation has none of either."""
    buckets = [bucket for bucket in found[0].get("positions") or [] if bucket["tokens"]]
    near = [bucket for bucket in buckets if bucket["to"] is not None and bucket["to"] <= reach[0]]
    far = [bucket for bucket in buckets if bucket["from"] >= reach[1]]
    if not near or not far or any(bucket["nll"] is None for bucket in near + far):
        return None
    losses = (sum(bucket["nll"] for bucket in part) / sum(bucket["tokens"] for bucket in part) for part in (near, far))
    return tuple(zip((max(bucket["to"] for bucket in near) - 1, min(bucket["from"] for bucket in far)), losses))


def parts_by_type(group, split, name, reach):
    """{type: {seed: parts_of()}}, only of types all of whose runs have both parts."""
    parts = {}
    for kind in group.types:
        runs = {seed: evaluation_of(result, split, name) for seed, result in group.types[kind].items()}
        found = {seed: parts_of(run, reach) for seed, run in runs.items() if run}
        if found and None not in found.values():
            parts[kind] = found
    return parts


def over_seeds(group, first, second, digits=4):
    """Cells (difference, 95 % over seeds) of two types' numbers, each {seed: number}; in a converted group of the seeds that both have."""
    if group.converted:
        gaps = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
        value, found = stats.mean(gaps), stats.one_sample(gaps)
    else:
        value, found = stats.mean(list(first.values())) - stats.mean(list(second.values())), stats.welch(list(first.values()), list(second.values()))
    enough = min(len(first), len(second)) >= stats.LEAST_SEEDS
    return ["" if value is None else f"{value:+.{digits}f}", bracket(*found[:2], digits, True) if enough else "too few seeds"]


def memory_table(group, split, name):
    """What of a difference stands already where types of as wide a window see the same keys, and what comes with the keys that they do not all see."""
    reach = reach_of(group)
    parts = parts_by_type(group, split, name, reach) if reach else {}
    if group.reference not in parts or len(parts) < 2:
        return None
    near = {kind: {seed: short for seed, ((_, short), _) in found.items()} for kind, found in parts.items()}
    gain = {kind: {seed: far - short for seed, ((_, short), (_, far)) in found.items()} for kind, found in parts.items()}
    rows = [[with_seeds(group, kind), *over_seeds(group, near[kind], near[group.reference]), *over_seeds(group, gain[kind], gain[group.reference])]
            for kind in sorted(parts, key=lambda kind: stats.mean(list(gain[kind].values()))) if kind != group.reference]
    (least, _), (most, _) = next(iter(parts[group.reference].values()))
    return Table(f"What can be memory ({split})",
                 f"Nats a token, type minus reference ({group.label(group.reference)}); 95 % over seeds alone, not corrected, no verdicts. With at most {least:,} tokens seen, "
                 f"the reference, full attention and windows at least as wide compute the same function of the same keys: what they differ by there is how training came "
                 f"out. Loss at {most:,} and more, less loss at {least:,} and less, can be memory. For types that see fewer keys the first column mixes both.",
                 ["type", f"saw at most {least:,}", "95 % of it", "what comes with far text", "95 % of that"], rows)
