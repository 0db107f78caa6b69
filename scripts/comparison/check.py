"""What scripts/compare.py looks at before the first run begins: data that is not there and configurations that sieve refuses end a grid at once, not run by run."""
import concurrent.futures
import fnmatch
import pathlib
import re
import subprocess
import tempfile

from comparison import grid as grids
from comparison.grid import GridError

MISTAKE = re.compile(r"^\S+?:\d+:\d+: error: ")  # how sieve begins what it says of a file's line
SHOWN = 6


def type_shown(grid, cell):
    """A cell's type; of a choice that is still open the first one."""
    return grid.data["types"][cell.type].get("best_of", [cell.type])[0]


def config_shown(grid, cell):
    """What can be said of a run's configuration before any choice is made: all but its learning rate and its source, which are the grid's own to fill in."""
    return grid.probe_config(cell) if "probe" in grid.data["stages"][cell.stage] else grid.config(cell, type_shown(grid, cell), cell.lr)


def texts(tree):
    if isinstance(tree, dict):
        tree = list(tree.values())
    return [text for item in tree for text in texts(item)] if isinstance(tree, list) else [tree] if isinstance(tree, str) else []


def inputs_of(grid, cell):
    """(texts that may name paths, those among them that are shards to read) of a run."""
    config, stage = config_shown(grid, cell), grid.data["stages"][cell.stage]
    splits = [path for name, path in grid.data["splits"].items() if stage.get("evaluations") and (name != "test" or stage.get("final"))]
    return texts(config) + splits, texts([config.get("data", {}).get(split) for split in ("train", "val")]) + splits


def names_in(text):
    return [name for name in re.findall(r"\$\{(\w+)\}", text) if name != "source"]  # a run's own


def has_shards(path):
    return any(path.rglob("*.h5")) if path.is_dir() else path.exists()


def refuse_absent_paths(grid, paths, cells):
    """GridError where a path that one of these runs uses is not there, or data below it."""
    absent, paths = {}, {"source": "", **paths}
    for cell in cells:
        every, data = inputs_of(grid, cell)
        for text in every:
            for name in names_in(text):
                if not pathlib.Path(grids.substitute(f"${{{name}}}", paths)).exists():
                    absent.setdefault((name, paths[name]), cell.name)
        for text in data:
            names, whole = names_in(text), grids.substitute(text, paths)
            if names and (names[0], paths[names[0]]) not in absent and not any(c in whole for c in "*?[") and not has_shards(pathlib.Path(whole)):
                absent.setdefault((names[0], whole if not pathlib.Path(whole).exists() else f".h5 file in {whole}"), cell.name)
    if absent:
        what = "\n  ".join(f"paths.{name}: there is no {path}, wanted by {cell}: give --path {name}=..." for (name, path), cell in list(absent.items())[:SHOWN])
        raise GridError(f"{grid.where}: {what}\nThe folders of `sieve data prepare` belong there (docs/comparing.md: how the study's are made)")


def sample(grid, cells):
    """Runs that together have every type, and every pair of a stage with its sizes and contexts, once."""
    seen, chosen = set(), []
    for cell in cells:
        new = {("type", type_shown(grid, cell), "probe" in grid.data["stages"][cell.stage]), ("place", cell.stage, cell.size, cell.context)} - seen
        if new:
            seen |= new
            chosen.append(cell)
    return chosen


def mistakes(said, grid, cell):
    """sieve's messages about a run's configuration, those about its attention with their place in the grid."""
    kind, found = type_shown(grid, cell), []
    for line in said.splitlines():
        text = MISTAKE.sub("", line)
        if ": warning: " in line:
            continue
        if text == line and found:
            found[-1] += "\n" + line
        elif text.startswith(("model.attention.kinds", "model.attention.pattern")):
            found.append(f"types.{kind}.{text[len('model.attention.'):]}")
        elif line.strip():
            found.append(text)
    return found


def refuse_bad_configs(grid, paths, cells, sieve, workers):
    """GridError where `sieve config check` refuses what a run would be given: one call a type and a place, some hundredths of a second each."""
    chosen, paths = sample(grid, cells), {"source": "source", **paths}
    with tempfile.TemporaryDirectory(prefix="sieve-check-") as folder:
        def check(item):
            number, cell = item
            file = pathlib.Path(folder) / f"{number}.yaml"
            file.write_text(grids.config_text(grids.substitute(config_shown(grid, cell), paths)), encoding="utf-8")
            done = subprocess.run([sieve, "config", "check", str(file)], capture_output=True, text=True, errors="replace", stdin=subprocess.DEVNULL)
            return mistakes(done.stderr or done.stdout or f"sieve config check: exit code {done.returncode}", grid, cell) if done.returncode else []
        with concurrent.futures.ThreadPoolExecutor(workers) as pool:
            found = list(pool.map(check, enumerate(chosen)))
    said = {}
    for cell, several in zip(chosen, found):
        for text in several:
            said.setdefault(text, cell.name)
    if said:
        rest = f"\n  and {len(said) - SHOWN} more" if len(said) > SHOWN else ""
        what = "\n  ".join(f"{text} ({name})" if "\n" not in text else text.replace("\n", f" ({name})\n", 1) for text, name in list(said.items())[:SHOWN])
        raise GridError(f"{grid.where}: sieve refuses what runs of this grid would be given; nothing was run:\n  {what}{rest}")


def globs_of(changed, there):
    """The fewest, widest globs that name all of `changed` and nothing else of `there` (cells whose folders exist)."""
    left, globs = [cell.name for cell in changed], []
    wide = ["*", *(f"{cell.stage}-*" for cell in changed), *(f"*-{cell.type}-*" for cell in changed), *(f"{cell.stage}-*-{cell.type}-*" for cell in changed)]
    for glob in dict.fromkeys([*wide, *left]):
        named = {cell.name for cell in there if fnmatch.fnmatchcase(cell.name, glob)}
        gained = named & set(left)
        if named <= {cell.name for cell in changed} and (len(gained) > 1 or glob in gained):
            globs.append(glob)
            left = [name for name in left if name not in named]
    return globs
