// Runs the blocks of a Group-Net ResNet-18 behind its stem through the C interface: 16 units with 3x3 kernels, three
// shortcuts with 1x1 kernels, and soft gates in front of all blocks except the first. The difference between the
// instruction counts of two runs with different `passes` is the count of the passes alone, without the preparation.
//
//   resnet18 K passes [kernels]
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>
#include <vector>

#include "mmgroupnet.h"

namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};

std::mt19937 generator;

std::vector<float> random_floats(size_t size) {
  std::vector<float> values(size);
  std::normal_distribution<float> normal;
  for (float& value : values) value = normal(generator);
  return values;
}

void check(int32_t status) {
  if (status == MMG_OK) return;
  std::fprintf(stderr, "%s\n", mmg_failure());
  std::exit(1);
}

// A unit that owns the arrays its struct points to.
struct Unit {
  mmg_unit numbers = {};
  std::vector<int32_t> dilations;
  std::vector<float> norm_scale, norm_shift;
  std::unique_ptr<uint8_t, Free> weights;

  Unit(int K, int in_channels, int out_channels, int kernel, int stride, bool is_shortcut) {
    const int rows = out_channels * (is_shortcut ? 1 : K), row_bytes = kernel * kernel * in_channels / 8;
    dilations.assign(K, 1);
    norm_scale = random_floats(rows);
    norm_shift = random_floats(rows);
    numbers.num_bases = K;
    numbers.in_channels = in_channels;
    numbers.out_channels = out_channels;
    numbers.groups = 1;
    numbers.kernel_height = numbers.kernel_width = kernel;
    numbers.stride_height = numbers.stride_width = stride;
    numbers.pad_height = numbers.pad_width = kernel / 2;
    numbers.pad_value = 1;
    numbers.dilations = dilations.data();
    numbers.shares_weights = is_shortcut;
    numbers.relu = !is_shortcut;
    numbers.norm_scale = norm_scale.data();
    numbers.norm_shift = norm_shift.data();
    std::vector<uint8_t> bits(static_cast<size_t>(rows) * row_bytes);
    for (uint8_t& byte : bits) byte = static_cast<uint8_t>(generator());
    size_t bytes = 0;
    check(mmg_arranged_bytes(&numbers, &bytes));
    weights.reset(static_cast<uint8_t*>(std::aligned_alloc(64, bytes)));
    check(mmg_arrange_weights(&numbers, bits.data(), weights.get()));
    numbers.weights = weights.get();
  }
};

struct Block {
  std::vector<Unit> units;  // the shortcut, if any, is the last one
  std::vector<mmg_unit> numbers;
  std::vector<float> gate;
  mmg_block block = {};

  Block(int K, int size, int in_channels, int out_channels, bool is_first) {
    const int stride = in_channels == out_channels ? 1 : 2;
    units.emplace_back(K, in_channels, out_channels, 3, stride, false);
    units.emplace_back(K, out_channels, out_channels, 3, 1, false);
    if (stride == 2) units.emplace_back(K, in_channels, out_channels, 1, stride, true);
    for (const Unit& unit : units) numbers.push_back(unit.numbers);
    numbers[0].residual = MMG_RESIDUAL_SHORTCUT;
    numbers[1].residual = MMG_RESIDUAL_INPUT;
    gate.assign(K, 0.3f);
    block.batch = 1;
    block.height = block.width = size;
    block.num_bases = K;
    // With one branch the merged map equals the branch, so there is no gate.
    block.connection = is_first ? MMG_BROADCAST : K == 1 ? MMG_SEPARATE : MMG_GATED;
    block.gate = block.connection == MMG_GATED ? gate.data() : nullptr;
    block.shortcut = stride == 2 ? &numbers[2] : nullptr;
    block.units = numbers.data();
    block.num_units = 2;
  }
};

}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 2;
  const int K = std::atoi(argv[1]), passes = std::atoi(argv[2]);
  check(mmg_select_kernels(argc > 3 ? argv[3] : ""));
  int size = 224 / 4, channels = 64;
  std::vector<std::unique_ptr<Block>> blocks;
  const std::vector<float> stem = random_floats(static_cast<size_t>(size) * size * channels);
  size_t largest = stem.size() * K;
  for (const int out_channels : {64, 64, 128, 128, 256, 256, 512, 512}) {
    blocks.push_back(std::make_unique<Block>(K, size, channels, out_channels, blocks.empty()));
    size = (size - 1) / (channels == out_channels ? 1 : 2) + 1;
    channels = out_channels;
  }
  std::vector<float> from(largest), to(largest), merged(static_cast<size_t>(size) * size * channels);
  for (int pass = 0; pass < passes; ++pass) {
    for (const auto& block : blocks) {
      check(mmg_run_block(&block->block, block == blocks[0] ? stem.data() : from.data(), to.data(), 1));
      std::swap(from, to);
    }
    check(mmg_connect(from.data(), static_cast<int64_t>(size) * size, K, channels, nullptr, nullptr, merged.data(), 1));
  }
  double sum = 0;
  for (const float value : merged) sum += value;
  std::printf("%s %.9g\n", mmg_selected_kernels(), sum);
}
