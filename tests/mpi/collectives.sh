# collectives.sh WORKER RANKS [arguments]
. "$(dirname "$0")/run.sh"
n=$1
shift
out=$(ranks "$n" collectives "$@") || failed "exit code $?"
[ "$out" = "collectives correct on $n ranks" ] || failed "unexpected output: $out"
