//! The up-case table of a new exFAT volume, by which its drivers compare names.
//!
//! It is not `char::to_uppercase`, for two reasons. The keys made with it are stored, so they must
//! not change with the compiler's Unicode version. And Unicode differs from exFAT in both
//! directions: it distinguishes U+1F80 and U+1F88, which are one name on exFAT (so a batch could
//! overwrite one file by another), and it equates `ı` and `i`, or the micro sign and the Greek mu,
//! which are two names there.

/// A run of code points `first`, `first + step`, .. `last`, whose upper case is the code point plus
/// `delta`.
struct Run {
    first: u16,
    last: u16,
    step: u16,
    delta: i16,
}

const fn run(first: u16, last: u16, step: u16, delta: i16) -> Run {
    Run {
        first,
        last,
        step,
        delta,
    }
}

/// Returns the upper case of `c`: `c` itself for most characters and for all beyond the BMP.
pub(crate) fn upcase(c: char) -> char {
    let Ok(unit) = u16::try_from(u32::from(c)) else {
        return c;
    };
    let after = RUNS.partition_point(|run| run.first <= unit);
    let Some(run) = after.checked_sub(1).and_then(|i| RUNS.get(i)) else {
        return c;
    };
    if unit > run.last || !(unit - run.first).is_multiple_of(run.step) {
        return c;
    }
    char::from_u32(u32::from(unit.wrapping_add_signed(run.delta))).unwrap_or(c)
}

/// The recommended up-case table of the exFAT specification (section 7.2.5.1), as runs, ascending,
/// without overlaps.
const RUNS: &[Run] = &[
    run(0x0061, 0x007a, 1, -32),
    run(0x00e0, 0x00f6, 1, -32),
    run(0x00f8, 0x00fe, 1, -32),
    run(0x00ff, 0x00ff, 1, 121),
    run(0x0101, 0x012f, 2, -1),
    run(0x0133, 0x0137, 2, -1),
    run(0x013a, 0x0148, 2, -1),
    run(0x014b, 0x0177, 2, -1),
    run(0x017a, 0x017e, 2, -1),
    run(0x0180, 0x0180, 1, 195),
    run(0x0183, 0x0185, 2, -1),
    run(0x0188, 0x0188, 1, -1),
    run(0x018c, 0x018c, 1, -1),
    run(0x0192, 0x0192, 1, -1),
    run(0x0195, 0x0195, 1, 97),
    run(0x0199, 0x0199, 1, -1),
    run(0x019a, 0x019a, 1, 163),
    run(0x019e, 0x019e, 1, 130),
    run(0x01a1, 0x01a5, 2, -1),
    run(0x01a8, 0x01a8, 1, -1),
    run(0x01ad, 0x01ad, 1, -1),
    run(0x01b0, 0x01b0, 1, -1),
    run(0x01b4, 0x01b6, 2, -1),
    run(0x01b9, 0x01b9, 1, -1),
    run(0x01bd, 0x01bd, 1, -1),
    run(0x01bf, 0x01bf, 1, 56),
    run(0x01c6, 0x01c6, 1, -2),
    run(0x01c9, 0x01c9, 1, -2),
    run(0x01cc, 0x01cc, 1, -2),
    run(0x01ce, 0x01dc, 2, -1),
    run(0x01dd, 0x01dd, 1, -79),
    run(0x01df, 0x01ef, 2, -1),
    run(0x01f3, 0x01f3, 1, -2),
    run(0x01f5, 0x01f5, 1, -1),
    run(0x01f9, 0x021f, 2, -1),
    run(0x0223, 0x0233, 2, -1),
    run(0x023a, 0x023a, 1, 10795),
    run(0x023c, 0x023c, 1, -1),
    run(0x023e, 0x023e, 1, 10792),
    run(0x0242, 0x0242, 1, -1),
    run(0x0247, 0x024f, 2, -1),
    run(0x0253, 0x0253, 1, -210),
    run(0x0254, 0x0254, 1, -206),
    run(0x0256, 0x0257, 1, -205),
    run(0x0259, 0x0259, 1, -202),
    run(0x025b, 0x025b, 1, -203),
    run(0x0260, 0x0260, 1, -205),
    run(0x0263, 0x0263, 1, -207),
    run(0x0268, 0x0268, 1, -209),
    run(0x0269, 0x0269, 1, -211),
    run(0x026b, 0x026b, 1, 10743),
    run(0x026f, 0x026f, 1, -211),
    run(0x0272, 0x0272, 1, -213),
    run(0x0275, 0x0275, 1, -214),
    run(0x027d, 0x027d, 1, 10727),
    run(0x0280, 0x0280, 1, -218),
    run(0x0283, 0x0283, 1, -218),
    run(0x0288, 0x0288, 1, -218),
    run(0x0289, 0x0289, 1, -69),
    run(0x028a, 0x028b, 1, -217),
    run(0x028c, 0x028c, 1, -71),
    run(0x0292, 0x0292, 1, -219),
    run(0x037b, 0x037d, 1, 130),
    run(0x03ac, 0x03ac, 1, -38),
    run(0x03ad, 0x03af, 1, -37),
    run(0x03b1, 0x03c1, 1, -32),
    run(0x03c2, 0x03c2, 1, -31),
    run(0x03c3, 0x03cb, 1, -32),
    run(0x03cc, 0x03cc, 1, -64),
    run(0x03cd, 0x03ce, 1, -63),
    run(0x03d9, 0x03ef, 2, -1),
    run(0x03f2, 0x03f2, 1, 7),
    run(0x03f8, 0x03f8, 1, -1),
    run(0x03fb, 0x03fb, 1, -1),
    run(0x0430, 0x044f, 1, -32),
    run(0x0450, 0x045f, 1, -80),
    run(0x0461, 0x0481, 2, -1),
    run(0x048b, 0x04bf, 2, -1),
    run(0x04c2, 0x04ce, 2, -1),
    run(0x04cf, 0x04cf, 1, -15),
    run(0x04d1, 0x0513, 2, -1),
    run(0x0561, 0x0586, 1, -48),
    run(0x1d7d, 0x1d7d, 1, 3814),
    run(0x1e01, 0x1e95, 2, -1),
    run(0x1ea1, 0x1ef9, 2, -1),
    run(0x1f00, 0x1f07, 1, 8),
    run(0x1f10, 0x1f15, 1, 8),
    run(0x1f20, 0x1f27, 1, 8),
    run(0x1f30, 0x1f37, 1, 8),
    run(0x1f40, 0x1f45, 1, 8),
    run(0x1f51, 0x1f57, 2, 8),
    run(0x1f60, 0x1f67, 1, 8),
    run(0x1f70, 0x1f71, 1, 74),
    run(0x1f72, 0x1f75, 1, 86),
    run(0x1f76, 0x1f77, 1, 100),
    run(0x1f78, 0x1f79, 1, 128),
    run(0x1f7a, 0x1f7b, 1, 112),
    run(0x1f7c, 0x1f7d, 1, 126),
    run(0x1f80, 0x1f87, 1, 8),
    run(0x1f90, 0x1f97, 1, 8),
    run(0x1fa0, 0x1fa7, 1, 8),
    run(0x1fb0, 0x1fb1, 1, 8),
    run(0x1fb3, 0x1fb3, 1, 9),
    run(0x1fcc, 0x1fcc, 1, -9),
    run(0x1fd0, 0x1fd1, 1, 8),
    run(0x1fe0, 0x1fe1, 1, 8),
    run(0x1fe5, 0x1fe5, 1, 7),
    run(0x1ffc, 0x1ffc, 1, -9),
    run(0x214e, 0x214e, 1, -28),
    run(0x2170, 0x217f, 1, -16),
    run(0x2184, 0x2184, 1, -1),
    run(0x24d0, 0x24e9, 1, -26),
    run(0x2c30, 0x2c5e, 1, -48),
    run(0x2c61, 0x2c61, 1, -1),
    run(0x2c68, 0x2c6c, 2, -1),
    run(0x2c76, 0x2c76, 1, -1),
    run(0x2c81, 0x2ce3, 2, -1),
    run(0x2d00, 0x2d25, 1, -7264),
    run(0xff41, 0xff5a, 1, -32),
];

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the table in its form on a volume: one unit for each character, but long runs that
    /// map to themselves are 0xFFFF and their length.
    fn compressed() -> Vec<u8> {
        let upper = |unit: u16| match char::from_u32(u32::from(unit)) {
            Some(c) => u32::from(upcase(c)) as u16,
            None => unit,
        };
        let mut words: Vec<u16> = Vec::new();
        let mut unit: u32 = 0;
        while unit < 0x1_0000 {
            let same = (unit..0x1_0000)
                .take_while(|&u| u32::from(upper(u as u16)) == u)
                .count();
            // The recommended table compresses only the four runs longer than this.
            if same > 512 {
                words.extend([0xffff, same as u16]);
                unit += same as u32;
            } else {
                words.push(upper(unit as u16));
                unit += 1;
            }
        }
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn the_table_has_the_checksum_that_the_exfat_specification_gives() {
        let bytes = compressed();
        let sum = bytes
            .iter()
            .fold(0_u32, |sum, &b| sum.rotate_right(1).wrapping_add(b.into()));
        assert_eq!((bytes.len(), sum), (5836, 0xe619_d30d));
    }

    #[test]
    fn upcasing_twice_is_upcasing_once() {
        for c in (0..=0x1_ffff).filter_map(char::from_u32) {
            assert_eq!(upcase(upcase(c)), upcase(c), "{c:?}");
        }
    }
}
