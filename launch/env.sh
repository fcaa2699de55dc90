#!/usr/bin/env bash
# Tuning flags of XLA, libtpu and NCCL, in one place; sourced by everything in launch/.
#
#   TUNE="gpu_overlap nccl_log" launch/local.sh ...
#
# None is on by default: each can cost memory or speed, so measure a run with and without it. Flags
# that are already in XLA_FLAGS and LIBTPU_INIT_ARGS stay and take precedence. If the installed jaxlib
# or libtpu does not know a flag, the program ends at its start and names it.
#
# Set variables for the cluster's network directly, without TUNE: NCCL_SOCKET_IFNAME (the interface,
# if NCCL chooses a wrong one) and NCCL_IB_HCA (the InfiniBand cards); NCCL User Guide 2.31,
# Environment Variables, "System configuration".

# add VARIABLE FLAG...: append each flag to the variable, unless the variable sets it already.
add() {
  local variable=$1 flag
  shift
  for flag in "$@"; do
    case " ${!variable:-} " in
      *" ${flag%%=*}="*) ;;
      *) export "$variable=${!variable:+${!variable} }$flag" ;;
    esac
  done
}

for choice in ${TUNE:-}; do
  case $choice in
    # Overlaps communication between GPUs with computation; needs more memory. XLA's latency-hiding
    # scheduler, off by default. JAX docs, GPU performance tips; jaxlib 0.10.2 knows it.
    gpu_overlap) add XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true ;;
    # Sends gradients and sharded parameters (mesh.fsdp) in pieces of 128 MiB instead of many small
    # ones; less overlap. The same page, which advises at least one layer of a transformer.
    gpu_combine)
      for collective in all_reduce all_gather reduce_scatter; do
        add XLA_FLAGS "--xla_gpu_${collective}_combine_threshold_bytes=134217728"
      done
      ;;
    # Overlaps all-reduce with computation on TPU v5e; needs more memory.
    # https://github.com/openxla/xla/blob/28192b98/docs/flags_guidance.md, "v5e/Async", which names no
    # version of libtpu.
    tpu_overlap)
      add LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion=true \
        --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
      ;;
    # Against "out of memory" at compilation: schedules again with less memory; slower. The same page
    # ("Memory flags").
    tpu_memory) add LIBTPU_INIT_ARGS --xla_latency_hiding_scheduler_rerun=5 ;;
    # Logs which network NCCL uses and why it fails; not for long runs. NCCL User Guide 2.31,
    # "Debugging".
    nccl_log) export NCCL_DEBUG="${NCCL_DEBUG:-INFO}" ;;
    *)
      echo "error: TUNE has an unknown choice, $choice; use gpu_overlap, gpu_combine, tpu_overlap," \
        "tpu_memory or nccl_log" >&2
      return 2
      ;;
  esac
done
unset choice collective
