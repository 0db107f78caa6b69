#include "attention/choose.h"

namespace sieve {

Tensor choose(const Tensor& qkv, const AttentionInputs& in) {
  switch (in.spec.kind) {
    case AttentionKind::strided:
    case AttentionKind::fixed:
    case AttentionKind::longformer:
    case AttentionKind::bigbird: return {};
    default: break;
  }
  fail(Exit::config, "attention", "type ", kAttentionKindNames[static_cast<std::size_t>(in.spec.kind)],
       " cannot choose its keys on ", qkv.device().str());
}

}  // namespace sieve
