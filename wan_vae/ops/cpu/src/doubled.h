// 4 outputs of a filter with 3 taps over pixels that come in equal pairs, made of 5 products.
//
// Such outputs lie over a, b, b, c, c, d. With g the taps, G their sum and b - c common to two of the products,
//
//   y0 = g0 a + (g1 + g2) b = g0 (a - c) + (sum - difference + middle)
//   y1 = (g0 + g1) b + g2 c =               sum + difference + middle
//   y2 = g0 b + (g1 + g2) c =               sum + difference - middle
//   y3 = (g0 + g1) c + g2 d = g2 (d - b) + (sum - difference - middle)
//
// where sum = G (b + c) / 2, difference = (g0 - g2) (b - c) / 2 and middle = g1 (b - c) / 2. There are only four
// different inputs, and all factors are 1, -1 and 1/2: rounding is that of the direct way.
#pragma once

#include "vectors.h"

struct Doubled {
    // As in transforms.h.
    static constexpr int64_t WINDOW = 4, STEP = 2, SIDE = 5;

    static constexpr int64_t input_of(int64_t product) { return product < 2 ? product : product - 1; }

    static void transform_input(Vector* d, int64_t stride) {
        Vector a = d[0], b = d[stride], c = d[2 * stride];
        d[0] = a - c;
        d[stride] = b - c;
        d[2 * stride] = b + c;
        d[3 * stride] = d[3 * stride] - b;
    }

    static void transform_weight(const Wide* g, Wide* to) {
        to[0] = g[0];
        to[1] = (g[0] - g[2]) * 0.5;
        to[2] = g[1] * 0.5;
        to[3] = (g[0] + g[1] + g[2]) * 0.5;
        to[4] = g[2];
    }

    static void transform_output(Vector* m, int64_t stride) {
        Vector difference = m[stride], middle = m[2 * stride], sum = m[3 * stride];
        Vector outer = sum - difference, inner = sum + difference;
        m[0] = m[0] + (outer + middle);
        m[stride] = inner + middle;
        m[2 * stride] = inner - middle;
        m[3 * stride] = m[4 * stride] + (outer - middle);
    }
};
