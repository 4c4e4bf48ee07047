// Multi-scale deformable attention on the CPU, forward and backward; __init__.py has the contract.
//
// The file is compiled on first use. It has a C interface and needs no header of PyTorch, so that
// it builds in seconds. T is the type of the computation (float or double), V the type of the
// value.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

struct BFloat16 {
  uint16_t bits;
  operator float() const {
    const uint32_t wide = static_cast<uint32_t>(bits) << 16;
    float number;
    std::memcpy(&number, &wide, sizeof number);
    return number;
  }
};

inline void store(float number, float* out) { *out = number; }
inline void store(double number, double* out) { *out = number; }
inline void store(float number, BFloat16* out) {
  uint32_t wide;
  std::memcpy(&wide, &number, sizeof wide);
  // Round to the nearest, ties to even. The quiet bit keeps a NaN a NaN.
  const bool is_nan = number != number;
  out->bits = is_nan ? static_cast<uint16_t>((wide >> 16) | 0x40)
                     : static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
}

// Bytes of a register. GCC compiles longer vectors, too, but keeps them in memory.
#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
// Registers that a loop over the samples fills at once: 32 channels of float.
constexpr int kBlocks = 128 / kBytes;
constexpr int kCacheLine = 64;
template <typename T>
struct Vector {
  static constexpr int lanes = kBytes / sizeof(T);
  typedef T type __attribute__((vector_size(kBytes)));
};
template <typename T>
using Lanes = typename Vector<T>::type;

template <typename T>
inline Lanes<T> load(const T* from) {
  Lanes<T> lanes;
  std::memcpy(&lanes, from, sizeof lanes);
  return lanes;
}
inline void store(const Lanes<float>& lanes, float* out) { std::memcpy(out, &lanes, kBytes); }
inline void store(const Lanes<double>& lanes, double* out) { std::memcpy(out, &lanes, kBytes); }
inline void store(const Lanes<float>& lanes, BFloat16* out) {
  float numbers[Vector<float>::lanes];
  std::memcpy(numbers, &lanes, sizeof lanes);
  for (int i = 0; i < Vector<float>::lanes; ++i) store(numbers[i], out + i);
}
// Prefetch all cache lines of `count` numbers, which may begin inside a line.
template <typename T>
inline void prefetch(const T* from, int64_t count) {
  for (int64_t at = 0; at < count; at += kCacheLine / sizeof(T)) __builtin_prefetch(from + at);
  __builtin_prefetch(from + count - 1);
}

// Return, for each block of WIDTH lanes, half a block of a and then half a block of b, both from
// lane FROM of their block on.
template <int WIDTH, int FROM, typename V, int... LANE>
inline V halves_of(const V& a, const V& b, std::integer_sequence<int, LANE...>) {
  constexpr int lanes = sizeof...(LANE), half = WIDTH / 2;
#ifdef __clang__
  return __builtin_shufflevector(
      a, b, (LANE / WIDTH * WIDTH + LANE % half + FROM + LANE % WIDTH / half * lanes)...);
#else
  typedef std::conditional_t<sizeof(a[0]) == 4, int32_t, int64_t> Number;
  typedef Number Numbers __attribute__((vector_size(sizeof(V))));
  const Numbers from = {
      (LANE / WIDTH * WIDTH + LANE % half + FROM + LANE % WIDTH / half * lanes)...};
  return __builtin_shuffle(a, b, from);
#endif
}
// Sum the lanes of each vector: lane i of vectors[0] becomes the sum of vectors[i]. Adds half of
// the vectors to the other half until one is left, and overwrites all of them.
template <int WIDTH, typename V>
inline void add_up(V* vectors) {
  constexpr int lanes = sizeof(V) / sizeof(vectors[0][0]);
  constexpr auto every = std::make_integer_sequence<int, lanes>();
  for (int i = 0; i < WIDTH / 2; ++i)
    vectors[i] = halves_of<WIDTH, 0>(vectors[i], vectors[i + WIDTH / 2], every) +
                 halves_of<WIDTH, WIDTH / 2>(vectors[i], vectors[i + WIDTH / 2], every);
  if constexpr (WIDTH > 2) add_up<WIDTH / 2>(vectors);
}

struct Sizes {
  int64_t batch, tokens, queries, heads, levels, points, head_dim;
  int64_t samples() const { return levels * points; }
  // Index of a query's head in (B, Q, heads).
  int64_t place(int64_t image, int64_t query, int64_t head) const {
    return (image * queries + query) * heads + head;
  }
};

// Compute e^x for x <= 0 within two units in the last place: e^x = 2^n e^r with |r| <= ln(2) / 2.
// The compiler computes many of these at once; the library's function takes one number at a time.
inline float exp_of_negative(float x) {
  x = x < -87.0f ? -87.0f : x;  // e^-87 is the smallest normal number; a NaN passes
  const float n = std::nearbyint(x * 1.44269504f);
  const float r = (x - n * 0.693145752f) - n * 1.42860677e-6f;
  float series = 1.0f / 720;
  series = series * r + 1.0f / 120;
  series = series * r + 1.0f / 24;
  series = series * r + 1.0f / 6;
  series = series * r + 0.5f;
  series = series * r + 1.0f;
  series = series * r + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  std::memcpy(&power, &bits, sizeof power);
  return series * power;
}
inline double exp_of_negative(double x) { return std::exp(x); }

// Lists of samples are padded to whole groups, so that a loop over a group has a fixed length.
constexpr int64_t kGroup = 16;
inline int64_t whole_groups(int64_t count) { return (count + kGroup - 1) / kGroup * kGroup; }

// Softmax of the first `count` numbers of a padded list; the padding becomes 0 (e^-87 in float).
template <typename T>
inline void softmax(const T* logits, int64_t count, int64_t padded, T* out) {
  constexpr T lowest = -std::numeric_limits<T>::infinity();
  T largest = lowest, total = 0;
  for (int64_t group = 0; group < padded; group += kGroup)
#pragma omp simd reduction(max : largest)
    for (int64_t i = group; i < group + kGroup; ++i) {
      const T logit = logits[i];
      out[i] = i < count ? logit : lowest;
      largest = largest < out[i] ? out[i] : largest;
    }
  for (int64_t group = 0; group < padded; group += kGroup)
#pragma omp simd reduction(+ : total)
    for (int64_t i = group; i < group + kGroup; ++i) {
      out[i] = exp_of_negative(out[i] - largest);
      total += out[i];
    }
  const T scale = 1 / total;
  for (int64_t group = 0; group < padded; group += kGroup)
#pragma omp simd
    for (int64_t i = group; i < group + kGroup; ++i) out[i] *= scale;
}

template <typename T, typename V>
struct Inputs {
  Sizes sizes;
  const int64_t* shapes;  // height, width of each level
  const V* value;         // (B, S, heads, D)
  const T* reference;     // (Q, 2)
  const T* offsets;       // (B, Q, heads, L * P, 2)
  const T* logits;        // (B, Q, heads, L * P)
};

// A copy of one head of one image with its tokens side by side. In `value` they lie all heads
// apart, and such a stride, a power of two, leaves most of the cache unused. Row S is zero: it
// stands for all pixels outside the map.
template <typename T>
class HeadMap {
 public:
  explicit HeadMap(const Sizes& sizes)
      : dim_(sizes.head_dim), memory_((sizes.tokens + 1) * sizes.head_dim + kCacheLine / sizeof(T)) {
    // Rows begin at a cache line: otherwise each would read one line more.
    const auto beyond = reinterpret_cast<uintptr_t>(memory_.data()) % kCacheLine;
    rows_ = memory_.data() + (kCacheLine - beyond) % kCacheLine / sizeof(T);
  }

  T* row(int64_t token) const { return rows_ + token * dim_; }

  void clear() { std::fill(memory_.begin(), memory_.end(), T(0)); }

  template <typename V>
  void read(const Sizes& n, const V* value, int64_t image, int64_t head) {
    for (int64_t token = 0; token < n.tokens; ++token) {
      const V* from = value + ((image * n.tokens + token) * n.heads + head) * dim_;
      T* to = row(token);
      for (int64_t d = 0; d < dim_; ++d) to[d] = T(from[d]);
    }
  }

  void write(const Sizes& n, T* value, int64_t image, int64_t head) {
    for (int64_t token = 0; token < n.tokens; ++token)
      std::copy(row(token), row(token) + dim_,
                value + ((image * n.tokens + token) * n.heads + head) * dim_);
  }

 private:
  int64_t dim_;
  std::vector<T> memory_;
  T* rows_;
};

// The samples of so many queries are computed before any is used: steps that wait for one another
// then run side by side.
constexpr int64_t kBatch = 8;

// The samples of one query and one head. Each property is a list over the samples, so that a loop
// computes many samples at once.
template <typename T>
class Samples {
 public:
  int64_t count;
  std::vector<T> weight;          // softmax of the logits
  std::vector<T> right, below;    // distance from the upper left of the four pixels around
  std::vector<T> share[4];        // bilinear shares of the pixels; of those outside the map too
  std::vector<int32_t> token[4];  // the pixels' tokens, S outside the map

  template <typename V>
  explicit Samples(const Inputs<T, V>& in)
      : count(in.sizes.samples()),
        padded_(whole_groups(count)),
        outside_(static_cast<int32_t>(in.sizes.tokens)) {
    for (auto* list : {&weight, &right, &below, &share[0], &share[1], &share[2], &share[3]})
      list->resize(padded_);
    for (auto& list : token) list.resize(padded_);
    last_logits_.resize(padded_);
    last_offsets_.resize(2 * padded_);
    int64_t first = 0;
    for (int64_t level = 0; level < in.sizes.levels; ++level) {
      const int64_t height = in.shapes[2 * level], width = in.shapes[2 * level + 1];
      height_.insert(height_.end(), in.sizes.points, static_cast<int32_t>(height));
      width_.insert(width_.end(), in.sizes.points, static_cast<int32_t>(width));
      first_.insert(first_.end(), in.sizes.points, static_cast<int32_t>(first));
      first += height * width;
    }
    for (auto* list : {&height_, &width_, &first_}) list->resize(padded_);
  }

  template <typename V>
  void read(const Inputs<T, V>& in, int64_t query, int64_t place) {
    const T* logits = in.logits + place * count;
    const T* offsets = in.offsets + place * count * 2;
    // Prefetch the same head of the next batch.
    const int64_t ahead = kBatch * in.sizes.heads * count;
    prefetch(logits + ahead, padded_);
    prefetch(offsets + 2 * ahead, 2 * padded_);
    if (place * count + padded_ > in.sizes.batch * in.sizes.queries * in.sizes.heads * count) {
      std::copy(logits, logits + count, last_logits_.begin());
      std::copy(offsets, offsets + 2 * count, last_offsets_.begin());
      logits = last_logits_.data();
      offsets = last_offsets_.data();
    }
    softmax(logits, count, padded_, weight.data());
    for (int64_t group = 0; group < padded_; group += kGroup)
      locate(group, offsets + 2 * group, in.reference[2 * query], in.reference[2 * query + 1]);
  }

 private:
  int64_t padded_;
  int32_t outside_;
  // Groups are read whole, beyond the samples; behind the last sample there is nothing to read.
  std::vector<T> last_logits_, last_offsets_;
  std::vector<int32_t> height_, width_, first_;

  void locate(int64_t group, const T* offset, T query_x, T query_y) {
    const int32_t *heights = &height_[group], *widths = &width_[group], *firsts = &first_[group];
    T *to_right = &right[group], *to_below = &below[group];
    T *share0 = &share[0][group], *share1 = &share[1][group];
    T *share2 = &share[2][group], *share3 = &share[3][group];
    int32_t *token0 = &token[0][group], *token1 = &token[1][group];
    int32_t *token2 = &token[2][group], *token3 = &token[3][group];
    const int32_t outside = outside_;
#pragma omp simd
    for (int64_t i = 0; i < kGroup; ++i) {
      const int32_t height = heights[i], width = widths[i];
      T x = query_x * width + (offset[2 * i] - T(0.5));
      T y = query_y * height + (offset[2 * i + 1] - T(0.5));
      // Farther than one pixel outside makes no difference. Numbers that an integer cannot hold,
      // and NaN, are moved there.
      x = x > -2 ? x : T(-2);
      y = y > -2 ? y : T(-2);
      x = x < width + 1 ? x : T(width + 1);
      y = y < height + 1 ? y : T(height + 1);
      const T left = std::floor(x), top = std::floor(y);
      const int32_t column = static_cast<int32_t>(left), row = static_cast<int32_t>(top);
      const int32_t in_left = (column >= 0) & (column < width);
      const int32_t in_right = (column >= -1) & (column < width - 1);
      const int32_t in_top = (row >= 0) & (row < height);
      const int32_t in_bottom = (row >= -1) & (row < height - 1);
      const int32_t corner = firsts[i] + row * width + column;
      token0[i] = in_top & in_left ? corner : outside;
      token1[i] = in_top & in_right ? corner + 1 : outside;
      token2[i] = in_bottom & in_left ? corner + width : outside;
      token3[i] = in_bottom & in_right ? corner + width + 1 : outside;
      const T a = x - left, b = y - top;
      to_right[i] = a;
      to_below[i] = b;
      share0[i] = (1 - b) * (1 - a);
      share1[i] = (1 - b) * a;
      share2[i] = b * (1 - a);
      share3[i] = b * a;
    }
  }
};

// Sum the samples' channels from `at` on in registers.
template <int BLOCKS, typename T, typename V>
inline void sum_block(HeadMap<T>& map, const Samples<T>& samples, int64_t at, V* out) {
  Lanes<T> sum[BLOCKS] = {};
  for (int64_t i = 0; i < samples.count; ++i) {
    const T weight = samples.weight[i];
    for (int corner = 0; corner < 4; ++corner) {
      const T share = samples.share[corner][i] * weight;
      const T* from = map.row(samples.token[corner][i]) + at;
      for (int k = 0; k < BLOCKS; ++k) sum[k] += share * load(from + k * Vector<T>::lanes);
    }
  }
  for (int k = 0; k < BLOCKS; ++k) store(sum[k], out + at + k * Vector<T>::lanes);
}

template <typename T, typename V>
inline void sum_samples(HeadMap<T>& map, const Samples<T>& samples, int64_t dim, V* out) {
  constexpr int lanes = Vector<T>::lanes;
  int64_t at = 0;
  for (; at + kBlocks * lanes <= dim; at += kBlocks * lanes)
    sum_block<kBlocks>(map, samples, at, out);
  for (; at + kBlocks / 2 * lanes <= dim; at += kBlocks / 2 * lanes)
    sum_block<kBlocks / 2>(map, samples, at, out);
  for (; at + lanes <= dim; at += lanes) sum_block<1>(map, samples, at, out);
  for (; at < dim; ++at) {
    T sum = 0;
    for (int64_t i = 0; i < samples.count; ++i)
      for (int corner = 0; corner < 4; ++corner)
        sum += samples.weight[i] * samples.share[corner][i] *
               map.row(samples.token[corner][i])[at];
    store(sum, out + at);
  }
}

// Threads share out pieces of so many queries of one head of one image.
constexpr int64_t kPiece = 256;

template <typename T, typename V>
inline void read_batch(const Inputs<T, V>& in, int64_t image, int64_t head, int64_t first,
                       int64_t end, std::vector<Samples<T>>& batch) {
  for (int64_t query = first; query < end; ++query)
    batch[query - first].read(in, query, in.sizes.place(image, query, head));
}

template <typename T, typename V>
void forward(const Inputs<T, V>& in, V* out, int threads) {
  const Sizes& n = in.sizes;
  const int64_t pieces = (n.queries + kPiece - 1) / kPiece;
#pragma omp parallel num_threads(threads)
  {
    std::vector<Samples<T>> batch(kBatch, Samples<T>(in));
    HeadMap<T> map(n);
    int64_t owner = -1;  // the head and image that `map` holds
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < n.batch * n.heads * pieces; ++piece) {
      const int64_t image = piece / pieces / n.heads, head = piece / pieces % n.heads;
      if (owner != piece / pieces) map.read(n, in.value, image, head);
      owner = piece / pieces;
      const int64_t first = piece % pieces * kPiece, end = std::min(first + kPiece, n.queries);
      for (int64_t start = first; start < end; start += kBatch) {
        const int64_t stop = std::min(start + kBatch, end);
        read_batch(in, image, head, start, stop, batch);
        for (int64_t query = start; query < stop; ++query)
          sum_samples(map, batch[query - start], n.head_dim,
                      out + n.place(image, query, head) * n.head_dim);
      }
    }
  }
}

// Computes the gradients of a query's samples from the gradient of their sum.
template <typename T>
class SampleGradients {
 public:
  explicit SampleGradients(int64_t count)
      : count_(count),
        padded_(whole_groups(count)),
        products_(4 * padded_),
        weight_(padded_),
        x_(padded_),
        y_(padded_) {}

  // Adds to `grad_map` and writes the gradients of the query's offsets and logits.
  void compute(const HeadMap<T>& map, HeadMap<T>& grad_map, const Samples<T>& samples,
               const T* grad, int64_t dim, T* grad_offsets, T* grad_logits) {
    int64_t at = 0;
    for (; at + kBlocks * kLanes <= dim; at += kBlocks * kLanes)
      spread<kBlocks>(map, grad_map, samples, grad, at);
    for (; at + kBlocks / 2 * kLanes <= dim; at += kBlocks / 2 * kLanes)
      spread<kBlocks / 2>(map, grad_map, samples, grad, at);
    for (; at + kLanes <= dim; at += kLanes) spread<1>(map, grad_map, samples, grad, at);
    if (at < dim) spread_rest(map, grad_map, samples, grad, at, dim);
    const T mean = differentiate(samples);
    for (int64_t i = 0; i < count_; ++i) {
      grad_offsets[2 * i] = x_[i];
      grad_offsets[2 * i + 1] = y_[i];
      grad_logits[i] = samples.weight[i] * (weight_[i] - mean);
    }
  }

 private:
  static constexpr int kLanes = Vector<T>::lanes;
  struct Product {
    Lanes<T> lanes;
  };
  int64_t count_, padded_;
  // Products of the gradient and each pixel, by corner and sample, before their lanes are summed.
  std::vector<Product> products_;
  std::vector<T> weight_, x_, y_;

  // Add the gradient's channels from `at` on to the four pixels of every sample.
  template <int BLOCKS>
  void spread(const HeadMap<T>& map, HeadMap<T>& grad_map, const Samples<T>& samples,
              const T* grad, int64_t at) {
    Lanes<T> part[BLOCKS];
    for (int k = 0; k < BLOCKS; ++k) part[k] = load(grad + at + k * kLanes);
    // Local copies: for all the compiler knows, the stores below could change the members.
    const int64_t count = count_, padded = padded_;
    Product* products = products_.data();
    for (int64_t i = 0; i < count; ++i) {
      const T weight = samples.weight[i];
      for (int corner = 0; corner < 4; ++corner) {
        const T share = samples.share[corner][i] * weight;
        const T* from = map.row(samples.token[corner][i]) + at;
        T* to = grad_map.row(samples.token[corner][i]) + at;
        Lanes<T> product = part[0] * load(from);
        for (int k = 1; k < BLOCKS; ++k) product += part[k] * load(from + k * kLanes);
        for (int k = 0; k < BLOCKS; ++k)
          store(load(to + k * kLanes) + share * part[k], to + k * kLanes);
        Lanes<T>& sum = products[corner * padded + i].lanes;
        sum = at == 0 ? product : sum + product;
      }
    }
  }

  void spread_rest(const HeadMap<T>& map, HeadMap<T>& grad_map, const Samples<T>& samples,
                   const T* grad, int64_t at, int64_t dim) {
    for (int64_t i = 0; i < count_; ++i)
      for (int corner = 0; corner < 4; ++corner) {
        const T share = samples.share[corner][i] * samples.weight[i];
        const T* from = map.row(samples.token[corner][i]);
        T* to = grad_map.row(samples.token[corner][i]);
        Lanes<T>& sum = products_[corner * padded_ + i].lanes;
        if (at == 0) sum = Lanes<T>{};
        for (int64_t d = at; d < dim; ++d) {
          sum[0] += grad[d] * from[d];
          to[d] += share * grad[d];
        }
      }
  }

  // Compute the gradients of the weights and of the locations in pixels. Returns the weighted mean
  // of the former, which the gradient of the softmax needs.
  T differentiate(const Samples<T>& samples) {
    Lanes<T> mean = {};
    for (int64_t first = 0; first < padded_; first += kLanes) {
      Lanes<T> dot[4];
      for (int corner = 0; corner < 4; ++corner) {
        const Product* from = &products_[corner * padded_ + first];
        Lanes<T> products[kLanes];
        for (int i = 0; i < kLanes; ++i) products[i] = from[i].lanes;
        add_up<kLanes>(products);
        dot[corner] = products[0];
      }
      const Lanes<T> weight = load(&samples.weight[first]);
      const Lanes<T> a = load(&samples.right[first]), b = load(&samples.below[first]);
      const Lanes<T> grad =
          (1 - b) * ((1 - a) * dot[0] + a * dot[1]) + b * ((1 - a) * dot[2] + a * dot[3]);
      store(grad, &weight_[first]);
      store(weight * ((1 - b) * (dot[1] - dot[0]) + b * (dot[3] - dot[2])), &x_[first]);
      store(weight * ((1 - a) * (dot[2] - dot[0]) + a * (dot[3] - dot[1])), &y_[first]);
      mean += weight * grad;
    }
    T total = 0;
    for (int i = 0; i < kLanes; ++i) total += mean[i];
    return total;
  }
};

// One thread computes one head of one image. No two threads add to the same token, so that the sums
// need no atomics and are the same in every run.
template <typename T, typename V>
void backward(const Inputs<T, V>& in, const T* grad_out, T* grad_value, T* grad_offsets,
              T* grad_logits, int threads) {
  const Sizes& n = in.sizes;
  const int64_t count = n.samples();
#pragma omp parallel num_threads(threads)
  {
    std::vector<Samples<T>> batch(kBatch, Samples<T>(in));
    HeadMap<T> map(n), grad_map(n);
    SampleGradients<T> gradients(count);
#pragma omp for schedule(dynamic)
    for (int64_t owner = 0; owner < n.batch * n.heads; ++owner) {
      const int64_t image = owner / n.heads, head = owner % n.heads;
      map.read(n, in.value, image, head);
      grad_map.clear();
      for (int64_t start = 0; start < n.queries; start += kBatch) {
        const int64_t stop = std::min(start + kBatch, n.queries);
        read_batch(in, image, head, start, stop, batch);
        for (int64_t query = start; query < stop; ++query) {
          const int64_t place = n.place(image, query, head);
          const T* grad = grad_out + place * n.head_dim;
          prefetch(grad + kBatch * n.heads * n.head_dim, n.head_dim);
          gradients.compute(map, grad_map, batch[query - start], grad, n.head_dim,
                            grad_offsets + place * count * 2, grad_logits + place * count);
        }
      }
      grad_map.write(n, grad_value, image, head);
    }
  }
}

template <typename T, typename V>
Inputs<T, V> inputs_from(const int64_t* sizes, const int64_t* shapes, const void* value,
                         const void* reference, const void* offsets, const void* logits) {
  const Sizes n{sizes[0], sizes[1], sizes[2], sizes[3], sizes[4], sizes[5], sizes[6]};
  return {n,
          shapes,
          static_cast<const V*>(value),
          static_cast<const T*>(reference),
          static_cast<const T*>(offsets),
          static_cast<const T*>(logits)};
}

}  // namespace

#define DEFINE(NAME, T, V)                                                                        \
  extern "C" void forward_##NAME(const int64_t* sizes, const int64_t* shapes, const void* value,  \
                                 const void* reference, const void* offsets, const void* logits,  \
                                 void* out, int threads) {                                        \
    forward(inputs_from<T, V>(sizes, shapes, value, reference, offsets, logits),                  \
            static_cast<V*>(out), threads);                                                       \
  }                                                                                               \
  extern "C" void backward_##NAME(const int64_t* sizes, const int64_t* shapes, const void* value, \
                                  const void* reference, const void* offsets, const void* logits, \
                                  const void* grad_out, void* grad_value, void* grad_offsets,     \
                                  void* grad_logits, int threads) {                               \
    backward(inputs_from<T, V>(sizes, shapes, value, reference, offsets, logits),                 \
             static_cast<const T*>(grad_out), static_cast<T*>(grad_value),                        \
             static_cast<T*>(grad_offsets), static_cast<T*>(grad_logits), threads);               \
  }

DEFINE(float32, float, float)
DEFINE(float64, double, double)
DEFINE(bfloat16, float, BFloat16)
