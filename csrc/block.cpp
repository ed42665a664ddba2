// Chains of units with the connection in front of them: a Group-Net block in one call.
#include <cstddef>
#include <utility>
#include <vector>

#include "block.h"
#include "convolution.h"
#include "threads.h"

namespace mmgroupnet {
namespace {

// Jobs of elementwise passes: this many pixels each.
constexpr int64_t kPixelsPerJob = 256;

// Memory that calls use again: what malloc returns to the system costs a page fault per 4 KiB on the next call, more
// than the arithmetic on it. Each calling thread keeps its own, up to kKeptBytes.
class Workspace {
 public:
  static constexpr size_t kKeptBytes = size_t{64} << 20;

  static Workspace& local() {
    thread_local Workspace workspace;
    return workspace;
  }

  // The smallest kept piece that is large enough, else a new one.
  std::vector<uint64_t> take(size_t words) {
    auto best = kept_.end();
    for (auto piece = kept_.begin(); piece != kept_.end(); ++piece) {
      if (piece->size() >= words && (best == kept_.end() || piece->size() < best->size())) best = piece;
    }
    if (best == kept_.end()) return std::vector<uint64_t>(words);
    std::vector<uint64_t> found = std::move(*best);
    kept_.erase(best);
    kept_bytes_ -= found.size() * sizeof(uint64_t);
    return found;
  }

  void give_back(std::vector<uint64_t> piece) {
    const size_t bytes = piece.size() * sizeof(uint64_t);
    if (kept_bytes_ + bytes > kKeptBytes) return;
    kept_bytes_ += bytes;
    kept_.push_back(std::move(piece));
  }

 private:
  std::vector<std::vector<uint64_t>> kept_;
  size_t kept_bytes_ = 0;
};

// An array from the workspace; it is written before it is read.
template <typename T>
class Array {
 public:
  Array() = default;
  explicit Array(int64_t size)
      : piece_(Workspace::local().take((static_cast<size_t>(size) * sizeof(T) + 7) / sizeof(uint64_t))) {}
  Array(Array&&) = default;
  Array& operator=(Array&& other) {
    std::swap(piece_, other.piece_);
    return *this;
  }
  ~Array() {
    if (!piece_.empty()) Workspace::local().give_back(std::move(piece_));
  }

  T* get() { return piece_.empty() ? nullptr : reinterpret_cast<T*>(piece_.data()); }
  const T* get() const { return const_cast<Array*>(this)->get(); }

 private:
  std::vector<uint64_t> piece_;
};

void for_pixels(int64_t pixels, int threads, const std::function<void(int64_t, int64_t)>& job) {
  const int jobs = static_cast<int>((pixels + kPixelsPerJob - 1) / kPixelsPerJob);
  parallel_for(jobs, threads, [&](int i) {
    const int64_t last = (i + 1) * kPixelsPerJob;
    job(i * kPixelsPerJob, last < pixels ? last : pixels);
  });
}

// Signs of a map as a unit reads them, with the memory that holds them.
struct SignMap {
  Array<uint64_t> words;
  int branches = 0, channels = 0;

  SignMap() = default;
  SignMap(int64_t pixels, int branches, int channels)
      : words(pixels * branches * ceil_div(channels, kWordBits)),
        branches(branches),
        channels(channels) {}

  Signs view() const { return {words.get(), branches, channels}; }
};

bool has_sign_parameters(const mmg_unit& unit) { return unit.sign_scale != nullptr || unit.sign_shift != nullptr; }

class Block {
 public:
  Block(const Kernels& kernels, const mmg_block& block, int threads)
      : kernels_(kernels), block_(block), size_{block.height, block.width}, threads_(threads) {}

  // Maps of the output's shape are made in `out`, one over the other, as far as nobody wants the former one any more: a
  // sum of a unit and its residual may take the residual's place, since units read signs, which lie elsewhere. What
  // does not have to be fetched is worth more here than arithmetic.
  void run(const float* x, float* out) {
    out_ = out;
    find_output();
    connect(x, block_.units[0].in_channels);
    SignMap signs = has_sign_parameters(block_.units[0]) ? pack(connected_, block_.units[0]) : plain_signs();
    const Map shortcut = make_shortcut(signs);

    Map map = connected_;
    Size size = size_;
    Array<float> values;  // of `map`, where it is not in `out`
    for (int i = 0; i < block_.num_units; ++i) {
      const mmg_unit& unit = block_.units[i];
      const Size out_size = output_size(unit, size);
      const int branches = output_branches(unit, signs.branches), folded = branches * unit.out_channels;
      Destination destination;
      if (unit.residual == MMG_RESIDUAL_INPUT) destination.residual = map;
      if (unit.residual == MMG_RESIDUAL_SHORTCUT) destination.residual = shortcut;
      Array<float> next_values;
      if (i >= last_shortcut_ && has_output_shape(folded, out_size)) {
        destination.values = out;
      } else if (destination.residual.data != nullptr && destination.residual.data == values.get()) {
        next_values = std::move(values);
        destination.values = next_values.get();
      } else {
        next_values = Array<float>(count_pixels(out_size) * folded);
        destination.values = next_values.get();
      }
      SignMap next_signs;
      if (i + 1 < block_.num_units) {
        next_signs = SignMap(count_pixels(out_size), branches, unit.out_channels);
        destination.signs = next_signs.words.get();
        destination.sign_scale = block_.units[i + 1].sign_scale;
        destination.sign_shift = block_.units[i + 1].sign_shift;
      }
      convolve(kernels_, unit, block_.batch, size, signs.view(), destination, threads_);
      map = {destination.values, branches, unit.out_channels};
      signs = std::move(next_signs);
      values = std::move(next_values);
      size = out_size;
    }
  }

 private:
  int64_t count_pixels(Size size) const { return static_cast<int64_t>(block_.batch) * size.height * size.width; }

  bool has_output_shape(int folded, Size size) const {
    return folded == out_folded_ && size.height == out_size_.height && size.width == out_size_.width;
  }

  // Shape of the output, and the last unit that adds the shortcut.
  void find_output() {
    int branches = block_.connection == MMG_SEPARATE || block_.connection == MMG_GATED ? block_.num_bases : 1;
    out_size_ = size_;
    for (int i = 0; i < block_.num_units; ++i) {
      const mmg_unit& unit = block_.units[i];
      branches = output_branches(unit, branches);
      out_size_ = output_size(unit, out_size_);
      out_folded_ = branches * unit.out_channels;
      if (unit.residual == MMG_RESIDUAL_SHORTCUT) last_shortcut_ = i;
    }
  }

  // Makes the input of the units; of a gated or merged one its signs, too, while it is in the cache.
  void connect(const float* x, int channels) {
    const int K = block_.num_bases;
    if (block_.connection == MMG_SEPARATE || block_.connection == MMG_BROADCAST) {
      connected_ = {x, block_.connection == MMG_SEPARATE ? K : 1, channels};
      return;
    }
    const int branches = block_.connection == MMG_GATED ? K : 1;
    const int64_t pixels = count_pixels(size_);
    float* values = out_;
    if (!has_output_shape(branches * channels, size_)) {
      connected_values_ = Array<float>(pixels * branches * channels);
      values = connected_values_.get();
    }
    connected_ = {values, branches, channels};
    plain_ = SignMap(pixels, branches, channels);
    mmgroupnet::connect(kernels_, x, pixels, K, channels, block_.merge_scales,
                        block_.connection == MMG_GATED ? block_.gate : nullptr, values, plain_.words.get(),
                        threads_);
  }

  // Signs of the connected map without a unit's own scale and shift.
  SignMap plain_signs() {
    if (plain_.words.get() != nullptr) return std::move(plain_);
    mmg_unit plain = block_.units[0];
    plain.sign_scale = plain.sign_shift = nullptr;
    return pack(connected_, plain);
  }

  // Signs of a map for a unit. Where each branch has a shift of its own, one map gives K different ones.
  SignMap pack(const Map& map, const mmg_unit& unit) const {
    const bool differ = has_sign_parameters(unit) && !unit.shares_weights && !unit.merges;
    SignMap signs(count_pixels(size_), differ ? unit.num_bases : map.branches, map.channels);
    const int words = ceil_div(map.channels, kWordBits);
    for_pixels(count_pixels(size_), threads_, [&](int64_t first, int64_t last) {
      for (int64_t pixel = first; pixel < last; ++pixel) {
        for (int k = 0; k < signs.branches; ++k) {
          const float* from = map.data + (pixel * map.branches + (map.branches == 1 ? 0 : k)) * map.channels;
          const int parameter = differ ? k * map.channels : 0;
          kernels_.pack(from, unit.sign_scale == nullptr ? nullptr : unit.sign_scale + parameter,
                        unit.sign_shift == nullptr ? nullptr : unit.sign_shift + parameter, map.channels,
                        signs.words.get() + (pixel * signs.branches + k) * words);
        }
      }
    });
    return signs;
  }

  // The map that units add as shortcut.
  Map make_shortcut(const SignMap& first_signs) {
    if (block_.shortcut_map != nullptr) {
      return {block_.shortcut_map, block_.num_bases, block_.units[block_.num_units - 1].out_channels};
    }
    if (block_.shortcut == nullptr) return connected_;
    const mmg_unit& unit = *block_.shortcut;
    SignMap own;
    const SignMap* signs = &first_signs;
    if (has_sign_parameters(unit) || has_sign_parameters(block_.units[0])) {
      own = pack(connected_, unit);
      signs = &own;
    }
    const Size size = output_size(unit, size_);
    const int branches = output_branches(unit, signs->branches), folded = branches * unit.out_channels;
    Destination destination;
    destination.values = out_;
    // The connected map may be in `out` as well, where a unit wants it as its own input.
    if (!has_output_shape(folded, size) || connected_.data == out_) {
      shortcut_values_ = Array<float>(count_pixels(size) * folded);
      destination.values = shortcut_values_.get();
    }
    convolve(kernels_, unit, block_.batch, size_, signs->view(), destination, threads_);
    return {destination.values, branches, unit.out_channels};
  }

  const Kernels& kernels_;
  const mmg_block& block_;
  const Size size_;
  const int threads_;
  float* out_ = nullptr;
  Size out_size_ = {0, 0};
  int out_folded_ = 0, last_shortcut_ = -1;
  Map connected_ = {nullptr, 1, 0};
  Array<float> connected_values_, shortcut_values_;  // where they are not in `out`
  SignMap plain_;  // signs of the connected map, where connecting made them
};

}  // namespace

void run_block(const Kernels& kernels, const mmg_block& block, const float* x, float* out, int threads) {
  Block(kernels, block, threads).run(x, out);
}

void connect(const Kernels& kernels, const float* x, int64_t pixels, int branches, int channels, const float* scales,
             const float* gate, float* out, uint64_t* signs, int threads) {
  const std::vector<float> mean(branches, 1.0f / branches);
  if (scales == nullptr) scales = mean.data();
  const int words = ceil_div(channels, kWordBits);
  for_pixels(pixels, threads, [&](int64_t first, int64_t last) {
    std::vector<float> merged(channels);
    for (int64_t pixel = first; pixel < last; ++pixel) {
      const float* from = x + pixel * branches * channels;
      if (gate == nullptr) {
        kernels.merge(from, scales, branches, channels, out + pixel * channels);
        if (signs != nullptr) kernels.pack(out + pixel * channels, nullptr, nullptr, channels, signs + pixel * words);
        continue;
      }
      kernels.merge(from, scales, branches, channels, merged.data());
      for (int k = 0; k < branches; ++k) {
        float* to = out + (pixel * branches + k) * channels;
        kernels.gate(from + k * channels, merged.data(), gate[k], channels, to);
        if (signs != nullptr) kernels.pack(to, nullptr, nullptr, channels, signs + (pixel * branches + k) * words);
      }
    }
  });
}

void sign_pack(const Kernels& kernels, const float* x, bool nchw, int batch, int64_t pixels, int branches, int channels,
               uint64_t* signs, int threads) {
  const int words = ceil_div(channels, kWordBits);
  for_pixels(batch * pixels, threads, [&](int64_t first, int64_t last) {
    std::vector<float> gathered(channels);
    for (int64_t i = first; i < last; ++i) {
      for (int k = 0; k < branches; ++k) {
        const float* from = x + (i * branches + k) * channels;
        if (nchw) {
          const float* plane = x + ((i / pixels) * branches + k) * channels * pixels + i % pixels;
          for (int c = 0; c < channels; ++c) gathered[c] = plane[c * pixels];
          from = gathered.data();
        }
        kernels.pack(from, nullptr, nullptr, channels, signs + (i * branches + k) * words);
      }
    }
  });
}

}  // namespace mmgroupnet
