// The C interface of ONNX Runtime. Inside this library errors are exceptions; at its border they become statuses.
#ifndef MMGROUPNET_ONNXRUNTIME_ORT_H_
#define MMGROUPNET_ONNXRUNTIME_ORT_H_

#include <cstdint>
#include <exception>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

#include "onnxruntime_c_api.h"

namespace mmgroupnet {

// The version of the interface that this library uses: the oldest one that has all functions it needs.
constexpr uint32_t kOrtVersion = 17;

using Shape = std::vector<int64_t>;

// A part of a message.
struct Part {
  Part(const char* part) : text(part) {}
  Part(std::string part) : text(std::move(part)) {}
  Part(int part) : text(std::to_string(part)) {}
  Part(int64_t part) : text(std::to_string(part)) {}
  Part(size_t part) : text(std::to_string(part)) {}
  Part(const Shape& part);  // as (1, 2, 3)

  std::string text;
};

// Concatenates the parts.
std::string text(std::initializer_list<Part> parts);

// An error, with one sentence for the user.
class Error : public std::exception {
 public:
  explicit Error(std::initializer_list<Part> sentence, OrtErrorCode code = ORT_INVALID_ARGUMENT)
      : sentence_(text(sentence)), code_(code) {}

  const char* what() const noexcept override { return sentence_.c_str(); }
  OrtErrorCode code() const { return code_; }

 private:
  std::string sentence_;
  OrtErrorCode code_;
};

// Throws an Error if a status of ONNX Runtime is a failure.
void check(const OrtApi& api, OrtStatus* status);

// The status of the exception that is being handled.
OrtStatus* to_status(const OrtApi& api) noexcept;

// Runs the body of a function that ONNX Runtime calls; exceptions become its status.
template <typename Body>
OrtStatus* to_status_of(const OrtApi& api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return to_status(api);
  }
}

// Throws an Error if a status of mmgroupnet.h is a failure.
void check_kernels(int32_t status);

// A tensor that ONNX Runtime owns.
struct Tensor {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;
  const void* data = nullptr;
};

// 'float32', 'uint8', or the number of another type.
std::string type_name(ONNXTensorElementDataType type);

// The attributes and inputs of a node, while its session creates the kernel.
class Node {
 public:
  Node(const OrtApi& api, const OrtKernelInfo& info) : api_(api), info_(info) {}

  const OrtApi& api() const { return api_; }
  std::string name() const;
  // Throw an Error if there is no such attribute.
  int64_t number(const char* attribute) const;
  std::vector<int64_t> numbers(const char* attribute) const;
  // Throws an Error also if it is not between `low` and `high`.
  int64_t number(const char* attribute, int64_t low, int64_t high) const;
  size_t num_inputs() const;
  // Type of an input's elements; the input may be a computed tensor.
  ONNXTensorElementDataType input_type(size_t index) const;
  // Throws an Error if the input is not an initializer. The message calls it `name`.
  Tensor constant(size_t index, const std::string& name) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo& info_;
};

// Tensors of a node that is running.
Tensor input(const OrtApi& api, const OrtKernelContext& context, size_t index);
float* output(const OrtApi& api, OrtKernelContext& context, const Shape& shape);

// While this object exists, jobs of this thread (threads.h) run on the threads of the session that runs the node.
class SessionThreads {
 public:
  SessionThreads(const OrtApi& api, const OrtKernelContext& context);
  ~SessionThreads();
  SessionThreads(const SessionThreads&) = delete;
  SessionThreads& operator=(const SessionThreads&) = delete;
};

}  // namespace mmgroupnet

#endif  // MMGROUPNET_ONNXRUNTIME_ORT_H_
