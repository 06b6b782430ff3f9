// The network: blocks of rows through all layers, one block after the other.
#include <algorithm>

#include "engine.h"

namespace tritonrank {

constexpr long BLOCK_TOKENS = 192;  // activations of so many stay in the second cache; a longer row is a block itself

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

// Word + position + segment, normalized, and projected where they are narrower; into `hidden`.
void Engine::embed(const TritonrankRows& rows, const Block& block, Pass pass, Scratch& scratch) const {
    const long size = sizes_.embedding_size;
    float* hidden = scratch.hidden.grow(block.tokens * hidden_);
    float* summed = has_project_ ? scratch.inner.grow(block.tokens * embedding_) : hidden;
    for (long row = 0; row < block.rows; ++row)
        for (long n = 0; n < block.length(row); ++n) {
            const long token = block.start(row) + n, place = block.starts[block.first] + token;
            const float* word = sizes_.words + rows.ids[place] * size;
            const float* position = sizes_.position_table + (sizes_.first_position + rows.position + n) * size;
            const long type = rows.types ? rows.types[place] : std::min(rows.type, sizes_.segments - 1);
            const float* segment = sizes_.segments ? sizes_.segment_table + type * size : nullptr;
            float* to = summed + token * embedding_;
            kernels_.add_rows(word, position, segment, size, to);
            std::fill(to + size, to + embedding_, 0.0f);
        }
    const Norm norm{embedding_norm_[0].get(), embedding_norm_[1].get(), size, sizes_.epsilon};
    Input& next = has_project_ ? scratch.of_inner : scratch.of_hidden;
    next.rows = summed;
    next.stride = embedding_;
    kernels_.normalize(summed, embedding_, block.tokens, norm, summed,
                       narrow(has_project_ ? project_ : layers_[0].key, pass, block.tokens, next));
    if (!has_project_) return;
    Finish finish;
    finish.out = hidden;
    finish.out_stride = hidden_;
    linear(project_, pass, block.tokens, next, finish);
    scratch.of_hidden.is_ready = false;
}

// Keys and values of all tokens, and their queries.
void Engine::project(const Layer& layer, Pass pass, const Block& block, bool with_queries, Scratch& scratch) const {
    Input& input = scratch.of_hidden;
    input.rows = scratch.hidden.get();
    input.stride = hidden_;
    Finish finish;
    finish.out_stride = width_;
    finish.out = scratch.keys.grow(block.tokens * width_);
    linear(layer.key, pass, block.tokens, input, finish);
    input.is_ready = layer.value_shares[pass];
    finish.out = scratch.values.grow(block.tokens * width_);
    linear(layer.value, pass, block.tokens, input, finish);
    if (!with_queries) return;
    input.is_ready = layer.query_shares[pass];
    finish.out = scratch.queries.grow(block.tokens * width_);
    linear(layer.query, pass, block.tokens, input, finish);
}

// What follows attention, whose result is in `of_mixed`: from `rows` to `hidden`, and to the next layer's input.
void Engine::finish_layer(long number, Pass pass, const float* rows, long count, Scratch& scratch) const {
    const Layer& layer = layers_[number];
    const long size = sizes_.hidden_size;
    float* sums = scratch.sums.grow(count * hidden_);
    float* attended = scratch.attended.grow(count * hidden_);
    Finish finish;
    finish.residual = rows;
    finish.residual_stride = hidden_;
    finish.out = sums;
    finish.out_stride = hidden_;
    linear(layer.attention_out, pass, count, scratch.of_mixed, finish);

    scratch.of_attended.rows = attended;
    scratch.of_attended.stride = hidden_;
    kernels_.normalize(sums, hidden_, count, {layer.norms[0].get(), layer.norms[1].get(), size, sizes_.epsilon}, attended,
                       narrow(layer.ffn_in, pass, count, scratch.of_attended));
    Finish widened;
    widened.activation = Activation(sizes_.activation);
    widened.narrow = narrow(layer.ffn_out, pass, count, scratch.of_inner);
    if (!widened.narrow) {
        scratch.of_inner.rows = widened.out = scratch.inner.grow(count * inner_);
        scratch.of_inner.stride = widened.out_stride = inner_;
    }
    linear(layer.ffn_in, pass, count, scratch.of_attended, widened);

    finish.residual = attended;
    linear(layer.ffn_out, pass, count, scratch.of_inner, finish);
    Narrow next;
    scratch.of_hidden.is_ready = false;
    if (number + 1 < sizes_.layers) next = narrow(layers_[number + 1].key, pass, count, scratch.of_hidden);
    kernels_.normalize(sums, hidden_, count, {layer.norms[2].get(), layer.norms[3].get(), size, sizes_.epsilon},
                       scratch.hidden.grow(count * hidden_), next);
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
        const bool is_last = n + 1 == sizes_.layers;
        project(layers_[n], CONTEXT, block, !is_last, scratch);
        for (long head = 0; head < sizes_.heads; ++head)
            for (long token = 0; token < tokens; ++token) {
                const long to = ((n * sizes_.heads + head) * tokens + token) * head_size;
                std::copy_n(scratch.keys.get() + token * width_ + head * size_, head_size, keys + to);
                std::copy_n(scratch.values.get() + token * width_ + head * size_, head_size, values + to);
            }
        if (is_last) break;
        attend(block, Context(), n, CONTEXT, false, scratch);
        const float* added_to = residual(layers_[n].query, CONTEXT, scratch.hidden.get(), tokens, scratch);
        finish_layer(n, CONTEXT, added_to, tokens, scratch);
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
        project(layer, CANDIDATES, block, !is_last, scratch);
        const float* asking = scratch.hidden.get();
        long count = block.tokens;
        if (is_last) {  // the score is made of the first tokens alone
            count = block.rows;
            float* firsts = scratch.rows.grow(count * hidden_);
            for (long row = 0; row < count; ++row)
                std::copy_n(asking + block.start(row) * hidden_, hidden_, firsts + row * hidden_);
            asking = scratch.of_rows.rows = firsts;
            scratch.of_rows.stride = hidden_;
            scratch.of_rows.is_ready = false;
            Finish finish;
            finish.out = scratch.queries.grow(count * width_);
            finish.out_stride = width_;
            linear(layer.query, CANDIDATES, count, scratch.of_rows, finish);
        }
        attend(block, context, n, CANDIDATES, is_last, scratch);
        finish_layer(n, CANDIDATES, residual(layer.query, CANDIDATES, asking, count, scratch), count, scratch);
    }
    Input& input = scratch.of_rows;
    input.rows = scratch.hidden.get();
    input.stride = hidden_;
    input.is_ready = false;
    if (has_pooler_) {
        Finish finish;
        finish.activation = Activation(sizes_.pooler_activation);
        finish.out = scratch.inner.grow(block.rows * pooler_.outputs);
        finish.out_stride = pooler_.outputs;
        linear(pooler_, CANDIDATES, block.rows, input, finish);
        input.rows = finish.out;
        input.stride = pooler_.outputs;
        input.is_ready = false;
    }
    Finish finish;
    finish.out = scratch.sums.grow(block.rows * PANEL);
    finish.out_stride = PANEL;
    linear(head_, CANDIDATES, block.rows, input, finish);
    for (long row = 0; row < block.rows; ++row) logits[row] = scratch.sums[row * PANEL];
}

}  // namespace tritonrank
