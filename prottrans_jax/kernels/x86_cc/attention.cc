#include "attention.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <tuple>
#include <vector>

#include "blocks.h"
#include "conversion.h"
#include "elementwise.h"
#include "packing.h"
#include "scratch.h"
#include "tiles.h"
#include "vectors.h"

namespace prottrans_x86 {
namespace {

// Below every score, as attention.MASKED / 2: weights of a query without keys are 0.
constexpr float kNoPeak = -5e29f;

// Ranges of the nonzero numbers in a row, sorted by number: (number, start, count). False
// if the positions of a number are not contiguous.
using Places = std::vector<std::tuple<int32_t, int64_t, int64_t>>;
bool FindPlaces(const int32_t* row, int64_t length, Places* places) {
  places->clear();
  for (int64_t start = 0, end; start < length; start = end) {
    for (end = start + 1; end < length && row[end] == row[start];) ++end;
    if (row[start] != 0) places->emplace_back(row[start], start, end - start);
  }
  std::sort(places->begin(), places->end());
  const auto same = [](const auto& a, const auto& b) {
    return std::get<0>(a) == std::get<0>(b);
  };
  return std::adjacent_find(places->begin(), places->end(), same) == places->end();
}

// Stores the softmax numerators of a query's scores as a row of a left operand with
// `kCount` parts. Returns 1 over their sum, or 1 if the sum is 0. Scores fill whole
// blocks; the first `count` belong to keys.
template <int kCount, typename E>
AVX512 float Weigh(float* scores, const float* bias, int64_t count, E* weights) {
  __m512 peak = _mm512_set1_ps(kNoPeak);
  const int64_t keys = CeilDiv(count, kBlock) * kBlock;
  for (int64_t k = 0; k < keys; k += 16) {
    const int64_t left = std::clamp<int64_t>(count - k, 0, 16);
    const __mmask16 real = static_cast<__mmask16>((1u << left) - 1);
    __m512 x = _mm512_load_ps(scores + k);
    if (bias != nullptr) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(real, bias + k));
    x = _mm512_mask_blend_ps(real, _mm512_set1_ps(4 * kNoPeak), x);
    _mm512_store_ps(scores + k, x);
    peak = _mm512_max_ps(peak, x);
  }
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(peak));
  __m512 total = _mm512_setzero_ps();
  for (int64_t k = 0; k < keys; k += kBlock, weights += kCount * kStep) {
    const __m512 first = Exp(_mm512_sub_ps(_mm512_load_ps(scores + k), top));
    const __m512 second = Exp(_mm512_sub_ps(_mm512_load_ps(scores + k + 16), top));
    total = _mm512_add_ps(_mm512_add_ps(total, first), second);
    if constexpr (kCount == 1) {
      Store(first, second, weights);
    } else {
      StoreParts(first, second, weights);
    }
  }
  const float sum = _mm512_reduce_add_ps(total);
  return sum == 0.0f ? 1.0f : 1.0f / sum;
}

// Computes one head of one segment. False if out of memory.
template <Unit kUnit, typename T>
AMX bool ComputeHead(const AttentionJob<T>& job, const Segment& segment, int64_t head) {
  using E = Element<kUnit, T>;
  constexpr int kCount = kParts<T, E>;
  constexpr bool kInTiles = kUnit == Unit::kTiles;
  const int64_t stride = job.stride();
  const int64_t keys = CeilDiv(segment.kv_count, kBlock) * kBlock;
  E* key = Scratch<0, E>(keys * job.size * kCount);
  E* value = Scratch<1, E>(keys * job.size * kCount);
  float* scores = Scratch<2, float>(kBlock * keys);
  E* query = nullptr;  // Vectors read the query in place.
  if constexpr (kInTiles) {
    query = Scratch<3, E>(kBlock * job.size * kCount);
    if (query == nullptr) return false;
  }
  E* weights = Scratch<4, E>(kBlock * keys * kCount);
  if (!key || !value || !scores || !weights) return false;
  const int64_t kv_first = segment.row * job.kv_length + segment.kv_start;
  const int64_t kv_start = kv_first * stride + head * job.size;
  PackTransposed(job.key + kv_start, stride, segment.kv_count, job.size, key);
  PackRight(job.value + kv_start, stride, segment.kv_count, job.size, value);
  [[maybe_unused]] InUse<kUnit> unit;
  for (int64_t q = 0; q < segment.q_count; q += kBlock) {
    const int64_t count = std::min(kBlock, segment.q_count - q);
    const int64_t q_first = segment.row * job.q_length + segment.q_start + q;
    const int64_t start = q_first * stride + head * job.size;
    if constexpr (kInTiles) PackLeft(job.query + start, stride, count, job.size, query);
    for (int64_t k = 0; k < keys; k += kBlock) {
      const E* these = key + k * job.size * kCount;
      const int64_t steps = job.size / kBlock;
      if constexpr (kInTiles) {
        MultiplyInTiles<kCount, false>(query, these, steps, scores + k, keys, nullptr);
      } else {
        const Rows<E> rows = {job.query + start, stride, kBlock, 0};
        MultiplyInVectors(rows, these, steps, count, scores + k, keys);
      }
    }
    float scales[kBlock];
    for (int64_t r = 0; r < count; ++r) {
      scales[r] = Weigh<kCount>(scores + r * keys, job.BiasOf(segment, head, q + r),
                                segment.kv_count, weights + r * kBlock);
    }
    for (int64_t d = 0; d < job.size; d += kBlock) {
      alignas(64) float sums[kStep];
      const E* these = value + d * keys * kCount;
      const int64_t steps = keys / kBlock;
      if constexpr (kInTiles) {
        MultiplyInTiles<kCount, false>(weights, these, steps, sums, kBlock, nullptr);
      } else {
        const Rows<E> rows = {weights, kBlock, kStep, 0};
        MultiplyInVectors(rows, these, steps, count, sums, kBlock);
      }
      for (int64_t r = 0; r < count; ++r) {
        const __m512 scale = _mm512_set1_ps(scales[r]);
        const float* from = sums + r * kBlock;
        Store(_mm512_mul_ps(_mm512_load_ps(from), scale),
              _mm512_mul_ps(_mm512_load_ps(from + 16), scale),
              job.out + start + r * stride + d);
      }
    }
  }
  return true;
}

}  // namespace

bool FindSegments(const int32_t* queries, const int32_t* keys, int64_t rows,
                  int64_t q_length, int64_t kv_length, std::vector<Segment>* segments) {
  Places of_queries, of_keys;
  for (int64_t row = 0; row < rows; ++row) {
    const int32_t* q_row = queries + row * q_length;
    const int32_t* kv_row = keys + row * kv_length;
    if (!FindPlaces(q_row, q_length, &of_queries) ||
        !FindPlaces(kv_row, kv_length, &of_keys)) {
      return false;
    }
    auto key = of_keys.begin();
    for (const auto& [number, q_start, q_count] : of_queries) {
      while (key != of_keys.end() && std::get<0>(*key) < number) ++key;
      if (key == of_keys.end() || std::get<0>(*key) != number) continue;
      const auto [_, kv_start, kv_count] = *key;
      segments->push_back({row, q_start, q_count, kv_start, kv_count});
    }
  }
  return true;
}

template <Unit kUnit, typename T>
bool Attend(const Threads& threads, const AttentionJob<T>& job, int64_t rows,
            const std::vector<Segment>& segments) {
  std::vector<bool> has_keys(rows * job.q_length);
  for (const Segment& segment : segments) {
    const auto first = has_keys.begin() + segment.row * job.q_length + segment.q_start;
    std::fill(first, first + segment.q_count, true);
  }
  for (int64_t i = 0; i < rows * job.q_length; ++i) {
    if (!has_keys[i]) std::fill_n(job.out + i * job.stride(), job.stride(), T{0});
  }
  const int64_t count = static_cast<int64_t>(segments.size()) * job.heads;
  return InParallel(threads, count, [job, segments](int64_t i) {
    return ComputeHead<kUnit>(job, segments[i / job.heads], i % job.heads);
  });
}

template bool Attend<Unit::kTiles>(const Threads&, const AttentionJob<Bf16>&, int64_t,
                                   const std::vector<Segment>&);
template bool Attend<Unit::kTiles>(const Threads&, const AttentionJob<float>&, int64_t,
                                   const std::vector<Segment>&);
template bool Attend<Unit::kVectors>(const Threads&, const AttentionJob<Bf16>&, int64_t,
                                     const std::vector<Segment>&);
template bool Attend<Unit::kVectors>(const Threads&, const AttentionJob<float>&, int64_t,
                                     const std::vector<Segment>&);

}  // namespace prottrans_x86
