// Remembers calls by what they depend on beside the numbers in their tensors: that these fit, or what a call allocates and
// launches on a GPU, to do it again without the Python that found it out.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "tensors.h"

namespace ssmseq {

namespace nb = nanobind;

// Dtypes, devices, shapes, strides, alignment, which tensors begin at one place, and other arguments, as bytes; and the
// addresses of the tensors.
struct Call {
  std::string key;
  std::vector<int64_t> places;

  explicit Call(nb::handle arguments) {
    key.reserve(1024);
    places.reserve(16);
    if (!add(arguments)) key.clear();
  }
  bool told() const { return !key.empty(); }  // false if some argument is of another kind, such as a tensor that traces

 private:
  template <class T> void put(const T& x) { key.append(reinterpret_cast<const char*>(&x), sizeof(T)); }
  bool add_tensor(nb::handle x) {
    Looks t;
    if (!Reader::get().look(x, &t)) return false;
    put('t');
    put(t.dtype);
    put(t.device);
    put(t.axes);
    key.append(reinterpret_cast<const char*>(t.shape), sizeof(int64_t) * t.axes);
    key.append(reinterpret_cast<const char*>(t.stride), sizeof(int64_t) * t.axes);
    put(t.place % 16 == 0);
    put(std::find(places.begin(), places.end(), t.place) - places.begin());
    places.push_back(t.place);
    return true;
  }
  bool add(nb::handle x) {
    if (Reader::get().plain(x)) return add_tensor(x);
    if (x.is_none()) {
      put('n');
    } else if (x.is(Py_True) || x.is(Py_False)) {
      put(x.is(Py_True) ? 'y' : 'z');
    } else if (PyLong_CheckExact(x.ptr())) {
      int overflow = 0;
      put('i');
      put(PyLong_AsLongLongAndOverflow(x.ptr(), &overflow));
      return !overflow;
    } else if (PyFloat_CheckExact(x.ptr())) {
      put('f');
      put(PyFloat_AsDouble(x.ptr()));
    } else if (PyTuple_Check(x.ptr())) {
      const Py_ssize_t count = PyTuple_Size(x.ptr());
      put('(');
      put(count);
      for (Py_ssize_t i = 0; i < count; ++i)
        if (!add(PyTuple_GetItem(x.ptr(), i))) return false;
    } else {
      return false;
    }
    return true;
  }
};

inline nb::object called(nb::handle function, PyObject* const* arguments, size_t count, nb::handle names = {}) {
  PyObject* result = PyObject_Vectorcall(function.ptr(), arguments, count, names.ptr());
  if (!result) throw nb::python_error();
  return nb::steal(result);
}

// What a call does on a device: tensors that it allocates, kernels that it launches, and which allocations it returns.
class Tape {
  struct Place {  // which input or allocation, the inputs first, and bytes from where it begins; -1 for nowhere
    int64_t index, offset;
  };
  struct Allocation {
    nb::object same;                         // a tensor without elements, the same every time, or
    std::vector<nb::object> made_by;         // shape, strides, dtype and device of a new one
  };
  struct Launch {
    nb::object run;
    std::vector<nb::object> before, after;   // arguments before and after the addresses
    std::vector<std::vector<Place>> places;  // of one scan, or of two, whose addresses are passed as tuples
    bool tuples;
  };
  nb::object empty_, names_;
  std::vector<Allocation> allocations_;
  std::vector<Launch> launches_;
  nb::object results_;

  static std::vector<Place> places_of(nb::handle pairs) {
    std::vector<Place> found;
    for (nb::handle pair : pairs) found.push_back({nb::cast<int64_t>(pair[0]), nb::cast<int64_t>(pair[1])});
    return found;
  }
  static std::vector<nb::object> listed(nb::handle x) {
    std::vector<nb::object> found;
    for (nb::handle own : x) found.push_back(nb::borrow(own));
    return found;
  }
  static int64_t address(const std::vector<int64_t>& starts, const Place& place) {
    return place.index < 0 ? 0 : starts[place.index] + place.offset;
  }
  nb::object result(nb::handle which, const std::vector<nb::object>& made) const {
    if (which.is_none()) return nb::none();
    if (!PyTuple_Check(which.ptr())) return made[nb::cast<size_t>(which)];
    const Py_ssize_t count = PyTuple_Size(which.ptr());
    nb::object all = nb::steal(PyTuple_New(count));
    for (Py_ssize_t i = 0; i < count; ++i)
      PyTuple_SetItem(all.ptr(), i, result(PyTuple_GetItem(which.ptr(), i), made).release().ptr());
    return all;
  }
  void launch(const Launch& one, const std::vector<int64_t>& starts, nb::handle stream) const {
    std::vector<nb::object> found;
    for (const auto& places : one.places) {
      nb::object own = one.tuples ? nb::steal(PyTuple_New(places.size())) : nb::object();
      for (size_t i = 0; i < places.size(); ++i) {
        PyObject* number = PyLong_FromLongLong(address(starts, places[i]));
        if (one.tuples) PyTuple_SetItem(own.ptr(), i, number);
        else found.push_back(nb::steal(number));
      }
      if (one.tuples) found.push_back(std::move(own));
    }
    std::vector<PyObject*> arguments;
    arguments.reserve(4 + one.before.size() + found.size() + one.after.size());
    for (const auto& x : one.before) arguments.push_back(x.ptr());
    arguments.insert(arguments.begin() + kGrid, stream.ptr());
    for (const auto& x : found) arguments.push_back(x.ptr());
    for (const auto& x : one.after) arguments.push_back(x.ptr());
    called(one.run, arguments.data(), arguments.size());
  }

 public:
  static constexpr size_t kGrid = 3;  // arguments of a launcher before the stream
  int device;

  // Allocations: tensors, or (shape, strides, dtype, device). Launches: (launcher, arguments before the addresses but for
  // the stream, places, arguments after them), with places (index, offset), or tuples of them.
  Tape(int on, nb::handle allocations, nb::handle launches, nb::object results) : results_(results), device(on) {
    empty_ = nb::module_::import_("torch").attr("empty_strided");
    names_ = nb::make_tuple("dtype", "device");
    for (nb::handle x : allocations) {
      if (PyTuple_Check(x.ptr())) allocations_.push_back({nb::object(), listed(x)});
      else allocations_.push_back({nb::borrow(x), {}});
    }
    for (nb::handle x : launches) {
      Launch one{nb::borrow(x[0]), listed(x[1]), listed(x[3]), {}, false};
      nb::object places = x[2];
      nb::object first = places[0];
      one.tuples = PyTuple_Check(nb::object(first[0]).ptr());
      if (one.tuples) for (nb::handle own : places) one.places.push_back(places_of(own));
      else one.places.push_back(places_of(places));
      launches_.push_back(std::move(one));
    }
  }
  nb::object play(std::vector<int64_t> starts, nb::handle stream) const {
    std::vector<nb::object> made;
    made.reserve(allocations_.size());
    for (const Allocation& one : allocations_) {
      if (one.same) {
        made.push_back(one.same);
      } else {
        PyObject* arguments[4];
        for (int i = 0; i < 4; ++i) arguments[i] = one.made_by[i].ptr();
        made.push_back(called(empty_, arguments, 2, names_));
      }
      Looks looks;
      if (!Reader::get().look(made.back(), &looks)) throw std::runtime_error("an allocation cannot be read");
      starts.push_back(looks.place);
    }
    for (const Launch& one : launches_) launch(one, starts, stream);
    return result(results_, made);
  }
};

class Memory {
  struct Known {
    nb::object value;
    const Tape* tape;  // the value, if it is one
  };
  std::unordered_map<std::string, Known> known_;
  size_t most_;

 public:
  explicit Memory(size_t most) : most_(most) {}
  void clear() {
    decltype(known_) dropped;  // whose destructors may run Python, which may ask this memory
    dropped.swap(known_);
  }
  nb::list values() const {
    nb::list all;
    for (const auto& [key, known] : known_) all.append(known.value);
    return all;
  }
  nb::object find(nb::handle arguments) const {  // None if there is nothing
    const Call call(arguments);
    const auto found = call.told() ? known_.find(call.key) : known_.end();
    return found == known_.end() ? nb::none() : found->second.value;
  }
  void keep(nb::handle arguments, nb::object value) {
    const Call call(arguments);
    if (!call.told()) return;
    if (known_.size() >= most_) clear();
    const Tape* tape = nb::isinstance<Tape>(value) ? nb::inst_ptr<Tape>(value) : nullptr;
    known_[call.key] = {std::move(value), tape};
  }
  // The results of doing it again; None if nothing is known of such a call, False if it cannot be done on this device.
  nb::object again(nb::handle arguments, int device, nb::handle stream) const {
    Call call(arguments);
    if (!call.told()) return nb::borrow(Py_False);
    const auto found = known_.find(call.key);
    if (found == known_.end()) return nb::none();
    const Known known = found->second;  // a copy, because Python that runs meanwhile may clear the memory
    if (!known.tape || known.tape->device != device) return nb::borrow(Py_False);
    return known.tape->play(std::move(call.places), stream);
  }
};

// How a call is to be run: by the dispatcher, if a tensor among the arguments is of a class derived from Tensor; or
// without it, to be differentiated if a tensor asks for it.
enum Way { kDispatched, kDirect, kDifferentiated };
inline Way way(nb::handle arguments, bool differentiable) {
  static PyObject* name = PyUnicode_InternFromString("requires_grad");
  Way found = kDirect;
  const Py_ssize_t count = PyTuple_Size(arguments.ptr());
  for (Py_ssize_t i = 0; i < count; ++i) {
    const nb::handle x = PyTuple_GetItem(arguments.ptr(), i);
    if (!Reader::get().plain(x)) {
      if (Reader::get().derived(x)) return kDispatched;
    } else if (differentiable && found == kDirect) {
      const nb::object asks = nb::steal(PyObject_GetAttr(x.ptr(), name));
      if (!asks) throw nb::python_error();
      if (asks.is(Py_True)) found = kDifferentiated;
    }
  }
  return found;
}

}  // namespace ssmseq
