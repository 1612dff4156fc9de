// Products with kernels of float32, bfloat16 and int8; see `x86.product`.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_PRODUCT_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_PRODUCT_H_

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "blocks.h"
#include "threads.h"

namespace prottrans_x86 {

// The first `rows` of x [.., depth] times `kernel` [depth, columns].
struct ProductJob {
  const void* x;       // float32 or bfloat16.
  const void* kernel;  // Type of x, or int8 times `scale`.
  const float* scale;  // [columns], or null.
  const float* bias;   // [columns], or null.
  void* out;
  void* left;  // Packed part of the depth of x, if it is packed.
  // Partial sums [rows, columns] in blocks, if the depth is in parts; int32 for bytes.
  float* sums;
  int64_t rows, depth, columns;
  int32_t activation;
  bool wide;  // Whether the result is float32.
};

// Largest panel of the right operand: 512 KiB, or 384 KiB for float32 with tiles. Panels
// for vectors are deeper, except for float32. Vectors are slower, so they can afford to
// read the left operand more often, and deep panels store partial sums less often.
template <Unit kUnit, typename T>
constexpr int64_t kDepth =
    kUnit == Unit::kTiles ? 1024 : 4096 / sizeof(Element<kUnit, T>);

// Bytes of a packed row or column.
template <Unit kUnit, typename T>
constexpr int64_t BytesOf(int64_t depth) {
  if (kWhole<kUnit, T>) return CeilDiv(depth, kDigitsDepth) * kDigitsDepth * kDigits;
  constexpr int64_t kLine = kDeep<Element<kUnit, T>>;
  return CeilDiv(depth, kLine) * kLine * sizeof(Element<kUnit, T>);
}
// Packed bytes of a row of the left operand of a kernel of T.
template <Unit kUnit, typename T>
constexpr int64_t LeftBytesOf(int64_t depth) {
  return kInPlace<kUnit, T> ? 0 : BytesOf<kUnit, T>(depth);
}

// Product of x (type X) and a kernel of T, one part of the depth at a time. False if out
// of memory.
template <Unit kUnit, typename X, typename T>
bool Multiply(const Threads& threads, const ProductJob& job);

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_PRODUCT_H_
