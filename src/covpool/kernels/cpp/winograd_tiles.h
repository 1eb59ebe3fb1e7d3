// Tiles of Winograd's F(2x2, 3x3): how they are laid out, and the transforms of images, gradients and weights.
#pragma once

#include "channels.h"
#include "common.h"

struct Shape {
  int64_t n, c, h, w;
  Shape(int64_t n, int64_t c, int64_t h, int64_t w) : n(n), c(c), h(h), w(w) {}
  explicit Shape(const int64_t *s) : Shape(s[0], s[1], s[2], s[3]) {}
  int64_t tile_rows() const { return (h + 1) / 2; }
  int64_t tile_columns() const { return (w + 1) / 2; }
};

// A group is a run of tile rows, which may belong to several images. Its tiles are kept as (16, channels / 16, tiles,
// 16): the place in the 4x4 tile, panel, tile, channel within the panel.

struct Group {
  int64_t begin, end;  // tile rows, counted through all images
};

struct Layout {
  int64_t tiles, panel, place;  // tiles of the group; floats between panels and between places
  Layout(int64_t tiles, int64_t channels) : tiles(tiles), panel(tiles * L), place(tiles * channels + L) {}
  int64_t floats() const { return 16 * place; }
};

// B^T d B of every 4x4 tile of x (overlapping by two).
static void transform_input(const float *x, const Shape &s, Group g, const Layout &to, float *out, float *scratch) {
  const int64_t columns = s.tile_columns();
  for (int64_t panel = 0; panel < s.c / L; ++panel)
    for (int64_t u = g.begin; u < g.end; ++u) {
      const int64_t image = u / s.tile_rows(), top = u % s.tile_rows() * 2 - 1;
      const int64_t first = std::max<int64_t>(top, 0), last = std::min(top + 4, s.h);
      gather_channels(x + ((image * s.c + panel * L) * s.h + first) * s.w, s.h * s.w, (last - first) * s.w, scratch);
      const float *row[4];
      for (int i = 0; i < 4; ++i)
        row[i] = top + i >= first && top + i < last ? scratch + (top + i - first) * s.w * L : nullptr;
      auto column = [&](int64_t j, Vec t[4]) {  // B^T d, one column of it
        Vec d[4];
        for (int i = 0; i < 4; ++i) d[i] = row[i] && j >= 0 && j < s.w ? load(row[i] + j * L) : Vec{};
        t[0] = d[0] - d[2], t[1] = d[1] + d[2], t[2] = d[2] - d[1], t[3] = d[1] - d[3];
      };
      float *to_tile = out + panel * to.panel + (u - g.begin) * columns * L;
      Vec a[4], b[4], c[4], d[4];
      column(-1, a), column(0, b);
      for (int64_t tile = 0; tile < columns; ++tile, to_tile += L) {
        column(2 * tile + 1, c), column(2 * tile + 2, d);
        for (int i = 0; i < 4; ++i) {
          float *p = to_tile + 4 * i * to.place;
          store(p, a[i] - c[i]);
          store(p + to.place, b[i] + c[i]);
          store(p + 2 * to.place, c[i] - b[i]);
          store(p + 3 * to.place, b[i] - d[i]);
          a[i] = c[i], b[i] = d[i];
        }
      }
    }
}

// A^T m A of every tile: 2x2 outputs, plus a bias for each channel where there is one.
static void transform_output(const float *in, const Layout &from, const Shape &s, Group g, const float *bias, float *y,
                             float *scratch) {
  const int64_t columns = s.tile_columns();
  for (int64_t panel = 0; panel < s.c / L; ++panel) {
    const Vec b = bias ? load(bias + panel * L) : Vec{};
    for (int64_t u = g.begin; u < g.end; ++u) {
      const int64_t image = u / s.tile_rows(), top = u % s.tile_rows() * 2;
      const int64_t rows = std::min<int64_t>(2, s.h - top);
      const float *tile_in = in + panel * from.panel + (u - g.begin) * columns * L;
      for (int64_t tile = 0; tile < columns; ++tile, tile_in += L) {
        Vec t[2][4];
        for (int j = 0; j < 4; ++j) {
          const Vec m0 = load(tile_in + j * from.place), m1 = load(tile_in + (4 + j) * from.place);
          const Vec m2 = load(tile_in + (8 + j) * from.place), m3 = load(tile_in + (12 + j) * from.place);
          t[0][j] = m0 + m1 + m2, t[1][j] = m1 - m2 - m3;
        }
        for (int i = 0; i < rows; ++i) {
          float *p = scratch + (i * s.w + 2 * tile) * L;
          store(p, t[i][0] + t[i][1] + t[i][2] + b);
          if (2 * tile + 1 < s.w) store(p + L, t[i][1] - t[i][2] - t[i][3] + b);
        }
      }
      scatter_channels(scratch, s.h * s.w, rows * s.w, y + ((image * s.c + panel * L) * s.h + top) * s.w);
    }
  }
}

// A d A^T of every 2x2 tile of dy: the adjoint of the output's transform.
static void transform_gradient(const float *dy, const Shape &s, Group g, const Layout &to, float *out, float *scratch) {
  const int64_t columns = s.tile_columns();
  for (int64_t panel = 0; panel < s.c / L; ++panel)
    for (int64_t u = g.begin; u < g.end; ++u) {
      const int64_t image = u / s.tile_rows(), top = u % s.tile_rows() * 2;
      const int64_t rows = std::min<int64_t>(2, s.h - top);
      gather_channels(dy + ((image * s.c + panel * L) * s.h + top) * s.w, s.h * s.w, rows * s.w, scratch);
      float *to_tile = out + panel * to.panel + (u - g.begin) * columns * L;
      for (int64_t tile = 0; tile < columns; ++tile, to_tile += L) {
        Vec t[4][2];
        for (int j = 0; j < 2; ++j) {
          const bool inside = 2 * tile + j < s.w;
          const Vec d0 = inside ? load(scratch + (2 * tile + j) * L) : Vec{};
          const Vec d1 = inside && rows == 2 ? load(scratch + (s.w + 2 * tile + j) * L) : Vec{};
          t[0][j] = d0, t[1][j] = d0 + d1, t[2][j] = d0 - d1, t[3][j] = -d1;
        }
        for (int i = 0; i < 4; ++i) {
          float *p = to_tile + 4 * i * to.place;
          store(p, t[i][0]);
          store(p + to.place, t[i][0] + t[i][1]);
          store(p + 2 * to.place, t[i][0] - t[i][1]);
          store(p + 3 * to.place, -t[i][1]);
        }
      }
    }
}

// G g G^T of 16 kernels (9, 16) -> 16 places, `place` floats apart.
static inline void transform_kernel(const float k[9][L], float *out, int64_t place) {
  Vec t[4][3];
  for (int j = 0; j < 3; ++j) {
    const Vec g0 = load(k[j]), g1 = load(k[3 + j]), g2 = load(k[6 + j]), s = (g0 + g2) * 0.5f, h = g1 * 0.5f;
    t[0][j] = g0, t[1][j] = s + h, t[2][j] = s - h, t[3][j] = g2;
  }
  for (int i = 0; i < 4; ++i) {
    const Vec s = (t[i][0] + t[i][2]) * 0.5f, h = t[i][1] * 0.5f;
    float *p = out + 4 * i * place;
    store(p, t[i][0]), store(p + place, s + h), store(p + 2 * place, s - h), store(p + 3 * place, t[i][2]);
  }
}

// Weights (o, c, 3, 3) -> (16, o / 16, c, 16), or for the data gradient, turned by 180 degrees, (16, c / 16, o, 16).
static void transform_weights(const float *w, int64_t o, int64_t c, bool turned, float *out) {
  const int64_t outer = turned ? c : o, inner = turned ? o : c, place = o * c;
  parallel(outer / L, [&](int64_t panel, int) {
    for (int64_t i = 0; i < inner; ++i) {
      alignas(64) float k[9][L];
      for (int l = 0; l < L; ++l) {
        const float *g = turned ? w + (i * c + panel * L + l) * 9 : w + ((panel * L + l) * c + i) * 9;
        for (int j = 0; j < 9; ++j) k[turned ? 8 - j : j][l] = g[j];
      }
      transform_kernel(k, out + (panel * inner + i) * L, place);
    }
  });
}
