// Float32 products of the matrix unit: integers of three bytes.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_DIGITS_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_DIGITS_H_

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "blocks.h"
#include "tiles.h"

namespace prottrans_x86 {

// Products of integers with three signed base-256 digits: the sum of the products of
// digits, weighted by powers of 256. The product of the two last digits, below 2^-32 of
// that of the first digits, is omitted. The other sums are exact in int32.
//
// sums [4 places, 16, 16] = left [16, depth] times right, laid out as
//
//   left    [rows / 16][depth / 64][3 digits][16 rows][64 of depth]
//   right   [columns / 16][depth / 64][3 digits][16 x 4 of depth][16 columns][4]
//
// with the largest digit first.
template <typename Other>
AMX inline const char* MultiplyDigits(const int8_t* left, const int8_t* right,
                                      int64_t steps, int32_t* sums, const char* ahead,
                                      Other&& other) {
  AllWritten();
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_loadd(4, right, 64);
    Gap();
    _tile_loadd(7, left, 64);
    Gap();
    _tile_dpbssd(0, 7, 4);
    Gap();
    _tile_loadd(5, right + kTile, 64);
    Gap();
    _tile_dpbssd(1, 7, 5);
    Gap();
    _tile_loadd(6, right + 2 * kTile, 64);
    Gap();
    _tile_dpbssd(2, 7, 6);
    Gap();
    _tile_loadd(7, left + kTile, 64);
    Gap();
    _tile_dpbssd(1, 7, 4);
    Gap();
    _tile_dpbssd(2, 7, 5);
    Gap();
    _tile_dpbssd(3, 7, 6);
    Gap();
    _tile_loadd(7, left + 2 * kTile, 64);
    Gap();
    _tile_dpbssd(2, 7, 4);
    Gap();
    _tile_dpbssd(3, 7, 5);
    Gap();
    // Over a panel of columns, the next 16 rows of the left operand.
    for (int i = 0; i < 6; ++i) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
    ahead += 6 * 64;
    other();
    left += kDigits * kTile;
    right += kDigits * kTile;
  }
  _tile_stored(0, sums, 64);
  _tile_stored(1, sums + 256, 64);
  _tile_stored(2, sums + 512, 64);
  _tile_stored(3, sums + 768, 64);
  AllWritten();
  return ahead;
}

// Running maximum of absolute values, compared as bit patterns, which sort alike. NaN is
// larger than every number.
AVX512 inline __m512i Larger(__m512i bits, __m512 x) {
  return _mm512_max_epu32(bits, reinterpret_cast<__m512i>(_mm512_abs_ps(x)));
}

// Rows and columns whose largest value is smaller than this lose accuracy.
constexpr float kTiny = 1e-30f;
// Largest integer: below 127 * 256^2 + 127 * 256 + 127 after rounding.
constexpr float kLargest = 8355000.0f;

// `to` scales numbers up to `largest` to integers of three digits. `back` scales
// multiples of the first digit back to numbers. They are 0 and NaN if `largest` is Inf or
// NaN.
struct Scale {
  __m512 to, back;
};
AVX512 inline Scale ScaleOf(__m512i largest) {
  const __m512 top =
      _mm512_max_ps(reinterpret_cast<__m512>(largest), _mm512_set1_ps(kTiny));
  const __mmask16 finite =
      _mm512_cmplt_epu32_mask(largest, _mm512_set1_epi32(0x7f800000));
  const __m512 to = _mm512_maskz_div_ps(finite, _mm512_set1_ps(kLargest), top);
  return {to, _mm512_mask_div_ps(_mm512_set1_ps(NAN), finite,
                                 _mm512_set1_ps(65536.0f), to)};
}

// Bitwise select: bits of a where `mask` is set, of b elsewhere.
AVX512 inline __m512i Select(__m512i mask, __m512i a, __m512i b) {
  return _mm512_ternarylogic_epi32(mask, a, b, 0xca);
}

// The digits of 4 x 16 numbers, x times `scale` rounded to nearest, in tiles kTile apart:
// bytes 4 i to 4 i + 3 belong to number i of each group of 16.
AVX512 inline void StoreDigits(const __m512* x, __m512 scale, int8_t* out) {
  const __m512i turn = _mm512_set1_epi32(0x808080);
  const __m512i odd = _mm512_set1_epi32(0xff00ff00);
  const __m512i upper = _mm512_set1_epi32(0xffff0000);
  __m512i first_and_last[2], middle[2];
  for (int i = 0; i < 2; ++i) {
    __m512i whole[2];
    for (int j = 0; j < 2; ++j) {
      whole[j] = _mm512_cvtps_epi32(_mm512_mul_ps(x[2 * i + j], scale));
      // Bytes are digits plus 128 before the XOR.
      whole[j] = _mm512_xor_si512(_mm512_add_epi32(whole[j], turn), turn);
    }
    first_and_last[i] = Select(odd, _mm512_slli_epi32(whole[1], 8), whole[0]);
    middle[i] = Select(odd, whole[1], _mm512_srli_epi32(whole[0], 8));
  }
  _mm512_store_si512(
      out, Select(upper, first_and_last[1], _mm512_srli_epi32(first_and_last[0], 16)));
  _mm512_store_si512(out + kTile,
                     Select(upper, _mm512_slli_epi32(middle[1], 16), middle[0]));
  _mm512_store_si512(
      out + 2 * kTile,
      Select(upper, _mm512_slli_epi32(first_and_last[1], 16), first_and_last[0]));
}

// Scales that convert part of the depth of a kernel to integers.
struct KernelScales {
  KernelScales(int64_t depth, int64_t columns)
      : to(columns), back(columns), x(depth), kernel(depth) {}

  std::vector<float> to, back;  // [columns]; see `ScaleOf`.
  // [depth]: powers of two, one the inverse of the other, that x and the kernel are
  // multiplied by first. They raise each row of the kernel until it is close to the
  // largest value of some column, so x is rounded relative to its contribution to the
  // results.
  std::vector<float> x, kernel;
};

// Scales of columns `first` to `last` (excluded); rows of the kernel are `stride` apart.
AVX512 static void ScaleColumns(const float* kernel, int64_t stride, int64_t depth,
                                int64_t first, int64_t last, KernelScales* scales) {
  // `to` holds the running maxima first.
  float* const largest = scales->to.data();
  std::fill(largest + first, largest + last, 0.0f);
  for (int64_t d = 0; d < depth; ++d) {
    for (int64_t c = first; c < last; c += 16) {
      const __m512i before = _mm512_loadu_si512(largest + c);
      _mm512_storeu_si512(largest + c,
                          Larger(before, _mm512_loadu_ps(kernel + d * stride + c)));
    }
  }
  for (int64_t c = first; c < last; c += 16) {
    const Scale scale = ScaleOf(_mm512_loadu_si512(largest + c));
    _mm512_storeu_ps(&scales->to[c], scale.to);
    _mm512_storeu_ps(&scales->back[c], scale.back);
  }
}

// Balance of one row of the kernel, at position d of its depth.
AVX512 static void BalanceRow(const float* row, int64_t columns, int64_t d,
                              KernelScales* scales) {
  constexpr int kMost = 100;  // For a row of zeros.
  __m512 largest = _mm512_setzero_ps();
  for (int64_t c = 0; c < columns; c += 16) {
    const __m512 to = _mm512_loadu_ps(&scales->to[c]);
    const __mmask16 finite = _mm512_cmp_ps_mask(to, _mm512_setzero_ps(), _CMP_GT_OQ);
    const __m512 size = _mm512_abs_ps(_mm512_loadu_ps(row + c));
    largest = _mm512_max_ps(largest, _mm512_maskz_mul_ps(finite, size, to));
  }
  // Relative to the column's largest value.
  const float part = _mm512_reduce_max_ps(largest) / kLargest;
  const int below =
      part > 0 ? std::clamp(-static_cast<int>(std::ceil(std::log2(part))), 0, kMost)
               : kMost;
  scales->x[d] = std::ldexp(1.0f, -below);
  scales->kernel[d] = std::ldexp(1.0f, below);
}

// Packs rows [rows, depth], `stride` apart, times `balance`, as integers; zeros pad the
// rows to 32 and the depth to a multiple of 64. `back` gets the scale of each row.
AVX512 static void PackLeftDigits(const float* x, int64_t stride, int64_t rows,
                                  int64_t depth, const float* balance, float* back,
                                  int8_t* packed) {
  const int64_t steps = CeilDiv(depth, kDigitsDepth);
  for (int64_t row = 0; row < kBlock; ++row) {
    int8_t* out = packed + row / 16 * steps * kDigits * kTile + row % 16 * 64;
    const float* from = x + row * stride;
    const int64_t size = row < rows ? depth : 0;
    __m512i largest = _mm512_setzero_si512();
    const auto load = [=](int64_t d) AVX512 {
      return d < size
                 ? _mm512_mul_ps(_mm512_loadu_ps(from + d), _mm512_loadu_ps(balance + d))
                 : _mm512_setzero_ps();
    };
    for (int64_t d = 0; d < size; d += 16) largest = Larger(largest, load(d));
    const Scale scale =
        ScaleOf(_mm512_set1_epi32(static_cast<int>(_mm512_reduce_max_epu32(largest))));
    back[row] = _mm512_cvtss_f32(scale.back);
    for (int64_t d = 0; d < steps * kDigitsDepth; d += kDigitsDepth) {
      const __m512 four[4] = {load(d), load(d + 16), load(d + 32), load(d + 48)};
      StoreDigits(four, scale.to, out);
      out += kDigits * kTile;
    }
  }
}

// Packs [depth, columns], rows `stride` apart, times `balance` and columns times `to`, as
// integers; zeros pad the depth to a multiple of 64.
AVX512 static void PackRightDigits(const float* x, int64_t stride, int64_t depth,
                                   int64_t columns, const float* balance,
                                   const float* to, int8_t* packed) {
  const int64_t steps = CeilDiv(depth, kDigitsDepth);
  for (int64_t row = 0; row < steps * 16; ++row) {
    const int64_t d = row / 16 * kDigitsDepth + row % 16;
    int8_t* out = packed + row / 16 * kDigits * kTile + row % 16 * 64;
    for (int64_t c = 0; c < columns; c += 16, out += steps * kDigits * kTile) {
      __m512 four[4];
      for (int i = 0; i < 4; ++i) {
        const int64_t place = d + 16 * i;
        four[i] = place < depth ? _mm512_mul_ps(_mm512_loadu_ps(x + place * stride + c),
                                                _mm512_set1_ps(balance[place]))
                                : _mm512_setzero_ps();
      }
      StoreDigits(four, _mm512_loadu_ps(to + c), out);
    }
  }
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_DIGITS_H_
