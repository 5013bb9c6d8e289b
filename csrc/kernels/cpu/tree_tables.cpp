#include "tree_tables.h"

#include <map>
#include <memory>
#include <mutex>
#include <new>
#include <tuple>
#include <vector>

#include "../math/rightangle.h"

namespace monarch {
namespace {

// n scalars that start on a cache line.
template <class T>
class Table {
 public:
  explicit Table(int64_t n) : data_(static_cast<T*>(::operator new((n + 1) * sizeof(T), kAlign))) {}
  Table(Table&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Table(const Table&) = delete;
  Table& operator=(const Table&) = delete;
  ~Table() { ::operator delete(data_, kAlign); }
  T* data() { return data_; }

 private:
  static constexpr std::align_val_t kAlign{64};
  T* data_;
};

template <class T>
class Builder {
 public:
  explicit Builder(const TreeShape& shape) : shape_(shape), lanes_(shape.lanes), vectors_(shape.codelet_vectors) {
    tree.points = shape.points;
    tree.depth = shape.depth;
    tree.codelet_vectors = vectors_;
    tree.root_pitch = shape.root_pitch;
    const std::vector<Angle> blocks = levels();
    tree.lane_twiddles = lane_stages();
    twist(blocks);
  }

  Tree<T> tree{};

 private:
  // Twiddles of the passes; returns the angles of the codelets' nodes in tree order.
  std::vector<Angle> levels() {
    std::vector<Angle> nodes{Angle{}};
    int64_t stride = shape_.points / lanes_;
    for (int d = 0; d < shape_.depth; ++d) {
      const int radix = shape_.radix[d];
      stride /= radix;
      Complex<T>* tw = complexes(nodes.size() * (radix - 1));
      tree.levels[d] = {radix, stride, tw};
      std::vector<Angle> children;
      children.reserve(nodes.size() * radix);
      for (const Angle& a : nodes) {
        for (int q = 1; q < radix; ++q) *tw++ = rounded(a.root(q, radix));
        for (int p = 0; p < radix; ++p) children.push_back(a.child(p, radix));
      }
      nodes = std::move(children);
    }
    return nodes;
  }

  // Twiddles of the codelet's lane stages, in the order in which fft_tree.h reads them. theta[v][l] is the
  // angle, in units of 1/one turn, of the node that lane l of vector v belongs to.
  const T* lane_stages() {
    const int64_t one = int64_t(1) << 40;  // every angle here is a multiple of 1 / (codelet points)
    std::vector<std::vector<int64_t>> theta(vectors_, std::vector<int64_t>(lanes_));
    int64_t complex_vectors = 0;
    for (int group = lanes_; group > 1; group /= lane_radix<T>(group))
      complex_vectors += vectors_ / lane_radix<T>(group) * (lane_radix<T>(group) - 1);
    T* const table = scalars(complex_vectors * 2 * lanes_);
    T* out = table;
    for (int v = 0; v < vectors_; ++v)
      for (int64_t& angle : theta[v]) angle = v * one / vectors_;
    for (int group = lanes_; group > 1;) {
      const int radix = lane_radix<T>(group), g = group / radix;
      auto next = theta;
      for (int t = 0; t < vectors_; t += radix) {
        // after the trade, lane l of every vector of the tile belongs to the node of vector t + (l/g) % radix
        const auto node = [&](int l) { return theta[t + l / g % radix][l]; };
        for (int q = 1; q < radix; ++q, out += 2 * lanes_)
          for (int l = 0; l < lanes_; ++l) put(out, l, unit_root(q * node(l), radix * one));
        for (int p = 0; p < radix; ++p)
          for (int l = 0; l < lanes_; ++l) next[t + p][l] = (node(l) + p * one) / radix;
      }
      theta = std::move(next);
      group = g;
    }
    return table;
  }

  void twist(const std::vector<Angle>& blocks) {
    const int size = lanes_ * vectors_;
    tree.twist_is_split = shape_.split_twist;
    const int per_block = shape_.split_twist ? 1 : vectors_;
    T* out = scalars(int64_t(blocks.size()) * per_block * 2 * lanes_);
    tree.twist_lanes = out;
    for (const Angle& a : blocks)
      for (int v = 0; v < per_block; ++v, out += 2 * lanes_)
        for (int l = 0; l < lanes_; ++l) put(out, l, a.root(v * lanes_ + l, size));
    if (!shape_.split_twist) return;
    Complex<T>* step = complexes(int64_t(blocks.size()) * (vectors_ - 1));
    tree.twist_steps = step;
    for (const Angle& a : blocks)
      for (int q = 1; q < vectors_; ++q) *step++ = rounded(a.root(q, vectors_));
  }

  static Complex<T> rounded(Complex<double> z) { return {static_cast<T>(z.re), static_cast<T>(z.im)}; }
  void put(T* vector, int lane, Complex<double> z) {
    vector[lane] = static_cast<T>(z.re);
    vector[lanes_ + lane] = static_cast<T>(z.im);
  }
  T* scalars(int64_t n) {
    tables_.emplace_back(n);
    return tables_.back().data();
  }
  Complex<T>* complexes(int64_t n) { return reinterpret_cast<Complex<T>*>(scalars(2 * n)); }

  const TreeShape shape_;
  const int lanes_, vectors_;
  std::vector<Table<T>> tables_;
};

}  // namespace

template <class T>
const Tree<T>& tree_tables(const TreeShape& shape) {
  static std::mutex mutex;
  static std::map<std::tuple<int64_t, int, int>, std::unique_ptr<Builder<T>>> cache;
  const std::lock_guard<std::mutex> lock(mutex);
  auto& entry = cache[{shape.points, shape.lanes, shape.codelet_vectors}];
  if (!entry) entry = std::make_unique<Builder<T>>(shape);
  return entry->tree;
}

template const Tree<float>& tree_tables<float>(const TreeShape&);
template const Tree<double>& tree_tables<double>(const TreeShape&);

}  // namespace monarch
