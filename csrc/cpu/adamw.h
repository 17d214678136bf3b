// AdamW of a vector of numbers at a time, on the CPU: with moments in float32, or in three bytes.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "cpu/matmul.h"
#include "cpu/simd.h"

namespace avfmae {

typedef int16_t Shorts __attribute__((vector_size(2 * kBlock)));
typedef int8_t Bytes __attribute__((vector_size(kBlock), aligned(1), may_alias));

// 1/√x, from half its exponent by Newton's method: to 5e-6 in two steps, to 1e-7 in three. Finite for 0, so that x times it is √x.
template <int kSteps>
AVFMAE_INLINE Vector inverse_root(Vector x) {
  Vector y = (Vector)(0x5f375a86 - ((Bits)x >> 1));
  for (int i = 0; i < kSteps; ++i) y *= 1.5f - 0.5f * x * y * y;
  return y;
}

// What is the same for all numbers of a tensor.
struct Rule {
  float rest1, beta2, rest2, eps;            // rest = 1 - β
  float share, keep, rate, root_correction;  // share of the gradient, w·keep, rate / (1 - β₁ᵗ), 1 / √(1 - β₂ᵗ)
  float unit, levels;  // of the compact first moment, and its inverse
  uint32_t seed;       // of its rounding
};

// Moments in float32.
struct Wide {
  static constexpr int kSteps = 3;
  float *m, *v;

  AVFMAE_INLINE Wide at(int64_t i) const { return {m + i, v + i}; }

  // What a row of 32 weights needs.
  AVFMAE_INLINE void prefetch(const float* w) const {
    for (int i = 0; i < 2 * kBlock; i += kBlock) prefetch_to_write(w + i), prefetch_to_write(m + i), prefetch_to_write(v + i);
  }

  AVFMAE_INLINE void load(const Rule&, Vector& first, Vector& second) const { first = vector_at(m), second = vector_at(v); }
  AVFMAE_INLINE void store(const Rule&, int64_t, const Vector& first, const Vector& second, const Vector&) const {
    vector_at(m) = first, vector_at(v) = second;
  }
};

// v in bfloat16, and m/√v, which |m|/√v <= (1 - β₁) / √((1 - β₂)(1 - β₁²/β₂)) bounds, in 8 bits. Both are rounded up or down by chance,
// so that what is lost in one step is not lost in all.
struct Compact {
  static constexpr int kSteps = 2;
  int8_t* m;
  uint16_t* v;

  AVFMAE_INLINE Compact at(int64_t i) const { return {m + i, v + i}; }

  AVFMAE_INLINE void prefetch(const float* w) const {
    prefetch_to_write(w), prefetch_to_write(w + kBlock), prefetch_to_write(m), prefetch_to_write(v);
  }

  AVFMAE_INLINE void load(const Rule& r, Vector& first, Vector& second) const {
    second = (Vector)(__builtin_convertvector(*reinterpret_cast<const Halves*>(v), Bits) << 16);
    const Shorts level = __builtin_convertvector(*reinterpret_cast<const Bytes*>(m), Shorts);
    first = __builtin_convertvector(__builtin_convertvector(level, Lanes), Vector) * (r.unit * second * inverse_root<kSteps>(second));
  }

  AVFMAE_INLINE void store(const Rule& r, int64_t index, const Vector& first, const Vector& second, const Vector& inverse) const {
    Bits chance;
    for (int l = 0; l < kBlock; ++l) chance[l] = l;
    chance += r.seed + static_cast<uint32_t>(index);  // mixed by Wellons' lowbias32
    chance = (chance ^ chance >> 16) * 0x7feb352du;
    chance = (chance ^ chance >> 15) * 0x846ca68bu;
    chance ^= chance >> 16;
    Vector level = first * inverse * r.levels;
    level = level < -127.0f ? Vector{} - 127.0f : level > 127.0f ? Vector{} + 127.0f : level;
    const Vector up = __builtin_convertvector((Lanes)(chance & 0xffff), Vector) * 0x1p-16f;
    *reinterpret_cast<Bytes*>(m) = __builtin_convertvector(__builtin_convertvector(level + up + 128.0f, Lanes) - 128, Bytes);
    *reinterpret_cast<Halves*>(v) = __builtin_convertvector(((Bits)second + (chance >> 16)) >> 16, Halves);
  }
};

template <typename Moments>
AVFMAE_INLINE void step(const Rule& r, const float* gradient, float* weight, const Moments& moments, int64_t index) {
  Vector m, v;
  moments.load(r, m, v);
  const Vector g = vector_at(gradient) * r.share;
  m += r.rest1 * (g - m);
  v = r.beta2 * v + r.rest2 * (g * g);
  const Vector inverse = inverse_root<Moments::kSteps>(v);
  vector_at(weight) = r.keep * vector_at(weight) - r.rate * m / (v * inverse * r.root_correction + r.eps);
  moments.store(r, index, m, v, inverse);
}

#ifdef __AVX512BF16__

// The same of compact moments by AVX-512's approximations of 1/x and 1/√x, which are off by 2⁻¹⁴: less than the moments' rounding.
AVFMAE_INLINE void step_avx512(const Rule& r, const float* gradient, float* weight, const Compact& moments, uint32_t index) {
  const auto all = [](float x) { return _mm512_set1_ps(x); };
  const __m512 tiny = all(1e-37f), g = _mm512_mul_ps(_mm512_loadu_ps(gradient), all(r.share));
  const __m512 before = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)moments.v)), 16));
  const __m512 level = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i*)moments.m)));
  const __m512 root = _mm512_mul_ps(before, _mm512_rsqrt14_ps(_mm512_max_ps(before, tiny)));
  __m512 m = _mm512_mul_ps(_mm512_mul_ps(level, all(r.unit)), root);
  m = _mm512_fmadd_ps(all(r.rest1), _mm512_sub_ps(g, m), m);
  const __m512 v = _mm512_fmadd_ps(all(r.beta2), before, _mm512_mul_ps(all(r.rest2), _mm512_mul_ps(g, g)));
  const __m512 inverse = _mm512_rsqrt14_ps(_mm512_max_ps(v, tiny));
  const __m512 divisor = _mm512_fmadd_ps(_mm512_mul_ps(v, inverse), all(r.root_correction), all(r.eps));
  const __m512 change = _mm512_mul_ps(_mm512_mul_ps(all(r.rate), m), _mm512_rcp14_ps(divisor));
  _mm512_storeu_ps(weight, _mm512_fmsub_ps(all(r.keep), _mm512_loadu_ps(weight), change));
  __m512i chance = _mm512_add_epi32(_mm512_set1_epi32(static_cast<int>(r.seed + index)),
                                    _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  const auto mixed = [](__m512i x, int by) { return _mm512_xor_si512(x, _mm512_srli_epi32(x, by)); };
  chance = _mm512_mullo_epi32(mixed(chance, 16), _mm512_set1_epi32(0x7feb352d));
  chance = mixed(_mm512_mullo_epi32(mixed(chance, 15), _mm512_set1_epi32(static_cast<int>(0x846ca68bu))), 16);
  const __m512 up = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_and_si512(chance, _mm512_set1_epi32(0xffff))), all(0x1p-16f));
  const __m512 raised = _mm512_fmadd_ps(_mm512_mul_ps(m, inverse), all(r.levels), up);
  const __m512i floor = _mm512_cvt_roundps_epi32(raised, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
  _mm_storeu_si128((__m128i*)moments.m, _mm512_cvtsepi32_epi8(_mm512_max_epi32(floor, _mm512_set1_epi32(-127))));
  const __m512i rounded = _mm512_add_epi32(_mm512_castps_si512(v), _mm512_srli_epi32(chance, 16));
  _mm256_storeu_si256((__m256i*)moments.v, _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}

#endif

// The scalars of a recipe.
struct Recipe {
  double lr, beta1, beta2, eps, weight_decay, divisor;

  // Of the step with this number, the first being 1.
  Rule rule(double number) const {
    const double bound = (1 - beta1) / std::sqrt((1 - beta2) * (1 - beta1 * beta1 / beta2));
    const auto f = [](double x) { return static_cast<float>(x); };
    return {.rest1 = f(1 - beta1), .beta2 = f(beta2), .rest2 = f(1 - beta2), .eps = f(eps), .share = f(1 / divisor), .keep = f(1 - lr * weight_decay),
            .rate = f(lr / (1 - std::pow(beta1, number))), .root_correction = f(1 / std::sqrt(1 - std::pow(beta2, number))),
            .unit = f(bound / 127), .levels = f(127 / bound), .seed = static_cast<uint32_t>(number) * 0x9e3779b9u};
  }
};

inline float& scalar(const torch::stable::Tensor& t) {
  STD_TORCH_CHECK(t.numel() == 1 && t.scalar_type() == ScalarType::Float, "adamw: scalars must be float32 tensors of one number");
  return *static_cast<float*>(const_cast<void*>(t.const_data_ptr()));
}

inline double sum_in_order(const std::vector<float>& sums) {  // whatever the threads did
  double total = 0;
  for (float s : sums) total += s;
  return total;
}

template <typename Number>
Number* data(const torch::stable::Tensor& t) {
  return static_cast<Number*>(const_cast<void*>(t.const_data_ptr()));
}

}  // namespace avfmae
