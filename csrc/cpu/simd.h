// Rows of numbers on the CPU: loaded from any dtype into float32, worked on in loops that the compiler vectorises, stored back.
//
// Everything under csrc/cpu is compiled once for each processor generation, into a module of its own (setup.py); Python loads the newest that the
// processor runs. So the compiler alone knows the generation, and nothing here asks for it at run time.
#pragma once

#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#ifdef __AVX512BF16__
#include <immintrin.h>
#endif

#define AVFMAE_INLINE inline __attribute__((always_inline))

namespace avfmae {

using torch::headeronly::ScalarType;

AVFMAE_INLINE float from_bfloat16(uint16_t x) { return std::bit_cast<float>(static_cast<uint32_t>(x) << 16); }

// Rounds to nearest even; a NaN stays one.
AVFMAE_INLINE uint16_t to_bfloat16(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(x == x ? rounded : 0x7fc0);
}

// Has the cache own a line that will be written: stores that wait for memory hold up all that come after them.
AVFMAE_INLINE void prefetch_to_write(const void* line) {
#ifdef __x86_64__
  asm volatile("prefetchw %0" : : "m"(*static_cast<const char*>(line)));  // the builtin reads, unless told of a newer processor
#else
  __builtin_prefetch(line, 1);
#endif
}

#ifdef __AVX512BF16__
// n numbers to bfloat16, by one instruction for 32 of them.
inline void round_by_processor(const float* in, uint16_t* out, int n) {
  int i = 0;
  for (; i + 32 <= n; i += 32)
    _mm512_storeu_si512(out + i, (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(in + i + 16), _mm512_loadu_ps(in + i)));
  if (const int left = n - i; left > 0) {
    const __mmask32 mask = (__mmask32{1} << left) - 1;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), in + i);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), in + i + 16);
    _mm512_mask_storeu_epi16(out + i, mask, (__m512i)_mm512_cvtne2ps_pbh(high, low));
  }
}
#endif

AVFMAE_INLINE void round_to_bfloat16(const float* in, uint16_t* out, int n) {
#ifdef __AVX512BF16__
  round_by_processor(in, out, n);
#else
  for (int i = 0; i < n; ++i) out[i] = to_bfloat16(in[i]);
#endif
}

// Numbers of a vector: as many as a register holds.
#if defined(__AVX512F__)
constexpr int kBlock = 16;
#elif defined(__AVX2__)
constexpr int kBlock = 8;
#else
constexpr int kBlock = 4;
#endif

typedef float Vector __attribute__((vector_size(4 * kBlock), aligned(4), may_alias));
typedef int32_t Lanes __attribute__((vector_size(4 * kBlock)));
typedef uint32_t Bits __attribute__((vector_size(4 * kBlock)));
typedef uint16_t Halves __attribute__((vector_size(2 * kBlock), aligned(2), may_alias));
typedef uint8_t Levels __attribute__((vector_size(kBlock), aligned(1), may_alias));

AVFMAE_INLINE const Vector& vector_at(const float* p) { return *reinterpret_cast<const Vector*>(p); }
AVFMAE_INLINE Vector& vector_at(float* p) { return *reinterpret_cast<Vector*>(p); }

AVFMAE_INLINE float sum_of(const Vector& v) {
  float s = 0;
  for (int l = 0; l < kBlock; ++l) s += v[l];
  return s;
}

// work(i, n) for every vector of C numbers: the n numbers from i on, n a constant but for the last.
template <typename Work>
AVFMAE_INLINE void for_vectors(int C, Work work) {
  int i = 0;
  for (; i + kBlock <= C; i += kBlock) work(i, kBlock);
  if (i < C) work(i, C - i);
}

// A tensor's memory without its shape: address and dtype. Offsets count numbers, not bytes.
struct Numbers {
  void* data = nullptr;
  ScalarType type = ScalarType::Float;

  Numbers() = default;
  explicit Numbers(const float* x) : data(const_cast<float*>(x)) {}
  explicit Numbers(const torch::stable::Tensor& t) : data(const_cast<void*>(t.const_data_ptr())), type(t.scalar_type()) {
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
                    "avfmae_kernels: dtype must be float32, bfloat16 or float16");
  }
  explicit operator bool() const { return data != nullptr; }

  AVFMAE_INLINE void load(int64_t offset, float* out, int n) const {
    if (type == ScalarType::Float) {
      const auto* in = static_cast<const float*>(data) + offset;
      for (int i = 0; i < n; ++i) out[i] = in[i];
    } else if (type == ScalarType::BFloat16) {
      const auto* in = static_cast<const uint16_t*>(data) + offset;
      for (int i = 0; i < n; ++i) out[i] = from_bfloat16(in[i]);
    } else {
      const auto* in = static_cast<const c10::Half*>(data) + offset;
      for (int i = 0; i < n; ++i) out[i] = static_cast<float>(in[i]);
    }
  }

  // n numbers, and zeros.
  AVFMAE_INLINE Vector vector(int64_t offset, int n) const {
    if (n == kBlock && type == ScalarType::Float) return vector_at(static_cast<const float*>(data) + offset);
    if (n == kBlock && type == ScalarType::BFloat16)
      return (Vector)(__builtin_convertvector(*reinterpret_cast<const Halves*>(static_cast<const uint16_t*>(data) + offset), Bits) << 16);
    Vector v{};
    load(offset, reinterpret_cast<float*>(&v), n);
    return v;
  }

  AVFMAE_INLINE void put(int64_t offset, const Vector& v, int n) const {
    if (n == kBlock && type == ScalarType::Float) {
      vector_at(static_cast<float*>(data) + offset) = v;
    } else if (n == kBlock && type == ScalarType::BFloat16) {
      const Bits bits = (Bits)v, rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;  // to_bfloat16
      *reinterpret_cast<Halves*>(static_cast<uint16_t*>(data) + offset) = __builtin_convertvector(v == v ? rounded : Bits{} + 0x7fc0, Halves);
    } else {
      store(offset, reinterpret_cast<const float*>(&v), n);
    }
  }

  AVFMAE_INLINE void prefetch_to_write(int64_t offset, int n) const {
    const int64_t size = type == ScalarType::Float ? 4 : 2;
    const char* line = static_cast<const char*>(data) + offset * size;
    for (const char* end = line + n * size; line < end; line += 64) avfmae::prefetch_to_write(line);
  }

  AVFMAE_INLINE void store(int64_t offset, const float* in, int n) const {
    if (type == ScalarType::Float) {
      std::copy_n(in, n, static_cast<float*>(data) + offset);
    } else if (type == ScalarType::BFloat16) {
      round_to_bfloat16(in, static_cast<uint16_t*>(data) + offset, n);
    } else {
      auto* out = static_cast<c10::Half*>(data) + offset;
      for (int i = 0; i < n; ++i) out[i] = static_cast<c10::Half>(in[i]);
    }
  }
};

// n numbers, and zeros: nothing beyond is read.
AVFMAE_INLINE Vector vector_of(const float* x, int n) { return Numbers(x).vector(0, n); }

AVFMAE_INLINE Vector vector_of(const uint8_t* x, int n) {
  uint8_t some[kBlock] = {};
  if (n < kBlock) std::memcpy(some, x, n), x = some;
  const Halves wide = __builtin_convertvector(*reinterpret_cast<const Levels*>(x), Halves);
  return __builtin_convertvector(__builtin_convertvector(wide, Lanes), Vector);
}

AVFMAE_INLINE float dot(const float* __restrict__ x, const float* __restrict__ y, int n) {
  float s = 0;
#pragma omp simd reduction(+ : s)
  for (int i = 0; i < n; ++i) s += x[i] * y[i];
  return s;
}

// e^x by 2^n·2^f with |f| <= 1/2: the standard library's is not vectorised. Relative error below 2e-7 between -87 and 88, beyond which
// it stays what it is there.
AVFMAE_INLINE float fast_exp(float x) {
  const float raised = -87.0f > x ? -87.0f : x, clamped = 88.0f < raised ? 88.0f : raised;  // values, for an instruction each; NaN stays
  const float n = (clamped * 1.44269504f + 12582912.0f) - 12582912.0f;  // to the nearest integer: 1.5·2^23 has no fraction bits
  const float f = (clamped - n * 0.693359375f) + n * 2.12194440e-4f;  // ln 2 in two parts
  float p = 1.9875691500e-4f;  // Cephes' minimax polynomial of (e^f - 1 - f)/f²
  p = p * f + 1.3981999507e-3f;
  p = p * f + 8.3334519073e-3f;
  p = p * f + 4.1665795894e-2f;
  p = p * f + 1.6666665459e-1f;
  p = p * f + 5.0000001201e-1f;
  p = p * f * f + f + 1.0f;
  return p * std::bit_cast<float>((static_cast<int32_t>(n) + 127) << 23);
}

AVFMAE_INLINE float sigmoid(float x) { return 1.0f / (1.0f + fast_exp(-x)); }

}  // namespace avfmae
