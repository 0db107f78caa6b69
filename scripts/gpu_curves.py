#!/usr/bin/env python3
"""Training on a GPU beside training on the CPU, from packed programs alone:  python3 scripts/gpu_curves.py sieve/bin OUT [curves] [kills] [moves]
curves  a tiny dense and a tiny SparseK model, 300 steps, two seeds: fp32 on the CPU, fp32 and bf16 on the GPU; a table of loss differences
kills   a deterministic GPU run, killed 20 times at random moments and resumed: the model file is that of the uninterrupted run
moves   a checkpoint of the GPU goes on on the CPU, and one of the CPU on the GPU
Environment: CURVE_STEPS, KILLS, KILL_STEPS, GPU (a name for device.type: `cpu` tries the script itself where there is no GPU)."""
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

GPU = os.environ.get("GPU", "cuda")
STEPS = int(os.environ.get("CURVE_STEPS", "300"))
KILLS = int(os.environ.get("KILLS", "20"))
KILL_STEPS = int(os.environ.get("KILL_STEPS", "600"))
CONFIG = """\
schema: 1
run: {name: curve, seed: 1}
model:
  arch: llama
  n_layers: 2
  d_model: 128
  n_heads: 2
  attention: {kinds: {a: %s}, pattern: [a]}
data: {train: [%s], val: [], seq_len: 256}
train:
  steps: 300
  global_batch: 2Ki
  micro_batch: 8
  optimizer: {lr: 2e-3, weight_decay: 0.1}
  schedule: {type: cosine, warmup: 20, min_lr: 1e-4}
checkpoint: {every: 100}
log: {every: 1, sinks: [jsonl]}
"""
KINDS = {"dense": "{type: full}", "sparsek": "{type: sparsek, k: 32, window: 32}"}
# Losses in nats. On one CPU, sums in another order move the mean of the last 20 steps by 1e-7 (dense) and 1e-4 (SparseK, where a rounding may
# select another key), single steps by up to 3e-3; bf16 moves the mean by 1e-3; another seed by 6e-3 and more.
FINAL = {"fp32": 2e-3, "bf16": 5e-3}
EARLY = 1e-4  # fp32, first 10 steps: rounding has not yet been amplified
SINGLE = 2e-2  # fp32, any step


class Runs:
    def __init__(self, bin_folder, out):
        self.sieve = str(pathlib.Path(bin_folder).resolve() / "sieve")
        self.out = pathlib.Path(out).resolve()
        self.work = self.out / "curves"
        shutil.rmtree(self.work, ignore_errors=True)
        self.work.mkdir(parents=True)
        data = self.work / "data"
        self.run("data", "prepare", str(self.text()), "-o", str(data), "--allow-invalid-utf8")
        for name, kind in KINDS.items():
            (self.work / f"{name}.yaml").write_text(CONFIG % (kind, data / "train"))

    def text(self):
        """A megabyte of C++ headers, which every machine with a compiler has."""
        folder = self.work / "text"
        folder.mkdir()
        size = 0
        for path in sorted(p for p in pathlib.Path("/usr/include").rglob("*") if p.is_file() and p.suffix in ("", ".h", ".tcc")):
            if size > 1 << 20:
                break
            shutil.copy(path, folder / f"{size:08}.txt")
            size += path.stat().st_size
        return folder

    def run(self, *words):
        process = subprocess.run([self.sieve, *words], cwd=self.work, capture_output=True, text=True, errors="replace")
        if process.returncode:
            raise RuntimeError(f"{' '.join(words)}\nexit code {process.returncode}\n{process.stderr[-2000:]}")

    def words(self, model, name, *more):
        return ["pretrain", f"{model}.yaml", "-o", name, *more]

    def train(self, model, name, device, *more):
        begin = time.time()
        self.run(*self.words(model, name, f"device.type={device}", *more))
        return time.time() - begin

    def losses(self, name):
        rows = (json.loads(line) for line in (self.work / name / "metrics.jsonl").read_text().splitlines())
        return {row["step"]: row["loss/train"] for row in rows if "loss/train" in row}

    def checkpoints(self, name):
        return self.work / name / "checkpoints"

    def hash(self, name):
        return hashlib.sha256((self.checkpoints(name) / "latest" / "model.safetensors").read_bytes()).hexdigest()


def differences(a, b):
    steps = sorted(set(a) & set(b))
    return [abs(a[s] - b[s]) for s in steps], sum(a[s] - b[s] for s in steps[-20:]) / max(1, len(steps[-20:]))


def curves(runs):
    bad = 0
    print("| model | curves | final loss | difference, last 20 | largest | largest, first 10 |\n|---|---|---|---|---|---|")

    def row(model, what, a, b, final=None, early=None):
        nonlocal bad
        every, last = differences(a, b)
        wrong = len(every) < STEPS or (final is not None and not abs(last) <= final) or (early is not None and not (max(every[:10]) <= early and max(every) <= SINGLE))
        bad += wrong
        print(f"| {model} | {what} | {a[max(a)]:.4f} | {last:+.5f} | {max(every):.5f} | {max(every[:10]):.1e} |{' <- TOO FAR' if wrong else ''}", flush=True)

    for model in KINDS:
        cpu = {}
        for seed in (1, 2):
            got = {}
            for device, precision in (("cpu", "fp32"), (GPU, "fp32"), (GPU, "bf16")):
                name = f"{model}-{seed}-{device}-{precision}" + ("-gpu" if GPU == "cpu" and (device, precision) in got else "")
                runs.train(model, name, device, f"run.seed={seed}", f"device.precision={precision}", f"train.steps={STEPS}")
                got[device, precision] = runs.losses(name)
            cpu[seed] = got["cpu", "fp32"]
            row(model, f"seed {seed}: GPU fp32, CPU fp32", got[GPU, "fp32"], cpu[seed], FINAL["fp32"], EARLY)
            row(model, f"seed {seed}: GPU bf16, GPU fp32", got[GPU, "bf16"], got[GPU, "fp32"], FINAL["bf16"])
        row(model, "seed 2, seed 1: CPU fp32", cpu[2], cpu[1])
    return bad


def kills(runs):
    more = [f"train.steps={KILL_STEPS}", "run.deterministic=true", f"checkpoint.every={max(1, KILL_STEPS // 30)}", f"device.type={GPU}"]
    seconds = runs.train("sparsek", "whole", GPU, *more)
    whole = runs.hash("whole")
    runs.train("sparsek", "again", GPU, *more)
    print(f"{KILL_STEPS} steps in {seconds:.1f} s, model {whole[:16]}; a second run {'equals it' if runs.hash('again') == whole else 'DIFFERS'}")
    bad = runs.hash("again") != whole
    rng, killed, resumed, finished = random.Random(7), 0, 0, 0
    command = [runs.sieve, *runs.words("sparsek", "killed", "--resume", "auto", *more)]
    latest = runs.checkpoints("killed") / "latest"
    while True:
        resumed += latest.exists()
        process = subprocess.Popen(command, cwd=runs.work, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        try:
            _, errors = process.communicate(timeout=rng.uniform(0.1, 0.9) * seconds if killed < KILLS else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.communicate()
            killed += 1
            continue
        if process.returncode:
            raise RuntimeError(f"exit code {process.returncode} after {killed} kills\n{errors[-2000:]}")
        finished += 1
        if runs.hash("killed") != whole:
            print(f"after {killed} kills the model DIFFERS")
            bad = True
        steps = list(runs.losses("killed"))
        bad = bad or steps != sorted(set(steps)) or len(steps) != KILL_STEPS
        if killed == KILLS:
            break
        shutil.rmtree(runs.work / "killed")  # finished before the kills were spent: once more
    print(f"{killed} kills, {resumed} starts with a checkpoint to resume from, {finished} runs finished: {'equal' if not bad else 'WRONG'}")
    return bad + (resumed < KILLS // 3)


def moves(runs):
    bad = 0
    for model in KINDS:
        for way, (first, second) in enumerate(((GPU, "cpu"), ("cpu", GPU))):
            name = f"moved-{model}-{way}"
            steps = ("train.steps=120", "checkpoint.every=60", "run.deterministic=true")
            runs.train(model, name, first, *steps)
            before = runs.losses(name)
            folder = runs.checkpoints(name)
            shutil.rmtree(folder / "step_00000120")
            (folder / "latest").unlink()
            (folder / "latest").symlink_to("step_00000060")
            runs.train(model, name, second, *steps, "--resume", "auto")
            after = runs.losses(name)
            every, _ = differences({s: v for s, v in after.items() if s > 60}, before)
            wrong = len(every) != 60 or not max(every[:10]) <= EARLY or not max(every) <= SINGLE
            bad += wrong
            print(f"{model}: a checkpoint of {first} goes on on {second}: losses differ by {max(every[:10]):.1e} in the first 10 steps, "
                  f"{max(every):.1e} in 60{' <- TOO FAR' if wrong else ''}", flush=True)
    return bad


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    runs = Runs(sys.argv[1], sys.argv[2])
    bad = 0
    for part in sys.argv[3:] or ["curves", "kills", "moves"]:
        begin = time.time()
        bad += {"curves": curves, "kills": kills, "moves": moves}[part](runs)
        print(f"{part}: {time.time() - begin:.0f} s", flush=True)
    return 1 if bad else 0


sys.exit(main())
