// A reduced mmcv._ext: deformable attention works, every other operator is a name that explains.
//
// mmcv.ops asks for all names of its extension at import. left_out.inc, which gpu_build.py
// writes, lists those that are not compiled.
#include <torch/extension.h>

#include <stdexcept>
#include <string>

#include "pytorch_device_registry.hpp"

using at::Tensor;

using Forward = Tensor(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                       const Tensor &, int);
using Backward = void(const Tensor &, const Tensor &, const Tensor &, const Tensor &,
                      const Tensor &, const Tensor &, Tensor &, Tensor &, Tensor &, int);

Forward ms_deform_attn_forward;
Backward ms_deform_attn_backward;

#ifdef MMCV_WITH_CUDA
Forward ms_deform_attn_cuda_forward, ms_deform_attn_impl_forward;
Backward ms_deform_attn_cuda_backward, ms_deform_attn_impl_backward;

REGISTER_DEVICE_IMPL(ms_deform_attn_impl_forward, CUDA, ms_deform_attn_cuda_forward);
REGISTER_DEVICE_IMPL(ms_deform_attn_impl_backward, CUDA, ms_deform_attn_cuda_backward);
#endif

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("ms_deform_attn_forward", &ms_deform_attn_forward, py::arg("value"),
        py::arg("value_spatial_shapes"), py::arg("value_level_start_index"),
        py::arg("sampling_locations"), py::arg("attention_weights"), py::arg("im2col_step"));
  m.def("ms_deform_attn_backward", &ms_deform_attn_backward, py::arg("value"),
        py::arg("value_spatial_shapes"), py::arg("value_level_start_index"),
        py::arg("sampling_locations"), py::arg("attention_weights"), py::arg("grad_output"),
        py::arg("grad_value"), py::arg("grad_sampling_loc"), py::arg("grad_attn_weight"),
        py::arg("im2col_step"));

  const char *left_out[] = {
#include "left_out.inc"
  };
  for (const char *name : left_out) {
    m.def(name, [name](py::args, py::kwargs) {
      throw std::runtime_error(std::string(name) + " is left out of this reduced build of mmcv");
    });
  }
}
