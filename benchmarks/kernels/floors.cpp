// What one core can do at best, whatever the kernel: the fused multiply-add rate, the copy rate of memory, and the
// arithmetic of the scan with every operand in registers or the L1 cache. Prints one JSON object.
//
//   c++ -O3 -march=native -DBYTES=64 floors.cpp && ./a.out
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <vector>
#ifdef __x86_64__
#include <immintrin.h>
#endif

typedef float V __attribute__((vector_size(BYTES)));
typedef int32_t I __attribute__((vector_size(BYTES)));
constexpr int W = BYTES / 4, STEPS = 32, STATES = 16, GROUP = 4;

inline __attribute__((always_inline)) V all(float x) { return x - V{}; }
#if BYTES == 64
inline V nearest(V x) { return (V)_mm512_roundscale_ps((__m512)x, 8); }
inline V times_exp2(V p, V k) { return (V)_mm512_scalef_ps((__m512)p, (__m512)k); }
#else
#if BYTES == 32
inline V nearest(V x) { return (V)_mm256_round_ps((__m256)x, 8); }
#else
inline V nearest(V x) { return (x + all(12582912.0f)) - all(12582912.0f); }
#endif
inline V times_exp2(V p, V k) { return p * (V)((I)(k + all(12582912.0f + 127.0f)) << 23); }
#endif

inline __attribute__((always_inline)) V exp2_of_product(V a, V b) {  // degree 6, as in the kernel
  const V k = nearest(a * b), f = a * b - k;
  V p = all(0x1.416b5ep-13f);
  for (float c : {0x1.5f083p-10f, 0x1.3b2dep-7f, 0x1.c6af7cp-5f, 0x1.ebfbdcp-3f, 0x1.62e43p-1f, 1.0f})
    p = p * f + all(c);
  return times_exp2(p, k);
}

double cpu_seconds() {
  timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

template <class F> double fastest(int calls, F run) {  // seconds per call, the best of several batches
  double best = 1e9;
  for (int batch = 0; batch < 15; ++batch) {
    const double started = cpu_seconds();
    for (int i = 0; i < calls; ++i) {
      run();
      asm volatile("" ::: "memory");
    }
    best = std::min(best, (cpu_seconds() - started) / calls);
  }
  return best;
}

struct Block {  // one chunk of STEPS steps of one register of channels
  V dt[STEPS], dtu[STEPS], dy[STEPS], y[STEPS], du[STEPS], ddt[STEPS];
  V A[STATES], h[STATES], adjoint[STATES], dA[STATES];
  V dB[STEPS][STATES], dC[STEPS][STATES];
  float B[STEPS][STATES], C[STEPS][STATES];
};

void forward(Block& x) {
  for (int n = 0; n < STATES; n += GROUP) {
    V h[GROUP], A[GROUP];
    for (int i = 0; i < GROUP; ++i) h[i] = x.h[n + i], A[i] = x.A[n + i];
    for (int t = 0; t < STEPS; ++t) {
      V y = x.y[t];
      for (int i = 0; i < GROUP; ++i) {
        h[i] = exp2_of_product(x.dt[t], A[i]) * h[i] + x.dtu[t] * all(x.B[t][n + i]);
        y += all(x.C[t][n + i]) * h[i];
      }
      x.y[t] = y;
    }
    for (int i = 0; i < GROUP; ++i) x.h[n + i] = h[i];
  }
}

void backward(Block& x) {
  V decay[STEPS][GROUP], states[STEPS + 1][GROUP];
  for (int n = 0; n < STATES; n += GROUP) {
    V A[GROUP], back[GROUP], dA[GROUP];
    for (int i = 0; i < GROUP; ++i) states[0][i] = x.h[n + i], A[i] = x.A[n + i];
    for (int t = 0; t < STEPS; ++t)
      for (int i = 0; i < GROUP; ++i) {
        decay[t][i] = exp2_of_product(x.dt[t], A[i]);
        states[t + 1][i] = decay[t][i] * states[t][i] + x.dtu[t] * all(x.B[t][n + i]);
      }
    for (int i = 0; i < GROUP; ++i) back[i] = x.adjoint[n + i], dA[i] = x.dA[n + i];
    for (int t = STEPS - 1; t >= 0; --t) {
      V du = x.du[t], ddt = x.ddt[t];
      for (int i = 0; i < GROUP; ++i) {
        const V adjoint = all(x.C[t][n + i]) * x.dy[t] + back[i];
        x.dC[t][n + i] += x.dy[t] * states[t + 1][i];
        x.dB[t][n + i] += adjoint * x.dtu[t];
        du += adjoint * all(x.B[t][n + i]);
        back[i] = decay[t][i] * adjoint;
        const V through = back[i] * states[t][i];
        ddt += A[i] * through;
        dA[i] += x.dt[t] * through;
      }
      x.du[t] = du, x.ddt[t] = ddt;
    }
    for (int i = 0; i < GROUP; ++i) x.adjoint[n + i] = back[i], x.dA[n + i] = dA[i];
  }
}

double multiply_adds_per_second() {
  constexpr int CHAINS = 12, ROUNDS = 1 << 16;  // enough independent chains to hide the latency
  V sum[CHAINS], factor = all(0.999f), term = all(1e-3f);
  for (int i = 0; i < CHAINS; ++i) sum[i] = all(1.0f);
  const double seconds = fastest(20, [&] {
    V local[CHAINS];
    for (int i = 0; i < CHAINS; ++i) local[i] = sum[i];
    for (int round = 0; round < ROUNDS; ++round)
      for (int i = 0; i < CHAINS; ++i) local[i] = local[i] * factor + term;
    for (int i = 0; i < CHAINS; ++i) sum[i] = local[i];
    asm volatile("" : "+m"(sum));
  });
  return double(ROUNDS) * CHAINS * W / seconds;
}

double copied_bytes_per_second() {  // plain loads and stores, as the kernel's: read and written bytes
  const size_t count = (256 << 20) / sizeof(V);
  std::vector<V> from(count, all(1.0f)), to(count, all(2.0f));
  const double seconds = fastest(1, [&] {
    for (size_t i = 0; i < count; ++i) {
      to[i] = from[i];
      asm volatile("" ::: "memory");
    }
  });
  return 2.0 * count * sizeof(V) / seconds;
}

int main() {
  static Block block{};
  for (int n = 0; n < STATES; ++n) block.A[n] = all(-1.0f - n);
  for (int t = 0; t < STEPS; ++t) {
    block.dt[t] = all(0.1f), block.dtu[t] = block.dy[t] = all(0.5f);
    for (int n = 0; n < STATES; ++n) block.B[t][n] = block.C[t][n] = 0.1f * (n - 7);
  }
  const double elements = double(STEPS) * STATES * W;
  const double forward_ns = 1e9 * fastest(5000, [&] { forward(block); }) / elements;
  const double backward_ns = 1e9 * fastest(5000, [&] { backward(block); }) / elements;
  std::printf("{\"gflops\": %.1f, \"forward_ns\": %.4f, \"backward_ns\": %.4f, \"copy_gbs\": %.2f}\n",
              2e-9 * multiply_adds_per_second(), forward_ns, backward_ns, 1e-9 * copied_bytes_per_second());
}
