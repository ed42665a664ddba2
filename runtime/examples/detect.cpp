// Detects objects on a picture with an .onnx file of mmgroupnet, in C++ with only ONNX Runtime:
//
//   detect model.onnx libmmgroupnet_onnxruntime.so picture.ppm [lowest score] [threads]
//
// Compile it with the headers and the library of ONNX Runtime, which are in its releases and in its packages for apps:
//
//   g++ -std=c++17 -O2 -I onnxruntime/include detect.cpp -L onnxruntime/lib -lonnxruntime -o detect
//
// It does not resize the picture. The test pipeline of a model does: the entry `resize` of the metadata says how, and
// boxes are in pixels of the resized picture (docs/onnx_file.md).
#include <onnxruntime_c_api.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

const OrtApi& ort() {
  // Version 17 of the interface has all functions that are needed, and every later ONNX Runtime supports it.
  static const OrtApi* const api = OrtGetApiBase()->GetApi(17);
  if (api == nullptr) {
    throw std::runtime_error(std::string("ONNX Runtime is too old: ") + OrtGetApiBase()->GetVersionString());
  }
  return *api;
}

// Every function returns null or an error.
void check(OrtStatus* status) {
  if (status == nullptr) return;
  const std::string message = ort().GetErrorMessage(status);
  ort().ReleaseStatus(status);
  throw std::runtime_error(message);
}

// Owns an object that ONNX Runtime created.
template <typename T>
using Owner = std::unique_ptr<T, void (*)(T*)>;

// An 8-bit picture, three bytes per pixel.
struct Picture {
  int64_t height = 0, width = 0;
  std::vector<uint8_t> pixels;
};

// Reads a PPM file of type P6 and swaps red and blue, because the model reads blue, green, red.
Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::string type;
  Picture picture;
  int largest = 0;
  file >> type >> picture.width >> picture.height >> largest;
  file.get();  // the one white space behind the header
  constexpr int64_t kMaxSide = 1 << 15;
  if (!file || type != "P6" || largest != 255 || picture.width < 1 || picture.height < 1 || picture.width > kMaxSide ||
      picture.height > kMaxSide) {
    throw std::runtime_error(path + " is not a PPM file of type P6 with 8 bits per colour and without comments");
  }
  picture.pixels.resize(3 * picture.height * picture.width);
  file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  if (!file) throw std::runtime_error(path + " ends too early");
  for (size_t i = 0; i < picture.pixels.size(); i += 3) std::swap(picture.pixels[i], picture.pixels[i + 2]);
  return picture;
}

// A session is created once. It then runs any number of pictures, also from several threads.
Owner<OrtSession> open_session(const OrtEnv* env, const char* model, const char* operators, int threads) {
  OrtSessionOptions* options = nullptr;
  check(ort().CreateSessionOptions(&options));
  const Owner<OrtSessionOptions> owner(options, ort().ReleaseSessionOptions);
  check(ort().SetIntraOpNumThreads(options, threads));
  // The binary layers divide their work by the same number. It has to be set before they are registered.
  check(ort().AddSessionConfigEntry(options, "mmgroupnet.threads", std::to_string(threads).c_str()));
  check(ort().RegisterCustomOpsLibrary_V2(options, operators));
  OrtSession* session = nullptr;
  check(ort().CreateSession(env, model, options, &session));
  return {session, ort().ReleaseSession};
}

// The metadata of the model, JSON.
std::string read_metadata(const OrtSession* session) {
  OrtModelMetadata* metadata = nullptr;
  check(ort().SessionGetModelMetadata(session, &metadata));
  const Owner<OrtModelMetadata> owner(metadata, ort().ReleaseModelMetadata);
  OrtAllocator* allocator = nullptr;
  check(ort().GetAllocatorWithDefaultOptions(&allocator));
  char* found = nullptr;
  check(ort().ModelMetadataLookupCustomMetadataMap(metadata, allocator, "mmgroupnet", &found));
  if (found == nullptr) throw std::runtime_error("the model has no metadata of mmgroupnet");
  const std::string text = found;
  check(ort().AllocatorFree(allocator, found));
  return text;
}

int64_t count_detections(const OrtValue* dets) {
  OrtTensorTypeAndShapeInfo* info = nullptr;
  check(ort().GetTensorTypeAndShape(dets, &info));
  const Owner<OrtTensorTypeAndShapeInfo> owner(info, ort().ReleaseTensorTypeAndShapeInfo);
  int64_t shape[3];  // pictures, detections, 5
  check(ort().GetDimensions(info, shape, 3));
  return shape[1];
}

void detect(OrtSession* session, Picture picture, float lowest_score) {
  OrtMemoryInfo* memory = nullptr;
  check(ort().CreateCpuMemoryInfo(OrtArenaAllocator, OrtMemTypeDefault, &memory));
  const Owner<OrtMemoryInfo> memory_owner(memory, ort().ReleaseMemoryInfo);
  const int64_t shape[] = {1, picture.height, picture.width, 3};
  OrtValue* image = nullptr;
  check(ort().CreateTensorWithDataAsOrtValue(memory, picture.pixels.data(), picture.pixels.size(), shape, 4,
                                             ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8, &image));
  const Owner<OrtValue> image_owner(image, ort().ReleaseValue);

  const char* const inputs[] = {"image"};
  const char* const outputs[] = {"dets", "labels"};
  OrtValue* found[] = {nullptr, nullptr};
  check(ort().Run(session, nullptr, inputs, &image, 1, outputs, 2, found));
  const Owner<OrtValue> dets_owner(found[0], ort().ReleaseValue), labels_owner(found[1], ort().ReleaseValue);

  float* dets = nullptr;
  int64_t* labels = nullptr;
  check(ort().GetTensorMutableData(found[0], reinterpret_cast<void**>(&dets)));
  check(ort().GetTensorMutableData(found[1], reinterpret_cast<void**>(&labels)));
  for (int64_t i = 0, n = count_detections(found[0]); i < n; ++i, dets += 5) {
    if (dets[4] < lowest_score) break;  // the best come first
    std::printf("%lld %.4f %.2f %.2f %.2f %.2f\n", static_cast<long long>(labels[i]), dets[4], dets[0], dets[1],
                dets[2], dets[3]);
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    std::fprintf(stderr, "usage: %s model.onnx libmmgroupnet_onnxruntime.so picture.ppm [lowest score] [threads]\n",
                 argv[0]);
    return 2;
  }
  try {
    const float lowest_score = argc > 4 ? std::strtof(argv[4], nullptr) : 0.3f;
    const int threads = argc > 5 ? std::atoi(argv[5]) : 1;
    OrtEnv* env = nullptr;
    check(ort().CreateEnv(ORT_LOGGING_LEVEL_ERROR, "detect", &env));
    const Owner<OrtEnv> env_owner(env, ort().ReleaseEnv);
    const Owner<OrtSession> session = open_session(env, argv[1], argv[2], threads);
    std::printf("%s\n", read_metadata(session.get()).c_str());
    detect(session.get(), read_ppm(argv[3]), lowest_score);
    return 0;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
