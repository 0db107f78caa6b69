"""Tables of losses for scripts/compare_page.py. Each function takes the study and the words of a mark, and yields (column names, rows of cells)."""
import json
import math

import compare_costs as costs
import compare_pairs as memory
import compare_stats as stats
from compare_grid import GridError
from compare_tables import bracket, evaluation_of, kib, mean_over_layers, number, read_result


def difference_cell(difference):
    """-0.0459 [-0.053, -0.038]: the mean and its interval over seeds, where there are enough."""
    shown = f"{difference.value:+.4f}"
    return shown if difference.p is None else f"{shown} {bracket(*difference.seeds, 3, True)}"


def p_text(p):
    return "< 0.001" if p < 0.001 else number(p, 3)


def verdict_cell(verdict, corrected):
    return verdict if corrected is None else f"{verdict} ({p_text(corrected)})"


def present(group, kinds):
    """Those that have run: a page may name what is to come."""
    return [kind for kind in kinds if kind in group.types]


def by_loss(study, group, kinds, split):
    weights, found = study.books(group, split)
    return sorted((kind for kind in kinds if kind in found), key=lambda kind: sum(stats.pooled(found[kind])))


# -- a row a type -------------------------------------------------------------------------------------------------------------------------------------
def losses(study, words):
    """of=GROUP types=a,b|all columns=... [split=test]. A row a type, the lowest loss first; types that have not run are left out. Columns: COLUMNS."""
    group, split = study.group(words.one("of")), words.one("split", "test")
    wanted, columns = words.many("types", "all"), words.many("columns", "seeds,loss,sd,difference,verdict,val")
    kinds = list(group.types) if wanted == ["all"] else present(group, wanted)
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise GridError(f"columns={','.join(unknown)}: there are {', '.join(COLUMNS)}")
    rows = [[group.label(kind), *(COLUMNS[name][1](study, group, kind, split) for name in columns)] for kind in by_loss(study, group, kinds, split)]
    reference, reach = group.label(group.reference) if group.reference in group.types else "none", memory.reach_of(group)
    return ["type", *(COLUMNS[name][0].format(split=split, reference=reference, least=reach[0] - 1 if reach else "") for name in columns)], rows


def per_training(study, group, kind, split):
    weights, found = study.books(group, split)
    return [sum(nll) / sum(weights) for _, nll in sorted(found[kind].items())] if kind in found else []


def against_reference(cell):
    """A column of the difference to the reference; the reference's own is empty, a type's that did not run on that split too."""
    def column(study, group, kind, split):
        found = study.judged(group, split).get(kind)
        return cell(*found) if found else ""
    return column


def difference_column(study, group, kind, split):
    return "reference" if kind == group.reference else against_reference(lambda difference, holm, verdict: difference_cell(difference))(study, group, kind, split)


def other_split_cell(difference, holm, verdict):
    return f"{difference.value:+.4f}" + ("" if holm is None else f", {verdict_cell(verdict, holm)}")


def speed_column(study, group, kind, split):
    runs = study.speeds.get((group.size, group.context, kind))
    return f"{stats.mean([run['tok_s'] for run in runs]) / 1e6:.2f}" if runs else ""


def part_column(which):
    """0: loss where all types of as wide a window see the same keys; 1: what comes with far text. Minus the reference's."""
    def column(study, group, kind, split):
        found = memory.parts_by_type(group, split, "books", memory.reach_of(group))
        if kind == group.reference or kind not in found or group.reference not in found:
            return ""
        return part_cell(group, found, kind, group.reference, which)
    return column


def part_cell(group, found, one, other, which):
    values = [{seed: far - near if which else near for seed, ((_, near), (_, far)) in found[kind].items()} for kind in (one, other)]
    value, reach = memory.over_seeds(group, *values)
    return f"{value} {reach}" if reach != "too few seeds" else value


def layer(key, scale=lambda value: value):
    return lambda study, group, kind, split: number(scale(mean_over_layers(group.results(kind)[0], key)), 0)


def bytes_column(study, group, kind, split):
    mine, other = (mean_over_layers(group.results(name)[0], "cache_bytes") for name in (kind, group.reference))
    return f"{mine / other:.2f}"


COLUMNS = {
    "seeds": ("seeds", lambda study, group, kind, split: str(len(per_training(study, group, kind, split)))),
    "loss": ("loss on {split}", lambda study, group, kind, split: number(stats.mean(per_training(study, group, kind, split)), 4)),
    "sd": ("sd", lambda study, group, kind, split: number(stats.deviation(per_training(study, group, kind, split)), 4)),
    "perplexity": ("perplexity", lambda study, group, kind, split: number(math.exp(stats.mean(per_training(study, group, kind, split))), 2)),
    "difference": ("minus {reference} [95 % over seeds]", difference_column),
    "verdict": ("verdict (Holm p)", against_reference(lambda difference, holm, verdict: verdict_cell(verdict, holm))),
    "val": ("on val", lambda study, group, kind, split: against_reference(other_split_cell)(study, group, kind, "val")),
    "loss_val": ("loss on val", lambda study, group, kind, split: number(stats.mean(per_training(study, group, kind, "val")), 4)),
    "cache": ("cache KiB a layer", layer("cache_bytes", kib)),
    "bytes": ("its bytes, of the reference's", bytes_column),
    "visited": ("visited rows", layer("visited_rows")),
    "speed": ("M tokens/s", speed_column),
    "near": ("saw at most {least}", part_column(0)),
    "far": ("what comes with far text", part_column(1)),
    "far_val": ("the same on val", lambda study, group, kind, split: part_column(1)(study, group, kind, "val"))}


# -- pairs of types -----------------------------------------------------------------------------------------------------------------------------------
def named_pairs(study, group, split):
    """{(one, other): (Difference, Holm's p)} of the grid's pairs that have run: the family that they are corrected in."""
    weights, found = study.books(group, split)
    counts = stats.draws(len(weights), study.resamples)
    differences = {(one, other): stats.compare(counts, found[one], found[other], weights, paired=group.converted)
                   for one, other in study.grid.get("pairs", []) if one in found and other in found}
    tested = [pair for pair in differences if differences[pair].p is not None]
    holm = dict(zip(tested, stats.holm([differences[pair].p for pair in tested])))
    return {pair: (difference, holm.get(pair)) for pair, difference in differences.items()}


def pair_cells(study, group, pair, split, family):
    weights, found = study.books(group, split)
    if pair in family:
        difference, holm = family[pair]
        return [difference_cell(difference), verdict_cell(difference.verdict(holm), holm)]
    difference = stats.compare(stats.draws(len(weights), study.resamples), found[pair[0]], found[pair[1]], weights, paired=group.converted)
    return [difference_cell(difference), "" if difference.p is None else f"uncorrected p {p_text(difference.p)}"]


def pairs(study, words):
    """of=GROUP [pairs=a:b,c:d]: those of the grid (the default), with verdicts corrected over all of the grid's that ran, or others, without."""
    group = study.group(words.one("of"))
    families = {split: named_pairs(study, group, split) for split in ("test", "val")}
    asked = words.one("pairs", "") or ",".join(":".join(pair) for pair in families["test"])
    rows = []
    for pair in (tuple(one.split(":")) for one in asked.split(",")):
        if all(kind in group.types for kind in pair):
            cells = {split: pair_cells(study, group, pair, split, families[split]) for split in families}
            rows.append([" minus ".join(group.label(kind) for kind in pair), *cells["test"], ", ".join(cell for cell in cells["val"] if cell)])
    return ["difference", "on test [95 % over seeds]", "verdict (Holm p)", "on val"], rows


# -- single trainings, and other groups ---------------------------------------------------------------------------------------------------------------
def trainings(study, words):
    """of=GROUP than=GROUP types=a,b: each training, the mean, and the same of those seeds in another group."""
    group, other, rows = study.group(words.one("of")), study.group(words.one("than")), []
    for kind in by_loss(study, group, present(group, words.many("types")), "test"):
        (weights, mine), (other_weights, theirs) = study.books(group, "test"), study.books(other, "test")
        loss = {seed: sum(nll) / sum(weights) for seed, nll in sorted(mine[kind].items())}
        before = {seed: sum(nll) / sum(other_weights) for seed, nll in theirs.get(kind, {}).items() if seed in loss}
        known = len(before) == len(loss)
        rows.append([group.label(kind), ", ".join(f"{value:.4f}" for value in loss.values()), number(stats.mean(list(loss.values())), 4), difference_column(study, group, kind, "test"),
                     against_reference(lambda difference, holm, verdict: verdict_cell(verdict, holm))(study, group, kind, "test"),
                     number(stats.mean(list(before.values())), 4) if known else "", f"{stats.mean(list(before.values())) - stats.mean(list(loss.values())):.3f}" if known else ""])
    return ["type", "each training on test", "mean", f"minus {group.label(group.reference)} [95 % over seeds]", "verdict (Holm p)", f"the same seeds, {words.one('before')}", "gain"], rows


def several(study, words):
    """"name=GLOB+GLOB" ... [split=val]: losses of whole books over sets of results, by their folders; "name=all" of all rows above it."""
    split, rows, every = words.one("split", "val"), [], {}
    for name, wanted in words.rows():
        paths = {path: None for glob in wanted.split("+") for path in sorted(study.folder.glob(f"{glob}/result.json"))} if wanted != "all" else every
        if not paths:
            raise GridError(f"{name}: no result at {wanted}")
        every = {**every, **paths}
        found = [evaluation_of(read_result(path), split, "books")[0]["loss"] for path in paths]
        rows.append([name, str(len(found)), number(stats.mean(found), 4), number(stats.deviation(found), 4)])
    return ["trainings", "number", f"loss on {split}", "sd"], rows


def peer(study, words):
    """of=GROUP file=NAME.jsonl "type=WINDOW" ...: the study's models beside bench/peers/novels_torch.py's, by that script's window (0: none)."""
    group, rows = study.group(words.one("of")), []
    path = study.folder / words.one("file")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    for kind, window in words.rows():
        cells = []
        for split in ("test", "val"):
            mine, theirs = per_training(study, group, kind, split), [line[split]["loss"] for line in lines if line["window"] == int(window)]
            cells += [number(stats.mean(mine), 4), number(stats.mean(theirs), 4), ", ".join(f"{one:.4f}" for one in theirs)]
        rows.append([group.label(kind), *cells])
    return ["type", "sieve, test", "PyTorch, test", "each", "sieve, val", "PyTorch, val", "each"], rows


def converted(study, words):
    """of=STAGE,STAGE types=a,b: conversions; every stage's own reference is what each is compared with, the first's alone is shown."""
    rows = []
    for name in words.many("of"):
        group = study.group(name)
        for kind in present(group, words.many("types")):
            if kind == group.reference and rows:
                continue
            curves = [costs.validated(run, "tokens") for run in group.results(kind)]
            ends = [number(stats.mean([curve[at][1] for curve in curves]), 4) for at in (0, -1)]
            found = study.judged(group, "test").get(kind)
            cells = ["", "", ""] if not found else [f"{found[0].value:+.4f} {bracket(*found[0].seeds, 4, True)}", verdict_cell(found[2], found[1]),
                                                    f"{100 * math.expm1(found[0].value):+.2f} %"]
            rows.append([group.label(kind), *ends, *cells])
    return ["goes on as", "before any update (val)", "after (val)", "all of test then, minus dense [95 % over seeds, paired]", "verdict (Holm p)", "perplexity"], rows
