// Vectors of the target's width, by the vector extensions of GCC and Clang: one source for AVX-512, AVX2 and NEON.
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VECTOR_BYTES 64
#define VECTOR_REGISTERS 32
#elif defined(__AVX__)
#define VECTOR_BYTES 32
#define VECTOR_REGISTERS 16
#elif defined(__aarch64__)
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 32
#else
#define VECTOR_BYTES 16
#define VECTOR_REGISTERS 16
#endif

using Vector = float __attribute__((vector_size(VECTOR_BYTES)));
using Bits = uint32_t __attribute__((vector_size(VECTOR_BYTES)));
using HalfBits = uint16_t __attribute__((vector_size(VECTOR_BYTES / 2)));
using Half = float __attribute__((vector_size(VECTOR_BYTES / 2)));
using Wide = double __attribute__((vector_size(VECTOR_BYTES)));

constexpr int64_t LANES = VECTOR_BYTES / 4;
// Values between the data of consecutive points. A whole number of pages between all 36 would map them to the same
// cache sets.
constexpr int64_t GAP = 16;

struct BFloat16 {
    uint16_t bits;
};

constexpr int64_t rounded_up(int64_t value, int64_t unit) { return (value + unit - 1) / unit * unit; }

inline float to_float(float value) { return value; }

inline float to_float(BFloat16 value) {
    const uint32_t bits = uint32_t{value.bits} << 16;
    float result;
    std::memcpy(&result, &bits, sizeof result);
    return result;
}

inline Vector broadcast(float value) { return value - Vector{}; }

inline Vector load(const float* from) {
    Vector value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

inline void store(float* to, Vector value) { std::memcpy(to, &value, sizeof value); }

// Stores past the caches, to memory that is not read soon; `to` is aligned to the vector's size. Call `flush_streams`
// before another thread reads it.
inline void stream(float* to, Vector value) {
#if defined(__AVX512F__)
    _mm512_stream_ps(to, value);
#elif defined(__AVX__)
    _mm256_stream_ps(to, value);
#else
    store(to, value);
#endif
}

inline void flush_streams() {
#if defined(__AVX__)
    _mm_sfence();
#endif
}

inline Vector from_bfloat16(HalfBits half) {
#if defined(__AVX512F__)
    // GCC would convert the two halves one by one.
    return (Vector)((Bits)_mm512_cvtepu16_epi32((__m256i)half) << 16);
#else
    return (Vector)(__builtin_convertvector(half, Bits) << 16);
#endif
}

inline Vector load(const BFloat16* from) {
    HalfBits half;
    std::memcpy(&half, from, sizeof half);
    return from_bfloat16(half);
}

// Rounds to the nearest, ties to even; NaN stays NaN.
inline void store(BFloat16* to, Vector value) {
#if defined(__AVX512BF16__)
    // This flushes values below the smallest normal number, 2^-126, to zero.
    const auto half = _mm512_cvtneps_pbh(value);
#else
    Bits bits = (Bits)value;
    Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN whose mantissa is all ones would overflow into zero.
    Bits kept = (Bits)(value == value);
    const auto half = __builtin_convertvector((rounded & kept) | (0x7fc0 & ~kept), HalfBits);
#endif
    std::memcpy(to, &half, sizeof half);
}

// LANES / 2 values.
inline Wide widen(const float* from) {
    Half half;
    std::memcpy(&half, from, sizeof half);
    return __builtin_convertvector(half, Wide);
}

inline void narrow(float* to, Wide value) {
    Half half = __builtin_convertvector(value, Half);
    std::memcpy(to, &half, sizeof half);
}

// The first `count` lanes, zeros after them.
template <class Value>
inline Vector load_first(const Value* from, int64_t count) {
    alignas(VECTOR_BYTES) Value values[LANES] = {};
    for (int64_t lane = 0; lane < count; ++lane) values[lane] = from[lane];
    return load(values);
}

template <class Value>
inline void store_first(Value* to, Vector value, int64_t count) {
    alignas(VECTOR_BYTES) Value values[LANES];
    store(values, value);
    for (int64_t lane = 0; lane < count; ++lane) to[lane] = values[lane];
}

#if defined(__AVX512F__)
template <>
inline Vector load_first(const float* from, int64_t count) {
    return _mm512_maskz_loadu_ps(static_cast<__mmask16>((1 << count) - 1), from);
}

template <>
inline void store_first(float* to, Vector value, int64_t count) {
    _mm512_mask_storeu_ps(to, static_cast<__mmask16>((1 << count) - 1), value);
}
#endif

#if defined(__AVX512BW__) && defined(__AVX512VL__)
template <>
inline Vector load_first(const BFloat16* from, int64_t count) {
    return from_bfloat16((HalfBits)_mm256_maskz_loadu_epi16(static_cast<__mmask16>((1 << count) - 1), from));
}
#endif

inline float sum_of_lanes(Vector value) {
    using Quarter = float __attribute__((vector_size(16)));
    Quarter parts[LANES / 4];
    std::memcpy(parts, &value, sizeof parts);
    Quarter sum = parts[0];
    for (int64_t part = 1; part < LANES / 4; ++part) sum += parts[part];
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

// e to the power of every lane, within 1 unit in the last place; 0 and infinity outside of float32's range, NaN for
// NaN.
inline Vector exponential(Vector x) {
#if defined(__AVX512F__)
    // If one is NaN, these return their second argument.
    x = _mm512_min_ps(broadcast(89.0f), _mm512_max_ps(broadcast(-104.0f), x));
    const Vector whole = _mm512_roundscale_ps(x * 1.44269504f, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
    // In this order of the comparison, a NaN stays NaN. From 128 on, the power of two below is infinity.
    x = x < -87.0f ? broadcast(-87.0f) : x;
    x = x > 89.0f ? broadcast(89.0f) : x;
    // Adding 1.5 * 2^23 rounds to a whole number and leaves it in the low bits.
    const Vector shift = broadcast(12582912.0f);
    const Vector shifted = x * 1.44269504f + shift;
    const Vector whole = shifted - shift;
#endif
    // ln 2 in two parts, the first short enough for an exact product.
    Vector r = x - whole * 0.693145751953125f;
    r = r - whole * 1.42860682e-06f;
    Vector tail = r * 0.0013748822966590524f + 0.008369628340005875f;
    tail = tail * r + 0.04166964441537857f;
    tail = tail * r + 0.16666512191295624f;
    tail = tail * r + 0.49999988079071045f;
    const Vector value = tail * (r * r) + r + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(value, whole);
#else
    const Bits power = ((Bits)shifted - (Bits)shift + 127) << 23;
    return value * (Vector)power;
#endif
}
