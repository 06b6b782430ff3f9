// The network: blocks of rows through all layers, one block after the other.
#include <algorithm>
#include <cmath>

#include "engine.h"

namespace tritonrank {

constexpr long BLOCK_TOKENS = 128;  // activations of so many stay in the second cache; a longer row is a block itself

class Engine::Loan {
   public:
    explicit Loan(Engine& engine) : engine_(engine) {
        const std::lock_guard<std::mutex> guard(engine.lock_);
        if (engine.free_.empty()) {
            scratch_ = std::make_unique<Scratch>();
        } else {
            scratch_ = std::move(engine.free_.back());
            engine.free_.pop_back();
        }
    }
    ~Loan() {
        const std::lock_guard<std::mutex> guard(engine_.lock_);
        try {
            engine_.free_.push_back(std::move(scratch_));
        } catch (const std::bad_alloc&) {  // then it is not kept
        }
    }
    Scratch& scratch() { return *scratch_; }

   private:
    Engine& engine_;
    std::unique_ptr<Scratch> scratch_;
};

// The input of a linear in the form that its weights need, in `steps`, `halves` or `rounded`.
void Engine::prepare(const Linear& linear, Pass pass, const float* rows, long stride, long count,
                     Scratch& scratch) const {
    const Quantization& input = linear.input[pass];
    if (linear.kind == Kind::int8) {
        std::uint8_t* steps = scratch.steps.grow(count * linear.inputs);
        kernels_.quantize(rows, stride, count, linear.inputs, input.multiplier.get(), input.zero_point, steps,
                          linear.inputs);
        return;
    }
    if (linear.rounds_input && input.is_used) {
        std::uint8_t* steps = scratch.steps.grow(count * linear.inputs);
        kernels_.quantize(rows, stride, count, linear.inputs, input.multiplier.get(), input.zero_point, steps,
                          linear.inputs);
        float* rounded = scratch.rounded.grow(count * linear.inputs);
        for (long i = 0; i < count * linear.inputs; ++i) rounded[i] = (float(steps[i]) - input.zero_point) * input.scale;
        rows = rounded;
        stride = linear.inputs;
    }
    if (linear.kind == Kind::bfloat16)
        kernels_.to_bfloat16(rows, stride, count, linear.inputs, scratch.halves.grow(count * linear.inputs),
                             linear.inputs);
}

// As `linear`, of an input that is prepared.
void Engine::product(const Linear& linear, Pass pass, const float* rows, long stride, long count, const Finish& finish,
                     Scratch& scratch) const {
    if (linear.kind == Kind::int8)
        return kernels_.product_int8(scratch.steps.get(), linear.inputs, count, linear.steps.get(),
                                     linear.starts[pass].get(), linear.scales[pass].get(), linear.groups,
                                     linear.outputs, finish);
    if (linear.kind == Kind::bfloat16)
        return kernels_.product_bfloat16(scratch.halves.get(), linear.inputs, count, linear.halves.get(), linear.groups,
                                         linear.outputs, finish);
    if (linear.rounds_input && linear.input[pass].is_used) {
        rows = scratch.rounded.get();
        stride = linear.inputs;
    }
    kernels_.product_float(rows, stride, count, linear.floats.get(), linear.inputs * PANEL, PANEL, linear.inputs,
                           linear.outputs, finish);
}

void Engine::linear(const Linear& linear, Pass pass, const float* rows, long stride, long count, Finish finish,
                    Scratch& scratch) const {
    finish.bias = linear.bias.get();
    prepare(linear, pass, rows, stride, count, scratch);
    product(linear, pass, rows, stride, count, finish, scratch);
}

// Word + position + segment, normalized, and projected where they are narrower; into `hidden`. Returns its tokens.
long Engine::embed(const TritonrankRows& rows, const Block& block, Pass pass, Scratch& scratch) const {
    const long size = sizes_.embedding_size;
    float* summed = scratch.hidden.grow(block.tokens * std::max(hidden_, embedding_));
    for (long row = 0; row < block.rows; ++row)
        for (long n = 0; n < block.length(row); ++n) {
            const long token = block.start(row) + n, place = block.starts[block.first] + token;
            const float* word = sizes_.words + rows.ids[place] * size;
            const float* position = sizes_.position_table + (sizes_.first_position + rows.position + n) * size;
            float* to = summed + token * embedding_;
            for (long i = 0; i < size; ++i) to[i] = word[i] + position[i];
            if (sizes_.segments) {
                const long type = rows.types ? rows.types[place] : std::min(rows.type, sizes_.segments - 1);
                const float* segment = sizes_.segment_table + type * size;
                for (long i = 0; i < size; ++i) to[i] += segment[i];
            }
            std::fill(to + size, to + embedding_, 0.0f);
        }
    const Norm norm{embedding_norm_[0].get(), embedding_norm_[1].get(), size, sizes_.epsilon};
    kernels_.normalize(summed, embedding_, block.tokens, norm, summed);
    if (has_project_) {
        float* projected = scratch.sums.grow(block.tokens * hidden_);
        Finish finish;
        finish.out = projected;
        finish.out_stride = hidden_;
        linear(project_, pass, summed, embedding_, block.tokens, finish, scratch);
        std::copy_n(projected, block.tokens * hidden_, summed);
    }
    return block.tokens;
}

// What attention adds to: the rows that its queries are made of, or these as their quantization leaves them.
const float* Engine::residual(const Linear& query, Pass pass, const float* rows, long count, Scratch& scratch) const {
    const Quantization& input = query.input[pass];
    if (!query.rounds_residual || !input.is_used) return rows;
    std::uint8_t* steps = scratch.steps.grow(count * hidden_);
    kernels_.quantize(rows, hidden_, count, hidden_, input.multiplier.get(), input.zero_point, steps, hidden_);
    float* rounded = scratch.residual.grow(count * hidden_);
    for (long i = 0; i < count * hidden_; ++i) rounded[i] = (float(steps[i]) - input.zero_point) * input.scale;
    return rounded;
}

// What follows attention, whose result is in `mixed`: from `rows` to `hidden`.
void Engine::finish_layer(const Layer& layer, Pass pass, const float* rows, long count, Scratch& scratch) const {
    float* sums = scratch.sums.grow(count * hidden_);
    float* attended = scratch.attended.grow(count * hidden_);
    float* inner = scratch.inner.grow(count * inner_);
    Finish finish;
    finish.residual = rows;
    finish.residual_stride = hidden_;
    finish.out = sums;
    finish.out_stride = hidden_;
    linear(layer.attention_out, pass, scratch.mixed.get(), width_, count, finish, scratch);
    const long size = sizes_.hidden_size;
    kernels_.normalize(sums, hidden_, count, {layer.norms[0].get(), layer.norms[1].get(), size, sizes_.epsilon}, attended);
    finish = Finish();
    finish.activation = Activation(sizes_.activation);
    finish.out = inner;
    finish.out_stride = inner_;
    linear(layer.ffn_in, pass, attended, hidden_, count, finish, scratch);
    finish = Finish();
    finish.residual = attended;
    finish.residual_stride = hidden_;
    finish.out = sums;
    finish.out_stride = hidden_;
    linear(layer.ffn_out, pass, inner, inner_, count, finish, scratch);
    kernels_.normalize(sums, hidden_, count, {layer.norms[2].get(), layer.norms[3].get(), size, sizes_.epsilon},
                       scratch.hidden.grow(count * hidden_));
}

void Engine::context(const TritonrankRows& rows, float* keys, float* values) {
    Loan loan(*this);
    Scratch& scratch = loan.scratch();
    Block block;
    block.rows = 1;
    block.starts = rows.starts;
    const long tokens = block.tokens = rows.starts[1], head_size = sizes_.head_size;
    embed(rows, block, CONTEXT, scratch);
    for (long n = 0; n < sizes_.layers; ++n) {
        const Layer& layer = layers_[n];
        const float* hidden = scratch.hidden.get();
        Finish finish;
        finish.out_stride = width_;
        finish.out = scratch.keys.grow(tokens * width_);
        linear(layer.key, CONTEXT, hidden, hidden_, tokens, finish, scratch);
        finish.out = scratch.values.grow(tokens * width_);
        linear(layer.value, CONTEXT, hidden, hidden_, tokens, finish, scratch);
        for (long head = 0; head < sizes_.heads; ++head)
            for (long token = 0; token < tokens; ++token) {
                const long to = ((n * sizes_.heads + head) * tokens + token) * head_size;
                std::copy_n(scratch.keys.get() + token * width_ + head * size_, head_size, keys + to);
                std::copy_n(scratch.values.get() + token * width_ + head * size_, head_size, values + to);
            }
        if (n + 1 == sizes_.layers) break;
        finish.out = scratch.queries.grow(tokens * width_);
        linear(layer.query, CONTEXT, hidden, hidden_, tokens, finish, scratch);
        scratch.mixed.grow(tokens * width_);
        attend(block, Context(), n, false, scratch);
        finish_layer(layer, CONTEXT, residual(layer.query, CONTEXT, hidden, tokens, scratch), tokens, scratch);
    }
}

void Engine::score(const TritonrankRows& rows, const float* keys, const float* values, long tokens, float* logits) {
    Loan loan(*this);
    Scratch& scratch = loan.scratch();
    const Context context = tokens ? pack_context(keys, values, tokens, scratch) : Context();
    Block block;
    block.starts = rows.starts;
    while (block.first < rows.count) {
        block.rows = 1;
        const auto tokens_of = [&](long count) { return rows.starts[block.first + count] - rows.starts[block.first]; };
        while (block.first + block.rows < rows.count && tokens_of(block.rows + 1) <= BLOCK_TOKENS) ++block.rows;
        block.tokens = tokens_of(block.rows);
        run_block(rows, block, context, scratch, logits + block.first);
        block.first += block.rows;
    }
}

void Engine::run_block(const TritonrankRows& rows, const Block& block, const Context& context, Scratch& scratch,
                       float* logits) const {
    embed(rows, block, CANDIDATES, scratch);
    for (long n = 0; n < sizes_.layers; ++n) {
        const Layer& layer = layers_[n];
        const bool is_last = n + 1 == sizes_.layers;
        const float* hidden = scratch.hidden.get();
        Finish finish;
        finish.out_stride = width_;
        finish.out = scratch.keys.grow(block.tokens * width_);
        linear(layer.key, CANDIDATES, hidden, hidden_, block.tokens, finish, scratch);
        finish.out = scratch.values.grow(block.tokens * width_);
        linear(layer.value, CANDIDATES, hidden, hidden_, block.tokens, finish, scratch);
        const float* asking = hidden;
        if (is_last) {  // the score is made of the first tokens alone
            float* firsts = scratch.rows.grow(block.rows * hidden_);
            for (long row = 0; row < block.rows; ++row)
                std::copy_n(hidden + block.start(row) * hidden_, hidden_, firsts + row * hidden_);
            asking = firsts;
        }
        const long count = is_last ? block.rows : block.tokens;
        finish.out = scratch.queries.grow(count * width_);
        linear(layer.query, CANDIDATES, asking, hidden_, count, finish, scratch);
        scratch.mixed.grow(count * width_);
        attend(block, context, n, is_last, scratch);
        finish_layer(layer, CANDIDATES, residual(layer.query, CANDIDATES, asking, count, scratch), count, scratch);
    }
    const float* firsts = scratch.hidden.get();
    const Linear* last = &head_;
    if (has_pooler_) {
        Finish finish;
        finish.activation = Activation(sizes_.pooler_activation);
        finish.out = scratch.inner.grow(block.rows * pooler_.outputs);
        finish.out_stride = pooler_.outputs;
        linear(pooler_, CANDIDATES, firsts, hidden_, block.rows, finish, scratch);
        firsts = finish.out;
    }
    Finish finish;
    finish.out = scratch.sums.grow(block.rows * PANEL);
    finish.out_stride = PANEL;
    linear(*last, CANDIDATES, firsts, last->inputs, block.rows, finish, scratch);
    for (long row = 0; row < block.rows; ++row) logits[row] = scratch.sums[row * PANEL];
}

}  // namespace tritonrank
