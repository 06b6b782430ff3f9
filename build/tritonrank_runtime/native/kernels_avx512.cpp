#define KERNELS avx512
#define TABLE AVX512
#define TILE_ROWS 6
#define TILE_PANELS 4
#include "kernels.inc"
