//! What this machine is called.

/// The name of this machine, as the kernel has it; empty if it does not tell.
pub fn name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_string())
        .unwrap_or_default()
}
