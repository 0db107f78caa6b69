"""One hash: the trained model's file does not depend on ranks, accumulation, threads, or on how often the run was killed."""
import hashlib
import os
import random
import signal
import subprocess
import time

from harness import SIEVE, Folder, expect, main

KILLS = int(os.environ.get("SIEVE_TEST_KILLS", "8"))
STEPS = int(os.environ.get("SIEVE_TEST_STEPS", "60"))


def train(f, name, *more, ranks=0, threads=1):
    f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", f"run.dir={name}", "--threads", threads, *more, ranks=ranks)
    return f.hash(f"{name}/checkpoints/latest")


def test_ranks_accumulation_and_threads():
    with Folder() as f:
        hashes = {
            "1 rank, 4 micro-batches": train(f, "a"),
            "1 rank, 2 threads": train(f, "t2", threads=2),
            "1 rank, 4 threads": train(f, "t4", threads=4),
            "2 ranks, 2 micro-batches": train(f, "r2", ranks=2),
            "4 ranks, 1 micro-batch": train(f, "r4", ranks=4),
            "2 ranks, 2 threads": train(f, "r2t2", ranks=2, threads=2),
        }
        for name, value in hashes.items():
            print(f"{STEPS} steps, {name}: {value}")
        assert len(set(hashes.values())) == 1, hashes
        assert train(f, "other", "run.seed=6") != hashes["1 rank, 4 micro-batches"]


def test_bf16_ranks_and_threads():
    with Folder() as f:
        hashes = {train(f, "a", "device.precision=bf16"), train(f, "b", "device.precision=bf16", threads=2),
                  train(f, "c", "device.precision=bf16", ranks=2)}
        print(f"{STEPS} steps, bf16: {hashes}")
        assert len(hashes) == 1, hashes


def test_moments_shared_by_ranks():
    """ZeRO-1: the same weights, and one checkpoint that any number of ranks continues, sharing or not."""
    with Folder() as f:
        def moments(name):
            return hashlib.sha256((f.path / name / "checkpoints" / "latest" / "optimizer.safetensors").read_bytes()).hexdigest()

        whole = train(f, "whole")
        for ranks in (2, 4):
            assert train(f, f"z{ranks}", "parallel.zero=1", ranks=ranks) == whole, ranks
            assert moments(f"z{ranks}") == moments("whole"), ranks
        f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=moved", "run.max_time=1s", "checkpoint.every=5", "parallel.zero=1", ranks=2, code=None)
        f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=moved", "--resume", "auto", "parallel.zero=1", ranks=4)
        assert f.hash("moved/checkpoints/latest") == whole and moments("moved") == moments("whole")
        late = train(f, "late", "parallel.overlap=false", ranks=2)
        assert late == whole


def test_killed_and_resumed():
    with Folder() as f:
        begin = time.time()
        whole = train(f, "whole")
        whole_seconds = time.time() - begin
        rng = random.Random(int(os.environ.get("SIEVE_TEST_SEED", "1")))
        command = [SIEVE, "pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=killed", "--threads", "1", "--resume", "auto", "checkpoint.every=3"]
        kills = resumed = fruitless = 0
        # Seconds until the kill, at most; longer where the machine is so busy that no checkpoint would be reached in that time.
        span, newest = max(0.6, whole_seconds), None
        deadline = time.time() + 540 + 4 * KILLS
        while kills < KILLS and time.time() < deadline:
            process = subprocess.Popen(command, cwd=f.path, stderr=subprocess.PIPE, text=True)
            try:
                process.wait(rng.uniform(0.01, span))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
                latest = f.path / "killed" / "checkpoints" / "latest"
                resumed += latest.exists()
                reached = os.readlink(latest) if latest.exists() else None
                fruitless = fruitless + 1 if reached == newest else 0
                newest = reached
                if fruitless == 3:
                    span, fruitless = 1.5 * span, 0
                continue
            assert process.returncode == 0, process.stderr.read()
            if f.hash("killed/checkpoints/latest") != whole:
                raise AssertionError(f"after {kills} kills the model differs")
            subprocess.run(["rm", "-rf", f.path / "killed"], check=True)  # finished before the kills were spent: once more
        assert kills == KILLS, kills
        assert resumed >= KILLS // 3, f"only {resumed} of {kills} kills left a checkpoint to resume from"
        f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=killed", "--threads", "1", "--resume", "auto", "checkpoint.every=3")
        assert f.hash("killed/checkpoints/latest") == whole
        print(f"{STEPS} steps, {kills} kills, {resumed} of them with a checkpoint to resume from: {whole}")
        steps = [line.split('"step":')[1].split(",")[0] for line in (f.path / "killed" / "metrics.jsonl").read_text().splitlines()]
        assert len(steps) == len(set(steps)), "a step appears twice in metrics.jsonl"


def test_links_that_a_kill_left_behind_are_put_right():
    """Killed after the last checkpoint and before its links: nothing is left to train, but `latest` and `best` must name what they say."""
    with Folder() as f:
        whole = train(f, "run", "checkpoint.every=6", "checkpoint.keep_last=2", "checkpoint.keep_best=1", "eval.every=6")
        links = f.path / "run" / "checkpoints"
        found = {name: os.readlink(links / name) for name in ("latest", "best")}
        old = next(path.name for path in sorted(links.glob("step_*")) if path.name != found["latest"])
        for name in found:
            (links / name).unlink()
            (links / name).symlink_to(old)
        f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=run", "--resume", "auto", "checkpoint.every=6", "checkpoint.keep_last=2", "checkpoint.keep_best=1", "eval.every=6")
        assert {name: os.readlink(links / name) for name in found} == found and (links / old).exists(), sorted(os.listdir(links))
        assert f.hash("run/checkpoints/latest") == whole


def test_resume_on_other_numbers_of_ranks():
    with Folder() as f:
        whole = train(f, "whole")
        f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=moved", "run.max_time=1s", "checkpoint.every=5", ranks=2, code=None)
        f.run("pretrain", "tiny.yaml", f"train.steps={STEPS}", "run.dir=moved", "--resume", "auto")
        assert f.hash("moved/checkpoints/latest") == whole


def wait_for_rows(path, rows=2, seconds=60):
    """Until training has begun: handlers exist and steps are made."""
    end = time.time() + seconds
    while time.time() < end:
        if path.exists() and len(path.read_text().splitlines()) >= rows:
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} has no {rows} rows after {seconds} s")


def stop_with(f, name, signal_number, code):
    process = subprocess.Popen([SIEVE, "pretrain", "tiny.yaml", "train.steps=100000", f"run.dir={name}"], cwd=f.path, stderr=subprocess.PIPE, text=True)
    wait_for_rows(f.path / name / "metrics.jsonl")
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code, (process.returncode, err[-2000:])
    f.run("ckpt", "verify", name)
    return err


def test_signals_save_and_say_so():
    with Folder() as f:
        stop_with(f, "term", signal.SIGTERM, 75)
        stop_with(f, "usr1", signal.SIGUSR1, 75)
        stop_with(f, "int", signal.SIGINT, 130)
        r = f.run("pretrain", "tiny.yaml", "train.steps=100000", "run.dir=timed", "run.max_time=2s", code=75)
        expect(r.err, "max_time")
        f.run("ckpt", "verify", "timed")


def test_usr1_to_mpirun_saves():
    with Folder() as f:
        process = subprocess.Popen(["mpirun", "--oversubscribe", "-n", "2", SIEVE, "pretrain", "tiny.yaml", "train.steps=100000", "run.dir=m"],
                                   cwd=f.path, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        wait_for_rows(f.path / "m" / "metrics.jsonl")
        process.send_signal(signal.SIGUSR1)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 75, (process.returncode, err[-2000:])
        f.run("ckpt", "verify", "m")


if __name__ == "__main__":
    main(globals())
