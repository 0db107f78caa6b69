#include "cli/training.h"

namespace sieve {

void add_finetune(CommandLine& line) {
  add_training_command(line, "finetune", "a new run from the weights of a checkpoint (init_from)",
                       "Starts a new run from the weights of init_from.path: step, optimizer and data order begin "
                       "anew. Turning a dense\n"
                       "checkpoint into SparseK adds scorers: init_from.allow_new: [\"*.sparsek.*\"].",
                       finetune);
}

}  // namespace sieve
