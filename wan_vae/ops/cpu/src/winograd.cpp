// Causal 3-D convolution with float32 arithmetic, whose 3x3 taps are computed by Winograd's minimal filtering
// F(4x4, 3x3).
//
// The 16 outputs of a tile take 36 products instead of 144, or 25 where the pixels come in equal pairs. First, all
// threads transform the weights. Then each thread transforms the input of a few tiles, multiplies each of the 36 points
// by the weights, two vectors of output channels at a time, and transforms the products back.
#include <algorithm>

#include "doubled.h"
#include "packing.h"
#include "product.h"
#include "scratch.h"
#include "tensors.h"
#include "transforms.h"
#include "vectors.h"

namespace {

// Most frames and most products of a block; a product is a tile of one frame. Each block reads all weights once, so few
// products are slow; its data should stay in the second-level cache, so many are too. Measured with 16 to 384 channels.
constexpr int64_t FRAMES = 4, PRODUCTS = 32;

struct Sizes {
    int64_t batch, in_channels, out_channels;
    // Sizes of the output, then of the input.
    int64_t frames, height, width, in_height, in_width, taps;
    // Zero padding above and on the left; that below and on the right follows from the sizes.
    int64_t top, left;
};

template <class Value>
struct Convolution : Sizes {
    Frames<Value> x;
    Image<Value> out;
    Image<const Value> residual;
    const float* bias;
    // As from Packing.
    const float* weight;
    int64_t weight_stride;
};

// The part of a convolution that a thread computes at a time. Its size does not change the arithmetic of any output.
struct Block {
    int64_t tiles, frames;
};

Block choose_block(const Sizes& task, int64_t tiles, int threads) {
    const int64_t chunks = rounded_up(task.frames, FRAMES) / FRAMES;
    const int64_t frames = rounded_up(task.frames, chunks) / chunks;
    const int64_t share = rounded_up(task.batch * chunks * tiles, threads) / threads;
    return {std::min({std::max<int64_t>(1, PRODUCTS / frames), share, tiles}), frames};
}

template <class Scheme, class Value>
struct Worker {
    static constexpr int64_t WINDOW = Scheme::WINDOW, PIXELS = WINDOW * WINDOW;
    static constexpr int64_t SIDE = Scheme::SIDE, POINTS = SIDE * SIDE;

    const Convolution<Value>& task;
    const Block& block;
    int64_t tiles_across, tiles, in_vectors, out_vectors, channels, row_stride;
    // From one point's transformed inputs, or products, to the next point's.
    int64_t input_stride, product_stride;
    float* transformed;
    float* products;
    const Value* zeros;

    Worker(const Convolution<Value>& task, const Block& block) : task(task), block(block) {
        tiles_across = rounded_up(task.width, OUT) / OUT;
        tiles = tiles_across * (rounded_up(task.height, OUT) / OUT);
        in_vectors = rounded_up(task.in_channels, LANES) / LANES;
        out_vectors = rounded_up(task.out_channels, LANES) / LANES;
        channels = rounded_up(task.in_channels, UNROLLED);
        // Rows that are read together must not be a multiple of 16 vectors apart: they would share cache sets.
        row_stride = in_vectors * LANES + (in_vectors % 16 == 0 ? LANES : 0);
        input_stride = (block.frames + task.taps - 1) * block.tiles * row_stride + GAP;
        product_stride = block.frames * block.tiles * PANEL * LANES + GAP;
    }

    int64_t scratch_size() const { return PIXELS * input_stride + POINTS * product_stride + in_vectors * LANES; }

    void set_scratch(float* scratch) {
        transformed = scratch;
        products = transformed + PIXELS * input_stride;
        Value* zero_pixel = reinterpret_cast<Value*>(products + POINTS * product_stride);
        std::fill_n(zero_pixel, in_vectors * LANES, Value{});
        zeros = zero_pixel;
    }

    void find_pixels(const Value* frame, int64_t tile, const Value** pixels) const {
        const int64_t top = tile / tiles_across * Scheme::STEP - task.top;
        const int64_t left = tile % tiles_across * Scheme::STEP - task.left;
        for (int64_t i = 0; i < WINDOW; ++i) {
            for (int64_t j = 0; j < WINDOW; ++j) {
                const int64_t h = top + i, w = left + j;
                const bool inside =
                    frame != nullptr && h >= 0 && h < task.in_height && w >= 0 && w < task.in_width;
                pixels[i * WINDOW + j] = inside ? frame + h * task.x.row_stride + w * task.x.pixel_stride : zeros;
            }
        }
    }

    void transform_tile(const Value** pixels, const Value** next_pixels, float* to) const {
        for (int64_t c = 0; c < in_vectors * LANES; c += LANES) {
            // The hardware prefetcher follows a row of pixels at most, and would wait for memory at each.
            for (int64_t p = 0; p < PIXELS; ++p) __builtin_prefetch(next_pixels[p] + c);
            Vector d[PIXELS];
            if (c + LANES <= task.in_channels) {
                for (int64_t p = 0; p < PIXELS; ++p) d[p] = load(pixels[p] + c);
            } else {
                for (int64_t p = 0; p < PIXELS; ++p) d[p] = load_first(pixels[p] + c, task.in_channels - c);
            }
            for (int64_t j = 0; j < WINDOW; ++j) Scheme::transform_input(d + j, WINDOW);
            for (int64_t i = 0; i < WINDOW; ++i) {
                Scheme::transform_input(d + i * WINDOW, 1);
                for (int64_t j = 0; j < WINDOW; ++j) store(to + (i * WINDOW + j) * input_stride + c, d[i * WINDOW + j]);
            }
        }
    }

    // from: one row of each point's products; c: its first channel.
    void store_tile(const float* from, int64_t batch, int64_t frame, int64_t tile, int64_t c, int64_t vectors) const {
        const int64_t top = tile / tiles_across * OUT, left = tile % tiles_across * OUT;
        const int64_t height = std::min(OUT, task.height - top), width = std::min(OUT, task.width - left);
        const auto pixel = [&](const auto& image) {
            return image.data + batch * image.batch_stride + frame * image.frame_stride + top * image.row_stride +
                   left * image.pixel_stride;
        };
        Value* out = pixel(task.out);
        const Value* residual = task.residual.data == nullptr ? nullptr : pixel(task.residual);
        for (int64_t v = 0; v < vectors; ++v, c += LANES, from += LANES) {
            Vector m[POINTS];
            for (int64_t p = 0; p < POINTS; ++p) m[p] = load(from + p * product_stride);
            for (int64_t j = 0; j < SIDE; ++j) Scheme::transform_output(m + j, SIDE);
            for (int64_t i = 0; i < OUT; ++i) Scheme::transform_output(m + i * SIDE, 1);
            const int64_t count = std::min(LANES, task.out_channels - c);
            Vector bias = {};
            if (task.bias != nullptr) bias = count == LANES ? load(task.bias + c) : load_first(task.bias + c, count);
            for (int64_t i = 0; i < height; ++i) {
                for (int64_t j = 0; j < width; ++j) {
                    Vector value = m[i * SIDE + j] + bias;
                    Value* to = out + i * task.out.row_stride + j * task.out.pixel_stride + c;
                    if (residual != nullptr) {
                        const Value* from =
                            residual + i * task.residual.row_stride + j * task.residual.pixel_stride + c;
                        value += count == LANES ? load(from) : load_first(from, count);
                    }
                    if (count == LANES) {
                        store(to, value);
                    } else {
                        store_first(to, value, count);
                    }
                }
            }
        }
    }

    void run(int64_t batch, int64_t first_frame, int64_t first_tile) const {
        const int64_t some_tiles = std::min(block.tiles, tiles - first_tile);
        const int64_t some_frames = std::min(block.frames, task.frames - first_frame);
        const Value* const* clip = task.x.data + batch * (task.frames + task.taps - 1) + first_frame;
        const int64_t steps = (some_frames + task.taps - 1) * some_tiles;
        const Value* pixels[2][PIXELS];
        find_pixels(clip[0], first_tile, pixels[0]);
        for (int64_t step = 0; step < steps; ++step) {
            const int64_t next = std::min(step + 1, steps - 1);
            find_pixels(clip[next / some_tiles], first_tile + next % some_tiles, pixels[(step + 1) % 2]);
            transform_tile(pixels[step % 2], pixels[(step + 1) % 2], transformed + step * row_stride);
        }
        const int64_t rows = some_frames * some_tiles, tap_stride = some_tiles * row_stride;
        const int64_t depth = task.taps * channels;
        for (int64_t first = 0; first < out_vectors; first += PANEL) {
            const int64_t vectors = std::min<int64_t>(PANEL, out_vectors - first);
            for (int64_t p = 0; p < POINTS; ++p) {
                const auto multiply = vectors == PANEL ? multiply_all<PANEL> : multiply_all<1>;
                const int64_t input = Scheme::input_of(p / SIDE) * WINDOW + Scheme::input_of(p % SIDE);
                multiply(rows, transformed + input * input_stride, row_stride, tap_stride, task.taps, channels,
                         task.weight + p * task.weight_stride + first * depth * LANES, products + p * product_stride);
            }
            for (int64_t t = 0; t < some_frames; ++t) {
                for (int64_t tile = 0; tile < some_tiles; ++tile) {
                    store_tile(products + (t * some_tiles + tile) * PANEL * LANES, batch, first_frame + t,
                               first_tile + tile, first * LANES, vectors);
                }
            }
        }
    }
};

template <class Scheme, class Value>
int convolve(Convolution<Value> task, const Value* weight, const WeightStrides& strides, float* packed, int threads) {
    const int64_t tiles = (rounded_up(task.height, OUT) / OUT) * (rounded_up(task.width, OUT) / OUT);
    const Block block = choose_block(task, tiles, threads);
    const int64_t spaces = rounded_up(tiles, block.tiles) / block.tiles;
    const int64_t times = rounded_up(task.frames, block.frames) / block.frames;
    packed = reinterpret_cast<float*>(rounded_up(reinterpret_cast<intptr_t>(packed), VECTOR_BYTES));
    const Packing<Scheme, Value> packing{weight, strides, task.in_channels, task.out_channels, task.taps, packed};
    task.weight = packed;
    task.weight_stride = packing.point_stride();
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Worker<Scheme, Value> worker(task, block);
        float* memory = scratch_of_thread<float>(worker.scratch_size());
        if (memory == nullptr) {
#pragma omp atomic write
            failed = 1;
        } else {
            worker.set_scratch(memory);
        }
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < packing.pieces(); ++piece) {
            packing.pack(piece);
            flush_streams();
        }
#pragma omp for schedule(dynamic)
        for (int64_t item = 0; item < task.batch * times * spaces; ++item) {
            if (memory == nullptr) continue;
            const int64_t space = item % spaces, time = item / spaces % times, batch = item / spaces / times;
            worker.run(batch, time * block.frames, space * block.tiles);
        }
    }
    return failed;
}

template <class Value>
int convolve(const int64_t* s, const Value* const* x, const int64_t* x_strides, const Value* weight,
             const int64_t* weight_strides, const float* bias, const Value* residual, const int64_t* residual_strides,
             Value* out, const int64_t* out_strides, float* packed, int upsample, int threads) {
    const Convolution<Value> task{{s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], s[8], s[9], s[10]},
                                  {x, x_strides[0], x_strides[1]},
                                  make_image(out, out_strides),
                                  make_image(residual, residual_strides),
                                  bias,
                                  nullptr,
                                  0};
    const WeightStrides strides = make_weight_strides(weight_strides);
    return upsample ? convolve<Doubled>(task, weight, strides, packed, threads)
                    : convolve<Plain>(task, weight, strides, packed, threads);
}

}  // namespace

// shape: output channels, input channels, taps. size: receives the number of values of such a weight, packed.
extern "C" void wan_vae_packed_size(const int64_t* shape, int64_t* size) {
    // LANES more, to start at an aligned address.
    *size = Packing<Plain, float>{nullptr, {}, shape[1], shape[0], shape[2], nullptr}.size() + LANES;
}

// sizes: as in `Sizes`. x: as in `Frames`, with the strides of a row and of a pixel. bias and residual may be null.
// Other strides: five each, of (B, C, T, H, W), and of the weight's (C_out, C_in, taps, 3, 3). packed: memory for
// `wan_vae_packed_size` values. upsample: x is upsampled twice in height and width, by nearest neighbor. Returns 0, or
// 1 if memory ran out.
extern "C" int wan_vae_winograd_float32(const int64_t* sizes, const float* const* x, const int64_t* x_strides,
                                        const float* weight, const int64_t* weight_strides, const float* bias,
                                        const float* residual, const int64_t* residual_strides, float* out,
                                        const int64_t* out_strides, float* packed, int upsample, int threads) {
    return convolve(sizes, x, x_strides, weight, weight_strides, bias, residual, residual_strides, out, out_strides,
                    packed, upsample, threads);
}

extern "C" int wan_vae_winograd_bfloat16(const int64_t* sizes, const BFloat16* const* x, const int64_t* x_strides,
                                         const BFloat16* weight, const int64_t* weight_strides, const float* bias,
                                         const BFloat16* residual, const int64_t* residual_strides, BFloat16* out,
                                         const int64_t* out_strides, float* packed, int upsample, int threads) {
    return convolve(sizes, x, x_strides, weight, weight_strides, bias, residual, residual_strides, out, out_strides,
                    packed, upsample, threads);
}
