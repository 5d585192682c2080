"""Where and how computations run: devices, measured settings, CPU kernels, memory, interruption."""
