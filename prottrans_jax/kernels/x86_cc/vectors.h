// Products of vectors (AVX-512).

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_VECTORS_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_VECTORS_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "blocks.h"

namespace prottrans_x86 {

// sum + x * y, with the value at x broadcast to all lanes.
AVX512 inline __m512 MultiplyAdd(const float* x, __m512 y, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_set1_ps(*x), y, sum);
}
AVX512 inline __m512i InAllLanes(const void* x) {
  int32_t bits;
  std::memcpy(&bits, x, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
AVX512 inline __m512 MultiplyAdd(const Bf16* x, __m512 y, __m512 sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(InAllLanes(x)),
                          reinterpret_cast<__m512bh>(y));
}
// x holds unsigned bytes; the sums are int32.
AVX512 inline __m512 MultiplyAdd(const int8_t* x, __m512 y, __m512 sum) {
  return reinterpret_cast<__m512>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), InAllLanes(x),
                          reinterpret_cast<__m512i>(y)));
}

AVX512 inline __m512 Add(__m512 a, __m512 b, float) { return _mm512_add_ps(a, b); }
AVX512 inline __m512 Add(__m512 a, __m512 b, int32_t) {
  return reinterpret_cast<__m512>(
      _mm512_add_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

// Rows of a left operand for vectors. Distances, in elements: `stride` to the next row,
// `step` to the next kDeep of depth, `below` to the row 32 rows further down.
template <typename E>
struct Rows {
  const E* first;
  int64_t stride, step, below;
};

// Which of 8 rows, 32 below those being multiplied, are prefetched. They may be past the
// end.
struct Fetched {
  int64_t first = 0, end = 0;
};

// Vectors: sums [rows rounded up to a multiple of 8, 32], rows `stride` apart, = left
// [rows, depth] times right, with depth `steps` times kDeep. The last row is repeated to
// fill the group of 8; those sums are not used.
template <typename E, typename Sum = Summed<E>>
AVX512 inline void MultiplyInVectors(const Rows<E>& left, const E* right, int64_t steps,
                                     int64_t rows, Sum* sums, int64_t stride,
                                     Fetched fetched = {}) {
  constexpr int64_t kPair = 4 / sizeof(E), kLine = kDeep<E>, kAll = kBlock * kLine;
  for (int64_t row = 0; row < rows; row += kGroup) {
    int64_t at[kGroup];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kGroup; ++i) {
      at[i] = std::min(row + i, rows - 1) * left.stride;
    }
    const E *x = left.first, *y = right;
    for (int64_t start = 0; start < steps; start += kChain) {
      __m512 sum[kGroup][2];
#pragma GCC unroll 8
      for (auto& line : sum) line[0] = line[1] = _mm512_setzero_ps();
      const int64_t end = std::min(steps, start + kChain);
      for (int64_t step = start; step < end; ++step, x += left.step, y += kAll) {
        for (int64_t i = fetched.first; i < fetched.end; ++i) {
          const E* ahead = x + left.below + (row + i) * left.stride;
          for (int64_t d = 0; d < kLine; d += 64 / sizeof(E)) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + d), _MM_HINT_T1);
          }
        }
#pragma GCC unroll 32
        for (int64_t d = 0; d < kLine; d += kPair) {
          const __m512 low = _mm512_load_ps(reinterpret_cast<const float*>(y + d * 16));
          const __m512 high =
              _mm512_load_ps(reinterpret_cast<const float*>(y + kAll / 2 + d * 16));
#pragma GCC unroll 8
          for (int64_t i = 0; i < kGroup; ++i) {
            sum[i][0] = MultiplyAdd(x + at[i] + d, low, sum[i][0]);
            sum[i][1] = MultiplyAdd(x + at[i] + d, high, sum[i][1]);
          }
        }
      }
      Sum* line = sums + row * stride;
#pragma GCC unroll 8
      for (int64_t i = 0; i < kGroup; ++i, line += stride) {
#pragma GCC unroll 2
        for (int64_t j = 0; j < 2; ++j) {
          float* const out = reinterpret_cast<float*>(line + 16 * j);
          const __m512 before = start == 0 ? _mm512_setzero_ps() : _mm512_load_ps(out);
          _mm512_store_ps(out, Add(before, sum[i][j], Sum()));
        }
      }
    }
  }
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_VECTORS_H_
