//! Codes as people type them, and the key that makes two of them equal.
//!
//! Invariant: two codes are the same if and only if their keys are equal: upper case without spaces and dashes, or the
//! code itself in a book of exact codes.

/// The most characters a code may have.
pub const MAX_LENGTH: usize = 100;

/// A well-formed code: 1 to 100 printable ASCII characters, trimmed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Code {
    shown: String,
    folded: String,
}

impl std::fmt::Debug for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Code(…)") // codes are money: none in a log
    }
}

/// Why a text is no code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CodeFault {
    /// Nothing, or nothing but spaces and dashes, or `.` or `..` (which no URL can carry).
    #[error("the code is empty")]
    Empty,
    /// More than [`MAX_LENGTH`] characters.
    #[error("the code has more than 100 characters")]
    TooLong,
    /// A character that is not printable ASCII.
    #[error("the code has a character that is not printable ASCII")]
    BadCharacter,
}

impl CodeFault {
    /// The stable word in an error list.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Empty => "empty",
            Self::TooLong => "too_long",
            Self::BadCharacter => "bad_character",
        }
    }
}

impl Code {
    /// Reads a code, trimming blanks around it.
    ///
    /// # Errors
    /// See [`CodeFault`].
    pub fn parse(text: &str) -> Result<Self, CodeFault> {
        let shown = text.trim_matches([' ', '\t', '\r', '\n']);
        if shown.is_empty() || shown == "." || shown == ".." {
            return Err(CodeFault::Empty);
        }
        if !shown.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
            return Err(CodeFault::BadCharacter);
        }
        if shown.len() > MAX_LENGTH {
            return Err(CodeFault::TooLong);
        }
        let folded: String = shown
            .bytes()
            .filter(|byte| !matches!(byte, b' ' | b'-'))
            .map(|byte| char::from(byte.to_ascii_uppercase()))
            .collect();
        if folded.is_empty() {
            return Err(CodeFault::Empty);
        }
        Ok(Self {
            shown: shown.to_owned(),
            folded,
        })
    }

    /// The code as given.
    pub fn shown(&self) -> &str {
        &self.shown
    }

    /// The key in a book whose codes are exact or not.
    pub fn key(&self, exact: bool) -> &str {
        if exact { &self.shown } else { &self.folded }
    }

    /// What is stored as the shown code beside that key: nothing when the two are equal.
    pub fn shown_beside_key(&self, exact: bool) -> Option<&str> {
        (self.key(exact) != self.shown).then_some(self.shown.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_that_differ_only_in_case_spaces_or_dashes_are_the_same_unless_exact() {
        let (a, b) = (Code::parse(" ab-12 cd ").unwrap(), Code::parse("AB12CD").unwrap());
        assert_eq!(a.key(false), b.key(false));
        assert_ne!(a.key(true), b.key(true));
        assert_eq!(a.shown(), "ab-12 cd");
        assert_eq!(b.shown_beside_key(false), None);
        assert_eq!(a.shown_beside_key(false), Some("ab-12 cd"));
    }

    #[test]
    fn what_is_no_code_is_refused_with_its_reason() {
        for text in ["", "  ", "-", "- -", ".", ".."] {
            assert_eq!(Code::parse(text), Err(CodeFault::Empty), "{text:?}");
        }
        assert_eq!(Code::parse(&"x".repeat(100)).unwrap().shown().len(), 100);
        assert_eq!(Code::parse(&"x".repeat(101)), Err(CodeFault::TooLong));
        for text in ["añb", "a\0b", "a\tb", "a\u{7f}"] {
            assert_eq!(Code::parse(text), Err(CodeFault::BadCharacter), "{text:?}");
        }
    }

    #[test]
    fn a_code_never_prints_itself() {
        assert!(!format!("{:?}", Code::parse("SECRET1").unwrap()).contains("SECRET1"));
    }
}
