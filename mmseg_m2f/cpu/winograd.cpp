// 3 x 3 convolution with stride 1 and padding 1 by Winograd's F(4 x 4, 3 x 3), forward and
// backward.
//
// A map is cut into tiles of 4 x 4 outputs, each of which depends on 6 x 6 inputs. Inputs and
// weights are transformed (B^T d B, G g G^T) and multiplied point by point: over all channels this
// is one matrix product for each of the 36 points. The result is transformed back (A^T m A). So 16
// outputs take 36 products a channel, where the sum has 144. Source: Lavin and Gray,
// arXiv:1509.09308.
//
// Maps are in channels-last order. A batch of tiles is small enough for its transforms to stay in
// the caches. One thread computes a number, in an order that depends only on the sizes.

#include <algorithm>
#include <cstdint>

namespace {

using Index = std::int64_t;

// The product of a strip of rows and a panel of columns stays in registers.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kRows = 14;
#elif defined(__AVX__)
constexpr int kLanes = 8, kRows = 6;
#else
constexpr int kLanes = 4, kRows = 6;
#endif
constexpr int kColumns = 2 * kLanes;
constexpr int kPoints = 36;
// Floats of a batch of tiles, inputs and outputs together: 2 MiB, which fit into a core's cache.
constexpr Index kBatchFloats = Index{1} << 19;
// Below this the products of a batch are too small for their panels.
constexpr Index kFewestTiles = 8 * kRows;
// Strips that a thread multiplies with all panels one after another, as their rows stay in its
// cache.
constexpr Index kStripsAtOnce = 4;

// May lie anywhere and alias floats.
typedef float Vector __attribute__((vector_size(kLanes * sizeof(float)), aligned(4), may_alias));

inline Vector load(const float* from) { return *reinterpret_cast<const Vector*>(from); }
inline void store(float* to, Vector value) { *reinterpret_cast<Vector*>(to) = value; }

Index round_up(Index number, Index multiple) {
  return (number + multiple - 1) / multiple * multiple;
}

// Sizes of the maps (batch, height, width, channels in, channels out) and what follows from them.
struct Sizes {
  Index batch, height, width, in, out;

  Index columns() const { return (width + 3) / 4; }
  Index tiles_of_map() const { return (height + 3) / 4 * columns(); }
  Index tiles() const { return batch * tiles_of_map(); }
  Index panels() const { return (out + kColumns - 1) / kColumns; }
  Index tiles_of_batch() const {
    const Index fitting = kBatchFloats / (kPoints * (in + out));
    return round_up(std::min(tiles(), std::max(fitting, kFewestTiles)), kRows);
  }
};

// Sizes of the memory that a pass needs: the transforms of a batch of tiles, inputs and outputs,
// and those of the weights. The caller allocates it.
struct Workspace {
  Index in_row, out_row, in_plane, out_plane, weights;

  void write_floats(Index* to) const {
    to[0] = kPoints * in_plane, to[1] = kPoints * out_plane, to[2] = kPoints * weights;
  }
};

// Workspace for so many input channels. A row has one vector more than its channels: rows a power
// of two apart would share the same sets of the cache.
Workspace workspace_for(const Sizes& sizes, Index in) {
  const Index batch = sizes.tiles_of_batch(), columns = sizes.panels() * kColumns;
  const Index in_row = round_up(in, kLanes) + kLanes, out_row = columns + kLanes;
  return {in_row, out_row, batch * in_row, batch * out_row, in * columns};
}

Workspace workspace_of_forward(const Sizes& sizes) { return workspace_for(sizes, sizes.in); }

// The input channels are padded to whole strips, and the padding is multiplied, too.
Workspace workspace_of_backward(const Sizes& sizes) {
  return workspace_for(sizes, round_up(sizes.in, kRows));
}

// Where a tile of outputs lies: its map and its top left pixel.
struct Place {
  Index map, top, left;

  Place(const Sizes& sizes, Index tile)
      : map(tile / sizes.tiles_of_map()),
        top(tile % sizes.tiles_of_map() / sizes.columns() * 4),
        left(tile % sizes.columns() * 4) {}
};

// The points are 0, +-kNear, +-kFar and infinity. The paper takes 1 and 2 for near and far, which
// are cheaper to multiply with. With these the errors are less than half as large, as the
// transforms' numbers are closer to 1 (Barabasz et al., arXiv:1803.10986).
constexpr float kNear = 2 / 3.f, kFar = 3 / 2.f;
constexpr float kNear2 = kNear * kNear, kFar2 = kFar * kFar;
constexpr float kSum = kNear2 + kFar2, kProduct = kNear2 * kFar2;
// The weights are divided by the derivative of the polynomial with these roots, at each point.
constexpr float kAtNear = 1 / (2 * kNear2 * (kNear2 - kFar2));
constexpr float kAtFar = 1 / (2 * kFar2 * (kFar2 - kNear2));

// B^T d: 6 inputs to 6 points.
template <class T>
inline void transform_inputs(const T* d, T* out) {
  const T even1 = d[4] - kFar2 * d[2], odd1 = kNear * (d[3] - kFar2 * d[1]);
  const T even2 = d[4] - kNear2 * d[2], odd2 = kFar * (d[3] - kNear2 * d[1]);
  out[0] = kProduct * d[0] - kSum * d[2] + d[4];
  out[1] = even1 + odd1;
  out[2] = even1 - odd1;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = kProduct * d[1] - kSum * d[3] + d[5];
}

// A^T m: 6 points to 4 outputs.
template <class T>
inline void transform_outputs(const T* m, T* out) {
  const T sum1 = m[1] + m[2], difference1 = kNear * (m[1] - m[2]);
  const T sum2 = m[3] + m[4], difference2 = kFar * (m[3] - m[4]);
  out[0] = m[0] + sum1 + sum2;
  out[1] = difference1 + difference2;
  out[2] = kNear2 * sum1 + kFar2 * sum2;
  out[3] = kNear2 * difference1 + kFar2 * difference2 + m[5];
}

// A y: gradients of 4 outputs to those of 6 points.
template <class T>
inline void transform_gradients(const T* y, T* out) {
  const T even1 = y[0] + kNear2 * y[2], odd1 = kNear * (y[1] + kNear2 * y[3]);
  const T even2 = y[0] + kFar2 * y[2], odd2 = kFar * (y[1] + kFar2 * y[3]);
  out[0] = y[0];
  out[1] = even1 + odd1;
  out[2] = even1 - odd1;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = y[3];
}

// G g: 3 weights to 6 points.
template <class T>
inline void transform_weights(const T* g, T* out) {
  const T even1 = kAtNear * (g[0] + kNear2 * g[2]), odd1 = kAtNear * kNear * g[1];
  const T even2 = kAtFar * (g[0] + kFar2 * g[2]), odd2 = kAtFar * kFar * g[1];
  out[0] = g[0] * (1 / kProduct);
  out[1] = even1 + odd1;
  out[2] = even1 - odd1;
  out[3] = even2 + odd2;
  out[4] = even2 - odd2;
  out[5] = g[2];
}

// G^T u: gradients of 6 points to those of 3 weights.
template <class T>
inline void transform_back(const T* u, T* out) {
  const T sum1 = kAtNear * (u[1] + u[2]), difference1 = kAtNear * kNear * (u[1] - u[2]);
  const T sum2 = kAtFar * (u[3] + u[4]), difference2 = kAtFar * kFar * (u[3] - u[4]);
  out[0] = u[0] * (1 / kProduct) + sum1 + sum2;
  out[1] = difference1 + difference2;
  out[2] = kNear2 * sum1 + kFar2 * sum2 + u[5];
}

// Columns first, then rows: (from x from) to (to x to), by a transform of one axis.
template <int kFrom, int kTo, class T, class Transform>
inline void transform_both(const T (&given)[kFrom][kFrom], T (&result)[kTo][kTo], Transform one) {
  T half[kTo][kFrom];
  for (int x = 0; x < kFrom; ++x) {
    T column[kFrom], changed[kTo];
    for (int y = 0; y < kFrom; ++y) column[y] = given[y][x];
    one(column, changed);
    for (int y = 0; y < kTo; ++y) half[y][x] = changed[y];
  }
  for (int y = 0; y < kTo; ++y) one(half[y], result[y]);
}

// Load a square of pixels whose top left is (top, left); pixels outside the map are zero.
template <int kSide>
inline void gather(const float* map, const Sizes& sizes, Index channels, Index top, Index left,
                   Vector (&square)[kSide][kSide]) {
  for (int y = 0; y < kSide; ++y)
    for (int x = 0; x < kSide; ++x) {
      const Index row = top + y, column = left + x;
      const bool inside = row >= 0 && row < sizes.height && column >= 0 && column < sizes.width;
      square[y][x] = inside ? load(map + (row * sizes.width + column) * channels) : Vector{};
    }
}

template <int kSide>
inline void scatter_points(const Vector (&square)[kSide][kSide], float* to, Index plane) {
  for (int y = 0; y < kSide; ++y)
    for (int x = 0; x < kSide; ++x) store(to + (y * kSide + x) * plane, square[y][x]);
}

void inputs_of_tile(const float* x, const Sizes& sizes, Index tile, float* to, Index plane) {
  const Place place(sizes, tile);
  const float* map = x + place.map * sizes.height * sizes.width * sizes.in;
  for (Index c = 0; c < sizes.in; c += kLanes) {
    Vector pixels[6][6], points[6][6];
    gather(map + c, sizes, sizes.in, place.top - 1, place.left - 1, pixels);
    transform_both(pixels, points, transform_inputs<Vector>);
    scatter_points(points, to + c, plane);
  }
}

void gradients_of_tile(const float* grad, const Sizes& sizes, Index tile, float* to, Index plane) {
  const Place place(sizes, tile);
  const float* map = grad + place.map * sizes.height * sizes.width * sizes.out;
  for (Index c = 0; c < sizes.out; c += kLanes) {
    Vector pixels[4][4], points[6][6];
    gather(map + c, sizes, sizes.out, place.top, place.left, pixels);
    transform_both(pixels, points, transform_gradients<Vector>);
    scatter_points(points, to + c, plane);
  }
}

void outputs_of_tile(const float* from, Index plane, const float* bias, const Sizes& sizes,
                     Index tile, float* y) {
  const Place place(sizes, tile);
  float* map = y + place.map * sizes.height * sizes.width * sizes.out;
  for (Index c = 0; c < sizes.out; c += kLanes) {
    Vector points[6][6], pixels[4][4];
    for (int point = 0; point < kPoints; ++point)
      points[point / 6][point % 6] = load(from + point * plane + c);
    transform_both(points, pixels, transform_outputs<Vector>);
    const Vector shift = bias ? load(bias + c) : Vector{};
    for (Index row = 0; row < std::min<Index>(4, sizes.height - place.top); ++row)
      for (Index column = 0; column < std::min<Index>(4, sizes.width - place.left); ++column) {
        float* to = map + ((place.top + row) * sizes.width + place.left + column) * sizes.out;
        store(to + c, pixels[row][column] + shift);
      }
  }
}

// Compute to = a b, or to += a b: kRows rows of a times kColumns columns of b. Either the rows of a
// or the terms of the sum lie side by side; the others lie `stride` apart.
template <bool kRowsContiguous>
inline void multiply(Index depth, const float* a, Index stride, const float* b, Index next,
                     float* to, Index leading, bool add) {
  Vector sum[kRows][2];
  for (int i = 0; i < kRows; ++i) {
    sum[i][0] = add ? load(to + i * leading) : Vector{};
    sum[i][1] = add ? load(to + i * leading + kLanes) : Vector{};
  }
  for (Index k = 0; k < depth; ++k) {
    const Vector left = load(b), right = load(b + kLanes);
#pragma GCC unroll 14
    for (int i = 0; i < kRows; ++i) {
      const float factor = kRowsContiguous ? a[i] : a[i * stride];
      sum[i][0] += factor * left;
      sum[i][1] += factor * right;
    }
    a += kRowsContiguous ? stride : 1;
    b += next;
  }
  for (int i = 0; i < kRows; ++i) {
    store(to + i * leading, sum[i][0]);
    store(to + i * leading + kLanes, sum[i][1]);
  }
}

// The weights (out, in, 3, 3) and their strides in floats; the spatial strides may be negative.
struct Weights {
  const float* at;
  Index out, in, row, column;
};

// Load the 9 taps of kLanes output channels for some input channels; channels beyond stay zero.
constexpr Index kTapsAtOnce = 16;
inline void taps_of_lanes(const Weights& weights, const Sizes& sizes, Index first, Index start,
                          float (&taps)[kTapsAtOnce][9][kLanes]) {
  const Index number = std::min(kTapsAtOnce, sizes.in - start);
  for (Index k = 0; k < std::min<Index>(kLanes, sizes.out - first); ++k)
    for (Index c = 0; c < number; ++c) {
      const float* from = weights.at + (first + k) * weights.out + (start + c) * weights.in;
      for (int tap = 0; tap < 9; ++tap)
        taps[c][tap][k] = from[tap / 3 * weights.row + tap % 3 * weights.column];
    }
}

// Transform the weights of kLanes output channels to (point, panel, in, column of the panel).
void weights_of_lanes(const Weights& weights, const Sizes& sizes, Index first, float* to) {
  const Index panel = first / kColumns, column = first % kColumns;
  float taps[kTapsAtOnce][9][kLanes] = {};
  for (Index start = 0; start < sizes.in; start += kTapsAtOnce) {
    taps_of_lanes(weights, sizes, first, start, taps);
    for (Index c = 0; c < std::min(kTapsAtOnce, sizes.in - start); ++c) {
      Vector given[3][3], points[6][6];
      for (int tap = 0; tap < 9; ++tap) given[tap / 3][tap % 3] = load(taps[c][tap]);
      transform_both(given, points, transform_weights<Vector>);
      scatter_points(points, to + (panel * sizes.in + start + c) * kColumns + column,
                     sizes.panels() * sizes.in * kColumns);
    }
  }
}

// Transform the gradients of the points (point, in, out) to those of the weights (out, in, 3, 3),
// for kLanes output channels.
void gradients_of_weights(const float* points, Index plane, Index leading, Index first,
                          const Sizes& sizes, float* to) {
  for (Index c = 0; c < sizes.in; ++c) {
    Vector square[6][6], back[3][3];
    for (int point = 0; point < kPoints; ++point)
      square[point / 6][point % 6] = load(points + point * plane + c * leading + first);
    transform_both(square, back, transform_back<Vector>);
    for (int tap = 0; tap < 9; ++tap)
      for (int k = 0; k < kLanes; ++k)
        to[((first + k) * sizes.in + c) * 9 + tap] = back[tap / 3][tap % 3][k];
  }
}

Sizes read_sizes(const Index* sizes) {
  return {sizes[0], sizes[1], sizes[2], sizes[3], sizes[4]};
}

}  // namespace

extern "C" {

// Input and output channels must be multiples of this number.
int lanes() { return kLanes; }

// Floats of the three parts of a workspace.
void forward_floats(const Index* dims, Index* to) {
  workspace_of_forward(read_sizes(dims)).write_floats(to);
}
void backward_weight_floats(const Index* dims, Index* to) {
  workspace_of_backward(read_sizes(dims)).write_floats(to);
}

// Compute y (batch, height, width, out) from x (batch, height, width, in); bias (out) may be null.
void forward(const Index* dims, const float* x, const float* weight, const Index* strides,
             const float* bias, float* y, float* const* workspace, int threads) {
  const Sizes sizes = read_sizes(dims);
  const Workspace space = workspace_of_forward(sizes);
  const Weights weights{weight, strides[0], strides[1], strides[2], strides[3]};
  const Index tiles = sizes.tiles(), batch = sizes.tiles_of_batch(), panels = sizes.panels();
  const Index panel_size = sizes.in * kColumns;
  float *inputs = workspace[0], *outputs = workspace[1], *factors = workspace[2];
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (Index first = 0; first < panels * kColumns; first += kLanes)
      weights_of_lanes(weights, sizes, first, factors);
    for (Index start = 0; start < tiles; start += batch) {
      const Index number = std::min(batch, tiles - start), strips = (number + kRows - 1) / kRows;
      const Index groups = (strips + kStripsAtOnce - 1) / kStripsAtOnce;
#pragma omp for schedule(static)
      for (Index t = 0; t < number; ++t)
        inputs_of_tile(x, sizes, start + t, inputs + t * space.in_row, space.in_plane);
#pragma omp for schedule(static) collapse(2)
      for (Index point = 0; point < kPoints; ++point)
        for (Index group = 0; group < groups; ++group)
          for (Index panel = 0; panel < panels; ++panel)
            for (Index strip = group * kStripsAtOnce;
                 strip < std::min(strips, (group + 1) * kStripsAtOnce); ++strip)
              multiply<false>(
                  sizes.in, inputs + point * space.in_plane + strip * kRows * space.in_row,
                  space.in_row, factors + (point * panels + panel) * panel_size, kColumns,
                  outputs + point * space.out_plane + strip * kRows * space.out_row +
                      panel * kColumns,
                  space.out_row, false);
#pragma omp for schedule(static)
      for (Index t = 0; t < number; ++t)
        outputs_of_tile(outputs + t * space.out_row, space.out_plane, bias, sizes, start + t, y);
    }
  }
}

// Compute the gradient (out, in, 3, 3) of the weights from x and the gradient of y.
void backward_weight(const Index* dims, const float* x, const float* grad, float* grad_weight,
                     float* const* workspace, int threads) {
  const Sizes sizes = read_sizes(dims);
  const Workspace space = workspace_of_backward(sizes);
  const Index tiles = sizes.tiles(), batch = sizes.tiles_of_batch();
  const Index in_padded = round_up(sizes.in, kRows), out_padded = sizes.panels() * kColumns;
  float *inputs = workspace[0], *outputs = workspace[1], *points = workspace[2];
  // The padding of the rows is multiplied, too.
  std::fill_n(inputs, kPoints * space.in_plane, 0.f);
  std::fill_n(outputs, kPoints * space.out_plane, 0.f);
#pragma omp parallel num_threads(threads)
  {
    for (Index start = 0; start < tiles; start += batch) {
      const Index number = std::min(batch, tiles - start);
#pragma omp for schedule(static)
      for (Index t = 0; t < number; ++t) {
        inputs_of_tile(x, sizes, start + t, inputs + t * space.in_row, space.in_plane);
        gradients_of_tile(grad, sizes, start + t, outputs + t * space.out_row, space.out_plane);
      }
#pragma omp for schedule(static) collapse(2)
      for (Index point = 0; point < kPoints; ++point)
        for (Index c = 0; c < in_padded; c += kRows)
          for (Index k = 0; k < out_padded; k += kColumns)
            multiply<true>(number, inputs + point * space.in_plane + c, space.in_row,
                           outputs + point * space.out_plane + k, space.out_row,
                           points + point * space.weights + c * out_padded + k, out_padded,
                           start > 0);
    }
#pragma omp for schedule(static)
    for (Index k = 0; k < sizes.out; k += kLanes)
      gradients_of_weights(points, space.weights, out_padded, k, sizes, grad_weight);
  }
}

}  // extern "C"
