"""Each command once, as a user would: it works, and prints what the documentation says."""
import json
import pathlib

from harness import CONFIG, Folder, expect, main


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
        for method in ("chunked", "sliding"):
            report = json.loads(f.run("eval", "run", "eval.data=data/val", f"eval.method={method}", "eval.stride=16", "--json").out)
            expect(json.dumps(report), method, "token_ppl", "word_ppl", "byte_ppl", "bits_per_byte")
        expect(f.run("eval", "run", "eval.data=text/00.txt").out, "token-ppl", "bits/byte")
        a = f.run("generate", "run", "--prompt", "some ", "--max-new-tokens", "100", "--seed", "3").out
        b = f.run("generate", "run", "--prompt", "some ", "--max-new-tokens", "100", "--seed", "3").out
        assert a == b and len(a) > 20
        info = json.loads(f.run("generate", "run", "--prompt", "x", "--max-new-tokens", "50", "--json").out)
        longer = json.loads(f.run("generate", "run", "--prompt", "x", "--max-new-tokens", "300", "--json").out)
        assert info["cache_rows"] == longer["cache_rows"] == 2 * 2 * (8 + 8), (info["cache_rows"], longer["cache_rows"])


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
        expect(f.run("config", "show", "tiny.yaml", "train.steps=9", env={"SIEVE_train__optimizer__lr": "1e-2"}).out, "steps: 9", "command line",
               "lr: 0.01", "SIEVE_train__optimizer__lr", "tiny.yaml:")
        expect(f.run("config", "explain", "train.schedule.warmup").out, "default")
        expect(f.run("pretrain", "tiny.yaml", "--dry-run").err, "plan")
        assert not (f.path / "run").exists()


def test_configuration_reference_is_current():
    page = pathlib.Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
    with Folder(prepared=False) as f:
        assert f.run("config", "explain", "--markdown").out == page.read_text(), "run: sieve config explain --markdown > docs/configuration.md"


def test_shipped_configurations_check():
    configs = pathlib.Path(__file__).resolve().parents[2] / "configs"
    with Folder(prepared=False) as f:
        for path in sorted(configs.glob("*.yaml")):
            f.run("config", "check", path)


def test_tokenizer_round_trip():
    with Folder(prepared=False) as f:
        f.run("tokenizer", "train", "text", "-o", "tok/tokenizer.json", "--vocab-size", "400")
        ids = f.run("tokenizer", "encode", "tok/tokenizer.json", "hello, wörld").out
        assert f.run("tokenizer", "decode", "tok/tokenizer.json", ids).out == "hello, wörld"
        f.run("data", "prepare", "text", "-o", "bpe", "--tokenizer", "tok/tokenizer.json", "--val-fraction", "0.2")
        expect(f.run("data", "inspect", "bpe/train").out, "bpe")
        f.run("data", "verify", "bpe/train", "bpe/val")


def test_help_teaches():
    with Folder(prepared=False) as f:
        top = f.run("--help").out
        for command in ("pretrain", "finetune", "eval", "generate", "plan", "data", "tokenizer", "ckpt", "config", "bench", "doctor", "help"):
            expect(top, command)
            f.run(command, "--help")
        for topic in ("start", "config", "resume", "perplexity", "sparsek", "exit-codes"):
            assert len(f.run("help", topic).out) > 100
        expect(f.run("--version").out, "sieve")
        expect(f.run("doctor").out, "file system", "writes, fsyncs, renames and links")


if __name__ == "__main__":
    main(globals())
