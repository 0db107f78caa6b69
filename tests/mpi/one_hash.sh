# The same bits for 1, 2 and 4 ranks at one number of micro-batches; other micro-batches or the fast mode give others.
. "$(dirname "$0")/run.sh"
hash_of() { ranks "$@" || failed "mpirun -n $*: exit code $?"; }

for micro_batches in 4 12; do
  alone=$("$worker" hash $micro_batches) || failed "alone: exit code $?"
  [ ${#alone} = 16 ] || failed "no hash: $alone"
  for n in 1 2 4; do
    got=$(hash_of $n hash $micro_batches)
    [ "$got" = "$alone" ] || failed "$micro_batches micro-batches: $n ranks give $got, one process $alone"
  done
  echo "$micro_batches micro-batches: $alone alone and on 1, 2, 4 ranks"
done
# The test can tell: a plain running sum rounds differently.
[ "$(hash_of 2 hash 12 --fast)" != "$alone" ] || failed "the fast mode gave the tree's bits"
