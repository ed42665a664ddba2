#include "chain.h"

#include <algorithm>

namespace mmgroupnet {
namespace {

// A number of a unit, in the order of UnitGeometry in mmgroupnet/ops/geometry.py.
struct Field {
  const char* name;
  int64_t low, high;
};
constexpr Field kBefore[] = {
    {"num_bases", 1, kMaxBases},      {"in_channels", 1, kMaxChannels}, {"out_channels", 1, kMaxChannels},
    {"groups", 1, kMaxChannels},      {"kernel height", 1, kMaxReach},  {"kernel width", 1, kMaxReach},
    {"stride height", 1, kMaxReach},  {"stride width", 1, kMaxReach},   {"padding height", -1, kMaxReach},
    {"padding width", -1, kMaxReach}, {"padding_value", -1, 1},
};
constexpr Field kDilation = {"dilation", 1, kMaxReach};
constexpr Field kBehind[] = {{"shares_weights", 0, 1}, {"merges", 0, 1}, {"relu", 0, 1}, {"residual", 0, 2}};

// Reads numbers one after the other.
class Reader {
 public:
  explicit Reader(const std::vector<int64_t>& numbers) : numbers_(numbers) {}

  bool is_at_end() const { return at_ == numbers_.size(); }
  void begin_unit() { ++unit_; }

  int32_t read(const Field& field) {
    if (is_at_end()) {
      throw Error({"geometry: its ", numbers_.size(), " numbers end at the ", field.name, " of unit ", unit_,
                   ": give the numbers of whole units"});
    }
    const int64_t number = numbers_[at_];
    if (number < field.low || number > field.high) {
      throw Error({"geometry[", at_, "]=", number, ", ", field.name, " of unit ", unit_, ": give ", field.low, " to ",
                   field.high});
    }
    ++at_;
    return static_cast<int32_t>(number);
  }

 private:
  const std::vector<int64_t>& numbers_;
  size_t at_ = 0;
  int64_t unit_ = -1;
};

Geometry read_unit(Reader& reader) {
  Geometry found;
  mmg_unit& unit = found.unit;
  int32_t* const before[] = {&unit.num_bases,     &unit.in_channels,  &unit.out_channels,  &unit.groups,
                             &unit.kernel_height, &unit.kernel_width, &unit.stride_height, &unit.stride_width,
                             &unit.pad_height,    &unit.pad_width,    &unit.pad_value};
  static_assert(std::size(before) == std::size(kBefore));
  for (size_t i = 0; i < std::size(before); ++i) *before[i] = reader.read(kBefore[i]);
  for (int32_t i = 0; i < unit.num_bases; ++i) found.dilations.push_back(reader.read(kDilation));
  int32_t* const behind[] = {&unit.shares_weights, &unit.merges, &unit.relu, &unit.residual};
  static_assert(std::size(behind) == std::size(kBehind));
  for (size_t i = 0; i < std::size(behind); ++i) *behind[i] = reader.read(kBehind[i]);
  unit.dilations = found.dilations.data();
  return found;
}

// How many pixels a convolution with stride 1 adds to a map's size; negative if it removes some.
struct Margin {
  int64_t height, width;
};

Margin margin_of(const Geometry& geometry, size_t branch) {
  const mmg_unit& unit = geometry.unit;
  const int64_t rate = geometry.dilations[branch];
  const auto margin = [rate](int64_t kernel, int64_t pad) {
    const int64_t reach = rate * (kernel - 1);
    return 2 * (pad < 0 ? reach / 2 : pad) - reach;
  };
  return {margin(unit.kernel_height, unit.pad_height), margin(unit.kernel_width, unit.pad_width)};
}

void check_unit(const Geometry& geometry, int64_t index) {
  const mmg_unit& unit = geometry.unit;
  const std::string name = text({"geometry of unit ", index, ": "});
  for (const auto& [channels, kind] : {std::pair(unit.in_channels, "in"), std::pair(unit.out_channels, "out")}) {
    if (channels % unit.groups != 0) {
      throw Error({name, kind, "_channels=", channels, " is not a multiple of groups=", unit.groups});
    }
    if (int64_t{unit.num_bases} * channels > kMaxChannels) {
      throw Error({name, "num_bases=", unit.num_bases, " times ", kind, "_channels=", channels, ": give no more than ",
                   kMaxChannels, " channels"});
    }
  }
  if ((unit.pad_height < 0) != (unit.pad_width < 0)) {
    throw Error(
        {name, "padding=", Shape{unit.pad_height, unit.pad_width}, ": give two numbers from 0 on, or (-1, -1)"});
  }
  if (geometry.row_bits() >= kMaxChannels) {
    throw Error({name, geometry.row_bits(), " products in one sum, give fewer than 2**24"});
  }
  if (unit.shares_weights && unit.merges) {
    throw Error({name, "shares_weights=1 and merges=1: merged bases have weights of their own"});
  }
  const Margin margin = margin_of(geometry, 0);
  for (size_t k = 0; k < geometry.dilations.size(); ++k) {
    if (unit.merges && geometry.dilations[k] != geometry.dilations[0]) {
      throw Error({name, "merges=1: merged bases read the same pixels, give them one dilation"});
    }
    const int64_t rate = geometry.dilations[k], kernel = std::max(unit.kernel_height, unit.kernel_width);
    if (rate * (kernel - 1) > kMaxReach) {
      throw Error({name, "dilation=", rate, " of a kernel of ", kernel, " reaches over ", rate * (kernel - 1),
                   " pixels, give at most ", kMaxReach});
    }
    const Margin other = margin_of(geometry, k);
    if (other.height != margin.height || other.width != margin.width) {
      throw Error({name, "its dilations differ: padding=", Shape{unit.pad_height, unit.pad_width},
                   " gives maps of different size, give ", unit.pad_height < 0 ? "kernels of odd size" : "(-1, -1)"});
    }
  }
}

std::string to_text(const Map& map) {
  return text({map.branches, " * ", map.channels, " channels and ", map.height, "x", map.width, " pixels"});
}

void set_size(const Geometry& geometry, const Map& in, Map* out) {
  const mmg_unit& unit = geometry.unit;
  const Margin margin = margin_of(geometry, 0);
  const int64_t height = in.height + margin.height - 1, width = in.width + margin.width - 1;
  if (height < 0 || width < 0) {
    throw Error({"a map of ", in.height, "x", in.width,
                 " pixels is smaller than the kernel: kernel_size=", Shape{unit.kernel_height, unit.kernel_width},
                 ", dilation=", geometry.dilations[0], ", padding=", Shape{unit.pad_height, unit.pad_width}});
  }
  out->height = height / unit.stride_height + 1;
  out->width = width / unit.stride_width + 1;
}

bool can_be_added(const Map& residual, const Map& out) {
  return (residual.branches == 1 || residual.branches == out.branches) && residual.channels == out.channels &&
         residual.height == out.height && residual.width == out.width;
}

}  // namespace

int64_t Geometry::row_bits() const {
  return int64_t{unit.kernel_height} * unit.kernel_width * (unit.in_channels / unit.groups);
}

Shape Geometry::parameter_shape(Parameter parameter) const {
  switch (parameter) {
    case kBits: return {weight_rows(), (row_bits() + 7) / 8};
    case kScale: return {weight_rows()};
    case kSignScale:
    case kSignShift: return {int64_t{unit.in_channels} * (unit.merges || unit.shares_weights ? 1 : unit.num_bases)};
    default: return {unit.merges ? unit.out_channels : weight_rows()};
  }
}

int64_t Geometry::branches(int64_t given) const {
  return unit.merges ? 1 : unit.shares_weights ? given : unit.num_bases;
}

std::vector<Geometry> decode(const std::vector<int64_t>& numbers) {
  Reader reader(numbers);
  std::vector<Geometry> units;
  while (!reader.is_at_end()) {
    reader.begin_unit();
    units.push_back(read_unit(reader));
    check_unit(units.back(), static_cast<int64_t>(units.size()) - 1);
  }
  return units;
}

void Chain::check_channels() const {
  // Maps without pixels stand for maps of any size.
  const Map map = {num_bases, units.back().unit.out_channels, 0, 0};
  double products = 0;
  run(0, 0, 0, map, false, &products);
}

Shape Chain::output_shape(const Shape& input, const Shape& shortcut_map, double* products) const {
  Map map = {num_bases, 0, 0, 0};
  if (has_shortcut_map) map = {num_bases, shortcut_map[3] / num_bases, shortcut_map[1], shortcut_map[2]};
  const Map out = run(input[0], input[1], input[2], map, true, products);
  const Shape shape = {input[0], out.height, out.width, out.branches * out.channels};
  if (has_shortcut_map && shortcut_map != shape) {
    throw Error({"shortcut_map of shape ", shortcut_map, ": give the shape of the output, ", shape});
  }
  return shape;
}

void check_size(const Map& map, int64_t batch) {
  // If branches share their weights, a map may have more branches than its unit.
  if (map.branches * map.channels > kMaxChannels) {
    throw Error(
        {"maps of ", map.branches, " * ", map.channels, " channels: give no more than ", kMaxChannels, " channels"});
  }
  if (batch <= kMaxSide && map.height <= kMaxSide && map.width <= kMaxSide) {
    const int64_t of_a_pixel = batch * map.branches * map.channels;  // batch and all channels are at most 2^24 each
    if (of_a_pixel == 0 || map.height * map.width <= kMaxElements / of_a_pixel) return;
  }
  throw Error({"a batch of ", batch, " maps of ", to_text(map), ": give sides up to ", kMaxSide, " and up to ",
               kMaxElements, " numbers in all"});
}

Map Chain::run(int64_t batch, int64_t height, int64_t width, Map shortcut, bool has_sizes, double* products) const {
  const bool is_one = connection == MMG_BROADCAST || connection == MMG_MERGED;
  const Map connected = {is_one ? 1 : num_bases, first().unit.in_channels, height, width};
  if (!has_shortcut_map) shortcut = connected;
  check_size(connected, batch);
  const auto run_unit = [&](size_t index, const Map& in, bool is_first) {
    const Geometry& geometry = units[index];
    const mmg_unit& unit = geometry.unit;
    const std::string name = text({"geometry of unit ", index, ": "});
    const int64_t branches = geometry.branches(in.branches);
    // The branches of the first unit may read the same map; each later unit reads the output of the unit before it.
    if (in.channels != unit.in_channels || (branches != in.branches && !(is_first && in.branches == 1))) {
      throw Error({name, "it reads ", branches, " * ", unit.in_channels, " channels and gets ", in.branches, " * ",
                   in.channels});
    }
    if (unit.shares_weights && !is_first) {
      throw Error({name, "shares_weights=1: only the shortcut and the first unit can share their weights"});
    }
    Map out = {branches, unit.out_channels, 0, 0};
    if (has_sizes) set_size(geometry, in, &out);
    check_size(out, batch);
    const int64_t sums = (unit.merges ? unit.num_bases : branches) * unit.out_channels;
    *products += static_cast<double>(batch * out.height * out.width * sums) * static_cast<double>(geometry.row_bits());
    return out;
  };
  if (has_shortcut) shortcut = run_unit(0, connected, true);
  const size_t first_index = has_shortcut ? 1 : 0;
  Map current = connected;
  for (size_t i = first_index; i < units.size(); ++i) {
    const Map out = run_unit(i, current, i == first_index);
    const int32_t kind = units[i].unit.residual;
    const Map& residual = kind == MMG_RESIDUAL_INPUT ? current : shortcut;
    if (kind != MMG_RESIDUAL_NONE && !can_be_added(residual, out)) {
      throw Error({"geometry of unit ", i, ": residual=", kind, " is a map of ", to_text(residual),
                   " and cannot be added to one of ", to_text(out)});
    }
    current = out;
  }
  return current;
}

}  // namespace mmgroupnet
