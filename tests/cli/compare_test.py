"""The comparison: scripts/compare.py and its report, on a grid of tiny models."""
import json
import os
import subprocess
import sys

from compare_harness import ROOT, result, script
from harness import SIEVE, Folder, expect, main

from comparison import grid as grids  # noqa: E402


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
        assert len(one["selection"]) == 10 and 0 <= one["selection"]["attn/1/ever_selected"] <= 1, one["selection"]  # five statistics of two layers
        assert result(f, "a-XXS-128-window-s1")["selection"] == {}
        assert (f.path / "out/runs/a-XXS-128-sparsek-s1/train.log").read_text().count(" eval ") == 1  # four evaluations, one call
        assert "test" not in result(f, "c-XXS-128-sparsek_hard-s1")["evaluations"]
        probe = result(f, "probes-XXS-passkey-sparsek-s1")["probe"]
        assert [(r["length"], r["depth"], r["asked"]) for r in probe["results"]] == [(64, 0, 16), (64, 1, 16), (128, 0, 16), (128, 1, 16)], probe["results"]
        assert probe["config"]["probe"]["seed"] == 1 and probe["config"]["model"]["attention"]["kinds"]["a"]["type"] == "sparsek"
        assert str(f.path) not in json.dumps(one)
        assert not (f.path / "out/runs/a-XXS-128-sparsek-s1/train/checkpoints").exists()
        assert (f.path / "out/runs/e_dense-XXS-128-full-s1/train/checkpoints/latest").exists()
        assert result(f, "e_convert-XXS-128-sparsek-s1")["source"] == "e_dense-XXS-128-full-s1"
        page = (f.path / "out" / "report.html").read_text()
        expect(page, "None is the SparseK paper&#x27;s", "matched tokens", "Holm", "Context gain", "Provenance", "<table>")
        assert "http" not in page.replace("http-equiv", "")  # self-contained
        tables = (f.path / "out" / "tables.md").read_text()
        expect(tables, "| SparseK 8 + window 8 | 2 |", "better than every rival of constant cache", "open: too few seeds", "What is selected", "Loss of repeated bigrams against", "Loss by position", "cached rows", "Probe passkey", "64 tokens, 2 items, depth 100 %")
        before = {path: path.stat().st_mtime_ns for path in (f.path / "out" / "runs").glob("*/result.json")}
        subprocess.run(["bash", str(ROOT / "scripts" / "compare.sh"), "tiny", "out"], cwd=f.path, capture_output=True, timeout=100, env={**os.environ, "SIEVE": SIEVE})
        assert before == {path: path.stat().st_mtime_ns for path in (f.path / "out" / "runs").glob("*/result.json")}
        report = ROOT / "scripts" / "compare_report.py"
        expect(script(sys.executable, report, "out", "-o", "x.html", "--reference", "nobody", cwd=f.path, code=2), "nobody", "sparsek")
        (f.path / "out/runs/a-XXS-128-full-s1/result.json").write_text("{")
        expect(script(sys.executable, report, "out", "-o", "x.html", cwd=f.path, code=2), "a-XXS-128-full-s1", "move it away")


def small_grid(**results):
    """The rules of tiny.yaml, asked with made-up results."""
    grid = grids.Grid.load(ROOT / "configs" / "compare" / "tiny.yaml")
    made = {name: {"status": "finished", "name": name, "hash": "h", "evaluations": {"val": {"books": [{"loss": loss}]}}} for name, loss in results.items()}
    return grid, {cell.name: made[cell.name.replace("-", "_").replace(".", "_")] for cell in grid.cells if cell.name.replace("-", "_").replace(".", "_") in made}


def test_rules_choose_as_written():
    grid, results = small_grid(search_XXS_128_full_s1_lr0_002=3.0, search_XXS_128_full_s1_lr0_008=3.0, search_XXS_128_window_s1_lr0_002=3.0)
    assert grid.chosen_lr("full", results)[0] == 0.002  # of equal losses the smaller rate
    try:
        grid.chosen_lr("window", results)
        raise AssertionError("a search that has not ended chose a rate")
    except grids.Waiting as waiting:
        assert "lr0.008" in str(waiting)
    failed = {**results, "search-XXS-128-window-s1-lr0.008": {"status": "failed"}}
    assert grid.chosen_lr("window", failed)[0] == 0.002  # a rate that failed has lost
    more = next(cell for cell in grid.cells if cell.stage == "b_more")
    for gap, holds in ((0.019, True), (0.021, False)):  # from the mean over seeds, not from the first one's
        grid, results = small_grid(a_XXS_128_sparsek_s1=2.98, a_XXS_128_sparsek_s2=3.02, b_XXS_128_window_sinks_s1=3.0 + gap)
        try:
            grid.check_condition(more, results)
            assert holds, gap
        except grids.NotNeeded:
            assert not holds, gap


main(globals())
