// The kernels' arguments on raw pointers. Axis letters: B batch, L time, D channels, N state, G groups of channels.
// Strides count elements; a negative time stride scans from the end, so a reverse scan needs no flipped copies.
#pragma once
#include <cstdint>

namespace ssmseq {

// Steps between two saved states. Backward recomputes inside one chunk, whose states must stay in the L1 cache.
inline int64_t chunk_length(int64_t n_state) { return n_state <= 8 ? 32 : 16; }

template <class T>
struct Rows {  // (B, L, D) with unit channel stride, or null
  T* p = nullptr;
  int64_t batch = 0, time = 0;
  T* at(int64_t b, int64_t t) const { return p + b * batch + t * time; }
};

template <class T>
struct Mixers {  // (B, L, G, N) with unit state stride: B and C, and their gradients
  T* p = nullptr;
  int64_t batch = 0, time = 0, group = 0;
  T* at(int64_t b, int64_t t, int64_t g) const { return p + b * batch + t * time + g * group; }
};

template <class T>
struct Forward {
  int64_t B, L, D, N, G;
  bool softplus;
  int threads;
  Rows<const T> u, delta, z;
  Mixers<const T> Bm, Cm;
  const T *A, *skip, *bias, *h0;  // (D, N), (D,), (D,), (B, D, N); contiguous, all but A may be null
  Rows<T> y;
  T* hT;          // (B, D, N) or null
  T* checkpoint;  // (B, ceil(L / chunk) - 1, N, D), the states that enter chunks 1, 2, ...; or null
};

template <class T>
struct Backward {
  Forward<T> f;  // the inputs of the forward pass; y and hT are unused
  Rows<const T> dy;
  const T* dhT;  // (B, D, N) or null
  Rows<T> du, ddelta, dz;
  Mixers<T> dB, dC;                 // contiguous (B, L, G, N)
  T *dA, *dskip, *dbias, *dh0;      // contiguous; null where not wanted
};

template <class T>
struct Convolution {  // depthwise: y_t = act(bias + sum_j weight[width - 1 - j] x_{t-j}), x zero before the start
  int64_t B, L, D, width;
  bool silu;
  int threads;
  Rows<const T> x, dy;
  const T *weight, *bias;    // (D, width), (D,) or null; contiguous
  Rows<T> y, dx;             // y in the forward pass, dx in the backward pass
  T *dweight, *dbias;        // contiguous; dbias may be null
};

struct ScanKernels {
  void (*forward_f32)(const Forward<float>&);
  void (*forward_f64)(const Forward<double>&);
  void (*backward_f32)(const Backward<float>&);
  void (*backward_f64)(const Backward<double>&);
};

struct ConvolutionKernels {
  void (*forward_f32)(const Convolution<float>&);
  void (*forward_f64)(const Convolution<double>&);
  void (*backward_f32)(const Convolution<float>&);
  void (*backward_f64)(const Convolution<double>&);
};

#define SSMSEQ_DECLARE_ISA(name)         \
  extern const ScanKernels scan_##name;  \
  extern const ConvolutionKernels conv_##name;
SSMSEQ_DECLARE_ISA(baseline)
SSMSEQ_DECLARE_ISA(avx2)
SSMSEQ_DECLARE_ISA(avx512)

}  // namespace ssmseq
