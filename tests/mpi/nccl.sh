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

# Each rank sees one GPU of its own, as under srun --gpus-per-task=1.
own_gpu=1
got=$(ranks 2 hash 12 --gpu --own-gpu) || failed "ranks that see one GPU each: exit code $?"
[ "$got" = "$alone" ] || failed "ranks that see one GPU each give $got, not $alone"
own_gpu=

# Both see the same one. Only with MPI beside NCCL the ranks can speak before they are connected.
if [ "$SIEVE_MPIRUN" != none ]; then
  CUDA_VISIBLE_DEVICES=0 ranks 2 hash 12 --gpu --own-gpu >"$dir/log" 2>&1
  code=$?
  [ $code = 2 ] || failed "two ranks on one GPU: exit code $code, not 2"
  grep -Eq "ranks 0 and 1 compute on one GPU of their machine, PCI bus [0-9A-F:.]+" "$dir/log" || failed "no line about the shared GPU"
fi

# The same without MPI: the ranks meet in a folder.
SIEVE_MPIRUN=none
got=$(ranks 2 hash 12 --gpu) || failed "ranks that meet in a folder: exit code $?"
[ "$got" = "$alone" ] || failed "ranks that meet in a folder give $got, not $alone"
