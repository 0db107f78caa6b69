#include "nn/mixer.h"

#include "nn/attention_layer.h"
#include "nn/gla_layer.h"
#include "nn/hash_layer.h"
#include "nn/indexer_layer.h"
#include "nn/linear_layer.h"
#include "nn/nsa_layer.h"

namespace sieve {

std::unique_ptr<const Mixer> make_mixer(ParameterFactory& make, const std::string& name, const ModelConfig& config,
                                        std::int64_t layer) {
  const AttentionKindConfig& kind = config.kind_of_layer(layer);
  switch (kind.type) {
    case AttentionKind::full:
    case AttentionKind::sliding_window:
    case AttentionKind::sparsek:
    case AttentionKind::random_rows:
    case AttentionKind::strided:
    case AttentionKind::fixed:
    case AttentionKind::longformer:
    case AttentionKind::bigbird:
    case AttentionKind::top_k:
    case AttentionKind::moba: return std::make_unique<AttentionLayer>(make, name, config, layer);
    case AttentionKind::hash: return std::make_unique<HashLayer>(make, name, config, layer);
    case AttentionKind::dsa: return std::make_unique<IndexerLayer>(make, name, config, layer);
    case AttentionKind::linear: return std::make_unique<LinearLayer>(make, name, config);
    case AttentionKind::gla: return std::make_unique<GlaLayer>(make, name, config);
    case AttentionKind::nsa: return std::make_unique<NsaLayer>(make, name, config, layer);
  }
  fail(Exit::config, cat("model.attention.kinds.", config.kind_name_of_layer(layer), ".type"), "no layer of type ",
       kAttentionKindNames[static_cast<std::size_t>(kind.type)], " can be made");
}

}  // namespace sieve
