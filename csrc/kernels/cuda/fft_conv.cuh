// FFT long convolution on CUDA in float32. Rows go channel by channel, all batch rows of a channel after each other,
// and blocks stay for the whole launch, each with a contiguous share. Rows that fit into shared memory are read once
// and written once; longer ones take three launches (plan/tiles.h): outer passes into the workspace, inner nodes in
// place, outer passes back, for as many rows at a time as stay in the L2 cache.
#pragma once

#include "fft_rows.cuh"
#include "launch.cuh"

namespace monarch {

// What all kernels of a transform are told.
struct Transform {
  TreeShape tree;
  TileShape shape;
  HeadRoots roots;

  // Twiddles of a tile that begins at the root, or below node `inner`.
  MONARCH_DEVICE void prepare(const Tile& tile, int inner = 0) const {
    const int depth = tile.head ? 1 : tree.depth - tile.levels;
    if (threadIdx.x == 0) tile.head_roots() = roots;
    make_twiddles(tile, tree.radix[0], depth, inner);
  }
};

constexpr MONARCH_HD int tiles_of(int64_t rows, const TileShape& shape) {
  return static_cast<int>(pieces(rows, shape.rows));
}

// Calls f(first) for the first row of each of this block's tiles.
template <class F>
MONARCH_DEVICE void for_tiles(Tile& tile, const Transform& t, int rows, F f) {
  const Share share(tiles_of(rows, t.shape));
  for (int i = share.begin; i < share.end; ++i) {
    const int first = i * t.shape.rows, left = rows - first;
    tile.rows = left < t.shape.rows ? left : t.shape.rows;
    f(first);
  }
}

// The bins of one node of the last level in row `row` of spectra.
MONARCH_DEVICE NodeBins node_bins(Bin* spectra, int64_t row, int64_t node, const Transform& t) {
  return {spectra + row * t.tree.points, t.tree.points / kNodePoints, node};
}

// x times the filter.
MONARCH_DEVICE void multiply(Bin (&x)[kNodePoints], const NodeBins& filter) {
#pragma unroll
  for (int q = 0; q < kNodePoints / 2; ++q) {
    const BinPair k = filter[q];
    Bin &a = x[NodeBins::first(q)], &b = x[NodeBins::second(q)];
    a = mul(a, k.first), b = mul(b, k.second);
  }
}

// ---- rows that fit into a block -------------------------------------------------------------------------------------

template <class Source, class Sink>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    conv_rows(Source source, Sink sink, RowGrid grid, Bin* spectrum, Transform t) {
  Tile tile(t.shape);
  t.prepare(tile);
  for_tiles(tile, t, grid.rows(), [&](int first) {
    fill<float>(tile, [&](int row) { return grid.at(source, first + row); });
    head_pass<false, true>(tile);
    middle_passes<false>(tile);
    leaf_pass<true, true>(tile, [&](int row, int node, Bin(&x)[kNodePoints]) {
      multiply(x, node_bins(spectrum, (first + row) / grid.batch, node, t));
    });
    middle_passes<true>(tile);
    head_pass<true, true>(tile);
    drain<float>(tile, [&](int row) { return grid.at(sink, first + row); });
  });
}

MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    filter_rows(TapSource taps, Bin* spectrum, RowGrid grid, Transform t) {
  Tile tile(t.shape);
  t.prepare(tile);
  for_tiles(tile, t, grid.rows(), [&](int first) {
    fill<Bin>(tile, [&](int row) { return grid.at(taps, first + row); });
    head_pass<false, false>(tile);
    middle_passes<false>(tile);
    leaf_pass<true, false>(
        tile, [&](int row, int node, Bin(&x)[kNodePoints]) { node_bins(spectrum, first + row, node, t).store(x); });
  });
}

MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    filter_adjoint_rows(Bin* spectrum, BinSink sink, RowGrid grid, Transform t) {
  Tile tile(t.shape);
  t.prepare(tile);
  for_tiles(tile, t, grid.rows(), [&](int first) {
    leaf_pass<false, true>(
        tile, [&](int row, int node, Bin(&x)[kNodePoints]) { node_bins(spectrum, first + row, node, t).load(x); });
    middle_passes<true>(tile);
    head_pass<true, false>(tile);
    drain<Bin>(tile, [&](int row) { return grid.at(sink, first + row); });
  });
}

// What the two backward kernels do between forward and inverse transforms. `grad` and `bins` are the transforms of the
// output gradient and of the input.
struct SpectrumGrad {
  Bin* filter;
  Bin* total;  // null: not wanted
  bool filtered_input_wanted;

  // grad *= conj(filter), total (+)= grad conj(bins), bins *= filter
  MONARCH_DEVICE void operator()(Bin (&grad)[kNodePoints], Bin* bins, int64_t channel, int64_t row, int64_t node,
                                 bool add, const Transform& t) const {
    const NodeBins k = node_bins(filter, channel, node, t), sum = node_bins(total, row, node, t);
#pragma unroll
    for (int q = 0; q < kNodePoints / 2; ++q) {
      const int first = NodeBins::first(q), second = NodeBins::second(q);
      const Bin x = bins[first], y = bins[second];
      Bin &g = grad[first], &h = grad[second];
      if (total) {
        BinPair& to = sum[q];
        const BinPair old = add ? to : BinPair{};
        to = {old.first + mul_conj(g, x), old.second + mul_conj(h, y)};
      }
      const BinPair f = k[q];
      g = mul_conj(g, f.first), h = mul_conj(h, f.second);
      if (filtered_input_wanted) bins[first] = mul(x, f.first), bins[second] = mul(y, f.second);
    }
  }
};

// A tile row is one slice of a channel's batch, summed in order: the gradient of the filter does not depend on the
// launch.
template <class Io>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    backward_rows(GatedSource<Io> input, GatedSource<Io> grad, ProductGradSink<Io> to_input, GatedSink<Io> to_post,
                  SpectrumGrad spectrum, RowGrid grid, int slices, Transform t) {
  Tile bins(t.shape), work(t.shape, 1);
  t.prepare(bins);
  for_tiles(work, t, grid.channels * slices, [&](int first) {
    bins.rows = work.rows;
    const int longest = (grid.batch + slices - 1) / slices;
    int step = 0;
    do {
      // the tile row's place at this step; past the end of its slice it is empty
      const auto row_at = [&](const auto& place, int row) {
        const int item = first + row;
        const Share slice(grid.batch, item % slices, slices);
        return slice.begin + step < slice.end ? place.at(slice.begin + step, item / slices) : place.nothing();
      };
      fill<float>(bins, [&](int row) { return row_at(input, row); });
      head_pass<false, true>(bins);
      middle_passes<false>(bins);
      last_pass<false>(bins);
      fill<float>(work, [&](int row) { return row_at(grad, row); });
      head_pass<false, true>(work);
      middle_passes<false>(work);
      leaf_pass<true, true>(work, [&](int row, int node, Bin(&x)[kNodePoints]) {
        spectrum(x, bins.leaf(row, node), (first + row) / slices, first + row, node, step > 0, t);
      });
      middle_passes<true>(work);
      head_pass<true, true>(work);
      drain<float>(work, [&](int row) { return row_at(to_input, row); });
      if (!spectrum.filtered_input_wanted) continue;
      last_pass<true>(bins);
      middle_passes<true>(bins);
      head_pass<true, true>(bins);
      drain<float>(bins, [&](int row) { return row_at(to_post, row); });
    } while (++step < longest);
  });
}

// ---- longer rows: between tensors and the workspace, (H, B, points) complex numbers ---------------------------------

// Neighbouring points of the workspace, for fill() and drain(); of nothing, zeros.
struct WorkspacePoints {
  Bin* data;

  MONARCH_DEVICE Bin operator()(int p) const { return data ? data[p] : Bin{0.f, 0.f}; }
  MONARCH_DEVICE void operator()(int p, Bin z) const {
    if (data) data[p] = z;
  }
};

// Tile rows of the outer part: blocks of columns, all those of a row after each other.
struct ColumnGrid {
  int64_t pitch;  // of a row
  int inner;      // points below a node of the inner part
  int columns;    // of a block

  MONARCH_HD int blocks() const { return inner / columns; }
  // The points of tile row `item`, out of those of its whole row.
  template <class Points>
  MONARCH_DEVICE auto select(const Points& points, int item) const {
    const int first = item % blocks() * columns, across = columns, stride = inner;
    return [=](int p, auto... z) { return points(p / across * stride + first + p % across, z...); };
  }
  MONARCH_DEVICE auto of_workspace(Bin* workspace, int item) const {
    return select(WorkspacePoints{workspace + item / blocks() * pitch}, item);
  }
  template <class Place>
  MONARCH_DEVICE auto of_rows(const Place& place, const RowGrid& grid, int item) const {
    return select(grid.at(place, item / blocks()), item);
  }
};

template <class T, class Source>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    outer_forward(Source source, Bin* workspace, RowGrid grid, ColumnGrid columns, Transform t) {
  Tile tile(t.shape);
  t.prepare(tile);
  for_tiles(tile, t, grid.rows() * columns.blocks(), [&](int first) {
    fill<T>(tile, [&](int row) { return columns.of_rows(source, grid, first + row); });
    head_pass<false, sizeof(T) == sizeof(float)>(tile);
    middle_passes<false>(tile);
    drain<Bin>(tile, [&](int row) { return columns.of_workspace(workspace, first + row); });
  });
}

template <class T, class Sink>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    outer_inverse(Sink sink, Bin* workspace, RowGrid grid, ColumnGrid columns, Transform t) {
  Tile tile(t.shape);
  t.prepare(tile);
  for_tiles(tile, t, grid.rows() * columns.blocks(), [&](int first) {
    fill<Bin>(tile, [&](int row) { return columns.of_workspace(workspace, first + row); });
    middle_passes<true>(tile);
    head_pass<true, sizeof(T) == sizeof(float)>(tile);
    drain<T>(tile, [&](int row) { return columns.of_rows(sink, grid, first + row); });
  });
}

// ---- inner nodes, in place ------------------------------------------------------------------------------------------

// Calls f(inner node, first row) for this block's tiles, node after node, with the twiddles of the node in place.
template <class F>
MONARCH_DEVICE void for_inner_tiles(Tile& tile, const Transform& t, int rows, F f) {
  const int groups = tiles_of(rows, t.shape), nodes = static_cast<int>(t.tree.points / t.shape.points);
  const Share share(int64_t{nodes} * groups);
  int have = -1;
  for (int i = share.begin; i < share.end; ++i) {
    const int node = i / groups, first = i % groups * t.shape.rows, left = rows - first;
    if (node != have) t.prepare(tile, node);
    have = node;
    tile.rows = left < t.shape.rows ? left : t.shape.rows;
    f(node, first);
  }
}

template <bool Forward, bool Inverse>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    inner_nodes(Bin* workspace, Bin* spectrum, RowGrid grid, Transform t) {
  Tile tile(t.shape);
  for_inner_tiles(tile, t, grid.rows(), [&](int inner, int first) {
    const auto place = [&](int row) {
      return WorkspacePoints{workspace + (first + row) * t.tree.points + int64_t{inner} * t.shape.points};
    };
    if (Forward) {
      fill<Bin>(tile, place);
      middle_passes<false>(tile);
    }
    leaf_pass<Forward, Inverse>(tile, [&](int row, int node, Bin(&x)[kNodePoints]) {
      const int64_t leaf = int64_t{inner} * tile.leaf_nodes() + node;
      const NodeBins bins = node_bins(spectrum, (first + row) / grid.batch, leaf, t);
      if (Forward && Inverse) multiply(x, bins);
      if (!Inverse) bins.store(x);
      if (!Forward) bins.load(x);
    });
    if (Inverse) {
      middle_passes<true>(tile);
      drain<Bin>(tile, place);
    }
  });
}

// A tile row is a channel; its batch rows are summed in order.
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    inner_backward(Bin* inputs, Bin* grads, SpectrumGrad spectrum, bool add, RowGrid grid, Transform t) {
  Tile bins(t.shape), work(t.shape, 1);
  for_inner_tiles(work, t, grid.channels, [&](int inner, int first) {
    bins.rows = work.rows;
    int b = 0;
    do {
      const auto place = [&](Bin* rows) {
        return [=, &t](int row) {
          const int64_t at = int64_t{first + row} * grid.batch + b;
          return WorkspacePoints{grid.batch ? rows + at * t.tree.points + int64_t{inner} * t.shape.points : nullptr};
        };
      };
      fill<Bin>(bins, place(inputs));
      middle_passes<false>(bins);
      last_pass<false>(bins);
      fill<Bin>(work, place(grads));
      middle_passes<false>(work);
      leaf_pass<true, true>(work, [&](int row, int node, Bin(&x)[kNodePoints]) {
        const int64_t leaf = int64_t{inner} * work.leaf_nodes() + node;
        spectrum(x, bins.leaf(row, node), first + row, first + row, leaf, add || b > 0, t);
      });
      middle_passes<true>(work);
      drain<Bin>(work, place(grads));
      if (!spectrum.filtered_input_wanted) continue;
      last_pass<true>(bins);
      middle_passes<true>(bins);
      drain<Bin>(bins, place(inputs));
    } while (++b < grid.batch);
  });
}

// The gradients of a channel's taps, from the gradient of its packed sequence.
MONARCH_KERNEL void tap_gradients(const Bin* sequences, Taps taps, int64_t seqlen, int64_t points) {
  const int64_t h = blockIdx.x;
  const TapSequence<float> sequence{taps, h, seqlen, points};
  const auto at = [&](int64_t t) { return sequences[h * points + t]; };
  if (taps.k)
    for_each(taps.num_k, [&](int64_t n) { static_cast<float*>(taps.k)[h * taps.num_k + n] = sequence.k_grad(n, at); });
  if (taps.k_rev)
    for_each(taps.num_rev,
             [&](int64_t n) { static_cast<float*>(taps.k_rev)[h * taps.num_rev + n] = sequence.k_rev_grad(n, at); });
  if (taps.skip) for_each(1, [&](int64_t) { static_cast<float*>(taps.skip)[h] = sequence.skip_grad(at); });
}

}  // namespace monarch

#include "fft_conv_launch.cuh"
