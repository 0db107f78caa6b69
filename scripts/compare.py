#!/usr/bin/env python3
"""Runs a grid of trainings, one or several at once, each to one result.json; docs/comparing.md describes grids.
  python3 scripts/compare.py run GRID.yaml OUT [--stage a ...] [--only GLOB ...] [--list] [--budget-seconds N] [--sieve PATH] [--path name=PATH ...]
                                               [--gpus N|0,1,3] [--per-gpu M] [--jobs N] [--retry-failed] [--redo GLOB] [--allow-dirty]
  python3 scripts/compare.py json GRID.yaml > GRID.json     the same grid for a machine without PyYAML
OUT/runs/NAME: config.yaml, train/ (the run folder), train.log, evaluations.json, result.json (written last). Call it again after any interruption: finished runs
are kept, an unfinished one goes on from its last checkpoint. A run whose configuration has changed is refused, never replaced.
Exit code: 0 all that was asked for is there, 1 a run failed, 2 usage, grid or a changed configuration, 75 more is to do (budget, or a run waits), 130 stopped."""
import argparse
import datetime
import fcntl
import fnmatch
import json
import os
import pathlib
import platform
import shutil
import signal
import statistics
import sys
import time

import compare_check
import compare_grid
from compare_grid import Grid, GridError, NotNeeded, Waiting
from compare_program import Failed, Program, Stopped, cores, find_sieve, first_line, gpu_ids, last_words, read_json, slots_of, write_json, write_whole

CURVE = ("step", "tokens", "time", "loss/train", "loss/val", "bpb/val", "lr", "grad_norm", "tok_s", "mem/peak_gib", "skipped_steps")
REQUEUE, INTERRUPTED = 75, 130


class TooLong(Stopped):
    """A run that would end after the budget; a shorter one may still fit."""


def stamp():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def gist_of(message):
    """The line of a failed run's message that says what was wrong: a mistake in its configuration, or else what came after the exit code, warnings aside."""
    lines = [line for line in message.splitlines() if ": warning: " not in line]
    return next((line for line in lines if "error" in line), (lines[1:] or lines or [""])[0])


def curve_of(train):
    """(rows, statistics of the selection in the last row that has them) from a run folder's metrics."""
    rows, selection = [], {}
    for line in (train / "metrics.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rows.append({key: row[key] for key in CURVE if key in row})
        selection = {key: value for key, value in row.items() if key.startswith("attn/")} or selection
    return rows, selection


class Runner:
    def __init__(self, grid, a):
        self.grid, self.a = grid, a
        self.out = pathlib.Path(a.out)
        self.paths = grid.paths(dict(item.split("=", 1) for item in a.path))
        self.sieve = find_sieve(a.sieve)
        self.version = first_line([self.sieve, "--version"])
        if not self.version:
            raise GridError(f"{self.sieve}: does not even say its --version; run it by hand to see why")
        self.slots = slots_of([] if a.gpus is None else gpu_ids(a.gpus), a.per_gpu or 1, a.jobs or 1)
        self.gpu_names, self.costs = {}, {}
        self.program = Program()
        self.start = time.monotonic()
        self.ending = False  # nothing more begins
        self.load()

    def load(self):
        self.results = {cell.name: result for cell in self.grid.cells if (result := read_json(self.folder(cell) / "result.json")) is not None}

    def folder(self, cell):
        return self.out / "runs" / cell.name

    def checkpoint_of(self, name):
        return self.out / "runs" / name / "train" / "checkpoints" / "latest"

    def trained(self, cell):
        return (read_json(self.folder(cell) / "train" / "status.json") or {}).get("status") == "finished" and self.checkpoint_of(cell.name).exists()

    def chosen(self):
        for stage in self.a.stage:
            if stage not in self.grid.data["stages"]:
                raise GridError(f"--stage {stage}: there is no such stage; there are: {', '.join(self.grid.data['stages'])}")
        cells = [cell for cell in self.grid.cells if (not self.a.stage or cell.stage in self.a.stage)
                 and (not self.a.only or any(fnmatch.fnmatchcase(cell.name, glob) for glob in self.a.only))]
        if not cells:
            raise GridError(f"--stage and --only leave none of the grid's {len(self.grid.cells)} runs; --list shows their names")
        return cells

    def state(self, cell):
        """(state, remark): finished, failed, begun, to do, waits, not needed, changed."""
        known = self.results.get(cell.name)
        begun = read_json(self.folder(cell) / "run.json")
        try:
            plan = self.grid.resolve(cell, self.results)
        except Waiting as reason:
            return (known["status"], "") if known else ("waits", f"for {reason}")
        except NotNeeded as reason:
            return (known["status"], "") if known else ("not needed", str(reason))
        if plan["source"] and not known and not self.checkpoint_of(plan["source"]).exists():
            return "waits", f"for the checkpoint of {plan['source']}, which is gone: --redo '{plan['source']}'"
        found = known or begun
        if found and found["hash"] != plan["hash"]:
            return "changed", f"{self.folder(cell)} holds a run of configuration {found['hash']}, the grid now says {plan['hash']}"
        if known:
            return known["status"], gist_of(known.get("message", ""))
        return ("begun" if begun else "to do"), ""

    def refuse_changed(self, cells):
        changed = [(cell, remark) for cell in cells for state, remark in [self.state(cell)] if state == "changed"]
        if changed:
            names = "\n  ".join(remark for _, remark in changed)
            globs = compare_check.globs_of([cell for cell, _ in changed], [cell for cell in cells if self.folder(cell).exists()])
            redo = " ".join(f"--redo '{glob}'" for glob in globs)
            raise GridError(f"nothing is replaced silently:\n  {names}\nGive another OUT, put the grid back, or let them be run anew: {redo} "
                            "(the old folders are kept in OUT/replaced)")

    def to_be_made(self, cells):
        there = {"finished", "not needed"} | (set() if self.a.retry_failed else {"failed"})
        return [cell for cell in cells if self.state(cell)[0] not in there]

    def refuse_bad_inputs(self, cells):
        """What would end many runs, one after another, ends the call before the first."""
        cells = self.to_be_made(cells)
        compare_check.refuse_absent_paths(self.grid, self.paths, cells)
        compare_check.refuse_bad_configs(self.grid, self.paths, cells, self.sieve, max(2, cores()))

    def refuse_dirty(self, cells):
        """What a table quotes comes from a build that its commit names."""
        final = [cell for cell in self.to_be_made(cells) if self.grid.data["stages"][cell.stage].get("final")]
        if final and "-dirty" in self.version and not self.a.allow_dirty:
            raise GridError(f"{self.version}: is no clean build (it has changes that no commit names), and {len(final)} runs of final stages are to be made, "
                            f"first {final[0].name}. Commit and build again, or give --allow-dirty for numbers that nobody quotes")

    def redo(self, cells):
        for cell in cells:
            folder = self.folder(cell)
            if folder.exists() and any(fnmatch.fnmatchcase(cell.name, glob) for glob in self.a.redo):
                away = self.out / "replaced" / f"{cell.name}-{stamp().replace(':', '')}"
                away.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(away)
                self.results.pop(cell.name, None)
                print(f"{cell.name}: the old run is in {away}", file=sys.stderr)

    # -- time -------------------------------------------------------------------------------------------------------------------------------------
    def remaining(self):
        return None if self.a.budget_seconds is None else self.a.budget_seconds - (time.monotonic() - self.start)

    def most_alike(self, cell, plan, results, seconds):
        """seconds(result) of the result most like a run: its own type counts most, then size and context; of equal ones the longest training, then the slowest."""
        return max(((result["resolved_type"] == plan["type"], result["size"] == cell.size, result["context"] == cell.context, result["plan"]["tokens"]), seconds(result))
                   for result in results)[1] if results else 0.0

    def estimate(self, cell, plan, cost):
        """Seconds that a run will still take, from the finished runs most like it; None where nothing has finished yet."""
        known = [result for result in self.results.values() if result["status"] == "finished" and "probe" not in result and result["plan"].get("flops_per_token")]
        if not known:
            return None
        training = self.most_alike(cell, plan, known, lambda result: result["seconds"]["train"] / result["plan"]["tokens"] / result["plan"]["flops_per_token"])
        status = read_json(self.folder(cell) / "train" / "status.json") or {}
        done = status.get("step", 0) / max(1, status.get("total_steps", 1)) if (self.folder(cell) / "train" / "checkpoints").exists() else 0
        count = len(plan["splits"]) * len(plan["evaluations"])
        evaluated = [result for result in known if any(result["evaluations"].values())] if count else []
        evaluation = self.most_alike(cell, plan, evaluated, lambda result: result["seconds"]["evaluate"] / sum(len(one) for one in result["evaluations"].values()))
        return training * cost["flops_per_token"] * cost["tokens"] * (1 - done) + evaluation * count

    # -- one run ----------------------------------------------------------------------------------------------------------------------------------
    # A run is a generator: it yields each program that it has started, and goes on once that has ended.
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
        shape = compare_grid.config_hash(compare_grid.merge(plan["config"], {"run": None, "train": {"optimizer": {"lr": None}}}))
        if shape not in self.costs:
            found = json.loads((yield from self.call(["plan", str(config), "--json", "--peak-tflops", "1"], log, slot)))
            self.costs[shape] = {key: value for key, value in found.items() if key not in ("peak_tflops", "seconds")}
        return self.costs[shape]

    def train(self, cell, plan, log, slot):
        if self.trained(cell):
            return
        words = [plan["command"], str(self.folder(cell) / "config.yaml"), "--resume", "auto", "--no-progress"]
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
        kept = self.folder(cell) / "evaluations.json"
        found = read_json(kept)
        if found is None:
            data = [{"name": split, "path": compare_grid.substitute(path, self.paths)} for split, path in plan["splits"].items()]
            protocols = [{"name": name, **keys} for name, keys in plan["evaluations"].items()]
            file = self.folder(cell) / "evaluations.yaml"
            write_whole(file, compare_grid.config_text({"schema": 1, "eval": {"checkpoints": [str(self.checkpoint_of(cell.name).absolute())], "data": data,
                                                                              "protocols": protocols}}))
            began = time.monotonic()
            out = yield from self.call(["eval", str(file), "--json"], log, slot)
            found = {"results": json.loads(out)["results"], "seconds": time.monotonic() - began}
            write_json(kept, found)
        sorted_by = {split: {name: [result for result in found["results"] if (result["data"], result["protocol_name"]) == (split, name)]
                             for name in plan["evaluations"]} for split in plan["splits"]}
        return sorted_by, found["seconds"]

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
                "gpu_index": slot.gpu, "side_by_side": read_json(self.folder(cell) / "run.json")["side_by_side"], "at_once": len(self.slots),
                "device": manifest.get("device"), "cpu": manifest.get("cpu"), "python": platform.python_version(), "grid": pathlib.Path(self.grid.where).name,
                "command": f"sieve {plan['command']} config.yaml", "tokenizer": manifest.get("tokenizer"), "data": manifest.get("data"), "config_hash": plan["hash"]}

    def result(self, cell, job, status, **more):
        kind = self.grid.data["types"][job["type"]]
        return {"schema": 1, "name": cell.name, "status": status, "stage": cell.stage, "type": cell.type, "resolved_type": job["type"],
                "label": kind.get("label", job["type"]), "cache": kind.get("cache", "all"), "family": kind.get("family", "rival"), "size": cell.size, "context": cell.context, "seed": cell.seed,
                "lr": job["lr"], "searched_lr": cell.searched, "search": {f"{lr:g}": loss for lr, loss in job["search"].items()}, "hash": job["hash"],
                "config": job["config"], "source": job["source"], **more}

    def begins(self, cell, plan, slot, again=False):
        """From here on a run counts as begun, by this configuration."""
        known = read_json(self.folder(cell) / "run.json") or {"name": cell.name, "hash": plan["hash"], "started": stamp(), "config": plan["config"]}
        write_json(self.folder(cell) / "run.json", {**known, "side_by_side": max(known.get("side_by_side", 1), slot.side_by_side)})
        print(f"{cell.name}: {'goes on' if again else 'begins'}{'' if slot.gpu is None else f' on GPU {slot.gpu}'}", file=sys.stderr, flush=True)

    def run(self, cell, plan, slot):
        """Trains, evaluates and writes result.json; returns it. Every step that is done already is left as it is."""
        folder, train = self.folder(cell), self.folder(cell) / "train"
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / "train.log"
        names = dict(self.paths)
        if plan["source"]:
            names["source"] = str(self.checkpoint_of(plan["source"]).resolve())
        config = compare_grid.merge(compare_grid.substitute(plan["config"], names), {"run": {"dir": str(train.resolve())}})
        write_whole(folder / "config.yaml", compare_grid.config_text(config))
        cost = yield from self.cost(plan, folder / "config.yaml", log, slot)
        self.check_budget(cell, plan, cost)
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
        self.drop_checkpoints(cell, result)
        return result

    def probe(self, cell, plan, slot):
        """A probe keeps nothing on the way: one that was interrupted begins anew, with the same rows."""
        folder = self.folder(cell)
        folder.mkdir(parents=True, exist_ok=True)
        self.check_probe_budget(cell)
        write_whole(folder / "config.yaml", compare_grid.config_text(compare_grid.substitute(plan["config"], self.paths)))
        self.begins(cell, plan, slot)
        found = json.loads((yield from self.call(["probe", str(folder / "config.yaml"), "--json"], folder / "train.log", slot)))
        provenance = self.provenance(cell, plan, {"git": found["git"], "device": found["device"], "build": {"cuda": not found["device"].startswith("CPU")}}, slot)
        result = self.result(cell, plan, "finished", probe=found, seconds=found["seconds"], provenance=provenance)
        write_json(folder / "result.json", result)
        return result

    def check_probe_budget(self, cell):
        """Whether the time of the slowest run of the same probe is left; of any probe where this one has not been run yet."""
        probes = [result for result in self.results.values() if result["status"] == "finished" and "probe" in result]
        like = [result for result in probes if (result["stage"], result["context"]) == (cell.stage, cell.context)] or probes
        left, slowest = self.remaining(), max((sum(result["seconds"].values()) for result in like), default=0)
        if left is not None and left <= slowest:
            raise TooLong(f"{cell.name} would take about {slowest:.0f} s, {max(0, left):.0f} s of the budget are left")

    def drop_checkpoints(self, cell, result):
        if result["status"] == "finished" and not self.grid.data["stages"][cell.stage].get("keep_checkpoint"):
            shutil.rmtree(self.folder(cell) / "train" / "checkpoints", ignore_errors=True)

    def check_budget(self, cell, plan, cost):
        left, estimate = self.remaining(), self.estimate(cell, plan, cost)
        if left is not None and (left <= 0 or (estimate is not None and estimate > left)):
            raise TooLong(f"{cell.name} would take about {estimate or 0:.0f} s, {max(0, left):.0f} s of the budget are left")

    def attempt(self, cell, slot):
        """One run, to its result: finished, failed, or none where it was stopped."""
        plan = self.grid.resolve(cell, self.results)
        if self.results.pop(cell.name, None):
            self.clear_failed(cell)
        try:
            result = yield from (self.probe if plan["command"] == "probe" else self.run)(cell, plan, slot)
            print(f"{cell.name}: finished, {result['seconds']['train']:.0f} s of training, {result['seconds']['evaluate']:.0f} s of evaluation", file=sys.stderr, flush=True)
        except Failed as failed:
            result = self.result(cell, plan, "failed", message=failed.args[0], exit_code=failed.args[1], date=stamp())
            write_json(self.folder(cell) / "result.json", result)
            print(f"{cell.name}: FAILED: {failed.args[0]}", file=sys.stderr, flush=True)
        except TooLong as reason:
            print(reason, file=sys.stderr, flush=True)
            return
        except Stopped:
            print(f"{cell.name}: stopped; call again to go on", file=sys.stderr, flush=True)
            self.ending = True
            return
        self.results[cell.name] = result

    def clear_failed(self, cell):
        """A training that had ended well is not what failed: its checkpoint is kept, and what follows is done anew."""
        (self.folder(cell) / "result.json").unlink()
        (self.folder(cell) / "evaluations.json").unlink(missing_ok=True)
        if not self.trained(cell):
            shutil.rmtree(self.folder(cell) / "train", ignore_errors=True)

    # -- the grid ---------------------------------------------------------------------------------------------------------------------------------
    def write_grid(self):
        """What the report needs beside the results: every cell with its state."""
        cells = []
        for cell in self.grid.cells:
            state, remark = self.state(cell)
            cells.append({"name": cell.name, "stage": cell.stage, "size": cell.size, "context": cell.context, "type": cell.type, "seed": cell.seed,
                          "state": state, "remark": remark})
        write_json(self.out / "grid.json", {"schema": 1, "grid": self.grid.data, "cells": cells, "date": stamp()})

    def next_ready(self, cells):
        """The first run, in the grid's order, that can begin; taken out of `cells`, as is what needs no run. What waits stays."""
        for cell in list(cells):
            known = self.results.get(cell.name)
            if known and (known["status"] == "finished" or not self.a.retry_failed):
                self.drop_checkpoints(cell, known)
                cells.remove(cell)
                continue
            state, remark = self.state(cell)
            if state == "waits":
                continue
            cells.remove(cell)
            if state == "changed":  # it waited for a choice until now
                print(f"{cell.name}: not run: {remark}; --redo '{cell.name}'", file=sys.stderr, flush=True)
            elif state != "not needed":
                return cell
        return None

    def go_on(self, run, slot):
        """Lets a run go on to its next program, or to its end, which frees the slot."""
        child = next(run, None)
        if child is None:
            self.free.append(slot)
        else:
            self.under_way[child] = (run, slot)

    def work(self, cells):
        """As many runs at once as there are slots; whenever one ends, the next that is ready begins."""
        left, self.free, self.under_way = list(cells), list(self.slots), {}
        try:
            while True:
                while self.free and not self.ending and (self.remaining() is None or self.remaining() > 0) and (cell := self.next_ready(left)):
                    slot = self.free.pop(0)
                    self.go_on(self.attempt(cell, slot), slot)
                if not self.under_way:
                    return
                self.go_on(*self.under_way.pop(self.program.wait()))
        finally:
            self.program.end()

    def go(self, cells):
        earlier = [] if self.a.retry_failed else [cell for cell in cells if self.results.get(cell.name, {}).get("status") == "failed"]
        self.work(cells)
        self.write_grid()
        found = [self.state(cell) for cell in cells]
        states = [state for state, _ in found]
        print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)), file=sys.stderr)
        if "waits" in states and not self.ending:
            first = states.index("waits")
            print(f"{states.count('waits')} wait, first {cells[first].name} {found[first][1]}{self.left_out(found[first][1], cells)}", file=sys.stderr)
        if earlier:
            first, remark = earlier[0], found[cells.index(earlier[0])][1]
            print(f"{len(earlier)} failed earlier (first: {first.name}: {remark}): --retry-failed runs them anew", file=sys.stderr)
        if self.program.signal:
            return INTERRUPTED
        if "changed" in states:
            return 2
        if "failed" in states:
            return 1
        return REQUEUE if {"to do", "begun", "waits"} & set(states) else 0

    def left_out(self, remark, cells):
        """Why nobody makes what a run waits for, where --stage or --only is the reason."""
        awaited = next((cell for cell in self.grid.cells if remark == f"for {cell.name}"), None)
        if awaited is None or awaited in cells:
            return ""
        by_stage = self.a.stage and awaited.stage not in self.a.stage
        return f", which {'--stage' if by_stage else '--only'} leaves out: add --{'stage' if by_stage else 'only'} {awaited.stage if by_stage else repr(awaited.name)}"

    def list(self, cells):
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # | head
        for cell in cells:
            state, remark = self.state(cell)
            print(f"{cell.name:44} {state:11} {remark}".rstrip())
        return 0


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="run what is missing")
    run.add_argument("grid")
    run.add_argument("out", help="folder of the runs")
    run.add_argument("--stage", action="append", default=[], help="only this stage (may be repeated)")
    run.add_argument("--only", action="append", default=[], metavar="GLOB", help="only runs with such names (may be repeated)")
    run.add_argument("--list", action="store_true", help="show every run and its state, run nothing")
    run.add_argument("--budget-seconds", type=float, help="begin no run that would end later; a training that would is saved in time")
    run.add_argument("--sieve", help="the program (default: $SIEVE, then PATH, then build/cpu)")
    run.add_argument("--path", action="append", default=[], metavar="NAME=PATH", help="another place for one of the grid's paths")
    run.add_argument("--gpus", metavar="N|0,1,3", help="runs side by side, one on each of these GPUs: the first N, or a list (one alone: 3,)")
    run.add_argument("--per-gpu", type=int, metavar="M", help="with --gpus: M runs on each at once; their speeds then mean little")
    run.add_argument("--jobs", type=int, metavar="N", help="N runs at once, without giving out GPUs: for the CPU")
    run.add_argument("--allow-dirty", action="store_true", help="final stages even with a sieve whose --version says -dirty")
    run.add_argument("--retry-failed", action="store_true", help="run failed ones anew")
    run.add_argument("--redo", action="append", default=[], metavar="GLOB", help="move these runs to OUT/replaced and run them anew")
    convert = commands.add_parser("json", help="print a grid as JSON, for machines without PyYAML; its runs are the same")
    convert.add_argument("grid")
    a = parser.parse_args()
    if a.command == "json":
        return a
    for item in a.path:
        if "=" not in item:
            parser.error(f"--path {item}: want NAME=PATH")
    if a.budget_seconds is not None and a.budget_seconds <= 0:
        parser.error("--budget-seconds: want more than 0")
    if a.gpus is not None and a.jobs is not None:
        parser.error("--jobs gives out no GPUs; beside --gpus say --per-gpu")
    if a.per_gpu is not None and a.gpus is None:
        parser.error("--per-gpu: want --gpus too")
    if any(count is not None and count < 1 for count in (a.per_gpu, a.jobs)):
        parser.error("--per-gpu, --jobs: want at least 1")
    return a


def main():
    a = arguments()
    try:
        grid = Grid.load(a.grid)
        if a.command == "json":
            print(json.dumps(grid.data, indent=1))
            return 0
        runner = Runner(grid, a)
        cells = runner.chosen()
        if a.list:
            return runner.list(cells)
        runner.out.mkdir(parents=True, exist_ok=True)
        with open(runner.out / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise GridError(f"{a.out}: another compare.py is at work there; wait for it or give another folder") from None
            other = (read_json(runner.out / "grid.json") or {"grid": grid.data})["grid"]["name"]
            if other != grid.data["name"]:
                raise GridError(f"{a.out} holds runs of the grid {other!r}, not of {grid.data['name']!r}: give another folder")
            runner.load()
            runner.redo(cells)
            runner.refuse_changed(cells)
            runner.refuse_dirty(cells)
            runner.refuse_bad_inputs(cells)
            runner.write_grid()
            return runner.go(cells)
    except GridError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
