// The operators Block and Connect of the domain mmgroupnet, see docs/onnx_file.md.
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <climits>
#include <cstdlib>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "chain.h"
#include "mmgroupnet.h"
#include "ort.h"
#include "weights.h"

namespace mmgroupnet {
namespace {

// An entry of the session's configuration: its number of threads, which divides the work into jobs. ONNX Runtime does
// not tell operators this number. It does not change results.
constexpr const char* kThreadsEntry = "mmgroupnet.threads";
constexpr int kMaxThreads = 256;
// A block of fewer binary products runs on one thread: waking other threads takes longer than these products, which
// take some 10 microseconds on x86.
constexpr double kLeastProducts = 1 << 22;

std::string shape_of_input(int64_t branches, int64_t channels) {
  return text({"(N, H, W, ", branches, " * ", channels, ")"});
}

// The initializers of a node, read one after the other.
class Constants {
 public:
  Constants(const Node& node, size_t first) : node_(node), next_(first) {}

  size_t next() const { return next_; }
  void skip() { ++next_; }

  // Throws an Error if the next initializer has another type or shape.
  const void* read(const std::string& name, ONNXTensorElementDataType type, const Shape& shape) {
    const Tensor found = node_.constant(next_, name);
    if (found.type != type || found.shape != shape) {
      throw Error({"input ", next_, ", ", name, ", is ", type_name(found.type), " ", found.shape, ": give ",
                   type_name(type), " ", shape});
    }
    ++next_;
    return found.data;
  }

  std::vector<float> read_floats(const std::string& name, int64_t size) {
    const auto* from = static_cast<const float*>(read(name, ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, {size}));
    return {from, from + size};
  }

 private:
  const Node& node_;
  size_t next_;
};

void check_num_inputs(const Node& node, int64_t wanted) {
  const auto given = static_cast<int64_t>(node.num_inputs());
  if (given != wanted) throw Error({"the node has ", given, " inputs, but its attributes need ", wanted});
}

void check_float(const Node& node, size_t index, const char* name) {
  const auto type = node.input_type(index);
  if (type != ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT) {
    throw Error({"input ", index, ", ", name, ", is ", type_name(type), ": give float32"});
  }
}

void check_rank(const Tensor& tensor, const char* name) {
  if (tensor.shape.size() != 4) throw Error({name, " of shape ", tensor.shape, ": give (N, H, W, C)"});
}

const float* or_null(const std::vector<float>& values) { return values.empty() ? nullptr : values.data(); }

bool is_empty(const Shape& shape) {
  for (const int64_t size : shape) {
    if (size == 0) return true;
  }
  return false;
}

class Block {
 public:
  static constexpr const char* kName = "Block";

  Block(const Node& node, int threads) : api_(node.api()), threads_(threads) {
    chain_.connection = node.number("connection", MMG_SEPARATE, MMG_GATED);
    chain_.num_bases = node.number("num_bases", 1, kMaxBases);
    chain_.has_shortcut = node.number("has_shortcut", 0, 1) != 0;
    chain_.has_shortcut_map = node.number("has_shortcut_map", 0, 1) != 0;
    const bool has_merge_scales = node.number("has_merge_scales", 0, 1) != 0;
    const bool has_gate = node.number("has_gate", 0, 1) != 0;
    if (has_gate != (chain_.connection == MMG_GATED)) {
      throw Error({"has_gate=", has_gate, " for connection=", chain_.connection,
                   ": a gated connection (3) has a gate, others have none"});
    }
    if (chain_.has_shortcut && chain_.has_shortcut_map) {
      throw Error({"has_shortcut=1 and has_shortcut_map=1: give one of them"});
    }
    chain_.units = decode(node.numbers("geometry"));
    const int64_t least = chain_.has_shortcut ? 2 : 1;
    if (static_cast<int64_t>(chain_.units.size()) < least) {
      throw Error({"geometry of ", chain_.units.size(), " units for has_shortcut=", chain_.has_shortcut, ": give ",
                   least, " or more"});
    }
    chain_.check_channels();
    const std::vector<int64_t> places = node.numbers("places");
    check_places(places);
    check_num_inputs(node,
                     1 + has_merge_scales + has_gate + chain_.has_shortcut_map + static_cast<int64_t>(places.size()));
    check_float(node, 0, "x");
    Constants constants(node, 1);
    if (has_merge_scales) merge_scales_ = constants.read_floats("merge_scales", chain_.num_bases);
    if (has_gate) gate_ = constants.read_floats("gate", chain_.num_bases);
    if (chain_.has_shortcut_map) {
      shortcut_input_ = constants.next();
      check_float(node, shortcut_input_, "shortcut_map");
      constants.skip();
    }
    read_parameters(places, constants);
    for (const Geometry& geometry : chain_.units) units_.push_back(geometry.unit);
  }

  const OrtApi& api() const { return api_; }

  void run(OrtKernelContext& context) const {
    const Tensor x = input(api_, context, 0);
    check_rank(x, "x");
    const int64_t branches = chain_.given_branches(), channels = chain_.first().unit.in_channels;
    if (x.shape[3] != branches * channels) {
      throw Error({"x of shape ", x.shape, ": give ", shape_of_input(branches, channels)});
    }
    Tensor shortcut_map;
    if (chain_.has_shortcut_map) {
      shortcut_map = input(api_, context, shortcut_input_);
      check_rank(shortcut_map, "shortcut_map");
    }
    double products = 0;
    const Shape shape = chain_.output_shape(x.shape, shortcut_map.shape, &products);
    float* out = output(api_, context, shape);
    if (is_empty(shape)) return;
    mmg_block block = {};
    block.batch = static_cast<int32_t>(x.shape[0]);
    block.height = static_cast<int32_t>(x.shape[1]);
    block.width = static_cast<int32_t>(x.shape[2]);
    block.num_bases = static_cast<int32_t>(chain_.num_bases);
    block.connection = static_cast<int32_t>(chain_.connection);
    block.merge_scales = or_null(merge_scales_);
    block.gate = or_null(gate_);
    block.shortcut_map = static_cast<const float*>(shortcut_map.data);
    block.shortcut = chain_.has_shortcut ? &units_[0] : nullptr;
    block.units = units_.data() + chain_.has_shortcut;
    block.num_units = static_cast<int32_t>(units_.size()) - chain_.has_shortcut;
    const SessionThreads scope(api_, context);
    const int threads = products < kLeastProducts ? 1 : threads_;
    check_kernels(mmg_run_block(&block, static_cast<const float*>(x.data), out, threads));
  }

 private:
  void check_places(const std::vector<int64_t>& places) const {
    const auto last = static_cast<int64_t>(chain_.units.size()) * kNumParameters - 1;
    int64_t previous = -1;
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i] <= previous || places[i] > last) {
        throw Error({"places[", i, "]=", places[i], ": give numbers from 0 to ", last, ", in ascending order"});
      }
      previous = places[i];
    }
  }

  void read_parameters(const std::vector<int64_t>& places, Constants& constants) {
    auto place = places.begin();
    for (size_t i = 0; i < chain_.units.size(); ++i) {
      Geometry& geometry = chain_.units[i];
      mmg_unit& unit = geometry.unit;
      const float** const fields[] = {nullptr,          &unit.scale,      &unit.bias,      &unit.norm_scale,
                                      &unit.norm_shift, &unit.sign_scale, &unit.sign_shift};
      const std::string of_unit = text({" of unit ", i});
      for (int64_t j = 0; j < kNumParameters; ++j) {
        if (place == places.end() || *place != static_cast<int64_t>(i) * kNumParameters + j) continue;
        ++place;
        const Shape shape = geometry.parameter_shape(static_cast<Parameter>(j));
        const std::string name = kParameterNames[j] + of_unit;
        if (j == kBits) {
          const void* bits = constants.read(name, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, shape);
          weights_.push_back(arrange(unit, static_cast<const uint8_t*>(bits)));
          unit.weights = weights_.back().get();
        } else {
          floats_.push_back(constants.read_floats(name, shape[0]));
          *fields[j] = floats_.back().data();
        }
      }
      if (unit.weights == nullptr) throw Error({"places: bits", of_unit, " are missing"});
      if ((unit.norm_scale == nullptr) != (unit.norm_shift == nullptr)) {
        throw Error({"places: norm_scale and norm_shift", of_unit, ": give both or neither"});
      }
    }
  }

  const OrtApi& api_;
  const int threads_;
  Chain chain_;
  std::vector<float> merge_scales_, gate_;
  size_t shortcut_input_ = 0;
  std::vector<Weights> weights_;
  std::vector<std::vector<float>> floats_;
  std::vector<mmg_unit> units_;
};

class Connect {
 public:
  static constexpr const char* kName = "Connect";

  Connect(const Node& node, int threads)
      : api_(node.api()), threads_(threads), num_bases_(node.number("num_bases", 1, kMaxBases)) {
    const bool has_merge_scales = node.number("has_merge_scales", 0, 1) != 0;
    const bool has_gate = node.number("has_gate", 0, 1) != 0;
    check_num_inputs(node, 1 + has_merge_scales + has_gate);
    check_float(node, 0, "x");
    Constants constants(node, 1);
    if (has_merge_scales) merge_scales_ = constants.read_floats("merge_scales", num_bases_);
    if (has_gate) gate_ = constants.read_floats("gate", num_bases_);
  }

  const OrtApi& api() const { return api_; }

  void run(OrtKernelContext& context) const {
    const Tensor x = input(api_, context, 0);
    check_rank(x, "x");
    const int64_t channels = x.shape[3] / num_bases_;
    if (channels == 0 || x.shape[3] % num_bases_ != 0 || x.shape[3] > kMaxChannels) {
      throw Error(
          {"x of shape ", x.shape, ": give (N, H, W, ", num_bases_, " * C), up to ", kMaxChannels, " channels"});
    }
    check_size({num_bases_, channels, x.shape[1], x.shape[2]}, x.shape[0]);
    Shape shape = x.shape;
    if (gate_.empty()) shape[3] = channels;
    float* out = output(api_, context, shape);
    if (is_empty(shape)) return;
    const SessionThreads scope(api_, context);
    check_kernels(mmg_connect(static_cast<const float*>(x.data), shape[0] * shape[1] * shape[2],
                              static_cast<int32_t>(num_bases_), static_cast<int32_t>(channels), or_null(merge_scales_),
                              or_null(gate_), out, threads_));
  }

 private:
  const OrtApi& api_;
  const int threads_;
  const int64_t num_bases_;
  std::vector<float> merge_scales_, gate_;
};

struct Operator : OrtCustomOp {
  int threads;
};

// One heterogeneous variadic input and one output.
template <typename Kernel>
Operator describe(int threads) {
  Operator op = {};
  op.threads = threads;
  op.version = kOrtVersion;
  op.GetName = [](const OrtCustomOp*) { return Kernel::kName; };
  op.GetExecutionProviderType = [](const OrtCustomOp*) -> const char* { return nullptr; };
  op.GetInputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.GetInputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED; };
  op.GetInputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_VARIADIC; };
  op.GetInputMemoryType = [](const OrtCustomOp*, size_t) { return OrtMemTypeDefault; };
  op.GetVariadicInputMinArity = [](const OrtCustomOp*) { return 1; };
  op.GetVariadicInputHomogeneity = [](const OrtCustomOp*) { return 0; };
  op.GetOutputTypeCount = [](const OrtCustomOp*) { return size_t{1}; };
  op.GetOutputType = [](const OrtCustomOp*, size_t) { return ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT; };
  op.GetOutputCharacteristic = [](const OrtCustomOp*, size_t) { return INPUT_OUTPUT_REQUIRED; };
  op.GetVariadicOutputMinArity = [](const OrtCustomOp*) { return 0; };
  op.GetVariadicOutputHomogeneity = [](const OrtCustomOp*) { return 1; };
  op.GetStartVersion = [](const OrtCustomOp*) { return 1; };
  op.GetEndVersion = [](const OrtCustomOp*) { return INT_MAX; };
  op.CreateKernelV2 = [](const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel) {
    return to_status_of(*api, [&] {
      const Node node(*api, *info);
      try {
        *kernel = new Kernel(node, static_cast<const Operator*>(op)->threads);
      } catch (const Error& error) {
        throw Error({"mmgroupnet::", Kernel::kName, " '", node.name(), "': ", error.what()}, error.code());
      }
    });
  };
  op.KernelComputeV2 = [](void* kernel, OrtKernelContext* context) {
    const auto& found = *static_cast<const Kernel*>(kernel);
    return to_status_of(found.api(), [&] { found.run(*context); });
  };
  op.KernelDestroy = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  return op;
}

// Chooses the kernels, once per process: other kernels would misread weights that are already arranged.
void select_kernels() {
  static const bool is_selected = [] {
    const char* name = std::getenv("MMGROUPNET_KERNEL");
    if (name == nullptr) return true;  // the best
    if (mmg_select_kernels(name) != MMG_OK) {
      throw Error({"MMGROUPNET_KERNEL=", name, ": this machine has the kernels ", mmg_available_kernels()});
    }
    return true;
  }();
  (void)is_selected;
}

// Threads of a session with these options.
int count_threads(const OrtApi& api, const OrtSessionOptions* options) {
  int is_given = 0;
  check(api, api.HasSessionConfigEntry(options, kThreadsEntry, &is_given));
  // ONNX Runtime itself uses one thread per core.
  if (is_given == 0) return static_cast<int>(std::clamp<int64_t>(sysconf(_SC_NPROCESSORS_ONLN), 1, kMaxThreads));
  size_t size = 0;
  check(api, api.GetSessionConfigEntry(options, kThreadsEntry, nullptr, &size));
  std::string value(size, '\0');
  check(api, api.GetSessionConfigEntry(options, kThreadsEntry, value.data(), &size));
  value = value.c_str();  // without the zero at the end, which `size` counts
  int threads = 0;
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), threads);
  if (error != std::errc() || end != value.data() + value.size() || threads < 1 || threads > kMaxThreads) {
    throw Error({kThreadsEntry, "=", value, ": give 1 to ", kMaxThreads});
  }
  return threads;
}

// Both operators, configured for one number of threads; all sessions with that number share them.
struct Domain {
  explicit Domain(int threads) : block(describe<Block>(threads)), connect(describe<Connect>(threads)) {}

  const Operator block, connect;
  OrtCustomOpDomain* domain = nullptr;
};

// A process may have loaded several ONNX Runtimes. Domains are never freed, because sessions refer to them.
OrtCustomOpDomain* domain_of(const OrtApi& api, int threads) {
  static std::mutex mutex;
  static auto& domains = *new std::map<std::pair<const OrtApi*, int>, Domain>;
  const std::lock_guard lock(mutex);
  Domain& found = domains.try_emplace({&api, threads}, threads).first->second;
  if (found.domain == nullptr) {
    OrtCustomOpDomain* domain = nullptr;
    check(api, api.CreateCustomOpDomain("mmgroupnet", &domain));
    std::unique_ptr<OrtCustomOpDomain, void (*)(OrtCustomOpDomain*)> owner(domain, api.ReleaseCustomOpDomain);
    check(api, api.CustomOpDomain_Add(domain, &found.block));
    check(api, api.CustomOpDomain_Add(domain, &found.connect));
    found.domain = owner.release();
  }
  return found.domain;
}

}  // namespace
}  // namespace mmgroupnet

// SessionOptions::RegisterCustomOpsLibrary calls this function.
extern "C" __attribute__((visibility("default"))) OrtStatus* RegisterCustomOps(OrtSessionOptions* options,
                                                                               const OrtApiBase* base) {
  using namespace mmgroupnet;
  const OrtApi* api = base->GetApi(kOrtVersion);
  if (api == nullptr) {
    // All versions have the function that creates a status.
    return base->GetApi(1)->CreateStatus(ORT_FAIL, "mmgroupnet: this ONNX Runtime is too old, install 1.22 or newer");
  }
  return to_status_of(*api, [&] {
    select_kernels();
    check(*api, api->AddCustomOpDomain(options, domain_of(*api, count_threads(*api, options))));
  });
}
