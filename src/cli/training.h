// The arguments that pretrain and finetune share.
#pragma once

#include "cli/command_line.h"
#include "train/commands.h"

namespace sieve {

void add_training_command(CommandLine& line, const std::string& name, const std::string& summary,
                          const std::string& description, Exit (*run)(const TrainOptions&, Communicator&));

}  // namespace sieve
