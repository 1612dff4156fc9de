// Products of the matrix unit (AMX).

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_TILES_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_TILES_H_

#include <immintrin.h>

#include <cstdint>
#include <tuple>
#include <type_traits>

#include "blocks.h"

namespace prottrans_x86 {

// Compiler barrier: GCC's headers do not declare that tile instructions read memory.
inline void AllWritten() { asm volatile("" ::: "memory"); }

// Configures the tile registers of this thread; the destructor releases them.
class Tiles {
 public:
  AMX Tiles() {
    struct {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t bytes[16] = {};
      uint8_t rows[16] = {};
    } config;
    for (int i = 0; i < 8; ++i) config.bytes[i] = 64, config.rows[i] = 16;
    AllWritten();
    _tile_loadconfig(&config);
  }
  AMX ~Tiles() { _tile_release(); }
};

template <Unit kUnit>
using InUse = std::conditional_t<kUnit == Unit::kTiles, Tiles, std::tuple<>>;

// Pause between tile instructions. When the sibling hyperthread is busy too (often
// another tenant's), adjacent tile instructions take up to 1.8 times as long.
inline void Gap() { asm volatile(".rept 8\n\tnop\n\t.endr"); }

AMX inline void LoadLeft(const Bf16* left) {
  _tile_loadd(4, left, 64);
  Gap();
  _tile_loadd(5, left + kStep / 2, 64);
  Gap();
}

AMX inline void LoadRight(const Bf16* right) {
  _tile_loadd(6, right, 64);
  Gap();
  _tile_loadd(7, right + kStep / 2, 64);
  Gap();
}

// Also prefetches 256 bytes into the L2 cache: over a panel of columns, the next 32 rows
// of the left operand.
template <bool kFetch>
AMX inline void MultiplyTiles(const char*& ahead) {
  _tile_dpbf16ps(0, 4, 6);
  Gap();
  _tile_dpbf16ps(1, 4, 7);
  Gap();
  _tile_dpbf16ps(2, 5, 6);
  Gap();
  _tile_dpbf16ps(3, 5, 7);
  Gap();
  if constexpr (kFetch) {
    for (int i = 0; i < 4; ++i) _mm_prefetch(ahead + 64 * i, _MM_HINT_T1);
    ahead += 256;
  }
}

struct Nothing {
  void operator()() const {}
};

// Matrix unit: sums [32, 32], rows `stride` apart, = left [32, depth] times right, both
// in `kCount` parts. Prefetches from `ahead`, and calls `other` at every step. Returns
// the address after the prefetched bytes.
template <int kCount, bool kFetch, typename Other = Nothing>
AMX inline const char* MultiplyInTiles(const Bf16* left, const Bf16* right,
                                       int64_t steps, float* sums, int64_t stride,
                                       const char* ahead, Other&& other = {}) {
  AllWritten();
  const int64_t bytes = stride * sizeof(float);
  float* const below = sums + 16 * stride;
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    if constexpr (kCount == 1) {
      LoadLeft(left);
      LoadRight(right);
      MultiplyTiles<kFetch>(ahead);
    } else {
      // In this order only one operand changes each time.
      LoadLeft(left + 2 * kStep);
      LoadRight(right);
      MultiplyTiles<kFetch>(ahead);
      LoadLeft(left);
      MultiplyTiles<kFetch>(ahead);
      LoadRight(right + 2 * kStep);
      MultiplyTiles<kFetch>(ahead);
      LoadRight(right + kStep);
      MultiplyTiles<kFetch>(ahead);
      LoadLeft(left + kStep);
      MultiplyTiles<kFetch>(ahead);
      LoadRight(right);
      MultiplyTiles<kFetch>(ahead);
    }
    other();
    left += kCount * kStep;
    right += kCount * kStep;
  }
  _tile_stored(0, sums, bytes);
  _tile_stored(1, sums + 16, bytes);
  _tile_stored(2, below, bytes);
  _tile_stored(3, below + 16, bytes);
  AllWritten();
  return ahead;
}

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_TILES_H_
