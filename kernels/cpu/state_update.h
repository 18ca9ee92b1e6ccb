// One step of the scan, in place, for decoding. A state's N numbers lie side by side, so here one lane is one number of
// a state; the sums over states of W channels are taken together.
#pragma once
#include "tile.h"

namespace {

using ssmseq::Update;

// One row of B or C as numbers: where it lies if it can be read there, else in `scratch`.
template <class T> const T* mixer_row(const Mixers& m, int64_t b, int64_t g, int64_t N, T* scratch) {
  const char* p = m.at<T>(b, 0, g);
  if (m.kind == Kind::native && m.state == 1) return reinterpret_cast<const T*>(p);
  for (int64_t n = 0; n < N; ++n) scratch[n] = get<T>(m.kind, p + n * m.state * ssmseq::item_size<T>(m.kind));
  return scratch;
}

// A number for each of some channels, `head` neighbours of which share one.
template <class T> Vec<T> of_channels(const Rows& r, int64_t b, int64_t c0, int lanes, int64_t head) {
  Vec<T> v{};
  if (head == 1) {
    load_tile<T>(r, b, 0, 1, c0, lanes, &v);
  } else if (c0 / head == (c0 + lanes - 1) / head) {
    v = splat(get<T>(r.kind, r.at<T>(b, 0, c0 / head)));
  } else {
    for (int i = 0; i < lanes; ++i) v[i] = get<T>(r.kind, r.at<T>(b, 0, (c0 + i) / head));
  }
  return v;
}

// The step of a few channels, `Count` registers of states for each: known to the compiler where the states fill whole
// registers, else 0. With one rate, `step` holds the decays themselves.
template <class T, int Count, bool OneRate> SSMSEQ_INLINE void update_states(const Update<T>& w, int64_t b, int64_t c0, int lanes,
                                                               const T* step, const T* step_u, const T* B, const T* C,
                                                               Vec<T>* products) {
  using V = Vec<T>;
  constexpr int W = Lane<T>::W;
  char* h0 = w.state.template at<T>(b, 0, c0);
  const char* A0 = OneRate ? nullptr : w.A.template at<T>(0, 0, c0);
  for (int i = 0; i < lanes; ++i) {
    T* h = reinterpret_cast<T*>(h0) + i * w.state.channel;
    const T* A = OneRate ? nullptr : reinterpret_cast<const T*>(A0) + i * w.A.channel;
    const V dt = splat(step[i]), dtu = splat(step_u[i]);
    V sum{};
    for (int64_t n = 0; n < (Count ? Count * W : w.N); n += W) {
      const int count = Count ? W : static_cast<int>(min64(W, w.N - n));
      auto row = [&](const T* p) { return Count ? load(p + n) : load(p + n, count); };
      const V decay = OneRate ? dt : exp2_product(dt, row(A));
      const V next = fma(decay, row(h), dtu * row(B));
      if (Count) store(h + n, next);
      else store(h + n, next, count);
      sum = fma(next, row(C), sum);
    }
    products[i] = sum;
  }
}

template <class T> void update_block(const Update<T>& w, int64_t b, int64_t g, int64_t c0, int lanes, T* scratch) {
  using V = Vec<T>;
  constexpr int W = Lane<T>::W;
  V u, z, slope, products[W]{};
  load_tile<T>(w.u, b, 0, 1, c0, lanes, &u);
  V dt = of_channels<T>(w.delta, b, c0, lanes, w.head);
  if (w.bias.p) dt += of_channels<T>(w.bias, 0, c0, lanes, w.head);
  if (w.softplus) dt = softplus<T>(dt, &slope);
  for (int i = 0; w.limited && i < W; ++i) {  // what is no number stays none
    if (dt[i] < w.smallest) dt[i] = w.smallest;
    if (dt[i] > w.largest) dt[i] = w.largest;
  }
  const T *B = mixer_row(w.Bm, b, g, w.N, scratch), *C = mixer_row(w.Cm, b, g, w.N, scratch + w.N);
  T step[W], step_u[W];
  const V scaled = dt * splat(kLog2e<T>);
  store(step, w.one_rate ? exp2_product(scaled, of_channels<T>(w.A, 0, c0, lanes, w.head)) : scaled);
  store(step_u, dt * u);
  if (w.one_rate && w.N == 8 * W) update_states<T, 8, true>(w, b, c0, lanes, step, step_u, B, C, products);
  else if (w.one_rate && w.N == 4 * W) update_states<T, 4, true>(w, b, c0, lanes, step, step_u, B, C, products);
  else if (w.one_rate) update_states<T, 0, true>(w, b, c0, lanes, step, step_u, B, C, products);
  else if (w.N == W && lanes == W) update_states<T, 1, false>(w, b, c0, W, step, step_u, B, C, products);
  else if (w.N == 2 * W) update_states<T, 2, false>(w, b, c0, lanes, step, step_u, B, C, products);
  else update_states<T, 0, false>(w, b, c0, lanes, step, step_u, B, C, products);
  V y = lane_sums<T>(products);
  if (w.skip.p) y = fma(of_channels<T>(w.skip, 0, c0, lanes, w.skip_head), u, y);
  if (w.z.p) {
    load_tile<T>(w.z, b, 0, 1, c0, lanes, &z);
    y *= z * sigmoid<T>(z);
  }
  store_tile<T>(w.y, b, 0, 1, c0, lanes, &y);
}

template <class T> void update(const Update<T>& w, int threads) {
  constexpr int64_t W = Lane<T>::W, kSpan = 8;
  const int64_t per_group = w.D / w.G, blocks = ceil_div(per_group, W), spans = ceil_div(blocks, kSpan);
  parallel(w.B * w.G * spans, threads, w.B * w.D * w.N, [&](int64_t index) {
    const int64_t span = index % spans, g = index / spans % w.G, b = index / spans / w.G;
    Buffer<T> scratch(2 * w.N);
    for (int64_t i = span * kSpan; i < min64(blocks, (span + 1) * kSpan); ++i)
      update_block(w, b, g, g * per_group + i * W, static_cast<int>(min64(W, per_group - i * W)), scratch.p);
  });
}

}  // namespace
