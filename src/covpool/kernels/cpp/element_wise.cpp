// Signed square root with unit length, and scale and shift per feature, with their gradients; rows of a batch.
#include <cmath>

#include "common.h"

namespace {

// As in covpool/pooling: vectors up to this size count as zero, squares of entries up to that one.
constexpr float kSmallest = 1e-30f, kSmallestSquare = 1e-37f;

static inline Vec absolute(Vec v) { return v < 0.0f ? -v : v; }

// Sum over a row of term(i) for vectors and one(i) for single numbers.
template <class T, class O>
float sum(int64_t length, T term, O one) {
  Vec totals[4] = {};
  int64_t i = 0;
  for (; i + 4 * L <= length; i += 4 * L)
    for (int k = 0; k < 4; ++k) totals[k] += term(i + k * L);
  for (; i + L <= length; i += L) totals[0] += term(i);
  float rest = 0;
  for (; i < length; ++i) rest += one(i);
  const Vec v = (totals[0] + totals[1]) + (totals[2] + totals[3]);
  for (int k = 0; k < L; ++k) rest += v[k];
  return rest;
}

// The squared norm of the signed root is the sum of sizes; infinite for a vector that counts as zero.
float squared_norm(const float *v, int64_t length) {
  const float total =
      sum(length, [&](int64_t i) { return absolute(load(v + i)); }, [&](int64_t i) { return std::fabs(v[i]); });
  return total <= kSmallest ? INFINITY : total;
}

}  // namespace

// v (n, k) -> sign(v) sqrt(|v|) divided by its norm.
KERNEL(signed_root_l2) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[0][0], k = shapes[0][1];
  share(n, n * k, [&](int64_t row, int) {
    const float *v = p[0] + row * k;
    float *out = p[1] + row * k;
    const float scale = 1 / std::sqrt(squared_norm(v, k));
    for (int64_t i = 0; i < k; ++i) {
      const float size = std::fabs(v[i]);
      out[i] = v[i] / std::sqrt(size > kSmallestSquare ? size : kSmallestSquare) * scale;
    }
  });
  return 0;
}

// v, out, dout (n, k) -> dv: dy = dout - out <out, dout>, dv = dy / (2 |out| |v|_1), 0 where out is 0.
KERNEL(signed_root_l2_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[0][0], k = shapes[0][1];
  share(n, n * k, [&](int64_t row, int) {
    const float *v = p[0] + row * k, *out = p[1] + row * k, *dout = p[2] + row * k;
    float *dv = p[3] + row * k;
    const float half = 0.5f / squared_norm(v, k);
    const float along =
        sum(k, [&](int64_t i) { return load(out + i) * load(dout + i); }, [&](int64_t i) { return out[i] * dout[i]; });
    for (int64_t i = 0; i < k; ++i) {
      const float size = std::fabs(out[i]), square = out[i] * out[i];
      dv[i] = (dout[i] - out[i] * along) * (size / (square > kSmallestSquare ? square : kSmallestSquare)) * half;
    }
  });
  return 0;
}

// v (n, k), gamma, beta (k) -> gamma v + beta.
KERNEL(affine) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[0][0], k = shapes[0][1];
  const float *gamma = p[1], *beta = p[2];
  share(n, n * k, [&](int64_t row, int) {
    const float *v = p[0] + row * k;
    float *out = p[3] + row * k;
    for (int64_t i = 0; i < k; ++i) out[i] = gamma[i] * v[i] + beta[i];
  });
  return 0;
}

// v, dout (n, k), gamma (k) -> dv, dgamma, dbeta: a thread takes some features of all rows.
KERNEL(affine_gradient) {
  if (!all_float32(count, types)) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[0][0], k = shapes[0][1], block = 1024;
  const float *v = p[0], *dout = p[1], *gamma = p[2];
  float *dv = p[3], *dgamma = p[4], *dbeta = p[5];
  share((k + block - 1) / block, n * k, [&](int64_t b, int) {
    const int64_t begin = b * block, end = std::min(begin + block, k);
    std::fill(dgamma + begin, dgamma + end, 0.0f);
    std::fill(dbeta + begin, dbeta + end, 0.0f);
    for (int64_t row = 0; row < n; ++row) {
      const float *__restrict__ x = v + row * k, *__restrict__ g = dout + row * k;
      float *__restrict__ dx = dv + row * k, *__restrict__ scale = dgamma, *__restrict__ shift = dbeta;
      for (int64_t i = begin; i < end; ++i) {
        dx[i] = g[i] * gamma[i];
        scale[i] += g[i] * x[i];
        shift[i] += g[i];
      }
    }
  });
  return 0;
}
