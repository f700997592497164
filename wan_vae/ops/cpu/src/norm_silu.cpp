// silu(x * rsqrt(max(sum of squares over the channels, 1e-24)) * scale), in one pass over memory.
#include <cmath>

#include "vectors.h"

namespace {

// The square of `MIN_NORM` in wan_vae/ops/__init__.py.
constexpr float SMALLEST = 1e-24f;

template <class Value>
Vector silu(Vector x) {
    return x / (exponential(-x) + 1.0f);
}

#if defined(__AVX512DQ__)
// Within 2^-18, a five-hundredth of the error of rounding the result to bfloat16. A division alone would take as long
// as all of this.
template <>
Vector silu<BFloat16>(Vector x) {
    // If one is NaN, min returns its second argument. Up to this bound, the power and its inverse are normal numbers.
    const Vector t = _mm512_min_ps(broadcast(125.0f), x * -1.44269504f);
    const Vector part = _mm512_reduce_ps(t, _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC);
    Vector power = part * 0.01353417057543993f + 0.05201146379113197f;
    power = power * part + 0.2414427548646927f;
    power = power * part + 0.6930038332939148f;
    power = power * part + 1.0000026226043701f;
    const Vector divisor = _mm512_scalef_ps(power, t) + 1.0f;
    const Vector inverse = _mm512_rcp14_ps(divisor);
    return x * inverse * (2.0f - divisor * inverse);
}
#endif

template <class Value>
void norm_silu_pixel(const Value* x, const float* scale, Value* out, int64_t channels) {
    const int64_t whole = channels / LANES * LANES, rest = channels - whole;
    Vector even = {}, odd = {};
    int64_t c = 0;
    for (; c + 2 * LANES <= channels; c += 2 * LANES) {
        Vector first = load(x + c), second = load(x + c + LANES);
        even += first * first;
        odd += second * second;
    }
    if (c < whole) {
        Vector last = load(x + c);
        even += last * last;
    }
    if (rest > 0) {
        Vector last = load_first(x + whole, rest);
        odd += last * last;
    }
    float squares = sum_of_lanes(even + odd);
    // In this order of the comparison, a NaN stays NaN.
    squares = squares < SMALLEST ? SMALLEST : squares;
    const float inverse = 1.0f / std::sqrt(squares);
    for (c = 0; c < whole; c += LANES) {
        Vector y = load(x + c) * inverse * load(scale + c);
        store(out + c, silu<Value>(y));
    }
    if (rest > 0) {
        Vector y = load_first(x + whole, rest) * inverse * load_first(scale + whole, rest);
        store_first(out + whole, silu<Value>(y), rest);
    }
}

template <class Value>
void norm_silu(const Value* x, const float* scale, Value* out, const int64_t* sizes, const int64_t* x_strides,
               const int64_t* out_strides, int threads) {
    const int64_t batch = sizes[0], channels = sizes[1], frames = sizes[2], height = sizes[3], width = sizes[4];
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t row = 0; row < batch * frames * height; ++row) {
        const int64_t place[3] = {row / height / frames, row / height % frames, row % height};
        const Value* from = x + place[0] * x_strides[0] + place[1] * x_strides[2] + place[2] * x_strides[3];
        Value* to = out + place[0] * out_strides[0] + place[1] * out_strides[2] + place[2] * out_strides[3];
        for (int64_t w = 0; w < width; ++w) {
            norm_silu_pixel(from + w * x_strides[4], scale, to + w * out_strides[4], channels);
        }
    }
}

}  // namespace

// sizes and strides: five each, for (B, C, T, H, W), in values; the stride of C is taken to be 1.
extern "C" void wan_vae_norm_silu_float32(const float* x, const float* scale, float* out, const int64_t* sizes,
                                          const int64_t* x_strides, const int64_t* out_strides, int threads) {
    norm_silu(x, scale, out, sizes, x_strides, out_strides, threads);
}

extern "C" void wan_vae_norm_silu_bfloat16(const BFloat16* x, const float* scale, BFloat16* out, const int64_t* sizes,
                                           const int64_t* x_strides, const int64_t* out_strides, int threads) {
    norm_silu(x, scale, out, sizes, x_strides, out_strides, threads);
}
