"""Tables of what the types cost, of the probes, and of the runs themselves; tables.py has the losses."""
from comparison import stats
from comparison.tables import CACHES, Table, bracket, is_speed, kib, mean_over_layers, number


def device_of(result):
    p = result.get("provenance", {})
    return str(p.get("device") or p.get("gpu") or "")


def alone(result):
    """Whether a run had its device for itself."""
    return (result.get("provenance", {}).get("side_by_side") or 1) <= 1


def speeds_of(results):
    """{(size, context, type): [runs that only show speed, alone on their device]}"""
    speeds = {}
    for result in results:
        if is_speed(result) and alone(result) and result["tok_s"]:
            speeds.setdefault((result["size"], result["context"], result["resolved_type"]), []).append(result)
    return speeds


def rate_of(group, kind, speeds):
    """(tokens/s, where it was measured) of a type, or (None, why not)."""
    runs = speeds.get((group.size, group.context, kind))
    if runs:
        return stats.mean([run["tok_s"] for run in runs]), f"stage {runs[0]['stage']}"
    own = [run["tok_s"] for run in group.results(kind) if run["tok_s"] and alone(run)]
    return (stats.mean(own), "its own runs") if own else (None, "shared its device")


def cost_table(group, speeds):
    rows = []
    for kind in group.types:
        runs = group.results(kind)
        first = runs[0]
        rate, where = rate_of(group, kind, speeds)
        peaks = [r["peak_gib"] for r in runs if r["peak_gib"]]
        rows.append([group.label(kind), str(len(runs)), f"{first['plan']['parameters']:,}", f"{first['plan']['flops_per_token'] / 1e6:,.1f}", number(rate, 0), where,
                     number(group.tokens / rate if rate else None, 1), number(max(peaks) if peaks else None, 2), number(mean_over_layers(first, "cached_rows"), 0),
                     number(mean_over_layers(first, "visited_rows"), 0), number(mean_over_layers(first, "scored_pairs"), 0),
                     number(kib(mean_over_layers(first, "cache_bytes")), 1), CACHES[first["cache"]], f"{first['lr']:g}" if first["lr"] else ""])
    T = group.every()[0]["config"]["data"]["seq_len"]
    return Table("Parameters, compute, speed, memory, cached rows",
                 f"MFLOP a token: forward and backward, as sieve plan counts them. Rows cached of a key-value head at the end of "
                 f"{T:,} tokens; rows that a query reads, and pairs that are scored beside to choose them, means over the positions of a document; all means "
                 "over layers. A linear "
                 "state has no rows, but bytes: those of a layer's cache for one sequence (with the scalars of SparseK's selection where the plan is of a "
                 "build that counts them). "
                 "Tokens/s: of the runs that only measure speed, alone on a device, where there are such; else of the trainings themselves. Training s: the "
                 "tokens at that speed. "
                 "Peak: the largest of the seeds.",
                 ["type", "seeds", "parameters", "MFLOP/token", "training tokens/s", "measured in", "training s", "peak GiB", "cached rows", "visited rows", "scored pairs", "cache KiB",
                  "cache", "learning rate"], rows)


def speed_table(results, groups, cells, reference_kind):
    """Training tokens/s of every type over sizes and contexts: of the runs that only measure speed, or, without any, of the trainings."""
    speeds, measured = speeds_of(results), True
    if not speeds:
        measured = False
        for group in groups:
            for kind in group.types if not group.converted else []:
                runs = [run for run in group.results(kind) if run["tok_s"] and alone(run)]
                if runs:
                    speeds.setdefault((group.size, group.context, kind), runs)
    columns = list(dict.fromkeys((size, context) for size, context, _ in speeds))
    labels = {kind: runs[0]["label"] for (_, _, kind), runs in speeds.items()}
    rows = []
    for kind, label in labels.items():
        row = [label]
        for column in columns:
            runs, base = speeds.get((*column, kind)), speeds.get((*column, reference_kind))
            rate = stats.mean([run["tok_s"] for run in runs]) if runs else None
            against = stats.mean([run["tok_s"] for run in base]) if base else None
            peaks = [run["peak_gib"] for run in runs or [] if run["peak_gib"]]
            row += [number(rate, 0), number(rate / against if rate and against else None, 2), number(max(peaks) if peaks else None, 2), str(len(runs)) if runs else ""]
        rows.append(row)
    stages = {run["stage"] for runs in speeds.values() for run in runs} if measured else set()
    absent = [f"{cell['type']} at {cell['size']} {cell['context']} ({cell['state']})" for cell in cells if cell["stage"] in stages and cell["state"] != "finished"]
    shared = [result["name"] for result in results if is_speed(result) and not alone(result)]
    note = ("Tokens/s of a whole step, median of a run's rows but the first quarter, one run alone on a device" if measured else
            "Tokens/s of the trainings themselves, whose devices may have done other work beside; no run that only measures speed has finished")
    devices = sorted({device_of(run) for runs in speeds.values() for run in runs})
    note += f" ({', '.join(devices)}); {labels[reference_kind]} = 1." if reference_kind in labels else f" ({', '.join(devices)})."
    note += f" Not run: {', '.join(absent)}." if absent else ""
    note += f" Left out, since they shared their device: {', '.join(shared)}." if shared else ""
    heads = [head for size, context in columns for head in (f"{size} at {context}, tokens/s", "relative", "peak GiB", "runs")]
    return Table("Training speed", note, ["type", *heads], rows) if rows else None


# -- matched wall-clock -------------------------------------------------------------------------------------------------------------------------------
def validated(result, key):
    return [(row[key], row["loss/val"]) for row in result["curve"] if row.get("loss/val") is not None]


def at_point(points, x):
    """Value at x between two neighbours, None outside."""
    for (x0, y0), (x1, y1) in zip(points, points[1:]):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return None


def wall_clock(group, speeds):
    """(seconds at which the fastest type ends, {type: ({seed: validation loss then}, tokens by then)}, {type: rate_of()}): every curve's tokens placed on the clock
    of its type's speed. No types where fewer than two have a curve and a speed."""
    rates = {kind: rate_of(group, kind, speeds) for kind in group.types}
    known = {kind: rate for kind, (rate, _) in rates.items() if rate and all(len(validated(run, "tokens")) > 1 for run in group.results(kind))}
    if len(known) < 2:
        return None, {}, rates
    moment, found = min(group.tokens / rate for rate in known.values()), {}
    for kind, rate in known.items():
        tokens = min(moment * rate, group.tokens)
        values = {seed: at_point(validated(run, "tokens"), min(tokens, validated(run, "tokens")[-1][0])) for seed, run in sorted(group.types[kind].items())}
        if all(value is not None for value in values.values()):
            found[kind] = (values, tokens)
    return moment, found, rates


def wall_clock_table(group, speeds):
    """The loss at the moment at which the fastest type ends."""
    moment, found, rates = wall_clock(group, speeds)
    rows = []
    for kind, (values, tokens) in sorted(found.items(), key=lambda item: stats.mean(list(item[1][0].values()))):
        row = [group.label(kind), str(len(values)), number(stats.mean(list(values.values())), 4), number(tokens / 1e6, 3), number(rates[kind][0], 0), rates[kind][1]]
        other = found.get(group.reference, ({}, 0))[0] if kind != group.reference else {}
        low, high, _ = stats.welch(list(values.values()), list(other.values()))
        gap = f"{stats.mean(list(values.values())) - stats.mean(list(other.values())):+.4f}" if other else ""
        rows.append([*row, gap, bracket(low, high, 4, True) or "one seed" if other else ""])
    used = [run for kind in found for run in speeds.get((group.size, group.context, kind)) or group.results(kind)]
    devices = sorted({device_of(run) for run in used})
    left = [f"{group.label(kind)} ({why})" for kind, (rate, why) in rates.items() if kind not in found for why in [why if rate is None else "no curve"]]
    warning = "" if len(devices) == 1 else f" The speeds were measured on different machines ({', '.join(devices)}): these times do not compare."
    return Table(f"Matched wall-clock: validation loss after {moment:,.1f} s of training",
                 "Seconds are a curve's tokens over its type's tokens/s: those of the runs that only measure speed "
                 "(same type, size and context, alone on a device), where there are such, since a training may have shared its machine; the column says "
                 "which. Loss between the two nearest validations. "
                 "Every run's learning rate falls over its own length, so that a slower type is met before its rate has fallen: a bound in its disfavour, "
                 "not a run tuned for that time. "
                 f"Difference: minus the reference, 95 % by Welch's t over seeds.{f' Left out: ' + ', '.join(left) + '.' if left else ''}{warning}",
                 ["type", "seeds", "validation loss", "M tokens by then", "tokens/s", "measured in", "difference", "95 % over seeds (t)"], rows) if len(rows) > 1 else None


# -- selection and probes -----------------------------------------------------------------------------------------------------------------------------
def selection_table(group):
    """Statistics of the selection at the end of a training, means over layers and seeds."""
    found = {kind: [run["selection"] for run in group.results(kind) if run.get("selection")] for kind in group.types}
    names = list(dict.fromkeys(key.split("/", 2)[2] for runs in found.values() for one in runs for key in one))
    rows = []
    for kind, runs in found.items():
        cells = [[value for one in runs for key, value in one.items() if key.split("/", 2)[2] == name and value is not None] for name in names]
        if runs:
            rows.append([group.label(kind), str(len(runs)), *(number(stats.mean(values), 3) for values in cells)])
    return Table("What is selected", "The last logged statistics of the selection, means over layers and seeds (docs/attention.md says what they are).",
                 ["type", "seeds", *names], rows) if rows else None


def probes_of(results):
    """{(stage, size, probe): {type: [result]}} of finished ones."""
    probes = {}
    for result in results:
        if result["status"] == "finished" and "probe" in result:
            probes.setdefault((result["stage"], result["size"], result["context"]), {}).setdefault(result["resolved_type"], []).append(result)
    return probes


def probe_setting(length, items, depth):
    return f"{length:,} tokens, {items} items" + ("" if depth is None else f", depth {100 * depth:.0f} %")


def probe_tables(results, cells):
    """One table a probe: a row a type, a column a setting (length, items, depth), the accuracy of asked tokens, mean over seeds and their range."""
    tables = []
    for (stage, size, name), types in probes_of(results).items():
        first = next(iter(types.values()))[0]["probe"]
        trained = first["config"]["probe"]
        settings = [(r["length"], r["items"], r["depth"]) for r in first["results"]]
        rows = []
        for runs in types.values():
            shown = []
            for at in range(len(settings)):
                values = [100 * run["probe"]["results"][at]["accuracy"] for run in runs]
                shown.append(f"{stats.mean(values):.1f} %" + (f" ({min(values):.1f} to {max(values):.1f})" if len(values) > 1 else ""))
            rows.append([runs[0]["label"], str(len(runs)), *shown, number(stats.mean([run["probe"]["seconds"]["train"] for run in runs]), 1)])
        absent = sorted({cell["type"] for cell in cells if (cell["stage"], cell["size"], cell["context"]) == (stage, size, name) and cell["type"] not in types})
        tables.append(Table(f"Probe {name}, {size}: {first['task']}",
                            f"Right answers to fresh rows, mean over seeds (least to most); trained on {trained['steps']:,} x {trained['batch']} rows of "
                            f"{trained['length']:,} tokens with {trained['items']} items; chance {100 * first['chance']:.1f} "
                            f"%.{f' Not run: ' + ', '.join(absent) + '.' if absent else ''} "
                            "docs/probes.md describes the tasks.",
                            ["type", "seeds", *(probe_setting(*setting) for setting in settings), "training s"], rows))
    return tables


# -- the runs -----------------------------------------------------------------------------------------------------------------------------------------
def search_table(results):
    rows, seen = [], set()
    counted = {}
    for result in results:
        if result["searched_lr"] and result["status"] == "finished":
            counted.setdefault(result["type"], set()).add(result["seed"])
    for result in results:
        key = (result["resolved_type"], tuple(result.get("search", {}).items()))
        if result["status"] == "finished" and result.get("search") and key not in seen:
            seen.add(key)
            rates = sorted(result["search"], key=float)
            edge = len(rates) > 1 and f"{result['lr']:g}" in (rates[0], rates[-1])
            own = len(counted.get(result["resolved_type"], ()))
            rows.append([result["label"], str(own) if own else "another type's search", ", ".join(f"{rate}: {number(result['search'][rate], 4)}" for rate in rates),
                         f"{result['lr']:g}", "yes" if edge else "no"])
    return Table("Learning rates", "Loss on val of each value searched, mean over the search's seeds; the lowest was taken. At the edge: a value beyond those tried might be better still.",
                 ["type", "seeds searched", "searched", "taken", "at the edge"], rows) if rows else None


def provenance_table(results):
    rows = []
    for result in results:
        p = result.get("provenance", {})
        beside = p.get("side_by_side")
        rows.append([result["name"], p.get("sieve", ""), str(p.get("commit") or ""), str(p.get("gpu") or p.get("device") or ""), "" if beside is None else str(beside),
                     p.get("date", result.get("date", "")), result["hash"], str((p.get("data") or {}).get("train_hash", ""))])
    return Table("Provenance", "One row a run; configurations, raw losses of every book and curves are in its result.json. Side by side: runs at once on a device.",
                 ["run", "program", "commit", "device", "side by side", "date (UTC)", "configuration", "training data"], rows)


def diverged(result):
    """The evaluations of a finished run whose loss is not finite."""
    return [f"{name} on {split}" for split, one in result.get("evaluations", {}).items() for name, found in one.items() if any(part["loss"] is None for part in found)]


def missing_table(cells, results):
    failed = {r["name"]: r for r in results if r["status"] == "failed"}
    alike = {}
    for cell in cells:
        if cell["state"] != "finished" or cell["name"] in failed:
            reason = failed.get(cell["name"], {}).get("message") or cell["remark"]
            alike.setdefault((cell["stage"], cell["state"], " ".join(reason.split())[:300]), []).append(cell["name"])
    rows = [[", ".join(names), state, reason] for (_, state, reason), names in alike.items()]
    rows += [[result["name"], "diverged", "no finite loss: " + ", ".join(found)] for result in results if (found := diverged(result))]
    return Table("Not run", "Runs of the grid without a result, with the reason, and those whose loss is not finite.", ["run", "state", "reason"], rows) if rows else None
