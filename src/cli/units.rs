//! Sizes and durations as the user writes and reads them.

use std::time::Duration;

pub use crate::core::human_bytes;
use crate::daemon::options::CacheSize;

/// Why text is not a size or duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// It does not begin with a number.
    #[error("does not begin with a number; write it like {0}")]
    NoNumber(&'static str),
    /// The unit is not known.
    #[error("unknown unit '{0}'; known are {1}")]
    UnknownUnit(String, &'static str),
    /// It is too large.
    #[error("too large")]
    TooLarge,
    /// It is zero, which is not accepted here.
    #[error("must be more than zero")]
    Zero,
    /// A rate at which a large drive would take years.
    #[error("must be at least 64K, in bytes a second")]
    Rate,
    /// A share outside 1% to 100%.
    #[error("a share must be a whole number from 1% to 100%")]
    Share,
}

const DURATION_EXAMPLE: &str = "30s, 15m, 2h, 1d or 500ms";
const DURATION_UNITS: &str = "ms, s, m, h, d";
const SIZE_EXAMPLE: &str = "10G, 512M, 1.5T or 80%";
const SIZE_UNITS: &str = "K, M, G, T (powers of 1024), KB, MB, GB, TB (powers of 1000)";

/// The longest accepted duration: a hundred years, far below the overflow of clock arithmetic.
const LONGEST: Duration = Duration::from_secs(36_500 * 24 * 3600);

/// Parses `30s`, `15m`, `2h`, `1d`, `500ms`, `1.5h`; a bare number is in seconds.
///
/// # Errors
/// [`UnitError`].
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let (number, unit) = split(text, DURATION_EXAMPLE)?;
    let nanos_per_unit: u128 = match unit {
        "ms" => 1_000_000,
        "" | "s" => 1_000_000_000,
        "m" | "min" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        "d" => 86_400 * 1_000_000_000,
        _ => return Err(UnitError::UnknownUnit(unit.into(), DURATION_UNITS)),
    };
    let nanos = number.times(nanos_per_unit).ok_or(UnitError::TooLarge)?;
    let nanos = u64::try_from(nanos).map_err(|_| UnitError::TooLarge)?;
    let duration = Duration::from_nanos(nanos);
    if duration > LONGEST {
        return Err(UnitError::TooLarge);
    }
    Ok(duration)
}

/// Parses `10G`, `512M`, `1.5T` (powers of 1024), `10GB` (powers of 1000), or a bare number of
/// bytes.
///
/// # Errors
/// [`UnitError`].
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let (number, unit) = split(text, SIZE_EXAMPLE)?;
    let bytes_per_unit = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => Some(1),
        unit => power(unit),
    };
    let Some(bytes_per_unit) = bytes_per_unit else {
        return Err(UnitError::UnknownUnit(unit.into(), SIZE_UNITS));
    };
    let bytes = number.times(bytes_per_unit).ok_or(UnitError::TooLarge)?;
    // The system stores file sizes in an i64.
    match u64::try_from(bytes) {
        Ok(bytes) if bytes <= i64::MAX as u64 => Ok(bytes),
        _ => Err(UnitError::TooLarge),
    }
}

/// Parses a size as [`parse_size`], or a share of the free space such as `80%`.
///
/// # Errors
/// [`UnitError`].
pub fn parse_cache_size(text: &str) -> Result<CacheSize, UnitError> {
    if let Some(share) = text.trim().strip_suffix('%') {
        return match share.trim_end().parse::<u8>() {
            Ok(share @ 1..=100) => Ok(CacheSize::PercentOfFree(share)),
            _ => Err(UnitError::Share),
        };
    }
    match parse_size(text)? {
        0 => Err(UnitError::Zero),
        bytes => Ok(CacheSize::Bytes(bytes)),
    }
}

/// Parses bytes a second, as [`parse_size`], at least 64 KiB.
///
/// # Errors
/// [`UnitError`].
pub fn parse_rate(text: &str) -> Result<u64, UnitError> {
    match parse_size(text)? {
        bytes if bytes < 64 << 10 => Err(UnitError::Rate),
        bytes => Ok(bytes),
    }
}

fn power(unit: &str) -> Option<u128> {
    let mut letters = unit.chars();
    let exponent = match letters.next()? {
        'k' => 1,
        'm' => 2,
        'g' => 3,
        't' => 4,
        _ => return None,
    };
    let base: u128 = match letters.as_str() {
        "" | "i" | "ib" => 1024,
        "b" => 1000,
        _ => return None,
    };
    Some(base.pow(exponent))
}

/// An exact decimal number: `digits` divided by ten to the `decimals`.
struct Decimal {
    digits: u128,
    decimals: u32,
}

impl Decimal {
    fn times(&self, factor: u128) -> Option<u128> {
        let scale = 10_u128.checked_pow(self.decimals)?;
        Some(self.digits.checked_mul(factor)? / scale)
    }
}

/// The number at the start of `text`, and the unit after it.
fn split<'a>(text: &'a str, example: &'static str) -> Result<(Decimal, &'a str), UnitError> {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.contains('.') || number.ends_with('.') {
        return Err(UnitError::NoNumber(example));
    }
    let digits = format!("{whole}{fraction}");
    let number = Decimal {
        digits: digits.parse().map_err(|_| UnitError::TooLarge)?,
        decimals: u32::try_from(fraction.len()).map_err(|_| UnitError::TooLarge)?,
    };
    Ok((number, unit.trim_start()))
}

/// `seconds` for the user: `0.4 s`, `12 s`, `3 min 5 s`, `2 h 10 min`.
pub fn human_seconds(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    let whole = seconds.round() as u64;
    match whole {
        0..60 => format!("{whole} s"),
        60..3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_people_write_them() {
        let millis = |text| parse_duration(text).unwrap().as_millis();
        assert_eq!(millis("30s"), 30_000);
        assert_eq!(millis("15m"), 900_000);
        assert_eq!(millis("2h"), 7_200_000);
        assert_eq!(millis("1d"), 86_400_000);
        assert_eq!(millis("500ms"), 500);
        assert_eq!(millis("45"), 45_000);
        assert_eq!(millis("1.5h"), 5_400_000);
        assert_eq!(millis(" 0 "), 0);
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for bad in [
            "", "s", "-1s", "1.s", ".5s", "1.2.3", "ten", "1 s s", "5y", "1e9",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad:?}");
        }
        for huge in [
            "36501d",
            "99999999999999999999999999999999999999999",
            "1e",
            "18446744073709551616",
        ] {
            assert!(parse_duration(huge).is_err(), "{huge:?}");
        }
        assert_eq!(parse_duration("36500d").unwrap(), LONGEST);
    }

    #[test]
    fn sizes_are_read_exactly() {
        let cases = [
            ("0", 0),
            ("512", 512),
            ("512M", 512 << 20),
            ("10g", 10 << 30),
            ("10GiB", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5T", 3 << 39),
            ("1.000001k", 1024),
            ("9007199254740993", 9_007_199_254_740_993),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for bad in [
            "",
            "G",
            "-1G",
            "1X",
            "1Gib/s",
            "10GBB",
            "9999999999T",
            "9223372036854775808",
        ] {
            assert!(parse_size(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_cache_is_a_share_or_a_size_and_never_nothing() {
        assert_eq!(parse_cache_size("80%"), Ok(CacheSize::PercentOfFree(80)));
        assert_eq!(parse_cache_size("10G"), Ok(CacheSize::Bytes(10 << 30)));
        assert_eq!(parse_cache_size("0"), Err(UnitError::Zero));
        for bad in ["0%", "101%", "%", "1.5%", "-3%"] {
            assert_eq!(parse_cache_size(bad), Err(UnitError::Share), "{bad}");
        }
    }

    #[test]
    fn sizes_show_three_digits_and_never_a_thousand() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "0.98 KiB"),
            (1024, "1.00 KiB"),
            (10_234, "9.99 KiB"),
            (10_240, "10.0 KiB"),
            (1_048_575, "1.00 MiB"),
            (3 << 30, "3.00 GiB"),
            (120 << 30, "120 GiB"),
            (u64::MAX, "16.0 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(human_bytes(bytes), text);
        }
    }

    #[test]
    fn spans_show_what_matters_at_their_scale() {
        let cases = [
            (0.0, "0.0 s"),
            (9.96, "10 s"),
            (59.6, "1 min 0 s"),
            (185.0, "3 min 5 s"),
            (7800.0, "2 h 10 min"),
        ];
        for (seconds, text) in cases {
            assert_eq!(human_seconds(seconds), text);
        }
    }
}
