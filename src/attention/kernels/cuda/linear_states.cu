// The states before each chunk, of the keys and of the gradients: every chunk's part at once, then the carries.
#include "attention/kernels/cuda/linear_states.cuh"

namespace sieve::cuda::linear {
namespace {

// (product of a chunk's decays) - 1, (B, Hkv, chunks, D). -1: a document starts in the chunk.
__global__ void chunk_decays(const Rows less, const std::int32_t* starts_BT, std::int64_t rows, std::int64_t T,
                             std::int64_t heads, std::int64_t chunks, int D, float* out) {
  SIEVE_GRID_STRIDE(x, rows * heads * chunks * D) {
    const int d = static_cast<int>(x % D);
    const std::int64_t chunk = x / D % chunks, head = x / D / chunks % heads, b = x / D / chunks / heads;
    const std::int64_t end = (chunk + 1) * kLinearChunk < T ? (chunk + 1) * kLinearChunk : T;
    float product = 0;
    bool restart = false;
    for (std::int64_t t = chunk * kLinearChunk; t < end; ++t) {
      restart = restart || (starts_BT != nullptr && starts_BT[b * T + t] == t);
      if (less.data == nullptr) continue;
      const float l = element(less, b * T + t, head, d);
      product = product + l + product * l;
    }
    out[x] = restart ? -1.f : product;
  }
}

constexpr int kAhead = 8;

// What the chunks add, in place: becomes what each finds when it begins.
template <bool kBackward>
__global__ void carry(float* states, const float* decays, float* carried, std::int64_t rows, std::int64_t heads,
                      std::int64_t group, std::int64_t chunks, std::int64_t D, std::int64_t columns) {
  const std::int64_t size = D * columns;
  SIEVE_GRID_STRIDE(x, rows * heads * size) {
    const std::int64_t at = x % size, head = x / size % heads, b = x / size / heads;
    float* const state = states + (b * heads + head) * chunks * size + at;
    const float* const decay =
        decays == nullptr ? nullptr : decays + (b * (heads / group) + head / group) * chunks * D + at / columns;
    float current = carried != nullptr ? carried[x] : 0.f;
    for (std::int64_t n = 0; n < chunks; n += kAhead) {
      float adds[kAhead], less[kAhead];  // read before any is written: a load waits for no other
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        const std::int64_t chunk = kBackward ? chunks - 1 - n - ahead : n + ahead;
        const bool real = n + ahead < chunks;
        adds[ahead] = real ? state[chunk * size] : 0.f;
        less[ahead] = real && decay != nullptr ? decay[chunk * D] : 0.f;
      }
#pragma unroll
      for (int ahead = 0; ahead < kAhead; ++ahead) {
        if (n + ahead >= chunks) break;
        state[(kBackward ? chunks - 1 - n - ahead : n + ahead) * size] = current;
        // What decays to nothing leaves nothing, infinities too.
        current = (less[ahead] == -1.f ? 0.f : fmaf(less[ahead], current, current)) + adds[ahead];
      }
    }
    if (carried != nullptr) carried[x] = current;
  }
}

// A thread a position: the keys that enter there, then its query.
__global__ void list_events(const LinearArgs a, Event* all) {
  SIEVE_GRID_STRIDE(x, a.B * a.Hs * a.T) {
    const std::int64_t i = x % a.T, list = x / a.T, b = list / a.Hs;
    const std::int32_t *first = a.entry_first_BHT + list * (a.T + 1), *keys = a.entry_keys_BHT + list * a.T;
    Event* const events = all + list * 2 * a.T + i;
    const bool restarts = a.document_starts_BT != nullptr && a.document_starts_BT[b * a.T + i] == i;
    const std::int64_t begin = first[i], end = first[i + 1];
    for (std::int64_t e = begin; e < end; ++e) events[e] = event_of(keys[e], false, restarts && e == begin);
    events[end] = event_of(i, true, restarts && begin == end);
  }
}

std::size_t event_bytes(const LinearArgs& a) {
  return a.entry_first_BHT == nullptr ? 0 : static_cast<std::size_t>(a.B * a.Hs * 2 * a.T) * sizeof(Event);
}

}  // namespace

EventLists::EventLists(const LinearArgs& a, const Stream& stream) : all_(event_bytes(a), stream) {
  if (a.entry_first_BHT == nullptr) return;
  view_ = {.all = all_.as<Event>(), .entry_first = a.entry_first_BHT, .heads = a.Hs};
  start("linear events", list_events, blocks_for(a.B * a.Hs * a.T), kThreads, 0, stream, a, all_.as<Event>());
}

Vectors vectors_of(const LinearArgs& a) {
  const bool is_bf16 = a.dtype == DType::bf16;
  const auto group = static_cast<int>(a.H / a.Hkv);
  const int D = static_cast<int>(a.D), V = static_cast<int>(a.V);
  const auto part = [&](std::int64_t first, int size, int heads_each, RowKind kind) {
    return Rows{.data = a.qkv_BTF,
                .stride = a.features(),
                .first = first,
                .head_stride = size,
                .group = heads_each,
                .size = size,
                .kind = kind,
                .is_bf16 = is_bf16};
  };
  Vectors v;
  v.query = part(0, D, 1, a.gated() ? RowKind::scaled : RowKind::feature);
  v.query.factor = 1 / std::sqrt(static_cast<float>(a.D));
  v.key = part(a.H * a.D, D, group, a.gated() ? RowKind::plain : RowKind::feature);
  v.value = part((a.H + a.Hkv) * a.D, V, group, a.gated() ? RowKind::plain : RowKind::value_and_one);
  if (a.gated()) {
    v.less = Rows{.data = a.gates_BTHD,
                  .stride = a.Hkv * a.D,
                  .first = 0,
                  .head_stride = a.D,
                  .group = group,
                  .size = D,
                  .kind = RowKind::decay,
                  .factor = static_cast<float>(a.power),
                  .is_bf16 = is_bf16};
  }
  return v;
}

Rows each_head(Rows rows) {
  rows.group = 1;
  return rows;
}

Walk walk_of(const LinearArgs& a, std::int64_t heads, const Events& events) {
  Walk w;
  w.starts_BT = a.document_starts_BT, w.events = events;
  w.B = a.B, w.T = a.T, w.heads = heads, w.chunks = a.chunks();
  w.state_size = a.D * a.columns();
  return w;
}

Walk by_columns(Walk w, const LinearArgs& a) {
  w.own = static_cast<int>(a.columns()), w.inner = static_cast<int>(a.D);
  w.own_stride = 1, w.inner_stride = a.columns();
  return w;
}

Walk by_rows(Walk w, const LinearArgs& a) {
  w.own = static_cast<int>(a.D), w.inner = static_cast<int>(a.columns());
  w.own_stride = a.columns(), w.inner_stride = 1;
  return w;
}

bool decays(const LinearArgs& a) { return a.gated() || a.document_starts_BT != nullptr; }

void find_decays(const LinearArgs& a, float* out, const Stream& stream) {
  const std::int64_t n = a.B * a.Hkv * a.chunks() * a.D;
  start("linear decays", chunk_decays, blocks_for(n), kThreads, 0, stream, each_head(vectors_of(a).less),
        a.document_starts_BT, a.B, a.T, a.Hkv, a.chunks(), static_cast<int>(a.D), out);
}

void carry_states(const LinearArgs& a, float* states, const float* chunk_decays, const Stream& stream) {
  start("linear carry", carry<false>, blocks_for(a.B * a.Hkv * a.D * a.columns()), kThreads, 0, stream, states,
        chunk_decays, static_cast<float*>(a.state_BHDV), a.B, a.Hkv, std::int64_t{1}, a.chunks(), a.D, a.columns());
}

void carry_gradients(const LinearArgs& a, float* states, const float* chunk_decays, const Stream& stream) {
  start("linear carry back", carry<true>, blocks_for(a.B * a.H * a.D * a.columns()), kThreads, 0, stream, states,
        chunk_decays, static_cast<float*>(nullptr), a.B, a.H, a.H / a.Hkv, a.chunks(), a.D, a.columns());
}

void find_states(const LinearArgs& a, const Events& events, float* states, const float* chunk_decays,
                 const Stream& stream) {
  const Vectors v = vectors_of(a);
  Walk w = by_columns(walk_of(a, a.Hkv, events), a);
  w.a = each_head(v.key), w.b = each_head(v.value), w.less = each_head(v.less), w.states = states;
  walk_columns<false, false>("linear states", w, stream);
  carry_states(a, states, chunk_decays, stream);
}

void find_state_gradients(const LinearArgs& a, const Events& events, const Rows& dr, float* states,
                          const float* chunk_decays, const Stream& stream) {
  const Vectors v = vectors_of(a);
  Walk w = by_columns(walk_of(a, a.H, events), a);
  w.a = v.query, w.b = dr, w.less = v.less, w.states = states;
  walk_columns<true, false>("linear state gradients", w, stream);
  carry_gradients(a, states, chunk_decays, stream);
}

void check_size(const LinearArgs& a) {
  if (a.dtype != DType::f64 && a.D <= 128 && a.columns() <= 256 &&
      (a.entry_first_BHT == nullptr || a.T < kMostEventRows))
    return;
  fail(Exit::config, "attention", "types linear, gla and sparsek with linear: true on a GPU take fp32 or bf16, ",
       "head_dim up to 128 and, the last, fewer than 2^30 tokens a row; got ", name_of(a.dtype), ", ", a.D,
       " features a key, ", a.V, " a value and ", a.T, " tokens: run them with device.type=cpu");
}

}  // namespace sieve::cuda::linear
