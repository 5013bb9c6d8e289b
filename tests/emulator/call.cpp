#include "call.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <stdexcept>

#include "runtime.h"

namespace emulator {
namespace {

monarch::Scalar scalar_from(const std::string& name) {
  for (const auto s : {monarch::Scalar::f32, monarch::Scalar::bf16, monarch::Scalar::f16})
    if (name == monarch::scalar_name(s)) return s;
  throw py::value_error("dtype must be float32, bfloat16 or float16, got '" + name + "'");
}

[[noreturn]] void refuse(const std::string& what) { throw std::runtime_error(what); }

}  // namespace

Call::Call(py::kwargs arguments)
    : arguments_(std::move(arguments)),
      // two blocks each; where there is but one, they take several rows
      device_{.kind = monarch::DeviceKind::cuda,
              .isa = monarch::Isa::cuda,
              .l2_bytes = has("l2_bytes") ? integer("l2_bytes") : 50 << 20,
              .index = 0,
              .multiprocessors = has("multiprocessors") ? static_cast<int>(integer("multiprocessors")) : 1,
              .shared_memory = has("shared_memory") ? integer("shared_memory") : 232448,
              .compute_capability = 90} {
  io_ = scalar_from(has("dtype") ? find("dtype").cast<std::string>() : "float32");
  if (has("outputs"))
    for (const auto& name : find("outputs").cast<std::vector<std::string>>()) outputs_.insert(name);
}

py::object Call::find(const char* name) {
  known_.insert(name);
  return arguments_.contains(name) ? py::object(arguments_[name]) : py::none();
}
bool Call::has(const char* name) { return !find(name).is_none(); }
int64_t Call::integer(const char* name) { return find(name).cast<int64_t>(); }
double Call::real(const char* name) { return find(name).cast<double>(); }
bool Call::flag(const char* name) { return has(name) && find(name).cast<bool>(); }
Shape Call::shape(const char* name) {
  const auto array = find(name).cast<py::array>();
  return Shape(array.shape(), array.shape() + array.ndim());
}

py::dtype Call::io_dtype() const {
  return io_ == monarch::Scalar::f32 ? py::dtype::of<float>() : py::dtype::of<uint16_t>();
}
bool Call::wanted(const char* name) { return outputs_.erase(name) > 0; }

py::array Call::fetch(const char* name, const py::dtype& dtype) {
  const auto array = find(name).cast<py::array>();
  if (!array.dtype().equal(dtype))
    throw py::type_error(std::string(name) + " must be " + py::str(dtype).cast<std::string>() + ", is " +
                         py::str(array.dtype()).cast<std::string>());
  return py::array::ensure(array, py::array::c_style);
}

void* Call::add(const char* name, Use use, py::array host) {
  GuardedMemory memory({0}, host.nbytes());
  if (use != Use::output) memory.upload(host.data());
  return arrays_.emplace_back(name, use, std::move(host), std::move(memory)).memory.data();
}

monarch::Rows Call::add_rows(const char* name, Use use, py::array host) {
  if (host.ndim() != 3) throw py::value_error(std::string(name) + " must have three axes");
  // gaps of a few elements, so that rows start at addresses no better aligned than their elements
  const int64_t batch = host.shape(0), channels = host.shape(1), length = host.shape(2), bytes = host.itemsize();
  const int64_t channel_stride = length + (has("gap") ? integer("gap") : 3),
                batch_stride = (channels + 1) * channel_stride;
  std::vector<int64_t> starts;
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < channels; ++h) starts.push_back((b * batch_stride + h * channel_stride) * bytes);
  GuardedMemory memory(std::move(starts), length * bytes);
  if (use != Use::output) memory.upload(host.data());
  void* const data = arrays_.emplace_back(name, use, std::move(host), std::move(memory)).memory.data();
  return {data, batch_stride, channel_stride};
}

monarch::Rows Call::rows(const char* name) {
  return has(name) ? add_rows(name, Use::input, fetch(name, io_dtype())) : monarch::Rows{};
}
void* Call::io_array(const char* name) { return has(name) ? add(name, Use::input, fetch(name, io_dtype())) : nullptr; }
void* Call::array(const char* name) {
  return has(name) ? add(name, Use::input, fetch(name, py::dtype::of<float>())) : nullptr;
}
const int64_t* Call::lengths(const char* name) {
  return has(name) ? static_cast<const int64_t*>(add(name, Use::input, fetch(name, py::dtype::of<int64_t>())))
                   : nullptr;
}
void* Call::io_array_in_place(const char* name) { return add(name, Use::in_place, fetch(name, io_dtype())); }

monarch::Rows Call::rows_out(const char* name, const Shape& shape) {
  return wanted(name) ? add_rows(name, Use::output, py::array(io_dtype(), shape)) : monarch::Rows{};
}
void* Call::io_array_out(const char* name, const Shape& shape) {
  return wanted(name) ? add(name, Use::output, py::array(io_dtype(), shape)) : nullptr;
}
void* Call::array_out(const char* name, const Shape& shape) {
  return wanted(name) ? add(name, Use::output, py::array(py::dtype::of<float>(), shape)) : nullptr;
}

void Call::check_arguments() const {
  for (const auto& [key, value] : arguments_)
    if (const auto name = key.cast<std::string>(); !known_.contains(name)) throw py::type_error("no argument " + name);
  if (!outputs_.empty()) throw py::type_error("no output " + *outputs_.begin());
}

void Call::check(Array& array) {
  if (const auto offset = array.memory.outside_write())
    refuse("wrote outside of '" + array.name + "', at byte " + std::to_string(*offset) + " from its start");
  if (array.use == Use::input) {
    std::vector<std::byte> now(array.host.nbytes());
    array.memory.download(now.data());
    if (!std::equal(now.begin(), now.end(), static_cast<const std::byte*>(array.host.data())))
      refuse("changed the input '" + array.name + "'");
    return;
  }
  if (array.use == Use::in_place) array.host = py::array(array.host.dtype(), shape(array.name.c_str()));
  array.memory.download(array.host.mutable_data());
  if (const auto i = GuardedMemory::unwritten(array.host.data(), array.host.size(), array.host.itemsize()))
    refuse("element " + std::to_string(*i) + " of '" + array.name + "' was not written, or is made of such elements");
}

py::dict Call::finish(const char* error, GuardedMemory& workspace) {
  if (error) refuse(error);
  if (const auto offset = workspace.outside_write())
    refuse("wrote outside of the workspace, at byte " + std::to_string(*offset) + " from its start");
  py::dict results;
  for (Array& array : arrays_) {
    check(array);
    if (array.use != Use::input) results[array.name.c_str()] = array.host;
  }
  return results;
}

void define_schedule(py::module_& m) {
  m.def(
      "set_schedule",
      [](const std::string& order, uint64_t seed) {
        if (order == "forward") {
          set_schedule(Order::forward, seed);
        } else if (order == "reverse") {
          set_schedule(Order::reverse, seed);
        } else if (order == "random") {
          set_schedule(Order::random, seed);
        } else {
          throw py::value_error("order must be forward, reverse or random, got '" + order + "'");
        }
      },
      py::arg("order"), py::arg("seed") = 0);
}

}  // namespace emulator
