// What products of AVX512-BF16 have in common: one instruction multiplies neighbouring numbers of two rows and sums both up, in float32.
#pragma once

#include <cstdint>

#define AVFMAE_INLINE inline __attribute__((always_inline))

#ifdef __AVX512BF16__
#include <immintrin.h>

namespace avfmae::bf16 {

using Pair = uint32_t;  // the first number in the low half

// 16 numbers of one row and 16 of the next as pairs (one[i], next[i]).
AVFMAE_INLINE __m512i interleaved(__m512i rows) {
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2,
                                         17, 1, 16, 0);
  return _mm512_permutexvar_epi16(order, rows);
}

}  // namespace avfmae::bf16
#endif
