// Kernels by table look-up for x86, written once for vectors of 32 and of 64 bytes. They compute the products of two
// pixels at once.
//
// A step is 4 channels; a column is two output pixels, one below the other, with activations a and b in a step. Row
// (a, b) of the table holds popcount(a xor w) + 16 * popcount(b xor w) for all 16 possible weights w. A byte shuffle of
// that row by the weights of 32 output channels gives all their counts for both pixels: 256 binary MACs in one
// instruction. The usual popcount by nibbles takes two shuffles and six other instructions for as many MACs.
//
// `Lanes` is the type of the vectors. It has kBytes and the static functions zero, load, row (16 bytes, repeated),
// shuffle, add8, sub8, add16, both (bitwise and), differ (exclusive or), set8, set16, left4, right4, right8
// (of 16 bits) and widen.
#ifndef MMGROUPNET_LOOK_UP_X86_H_
#define MMGROUPNET_LOOK_UP_X86_H_

#include <immintrin.h>

#include <cstring>

#include "kernels.h"
#include "look_up.h"

namespace mmgroupnet {
namespace {

constexpr int kStepChannels = 4;
constexpr int kRows = 2;
// An activation is stored as 2 * (a + 16 * b), in 16 bits. Times 8, this is the offset of its row of 16 bytes in the
// table; x86 multiplies by 8 in an address at no cost.
constexpr int kStepBytes = 2;
// Each step adds at most 4 to a count, so a nibble holds three steps, 12 <= 15, and a byte 63, 252 <= 255.
constexpr int kStepsPerNibble = 3;
constexpr int kStepsPerByte = 63;
// A sum of 16 bits holds 260 such bytes: 260 * 252 = 65,520 <= 65,535.
constexpr int kFlushesPerShort = 260;

struct Ymm {
  using Type = __m256i;
  static constexpr int kBytes = 32;
  static __m256i zero() { return _mm256_setzero_si256(); }
  static __m256i load(const uint8_t* x) { return _mm256_load_si256(reinterpret_cast<const __m256i*>(x)); }
  static __m256i row(const char* x) {
    return _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(x)));
  }
  static __m256i shuffle(__m256i row, __m256i places) { return _mm256_shuffle_epi8(row, places); }
  static __m256i add8(__m256i a, __m256i b) { return _mm256_add_epi8(a, b); }
  static __m256i sub8(__m256i a, __m256i b) { return _mm256_sub_epi8(a, b); }
  static __m256i add16(__m256i a, __m256i b) { return _mm256_add_epi16(a, b); }
  static __m256i both(__m256i a, __m256i b) { return _mm256_and_si256(a, b); }
  static __m256i differ(__m256i a, __m256i b) { return _mm256_xor_si256(a, b); }
  static __m256i set8(char value) { return _mm256_set1_epi8(value); }
  static __m256i set16(short value) { return _mm256_set1_epi16(value); }
  static __m256i left4(__m256i a) { return _mm256_slli_epi16(a, 4); }
  static __m256i right4(__m256i a) { return _mm256_srli_epi16(a, 4); }
  static __m256i right8(__m256i a) { return _mm256_srli_epi16(a, 8); }
  // Adds sums of 16 bits to the 32-bit result, or stores them there. Every 16 of them are consecutive channels; the
  // next 16 are 32 channels further.
  static void widen(__m256i shorts, bool adds, int32_t* out) {
    __m256i* to = reinterpret_cast<__m256i*>(out);
    __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(shorts));
    __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(shorts, 1));
    if (adds) {
      low = _mm256_add_epi32(low, _mm256_loadu_si256(to));
      high = _mm256_add_epi32(high, _mm256_loadu_si256(to + 1));
    }
    _mm256_storeu_si256(to, low);
    _mm256_storeu_si256(to + 1, high);
  }
};

// The activations of the 16 steps of a word, for two pixels.
inline __m256i expand_word(const uint64_t* first, const uint64_t* second) {
  const __m128i low_nibbles = _mm_set1_epi8(0x0f);
  const __m128i a = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(first));
  const __m128i b = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(second));
  // Steps 0, 2, ... are the low nibbles of the bytes, steps 1, 3, ... the high ones.
  const __m128i even = _mm_or_si128(_mm_and_si128(a, low_nibbles), _mm_slli_epi16(_mm_and_si128(b, low_nibbles), 4));
  const __m128i odd = _mm_or_si128(_mm_and_si128(_mm_srli_epi16(a, 4), low_nibbles), _mm_andnot_si128(low_nibbles, b));
  return _mm256_slli_epi16(_mm256_cvtepu8_epi16(_mm_unpacklo_epi8(even, odd)), 1);
}

void expand(const uint64_t* const* pixels, const ptrdiff_t* strides, int columns, int channels, uint8_t* activations) {
  constexpr int kWordBytes = kWordBits / kStepChannels * kStepBytes;
  const int words = channels / kWordBits;
  const int rest_bytes = ceil_div(channels % kWordBits, kStepChannels) * kStepBytes;
  const uint64_t *first = pixels[0], *second = pixels[1];
  for (int i = 0; i < columns; ++i, first += strides[0], second += strides[1]) {
    for (int word = 0; word < words; ++word, activations += kWordBytes) {
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(activations), expand_word(first + word, second + word));
    }
    if (rest_bytes != 0) {
      alignas(32) uint8_t rest[kWordBytes];
      _mm256_store_si256(reinterpret_cast<__m256i*>(rest), expand_word(first + words, second + words));
      std::memcpy(activations, rest, rest_bytes);
      activations += rest_bytes;
    }
  }
}

void arrange(const uint64_t* words, ptrdiff_t stride, int channels, uint8_t* weights) {
  for (int step = 0; step < ceil_div(channels, kStepChannels); ++step) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint64_t word = words[lane * stride + step * kStepChannels / kWordBits];
      // Bytes 2 * j and 2 * j + 1 of a vector hold the channels j and 16 + j, so the even bytes, and likewise the odd
      // ones, are consecutive channels when they are widened to 16 bits.
      const int vector = lane / 32, half = lane % 32 / 16, j = lane % 16;
      weights[vector * 32 + 2 * j + half] = (word >> (step * kStepChannels % kWordBits)) & 0x0f;
    }
    weights += kLanes;
  }
}

template <typename Lanes, int kColumns, int kVectors>
class Sums {
 public:
  explicit Sums(int32_t* out) : out_(out) {
    for (auto& column : shorts_) {
      for (auto& vector : column) {
        for (auto& half : vector) half = Lanes::zero();
      }
    }
  }

  // Adds the counts of one pixel of a column, one byte for each channel.
  void add(int column, int vector, typename Lanes::Type counts, int row) {
    auto* sums = shorts_[column * kRows + row][vector];
    sums[0] = Lanes::add16(sums[0], Lanes::both(counts, Lanes::set16(0x00ff)));
    sums[1] = Lanes::add16(sums[1], Lanes::right8(counts));
  }

  void count_flush() {
    if (++flushes_ == kFlushesPerShort) drain();
  }

  // Adds the 16-bit sums to the 32-bit result.
  void drain() {
    for (int p = 0; p < kColumns * kRows; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        for (int half = 0; half < 2; ++half) {
          Lanes::widen(shorts_[p][v][half], drained_, out_ + p * kLanes + v * Lanes::kBytes + half * 16);
          shorts_[p][v][half] = Lanes::zero();
        }
      }
    }
    drained_ = true;
    flushes_ = 0;
  }

 private:
  typename Lanes::Type shorts_[kColumns * kRows][kVectors][2];
  int32_t* out_;
  int flushes_ = 0;
  bool drained_ = false;
};

// Let A and B be the counts of the two pixels of a column. `both` is the sum of A + 16 * B modulo 256, and `second` is
// the sum of B. The sum of A is below 256, so it is both - 16 * second modulo 256.
template <typename Lanes, int kColumns, int kVectors>
struct Bytes {
  typename Lanes::Type both[kColumns][kVectors], second[kColumns][kVectors];

  Bytes() {
    for (int p = 0; p < kColumns; ++p) {
      for (int v = 0; v < kVectors; ++v) both[p][v] = second[p][v] = Lanes::zero();
    }
  }

  // Adds `kSteps` steps, whose counts fit a nibble.
  template <int kSteps>
  inline __attribute__((always_inline)) void add(const uint16_t* const* activations, int step, const uint8_t* weights) {
    const char* rows = reinterpret_cast<const char*>(&table.rows[0][0]);
    const auto low_nibbles = Lanes::set8(0x0f);
    for (int p = 0; p < kColumns; ++p) {
      typename Lanes::Type counts[kVectors];
      for (int s = 0; s < kSteps; ++s) {
        const auto row = Lanes::row(rows + 8 * size_t{activations[p][step + s]});
        for (int v = 0; v < kVectors; ++v) {
          const auto found = Lanes::shuffle(row, Lanes::load(weights + s * kLanes + v * Lanes::kBytes));
          counts[v] = s == 0 ? found : Lanes::add8(counts[v], found);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        both[p][v] = Lanes::add8(both[p][v], counts[v]);
        second[p][v] = Lanes::add8(second[p][v], Lanes::both(Lanes::right4(counts[v]), low_nibbles));
      }
    }
  }

  void flush(Sums<Lanes, kColumns, kVectors>* sums) const {
    for (int p = 0; p < kColumns; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        const auto shifted = Lanes::left4(Lanes::both(second[p][v], Lanes::set8(0x0f)));
        sums->add(p, v, Lanes::sub8(both[p][v], shifted), 0);
        sums->add(p, v, second[p][v], 1);
      }
    }
    sums->count_flush();
  }
};

template <typename Lanes, int kColumns, int kVectors>
void count_tile(const Tile& tile, int32_t* different) {
  Sums<Lanes, kColumns, kVectors> sums(different);
  Bytes<Lanes, kColumns, kVectors> kept;
  const uint8_t* weights = tile.weights;
  int room = kStepsPerByte;
  for (int r = 0; r < tile.num_runs; ++r) {
    const uint16_t* activations[kColumns];
    for (int p = 0; p < kColumns; ++p) {
      activations[p] = reinterpret_cast<const uint16_t*>(tile.activations[p] + tile.runs[r].offset);
    }
    const int steps = tile.runs[r].steps;
    for (int done = 0; done < steps;) {
      const int stop = steps - done < room ? steps : done + room;
      room -= stop - done;
      Bytes<Lanes, kColumns, kVectors> bytes = kept;  // a copy that stays in registers
      for (; done + kStepsPerNibble <= stop; done += kStepsPerNibble, weights += kStepsPerNibble * kLanes) {
        bytes.template add<kStepsPerNibble>(activations, done, weights);
      }
      for (; done < stop; ++done, weights += kLanes) bytes.template add<1>(activations, done, weights);
      kept = bytes;
      if (room == 0) {
        kept.flush(&sums);
        kept = {};
        room = kStepsPerByte;
      }
    }
  }
  if (room < kStepsPerByte) kept.flush(&sums);
  sums.drain();
}

// Counts a tile of at most `kColumns` columns.
template <typename Lanes, int kColumns, int kVectors>
void count_columns(const Tile& tile, int32_t* different) {
  if constexpr (kColumns > 1) {
    if (tile.columns < kColumns) return count_columns<Lanes, kColumns - 1, kVectors>(tile, different);
  }
  count_tile<Lanes, kColumns, kVectors>(tile, different);
}

// The best known popcount without an instruction for it: xor, two look-ups by nibbles, sums of bytes. The bytes would
// have to be widened now and then; the loop leaves that out.
template <typename Lanes>
double ceiling(int64_t rounds) {
  constexpr int kChains = 4;
  const auto mask = Lanes::set8(0x0f), row = Lanes::row(reinterpret_cast<const char*>(table.rows[0]));
  typename Lanes::Type sums[kChains], a = Lanes::set8(0x35);
  for (auto& sum : sums) sum = Lanes::zero();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+v"(a));  // keeps the compiler from moving the computation out of the loop
      const auto x = Lanes::differ(a, mask);
      const auto low = Lanes::shuffle(row, Lanes::both(x, mask));
      const auto high = Lanes::shuffle(row, Lanes::both(Lanes::right4(x), mask));
      sum = Lanes::add8(sum, Lanes::add8(low, high));
    }
  }
  for (auto& sum : sums) asm volatile("" : : "v"(sum));
  return 8.0 * Lanes::kBytes * kChains * static_cast<double>(rounds);
}

}  // namespace
}  // namespace mmgroupnet

#endif  // MMGROUPNET_LOOK_UP_X86_H_
