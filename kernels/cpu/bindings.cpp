// Python bindings. Tensors arrive as tuples of integers, (address, kind, strides...): no torch header is needed to build,
// and no DLPack capsule is made per call. The caller (ssmseq_kernels/cpu.py) keeps the tensors alive and has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <string>
#include <vector>

#include "kernels.h"

namespace nb = nanobind;
using ssmseq::Convolution;
using ssmseq::Kind;
using ssmseq::Mixers;
using ssmseq::Rows;
using ssmseq::Scan;
using ssmseq::Sequence;
using ssmseq::Update;

namespace {

struct Isa {
  const char* name;
  const ssmseq::ScanKernels* scan;
  const ssmseq::ConvolutionKernels* conv;
};

std::vector<Isa> runnable() {  // best last
  std::vector<Isa> list{{"baseline", &ssmseq::scan_baseline, &ssmseq::conv_baseline}};
#ifdef SSMSEQ_HAS_avx2
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
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

int64_t number(nb::handle t, int i) { return PyLong_AsLongLong(PyTuple_GetItem(t.ptr(), i)); }
nb::handle field(nb::handle t, int i) { return PyTuple_GetItem(t.ptr(), i); }
bool flag(nb::handle t, int i) { return field(t, i).is(Py_True); }

// Reads the tuples of one call; with `reverse` time runs backwards through every tensor.
template <class T> struct Reader {
  int64_t L;
  bool reverse;

  T* flat(nb::handle t, int i) const { return reinterpret_cast<T*>(number(t, i)); }  // 0 is null
  Rows states(nb::handle t) const {  // (address, kind, batch, time, channel)
    Rows r;
    if (t.is_none()) return r;
    r.p = reinterpret_cast<char*>(number(t, 0));
    r.kind = static_cast<Kind>(number(t, 1));
    r.batch = number(t, 2);
    r.time = number(t, 3);
    r.channel = number(t, 4);
    return r;
  }
  Rows rows(nb::handle t) const {
    Rows r = states(t);
    if (r.p && reverse) turn(r.p, r.time, ssmseq::item_size<T>(r.kind));
    return r;
  }
  Mixers mixers(nb::handle t) const {  // (address, kind, batch, time, group, state) or (address, kind, channel, state)
    Mixers m;
    if (t.is_none()) return m;
    m.p = reinterpret_cast<char*>(number(t, 0));
    m.kind = static_cast<Kind>(number(t, 1));
    m.constant = PyTuple_Size(t.ptr()) == 4;
    if (m.constant) {
      m.group = number(t, 2);
      m.state = number(t, 3);
      return m;
    }
    m.batch = number(t, 2);
    m.time = number(t, 3);
    m.group = number(t, 4);
    m.state = number(t, 5);
    if (reverse) turn(m.p, m.time, ssmseq::item_size<T>(m.kind));
    return m;
  }
  Sequence sequence(nb::handle t) const {  // (address, batch, time)
    Sequence s;
    if (t.is_none()) return s;
    char* p = reinterpret_cast<char*>(number(t, 0));
    s.batch = number(t, 1);
    s.time = number(t, 2);
    if (reverse) turn(p, s.time, sizeof(int32_t));
    s.p = reinterpret_cast<const int32_t*>(p);
    return s;
  }
  void turn(char*& p, int64_t& stride, int64_t item) const {
    if (L) p += (L - 1) * stride * item;
    stride = -stride;
  }
};

// (sizes (B, L, D, N, G), u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, softplus, reverse, results...)
constexpr int kScanInputs = 13;
template <class T> Reader<T> read_scan(nb::handle call, Scan<T>& s) {
  const nb::handle sizes = field(call, 0);
  s.B = number(sizes, 0);
  s.L = number(sizes, 1);
  s.D = number(sizes, 2);
  s.N = number(sizes, 3);
  s.G = number(sizes, 4);
  s.softplus = flag(call, 11);
  const Reader<T> read{s.L, flag(call, 12)};
  s.u = read.rows(field(call, 1));
  s.delta = read.rows(field(call, 2));
  s.A = read.states(field(call, 3));
  s.Bm = read.mixers(field(call, 4));
  s.Cm = read.mixers(field(call, 5));
  s.skip = read.flat(call, 6);
  s.z = read.rows(field(call, 7));
  s.bias = read.flat(call, 8);
  s.h0 = read.states(field(call, 9));
  s.seq = read.sequence(field(call, 10));
  return read;
}

constexpr int kMostScans = 2;

template <class T> void scan_forward(void (*run)(const Scan<T>*, int, int), nb::tuple calls, int threads) {
  Scan<T> scans[kMostScans];
  const int count = static_cast<int>(calls.size());
  for (int i = 0; i < count; ++i) {  // results: y, final state, kept states
    const nb::handle call = field(calls, i);
    const Reader<T> read = read_scan(call, scans[i]);
    scans[i].y = read.rows(field(call, kScanInputs));
    scans[i].hT = read.states(field(call, kScanInputs + 1));
    scans[i].checkpoint = read.flat(call, kScanInputs + 2);
  }
  nb::gil_scoped_release release;
  run(scans, count, threads);
}

template <class T> void scan_backward(void (*run)(const Scan<T>*, int, int), nb::tuple calls, int threads) {
  Scan<T> scans[kMostScans];
  const int count = static_cast<int>(calls.size());
  for (int i = 0; i < count; ++i) {  // given: gradients of y and the final state, kept states; then the results
    const nb::handle call = field(calls, i);
    Scan<T>& s = scans[i];
    const Reader<T> read = read_scan(call, s);
    int at = kScanInputs;
    s.dy = read.rows(field(call, at++));
    s.dhT = read.states(field(call, at++));
    s.checkpoint = read.flat(call, at++);
    s.du = read.rows(field(call, at++));
    s.ddelta = read.rows(field(call, at++));
    s.dA = read.flat(call, at++);
    s.dB = read.mixers(field(call, at++));
    s.dC = read.mixers(field(call, at++));
    s.dskip = read.flat(call, at++);
    s.dz = read.rows(field(call, at++));
    s.dbias = read.flat(call, at++);
    s.dh0 = read.states(field(call, at++));
  }
  nb::gil_scoped_release release;
  run(scans, count, threads);
}

// (sizes (B, D, N, G), state, u, delta, A, B, C, D, z, delta_bias, softplus, y)
template <class T> void scan_update(void (*run)(const Update<T>&, int), nb::tuple call, int threads) {
  Update<T> w;
  const nb::handle sizes = field(call, 0);
  w.B = number(sizes, 0);
  w.D = number(sizes, 1);
  w.N = number(sizes, 2);
  w.G = number(sizes, 3);
  const Reader<T> read{1, false};
  w.state = read.states(field(call, 1));
  w.u = read.states(field(call, 2));
  w.delta = read.states(field(call, 3));
  w.A = read.states(field(call, 4));
  w.Bm = read.mixers(field(call, 5));
  w.Cm = read.mixers(field(call, 6));
  w.skip = read.flat(call, 7);
  w.z = read.states(field(call, 8));
  w.bias = read.flat(call, 9);
  w.softplus = flag(call, 10);
  w.y = read.states(field(call, 11));
  nb::gil_scoped_release release;
  run(w, threads);
}

// (sizes (B, L, D, width), x, weight, bias, before, seq_idx, silu, reverse, y or dx, dy, dweight, dbias, dbefore)
template <class T> void convolve(void (*run)(const Convolution<T>&, int), nb::tuple call, int threads) {
  Convolution<T> c;
  const nb::handle sizes = field(call, 0);
  c.B = number(sizes, 0);
  c.L = number(sizes, 1);
  c.D = number(sizes, 2);
  c.width = number(sizes, 3);
  const Reader<T> read{c.L, flag(call, 7)};
  c.x = read.rows(field(call, 1));
  c.weight = read.flat(call, 2);
  c.bias = read.flat(call, 3);
  c.before = read.states(field(call, 4));
  c.seq = read.sequence(field(call, 5));
  c.silu = flag(call, 6);
  c.y = c.dx = read.rows(field(call, 8));
  c.dy = read.rows(field(call, 9));
  c.dweight = read.flat(call, 10);
  c.dbias = read.flat(call, 11);
  c.dbefore = read.states(field(call, 12));
  nb::gil_scoped_release release;
  run(c, threads);
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
  m.attr("CHUNK") = ssmseq::kChunk;           // steps between two kept states
  m.attr("WIDEST") = ssmseq::kMaxWidth;       // taps of a convolution
  m.def("forward", [](bool is_double, nb::tuple calls, int threads) {
    if (is_double) scan_forward<double>(active.scan->forward_f64, calls, threads);
    else scan_forward<float>(active.scan->forward_f32, calls, threads);
  });
  m.def("backward", [](bool is_double, nb::tuple calls, int threads) {
    if (is_double) scan_backward<double>(active.scan->backward_f64, calls, threads);
    else scan_backward<float>(active.scan->backward_f32, calls, threads);
  });
  m.def("update", [](bool is_double, nb::tuple call, int threads) {
    if (is_double) scan_update<double>(active.scan->update_f64, call, threads);
    else scan_update<float>(active.scan->update_f32, call, threads);
  });
  m.def("convolve", [](const std::string& what, bool is_double, nb::tuple call, int threads) {
    const auto& k = *active.conv;
    if (what == "forward" && is_double) convolve<double>(k.forward_f64, call, threads);
    else if (what == "forward") convolve<float>(k.forward_f32, call, threads);
    else if (what == "backward" && is_double) convolve<double>(k.backward_f64, call, threads);
    else if (what == "backward") convolve<float>(k.backward_f32, call, threads);
    else if (is_double) convolve<double>(k.update_f64, call, threads);
    else convolve<float>(k.update_f32, call, threads);
  });
}
