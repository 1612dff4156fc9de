// Attention within segments; see `x86.attention`.

#ifndef PROTTRANS_JAX_KERNELS_X86_CC_ATTENTION_H_
#define PROTTRANS_JAX_KERNELS_X86_CC_ATTENTION_H_

#include <cstdint>
#include <vector>

#include "blocks.h"
#include "threads.h"

namespace prottrans_x86 {

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

// All segments of queries [rows, q_length] that have keys [rows, kv_length]. False if a
// segment is not contiguous.
bool FindSegments(const int32_t* queries, const int32_t* keys, int64_t rows,
                  int64_t q_length, int64_t kv_length, std::vector<Segment>* segments);

// Attention of all `segments` of `rows` rows. False if out of memory.
template <Unit kUnit, typename T>
bool Attend(const Threads& threads, const AttentionJob<T>& job, int64_t rows,
            const std::vector<Segment>& segments);

}  // namespace prottrans_x86

#endif  // PROTTRANS_JAX_KERNELS_X86_CC_ATTENTION_H_
