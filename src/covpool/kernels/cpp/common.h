// Vectors, threads and the lock that every kernel here shares.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

constexpr int L = 16;  // floats of a vector; narrower instruction sets take several registers for one
typedef float Vec __attribute__((vector_size(64)));
typedef float Unaligned __attribute__((vector_size(64), aligned(4)));
typedef int Index __attribute__((vector_size(64)));

static inline Vec load(const float *p) { return *reinterpret_cast<const Unaligned *>(p); }
static inline void store(float *p, Vec v) { *reinterpret_cast<Unaligned *>(p) = v; }

// GCC would otherwise read an unaligned vector from memory again for every product that it takes part in.
static inline Vec in_register(Vec v) {
#ifdef __AVX512F__
  asm("" : "+v"(v));
#endif
  return v;
}

// One kernel at a time: each uses every thread, and the scratch memory below belongs to threads by number.
extern std::mutex g_running;
extern int g_threads;

// Calls body(item, thread) for every item; threads take the next item when they are done with one.
template <class Body>
void parallel(int64_t items, Body body) {
  std::atomic<int64_t> next{0};
  auto work = [&](int thread) {
    for (int64_t i; (i = next.fetch_add(1)) < items;) body(i, thread);
  };
  std::vector<std::thread> others;
  for (int t = 1; t < std::min<int64_t>(g_threads, items); ++t) others.emplace_back(work, t);
  work(0);
  for (auto &t : others) t.join();
}

// As `parallel`, where the floats to write are worth the start of a thread.
template <class Body>
void share(int64_t items, int64_t floats, Body body) {
  if (floats >= int64_t{1} << 18) {
    parallel(items, body);
  } else {
    for (int64_t i = 0; i < items; ++i) body(i, 0);
  }
}

// Memory that stays from call to call: fresh pages cost more than what is computed on them.
class Scratch {
 public:
  float *get(int64_t floats) {
    if (floats > size_) {
      std::free(data_);
      data_ = static_cast<float *>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64));
      if (!data_) std::abort();
      size_ = floats;
    }
    return data_;
  }

 private:
  float *data_ = nullptr;
  int64_t size_ = 0;
};

// MindSpore's interface of custom operators: inputs, then outputs, with their shapes and types; 0 for success.
#define KERNEL(NAME)                                                                                         \
  static int NAME##_kernel(int count, float **p, int64_t **shapes, const char **types);                      \
  extern "C" int NAME(int count, void **p, int *, int64_t **shapes, const char **types, void *, void *) {    \
    return NAME##_kernel(count, reinterpret_cast<float **>(p), shapes, types);                               \
  }                                                                                                          \
  static int NAME##_kernel(int count, float **p, int64_t **shapes, const char **types)

static inline bool all_float32(int count, const char **types) {
  for (int i = 0; i < count; ++i)
    if (std::strcmp(types[i], "float32") != 0) return false;
  return true;
}
