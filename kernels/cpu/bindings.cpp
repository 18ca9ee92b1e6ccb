// Python bindings. Tensors arrive as (address, strides...) tuples of integers: no torch header is needed to build, and
// no DLPack capsule is made per call. The caller (ssmseq_kernels/cpu.py) keeps the tensors alive and has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using ssmseq::Backward;
using ssmseq::Forward;
using ssmseq::Convolution;

namespace {

struct Isa {
  const char* name;
  const ssmseq::ScanKernels* scan;
  const ssmseq::ConvolutionKernels* conv;
};

std::vector<Isa> runnable() {  // best last
  std::vector<Isa> list{{"baseline", &ssmseq::scan_baseline, &ssmseq::conv_baseline}};
#ifdef SSMSEQ_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
    list.push_back({"avx2", &ssmseq::scan_avx2, &ssmseq::conv_avx2});
#endif
#ifdef SSMSEQ_HAS_avx512
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl"))
    list.push_back({"avx512", &ssmseq::scan_avx512, &ssmseq::conv_avx512});
#endif
  return list;
}

Isa active = runnable().back();

std::string set_isa(const std::string& name) {
  const std::string before = active.name;
  for (const Isa& isa : runnable())
    if (name == isa.name) {
      active = isa;
      return before;
    }
  throw std::invalid_argument("this machine cannot run the instruction set '" + name + "'");
}

// Turns one call's integers into the kernel's arguments; with `reverse` time runs backwards through every tensor.
template <class T> struct Reader {
  int64_t L;
  bool reverse;

  static int64_t item(nb::handle t, size_t i) { return nb::cast<int64_t>(t[i]); }
  T* flat(nb::handle t) const { return t.is_none() ? nullptr : reinterpret_cast<T*>(item(t, 0)); }
  template <class P> ssmseq::Rows<P> rows(nb::handle t) const {
    ssmseq::Rows<P> r;
    if (t.is_none()) return r;
    r.p = reinterpret_cast<P*>(item(t, 0));
    r.batch = item(t, 1);
    r.time = item(t, 2);
    if (reverse && L) {
      r.p += (L - 1) * r.time;
      r.time = -r.time;
    }
    return r;
  }
  template <class P> ssmseq::Mixers<P> mixers(nb::handle t) const {
    const ssmseq::Rows<P> r = rows<P>(t);
    ssmseq::Mixers<P> m;
    m.p = r.p;
    m.batch = r.batch;
    m.time = r.time;
    if (!t.is_none()) m.group = item(t, 3);
    return m;
  }
};

template <class T> Forward<T> read_inputs(nb::tuple sizes, nb::tuple in, bool softplus, bool reverse, int threads) {
  Forward<T> f{};
  f.B = nb::cast<int64_t>(sizes[0]);
  f.L = nb::cast<int64_t>(sizes[1]);
  f.D = nb::cast<int64_t>(sizes[2]);
  f.N = nb::cast<int64_t>(sizes[3]);
  f.G = nb::cast<int64_t>(sizes[4]);
  f.softplus = softplus;
  f.threads = threads;
  const Reader<T> read{f.L, reverse};
  f.u = read.template rows<const T>(in[0]);
  f.delta = read.template rows<const T>(in[1]);
  f.A = read.flat(in[2]);
  f.Bm = read.template mixers<const T>(in[3]);
  f.Cm = read.template mixers<const T>(in[4]);
  f.skip = read.flat(in[5]);
  f.z = read.template rows<const T>(in[6]);
  f.bias = read.flat(in[7]);
  f.h0 = read.flat(in[8]);
  return f;
}

template <class T, class Run>
void forward(Run run, nb::tuple sizes, nb::tuple in, nb::tuple out, bool softplus, bool reverse, int threads) {
  Forward<T> f = read_inputs<T>(sizes, in, softplus, reverse, threads);
  const Reader<T> read{f.L, reverse};
  f.y = read.template rows<T>(out[0]);
  f.hT = read.flat(out[1]);
  f.checkpoint = read.flat(out[2]);
  nb::gil_scoped_release release;
  run(f);
}

template <class T, class Run>
void backward(Run run, nb::tuple sizes, nb::tuple in, nb::tuple saved, nb::tuple out, bool softplus, bool reverse,
              int threads) {
  Backward<T> w{};
  w.f = read_inputs<T>(sizes, in, softplus, reverse, threads);
  const Reader<T> read{w.f.L, reverse};
  w.dy = read.template rows<const T>(saved[0]);
  w.dhT = read.flat(saved[1]);
  w.f.checkpoint = read.flat(saved[2]);
  w.du = read.template rows<T>(out[0]);
  w.ddelta = read.template rows<T>(out[1]);
  w.dA = read.flat(out[2]);
  w.dB = read.template mixers<T>(out[3]);
  w.dC = read.template mixers<T>(out[4]);
  w.dskip = read.flat(out[5]);
  w.dz = read.template rows<T>(out[6]);
  w.dbias = read.flat(out[7]);
  w.dh0 = read.flat(out[8]);
  nb::gil_scoped_release release;
  run(w);
}

// Sizes (B, L, D, width); inputs x, weight, bias, dy or None; outputs y or dx, dweight, dbias.
template <class T, class Run>
void convolve(Run run, nb::tuple sizes, nb::tuple in, nb::tuple out, bool silu, bool reverse, int threads) {
  Convolution<T> c{};
  c.B = nb::cast<int64_t>(sizes[0]);
  c.L = nb::cast<int64_t>(sizes[1]);
  c.D = nb::cast<int64_t>(sizes[2]);
  c.width = nb::cast<int64_t>(sizes[3]);
  c.silu = silu;
  c.threads = threads;
  const Reader<T> read{c.L, reverse};
  c.x = read.template rows<const T>(in[0]);
  c.weight = read.flat(in[1]);
  c.bias = read.flat(in[2]);
  c.dy = read.template rows<const T>(in[3]);
  c.y = c.dx = read.template rows<T>(out[0]);
  c.dweight = read.flat(out[1]);
  c.dbias = read.flat(out[2]);
  nb::gil_scoped_release release;
  run(c);
}

}  // namespace

NB_MODULE(_cpu, m) {
  m.def("isa", [] { return std::string(active.name); }, "Instruction set in use.");
  m.def("set_isa", &set_isa, "Use another instruction set from now on; returns the one used before.");
  m.def("runnable_isas", [] {
    std::vector<std::string> names;
    for (const Isa& isa : runnable()) names.emplace_back(isa.name);
    return names;
  }, "Instruction sets compiled in that this machine can run, best last.");
  m.def("vendor", [] {
#if defined(__x86_64__) || defined(__i386__)
    if (__builtin_cpu_is("amd")) return std::string("amd");
    if (__builtin_cpu_is("intel")) return std::string("intel");
#endif
    return std::string("other");
  }, "Maker of the processor: amd, intel or other.");
  m.def("chunk_length", &ssmseq::chunk_length, "Steps between two saved states for a state size.");
  m.def("forward", [](bool is_double, nb::tuple sizes, nb::tuple in, nb::tuple out, bool softplus, bool reverse,
                      int threads) {
    if (is_double) forward<double>(active.scan->forward_f64, sizes, in, out, softplus, reverse, threads);
    else forward<float>(active.scan->forward_f32, sizes, in, out, softplus, reverse, threads);
  });
  m.def("backward", [](bool is_double, nb::tuple sizes, nb::tuple in, nb::tuple saved, nb::tuple out, bool softplus,
                       bool reverse, int threads) {
    if (is_double) backward<double>(active.scan->backward_f64, sizes, in, saved, out, softplus, reverse, threads);
    else backward<float>(active.scan->backward_f32, sizes, in, saved, out, softplus, reverse, threads);
  });
  m.def("convolve", [](bool is_double, nb::tuple sizes, nb::tuple in, nb::tuple out, bool silu, bool reverse,
                       int threads) {
    const auto& k = *active.conv;
    const bool back = !in[3].is_none();
    if (is_double) convolve<double>(back ? k.backward_f64 : k.forward_f64, sizes, in, out, silu, reverse, threads);
    else convolve<float>(back ? k.backward_f32 : k.forward_f32, sizes, in, out, silu, reverse, threads);
  });
}
