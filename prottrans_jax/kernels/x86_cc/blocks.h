// How operands of products are laid out in memory and multiplied.
//
// Blocks are 32 x 32. Operands are packed beforehand: elements that are multiplied
// together are adjacent, and each part fits in the L2 cache:
//
//   left    [rows / 32][depth / 32][parts][32 rows][32 of depth]
//   right   [columns / 32][depth / 32][parts][2 x 16 columns][16 pairs of depth]
//           [16 columns][2]
//
// Vectors (AVX-512): sums of 8 rows times 32 columns stay in registers. A pair of the
// left operand is broadcast to all lanes and multiplied by 16 columns of the right
// operand. The left operand is read in place, except bytes and attention weights, which
// are packed. Float32 is multiplied directly, one number instead of a pair. Int8 kernels
// are multiplied by bytes at twice the rate of bfloat16, four at a time and 64 of depth
// per block; see `ByteScales`.
//
// Matrix unit (AMX): a tile is 16 rows of 64 bytes. Two tiles of the left operand times
// two of the right give four tiles of float32 sums. Four loads for four products is the
// minimum with eight tile registers. The unit multiplies bfloat16, and bytes twice as
// fast. Attention splits a float32 into a sum of three bfloat16 with 8 bits each; of the
// nine products the three smallest, below 2^-24 of the total, are omitted. Other float32
// products use 24-bit integers in three signed bytes; see `MultiplyDigits`. The sums of a
// block are post-processed row by row between the tile instructions of the next block,
// while the vector units are otherwise nearly idle.
//
// Each element is summed over the depth in a fixed order, independent of the other rows
// and of the number of threads: the vector of a protein does not depend on its batch.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_BLOCKS_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_BLOCKS_H_

#include <cstdint>
#include <type_traits>

#define AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma")))
#define AMX                                                                    \
  __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512vl," \
                        "avx512dq,avx512bf16,avx512vnni,fma")))

namespace prottrans_x86 {

enum class Unit { kTiles, kVectors };

using Bf16 = uint16_t;

constexpr int64_t kBlock = 32;
constexpr int64_t kStep = kBlock * kBlock;  // Elements in two tiles of an operand.

// Packed element type of a kernel of T and of its left operand; also of attention heads.
template <Unit kUnit, typename T>
using Element = std::conditional_t<kUnit == Unit::kVectors, T, Bf16>;
// Accumulator type for vectors, and the contiguous depth in a block.
template <typename E>
using Summed = std::conditional_t<std::is_same_v<E, int8_t>, int32_t, float>;
template <typename E>
constexpr int64_t kDeep = std::is_same_v<E, int8_t> ? 64 : kBlock;

// Whether the left operand of a kernel of T is read in place.
template <Unit kUnit, typename T>
constexpr bool kInPlace = kUnit == Unit::kVectors && !std::is_same_v<T, int8_t>;

// Number of E that sum to a T: a float32 has 24 bits, three times the 8 of a bfloat16.
template <typename T, typename E>
constexpr int kParts = std::is_same_v<T, float> && !std::is_same_v<E, float> ? 3 : 1;

// Whether products use integers of three base-256 digits. A tile holds one digit of 64
// positions of depth.
template <Unit kUnit, typename T>
constexpr bool kWhole = kUnit == Unit::kTiles && std::is_same_v<T, float>;
constexpr int64_t kDigits = 3, kTile = 1024, kDigitsDepth = 64;

// Rows whose sums with 32 columns fit in registers: 16 of the 32 vector registers.
constexpr int64_t kGroup = 8;
// Blocks of depth summed in one chain of vectors. Longer chains would lose accuracy.
constexpr int64_t kChain = 8;

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_BLOCKS_H_
