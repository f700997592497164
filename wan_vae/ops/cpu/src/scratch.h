// Scratch memory that a thread keeps between calls: fresh pages cost more than a small convolution.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "vectors.h"

struct Scratch {
    void* data = nullptr;
    int64_t size = 0;

    ~Scratch() { std::free(data); }

    void* at_least(int64_t bytes) {
        if (bytes > size) {
            std::free(data);
            size = 0;
            data = std::aligned_alloc(64, rounded_up(bytes, 64));
            if (data != nullptr) size = bytes;
        }
        return data;
    }
};

// Returns uninitialized memory, aligned to a cache line, or null if memory ran out.
template <class Value>
Value* scratch_of_thread(int64_t values) {
    static thread_local Scratch scratch;
    return static_cast<Value*>(scratch.at_least(values * static_cast<int64_t>(sizeof(Value))));
}
