#include "check.h"

#include <sstream>
#include <stdexcept>

namespace monarch {
namespace {

std::string device_text(const Tensor& t) {
  return t.is_cpu() ? "cpu" : t.is_cuda() ? "cuda:" + std::to_string(t.get_device_index()) : "another device";
}

std::string dtype_text(const Tensor& t) { return torch::headeronly::toString(t.scalar_type()); }

}  // namespace

void refuse(const char* op, const char* argument, const std::string& wanted, const std::string& got) {
  throw std::invalid_argument(std::string(op) + ": argument '" + argument + "' must " + wanted + ", got " + got);
}

std::string shape_text(const Tensor& t) {
  std::ostringstream out;
  out << "(";
  for (int64_t i = 0; i < t.dim(); ++i) out << (i ? ", " : "") << t.size(i);
  out << (t.dim() == 1 ? ",)" : ")");
  return out.str();
}

void check_shape(const char* op, const char* argument, const Tensor& t, std::initializer_list<Axis> wanted) {
  bool fits = t.dim() == static_cast<int64_t>(wanted.size());
  int64_t i = 0;
  std::ostringstream shape;
  for (const Axis& axis : wanted) {
    fits = fits && (axis.size < 0 || t.size(i) == axis.size);
    shape << (i++ ? ", " : "") << axis.letter;
    if (axis.size >= 0) shape << "=" << axis.size;
  }
  if (!fits) refuse(op, argument, "have shape (" + shape.str() + (i == 1 ? ",)" : ")"), shape_text(t));
}

void check_shape(const char* op, const char* argument, const OptTensor& t, std::initializer_list<Axis> wanted) {
  if (t) check_shape(op, argument, *t, wanted);
}

Scalar check_floating(const char* op, const char* argument, const Tensor& t) {
  const auto scalar = scalar_of(t.scalar_type());
  if (!scalar) refuse(op, argument, "be float32, float64, bfloat16 or float16", dtype_text(t));
  return *scalar;
}

void check_floating(const char* op, const char* argument, const OptTensor& t) {
  if (t) check_floating(op, argument, *t);
}

void check_same_dtype(const char* op, const char* argument, const OptTensor& t, const char* other, const Tensor& like) {
  if (t && t->scalar_type() != like.scalar_type())
    refuse(op, argument, "have the dtype of '" + std::string(other) + "', " + dtype_text(like), dtype_text(*t));
}

void check_same_device(const char* op, const char* argument, const OptTensor& t, const char* other,
                       const Tensor& like) {
  if (t && (t->is_cpu() != like.is_cpu() || t->get_device_index() != like.get_device_index()))
    refuse(op, argument, "be on the device of '" + std::string(other) + "', " + device_text(like), device_text(*t));
}

OptTensor check_lengths(const char* op, const OptTensor& lengths, const Tensor& like, int64_t batch, int64_t seqlen) {
  if (!lengths) return std::nullopt;
  check_shape(op, "lengths", *lengths, {{"B", batch}});
  const ScalarType dtype = lengths->scalar_type();
  if (dtype != ScalarType::Int && dtype != ScalarType::Long)
    refuse(op, "lengths", "be int32 or int64", dtype_text(*lengths));
  check_same_device(op, "lengths", lengths, "u", like);
  Tensor wide = contiguous_as(*lengths, ScalarType::Long);
  if (like.is_cpu()) {
    const int64_t* values = wide.const_data_ptr<int64_t>();
    for (int64_t b = 0; b < batch; ++b)
      if (values[b] < 0 || values[b] > seqlen)
        refuse(op, "lengths", "lie in [0, L=" + std::to_string(seqlen) + "]",
               std::to_string(values[b]) + " at index " + std::to_string(b));
  }
  return wide;
}

}  // namespace monarch
