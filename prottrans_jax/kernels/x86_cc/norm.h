// Layer norm and root-mean-square norm; see `x86.norm`.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_NORM_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_NORM_H_

#include <cstdint>

#include "blocks.h"
#include "threads.h"

namespace prottrans_x86 {

// Rows of x plus `addend`, if given; with a bias, their mean is subtracted.
template <typename X, typename Out>
struct NormJob {
  const X* x;          // [rows, size]
  const X* addend;     // [rows, size], or null.
  const float* scale;  // [size]
  const float* bias;   // [size], or null.
  Out* out;            // [rows, size]
  int64_t rows, size;
  float epsilon;
};

// False if out of memory.
template <typename X, typename Out>
bool NormaliseRows(const Threads& threads, const NormJob<X, Out>& job);

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_NORM_H_
