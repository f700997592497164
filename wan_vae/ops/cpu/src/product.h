// The matrix product whose sums stay in registers.
#pragma once

#include <algorithm>

#include "vectors.h"

// Rows x PANEL sums, PANEL vectors of weights and one value of the input have to fit in the registers.
constexpr int PANEL = 2;
constexpr int ROWS = VECTOR_REGISTERS == 32 ? 12 : 6;
// The number of channels is rounded up to a multiple of this, and filled up with zeros.
constexpr int64_t UNROLLED = 4;
// Terms that are added one after the other; their sums are added then. The error grows with the root of either number.
constexpr int64_t TERMS = 192;

// Rows x Width vectors of products, summed over the taps and channels.
//
// a: row r of tap k begins at a + r * row_stride + k * tap_stride, `channels` (a multiple of UNROLLED) values each.
// b: taps * channels rows of Width vectors, one behind the other.
// product: rows of PANEL vectors.
template <int Rows, int Width>
void multiply(const float* a, int64_t row_stride, int64_t tap_stride, int64_t taps, int64_t channels, const float* b,
              float* product) {
    Vector sums[Rows][Width] = {};
    int64_t terms = 0;
    bool first = true;
    for (int64_t tap = 0; tap < taps; ++tap) {
        for (int64_t begin = 0; begin < channels; begin += TERMS) {
            const int64_t end = std::min(begin + TERMS, channels);
            for (int64_t c = begin; c < end; c += UNROLLED) {
#pragma GCC unroll 4
                for (int64_t step = 0; step < UNROLLED; ++step, b += Width * LANES) {
                    Vector panel[Width];
#pragma GCC unroll 4
                    for (int v = 0; v < Width; ++v) panel[v] = load(b + v * LANES);
#pragma GCC unroll 16
                    for (int r = 0; r < Rows; ++r) {
                        const Vector value = broadcast(a[r * row_stride + c + step]);
#pragma GCC unroll 4
                        for (int v = 0; v < Width; ++v) sums[r][v] += value * panel[v];
                    }
                }
            }
            terms += end - begin;
            if (terms < TERMS && !(tap + 1 == taps && end == channels)) continue;
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 4
                for (int v = 0; v < Width; ++v) {
                    float* to = product + (r * PANEL + v) * LANES;
                    store(to, first ? sums[r][v] : sums[r][v] + load(to));
                    sums[r][v] = Vector{};
                }
            }
            terms = 0;
            first = false;
        }
        a += tap_stride;
    }
}

template <int Rows, int Width>
void multiply_rest(int64_t rows, const float* a, int64_t row_stride, int64_t tap_stride, int64_t taps, int64_t channels,
                   const float* b, float* product) {
    if constexpr (Rows > 0) {
        if (rows == Rows) {
            multiply<Rows, Width>(a, row_stride, tap_stride, taps, channels, b, product);
        } else {
            multiply_rest<Rows - 1, Width>(rows, a, row_stride, tap_stride, taps, channels, b, product);
        }
    }
}

template <int Width>
void multiply_all(int64_t rows, const float* a, int64_t row_stride, int64_t tap_stride, int64_t taps, int64_t channels,
                  const float* b, float* product) {
    for (int64_t row = 0; row < rows; row += ROWS) {
        multiply_rest<ROWS, Width>(std::min<int64_t>(ROWS, rows - row), a + row * row_stride, row_stride, tap_stride,
                                   taps, channels, b, product + row * PANEL * LANES);
    }
}
