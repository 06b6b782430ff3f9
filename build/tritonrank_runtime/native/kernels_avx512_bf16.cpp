#define KERNELS avx512_bf16
#define TABLE AVX512_BF16
#define TILE_ROWS 6
#define TILE_PANELS 4
#include "kernels.inc"
