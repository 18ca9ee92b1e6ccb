// Depthwise causal convolution with an optional SiLU, forward and backward, for one instruction set. Channels last: one
// lane is one channel, so a tap is one fused multiply-add and nothing is transposed.
//
//   pre_t = bias + sum_j w_j x_{t-j}      y_t = silu(pre_t) or pre_t       (w_0 meets the current step)
//   g_t = dy_t silu'(pre_t)      dx_t = sum_j w_j g_{t+j}      dw_j = sum_t g_t x_{t-j}      dbias = sum_t g_t
#include "kernels.h"

#include "task.h"

namespace {

using ssmseq::Convolution;
constexpr int kSpan = 8;      // blocks of channels per task, so that rows are read in long pieces
constexpr int kFlush = 64;    // steps after which sums in T are added to those in double
constexpr int kMaxWidth = 8;  // of the compiled kernel; wider ones are refused by the caller

// K is the width where it is known to the compiler, so that taps stay in registers; 0 stands for any.
template <class T, int K> struct Taps {
  int64_t width;
  Vec<T> w[K ? K : kMaxWidth], bias;
  Taps(const Convolution<T>& c, int64_t c0, int lanes) : width(K ? K : c.width), bias{} {
    for (int64_t j = 0; j < width; ++j) {
      w[j] = Vec<T>{};
      for (int i = 0; i < lanes; ++i) w[j][i] = c.weight[(c0 + i) * c.width + c.width - 1 - j];
    }
    if (c.bias) bias = load(c.bias + c0, lanes);
  }
  SSMSEQ_INLINE Vec<T> at(const Convolution<T>& c, int64_t b, int64_t t, int64_t c0, int lanes) const {
    Vec<T> sum = bias;
    over(t, [&](int64_t j) { sum = fma(w[j], load(c.x.at(b, t - j) + c0, lanes), sum); });
    return sum;
  }
  // Calls body(j) for the taps that reach back from step t no further than the start.
  template <class Body> SSMSEQ_INLINE void over(int64_t t, const Body& body) const {
    if (K && t + 1 >= K) {
      SSMSEQ_UNROLL for (int64_t j = 0; j < K; ++j) body(j);
    } else {
      for (int64_t j = 0; j < min64(width, t + 1); ++j) body(j);
    }
  }
};

template <class T, class Body> void over_blocks(const Convolution<T>& c, const Body& body) {
  constexpr int W = Lane<T>::W;
  const int64_t spans = ceil_div(c.D, int64_t(W) * kSpan);
  parallel(c.B * spans, c.threads, c.B * c.L * c.D, [&](int64_t task) {
    const int64_t b = task / spans, first = task % spans * W * kSpan, end = min64(c.D, first + W * kSpan);
    for (int64_t c0 = first; c0 < end; c0 += W) body(b, c0, static_cast<int>(min64(W, end - c0)));
  });
}

template <class T, int K> void forward_width(const Convolution<T>& c) {
  over_blocks(c, [&](int64_t b, int64_t c0, int lanes) {
    const Taps<T, K> taps(c, c0, lanes);
    for (int64_t t = 0; t < c.L; ++t) {
      const Vec<T> pre = taps.at(c, b, t, c0, lanes);
      store(c.y.at(b, t) + c0, c.silu ? pre * sigmoid<T>(pre) : pre, lanes);
    }
  });
}

template <class T, int K> void backward_width(const Convolution<T>& c) {
  constexpr int W = Lane<T>::W, most = K ? K : kMaxWidth;
  const int64_t rows = c.width + 1;  // of sums: the taps, then the bias
  Buffer<double> sums(c.B * rows * (c.D + W));
  const int64_t stride = rows * (c.D + W);
  over_blocks(c, [&](int64_t b, int64_t c0, int lanes) {
    const Taps<T, K> taps(c, c0, lanes);
    Vec<T> later[most]{}, part[most]{}, bias_part{};
    double total[most + 1][W] = {};
    auto flush = [&] {
      for (int64_t j = 0; j < taps.width; ++j) {
        add_to(total[j], part[j]);
        part[j] = Vec<T>{};
      }
      add_to(total[taps.width], bias_part);
      bias_part = Vec<T>{};
    };
    for (int64_t t = c.L - 1; t >= 0; --t) {
      Vec<T> g = load(c.dy.at(b, t) + c0, lanes);
      if (c.silu) {
        const Vec<T> pre = taps.at(c, b, t, c0, lanes), s = sigmoid<T>(pre), one = splat(T(1));
        g *= s * fma(pre, one - s, one);
      }
      SSMSEQ_UNROLL for (int j = most - 1; j > 0; --j) later[j] = later[j - 1];
      later[0] = g;
      Vec<T> dx{};
      if (K) {
        SSMSEQ_UNROLL for (int j = 0; j < K; ++j) dx = fma(taps.w[j], later[j], dx);
      } else {
        for (int64_t j = 0; j < taps.width; ++j) dx = fma(taps.w[j], later[j], dx);
      }
      store(c.dx.at(b, t) + c0, dx, lanes);
      taps.over(t, [&](int64_t j) { part[j] = fma(g, load(c.x.at(b, t - j) + c0, lanes), part[j]); });
      bias_part += g;
      if (t % kFlush == 0) flush();
    }
    for (int64_t j = 0; j < rows; ++j)
      for (int i = 0; i < lanes; ++i) sums.p[b * stride + j * (c.D + W) + c0 + i] = total[j][i];
  });
  for (int64_t d = 0; d < c.D; ++d) {
    for (int64_t j = 0; j < rows; ++j) {
      double sum = 0;
      for (int64_t b = 0; b < c.B; ++b) sum += sums.p[b * stride + j * (c.D + W) + d];
      if (j < c.width) c.dweight[d * c.width + c.width - 1 - j] = static_cast<T>(sum);
      else if (c.dbias) c.dbias[d] = static_cast<T>(sum);
    }
  }
}

template <class T> void forward(const Convolution<T>& c) {
  if (c.width == 2) return forward_width<T, 2>(c);
  if (c.width == 3) return forward_width<T, 3>(c);
  if (c.width == 4) return forward_width<T, 4>(c);
  forward_width<T, 0>(c);
}

template <class T> void backward(const Convolution<T>& c) {
  if (c.width == 2) return backward_width<T, 2>(c);
  if (c.width == 3) return backward_width<T, 3>(c);
  if (c.width == 4) return backward_width<T, 4>(c);
  backward_width<T, 0>(c);
}

}  // namespace

namespace ssmseq {
extern const ConvolutionKernels SSMSEQ_CONCAT(conv_, SSMSEQ_ISA) = {forward<float>, forward<double>, backward<float>,
                                                                    backward<double>};
}
