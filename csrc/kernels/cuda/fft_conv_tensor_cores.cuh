// FFT long convolution on tensor cores, for 16-bit tensors and filters that are prepared, and its gradients: which
// kernels of fft_matrix_conv.cuh run, on which part of the rows. Rows that do not fit into a block take three launches,
// and rows that do not fit with their gradients up to five on the way back, for as many at a time as stay in the L2
// cache.
#pragma once

#include <optional>
#include <utility>

#include "fft_chunks.cuh"
#include "fft_matrix_conv.cuh"
#include "launch.cuh"

namespace monarch {

// The transforms of one call, and the workspace's parts.
class StagedTransforms {
 public:
  StagedTransforms(const TreeShape& tree, const Workspace& workspace, const Exec& exec)
      : tree_(tree),
        exec_(exec),
        whole_(plan_matrix_tile(tree, 1, *exec.device)),
        bytes_(workspace.rows * tree.points * int64_t(sizeof(Bin))),
        next_(static_cast<char*>(exec.workspace)) {}

  // Room for so many rows of floats, or of halves between launches.
  int64_t most_rows() const {
    const auto cut = whole_ ? std::nullopt : plan_matrix_cut(tree_, 1, *exec_.device);
    return room_for(cut ? HalfRows(nullptr, cut->outer).pitch() : tree_.points / 4);
  }
  // The same for gradients: for halves of so many rows and as many gradients.
  int64_t most_pairs(const OuterTile& outer) const {
    return std::max<int64_t>(1, room_for(2 * HalfRows(nullptr, outer).pitch()));
  }
  void* take_rows() { return std::exchange(next_, next_ + bytes_); }
  void* take_rows_unless_whole() { return whole_ ? nullptr : take_rows(); }

  template <class Source, class Sink>
  const char* conv(const Source& source, const Sink& sink, RowGrid grid, const Bin* spectra, void* workspace) const {
    const int rows = grid.rows();
    if (rows == 0) return nullptr;
    if (!whole_) return conv_in_three(source, sink, grid, spectra, workspace);
    const auto tile = plan_matrix_tile(tree_, rows, *exec_.device);
    return with_passes<Source::kMayBePrecise>(*tile, source.are_precise(), [&](auto passes) {
      return launch_resident(&conv_staged_rows<decltype(passes), Source, Sink>, pieces(rows, tile->rows), tile->threads,
                             tile->shared_bytes, exec_, source, sink, grid, spectra, transform(*tile));
    });
  }

  template <class Io>
  const char* gradients(const GradientRows<Io>& rows, RowGrid grid, int slices, const Bin* spectra, Bin* totals) const {
    const int64_t tasks = int64_t{grid.channels} * slices;
    if (tasks == 0) return nullptr;
    const auto tile = plan_gradient_tile(tree_, pieces(grid.batch, slices), *exec_.device);
    if (!tile) return "rows of this length do not fit into a block with their gradients";
    const bool precise = rows.input.are_precise() || rows.grad.are_precise();
    return with_passes<GatedSource<Io>::kMayBePrecise>(*tile, precise, [&](auto passes) {
      return launch_resident(&staged_gradients<decltype(passes), Io>, tasks, tile->threads, tile->shared_bytes, exec_,
                             rows, grid, slices, spectra, totals, transform(*tile));
    });
  }

  // Of rows that do not fit: all of the grid's rows go to one sum per channel.
  template <class Io>
  const char* gradients_in_three(const GradientRows<Io>& rows, RowGrid grid, const Bin* spectra,
                                 const SpectrumSums& sums, void* workspace) const {
    const auto cut = plan_gradient_cut(tree_, grid.batch, *exec_.device);
    if (!cut) return "rows of this length do not fit into blocks with their gradients";
    const OuterTile& outer = cut->outer;
    const HalfRows grads(workspace, outer), inputs(grads.data + grid.rows() * grads.pitch(), outer);
    const char* error = outer_forward(outer, grid, rows.grad, grads);
    if (!error) error = outer_forward(outer, grid, rows.input, inputs);
    const int back = rows.post_wanted ? 2 : rows.input_wanted ? 1 : 0;
    const auto nodes = cut->inner.level ? &staged_inner_gradients<InnerLevel> : &staged_inner_gradients<InnerNode>;
    if (!error) error = run_inner(nodes, *cut, grid.channels, grads, grid, spectra, sums, back);
    if (!error && rows.input_wanted) error = outer_inverse(outer, grid, rows.to_input, grads);
    if (!error && rows.post_wanted) error = outer_inverse(outer, grid, rows.to_post, inputs);
    return error;
  }

 private:
  int64_t room_for(int64_t quads) const { return bytes_ / (quads * int64_t(sizeof(Quad))); }

  // Of whole rows: three products.
  StagedTransform transform(const MatrixTile& tile) const { return transform(tile, 16 * 16 * 16); }
  StagedTransform transform(const MatrixTile& tile, int64_t gain) const {
    const int points = static_cast<int>(tree_.points);
    return {tree_.radix[0], tree_.depth - 2, points, static_cast<float>(gain), tile};
  }

  template <class Kernel, class... Args>
  const char* run_outer(Kernel kernel, const OuterTile& tile, RowGrid grid, const Args&... args) const {
    if (grid.rows() == 0) return nullptr;
    return launch_resident(kernel, int64_t{grid.rows()} * tile.blocks(), tile.threads, tile.shared_bytes, exec_,
                           args..., grid, OuterTransform{tile, head_roots(tile.head)});
  }
  template <class Source>
  const char* outer_forward(const OuterTile& tile, RowGrid grid, const Source& source, const HalfRows& halves) const {
    return with_top<Source::kMayBePrecise>(tile, source.are_precise(), [&](auto top) {
      return run_outer(&staged_outer_forward<Source, decltype(top)>, tile, grid, source, halves);
    });
  }
  template <class Sink>
  const char* outer_inverse(const OuterTile& tile, RowGrid grid, const Sink& sink, const HalfRows& halves) const {
    return with_top<false>(tile, false, [&](auto top) {
      return run_outer(&staged_outer_inverse<Sink, decltype(top)>, tile, grid, sink, halves);
    });
  }
  // `tasks`: of each inner node.
  template <class Kernel, class... Args>
  const char* run_inner(Kernel kernel, const MatrixCut& cut, int64_t tasks, const Args&... args) const {
    return launch_resident(kernel, tasks * cut.outer.nodes, cut.inner.threads, cut.inner.shared_bytes, exec_, args...,
                           transform(cut.inner, tree_.points / beside_products(cut.outer)));
  }

  template <class Source, class Sink>
  const char* conv_in_three(const Source& source, const Sink& sink, RowGrid grid, const Bin* spectra,
                            void* workspace) const {
    const auto cut = plan_matrix_cut(tree_, grid.rows(), *exec_.device);
    if (!cut) return "rows of this length do not fit into blocks";
    const HalfRows halves(workspace, cut->outer);
    const char* error = outer_forward(cut->outer, grid, source, halves);
    const auto nodes = cut->inner.level ? &staged_inner_nodes<InnerLevel> : &staged_inner_nodes<InnerNode>;
    const int groups = static_cast<int>(pieces(grid.rows(), cut->inner.rows));
    if (!error) error = run_inner(nodes, *cut, groups, halves, grid, groups, spectra);
    return error ? error : outer_inverse(cut->outer, grid, sink, halves);
  }

  TreeShape tree_;
  const Exec& exec_;
  std::optional<MatrixTile> whole_;
  int64_t bytes_;
  char* next_;
};

template <class Io>
const char* staged_conv_chunks(const FftConvArgs& a, const Exec& e) {
  StagedTransforms t(a.tree, a.workspace, e);
  void* const rows = t.take_rows_unless_whole();
  const int64_t most_rows = rows ? t.most_rows() : kMostRows;
  return for_chunks(a.batch, a.channels, most_rows, fewest_channels(most_rows, a.batch), [&](const Chunk& c) {
    const auto of = [&](const Rows& r) { return c.of(r, a.io); };
    const int64_t* const lengths = c.of(a.lengths);
    return t.conv(GatedSource<Io>{of(a.u), of(a.pre_gate), lengths, a.seqlen},
                  GatedSink<Io>{of(a.y), of(a.post_gate), lengths, a.seqlen}, c.grid, c.of(a.spectrum, a.tree.points),
                  rows);
  });
}

inline const char* run_staged_conv(const FftConvArgs& a, const Exec& e) {
  return with_short_io(a.io, [&](auto io) { return staged_conv_chunks<typename decltype(io)::type>(a, e); });
}

template <class Io>
GradientRows<Io> gradient_rows(const FftConvGradArgs& a, const Chunk& c) {
  const FftConvArgs& f = a.forward;
  const auto of = [&](const Rows& r) { return c.of(r, f.io); };
  const Rows u = of(f.u), pre = of(f.pre_gate), post = of(f.post_gate), grad = of(a.grad);
  const int64_t* const lengths = c.of(f.lengths);
  return {{u, pre, lengths, f.seqlen},
          {grad, post, lengths, f.seqlen},
          {{of(a.grad_u), pre, lengths, f.seqlen}, {of(a.grad_pre_gate), u, lengths, f.seqlen}},
          {of(a.grad_post_gate), grad, lengths, f.seqlen},
          a.grad_u.data || a.grad_pre_gate.data,
          a.grad_post_gate.data != nullptr};
}

// A channel's filter and its sum take 24 bytes per point of traffic for each chunk, a row and its gradient 8:
// a chunk has no more channels than keep the machine busy,
// and as many batch rows as fit.
template <class Io>
const char* staged_gradient_chunks(const FftConvGradArgs& a, const Exec& e) {
  const FftConvArgs& f = a.forward;
  const auto cut = plan_gradient_cut(f.tree, 1, *e.device);
  if (!cut) return "rows of this length do not fit into blocks with their gradients";
  if (a.batch_slices > 1) return kOneSlice;
  StagedTransforms t(f.tree, f.workspace, e);
  const int64_t most_channels = fewest_busy_channels(cut->outer.nodes, e.device->multiprocessors);
  return for_chunks(f.batch, f.channels, t.most_pairs(cut->outer), most_channels, [&](const Chunk& c) {
    Bin* const all = static_cast<Bin*>(a.spectrum_grad);
    const SpectrumSums sums{all ? all + c.h * f.tree.points : nullptr, c.b > 0};
    return t.gradients_in_three(gradient_rows<Io>(a, c), c.grid, c.of(f.spectrum, f.tree.points), sums, e.workspace);
  });
}

// To the filter's spectrum only: a.grad_taps are null.
inline const char* run_staged_backward(const FftConvGradArgs& a, const Exec& e) {
  const FftConvArgs& f = a.forward;
  return with_short_io(f.io, [&](auto io) -> const char* {
    using Io = typename decltype(io)::type;
    if (!plan_gradient_tile(f.tree, 1, *e.device)) return staged_gradient_chunks<Io>(a, e);
    const Chunk all{0, 0, {static_cast<int>(f.batch), static_cast<int>(f.channels)}};
    return StagedTransforms(f.tree, f.workspace, e)
        .gradients(gradient_rows<Io>(a, all), all.grid, static_cast<int>(a.batch_slices),
                   static_cast<const Bin*>(f.spectrum), static_cast<Bin*>(a.spectrum_grad));
  });
}

inline const char* run_staged_mixer(const MixerArgs& a, const Exec& e) {
  return with_short_io(a.io, [&](auto io) {
    StagedTransforms t(a.tree, a.workspace, e);
    void* const rows = t.take_rows_unless_whole();
    return mixer_chunks<typename decltype(io)::type>(a, t, rows);
  });
}

// Filters are those of the float32 kernels.
template <class T>
constexpr FftConvKernels fft_conv_tensor_cores_kernels(VariantInfo info) {
  return {.info = info, .conv = &run_staged_conv, .backward = &run_staged_backward, .mixer = &run_staged_mixer};
}

}  // namespace monarch
