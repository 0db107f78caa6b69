"""What the scripts say while they work. Their tools are stand-ins here."""
import os
import pathlib
import pty
import shutil
import subprocess

from harness import Folder, expect, main

SCRIPTS = pathlib.Path(__file__).resolve().parents[2] / "scripts"
CMAKE = """#!/usr/bin/env bash
[ "$1" = --preset ] && { echo "-- Configuring done"; exit 0; }
for i in $(seq 120); do echo "[$i/120] Building CXX object number$i.o"; done
echo "$@"
exit ${FAKE_CODE:-0}
"""


def build(f, code="0", every="20", **kw):
    """scripts/build.sh in a folder of its own, with a cmake that only talks."""
    (f.path / "scripts").mkdir(exist_ok=True)
    (f.path / "bin").mkdir(exist_ok=True)
    shutil.copy(SCRIPTS / "build.sh", f.path / "scripts")
    (f.path / "bin" / "cmake").write_text(CMAKE)
    (f.path / "bin" / "cmake").chmod(0o755)
    env = {**os.environ, "PATH": f"{f.path / 'bin'}:{os.environ['PATH']}", "FAKE_CODE": code, "BUILD_SAYS_EVERY": every, "TERM": "xterm"}
    return subprocess.Popen(["bash", f.path / "scripts" / "build.sh", "cpu", "sieve", "test_io"], env=env, text=True, **kw)


def test_build_says_how_far_it_is():
    with Folder(prepared=False) as f:
        for every, said in (("0", 120), ("600", 0)):
            _, err = (job := build(f, stderr=subprocess.PIPE, every=every)).communicate()
            assert job.returncode == 0, err
            lines = err.splitlines()
            assert len(lines) == 2 + said and all(line.startswith(f"build: {at} of 120 after ") for at, line in enumerate(lines[1:-1], 1)), lines
        expect((f.path / "build" / "cpu" / "build.log").read_text(), "-- Configuring done", "number120.o", "--target sieve test_io")


def test_build_that_fails_shows_its_log():
    with Folder(prepared=False) as f:
        _, err = (job := build(f, code="3", stderr=subprocess.PIPE)).communicate()
        assert job.returncode == 1, (job.returncode, err)
        expect(err, "number120.o", "build: failed", "build/cpu/build.log")


def test_build_on_a_terminal_keeps_to_one_line():
    with Folder(prepared=False) as f:
        reader, writer = pty.openpty()
        job = build(f, stderr=writer)
        os.close(writer)
        text = b""
        try:
            while piece := os.read(reader, 4096):
                text += piece
        except OSError:  # the other side has closed
            pass
        os.close(reader)
        assert job.wait() == 0
        assert text.count(b"\n") == 2 and text.count(b"\r\x1b[K[") == 120, text[-2000:]


if __name__ == "__main__":
    main(globals())
