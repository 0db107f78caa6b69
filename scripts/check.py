#!/usr/bin/env python3
"""House rules, checked: include directions, homes of third-party headers, sizes of files and functions, formatting. Prints one line per breach; exit 1 if any."""
import pathlib
import re
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
FOLDERS = ["core", "tensor", "autograd", "attention", "nn", "io", "data", "dist", "train", "cli"]
MAY_INCLUDE = {
    "core": [], "tensor": ["core"], "autograd": ["tensor", "core"], "attention": ["autograd", "tensor", "core"],
    "nn": ["attention", "autograd", "tensor", "core"], "io": ["tensor", "core"], "data": ["io", "tensor", "core"],
    "dist": ["tensor", "core"], "train": FOLDERS[:-2], "cli": FOLDERS[:-1],
}
# header -> the only files that may include it
HOMES = {
    r"mpi\.h": r"src/dist/mpi_\w+\.(cpp|h)",
    r"hdf5\.h": r"src/io/hdf5\.cpp",
    r"yaml-cpp/.*": r"src/io/yaml\w*\.cpp",
    r"cuda.*\.h|cublas.*\.h|cudnn.*\.h": r"src/\w+/(kernels/)?cuda/.*|src/dist/nccl_\w+\.(cpp|h)",
    r"nccl\.h": r"src/dist/nccl_\w+\.(cpp|h)",
    r"oneapi/.*|cblas\.h": r"src/tensor/kernels/cpu/.*",
    r"CLI/.*": r"src/cli/.*",
    r"spdlog/.*|fmt/.*": r"src/core/log\.cpp",
    r"catch2/.*": r"tests/support/.*",
}
# What kernels may see besides other kernel headers.
KERNEL_VIEW = r'(core/.*|tensor/(device|dispatch|profile|cuda/check|cuda/runtime)\.h|attention/(spans|spec)\.h|.*kernels/.*|.*\.cuh)'
MAX_LINES = 500
LONGER_FOR_A_REASON = {}  # path -> reason
MAX_FUNCTION = 60
LONGER_FUNCTIONS = {  # "path: function" -> reason
    "src/attention/kernels/cuda/linear_gated_gradients.cu: gradients": "named steps in the order that their barriers ask for",
    "src/attention/kernels/cuda/linear_tensor_gradients.cu: key_gradients": "two sums of one block, through one closure over its rows",
}
NOISE = r"""//[^\n]*|/\*.*?\*/|R"\(.*?\)"|"(?:\\.|[^"\\\n])*"|(?<!\w)'(?:\\.|[^'\\\n])+'|(?m:^[ ]*#(?:[^\n]*\\\n)*[^\n]*)"""


def sources():
    for top in ("src", "tests", "bench"):
        for path in sorted((ROOT / top).rglob("*")):
            if path.suffix in (".h", ".cpp", ".cu", ".cuh"):
                yield path, path.relative_to(ROOT).as_posix()


def check_includes(name, text, complain):
    parts = name.split("/")
    for number, line in enumerate(text.splitlines(), 1):
        quoted = re.match(r'\s*#include\s+"([^"]+)"', line)
        angled = re.match(r"\s*#include\s+<([^>]+)>", line)
        header = (quoted or angled).group(1) if quoted or angled else None
        if header is None:
            continue
        for pattern, home in HOMES.items():
            if re.fullmatch(pattern, header) and not re.fullmatch(home, name):
                complain(f"{name}:{number}: <{header}> belongs only in {home}")
        if parts[0] != "src" or not quoted:
            continue
        folder = header.split("/")[0]
        if folder in FOLDERS and folder != parts[1] and folder not in MAY_INCLUDE[parts[1]]:
            complain(f"{name}:{number}: {parts[1]} may not include {header}")
        if "/kernels/" in name and not re.fullmatch(KERNEL_VIEW, header):
            complain(f"{name}:{number}: a kernel sees plain structs only, not {header}")
        if folder in ("tests", "bench"):
            complain(f"{name}:{number}: nothing includes {folder}")


def check_size(name, text, complain):
    lines = text.count("\n")
    if lines > MAX_LINES and name not in LONGER_FOR_A_REASON:
        complain(f"{name}: {lines} lines; above {MAX_LINES} a file wants a reason (scripts/check.py, LONGER_FOR_A_REASON)")


def check_functions(name, text, complain):
    """Counts braces, from the line of a signature (below `template`) to the one that closes the body."""
    rooms, head, begin = [], "", 0  # of each open brace: (first line, name) if it is a function's, None for all others
    for number, line in enumerate(re.sub(NOISE, lambda m: "\n" * m.group().count("\n"), text, flags=re.S).split("\n"), 1):
        while (shorter := re.sub(r"\{[^{}]*\}", lambda m: "" if line[m.end():].strip() else ";", line)) != line:
            line = shorter
        if re.fullmatch(r"\s*(template <.*>|(public|private|protected):)\s*", line):
            continue
        for char in line + "\n":
            if char == "{":
                named = [n for n in re.findall(r"([\w~]+)\(", head) if n not in ("__launch_bounds__", "alignas", "decltype")]
                is_type = re.match(r"(inline |typedef )?(namespace|struct|class|enum|union|extern)\b", head)
                rooms.append((begin, named[0]) if named and not is_type and not any(rooms) else None)
            elif char == "}" and rooms and (function := rooms.pop()):
                lines = number - function[0] + 1
                if lines > MAX_FUNCTION and f"{name}: {function[1]}" not in LONGER_FUNCTIONS:
                    complain(f"{name}:{function[0]}: {function[1]} has {lines} lines; above {MAX_FUNCTION} a function wants a reason (scripts/check.py, LONGER_FUNCTIONS)")
            if not head and not char.isspace():
                begin = number
            head = "" if char in "{};" else head + char if head or not char.isspace() else head
    if rooms:
        complain(f"{name}: its braces do not close; scripts/check.py cannot measure its functions")


def check_words(name, text, complain):
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(r"\b(TODO|FIXME|XXX|HACK)\b", line):
            complain(f"{name}:{number}: unfinished work named in the code")
        if re.search(r"^\s*#\s*if(n?def)?\b", line) and not re.search(r"__CUDACC__|__CUDA_ARCH_FEAT_SM90_ALL|__has_include|__AVX|CATCH_|_OPENMP|SIEVE_HD", line):
            complain(f"{name}:{number}: no #ifdef in logic: use the constants of core/build.h")


def check_format(files, fix, complain):
    tool = shutil.which("clang-format-14")
    if tool is None:
        complain("clang-format-14 is missing: run bash scripts/setup.sh")
        return
    for start in range(0, len(files), 40):
        chunk = files[start:start + 40]
        if fix:
            subprocess.run([tool, "-i", *chunk], cwd=ROOT, check=True)
        run = subprocess.run([tool, "--dry-run", "--Werror", *chunk], cwd=ROOT, capture_output=True, text=True)
        for name in sorted({line.split(":")[0] for line in run.stderr.splitlines() if "error:" in line}):
            complain(f"{name}: not formatted: bash scripts/check.sh --fix")


def main():
    problems = []
    names = []
    for path, name in sources():
        text = path.read_text(encoding="utf-8")
        names.append(name)
        check_includes(name, text, problems.append)
        check_size(name, text, problems.append)
        if name.startswith("src/"):
            check_functions(name, text, problems.append)
        check_words(name, text, problems.append)
    check_format(names, "--fix" in sys.argv[1:], problems.append)
    for problem in problems:
        print(problem)
    print(f"check: {len(names)} files, {len(problems)} breaches")
    return 1 if problems else 0


sys.exit(main())
