// Divisor of csrc/cuda/tubelets.cuh, for a test.
#include "cuda/tubelets.cuh"

extern "C" __attribute__((visibility("default"))) int divide(int n, int by) { return avfmae::Divisor(by).quotient(n); }
