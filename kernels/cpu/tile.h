// Between tensors and registers: some steps of W neighbouring channels, one register per step, whatever the strides
// and the storage type.
#pragma once
#include <utility>

#include "kernels.h"
#include "task.h"

namespace {

using ssmseq::Kind;
using ssmseq::kChunk;
using ssmseq::Mixers;
using ssmseq::Rows;

typedef uint16_t H32 __attribute__((vector_size(kVecBytes / 2)));  // the 16-bit numbers that widen to one F32
typedef uint32_t U32 __attribute__((vector_size(kVecBytes)));

template <class To, class From> SSMSEQ_INLINE To bits(From x) {
  static_assert(sizeof(To) == sizeof(From), "same size");
  To y;
  std::memcpy(&y, &x, sizeof(y));
  return y;
}

// The conversions work on one number (F = float, U = uint32_t) and on a register (F32, U32) alike.
template <class F, class U> SSMSEQ_INLINE F widen_half(U h) {
  const U magnitude = h & 0x7fffu;
  const U finite = bits<U>(bits<F>(U(magnitude << 13)) * 0x1p112f);  // also right for subnormal halves
  return bits<F>(U((magnitude >= 0x7c00u ? U(magnitude << 13 | 0x7f800000u) : finite) | (h & 0x8000u) << 16));
}
template <class F, class U> SSMSEQ_INLINE U narrow_half(F x) {  // to nearest, ties to even
  const U all = bits<U>(x), magnitude = all & 0x7fffffffu;
  const U normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
  const U small = bits<U>(bits<F>(magnitude) + 0.5f) - 0x3f000000u;  // 0.5 + x rounds at the last bit of a subnormal
  const U large = magnitude > 0x7f800000u ? magnitude - magnitude + 0x7e00u : magnitude - magnitude + 0x7c00u;
  const U half = magnitude < 0x38800000u ? small : magnitude < 0x47800000u ? normal : large;
  return half | (all >> 16 & 0x8000u);
}
template <class F, class U> SSMSEQ_INLINE F widen_bfloat(U h) { return bits<F>(U(h << 16)); }
template <class F, class U> SSMSEQ_INLINE U narrow_bfloat(F x) {  // to nearest, ties to even
  const U all = bits<U>(x), rounded = (all + 0x7fffu + (all >> 16 & 1u)) >> 16;
  return (all & 0x7fffffffu) > 0x7f800000u ? all >> 16 | 0x40u : rounded;
}

SSMSEQ_INLINE F32 widen(Kind kind, H32 h) {
#if defined(__AVX512F__)
  if (kind == Kind::float16) return (F32)_mm512_cvtph_ps((__m256i)h);
#elif defined(__F16C__)
  if (kind == Kind::float16) return (F32)_mm256_cvtph_ps((__m128i)h);
#endif
  const U32 wide = __builtin_convertvector(h, U32);
  return kind == Kind::float16 ? widen_half<F32>(wide) : widen_bfloat<F32>(wide);
}
SSMSEQ_INLINE H32 narrow(Kind kind, F32 v) {
#if defined(__AVX512F__)
  if (kind == Kind::float16) return (H32)_mm512_cvtps_ph((__m512)v, 0);
#elif defined(__F16C__)
  if (kind == Kind::float16) return (H32)_mm256_cvtps_ph((__m256)v, 0);
#endif
  const U32 wide = kind == Kind::float16 ? narrow_half<F32, U32>(v) : narrow_bfloat<F32, U32>(v);
  return __builtin_convertvector(wide, H32);
}

// n numbers that lie side by side; only float has other kinds than native.
template <class T> SSMSEQ_INLINE Vec<T> load_as(Kind kind, const char* p, int n) {
  if constexpr (sizeof(T) == 4) {
    if (kind != Kind::native) {
      H32 h{};
      if (n == Lane<T>::W) std::memcpy(&h, p, sizeof(h));
      else for (int i = 0; i < n; ++i) h[i] = reinterpret_cast<const uint16_t*>(p)[i];
      return widen(kind, h);
    }
  }
  return load(reinterpret_cast<const T*>(p), n);
}
template <class T> SSMSEQ_INLINE void store_as(Kind kind, char* p, Vec<T> v, int n) {
  if constexpr (sizeof(T) == 4) {
    if (kind != Kind::native) {
      const H32 h = narrow(kind, v);
      if (n == Lane<T>::W) std::memcpy(p, &h, sizeof(h));
      else for (int i = 0; i < n; ++i) reinterpret_cast<uint16_t*>(p)[i] = h[i];
      return;
    }
  }
  store(reinterpret_cast<T*>(p), v, n);
}
template <class T> SSMSEQ_INLINE T get(Kind kind, const char* p) {
  if (kind == Kind::native) return *reinterpret_cast<const T*>(p);
  const uint32_t h = *reinterpret_cast<const uint16_t*>(p);
  return kind == Kind::float16 ? widen_half<float>(h) : widen_bfloat<float>(h);
}
template <class T> SSMSEQ_INLINE void put(Kind kind, char* p, T x) {
  if (kind == Kind::native) {
    *reinterpret_cast<T*>(p) = x;
  } else {
    const float f = static_cast<float>(x);
    *reinterpret_cast<uint16_t*>(p) = static_cast<uint16_t>(kind == Kind::float16 ? narrow_half<float, uint32_t>(f)
                                                                                 : narrow_bfloat<float, uint32_t>(f));
  }
}

// a0 b0 a1 b1 ... of the lower or the upper half of the lanes.
template <bool High, class V, size_t... i> SSMSEQ_INLINE V interleave(V a, V b, std::index_sequence<i...>) {
  constexpr int W = sizeof...(i);
  return __builtin_shufflevector(a, b, (int(i) / 2 + (High ? W / 2 : 0) + int(i) % 2 * W)...);
}
template <class T, bool High> SSMSEQ_INLINE Vec<T> interleave(Vec<T> a, Vec<T> b) {
  return interleave<High>(a, b, std::make_index_sequence<Lane<T>::W>{});
}

template <class T> SSMSEQ_INLINE void transpose(Vec<T>* m) {  // W by W
  constexpr int W = Lane<T>::W;
  SSMSEQ_UNROLL for (int stage = 1; stage < W; stage *= 2) {
    Vec<T> next[W];
    SSMSEQ_UNROLL for (int i = 0; i < W / 2; ++i) {
      next[2 * i] = interleave<T, false>(m[i], m[i + W / 2]);
      next[2 * i + 1] = interleave<T, true>(m[i], m[i + W / 2]);
    }
    SSMSEQ_UNROLL for (int i = 0; i < W; ++i) m[i] = next[i];
  }
}

// One register holding the sum over lanes of each of W registers, which are spent.
template <class T> SSMSEQ_INLINE Vec<T> lane_sums(Vec<T>* m) {
  SSMSEQ_UNROLL for (int half = Lane<T>::W / 2; half; half /= 2)
    SSMSEQ_UNROLL for (int i = 0; i < half; ++i)
      m[i] = interleave<T, false>(m[i], m[i + half]) + interleave<T, true>(m[i], m[i + half]);
  return m[0];
}

// Steps t0, t0 + 1, ... of channels c0, c0 + 1, ... to and from registers, where time is what lies side by side. A
// square of W steps and channels stays in registers throughout; its edges do not.
template <class T> void load_by_time(const Rows& r, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                     Vec<T>* out) {
  constexpr int W = Lane<T>::W;
  const bool down = r.time < 0;
  for (int t = 0; t < steps; t += W) {
    const int n = steps - t < W ? steps - t : W;
    const char* first = r.at<T>(b, t0 + (down ? t + n - 1 : t), c0);
    const int64_t next = r.channel * ssmseq::item_size<T>(r.kind);
    Vec<T> m[W]{};
    if (n == W && lanes == W && r.kind == Kind::native) {
      SSMSEQ_UNROLL for (int i = 0; i < W; ++i) m[i] = load(reinterpret_cast<const T*>(first + i * next));
    } else {
      for (int i = 0; i < lanes; ++i) m[i] = load_as<T>(r.kind, first + i * next, n);
    }
    transpose<T>(m);
    if (n == W && !down) {
      SSMSEQ_UNROLL for (int k = 0; k < W; ++k) out[t + k] = m[k];
    } else {
      for (int k = 0; k < n; ++k) out[t + k] = m[down ? n - 1 - k : k];
    }
  }
}
template <class T> void store_by_time(const Rows& r, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                      const Vec<T>* in) {
  constexpr int W = Lane<T>::W;
  const bool down = r.time < 0;
  for (int t = 0; t < steps; t += W) {
    const int n = steps - t < W ? steps - t : W;
    char* first = r.at<T>(b, t0 + (down ? t + n - 1 : t), c0);
    const int64_t next = r.channel * ssmseq::item_size<T>(r.kind);
    Vec<T> m[W]{};
    if (n == W && !down) {
      SSMSEQ_UNROLL for (int k = 0; k < W; ++k) m[k] = in[t + k];
    } else {
      for (int k = 0; k < n; ++k) m[down ? n - 1 - k : k] = in[t + k];
    }
    transpose<T>(m);
    if (n == W && lanes == W && r.kind == Kind::native) {
      SSMSEQ_UNROLL for (int i = 0; i < W; ++i) store(reinterpret_cast<T*>(first + i * next), m[i]);
    } else {
      for (int i = 0; i < lanes; ++i) store_as<T>(r.kind, first + i * next, m[i], n);
    }
  }
}
template <class T> SSMSEQ_INLINE void load_tile(const Rows& r, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                                Vec<T>* out) {
  const int64_t next = r.time * ssmseq::item_size<T>(r.kind);
  const char* p = r.at<T>(b, t0, c0);
  if (r.channel == 1 && r.kind == Kind::native && lanes == Lane<T>::W) {
    for (int k = 0; k < steps; ++k, p += next) out[k] = load(reinterpret_cast<const T*>(p));
  } else if (r.channel == 1) {
    for (int k = 0; k < steps; ++k, p += next) out[k] = load_as<T>(r.kind, p, lanes);
  } else if (r.time == 1 || r.time == -1) {
    load_by_time<T>(r, b, t0, steps, c0, lanes, out);
  } else {
    for (int k = 0; k < steps; ++k) {
      out[k] = Vec<T>{};
      for (int i = 0; i < lanes; ++i) out[k][i] = get<T>(r.kind, r.at<T>(b, t0 + k, c0 + i));
    }
  }
}
template <class T> SSMSEQ_INLINE void store_tile(const Rows& r, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                                 const Vec<T>* in) {
  const int64_t next = r.time * ssmseq::item_size<T>(r.kind);
  char* p = r.at<T>(b, t0, c0);
  if (r.channel == 1 && r.kind == Kind::native && lanes == Lane<T>::W) {
    for (int k = 0; k < steps; ++k, p += next) store(reinterpret_cast<T*>(p), in[k]);
  } else if (r.channel == 1) {
    for (int k = 0; k < steps; ++k, p += next) store_as<T>(r.kind, p, in[k], lanes);
  } else if (r.time == 1 || r.time == -1) {
    store_by_time<T>(r, b, t0, steps, c0, lanes, in);
  } else {
    for (int k = 0; k < steps; ++k)
      for (int i = 0; i < lanes; ++i) put<T>(r.kind, r.at<T>(b, t0 + k, c0 + i), in[k][i]);
  }
}

// The lines of memory that a tile will touch, to be fetched one by one while another tile is worked on: rows of
// neighbouring channels lie a stride apart, which the hardware does not foresee.
struct Ahead {
  const char* p = nullptr;
  int64_t stride = 0, leap = 0;  // to the next line, and past every sixteenth
  Ahead() = default;
  template <class T> Ahead(T, const Rows& r, int64_t b, int64_t t0, int64_t c0) : p(r.at<T>(b, t0, c0)) {
    const int64_t item = ssmseq::item_size<T>(r.kind);
    stride = leap = r.time * item;
    if (r.channel == 1) return;
    stride = r.channel * item;
    leap = 16 * r.time * item - 15 * stride;  // a chunk of one channel is two lines of sixteen floats
  }
  SSMSEQ_INLINE void fetch(int k) {  // for k = 0, 1, ... in turn
    __builtin_prefetch(p, 0, 2);
    p += k % 16 == 15 ? leap : stride;
  }
};

}  // namespace
