use proptest::prelude::*;

use super::*;

/// ext4: anything goes.
fn posix() -> Capabilities {
    Capabilities::everything()
}

fn exfat() -> Capabilities {
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
    // A character beyond the BMP takes two units.
    assert_eq!(rules.check(&name("\u{1f980}\u{1f980}"), false), Ok(()));
    assert_eq!(
        rules.check(&name("\u{1f980}\u{1f980}a"), false),
        Err(NameRefusal::TooLong { units: 5, max: 4 })
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
        // Unicode has no single upper-case letter for this one; exFAT does.
        ("\u{1f80}", "\u{1f88}"),
        ("\u{24d0}", "\u{24b6}"),
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
        // Composed and decomposed spelling are two names.
        ("\u{e9}", "e\u{301}"),
        ("\u{10428}", "\u{10400}"),
    ] {
        assert_ne!(fold(a), fold(b), "{a} {b}");
    }
}

fn names() -> impl Strategy<Value = Name> {
    let text = proptest::collection::vec(any::<char>(), 1..40)
        .prop_map(|chars| chars.into_iter().collect::<String>().into_bytes());
    // Few letters, so that names which differ only in case come up.
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
    fn folding_twice_is_folding_once(name in names()) {
        let once = upcased(name.as_bytes());
        prop_assert_eq!(upcased(&once), once);
    }

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
        let lower = |n: &Name| String::from_utf8_lossy(n.as_bytes()).to_lowercase().replace('\u{3c2}', "\u{3c3}");
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
