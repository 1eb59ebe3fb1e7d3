// Eigen-decomposition of symmetric matrices in float64, by LAPACK's dsyevd, which Python hands over: SciPy brings it.
#include <cmath>

#include "common.h"

namespace {

typedef void (*Solver)(char *, char *, int *, double *, int *, double *, double *, int *, int *, int *, int *);

Solver g_solver = nullptr;

// One matrix (d, d), symmetric, to eigenvalues in rising order and eigenvectors in columns; NaN where there are none.
void decompose(const double *c, int d, double *values, double *vectors) {
  const int64_t size = int64_t{d} * d;
  std::vector<double> a(c, c + size);
  int info = std::all_of(a.begin(), a.end(), [](double v) { return std::isfinite(v); }) ? 0 : 1;
  if (!info) {
    char job = 'V', half = 'L';
    int floats = 1 + 6 * d + 2 * d * d, integers = 3 + 5 * d;
    std::vector<double> work(floats);
    std::vector<int> places(integers);
    g_solver(&job, &half, &d, a.data(), &d, values, work.data(), &floats, places.data(), &integers, &info);
  }
  if (info) {
    std::fill_n(values, d, std::nan(""));
    std::fill_n(vectors, size, std::nan(""));
    return;
  }
  for (int64_t i = 0; i < d; ++i)
    for (int64_t j = 0; j < d; ++j) vectors[i * d + j] = a[j * d + i];
}

}  // namespace

extern "C" void set_solver(void *solver) { g_solver = reinterpret_cast<Solver>(solver); }

// c (n, d, d) -> eigenvalues (n, d), eigenvectors (n, d, d).
KERNEL(symmetric_eigen) {
  for (int i = 0; i < count; ++i)
    if (std::strcmp(types[i], "float64") != 0) return 1;
  if (!g_solver) return 1;
  std::lock_guard<std::mutex> lock(g_running);
  const int64_t n = shapes[0][0], d = shapes[0][1];
  const double *c = reinterpret_cast<const double *>(p[0]);
  double *values = reinterpret_cast<double *>(p[1]), *vectors = reinterpret_cast<double *>(p[2]);
  parallel(n, [&](int64_t i, int) { decompose(c + i * d * d, d, values + i * d, vectors + i * d * d); });
  return 0;
}
