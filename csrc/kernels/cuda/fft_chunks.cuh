// Calls in pieces: rectangles of channels and batch rows, as large as the workspace allows.
#pragma once

#include <algorithm>

#include "fft_rows.cuh"

namespace monarch {

// The rectangle of channels [h, h + channels) and batch rows [b, b + batch) that a few launches work on.
struct Chunk {
  int64_t h, b;
  RowGrid grid;

  Rows of(Rows rows, Scalar io) const {
    if (rows.data)
      rows.data = static_cast<char*>(rows.data) + (b * rows.batch_stride + h * rows.channel_stride) * scalar_bytes(io);
    return rows;
  }
  // The channels' spectra, which lie after each other.
  Bin* of(const void* spectra, int64_t points) const {
    return static_cast<Bin*>(const_cast<void*>(spectra)) + h * points;
  }
  const int64_t* of(const int64_t* lengths) const { return lengths ? lengths + b : nullptr; }
  Taps of(Taps taps) const {
    const auto at = [](void* data, int64_t offset) { return data ? static_cast<float*>(data) + offset : nullptr; };
    taps.k = at(taps.k, h * taps.num_k), taps.k_rev = at(taps.k_rev, h * taps.num_rev), taps.skip = at(taps.skip, h);
    return taps;
  }
};

constexpr int64_t kMostRows = 1 << 30;  // rows of a launch, when the workspace does not bound them

// As few channels as fill so many rows with all of the batch. Filters are twice as long as rows of halves: they are
// read from device memory once, and the L2 cache has room for the workspace beside them.
inline int64_t fewest_channels(int64_t most_rows, int64_t batch) {
  return std::max<int64_t>(1, most_rows / std::max<int64_t>(batch, 1));
}

// As few channels as keep nearly all multiprocessors busy when each takes an inner node of a channel at a time: of
// those that come to at most three rounds.
inline int64_t fewest_busy_channels(int64_t nodes, int64_t multiprocessors) {
  const auto busy = [&](int64_t channels) {
    const int64_t tasks = channels * nodes;
    return static_cast<double>(tasks) / (pieces(tasks, multiprocessors) * multiprocessors);
  };
  double most = 0;
  for (int64_t channels = 1; channels <= std::max<int64_t>(1, 3 * multiprocessors / nodes); ++channels)
    most = std::max(most, busy(channels));
  int64_t channels = 1;
  while (busy(channels) < 0.9 * most) ++channels;
  return channels;
}

// Calls f(chunk) for all rows until it returns an error: the batch in one piece when kMostRows fit, else as many
// channels as fit, but at most so many, and batch rows of the same channels after each other, in even parts.
template <class F>
const char* for_chunks(int64_t batch, int64_t channels, int64_t most_rows, int64_t most_channels, F f) {
  const bool bounded = most_rows < kMostRows;
  const int64_t fitting = bounded ? most_rows : fewest_channels(most_rows, batch);
  const int64_t some = std::clamp<int64_t>(std::min(fitting, most_channels), 1, channels);
  const int64_t most = std::max<int64_t>(1, bounded ? most_rows / some : batch);
  const int64_t rows = std::max<int64_t>(1, pieces(batch, std::max<int64_t>(1, pieces(batch, most))));
  for (int64_t h = 0; h < channels; h += some) {
    int64_t b = 0;
    do {
      const RowGrid grid{static_cast<int>(std::min(rows, batch - b)), static_cast<int>(std::min(some, channels - h))};
      if (const char* error = f(Chunk{h, b, grid})) return error;
      b += rows;
    } while (b < batch);
  }
  return nullptr;
}

inline constexpr const char* kOneSlice = "batch_slices must be 1 for rows that do not fit into a block";

// The mixer as two convolutions of t, the first one's results in the workspace. `rows`: what else of it a
// convolution needs, or null.
template <class Io, class Transforms, class Workspace>
const char* mixer_chunks(const MixerArgs& a, Transforms& t, Workspace* rows) {
  float* const held = a.residual_spectrum ? reinterpret_cast<float*>(t.take_rows()) : nullptr;
  const int64_t most_rows = rows || held ? t.most_rows() : kMostRows;
  const int64_t most_channels = fewest_channels(most_rows, a.batch);
  return for_chunks(a.batch, a.channels, most_rows, most_channels, [&](const Chunk& c) -> const char* {
    const Chunk all_channels{0, c.b, {}};
    MixerArgs part = a;
    part.a = all_channels.of(a.a, a.io), part.y = all_channels.of(a.y, a.io), part.lengths = c.of(a.lengths);
    const HeldRows residual{held, c.grid.channels, a.seqlen};
    if (held) {
      const GatedSource<Io> source{c.of(a.u, a.io), {}, part.lengths, a.seqlen};
      if (const char* error = t.conv(source, residual, c.grid, c.of(a.residual_spectrum, a.tree.points), rows))
        return error;
    }
    return t.conv(MixerSource<Io>{part, c.h, a.channels}, MixerSink<Io>{part, c.h, a.channels, residual}, c.grid,
                  c.of(a.spectrum, a.tree.points), rows);
  });
}

}  // namespace monarch
