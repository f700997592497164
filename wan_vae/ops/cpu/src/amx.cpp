// Convolution in bfloat16 by AMX: an instruction adds to 16x16 sums, which stay in a register, the products of 16
// pixels and 16 outputs over 32 channels.
//
// Channels-last pixels already are the rows of such a register: 16 adjacent pixels under one tap are one load, without
// a copy of the image. Two by two registers of sums take four loads for four products, which is just what the
// second-level cache delivers. Data from further away is prefetched, and finished sums are stored while the next ones
// are computed.
#include <algorithm>
#include <cstring>

#include "scratch.h"
#include "tensors.h"
#include "vectors.h"

#if defined(__AMX_TILE__) && defined(__AMX_BF16__) && defined(__AVX512BF16__)
#define HAS_AMX 1
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace {

// Capacity of a register: pixels by outputs of sums, pixels by channels, or channels by outputs.
constexpr int64_t PIXELS = 16, OUTPUTS = 16, CHANNELS = 32;
constexpr int64_t SUMS = PIXELS * OUTPUTS, WEIGHTS = CHANNELS * OUTPUTS;
// Registers of outputs, and of pixels, that are multiplied by each other.
constexpr int64_t PANEL = 2, PAIR = 2;
// Most taps of a weight, and therefore most rows of taps.
constexpr int64_t TAPS = 32;
// Bytes of the image that a thread processes at a time; they share the second-level cache with a panel of weights.
// Measured with 96 to 384 channels.
constexpr int64_t REGION = 5 << 17;
constexpr int64_t LINE = 64;

struct Sizes {
    int64_t batch, in_channels, out_channels;
    // Sizes of the output, then of the input.
    int64_t frames, height, width, in_frames, in_height, in_width;
    int64_t taps, tap_rows, tap_columns;
    // Strides in time and space; zero padding above and on the left, from which that below and on the right follows.
    int64_t time_stride, stride, top, left;

    int64_t tap_groups() const { return taps * tap_rows; }
    // Equal parts of the channels, each of which fits in a register.
    int64_t parts() const { return rounded_up(in_channels, CHANNELS) / CHANNELS; }
    int64_t part_channels() const { return in_channels / parts(); }
    int64_t output_registers() const { return rounded_up(out_channels, OUTPUTS) / OUTPUTS; }
    int64_t panels() const { return rounded_up(output_registers(), PANEL) / PANEL; }
    int64_t panel_registers(int64_t panel) const { return std::min(PANEL, output_registers() - panel * PANEL); }
    int64_t steps() const { return tap_groups() * parts() * tap_columns; }
    int64_t packed_size() const { return output_registers() * steps() * WEIGHTS; }
};

Sizes read_sizes(const int64_t* s) {
    return {s[0], s[1], s[2],  s[3],  s[4],  s[5],  s[6],  s[7],
            s[8], s[9], s[10], s[11], s[12], s[13], s[14], s[15]};
}

#if defined(HAS_AMX)

struct Convolution : Sizes {
    Frames<BFloat16> x;
    Image<const BFloat16> residual;
    Image<BFloat16> out;
    const BFloat16* weight;
    WeightStrides weight_strides;
    const float* bias;
    BFloat16* packed;
};

// Transposes 16 rows of 16 values of 4 bytes: interleaves pairs of rows, then pairs of pairs, then swaps quarters of
// the registers.
inline void transpose(__m512i* rows) {
    __m512i pairs[16], fours[16];
    for (int i = 0; i < 16; i += 2) {
        pairs[i] = _mm512_unpacklo_epi32(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm512_unpackhi_epi32(rows[i], rows[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        fours[i] = _mm512_unpacklo_epi64(pairs[i], pairs[i + 2]);
        fours[i + 1] = _mm512_unpackhi_epi64(pairs[i], pairs[i + 2]);
        fours[i + 2] = _mm512_unpacklo_epi64(pairs[i + 1], pairs[i + 3]);
        fours[i + 3] = _mm512_unpackhi_epi64(pairs[i + 1], pairs[i + 3]);
    }
    constexpr int even = 0x88, odd = 0xdd;
    for (int i = 0; i < 4; ++i) {
        const __m512i a = _mm512_shuffle_i32x4(fours[i], fours[4 + i], even);
        const __m512i b = _mm512_shuffle_i32x4(fours[i], fours[4 + i], odd);
        const __m512i c = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], even);
        const __m512i d = _mm512_shuffle_i32x4(fours[8 + i], fours[12 + i], odd);
        rows[i] = _mm512_shuffle_i32x4(a, c, even);
        rows[4 + i] = _mm512_shuffle_i32x4(b, d, even);
        rows[8 + i] = _mm512_shuffle_i32x4(a, c, odd);
        rows[12 + i] = _mm512_shuffle_i32x4(b, d, odd);
    }
}

// Stores the weights in the order of their use: panels, rows of taps, parts of the channels, taps of a row, registers.
// In a register, pairs of channels are adjacent.
void pack(const Convolution& task, int64_t panel, int64_t part) {
    const int64_t registers = task.panel_registers(panel), channels = task.part_channels();
    const int64_t taps = task.tap_groups() * task.tap_columns;
    const WeightStrides& s = task.weight_strides;
    BFloat16* start = task.packed + panel * PANEL * task.steps() * WEIGHTS;
    int64_t from_tap[TAPS], to_tap[TAPS];
    bool contiguous = true;
    for (int64_t tap = 0; tap < taps; ++tap) {
        const int64_t group = tap / task.tap_columns, column = tap % task.tap_columns;
        from_tap[tap] = group / task.tap_rows * s.tap + group % task.tap_rows * s.row + column * s.column;
        contiguous &= from_tap[tap] == tap;
        to_tap[tap] = ((group * task.parts() + part) * task.tap_columns + column) * registers * WEIGHTS;
    }
    for (int64_t r = 0; r < registers; ++r) {
        const int64_t output = (panel * PANEL + r) * OUTPUTS;
        const int64_t outputs = std::min(OUTPUTS, task.out_channels - output);
        for (int64_t c = 0; c < channels; c += 2) {
            const BFloat16* even = task.weight + output * s.output + (part * channels + c) * s.input;
            const BFloat16* odd = even + s.input;
            BFloat16* to = start + r * WEIGHTS + c * OUTPUTS;
            if (contiguous) {
                for (int64_t first = 0; first < taps; first += 16) {
                    const auto mask = static_cast<__mmask16>((1u << std::min<int64_t>(taps - first, 16)) - 1);
                    __m512i lines[16];
                    for (int64_t lane = 0; lane < OUTPUTS; ++lane) {
                        lines[lane] = _mm512_setzero_si512();
                        if (lane >= outputs) continue;
                        const int64_t from = lane * s.output + first;
                        const __m512i low = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, even + from));
                        const __m512i high = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, odd + from));
                        lines[lane] = low | _mm512_slli_epi32(high, 16);
                    }
                    transpose(lines);
                    for (int64_t tap = first; tap < std::min(first + 16, taps); ++tap) {
                        _mm512_store_si512(to + to_tap[tap], lines[tap - first]);
                    }
                }
                continue;
            }
            for (int64_t tap = 0; tap < taps; ++tap) {
                alignas(LINE) uint32_t line[OUTPUTS] = {};
                for (int64_t lane = 0; lane < outputs; ++lane) {
                    const int64_t from = lane * s.output + from_tap[tap];
                    line[lane] = even[from].bits | uint32_t{odd[from].bits} << 16;
                }
                std::memcpy(to + to_tap[tap], line, sizeof line);
            }
        }
    }
}

// The rows of the image that are needed next, some rows of each of several frames, for prefetching piece by piece.
class Prefetcher {
   public:
    void begin(const Frames<BFloat16>& image, const BFloat16* const* first, int64_t frames, int64_t top, int64_t rows,
               int64_t width) {
        frame_ = first;
        end_ = rows > 0 ? first + frames : first;
        top_bytes_ = top * image.row_stride * 2;
        row_stride_ = image.row_stride * 2;
        row_bytes_ = width * image.pixel_stride * 2;
        rows_ = rows;
        row_ = offset_ = 0;
        while (frame_ < end_ && *frame_ == nullptr) ++frame_;
    }

    const char* next(int64_t lines) {
        if (frame_ >= end_) return nullptr;
        const char* piece = reinterpret_cast<const char*>(*frame_) + top_bytes_ + row_ * row_stride_ + offset_;
        offset_ += lines * LINE;
        if (offset_ >= row_bytes_) {
            offset_ = 0;
            ++row_;
        }
        if (row_ >= rows_) {
            row_ = 0;
            ++frame_;
        }
        return piece;
    }

   private:
    const BFloat16* const* frame_ = nullptr;
    const BFloat16* const* end_ = nullptr;
    int64_t top_bytes_ = 0, row_stride_ = 0, row_bytes_ = 0, rows_ = 0;
    int64_t row_ = 0, offset_ = 0;
};

class Worker {
   public:
    explicit Worker(const Convolution& task) : task(task) {
        across = rounded_up(task.width, PIXELS) / PIXELS;
        const int64_t row_bytes = task.taps * task.stride * task.in_width * task.in_channels * 2;
        rows = std::clamp<int64_t>(REGION / std::max<int64_t>(1, row_bytes), 1, task.height);
        strip_width = (PIXELS - 1) * task.stride + task.tap_columns;
        strip_rows = (rows - 1) * task.stride + task.tap_rows;
        strip_size = task.taps * strip_rows * strip_width * task.in_channels;
    }

    int64_t blocks() const { return rounded_up(task.height, rows) / rows; }

    // In values of 2 bytes: the sums of two pairs, a pixel of zeros, and a strip for either end of the rows.
    int64_t scratch_size() const { return 2 * ZEROS + rounded_up(task.in_channels, CHANNELS) + 2 * strip_size; }

    void set_scratch(BFloat16* scratch) {
        sums = current = reinterpret_cast<float*>(scratch);
        zeros = scratch + 2 * ZEROS;
        std::memset(zeros, 0, task.in_channels * 2);
        strips = zeros + rounded_up(task.in_channels, CHANNELS);
    }

    // Computes a few rows of a frame.
    void run(int64_t batch, int64_t frame, int64_t block) {
        first_row = block * rows;
        last_row = std::min(first_row + rows, task.height);
        clip = task.x.data + batch * task.in_frames + frame * task.time_stride;
        // Taps over frames of zeros are skipped.
        first_tap = 0;
        while (first_tap < task.taps && clip[first_tap] == nullptr) ++first_tap;
        fill_strip(0);
        if (across > 1) fill_strip(across - 1);
        plan_prefetch(frame);
        const int64_t places = (last_row - first_row) * across;
        for (int64_t panel = 0; panel < task.panels(); ++panel) {
            choose_panel(panel);
            for (int64_t place = 0; place < places; place += PAIR) {
                const int64_t count = std::min(PAIR, places - place);
                for (int64_t i = 0; i < count; ++i) find_rows(place + i, sources[i]);
                if (task.panel_registers(panel) == PANEL) {
                    count == PAIR ? multiply<PAIR, PANEL>(panel) : multiply<1, PANEL>(panel);
                } else {
                    count == PAIR ? multiply<PAIR, 1>(panel) : multiply<1, 1>(panel);
                }
                for (int64_t i = 0; i < count; ++i) queue(place + i, i, panel, batch, frame);
                current = current == sums ? sums + PAIR * PANEL * SUMS : sums;
            }
            finish_all();
        }
    }

   private:
    static constexpr int64_t ZEROS = 2 * PAIR * PANEL * SUMS;

    // The first of 16 pixels under a row of taps; the distances in bytes to the next tap's pixels and to the next
    // pixel.
    struct Source {
        const char* data;
        int64_t tap, pixel;
    };

    // Sums of 16 pixels that are not stored yet.
    struct Sums {
        const float* from;
        BFloat16* to;
        const BFloat16* residual;
        int64_t count;
    };

    const Convolution& task;
    int64_t across, rows, strip_width, strip_rows, strip_size;
    int64_t first_row = 0, last_row = 0;
    const BFloat16* const* clip = nullptr;
    int64_t first_tap = 0;
    float *sums = nullptr, *current = nullptr;
    BFloat16 *zeros = nullptr, *strips = nullptr;
    Source sources[PAIR][TAPS];
    Sums pending[PAIR] = {};
    Prefetcher prefetcher;
    __mmask32 outputs = 0;
    __m512 bias_low = _mm512_setzero_ps(), bias_high = _mm512_setzero_ps();

    bool crosses_edge(int64_t column) const {
        const int64_t left = column * PIXELS * task.stride - task.left;
        return left < 0 || left + strip_width > task.in_width;
    }

    // Copies the input of the 16 pixels at an end of each row, with the zero padding beyond it.
    void fill_strip(int64_t column) const {
        if (!crosses_edge(column)) return;
        const int64_t left = column * PIXELS * task.stride - task.left, top = first_row * task.stride - task.top;
        BFloat16* to = strip(column) + first_tap * strip_rows * strip_width * task.in_channels;
        for (int64_t t = first_tap; t < task.taps; ++t) {
            for (int64_t h = top; h < top + strip_rows; ++h) {
                for (int64_t w = left; w < left + strip_width; ++w, to += task.in_channels) {
                    if (h >= 0 && h < task.in_height && w >= 0 && w < task.in_width) {
                        std::memcpy(to, pixel(t, h, w), task.in_channels * 2);
                    } else {
                        std::memset(to, 0, task.in_channels * 2);
                    }
                }
            }
        }
    }

    BFloat16* strip(int64_t column) const { return strips + (column == 0 ? 0 : strip_size); }

    const BFloat16* pixel(int64_t t, int64_t h, int64_t w) const {
        return clip[t] + h * task.x.row_stride + w * task.x.pixel_stride;
    }

    // Items are ordered by row, then by frame: the next item needs the next frames of the same rows, or the rows below.
    void plan_prefetch(int64_t frame) {
        const bool same_rows = frame + 1 < task.frames;
        const int64_t first = same_rows ? first_row : last_row, seen = same_rows ? 0 : task.tap_rows - task.stride;
        const int64_t top = std::clamp<int64_t>(first * task.stride - task.top + seen, 0, task.in_height);
        const int64_t end = std::min(top + strip_rows - seen, task.in_height);
        // For the rows below, the clip starts over with its first frame.
        const auto* of = clip + (same_rows ? std::max(task.taps, task.time_stride) : -frame * task.time_stride);
        prefetcher.begin(task.x, of, same_rows ? std::min(task.taps, task.time_stride) : task.taps, top, end - top,
                       task.in_width);
    }

    void find_rows(int64_t place, Source* to) const {
        const int64_t column = place % across, row = (first_row + place / across) * task.stride - task.top;
        const bool in_strip = crosses_edge(column);
        for (int64_t group = first_tap * task.tap_rows; group < task.tap_groups(); ++group) {
            const int64_t t = group / task.tap_rows, h = row + group % task.tap_rows;
            const BFloat16* data;
            int64_t distance = task.in_channels;
            if (h < 0 || h >= task.in_height) {
                data = zeros;
                distance = 0;
            } else if (in_strip) {
                const int64_t strip_row = t * strip_rows + h - (first_row * task.stride - task.top);
                data = strip(column) + strip_row * strip_width * distance;
            } else {
                data = pixel(t, h, column * PIXELS * task.stride - task.left);
                distance = task.x.pixel_stride;
            }
            to[group] = {reinterpret_cast<const char*>(data), distance * 2, distance * 2 * task.stride};
        }
    }

    // Registers 0 to 3 hold sums, 4 and 5 pixels, 6 and 7 weights.
    template <int Pixels, int Outputs>
    void multiply(int64_t panel) {
        const BFloat16* weight = task.packed + panel * PANEL * task.steps() * WEIGHTS;
        const int64_t groups = task.tap_groups(), parts = task.parts(), taps = task.tap_columns;
        const int64_t first_group = first_tap * task.tap_rows;
        weight += first_group * parts * taps * Outputs * WEIGHTS;
        const int64_t part_bytes = task.part_channels() * 2;
        const int64_t soon = (PIXELS + taps - 1) / taps;
        const char* later = prefetcher.next(task.steps());
        _tile_zero(0);
        if (Outputs > 1) _tile_zero(1);
        if (Pixels > 1) _tile_zero(2);
        if (Pixels > 1 && Outputs > 1) _tile_zero(3);
        for (int64_t group = first_group; group < groups; ++group) {
            const Source first = sources[0][group], second = sources[Pixels - 1][group];
            for (int64_t part = 0; part < parts; ++part) {
                const char* pixels = first.data + part * part_bytes;
                const char* more_pixels = second.data + part * part_bytes;
                // The next pixels are too far apart for the hardware prefetcher.
                const bool here = part + 1 < parts;
                const int64_t next_group = here ? group : std::min(group + 1, groups - 1);
                const Source &then = sources[0][next_group], &more_then = sources[Pixels - 1][next_group];
                const char* next = here ? pixels + part_bytes : then.data;
                const char* more_next = here ? more_pixels + part_bytes : more_then.data;
                for (int64_t tap = 0; tap < taps; ++tap) {
                    for (int64_t i = 0; i < soon; ++i, next += then.pixel, more_next += more_then.pixel) {
                        __builtin_prefetch(next);
                        if (Pixels > 1) __builtin_prefetch(more_next);
                    }
                    __builtin_prefetch(later, 0, 2);
                    later += LINE;
                    _tile_loadd(4, pixels, first.pixel);
                    _tile_loadd(6, weight, LINE);
                    _tile_dpbf16ps(0, 4, 6);
                    if (Outputs > 1) _tile_loadd(7, weight + WEIGHTS, LINE);
                    if (Outputs > 1) _tile_dpbf16ps(1, 4, 7);
                    if (Pixels > 1) _tile_loadd(5, more_pixels, second.pixel);
                    if (Pixels > 1) _tile_dpbf16ps(2, 5, 6);
                    if (Pixels > 1 && Outputs > 1) _tile_dpbf16ps(3, 5, 7);
                    finish_one();
                    pixels += first.tap;
                    more_pixels += second.tap;
                    weight += Outputs * WEIGHTS;
                }
            }
        }
        finish_all();
        _tile_stored(0, current, LINE);
        if (Outputs > 1) _tile_stored(1, current + SUMS, LINE);
        if (Pixels > 1) _tile_stored(2, current + PANEL * SUMS, LINE);
        if (Pixels > 1 && Outputs > 1) _tile_stored(3, current + PANEL * SUMS + SUMS, LINE);
    }

    void choose_panel(int64_t panel) {
        const int64_t c = panel * PANEL * OUTPUTS, count = std::min(PANEL * OUTPUTS, task.out_channels - c);
        outputs = static_cast<__mmask32>((uint64_t{1} << count) - 1);
        if (task.bias == nullptr) return;
        bias_low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(outputs), task.bias + c);
        bias_high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(outputs >> OUTPUTS), task.bias + c + OUTPUTS);
    }

    void queue(int64_t place, int64_t which, int64_t panel, int64_t batch, int64_t frame) {
        const int64_t h = first_row + place / across, w = place % across * PIXELS, c = panel * PANEL * OUTPUTS;
        const auto find = [&](const auto& image) {
            return image.data + batch * image.batch_stride + frame * image.frame_stride + h * image.row_stride +
                   w * image.pixel_stride + c;
        };
        const BFloat16* residual = task.residual.data == nullptr ? nullptr : find(task.residual);
        pending[which] = {current + which * PANEL * SUMS, find(task.out), residual, std::min(PIXELS, task.width - w)};
    }

    void finish_one() {
        Sums& of = pending[pending[0].count == 0];
        if (of.count == 0) return;
        --of.count;
        __m512 low = _mm512_load_ps(of.from) + bias_low, high = _mm512_load_ps(of.from + SUMS) + bias_high;
        of.from += OUTPUTS;
        // The same pixel of the next pair's output.
        __builtin_prefetch(of.to + PAIR * PIXELS * task.out.pixel_stride, 1);
        if (of.residual != nullptr) {
            __builtin_prefetch(of.residual + PAIR * PIXELS * task.residual.pixel_stride);
            const __m512i bits = _mm512_maskz_loadu_epi16(outputs, of.residual);
            low += widened(_mm512_castsi512_si256(bits));
            high += widened(_mm512_extracti64x4_epi64(bits, 1));
            of.residual += task.residual.pixel_stride;
        }
        _mm512_mask_storeu_epi16(of.to, outputs, (__m512i)_mm512_cvtne2ps_pbh(high, low));
        of.to += task.out.pixel_stride;
    }

    void finish_all() {
        while (pending[0].count + pending[1].count > 0) finish_one();
    }

    static __m512 widened(__m256i bits) {
        return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
    }
};

// The operand of the instruction that configures the registers.
struct alignas(LINE) Registers {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};

    explicit Registers(int64_t channels) {
        for (int i = 0; i < 8; ++i) {
            const bool holds_pixels = i == 4 || i == 5, holds_weights = i >= 6;
            row_bytes[i] = static_cast<uint16_t>(holds_pixels ? channels * 2 : LINE);
            rows[i] = static_cast<uint8_t>(holds_weights ? channels / 2 : PIXELS);
        }
    }
};

int convolve(const Convolution& task, int threads) {
    const Registers registers(task.part_channels());
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        Worker worker(task);
        BFloat16* memory = scratch_of_thread<BFloat16>(worker.scratch_size());
        if (memory == nullptr) {
#pragma omp atomic write
            failed = 1;
        } else {
            worker.set_scratch(memory);
        }
#pragma omp for schedule(static)
        for (int64_t piece = 0; piece < task.panels() * task.parts(); ++piece) {
            pack(task, piece / task.parts(), piece % task.parts());
        }
        _tile_loadconfig(&registers);
        const int64_t items = task.batch * worker.blocks() * task.frames;
        // Consecutive items for a thread, because they share most of their input.
        const int64_t consecutive = std::max<int64_t>(1, items / (8 * threads));
#pragma omp for schedule(dynamic, consecutive)
        for (int64_t item = 0; item < items; ++item) {
            if (memory == nullptr) continue;
            const int64_t frame = item % task.frames, block = item / task.frames;
            worker.run(block / worker.blocks(), frame, block % worker.blocks());
        }
        _tile_release();
    }
    return failed;
}

#endif

}  // namespace

// Whether the processor has AMX, this was compiled for it, and the system lets the process use it.
extern "C" int wan_vae_has_amx() {
#if defined(HAS_AMX)
    constexpr int request_permission = 0x1023, tile_data = 18;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return 0;
#endif
}

// sizes: as in `Sizes`. size: receives the number of values of the packed weight.
extern "C" void wan_vae_amx_packed_size(const int64_t* sizes, int64_t* size) {
    *size = read_sizes(sizes).packed_size();
}

// sizes: as in `Sizes`, with an even number of channels in each part. x: as in `Frames`, with the strides of a row and
// of a pixel. bias and residual may be null. Other strides: five each, of (B, C, T, H, W), and of the weight's
// (C_out, C_in, taps, rows, columns). packed: memory for `wan_vae_amx_packed_size` values, aligned to 64 bytes. Returns
// 0, or 1 if memory ran out.
extern "C" int wan_vae_amx_convolve(const int64_t* sizes, const BFloat16* const* x, const int64_t* x_strides,
                                    const BFloat16* weight, const int64_t* weight_strides, const float* bias,
                                    const BFloat16* residual, const int64_t* residual_strides, BFloat16* out,
                                    const int64_t* out_strides, BFloat16* packed, int threads) {
#if defined(HAS_AMX)
    return convolve({read_sizes(sizes), {x, x_strides[0], x_strides[1]}, make_image(residual, residual_strides),
                     make_image(out, out_strides), weight, make_weight_strides(weight_strides), bias, packed},
                    threads);
#else
    return 1;
#endif
}
