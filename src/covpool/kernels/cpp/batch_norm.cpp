// Batch normalisation in training over (n, c, h, w), and its gradient.
// A thread takes a channel: what it has read for the statistics is still in its cache when it is read again.
#include <cmath>

#include "common.h"

namespace {

struct Shape {
  int64_t n, c, plane;
  explicit Shape(const int64_t *s) : n(s[0]), c(s[1]), plane(s[2] * s[3]) {}
};

// Calls vector(p) for each whole vector of the channel's planes and scalar(p) for what is left, p an offset.
template <class V, class S>
inline void each(const Shape &s, int64_t channel, V vector, S scalar) {
  for (int64_t n = 0; n < s.n; ++n) {
    const int64_t begin = (n * s.c + channel) * s.plane, end = begin + s.plane;
    int64_t p = begin;
    for (; p + L <= end; p += L) vector(p);
    for (; p < end; ++p) scalar(p);
  }
}

constexpr int W = 4;  // independent sums hide the latency of an addition

// N sums over a channel: vector(p, out) gives the terms of a whole vector, scalar(p, out) those of one float of what is
// left of a plane; p is an offset. Planes are summed in float, the channel in double.
template <int N, class V, class S>
inline void sum_over(const Shape &s, int64_t channel, double *sums, V vector, S scalar) {
  std::fill_n(sums, N, 0.0);
  for (int64_t n = 0; n < s.n; ++n) {
    int64_t p = (n * s.c + channel) * s.plane;
    const int64_t end = p + s.plane;
    Vec total[W][N] = {}, term[N];
    float rest[N] = {}, one[N];
    for (; p + W * L <= end; p += W * L)
      for (int i = 0; i < W; ++i) {
        vector(p + i * L, term);
        for (int k = 0; k < N; ++k) total[i][k] += term[k];
      }
    for (; p + L <= end; p += L) {
      vector(p, term);
      for (int k = 0; k < N; ++k) total[0][k] += term[k];
    }
    for (; p < end; ++p) {
      scalar(p, one);
      for (int k = 0; k < N; ++k) rest[k] += one[k];
    }
    for (int k = 0; k < N; ++k) {
      const Vec v = (total[0][k] + total[1][k]) + (total[2][k] + total[3][k]);
      for (int i = 0; i < L; ++i) rest[k] += v[i];
      sums[k] += rest[k];
    }
  }
}

struct Statistics {
  const float *gamma, *beta, *moving_mean, *moving_variance, *constants;  // constants: eps, weight of the batch
  float *mean, *rstd, *new_mean, *new_variance;
};

void forward(const Shape &s, const float *x, const Statistics &t, float *y) {
  const double count = static_cast<double>(s.n) * s.plane, weight = t.constants[1];
  parallel(s.c, [&](int64_t c, int) {
    double sum, squares;
    sum_over<1>(
        s, c, &sum, [&](int64_t p, Vec *term) { *term = load(x + p); }, [&](int64_t p, float *term) { *term = x[p]; });
    const float m = static_cast<float>(sum / count);
    sum_over<1>(
        s, c, &squares,
        [&](int64_t p, Vec *term) {
          const Vec d = load(x + p) - m;
          *term = d * d;
        },
        [&](int64_t p, float *term) { *term = (x[p] - m) * (x[p] - m); });
    const float r = static_cast<float>(1 / std::sqrt(squares / count + t.constants[0]));
    t.mean[c] = m, t.rstd[c] = r;
    t.new_mean[c] = static_cast<float>(t.moving_mean[c] + weight * (m - t.moving_mean[c]));
    const double variance = squares / std::max(count - 1, 1.0);  // unbiased
    t.new_variance[c] = static_cast<float>(t.moving_variance[c] + weight * (variance - t.moving_variance[c]));
    const float scale = t.gamma[c] * r, shift = t.beta[c] - m * scale;
    each(
        s, c, [&](int64_t p) { store(y + p, load(x + p) * scale + shift); },
        [&](int64_t p) { y[p] = x[p] * scale + shift; });
  });
}

void backward(const Shape &s, const float *dy, const float *x, const float *gamma, const float *mean, const float *rstd,
              float *dx, float *dgamma, float *dbeta) {
  const double count = static_cast<double>(s.n) * s.plane;
  parallel(s.c, [&](int64_t c, int) {
    const float m = mean[c], r = rstd[c];
    double sums[2];  // of dy and of dy times the distance from the mean
    sum_over<2>(
        s, c, sums,
        [&](int64_t p, Vec *term) {
          term[0] = load(dy + p);
          term[1] = term[0] * (load(x + p) - m);
        },
        [&](int64_t p, float *term) {
          term[0] = dy[p];
          term[1] = dy[p] * (x[p] - m);
        });
    dbeta[c] = static_cast<float>(sums[0]), dgamma[c] = static_cast<float>(sums[1] * r);
    const float scale = gamma[c] * r, mean_dy = static_cast<float>(sums[0] / count);
    const float slope = static_cast<float>(sums[1] / count * r * r);
    each(
        s, c, [&](int64_t p) { store(dx + p, (load(dy + p) - mean_dy - (load(x + p) - m) * slope) * scale); },
        [&](int64_t p) { dx[p] = (dy[p] - mean_dy - (x[p] - m) * slope) * scale; });
  });
}

}  // namespace

// x, gamma, beta, moving mean, moving variance, constants -> y, mean, 1 / deviation, new moving mean and variance.
KERNEL(batch_norm) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  forward(Shape(shapes[0]), p[0], {p[1], p[2], p[3], p[4], p[5], p[7], p[8], p[9], p[10]}, p[6]);
  return 0;
}

// dy, x, gamma, mean, 1 / deviation -> dx, dgamma, dbeta.
KERNEL(batch_norm_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  backward(Shape(shapes[0]), p[0], p[1], p[2], p[3], p[4], p[5], p[6], p[7]);
  return 0;
}
