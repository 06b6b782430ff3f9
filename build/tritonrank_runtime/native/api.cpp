// The functions that Python calls, and which kernels this processor runs.
#include "api.h"

#include <cstring>

#include "engine.h"

namespace {

using tritonrank::Engine;
using tritonrank::Kernels;

struct Named {
    const char* name;
    const Kernels* kernels;
};

// The best first; null where the processor lacks something.
const Kernels* found(const char* name, const char** as) {
#ifdef TRITONRANK_X86
    // With VNNI, the product of eight-bit numbers; what came before it (Skylake) takes AVX2.
    const bool has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                            __builtin_cpu_supports("avx512vnni");
#endif
    const Named all[] = {
#ifdef TRITONRANK_X86
        {"avx512_bf16", has_avx512 && __builtin_cpu_supports("avx512bf16") ? &tritonrank::AVX512_BF16 : nullptr},
        {"avx512", has_avx512 ? &tritonrank::AVX512 : nullptr},
        {"avx2", __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &tritonrank::AVX2 : nullptr},
#endif
        {"plain", &tritonrank::PLAIN},
    };
    for (const Named& one : all)
        if (one.kernels && (!name || !std::strcmp(name, one.name))) {
            *as = one.name;
            return one.kernels;
        }
    return nullptr;
}

template <class Call>
int guarded(Call call) {
    try {
        call();
        return 0;
    } catch (const std::bad_alloc&) {
        return 1;
    }
}

}  // namespace

#define EXPORTED __attribute__((visibility("default")))

EXPORTED const char* tritonrank_kernels(const char* name) {
    const char* as = nullptr;
    found(name, &as);
    return as;
}

EXPORTED void* tritonrank_open(const TritonrankModel* model, const char* name) {
    const char* as = nullptr;
    const Kernels* kernels = found(name, &as);
    if (!kernels) return nullptr;
    try {
        return new Engine(*model, *kernels);
    } catch (const std::bad_alloc&) {
        return nullptr;
    }
}

EXPORTED void tritonrank_close(void* opened) { delete static_cast<Engine*>(opened); }

EXPORTED int tritonrank_context(void* opened, const TritonrankRows* rows, float* keys, float* values) {
    return guarded([&] { static_cast<Engine*>(opened)->context(*rows, keys, values); });
}

EXPORTED int tritonrank_score(void* opened, const TritonrankRows* rows, const float* keys, const float* values,
                              std::int64_t context_tokens, float* logits) {
    return guarded([&] { static_cast<Engine*>(opened)->score(*rows, keys, values, context_tokens, logits); });
}
