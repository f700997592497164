// Tensors in memory, as the convolutions take them. Strides are in values; the channels of a pixel are contiguous.
#pragma once

#include <cstdint>

// (B, C, T, H, W). data may be null.
template <class Value>
struct Image {
    Value* data;
    int64_t batch_stride, frame_stride, row_stride, pixel_stride;
};

// strides: five, of B, C, T, H and W.
template <class Value>
Image<Value> make_image(Value* data, const int64_t* strides) {
    return {data, strides[0], strides[2], strides[3], strides[4]};
}

// The addresses of the frames of all clips, one clip after the other. Null stands for a frame of zeros; those come
// first in a clip.
template <class Value>
struct Frames {
    const Value* const* data;
    int64_t row_stride, pixel_stride;
};

// A weight's (C_out, C_in, taps, rows, columns).
struct WeightStrides {
    int64_t output, input, tap, row, column;
};

inline WeightStrides make_weight_strides(const int64_t* s) { return {s[0], s[1], s[2], s[3], s[4]}; }
