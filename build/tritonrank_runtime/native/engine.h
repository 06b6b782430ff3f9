// A ranker in memory, its weights in panels, and what a run needs.
#pragma once

#include <cstdlib>
#include <memory>
#include <mutex>
#include <new>
#include <vector>

#include "api.h"
#include "kernels.h"

namespace tritonrank {

// Memory at the boundaries that vectors like; zero at first.
template <class T>
class Buffer {
   public:
    Buffer() = default;
    explicit Buffer(std::size_t size) { grow(size); }
    Buffer(Buffer&& other) noexcept : data_(other.data_), size_(other.size_) {
        other.data_ = nullptr;
        other.size_ = 0;
    }
    Buffer& operator=(Buffer&& other) noexcept {
        std::swap(data_, other.data_);
        std::swap(size_, other.size_);
        return *this;
    }
    ~Buffer() { std::free(data_); }

    // At least so large; what it held is lost.
    T* grow(std::size_t size);
    T* get() const { return data_; }
    T& operator[](std::size_t place) const { return data_[place]; }
    explicit operator bool() const { return data_ != nullptr; }

   private:
    T* data_ = nullptr;
    std::size_t size_ = 0;
};

template <class T>
T* Buffer<T>::grow(std::size_t size) {
    if (size <= size_) return data_;
    std::free(data_);
    data_ = nullptr;
    size_ = 0;
    void* found = nullptr;
    // One vector more: kernels may load a whole one at the last element.
    if (posix_memalign(&found, 64, (size + 64) * sizeof(T))) throw std::bad_alloc();
    data_ = static_cast<T*>(found);
    std::fill(data_, data_ + size + 64, T{});
    size_ = size;
    return data_;
}

enum class Kind : int { float32, int8, bfloat16 };
enum Pass { CONTEXT = 0, CANDIDATES = 1 };

// How a linear's input is quantized in one pass.
struct Quantization {
    bool is_used = false;
    float scale = 1, zero_point = 0;
    Buffer<float> multiplier;  // factor / scale, by input
    bool same_as(const Quantization& other, long inputs) const;
};

struct Linear {
    Kind kind = Kind::float32;
    long inputs = 0, outputs = 0;  // padded to panels
    long groups = 0;  // INT8: of 4 inputs; BF16: of 2
    Buffer<float> floats;
    Buffer<std::int8_t> steps;
    Buffer<std::uint16_t> halves;
    Buffer<float> bias;
    Quantization input[2];
    Buffer<std::int32_t> starts[2];
    Buffer<float> scales[2];
    Buffer<float> factor;
    bool rounds_residual = false;
    bool rounds_input = false;  // FP32 weights behind a quantized input

    const Quantization* rounding(Pass pass) const {
        return rounds_input && input[pass].is_used ? &input[pass] : nullptr;
    }
    // Whether what was made of another linear's input will do for this one, of the same rows.
    bool takes_input_of(const Linear& other, Pass pass) const;
};

// Columns of heads are padded to panels head by head: `spread` says where inputs or outputs go.
enum class Spread { none, inputs, outputs };

struct Layer {
    Linear query, key, value, attention_out, ffn_in, ffn_out;
    Buffer<float> norms[4];
    bool value_shares[2] = {}, query_shares[2] = {};  // the key's input
};

// The input of a linear, as its weights take it.
struct Input {
    const float* rows = nullptr;
    long stride = 0;
    Buffer<std::uint8_t> steps;
    Buffer<std::uint16_t> halves;
    Buffer<float> rounded;
    bool is_ready = false;  // whether `steps` or `halves` were written where `rows` were
};

// Everything that one run needs while it goes; kept between runs.
struct Scratch {
    Buffer<float> hidden, rows, attended, queries, keys, values, mixed, mixed_rows, inner, sums;
    Buffer<float> context_keys, context_values, turned, scores, inverses;
    Buffer<float> residual;
    Buffer<std::uint8_t> residual_steps;
    Input of_hidden, of_rows, of_mixed, of_attended, of_inner;
    std::vector<long> places;
};

// Rows of one block: a part of the run whose activations stay in the cache.
struct Block {
    long rows = 0, tokens = 0;
    const std::int64_t* starts = nullptr;  // of the whole run
    long first = 0;  // row of the run
    long start(long row) const { return starts[first + row] - starts[first]; }
    long length(long row) const { return starts[first + row + 1] - starts[first + row]; }
};

// Keys turned in panels [layer][head][panel][size][16], values [layer][head][token][size]; sizes padded.
struct Context {
    long tokens = 0, panels = 0;
    const float* keys = nullptr;
    const float* values = nullptr;
};

class Engine {
   public:
    Engine(const TritonrankModel& model, const Kernels& kernels);

    void context(const TritonrankRows& rows, float* keys, float* values);
    void score(const TritonrankRows& rows, const float* keys, const float* values, long tokens, float* logits);

   private:
    // model.cpp
    void load(Linear& linear, const TritonrankLinear& from, Spread spread);
    void load_layer(Layer& layer, const TritonrankLinear* linears, const float* const* norms);

    // inputs.cpp
    Narrow narrow(const Linear& linear, Pass pass, long count, Input& input) const;
    void prepare(const Linear& linear, Pass pass, long count, Input& input) const;
    void linear(const Linear& linear, Pass pass, long count, Input& input, Finish finish) const;
    const float* residual(const Linear& query, Pass pass, const float* rows, long count, Scratch& scratch) const;

    // layers.cpp
    void embed(const TritonrankRows& rows, const Block& block, Pass pass, Scratch& scratch) const;
    void project(const Layer& layer, Pass pass, const Block& block, bool with_queries, Scratch& scratch) const;
    void finish_layer(long number, Pass pass, const float* rows, long count, Scratch& scratch) const;
    void run_block(const TritonrankRows& rows, const Block& block, const Context& context, Scratch& scratch,
                   float* logits) const;

    // attention.cpp
    Context pack_context(const float* keys, const float* values, long tokens, Scratch& scratch) const;
    void attend(const Block& block, const Context& context, long layer, Pass pass, bool firsts_alone,
                Scratch& scratch) const;

    const Kernels& kernels_;
    TritonrankModel sizes_;
    long hidden_, embedding_, size_, width_, inner_;  // padded
    Buffer<float> embedding_norm_[2];
    Linear project_, pooler_, head_;
    bool has_project_ = false, has_pooler_ = false;
    std::vector<Layer> layers_;

    // Scratch of runs that have ended.
    class Loan;
    std::mutex lock_;
    std::vector<std::unique_ptr<Scratch>> free_;
};

}  // namespace tritonrank
