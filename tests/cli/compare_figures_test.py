"""The figures of the comparison: what they show, by hand; that they are written where matplotlib is, and that a report without it says so."""
import os
import struct
import subprocess
import sys

from compare_made import ROOT, made, study, write
from harness import Folder, expect, main

sys.path.insert(0, str(ROOT / "scripts"))
from comparison import costs, figures, plot, tables  # noqa: E402

REPORT = ROOT / "scripts" / "compare_report.py"


def shown(results):
    """(the main group, {name: Figure}) of results."""
    groups = tables.groups_of(results, ["a", "speed", "dense", "turn", "probes"], "sparsek", {"turn": "full"})
    group = figures.main_group(groups)
    return group, {figure.name: figure for figure in figures.figures_of(group, costs.speeds_of(results), ["books", "context"])}


def near(one, other):
    return abs(one - other) < 1e-9


def test_what_is_drawn():
    group, found = shown(study())
    assert group.stages() == ["a"] and list(found) == list(figures.NAMES)
    rows = found["loss_by_type"].shown["panels"][0]["rows"]
    assert [row["label"] for row in rows][:2] == ["MoBA", "SparseK"] and rows[1]["reference"] and len(rows[1]["losses"]) == 5
    looks = {row["label"]: row["class"] for row in rows}
    assert looks == {"MoBA": "grows", "SparseK": "constant", "full": "grows", "wide window": "control", "hard gates": "variant", "window": "constant", "linear": "state"}, looks
    expect(found["loss_by_type"].caption, "5 seeds: full;", "2 seeds: linear", "1 seed: hard gates", "test (6 books)")
    points = {point["label"]: point for point in found["quality_cost"].shown["points"]}
    assert points["full"]["rate"] == 500 and points["MoBA"]["rate"] == 1000 and points["full"]["kib"] == 8 and near(points["window"]["kib"], 1)
    assert near(points["window"]["loss"].value - points["SparseK"]["loss"].value, 0.05) and points["linear"]["loss"].low < points["linear"]["loss"].high
    lines = {line["label"]: line for line in found["recall_by_distance"].shown["lines"]}
    assert set(lines) == {"SparseK", "full", "window", "linear", "MoBA"}, set(lines)  # neither variants nor controls
    assert near(lines["window"]["points"][0][1].value, 0.05) and near(lines["SparseK"]["points"][0][1].value, 0) and lines["SparseK"]["points"][0][1].low < 0
    panel, = found["loss_by_context"].shown["panels"]
    gain = {line["label"]: line["points"][0][1].value - line["points"][1][1].value for line in panel["lines"]}
    assert not panel["beyond"] and all(near(value, 0.01) for value in gain.values()) and len(gain) == 5, gain
    curve = next(line for line in found["training_curves"].shown["lines"] if line["label"] == "window")
    assert near(curve["points"][-1][0], 0.004) and near(curve["points"][-1][1].value, 6.05) and curve["seeds"] == 5
    speeds = found["training_speed"].shown
    assert [(row["label"], row["rates"]) for row in speeds["rows"]] == [("full", {"128": 500.0}), ("SparseK", {"128": 250.0})] and speeds["lengths"] == {"128": 128}


def test_types_that_only_val_saw_have_a_panel_of_their_own():
    results = study()
    for result in results:
        if result["type"] == "hard":
            del result["evaluations"]["test"]
    panels = shown(results)[1]["loss_by_type"].shown["panels"]
    assert [panel["split"] for panel in panels] == ["test", "val"] and [row["label"] for row in panels[1]["rows"]] == ["SparseK", "hard gates"]
    assert "hard gates" not in [row["label"] for row in panels[0]["rows"]]


def test_lines_are_few_and_hold_reference_and_best():
    kinds = ("sparsek", "full", "window", "linear", "moba", "random")
    results = [made("a", kind, seed, loss) for kind, loss, seeds in zip(kinds, (3.0, 3.01, 3.02, 3.9, 2.9, 3.03), (1, 4, 3, 5, 1, 2)) for seed in range(1, seeds + 1)]
    group = figures.main_group(tables.groups_of(results, ["a"], "sparsek", {}))
    losses = tables.losses_by_seed(group, "test", "books")
    before = figures.MOST_LINES
    try:
        figures.MOST_LINES = 4
        assert set(figures.main_types(group, losses)) == {"sparsek", "moba", "full", "window"}  # linear is off the scale
        group = figures.main_group(tables.groups_of(results + [made("a", "hard", 1, 2.8)], ["a"], "sparsek", {}))
        assert set(figures.main_types(group, tables.losses_by_seed(group, "test", "books"))) == {"sparsek", "hard", "moba", "full"}  # a variant, but the best
    finally:
        figures.MOST_LINES = before
    assert "8 of" not in figures.left_out(["a"], ["a"]) and "1 of 2 types" in figures.left_out(["a"], ["a", "b"])


def test_beyond_the_trained_length_are_those_that_were_asked():
    results = study()
    for result in results:
        if result["type"] not in ("linear", "window"):
            result.get("evaluations", {}).get("test", {}).pop("context", None)
    group = figures.main_group(tables.groups_of([result for result in results if result["stage"] == "a"], ["a"], "sparsek", {}))
    before = figures.MOST_LINES
    try:
        figures.MOST_LINES = 2
        panel, = figures.contexts(group, ["context"], tables.losses_by_seed(group, "test", "books")).shown["panels"]
    finally:
        figures.MOST_LINES = before
    assert {line["kind"] for line in panel["lines"]} == {"window", "linear"}, panel["lines"]


def test_panels_share_looks_and_no_two_lines_of_one_look_alike():
    lines = lambda *kinds: [{"kind": kind, "reference": kind == "r"} for kind in kinds]
    looks = plot.looks_of(lines("r", *"abcdefg"), lines("r", *"bxyz"))
    assert looks["r"][0] == "black" and len({looks[kind] for kind in "rabcdefg"}) == 8 and len({looks[kind] for kind in "rbxyz"}) == 5, looks


def test_names_of_lines_stand_apart():
    assert plot.spread([5.0, 1.0, 9.0], 1, 0, 10) == [5.0, 1.0, 9.0]
    places = plot.spread([5.0, 5.2, 5.1], 1, 0, 10)
    assert [round(place, 6) for place in places] == [4.1, 6.1, 5.1], places  # in their order, about their mean
    crowded = plot.spread([9.8, 9.9, 0.0, 9.7], 1, 0, 10)
    assert crowded[2] == 0 and crowded[1] <= 10 and crowded[3] + 1 <= crowded[0] + 1e-9 <= crowded[1] + 1e-9 - 1 + 1e-9, crowded


def test_without_matplotlib_the_report_says_so():
    with Folder(prepared=False) as f:
        write(f, study())
        (f.path / "none" / "matplotlib").mkdir(parents=True)
        (f.path / "none" / "matplotlib" / "__init__.py").write_text("raise ImportError('none here')\n")
        command = [sys.executable, str(REPORT), "out", "-o", "x.html", "--markdown", "x.md", "--resamples", "2000"]
        bare = {**os.environ, "PYTHONPATH": str(f.path / "none")}
        done = subprocess.run([*command, "--figures", "figures"], cwd=f.path, capture_output=True, text=True, timeout=300, env=bare)
        assert done.returncode == 1, done.stderr
        expect(done.stderr, "--figures figures: no figure was written", "matplotlib is missing")
        assert not (f.path / "figures").exists()
        expect((f.path / "x.md").read_text(), "This page has no figures: matplotlib is missing", "## The runs")
        (f.path / "none" / "matplotlib" / "__init__.py").write_text("__version__ = '3.6.3'\ndef use(_): pass\n")
        old = subprocess.run([*command, "--figures", "figures"], cwd=f.path, capture_output=True, text=True, timeout=300, env=bare)
        assert old.returncode == 1 and "matplotlib is 3.6.3, wanted is 3.7" in old.stderr, old.stderr
        assert subprocess.run(command, cwd=f.path, capture_output=True, timeout=300, env=bare).returncode == 0
        assert "<img" not in (f.path / "x.html").read_text()


def with_matplotlib():
    """This Python, or the one that PLOT_PYTHON names, if it has matplotlib."""
    for python in (sys.executable, os.environ.get("PLOT_PYTHON")):
        if python and subprocess.run([python, "-c", "import matplotlib as m; assert tuple(map(int, m.__version__.split('.')[:2])) >= (3, 7)"], capture_output=True).returncode == 0:
            return python
    print("skipped: no matplotlib (PLOT_PYTHON may name a Python that has it)")
    sys.exit(77)


def size_of(png):
    data = png.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) < 80000, (png, len(data))
    return struct.unpack(">II", data[16:24])


def test_with_matplotlib_figures_are_files():
    python = with_matplotlib()
    with Folder(prepared=False) as f:
        write(f, [result for result in study() if result["stage"] != "speed"])
        (f.path / "doc" / "figures").mkdir(parents=True)
        (f.path / "doc" / "figures" / "training_speed.png").write_text("of a report before")
        for out, options in (("out", ["--resamples", "2000"]), (ROOT / "bench" / "results" / "comparison", [])):
            command = [python, str(REPORT), str(out), "-o", "x.html", "--markdown", "doc/x.md", "--figures", "doc/figures", *options]
            done = subprocess.run(command, cwd=f.path, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0 and "no figures" not in done.stderr, done.stderr
            names = figures.NAMES if out != "out" else figures.NAMES[:-1]
            assert sorted(path.name for path in (f.path / "doc" / "figures").iterdir()) == sorted(["captions.md", *(f"{name}.png" for name in names)])
            for name in names:
                wide, high = size_of(f.path / "doc" / "figures" / f"{name}.png")
                assert 500 < wide < 2400 and 200 < high < 2400, (name, wide, high)
                expect((f.path / "doc" / "x.md").read_text(), f"](figures/{name}.png)", f"(`figures/{name}.png`). ")
            expect((f.path / "doc" / "figures" / "captions.md").read_text(), *(f"]({name}.png)" for name in names), "5 seeds: ")
            page = (f.path / "x.html").read_text()
            assert page.count("<figure><img") == page.count("<figcaption>") >= len(names)


main(globals())
