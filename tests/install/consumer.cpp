#include <cstdio>

#include "nn/decoder.h"
#include "nn/model_cost.h"

int main() {
  sieve::ModelConfig config;
  config.resolve(257, 64);
  const sieve::Decoder model(config, {});
  std::int64_t n = 0;
  for (const auto& p : model.parameters()) n += p->numel();
  return n == sieve::model_cost(config, 1, 64, sieve::DType::f32, {}).parameters ? 0 : 1;
}
