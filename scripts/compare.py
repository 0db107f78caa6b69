#!/usr/bin/env python3
"""Runs a grid of trainings, one or several at once, each to one result.json; docs/comparing.md describes grids.
  python3 scripts/compare.py run GRID.yaml OUT [--stage a ...] [--only GLOB ...] [--list] [--budget-seconds N] [--sieve PATH] [--path name=PATH ...]
                                               [--gpus N|0,1,3] [--per-gpu M] [--jobs N] [--retry-failed] [--redo GLOB] [--allow-dirty]
  python3 scripts/compare.py json GRID.yaml > GRID.json     the same grid for a machine without PyYAML
OUT/runs/NAME: config.yaml, train/ (the run folder), train.log, evaluations.json, result.json (written last). Call it again after any interruption: finished runs
are kept, an unfinished one goes on from its last checkpoint. A run whose configuration has changed is refused, never replaced.
Exit code: 0 all that was asked for is there, 1 a run failed, 2 usage, grid or a changed configuration, 75 more is to do (budget, or a run waits), 130 stopped."""
import argparse
import fcntl
import fnmatch
import json
import pathlib
import signal
import sys

from comparison import check
from comparison.grid import Grid, GridError
from comparison.program import cores, find_sieve, first_line, gpu_ids, read_json, slots_of
from comparison.run import INTERRUPTED, REQUEUE, Worker
from comparison.state import Runs


class Runner:
    """Which runs a call makes, and in what order."""

    def __init__(self, grid, a):
        self.grid, self.a = grid, a
        self.runs = Runs(grid, pathlib.Path(a.out))
        self.paths = grid.paths(dict(item.split("=", 1) for item in a.path))
        self.sieve = find_sieve(a.sieve)
        self.version = first_line([self.sieve, "--version"])
        if not self.version:
            raise GridError(f"{self.sieve}: does not even say its --version; run it by hand to see why")
        self.slots = slots_of([] if a.gpus is None else gpu_ids(a.gpus), a.per_gpu or 1, a.jobs or 1)
        self.worker = Worker(self.runs, self.paths, self.sieve, self.version, len(self.slots), a.budget_seconds)

    def chosen(self):
        for stage in self.a.stage:
            if stage not in self.grid.data["stages"]:
                raise GridError(f"--stage {stage}: there is no such stage; there are: {', '.join(self.grid.data['stages'])}")
        cells = [cell for cell in self.grid.cells if (not self.a.stage or cell.stage in self.a.stage)
                 and (not self.a.only or any(fnmatch.fnmatchcase(cell.name, glob) for glob in self.a.only))]
        if not cells:
            raise GridError(f"--stage and --only leave none of the grid's {len(self.grid.cells)} runs; --list shows their names")
        return cells

    def to_be_made(self, cells):
        there = {"finished", "not needed"} | (set() if self.a.retry_failed else {"failed"})
        return [cell for cell in cells if self.runs.state(cell)[0] not in there]

    def refuse_bad_inputs(self, cells):
        """What would end many runs, one after another, ends the call before the first."""
        cells = self.to_be_made(cells)
        check.refuse_absent_paths(self.grid, self.paths, cells)
        check.refuse_bad_configs(self.grid, self.paths, cells, self.sieve, max(2, cores()))

    def refuse_dirty(self, cells):
        """What a table quotes comes from a build that its commit names."""
        final = [cell for cell in self.to_be_made(cells) if self.grid.data["stages"][cell.stage].get("final")]
        if final and "-dirty" in self.version and not self.a.allow_dirty:
            raise GridError(f"{self.version}: is no clean build (it has changes that no commit names), and {len(final)} runs of final stages are to be made, "
                            f"first {final[0].name}. Commit and build again, or give --allow-dirty for numbers that nobody quotes")

    def next_ready(self, cells):
        """The first run, in the grid's order, that can begin; taken out of `cells`, as is what needs no run. What waits stays."""
        for cell in list(cells):
            known = self.runs.results.get(cell.name)
            if known and (known["status"] == "finished" or not self.a.retry_failed):
                self.runs.drop_checkpoints(cell, known)
                cells.remove(cell)
                continue
            state, remark = self.runs.state(cell)
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
                while self.free and not self.worker.ending and (self.worker.remaining() is None or self.worker.remaining() > 0) and (cell := self.next_ready(left)):
                    slot = self.free.pop(0)
                    self.go_on(self.worker.attempt(cell, slot), slot)
                if not self.under_way:
                    return
                self.go_on(*self.under_way.pop(self.worker.program.wait()))
        finally:
            self.worker.program.end()

    def go(self, cells):
        earlier = [] if self.a.retry_failed else [cell for cell in cells if self.runs.results.get(cell.name, {}).get("status") == "failed"]
        self.work(cells)
        self.runs.write_grid()
        found = [self.runs.state(cell) for cell in cells]
        states = [state for state, _ in found]
        print(", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)), file=sys.stderr)
        if "waits" in states and not self.worker.ending:
            first = states.index("waits")
            print(f"{states.count('waits')} wait, first {cells[first].name} {found[first][1]}{self.left_out(found[first][1], cells)}", file=sys.stderr)
        if earlier:
            first, remark = earlier[0], found[cells.index(earlier[0])][1]
            print(f"{len(earlier)} failed earlier (first: {first.name}: {remark}): --retry-failed runs them anew", file=sys.stderr)
        if self.worker.program.signal:
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
            state, remark = self.runs.state(cell)
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
        runner.runs.out.mkdir(parents=True, exist_ok=True)
        with open(runner.runs.out / ".lock", "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise GridError(f"{a.out}: another compare.py is at work there; wait for it or give another folder") from None
            other = (read_json(runner.runs.out / "grid.json") or {"grid": grid.data})["grid"]["name"]
            if other != grid.data["name"]:
                raise GridError(f"{a.out} holds runs of the grid {other!r}, not of {grid.data['name']!r}: give another folder")
            runner.runs.load()
            runner.runs.redo(cells, a.redo)
            runner.runs.refuse_changed(cells)
            runner.refuse_dirty(cells)
            runner.refuse_bad_inputs(cells)
            runner.runs.write_grid()
            return runner.go(cells)
    except GridError as error:
        print(f"compare: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
