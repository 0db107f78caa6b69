"""Tables of a hand-written page, made in place: their numbers against sums made here, what a mark may say, and the page of the study itself."""
import copy
import json
import math
import pathlib
import subprocess
import sys

import compare_made
from compare_made import made, write
from harness import Folder, expect, main

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from comparison import page_tables, stats  # noqa: E402


def study():
    """The made-up study; its dense model, of more tokens, is of another context, so that T/128 names one group."""
    return [{**r, "context": "256"} if r["stage"] == "dense" else r for r in compare_made.study()]


def page(f, *marks, words=(), code=0, results=None):
    """(text of the page with these marks filled, what was printed) of the made-up study."""
    write(f, results or study())
    (f.path / "page.md").write_text("# A page\n\n" + "\n\nWords between.\n\n".join(f"<!-- table: {mark} -->\n| old |\n|---|" for mark in marks) + "\n\nThe end.\n")
    return again(f, *words, code=code)


def again(f, *words, code=0):
    done = subprocess.run([sys.executable, str(ROOT / "scripts" / "compare_page.py"), "page.md", "out", "--resamples", "2000", *words], cwd=f.path, capture_output=True, text=True,
                          timeout=300)
    assert done.returncode == code, f"exit code {done.returncode}, expected {code}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return (f.path / "page.md").read_text(), done.stdout + done.stderr


def rows_of(text):
    """[{column: cell}] of the page's only table."""
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.split("\n") if line.startswith("|")]
    return [dict(zip(rows[0], row)) for row in rows[2:]]


def losses(kind, results=None, split="test"):
    """{seed: loss of whole books} of stage a."""
    return {r["seed"]: sum(d["nll"] for d in r["evaluations"][split]["books"][0]["documents"]) / 600 for r in results or study() if r["stage"] == "a" and r["type"] == kind}


def holm_of(kind, family):
    """Holm's p of a type's difference to SparseK within its family, those with three seeds or more; both splits are made alike."""
    tested, counts = [one for one in family if len(losses(one)) >= stats.LEAST_SEEDS], stats.draws(6, 2000)
    books = {one: {r["seed"]: [d["nll"] for d in r["evaluations"]["test"]["books"][0]["documents"]] for r in study() if r["stage"] == "a" and r["type"] == one} for one in (*tested, "sparsek")}
    found = stats.holm([stats.compare(counts, books[one], books["sparsek"], [100] * 6).p for one in tested])[tested.index(kind)]
    return "< 0.001" if found < 0.001 else f"{found:.3f}"


def gap(one, other, digits=3):
    """-0.0500 [-0.060, -0.040], by Welch's t."""
    low, high, _ = stats.welch(list(one.values()), list(other.values()))
    return f"{stats.mean(list(one.values())) - stats.mean(list(other.values())):+.4f} [{low:+.{digits}f}, {high:+.{digits}f}]"


# -- losses -------------------------------------------------------------------------------------------------------------------------------------------
def test_losses_are_those_of_the_results():
    with Folder(prepared=False) as f:
        text, _ = page(f, "losses of=T/128 types=window,sparsek,hard,random,linear columns=seeds,loss,sd,difference,verdict,val,cache,bytes,visited,speed")
    rows = rows_of(text)
    assert [row["type"] for row in rows] == ["SparseK", "hard gates", "window", "linear"], rows  # the lowest first, what has not run left out
    sparsek, hard, window, linear = rows
    assert sparsek["loss on test"] == f"{stats.mean(list(losses('sparsek').values())):.4f}" and sparsek["sd"] == f"{stats.deviation(list(losses('sparsek').values())):.4f}"
    assert sparsek["minus SparseK [95 % over seeds]"] == "reference" and sparsek["verdict (Holm p)"] == "" and sparsek["M tokens/s"] == "0.00"
    assert window["minus SparseK [95 % over seeds]"] == gap(losses("window"), losses("sparsek")), window
    p = holm_of("window", ("window", "linear"))
    assert window["verdict (Holm p)"] == f"worse ({p})" and window["on val"] == f"+0.0500, worse ({p})", (window, p)
    assert (hard["seeds"], hard["verdict (Holm p)"], hard["on val"]) == ("1", "one seed", "+0.0100"), hard
    assert linear["verdict (Holm p)"] == "too few seeds" and linear["its bytes, of the reference's"] == "0.25" and linear["visited rows"] == "0"
    assert window["cache KiB a layer"] == "1" and window["M tokens/s"] == ""
    assert text.startswith("# A page\n\n<!-- table: losses of=T/128") and text.endswith("|\n\nThe end.\n") and "old" not in text


def test_p_is_never_rounded_over_the_limit():
    assert [page_tables.p_text(p) for p in (0.0004, 0.0123, 0.0496, 0.05, 0.4)] == ["< 0.001", "0.012", "0.0496", "0.050", "0.400"]


def test_pairs_of_the_grid_are_corrected_and_others_are_not():
    with Folder(prepared=False) as f:
        results = [r for r in study() if r["type"] != "linear"] + [made("a", "hard", seed, 3.01) for seed in (2, 3)] + [made("a", "random", seed, 3.04) for seed in (1, 2, 3)]
        asked = rows_of(page(f, "pairs of=T/128", results=results)[0])
        other = rows_of(page(f, "pairs of=T/128 pairs=window:full,window:linear", results=results)[0])
    assert [row["difference"] for row in asked] == ["hard gates minus random rows"] and [row["difference"] for row in other] == ["window minus full"]
    assert asked[0]["on test [95 % over seeds]"] == gap(losses("hard", results), losses("random", results))
    expect(asked[0]["verdict (Holm p)"], "better (")
    assert other[0]["p, uncorrected"].startswith("p ") and "worse" not in other[0]["on val"], other
    with Folder(prepared=False) as f:
        expect(page(f, "pairs of=T/128 pairs=random:hard", code=2, results=results)[1], "random:hard: of the grid's own pairs")


def test_trainings_stand_beside_the_same_seeds_of_another_group():
    with Folder(prepared=False) as f:
        results = [made("a", kind, seed, loss) for kind, loss in (("sparsek", 3.0), ("window", 3.1)) for seed in (1, 2, 3)]
        results += [made("far", kind, seed, loss, context="512") for kind, loss in (("sparsek", 2.9), ("window", 3.05)) for seed in (1, 2)]
        rows = rows_of(page(f, "trainings of=T/512 than=T/128 types=sparsek,window before=short", results=results)[0])
    near, far = losses("window", results), [r for r in results if r["stage"] == "far" and r["type"] == "window"]
    each = [sum(d["nll"] for d in r["evaluations"]["test"]["books"][0]["documents"]) / 600 for r in far]
    assert rows[1]["each training on test"] == ", ".join(f"{one:.4f}" for one in each) and rows[1]["mean"] == f"{stats.mean(each):.4f}"
    both = stats.mean([near[1], near[2]])  # not the third seed, which the other has not
    assert rows[1]["the same seeds, short"] == f"{both:.4f}" and rows[1]["gain"] == f"{both - stats.mean(each):.3f}", rows[1]


def test_sets_of_results_a_peer_and_conversions():
    with Folder(prepared=False) as f:
        several = rows_of(page(f, 'several split=test "all of a, W = 16=runs/a-T-128-window-s*" "one=runs/a-T-128-full-s1" "both=all"')[0])
        every = list(losses("window").values())
        assert several[0] == {"trainings": "all of a, W = 16", "number": "5", "loss on test": f"{stats.mean(every):.4f}", "sd": f"{stats.deviation(every):.4f}"}, several
        assert several[1]["sd"] == "" and several[2]["number"] == "6"
        assert f"{stats.mean(every + [losses('full')[1]]):.4f}" == several[2]["loss on test"]
        expect(page(f, 'several "none=runs/nothing*"', code=2)[1], "none: no result at runs/nothing*")
        write(f, study())
        (f.path / "out" / "peer.jsonl").write_text("".join(json.dumps({"window": w, "test": {"loss": x}, "val": {"loss": x + 1}}) + "\n" for w, x in ((0, 3.0), (0, 3.5), (16, 9.0))))
        peer = rows_of(page(f, 'peer of=T/128 file=peer.jsonl "full=0"')[0])[0]
        assert (peer["PyTorch, test"], peer["PyTorch, val"], peer["sieve, test"]) == ("3.2500", "4.2500", f"{stats.mean(list(losses('full').values())):.4f}"), peer
        for mark, said in (('peer of=T/128 file=none.jsonl "full=0"', "none.jsonl: No such file"), ('peer of=T/128 file=peer.jsonl "full=7"', "full=7: out/peer.jsonl has windows 0, 16"),
                           ('several split=test "mixed=runs/a-T-128-full-s1+runs/dense*"', "mixed: dense-T-128-full-s1 trained on other tokens"), ('several "speed=runs/speed*"', "has no finite loss of books on val")):
            expect(page(f, mark, code=2)[1], said)
        turned = rows_of(page(f, "converted of=turn types=sparsek,full,window")[0])
    assert [row["goes on as"] for row in turned] == ["SparseK", "full", "window"] and turned[1]["verdict (Holm p)"] == ""
    turned = [turned[1], turned[0], turned[2]]
    assert turned[1]["before any update (val)"] == f"{5 - 0.5 + 2.92:.4f}" and turned[1]["after (val)"] == f"{5 - 2 + 2.92:.4f}"
    assert turned[1]["perplexity"] == f"{100 * math.expm1(0.02):+.2f} %", turned[1]


# -- where a difference lies --------------------------------------------------------------------------------------------------------------------------
def placed(kind, seed, near, far):
    """A training whose loss is `near` for targets that saw fewer than 12 tokens, and `far` beyond 16; and so for repeated bigrams."""
    r = copy.deepcopy(made("a", kind, seed, 3.0))
    for split in ("test", "val"):
        near_here, far_here = (near, far) if split == "test" else (near + 1, far + 2)
        r["evaluations"][split]["books"][0]["positions"] = [{"from": low, "to": high, "tokens": n, "nll": n * loss, "loss": loss}
                                                             for low, high, n, loss in ((1, 4, 10, near_here), (4, 12, 30, near_here), (12, 16, 7, 9.0), (16, 129, 50, far_here))]
        r["evaluations"][split]["books"][0]["recall"] = [{"from": low, "to": high, "tokens": n, "nll": n * loss, "loss": loss}
                                                          for low, high, n, loss in ((1, 9, 10, near_here), (9, 33, 30, far_here), (33, None, 10, far_here + 4), (None, None, 60, 1.0))]
    return r


def placed_study():
    return [placed("sparsek", seed, 2.0 + 0.01 * seed, 3.0) for seed in (1, 2, 3)] + [placed("window", seed, 2.0 + 0.02 * seed, 3.5 + 0.02 * seed) for seed in (1, 2, 3)]


def test_parts_and_positions():
    near = ({s: 2.0 + 0.02 * s for s in (1, 2, 3)}, {s: 2.0 + 0.01 * s for s in (1, 2, 3)})
    far = ({s: 1.5 for s in (1, 2, 3)}, {s: 1.0 - 0.01 * s for s in (1, 2, 3)})
    with Folder(prepared=False) as f:
        row = rows_of(page(f, "parts of=T/128 types=window minus=sparsek far=16", results=placed_study())[0])[0]
        assert row["type"] == "window (3 seeds)" and row["tokens seen at most"] == "11", row
        assert row["loss there"] == gap(*near, 4) and row["what comes with 16 and more"] == gap(*far, 4), (row, gap(*near, 4), gap(*far, 4))
        assert row["the same on val"].startswith("+0.5200"), row  # both parts moved there, each by as much for both types
        row = rows_of(page(f, "parts of=T/128 far=16 pairs=window:sparsek@4,window:linear,linear:full", results=placed_study())[0])
        assert len(row) == 1 and row[0]["tokens seen at most"] == "3" and row[0]["loss there"] == gap(*near, 4), row
        rows = rows_of(page(f, "positions of=T/128 edges=1,12,16 pairs=window:sparsek,window:sparsek@val", results=placed_study())[0])
        assert [row["split"] for row in rows] == ["test", "val"] and list(rows[0])[2:] == ["1-11", "12-15", "16 and more"], rows
        assert rows[0]["1-11"].startswith("+0.020 [") and rows[0]["12-15"].startswith("+0.000") and rows[0]["16 and more"].startswith("+0.540 ["), rows
        for mark, said in (("parts of=T/128 far=17 types=window minus=sparsek", "17: no edge of the buckets of positions, which are 1, 4, 12, 16, 129"), ("parts of=T/128 pairs=window:sparsek@5", "5: no edge"),
                           ("positions of=T/128 edges=1,13 pairs=window:sparsek", "13: no edge"), ("recall of=T/128 types=window beyond=10", "10: no edge of the buckets of recall"),
                           ("positions of=T/128 edges=1 pairs=window:sparsek@vall", "no run of T at 128"), ("parts of=T/128 pairs=window", "window: want two types"), ("parts of=T/128 pairs=window:sparsak", "the grid has no type sparsak")):
            expect(page(f, mark, code=2, results=placed_study())[1], said)
        rows = rows_of(page(f, "parts of=T/128 types=window minus=sparsek", results=placed_study())[0])
        assert "what comes with 16 and more" in rows[0], rows  # 12 and 4 rows are what the reference holds
        rows = rows_of(page(f, "losses of=T/128 types=all columns=near,far,far_val", results=placed_study())[0])
    assert list(rows[0])[1] == "saw at most 11" and {row["type"]: row["saw at most 11"] for row in rows} == {"SparseK": "", "window": gap(*near, 4)}, rows


def add_gain(result, more):
    first = result["evaluations"]["test"]["context"][0]
    for one in first["documents"]:
        one["nll"] += more * one["tokens"]


def test_recall_gain_and_beyond():
    with Folder(prepared=False) as f:
        rows = rows_of(page(f, "recall of=T/128 types=sparsek,window beyond=9", results=placed_study())[0])
        assert rows[0]["9-32"] == "3.0000" and rows[0]["33 and more"] == "7.0000" and rows[0]["from 9 on, minus SparseK"] == "", rows
        assert rows[1]["from 9 on, minus SparseK"].startswith("+0.5400 [") and rows[1]["type"] == "window (3 seeds)", rows  # 30 and 10 targets, half a nat and 0.02 a seed
        rows = rows_of(page(f, "recall of=T/128 types=window beyond=33", results=placed_study())[0])
        assert rows[0]["from 33 on, minus SparseK"].startswith("+0.5400 [") and rows[0]["the same on val"].startswith("+0.5400 ["), rows
        rows = rows_of(page(f, "gain of=T/128 evaluation=context from=16 types=window,sparsek")[0])
        assert {row["gain from 16"] for row in rows} == {"0.0100"} and [row["p against the reference's"] == "" for row in rows] == [row["type"].startswith("SparseK") for row in rows]
        expect(page(f, "gain of=T/128 evaluation=context from=17 types=sparsek", code=2)[1], "from=17: context has 16, 128")
        expect(page(f, "gain of=T/128 evaluation=context from=128 types=sparsek", code=2)[1], "from=128: context has 16, 128")
        turned = [r for r in study() if r["stage"] != "turn"] + [made("turn", kind, seed, 3.0 + seed, source="dense-T-128-full-s1") for kind in ("full", "sparsek") for seed in (1, 2, 3)]
        for result in turned[-3:]:  # gains of 0.01, 0.03 and 0.05 that are the dense model's and 0.005 more: told apart by pairs alone
            add_gain(result, 0.02 * (result["seed"] - 1) + 0.005 + 0.0001 * result["seed"])
        for result in turned[-6:-3]:
            add_gain(result, 0.02 * (result["seed"] - 1))
        row = rows_of(page(f, "gain of=turn evaluation=context from=16 types=sparsek", results=turned)[0])[0]
        assert float(row["p against the reference's"].replace("< ", "")) <= 0.001, row
        whole = study()
        for result in whole:  # evaluations of less detail
            for one in result["evaluations"].get("test", {}).get("context", []):
                del one["documents"]
            for one in result["evaluations"].get("test", {}).get("books", []):
                del one["recall"]
        expect(page(f, "gain of=T/128 evaluation=context from=16 types=sparsek", code=2, results=whole)[1], "context has no losses of single documents")
        expect(page(f, "recall of=T/128 types=window beyond=9", code=2, results=whole)[1], "9: no edge of the buckets of recall, which are not there")
        expect(page(f, "gain of=T/128 evaluation=contexts from=16 types=sparsek", code=2)[1], "has contexts on test")
        rows = rows_of(page(f, "beyond of=T/128 evaluation=context types=window,hard")[0])
    assert rows[0]["type"] == "hard gates (1 seed)" and rows[0]["lost, each training"] == "-0.010" and rows[1]["lost, each training"].count("-0.010") == 5, rows


def test_wall_clock_and_probes():
    with Folder(prepared=False) as f:
        rows = rows_of(page(f, "wall_clock of=T/128 types=sparsek,full,window")[0])
        # Alone on a device: full at 500 tokens/s, SparseK at 250; the other types' own trainings, 1,000 tokens/s, end first, after 4 s.
        assert [row["type"] for row in rows] == ["window", "full", "SparseK"] and list(rows[0])[1] == "128, after 4.0 s: M tokens", rows
        # SparseK has 1,000 tokens by then, full 2,000: 5 - tokens / 2,000 + loss.
        assert rows[2]["loss"] == "7.5000" and rows[2]["minus the reference's [95 % over seeds]"] == "reference" and rows[1]["loss"] == "7.0050", rows
        rows = rows_of(page(f, 'probes types=full,moba+window,sparsek,linear "to copy=copy/64/4"')[0])
        assert rows == [{"right answers, %": "to copy", "chance": "13", "full": "100", "window": "30", "SparseK": "100", "linear": ""}], rows
        more = {**compare_made.copied("wide", 0.5), "context": "far", "name": "probes-T-far-wide-s1"}
        row = rows_of(page(f, 'probes types=window+wide "to copy=copy/64/4" "from afar=far/64/4"', results=study() + [more])[0])
        assert row == [{"right answers, %": "to copy", "chance": "13", "window or wide window": "30"}, {"right answers, %": "from afar", "chance": "13", "window or wide window": "50"}], row
        expect(page(f, 'probes types=full "to copy=copy/64/5"', code=2)[1], "no answer at 64 tokens, 5 items")
        expect(page(f, 'probes types=full "to copy=cup/64/5"', code=2)[1], "want PROBE/LENGTH/ITEMS of one of copy")
        expect(page(f, 'probes types=moba "to copy=copy/64/4"', code=2)[1], "none of these types has run copy; sparsek, window, full have")
        expect(page(f, "wall_clock of=T/128 types=full", code=2, results=[made("a", "full", 1, 3.0)])[1], "fewer than two types have a curve and a speed")


# -- marks --------------------------------------------------------------------------------------------------------------------------------------------
def test_check_changes_nothing_and_tells_what_differs():
    with Folder(prepared=False) as f:
        text, said = page(f, "losses of=T/128 types=window columns=loss", "losses of=T/128 types=full columns=loss")
        expect(said, "page.md: 6 lines of tables are new")
        expect(again(f, "--check")[1], "every table is what out says")
        wrong = text.replace("| window | 3.3", "| window | 3.4", 1)
        assert wrong != text
        (f.path / "page.md").write_text(wrong)
        after, said = again(f, "--check", code=1)
        assert after == wrong
        expect(said, "-| window | 3.4", "+| window | 3.3")
        assert again(f)[0] == text


def test_bad_marks_are_refused():
    with Folder(prepared=False) as f:
        for mark, said in (("loss of=T/128", "there is no table loss; there are losses, pairs"), ("losses types=full", "of= is missing"), ("losses of=T/64", "of=T/64: no finished runs; there are T/128/0.004M, T/256/0.08M, turn"),
                           ("losses of=T/128 types=full colours=red", "not asked for by this table: colours"), ("losses of=T/128 types=full columns=mean", "columns=mean: there are seeds"), ("several split=test", "no rows"), ("losses of=T/128 types=sparsekk", "the grid has no type sparsekk; it has full, window"), ("losses of=T/128 types=full split=vall", "split=vall: the grid has val, test"),
                           ("losses of=T/128 of=turn", "of= is given twice"), ("recall of=T/128 types=full beyond=x", "beyond=x: want a number"), ("losses of=T/128 types=full far=3", "not asked for by this table: far"), ("losses of=T/128 full", '"full": want key=value'),
                           ('losses "of=T/128', "No closing quotation")):
            expect(page(f, mark, code=2)[1], said, "page.md", mark)
        (f.path / "page.md").write_text("No mark.\n")
        expect(again(f, code=2)[1], "0 of 0 marks")
        (f.path / "page.md").write_text("<!-- table: losses of=T/128 --> and more\n")
        expect(again(f, code=2)[1], "0 of 1 marks")
        (f.path / "page.md").write_text("  <!-- table: losses of=T/128 -->\n")
        expect(again(f, code=2)[1], "0 of 1 marks")


def test_a_table_need_not_follow_at_once_nor_end_the_line():
    with Folder(prepared=False) as f:
        whole, _ = page(f, "losses of=T/128 types=window columns=loss")
        for begin, end in (("\n\n", "\n\nThe end.\n"), ("\n", "")):
            (f.path / "page.md").write_text(f"<!-- table: losses of=T/128 types=window columns=loss -->{begin}| old |\n|---|\n| row |{end}")
            text = again(f)[0]
            assert "old" not in text and "| row |" not in text and rows_of(text) == rows_of(whole) and text.rstrip("\n").endswith(end.rstrip("\n")), text
            assert text.startswith("<!-- table: losses of=T/128 types=window columns=loss -->" + begin + "| type |"), text
            expect(again(f, "--check")[1], "every table is what out says")
        (f.path / "page.md").write_text("<!-- table: losses of=T/128 types=window columns=loss -->\n\nWords.\n")
        assert again(f)[0].endswith(" |\n\nWords.\n")


def test_runs_that_diverged_or_differ_in_tokens_are_not_averaged():
    with Folder(prepared=False) as f:
        lost = made("a", "window", 6, 3.1)
        for one in (lost["evaluations"]["test"]["books"][0], *lost["evaluations"]["test"]["books"][0]["documents"]):
            one["loss"] = one["nll"] = None
        expect(page(f, "losses of=T/128 types=window", code=2, results=study() + [lost])[1], "a-T-128-window-s6: books on test is not finite")
        longer = made("far", "full", 9, 2.0)
        longer["plan"]["tokens"] = 8000000
        expect(page(f, "losses of=T/128 types=full", code=2, results=study() + [longer])[1], "of=T/128: which; there are T/128/0.004M, T/128/8M")
        rows = rows_of(page(f, "losses of=T/128/8M types=full columns=seeds", results=study() + [longer])[0])
    assert rows == [{"type": "full", "seeds": "1"}], rows


def test_the_study_says_what_its_results_say():
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if "\n<!-- table: " in page.read_text(encoding="utf-8")]
    assert {"comparison.md", "comparison_fewer.md"} <= {page.name for page in pages}, pages
    for page in pages:
        done = subprocess.run([sys.executable, str(ROOT / "scripts" / "compare_page.py"), str(page), str(ROOT / "bench/results/comparison"), "--check"],
                              capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


main(globals())
