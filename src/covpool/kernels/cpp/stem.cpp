// The first convolution of a network for large images: 7x7, stride 2, padding 3, few input channels. Vectors run along
// the output's rows; rows of x are kept apart by even and odd columns, so that every tap reads a contiguous piece.
#include "common.h"

namespace {

constexpr int kTaps = 7, kPad = 3;
constexpr int kOut = 8;        // forward: output channels at a time
constexpr int kVectors = 3;    // forward: vectors of an output row at a time; 8 x 3 sums stay in registers
constexpr int kGradients = 4;  // weight gradient: output channels at a time, with 4 even or 3 odd columns of the kernel
constexpr int64_t kRows = 4;   // output rows of a group

struct Stem {
  int64_t n, c, h, w, o, rows, columns, padded;  // rows, columns: of the output; padded: floats of half a row of x
  Stem(const int64_t *x, const int64_t *y)
      : n(x[0]), c(x[1]), h(x[2]), w(x[3]), o(y[1]), rows(y[2]), columns(y[3]),
        padded((columns + L - 1) / L * L + kTaps / 2 + L) {}
  int64_t groups_of_image() const { return (rows + kRows - 1) / kRows; }
  int64_t groups() const { return n * groups_of_image(); }
  int64_t input_rows() const { return 2 * (kRows - 1) + kTaps; }
  int64_t halves() const { return c * input_rows() * 2 * padded; }  // floats of the rows of x of a group
  int64_t row_floats() const { return (columns + L - 1) / L * L; }
};

struct StemGroup {
  int64_t image, first, count;  // output rows
  StemGroup(const Stem &s, int64_t i)
      : image(i / s.groups_of_image()), first(i % s.groups_of_image() * kRows),
        count(std::min<int64_t>(kRows, s.rows - first)) {}
};

Scratch g_stem_weights;
std::vector<Scratch> g_stem_rows(256), g_stem_sums(256);  // by thread

// x's rows for a group -> (c, input row, even or odd, column / 2), padded by zeros on all sides.
void split_rows(const Stem &s, const StemGroup &g, const float *x, float *out) {
  for (int64_t c = 0; c < s.c; ++c)
    for (int64_t r = 0; r < s.input_rows(); ++r, out += 2 * s.padded) {
      std::memset(out, 0, 2 * s.padded * sizeof(float));
      const int64_t row = 2 * g.first - kPad + r;
      if (row < 0 || row >= s.h) continue;
      const float *in = x + ((g.image * s.c + c) * s.h + row) * s.w;
      float *halves[2] = {out, out + s.padded};
      // Column j of x is column j + kPad of the padded row; what lies beyond the last tap is not needed.
      const int64_t end = std::min(s.w, 2 * s.padded - kPad);
      for (int64_t j = 0; j < end; ++j) halves[(j + kPad) & 1][(j + kPad) >> 1] = in[j];
    }
}

// Row of x under tap (c, ky) of output row r of a group; column kx of it is at half_row[kx % 2] + kx / 2.
inline const float *tap_row(const Stem &s, const float *halves, int64_t c, int64_t r, int64_t ky) {
  return halves + (c * s.input_rows() + 2 * r + ky) * 2 * s.padded;
}

template <int V>
void stem_row(const Stem &s, const float *halves, int64_t r, int64_t column, const float *weights,
              const float *bias, float *y) {
  Vec sum[kOut][V];
  for (int o = 0; o < kOut; ++o)
    for (int v = 0; v < V; ++v) sum[o][v] = Vec{} + (bias ? bias[o] : 0.0f);
  for (int64_t c = 0; c < s.c; ++c)
    for (int ky = 0; ky < kTaps; ++ky) {
      const float *row = tap_row(s, halves, c, r, ky) + column;
      for (int kx = 0; kx < kTaps; ++kx, weights += kOut) {
        const float *p = row + (kx & 1) * s.padded + kx / 2;
        Vec in[V];
#pragma GCC unroll 8
        for (int v = 0; v < V; ++v) in[v] = load(p + v * L);
#pragma GCC unroll 8
        for (int o = 0; o < kOut; ++o) {
          const float weight = weights[o];
#pragma GCC unroll 8
          for (int v = 0; v < V; ++v) sum[o][v] += in[v] * weight;
        }
      }
    }
  for (int o = 0; o < kOut; ++o)
    for (int v = 0; v < V; ++v) {
      float *to = y + o * s.rows * s.columns + v * L;
      const int64_t left = s.columns - column - v * L;
      if (left >= L) {
        store(to, sum[o][v]);
      } else {
        for (int64_t i = 0; i < left; ++i) to[i] = sum[o][v][i];
      }
    }
}

template <int V>
void stem_row_of(int64_t vectors, const Stem &s, const float *halves, int64_t r, int64_t column, const float *weights,
                 const float *bias, float *y) {
  if constexpr (V > 0) {
    if (vectors == V) return stem_row<V>(s, halves, r, column, weights, bias, y);
    stem_row_of<V - 1>(vectors, s, halves, r, column, weights, bias, y);
  }
}

void stem_forward_pass(const Stem &s, const float *x, const float *w, const float *bias, float *y) {
  const int64_t taps = s.c * kTaps * kTaps;
  float *packed = g_stem_weights.get(s.o * taps);  // (o / 8, taps, 8)
  for (int64_t o = 0; o < s.o; ++o)
    for (int64_t k = 0; k < taps; ++k) packed[(o / kOut * taps + k) * kOut + o % kOut] = w[o * taps + k];
  parallel(s.groups(), [&](int64_t i, int thread) {
    const StemGroup g(s, i);
    float *halves = g_stem_rows[thread].get(s.halves());
    split_rows(s, g, x, halves);
    for (int64_t r = 0; r < g.count; ++r)
      for (int64_t o = 0; o < s.o; o += kOut)
        for (int64_t column = 0; column < s.columns; column += kVectors * L) {
          const int64_t vectors = std::min<int64_t>(kVectors, (s.columns - column + L - 1) / L);
          stem_row_of<kVectors>(vectors, s, halves, r, column, packed + o * taps, bias ? bias + o : nullptr,
                                y + ((g.image * s.o + o) * s.rows + g.first + r) * s.columns + column);
        }
  });
}

// sum (4 channels, N columns of the kernel, 16) += rows of dy times every second column of rows of x.
template <int N>
void stem_products(const Stem &s, const float *x, const float *dy, int64_t count, float *sum_at) {
  Vec sum[kGradients][N];
#pragma GCC unroll 32
  for (int k = 0; k < kGradients * N; ++k) sum[k / N][k % N] = load(sum_at + k * L);
  for (int64_t r = 0; r < count; ++r, x += 4 * s.padded, dy += s.row_floats())
    for (int64_t column = 0; column < s.columns; column += L) {
      Vec in[N];
#pragma GCC unroll 8
      for (int t = 0; t < N; ++t) in[t] = in_register(load(x + t + column));
#pragma GCC unroll 8
      for (int k = 0; k < kGradients; ++k) {
        const Vec out = in_register(load(dy + k * kRows * s.row_floats() + column));
#pragma GCC unroll 8
        for (int t = 0; t < N; ++t) sum[k][t] += in[t] * out;
      }
    }
#pragma GCC unroll 32
  for (int k = 0; k < kGradients * N; ++k) store(sum_at + k * L, sum[k / N][k % N]);
}

void stem_weight_pass(const Stem &s, const float *x, const float *dy, float *dw) {
  const int64_t taps = s.c * kTaps * kTaps, threads = g_threads, size = s.o * taps * L;
  constexpr int kEven = (kTaps + 1) / 2, kOdd = kTaps / 2;
  std::vector<float *> sums(threads);
  // As in the other weight gradient: the order of the sum is the same in every run.
  parallel(threads, [&](int64_t thread, int) {
    float *all = sums[thread] = g_stem_sums[thread].get(size);  // (o / 4, c, ky, even and odd kx, 16 not yet summed)
    std::memset(all, 0, size * sizeof(float));
    float *halves = g_stem_rows[thread].get(s.halves() + s.o * kRows * s.row_floats()), *rows = halves + s.halves();
    for (int64_t i = thread; i < s.groups(); i += threads) {
      const StemGroup g(s, i);
      split_rows(s, g, x, halves);
      for (int64_t o = 0; o < s.o; ++o)  // rows of dy, filled up with zeros
        for (int64_t r = 0; r < g.count; ++r) {
          float *to = rows + (o * kRows + r) * s.row_floats();
          const float *from = dy + ((g.image * s.o + o) * s.rows + g.first + r) * s.columns;
          std::memcpy(to, from, s.columns * sizeof(float));
          std::fill(to + s.columns, to + s.row_floats(), 0.0f);
        }
      float *sum = all;
      for (int64_t o = 0; o < s.o; o += kGradients)
        for (int64_t c = 0; c < s.c; ++c)
          for (int ky = 0; ky < kTaps; ++ky) {
            const float *row = tap_row(s, halves, c, 0, ky), *d = rows + o * kRows * s.row_floats();
            stem_products<kEven>(s, row, d, g.count, sum);
            sum += kGradients * kEven * L;
            stem_products<kOdd>(s, row + s.padded, d, g.count, sum);
            sum += kGradients * kOdd * L;
          }
    }
  });
  for (int64_t o = 0; o < s.o; ++o)
    for (int64_t k = 0; k < taps; ++k) {
      const int64_t block = o / kGradients * s.c * kTaps + k / kTaps, channel = o % kGradients, kx = k % kTaps;
      const int64_t within = kx % 2 ? kGradients * kEven + channel * kOdd + kx / 2 : channel * kEven + kx / 2;
      float total = 0;
      for (const float *sum : sums)
        for (int i = 0; i < L; ++i) total += sum[(block * kGradients * kTaps + within) * L + i];
      dw[o * taps + k] = total;
    }
}

}  // namespace

// x (n, c, h, w), weights (o, c, 7, 7) -> y (n, o, rows, columns).
KERNEL(stem_forward) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  stem_forward_pass(Stem(shapes[0], shapes[count - 1]), p[0], p[1], count == 4 ? p[2] : nullptr, p[count - 1]);
  return 0;
}

// x (n, c, h, w), dy (n, o, rows, columns) -> dw (o, c, 7, 7).
KERNEL(stem_weight_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  stem_weight_pass(Stem(shapes[0], shapes[1]), p[0], p[1], p[2]);
  return 0;
}
