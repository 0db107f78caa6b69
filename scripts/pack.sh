#!/usr/bin/env bash
# Packs built programs and the libraries they need into one archive that runs on another machine without installing anything there:
#   bash scripts/pack.sh build/cuda sieve.tar.xz [program ...]      then, there:  tar xf sieve.tar.xz && sieve/bin/sieve doctor
# Programs are paths below the build folder; without any, the command line program. They find the packed libraries by themselves. What must fit the
# machine stays out and is taken from there: the C library, the GPU driver, CUDA, cuDNN, NCCL and MPI.
set -euo pipefail
[ $# -ge 2 ] || { sed -n '2,5p' "$0" >&2; exit 2; }
build=$(realpath -e "$1")
archive=$(realpath -m "$2")
shift 2
[ $# -gt 0 ] || set -- src/cli/sieve
command -v patchelf >/dev/null || { echo "pack: patchelf is missing: apt-get install patchelf" >&2; exit 2; }

stage=$(mktemp -d)
trap 'rm -rf "$stage"' EXIT
mkdir -p "$stage/sieve/bin" "$stage/sieve/lib"
for program in "$@"; do
  [ -x "$build/$program" ] || { echo "pack: $build/$program is not built" >&2; exit 2; }
  cp "$build/$program" "$stage/sieve/bin/"
  strip "$stage/sieve/bin/$(basename "$program")"
done
stays_out='^(ld-linux|libc|libm|libdl|librt|libpthread|libresolv|libstdc\+\+|libgcc_s|libcuda|libcudart|libcublas|libcudnn|libnccl|libmpi|libopen-(pal|rte)|libhwloc|libevent|libudev)[.+_-]'
for program in "$stage"/sieve/bin/*; do
  ldd "$program" | awk '$3 ~ /^\// { print $3 }'
done | sort -u | while IFS= read -r library; do
  name=$(basename "$library")
  if ! [[ $name =~ $stays_out ]] && [[ $name != libcublasLt* ]]; then cp -L "$library" "$stage/sieve/lib/$name"; fi
done
for library in "$stage"/sieve/lib/*; do patchelf --set-rpath '$ORIGIN' "$library"; done
for program in "$stage"/sieve/bin/*; do patchelf --set-rpath '$ORIGIN/../lib' "$program"; done
mkdir -p "$(dirname "$archive")"
XZ_OPT=${XZ_OPT:--3 -T2} tar -C "$stage" -cJf "$archive" sieve
echo "pack: $(find "$stage/sieve/bin" -type f | wc -l) programs, $(find "$stage/sieve/lib" -type f | wc -l) libraries, $(stat -c %s "$archive") bytes: $archive"
