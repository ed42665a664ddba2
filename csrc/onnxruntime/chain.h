// The units of a block: how they are encoded, and which are allowed. Both are the same as in mmgroupnet/ops.
#ifndef MMGROUPNET_ONNXRUNTIME_CHAIN_H_
#define MMGROUPNET_ONNXRUNTIME_CHAIN_H_

#include <array>
#include <cstdint>
#include <vector>

#include "mmgroupnet.h"
#include "ort.h"

namespace mmgroupnet {

// Within these bounds no number of the kernels overflows.
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

// The numbers of a unit. Of the addresses in `unit`, only that of the dilations is set.
struct Geometry {
  Geometry() = default;
  Geometry(Geometry&&) = default;  // a copy would point to the dilations of the original

  mmg_unit unit = {};
  std::vector<int32_t> dilations;

  int64_t weight_rows() const { return int64_t{unit.out_channels} * (unit.shares_weights ? 1 : unit.num_bases); }
  int64_t row_bits() const;
  // The shape that a parameter must have.
  Shape parameter_shape(Parameter parameter) const;
  // Branches of the output for an input of `given` branches.
  int64_t branches(int64_t given) const;
};

struct Map {
  int64_t branches, channels, height, width;  // channels of one branch
};

// Throws an Error if a map has more elements than the kernels can count.
void check_size(const Map& map, int64_t batch);

// Decodes the units in a sequence that concatenates several. Throws an Error if it ends too early or a unit is
// impossible.
std::vector<Geometry> decode(const std::vector<int64_t>& numbers);

// The connection and the units of a block.
struct Chain {
  int64_t connection, num_bases;
  std::vector<Geometry> units;  // the shortcut's first, if there is one
  bool has_shortcut, has_shortcut_map;

  const Geometry& first() const { return units[has_shortcut ? 1 : 0]; }
  // Branches of the block's input.
  int64_t given_branches() const { return connection == MMG_BROADCAST ? 1 : num_bases; }

  // Throws an Error if units do not fit each other, whatever the size of the maps.
  void check_channels() const;
  // The shape of the output for an input of this shape, both (N, H, W, C). Adds the number of binary products to
  // `products`. `shortcut_map` is read only if there is one. Throws an Error if maps do not fit.
  Shape output_shape(const Shape& input, const Shape& shortcut_map, double* products) const;

 private:
  // Checks unit by unit and returns the map of the output. Without `has_sizes`, outputs have no pixels.
  Map run(int64_t batch, int64_t height, int64_t width, Map shortcut, bool has_sizes, double* products) const;
};

}  // namespace mmgroupnet

#endif  // MMGROUPNET_ONNXRUNTIME_CHAIN_H_
