// FFT long convolution on tensor cores, for 16-bit tensors and filters that are prepared, and its gradients: each row
// is read once and written once (on the way back, gates and inputs twice). Blocks stay for the whole launch, each with
// a contiguous share of the rows, channel by channel.
#pragma once

#include "fft_chunks.cuh"
#include "fft_matrix_nodes.cuh"
#include "launch.cuh"

namespace monarch {

// The channels of a block's rows, and the magnitude of their filters.
template <class F>
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
    const auto* const bins = s.filter(spectra, row);
    for (int i = s.thread; i < s.points() / 2; i += s.tile.threads) {
      const BinPair pair = bins[i];
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
template <bool Factored, bool Level>
struct PassesOf {
  static MONARCH_DEVICE void multiply(RowsInUse rows, const Bin* spectra) { node_pass<Factored, Level>(rows, spectra); }
  static MONARCH_DEVICE void gradients(RowsInUse rows, const Bin* spectra, Bin* total, bool add, bool inputs_too) {
    node_gradients<Factored, Level>(rows, spectra, total, add, inputs_too);
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
template <class F>
const char* with_passes(const MatrixTile& tile, F f) {
  if (!tile.level) return f(NodesBelowHead());
  if (tile.parts == 2) return f(LevelAtRoot<2>());
  return tile.head == 1 ? f(LevelAtRoot<1>()) : f(LevelBelowHead());
}

// What all kernels are told of their transform.
struct StagedTransform {
  int head, depth;  // children of the root; passes from there to the nodes
  MatrixTile tile;
  HeadRoots roots;

  // The start of a kernel: this block's share of so many tasks, and the tables.
  MONARCH_DEVICE BlockState& begin(int64_t tasks) const {
    BlockState& block = *shared_memory<BlockState>();
    for_each(1, [&](int64_t) { block = {tile, Share(tasks)}; });
    if (threadIdx.x == 0) StagedRows({0}).head_roots() = roots;
    make_tables(head, depth);
    return block;
  }
};

template <class Passes, class Source, class Sink>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    conv_staged_rows(Source source, Sink sink, RowGrid grid, const Bin* spectra, StagedTransform transform) {
  const BlockState& block = transform.begin(pieces(grid.rows(), transform.tile.rows));
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int first = i * block.tile.rows, left = grid.rows() - first;
    const RowsInUse use{left < block.tile.rows ? left : block.tile.rows, i & 1};
    find_filters(use, spectra, [=, batch = grid.batch](int row) { return (first + row) / batch; });
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
  int turn = 0;
  for (int task = block.share.begin; task < block.share.end; ++task) {
    const int channel = task / slices;
    const Share slice(grid.batch, task % slices, slices);
    find_filters({block.tile.rows}, spectra, [channel](int) { return channel; });
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

// The transforms of one call.
class StagedTransforms {
 public:
  StagedTransforms(const TreeShape& tree, const Exec& exec) : tree_(tree), exec_(exec) {}

  Bin* take_rows() { return static_cast<Bin*>(exec_.workspace); }

  template <class Source, class Sink>
  const char* conv(const Source& source, const Sink& sink, RowGrid grid, const Bin* spectra, Bin*) const {
    const int rows = grid.rows();
    if (rows == 0) return nullptr;
    const auto tile = plan_matrix_tile(tree_, rows, *exec_.device);
    if (!tile) return "rows of this length do not fit into a block";
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

 private:
  StagedTransform transform(const MatrixTile& tile) const {
    return {tree_.radix[0], tree_.depth - 2, tile, head_roots(tile.head)};
  }

  TreeShape tree_;
  const Exec& exec_;
};

inline const char* run_staged_conv(const FftConvArgs& a, const Exec& e) {
  return with_short_io(a.io, [&](auto io) {
    using Io = typename decltype(io)::type;
    const RowGrid grid{static_cast<int>(a.batch), static_cast<int>(a.channels)};
    return StagedTransforms(a.tree, e).conv(GatedSource<Io>{a.u, a.pre_gate, a.lengths, a.seqlen},
                                            GatedSink<Io>{a.y, a.post_gate, a.lengths, a.seqlen}, grid,
                                            static_cast<const Bin*>(a.spectrum), nullptr);
  });
}

// To the filter's spectrum only: a.grad_taps are null.
inline const char* run_staged_backward(const FftConvGradArgs& a, const Exec& e) {
  const FftConvArgs& f = a.forward;
  return with_short_io(f.io, [&](auto io) {
    using Io = typename decltype(io)::type;
    const auto source = [&](const Rows& x, const Rows& gate) { return GatedSource<Io>{x, gate, f.lengths, f.seqlen}; };
    const auto sink = [&](const Rows& y, const Rows& gate) { return GatedSink<Io>{y, gate, f.lengths, f.seqlen}; };
    const GradientRows<Io> rows{source(f.u, f.pre_gate),
                                source(a.grad, f.post_gate),
                                {sink(a.grad_u, f.pre_gate), sink(a.grad_pre_gate, f.u)},
                                sink(a.grad_post_gate, a.grad),
                                a.grad_u.data || a.grad_pre_gate.data,
                                a.grad_post_gate.data != nullptr};
    const RowGrid grid{static_cast<int>(f.batch), static_cast<int>(f.channels)};
    return StagedTransforms(f.tree, e).gradients(rows, grid, static_cast<int>(a.batch_slices),
                                                 static_cast<const Bin*>(f.spectrum),
                                                 static_cast<Bin*>(a.spectrum_grad));
  });
}

inline const char* run_staged_mixer(const MixerArgs& a, const Exec& e) {
  return with_short_io(a.io, [&](auto io) {
    StagedTransforms t(a.tree, e);
    return mixer_chunks<typename decltype(io)::type>(a, t, nullptr);
  });
}

// Filters are those of the float32 kernels.
template <class T>
constexpr FftConvKernels fft_conv_tensor_cores_kernels(VariantInfo info) {
  return {.info = info, .conv = &run_staged_conv, .backward = &run_staged_backward, .mixer = &run_staged_mixer};
}

}  // namespace monarch
