# A distributed run that cannot start is an error, never a world of one.
. "$(dirname "$0")/run.sh"
[ "$("$worker" world)" = "rank 0 of 1, self" ] || failed "one process is no world of one"
[ "$(ranks 1 world)" = "rank 0 of 1, mpi" ] || failed "mpirun -n 1 does not go through MPI"
[ "$(ranks 2 world | sort | tr '\n' ';')" = "rank 0 of 2, mpi;rank 1 of 2, mpi;" ] || failed "mpirun -n 2 is no world of two"

# The launcher of another MPI announces ranks that ours cannot find: each would be alone.
PMI_SIZE=2 PMI_RANK=1 "$worker" world >"$dir/log" 2>&1
[ $? = 6 ] || failed "a world of another MPI did not fail with code 6"
grep -q "started as rank 1 of 2, but MPI says rank 0 of 1" "$dir/log" || failed "no line about the other MPI"
OMPI_COMM_WORLD_SIZE=two OMPI_COMM_WORLD_RANK=0 "$worker" world >"$dir/log" 2>&1
[ $? = 6 ] || failed "an unreadable world size did not fail with code 6"
echo "worlds that cannot start fail"
