"""The comparison: scripts/compare.py and its report, on a grid of tiny models, and the report's statistics against numbers made by hand."""
import json
import math
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

from harness import SIEVE, Folder, expect, main, until

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import compare_grid  # noqa: E402
import compare_stats as stats  # noqa: E402

# Models this small want one thread; waiting ones would only be in the way of whoever shares the machine.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

GRID = """\
schema: 1
name: small
paths: {data: data}
reference: sparsek
base:
  schema: 1
  device: {type: cpu}
  model: {n_layers: 1, d_model: 16, n_heads: 2}
  data: {train: ["${data}/train"], val: ["${data}/val"]}
  train: {steps: 400, global_batch: 256, micro_batch: 4}
  eval: {every: 0, at_start: false}
  checkpoint: {every: 50, keep_last: 1, keep_best: 0}
  log: {every: 10, sinks: [jsonl], peak_tflops: 1}
splits: {val: "${data}/val"}
evaluations: {books: {method: chunked, per_document: true}}
sizes: {tiny: {}}
contexts: {"64": {data: {seq_len: 64}}}
types:
  full: {kinds: {a: {type: full}}, pattern: [a]}
  sparsek: {kinds: {a: {type: sparsek, k: 8, window: 8}}, pattern: [a]}
  broken: {kinds: {a: {type: sliding_window, window: 0}}, pattern: [a]}
stages:
  a: {types: [full, sparsek], sizes: [tiny], contexts: ["64"], seeds: [1], evaluations: [books]}
"""


def start(f, *words, **kw):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / "compare.py"), "run", "grid.yaml", "out", "--sieve", SIEVE, *words], cwd=f.path, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def compare(f, *words, code=0):
    job = start(f, *words)
    out, err = job.communicate(timeout=300)
    assert job.returncode == code, f"exit code {job.returncode}, expected {code}\n{out[-2000:]}\n{err[-3000:]}"
    return out + err


def script(*command, cwd, code=0):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=500, env={**os.environ, "SIEVE": SIEVE})
    assert done.returncode == code, f"{command}: exit code {done.returncode}, expected {code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def result(f, name, out="out"):
    return json.loads((f.path / out / "runs" / name / "result.json").read_text())


def test_tiny_grid_and_its_report():
    with Folder(prepared=False) as f:
        done = subprocess.run(["bash", str(ROOT / "scripts" / "compare.sh"), "tiny", "out"], cwd=f.path, capture_output=True, text=True, timeout=500,
                              env={**os.environ, "SIEVE": SIEVE})
        assert done.returncode == 0, done.stderr[-3000:]
        cells = json.loads((f.path / "out" / "grid.json").read_text())["cells"]
        for cell in cells:
            assert cell["state"] in ("finished", "not needed"), (cell, done.stderr[-3000:])
        one = result(f, "a-XXS-128-sparsek-s1")
        assert one["lr"] in (0.002, 0.008) and set(one["search"]) == {"0.002", "0.008"} and one["search"][f"{one['lr']:g}"] == min(one["search"].values())
        books = one["evaluations"]["test"]["books"][0]
        assert len(books["documents"]) == 6 and abs(sum(d["nll"] for d in books["documents"]) - books["nll"]) < 1e-6 * books["nll"]
        assert len(one["evaluations"]["val"]["context"]) == 4 and len(books["recall"]) == 5
        assert one["plan"]["parameters"] > 0 and one["tok_s"] > 0 and one["curve"][-1]["step"] == 20 and one["provenance"]["sieve"].startswith("sieve")
        assert "test" not in result(f, "c-XXS-128-sparsek_hard-s1")["evaluations"]
        probe = result(f, "probes-XXS-passkey-sparsek-s1")["probe"]
        assert [(r["length"], r["depth"], r["asked"]) for r in probe["results"]] == [(64, 0, 16), (64, 1, 16), (128, 0, 16), (128, 1, 16)], probe["results"]
        assert probe["config"]["probe"]["seed"] == 1 and probe["config"]["model"]["attention"]["kinds"]["a"]["type"] == "sparsek"
        assert str(f.path) not in json.dumps(one)
        assert not (f.path / "out/runs/a-XXS-128-sparsek-s1/train/checkpoints").exists()
        assert (f.path / "out/runs/e_dense-XXS-128-full-s1/train/checkpoints/latest").exists()
        assert result(f, "e_convert-XXS-128-sparsek-s1")["source"] == "e_dense-XXS-128-full-s1"
        page = (f.path / "out" / "report.html").read_text()
        expect(page, "None is the SparseK paper&#x27;s", "matched tokens", "Holm", "Loss by visible context", "Provenance", "<table>")
        assert "http" not in page.replace("http-equiv", "")  # self-contained
        tables = (f.path / "out" / "tables.md").read_text()
        expect(tables, "| SparseK 8 + window 8 | 2 |", "Loss of repeated bigrams against", "Loss by position", "cached rows", "Probe passkey", "64 tokens, 2 items, depth 100 %")
        before = {path: path.stat().st_mtime_ns for path in (f.path / "out" / "runs").glob("*/result.json")}
        subprocess.run(["bash", str(ROOT / "scripts" / "compare.sh"), "tiny", "out"], cwd=f.path, capture_output=True, timeout=100, env={**os.environ, "SIEVE": SIEVE})
        assert before == {path: path.stat().st_mtime_ns for path in (f.path / "out" / "runs").glob("*/result.json")}
        report = ROOT / "scripts" / "compare_report.py"
        expect(script(sys.executable, report, "out", "-o", "x.html", "--reference", "nobody", cwd=f.path, code=2), "nobody", "sparsek")
        (f.path / "out/runs/a-XXS-128-full-s1/result.json").write_text("{")
        expect(script(sys.executable, report, "out", "-o", "x.html", cwd=f.path, code=2), "a-XXS-128-full-s1", "move it away")


def test_interrupted_grid_goes_on():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 2000").replace("every: 50", "every: 200"), "grid.yaml")
        whole = f.path / "whole"
        log = f.path / "out/runs/a-tiny-64-sparsek-s1/train.log"
        for number, (how, code) in enumerate(((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, 130)), 1):
            job = start(f, "--only", "*sparsek*")
            until(lambda: log.exists() and "saved" in (log.read_text().split("sieve pretrain") + [""] * 3)[number])
            job.send_signal(how)
            job.communicate(timeout=60)
            assert job.returncode == code and not (f.path / "out/runs/a-tiny-64-sparsek-s1/result.json").exists(), job.returncode
        compare(f)
        first = (f.path / "out/runs/a-tiny-64-sparsek-s1/result.json").stat().st_mtime_ns
        assert log.read_text().count("sieve pretrain") == 3, log.read_text()
        compare(f)
        assert first == (f.path / "out/runs/a-tiny-64-sparsek-s1/result.json").stat().st_mtime_ns
        (f.path / "out").rename(whole)
        compare(f, "--only", "*sparsek*")  # never interrupted: the same bits
        again, once = result(f, "a-tiny-64-sparsek-s1", "whole"), result(f, "a-tiny-64-sparsek-s1")
        assert again["evaluations"]["val"]["books"][0]["nll"] == once["evaluations"]["val"]["books"][0]["nll"]
        assert again["hash"] == once["hash"]


def test_changed_configuration_is_refused():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 20"), "grid.yaml")
        compare(f, "--only", "*full*")
        before = result(f, "a-tiny-64-full-s1")
        f.config(GRID.replace("steps: 400", "steps: 30"), "grid.yaml")
        expect(compare(f, code=2), "a-tiny-64-full-s1", before["hash"], "--redo")
        assert result(f, "a-tiny-64-full-s1") == before
        expect(compare(f, "--list"), "changed", "to do")
        expect(compare(f, "--redo", "*full*"), "replaced", "2 finished")
        assert result(f, "a-tiny-64-full-s1")["plan"]["steps"] == 30 and len(list((f.path / "out" / "replaced").iterdir())) == 1
        f.config(GRID.replace("steps: 400", "steps: 30").replace("name: small", "name: other"), "grid.yaml")
        expect(compare(f, code=2), "'small'", "another folder")
        f.config(GRID.replace("steps: 400", "steps: 30"), "grid.yaml")
        f.config(script(sys.executable, ROOT / "scripts" / "compare.py", "json", "grid.yaml", cwd=f.path), "grid.json")
        without = "import sys; sys.modules['yaml'] = None; sys.argv[0] = 'compare.py'; import compare; sys.exit(compare.main())"
        hide = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); {without}", "run"]
        expect(script(*hide, "grid.json", "out", "--list", cwd=f.path), "a-tiny-64-full-s1", "finished")  # the same configurations, without PyYAML
        expect(script(*hide, "grid.json", "out2", "--only", "*full*", cwd=f.path), "1 finished")
        expect(script(*hide, "grid.yaml", "out", cwd=f.path, code=2), "PyYAML is missing", "compare.py json")
        expect(compare(f, "--path", "data=elsewhere/data"), "2 finished")  # where the data lies is no part of a configuration


def test_failed_run_is_recorded():
    with Folder() as f:
        f.config(GRID.replace("[full, sparsek]", "[broken, full]").replace("steps: 400", "steps: 10"), "grid.yaml")
        expect(compare(f, code=1), "a-tiny-64-broken-s1: FAILED", "window", "1 failed, 1 finished")
        failed = result(f, "a-tiny-64-broken-s1")
        assert failed["status"] == "failed" and "window" in failed["message"] and failed["exit_code"] == 2, failed
        compare(f, code=1)
        assert result(f, "a-tiny-64-broken-s1") == failed  # kept until it is asked for
        time.sleep(1.1)
        compare(f, "--retry-failed", code=1)
        assert result(f, "a-tiny-64-broken-s1")["date"] != failed["date"]
        expect(script(sys.executable, ROOT / "scripts" / "compare_report.py", "out", "-o", "r.html", "--markdown", "r.md", cwd=f.path), "2 results")
        expect((f.path / "r.md").read_text(), "## The runs", "Not run", "a-tiny-64-broken-s1 | failed")


def test_budget_stops_in_time():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 20"), "grid.yaml")
        compare(f, "--only", "*full*")
        f.config(GRID.replace("steps: 400", "steps: 20").replace("seeds: [1]", "seeds: [1, 2]"), "grid.yaml")
        path = f.path / "out/runs/a-tiny-64-full-s1/result.json"
        slow = result(f, "a-tiny-64-full-s1")
        slow["seconds"]["train"] = 1000.0
        path.write_text(json.dumps(slow))
        said = compare(f, "--budget-seconds", "60", code=75)
        expect(said, "of the budget are left", "to do")
        assert not (f.path / "out/runs/a-tiny-64-sparsek-s1/train").exists()
        # A training that nobody could estimate is saved when the budget ends, and goes on in the next call.
        path.unlink()
        f.config(GRID.replace("steps: 400", "steps: 200000"), "grid.yaml")
        compare(f, "--only", "*sparsek*", "--redo", "*", "--budget-seconds", "8", code=75)
        assert list((f.path / "out/runs/a-tiny-64-sparsek-s1/train/checkpoints").glob("step_0*"))


def test_bad_grids_are_refused():
    with Folder(prepared=False) as f:
        for change, parts in ((("reference: sparsek", "reference: nobody"), ["reference", "nobody"]), (("seeds: [1]", "seeds: 1"), ["stages.a.seeds", "list"]),
                              (("[full, sparsek]", "[full, absent]"), ["stages.a.types", "absent", "sparsek"]), (("name: small", "nme: small"), ["nme", "unknown key"]),
                              (("name: small", "name: small\nname: two"), ["grid.yaml:3", "twice"]), (("evaluations: [books]}", "evaluations: [books], final: true}"), ["no test"]),
                              (("evaluations: [books]}\n", "probe: {a: {task: mqar}}}\n"), ["stages.a.contexts", "probe"]), (("schema: 1\nname", "schema: 7\nname"), ["schema", "7"]), (("paths: {data: data}", "paths: {}"), ["${data}", "not a path of the grid"])):
            assert change[0] in GRID
            f.config(GRID.replace(*change, 1), "grid.yaml")
            expect(compare(f, code=2), *parts)
        f.config(GRID, "grid.yaml")
        expect(compare(f, "--stage", "z", code=2), "--stage z", "there are: a")
        expect(compare(f, "--only", "nothing", code=2), "--only", "--list")
        expect(script(sys.executable, ROOT / "scripts" / "compare.py", "run", "absent.yaml", "out", cwd=f.path, code=2), "absent.yaml")
        expect(script(sys.executable, ROOT / "scripts" / "compare_report.py", ".", "-o", "r.html", cwd=f.path, code=2), "grid.json")


def test_every_run_of_the_study_can_be_planned():
    """A grid that fails after hours of other runs is found here: the program accepts every configuration of novels.yaml."""
    with Folder(prepared=False) as f:
        grid, seen = compare_grid.Grid.load(ROOT / "configs" / "compare" / "novels.yaml"), set()
        for cell in grid.cells:
            if "best_of" in grid.data["types"][cell.type]:
                continue
            if "probe" in grid.data["stages"][cell.stage]:
                f.config(compare_grid.yaml.safe_dump(grid.probe_config(cell)), "probe.yaml")
                f.run("config", "check", "probe.yaml")
                continue
            config = grid.config(cell, cell.type, cell.lr or 1e-3)
            config["run"] = {"name": "x"}
            key = json.dumps(config, sort_keys=True)
            if key not in seen:
                seen.add(key)
                f.config(compare_grid.yaml.safe_dump(compare_grid.substitute(config, {"data": "data"})), "x.yaml")
                plan = json.loads(f.run("plan", "x.yaml", "model.vocab_size=8192", "--json", "--gpu", "h100").out)
                assert 10e6 < plan["parameters"] < 32e6 and plan["memory_bytes"]["total"] < 60 * 2**30, (cell.name, plan)
        assert len(grid.cells) == 210 and len(seen) > 90, (len(grid.cells), len(seen))


def small_grid(**results):
    """The rules of tiny.yaml, asked with made-up results."""
    grid = compare_grid.Grid.load(ROOT / "configs" / "compare" / "tiny.yaml")
    made = {name: {"status": "finished", "name": name, "hash": "h", "evaluations": {"val": {"books": [{"loss": loss}]}}} for name, loss in results.items()}
    return grid, {cell.name: made[cell.name.replace("-", "_").replace(".", "_")] for cell in grid.cells if cell.name.replace("-", "_").replace(".", "_") in made}


def test_rules_choose_as_written():
    grid, results = small_grid(search_XXS_128_full_s1_lr0_002=3.0, search_XXS_128_full_s1_lr0_008=3.0, search_XXS_128_window_s1_lr0_002=3.0)
    assert grid.chosen_lr("full", results)[0] == 0.002  # of equal losses the smaller rate
    try:
        grid.chosen_lr("window", results)
        raise AssertionError("a search that has not ended chose a rate")
    except compare_grid.Waiting as waiting:
        assert "lr0.008" in str(waiting)
    failed = {**results, "search-XXS-128-window-s1-lr0.008": {"status": "failed"}}
    assert grid.chosen_lr("window", failed)[0] == 0.002  # a rate that failed has lost
    more = next(cell for cell in grid.cells if cell.stage == "b_more")
    for gap, holds in ((0.019, True), (0.021, False)):
        grid, results = small_grid(a_XXS_128_sparsek_s1=3.0, a_XXS_128_sparsek_s2=3.0, b_XXS_128_window_sinks_s1=3.0 + gap)
        try:
            grid.check_condition(more, results)
            assert holds, gap
        except compare_grid.NotNeeded:
            assert not holds, gap


def test_bootstrap_is_normal_on_many_books():
    rng = random.Random(7)
    tokens = [rng.randint(900, 1100) for _ in range(400)]
    level = [rng.gauss(0, 0.3) for _ in tokens]  # of a book, the same for both types
    first = [t * (3.05 + book + rng.gauss(0, 0.05)) for t, book in zip(tokens, level)]
    second = [t * (3.00 + book + rng.gauss(0, 0.05)) for t, book in zip(tokens, level)]
    counts = stats.draws(len(tokens))
    assert len(counts) == 10000 and all(sum(row) == 400 for row in counts[:50])
    low, high = stats.interval(stats.resampled_ratios(counts, first, tokens))
    mean = sum(first) / sum(tokens)
    # Delta method for a ratio: the residuals' deviation over the mean number of tokens.
    error = stats.deviation([a - mean * t for a, t in zip(first, tokens)]) / math.sqrt(400) / (sum(tokens) / 400)
    assert abs(low - (mean - 1.96 * error)) < 0.06 * error and abs(high - (mean + 1.96 * error)) < 0.06 * error, (low, high, mean, error)
    gap, below, above, p = stats.paired_difference(counts, first, second, tokens)
    difference = [a - b - gap * t for a, b, t in zip(first, second, tokens)]
    paired = stats.deviation(difference) / math.sqrt(400) / (sum(tokens) / 400)
    assert paired < 0.3 * error and abs((above - below) - 2 * 1.96 * paired) < 0.06 * paired, (below, above, paired)
    assert p == 2 / 10001 and below > 0
    assert abs(stats.paired_difference(counts, first, first, tokens)[3] - 1) < 1e-12
    numpy, stats.numpy = stats.numpy, None
    try:
        plain = stats.resampled_ratios(counts[:200], first, tokens)
    finally:
        stats.numpy = numpy
    assert all(abs(a - b) < 1e-12 for a, b in zip(plain, stats.resampled_ratios(counts[:200], first, tokens)))
    assert stats.draws(12, 20) == stats.draws(12, 20)


def test_statistics_by_hand():
    assert [round(p, 12) for p in stats.holm([0.01, 0.04, 0.03, 0.005])] == [0.03, 0.06, 0.06, 0.02]
    assert stats.holm([0.5, 0.9]) == [1.0, 1.0] and stats.holm([]) == []
    assert stats.percentile([0, 1, 2, 3], 0.5) == 1.5 and stats.percentile([5], 0.975) == 5
    assert stats.p_value([1, 2, 3, -1]) == 2 * (1 + 1) / 5 and stats.p_value([0, 0]) == 1.0
    assert stats.interval([None, 1.0, None]) == (1.0, 1.0) and stats.interval([]) == (None, None)
    # Two books, every resample known: (2, 0), (1, 1), (0, 2).
    counts = [[2, 0], [1, 1], [0, 2]]
    assert stats.resampled_ratios(counts, [10, 30], [10, 10]) == [1.0, 2.0, 3.0]
    assert stats.resampled_ratios(counts, [10, 0], [10, 0])[2] is None
    assert stats.deviation([1, 3]) == math.sqrt(2) and stats.deviation([1]) is None


main(globals())
