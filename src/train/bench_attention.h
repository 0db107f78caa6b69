// Times the attention op alone, pattern by pattern over a sweep of lengths: forward, backward, and the selection inside
// them (docs/attention_engines.md, "Measuring"). Letters: B batch, T time, H query heads, Hkv key-value heads, D head
// size.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention/spec.h"
#include "core/error.h"

namespace sieve {

class Communicator;

struct BenchAttentionOptions {
  std::vector<std::string> patterns = {"full", "sliding_window", "sparsek"};  // also strided .. moba, by fixed numbers
  std::vector<std::string> lengths;    // "4k" is 4,096; empty: 1k .. 128k on a GPU, 1k .. 8k on a CPU
  std::int64_t rows = 0;               // B * H at every length; 0: 64 on a GPU, 4 on a CPU
  std::int64_t heads = 0;              // H; 0: the smaller of 16 and rows
  std::int64_t kv_heads = 0;           // Hkv; 0: H
  std::int64_t head_dim = 64;          // D
  std::int64_t k = 512, window = 512;  // selected keys; keys of the window of both sparse patterns
  std::int64_t pool = 4;               // 0: exact
  double slope = 0;
  std::string gate = "kv";
  // iid: independent standard normals; sigma4: deviation 4, like scores that training has spread; fifo: every score
  // above the one before, so that every key is selected once; else a safetensors file with `scores` f32 (rows, T) as
  // train/trained_scores.h writes it, rows and positions repeated where more are wanted.
  std::string scores = "iid";
  std::string dtype = "auto";   // bf16, fp32; auto: bf16 on a GPU, fp32 on a CPU
  std::string device = "auto";  // auto, cpu, cuda
  bool forward_only = false, rotary = false, deterministic = false;
  bool own_engine = false;   // full and window layers by the softmax engine, also where a library's kernels serve them
  double seconds = 0.4;      // spent on a timing, at least 5 (CPU: 3) and at most 50 passes
  double pass_seconds = 20;  // a length whose pass is expected to take longer is left out
  std::string json_file, csv_file;  // written after every row; empty: none
};

// One line of the table. Seconds are medians over the passes, each between events on the device, the cache emptied
// before.
struct AttentionTiming {
  std::string pattern;
  std::int64_t T = 0, B = 0, passes = 0;
  double forward = 0, backward = 0, total = 0;
  double selection = 0, selection_backward = 0;         // kernels of the selection inside forward, inside backward
  double forward_tflops = 0, backward_tflops = 0;       // of the visible pairs alone: 4 D and 10 D a pair
  std::vector<std::pair<std::string, double>> kernels;  // seconds of each kernel family in a pass
  std::string missing;                                  // why there are no times; empty otherwise
};

// Prints a Markdown table, and from which length on each pattern is as fast as full attention. Exit::config for options
// that make no sense, Exit::data for a bad file of scores.
Exit bench_attention(const BenchAttentionOptions& options, Communicator& comm);

// The pieces, for tests.
std::int64_t parse_length(const std::string& text);  // "512", "4k", "1M": powers of 1,024; Exit::config
// (query, key) pairs of one head that count, without documents, when candidates compete on leaving the window; in the
// mean where buckets decide.
double visible_pairs(const AttentionSpec& spec, std::int64_t T);
// The length at which `pattern` becomes as fast as full attention by total time: the first of the common lengths where
// it is, or between it and the one before on the straight line of the log-log plot. Empty: at none of them.
struct Crossover {
  double length = 0;
  bool at_shortest = false;  // already at the shortest common length: the crossover is there or below
};
std::optional<Crossover> crossover(const std::vector<AttentionTiming>& timings, const std::string& pattern);

}  // namespace sieve
