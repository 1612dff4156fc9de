#include "handlers.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <new>
#include <utility>
#include <vector>

#include "attention.h"
#include "blocks.h"
#include "norm.h"
#include "product.h"
#include "scratch.h"
#include "threads.h"
#include "xla/ffi/api/ffi.h"

namespace prottrans_x86 {
namespace {

namespace ffi = xla::ffi;
using Bytes = ffi::Buffer<ffi::U8, 2>;
using Sums = ffi::Buffer<ffi::F32, 2>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using ScoreBias = ffi::Buffer<ffi::F32, 4>;
using Segments = ffi::Buffer<ffi::S32, 2>;
using Count = ffi::Buffer<ffi::S32, 0>;

class PoolThreads final : public Threads {
 public:
  explicit PoolThreads(const ffi::ThreadPool& pool) : pool_(pool) {}
  int64_t Count() const override { return pool_.num_threads(); }
  void Schedule(std::function<void()> work) const override {
    pool_.Schedule(std::move(work));
  }

 private:
  mutable ffi::ThreadPool pool_;
};

ffi::Error Ended(bool good) {
  if (good) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    "Out of memory: could not allocate a thread's buffers for operands.");
}

const float* OrNull(const Vector& x) {
  return x.element_count() == 0 ? nullptr : x.typed_data();
}

// Whether a buffer has these sizes.
template <typename Buffer>
bool Has(const Buffer& buffer, std::initializer_list<int64_t> sizes) {
  const auto dimensions = buffer.dimensions();
  return std::equal(dimensions.begin(), dimensions.end(), sizes.begin(), sizes.end());
}

template <typename Buffer>
bool IsAligned(const Buffer& buffer) {
  return reinterpret_cast<uintptr_t>(buffer.untyped_data()) % 64 == 0;
}

template <Unit kUnit>
ffi::Error Product(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                   Vector scale, Vector bias, Count count,
                   ffi::Result<ffi::AnyBuffer> out, ffi::Result<Bytes> left,
                   ffi::Result<Sums> sums, int32_t activation) {
  if (x.dimensions().size() != 2 || kernel.dimensions().size() != 2) {
    return ffi::Error::InvalidArgument("x and kernel must have 2 dimensions.");
  }
  const ProductJob job = {x.untyped_data(),
                          kernel.untyped_data(),
                          OrNull(scale),
                          OrNull(bias),
                          out->untyped_data(),
                          left->untyped_data(),
                          sums->typed_data(),
                          *count.typed_data(),
                          x.dimensions()[1],
                          kernel.dimensions()[1],
                          activation,
                          out->element_type() == ffi::F32};
  const ffi::DataType type = kernel.element_type();
  const bool is_wide = type == ffi::F32;
  const int64_t all = x.dimensions()[0];
  const int64_t rows = CeilDiv(all, kBlock) * kBlock;
  const bool is_int8 = type == ffi::S8;
  const int64_t most = is_wide   ? kDepth<kUnit, float>
                       : is_int8 ? kDepth<kUnit, int8_t>
                                 : kDepth<kUnit, Bf16>;
  const int64_t depth = std::min(most, job.depth);
  const int64_t bytes = is_wide   ? LeftBytesOf<kUnit, float>(depth)
                        : is_int8 ? LeftBytesOf<kUnit, int8_t>(depth)
                                  : LeftBytesOf<kUnit, Bf16>(depth);
  // Sums of so many products of bytes stay below 2^31.
  constexpr int64_t kMostBytes = 65536;
  const bool in_parts = job.depth > most;
  bool good = job.depth > 0 && job.columns > 0 && job.depth % kBlock == 0 &&
              job.columns % kBlock == 0 && Has(kernel, {job.depth, job.columns}) &&
              Has(*out, {all, job.columns}) && Has(*left, {rows, bytes}) &&
              job.rows >= 0 && job.rows <= all &&
              Has(*sums, {in_parts ? rows : 0, job.columns}) && IsAligned(*out) &&
              IsAligned(*left) && IsAligned(*sums);
  for (const Vector& vector : {scale, bias}) {
    good = good && (vector.element_count() == 0 || Has(vector, {job.columns}));
  }
  good = good && !(is_int8 && job.depth > kMostBytes);
  if (!good) {
    return ffi::Error::InvalidArgument(
        "Sizes do not match or are not multiples of 32, or a buffer is not aligned to 64 "
        "bytes.");
  }
  if (!(is_wide || is_int8 || type == ffi::BF16) ||
      x.element_type() != (is_wide ? ffi::F32 : ffi::BF16) ||
      !(job.wide || out->element_type() == ffi::BF16)) {
    return ffi::Error::InvalidArgument("Element types do not match.");
  }
  const int64_t row_bytes = job.columns * (job.wide ? sizeof(float) : sizeof(Bf16));
  std::memset(static_cast<char*>(job.out) + job.rows * row_bytes, 0,
              (all - job.rows) * row_bytes);
  UseLargePages(left->untyped_data(), left->size_bytes());
  UseLargePages(sums->untyped_data(), sums->size_bytes());
  const PoolThreads threads(pool);
  try {
    if (is_wide) return Ended(Multiply<kUnit, float, float>(threads, job));
    if (is_int8) return Ended(Multiply<kUnit, Bf16, int8_t>(threads, job));
    return Ended(Multiply<kUnit, Bf16, Bf16>(threads, job));
  } catch (const std::bad_alloc&) {
    return Ended(false);
  }
}

template <typename X, typename Out>
ffi::Error NormaliseAll(const ffi::ThreadPool& pool, const ffi::AnyBuffer& x,
                        const ffi::AnyBuffer& addend, const Vector& scale,
                        const Vector& bias, float epsilon, ffi::AnyBuffer& out) {
  const X* plus = static_cast<const X*>(addend.untyped_data());
  const NormJob<X, Out> job = {static_cast<const X*>(x.untyped_data()),
                               addend.element_count() == 0 ? nullptr : plus,
                               scale.typed_data(),
                               OrNull(bias),
                               static_cast<Out*>(out.untyped_data()),
                               x.dimensions()[0],
                               x.dimensions()[1],
                               epsilon};
  return Ended(NormaliseRows(PoolThreads(pool), job));
}

ffi::Error Norm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer addend,
                Vector scale, Vector bias, ffi::Result<ffi::AnyBuffer> out,
                float epsilon) {
  if (x.dimensions().size() != 2) {
    return ffi::Error::InvalidArgument("x must have 2 dimensions.");
  }
  const int64_t rows = x.dimensions()[0], size = x.dimensions()[1];
  if (size % kBlock != 0 || !Has(scale, {size}) || !Has(*out, {rows, size}) ||
      !(addend.element_count() == 0 || Has(addend, {rows, size})) ||
      !(bias.element_count() == 0 || Has(bias, {size}))) {
    return ffi::Error::InvalidArgument(
        "Sizes do not match, or d_model is not a multiple of 32.");
  }
  const ffi::DataType from = x.element_type(), to = out->element_type();
  if (addend.element_type() != from) {
    return ffi::Error::InvalidArgument("Element types do not match.");
  }
  if (from == ffi::F32 && to == ffi::F32) {
    return NormaliseAll<float, float>(pool, x, addend, scale, bias, epsilon, *out);
  }
  if (from == ffi::F32 && to == ffi::BF16) {
    return NormaliseAll<float, Bf16>(pool, x, addend, scale, bias, epsilon, *out);
  }
  if (from == ffi::BF16 && to == ffi::F32) {
    return NormaliseAll<Bf16, float>(pool, x, addend, scale, bias, epsilon, *out);
  }
  if (from == ffi::BF16 && to == ffi::BF16) {
    return NormaliseAll<Bf16, Bf16>(pool, x, addend, scale, bias, epsilon, *out);
  }
  return ffi::Error::InvalidArgument("Element types do not match.");
}

template <Unit kUnit, typename T, ffi::DataType kType>
ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<kType, 4> query,
                     ffi::Buffer<kType, 4> key, ffi::Buffer<kType, 4> value,
                     ScoreBias bias, Segments q_segments, Segments kv_segments,
                     ffi::Result<ffi::Buffer<kType, 4>> out) {
  AttentionJob<T> job;
  job.query = reinterpret_cast<const T*>(query.typed_data());
  job.key = reinterpret_cast<const T*>(key.typed_data());
  job.value = reinterpret_cast<const T*>(value.typed_data());
  job.bias = bias.element_count() == 0 ? nullptr : bias.typed_data();
  job.out = reinterpret_cast<T*>(out->typed_data());
  job.q_length = query.dimensions()[1];
  job.heads = query.dimensions()[2];
  job.size = query.dimensions()[3];
  job.kv_length = key.dimensions()[1];
  job.bias_of_rows = bias.dimensions()[0] > 1;
  const int64_t distances = job.q_length + job.kv_length - 1;
  job.bias_of_distances = Has(bias, {1, job.heads, 1, distances});
  const int64_t batch = query.dimensions()[0];
  const int64_t bias_rows = job.bias_of_rows ? batch : 1;
  if (job.size % kBlock != 0 || job.kv_length == 0 ||
      !Has(key, {batch, job.kv_length, job.heads, job.size}) ||
      !Has(value, {batch, job.kv_length, job.heads, job.size}) ||
      !Has(q_segments, {batch, job.q_length}) ||
      !Has(kv_segments, {batch, job.kv_length}) ||
      (job.bias != nullptr && !job.bias_of_distances &&
       !Has(bias, {bias_rows, job.heads, job.q_length, job.kv_length}))) {
    return ffi::Error::InvalidArgument(
        "Sizes do not match, or head_dim is not a multiple of 32.");
  }
  try {
    std::vector<Segment> segments;
    if (!FindSegments(q_segments.typed_data(), kv_segments.typed_data(), batch,
                      job.q_length, job.kv_length, &segments)) {
      return ffi::Error::InvalidArgument("Positions of a segment are not contiguous.");
    }
    return Ended(Attend<kUnit>(PoolThreads(pool), job, batch, segments));
  } catch (const std::bad_alloc&) {
    return Ended(false);
  }
}

auto ProductArguments() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<Vector>()
      .Arg<Vector>()
      .Arg<Count>()
      .Ret<ffi::AnyBuffer>()
      .Ret<Bytes>()
      .Ret<Sums>()
      .Attr<int32_t>("activation");
}

XLA_FFI_DEFINE_HANDLER(kProductInTiles, Product<Unit::kTiles>, ProductArguments());
XLA_FFI_DEFINE_HANDLER(kProductInVectors, Product<Unit::kVectors>, ProductArguments());

XLA_FFI_DEFINE_HANDLER(kNorm, Norm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<Vector>()
                           .Arg<Vector>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"));

template <ffi::DataType kType>
auto AttentionArguments() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<ffi::Buffer<kType, 4>>()
      .template Arg<ffi::Buffer<kType, 4>>()
      .template Arg<ffi::Buffer<kType, 4>>()
      .template Arg<ScoreBias>()
      .template Arg<Segments>()
      .template Arg<Segments>()
      .template Ret<ffi::Buffer<kType, 4>>();
}

template <Unit kUnit>
constexpr auto kAttendBf16 = Attention<kUnit, Bf16, ffi::BF16>;
template <Unit kUnit>
constexpr auto kAttendWide = Attention<kUnit, float, ffi::F32>;
XLA_FFI_DEFINE_HANDLER(kAttentionInTiles, kAttendBf16<Unit::kTiles>,
                       AttentionArguments<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER(kAttentionInVectors, kAttendBf16<Unit::kVectors>,
                       AttentionArguments<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER(kWideAttentionInTiles, kAttendWide<Unit::kTiles>,
                       AttentionArguments<ffi::F32>());
XLA_FFI_DEFINE_HANDLER(kWideAttentionInVectors, kAttendWide<Unit::kVectors>,
                       AttentionArguments<ffi::F32>());

}  // namespace

XLA_FFI_Handler* ProductHandler(Unit unit) {
  return unit == Unit::kTiles ? kProductInTiles : kProductInVectors;
}

XLA_FFI_Handler* AttentionHandler(Unit unit) {
  return unit == Unit::kTiles ? kAttentionInTiles : kAttentionInVectors;
}

XLA_FFI_Handler* WideAttentionHandler(Unit unit) {
  return unit == Unit::kTiles ? kWideAttentionInTiles : kWideAttentionInVectors;
}

XLA_FFI_Handler* NormHandler() { return kNorm; }

}  // namespace prottrans_x86
