// The kernels' arguments on raw pointers. Axis letters: B batch, L time, D channels, N state, G groups of channels.
// Strides count elements and may be anything; a negative time stride scans from the end, so a reverse scan needs no
// flipped copies, and a channel-major tensor needs no transposed one.
#pragma once
#include <cstdint>

namespace ssmseq {

// Steps between two saved states, and between two visits to the outside world: what a kernel holds of one chunk stays
// in the L1 cache.
constexpr int kChunk = 32;
constexpr int kMaxWidth = 8;  // taps of a convolution

enum class Kind : int { native, bfloat16, float16 };  // how a tensor is stored; native is the dtype of the arithmetic

template <class T> int64_t item_size(Kind kind) { return kind == Kind::native ? sizeof(T) : 2; }

struct Rows {  // (B, L, D), or null; also (B, D, N) states and (D, N) rates, whose N takes the place of time
  char* p = nullptr;
  Kind kind = Kind::native;
  int64_t batch = 0, time = 0, channel = 1;
  template <class T> char* at(int64_t b, int64_t t, int64_t c) const {
    return p + (b * batch + t * time + c * channel) * item_size<T>(kind);
  }
};

struct Mixers {  // B and C and their gradients: (B, L, G, N), or constant over batch and time: (D, N)
  char* p = nullptr;
  Kind kind = Kind::native;
  int64_t batch = 0, time = 0, group = 0, state = 1;  // of a constant, `group` is the stride from channel to channel
  bool constant = false;
  template <class T> char* at(int64_t b, int64_t t, int64_t g) const {
    return p + (b * batch + t * time + g * group) * item_size<T>(kind);
  }
};

struct Sequence {  // (B, L) numbers of packed sequences, or null: the state starts from zero where the number changes
  const int32_t* p = nullptr;
  int64_t batch = 0, time = 0;
  bool starts(int64_t b, int64_t t) const {
    return p && t > 0 && p[b * batch + t * time] != p[b * batch + (t - 1) * time];
  }
};

template <class T> struct Scan {
  int64_t B = 0, L = 0, D = 0, N = 0, G = 1;
  bool softplus = true;
  Rows u, delta, z, A, h0;
  Mixers Bm, Cm;
  Sequence seq;
  const T *skip = nullptr, *bias = nullptr;  // (D,), contiguous, may be null
  Rows y, hT;                                // results of the forward pass; hT may be null
  T* checkpoint = nullptr;  // (B, ceil(L / kChunk) - 1, N, D), the states that enter chunks 1, 2, ...; or null
  Rows dy, dhT;             // what the backward pass is given; dhT may be null
  Rows du, ddelta, dz, dh0;  // and its results; contiguous (D, N) or (D,) below; null where not wanted
  Mixers dB, dC;
  T *dA = nullptr, *dskip = nullptr, *dbias = nullptr;
};

template <class T> struct Update {  // one step of the scan, in place
  int64_t B = 0, D = 0, N = 0, G = 1;
  int64_t head = 1, skip_head = 1;  // neighbouring channels that share delta, bias and A; and those that share D
  bool softplus = true, limited = false;
  bool one_rate = false;  // whether all states of a channel decay at one rate, and A is (D / head,)
  T smallest = 0, largest = 0;  // limits of the step size
  Rows state, u, delta, z, A, y;  // time strides of u, delta, z and y are not used; states have unit stride
  Mixers Bm, Cm;                  // nor those of B and C
  Rows skip, bias;
};

struct ScanKernels {  // several scans at once share one team of threads
  void (*forward_f32)(const Scan<float>*, int count, int threads);
  void (*forward_f64)(const Scan<double>*, int count, int threads);
  void (*backward_f32)(const Scan<float>*, int count, int threads);
  void (*backward_f64)(const Scan<double>*, int count, int threads);
  void (*update_f32)(const Update<float>&, int threads);
  void (*update_f64)(const Update<double>&, int threads);
};

// Depthwise: y_t = act(bias + sum_j weight[width - 1 - j] x_{t-j}). Before the start x is `before` where given, else
// zero; with `seq`, taps do not reach into another sequence.
template <class T> struct Convolution {
  int64_t B = 0, L = 0, D = 0, width = 0;
  bool silu = false;
  Rows x, before;              // before: (B, width - 1, D), oldest first
  Sequence seq;
  const T *weight = nullptr, *bias = nullptr;  // (D, width), (D,) or null; contiguous
  Rows y;                                      // result of the forward pass
  Rows dy, dx, dbefore;                        // of the backward pass; dbefore may be null
  T *dweight = nullptr, *dbias = nullptr;      // contiguous; dbias may be null
};

struct ConvolutionKernels {
  void (*forward_f32)(const Convolution<float>&, int threads);
  void (*forward_f64)(const Convolution<double>&, int threads);
  void (*backward_f32)(const Convolution<float>&, int threads);
  void (*backward_f64)(const Convolution<double>&, int threads);
  void (*update_f32)(const Convolution<float>&, int threads);  // one step; `before` is brought up to date
  void (*update_f64)(const Convolution<double>&, int threads);
};

#define SSMSEQ_DECLARE_ISA(name)        \
  extern const ScanKernels scan_##name; \
  extern const ConvolutionKernels conv_##name;
SSMSEQ_DECLARE_ISA(baseline)
SSMSEQ_DECLARE_ISA(avx2)
SSMSEQ_DECLARE_ISA(avx512)

}  // namespace ssmseq
