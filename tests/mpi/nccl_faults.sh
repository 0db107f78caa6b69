# nccl_faults.sh WORKER FAULT: two ranks with a GPU each; one is killed, stopped or hangs; both must end in time, with a line.
. "$(dirname "$0")/run.sh"
fault=$1
timeout=5
case $fault in
  kill) signal=KILL limit=10000 line='rank 0: ' ;;
  stop) signal=STOP limit=$((timeout * 1000 + 10000)) line="rank 0: no progress for $timeout s in train.*, step [0-9]+" ;;
  hang) signal= limit=$((timeout * 1000 + 10000)) line="rank [01]: no progress for $timeout s in train.*, step 40" ;;
  *) failed "unknown fault $fault" ;;
esac
probe=$(ranks 2 hash 2 --gpu) || failed "exit code $? without a fault"
case $probe in skipped*) echo "$probe"; exit 0 ;; esac
arguments=(--gpu)
[ "$fault" = hang ] && arguments+=(--hang 1)
ranks 2 train "$dir" $timeout "${arguments[@]}" >"$dir/log" 2>&1 &
job=$!
wait_for "$dir/running0" "$dir/running1"
pids=$(cat "$dir"/pid?)
begin=$(now_ms)
[ -n "$signal" ] && kill -$signal "$(cat "$dir/pid1")"
if [ "$SIEVE_MPIRUN" = none ] && [ -n "$signal" ]; then  # nobody ends a stopped rank once the other one is gone
  while kill -0 "$(cat "$dir/pid0")" 2>/dev/null; do sleep 0.05; done
  kill -KILL "$(cat "$dir/pid1")" 2>/dev/null
fi
wait "$job"
got=$?
job=
took=$(($(now_ms) - begin))
[ $got -ne 0 ] || failed "mpirun returned 0"
[ $took -le $limit ] || failed "took $took ms, limit $limit ms"
grep -Eq "$line" "$dir/log" || failed "no line matches: $line"
# A process ends only when the driver has taken its GPU memory back, which takes seconds. A zombie has ended.
alive() { [ -e "/proc/$1/stat" ] && ! grep -q ') Z ' "/proc/$1/stat" 2>/dev/null; }
for pid in $pids; do
  while alive "$pid"; do
    [ $(($(now_ms) - begin)) -le $limit ] || failed "process $pid is still there after $limit ms: $(cat "/proc/$pid/stat" | cut -c1-60)"
    sleep 0.05
  done
done
echo "$fault: mpirun ended after $took ms with code $got, both ranks after $(($(now_ms) - begin)) ms"
