"""What scripts/compare.py does with files and programs: whole files or none, places on the machine, children that never outlive their parent."""
import ctypes
import dataclasses
import json
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import time

from comparison.grid import GridError


class Stopped(Exception):
    """A signal, or a training that saved and ended early."""


class Failed(Exception):
    """A run's program failed: what it said."""


def write_whole(path, text):
    """Replaces a file in one move: it is the old one or the new one, whatever happens."""
    aside = path.with_name(path.name + ".tmp")
    with open(aside, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(aside, path)


def write_json(path, value):
    write_whole(path, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n")


def read_json(path, default=None):
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return default
    except (OSError, ValueError) as error:
        raise GridError(f"{path}: not readable ({error}); move it away and run again") from None


@dataclasses.dataclass(frozen=True)
class Slot:
    """A place for one run at a time: a GPU (None: whatever the configuration says), how many runs share it, and what its programs find in the environment."""
    gpu: object
    side_by_side: int
    env: dict


def cores():
    """Those that this process may use; a container's share counts."""
    here = len(os.sched_getaffinity(0))
    try:
        quota, period = pathlib.Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        return max(1, min(here, int(quota) // int(period)))
    except (OSError, ValueError):
        return here


def gpus_here():
    """Indices of this machine's GPUs, as texts; none where neither the driver's program nor a device file shows one."""
    return lines_of(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"]) or sorted((path.name[6:] for path in pathlib.Path("/dev").glob("nvidia[0-9]*")), key=int)


def gpu_ids(text):
    """--gpus: a number N is the first N that CUDA_VISIBLE_DEVICES leaves (of the machine where it is not set), a list with a comma these ones."""
    listed, seen = "," in text, os.environ.get("CUDA_VISIBLE_DEVICES")
    ids = [one.strip() for one in text.split(",") if one.strip()]
    if not listed and (not text.isdigit() or text == "0"):
        raise GridError(f"--gpus {text}: want how many, or which: 0,1,3 (one alone: 3,)")
    if not ids or len(set(ids)) < len(ids):
        raise GridError(f"--gpus {text}: names {'a GPU twice; more runs on one are --per-gpu' if ids else 'none'}")
    there = gpus_here()
    if not listed:
        left = there if seen is None else [one for one in seen.split(",") if one]
        ids = left[:int(text)]
        if there and seen is not None and len(left) < int(text):
            raise GridError(f"--gpus {text}: CUDA_VISIBLE_DEVICES leaves {len(left)}: {seen!r}")
    if not there or (not listed and len(ids) < int(text)) or any(one.isdigit() and one not in there for one in ids):
        shown = f"{len(there)} GPU{'s' if len(there) > 1 else ''} ({', '.join(there)})" if there else "no GPU"
        raise GridError(f"--gpus {text}: this machine shows {shown}; --jobs N runs side by side on the CPU")
    return ids


def slots_of(gpus, per_gpu, jobs):
    """Every GPU once, then every GPU again up to per_gpu; without GPUs `jobs` places. The cores are shared out unless the caller has set OMP_NUM_THREADS."""
    places = [gpu for _ in range(per_gpu) for gpu in gpus] if gpus else [None] * jobs
    threads = {} if len(places) == 1 or "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores() // len(places)))}
    return [Slot(gpu, per_gpu if gpus else jobs, {**threads, **({} if gpu is None else {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": gpu})})
            for gpu in places]


class Child:
    """A program under way; its stdout is kept aside, its stderr goes to the end of a log."""

    def __init__(self, command, log, env):
        self.out = tempfile.TemporaryFile()
        with open(log, "a", encoding="utf-8") as err:
            err.write(f"$ {' '.join(command)}\n")
            err.flush()
            # A session of its own: Ctrl-C reaches the child once, through Program.stop().
            self.process = subprocess.Popen(command, stdout=self.out, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True, env={**os.environ, **env},
                                            preexec_fn=die_with_parent)

    def answer(self):
        """(exit code, stdout) of one that has ended."""
        with self.out as out:
            out.seek(0)
            return self.process.returncode, out.read().decode("utf-8", "replace")


class Program:
    """Starts children and hands stop requests on to all of them. A child dies with this process, so that nobody trains unseen."""

    def __init__(self):
        self.children, self.signal = [], None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.stop)

    def stop(self, number, _):
        self.signal = number
        self.end_children()

    def end_children(self):
        for child in self.children:
            child.process.send_signal(signal.SIGTERM)  # sieve saves and ends with 75

    def start(self, command, log, env):
        """Stopped where a signal has arrived."""
        if self.signal:
            raise Stopped
        child = Child(command, log, env)
        self.children.append(child)
        if self.signal:  # between the two lines above: stop() has not seen it
            child.process.send_signal(signal.SIGTERM)
        return child

    def wait(self):
        """The first child found to have ended."""
        while True:
            for child in self.children:
                if child.process.poll() is not None:
                    self.children.remove(child)
                    return child
            time.sleep(0.01)

    def end(self):
        """Asks whoever is left to save and end, and waits for it."""
        self.end_children()
        while self.children:
            self.wait()


LIBC = ctypes.CDLL(None)  # before any fork


def die_with_parent():
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def lines_of(command):
    """What a program prints; nothing where it cannot be started or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


def first_line(command):
    return (lines_of(command) or [""])[0]


def last_words(log):
    """What a program said when it failed: the last lines of its part of the log."""
    lines = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        lines = [] if line.startswith("$ ") else [*lines, line] if line.strip() else lines
    return "\n".join(lines[-4:])[-2000:]


def find_sieve(given):
    candidates = [given] if given else [os.environ.get("SIEVE"), shutil.which("sieve"), str(pathlib.Path(__file__).resolve().parents[2] / "build/cpu/src/cli/sieve")]
    for path in candidates:
        if path and os.access(path, os.X_OK):
            return str(pathlib.Path(path).resolve())
    raise GridError(f"{given or 'sieve'}: no such program: build it (bash scripts/build.sh cpu sieve) or give --sieve PATH")
