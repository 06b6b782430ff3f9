// Attention of packed rows: every token sees the context, where there is one, and its own row.
#include <algorithm>
#include <limits>

#include "engine.h"

namespace tritonrank {

constexpr long QUERIES = 48;  // at once: their scores and the keys of a head stay in the first cache

Context Engine::pack_context(const float* keys, const float* values, long tokens, Scratch& scratch) const {
    Context context;
    context.tokens = tokens;
    context.panels = (tokens + PANEL - 1) / PANEL;
    const long pairs = long(sizes_.layers) * sizes_.heads, head_size = sizes_.head_size;
    float* turned = scratch.context_keys.grow(pairs * context.panels * PANEL * size_);
    float* packed = scratch.context_values.grow(pairs * tokens * size_);
    std::vector<float> wide(size_ == head_size ? 0 : PANEL * size_);
    for (long pair = 0; pair < pairs; ++pair) {
        for (long panel = 0; panel < context.panels; ++panel) {
            const float* from = keys + (pair * tokens + panel * PANEL) * head_size;
            const long count = std::min(PANEL, tokens - panel * PANEL);
            if (!wide.empty()) {
                for (long key = 0; key < count; ++key)
                    std::copy_n(from + key * head_size, head_size, wide.data() + key * size_);
                from = wide.data();
            }
            kernels_.turn_keys(from, size_, count, size_, turned + (pair * context.panels + panel) * PANEL * size_);
        }
        for (long token = 0; token < tokens; ++token) {
            float* to = packed + (pair * tokens + token) * size_;
            std::copy_n(values + (pair * tokens + token) * head_size, head_size, to);
            std::fill(to + head_size, to + size_, 0.0f);
        }
    }
    context.keys = turned;
    context.values = packed;
    return context;
}

void Engine::attend(const Block& block, const Context& context, long layer, Pass pass, bool firsts_alone,
                    Scratch& scratch) const {
    const long queries = firsts_alone ? block.rows : block.tokens;
    const long own_start = context.panels * PANEL;
    // Where each row's keys begin in `turned`.
    scratch.places.resize(block.rows);
    long longest = 0, keys = 0;
    for (long row = 0; row < block.rows; ++row) {
        scratch.places[row] = keys * size_;
        keys += padded(block.length(row));
        longest = std::max(longest, block.length(row));
    }
    const long stride = own_start + padded(longest);
    float* scores = scratch.scores.grow(QUERIES * stride);
    float* inverses = scratch.inverses.grow(QUERIES);
    float* turned = scratch.turned.grow(keys * size_);
    float* mixed = scratch.mixed.grow(QUERIES * size_);
    const float nothing = -std::numeric_limits<float>::infinity();
    const Linear& next = layers_[layer].attention_out;
    Narrow narrowed = narrow(next, pass, queries, scratch.of_mixed);
    if (!narrowed) scratch.of_mixed.rows = scratch.mixed_rows.grow(queries * width_);
    scratch.of_mixed.stride = width_;

    for (long head = 0; head < sizes_.heads; ++head) {
        const long column = head * size_, pair = layer * sizes_.heads + head;
        const float* context_keys = context.keys + pair * context.panels * PANEL * size_;
        const float* context_values = context.values + pair * context.tokens * size_;
        for (long row = 0; row < block.rows; ++row)
            for (long key = 0; key < block.length(row); key += PANEL)
                kernels_.turn_keys(scratch.keys.get() + (block.start(row) + key) * width_ + column, width_,
                                   std::min(PANEL, block.length(row) - key), size_,
                                   turned + scratch.places[row] + key * size_);
        long row = 0;
        for (long first = 0; first < queries; first += QUERIES) {
            const long count = std::min(QUERIES, queries - first);
            const float* query = scratch.queries.get() + first * width_ + column;
            if (context.tokens) {
                kernels_.multiply(query, width_, count, context_keys, PANEL * size_, PANEL, size_, own_start, scores,
                                  stride, false);
                for (long q = 0; q < count; ++q)
                    std::fill(scores + q * stride + context.tokens, scores + q * stride + own_start, nothing);
            }
            // Calls `part` with the rows whose queries are among these; a row may begin before and end after them.
            const auto each_row = [&](auto part) {
                long of = row;
                for (long at = 0; at < count;) {
                    const auto end_of = [&](long one) { return firsts_alone ? one + 1 : block.start(one + 1); };
                    while (end_of(of) <= first + at) ++of;
                    const long few = std::min(count, end_of(of) - first) - at;
                    part(of, at, few, scores + at * stride + own_start);
                    at += few;
                }
                return of;
            };
            each_row([&](long of, long at, long few, float* own) {
                const long length = block.length(of);
                kernels_.multiply(query + at * width_, width_, few, turned + scratch.places[of], PANEL * size_, PANEL,
                                  size_, padded(length), own, stride, false);
                for (long q = 0; q < few; ++q)
                    std::fill(own + q * stride + length, own + q * stride + padded(length), nothing);
                kernels_.exponentials(scores + at * stride, stride, few, own_start + padded(length), inverses + at);
            });
            if (context.tokens)
                kernels_.multiply(scores, stride, count, context_values, PANEL, size_, context.tokens, size_, mixed,
                                  size_, false);
            row = each_row([&](long of, long at, long few, float* own) {
                kernels_.multiply(own, stride, few, scratch.values.get() + block.start(of) * width_ + column, PANEL,
                                  width_, block.length(of), size_, mixed + at * size_, size_, context.tokens > 0);
            });
            Narrow part = narrowed;
            if (part.steps) part.steps += first * width_ + column;
            if (part.halves) part.halves += first * width_ + column;
            if (part.multiplier) part.multiplier += column;
            float* out = part ? nullptr : scratch.mixed_rows.get() + first * width_ + column;
            kernels_.scale_rows(mixed, size_, count, size_, inverses, out, width_, part);
        }
    }
}

}  // namespace tritonrank
