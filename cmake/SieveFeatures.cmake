# What was found becomes constants of the code: core/build.h, and the commit in core/git_revision.h.
foreach(feature CUDA CUDNN NCCL MPI OPENMP ONEDNN)
  if(SIEVE_${feature})
    set(SIEVE_WITH_${feature} true)
  else()
    set(SIEVE_WITH_${feature} false)
  endif()
endforeach()
execute_process(COMMAND git describe --always --dirty --abbrev=12 WORKING_DIRECTORY ${PROJECT_SOURCE_DIR}
                OUTPUT_VARIABLE SIEVE_GIT OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
if(NOT SIEVE_GIT)
  set(SIEVE_GIT "unknown")
endif()
configure_file(${PROJECT_SOURCE_DIR}/src/core/build.h.in ${PROJECT_BINARY_DIR}/generated/core/build.h)
# Apart from build.h: only version.cpp reads it, so a new commit recompiles one file.
configure_file(${PROJECT_SOURCE_DIR}/src/core/git_revision.h.in ${PROJECT_BINARY_DIR}/generated/core/git_revision.h)
