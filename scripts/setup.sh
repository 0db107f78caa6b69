#!/usr/bin/env bash
# Installs what sieve builds with, and nothing else: the one place that installs anything. Debian 12 and Ubuntu 24.04.
#   bash scripts/setup.sh          installs the missing packages (as root, or through sudo)
#   bash scripts/setup.sh --list   prints the packages
set -euo pipefail

packages=(
  build-essential cmake ninja-build pkg-config git ccache python3 ca-certificates
  libdnnl-dev libopenblas-dev libhdf5-dev libopenmpi-dev openmpi-bin libyaml-cpp-dev
  libcli11-dev libspdlog-dev libfmt-dev nlohmann-json3-dev libxxhash-dev libzstd-dev zlib1g-dev libpcre2-dev libutf8proc-dev
  catch2 clang-format-14
)
if [ "${1:-}" = --list ]; then
  printf '%s\n' "${packages[@]}"
  exit 0
fi

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
