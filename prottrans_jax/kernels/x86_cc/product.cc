#include "product.h"

#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <type_traits>
#include <vector>

#include "blocks.h"
#include "bytes.h"
#include "conversion.h"
#include "digits.h"
#include "elementwise.h"
#include "packing.h"
#include "scratch.h"
#include "tiles.h"
#include "vectors.h"

namespace prottrans_x86 {
namespace {

template <Unit kUnit, typename T>
int64_t ColumnsOf(int64_t depth) {
  if (kUnit == Unit::kTiles) return std::is_same_v<T, float> ? 128 : 256;
  constexpr int64_t kPanelBytes = 512 << 10;
  const int64_t fit = kPanelBytes / (depth * sizeof(Element<kUnit, T>));
  return std::clamp<int64_t>(fit / kBlock * kBlock, kBlock, 256);
}

// Part of a product's depth, from `start` on.
struct DepthPart {
  int64_t start, depth;
  bool ends;  // Whether it is the last part.
  // For float32 products.
  const KernelScales* scales;
  const float* row_back;  // [rows]
  ByteScales* bytes;      // For products of bytes.
};

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

}  // namespace

// If x needs packing, each part of the depth is packed once for all columns.
template <Unit kUnit, typename X, typename T>
bool Multiply(const Threads& threads, const ProductJob& job) {
  using E = Element<kUnit, T>;
  constexpr bool kDigital = kWhole<kUnit, T>;
  static_assert(std::is_same_v<X, float> == std::is_same_v<T, float>);
  // Starts of the panels of columns: at least two panels a thread if there are enough
  // columns. The last panels are half as wide, and a quarter for vectors, which are
  // slower: otherwise the fast threads would wait for a slow one at the end.
  const int64_t thread_count = std::max<int64_t>(threads.Count(), 1);
  const int64_t even = CeilDiv(CeilDiv(job.columns, 2 * thread_count), kBlock) * kBlock;
  constexpr int64_t kMost = kDepth<kUnit, T>;
  const int64_t wide = ColumnsOf<kUnit, T>(std::min(kMost, job.depth));
  std::vector<int64_t> starts(1, 0);
  while (starts.back() < job.columns) {
    const int64_t rest = job.columns - starts.back();
    int64_t most = wide;
    if (rest <= thread_count * wide) most /= 2;
    if (kUnit == Unit::kVectors && rest <= thread_count * most) most /= 2;
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
    InParallel(threads, row_blocks, [&](int64_t i) {
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
      const int64_t share = CeilDiv(CeilDiv(job.columns, thread_count), kBlock) * kBlock;
      InParallel(threads, CeilDiv(job.columns, share), [&](int64_t i) {
        ScaleColumns(kernel, job.columns, depth, i * share,
                     std::min((i + 1) * share, job.columns), &scales);
        return true;
      });
      InParallel(threads, depth / kBlock, [&](int64_t i) {
        for (int64_t k = i * kBlock; k < (i + 1) * kBlock; ++k) {
          BalanceRow(kernel + k * job.columns, job.columns, k, &scales);
        }
        return true;
      });
    }
    if constexpr (!kInPlace<kUnit, T>) {
      InParallel(threads, row_blocks, [&](int64_t i) {
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
    if (!InParallel(threads, starts.size() - 1, [&](int64_t i) {
          const int64_t columns = starts[i + 1] - starts[i];
          return ComputeColumns<kUnit, T>(job, part, starts[i], columns);
        })) {
      return false;
    }
  }
  return true;
}

template bool Multiply<Unit::kTiles, float, float>(const Threads&, const ProductJob&);
template bool Multiply<Unit::kTiles, Bf16, Bf16>(const Threads&, const ProductJob&);
template bool Multiply<Unit::kTiles, Bf16, int8_t>(const Threads&, const ProductJob&);
template bool Multiply<Unit::kVectors, float, float>(const Threads&, const ProductJob&);
template bool Multiply<Unit::kVectors, Bf16, Bf16>(const Threads&, const ProductJob&);
template bool Multiply<Unit::kVectors, Bf16, int8_t>(const Threads&, const ProductJob&);

}  // namespace prottrans_x86
