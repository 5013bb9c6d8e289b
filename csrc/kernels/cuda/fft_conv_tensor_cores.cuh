// FFT long convolution on tensor cores, for 16-bit tensors and filters that are prepared, and its gradients: each row
// is read once and written once (on the way back, gates and inputs twice). Blocks stay for the whole launch, each with
// a contiguous share of the rows, channel by channel. Rows that do not fit into a block take three launches, and rows
// that do not fit with their gradients up to five on the way back, for as many at a time as stay in the L2 cache.
#pragma once

#include <optional>
#include <utility>

#include "fft_chunks.cuh"
#include "fft_matrix_nodes.cuh"
#include "fft_matrix_outer.cuh"
#include "launch.cuh"

namespace monarch {

// The channels of a block's rows, and the magnitude of their filters.
template <bool Part, class F>
MONARCH_DEVICE_CALL void find_filters(RowsInUse use, const Bin* spectra, F channel_of) {
  const StagedRows s(use);
  bool changed = false;
  for (int row = 0; row < s.rows; ++row) changed |= s.channel(row) != static_cast<uint32_t>(channel_of(row));
  if (!changed) return;
  __syncthreads();
  for_each(s.rows, [&](int64_t row) {
    s.channel(row) = channel_of(static_cast<int>(row));
    s.greatest_bin(row) = 0;
  });
  for (int row = 0, next; row < s.rows; row = next) {
    for (next = row + 1; next < s.rows && s.channel(next) == s.channel(row);) ++next;
    const NodePairs<Part> places(s, 0);
    const auto* const bins = places.filter(s, spectra, row) + places.first;
    const int together = s.points() / kNodePoints;  // of the first pairs of all nodes, then of the second ones
    for (int i = s.thread; i < s.points() / 2; i += s.tile.threads) {
      const BinPair pair = bins[Part ? i + i / together * (places.pitch - together) : i];
      uint32_t greatest = 0;
      for (const float v : {pair.first.re, pair.first.im, pair.second.re, pair.second.im}) {
        const uint32_t bits = bits_of(v) & 0x7FFFFFFF;
        greatest = bits > greatest ? bits : greatest;
      }
      greatest = warp_max(greatest);
      for (int same = row + s.at.lane; same < next; same += 32) atomicMax(&s.greatest_bin(same), greatest);
    }
  }
}

// The passes of a MatrixTile around its nodes, a type for each kind, so that there is a kernel for each: all that a
// thread has then fits into its registers.
template <bool Factored, bool Level, bool Part = false>
struct PassesOf {
  static MONARCH_DEVICE void multiply(RowsInUse rows, const Bin* spectra) {
    node_pass<Factored, Level, Part>(rows, spectra);
  }
  static MONARCH_DEVICE void gradients(RowsInUse rows, const Bin* spectra, Bin* total, bool add, bool inputs_too) {
    node_gradients<Factored, Level, Part>(rows, spectra, total, add, inputs_too);
  }
};
struct NodesBelowHead : PassesOf<false, false> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { staged_head<false, false>(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { staged_head<true, false>(rows); }
};
template <int Parts>
struct LevelAtRoot : PassesOf<(Parts > 1), true> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { level_forward_real<Parts>(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { level_inverse_real<Parts>(rows); }
};
struct LevelBelowHead : PassesOf<true, true> {
  static MONARCH_DEVICE void forward(RowsInUse rows) {
    staged_head<false, true>(rows);
    level_forward(rows);
  }
  static MONARCH_DEVICE void inverse(RowsInUse rows) {
    level_inverse(rows);
    staged_head<true, true>(rows);
  }
};
// Below an inner node.
struct InnerLevel : PassesOf<true, true, true> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { level_forward(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { level_inverse(rows); }
};
struct InnerNode : PassesOf<false, false, true> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { twist_nodes<false>(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { twist_nodes<true>(rows); }
};

template <class F>
const char* with_passes(const MatrixTile& tile, F f) {
  if (!tile.level) return f(NodesBelowHead());
  if (tile.parts == 2) return f(LevelAtRoot<2>());
  return tile.head == 1 ? f(LevelAtRoot<1>()) : f(LevelBelowHead());
}

// What all kernels are told of their transform.
struct StagedTransform {
  int head, depth, bins;  // children of the root; passes from there to the nodes; bins of a row
  float gain;             // of a row's transform there and back: all of it but the head is products, at 1/4 each
  MatrixTile tile;
  HeadRoots roots;

  // The start of a kernel: this block's share of so many tasks, and the tables, but those of the nodes.
  MONARCH_DEVICE BlockState& begin(int64_t tasks) const {
    BlockState& block = *shared_memory<BlockState>();
    for_each(1, [&](int64_t) { block = {tile, Share(tasks), bins, 0, gain}; });
    if (threadIdx.x == 0) StagedRows({0}).head_roots() = roots;
    make_common_tables();
    return block;
  }
  MONARCH_DEVICE void at_nodes(int first) const {
    for_each(1, [&](int64_t) { shared_memory<BlockState>()->first_node = first; });
    make_node_tables(head, depth);
  }
};

// What the kernels of an outer tile are told.
struct OuterTransform {
  OuterTile tile;
  HeadRoots roots;

  MONARCH_DEVICE OuterState& begin(int64_t tasks, bool inverse) const {
    OuterState& block = *shared_memory<OuterState>();
    for_each(1, [&](int64_t) { block = {tile, Share(tasks)}; });
    if (threadIdx.x == 0) OuterColumns(0).head_roots() = roots;
    make_outer_tables(inverse);
    return block;
  }
};

template <class Passes, class Source, class Sink>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    conv_staged_rows(Source source, Sink sink, RowGrid grid, const Bin* spectra, StagedTransform transform) {
  const BlockState& block = transform.begin(pieces(grid.rows(), transform.tile.rows));
  transform.at_nodes(0);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int first = i * block.tile.rows, left = grid.rows() - first;
    const RowsInUse use{left < block.tile.rows ? left : block.tile.rows, i & 1};
    find_filters<false>(use, spectra, [=, batch = grid.batch](int row) { return (first + row) / batch; });
    const auto rows_of = [&](const auto& place) {
      return [&, first](const StagedRows& s, int row) {
        const int channel = static_cast<int>(s.channel(row));
        return place.at(first + row - channel * grid.batch, channel);
      };
    };
    stage(use, rows_of(source));
    Passes::forward(use);
    Passes::multiply(use, spectra);
    Passes::inverse(use);
    unstage(use, rows_of(sink));
  }
}

// ---- rows that do not fit into a block ------------------------------------------------------------------------------

template <class Source>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    staged_outer_forward(Source source, HalfRows halves, RowGrid grid, OuterTransform transform) {
  const OuterState& block = transform.begin(int64_t{grid.rows()} * halves.blocks, false);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int row = i / halves.blocks, columns = i % halves.blocks, turn = i & 1;
    stage_columns(turn, grid.at(source, row), columns);
    outer_head<false>(turn);
    for (int level = 0; level < block.tile.levels; ++level) outer_level<false>(level);
    put_columns(turn, halves, row, columns);
  }
}

template <class Sink>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    staged_outer_inverse(Sink sink, HalfRows halves, RowGrid grid, OuterTransform transform) {
  const OuterState& block = transform.begin(int64_t{grid.rows()} * halves.blocks, true);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int row = i / halves.blocks, columns = i % halves.blocks, turn = i & 1;
    take_columns(turn, halves, row, columns);
    for (int level = block.tile.levels - 1; level >= 0; --level) outer_level<true>(level);
    outer_head<true>(turn);
    unstage_columns(turn, grid.at(sink, row), columns);
  }
}

// A task is an inner node of as many rows as a block takes; node after node, whose tables are made once.
struct InnerTask {
  int node, first;

  MONARCH_DEVICE InnerTask(int task, int groups, int rows) : node(task / groups), first(task % groups * rows) {}
  MONARCH_DEVICE auto rows() const {
    return [first = first](int row) { return first + row; };
  }
};

template <class Passes>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    staged_inner_nodes(HalfRows halves, RowGrid grid, int groups, const Bin* spectra, StagedTransform transform) {
  const int together = transform.tile.rows;
  const BlockState& block = transform.begin(int64_t{halves.nodes} * groups);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const InnerTask task(i, groups, together);
    if (i == block.share.begin || task.node != InnerTask(i - 1, groups, together).node)
      transform.at_nodes(task.node * transform.tile.nodes);
    const int left = grid.rows() - task.first;
    const RowsInUse use{left < together ? left : together, i & 1};
    find_filters<true>(use, spectra, [=, batch = grid.batch](int row) { return (task.first + row) / batch; });
    stage_halves(use, halves, task.node, task.rows());
    Passes::forward(use);
    Passes::multiply(use, spectra);
    Passes::inverse(use);
    const InnerTask same(anew(i), groups, together);
    unstage_halves(use, halves, same.node, same.rows());
  }
}

// ---- gradients ------------------------------------------------------------------------------------------------------

// Where gradients come from and go to.
template <class Io>
struct GradientRows {
  GatedSource<Io> input, grad;
  ProductGradSink<Io> to_input;
  GatedSink<Io> to_post;
  bool input_wanted, post_wanted;
};

// A task is one slice of a channel's batch, summed in order: the gradient of the filter, in a row of `totals` per task
// if wanted, does not depend on the launch. Gradients lie before their inputs, which need to go back for a gate only.
template <class Passes, class Io>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxGradientThreads)
    staged_gradients(GradientRows<Io> rows, RowGrid grid, int slices, const Bin* spectra, Bin* totals,
                     StagedTransform transform) {
  const BlockState& block = transform.begin(int64_t{grid.channels} * slices);
  transform.at_nodes(0);
  int turn = 0;
  for (int task = block.share.begin; task < block.share.end; ++task) {
    const int channel = task / slices;
    const Share slice(grid.batch, task % slices, slices);
    find_filters<false>({block.tile.rows}, spectra, [channel](int) { return channel; });
    int b = slice.begin;
    do {  // for an empty batch too, whose sum is zero
      const int most = block.tile.rows / 2, n = slice.end - b < most ? slice.end - b : most;
      const RowsInUse use{2 * n, turn ^= 1}, gradients{n, turn};
      const auto rows_of = [&](const auto& place, int before) {
        return [&, before](const StagedRows&, int row) { return place.at(b + row - before, channel); };
      };
      stage(gradients, rows_of(rows.grad, 0));
      stage(use, rows_of(rows.input, n), n);
      Passes::forward(use);
      Bin* const total = totals ? totals + int64_t{task} * StagedRows(use).points() : nullptr;
      Passes::gradients(use, spectra, total, b > slice.begin, rows.post_wanted);
      if (rows.post_wanted || rows.input_wanted) Passes::inverse(rows.post_wanted ? use : gradients);
      if (rows.input_wanted) unstage(gradients, rows_of(rows.to_input, 0));
      if (rows.post_wanted) unstage(use, rows_of(rows.to_post, n), n);
      b += n;
    } while (b < slice.end);
  }
}

// Sums of gradients of spectra, of `data` if that is not null: rows of bins, `pitch` apart, which start as they are
// where `add`, else from zero.
struct SpectrumSums {
  Bin* data;
  int64_t pitch;
  bool add;

  MONARCH_DEVICE Bin* of(int channel) const { return data ? data + channel * pitch : nullptr; }
};

// A task is an inner node of a channel, whose batch rows are summed in order; node after node, as above. The workspace
// has the gradients of all rows of the grid, then the inputs. `back`: what of a pair goes back: nothing, the gradient
// or both.
template <class Passes>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxGradientThreads)
    staged_inner_gradients(HalfRows halves, RowGrid grid, const Bin* spectra, SpectrumSums sums, int back,
                           StagedTransform transform) {
  const BlockState& block = transform.begin(int64_t{halves.nodes} * grid.channels);
  int turn = 0;
  for (int task = block.share.begin; task < block.share.end; ++task) {
    const int node = task / grid.channels, channel = task % grid.channels;
    if (task == block.share.begin || channel == 0) transform.at_nodes(node * block.tile.nodes);
    find_filters<true>({block.tile.rows}, spectra, [channel](int) { return channel; });
    int b = 0;
    do {  // for an empty batch too, whose sum is zero
      const int most = block.tile.rows / 2, n = grid.batch - b < most ? grid.batch - b : most;
      const RowsInUse use{2 * n, turn ^= 1}, wanted{back * n, turn};
      const int first = channel * grid.batch + b, inputs = first + grid.rows() - n;
      const auto row_of = [=](int row) { return row + (row < n ? first : inputs); };
      stage_halves(use, halves, node, row_of);
      Passes::forward(use);
      Passes::gradients(use, spectra, sums.of(channel), sums.add || b > 0, back == 2);
      Passes::inverse(wanted);
      unstage_halves(wanted, halves, node, row_of);
      b += n;
    } while (b < grid.batch);
  }
}

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
    return with_passes(*tile, [&](auto passes) {
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
    return with_passes(*tile, [&](auto passes) {
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
    const auto forward = &staged_outer_forward<GatedSource<Io>>;
    const char* error = run_outer(forward, outer, grid, rows.grad, grads);
    if (!error) error = run_outer(forward, outer, grid, rows.input, inputs);
    const int back = rows.post_wanted ? 2 : rows.input_wanted ? 1 : 0;
    const auto nodes = cut->inner.level ? &staged_inner_gradients<InnerLevel> : &staged_inner_gradients<InnerNode>;
    if (!error) error = run_inner(nodes, *cut, grid.channels, grads, grid, spectra, sums, back);
    if (!error && rows.input_wanted)
      error = run_outer(&staged_outer_inverse<ProductGradSink<Io>>, outer, grid, rows.to_input, grads);
    if (!error && rows.post_wanted)
      error = run_outer(&staged_outer_inverse<GatedSink<Io>>, outer, grid, rows.to_post, inputs);
    return error;
  }

 private:
  int64_t room_for(int64_t quads) const { return bytes_ / (quads * int64_t(sizeof(Quad))); }

  StagedTransform transform(const MatrixTile& tile) const { return transform(tile, tile.head * tile.parts); }
  StagedTransform transform(const MatrixTile& tile, int head) const {
    const int points = static_cast<int>(tree_.points);
    return {tree_.radix[0], tree_.depth - 2, points, static_cast<float>(points / head), tile, head_roots(tile.head)};
  }

  template <class Kernel, class... Args>
  const char* run_outer(Kernel kernel, const OuterTile& tile, RowGrid grid, const Args&... args) const {
    if (grid.rows() == 0) return nullptr;
    return launch_resident(kernel, int64_t{grid.rows()} * tile.blocks(), tile.threads, tile.shared_bytes, exec_,
                           args..., grid, OuterTransform{tile, head_roots(tile.head)});
  }
  // `tasks`: of each inner node.
  template <class Kernel, class... Args>
  const char* run_inner(Kernel kernel, const MatrixCut& cut, int64_t tasks, const Args&... args) const {
    return launch_resident(kernel, tasks * cut.outer.nodes, cut.inner.threads, cut.inner.shared_bytes, exec_, args...,
                           transform(cut.inner, cut.outer.head));
  }

  template <class Source, class Sink>
  const char* conv_in_three(const Source& source, const Sink& sink, RowGrid grid, const Bin* spectra,
                            void* workspace) const {
    const auto cut = plan_matrix_cut(tree_, grid.rows(), *exec_.device);
    if (!cut) return "rows of this length do not fit into blocks";
    const HalfRows halves(workspace, cut->outer);
    const char* error = run_outer(&staged_outer_forward<Source>, cut->outer, grid, source, halves);
    const auto nodes = cut->inner.level ? &staged_inner_nodes<InnerLevel> : &staged_inner_nodes<InnerNode>;
    const int groups = static_cast<int>(pieces(grid.rows(), cut->inner.rows));
    if (!error) error = run_inner(nodes, *cut, groups, halves, grid, groups, spectra);
    return error ? error : run_outer(&staged_outer_inverse<Sink>, cut->outer, grid, sink, halves);
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
  return for_chunks(a.batch, a.channels, rows ? t.most_rows() : kMostRows, kMostRows, [&](const Chunk& c) {
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

// Slice `slice` of the batch, all of which a holds. A channel's filter and its sum take 16 bytes per point, a row and
// its gradient 8: a chunk has no more channels than keep the machine busy, so that filters and sums are read again from
// the L2 cache, and as many batch rows as fit.
template <class Io>
const char* staged_gradient_chunks(const FftConvGradArgs& a, const Exec& e, int64_t slice) {
  constexpr int64_t kTasksPerMultiprocessor = 2;
  const FftConvArgs& f = a.forward;
  const auto cut = plan_gradient_cut(f.tree, 1, *e.device);
  if (!cut) return "rows of this length do not fit into blocks with their gradients";
  StagedTransforms t(f.tree, f.workspace, e);
  const int64_t most_channels = pieces(kTasksPerMultiprocessor * e.device->multiprocessors, cut->outer.nodes);
  const int64_t pitch = a.batch_slices * f.tree.points;
  return for_chunks(f.batch, f.channels, t.most_pairs(cut->outer), most_channels, [&](const Chunk& c) {
    Bin* const all = static_cast<Bin*>(a.spectrum_grad);
    const SpectrumSums sums{all ? all + c.h * pitch + slice * f.tree.points : nullptr, pitch, c.b > 0};
    return t.gradients_in_three(gradient_rows<Io>(a, c), c.grid, c.of(f.spectrum, f.tree.points), sums, e.workspace);
  });
}

// To the filter's spectrum only: a.grad_taps are null.
inline const char* run_staged_backward(const FftConvGradArgs& a, const Exec& e) {
  const FftConvArgs& f = a.forward;
  return with_short_io(f.io, [&](auto io) -> const char* {
    using Io = typename decltype(io)::type;
    if (!plan_gradient_tile(f.tree, 1, *e.device))
      return for_slices(
          a, [&](const FftConvGradArgs& part, int64_t slice) { return staged_gradient_chunks<Io>(part, e, slice); });
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
