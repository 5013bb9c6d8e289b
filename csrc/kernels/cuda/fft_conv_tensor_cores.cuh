// FFT long convolution on tensor cores, for 16-bit tensors and filters that are prepared: each row is read once and
// written once. Blocks stay for the whole launch, each with a contiguous share of the rows, channel by channel.
#pragma once

#include "fft_chunks.cuh"
#include "fft_matrix.cuh"
#include "launch.cuh"

namespace monarch {

// The channels of a block's rows, and the magnitude of their filters.
MONARCH_DEVICE_CALL void find_filters(RowsInUse use, const Bin* spectra, int first, int batch) {
  const StagedRows s(use);
  bool changed = false;
  for (int row = 0; row < s.rows; ++row) changed |= s.channel(row) != static_cast<uint32_t>((first + row) / batch);
  if (!changed) return;
  __syncthreads();
  for_each(s.rows, [&](int64_t row) {
    s.channel(row) = (first + row) / batch;
    s.greatest_bin(row) = 0;
  });
  for (int row = 0; row < s.rows; ++row) {
    const auto* const bins = s.filter(spectra, row);
    for (int i = s.thread; i < s.points() / 2; i += s.tile.threads) {
      const BinPair pair = bins[i];
      uint32_t greatest = 0;
      for (const float v : {pair.first.re, pair.first.im, pair.second.re, pair.second.im}) {
        const uint32_t bits = bits_of(v) & 0x7FFFFFFF;
        greatest = bits > greatest ? bits : greatest;
      }
      greatest = warp_max(greatest);
      if (s.at.lane == 0) atomicMax(&s.greatest_bin(row), greatest);
    }
  }
}

// The passes of a MatrixTile, a kernel for each kind: all that a thread has then fits into its registers.
struct NodesBelowHead {
  static MONARCH_DEVICE void run(RowsInUse rows, const Bin* spectra) {
    staged_head<false, false>(rows);
    node_pass<false, false>(rows, spectra);
    staged_head<true, false>(rows);
  }
};
template <int Parts>
struct LevelAtRoot {
  static MONARCH_DEVICE void run(RowsInUse rows, const Bin* spectra) {
    level_forward_real<Parts>(rows);
    node_pass<(Parts > 1), true>(rows, spectra);
    level_inverse_real<Parts>(rows);
  }
};
struct LevelBelowHead {
  static MONARCH_DEVICE void run(RowsInUse rows, const Bin* spectra) {
    staged_head<false, true>(rows);
    level_forward(rows);
    node_pass<true, true>(rows, spectra);
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

template <class Passes, class Source, class Sink>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    conv_staged_rows(Source source, Sink sink, RowGrid grid, const Bin* spectra, int head, int depth, MatrixTile tile,
                     HeadRoots roots) {
  BlockState& block = *shared_memory<BlockState>();
  for_each(1, [&](int64_t) { block = {tile, Share(pieces(grid.rows(), tile.rows)), grid.rows()}; });
  if (threadIdx.x == 0) StagedRows({0}).head_roots() = roots;
  make_tables(head, depth);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int first = i * tile.rows, left = block.rows - first;
    const RowsInUse use{left < tile.rows ? left : tile.rows, i & 1};
    find_filters(use, spectra, first, grid.batch);
    const auto rows_of = [&](const auto& place) {
      return [&, first](const StagedRows& s, int row) {
        const int channel = static_cast<int>(s.channel(row));
        return place.at(first + row - channel * grid.batch, channel);
      };
    };
    stage(use, rows_of(source));
    Passes::run(use, spectra);
    unstage(use, rows_of(sink));
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
                             tile->shared_bytes, exec_, source, sink, grid, spectra, tree_.radix[0], tree_.depth - 2,
                             *tile, head_roots(tile->head));
    });
  }

 private:
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

inline const char* run_staged_mixer(const MixerArgs& a, const Exec& e) {
  return with_short_io(a.io, [&](auto io) {
    StagedTransforms t(a.tree, e);
    return mixer_chunks<typename decltype(io)::type>(a, t, nullptr);
  });
}

// Filters and gradients are those of the float32 kernels.
template <class T>
constexpr FftConvKernels fft_conv_tensor_cores_kernels(VariantInfo info) {
  return {.info = info, .conv = &run_staged_conv, .mixer = &run_staged_mixer};
}

}  // namespace monarch
