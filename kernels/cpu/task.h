// Scratch, threads and sums over parts, shared by the kernels of one instruction set.
#pragma once
#include <cstdlib>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vec.h"

// What is kept in arrays of registers must stay in registers, which takes loops that are gone after compilation.
#define SSMSEQ_UNROLL _Pragma("GCC unroll 8")

namespace {

constexpr int64_t kSerialWork = 200000;  // innermost steps; below this, starting threads costs more than it gives

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

template <class E> struct Buffer {  // aligned scratch of one task
  E* p;
  explicit Buffer(int64_t n) : p(static_cast<E*>(std::aligned_alloc(64, (n * sizeof(E) + 64) / 64 * 64))) {
    if (!p) throw std::bad_alloc();
  }
  ~Buffer() { std::free(p); }
  Buffer(const Buffer&) = delete;
};

template <class Body> void parallel(int64_t n, int threads, int64_t work, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && n > 1 && work > kSerialWork && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

// Adds `count` parts of n numbers, `stride` apart, in place into the first, then writes the sums.
template <class T, class S> void reduce(T* out, S* parts, int64_t n, int64_t count, int64_t stride) {
  for (int64_t p = 1; p < count; ++p)
    for (int64_t i = 0; i < n; ++i) parts[i] += parts[p * stride + i];
  for (int64_t i = 0; i < n; ++i) out[i] = static_cast<T>(parts[i]);
}

}  // namespace

#define SSMSEQ_CONCAT_(a, b) a##b
#define SSMSEQ_CONCAT(a, b) SSMSEQ_CONCAT_(a, b)
#define SSMSEQ_TEXT_(a) #a
#define SSMSEQ_TEXT(a) SSMSEQ_TEXT_(a)
