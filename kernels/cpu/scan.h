// What forward and backward of the selective scan share: the cut of the work into tasks, the rates A in registers'
// order, B and C of one chunk, and the sweep of some states through one chunk.
//
// One lane is one channel, so any state size and length runs without horizontal sums. A task is some neighbouring
// blocks of channels of some batch elements, and where those are few, one part of the time axis. The cut depends on the
// shape alone and every sum over tasks is taken in one order, so results are bitwise the same for any number of threads.
#pragma once
#include "tile.h"

namespace {

using ssmseq::Scan;
constexpr int64_t kFewTasks = 8;        // below this the time axis is cut as well,
constexpr int64_t kShortestPart = 2048;  // into parts of at least so many steps

template <class T> struct Plan {
  int64_t group_channels, blocks;  // per group
  int64_t span, spans;             // blocks per task, tasks per group
  int64_t batch, batches;          // batch elements per task, and such sets
  int64_t chunks, part, parts;     // of time; `part` in chunks
  int64_t tasks;
  explicit Plan(const Scan<T>& s) {
    group_channels = s.D / s.G;
    blocks = ceil_div(group_channels, Lane<T>::W);
    const bool cut_time = s.B * s.G * blocks < kFewTasks && s.L >= 2 * kShortestPart;
    span = cut_time ? blocks : max64(1, min64(8, s.B * s.G * blocks / 16));
    spans = ceil_div(blocks, span);
    // Each set of batch elements keeps its own sums for A, D and the bias: share them where sequences are short.
    batch = max64(1, min64(1024 / max64(s.L, 1), s.B * s.G * spans / 16));
    batches = ceil_div(s.B, batch);
    chunks = ceil_div(s.L, kChunk);
    part = cut_time ? ceil_div(chunks, min64(ceil_div(2 * kFewTasks, s.B * s.G), s.L / kShortestPart)) : chunks;
    parts = cut_time ? ceil_div(chunks, part) : 1;
    tasks = batches * s.G * spans * parts;
  }
  int64_t all_blocks(const Scan<T>& s) const { return s.G * blocks; }
};

template <class T> struct Task {
  int64_t g, b0, b1, first_block, blocks, first_channel, end, span, set, part, chunk0, chunk1;
  Task(const Scan<T>& s, const Plan<T>& plan, int64_t index) {
    part = index % plan.parts;
    index /= plan.parts;
    span = index % plan.spans;
    g = index / plan.spans % s.G;
    set = index / plan.spans / s.G;
    b0 = set * plan.batch;
    b1 = min64(s.B, b0 + plan.batch);
    blocks = min64(plan.span, plan.blocks - span * plan.span);
    first_block = g * plan.blocks + span * plan.span;
    first_channel = g * plan.group_channels + span * plan.span * Lane<T>::W;
    end = (g + 1) * plan.group_channels;
    chunk0 = part * plan.part;
    chunk1 = min64(plan.chunks, chunk0 + plan.part);
  }
  int64_t channel(int64_t block) const { return first_channel + block * Lane<T>::W; }
  int lanes(int64_t block) const { return static_cast<int>(min64(Lane<T>::W, end - channel(block))); }
};

// A log2(e), since decays are powers of two; one register per state, block after block of every group.
template <class T> struct Rates {
  Buffer<Vec<T>> A2;
  Rates(const Scan<T>& s, const Plan<T>& plan) : A2(s.G * plan.blocks * s.N) {
    constexpr int W = Lane<T>::W;
    for (int64_t block = 0; block < s.G * plan.blocks; ++block) {
      const int64_t g = block / plan.blocks, at = block % plan.blocks * W;
      const int lanes = static_cast<int>(min64(W, plan.group_channels - at));
      Vec<T>* out = A2.p + block * s.N;
      load_tile<T>(s.A, 0, 0, static_cast<int>(s.N), g * plan.group_channels + at, lanes, out);
      for (int64_t n = 0; n < s.N; ++n) out[n] *= splat(kLog2e<T>);
    }
  }
};

// Whether all states of a channel decay at one rate, as Mamba-2's do: one exponential then serves them all.
template <class T> bool one_rate(const Scan<T>& s) { return s.N > 1 && s.A.time == 0; }

template <class T>
void load_state(const Rows& r, int64_t b, int64_t c0, int lanes, int64_t N, Vec<T>* h) {  // zero where not given
  if (r.p) return load_tile<T>(r, b, 0, static_cast<int>(N), c0, lanes, h);
  for (int64_t n = 0; n < N; ++n) h[n] = Vec<T>{};
}

// States are taken four at a time, in registers; calls body(count, n) with a count known to the compiler.
template <class Body> SSMSEQ_INLINE void over_states(int64_t N, const Body& body) {
  int64_t n = 0;
  for (; n + 4 <= N; n += 4) body(std::integral_constant<int, 4>{}, n);
  for (; n + 2 <= N; n += 2) body(std::integral_constant<int, 2>{}, n);
  for (; n < N; ++n) body(std::integral_constant<int, 1>{}, n);
}

// One of B and C over one chunk. Numbers are read row by row, where they lie if they lie side by side. Where either of
// the two is constant, both come as registers, one number per channel, [count of states][step][state of the count], with
// a single step for the constant one.
template <class T> struct Mixer {
  const Mixers& m;
  const int64_t N;
  const T* rows = nullptr;
  int64_t stride = 0;
  Buffer<T> packed;
  Buffer<Vec<T>> lanes;
  int steps = 0;
  Mixer(const Mixers& mixers, int64_t n, bool by_lane)
      : m(mixers), N(n), packed(in_place() ? 1 : kChunk * n), lanes(by_lane ? kChunk * n : 1) {}
  bool in_place() const { return m.constant || (m.kind == Kind::native && m.state == 1); }
  int64_t moves() const { return !m.constant; }

  void read(int64_t b, int64_t t0, int chunk, int64_t g, bool by_lane) {
    steps = m.constant ? 1 : chunk;
    if (m.constant) return;
    rows = in_place() ? reinterpret_cast<const T*>(m.at<T>(b, t0, g)) : packed.p;
    stride = in_place() ? m.time : N;
    if (!in_place()) pack(b, t0, g);
    if (by_lane)
      over_states(N, [&](auto count, int64_t n) {
        for (int k = 0; k < steps; ++k)
          for (int j = 0; j < count; ++j) lanes.p[n * steps + k * count + j] = splat(rows[k * stride + n + j]);
      });
  }
  void pack(int64_t b, int64_t t0, int64_t g) {
    constexpr int W = Lane<T>::W;
    const Rows rows{m.at<T>(0, 0, g), m.kind, m.batch, m.time, m.state};  // states in the place of channels
    Vec<T> tile[kChunk];
    for (int64_t n = 0; n < N; n += W) {
      const int width = static_cast<int>(min64(W, N - n));
      load_tile<T>(rows, b, t0, steps, n, width, tile);
      for (int k = 0; k < steps; ++k) store(packed.p + k * N + n, tile[k], width);
    }
  }
  void read_constant(int64_t c0, int width) {
    if (m.constant) load_tile<T>({m.p, m.kind, 0, m.state, m.group}, 0, 0, static_cast<int>(N), c0, width, lanes.p);
  }
};

template <class T> struct Chunk {  // B, C and resets of some steps of one batch element and one group
  const bool by_lane;
  Mixer<T> B, C;
  int steps = 0;
  bool resets[kChunk], any_reset = false;
  explicit Chunk(const Scan<T>& s)
      : by_lane(s.Bm.constant || s.Cm.constant), B(s.Bm, s.N, by_lane), C(s.Cm, s.N, by_lane) {}
  void read(const Scan<T>& s, int64_t b, int64_t t0, int64_t g) {
    steps = static_cast<int>(min64(kChunk, s.L - t0));
    B.read(b, t0, steps, g, by_lane);
    C.read(b, t0, steps, g, by_lane);
    any_reset = false;
    if (s.seq.p)
      for (int k = 0; k < steps; ++k) any_reset |= resets[k] = s.seq.starts(b, t0 + k);
  }
  void read_block(int64_t c0, int width) {
    B.read_constant(c0, width);
    C.read_constant(c0, width);
  }
  SSMSEQ_INLINE bool reset(int k) const { return any_reset && resets[k]; }
};

// The entries of B or C that meet states n, n + 1, ... at step k, as registers.
template <class T, int NS, bool ByLane> struct Entries {
  const T* number;
  const Vec<T>* lane;
  SSMSEQ_INLINE Entries(const Mixer<T>& m, int64_t n, int k)
      : number(ByLane ? nullptr : m.rows + k * m.stride + n),
        lane(ByLane ? m.lanes.p + n * m.steps + k * NS * m.moves() : nullptr) {}
  SSMSEQ_INLINE Vec<T> operator[](int j) const { return ByLane ? lane[j] : splat(number[j]); }
};

constexpr int kStreams = 4;  // tiles fetched ahead while one is swept, one for every four states
struct Fetch {
  Ahead streams[kStreams];
  SSMSEQ_INLINE const Ahead& at(int64_t n) const { return streams[n / 4 % kStreams]; }
};

enum class Sweep { output, trace, carry };  // y; y with every decay and state kept; the last state alone

// The decays of one chunk of one block, if its states share them; what follows takes them instead of `rate` and `dt`.
template <class T> void shared_decays(const Scan<T>& s, Vec<T> rate, const Vec<T>* dt, int steps, Vec<T>* decay) {
  for (int k = 0; k < steps && one_rate(s); ++k) decay[k] = exp2_product(dt[k], rate);
}

// States n, n + 1, ... through one chunk. If they share their decays (`Shared`), `rates` holds those, one for each step.
template <class T, int NS, bool ByLane, bool Shared, Sweep Mode>
SSMSEQ_INLINE void sweep(const Chunk<T>& c, int64_t n, const Vec<T>* rates, Vec<T>* h, const Vec<T>* dt,
                         const Vec<T>* dtu, Vec<T>* y, Vec<T>* decays, Vec<T>* states, Ahead ahead) {
  using V = Vec<T>;
  V s[NS];
  SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) s[j] = h[n + j];
  for (int k = 0; k < c.steps; ++k) {
    const Entries<T, NS, ByLane> B(c.B, n, k), C(c.C, n, k);
    ahead.fetch(k);
    if (__builtin_expect(c.reset(k), 0))
      SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) s[j] = V{};
    V acc = Mode == Sweep::carry ? V{} : y[k];
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) {
      const V a = Shared ? rates[k] : exp2_product(dt[k], rates[n + j]);
      s[j] = fma(a, s[j], dtu[k] * B[j]);
      if (Mode != Sweep::carry) acc = fma(s[j], C[j], acc);
      if (Mode == Sweep::trace) {
        if (!Shared) decays[k * NS + j] = a;
        states[k * NS + j] = s[j];
      }
    }
    if (Mode != Sweep::carry) y[k] = acc;
    if (Mode == Sweep::trace && !Shared && __builtin_expect(c.reset(k), 0))
      SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) decays[k * NS + j] = V{};
  }
  if (Mode != Sweep::trace)
    SSMSEQ_UNROLL for (int j = 0; j < NS; ++j) h[n + j] = s[j];
}

// Calls body(by_lane, shared) with what a chunk and a scan are, known to the compiler.
template <class T, class Body> SSMSEQ_INLINE void with_kind(const Chunk<T>& c, bool shared, const Body& body) {
  using Yes = std::true_type;
  using No = std::false_type;
  if (c.by_lane) return shared ? body(Yes{}, Yes{}) : body(Yes{}, No{});
  return shared ? body(No{}, Yes{}) : body(No{}, No{});
}

template <class T, Sweep Mode>
void sweep_all(const Scan<T>& s, const Chunk<T>& c, const Vec<T>* A2, Vec<T>* h, const Vec<T>* dt, const Vec<T>* dtu,
               Vec<T>* y, const Fetch& fetch) {
  Vec<T> decay[kChunk];
  shared_decays(s, A2[0], dt, c.steps, decay);
  with_kind(c, one_rate(s), [&](auto by_lane, auto shared) {
    over_states(s.N, [&](auto count, int64_t n) {
      sweep<T, count, by_lane, shared, Mode>(c, n, shared ? decay : A2, h, dt, dtu, y, nullptr, nullptr, fetch.at(n));
    });
  });
}

// Steps, and steps times input, of one chunk of one block. `slope` may be null.
template <class T>
SSMSEQ_INLINE void load_steps(const Scan<T>& s, int64_t b, int64_t t0, int steps, int64_t c0, int lanes, Vec<T>* u,
                              Vec<T>* dt, Vec<T>* dtu, Vec<T>* slope) {
  using V = Vec<T>;
  load_tile<T>(s.u, b, t0, steps, c0, lanes, u);
  load_tile<T>(s.delta, b, t0, steps, c0, lanes, dt);
  const V bias = s.bias ? load(s.bias + c0, lanes) : V{};
  if (s.softplus && slope) {
    for (int k = 0; k < steps; ++k) dt[k] = softplus<T>(dt[k] + bias, slope + k);
  } else if (s.softplus) {
    V unused;
    for (int k = 0; k < steps; ++k) dt[k] = softplus<T>(dt[k] + bias, &unused);
  } else {
    for (int k = 0; k < steps; ++k) dt[k] += bias;
    for (int k = 0; k < steps && slope; ++k) slope[k] = splat(T(1));
  }
  for (int k = 0; k < steps; ++k) dtu[k] = dt[k] * u[k];
}

// What links the parts of a time axis that is cut: for every batch element, part and block, the states (or adjoints)
// that the part hands on when it starts from zero, and the sum of its steps, whose exponential is its total decay.
template <class T> struct Links {
  Buffer<Vec<T>> state, total;
  Links(const Scan<T>& s, const Plan<T>& plan)
      : state(plan.parts > 1 ? s.B * plan.parts * plan.all_blocks(s) * s.N : 1),
        total(plan.parts > 1 ? s.B * plan.parts * plan.all_blocks(s) : 1) {}
  static int64_t at(const Scan<T>& s, const Plan<T>& plan, int64_t b, int64_t part, int64_t block) {
    return (b * plan.parts + part) * plan.all_blocks(s) + block;
  }
  // Turns what parts hand on into what they are handed. `rows` is what the first one is handed; `back` runs from the
  // last part to the first.
  void combine(const Scan<T>& s, const Plan<T>& plan, const Rates<T>& rates, const Rows& rows, bool back) {
    Buffer<Vec<T>> entry(s.N);
    for (int64_t b = 0; b < s.B; ++b)
      for (int64_t block = 0; block < plan.all_blocks(s); ++block) {
        const int64_t at_channel = block % plan.blocks * Lane<T>::W;
        const int lanes = static_cast<int>(min64(Lane<T>::W, plan.group_channels - at_channel));
        load_state<T>(rows, b, block / plan.blocks * plan.group_channels + at_channel, lanes, s.N, entry.p);
        for (int64_t i = 0; i < plan.parts; ++i) {
          const int64_t part = back ? plan.parts - 1 - i : i, link = at(s, plan, b, part, block);
          const bool broken = has_start(s, b, part * plan.part * kChunk, (part + 1) * plan.part * kChunk);
          for (int64_t n = 0; n < s.N; ++n) {
            const Vec<T> own = state.p[link * s.N + n], handed = entry.p[n];
            state.p[link * s.N + n] = handed;
            entry.p[n] = broken ? own : fma(exp2_product(total.p[link], rates.A2.p[block * s.N + n]), handed, own);
          }
        }
      }
  }
  static bool has_start(const Scan<T>& s, int64_t b, int64_t t0, int64_t t1) {
    for (int64_t t = t0; s.seq.p && t < min64(t1, s.L); ++t)
      if (s.seq.starts(b, t)) return true;
    return false;
  }
};

// A few scans whose tasks one team of threads shares.
template <class Job> struct Jobs {
  static constexpr int kMost = 2;
  Job* jobs[kMost] = {};
  int count = 0;
  Jobs() = default;
  Jobs(const Jobs&) = delete;
  ~Jobs() {
    for (int i = 0; i < count; ++i) delete jobs[i];
  }
  template <class S> void add(const S& scan) {
    jobs[count] = new Job(scan);
    ++count;
  }
  template <class Body> void each(const Body& body) {
    for (int i = 0; i < count; ++i) body(*jobs[i]);
  }
  // body(job, index) for every index below tasks(job).
  template <class Tasks, class Body> void run(int threads, int64_t work, const Tasks& tasks, const Body& body) {
    int64_t total = 0;
    each([&](Job& job) { total += tasks(job); });
    parallel(total, threads, work, [&](int64_t index) {
      int i = 0;
      for (; index >= tasks(*jobs[i]); ++i) index -= tasks(*jobs[i]);
      body(*jobs[i], index);
    });
  }
};

}  // namespace
