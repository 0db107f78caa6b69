#include "data/tokenizer.h"

#include <filesystem>
#include <iostream>
#include <iterator>
#include <memory>
#include <sstream>

#include "cli/command_line.h"
#include "core/log.h"
#include "data/bpe_trainer.h"
#include "data/prepare.h"
#include "train/format.h"

namespace sieve {
namespace {

struct TrainArguments {
  std::vector<std::string> inputs;
  std::string output, field = "text";
  bool allow_invalid_utf8 = false;
  BpeTrainOptions options;
};

Exit run_train(const TrainArguments& arguments) {
  BpeTrainer trainer(arguments.options);
  read_texts(
      arguments.inputs, arguments.field, [&](const TextPiece& piece) { trainer.add_piece(piece.text, piece.last); },
      arguments.allow_invalid_utf8);
  BpeTrainReport report;
  const auto tokenizer = trainer.train(&report);
  if (const auto folder = std::filesystem::path(arguments.output).parent_path(); !folder.empty())
    std::filesystem::create_directories(folder);
  tokenizer->save(arguments.output);
  log_info("trained ", tokenizer->name(), " on ", format_bytes(static_cast<double>(report.text_bytes)), " in ",
           report.documents, " documents: ", report.merges, " merges -> ", arguments.output);
  if (tokenizer->vocab_size() < arguments.options.vocab_size)
    log_warn("the text has too few frequent pairs for ", arguments.options.vocab_size, " tokens");
  return Exit::ok;
}

void add_train(CommandLine& line, CLI::App& parent) {
  auto arguments = std::make_shared<TrainArguments>();
  CLI::App* command = add_command(line, parent, "train", "byte-level BPE, stored as a Hugging Face tokenizer.json");
  command->add_option("INPUT", arguments->inputs, "files and folders, as for data prepare")->required();
  command->add_option("-o,--output", arguments->output, "tokenizer.json to write")->required();
  command->add_option("--vocab-size", arguments->options.vocab_size, "256 bytes + merges + end of text")
      ->check(CLI::Range(257, 1 << 24));
  command->add_option("--min-frequency", arguments->options.min_frequency, "pairs seen less often are not merged")
      ->check(CLI::PositiveNumber);
  command->add_option("--field", arguments->field, "JSON field that holds the text");
  command->add_flag("--allow-invalid-utf8", arguments->allow_invalid_utf8,
                    "keep bytes of text files that are not UTF-8 as they are (else they are an error)");
  command->callback([&line, arguments] { line.action = [arguments](Communicator&) { return run_train(*arguments); }; });
}

struct CodeArguments {
  std::string tokenizer, text = "-";
  bool special = false;
};

std::string input_of(const std::string& text) {
  if (text != "-") return text;
  return {std::istreambuf_iterator<char>(std::cin), std::istreambuf_iterator<char>()};
}

std::shared_ptr<const Tokenizer> open(const std::string& name) {
  return open_tokenizer(name == "byte" ? "byte" : "hf_json", name);
}

Exit run_encode(const CodeArguments& arguments) {
  const auto ids = open(arguments.tokenizer)
                       ->encode(input_of(arguments.text), arguments.special ? Special::parse : Special::as_text);
  for (std::size_t i = 0; i < ids.size(); ++i) std::cout << (i ? " " : "") << ids[i];
  std::cout << '\n';
  return Exit::ok;
}

Exit run_decode(const CodeArguments& arguments) {
  std::istringstream in(input_of(arguments.text));
  std::vector<std::int32_t> ids;
  for (std::int32_t id; in >> id;) ids.push_back(id);
  if (!in.eof())
    fail(Exit::data, "tokenizer", "ids are whole numbers separated by blanks; number ", ids.size() + 1, " is not");
  std::cout << open(arguments.tokenizer)->decode(ids);
  return Exit::ok;
}

void add_code(CommandLine& line, CLI::App& parent, const std::string& name, const std::string& summary,
              Exit (*run)(const CodeArguments&)) {
  auto arguments = std::make_shared<CodeArguments>();
  CLI::App* command = add_command(line, parent, name, summary);
  command->add_option("TOKENIZER", arguments->tokenizer, "byte, or the path of a tokenizer.json")->required();
  command->add_option("TEXT", arguments->text, "text or ids; - (default) reads standard input");
  command->add_flag("--special", arguments->special, "the text of special tokens becomes those tokens");
  command->callback(
      [&line, arguments, run] { line.action = [arguments, run](Communicator&) { return run(*arguments); }; });
}

}  // namespace

void add_tokenizer(CommandLine& line) {
  CLI::App* tokenizer = line.app.add_subcommand("tokenizer", "train a tokenizer, encode, decode");
  tokenizer->require_subcommand(1);
  add_train(line, *tokenizer);
  add_code(line, *tokenizer, "encode", "text to ids", run_encode);
  add_code(line, *tokenizer, "decode", "ids to text", run_decode);
}

}  // namespace sieve
