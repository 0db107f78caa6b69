#include "train/bench_attention.h"

#include <memory>

#include "cli/command_line.h"
#include "dist/communicator.h"
#include "train/trained_scores.h"

namespace sieve {

void add_bench_attention(CommandLine& line, CLI::App& bench) {
  auto options = std::make_shared<BenchAttentionOptions>();
  BenchAttentionOptions& o = *options;
  CLI::App* command =
      add_command(line, bench, "attention", "the attention op alone, every pattern over a sweep of lengths");
  command->footer(
      "Milliseconds forward, backward, of the selection in both, and in all: medians on random data, the caches "
      "emptied "
      "before every pass.\n"
      "Says from which length on a pattern is as fast as full attention. scripts/plot_attention.py draws the CSV.\n"
      "  sieve bench attention --lengths 1k,2k,4k,8k,16k --head-dim 128 --scores sigma4 --csv attention.csv");
  command
      ->add_option("--patterns", o.patterns,
                   "of full, sliding_window, sparsek, strided, fixed, longformer, bigbird, hash, moba")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--lengths", o.lengths, "4k is 4,096 (default: 1k .. 128k on a GPU, 1k .. 8k on a CPU)")
      ->delimiter(',');
  command->add_option("--rows", o.rows, "batch * heads, at every length (default: 64 on a GPU, 4 on a CPU)")
      ->check(CLI::PositiveNumber);
  command->add_option("--heads", o.heads, "query heads (default: 16, at most rows)")->check(CLI::PositiveNumber);
  command->add_option("--kv-heads", o.kv_heads, "key-value heads (default: heads)")->check(CLI::PositiveNumber);
  command->add_option("--head-dim", o.head_dim, "features of a head")->capture_default_str();
  command->add_option("--k", o.k, "selected keys a query")->capture_default_str();
  command->add_option("--window", o.window, "keys of the window, self included, of both sparse patterns")
      ->capture_default_str();
  command->add_option("--gate", o.gate, "kv, value, prob or hard")->capture_default_str();
  command->add_option("--pool", o.pool, "thresholds see pool * k scores; 0: all")->capture_default_str();
  command->add_option("--slope", o.slope, "added to the score of every later token")->capture_default_str();
  command->add_option("--scores", o.scores, "iid, sigma4, fifo, or a file of bench scores")->capture_default_str();
  command->add_option("--dtype", o.dtype, "bf16 or fp32 (auto: bf16 on a GPU)")->capture_default_str();
  command->add_option("--device", o.device, "auto, cpu or cuda")->capture_default_str();
  command->add_flag("--forward-only", o.forward_only, "no backward");
  command->add_flag("--rotary", o.rotary, "with rotary positions");
  command->add_flag("--deterministic", o.deterministic, "the same bits in every run, as run.deterministic=true");
  command->add_flag("--own-engine", o.own_engine, "full and window attention by sieve's engine instead of cuDNN's");
  command->add_option("--seconds", o.seconds, "spent on one timing")->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--pass-seconds", o.pass_seconds, "leave out lengths whose pass would take longer")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--json", o.json_file, "file for the table with the settings and the time of every kernel");
  command->add_option("--csv", o.csv_file, "file for the table");
  command->callback(
      [&line, options] { line.action = [options](Communicator& comm) { return bench_attention(*options, comm); }; });
}

void add_bench_scores(CommandLine& line, CLI::App& bench) {
  auto options = std::make_shared<TrainedScoresOptions>();
  CLI::App* command = add_command(line, bench, "scores", "the scores of a trained model, for bench attention");
  command->footer(
      "How much work a selection is depends on the scores that training has made:\n"
      "  sieve bench scores runs/novels --data data/novels/val -o scores.safetensors");
  command->add_option("CHECKPOINT", options->checkpoint, "checkpoint or run folder")->required();
  command->add_option("--data", options->data, "token shards of the model's tokenizer")->required();
  command->add_option("-o,--output", options->output, "safetensors file to write")->required();
  command->add_option("--length", options->length,
                      "tokens of a row, 16k is 16,384 (default: data.seq_len of the model)");
  command->add_option("--rows", options->rows, "rows of text")->check(CLI::PositiveNumber)->capture_default_str();
  command->add_option("--layer", options->layer, "this layer alone (default: all that select)")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--device", options->device, "auto, cpu or cuda")->capture_default_str();
  command->callback([&line, options] {
    line.action = [options](Communicator& comm) {
      return comm.rank() == 0 ? write_trained_scores(*options) : Exit::ok;
    };
  });
}

}  // namespace sieve
