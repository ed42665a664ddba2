// The C interface of ONNX Runtime, with errors as exceptions inside this library and as statuses at its border.
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

// The version of the interface that this library speaks, the oldest that has all of its functions.
constexpr uint32_t kOrtVersion = 17;

using Shape = std::vector<int64_t>;

// A part of a sentence.
struct Part {
  Part(const char* part) : text(part) {}
  Part(std::string part) : text(std::move(part)) {}
  Part(int part) : text(std::to_string(part)) {}
  Part(int64_t part) : text(std::to_string(part)) {}
  Part(size_t part) : text(std::to_string(part)) {}
  Part(const Shape& part);  // as (1, 2, 3)

  std::string text;
};

// The parts one behind the other.
std::string text(std::initializer_list<Part> parts);

// One sentence for the user.
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

// Throws what a status tells.
void check(const OrtApi& api, OrtStatus* status);

// The status of the exception that is being handled.
OrtStatus* to_status(const OrtApi& api) noexcept;

// Runs the body of a function that ONNX Runtime calls: no exception leaves it.
template <typename Body>
OrtStatus* to_status_of(const OrtApi& api, const Body& body) noexcept {
  try {
    body();
    return nullptr;
  } catch (...) {
    return to_status(api);
  }
}

// Throws what a function of mmgroupnet.h tells.
void check_kernels(int32_t status);

// A tensor that ONNX Runtime owns.
struct Tensor {
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  Shape shape;
  const void* data = nullptr;
};

// float32, uint8 or the number of another type.
std::string type_name(ONNXTensorElementDataType type);

// What a session tells of a node while it makes its kernel.
class Node {
 public:
  Node(const OrtApi& api, const OrtKernelInfo& info) : api_(api), info_(info) {}

  const OrtApi& api() const { return api_; }
  std::string name() const;
  // Throw where there is no such attribute.
  int64_t number(const char* attribute) const;
  std::vector<int64_t> numbers(const char* attribute) const;
  // Throws where it is not between `low` and `high`.
  int64_t number(const char* attribute, int64_t low, int64_t high) const;
  size_t num_inputs() const;
  // Type of an input's elements, which a tensor that is computed has, too.
  ONNXTensorElementDataType input_type(size_t index) const;
  // Throws where it is not an initializer. `name` says what it is, for the sentence.
  Tensor constant(size_t index, const std::string& name) const;

 private:
  const OrtApi& api_;
  const OrtKernelInfo& info_;
};

// Tensors of a node that is being run.
Tensor input(const OrtApi& api, const OrtKernelContext& context, size_t index);
float* output(const OrtApi& api, OrtKernelContext& context, const Shape& shape);

// Until it dies, jobs of this thread (threads.h) run on the threads of the session that runs the node.
class SessionThreads {
 public:
  SessionThreads(const OrtApi& api, const OrtKernelContext& context);
  ~SessionThreads();
  SessionThreads(const SessionThreads&) = delete;
  SessionThreads& operator=(const SessionThreads&) = delete;
};

}  // namespace mmgroupnet

#endif  // MMGROUPNET_ONNXRUNTIME_ORT_H_
