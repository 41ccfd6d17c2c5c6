"""Compiler flags of the tests: nearly all of the suite's time is compilation of small programs that run for
milliseconds."""


def xla_flags(devices: int) -> str:
    """XLA_FLAGS for a process with so many simulated CPU devices, in which compiling costs little.

    Of a training step of the tests' small model (processor time): level 0 takes half of the time of the default level,
    LLVM emitters instead of MLIR fusion emitters two thirds of the rest, one part instead of 32 for LLVM (whose cutting
    copies the module again and again) another tenth to fifth.
    """
    return (
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    )
