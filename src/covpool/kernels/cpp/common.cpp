#include "common.h"

std::mutex g_running;
int g_threads = 1;

extern "C" void set_threads(int threads) {
  std::lock_guard<std::mutex> lock(g_running);
  g_threads = std::max(1, threads);
}
