//! Properties of the mapping, for all names and all kinds of backends.

use std::collections::HashSet;

use proptest::prelude::*;
use unicode_normalization::UnicodeNormalization;

use super::*;
use crate::core::NAME_MAX;

/// Backends of all kinds, including ones that may not exist.
fn backends() -> impl Strategy<Value = Capabilities> {
    let exfat: Vec<u8> = (1..0x20).chain(*b"\"*:<>?\\|").collect();
    let forbidden = prop_oneof![
        Just(Vec::new()),
        Just(exfat),
        Just(b":\x7f".to_vec()),
        Just((1..0x20).collect::<Vec<u8>>())
    ];
    let flags = proptest::array::uniform5(any::<bool>());
    let lengths = prop_oneof![
        Just((Some(255), 255)),
        Just((None, 255)),
        Just((None, 143)),
        Just((Some(64), 255))
    ];
    (forbidden, flags, lengths).prop_map(|(forbidden, flags, (max_utf16, max_bytes))| {
        let [case, form, utf8, dot, space] = flags;
        Capabilities {
            forbidden,
            case_insensitive: case,
            form_insensitive: form,
            utf8_only: utf8,
            no_trailing_dot: dot,
            no_trailing_space: space,
            max_utf16,
            max_bytes,
            ..Capabilities::plain()
        }
    })
}

/// Parts of names that concern the mapping, including its output.
fn parts() -> impl Strategy<Value = Vec<u8>> {
    let texts = prop_oneof![
        Just("\u{201b}"),
        Just("\u{201b}~"),
        Just("\u{201b}~deadbeef"),
        Just("~0123456789abcdef"),
        Just("\u{ff0e}"),
        Just("\u{2420}"),
        Just("\u{ff1a}"),
        Just("\u{201b}\u{ff1a}"),
        Just("\u{201b}FF"),
        Just("\u{201b}C3\u{201b}A9"),
        Just("\u{2401}"),
        Just("\u{2421}"),
        Just("."),
        Just(" "),
        Just("..."),
        Just(":"),
        Just("?*<>|\"\\"),
        Just("\u{1}\n\t\u{7f}"),
        Just("\u{e9}"),
        Just("e\u{301}"),
        Just("\u{1f80}"),
        Just("\u{1f980}\u{200d}\u{2764}"),
        Just("\u{d55c}"),
        Just("README"),
        Just("readme"),
        Just(".txt"),
        Just(".ferryfs"),
        Just("\u{ff0e}FERRYFS"),
        Just("a"),
    ];
    let bytes = prop_oneof![
        Just(b"\x80".to_vec()),
        Just(b"\xff".to_vec()),
        Just(b"\xe2\x80".to_vec()),
        Just(b"\xed\xa0\x80".to_vec()),
        proptest::collection::vec(any::<u8>(), 1..4),
    ];
    prop_oneof![4 => texts.prop_map(|text| text.as_bytes().to_vec()), 1 => bytes]
}

fn names() -> impl Strategy<Value = Name> {
    let built = proptest::collection::vec(parts(), 1..12).prop_map(|parts| parts.concat());
    let long = (parts(), 1_usize..256).prop_map(|(part, length)| {
        let all = part.repeat(NAME_MAX / part.len() + 1);
        all[..length.min(NAME_MAX)].to_vec()
    });
    let any_bytes = proptest::collection::vec(any::<u8>(), 1..=NAME_MAX);
    let text = "\\PC{1,60}".prop_map(String::into_bytes);
    prop_oneof![4 => built, 2 => long, 1 => any_bytes, 1 => text]
        .prop_filter_map("no name", |bytes| Name::of_mount(&bytes).ok())
}

/// The names that a directory of the backend would contain; names of the mount created first come
/// first.
fn stored(rules: &NameRules, names: &[Name], in_root: bool) -> Vec<Name> {
    let mut keys = HashSet::new();
    let mut take = |name: &Name| {
        let free = |spelling: &Name| {
            let key = match rules.fold(spelling) {
                fold if fold.is_empty() => spelling.as_bytes().to_vec(),
                fold => fold,
            };
            keys.insert(key)
        };
        rules.spellings(name, in_root).find(free).unwrap()
    };
    names.iter().map(&mut take).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]

    #[test]
    fn every_spelling_is_accepted_by_the_backend(name in names(), backend in backends(), in_root: bool) {
        let rules = NameRules::new(&backend);
        for spelling in rules.spellings(&name, in_root).take(6) {
            prop_assert_eq!(rules.check(&spelling, in_root), Ok(()), "{:?}", spelling);
        }
    }

    #[test]
    fn a_name_is_read_back_from_every_readable_spelling_that_was_not_cut(name in names(), backend in backends(), in_root: bool) {
        let rules = NameRules::new(&backend);
        let full = rules.spell_in_full(name.as_bytes(), in_root).len();
        let fits = rules.fits(&rules.spell(name.as_bytes(), in_root));
        for (n, spelling) in rules.spellings(&name, in_root).take(3).enumerate() {
            let read = rules.decode(&spelling, in_root);
            let suffix = if fits && n == 0 { 0 } else { 4 + suffix::READABLE[n - usize::from(fits)] };
            if suffix == 0 || spelling.as_bytes().len() == full + suffix {
                prop_assert_eq!(read.as_ref(), Some(&name), "{:?}", spelling);
            } else {
                prop_assert!(read.is_none_or(|other| other == name), "{:?}", spelling);
            }
        }
    }

    #[test]
    fn what_is_read_is_spelled_as_it_was(spelling in names(), backend in backends(), in_root: bool) {
        let rules = NameRules::new(&backend);
        if let Some(name) = rules.decode(&spelling, in_root) {
            prop_assert!(rules.spellings(&name, in_root).take(4).any(|again| again == spelling), "{:?}", name);
        }
    }

    #[test]
    fn a_spelling_of_a_spelling_is_read_back_to_it(name in names(), backend in backends(), in_root: bool) {
        let rules = NameRules::new(&backend);
        for spelling in rules.spellings(&name, in_root).take(2).filter(Name::is_mountable) {
            let again = rules.spellings(&spelling, in_root).next().unwrap();
            if rules.fits(&rules.spell(spelling.as_bytes(), in_root)) {
                prop_assert_eq!(rules.decode(&again, in_root), Some(spelling));
            }
        }
    }

    #[test]
    fn two_names_never_have_one_plain_spelling(a in names(), b in names(), backend in backends(), in_root: bool) {
        let rules = NameRules::new(&backend);
        let spell = |name: &Name| rules.spell(name.as_bytes(), in_root).into_owned();
        prop_assert_eq!(spell(&a) == spell(&b), a == b);
    }

    #[test]
    fn a_name_that_the_backend_takes_and_that_looks_like_nothing_of_ours_stays_as_it_is(name in names(), backend in backends(), in_root: bool) {
        let rules = NameRules::new(&backend);
        let looks_like_ours = String::from_utf8_lossy(name.as_bytes())
            .chars()
            .any(|c| matches!(c, '\u{201b}' | '\u{2400}'..='\u{2421}' | '\u{ff01}'..='\u{ff5e}'));
        if rules.check(&name, in_root).is_ok() && !looks_like_ours {
            prop_assert!(rules.is_plain(&name, in_root));
        }
    }

    #[test]
    fn names_of_one_directory_are_told_apart_and_keep_their_spelling_when_others_come(
        mut names in proptest::collection::vec(names(), 1..12), late in names(), backend in backends(), in_root: bool,
    ) {
        let mut seen = HashSet::new();
        names.retain(|name| seen.insert(name.clone()));
        let rules = NameRules::new(&backend);
        let before = stored(&rules, &names, in_root);
        let distinct: HashSet<&Name> = before.iter().collect();
        prop_assert_eq!(distinct.len(), names.len());
        names.push(late);
        let after = stored(&rules, &names, in_root);
        prop_assert_eq!(&after[..before.len()], &before[..]);
    }

    #[test]
    fn names_that_differ_in_form_only_have_one_key_where_case_is_ignored(text in "\\PC{1,20}") {
        let rules = NameRules::new(&Capabilities { case_insensitive: true, ..tests::posix() });
        let key = |text: &str| Name::new(text.replace('/', "-").as_bytes()).map(|name| rules.fold(&name));
        prop_assert_eq!(key(&text), key(&text.nfd().collect::<String>()));
        prop_assert_eq!(key(&text), key(&text.nfc().collect::<String>()));
    }
}

#[test]
fn each_character_has_one_key_in_both_forms_and_upper_case_as_exfat_has_it() {
    let rules = NameRules::new(&Capabilities {
        case_insensitive: true,
        ..tests::posix()
    });
    let key = |text: String| rules.fold(&Name::new(text.as_bytes()).unwrap());
    for c in ('\u{1}'..=char::MAX).filter(|&c| !matches!(c, '/' | '.')) {
        let plain = key(c.into());
        assert_eq!(plain, key(std::iter::once(c).nfd().collect()), "{c:?}");
        assert_eq!(plain, key(upcase(c).into()), "{c:?}");
        let again = key(String::from_utf8(plain.clone()).unwrap());
        assert_eq!(plain, again, "{c:?}");
    }
}
