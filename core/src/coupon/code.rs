//! Codes as people type them, and the key that makes two of them equal.
//!
//! Invariant: two codes are the same if and only if their keys are equal: upper case without spaces and dashes, or the
//! code itself in a book of exact codes.

/// The most characters a code may have.
pub const MAX_LENGTH: usize = 100;

/// A well-formed code: 1 to 100 printable ASCII characters, trimmed.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Code {
    /// The folded code and behind it the code as given, if that differs: many are kept at once.
    text: Box<str>,
    folded: u8,
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
        let separators = shown.bytes().filter(|byte| matches!(byte, b' ' | b'-')).count();
        let folded = shown.len() - separators;
        if folded == 0 {
            return Err(CodeFault::Empty);
        }
        let text = if separators == 0 && !shown.bytes().any(|byte| byte.is_ascii_lowercase()) {
            shown.into()
        } else {
            let mut text = String::with_capacity(folded + shown.len());
            text.extend(shown.chars().filter(|char| !matches!(char, ' ' | '-')));
            text.make_ascii_uppercase();
            text.push_str(shown);
            text.into_boxed_str()
        };
        Ok(Self {
            text,
            folded: u8::try_from(folded).map_err(|_| CodeFault::TooLong)?,
        })
    }

    /// The code as given.
    pub fn shown(&self) -> &str {
        let (folded, shown) = self.text.split_at(self.folded.into());
        if shown.is_empty() { folded } else { shown }
    }

    /// The key in a book whose codes are exact or not.
    pub fn key(&self, exact: bool) -> &str {
        if exact {
            self.shown()
        } else {
            &self.text[..self.folded.into()]
        }
    }

    /// What is stored as the shown code beside that key: nothing when the two are equal.
    pub fn shown_beside_key(&self, exact: bool) -> Option<&str> {
        (self.key(exact) != self.shown()).then_some(self.shown())
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
