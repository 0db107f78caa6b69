"""Runs the program in a fresh folder and checks what it prints and returns."""
import hashlib
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback

SIEVE = os.environ["SIEVE"]
# Whoever started the tests may have blocked signals or told mpirun to keep them: mpirun would never see, or never forward, SIGUSR1.
signal.pthread_sigmask(signal.SIG_SETMASK, [])
os.environ["OMPI_MCA_ess_base_forward_signals"] = "SIGUSR1"
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # these tests are about the CPU, also on a machine with GPUs


class Result:
    def __init__(self, process):
        self.code, self.out, self.err = process.returncode, process.stdout, process.stderr


def run(*words, code=0, env=None, cwd=None, ranks=0, timeout=300, before=None):
    """sieve WORDS; ranks > 0: under mpirun; before: called in the new process. Fails unless the exit code is `code` (None: any)."""
    command = [SIEVE, *map(str, words)]
    if ranks:
        command = ["mpirun", "--oversubscribe", "-n", str(ranks), *command]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace", cwd=cwd, timeout=timeout, env={**os.environ, **(env or {})},
                             preexec_fn=before)
    result = Result(process)
    if code is not None and result.code != code:
        raise AssertionError(f"{' '.join(command)}\nexit code {result.code}, expected {code}\nstdout: {result.out[-3000:]}\nstderr: {result.err[-3000:]}")
    return result


def expect(text, *parts):
    for part in parts:
        if part not in text:
            raise AssertionError(f"expected {part!r} in:\n{text[-3000:]}")


def until(condition, seconds=60):
    """Waits for condition() to hold."""
    end = time.time() + seconds
    while not condition():
        assert time.time() < end, f"not within {seconds} s"
        time.sleep(0.02)


def words(n, seed=1, vocabulary=200):
    """Text with some structure: random words from a small vocabulary, Zipf-like."""
    rng = random.Random(seed)
    names = ["".join(rng.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(rng.randint(2, 8))) for _ in range(vocabulary)]
    weights = [1 / (i + 1) for i in range(vocabulary)]
    return " ".join(rng.choices(names, weights, k=n))


CONFIG = """\
schema: 1
run: {name: tiny, dir: run, seed: 5}
model:
  arch: llama
  n_layers: 2
  d_model: 32
  n_heads: 2
  attention:
    kinds:
      sk: {type: sparsek, k: 8, window: 8}
    pattern: [sk]
data: {train: [data/train], val: [data/val], seq_len: 64}
train:
  steps: 12
  global_batch: 512
  micro_batch: 2
  optimizer: {lr: 3e-3}
  schedule: {type: cosine, warmup: 2, min_lr: 3e-4}
eval: {every: 6, tokens: 512}
checkpoint: {every: 4}
log: {every: 2}
"""


class Folder:
    """A working folder with prepared data and a small configuration."""

    def __init__(self, prepared=True):
        self.path = pathlib.Path(tempfile.mkdtemp(prefix="sieve-test-"))
        (self.path / "text").mkdir()
        for i in range(12):
            (self.path / "text" / f"{i:02}.txt").write_text(words(400, seed=i))
        self.config(CONFIG)
        if prepared:
            self.run("data", "prepare", "text", "-o", "data", "--val-fraction", "0.2")

    def config(self, text, name="tiny.yaml"):
        (self.path / name).write_text(text)

    def run(self, *args, **kw):
        return run(*args, cwd=self.path, **kw)

    def hash(self, checkpoint="run/checkpoints/latest", name="model.safetensors"):
        return hashlib.sha256((self.path / checkpoint / name).read_bytes()).hexdigest()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.path, ignore_errors=True)


def main(namespace):
    """python3 FILE CASE: runs one case; without a name all of them."""
    cases = {name: f for name, f in namespace.items() if name.startswith("test_")}
    chosen = sys.argv[1:] or list(cases)
    failed = 0
    for name in chosen:
        try:
            cases[name]()
            print(f"passed {name}")
        except Exception:
            traceback.print_exc()
            print(f"FAILED {name}")
            failed += 1
    sys.exit(1 if failed else 0)
