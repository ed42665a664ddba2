#include "ort.h"

#include <memory>
#include <new>

#include "mmgroupnet.h"

namespace mmgroupnet {
namespace {

Tensor describe(const OrtApi& api, const OrtValue* value) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(api, api.GetTensorTypeAndShape(value, &info));
  const std::unique_ptr<OrtTensorTypeAndShapeInfo, void (*)(OrtTensorTypeAndShapeInfo*)> owner(
      info, api.ReleaseTensorTypeAndShapeInfo);
  Tensor tensor;
  size_t rank = 0;
  check(api, api.GetTensorElementType(info, &tensor.type));
  check(api, api.GetDimensionsCount(info, &rank));
  tensor.shape.resize(rank);
  check(api, api.GetDimensions(info, tensor.shape.data(), rank));
  void* data = nullptr;
  check(api, api.GetTensorMutableData(const_cast<OrtValue*>(value), &data));  // older versions have only this function
  tensor.data = data;
  return tensor;
}

}  // namespace

Part::Part(const Shape& part) {
  for (const int64_t size : part) text += (text.empty() ? "" : ", ") + std::to_string(size);
  text = "(" + text + ")";
}

std::string text(std::initializer_list<Part> parts) {
  std::string all;
  for (const Part& part : parts) all += part.text;
  return all;
}

void check(const OrtApi& api, OrtStatus* status) {
  if (status == nullptr) return;
  const std::unique_ptr<OrtStatus, void (*)(OrtStatus*)> owner(status, api.ReleaseStatus);
  throw Error({api.GetErrorMessage(status)}, api.GetErrorCode(status));
}

OrtStatus* to_status(const OrtApi& api) noexcept {
  try {
    throw;
  } catch (const Error& error) {
    return api.CreateStatus(error.code(), error.what());
  } catch (const std::bad_alloc&) {
    return api.CreateStatus(ORT_FAIL, "mmgroupnet: memory could not be allocated");
  } catch (const std::exception& error) {
    return api.CreateStatus(ORT_FAIL, error.what());
  } catch (...) {
    return api.CreateStatus(ORT_FAIL, "mmgroupnet: unknown exception");
  }
}

void check_kernels(int32_t status) {
  if (status != MMG_OK) throw Error({"mmgroupnet: ", mmg_failure()}, ORT_FAIL);
}

std::string type_name(ONNXTensorElementDataType type) {
  switch (type) {
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT: return "float32";
    case ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8: return "uint8";
    default: return text({"of element type ", static_cast<int>(type)});
  }
}

std::string Node::name() const {
  size_t size = 0;
  check(api_, api_.KernelInfo_GetNodeName(&info_, nullptr, &size));
  std::string name(size, '\0');
  check(api_, api_.KernelInfo_GetNodeName(&info_, name.data(), &size));
  return name.c_str();  // without the zero at the end, which `size` counts
}

int64_t Node::number(const char* attribute) const {
  int64_t found = 0;
  OrtStatus* status = api_.KernelInfoGetAttribute_int64(&info_, attribute, &found);
  if (status != nullptr) {
    api_.ReleaseStatus(status);
    throw Error({"attribute ", attribute, ": it is missing or not an int"});
  }
  return found;
}

std::vector<int64_t> Node::numbers(const char* attribute) const {
  size_t size = 0;
  OrtStatus* status = api_.KernelInfoGetAttributeArray_int64(&info_, attribute, nullptr, &size);
  if (status != nullptr) {
    api_.ReleaseStatus(status);
    throw Error({"attribute ", attribute, ": it is missing or not a list of ints"});
  }
  std::vector<int64_t> found(size);
  if (size > 0) check(api_, api_.KernelInfoGetAttributeArray_int64(&info_, attribute, found.data(), &size));
  return found;
}

int64_t Node::number(const char* attribute, int64_t low, int64_t high) const {
  const int64_t found = number(attribute);
  if (found < low || found > high) throw Error({attribute, "=", found, ": give ", low, " to ", high});
  return found;
}

size_t Node::num_inputs() const {
  size_t found = 0;
  check(api_, api_.KernelInfo_GetInputCount(&info_, &found));
  return found;
}

ONNXTensorElementDataType Node::input_type(size_t index) const {
  OrtTypeInfo* info = nullptr;
  check(api_, api_.KernelInfo_GetInputTypeInfo(&info_, index, &info));
  const std::unique_ptr<OrtTypeInfo, void (*)(OrtTypeInfo*)> owner(info, api_.ReleaseTypeInfo);
  const OrtTensorTypeAndShapeInfo* tensor = nullptr;
  check(api_, api_.CastTypeInfoToTensorInfo(info, &tensor));
  ONNXTensorElementDataType type = ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED;
  if (tensor != nullptr) check(api_, api_.GetTensorElementType(tensor, &type));
  return type;
}

Tensor Node::constant(size_t index, const std::string& name) const {
  int is_constant = 0;
  const OrtValue* value = nullptr;
  check(api_, api_.KernelInfoGetConstantInput_tensor(&info_, index, &is_constant, &value));
  if (is_constant == 0 || value == nullptr) {
    throw Error({"input ", index, ", ", name, ": it must be an initializer"});
  }
  return describe(api_, value);
}

Tensor input(const OrtApi& api, const OrtKernelContext& context, size_t index) {
  const OrtValue* value = nullptr;
  check(api, api.KernelContext_GetInput(&context, index, &value));
  if (value == nullptr) throw Error({"input ", index, " is missing"});
  return describe(api, value);
}

float* output(const OrtApi& api, OrtKernelContext& context, const Shape& shape) {
  OrtValue* value = nullptr;
  check(api, api.KernelContext_GetOutput(&context, 0, shape.data(), shape.size(), &value));
  void* data = nullptr;
  check(api, api.GetTensorMutableData(value, &data));
  return static_cast<float*>(data);
}

}  // namespace mmgroupnet
