// Replaces ONNX Runtime's header of this name, which Python wheels do not contain. It declares the part of the C
// interface that is used here, under the same names. The official header can be used instead.
//
// OrtApi is a table of functions. New versions of ONNX Runtime append to it and change nothing before that, so a
// function keeps its index. The indices were taken from the header of ONNX Runtime 1.21, Copyright (c) Microsoft
// Corporation, MIT License (https://github.com/microsoft/onnxruntime).
#ifndef MMGROUPNET_ONNXRUNTIME_C_API_H_
#define MMGROUPNET_ONNXRUNTIME_C_API_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__cplusplus)
extern "C" {
#endif

#define ORT_API_CALL

// C++ gives an enum the range of its constants. The last constant of ONNX Runtime's own enums is therefore listed here,
// although the operators do not use it: every value that ONNX Runtime passes then lies within the range.
typedef enum ONNXTensorElementDataType {
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UNDEFINED = 0,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT = 1,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 = 2,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64 = 7,
  ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT8E5M2FNUZ = 20,
} ONNXTensorElementDataType;

typedef enum OrtErrorCode { ORT_OK = 0, ORT_FAIL = 1, ORT_INVALID_ARGUMENT = 2, ORT_EP_FAIL = 11 } OrtErrorCode;
typedef enum OrtLoggingLevel { ORT_LOGGING_LEVEL_WARNING = 2, ORT_LOGGING_LEVEL_ERROR = 3 } OrtLoggingLevel;
typedef enum OrtAllocatorType { OrtDeviceAllocator = 0, OrtArenaAllocator = 1 } OrtAllocatorType;
typedef enum OrtMemType { OrtMemTypeDefault = 0 } OrtMemType;
typedef enum OrtCustomOpInputOutputCharacteristic {
  INPUT_OUTPUT_REQUIRED = 0,
  INPUT_OUTPUT_OPTIONAL = 1,
  INPUT_OUTPUT_VARIADIC = 2,
} OrtCustomOpInputOutputCharacteristic;

typedef struct OrtAllocator OrtAllocator;
typedef struct OrtCustomOpDomain OrtCustomOpDomain;
typedef struct OrtEnv OrtEnv;
typedef struct OrtKernelContext OrtKernelContext;
typedef struct OrtKernelInfo OrtKernelInfo;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtShapeInferContext OrtShapeInferContext;
typedef struct OrtStatus OrtStatus;
typedef OrtStatus* OrtStatusPtr;
typedef struct OrtTensorTypeAndShapeInfo OrtTensorTypeAndShapeInfo;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtValue OrtValue;
typedef struct OrtApi OrtApi;
typedef struct OrtCustomOp OrtCustomOp;

typedef struct OrtApiBase {
  const OrtApi* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)(void);
} OrtApiBase;

const OrtApiBase* OrtGetApiBase(void);

// The entries from `first` to `last`, whose functions are not used.
#define ORT_UNUSED(first, last) void* unused_##first##_to_##last[last - first + 1]

struct OrtApi {
  OrtStatusPtr (*CreateStatus)(OrtErrorCode code, const char* message);  // 0
  OrtErrorCode (*GetErrorCode)(const OrtStatus* status);                 // 1
  const char* (*GetErrorMessage)(const OrtStatus* status);               // 2
  OrtStatusPtr (*CreateEnv)(OrtLoggingLevel level, const char* name, OrtEnv** out);  // 3
  ORT_UNUSED(4, 6);
  OrtStatusPtr (*CreateSession)(const OrtEnv* env, const char* path, const OrtSessionOptions* options,
                                OrtSession** out);  // 7
  ORT_UNUSED(8, 8);
  OrtStatusPtr (*Run)(OrtSession* session, const OrtRunOptions* options, const char* const* input_names,
                      const OrtValue* const* inputs, size_t num_inputs, const char* const* output_names,
                      size_t num_outputs, OrtValue** outputs);      // 9
  OrtStatusPtr (*CreateSessionOptions)(OrtSessionOptions** out);  // 10
  ORT_UNUSED(11, 23);
  OrtStatusPtr (*SetIntraOpNumThreads)(OrtSessionOptions* options, int threads);  // 24
  ORT_UNUSED(25, 25);
  OrtStatusPtr (*CreateCustomOpDomain)(const char* name, OrtCustomOpDomain** out);                      // 26
  OrtStatusPtr (*CustomOpDomain_Add)(OrtCustomOpDomain* domain, const OrtCustomOp* op);                 // 27
  OrtStatusPtr (*AddCustomOpDomain)(OrtSessionOptions* options, OrtCustomOpDomain* domain);             // 28
  ORT_UNUSED(29, 48);
  OrtStatusPtr (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo* memory, void* data, size_t bytes,
                                                 const int64_t* shape, size_t rank, ONNXTensorElementDataType type,
                                                 OrtValue** out);  // 49
  ORT_UNUSED(50, 50);
  OrtStatusPtr (*GetTensorMutableData)(OrtValue* value, void** out);  // 51
  ORT_UNUSED(52, 54);
  OrtStatusPtr (*CastTypeInfoToTensorInfo)(const OrtTypeInfo* info, const OrtTensorTypeAndShapeInfo** out);  // 55
  ORT_UNUSED(56, 59);
  OrtStatusPtr (*GetTensorElementType)(const OrtTensorTypeAndShapeInfo* info, ONNXTensorElementDataType* out);  // 60
  OrtStatusPtr (*GetDimensionsCount)(const OrtTensorTypeAndShapeInfo* info, size_t* out);                       // 61
  OrtStatusPtr (*GetDimensions)(const OrtTensorTypeAndShapeInfo* info, int64_t* out, size_t rank);              // 62
  ORT_UNUSED(63, 64);
  OrtStatusPtr (*GetTensorTypeAndShape)(const OrtValue* value, OrtTensorTypeAndShapeInfo** out);  // 65
  ORT_UNUSED(66, 68);
  OrtStatusPtr (*CreateCpuMemoryInfo)(OrtAllocatorType allocator, OrtMemType type, OrtMemoryInfo** out);  // 69
  ORT_UNUSED(70, 75);
  OrtStatusPtr (*AllocatorFree)(OrtAllocator* allocator, void* memory);  // 76
  ORT_UNUSED(77, 77);
  OrtStatusPtr (*GetAllocatorWithDefaultOptions)(OrtAllocator** out);  // 78
  ORT_UNUSED(79, 85);
  OrtStatusPtr (*KernelInfoGetAttribute_int64)(const OrtKernelInfo* info, const char* name, int64_t* out);  // 86
  ORT_UNUSED(87, 87);
  OrtStatusPtr (*KernelContext_GetInputCount)(const OrtKernelContext* context, size_t* out);                   // 88
  ORT_UNUSED(89, 89);
  OrtStatusPtr (*KernelContext_GetInput)(const OrtKernelContext* context, size_t index, const OrtValue** out);  // 90
  OrtStatusPtr (*KernelContext_GetOutput)(OrtKernelContext* context, size_t index, const int64_t* shape, size_t rank,
                                          OrtValue** out);  // 91
  void (*ReleaseEnv)(OrtEnv* env);                          // 92
  void (*ReleaseStatus)(OrtStatus* status);                 // 93
  void (*ReleaseMemoryInfo)(OrtMemoryInfo* memory);         // 94
  void (*ReleaseSession)(OrtSession* session);              // 95
  void (*ReleaseValue)(OrtValue* value);                    // 96
  ORT_UNUSED(97, 97);
  void (*ReleaseTypeInfo)(OrtTypeInfo* info);                              // 98
  void (*ReleaseTensorTypeAndShapeInfo)(OrtTensorTypeAndShapeInfo* info);  // 99
  void (*ReleaseSessionOptions)(OrtSessionOptions* options);               // 100
  void (*ReleaseCustomOpDomain)(OrtCustomOpDomain* domain);                // 101
  ORT_UNUSED(102, 110);
  OrtStatusPtr (*SessionGetModelMetadata)(const OrtSession* session, OrtModelMetadata** out);  // 111
  ORT_UNUSED(112, 115);
  OrtStatusPtr (*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata* metadata, OrtAllocator* allocator,
                                                       const char* key, char** out);  // 116
  ORT_UNUSED(117, 117);
  void (*ReleaseModelMetadata)(OrtModelMetadata* metadata);  // 118
  ORT_UNUSED(119, 129);
  OrtStatusPtr (*AddSessionConfigEntry)(OrtSessionOptions* options, const char* key, const char* value);  // 130
  ORT_UNUSED(131, 162);
  OrtStatusPtr (*KernelInfoGetAttributeArray_int64)(const OrtKernelInfo* info, const char* name, int64_t* out,
                                                    size_t* size);  // 163
  ORT_UNUSED(164, 227);
  OrtStatusPtr (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions* options, const char* path);  // 228
  ORT_UNUSED(229, 229);
  OrtStatusPtr (*KernelInfo_GetInputCount)(const OrtKernelInfo* info, size_t* out);  // 230
  ORT_UNUSED(231, 233);
  OrtStatusPtr (*KernelInfo_GetInputTypeInfo)(const OrtKernelInfo* info, size_t index, OrtTypeInfo** out);  // 234
  ORT_UNUSED(235, 236);
  OrtStatusPtr (*HasSessionConfigEntry)(const OrtSessionOptions* options, const char* key, int* out);  // 237
  OrtStatusPtr (*GetSessionConfigEntry)(const OrtSessionOptions* options, const char* key, char* out,
                                        size_t* size);  // 238
  ORT_UNUSED(239, 243);
  OrtStatusPtr (*KernelInfo_GetNodeName)(const OrtKernelInfo* info, char* out, size_t* size);  // 244
  ORT_UNUSED(245, 248);
  OrtStatusPtr (*KernelInfoGetConstantInput_tensor)(const OrtKernelInfo* info, size_t index, int* is_constant,
                                                    const OrtValue** out);  // 249
  ORT_UNUSED(250, 273);
  OrtStatusPtr (*KernelContext_ParallelFor)(const OrtKernelContext* context, void (*job)(void*, size_t), size_t jobs,
                                            size_t batches, void* data);  // 274, since version 17
};

#undef ORT_UNUSED

struct OrtCustomOp {
  uint32_t version;  // of the interface that it was written for; newer fields are not read
  void* (*CreateKernel)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info);
  const char* (*GetName)(const OrtCustomOp* op);
  const char* (*GetExecutionProviderType)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetInputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetInputTypeCount)(const OrtCustomOp* op);
  ONNXTensorElementDataType (*GetOutputType)(const OrtCustomOp* op, size_t index);
  size_t (*GetOutputTypeCount)(const OrtCustomOp* op);
  void (*KernelCompute)(void* kernel, OrtKernelContext* context);
  void (*KernelDestroy)(void* kernel);
  OrtCustomOpInputOutputCharacteristic (*GetInputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtCustomOpInputOutputCharacteristic (*GetOutputCharacteristic)(const OrtCustomOp* op, size_t index);
  OrtMemType (*GetInputMemoryType)(const OrtCustomOp* op, size_t index);
  int (*GetVariadicInputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp* op);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp* op);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp* op);
  OrtStatusPtr (*CreateKernelV2)(const OrtCustomOp* op, const OrtApi* api, const OrtKernelInfo* info, void** kernel);
  OrtStatusPtr (*KernelComputeV2)(void* kernel, OrtKernelContext* context);
  OrtStatusPtr (*InferOutputShapeFn)(const OrtCustomOp* op, OrtShapeInferContext* context);
  int (*GetStartVersion)(const OrtCustomOp* op);
  int (*GetEndVersion)(const OrtCustomOp* op);
};

#if defined(__cplusplus)
}
#endif

#endif  // MMGROUPNET_ONNXRUNTIME_C_API_H_
