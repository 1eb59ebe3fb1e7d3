// 3x3 convolutions of stride 1 and padding 1 in float32, forward and both gradients, by Winograd's F(2x2, 3x3)
// (Lavin and Gray, CVPR 2016): 16 products for four outputs instead of 36.
#include "winograd_tiles.h"

namespace {

#ifdef __AVX512F__
constexpr int kRows = 14;  // 14 x 2 sums, 2 columns and one factor: 31 of 32 registers
#else
constexpr int kRows = 3;
#endif

Scratch g_weights;
std::vector<Scratch> g_tiles(256), g_sums(256);  // by thread

// ---------------------------------------------------------------------------------------------------------- products

// out (R, 2 panels) = or += sum over k of a(row, k) * b(k, 2 panels).
// Forward: rows are tiles and k channels, a advances by `a_panel` after 16; weight gradient: rows are channels, k tiles.
template <int R, bool kTilesAreRows>
void product(const float *a, int64_t a_panel, const float *b, int64_t b_panel, int64_t depth, float *out,
             int64_t out_panel) {
  Vec sum[R][2] = {};
  if (!kTilesAreRows)
    for (int r = 0; r < R; ++r)
      for (int j = 0; j < 2; ++j) __builtin_prefetch(out + r * L + j * out_panel, 1);
  if (kTilesAreRows) {
    for (int64_t k0 = 0; k0 < depth; k0 += L, a += a_panel)
      for (int k = 0; k < L; ++k, b += L) {
        const Vec b0 = load(b), b1 = load(b + b_panel);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) {
          const float v = a[r * L + k];
          sum[r][0] += v * b0, sum[r][1] += v * b1;
        }
      }
  } else {
    for (int64_t k = 0; k < depth; ++k, a += L, b += L) {
      const Vec b0 = load(b), b1 = load(b + b_panel);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) {
        const float v = a[r];
        sum[r][0] += v * b0, sum[r][1] += v * b1;
      }
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
    for (int j = 0; j < 2; ++j) {
      float *p = out + r * L + j * out_panel;
      store(p, kTilesAreRows ? sum[r][j] : load(p) + sum[r][j]);
    }
}

typedef void (*Product)(const float *, int64_t, const float *, int64_t, int64_t, float *, int64_t);

template <int R>
Product forward_product(int rows) {
  if constexpr (R == 0) {
    return nullptr;
  } else {
    return rows == R ? product<R, true> : forward_product<R - 1>(rows);
  }
}

// For one place: tiles (c / 16, tiles, 16) times weights (o / 16, c, 16) -> (o / 16, tiles, 16).
void multiply(const float *v, const float *u, int64_t c, int64_t o, int64_t tiles, float *m) {
  const int64_t blocks = (tiles + kRows - 1) / kRows;
  for (int64_t panel = 0; panel < o / L; panel += 2)
    for (int64_t i = 0; i < blocks; ++i) {
      const int64_t t0 = tiles * i / blocks, t1 = tiles * (i + 1) / blocks;
      forward_product<kRows>(t1 - t0)(v + t0 * L, tiles * L, u + panel * c * L, c * L, c,
                                      m + (panel * tiles + t0) * L, tiles * L);
    }
}

// For one place: dU (o / 16, c, 16) += tiles of x (c / 16, tiles, 16), transposed, times tiles of dy (o / 16, tiles, 16).
void multiply_transposed(const float *v, const float *d, int64_t c, int64_t o, int64_t tiles, float *du) {
  constexpr int R = kRows >= 8 ? 8 : 2;
  for (int64_t panel = 0; panel < o / L; panel += 2)
    for (int64_t i = 0; i < c; i += R)
      product<R, false>(v + i / L * tiles * L + i % L, 0, d + panel * tiles * L, tiles * L, tiles,
                        du + (panel * c + i) * L, c * L);
}

// ------------------------------------------------------------------------------------------------------ convolutions

// Tiles of a group: few enough to stay in a core's cache, enough that reading the weights once per group is cheap.
constexpr int64_t kManyWeights = 128 * 1024;

int64_t rows_of_group(const Shape &s, int64_t wanted, int threads) {
  const int64_t all = s.n * s.tile_rows();
  const int64_t rows = std::max<int64_t>(1, wanted / s.tile_columns());
  return std::max<int64_t>(1, std::min(rows, all / threads));
}

// y (n, o, h, w) from x (n, c, h, w); with `turned` the data gradient, where x is dy and weights are (c, o, 3, 3).
void convolve(const float *x, const Shape &in, const float *w, int64_t o, bool turned, const float *bias, float *y) {
  const int threads = g_threads;
  const Shape out{in.n, o, in.h, in.w};
  float *u = g_weights.get(16 * in.c * o);
  transform_weights(w, turned ? in.c : o, turned ? o : in.c, turned, u);
  const int64_t rows = rows_of_group(in, in.c * o < kManyWeights ? 56 : 98, threads), all = in.n * in.tile_rows();
  parallel((all + rows - 1) / rows, [&](int64_t i, int thread) {
    const Group g{i * rows, std::min((i + 1) * rows, all)};
    const int64_t tiles = (g.end - g.begin) * in.tile_columns();
    const Layout from(tiles, in.c), to(tiles, o);
    float *v = g_tiles[thread].get(from.floats() + to.floats() + 4 * in.w * L);
    float *m = v + from.floats(), *scratch = m + to.floats();
    transform_input(x, in, g, from, v, scratch);
    for (int k = 0; k < 16; ++k) multiply(v + k * from.place, u + k * in.c * o, in.c, o, tiles, m + k * to.place);
    transform_output(m, to, out, g, bias, y, scratch);
  });
}

void weight_gradient(const float *x, const Shape &in, const float *dy, int64_t o, float *dw) {
  const int threads = g_threads;
  const Shape out{in.n, o, in.h, in.w};
  const int64_t rows = rows_of_group(in, in.c * o < kManyWeights ? 56 : 196, threads), all = in.n * in.tile_rows();
  const int64_t size = in.c * o;
  std::vector<float *> sums(threads, nullptr);
  const int64_t groups = (all + rows - 1) / rows;
  // Each thread takes every so-manieth group, not the next one: the order of the sum is the same in every run.
  parallel(threads, [&](int64_t thread, int) {
    float *sum = sums[thread] = g_sums[thread].get(16 * size);
    std::memset(sum, 0, 16 * size * sizeof(float));
    for (int64_t i = thread; i < groups; i += threads) {
      const Group g{i * rows, std::min((i + 1) * rows, all)};
      const int64_t tiles = (g.end - g.begin) * in.tile_columns();
      const Layout from(tiles, in.c), to(tiles, o);
      float *v = g_tiles[thread].get(from.floats() + to.floats() + 4 * in.w * L);
      float *d = v + from.floats(), *scratch = d + to.floats();
      transform_input(x, in, g, from, v, scratch);
      transform_gradient(dy, out, g, to, d, scratch);
      for (int k = 0; k < 16; ++k)
        multiply_transposed(v + k * from.place, d + k * to.place, in.c, o, tiles, sum + k * size);
    }
  });
  parallel(o / L, [&](int64_t panel, int) {  // G^T dU G
    for (int64_t c = 0; c < in.c; ++c) {
      Vec s[4][4] = {};
      for (const float *sum : sums)
        if (sum)
          for (int k = 0; k < 16; ++k) s[k / 4][k % 4] += load(sum + k * size + (panel * in.c + c) * L);
      Vec t[3][4];
      for (int j = 0; j < 4; ++j) {
        const Vec a = (s[1][j] + s[2][j]) * 0.5f;
        t[0][j] = s[0][j] + a, t[1][j] = (s[1][j] - s[2][j]) * 0.5f, t[2][j] = a + s[3][j];
      }
      alignas(64) float k[9][L];
      for (int i = 0; i < 3; ++i) {
        const Vec a = (t[i][1] + t[i][2]) * 0.5f;
        store(k[3 * i], t[i][0] + a), store(k[3 * i + 1], (t[i][1] - t[i][2]) * 0.5f), store(k[3 * i + 2], a + t[i][3]);
      }
      for (int l = 0; l < L; ++l)
        for (int j = 0; j < 9; ++j) dw[((panel * L + l) * in.c + c) * 9 + j] = k[j][l];
    }
  });
}

}  // namespace

// x (n, c, h, w), weights (o, c, 3, 3), bias (o,) or nothing -> y (n, o, h, w).
KERNEL(winograd_forward) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  convolve(p[0], Shape(shapes[0]), p[1], shapes[1][0], false, count == 4 ? p[2] : nullptr, p[count - 1]);
  return 0;
}

// dy (n, o, h, w), weights (o, c, 3, 3) -> dx (n, c, h, w).
KERNEL(winograd_data_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  convolve(p[0], Shape(shapes[0]), p[1], shapes[1][1], true, nullptr, p[2]);
  return 0;
}

// x (n, c, h, w), dy (n, o, h, w) -> dw (o, c, 3, 3).
KERNEL(winograd_weight_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  weight_gradient(p[0], Shape(shapes[0]), p[1], shapes[1][1], p[2]);
  return 0;
}
