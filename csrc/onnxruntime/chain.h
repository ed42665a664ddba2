// The units of a block: how they are told of, and what is allowed. It is what mmgroupnet/ops takes.
#ifndef MMGROUPNET_ONNXRUNTIME_CHAIN_H_
#define MMGROUPNET_ONNXRUNTIME_CHAIN_H_

#include <array>
#include <cstdint>
#include <vector>

#include "mmgroupnet.h"
#include "ort.h"

namespace mmgroupnet {

// Bounds below which no number of the kernels overflows.
constexpr int64_t kMaxBases = 1024;
constexpr int64_t kMaxChannels = 1 << 24;  // of all branches
constexpr int64_t kMaxReach = 4096;        // of a kernel, its stride and padding, in pixels
constexpr int64_t kMaxSide = 1 << 24;      // of a map
constexpr int64_t kMaxElements = int64_t{1} << 38;

// The tensors of a unit, in the order of PARAMETERS in mmgroupnet/ops/geometry.py.
enum Parameter { kBits, kScale, kBias, kNormScale, kNormShift, kSignScale, kSignShift };
constexpr std::array kParameterNames = {"bits",       "scale",      "bias",      "norm_scale",
                                        "norm_shift", "sign_scale", "sign_shift"};
constexpr int64_t kNumParameters = kParameterNames.size();

// Numbers of a unit; those of `unit` that are addresses are not set.
struct Geometry {
  Geometry() = default;
  Geometry(Geometry&&) = default;  // a copy would point to the dilations of another one

  mmg_unit unit = {};
  std::vector<int32_t> dilations;

  int64_t weight_rows() const { return int64_t{unit.out_channels} * (unit.shares_weights ? 1 : unit.num_bases); }
  int64_t row_bits() const;
  // What a parameter must be.
  Shape parameter_shape(Parameter parameter) const;
  // Branches of the output for those of the input.
  int64_t branches(int64_t given) const;
};

struct Map {
  int64_t branches, channels, height, width;  // channels of one branch
};

// Refuses maps whose elements the kernels could not count.
void check_size(const Map& map, int64_t batch);

// Reads units that lie one behind the other. Throws an Error where they end too early, or where one is impossible.
std::vector<Geometry> decode(const std::vector<int64_t>& numbers);

// What makes a block's output.
struct Chain {
  int64_t connection, num_bases;
  std::vector<Geometry> units;  // the shortcut's first, if there is one
  bool has_shortcut, has_shortcut_map;

  const Geometry& first() const { return units[has_shortcut ? 1 : 0]; }
  // Branches of the block's input.
  int64_t given_branches() const { return connection == MMG_BROADCAST ? 1 : num_bases; }

  // Throws an Error where units don't fit each other, whatever the size of the maps.
  void check_channels() const;
  // The output for an input of this shape, both (N, H, W, C), and how many binary products it takes. Throws an Error
  // where maps don't fit; the shortcut's is read where there is one.
  Shape output_shape(const Shape& input, const Shape& shortcut_map, double* products) const;

 private:
  // Checks unit by unit. Without sizes maps have no pixels.
  Map run(int64_t batch, int64_t height, int64_t width, Map shortcut, bool has_sizes, double* products) const;
};

}  // namespace mmgroupnet

#endif  // MMGROUPNET_ONNXRUNTIME_CHAIN_H_
