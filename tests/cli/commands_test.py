"""Each command once, as a user would: it works, and prints what the documentation says."""
import json
import os
import pathlib
import pty
import signal
import subprocess
import sys
import time

from harness import CONFIG, SIEVE, Folder, expect, main, until


def test_train_evaluate_generate():
    with Folder() as f:
        r = f.run("pretrain", "tiny.yaml", "train.steps=40", "sample.every=20")
        expect(r.err, "plan", "params", "step", "loss", "tok/s")
        assert "\r" not in r.err
        run = f.path / "run"
        for name in ("config.yaml", "config.input", "manifest.json", "status.json", "metrics.jsonl", "metrics.csv", "tb", "logs/rank0000.log", "samples",
                     "checkpoints/latest/manifest.json", "checkpoints/latest/model.safetensors", "checkpoints/latest/sparsek.safetensors",
                     "checkpoints/latest/optimizer.safetensors", "checkpoints/latest/state.json", "checkpoints/best"):
            assert (run / name).exists(), name
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss/train"] for row in rows if "loss/train" in row]
        assert losses[-1] < losses[0] - 0.3, losses
        assert json.loads((run / "status.json").read_text())["status"] == "finished"
        for method, option in (("chunked", "eval.score_from=0.5"), ("sliding", "eval.stride=16")):
            report = json.loads(f.run("eval", "run", "eval.data=data/val", f"eval.method={method}", option, "--json").out)
            expect(json.dumps(report), method, "token_ppl", "word_ppl", "byte_ppl", "bits_per_byte")
        expect(f.run("eval", "run", "eval.data=text/00.txt").out, "token-ppl", "bits/byte")
        one = ["eval.data=text/00.txt", "eval.max_tokens=200", "eval.method=sliding"]
        expect(f.run("eval", "run", *one, "eval.stride=1").out, "stride 1,")  # a token, not the whole context
        expect(f.run("eval", "run", *one, "eval.stride=0.5").out, "stride 32,")
        a = f.run("generate", "run", "--prompt", "some ", "--max-new-tokens", "100", "--seed", "3").out
        b = f.run("generate", "run", "--prompt", "some ", "--max-new-tokens", "100", "--seed", "3").out
        assert a == b and len(a) > 20
        info = json.loads(f.run("generate", "run", "--prompt", "x", "--max-new-tokens", "50", "--json").out)
        longer = json.loads(f.run("generate", "run", "--prompt", "x", "--max-new-tokens", "300", "--json").out)
        assert info["cache_rows"] == longer["cache_rows"] == 2 * 2 * (8 + 8), (info["cache_rows"], longer["cache_rows"])


def test_evaluation_by_document():
    with Folder() as f:
        f.run("pretrain", "tiny.yaml", "train.steps=8")
        recall = "eval.recall=[4, 16]"
        command = ["eval", "run", "eval.data=text", "eval.per_document=true", "eval.position_scale=log2", recall]
        table = f.run(*command).out
        expect(table, "(chunked, ctx 64, documents apart)", "1-4: ", "5-16: ", "> 16: ", "none: ")
        (result,) = json.loads(f.run(*command, "--json").out)["results"]
        assert json.loads((f.path / "run/eval/text-chunked-64-per-document.json").read_text())["nll"] == result["nll"]
        documents = result["documents"]
        assert [d["file"] for d in documents] == [f"{i:02}.txt" for i in range(12)] and [d["index"] for d in documents] == list(range(12))
        for d in documents:  # all bytes but the first; the separator behind the text is a target too
            assert d["bytes"] == (f.path / "text" / d["file"]).stat().st_size - 1 == d["tokens"] - 1, d
        assert [p["from"] for p in result["positions"]] == [1, 2, 4, 8, 16, 32, 64]
        assert [(b["from"], b["to"]) for b in result["recall"]] == [(1, 5), (5, 17), (17, None), (None, None)]
        for parts in (documents, result["positions"], result["recall"], [b for d in documents for b in d["recall"]]):
            assert sum(part["tokens"] for part in parts) == result["tokens"]
            assert abs(sum(part["nll"] for part in parts) / result["nll"] - 1) < 1e-12
        tail = json.loads(f.run("eval", "run", "eval.data=text", "eval.method=tail", "eval.tail=8", "eval.span=64", "--json").out)["results"]
        assert [r["protocol"]["context"] for r in tail] == [8, 16, 32, 64]
        assert all([(d["index"], d["tokens"]) for d in r["documents"]] == [(d["index"], (d["tokens"]) // 64 * 8) for d in documents] for r in tail)
        assert all((f.path / f"run/eval/text-tail-{context}.json").exists() for context in (8, 16, 32, 64))
        expect(f.run("eval", "run", "eval.data=text", "eval.method=tail", code=3).err, "eval.span", "16385 tokens")


def test_named_protocols_say_what_separate_calls_say():
    with Folder() as f:
        f.run("pretrain", "tiny.yaml", "train.steps=8")
        protocols = {"books": {"per_document": True, "position_scale": "log2", "recall": [4, 16]}, "context.64": {"method": "tail", "tail": 8, "span": 64},
                     "far-off": {"method": "sliding", "contexts": [32, 64], "stride": 0.25, "max_tokens": 300}}
        data = [{"name": "val", "path": "data/val"}, {"name": "texts", "path": "text"}]
        group = {"checkpoints": ["run"], "data": data, "batch": 4, "protocols": [{"name": name, **keys} for name, keys in protocols.items()]}
        f.config(json.dumps({"schema": 1, "eval": group}), "evaluations.yaml")
        results = json.loads(f.run("eval", "evaluations.yaml", "--json").out)["results"]
        names = [(r["data"], r["protocol_name"], r["protocol"]["context"]) for r in results]
        contexts = [("books", 64), ("context.64", 8), ("context.64", 16), ("context.64", 32), ("context.64", 64), ("far-off", 32), ("far-off", 64)]
        assert names == [(d["name"], *rest) for d in data for rest in contexts], names
        for d, name, context in names:
            assert (f.path / f"run/eval/{d}-{name}-{context}.json").exists()
        alone = []
        for d in data:
            for keys in protocols.values():
                settings = [f"eval.{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in keys.items()]
                alone += json.loads(f.run("eval", "run", f"eval.data=[{json.dumps(d)}]", "eval.batch=4", *settings, "--json").out)["results"]
        assert all("protocol_name" not in r for r in alone)
        assert alone == [{key: value for key, value in r.items() if key != "protocol_name"} for r in results]  # to the last digit
        table = f.run("eval", "evaluations.yaml", "--fail-if", "val.books.ppl > 1e9", "--fail-if", "texts.context.64.ctx16.ppl > 1e9").out
        expect(table, "tiny · texts · far-off · tokens 300")
        expect(f.run("eval", "evaluations.yaml", "--fail-if", "texts.far-off.ctx32.ppl > 1", code=7).err, "texts.far-off.ctx32.ppl > 1")
        expect(f.run("eval", "evaluations.yaml", "--fail-if", "books.ppl > 1", code=2).err, "fits several", "tiny.val.books.ctx64")
        # On the command line too, and two checkpoints: the text is shared.
        (one,) = json.loads(f.run("eval", "run", "eval.data=text", 'eval.protocols=[{"name": "a", "contexts": [32]}]', "--json").out)["results"]
        both = json.loads(f.run("eval", "run", "eval.checkpoints=[run/checkpoints/latest]", "eval.data=text", "eval.contexts=[32]", "--json").out)["results"]
        assert one["protocol_name"] == "a" and len(both) == 2 and one["nll"] == both[0]["nll"] == both[1]["nll"]


def test_dense_checkpoint_becomes_sparse():
    with Folder() as f:
        f.config(CONFIG.replace("sk: {type: sparsek, k: 8, window: 8}", "full: {type: full}").replace("[sk]", "[full]").replace("dir: run", "dir: dense"), "dense.yaml")
        f.run("pretrain", "dense.yaml", "train.steps=20")
        more = ["init_from={path: dense, allow_new: ['*.sparsek.*']}", "train.steps=4", "eval.at_start=true"]
        expect(f.run("finetune", "tiny.yaml", *more[1:], "init_from={path: dense}", code=3).err, "sparsek")
        f.run("finetune", "tiny.yaml", *more, "model.attention.kinds.sk={type: sparsek, k: 60, window: 8}")
        first = [json.loads(line) for line in (f.path / "run" / "metrics.jsonl").read_text().splitlines()][0]
        dense = [json.loads(line) for line in (f.path / "dense" / "metrics.jsonl").read_text().splitlines() if "loss/val" in line][-1]
        assert abs(first["loss/val"] - dense["loss/val"]) < 1e-4, (first, dense)  # k + W >= T: the dense loss at step 0


def test_plan_and_config():
    with Folder() as f:
        plan = json.loads(f.run("plan", "tiny.yaml", "--json", "--peak-tflops", "1").out)
        assert plan["steps"] == 12
        there = json.loads(f.run("plan", "tiny.yaml", "--json", "--gpu", "h200", "device.precision=bf16").out)  # no GPU is needed for that
        assert there["peak_tflops"] == 989, there["peak_tflops"]
        expect(f.run("plan", "tiny.yaml", "--gpu", "h2000", code=2).err, "h2000", "h200")
        expect(f.run("plan", "tiny.yaml", "device.type=cuda", code=2).err, "--gpu")
        expect(f.run("config", "show", "tiny.yaml", "train.steps=9", env={"SIEVE_train__optimizer__lr": "1e-2"}).out, "steps: 9", "command line",
               "lr: 0.01", "SIEVE_train__optimizer__lr", "tiny.yaml:")
        expect(f.run("config", "explain", "train.schedule.warmup").out, "default")
        expect(f.run("config", "explain", "eval.stride").out, "sieve eval: sliding", "default  0.5")
        expect(f.run("config", "explain", "eval").out, "eval.every", "eval.method")
        expect(f.run("pretrain", "tiny.yaml", "--dry-run").err, "plan")
        assert not (f.path / "run").exists()


def test_dry_run_of_the_demo_writes_nothing():
    with Folder(prepared=False) as f:
        before = sorted(f.path.rglob("*"))
        expect(f.run("pretrain", "--dry-run", "log.peak_tflops=1").err, "demo   no text yet", "plan", "300 steps")
        expect(f.run("pretrain", "--print-config", "log.peak_tflops=1").out, "data/demo-bytes")
        expect(f.run("pretrain", "--dry-run", "train.epochs=1", code=2).err, "train.epochs", "train.steps")
        assert sorted(f.path.rglob("*")) == before


def test_configuration_reference_is_current():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    with Folder(prepared=False) as f:
        assert f.run("config", "explain", "--markdown").out == page.read_text(), "run: sieve config explain --markdown > docs/configuration.md"


def test_shipped_configurations_check():
    configs = pathlib.Path(__file__).resolve().parents[2] / "configs"
    with Folder(prepared=False) as f:
        for path in sorted(configs.glob("*.yaml")):
            f.run("config", "check", path)
            f.run("plan", path, "model.vocab_size=50304", "--gpu", "h200")
        for path in sorted((configs / "probes").glob("*.yaml")):
            f.run("config", "check", path)
        # Lengths and patterns that the files leave to the command line.
        for name in ("gpt2-124m-sparsek", "gpt2-124m-mixed", "gpt2-355m-sparsek"):
            for change in ("data.seq_len=1024", "data.seq_len=131072", "model.attention.pattern=[swa,sk]", "model.attention.pattern=[sk,sk,full]"):
                f.run("plan", configs / f"{name}.yaml", "model.vocab_size=50304", "--gpu", "h200", change)


def test_tokenizer_round_trip():
    with Folder(prepared=False) as f:
        f.run("tokenizer", "train", "text", "-o", "tok/tokenizer.json", "--vocab-size", "400")
        ids = f.run("tokenizer", "encode", "tok/tokenizer.json", "hello, wörld").out
        assert f.run("tokenizer", "decode", "tok/tokenizer.json", ids).out == "hello, wörld"
        f.run("data", "prepare", "text", "-o", "bpe", "--tokenizer", "tok/tokenizer.json", "--val-fraction", "0.2")
        expect(f.run("data", "inspect", "bpe/train").out, "bpe")
        f.run("data", "verify", "bpe/train", "bpe/val")


def test_bench_attention():
    small = ["--lengths", "64,1k", "--rows", "2", "--k", "16", "--window", "16", "--seconds", "0.001"]
    plot = pathlib.Path(__file__).resolve().parents[2] / "scripts" / "plot_attention.py"
    with Folder(prepared=False) as f:
        table = f.run("bench", "attention", *small, "--csv", "a.csv", "--json", "a.json").out
        expect(table, "| full | 1024 |", "| sliding_window | 64 |", "| sparsek | 1024 |", "as fast as full attention")
        assert [row["T"] for row in json.loads((f.path / "a.json").read_text())["results"]] == [64, 1024] * 3
        expect(f.run("bench", "attention", *small, "--patterns", "full,dense", code=2).err, "dense", "sliding_window")
        expect(f.run("bench", "attention", "--device", "cpu", "--k", "0", code=2).err, "k 0")
        drawn = subprocess.run([sys.executable, plot, "a.csv", "-o", "a.png"], cwd=f.path, capture_output=True, text=True)
        assert (f.path / "a.png").exists() if drawn.returncode == 0 else "matplotlib is missing" in drawn.stderr, drawn.stderr
        (f.path / "b.json").write_text("{}")
        refused = subprocess.run([sys.executable, plot, "b.json", "-o", "b.png"], cwd=f.path, capture_output=True, text=True)
        assert refused.returncode == 1 and "not a table" in refused.stderr, refused.stderr


def test_bench_decode_and_verified_text():
    with Folder() as f:
        small = ["--context", "40", "--warmup", "3"]
        expect(f.run("bench", "decode", "tiny.yaml", *small, "--tokens", "20", "--batch", "2").out, "B = 2, context 40, 20 tokens", "us/token", "rows", "weights")
        short, long = (json.loads(f.run("bench", "decode", "tiny.yaml", *small, "--tokens", n, "--json").out) for n in ("20", "90"))
        assert short["us_per_token_min"] <= short["us_per_token"] <= short["us_per_token_max"] and short["cache_rows"] > 0, short
        assert short["cache_rows"] == long["cache_rows"] and short["cache_bytes"] == long["cache_bytes"], (short, long)
        expect(f.run("bench", "decode", "tiny.yaml", "--batch", "0", code=2).err, "batch")
        f.run("pretrain", "tiny.yaml")
        expect(f.run("bench", "decode", "run", *small, "--tokens", "9").out, "us/token")
        text = ["generate", "run", "--prompt", "a", "--max-new-tokens", "50", "--temperature", "0"]
        expect(f.run(*text, "--verify").err, "tokens against the full forward: 0 differ")
        checked = json.loads(f.run(*text, "--verify", "--json", "--precision", "fp32").out)
        assert checked["verified"]["passed"] and checked["verified"]["checked"] == len(checked["ids"]), checked
        expect(f.run("generate", "run", "--verify", code=2).err, "temperature 0")
        expect(f.run("generate", "run", "--precision", "fp8", code=2).err, "fp8", "bf16")


def test_validation_is_shown_where_it_was_measured():
    with Folder() as f:
        shown = f.run("pretrain", "tiny.yaml", "train.steps=8", "eval.every=4", "log.every=2", "log.sinks=[console]").err
        rows = {int(line.split()[1].split("/")[0]): " val " in line for line in shown.splitlines() if line.startswith("step") and " loss " in line and "validation" not in line}
        assert rows == {2: False, 4: True, 6: False, 8: True}, shown


def test_no_share_of_a_peak_is_above_it():
    with Folder() as f:
        for peak, shown in (("1e6", True), ("1e-6", False)):  # TFLOP/s; far above and far below what this machine does
            rows = f.run("pretrain", "tiny.yaml", f"run.dir=p{peak}", f"log.peak_tflops={peak}", "log.sinks=[console]").err
            assert " tok/s" in rows and (" mfu " in rows) == shown, rows


def test_bench_trained_scores_and_report():
    scripts = pathlib.Path(__file__).resolve().parents[2] / "scripts"
    with Folder() as f:
        f.run("pretrain", "tiny.yaml", "log.per_layer=true", "sample.every=6", "sample.max_new_tokens=5")
        expect(f.run("bench", "scores", "run", "--data", "data/val", "--rows", "2", "-o", "s.safetensors").out, "8 rows of 64 scores from 2 layers", "--k 8 --window 8")
        attention = ["bench", "attention", "--patterns", "sparsek", "--lengths", "128", "--k", "8", "--window", "8", "--seconds", "0.001"]
        expect(f.run(*attention, "--scores", "s.safetensors").out, "scores=s.safetensors", "| sparsek | 128 |")
        expect(f.run("bench", "scores", "run", "--data", "data/val", "--layer", "2", "-o", "t", code=2).err, "the model has 2 layers")
        expect(f.run("bench", "scores", "run", "--data", "data/val", "--length", "1M", "-o", "t", code=3).err, "fewer than --length")
        (f.path / "val.json").write_text(f.run("eval", "run", "eval.data=data/val", "--json").out)
        page = subprocess.run([sys.executable, scripts / "report.py", "run", "-o", "page.md", "--evaluation", "val.json"], cwd=f.path, capture_output=True, text=True)
        assert page.returncode == 0, page.stderr
        expect((f.path / "page.md").read_text(), "| step | validation loss |", "| 1 | ", "Evaluation on", "Samples, step_00000012")
        refused = subprocess.run([sys.executable, scripts / "report.py", "data", "-o", "page.md"], cwd=f.path, capture_output=True, text=True)
        assert refused.returncode == 1 and "no metrics" in refused.stderr, refused.stderr
        scaling = subprocess.run([sys.executable, scripts / "scaling.py", pathlib.Path(SIEVE).parent, "out", "--config", "tiny.yaml", "--lengths", "32,64", "--tokens", "64",
                                  "--from-length", "32", "--steps", "1", "--warmup", "1", "model.n_layers=1"], cwd=f.path, capture_output=True, text=True)
        assert scaling.returncode == 0, scaling.stderr
        expect(scaling.stdout, "| 32 | 2 |", "| 64 | 1 |", "slope of log(time)")
        assert len(json.loads((f.path / "out" / "scaling.json").read_text())["results"]) == 2


PROBE = """\
schema: 1
device: {type: cpu}
model: {n_layers: 1, d_model: 16, n_heads: 2, attention: {kinds: {sk: {type: sparsek, k: 8, window: 8}}, pattern: [sk]}}
probe: {task: passkey, length: 64, items: 3, steps: 6, batch: 4, schedule: {warmup: 2}, eval: {examples: 5, depths: [0, 1], every: 3}}
"""


def test_probe():
    with Folder(prepared=False) as f:
        f.config(PROBE, "probe.yaml")
        f.run("config", "check", "probe.yaml")
        expect(f.run("probe", "probe.yaml").out, "passkey", "sparsek k 8 window 8", "chance 6.2 %", "depth", "100 %", "whole rows")
        report = json.loads(f.run("probe", "probe.yaml", "--json").out)
        assert [(r["length"], r["items"], r["depth"], r["asked"], r["rows"]["asked"]) for r in report["results"]] == [(64, 3, 0, 15, 5), (64, 3, 1, 15, 5)], report
        assert [point["step"] for point in report["curve"]] == [3, 6] and all(0 <= point["accuracy"] <= 1 for point in report["curve"])
        assert report["parameters"] > 0 and report["config"]["probe"]["symbols"] == 16
        same = json.loads(f.run("probe", "probe.yaml", "--json", "probe.micro_batch=2", ranks=2).out)
        alone = json.loads(f.run("probe", "probe.yaml", "--json", "probe.micro_batch=2").out)
        assert [same[key] for key in ("results", "curve")] == [alone[key] for key in ("results", "curve")]
        expect(f.run("probe", "probe.yaml", "--fail-if", "accuracy < 2", code=7).err, "fail-if", "accuracy < 2")
        expect(f.run("probe", "probe.yaml", "--fail-if", "luck < 2", code=2).err, "luck", "accuracy, rows")
        expect(f.run("probe", "probe.yaml", "probe.lr=1e30", "probe.grad_clip=0", code=5).err, "not finite", "probe.lr")
        expect(f.run("config", "explain", "probe.marked").out, "mqar", "default  auto")


def test_help_teaches():
    with Folder(prepared=False) as f:
        top = f.run("--help").out
        for command in ("pretrain", "finetune", "eval", "generate", "probe", "plan", "data", "tokenizer", "ckpt", "config", "bench", "doctor", "help"):
            expect(top, command)
            f.run(command, "--help")
        for topic in ("start", "config", "resume", "perplexity", "sparsek", "exit-codes"):
            assert len(f.run("help", topic).out) > 100
        expect(f.run("--version").out, "sieve")
        doctor = f.run("doctor").out
        expect(doctor, "file system", "writes, fsyncs, renames and links", "locks         exclusive", "HDF5 1.", "zstd 1.", "yaml-cpp 0.")
        assert "unknown" not in doctor, doctor
        assert not list(f.path.glob(".sieve-doctor*"))


def stderr_on_a_terminal(f, *words, env=None):
    reader, writer = pty.openpty()
    process = subprocess.Popen([SIEVE, *words], cwd=f.path, stderr=writer, env={**os.environ, "TERM": "xterm", **(env or {})})
    os.close(writer)
    text = b""
    try:
        while piece := os.read(reader, 4096):
            text += piece
    except OSError:  # the other side has closed
        pass
    os.close(reader)
    process.wait()
    return text


def test_colours():
    with Folder(prepared=False) as f:
        bad = ["config", "check", "nowhere.yaml"]
        assert "\033[" not in f.run(*bad, code=2).err
        assert "\033[" in f.run(*bad, "--color", "always", code=2).err
        assert "\033[" in f.run(*bad, "--color", "always", code=2, env={"NO_COLOR": "1"}).err
        assert b"\033[" in stderr_on_a_terminal(f, *bad, env={"NO_COLOR": ""})
        assert b"\033[" not in stderr_on_a_terminal(f, *bad, env={"NO_COLOR": "1"})
        assert b"\033[" not in stderr_on_a_terminal(f, *bad, "--color", "never", env={"NO_COLOR": ""})


def test_one_run_at_a_time_in_a_folder():
    with Folder() as f:
        first = subprocess.Popen([SIEVE, "pretrain", "tiny.yaml", "train.steps=100000", "--resume", "auto"], cwd=f.path, stderr=subprocess.PIPE, text=True)
        until(lambda: (f.path / "run" / "metrics.jsonl").exists())
        expect(f.run("pretrain", "tiny.yaml", "train.steps=100000", "--resume", "auto", code=2).err, "run.dir", f"in use by process {first.pid} on ", "-o")
        first.send_signal(signal.SIGKILL)
        first.wait()
        f.run("pretrain", "tiny.yaml", "train.steps=100000", "--resume", "auto", "run.max_time=1s", code=75)
        assert not (f.path / "run" / ".lock").exists()
        f.run("pretrain", "tiny.yaml", "data.train=[nowhere]", "run.dir=fresh", code=3)
        assert not (f.path / "fresh").exists()


def test_options_without_effect_warn():
    with Folder() as f:
        f.config(CONFIG.replace("window: 8}", "window: 8, clamp_distance: 4}"))
        for command in (["config", "check", "tiny.yaml"], ["plan", "tiny.yaml", "--peak-tflops", "1"], ["pretrain", "tiny.yaml", "--dry-run"]):
            expect(f.run(*command).err, "tiny.yaml:10:", "warning: model.attention.kinds.sk.clamp_distance: has no effect", "positions: clamp")


def test_status_after_a_hang_under_mpirun():
    with Folder() as f:
        command = ["mpirun", "--oversubscribe", "-n", "2", SIEVE, "pretrain", "tiny.yaml", "train.steps=1000000", "parallel.timeout=2s", "log.every=1"]
        job = subprocess.Popen(command, cwd=f.path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        status = f.path / "run" / "status.json"
        until(lambda: status.exists() and json.loads(status.read_text())["step"] > 0)
        rank0 = json.loads(status.read_text())["pid"]
        ranks = subprocess.run(["ps", "-o", "pid=", "--ppid", str(job.pid)], capture_output=True, text=True).stdout.split()
        other = next(int(pid) for pid in ranks if int(pid) != rank0)
        os.kill(other, signal.SIGSTOP)
        start = time.time()
        try:
            _, err = job.communicate(timeout=60)
        finally:
            try:
                os.kill(other, signal.SIGKILL)
            except ProcessLookupError:
                pass
        assert job.returncode == 6 and time.time() - start < 14, (job.returncode, time.time() - start, err[-2000:])
        last = json.loads(status.read_text())
        assert last["status"] == "failed" and last["exit_code"] == 6, last
        expect(last["message"], "rank 0: no progress for 2 s", "step")


if __name__ == "__main__":
    main(globals())
