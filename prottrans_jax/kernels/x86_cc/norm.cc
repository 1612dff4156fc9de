#include "norm.h"

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>

#include "blocks.h"
#include "conversion.h"
#include "scratch.h"

namespace prottrans_x86 {
namespace {

// Normalises a row of `size` numbers, plus `addend` if given. With a bias, subtracts the
// mean. Divides by the root mean square, multiplies by `scale`, adds the bias. `x` is
// scratch memory.
template <typename X, typename Out>
AVX512 void Normalise(const X* from, const X* addend, const float* scale,
                      const float* bias, int64_t size, float epsilon, float* x, Out* out) {
  for (int64_t i = 0; i < size; i += 16) {
    __m512 numbers = LoadWide(from + i);
    if (addend != nullptr) numbers = _mm512_add_ps(numbers, LoadWide(addend + i));
    _mm512_store_ps(x + i, numbers);
  }
  __m512 mean = _mm512_setzero_ps();
  if (bias != nullptr) {
    __m512 sum = mean;
    for (int64_t i = 0; i < size; i += 16) sum = _mm512_add_ps(sum, LoadWide(x + i));
    mean = _mm512_set1_ps(_mm512_reduce_add_ps(sum) / size);
  }
  __m512 squares = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 16) {
    const __m512 off = _mm512_sub_ps(LoadWide(x + i), mean);
    squares = _mm512_fmadd_ps(off, off, squares);
  }
  const float square = _mm512_reduce_add_ps(squares) / size + epsilon;
  const __m512 inverse = _mm512_set1_ps(1.0f / std::sqrt(square));
  for (int64_t i = 0; i < size; i += kBlock) {
    __m512 half[2];
    for (int j = 0; j < 2; ++j) {
      const int64_t at = i + 16 * j;
      const __m512 off = _mm512_sub_ps(LoadWide(x + at), mean);
      const __m512 plus =
          bias == nullptr ? _mm512_setzero_ps() : _mm512_loadu_ps(bias + at);
      half[j] = _mm512_fmadd_ps(_mm512_mul_ps(off, inverse),
                                _mm512_loadu_ps(scale + at), plus);
    }
    Store(half[0], half[1], out + i);
  }
}

}  // namespace

template <typename X, typename Out>
bool NormaliseRows(const Threads& threads, const NormJob<X, Out>& job) {
  return InParallel(threads, CeilDiv(job.rows, kBlock), [job](int64_t i) {
    float* wide = Scratch<6, float>(job.size);
    if (wide == nullptr) return false;
    for (int64_t r = i * kBlock; r < std::min(job.rows, (i + 1) * kBlock); ++r) {
      const int64_t start = r * job.size;
      Normalise(job.x + start, job.addend == nullptr ? nullptr : job.addend + start,
                job.scale, job.bias, job.size, job.epsilon, wide, job.out + start);
    }
    return true;
  });
}

template bool NormaliseRows<float, float>(const Threads&, const NormJob<float, float>&);
template bool NormaliseRows<float, Bf16>(const Threads&, const NormJob<float, Bf16>&);
template bool NormaliseRows<Bf16, float>(const Threads&, const NormJob<Bf16, float>&);
template bool NormaliseRows<Bf16, Bf16>(const Threads&, const NormJob<Bf16, Bf16>&);

}  // namespace prottrans_x86
