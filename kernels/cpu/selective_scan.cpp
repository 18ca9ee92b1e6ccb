// Forward and backward of the selective scan (Mamba, arXiv 2312.00752) for one instruction set:
//
//   dt = softplus(delta + bias)          h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t
//   y_t = C_t . h_t + skip u_t           out = y silu(z)
//
// One lane is one channel, so any state size and length runs without horizontal sums. The work is cut into tasks of
// neighbouring channel blocks of one batch element; the cut depends on the shape alone and every sum over tasks is
// taken in one order, so results are bitwise the same for any number of threads.
#include "kernels.h"

#include "task.h"

namespace {

using ssmseq::Backward;
using ssmseq::Forward;
constexpr int kMaxChunk = 32;

// The cut of the channels: `span` neighbouring blocks of W channels within one group make a task.
struct Cut {
  int64_t group_channels, blocks, span, spans, tasks;
  template <class T> Cut(const Forward<T>& f, bool backward) {
    group_channels = f.D / f.G;
    blocks = ceil_div(group_channels, Lane<T>::W);
    span = max64(1, min64(8, f.B * f.G * blocks / 64));
    if (backward) {  // each span keeps its own sums for dB and dC: hold them to a quarter of one (B, L, D) tensor
      const int64_t most = max64(1, f.D / (4 * f.N * f.G));
      span = max64(span, ceil_div(blocks, most));
    }
    spans = ceil_div(blocks, span);
    tasks = f.B * f.G * spans;
  }
};

struct Task {  // some neighbouring blocks of group g of batch element b
  int64_t b, g, span, blocks, first, first_block, end;
  int width;
  template <class T> Task(const Forward<T>& f, const Cut& cut, int64_t index) : width(Lane<T>::W) {
    span = index % cut.spans;
    g = index / cut.spans % f.G;
    b = index / cut.spans / f.G;
    blocks = min64(cut.span, cut.blocks - span * cut.span);
    first_block = g * cut.blocks + span * cut.span;
    first = g * cut.group_channels + span * cut.span * width;
    end = (g + 1) * cut.group_channels;
  }
  int64_t channel(int64_t block) const { return first + block * width; }
  int lanes(int64_t block) const { return static_cast<int>(min64(width, end - channel(block))); }
};

// A with one register per state, block after block of every group; and the same scaled for exp2.
template <class T> struct Rates {
  Buffer<Vec<T>> A, A2;
  Rates(const Forward<T>& f, const Cut& cut) : A(f.G * cut.blocks * f.N), A2(f.G * cut.blocks * f.N) {
    constexpr int W = Lane<T>::W;
    for (int64_t block = 0; block < f.G * cut.blocks; ++block) {
      const int64_t g = block / cut.blocks, at = block % cut.blocks * W, c0 = g * cut.group_channels + at;
      const int lanes = static_cast<int>(min64(W, cut.group_channels - at));
      for (int64_t n = 0; n < f.N; ++n) {
        Vec<T> a{};
        for (int i = 0; i < lanes; ++i) a[i] = f.A[(c0 + i) * f.N + n];
        A.p[block * f.N + n] = a;
        A2.p[block * f.N + n] = a * splat(kLog2e<T>);
      }
    }
  }
};

template <class T>
void load_state(Vec<T>* h, const T* state, int64_t N, int lanes) {  // from one batch element's (D, N) rows, or zero
  using V = Vec<T>;
  for (int64_t n = 0; n < N; ++n) {
    V v{};
    if (state)
      for (int i = 0; i < lanes; ++i) v[i] = state[i * N + n];
    h[n] = v;
  }
}

template <class T>
void store_state(T* state, const Vec<T>* h, int64_t N, int lanes) {
  for (int64_t n = 0; n < N; ++n)
    for (int i = 0; i < lanes; ++i) state[i * N + n] = h[n][i];
}

struct Chunk {  // some steps of one batch element and one group
  int64_t b, g, t0;
  int steps;
};

// NS states through one chunk. With `trace`, every decay and state is kept for the reverse sweep.
template <class T, int NS, bool Trace>
SSMSEQ_INLINE void sweep(const Forward<T>& f, const Chunk& at, int64_t n, const Vec<T>* A2, Vec<T>* h, const Vec<T>* dt,
                         const Vec<T>* dtu, Vec<T>* y, Vec<T>* decays, Vec<T>* states) {
  using V = Vec<T>;
  V s[NS];
  SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) s[j] = h[n + j];
  for (int k = 0; k < at.steps; ++k) {
    const T* Bt = f.Bm.at(at.b, at.t0 + k, at.g) + n;
    const T* Ct = f.Cm.at(at.b, at.t0 + k, at.g) + n;
    V acc = y[k];
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
      const V a = exp2_product(dt[k], A2[n + j]);
      s[j] = fma(a, s[j], dtu[k] * splat(Bt[j]));
      acc = fma(s[j], splat(Ct[j]), acc);
      if (Trace) {
        decays[k * NS + j] = a;
        states[k * NS + j] = s[j];
      }
    }
    y[k] = acc;
  }
  if (!Trace)
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) h[n + j] = s[j];
}

template <class T>
void sweep_all(const Forward<T>& f, const Chunk& at, const Vec<T>* A2, Vec<T>* h, const Vec<T>* dt, const Vec<T>* dtu,
               Vec<T>* y) {
  int64_t n = 0;
  for (; n + kStates <= f.N; n += kStates)
    sweep<T, kStates, false>(f, at, n, A2, h, dt, dtu, y, nullptr, nullptr);
  for (; n + 2 <= f.N; n += 2) sweep<T, 2, false>(f, at, n, A2, h, dt, dtu, y, nullptr, nullptr);
  for (; n < f.N; ++n) sweep<T, 1, false>(f, at, n, A2, h, dt, dtu, y, nullptr, nullptr);
}

template <class T>
void forward_task(const Forward<T>& f, const Cut& cut, const Rates<T>& rates, int64_t index) {
  using V = Vec<T>;
  const Task task(f, cut, index);
  const int64_t b = task.b, K = ssmseq::chunk_length(f.N), saved = f.L ? ceil_div(f.L, K) - 1 : 0;
  const V* A2 = rates.A2.p + task.first_block * f.N;
  Buffer<V> state(task.blocks * f.N);
  for (int64_t i = 0; i < task.blocks; ++i) {
    const int64_t c0 = task.channel(i);
    load_state(state.p + i * f.N, f.h0 ? f.h0 + (b * f.D + c0) * f.N : nullptr, f.N, task.lanes(i));
  }
  V dt[kMaxChunk], dtu[kMaxChunk], y[kMaxChunk];
  for (int64_t t0 = 0; t0 < f.L; t0 += K) {
    const int steps = static_cast<int>(min64(K, f.L - t0));
    for (int64_t i = 0; i < task.blocks; ++i) {
      const int64_t c0 = task.channel(i);
      const int lanes = task.lanes(i);
      V* h = state.p + i * f.N;
      if (f.checkpoint && t0) {
        T* row = f.checkpoint + ((b * saved + t0 / K - 1) * f.N) * f.D + c0;
        for (int64_t n = 0; n < f.N; ++n) store(row + n * f.D, h[n], lanes);
      }
      const V skip = f.skip ? load(f.skip + c0, lanes) : V{}, bias = f.bias ? load(f.bias + c0, lanes) : V{};
      for (int k = 0; k < steps; ++k) {
        const V u = load(f.u.at(b, t0 + k) + c0, lanes);
        V slope, raw = load(f.delta.at(b, t0 + k) + c0, lanes) + bias;
        dt[k] = f.softplus ? softplus<T>(raw, &slope) : raw;
        dtu[k] = dt[k] * u;
        y[k] = skip * u;
      }
      sweep_all(f, {b, task.g, t0, steps}, A2 + i * f.N, h, dt, dtu, y);
      for (int k = 0; k < steps; ++k) {
        V out = y[k];
        if (f.z.p) {
          const V z = load(f.z.at(b, t0 + k) + c0, lanes);
          out *= z * sigmoid<T>(z);
        }
        store(f.y.at(b, t0 + k) + c0, out, lanes);
      }
    }
  }
  if (f.hT)
    for (int64_t i = 0; i < task.blocks; ++i) {
      const int64_t c0 = task.channel(i);
      store_state(f.hT + (b * f.D + c0) * f.N, state.p + i * f.N, f.N, task.lanes(i));
    }
}

template <class T> void forward(const Forward<T>& f) {
  if (!f.B || !f.D) return;
  const Cut cut(f, false);
  const Rates<T> rates(f, cut);
  parallel(cut.tasks, f.threads, f.B * f.L * f.D * f.N, [&](int64_t i) { forward_task(f, cut, rates, i); });
}

// What one chunk of one block needs in the reverse sweep, one register per step.
template <class T> struct Tile {
  using V = Vec<T>;
  V dt[kMaxChunk], u[kMaxChunk], dtu[kMaxChunk], slope[kMaxChunk], dy[kMaxChunk];
  V y[kMaxChunk];     // C . h, from the recomputation
  V gB[kMaxChunk];    // sum over states of adjoint * B
  V gAh[kMaxChunk];   // sum over states of adjoint * decay * previous state * A
  V decays[kMaxChunk * kStates], states[kMaxChunk * kStates];
};

// NS states of one chunk: recompute decays and states, then run the adjoint from the chunk's end.
template <class T, int NS>
SSMSEQ_INLINE void reverse_sweep(const Forward<T>& f, const Chunk& at, int64_t n, const Vec<T>* A, const Vec<T>* A2,
                                 Vec<T>* h, Vec<T>* adjoint, Tile<T>& tile, Vec<T>* dB, Vec<T>* dC, double* dA) {
  using V = Vec<T>;
  constexpr int W = Lane<T>::W;
  V *decays = tile.decays, *states = tile.states;
  sweep<T, NS, true>(f, at, n, A2, h, tile.dt, tile.dtu, tile.y, decays, states);
  V lambda[NS], dAn[NS];
  SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
    lambda[j] = adjoint[n + j];
    dAn[j] = V{};
  }
  for (int k = at.steps - 1; k >= 0; --k) {
    const T* Bt = f.Bm.at(at.b, at.t0 + k, at.g) + n;
    const T* Ct = f.Cm.at(at.b, at.t0 + k, at.g) + n;
    const V* previous = k ? states + (k - 1) * NS : h + n;
    const V dy = tile.dy[k], dt = tile.dt[k], dtu = tile.dtu[k];
    V gB = tile.gB[k], gAh = tile.gAh[k];
    V* dBk = dB + k * f.N + n;
    V* dCk = dC + k * f.N + n;
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
      const V l = fma(dy, splat(Ct[j]), lambda[j]);
      dCk[j] = fma(dy, states[k * NS + j], dCk[j]);
      dBk[j] = fma(l, dtu, dBk[j]);
      gB = fma(l, splat(Bt[j]), gB);
      lambda[j] = l * decays[k * NS + j];
      const V lah = lambda[j] * previous[j];
      gAh = fma(lah, A[n + j], gAh);
      dAn[j] = fma(lah, dt, dAn[j]);
    }
    tile.gB[k] = gB;
    tile.gAh[k] = gAh;
  }
  SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
    adjoint[n + j] = lambda[j];
    add_to(dA + (n + j) * W, dAn[j]);
  }
}

template <class T> void load_tile(const Backward<T>& w, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                  Tile<T>& tile) {
  using V = Vec<T>;
  const Forward<T>& f = w.f;
  const V bias = f.bias ? load(f.bias + c0, lanes) : V{};
  for (int k = 0; k < steps; ++k) {
    tile.u[k] = load(f.u.at(b, t0 + k) + c0, lanes);
    const V raw = load(f.delta.at(b, t0 + k) + c0, lanes) + bias;
    tile.slope[k] = splat(T(1));
    tile.dt[k] = f.softplus ? softplus<T>(raw, &tile.slope[k]) : raw;
    tile.dtu[k] = tile.dt[k] * tile.u[k];
    V dy = load(w.dy.at(b, t0 + k) + c0, lanes);
    if (f.z.p) {
      const V z = load(f.z.at(b, t0 + k) + c0, lanes);
      dy *= z * sigmoid<T>(z);
    }
    tile.dy[k] = dy;
    tile.y[k] = tile.gB[k] = tile.gAh[k] = V{};
  }
}

template <class T> void store_tile(const Backward<T>& w, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                   const Tile<T>& tile, double* dskip, double* dbias) {
  using V = Vec<T>;
  const Forward<T>& f = w.f;
  const V skip = f.skip ? load(f.skip + c0, lanes) : V{};
  V skip_sum{}, bias_sum{};
  for (int k = 0; k < steps; ++k) {
    const V u = tile.u[k], dy = tile.dy[k];
    store(w.du.at(b, t0 + k) + c0, fma(tile.dt[k], tile.gB[k], dy * skip), lanes);
    const V ddelta = fma(u, tile.gB[k], tile.gAh[k]) * tile.slope[k];
    store(w.ddelta.at(b, t0 + k) + c0, ddelta, lanes);
    bias_sum += ddelta;
    skip_sum = fma(dy, u, skip_sum);
    if (f.z.p) {  // d silu / dz = s (1 + z (1 - s))
      const V z = load(f.z.at(b, t0 + k) + c0, lanes), s = sigmoid<T>(z), one = splat(T(1));
      const V out = load(w.dy.at(b, t0 + k) + c0, lanes) * fma(skip, u, tile.y[k]);
      store(w.dz.at(b, t0 + k) + c0, out * s * fma(z, one - s, one), lanes);
    }
  }
  add_to(dskip, skip_sum);  // lanes past the last channel hold zeros
  add_to(dbias, bias_sum);
}

// Partial sums that several tasks share; reduced over tasks in a fixed order afterwards.
template <class T> struct Partials {
  double *dA, *dskip, *dbias;  // (B, D, N), (B, D), (B, D)
  T *dB, *dC;                  // (spans, B, L, G, N); null when one span writes the result itself
};

template <class T>
void backward_task(const Backward<T>& w, const Cut& cut, const Rates<T>& rates, int64_t index,
                   const Partials<T>& partial) {
  using V = Vec<T>;
  constexpr int W = Lane<T>::W;
  const Forward<T>& f = w.f;
  const Task task(f, cut, index);
  const int64_t b = task.b, g = task.g, N = f.N, K = ssmseq::chunk_length(N), chunks = ceil_div(f.L, K);
  const V *A = rates.A.p + task.first_block * N, *A2 = rates.A2.p + task.first_block * N;
  Buffer<V> adjoint(task.blocks * N), entry(N);
  Buffer<V> dB(K * N), dC(K * N);
  Buffer<double> sums(task.blocks * W * (N + 2));
  for (int64_t i = 0; i < task.blocks * W * (N + 2); ++i) sums.p[i] = 0;
  for (int64_t i = 0; i < task.blocks; ++i) {
    const int64_t c0 = task.channel(i);
    load_state(adjoint.p + i * N, w.dhT ? w.dhT + (b * f.D + c0) * N : nullptr, N, task.lanes(i));
  }
  Tile<T> tile;
  for (int64_t c = chunks - 1; c >= 0; --c) {
    const int64_t t0 = c * K;
    const int steps = static_cast<int>(min64(K, f.L - t0));
    const Chunk at{b, g, t0, steps};
    for (int64_t i = 0; i < steps * N; ++i) dB.p[i] = dC.p[i] = V{};
    for (int64_t i = 0; i < task.blocks; ++i) {
      const int64_t c0 = task.channel(i);
      const int lanes = task.lanes(i);
      if (c)
        for (int64_t n = 0; n < N; ++n)
          entry.p[n] = load(f.checkpoint + ((b * (chunks - 1) + c - 1) * N + n) * f.D + c0, lanes);
      else
        load_state(entry.p, f.h0 ? f.h0 + (b * f.D + c0) * N : nullptr, N, lanes);
      load_tile(w, b, t0, steps, c0, lanes, tile);
      double* sum = sums.p + i * W * (N + 2);
      const V *Ai = A + i * N, *A2i = A2 + i * N;
      V* adj = adjoint.p + i * N;
      int64_t n = 0;
      for (; n + kStates <= N; n += kStates)
        reverse_sweep<T, kStates>(f, at, n, Ai, A2i, entry.p, adj, tile, dB.p, dC.p, sum);
      for (; n + 2 <= N; n += 2) reverse_sweep<T, 2>(f, at, n, Ai, A2i, entry.p, adj, tile, dB.p, dC.p, sum);
      for (; n < N; ++n) reverse_sweep<T, 1>(f, at, n, Ai, A2i, entry.p, adj, tile, dB.p, dC.p, sum);
      store_tile(w, b, t0, steps, c0, lanes, tile, sum + N * W, sum + (N + 1) * W);
    }
    const int64_t offset = ((task.span * f.B + b) * f.L) * f.G * N;
    for (int k = 0; k < steps; ++k) {
      T* dBk = partial.dB ? partial.dB + offset + ((t0 + k) * f.G + g) * N : w.dB.at(b, t0 + k, g);
      T* dCk = partial.dC ? partial.dC + offset + ((t0 + k) * f.G + g) * N : w.dC.at(b, t0 + k, g);
      for (int64_t n = 0; n < N; ++n) {
        dBk[n] = lane_sum(dB.p[k * N + n]);
        dCk[n] = lane_sum(dC.p[k * N + n]);
      }
    }
  }
  for (int64_t i = 0; i < task.blocks; ++i) {
    const int64_t c0 = task.channel(i);
    const int lanes = task.lanes(i);
    const double* sum = sums.p + i * W * (N + 2);
    if (w.dh0) store_state(w.dh0 + (b * f.D + c0) * N, adjoint.p + i * N, N, lanes);
    for (int l = 0; l < lanes; ++l) {
      for (int64_t n = 0; n < N; ++n) partial.dA[(b * f.D + c0 + l) * N + n] = sum[n * W + l];
      partial.dskip[b * f.D + c0 + l] = sum[N * W + l];
      partial.dbias[b * f.D + c0 + l] = sum[(N + 1) * W + l];
    }
  }
}

template <class T> void backward(const Backward<T>& w) {
  const Forward<T>& f = w.f;
  const Cut cut(f, true);
  const int64_t DN = f.D * f.N, mixers = f.B * f.L * f.G * f.N;
  Buffer<double> sums(f.B * (DN + 2 * f.D) + 1);
  Buffer<T> mixed(cut.spans > 1 ? 2 * cut.spans * mixers : 1);
  const Partials<T> partial{sums.p, sums.p + f.B * DN, sums.p + f.B * (DN + f.D), cut.spans > 1 ? mixed.p : nullptr,
                            cut.spans > 1 ? mixed.p + cut.spans * mixers : nullptr};
  const Rates<T> rates(f, cut);
  parallel(cut.tasks, f.threads, f.B * f.L * f.D * f.N, [&](int64_t i) { backward_task(w, cut, rates, i, partial); });
  if (w.dA) reduce(w.dA, partial.dA, DN, f.B, DN);
  if (w.dskip) reduce(w.dskip, partial.dskip, f.D, f.B, f.D);
  if (w.dbias) reduce(w.dbias, partial.dbias, f.D, f.B, f.D);
  if (cut.spans > 1)
    parallel(f.B * f.L, f.threads, 2 * cut.spans * mixers, [&](int64_t i) {
      const int64_t GN = f.G * f.N;
      reduce(w.dB.at(i / f.L, i % f.L, 0), partial.dB + i * GN, GN, cut.spans, mixers);
      reduce(w.dC.at(i / f.L, i % f.L, 0), partial.dC + i * GN, GN, cut.spans, mixers);
    });
}

}  // namespace

namespace ssmseq {
extern const ScanKernels SSMSEQ_CONCAT(scan_, SSMSEQ_ISA) = {forward<float>, forward<double>, backward<float>,
                                                             backward<double>};
}
