# Sourced by the tests here: mpirun and small checks. The first argument of every test is the worker program.
set -u
# Whoever started the tests may have blocked signals or told mpirun to keep them: mpirun would never see, or never forward, SIGUSR1. A shell cannot
# unblock them.
export OMPI_MCA_ess_base_forward_signals=SIGUSR1
if ! grep -q '^SigBlk:[[:space:]]*0*$' /proc/self/status && [ -z "${SIEVE_UNBLOCKED:-}" ]; then
  SIEVE_UNBLOCKED=1 exec python3 -c 'import os, signal, sys; signal.pthread_sigmask(signal.SIG_SETMASK, []); os.execvp("bash", ["bash", *sys.argv[1:]])' "$0" "$@"
fi
worker=$1
shift
: "${SIEVE_MPIRUN:?the path of mpirun, or none: tests between GPUs go without}"
dir=$(mktemp -d "${TMPDIR:-/tmp}/sieve-mpi.XXXXXX")
job=  # a background mpirun
trap '[ -n "$job" ] && kill "$job" 2>/dev/null; wait; rm -rf "$dir"' EXIT

# More ranks than cores are fine; no network beyond this host. Followed by -n N "$worker" arguments...
mpirun=("$SIEVE_MPIRUN" --oversubscribe --bind-to none --mca btl vader,self --mca pml ob1)

# ranks N arguments...   With own_gpu=1 rank n sees GPU n alone.
own_gpu=
ranks() {
  local n=$1
  shift
  if [ "$SIEVE_MPIRUN" != none ] && [ -n "$own_gpu" ]; then
    "${mpirun[@]}" -n "$n" bash -c 'CUDA_VISIBLE_DEVICES=$OMPI_COMM_WORLD_LOCAL_RANK exec "$@"' rank "$worker" "$@"
    return
  fi
  if [ "$SIEVE_MPIRUN" != none ]; then
    "${mpirun[@]}" -n "$n" "$worker" "$@"
    return
  fi
  # Without MPI the ranks meet in a folder.
  local meeting r code=0 pids=()
  meeting=$(mktemp -d "$dir/meeting.XXXXXX")
  for r in $(seq 0 $((n - 1))); do
    [ -z "$own_gpu" ] || local -x CUDA_VISIBLE_DEVICES=$r
    SIEVE_NCCL_INIT=file:$meeting SIEVE_RANK=$r SIEVE_WORLD_SIZE=$n SIEVE_LOCAL_RANK=$r "$worker" "$@" &
    pids[r]=$!
  done
  for r in $(seq 0 $((n - 1))); do wait "${pids[r]}" || code=$?; done
  return $code
}

failed() {
  echo "FAILED: $*" >&2
  [ -e "$dir/log" ] && sed 's/^/  log: /' "$dir/log" >&2
  exit 1
}

now_ms() { date +%s%3N; }

# wait_for FILE...: at most 20 s, while the background job runs
wait_for() {
  local file
  for file in "$@"; do
    for _ in $(seq 400); do
      [ -e "$file" ] && continue 2
      kill -0 "$job" 2>/dev/null || break
      sleep 0.05
    done
    failed "$file did not appear"
  done
}
