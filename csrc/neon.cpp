// Kernels for NEON of ARMv8.0-A. Sums come from one of two inner loops:
//
// - By look-up, as in look_up_x86.h: a step is 4 channels; a column is two output pixels, one below the other, with
//   activations a and b in a step. A row of 16 bytes holds popcount(a xor w) + 16 * popcount(b xor w) for all 16
//   possible weights w. One tbl looks up the counts of 16 output channels for both pixels: 128 binary MACs. With the
//   instructions that add three steps and separate the pixels, this gives 54.9 MACs per instruction.
// - By popcount: a step is 8 channels of one pixel; xor, popcount of bytes and add give 42.7 MACs per instruction. A
//   Cortex-A57 or A72 has tbl in only one of two pipelines, so this loop is faster there.
//
// Full adders in front of the popcount, as in avx512.cpp, cost as much as they save, because NEON has no xor of three
// operands.
#include "kernels.h"

#if defined(__aarch64__)

#include <arm_neon.h>
#if defined(__linux__)
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

#include <cstring>

#include "elementwise.h"
#include "look_up.h"
#include "training.h"

namespace mmgroupnet {
namespace {

constexpr int kVectorLanes = 16;  // output channels
constexpr int kTileColumns = 8;

#define MMG_INLINE inline __attribute__((always_inline))  // sums must stay in registers

struct Vector {
  using Type = float32x4_t;
  static constexpr int kLanes = 4;
  static float32x4_t load(const float* x) { return vld1q_f32(x); }
  static void store(float* x, float32x4_t value) { vst1q_f32(x, value); }
  static float32x4_t convert(const int32_t* x) { return vcvtq_f32_s32(vld1q_s32(x)); }
  static float32x4_t convert(const uint16_t* x) { return vcvtq_f32_u32(vmovl_u16(vld1_u16(x))); }
  static float32x4_t set(float value) { return vdupq_n_f32(value); }
  static float32x4_t add(float32x4_t a, float32x4_t b) { return vaddq_f32(a, b); }
  static float32x4_t multiply(float32x4_t a, float32x4_t b) { return vmulq_f32(a, b); }
  static float32x4_t maximum(float32x4_t a, float32x4_t b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
  static float32x4_t minus_twice(float32x4_t a, float32x4_t b) { return vsubq_f32(a, vaddq_f32(b, b)); }
  static uint64_t negative(float32x4_t x) {
    const uint32x4_t bits = {1, 2, 4, 8};
    return vaddvq_u32(vbicq_u32(bits, vcgezq_f32(x)));
  }
};

// 16 bits hold the sums of a unit with at most this many products in a sum.
constexpr int kMaxShortLength = 65535;
// Distance from the 16-bit sums of one pixel to those of the next.
constexpr int kShortStep = 2 * kLanes;

// Adds up the sums of a tile's pixels from sums in bytes. If 16 bits hold all sums, they stay in the first half of the
// memory that a pixel has in the result. Otherwise they are added to the 32-bit result before they overflow.
template <int kPixels, int kVectors>
class Sums {
 public:
  // A sum of 16 bits holds 256 bytes: 256 * 255 <= 65,535.
  static constexpr int kFlushesPerShort = 256;

  Sums(const Tile& tile, int32_t* out)
      : out_(out),
        is_short_(tile.length <= kMaxShortLength),
        shorts_(is_short_ ? reinterpret_cast<uint16_t*>(out) : own_shorts_) {}

  MMG_INLINE void add(int pixel, int vector, uint8x16_t counts) {
    uint16_t* to = shorts_ + pixel * kShortStep + vector * kVectorLanes;
    if (flushes_ == 0) {
      vst1q_u16(to, vmovl_u8(vget_low_u8(counts)));
      vst1q_u16(to + 8, vmovl_high_u8(counts));
    } else {
      vst1q_u16(to, vaddw_u8(vld1q_u16(to), vget_low_u8(counts)));
      vst1q_u16(to + 8, vaddw_high_u8(vld1q_u16(to + 8), counts));
    }
  }

  void count_flush() {
    if (++flushes_ == kFlushesPerShort && !is_short_) drain();
  }

  void finish() {
    if (!is_short_) drain();
  }

 private:
  void drain() {
    if (flushes_ == 0) return;
    for (int p = 0; p < kPixels; ++p) {
      int32_t* out = out_ + p * kLanes;
      for (int i = 0; i < kVectors * kVectorLanes; i += 4) {
        int32x4_t sums = vreinterpretq_s32_u32(vmovl_u16(vld1_u16(shorts_ + p * kShortStep + i)));
        if (is_drained_) sums = vaddq_s32(sums, vld1q_s32(out + i));
        vst1q_s32(out + i, sums);
      }
    }
    is_drained_ = true;
    flushes_ = 0;
  }

  int32_t* out_;
  bool is_short_, is_drained_ = false;
  int flushes_ = 0;
  uint16_t* shorts_;
  uint16_t own_shorts_[kPixels * kShortStep];
};

// Loops over the steps of a tile. `Bytes` holds sums in bytes, which have room for Bytes::kMaxSteps steps. It adds
// Bytes::kSteps at a time, and the remaining ones one by one.
template <typename Bytes>
MMG_INLINE void count_steps(const Tile& tile, int first_column, int32_t* different) {
  typename Bytes::AllSums sums(tile, different);
  Bytes bytes;
  const uint8_t* weights = tile.weights;
  int room = Bytes::kMaxSteps;
  for (int r = 0; r < tile.num_runs; ++r) {
    const uint8_t* activations[Bytes::kColumns];
#pragma GCC unroll 8
    for (int p = 0; p < Bytes::kColumns; ++p) activations[p] = tile.activations[first_column + p] + tile.runs[r].offset;
    for (int left = tile.runs[r].steps; left > 0;) {
      const int steps = left < room ? left : room;
      left -= steps;
      room -= steps;
      const uint8_t* const end = weights + steps * kLanes;
      const uint8_t* const end_together = end - steps % Bytes::kSteps * kLanes;
      while (weights != end_together) bytes.template add<Bytes::kSteps>(activations, &weights);
      while (weights != end) bytes.template add<1>(activations, &weights);
      if (room == 0) {
        bytes.flush(&sums);
        room = Bytes::kMaxSteps;
      }
    }
  }
  if (room < Bytes::kMaxSteps) bytes.flush(&sums);
  sums.finish();
}

// The weights of a step of up to 8 channels take one byte per output channel.
template <int kStepChannels>
void arrange(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights) {
  for (int step = 0; step < ceil_div(channels, kStepChannels); ++step, weights += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t word = words[lane * stride + step * kStepChannels / kWordBits];
      weights[lane] = (word >> (step * kStepChannels % kWordBits)) & ((1 << kStepChannels) - 1);
    }
  }
}

// By look-up.
namespace look_up {

constexpr int kStepChannels = 4;
constexpr int kRows = 2;
constexpr int kStepBytes = 16;      // a row of the table
constexpr int kCountedColumns = 2;  // at once; times four vectors times two sums: 16 of 32 registers

// Writes the table rows of `steps` steps, at most 16, of a word of two pixels.
MMG_INLINE void expand_word(const uint64_t* first, const uint64_t* second, int steps, uint8_t* activations) {
  const uint8x8_t a = vcreate_u8(*first), b = vcreate_u8(*second);
  // Steps 0, 2, ... are the low nibbles of the bytes, steps 1, 3, ... the high ones.
  const uint8x8_t even = vsli_n_u8(a, b, 4), odd = vsri_n_u8(b, a, 4);
  const uint8x16_t steps_in_order = vcombine_u8(vzip1_u8(even, odd), vzip2_u8(even, odd));
  // Each word holds the offsets of four rows, in bytes.
  const uint64x2_t low = vreinterpretq_u64_u16(vshll_n_u8(vget_low_u8(steps_in_order), 4));
  const uint64x2_t high = vreinterpretq_u64_u16(vshll_high_n_u8(steps_in_order, 4));
  const uint64_t places[4] = {vgetq_lane_u64(low, 0), vgetq_lane_u64(low, 1), vgetq_lane_u64(high, 0),
                              vgetq_lane_u64(high, 1)};
  const auto row = [&places](int step) {
    return vld1q_u8(reinterpret_cast<const uint8_t*>(&table) + (places[step / 4] >> (step % 4 * 16) & 0xffff));
  };
#pragma GCC unroll 8
  for (int step = 0; step < steps; step += 2) {
    // Two at a time: the compiler stores them as a pair.
    const uint8x16_t first_row = row(step), second_row = row(step + 1);
    vst1q_u8(activations + step * kStepBytes, first_row);
    if (step + 1 < steps) vst1q_u8(activations + (step + 1) * kStepBytes, second_row);
  }
}

void expand(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels, uint8_t* activations) {
  constexpr int kWordSteps = kWordBits / kStepChannels;
  const int words = channels / kWordBits, rest = ceil_div(channels % kWordBits, kStepChannels);
  const uint64_t *first = pixels[0], *second = pixels[1];
  for (int i = 0; i < columns; ++i, first += strides[0], second += strides[1]) {
    for (int word = 0; word < words; ++word, activations += kWordSteps * kStepBytes) {
      expand_word(first + word, second + word, kWordSteps, activations);
    }
    if (rest != 0) {
      expand_word(first + words, second + words, rest, activations);
      activations += rest * kStepBytes;
    }
  }
}

// Let A and B be the counts of the two pixels of a column. `both` is the sum of A + 16 * B modulo 256, and `second` is
// the sum of B. The sum of A is below 256, so it is both - 16 * second modulo 256.
template <int kColumnsAtOnce, int kVectors>
struct Bytes {
  static constexpr int kColumns = kColumnsAtOnce;
  static constexpr int kStepBytes = look_up::kStepBytes;
  // Each step adds at most 4 to a count, so a nibble holds three steps, 12 <= 15, and a byte 63, 252 <= 255.
  static constexpr int kSteps = 3;
  static constexpr int kMaxSteps = 63;
  using AllSums = Sums<kColumns * kRows, kVectors>;

  uint8x16_t both[kColumns][kVectors], second[kColumns][kVectors];

  MMG_INLINE Bytes() { clear(); }

  MMG_INLINE void clear() {
#pragma GCC unroll 8
    for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) both[p][v] = second[p][v] = vdupq_n_u8(0);
    }
  }

  // Adds `kCount` steps, whose counts fit a nibble.
  template <int kCount>
  MMG_INLINE void add(const uint8_t** activations, const uint8_t** weights) {
    uint8x16_t rows[kColumns][kCount];
#pragma GCC unroll 8
    for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 4
      for (int s = 0; s < kCount; ++s) rows[p][s] = vld1q_u8(activations[p] + s * kStepBytes);
      activations[p] += kCount * kStepBytes;
    }
    // Two vectors at a time: the compiler loads them as a pair. The barrier at the end keeps it from loading the next
    // pair early, for which it would have to spill sums.
#pragma GCC unroll 4
    for (int pair = 0; pair < kVectors; pair += 2) {
      uint8x16_t counts[kColumns][2];
#pragma GCC unroll 4
      for (int s = 0; s < kCount; ++s) {
        const uint8_t* w = *weights + s * kLanes + pair * kVectorLanes;
        const uint8x16_t both_weights[2] = {vld1q_u8(w), vld1q_u8(w + kVectorLanes)};
#pragma GCC unroll 8
        for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            const uint8x16_t found = vqtbl1q_u8(rows[p][s], both_weights[v]);
            counts[p][v] = s == 0 ? found : vaddq_u8(counts[p][v], found);
          }
        }
      }
#pragma GCC unroll 8
      for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 2
        for (int v = 0; v < 2; ++v) {
          both[p][pair + v] = vaddq_u8(both[p][pair + v], counts[p][v]);
          second[p][pair + v] = vsraq_n_u8(second[p][pair + v], counts[p][v], 4);
        }
      }
      asm volatile("" : : : "memory");
    }
    *weights += kCount * kLanes;
  }

  MMG_INLINE void flush(AllSums* sums) {
#pragma GCC unroll 8
    for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) {
        sums->add(p * kRows, v, vmlsq_u8(both[p][v], second[p][v], vdupq_n_u8(16)));
        sums->add(p * kRows + 1, v, second[p][v]);
      }
    }
    sums->count_flush();
    clear();
  }
};

template <int kVectors>
void count_columns(const Tile& tile, int32_t* different) {
  int first = 0;
  for (; first + kCountedColumns <= tile.columns; first += kCountedColumns) {
    count_steps<Bytes<kCountedColumns, kVectors>>(tile, first, different + first * kRows * kLanes);
  }
  if (first < tile.columns) count_steps<Bytes<1, kVectors>>(tile, first, different + first * kRows * kLanes);
}

void count(const Tile& tile, int32_t* different) {
  return tile.channels > 32 ? count_columns<4>(tile, different) : count_columns<2>(tile, different);
}

}  // namespace look_up

// By popcount.
namespace popcount {

constexpr int kStepChannels = 8;
constexpr int kStepBytes = 16;      // the byte of a step, repeated 16 times
constexpr int kCountedColumns = 4;  // at once; times four vectors: 16 of 32 registers

void expand(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels, uint8_t* activations) {
  const int steps = ceil_div(channels, kStepChannels);
  for (int i = 0; i < columns; ++i) {
    const uint8_t* bytes = reinterpret_cast<const uint8_t*>(pixels[0] + i * strides[0]);
    for (int step = 0; step < steps; ++step, activations += kStepBytes) {
      vst1q_u8(activations, vld1q_dup_u8(bytes + step));
    }
  }
}

template <int kColumnsAtOnce, int kVectors>
struct Bytes {
  static constexpr int kColumns = kColumnsAtOnce;
  static constexpr int kStepBytes = popcount::kStepBytes;
  // Each step adds at most 8 to a count, so a byte holds 15 pairs of steps, 240 <= 255.
  static constexpr int kSteps = 2;
  static constexpr int kMaxSteps = 30;
  using AllSums = Sums<kColumns, kVectors>;

  uint8x16_t sums[kColumns][kVectors];

  MMG_INLINE Bytes() { clear(); }

  MMG_INLINE void clear() {
#pragma GCC unroll 8
    for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sums[p][v] = vdupq_n_u8(0);
    }
  }

  template <int kCount>
  MMG_INLINE void add(const uint8_t** activations, const uint8_t** weights) {
    uint8x16_t x[kColumns][kCount];
#pragma GCC unroll 8
    for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 4
      for (int s = 0; s < kCount; ++s) x[p][s] = vld1q_u8(activations[p] + s * kStepBytes);
      activations[p] += kCount * kStepBytes;
    }
#pragma GCC unroll 4
    for (int s = 0; s < kCount; ++s) {
#pragma GCC unroll 4
      for (int pair = 0; pair < kVectors; pair += 2) {
        const uint8_t* w = *weights + s * kLanes + pair * kVectorLanes;
        uint8x16_t both_weights[2] = {vld1q_u8(w), vld1q_u8(w + kVectorLanes)};
#pragma GCC unroll 8
        for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 2
          for (int v = 0; v < 2; ++v) {
            sums[p][pair + v] = vaddq_u8(sums[p][pair + v], vcntq_u8(veorq_u8(x[p][s], both_weights[v])));
          }
          // A barrier after every two columns: with more columns at a time, the compiler would spill sums.
          if (p % 2 == 1) {
            asm volatile(""
                         : "+w"(both_weights[0]), "+w"(both_weights[1])
                         : "w"(sums[p][pair]), "w"(sums[p][pair + 1])
                         : "memory");
          }
        }
      }
    }
    *weights += kCount * kLanes;
  }

  MMG_INLINE void flush(AllSums* all) {
#pragma GCC unroll 8
    for (int p = 0; p < kColumns; ++p) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) all->add(p, v, sums[p][v]);
    }
    all->count_flush();
    clear();
  }
};

template <int kVectors>
void count_columns(const Tile& tile, int32_t* different) {
  int first = 0;
  for (; first + kCountedColumns <= tile.columns; first += kCountedColumns) {
    count_steps<Bytes<kCountedColumns, kVectors>>(tile, first, different + first * kLanes);
  }
  for (; first < tile.columns; ++first) count_steps<Bytes<1, kVectors>>(tile, first, different + first * kLanes);
}

void count(const Tile& tile, int32_t* different) {
  return tile.channels > 32 ? count_columns<4>(tile, different) : count_columns<2>(tile, different);
}

}  // namespace popcount

// Channels whose signs are packed together.
constexpr int kSignLanes = 32;

// One bit per lane of eight vectors: not greater or equal to zero.
MMG_INLINE uint32_t negative_32(const float32x4_t* x) {
  // Lane l of vector v is channel 4 * v + l. A comparison sets all bits of a lane, or none. Shifted and inserted into
  // one vector, nibble v of lane l has four copies of the result for channel 4 * v + l. Lane l keeps bit l of each
  // nibble, so the sum of the lanes has one bit for each channel.
  uint32x4_t positive[8];
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) positive[v] = vcgezq_f32(x[v]);
#pragma GCC unroll 4
  for (int v = 0; v < 8; v += 2) positive[v] = vsliq_n_u32(positive[v], positive[v + 1], 4);
#pragma GCC unroll 2
  for (int v = 0; v < 8; v += 4) positive[v] = vsliq_n_u32(positive[v], positive[v + 2], 8);
  const uint32x4_t all = vsliq_n_u32(positive[0], positive[4], 16);
  const uint32x4_t kept = {0x11111111, 0x22222222, 0x44444444, 0x88888888};
  return vaddvq_u32(vbicq_u32(kept, all));
}

template <bool kIsPlain>
void pack_signs(const float* x, const float* scale, const float* shift, int channels, uint64_t* words) {
  for (int first = 0; first < channels; first += kWordBits) {
    const int end = channels - first < kWordBits ? channels : first + kWordBits;
    uint64_t word = 0;
    int c = first;
    for (; c + kSignLanes <= end; c += kSignLanes) {
      float32x4_t values[8];
#pragma GCC unroll 8
      for (int v = 0; v < 8; ++v) {
        values[v] = vld1q_f32(x + c + 4 * v);
        if (!kIsPlain) values[v] = before_sign<Vector>(values[v], scale, shift, c + 4 * v);
      }
      word |= uint64_t{negative_32(values)} << (c % kWordBits);
    }
    if (c < end) {
      const int whole = end - end % Vector::kLanes;
      word |= pack_range<Vector>(x, scale, shift, c, whole) | pack_range<Scalar>(x, scale, shift, whole, end);
    }
    words[first / kWordBits] = word;
  }
}

void pack(const float* x, const float* scale, const float* shift, int channels, uint64_t* words) {
  return scale == nullptr && shift == nullptr ? pack_signs<true>(x, nullptr, nullptr, channels, words)
                                              : pack_signs<false>(x, scale, shift, channels, words);
}

// Channels that are merged or gated together.
constexpr int kConnectedLanes = 16;

// As in elementwise.h, with sums that stay in registers.
void merge_vectors(const float* x, const float* scales, int branches, int channels, float* merged) {
  if (channels % kConnectedLanes != 0) return merge(x, scales, branches, channels, merged);
  for (int c = 0; c < channels; c += kConnectedLanes) {
    const float* branch = x + c;
    float32x4_t sums[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) sums[v] = vmulq_n_f32(vld1q_f32(branch + 4 * v), scales[0]);
    for (int k = 1; k < branches; ++k) {
      branch += channels;
#pragma GCC unroll 4
      for (int v = 0; v < 4; ++v) sums[v] = vaddq_f32(sums[v], vmulq_n_f32(vld1q_f32(branch + 4 * v), scales[k]));
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vst1q_f32(merged + c + 4 * v, sums[v]);
  }
}

void gate_vectors(const float* x, const float* merged, float share, int channels, float* out) {
  if (channels % kConnectedLanes != 0) return gate(x, merged, share, channels, out);
  for (int c = 0; c < channels; c += kConnectedLanes) {
    float32x4_t values[4];
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) {
      const float32x4_t mean = vld1q_f32(merged + c + 4 * v);
      values[v] = vaddq_f32(mean, vmulq_n_f32(vsubq_f32(vld1q_f32(x + c + 4 * v), mean), share));
    }
#pragma GCC unroll 4
    for (int v = 0; v < 4; ++v) vst1q_f32(out + c + 4 * v, values[v]);
  }
}

// Finishes 32 channels, from channel c on, of a plain epilogue with norms and an even length up to 65,534. Half the
// sum, length / 2 - different, lies within +-32,767, so it fits 16 bits, and it is doubled when it is widened. With a
// ReLU it is a difference of unsigned numbers that saturates at 0. No sum is a negative zero, and all are exact as
// floats, so they are the same as those of elementwise.h.
template <bool kRelu, bool kHasResidual>
void finish_32(const uint16_t* different, const Epilogue& e, int c) {
  const uint16x8_t half_length = vdupq_n_u16(static_cast<uint16_t>(e.length / 2));
  float32x4_t scale[8], shift[8];
#pragma GCC unroll 8
  for (int v = 0; v < 8; ++v) {
    scale[v] = vld1q_f32(e.norm_scale + c + 4 * v);
    shift[v] = vld1q_f32(e.norm_shift + c + 4 * v);
  }
  const float* residual = kHasResidual ? e.residual + c : nullptr;
  float* out = e.out + c;
  uint8_t* word = e.word == nullptr ? nullptr : reinterpret_cast<uint8_t*>(e.word) + c / 8;
  different += c;
  // Local copies: the compiler must assume that the stores below change the epilogue.
  const int64_t different_step = 2 * e.different_step, residual_step = e.residual_step, out_step = e.out_step;
  const int64_t word_bytes = e.word_step * static_cast<int64_t>(sizeof(uint64_t));
  for (int pixel = e.pixels; pixel > 0; --pixel) {
    float32x4_t values[8];
#pragma GCC unroll 4
    for (int v = 0; v < 8; v += 2) {
      const uint16x8_t counts = vld1q_u16(different + 4 * v);
      if (kRelu) {
        const uint16x8_t half = vqsubq_u16(half_length, counts);
        values[v] = vcvtq_f32_u32(vshll_n_u16(vget_low_u16(half), 1));
        values[v + 1] = vcvtq_f32_u32(vshll_high_n_u16(half, 1));
      } else {
        const int16x8_t half = vreinterpretq_s16_u16(vsubq_u16(half_length, counts));
        values[v] = vcvtq_f32_s32(vshll_n_s16(vget_low_s16(half), 1));
        values[v + 1] = vcvtq_f32_s32(vshll_high_n_s16(half, 1));
      }
    }
    // The result may overwrite the residual, so all of it is read before anything is written, in pairs of vectors.
#pragma GCC unroll 4
    for (int v = 0; v < 8; v += 2) {
      values[v] = vaddq_f32(vmulq_f32(scale[v], values[v]), shift[v]);
      values[v + 1] = vaddq_f32(vmulq_f32(scale[v + 1], values[v + 1]), shift[v + 1]);
      if (kHasResidual) {
        const float32x4_t first = vld1q_f32(residual + 4 * v), second = vld1q_f32(residual + 4 * v + 4);
        values[v] = vaddq_f32(values[v], first);
        values[v + 1] = vaddq_f32(values[v + 1], second);
      }
    }
#pragma GCC unroll 8
    for (int v = 0; v < 8; ++v) vst1q_f32(out + 4 * v, values[v]);
    if (word != nullptr) {
      // Half a word. The other half is written by the next vectors; if the branch ends here, no kernel reads it.
      const uint32_t negative = negative_32(values);
      std::memcpy(word, &negative, sizeof negative);
      word += word_bytes;
    }
    different += different_step;
    out += out_step;
    if (kHasResidual) residual += residual_step;
  }
}

template <bool kRelu>
void finish_plain(const uint16_t* different, const Epilogue& e) {
  for (int c = 0; c < e.channels; c += kSignLanes) {
    e.residual != nullptr ? finish_32<kRelu, true>(different, e, c) : finish_32<kRelu, false>(different, e, c);
  }
}

void finish(const int32_t* different, const Epilogue& e) {
  if (e.length > kMaxShortLength) return finish<Vector>(different, e);
  const uint16_t* shorts = reinterpret_cast<const uint16_t*>(different);
  const bool is_even = static_cast<int>(e.length) % 2 == 0;
  if (!is_plain(e) || e.norm_scale == nullptr || !is_even || e.channels % kSignLanes != 0) {
    Epilogue doubled = e;
    doubled.different_step *= 2;
    doubled.different_stride *= 2;
    return finish<Vector>(shorts, doubled);
  }
  return e.low == 0 ? finish_plain<true>(shorts, e) : finish_plain<false>(shorts, e);
}

double ceiling(int64_t rounds) {
  constexpr int kChains = 8;
  uint8x16_t a = vdupq_n_u8(0x35), sums[kChains];
  const uint8x16_t w = vdupq_n_u8(0x0f);
  for (auto& sum : sums) sum = vdupq_n_u8(0);
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+w"(a));  // keeps the compiler from moving the computation out of the loop
      sum = vaddq_u8(sum, vcntq_u8(veorq_u8(a, w)));
    }
  }
  for (auto& sum : sums) asm volatile("" : : "w"(sum));
  return 128.0 * kChains * static_cast<double>(rounds);
}

// Whether this is a Cortex-A57 or A72, see above; false if the system does not say.
bool has_slow_look_up() {
#if defined(__linux__)
  if ((getauxval(AT_HWCAP) & HWCAP_CPUID) == 0) return false;
  uint64_t id;
  asm("mrs %0, midr_el1" : "=r"(id));
  const uint64_t implementer = id >> 24 & 0xff, part = id >> 4 & 0xfff;
  return implementer == 0x41 && (part == 0xd07 || part == 0xd08);
#else
  return false;
#endif
}

Kernels make_kernels() {
  Kernels kernels = with_training({
      .name = "neon",
      .tile_columns = kTileColumns,
      .rows = look_up::kRows,
      .step_channels = look_up::kStepChannels,
      .step_bytes = look_up::kStepBytes,
      .step_weight_bytes = kLanes,
      .pack = pack,
      .expand = look_up::expand,
      .arrange = arrange<look_up::kStepChannels>,
      .count = look_up::count,
      .finish = finish,
      .merge = merge_vectors,
      .gate = gate_vectors,
      .pool = pool<Vector>,
      .ceiling = ceiling,
  });
  if (has_slow_look_up()) {
    kernels.rows = 1;
    kernels.step_channels = popcount::kStepChannels;
    kernels.step_bytes = popcount::kStepBytes;
    kernels.expand = popcount::expand;
    kernels.arrange = arrange<popcount::kStepChannels>;
    kernels.count = popcount::count;
  }
  return kernels;
}

}  // namespace

const Kernels* neon_kernels() {
  static const Kernels kernels = make_kernels();
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* neon_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
