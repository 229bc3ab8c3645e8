// Every native operator: the table of contents of csrc. Kernels register themselves in cpu/<op>.cpp and cuda/<op>.cu;
// the Python annotations in sod_ops/ops/<op>.py must give the same schemas (tests/test_operators.py).
#include "stable.h"

STABLE_TORCH_LIBRARY(sod_ops, m) {
  // clang-format off
  m.def("adaptive_pixel_intensity_loss(Tensor[] probabilities, Tensor mask, bool as_published, float[] weights, SymInt reduction, bool with_gradient) -> (Tensor, Tensor[])");
  m.def("adaptive_pixel_intensity_loss_backward(Tensor grad_output, Tensor[] probabilities, Tensor mask, bool as_published, float[] weights, SymInt reduction) -> Tensor[]");
  m.def("bce_ssim_iou_loss(Tensor[] probabilities, Tensor mask, float bce_weight, float ssim_weight, float iou_weight, float smooth, SymInt window_size, float sigma, float[] weights, SymInt reduction, bool with_gradient) -> (Tensor, Tensor[])");
  m.def("bce_ssim_iou_loss_backward(Tensor grad_output, Tensor[] probabilities, Tensor mask, float bce_weight, float ssim_weight, float iou_weight, float smooth, SymInt window_size, float sigma, float[] weights, SymInt reduction) -> Tensor[]");
  m.def("box_filter(Tensor mask, SymInt kernel_size) -> Tensor");
  m.def("box_filter_backward(Tensor grad_output, SymInt kernel_size) -> Tensor");
  m.def("cutmix(Tensor images, Tensor partner, Tensor boxes) -> Tensor");
  m.def("cutmix_backward(Tensor grad_output, Tensor receiver, Tensor boxes) -> Tensor");
  m.def("copy_paste(Tensor images, Tensor masks, Tensor partner, Tensor chosen, float blend_sigma, float min_visible) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("copy_paste_backward(Tensor grad_output, Tensor pasted, Tensor receiver, float blend_sigma) -> Tensor");
  m.def("scale_gradient_(Tensor(a0!) gradient, Tensor factor) -> ()");
  m.def("sigmoid_focal_loss(Tensor inputs, Tensor targets, float alpha, float gamma, SymInt reduction, bool with_gradient) -> (Tensor, Tensor)");
  m.def("sigmoid_focal_loss_backward(Tensor grad_output, Tensor inputs, Tensor targets, float alpha, float gamma, SymInt reduction) -> Tensor");
  m.def("softmax_focal_loss(Tensor inputs, Tensor targets, Tensor? alpha, float scale, float gamma, SymInt ignore_index, SymInt reduction, bool with_gradient) -> (Tensor, Tensor)");
  m.def("softmax_focal_loss_backward(Tensor grad_output, Tensor inputs, Tensor targets, Tensor? alpha, float scale, float gamma, SymInt ignore_index, SymInt reduction) -> Tensor");
  m.def("squeeze_excite(Tensor x, Tensor? reduce_weight, Tensor? reduce_bias, Tensor expand_weight, Tensor? expand_bias, SymInt activation, SymInt gate) -> (Tensor, Tensor)");
  m.def("squeeze_excite_backward(Tensor grad_output, Tensor x, Tensor? reduce_weight, Tensor expand_weight, Tensor statistics, SymInt activation, SymInt gate) -> (Tensor, Tensor, Tensor, Tensor, Tensor)");
  m.def("ssim(Tensor x, Tensor y, SymInt window_size, float sigma, SymInt reduction, bool first, bool second) -> (Tensor, Tensor, Tensor)");
  m.def("ssim_backward(Tensor grad_output, Tensor x, Tensor y, SymInt window_size, float sigma, SymInt reduction, bool first, bool second) -> (Tensor, Tensor)");
  m.def("structure_loss(Tensor[] logits, Tensor mask, SymInt kernel_size, bool as_published, float[] weights, SymInt reduction, bool with_gradient) -> (Tensor, Tensor[])");
  m.def("structure_loss_backward(Tensor grad_output, Tensor[] logits, Tensor mask, SymInt kernel_size, bool as_published, float[] weights, SymInt reduction) -> Tensor[]");
  m.def("tversky_loss(Tensor[] logits, Tensor mask, float alpha, float beta, float smooth, float[] weights, SymInt reduction, bool with_gradient) -> (Tensor, Tensor[])");
  m.def("tversky_loss_backward(Tensor grad_output, Tensor[] logits, Tensor mask, float alpha, float beta, float smooth, float[] weights, SymInt reduction) -> Tensor[]");
  m.def("box_iou_loss(Tensor boxes1, Tensor boxes2, SymInt loss, SymInt reduction, float eps, bool first, bool second) -> (Tensor, Tensor, Tensor)");
  m.def("box_iou_loss_backward(Tensor grad_output, Tensor boxes1, Tensor boxes2, SymInt loss, SymInt reduction, float eps, bool first, bool second) -> (Tensor, Tensor)");
  m.def("complete_box_iou(Tensor boxes1, Tensor boxes2, float eps) -> Tensor");
  m.def("complete_box_iou_backward(Tensor grad_output, Tensor boxes1, Tensor boxes2, float eps, bool first, bool second) -> (Tensor, Tensor)");
  m.def("channel_pool(Tensor x) -> (Tensor, Tensor)");
  m.def("channel_pool_backward(Tensor grad_output, Tensor indices, SymInt channels, bool channels_last, Tensor? other=None) -> Tensor");
  m.def("gate(Tensor x, Tensor? channel_logits, Tensor? spatial_logits, bool sum_of_gates) -> Tensor");
  m.def("gate_backward(Tensor grad_output, Tensor x, Tensor? channel_logits, Tensor? spatial_logits, bool sum_of_gates) -> (Tensor, Tensor, Tensor)");
  m.def("global_pool(Tensor x) -> (Tensor, Tensor, Tensor)");
  m.def("global_pool_backward(Tensor grad_mean, Tensor grad_maximum, Tensor indices, SymInt height, SymInt width, bool channels_last, Tensor? other=None) -> Tensor");
  m.def("scse(Tensor x, Tensor spatial_weight) -> (Tensor, Tensor)");
  m.def("scse_backward(Tensor grad_means, Tensor grad_projection, Tensor x, Tensor spatial_weight, Tensor? other=None) -> (Tensor, Tensor)");
  m.def("pointwise_conv2d(Tensor[] maps, Tensor[] weights, Tensor[] biases) -> Tensor[]");
  m.def("pointwise_conv2d_backward(Tensor[] grads, Tensor[] maps, Tensor[] weights, bool of_maps, bool of_weights, bool of_biases) -> (Tensor[], Tensor[], Tensor[])");
  m.def("pyramid_pool(Tensor x, SymInt[] bins) -> Tensor[]");
  m.def("pyramid_pool_backward(Tensor[] grads, SymInt[] bins, SymInt height, SymInt width, bool channels_last, Tensor? other=None) -> Tensor");
  m.def("pyramid_upsample_concat(Tensor x, Tensor[] branches, bool align_corners, bool x_first) -> Tensor");
  m.def("pyramid_upsample_concat_backward(Tensor grad_output, SymInt[] branch_shapes, bool align_corners, bool x_first, bool channels_last) -> Tensor[]");
  m.def("pyramid_conv2d(Tensor y, Tensor[] products, bool align_corners, bool nearest) -> Tensor");
  m.def("pyramid_conv2d_branches(Tensor? y, Tensor? bias, Tensor[] branches, Tensor[] weights, SymInt height, SymInt width, bool align_corners, bool nearest) -> Tensor");
  m.def("pyramid_conv2d_branches_backward(Tensor grad_output, Tensor[] branches, Tensor[] weights, bool align_corners, bool nearest) -> Tensor[]");
  m.def("pyramid_conv2d_backward(Tensor grad_output, SymInt[] heights, SymInt[] widths, SymInt kernel_size, bool align_corners, bool nearest) -> Tensor[]");
  // clang-format on
}
