// Depthwise 3x3 convolutions of padding 1 and stride 1 or 2, and both gradients in one pass. Vectors run through a map
// without regard to its rows, so small maps fill them, too: masks stand for the padding at the left and at the right,
// and zeros around a copy of the map, which stays in a core's cache, for the padding above and below.
#include "common.h"

namespace {

constexpr int kTaps = 9;
constexpr int64_t kBlock = 4096, kMostMaps = 32;  // floats that a thread takes at a time, and maps of them
typedef int UnalignedIndex __attribute__((vector_size(64), aligned(4)));

std::vector<Scratch> g_maps(256), g_kernel_sums(256);  // by thread

inline Vec keep(Vec v, const int *mask) {
  return reinterpret_cast<Vec>(reinterpret_cast<Index>(v) & *reinterpret_cast<const UnalignedIndex *>(mask));
}

inline Vec load_some(const float *p, int64_t count) {
  alignas(64) float v[L] = {};
  std::memcpy(v, p, count * sizeof(float));
  return load(v);
}

inline void store_some(float *p, Vec v, int64_t count) {
  for (int64_t i = 0; i < count; ++i) p[i] = v[i];
}

// Of the next map, while this one is computed: small maps end before the processor has seen where they lie.
inline void prefetch(const float *p, int64_t count) {
  for (int64_t i = 0; i < count; i += L) __builtin_prefetch(p + i);
}

struct Pair {  // 2 L neighbours in a row, and the same by even and odd columns
  Vec first, second;
  Pair split() const {
    const Index even = {0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30}, odd = even + 1;
    return {__builtin_shuffle(first, second, even), __builtin_shuffle(first, second, odd)};
  }
  Pair joined() const {
    const Index low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23}, high = low + 8;
    return {__builtin_shuffle(first, second, low), __builtin_shuffle(first, second, high)};
  }
};

// Copies of a kernel and of sums: what is written to a map could otherwise have changed them.
struct Taps {
  Vec at[kTaps];
  explicit Taps(const float *w) {
#pragma GCC unroll 9
    for (int k = 0; k < kTaps; ++k) at[k] = Vec{} + w[k];
  }
  Taps() : at{} {}
  const Vec &operator[](int k) const { return at[k]; }
  Vec &operator[](int k) { return at[k]; }
  void add_to(float *sums) const {
#pragma GCC unroll 9
    for (int k = 0; k < kTaps; ++k) store(sums + k * L, load(sums + k * L) + at[k]);
  }
};

struct Maps {
  int64_t n, c, h, w, rows, columns;  // rows, columns: of the output
  // From column j of an output's row on, -1 where a place has a left neighbour, has a right one, and where columns 2 j
  // and 2 j + 1 of x are there.
  std::vector<int> left, right, even, odd;

  Maps(const int64_t *x, const int64_t *y) : n(x[0]), c(x[1]), h(x[2]), w(x[3]), rows(y[2]), columns(y[3]) {
    for (int64_t j = 0; j < columns + L; ++j) {
      left.push_back(j % columns ? -1 : 0);
      right.push_back((j + 1) % columns ? -1 : 0);
      even.push_back(2 * j < w ? -1 : 0);
      odd.push_back(2 * j + 1 < w ? -1 : 0);
    }
  }
  bool is_strided() const { return rows != h || columns != w; }  // a single place is the same with either stride
  int64_t in() const { return h * w; }
  int64_t out() const { return rows * columns; }
  int64_t border() const { return (columns + 1 + L - 1) / L * L + L; }
  int64_t maps_of_block() const { return std::max<int64_t>(1, std::min(kBlock / in(), kMostMaps)); }
};

// A copy of `count` floats between two borders of zeros.
const float *bordered(const float *x, int64_t count, int64_t border, float *to) {
  std::memset(to, 0, border * sizeof(float));
  std::memcpy(to + border, x, count * sizeof(float));
  std::memset(to + border + count, 0, border * sizeof(float));
  return to + border;
}

// x by even and odd rows and columns, four maps of the output's size, which begin `apart` floats from each other.
void split(const Maps &s, const float *x, float *to, int64_t apart) {
  for (int64_t r = 0; r < 2 * s.rows; ++r) {
    float *even = to + r % 2 * 2 * apart + r / 2 * s.columns, *odd = even + apart;
    if (r >= s.h) {
      std::fill_n(even, s.columns, 0.0f);
      std::fill_n(odd, s.columns, 0.0f);
      continue;
    }
    const float *row = x + r * s.w;
    int64_t j = 0;
    for (; j < s.columns && r * s.w + 2 * (j + L) <= s.in(); j += L) {  // what is written too far the next row mends
      const Pair halves = Pair{load(row + 2 * j), load(row + 2 * j + L)}.split();
      store(even + j, halves.first), store(odd + j, halves.second);
    }
    for (; j < s.columns; ++j) even[j] = row[2 * j], odd[j] = 2 * j + 1 < s.w ? row[2 * j + 1] : 0.0f;
    if (s.w % 2) odd[s.columns - 1] = 0;
  }
}

// One map of the output. For each row of the kernel, what its middle column and its right one meet at place 0; its left
// column meets what lies before that, by one place of x.
template <int kStride>
void convolve(const Maps &s, const float *const middle[3], const float *const right[3], const float *kernel,
              float bias, float *y) {
  const Taps w(kernel);
  constexpr int kBack = kStride == 1 ? 2 : 1;
  const int64_t step = L % s.columns;
  for (int64_t p = 0, column = 0; p < s.out(); p += L) {
    Vec sums[3] = {{}, Vec{} + bias, {}};
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      sums[0] += load(right[k] + p - kBack) * w[3 * k];
      sums[1] += load(middle[k] + p) * w[3 * k + 1];
      sums[2] += load(right[k] + p) * w[3 * k + 2];
    }
    if (kStride == 1) sums[2] = keep(sums[2], &s.right[column]);
    const Vec sum = sums[1] + keep(sums[0], &s.left[column]) + sums[2];
    if (p + L <= s.out()) {
      store(y + p, sum);
    } else {
      store_some(y + p, sum, s.out() - p);
    }
    column += step;
    if (column >= s.columns) column -= s.columns;
  }
}

void forward(const Maps &s, const float *x, const float *w, const float *bias, float *y) {
  const int64_t maps = s.n * s.c, block = s.maps_of_block(), border = s.border(), apart = border + s.out();
  share((maps + block - 1) / block, maps * s.in(), [&](int64_t b, int thread) {
    float *scratch = g_maps[thread].get(4 * apart + border);
    if (s.is_strided()) std::memset(scratch, 0, (4 * apart + border) * sizeof(float));
    for (int64_t i = b * block; i < std::min((b + 1) * block, maps); ++i) {
      const float *from = x + i * s.in(), *kernel = w + i % s.c * kTaps;
      float *to = y + i * s.out();
      const float b = bias ? bias[i % s.c] : 0.0f;
      if (i + 1 < maps) prefetch(from + s.in(), s.in()), prefetch(to + s.out(), s.out());
      if (s.is_strided()) {
        float *even = scratch + border, *odd = even + 2 * apart;  // rows
        split(s, from, even, apart);
        const float *middle[3] = {odd - s.columns, even, odd};
        const float *right[3] = {middle[0] + apart, middle[1] + apart, middle[2] + apart};
        convolve<2>(s, middle, right, kernel, b, to);
      } else {
        const float *map = bordered(from, s.in(), border, scratch);
        const float *middle[3] = {map - s.w, map, map + s.w}, *right[3] = {map - s.w + 1, map + 1, map + s.w + 1};
        convolve<1>(s, middle, right, kernel, b, to);
      }
    }
  });
}

// One map: dx from dy, and the kernel's gradient added to sums by lanes. Both meet the same places of dy.
void gradients(const Maps &s, const float *x, const float *dy, const float *kernel, float *dx, float *terms) {
  const Taps w(kernel);
  Taps dw;
  const int64_t step = L % s.columns;
  for (int64_t p = 0, column = 0; p < s.in(); p += L) {
    const int64_t left = s.in() - p;
    const Vec in = left >= L ? load(x + p) : load_some(x + p, left);
    const Vec in_left = keep(in, &s.left[column]), in_right = keep(in, &s.right[column]);
    Vec sums[3] = {};
#pragma GCC unroll 3
    for (int k = 0; k < 3; ++k) {
      const float *row = dy + p - (k - 1) * s.w;
      const Vec after = in_register(load(row + 1)), at = in_register(load(row)), before = in_register(load(row - 1));
      sums[0] += after * w[3 * k], sums[1] += at * w[3 * k + 1], sums[2] += before * w[3 * k + 2];
      dw[3 * k] += after * in_right, dw[3 * k + 1] += at * in, dw[3 * k + 2] += before * in_left;
    }
    const Vec sum = sums[1] + keep(sums[0], &s.right[column]) + keep(sums[2], &s.left[column]);
    if (left >= L) {
      store(dx + p, sum);
    } else {
      store_some(dx + p, sum, left);
    }
    column += step;
    if (column >= s.columns) column -= s.columns;
  }
  dw.add_to(terms);
}

// The same with stride 2 for the row of x under the row of dy at `d` (kOdd: for the one below it), which has `rest`
// floats to the end of its map; what is written beyond the row the next one mends.
template <bool kOdd>
inline __attribute__((always_inline)) void strided_row(const Maps &s, const float *x, const float *d, const Taps &w,
                                                       int64_t rest, float *dx, Taps &dw) {
  constexpr int kAt = kOdd ? 6 : 3;  // row of the kernel that meets this row of dy; row 0 meets the next
  for (int64_t j = 0; j < s.columns; j += L) {
    const bool whole = rest - 2 * j >= 2 * L;
    Pair in;
    if (whole) {
      in = {load(x + 2 * j), load(x + 2 * j + L)};
    } else {
      const int64_t left = s.w - 2 * j;
      in = {load_some(x + 2 * j, std::min<int64_t>(left, L)), left > L ? load_some(x + 2 * j + L, left - L) : Vec{}};
    }
    in = in.split();
    in.first = keep(in.first, &s.even[j]), in.second = keep(in.second, &s.odd[j]);
    const Vec at = load(d + j), after = keep(load(d + j + 1), &s.right[j]);
    Pair out = {at * w[kAt + 1], at * w[kAt + 2] + after * w[kAt]};
    dw[kAt] += after * in.second, dw[kAt + 1] += at * in.first, dw[kAt + 2] += at * in.second;
    if (kOdd) {
      const Vec below = load(d + s.columns + j), below_after = keep(load(d + s.columns + j + 1), &s.right[j]);
      out.first += below * w[1], out.second += below * w[2] + below_after * w[0];
      dw[0] += below_after * in.second, dw[1] += below * in.first, dw[2] += below * in.second;
    }
    out = out.joined();
    if (whole) {
      store(dx + 2 * j, out.first), store(dx + 2 * j + L, out.second);
    } else {
      const int64_t left = s.w - 2 * j;
      store_some(dx + 2 * j, out.first, std::min<int64_t>(left, L));
      store_some(dx + 2 * j + L, out.second, left - L);
    }
  }
}

void strided_gradients(const Maps &s, const float *x, const float *dy, const float *kernel, float *dx, float *terms) {
  const Taps w(kernel);
  Taps dw;
  for (int64_t r = 0, at = 0; r < s.h; ++r, at += s.w) {
    const float *d = dy + r / 2 * s.columns;
    if (r % 2) {
      strided_row<true>(s, x + at, d, w, s.in() - at, dx + at, dw);
    } else {
      strided_row<false>(s, x + at, d, w, s.in() - at, dx + at, dw);
    }
  }
  dw.add_to(terms);
}

// A thread takes some channels of all images: the order of the sums does not depend on the threads.
void backward(const Maps &s, const float *x, const float *w, const float *dy, float *dx, float *dw) {
  const int64_t block = s.maps_of_block(), border = s.border();
  share((s.c + block - 1) / block, s.n * s.c * s.in(), [&](int64_t b, int thread) {
    const int64_t begin = b * block, end = std::min(begin + block, s.c);
    float *scratch = g_maps[thread].get(s.out() + 2 * border);
    float *sums = g_kernel_sums[thread].get(block * kTaps * L);
    std::memset(sums, 0, block * kTaps * L * sizeof(float));
    for (int64_t n = 0; n < s.n; ++n)
      for (int64_t c = begin; c < end; ++c) {
        const int64_t i = n * s.c + c;
        const float *from = x + i * s.in(), *back = dy + i * s.out();
        float *to = dx + i * s.in();
        if (c + 1 < end)
          prefetch(from + s.in(), s.in()), prefetch(back + s.out(), s.out()), prefetch(to + s.in(), s.in());
        const float *d = bordered(back, s.out(), border, scratch);
        (s.is_strided() ? strided_gradients : gradients)(s, from, d, w + c * kTaps, to, sums + (c - begin) * kTaps * L);
      }
    for (int64_t k = 0; k < (end - begin) * kTaps; ++k) {
      double total = 0;
      for (int i = 0; i < L; ++i) total += sums[k * L + i];
      dw[begin * kTaps + k] = static_cast<float>(total);
    }
  });
}

}  // namespace

// x (n, c, h, w), weights (c, 1, 3, 3) -> y (n, c, rows, columns).
KERNEL(depthwise_forward) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  forward(Maps(shapes[0], shapes[count - 1]), p[0], p[1], count == 4 ? p[2] : nullptr, p[count - 1]);
  return 0;
}

// The same by another name: MindSpore keeps the shapes of results by operator and shapes of inputs.
KERNEL(depthwise_strided_forward) { return depthwise_forward_kernel(count, p, shapes, types); }

// x (n, c, h, w), weights (c, 1, 3, 3), dy (n, c, rows, columns) -> dx, dweights.
KERNEL(depthwise_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  backward(Maps(shapes[0], shapes[2]), p[0], p[1], p[2], p[3], p[4]);
  return 0;
}
