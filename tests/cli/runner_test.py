"""The runner of the comparison, scripts/compare.py: what it keeps, what it refuses, several runs at once."""
import contextlib
import json
import os
import pathlib
import signal
import sys
import time
import types

from compare_harness import GRID, ROOT, compare, pretend, result, script, start
from harness import Folder, expect, main, until

from comparison import check, grid as grids, program, state  # noqa: E402


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
        expect(compare(f, code=2), "a-tiny-64-full-s1", before["hash"], "--redo 'a-tiny-64-full-s1' (")
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
        expect(compare(f, code=1), "a-tiny-64-broken-s1: FAILED", "training shard", "1 failed, 1 finished")
        failed = result(f, "a-tiny-64-broken-s1")
        assert failed["status"] == "failed" and "training shard" in failed["message"] and failed["exit_code"] == 2, failed
        expect(compare(f, code=1), "1 failed earlier (first: a-tiny-64-broken-s1: out/runs", "also a training shard", "--retry-failed runs them anew")
        assert result(f, "a-tiny-64-broken-s1") == failed  # kept until it is asked for
        time.sleep(1.1)
        assert "earlier" not in compare(f, "--retry-failed", code=1)
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


def test_a_shorter_run_takes_the_rest_of_the_budget():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 20"), "grid.yaml")
        compare(f)
        f.config(GRID.replace("steps: 400", "steps: 20").replace("seeds: [1]", "seeds: [1, 2]"), "grid.yaml")
        slow = result(f, "a-tiny-64-full-s1")
        slow["seconds"]["train"] = 1000.0
        (f.path / "out/runs/a-tiny-64-full-s1/result.json").write_text(json.dumps(slow))
        expect(compare(f, "--budget-seconds", "60", code=75), "a-tiny-64-full-s2 would take about 10", "a-tiny-64-sparsek-s2: finished", "3 finished", "1 to do")
        expect(compare(f, "--budget-seconds", "60", "--jobs", "2", code=75), "a-tiny-64-full-s2 would take about 20")  # known alone, wanted with another


def ended(kind, size, context, tokens, *seconds, beside=2):
    """Made-up results: so many runs of a kind and the seconds that each took to train."""
    return [{"status": "finished", "resolved_type": kind, "size": size, "context": context, "plan": {"tokens": tokens, "flops_per_token": 2.0},
             "seconds": {"train": took, "evaluate": 3.0}, "evaluations": {"val": {"books": [], "chunks": []}}, "provenance": {"side_by_side": beside}} for took in seconds]


def test_a_run_is_judged_by_those_most_like_it():
    with Folder(prepared=False) as f:
        runs = state.Runs(types.SimpleNamespace(cells=[]), f.path)

        def seconds(results, beside=2, kind="nsa", evaluations=0):
            """Of a run of size S at 8k, over 80 tokens."""
            runs.results = dict(enumerate(results))
            plan = {"type": kind, "splits": {"val": "x"}, "evaluations": dict.fromkeys(range(evaluations))}
            found = runs.estimate(grids.Cell("d", "S", "8k", kind, 1), plan, {"tokens": 80, "flops_per_token": 2.0}, beside)
            return found if found is None else round(found, 6)

        alike, others = ended("nsa", "S", "8k", 80, 75, 162, 65, 161, 78), ended("full", "S", "8k", 80, 20, 90, 30)
        assert seconds(alike) == 78  # two of five were slowed down by something else
        assert seconds(alike, evaluations=2) == 81
        assert seconds(alike + others) == 78 and seconds(others) == 90  # of other types the slowest
        assert seconds([]) is None
        brief = ended("nsa", "S", "8k", 2, 1, beside=1)  # which alone would say 40, or 80 with two side by side
        assert seconds(brief) == 80 and seconds(brief, beside=1) == 40
        assert seconds(brief + ended("nsa", "XS", "4k", 80, 500)) == 500  # a long one, though of another size
        assert seconds(ended("nsa", "XS", "4k", 80, 500) + ended("nsa", "S", "4k", 80, 300) + ended("nsa", "XS", "8k", 80, 200)) == 300
        assert seconds(ended("nsa", "XS", "4k", 80, 500) + ended("nsa", "XS", "8k", 80, 200)) == 200
        alone = ended("nsa", "S", "8k", 80, 50, beside=1)
        assert seconds(alone) == 100 and seconds(alone, beside=1) == 50
        assert seconds(alone + alike) == 78 and seconds(alone + alike, beside=1) == 50
        assert seconds(ended("nsa", "S", "8k", 20, 40, 41) + alike) == 78 and seconds(ended("nsa", "S", "8k", 20, 40)) == 160
        assert seconds(ended("nsa", "S", "8k", 20, 40) + ended("nsa", "XS", "4k", 80, 500)) == 160  # so does a quarter
        assert seconds(ended("nsa", "S", "8k", 80, 70, 90)) == 90  # of two the slower
        assert seconds(ended("nsa", "S", "8k", 80, 50, beside=4), beside=2) == 50  # never faster for having shared with more
        assert seconds(ended("nsa", "S", "8k", 10, 10)) == 80 and seconds(ended("nsa", "S", "8k", 9, 9) + ended("nsa", "XS", "4k", 80, 500)) == 500  # an eighth tells
        failed, probe = ({**alike[0], "status": "failed"}, {**alike[0], "probe": {}})
        assert seconds([failed, probe]) is None
        # An evaluation takes as long after a brief training as after a long one of its own size.
        for brief_one, long_one in zip(brief, ended("nsa", "XS", "4k", 80, 500)):
            brief_one["seconds"]["evaluate"], long_one["seconds"]["evaluate"] = 8.0, 100.0
            brief_one["provenance"]["side_by_side"] = 2
            assert seconds([brief_one, long_one], evaluations=2) == 508
        # Half of it done: half of its training remains.
        folder = f.path / "runs" / "d-S-8k-nsa-s1" / "train"
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "status.json").write_text(json.dumps({"step": 5, "total_steps": 10}))
        assert seconds(alike, evaluations=2) == 42


def test_the_slowest_probe_of_its_kind_is_what_a_probe_is_expected_to_take():
    with Folder(prepared=False) as f:
        runs = state.Runs(types.SimpleNamespace(cells=[]), f.path)
        cell = grids.Cell("probes", "XS", "copy", "full", 1)
        made = [{"status": status, "stage": "probes", "context": context, "probe": {}, "seconds": {"train": took, "evaluate": 1.0}}
                for status, context, took in (("finished", "copy", 20), ("finished", "copy", 30), ("finished", "mqar", 50), ("failed", "copy", 90))]
        runs.results = dict(enumerate(made))
        assert runs.probe_estimate(cell) == 31
        runs.results = {0: made[2]}
        assert runs.probe_estimate(cell) == 51
        runs.results = {}
        assert runs.probe_estimate(cell) == 0


def test_two_at_once_give_what_one_at_a_time_gives():
    with Folder() as f:
        f.config(GRID.replace("[full, sparsek]", "[broken, full, sparsek]").replace("steps: 400", "steps: 150").replace("seeds: [1]", "seeds: [1, 2]"), "grid.yaml")
        compare(f, out="one", code=1)
        said = compare(f, "--jobs", "2", code=1)
        expect(said, "2 failed, 4 finished")  # and a failing one stops nobody
        for name in ("full-s1", "sparsek-s1", "full-s2", "sparsek-s2"):
            one, two = (result(f, f"a-tiny-64-{name}", out) for out in ("one", "out"))
            assert all(one[key] == two[key] for key in ("evaluations", "config", "hash", "plan", "lr")), name
            assert [row["loss/train"] for row in one["curve"]] == [row["loss/train"] for row in two["curve"]], name
            assert (one["provenance"]["side_by_side"], two["provenance"]["side_by_side"], two["provenance"]["at_once"]) == (1, 2, 2)
        lines = [line for line in said.splitlines() if "full-s1" in line or "sparsek-s1" in line]
        assert [line.split(": ")[1][:6] for line in lines[:2]] == ["begins", "begins"], said


def test_signal_saves_every_run_and_none_outlives_its_parent():
    with Folder() as f:
        # Long against the first save: no training ends while the other has not saved yet, however they share the cores.
        f.config(GRID.replace("steps: 400", "steps: 6000").replace("every: 50", "every: 200"), "grid.yaml")
        names = ("a-tiny-64-full-s1", "a-tiny-64-sparsek-s1")
        logs = [f.path / "out/runs" / name / "train.log" for name in names]
        for number, (how, code) in enumerate(((signal.SIGKILL, -signal.SIGKILL), (signal.SIGINT, 130)), 1):
            job = start(f, "--jobs", "2")
            until(lambda: all(log.exists() and "saved" in (log.read_text().split("sieve pretrain") + [""] * 3)[number] for log in logs))
            job.send_signal(how)
            job.communicate(timeout=60)
            assert job.returncode == code, job.returncode
            for name in names:
                status = json.loads((f.path / "out/runs" / name / "train/status.json").read_text())
                until(lambda: not (pathlib.Path("/proc") / str(status["pid"])).exists())
                assert not (f.path / "out/runs" / name / "result.json").exists()
                assert how == signal.SIGKILL or status["status"] != "running", status
        expect(compare(f, "--jobs", "2"), "goes on", "2 finished")
        compare(f, out="once")
        for name, log in zip(names, logs):
            assert log.read_text().count("sieve pretrain") == 3
            assert result(f, name)["evaluations"] == result(f, name, "once")["evaluations"]


def test_a_run_begins_as_soon_as_its_search_has_ended():
    with Folder() as f:
        stages = GRID[GRID.index("stages:"):]
        search = "  {0}: {{types: [{1}], sizes: [tiny], contexts: ['64'], seeds: [1], lrs: {2}, set: {{train: {{steps: {3}}}}}, evaluations: [books]}}\n"
        f.config(GRID[:-len(stages)].replace("steps: 400", "steps: 10") + "learning_rate: {stages: [brief, long], split: val, evaluation: books, metric: loss}\nstages:\n" +
                 search.format("brief", "full", "[1e-3, 3e-3]", 10) + search.format("long", "sparsek", "[1e-3]", 1000) + stages.split("\n", 1)[1], "grid.yaml")
        said = compare(f, "--jobs", "2")
        expect(said, "5 finished")
        order = [said.index(part) for part in ("a-tiny-64-full-s1: begins", "long-tiny-64-sparsek-s1-lr0.001: finished", "a-tiny-64-sparsek-s1: begins")]
        assert order == sorted(order), said
        assert result(f, "a-tiny-64-sparsek-s1")["lr"] == 0.001


@contextlib.contextmanager
def machine_of(f, gpus):
    """As on a machine with so many GPUs, as far as nvidia-smi tells."""
    (f.path / "bin").mkdir(exist_ok=True)
    driver = f.path / "bin" / "nvidia-smi"
    driver.write_text("#!/bin/sh\n" + "".join(f"echo {one}\n" for one in range(gpus)))
    driver.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{driver.parent}:{path}"
    try:
        yield
    finally:
        os.environ["PATH"] = path


def test_runs_are_given_their_gpu():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 10"), "grid.yaml")
        sieve = pretend(f, f'[ "$1" != pretrain ] || echo "$CUDA_VISIBLE_DEVICES" >>{f.path}/seen')
        with machine_of(f, 0):
            for words in (("--gpus", "99"), ("--gpus", "0,")):
                expect(compare(f, *words, code=2), f"compare: --gpus {words[1]}: this machine shows no GPU; --jobs N runs side by side on the CPU")
        assert not (f.path / "out/runs").exists()
        with machine_of(f, 2):
            expect(compare(f, "--gpus", "0,2", code=2), "--gpus 0,2: this machine shows 2 GPUs (0, 1); --jobs N")
            compare(f, "--sieve", str(sieve), "--gpus", "0,", "--per-gpu", "2")
        assert (f.path / "seen").read_text() == "0\n0\n"
        given = result(f, "a-tiny-64-full-s1")["provenance"]
        assert (given["gpu_index"], given["side_by_side"], given["at_once"]) == ("0", 2, 2), given
        for words, parts in ((("--gpus", "two"), ["--gpus two", "how many"]), (("--gpus", "0,0"), ["twice", "--per-gpu"]), (("--gpus", "0"), ["how many"]),
                             (("--per-gpu", "2"), ["--gpus"]), (("--gpus", "1", "--jobs", "2"), ["--jobs"]), (("--jobs", "0"), ["at least 1"])):
            expect(compare(f, *words, code=2), *parts)
    names = [slot.gpu for slot in program.slots_of(["0", "2"], 2, 1)]
    assert names == ["0", "2", "0", "2"]
    threads, kept = os.environ.pop("OMP_NUM_THREADS"), os.environ["CUDA_VISIBLE_DEVICES"]
    try:
        share = program.slots_of([], 1, 2)[1]
        assert share.gpu is None and share.env == {"OMP_NUM_THREADS": str(max(1, program.cores() // 2))}
        assert program.slots_of([], 1, 1)[0].env == {}
        program.gpus_here, gpus_here = lambda: [str(one) for one in range(8)], program.gpus_here
        os.environ["CUDA_VISIBLE_DEVICES"] = "4,7,GPU-abc"
        assert program.gpu_ids("2") == ["4", "7"] and program.gpu_ids("3,") == ["3"]
        del os.environ["CUDA_VISIBLE_DEVICES"]
        assert program.gpu_ids("2") == ["0", "1"]
        program.gpus_here = lambda: ["0", "1"]
        try:
            program.gpu_ids("3")
            raise AssertionError("a GPU that is not there was given out")
        except grids.GridError as error:
            assert "2 GPUs (0, 1)" in str(error)
        program.gpus_here = gpus_here
    finally:
        os.environ.update(OMP_NUM_THREADS=threads, CUDA_VISIBLE_DEVICES=kept)


def test_final_stages_want_a_clean_build():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 10").replace("evaluations: [books]}\n", "evaluations: [books], final: true}\n")
                 .replace('splits: {val: "${data}/val"}', 'splits: {val: "${data}/val", test: "${data}/train"}'), "grid.yaml")
        version = '[ "$1" != --version ] || {{ echo "sieve 0.1.0 (0123456789ab{}, Release)"; exit 0; }}'
        dirty = str(pretend(f, version.format("-dirty")))
        expect(compare(f, "--sieve", dirty, code=2), "0123456789ab-dirty", "no clean build", "2 runs of final stages", "--allow-dirty")
        assert not list((f.path / "out").glob("runs/*"))
        compare(f, "--sieve", dirty, "--only", "*full*", "--allow-dirty")
        assert "-dirty" in result(f, "a-tiny-64-full-s1")["provenance"]["sieve"]
        compare(f, "--sieve", dirty, "--only", "*full*")  # nothing to be made
        compare(f, "--sieve", str(pretend(f, version.format(""))))
        assert result(f, "a-tiny-64-sparsek-s1")["provenance"]["sieve"] == "sieve 0.1.0 (0123456789ab, Release)"
        expect(compare(f, "--sieve", str(pretend(f, "exit 127")), code=2), "--version")


def test_failed_evaluation_keeps_the_training():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 10"), "grid.yaml")
        broken = pretend(f, '[ "$1" != eval ] || { echo "x.yaml:1:1: warning: odd" >&2; echo "[tokens] no luck" >&2; exit 3; }')
        compare(f, "--only", "*full*", "--sieve", str(broken), code=1)
        assert "no luck" in result(f, "a-tiny-64-full-s1")["message"]
        expect(compare(f, "--only", "*full*", code=1), "1 failed earlier (first: a-tiny-64-full-s1: [tokens] no luck): --retry-failed")
        compare(f, "--only", "*full*", "--retry-failed")
        assert (f.path / "out/runs/a-tiny-64-full-s1/train.log").read_text().count("sieve pretrain") + \
            (f.path / "out/runs/a-tiny-64-full-s1/train.log").read_text().count("pretended pretrain") == 1


def test_names_of_changed_runs_are_put_together():
    cells = [grids.Cell(stage, "XS", "4k", kind, seed) for stage in ("a", "b") for kind in ("full", "sparsek") for seed in (1, 2)]
    for wanted, globs in ((cells, ["*"]), (cells[4:], ["b-*"]), (cells[2:4] + cells[6:], ["*-sparsek-*"]), (cells[2:4], ["a-*-sparsek-*"]), (cells[:1], ["a-XS-4k-full-s1"]),
                          (cells[:4] + cells[5:6], ["a-*", "b-XS-4k-full-s2"])):
        assert check.globs_of(wanted, cells) == globs, (globs, check.globs_of(wanted, cells))


def test_absent_data_is_found_before_the_first_run():
    with Folder() as f:
        probe = "  p: {types: [full], sizes: [tiny], seeds: [1], probe: {mqar: {task: mqar, length: 64, items: 4, steps: 2, batch: 2, schedule: {warmup: 1}, eval: {examples: 2}}}}\n"
        f.config(GRID.replace("steps: 400", "steps: 10").replace("data: data", "data: absent") + probe, "grid.yaml")
        expect(compare(f, code=2), "grid.yaml: paths.data", f"{f.path}/absent, wanted by a-tiny-64-full-s1", "--path data=...")
        expect(compare(f, "--path", "data=text", code=2), f"there is no {f.path}/text/train", "--path data=...")  # a folder, but another one
        for split in ("train", "val"):
            (f.path / "text" / split).mkdir()
        expect(compare(f, "--path", "data=text", code=2), f"there is no .h5 file in {f.path}/text/train")
        assert not (f.path / "out/runs").exists()
        expect(compare(f, "--stage", "p"), "1 finished")  # which reads no data
        expect(compare(f, "--stage", "a", "--path", "data=data"), "2 finished")
        expect(compare(f), "3 finished")  # and nobody reads it any more


def test_what_waits_says_for_what():
    with Folder() as f:
        stages = GRID[GRID.index("stages:"):]
        search = "  s: {types: [full, sparsek], sizes: [tiny], contexts: ['64'], seeds: [1], lrs: [1e-3], evaluations: [books]}\n"
        f.config(GRID[:-len(stages)].replace("steps: 400", "steps: 10") + "learning_rate: {stages: [s], split: val, evaluation: books, metric: loss}\n" + stages + search, "grid.yaml")
        expect(compare(f, "--stage", "a", code=75), "2 wait, first a-tiny-64-full-s1 for s-tiny-64-full-s1-lr0.001, which --stage leaves out: add --stage s")
        expect(compare(f, "--only", "a-*", code=75), "--only leaves out: add --only 's-tiny-64-full-s1-lr0.001'")
        assert " wait," not in compare(f)


def test_what_sieve_refuses_is_found_before_the_first_run():
    with Folder() as f:
        small = GRID.replace("steps: 400", "steps: 10")
        for change, parts in (((" k: 8, window: 8", " k: 8, windw: 8"), ["grid.yaml", "types.sparsek.kinds.a.windw: unknown key", '"window"', "(a-tiny-64-sparsek-s1)"]),
                              (("seq_len: 64", "seq_len: 96"), ["train.global_batch", "(a-tiny-64-full-s1)"])):
            assert change[0] in small
            f.config(small.replace(*change), "grid.yaml")
            expect(compare(f, code=2), "nothing was run", *parts)
            assert not (f.path / "out/runs").exists()
        f.config(small.replace("windw", "window"), "grid.yaml")
        compare(f, "--only", "*full*")


def test_a_grid_is_named_or_given_by_its_path():
    with Folder() as f:
        f.config(GRID.replace("steps: 400", "steps: 10"), "own.yaml")
        for grid in ("own.yaml", f.path / "own.yaml"):
            expect(script("bash", ROOT / "scripts" / "compare.sh", grid, "out", "--list", cwd=f.path), "a-tiny-64-sparsek-s1", "to do")
        expect(script("bash", ROOT / "scripts" / "compare.sh", "novels", "out", "--list", cwd=f.path), "a-XS-4k-sparsek-s1")
        for absent in ("other.yaml", "nvels"):
            expect(script("bash", ROOT / "scripts" / "compare.sh", absent, "out", cwd=f.path, code=2), absent, "a path", "novels tiny")
        tiny = script("bash", ROOT / "scripts" / "compare.sh", "tiny", "out", cwd=f.path, code=2, env={"SIEVE": "/nowhere/sieve"})
        expect(tiny, "/nowhere/sieve", "scripts/build.sh cpu sieve")


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
        grid, seen = grids.Grid.load(ROOT / "configs" / "compare" / "novels.yaml"), set()
        for cell in grid.cells:
            if "best_of" in grid.data["types"][cell.type]:
                continue
            if "probe" in grid.data["stages"][cell.stage]:
                f.config(grids.yaml.safe_dump(grid.probe_config(cell)), "probe.yaml")
                f.run("config", "check", "probe.yaml")
                continue
            config = grid.config(cell, cell.type, cell.lr or 1e-3)
            config["run"] = {"name": "x"}
            key = json.dumps(config, sort_keys=True)
            if key not in seen:
                seen.add(key)
                f.config(grids.yaml.safe_dump(grids.substitute(config, {"data": "data"})), "x.yaml")
                plan = json.loads(f.run("plan", "x.yaml", "model.vocab_size=8192", "--json", "--gpu", "h100").out)
                assert 10e6 < plan["parameters"] < 32e6 and plan["memory_bytes"]["total"] < 60 * 2**30, (cell.name, plan)
        assert len(grid.cells) > 200 and len(seen) > 90, (len(grid.cells), len(seen))


main(globals())
