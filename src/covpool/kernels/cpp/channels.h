// Between MindSpore's (channels, positions) and vectors of 16 channels.
#pragma once

#include "common.h"

static inline void transpose(Vec r[16]) {
  const Index low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  const Index high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  for (int round = 0; round < 4; ++round) {
    Vec s[16];
    for (int i = 0; i < 8; ++i) {
      s[2 * i] = __builtin_shuffle(r[i], r[i + 8], low);
      s[2 * i + 1] = __builtin_shuffle(r[i], r[i + 8], high);
    }
    for (int i = 0; i < 16; ++i) r[i] = s[i];
  }
}

// count positions of 16 channels that lie stride apart -> (count, 16)
static inline void gather_channels(const float *x, int64_t stride, int64_t count, float *out) {
  int64_t p = 0;
  for (; p + 16 <= count; p += 16) {
    Vec r[16];
    for (int i = 0; i < 16; ++i) r[i] = load(x + i * stride + p);
    transpose(r);
    for (int i = 0; i < 16; ++i) store(out + (p + i) * L, r[i]);
  }
  for (; p < count; ++p)
    for (int i = 0; i < 16; ++i) out[p * L + i] = x[i * stride + p];
}

// The way back.
static inline void scatter_channels(const float *in, int64_t stride, int64_t count, float *y) {
  int64_t p = 0;
  for (; p + 16 <= count; p += 16) {
    Vec r[16];
    for (int i = 0; i < 16; ++i) r[i] = load(in + (p + i) * L);
    transpose(r);
    for (int i = 0; i < 16; ++i) store(y + i * stride + p, r[i]);
  }
  for (; p < count; ++p)
    for (int i = 0; i < 16; ++i) y[i * stride + p] = in[p * L + i];
}
