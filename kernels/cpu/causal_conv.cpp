// Depthwise causal convolution with an optional SiLU, forward, backward and single step, for one instruction set. One
// lane is one channel, so a tap is one fused multiply-add.
//
//   pre_t = bias + sum_j w_j x_{t-j}      y_t = silu(pre_t) or pre_t       (w_0 meets the current step)
//   g_t = dy_t silu'(pre_t)      dx_t = sum_j w_j g_{t+j}      dw_j = sum_t g_t x_{t-j}      dbias = sum_t g_t
//
// With packed sequences, pairs (t, t - j) of different sequences are left out of every sum.
#include "tile.h"

namespace {

using ssmseq::Convolution;
using ssmseq::kMaxWidth;
constexpr int kSpan = 8;                 // blocks of channels per task, so that rows are read in long pieces
constexpr int kPast = kMaxWidth - 1;     // steps before a chunk that its taps may reach

// K is the width where it is known to the compiler, so that taps stay in registers; 0 stands for any.
template <class T, int K> struct Taps {
  int width;
  Vec<T> w[K ? K : kMaxWidth], bias{};
  Taps(const Convolution<T>& c, int64_t c0, int lanes) : width(K ? K : static_cast<int>(c.width)) {
    for (int j = 0; j < width; ++j) {
      w[j] = Vec<T>{};
      for (int i = 0; i < lanes; ++i) w[j][i] = c.weight[(c0 + i) * c.width + c.width - 1 - j];
    }
    if (c.bias) bias = load(c.bias + c0, lanes);
  }
  // Calls body(j) for the taps that reach back no further than `reach`.
  template <class Body> SSMSEQ_INLINE void over(int reach, const Body& body) const {
    if (K && reach >= K - 1) {
      SSMSEQ_UNROLL for (int j = 0; j < K; ++j) body(j);
    } else {
      for (int j = 0; j < width && j <= reach; ++j) body(j);
    }
  }
};

// Some steps of one block, with the inputs before them.
template <class T> struct Span {
  int steps;
  int reach[kChunk + kPast];   // how far taps may reach back from each step, and from the steps after the chunk
  Vec<T> x[kPast + kChunk];    // x[kPast + k] belongs to step k
  Vec<T> g[kChunk + kPast];    // adjoints before the activation, of the chunk and of the steps after it
  void read(const Convolution<T>& c, int64_t b, int64_t t0, int64_t c0, int lanes) {
    steps = static_cast<int>(min64(kChunk, c.L - t0));
    const int past = static_cast<int>(c.width) - 1;
    if (t0) load_tile<T>(c.x, b, t0 - past, past, c0, lanes, x + kPast - past);
    else if (c.before.p) load_tile<T>(c.before, b, 0, past, c0, lanes, x + kPast - past);
    else
      for (int i = 0; i < past; ++i) x[kPast - 1 - i] = Vec<T>{};
    load_tile<T>(c.x, b, t0, steps, c0, lanes, x + kPast);
    for (int k = 0; k < steps; ++k) {
      reach[k] = past;
      for (int j = past - 1; j >= 0 && c.seq.p; --j)
        if (t0 + k - j > 0 && c.seq.starts(b, t0 + k - j)) reach[k] = j;
    }
  }
  template <int K> SSMSEQ_INLINE Vec<T> pre(const Taps<T, K>& taps, int k) const {
    Vec<T> sum = taps.bias;
    taps.over(reach[k], [&](int j) { sum = fma(taps.w[j], x[kPast + k - j], sum); });
    return sum;
  }
  // The adjoint of the input at step k, which may lie before the chunk.
  template <int K> SSMSEQ_INLINE Vec<T> dx(const Taps<T, K>& taps, int k, bool whole) const {
    Vec<T> sum{};
    taps.over(taps.width - 1, [&](int j) {
      if (whole || (k + j >= 0 && j <= reach[k + j])) sum = fma(taps.w[j], g[k + j], sum);
    });
    return sum;
  }
};

template <class T, class Body> void over_blocks(const Convolution<T>& c, int threads, const Body& body) {
  constexpr int W = Lane<T>::W;
  const int64_t spans = ceil_div(c.D, int64_t(W) * kSpan);
  parallel(c.B * spans, threads, c.B * c.L * c.D, [&](int64_t task) {
    const int64_t b = task / spans, first = task % spans * W * kSpan, end = min64(c.D, first + W * kSpan);
    for (int64_t c0 = first; c0 < end; c0 += W) body(b, c0, static_cast<int>(min64(W, end - c0)));
  });
}

template <class T, int K> void forward_width(const Convolution<T>& c, int threads) {
  over_blocks(c, threads, [&](int64_t b, int64_t c0, int lanes) {
    const Taps<T, K> taps(c, c0, lanes);
    Span<T> span;
    Vec<T> y[kChunk];
    for (int64_t t0 = 0; t0 < c.L; t0 += kChunk) {
      span.read(c, b, t0, c0, lanes);
      Ahead next(T(), c.x, b, min64(t0 + kChunk, c.L - 1), c0), out(T(), c.y, b, t0, c0);
      for (int k = 0; k < span.steps; ++k) {
        next.fetch(k);
        out.fetch(k);
        const Vec<T> pre = span.pre(taps, k);
        y[k] = c.silu ? pre * sigmoid<T>(pre) : pre;
      }
      store_tile<T>(c.y, b, t0, span.steps, c0, lanes, y);
    }
  });
}

// Adjoints before the activation, and what they give to the weights.
template <class T, int K>
SSMSEQ_INLINE void adjoints(const Convolution<T>& c, const Taps<T, K>& taps, Span<T>& span, double* total,
                            Ahead next_x, Ahead next_dy) {
  Vec<T> part[K ? K : kMaxWidth]{}, bias_part{};
  for (int k = 0; k < span.steps; ++k) {
    next_x.fetch(k);
    next_dy.fetch(k);
    Vec<T> g = span.g[k];
    if (c.silu) {
      const Vec<T> pre = span.pre(taps, k), s = sigmoid<T>(pre), one = splat(T(1));
      g *= s * fma(pre, one - s, one);
    }
    span.g[k] = g;
    taps.over(span.reach[k], [&](int j) { part[j] = fma(g, span.x[kPast + k - j], part[j]); });
    bias_part += g;
  }
  for (int j = 0; j < taps.width; ++j) add_to(total + j * Lane<T>::W, part[j]);
  add_to(total + taps.width * Lane<T>::W, bias_part);
}

template <class T, int K>
void backward_block(const Convolution<T>& c, int64_t b, int64_t c0, int lanes, double* total) {
  const Taps<T, K> taps(c, c0, lanes);
  const int past = taps.width - 1;
  Span<T> span;
  Vec<T> dx[kChunk];
  int after_reach[kPast];
  Vec<T> after[kPast];
  for (int i = 0; i < past; ++i) {  // nothing comes after the last step
    after_reach[i] = past;
    after[i] = Vec<T>{};
  }
  for (int64_t chunk = ceil_div(c.L, kChunk) - 1; chunk >= 0; --chunk) {
    const int64_t t0 = chunk * kChunk;
    span.read(c, b, t0, c0, lanes);
    load_tile<T>(c.dy, b, t0, span.steps, c0, lanes, span.g);
    const int64_t next = max64(0, t0 - kChunk);
    adjoints(c, taps, span, total, Ahead(T(), c.x, b, next, c0), Ahead(T(), c.dy, b, next, c0));
    for (int i = 0; i < past; ++i) {
      span.g[span.steps + i] = after[i];
      span.reach[span.steps + i] = after_reach[i];
    }
    Ahead out(T(), c.dx, b, next, c0);
    for (int k = 0; k < span.steps; ++k) {
      out.fetch(k);
      dx[k] = span.dx(taps, k, !c.seq.p);
    }
    store_tile<T>(c.dx, b, t0, span.steps, c0, lanes, dx);
    if (!t0 && c.dbefore.p) {
      for (int k = 0; k < past; ++k) dx[k] = span.dx(taps, k - past, false);
      store_tile<T>(c.dbefore, b, 0, past, c0, lanes, dx);
    }
    for (int i = 0; i < past; ++i) {
      after[i] = span.g[i];
      after_reach[i] = span.reach[i];
    }
  }
}

template <class T, int K> void backward_width(const Convolution<T>& c, int threads) {
  constexpr int W = Lane<T>::W;
  const int64_t rows = c.width + 1, stride = rows * (c.D + W);  // of sums: the taps, then the bias
  Buffer<double> sums(c.B * stride);
  over_blocks(c, threads, [&](int64_t b, int64_t c0, int lanes) {
    Buffer<double> total(rows * W);
    for (int64_t i = 0; i < rows * W; ++i) total.p[i] = 0;
    backward_block<T, K>(c, b, c0, lanes, total.p);
    for (int64_t j = 0; j < rows; ++j)
      for (int i = 0; i < lanes; ++i) sums.p[b * stride + j * (c.D + W) + c0 + i] = total.p[j * W + i];
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

// One step: `before` holds the past inputs and takes the new one in.
template <class T, int K> void update_block(const Convolution<T>& c, int64_t b, int64_t c0, int lanes) {
  const Taps<T, K> taps(c, c0, lanes);
  Span<T> span;
  span.read(c, b, 0, c0, lanes);
  Vec<T> y = span.pre(taps, 0);
  if (c.silu) y *= sigmoid<T>(y);
  store_tile<T>(c.y, b, 0, 1, c0, lanes, &y);
  store_tile<T>(c.before, b, 0, taps.width - 1, c0, lanes, span.x + kPast + 2 - taps.width);
}

template <class T> void update(const Convolution<T>& c, int threads) {
  over_blocks(c, threads, [&](int64_t b, int64_t c0, int lanes) {
    if (c.width == 4) update_block<T, 4>(c, b, c0, lanes);
    else update_block<T, 0>(c, b, c0, lanes);
  });
}

template <class T> void forward(const Convolution<T>& c, int threads) {
  if (c.width == 2) return forward_width<T, 2>(c, threads);
  if (c.width == 3) return forward_width<T, 3>(c, threads);
  if (c.width == 4) return forward_width<T, 4>(c, threads);
  forward_width<T, 0>(c, threads);
}

template <class T> void backward(const Convolution<T>& c, int threads) {
  if (c.width == 2) return backward_width<T, 2>(c, threads);
  if (c.width == 3) return backward_width<T, 3>(c, threads);
  if (c.width == 4) return backward_width<T, 4>(c, threads);
  backward_width<T, 0>(c, threads);
}

}  // namespace

namespace ssmseq {
extern const ConvolutionKernels SSMSEQ_CONCAT(conv_, SSMSEQ_ISA) = {
    forward<float>, forward<double>, backward<float>, backward<double>, update<float>, update<double>};
}
