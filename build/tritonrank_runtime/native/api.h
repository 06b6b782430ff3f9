// What Python sees (library.py mirrors the structs field by field).
#pragma once

#include <cstdint>

extern "C" {

// One linear layer as weights.py describes it; what it does not have is null.
struct TritonrankLinear {
    const void* weight;  // (inputs, outputs); null: there is no such layer
    std::int32_t kind;  // 0 FP32, 1 INT8, 2 BF16
    std::int32_t inputs;
    std::int32_t outputs;
    std::int32_t rounds_residual;  // of a query: attention adds to its rounded input
    const float* bias;
    const float* weight_scale;
    const float* input_scale;  // (2); null: the input is not quantized
    const std::uint8_t* input_zero_point;  // (2)
    const float* input_factor;
};

struct TritonrankModel {
    std::int32_t layers, hidden_size, embedding_size, heads, head_size, intermediate_size;
    std::int32_t vocabulary, positions, segments, first_position, context_positions;
    std::int32_t activation, pooler_activation;
    float epsilon;
    // Tables stay where they are, as long as the model is open.
    const float* words;
    const float* position_table;
    const float* segment_table;
    const float* embedding_norm[2];  // weight, bias
    const float* const* norms;  // per layer: attention norm's weight and bias, FFN norm's weight and bias
    const TritonrankLinear* linears;  // per layer: query, key, value, attention_out, ffn_in, ffn_out
    TritonrankLinear project, pooler, head;
};

// Rows of tokens, one after the other without padding. All ids are in range: the caller has looked.
struct TritonrankRows {
    std::int64_t count;
    const std::int64_t* starts;  // (count + 1), the first 0
    const std::int32_t* ids;  // (tokens)
    const std::int32_t* types;  // (tokens); null: `type` for all
    std::int32_t type;
    std::int32_t position;  // of a row's first token, behind first_position
};

// Whether this processor runs a set of kernels: plain, avx2, avx512 or avx512_bf16. Null: the best that it runs.
const char* tritonrank_kernels(const char* name);

// Null where memory ran out or no kernels have that name here.
void* tritonrank_open(const TritonrankModel* model, const char* kernels);
void tritonrank_close(void* opened);

// Each returns 0, or 1 where memory ran out.
// keys, values: (layers, heads, tokens, head_size) of one row.
int tritonrank_context(void* opened, const TritonrankRows* rows, float* keys, float* values);
// keys, values: of the context that all rows attend to, or null. logits: (count).
int tritonrank_score(void* opened, const TritonrankRows* rows, const float* keys, const float* values,
                     std::int64_t context_tokens, float* logits);
}
