// Backward of the selective scan. With l_t the adjoint of h_t and g the adjoint of y before the gate:
//
//   l_t = C_t g_t + exp(dt_{t+1} A) l_{t+1}
//   dB_t = sum_d l_t dt_t u_t            dC_t = sum_d h_t g_t            du_t = skip g_t + dt_t sum_n l_t B_t
//   ddt_t = sum_n l_t (B_t u_t + A exp(dt_t A) h_{t-1})                  dA = sum_t l_t dt_t exp(dt_t A) h_{t-1}
//
// Decays and states are recomputed chunk by chunk from the states that the forward pass kept.
#pragma once
#include "scan.h"

namespace {

template <class T> struct BackwardJob {
  using V = Vec<T>;
  const Scan<T>& s;
  const Plan<T> plan;
  const Rates<T> rates;
  Links<T> links;        // adjoints handed from part to part, where time is cut
  const int64_t window;  // chunks worked on between two reductions of dB and dC, which bounds their partial sums
  const int64_t rows;    // of sums for one block: dA, then constant dB and dC, then D and the bias
  int64_t chunk1;        // the window in work ends before this chunk
  Buffer<V> adjoint;     // (B, blocks, N), between windows where there are several
  Buffer<double> sums;   // (sets * parts, blocks, rows, W)
  Buffer<T> mixed;       // (2, spans, B, window steps, G, N)
  explicit BackwardJob(const Scan<T>& scan)
      : s(scan), plan(scan), rates(scan, plan), links(scan, plan), window(window_length(scan, plan)),
        rows(scan.N * (1 + scan.Bm.constant + scan.Cm.constant) + 2), chunk1(plan.chunks),
        adjoint(window >= plan.chunks ? 1 : s.B * plan.all_blocks(s) * s.N), sums(sums_size()),
        mixed(2 * plan.spans * mixed_size() + 1) {}
  static int64_t window_length(const Scan<T>& s, const Plan<T>& plan) {
    if (plan.parts > 1) return plan.chunks;
    // As much as a sixteenth of one (B, L, D) tensor, and enough to keep threads busy.
    const int64_t by_memory = plan.chunks * s.D / (32 * plan.spans * s.G * s.N);
    const int64_t by_work = ceil_div(int64_t(4) << 20, s.B * s.D * s.N * kChunk);
    return max64(1, max64(by_memory, by_work));
  }
  int64_t chunk0() const { return max64(0, chunk1 - window); }
  int64_t sums_size() const { return plan.batches * plan.parts * plan.all_blocks(s) * rows * Lane<T>::W; }
  int64_t mixed_size() const { return s.B * min64(window * kChunk, s.L) * s.G * s.N; }
  T* mixed_at(bool of_C, int64_t span, int64_t b, int64_t t, int64_t g) const {
    const int64_t steps = min64(window * kChunk, s.L);
    return mixed.p + (of_C * plan.spans + span) * mixed_size() + ((b * steps + t - chunk0() * kChunk) * s.G + g) * s.N;
  }
};

// What one chunk of one block needs in the reverse sweep, one register per step.
template <class T> struct Tile {
  using V = Vec<T>;
  V dt[kChunk], u[kChunk], dtu[kChunk], slope[kChunk], dy[kChunk];
  V y[kChunk];    // C . h, from the recomputation
  V gB[kChunk];   // sum over states of adjoint * B
  V gAh[kChunk];  // sum over states of adjoint * decay * previous state * A log2(e)
  V z[kChunk], gate[kChunk], dout[kChunk];
  V decays[kChunk * 4], states[kChunk * 4];
  V decay[kChunk];  // where all states share it; zero where a sequence starts
};

// What the blocks of one task add to while in one chunk.
template <class T> struct Accumulators {
  Buffer<Vec<T>> dB, dC;  // in the order of Mixer::lanes, over blocks; of a constant: over the steps of one block
  Buffer<T> sums;         // over lanes; kChunk is a multiple of any W
  explicit Accumulators(const Scan<T>& s) : dB(kChunk * s.N), dC(kChunk * s.N), sums(kChunk * s.N) {}
};

// NS states of one chunk: recompute decays and states, then run the adjoint from the chunk's end.
template <class T, int NS, bool ByLane, bool Shared>
SSMSEQ_INLINE void reverse_sweep(const Chunk<T>& c, int64_t n, const Vec<T>* A2, Vec<T>* h,
                                 Vec<T>* adjoint, Tile<T>& tile, const Accumulators<T>& acc, double* dA,
                                 const Ahead& outputs, Ahead inputs) {
  using V = Vec<T>;
  constexpr int W = Lane<T>::W;
  V *decays = tile.decays, *states = tile.states;
  sweep<T, NS, ByLane, Shared, Sweep::trace>(c, n, Shared ? tile.decay : A2, h, tile.dt, tile.dtu, tile.y, decays,
                                             states, outputs);
  V lambda[NS], dAn[NS];
  SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
    lambda[j] = adjoint[n + j];
    dAn[j] = V{};
  }
  for (int k = c.steps - 1; k >= 0; --k) {
    const Entries<T, NS, ByLane> B(c.B, n, k), C(c.C, n, k);
    inputs.fetch(c.steps - 1 - k);
    const V* previous = k ? states + (k - 1) * NS : h + n;
    const V dy = tile.dy[k], dt = tile.dt[k], dtu = tile.dtu[k];
    V gB = tile.gB[k], gAh = tile.gAh[k];
    V* dB = acc.dB.p + (ByLane ? n * c.B.steps + k * NS * c.B.moves() : n * c.steps + k * NS);
    V* dC = acc.dC.p + (ByLane ? n * c.C.steps + k * NS * c.C.moves() : n * c.steps + k * NS);
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
      const V l = fma(dy, C[j], lambda[j]);
      dC[j] = fma(dy, states[k * NS + j], dC[j]);
      dB[j] = fma(l, dtu, dB[j]);
      gB = fma(l, B[j], gB);
      lambda[j] = l * (Shared ? tile.decay[k] : decays[k * NS + j]);
      const V lah = lambda[j] * previous[j];
      gAh = fma(lah, A2[n + j], gAh);
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

template <class T>
void load_block(const Scan<T>& s, int64_t b, int64_t t0, int steps, int64_t c0, int lanes, Tile<T>& tile) {
  using V = Vec<T>;
  load_steps<T>(s, b, t0, steps, c0, lanes, tile.u, tile.dt, tile.dtu, tile.slope);
  load_tile<T>(s.dy, b, t0, steps, c0, lanes, tile.dout);
  if (s.z.p) {
    load_tile<T>(s.z, b, t0, steps, c0, lanes, tile.z);
    for (int k = 0; k < steps; ++k) {
      tile.gate[k] = sigmoid<T>(tile.z[k]);
      tile.dy[k] = tile.dout[k] * tile.z[k] * tile.gate[k];
    }
  } else {
    for (int k = 0; k < steps; ++k) tile.dy[k] = tile.dout[k];
  }
  for (int k = 0; k < steps; ++k) tile.y[k] = tile.gB[k] = tile.gAh[k] = V{};
}

template <class T> void store_block(const Scan<T>& s, int64_t b, int64_t t0, int steps, int64_t c0, int lanes,
                                    Tile<T>& tile, double* dskip, double* dbias) {
  using V = Vec<T>;
  const V skip = s.skip ? load(s.skip + c0, lanes) : V{}, one = splat(T(1));
  const V ln2 = splat(T(0.693147180559945309417L));
  V skip_sum{}, bias_sum{};
  if (s.z.p) {  // d silu / dz = gate (1 + z (1 - gate))
    for (int k = 0; k < steps; ++k) {
      const V out = tile.dout[k] * fma(skip, tile.u[k], tile.y[k]), gate = tile.gate[k];
      tile.z[k] = out * gate * fma(tile.z[k], one - gate, one);
    }
    store_tile<T>(s.dz, b, t0, steps, c0, lanes, tile.z);
  }
  for (int k = 0; k < steps; ++k) {
    const V u = tile.u[k], dy = tile.dy[k], ddelta = fma(u, tile.gB[k], tile.gAh[k] * ln2) * tile.slope[k];
    tile.u[k] = fma(tile.dt[k], tile.gB[k], dy * skip);
    tile.slope[k] = ddelta;
    bias_sum += ddelta;
    skip_sum = fma(dy, u, skip_sum);
  }
  store_tile<T>(s.du, b, t0, steps, c0, lanes, tile.u);
  store_tile<T>(s.ddelta, b, t0, steps, c0, lanes, tile.slope);
  add_to(dskip, skip_sum);  // lanes past the last channel hold zeros
  add_to(dbias, bias_sum);
}

// Sums over lanes of one chunk's dB or dC, to one row of N numbers for each step.
template <class T> void sum_lanes(Buffer<Vec<T>>& vectors, T* sums, int steps, int64_t N, T* out, int64_t stride) {
  constexpr int W = Lane<T>::W;
  const int64_t count = steps * N;
  for (int64_t i = 0; i < count; i += W) {
    Vec<T> m[W];
    SSMSEQ_UNROLL for (int j = 0; j < W; ++j) m[j] = vectors.p[i + j];  // past `count` lies room that is not used
    store(sums + i, lane_sums<T>(m));
  }
  over_states(N, [&](auto states, int64_t n) {
    for (int k = 0; k < steps; ++k)
      std::memcpy(out + k * stride + n, sums + n * steps + k * states, states * sizeof(T));
  });
}

template <class T> void clear(Buffer<Vec<T>>& buffer, int64_t count) {
  for (int64_t i = 0; i < count; ++i) buffer.p[i] = Vec<T>{};
}

template <class T> void backward_block(BackwardJob<T>& job, Chunk<T>& chunk, Accumulators<T>& acc, Tile<T>& tile,
                                       int64_t block, Vec<T>* h, Vec<T>* adjoint, double* sums, const Fetch& outputs,
                                       const Fetch& inputs) {
  const Scan<T>& s = job.s;
  const Vec<T>* A2 = job.rates.A2.p + block * s.N;
  shared_decays(s, A2[0], tile.dt, chunk.steps, tile.decay);
  for (int k = 0; k < chunk.steps; ++k)
    if (chunk.reset(k)) tile.decay[k] = Vec<T>{};
  with_kind(chunk, one_rate(s), [&](auto by_lane, auto shared) {
    over_states(s.N, [&](auto count, int64_t n) {
      reverse_sweep<T, count, by_lane, shared>(chunk, n, A2, h, adjoint, tile, acc, sums, outputs.at(n), inputs.at(n));
    });
  });
  double* next = sums + s.N * Lane<T>::W;
  for (auto* part : {s.Bm.constant ? &acc.dB : nullptr, s.Cm.constant ? &acc.dC : nullptr}) {
    if (!part) continue;
    for (int64_t n = 0; n < s.N; ++n) add_to(next + n * Lane<T>::W, part->p[n]);
    clear<T>(*part, s.N);
    next += s.N * Lane<T>::W;
  }
}

template <class T> void backward_chunk(BackwardJob<T>& job, const Task<T>& task, Chunk<T>& chunk, Accumulators<T>& acc,
                                       Tile<T>& tile, int64_t b, int64_t c, Vec<T>* adjoint, double* sums) {
  using V = Vec<T>;
  const Scan<T>& s = job.s;
  const int64_t t0 = c * kChunk, N = s.N, row = job.rows * Lane<T>::W;
  Buffer<V> entry(N);
  chunk.read(s, b, t0, task.g);
  clear<T>(acc.dB, s.Bm.constant ? N : chunk.steps * N);
  clear<T>(acc.dC, s.Cm.constant ? N : chunk.steps * N);
  const Rows kept{reinterpret_cast<char*>(s.checkpoint), Kind::native, (job.plan.chunks - 1) * N * s.D, s.D, 1};
  for (int64_t i = 0; i < task.blocks; ++i) {
    const int64_t c0 = task.channel(i);
    const int lanes = task.lanes(i);
    Fetch outputs, inputs;
    int stream = 0;
    for (const Rows* r : {&s.du, &s.ddelta, &s.dz})
      if (r->p) outputs.streams[stream++] = Ahead(T(), *r, b, t0, c0);
    stream = 0;
    const bool last = i + 1 == task.blocks;
    for (const Rows* r : {&s.u, &s.delta, &s.dy, &s.z})
      if (r->p) inputs.streams[stream++] = Ahead(T(), *r, b, last ? max64(0, t0 - kChunk) : t0, task.channel(last ? 0 : i + 1));
    if (c) load_tile<T>(kept, b, (c - 1) * N, static_cast<int>(N), c0, lanes, entry.p);
    else load_state<T>(s.h0, b, c0, lanes, N, entry.p);
    load_block(s, b, t0, chunk.steps, c0, lanes, tile);
    chunk.read_block(c0, lanes);
    double* sum = sums + i * row;
    backward_block(job, chunk, acc, tile, task.first_block + i, entry.p, adjoint + i * N, sum, outputs, inputs);
    store_block(s, b, t0, chunk.steps, c0, lanes, tile, sum + row - 2 * Lane<T>::W, sum + row - Lane<T>::W);
  }
  if (!s.Bm.constant)
    sum_lanes<T>(acc.dB, acc.sums.p, chunk.steps, N, job.mixed_at(false, task.span, b, t0, task.g), s.G * N);
  if (!s.Cm.constant)
    sum_lanes<T>(acc.dC, acc.sums.p, chunk.steps, N, job.mixed_at(true, task.span, b, t0, task.g), s.G * N);
}

template <class T> void backward_task(BackwardJob<T>& job, int64_t index) {
  const Scan<T>& s = job.s;
  const Plan<T>& plan = job.plan;
  const Task<T> task(s, plan, index);
  const bool cut = plan.parts > 1;
  const int64_t N = s.N, from = cut ? task.chunk0 : job.chunk0(), to = cut ? task.chunk1 : job.chunk1;
  double* sums = job.sums.p + ((task.set * plan.parts + task.part) * plan.all_blocks(s) + task.first_block) * job.rows *
                                  Lane<T>::W;
  Chunk<T> chunk(s);
  Accumulators<T> acc(s);
  Tile<T> tile;
  Buffer<Vec<T>> own(task.blocks * N);
  if (cut || to == plan.chunks) std::memset(sums, 0, task.blocks * job.rows * Lane<T>::W * sizeof(double));
  for (int64_t b = task.b0; b < task.b1; ++b) {
    Vec<T>* adjoint = own.p;
    if (cut) adjoint = job.links.state.p + job.links.at(s, plan, b, task.part, task.first_block) * N;
    else if (job.window < plan.chunks) adjoint = job.adjoint.p + (b * plan.all_blocks(s) + task.first_block) * N;
    for (int64_t i = 0; i < task.blocks && !cut && to == plan.chunks; ++i)
      load_state<T>(s.dhT, b, task.channel(i), task.lanes(i), N, adjoint + i * N);
    for (int64_t c = to - 1; c >= from; --c) backward_chunk(job, task, chunk, acc, tile, b, c, adjoint, sums);
    for (int64_t i = 0; i < task.blocks && s.dh0.p && from == 0; ++i)
      store_tile<T>(s.dh0, b, 0, static_cast<int>(N), task.channel(i), task.lanes(i), adjoint + i * N);
  }
}

// The adjoint alone, through one chunk.
template <class T, int NS, bool ByLane, bool Shared>
SSMSEQ_INLINE void carry_sweep(const Chunk<T>& c, int64_t n, const Vec<T>* A2, Vec<T>* adjoint, const Tile<T>& tile) {
  for (int k = c.steps - 1; k >= 0; --k) {
    const Entries<T, NS, ByLane> C(c.C, n, k);
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
      const Vec<T> a = Shared ? tile.decay[k] : exp2_product(tile.dt[k], A2[n + j]);
      adjoint[n + j] = c.reset(k) ? Vec<T>{} : a * fma(tile.dy[k], C[j], adjoint[n + j]);
    }
  }
}

// The adjoint that a part hands to the part before it when it is handed none.
template <class T> void carry_back_task(BackwardJob<T>& job, int64_t index) {
  using V = Vec<T>;
  const Scan<T>& s = job.s;
  const Task<T> task(s, job.plan, index);
  Chunk<T> chunk(s);
  Tile<T> tile;
  for (int64_t b = task.b0; b < task.b1; ++b) {
    const int64_t link = job.links.at(s, job.plan, b, task.part, task.first_block);
    V *adjoint = job.links.state.p + link * s.N, *total = job.links.total.p + link;
    for (int64_t i = 0; i < task.blocks * s.N; ++i) adjoint[i] = V{};
    for (int64_t i = 0; i < task.blocks; ++i) total[i] = V{};
    for (int64_t c = task.chunk1 - 1; c >= task.chunk0; --c) {
      chunk.read(s, b, c * kChunk, task.g);
      for (int64_t i = 0; i < task.blocks; ++i) {
        const V* A2 = job.rates.A2.p + (task.first_block + i) * s.N;
        load_block(s, b, c * kChunk, chunk.steps, task.channel(i), task.lanes(i), tile);
        chunk.read_block(task.channel(i), task.lanes(i));
        shared_decays(s, A2[0], tile.dt, chunk.steps, tile.decay);
        with_kind(chunk, one_rate(s), [&](auto by_lane, auto shared) {
          over_states(s.N, [&](auto count, int64_t n) {
            carry_sweep<T, count, by_lane, shared>(chunk, n, A2, adjoint + i * s.N, tile);
          });
        });
        for (int k = 0; k < chunk.steps; ++k) total[i] += tile.dt[k];
      }
    }
  }
}

// Sums over spans into one step's row of dB or dC.
template <class T> void reduce_mixed(BackwardJob<T>& job, int64_t index) {
  const Scan<T>& s = job.s;
  const int64_t t0 = job.chunk0() * kChunk, steps = min64(s.L, job.chunk1 * kChunk) - t0;
  const int64_t b = index / steps, t = t0 + index % steps, GN = s.G * s.N;
  for (const bool of_C : {false, true}) {
    const Mixers& out = of_C ? s.dC : s.dB;
    if (out.constant || !out.p) continue;
    T* sum = job.mixed_at(of_C, 0, b, t, 0);
    for (int64_t span = 1; span < job.plan.spans; ++span) {
      const T* part = job.mixed_at(of_C, span, b, t, 0);
      for (int64_t i = 0; i < GN; ++i) sum[i] += part[i];
    }
    char* row = out.at<T>(b, t, 0);
    if (out.kind == Kind::native) std::memcpy(row, sum, GN * sizeof(T));
    else for (int64_t i = 0; i < GN; ++i) put<T>(out.kind, row + 2 * i, sum[i]);
  }
}

// Sums over sets of batch elements and parts of one block, to (D, N) and (D,) results.
template <class T> void reduce_sums(BackwardJob<T>& job, int64_t block) {
  constexpr int W = Lane<T>::W;
  const Scan<T>& s = job.s;
  const Plan<T>& plan = job.plan;
  const int64_t size = job.rows * W, at_channel = block % plan.blocks * W, N = s.N;
  const int64_t c0 = block / plan.blocks * plan.group_channels + at_channel;
  const int64_t lanes = min64(W, plan.group_channels - at_channel);
  double* sum = job.sums.p + block * size;
  for (int64_t set = 1; set < plan.batches * plan.parts; ++set) {
    const double* part = job.sums.p + (set * plan.all_blocks(s) + block) * size;
    for (int64_t i = 0; i < size; ++i) sum[i] += part[i];
  }
  auto write = [&](T* out, const double* from, int64_t count) {
    for (int64_t i = 0; i < lanes && out; ++i)
      for (int64_t n = 0; n < count; ++n) out[(c0 + i) * count + n] = static_cast<T>(from[n * W + i]);
  };
  const double *dB = sum + N * W, *dC = dB + (s.Bm.constant ? N * W : 0);
  write(s.dA, sum, N);
  if (s.Bm.constant) write(reinterpret_cast<T*>(s.dB.p), dB, N);
  if (s.Cm.constant) write(reinterpret_cast<T*>(s.dC.p), dC, N);
  write(s.dskip, sum + size - 2 * W, 1);
  write(s.dbias, sum + size - W, 1);
}

template <class T> void backward(const Scan<T>* scans, int count, int threads) {
  Jobs<BackwardJob<T>> jobs;
  int64_t work = 0;
  for (int i = 0; i < count; ++i) {
    jobs.add(scans[i]);
    work += scans[i].B * scans[i].L * scans[i].D * scans[i].N;
  }
  jobs.run(threads, work, [](auto& job) { return job.plan.parts > 1 ? job.plan.tasks : 0; }, carry_back_task<T>);
  jobs.each([](auto& job) {
    if (job.plan.parts > 1) job.links.combine(job.s, job.plan, job.rates, job.s.dhT, true);
  });
  for (bool more = true; more;) {
    more = false;
    jobs.run(threads, work, [](auto& job) { return job.chunk1 ? job.plan.tasks : 0; }, backward_task<T>);
    jobs.run(threads, work / 16,
             [](auto& job) { return job.s.B * (min64(job.s.L, job.chunk1 * kChunk) - job.chunk0() * kChunk); },
             reduce_mixed<T>);
    jobs.each([&](auto& job) {
      job.chunk1 = job.chunk0();
      more |= job.chunk1 > 0;
    });
  }
  jobs.run(threads, work / 16, [](auto& job) { return job.plan.all_blocks(job.s); }, reduce_sums<T>);
}

}  // namespace
