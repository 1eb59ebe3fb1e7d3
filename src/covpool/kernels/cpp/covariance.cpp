// What stands before and after the product of a covariance: centring of rows, the upper triangle, its adjoint.
#include "common.h"

namespace {

float total(const float *x, int64_t length) {
  Vec sum[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= length; i += 4 * L)
    for (int k = 0; k < 4; ++k) sum[k] += load(x + i + k * L);
  for (; i + L <= length; i += L) sum[0] += load(x + i);
  float rest = 0;
  for (; i < length; ++i) rest += x[i];
  const Vec v = (sum[0] + sum[1]) + (sum[2] + sum[3]);
  for (int k = 0; k < L; ++k) rest += v[k];
  return rest;
}

// One symmetric matrix from its upper triangle, off-diagonal entries times `factor`, those of the diagonal times
// 2 `factor`; the lower half is written in blocks that stay in the cache.
void spread(const float *v, int64_t d, float factor, float *c) {
  for (int64_t i = 0; i < d; ++i) {
    float *row = c + i * d;
    for (int64_t j = i; j < d; ++j) row[j] = factor * v[j - i];
    v += d - i;
    row[i] *= 2;
  }
  constexpr int64_t B = 16;
  for (int64_t i0 = 0; i0 < d; i0 += B)
    for (int64_t j0 = i0; j0 < d; j0 += B)
      for (int64_t j = j0; j < std::min(j0 + B, d); ++j)
        for (int64_t i = i0; i < std::min({i0 + B, d, j}); ++i) c[j * d + i] = c[i * d + j];
}

}  // namespace

// x (rows, length) -> x less the mean of each row.
KERNEL(centre) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t rows = shapes[0][0], length = shapes[0][1], block = 64;
  const float *x = p[0];
  float *y = p[1];
  share((rows + block - 1) / block, rows * length, [&](int64_t b, int) {
    for (int64_t r = b * block; r < std::min((b + 1) * block, rows); ++r) {
      const float *from = x + r * length, mean = total(from, length) / static_cast<float>(length);
      float *to = y + r * length;
      int64_t i = 0;
      for (; i + L <= length; i += L) store(to + i, load(from + i) - mean);
      for (; i < length; ++i) to[i] = from[i] - mean;
    }
  });
  return 0;
}

// c (n, d, d), factor (1, 1) -> factor times the upper triangle row by row, (n, d (d + 1) / 2).
KERNEL(triangle) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[0][0], d = shapes[0][1];
  const float *c = p[0], factor = p[1][0];
  float *v = p[2];
  share(n, n * d * (d + 1) / 2, [&](int64_t k, int) {
    const float *from = c + k * d * d;
    float *to = v + k * d * (d + 1) / 2;
    for (int64_t i = 0; i < d; to += d - i, ++i)
      for (int64_t j = i; j < d; ++j) to[j - i] = factor * from[i * d + j];
  });
  return 0;
}

// v (n, d (d + 1) / 2), factor (1, 1) -> factor / 2 times (T + T^T) for the upper triangular T, (n, d, d).
KERNEL(triangle_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[2][0], d = shapes[2][1];
  const float *v = p[0], factor = 0.5f * p[1][0];
  float *c = p[2];
  share(n, n * d * d, [&](int64_t k, int) { spread(v + k * d * (d + 1) / 2, d, factor, c + k * d * d); });
  return 0;
}
