#include <iostream>
#include <memory>

#include "cli/command_line.h"

namespace sieve {
namespace {

struct Topic {
  const char* name;
  const char* summary;
  const char* text;
};

constexpr Topic kTopics[] = {
    {"start", "from text to a trained model in four commands",
     R"(From text to a trained model:
  sieve tokenizer train books/ -o data/tokenizer.json --vocab-size 8192
  sieve data prepare books/ -o data/books --tokenizer data/tokenizer.json --val-fraction 0.05
  sieve pretrain configs/pretrain.yaml            (sieve plan configs/pretrain.yaml first says what it costs)
  sieve eval runs/pretrain; sieve generate runs/pretrain --prompt "The "
bash scripts/demo.sh does all of it on text that is already on this machine. With its model, and next:
  sieve eval runs/demo --json                     every number, by position and by document
  sieve pretrain configs/demo.yaml run.name=dense 'model.attention={kinds: {full: {type: full}}, pattern: [full]}'
                                                  the same with full attention; docs/training.md makes a SparseK model of it
  sieve probe configs/probes/selective_copy.yaml  what a kind of attention can remember (docs/probes.md)
  bash scripts/compare.sh tiny runs/compare       kinds of attention beside each other, in small: its numbers mean nothing (docs/comparing.md))"},
    {"config", "how a configuration is put together",
     R"(A configuration is YAML. Later sources override earlier ones:
  built-in defaults < extends < the file < SIEVE_a__b environment < key=value on the command line
  sieve config check FILE     every problem at once, with file:line:col and a suggestion
  sieve config show FILE      every key, its value, and where the value came from
  sieve config explain KEY    meaning, type, default, range
Unknown, doubled, mistyped and out-of-range keys are errors; nothing is ignored.)"},
    {"resume", "continue a run, requeue it, or start a new one from its weights",
     R"(--resume auto   continue if the run folder holds a checkpoint, start otherwise (for job queues)
--resume must   continue or fail;   --resume PATH  continue from that checkpoint
--resume never  (default) refuse a folder that is not empty
A resumed run gives the same bits as one that was never interrupted.
SIGTERM and SIGUSR1 save and exit 75 (requeue me); Ctrl-C saves and exits 130, twice aborts. Under mpirun use SIGUSR1: mpirun follows
SIGTERM and Ctrl-C with SIGKILL after one second, too short to save, so the last checkpoint on disk is where --resume continues.
To start a new run from a checkpoint's weights: sieve finetune with init_from.path.)"},
    {"perplexity", "what the numbers of sieve eval mean",
     R"(Loss is the mean negative log-likelihood of a token in nats; perplexity its exponential. Word and byte perplexity divide the same sum
by words (split at white space) and bytes of the scored text: they compare models with different tokenizers, token perplexity does not.
Protocols, named in every output; a figure of one is not comparable with one of another:
  chunked   (default) disjoint windows of the context; eval.score_from=0.5 scores only the second half of each
  sliding   windows moved by eval.stride; only the new tokens are scored, each with context before it
  tail      the last eval.tail targets of each eval.span of a document, the same for every context: what context gains
eval.per_document=true keeps windows within documents and reports every document; eval.recall=[64,512,3072] adds the loss on repeated
bigrams by the distance to their last occurrence. docs/evaluation.md defines all of it.)"},
    {"sparsek", "what a SparseK layer does and which keys it has",
     R"(A scoring network gives every token one score; a differentiable top-k keeps k key-value pairs for all queries, beside a local window.
Training costs time linear in the length; generation holds k + window rows per head, whatever the length.
  k, window            selected and local keys a query
  gate                 where the soft mask acts: kv | value | prob | hard
  candidates           a key competes when it leaves the window (on_exit) or at_once
  score.{per, slope, norm, temperature}, positions, pool
sieve config explain model.attention.kinds.* describes each; docs/attention.md has the mathematics.)"},
    {"exit-codes", "what the program's exit code says",
     R"(0 ok   1 internal error   2 usage or configuration   3 bad data, tokenizer or checkpoint   4 out of memory
5 non-finite budget spent   6 peer or collective failure, timeout   7 a threshold of --fail-if was met
75 stopped early but saved: requeue me   130 Ctrl-C)"},
};

Exit show(const std::string& name) {
  for (const Topic& topic : kTopics) {
    if (name == topic.name) {
      std::cout << topic.text << '\n';
      return Exit::ok;
    }
  }
  std::string known;
  for (const Topic& topic : kTopics)
    known += cat("\n  ", topic.name, std::string(14 - std::string_view(topic.name).size(), ' '), topic.summary);
  if (!name.empty()) fail(Exit::config, "help", "no topic \"", name, "\"; topics:", known);
  std::cout << "sieve COMMAND --help explains a command. Topics (sieve help TOPIC):" << known << '\n';
  return Exit::ok;
}

}  // namespace

void add_help(CommandLine& line) {
  auto name = std::make_shared<std::string>();
  CLI::App* command =
      add_command(line, line.app, "help", "topics: start, config, resume, perplexity, sparsek, exit-codes");
  command->add_option("TOPIC", *name);
  command->callback([&line, name] { line.action = [name](Communicator&) { return show(*name); }; });
}

}  // namespace sieve
