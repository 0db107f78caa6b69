"""Made-up results of the comparison, as compare.py writes them, and the report on them."""
import json
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]

GRID = {
    "schema": 1, "name": "made", "title": "Made up", "reference": "sparsek", "pairs": [["hard", "random"]], "splits": {"val": "v", "test": "t"},
    "types": {"full": {"label": "full", "kinds": {"a": {"type": "full"}}}, "window": {"label": "window", "cache": "bounded", "kinds": {"a": {"type": "sliding_window"}}},
              "sparsek": {"label": "SparseK", "cache": "bounded", "kinds": {"a": {"type": "sparsek", "k": 4, "window": 12}}},
              "wide": {"label": "wide window", "cache": "bounded", "family": "control", "kinds": {"a": {"type": "sliding_window"}}},
              "hard": {"label": "hard gates", "cache": "bounded", "family": "ablation", "kinds": {"a": {"type": "sparsek", "k": 4, "gate": "hard"}}},
              "random": {"label": "random rows", "cache": "bounded", "kinds": {"a": {"type": "random_rows", "k": 4}}},
              "linear": {"label": "linear", "cache": "state", "kinds": {"a": {"type": "linear"}}}, "moba": {"label": "MoBA", "kinds": {"a": {"type": "moba"}}}},
    "stages": {"a": {"final": True, "evaluations": ["books", "context"]}, "far": {"final": True, "evaluations": ["books"]}, "dense": {"evaluations": ["books"]},
               "speed": {"evaluations": []}, "turn": {"from": {"stage": "dense", "type": "full"}, "final": True, "evaluations": ["books"]}, "probes": {"probe": {}}}}
ROWS = {"full": (128, 64), "wide": (128, 64), "window": (16, 15), "sparsek": (16, 15), "hard": (16, 15), "random": (16, 15), "linear": (0, 0), "moba": (128, 15)}


def book_results(loss, seed, contexts):
    """Results of one evaluation, of six books; the later books are harder, the nearer context costs."""
    found = []
    for at, context in enumerate(contexts):
        level = loss + 0.001 * ((seed * 7) % 5 - 2) - 0.01 * at
        documents = [{"index": book, "tokens": 100, "bytes": 400, "nll": 100 * (level + 0.1 * book + 0.0002 * ((book * seed) % 3)),
                      "recall": [{"tokens": 10, "nll": 10 * level}, {"tokens": 90, "nll": 90 * level}]} for book in range(6)]
        nll = sum(d["nll"] for d in documents)
        found.append({"loss": nll / 600, "nll": nll, "documents": documents, "protocol": {"context": context, "text": f"made, ctx {context}"},
                      "positions": [{"from": 1, "to": None, "tokens": 600, "loss": nll / 600}],
                      "recall": [{"from": 1, "to": 9, "tokens": 60, "loss": level}, {"from": None, "to": None, "tokens": 540, "loss": level}]})
    return found


def made(stage, kind, seed, loss=None, context="128", speed=1000.0, **more):
    """A result as compare.py writes it."""
    t = GRID["types"][kind]
    evaluations = {} if loss is None else {split: {"books": book_results(loss, seed, [128]), "context": book_results(loss, seed, [16, 128])} for split in ("test", "val")}
    cached, visited = ROWS[kind]
    plan = {"parameters": 10, "flops_per_token": 1e6, "tokens": 4000,
            "attention": [{"layers": [0], "cached_rows": cached, "visited_rows": visited, "scored_pairs": 0, "cache_bytes": 64.0 * max(cached, 4)}]}
    result = {"schema": 1, "status": "finished", "name": f"{stage}-T-{context}-{kind}-s{seed}", "stage": stage, "type": kind, "resolved_type": kind, "label": t["label"],
              "cache": t.get("cache", "all"), "family": t.get("family", "rival"), "size": "T", "context": context, "seed": seed, "lr": 1e-3, "searched_lr": False, "search": {},
              "hash": "h", "config": {"model": {"attention": {"kinds": t["kinds"]}}, "data": {"seq_len": 128}}, "source": None, "evaluations": evaluations, "plan": plan,
              "tok_s": speed, "peak_gib": 1.0, "seconds": {"train": 4.0, "evaluate": 1.0}, "selection": {"attn/0/band_over_k": 1.5} if kind == "sparsek" else {},
              "curve": [{"tokens": t, "time": t / speed, "loss/val": 5 - t / 2000 + (loss or 0)} for t in (1000, 2000, 4000)],
              "provenance": {"device": "a machine", "sieve": "sieve 1", "side_by_side": 1}}
    return {**result, **more}


def copied(kind, accuracy):
    config = {"probe": {"steps": 3, "batch": 2, "length": 64, "items": 4}}
    probe = {"task": "selective_copy", "chance": 0.125, "config": config, "seconds": {"train": 1.0}, "results": [{"length": 64, "items": 4, "depth": None, "accuracy": accuracy}]}
    return made("probes", kind, 1, context="copy", probe=probe)


def write(f, results, absent=()):
    """OUT of compare.py with these results. absent: (stage, context, type) that have not run."""
    for result in results:
        folder = f.path / "out" / "runs" / result["name"]
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "result.json").write_text(json.dumps(result))
    cells = [{**{key: r[key] for key in ("name", "stage", "size", "context", "type", "seed")}, "state": "finished", "remark": ""} for r in results]
    cells += [{"name": f"{stage}-T-{context}-{kind}-s1", "stage": stage, "size": "T", "context": context, "type": kind, "seed": 1, "state": "waits", "remark": "for its turn"}
              for stage, context, kind in absent]
    (f.path / "out" / "grid.json").write_text(json.dumps({"schema": 1, "grid": GRID, "cells": cells}))


def report(f, results, absent=()):
    """tables.md of made-up results."""
    write(f, results, absent)
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "compare_report.py"), "out", "-o", "x.html", "--markdown", "x.md", "--resamples", "2000"], cwd=f.path,
                          capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return (f.path / "x.md").read_text()


def table(text, title):
    """[{column: cell}] of the first table whose heading begins so."""
    assert f"### {title}" in text, (title, [line for line in text.split("\n") if line.startswith("#")])
    lines = [line for line in text.split(f"### {title}", 1)[1].split("\n###")[0].split("\n## ")[0].split("\n") if line.startswith("|")]
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return [dict(zip(rows[0], row)) for row in rows[2:]]


def study():
    seeds = {"sparsek": (3.00, 5), "full": (3.005, 5), "window": (3.05, 5), "linear": (3.2, 2), "moba": (2.99, 5), "wide": (3.005, 5), "hard": (3.01, 1)}
    results = [made("a", kind, seed, loss) for kind, (loss, count) in seeds.items() for seed in range(1, count + 1)]
    results = [r for r in results if r["type"] != "hard"] + [made("a", "hard", 1, 3.01)]
    results += [made("speed", "full", 1, speed=500.0), made("speed", "sparsek", 1, speed=250.0), made("speed", "moba", 1, speed=999.0)]
    results[-1]["provenance"]["side_by_side"] = 2
    source = made("dense", "full", 1, 3.0)
    source["plan"]["tokens"] = 80000  # of its own, so that it is not one with stage a
    results += [source] + [made("turn", kind, 1, loss, source=source["name"]) for kind, loss in (("full", 2.9), ("sparsek", 2.92), ("window", 3.0))]
    return results + [copied("sparsek", 0.995), copied("window", 0.3), copied("full", 1.0)]
