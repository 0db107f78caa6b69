#include <filesystem>
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
  const auto tell = [&](const std::string& name, const PreparedSplit& split) {
    log_info(name, std::string(name.size() < 5 ? 7 - name.size() : 2, ' '), format_grouped(split.documents),
             split.documents == 1 ? " document, " : " documents, ", format_grouped(split.tokens), " tokens, ",
             split.shards.size(), split.shards.size() == 1 ? " shard" : " shards", " in ",
             (std::filesystem::path(arguments.options.output) / name).lexically_normal().string());
  };
  log_info("prepared ", format_bytes(static_cast<double>(report.text_bytes)), " of text from ", report.files,
           report.files == 1 ? " file" : " files", " with tokenizer ", tokenizer->name());
  tell(arguments.options.split, report.train);
  if (report.val.documents > 0) tell("val", report.val);
  for (const std::string& folder : report.removed) {
    log_warn("removed ", folder, ": it was made of the same text as ", arguments.options.split, "/");
  }
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
  command->add_option("--tokenizer", arguments->tokenizer, "byte, or the path of a tokenizer.json (default: byte)");
  command->add_option("--field", options.field, "JSON field that holds the text");
  command->add_flag("--allow-invalid-utf8", options.allow_invalid_utf8,
                    "keep bytes of text files that are not UTF-8 as they are (else they are an error)");
  command
      ->add_option("--val-fraction", options.val_fraction,
                   "about this share of the documents, chosen by their hashes, goes to val/ (default: 0)")
      ->check(CLI::Range(0.0, 1.0));
  command->add_option("--split", options.split,
                      "name of the folder below --output: train, val, test, ... (default: train)");
  command->add_option("--shard-tokens", options.shard_tokens, "largest shard")->check(CLI::PositiveNumber);
  command->add_flag("--overwrite", options.overwrite,
                    "replace folders of shards; with train/ alone, a val/ made of the same text goes too");
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
