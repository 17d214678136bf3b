// Marks an inline helper as usable from host and device code, so that index arithmetic is written once.
#pragma once

#ifdef __CUDACC__
#define AVFMAE_HD __host__ __device__ __forceinline__
#else
#define AVFMAE_HD inline
#endif
