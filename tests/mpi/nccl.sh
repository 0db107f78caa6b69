# nccl.sh WORKER: collectives between GPUs, and one gradient on any number of them. Visibly skipped below two GPUs.
. "$(dirname "$0")/run.sh"
first=$(ranks 2 collectives --gpu) || failed "collectives on 2 GPUs: exit code $?"
case $first in skipped*) echo "$first"; exit 0 ;; esac
[ "$first" = "collectives correct on 2 ranks" ] || failed "unexpected output: $first"

gpus=2
case $(ranks 4 collectives --gpu) in *"correct on 4 ranks") gpus=4 ;; skipped*) ;; *) failed "collectives on 4 GPUs" ;; esac
for micro_batches in 4 12; do
  cpu=$("$worker" hash $micro_batches --no-norm) || failed "on the CPU: exit code $?"
  [ "$("$worker" hash $micro_batches --gpu --no-norm)" = "$cpu" ] || failed "one GPU gives another gradient than the CPU"
  alone=$("$worker" hash $micro_batches --gpu) || failed "one GPU: exit code $?"
  for n in $(seq 1 $gpus); do
    [ $((n & (n - 1))) = 0 ] || continue
    for late in "" --late; do
      got=$(ranks $n hash $micro_batches --gpu $late) || failed "$n GPUs: exit code $?"
      [ "$got" = "$alone" ] || failed "$micro_batches micro-batches: $n GPUs $late give $got, one $alone"
    done
  done
  echo "$micro_batches micro-batches: $alone on up to $gpus GPUs, overlapped or not; gradient as on the CPU"
done
ranks 2 hash 12 --gpu --fast >/dev/null || failed "the fast mode: exit code $?"

# The same without MPI: the ranks meet in a folder.
SIEVE_MPIRUN=none
got=$(ranks 2 hash 12 --gpu) || failed "ranks that meet in a folder: exit code $?"
[ "$got" = "$alone" ] || failed "ranks that meet in a folder give $got, not $alone"
