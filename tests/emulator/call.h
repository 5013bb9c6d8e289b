// One call of a kernel function from Python: takes the named numpy arrays apart into the fields of an args struct,
// with every array in guarded memory of its own, runs the kernel and hands the outputs back. Anything a kernel must
// not do with memory is an error that names the array: writing outside of it, changing an input, leaving an element
// of an output unwritten.
//
// 16-bit tensors are numpy uint16 bit patterns; the argument `dtype` says which format. The argument `outputs` names
// the outputs that are wanted; the others are null.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <deque>
#include <set>
#include <string>
#include <vector>

#include "guarded_memory.h"
#include "kernels/registry.h"

namespace emulator {

namespace py = pybind11;
using Shape = std::vector<int64_t>;

class Call {
 public:
  explicit Call(py::kwargs arguments);

  monarch::Scalar io() const { return io_; }
  bool has(const char* name);  // given, and not None
  int64_t integer(const char* name);
  double real(const char* name);
  bool flag(const char* name);
  Shape shape(const char* name);

  // Inputs; null when not given. A tensor of rows, (B, H, L) of the io dtype, lies with gaps between its rows, of three
  // elements or of `gap`.
  monarch::Rows rows(const char* name);
  void* io_array(const char* name);
  void* array(const char* name);  // float32
  const int64_t* lengths(const char* name);

  // Outputs; null when not wanted.
  monarch::Rows rows_out(const char* name, const Shape& shape);
  void* io_array_out(const char* name, const Shape& shape);
  void* array_out(const char* name, const Shape& shape);
  void* io_array_in_place(const char* name);  // an input, and an output of the same name

  // A dict of the outputs.
  template <class Args>
  py::dict run(monarch::Kernel<Args> kernel, const Args& args, int64_t workspace_bytes = 0) {
    check_arguments();
    GuardedMemory workspace({0}, workspace_bytes);
    monarch::Exec exec;
    exec.device = &device();
    exec.workspace = workspace.data();
    const char* error = kernel(args, exec);
    return finish(error, workspace);
  }

  // The made-up GPU that everything runs on; the arguments `shared_memory` and `l2_bytes` change it.
  const monarch::DeviceInfo& device() const { return device_; }

 private:
  enum class Use { input, output, in_place };
  struct Array {
    std::string name;
    Use use;
    py::array host;  // what was uploaded, or where results go
    GuardedMemory memory;
  };

  py::object find(const char* name);
  py::array fetch(const char* name, const py::dtype& dtype);
  bool wanted(const char* name);
  py::dtype io_dtype() const;
  void* add(const char* name, Use use, py::array host);
  monarch::Rows add_rows(const char* name, Use use, py::array host);
  void check_arguments() const;
  py::dict finish(const char* error, GuardedMemory& workspace);
  void check(Array& array);

  py::kwargs arguments_;
  std::set<std::string> known_{"dtype", "outputs"};  // arguments somebody asked for
  std::set<std::string> outputs_;
  monarch::Scalar io_;
  monarch::DeviceInfo device_;
  std::deque<Array> arrays_;
};

// Adds set_schedule(order, seed) to a module.
void define_schedule(py::module_& m);

}  // namespace emulator
