"""The report of the comparison: its statistics against numbers made by hand and by simulation, its tables on made-up results."""
import math
import os
import pathlib
import random
import subprocess
import sys
import types

from compare_made import made, report, study, table
from harness import Folder, expect, main

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
from comparison import goals, pairs, stats, tables  # noqa: E402

BOOKS = 12


# -- statistics ---------------------------------------------------------------------------------------------------------------------------------------
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
    assert stats.draws(12, 20) == stats.draws.__wrapped__(12, 20)


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


def test_student_against_its_tables():
    for degrees, quantile in ((1, 12.7062), (2, 4.30265), (3, 3.18245), (4, 2.77645), (9, 2.26216), (10, 2.22814), (30, 2.04227), (120, 1.97993)):
        assert abs(stats.student_quantile(degrees) - quantile) < 6e-5 * quantile, degrees
        assert abs(stats.student_p(quantile, degrees) - 0.05) < 1e-5, degrees
    assert abs(stats.student_p(-2, 3) - 0.139326) < 1e-6 and stats.student_p(0, 7) == 1 and abs(stats.student_p(8, 4) - 0.0013238) < 1e-6
    assert abs(stats.student_p(4.2, 2.5) - stats.student_p(-4.2, 2.5)) == 0 and stats.student_p(4.2, 3) < stats.student_p(4.2, 2.5) < stats.student_p(4.2, 2)
    # Means 2 and 5, variances of them 1 / 3 and 4 / 3: degrees (5 / 3)^2 / ((1 / 3)^2 / 2 + (4 / 3)^2 / 2) = 50 / 17, t = -3 / sqrt(5 / 3).
    low, high, p = stats.welch([1, 2, 3], [3, 5, 7])
    assert abs((low + high) / 2 + 3) < 1e-12 and abs(p - stats.student_p(3 / math.sqrt(5 / 3), 50 / 17)) < 1e-12 and 0.10 < p < 0.11, (low, high, p)
    assert abs((high - low) / 2 - stats.student_quantile(50 / 17) * math.sqrt(5 / 3)) < 1e-9
    same = stats.welch([1, 2, 3, 4], [2, 3, 4, 5])  # equal sizes and variances: Student's own t, six degrees
    assert abs(same[2] - stats.student_p(1 / math.sqrt(2 * 5 / 3 / 4), 6)) < 1e-12
    low, high, p = stats.one_sample([1, 2, 3])  # mean 2, error sqrt(1 / 3), two degrees
    assert abs((low + high) / 2 - 2) < 1e-12 and abs((high - low) / 2 - 4.30265 / math.sqrt(3)) < 1e-4 and abs(p - stats.student_p(math.sqrt(12), 2)) < 1e-12
    assert stats.one_sample([1]) == (None, None, None) and stats.one_sample([2, 2]) == (2, 2, 0.0) and stats.one_sample([0, 0])[2] == 1
    assert stats.welch([1], [1, 2]) == (None, None, None) and stats.welch([2, 2], [1, 1]) == (1, 1, 0.0) and stats.welch([0, 0], [0, 0])[2] == 1



def trainings(rng, seeds, gap, level):
    """{seed: [sum a book]} of two types as the study's first runs vary: a training 0.009 nat, a book in a training 0.007, a type on a book 0.004. level: of
    the books."""
    made = []
    for shift in (gap, 0.0):
        taste = [rng.gauss(0, 0.004) for _ in range(BOOKS)]  # 0.006 between two types
        runs = {}
        for seed in range(1, seeds + 1):
            came_out = rng.gauss(0, 0.009)
            runs[seed] = [3.7 + book + shift + own + came_out + rng.gauss(0, 0.007) for book, own in zip(level, taste)]
        made.append(runs)
    return made


def rejected(cases, seeds, gap, rng):
    """How many of so many cases count as different: (by books and seeds, by books alone)."""
    counts, level, ones = stats.draws(BOOKS, 1000), [rng.gauss(0, 0.15) for _ in range(BOOKS)], [1] * BOOKS
    both = books = 0
    for _ in range(cases):
        difference = stats.compare(counts, *trainings(rng, seeds, gap, level), ones)
        both += difference.verdict(difference.p) in ("better", "worse")
        books += difference.books[0] > 0 or difference.books[1] < 0
    return both, books


def test_type_against_itself_is_not_different():
    rng = random.Random(11)
    for seeds in (3, 5):
        both, books = rejected(1000, seeds, 0.0, rng)
        assert both <= 50 + 1.96 * math.sqrt(1000 * 0.05 * 0.95), (seeds, both)
        assert books >= 400, (seeds, books)  # the books alone take the noise of a training for a difference


def test_true_difference_is_found():
    both, _ = rejected(300, 5, 0.03, random.Random(12))
    assert both >= 0.85 * 300, both


def test_verdict_wants_books_and_seeds():
    counts, ones = stats.draws(BOOKS, 2000), [1] * BOOKS
    base = {seed: [3.0 + 0.1 * (book % 3) for book in range(BOOKS)] for seed in range(1, 6)}

    def verdict(of_seed, of_book, seeds=5):
        other = {seed: [value + of_seed[seed - 1] + of_book[book] for book, value in enumerate(base[seed])] for seed in range(1, seeds + 1)}
        found = stats.compare(counts, other, base, ones)
        return found, found.verdict(found.p)

    flat, even = [0] * BOOKS, [0.02, 0.021, 0.019, 0.02, 0.02]
    assert verdict(even, flat)[1] == "worse" and verdict([-x for x in even], flat)[1] == "better"
    by_books, word = verdict([0.08, 0.0, 0.02, -0.02, 0.02], flat)
    assert word == "not decided" and by_books.books[0] > 0 and by_books.seeds[0] < 0
    by_seeds, word = verdict(even, [0.5 if book % 2 else -0.5 for book in range(BOOKS)])
    assert word == "not decided" and by_seeds.seeds[0] > 0 and by_seeds.books[0] < 0
    assert by_seeds.p > 0.5 and by_books.p > 0.2
    assert verdict(even, flat, seeds=2)[1] == "too few seeds" and verdict(even, flat, seeds=1)[1] == "one seed"
    assert verdict(even, flat, seeds=2)[0].p is None


def test_runs_from_one_checkpoint_are_paired():
    counts, ones = stats.draws(BOOKS, 2000), [1] * BOOKS
    base = {seed: [3.0 + 0.2 * seed] * BOOKS for seed in (1, 2, 3)}  # the checkpoints differ by 0.2 nat, what was made of them by 0.01
    other = {seed: [value + 0.01 + 0.0001 * seed for value in base[seed]] for seed in base}
    assert stats.compare(counts, other, base, ones).p > 0.5 and stats.compare(counts, other, base, ones, paired=True).p < 0.001
    one = stats.compare(counts, {1: other[1], 9: other[2]}, base, ones, paired=True)  # one seed in common
    assert one.counted == (1, 1) and one.p is None and abs(one.value - 0.0101) < 1e-12
    assert stats.compare(counts, {9: other[2]}, base, ones, paired=True).p is None
    for converted in (True, False):  # tables pair those runs and no others
        group = types.SimpleNamespace(reference="base", converted=converted)
        assert (tables.differences(group, {"base": base, "other": other}, counts, ones)["other"].p < 0.001) == converted


# -- tables on made-up results ------------------------------------------------------------------------------------------------------------------------
def test_tables_by_section():
    with Folder(prepared=False) as f:
        text = report(f, study(), [("a", "128", "linear")])
        constant = {row["type"]: row for row in table(text, "Loss on test (6 books), types of constant cache")}
        assert set(constant) == {"SparseK", "window", "linear"} and constant["SparseK"]["difference"] == "reference"
        assert constant["window"]["against the reference"] == "worse" and constant["window"]["difference"] == "+0.0500"
        assert constant["linear"]["against the reference"] == "too few seeds" and constant["linear"]["p"] == "" and constant["linear"]["seeds"] == "2"
        growing = {row["type"]: row for row in table(text, "Loss on test (6 books), types whose cache grows")}
        assert set(growing) == {"SparseK", "full", "MoBA"} and growing["MoBA"]["against the reference"] == "better" and growing["MoBA"]["cached rows"] == "128"
        assert [row["type"] for row in table(text, "Loss on test (6 books), ablations")] == ["SparseK", "hard gates"]
        assert table(text, "Loss on test (6 books), controls")[-1]["type"] == "wide window"
        assert {row["type"] for row in table(text, "Loss on test (6 books), from a dense checkpoint")} == {"full", "SparseK", "window"}
        assert next(row for row in table(text, "Loss on test (6 books), from a dense") if row["type"] == "full")["difference"] == "reference"
        # All of the gain of a context is the same here: no difference of differences.
        gain = {row["type"]: row for row in table(text, "Context gain: context (test)")}
        assert gain["window (5 seeds)"]["more gain than the reference"] in ("+0.0000", "-0.0000") and gain["window (5 seeds)"]["gain"] == "0.0100"
        recall = table(text, "Loss of repeated bigrams against SparseK (test)")
        assert next(row for row in recall if row["type"] == "window (5 seeds)")["1-8"].startswith("+0.0500, books [+0.0500, +0.0500], seeds ["), recall
        assert table(text, "What is selected")[0]["band_over_k"] == "1.500"


def test_speeds_come_from_the_runs_that_measure_them():
    with Folder(prepared=False) as f:
        text = report(f, study(), [("speed", "128", "window")])
        costs = {row["type"]: row for row in table(text, "Parameters, compute")}
        assert (costs["full"]["training tokens/s"], costs["full"]["measured in"], costs["full"]["training s"]) == ("500", "stage speed", "8.0")
        assert (costs["MoBA"]["training tokens/s"], costs["MoBA"]["measured in"]) == ("1,000", "its own runs")  # its speed run was not alone
        speed = {row["type"]: row for row in table(text, "Training speed")}
        assert set(speed) == {"full", "SparseK"} and speed["SparseK"]["relative"] == "0.50"
        expect(text, "Not run: window at T 128 (waits)", "Left out, since they shared their device: speed-T-128-moba-s1")
        # The window ends its 4,000 tokens after 4 s; at 250 tokens a second SparseK has seen 1,000 then.
        clock = {row["type"]: row for row in table(text, "Matched wall-clock: validation loss after 4.0 s")}
        assert clock["SparseK"]["M tokens by then"] == "0.001" and clock["SparseK"]["validation loss"] == "7.5000", clock["SparseK"]
        assert clock["window"]["validation loss"] == "6.0500" and clock["window"]["difference"] == "-1.4500"


def test_goals_say_what_was_reached():
    with Folder(prepared=False) as f:
        text = report(f, study(), [("a", "128", "linear"), ("far", "256", "full")])
        rows = table(text, "Goals")
        state = {(row["goal"].split(" ")[0], row["where"]): row["state"] for row in rows}
        assert state["better", "T at 128: window"] == "reached" and state["better", "T at 128: linear"] == "open: too few seeds"
        assert state["within", "T at 128: full"] == "reached" and state["within", "T at 128: wide window"] == "reached"
        assert state["none:", "T at 128: MoBA (all keys)"] == "rival better" and state["every", "T at 256"] == "not run"
        converted = next(row for row in rows if row["goal"].startswith("converted"))
        assert converted["state"] == "by the mean; open: one seed" and "+2.02 %" in converted["measured"] and "5.0 %" in converted["measured"], converted
        copies = [row for row in rows if row["goal"].startswith("selective copy")]
        assert [row["state"] for row in copies] == ["reached", "missed"], copies
        # The other way round: far behind full, and a window that wins.
        worse = [made("a", kind, seed, loss) for kind, loss in (("sparsek", 3.1), ("full", 3.0), ("window", 3.0)) for seed in range(1, 6)]
    with Folder(prepared=False) as f:
        state = {(row["goal"].split(" ")[0], row["where"]): row["state"] for row in table(report(f, worse, [("a", "128", "linear")]), "Goals")}
        assert state["better", "T at 128: window"] == "missed: the rival is better" and state["within", "T at 128: full"] == "missed"
        assert state["better", "T at 128: linear"] == "not run (waits)"
    near = stats.Difference(0.005, (0.0, 0.02), (0.001, 0.008), 5, 0.01)
    assert goals.state_within(near, 0.01) == "by the mean, not by the intervals" and goals.turned(near).books == (-0.02, 0.0)


def test_pairs_of_the_grid_are_tested_among_themselves():
    with Folder(prepared=False) as f:
        results = [made("a", kind, seed, loss) for kind, loss in (("sparsek", 3.0), ("hard", 3.02), ("random", 3.05)) for seed in (1, 2, 3, 4)]
        row, = table(report(f, results), "Pairs (test)")
        assert row["mean"] == "-0.0300" and row["the first"] == "better" and row["difference"] == "hard gates (4 seeds) minus random rows (4 seeds)", row
        assert row["p"] == row["Holm p"]
    with Folder(prepared=False) as f:
        assert "Pairs (test)" not in report(f, [r for r in results if r["type"] != "random"])
    # Two of them: Holm's correction doubles the smaller p. Converted runs are paired: what a seed adds to both does not count.
    group = tables.groups_of(results, ["a"], "sparsek", {})[0]
    found = pairs.pairs_table(group, "test", "books", [["hard", "random"], ["sparsek", "hard"], ["full", "random"]], 2000).rows
    assert len(found) == 2 and float(found[0][5]) == 2 * float(found[0][4])
    turned = [made("turn", kind, seed, loss + 0.3 * seed, source="dense-1") for kind, loss in (("full", 2.9), ("hard", 3.0), ("random", 3.02)) for seed in (1, 2, 3)]
    group = tables.groups_of(turned, ["turn"], "sparsek", {"turn": "full"})[0]
    row, = pairs.pairs_table(group, "test", "books", [["hard", "random"]], 2000).rows
    assert row[6] == "better" and row[1] == "-0.0200", row


def with_parts(kind, seed, stage="a", near=3.0, far=2.9, specs=None, **more):
    """A result whose loss is `near` while at most 11 tokens were seen, `far` from 16 on, and something else between."""
    result = made(stage, kind, seed, 3.0, **more)
    if specs:
        result["config"] = {**result["config"], "model": {"attention": {"kinds": specs}}}
    losses = ((1, 8, near + 0.001 * seed), (8, 12, near + 0.001 * seed), (12, 16, 7.0 + seed), (16, 32, far + 0.001 * seed), (32, None, far + 0.001 * seed))
    for evaluation in result["evaluations"]["test"]["books"]:
        evaluation["positions"] = [{"from": a, "to": b, "tokens": 10, "nll": 10 * loss, "loss": loss} for a, b, loss in losses]
    return result


def memory(results, reference="sparsek", sources=None):
    found = pairs.memory_table(tables.groups_of(results, ["a", "turn"], reference, sources or {})[0], "test", "books")
    return found and (found.columns, {row[0]: row[1:] for row in found.rows})


def test_what_can_be_memory_is_what_comes_with_far_text():
    kinds = {"sparsek": (3.0, 2.9), "full": (3.1, 3.0), "window": (3.0, 3.05)}
    results = [with_parts(kind, seed, near=near, far=far) for kind, (near, far) in kinds.items() for seed in (1, 2, 3)]
    columns, rows = memory(results)
    assert columns[1] == "saw at most 11" and list(rows) == ["full (3 seeds)", "window (3 seeds)"]
    assert rows["full (3 seeds)"][0] == "+0.1000" and rows["full (3 seeds)"][2] == "+0.0000"  # as much worse everywhere: no memory
    assert rows["window (3 seeds)"][0] == "+0.0000" and rows["window (3 seeds)"][2:] == ["+0.1500", "[+0.1500, +0.1500]"]
    assert rows["full (3 seeds)"][1].startswith("[+0.09") and memory([r for r in results if r["seed"] < 3])[1]["full (2 seeds)"][1] == "too few seeds"
    with Folder(prepared=False) as f:
        assert len(table(report(f, results), "What can be memory (test)")) == 2
    # As configurations may write it: 12 rows and 4 as 1Ki and 1Ki, beyond all of these buckets.
    large = {"a": {"type": "sparsek", "k": "1Ki", "window": "1Ki"}}
    assert memory([with_parts(kind, 1, specs=large) for kind in kinds]) is None
    # Of a reference without a window, or of layers of two kinds, nobody can say what it sees.
    assert memory(results, reference="full") is None
    two = {"a": {"type": "sparsek", "k": 4, "window": 12}, "b": {"type": "sparsek", "k": 4, "window": 12}}
    assert memory([with_parts(kind, 1, specs=two) for kind in kinds]) is None
    # Converted runs: seeds by pairs. What a seed adds to both takes nothing from how sure the difference is.
    turned = [with_parts(kind, seed, "turn", near=near + 0.3 * seed, source="dense-1", specs={"a": {"type": "sparsek", "k": 4, "window": 12}})
              for kind, near in (("full", 3.0), ("hard", 3.1)) for seed in (1, 2, 3)]
    _, rows = memory(turned, reference="full", sources={"turn": "full"})
    assert rows["hard (3 seeds)" if "hard (3 seeds)" in rows else "hard gates (3 seeds)"][:2] == ["+0.1000", "[+0.1000, +0.1000]"]


def test_a_loss_that_is_not_finite_is_named():
    with Folder(prepared=False) as f:
        results = [made("a", kind, seed, 3.0) for kind in ("sparsek", "window") for seed in (1, 2, 3)]
        for found in results[-1]["evaluations"].values():
            found["books"][0]["documents"][0]["nll"] = found["books"][0]["loss"] = None
        text = report(f, results, [("a", "128", "full")])
        assert next(row for row in table(text, "Loss on test (6 books), types of constant") if row["type"] == "window")["seeds"] == "2"
        expect(text, "a-T-128-window-s3 | diverged", "a-T-128-full-s1 | waits | for its turn", "Not run here, or not to their end: full (waits)")


def test_committed_results_make_the_report():
    with Folder(prepared=False) as f:
        done = subprocess.run([sys.executable, str(ROOT / "scripts" / "compare_report.py"), str(ROOT / "bench/results/comparison"), "-o", "x.html", "--markdown", "x.md"], cwd=f.path,
                              capture_output=True, text=True, timeout=500, env=dict(os.environ))
        assert done.returncode == 0, done.stderr[-3000:]
        expect((f.path / "x.md").read_text(), "| goal | where |", "XS at 4k", "window 1024")
        assert tables.SECTIONS["constant"] in (f.path / "x.md").read_text()


main(globals())
