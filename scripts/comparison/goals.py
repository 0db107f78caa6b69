"""What was to be shown, each goal with what was measured and whether it is reached. The goals were set before the runs; nothing here chooses them by the data."""
import math

from comparison import stats
from comparison.costs import probe_setting, probes_of
from comparison.tables import CACHES, SECTIONS, Table, difference_text, judged, kib, kinds_of, mean_over_layers, number

WITHIN_FULL = 0.01  # perplexity, of full attention
WITHIN_DENSE = 0.03  # perplexity, a converted model of the dense one that went on
CONVERSION_SHARE = 0.05  # of the dense model's tokens
COPY_RIGHT, COPY_CHANCE = 0.99, 0.05  # selective copy: at least right; a window at most so far above chance


def share(value):
    """A difference of losses as one of perplexities."""
    return f"{100 * math.expm1(value):+.2f} %"


def seeds_text(difference):
    return " and ".join(map(str, difference.counted))


def bytes_text(group, kind):
    mine, other = (mean_over_layers(group.results(name)[0], "cache_bytes") for name in (kind, group.reference))
    return f"{number(kib(mine), 1)} KiB a layer, {mine / other:.2f} of the reference's" if mine and other else "bytes unknown"


def absent_types(group, cells, grid):
    """(type, label, states) of rivals that the grid wants at this size and context and that have not run."""
    found = {}
    for cell in cells:
        kind = grid["types"][cell["type"]]
        stage = grid["stages"][cell["stage"]]
        wanted = (cell["size"], cell["context"]) == (group.size, group.context) and stage.get("final") and "from" not in stage
        if wanted and cell["type"] not in group.types and cell["state"] != "finished" and "best_of" not in kind and kind.get("family", "rival") == "rival":
            found.setdefault(cell["type"], set()).add(cell["state"])
    return [(name, grid["types"][name].get("label", name), "/".join(sorted(states))) for name, states in found.items()]


def constant_goal(group, decided, absent, grid):
    """A row for each rival of constant cache."""
    goal, rows = "better than every rival of constant cache (books and seeds, Holm)", []
    for kind, (difference, holm, verdict) in decided.get("constant", {}).items():
        states = {"worse": "reached", "better": "missed: the rival is better", "not decided": "missed: not decided"}
        measured = f"{difference_text(difference)}, Holm p {number(holm, 4) or 'none'}; {bytes_text(group, kind)}"
        rows.append([goal, f"{group.size} at {group.context}: {group.label(kind)}", seeds_text(difference), measured, states.get(verdict, f"open: {verdict}")])
    reference = kinds_of(group.results(group.reference)[0])
    for name, label, state in absent:
        kind = grid["types"][name]
        if kind.get("cache") in ("bounded", "state") and {one["type"] for one in kind["kinds"].values()} != reference:
            rows.append([goal, f"{group.size} at {group.context}: {label}", "0", "", f"not run ({state})"])
    return rows


def state_within(excess, limit):
    """excess: by how much a loss lies above another, a Difference: whether the perplexity stays within the limit."""
    bound = math.log1p(limit)
    if excess.value > bound:
        return "missed"
    if excess.p is None:
        return f"by the mean; open: {excess.verdict(None)}"
    return "reached" if max(excess.books[1], excess.seeds[1]) < bound else "by the mean, not by the intervals"


def turned(difference):
    """The difference the other way round."""
    seeds = (None, None) if difference.seeds[0] is None else (-difference.seeds[1], -difference.seeds[0])
    return stats.Difference(-difference.value, (-difference.books[1], -difference.books[0]), seeds, difference.counted, difference.p)


def is_dense(result):
    """Whether every query reads every key before it, unchosen: full attention, and controls that come to the same by other kernels."""
    rows, T = mean_over_layers(result, "visited_rows"), result["config"]["data"]["seq_len"]
    return kinds_of(result) == {"full"} or (rows is not None and rows >= 0.99 * T / 2 and not mean_over_layers(result, "scored_pairs"))


def full_goal(group, decided, absent, grid):
    goal, rows = f"within {100 * WITHIN_FULL:g} % perplexity of full attention", []
    for kind, (difference, _, _) in [item for section in decided.values() for item in section.items()]:
        if is_dense(group.results(kind)[0]):
            excess = turned(difference)
            measured = f"{share(excess.value)} perplexity ({difference_text(excess)} nat)"
            rows.append([goal, f"{group.size} at {group.context}: {group.label(kind)}", seeds_text(excess), measured, state_within(excess, WITHIN_FULL)])
    for name, _, state in absent:
        if {one["type"] for one in grid["types"][name]["kinds"].values()} == {"full"}:
            rows.append([goal, f"{group.size} at {group.context}", "0", "", f"not run ({state})"])
    return rows


def growing_gaps(group, decided):
    rows = []
    for kind, (difference, holm, verdict) in decided.get("growing", {}).items():
        first = group.results(kind)[0]
        if not is_dense(first):
            measured = (f"{difference_text(difference)}, Holm p {number(holm, 4) or 'none'}; {number(mean_over_layers(first, 'visited_rows'), 0)} rows visited of "
                        f"{number(mean_over_layers(group.results(group.reference)[0], 'visited_rows'), 0)}, {bytes_text(group, kind)}")
            rows.append(["none: the gap to rivals that keep all keys", f"{group.size} at {group.context}: {group.label(kind)} ({CACHES[first['cache']]})", seeds_text(difference),
                         measured, f"open: {verdict}" if difference.p is None else f"rival {verdict}"])
    return rows


def conversion_goal(group, decided, reference, results, grid):
    if reference not in group.types or reference not in decided.get("converted", {}):
        return []
    difference = decided["converted"][reference][0]
    source = next((r for r in results if r["name"] == group.results(reference)[0]["source"]), None)
    part = group.tokens / source["plan"]["tokens"] if source and source["status"] == "finished" else None
    state = state_within(difference, WITHIN_DENSE)
    if part is not None and part > CONVERSION_SHARE * 1.005:  # a whole number of updates
        state = f"missed: took {100 * part:.1f} % of the tokens"
    measured = f"{share(difference.value)} perplexity ({difference_text(difference)} nat), with {'an unknown part' if part is None else f'{100 * part:.1f} %'} of the dense model's tokens"
    goal = f"converted within {100 * WITHIN_DENSE:g} % perplexity of dense continued, after at most {100 * CONVERSION_SHARE:g} % of its tokens"
    return [[goal, f"{group.size} at {group.context}",
             seeds_text(difference), measured, state]]


def copy_goal(results, reference_kinds):
    """Selective copy of no more marked tokens than the selection holds, at the trained length."""
    rows = []
    for (_, size, name), types in probes_of(results).items():
        for runs in types.values():
            first, kinds = runs[0]["probe"], kinds_of(runs[0])
            task = first["config"]["probe"]
            held = [kind.get("k", 0) for kind in runs[0]["config"]["model"]["attention"]["kinds"].values()]
            if first["task"] != "selective_copy" or kinds not in (reference_kinds, {"sliding_window"}):
                continue
            at = next((i for i, r in enumerate(first["results"]) if (r["length"], r["items"]) == (task["length"], task["items"])), None)
            if at is None or (kinds == reference_kinds and task["items"] > min(held)):
                continue
            right = [run["probe"]["results"][at]["accuracy"] for run in runs]
            least, most = min(right), max(right)
            text = f"{100 * stats.mean(right):.1f} % right ({100 * least:.1f} to {100 * most:.1f}), chance {100 * first['chance']:.1f} %"
            goal, good = ((f"selective copy: at least {100 * COPY_RIGHT:g} % right", least >= COPY_RIGHT) if kinds == reference_kinds else
                          (f"selective copy: a window at most {100 * COPY_CHANCE:g} points above chance", most <= first["chance"] + COPY_CHANCE))
            rows.append([goal, f"{name}, {size}, {probe_setting(task['length'], task['items'], None)}: {runs[0]['label']}", str(len(runs)), text, "reached" if good else "missed"])
    return rows


def goals_table(groups, results, cells, grid, reference, name, resamples):
    """name: the evaluation of whole books. Each goal on the final split where there is one."""
    rows, gaps, splits = [], [], set()
    converted = any(group.converted for group in groups)
    for group in groups:
        split = group.final_split()
        decided = judged(group, split, name, resamples) if split else {}
        if group.converted:
            rows += conversion_goal(group, decided, reference, results, grid)
        elif reference in group.types and any(grid["stages"].get(stage, {}).get("final") for stage in group.stages()):
            absent = absent_types(group, cells, grid)
            rows += constant_goal(group, decided, absent, grid) + full_goal(group, decided, absent, grid)
            gaps += growing_gaps(group, decided)
        splits |= {split} if decided else set()
    done = {(group.size, group.context) for group in groups if not group.converted}
    asked = dict.fromkeys((cell["size"], cell["context"]) for cell in cells if grid["stages"][cell["stage"]].get("final") and "from" not in grid["stages"][cell["stage"]])
    rows += [["every goal of language modelling", f"{size} at {context}", "0", "", "not run"] for size, context in asked if (size, context) not in done]
    kinds = {one["type"] for one in grid["types"][reference]["kinds"].values()}
    probes = copy_goal(results, kinds)
    open_goals = [text for text, there in (("conversion", converted), ("selective copy", probes)) if not there]
    note = (f"{grid['types'][reference].get('label', reference)} against the others, on {' and '.join(sorted(splits)) or 'no split yet'}; differences: type "
            "minus reference, or, against full and dense, "
            f"reference minus type, in nats a token. Reached: clear of books and of seeds, at least {stats.LEAST_SEEDS} of each type. Holm's correction over "
            f"the {SECTIONS['constant']}, "
            f"and apart over the rivals whose cache grows.{f' Nothing has run yet for: ' + ', '.join(open_goals) + '.' if open_goals else ''}")
    return Table("Goals", note, ["goal", "where", "seeds", "measured", "state"], rows + probes + gaps) if rows + probes + gaps else None
