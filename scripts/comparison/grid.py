"""A grid of runs, as scripts/compare.py runs it: the file's keys, its cells, and what a cell becomes once the cells that it depends on are there.
docs/comparing.md describes the format. Nothing here starts a program or writes a file."""
import copy
import dataclasses
import hashlib
import json
import os
import re

try:
    import yaml
except ImportError:
    yaml = None

NAME = re.compile(r"[A-Za-z0-9_.]+")
SUFFIXED = re.compile(r'"(\d+(?:\.\d+)?(?:[kKMBGT]|[KMG]i))"(?!:)')  # as a value in JSON
GRID_KEYS = {"schema", "name", "title", "paths", "reference", "pairs", "base", "splits", "evaluations", "sizes", "contexts", "types", "learning_rate", "stages"}
STAGE_KEYS = {"title", "types", "sizes", "contexts", "seeds", "lrs", "lr", "set", "evaluations", "final", "only_if", "from", "keep_checkpoint", "probe"}
TYPE_KEYS = {"label", "family", "cache", "kinds", "pattern", "set", "lr_of", "best_of", "stages"}
CACHES = ("all", "grows", "bounded", "state")  # of a type: rows of the whole context, fewer but growing, constant, a state instead of rows


class GridError(Exception):
    """What is wrong in a grid, where, and what to do about it."""


class Waiting(Exception):
    """A cell cannot be decided yet: what it waits for."""


class NotNeeded(Exception):
    """A cell's condition does not hold: why."""


@dataclasses.dataclass(frozen=True)
class Cell:
    """One run of the grid. lr: a number, or None for the value that the search stage chooses (or the base's where the grid has no search)."""
    stage: str
    size: str
    context: str
    type: str
    seed: int
    lr: object = None
    searched: bool = False

    @property
    def name(self):
        return "-".join([self.stage, self.size, self.context, self.type, f"s{self.seed}"] + ([f"lr{self.lr:g}"] if self.searched else []))


class UniqueLoader(yaml.SafeLoader if yaml else object):
    """YAML whose doubled keys are mistakes, and whose 2e-3 is a number."""


def read_json(path):
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise GridError(f"{path}: {error}") from None


def read_yaml(path):
    if yaml is None:
        raise GridError("PyYAML is missing: apt-get install python3-yaml, or pip install pyyaml; or make the grid JSON where it is there: compare.py json GRID.yaml")

    def mapping(loader, node):
        keys = [key.value for key, _ in node.value if isinstance(key.value, str)]
        for at, key in enumerate(keys):
            if key in keys[:at]:
                raise GridError(f"{path}:{node.value[at][0].start_mark.line + 1}: the key {key!r} appears twice")
        loader.flatten_mapping(node)
        return dict(loader.construct_pairs(node, deep=True))

    UniqueLoader.add_constructor("tag:yaml.org,2002:map", mapping)
    UniqueLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"), list("-+0123456789"))
    try:
        with open(path, encoding="utf-8") as file:
            return yaml.load(file, UniqueLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise GridError(f"{path}: {' '.join(str(error).split())}") from None


def merge(base, *changes):
    """base with nested mappings changed key by key; lists and scalars are replaced. The kinds of an attention are replaced whole."""
    result = copy.deepcopy(base)
    for change in changes:
        for key, value in (change or {}).items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merge(result[key], value) if both and key != "kinds" else copy.deepcopy(value)
    return result


def substitute(value, names):
    """${name} in every text of a tree."""
    if isinstance(value, dict):
        return {key: substitute(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [substitute(item, names) for item in value]
    if not isinstance(value, str):
        return value

    def one(match):
        if match.group(1) not in names:
            raise GridError(f"${{{match.group(1)}}} in {value!r} is not a path of the grid; there are: {', '.join(sorted(names)) or 'none'}")
        return names[match.group(1)]
    return re.sub(r"\$\{(\w+)\}", one, value)


def config_text(config):
    """A configuration as sieve reads it. JSON is YAML too, but for numbers such as 64Ki, which sieve does not take from between quotes."""
    return yaml.safe_dump(config, sort_keys=False, width=150) if yaml else SUFFIXED.sub(r"\1", json.dumps(config, indent=1)) + "\n"


def config_hash(*parts):
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def loss_of(result, rule):
    """The number by which a rule ranks a finished run: rule.metric of the first result of rule.evaluation on rule.split."""
    try:
        value = result["evaluations"][rule["split"]][rule["evaluation"]][0][rule["metric"]]
    except (KeyError, IndexError, TypeError):
        raise GridError(f"{result.get('name')}: result.json has no {rule['metric']!r} of evaluation {rule['evaluation']!r} on {rule['split']!r}; does the "
                        "stage name that evaluation?") from None
    return float("inf") if value is None else value  # a loss that is not finite is written as null


class Grid:
    """A checked grid. `results`, where a method wants it, maps a cell's name to its result.json."""

    def __init__(self, data, where):
        self.where, self.data = where, data
        self.check()
        self.cells = [cell for stage in data["stages"] for cell in self.cells_of(stage)]
        names = [cell.name for cell in self.cells]
        for name in names:
            if names.count(name) > 1:
                self.fail("stages", f"two cells are called {name}: a list of its stage names something twice")

    @classmethod
    def load(cls, path):
        return cls((read_json if str(path).endswith(".json") else read_yaml)(path), str(path))

    def fail(self, key, what):
        raise GridError(f"{self.where}: {key}: {what}")

    # -- checks -----------------------------------------------------------------------------------------------------------------------------------
    def known(self, key, mapping, allowed):
        if not isinstance(mapping, dict):
            self.fail(key, f"is {mapping!r}, not a mapping")
        for name in mapping:
            if name not in allowed:
                self.fail(f"{key}.{name}" if key else name, f"unknown key; there are: {', '.join(sorted(allowed))}")

    def check(self):
        d = self.data
        self.known("", d, GRID_KEYS)
        for key in ("schema", "name", "base", "splits", "evaluations", "sizes", "contexts", "types", "stages"):
            if key not in d:
                self.fail(key, "is missing")
        if d["schema"] != 1:
            self.fail("schema", f"is {d['schema']!r}; this program reads 1")
        for key in ("splits", "evaluations", "sizes", "contexts", "types", "stages"):
            if not isinstance(d[key], dict) or not d[key]:
                self.fail(key, "is not a mapping with at least one entry")
            for name in d[key]:
                if not isinstance(name, str) or not NAME.fullmatch(name):
                    self.fail(key, f"{name!r} is no name: letters, digits, _ and . (it becomes part of a folder's name)")
        if "val" not in d["splits"]:
            self.fail("splits", "has no val: choices are made on it")
        for name, kind in d["types"].items():
            self.check_type(name, kind)
        labels = [kind.get("label", name) for name, kind in d["types"].items() if "best_of" not in kind]
        for label in labels:
            if labels.count(label) > 1:
                self.fail("types", f"two are labelled {label!r}: tables would not tell them apart")
        if d.get("reference") is not None and d["reference"] not in d["types"]:
            self.fail("reference", f"{d['reference']!r} is not one of types")
        if not isinstance(d.get("pairs", []), list):
            self.fail("pairs", "is no list of [type, other]")
        for pair in d.get("pairs", []):
            if not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1] or not all(isinstance(name, str) and name in d["types"] for name in pair):
                self.fail("pairs", f"{pair!r} is not two different types of the grid")
        for name, stage in d["stages"].items():
            self.check_stage(name, stage)
        rule = d.get("learning_rate")
        if rule is not None:
            self.check_rule("learning_rate", rule, {"stages", "split", "evaluation", "metric"})
            for name in rule["stages"]:
                if "lrs" not in d["stages"].get(name, {}):
                    self.fail("learning_rate.stages", f"{name!r} is no stage with lrs")

    def check_rule(self, key, rule, wanted):
        self.known(key, rule, wanted)
        for name in wanted - set(rule):
            self.fail(f"{key}.{name}", "is missing")
        if rule["split"] != "val":
            self.fail(f"{key}.split", f"is {rule['split']!r}: choices are made on val, never on what a table quotes")
        if rule["evaluation"] not in self.data["evaluations"]:
            self.fail(f"{key}.evaluation", f"{rule['evaluation']!r} is not one of evaluations")

    def check_type(self, name, kind):
        key = f"types.{name}"
        self.known(key, kind, TYPE_KEYS)
        if "best_of" in kind:
            for other in kind["best_of"]:
                if "kinds" not in self.data["types"].get(other, {}):
                    self.fail(f"{key}.best_of", f"{other!r} is not a type with kinds")
            if not kind.get("stages"):
                self.fail(f"{key}.stages", "is missing: the stages whose runs decide")
            if "learning_rate" not in self.data:
                self.fail(f"{key}.best_of", "wants the grid's learning_rate, whose evaluation and metric decide")
            return
        if not kind.get("kinds") or not kind.get("pattern"):
            self.fail(key, "wants kinds and pattern, as in model.attention, or best_of")
        if kind.get("cache", "all") not in CACHES:
            self.fail(f"{key}.cache", f"is {kind['cache']!r}, not one of {', '.join(CACHES)}")
        if kind.get("lr_of", name) not in self.data["types"]:
            self.fail(f"{key}.lr_of", f"{kind['lr_of']!r} is not one of types")

    def check_probes(self, key, stage):
        """A stage of probes has, instead of contexts, probes by name: each the probe group of a `sieve probe` configuration."""
        for other in ("contexts", "evaluations", "lrs", "lr", "final", "only_if", "from", "keep_checkpoint"):
            if other in stage:
                self.fail(f"{key}.{other}", "has no meaning in a stage with probe, whose entries say all; leave it out")
        if not isinstance(stage["probe"], dict) or not stage["probe"] or not all(isinstance(one, dict) and "task" in one for one in stage["probe"].values()):
            self.fail(f"{key}.probe", "is not a mapping of names to probe groups with a task")
        for name in stage["probe"]:
            if not isinstance(name, str) or not NAME.fullmatch(name):
                self.fail(f"{key}.probe", f"{name!r} is no name: letters, digits, _ and .")
        for name in stage.get("types") or []:
            if "best_of" in self.data["types"].get(name, {}):
                self.fail(f"{key}.types", f"{name!r} is a choice among types; a probe names the type itself")

    def check_stage(self, name, stage):
        key = f"stages.{name}"
        self.known(key, stage, STAGE_KEYS)
        if "probe" in stage:
            self.check_probes(key, stage)
        for part in ("types", "sizes") if "probe" in stage else ("types", "sizes", "contexts", "evaluations"):
            if not isinstance(stage.get(part), list) or not (stage[part] or part == "evaluations"):
                self.fail(f"{key}.{part}", "is not a list with at least one name")
            for item in stage[part]:
                if item not in self.data[part]:
                    self.fail(f"{key}.{part}", f"{item!r} is not one of {part}; there are: {', '.join(self.data[part])}")
        if not isinstance(stage.get("seeds"), list) or not all(isinstance(seed, int) for seed in stage["seeds"]):
            self.fail(f"{key}.seeds", "is not a list of whole numbers")
        if "lrs" in stage and "lr" in stage:
            self.fail(key, "has lrs and lr; lrs is a search, lr one value")
        for lr in [*stage.get("lrs", []), *([stage["lr"]] if "lr" in stage else [])]:
            if not isinstance(lr, (int, float)) or isinstance(lr, bool) or lr <= 0:
                self.fail(f"{key}.lrs", f"{lr!r} is not a learning rate")
        if stage.get("final") and "test" not in self.data["splits"]:
            self.fail(f"{key}.final", "is true, but splits has no test")
        if "only_if" in stage:
            self.known(f"{key}.only_if", stage["only_if"], {"within", "of", "stages", "split", "evaluation", "metric"})
            self.check_rule(f"{key}.only_if", {k: v for k, v in stage["only_if"].items() if k in ("split", "evaluation", "metric")}, {"split", "evaluation", "metric"})
        if "from" in stage:
            self.known(f"{key}.from", stage["from"], {"stage", "type"})
            if not self.data["stages"].get(stage["from"].get("stage"), {}).get("keep_checkpoint"):
                self.fail(f"{key}.from.stage", "is not a stage with keep_checkpoint: true")

    # -- cells ------------------------------------------------------------------------------------------------------------------------------------
    def cells_of(self, stage):
        s = self.data["stages"][stage]
        lrs = s.get("lrs") or [s.get("lr")]
        # Seeds outermost: a grid that ends early has every type once, not some types thrice. The contexts of a stage of probes are its probes.
        return [Cell(stage, size, context, kind, seed, lr, "lrs" in s) for seed in s["seeds"] for size in s["sizes"] for context in s.get("probe") or s["contexts"]
                for kind in s["types"] for lr in lrs]

    def settled(self, cell, results):
        """A finished result, or None for a cell that failed or was not needed; Waiting where it is still to come."""
        result = results.get(cell.name)
        if result is not None:
            return result if result["status"] == "finished" else None
        try:
            self.check_condition(cell, results)
        except NotNeeded:
            return None
        raise Waiting(cell.name)

    def resolved_type(self, cell, results):
        kind = self.data["types"][cell.type]
        if "best_of" not in kind:
            return cell.type
        rule = self.data["learning_rate"]
        losses = {}
        for other in self.cells:
            if other.type in kind["best_of"] and other.stage in kind["stages"]:
                result = self.settled(other, results)
                if result is not None:
                    losses.setdefault(other.type, []).append(loss_of(result, rule))
        if not losses:
            raise NotNeeded(f"no run of {', '.join(kind['best_of'])} has finished in stages {', '.join(kind['stages'])}")
        return min(losses, key=lambda name: (sum(losses[name]) / len(losses[name]), name))

    def chosen_lr(self, kind, results):
        """(value, {lr: loss}) of the search for a type: the lowest loss; of equal ones the smaller rate. A failed value is one that lost."""
        rule = self.data.get("learning_rate")
        if rule is None:
            return None, {}
        kind = self.data["types"][kind].get("lr_of", kind)
        cells = [cell for cell in self.cells if cell.stage in rule["stages"] and cell.type == kind]
        if not cells:
            self.fail("learning_rate", f"stages {', '.join(rule['stages'])} do not search for type {kind}; add it to one, or give the type lr_of")
        losses = {}
        for cell in cells:
            result = self.settled(cell, results)
            if result is not None:
                losses.setdefault(cell.lr, []).append(loss_of(result, rule))
        losses = {lr: sum(values) / len(values) for lr, values in losses.items()}
        if not losses:
            raise NotNeeded(f"every learning rate of the search failed for type {kind}")
        return min(losses, key=lambda lr: (losses[lr], lr)), losses

    def check_condition(self, cell, results):
        rule = self.data["stages"][cell.stage].get("only_if")
        if rule is None:
            return
        mean = {}
        for kind in (cell.type, rule["of"]):
            losses = []
            for other in self.cells:
                if other.type == kind and other.stage in rule["stages"] and (other.size, other.context) == (cell.size, cell.context):
                    result = self.settled(other, results)
                    if result is not None:
                        losses.append(loss_of(result, rule))
            if not losses:
                raise NotNeeded(f"no run of {kind} has finished in stages {', '.join(rule['stages'])}")
            mean[kind] = sum(losses) / len(losses)
        gap = mean[cell.type] - mean[rule["of"]]
        if gap > rule["within"]:
            raise NotNeeded(f"{gap:.4f} behind {rule['of']}, more than {rule['within']}")

    def source_of(self, cell):
        """The cell whose checkpoint this one starts from, or None."""
        wanted = self.data["stages"][cell.stage].get("from")
        if wanted is None:
            return None
        for other in self.cells:
            if (other.stage, other.type, other.size, other.context, other.seed) == (wanted["stage"], wanted["type"], cell.size, cell.context, cell.seed):
                return other
        self.fail(f"stages.{cell.stage}.from", f"stage {wanted['stage']} has no {wanted['type']} of size {cell.size}, context {cell.context}, seed {cell.seed}")

    def probe_config(self, cell):
        """What `sieve probe` is given: device and model of base < size < stage < type; the probe's group, which the stage completes; the seed."""
        d, t, stage = self.data, self.data["types"][cell.type], self.data["stages"][cell.stage]
        changes = merge(d["base"], d["sizes"][cell.size], stage.get("set"), {"probe": stage["probe"][cell.context]}, t.get("set"),
                        {"model": {"attention": {"kinds": t["kinds"], "pattern": t["pattern"]}}, "probe": {"seed": cell.seed}})
        return {"schema": 1, **{key: changes[key] for key in ("device", "model", "probe") if key in changes}}

    def config(self, cell, kind, lr):
        """base < size < context < stage < type; paths still as ${name}."""
        d, t = self.data, self.data["types"][kind]
        return merge(d["base"], d["sizes"][cell.size], d["contexts"][cell.context], d["stages"][cell.stage].get("set"), t.get("set"),
                     {"run": {"name": cell.name, "seed": cell.seed}, "model": {"attention": {"kinds": t["kinds"], "pattern": t["pattern"]}}},
                     {"train": {"optimizer": {"lr": lr}}} if lr is not None else {})

    def resolve(self, cell, results):
        """What to run: a dict with type, lr, search, command, config (paths still as ${name}), evaluations, splits, source and hash."""
        d, stage = self.data, self.data["stages"][cell.stage]
        if "probe" in stage:
            config = self.probe_config(cell)
            return {"type": cell.type, "lr": config["probe"].get("lr"), "search": {}, "command": "probe", "config": config, "evaluations": {}, "splits": {},
                    "source": None, "hash": config_hash(config)}
        self.check_condition(cell, results)
        kind = self.resolved_type(cell, results)
        lr, search = (cell.lr, {}) if cell.lr is not None else self.chosen_lr(kind, results)
        config = self.config(cell, kind, lr)
        source, source_hash = self.source_of(cell), None
        if source is not None:
            origin = results.get(source.name)
            if origin is None or origin["status"] != "finished":
                raise Waiting(source.name)
            config = merge(config, {"init_from": {"path": "${source}"}})
            source_hash = origin["hash"]
        splits = {name: path for name, path in d["splits"].items() if name != "test" or stage.get("final")}
        evaluations = {name: d["evaluations"][name] for name in stage["evaluations"]}
        return {"type": kind, "lr": lr, "search": search, "command": "finetune" if source else "pretrain", "config": config, "evaluations": evaluations,
                "splits": splits, "source": source.name if source else None, "hash": config_hash(config, evaluations, splits, source_hash)}

    def paths(self, given):
        """name -> absolute path; given: those of the command line."""
        paths = dict(self.data.get("paths") or {})
        for name in given:
            if name not in paths:
                self.fail("paths", f"has no {name!r}; there are: {', '.join(paths) or 'none'}")
        paths.update(given)
        return {name: os.path.abspath(path) for name, path in paths.items()}
