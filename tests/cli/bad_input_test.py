"""Every kind of bad input: a message that says what, where and what to do, and the right exit code."""
import os
import pathlib
import resource
import shutil

from harness import CONFIG, Folder, expect, main


def test_misspelt_key():
    with Folder(prepared=False) as f:
        f.config(CONFIG.replace("window: 8", "windwo: 8"))
        r = f.run("config", "check", "tiny.yaml", code=2)
        expect(r.err, "tiny.yaml:10:", "model.attention.kinds.sk.windwo", 'did you mean "window"?')
        expect(f.run("pretrain", "tiny.yaml", code=2).err, "windwo")
        expect(f.run("pretrain", "tiny.yaml", "train.stepz=4", code=2).err, "train.stepz", "steps")


def test_several_mistakes_are_several_lines():
    with Folder(prepared=False) as f:
        f.config(CONFIG.replace("window: 8", "windwo: 8").replace("steps: 12", "stepz: 12"))
        lines = f.run("config", "check", "tiny.yaml", code=2).err.splitlines()
        places = [line for line in lines if line.startswith("tiny.yaml:")]
        assert len(places) == 2 and places[0].startswith("tiny.yaml:10:33: error: model") and places[1].startswith("tiny.yaml:14:3: error: train.stepz"), lines
        assert all(line.startswith("  known keys here: ") for line in lines if line not in places), lines
        # The same for relations between keys, in the order of the file.
        f.config(CONFIG.replace("k: 8", "k: 65").replace("global_batch: 512", "global_batch: 500"))
        lines = f.run("pretrain", "tiny.yaml", "log.sinks=[cvs]", code=2).err.splitlines()
        assert len(lines) == 3, lines
        for line, (place, key) in zip(lines, [("tiny.yaml:10:", ".sk.k"), ("tiny.yaml:15:", "train.global_batch"), ("command line:", "log.sinks")]):
            assert line.startswith(place) and key in line, lines
        f.config("schema: 1\n", "nothing.yaml")
        expect(f.run("config", "check", "nothing.yaml", code=2).err, "nothing.yaml:1:1: error: train: give exactly one of")


def test_doubled_key():
    with Folder(prepared=False) as f:
        f.config(CONFIG.replace("  n_layers: 2\n", "  n_layers: 2\n  n_layers: 4\n"))
        expect(f.run("config", "check", "tiny.yaml", code=2).err, "tiny.yaml:6:", "n_layers")


def test_wrong_type_and_range():
    with Folder(prepared=False) as f:
        expect(f.run("config", "check", "tiny.yaml", "train.steps=many", code=2).err, "train.steps", "command line")
        expect(f.run("config", "check", "tiny.yaml", "model.n_layers=0", code=2).err, "model.n_layers")
        expect(f.run("config", "check", "nowhere.yaml", code=2).err, "nowhere.yaml")


def test_k_larger_than_the_context():
    with Folder(prepared=False) as f:
        f.config(CONFIG.replace("k: 8", "k: 65"))
        expect(f.run("config", "check", "tiny.yaml", code=2).err, "tiny.yaml:10:", "model.attention.kinds.sk.k", "65", "64")


def test_probes_that_make_no_sense():
    with Folder(prepared=False) as f:
        f.config("schema: 1\ndevice: {type: cpu}\nmodel: {n_layers: 1, d_model: 16, n_heads: 2}\n"
                 "probe: {task: long_copy, length: 64, items: 40, keys: 4, batch: 3, micro_batch: 2, steps: 10}\n", "probe.yaml")
        lines = f.run("probe", "probe.yaml", code=2).err
        expect(lines, "probe.yaml:4:", "probe.length: 64 tokens do not hold 40 items of long_copy; they take at least 80", "probe.keys: has no effect with probe.task=long_copy",
               "probe.batch: 3 rows do not divide", "give a multiple of 2", "probe.schedule.warmup")
        good = ("probe.items=4", "probe.batch=4", "probe.schedule.warmup=2")
        for change, parts in ((("probe.task=selective_cpoy",), ["probe.task", "selective_copy"]), (("probe.task=mqar", "probe.items=5"), ["probe.items: 5 pairs", "probe.keys is 4"]),
                              (("probe.task=selective_copy", "probe.eval.items=[8]"), ["probe.eval.items: 8", "raise probe.items"]),
                              (("probe.task=passkey", "probe.eval.depths=[1.5]"), ["probe.eval.depths: 1.5"]), (("probe.task=mqar", "model.vocab_size=7"), ["model.vocab_size: 7"]),
                              (("probe.task=mqar", "model.arch=gpt2", "probe.eval.lengths=[128]"), ["probe.eval.lengths: 128", "learned positions"]),
                              (("probe.task=mqar", "probe.freeze=[nothing*]"), ["probe.freeze", "nothing*"]), (("probe.task=mqar", "model.max_seq=32"), ["probe.length = 64"])):
            expect(f.run("probe", "probe.yaml", *good, *change, code=2).err, *parts)
        expect(f.run("probe", "absent.yaml", code=2).err, "absent.yaml")


def test_gpu_that_is_not_there():
    with Folder() as f:
        expect(f.run("pretrain", "tiny.yaml", "device.type=cuda", code=2).err, "device.type", "cuda", "auto or cpu")
        assert not (f.path / "run").exists()
        expect(f.run("pretrain", "tiny.yaml", "device.type=cdua", code=2).err, "device.type", "cdua", "cuda")
        f.run("pretrain", "tiny.yaml", "train.steps=4", "device.type=auto")
        expect(f.run("eval", "run", "--device", "cuda", code=2).err, "cuda")
        expect(f.run("generate", "run", "--prompt", "a", "--device", "gpu", code=2).err, '"gpu"', "cuda")


def test_batch_that_does_not_divide():
    with Folder(prepared=False) as f:
        r = f.run("config", "check", "tiny.yaml", "train.global_batch=500", code=2)
        expect(r.err, "train.global_batch", "500", "512")
        f.run("config", "check", "tiny.yaml", "--world-size", "4")
        expect(f.run("config", "check", "tiny.yaml", "--world-size", "3", code=2).err, "global_batch", "3")


def test_missing_shard():
    with Folder() as f:
        expect(f.run("pretrain", "tiny.yaml", "data.train=[nowhere/train]", code=3).err, "nowhere/train")
        shutil.rmtree(f.path / "data" / "val")
        expect(f.run("pretrain", "tiny.yaml", code=3).err, "data/val")


def test_truncated_shard():
    with Folder() as f:
        shard = next((f.path / "data" / "train").glob("*.h5"))
        size = shard.stat().st_size
        os.truncate(shard, size - 100)
        expect(f.run("pretrain", "tiny.yaml", code=3).err, shard.name, str(size - 100))
        expect(f.run("data", "verify", "data/train", code=3).err, shard.name)


def test_shard_with_a_flipped_byte():
    with Folder() as f:
        shard = next((f.path / "data" / "train").glob("*.h5"))
        data = bytearray(shard.read_bytes())
        data[len(data) // 2] ^= 1
        shard.write_bytes(data)
        expect(f.run("data", "verify", "data/train", code=3).err, shard.name)


def test_tokenizer_that_does_not_match():
    with Folder() as f:
        f.run("tokenizer", "train", "text", "-o", "tok/tokenizer.json", "--vocab-size", "300")
        r = f.run("pretrain", "tiny.yaml", "tokenizer.type=hf_json", "tokenizer.path=tok/tokenizer.json", code=3)
        expect(r.err, "tokenizer", "data/train")


def test_tokenizer_that_is_missing():
    with Folder() as f:
        f.config(CONFIG.replace("data: {train", "tokenizer: {type: hf_json, path: tok/tokenizer.json}\ndata: {train"))
        for command in ("plan", "pretrain"):
            expect(f.run(command, "tiny.yaml", code=3).err, "tiny.yaml:12:28: error: tokenizer.path: there is no file tok/tokenizer.json",
                   "sieve tokenizer train TEXT -o tok/tokenizer.json --vocab-size 8192")
        assert not (f.path / "run").exists()
        expect(f.run("plan", "tiny.yaml", "--peak-tflops", "1", code=3).err, "model.vocab_size=8192")
        expect(f.run("plan", "tiny.yaml", "--peak-tflops", "1", "model.vocab_size=8192").out, "parameters")
        # The reference size is planned with nothing at hand.
        shipped = pathlib.Path(__file__).resolve().parents[2] / "configs" / "gpt2-124m.yaml"
        expect(f.run("plan", shipped, "--gpu", "h200").out, "parameters            124")


def test_damaged_checkpoint_byte():
    with Folder() as f:
        f.run("pretrain", "tiny.yaml")
        latest = f.path / "run" / "checkpoints" / "step_00000012"
        for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
            data = bytearray((latest / name).read_bytes())
            data[len(data) // 2] ^= 4
            (latest / name).write_bytes(data)
            for r in (f.run("pretrain", "tiny.yaml", "train.steps=16", "--resume", "must", code=3), f.run("eval", "run/checkpoints/step_00000012", code=3),
                      f.run("ckpt", "verify", "run/checkpoints/step_00000012", code=3)):
                expect(r.err, "step_00000012", name)
            expect(f.run("ckpt", "verify", "run/checkpoints/step_00000012", code=3).err, "step_00000008")  # the last good one is offered
            data[len(data) // 2] ^= 4
            (latest / name).write_bytes(data)
        f.run("ckpt", "verify", "run")
        f.run("pretrain", "tiny.yaml", "train.steps=16", "--resume", "run/checkpoints/step_00000008")


def test_full_disk_while_saving():
    with Folder() as f:
        f.run("pretrain", "tiny.yaml")
        before = f.hash()
        full = f.path / "disk-is-full"
        full.write_text("")
        checkpoints = f.path / "run" / "checkpoints"
        env = {"LD_PRELOAD": os.environ["FULL_DISK"], "FULL_DISK_WHEN": str(full), "FULL_DISK_UNDER": str(checkpoints)}
        r = f.run("pretrain", "tiny.yaml", "train.steps=20", "--resume", "must", code=3, env=env)
        expect(r.err, "checkpoints", "No space left on device")
        assert f.hash() == before
        assert not list(checkpoints.glob(".tmp-*")), list(checkpoints.iterdir())
        full.unlink()
        f.run("pretrain", "tiny.yaml", "train.steps=20", "--resume", "must", env=env)


def test_empty_text():
    with Folder(prepared=False) as f:
        (f.path / "empty.txt").write_text("")
        expect(f.run("data", "prepare", "empty.txt", "-o", "out", code=3).err, "empty.txt")
        assert not (f.path / "out" / "train").exists()
        expect(f.run("tokenizer", "train", "empty.txt", "-o", "t.json", code=3).err, "text")


def test_text_shorter_than_one_sequence():
    with Folder(prepared=False) as f:
        (f.path / "short.txt").write_text("forty characters of text, more or less.")
        f.run("data", "prepare", "short.txt", "-o", "data", "--val-fraction", "0.3")
        expect(f.run("pretrain", "tiny.yaml", code=3).err, "data/train", "64")


def test_bytes_that_are_not_utf8():
    with Folder(prepared=False) as f:
        (f.path / "bad.jsonl").write_bytes(b'{"text": "fine"}\n{"text": "br\xffoken"}\n')
        expect(f.run("data", "prepare", "bad.jsonl", "-o", "out", code=3).err, "bad.jsonl, line 2", "UTF-8")
        (f.path / "raw.txt").write_bytes(b"good text\n" + bytes(range(256)) * 8)
        expect(f.run("data", "prepare", "raw.txt", "-o", "raw", code=3).err, "raw.txt", "UTF-8", "--allow-invalid-utf8")
        f.run("data", "prepare", "raw.txt", "-o", "raw", "--allow-invalid-utf8")  # the tokenizers work on bytes
        (f.path / "broken.yaml").write_bytes(b"schema: 1\nrun: {name: \xff}\n")
        expect(f.run("config", "check", "broken.yaml", code=2).err, "broken.yaml", "UTF-8")


def test_json_lines_that_are_not_json():
    with Folder(prepared=False) as f:
        (f.path / "bad.jsonl").write_text('{"text": "fine"}\n{"text": oops}\n')
        expect(f.run("data", "prepare", "bad.jsonl", "-o", "out", code=3).err, "bad.jsonl, line 2")
        (f.path / "bad.jsonl").write_text('{"texts": "fine"}\n')
        expect(f.run("data", "prepare", "bad.jsonl", "-o", "out", code=3).err, "bad.jsonl, line 1", "text")


def test_out_of_memory():
    with Folder() as f:
        limit = 1 << 30  # of the address space: the machine itself would swap or kill first
        few = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "2"}  # their stacks count too, on many cores
        r = f.run("pretrain", "tiny.yaml", "model.d_model=512", "model.n_layers=12", "train.global_batch=8Ki", "train.micro_batch=128",
                  code=4, env=few, before=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)))
        expect(r.err, "out of memory", "weights", "optimizer", "activations", "shrink train.micro_batch=64: ", "shrink train.recompute=")


def test_run_folder_that_is_not_empty():
    with Folder() as f:
        f.run("pretrain", "tiny.yaml", "train.steps=4")
        expect(f.run("pretrain", "tiny.yaml", code=2).err, "run", "--resume")
        expect(f.run("pretrain", "tiny.yaml", "--resume", "must", "model.d_model=64", "run.dir=run", code=2).err, "model.d_model")
        expect(f.run("pretrain", "tiny.yaml", "--resume", "must", "run.dir=elsewhere", code=3).err, "elsewhere")


def test_threshold():
    with Folder() as f:
        f.run("pretrain", "tiny.yaml", "train.steps=4")
        f.run("eval", "run", "--fail-if", "token_ppl > 1e9", "eval.data=data/val")
        expect(f.run("eval", "run", "eval.data=data/val", "--fail-if", "token_ppl > 1", code=7).err, "token_ppl > 1")
        expect(f.run("eval", "run", "eval.data=data/val", "--fail-if", "ppl_token > 1", code=2).err, "ppl_token")


def test_evaluation_options_of_another_protocol():
    with Folder(prepared=False) as f:
        expect(f.run("eval", "run", "eval.stride=0.5", code=2).err, "command line: error: eval.stride", "eval.method=chunked", "eval.method=sliding")
        expect(f.run("eval", "run", "eval.score_from=0.5", "eval.method=sliding", code=2).err, "eval.score_from", "eval.method=chunked")
        expect(f.run("eval", "run", "eval.stride=1.5", "eval.method=sliding", code=2).err, "eval.stride", "1.5", "tokens")
        expect(f.run("eval", "run", "eval.method=tail", "eval.contexts=[99]", "eval.span=64", "eval.tail=100", code=2).err, "eval.tail", "eval.span, 64")
        expect(f.run("eval", "run", "eval.recall=[9, 3]", "eval.tail=8", code=2).err, "eval.recall", "3 follows 9", "eval.tail", "eval.method=tail")
        f.config("schema: 1\neval: {checkpoints: [run], method: sliding, stride: 0.5}\n", "eval.yaml")
        f.run("config", "check", "eval.yaml", "eval.method=chunked")  # the nearer choice sets the file's option aside
        f.run("config", "check", "eval.yaml", "eval.method=chunked", "eval.stride=0.25", code=2)


def test_unknown_command_and_flag():
    with Folder(prepared=False) as f:
        for words_typed, meant in ((["pretrian"], "pretrain"), (["config", "chekc", "tiny.yaml"], "check"), (["pretrain", "--resum", "auto"], "--resume"),
                                   (["eval", "run", "--fail_if=x > 1"], "--fail-if"), (["--verison"], "--version")):
            expect(f.run(*words_typed, code=2).err, f'did you mean "{meant}"?')
        expect(f.run("fly", code=2).err, "unknown command fly\n")
        expect(f.run("pretrain", "--quux", code=2).err, "--quux")
        expect(f.run("config", "explain", "train.stepz", code=2).err, "train.steps")
        expect(f.run("generate", "nowhere", "--prompt", "x", code=3).err, "nowhere")


if __name__ == "__main__":
    main(globals())
