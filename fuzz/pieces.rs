//! Inputs that are a list of things: each a kind, a number, a length of two bytes and as many
//! bytes. What is cut short counts as far as it goes.

/// One of them.
pub struct Piece<'a> {
    pub kind: u8,
    pub number: u8,
    pub bytes: &'a [u8],
}

/// All of them.
pub fn pieces(mut input: &[u8]) -> Vec<Piece<'_>> {
    let mut found = Vec::new();
    while let [kind, number, low, high, rest @ ..] = input {
        let length = usize::from(u16::from_le_bytes([*low, *high])).min(rest.len());
        let (bytes, behind) = rest.split_at(length);
        found.push(Piece {
            kind: *kind,
            number: *number,
            bytes,
        });
        input = behind;
    }
    found
}

/// The input that has this piece. For seeds.
pub fn piece(kind: u8, number: u8, bytes: &[u8]) -> Vec<u8> {
    let length = u16::try_from(bytes.len()).expect("a short piece");
    [&[kind, number][..], &length.to_le_bytes(), bytes].concat()
}
