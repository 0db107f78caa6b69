"""What scripts/compare.py does with files and programs: whole files or none, one child at a time that never outlives its parent."""
import ctypes
import json
import os
import pathlib
import shutil
import signal
import subprocess

from compare_grid import GridError


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


class Program:
    """Starts one child at a time and hands stop requests on to it. A child dies with this process, so that nobody trains unseen."""

    def __init__(self):
        self.child, self.signal = None, None
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self.stop)

    def stop(self, number, _):
        self.signal = number
        if self.child is not None:
            self.child.send_signal(signal.SIGTERM)  # sieve saves and ends with 75

    def run(self, command, log):
        """(exit code, stdout); stderr goes to the end of `log`. Stopped where a signal has arrived before or meanwhile."""
        if self.signal:
            raise Stopped
        with open(log, "a", encoding="utf-8") as err:
            err.write(f"$ {' '.join(command)}\n")
            err.flush()
            # A session of its own: Ctrl-C reaches the child once, through stop().
            self.child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=err, stdin=subprocess.DEVNULL, start_new_session=True, preexec_fn=die_with_parent)
            if self.signal:
                self.child.send_signal(signal.SIGTERM)
            out, _ = self.child.communicate()
            code, self.child = self.child.returncode, None
        if self.signal:
            raise Stopped
        return code, out.decode("utf-8", "replace")


def die_with_parent():
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def first_line(command):
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip().split("\n")[0]
    except (OSError, subprocess.TimeoutExpired):
        return ""


def last_words(log):
    """What a program said when it failed: the last lines of its part of the log."""
    lines = []
    for line in log.read_text(encoding="utf-8", errors="replace").splitlines():
        lines = [] if line.startswith("$ ") else [*lines, line] if line.strip() else lines
    return "\n".join(lines[-4:])[-2000:]


def find_sieve(given):
    candidates = [given] if given else [os.environ.get("SIEVE"), shutil.which("sieve"), str(pathlib.Path(__file__).resolve().parent.parent / "build/cpu/src/cli/sieve")]
    for path in candidates:
        if path and os.access(path, os.X_OK):
            return str(pathlib.Path(path).resolve())
    raise GridError(f"{given or 'sieve'}: no such program: build it (bash scripts/build.sh cpu sieve) or give --sieve PATH")
