// The functions of the kernel table for the long convolution: which kernels of fft_conv.cuh run, on which part of the
// rows, with which part of the workspace.
#pragma once

#include "fft_chunks.cuh"
#include "fft_conv.cuh"

namespace monarch {

// The transforms of one call: tiles for this device, and the workspace's parts.
class Transforms {
 public:
  Transforms(const TreeShape& tree, const Workspace& workspace, const Exec& exec)
      : tree_(tree), exec_(exec), chunk_(workspace), next_(static_cast<Bin*>(exec.workspace)) {}

  int64_t most_rows() const { return chunk_.rows; }
  // Room for the spectra of the channels of a chunk, and for its rows.
  Bin* take_channels() { return take(chunk_.channels); }
  Bin* take_rows() { return take(chunk_.rows); }
  Bin* take_rows_unless_whole(int buffers) { return plan(buffers, 1).whole ? nullptr : take_rows(); }

  template <class Source, class Sink>
  const char* conv(const Source& source, const Sink& sink, RowGrid grid, Bin* spectrum, Bin* rows) const {
    const TilePlan p = plan(1, grid.rows());
    if (p.whole) return run(&conv_rows<Source, Sink>, p.row, grid.rows(), source, sink, grid, spectrum);
    const char* error = forward<float>(source, grid, rows, p);
    if (!error) error = inner<true, true>(grid, spectrum, rows, p);
    return error ? error : inverse<float>(sink, grid, rows, p);
  }

  const char* filter(const TapSource& source, int channels, Bin* spectrum, Bin* rows) const {
    const RowGrid grid{1, channels};
    const TilePlan p = plan(1, channels);
    if (p.whole) return run(&filter_rows, p.row, channels, source, spectrum, grid);
    const char* error = forward<Bin>(source, grid, rows, p);
    return error ? error : inner<true, false>(grid, spectrum, rows, p);
  }

  const char* filter_adjoint(Bin* spectrum, const Taps& taps, int64_t seqlen, int channels, Bin* rows) const {
    const RowGrid grid{1, channels};
    const BinSink sink{rows, tree_.points};
    const TilePlan p = plan(1, channels);
    const char* error;
    if (p.whole) {
      error = run(&filter_adjoint_rows, p.row, channels, spectrum, sink, grid);
    } else {
      error = inner<false, true>(grid, spectrum, rows, p);
      if (!error) error = inverse<Bin>(sink, grid, rows, p);
    }
    return error ? error : launch(&tap_gradients, channels, 0, exec_, rows, taps, seqlen, tree_.points);
  }

  // `slices` of the batch are summed apart, to rows of spectrum.total; rows that are not whole come in slices of one.
  template <class Io>
  const char* backward(const GatedSource<Io>& input, const GatedSource<Io>& grad, const ProductGradSink<Io>& to_input,
                       const GatedSink<Io>& to_post, const SpectrumGrad& spectrum, bool add, RowGrid grid, int slices,
                       Bin* inputs, Bin* grads) const {
    const TilePlan p = plan(2, int64_t{grid.channels} * slices);
    if (p.whole)
      return run(&backward_rows<Io>, p.row, int64_t{grid.channels} * slices, input, grad, to_input, to_post, spectrum,
                 grid, slices);
    const char* error = forward<float>(input, grid, inputs, p);
    if (!error) error = forward<float>(grad, grid, grads, p);
    if (!error)
      error = run(&inner_backward, p.inner, grid.channels * (tree_.points / p.inner.points), inputs, grads, spectrum,
                  add, grid);
    if (!error) error = inverse<float>(to_input, grid, grads, p);
    return error || !spectrum.filtered_input_wanted ? error : inverse<float>(to_post, grid, inputs, p);
  }

 private:
  Bin* take(int64_t rows) {
    Bin* const mine = next_;
    next_ += rows * tree_.points;
    return mine;
  }
  TilePlan plan(int buffers, int64_t rows) const { return plan_tiles(tree_, buffers, rows, *exec_.device); }
  ColumnGrid columns(const TilePlan& p) const { return {tree_.points, p.inner.points, p.outer.columns}; }

  template <class T, class Source>
  const char* forward(const Source& source, RowGrid grid, Bin* rows, const TilePlan& p) const {
    return run(&outer_forward<T, Source>, p.outer, grid.rows() * columns(p).blocks(), source, rows, grid, columns(p));
  }
  template <bool Forward, bool Inverse>
  const char* inner(RowGrid grid, Bin* spectrum, Bin* rows, const TilePlan& p) const {
    return run(&inner_nodes<Forward, Inverse>, p.inner, grid.rows() * (tree_.points / p.inner.points), rows, spectrum,
               grid);
  }
  template <class T, class Sink>
  const char* inverse(const Sink& sink, RowGrid grid, Bin* rows, const TilePlan& p) const {
    return run(&outer_inverse<T, Sink>, p.outer, grid.rows() * columns(p).blocks(), sink, rows, grid, columns(p));
  }

  template <class Kernel, class... Args>
  const char* run(Kernel kernel, const TileShape& shape, int64_t rows, const Args&... args) const {
    if (rows == 0) return nullptr;
    return launch_resident(kernel, tiles_of(rows, shape), shape.threads, shape.shared_bytes, exec_, args...,
                           Transform{tree_, shape, head_roots(tree_.radix[0])});
  }

  TreeShape tree_;
  const Exec& exec_;
  Workspace chunk_;
  Bin* next_;
};

inline const char* run_filter(const FftFilterArgs& a, const Exec& e) {
  Transforms t(a.tree, a.workspace, e);
  Bin* const rows = t.take_rows_unless_whole(1);
  return for_chunks(1, a.channels, a.workspace.rows, a.channels, [&](const Chunk& c) {
    return t.filter({c.of(a.taps), a.seqlen, a.tree.points}, c.grid.channels, c.of(a.spectrum, a.tree.points), rows);
  });
}

inline const char* run_filter_adjoint(const FftFilterArgs& a, const Exec& e) {
  Transforms t(a.tree, a.workspace, e);
  Bin* const rows = t.take_rows();
  return for_chunks(1, a.channels, a.workspace.rows, a.channels, [&](const Chunk& c) {
    return t.filter_adjoint(c.of(a.spectrum, a.tree.points), c.of(a.taps), a.seqlen, c.grid.channels, rows);
  });
}

// The spectra of a chunk's channels: the prepared ones, or made from the taps when the chunk is its channels' first.
inline const char* spectra_of(const FftConvArgs& a, const Chunk& c, const Transforms& t, Bin* made, Bin* rows,
                              Bin*& spectra) {
  spectra = a.spectrum ? c.of(a.spectrum, a.tree.points) : made;
  if (a.spectrum || c.b > 0) return nullptr;
  return t.filter({c.of(a.taps), a.seqlen, a.tree.points}, c.grid.channels, made, rows);
}

template <class Io>
const char* conv_chunks(const FftConvArgs& a, const Exec& e) {
  Transforms t(a.tree, a.workspace, e);
  Bin* const rows = t.take_rows_unless_whole(1);
  Bin* const made = a.spectrum ? nullptr : t.take_channels();
  const int64_t most_rows = rows ? a.workspace.rows : kMostRows;
  // filters are made of many channels at a time
  const int64_t most_channels = made ? a.workspace.channels : fewest_channels(most_rows, a.batch);
  return for_chunks(a.batch, a.channels, most_rows, most_channels, [&](const Chunk& c) {
    Bin* spectra;
    const char* error = spectra_of(a, c, t, made, rows, spectra);
    const auto of = [&](const Rows& r) { return c.of(r, a.io); };
    const int64_t* const lengths = c.of(a.lengths);
    return error ? error
                 : t.conv(GatedSource<Io>{of(a.u), of(a.pre_gate), lengths, a.seqlen},
                          GatedSink<Io>{of(a.y), of(a.post_gate), lengths, a.seqlen}, c.grid, spectra, rows);
  });
}

inline const char* run_conv(const FftConvArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) { return conv_chunks<typename decltype(io)::type>(a, e); });
}

template <class Io>
const char* backward_chunks(const FftConvGradArgs& a, const Exec& e) {
  const FftConvArgs& f = a.forward;
  Transforms t(f.tree, f.workspace, e);
  const bool to_taps = a.grad_taps.k || a.grad_taps.k_rev || a.grad_taps.skip;
  Bin* const inputs = t.take_rows_unless_whole(2);
  if (inputs && a.batch_slices > 1) return kOneSlice;
  Bin* const grads = inputs || to_taps ? t.take_rows() : nullptr;  // and what the adjoint of the filter needs
  Bin* const made = f.spectrum ? nullptr : t.take_channels();
  Bin* const total = to_taps ? t.take_channels() : static_cast<Bin*>(a.spectrum_grad);
  const int64_t most_rows = inputs ? f.workspace.rows : kMostRows;
  const int64_t most_channels =
      !made && !to_taps ? fewest_channels(most_rows, f.batch) : std::min(f.workspace.channels, f.workspace.rows);
  return for_chunks(f.batch, f.channels, most_rows, most_channels, [&](const Chunk& c) {
    const auto of = [&](const Rows& r) { return c.of(r, f.io); };
    const int64_t* const lengths = c.of(f.lengths);
    const Rows u = of(f.u), pre = of(f.pre_gate), post = of(f.post_gate), grad = of(a.grad);
    SpectrumGrad spectrum{nullptr, total, a.grad_post_gate.data != nullptr};
    if (total && !to_taps) spectrum.total += c.h * a.batch_slices * f.tree.points;
    const char* error = spectra_of(f, c, t, made, grads, spectrum.filter);
    if (!error)
      error = t.backward<Io>({u, pre, lengths, f.seqlen}, {grad, post, lengths, f.seqlen},
                             {{of(a.grad_u), pre, lengths, f.seqlen}, {of(a.grad_pre_gate), u, lengths, f.seqlen}},
                             {of(a.grad_post_gate), grad, lengths, f.seqlen}, spectrum, c.b > 0, c.grid,
                             static_cast<int>(a.batch_slices), inputs, grads);
    if (error || !to_taps || c.b + c.grid.batch < f.batch) return error;
    return t.filter_adjoint(total, c.of(a.grad_taps), f.seqlen, c.grid.channels, grads);
  });
}

inline const char* run_backward(const FftConvGradArgs& a, const Exec& e) {
  return with_io(a.forward.io, [&](auto io) { return backward_chunks<typename decltype(io)::type>(a, e); });
}

inline const char* run_mixer(const MixerArgs& a, const Exec& e) {
  return with_io(a.io, [&](auto io) {
    Transforms t(a.tree, a.workspace, e);
    Bin* const rows = t.take_rows_unless_whole(1);
    return mixer_chunks<typename decltype(io)::type>(a, t, rows);
  });
}

template <class T>
constexpr FftConvKernels fft_conv_kernels(VariantInfo info) {
  return {info, &run_filter, &run_filter_adjoint, &run_conv, &run_backward, &run_mixer};
}

}  // namespace monarch
