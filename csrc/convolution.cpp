#include "convolution.h"

#include <algorithm>
#include <cstring>
#include <limits>

#include "memory.h"
#include "threads.h"

namespace mmgroupnet {
namespace {

// Sizes that stay in the second-level cache: of the activations of a job, and of the outputs of all branches in its
// rows.
constexpr int64_t kScratchBytes = 64 << 10;
constexpr int64_t kOutputBytes = 256 << 10;
constexpr ptrdiff_t kAlignment = 64;
// For maps of at most this many tiles, weights are prefetched.
constexpr int kFewTiles = 128;
// Sums of fewer products than this are exact as floats.
constexpr int64_t kMaxLength = 1 << 24;

int64_t round_up(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

int dilation(const mmg_unit& unit, int branch) { return unit.dilations[branch]; }

Size padding(const mmg_unit& unit, int branch) {
  if (unit.pad_height >= 0) return {unit.pad_height, unit.pad_width};
  const int rate = dilation(unit, branch);
  return {rate * (unit.kernel_height - 1) / 2, rate * (unit.kernel_width - 1) / 2};
}

// Sizes that all branches and groups of a unit have in common.
struct Layout {
  int taps, in_channels, out_channels;  // channels of one group
  int steps;                            // of one tap
  int pixel_bytes;                      // activations of one pixel
  int blocks;                           // of 64 output channels
  int64_t weights_bytes, block_bytes;   // without and with the sums of each tap

  Layout(const Kernels& kernels, const mmg_unit& unit)
      : taps(unit.kernel_height * unit.kernel_width),
        in_channels(unit.in_channels / unit.groups),
        out_channels(unit.out_channels / unit.groups),
        steps(ceil_div(in_channels, kernels.step_channels)),
        pixel_bytes(steps * kernels.step_bytes),
        blocks(ceil_div(out_channels, kLanes)),
        weights_bytes(round_up(static_cast<int64_t>(taps) * steps * kernels.step_weight_bytes)),
        block_bytes(weights_bytes + (unit.pad_value == 0 ? round_up(int64_t{4} * taps * kLanes) : 0)) {}

  int length() const { return taps * in_channels; }
  int64_t group_bytes() const { return blocks * block_bytes; }
};

// Bits [first, first + count) of a row of words.
void copy_bits(const uint64_t* words, int first, int count, uint64_t* out) {
  const int shift = first % kWordBits;
  words += first / kWordBits;
  for (int i = 0; i < ceil_div(count, kWordBits); ++i) {
    const int bits = std::min(count - i * kWordBits, kWordBits);
    uint64_t word = words[i] >> shift;
    if (shift && shift + bits > kWordBits) word |= words[i + 1] << (kWordBits - shift);
    out[i] = bits == kWordBits ? word : word & ((uint64_t{1} << bits) - 1);
  }
}

// One job: rows [first_row, end_row) of one image, branch and group, blocks [first_block, end_block) of its channels.
struct Job {
  int image, branch, group, first_row, end_row, first_block, end_block;
};

class Convolution {
 public:
  Convolution(const Kernels& kernels, const mmg_unit& unit, Size in, Signs signs, const Destination& destination)
      : kernels_(kernels),
        unit_(unit),
        layout_(kernels, unit),
        in_(in),
        out_(output_size(unit, in)),
        grid_(layout_.taps == 1 ? Size{unit.stride_height, unit.stride_width} : Size{1, 1}),
        step_{unit.stride_height / grid_.height, unit.stride_width / grid_.width},
        signs_(signs),
        destination_(destination),
        branches_(unit.merges ? 1 : output_branches(unit, signs.branches)) {}

  Storage<Job> jobs(const Rows& wanted_rows, int threads) const {
    const int height = wanted_rows.end - wanted_rows.first;
    // Bands of rows whose activations fit the scratch memory, but enough of them to keep all threads busy.
    const int64_t row_bytes =
        std::max<int64_t>(1, int64_t{padded_width(dilation(unit_, 0))} * layout_.pixel_bytes * step_.height);
    const int64_t output_bytes = int64_t{4} * out_.width * branches_ * unit_.out_channels;
    int rows = static_cast<int>(
        std::clamp<int64_t>(std::min(kScratchBytes / row_bytes, kOutputBytes / output_bytes), 1, height));
    const auto whole_columns = [this](int rows) { return ceil_div(rows, kernels_.rows) * kernels_.rows; };
    rows = whole_columns(rows);
    int blocks = layout_.blocks;
    const int wanted = threads == 1 ? 1 : 4 * threads;
    const int64_t others = int64_t{wanted_rows.end_image - wanted_rows.first_image} * branches_ * unit_.groups;
    while (others * ceil_div(height, rows) < wanted && rows > 4) {
      rows = whole_columns(ceil_div(rows, 2));
    }
    while (others * ceil_div(height, rows) * ceil_div(layout_.blocks, blocks) < wanted && blocks > 1) {
      blocks = ceil_div(blocks, 2);
    }
    Storage<Job> found;
    for (int image = wanted_rows.first_image; image < wanted_rows.end_image; ++image) {
      for (int row = wanted_rows.first; row < wanted_rows.end; row += rows) {
        for (int branch = 0; branch < branches_; ++branch) {
          for (int group = 0; group < unit_.groups; ++group) {
            for (int block = 0; block < layout_.blocks; block += blocks) {
              found.push_back({image, branch, group, row, std::min(row + rows, wanted_rows.end), block,
                               std::min(block + blocks, layout_.blocks)});
            }
          }
        }
      }
    }
    return found;
  }

  void run(const Job& job) const {
    const int rate = dilation(unit_, unit_.shares_weights ? 0 : job.branch);
    thread_local Storage<uint8_t> scratch;
    const int width = padded_width(rate);
    const uint8_t* activations = expand(job, rate, width, scratch);
    const Storage<Run> runs = find_runs(rate, width);
    const Storage<Column> columns = find_columns(job, width);
    const int num_columns = static_cast<int>(columns.size());
    const int tiles = ceil_div(num_columns, kernels_.tile_columns);
    Storage<int32_t> different;
    for (int block = job.first_block; block < job.end_block; ++block) {
      for (int tile = 0; tile < tiles; ++tile) {
        const int first = tile * kernels_.tile_columns;
        const int end = std::min(first + kernels_.tile_columns, num_columns);
        prefetch_weights(job, block + 1, tile, tiles);
        run_tile(job, rate, activations, runs, columns.data() + first, end - first, block, different);
      }
    }
  }

 private:
  int padded_width(int rate) const { return (out_.width - 1) * step_.width + rate * (unit_.kernel_width - 1) + 1; }

  // Padded activations of all pixels that the job's rows read.
  const uint8_t* expand(const Job& job, int rate, int width, Storage<uint8_t>& scratch) const {
    const ptrdiff_t bytes = layout_.pixel_bytes;
    const int row_groups = ceil_div(job.end_row - job.first_row, kernels_.rows);
    const int rows = (row_groups - 1) * kernels_.rows * step_.height + rate * (unit_.kernel_height - 1) + 1;
    const Size pad = padding(unit_, unit_.shares_weights ? 0 : job.branch);
    const int first_row = job.first_row * unit_.stride_height - pad.height;
    const int words = ceil_div(signs_.channels, kWordBits);
    const int first_bit = job.group * layout_.in_channels;
    const size_t scratch_bytes = static_cast<size_t>(rows) * width * bytes;
    if (scratch.size() < scratch_bytes) scratch = Storage<uint8_t>(scratch_bytes);

    const int group_words = ceil_div(layout_.in_channels, kWordBits);
    const Storage<uint64_t> pad_value(words, unit_.pad_value < 0 ? ~uint64_t{0} : 0);
    Storage<uint64_t> pad_pixel(group_words), row_of_group(kMaxRows * static_cast<size_t>(in_.width) * group_words);
    copy_bits(pad_value.data(), 0, layout_.in_channels, pad_pixel.data());

    // Columns [0, left), [left, right) and [right, width) of a row are padded, inside and padded.
    const int left = std::min(ceil_div(pad.width, grid_.width), width);
    const int right = std::clamp(ceil_div(pad.width + in_.width, grid_.width), left, width);
    const int branch = signs_.branches == 1 ? 0 : job.branch;
    uint8_t* to = scratch.data();
    for (int r = 0; r < rows; ++r) {
      const uint64_t* padded[kMaxRows];
      const uint64_t* inside[kMaxRows];
      ptrdiff_t no_strides[kMaxRows] = {}, strides[kMaxRows] = {};
      for (int j = 0; j < kernels_.rows; ++j) {
        const int y = first_row + r * grid_.height + j * unit_.stride_height;
        padded[j] = inside[j] = pad_pixel.data();
        if (y < 0 || y >= in_.height || left == right) continue;
        const int x = left * grid_.width - pad.width;
        const int64_t pixel = (static_cast<int64_t>(job.image) * in_.height + y) * in_.width + x;
        inside[j] = signs_.words + pixel * signs_.pixel_words() + branch * words;
        strides[j] = static_cast<ptrdiff_t>(grid_.width) * signs_.pixel_words();
        if (unit_.groups > 1) {
          uint64_t* bits = row_of_group.data() + static_cast<size_t>(j) * in_.width * group_words;
          for (int i = 0; i < right - left; ++i) {
            copy_bits(inside[j] + i * strides[j], first_bit, layout_.in_channels, bits + i * group_words);
          }
          inside[j] = bits;
          strides[j] = group_words;
        }
      }
      kernels_.expand(padded, no_strides, left, layout_.in_channels, to);
      kernels_.expand(inside, strides, right - left, layout_.in_channels, to + left * bytes);
      kernels_.expand(padded, no_strides, width - right, layout_.in_channels, to + right * bytes);
      to += width * bytes;
    }
    return scratch.data();
  }

  // Taps that are adjacent in memory are one run.
  Storage<Run> find_runs(int rate, int width) const {
    Storage<Run> runs;
    for (int ky = 0; ky < unit_.kernel_height; ++ky) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(ky) * rate * width * layout_.pixel_bytes;
      if (rate == 1) {
        runs.push_back({row, unit_.kernel_width * layout_.steps});
      } else {
        for (int kx = 0; kx < unit_.kernel_width; ++kx) {
          runs.push_back({row + static_cast<ptrdiff_t>(kx) * rate * layout_.pixel_bytes, layout_.steps});
        }
      }
    }
    return runs;
  }

  // The weights of small maps are not in a near cache, and each is used only a few times. So each tile prefetches its
  // share of the next block's weights.
  void prefetch_weights(const Job& job, int block, int tile, int tiles) const {
    constexpr int64_t kLineBytes = 64;
    if (block == layout_.blocks || tiles > kFewTiles) return;
    const uint8_t* weights = weights_of(weight_branch(job), job.group, block);
    const int64_t end = layout_.block_bytes * (tile + 1) / tiles;
    for (int64_t i = layout_.block_bytes * tile / tiles; i < end; i += kLineBytes) {
      __builtin_prefetch(weights + i, 0, 2);
    }
  }

  // Branch of the weights; the first one if bases are merged.
  int weight_branch(const Job& job) const { return unit_.merges || unit_.shares_weights ? 0 : job.branch; }

  const uint8_t* weights_of(int branch, int group, int block) const {
    return unit_.weights + (static_cast<int64_t>(branch) * unit_.groups + group) * layout_.group_bytes() +
           block * layout_.block_bytes;
  }

  // Output pixels one below the other, as many as the kernels compute at once. The first `rows` of them belong to the
  // job.
  struct Column {
    ptrdiff_t offset;  // of its first activation
    int y, x, rows;
  };

  Storage<Column> find_columns(const Job& job, int width) const {
    Storage<Column> columns;
    columns.reserve(static_cast<size_t>(ceil_div(job.end_row - job.first_row, kernels_.rows)) * out_.width);
    for (int y = job.first_row; y < job.end_row; y += kernels_.rows) {
      const ptrdiff_t row = static_cast<ptrdiff_t>(y - job.first_row) * step_.height * width;
      for (int x = 0; x < out_.width; ++x) {
        columns.push_back(
            {(row + x * step_.width) * layout_.pixel_bytes, y, x, std::min(kernels_.rows, job.end_row - y)});
      }
    }
    return columns;
  }

  void run_tile(const Job& job, int rate, const uint8_t* activations, const Storage<Run>& runs, const Column* columns,
                int num_columns, int block, Storage<int32_t>& different_buffer) const {
    Tile tile;
    tile.columns = num_columns;
    tile.runs = runs.data();
    tile.num_runs = static_cast<int>(runs.size());
    const int first_channel = block * kLanes;  // of the group
    tile.channels = std::min(kLanes, layout_.out_channels - first_channel);
    tile.length = layout_.length();
    const int next = channel(job.branch, job.group, first_channel);  // folded channel of the output
    for (int i = 0; i < num_columns; ++i) tile.activations[i] = activations + columns[i].offset;
    prefetch_residual(job, columns, num_columns, next, tile.channels);

    // Merged bases read the same activations; without merging there is one base.
    const int bases = unit_.merges ? unit_.num_bases : 1;
    const int stride = tile.columns * kernels_.rows * kLanes;
    if (different_buffer.size() < static_cast<size_t>(bases) * stride) different_buffer.resize(bases * stride);
    int32_t* different = different_buffer.data();
    for (int base = 0; base < bases; ++base) {
      tile.weights = weights_of(weight_branch(job) + base, job.group, block);
      kernels_.count(tile, different + base * stride);
    }

    Epilogue epilogue = describe_epilogue(channel(weight_branch(job), job.group, first_channel), tile.channels);
    epilogue.bases = bases;
    epilogue.different_stride = stride;
    Storage<int32_t> excess(unit_.pad_value == 0 ? static_cast<size_t>(bases) * kLanes : 0);
    for (int j = 0; j < kernels_.rows; ++j) {
      // Consecutive pixels are finished together. With padded zeros, each pixel has its own excess and is finished
      // alone.
      for (int i = 0, end; i < num_columns; i = end) {
        end = i + 1;
        if (j >= columns[i].rows) continue;
        const int64_t first_pixel = pixel(job, columns[i].y + j, columns[i].x);
        if (unit_.pad_value == 0) {
          find_excess(job, rate, columns[i].y + j, columns[i].x, block, bases, &excess, &epilogue);
        } else {
          while (end < num_columns && j < columns[end].rows &&
                 pixel(job, columns[end].y + j, columns[end].x) == first_pixel + end - i) {
            ++end;
          }
        }
        epilogue.pixels = end - i;
        finish(job, first_pixel, next, different + (i * kernels_.rows + j) * kLanes, epilogue);
      }
    }
  }

  int64_t pixel(const Job& job, int y, int x) const {
    return (static_cast<int64_t>(job.image) * out_.height + y) * out_.width + x;
  }

  // Residuals have a stride that hardware does not predict. They are prefetched here, and arrive while the sums are
  // computed.
  void prefetch_residual(const Job& job, const Column* columns, int num_columns, int next, int channels) const {
    constexpr int kLineFloats = 16;
    if (destination_.residual.data == nullptr) return;
    for (int i = 0; i < num_columns; ++i) {
      for (int j = 0; j < columns[i].rows; ++j) {
        const float* values = residual(job, pixel(job, columns[i].y + j, columns[i].x), next);
        for (int c = 0; c < channels; c += kLineFloats) __builtin_prefetch(values + c);
      }
    }
  }

  const float* residual(const Job& job, int64_t pixel, int next) const {
    const Map& from = destination_.residual;
    return from.data + pixel * from.folded() + (from.branches == 1 ? next - job.branch * unit_.out_channels : next);
  }

  // The folded channel of a channel of a group.
  int channel(int branch, int group, int channel_of_group) const {
    return branch * unit_.out_channels + group * layout_.out_channels + channel_of_group;
  }

  // A padded zero was counted as +1. This subtracts the sums of the taps that read one.
  void find_excess(const Job& job, int rate, int out_y, int out_x, int block, int bases, Storage<int32_t>* excess,
                   Epilogue* epilogue) const {
    const Size pad = padding(unit_, unit_.shares_weights ? 0 : job.branch);
    const int top = out_y * unit_.stride_height - pad.height, left = out_x * unit_.stride_width - pad.width;
    std::fill(excess->begin(), excess->end(), 0);
    epilogue->excess = nullptr;
    for (int ky = 0; ky < unit_.kernel_height; ++ky) {
      for (int kx = 0; kx < unit_.kernel_width; ++kx) {
        const int y = top + ky * rate, x = left + kx * rate;
        if (y >= 0 && y < in_.height && x >= 0 && x < in_.width) continue;
        epilogue->excess = excess->data();
        for (int base = 0; base < bases; ++base) {
          const uint8_t* weights = weights_of(weight_branch(job) + base, job.group, block);
          const auto* tap_sums = reinterpret_cast<const int32_t*>(weights + layout_.weights_bytes);
          tap_sums += (ky * unit_.kernel_width + kx) * kLanes;
          for (int c = 0; c < kLanes; ++c) (*excess)[base * kLanes + c] -= tap_sums[c];
        }
      }
    }
  }

  bool has_bare_sums() const { return destination_.integers != nullptr || destination_.shorts != nullptr; }

  // The part of the epilogue that all pixels of a tile share; `parameter` is the tile's first channel among the unit's
  // parameters.
  Epilogue describe_epilogue(int parameter, int channels) const {
    const auto offset = [parameter](const float* values) { return values == nullptr ? nullptr : values + parameter; };
    Epilogue epilogue = {};
    epilogue.channels = channels;
    epilogue.length = static_cast<float>(layout_.length());
    epilogue.low = -std::numeric_limits<float>::infinity();
    if (has_bare_sums()) return epilogue;
    epilogue.scale = offset(unit_.scale);
    epilogue.scale_stride = unit_.out_channels;
    epilogue.bias = offset(unit_.bias);
    epilogue.norm_scale = offset(unit_.norm_scale);
    epilogue.norm_shift = offset(unit_.norm_shift);
    if (unit_.relu) epilogue.low = 0;
    return epilogue;
  }

  void finish(const Job& job, int64_t pixel, int next, const int32_t* different, Epilogue& epilogue) const {
    const int folded = branches_ * unit_.out_channels;
    const int64_t at = pixel * folded + next;
    epilogue.different_step = kernels_.rows * kLanes;
    epilogue.out_step = folded;
    if (has_bare_sums()) {
      float values[kMaxTileColumns * kLanes];
      epilogue.out = values;
      epilogue.out_step = kLanes;
      kernels_.finish(different, epilogue);
      for (int i = 0; i < epilogue.pixels; ++i) {
        const float* from = values + i * kLanes;
        const int64_t to = at + static_cast<int64_t>(i) * folded;
        for (int c = 0; c < epilogue.channels; ++c) {
          if (destination_.shorts != nullptr) destination_.shorts[to + c] = static_cast<int16_t>(from[c]);
          else destination_.integers[to + c] = static_cast<int32_t>(from[c]);
        }
      }
      return;
    }
    if (destination_.residual.data != nullptr) {
      epilogue.residual = residual(job, pixel, next);
      epilogue.residual_step = destination_.residual.folded();
    }
    epilogue.out = destination_.values + at;
    if (destination_.signs != nullptr) {
      const int words = ceil_div(unit_.out_channels, kWordBits);
      epilogue.word_step = branches_ * words;
      epilogue.word = destination_.signs + (pixel * branches_ + job.branch) * words +
                      (next - job.branch * unit_.out_channels) / kWordBits;
      if (destination_.sign_scale != nullptr) epilogue.sign_scale = destination_.sign_scale + next;
      if (destination_.sign_shift != nullptr) epilogue.sign_shift = destination_.sign_shift + next;
    }
    kernels_.finish(different, epilogue);
  }

  const Kernels& kernels_;
  const mmg_unit& unit_;
  const Layout layout_;
  const Size in_, out_;
  // Activations are stored for every grid-th pixel: a strided 1x1 conv does not read those between. Adjacent outputs
  // are `step_` stored pixels apart.
  const Size grid_, step_;
  const Signs signs_;
  const Destination& destination_;
  const int branches_;  // of the output
};

}  // namespace

Size output_size(const mmg_unit& unit, Size input) {
  const Size pad = padding(unit, 0);
  const int rate = dilation(unit, 0);
  return {(input.height + 2 * pad.height - rate * (unit.kernel_height - 1) - 1) / unit.stride_height + 1,
          (input.width + 2 * pad.width - rate * (unit.kernel_width - 1) - 1) / unit.stride_width + 1};
}

int end_input_row(const mmg_unit& unit, Size input, int end_row) {
  int end = 0;
  for (int branch = 0; branch < (unit.shares_weights ? 1 : unit.num_bases); ++branch) {
    const int seen = dilation(unit, branch) * (unit.kernel_height - 1) + 1;
    end = std::max(end, (end_row - 1) * unit.stride_height - padding(unit, branch).height + seen);
  }
  return std::clamp(end, 0, input.height);
}

int output_branches(const mmg_unit& unit, int input_branches) {
  if (unit.merges) return 1;
  return unit.shares_weights ? input_branches : unit.num_bases;
}

size_t arranged_bytes(const Kernels& kernels, const mmg_unit& unit) {
  const Layout layout(kernels, unit);
  if (static_cast<int64_t>(layout.taps) * layout.in_channels >= kMaxLength) return 0;
  return layout.group_bytes() * unit.groups * (unit.shares_weights ? 1 : unit.num_bases);
}

void arrange_weights(const Kernels& kernels, const mmg_unit& unit, const uint8_t* bits, uint8_t* arranged) {
  const Layout layout(kernels, unit);
  const int row_bytes = ceil_div(layout.taps * layout.in_channels, 8);
  const int tap_words = ceil_div(layout.in_channels, kWordBits);
  const int branches = unit.shares_weights ? 1 : unit.num_bases;
  Storage<uint64_t> words(static_cast<size_t>(kLanes) * tap_words);
  for (int group = 0; group < branches * unit.groups; ++group) {
    for (int block = 0; block < layout.blocks; ++block) {
      uint8_t* block_start = arranged + group * layout.group_bytes() + block * layout.block_bytes;
      std::fill(block_start, block_start + layout.block_bytes, 0);
      uint8_t* weights = block_start;
      int32_t* tap_sums = reinterpret_cast<int32_t*>(block_start + layout.weights_bytes);
      for (int tap = 0; tap < layout.taps; ++tap) {
        std::fill(words.begin(), words.end(), 0);
        for (int lane = 0; lane < std::min(kLanes, layout.out_channels - block * kLanes); ++lane) {
          const int64_t row = static_cast<int64_t>(group) * layout.out_channels + block * kLanes + lane;
          const uint8_t* from = bits + row * row_bytes;
          if (layout.in_channels % 8 == 0) {  // whole bytes
            std::memcpy(&words[lane * tap_words], from + tap * layout.in_channels / 8, layout.in_channels / 8);
            continue;
          }
          for (int c = 0; c < layout.in_channels; ++c) {
            const int bit = tap * layout.in_channels + c;
            words[lane * tap_words + c / kWordBits] |= uint64_t{(from[bit / 8] >> bit % 8) & 1u} << (c % kWordBits);
          }
        }
        kernels.arrange(words.data(), tap_words, layout.in_channels, weights);
        weights += static_cast<int64_t>(layout.steps) * kernels.step_weight_bytes;
        for (int lane = 0; lane < kLanes && unit.pad_value == 0; ++lane) {
          int negative = 0;
          for (int i = 0; i < tap_words; ++i) negative += __builtin_popcountll(words[lane * tap_words + i]);
          tap_sums[tap * kLanes + lane] = layout.in_channels - 2 * negative;
        }
      }
    }
  }
}

void convolve(const Kernels& kernels, const mmg_unit& unit, const Rows& rows, Size size, Signs signs,
              Destination destination, int threads) {
  uint64_t* const next_signs = destination.signs;
  // Groups of whole words write their signs as they finish. Other groups share words, so their signs are packed
  // afterwards.
  const bool packs_later = next_signs != nullptr && unit.groups > 1 && unit.out_channels / unit.groups % kWordBits != 0;
  if (packs_later) destination.signs = nullptr;
  const Convolution convolution(kernels, unit, size, signs, destination);
  const Storage<Job> jobs = convolution.jobs(rows, threads);
  parallel_for(static_cast<int>(jobs.size()), threads, [&](int i) { convolution.run(jobs[i]); });
  if (packs_later) {
    const Size out = output_size(unit, size);
    const int branches = output_branches(unit, signs.branches), words = ceil_div(unit.out_channels, kWordBits);
    for (int image = rows.first_image; image < rows.end_image; ++image) {
      const int64_t first = (static_cast<int64_t>(image) * out.height + rows.first) * out.width * branches;
      const int64_t end = first + static_cast<int64_t>(rows.end - rows.first) * out.width * branches;
      for (int64_t i = first; i < end; ++i) {
        const int64_t next = i % branches * unit.out_channels;
        kernels.pack(destination.values + i * unit.out_channels,
                     destination.sign_scale == nullptr ? nullptr : destination.sign_scale + next,
                     destination.sign_shift == nullptr ? nullptr : destination.sign_shift + next, unit.out_channels,
                     next_signs + i * words);
      }
    }
  }
}

}  // namespace mmgroupnet
