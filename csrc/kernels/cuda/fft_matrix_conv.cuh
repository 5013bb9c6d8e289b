// The kernels of the long convolution on tensor cores and of its gradients: each row is read once and written once (on
// the way back, gates and inputs twice). Blocks stay for the whole launch, each with a contiguous share of the rows,
// channel by channel.
#pragma once

#include "fft_matrix_inner.cuh"
#include "fft_matrix_outer.cuh"

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
    const int together =
        s.tile.level ? 8 : 4;  // logarithm, of an inner node: first pairs of all nodes, then second ones
    uint32_t greatest = 0;
#pragma unroll 4
    for (int i = s.thread; i < s.points() / 2; i += s.tile.threads) {
      const BinPair pair = bins[Part ? i + (i >> together) * (places.pitch - (1 << together)) : i];
      for (const float v : {pair.first.re, pair.first.im, pair.second.re, pair.second.im}) {
        const uint32_t bits = bits_of(v) & 0x7FFFFFFF;
        greatest = bits > greatest ? bits : greatest;
      }
    }
    greatest = warp_max(greatest);
    for (int same = row + s.at.lane; same < next; same += 32) atomicMax(&s.greatest_bin(same), greatest);
  }
}

template <bool Precise>
struct LevelOfFew : PassesOf<NodeKind{.level = true}> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { level_of_few_forward<Precise>(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { level_of_few_inverse(rows); }
};
template <int Parts>
struct LevelAtRoot : PassesOf<NodeKind{.level = true, .factored = (Parts > 1)}> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { level_forward_real<Parts>(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { level_inverse_real<Parts>(rows); }
};
template <bool Precise>
struct LevelAndHead : PassesOf<NodeKind{.level = true, .factored = true, .numbered = true}> {
  static MONARCH_DEVICE void forward(RowsInUse rows) { level_and_head_forward<Precise>(rows); }
  static MONARCH_DEVICE void inverse(RowsInUse rows) { level_and_head_inverse(rows); }
};

// `precise`: what are_precise() of fft_rows.cuh says of the rows.
template <bool MayBePrecise, class F>
const char* with_passes(const MatrixTile& tile, bool precise, F f) {
  const bool few = tile.few >= 0;
  if (!few && tile.head == 1) return tile.parts == 1 ? f(LevelAtRoot<1>()) : f(LevelAtRoot<2>());
  if constexpr (MayBePrecise)
    if (precise) return few ? f(LevelOfFew<true>()) : f(LevelAndHead<true>());
  return few ? f(LevelOfFew<false>()) : f(LevelAndHead<false>());
}

// What all kernels are told of their transform.
struct StagedTransform {
  int head, depth, bins;  // children of the root; passes from there to the nodes; bins of a row
  float gain;             // of a row's transform there and back: products are taken at 1/4
  MatrixTile tile;

  // The start of a kernel: this block's share of so many tasks, and the tables, but those of the nodes.
  MONARCH_DEVICE BlockState& begin(int64_t tasks) const {
    BlockState& block = *shared_memory<BlockState>();
    for_each(1, [&](int64_t) { block = {tile, Share(tasks), bins, 0, gain}; });
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
    if (threadIdx.x == 0 && !tile.parts && !tile.radix) OuterColumns(0).head_roots() = roots;
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
    stage<Passes::kNumbered>(use, rows_of(source));
    if (block.tile.alone) {
      prefetch_rows(use, rows_of(sink));
      const int next = first + block.tile.rows, rest = grid.rows() - next;
      if (i + 1 < block.share.end)
        prefetch_rows({rest < block.tile.rows ? rest : block.tile.rows},
                      [&](const StagedRows&, int row) { return grid.at(source, next + row); });
    }
    Passes::forward(use);
    Passes::multiply(use, spectra);
    Passes::inverse(use);
    unstage<Passes::kNumbered>(use, rows_of(sink));
  }
}

// ---- rows that do not fit into a block ------------------------------------------------------------------------------

// What is above the levels of an OuterTile, a type for each kind, as above.
struct OuterHead {
  static constexpr bool kNumbered = false;
  static MONARCH_DEVICE void forward(int turn) { outer_head<false>(turn); }
  static MONARCH_DEVICE void inverse(int turn) { outer_head<true>(turn); }
};
template <bool Precise>
struct OuterRoot {
  static constexpr bool kNumbered = false;
  static MONARCH_DEVICE void forward(int turn) { outer_root<false, Precise>(turn); }
  static MONARCH_DEVICE void inverse(int turn) { outer_root<true, Precise>(turn); }
};
template <bool Precise>
struct OuterRootAndHead {
  static constexpr bool kNumbered = true;
  static MONARCH_DEVICE void forward(int turn) { outer_root_and_head<false, Precise>(turn); }
  static MONARCH_DEVICE void inverse(int turn) { outer_root_and_head<true, Precise>(turn); }
};

template <bool MayBePrecise, class F>
const char* with_top(const OuterTile& tile, bool precise, F f) {
  if (!tile.parts && !tile.radix) return f(OuterHead());
  if constexpr (MayBePrecise)
    if (precise) return tile.parts ? f(OuterRoot<true>()) : f(OuterRootAndHead<true>());
  return tile.parts ? f(OuterRoot<false>()) : f(OuterRootAndHead<false>());
}

template <class Source, class Top>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    staged_outer_forward(Source source, HalfRows halves, RowGrid grid, OuterTransform transform) {
  const OuterState& block = transform.begin(int64_t{grid.rows()} * halves.blocks, false);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int row = i / halves.blocks, columns = i % halves.blocks, turn = i & 1;
    stage_columns<Top::kNumbered>(turn, grid.at(source, row), columns);
    Top::forward(turn);
    for (int level = 0; level + 1 < block.tile.levels; ++level) outer_level<false>(level);
    if (block.tile.levels) {
      last_level<Top::kNumbered>(turn, halves, row, columns);
    } else {
      put_columns<Top::kNumbered>(turn, halves, row, columns);
    }
  }
}

template <class Sink, class Top>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxTileThreads)
    staged_outer_inverse(Sink sink, HalfRows halves, RowGrid grid, OuterTransform transform) {
  const OuterState& block = transform.begin(int64_t{grid.rows()} * halves.blocks, true);
  for (int i = block.share.begin; i < block.share.end; ++i) {
    const int row = i / halves.blocks, columns = i % halves.blocks, turn = i & 1;
    take_columns<Top::kNumbered>(turn, halves, row, columns);
    for (int level = block.tile.levels - 1; level >= 0; --level) outer_level<true>(level);
    Top::inverse(turn);
    unstage_columns<Top::kNumbered>(turn, grid.at(sink, row), columns);
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
    const InnerRows rows{halves, task.node, task.rows()};
    fetch_halves(use, rows);
    find_filters<true>(use, spectra, [=, batch = grid.batch](int row) { return (task.first + row) / batch; });
    wait_for_halves(use, rows);
    Passes::forward(use);
    Passes::multiply(use, spectra);
    const InnerTask same(opaque(i), groups, together);
    Passes::inverse(use, InnerRows{halves, same.node, same.rows()});
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
  const int most = block.tile.rows / 2;
  const auto rows_of = [&](const auto& place, int task, int b, int before) {
    return [&, task, b, before](const StagedRows&, int row) { return place.at(b + row - before, task / slices); };
  };
  const auto fetch_from = [&](int task, int b) {  // of the batch, or what comes next
    Share slice(grid.batch, task % slices, slices);
    if (b >= slice.end) slice = Share(grid.batch, ++task % slices, slices), b = slice.begin;
    if (!block.tile.alone || task >= block.share.end) return;
    const int n = slice.end - b < most ? slice.end - b : most;
    fetch({n}, rows_of(rows.grad, task, b, 0));
    fetch({2 * n}, rows_of(rows.input, task, b, n), n);
  };
  fetch_from(block.share.begin - 1, grid.batch);
  int turn = 0;
  for (int task = block.share.begin; task < block.share.end; ++task) {
    const int channel = task / slices;
    const Share slice(grid.batch, task % slices, slices);
    find_filters<false>({block.tile.rows}, spectra, [channel](int) { return channel; });
    int b = slice.begin;
    do {  // for an empty batch too, whose sum is zero
      const int n = slice.end - b < most ? slice.end - b : most;
      const RowsInUse use{2 * n, turn ^= 1}, gradients{n, turn};
      if (block.tile.alone) wait_for_all_copies();
      stage<Passes::kNumbered, true>(gradients, rows_of(rows.grad, task, b, 0));
      stage<Passes::kNumbered, true>(use, rows_of(rows.input, task, b, n), n);
      fetch_from(task, b + n);
      Passes::forward(use);
      Bin* const total = totals ? totals + int64_t{task} * StagedRows(use).points() : nullptr;
      Passes::gradients(use, spectra, total, b > slice.begin, rows.post_wanted);
      if (rows.post_wanted || rows.input_wanted) Passes::inverse(rows.post_wanted ? use : gradients);
      if (rows.input_wanted) unstage<Passes::kNumbered>(gradients, rows_of(rows.to_input, task, b, 0));
      if (rows.post_wanted) unstage<Passes::kNumbered>(use, rows_of(rows.to_post, task, b, n), n);
      b += n;
    } while (b < slice.end);
  }
}

// Sums of gradients of spectra, of `data` if that is not null: rows of bins, which start as they are where `add`, else
// from zero.
struct SpectrumSums {
  Bin* data;
  bool add;
};

// A task is an inner node of a channel, whose batch rows are summed in order; node after node, as above. The workspace
// has the gradients of all rows of the grid, then the inputs. `back`: what of a pair goes back: nothing, the gradient
// or both.
template <class Passes>
MONARCH_KERNEL void MONARCH_MOST_THREADS(kMaxGradientThreads)
    staged_inner_gradients(HalfRows halves, RowGrid grid, const Bin* spectra, SpectrumSums sums, int back,
                           StagedTransform transform) {
  const BlockState& block = transform.begin(int64_t{halves.nodes} * grid.channels);
  const int most = block.tile.rows / 2;
  const auto row_of = [&](int task, int b, int n) {
    const int first = task % grid.channels * grid.batch + b, inputs = first + grid.rows() - n;
    return [=](int row) { return row + (row < n ? first : inputs); };
  };
  const auto fetch_from = [&](int task, int b) {  // of the batch, or what comes next
    if (b >= grid.batch) ++task, b = 0;
    if (task >= block.share.end) return;
    const int n = grid.batch - b < most ? grid.batch - b : most;
    fetch_halves({2 * n}, InnerRows{halves, task / grid.channels, row_of(task, b, n)});
  };
  const bool ahead = block.tile.streams == kMostStreams;
  if (ahead) fetch_from(block.share.begin, 0);
  int turn = 0;
  for (int task = block.share.begin; task < block.share.end; ++task) {
    const int node = task / grid.channels, channel = task % grid.channels;
    if (task == block.share.begin || channel == 0) transform.at_nodes(node * block.tile.nodes);
    find_filters<true>({block.tile.rows}, spectra, [channel](int) { return channel; });
    Bin* const sum = sums.data ? sums.data + int64_t{channel} * halves.points : nullptr;
    int b = 0;
    do {  // for an empty batch too, whose sum is zero
      const int n = grid.batch - b < most ? grid.batch - b : most;
      const RowsInUse use{2 * n, turn ^= 1}, wanted{back * n, turn};
      const InnerRows rows{halves, node, row_of(task, b, n)};
      if (!ahead) fetch_halves(use, rows);
      wait_for_halves(use, rows);
      Passes::forward(use);
      if (ahead) fetch_from(task, b + n);
      Passes::gradients(use, spectra, sum, sums.add || b > 0, back == 2);
      Passes::inverse(wanted, rows);
      b += n;
    } while (b < grid.batch);
  }
}

}  // namespace monarch
