// Chains of units with the connection in front of them: a Group-Net block in one call.
#include "block.h"

#include <algorithm>
#include <cstddef>
#include <deque>
#include <functional>
#include <new>
#include <utility>
#include <vector>

#include "convolution.h"
#include "memory.h"
#include "threads.h"

namespace mmgroupnet {
namespace {

// Size of a band of a block's output, per thread. Two or three such bands are in use at a time.
constexpr int64_t kBandBytes = 256 << 10;

// Memory that later calls reuse. If malloc returned it to the system, the next call would have a page fault for every
// 4 KiB, which takes longer than the arithmetic on them. Each calling thread keeps its own memory, up to kKeptBytes.
class Workspace {
 public:
  static constexpr size_t kKeptBytes = size_t{64} << 20;

  static Workspace& local() {
    thread_local Workspace workspace;
    return workspace;
  }

  // The smallest kept piece that is large enough, else a new one.
  Storage<uint64_t> take(size_t words) {
    auto best = kept_.end();
    for (auto piece = kept_.begin(); piece != kept_.end(); ++piece) {
      if (piece->size() >= words && (best == kept_.end() || piece->size() < best->size())) best = piece;
    }
    if (best == kept_.end()) return Storage<uint64_t>(words);
    Storage<uint64_t> found = std::move(*best);
    kept_.erase(best);
    kept_bytes_ -= found.size() * sizeof(uint64_t);
    return found;
  }

  void give_back(Storage<uint64_t> piece) noexcept {
    const size_t bytes = piece.size() * sizeof(uint64_t);
    if (kept_bytes_ + bytes > kKeptBytes) return;
    try {
      kept_.push_back(std::move(piece));
      kept_bytes_ += bytes;
    } catch (const std::bad_alloc&) {  // The piece is freed.
    }
  }

 private:
  std::vector<Storage<uint64_t>> kept_;
  size_t kept_bytes_ = 0;
};

// An array from the workspace. It is not initialised.
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
  Storage<uint64_t> piece_;
};

// Signs of a map as a unit reads them, and the memory that holds them.
struct SignMap {
  Array<uint64_t> words;
  int branches = 0, channels = 0;

  SignMap() = default;
  SignMap(int64_t pixels, int branches, int channels)
      : words(pixels * branches * ceil_div(channels, kWordBits)), branches(branches), channels(channels) {}

  Signs view() const { return {words.get(), branches, channels}; }
};

bool has_sign_parameters(const mmg_unit& unit) { return unit.sign_scale != nullptr || unit.sign_shift != nullptr; }

// Merges and gates branches. Packs the signs of the result, too, if `signs` is not null.
void connect_pixels(const Kernels& kernels, const float* x, int64_t pixels, int branches, int channels,
                    const float* scales, const float* gate, float* out, uint64_t* signs) {
  const Storage<float> mean(branches, 1.0f / branches);
  if (scales == nullptr) scales = mean.data();
  const int words = ceil_div(channels, kWordBits);
  Storage<float> merged(channels);
  for (int64_t pixel = 0; pixel < pixels; ++pixel) {
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
}

class Block {
 public:
  Block(const Kernels& kernels, const mmg_block& block, const float* x, float* out, int threads)
      : kernels_(kernels), block_(block), size_{block.height, block.width}, x_(x), out_(out), threads_(threads) {
    find_output();
    const int connect = add_connection();
    const mmg_unit& first = block_.units[0];
    int signs = has_sign_parameters(first) || plain_.words.get() == nullptr ? add_packing(first, connect) : connect;
    const Signs first_signs = signs == connect ? plain_.view() : sign_maps_.back().view();
    shortcut_ = connected_;
    int shortcut = connect;
    if (block_.shortcut_map != nullptr) {
      shortcut_ = {block_.shortcut_map, block_.num_bases, block_.units[block_.num_units - 1].out_channels};
      shortcut = kNoStep;
    } else if (block_.shortcut != nullptr) {
      shortcut = add_shortcut(connect, signs, first_signs);
    }
    add_units(connect, signs, first_signs, shortcut);
  }

  // Computes the output band by band. All steps of a band run one after the other, so each finds its input in the
  // cache.
  void run() {
    if (block_.batch == 0) return;
    const int64_t row_bytes = int64_t{4} * out_size_.width * out_folded_;
    const int64_t rows = std::max<int64_t>(1, kBandBytes * threads_ / row_bytes);
    const int images = static_cast<int>(std::clamp<int64_t>(rows / out_size_.height, 1, block_.batch));
    for (int image = 0; image < block_.batch; image += images) {
      for (Step& step : steps_) step.done = 0;
      for (int end = 0; end < out_size_.height;) {
        end = static_cast<int>(std::min<int64_t>(end + rows, out_size_.height));
        advance(static_cast<int>(steps_.size()) - 1, image, std::min(image + images, block_.batch), end);
      }
    }
  }

 private:
  static constexpr int kNoStep = -1;

  // The rows of another step's map that a step reads: those that `unit` needs, or, if it is null, the rows that the
  // step itself computes.
  struct Input {
    int step;  // kNoStep: the map exists already
    const mmg_unit* unit;
  };

  // Computes a map from top to bottom. A step that reads a map pixel by pixel may write its own map over it.
  struct Step {
    Size size;  // of the map
    std::vector<Input> inputs;
    std::function<void(const Rows&)> run;
    int done = 0;  // rows that are computed
  };

  // Computes the rows before `end` of a step's map, and first the rows of other maps that they need. Rows are rounded
  // up to whole columns, because the kernels always compute whole columns.
  void advance(int index, int first_image, int end_image, int end) {
    Step& step = steps_[index];
    if (step.done >= end) return;
    end = std::min(ceil_div(end, kernels_.rows) * kernels_.rows, step.size.height);
    for (const Input& input : step.inputs) {
      if (input.step == kNoStep) continue;
      const Size size = steps_[input.step].size;
      const int needed = input.unit == nullptr ? end : end_input_row(*input.unit, size, end);
      advance(input.step, first_image, end_image, needed);
    }
    step.run({first_image, end_image, step.done, end});
    step.done = end;
  }

  int add(Size size, std::vector<Input> inputs, std::function<void(const Rows&)> run) {
    steps_.push_back({size, std::move(inputs), std::move(run)});
    return static_cast<int>(steps_.size()) - 1;
  }

  int64_t count_pixels(Size size) const { return static_cast<int64_t>(block_.batch) * size.height * size.width; }

  void for_rows(const Rows& rows, Size size, const std::function<void(int64_t, int64_t)>& job) const {
    for (int image = rows.first_image; image < rows.end_image; ++image) {
      const int64_t start = static_cast<int64_t>(image) * size.height;
      for_pixels((start + rows.first) * size.width, (start + rows.end) * size.width, threads_, job);
    }
  }

  bool has_output_shape(int folded, Size size) const {
    return folded == out_folded_ && size.height == out_size_.height && size.width == out_size_.width;
  }

  // Finds the shape of the output and the last unit that adds the shortcut.
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

  float* new_map(int64_t size) {
    maps_.emplace_back(size);
    return maps_.back().get();
  }

  Signs new_signs(Size size, int branches, int channels) {
    sign_maps_.emplace_back(count_pixels(size), branches, channels);
    return sign_maps_.back().view();
  }

  // Computes the input of the units. If it is gated or merged, also packs its signs, while it is in the cache.
  int add_connection() {
    const int K = block_.num_bases, channels = block_.units[0].in_channels;
    if (block_.connection == MMG_SEPARATE || block_.connection == MMG_BROADCAST) {
      connected_ = {x_, block_.connection == MMG_SEPARATE ? K : 1, channels};
      return kNoStep;
    }
    const int branches = block_.connection == MMG_GATED ? K : 1, folded = branches * channels;
    float* values = has_output_shape(folded, size_) ? out_ : new_map(count_pixels(size_) * folded);
    connected_ = {values, branches, channels};
    plain_ = SignMap(count_pixels(size_), branches, channels);
    return add(size_, {}, [=, this](const Rows& rows) {
      const int64_t words = plain_.view().pixel_words();
      for_rows(rows, size_, [&](int64_t first, int64_t end) {
        connect_pixels(kernels_, x_ + first * K * channels, end - first, K, channels, block_.merge_scales,
                       block_.connection == MMG_GATED ? block_.gate : nullptr, values + first * folded,
                       plain_.words.get() + first * words);
      });
    });
  }

  // Packs the signs of the connected map for a unit. If each branch has its own sign parameters, one map gives K maps
  // of signs.
  int add_packing(const mmg_unit& unit, int connect) {
    const bool has_parameters = has_sign_parameters(unit);
    const bool differ = has_parameters && !unit.shares_weights && !unit.merges;
    const Map map = connected_;
    const int branches = differ ? unit.num_bases : map.branches, words = ceil_div(map.channels, kWordBits);
    uint64_t* const signs = const_cast<uint64_t*>(new_signs(size_, branches, map.channels).words);
    const float *scale = unit.sign_scale, *shift = unit.sign_shift;
    return add(size_, {{connect, nullptr}}, [=, this](const Rows& rows) {
      for_rows(rows, size_, [&](int64_t first, int64_t end) {
        for (int64_t pixel = first; pixel < end; ++pixel) {
          for (int k = 0; k < branches; ++k) {
            const float* from = map.data + (pixel * map.branches + (map.branches == 1 ? 0 : k)) * map.channels;
            const int parameter = differ ? k * map.channels : 0;
            kernels_.pack(from, scale == nullptr ? nullptr : scale + parameter,
                          shift == nullptr ? nullptr : shift + parameter, map.channels,
                          signs + (pixel * branches + k) * words);
          }
        }
      });
    });
  }

  // Computes the shortcut by a unit.
  int add_shortcut(int connect, int signs, Signs from) {
    const mmg_unit& unit = *block_.shortcut;
    if (has_sign_parameters(unit) || has_sign_parameters(block_.units[0])) {
      signs = add_packing(unit, connect);
      from = sign_maps_.back().view();
    }
    const Size size = output_size(unit, size_);
    const int branches = output_branches(unit, from.branches), folded = branches * unit.out_channels;
    Destination destination;
    // If the connected map is in `out`, it must not be overwritten: a unit may still add it to its output.
    const bool fits = has_output_shape(folded, size) && connected_.data != out_;
    destination.values = fits ? out_ : new_map(count_pixels(size) * folded);
    shortcut_ = {destination.values, branches, unit.out_channels};
    return add_unit(unit, size_, signs, from, destination, {});
  }

  int add_unit(const mmg_unit& unit, Size size, int signs, Signs from, const Destination& destination,
               std::vector<Input> others) {
    // The unit's own input comes first, because it needs the most rows. A residual may come from the same step, which
    // would otherwise compute its rows in two parts.
    others.insert(others.begin(), Input{signs, &unit});
    return add(output_size(unit, size), std::move(others), [=, this, &unit](const Rows& rows) {
      convolve(kernels_, unit, rows, size, from, destination, threads_);
    });
  }

  // Maps of the output's shape are written to `out`, each over the one before it when that is no longer needed. A unit
  // may write its output over the residual that it adds, because units read signs, which are stored elsewhere. Here,
  // memory traffic costs more than arithmetic.
  void add_units(int connect, int signs, Signs from, int shortcut) {
    Map map = connected_;
    Size size = size_;
    int last = connect;
    for (int i = 0; i < block_.num_units; ++i) {
      const mmg_unit& unit = block_.units[i];
      const Size out_size = output_size(unit, size);
      const int branches = output_branches(unit, from.branches), folded = branches * unit.out_channels;
      Destination destination;
      std::vector<Input> others;
      if (unit.residual == MMG_RESIDUAL_INPUT) {
        destination.residual = map;
        others.push_back({last, nullptr});
      } else if (unit.residual == MMG_RESIDUAL_SHORTCUT) {
        destination.residual = shortcut_;
        others.push_back({shortcut, nullptr});
      }
      const bool is_own_input = i > 0 && destination.residual.data != nullptr && destination.residual.data == map.data;
      if (i >= last_shortcut_ && has_output_shape(folded, out_size)) {
        destination.values = out_;
      } else if (is_own_input) {
        destination.values = const_cast<float*>(map.data);
      } else {
        destination.values = new_map(count_pixels(out_size) * folded);
      }
      // Usually a unit reads an input row at least as late as the row that it writes. With a stride and much padding it
      // does not, and would be overwritten by the step that computes the map before it in the same memory.
      if (destination.values == out_ && map.data == out_ && destination.residual.data != out_) {
        others.push_back({last, nullptr});
      }
      if (i + 1 < block_.num_units) {
        const Signs next = new_signs(out_size, branches, unit.out_channels);
        destination.signs = const_cast<uint64_t*>(next.words);
        destination.sign_scale = block_.units[i + 1].sign_scale;
        destination.sign_shift = block_.units[i + 1].sign_shift;
      }
      last = signs = add_unit(unit, size, signs, from, destination, std::move(others));
      map = {destination.values, branches, unit.out_channels};
      from = {destination.signs, branches, unit.out_channels};
      size = out_size;
    }
  }

  const Kernels& kernels_;
  const mmg_block& block_;
  const Size size_;
  const float* const x_;
  float* const out_;
  const int threads_;
  Size out_size_ = {0, 0};
  int out_folded_ = 0, last_shortcut_ = -1;
  Map connected_ = {nullptr, 1, 0}, shortcut_ = {nullptr, 1, 0};
  SignMap plain_;                  // signs of the connected map, if connecting packs them
  std::deque<Array<float>> maps_;  // maps that are not in `out`
  std::deque<SignMap> sign_maps_;
  std::vector<Step> steps_;  // each after its inputs
};

}  // namespace

void run_block(const Kernels& kernels, const mmg_block& block, const float* x, float* out, int threads) {
  Block(kernels, block, x, out, threads).run();
}

void connect(const Kernels& kernels, const float* x, int64_t pixels, int branches, int channels, const float* scales,
             const float* gate, float* out, int threads) {
  const int out_channels = channels * (gate == nullptr ? 1 : branches);
  for_pixels(0, pixels, threads, [&](int64_t first, int64_t end) {
    connect_pixels(kernels, x + first * branches * channels, end - first, branches, channels, scales, gate,
                   out + first * out_channels, nullptr);
  });
}

void sign_pack(const Kernels& kernels, const float* x, bool nchw, int batch, int64_t pixels, int branches, int channels,
               uint64_t* signs, int threads) {
  const int words = ceil_div(channels, kWordBits);
  for_pixels(0, batch * pixels, threads, [&](int64_t first, int64_t end) {
    Storage<float> gathered(channels);
    for (int64_t i = first; i < end; ++i) {
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

void max_pool(const Kernels& kernels, const float* x, int batch, int height, int width, int channels,
              const mmg_window& window, const float* scale, const float* shift, float* out, int threads) {
  const int out_height = (height + 2 * window.pad_height - window.height) / window.stride_height + 1;
  const int out_width = (width + 2 * window.pad_width - window.width) / window.stride_width + 1;
  const int64_t pixels = int64_t{batch} * out_height * out_width;
  for_pixels(0, pixels, threads, [&](int64_t first, int64_t end) {
    Storage<const float*> taps(window.height * window.width);
    for (int64_t pixel = first; pixel < end; ++pixel) {
      const int column = static_cast<int>(pixel % out_width), row = static_cast<int>(pixel / out_width % out_height);
      const float* const image = x + pixel / out_width / out_height * height * width * channels;
      const int top = row * window.stride_height - window.pad_height;
      const int left = column * window.stride_width - window.pad_width;
      int num_taps = 0;
      for (int i = std::max(top, 0); i < std::min(top + window.height, height); ++i) {
        for (int j = std::max(left, 0); j < std::min(left + window.width, width); ++j) {
          taps[num_taps++] = image + (int64_t{i} * width + j) * channels;
        }
      }
      kernels.pool(taps.data(), num_taps, channels, scale, shift, out + pixel * channels);
    }
  });
}

}  // namespace mmgroupnet
