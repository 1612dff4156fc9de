// Operands of bytes, for int8 kernels with vectors.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_BYTES_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_BYTES_H_

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <vector>

#include "blocks.h"
#include "conversion.h"

namespace prottrans_x86 {

// With vectors, int8 kernels are multiplied by bytes: each row of x is rounded to 255
// levels between its minimum and maximum, as in `quantized.product`.
struct ByteScales {
  ByteScales(int64_t rows, int64_t columns)
      : step(rows), middle(rows), column_sums(columns) {}

  std::vector<float> step, middle;  // [rows]: x is about step (byte - 128) + middle.
  std::vector<int32_t> column_sums;  // [columns]: sums of the kernel packed so far.
};
constexpr int32_t kByteMiddle = 128;

// Step and middle of a row [depth]; the middle is NaN if the row contains a NaN.
AVX512 static void ScaleRow(const Bf16* x, int64_t depth, float* step, float* middle) {
  __m512 low = _mm512_set1_ps(INFINITY), high = _mm512_set1_ps(-INFINITY);
  __mmask16 none = 0;
  for (int64_t d = 0; d < depth; d += 16) {
    const __m512 numbers = LoadWide(x + d);
    low = _mm512_min_ps(low, numbers);
    high = _mm512_max_ps(high, numbers);
    none |= _mm512_cmp_ps_mask(numbers, numbers, _CMP_UNORD_Q);
  }
  const float least = _mm512_reduce_min_ps(low), largest = _mm512_reduce_max_ps(high);
  *middle = none ? NAN : 0.5f * (largest + least);
  *step = 0.5f * (largest - least) / 127;
  if (*step == 0.0f) *step = 1.0f;
}

// Packs rows [rows, depth], `stride` apart, as bytes. Padding is left uninitialised: sums
// of rows up to 32 are not used, and in depth up to 64 the right operand is zero.
AVX512 static void PackLeftBytes(const Bf16* x, int64_t stride, int64_t rows,
                                 int64_t depth, const float* step, const float* middle,
                                 int8_t* packed) {
  constexpr int64_t kLine = kDeep<int8_t>;
  for (int64_t row = 0; row < rows; ++row) {
    const __m512 by = _mm512_set1_ps(1.0f / step[row]);
    const __m512 from = _mm512_set1_ps(middle[row]);
    for (int64_t d = 0; d < depth; d += 16) {
      const Bf16* numbers = x + row * stride + d;
      // The next row is too far for the hardware prefetcher; it may be past the end.
      _mm_prefetch(reinterpret_cast<const char*>(numbers + stride), _MM_HINT_T0);
      const __m512 off = _mm512_sub_ps(LoadWide(numbers), from);
      const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(_mm512_mul_ps(off, by)),
                                             _mm512_set1_epi32(kByteMiddle));
      int8_t* out = packed + d / kLine * kBlock * kLine + row * kLine + d % kLine;
      _mm_store_si128(reinterpret_cast<__m128i*>(out), _mm512_cvtepi32_epi8(whole));
    }
  }
}

// Packs [depth, columns], rows `stride` apart, as a right operand of bytes; zeros pad the
// depth to a multiple of 64. Adds the columns to `sums`.
AVX512 static void PackRightBytes(const int8_t* x, int64_t stride, int64_t depth,
                                  int64_t columns, int8_t* packed, int32_t* sums) {
  constexpr int64_t kLine = kDeep<int8_t>;
  const int64_t steps = CeilDiv(depth, kLine);
  const __m512i ones = _mm512_set1_epi8(1);
  for (int64_t d = 0; d < steps * kLine; d += 4) {
    for (int64_t c = 0; c < columns; c += 16) {
      __m512i four = _mm512_setzero_si512();
      if (d < depth) {
        for (int i = 3; i >= 0; --i) {
          const __m128i bytes = _mm_loadu_si128(
              reinterpret_cast<const __m128i*>(x + (d + i) * stride + c));
          four = _mm512_or_si512(_mm512_slli_epi32(four, 8), _mm512_cvtepu8_epi32(bytes));
        }
      }
      int8_t* out = packed + (c / kBlock * steps + d / kLine) * kBlock * kLine +
                    c % kBlock * kLine + d % kLine * 16;
      _mm512_store_si512(out, four);
      const __m512i sum = _mm512_loadu_si512(sums + c);
      _mm512_storeu_si512(sums + c, _mm512_dpbusd_epi32(sum, ones, four));
    }
  }
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_BYTES_H_
