// Multi-scale deformable attention on the CPU, forward and backward; __init__.py has the contract.
//
// Compiled on first use and called through a C interface, so that it needs no header of PyTorch
// and builds in seconds. T is the type computed in (float or double), V the type value is kept in.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
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
  // To the nearest, ties to even; a NaN stays one because its quiet bit is set.
  const bool is_nan = number != number;
  out->bits = is_nan ? static_cast<uint16_t>((wide >> 16) | 0x40)
                     : static_cast<uint16_t>((wide + 0x7FFF + ((wide >> 16) & 1)) >> 16);
}

// 64 bytes at once: GCC and Clang split them where the machine's registers are shorter.
constexpr int kBytes = 64;
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
// Half onto half, until one number is left.
template <typename T, int BYTES = kBytes, typename V>
inline T total_of(const V& lanes) {
  if constexpr (BYTES == sizeof(T)) {
    return lanes[0];
  } else {
    typedef T Half __attribute__((vector_size(BYTES / 2)));
    Half halves[2];
    std::memcpy(halves, &lanes, BYTES);
    return total_of<T, BYTES / 2>(halves[0] + halves[1]);
  }
}

struct Sizes {
  int64_t batch, tokens, queries, heads, levels, points, head_dim;
  int64_t samples() const { return levels * points; }
};

// e^x for x <= 0 within two units in the last place, written so that the compiler can do many at
// once (the library's is called one by one): e^x = 2^n e^r with |r| <= ln(2) / 2.
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

// Lists of samples are padded to whole groups: a loop over a group has no rest.
constexpr int64_t kGroup = 16;

// Of the first `count` of a padded list; what follows comes out as good as zero.
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

// One head of one picture, its tokens side by side: in `value` they lie a whole query apart, and
// such a stride, a power of two, leaves most of the cache unused. Row S is zero: the pixel that
// stands for all outside the map.
template <typename T>
class HeadMap {
 public:
  explicit HeadMap(const Sizes& sizes)
      : dim_(sizes.head_dim), memory_((sizes.tokens + 1) * sizes.head_dim + Vector<T>::lanes) {
    // A row that begins inside a cache line costs one line more to read.
    const auto beyond = reinterpret_cast<uintptr_t>(memory_.data()) % kBytes;
    rows_ = memory_.data() + (kBytes - beyond) % kBytes / sizeof(T);
  }

  T* row(int64_t token) const { return rows_ + token * dim_; }

  void clear() { std::fill(memory_.begin(), memory_.end(), T(0)); }

  template <typename V>
  void read(const Sizes& n, const V* value, int64_t picture, int64_t head) {
    for (int64_t token = 0; token < n.tokens; ++token) {
      const V* from = value + ((picture * n.tokens + token) * n.heads + head) * dim_;
      T* to = row(token);
      for (int64_t d = 0; d < dim_; ++d) to[d] = T(from[d]);
    }
  }

  void write(const Sizes& n, T* value, int64_t picture, int64_t head) {
    for (int64_t token = 0; token < n.tokens; ++token)
      std::copy(row(token), row(token) + dim_,
                value + ((picture * n.tokens + token) * n.heads + head) * dim_);
  }

 private:
  int64_t dim_;
  std::vector<T> memory_;
  T* rows_;
};

// The samples of one query and one head. Lists run over the samples, so that one loop treats
// many of them at once.
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
        padded_((count + kGroup - 1) / kGroup * kGroup),
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
    // The same head of the next queries, before it is waited for.
    __builtin_prefetch(logits + kAhead * in.sizes.heads * count);
    for (int line = 0; line < 2; ++line)
      __builtin_prefetch(offsets + kAhead * in.sizes.heads * count * 2 + line * kBytes / sizeof(T));
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
  static constexpr int64_t kAhead = 4;
  int64_t padded_;
  int32_t outside_;
  // Groups are read whole, and so beyond the samples; behind the last there is nothing to read.
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
      // One pixel outside is as far as far outside; what a whole number cannot hold, and a NaN,
      // is brought there.
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

// Channels `at` and following of a sum over the samples, kept in registers.
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
  for (; at + 2 * lanes <= dim; at += 2 * lanes) sum_block<2>(map, samples, at, out);
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

// The work is cut into pieces of queries of one head of one picture.
constexpr int64_t kPiece = 256;

template <typename T, typename V>
void forward(const Inputs<T, V>& in, V* out, int threads) {
  const Sizes& n = in.sizes;
  const int64_t pieces = (n.queries + kPiece - 1) / kPiece;
#pragma omp parallel num_threads(threads)
  {
    Samples<T> samples(in);
    HeadMap<T> map(n);
    int64_t owner = -1;  // the head and picture that `map` holds
#pragma omp for schedule(static)
    for (int64_t piece = 0; piece < n.batch * n.heads * pieces; ++piece) {
      const int64_t picture = piece / pieces / n.heads, head = piece / pieces % n.heads;
      if (owner != piece / pieces) map.read(n, in.value, picture, head);
      owner = piece / pieces;
      const int64_t first = piece % pieces * kPiece, end = std::min(first + kPiece, n.queries);
      for (int64_t query = first; query < end; ++query) {
        const int64_t place = (picture * n.queries + query) * n.heads + head;
        samples.read(in, query, place);
        sum_samples(map, samples, n.head_dim, out + place * n.head_dim);
      }
    }
  }
}

// The gradient of one query's sum, spread over the four pixels of sample i; dot becomes its inner
// product with each of them.
template <typename T>
inline void spread(HeadMap<T>& map, HeadMap<T>& grad_map, const Samples<T>& samples, int64_t i,
                   const T* grad, int64_t dim, T* dot) {
  constexpr int lanes = Vector<T>::lanes;
  for (int corner = 0; corner < 4; ++corner) {
    const T* from = map.row(samples.token[corner][i]);
    T* to = grad_map.row(samples.token[corner][i]);
    const T share = samples.share[corner][i] * samples.weight[i];
    Lanes<T> dots = {};
    int64_t at = 0;
    for (; at + lanes <= dim; at += lanes) {
      const Lanes<T> g = load(grad + at);
      dots += g * load(from + at);
      store(load(to + at) + share * g, to + at);
    }
    dot[corner] = total_of<T>(dots);
    for (; at < dim; ++at) {
      dot[corner] += grad[at] * from[at];
      to[at] += share * grad[at];
    }
  }
}

// One thread owns one head of one picture: no two threads add to the same token, so the sums
// need no atomics and come out the same in every run.
template <typename T, typename V>
void backward(const Inputs<T, V>& in, const T* grad_out, T* grad_value, T* grad_offsets,
              T* grad_logits, int threads) {
  const Sizes& n = in.sizes;
  const int64_t count = n.samples();
#pragma omp parallel num_threads(threads)
  {
    Samples<T> samples(in);
    HeadMap<T> map(n), grad_map(n);
    std::vector<T> grad_weight(count);
#pragma omp for schedule(dynamic)
    for (int64_t owner = 0; owner < n.batch * n.heads; ++owner) {
      const int64_t picture = owner / n.heads, head = owner % n.heads;
      map.read(n, in.value, picture, head);
      grad_map.clear();
      for (int64_t query = 0; query < n.queries; ++query) {
        const int64_t place = (picture * n.queries + query) * n.heads + head;
        T* grad_offset = grad_offsets + place * count * 2;
        samples.read(in, query, place);
        T mean = 0;
        for (int64_t i = 0; i < count; ++i) {
          T dot[4];
          spread(map, grad_map, samples, i, grad_out + place * n.head_dim, n.head_dim, dot);
          const T weight = samples.weight[i], a = samples.right[i], b = samples.below[i];
          grad_weight[i] = (1 - b) * ((1 - a) * dot[0] + a * dot[1]) +
                           b * ((1 - a) * dot[2] + a * dot[3]);
          grad_offset[2 * i] = weight * ((1 - b) * (dot[1] - dot[0]) + b * (dot[3] - dot[2]));
          grad_offset[2 * i + 1] = weight * ((1 - a) * (dot[2] - dot[0]) + a * (dot[3] - dot[1]));
          mean += weight * grad_weight[i];
        }
        for (int64_t i = 0; i < count; ++i)
          grad_logits[place * count + i] = samples.weight[i] * (grad_weight[i] - mean);
      }
      grad_map.write(n, grad_value, picture, head);
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
