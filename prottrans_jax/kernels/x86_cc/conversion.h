// Numbers between float32, bfloat16 and int8, and a float32 in three bfloat16.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_CONVERSION_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_CONVERSION_H_

#include <immintrin.h>

#include <cstdint>

#include "blocks.h"

namespace prottrans_x86 {

AVX512 inline __m512 LoadWide(const float* x) { return _mm512_loadu_ps(x); }
AVX512 inline __m512 LoadWide(const Bf16* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return reinterpret_cast<__m512>(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

AVX512 inline void Store(__m512 low, __m512 high, Bf16* out) {
  _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}
AVX512 inline void Store(__m512 low, __m512 high, float* out) {
  _mm512_storeu_ps(out, low);
  _mm512_storeu_ps(out + 16, high);
}

// A float32 as a sum of three bfloat16, each the nearest to the remainder: the upper
// halves of `parts`. For Inf or NaN, a later part is NaN.
AVX512 inline void Split(__m512 x, __m512i* parts) {
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  const __m512i half = _mm512_set1_epi32(0x8000);
  for (int i = 0; i < 2; ++i) {
    parts[i] = _mm512_add_epi32(reinterpret_cast<__m512i>(x), half);
    const __m512i part = _mm512_and_si512(parts[i], upper);
    x = _mm512_sub_ps(x, reinterpret_cast<__m512>(part));
  }
  parts[2] = reinterpret_cast<__m512i>(x);
}

// 32 numbers in bfloat16; int8 converts exactly.
AVX512 inline __m512i Load(const Bf16* x) { return _mm512_loadu_si512(x); }
AVX512 inline __m512i Load(const int8_t* x) {
  const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  const __m512i low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes));
  const __m512i high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes, 1));
  return reinterpret_cast<__m512i>(
      _mm512_cvtne2ps_pbh(_mm512_cvtepi32_ps(high), _mm512_cvtepi32_ps(low)));
}

// 32 numbers, in three parts that are kStep apart.
AVX512 inline void StoreParts(__m512 first, __m512 second, Bf16* out) {
  alignas(64) static const uint16_t kUpper[32] = {
      1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
      33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
  const __m512i upper = _mm512_load_si512(kUpper);
  __m512i low[3], high[3];
  Split(first, low);
  Split(second, high);
  for (int i = 0; i < 3; ++i) {
    _mm512_store_si512(out + i * kStep,
                       _mm512_permutex2var_epi16(low[i], upper, high[i]));
  }
}

// 32 numbers of a row.
AVX512 inline void StoreRow(const Bf16* x, Bf16* out) {
  _mm512_store_si512(out, Load(x));
}
AVX512 inline void StoreRow(const float* x, Bf16* out) {
  StoreParts(_mm512_loadu_ps(x), _mm512_loadu_ps(x + 16), out);
}

// 32 columns of two rows, interleaved in bfloat16 as the products need them.
template <typename T>
AVX512 inline void StorePairs(const T* first, const T* second, Bf16* out) {
  alignas(64) static const uint16_t kLow[32] = {
      0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
      8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
  const __m512i low = _mm512_load_si512(kLow);
  const __m512i high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
  const __m512i a = Load(first), b = Load(second);
  _mm512_store_si512(out, _mm512_permutex2var_epi16(a, low, b));
  _mm512_store_si512(out + kStep / 2, _mm512_permutex2var_epi16(a, high, b));
}
// 16 columns of two rows, in three parts.
AVX512 inline void StorePairs(__m512 first, __m512 second, Bf16* out) {
  constexpr int kOrAnd = 0xf8;  // a | (b & c)
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  __m512i a[3], b[3];
  Split(first, a);
  Split(second, b);
  for (int i = 0; i < 3; ++i) {
    _mm512_store_si512(
        out + i * kStep,
        _mm512_ternarylogic_epi32(_mm512_srli_epi32(a[i], 16), b[i], upper, kOrAnd));
  }
}
AVX512 inline void StorePairs(const float* first, const float* second, Bf16* out) {
  StorePairs(_mm512_loadu_ps(first), _mm512_loadu_ps(second), out);
  StorePairs(_mm512_loadu_ps(first + 16), _mm512_loadu_ps(second + 16),
             out + kStep / 2);
}

AVX512 inline void StorePairs(const float* first, const float* second, float* out) {
  for (int64_t i = 0; i < 2; ++i, out += kStep / 2) {
    _mm512_store_ps(out, _mm512_loadu_ps(first + 16 * i));
    _mm512_store_ps(out + 16, _mm512_loadu_ps(second + 16 * i));
  }
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_CONVERSION_H_
