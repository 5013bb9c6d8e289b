// Argument checks. Every message names the op, the argument, what was wanted and what was got; it reaches Python
// as a ValueError.
#pragma once

#include <initializer_list>
#include <string>

#include "tensor.h"

namespace monarch {

[[noreturn]] void refuse(const char* op, const char* argument, const std::string& wanted, const std::string& got);

// One axis of a wanted shape: its letter, and its size unless any will do.
struct Axis {
  const char* letter;
  int64_t size = -1;
};

std::string shape_text(const Tensor& t);

void check_shape(const char* op, const char* argument, const Tensor& t, std::initializer_list<Axis> wanted);
void check_shape(const char* op, const char* argument, const OptTensor& t, std::initializer_list<Axis> wanted);

// A dtype the library computes with: float32, float64, bfloat16 or float16.
Scalar check_floating(const char* op, const char* argument, const Tensor& t);
void check_floating(const char* op, const char* argument, const OptTensor& t);

void check_same_dtype(const char* op, const char* argument, const OptTensor& t, const char* other, const Tensor& like);
void check_same_device(const char* op, const char* argument, const OptTensor& t, const char* other, const Tensor& like);

// (B,) integers in [0, seqlen], on the device of `like`; returned as int64, contiguous. The values are looked at
// on the CPU only: on CUDA that would stop the host, so there a kernel traps on a bad length, as torch's own
// indexing does.
OptTensor check_lengths(const char* op, const OptTensor& lengths, const Tensor& like, int64_t batch, int64_t seqlen);

}  // namespace monarch
