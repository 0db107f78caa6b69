"""What the tests of the comparison share: a small grid, and calls of scripts/compare.py."""
import json
import os
import pathlib
import subprocess
import sys

from harness import SIEVE

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

# Models this small want one thread; waiting ones would only be in the way of whoever shares the machine.
os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="passive")

GRID = """\
schema: 1
name: small
paths: {data: data}
reference: sparsek
base:
  schema: 1
  device: {type: cpu}
  model: {n_layers: 1, d_model: 16, n_heads: 2}
  data: {train: ["${data}/train"], val: ["${data}/val"]}
  train: {steps: 400, global_batch: 256, micro_batch: 4}
  eval: {every: 0, at_start: false, tokens: 2Ki}
  checkpoint: {every: 50, keep_last: 1, keep_best: 0}
  log: {every: 10, sinks: [jsonl], peak_tflops: 1}
splits: {val: "${data}/val"}
evaluations: {books: {method: chunked, per_document: true}}
sizes: {tiny: {}}
contexts: {"64": {data: {seq_len: 64}}}
types:
  full: {kinds: {a: {type: full}}, pattern: [a]}
  sparsek: {kinds: {a: {type: sparsek, k: 8, window: 8}}, pattern: [a]}
  broken: {label: broken, kinds: {a: {type: full}}, pattern: [a], set: {data: {train: ["${data}"]}}}  # reads val too, as is found when it begins
stages:
  a: {types: [full, sparsek], sizes: [tiny], contexts: ["64"], seeds: [1], evaluations: [books]}
"""


def start(f, *words, out="out", **kw):
    return subprocess.Popen([sys.executable, str(ROOT / "scripts" / "compare.py"), "run", "grid.yaml", out, "--sieve", SIEVE, *words], cwd=f.path, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kw)


def compare(f, *words, code=0, out="out"):
    job = start(f, *words, out=out)
    out, err = job.communicate(timeout=300)
    assert job.returncode == code, f"exit code {job.returncode}, expected {code}\n{out[-2000:]}\n{err[-3000:]}"
    return out + err


def script(*command, cwd, code=0, env=None):
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=500, env={**os.environ, "SIEVE": SIEVE, **(env or {})})
    assert done.returncode == code, f"{command}: exit code {done.returncode}, expected {code}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def pretend(f, text):
    """A program that does what `text`, a shell script, says, and goes on as sieve."""
    path = f.path / "pretended"
    path.write_text(f'#!/bin/sh\n{text}\nexec "{SIEVE}" "$@"\n')
    path.chmod(0o755)
    return path


def result(f, name, out="out"):
    return json.loads((f.path / out / "runs" / name / "result.json").read_text())
