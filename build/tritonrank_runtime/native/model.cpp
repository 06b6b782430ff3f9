// Weights into panels, once, when a model is opened.
#include <algorithm>
#include <cstring>

#include "engine.h"

namespace tritonrank {

bool Quantization::same_as(const Quantization& other, long inputs) const {
    return is_used && other.is_used && zero_point == other.zero_point &&
           std::equal(multiplier.get(), multiplier.get() + inputs, other.multiplier.get());
}


bool Linear::takes_input_of(const Linear& other, Pass pass) const {
    if (kind != other.kind || rounds_input != other.rounds_input) return false;
    if (kind != Kind::int8 && !rounds_input) return true;
    return input[pass].same_as(other.input[pass], inputs);
}

Engine::Engine(const TritonrankModel& model, const Kernels& kernels) : kernels_(kernels), sizes_(model) {
    hidden_ = padded(model.hidden_size);
    embedding_ = padded(model.embedding_size);
    size_ = padded(model.head_size);
    width_ = size_ * model.heads;
    inner_ = padded(model.intermediate_size);
    for (int part = 0; part < 2; ++part) {
        embedding_norm_[part].grow(embedding_);
        std::copy_n(model.embedding_norm[part], model.embedding_size, embedding_norm_[part].get());
    }
    layers_.resize(model.layers);
    for (int n = 0; n < model.layers; ++n) load_layer(layers_[n], model.linears + n * 6, model.norms + n * 4);
    if ((has_project_ = model.project.weight != nullptr)) load(project_, model.project, Spread::none);
    if ((has_pooler_ = model.pooler.weight != nullptr)) load(pooler_, model.pooler, Spread::none);
    load(head_, model.head, Spread::none);
}

void Engine::load_layer(Layer& layer, const TritonrankLinear* linears, const float* const* norms) {
    load(layer.query, linears[0], Spread::outputs);
    load(layer.key, linears[1], Spread::outputs);
    load(layer.value, linears[2], Spread::outputs);
    load(layer.attention_out, linears[3], Spread::inputs);
    load(layer.ffn_in, linears[4], Spread::none);
    load(layer.ffn_out, linears[5], Spread::none);
    for (Pass pass : {CONTEXT, CANDIDATES}) {
        layer.value_shares[pass] = layer.value.takes_input_of(layer.key, pass);
        layer.query_shares[pass] = layer.value_shares[pass] && layer.query.takes_input_of(layer.key, pass);
    }
    for (int part = 0; part < 4; ++part) {
        layer.norms[part].grow(hidden_);
        std::copy_n(norms[part], sizes_.hidden_size, layer.norms[part].get());
    }
}

void Engine::load(Linear& linear, const TritonrankLinear& from, Spread spread) {
    const long head_size = sizes_.head_size;
    const auto place = [&](long n) { return n / head_size * size_ + n % head_size; };
    const auto input = [&](long n) { return spread == Spread::inputs ? place(n) : n; };
    const auto output = [&](long n) { return spread == Spread::outputs ? place(n) : n; };
    linear.kind = Kind(from.kind);
    linear.rounds_residual = from.rounds_residual;
    linear.inputs = spread == Spread::inputs ? width_ : padded(from.inputs);
    linear.outputs = spread == Spread::outputs ? width_ : padded(from.outputs);
    linear.bias.grow(linear.outputs);
    if (from.bias)
        for (long n = 0; n < from.outputs; ++n) linear.bias[output(n)] = from.bias[n];

    if (from.input_scale) {
        linear.rounds_input = linear.kind != Kind::int8;
        linear.factor.grow(linear.inputs);
        for (long k = 0; k < from.inputs; ++k) linear.factor[input(k)] = from.input_factor ? from.input_factor[k] : 1.0f;
        for (int pass = 0; pass < 2; ++pass) {
            Quantization& found = linear.input[pass];
            if (!(found.is_used = from.input_scale[pass] > 0)) continue;
            found.scale = from.input_scale[pass];
            found.zero_point = from.input_zero_point[pass];
            found.multiplier.grow(linear.inputs);
            for (long k = 0; k < linear.inputs; ++k) found.multiplier[k] = linear.factor[k] / found.scale;
        }
    }

    if (linear.kind == Kind::int8) {
        const auto* weight = static_cast<const std::int8_t*>(from.weight);
        linear.groups = linear.inputs / 4;
        linear.steps.grow(linear.inputs * linear.outputs);
        std::vector<std::int32_t> totals(linear.outputs);
        for (long k = 0; k < from.inputs; ++k)
            for (long n = 0; n < from.outputs; ++n) {
                const long to = output(n), at = input(k);
                totals[to] += weight[k * from.outputs + n];
                linear.steps[((to / PANEL * linear.groups + at / 4) * PANEL + to % PANEL) * 4 + at % 4] =
                    weight[k * from.outputs + n];
            }
        for (int pass = 0; pass < 2; ++pass) {
            linear.starts[pass].grow(linear.outputs);
            linear.scales[pass].grow(linear.outputs);
            for (long n = 0; n < linear.outputs; ++n)
                linear.starts[pass][n] = -std::int32_t(linear.input[pass].zero_point) * totals[n];
            for (long n = 0; n < from.outputs; ++n)
                linear.scales[pass][output(n)] = linear.input[pass].scale * from.weight_scale[n];
        }
    } else if (linear.kind == Kind::bfloat16) {
        const auto* weight = static_cast<const std::uint16_t*>(from.weight);
        linear.groups = linear.inputs / 2;
        linear.halves.grow(linear.inputs * linear.outputs);
        for (long k = 0; k < from.inputs; ++k)
            for (long n = 0; n < from.outputs; ++n) {
                const long to = output(n), at = input(k);
                linear.halves[((to / PANEL * linear.groups + at / 2) * PANEL + to % PANEL) * 2 + at % 2] =
                    weight[k * from.outputs + n];
            }
    } else {
        const auto* weight = static_cast<const float*>(from.weight);
        linear.floats.grow(linear.inputs * linear.outputs);
        for (long k = 0; k < from.inputs; ++k)
            for (long n = 0; n < from.outputs; ++n) {
                const long to = output(n);
                linear.floats[(to / PANEL * linear.inputs + input(k)) * PANEL + to % PANEL] =
                    weight[k * from.outputs + n];
            }
    }
}

}  // namespace tritonrank
