// Winograd's F(4, 3): 4 outputs of a filter with 3 taps, made of 6 products.
//
// Toom and Cook's transforms for the points 0, 5/8, -5/8, 3/2, -3/2 and infinity, which of all that were tried round
// least (0, 1, -1, 2, -2: twice the error).
#pragma once

#include "vectors.h"

// Outputs of a tile, in height and in width.
constexpr int64_t OUT = 4;

struct Plain {
    // In each direction: the pixels that a tile reads, how far on the next tile's begin, and the products.
    static constexpr int64_t WINDOW = 6, STEP = 4, SIDE = 6;

    // The points other than 0 and infinity: plus and minus NEAR, plus and minus FAR. All that is made of them is exact.
    static constexpr float NEAR = 0.625f, FAR = 1.5f;
    static constexpr float NEAR_2 = NEAR * NEAR, FAR_2 = FAR * FAR;

    // Which of the transformed inputs a product takes.
    static constexpr int64_t input_of(int64_t product) { return product; }

    // d: 6 values at `stride`, replaced by B^T d.
    static void transform_input(Vector* d, int64_t stride) {
        Vector d0 = d[0], d1 = d[stride], d2 = d[2 * stride], d3 = d[3 * stride], d4 = d[4 * stride];
        Vector d5 = d[5 * stride];
        Vector near_even = d4 - FAR_2 * d2, near_odd = d3 - FAR_2 * d1;
        Vector far_even = d4 - NEAR_2 * d2, far_odd = d3 - NEAR_2 * d1;
        d[0] = d4 - (NEAR_2 + FAR_2) * d2 + NEAR_2 * FAR_2 * d0;
        d[stride] = near_even + NEAR * near_odd;
        d[2 * stride] = near_even - NEAR * near_odd;
        d[3 * stride] = far_even + FAR * far_odd;
        d[4 * stride] = far_even - FAR * far_odd;
        d[5 * stride] = d5 - (NEAR_2 + FAR_2) * d3 + NEAR_2 * FAR_2 * d1;
    }

    // g: 3 taps, which become G g: for a point p, (1, p, p^2) over the product of its distances to the others.
    static void transform_weight(const Wide* g, Wide* to) {
        constexpr double near = NEAR, far = FAR, near_2 = near * near, far_2 = far * far, apart = 2 * (near_2 - far_2);
        Wide near_even = g[0] * (1 / (near_2 * apart)) + g[2] * (1 / apart), near_odd = g[1] * (1 / (near * apart));
        Wide far_even = g[0] * (-1 / (far_2 * apart)) + g[2] * (-1 / apart), far_odd = g[1] * (-1 / (far * apart));
        to[0] = g[0] * (1 / (near_2 * far_2));
        to[1] = near_even + near_odd;
        to[2] = near_even - near_odd;
        to[3] = far_even + far_odd;
        to[4] = far_even - far_odd;
        to[5] = g[2];
    }

    // m: 6 values at `stride`; the first 4 are replaced by A^T m.
    static void transform_output(Vector* m, int64_t stride) {
        Vector m1 = m[stride], m2 = m[2 * stride], m3 = m[3 * stride], m4 = m[4 * stride];
        Vector near_sum = m1 + m2, near_difference = m1 - m2, far_sum = m3 + m4, far_difference = m3 - m4;
        m[0] = m[0] + near_sum + far_sum;
        m[stride] = NEAR * near_difference + FAR * far_difference;
        m[2 * stride] = NEAR_2 * near_sum + FAR_2 * far_sum;
        m[3 * stride] = NEAR_2 * NEAR * near_difference + FAR_2 * FAR * far_difference + m[5 * stride];
    }
};
