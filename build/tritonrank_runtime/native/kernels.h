// The inner loops, compiled once per instruction set (kernels.inc); the engine calls them through this table.
//
// All columns come in panels of 16. What is padded up to them holds zeros in weights, biases and factors, so that
// padding stays zero all the way. Every element of a result is added up in one fixed order, however the rows are cut:
// a row's numbers are the same to the last bit alone and among others.
#pragma once

#include <cstdint>

namespace tritonrank {

constexpr long PANEL = 16;

inline long padded(long size, long multiple = PANEL) { return (size + multiple - 1) / multiple * multiple; }

enum class Activation : int { none, gelu, gelu_tanh, relu, silu, tanh };

// Rows as the next product takes them, beside or instead of floats: eight-bit steps, or BF16.
struct Narrow {
    std::uint8_t* steps = nullptr;
    const float* multiplier = nullptr;  // factor / scale, by column
    float zero_point = 0;
    std::uint16_t* halves = nullptr;
    long stride = 0;  // in elements
    explicit operator bool() const { return steps || halves; }
};

// What becomes of a product's rows: activation(row + bias) + residual, as floats or narrow.
struct Finish {
    const float* bias = nullptr;
    Activation activation = Activation::none;
    const float* residual = nullptr;
    long residual_stride = 0;
    float* out = nullptr;
    long out_stride = 0;
    Narrow narrow;  // instead of `out`
};

struct Norm {
    const float* weight = nullptr;
    const float* bias = nullptr;
    long size = 0;
    float epsilon = 0;
};

struct Kernels {
    // rows (count, groups * 4) u8 times panels [columns / 16][groups][16][4] s8; starts: what each column begins with.
    void (*product_int8)(const std::uint8_t* rows, long stride, long count, const std::int8_t* panels,
                         const std::int32_t* starts, const float* scales, long groups, long columns,
                         const Finish& finish);
    // rows (count, depth) times floats at panels[panel * panel_stride + k * k_stride + 0..15]
    void (*product_float)(const float* rows, long stride, long count, const float* panels, long panel_stride,
                          long k_stride, long depth, long columns, const Finish& finish);
    // rows (count, groups * 2) BF16 times panels [columns / 16][groups][16][2] BF16
    void (*product_bfloat16)(const std::uint16_t* rows, long stride, long count, const std::uint16_t* panels,
                             long groups, long columns, const Finish& finish);
    // As product_float without a finish; adds to what `out` holds where `adds`.
    void (*multiply)(const float* rows, long stride, long count, const float* panels, long panel_stride, long k_stride,
                     long depth, long columns, float* out, long out_stride, bool adds);
    // Rows of scores become exponentials of their differences to the largest; `inverses` gets 1 / their sums.
    void (*exponentials)(float* scores, long stride, long count, long columns, float* inverses);
    // out = rows * by; narrow instead, where it is given
    void (*scale_rows)(const float* rows, long stride, long count, long columns, const float* by, float* out,
                       long out_stride, const Narrow& narrow);
    // Writes floats, and narrow ones too where they are given.
    void (*normalize)(const float* rows, long stride, long count, const Norm& norm, float* out, const Narrow& narrow);
    void (*to_narrow)(const float* rows, long stride, long count, long columns, const Narrow& narrow);
    // out = a + b + c, of which c may be null
    void (*add_rows)(const float* a, const float* b, const float* c, long size, float* out);
    // 16 keys (rows of `size` floats, a multiple of 16) turned: out[d * 16 + key]
    void (*turn_keys)(const float* keys, long stride, long count, long size, float* out);
};

extern const Kernels PLAIN;
#ifdef TRITONRANK_X86
extern const Kernels AVX2;
extern const Kernels AVX512;
extern const Kernels AVX512_BF16;
#endif

}  // namespace tritonrank
