// Calls the operators for ONNX Runtime (csrc/onnxruntime) with random nodes, many of them malformed, through a mock of
// its C interface. Whatever a file contains, an operator must return an error status or write the whole output, and
// must release everything that it acquired. Compiled with sanitizers; every tensor has its own memory, of exactly its
// size.
//
//   fuzz_onnxruntime_ops [rounds] [seed]
#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "onnxruntime_c_api.h"

// Definitions of the types that are opaque in ONNX Runtime's interface.
struct OrtStatus {
  OrtErrorCode code;
  std::string message;
};
struct OrtTypeInfo {
  ONNXTensorElementDataType type;
};
struct OrtTensorTypeAndShapeInfo {
  ONNXTensorElementDataType type;
  std::vector<int64_t> shape;
};
struct OrtValue {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
  std::vector<int64_t> shape;
  std::unique_ptr<uint8_t[]> data;
};
struct OrtKernelInfo {
  std::map<std::string, int64_t> numbers;
  std::map<std::string, std::vector<int64_t>> lists;
  std::vector<OrtValue> inputs;
  std::vector<bool> are_constant;
};
struct OrtKernelContext {
  const OrtKernelInfo* node;
  OrtValue output;
};
struct OrtSessionOptions {
  std::map<std::string, std::string> entries;
  const OrtCustomOpDomain* domain = nullptr;
};
struct OrtCustomOpDomain {
  std::vector<const OrtCustomOp*> ops;
};

extern "C" OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base);

namespace {

constexpr auto kFloat = ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT;
constexpr auto kBytes = ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
// Larger outputs are refused, as if there was not enough memory.
constexpr int64_t kMaxOutput = 1 << 21;

std::mt19937 generator;
std::atomic<int> live{0};  // statuses and descriptions that are not released yet

int64_t draw(int64_t first, int64_t last) { return std::uniform_int_distribution<int64_t>(first, last)(generator); }
bool one_in(int64_t n) { return draw(1, n) == 1; }

template <typename T>
T one_of(std::initializer_list<T> values) {
  return values.begin()[draw(0, static_cast<int64_t>(values.size()) - 1)];
}

[[noreturn]] void fail(const std::string& what) {
  std::printf("FAILED: %s\n", what.c_str());
  std::exit(1);
}

int64_t count(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  return elements;
}

OrtStatus* status(OrtErrorCode code, const char* message) {
  ++live;
  return new OrtStatus{code, message};
}

template <typename T>
OrtStatus* give(T* created, T** out) {
  ++live;
  *out = created;
  return nullptr;
}

template <typename T>
void release(T* given) {
  if (given == nullptr) return;
  --live;
  delete given;
}

OrtApi make_api() {
  OrtApi api = {};
  api.CreateStatus = status;
  api.GetErrorCode = [](const OrtStatus* status) { return status->code; };
  api.GetErrorMessage = [](const OrtStatus* status) { return status->message.c_str(); };
  api.ReleaseStatus = release<OrtStatus>;
  api.ReleaseTypeInfo = release<OrtTypeInfo>;
  api.ReleaseTensorTypeAndShapeInfo = release<OrtTensorTypeAndShapeInfo>;
  api.CreateCustomOpDomain = [](const char*, OrtCustomOpDomain** out) -> OrtStatus* {
    *out = new OrtCustomOpDomain;
    return nullptr;
  };
  api.ReleaseCustomOpDomain = [](OrtCustomOpDomain* domain) { delete domain; };
  api.CustomOpDomain_Add = [](OrtCustomOpDomain* domain, const OrtCustomOp* op) -> OrtStatus* {
    domain->ops.push_back(op);
    return nullptr;
  };
  api.AddCustomOpDomain = [](OrtSessionOptions* options, OrtCustomOpDomain* domain) -> OrtStatus* {
    options->domain = domain;
    return nullptr;
  };
  api.HasSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, int* out) -> OrtStatus* {
    *out = static_cast<int>(options->entries.count(key));
    return nullptr;
  };
  api.GetSessionConfigEntry = [](const OrtSessionOptions* options, const char* key, char* out,
                                 size_t* size) -> OrtStatus* {
    const std::string& value = options->entries.at(key);
    *size = value.size() + 1;
    if (out != nullptr) std::memcpy(out, value.c_str(), *size);
    return nullptr;
  };
  api.KernelInfo_GetNodeName = [](const OrtKernelInfo*, char* out, size_t* size) -> OrtStatus* {
    *size = 5;
    if (out != nullptr) std::memcpy(out, "node", *size);
    return nullptr;
  };
  api.KernelInfo_GetInputCount = [](const OrtKernelInfo* info, size_t* out) -> OrtStatus* {
    *out = info->inputs.size();
    return nullptr;
  };
  api.KernelInfoGetAttribute_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out) -> OrtStatus* {
    const auto found = info->numbers.find(name);
    if (found == info->numbers.end()) return status(ORT_FAIL, "no such attribute");
    *out = found->second;
    return nullptr;
  };
  api.KernelInfoGetAttributeArray_int64 = [](const OrtKernelInfo* info, const char* name, int64_t* out,
                                             size_t* size) -> OrtStatus* {
    const auto found = info->lists.find(name);
    if (found == info->lists.end()) return status(ORT_FAIL, "no such attribute");
    *size = found->second.size();
    if (out != nullptr) std::copy_n(found->second.begin(), *size, out);
    return nullptr;
  };
  api.KernelInfo_GetInputTypeInfo = [](const OrtKernelInfo* info, size_t index, OrtTypeInfo** out) -> OrtStatus* {
    if (index >= info->inputs.size()) return status(ORT_FAIL, "no such input");
    return give(new OrtTypeInfo{info->inputs[index].type}, out);
  };
  api.CastTypeInfoToTensorInfo = [](const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
    static thread_local OrtTensorTypeAndShapeInfo found;
    found.type = info->type;
    *out = &found;
    return nullptr;
  };
  api.KernelInfoGetConstantInput_tensor = [](const OrtKernelInfo* info, size_t index, int* is_constant,
                                             const OrtValue** out) -> OrtStatus* {
    if (index >= info->inputs.size()) return status(ORT_FAIL, "no such input");
    *is_constant = info->are_constant[index];
    *out = *is_constant != 0 ? &info->inputs[index] : nullptr;
    return nullptr;
  };
  api.GetTensorTypeAndShape = [](const OrtValue* value, OrtTensorTypeAndShapeInfo** out) -> OrtStatus* {
    return give(new OrtTensorTypeAndShapeInfo{value->type, value->shape}, out);
  };
  api.GetTensorElementType = [](const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out) -> OrtStatus* {
    *out = info->type;
    return nullptr;
  };
  api.GetDimensionsCount = [](const OrtTensorTypeAndShapeInfo* info, size_t* out) -> OrtStatus* {
    *out = info->shape.size();
    return nullptr;
  };
  api.GetDimensions = [](const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t rank) -> OrtStatus* {
    std::copy_n(info->shape.begin(), rank, out);
    return nullptr;
  };
  api.GetTensorMutableData = [](OrtValue* value, void** out) -> OrtStatus* {
    *out = value->data.get();
    return nullptr;
  };
  api.KernelContext_GetInput = [](const OrtKernelContext* context, size_t index, const OrtValue** out) -> OrtStatus* {
    if (index >= context->node->inputs.size()) return status(ORT_FAIL, "no such input");
    *out = &context->node->inputs[index];
    return nullptr;
  };
  api.KernelContext_GetOutput = [](OrtKernelContext* context, size_t, const int64_t* shape, size_t rank,
                                   OrtValue** out) -> OrtStatus* {
    OrtValue& value = context->output;
    value.shape.assign(shape, shape + rank);
    for (const int64_t size : value.shape) {
      if (size < 0) fail("an output of negative size");
    }
    if (count(value.shape) > kMaxOutput) return status(ORT_FAIL, "out of memory");
    const size_t bytes = count(value.shape) * sizeof(float);
    value.data.reset(new uint8_t[bytes]);
    std::memset(value.data.get(), 0xa5, bytes);
    *out = &value;
    return nullptr;
  };
  // Runs the jobs from both ends, on two threads.
  api.KernelContext_ParallelFor = [](const OrtKernelContext*, void (*job)(void*, size_t), size_t jobs, size_t,
                                     void* data) -> OrtStatus* {
    std::thread other([&] {
      for (size_t i = jobs; i-- > jobs / 2;) job(data, i);
    });
    for (size_t i = 0; i < jobs / 2; ++i) job(data, i);
    other.join();
    return nullptr;
  };
  return api;
}

const OrtApi api = make_api();
const OrtApiBase base = {[](uint32_t) { return &api; }, [] { return "99"; }};

OrtValue tensor(ONNXTensorElementDataType type, std::vector<int64_t> shape) {
  OrtValue value{type, std::move(shape), nullptr};
  const size_t bytes = count(value.shape) * (type == kBytes ? 1 : 4);
  value.data.reset(new uint8_t[bytes]);
  if (type == kBytes) {
    for (size_t i = 0; i < bytes; ++i) value.data[i] = static_cast<uint8_t>(draw(0, 255));
  } else {
    std::normal_distribution<float> normal;
    auto* floats = reinterpret_cast<float*>(value.data.get());
    for (size_t i = 0; i < bytes / 4; ++i) floats[i] = normal(generator);
  }
  return value;
}

// A number that a malformed file might contain.
int64_t odd_number() {
  return one_of<int64_t>({-1, 0, 1, 2, 3, 7, 63, 64, 65, 1024, 1025, 4096, 4097, int64_t{1} << 24, int64_t{1} << 31,
                          int64_t{1} << 32, INT64_MAX, INT64_MIN, -2});
}

// These change their argument in one of `rarity` calls on average.
void disturb(int64_t* number, int64_t rarity) {
  if (one_in(rarity)) *number = odd_number();
}

void disturb(std::vector<int64_t>* shape, int64_t rarity) {
  if (!one_in(rarity)) return;
  if (!shape->empty() && one_in(3)) shape->pop_back();
  else if (one_in(3)) shape->push_back(draw(0, 3));
  else if (!shape->empty()) (*shape)[draw(0, static_cast<int64_t>(shape->size()) - 1)] += draw(-1, 1);
  for (int64_t& size : *shape) size = std::max<int64_t>(size, 0);
}

void add(OrtKernelInfo* node, ONNXTensorElementDataType type, std::vector<int64_t> shape, bool is_constant,
         int64_t rarity) {
  disturb(&shape, rarity);
  if (one_in(rarity)) type = type == kBytes ? kFloat : kBytes;
  if (one_in(rarity)) is_constant = !is_constant;
  node->inputs.push_back(tensor(type, std::move(shape)));
  node->are_constant.push_back(is_constant);
}

struct Unit {
  int64_t bases, in, out, groups, kernel[2], stride[2], padding[2], value, rate;
  bool shares, merges, relu;
  int64_t residual;

  void append_to(std::vector<int64_t>* list) const {
    list->insert(list->end(),
                 {bases, in, out, groups, kernel[0], kernel[1], stride[0], stride[1], padding[0], padding[1], value});
    list->insert(list->end(), bases, rate);
    list->insert(list->end(), {shares, merges, relu, residual});
  }
};

Unit draw_unit(int64_t bases, int64_t in, bool is_first, bool keeps_shape) {
  Unit unit;
  unit.bases = bases;
  unit.in = in;
  unit.groups = in % 2 == 0 && one_in(3) ? 2 : 1;
  unit.out = keeps_shape ? in : unit.groups * one_of<int64_t>({1, 5, 32, 40, 64});
  unit.merges = one_in(8);
  unit.shares = is_first && !unit.merges && one_in(4);
  for (int i = 0; i < 2; ++i) {
    unit.kernel[i] = one_of<int64_t>({1, 3, 3, 5});
    unit.stride[i] = keeps_shape ? 1 : draw(1, 2);
  }
  const bool is_same = keeps_shape || one_in(2);
  for (int64_t& padding : unit.padding) padding = is_same ? -1 : draw(0, 2);
  unit.value = draw(-1, 1);
  unit.rate = one_in(3) ? 2 : 1;
  unit.relu = one_in(2);
  unit.residual = keeps_shape ? draw(0, 2) : one_in(20) ? 2 : 0;
  return unit;
}

// A valid node, except for what is disturbed; `rarity` says how rarely.
OrtKernelInfo draw_block(int64_t rarity) {
  OrtKernelInfo node;
  const int64_t connection = draw(0, 3), bases = draw(1, 3);
  const bool is_gated = connection == 3, has_scales = one_in(2), has_shortcut = one_in(4);
  const bool has_map = !has_shortcut && one_in(5), keeps_shape = one_in(2);
  std::vector<Unit> units;
  int64_t channels = one_of<int64_t>({1, 6, 16, 40, 64, 66});
  const int64_t in = channels;
  if (has_shortcut) units.push_back(draw_unit(bases, channels, true, keeps_shape));
  const int64_t length = draw(1, 3);
  for (int64_t i = 0; i < length; ++i) {
    units.push_back(draw_unit(bases, channels, i == 0, keeps_shape || one_in(3)));
    channels = units.back().out;
  }
  std::vector<int64_t> geometry, places;
  for (const Unit& unit : units) unit.append_to(&geometry);
  for (int64_t& number : geometry) disturb(&number, 20 * rarity);
  if (one_in(rarity)) geometry.resize(draw(0, static_cast<int64_t>(geometry.size())));

  // Large maps run on several threads.
  const int64_t side = one_in(4) ? 30 : 9, size[] = {draw(0, 2), draw(0, side), draw(1, side)};
  add(&node, kFloat, {size[0], size[1], size[2], (connection == 1 ? 1 : bases) * in}, false, rarity);
  if (has_scales) add(&node, kFloat, {bases}, true, rarity);
  if (is_gated) add(&node, kFloat, {bases}, true, rarity);
  if (has_map) add(&node, kFloat, {size[0], size[1], size[2], bases * channels}, false, rarity);
  for (size_t i = 0; i < units.size(); ++i) {
    const Unit& unit = units[i];
    const int64_t rows = unit.out * (unit.shares ? 1 : unit.bases);
    const int64_t outputs = unit.merges ? unit.out : rows;
    const int64_t inputs = unit.in * (unit.merges || unit.shares ? 1 : unit.bases);
    const int64_t row_bytes = (unit.kernel[0] * unit.kernel[1] * (unit.in / unit.groups) + 7) / 8;
    const bool has_norm = one_in(2);
    for (int64_t j = 0; j < 7; ++j) {
      const bool is_given = j == 0 || (j == 3 || j == 4 ? has_norm : one_in(3));
      if (is_given == one_in(10 * rarity)) continue;
      places.push_back(7 * static_cast<int64_t>(i) + j);
      if (j == 0) add(&node, kBytes, {rows, row_bytes}, true, 5 * rarity);
      else add(&node, kFloat, {j == 1 ? rows : j >= 5 ? inputs : outputs}, true, 5 * rarity);
    }
  }
  for (int64_t& place : places) disturb(&place, 20 * rarity);
  if (one_in(rarity) && !places.empty()) places.pop_back();
  node.lists = {{"geometry", geometry}, {"places", places}};
  node.numbers = {{"connection", connection}, {"num_bases", bases},          {"has_merge_scales", has_scales},
                  {"has_gate", is_gated},     {"has_shortcut_map", has_map}, {"has_shortcut", has_shortcut}};
  for (auto& [name, number] : node.numbers) disturb(&number, 3 * rarity);
  if (one_in(rarity)) node.numbers.erase(one_of<const char*>({"connection", "num_bases", "has_gate", "has_shortcut"}));
  if (one_in(2 * rarity)) node.lists.erase(one_of<const char*>({"geometry", "places"}));
  return node;
}

OrtKernelInfo draw_connect(int64_t rarity) {
  OrtKernelInfo node;
  const int64_t bases = draw(1, 4), channels = draw(1, 70);
  const bool has_scales = one_in(2), has_gate = one_in(2);
  add(&node, kFloat, {draw(0, 2), draw(0, 30), draw(0, 30), bases * channels}, false, rarity);
  if (has_scales) add(&node, kFloat, {bases}, true, rarity);
  if (has_gate) add(&node, kFloat, {bases}, true, rarity);
  node.numbers = {{"num_bases", bases}, {"has_merge_scales", has_scales}, {"has_gate", has_gate}};
  for (auto& [name, number] : node.numbers) disturb(&number, rarity);
  return node;
}

// A session with a given number of threads.
struct Session {
  explicit Session(const char* threads) {
    options.entries["mmgroupnet.threads"] = threads;
    OrtStatus* failure = RegisterCustomOps(&options, &base);
    if (failure != nullptr) fail(failure->message);
  }

  OrtSessionOptions options;
};

// Returns the output. If there is an error, returns nothing and sets `sentence` to its message.
std::vector<uint8_t> run(const OrtCustomOp& op, const OrtKernelInfo& node, std::string* sentence) {
  void* kernel = nullptr;
  OrtKernelContext context = {&node, {}};
  OrtStatus* failure = op.CreateKernelV2(&op, &api, &node, &kernel);
  const bool is_made = failure == nullptr;
  if (is_made) failure = op.KernelComputeV2(kernel, &context);
  std::vector<uint8_t> bytes;
  if (failure != nullptr) {
    *sentence = failure->message;
    if (sentence->empty() || failure->code == ORT_OK) fail("an error without a message");
    release(failure);
  } else {
    const uint8_t* data = context.output.data.get();
    bytes.assign(data, data + count(context.output.shape) * sizeof(float));
    for (size_t i = 0; i < bytes.size(); i += 4) {
      if (std::memcmp(&bytes[i], "\xa5\xa5\xa5\xa5", 4) == 0) fail("a number of the output was not written");
    }
  }
  if (is_made) op.KernelDestroy(kernel);
  if (live.load() != 0) fail("something was not released");
  return bytes;
}

void check_registration() {
  OrtSessionOptions options;
  // An ONNX Runtime that has only the oldest interface.
  const OrtApiBase old = {[](uint32_t version) -> const OrtApi* { return version == 1 ? &api : nullptr; }, nullptr};
  OrtStatus* failure = RegisterCustomOps(&options, &old);
  if (failure == nullptr || failure->message.find("too old") == std::string::npos) fail("an old version was taken");
  release(failure);
}

}  // namespace

int main(int argc, char** argv) {
  const int rounds = argc > 1 ? std::atoi(argv[1]) : 1000;
  generator.seed(argc > 2 ? std::atoi(argv[2]) : 0);
  check_registration();
  const Session one("1"), two("2");
  std::map<std::string, int> done;
  for (int round = 0; round < rounds; ++round) {
    const bool is_block = !one_in(5);
    const int64_t rarity = one_of<int64_t>({3, 20, 1000000});
    const OrtKernelInfo node = is_block ? draw_block(rarity) : draw_connect(rarity);
    std::string first, second;
    const size_t index = is_block ? 0 : 1;
    const auto out = run(*one.options.domain->ops[index], node, &first);
    if (out != run(*two.options.domain->ops[index], node, &second) || first != second) {
      fail("one thread and two differ: " + first + " / " + second);
    }
    ++done[first.empty() ? "outputs" : "errors"];
  }
  std::printf("%d outputs, %d errors\n", done["outputs"], done["errors"]);
}
