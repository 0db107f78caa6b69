"""What a folder of runs, OUT of scripts/compare.py, holds: the state of every run, and how long one that is still to be made will take, by those that are there."""
import datetime
import fnmatch
import math
import shutil
import statistics
import sys

from comparison import check
from comparison.grid import GridError, NotNeeded, Waiting
from comparison.program import read_json, write_json

LONG = 8  # a training an eighth as long as another says how fast that one goes; what is much shorter is start-up to a good part


def stamp():
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


def gist_of(message):
    """The line of a failed run's message that says what was wrong: a mistake in its configuration, or else what came after the exit code, warnings aside."""
    lines = [line for line in message.splitlines() if ": warning: " not in line]
    return next((line for line in lines if "error" in line), (lines[1:] or lines or [""])[0])


def side_by_side(result):
    """How many runs shared its GPU, or its cores; results from before that was noted had them alone."""
    return result.get("provenance", {}).get("side_by_side") or 1


class Runs:
    """The runs of a grid in a folder. results: those that have ended, by name; one that is being made is added when it ends."""

    def __init__(self, grid, out):
        self.grid, self.out = grid, out
        self.load()

    def load(self):
        self.results = {cell.name: result for cell in self.grid.cells if (result := read_json(self.folder(cell) / "result.json")) is not None}

    def folder(self, cell):
        return self.out / "runs" / cell.name

    def checkpoint_of(self, name):
        return self.out / "runs" / name / "train" / "checkpoints" / "latest"

    def trained(self, cell):
        return (read_json(self.folder(cell) / "train" / "status.json") or {}).get("status") == "finished" and self.checkpoint_of(cell.name).exists()

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
            globs = check.globs_of([cell for cell, _ in changed], [cell for cell in cells if self.folder(cell).exists()])
            redo = " ".join(f"--redo '{glob}'" for glob in globs)
            raise GridError(f"nothing is replaced silently:\n  {names}\nGive another OUT, put the grid back, or let them be run anew: {redo} "
                            "(the old folders are kept in OUT/replaced)")

    def redo(self, cells, globs):
        """Moves the runs that a glob names out of the way."""
        for cell in cells:
            folder = self.folder(cell)
            if folder.exists() and any(fnmatch.fnmatchcase(cell.name, glob) for glob in globs):
                away = self.out / "replaced" / f"{cell.name}-{stamp().replace(':', '')}"
                away.parent.mkdir(parents=True, exist_ok=True)
                folder.rename(away)
                self.results.pop(cell.name, None)
                print(f"{cell.name}: the old run is in {away}", file=sys.stderr)

    def drop_checkpoints(self, cell, result):
        if result["status"] == "finished" and not self.grid.data["stages"][cell.stage].get("keep_checkpoint"):
            shutil.rmtree(self.folder(cell) / "train" / "checkpoints", ignore_errors=True)

    def clear_failed(self, cell):
        """A training that had ended well is not what failed: its checkpoint is kept, and what follows is done anew."""
        self.results.pop(cell.name)
        (self.folder(cell) / "result.json").unlink()
        (self.folder(cell) / "evaluations.json").unlink(missing_ok=True)
        if not self.trained(cell):
            shutil.rmtree(self.folder(cell) / "train", ignore_errors=True)

    def write_grid(self):
        """What the report needs beside the results: every cell with its state."""
        cells = []
        for cell in self.grid.cells:
            state, remark = self.state(cell)
            cells.append({"name": cell.name, "stage": cell.stage, "size": cell.size, "context": cell.context, "type": cell.type, "seed": cell.seed,
                          "state": state, "remark": remark})
        write_json(self.out / "grid.json", {"schema": 1, "grid": self.grid.data, "cells": cells, "date": stamp()})

    # -- time -------------------------------------------------------------------------------------------------------------------------------------
    def most_alike(self, cell, plan, cost, beside, results, seconds, by_length=True):
        """seconds(result), by the results most like a run that will share its GPU with beside - 1 others; 0 where there are no results. The same type counts most;
        then a training LONG enough to tell, the same size, the same context, as many side by side, and how near the number of tokens comes, by factors of two. Of
        equally alike results the median (of two the slower), so that one which something else had slowed down decides nothing; where none is of the run's own type, the slowest, to
        err on the careful side. by_length: whether the length of the training matters. One that shared its GPU with fewer counts as so many times slower, the most that sharing costs."""
        found = {}
        for result in results:
            ratio, shared = result["plan"]["tokens"] / cost["tokens"], side_by_side(result)
            lengths = (ratio * LONG >= 1, -round(abs(math.log2(ratio)))) if by_length else (True, 0)
            alike = (result["resolved_type"] == plan["type"], lengths[0], result["size"] == cell.size, result["context"] == cell.context, shared == beside, lengths[1])
            found.setdefault(alike, []).append(seconds(result) * max(1, beside / shared))
        if not found:
            return 0.0
        alike = max(found)
        return (statistics.median_high if alike[0] else max)(found[alike])

    def estimate(self, cell, plan, cost, beside):
        """Seconds that a run will still take, by the rates of the finished runs most like it; None where nothing has finished yet."""
        known = [result for result in self.results.values() if result["status"] == "finished" and "probe" not in result and result["plan"].get("flops_per_token")]
        if not known:
            return None
        training = self.most_alike(cell, plan, cost, beside, known, lambda result: result["seconds"]["train"] / result["plan"]["tokens"] / result["plan"]["flops_per_token"])
        status = read_json(self.folder(cell) / "train" / "status.json") or {}
        done = status.get("step", 0) / max(1, status.get("total_steps", 1)) if (self.folder(cell) / "train" / "checkpoints").exists() else 0
        count = len(plan["splits"]) * len(plan["evaluations"])
        evaluated = [result for result in known if any(result["evaluations"].values())] if count else []
        evaluation = self.most_alike(cell, plan, cost, beside, evaluated, lambda result: result["seconds"]["evaluate"] / sum(len(one) for one in result["evaluations"].values()),
                                     by_length=False)
        return training * cost["flops_per_token"] * cost["tokens"] * (1 - done) + evaluation * count

    def probe_estimate(self, cell):
        """Seconds of the slowest run of the same probe; of any probe where this one has not been run yet; 0 where none has."""
        probes = [result for result in self.results.values() if result["status"] == "finished" and "probe" in result]
        like = [result for result in probes if (result["stage"], result["context"]) == (cell.stage, cell.context)] or probes
        return max((sum(result["seconds"].values()) for result in like), default=0)
