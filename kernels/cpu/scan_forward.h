// Forward of the selective scan (Mamba, arXiv 2312.00752):
//
//   dt = softplus(delta + bias)          h_t = exp(dt_t A) h_{t-1} + dt_t B_t u_t
//   y_t = C_t . h_t + skip u_t           out = y silu(z)
#pragma once
#include "scan.h"

namespace {

template <class T> struct ForwardJob {
  const Scan<T>& s;
  const Plan<T> plan;
  const Rates<T> rates;
  Links<T> links;
  explicit ForwardJob(const Scan<T>& scan) : s(scan), plan(scan), rates(scan, plan), links(scan, plan) {}
};

// The state that a part hands on when it starts from zero.
template <class T> void carry_task(ForwardJob<T>& job, int64_t index) {
  using V = Vec<T>;
  const Scan<T>& s = job.s;
  const Task<T> task(s, job.plan, index);
  Chunk<T> chunk(s);
  V u[kChunk], dt[kChunk], dtu[kChunk];
  for (int64_t b = task.b0; b < task.b1; ++b) {
    const int64_t link = job.links.at(s, job.plan, b, task.part, task.first_block);
    V *h = job.links.state.p + link * s.N, *total = job.links.total.p + link;
    for (int64_t i = 0; i < task.blocks * s.N; ++i) h[i] = V{};
    for (int64_t i = 0; i < task.blocks; ++i) total[i] = V{};
    for (int64_t c = task.chunk0; c < task.chunk1; ++c) {
      chunk.read(s, b, c * kChunk, task.g);
      for (int64_t i = 0; i < task.blocks; ++i) {
        const int64_t c0 = task.channel(i);
        load_steps<T>(s, b, c * kChunk, chunk.steps, c0, task.lanes(i), u, dt, dtu, nullptr);
        chunk.read_block(c0, task.lanes(i));
        sweep_all<T, Sweep::carry>(s, chunk, job.rates.A2.p + (task.first_block + i) * s.N, h + i * s.N, dt, dtu,
                                   nullptr, Fetch());
        for (int k = 0; k < chunk.steps; ++k) total[i] += dt[k];
      }
    }
  }
}

struct Place {  // one chunk of one block
  int64_t b, t0, c0;
};

template <class T> void forward_block(ForwardJob<T>& job, Chunk<T>& chunk, const Place& at, int lanes, const Place& next,
                                      const Vec<T>* A2, Vec<T>* h) {
  using V = Vec<T>;
  const Scan<T>& s = job.s;
  const auto [b, t0, c0] = at;
  V u[kChunk], dt[kChunk], dtu[kChunk], y[kChunk];
  if (s.checkpoint && t0) {
    T* row = s.checkpoint + (b * (job.plan.chunks - 1) + t0 / kChunk - 1) * s.N * s.D + c0;
    for (int64_t n = 0; n < s.N; ++n) store(row + n * s.D, h[n], lanes);
  }
  load_steps<T>(s, b, t0, chunk.steps, c0, lanes, u, dt, dtu, nullptr);
  const V skip = s.skip ? load(s.skip + c0, lanes) : V{};
  for (int k = 0; k < chunk.steps; ++k) y[k] = skip * u[k];
  chunk.read_block(c0, lanes);
  Fetch fetch;
  int stream = 0;
  for (const Rows* r : {&s.u, &s.delta, &s.z})
    if (r->p) fetch.streams[stream++] = Ahead(T(), *r, next.b, next.t0, next.c0);
  fetch.streams[stream] = Ahead(T(), s.y, b, t0, c0);
  sweep_all<T, Sweep::output>(s, chunk, A2, h, dt, dtu, y, fetch);
  if (s.z.p) {
    load_tile<T>(s.z, b, t0, chunk.steps, c0, lanes, u);
    for (int k = 0; k < chunk.steps; ++k) y[k] *= u[k] * sigmoid<T>(u[k]);
  }
  store_tile<T>(s.y, b, t0, chunk.steps, c0, lanes, y);
}

template <class T> void forward_task(ForwardJob<T>& job, int64_t index) {
  const Scan<T>& s = job.s;
  const Plan<T>& plan = job.plan;
  const Task<T> task(s, plan, index);
  const Vec<T>* A2 = job.rates.A2.p + task.first_block * s.N;
  Chunk<T> chunk(s);
  Buffer<Vec<T>> state(task.blocks * s.N);
  for (int64_t b = task.b0; b < task.b1; ++b) {
    Vec<T>* h = state.p;
    if (plan.parts > 1) h = job.links.state.p + job.links.at(s, plan, b, task.part, task.first_block) * s.N;
    else
      for (int64_t i = 0; i < task.blocks; ++i)
        load_state<T>(s.h0, b, task.channel(i), task.lanes(i), s.N, h + i * s.N);
    for (int64_t c = task.chunk0; c < task.chunk1; ++c) {
      chunk.read(s, b, c * kChunk, task.g);
      for (int64_t i = 0; i < task.blocks; ++i) {
        const bool last = i + 1 == task.blocks;
        const Place at{b, c * kChunk, task.channel(i)};
        const Place next{b, min64(c + last, plan.chunks - 1) * kChunk, task.channel(last ? 0 : i + 1)};
        forward_block(job, chunk, at, task.lanes(i), next, A2 + i * s.N, h + i * s.N);
      }
    }
    if (s.hT.p && task.part == plan.parts - 1)
      for (int64_t i = 0; i < task.blocks; ++i)
        store_tile<T>(s.hT, b, 0, static_cast<int>(s.N), task.channel(i), task.lanes(i), h + i * s.N);
  }
}

template <class T> void forward(const Scan<T>* scans, int count, int threads) {
  Jobs<ForwardJob<T>> jobs;
  int64_t work = 0;
  for (int i = 0; i < count; ++i) {
    if (!scans[i].B || !scans[i].D) continue;
    jobs.add(scans[i]);
    work += scans[i].B * scans[i].L * scans[i].D * scans[i].N;
  }
  jobs.run(threads, work, [](auto& job) { return job.plan.parts > 1 ? job.plan.tasks : 0; }, carry_task<T>);
  jobs.each([](auto& job) {
    if (job.plan.parts > 1) job.links.combine(job.s, job.plan, job.rates, job.s.h0, false);
  });
  jobs.run(threads, work, [](auto& job) { return job.plan.tasks; }, forward_task<T>);
}

}  // namespace
