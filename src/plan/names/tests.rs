use proptest::prelude::*;

use unicode_normalization::UnicodeNormalization;

use super::*;

/// ext4: no restrictions.
pub(super) fn posix() -> Capabilities {
    Capabilities::everything()
}

pub(super) fn exfat() -> Capabilities {
    Capabilities {
        forbidden: (1..0x20).chain(*b"\"*:<>?\\|\x7f").collect(),
        case_insensitive: true,
        utf8_only: true,
        no_trailing_dot: true,
        no_trailing_space: true,
        max_utf16: Some(255),
        time_granularity_ns: 10_000_000,
        ..Capabilities::plain()
    }
}

fn name(bytes: impl AsRef<[u8]>) -> Name {
    Name::new(bytes.as_ref()).unwrap()
}

fn fold(text: &str) -> Vec<u8> {
    NameRules::new(&exfat()).fold(&name(text))
}

#[test]
fn what_exfat_cannot_hold_is_refused_with_the_reason() {
    let rules = NameRules::new(&exfat());
    let refusal = |bytes: &[u8]| rules.check(&name(bytes), false).unwrap_err();
    assert_eq!(refusal(b"10:30"), NameRefusal::Forbidden { byte: b':' });
    assert_eq!(refusal(b"a\x01"), NameRefusal::Forbidden { byte: 1 });
    assert_eq!(refusal(b"etc."), NameRefusal::TrailingDot);
    assert_eq!(refusal(b"etc "), NameRefusal::TrailingSpace);
    assert_eq!(refusal(b"caf\xe9"), NameRefusal::NotUtf8);
    for fine in ["a.b", " a", ".hidden", "Gr\u{f6}\u{df}e", "\u{1f980}"] {
        assert_eq!(rules.check(&name(fine), false), Ok(()), "{fine}");
    }
}

#[test]
fn a_refusal_names_a_control_character_legibly() {
    let said = NameRefusal::Forbidden { byte: 1 }.to_string();
    assert!(said.contains("'\\x01'"), "{said}");
}

#[test]
fn a_posix_backend_refuses_only_our_own_name() {
    let rules = NameRules::new(&posix());
    for fine in [&b"a:b"[..], b"a.", b"a ", b"\xff", b"a\x01"] {
        assert_eq!(rules.check(&name(fine), true), Ok(()));
    }
    let ours = rules.check(&name(".ferryfs"), true);
    assert_eq!(ours, Err(NameRefusal::Reserved));
}

#[test]
fn our_own_name_is_refused_at_the_root_in_every_case_and_nowhere_else() {
    for capabilities in [posix(), exfat()] {
        let rules = NameRules::new(&capabilities);
        for spelling in [".ferryfs", ".FERRYFS", ".FerryFs"] {
            let name = name(spelling);
            assert_eq!(rules.check(&name, true), Err(NameRefusal::Reserved));
            assert_eq!(rules.check(&name, false), Ok(()));
        }
    }
}

#[test]
fn length_is_counted_in_utf16_units() {
    let rules = NameRules::new(&Capabilities {
        max_utf16: Some(4),
        ..posix()
    });
    // A character beyond the BMP has two units.
    assert_eq!(rules.check(&name("\u{1f980}\u{1f980}"), false), Ok(()));
    assert_eq!(
        rules.check(&name("\u{1f980}\u{1f980}a"), false),
        Err(NameRefusal::TooLong { length: 5, max: 4 })
    );
    assert_eq!(
        rules.check(&name("\u{fc}\u{fc}\u{fc}\u{fc}"), false),
        Ok(())
    );
    assert!(rules.check(&name(b"\xff\xff\xff\xff\xff"), false).is_err());
}

#[test]
fn names_collide_where_exfat_lets_them_collide() {
    for (a, b) in [
        ("\u{fc}ber", "\u{dc}BER"),
        ("\u{3b1}\u{3c2}", "\u{391}\u{3a3}"),
        ("\u{436}", "\u{416}"),
        // Unicode has no single upper-case letter for this one; exFAT has.
        ("\u{1f80}", "\u{1f88}"),
        ("\u{24d0}", "\u{24b6}"),
        // Two names for exFAT, one for macOS.
        ("\u{e9}", "E\u{301}"),
    ] {
        assert_eq!(fold(a), fold(b), "{a} {b}");
    }
}

#[test]
fn names_that_exfat_keeps_apart_do_not_collide() {
    for (a, b) in [
        ("\u{131}", "i"),
        ("\u{b5}", "\u{3bc}"),
        ("stra\u{df}e", "STRASSE"),
        ("\u{17f}", "s"),
        ("\u{10428}", "\u{10400}"),
    ] {
        assert_ne!(fold(a), fold(b), "{a} {b}");
    }
}

fn spelled(rules: &NameRules, text: impl AsRef<[u8]>, in_root: bool) -> String {
    let name = name(text);
    let best = rules.spellings(&name, in_root).next().unwrap();
    String::from_utf8(best.as_bytes().to_vec()).unwrap()
}

#[test]
fn what_exfat_refuses_is_spelled_as_rclone_spells_it() {
    let rules = NameRules::new(&exfat());
    for (text, spelling) in [
        (&b"a:b?"[..], "a\u{ff1a}b\u{ff1f}"),
        (
            b"\"*<>|\\",
            "\u{ff02}\u{ff0a}\u{ff1c}\u{ff1e}\u{ff5c}\u{ff3c}",
        ),
        (b"tab\there", "tab\u{2409}here"),
        (b"del\x7f", "del\u{2421}"),
        (b"etc.", "etc\u{ff0e}"),
        (b"...", "..\u{ff0e}"),
        (b"etc ", "etc\u{2420}"),
        (b"a\x80b\xff", "a\u{201b}80b\u{201b}FF"),
        ("a\u{ff1a}b".as_bytes(), "a\u{201b}\u{ff1a}b"),
        ("a\u{201b}b".as_bytes(), "a\u{201b}\u{201b}b"),
        // A replacement at the end only.
        (
            "a\u{ff0e}b\u{ff0e}".as_bytes(),
            "a\u{ff0e}b\u{201b}\u{ff0e}",
        ),
        // Not replacements of characters that exFAT refuses.
        ("\u{ff21}\u{2400}".as_bytes(), "\u{ff21}\u{2400}"),
    ] {
        assert_eq!(spelled(&rules, text, false), spelling);
        assert_eq!(rules.decode(&name(spelling), false), Some(name(text)));
    }
}

#[test]
fn our_own_name_is_spelled_otherwise_at_the_root_of_every_backend() {
    for capabilities in [posix(), exfat()] {
        let rules = NameRules::new(&capabilities);
        for (text, spelling) in [
            (".ferryfs", "\u{ff0e}ferryfs"),
            (".FERRYFS", "\u{ff0e}FERRYFS"),
            ("\u{ff0e}ferryfs", "\u{201b}\u{ff0e}ferryfs"),
            ("\u{201b}\u{ff0e}ferryfs", "\u{201b}\u{201b}\u{ff0e}ferryfs"),
        ] {
            assert_eq!(spelled(&rules, text, true), spelling);
            assert_eq!(rules.decode(&name(spelling), true), Some(name(text)));
        }
        assert!(rules.is_plain(&name(".ferryfs"), false));
        assert!(rules.is_plain(&name("\u{ff0e}ferryfs"), false));
    }
}

#[test]
fn a_posix_backend_has_names_as_they_are() {
    let rules = NameRules::new(&posix());
    for text in [
        &b"a:b."[..],
        b"\xff ",
        "\u{201b}\u{ff1a}\u{201b}\u{201b}".as_bytes(),
    ] {
        for in_root in [true, false] {
            assert!(rules.is_plain(&name(text), in_root));
            assert_eq!(rules.decode(&name(text), in_root), Some(name(text)));
        }
    }
    let suffix_like = spelled(&rules, "x\u{201b}~deadbeef", false);
    assert_eq!(suffix_like, "x\u{201b}\u{201b}~deadbeef");
}

#[test]
fn a_suffix_stands_before_the_extension_and_proves_itself() {
    let rules = NameRules::new(&exfat());
    let all: Vec<String> = rules
        .spellings(&name("Read:me.txt"), false)
        .take(5)
        .map(|name| name.to_string())
        .collect();
    let hash = blake3::hash(b"Read:me.txt").to_hex();
    assert_eq!(all[0], "Read\u{ff1a}me.txt");
    for (n, digits) in [8, 16, 32].into_iter().enumerate() {
        let expected = format!("Read\u{ff1a}me\u{201b}~{}.txt", &hash[..digits]);
        assert_eq!(all[n + 1], expected);
        let read = rules.decode(&name(&all[n + 1]), false);
        assert_eq!(read, Some(name("Read:me.txt")));
    }
    assert_ne!(all[4], all[3]);
    // Another program's names, or names that were cut.
    for other in [
        "x\u{201b}~deadbeef.txt",
        "x\u{201b}~",
        "x\u{201b}~deadbeefx",
    ] {
        assert_eq!(rules.decode(&name(other), false), None, "{other}");
    }
}

#[test]
fn the_suffix_in_the_format_document_is_the_one_that_is_written() {
    let rules = NameRules::new(&exfat());
    let name = name("readme.md");
    let second = rules.spellings(&name, false).nth(1).unwrap().to_string();
    let document = include_str!("../../../docs/on-drive-format.md");
    assert!(document.contains(&format!("`{second}`")), "{second}");
}

#[test]
fn what_looks_like_ours_but_is_not_what_we_would_write_is_not_read() {
    let rules = NameRules::new(&exfat());
    for other in [
        "\u{201b}41",
        "\u{201b}ff",
        "\u{201b}C3\u{201b}A9",
        "\u{201b}",
        "a\u{201b}b",
        "\u{201b}\u{ff0e}x",
        "a:b",
        "dot.",
        "\u{201b}2E",
        "\u{201b}00",
        "\u{201b}2F",
    ] {
        assert_eq!(rules.decode(&name(other), true), None, "{other}");
    }
}

#[test]
fn a_name_that_is_too_long_is_cut_between_characters_and_keeps_its_extension() {
    let rules = NameRules::new(&exfat());
    let long = [&[0xff; 251][..], b".mkv"].concat();
    let best = spelled(&rules, &long, false);
    assert!(best.starts_with("\u{201b}FF\u{201b}FF") && best.ends_with(".mkv"));
    let stem = best.split_once("\u{201b}~").unwrap().0;
    assert_eq!(stem.replace("\u{201b}FF", ""), "");
    assert_eq!(best.encode_utf16().count() / 3, 255 / 3 - 1);
    // 255 bytes that fit in units are not cut.
    assert!(rules.is_plain(&name("\u{1f980}".repeat(63)), false));
}

fn names() -> impl Strategy<Value = Name> {
    let text = proptest::collection::vec(any::<char>(), 1..40)
        .prop_map(|chars| chars.into_iter().collect::<String>().into_bytes());
    // Few letters, so that some names differ only in case.
    let close = proptest::collection::vec(0x3b1_u32..0x3b4, 1..3).prop_flat_map(|units| {
        proptest::collection::vec(any::<bool>(), units.len()).prop_map(move |upper| {
            let pick = |(u, up): (&u32, &bool)| char::from_u32(u - if *up { 32 } else { 0 });
            let name: Option<String> = units.iter().zip(&upper).map(pick).collect();
            name.unwrap_or_default().into_bytes()
        })
    });
    let bytes = proptest::collection::vec(any::<u8>(), 1..255);
    prop_oneof![text, close, bytes].prop_filter_map("no name", |bytes| Name::new(&bytes).ok())
}

proptest! {
    #[test]
    fn ascii_case_variants_collide(name in names(), upper: bool) {
        let mut other = name.as_bytes().to_vec();
        if upper { other.make_ascii_uppercase() } else { other.make_ascii_lowercase() }
        let rules = NameRules::new(&exfat());
        prop_assert_eq!(rules.fold(&Name::new(&other).unwrap()), rules.fold(&name));
    }

    #[test]
    fn names_that_fold_alike_differ_only_in_case(a in names(), b in names()) {
        let rules = NameRules::new(&exfat());
        let lower = |n: &Name| String::from_utf8_lossy(n.as_bytes()).nfd().collect::<String>().to_lowercase().replace('\u{3c2}', "\u{3c3}");
        prop_assert!(rules.fold(&a) != rules.fold(&b) || lower(&a) == lower(&b));
    }

    #[test]
    fn a_case_sensitive_backend_gives_the_key_no_role(name in names()) {
        prop_assert!(NameRules::new(&posix()).fold(&name).is_empty());
    }

    #[test]
    fn a_name_that_exfat_takes_is_text_without_a_forbidden_character(name in names()) {
        let rules = NameRules::new(&exfat());
        let bytes = name.as_bytes();
        let fits = std::str::from_utf8(bytes).is_ok()
            && !bytes.iter().any(|b| exfat().forbidden.contains(b))
            && !matches!(bytes.last(), Some(b'.' | b' '))
            && String::from_utf8_lossy(bytes).encode_utf16().count() <= 255;
        prop_assert_eq!(rules.check(&name, false).is_ok(), fits);
    }
}

/// For every character: whether an ASCII name may equal another is decided by its bytes.
#[test]
fn a_name_without_variants_equals_no_other() {
    for (capabilities, ignores_case) in [(exfat(), true), (forms_only(), false)] {
        let rules = NameRules::new(&capabilities);
        for c in ('\u{80}'..=char::MAX).filter(|c| *c != '/') {
            let fold = rules.fold(&name(c.to_string()));
            if !fold.is_ascii() {
                continue;
            }
            for byte in fold {
                let plain = name([byte]);
                assert_eq!(rules.variants(&plain), Variants::Any, "{c:?} is {plain:?}");
            }
        }
        let letters = match ignores_case {
            true => Variants::Case,
            false => Variants::None,
        };
        assert_eq!(rules.variants(&name("Report.txt")), letters);
        assert_eq!(rules.variants(&name("2026-11")), Variants::None);
        assert_eq!(rules.variants(&name("caf\u{e9}")), Variants::Any);
    }
    let exact = NameRules::new(&posix());
    assert_eq!(exact.variants(&name("caf\u{e9}")), Variants::None);
}

fn forms_only() -> Capabilities {
    Capabilities {
        form_insensitive: true,
        ..posix()
    }
}
