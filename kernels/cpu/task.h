// Scratch, threads and sums over parts, shared by the kernels of one instruction set.
#pragma once
#include <cstdlib>
#include <new>
#ifdef _OPENMP
#include <omp.h>
#endif

#include "vec.h"

// What is kept in arrays of registers must stay in registers, which takes loops that are gone after compilation.
#define SSMSEQ_UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int64_t kSerialWork = 200000;  // innermost steps; below this, starting threads costs more than it gives

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t min64(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t max64(int64_t a, int64_t b) { return a > b ? a : b; }

// Memory given back and taken again by the same thread: fresh memory is paged in at a tenth of the speed of the kernels.
class Blocks {
  static constexpr int kKept = 8;
  static constexpr size_t kLargest = size_t(16) << 20;
  struct Block {
    void* p = nullptr;
    size_t size = 0;
  } kept_[kKept];

 public:
  Blocks() = default;
  Blocks(const Blocks&) = delete;
  ~Blocks() {
    for (Block& b : kept_) std::free(b.p);
  }
  void* take(size_t& size) {  // at least `size` bytes, which is raised to what is given
    Block* best = nullptr;
    for (Block& b : kept_)
      if (b.p && b.size >= size && b.size <= 4 * size && (!best || b.size < best->size)) best = &b;
    if (!best) return std::aligned_alloc(64, size);
    void* p = best->p;
    size = best->size;
    best->p = nullptr;
    return p;
  }
  void give(void* p, size_t size) {
    Block* least = &kept_[0];  // an empty place, or the smallest block to make room for a larger one
    for (Block& b : kept_)
      if (!b.p || (least->p && b.size < least->size)) least = &b;
    if (size > kLargest || (least->p && least->size >= size)) return std::free(p);
    std::free(least->p);
    *least = {p, size};
  }
  static Blocks& of_thread() {
    static thread_local Blocks blocks;
    return blocks;
  }
};

template <class E> struct Buffer {  // aligned scratch
  size_t size;
  E* p;
  explicit Buffer(int64_t n)
      : size((n * sizeof(E) + 64) / 64 * 64), p(static_cast<E*>(Blocks::of_thread().take(size))) {
    if (!p) throw std::bad_alloc();
  }
  ~Buffer() { Blocks::of_thread().give(p, size); }
  Buffer(const Buffer&) = delete;
};

template <class Body>
void parallel(int64_t n, [[maybe_unused]] int threads, [[maybe_unused]] int64_t work, const Body& body) {
#ifdef _OPENMP
  if (threads > 1 && n > 1 && work > kSerialWork && !omp_in_parallel()) {
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t i = 0; i < n; ++i) body(i);
    return;
  }
#endif
  for (int64_t i = 0; i < n; ++i) body(i);
}

}  // namespace

#define SSMSEQ_CONCAT_(a, b) a##b
#define SSMSEQ_CONCAT(a, b) SSMSEQ_CONCAT_(a, b)
#define SSMSEQ_TEXT_(a) #a
#define SSMSEQ_TEXT(a) SSMSEQ_TEXT_(a)
