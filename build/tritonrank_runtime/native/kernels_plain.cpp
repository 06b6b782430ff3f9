#define KERNELS plain
#define TABLE PLAIN
#define TILE_ROWS 2
#define TILE_PANELS 1
#include "kernels.inc"
