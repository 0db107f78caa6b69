# faults.sh WORKER FAULT: three ranks train; one is killed, stopped, ...; all must end in time, with a code and a line.
. "$(dirname "$0")/run.sh"
fault=$1
timeout=3        # of the watchdog, seconds
limit=10000      # milliseconds from the fault to the end of mpirun
code=            # exact exit code of mpirun; empty: any but 0
signal=          # what is sent to whom
waits=$((timeout * 1000 + 10000))
lost="rank [02]: no progress for $timeout s in train"
case $fault in
  # The end may meet the others on their way from one collective to the next, as SIGTERM below may.
  kill)       signal="KILL rank" line='rank [02]: ended by SIGTERM .* in train.*, step [0-9]+' ;;
  # At any moment: the others may wait in either collective of a step. Before a reduction: they wait there, and say for whom.
  stop)       signal="STOP rank" limit=$waits code=6 line="$lost > (all_reduce\(.*exchange with rank [0-9]+|all_gather\(step summary\)).*, step [0-9]+" ;;
  freeze)     limit=$waits code=6 line="$lost > all_reduce\(.*exchange with rank [0-9]+.*, step 40" ;;
  hang)       limit=$waits code=6 line="rank [012]: no progress for $timeout s in train > .*, step 40" ;;
  sigusr1)    signal="USR1 mpirun" code=75 line='rank 0: saved after step [0-9]+' ;;
  sigterm)    signal="TERM mpirun" line='rank [012]: ended by SIGTERM .* in train.*, step [0-9]+' ;;
  data_error) code=3 line='rank 1 found a truncated shard' ;;
  *)          failed "unknown fault $fault" ;;
esac
arguments=()
case $fault in
  hang | freeze) arguments=(--$fault 1) ;;
  data_error)    arguments=(--data-error 1) ;;
esac

"${mpirun[@]}" -n 3 "$worker" train "$dir" $timeout "${arguments[@]}" >"$dir/log" 2>&1 &
job=$!
wait_for "$dir/running0" "$dir/running1" "$dir/running2"
pids=$(cat "$dir"/pid?)
begin=$(now_ms)
case $signal in
  *rank)   kill -"${signal% *}" "$(cat "$dir/pid1")" ;;
  *mpirun) kill -"${signal% *}" "$job" ;;
esac
wait "$job"
got=$?
job=
took=$(($(now_ms) - begin))

[ $got -ne 0 ] || failed "mpirun returned 0"
[ -z "$code" ] || [ $got = "$code" ] || failed "mpirun returned $got, not $code"
[ $took -le $limit ] || failed "took $took ms, limit $limit ms"
grep -Eq "$line" "$dir/log" || failed "no line matches: $line"
for _ in $(seq 40); do
  alive=
  for pid in $pids; do kill -0 "$pid" 2>/dev/null && alive=$pid; done
  [ -z "$alive" ] && break
  sleep 0.05
done
[ -z "$alive" ] || failed "process $alive is still there"
echo "$fault: all ranks ended after $took ms with code $got"
sed 's/^/  /' "$dir/log"
