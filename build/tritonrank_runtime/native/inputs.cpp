// Inputs of linears in the form that their weights need, written by whatever made the rows where that can be.
#include "engine.h"

namespace tritonrank {

// Where to write an input in that form while its rows are made; nothing where the weights need floats.
Narrow Engine::narrow(const Linear& linear, Pass pass, long count, Input& input) const {
    Narrow found;
    found.stride = linear.inputs;
    if (linear.kind == Kind::int8) {
        found.steps = input.steps.grow(count * linear.inputs);
        found.multiplier = linear.input[pass].multiplier.get();
        found.zero_point = linear.input[pass].zero_point;
    } else if (linear.kind == Kind::bfloat16 && !linear.rounding(pass)) {
        found.halves = input.halves.grow(count * linear.inputs);
    }
    input.is_ready = bool(found);
    return found;
}

static void round_rows(const Kernels& kernels, const Quantization& by, const float* rows, long stride, long count,
                       long columns, std::uint8_t* steps, float* rounded) {
    Narrow narrow;
    narrow.steps = steps;
    narrow.stride = columns;
    narrow.multiplier = by.multiplier.get();
    narrow.zero_point = by.zero_point;
    kernels.to_narrow(rows, stride, count, columns, narrow);
    for (long i = 0; i < count * columns; ++i) rounded[i] = (float(steps[i]) - by.zero_point) * by.scale;
}

// From `rows`.
void Engine::prepare(const Linear& linear, Pass pass, long count, Input& input) const {
    const Narrow made = narrow(linear, pass, count, input);
    if (const Quantization* by = linear.rounding(pass)) {
        std::uint8_t* steps = input.steps.grow(count * linear.inputs);
        float* rounded = input.rounded.grow(count * linear.inputs);
        round_rows(kernels_, *by, input.rows, input.stride, count, linear.inputs, steps, rounded);
        if (linear.kind != Kind::bfloat16) return;
        Narrow halves;
        halves.halves = input.halves.grow(count * linear.inputs);
        halves.stride = linear.inputs;
        kernels_.to_narrow(rounded, linear.inputs, count, linear.inputs, halves);
    } else if (made) {
        kernels_.to_narrow(input.rows, input.stride, count, linear.inputs, made);
    }
}

void Engine::linear(const Linear& linear, Pass pass, long count, Input& input, Finish finish) const {
    finish.bias = linear.bias.get();
    if (!input.is_ready) prepare(linear, pass, count, input);
    if (linear.kind == Kind::int8)
        return kernels_.product_int8(input.steps.get(), linear.inputs, count, linear.steps.get(),
                                     linear.starts[pass].get(), linear.scales[pass].get(), linear.groups,
                                     linear.outputs, finish);
    if (linear.kind == Kind::bfloat16)
        return kernels_.product_bfloat16(input.halves.get(), linear.inputs, count, linear.halves.get(), linear.groups,
                                         linear.outputs, finish);
    const bool is_rounded = linear.rounding(pass);
    kernels_.product_float(is_rounded ? input.rounded.get() : input.rows, is_rounded ? linear.inputs : input.stride,
                           count, linear.floats.get(), linear.inputs * PANEL, PANEL, linear.inputs, linear.outputs,
                           finish);
}

// What attention adds to: the rows that its queries are made of, or these as their quantization leaves them.
const float* Engine::residual(const Linear& query, Pass pass, const float* rows, long count, Scratch& scratch) const {
    const Quantization& input = query.input[pass];
    if (!query.rounds_residual || !input.is_used) return rows;
    float* rounded = scratch.residual.grow(count * hidden_);
    round_rows(kernels_, input, rows, hidden_, count, hidden_, scratch.residual_steps.grow(count * hidden_), rounded);
    return rounded;
}

}  // namespace tritonrank
