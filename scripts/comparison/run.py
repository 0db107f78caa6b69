"""One run of a grid of scripts/compare.py: its training or probe, its evaluation, and the result.json that is made of them."""
import json
import os
import pathlib
import platform
import statistics
import sys
import time

from comparison import grid as grids
from comparison.program import Failed, Program, Stopped, first_line, last_words, read_json, write_json, write_whole
from comparison.state import stamp

CURVE = ("step", "tokens", "time", "loss/train", "loss/val", "bpb/val", "lr", "grad_norm", "tok_s", "mem/peak_gib", "skipped_steps")
REQUEUE, INTERRUPTED = 75, 130  # exit codes


class TooLong(Stopped):
    """A run that would end after the budget; a shorter one may still fit."""


def curve_of(train):
    """(rows, statistics of the selection in the last row that has them) from a run folder's metrics."""
    rows, selection = [], {}
    for line in (train / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.append({key: row[key] for key in CURVE if key in row})
        selection = {key: value for key, value in row.items() if key.startswith("attn/")} or selection
    return rows, selection


class Worker:
    """Makes runs, each in a slot of the machine. A run is a generator: it yields each program that it has started, and goes on once that has ended."""

    def __init__(self, runs, paths, sieve, version, at_once, budget_seconds):
        self.runs, self.grid, self.paths, self.sieve, self.version, self.at_once, self.budget_seconds = runs, runs.grid, paths, sieve, version, at_once, budget_seconds
        self.gpu_names, self.costs = {}, {}
        self.program = Program()
        self.start = time.monotonic()
        self.ending = False  # nothing more begins

    def remaining(self):
        return None if self.budget_seconds is None else self.budget_seconds - (time.monotonic() - self.start)

    def attempt(self, cell, slot):
        """One run, to its result: finished, failed, or none where it was stopped."""
        plan = self.grid.resolve(cell, self.runs.results)
        if cell.name in self.runs.results:
            self.runs.clear_failed(cell)
        try:
            result = yield from (self.probe if plan["command"] == "probe" else self.run)(cell, plan, slot)
            print(f"{cell.name}: finished, {result['seconds']['train']:.0f} s of training, {result['seconds']['evaluate']:.0f} s of evaluation", file=sys.stderr, flush=True)
        except Failed as failed:
            result = self.result(cell, plan, "failed", message=failed.args[0], exit_code=failed.args[1], date=stamp())
            write_json(self.runs.folder(cell) / "result.json", result)
            print(f"{cell.name}: FAILED: {failed.args[0]}", file=sys.stderr, flush=True)
        except TooLong as reason:
            print(reason, file=sys.stderr, flush=True)
            return
        except Stopped:
            print(f"{cell.name}: stopped; call again to go on", file=sys.stderr, flush=True)
            self.ending = True
            return
        self.runs.results[cell.name] = result

    def run(self, cell, plan, slot):
        """Trains, evaluates and writes result.json; returns it. Every step that is done already is left as it is."""
        folder, train = self.runs.folder(cell), self.runs.folder(cell) / "train"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "train.log"
        names = dict(self.paths)
        if plan["source"]:
            names["source"] = str(self.runs.checkpoint_of(plan["source"]).resolve())
        config = grids.merge(grids.substitute(plan["config"], names), {"run": {"dir": str(train.resolve())}})
        write_whole(folder / "config.yaml", grids.config_text(config))
        cost = yield from self.cost(plan, folder / "config.yaml", log, slot)
        self.check_budget(cell, self.runs.estimate(cell, plan, cost, slot.side_by_side))
        self.begins(cell, plan, slot, again=train.exists())
        yield from self.train(cell, plan, log, slot)
        evaluations, seconds = yield from self.evaluate(cell, plan, log, slot)
        curve, selection = curve_of(train)
        rates = [row["tok_s"] for row in curve if row.get("tok_s")]
        manifest = read_json(train / "manifest.json", {})
        result = self.result(
            cell, plan, "finished", plan=cost, curve=curve, selection=selection, tok_s=statistics.median(rates[len(rates) // 4:]) if rates else None,
            peak_gib=max((row["mem/peak_gib"] for row in curve if row.get("mem/peak_gib") is not None), default=None),
            seconds={"train": curve[-1]["time"], "evaluate": seconds}, evaluations=evaluations, provenance=self.provenance(cell, plan, manifest, slot))
        write_json(folder / "result.json", result)
        self.runs.drop_checkpoints(cell, result)
        return result

    def probe(self, cell, plan, slot):
        """A probe keeps nothing on the way: one that was interrupted begins anew, with the same rows."""
        folder = self.runs.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        self.check_budget(cell, self.runs.probe_estimate(cell))
        write_whole(folder / "config.yaml", grids.config_text(grids.substitute(plan["config"], self.paths)))
        self.begins(cell, plan, slot)
        found = json.loads((yield from self.call(["probe", str(folder / "config.yaml"), "--json"], folder / "train.log", slot)))
        provenance = self.provenance(cell, plan, {"git": found["git"], "device": found["device"], "build": {"cuda": not found["device"].startswith("CPU")}}, slot)
        result = self.result(cell, plan, "finished", probe=found, seconds=found["seconds"], provenance=provenance)
        write_json(folder / "result.json", result)
        return result

    def check_budget(self, cell, estimate):
        left = self.remaining()
        if left is not None and (left <= 0 or (estimate is not None and estimate > left)):
            raise TooLong(f"{cell.name} would take about {estimate or 0:.0f} s, {max(0, left):.0f} s of the budget are left")

    def call(self, words, log, slot):
        child = self.program.start([self.sieve, *words], log, slot.env)
        yield child
        code, out = child.answer()
        if self.program.signal:
            raise Stopped
        if code:
            raise Failed(f"sieve {words[0]}: exit code {code}\n{last_words(log)}", code)
        return out

    def cost(self, plan, config, log, slot):
        """What `sieve plan` counts: nothing is timed for it, and nothing that depends on the machine is kept. Runs that differ by name and rate cost the same."""
        shape = grids.config_hash(grids.merge(plan["config"], {"run": None, "train": {"optimizer": {"lr": None}}}))
        if shape not in self.costs:
            found = json.loads((yield from self.call(["plan", str(config), "--json", "--peak-tflops", "1"], log, slot)))
            self.costs[shape] = {key: value for key, value in found.items() if key not in ("peak_tflops", "seconds")}
        return self.costs[shape]

    def train(self, cell, plan, log, slot):
        if self.runs.trained(cell):
            return
        words = [plan["command"], str(self.runs.folder(cell) / "config.yaml"), "--resume", "auto", "--no-progress"]
        if self.remaining() is not None:
            words.append(f"run.max_time={max(1, int(self.remaining()))}s")  # saves in time and goes on in the next call
        try:
            yield from self.call(words, log, slot)
        except Failed as failed:
            if failed.args[1] in (REQUEUE, INTERRUPTED):
                raise Stopped from None
            raise

    def evaluate(self, cell, plan, log, slot):
        """({split: {evaluation: results}}, seconds) by one call of sieve eval, kept in evaluations.json; none where the stage names no evaluation."""
        if not plan["evaluations"]:
            return {}, 0.0
        kept = self.runs.folder(cell) / "evaluations.json"
        found = read_json(kept)
        if found is None:
            data = [{"name": split, "path": grids.substitute(path, self.paths)} for split, path in plan["splits"].items()]
            protocols = [{"name": name, **keys} for name, keys in plan["evaluations"].items()]
            file = self.runs.folder(cell) / "evaluations.yaml"
            write_whole(file, grids.config_text({"schema": 1, "eval": {"checkpoints": [str(self.runs.checkpoint_of(cell.name).absolute())], "data": data,
                                                                              "protocols": protocols}}))
            began = time.monotonic()
            out = yield from self.call(["eval", str(file), "--json"], log, slot)
            found = {"results": json.loads(out)["results"], "seconds": time.monotonic() - began}
            write_json(kept, found)
        sorted_by = {split: {name: [result for result in found["results"] if (result["data"], result["protocol_name"]) == (split, name)]
                             for name in plan["evaluations"]} for split in plan["splits"]}
        return sorted_by, found["seconds"]

    def begins(self, cell, plan, slot, again=False):
        """From here on a run counts as begun, by this configuration."""
        known = read_json(self.runs.folder(cell) / "run.json") or {"name": cell.name, "hash": plan["hash"], "started": stamp(), "config": plan["config"]}
        write_json(self.runs.folder(cell) / "run.json", {**known, "side_by_side": max(known.get("side_by_side", 1), slot.side_by_side)})
        print(f"{cell.name}: {'goes on' if again else 'begins'}{'' if slot.gpu is None else f' on GPU {slot.gpu}'}", file=sys.stderr, flush=True)

    def gpu_name(self, slot):
        if slot.gpu not in self.gpu_names:
            which = [] if slot.gpu is None else ["-i", slot.gpu]
            self.gpu_names[slot.gpu] = first_line(["nvidia-smi", *which, "--query-gpu=name,driver_version", "--format=csv,noheader"])
        return self.gpu_names[slot.gpu]

    def provenance(self, cell, plan, manifest, slot):
        """gpu_index, side_by_side, at_once: which GPU, how many runs shared it at most (or, without GPUs, the cores), and how many the machine; more than
        one side by side, and the run's speed says little."""
        on_gpu = manifest.get("build", {}).get("cuda")
        return {"sieve": self.version, "commit": os.environ.get("SIEVE_COMMIT") or manifest.get("git"), "date": stamp(), "gpu": self.gpu_name(slot) if on_gpu else "",
                "gpu_index": slot.gpu, "side_by_side": read_json(self.runs.folder(cell) / "run.json")["side_by_side"], "at_once": self.at_once,
                "device": manifest.get("device"), "cpu": manifest.get("cpu"), "python": platform.python_version(), "grid": pathlib.Path(self.grid.where).name,
                "command": f"sieve {plan['command']} config.yaml", "tokenizer": manifest.get("tokenizer"), "data": manifest.get("data"), "config_hash": plan["hash"]}

    def result(self, cell, job, status, **more):
        kind = self.grid.data["types"][job["type"]]
        return {"schema": 1, "name": cell.name, "status": status, "stage": cell.stage, "type": cell.type, "resolved_type": job["type"],
                "label": kind.get("label", job["type"]), "cache": kind.get("cache", "all"), "family": kind.get("family", "rival"), "size": cell.size, "context": cell.context, "seed": cell.seed,
                "lr": job["lr"], "searched_lr": cell.searched, "search": {f"{lr:g}": loss for lr, loss in job["search"].items()}, "hash": job["hash"],
                "config": job["config"], "source": job["source"], **more}
