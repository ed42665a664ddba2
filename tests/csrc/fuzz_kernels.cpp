// Runs random units and blocks through the C interface, with all kernels that this processor has. Integers must equal
// those of a naive loop, and floats must be the same for all kernels, bit for bit. It needs only csrc/, so it can be
// compiled with sanitizers. Every buffer has its own memory, of exactly the size that the interface states.
//
//   fuzz_kernels [rounds] [seed]
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <random>
#include <sstream>
#include <string>
#include <vector>

#include "mmgroupnet.h"

namespace {

constexpr size_t kWeightAlignment = 64;
constexpr int kWordBits = 64;

std::mt19937 generator;

int draw(int first, int last) { return std::uniform_int_distribution<int>(first, last)(generator); }
bool toss() { return draw(0, 1) == 1; }

template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[draw(0, static_cast<int>(values.size()) - 1)];
}

int ceil_div(int a, int b) { return (a + b - 1) / b; }

// Memory of exactly `size` elements, so that a sanitizer sees the first byte behind them; the capacity of a vector may
// be larger. It is filled with a pattern, because kernels must not rely on zeros.
template <typename T>
class Buffer {
 public:
  explicit Buffer(size_t size, size_t alignment = alignof(std::max_align_t)) : size_(size) {
    void* memory = nullptr;
    if (size > 0 && posix_memalign(&memory, alignment, size * sizeof(T)) != 0) std::abort();
    memory_.reset(static_cast<T*>(memory));
    if (size > 0) std::memset(memory, 0xa5, size * sizeof(T));
  }

  T* data() { return memory_.get(); }
  const T* data() const { return memory_.get(); }
  size_t size() const { return size_; }
  T& operator[](size_t i) { return memory_.get()[i]; }
  const T& operator[](size_t i) const { return memory_.get()[i]; }

  bool equals(const Buffer& other) const {
    return size_ == other.size_ && std::memcmp(data(), other.data(), size_ * sizeof(T)) == 0;
  }

 private:
  struct Free {
    void operator()(T* memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory_;
  size_t size_;
};

using Floats = Buffer<float>;

Floats random_floats(size_t size) {
  static const float special[] = {0.0f, -0.0f, 1.0f, -1.0f};
  Floats values(size);
  std::normal_distribution<float> normal;
  for (size_t i = 0; i < size; ++i) values[i] = draw(0, 7) == 0 ? special[draw(0, 3)] : normal(generator);
  return values;
}

[[noreturn]] void fail(const std::string& what, const std::string& described) {
  std::printf("FAILED: %s\n%s\n", what.c_str(), described.c_str());
  std::exit(1);
}

void check(int32_t status) {
  if (status != MMG_OK) fail(mmg_failure(), "");
}

std::vector<std::string> available_kernels() {
  std::istringstream names(mmg_available_kernels());
  std::vector<std::string> found;
  for (std::string name; names >> name;) found.push_back(name);
  return found;
}

// A unit with the memory that it points to.
struct Unit {
  mmg_unit numbers = {};
  Buffer<int32_t> dilations{0};
  Buffer<uint8_t> bits{0};
  Buffer<uint8_t> arranged{0};
  std::vector<Floats> parameters;

  int rows() const { return numbers.out_channels * (numbers.shares_weights ? 1 : numbers.num_bases); }
  int group_channels() const { return numbers.in_channels / numbers.groups; }
  int row_bits() const { return numbers.kernel_height * numbers.kernel_width * group_channels(); }
  int rate(int branch) const { return dilations[numbers.shares_weights ? 0 : branch]; }

  int pad(int branch, bool vertical) const {
    if (numbers.pad_height >= 0) return vertical ? numbers.pad_height : numbers.pad_width;
    return rate(branch) * ((vertical ? numbers.kernel_height : numbers.kernel_width) - 1) / 2;
  }

  int out_size(int size, bool vertical) const {
    const int kernel = vertical ? numbers.kernel_height : numbers.kernel_width;
    const int room = size + 2 * pad(0, vertical) - rate(0) * (kernel - 1) - 1;
    return room < 0 ? 0 : room / (vertical ? numbers.stride_height : numbers.stride_width) + 1;
  }

  int out_branches(int in_branches) const {
    if (numbers.merges) return 1;
    return numbers.shares_weights ? in_branches : numbers.num_bases;
  }

  // Weight of an output row, +1 or -1.
  int weight(int row, int tap, int channel) const {
    const int bit = tap * group_channels() + channel;
    const int bytes = ceil_div(row_bits(), 8);
    return bits[static_cast<size_t>(row) * bytes + bit / 8] >> (bit % 8) & 1 ? -1 : 1;
  }

  // Arranges the weights for the selected kernels.
  void arrange() {
    size_t bytes = 0;
    check(mmg_arranged_bytes(&numbers, &bytes));
    if (bytes == 0) fail("the unit was refused", describe());
    arranged = Buffer<uint8_t>(bytes, kWeightAlignment);
    check(mmg_arrange_weights(&numbers, bits.data(), arranged.data()));
    numbers.weights = arranged.data();
  }

  std::string describe() const {
    std::ostringstream text;
    text << "K=" << numbers.num_bases << " in=" << numbers.in_channels << " out=" << numbers.out_channels
         << " groups=" << numbers.groups << " kernel=" << numbers.kernel_height << "x" << numbers.kernel_width
         << " stride=" << numbers.stride_height << "x" << numbers.stride_width << " pad=" << numbers.pad_height << "x"
         << numbers.pad_width << " pad_value=" << numbers.pad_value << " shares=" << numbers.shares_weights
         << " merges=" << numbers.merges << " relu=" << numbers.relu << " residual=" << numbers.residual
         << " dilations=";
    for (size_t i = 0; i < dilations.size(); ++i) text << dilations[i] << ",";
    return text.str();
  }
};

int draw_channels() { return one_of({1, 3, 4, 5, 15, 16, 31, 32, 33, 63, 64, 65, 100, 127, 129, 200}); }

// Draws weights; the bits behind the last one of a row are zero.
void draw_bits(Unit& unit) {
  const int bytes = ceil_div(unit.row_bits(), 8);
  unit.bits = Buffer<uint8_t>(static_cast<size_t>(unit.rows()) * bytes);
  for (size_t i = 0; i < unit.bits.size(); ++i) {
    const bool is_last = (i + 1) % bytes == 0 && unit.row_bits() % 8 != 0;
    unit.bits[i] = static_cast<uint8_t>(draw(0, 255) & (is_last ? (1 << unit.row_bits() % 8) - 1 : 255));
  }
}

Unit random_unit(int num_bases, int in_channels, bool shares_weights, bool merges) {
  Unit unit;
  mmg_unit& numbers = unit.numbers;
  numbers.num_bases = num_bases;
  numbers.groups = in_channels % 3 == 0 && draw(0, 3) == 0 ? 3 : in_channels % 2 == 0 && draw(0, 3) == 0 ? 2 : 1;
  numbers.in_channels = in_channels;
  numbers.out_channels = numbers.groups * draw_channels();
  const bool is_same = toss();
  numbers.kernel_height = is_same ? one_of({1, 3, 5}) : draw(1, 4);
  numbers.kernel_width = is_same ? one_of({1, 3, 5}) : draw(1, 4);
  numbers.stride_height = draw(1, 3);
  numbers.stride_width = draw(1, 3);
  numbers.pad_height = is_same ? -1 : draw(0, 3);
  numbers.pad_width = is_same ? -1 : draw(0, 3);
  numbers.pad_value = draw(-1, 1);
  numbers.shares_weights = shares_weights;
  numbers.merges = merges;
  numbers.relu = toss();
  unit.dilations = Buffer<int32_t>(num_bases);
  for (int k = 0; k < num_bases; ++k) {
    const bool differ = is_same && !shares_weights && !merges;
    unit.dilations[k] = k == 0 || differ ? draw(1, 3) : unit.dilations[0];
  }
  numbers.dilations = unit.dilations.data();
  draw_bits(unit);
  return unit;
}

// Changes the kernel and the output channels of a unit, with stride 1 and a padding that keeps the size of maps.
void resize(Unit& unit, int kernel_height, int kernel_width, int out_channels) {
  mmg_unit& numbers = unit.numbers;
  numbers.groups = 1;
  numbers.kernel_height = kernel_height;
  numbers.kernel_width = kernel_width;
  numbers.stride_height = numbers.stride_width = 1;
  numbers.pad_height = numbers.pad_width = -1;
  numbers.out_channels = out_channels;
  draw_bits(unit);
}

void add_parameters(Unit& unit) {
  mmg_unit& numbers = unit.numbers;
  const int branches = numbers.merges || numbers.shares_weights ? 1 : numbers.num_bases;
  const auto parameter = [&](int size) {
    unit.parameters.push_back(random_floats(size));
    return unit.parameters.back().data();
  };
  if (toss()) numbers.scale = parameter(unit.rows());
  if (toss()) numbers.bias = parameter(branches * numbers.out_channels);
  if (toss()) {
    numbers.norm_scale = parameter(branches * numbers.out_channels);
    numbers.norm_shift = parameter(branches * numbers.out_channels);
  }
  if (toss()) numbers.sign_scale = parameter(branches * numbers.in_channels);
  if (toss()) numbers.sign_shift = parameter(branches * numbers.in_channels);
}

size_t count(int batch, int height, int width, int channels) {
  return static_cast<size_t>(batch) * height * width * channels;
}

// Signs of a map, set bit by bit.
Buffer<uint64_t> naive_signs(const Floats& x, size_t pixels, int branches, int channels) {
  const int words = ceil_div(channels, kWordBits);
  Buffer<uint64_t> signs(pixels * branches * words);
  std::memset(signs.data(), 0, signs.size() * sizeof(uint64_t));
  for (size_t i = 0; i < pixels * branches; ++i) {
    for (int c = 0; c < channels; ++c) {
      const uint64_t negative = x[i * channels + c] >= 0 ? 0 : 1;
      signs[i * words + c / kWordBits] |= negative << (c % kWordBits);
    }
  }
  return signs;
}

Floats to_nchw(const Floats& x, int batch, size_t pixels, int folded) {
  Floats out(x.size());
  for (int n = 0; n < batch; ++n) {
    for (size_t i = 0; i < pixels; ++i) {
      for (int c = 0; c < folded; ++c) {
        out[(n * static_cast<size_t>(folded) + c) * pixels + i] = x[(n * pixels + i) * folded + c];
      }
    }
  }
  return out;
}

Buffer<int32_t> naive_convolve(const Unit& unit, int batch, int height, int width, const Floats& x, int in_branches) {
  const mmg_unit& numbers = unit.numbers;
  const int branches = numbers.shares_weights ? in_branches : numbers.num_bases;
  const int out_height = unit.out_size(height, true), out_width = unit.out_size(width, false);
  const int group_outputs = numbers.out_channels / numbers.groups;
  Buffer<int32_t> out(count(batch, out_height, out_width, branches * numbers.out_channels));
  size_t next = 0;
  for (int n = 0; n < batch; ++n) {
    for (int oy = 0; oy < out_height; ++oy) {
      for (int ox = 0; ox < out_width; ++ox) {
        for (int k = 0; k < branches; ++k) {
          for (int o = 0; o < numbers.out_channels; ++o) {
            const int row = (numbers.shares_weights ? 0 : k) * numbers.out_channels + o;
            const int first = o / group_outputs * unit.group_channels();
            int sum = 0;
            for (int tap = 0; tap < numbers.kernel_height * numbers.kernel_width; ++tap) {
              const int y = oy * numbers.stride_height - unit.pad(k, true) + tap / numbers.kernel_width * unit.rate(k);
              const int z = ox * numbers.stride_width - unit.pad(k, false) + tap % numbers.kernel_width * unit.rate(k);
              const bool is_padded = y < 0 || y >= height || z < 0 || z >= width;
              const size_t pixel = (static_cast<size_t>(n) * height + y) * width + z;
              const size_t at = (pixel * in_branches + (in_branches == 1 ? 0 : k)) * numbers.in_channels + first;
              for (int c = 0; c < unit.group_channels(); ++c) {
                const int sign = is_padded ? numbers.pad_value : x[at + c] >= 0 ? 1 : -1;
                sum += sign * unit.weight(row, tap, c);
              }
            }
            out[next++] = sum;
          }
        }
      }
    }
  }
  return out;
}

void fuzz_convolve(const std::vector<std::string>& names) {
  const int num_bases = draw(1, 4), batch = draw(1, 2);
  Unit unit = random_unit(num_bases, draw(1, 3) * draw_channels(), toss(), false);
  const int height = draw(1, 7), width = draw(1, 7);
  if (unit.out_size(height, true) < 1 || unit.out_size(width, false) < 1) return;
  const int in_branches = toss() ? 1 : num_bases;
  const size_t pixels = static_cast<size_t>(height) * width;
  const Floats x = random_floats(count(batch, height, width, in_branches * unit.numbers.in_channels));
  const Floats nchw = to_nchw(x, batch, pixels, in_branches * unit.numbers.in_channels);
  const Buffer<uint64_t> signs = naive_signs(x, batch * pixels, in_branches, unit.numbers.in_channels);
  const Buffer<int32_t> expected = naive_convolve(unit, batch, height, width, x, in_branches);
  std::ostringstream described;
  described << unit.describe() << " batch=" << batch << " size=" << height << "x" << width
            << " branches=" << in_branches;
  for (const std::string& name : names) {
    check(mmg_select_kernels(name.c_str()));
    unit.arrange();
    for (int threads = 1; threads <= 2; ++threads) {
      for (int is_nchw = 0; is_nchw <= 1; ++is_nchw) {
        Buffer<uint64_t> packed(signs.size());
        check(mmg_sign_pack(is_nchw ? nchw.data() : x.data(), is_nchw, batch, static_cast<int64_t>(pixels), in_branches,
                            unit.numbers.in_channels, packed.data(), threads));
        if (!packed.equals(signs)) fail("mmg_sign_pack, " + name, described.str());
      }
      Buffer<int32_t> out(expected.size());
      check(mmg_convolve(&unit.numbers, batch, height, width, signs.data(), in_branches, 0, out.data(), threads));
      if (!out.equals(expected)) fail("mmg_convolve, " + name, described.str());
      Buffer<int16_t> shorts(expected.size());
      check(mmg_convolve(&unit.numbers, batch, height, width, signs.data(), in_branches, 1, shorts.data(), threads));
      for (size_t i = 0; i < expected.size(); ++i) {
        if (shorts[i] != expected[i]) fail("mmg_convolve of 16 bits, " + name, described.str());
      }
    }
  }
}

// Floats must be equal for all sets of kernels and numbers of threads, bit for bit.
template <typename Run>
void compare(const std::vector<std::string>& names, size_t size, const std::string& what, const std::string& described,
             const Run& run) {
  std::unique_ptr<Floats> expected;
  for (const std::string& name : names) {
    check(mmg_select_kernels(name.c_str()));
    for (int threads = 1; threads <= 2; ++threads) {
      auto out = std::make_unique<Floats>(size);
      run(out->data(), threads);
      if (expected == nullptr) expected = std::move(out);
      else if (!out->equals(*expected)) fail(what + ", " + name + " and " + names[0] + " differ", described);
    }
  }
  for (size_t i = 0; i < size; ++i) {
    if (!std::isfinite((*expected)[i])) fail(what + " is not finite", described);
  }
}

void fuzz_block(const std::vector<std::string>& names) {
  mmg_block block = {};
  block.batch = draw(1, 2);
  block.height = draw(1, 9);
  block.width = draw(1, 9);
  // Layer-wise blocks have one branch, and each of their units adds up its bases.
  const bool merges = draw(0, 3) == 0;
  block.num_bases = merges ? 1 : draw(1, 5);
  block.connection = draw(MMG_SEPARATE, MMG_GATED);
  const int in_channels = draw_channels();
  const bool is_one_map = block.connection == MMG_BROADCAST || block.connection == MMG_MERGED;

  std::vector<Unit> units;
  int height = block.height, width = block.width, channels = in_channels, branches = is_one_map ? 1 : block.num_bases;
  const int num_units = draw(1, 4);
  std::ostringstream described;
  described << "batch=" << block.batch << " size=" << height << "x" << width << " K=" << block.num_bases
            << " connection=" << block.connection;
  for (int i = 0; i < num_units; ++i) {
    Unit unit = random_unit(merges ? draw(1, 3) : block.num_bases, channels, false, merges);
    if (toss()) resize(unit, one_of({1, 3}), one_of({1, 3}), channels);  // Keeps the shape, for residuals.
    const int out_height = unit.out_size(height, true), out_width = unit.out_size(width, false);
    if (out_height < 1 || out_width < 1) break;
    const bool keeps_shape = out_height == height && out_width == width && unit.numbers.out_channels == channels;
    if (keeps_shape && toss()) unit.numbers.residual = MMG_RESIDUAL_INPUT;
    add_parameters(unit);
    height = out_height;
    width = out_width;
    channels = unit.numbers.out_channels;
    branches = unit.out_branches(branches);
    described << "\n  " << unit.describe();
    units.push_back(std::move(unit));
  }
  if (units.empty()) return;
  const size_t out_size = count(block.batch, height, width, branches * channels);

  // The last unit may add a shortcut: a map, the output of a unit for the input, or the input itself.
  Unit shortcut;
  Floats shortcut_map(0);
  bool has_shortcut = false;
  switch (draw(0, 3)) {
    case 0:
      // The map must have as many branches as the block.
      has_shortcut = branches == block.num_bases;
      shortcut_map = random_floats(out_size);
      if (has_shortcut) block.shortcut_map = shortcut_map.data();
      break;
    case 1:
      shortcut = random_unit(1, in_channels, true, false);
      resize(shortcut, 1, 1, channels);
      shortcut.numbers.stride_height = ceil_div(block.height, height);
      shortcut.numbers.stride_width = ceil_div(block.width, width);
      add_parameters(shortcut);
      described << "\n  shortcut " << shortcut.describe();
      has_shortcut = shortcut.out_size(block.height, true) == height && shortcut.out_size(block.width, false) == width;
      if (has_shortcut) block.shortcut = &shortcut.numbers;
      break;
    case 2: has_shortcut = height == block.height && width == block.width && channels == in_channels; break;
    default: break;
  }
  if (has_shortcut) units.back().numbers.residual = MMG_RESIDUAL_SHORTCUT;

  const Floats scales = random_floats(block.num_bases);
  Floats gate(block.num_bases);
  for (int k = 0; k < block.num_bases; ++k) gate[k] = std::uniform_real_distribution<float>(0.01f, 0.99f)(generator);
  if (toss()) block.merge_scales = scales.data();
  if (block.connection == MMG_GATED) block.gate = gate.data();
  const int given = block.connection == MMG_BROADCAST ? 1 : block.num_bases;
  const Floats x = random_floats(count(block.batch, block.height, block.width, given * in_channels));
  described << " residual of the last: " << units.back().numbers.residual;

  compare(names, out_size, "mmg_run_block", described.str(), [&](float* out, int threads) {
    Buffer<mmg_unit> numbers(units.size());
    for (size_t i = 0; i < units.size(); ++i) {
      units[i].arrange();
      numbers[i] = units[i].numbers;
    }
    if (block.shortcut != nullptr) shortcut.arrange();
    block.units = numbers.data();
    block.num_units = static_cast<int32_t>(units.size());
    check(mmg_run_block(&block, x.data(), out, threads));
  });
}

void fuzz_connect(const std::vector<std::string>& names) {
  const int branches = draw(1, 5), channels = draw_channels(), pixels = draw(1, 600);
  const Floats x = random_floats(static_cast<size_t>(pixels) * branches * channels);
  const Floats scales = random_floats(branches), gate = random_floats(branches);
  const bool is_gated = toss(), has_scales = toss();
  std::ostringstream described;
  described << "K=" << branches << " channels=" << channels << " pixels=" << pixels << " gated=" << is_gated;
  compare(names, static_cast<size_t>(pixels) * channels * (is_gated ? branches : 1), "mmg_connect", described.str(),
          [&](float* out, int threads) {
            check(mmg_connect(x.data(), pixels, branches, channels, has_scales ? scales.data() : nullptr,
                              is_gated ? gate.data() : nullptr, out, threads));
          });
}

void fuzz_max_pool(const std::vector<std::string>& names) {
  const int batch = draw(1, 2), height = draw(5, 20), width = draw(5, 20), channels = draw_channels();
  mmg_window window = {draw(1, 5), draw(1, 5), draw(1, 3), draw(1, 3), 0, 0};
  window.pad_height = draw(0, window.height / 2);
  window.pad_width = draw(0, window.width / 2);
  const int out_height = (height + 2 * window.pad_height - window.height) / window.stride_height + 1;
  const int out_width = (width + 2 * window.pad_width - window.width) / window.stride_width + 1;
  const Floats x = random_floats(count(batch, height, width, channels));
  const Floats scale = random_floats(channels), shift = random_floats(channels);
  const bool has_norm = toss();
  std::ostringstream described;
  described << "map=" << height << "x" << width << "x" << channels << " window=" << window.height << "x" << window.width
            << " stride=" << window.stride_height << "," << window.stride_width << " pad=" << window.pad_height << ","
            << window.pad_width << " norm=" << has_norm;
  compare(names, count(batch, out_height, out_width, channels), "mmg_max_pool", described.str(),
          [&](float* out, int threads) {
            check(mmg_max_pool(x.data(), batch, height, width, channels, &window, has_norm ? scale.data() : nullptr,
                               has_norm ? shift.data() : nullptr, out, threads));
          });
}

// Checks sums that do not fit 16 bits, and a row that is too long.
void check_lengths(const std::vector<std::string>& names) {
  Unit unit = random_unit(1, 7300, false, false);
  mmg_unit& numbers = unit.numbers;
  numbers.groups = 1;
  numbers.out_channels = 40;
  numbers.kernel_height = numbers.kernel_width = 3;
  numbers.stride_height = numbers.stride_width = 1;
  numbers.pad_height = numbers.pad_width = 0;
  unit.dilations[0] = 1;
  unit.bits = Buffer<uint8_t>(static_cast<size_t>(unit.rows()) * ceil_div(unit.row_bits(), 8));
  std::memset(unit.bits.data(), 0, unit.bits.size());  // All weights are +1.
  Floats x(count(1, 4, 4, numbers.in_channels));
  for (size_t i = 0; i < x.size(); ++i) x[i] = -1;
  const Buffer<uint64_t> signs = naive_signs(x, 16, 1, numbers.in_channels);
  for (const std::string& name : names) {
    check(mmg_select_kernels(name.c_str()));
    unit.arrange();
    Buffer<int32_t> out(count(1, 2, 2, numbers.out_channels));
    check(mmg_convolve(&numbers, 1, 4, 4, signs.data(), 1, 0, out.data(), 1));
    for (size_t i = 0; i < out.size(); ++i) {
      if (out[i] != -9 * numbers.in_channels) fail("sum beyond 16 bits, " + name, unit.describe());
    }
    mmg_unit too_long = numbers;
    too_long.in_channels = (1 << 24) / 9 + 1;
    size_t bytes = 1;
    check(mmg_arranged_bytes(&too_long, &bytes));
    if (bytes != 0) fail("a unit was accepted whose sums are not exact as floats, " + name, unit.describe());
  }
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 200;
  generator.seed(argc > 2 ? std::atoi(argv[2]) : 0);
  if (mmg_abi_version() != MMG_ABI_VERSION) fail("the library and its header have different versions", "");
  if (mmg_select_kernels("no such kernels") != MMG_FAILED) fail("kernels of an unknown name were selected", "");
  const std::vector<std::string> names = available_kernels();
  check_lengths(names);
  for (int i = 0; i < rounds; ++i) {
    fuzz_convolve(names);
    fuzz_block(names);
    fuzz_connect(names);
    fuzz_max_pool(names);
  }
  std::printf("%d rounds with the kernels %s\n", rounds, mmg_available_kernels());
}
