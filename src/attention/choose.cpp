#include "attention/choose.h"

#include <cmath>
#include <string_view>

#include "attention/document_starts.h"
#include "attention/keep.h"
#include "attention/kernels/choose.h"
#include "attention/rotate.h"
#include "core/rng.h"
#include "tensor/same_device.h"

namespace sieve {
namespace {

constexpr std::uint64_t kHashStream = 0x68617368;  // "hash"

std::string_view type_of(const AttentionSpec& spec) { return kAttentionKindNames[static_cast<std::size_t>(spec.kind)]; }

// One head's rows one behind the other; heads may lie apart.
Tensor readable(const Tensor& heads, DType dtype) {
  const bool dense = heads.stride(3) == 1 && heads.stride(2) == heads.size(3) &&
                     (heads.size(0) <= 1 || heads.stride(0) == heads.size(1) * heads.stride(1));
  return (dense ? heads : heads.contiguous()).to(dtype);
}

// The last few layers' directions for work of this stream.
Tensor kept_directions(const AttentionSpec& spec, const Stream& stream) {
  struct Wanted {
    std::uint64_t seed;
    Shape shape;
    bool operator==(const Wanted&) const = default;
  };
  constexpr std::size_t kMost = 64;
  static auto& keep = *new Keep<Wanted, Tensor>("hash", kMost);
  return keep.get(
      {spec.pattern.seed, {spec.n_heads, spec.pattern.buckets / 2, spec.head_dim}}, stream,
      [](const Tensor&) { return true; }, [&] { return hash_directions(spec).to(stream); });
}

}  // namespace

DType choice_dtype(const Tensor& q) { return q.device().is_cuda() ? q.dtype() : compute_dtype(q.dtype()); }

Tensor hash_directions(const AttentionSpec& spec) {
  const std::int64_t H = spec.n_heads, R = spec.pattern.buckets / 2, D = spec.head_dim;
  Tensor out = empty({H, R, D}, DType::f64);
  double* x = out.data<double>();
  for (std::int64_t h = 0; h < H; ++h) {
    const Philox random{spec.pattern.seed, stream_of(kHashStream, h)};
    for (std::int64_t r = 0; r < R; ++r, x += D) {
      double squares = 0;
      for (std::int64_t d = 0; d < D; ++d) {
        x[d] = random.normal(static_cast<std::uint64_t>(r * D + d));
        squares += x[d] * x[d];
      }
      for (std::int64_t d = 0; d < D; ++d) x[d] /= std::sqrt(squares);
    }
  }
  return out;
}

Tensor hash_buckets(const Tensor& q, const AttentionSpec& spec) {
  if (spec.pattern.buckets < 2 || spec.pattern.buckets % 2 != 0)
    fail(Exit::config, "attention", "buckets ", spec.pattern.buckets, " must be even and at least 2");
  const std::int64_t B = q.size(0), N = q.size(1), H = spec.n_heads, D = spec.head_dim;
  require(q.rank() == 3 && q.size(2) == H * D, "hash", "wants queries (B, N, ", H * D, "), got ", q.shape());
  const Tensor x = q.contiguous(), directions = kept_directions(spec, q.stream());
  Tensor out = empty({B, H, N, 1}, DType::i32, q.stream());
  HashArgs args;
  args.x_BTF = x.raw(), args.directions_HRD = directions.data<double>();
  args.B = B, args.T = N, args.F = H * D, args.H = H, args.R = spec.pattern.buckets / 2, args.D = D;
  args.dtype = x.dtype(), args.bucket_BHT = out.data<std::int32_t>();
  launch(q.stream(), args);
  return out;
}

Tensor choose_best(const Tensor& q, const Tensor& keys, const AttentionSpec& spec, const Tensor& document_starts) {
  const bool blocks = spec.kind == AttentionKind::moba;
  const PatternSpec& p = spec.pattern;
  if (blocks ? p.block < 1 || p.blocks < 1 : p.k < 1)
    fail(Exit::config, "attention", blocks ? "block and blocks" : "k", " must be at least 1 for type ", type_of(spec));
  require(q.rank() == 4 && keys.rank() == 4 && q.size(0) == keys.size(0) && q.size(3) == keys.size(3) &&
              keys.size(1) >= 1 && q.size(1) % keys.size(1) == 0 && q.size(2) <= keys.size(2),
          "choose", "wants q (B, H, N, D) and keys (B, Hk, T, D), got ", q.shape(), " and ", keys.shape());
  const Tensor starts = checked_starts(document_starts, q.size(0), keys.size(2), q.device(), "choose");
  require_on(q.device(), "choose", {{"keys", keys}});
  const DType dtype = choice_dtype(q);
  const Tensor x = q.contiguous().to(dtype), k = readable(keys, dtype);
  ChooseArgs args;
  args.q_BHND = x.raw(), args.k_BHTD = k.raw(), args.k_stride = k.stride(1);
  if (starts.defined()) args.document_starts_BT = starts.data<std::int32_t>();
  args.B = q.size(0), args.H = q.size(1), args.Hk = k.size(1), args.N = q.size(2), args.T = k.size(2);
  args.D = q.size(3), args.block = blocks ? p.block : 0, args.size = blocks ? p.blocks : p.k, args.dtype = x.dtype();
  Tensor out = empty({args.B, args.H, args.N, args.size}, DType::i32, q.stream());
  args.choice_BHNM = out.data<std::int32_t>();
  Tensor means;
  if (blocks && q.device().is_cuda()) {
    means = empty({args.B, args.Hk, (args.T + p.block - 1) / p.block, args.D}, DType::f32, q.stream());
    args.means_BHSD = means.data<float>();
  }
  launch(q.stream(), args);
  return out;
}

ChooseNext next_choice(const AttentionSpec& spec) {
  if (spec.kind != AttentionKind::top_k && spec.kind != AttentionKind::moba) return {};
  return [spec](const NewToken& token) {
    const std::int64_t B = token.query.size(0), H = token.query.size(1), D = token.query.size(2);
    const Tensor lists = choose_best(token.query.reshape({B, H, 1, D}), token.keys, spec);
    return lists.reshape({B, H, lists.size(3)});
  };
}

Tensor choose(const Tensor& qkv, const AttentionInputs& in) {
  const std::int64_t H = in.spec.n_heads, HD = H * in.spec.head_dim;
  switch (in.spec.kind) {
    case AttentionKind::strided:
    case AttentionKind::fixed:
    case AttentionKind::longformer:
    case AttentionKind::bigbird: return {};
    case AttentionKind::hash: return hash_buckets(qkv.slice(2, 0, HD), in.spec);
    case AttentionKind::top_k:
    case AttentionKind::moba: {
      const auto heads = [&](std::int64_t first) {
        return rotate_heads(Variable(qkv.slice(2, first, first + HD)), H, in.rope).value();
      };
      return choose_best(heads(0), heads(HD), in.spec, in.document_starts);
    }
    default: break;
  }
  fail(Exit::config, "attention", "type ", type_of(in.spec), " does not choose its keys by queries and keys");
}

}  // namespace sieve
