// Reads torch tensors without a header or a library of torch: through DLPack's exchange table where the tensor type has
// one (torch 2.10 and newer), else through the tensor's own Python methods, which takes ten times as long.
#pragma once
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cstdint>

#include "kernels.h"

namespace ssmseq {

namespace dlpack {  // the parts of DLPack's C interface, version 1, that are used here
struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};
struct Tensor {
  void* data;
  int32_t device_type, device_id, ndim;
  DataType dtype;
  int64_t *shape, *strides;
  uint64_t byte_offset;
};
struct ExchangeTable {
  uint32_t major, minor;
  void* previous;
  void *allocate, *managed_from_object, *managed_to_object;
  int (*tensor_from_object)(void* object, Tensor* out);
  void* current_stream;
};
constexpr uint8_t kBfloat = 4;
constexpr int32_t kCpu = 1;
}  // namespace dlpack

struct View {  // a tensor of up to four axes; null if none was given, or it is empty; of -1 axes if it is on a device
  char* p = nullptr;
  int axes = 0, bits = 0;
  bool bfloat = false;
  int64_t shape[4] = {}, stride[4] = {};
  Kind kind() const { return bits != 16 ? Kind::native : bfloat ? Kind::bfloat16 : Kind::float16; }
};

struct Looks {  // what is to be known of a tensor on any device beside the numbers in it
  static constexpr int kMostAxes = 8;
  int64_t dtype = 0, device = 0, place = 0;  // place is 0 if there are no numbers
  int32_t axes = 0;
  int64_t shape[kMostAxes], stride[kMostAxes];
};

class Reader {
  nanobind::handle tensor_, parameter_, bfloat16_;
  const dlpack::ExchangeTable* table_ = nullptr;

  Reader() {
    nanobind::object torch = nanobind::module_::import_("torch");
    tensor_ = torch.attr("Tensor").inc_ref();
    parameter_ = torch.attr("nn").attr("Parameter").inc_ref();
    bfloat16_ = torch.attr("bfloat16").inc_ref();
    use_table(true);
  }
  static int64_t integer(nanobind::handle x) { return nanobind::cast<int64_t>(x); }
  static View elsewhere() {
    View v;
    v.axes = -1;
    return v;
  }
  View through_methods(nanobind::handle x) const {
    if (!nanobind::cast<bool>(x.attr("is_cpu"))) return elsewhere();
    View v;
    nanobind::object shape = x.attr("shape"), stride = x.attr("stride")();
    v.axes = static_cast<int>(nanobind::len(shape));
    if (v.axes > 4) throw nanobind::value_error("a tensor of more than four axes");
    for (int i = 0; i < v.axes; ++i) {
      v.shape[i] = integer(shape[i]);
      v.stride[i] = integer(stride[i]);
    }
    v.bits = static_cast<int>(8 * integer(x.attr("element_size")()));
    v.bfloat = x.attr("dtype").is(bfloat16_);
    v.p = reinterpret_cast<char*>(integer(x.attr("data_ptr")()));
    return v;
  }
  View through_table(nanobind::handle x) const {
    dlpack::Tensor t;
    if (table_->tensor_from_object(x.ptr(), &t)) {
      nanobind::python_error error;  // takes the error, which a tensor without memory causes too
      if (!nanobind::cast<bool>(x.attr("is_cpu"))) return elsewhere();
      throw error;
    }
    if (t.device_type != dlpack::kCpu) return elsewhere();
    if (t.ndim > 4) throw nanobind::value_error("a tensor of more than four axes");
    View v;
    v.axes = t.ndim;
    for (int i = 0; i < t.ndim; ++i) {
      v.shape[i] = t.shape[i];
      v.stride[i] = t.strides[i];
    }
    v.bits = t.dtype.bits;
    v.bfloat = t.dtype.code == dlpack::kBfloat;
    v.p = static_cast<char*>(t.data) + t.byte_offset;
    return v;
  }
  bool look_by_methods(nanobind::handle x, Looks* t) const {
    const bool on_cpu = nanobind::cast<bool>(x.attr("is_cpu"));
    if (!on_cpu && !nanobind::cast<bool>(x.attr("is_cuda"))) return false;
    nanobind::object shape = x.attr("shape"), stride = x.attr("stride")();
    t->axes = static_cast<int>(nanobind::len(shape));
    if (t->axes > Looks::kMostAxes) return false;
    for (int i = 0; i < t->axes; ++i) {
      t->shape[i] = integer(shape[i]);
      t->stride[i] = integer(stride[i]);
    }
    t->dtype = reinterpret_cast<int64_t>(x.attr("dtype").ptr());  // there is one object of each
    t->device = on_cpu ? -1 : integer(x.attr("get_device")());
    t->place = integer(x.attr("data_ptr")());
    return true;
  }

 public:
  static Reader& get() {
    static Reader* reader = new Reader();  // never destroyed: Python may be gone by then
    return *reader;
  }
  bool use_table(bool wanted) {  // false if there is none
    table_ = nullptr;
    if (!wanted || !nanobind::hasattr(tensor_, "__dlpack_c_exchange_api__")) return false;
    nanobind::object capsule = tensor_.attr("__dlpack_c_exchange_api__");
    auto* table = static_cast<dlpack::ExchangeTable*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    if (!table) throw nanobind::python_error();
    if (table->major == 1 && table->tensor_from_object) table_ = table;
    return table_;
  }
  // Look at a tensor on any device; false if that cannot be done, as with those without memory.
  bool look(nanobind::handle x, Looks* t) const {
    if (!table_) {
      if (!look_by_methods(x, t)) return false;
    } else {
      dlpack::Tensor found;
      if (table_->tensor_from_object(x.ptr(), &found)) {
        PyErr_Clear();
        return false;
      }
      if (found.ndim > Looks::kMostAxes) return false;
      t->axes = found.ndim;
      std::copy_n(found.shape, found.ndim, t->shape);
      std::copy_n(found.strides, found.ndim, t->stride);
      t->dtype = found.dtype.code << 16 | found.dtype.bits;
      t->device = int64_t{found.device_type} << 32 | found.device_id;
      t->place = reinterpret_cast<int64_t>(found.data) + static_cast<int64_t>(found.byte_offset);
    }
    for (int i = 0; i < t->axes; ++i)
      if (!t->shape[i]) t->place = 0;
    return true;
  }
  // Neither None nor of a class derived from Tensor, such as those that tracing uses.
  bool plain(nanobind::handle x) const {
    PyTypeObject* type = Py_TYPE(x.ptr());
    return reinterpret_cast<PyObject*>(type) == tensor_.ptr() || reinterpret_cast<PyObject*>(type) == parameter_.ptr();
  }
  bool derived(nanobind::handle x) const {  // of something that is not plain: whether it is a tensor all the same
    return !x.is_none() && !PyLong_Check(x.ptr()) && PyObject_IsInstance(x.ptr(), tensor_.ptr()) == 1;
  }
  View operator()(nanobind::handle x) const {
    if (x.is_none()) return View();
    View v = table_ ? through_table(x) : through_methods(x);
    for (int i = 0; i < v.axes; ++i)
      if (!v.shape[i]) v.p = nullptr;
    return v;
  }
};

}  // namespace ssmseq
