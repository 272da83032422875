//! Whether the machine runs on its battery, as the kernel shows it in `/sys/class/power_supply`.

use std::fs;
use std::path::Path;

/// The directory with one directory for each supply.
const SUPPLIES: &str = "/sys/class/power_supply";

/// Returns whether the machine runs on a battery. A machine without one, or whose supplies cannot
/// be read, is on mains.
pub(super) fn is_on_battery() -> bool {
    is_any_draining(Path::new(SUPPLIES))
}

fn is_any_draining(supplies: &Path) -> bool {
    let Ok(entries) = fs::read_dir(supplies) else {
        return false;
    };
    let mut drains = false;
    for entry in entries.flatten() {
        let fact = |name: &str| {
            let text = fs::read_to_string(entry.path().join(name)).unwrap_or_default();
            text.trim().to_owned()
        };
        match fact("type").as_str() {
            "Mains" | "USB" if fact("online") == "1" => return false,
            // The batteries of mice and headsets have the scope "Device".
            "Battery" if fact("scope") != "Device" => drains |= fact("status") == "Discharging",
            _ => {}
        }
    }
    drains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn supply(dir: &Path, name: &str, facts: &[(&str, &str)]) {
        fs::create_dir_all(dir.join(name)).unwrap();
        for (fact, text) in facts {
            fs::write(dir.join(name).join(fact), format!("{text}\n")).unwrap();
        }
    }

    #[test]
    fn only_a_draining_battery_of_the_machine_without_mains_counts() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        assert!(!is_any_draining(&top.join("missing")));
        assert!(!is_any_draining(top), "a desktop has no supplies at all");
        let mouse = [
            ("type", "Battery"),
            ("scope", "Device"),
            ("status", "Discharging"),
        ];
        supply(top, "hid-mouse", &mouse);
        assert!(!is_any_draining(top), "the battery of a mouse");
        supply(
            top,
            "BAT0",
            &[("type", "Battery"), ("status", "Discharging")],
        );
        assert!(is_any_draining(top));
        supply(top, "AC", &[("type", "Mains"), ("online", "0")]);
        assert!(is_any_draining(top));
        supply(top, "AC", &[("online", "1")]);
        assert!(!is_any_draining(top), "mains, while the battery is weak");
        supply(top, "AC", &[("online", "0")]);
        supply(top, "BAT0", &[("status", "Full")]);
        assert!(!is_any_draining(top));
    }
}
