#define KERNELS avx2
#define TABLE AVX2
#define TILE_ROWS 6
#define TILE_PANELS 1
#include "kernels.inc"
