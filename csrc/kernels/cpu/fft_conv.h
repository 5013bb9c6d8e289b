// FFT long convolution on the CPU: rows (b, h) stream through one right-angle transform each.
//
// Tasks are rows, a tile of channels after the other, and in a tile batch row after batch row: the filters of a tile
// stay in cache, and rows are read in the order in which they lie in memory. From taps a tile is one channel, so that
// a thread transforms each filter once.
// Gates, masks and type conversions happen in the first and last pass, in registers.
#pragma once

#include "../args.h"
#include "../registry.h"
#include "fft_tree.h"
#include "scratch.h"
#include "tap_rows.h"

namespace monarch {
namespace {

template <class T>
struct FftConv {
  static constexpr int W = kLanes<T>;
  using E = Engine<T, W>;
  using V = typename E::V;
  using C = typename E::C;
  // Longest rows that are brought into cache while another is transformed, to be read and to be written.
  static constexpr int64_t kReadAhead = 64 << 10, kWriteAhead = 16 << 10;
  // Results of this size have left the caches before anybody reads them, so they need not go through them. Only where
  // a vector is a whole cache line: the lines of a column, half written, are more than a processor combines.
  static constexpr int64_t kPastCaches = sizeof(V) == 64 ? 16 << 20 : INT64_MAX;
  static constexpr int kIntoL2 = 2;  // a prefetch that leaves L1, which the transform fills, alone

  // ---- sources and sinks of a row: position -> W elements ---------------------------------------------------

  template <class Io>
  struct GatedSource {  // x[t] = u[t] * gate[t] for t < valid, else 0
    const Io *u, *gate;
    int64_t valid;
    template <bool Inside>
    MONARCH_INLINE V get(int64_t t) const {
      const int64_t n = Inside ? W : valid - t;
      const V v = load_upto<W>(u + t, n);
      return gate ? v * load_upto<W>(gate + t, n) : v;
    }
  };

  template <class Io>
  struct GatedSink {  // y[t] = value * gate[t] for t < valid; a second product of the same value if asked for
    Io* y;
    const Io* gate;
    int64_t valid;
    Io* y2 = nullptr;
    const Io* gate2 = nullptr;
    bool past_caches = false;
    template <bool Inside>
    MONARCH_INLINE void put(int64_t t, V v) const {
      const int64_t n = Inside ? W : valid - t;
      if (y) put<Inside>(y + t, gate ? v * load_upto<W>(gate + t, n) : v, n);
      if (y2) put<Inside>(y2 + t, v * load_upto<W>(gate2 + t, n), n);
    }
    template <bool Inside>
    MONARCH_INLINE void put(Io* to, V v, int64_t n) const {
      if constexpr (Inside && std::is_same_v<Io, T>)
        if (past_caches) return stream<W>(to, v);
      store_upto<W>(to, v, n);
    }
  };

  // ---- what happens to the bins, in tree order ----------------------------------------------------------------

  struct StoreBins {  // with a constant added
    T *out, constant = 0;
    MONARCH_INLINE void operator()(int64_t at, C* x, int count) const {
#pragma GCC unroll 8
      for (int q = 0; q < count; ++q) E::store_block(out + at + q * E::kBlock, {x[q].re + constant, x[q].im});
    }
  };
  // What is about to be read or written, brought into cache a piece per codelet. Rows lie far apart, and the hardware
  // starts anew at each.
  struct Ahead {
    static constexpr int kStreams = 5;
    const char* stream[kStreams] = {};
    int64_t bytes_per_scalar = 0;  // of a stream, for a scalar of the bins
    // Row h of filters of `taps` scalars, if there are any, they are not too long and there is room for one more.
    MONARCH_INLINE void also(const void* filters, int64_t h, int64_t taps) {
      const bool wanted = filters && taps * int64_t(sizeof(T)) <= kReadAhead;
      for (int i = 0; wanted && i < kStreams; ++i)
        if (!stream[i]) {
          stream[i] = reinterpret_cast<const char*>(static_cast<const T*>(filters) + h * taps);
          return;
        }
    }
    MONARCH_INLINE void operator()(int64_t at, const C*, int count) const {
      const int64_t begin = at * bytes_per_scalar / 2, end = (at + count * E::kBlock) * bytes_per_scalar / 2;
#pragma GCC unroll 5
      for (int i = 0; i < kStreams; ++i)
        if (stream[i])
          for (int64_t byte = begin; byte < end; byte += 64) __builtin_prefetch(stream[i] + byte, 0, kIntoL2);
    }
  };
  struct MultiplyBins {
    const T* filter;
    MONARCH_INLINE void operator()(int64_t at, C* x, int count) const {
      const T* const soon = filter + at + 4 * count * E::kBlock;
      for (int i = 0; i < count * E::kBlock; i += kCacheLine<T>) __builtin_prefetch(soon + i, 0, kIntoL2);
#pragma GCC unroll 8
      for (int q = 0; q < count; ++q) x[q] = mul(x[q], E::load_block(filter + at + q * E::kBlock));
    }
  };
  struct LoadBins {  // inverse only
    const T* bins;
    MONARCH_INLINE void operator()(int64_t at, C* x, int count) const {
#pragma GCC unroll 8
      for (int q = 0; q < count; ++q) x[q] = E::load_block(bins + at + q * E::kBlock);
    }
  };
  struct GradBins {  // dK += conj(X) G, or = for the first row; then G conj(K) goes back to give the input gradient
    const T *bins, *filter;
    T* filter_grad;  // may be where the bins are
    bool first;
    MONARCH_INLINE void operator()(int64_t at, C* x, int count) const {
#pragma GCC unroll 8
      for (int q = 0; q < count; ++q) {
        const int64_t i = at + q * E::kBlock;
        if (filter_grad) {
          C grad = mul_conj(x[q], E::load_block(bins + i));
          if (!first) grad = E::load_block(filter_grad + i) + grad;
          E::store_block(filter_grad + i, grad);
        }
        x[q] = mul_conj(x[q], E::load_block(filter + i));
      }
    }
  };
  template <class... Ops>
  struct InTurn : Ops... {
    MONARCH_INLINE void operator()(int64_t at, C* x, int count) const {
      (static_cast<const Ops&>(*this)(at, x, count), ...);
    }
  };
  template <class... Ops>
  InTurn(Ops...) -> InTurn<Ops...>;

  // ---- filters -------------------------------------------------------------------------------------------------

  static void make_spectrum(const Taps& taps, int64_t h, int64_t seqlen, const Tree<T>& tree, T* w, T* spectrum) {
    const TapRow<T> row(taps, h, seqlen, tree.points);
    const StoreBins store{spectrum, row.constant()};
    if (row.two_sided()) {
      E::transform(typename TapRow<T>::TwoSidedSource{row}, store, Nothing(), w, tree);
    } else {
      E::transform(typename TapRow<T>::Source{row, row.num_k}, store, Nothing(), w, tree);
    }
  }

  static void taps_from_spectrum(const Taps& taps, int64_t h, int64_t seqlen, const Tree<T>& tree, T* w,
                                 const T* spectrum) {
    const TapRow<T> row(taps, h, seqlen, tree.points);
    const bool all = row.two_sided();
    const LoadBins load{spectrum};
    const int64_t kept = all ? 0 : row.num_k;
    if (row.k) std::memset(row.k + kept, 0, sizeof(T) * (taps.num_k - kept));
    if (row.k_rev) std::memset(row.k_rev, 0, sizeof(T) * taps.num_rev);
    if (all) {
      E::transform(Nothing(), load, typename TapRow<T>::TwoSidedSink{row}, w, tree);
    } else {
      E::transform(Nothing(), load, typename TapRow<T>::Sink{row, row.num_k}, w, tree);
    }
  }

  static const char* filter(const FftFilterArgs& a, const Exec& exec) {
    const Tree<T>& tree = tree_tables<T>(a.tree);
    Scratch<T> w(a.tree.work_scalars());
    for (int64_t h = exec.begin; h < exec.end; ++h)
      make_spectrum(a.taps, h, a.seqlen, tree, w.get(), static_cast<T*>(a.spectrum) + h * 2 * tree.points);
    return nullptr;
  }

  static const char* filter_adjoint(const FftFilterArgs& a, const Exec& exec) {
    const Tree<T>& tree = tree_tables<T>(a.tree);
    Scratch<T> w(a.tree.work_scalars());
    for (int64_t h = exec.begin; h < exec.end; ++h)
      taps_from_spectrum(a.taps, h, a.seqlen, tree, w.get(), static_cast<const T*>(a.spectrum) + h * 2 * tree.points);
    return nullptr;
  }

  // ---- forward -------------------------------------------------------------------------------------------------

  template <class Io>
  static MONARCH_INLINE Io* row(const Rows& rows, int64_t b, int64_t h) {
    return rows.data ? static_cast<Io*>(rows.data) + b * rows.batch_stride + h * rows.channel_stride : nullptr;
  }
  static MONARCH_INLINE int64_t valid_length(const int64_t* lengths, int64_t b, int64_t seqlen) {
    return lengths ? lengths[b] : seqlen;
  }
  template <class Io>
  static MONARCH_INLINE void zero_tail(Io* y, int64_t valid, int64_t seqlen) {
    if (y && valid < seqlen) std::memset(y + valid, 0, sizeof(Io) * (seqlen - valid));
  }

  struct Place {  // of a row
    int64_t b, h;
  };
  template <class Args>
  static MONARCH_INLINE Place place_of(const Args& a, int64_t task) {
    const int64_t tile = task / (a.channel_tile * a.batch) * a.channel_tile, within = task - tile * a.batch;
    const int64_t left = a.channels - tile, width = left < a.channel_tile ? left : a.channel_tile;
    return {within / width, tile + within % width};
  }

  // Rows that are to be read and to be written soon; null: none. What is written past the caches is not asked for.
  template <class Io>
  static MONARCH_INLINE Ahead ahead(int64_t seqlen, const Io* const (&read)[3], const Io* const (&written)[2],
                                    bool past_caches = false) {
    const int64_t bytes = seqlen * int64_t(sizeof(Io));
    Ahead soon;
    soon.bytes_per_scalar = sizeof(Io);
    for (int i = 0; i < 3 && bytes <= kReadAhead; ++i) soon.stream[i] = reinterpret_cast<const char*>(read[i]);
    for (int i = 0; i < 2 && bytes <= kWriteAhead && !past_caches; ++i)
      soon.stream[3 + i] = reinterpret_cast<const char*>(written[i]);
    return soon;
  }

  template <class Io>
  static bool writes_past_caches(const FftConvArgs& a) {
    return std::is_same_v<Io, T> && a.batch * a.channels * a.seqlen * int64_t(sizeof(Io)) >= kPastCaches;
  }
  static bool on_lines(const void* row) { return reinterpret_cast<uintptr_t>(row) % sizeof(V) == 0; }

  template <class Io>
  static void conv_rows(const FftConvArgs& a, const Exec& exec) {
    const Tree<T>& tree = tree_tables<T>(a.tree);
    Scratch<T> work(a.tree.work_scalars());
    Scratch<T> own_filter(a.spectrum ? 0 : 2 * tree.points);
    T* const w = work.get();
    const bool large = writes_past_caches<Io>(a);
    int64_t have = -1;
    Place next = place_of(a, exec.begin);
    for (int64_t task = exec.begin; task < exec.end; ++task) {
      const auto [b, h] = next;
      if (task + 1 < exec.end) next = place_of(a, task + 1);
      const T* filter = own_filter.get();
      if (a.spectrum) {
        filter = static_cast<const T*>(a.spectrum) + h * 2 * tree.points;
      } else if (have != h) {
        make_spectrum(a.taps, h, a.seqlen, tree, w, own_filter.get());
        have = h;
      }
      const int64_t valid = valid_length(a.lengths, b, a.seqlen);
      Io *y = row<Io>(a.y, b, h), *post = row<Io>(a.post_gate, b, h);
      Ahead soon =
          ahead<Io>(a.seqlen, {post, row<Io>(a.u, next.b, next.h), row<Io>(a.pre_gate, next.b, next.h)}, {y}, large);
      if (!a.spectrum && next.h != h && std::is_same_v<Io, T>) {
        soon.also(a.taps.k, next.h, a.taps.num_k);
        soon.also(a.taps.k_rev, next.h, a.taps.num_rev);
      }
      E::transform(GatedSource<Io>{row<Io>(a.u, b, h), row<Io>(a.pre_gate, b, h), valid},
                   InTurn{soon, MultiplyBins{filter}},
                   GatedSink<Io>{.y = y, .gate = post, .valid = valid, .past_caches = large && on_lines(y)}, w, tree);
      zero_tail(y, valid, a.seqlen);
    }
    if (large) stream_end();
  }

  static const char* conv(const FftConvArgs& a, const Exec& exec) {
    return with_io<T>(a.io, [&](auto io) { conv_rows<typename decltype(io)::type>(a, exec); });
  }

  // ---- backward ------------------------------------------------------------------------------------------------

  // One channel, one slice of the batch: the filter gradient accumulates over its rows in a fixed order.
  template <class Io>
  struct BackwardTask {
    const FftConvGradArgs& a;
    const Tree<T>& tree;
    T *w, *bins;  // work buffer; transform of the gated input, in tree order
    bool large;   // gradients are written past the caches

    void row_gradients(Place at, Place next, const T* filter, T* filter_grad, bool first) const {
      const FftConvArgs& f = a.forward;
      const auto [b, h] = at;
      const int64_t L = f.seqlen, valid = valid_length(f.lengths, b, L);
      const Io *u = row<Io>(f.u, b, h), *pre = row<Io>(f.pre_gate, b, h), *post = row<Io>(f.post_gate, b, h);
      const Io* grad = row<Io>(a.grad, b, h);
      Io *du = row<Io>(a.grad_u, b, h), *dpre = row<Io>(a.grad_pre_gate, b, h);
      Io* dpost = row<Io>(a.grad_post_gate, b, h);
      const GatedSource<Io> input{u, pre, valid}, gated_grad{grad, post, valid};
      const StoreBins store{bins};
      Ahead soon = ahead<Io>(L, {grad, post}, {dpost}, large);
      if (dpost) {
        E::transform(input, InTurn{soon, store, MultiplyBins{filter}},
                     GatedSink<Io>{.y = dpost, .gate = grad, .valid = valid, .past_caches = large && on_lines(dpost)},
                     w, tree);
      } else if (filter_grad) {
        E::transform(input, InTurn{soon, store}, Nothing(), w, tree);
      }
      soon = ahead<Io>(L, {row<Io>(f.u, next.b, next.h), row<Io>(f.pre_gate, next.b, next.h)}, {du, dpre}, large);
      const InTurn product{soon, GradBins{bins, filter, filter_grad, first}};
      if (du || dpre) {
        E::transform(gated_grad, product,
                     GatedSink<Io>{du, pre, valid, dpre, u, large && on_lines(du) && on_lines(dpre)}, w, tree);
      } else if (filter_grad) {
        E::transform(gated_grad, product, Nothing(), w, tree);
      }
      zero_tail(du, valid, L);
      zero_tail(dpre, valid, L);
      zero_tail(dpost, valid, L);
    }
  };

  template <class Io>
  static void backward_tasks(const FftConvGradArgs& a, const Exec& exec) {
    const FftConvArgs& f = a.forward;
    const Tree<T>& tree = tree_tables<T>(f.tree);
    const int64_t bins = 2 * tree.points, slices = a.batch_slices;
    const bool lone_rows = f.batch == slices;  // one per sum
    // channels whose rows are worked on together, batch row after batch row
    const int64_t tile = slices > 1 || lone_rows ? 1 : f.channel_tile;
    const bool to_taps = a.grad_taps.k || a.grad_taps.k_rev || a.grad_taps.skip;
    Scratch<T> work(f.tree.work_scalars()), stored(bins);
    Scratch<T> own_filters(f.spectrum ? 0 : tile * bins), own_grads(a.spectrum_grad || lone_rows ? 0 : tile * bins);
    const BackwardTask<Io> row{a, tree, work.get(), stored.get(), writes_past_caches<Io>(f)};
    for (int64_t task = exec.begin; task < exec.end; task += tile) {
      const int64_t width = exec.end - task < tile ? exec.end - task : tile;
      const int64_t h = task / slices, slice = task % slices;
      const T* filters = f.spectrum ? static_cast<const T*>(f.spectrum) + h * bins : own_filters.get();
      T* grads = nullptr;
      if (a.spectrum_grad) grads = static_cast<T*>(a.spectrum_grad) + task * bins;
      if (!a.spectrum_grad && to_taps) grads = lone_rows ? stored.get() : own_grads.get();
      for (int64_t i = 0; i < width && !f.spectrum; ++i)
        make_spectrum(f.taps, h + i, f.seqlen, tree, work.get(), own_filters.get() + i * bins);
      const int64_t first = f.batch * slice / slices, rows = (f.batch * (slice + 1) / slices - first) * width;
      if (grads && rows == 0) std::memset(grads, 0, sizeof(T) * width * bins);
      const auto place = [&](int64_t i) { return Place{first + i / width, h + i % width}; };
      for (int64_t i = 0; i < rows; ++i) {
        const int64_t at = i % width * bins;
        row.row_gradients(place(i), place(i + 1 < rows ? i + 1 : i), filters + at, grads ? grads + at : nullptr,
                          i < width);
      }
      for (int64_t i = 0; i < width && to_taps && !a.spectrum_grad; ++i)
        taps_from_spectrum(a.grad_taps, h + i, f.seqlen, tree, work.get(), grads + i * bins);
    }
    if (row.large) stream_end();
  }

  static const char* backward(const FftConvGradArgs& a, const Exec& exec) {
    return with_io<T>(a.forward.io, [&](auto io) { backward_tasks<typename decltype(io)::type>(a, exec); });
  }

  // ---- the M2-BERT mixer -----------------------------------------------------------------------------------------

  // A causal short convolution of one row, a vector at a time. Taps: their number, or 0 for one known at run time.
  template <class Io, int Taps>
  struct ShortRow {
    const Io* x;
    const T* weight;
    T bias;
    int64_t count, valid;

    ShortRow(const MixerArgs& a, int64_t b, int64_t channel, int64_t valid)
        : x(row<Io>(a.a, b, channel)),
          weight(static_cast<const T*>(a.short_weight) + channel * a.short_taps),
          bias(a.short_bias ? static_cast<const T*>(a.short_bias)[channel] : T(0)),
          count(a.short_taps),
          valid(valid) {}

    template <bool Inside>
    MONARCH_INLINE V get(int64_t t) const {
      const int64_t n = Taps ? Taps : count, first = t - (n - 1);
      V v = V{} + bias;
      if (Inside && first >= 0) {
#pragma GCC unroll 4
        for (int64_t j = 0; j < n; ++j) v = v + weight[j] * load<W>(x + first + j);
      } else {
        for (int64_t j = 0; j < n; ++j) v = v + weight[j] * load_between<W>(x, first + j, valid);
      }
      return v;
    }
  };

  template <class Io, int Taps>
  struct MixerSource {  // x[t] = x1[t] * v[t] for t < valid, else 0
    ShortRow<Io, Taps> x1, v;
    int64_t valid;
    template <bool Inside>
    MONARCH_INLINE V get(int64_t t) const {
      const V product = x1.template get<Inside>(t) * v.template get<Inside>(t);
      return Inside ? product : first_lanes<W>(product, valid - t);
    }
  };

  template <class Io, int Taps>
  struct MixerSink {  // y[t] = value * x2[t] + rest[t]
    Io* y;
    ShortRow<Io, Taps> x2;
    const T* rest;
    int64_t valid;
    template <bool Inside>
    MONARCH_INLINE void put(int64_t t, V v) const {
      const int64_t n = Inside ? W : valid - t;
      v = v * x2.template get<Inside>(t);
      if (rest) v = v + load_upto<W>(rest + t, n);
      store_upto<W>(y + t, v, n);
    }
  };

  template <class Io, int Taps>
  static void mixer_rows(const MixerArgs& a, const Exec& exec) {
    const Tree<T>& tree = tree_tables<T>(a.tree);
    const auto filter = [&](const void* spectrum, int64_t h) {
      return MultiplyBins{static_cast<const T*>(spectrum) + h * 2 * tree.points};
    };
    const int64_t H = a.channels;
    const auto thirds_ahead = [&](Place at) {
      const auto third = [&](int64_t i) { return row<Io>(a.a, at.b, i * H + at.h); };
      return ahead<Io>(a.seqlen, {third(0), third(1), third(2)}, {row<Io>(a.y, at.b, at.h)});
    };
    Scratch<T> work(a.tree.work_scalars()), rest(a.residual_spectrum ? a.seqlen : 0);
    Place next = place_of(a, exec.begin);
    for (int64_t task = exec.begin; task < exec.end; ++task) {
      const auto [b, h] = next;
      const int64_t valid = valid_length(a.lengths, b, a.seqlen);
      if (a.residual_spectrum)
        E::transform(GatedSource<Io>{row<Io>(a.u, b, h), nullptr, valid},
                     InTurn{thirds_ahead(next), filter(a.residual_spectrum, h)},
                     GatedSink<T>{rest.get(), nullptr, valid}, work.get(), tree);
      if (task + 1 < exec.end) next = place_of(a, task + 1);
      const Ahead soon =
          a.residual_spectrum ? ahead<Io>(a.seqlen, {row<Io>(a.u, next.b, next.h)}, {}) : thirds_ahead(next);
      const ShortRow<Io, Taps> x1(a, b, h, valid), x2(a, b, H + h, valid), v(a, b, 2 * H + h, valid);
      Io* const y = row<Io>(a.y, b, h);
      E::transform(MixerSource<Io, Taps>{x1, v, valid}, InTurn{soon, filter(a.spectrum, h)},
                   MixerSink<Io, Taps>{y, x2, a.residual_spectrum ? rest.get() : nullptr, valid}, work.get(), tree);
      zero_tail(y, valid, a.seqlen);
    }
  }

  static const char* mixer(const MixerArgs& a, const Exec& exec) {
    return with_io<T>(a.io, [&](auto io) {
      using Io = typename decltype(io)::type;
      a.short_taps == 3 ? mixer_rows<Io, 3>(a, exec) : mixer_rows<Io, 0>(a, exec);
    });
  }
};

template <class T>
constexpr FftConvKernels fft_conv_kernels(VariantInfo info) {
  using K = FftConv<T>;
  return {info, &K::filter, &K::filter_adjoint, &K::conv, &K::backward, &K::mixer};
}

}  // namespace
}  // namespace monarch
