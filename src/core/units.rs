//! Numbers for people.

/// Formats `bytes` in powers of 1024, with three digits: `3.42 GiB`.
///
/// # Examples
///
/// ```
/// use ferryfs::core::human_bytes;
///
/// assert_eq!(human_bytes(999), "999 B");
/// assert_eq!(human_bytes(3_670_016), "3.50 MiB");
/// assert_eq!(human_bytes(1023 * 1024), "1.00 MiB");
/// ```
pub fn human_bytes(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    // From 999.5 on, three digits would round to a thousand.
    while value >= 999.5 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let decimals = match value {
        _ if unit == 0 => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {}", UNITS[unit])
}
