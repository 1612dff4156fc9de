// Packs operands of bfloat16 and float32; see `blocks.h` for the layouts.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_PACKING_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_PACKING_H_

#include <immintrin.h>

#include <algorithm>
#include <cstdint>

#include "blocks.h"
#include "conversion.h"

namespace prottrans_x86 {

// Packs rows [rows, depth], `stride` apart, as a left operand; zero rows pad to 32.
template <typename T, typename E>
AVX512 static void PackLeft(const T* x, int64_t stride, int64_t rows, int64_t depth,
                            E* packed) {
  static const T kZeros[kBlock] = {};
  const int64_t step = kParts<T, E> * kStep;
  for (int64_t row = 0; row < CeilDiv(rows, kBlock) * kBlock; ++row) {
    E* out = packed + row / kBlock * depth / kBlock * step + row % kBlock * kBlock;
    for (int64_t d = 0; d < depth; d += kBlock, out += step) {
      // The next row is too far for the hardware prefetcher; it may be past the end.
      const T* next = x + (row + 1) * stride + d;
      for (size_t i = 0; i < kBlock * sizeof(T); i += 64) {
        _mm_prefetch(reinterpret_cast<const char*>(next) + i, _MM_HINT_T0);
      }
      StoreRow(row < rows ? x + row * stride + d : kZeros, out);
    }
  }
}

// Packs [depth, columns], rows `stride` apart, as a right operand; zeros pad the depth to
// a multiple of 32. Not inlined: float32 products would take 4 % longer.
template <typename T, typename E>
AVX512 __attribute__((noinline)) static void PackRight(const T* x, int64_t stride,
                                                       int64_t depth, int64_t columns,
                                                       E* packed) {
  static const T kZeros[kBlock] = {};
  const int64_t step = kParts<T, E> * kStep;
  const int64_t steps = CeilDiv(depth, kBlock);
  for (int64_t d = 0; d < steps * kBlock; d += 2) {
    E* out = packed + d / kBlock * step + d % kBlock * 16;
    const T* row = x + d * stride;
    for (int64_t c = 0; c < columns; c += kBlock, out += steps * step) {
      StorePairs(d < depth ? row + c : kZeros,
                 d + 1 < depth ? row + stride + c : kZeros, out);
    }
  }
}

// Transposes 64 bytes of each of up to 16 rows, in units of 4 bytes.
template <typename T>
AVX512 inline void LoadTransposed(const T* x, int64_t stride, int64_t rows, __m512* out) {
  __m512 a[16], b[16];
#pragma GCC unroll 16
  for (int64_t i = 0; i < 16; ++i) {
    a[i] = i < rows ? _mm512_loadu_ps(reinterpret_cast<const float*>(x + i * stride))
                    : _mm512_setzero_ps();
  }
  // Interleaves 2, 4, 8 and then 16 rows; b and a alternate as the destination.
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 2) {
    b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
    b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; ++j) {
      const __m512d low = _mm512_castps_pd(b[i + j]);
      const __m512d high = _mm512_castps_pd(b[i + j + 2]);
      a[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
      a[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; ++j) {
      b[i + j] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0x88);
      b[i + j + 4] = _mm512_shuffle_f32x4(a[i + j], a[i + j + 4], 0xdd);
    }
  }
#pragma GCC unroll 8
  for (int j = 0; j < 8; ++j) {
    out[j] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0x88);
    out[j + 8] = _mm512_shuffle_f32x4(b[j], b[j + 8], 0xdd);
  }
}

// Packs the transpose of rows [columns, depth], `stride` apart, as a right operand; zeros
// pad the columns to a multiple of 32.
template <typename T, typename E>
AVX512 static void PackTransposed(const T* x, int64_t stride, int64_t columns,
                                  int64_t depth, E* packed) {
  const int64_t step = kParts<T, E> * kStep;
  constexpr int64_t kCount = 64 / sizeof(T);  // Elements of a row at a time.
  for (int64_t column = 0; column < CeilDiv(columns, kBlock) * kBlock; column += 16) {
    E* half = packed + column / kBlock * depth / kBlock * step + column % kBlock * 32;
    const int64_t count = std::clamp<int64_t>(columns - column, 0, 16);
    for (int64_t d = 0; d < depth; d += kCount) {
      __m512 lines[16];
      LoadTransposed(x + column * stride + d, stride, count, lines);
      E* out = half + d / kBlock * step + d % kBlock * 16;
      for (int64_t i = 0; i < 16; ++i) {
        if constexpr (kParts<T, E> == 1) {
          _mm512_store_ps(reinterpret_cast<float*>(out) + 16 * i, lines[i]);
        } else if (i % 2 == 0) {
          StorePairs(lines[i], lines[i + 1], out + 16 * i);
        }
      }
    }
  }
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_PACKING_H_
