// FFT long convolution on CUDA, the simple engine: one thread block per row at a time, the row in device memory
// (it stays in L2). Blocks take contiguous shares of the rows in channel-major order, as threads do on the CPU.
#pragma once

#include "../math/taps.h"
#include "fft_tree.cuh"
#include "launch.cuh"

namespace monarch {

// The share of [0, n) that belongs to this block.
struct Share {
  int64_t begin, end;
  MONARCH_DEVICE explicit Share(int64_t n) : begin(n * blockIdx.x / gridDim.x), end(n * (blockIdx.x + 1) / gridDim.x) {}
};

// Device scratch memory of this block: plan_fft_conv() sized it.
struct BlockBuffers {
  Bin *row, *bins, *filter, *filter_grad;
  MONARCH_DEVICE BlockBuffers(void* workspace, int64_t points)
      : row(static_cast<Bin*>(workspace) + kSpectraPerBlock * blockIdx.x * points),
        bins(row + points),
        filter(bins + points),
        filter_grad(filter + points) {}
};

template <class Io>
MONARCH_DEVICE Io* row_of(const Rows& rows, int64_t b, int64_t h) {
  return rows.data ? static_cast<Io*>(rows.data) + b * rows.batch_stride + h * rows.channel_stride : nullptr;
}

// A bad length stops the kernel: the host cannot look at device memory without waiting for it.
MONARCH_DEVICE int64_t valid_length(const int64_t* lengths, int64_t b, int64_t seqlen) {
  if (!lengths) return seqlen;
  if (lengths[b] < 0 || lengths[b] > seqlen) __trap();
  return lengths[b];
}

// w = the gated row, zero from `valid` on.
template <class Io>
MONARCH_DEVICE void load_row(const Io* x, const Io* gate, int64_t valid, int64_t points, Bin* w) {
  for_each(points, [&](int64_t t) {
    float v = 0;
    if (t < valid) v = gate ? load(x + t) * load(gate + t) : load(x + t);
    w[t] = {v, 0.f};
  });
}

// y = the real parts times the gate, zero from `valid` on.
template <class Io>
MONARCH_DEVICE void store_row(const Bin* w, const Io* gate, int64_t valid, int64_t seqlen, Io* y) {
  if (!y) return;
  for_each(seqlen, [&](int64_t t) { store(y + t, t < valid ? (gate ? w[t].re * load(gate + t) : w[t].re) : 0.f); });
}

MONARCH_DEVICE void multiply(const Bin* x, const Bin* filter, int64_t points, Bin* out) {
  for_each(points, [&](int64_t i) { out[i] = mul(x[i], filter[i]); });
}

MONARCH_DEVICE_CALL void make_spectrum(const Taps& taps, int64_t h, int64_t seqlen, const TreeShape& tree, Bin* out) {
  const TapSequence<float> sequence{taps, h, seqlen, tree.points};
  for_each(tree.points, [&](int64_t t) { out[t] = sequence(t); });
  transform<false>(tree, out);
}

MONARCH_DEVICE_CALL void taps_from_spectrum(const Taps& taps, int64_t h, int64_t seqlen, const TreeShape& tree,
                                            const Bin* spectrum, Bin* w) {
  for_each(tree.points, [&](int64_t i) { w[i] = spectrum[i]; });
  transform<true>(tree, w);
  const TapSequence<float> sequence{taps, h, seqlen, tree.points};
  const auto at = [&](int64_t t) { return w[t]; };
  if (taps.k)
    for_each(taps.num_k, [&](int64_t n) { static_cast<float*>(taps.k)[h * taps.num_k + n] = sequence.k_grad(n, at); });
  if (taps.k_rev)
    for_each(taps.num_rev,
             [&](int64_t n) { static_cast<float*>(taps.k_rev)[h * taps.num_rev + n] = sequence.k_rev_grad(n, at); });
  if (taps.skip) for_each(1, [&](int64_t) { static_cast<float*>(taps.skip)[h] = sequence.skip_grad(at); });
}

MONARCH_KERNEL void filter_kernel(FftFilterArgs a, void* workspace, bool adjoint) {
  const Share share(a.channels);
  const BlockBuffers buffer(workspace, a.tree.points);
  for (int64_t h = share.begin; h < share.end; ++h) {
    Bin* const spectrum = static_cast<Bin*>(a.spectrum) + h * a.tree.points;
    if (adjoint) {
      taps_from_spectrum(a.taps, h, a.seqlen, a.tree, spectrum, buffer.row);
    } else {
      make_spectrum(a.taps, h, a.seqlen, a.tree, spectrum);
    }
  }
}

template <class Io>
MONARCH_KERNEL void conv_kernel(FftConvArgs a, void* workspace) {
  const Share share(a.batch * a.channels);
  const BlockBuffers buffer(workspace, a.tree.points);
  int64_t have = -1;
  for (int64_t task = share.begin; task < share.end; ++task) {
    const int64_t h = task / a.batch, b = task % a.batch;
    const Bin* filter = buffer.filter;
    if (a.spectrum) {
      filter = static_cast<const Bin*>(a.spectrum) + h * a.tree.points;
    } else if (have != h) {
      make_spectrum(a.taps, h, a.seqlen, a.tree, buffer.filter);
      have = h;
    }
    const int64_t valid = valid_length(a.lengths, b, a.seqlen);
    load_row(row_of<Io>(a.u, b, h), row_of<Io>(a.pre_gate, b, h), valid, a.tree.points, buffer.row);
    transform<false>(a.tree, buffer.row);
    multiply(buffer.row, filter, a.tree.points, buffer.row);
    transform<true>(a.tree, buffer.row);
    store_row(buffer.row, row_of<Io>(a.post_gate, b, h), valid, a.seqlen, row_of<Io>(a.y, b, h));
  }
}

template <class Io>
MONARCH_DEVICE void backward_row(const FftConvGradArgs& a, const BlockBuffers& buffer, int64_t b, int64_t h,
                                 const Bin* filter, Bin* filter_grad) {
  const FftConvArgs& f = a.forward;
  const int64_t valid = valid_length(f.lengths, b, f.seqlen), points = f.tree.points;
  const Io *u = row_of<Io>(f.u, b, h), *pre = row_of<Io>(f.pre_gate, b, h), *post = row_of<Io>(f.post_gate, b, h);
  const Io* grad = row_of<Io>(a.grad, b, h);
  Io* const dpost = row_of<Io>(a.grad_post_gate, b, h);
  load_row(u, pre, valid, points, buffer.bins);
  transform<false>(f.tree, buffer.bins);
  load_row(grad, post, valid, points, buffer.row);
  transform<false>(f.tree, buffer.row);
  for_each(points, [&](int64_t i) {
    const Bin g = buffer.row[i];
    if (filter_grad) filter_grad[i] = filter_grad[i] + mul_conj(g, buffer.bins[i]);
    buffer.row[i] = mul_conj(g, filter[i]);
  });
  transform<true>(f.tree, buffer.row);
  store_row(buffer.row, pre, valid, f.seqlen, row_of<Io>(a.grad_u, b, h));
  store_row(buffer.row, u, valid, f.seqlen, row_of<Io>(a.grad_pre_gate, b, h));
  if (dpost) {
    multiply(buffer.bins, filter, points, buffer.bins);
    transform<true>(f.tree, buffer.bins);
    store_row(buffer.bins, grad, valid, f.seqlen, dpost);
  }
}

template <class Io>
MONARCH_KERNEL void backward_kernel(FftConvGradArgs a, void* workspace) {
  const FftConvArgs& f = a.forward;
  const int64_t points = f.tree.points, slices = a.batch_slices;
  const Share share(f.channels * slices);
  const BlockBuffers buffer(workspace, points);
  const bool to_taps = a.grad_taps.k || a.grad_taps.k_rev || a.grad_taps.skip;
  for (int64_t task = share.begin; task < share.end; ++task) {
    const int64_t h = task / slices, slice = task % slices;
    const Bin* filter = buffer.filter;
    if (f.spectrum) {
      filter = static_cast<const Bin*>(f.spectrum) + h * points;
    } else {
      make_spectrum(f.taps, h, f.seqlen, f.tree, buffer.filter);
    }
    Bin* filter_grad = a.spectrum_grad ? static_cast<Bin*>(a.spectrum_grad) + task * points
                       : to_taps       ? buffer.filter_grad
                                       : nullptr;
    if (filter_grad) for_each(points, [&](int64_t i) { filter_grad[i] = {0.f, 0.f}; });
    for (int64_t b = f.batch * slice / slices; b < f.batch * (slice + 1) / slices; ++b)
      backward_row<Io>(a, buffer, b, h, filter, filter_grad);
    if (to_taps) taps_from_spectrum(a.grad_taps, h, f.seqlen, f.tree, filter_grad, buffer.row);
  }
}

// The causal short convolution of channel c of a, at position t.
template <class Io>
MONARCH_DEVICE float short_conv(const MixerArgs& a, int64_t b, int64_t c, int64_t t) {
  const Io* x = row_of<Io>(a.a, b, c);
  const float* weight = static_cast<const float*>(a.short_weight) + c * a.short_taps;
  float v = a.short_bias ? static_cast<const float*>(a.short_bias)[c] : 0.f;
  for (int64_t j = 0; j < a.short_taps; ++j) {
    const int64_t s = t + j - (a.short_taps - 1);
    if (s >= 0) v += weight[j] * load(x + s);
  }
  return v;
}

template <class Io>
MONARCH_KERNEL void mixer_kernel(MixerArgs a, void* workspace) {
  const int64_t points = a.tree.points, H = a.channels;
  const Share share(a.batch * H);
  const BlockBuffers buffer(workspace, points);
  for (int64_t task = share.begin; task < share.end; ++task) {
    const int64_t h = task / a.batch, b = task % a.batch;
    const int64_t valid = valid_length(a.lengths, b, a.seqlen);
    Io* const y = row_of<Io>(a.y, b, h);
    for_each(points, [&](int64_t t) {
      const float v = t < valid ? short_conv<Io>(a, b, h, t) * short_conv<Io>(a, b, 2 * H + h, t) : 0.f;
      buffer.row[t] = {v, 0.f};
    });
    transform<false>(a.tree, buffer.row);
    multiply(buffer.row, static_cast<const Bin*>(a.spectrum) + h * points, points, buffer.row);
    transform<true>(a.tree, buffer.row);
    if (a.residual_spectrum) {
      load_row(row_of<Io>(a.u, b, h), static_cast<const Io*>(nullptr), valid, points, buffer.bins);
      transform<false>(a.tree, buffer.bins);
      multiply(buffer.bins, static_cast<const Bin*>(a.residual_spectrum) + h * points, points, buffer.bins);
      transform<true>(a.tree, buffer.bins);
    }
    for_each(a.seqlen, [&](int64_t t) {
      float v = 0;
      if (t < valid) v = buffer.row[t].re * short_conv<Io>(a, b, H + h, t);
      if (t < valid && a.residual_spectrum) v += buffer.bins[t].re;
      store(y + t, v);
    });
  }
}

inline const char* run_filter(const FftFilterArgs& a, const Exec& e) {
  return launch(&filter_kernel, a.blocks, 0, e, a, e.workspace, false);
}
inline const char* run_filter_adjoint(const FftFilterArgs& a, const Exec& e) {
  return launch(&filter_kernel, a.blocks, 0, e, a, e.workspace, true);
}
inline const char* run_conv(const FftConvArgs& a, const Exec& e) {
  return with_io(
      a.io, [&](auto io) { return launch(&conv_kernel<typename decltype(io)::type>, a.blocks, 0, e, a, e.workspace); });
}
inline const char* run_backward(const FftConvGradArgs& a, const Exec& e) {
  return with_io(a.forward.io, [&](auto io) {
    return launch(&backward_kernel<typename decltype(io)::type>, a.forward.blocks, 0, e, a, e.workspace);
  });
}
inline const char* run_mixer(const MixerArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    return launch(&mixer_kernel<typename decltype(io)::type>, a.blocks, 0, e, a, e.workspace);
  });
}

template <class T>
constexpr FftConvKernels fft_conv_kernels(VariantInfo info) {
  return {info, &run_filter, &run_filter_adjoint, &run_conv, &run_backward, &run_mixer};
}

}  // namespace monarch
