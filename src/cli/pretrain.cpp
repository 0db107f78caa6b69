#include "cli/training.h"

namespace sieve {

void add_pretrain(CommandLine& line) {
  add_training_command(line, "pretrain", "train from scratch",
                       "Trains a model from scratch. Alone, or one process per rank under mpirun:\n"
                       "  sieve pretrain configs/pretrain.yaml train.steps=2000 -o runs/first\n"
                       "  mpirun -n 4 sieve pretrain configs/pretrain.yaml --resume auto",
                       pretrain);
}

}  // namespace sieve
