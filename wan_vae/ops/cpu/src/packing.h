// The weights of a convolution, transformed and laid out in the order in which product.h reads them.
#pragma once

#include <algorithm>

#include "product.h"
#include "tensors.h"
#include "vectors.h"

// points: for each of SIDE^2 points, panels of PANEL vectors of outputs (the last may be one vector), each with a row
// for every tap and channel. The arithmetic is in float64, rounded once.
template <class Scheme, class Value>
struct Packing {
    static constexpr int64_t SIDE = Scheme::SIDE;
    // Channels packed at a time: their transformed taps stay in the first-level cache.
    static constexpr int64_t CHANNELS = 16;

    const Value* weight;
    WeightStrides strides;
    int64_t in_channels, out_channels, taps;
    float* points;

    int64_t channels() const { return rounded_up(in_channels, UNROLLED); }
    int64_t out_vectors() const { return rounded_up(out_channels, LANES) / LANES; }
    int64_t point_stride() const { return out_vectors() * LANES * taps * channels() + GAP; }
    int64_t size() const { return SIDE * SIDE * point_stride(); }

    int64_t pieces() const { return chunks() * rounded_up(out_vectors(), PANEL) / PANEL; }

    void pack(int64_t piece) const {
        const int64_t first = piece / chunks() * PANEL, begin = piece % chunks() * CHANNELS;
        const int64_t vectors = std::min<int64_t>(PANEL, out_vectors() - first);
        const int64_t count = std::min(CHANNELS, channels() - begin);
        const int64_t depth = taps * channels();
        alignas(VECTOR_BYTES) float across[CHANNELS][9][LANES];
        for (int64_t tap = 0; tap < taps; ++tap) {
            float* rows = points + (first * depth + (tap * channels() + begin) * vectors) * LANES;
            for (int64_t v = 0; v < vectors; ++v) {
                transpose((first + v) * LANES, begin, tap, across);
                for (int64_t c = 0; c < count; ++c) transform(across[c], rows + (c * vectors + v) * LANES);
            }
        }
    }

   private:
    int64_t chunks() const { return rounded_up(in_channels, CHANNELS) / CHANNELS; }

    void transpose(int64_t output, int64_t begin, int64_t tap, float (*across)[9][LANES]) const {
        const int64_t outputs = std::min(LANES, out_channels - output);
        const int64_t inputs = std::min(CHANNELS, in_channels - begin);
        if (outputs < LANES || inputs < CHANNELS) std::fill_n(across[0][0], CHANNELS * 9 * LANES, 0.0f);
        for (int64_t lane = 0; lane < outputs; ++lane) {
            const Value* from = weight + (output + lane) * strides.output + begin * strides.input + tap * strides.tap;
            for (int64_t c = 0; c < inputs; ++c) {
                for (int64_t h = 0; h < 3; ++h) {
                    for (int64_t w = 0; w < 3; ++w) {
                        across[c][h * 3 + w][lane] =
                            to_float(from[c * strides.input + h * strides.row + w * strides.column]);
                    }
                }
            }
        }
    }

    // across: the 9 taps of LANES outputs.
    void transform(const float (*across)[LANES], float* to) const {
        alignas(VECTOR_BYTES) float packed[SIDE * SIDE][LANES];
        for (int64_t half = 0; half < LANES; half += LANES / 2) {
            Wide rows[3][SIDE];
            for (int64_t w = 0; w < 3; ++w) {
                const Wide column[3] = {widen(across[w] + half), widen(across[3 + w] + half),
                                        widen(across[6 + w] + half)};
                Wide values[SIDE];
                Scheme::transform_weight(column, values);
                for (int64_t i = 0; i < SIDE; ++i) rows[w][i] = values[i];
            }
            for (int64_t i = 0; i < SIDE; ++i) {
                const Wide row[3] = {rows[0][i], rows[1][i], rows[2][i]};
                Wide values[SIDE];
                Scheme::transform_weight(row, values);
                for (int64_t j = 0; j < SIDE; ++j) narrow(packed[i * SIDE + j] + half, values[j]);
            }
        }
        for (int64_t p = 0; p < SIDE * SIDE; ++p) stream(to + p * point_stride(), load(packed[p]));
    }
};
