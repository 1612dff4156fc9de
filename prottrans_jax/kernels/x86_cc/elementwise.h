// Functions of 16 float32: exponential, reciprocal, activations.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_ELEMENTWISE_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_ELEMENTWISE_H_

#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <initializer_list>

#include "blocks.h"

namespace prottrans_x86 {

enum Activation : int32_t { kLinear, kRelu, kGeluExact, kGeluTanh, kSilu };

// exp(x); relative error below 2e-7, 0 below -87.
AVX512 inline __m512 Exp(__m512 x) {
  const __mmask16 tiny = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-87.0f), _CMP_LT_OQ);
  // Propagates NaN: min and max return the second operand if either is NaN.
  x = _mm512_min_ps(_mm512_set1_ps(88.0f), _mm512_max_ps(_mm512_set1_ps(-87.0f), x));
  const __m512 n = _mm512_roundscale_ps(
      _mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  // Taylor's series: |r| <= ln(2) / 2.
  __m512 sum = _mm512_set1_ps(1.0f / 5040.0f);
  for (float term : {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    sum = _mm512_fmadd_ps(sum, r, _mm512_set1_ps(term));
  }
  return _mm512_maskz_scalef_ps(static_cast<__mmask16>(~tiny), sum, n);
}

// 1 / x, accurate to one unit in the last place; faster than a division.
AVX512 inline __m512 Reciprocal(__m512 x) {
  const __m512 near = _mm512_rcp14_ps(x);
  const __m512 rest = _mm512_fnmadd_ps(x, near, _mm512_set1_ps(1.0f));
  return _mm512_fmadd_ps(near, rest, near);
}

// Normal probability between 0 and x >= 0, by Taylor polynomials around 32 points;
// absolute error below 1e-7.
class Normal {
 public:
  Normal() {
    for (int i = 0; i < 32; ++i) {
      const double x = i / static_cast<double>(kScale);
      const double density = std::exp(-x * x / 2) / std::sqrt(2 * M_PI);
      const double terms[kTerms] = {std::erf(x / std::sqrt(2.0)) / 2, density,
                                    -x * density / 2, (x * x - 1) * density / 6,
                                    (3 - x * x) * x * density / 24};
      for (int k = 0; k < kTerms; ++k) {
        terms_[k][i] = static_cast<float>(terms[k] / std::pow(kScale, k));
      }
    }
  }

  AVX512 inline __m512 HalfAbove(__m512 x) const {
    // This operand order propagates NaN.
    x = _mm512_min_ps(_mm512_set1_ps(31.0f), _mm512_mul_ps(x, _mm512_set1_ps(kScale)));
    const __m512i place = _mm512_cvtps_epi32(x);
    const __m512 off = _mm512_sub_ps(x, _mm512_cvtepi32_ps(place));
    __m512 sum = Term(kTerms - 1, place);
#pragma GCC unroll 4
    for (int k = kTerms - 2; k >= 0; --k) sum = _mm512_fmadd_ps(sum, off, Term(k, place));
    return sum;
  }

 private:
  static constexpr int kTerms = 5;
  static constexpr float kScale = 31 / 6.0f;  // Points per unit of x.

  AVX512 inline __m512 Term(int k, __m512i place) const {
    return _mm512_permutex2var_ps(_mm512_load_ps(terms_[k]), place,
                                  _mm512_load_ps(terms_[k] + 16));
  }

  alignas(64) float terms_[kTerms][32];
};

inline const Normal kNormal;

// Not inlined: float32 products would take 4 % longer.
AVX512 __attribute__((noinline)) static __m512 Activate(__m512 x, int32_t activation) {
  const __m512 one = _mm512_set1_ps(1.0f);
  switch (activation) {
    case kRelu:
      return _mm512_max_ps(_mm512_setzero_ps(), x);  // Propagates NaN.
    case kGeluExact: {
      const __m512 size = _mm512_abs_ps(x);
      return _mm512_fmadd_ps(size, kNormal.HalfAbove(size),
                             _mm512_mul_ps(x, _mm512_set1_ps(0.5f)));
    }
    case kGeluTanh: {
      // 0.5 (1 + tanh(u)) = 1 / (1 + exp(-2 u))
      const __m512 cube = _mm512_mul_ps(_mm512_mul_ps(x, x), x);
      const __m512 u = _mm512_mul_ps(
          _mm512_fmadd_ps(cube, _mm512_set1_ps(0.044715f), x),
          _mm512_set1_ps(-2.0f * 0.79788456f));
      return _mm512_mul_ps(x, Reciprocal(_mm512_add_ps(one, Exp(u))));
    }
    case kSilu: {
      const __m512 minus = _mm512_sub_ps(_mm512_setzero_ps(), x);
      return _mm512_mul_ps(x, Reciprocal(_mm512_add_ps(one, Exp(minus))));
    }
    default:
      return x;
  }
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_ELEMENTWISE_H_
