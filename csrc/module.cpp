// The Python module sod_ops._C. Importing it loads the shared object and with it the operators; build_info() says what
// the object was built with. No torch header is needed.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <sstream>
#include <string>
#include <vector>

#include "simd/capability.h"
#include "squeeze_excite_fits.h"

#define SOD_OPS_STRING_(...) #__VA_ARGS__
#define SOD_OPS_STRING(...) SOD_OPS_STRING_(__VA_ARGS__)

#if defined(__clang__)
#define SOD_OPS_COMPILER "Clang " __clang_version__
#else
#define SOD_OPS_COMPILER "GCC " __VERSION__
#endif

namespace py = pybind11;

namespace {

// "75,80" as ["75", "80"].
std::vector<std::string> split(const std::string& list) {
  std::vector<std::string> items;
  std::stringstream stream(list);
  for (std::string item; std::getline(stream, item, ',');) items.push_back(item);
  return items;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = SOD_OPS_COMPILER;
  info["torch"] = SOD_OPS_STRING(SOD_OPS_TORCH_VERSION);
  info["instruction_sets"] = sod_ops::built_capabilities();
  info["instruction_set"] = sod_ops::capability_name(sod_ops::capability());
  info["cuda_architectures"] = split(SOD_OPS_STRING(SOD_OPS_CUDA_ARCHITECTURES));
  return info;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "The compiled part of sod_ops: importing it registers the native operators with PyTorch.";
  m.def("build_info", &build_info,
        "Compiler, torch version, instruction sets built and the one chosen here, CUDA architectures.");
  const auto fits = sod_ops::squeeze_excite_fits;
  if (fits != nullptr) m.def("squeeze_excite_fits", fits, "Whether its CUDA kernel serves a shape on a device.");
}
