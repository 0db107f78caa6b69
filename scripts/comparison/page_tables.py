"""Tables of losses for scripts/compare_page.py. Each function takes the study and the words of a mark, and yields (column names, rows of cells)."""
import json
import math

from comparison import costs, pairs as memory, stats
from comparison.grid import GridError
from comparison.tables import bracket, evaluation_of, kib, mean_over_layers, number, read_result


def p_text(p):
    """Three digits, more where they would hide that p is below 0.05."""
    return "< 0.001" if p < 0.001 else number(p, 3 if p < 0.0495 or p >= 0.05 else 4)


def difference_cell(difference):
    """-0.0459 [-0.053, -0.038]: the mean and its interval over seeds, where there are enough."""
    shown = f"{difference.value:+.4f}"
    return shown if difference.p is None else f"{shown} {bracket(*difference.seeds, 3, True)}"


def verdict_cell(verdict, corrected):
    return verdict if corrected is None else f"{verdict} ({p_text(corrected)})"


def judged_cell(difference, corrected, verdict):
    return verdict_cell(verdict, corrected)


def mean_of(trainings):
    return stats.mean(list(trainings.values()))


# -- a row a type -------------------------------------------------------------------------------------------------------------------------------------
def losses(study, words):
    """of=GROUP types=a,b|all columns=... [split=test]. A row a type, the lowest loss first. Columns: COLUMNS."""
    split = study.split(words, "test")
    group = study.group(words.one("of"))
    kinds, columns = study.kinds(study.seen(group, split), words), words.many("columns", "seeds,loss,sd,difference,verdict,val")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise GridError(f"columns={','.join(unknown)}: there are {', '.join(COLUMNS)}")
    rows = [[group.label(kind), *(COLUMNS[name][1](study, group, kind, split) for name in columns)] for kind in by_loss(study, group, kinds, split)]
    reference, reach = group.label(group.reference) if group.reference in group.types else "none", memory.reach_of(group)
    return ["type", *(COLUMNS[name][0].format(split=split, reference=reference, least=reach[0] - 1 if reach else "") for name in columns)], rows


def by_loss(study, group, kinds, split):
    return sorted(kinds, key=lambda kind: mean_of(study.trainings(group, kind, split)))


def trainings_column(show):
    return lambda study, group, kind, split: show(list(study.trainings(group, kind, split).values()))


def judged_column(show):
    """A column of the difference to the reference: empty for the reference itself and where there is none."""
    def column(study, group, kind, split):
        found = study.judged(group, split).get(kind)
        return show(*found) if found else ""
    return column


def on_val(column):
    return lambda study, group, kind, split: column(study, group, kind, "val")


def difference_column(study, group, kind, split):
    return "reference" if kind == group.reference else judged_column(lambda difference, corrected, verdict: difference_cell(difference))(study, group, kind, split)


def speed_column(study, group, kind, split):
    runs = study.speeds.get((group.size, group.context, kind))
    return f"{stats.mean([run['tok_s'] for run in runs]) / 1e6:.2f}" if runs else ""


def part_column(which):
    """0: loss where all types of as wide a window see the same keys; 1: what comes with far text. Minus the reference's."""
    def column(study, group, kind, split):
        found = memory.parts_by_type(group, split, "books", study.reach(group))
        return "" if kind == group.reference or not {kind, group.reference} <= found.keys() else part_cell(group, found, kind, group.reference, which)
    return column


def part_cell(group, found, one, other, which):
    values = [{seed: far - near if which else near for seed, ((_, near), (_, far)) in found[kind].items()} for kind in (one, other)]
    return with_interval(memory.over_seeds(group, *values))


def with_interval(cells):
    """(difference, 95 % over seeds) in one cell."""
    return cells[0] if cells[1] == "too few seeds" else " ".join(cells)


def layer(key, scale=lambda value: value):
    return lambda study, group, kind, split: number(scale(mean_over_layers(group.results(kind)[0], key)), 0)


def bytes_column(study, group, kind, split):
    if group.reference not in group.types:
        return ""
    mine, other = (mean_over_layers(group.results(name)[0], "cache_bytes") for name in (kind, group.reference))
    return f"{mine / other:.2f}"


COLUMNS = {
    "seeds": ("seeds", trainings_column(lambda found: str(len(found)))),
    "loss": ("loss on {split}", trainings_column(lambda found: number(stats.mean(found), 4))),
    "sd": ("sd", trainings_column(lambda found: number(stats.deviation(found), 4))),
    "perplexity": ("perplexity", trainings_column(lambda found: number(math.exp(stats.mean(found)), 2))),
    "difference": ("minus {reference} [95 % over seeds]", difference_column),
    "verdict": ("verdict (Holm p)", judged_column(judged_cell)),
    "val": ("on val", on_val(judged_column(lambda difference, corrected, verdict: f"{difference.value:+.4f}" + ("" if corrected is None else f", {verdict_cell(verdict, corrected)}")))),
    "loss_val": ("loss on val", on_val(trainings_column(lambda found: number(stats.mean(found), 4)))),
    "cache": ("cache KiB a layer", layer("cache_bytes", kib)),
    "bytes": ("its bytes, of the reference's", bytes_column),
    "visited": ("visited rows", layer("visited_rows")),
    "speed": ("M tokens/s", speed_column),
    "near": ("saw at most {least}", part_column(0)),
    "far": ("what comes with far text", part_column(1)),
    "far_val": ("the same on val", on_val(part_column(1)))}


# -- pairs of types -----------------------------------------------------------------------------------------------------------------------------------
def pairs(study, words):
    """of=GROUP [pairs=a:b,c:d]: those of the grid (the default), with verdicts corrected over all of the grid's that ran; or others, without."""
    group = study.group(words.one("of"))
    families = {split: study.pairs_of_grid(group, split) for split in ("test", "val")}
    own = words.has("pairs")
    asked = study.pairs(group, words) if own else [(*pair, "") for pair in families["test"]]
    if turned := [f"{one}:{other}" for one, other, _ in asked if own and {(one, other), (other, one)} & families["test"].keys()]:
        raise GridError(f"{', '.join(turned)}: of the grid's own pairs, which a table without pairs= shows with their verdicts")
    rows = []
    for one, other, _ in asked:
        cells = []
        for split, family in families.items():
            difference, corrected = (study.compared(group, (one, other), split), None) if own else family.get((one, other), (None, None))
            cells.append(("", "") if difference is None else (difference_cell(difference), uncorrected(difference) if own else judged_cell(difference, corrected, difference.verdict(corrected))))
        rows.append([f"{group.label(one)} minus {group.label(other)}", *cells[0], ", ".join(cell for cell in cells[1] if cell)])
    return ["difference", "on test [95 % over seeds]", "p, uncorrected" if own else "verdict (Holm p)", "on val"], rows


def uncorrected(difference):
    return "" if difference.p is None else f"p {p_text(difference.p)}"


# -- single trainings, and other groups ---------------------------------------------------------------------------------------------------------------
def trainings(study, words):
    """of=GROUP than=GROUP types=a,b before=WORDS: each training on test, the mean, and the same of those seeds in another group."""
    group, other, rows = study.group(words.one("of")), study.group(words.one("than")), []
    for kind in by_loss(study, group, study.kinds(study.seen(group, "test"), words), "test"):
        mine, theirs = study.trainings(group, kind, "test"), study.trainings(other, kind, "test")
        same = [theirs[seed] for seed in mine if seed in theirs]
        known = stats.mean(same) if len(same) == len(mine) else None
        rows.append([group.label(kind), ", ".join(f"{loss:.4f}" for loss in mine.values()), number(mean_of(mine), 4), difference_column(study, group, kind, "test"),
                     judged_column(judged_cell)(study, group, kind, "test"), number(known, 4), number(None if known is None else known - mean_of(mine), 3)])
    return ["type", "each training on test", "mean", f"minus {group.label(group.reference)} [95 % over seeds]", "verdict (Holm p)", f"the same seeds, {words.one('before')}", "gain"], rows


def several(study, words):
    """"name=GLOB+GLOB" ... [split=val]: losses of whole books over sets of results, by their folders; "name=all" of all rows above it. All must have trained on as many
    tokens and been asked about the same books."""
    split, rows, above, first = study.split(words, "val"), [], {}, None
    for name, wanted in words.rows():
        paths = {path: None for glob in wanted.split("+") for path in sorted(study.folder.glob(f"{glob}/result.json"))} if wanted != "all" else above
        if not paths:
            raise GridError(f"{name}: no result at {wanted}")
        found = []
        for path in paths:
            result = read_result(path)
            books = evaluation_of({"evaluations": {}, **result}, split, "books")
            if not books or books[0]["loss"] is None:
                raise GridError(f"{name}: {path.parent.name} has no finite loss of books on {split}")
            alike = (result["plan"]["tokens"], [(book["index"], book["tokens"]) for book in books[0]["documents"]])
            first = first or alike
            if alike != first:
                raise GridError(f"{name}: {path.parent.name} trained on other tokens, or was asked about other books, than the first of this table")
            found.append(books[0]["loss"])
        above = {**above, **paths}
        rows.append([name, str(len(found)), number(stats.mean(found), 4), number(stats.deviation(found), 4)])
    return ["trainings", "number", f"loss on {split}", "sd"], rows


def peer(study, words):
    """of=GROUP file=NAME.jsonl "type=WINDOW" ...: the study's models beside bench/peers/novels_torch.py's, by that script's window (0: none)."""
    group, path, rows = study.group(words.one("of")), study.folder / words.one("file"), []
    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise GridError(f"{path}: {error.strerror}; bench/peers/novels_torch.py --out writes it") from None
    for kind, window in words.rows():
        theirs = [line for line in lines if str(line["window"]) == window]
        if not theirs:
            raise GridError(f"{kind}={window}: {path} has windows {', '.join(sorted({str(line['window']) for line in lines}))}")
        if study.known(kind) not in group.types:
            continue
        cells = []
        for split in ("test", "val"):
            each = [line[split]["loss"] for line in theirs]
            cells += [number(mean_of(study.trainings(group, kind, split)), 4), number(stats.mean(each), 4), ", ".join(f"{loss:.4f}" for loss in each)]
        rows.append([group.label(kind), *cells])
    return ["type", "sieve, test", "PyTorch, test", "each", "sieve, val", "PyTorch, val", "each"], rows


def converted(study, words):
    """of=STAGE,STAGE types=a,b: conversions, each compared with the reference of its own stage; a reference is shown once."""
    rows, references = [], set()
    for name in words.many("of"):
        group = study.group(name)
        for kind in study.kinds(group, words):
            curves = [costs.validated(run, "tokens") for run in group.results(kind)]
            if not all(curves):
                raise GridError(f"{name}: a run of {kind} has no validation in its curve")
            if kind == group.reference and kind in references:
                continue
            references |= {kind} if kind == group.reference else set()
            found = study.judged(group, "test").get(kind)
            cells = ["", "", ""] if not found else [f"{found[0].value:+.4f} {bracket(*found[0].seeds, 4, True)}", judged_cell(*found), f"{100 * math.expm1(found[0].value):+.2f} %"]
            rows.append([group.label(kind), *(number(stats.mean([curve[at][1] for curve in curves]), 4) for at in (0, -1)), *cells])
    return ["goes on as", "before any update (val)", "after (val)", "all of test then, minus dense [95 % over seeds, paired]", "verdict (Holm p)", "perplexity"], rows
