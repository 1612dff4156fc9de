// Products, attention and norms on x86-64 CPUs that multiply bfloat16, as handlers of
// XLA's foreign function interface. `x86.py` says what they compute.
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

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <algorithm>
#include <atomic>
#include <cmath>
#include <condition_variable>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>
#include <type_traits>
#include <vector>

#if defined(__x86_64__) && defined(__linux__)
#include <cpuid.h>
#include <immintrin.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "xla/ffi/api/ffi.h"

#define AVX512 \
  __attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx512vnni,fma")))
#define AMX                                                                    \
  __attribute__((target("amx-tile,amx-bf16,amx-int8,avx512f,avx512bw,avx512vl," \
                        "avx512dq,avx512bf16,avx512vnni,fma")))

namespace {

namespace ffi = xla::ffi;
using Bf16 = uint16_t;
using Bytes = ffi::Buffer<ffi::U8, 2>;
using Sums = ffi::Buffer<ffi::F32, 2>;
using Vector = ffi::Buffer<ffi::F32, 1>;
using ScoreBias = ffi::Buffer<ffi::F32, 4>;
using Segments = ffi::Buffer<ffi::S32, 2>;
using Count = ffi::Buffer<ffi::S32, 0>;

constexpr int64_t kBlock = 32;
constexpr int64_t kStep = kBlock * kBlock;  // Elements in two tiles of an operand.

enum class Unit { kTiles, kVectors };

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

// Largest panel of the right operand: 512 KiB, or 384 KiB for float32 with tiles. Panels
// for vectors are deeper, except for float32. Vectors are slower, so they can afford to
// read the left operand more often, and deep panels store partial sums less often.
template <Unit kUnit, typename T>
constexpr int64_t kDepth =
    kUnit == Unit::kTiles ? 1024 : 4096 / sizeof(Element<kUnit, T>);
template <Unit kUnit, typename T>
int64_t ColumnsOf(int64_t depth) {
  if (kUnit == Unit::kTiles) return std::is_same_v<T, float> ? 128 : 256;
  constexpr int64_t kPanelBytes = 512 << 10;
  const int64_t fit = kPanelBytes / (depth * sizeof(Element<kUnit, T>));
  return std::clamp<int64_t>(fit / kBlock * kBlock, kBlock, 256);
}

// Below every score, as attention.MASKED / 2: weights of a query without keys are 0.
constexpr float kNoPeak = -5e29f;

enum Activation : int32_t { kLinear, kRelu, kGeluExact, kGeluTanh, kSilu };

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

constexpr int64_t kLargePage = 2 << 20;

// Moves memory to pages of 2 MiB where Linux (6.1 and later) supports it. An operand has
// more small pages than the TLB of a core has entries; the misses cost a tenth to a fifth
// of the time. Overwrites parts of the contents.
void UseLargePages(void* data, int64_t size) {
  constexpr int kCollapse = 25;  // MADV_COLLAPSE
  constexpr int kPatience = 9;   // Gives up after this many failures (fragmented memory).
  static std::atomic<int> failures{0};
  if (failures >= kPatience) return;
  const int64_t start = reinterpret_cast<int64_t>(data);
  const int64_t first = CeilDiv(start, kLargePage) * kLargePage;
  const int64_t end = (start + size) / kLargePage * kLargePage;
  if (first >= end) return;
  // Pages that were never written cannot be collapsed.
  for (int64_t page = first; page < end; page += kLargePage) {
    *reinterpret_cast<volatile char*>(page) = 0;
  }
  if (madvise(reinterpret_cast<void*>(first), end - first, kCollapse) != 0) ++failures;
}

// Thread-local memory, reused by the next call unless that needs far less.
template <int kSlot, typename T>
T* Scratch(int64_t count) {
  struct Buffer {
    void* data = nullptr;
    int64_t size = 0;
    ~Buffer() { std::free(data); }
  };
  static thread_local Buffer buffer;
  const int64_t bytes = count * sizeof(T);
  const int64_t page = bytes < kLargePage / 4 ? 4096 : kLargePage;
  const int64_t size = CeilDiv(bytes, page) * page;
  if (size > buffer.size || (buffer.size > 2 * kLargePage && size < buffer.size / 8)) {
    std::free(buffer.data);
    buffer.data = std::aligned_alloc(page, size);
    if (buffer.data != nullptr) UseLargePages(buffer.data, size);
    buffer.size = buffer.data == nullptr ? 0 : size;
  }
  return static_cast<T*>(buffer.data);
}

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

// sum + x * y, with the value at x broadcast to all lanes.
AVX512 inline __m512 MultiplyAdd(const float* x, __m512 y, __m512 sum) {
  return _mm512_fmadd_ps(_mm512_set1_ps(*x), y, sum);
}
AVX512 inline __m512i InAllLanes(const void* x) {
  int32_t bits;
  std::memcpy(&bits, x, sizeof(bits));
  return _mm512_set1_epi32(bits);
}
AVX512 inline __m512 MultiplyAdd(const Bf16* x, __m512 y, __m512 sum) {
  return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(InAllLanes(x)),
                          reinterpret_cast<__m512bh>(y));
}
// x holds unsigned bytes; the sums are int32.
AVX512 inline __m512 MultiplyAdd(const int8_t* x, __m512 y, __m512 sum) {
  return reinterpret_cast<__m512>(
      _mm512_dpbusd_epi32(reinterpret_cast<__m512i>(sum), InAllLanes(x),
                          reinterpret_cast<__m512i>(y)));
}

AVX512 inline __m512 Add(__m512 a, __m512 b, float) { return _mm512_add_ps(a, b); }
AVX512 inline __m512 Add(__m512 a, __m512 b, int32_t) {
  return reinterpret_cast<__m512>(
      _mm512_add_epi32(reinterpret_cast<__m512i>(a), reinterpret_cast<__m512i>(b)));
}

// Rows of a left operand for vectors. Distances, in elements: `stride` to the next row,
// `step` to the next kDeep of depth, `below` to the row 32 rows further down.
template <typename E>
struct Rows {
  const E* first;
  int64_t stride, step, below;
};

// Which of 8 rows, 32 below those being multiplied, are prefetched. They may be past the
// end.
struct Fetched {
  int64_t first = 0, end = 0;
};

// Vectors: sums [rows rounded up to a multiple of 8, 32], rows `stride` apart, = left
// [rows, depth] times right, with depth `steps` times kDeep. The last row is repeated to
// fill the group of 8; those sums are not used.
template <typename E, typename Sum = Summed<E>>
AVX512 inline void MultiplyInVectors(const Rows<E>& left, const E* right, int64_t steps,
                                     int64_t rows, Sum* sums, int64_t stride,
                                     Fetched fetched = {}) {
  constexpr int64_t kPair = 4 / sizeof(E), kLine = kDeep<E>, kAll = kBlock * kLine;
  for (int64_t row = 0; row < rows; row += kGroup) {
    int64_t at[kGroup];
#pragma GCC unroll 8
    for (int64_t i = 0; i < kGroup; ++i) {
      at[i] = std::min(row + i, rows - 1) * left.stride;
    }
    const E *x = left.first, *y = right;
    for (int64_t start = 0; start < steps; start += kChain) {
      __m512 sum[kGroup][2];
#pragma GCC unroll 8
      for (auto& line : sum) line[0] = line[1] = _mm512_setzero_ps();
      const int64_t end = std::min(steps, start + kChain);
      for (int64_t step = start; step < end; ++step, x += left.step, y += kAll) {
        for (int64_t i = fetched.first; i < fetched.end; ++i) {
          const E* ahead = x + left.below + (row + i) * left.stride;
          for (int64_t d = 0; d < kLine; d += 64 / sizeof(E)) {
            _mm_prefetch(reinterpret_cast<const char*>(ahead + d), _MM_HINT_T1);
          }
        }
#pragma GCC unroll 32
        for (int64_t d = 0; d < kLine; d += kPair) {
          const __m512 low = _mm512_load_ps(reinterpret_cast<const float*>(y + d * 16));
          const __m512 high =
              _mm512_load_ps(reinterpret_cast<const float*>(y + kAll / 2 + d * 16));
#pragma GCC unroll 8
          for (int64_t i = 0; i < kGroup; ++i) {
            sum[i][0] = MultiplyAdd(x + at[i] + d, low, sum[i][0]);
            sum[i][1] = MultiplyAdd(x + at[i] + d, high, sum[i][1]);
          }
        }
      }
      Sum* line = sums + row * stride;
#pragma GCC unroll 8
      for (int64_t i = 0; i < kGroup; ++i, line += stride) {
#pragma GCC unroll 2
        for (int64_t j = 0; j < 2; ++j) {
          float* const out = reinterpret_cast<float*>(line + 16 * j);
          const __m512 before = start == 0 ? _mm512_setzero_ps() : _mm512_load_ps(out);
          _mm512_store_ps(out, Add(before, sum[i][j], Sum()));
        }
      }
    }
  }
}

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

// Packs rows [rows, depth], `stride` apart, as a left operand; zero rows pad to 32.
template <typename T, typename E>
AVX512 void PackLeft(const T* x, int64_t stride, int64_t rows, int64_t depth, E* packed) {
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
// a multiple of 32.
template <typename T, typename E>
AVX512 void PackRight(const T* x, int64_t stride, int64_t depth, int64_t columns,
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
AVX512 void PackTransposed(const T* x, int64_t stride, int64_t columns, int64_t depth,
                           E* packed) {
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
AVX512 void ScaleColumns(const float* kernel, int64_t stride, int64_t depth, int64_t first,
                      int64_t last, KernelScales* scales) {
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
AVX512 void BalanceRow(const float* row, int64_t columns, int64_t d, KernelScales* scales) {
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
AVX512 void PackLeftDigits(const float* x, int64_t stride, int64_t rows, int64_t depth,
                        const float* balance, float* back, int8_t* packed) {
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
AVX512 void PackRightDigits(const float* x, int64_t stride, int64_t depth, int64_t columns,
                         const float* balance, const float* to, int8_t* packed) {
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

// With vectors, int8 kernels are multiplied by bytes: each row of x is rounded to 255
// levels between its minimum and maximum, as in `quantized.product`.
struct ByteScales {
  ByteScales(int64_t rows, int64_t columns)
      : step(rows), middle(rows), column_sums(columns) {}

  std::vector<float> step, middle;  // [rows]: x is about step (byte - 128) + middle.
  std::vector<int32_t> column_sums;  // [columns]: sums of the kernel packed so far.
};
constexpr int32_t kByteMiddle = 128;

AVX512 inline __m512 LoadWide(const float* x) { return _mm512_loadu_ps(x); }
AVX512 inline __m512 LoadWide(const Bf16* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return reinterpret_cast<__m512>(
      _mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

// Step and middle of a row [depth]; the middle is NaN if the row contains a NaN.
AVX512 void ScaleRow(const Bf16* x, int64_t depth, float* step, float* middle) {
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
AVX512 void PackLeftBytes(const Bf16* x, int64_t stride, int64_t rows, int64_t depth,
                          const float* step, const float* middle, int8_t* packed) {
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
AVX512 void PackRightBytes(const int8_t* x, int64_t stride, int64_t depth,
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
const Normal kNormal;

AVX512 inline __m512 Activate(__m512 x, int32_t activation) {
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

// The first `rows` of x [.., depth] times `kernel` [depth, columns].
struct ProductJob {
  const void* x;       // float32 or bfloat16.
  const void* kernel;  // Type of x, or int8 times `scale`.
  const float* scale;  // [columns], or null.
  const float* bias;   // [columns], or null.
  void* out;
  void* left;   // Packed part of the depth of x, if it is packed.
  // Partial sums [rows, columns] in blocks, if the depth is in parts; int32 for bytes.
  float* sums;
  int64_t rows, depth, columns;
  int32_t activation;
  bool wide;  // Whether the result is float32.
};

// Part of a product's depth, from `start` on.
struct DepthPart {
  int64_t start, depth;
  bool ends;  // Whether it is the last part.
  // For float32 products.
  const KernelScales* scales;
  const float* row_back;  // [rows]
  ByteScales* bytes;      // For products of bytes.
};

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

// Post-processes the sums of one block after the other, a few rows at a time.
template <Unit kUnit, typename T>
class Outcome {
  static constexpr bool kDigital = kWhole<kUnit, T>;
  static constexpr bool kBytes = std::is_same_v<Element<kUnit, T>, int8_t>;

 public:
  static constexpr int64_t kSize = kDigital ? 16 : kBlock;  // Rows, columns of a block.
  using Sum = std::conditional_t<kDigital, int32_t, Summed<Element<kUnit, T>>>;

  Outcome(const ProductJob& job, const DepthPart& part) : job_(job), part_(part) {}

  // Destination of the next block's sums.
  Sum* Next() { return sums_[1 - now_]; }

  // Starts on the sums in `Next`. All rows of the block before must have been taken.
  void Start(int64_t row, int64_t column) {
    now_ = 1 - now_;
    sum_ = sums_[now_];
    row_ = row;
    end_ = std::min(row + kSize, job_.rows);
    column_ = column;
  }

  AVX512 inline void Take(int64_t count) {
    for (; count > 0 && row_ < end_; --count, ++row_, sum_ += kSize) TakeRow();
  }

 private:
  // Sums of 16 columns; int32 for bytes.
  AVX512 inline __m512 Load(int64_t column) const {
    if constexpr (kDigital) {
      const __m512 place = _mm512_set1_ps(1.0f / 256.0f);
      __m512 x = _mm512_setzero_ps();
      for (int i = 3; i >= 0; --i) {
        const __m512i sum = _mm512_load_si512(sum_ + i * kSize * kSize);
        x = _mm512_fmadd_ps(x, place, _mm512_cvtepi32_ps(sum));
      }
      x = _mm512_mul_ps(x, _mm512_set1_ps(part_.row_back[row_]));
      return _mm512_mul_ps(x, _mm512_loadu_ps(&part_.scales->back[column]));
    } else {
      return _mm512_load_ps(reinterpret_cast<const float*>(sum_ + column - column_));
    }
  }

  // Values of integer sums, without the kernel's scale.
  AVX512 inline __m512 Unscaled(__m512 x, int64_t column) const {
    const __m512i columns = _mm512_loadu_si512(&part_.bytes->column_sums[column]);
    const __m512i more = _mm512_mullo_epi32(columns, _mm512_set1_epi32(kByteMiddle));
    const __m512 sum =
        _mm512_cvtepi32_ps(_mm512_sub_epi32(reinterpret_cast<__m512i>(x), more));
    const __m512 rest = _mm512_mul_ps(_mm512_cvtepi32_ps(columns),
                                      _mm512_set1_ps(part_.bytes->middle[row_]));
    return _mm512_fmadd_ps(sum, _mm512_set1_ps(part_.bytes->step[row_]), rest);
  }

  AVX512 inline __m512 End(__m512 x, int64_t column) const {
    if (job_.scale != nullptr) {
      x = _mm512_mul_ps(x, _mm512_loadu_ps(job_.scale + column));
    }
    if (job_.bias != nullptr) x = _mm512_add_ps(x, _mm512_loadu_ps(job_.bias + column));
    return Activate(x, job_.activation);
  }

  using Kept = Summed<Element<kUnit, T>>;

  AVX512 inline void TakeRow() {
    constexpr int64_t kCount = kSize / 16;
    const int64_t block = row_ / kSize * kSize;
    float* kept = job_.sums + block * job_.columns + column_ * kSize +
                  (row_ - block) * kSize;
    __m512 x[kCount];
    for (int64_t i = 0; i < kCount; ++i) {
      x[i] = Load(column_ + 16 * i);
      if (part_.start > 0) x[i] = Add(_mm512_load_ps(kept + 16 * i), x[i], Kept());
      if (!part_.ends) {
        _mm512_store_ps(kept + 16 * i, x[i]);
      } else {
        if constexpr (kBytes) x[i] = Unscaled(x[i], column_ + 16 * i);
        x[i] = End(x[i], column_ + 16 * i);
      }
    }
    if (part_.ends) Write(x);
  }

  // Streaming stores bypass the caches: the result is larger than they are, and its
  // reader uses another order.
  AVX512 inline void Write(const __m512* x) const {
    const int64_t place = row_ * job_.columns + column_;
    if (job_.wide) {
      float* out = static_cast<float*>(job_.out) + place;
      for (int64_t i = 0; i < kSize / 16; ++i) _mm512_stream_ps(out + 16 * i, x[i]);
    } else {
      Bf16* out = static_cast<Bf16*>(job_.out) + place;
      if constexpr (kDigital) {
        _mm256_store_si256(reinterpret_cast<__m256i*>(out),
                           reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x[0])));
      } else {
        _mm512_stream_si512(reinterpret_cast<__m512i*>(out),
                            reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(x[1], x[0])));
      }
    }
  }

  alignas(64) Sum sums_[2][kDigital ? 4 * kSize * kSize : kStep];
  const ProductJob& job_;
  const DepthPart& part_;
  int now_ = 0;
  const Sum* sum_ = nullptr;
  int64_t row_ = 0, end_ = 0, column_ = 0;
};

// Computes columns `first` to `first + columns` (excluded). False if out of memory.
template <Unit kUnit, typename T>
AMX bool ComputeColumns(const ProductJob& job, const DepthPart& part, int64_t first,
                        int64_t columns) {
  using E = Element<kUnit, T>;
  using End = Outcome<kUnit, T>;
  constexpr int64_t kSize = End::kSize;
  const int64_t bytes = BytesOf<kUnit, T>(part.depth);
  const int64_t left_bytes = LeftBytesOf<kUnit, T>(part.depth);
  int8_t* right = Scratch<5, int8_t>(columns * bytes);
  if (right == nullptr) return false;
  const T* kernel = static_cast<const T*>(job.kernel) + part.start * job.columns + first;
  int64_t steps = CeilDiv(part.depth, kDeep<E>);
  if constexpr (std::is_same_v<E, int8_t>) {
    PackRightBytes(kernel, job.columns, part.depth, columns, right,
                   &part.bytes->column_sums[first]);
  } else if constexpr (kWhole<kUnit, T>) {
    steps = CeilDiv(part.depth, kDigitsDepth);
    PackRightDigits(kernel, job.columns, part.depth, columns,
                    part.scales->kernel.data(), &part.scales->to[first], right);
  } else {
    PackRight(kernel, job.columns, part.depth, columns, reinterpret_cast<E*>(right));
  }
  [[maybe_unused]] InUse<kUnit> unit;
  End end(job, part);
  const int64_t share = CeilDiv(kSize, steps);
  const auto take = [&]() AMX { end.Take(share); };
  for (int64_t r = 0; r < job.rows; r += kSize) {
    const int8_t* left = static_cast<const int8_t*>(job.left) + r * left_bytes;
    [[maybe_unused]] Rows<E> rows;
    if constexpr (kInPlace<kUnit, T>) {
      const E* x = static_cast<const E*>(job.x) + r * job.depth + part.start;
      rows = {x, job.depth, kBlock, kBlock * job.depth};
    } else if constexpr (kUnit == Unit::kVectors) {
      constexpr int64_t kLine = kDeep<E>;
      rows = {reinterpret_cast<const E*>(left), kLine, kBlock * kLine,
              steps * kBlock * kLine};
    }
    [[maybe_unused]] const char* ahead =
        reinterpret_cast<const char*>(left + kSize * left_bytes);
    for (int64_t c = 0; c < columns; c += kSize) {
      const int8_t* these = right + c * bytes;
      if constexpr (kWhole<kUnit, T>) {
        ahead = MultiplyDigits(left, these, steps, end.Next(), ahead, take);
      } else if constexpr (kUnit == Unit::kTiles) {
        ahead = MultiplyInTiles<1, true>(reinterpret_cast<const E*>(left),
                                         reinterpret_cast<const E*>(these), steps,
                                         end.Next(), kBlock, ahead, take);
      } else {
        // Prefetches are spread evenly over the columns.
        const Fetched fetched = {c * kGroup / columns, (c + kBlock) * kGroup / columns};
        MultiplyInVectors(rows, reinterpret_cast<const E*>(these), steps,
                          std::min(kBlock, job.rows - r), end.Next(), kBlock, fetched);
      }
      end.Start(r, first + c);
      if constexpr (kUnit == Unit::kVectors) end.Take(kSize);
    }
  }
  end.Take(kSize);
  _mm_sfence();
  return true;
}

// Contiguous queries of a row, and the contiguous keys that they attend to.
struct Segment {
  int64_t row;
  int64_t q_start, q_count, kv_start, kv_count;
};

// Attention of rows [batch, length, heads, size]; see `x86.attention`.
template <typename T>
struct AttentionJob {
  const T *query, *key, *value;
  // [batch or 1, heads, q_length, kv_length], or by distance [1, heads, 1, q_length +
  // kv_length - 1], or null.
  const float* bias;
  T* out;
  int64_t q_length, kv_length, heads, size;
  bool bias_of_rows;  // Whether each row has its own.
  bool bias_of_distances;

  int64_t stride() const { return heads * size; }
  // Bias of query `q` of a segment, for the segment's keys.
  const float* BiasOf(const Segment& segment, int64_t head, int64_t q) const {
    if (bias == nullptr) return nullptr;
    q += segment.q_start;
    if (bias_of_distances) {  // Index 0 is the last query's distance to the first key.
      const int64_t first = q_length - 1 - q + segment.kv_start;
      return bias + head * (q_length + kv_length - 1) + first;
    }
    const int64_t first = (bias_of_rows ? segment.row * heads : 0) + head;
    return bias + (first * q_length + q) * kv_length + segment.kv_start;
  }
};

// Ranges of the nonzero numbers in a row, sorted by number: (number, start, count). False
// if the positions of a number are not contiguous.
using Places = std::vector<std::tuple<int32_t, int64_t, int64_t>>;
bool FindPlaces(const int32_t* row, int64_t length, Places* places) {
  places->clear();
  for (int64_t start = 0, end; start < length; start = end) {
    for (end = start + 1; end < length && row[end] == row[start];) ++end;
    if (row[start] != 0) places->emplace_back(row[start], start, end - start);
  }
  std::sort(places->begin(), places->end());
  const auto same = [](const auto& a, const auto& b) {
    return std::get<0>(a) == std::get<0>(b);
  };
  return std::adjacent_find(places->begin(), places->end(), same) == places->end();
}

// All segments of queries that have keys. False if a segment is not contiguous.
bool FindSegments(const Segments& queries, const Segments& keys,
                  std::vector<Segment>* segments) {
  const int64_t q_length = queries.dimensions()[1], kv_length = keys.dimensions()[1];
  Places of_queries, of_keys;
  for (int64_t row = 0; row < queries.dimensions()[0]; ++row) {
    const int32_t* q_row = queries.typed_data() + row * q_length;
    const int32_t* kv_row = keys.typed_data() + row * kv_length;
    if (!FindPlaces(q_row, q_length, &of_queries) ||
        !FindPlaces(kv_row, kv_length, &of_keys)) {
      return false;
    }
    auto key = of_keys.begin();
    for (const auto& [number, q_start, q_count] : of_queries) {
      while (key != of_keys.end() && std::get<0>(*key) < number) ++key;
      if (key == of_keys.end() || std::get<0>(*key) != number) continue;
      const auto [_, kv_start, kv_count] = *key;
      segments->push_back({row, q_start, q_count, kv_start, kv_count});
    }
  }
  return true;
}

AVX512 inline void Store(__m512 low, __m512 high, Bf16* out) {
  _mm512_storeu_si512(out, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low)));
}
AVX512 inline void Store(__m512 low, __m512 high, float* out) {
  _mm512_storeu_ps(out, low);
  _mm512_storeu_ps(out + 16, high);
}

// Stores the softmax numerators of a query's scores as a row of a left operand with
// `kCount` parts. Returns 1 over their sum, or 1 if the sum is 0. Scores fill whole
// blocks; the first `count` belong to keys.
template <int kCount, typename E>
AVX512 float Weigh(float* scores, const float* bias, int64_t count, E* weights) {
  __m512 peak = _mm512_set1_ps(kNoPeak);
  const int64_t keys = CeilDiv(count, kBlock) * kBlock;
  for (int64_t k = 0; k < keys; k += 16) {
    const int64_t left = std::clamp<int64_t>(count - k, 0, 16);
    const __mmask16 real = static_cast<__mmask16>((1u << left) - 1);
    __m512 x = _mm512_load_ps(scores + k);
    if (bias != nullptr) x = _mm512_add_ps(x, _mm512_maskz_loadu_ps(real, bias + k));
    x = _mm512_mask_blend_ps(real, _mm512_set1_ps(4 * kNoPeak), x);
    _mm512_store_ps(scores + k, x);
    peak = _mm512_max_ps(peak, x);
  }
  const __m512 top = _mm512_set1_ps(_mm512_reduce_max_ps(peak));
  __m512 total = _mm512_setzero_ps();
  for (int64_t k = 0; k < keys; k += kBlock, weights += kCount * kStep) {
    const __m512 first = Exp(_mm512_sub_ps(_mm512_load_ps(scores + k), top));
    const __m512 second = Exp(_mm512_sub_ps(_mm512_load_ps(scores + k + 16), top));
    total = _mm512_add_ps(_mm512_add_ps(total, first), second);
    if constexpr (kCount == 1) {
      Store(first, second, weights);
    } else {
      StoreParts(first, second, weights);
    }
  }
  const float sum = _mm512_reduce_add_ps(total);
  return sum == 0.0f ? 1.0f : 1.0f / sum;
}

// Computes one head of one segment. False if out of memory.
template <Unit kUnit, typename T>
AMX bool ComputeHead(const AttentionJob<T>& job, const Segment& segment, int64_t head) {
  using E = Element<kUnit, T>;
  constexpr int kCount = kParts<T, E>;
  constexpr bool kInTiles = kUnit == Unit::kTiles;
  const int64_t stride = job.stride();
  const int64_t keys = CeilDiv(segment.kv_count, kBlock) * kBlock;
  E* key = Scratch<0, E>(keys * job.size * kCount);
  E* value = Scratch<1, E>(keys * job.size * kCount);
  float* scores = Scratch<2, float>(kBlock * keys);
  E* query = nullptr;  // Vectors read the query in place.
  if constexpr (kInTiles) {
    query = Scratch<3, E>(kBlock * job.size * kCount);
    if (query == nullptr) return false;
  }
  E* weights = Scratch<4, E>(kBlock * keys * kCount);
  if (!key || !value || !scores || !weights) return false;
  const int64_t kv_first = segment.row * job.kv_length + segment.kv_start;
  const int64_t kv_start = kv_first * stride + head * job.size;
  PackTransposed(job.key + kv_start, stride, segment.kv_count, job.size, key);
  PackRight(job.value + kv_start, stride, segment.kv_count, job.size, value);
  [[maybe_unused]] InUse<kUnit> unit;
  for (int64_t q = 0; q < segment.q_count; q += kBlock) {
    const int64_t count = std::min(kBlock, segment.q_count - q);
    const int64_t q_first = segment.row * job.q_length + segment.q_start + q;
    const int64_t start = q_first * stride + head * job.size;
    if constexpr (kInTiles) PackLeft(job.query + start, stride, count, job.size, query);
    for (int64_t k = 0; k < keys; k += kBlock) {
      const E* these = key + k * job.size * kCount;
      const int64_t steps = job.size / kBlock;
      if constexpr (kInTiles) {
        MultiplyInTiles<kCount, false>(query, these, steps, scores + k, keys, nullptr);
      } else {
        const Rows<E> rows = {job.query + start, stride, kBlock, 0};
        MultiplyInVectors(rows, these, steps, count, scores + k, keys);
      }
    }
    float scales[kBlock];
    for (int64_t r = 0; r < count; ++r) {
      scales[r] = Weigh<kCount>(scores + r * keys, job.BiasOf(segment, head, q + r),
                                segment.kv_count, weights + r * kBlock);
    }
    for (int64_t d = 0; d < job.size; d += kBlock) {
      alignas(64) float sums[kStep];
      const E* these = value + d * keys * kCount;
      const int64_t steps = keys / kBlock;
      if constexpr (kInTiles) {
        MultiplyInTiles<kCount, false>(weights, these, steps, sums, kBlock, nullptr);
      } else {
        const Rows<E> rows = {weights, kBlock, kStep, 0};
        MultiplyInVectors(rows, these, steps, count, sums, kBlock);
      }
      for (int64_t r = 0; r < count; ++r) {
        const __m512 scale = _mm512_set1_ps(scales[r]);
        const float* from = sums + r * kBlock;
        Store(_mm512_mul_ps(_mm512_load_ps(from), scale),
              _mm512_mul_ps(_mm512_load_ps(from + 16), scale),
              job.out + start + r * stride + d);
      }
    }
  }
  return true;
}

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

// Runs work(0) to work(count - 1) on the pool's threads and this one. False if any call
// returned false.
template <typename Work>
bool InParallel(ffi::ThreadPool& pool, int64_t count, const Work& work) {
  struct State {
    explicit State(const Work& work) : work(work) {}
    const Work work;
    std::atomic<int64_t> next{0};
    int64_t done = 0;
    bool good = true;
    std::mutex mutex;
    std::condition_variable all_done;
  };
  // Shared ownership: a pool thread may start after this call has returned.
  auto state = std::make_shared<State>(work);
  auto run = [state, count] {
    for (int64_t i; (i = state->next.fetch_add(1)) < count;) {
      const bool good = state->work(i);
      std::lock_guard<std::mutex> lock(state->mutex);
      state->good = state->good && good;
      if (++state->done == count) state->all_done.notify_all();
    }
  };
  const int64_t helpers = std::min<int64_t>(pool.num_threads(), count) - 1;
  for (int64_t i = 0; i < helpers; ++i) pool.Schedule(decltype(run)(run));
  run();
  std::unique_lock<std::mutex> lock(state->mutex);
  state->all_done.wait(lock, [&] { return state->done == count; });
  return state->good;
}

ffi::Error Ended(bool good) {
  if (good) return ffi::Error::Success();
  return ffi::Error(ffi::ErrorCode::kResourceExhausted,
                    "Out of memory: could not allocate a thread's buffers for operands.");
}

const float* OrNull(const Vector& x) {
  return x.element_count() == 0 ? nullptr : x.typed_data();
}

// Product of x (type X) and a kernel of T, one part of the depth at a time. If x needs
// packing, each part is packed once for all columns.
template <Unit kUnit, typename X, typename T>
ffi::Error Compute(ffi::ThreadPool& pool, const ProductJob& job) {
  using E = Element<kUnit, T>;
  constexpr bool kDigital = kWhole<kUnit, T>;
  static_assert(std::is_same_v<X, float> == std::is_same_v<T, float>);
  // Starts of the panels of columns: at least two panels a thread if there are enough
  // columns. The last panels are half as wide, and a quarter for vectors, which are
  // slower: otherwise the fast threads would wait for a slow one at the end.
  const int64_t threads = std::max<int64_t>(pool.num_threads(), 1);
  const int64_t even = CeilDiv(CeilDiv(job.columns, 2 * threads), kBlock) * kBlock;
  constexpr int64_t kMost = kDepth<kUnit, T>;
  const int64_t wide = ColumnsOf<kUnit, T>(std::min(kMost, job.depth));
  std::vector<int64_t> starts(1, 0);
  while (starts.back() < job.columns) {
    const int64_t rest = job.columns - starts.back();
    int64_t most = wide;
    if (rest <= threads * wide) most /= 2;
    if (kUnit == Unit::kVectors && rest <= threads * most) most /= 2;
    most = CeilDiv(most, kBlock) * kBlock;
    starts.push_back(starts.back() + std::min({rest, even, most}));
  }
  const int64_t row_blocks = CeilDiv(job.rows, kBlock);
  KernelScales scales(kDigital ? std::min(kMost, job.depth) : 0,
                      kDigital ? job.columns : 0);
  std::vector<float> row_back(kDigital ? row_blocks * kBlock : 0);
  constexpr bool kBytes = std::is_same_v<E, int8_t>;
  ByteScales bytes(kBytes ? job.rows : 0, kBytes ? job.columns : 0);
  if constexpr (kBytes) {
    InParallel(pool, row_blocks, [&](int64_t i) {
      for (int64_t r = i * kBlock; r < std::min(job.rows, (i + 1) * kBlock); ++r) {
        ScaleRow(static_cast<const X*>(job.x) + r * job.depth, job.depth, &bytes.step[r],
                 &bytes.middle[r]);
      }
      return true;
    });
  }
  for (int64_t d = 0; d < job.depth; d += kMost) {
    const int64_t depth = std::min(kMost, job.depth - d);
    const DepthPart part = {d,       depth,           d + depth == job.depth,
                            &scales, row_back.data(), &bytes};
    if constexpr (kDigital) {
      const float* kernel = static_cast<const float*>(job.kernel) + d * job.columns;
      const int64_t share = CeilDiv(CeilDiv(job.columns, threads), kBlock) * kBlock;
      InParallel(pool, CeilDiv(job.columns, share), [&](int64_t i) {
        ScaleColumns(kernel, job.columns, depth, i * share,
                     std::min((i + 1) * share, job.columns), &scales);
        return true;
      });
      InParallel(pool, depth / kBlock, [&](int64_t i) {
        for (int64_t k = i * kBlock; k < (i + 1) * kBlock; ++k) {
          BalanceRow(kernel + k * job.columns, job.columns, k, &scales);
        }
        return true;
      });
    }
    if constexpr (!kInPlace<kUnit, T>) {
      InParallel(pool, row_blocks, [&](int64_t i) {
        const int64_t row = i * kBlock, rows = std::min(kBlock, job.rows - row);
        const X* x = static_cast<const X*>(job.x) + row * job.depth + d;
        int8_t* left = static_cast<int8_t*>(job.left) + row * BytesOf<kUnit, T>(depth);
        if constexpr (kBytes) {
          PackLeftBytes(x, job.depth, rows, depth, &bytes.step[row], &bytes.middle[row],
                        left);
        } else if constexpr (kDigital) {
          PackLeftDigits(x, job.depth, rows, depth, scales.x.data(), &row_back[row], left);
        } else {
          PackLeft(x, job.depth, rows, depth, reinterpret_cast<E*>(left));
        }
        return true;
      });
    }
    if (!InParallel(pool, starts.size() - 1, [&](int64_t i) {
          const int64_t columns = starts[i + 1] - starts[i];
          return ComputeColumns<kUnit, T>(job, part, starts[i], columns);
        })) {
      return Ended(false);
    }
  }
  return Ended(true);
}

// Whether a buffer has these sizes.
template <typename Buffer>
bool Has(const Buffer& buffer, std::initializer_list<int64_t> sizes) {
  const auto dimensions = buffer.dimensions();
  return std::equal(dimensions.begin(), dimensions.end(), sizes.begin(), sizes.end());
}

template <typename Buffer>
bool IsAligned(const Buffer& buffer) {
  return reinterpret_cast<uintptr_t>(buffer.untyped_data()) % 64 == 0;
}

template <Unit kUnit>
ffi::Error Product(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer kernel,
                   Vector scale, Vector bias, Count count,
                   ffi::Result<ffi::AnyBuffer> out, ffi::Result<Bytes> left,
                   ffi::Result<Sums> sums, int32_t activation) {
  if (x.dimensions().size() != 2 || kernel.dimensions().size() != 2) {
    return ffi::Error::InvalidArgument("x and kernel must have 2 dimensions.");
  }
  const ProductJob job = {x.untyped_data(),
                          kernel.untyped_data(),
                          OrNull(scale),
                          OrNull(bias),
                          out->untyped_data(),
                          left->untyped_data(),
                          sums->typed_data(),
                          *count.typed_data(),
                          x.dimensions()[1],
                          kernel.dimensions()[1],
                          activation,
                          out->element_type() == ffi::F32};
  const ffi::DataType type = kernel.element_type();
  const bool is_wide = type == ffi::F32;
  const int64_t all = x.dimensions()[0];
  const int64_t rows = CeilDiv(all, kBlock) * kBlock;
  const bool is_int8 = type == ffi::S8;
  const int64_t most = is_wide   ? kDepth<kUnit, float>
                       : is_int8 ? kDepth<kUnit, int8_t>
                                 : kDepth<kUnit, Bf16>;
  const int64_t depth = std::min(most, job.depth);
  const int64_t bytes = is_wide   ? LeftBytesOf<kUnit, float>(depth)
                        : is_int8 ? LeftBytesOf<kUnit, int8_t>(depth)
                                  : LeftBytesOf<kUnit, Bf16>(depth);
  // Sums of so many products of bytes stay below 2^31.
  constexpr int64_t kMostBytes = 65536;
  const bool in_parts = job.depth > most;
  bool good = job.depth > 0 && job.columns > 0 && job.depth % kBlock == 0 &&
              job.columns % kBlock == 0 && Has(kernel, {job.depth, job.columns}) &&
              Has(*out, {all, job.columns}) && Has(*left, {rows, bytes}) &&
              job.rows >= 0 && job.rows <= all &&
              Has(*sums, {in_parts ? rows : 0, job.columns}) && IsAligned(*out) &&
              IsAligned(*left) && IsAligned(*sums);
  for (const Vector& vector : {scale, bias}) {
    good = good && (vector.element_count() == 0 || Has(vector, {job.columns}));
  }
  good = good && !(is_int8 && job.depth > kMostBytes);
  if (!good) {
    return ffi::Error::InvalidArgument(
        "Sizes do not match or are not multiples of 32, or a buffer is not aligned to 64 "
        "bytes.");
  }
  if (!(is_wide || is_int8 || type == ffi::BF16) ||
      x.element_type() != (is_wide ? ffi::F32 : ffi::BF16) ||
      !(job.wide || out->element_type() == ffi::BF16)) {
    return ffi::Error::InvalidArgument("Element types do not match.");
  }
  const int64_t row_bytes = job.columns * (job.wide ? sizeof(float) : sizeof(Bf16));
  std::memset(static_cast<char*>(job.out) + job.rows * row_bytes, 0,
              (all - job.rows) * row_bytes);
  UseLargePages(left->untyped_data(), left->size_bytes());
  UseLargePages(sums->untyped_data(), sums->size_bytes());
  try {
    if (is_wide) return Compute<kUnit, float, float>(pool, job);
    if (is_int8) return Compute<kUnit, Bf16, int8_t>(pool, job);
    return Compute<kUnit, Bf16, Bf16>(pool, job);
  } catch (const std::bad_alloc&) {
    return Ended(false);
  }
}

template <typename X, typename Out>
ffi::Error NormaliseAll(ffi::ThreadPool& pool, ffi::AnyBuffer& x, ffi::AnyBuffer& addend,
                        const float* scale, const float* bias, float epsilon,
                        ffi::AnyBuffer& out) {
  const int64_t rows = x.dimensions()[0], size = x.dimensions()[1];
  const X* from = static_cast<const X*>(x.untyped_data());
  const X* plus =
      addend.element_count() == 0 ? nullptr : static_cast<X*>(addend.untyped_data());
  Out* to = static_cast<Out*>(out.untyped_data());
  return Ended(InParallel(pool, CeilDiv(rows, kBlock), [=](int64_t i) {
    float* wide = Scratch<6, float>(size);
    if (wide == nullptr) return false;
    for (int64_t r = i * kBlock; r < std::min(rows, (i + 1) * kBlock); ++r) {
      Normalise(from + r * size, plus == nullptr ? nullptr : plus + r * size, scale, bias,
                size, epsilon, wide, to + r * size);
    }
    return true;
  }));
}

ffi::Error Norm(ffi::ThreadPool pool, ffi::AnyBuffer x, ffi::AnyBuffer addend,
                Vector scale, Vector bias, ffi::Result<ffi::AnyBuffer> out,
                float epsilon) {
  if (x.dimensions().size() != 2) {
    return ffi::Error::InvalidArgument("x must have 2 dimensions.");
  }
  const int64_t rows = x.dimensions()[0], size = x.dimensions()[1];
  if (size % kBlock != 0 || !Has(scale, {size}) || !Has(*out, {rows, size}) ||
      !(addend.element_count() == 0 || Has(addend, {rows, size})) ||
      !(bias.element_count() == 0 || Has(bias, {size}))) {
    return ffi::Error::InvalidArgument(
        "Sizes do not match, or d_model is not a multiple of 32.");
  }
  const float *by = scale.typed_data(), *plus = OrNull(bias);
  const ffi::DataType from = x.element_type(), to = out->element_type();
  if (addend.element_type() != from) {
    return ffi::Error::InvalidArgument("Element types do not match.");
  }
  if (from == ffi::F32 && to == ffi::F32) {
    return NormaliseAll<float, float>(pool, x, addend, by, plus, epsilon, *out);
  }
  if (from == ffi::F32 && to == ffi::BF16) {
    return NormaliseAll<float, Bf16>(pool, x, addend, by, plus, epsilon, *out);
  }
  if (from == ffi::BF16 && to == ffi::F32) {
    return NormaliseAll<Bf16, float>(pool, x, addend, by, plus, epsilon, *out);
  }
  if (from == ffi::BF16 && to == ffi::BF16) {
    return NormaliseAll<Bf16, Bf16>(pool, x, addend, by, plus, epsilon, *out);
  }
  return ffi::Error::InvalidArgument("Element types do not match.");
}

template <Unit kUnit, typename T, ffi::DataType kType>
ffi::Error Attention(ffi::ThreadPool pool, ffi::Buffer<kType, 4> query,
                     ffi::Buffer<kType, 4> key, ffi::Buffer<kType, 4> value,
                     ScoreBias bias, Segments q_segments, Segments kv_segments,
                     ffi::Result<ffi::Buffer<kType, 4>> out) {
  AttentionJob<T> job;
  job.query = reinterpret_cast<const T*>(query.typed_data());
  job.key = reinterpret_cast<const T*>(key.typed_data());
  job.value = reinterpret_cast<const T*>(value.typed_data());
  job.bias = bias.element_count() == 0 ? nullptr : bias.typed_data();
  job.out = reinterpret_cast<T*>(out->typed_data());
  job.q_length = query.dimensions()[1];
  job.heads = query.dimensions()[2];
  job.size = query.dimensions()[3];
  job.kv_length = key.dimensions()[1];
  job.bias_of_rows = bias.dimensions()[0] > 1;
  const int64_t distances = job.q_length + job.kv_length - 1;
  job.bias_of_distances = Has(bias, {1, job.heads, 1, distances});
  const int64_t batch = query.dimensions()[0];
  const int64_t bias_rows = job.bias_of_rows ? batch : 1;
  if (job.size % kBlock != 0 || job.kv_length == 0 ||
      !Has(key, {batch, job.kv_length, job.heads, job.size}) ||
      !Has(value, {batch, job.kv_length, job.heads, job.size}) ||
      !Has(q_segments, {batch, job.q_length}) ||
      !Has(kv_segments, {batch, job.kv_length}) ||
      (job.bias != nullptr && !job.bias_of_distances &&
       !Has(bias, {bias_rows, job.heads, job.q_length, job.kv_length}))) {
    return ffi::Error::InvalidArgument(
        "Sizes do not match, or head_dim is not a multiple of 32.");
  }
  try {
    std::vector<Segment> segments;
    if (!FindSegments(q_segments, kv_segments, &segments)) {
      return ffi::Error::InvalidArgument("Positions of a segment are not contiguous.");
    }
    std::vector<bool> has_keys(batch * job.q_length);
    for (const Segment& segment : segments) {
      const auto first = has_keys.begin() + segment.row * job.q_length + segment.q_start;
      std::fill(first, first + segment.q_count, true);
    }
    for (int64_t i = 0; i < batch * job.q_length; ++i) {
      if (!has_keys[i]) std::fill_n(job.out + i * job.stride(), job.stride(), T{0});
    }
    const int64_t count = static_cast<int64_t>(segments.size()) * job.heads;
    return Ended(InParallel(pool, count, [job, segments](int64_t i) {
      return ComputeHead<kUnit>(job, segments[i / job.heads], i % job.heads);
    }));
  } catch (const std::bad_alloc&) {
    return Ended(false);
  }
}

auto ProductArguments() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .Arg<ffi::AnyBuffer>()
      .Arg<ffi::AnyBuffer>()
      .Arg<Vector>()
      .Arg<Vector>()
      .Arg<Count>()
      .Ret<ffi::AnyBuffer>()
      .Ret<Bytes>()
      .Ret<Sums>()
      .Attr<int32_t>("activation");
}

XLA_FFI_DEFINE_HANDLER(kProductInTiles, Product<Unit::kTiles>, ProductArguments());
XLA_FFI_DEFINE_HANDLER(kProductInVectors, Product<Unit::kVectors>, ProductArguments());

XLA_FFI_DEFINE_HANDLER(kNorm, Norm,
                       ffi::Ffi::Bind()
                           .Ctx<ffi::ThreadPool>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<ffi::AnyBuffer>()
                           .Arg<Vector>()
                           .Arg<Vector>()
                           .Ret<ffi::AnyBuffer>()
                           .Attr<float>("epsilon"));

template <ffi::DataType kType>
auto AttentionArguments() {
  return ffi::Ffi::Bind()
      .Ctx<ffi::ThreadPool>()
      .template Arg<ffi::Buffer<kType, 4>>()
      .template Arg<ffi::Buffer<kType, 4>>()
      .template Arg<ffi::Buffer<kType, 4>>()
      .template Arg<ScoreBias>()
      .template Arg<Segments>()
      .template Arg<Segments>()
      .template Ret<ffi::Buffer<kType, 4>>();
}

template <Unit kUnit>
constexpr auto kAttendBf16 = Attention<kUnit, Bf16, ffi::BF16>;
template <Unit kUnit>
constexpr auto kAttendWide = Attention<kUnit, float, ffi::F32>;
XLA_FFI_DEFINE_HANDLER(kAttentionInTiles, kAttendBf16<Unit::kTiles>,
                       AttentionArguments<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER(kAttentionInVectors, kAttendBf16<Unit::kVectors>,
                       AttentionArguments<ffi::BF16>());
XLA_FFI_DEFINE_HANDLER(kWideAttentionInTiles, kAttendWide<Unit::kTiles>,
                       AttentionArguments<ffi::F32>());
XLA_FFI_DEFINE_HANDLER(kWideAttentionInVectors, kAttendWide<Unit::kVectors>,
                       AttentionArguments<ffi::F32>());

// Whether this CPU has the unit's instructions and Linux grants this process its
// registers.
bool IsUsable(Unit unit) {
  unsigned a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return false;
  if (!(c >> 12 & 1) || !(c >> 27 & 1)) return false;  // fma, xgetbv
  unsigned low, high;
  asm volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  constexpr unsigned kAvx = 0x6, kAvx512 = 0xe0, kAmx = 0x60000;
  const unsigned registers = kAvx | kAvx512 | (unit == Unit::kTiles ? kAmx : 0);
  if ((low & registers) != registers) return false;
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  // avx2, avx512f, -dq, -bw, -vl
  for (int bit : {5, 16, 17, 30, 31}) {
    if (!(b >> bit & 1)) return false;
  }
  if (!(c >> 11 & 1)) return false;  // avx512-vnni
  const unsigned tiles = d;
  // avx512-bf16
  if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a >> 5 & 1)) return false;
  if (unit == Unit::kVectors) return true;
  for (int bit : {22, 24, 25}) {  // amx-bf16, -tile, -int8
    if (!(tiles >> bit & 1)) return false;
  }
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

PyObject* HandlersOf(XLA_FFI_Handler* product, XLA_FFI_Handler* attention,
                     XLA_FFI_Handler* wide_attention) {
  const auto capsule = [](XLA_FFI_Handler* handler) {
    return PyCapsule_New(reinterpret_cast<void*>(handler), nullptr, nullptr);
  };
  return Py_BuildValue("{s:N,s:N,s:N,s:N}", "product", capsule(product), "norm",
                       capsule(kNorm), "attention_bfloat16", capsule(attention),
                       "attention_float32", capsule(wide_attention));
}

PyObject* Handlers(PyObject*, PyObject*) {
  PyObject* units = PyDict_New();
  const auto add = [units](const char* name, PyObject* handlers) {
    if (units != nullptr && handlers != nullptr) {
      PyDict_SetItemString(units, name, handlers);
    }
    Py_XDECREF(handlers);
  };
  if (IsUsable(Unit::kTiles)) {
    add("amx", HandlersOf(kProductInTiles, kAttentionInTiles, kWideAttentionInTiles));
  }
  if (IsUsable(Unit::kVectors)) {
    add("avx512",
        HandlersOf(kProductInVectors, kAttentionInVectors, kWideAttentionInVectors));
  }
  return units;
}

}  // namespace

#else

namespace {
PyObject* Handlers(PyObject*, PyObject*) { return PyDict_New(); }
}  // namespace

#endif

static PyMethodDef kMethods[] = {
    {"handlers", Handlers, METH_NOARGS, "Handlers by unit and name, the faster unit first."},
    {nullptr, nullptr, 0, nullptr}};

static PyModuleDef kModule = {PyModuleDef_HEAD_INIT, "_x86", nullptr, -1, kMethods,
                              nullptr, nullptr, nullptr, nullptr};

PyMODINIT_FUNC PyInit__x86() {
  PyObject* module = PyModule_Create(&kModule);
  if (module != nullptr) {
    PyModule_AddStringConstant(module, "SOURCE_SHA256", SOURCE_SHA256);
  }
  return module;
}
