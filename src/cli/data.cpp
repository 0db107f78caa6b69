#include <algorithm>
#include <iostream>
#include <memory>

#include "cli/command_line.h"
#include "core/log.h"
#include "data/prepare.h"
#include "data/token_store.h"
#include "data/tokenizer.h"
#include "train/format.h"

namespace sieve {
namespace {

struct PrepareArguments {
  PrepareOptions options;
  std::string tokenizer = "byte";
};

Exit run_prepare(const PrepareArguments& arguments) {
  const bool byte = arguments.tokenizer == "byte";
  const auto tokenizer = open_tokenizer(byte ? "byte" : "hf_json", arguments.tokenizer);
  const PrepareReport report = prepare(*tokenizer, arguments.options);
  const auto line_of = [](const std::string& name, const PreparedSplit& split) {
    return cat(name, "  ", format_grouped(split.documents), split.documents == 1 ? " document, " : " documents, ",
               format_grouped(split.tokens), " tokens, ", split.shards.size(),
               split.shards.size() == 1 ? " shard" : " shards");
  };
  log_info("prepared ", format_bytes(static_cast<double>(report.text_bytes)), " of text from ", report.files,
           report.files == 1 ? " file" : " files", " with tokenizer ", tokenizer->name());
  std::string val = "val";  // the two names as wide as the longer one
  std::string split = arguments.options.split;
  if (report.val.documents > 0) val.resize(std::max(val.size(), split.size()), ' '), split.resize(val.size(), ' ');
  log_info(line_of(split, report.train));
  if (report.val.documents > 0) log_info(line_of(val, report.val));
  if (report.empty_documents > 0) log_warn(report.empty_documents, " empty documents were skipped");
  return Exit::ok;
}

void add_prepare(CommandLine& line, CLI::App& data) {
  auto arguments = std::make_shared<PrepareArguments>();
  PrepareOptions& options = arguments->options;
  CLI::App* command =
      add_command(line, data, "prepare", "text files, folders, JSON lines (plain, .gz, .zst) -> token shards");
  command->footer(
      "Turns text into token shards (HDF5), in bounded memory. Files ending in .jsonl hold one JSON object a line; "
      "everything else is one\n"
      "document of text.\n"
      "  sieve data prepare books/ -o data/books --tokenizer data/tokenizer.json --val-fraction 0.05\n"
      "  sieve data prepare held-out/ -o data/books --tokenizer data/tokenizer.json --split test");
  command->add_option("INPUT", options.inputs, "files and folders")->required();
  command->add_option("-o,--output", options.output, "folder for train/ (or SPLIT/) and val/")->required();
  command->add_option("--tokenizer", arguments->tokenizer, "byte, or the path of a tokenizer.json");
  command->add_option("--field", options.field, "JSON field that holds the text");
  command->add_flag("--allow-invalid-utf8", options.allow_invalid_utf8,
                    "keep bytes of text files that are not UTF-8 as they are (else they are an error)");
  command->add_option("--val-fraction", options.val_fraction, "share of the documents that goes to val/")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--split", options.split, "folder of the documents that do not go to val/ (train)");
  command->add_option("--shard-tokens", options.shard_tokens, "largest shard")->check(CLI::PositiveNumber);
  command->add_flag("--overwrite", options.overwrite,
                    "replace what is there; train/ takes an older val/ along, whose documents it may hold");
  command->callback(
      [&line, arguments] { line.action = [arguments](Communicator&) { return run_prepare(*arguments); }; });
}

void add_store_command(CommandLine& line, CLI::App& data, const std::string& name, const std::string& summary,
                       void (*run)(const TokenStore&)) {
  auto patterns = std::make_shared<std::vector<std::string>>();
  CLI::App* command = add_command(line, data, name, summary);
  command->add_option("SHARD", *patterns, "shards, folders or patterns")->required();
  command->callback([&line, patterns, run] {
    line.action = [patterns, run](Communicator&) {
      run(TokenStore(*patterns));
      return Exit::ok;
    };
  });
}

}  // namespace

void add_data(CommandLine& line) {
  CLI::App* data = line.app.add_subcommand("data", "prepare, inspect and verify token shards");
  data->require_subcommand(1);
  add_prepare(line, *data);
  add_store_command(line, *data, "inspect", "what shards hold",
                    [](const TokenStore& store) { std::cout << store.report(); });
  add_store_command(line, *data, "verify", "read everything again and compare checksums", [](const TokenStore& store) {
    store.verify();
    log_info("verified ", store.shards().size(), " shards, ", format_grouped(store.tokens()),
             " tokens: checksums agree");
  });
}

}  // namespace sieve
