#!/usr/bin/env bash
# Tuning flags of XLA, libtpu and NCCL, in one place; sourced by everything in launch/.
#
#   TUNE="gpu_overlap nccl_log" launch/local.sh ...
#
# None is on by default: each can cost memory or speed, so measure a run with and without. What
# XLA_FLAGS and LIBTPU_INIT_ARGS hold already stays, and goes before. A flag that the installed
# jaxlib or libtpu does not know ends the program at its start, and names it.
#
# What depends on the network of a cluster is set as it is, without TUNE: NCCL_SOCKET_IFNAME (the
# interface to use, when NCCL takes a wrong one) and NCCL_IB_HCA (the InfiniBand cards); NCCL User
# Guide 2.31, Environment Variables, "System configuration".

# add VARIABLE FLAG...: to the flags in the variable, unless one of them is set there already.
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
    # Communication of GPUs runs while they compute; more memory. XLA's latency-hiding scheduler,
    # off by default. JAX docs, GPU performance tips; jaxlib 0.10.2 knows it.
    gpu_overlap) add XLA_FLAGS --xla_gpu_enable_latency_hiding_scheduler=true ;;
    # Gradients and sharded parameters (mesh.fsdp) travel in pieces of 128 MiB instead of many small
    # ones; less overlap. The same page, which says: at least one layer of a transformer.
    gpu_combine)
      for collective in all_reduce all_gather reduce_scatter; do
        add XLA_FLAGS "--xla_gpu_${collective}_combine_threshold_bytes=134217728"
      done
      ;;
    # All-reduce runs while TPU v5e computes; more memory.
    # https://github.com/openxla/xla/blob/28192b98/docs/flags_guidance.md, "v5e/Async", which names no
    # version of libtpu.
    tpu_overlap)
      add LIBTPU_INIT_ARGS --xla_tpu_enable_async_collective_fusion=true \
        --xla_tpu_enable_async_collective_fusion_fuse_all_reduce=true
      ;;
    # For "out of memory" at compilation: schedules again with less; slower. The same page ("Memory
    # flags").
    tpu_memory) add LIBTPU_INIT_ARGS --xla_latency_hiding_scheduler_rerun=5 ;;
    # Which network NCCL takes, and why it fails. NCCL User Guide 2.31, "Debugging": not for long
    # runs.
    nccl_log) export NCCL_DEBUG="${NCCL_DEBUG:-INFO}" ;;
    *)
      echo "TUNE: no choice $choice; launch/env.sh has gpu_overlap, gpu_combine, tpu_overlap," \
        "tpu_memory and nccl_log" >&2
      return 2
      ;;
  esac
done
unset choice collective
