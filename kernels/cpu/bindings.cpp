// Python bindings. The caller (ssmseq_kernels/cpu.py) keeps the tensors alive and has checked them, but for a decode step,
// whose checks would take longer in Python than the step itself.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <initializer_list>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "calls.h"
#include "kernels.h"
#include "tensors.h"

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
#if defined(__aarch64__)
  const char* first = "neon";  // what every processor of the architecture has
#else
  const char* first = "baseline";
#endif
  std::vector<Isa> list{{first, &ssmseq::scan_baseline, &ssmseq::conv_baseline}};
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

const ssmseq::View read(nb::handle x) { return ssmseq::Reader::get()(x); }

Rows as_rows(const ssmseq::View& v) {  // (B, L, D)
  return {v.p, v.kind(), v.stride[0], v.stride[1], v.stride[2]};
}
Rows as_states(const ssmseq::View& v) {  // (B, D, N): states take the place of time
  return {v.p, v.kind(), v.stride[0], v.stride[2], v.stride[1]};
}
Rows as_steps(const ssmseq::View& v) {  // (B, D)
  return {v.p, v.kind(), v.stride[0], 0, v.stride[1]};
}
Mixers as_mixers(const ssmseq::View& v) {  // (B, L, G, N), or (D, N) if constant
  if (v.axes == 2) return {v.p, v.kind(), 0, 0, v.stride[0], v.stride[1], true};
  return {v.p, v.kind(), v.stride[0], v.stride[1], v.stride[2], v.stride[3], false};
}
Sequence as_sequence(const ssmseq::View& v) {
  return {reinterpret_cast<const int32_t*>(v.p), v.stride[0], v.stride[1]};
}
template <class T> T* flat(nb::handle x) { return reinterpret_cast<T*>(read(x).p); }  // contiguous, or null

// Reads the tensors of one call; with `reverse` time runs backwards through every one.
template <class T> struct InTime {
  int64_t L;
  bool reverse;
  Rows rows(nb::handle x) const { return turned(as_rows(read(x))); }
  Mixers mixers(nb::handle x) const {
    const Mixers m = as_mixers(read(x));
    return m.constant ? m : turned(m);
  }
  Sequence sequence(nb::handle x) const {
    Sequence s = as_sequence(read(x));
    if (reverse && L && s.p) s.p += (L - 1) * s.time;
    if (reverse) s.time = -s.time;
    return s;
  }
  template <class R> R turned(R r) const {
    if (!reverse || !r.p) return r;
    if (L) r.p += (L - 1) * r.time * ssmseq::item_size<T>(r.kind);
    r.time = -r.time;
    return r;
  }
};

nb::handle field(nb::handle t, int i) { return PyTuple_GetItem(t.ptr(), i); }
bool flag(nb::handle t, int i) { return field(t, i).is(Py_True); }

// (u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx, softplus, reverse, results...)
constexpr int kScanInputs = 12;
template <class T> InTime<T> read_scan(nb::handle call, Scan<T>& s) {
  const ssmseq::View u = read(field(call, 0)), A = read(field(call, 2));
  const ssmseq::View B = read(field(call, 3)), C = read(field(call, 4));
  s.B = u.shape[0];
  s.L = u.shape[1];
  s.D = u.shape[2];
  s.N = A.shape[1];
  s.G = B.axes == 4 ? B.shape[2] : C.axes == 4 ? C.shape[2] : 1;
  s.softplus = flag(call, 10);
  const InTime<T> in{s.L, flag(call, 11)};
  s.u = in.turned(as_rows(u));
  s.delta = in.rows(field(call, 1));
  s.A = {A.p, Kind::native, 0, A.stride[1], A.stride[0]};
  s.Bm = in.mixers(field(call, 3));
  s.Cm = in.mixers(field(call, 4));
  s.skip = flat<T>(field(call, 5));
  s.z = in.rows(field(call, 6));
  s.bias = flat<T>(field(call, 7));
  s.h0 = as_states(read(field(call, 8)));
  s.seq = in.sequence(field(call, 9));
  return in;
}

constexpr int kMostScans = 2;

template <class T> void scan_forward(void (*run)(const Scan<T>*, int, int), nb::tuple calls, int threads) {
  Scan<T> scans[kMostScans];
  const int count = static_cast<int>(calls.size());
  for (int i = 0; i < count; ++i) {  // results: y, final state, kept states
    const nb::handle call = field(calls, i);
    const InTime<T> in = read_scan(call, scans[i]);
    scans[i].y = in.rows(field(call, kScanInputs));
    scans[i].hT = as_states(read(field(call, kScanInputs + 1)));
    scans[i].checkpoint = flat<T>(field(call, kScanInputs + 2));
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
    const InTime<T> in = read_scan(call, s);
    int at = kScanInputs;
    s.dy = in.rows(field(call, at++));
    s.dhT = as_states(read(field(call, at++)));
    s.checkpoint = flat<T>(field(call, at++));
    s.du = in.rows(field(call, at++));
    s.ddelta = in.rows(field(call, at++));
    s.dA = flat<T>(field(call, at++));
    s.dB = in.mixers(field(call, at++));
    s.dC = in.mixers(field(call, at++));
    s.dskip = flat<T>(field(call, at++));
    s.dz = in.rows(field(call, at++));
    s.dbias = flat<T>(field(call, at++));
    s.dh0 = as_states(read(field(call, at++)));
  }
  nb::gil_scoped_release release;
  run(scans, count, threads);
}

// The tensors of one step in the order of the operator's arguments, y last.
struct Step {
  nb::handle state, u, delta, A, B, C, D, z, bias, y;
};
struct Sizes {  // how a step size is made of delta and bias
  bool softplus = true, limited = false;
  double smallest = 0, largest = 0;
};
bool is(const ssmseq::View& v, std::initializer_list<int64_t> shape, int bits) {
  if (v.axes != static_cast<int>(shape.size()) || (v.bits != bits && (bits != 32 || v.bits != 16))) return false;
  int i = 0;
  for (int64_t n : shape)
    if (v.shape[i++] != n) return false;
  return true;
}

// Axes i and i + 1 as one; where they do not lie so, a view that fits nothing.
ssmseq::View merged(ssmseq::View v, int i) {
  if (v.axes <= i + 1) return v;
  if (v.shape[i] != 1 && v.shape[i + 1] != 1 && v.stride[i] != v.stride[i + 1] * v.shape[i + 1]) v.axes = 0;
  if (v.shape[i + 1] != 1) v.stride[i] = v.stride[i + 1];
  v.shape[i] *= v.shape[i + 1];
  for (int k = i + 1; k < 3; ++k) {
    v.shape[k] = v.shape[k + 1];
    v.stride[k] = v.stride[k + 1];
  }
  --v.axes;
  return v;
}

// Whether the shapes, dtypes and strides are those that the kernel takes; if not, nothing is done. With A (H,), a step of
// Mamba-2: state (B, H, P, N), u and z (B, H, P), delta (B, H), D (H,) or (H, P), bias (H,).
template <class T>
bool scan_update(void (*run)(const Update<T>&, int), const Step& t, const ssmseq::View& A, const Sizes& sizes, int threads) {
  constexpr int bits = 8 * sizeof(T);
  Update<T> w;
  ssmseq::View state = read(t.state), u = read(t.u), D = read(t.D), z = read(t.z), y = read(t.y);
  const ssmseq::View delta = read(t.delta), B = read(t.B), C = read(t.C), bias = read(t.bias);
  w.one_rate = A.axes == 1;
  if (w.one_rate) {
    if (u.axes != 3 || state.axes != 4) return false;
    w.head = u.shape[2];
    w.skip_head = D.axes == 2 ? 1 : w.head;
    for (ssmseq::View* v : {&state, &u, &z, &y}) *v = merged(*v, 1);
    if (D.axes == 2) D = merged(D, 0);
  }
  if (u.axes != 2 || A.axes < 1 || A.axes > 2 || !w.head) return false;
  w.B = u.shape[0];
  w.D = u.shape[1];
  w.N = w.one_rate ? state.shape[2] : A.shape[1];
  w.G = B.axes == 3 ? B.shape[1] : 1;
  bool fits = w.N > 0 && w.G > 0 && w.D % w.G == 0 && state.bits == bits && state.stride[2] == 1 && A.bits == bits &&
              (w.one_rate || A.stride[1] == 1) && A.shape[0] * w.head == w.D && y.bits == u.bits &&
              y.bfloat == u.bfloat && is(state, {w.B, w.D, w.N}, bits) && is(delta, {w.B, w.D / w.head}, bits);
  for (const ssmseq::View* v : {&u, &z, &y}) fits &= (v == &z && t.z.is_none()) || is(*v, {w.B, w.D}, bits);
  for (const ssmseq::View* v : {&B, &C}) fits &= w.G == 1 && v->axes == 2 ? is(*v, {w.B, w.N}, bits) : is(*v, {w.B, w.G, w.N}, bits);
  fits &= t.D.is_none() || (is(D, {w.D / w.skip_head}, bits) && D.bits == bits);
  fits &= t.bias.is_none() || (is(bias, {w.D / w.head}, bits) && bias.bits == bits);
  if (!fits) return false;
  if (!u.p) return true;  // no batch element or no channel
  auto mixers = [](const ssmseq::View& v) {
    const int last = v.axes - 1;
    return Mixers{v.p, v.kind(), v.stride[0], 0, v.axes == 3 ? v.stride[1] : 0, v.stride[last], false};
  };
  auto weights = [](const ssmseq::View& v, int64_t along) { return Rows{v.p, Kind::native, 0, along, v.stride[0]}; };
  w.state = as_states(state);
  w.u = as_steps(u);
  w.delta = as_steps(delta);
  w.A = weights(A, 1);
  w.Bm = mixers(B);
  w.Cm = mixers(C);
  w.skip = weights(D, 0);
  w.z = as_steps(z);
  w.bias = weights(bias, 0);
  w.softplus = sizes.softplus;
  w.limited = sizes.limited;
  w.smallest = static_cast<T>(sizes.smallest);
  w.largest = static_cast<T>(sizes.largest);
  w.y = as_steps(y);
  nb::gil_scoped_release release;
  run(w, threads);
  return true;
}

// (x, weight, bias, before, seq_idx, silu, reverse, y or dx, dy, dweight, dbias, dbefore)
template <class T> void convolve(void (*run)(const Convolution<T>&, int), nb::tuple call, int threads) {
  Convolution<T> c;
  const ssmseq::View x = read(field(call, 0)), weight = read(field(call, 1));
  c.B = x.shape[0];
  c.L = x.shape[1];
  c.D = x.shape[2];
  c.width = weight.shape[1];
  const InTime<T> in{c.L, flag(call, 6)};
  c.x = in.turned(as_rows(x));
  c.weight = reinterpret_cast<const T*>(weight.p);
  c.bias = flat<T>(field(call, 2));
  c.before = as_rows(read(field(call, 3)));
  c.seq = in.sequence(field(call, 4));
  c.silu = flag(call, 5);
  c.y = c.dx = in.rows(field(call, 7));
  c.dy = in.rows(field(call, 8));
  c.dweight = flat<T>(field(call, 9));
  c.dbias = flat<T>(field(call, 10));
  c.dbefore = as_rows(read(field(call, 11)));
  nb::gil_scoped_release release;
  run(c, threads);
}

bool is_double(nb::handle x) { return read(x).bits == 64; }

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
  m.def("use_exchange_table", [](bool wanted) { return ssmseq::Reader::get().use_table(wanted); },
        "Read tensors through DLPack's exchange table or not; returns whether it is used.");
  nb::set_leak_warnings(false);  // what is remembered lives as long as the modules of Python do
  m.def("way", [](nb::tuple arguments, bool differentiable) -> int { return ssmseq::way(arguments, differentiable); });
  nb::class_<ssmseq::Tape>(m, "Tape")
      .def(nb::init<int, nb::handle, nb::handle, nb::object>(), nb::arg("device"), nb::arg("allocations"),
           nb::arg("launches"), nb::arg("results").none())
      .def_ro("device", &ssmseq::Tape::device);
  nb::class_<ssmseq::Memory>(m, "Memory")
      .def(nb::init<size_t>())
      .def("find", [](const ssmseq::Memory& known, nb::tuple call) { return known.find(call); })
      .def("keep", [](ssmseq::Memory& known, nb::tuple call, nb::object value) { known.keep(call, std::move(value)); })
      .def("again", [](const ssmseq::Memory& known, nb::tuple call, int device, nb::handle stream) {
        return known.again(call, device, stream);
      })
      .def("values", &ssmseq::Memory::values)
      .def("clear", &ssmseq::Memory::clear);
  m.def("forward", [](nb::tuple calls, int threads) {
    if (is_double(field(field(calls, 0), 2))) scan_forward<double>(active.scan->forward_f64, calls, threads);
    else scan_forward<float>(active.scan->forward_f32, calls, threads);
  });
  m.def("backward", [](nb::tuple calls, int threads) {
    if (is_double(field(field(calls, 0), 2))) scan_backward<double>(active.scan->backward_f64, calls, threads);
    else scan_backward<float>(active.scan->backward_f32, calls, threads);
  });
  m.def("update",
        [](nb::handle state, nb::handle u, nb::handle delta, nb::handle A, nb::handle B, nb::handle C, nb::handle D,
           nb::handle z, nb::handle bias, bool softplus, nb::handle limit, nb::handle y, int threads) {
          const Step step{state, u, delta, A, B, C, D, z, bias, y};
          Sizes sizes{softplus};
          if (!limit.is_none()) {
            sizes.limited = true;
            std::tie(sizes.smallest, sizes.largest) = nb::cast<std::tuple<double, double>>(limit);
          }
          for (nb::handle x : {state, u, delta, A, B, C, D, z, bias})
            if (!x.is_none() && !ssmseq::Reader::get().plain(x)) return false;
          const ssmseq::View rates = read(A);
          if (rates.bits == 64) return scan_update<double>(active.scan->update_f64, step, rates, sizes, threads);
          return scan_update<float>(active.scan->update_f32, step, rates, sizes, threads);
        },
        nb::arg("state"), nb::arg("u"), nb::arg("delta"), nb::arg("A"), nb::arg("B"), nb::arg("C"),
        nb::arg("D").none(), nb::arg("z").none(), nb::arg("bias").none(), nb::arg("softplus"), nb::arg("limit").none(),
        nb::arg("y"), nb::arg("threads"));
  m.def("convolve", [](const std::string& what, nb::tuple call, int threads) {
    const auto& k = *active.conv;
    const bool wide = is_double(field(call, 1));
    if (what == "forward" && wide) convolve<double>(k.forward_f64, call, threads);
    else if (what == "forward") convolve<float>(k.forward_f32, call, threads);
    else if (what == "backward" && wide) convolve<double>(k.backward_f64, call, threads);
    else if (what == "backward") convolve<float>(k.backward_f32, call, threads);
    else if (wide) convolve<double>(k.update_f64, call, threads);
    else convolve<float>(k.update_f32, call, threads);
  });
}
