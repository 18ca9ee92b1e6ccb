// One SIMD register of float or double, and the few functions the scan needs on it, for whatever instruction set this
// translation unit is compiled for. GCC/Clang vector types carry the arithmetic; intrinsics appear only where the
// compiler would not find the instruction itself. Everything is in an unnamed namespace on purpose: the same templates
// compiled for different instruction sets must never be merged by the linker.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

typedef float F32 __attribute__((vector_size(kVecBytes)));
typedef double F64 __attribute__((vector_size(kVecBytes)));
typedef int32_t I32 __attribute__((vector_size(kVecBytes)));
typedef int64_t I64 __attribute__((vector_size(kVecBytes)));

template <class T> struct Lane;
template <> struct Lane<float> {
  using V = F32;
  using I = I32;
  static constexpr int W = kVecBytes / 4, kMantissa = 23;
  static constexpr float kBias = 127, kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
};
template <> struct Lane<double> {
  using V = F64;
  using I = I64;
  static constexpr int W = kVecBytes / 8, kMantissa = 52;
  static constexpr double kBias = 1023, kMagic = 6755399441055744.0;
};

template <class T> using Vec = typename Lane<T>::V;

#define SSMSEQ_INLINE inline __attribute__((always_inline))

// x - 0 is x for every x; x + 0 is not (for -0), so the compiler would have to carry the addition out.
SSMSEQ_INLINE F32 splat(float x) { return x - F32{}; }
SSMSEQ_INLINE F64 splat(double x) { return x - F64{}; }

template <class T, class V = typename Lane<T>::V>
SSMSEQ_INLINE V load(const T* p) { V v; std::memcpy(&v, p, sizeof(V)); return v; }
template <class T, class V = typename Lane<T>::V>
SSMSEQ_INLINE void store(T* p, V v) { std::memcpy(p, &v, sizeof(V)); }
// The first n lanes; the others read as zero and are not written.
#if defined(__AVX512F__)
SSMSEQ_INLINE F32 load(const float* p, int n) { return (F32)_mm512_maskz_loadu_ps((1u << n) - 1, p); }
SSMSEQ_INLINE F64 load(const double* p, int n) { return (F64)_mm512_maskz_loadu_pd((1u << n) - 1, p); }
SSMSEQ_INLINE void store(float* p, F32 v, int n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, (__m512)v); }
SSMSEQ_INLINE void store(double* p, F64 v, int n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, (__m512d)v); }
#else
template <class T, class V = typename Lane<T>::V>
SSMSEQ_INLINE V load(const T* p, int n) {
  if (n == Lane<T>::W) return load(p);
  V v{};
  for (int i = 0; i < n; ++i) v[i] = p[i];
  return v;
}
template <class T, class V = typename Lane<T>::V>
SSMSEQ_INLINE void store(T* p, V v, int n) {
  if (n == Lane<T>::W) return store(p, v);
  for (int i = 0; i < n; ++i) p[i] = v[i];
}
#endif

template <class V> SSMSEQ_INLINE V fma(V a, V b, V c) { return a * b + c; }
#if defined(__AVX512F__)
SSMSEQ_INLINE F32 fmsub(F32 a, F32 b, F32 c) { return (F32)_mm512_fmsub_ps((__m512)a, (__m512)b, (__m512)c); }
SSMSEQ_INLINE F64 fmsub(F64 a, F64 b, F64 c) { return (F64)_mm512_fmsub_pd((__m512d)a, (__m512d)b, (__m512d)c); }
SSMSEQ_INLINE F32 nearest(F32 x) { return (F32)_mm512_roundscale_ps((__m512)x, 8); }
SSMSEQ_INLINE F64 nearest(F64 x) { return (F64)_mm512_roundscale_pd((__m512d)x, 8); }
SSMSEQ_INLINE F32 times_exp2(F32 p, F32 k) { return (F32)_mm512_scalef_ps((__m512)p, (__m512)k); }
SSMSEQ_INLINE F64 times_exp2(F64 p, F64 k) { return (F64)_mm512_scalef_pd((__m512d)p, (__m512d)k); }
#else
#if defined(__AVX2__)
SSMSEQ_INLINE F32 fmsub(F32 a, F32 b, F32 c) { return (F32)_mm256_fmsub_ps((__m256)a, (__m256)b, (__m256)c); }
SSMSEQ_INLINE F64 fmsub(F64 a, F64 b, F64 c) { return (F64)_mm256_fmsub_pd((__m256d)a, (__m256d)b, (__m256d)c); }
SSMSEQ_INLINE F32 nearest(F32 x) { return (F32)_mm256_round_ps((__m256)x, 8); }
SSMSEQ_INLINE F64 nearest(F64 x) { return (F64)_mm256_round_pd((__m256d)x, 8); }
#elif defined(__aarch64__)
template <class V> SSMSEQ_INLINE V fmsub(V a, V b, V c) { return a * b - c; }
SSMSEQ_INLINE F32 nearest(F32 x) { return (F32)vrndnq_f32((float32x4_t)x); }
SSMSEQ_INLINE F64 nearest(F64 x) { return (F64)vrndnq_f64((float64x2_t)x); }
#else
template <class V> SSMSEQ_INLINE V fmsub(V a, V b, V c) { return a * b - c; }
template <class T, class V> SSMSEQ_INLINE V nearest_magic(V x) {
  const V magic = splat(Lane<T>::kMagic);
  V bound = splat(Lane<T>::kMagic / 4);  // beyond this the trick is wrong; the result is clamped later anyway
  x = x > bound ? bound : (x < -bound ? -bound : x);
  V shifted = x + magic;
  asm volatile("" : "+x"(shifted));  // keep the compiler from folding (x + m) - m
  return shifted - magic;
}
SSMSEQ_INLINE F32 nearest(F32 x) { return nearest_magic<float>(x); }
SSMSEQ_INLINE F64 nearest(F64 x) { return nearest_magic<double>(x); }
#endif
template <class T, class V> SSMSEQ_INLINE V times_exp2_bits(V p, V k) {
  const V lo = splat(-Lane<T>::kBias), hi = splat(Lane<T>::kBias + 1);  // exponents that mean 0 and infinity
  k = k < lo ? lo : (k > hi ? hi : k);
  V shifted = k + splat(Lane<T>::kMagic + Lane<T>::kBias);
  typename Lane<T>::I bits = (typename Lane<T>::I)shifted << Lane<T>::kMantissa;
  return p * (V)bits;
}
SSMSEQ_INLINE F32 times_exp2(F32 p, F32 k) { return times_exp2_bits<float>(p, k); }
SSMSEQ_INLINE F64 times_exp2(F64 p, F64 k) { return times_exp2_bits<double>(p, k); }
#endif

// 2^f on [-1/2, 1/2]. p(0) = 1 exactly: a fit without that constraint biases decays close to 1, and the bias
// accumulates over the memory of the state. float: minimax of degree 6 (relative error 3e-9,
// so rounding dominates); double: Taylor of degree 13.
SSMSEQ_INLINE F32 exp2_poly(F32 f) {
  F32 p = splat(0x1.416b5ep-13f);
  p = fma(p, f, splat(0x1.5f083p-10f));
  p = fma(p, f, splat(0x1.3b2dep-7f));
  p = fma(p, f, splat(0x1.c6af7cp-5f));
  p = fma(p, f, splat(0x1.ebfbdcp-3f));
  p = fma(p, f, splat(0x1.62e43p-1f));
  return fma(p, f, splat(1.0f));
}
SSMSEQ_INLINE F64 exp2_poly(F64 f) {
  const F64 x = f * 0.693147180559945309417;
  F64 p = splat(1.0 / 6227020800.0);
  constexpr double inverse_factorial[] = {1.0 / 479001600, 1.0 / 39916800, 1.0 / 3628800, 1.0 / 362880, 1.0 / 40320,
                                          1.0 / 5040, 1.0 / 720, 1.0 / 120, 1.0 / 24, 1.0 / 6, 0.5, 1.0, 1.0};
  for (double c : inverse_factorial) p = fma(p, x, splat(c));
  return p;
}

// 2^(a b): the fused subtraction leaves no rounding error of the product in the fraction.
template <class V> SSMSEQ_INLINE V exp2_product(V a, V b) {
  const V k = nearest(a * b);
  return times_exp2(exp2_poly(fmsub(a, b, k)), k);
}

template <class T> constexpr T kLog2e = T(1.44269504088896340736L);
template <class T> constexpr T kLog2eRest = T(1.44269504088896340736L - (long double)T(1.44269504088896340736L));

// e^x for x <= 0, with log2(e) in two pieces.
template <class T, class V> SSMSEQ_INLINE V exp_negative(V x) {
  const V k = nearest(x * splat(kLog2e<T>));
  const V f = fmsub(x, splat(kLog2e<T>), k);
  return times_exp2(exp2_poly(fma(x, splat(kLog2eRest<T>), f)), k);
}

// log(1 + e) for e in [0, 1] as 2 atanh(e / (2 + e)): relative error of a few ulp down to e = 0.
template <class T, class V> SSMSEQ_INLINE V log1p_unit(V e) {
  constexpr int terms = sizeof(T) == 4 ? 8 : 17;
  const V s = e / (e + splat(T(2))), s2 = s * s;
  V p = splat(T(2) / T(2 * terms - 1));
  for (int k = terms - 2; k >= 0; --k) p = fma(p, s2, splat(T(2) / T(2 * k + 1)));
  return p * s;
}

template <class T, class V> SSMSEQ_INLINE V sigmoid(V x) {
  const V e = exp_negative<T>(x > V{} ? -x : x);
  const V r = splat(T(1)) / (e + splat(T(1)));
  return x >= V{} ? r : e * r;
}

// softplus(x) and its derivative, sigmoid(x).
template <class T, class V> SSMSEQ_INLINE V softplus(V x, V* derivative) {
  const V e = exp_negative<T>(x > V{} ? -x : x);
  const V r = splat(T(1)) / (e + splat(T(1)));
  *derivative = x >= V{} ? r : e * r;
  return (x > V{} ? x : V{}) + log1p_unit<T>(e);
}

#if defined(__AVX512F__)
SSMSEQ_INLINE float lane_sum(F32 v) { return _mm512_reduce_add_ps((__m512)v); }
SSMSEQ_INLINE double lane_sum(F64 v) { return _mm512_reduce_add_pd((__m512d)v); }
#elif defined(__AVX2__)
SSMSEQ_INLINE float lane_sum(F32 v) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
SSMSEQ_INLINE double lane_sum(F64 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
#else
SSMSEQ_INLINE float lane_sum(F32 v) { return (v[0] + v[2]) + (v[1] + v[3]); }
SSMSEQ_INLINE double lane_sum(F64 v) { return v[0] + v[1]; }
#endif

// Adds the lanes to W sums in double.
SSMSEQ_INLINE void add_to(double* sums, F64 v) { store(sums, load(sums) + v); }
SSMSEQ_INLINE void add_to(double* sums, F32 v) {
  constexpr int half = Lane<double>::W;
#if defined(__AVX512F__)
  add_to(sums, (F64)_mm512_cvtps_pd(_mm512_castps512_ps256((__m512)v)));
  add_to(sums + half, (F64)_mm512_cvtps_pd(_mm512_extractf32x8_ps((__m512)v, 1)));
#elif defined(__AVX2__)
  add_to(sums, (F64)_mm256_cvtps_pd(_mm256_castps256_ps128((__m256)v)));
  add_to(sums + half, (F64)_mm256_cvtps_pd(_mm256_extractf128_ps((__m256)v, 1)));
#else
  for (int i = 0; i < 2 * half; ++i) sums[i] += v[i];
#endif
}

}  // namespace
