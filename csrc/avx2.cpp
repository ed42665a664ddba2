// Kernels for AVX2, which has no popcount of its own: products by table look-up, of two pixels at once.
//
// A step is 4 channels; a column is two output pixels, one below the other, with activations a and b in a step. Row
// (a, b) of the table holds popcount(a xor w) + 16 * popcount(b xor w) for all 16 possible weights w: a byte shuffle of
// that row by the weights of 32 output channels gives all their counts for both pixels, 256 binary MACs in one
// instruction. The usual popcount by nibbles takes two shuffles and six other instructions for as many.
#include "kernels.h"

#if defined(__AVX2__)

#include <immintrin.h>

#include <cstring>

#include "elementwise.h"
#include "look_up.h"
#include "training.h"

namespace mmgroupnet {
namespace {

constexpr int kStepChannels = 4;
constexpr int kRows = 2;
constexpr int kTileColumns = 2;  // times two vectors times two sums: 8 of 16 registers; with 3 columns sums are spilled
// An activation is kept as 2 * (a + 16 * b), 16 bits: 8 times that, an address that x86 computes for free, is the place
// of its row of 16 bytes.
constexpr int kStepBytes = 2;
// Each step adds at most 4 to a count, so that a nibble holds three steps, 12 <= 15, and a byte 63, 252 <= 255.
constexpr int kStepsPerNibble = 3;
constexpr int kStepsPerByte = 63;
// Sums of 16 bits take 260 of these: 260 * 252 = 65,520 <= 65,535.
constexpr int kFlushesPerShort = 260;

struct Vector {
  using Type = __m256;
  static constexpr int kLanes = 8;
  static __m256 load(const float* x) { return _mm256_loadu_ps(x); }
  static void store(float* x, __m256 value) { _mm256_storeu_ps(x, value); }
  static __m256 convert(const int32_t* x) {
    return _mm256_cvtepi32_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(x)));
  }
  static __m256 set(float value) { return _mm256_set1_ps(value); }
  static __m256 add(__m256 a, __m256 b) { return _mm256_add_ps(a, b); }
  static __m256 multiply(__m256 a, __m256 b) { return _mm256_mul_ps(a, b); }
  static __m256 maximum(__m256 a, __m256 b) { return _mm256_max_ps(a, b); }
  static __m256 minus_twice(__m256 a, __m256 b) { return _mm256_sub_ps(a, _mm256_add_ps(b, b)); }
  static uint64_t negative(__m256 x) {
    return static_cast<uint64_t>(_mm256_movemask_ps(_mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_NGE_UQ)));
  }
};

// The 16 steps of a word of two pixels.
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
      // Bytes 2 * j and 2 * j + 1 of a vector hold the channels j and 16 + j, so that the even and the odd bytes, once
      // widened to 16 bits, are channels in their order.
      const int vector = lane / 32, half = lane % 32 / 16, j = lane % 16;
      weights[vector * 32 + 2 * j + half] = (word >> (step * kStepChannels % kWordBits)) & 0x0f;
    }
    weights += kLanes;
  }
}

template <int kColumns, int kVectors>
class Sums {
 public:
  explicit Sums(int32_t* out) : out_(out) {
    for (auto& column : shorts_) {
      for (auto& vector : column) {
        for (auto& half : vector) half = _mm256_setzero_si256();
      }
    }
  }

  // Takes the counts of both pixels of a column, bytes modulo 256.
  void add(int column, int vector, __m256i counts, int row) {
    __m256i* sums = shorts_[column * kRows + row][vector];
    sums[0] = _mm256_add_epi16(sums[0], _mm256_and_si256(counts, _mm256_set1_epi16(0x00ff)));
    sums[1] = _mm256_add_epi16(sums[1], _mm256_srli_epi16(counts, 8));
  }

  void count_flush() {
    if (++flushes_ == kFlushesPerShort) drain();
  }

  // 16 bits to the 32 bits of the result.
  void drain() {
    for (int p = 0; p < kColumns * kRows; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        for (int half = 0; half < 2; ++half) {
          __m256i* to = reinterpret_cast<__m256i*>(out_ + p * kLanes + v * 32 + half * 16);
          const __m256i from = shorts_[p][v][half];
          __m256i low = _mm256_cvtepu16_epi32(_mm256_castsi256_si128(from));
          __m256i high = _mm256_cvtepu16_epi32(_mm256_extracti128_si256(from, 1));
          if (drained_) {
            low = _mm256_add_epi32(low, _mm256_loadu_si256(to));
            high = _mm256_add_epi32(high, _mm256_loadu_si256(to + 1));
          }
          _mm256_storeu_si256(to, low);
          _mm256_storeu_si256(to + 1, high);
          shorts_[p][v][half] = _mm256_setzero_si256();
        }
      }
    }
    drained_ = true;
    flushes_ = 0;
  }

 private:
  __m256i shorts_[kColumns * kRows][kVectors][2];
  int32_t* out_;
  int flushes_ = 0;
  bool drained_ = false;
};

// With counts A and B of a column's pixels, `both` is the sum of A + 16 * B modulo 256 and `second` that of B. The sum
// of A, below 256, is then both - 16 * second modulo 256.
template <int kColumns, int kVectors>
struct Bytes {
  __m256i both[kColumns][kVectors], second[kColumns][kVectors];

  Bytes() {
    for (int p = 0; p < kColumns; ++p) {
      for (int v = 0; v < kVectors; ++v) both[p][v] = second[p][v] = _mm256_setzero_si256();
    }
  }

  // Adds `kSteps` steps, of which a nibble holds the counts.
  template <int kSteps>
  inline __attribute__((always_inline)) void add(const uint16_t* const* activations, int step, const uint8_t* weights) {
    const char* rows = reinterpret_cast<const char*>(&table.rows[0][0]);
    const __m256i low_nibbles = _mm256_set1_epi8(0x0f);
    for (int p = 0; p < kColumns; ++p) {
      __m256i counts[kVectors];
      for (int s = 0; s < kSteps; ++s) {
        const size_t activation = activations[p][step + s];
        const __m256i row =
            _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(rows + 8 * activation)));
        for (int v = 0; v < kVectors; ++v) {
          const __m256i w = _mm256_load_si256(reinterpret_cast<const __m256i*>(weights + s * kLanes) + v);
          const __m256i found = _mm256_shuffle_epi8(row, w);
          counts[v] = s == 0 ? found : _mm256_add_epi8(counts[v], found);
        }
      }
      for (int v = 0; v < kVectors; ++v) {
        both[p][v] = _mm256_add_epi8(both[p][v], counts[v]);
        second[p][v] = _mm256_add_epi8(second[p][v], _mm256_and_si256(_mm256_srli_epi16(counts[v], 4), low_nibbles));
      }
    }
  }

  void flush(Sums<kColumns, kVectors>* sums) const {
    for (int p = 0; p < kColumns; ++p) {
      for (int v = 0; v < kVectors; ++v) {
        const __m256i shifted =
            _mm256_slli_epi16(_mm256_and_si256(second[p][v], _mm256_set1_epi8(0x0f)), 4);
        sums->add(p, v, _mm256_sub_epi8(both[p][v], shifted), 0);
        sums->add(p, v, second[p][v], 1);
      }
    }
    sums->count_flush();
  }
};

template <int kColumns, int kVectors>
void count_tile(const Tile& tile, int32_t* different) {
  Sums<kColumns, kVectors> sums(different);
  Bytes<kColumns, kVectors> kept;
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
      Bytes<kColumns, kVectors> bytes = kept;  // in registers
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

template <int kVectors>
void count_columns(const Tile& tile, int32_t* different) {
  switch (tile.columns) {
    case 1: return count_tile<1, kVectors>(tile, different);
    case 2: return count_tile<2, kVectors>(tile, different);
    default: return count_tile<kTileColumns, kVectors>(tile, different);
  }
}

void count(const Tile& tile, int32_t* different) {
  return tile.channels > 32 ? count_columns<2>(tile, different) : count_columns<1>(tile, different);
}

// The best popcount that AVX2 is known for: xor, two look-ups by nibbles, sums of bytes; that these would have to be
// widened now and then is left out.
double ceiling(int64_t rounds) {
  constexpr int kChains = 4;
  const __m256i mask = _mm256_set1_epi8(0x0f);
  const __m256i row = _mm256_broadcastsi128_si256(_mm_load_si128(reinterpret_cast<const __m128i*>(table.rows[0])));
  __m256i sums[kChains], a = _mm256_set1_epi8(0x35);
  for (auto& sum : sums) sum = _mm256_setzero_si256();
  for (int64_t i = 0; i < rounds; ++i) {
    for (auto& sum : sums) {
      asm volatile("" : "+x"(a));  // the compiler must not know that it is the same vector again
      const __m256i x = _mm256_xor_si256(a, mask);
      const __m256i low = _mm256_shuffle_epi8(row, _mm256_and_si256(x, mask));
      const __m256i high = _mm256_shuffle_epi8(row, _mm256_and_si256(_mm256_srli_epi16(x, 4), mask));
      sum = _mm256_add_epi8(sum, _mm256_add_epi8(low, high));
    }
  }
  asm volatile("" : : "x"(_mm256_xor_si256(_mm256_xor_si256(sums[0], sums[1]), _mm256_xor_si256(sums[2], sums[3]))));
  return 256.0 * kChains * static_cast<double>(rounds);
}

}  // namespace

const Kernels* avx2_kernels() {
  if (!__builtin_cpu_supports("avx2")) return nullptr;
  static const Kernels kernels = {
      .name = "avx2",
      .tile_columns = kTileColumns,
      .rows = kRows,
      .step_channels = kStepChannels,
      .step_bytes = kStepBytes,
      .step_weight_bytes = kLanes,
      .pack = pack<Vector>,
      .expand = expand,
      .arrange = arrange,
      .count = count,
      .finish = finish<Vector>,
      .merge = merge,
      .gate = gate,
      .pool = pool<Vector>,
      .relu_sums = relu_sums,
      .relu_affine = relu_affine,
      .gradient_sums = gradient_sums,
      .affine_gradient = affine_gradient,
      .branch_signs = branch_signs,
      .sign_gradient = sign_gradient,
      .connect_gradient = connect_gradient,
      .ceiling = ceiling,
  };
  return &kernels;
}

}  // namespace mmgroupnet

#else

namespace mmgroupnet {
const Kernels* avx2_kernels() { return nullptr; }
}  // namespace mmgroupnet

#endif
