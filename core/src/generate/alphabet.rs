//! What a placeholder stands for.
//!
//! Invariant: the symbols of a set differ as keys, so codes that differ in a symbol are different codes; and they are in
//! the order of their keys, so numbers and the codes that they spell have the same order.

use crate::error::{Code, Unfit};

/// The digits.
pub const DIGITS: &str = "0123456789";
/// The upper-case letters.
pub const LETTERS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Both.
pub const ALPHANUMERIC: &str = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ";
/// Both without what is easily taken for something else: 0 and O, 1, I and L, and U (V).
pub const UNAMBIGUOUS: &str = "23456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The alphabets that have names. No name is a list of distinct symbols, so a name is never taken for a list.
pub const NAMED: [(&str, &str); 4] = [
    ("digits", DIGITS),
    ("letters", LETTERS),
    ("alphanumeric", ALPHANUMERIC),
    ("unambiguous", UNAMBIGUOUS),
];

/// A set of symbols, as shown and as in the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Symbols {
    pub(super) shown: Vec<u8>,
    pub(super) keys: Vec<u8>,
    /// Whether the set has a name: those can have a check character.
    pub(super) named: bool,
}

impl Symbols {
    /// One of [`NAMED`]'s sets.
    pub(super) fn of(set: &str) -> Self {
        Self {
            shown: set.as_bytes().to_vec(),
            keys: set.as_bytes().to_vec(),
            named: true,
        }
    }

    /// Reads what `*` stands for: a name, or the symbols themselves; letters and digits when nothing is given.
    ///
    /// # Errors
    /// `pattern_invalid` at `/alphabet`.
    pub(super) fn parse(text: Option<&str>, exact: bool) -> Result<Self, Unfit> {
        let Some(text) = text else {
            return Ok(Self::of(ALPHANUMERIC));
        };
        if let Some((_, set)) = NAMED.iter().find(|(name, _)| *name == text) {
            return Ok(Self::of(set));
        }
        let fault = |code, detail: String| Unfit::at(Code::PatternInvalid, "/alphabet", code, detail);
        let mut symbols: Vec<(u8, u8)> = Vec::new();
        for (place, symbol) in text.chars().enumerate() {
            let byte = u8::try_from(symbol)
                .ok()
                .filter(|byte| (b'!'..=b'~').contains(byte));
            let Some(key) = byte.and_then(|byte| key_of(byte, exact)) else {
                let detail = format!(
                    "Character {} of the alphabet cannot be a symbol: symbols are printable ASCII, and no spaces{}.",
                    place + 1,
                    if exact { "" } else { " or dashes" }
                );
                return Err(fault("bad_character", detail));
            };
            if symbols.iter().any(|(known, _)| *known == key) {
                let detail = format!(
                    "Character {} of the alphabet is there twice{}. An alphabet is digits, letters, alphanumeric, \
                     unambiguous, or a list of distinct symbols.",
                    place + 1,
                    if exact {
                        ""
                    } else {
                        " (upper and lower case are the same in this book)"
                    }
                );
                return Err(fault("duplicate", detail));
            }
            symbols.push((key, symbol as u8));
        }
        if symbols.len() < 2 {
            return Err(fault(
                "too_short",
                "An alphabet needs two symbols or more.".into(),
            ));
        }
        symbols.sort_unstable();
        Ok(Self {
            shown: symbols.iter().map(|(_, shown)| *shown).collect(),
            keys: symbols.iter().map(|(key, _)| *key).collect(),
            named: false,
        })
    }

    /// How many.
    pub(super) fn len(&self) -> u64 {
        self.keys.len() as u64
    }
}

/// What of a character is in the key of a code: itself in a book of exact codes; else upper case, and nothing of spaces
/// and dashes (see [`crate::coupon::code`]).
pub(super) fn key_of(byte: u8, exact: bool) -> Option<u8> {
    match byte {
        _ if exact => Some(byte),
        b' ' | b'-' => None,
        _ => Some(byte.to_ascii_uppercase()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_name_is_a_list_and_named_sets_are_sorted_and_distinct() {
        for (name, set) in NAMED {
            assert!(
                name.bytes()
                    .any(|byte| name.matches(char::from(byte)).count() > 1),
                "{name}"
            );
            assert!(set.as_bytes().is_sorted_by(|a, b| a < b), "{name}");
        }
    }

    #[test]
    fn own_symbols_are_distinct_as_keys() {
        let words = |text, exact| Symbols::parse(Some(text), exact).map_err(|unfit| unfit.fault.code);
        assert_eq!(words("ba", false).unwrap().shown, b"ab");
        assert_eq!(words("ba", false).unwrap().keys, b"AB");
        assert_eq!(words("aA", true).unwrap().keys, b"Aa");
        for (text, exact, word) in [
            ("aA", false, "duplicate"),
            ("AA", true, "duplicate"),
            ("digit", false, "duplicate"),
            ("A", true, "too_short"),
            ("", true, "too_short"),
            ("A-", false, "bad_character"),
            ("A ", true, "bad_character"),
            ("Aé", true, "bad_character"),
        ] {
            assert_eq!(words(text, exact), Err(word), "{text:?}");
        }
        assert!(words("A-", true).is_ok());
    }
}
