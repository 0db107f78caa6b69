// Pieces of matrix products by oneDNN, versions 2.6 to 3.x: their interfaces differ in how a primitive is described.
#include <omp.h>

#include <compare>
#include <cstddef>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <oneapi/dnnl/dnnl.hpp>
#include <unordered_map>

#include "tensor/kernels/cpu/matmul_product.h"

namespace sieve::cpu {
namespace {

using dnnl::memory;

// oneDNN plans and runs with the threads that OpenMP would give it, and may split K among them. Inside one of these it
// sees one thread.
class OneThread {
 public:
  OneThread() : before_(omp_get_max_threads()) { omp_set_num_threads(1); }
  ~OneThread() { omp_set_num_threads(before_); }
  OneThread(const OneThread&) = delete;
  OneThread& operator=(const OneThread&) = delete;

 private:
  int before_;
};

// All that a plan depends on.
struct Key {
  std::int64_t M, N, K, lda, ldb, ldc;
  bool transpose_a, transpose_b, bias;
  float alpha, beta;
  DType dtype, c_dtype;
  auto operator<=>(const Key&) const = default;
};

struct Plan {
  memory::desc a, b, c, bias, scratchpad;
  dnnl::matmul primitive;
};

const dnnl::engine& engine() {
  static const dnnl::engine e(dnnl::engine::kind::cpu, 0);
  return e;
}

memory::data_type type_of(DType t) { return t == DType::bf16 ? memory::data_type::bf16 : memory::data_type::f32; }

memory::desc matrix(std::int64_t rows, std::int64_t columns, std::int64_t ld, bool transposed, DType t) {
  return {{rows, columns}, type_of(t), transposed ? memory::dims{1, ld} : memory::dims{ld, 1}};
}

// Version 3 dropped the leading scale of append_eltwise and the op descriptors.
template <class PostOps>
void append_linear(PostOps& ops, float factor) {
  constexpr auto linear = dnnl::algorithm::eltwise_linear;
  if constexpr (requires { ops.append_eltwise(1.f, linear, factor, 0.f); }) {
    ops.append_eltwise(1.f, linear, factor, 0.f);
  } else {
    ops.append_eltwise(linear, factor, 0.f);
  }
}
template <class Matmul>
auto describe(const Plan& p, const dnnl::primitive_attr& attributes) {
  using Description = typename Matmul::primitive_desc;
  if constexpr (requires { typename Matmul::desc; }) {
    using Operation = typename Matmul::desc;
    const Operation operation = p.bias.get_size() ? Operation(p.a, p.b, p.bias, p.c) : Operation(p.a, p.b, p.c);
    return Description(operation, attributes, engine());
  } else {
    return p.bias.get_size() ? Description(engine(), p.a, p.b, p.bias, p.c, attributes)
                             : Description(engine(), p.a, p.b, p.c, attributes);
  }
}

std::shared_ptr<const Plan> make_plan(const Key& k) {
  const OneThread guard;
  auto plan = std::make_shared<Plan>();
  plan->a = matrix(k.M, k.K, k.lda, k.transpose_a, k.dtype);
  plan->b = matrix(k.K, k.N, k.ldb, k.transpose_b, k.dtype);
  plan->c = matrix(k.M, k.N, k.ldc, false, k.c_dtype);
  if (k.bias) plan->bias = matrix(1, k.N, k.N, false, k.dtype);
  dnnl::post_ops ops;
  if (k.alpha != 1) append_linear(ops, k.alpha);
  if (k.beta != 0) ops.append_sum(k.beta);
  dnnl::primitive_attr attributes;
  attributes.set_post_ops(ops);
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  const auto description = describe<dnnl::matmul>(*plan, attributes);
  plan->scratchpad = description.scratchpad_desc();
  plan->primitive = dnnl::matmul(description);
  return plan;
}

std::shared_ptr<const Plan> plan_for(const MatmulArgs& p) {
  static std::mutex mutex;
  static std::map<Key, std::shared_ptr<const Plan>> plans;
  const Key key{p.M,
                p.N,
                p.K,
                p.lda,
                p.ldb,
                p.ldc,
                p.transpose_a,
                p.transpose_b,
                p.bias_N != nullptr,
                static_cast<float>(p.alpha),
                static_cast<float>(p.beta),
                p.dtype,
                p.c_dtype};
  std::lock_guard lock(mutex);
  // A program with ever new shapes (evaluation of ragged texts) must not grow without bound.
  if (plans.size() > 1024) plans.clear();
  auto& plan = plans[key];
  if (!plan) plan = make_plan(key);
  return plan;
}

struct Free {
  void operator()(std::byte* p) const { std::free(p); }
};

// Grows to the largest need of this thread.
std::byte* scratchpad(std::size_t bytes) {
  thread_local std::unique_ptr<std::byte, Free> block;
  thread_local std::size_t capacity = 0;
  if (bytes > capacity) {
    constexpr std::size_t kPage = 4096;
    capacity = (bytes + kPage - 1) / kPage * kPage;
    block.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, capacity)));
    if (!block) {
      capacity = 0;
      throw std::bad_alloc();
    }
  }
  return block.get();
}

template <class F>
auto with_errors(const MatmulArgs& p, const F& f) {
  try {
    return f();
  } catch (const dnnl::error& e) {
    fail(e.status == dnnl_out_of_memory ? Exit::memory : Exit::internal, "matmul", "oneDNN: ", e.message, " for (", p.M,
         ", ", p.K, ") x (", p.K, ", ", p.N, ") ", name_of(p.dtype));
  }
}

}  // namespace

bool onednn_has_bf16() {
  static const bool answer = [] {
    const auto isa = static_cast<unsigned>(dnnl::get_effective_cpu_isa());
    const auto wanted = static_cast<unsigned>(dnnl::cpu_isa::avx512_core_bf16);
    return (isa & wanted) == wanted;
  }();
  return answer;
}

void onednn_prepare(const MatmulArgs& piece) {
  with_errors(piece, [&] { plan_for(piece); });
}

void onednn_product(const MatmulArgs& piece) {
  with_errors(piece, [&] {
    const auto plan = plan_for(piece);
    const OneThread guard;
    thread_local dnnl::stream stream(engine());
    const auto at = [](const memory::desc& d, const void* data) {
      return memory(d, engine(), const_cast<void*>(data));
    };
    std::unordered_map<int, memory> arguments{
        {DNNL_ARG_SRC, at(plan->a, piece.a)},
        {DNNL_ARG_WEIGHTS, at(plan->b, piece.b)},
        {DNNL_ARG_DST, at(plan->c, piece.c)},
        {DNNL_ARG_SCRATCHPAD, at(plan->scratchpad, scratchpad(plan->scratchpad.get_size()))}};
    if (piece.bias_N != nullptr) arguments.emplace(DNNL_ARG_BIAS, at(plan->bias, piece.bias_N));
    plan->primitive.execute(stream, arguments);
    stream.wait();
  });
}

}  // namespace sieve::cpu
