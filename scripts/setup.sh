#!/usr/bin/env bash
# Installs what sieve builds with, and nothing else: the one place that installs anything. Debian 12 and Ubuntu 24.04.
#   bash scripts/setup.sh          installs the missing packages (as root, or through sudo)
#   bash scripts/setup.sh --list   prints the packages
# Where there is a CUDA toolkit it also fetches the headers of cuDNN's frontend from PyPI into build/deps.
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config git ccache python3 ca-certificates
  libdnnl-dev libopenblas-dev libhdf5-dev libopenmpi-dev openmpi-bin libyaml-cpp-dev
  libcli11-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libxxhash-dev libzstd-dev zlib1g-dev libpcre2-dev libutf8proc-dev
  catch2 clang-format-14 python3-yaml
)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

# Headers alone, for full and window attention by cuDNN (cmake/SieveDependencies.cmake). Without them sieve's own kernels do that work, so nothing
# here is an error. SIEVE_CUDNN_FRONTEND=/path/to/wheel takes a wheel that is already there.
fetch_cudnn_frontend() {
  local version=1.32.0 deps
  command -v nvcc >/dev/null || [ -x "${CUDA_HOME:-/usr/local/cuda}/bin/nvcc" ] || return 0
  deps=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/build/deps
  [ ! -e "$deps/cudnn_frontend/include/cudnn_frontend.h" ] || return 0
  local work wheel=${SIEVE_CUDNN_FRONTEND:-}
  mkdir -p "$deps"
  work=$(mktemp -d "$deps/fetch.XXXXXX")
  if [ -z "$wheel" ]; then
    echo "setup: there is a CUDA toolkit; fetching the headers of cuDNN's frontend $version for builds of the cuda preset" >&2
    if python3 -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: -d "$work" "nvidia-cudnn-frontend==$version" >"$work/log" 2>&1; then
      wheel=$(ls "$work"/*.whl)
    fi
  fi
  # Into a folder of its own first: a broken archive leaves nothing half done.
  if [ -n "$wheel" ] && python3 - "$wheel" "$work/include" >>"$work/log" 2>&1 <<'END' && mkdir -p "$deps/cudnn_frontend" && mv -T "$work/include" "$deps/cudnn_frontend/include"; then
import pathlib, sys, zipfile
archive, target = zipfile.ZipFile(sys.argv[1]), pathlib.Path(sys.argv[2])
root = next(n for n in archive.namelist() if n.endswith("include/cudnn_frontend.h"))[:-len("cudnn_frontend.h")]
for name in archive.namelist():
    if name.startswith(root) and not name.endswith("/"):
        file = target / name[len(root):]
        if ".." in file.parts: sys.exit(f"{name} leaves its folder")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(archive.read(name))
END
    echo "setup: cuDNN's frontend is in $deps/cudnn_frontend" >&2
  else
    echo "setup: the headers of cuDNN's frontend could not be fetched from PyPI; attention on GPUs will use sieve's own kernels." >&2
    echo "       Later: bash scripts/setup.sh, or with a downloaded wheel: SIEVE_CUDNN_FRONTEND=nvidia_cudnn_frontend-$version-*.whl bash scripts/setup.sh" >&2
    tail -n 2 "$work/log" >&2 || true
  fi
  rm -rf "$work"
}
fetch_cudnn_frontend

missing=()
for p in "${packages[@]}"; do
  dpkg-query -W -f='${Status}' "$p" 2>/dev/null | grep -q '^install ok installed' || missing+=("$p")
done
[ ${#missing[@]} -eq 0 ] && exit 0

as_root=()
if [ "$(id -u)" -ne 0 ]; then
  if command -v sudo >/dev/null && sudo -n true 2>/dev/null; then
    as_root=(sudo)
  elif command -v sudo >/dev/null && [ -t 0 ]; then
    as_root=(sudo)
  else
    echo "sieve needs packages that are not installed, and this user may not install them. As root, run:" >&2
    echo "  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}" >&2
    exit 2
  fi
fi
if ! command -v apt-get >/dev/null; then
  echo "sieve's set-up knows apt (Debian 12, Ubuntu 24.04). Here, install by hand: ${missing[*]}" >&2
  exit 2
fi
echo "setup: installing ${missing[*]}" >&2
apt() { "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -y -qq "$@"; }
log=$(mktemp)
if ! { apt update && apt install --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
  tail -n 30 "$log" >&2
  echo "setup: apt-get failed; its whole output is in $log" >&2
  exit 2
fi
rm -f "$log"
